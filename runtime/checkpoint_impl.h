// What the files of the checkpoint share: checkpoint.c keeps the directory of saves,
// checkpoint_write.c makes one save, checkpoint_read.c opens files and compares them with the
// program, checkpoint_manifest.c is the manifest.
//
// Functions marked "all ranks" are collective: every rank of c->comm calls them, and what they
// return is agreed on: NULL everywhere or nowhere.
#ifndef DSM_CHECKPOINT_IMPL_H
#define DSM_CHECKPOINT_IMPL_H

#include <jansson.h>

#include "runtime/base/str.h"
#include "runtime/base/vec.h"
#include "runtime/checkpoint.h"
#include "runtime/parts.h"
#include "runtime/safetensors.h"

#define CK_CHUNK ((uint64_t)1 << 20)  // bytes of a part that have a checksum of their own

// Files of a save hold tensors of one class.
enum { CK_WEIGHTS, CK_OPTIMIZER, CK_CLASSES };

// ---- what a rank has ----------------------------------------------------------------------------

// A slice of a state, or the part of it that this rank has.
typedef struct ck_slice {
  const char *name;  // in the checkpoint
  const prog_state *state;
  part part;
  unsigned char *data;
} ck_slice;
typedef VEC(ck_slice) ck_slices;

// The slices of a class, in the order of the program. Names that occur twice are an error.
status *ck_list(arena *a, const checkpoint *c, int cls, ck_slices *out) STATUS_MUST_USE;
// Those of the copies that vm_make_copies cannot make, under the names of their weights.
void ck_list_copies(arena *a, const checkpoint *c, ck_slices *out);

// All ranks. NULL when every rank has NULL; else the failure of the lowest rank that has one, with
// the rank named unless all have one.
status *ck_agree(const checkpoint *c, status *mine) STATUS_MUST_USE;

// ---- names and the manifest ---------------------------------------------------------------------

// "weights.safetensors", or of a rank's file "weights-00003.safetensors" (rank -1: none).
const char *ck_file_name(arena *a, int cls, int rank);
// The class of the file of that name, or -1.
int ck_file_class(const char *name);
json_t *ck_hex(uint64_t v);
bool ck_hex_value(const json_t *j, uint64_t *out);
// 16 digits that end with the text or before a space.
bool ck_hex_digits(const char *text, uint64_t *out);

// Writes `files` (name -> what is known of the file) and what the save is about, with a checksum
// over all of it. `parts`: the save has files of ranks. Takes over `files`.
status *ck_write_manifest(arena *a, const checkpoint *c, const char *dir, const ck_state *st,
                          const char *const *settings, int nsettings, bool parts,
                          json_t *files) STATUS_MUST_USE;
// The manifest of a save, whose checksum is right, and its counters. The caller json_decrefs *out.
status *ck_read_manifest(arena *a, const char *dir, json_t **out, ck_state *st) STATUS_MUST_USE;

// ---- writing and reading ------------------------------------------------------------------------

// All ranks. Writes a save, complete and flushed, into the directory that rank 0 made.
status *ck_write(arena *a, const checkpoint *c, const char *dir, const ck_state *st,
                 const char *const *settings, int nsettings) STATUS_MUST_USE;
// All ranks. Loads a save, or its weights only.
status *ck_read_save(arena *a, const checkpoint *c, const char *dir, bool weights_only,
                     ck_state *out) STATUS_MUST_USE;
// All ranks. Loads weights from safetensors files.
status *ck_read_files(arena *a, const checkpoint *c, const file_names *paths) STATUS_MUST_USE;

#endif
