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
  const stages_cost *layer;
  int layers, end[4];
  double slowest, over;  // the least of each
} all_cuts;

static void try_cuts(all_cuts *t, int stage, int from) {
  const stages_job *j = t->job;
  if (stage == j->stages - 1) {
    t->end[stage] = t->layers;
    double slowest = 0, over = 0;
    for (int i = 0, l = 0; i < j->stages; i++) {
      double s = 0, bytes = 0, stash = j->stash[i];
      for (; l < t->end[i]; l++) {
        s += t->layer[l].seconds;
        bytes += t->layer[l].state + stash * t->layer[l].kept;
      }
      if (i == 0) s += j->first.seconds, bytes += j->first.state + stash * j->first.kept;
      if (i == j->stages - 1) s += j->last.seconds, bytes += j->last.state + stash * j->last.kept;
      slowest = fmax(slowest, s * j->slowness[i]);
      over = fmax(over, bytes - j->capacity[i]);
    }
    t->over = fmin(t->over, over);
    if (over <= 0) t->slowest = fmin(t->slowest, slowest);
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
    stages_run run[4];
    stages_cost layer[12];
    int layers = 0, runs = draw_int(&seed, 1, 4);
    for (int r = 0; r < runs; r++) {
      run[r] = (stages_run){cost(&seed), draw_int(&seed, 0, 3)};
      for (int k = 0; k < run[r].count; k++) layer[layers++] = run[r].layer;
    }
    double slowness[4], stash[4], capacity[4];
    int stages = draw_int(&seed, 1, 4), room = draw_int(&seed, 20, 300);
    for (int i = 0; i < stages; i++) {
      slowness[i] = draw_int(&seed, 1, 3);
      stash[i] = stages - i;
      capacity[i] = room + draw_int(&seed, 0, 50);
    }
    stages_job job = {.run = run,
                      .runs = runs,
                      .first = cost(&seed),
                      .last = cost(&seed),
                      .stages = stages,
                      .slowness = slowness,
                      .stash = stash,
                      .capacity = capacity};
    all_cuts t = {
        .job = &job, .layer = layer, .layers = layers, .slowest = INFINITY, .over = INFINITY};
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
      assert_true(c.slowest == t.slowest);
    }
    // What is said of the stages is true of the cut.
    double slowest = 0, over = 0;
    for (int i = 0; i < stages; i++) {
      stages_cost e = i == 0 ? job.first : (stages_cost){0};
      if (i == stages - 1)
        e.seconds += job.last.seconds, e.kept += job.last.kept, e.state += job.last.state;
      for (int64_t l = c.first[i]; l < c.first[i + 1]; l++)
        e.seconds += layer[l].seconds, e.kept += layer[l].kept, e.state += layer[l].state;
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
  stages_job job = {.run = &twelve, .runs = 1, .stages = 4};
  assert_cut(&job, (const int64_t[]){3, 3, 3, 3});
  job.last.seconds = 2;  // the header's example
  assert_cut(&job, (const int64_t[]){3, 3, 4, 2});
  job.last.seconds = 9;  // a head that is worth a stage
  assert_cut(&job, (const int64_t[]){4, 4, 4, 0});
  job.last.seconds = 0;
  job.run = &thirteen;
  assert_cut(&job, (const int64_t[]){3, 3, 3, 4});
  // A node of half the speed takes half the layers.
  double slow[] = {1, 2, 1, 1};
  stages_run fourteen = {{1, 0, 0}, 14};
  job.run = &fourteen;
  job.slowness = slow;
  assert_cut(&job, (const int64_t[]){4, 2, 4, 4});
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(equals_all_cuts),
      cmocka_unit_test(cuts_as_expected),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
