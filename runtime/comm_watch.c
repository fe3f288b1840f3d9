// The watch: a thread of each rank that sees to it that a run never hangs without a word.
//
// Signs of life go round the ranks, each to the next one. Rank 0 is who speaks: errors of other
// ranks come to it, and on an alarm the places where all ranks are. Only the loss of rank 0 itself
// is told by the rank behind it. A frozen process answers nobody, so whoever waits for answers
// waits a second and counts silence as an answer.
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/comm_impl.h"

#define TICK_NS 20000000                  // between looks
#define ANSWER_NS ((int64_t)1000000000)   // for the answers of all ranks to an alarm
#define GATHER_NS ((int64_t)300000000)    // for errors that come of the same cause
#define BEAT_NS ((int64_t)1000000000)     // between signs of life, at most
#define LEAVING_NS ((int64_t)4000000000)  // without one, when asked to stop
#define LINGER_NS ((int64_t)300000000)    // until the others have heard of the end
#define ENDING_NS ((int64_t)6000000000)   // until one is ended by another rank
enum { ALARM_EXIT = 70, TEXT = 480 };

enum { BEAT, ASK, WHERE, FAILED, END };  // kinds of messages

typedef struct message {
  int32_t kind, rank, code, waits;  // waits: in an exchange
  uint32_t record;
  int32_t pad;
  int64_t count;  // exchanges begun so far
  char text[TEXT];
} message;

struct watch {
  comm *c;
  FILE *err;
  const volatile sig_atomic_t *stop;
  bool told;  // what was exchanged, on an alarm
  int64_t timeout, beat_every;
  pthread_t thread;
  pthread_mutex_t lock;  // around what follows
  bool ends, closes, main_failed, said;
  message heard;       // what is being received
  message sent_beat;   // while it is on its way
  message sent_alarm;  // the same
  int64_t beat_at, alive_at, looked_at;
  int before;         // the process of the rank before this one, to look at (pidfd); -1: elsewhere
  int64_t died_at;    // when that was seen to have ended
  int64_t alarm_at;   // 0: no alarm
  int64_t failed_at;  // rank 0: when the first error came; 0: none
  message *places;    // rank 0: by rank; kind WHERE when it came
  message failure;    // rank 0: of the lowest rank that has one
};

// ---- the flight recorder ------------------------------------------------------------------------

void comm_take_off(comm *c, uint32_t record, const dsm_call *call) {
  flight f = {.record = record, .step = -1, .started = clock_ns()};
  if (call) f.step = call->step + 1, f.layer = call->layer, f.micro = call->micro;
  pthread_mutex_lock(&c->flight_lock);
  c->flights[c->nflights++ % COMM_FLIGHTS] = f;
  pthread_mutex_unlock(&c->flight_lock);
}

void comm_land(comm *c) {
  pthread_mutex_lock(&c->flight_lock);
  c->flights[(c->nflights - 1) % COMM_FLIGHTS].finished = clock_ns();
  pthread_mutex_unlock(&c->flight_lock);
}

static void describe(const comm *c, const flight *f, char *text, size_t cap) {
  const prog_exchange *x = &c->prog->exchanges[f->record];
  int n = snprintf(text, cap, "%s of %s (exchange %u)", exchange_name(x->kind),
                   prog_text(c->prog, x->name), f->record);
  if (f->step >= 0 && n > 0 && (size_t)n < cap)
    snprintf(text + n, cap - (size_t)n,
             ", step %" PRId64 ", layer %" PRId64 ", micro-batch %" PRId64, f->step, f->layer,
             f->micro);
}

static void print_flights(comm *c, FILE *out) {
  pthread_mutex_lock(&c->flight_lock);
  int64_t first = c->nflights > COMM_FLIGHTS ? c->nflights - COMM_FLIGHTS : 0;
  for (int64_t i = first; i < c->nflights; i++) {
    const flight *f = &c->flights[i % COMM_FLIGHTS];
    char text[256];
    describe(c, f, text, sizeof text);
    if (f->finished)
      fprintf(out, "rank %d: %s: %.3f ms\n", c->engine.rank, text,
              1e-6 * (double)(f->finished - f->started));
    else
      fprintf(out, "rank %d: %s: not finished\n", c->engine.rank, text);
  }
  pthread_mutex_unlock(&c->flight_lock);
}

// Where this rank is.
static message place_of(comm *c) {
  message m = {.kind = WHERE, .rank = c->engine.rank};
  char what[256];
  int64_t now = clock_ns();
  pthread_mutex_lock(&c->flight_lock);
  m.count = c->nflights;
  flight f = c->nflights ? c->flights[(c->nflights - 1) % COMM_FLIGHTS] : (flight){0};
  pthread_mutex_unlock(&c->flight_lock);
  if (!m.count) {
    snprintf(m.text, sizeof m.text, "has not come to its first exchange");
    return m;
  }
  describe(c, &f, what, sizeof what);
  m.record = f.record;
  m.waits = f.finished == 0;
  if (m.waits)
    snprintf(m.text, sizeof m.text, "waits since %.1f s in %s", 1e-9 * (double)(now - f.started),
             what);
  else
    snprintf(m.text, sizeof m.text, "is in no exchange since %.1f s; the last was %s",
             1e-9 * (double)(now - f.finished), what);
  return m;
}

// ---- messages -----------------------------------------------------------------------------------

// To all other ranks, or to rank 0 alone. What could not be sent will be missed, and that is told.
static void say(watch *w, const message *m, bool all) {
  comm *c = w->c;
  bool done = false;
  status_free(comm_test(c, COMM_ALARM, &done));
  if (!done) return;  // the last one is still on its way
  w->sent_alarm = *m;
  for (int r = 0; r < (all ? c->engine.ranks : 1); r++)
    if (r != c->engine.rank)
      status_free(comm_post_send(c, COMM_ALARM, r, comm_tag(TAG_WATCH, 0, 0), &w->sent_alarm,
                                 (int64_t)sizeof w->sent_alarm));
}

// Until what was said has left, or as long as one cares to wait.
static void finish_saying(watch *w) {
  bool done = false;
  for (int64_t until = clock_ns() + LINGER_NS; !done && clock_ns() < until;) {
    status_free(comm_test(w->c, COMM_ALARM, &done));
    if (!done) nanosleep(&(struct timespec){.tv_nsec = TICK_NS / 20}, NULL);
  }
}

// The others are told to end, for mpirun's way of it leaves time to those that have something to
// save.
static void stop_all(watch *w, int exit_code) {
  fflush(w->err);
  w->said = true;
  finish_saying(w);
  say(w, &(message){.kind = END, .rank = w->c->engine.rank, .code = exit_code}, true);
  finish_saying(w);
  nanosleep(&(struct timespec){.tv_nsec = LINGER_NS}, NULL);
  comm_abort(w->c, exit_code);
}

// ---- speaking -----------------------------------------------------------------------------------

// The rank that is not where the others are: one that is silent, else one that computes while
// others wait, else the one that has begun the fewest exchanges. -1: they are all alike.
static int odd_rank(const watch *w) {
  int n = w->c->engine.ranks, computing = 0, odd = -1;
  for (int r = 0; r < n; r++)
    if (w->places[r].kind != WHERE) return r;
  for (int r = 0; r < n; r++)
    if (!w->places[r].waits) computing++, odd = odd < 0 ? r : odd;
  if (computing && computing < n) return odd;
  int64_t least = w->places[0].count, most = least;
  odd = 0;
  for (int r = 1; r < n; r++) {
    if (w->places[r].count < least) least = w->places[r].count, odd = r;
    if (w->places[r].count > most) most = w->places[r].count;
  }
  return least < most ? odd : -1;
}

static void tell_places(watch *w) {
  for (int r = 0; r < w->c->engine.ranks; r++)
    fprintf(w->err, "rank %d %s\n", r,
            w->places[r].kind == WHERE ? w->places[r].text : "does not answer");
  int odd = odd_rank(w);
  double limit = 1e-9 * (double)w->timeout;
  if (odd < 0)
    fprintf(w->err, "error: no exchange ended within %g s; no rank stands out\n", limit);
  else
    fprintf(w->err, "error: no exchange ended within %g s: rank %d %s\n", limit, odd,
            w->places[odd].kind != WHERE ? "does not answer"
            : w->places[odd].waits       ? "is behind the others"
                                         : "is not where the others wait");
  stop_all(w, ALARM_EXIT);
}

static void tell_failure(watch *w) {
  const message *m = &w->failure;
  fprintf(w->err, "error: rank %d: %s\n", m->rank, m->text);
  stop_all(w, m->code);
}

// ---- listening ----------------------------------------------------------------------------------

static void answer(watch *w) {
  message m = place_of(w->c);
  if (w->told) print_flights(w->c, w->err);
  if (w->c->engine.rank == 0)
    w->places[0] = m;
  else
    say(w, &m, false);
}

static void raise_alarm(watch *w, bool mine) {
  if (w->alarm_at) return;
  w->alarm_at = clock_ns();
  // Rank 0 asks all; who is not rank 0 has rank 0 ask.
  message ask = {.kind = ASK, .rank = w->c->engine.rank};
  if (w->c->engine.rank == 0) {
    answer(w);
    say(w, &ask, true);
  } else if (mine) {
    say(w, &ask, false);
  }
}

static void hear(watch *w) {
  const message *m = &w->heard;
  bool known = m->rank >= 0 && m->rank < w->c->engine.ranks;
  if (m->kind == BEAT) w->alive_at = clock_ns();
  if (m->kind == END) {
    w->said = true;
    w->c->engine.leave(w->c->engine.ctx, m->code);
  }
  if (m->kind == ASK && w->c->engine.rank == 0) raise_alarm(w, false);
  if (m->kind == ASK && w->c->engine.rank > 0) answer(w);
  if (w->c->engine.rank > 0 || !known) return;
  if (m->kind == WHERE) w->places[m->rank] = *m;
  if (m->kind == FAILED) {
    if (!w->failed_at || m->rank < w->failure.rank) w->failure = *m;
    if (!w->failed_at) w->failed_at = clock_ns();
  }
}

static void listen_again(watch *w) {
  status_free(comm_post_receive(w->c, COMM_LISTEN, COMM_ANY, comm_tag(TAG_WATCH, 0, 0), &w->heard,
                                (int64_t)sizeof w->heard));
}

// ---- looking ------------------------------------------------------------------------------------

static void beat(watch *w, int64_t now) {
  bool done = false;
  if (now - w->beat_at < w->beat_every) return;
  status_free(comm_test(w->c, COMM_BEAT, &done));
  if (!done) return;
  w->beat_at = now;
  w->sent_beat = (message){.kind = BEAT, .rank = w->c->engine.rank};
  status_free(comm_post_send(w->c, COMM_BEAT, (w->c->engine.rank + 1) % w->c->engine.ranks,
                             comm_tag(TAG_WATCH, 0, 0), &w->sent_beat,
                             (int64_t)sizeof w->sent_beat));
}

static void look_for_life(watch *w, int64_t now) {
  // When this process itself stood still, the others' signs may be here unread.
  if (now - w->looked_at > w->beat_every) w->alive_at = now;
  w->looked_at = now;
  int64_t limit = w->timeout / 10 * 8;
  if (*w->stop && limit > LEAVING_NS) limit = LEAVING_NS;
  if (now - w->alive_at < limit) return;
  int n = w->c->engine.ranks, before = (w->c->engine.rank + n - 1) % n;
  fprintf(w->err,
          "error: rank %d has given no sign of life for %.1f s: it has died or was stopped, or its "
          "machine is gone\n",
          before, 1e-9 * (double)(now - w->alive_at));
  stop_all(w, ALARM_EXIT);
}

// On one machine the end of a process is seen at once. Perhaps another rank has told it to end, and
// is about to tell this one.
static void look_for_death(watch *w, int64_t now) {
  struct pollfd p = {.fd = w->before, .events = POLLIN};
  if (w->before < 0 || w->closes) return;
  if (!w->died_at && poll(&p, 1, 0) > 0) w->died_at = now;
  if (!w->died_at || now - w->died_at < GATHER_NS) return;
  int n = w->c->engine.ranks;
  fprintf(w->err, "error: rank %d has died (killed, or out of memory)\n",
          (w->c->engine.rank + n - 1) % n);
  stop_all(w, ALARM_EXIT);
}

static void look_at_exchanges(watch *w, int64_t now) {
  comm *c = w->c;
  pthread_mutex_lock(&c->flight_lock);
  const flight *f = c->nflights ? &c->flights[(c->nflights - 1) % COMM_FLIGHTS] : NULL;
  bool late = f && !f->finished && now - f->started > w->timeout;
  pthread_mutex_unlock(&c->flight_lock);
  if (late) raise_alarm(w, true);
  if (w->alarm_at && c->engine.rank == 0 && now - w->alarm_at > ANSWER_NS) tell_places(w);
}

static void look(watch *w) {
  bool done = false;
  status *s = comm_test(w->c, COMM_LISTEN, &done);
  // An engine that fails is told by whoever waits for it.
  if (s) {
    status_free(s);
    return;
  }
  if (done) {
    hear(w);
    listen_again(w);
  }
  int64_t now = clock_ns();
  beat(w, now);
  if (w->said) return;
  look_for_death(w, now);
  if (w->said) return;
  if (!w->alarm_at) look_for_life(w, now);
  look_at_exchanges(w, now);
  if (w->failed_at && !w->main_failed && !w->said && now - w->failed_at > GATHER_NS)
    tell_failure(w);
}

static void *keep_watch(void *at) {
  watch *w = at;
  for (bool ends = false; !ends;) {
    pthread_mutex_lock(&w->lock);
    look(w);
    ends = w->ends;
    pthread_mutex_unlock(&w->lock);
    if (!ends) nanosleep(&(struct timespec){.tv_nsec = TICK_NS}, NULL);
  }
  return NULL;
}

// ---- beginning and end --------------------------------------------------------------------------

typedef struct process {
  int64_t pid;
  uint64_t place;  // equal where process numbers mean the same processes
} process;

static process this_process(void) {
  struct stat st;
  process p = {.pid = getpid()};
  char boot[64] = "";
  FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
  if (f && fgets(boot, sizeof boot, f))
    for (const char *at = boot; *at; at++) p.place = p.place * 31 + (unsigned char)*at;
  if (f) fclose(f);
  if (stat("/proc/self/ns/pid", &st) == 0) p.place = p.place * 31 + (uint64_t)st.st_ino;
  return p;
}

// Finds the process of the rank before this one.
static status *find_before(watch *w) {
  comm *c = w->c;
  int n = c->engine.ranks, before = (c->engine.rank + n - 1) % n;
  process mine = this_process(), *all = calloc((size_t)n, sizeof *all);
  w->before = -1;
  if (!all) return status_error("out of memory");
  status *s = comm_collect(c, &mine, sizeof mine, all, 0);
  if (!s) s = comm_broadcast(c, all, (size_t)n * sizeof *all, 0);
  process other = all[before];
  free(all);
  if (!s && other.place == mine.place && other.pid != mine.pid)
    w->before = (int)syscall(SYS_pidfd_open, (pid_t)other.pid, 0);
  return s;
}

status *comm_watch(comm *c, double timeout_s, bool told, FILE *err,
                   const volatile sig_atomic_t *stop) {
  if (!c || c->engine.ranks < 2) return NULL;
  watch *w = calloc(1, sizeof *w);
  if (w) w->places = calloc((size_t)c->engine.ranks, sizeof *w->places);
  if (!w || !w->places) {
    free(w);
    return status_error("out of memory");
  }
  w->c = c;
  w->err = err;
  w->told = told;
  w->stop = stop;
  w->timeout = (int64_t)(timeout_s * 1e9);
  w->beat_every = w->timeout / 8 < BEAT_NS ? w->timeout / 8 : BEAT_NS;
  // Behind this all ranks are here: nobody is missed who has not begun.
  status *s = find_before(w);
  if (s) {
    free(w->places);
    free(w);
    return s;
  }
  w->alive_at = w->looked_at = clock_ns();
  pthread_mutex_init(&w->lock, NULL);
  listen_again(w);
  c->watch = w;
  if (pthread_create(&w->thread, NULL, keep_watch, w) == 0) return NULL;
  c->watch = NULL;
  return status_error("cannot make a thread that watches");  // the listening buffer stays
}

void comm_begin_end(comm *c) {
  if (!c->watch) return;
  pthread_mutex_lock(&c->watch->lock);
  c->watch->closes = true;
  pthread_mutex_unlock(&c->watch->lock);
}

void comm_unwatch(comm *c) {
  watch *w = c->watch;
  if (!w) return;
  pthread_mutex_lock(&w->lock);
  w->ends = true;
  pthread_mutex_unlock(&w->lock);
  pthread_join(w->thread, NULL);
  // What it still listens with belongs to the engine until that is closed.
}

void comm_free_watch(comm *c) {
  if (!c->watch) return;
  pthread_mutex_destroy(&c->watch->lock);
  if (c->watch->before >= 0) close(c->watch->before);
  free(c->watch->places);
  free(c->watch);
}

// By another rank; an engine that cannot end processes fails instead.
static void pause_until_ended(comm *c) {
  bool done;
  status *s = NULL;
  for (int64_t until = clock_ns() + ENDING_NS; !s && clock_ns() < until;) {
    nanosleep(&(struct timespec){.tv_nsec = TICK_NS}, NULL);
    s = comm_test(c, COMM_CONTROL, &done);
  }
  status_free(s);
}

void comm_fail(comm *c, const status *s) {
  watch *w = c->watch;
  int rank = c->engine.rank;
  FILE *err = w ? w->err : stderr;
  bool said = false, waits = rank > 0;
  message m = {.kind = FAILED, .rank = rank, .code = s->exit_code};
  snprintf(m.text, sizeof m.text, "%s", s->message);
  if (w) {
    pthread_mutex_lock(&w->lock);
    w->main_failed = true;
    said = w->said;
    if (rank > 0 && *s->message) say(w, &m, false);
    pthread_mutex_unlock(&w->lock);
  }
  if (said) return;
  if (waits && (w || !*s->message)) pause_until_ended(c);
  if (waits && w) {
    pthread_mutex_lock(&w->lock);
    said = w->said;
    pthread_mutex_unlock(&w->lock);
    if (said) return;
  }
  if (!waits && w) nanosleep(&(struct timespec){.tv_nsec = GATHER_NS}, NULL);
  if (*s->message && rank > 0) fprintf(err, "error: rank %d: %s\n", rank, s->message);
  if (*s->message && rank == 0) fprintf(err, "error: %s\n", s->message);
  fflush(err);
  if (!w) {
    comm_abort(c, s->exit_code);
    return;
  }
  pthread_mutex_lock(&w->lock);
  stop_all(w, s->exit_code);
  pthread_mutex_unlock(&w->lock);
}
