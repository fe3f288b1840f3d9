// Random numbers of a training step: a pure function of where they are used.
//
// A draw is keyed by (seed, step, op, layer, sample, index), never by anything local, so the same
// element gets the same draw on any mesh, micro-batch, thread or after a resume:
//   seed    of the run
//   step    of the optimizer, from 0
//   op_key  the op's attribute `key`: a hash of its path in the text
//   layer   number of the layer in the whole model (first + k*step of the enclosing repeat), 0
//           outside a repeat; for nested repeats outer*2^20 + inner
//   sample  global number of the sample in the step's batch
//   index   row-major position in the value's dimensions without the sample axis
//
// How it is computed, so that kernels can do the same on vectors of 32-bit lanes:
//   1. once per (op, layer, sample), in 64 bits: h = 0; for each of the five numbers n in the order
//      above h = splitmix64(h ^ n); k0 = low 32 bits of h, k1 = high 32 bits.
//   2. per element, in 32 bits, with x and y the low and high half of index:
//        h    = mix32(x ^ k0)
//        draw = mix32(h + k1 + y * 0x9E3779B9)
//      mix32(h): h ^= h>>16; h *= 0x7FEB352D; h ^= h>>15; h *= 0x846CA68B; h ^= h>>16
//      (a 32-bit finaliser of low bias, found by exhaustive search: "lowbias32").
//      splitmix64(z): z += 0x9E3779B97F4A7C15; z = (z ^ z>>30) * 0xBF58476D1CE4E5B9;
//      z = (z ^ z>>27) * 0x94D049BB133111EB; z ^= z>>31
//
// Dropout keeps an element iff draw >= base_drop_below(p), p's share of 2^32 rounded down.
#ifndef DSM_BASE_RANDOM_H
#define DSM_BASE_RANDOM_H

#include <stdint.h>

typedef struct base_key {
  uint32_t k0, k1;
} base_key;

// Step 1: the part of a draw that all elements of one sample share.
base_key base_draw_key(uint64_t seed, uint64_t step, uint64_t op_key, uint64_t layer,
                       uint64_t sample);
// Step 2.
uint32_t base_draw_at(base_key key, uint64_t index);
// Both: uniform over all 32-bit numbers.
uint32_t base_draw(uint64_t seed, uint64_t step, uint64_t op_key, uint64_t layer, uint64_t sample,
                   uint64_t index);

// (uint32)(p * 2^32), for p from 0 to 1; 1 gives the largest number.
uint32_t base_drop_below(double p);

#endif
