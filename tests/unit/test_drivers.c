// The drivers (train, eval, generate, info) on a hand-made program.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>
#include <jansson.h>

#include "runtime/base/str.h"
#include "runtime/check.h"
#include "runtime/checkpoint.h"
#include "tests/unit/driver_fixture.h"

static void test_trains(void **state) {
  world *w = *state;
  expect(w, 0, "train --data @/corpus.txt --log @/log --save @/ck --save-every 10 --threads 2");
  has(w->out, "toy: 66.3 k parameters");
  has(w->out, "step 40/40");
  has(w->out, "loss 5.5");
  has(w->out, "process peak");
  has(w->out, "generate --load");
  char *log = read_file(path(w, "log"));
  has(log, "{\"step\": 1, \"loss\": 5.5");
  has(log, "\"grad_norm\": ");
  has(log, "\"tokens\": 32,");
  has(log, "\"peak_bytes\": ");
  has(log, "\"page_faults\": ");
  free(log);
  expect(w, 0, "eval --data @/corpus.txt --load @/ck");
  has(w->out, "loss ");
  assert_true(atof(w->out + 5) < 2.0);
  expect(w, 0, "generate --load @/ck --prompt the --tokens 12 --temperature 0 -v");
  has(w->out, "the");
  has(w->err, "tokens/s");
  assert_int_equal(w->nout, 3 + 12 + 1);
}

static void test_threads_do_not_matter(void **state) {
  world *w = *state;
  expect(w, 0, "train --data @/corpus.txt --log @/a --threads 1 --steps 10");
  expect(w, 0, "train --data @/corpus.txt --log @/b --threads 5 --steps 10 -q");
  assert_string_equal(w->out, "");
  char *a = losses(path(w, "a")), *b = losses(path(w, "b"));
  assert_string_equal(a, b);
  free(a);
  free(b);
}

static void test_resume_gives_the_same_bits(void **state) {
  world *w = *state;
  expect(w, 0, "train --data @/corpus.txt --log @/a --save @/ck_a");
  stop_at = 13;
  expect(w, 75, "train --data @/corpus.txt --log @/b --save @/ck_b --resume @/ck_b");
  has(w->err, "no checkpoint in");
  has(w->err, "stopped by SIGTERM after step 13 of 40");
  stop_flag = 0;
  stop_at = 14;
  expect(w, 75, "train --data @/corpus.txt --log @/b --resume @/ck_b");
  stop_flag = 0;
  expect(w, 0, "train --data @/corpus.txt --log @/b --resume @/ck_b --threads 3");
  has(w->out, "resumed at step 14 of 40");
  char *a = losses(path(w, "a")), *b = losses(path(w, "b"));
  assert_string_equal(a, b);
  free(a);
  free(b);
  char cmd[300];
  snprintf(cmd, sizeof cmd,
           "cd %s && for f in weights optimizer; do cmp ck_a/step-00000040/$f.safetensors "
           "ck_b/step-00000040/$f.safetensors || exit 1; done",
           w->dir);
  assert_int_equal(system(cmd), 0);
  expect(w, 0, "train --data @/corpus.txt --resume @/ck_b");
  has(w->out, "nothing to do");
}

static void test_stop_without_a_place_to_save(void **state) {
  world *w = *state;
  stop_at = 3;
  expect(w, 143, "train --data @/corpus.txt");
  has(w->err, "nothing was saved");
}

static void test_does_not_mix_runs(void **state) {
  world *w = *state;
  expect(w, 0, "train --data @/corpus.txt --steps 2 --save @/ck");
  expect(w, 1, "train --data @/corpus.txt --steps 2 --save @/ck");
  has(w->err, "already holds checkpoints (step 2)");
  expect(w, 1, "train --data @/corpus.txt --resume @/ck --steps 4 --seed 9");
  has(w->err, "seed");
}

// ---- values that are not finite ----------------------------------------------------------------

static float spoil_with;
static int64_t spoil_step, spoil_times;
static bool spoil_loss;

// Spoils micro-batch 1 of a step, as often as it is done.
static void spoil(const dsm_call *call, float *grad, float *rows) {
  if (call->step + 1 != spoil_step || call->micro != 1 || spoil_times-- <= 0) return;
  if (spoil_loss) rows[0] = spoil_with;
  if (!spoil_loss) grad[5] = grad[7] = spoil_with;
}

static void spoil_from(float value, int64_t step, int64_t times, bool loss) {
  spoil_with = value;
  spoil_step = step;
  spoil_times = times;
  spoil_loss = loss;
  toy_spoil = spoil;
}

static void same_saves(world *w, const char *a, const char *b) {
  char cmd[400];
  snprintf(cmd, sizeof cmd,
           "cd %s && for f in weights optimizer; do cmp %s/$f.safetensors %s/$f.safetensors || "
           "exit 1; done",
           w->dir, a, b);
  assert_int_equal(system(cmd), 0);
}

static void test_bad_gradient_changes_nothing(void **state) {
  world *w = *state;
  expect(w, 0, "train --data @/corpus.txt --steps 9 --save @/good --save-every 1 --keep 20");
  spoil_from(NAN, 3, 1000, false);
  expect(w, 5, "train --data @/corpus.txt --steps 9 --save @/ck --save-every 5 --log @/log");
  has(w->err, "error: the gradient norm is NaN at step 3 (lr ");
  has(w->err,
      "\n  the first NaN is made by `grad %grad line 3` in task gradients, micro-batch 1 "
      "(samples 10 .. 11): element 5 of 65536, and 1 more\n");
  has(w->err, "\n  the step changed no weight\n");
  has(w->err, "\n  the last checkpoint is step 2 in ");
  assert_null(strstr(w->err, "Inf"));
  assert_null(strstr(w->err, "gave other numbers"));
  // What was saved is step 2 as it would have been, and training goes on from it.
  assert_int_equal(ck_newest_step(path(w, "ck")), 2);
  same_saves(w, "good/step-00000002", "ck/step-00000002");
  char *log = read_file(path(w, "log"));
  has(log, "{\"step\": 3, \"loss\": 2.");
  has(log, "\"grad_norm\": null");
  free(log);
  toy_spoil = NULL;
  expect(w, 0, "train --data @/corpus.txt --steps 9 --resume @/ck");
  same_saves(w, "good/step-00000009", "ck/step-00000009");
}

static void test_bad_loss(void **state) {
  world *w = *state;
  spoil_from(INFINITY, 1, 1000, true);
  expect(w, 5, "train --data @/corpus.txt --save @/ck");
  has(w->err, "error: loss is +Inf at step 1 (lr ");
  has(w->err, "the first +Inf is made by `grad %grad line 3`");
  has(w->err, "(samples 2 .. 3): element 0 of 256\n");
  assert_null(strstr(w->err, "NaN"));
  // Initial weights are not worth a checkpoint.
  has(w->err, "nothing was saved");
  assert_int_equal(ck_newest_step(path(w, "ck")), -1);
}

static void test_bad_machine(void **state) {
  world *w = *state;
  spoil_from(NAN, 2, 1, false);
  expect(w, 5, "train --data @/corpus.txt");
  has(w->err, "the gradient norm is NaN at step 2");
  has(w->err, "gave other numbers: faulty hardware");
  assert_null(strstr(w->err, "made by"));
}

static void test_bad_update(void **state) {
  world *w = *state;
  // Learning rate 1e39 is infinite as f32: step 1 is fine, what it makes of the weights is not.
  expect(w, 5, "train --data @/corpus.txt --set lr=1e39,schedule=constant --save @/ck");
  has(w->err, "error: loss is NaN at step 2");
  has(w->err, "weight wte.weight is ");
  has(w->err, " of [256, 256]: the update of step 1 or one before made it");
  has(w->err, "nothing was saved");
  assert_int_equal(ck_newest_step(path(w, "ck")), -1);
  expect(w, 5,
         "train --data @/corpus.txt --set lr=1e39,schedule=constant --save @/ck --save-every 1");
  has(w->err, "error: weight wte.weight is ");
  has(w->err, " after step 1: not saved");
  assert_int_equal(ck_newest_step(path(w, "ck")), -1);
}

static void test_bad_evaluation(void **state) {
  world *w = *state;
  spoil_from(-INFINITY, 1, 1000, true);  // evaluation counts no steps
  expect(w, 5, "eval --data @/corpus.txt");
  has(w->err,
      "error: the evaluation loss is -Inf\n  the first -Inf is made by `grad %grad line 3` "
      "in task eval.loss, micro-batch 1 (samples 2 .. 3): element 0 of 256\n");
}

// A program that changes states before its loss is known cannot be held back, and says so.
static void test_bad_step_that_cannot_be_held(void **state) {
  world *w = *state;
  const prog *p = &w->img.prog;
  const prog_entry *e = prog_entry_of(p, PROG_TRAIN);
  const prog_io *watched[] = {prog_output(p, e, "loss"), prog_output(p, e, "grad_norm")};
  assert_int_equal(check_split(p, e, watched, 2), 4);
  const prog_instr *grad = &p->instrs[p->tasks[p->runs[e->first_run + 2].task].first_instr];
  prog_operand *o = (prog_operand *)(uintptr_t)&p->operands[grad->first_operand + 2];
  o->writes = 3;
  assert_int_equal(check_split(p, e, watched, 2), e->runs);
  spoil_from(NAN, 3, 1000, false);
  expect(w, 5, "train --data @/corpus.txt --save @/ck");
  has(w->err, "the gradient norm is NaN at step 3");
  has(w->err, "weight wte.weight is NaN at element 5 of [256, 256]\n");
  has(w->err, "step 3 is in the weights already");
  has(w->err, "nothing was saved");
  assert_null(strstr(w->err, "changed no weight"));
}

// ---- settings, usage ---------------------------------------------------------------------------

static void test_settings(void **state) {
  world *w = *state;
  expect(w, 0,
         "train --data @/corpus.txt --set steps=3,optimizer.lr=2,schedule.warmup=0 --log @/log");
  char *log = read_file(path(w, "log"));
  has(log, "{\"step\": 3,");
  has(log, "\"lr\": 2,");
  assert_null(strstr(log, "\"step\": 4"));
  free(log);
  expect(w, 1, "train --data @/corpus.txt --set batch=8");
  has(w->err, "rebuild with `dsmc build --set batch=8`");
  expect(w, 1, "train --data @/corpus.txt --set clip=1");
  has(w->err, "rebuild");
  expect(w, 1, "train --data @/corpus.txt --set stepz=8");
  has(w->err, "did you mean `steps`?");
  expect(w, 1, "train --data @/corpus.txt --set lr=fast");
  has(w->err, "not a number");
  expect(w, 1, "train --data @/corpus.txt --set schedule=spiral");
  has(w->err, "constant, cosine, linear");
}

static void test_usage(void **state) {
  world *w = *state;
  expect(w, 2, "trian");
  assert_string_equal(w->err, "error: unknown verb `trian`; did you mean `train`?\n");
  expect(w, 2, "train --step 4");
  assert_string_equal(w->err, "error: unknown option --step; did you mean `--steps`?\n");
  expect(w, 2, "train --prompt x");
  has(w->err, "has no option --prompt");
  expect(w, 2, "train --steps");
  has(w->err, "needs N");
  expect(w, 2, "train --steps many");
  has(w->err, "whole number");
  expect(w, 2, "train now");
  expect(w, 2, "");
  expect(w, 0, "--help");
  has(w->out, "generate");
  expect(w, 0, "train --help");
  has(w->out, "--save-every N");
  expect(w, 0, "--version");
  has(w->out, "dsmc test");
  expect(w, 1, "train");
  has(w->err, "--data FILE");
  expect(w, 1, "train --data @/none.txt");
  has(w->err, "there is no data file");
}

static void test_info_and_schedule(void **state) {
  world *w = *state;
  expect(w, 0, "info");
  has(w->out, "toy, 66.3 k parameters (66304)");
  has(w->out, "train.optimizer.lr");
  has(w->out, "129.5 KiB  copies of weights in bf16");
  expect(w, 0, "info --json");
  has(w->out, "\"copies\": 132608");
  has(w->out, "\"parameters\": 66304");
  has(w->out, "\"schema\": \"dsm-info-1\"");
  expect(w, 0, "schedule");
  has(w->out, "loop micro 0 .. 1");
  has(w->out, "layers 0 .. 2  update.h");
  has(w->out, "launch  update.bias x1");
}

static void test_eval_while_training(void **state) {
  world *w = *state;
  expect(w, 0,
         "train --data @/corpus.txt --steps 4 --eval @/corpus.txt --eval-every 2 --profile --peak "
         "100");
  has(w->out, "step 2  eval loss ");
  has(w->out, "step 4  eval loss ");
  has(w->out, "MFU");
  has(w->out, "PROFILE");
  assert_null(strstr(w->out, "eval.loss"));  // a profile is about steps
}

// ---- profile and trace --------------------------------------------------------------------------

// The number of runs or calls in the row of a table that ends with `name`.
static long row_count(const char *text, const char *name) {
  char end[64], share[8];
  snprintf(end, sizeof end, "  %s\n", name);
  const char *at = strstr(text, end);
  if (!at) fail_msg("no row `%s` in:\n%s", name, text);
  while (at > text && at[-1] != '\n') at--;
  double seconds, percent;
  long n;
  if (sscanf(at, "%lf %lf %7s %ld", &seconds, &percent, share, &n) != 4)
    fail_msg("`%.80s` is no row", at);
  assert_true(seconds >= 0 && percent >= 0 && percent <= 100);
  return n;
}

static void test_profile(void **state) {
  world *w = *state;
  expect(w, 0, "train --data @/corpus.txt --steps 6 --log @/a");
  assert_null(strstr(w->out, "PROFILE"));
  expect(w, 0, "train --data @/corpus.txt --steps 6 --log @/b --profile --threads 2");
  has(w->out, "ms a step, mean of 5; the first one, ");
  has(w->out, " GB/s of memory, measured now with 2 threads");
  // Five steps of two micro-batches and three layers.
  assert_int_equal(row_count(w->out, "gradients"), 10);
  assert_int_equal(row_count(w->out, "reduce"), 5);
  assert_int_equal(row_count(w->out, "update.h"), 15);
  assert_int_equal(row_count(w->out, "grad"), 10);
  assert_int_equal(row_count(w->out, "update.bias"), 15);
  assert_int_equal(row_count(w->out, "(fill with zeros)"), 10);
  assert_null(strstr(w->out, "(copy)"));
  has(w->out, "  outside kernels: inputs 0.0");
  char *a = losses(path(w, "a")), *b = losses(path(w, "b"));
  assert_string_equal(a, b);
  free(a);
  free(b);
  expect(w, 0, "train --data @/corpus.txt --steps 2 --profile -q");
  has(w->out, "ms a step, mean of 2\n");
  assert_int_equal(row_count(w->out, "gradients"), 4);
  expect(w, 0, "eval --data @/corpus.txt --profile");
  has(w->out, "ms a batch, mean of ");
  expect(w, 0, "generate --prompt ab --tokens 5 --profile");
  has(w->out, "ms a token, mean of 5\n");
  assert_int_equal(row_count(w->out, "prefill"), 1);
  assert_int_equal(row_count(w->out, "decode"), 4);
}

// Counts the slices of a category, and checks that each lies inside one of `around`.
static int slices(const json_t *root, const char *cat, const char *around) {
  const json_t *events = json_object_get(root, "traceEvents"), *e, *f;
  size_t i, k;
  int n = 0;
  json_array_foreach(events, i, e) {
    if (!str_eq(json_string_value(json_object_get(e, "cat")), cat)) continue;
    double ts = json_number_value(json_object_get(e, "ts"));
    double end = ts + json_number_value(json_object_get(e, "dur"));
    bool inside = false;
    json_array_foreach(events, k, f) {
      double from = json_number_value(json_object_get(f, "ts"));
      double to = from + json_number_value(json_object_get(f, "dur"));
      inside |= str_eq(json_string_value(json_object_get(f, "cat")), around) && from <= ts + 1e-6 &&
                end <= to + 1e-6;
    }
    if (!inside) fail_msg("%s at %f is in no %s", cat, ts, around);
    n++;
  }
  return n;
}

static void test_trace(void **state) {
  world *w = *state;
  expect(w, 0, "train --data @/corpus.txt --steps 6 --log @/a");
  expect(w, 0, "train --data @/corpus.txt --steps 6 --log @/b --trace @/trace.json");
  has(w->out, "PROFILE");
  has(w->out, "trace: 66 events in ");
  char *a = losses(path(w, "a")), *b = losses(path(w, "b"));
  assert_string_equal(a, b);
  free(a);
  free(b);
  // A step: begin (2 zeros), 2 x gradients, reduce (2), update, 3 x update.h, end.
  json_error_t why;
  json_t *root = json_load_file(path(w, "trace.json"), 0, &why);
  if (!root) fail_msg("%s at line %d", why.text, why.line);
  assert_int_equal(slices(root, "step", "step"), 3);
  assert_int_equal(slices(root, "data", "step"), 3);
  assert_int_equal(slices(root, "task", "step"), 3 * 9);
  assert_int_equal(slices(root, "instruction", "task"), 3 * 11);
  json_decref(root);
  char *text = read_file(path(w, "trace.json"));
  has(text, "\"name\": \"grad\", \"args\": {\"note\": \"grad %grad line 3\", ");
  has(text, "\"layer\": 2, \"micro_batch\": 0, \"sample\": 8, \"step\": 3}");
  has(text, "\"layer\": 0, \"micro_batch\": 1, \"sample\": 6, \"step\": 2}");
  has(text, "\"events_left_out\": 0");
  free(text);
  expect(w, 0, "train --data @/corpus.txt --steps 6 --trace @/one.json --trace-steps 1 -q");
  root = json_load_file(path(w, "one.json"), 0, &why);
  assert_int_equal(slices(root, "step", "step"), 1);
  json_decref(root);
  // A step that goes wrong is in the trace of its run.
  spoil_from(NAN, 2, 1000, false);
  expect(w, 5, "train --data @/corpus.txt --trace @/bad.json");
  root = json_load_file(path(w, "bad.json"), 0, &why);
  assert_int_equal(slices(root, "step", "step"), 2);
  json_decref(root);
  toy_spoil = NULL;
  expect(w, 2, "train --data @/corpus.txt --trace-steps 2");
  expect(w, 2, "train --data @/corpus.txt --trace @/x --trace-steps 0");
  expect(w, 1, "train --data @/corpus.txt --trace @/none/t.json --log @/none.log");
  has(w->err, "/none/t.json");
  expect(w, 1, "train --data @/corpus.txt --steps 2 --trace /dev/full");
  has(w->err, "cannot write /dev/full");
}

static void test_trace_is_full(void **state) {
  world *w = *state;
  trace *t = trace_new(&w->img.prog, 2);
  for (int i = 0; i < 5; i++) trace_add(t, &(trace_event){.kind = TRACE_STEP, .step = i});
  assert_int_equal(trace_count(t), 2);
  assert_int_equal(trace_lost(t), 3);
  file_out out;
  assert_null(file_create(file_io_system(), path(w, "t.json"), &out));
  assert_null(trace_write(t, 0, &out));
  assert_null(file_close(&out));
  char *text = read_file(path(w, "t.json"));
  has(text, "\"events_left_out\": 3");
  has(text, "\"step\": 1}");
  assert_null(strstr(text, "\"step\": 2}"));
  free(text);
  trace_free(t);
}

static void test_generate(void **state) {
  world *w = *state;
  expect(w, 0, "generate --prompt ab --tokens 6 --seed 3");
  char *first = strdup(w->out);
  expect(w, 0, "generate --prompt ab --tokens 6 --seed 3");
  assert_string_equal(first, w->out);
  free(first);
  expect(w, 0, "generate --prompt-tokens 97,98 --tokens 40 --top-k 5 --top-p 0.9");
  has(w->err, "context of 24 tokens is full");
  expect(w, 1, "generate --prompt-tokens 97,256");
  has(w->err, "not in the vocabulary");
  expect(w, 1, "generate");
  has(w->err, "--prompt TEXT");
  expect(w, 1, "generate --prompt aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
  has(w->err, "context is 24");
  expect(w, 2, "generate --prompt a --temperature=-1");
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
      T(test_trains),
      T(test_threads_do_not_matter),
      T(test_resume_gives_the_same_bits),
      T(test_stop_without_a_place_to_save),
      T(test_does_not_mix_runs),
      T(test_bad_gradient_changes_nothing),
      T(test_bad_loss),
      T(test_bad_machine),
      T(test_bad_update),
      T(test_bad_evaluation),
      T(test_bad_step_that_cannot_be_held),
      T(test_settings),
      T(test_usage),
      T(test_info_and_schedule),
      T(test_eval_while_training),
      T(test_profile),
      T(test_trace),
      T(test_trace_is_full),
      T(test_generate),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
