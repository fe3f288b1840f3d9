// Element types at run time: names, sizes, conversions. The numbers are those of program.h.
#ifndef DSM_DTYPE_H
#define DSM_DTYPE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "runtime/program.h"

typedef struct dtype_info {
  const char *name;  // in texts: "bf16"
  const char *st;    // in safetensors: "BF16"
  int bytes;
  char kind;  // F float, I integer, B truth
} dtype_info;

// `dtype` must be below PROG_DTYPES.
const dtype_info *dtype_of(uint32_t dtype);
// The number of a safetensors type, or -1.
int dtype_find_st(const char *st);

// Inline for loops over many: bf16 to f32; the bits of an f32, and an f32, to bf16, to nearest,
// ties to even.
static inline float dtype_from_bf16(uint16_t x) {
  uint32_t u = (uint32_t)x << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
static inline uint16_t dtype_bf16_bits(uint32_t u) {
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);  // keep NaN a NaN
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
static inline uint16_t dtype_to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return dtype_bf16_bits(u);
}
float dtype_from_f16(uint16_t x);
uint16_t dtype_to_f16(float x);  // to nearest, ties to even; overflow gives infinity

// Whether dtype_convert knows the pair: equal types, floats of 16 to 64 bits among themselves,
// integers among themselves.
bool dtype_convertible(uint32_t to, uint32_t from);
// Converts n elements (neither side needs alignment). Floats are rounded to nearest. Returns n, or
// the index of the first integer that does not fit.
int64_t dtype_convert(void *dst, uint32_t to, const void *src, uint32_t from, int64_t n);

#endif
