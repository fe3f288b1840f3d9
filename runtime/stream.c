#include "runtime/stream.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/fiber.h"

enum { JOBS = 256, STACK = 16 << 20 };

typedef struct job {
  const prog_instr *in;
  unsigned char **buf;
  dsm_call call;
} job;

struct stream {
  const prog *prog;
  comm *comm;
  const unsigned char *code;
  job jobs[JOBS];
  unsigned char **bufs;  // room for the operands of all jobs
  uint64_t given, done;  // jobs so far
  uint64_t *event;       // `given` when it was recorded last; the giver's alone
  pthread_mutex_t lock;  // around the jobs, `given`, `done`, `failed` and `ends`
  pthread_cond_t work, progress;
  pthread_t thread;
  bool started, ends;
  status *failed;
  // Without a thread:
  fiber *fiber;  // does the jobs; NULL: the thread does
  comm_idle idle;
  bool gives_way;   // the fiber does, to other ranks
  bool waits;       // it does,
  comm_await what;  // for this,
  int64_t since;    // since then, by clock_ns
  status *lost;     // what looking for it said
};

// The fiber waits: kernels go on. It is entered again when what it waits for is there.
static status *leave(void *ctx, const comm_await *what, int64_t since) {
  stream *s = ctx;
  s->waits = true;
  s->what = *what;
  s->since = since;
  fiber_leave(s->fiber);
  s->waits = false;
  status *lost = s->lost;
  s->lost = NULL;
  return lost;
}

// The same, until the next job is given or somebody waits.
static void give_way(void *ctx) {
  stream *s = ctx;
  s->gives_way = true;
  fiber_leave(s->fiber);
  s->gives_way = false;
}

static status *carry_out(stream *s, const job *j) {
  const prog_operand *o = &s->prog->operands[j->in->first_operand];
  switch (j->in->op) {
    case RTOP_exchange:
      return comm_exchange(s->comm, &s->prog->exchanges[j->in->kernel], j->buf, &j->call,
                           s->fiber ? &s->idle : NULL);
    case RTOP_launch: {
      const prog_kernel *k = &s->prog->kernels[j->in->kernel];
      const unsigned char *entry = s->code + k->code_offset;
      dsm_kernel *kernel;
      memcpy(&kernel, &entry, sizeof entry);
      kernel(j->buf, &j->call, 0, k->cells);
      break;
    }
    case RTOP_zero: memset(j->buf[0], 0, (size_t)o[0].bytes); break;
    case RTOP_copy: memmove(j->buf[0], j->buf[1], (size_t)o[0].bytes); break;
    default: break;
  }
  return NULL;
}

static void await_job(stream *s) {
  if (!s->fiber) {
    pthread_cond_wait(&s->work, &s->lock);
    return;
  }
  pthread_mutex_unlock(&s->lock);
  fiber_leave(s->fiber);
  pthread_mutex_lock(&s->lock);
}

static void serve(void *at) {
  stream *s = at;
  pthread_mutex_lock(&s->lock);
  for (;;) {
    while (s->given == s->done && !s->ends) await_job(s);
    if (s->given == s->done) break;
    const job *j = &s->jobs[s->done % JOBS];
    bool skips = s->failed != NULL;
    pthread_mutex_unlock(&s->lock);
    status *failed = skips ? NULL : carry_out(s, j);
    pthread_mutex_lock(&s->lock);
    if (failed) s->failed = failed;
    s->done++;
    pthread_cond_broadcast(&s->progress);
  }
  pthread_mutex_unlock(&s->lock);
}

static void *serve_on_thread(void *at) {
  serve(at);
  return NULL;
}

static bool start(stream *s, bool thread) {
  if (!thread) {
    s->idle = (comm_idle){leave, give_way, s};
    s->fiber = fiber_new(serve, s, STACK);
    return s->fiber != NULL;
  }
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, STACK);
  bool good = pthread_create(&s->thread, &attr, serve_on_thread, s) == 0;
  pthread_attr_destroy(&attr);
  return good;
}

status *stream_open(const prog *p, comm *c, const unsigned char *code, bool thread, stream **out) {
  uint32_t used = 0, most = 1;
  *out = NULL;
  for (uint32_t i = 0; i < p->ninstrs; i++) {
    if (p->instrs[i].stream != PROG_COMMUNICATION) continue;
    used++;
    if (p->instrs[i].operands > most) most = p->instrs[i].operands;
  }
  if (used == 0) return NULL;
  stream *s = calloc(1, sizeof *s);
  if (!s) return status_error("out of memory");
  s->prog = p;
  s->comm = c;
  s->code = code;
  pthread_mutex_init(&s->lock, NULL);
  pthread_cond_init(&s->work, NULL);
  pthread_cond_init(&s->progress, NULL);
  s->event = calloc(p->header->events + 1u, sizeof *s->event);
  s->bufs = calloc((size_t)JOBS * most, sizeof *s->bufs);
  for (uint32_t i = 0; s->bufs && i < JOBS; i++) s->jobs[i].buf = s->bufs + (size_t)i * most;
  s->started = s->event && s->bufs && start(s, thread);
  if (!s->started) {
    stream_close(s);
    return status_error("cannot make a %s for communication", thread ? "thread" : "stack");
  }
  *out = s;
  return NULL;
}

// A look may cost a call of the engine; the switch costs more, and is left for when it is needed.
static void look(stream *s) {
  bool there = true;
  if (s->waits) s->lost = comm_look(s->comm, &s->what, &there);
  if (there || s->lost) fiber_enter(s->fiber);
}

// A job that gives way is not looked at while it is the only one.
void stream_look(stream *s) {
  if (s->fiber && s->done + s->gives_way < s->given) look(s);
}

// Until so many jobs are done.
static void wait_for(stream *s, uint64_t jobs) {
  if (!s->fiber) {
    pthread_mutex_lock(&s->lock);
    while (s->done < jobs) pthread_cond_wait(&s->progress, &s->lock);
    pthread_mutex_unlock(&s->lock);
    return;
  }
  for (int64_t begin = clock_ns(); s->done < jobs;) {
    look(s);
    if (s->done < jobs) comm_rest(s->since > begin ? s->since : begin);
  }
}

void stream_close(stream *s) {
  if (!s) return;
  if (s->started) {
    wait_for(s, s->given);
    pthread_mutex_lock(&s->lock);
    s->ends = true;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    if (s->fiber)
      fiber_enter(s->fiber);
    else
      pthread_join(s->thread, NULL);
  }
  fiber_free(s->fiber);
  pthread_cond_destroy(&s->work);
  pthread_cond_destroy(&s->progress);
  pthread_mutex_destroy(&s->lock);
  status_free(s->failed);
  free(s->event);
  free(s->bufs);
  free(s);
}

// A record is a number of jobs, not a job: nobody need wake up for it.
void stream_give(stream *s, const prog_instr *in, unsigned char *const *buf, const dsm_call *call) {
  if (in->op == RTOP_record) {
    s->event[in->event] = s->given;
    return;
  }
  if (s->given >= JOBS) wait_for(s, s->given - JOBS + 1);
  pthread_mutex_lock(&s->lock);
  job *j = &s->jobs[s->given % JOBS];
  j->in = in;
  j->call = *call;
  for (uint32_t i = 0; i < in->operands; i++) j->buf[i] = buf[i];
  s->given++;
  pthread_cond_signal(&s->work);
  pthread_mutex_unlock(&s->lock);
}

void stream_wait(stream *s, uint32_t event) { wait_for(s, s->event[event]); }

status *stream_finish(stream *s) {
  wait_for(s, s->given);
  status *failed = s->failed;
  s->failed = NULL;
  return failed;
}
