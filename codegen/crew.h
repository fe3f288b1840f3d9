// A crew of threads that compile: n independent jobs, each with an arena of its own.
//
//   crew_job *job = arena_new(a, crew_job, n);
//   crew_run(job, order, n, threads, compile_one, jobs);     // compile_one(jobs, i, &job[i].arena)
//   for (int i = 0; i < n; i++) if (job[i].why) ...          // NULL, or why job i failed
//   for (int i = 0; i < n; i++) arena_free(&job[i].arena);   // when its results are not needed
#ifndef DSM_CODEGEN_CREW_H
#define DSM_CODEGEN_CREW_H

#include "runtime/base/arena.h"

typedef struct crew_job {
  arena arena;
  const char *why;
} crew_job;

typedef const char *crew_fn(void *ctx, int i, arena *own);

// `order`: numbers of the jobs as they are begun, largest first, so that the threads end together.
// `threads` 0: one a processor, at most 8. A job whose memory runs out fails with "out of memory";
// what libraries held for it is lost, as the process is about to end.
void crew_run(crew_job *job, const int *order, int n, int threads, crew_fn *fn, void *ctx);
// Such an order by the sizes of the jobs; equal ones by number.
int *crew_order(arena *a, const int64_t *size, int n);

#endif
