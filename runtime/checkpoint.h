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
// Copies of weights (PROG_COPY) and caches are not saved. Loading makes the copies anew: from the
// weights in memory where both are cut alike among ranks, else from the file, as a rank then has
// not all of the numbers that its copy is of.
//
// ---- several ranks ------------------------------------------------------------------------------
//
// A checkpoint is of the model, not of a mesh: tensors have the names and shapes of the whole, and
// any mesh loads what any mesh saved, one rank included. All ranks call, with a directory that all
// of them see, and return the same: NULL, or one failure that names the rank it happened on unless
// it happened on all. Rank 0 alone tells notes, makes the directory and publishes, after all others
// have flushed what they wrote.
//
// Ranks write at the same time, each to a file of its own, every tensor or part of one once: of
// ranks that have the same bytes the lowest writes them. When rank 0 has all of a class whole (one
// rank, plain data parallelism, the weights under ZeRO 1), that class is the one file above, byte
// for byte. Else
//
//   DIR/step-00000040/weights-00003.safetensors    what rank 3 writes, optimizer-00003 likewise
//
// where the header says of each tensor, among its metadata,
//
//   "part h.0.w": "[768, 3072] 3/8x384 1/4x73728"  absent when the tensor is whole
//   "xxh3 h.0.w": "0123456789abcdef ..."           XXH3-64 of each 2^20 bytes of its data
//
// A part is the shape of the whole and cuts p/nxb, applied one after the other to the elements in
// row-major order: think of them as rows of n*b (the last one may be short) and keep columns p*b ..
// p*b+b-1. Padding is not written. A reader in Python, of tensors flattened:
//
//   index = numpy.arange(768 * 3072)
//   for p, n, b in (3, 8, 384), (1, 4, 73728):
//     rows = numpy.split(index, range(n * b, index.size, n * b))
//     index = numpy.concatenate([row[p * b : p * b + b] for row in rows])
//   whole[index] = part
//
// The manifest has size and header checksum of each file; a save with files of ranks says
// "dsm-checkpoint-2", so that a runtime that knows no parts refuses it in words.
//
// ---- loading ------------------------------------------------------------------------------------
//
// Sizes and headers of all files of a class are verified, and of the data every byte that is used,
// before anything is used. A rank reads what it needs: of files of ranks the pieces of 2^20 bytes
// that hold its elements, each with its checksum; of a file with one checksum a tensor, every
// tensor that it has elements of, whole. (Such files are what one rank wrote, and stay readable for
// older runtimes; saving once more on many ranks makes pieces of them.)
//
// A directory without manifest is a copy that was cut off: it is skipped with a note and an older
// save is taken. A save that has its manifest and does not match it is refused by file and tensor:
// silently going back further would hide a failing disk.
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
