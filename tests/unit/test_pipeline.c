// Pipeline orders: executed one by one, against formulas, bounds, and three ways to find the step
// against each other.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <time.h>

#include "passes/plan/pipeline.h"
#include "tests/unit/draw.h"

static pipeline equal(arena *a, pipe_kind k, int p, int v, int64_t m, pipe_chunk c) {
  pipe_chunk *chunk = arena_new(a, pipe_chunk, p * v);
  for (int i = 0; i < p * v; i++) chunk[i] = c;
  return (pipeline){.kind = k, .stages = p, .chunks = v, .micro = m, .chunk = chunk};
}

// Unequal stages; `messages`: how long they may be, relative to the phases.
static pipeline unequal(arena *a, uint64_t *s, pipe_kind k, double messages) {
  int p = draw_int(s, 1, 9), v = k == PIPE_INTERLEAVED ? draw_int(s, 2, 4) : 1,
      m = draw_int(s, 1, 40);
  if (k == PIPE_GPIPE) v = draw_int(s, 1, 3);
  if (k == PIPE_INTERLEAVED) m = p * draw_int(s, 1, 5);
  pipe_chunk *chunk = arena_new(a, pipe_chunk, p * v);
  double *before = arena_new(a, double, p), *after = arena_new(a, double, p);
  double spread = draw_real(s) < 0.5 ? 0.1 : 1;
  for (int i = 0; i < p * v; i++) {
    chunk[i].forward = 1 + spread * 3 * draw_real(s);
    chunk[i].backward = 2 + spread * 4 * draw_real(s);
    chunk[i].weight = chunk[i].backward * (0.2 + 0.6 * draw_real(s));
    chunk[i].send = messages * draw_real(s);
    chunk[i].send_back = messages * draw_real(s);
  }
  for (int i = 0; i < p; i++) before[i] = 3 * draw_real(s), after[i] = 5 * draw_real(s);
  bool own = draw_real(s) < 0.5;
  return (pipeline){.kind = k,
                    .stages = p,
                    .chunks = v,
                    .micro = m,
                    .chunk = chunk,
                    .before = own ? before : NULL,
                    .after = own ? after : NULL};
}

static void assert_near(double a, double b, double relative) {
  if (fabs(a - b) > relative * fmax(fabs(a), fabs(b))) {
    print_error("%.17g is not %.17g\n", a, b);
    fail();
  }
}

// Orders with some p, v and m, small ones all.
#define FOR_SMALL(k, p, v, m)                                                                  \
  for (int k = 0; k <= PIPE_ZERO_BUBBLE; k++)                                                  \
    for (int p = 1; p <= 8; p++)                                                               \
      for (int v = k == PIPE_INTERLEAVED ? 2 : 1;                                              \
           v <= (k == PIPE_INTERLEAVED || k == PIPE_GPIPE ? 3 : 1); v++)                       \
        for (int m = k == PIPE_INTERLEAVED ? p : 1; m <= (k == PIPE_INTERLEAVED ? 4 * p : 12); \
             m += k == PIPE_INTERLEAVED ? p : 1)

// ---- the orders, executed -----------------------------------------------------------------------

// Runs the lists without times: a phase goes when what it needs is done. Checks that none stands
// still, that each phase comes once, and what is held: `most` and `each`, per stage.
static void execute(arena *a, const pipeline *p, int64_t *most, int64_t *each) {
  int n = p->stages, v = p->chunks, parts = n * v, phases = p->kind == PIPE_ZERO_BUBBLE ? 3 : 2;
  int64_t m = p->micro, left = phases * parts * m;
  pipe_list *l = pipe_orders(a, p);
  char *done = arena_new(a, char, 3 * parts * m);
#define DONE(ph, k, j) done[((int)(ph) * parts + (k)) * m + (j)]
  int64_t *run = arena_new(a, int64_t, n), *in = arena_new(a, int64_t, n);
  int64_t *held = arena_new(a, int64_t, n), *of = arena_new(a, int64_t, parts);
  for (bool moved = true; moved;) {
    moved = false;
    for (int i = 0; i < n; i++) {
      while (run[i] < l[i].n) {
        const pipe_run *r = &l[i].at[run[i]];
        int64_t j = r->micro + in[i];
        int k = r->chunk * n + i;
        assert_true(r->chunk >= 0 && r->chunk < v && j >= 0 && j < m && r->count >= 1);
        assert_false(DONE(r->phase, k, j));
        if (r->phase == PIPE_F && k > 0 && !DONE(PIPE_F, k - 1, j)) break;
        if (r->phase == PIPE_B && !DONE(PIPE_F, k, j)) break;
        if (r->phase == PIPE_B && k + 1 < parts && !DONE(PIPE_B, k + 1, j)) break;
        if (r->phase == PIPE_W && !DONE(PIPE_B, k, j)) break;
        DONE(r->phase, k, j) = 1;
        left--;
        moved = true;
        if (++in[i] == r->count) in[i] = 0, run[i]++;
        int c = i * v + r->chunk;
        if (r->phase == PIPE_F) {
          of[c]++;
          if (++held[i] > most[i]) {
            most[i] = held[i];
            for (int x = 0; x < v; x++) each[i * v + x] = of[i * v + x];
          }
        } else if (r->phase == (phases == 3 ? PIPE_W : PIPE_B)) {
          of[c]--;
          held[i]--;
        }
      }
    }
  }
#undef DONE
  assert_int_equal(left, 0);  // each once: none twice (above), none left
}

static void orders_run(void **state) {
  (void)state;
  uint64_t seed = 1;
  FOR_SMALL(k, p, v, m) {
    arena a;
    arena_init(&a);
    pipeline q =
        equal(&a, (pipe_kind)k, p, v, m, (pipe_chunk){1, 2 + draw_real(&seed), 1, 0.1, 0.1});
    assert_null(pipe_check(&a, &q));
    int64_t most[8] = {0}, each[24] = {0}, mine[3];
    execute(&a, &q, most, each);
    for (int i = 0; i < p; i++) {
      assert_int_equal(pipe_stash(&a, &q, i, mine), most[i]);
      for (int c = 0; c < v; c++) assert_int_equal(mine[c], each[i * v + c]);
      int64_t formula = m < p - i ? m : p - i;
      if (k == PIPE_ONE_F_ONE_B) assert_int_equal(most[i], formula);
      if (k == PIPE_GPIPE) assert_int_equal(most[i], m * v);
      // Zero bubble: no stage more than the first one of 1f1b.
      if (k == PIPE_ZERO_BUBBLE) assert_true(most[i] <= (m < p ? m : p));
      if (k == PIPE_ZERO_BUBBLE) {
        assert_int_equal(pipe_stash(NULL, &q, i, NULL), formula);
        assert_int_equal(pipe_held(&a, &q, i, PIPE_F, PIPE_B), formula);
        int64_t late = pipe_held(&a, &q, i, PIPE_B, PIPE_W);
        assert_true(late >= 1 && most[i] >= formula && most[i] <= formula + late);
      }
      // A list for one stage is that of all stages.
      pipe_list one = pipe_order_of(&a, &q, i), all = pipe_orders(&a, &q)[i];
      assert_int_equal(one.n, all.n);
      assert_memory_equal(one.at, all.at, sizeof *one.at * (size_t)one.n);
    }
    arena_free(&a);
  }
}

// The line in the header.
static void order_as_written(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  pipeline q = equal(&a, PIPE_ONE_F_ONE_B, 4, 1, 8, (pipe_chunk){1, 2, 1, 0, 0});
  pipe_list l = pipe_order_of(&a, &q, 1);
  char text[256] = "";
  for (int64_t r = 0; r < l.n; r++)
    for (int64_t j = 0; j < l.at[r].count; j++)
      snprintf(text + strlen(text), sizeof text - strlen(text), "%c%d ", "FBW"[l.at[r].phase],
               (int)(l.at[r].micro + j));
  assert_string_equal(text, "F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 B5 B6 B7 ");
  // Interleaved, as Megatron's: the first stage of two, two chunks, four micro-batches.
  q = equal(&a, PIPE_INTERLEAVED, 2, 2, 4, (pipe_chunk){1, 2, 1, 0, 0});
  l = pipe_order_of(&a, &q, 0);
  text[0] = 0;
  for (int64_t r = 0; r < l.n; r++)
    for (int64_t j = 0; j < l.at[r].count; j++)
      snprintf(text + strlen(text), sizeof text - strlen(text), "%c%d.%d ", "FBW"[l.at[r].phase],
               (int)(l.at[r].micro + j), l.at[r].chunk);
  assert_string_equal(text,
                      "F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0 B2.1 B3.1 "
                      "B2.0 B3.0 ");
  arena_free(&a);
}

static void refused_in_words(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  pipeline q = equal(&a, PIPE_INTERLEAVED, 8, 2, 12, (pipe_chunk){1, 2, 1, 0, 0});
  assert_string_equal(
      pipe_check(&a, &q),
      "interleaved needs a number of micro-batches that 8 stages divide: 12 is none");
  q.kind = PIPE_ZERO_BUBBLE;
  assert_non_null(strstr(pipe_check(&a, &q), "one chunk a stage"));
  q.kind = PIPE_ONE_F_ONE_B;
  assert_non_null(strstr(pipe_check(&a, &q), "one_f_one_b"));
  q = equal(&a, PIPE_INTERLEAVED, 4, 1, 8, (pipe_chunk){1, 2, 1, 0, 0});
  assert_non_null(strstr(pipe_check(&a, &q), "two chunks"));
  q.micro = 0;
  assert_non_null(strstr(pipe_check(&a, &q), "at least one"));
  arena_free(&a);
}

// ---- the step -----------------------------------------------------------------------------------

static void closed_forms(void **state) {
  (void)state;
  int met[4] = {0}, messages = 0;
  uint64_t seed = 2;
  FOR_SMALL(k, p, v, m) {
    arena a;
    arena_init(&a);
    for (int way = 0; way < 4; way++) {
      double f = 1 + draw_real(&seed), b = 1 + 2 * draw_real(&seed), w = b * draw_real(&seed);
      pipe_chunk c = {f, b, w, 0, 0};
      if (way & 1) c.send = f * draw_real(&seed), c.send_back = b * draw_real(&seed);
      if (way == 3 && k == PIPE_GPIPE) c.send *= 4, c.send_back *= 3;
      pipeline q = equal(&a, (pipe_kind)k, p, v, m, c);
      double before[8], after[8];
      for (int i = 0; i < p; i++) before[i] = 2, after[i] = 3;
      if (way & 2) q.before = before, q.after = after;
      double closed = pipe_closed(&q);
      if (closed < 0) continue;
      met[k]++;
      if (k == PIPE_INTERLEAVED && p > 1 && way & 1) messages++;
      assert_near(pipe_longest(&a, &q).step, closed, 1e-12);
    }
    arena_free(&a);
  }
  for (int k = 0; k < 4; k++) assert_true(met[k] > 50);
  assert_true(messages > 10);
}

static void bubble_fractions(void **state) {
  (void)state;
  for (int p = 1; p <= 8; p++)
    for (int m = 1; m <= 12; m++) {
      arena a;
      arena_init(&a);
      // Binary fractions: all sums below are exact.
      pipeline q = equal(&a, PIPE_ONE_F_ONE_B, p, 1, m, (pipe_chunk){1.25, 2.5, 1.25, 0, 0});
      pipe_result r = pipe_longest(&a, &q);
      assert_true(r.step == (m + p - 1) * 3.75);
      assert_true(r.bubble * (m + p - 1) == (p - 1) * r.step);
      assert_true(r.exposed_send == 0);
      q.kind = PIPE_GPIPE;
      assert_true(pipe_longest(&a, &q).step == (m + p - 1) * 3.75);
      for (int v = 2; v <= 4; v++) {
        // The same work cut into v chunks: the bubble over the busy time is (p-1)/(v m).
        pipe_chunk c = {1.25, 2.5, 1.25, 0, 0};
        pipeline i = equal(&a, PIPE_INTERLEAVED, p, v, (int64_t)m * p, c);
        r = pipe_longest(&a, &i);
        assert_true(r.bubble * v * m * p == (p - 1) * r.busy);
      }
      arena_free(&a);
    }
}

static void longest_equals_simulated(void **state) {
  (void)state;
  uint64_t seed = 3;
  double exposed = 0;
  for (int n = 0; n < 800; n++) {
    arena a;
    arena_init(&a);
    // No messages, short ones, ones longer than phases.
    pipeline q = unequal(&a, &seed, (pipe_kind)(n % 4), n % 3 == 0 ? 0 : n % 3 == 1 ? 0.5 : 9);
    pipe_result x = pipe_longest(&a, &q), y = pipe_simulate(&a, &q, NULL, NULL, NULL, NULL);
    assert_near(x.step, y.step, 1e-9);
    assert_near(x.busy, y.busy, 1e-9);
    assert_int_equal(x.critical, y.critical);
    assert_true(fabs(x.exposed_send - y.exposed_send) <= 1e-9 * x.step);
    assert_true(fabs(x.bubble - y.bubble) <= 1e-9 * x.step);
    assert_true(x.bubble >= 0 && x.exposed_send >= 0);
    double own = q.before ? q.before[x.critical] + q.after[x.critical] : 0;
    assert_near(own + x.busy + x.bubble + x.exposed_send, x.step, 1e-12);
    if (n % 3 == 0) assert_true(x.exposed_send == 0);
    exposed += x.exposed_send;
    arena_free(&a);
  }
  assert_true(exposed > 0);
}

// Periods are skipped: long steps, nearly equal stages, messages that make periods of p waves.
static void skipped_periods(void **state) {
  (void)state;
  uint64_t seed = 4;
  for (int n = 0; n < 60; n++) {
    arena a;
    arena_init(&a);
    int p = draw_int(&seed, 1, 12);
    pipeline q =
        equal(&a, PIPE_ONE_F_ONE_B, p, 1, draw_int(&seed, 100, 700), (pipe_chunk){1, 2, 1, 0, 0});
    pipe_chunk *c = arena_new(&a, pipe_chunk, p);
    double spread = n % 3 == 0   ? 0
                    : n % 3 == 1 ? 1e-4
                                 : 1,
           message = n % 2 ? 0 : 3 * draw_real(&seed);
    for (int i = 0; i < p; i++)
      c[i] = (pipe_chunk){1 + spread * draw_real(&seed), 2 + spread * draw_real(&seed), 1, message,
                          message};
    q.chunk = c;
    pipe_result x = pipe_longest(&a, &q), y = pipe_simulate(&a, &q, NULL, NULL, NULL, NULL);
    assert_near(x.step, y.step, 1e-10);
    assert_true(fabs(x.exposed_send - y.exposed_send) <= 1e-9 * x.step);
    arena_free(&a);
  }
}

static void bound_is_below(void **state) {
  (void)state;
  uint64_t seed = 5;
  double ratio[4] = {0}, worst[4] = {2, 2, 2, 2};
  int cases = 4000;
  for (int n = 0; n < cases; n++) {
    arena a;
    arena_init(&a);
    int k = n % 4;
    pipeline q = unequal(&a, &seed, (pipe_kind)k, n % 3 == 0 ? 0 : n % 3 == 1 ? 0.5 : 6);
    double bound = pipe_bound(&q), step = pipe_longest(&a, &q).step;
    assert_true(bound <= step);
    ratio[k] += bound / step / (cases / 4);
    worst[k] = fmin(worst[k], bound / step);
    arena_free(&a);
  }
  if (getenv("PIPE_PRINT"))
    for (int k = 0; k < 4; k++)
      print_message("%-12s bound / step: %.4f on average, %.4f at worst\n",
                    pipe_kind_name((pipe_kind)k), ratio[k], worst[k]);
  // How tight it is.
  assert_true(ratio[PIPE_ONE_F_ONE_B] > 0.97 && ratio[PIPE_ZERO_BUBBLE] > 0.95);
  assert_true(ratio[PIPE_GPIPE] > 0.9 && ratio[PIPE_INTERLEAVED] > 0.85);
  // Exact for equal stages, messages included.
  for (int p = 1; p <= 8; p++)
    for (int m = 1; m <= 40; m++) {
      arena a;
      arena_init(&a);
      pipeline q = equal(&a, PIPE_ONE_F_ONE_B, p, 1, m, (pipe_chunk){1, 2, 1, 0, 0});
      assert_near(pipe_bound(&q), pipe_closed(&q), 1e-11);
      q.kind = PIPE_ZERO_BUBBLE;
      if (m >= p) assert_near(pipe_bound(&q), pipe_closed(&q), 1e-11);
      q = equal(&a, PIPE_GPIPE, p, 1, m, (pipe_chunk){1, 2, 1, 1.5, 0.5});
      assert_near(pipe_bound(&q), pipe_closed(&q), 1e-11);
      arena_free(&a);
    }
}

static void zero_bubble_is_not_slower(void **state) {
  (void)state;
  uint64_t seed = 6;
  int faster = 0, cases = 2000;
  for (int n = 0; n < cases; n++) {
    arena a;
    arena_init(&a);
    pipeline q = unequal(&a, &seed, PIPE_ZERO_BUBBLE, n % 2 ? 0.7 : 0), o = q;
    pipe_chunk *c = arena_new(&a, pipe_chunk, q.stages);
    for (int i = 0; i < q.stages; i++) {
      c[i] = q.chunk[i];
      if (n % 3) continue;
      // Stages of quite other kinds: putting weights' gradients off does not pay on each.
      c[i].forward = exp(4 * draw_real(&seed));
      c[i].weight = exp(5 * draw_real(&seed));
      c[i].backward = c[i].weight + exp(4 * draw_real(&seed));
    }
    q.chunk = o.chunk = c;
    o.kind = PIPE_ONE_F_ONE_B;
    double zb = pipe_longest(&a, &q).step, ob = pipe_longest(&a, &o).step;
    assert_true(zb <= ob * (1 + 1e-12));
    if (zb < 0.999 * ob) faster++;
    assert_near(zb, pipe_simulate(&a, &q, NULL, NULL, NULL, NULL).step, 1e-9);
    int64_t first = pipe_stash(NULL, &o, 0, NULL);
    for (int i = 0; i < q.stages; i++) assert_true(pipe_stash(&a, &q, i, NULL) <= first);
    arena_free(&a);
  }
  assert_true(faster > cases / 2);
}

// ---- the trace ----------------------------------------------------------------------------------

static int by_start(const void *pa, const void *pb) {
  const double *a = pa, *b = pb;
  return (a[0] > b[0]) - (a[0] < b[0]);
}

static void trace_is_sound(void **state) {
  (void)state;
  uint64_t seed = 7;
  for (int n = 0; n < 24; n++) {
    arena a;
    arena_init(&a);
    pipeline q = unequal(&a, &seed, (pipe_kind)(n % 4), 0.8);
    int parts = q.stages * q.chunks;
    pipe_chunk *c = arena_new(&a, pipe_chunk, parts);
    double *bytes = arena_new(&a, double, parts), *fixed = arena_new(&a, double, q.stages);
    for (int i = 0; i < parts; i++) {
      c[i] = q.chunk[i];  // milliseconds
      c[i].forward *= 1e-3, c[i].backward *= 1e-3, c[i].weight *= 1e-3;
      c[i].send *= 1e-3, c[i].send_back *= 1e-3;
      bytes[i] = draw_int(&seed, 1, 1000);
    }
    q.chunk = c;
    const char **names = arena_new(&a, const char *, q.stages);
    for (int i = 0; i < q.stages; i++) {
      names[i] = arena_printf(&a, "stage %d: layers \"%d\"\\\n", i, i);
      fixed[i] = 5000 + i;
    }
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    pipe_result r = pipe_simulate(&a, &q, names, bytes, fixed, f);
    fclose(f);
    json_error_t error;
    json_t *j = json_loadb(text, size, 0, &error);
    if (!j) print_error("%s at line %d\n", error.text, error.line);
    assert_non_null(j);
    assert_true(json_is_array(j));
    size_t all = json_array_size(j);
    double(*at)[2] = malloc(sizeof *at * (all + 1)), last = 0;
    int64_t computes = 0, sends = 0;
    int named = 0;
    for (int i = 0; i < q.stages; i++) {
      double stash = 0, memory = 0;
      for (int t = 0; t < 3; t++) {
        size_t m = 0;
        for (size_t e = 0; e < all; e++) {
          json_t *o = json_array_get(j, e);
          const char *ph = json_string_value(json_object_get(o, "ph"));
          if (json_integer_value(json_object_get(o, "pid")) != i) continue;
          if (t == 0 && !strcmp(ph, "C")) {
            json_t *args = json_object_get(o, "args");
            stash = fmax(stash, json_number_value(json_object_get(args, "micro-batches")));
            memory = fmax(memory, json_number_value(json_object_get(args, "bytes")));
          }
          if (t == 0 && !strcmp(ph, "M") &&
              !strcmp(json_string_value(json_object_get(o, "name")), "process_name")) {
            assert_string_equal(
                json_string_value(json_object_get(json_object_get(o, "args"), "name")), names[i]);
            named++;
          }
          if (strcmp(ph, "X") || json_integer_value(json_object_get(o, "tid")) != t) continue;
          at[m][0] = json_number_value(json_object_get(o, "ts"));
          at[m][1] = at[m][0] + json_number_value(json_object_get(o, "dur"));
          last = t == 0 ? fmax(last, at[m][1]) : last;
          m++;
          if (json_object_get(o, "args")) *(t == 0 ? &computes : &sends) += 1;
        }
        qsort(at, m, sizeof *at, by_start);
        for (size_t e = 1; e < m; e++) assert_true(at[e - 1][1] <= at[e][0] + 1e-6);
      }
      assert_int_equal((int64_t)stash, pipe_stash(&a, &q, i, NULL));
      assert_true(memory == fixed[i] + pipe_stash_bytes(&a, &q, i, bytes + i * q.chunks));
    }
    assert_int_equal(named, q.stages);
    assert_int_equal(computes, (q.kind == PIPE_ZERO_BUBBLE ? 3 : 2) * parts * q.micro);
    assert_int_equal(sends, q.stages == 1 ? 0 : 2 * (parts - 1) * q.micro);
    assert_true(fabs(last - r.step * 1e6) < 1e-2);
    free(at);
    json_decref(j);
    free(text);
    arena_free(&a);
  }
}

// A step of half a million phases: the trace is written, not held.
static void large_trace(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  pipeline q = equal(&a, PIPE_INTERLEAVED, 16, 4, 512, (pipe_chunk){1e-3, 2e-3, 1e-3, 1e-4, 1e-4});
  FILE *f = tmpfile();
  assert_non_null(f);
  pipe_simulate(&a, &q, NULL, NULL, NULL, f);
  int64_t written = ftell(f), phases = 2LL * 16 * 4 * 512;
  assert_true(written > 60 * phases);
  assert_true((int64_t)a.total < written / 2);
  fclose(f);
  arena_free(&a);
}

// How long one step takes to find. The planner asks thousands of times; what is asserted leaves
// room for slow machines. PIPE_PRINT=1 prints it.
static void speed(void **state) {
  (void)state;
  uint64_t seed = 8;
  for (int k = 0; k < 4; k++)
    for (int kind = 0; kind < 3; kind++) {
      arena a;
      arena_init(&a);
      int v = k == PIPE_INTERLEAVED ? 4 : 1;
      pipeline q = equal(&a, (pipe_kind)k, 64, v, 512, (pipe_chunk){1, 2, 1, 0, 0});
      pipe_chunk *c = arena_new(&a, pipe_chunk, 64 * v);
      for (int i = 0; i < 64 * v; i++) {
        c[i] = q.chunk[i];
        if (kind) c[i].forward += draw_real(&seed), c[i].backward += draw_real(&seed);
        if (kind == 2) c[i].send = c[i].send_back = 0.1;
      }
      q.chunk = c;
      double best = 1;
      for (int n = 0; n < 8; n++) {
        arena s;
        arena_init(&s);
        struct timespec t0, t1;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        pipe_longest(&s, &q);
        clock_gettime(CLOCK_MONOTONIC, &t1);
        best =
            fmin(best, (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec));
        arena_free(&s);
      }
      static const char *const kinds[] = {"equal", "unequal", "unequal, messages"};
      if (getenv("PIPE_PRINT"))
        print_message("%-12s p=64 v=%d m=512 %-18s %7.1f us\n", pipe_kind_name(q.kind), v,
                      kinds[kind], best * 1e6);
      assert_true(best < (k == PIPE_ONE_F_ONE_B ? 1e-3 : 0.1));
      arena_free(&a);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(orders_run),
      cmocka_unit_test(order_as_written),
      cmocka_unit_test(refused_in_words),
      cmocka_unit_test(closed_forms),
      cmocka_unit_test(bubble_fractions),
      cmocka_unit_test(longest_equals_simulated),
      cmocka_unit_test(skipped_periods),
      cmocka_unit_test(bound_is_below),
      cmocka_unit_test(zero_bubble_is_not_slower),
      cmocka_unit_test(trace_is_sound),
      cmocka_unit_test(large_trace),
      cmocka_unit_test(speed),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
