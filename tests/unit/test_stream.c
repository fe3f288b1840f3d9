// The second queue without a thread: it goes on when it is looked at, and no further than messages
// have come; with one it goes on by itself. Failures reach stream_finish either way.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// cmocka wants the four above it
#include <cmocka.h>
#include <math.h>
#include <stdatomic.h>
#include <time.h>

#include "runtime/base/clock.h"
#include "runtime/base/str.h"
#include "runtime/stream.h"
#include "tests/unit/thread_engine.h"
#include "tests/unit/toy_program.h"

enum { FLOATS = 1 << 17 };

// Two ranks, each with a stream, a sum over both that is given to it, and what it sums.
typedef struct side {
  image img;
  comm *comm;
  stream *stream;
  const prog_instr *sum;
  int64_t elements;
  float at[FLOATS], scratch[FLOATS];
} side;

static const prog_instr *the_sum(const prog *p) {
  for (uint32_t i = 0; i < p->ninstrs; i++) {
    const prog_instr *in = &p->instrs[i];
    if (in->op == RTOP_exchange && in->stream == PROG_COMMUNICATION) return in;
  }
  fail_msg("the toy has no sum on the stream");
  return NULL;
}

static void open_side(side *s, const toy *t, thread_hub *h, int rank, bool thread) {
  assert_null(toy_image(t, &s->img));
  comm_engine e = hub_engine(h, rank);
  assert_null(comm_open_engine(&s->img.prog, &e, &s->comm));
  assert_null(stream_open(&s->img.prog, s->comm, s->img.code, thread, &s->stream));
  assert_non_null(s->stream);
  s->sum = the_sum(&s->img.prog);
  const prog_exchange *x = &s->img.prog.exchanges[s->sum->kernel];
  s->elements = x->run;
  assert_true(x->run <= FLOATS && x->scratch <= (int64_t)sizeof s->scratch);
  for (int64_t i = 0; i < x->run; i++) s->at[i] = (float)(i + 1000 * rank);
}

static void give(side *s) {
  unsigned char *buf[] = {(unsigned char *)s->at, (unsigned char *)s->at,
                          (unsigned char *)s->scratch};
  stream_give(s->stream, s->sum, buf, &(dsm_call){0});
}

static bool summed(const side *s) {
  for (int64_t i = 0; i < s->elements; i++)
    if (s->at[i] != (float)(2 * i + 1000)) return false;
  return true;
}

static bool untouched(const side *s, int rank) {
  for (int64_t i = 0; i < s->elements; i++)
    if (s->at[i] != (float)(i + 1000 * rank)) return false;
  return true;
}

typedef struct pair {
  toy *toy;
  thread_hub *hub;
  side side[2];
} pair;

static pair *open_pair(bool thread) {
  pair *p = calloc(1, sizeof *p);
  p->toy = toy_build("next_token", TOY_RANKS);
  p->hub = hub_new(2);
  for (int r = 0; r < 2; r++) open_side(&p->side[r], p->toy, p->hub, r, thread);
  return p;
}

static void *close_side(void *at) {
  side *s = at;
  stream_close(s->stream);
  comm_close(s->comm);
  return NULL;
}

static void close_pair(pair *p) {
  pthread_t other;
  pthread_create(&other, NULL, close_side, &p->side[1]);
  close_side(&p->side[0]);
  pthread_join(other, NULL);
  hub_free(p->hub);
  toy_free(p->toy);
  free(p);
}

// One thread plays both ranks: a look that waited for the other one would never end.
static void test_between(void **state) {
  (void)state;
  pair *p = open_pair(false);
  side *a = &p->side[0], *b = &p->side[1];
  give(a);
  for (int i = 0; i < 100; i++) stream_look(a->stream);
  assert_true(untouched(a, 0));
  give(b);
  assert_true(untouched(b, 1));  // giving does nothing yet
  for (int i = 0; i < 100; i++) {
    stream_look(b->stream);
    stream_look(a->stream);
  }
  assert_true(summed(a));
  assert_true(summed(b));
  assert_null(stream_finish(a->stream));
  assert_null(stream_finish(b->stream));
  close_pair(p);
}

// A record is what was given before it.
static void test_events(void **state) {
  (void)state;
  pair *p = open_pair(false);
  side *a = &p->side[0], *b = &p->side[1];
  prog_instr record = {.op = RTOP_record, .stream = PROG_COMMUNICATION, .event = 1};
  stream_give(a->stream, &record, NULL, &(dsm_call){0});
  give(a);
  stream_wait(a->stream, 1);  // for nothing
  assert_true(untouched(a, 0));
  give(b);
  stream_look(b->stream), stream_look(a->stream);
  stream_give(a->stream, &record, NULL, &(dsm_call){0});
  for (int i = 0; i < 100; i++) stream_look(b->stream), stream_look(a->stream);
  stream_wait(a->stream, 1);
  assert_true(summed(a));
  close_pair(p);
}

// With a thread nobody needs to look.
static void test_beside(void **state) {
  (void)state;
  pair *p = open_pair(true);
  give(&p->side[0]);
  give(&p->side[1]);
  for (int r = 0; r < 2; r++) assert_null(stream_finish(p->side[r].stream));
  for (int r = 0; r < 2; r++) assert_true(summed(&p->side[r]));
  close_pair(p);
}

static void end_badly(bool thread) {
  pair *p = open_pair(thread);
  side *a = &p->side[0];
  give(a);
  for (int i = 0; i < 10; i++) stream_look(a->stream);
  comm_abort(p->side[1].comm, 1);
  status *failed = stream_finish(a->stream);
  assert_non_null(failed);
  status_free(failed);
  give(a);  // the failure was fetched: the stream tries again, and fails again
  failed = stream_finish(a->stream);
  assert_non_null(failed);
  status_free(failed);
  close_pair(p);
}

static void test_failure(void **state) {
  (void)state;
  end_badly(false);
  end_badly(true);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_between),
      cmocka_unit_test(test_events),
      cmocka_unit_test(test_beside),
      cmocka_unit_test(test_failure),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
