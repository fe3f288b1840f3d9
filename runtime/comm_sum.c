#include "runtime/comm_sum.h"

#include <string.h>

#include "runtime/dtype.h"
#include "runtime/program.h"

enum { BLOCK = 512 };  // elements that are summed at a time

static float same_f32(float v) { return v; }
static double same_f64(double v) { return v; }
static uint32_t same_u32(uint32_t v) { return v; }
static uint64_t same_u64(uint64_t v) { return v; }

// A NaN stays one whichever side it is on.
#define GREATER(S, a, b) ((S)(b) > (S)(a) || (b) != (b) ? (b) : (a))

// Elements T, summed as A, compared as S. A block is summed in full before any of it is stored.
#define ADD_UP(T, A, S, LOAD, STORE)                                              \
  for (int64_t at = 0; at < n; at += BLOCK) {                                     \
    A sum[BLOCK];                                                                 \
    int64_t m = n - at < BLOCK ? n - at : BLOCK;                                  \
    for (int64_t r = 0; r < ranks; r++) {                                         \
      const T *in = (const T *)(const void *)from[r] + at;                        \
      if (r == 0)                                                                 \
        for (int64_t i = 0; i < m; i++) sum[i] = LOAD(in[i]);                     \
      else if (reduce == PROG_SUM)                                                \
        for (int64_t i = 0; i < m; i++) sum[i] += LOAD(in[i]);                    \
      else                                                                        \
        for (int64_t i = 0; i < m; i++) sum[i] = GREATER(S, sum[i], LOAD(in[i])); \
    }                                                                             \
    T *out = (T *)(void *)to[0] + at;                                             \
    for (int64_t i = 0; i < m; i++) out[i] = STORE(sum[i]);                       \
    for (int64_t k = 1; k < outs; k++)                                            \
      memcpy((T *)(void *)to[k] + at, out, (size_t)m * sizeof *out);              \
  }

void comm_add_up(uint32_t dtype, uint32_t reduce, int64_t ranks, const unsigned char *const *from,
                 int64_t outs, unsigned char *const *to, int64_t n) {
  switch (dtype) {
    case PROG_F32: ADD_UP(float, float, float, same_f32, same_f32) break;
    case PROG_F64: ADD_UP(double, double, double, same_f64, same_f64) break;
    case PROG_BF16: ADD_UP(uint16_t, float, float, dtype_from_bf16, dtype_to_bf16) break;
    case PROG_F16: ADD_UP(uint16_t, float, float, dtype_from_f16, dtype_to_f16) break;
    case PROG_I32: ADD_UP(uint32_t, uint32_t, int32_t, same_u32, same_u32) break;
    case PROG_I64: ADD_UP(uint64_t, uint64_t, int64_t, same_u64, same_u64) break;
    default: break;
  }
}
