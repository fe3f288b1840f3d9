// Random draws that depend on nothing but their key and counter.
//
// A draw is a pure function of (key, i): no state, no order, no thread can change it. Keys come
// from what a draw belongs to: a seed, a name, an epoch, a global sample number.
//
//   uint64_t key = rng_key(seed, sample);
//   if (rng_unit(key, i) < 0.15) ...                // decision number i of this sample
// (Draws inside a step's kernels are those of random.h, which fit vectors of 32-bit lanes; these
// are for the data order, readers, initial weights and sampling, and have 64 bits.)
#ifndef DSM_BASE_RNG_H
#define DSM_BASE_RNG_H

#include <stdint.h>

// The finaliser of splitmix64: a bijection in which every input bit moves every output bit.
static inline uint64_t rng_mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// A key for part `b` of key `a`.
static inline uint64_t rng_key(uint64_t a, uint64_t b) {
  return rng_mix(rng_mix(a + 0x9e3779b97f4a7c15u) ^
                 (b * 0xd1342543de82ef95u + 0x2545f4914f6cdd1du));
}

// Draw number i: 64 bits.
static inline uint64_t rng_bits(uint64_t key, uint64_t i) {
  return rng_mix(key + (i + 1) * 0x9e3779b97f4a7c15u);
}

// Draw number i: uniform in [0, 1), 53 bits.
static inline double rng_unit(uint64_t key, uint64_t i) {
  return (double)(rng_bits(key, i) >> 11) * 0x1p-53;
}

// Draw number i: uniform in 0 .. n-1 (n >= 1).
static inline uint64_t rng_below(uint64_t key, uint64_t i, uint64_t n) {
  return (uint64_t)(((unsigned __int128)rng_bits(key, i) * n) >> 64);
}

#endif
