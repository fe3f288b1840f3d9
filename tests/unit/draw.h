// Draws for randomised tests: a state that a test seeds and every draw moves on.
//
//   uint64_t seed = 7;
//   int n = draw_int(&seed, 1, 9);
//   double share = draw_real(&seed);
#ifndef DSM_TESTS_DRAW_H
#define DSM_TESTS_DRAW_H

#include "runtime/base/rng.h"

// 64 bits.
static inline uint64_t draw(uint64_t *state) { return rng_mix(*state += 0x9e3779b97f4a7c15u); }

// A whole number from `from` to `to`, both included.
static inline int64_t draw_int64(uint64_t *state, int64_t from, int64_t to) {
  return from + (int64_t)(draw(state) % (uint64_t)(to - from + 1));
}
static inline int draw_int(uint64_t *state, int from, int to) {
  return (int)draw_int64(state, from, to);
}

// In [0, 1).
static inline double draw_real(uint64_t *state) { return (double)(draw(state) >> 11) * 0x1p-53; }

#endif
