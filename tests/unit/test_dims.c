// Dimensions of the space of plans: what each sends, holds and takes, against formulas of the
// model's dims alone (SYSTEMS.md part A and B).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "passes/plan/homes.h"
#include "tests/unit/dims_fixture.h"

// ---- ranks that share a state -------------------------------------------------------------------

// Four nodes of 8. States are cut over the 8 ranks of a node: gradients are reduce-scattered there
// and all-reduced over the 4 nodes, weights are gathered inside the node.
static void test_group_bytes(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:32");
  for (int zero = 1; zero <= 3; zero++) {
    plan_pins p = pins_of(32);
    p.zero = zero;
    p.zero_group = 8;
    const plan_candidate *c = best_with(&x, &p);
    double micro = (double)c->choice.micro_batches, in = 7.0 / 8, times = zero == 1 ? 1 : micro;
    assert_true(micro == 2);
    assert_int_equal(c->choice.zero_group, 8);
    const double(*sent)[2] = c->bytes.bytes[PLAN_DATA];
    assert_true(sent[CL_REDUCE_SCATTER][0] == times * in * x.sums);
    assert_true(sent[CL_REDUCE_SCATTER][1] == 0);
    assert_true(sent[CL_ALL_REDUCE][0] == 0);
    assert_true(sent[CL_ALL_REDUCE][1] == 2 * 3.0 / 4 * x.sums / 8);
    assert_true(sent[CL_ALL_GATHER][0] == (zero == 3 ? 2 * micro : 1) * in * x.read);
    assert_true(sent[CL_ALL_GATHER][1] == 0);
    assert_int_equal(c->bytes.calls[PLAN_DATA][CL_ALL_REDUCE], 1);
    assert_int_equal(c->memory[PLAN_M_PARAMETERS], (int64_t)(zero == 3 ? x.read / 8 : x.read));
    assert_int_equal(c->memory[PLAN_M_GRADIENTS], (int64_t)(zero >= 2 ? x.sums / 8 : x.sums));
    assert_int_equal(c->memory[PLAN_M_OPTIMIZER], (int64_t)(x.moments / 8));
  }
  arena_free(&x.a);
}

// Which groups the space has: all ranks, and those that end where nodes do.
static void test_group_values(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:32");
  // data, pipeline, tensor, ulysses, order; the groups
  static const int64_t of[][8] = {
      {32, 1, 1, 1, 0, 32, 8}, {8, 1, 4, 1, 0, 8, 2}, {8, 4, 1, 1, 0, 8},   {8, 4, 1, 1, 1, 8, 2},
      {16, 1, 1, 2, 0, 32, 8}, {4, 1, 8, 1, 0, 4},    {1, 1, 1, 16, 0, 16}, {2, 4, 1, 4, 0, 8}};
  const plan_dim *dim;
  int n = plan_dims(&dim), at = 0;
  while (at < n && !str_eq(dim[at].name, "group")) at++;
  plan_space s = {.a = &x.a, .job = &x.job, .cluster = x.cluster, .pins = plan_pins_none()};
  for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
    plan_choice c = plan_choice_start(&s);
    c.size[PLAN_DATA] = of[i][0], c.size[PLAN_PIPELINE] = of[i][1];
    c.size[PLAN_TENSOR] = of[i][2], c.size[PLAN_ULYSSES] = of[i][3];
    c.zero = 1;
    for (int d = 0; d < n; d++)
      if (str_eq(dim[d].name, "order")) dim[d].set(&s, &c, of[i][4]);
    int64_t out[PLAN_VALUES];
    int k = dim[at].values(&s, &c, out), want = 0;
    while (want < 2 && of[i][5 + want]) want++;
    assert_int_equal(k, want);
    for (int j = 0; j < k; j++) assert_int_equal(out[j], of[i][5 + j]);
  }
  arena_free(&x.a);
}

// ---- homes --------------------------------------------------------------------------------------

static void put_away(plan_pins *p, int parameters, int gradients, int optimizer, int activations) {
  p->home[PLAN_PARAMETERS] = parameters;
  p->home[PLAN_GRADIENTS] = gradients;
  p->home[PLAN_OPTIMIZER] = optimizer;
  p->home[PLAN_ACTIVATIONS] = activations;
}

// SYSTEMS.md B1: a rank fetches its part of the weights, 1/N with ZeRO 3, for forward and for
// backward of each micro-batch; sums of gradients go out each time and come in but for the first;
// the optimizer on the host needs no more, one on the disk is read and written.
static void test_home_bytes(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:8");
  for (int zero = 0; zero <= 3; zero += 3) {
    plan_pins p = pins_of(8);
    p.zero = zero;
    const plan_candidate *here = best_with(&x, &p);
    put_away(&p, PLAN_HOST, PLAN_HOST, PLAN_HOST, PLAN_HOST);
    const plan_candidate *c = best_with(&x, &p);
    double micro = (double)c->choice.micro_batches, ranks = zero ? 8 : 1;
    assert_true(micro == 8);
    // A weight that two pieces read is fetched for both: the tied table, by embedding and head.
    double table = 2.0 * VOCAB * HIDDEN, fetched = 2 * micro * (x.read + table) / ranks;
    assert_true(c->moved[PLAN_PARAMETERS][0] == fetched);
    assert_true(c->moved[PLAN_PARAMETERS][1] == 0);
    double gradients = (x.sums + 2 * table) / ranks;
    assert_true(fabs(c->moved[PLAN_GRADIENTS][1] - micro * gradients) < 1);
    assert_true(fabs(c->moved[PLAN_GRADIENTS][0] - (micro - 1) * gradients) < 1);
    assert_true(c->moved[PLAN_OPTIMIZER][0] == 0 && c->moved[PLAN_OPTIMIZER][1] == 0);
    // What is saved goes out once and comes in once.
    double saved = micro * (double)here->memory[PLAN_M_ACTIVATIONS];
    assert_true(fabs(c->moved[PLAN_ACTIVATIONS][0] - saved) < 8);
    assert_true(fabs(c->moved[PLAN_ACTIVATIONS][1] - saved) < 8);
    assert_int_equal(c->stage[0].host, (int64_t)((x.read + x.sums + x.moments) / ranks) +
                                           here->memory[PLAN_M_ACTIVATIONS]);
    // Two slots each for the largest piece, a layer.
    assert_int_equal(c->memory[PLAN_M_OPTIMIZER], 0);
    double layer = 2 * 12.0 * HIDDEN * HIDDEN + 4 * 13.0 * HIDDEN;
    assert_int_equal(c->memory[PLAN_M_PARAMETERS], (int64_t)(2 * layer / ranks));
    assert_true(c->memory[PLAN_M_ACTIVATIONS] < here->memory[PLAN_M_ACTIVATIONS] / 3);
    assert_true(c->step_s > here->step_s && c->peak < here->peak);

    put_away(&p, PLAN_DISK, PLAN_HOST, PLAN_DISK, PLAN_DEVICE);
    const plan_candidate *d = best_with(&x, &p);
    assert_true(d->moved_disk[PLAN_PARAMETERS][0] == fetched);
    assert_true(d->moved_disk[PLAN_PARAMETERS][1] == x.read / ranks);
    for (int way = 0; way < 2; way++)
      assert_true(d->moved_disk[PLAN_OPTIMIZER][way] == x.moments / ranks);
    assert_int_equal(d->stage[0].disk, (int64_t)((x.read + x.moments) / ranks));
    assert_true(d->step_s > c->step_s);
  }
  arena_free(&x.a);
}

// Around an update on the host: a rank's part of the gradients goes, of the weights comes back.
static void test_update_bytes(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:8");
  plan_pins p = pins_of(8);
  p.zero = 1;
  put_away(&p, PLAN_DEVICE, PLAN_DEVICE, PLAN_HOST, PLAN_DEVICE);
  const plan_candidate *c = best_with(&x, &p);
  assert_true(c->moved[PLAN_GRADIENTS][0] == 0 && c->moved[PLAN_GRADIENTS][1] == x.sums / 8);
  assert_true(c->moved[PLAN_PARAMETERS][0] == x.read / 8 && c->moved[PLAN_PARAMETERS][1] == 0);
  double ways = (x.sums + x.read) / 8 / 25e9 + 2 * 10e-6;
  assert_true(fabs(c->time[PLAN_T_OFFLOAD] - ways) < 1e-12);
  assert_int_equal(c->memory[PLAN_M_OPTIMIZER], 0);
  assert_int_equal(c->stage[0].host, (int64_t)((x.moments + x.sums) / 8));
  arena_free(&x.a);
}

// What is slower than the phase it hides behind is waited for, the rest costs nothing.
static void test_home_seconds(void **state) {
  (void)state;
  plan_choice c = {.micro_batches = 4, .zero_group = 1, .home = {PLAN_HOST, 0, 0, PLAN_HOST}};
  hm_store st = {.host = 1, .host_rate = 100, .host_wait = 0.5};
  bl_state own = {.parameter = 300, .gradient = 600};
  hm_moves m = hm_phase(&c, &own, 1000, PG_FORWARD);
  assert_true(hm_seconds(&st, &m) == 10.5);  // 1000 out beside 300 in
  m = hm_phase(&c, &own, 1000, PG_BACKWARD);
  assert_true(hm_seconds(&st, &m) == 13.5);  // 1300 in
  c.home[PLAN_GRADIENTS] = PLAN_HOST;
  m = hm_phase(&c, &own, 1000, PG_BACKWARD);
  assert_true(m.link[PLAN_GRADIENTS][HM_IN] == 450 && m.link[PLAN_GRADIENTS][HM_OUT] == 600);
  assert_true(hm_seconds(&st, &m) == 18.0);
}

// A capacity that is exceeded refuses the plan, on the host as on the device.
static void test_home_capacity(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:8");
  cl_level node = *cl_node_of(x.cluster, 0, &(int64_t){0}, &(int64_t){0});
  plan_pins p = pins_of(8);
  put_away(&p, PLAN_HOST, PLAN_DEVICE, PLAN_DEVICE, PLAN_DEVICE);
  node.host.size = 8 * (int64_t)(x.read + 1);
  x.cluster = cl_cluster_make(&x.a, "full", cl_level_make(&x.a, &node));
  assert_non_null(search_with(&x, &p, false)->best);
  node.host.size = 8 * (int64_t)(x.read - 1);
  x.cluster = cl_cluster_make(&x.a, "short", cl_level_make(&x.a, &node));
  plan_result *r = search_with(&x, &p, false);
  assert_null(r->best);
  assert_non_null(r->closest);
  assert_true(r->closest->over == 1 && r->closest->peak <= r->closest->capacity);
  node.host.size = 0;
  x.cluster = cl_cluster_make(&x.a, "none", cl_level_make(&x.a, &node));
  r = search_with(&x, &p, false);
  assert_null(r->closest);
  assert_non_null(strstr(r->rejected.at[0].reason, "no host memory"));
  arena_free(&x.a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_group_bytes),  cmocka_unit_test(test_group_values),
      cmocka_unit_test(test_home_bytes),   cmocka_unit_test(test_update_bytes),
      cmocka_unit_test(test_home_seconds), cmocka_unit_test(test_home_capacity),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
