#include "runtime/peak.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/vm.h"

static double now(void) { return 1e-9 * (double)clock_ns(); }

// When no further round begins.
#define ENOUGH_FLOPS_S 0.01
#define ENOUGH_MEMORY_S 0.06

#if defined(__x86_64__)
#include <immintrin.h>

// Twelve chains hide the latency of four cycles at two instructions a cycle, with some to spare. A
// chain of 200000 runs for half a millisecond: a thread that sleeps must have time to wake up
// before the others have done its part.
enum { CHAINS = 12, ROUNDS = 200000 };

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
    double begin = now(), t0 = begin;
    do {
      pool_run(p, cells, run_chains, &x);
      double t1 = now(), rate = 2.0 * (double)(lanes * CHAINS * ROUNDS * cells) / (t1 - t0);
      if (rate > best) best = rate;
      t0 = t1;
    } while (t0 - begin < ENOUGH_FLOPS_S);
  }
  return best;
}
#else
double peak_flops(pool *p) {
  (void)p;
  return 0;
}
#endif

// ---- memory -------------------------------------------------------------------------------------

typedef float lanes __attribute__((vector_size(32)));

enum { BLOCK = 4096 };  // lanes of one cell

typedef struct stream {
  lanes *a, *b, *c;
  volatile float sink;
} stream;

// Pages that nobody wrote to are all the same page of zeros, and reading that is no reading.
static void write_all(void *ctx, int64_t lo, int64_t hi) {
  stream *s = ctx;
  for (int64_t i = lo * BLOCK; i < hi * BLOCK; i++) s->a[i] = (lanes){0} + 1.0f;
}

static void triad(void *ctx, int64_t lo, int64_t hi) {
  stream *s = ctx;
  for (int64_t i = lo * BLOCK; i < hi * BLOCK; i++) s->a[i] = s->b[i] + 0.5f * s->c[i];
}

static void read_all(void *ctx, int64_t lo, int64_t hi) {
  stream *s = ctx;
  lanes sum[4] = {0};
  for (int64_t i = lo * BLOCK; i < hi * BLOCK; i += 4)
    for (int k = 0; k < 4; k++) sum[k] += s->a[i + k];
  lanes all = sum[0] + sum[1] + sum[2] + sum[3];
  s->sink = all[0];
}

// Bytes of one array: half the last-level cache, which some virtual machines do not tell.
static size_t array_bytes(void) {
  const size_t least = (size_t)16 << 20, most = (size_t)256 << 20, page = (size_t)2 << 20;
  long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  size_t n = cache > 0 ? (size_t)cache / 2 : least;
  n = n < least ? least : n > most ? most : n;
  return (n + page - 1) / page * page;
}

double peak_bandwidth(pool *p) {
  size_t each = array_bytes(), all = 3 * each;
  uint64_t have = vm_available_bytes();
  if (have && have < 2 * (uint64_t)all) return 0;
  unsigned char *at =
      mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return 0;
  madvise(at, all, MADV_HUGEPAGE);  // a wish
  stream s = {.a = (lanes *)(void *)at,
              .b = (lanes *)(void *)(at + each),
              .c = (lanes *)(void *)(at + 2 * each)};
  int64_t cells = (int64_t)(each / (BLOCK * sizeof(lanes)));
  pool_run(p, 3 * cells, write_all, &s);  // a, b and c lie one behind the other
  double best = 0, begin = now(), t0 = begin;
  do {
    pool_run(p, cells, triad, &s);
    double t1 = now();
    pool_run(p, 3 * cells, read_all, &s);
    double t2 = now();
    double shorter = t1 - t0 < t2 - t1 ? t1 - t0 : t2 - t1;
    if ((double)all / shorter > best) best = (double)all / shorter;
    t0 = t2;
  } while (t0 - begin < ENOUGH_MEMORY_S);
  munmap(at, all);
  return best;
}
