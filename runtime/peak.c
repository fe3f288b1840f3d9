#include "runtime/peak.h"

#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#if defined(__x86_64__)
#include <immintrin.h>

// Twelve chains hide the latency of four cycles at two instructions a cycle, with some to spare.
enum { CHAINS = 12, ROUNDS = 20000 };

__attribute__((target("avx2,fma"))) static float chain256(void) {
  __m256 x[CHAINS], a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int i = 0; i < CHAINS; i++) x[i] = _mm256_set1_ps((float)i);
  for (int r = 0; r < ROUNDS; r++)
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) x[i] = _mm256_fmadd_ps(x[i], a, b);
  __m256 s = x[0];
  for (int i = 1; i < CHAINS; i++) s = _mm256_add_ps(s, x[i]);
  return _mm256_cvtss_f32(s);
}

__attribute__((target("avx512f"))) static float chain512(void) {
  __m512 x[CHAINS], a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int i = 0; i < CHAINS; i++) x[i] = _mm512_set1_ps((float)i);
  for (int r = 0; r < ROUNDS; r++)
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) x[i] = _mm512_fmadd_ps(x[i], a, b);
  __m512 s = x[0];
  for (int i = 1; i < CHAINS; i++) s = _mm512_add_ps(s, x[i]);
  return _mm512_cvtss_f32(s);
}

typedef struct probe {
  int lanes;
  volatile float sink;
} probe;

static void run_chains(void *ctx, int64_t lo, int64_t hi) {
  probe *p = ctx;
  for (int64_t i = lo; i < hi; i++) p->sink = p->lanes == 16 ? chain512() : chain256();
}

double peak_flops(pool *p) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  double best = 0;
  for (int lanes = 8; lanes <= 16; lanes += 8) {
    if (lanes == 16 && !__builtin_cpu_supports("avx512f")) continue;
    probe x = {.lanes = lanes};
    int64_t cells = pool_threads(p);
    for (int round = 0; round < 5; round++) {
      double t = now();
      pool_run(p, cells, run_chains, &x);
      double rate = 2.0 * (double)(lanes * CHAINS * ROUNDS * cells) / (now() - t);
      if (rate > best) best = rate;
    }
  }
  return best;
}
#else
double peak_flops(pool *p) {
  (void)p;
  (void)now;
  return 0;
}
#endif
