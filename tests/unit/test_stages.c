// Stage cuts against all cuts there are.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include <math.h>

#include "passes/plan/stages.h"
#include "tests/unit/draw.h"

// Whole numbers, so that sums have no rounding and equal means equal.
static stages_cost cost(uint64_t *s) {
  return (stages_cost){draw_int(s, 0, 20), draw_int(s, 0, 9), draw_int(s, 0, 30)};
}

// All cuts, layer by layer, with sums of its own.
typedef struct all_cuts {
  const stages_job *job;
  const stages_cost (*layer)[12];  // of each kind
  int layers, end[4];
  double slowest, over, step;  // the least of each
} all_cuts;

static void try_cuts(all_cuts *t, int stage, int from) {
  const stages_job *j = t->job;
  if (stage == j->stages - 1) {
    t->end[stage] = t->layers;
    double slowest = 0, over = 0, sum = 0;
    for (int i = 0, l = 0; i < j->stages; i++) {
      const stages_work *w = &j->work[j->kind[i]];
      const stages_cost *layer = t->layer[j->kind[i]];
      double s = 0, bytes = 0, stash = j->stash[i];
      for (; l < t->end[i]; l++) {
        s += layer[l].seconds;
        bytes += layer[l].state + stash * layer[l].kept;
      }
      if (i == 0) s += w->first.seconds, bytes += w->first.state + stash * w->first.kept;
      if (i == j->stages - 1) s += w->last.seconds, bytes += w->last.state + stash * w->last.kept;
      slowest = fmax(slowest, s * j->slowness[i]);
      sum += s * j->slowness[i];
      over = fmax(over, bytes - j->capacity[i]);
    }
    t->over = fmin(t->over, over);
    if (over <= 0) t->slowest = fmin(t->slowest, slowest);
    if (over <= 0) t->step = fmin(t->step, sum + (j->micro - 1) * slowest);
    return;
  }
  for (int to = from; to <= t->layers; to++) {
    t->end[stage] = to;
    try_cuts(t, stage + 1, to);
  }
}

static void equals_all_cuts(void **state) {
  (void)state;
  uint64_t seed = 1;
  int fit = 0, none = 0;
  for (int n = 0; n < 2000; n++) {
    arena a;
    arena_init(&a);
    stages_run run[2][4];
    stages_cost layer[2][12];
    int layers = 0, runs = draw_int(&seed, 1, 4);
    for (int r = 0; r < runs; r++) {
      int count = draw_int(&seed, 0, 3);
      for (int w = 0; w < 2; w++) {
        run[w][r] = (stages_run){cost(&seed), count};
        for (int k = 0; k < count; k++) layer[w][layers + k] = run[w][r].layer;
      }
      layers += count;
    }
    int kind[4];
    double slowness[4], stash[4], capacity[4];
    int stages = draw_int(&seed, 1, 4), room = draw_int(&seed, 20, 300);
    for (int i = 0; i < stages; i++) {
      kind[i] = draw_int(&seed, 0, 1);
      slowness[i] = draw_int(&seed, 1, 3);
      stash[i] = stages - i;
      capacity[i] = room + draw_int(&seed, 0, 50);
    }
    stages_work work[2] = {{run[0], cost(&seed), cost(&seed)}, {run[1], cost(&seed), cost(&seed)}};
    stages_job job = {.work = work,
                      .kinds = 2,
                      .kind = kind,
                      .runs = runs,
                      .stages = stages,
                      .micro = draw_int(&seed, 0, 1) ? draw_int(&seed, 1, 9) : 0,
                      .slowness = slowness,
                      .stash = stash,
                      .capacity = capacity};
    all_cuts t = {.job = &job,
                  .layer = layer,
                  .layers = layers,
                  .slowest = INFINITY,
                  .over = INFINITY,
                  .step = INFINITY};
    try_cuts(&t, 0, 0);
    stages_cut c = stages_find(&a, &job);
    assert_int_equal(c.first[0], 0);
    assert_int_equal(c.first[stages], layers);
    for (int i = 0; i < stages; i++) assert_true(c.first[i] <= c.first[i + 1]);
    if (isinf(t.slowest)) {
      none++;
      assert_false(c.fits);
      assert_true(c.over == t.over && c.over > 0);
    } else {
      fit++;
      assert_true(c.fits && c.over == 0);
      if (job.micro == 0) assert_true(c.slowest == t.slowest);
      double sum = 0;
      for (int i = 0; i < stages; i++) sum += c.seconds[i];
      if (job.micro > 0) assert_true(sum + (job.micro - 1) * c.slowest == t.step);
    }
    // What is said of the stages is true of the cut.
    double slowest = 0, over = 0;
    for (int i = 0; i < stages; i++) {
      const stages_work *w = &work[kind[i]];
      const stages_cost *own = layer[kind[i]];
      stages_cost e = i == 0 ? w->first : (stages_cost){0};
      if (i == stages - 1)
        e.seconds += w->last.seconds, e.kept += w->last.kept, e.state += w->last.state;
      for (int64_t l = c.first[i]; l < c.first[i + 1]; l++)
        e.seconds += own[l].seconds, e.kept += own[l].kept, e.state += own[l].state;
      assert_true(c.seconds[i] == e.seconds * slowness[i]);
      assert_true(c.bytes[i] == e.state + e.kept * stash[i]);
      slowest = fmax(slowest, c.seconds[i]);
      over = fmax(over, c.bytes[i] - capacity[i]);
    }
    assert_true(slowest == c.slowest && over == c.over);
    arena_free(&a);
  }
  if (getenv("PIPE_PRINT")) print_message("%d fit, %d do not\n", fit, none);
  assert_true(fit > 500 && none > 200);
}

static void assert_cut(const stages_job *job, const int64_t *want) {
  arena a;
  arena_init(&a);
  stages_cut c = stages_find(&a, job);
  for (int i = 0; i < job->stages; i++) assert_int_equal(c.first[i + 1] - c.first[i], want[i]);
  arena_free(&a);
}

static void cuts_as_expected(void **state) {
  (void)state;
  stages_run twelve = {{1, 0, 0}, 12}, thirteen = {{1, 0, 0}, 13};
  stages_work work = {.run = &twelve};
  stages_job job = {.work = &work, .kinds = 1, .runs = 1, .stages = 4};
  assert_cut(&job, (const int64_t[]){3, 3, 3, 3});
  work.last.seconds = 2;  // the header's example
  assert_cut(&job, (const int64_t[]){3, 3, 4, 2});
  work.last.seconds = 9;  // a head that is worth a stage
  assert_cut(&job, (const int64_t[]){4, 4, 4, 0});
  work.last.seconds = 0;
  work.run = &thirteen;
  assert_cut(&job, (const int64_t[]){3, 3, 3, 4});
  // A node of half the speed takes half the layers.
  double slow[] = {1, 2, 1, 1};
  stages_run fourteen = {{1, 0, 0}, 14};
  work.run = &fourteen;
  job.slowness = slow;
  assert_cut(&job, (const int64_t[]){4, 2, 4, 4});
}

// 13 layers on 4 stages of 2 chunks: 3 3 3 4, the later chunk first.
static void chunks_as_expected(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  stages_run thirteen = {{1, 0, 0}, 13};
  stages_work work = {.run = &thirteen};
  stages_job job = {.work = &work, .kinds = 1, .runs = 1, .stages = 4};
  stages_cut c = stages_find(&a, &job);
  const int64_t want[] = {1, 1, 1, 2, 2, 2, 2, 2};
  int64_t *first = stages_deal(&a, &c, 4, 2);
  for (int k = 0; k < 8; k++) assert_int_equal(first[k + 1] - first[k], want[k]);
  assert_int_equal(first[8], 13);
  work.last.seconds = 9;  // a head that is worth a stage takes a layer for each chunk all the same
  c = stages_find(&a, &job);
  assert_int_equal(c.first[4] - c.first[3], 0);
  first = stages_deal(&a, &c, 4, 2);
  assert_int_equal(first[4] - first[3], 1);
  assert_int_equal(first[8] - first[7], 1);
  assert_int_equal(first[8], 13);
  arena_free(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(equals_all_cuts),
      cmocka_unit_test(cuts_as_expected),
      cmocka_unit_test(chunks_as_expected),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
