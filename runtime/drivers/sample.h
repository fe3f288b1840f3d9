// Choosing a token from its logits: greedy, or drawn by temperature, top-k and top-p.
//
//   sampler s = {.temperature = 0.8, .top_p = 1, .vocab = 50257, .threads = pool};
//   sampler_open(&s, arena);
//   int32_t id;
//   if (!sampler_choose(&s, logits, PROG_F32, rng_unit(key, n), &id)) ...  // a logit is NaN
//
// The choice depends on logits, options and draw alone, not on the number of threads: work is cut
// into blocks of fixed size whose sums are added in order. Among equal logits the lower number
// comes first.
#ifndef DSM_DRIVER_SAMPLE_H
#define DSM_DRIVER_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/arena.h"
#include "runtime/pool.h"

typedef struct sampler {
  double temperature;  // 0: the likeliest
  double top_p;        // the likeliest that hold this share; 1: all
  int64_t top_k;       // that many of the likeliest; 0: all
  int64_t vocab;
  pool *threads;

  double *p;  // by token: its logit, then its weight
  struct sample_block *block;
  struct candidate *order;
} sampler;

// Takes its memory from `a`, which it must not outlive; the fields above `p` are set.
void sampler_open(sampler *s, arena *a);
// `logits` are `vocab` numbers of a dtype that converts to f64; 0 <= draw < 1. False when one of
// them is not a number.
bool sampler_choose(sampler *s, const void *logits, uint32_t dtype, double draw, int32_t *out);

#endif
