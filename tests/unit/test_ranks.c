// Programs of two ranks, run by two threads: training, stopping, failing, standing still; and what
// prog_open and comm_open refuse.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// cmocka wants the four above it
#include <cmocka.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/str.h"
#include "runtime/drivers/driver.h"
#include "tests/unit/thread_engine.h"
#include "tests/unit/toy_refuse.h"

enum { MAX_WORDS = 32 };

typedef struct seat {
  pthread_t thread;
  thread_hub *hub;
  const toy *toy;
  char line[512];
  int rank, code;
  volatile sig_atomic_t stop;
  char *out, *err;
  size_t nout, nerr;
} seat;

typedef struct world {
  char dir[64];
  toy *one, *two;
  seat seats[2];
  bool direct;  // ranks share their memory
} world;

static world *the_world;  // the hooks of the toy have no other way

static int setup(void **state) {
  world *w = calloc(1, sizeof *w);
  snprintf(w->dir, sizeof w->dir, "/tmp/dsm_ranks_XXXXXX");
  assert_non_null(mkdtemp(w->dir));
  w->one = toy_build("next_token", TOY_PLAIN);
  w->two = toy_build("next_token", TOY_RANKS);
  char name[128];
  snprintf(name, sizeof name, "%s/corpus.txt", w->dir);
  FILE *f = fopen(name, "wb");
  assert_non_null(f);
  for (int i = 0; i < 2000; i++) fputc("the cat sat on the mat. "[i % 24], f);
  fclose(f);
  toy_hook = NULL;
  the_world = w;
  *state = w;
  return 0;
}

static int setup_sharing(void **state) {
  int failed = setup(state);
  ((world *)*state)->direct = true;
  return failed;
}

static void forget_output(seat *s) {
  free(s->out);
  free(s->err);
  s->out = s->err = NULL;
}

static int teardown(void **state) {
  world *w = *state;
  char cmd[128];
  snprintf(cmd, sizeof cmd, "rm -rf %s", w->dir);
  if (system(cmd)) return 1;
  for (int r = 0; r < 2; r++) forget_output(&w->seats[r]);
  toy_free(w->one);
  toy_free(w->two);
  free(w);
  return 0;
}

static void *sit(void *at) {
  seat *s = at;
  char *argv[MAX_WORDS] = {(char *)(uintptr_t)"toy"}, *rest = NULL;
  int argc = 1;
  for (char *word = strtok_r(s->line, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
    argv[argc++] = word;
  image img;
  status *bad = toy_image(s->toy, &img);
  if (bad) abort();
  FILE *out = open_memstream(&s->out, &s->nout), *err = open_memstream(&s->err, &s->nerr);
  rt_env env = {.out = out, .err = err, .io = file_io_system(), .stop = &s->stop};
  if (s->hub) {
    comm_engine e = hub_engine(s->hub, s->rank);
    bad = comm_open_engine(&img.prog, &e, &env.comm);
    if (bad) abort();
  }
  s->code = rt_run(&img, argc, argv, &env);
  fclose(out);
  fclose(err);
  return NULL;
}

// "EXE LINE" on `ranks` ranks; `@` stands for the test's directory, `#` for the rank.
static void run(world *w, int ranks, const char *line) {
  thread_hub *h = ranks > 1 ? hub_new(ranks) : NULL;
  if (h) h->direct = w->direct;
  for (int r = 0; r < ranks; r++) {
    seat *s = &w->seats[r];
    forget_output(s);
    *s = (seat){.hub = h, .toy = ranks > 1 ? w->two : w->one, .rank = r};
    size_t n = 0;
    for (const char *p = line; *p; p++)
      n += (size_t)snprintf(s->line + n, sizeof s->line - n, "%.*s", *p == '@' ? 64 : 1,
                            *p == '@'   ? w->dir
                            : *p == '#' ? (r ? "1" : "0")
                                        : p);
    pthread_create(&s->thread, NULL, sit, s);
  }
  for (int r = 0; r < ranks; r++) pthread_join(w->seats[r].thread, NULL);
  if (h) hub_free(h);
}

static void has_not(const char *text, const char *part) {
  if (strstr(text, part)) fail_msg("`%s` is in:\n%s", part, text);
}

static void well(const world *w, int ranks) {
  for (int r = 0; r < ranks; r++)
    if (w->seats[r].code) fail_msg("rank %d: %d %s", r, w->seats[r].code, w->seats[r].err);
}

// Numbers behind "name": in the lines of a log.
static int numbers(const world *w, const char *file, const char *name, double *out) {
  char path[128], key[64], line[4096];
  int n = 0;
  snprintf(path, sizeof path, "%s/%s", w->dir, file);
  snprintf(key, sizeof key, "\"%s\": ", name);
  FILE *f = fopen(path, "r");
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    const char *at = strstr(line, key);
    assert_non_null(at);
    out[n++] = strtod(at + strlen(key), NULL);
  }
  fclose(f);
  return n;
}

// ---- running ------------------------------------------------------------------------------------

static void test_as_on_one_rank(void **state) {
  world *w = *state;
  double a[64], b[64];
  run(w, 1, "train --data @/corpus.txt --log @/one --threads 1");
  well(w, 1);
  run(w, 2, "train --data @/corpus.txt --log @/two --threads 1");
  well(w, 2);
  has(w->seats[0].out, "step 40/40");
  assert_string_equal(w->seats[1].out, "");
  assert_string_equal(w->seats[1].err, "");
  static const char *const names[] = {"loss", "grad_norm", "tokens"};
  for (int k = 0; k < 3; k++) {
    assert_int_equal(numbers(w, "one", names[k], a), 40);
    assert_int_equal(numbers(w, "two", names[k], b), 40);
    for (int i = 0; i < 40; i++)
      if (fabs(a[i] - b[i]) > 1e-5 * fabs(a[i]))
        fail_msg("%s of step %d is %g, on one rank %g", names[k], i + 1, b[i], a[i]);
  }
  assert_true(b[0] == 4 * TOY_S);
  // And the same again, to the bit.
  double c[64];
  numbers(w, "two", "loss", b);
  run(w, 2, "train --data @/corpus.txt --log @/three --threads 2");
  numbers(w, "three", "loss", c);
  assert_memory_equal(b, c, 40 * sizeof *b);
}

// With a core for all, messages move on between kernels; no bit depends on that.
static void test_on_one_core(void **state) {
  world *w = *state;
  double a[64], b[64];
  cpu_set_t all, one;
  assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
  CPU_ZERO(&one);
  for (int i = 0; CPU_COUNT(&one) == 0; i++)
    if (CPU_ISSET(i, &all)) CPU_SET(i, &one);
  run(w, 2, "train --data @/corpus.txt --log @/many --threads 1");
  well(w, 2);
  assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
  run(w, 2, "train --data @/corpus.txt --log @/single --threads 1");
  assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
  well(w, 2);
  assert_int_equal(numbers(w, "many", "loss", a), 40);
  assert_int_equal(numbers(w, "single", "loss", b), 40);
  assert_memory_equal(a, b, 40 * sizeof *a);
}

static void test_evaluates(void **state) {
  world *w = *state;
  run(w, 1, "eval --data @/corpus.txt");
  double one = atof(w->seats[0].out + 5);
  run(w, 2, "eval --data @/corpus.txt");
  well(w, 2);
  has(w->seats[0].out, "loss ");
  assert_true(fabs(atof(w->seats[0].out + 5) - one) < 1e-5);
  has(w->seats[0].out, "over 248 samples");
}

static void test_watched(void **state) {
  world *w = *state;
  run(w, 2, "train --data @/corpus.txt --steps 3 --profile --trace @/trace --threads 1");
  well(w, 2);
  has(w->seats[0].out, "exchange");
  char path[128];
  snprintf(path, sizeof path, "%s/trace.1", w->dir);
  assert_int_equal(access(path, R_OK), 0);
}

// The signal comes to one rank alone, in its third step.
static void stop_one(const dsm_call *call) {
  if (call->coord[0] == 1 && call->step == 2) the_world->seats[1].stop = SIGTERM;
}

static void stop_alone(const dsm_call *call) {
  if (call->step == 5) the_world->seats[0].stop = SIGTERM;
}

// What two ranks saved one rank goes on with, and the other way round.
static void test_checkpoints(void **state) {
  world *w = *state;
  double a[64], b[64];
  run(w, 1, "train --data @/corpus.txt --log @/whole --steps 12");
  toy_hook = stop_one;
  run(w, 2, "train --data @/corpus.txt --log @/parts --steps 12 --save @/ck");
  assert_int_equal(w->seats[0].code, 75);
  assert_int_equal(w->seats[1].code, 75);
  has(w->seats[0].err, "stopped by SIGTERM after step 4 of 12; saved in");
  toy_hook = stop_alone;
  run(w, 1, "train --data @/corpus.txt --log @/parts --steps 12 --resume @/ck");
  assert_int_equal(w->seats[0].code, 75);
  has(w->seats[0].err, "after step 6");
  toy_hook = NULL;
  run(w, 2, "train --data @/corpus.txt --log @/parts --steps 12 --resume @/ck");
  well(w, 2);
  has(w->seats[0].out, "resumed at step 6 of 12");
  assert_int_equal(numbers(w, "parts", "loss", a), 12);
  assert_int_equal(numbers(w, "whole", "loss", b), 12);
  for (int i = 0; i < 12; i++) assert_true(fabs(a[i] - b[i]) < 1e-5 * b[i]);
}

// ---- ending -------------------------------------------------------------------------------------

static void test_stops_together(void **state) {
  world *w = *state;
  toy_hook = stop_one;
  run(w, 2, "train --data @/corpus.txt --log @/log");
  double a[64];
  assert_int_equal(w->seats[0].code, 128 + SIGTERM);
  assert_int_equal(w->seats[1].code, 128 + SIGTERM);
  has(w->seats[0].err, "stopped by SIGTERM after step 4");
  assert_string_equal(w->seats[1].err, "");
  assert_int_equal(numbers(w, "log", "loss", a), 4);
}

// One line, by whoever speaks.
static void test_one_rank_fails(void **state) {
  world *w = *state;
  char path[128], there[128];
  snprintf(path, sizeof path, "%s/data0", w->dir);
  snprintf(there, sizeof there, "%s/corpus.txt", w->dir);
  assert_int_equal(symlink(there, path), 0);
  run(w, 2, "train --data @/data#");
  assert_int_not_equal(w->seats[0].code, 0);
  assert_int_not_equal(w->seats[1].code, 0);
  has(w->seats[0].err, "error: rank 1: ");
  has(w->seats[0].err, "data1");
  assert_ptr_equal(strstr(strstr(w->seats[0].err, "error") + 1, "error"), NULL);
}

static void test_all_ranks_fail(void **state) {
  world *w = *state;
  run(w, 2, "train --data @/none");
  assert_int_equal(w->seats[0].code, 1);
  has(w->seats[0].err, "error: ");
  has_not(w->seats[0].err, "rank 1");
  assert_ptr_equal(strstr(strstr(w->seats[0].err, "error") + 1, "error"), NULL);
}

// Rank 1 takes very long over its third step.
static void linger(const dsm_call *call) {
  if (call->coord[0] == 1 && call->step == 2) nanosleep(&(struct timespec){.tv_sec = 3}, NULL);
}

static void test_timeout(void **state) {
  world *w = *state;
  toy_hook = linger;
  int64_t begin = clock_ns();
  run(w, 2, "train --data @/corpus.txt --timeout 0.6 -v");
  assert_true(clock_ns() - begin < 5000000000);
  has(w->seats[0].err, "rank 0 waits since 0.6 s in ");
  has(w->seats[0].err, "s in all_reduce of grad (exchange 0), step 4");
  has(w->seats[0].err, "rank 1 is in no exchange since ");
  has(w->seats[0].err,
      "error: no exchange ended within 0.6 s: rank 1 is not where the others wait");
  // -v: the exchanges before it.
  const char *recorded =
      "rank 0: all_reduce of grad (exchange 0), step 4, layer 0, micro-batch 0: ";
  has(w->seats[0].err, recorded);
  has(w->seats[0].err, "rank 0: all_reduce of grad (exchange 0), step 3, layer 0, micro-batch 0: ");
  has(strstr(w->seats[0].err, recorded), "not finished");
  has(w->seats[1].err, "rank 1: ");
}

// ---- starting -----------------------------------------------------------------------------------

static void refuse_start(const prog *p, const char *part) {
  comm *c = NULL;
  status *s = comm_open(p, &c);
  assert_non_null(s);
  assert_null(c);
  has(s->message, part);
  status_free(s);
}

static void test_wrong_start(void **state) {
  world *w = *state;
  image one, two;
  assert_null(toy_image(w->one, &one));
  assert_null(toy_image(w->two, &two));
  unsetenv("OMPI_COMM_WORLD_SIZE");
  refuse_start(&two.prog, "built for 2 ranks: start it with `mpirun -n 2`");
  comm *c = NULL;
  assert_null(comm_open(&one.prog, &c));
  assert_null(c);
  setenv("OMPI_COMM_WORLD_SIZE", "3", 1);
  setenv("OMPI_COMM_WORLD_RANK", "0", 1);
  refuse_start(&two.prog, "built for 2 ranks, mpirun started 3");
  refuse_start(&one.prog, "built for 1 rank, mpirun started 3");
  setenv("OMPI_COMM_WORLD_RANK", "2", 1);
  refuse_start(&two.prog, "");
  unsetenv("OMPI_COMM_WORLD_SIZE");
  unsetenv("OMPI_COMM_WORLD_RANK");
}

// ---- damaged programs ---------------------------------------------------------------------------

static void test_refuses(void **state) {
  toy *t = ((world *)*state)->two;
  const prog_header *h = (const void *)t->blob;
  PATCH(axes, prog_axis, 0, size, 0, "axis data has a bad size");
  PATCH(axes, prog_axis, 0, size, (int64_t)1 << 40, "axis data has a bad size");
  PATCH(axes, prog_axis, 0, size, 1, "one rank");
  PATCH(axes, prog_axis, 0, stride, 2, "axis data has a bad size or stride");
  PATCH(axes, prog_axis, 0, name, 1u << 30, "axis 0 has no name");
  PATCH(entries, prog_entry, 0, batch_axes, 2, "unknown axis");
  PATCH(exchanges, prog_exchange, 0, kind, PROG_EXCHANGES, "exchange 0 has no meaning");
  PATCH(exchanges, prog_exchange, 0, of, PROG_EXCHANGES, "exchange 0 has no meaning");
  PATCH(exchanges, prog_exchange, 0, axes, 0, "exchange 0 has no meaning");
  PATCH(exchanges, prog_exchange, 0, axes, 3, "exchange 0 has no meaning");
  PATCH(exchanges, prog_exchange, 0, reduce, 2, "exchange 0 has no meaning");
  PATCH(exchanges, prog_exchange, 0, dtype, PROG_I8, "adds up what has no sum");
  PATCH(exchanges, prog_exchange, 0, size[1], 2, "bad box");
  PATCH(exchanges, prog_exchange, 0, run, 0, "bad run");
  PATCH(exchanges, prog_exchange, 0, run, INT64_MAX, "bad run");
  PATCH(exchanges, prog_exchange, 0, run, TOY_V * TOY_V + 1, "too little scratch");
  PATCH(exchanges, prog_exchange, 0, dtype, PROG_F64, "too little scratch");
  PATCH(exchanges, prog_exchange, 0, whole, 5, "shares its elements badly");
  PATCH(exchanges, prog_exchange, 0, scratch, 64, "too little scratch");
  PATCH(exchanges, prog_exchange, 0, kind, PROG_SEND, "does not hold what it moves");
  PATCH(exchanges, prog_exchange, 0, values, 1u << 30, "is no bucket");
  prog_exchange *first = (prog_exchange *)(void *)(t->blob + h->exchanges.offset);
  int64_t scratch = first->scratch;
  first->scratch = 1 << 20;
  PATCH(exchanges, prog_exchange, 0, values, 2, "other operands than its values");
  first->values = 2;
  PATCH(exchanges, prog_exchange, 0, first_operand, UINT32_MAX, "is no bucket");
  first->values = 0;
  first->scratch = scratch;
  prog_exchange *x = (prog_exchange *)(void *)(t->blob + h->exchanges.offset) + 1;
  prog_exchange old = *x;
  x->kind = PROG_ALL_TO_ALL, x->scratch = 0, x->in_step = 0, x->out_step = INT64_MAX / 2;
  refuse(t, "bad strides");
  x->out_step = 1 << 20;
  refuse(t, "does not hold what it moves");
  x->kind = PROG_SEND, x->step = 3;
  refuse(t, "has no neighbour");
  *x = old;
  // The operands of the first exchange.
  prog_instr *in = (prog_instr *)(void *)(t->blob + h->instrs.offset);
  while (in->op != RTOP_exchange) in++;
  PATCH(operands, prog_operand, in->first_operand, bytes, 4, "does not hold what it moves");
  PATCH(operands, prog_operand, in->first_operand, writes, 1, "does not hold what it moves");
  PATCH(operands, prog_operand, in->first_operand + 1, base, AT_GRAD + 2, "does not hold");
  PATCH(operands, prog_operand, in->first_operand + 2, bytes, 64, "does not hold what it moves");
  uint32_t exchange = (uint32_t)(in - (prog_instr *)(void *)(t->blob + h->instrs.offset));
  PATCH(instrs, prog_instr, exchange, kernel, 100, "unknown exchange");
  PATCH(instrs, prog_instr, exchange, stream, PROG_COPIES, "unknown stream");
  PATCH(instrs, prog_instr, exchange - 1, event, 2, "unknown event");
}

static void test_refuses_cuts(void **state) {
  toy *t = ((world *)*state)->two;
  const prog_header *h = (const void *)t->blob;
  prog_state *s = (prog_state *)(void *)(t->blob + h->states.offset) + 2;  // momentum of wte
  prog_state old = *s;
  prog p;
  s->global_rank = 2, s->global[0] = 2 * TOY_V, s->global[1] = TOY_V, s->ncuts = 1;
  s->cut[0] = (prog_cut){.axes = 1, .block = TOY_V, .whole = 2 * TOY_V * TOY_V};
  prog_state good = *s;
  toy_seal(t);
  assert_null(prog_open(t->blob, t->n, t->code_bytes, &p));
  // Padded: the last rank has fewer.
  s->global_rank = 1, s->global[0] = 2 * TOY_V * TOY_V - 5;
  s->cut[0].whole = s->global[0], s->cut[0].block = TOY_V * TOY_V;
  toy_seal(t);
  assert_null(prog_open(t->blob, t->n, t->code_bytes, &p));
  *s = good;
  PATCH(states, prog_state, 2, ncuts, 5, "unknown class");
  PATCH(states, prog_state, 2, global_rank, 9, "unknown class");
  PATCH(states, prog_state, 2, global[0], 0, "bad dims");
  PATCH(states, prog_state, 2, global[0], 2 * TOY_V + 1, "bad numbers");
  PATCH(states, prog_state, 2, cut[0].axes, 2, "unknown axes");
  PATCH(states, prog_state, 2, cut[0].block, 0, "bad numbers");
  PATCH(states, prog_state, 2, cut[0].block, TOY_V - 1, "does not divide it");
  PATCH(states, prog_state, 2, cut[0].block, INT64_MAX, "bad numbers");
  PATCH(states, prog_state, 2, cut[0].block, 2 * TOY_V * TOY_V, "has not the elements");
  s->ncuts = 2;
  refuse(t, "unknown axes");
  s->cut[1] = s->cut[0];
  refuse(t, "or twice");
  *s = old;
  toy_seal(t);
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define SHARING(f) cmocka_unit_test_setup_teardown(f, setup_sharing, teardown)
  const struct CMUnitTest tests[] = {
      T(test_as_on_one_rank),
      T(test_on_one_core),
      T(test_evaluates),
      T(test_watched),
      T(test_checkpoints),
      T(test_stops_together),
      T(test_one_rank_fails),
      T(test_all_ranks_fail),
      T(test_timeout),
      T(test_wrong_start),
      T(test_refuses),
      T(test_refuses_cuts),
      SHARING(test_as_on_one_rank),
      SHARING(test_on_one_core),
      SHARING(test_checkpoints),
      SHARING(test_one_rank_fails),
      SHARING(test_timeout),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
