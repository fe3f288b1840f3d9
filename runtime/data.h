// Training data: where samples come from, in which order, and how they become an entry's inputs.
//
// Two kinds of source:
//   tokens   files read as one stream in the order of their names: FILE.bin holds little-endian
//            u16 numbers, any other file is text and a byte is a token. The stream is cut into
//            windows; a reader makes the inputs from one.
//   tensors  a safetensors file, or a folder of them: one tensor for each input, its first axis the
//            sample; several files are one after the other, in the order of their names.
//
// Sample n of a run (counted from the run's start, whatever the batch) is window
// order(n / windows, n mod windows): a permutation keyed by (seed, epoch), or file order without
// shuffling. Draws of readers are keyed by (seed, n). So batches, resumes and threads change
// nothing about what sample n is. Everything is read through mmap; nothing is copied but windows.
//
// Readers ("read" of the job):
//   next_token            tokens = w[0..S), targets = w[1..S+1)
//   masked(share[, mask=ID])  that share of the tokens are to be guessed: 80 % of them read ID (the
//                         last of the vocabulary unless given), 10 % a random token, 10 % stay;
//                         targets hold the true token there and -100 elsewhere; length = S,
//                         segments = 0 where the model asks for them
//   span(share, mean)     spans of about `mean` tokens, that share of all, leave the source, each
//                         for a sentinel (vocab-1, vocab-2, ...); targets list sentinel and span,
//                         then one last sentinel; tokens are the targets shifted right by a 0
#ifndef DSM_DATA_H
#define DSM_DATA_H

#include <stdbool.h>

#include "runtime/base/arena.h"
#include "runtime/base/status.h"
#include "runtime/prog.h"

typedef struct data data;

typedef struct data_spec {
  const char *path;  // a file, a pattern, a folder of safetensors, or a list ["a", "b"] of them
  const char *read;  // "next_token", "masked(0.15)", "span(0.15, 3)"; NULL or "none": tensors only
  uint64_t seed;
  bool shuffle;
} data_spec;

// Opens everything that `spec` names and checks it against the entry's inputs. Memory comes from
// `a` now; data_fill allocates nothing.
status *data_open(arena *a, const prog *p, const prog_entry *e, const data_spec *spec,
                  data **out) STATUS_MUST_USE;
void data_close(data *d);
// Changes the seed of order and draws (a resumed run learns it late).
void data_seed(data *d, uint64_t seed);

int64_t data_samples(const data *d);      // of one epoch
const char *data_summary(const data *d);  // "3 files, 1.2 M tokens, 4687 samples"

// Writes samples sample0, sample0+1, ... of the run into the inputs of all micro-batches. `base` is
// the arena. Adds the number of predicted positions (targets that are not -100) to *predicted.
status *data_fill(data *d, unsigned char *base, int64_t sample0,
                  int64_t *predicted) STATUS_MUST_USE;

// Element `i` of the permutation of 0 .. n-1 that `key` selects (n >= 1).
uint64_t data_permute(uint64_t key, uint64_t n, uint64_t i);

// Largest window whose corrupted source fits `src` and whose targets fit `dst`, with the number of
// masked tokens and of spans; 0 when none does.
int64_t data_span_window(int64_t src, int64_t dst, double p, double mean, int64_t *noise,
                         int64_t *spans);

#endif
