#include "codegen/crew.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct crew {
  crew_job *job;
  const int *order;
  int n;
  crew_fn *fn;
  void *ctx;
  atomic_int next;
} crew;

// A thread's arena must not jump into the caller's handler: the job fails instead.
static void job_oom(void *ctx) { longjmp(*(jmp_buf *)ctx, 1); }

static void run_job(crew *c, int i) {
  crew_job *j = &c->job[i];
  jmp_buf oom;
  arena_init(&j->arena);
  j->arena.oom = job_oom;
  j->arena.oom_ctx = &oom;
  j->why = setjmp(oom) ? "out of memory" : c->fn(c->ctx, i, &j->arena);
  j->arena.oom = NULL;  // `oom` ends here
}

static void *work(void *ctx) {
  crew *c = ctx;
  for (int i; (i = atomic_fetch_add(&c->next, 1)) < c->n;) run_job(c, c->order[i]);
  return NULL;
}

void crew_run(crew_job *job, const int *order, int n, int threads, crew_fn *fn, void *ctx) {
  enum { MAX_THREADS = 64 };
  crew c = {.job = job, .order = order, .n = n, .fn = fn, .ctx = ctx};
  long cpus = sysconf(_SC_NPROCESSORS_ONLN);
  if (threads <= 0) threads = cpus < 1 ? 1 : cpus > 8 ? 8 : (int)cpus;
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  pthread_t thread[MAX_THREADS];
  int started = 0;
  while (started + 1 < threads && started + 1 < n &&
         pthread_create(&thread[started], NULL, work, &c) == 0)
    started++;
  work(&c);
  for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
}

typedef struct sized {
  int64_t size;
  int number;
} sized;

static int largest_first(const void *a, const void *b) {
  const sized *x = a, *y = b;
  if (x->size != y->size) return x->size > y->size ? -1 : 1;
  return x->number - y->number;
}

int *crew_order(arena *a, const int64_t *size, int n) {
  sized *all = arena_new(a, sized, n);
  for (int i = 0; i < n; i++) all[i] = (sized){size[i], i};
  qsort(all, (size_t)n, sizeof *all, largest_first);
  int *order = arena_new(a, int, n);
  for (int i = 0; i < n; i++) order[i] = all[i].number;
  return order;
}
