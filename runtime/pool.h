// A pool of threads that runs one loop at a time, cut into contiguous chunks.
//
// The caller takes part. Chunks are handed out in order by one atomic counter, so a thread the
// kernel does not schedule delays only the chunk it holds; which thread runs a chunk never changes
// a result, because the cells of a loop are independent. Idle threads spin for at most 20 us, then
// sleep on a futex. Nothing is allocated after pool_new.
//
//   pool *p = pool_new(0);
//   pool_run(p, n, work, ctx);   // work(ctx, lo, hi) for chunks that cover 0 .. n-1; returns when
//   done pool_free(p);
#ifndef DSM_POOL_H
#define DSM_POOL_H

#include <stdint.h>

typedef struct pool pool;
typedef void pool_fn(void *ctx, int64_t lo, int64_t hi);

// `threads` counts the caller; 0 means all CPUs this process may use. Threads that cannot be made
// are done without. NULL only when memory is out.
pool *pool_new(int threads);
void pool_free(pool *p);
int pool_threads(const pool *p);
// CPUs this process may use.
int pool_cpus(void);
// Runs fn over 0 .. cells-1. One caller at a time; fn must not call pool_run.
void pool_run(pool *p, int64_t cells, pool_fn *fn, void *ctx);
// Runs fn(ctx, i, i + 1) once on each thread, for i of 0 .. pool_threads(p)-1.
void pool_each(pool *p, pool_fn *fn, void *ctx);

#endif
