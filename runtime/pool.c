// How a loop is published: the caller writes fn, ctx, cells and chunks, then `ticket`, whose high
// half is the loop's number and whose low half the next chunk. A worker reads the four fields and
// claims a chunk by compare-and-swap on the ticket: the swap succeeds only when the loop number is
// still the one it saw before reading, and a claimed chunk keeps the caller from returning, so the
// fields it read belong to that loop. The caller waits for `done` to reach the number of chunks,
// never for threads that were asleep all along.
#include "runtime/pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/base/clock.h"

#define SPIN_NS 20000
#define CHUNKS_PER_THREAD 4

typedef struct job {
  pool_fn *fn;
  void *ctx;
  int64_t cells;
  uint32_t chunks;
} job;

struct pool {
  _Alignas(64) _Atomic uint64_t ticket;
  _Alignas(64) _Atomic uint32_t done;
  _Atomic bool caller_sleeps;
  _Alignas(64) _Atomic uint32_t bell;  // futex: number of the latest loop
  _Atomic uint32_t sleepers;
  _Atomic bool quit;
  _Atomic(pool_fn *) fn;
  _Atomic(void *) ctx;
  _Atomic int64_t cells;
  _Atomic uint32_t chunks;
  int threads;
  pthread_t *thread;
};

static long futex(_Atomic uint32_t *word, int op, uint32_t value) {
  return syscall(SYS_futex, word, op, value, NULL, NULL, 0);
}

static void wait_on(_Atomic uint32_t *word, uint32_t seen) {
  futex(word, FUTEX_WAIT_PRIVATE, seen);  // EAGAIN, EINTR: the caller looks again anyway
}

static void breathe(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spins until *word differs from `seen`, at most SPIN_NS. Returns whether it does.
static bool spin_until_change(_Atomic uint32_t *word, uint32_t seen) {
  int64_t start = clock_ns();
  for (;;) {
    for (int i = 0; i < 32; i++) {
      if (atomic_load_explicit(word, memory_order_acquire) != seen) return true;
      breathe();
    }
    if (clock_ns() - start > SPIN_NS) return false;
  }
}

// Claims and runs chunks of loop `number` until none is left or another loop has begun.
static void take_chunks(pool *p, uint32_t number) {
  for (;;) {
    uint64_t t = atomic_load_explicit(&p->ticket, memory_order_acquire);
    if ((uint32_t)(t >> 32) != number) return;
    job j = {atomic_load_explicit(&p->fn, memory_order_relaxed),
             atomic_load_explicit(&p->ctx, memory_order_relaxed),
             atomic_load_explicit(&p->cells, memory_order_relaxed),
             atomic_load_explicit(&p->chunks, memory_order_relaxed)};
    uint32_t chunk = (uint32_t)t;
    if (chunk >= j.chunks) return;
    if (!atomic_compare_exchange_weak_explicit(&p->ticket, &t, t + 1, memory_order_acq_rel,
                                               memory_order_relaxed))
      continue;
    int64_t each = j.cells / j.chunks, rest = j.cells % j.chunks;
    int64_t lo = each * chunk + (chunk < rest ? chunk : rest);
    j.fn(j.ctx, lo, lo + each + (chunk < rest));
    if (atomic_fetch_add(&p->done, 1) + 1 == j.chunks && atomic_load(&p->caller_sleeps))
      futex(&p->done, FUTEX_WAKE_PRIVATE, 1);
  }
}

static void *worker(void *arg) {
  pool *p = arg;
  uint32_t seen = 0;
  for (;;) {
    uint32_t bell = atomic_load(&p->bell);
    if (bell == seen && !spin_until_change(&p->bell, seen)) {
      atomic_fetch_add(&p->sleepers, 1);
      while (atomic_load(&p->bell) == seen && !atomic_load(&p->quit)) wait_on(&p->bell, seen);
      atomic_fetch_sub(&p->sleepers, 1);
    }
    if (atomic_load(&p->quit)) return NULL;
    seen = atomic_load(&p->bell);
    take_chunks(p, seen);
  }
}

int pool_cpus(void) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n > 0 ? (int)n : 1;
}

pool *pool_new(int threads) {
  if (threads <= 0) threads = pool_cpus();
  pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
  pthread_t *thread = calloc((size_t)threads, sizeof *thread);
  if (!p || !thread) {
    free(p);
    free(thread);
    return NULL;
  }
  atomic_init(&p->ticket, 0);
  atomic_init(&p->done, 0);
  atomic_init(&p->caller_sleeps, false);
  atomic_init(&p->bell, 0);
  atomic_init(&p->sleepers, 0);
  atomic_init(&p->quit, false);
  atomic_init(&p->fn, NULL);
  atomic_init(&p->ctx, NULL);
  atomic_init(&p->cells, 0);
  atomic_init(&p->chunks, 0);
  p->thread = thread;
  p->threads = 1;
  while (p->threads < threads && pthread_create(&thread[p->threads], NULL, worker, p) == 0)
    p->threads++;
  return p;
}

void pool_free(pool *p) {
  if (!p) return;
  atomic_store(&p->quit, true);
  atomic_fetch_add(&p->bell, 1);
  futex(&p->bell, FUTEX_WAKE_PRIVATE, INT_MAX);
  for (int i = 1; i < p->threads; i++) pthread_join(p->thread[i], NULL);
  free(p->thread);
  free(p);
}

int pool_threads(const pool *p) { return p->threads; }

void pool_run(pool *p, int64_t cells, pool_fn *fn, void *ctx) {
  if (cells <= 0) return;
  if (p->threads == 1 || cells == 1) {
    fn(ctx, 0, cells);
    return;
  }
  int64_t want = (int64_t)p->threads * CHUNKS_PER_THREAD;
  uint32_t chunks = (uint32_t)(cells < want ? cells : want);
  uint32_t number = atomic_load_explicit(&p->bell, memory_order_relaxed) + 1;
  // Closes the old loop before its fields change: nobody can claim with the old number any more.
  atomic_store(&p->ticket, (uint64_t)number << 32 | UINT32_MAX);
  atomic_store_explicit(&p->fn, fn, memory_order_relaxed);
  atomic_store_explicit(&p->ctx, ctx, memory_order_relaxed);
  atomic_store_explicit(&p->cells, cells, memory_order_relaxed);
  atomic_store_explicit(&p->chunks, chunks, memory_order_relaxed);
  atomic_store(&p->done, 0);
  atomic_store(&p->ticket, (uint64_t)number << 32);
  atomic_store(&p->bell, number);
  if (atomic_load(&p->sleepers)) futex(&p->bell, FUTEX_WAKE_PRIVATE, INT_MAX);
  take_chunks(p, number);
  for (;;) {
    uint32_t done = atomic_load(&p->done);
    if (done == chunks) return;
    if (spin_until_change(&p->done, done)) continue;
    atomic_store(&p->caller_sleeps, true);
    while ((done = atomic_load(&p->done)) != chunks) wait_on(&p->done, done);
    atomic_store(&p->caller_sleeps, false);
  }
}

typedef struct each {
  pool_fn *fn;
  void *ctx;
  int threads;
  _Atomic int here;
} each;

// A thread that waits here for the others cannot take a second number.
static void run_one(void *ctx, int64_t lo, int64_t hi) {
  each *e = ctx;
  e->fn(e->ctx, lo, hi);
  atomic_fetch_add(&e->here, 1);
  while (atomic_load(&e->here) < e->threads) sched_yield();
}

void pool_each(pool *p, pool_fn *fn, void *ctx) {
  each e = {.fn = fn, .ctx = ctx, .threads = p->threads};
  atomic_init(&e.here, 0);
  pool_run(p, p->threads, run_one, &e);
}
