// Checkpoints: a directory of complete saves, of which the newest few are kept.
//
//   DIR/step-00000040/weights.safetensors     one tensor a slice, under its expanded name
//   DIR/step-00000040/optimizer.safetensors   (absent when the program has no optimizer state)
//   DIR/step-00000040/manifest.json           written last: sizes, XXH3-64 of every tensor,
//   counters
//
// A save is made under a temporary name in DIR, flushed, renamed, and DIR is flushed: at any moment
// DIR holds only complete saves and leftovers whose names start with ".tmp-", which the next save
// removes. Older saves go only after the new one stands. When a save fails, whatever it wrote is
// removed and the older ones are as they were.
//
// Copies of weights (PROG_COPY) and caches are not saved; loading makes the copies anew.
//
// Loading verifies every byte (sizes, header, checksums) before anything is used. A directory
// without manifest is a copy that was cut off: it is skipped with a note and an older save is
// taken. A save that has its manifest and does not match it is refused by file and tensor: silently
// going back further would hide a failing disk.
#ifndef DSM_CHECKPOINT_H
#define DSM_CHECKPOINT_H

#include <stdbool.h>
#include <stdio.h>

#include "runtime/base/file.h"
#include "runtime/comm.h"
#include "runtime/vm.h"

// What a checkpoint belongs to.
typedef struct checkpoint {
  const prog *prog;
  vm *vm;
  const file_io *io;
  FILE *notes;  // where rank 0 tells of skipped saves and the like; NULL: nowhere
  comm *comm;   // NULL: one rank
} checkpoint;

// The counters of a run.
typedef struct ck_state {
  int64_t step;     // steps done
  int64_t samples;  // samples seen; the next step starts with this one
  uint64_t seed;
} ck_state;

// Saves after step st->step. `keep` >= 1 newest saves stay. `settings` are pairs (name, text),
// recorded for people. Returns the path in `out_path` (4096 bytes) when it is not NULL.
status *ck_save(const checkpoint *c, const char *dir, int keep, const ck_state *st,
                const char *const *settings, int nsettings, char *out_path) STATUS_MUST_USE;

// Loads weights and optimizer of the newest save in `dir` (or of `dir` itself when it is a save).
// *found is false, and nothing changed, when there is none.
status *ck_resume(const checkpoint *c, const char *dir, ck_state *out, bool *found) STATUS_MUST_USE;

// Loads weights only: from a directory of saves, one save, a directory with safetensors files, or
// one safetensors file. Floats of 16 to 64 bits are converted; other mismatches, and weights that
// are missing, are listed; tensors nobody needs are noted.
status *ck_load_weights(const checkpoint *c, const char *path) STATUS_MUST_USE;

// The step of the newest entry of `dir` that looks like a save, or -1.
int64_t ck_newest_step(const char *dir);

#endif
