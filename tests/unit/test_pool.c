// The thread pool: every cell once, whatever the number of threads; short loops in a row.
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/peak.h"
#include "runtime/pool.h"

enum { CELLS = 10007 };

static void count(void *ctx, int64_t lo, int64_t hi) {
  int *hits = ctx;
  for (int64_t i = lo; i < hi; i++) hits[i]++;
}

static void test_every_cell_once(void **state) {
  (void)state;
  static int hits[CELLS];
  const int threads[] = {1, 2, 3, 8, 33};
  const int64_t cells[] = {0, 1, 2, 7, 31, 1000, CELLS};
  for (size_t t = 0; t < 5; t++) {
    pool *p = pool_new(threads[t]);
    assert_int_equal(pool_threads(p), threads[t]);
    for (size_t c = 0; c < 7; c++) {
      memset(hits, 0, sizeof hits);
      for (int again = 0; again < 20; again++) pool_run(p, cells[c], count, hits);
      for (int64_t i = 0; i < CELLS; i++) assert_int_equal(hits[i], i < cells[c] ? 20 : 0);
    }
    pool_free(p);
  }
}

typedef struct sums {
  int64_t *cell;
  int64_t add;
} sums;

static void add_to(void *ctx, int64_t lo, int64_t hi) {
  const sums *s = ctx;
  for (int64_t i = lo; i < hi; i++) s->cell[i] += s->add;
}

// Many loops one after the other, each seeing the results of the one before; sleeps in between
// force the way through the futex.
static void test_many_loops(void **state) {
  (void)state;
  int64_t cell[64] = {0};
  pool *p = pool_new(4);
  int64_t total = 0;
  for (int64_t k = 0; k < 20000; k++) {
    sums s = {cell, k};
    pool_run(p, 1 + k % 64, add_to, &s);
    if (k % 4000 == 0) nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
  }
  for (int64_t k = 0; k < 20000; k++) total += k * (1 + k % 64);
  for (int i = 0; i < 64; i++) total -= cell[i];
  assert_int_equal(total, 0);
  pool_free(p);
}

static void idle(void *ctx, int64_t lo, int64_t hi) { (void)ctx, (void)lo, (void)hi; }

static double cpu_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Between loops threads sleep: 50 ms of waiting must not cost 50 ms of each CPU.
static void test_idle_threads_sleep(void **state) {
  (void)state;
  pool *p = pool_new(4);
  pool_run(p, 64, idle, NULL);
  double before = cpu_seconds();
  nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
  assert_true(cpu_seconds() - before < 0.02);
  pool_free(p);
}

static void note_thread(void *ctx, int64_t lo, int64_t hi) {
  pthread_t *at = ctx;
  assert_int_equal(hi, lo + 1);
  at[lo] = pthread_self();
}

static void test_each(void **state) {
  (void)state;
  enum { N = 5 };
  pool *p = pool_new(N);
  for (int turn = 0; turn < 50; turn++) {
    pthread_t at[N] = {0};
    pool_each(p, note_thread, at);
    for (int i = 0; i < N; i++)
      for (int j = 0; j < i; j++) assert_false(pthread_equal(at[i], at[j]));
  }
  pool_free(p);
}

static void test_cpus(void **state) {
  (void)state;
  assert_true(pool_cpus() >= 1);
  pool *p = pool_new(0);
  assert_int_equal(pool_threads(p), pool_cpus());
  pool_free(p);
}

// Rates that no machine of today is outside of: a probe that is optimised away, or that counts
// elements for bytes, is.
static void test_peaks(void **state) {
  (void)state;
  pool *p = pool_new(0);
  double flops = peak_flops(p), bandwidth = peak_bandwidth(p);
  pool_free(p);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) assert_true(flops > 1e8);
#endif
  assert_true(flops < 1e15);
  assert_true(bandwidth == 0 || (bandwidth > 1e7 && bandwidth < 1e13));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_cell_once),
      cmocka_unit_test(test_many_loops),
      cmocka_unit_test(test_idle_threads_sleep),
      cmocka_unit_test(test_each),
      cmocka_unit_test(test_cpus),
      cmocka_unit_test(test_peaks),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
