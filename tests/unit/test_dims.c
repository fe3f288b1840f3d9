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

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_group_bytes),
      cmocka_unit_test(test_group_values),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
