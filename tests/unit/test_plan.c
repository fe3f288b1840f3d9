// What a pinned plan sends and takes, against formulas of the model's dims alone.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include <math.h>

#include "tests/unit/dims_fixture.h"

static const plan_candidate *pinned(fixture *x, int64_t data, int64_t stages, int64_t tensor,
                                    int zero) {
  plan_pins p = pins_of(data);
  p.size[PLAN_PIPELINE] = stages;
  p.size[PLAN_TENSOR] = tensor;
  p.micro_batch = 2;
  p.interleave = 1;
  p.schedule = PIPE_ONE_F_ONE_B;
  p.zero = zero;
  return best_with(x, &p);
}

static double sent(const plan_candidate *c, plan_axis axis, cl_collective k) {
  return c->bytes.bytes[axis][k][0] + c->bytes.bytes[axis][k][1];
}

static void test_sums(void **state) {
  (void)state;
  static const int mesh[][4] = {{8, 1, 1, 0}, {1, 8, 1, 0}, {1, 1, 8, 0},
                                {2, 2, 2, 1}, {4, 2, 1, 3}, {2, 1, 4, 2}};
  fixture x;
  open_job(&x, "dgx-a100-80g:8");
  for (size_t i = 0; i < sizeof mesh / sizeof *mesh; i++) {
    const plan_candidate *c = pinned(&x, mesh[i][0], mesh[i][1], mesh[i][2], mesh[i][3]);
    double time = 0;
    int64_t bytes = 0, devices = 1;
    for (int t = 0; t < PLAN_TIMES; t++) time += c->time[t];
    for (int m = 0; m < PLAN_MEMORIES; m++) bytes += c->memory[m];
    for (int a = 0; a < PLAN_AXES; a++) devices *= c->choice.size[a];
    assert_true(fabs(time - c->step_s) <= 1e-9 * c->step_s);
    // What is waited for is a part of what links and engines do, and bytes take seconds.
    for (int t = 0; t < PLAN_TIMES; t++)
      if (t != PLAN_T_PIPELINE) assert_true(c->busy[t] >= c->time[t] - 1e-12 * c->step_s);
    assert_true((c->busy[PLAN_T_DATA] > 0) == (mesh[i][0] > 1));
    assert_int_equal(bytes, c->peak);
    assert_int_equal(devices, x.cluster->devices);
    assert_int_equal(c->nstages, mesh[i][1]);
    int64_t layers = 0, micro = c->choice.micro_batches;
    for (int s = 0; s < c->nstages; s++) {
      const plan_stage *p = &c->stage[s];
      layers += p->last_layer - p->first_layer + 1;
      bytes = 0;
      for (int m = 0; m < PLAN_MEMORIES; m++) bytes += p->memory[m];
      assert_int_equal(bytes, p->peak);
      // Stage i of p holds min(m, p - i) micro-batches.
      int64_t most = c->nstages - s;
      assert_int_equal(p->stash, micro < most ? micro : most);
    }
    assert_int_equal(layers, LAYERS);
    assert_int_equal(micro * c->choice.micro_batch * c->choice.size[PLAN_DATA], BATCH);
  }
  arena_free(&x.a);
}

// Each gather and each reduction of a value of b * s * h elements sends (t-1)/t of it.
static void test_tensor_bytes(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:8");
  const plan_candidate *c = pinned(&x, 1, 1, 8, 0);
  double micro = (double)c->choice.micro_batches, value = 2.0 * SEQ * HIDDEN * 7 / 8;
  // A layer: forward both norms are gathered as bf16, both sums scattered as f32; backward what
  // comes in is f32, what reaches attention bf16, both sums f32, and both norms, which were saved
  // cut, are gathered again. Around: embeddings, the last norm, and backward what leaves the
  // layers.
  assert_true(sent(c, PLAN_TENSOR, CL_ALL_GATHER) ==
              micro * value * (LAYERS * (2 + 2 + 4 + 2 + 2 + 2) + 2 + 4));
  assert_true(sent(c, PLAN_TENSOR, CL_REDUCE_SCATTER) == micro * value * (LAYERS * 4 * 4 + 2 * 4));
  assert_int_equal(c->bytes.calls[PLAN_TENSOR][CL_ALL_GATHER], (int64_t)micro * (6 * LAYERS + 2));
  assert_int_equal(c->bytes.calls[PLAN_TENSOR][CL_REDUCE_SCATTER],
                   (int64_t)micro * (4 * LAYERS + 2));
  // The loss over a cut vocabulary: maximum, sum, target's logit of each token. Once a step the
  // gradients of whole weights, whose tokens are cut: both norms and both biases behind sums, f32.
  double loss = micro * 3 * (2.0 * SEQ * 4), whole = (LAYERS * 6 + 2) * HIDDEN * 4;
  assert_true(sent(c, PLAN_TENSOR, CL_ALL_REDUCE) == (loss + whole) * 2 * 7 / 8);
  assert_int_equal(c->bytes.calls[PLAN_TENSOR][CL_ALL_REDUCE], (int64_t)micro * 3 + LAYERS * 6 + 2);
  assert_int_equal(c->tensor_calls_layer[CL_ALL_GATHER], 6);
  assert_int_equal(c->tensor_calls_layer[CL_REDUCE_SCATTER], 4);
  arena_free(&x.a);
}

// Of P parameters in sums of 4 bytes; what is read is 2 bytes, or 4 where no product reads it.
static void test_data_bytes(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:8");
  double vectors = LAYERS * 13.0 * HIDDEN + 2 * HIDDEN;  // biases 3 + 1 + 4 + 1, norms 2 * 2
  double matrices = LAYERS * 12.0 * HIDDEN * HIDDEN + (double)VOCAB * HIDDEN;
  double positions = (double)SEQ * HIDDEN, all = vectors + matrices + positions;
  assert_true(x.parameters == all);
  double sums = 4 * all, read = 2 * matrices + 4 * (vectors + positions), part = 7.0 / 8;
  for (int zero = 0; zero <= 3; zero++) {
    const plan_candidate *c = pinned(&x, 8, 1, 1, zero);
    double micro = (double)c->choice.micro_batches;
    assert_true(micro == 4);
    double reduce = sent(c, PLAN_DATA, CL_ALL_REDUCE);
    double scatter = sent(c, PLAN_DATA, CL_REDUCE_SCATTER);
    double gather = sent(c, PLAN_DATA, CL_ALL_GATHER);
    assert_true(reduce == (zero == 0 ? 2 * part * sums : 0));
    // Cut gradients are brought together after each micro-batch, whole ones once.
    assert_true(scatter == (zero == 0 ? 0 : zero == 1 ? part * sums : micro * part * sums));
    // Cut weights are gathered for forward and again for backward of each micro-batch, but for
    // biases, which backward does not read, and for what is read outside of layers: positions, the
    // last norm and the embedding, whose f32 rows are looked up, once; once a step its rounded copy
    // as the head has it.
    double twice = LAYERS * (2 * 12.0 * HIDDEN * HIDDEN + 4 * 2.0 * HIDDEN);
    double biases = LAYERS * 4 * 11.0 * HIDDEN, rows = (double)VOCAB * HIDDEN;
    double always = 2 * twice + biases + 4 * (2.0 * HIDDEN + positions + rows);
    double three = part * (micro * always + 2 * rows);
    // Whole weights are gathered once, as products read them; the embedding in f32, of which the
    // rounded copy is made.
    double once = read + 2 * rows;
    assert_true(gather == (zero == 0 ? 0 : zero == 3 ? three : part * once));
    assert_int_equal(c->memory[PLAN_M_PARAMETERS], (int64_t)(zero == 3 ? read / 8 : read));
    assert_int_equal(c->memory[PLAN_M_GRADIENTS], (int64_t)(zero >= 2 ? sums / 8 : sums));
    // Two moments, and the f32 masters of what is read in bf16.
    double optimizer = 8 * all + 4 * matrices;
    assert_int_equal(c->memory[PLAN_M_OPTIMIZER], (int64_t)(zero >= 1 ? optimizer / 8 : optimizer));
  }
  arena_free(&x.a);
}

// What tensor ranks hold whole and make parts of (norms, and biases behind sums) they sum once a
// step; only then is it cut among data ranks, all else after each micro-batch.
static void test_late_bytes(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:8");
  for (int zero = 1; zero <= 3; zero++) {
    const plan_candidate *c = pinned(&x, 2, 1, 4, zero);
    double micro = (double)c->choice.micro_batches, each = zero == 1 ? 1 : micro;
    assert_true(micro == 16);
    double late = 4 * (LAYERS * 6 + 2.0) * HIDDEN;
    double cut = (LAYERS * (12.0 * HIDDEN * HIDDEN + 7.0 * HIDDEN) +
                  ((double)VOCAB + SEQ) * HIDDEN);  // qkv's biases 3, the FFN's 4
    assert_true(sent(c, PLAN_DATA, CL_REDUCE_SCATTER) == (each * cut + late) / 2);
  }
  arena_free(&x.a);
}

// A boundary value is b * s * h in f32, cut along the sequence over `tensor`; a stage in the middle
// sends it on and sends a gradient back.
static void test_pipeline_bytes(void **state) {
  (void)state;
  static const int mesh[][3] = {{4, 2, 1}, {2, 4, 1}, {1, 8, 1}, {1, 4, 2}, {1, 2, 4}, {8, 1, 1}};
  fixture x;
  open_job(&x, "dgx-a100-80g:8");
  for (size_t i = 0; i < sizeof mesh / sizeof *mesh; i++) {
    const plan_candidate *c = pinned(&x, mesh[i][0], mesh[i][1], mesh[i][2], 0);
    double value = 2.0 * SEQ * HIDDEN * 4 / mesh[i][2];
    double ways = mesh[i][1] == 1 ? 0 : mesh[i][1] == 2 ? 1 : 2;
    assert_true(sent(c, PLAN_PIPELINE, CL_SEND) == (double)c->choice.micro_batches * ways * value);
  }
  arena_free(&x.a);
}

// The tied table lies on the first and the last stage: where these are all, they reduce its
// gradient; of more, they send each other theirs, and those between know nothing of it.
static void test_tied_bytes(void **state) {
  (void)state;
  fixture x;
  open_job(&x, "dgx-a100-80g:8");
  for (int stages = 2; stages <= 8; stages *= 2) {
    const plan_candidate *c = pinned(&x, 8 / stages, stages, 1, 0);
    double table = 4.0 * VOCAB * HIDDEN;
    double value = (double)c->choice.micro_batches * 2 * SEQ * HIDDEN * 4;
    for (int s = 0; s < stages; s++) {
      const double(*b)[2] = c->stage[s].bytes.bytes[PLAN_PIPELINE];
      bool end = s == 0 || s == stages - 1;
      double ways = end ? 1 : 2, swapped = end && stages > 2 ? table : 0;
      assert_true(b[CL_SEND][0] + b[CL_SEND][1] == ways * value + swapped);
      assert_true(b[CL_ALL_REDUCE][0] + b[CL_ALL_REDUCE][1] == (stages == 2 ? table : 0));
    }
  }
  arena_free(&x.a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sums),           cmocka_unit_test(test_tensor_bytes),
      cmocka_unit_test(test_data_bytes),     cmocka_unit_test(test_late_bytes),
      cmocka_unit_test(test_pipeline_bytes), cmocka_unit_test(test_tied_bytes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
