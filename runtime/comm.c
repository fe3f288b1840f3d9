#include "runtime/comm.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/base/clock.h"
#include "runtime/comm_impl.h"
#include "runtime/comm_mpi.h"

// A rank that waits yields for this long before it sleeps between looks: a message of a neighbour
// on the same host takes a few microseconds, and where ranks share cores the neighbour needs ours.
// A long message moves only while both ends look, so that a sleep in its middle costs more than
// the looks: with 0.1 ms here a step of bench/overlap.py takes 5 % longer, with no yields 15 %.
#define YIELD_NS ((int64_t)1000000)
#define NAP_NS 50000

// ---- groups -------------------------------------------------------------------------------------

int64_t comm_program_ranks(const prog *p) {
  int64_t n = 1;
  for (uint32_t i = 0; i < p->naxes; i++) n *= p->axes[i].size;
  return n;
}

int64_t comm_coordinate(const prog *p, int rank, uint32_t axis) {
  return rank / p->axes[axis].stride % p->axes[axis].size;
}

int64_t comm_place(const prog *p, int rank, uint32_t axes) {
  int64_t place = 0;
  for (uint32_t i = 0; i < p->naxes; i++)
    if (axes >> i & 1) place = place * p->axes[i].size + comm_coordinate(p, rank, i);
  return place;
}

int64_t comm_group_size(const prog *p, uint32_t axes) {
  int64_t n = 1;
  for (uint32_t i = 0; i < p->naxes; i++)
    if (axes >> i & 1) n *= p->axes[i].size;
  return n;
}

int comm_at(const prog *p, int rank, uint32_t axes, int64_t place) {
  int64_t at = rank;
  for (uint32_t i = p->naxes; i-- > 0;) {
    if (!(axes >> i & 1)) continue;
    const prog_axis *a = &p->axes[i];
    at += (place % a->size - comm_coordinate(p, rank, i)) * a->stride;
    place /= a->size;
  }
  return (int)at;
}

// ---- opening ------------------------------------------------------------------------------------

int comm_lanes(const prog *p) {
  int n = COMM_LANES;
  for (uint32_t i = 0; i < p->nexchanges; i++) n += p->exchanges[i].kind == PROG_SEND;
  return n;
}

static status *make_buffers(comm *c) {
  const prog *p = c->prog;
  int64_t bytes = 0;
  int lane = COMM_LANES;
  c->count = calloc(p->nexchanges + 1u, sizeof *c->count);
  c->buffers = calloc(p->nexchanges + 1u, sizeof *c->buffers);
  for (uint32_t i = 0; i < p->nexchanges; i++)
    if (p->exchanges[i].kind == PROG_SEND)
      bytes += exchange_round(p->exchanges[i].run * exchange_unit(p->exchanges[i].dtype));
  c->buffer_bytes = malloc((size_t)bytes + 1);
  size_t ranks = (size_t)c->engine.ranks;
  c->from = calloc(ranks, sizeof *c->from);
  c->to = calloc(ranks, sizeof *c->to);
  if (!c->count || !c->buffers || !c->buffer_bytes || !c->from || !c->to)
    return status_error("out of memory for %lld bytes of messages", (long long)bytes);
  unsigned char *at = c->buffer_bytes;
  for (uint32_t i = 0; i < p->nexchanges; i++) {
    const prog_exchange *x = &p->exchanges[i];
    if (x->kind != PROG_SEND) continue;
    c->buffers[i] = (comm_buffer){.at = at, .lane = lane++};
    at += exchange_round(x->run * exchange_unit(x->dtype));
  }
  return NULL;
}

static void release(comm *c) {
  comm_unwatch(c);
  if (c->engine.close) c->engine.close(c->engine.ctx);
  comm_free_watch(c);
  pthread_mutex_destroy(&c->lock);
  pthread_mutex_destroy(&c->flight_lock);
  comm_unshare(c);
  free(c->from);
  free(c->to);
  free(c->count);
  free(c->buffers);
  free(c->buffer_bytes);
  free(c);
}

status *comm_open_engine(const prog *p, const comm_engine *e, comm **out) {
  *out = NULL;
  comm *c = calloc(1, sizeof *c);
  if (!c) {
    e->close(e->ctx);
    return status_error("out of memory");
  }
  c->prog = p;
  c->engine = *e;
  pthread_mutex_init(&c->lock, NULL);
  pthread_mutex_init(&c->flight_lock, NULL);
  status *s = make_buffers(c);
  if (!s && e->ranks != comm_program_ranks(p))
    s = status_error("the program is for %lld ranks, there are %d",
                     (long long)comm_program_ranks(p), e->ranks);
  if (s)
    release(c);
  else
    *out = c;
  return s;
}

// ---- starting -----------------------------------------------------------------------------------

// What the ranks that are not to speak return: no text. They stay a moment, so that mpirun does not
// end the one that speaks before it has.
static status *silent(int exit_code) {
  nanosleep(&(struct timespec){.tv_sec = 3}, NULL);
  return status_exit(exit_code, "%s", "");
}

static status *other_number(int64_t want, int64_t have, int rank) {
  if (rank > 0) return silent(1);
  return status_error(
      "this executable was built for %lld rank%s, mpirun started %lld: start it with `mpirun -n "
      "%lld`, or build it for a plan of %lld rank%s",
      (long long)want, want == 1 ? "" : "s", (long long)have, (long long)want, (long long)have,
      have == 1 ? "" : "s");
}

// Which ranks were started from another program than most: a text, or "" when they are alike.
static void odd_ranks(const uint64_t *sum, int n, char *text, size_t cap) {
  int most = 0, best = 0;
  size_t used = 0;
  *text = 0;
  for (int i = 0; i < n; i++) {
    int alike = 0;
    for (int k = 0; k < n; k++) alike += sum[k] == sum[i];
    if (alike > most) most = alike, best = i;
  }
  for (int i = 0; i < n && used + 16 < cap; i++)
    if (sum[i] != sum[best])
      used += (size_t)snprintf(text + used, cap - used, "%s%d", used ? ", " : "", i);
}

// All ranks have the same program, or none goes on.
static status *compare_programs(comm *c) {
  int n = c->engine.ranks;
  char odd[512] = "";
  uint64_t mine = c->prog->identity, *all = calloc((size_t)n, sizeof *all);
  if (!all) return status_error("out of memory");
  status *s = comm_collect(c, &mine, sizeof mine, all, 0);
  if (!s && c->engine.rank == 0) odd_ranks(all, n, odd, sizeof odd);
  if (!s) s = comm_broadcast(c, odd, sizeof odd, 0);
  free(all);
  if (s || !*odd) return s;
  if (c->engine.rank > 0) return silent(1);
  bool several = strchr(odd, ',') != NULL;
  return status_error(
      "rank%s %s %s started from another executable or plan than the others: start all of them "
      "from "
      "one file",
      several ? "s" : "", odd, several ? "were" : "was");
}

status *comm_open(const prog *p, comm **out) {
  *out = NULL;
  int64_t want = comm_program_ranks(p);
  int rank = 0, ranks = 1;
  bool started = mpi_started(&rank, &ranks);
  if (started && ranks != want) return other_number(want, ranks, rank);
  if (want == 1) return NULL;
  if (!started)
    return status_error(
        "this executable was built for %lld ranks: start it with `mpirun -n %lld` in front of this "
        "command (`dsmc run` does it by itself)",
        (long long)want, (long long)want);
  comm_engine e;
  status *s = mpi_open(comm_lanes(p), &e);
  if (s && rank > 0) {
    status_free(s);
    return silent(1);
  }
  STATUS_DO(s);
  STATUS_DO(comm_open_engine(p, &e, out));
  return compare_programs(*out);
}

void comm_close(comm *c) {
  if (!c) return;
  status_free(comm_drain(c));
  comm_begin_end(c);
  status_free(comm_barrier(c));
  release(c);
}

void comm_abort(comm *c, int exit_code) {
  if (!c) return;
  // Calls of the engine are short; one that never ends must not keep the run alive.
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 2;
  bool locked = pthread_mutex_timedlock(&c->lock, &until) == 0;
  c->engine.abort(c->engine.ctx, exit_code);
  if (locked) pthread_mutex_unlock(&c->lock);
}

int comm_rank(const comm *c) { return c ? c->engine.rank : 0; }
int comm_ranks(const comm *c) { return c ? c->engine.ranks : 1; }

// ---- messages -----------------------------------------------------------------------------------

static status *told(const comm *c, const char *what) {
  return what ? status_error("rank %d: %s", c->engine.rank, what) : NULL;
}

status *comm_post_send(comm *c, int lane, int to, int tag, const void *at, int64_t n) {
  if (n == 0) return NULL;
  pthread_mutex_lock(&c->lock);
  const char *what = c->engine.send(c->engine.ctx, lane, to, tag, at, (size_t)n);
  pthread_mutex_unlock(&c->lock);
  return told(c, what);
}

status *comm_post_receive(comm *c, int lane, int from, int tag, void *at, int64_t n) {
  if (n == 0) return NULL;
  pthread_mutex_lock(&c->lock);
  const char *what = c->engine.receive(c->engine.ctx, lane, from, tag, at, (size_t)n);
  pthread_mutex_unlock(&c->lock);
  return told(c, what);
}

status *comm_test(comm *c, int lane, bool *done) {
  pthread_mutex_lock(&c->lock);
  const char *what = c->engine.test(c->engine.ctx, lane, done);
  pthread_mutex_unlock(&c->lock);
  return told(c, what);
}

void comm_rest(int64_t since) {
  if (clock_ns() - since < YIELD_NS)
    sched_yield();
  else
    nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
}

status *comm_look(comm *c, const comm_await *what, bool *there) {
  if (!what->count) return comm_test(c, what->lane, there);
  *there = atomic_load_explicit(what->count, memory_order_acquire) >= what->least;
  return *there || !c->busy ? NULL : comm_push_sends(c);
}

status *comm_wait_for(comm *c, const comm_await *what, const comm_idle *idle) {
  int64_t since = 0;
  for (bool there = false;;) {
    STATUS_DO(comm_look(c, what, &there));
    if (there) return NULL;
    if (!since) since = clock_ns();
    if (idle)
      STATUS_DO(idle->rest(idle->ctx, what, since));
    else
      comm_rest(since);
  }
}

status *comm_wait(comm *c, int lane, const comm_idle *idle) {
  return comm_wait_for(c, &(comm_await){.lane = lane}, idle);
}

// ---- control messages ---------------------------------------------------------------------------

status *comm_broadcast(comm *c, void *at, size_t n, int from) {
  if (!c) return NULL;
  int tag = comm_tag(TAG_CONTROL, 0, c->controls++);
  if (c->engine.rank != from) {
    STATUS_DO(comm_post_receive(c, COMM_CONTROL, from, tag, at, (int64_t)n));
    return comm_wait(c, COMM_CONTROL, NULL);
  }
  for (int k = 0; k < c->engine.ranks; k++)
    if (k != from) STATUS_DO(comm_post_send(c, COMM_CONTROL, k, tag, at, (int64_t)n));
  return comm_wait(c, COMM_CONTROL, NULL);
}

status *comm_collect(comm *c, const void *mine, size_t n, void *all, int to) {
  if (!c) {
    memcpy(all, mine, n);
    return NULL;
  }
  int tag = comm_tag(TAG_CONTROL, 0, c->controls++);
  if (c->engine.rank != to) {
    STATUS_DO(comm_post_send(c, COMM_CONTROL, to, tag, mine, (int64_t)n));
    return comm_wait(c, COMM_CONTROL, NULL);
  }
  unsigned char *at = all;
  for (int k = 0; k < c->engine.ranks; k++, at += n) {
    if (k == to)
      memcpy(at, mine, n);
    else
      STATUS_DO(comm_post_receive(c, COMM_CONTROL, k, tag, at, (int64_t)n));
  }
  return comm_wait(c, COMM_CONTROL, NULL);
}

// Rank 0 makes one number of all, and tells.
static status *combine(comm *c, int64_t *value, bool sum) {
  if (!c) return NULL;
  int n = c->engine.ranks;
  int64_t *all = c->engine.rank == 0 ? malloc((size_t)n * sizeof *all) : NULL;
  if (c->engine.rank == 0 && !all) return status_error("out of memory");
  status *s = comm_collect(c, value, sizeof *value, all, 0);
  for (int k = 1; all && !s && k < n; k++)
    if (sum)
      all[0] += all[k];
    else if (all[k] > all[0])
      all[0] = all[k];
  if (all && !s) *value = all[0];
  free(all);
  return s ? s : comm_broadcast(c, value, sizeof *value, 0);
}

status *comm_max(comm *c, int64_t *value) { return combine(c, value, false); }
status *comm_sum(comm *c, int64_t *value) { return combine(c, value, true); }

status *comm_barrier(comm *c) {
  int64_t nothing = 0;
  return comm_max(c, &nothing);
}

// ---- counts -------------------------------------------------------------------------------------

int64_t comm_sent_bytes(const comm *c, uint32_t index) { return c ? c->count[index].bytes : 0; }
int64_t comm_times(const comm *c, uint32_t index) { return c ? c->count[index].times : 0; }

int64_t comm_sent(const comm *c) {
  int64_t n = 0;
  for (uint32_t i = 0; c && i < c->prog->nexchanges; i++) n += c->count[i].bytes;
  return n;
}
