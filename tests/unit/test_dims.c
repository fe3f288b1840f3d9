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
    // What is gathered once and what twice a micro-batch: test_plan.c, test_data_bytes.
    double rows = 2.0 * VOCAB * HIDDEN, outside = 4.0 * HIDDEN * (2 + SEQ);
    double biases = LAYERS * 4 * 11.0 * HIDDEN, layers = x.read - rows - outside;
    double three = micro * (2 * layers - biases + outside + 2 * rows) + rows;
    assert_true(sent[CL_ALL_GATHER][0] == in * (zero == 3 ? three : x.read + rows));
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

// ---- two kinds of layers ------------------------------------------------------------------------

// The cluster with `memory` bytes on each device beside what is reserved.
static const cl_cluster *with_memory(fixture *x, const cl_cluster *c, int64_t memory) {
  cl_level *node = arena_new(&x->a, cl_level, 1);
  *node = *cl_node_of(c, 0, &(int64_t){0}, &(int64_t){0});
  cl_device *d = arena_new(&x->a, cl_device, 1);
  *d = *cl_device_at(c, 0);
  d->memory = memory + d->reserve;
  cl_member *m = arena_new(&x->a, cl_member, 1);
  *m = (cl_member){.count = c->devices, .device = d};
  node->member = m;
  return cl_cluster_make(&x->a, "small", cl_level_make(&x->a, node));
}

// Time and memory are linear in the layers that are computed again: as few as the memory asks for.
static void test_mixed(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:2");
  const cl_cluster *large = x.cluster;
  plan_pins p = pins_of(1);
  p.size[PLAN_TENSOR] = 2;
  p.micro_batch = 8;
  p.also = PLAN_KEEP;
  const plan_candidate *none = best_with(&x, &p);
  p.recompute = PLAN_FULL;
  const plan_candidate *full = best_with(&x, &p);
  p.recompute = PLAN_KEEP;
  p.also = PLAN_FULL;
  double saves = (double)(none->memory[PLAN_M_ACTIVATIONS] - full->memory[PLAN_M_ACTIVATIONS]);
  double costs = full->step_s - none->step_s;
  assert_true(saves > 0 && costs > 0);
  double most = (double)none->peak;  // when all is kept, at the head
  for (int n = 1; n < LAYERS; n++) {
    // Room for n layers of 8 computed again, but not for n - 1.
    x.cluster = with_memory(&x, large, (int64_t)(most - saves * (n - 0.5) / LAYERS));
    const plan_candidate *c = best_with(&x, &p);
    assert_int_equal(c->nlayers, 2);
    assert_int_equal(c->layers[0].last, n - 1);
    assert_int_equal(c->layers[0].recompute, PLAN_FULL);
    assert_int_equal(c->layers[1].first, n);
    assert_int_equal(c->layers[1].recompute, PLAN_KEEP);
    assert_true(fabs((double)c->peak - (most - saves * n / LAYERS)) < 8);
    assert_true(fabs(c->step_s - none->step_s - costs * n / LAYERS) < 1e-9 * c->step_s);
    double hfu = none->hfu * none->step_s;
    hfu += (full->hfu * full->step_s - hfu) * n / LAYERS;
    assert_true(fabs(c->hfu * c->step_s - hfu) < 1e-9 * hfu);
    // Free to choose, the search finds this or something faster, and exhaustive search the same.
    plan_pins open = p;
    open.recompute = open.also = -1;
    const plan_candidate *fast = best_with(&x, &open);
    const plan_candidate *all = search_with(&x, &open, true)->best;
    assert_true(fast->step_s <= c->step_s && fast->step_s == all->step_s);
  }
  arena_free(&x.a);
}

// ---- ulysses and ring ---------------------------------------------------------------------------

// SYSTEMS.md A4: what goes round a ring of r makes r - 1 hops, of which r / w - 1 leave the node
// when w ranks of the ring lie in it. What ulysses exchanges stays inside a node when its ranks
// lie closer.
static void test_double_ring(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:32");
  for (int context = 0; context < 2; context++) {
    plan_pins p = pins_of(1);
    p.size[PLAN_ULYSSES] = 2;
    p.size[PLAN_RING] = 16;
    p.context_first = context;
    const plan_candidate *c = best_with(&x, &p);
    assert_true(c->choice.context_first == (context != 0));
    assert_int_equal(c->choice.order[PLAN_AXES - 2], context ? PLAN_RING : PLAN_ULYSSES);
    double w = context ? 8 : 4, r = 16;
    assert_int_equal(c->ring_inner, (int64_t)w);
    const double *ring = c->bytes.bytes[PLAN_RING][CL_ALL_GATHER];
    assert_true(ring[1] > 0);
    assert_true(ring[1] * (r - 1) == (ring[0] + ring[1]) * (r / w - 1));
    double heads[2] = {0};
    for (int k = 0; k < CL_COLLECTIVES; k++)
      for (int far = 0; far < 2; far++) heads[far] += c->bytes.bytes[PLAN_ULYSSES][k][far];
    assert_true(heads[context] > 0 && heads[!context] == 0);
  }
  // Free, the search takes the faster one, and offers both only where they differ.
  plan_pins p = pins_of(1);
  p.size[PLAN_ULYSSES] = 2;
  p.size[PLAN_RING] = 16;
  double best = INFINITY;
  for (p.context_first = 0; p.context_first < 2; p.context_first++)
    best = fmin(best, best_with(&x, &p)->step_s);
  p.context_first = -1;
  assert_true(best_with(&x, &p)->step_s == best);
  int64_t both = search_with(&x, &p, false)->search.points;
  p.context_first = 0;
  assert_int_equal(both, 2 * search_with(&x, &p, false)->search.points);
  p.context_first = -1;
  p.size[PLAN_DATA] = 8, p.size[PLAN_RING] = 2;
  int64_t near = search_with(&x, &p, false)->search.points;
  p.context_first = 0;
  assert_int_equal(near, search_with(&x, &p, false)->search.points);
  arena_free(&x.a);
}

// SYSTEMS.md A2 and A3, per rank, layer and micro-batch, for a text that keeps 16 bits between its
// ops. Forward four tensors change from tokens to heads or back, backward their gradients do, and
// what attention made, which is saved in one of its two forms, once more. Keys and values go round
// the ring forward and backward, their gradients back to whom they belong, summed on the way.
static void test_sequence_bytes(void **state) {
  (void)state;
  fixture x;
  open_text(&x, "bench/published/gpt2024.dsm", "dgx-a100-80g:8");
  for (int u = 1; u <= 8; u *= 2) {
    int r = 8 / u;
    plan_pins p = pins_of(1);
    p.size[PLAN_ULYSSES] = u;
    p.size[PLAN_RING] = r;
    const plan_candidate *c = best_with(&x, &p);
    double micro = (double)c->choice.micro_batches, layers = LAYERS, e = 2;
    double tokens = (double)SEQ / (u * r), own = tokens * HIDDEN * e;
    double heads = (u - 1.0) / u * own, hops = (r - 1.0) * ((double)SEQ / r) * HIDDEN / u * e;
    const double(*ulysses)[2] = c->bytes.bytes[PLAN_ULYSSES],
          (*ring)[2] = c->bytes.bytes[PLAN_RING];
    assert_true(ulysses[CL_ALL_TO_ALL][0] == micro * layers * (4 + 4 + 1) * heads);
    assert_true(ring[CL_REDUCE_SCATTER][0] == micro * layers * 2 * hops);
    // Beside layers, the gradient of positions is made of whole rows, in 16 bits: ulysses ranks
    // gather those of their ring rank, ring ranks then all.
    double rows = micro * own * 8;
    assert_true(ring[CL_ALL_GATHER][0] == micro * layers * (2 + 2) * hops + rows * (r - 1.0) / r);
    assert_true(ulysses[CL_ALL_GATHER][0] == rows * (u - 1.0) / u / r);
  }
  arena_free(&x.a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_group_bytes),    cmocka_unit_test(test_group_values),
      cmocka_unit_test(test_home_bytes),     cmocka_unit_test(test_update_bytes),
      cmocka_unit_test(test_home_seconds),   cmocka_unit_test(test_home_capacity),
      cmocka_unit_test(test_mixed),          cmocka_unit_test(test_double_ring),
      cmocka_unit_test(test_sequence_bytes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
