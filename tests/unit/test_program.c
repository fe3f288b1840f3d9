// The program format, the VM and the drivers, on a hand-made program (toy_program.h).
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/str.h"
#include "runtime/check.h"
#include "runtime/checkpoint.h"
#include "runtime/drivers/driver.h"
#include "runtime/init.h"
#include "tests/unit/toy_refuse.h"

typedef struct world {
  char dir[64];
  toy *toy;
  image img;
  char *out, *err;
  size_t nout, nerr;
} world;

static volatile sig_atomic_t stop_flag;
static int64_t stop_at;

static void stop_hook(const dsm_call *call) {
  if (stop_at && call->step + 1 == stop_at) stop_flag = SIGTERM;
}

static const char *path(world *w, const char *name) {
  static char buf[8][160];
  static int k;
  k = (k + 1) % 8;
  snprintf(buf[k], sizeof buf[k], "%s/%s", w->dir, name);
  return buf[k];
}

static void write_file(const char *name, const void *bytes, size_t n) {
  FILE *f = fopen(name, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(bytes, 1, n, f), n);
  fclose(f);
}

static char *read_file(const char *name) {
  FILE *f = fopen(name, "rb");
  assert_non_null(f);
  char *text = calloc(1, 1 << 20);
  size_t n = fread(text, 1, (1 << 20) - 1, f);
  assert_true(n < (1 << 20) - 1);
  fclose(f);
  return text;
}

static int setup(void **state) {
  world *w = calloc(1, sizeof *w);
  snprintf(w->dir, sizeof w->dir, "/tmp/dsm_program_XXXXXX");
  assert_non_null(mkdtemp(w->dir));
  w->toy = toy_new("next_token");
  status *s = toy_image(w->toy, &w->img);
  if (s) fail_msg("%s", s->message);
  char text[2000];
  for (size_t i = 0; i < sizeof text; i++) text[i] = "the cat sat on the mat. "[i % 24];
  write_file(path(w, "corpus.txt"), text, sizeof text);
  stop_at = 0;
  stop_flag = 0;
  toy_hook = stop_hook;
  toy_spoil = NULL;
  *state = w;
  return 0;
}

static int teardown(void **state) {
  world *w = *state;
  char cmd[128];
  snprintf(cmd, sizeof cmd, "rm -rf %s", w->dir);
  if (system(cmd)) return 1;
  free(w->out);
  free(w->err);
  toy_free(w->toy);
  free(w);
  return 0;
}

// Runs "EXE ARGS"; words are separated by spaces, `@` stands for the test's directory.
static int run(world *w, const char *line) {
  char buf[2048];
  char *argv[64] = {(char *)(uintptr_t)"toy"};
  int argc = 1;
  size_t n = 0;
  for (const char *p = line; *p; p++) {
    if (*p == '@')
      n += (size_t)snprintf(buf + n, sizeof buf - n, "%s", w->dir);
    else
      buf[n++] = *p;
  }
  buf[n] = 0;
  for (char *word = strtok(buf, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
  free(w->out);
  free(w->err);
  w->out = w->err = NULL;
  FILE *out = open_memstream(&w->out, &w->nout), *err = open_memstream(&w->err, &w->nerr);
  rt_env env = {out, err, file_io_system(), &stop_flag};
  int code = rt_run(&w->img, argc, argv, &env);
  fclose(out);
  fclose(err);
  return code;
}

static void expect(world *w, int code, const char *line) {
  int got = run(w, line);
  if (got != code) fail_msg("`%s` gave %d, expected %d\n%s%s", line, got, code, w->out, w->err);
}

// The losses of a log, as text.
static char *losses(const char *file) {
  char *text = read_file(file), *to = text;
  for (char *p = text; (p = strstr(p, "\"loss\": "));) {
    p += 8;
    while (*p != ',') *to++ = *p++;
    *to++ = ' ';
  }
  *to = 0;
  return text;
}

// ---- tests ------------------------------------------------------------------------------------

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

// Every bit of the blob: flipping one is noticed by the checksum; with the checksum put right the
// rest of prog_open either accepts or refuses, but stays inside the blob (ASan watches).
static void flip_bits(int kind) {
  toy *t = toy_build("next_token", kind);
  prog p;
  for (size_t i = 0; i < t->n; i++) {
    for (int bit = 0; bit < 8; bit += 3) {
      t->blob[i] ^= (unsigned char)(1 << bit);
      status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
      assert_non_null(s);
      status_free(s);
      if (i % 7 == 0 && i > offsetof(prog_header, checksum) + 8) {
        toy_seal(t);
        status_free(prog_open(t->blob, t->n, t->code_bytes, &p));
      }
      t->blob[i] ^= (unsigned char)(1 << bit);
      toy_seal(t);
    }
  }
  for (size_t n = 0; n < t->n; n += 13) {
    status *s = prog_open(t->blob, n, t->code_bytes, &p);
    assert_non_null(s);
    status_free(s);
  }
  toy_free(t);
}

static void test_flipped_bits(void **state) {
  (void)state;
  flip_bits(TOY_GEMM);
  flip_bits(TOY_DEVICE);
  flip_bits(TOY_RANKS);
}

static void test_refuses(void **state) {
  world *w = *state;
  toy *t = w->toy;
  prog_header *h = (prog_header *)(void *)t->blob;
  h->stack_bytes = PROG_MAX_STACK + 1;
  refuse(t, "bytes of stack");
  h->stack_bytes = 0;
  toy_seal(t);
  PATCH(operands, prog_operand, 0, base, -8, "leaves the arena");
  PATCH(operands, prog_operand, 0, bytes, ARENA + 1, "leaves the arena");
  PATCH(operands, prog_operand, 2, micro_stride, INT64_MAX, "leaves the arena");
  PATCH(operands, prog_operand, 2, layer_mod, -1, "bad sizes");
  PATCH(operands, prog_operand, 2, micro_mod, -1, "leaves the arena");
  PATCH(runs, prog_run, 1, micro_count, 3, "no meaning");
  PATCH(runs, prog_run, 1, task, 1000, "no meaning");
  PATCH(runs, prog_run, 1, task, 6, "");
  PATCH(runs, prog_run, 5, layer_count, 100000, "leaves the arena");
  PATCH(runs, prog_run, 4, task, 99, "unknown task");
  PATCH(kernels, prog_kernel, 0, code_offset, (int64_t)t->code_bytes, "outside the code");
  PATCH(kernels, prog_kernel, 0, nbufs, 5, "operands");
  PATCH(instrs, prog_instr, 2, kernel, 77, "unknown kernel");
  PATCH(instrs, prog_instr, 2, op, RTOP_COUNT, "no meaning");
  PATCH(instrs, prog_instr, 2, flags, 64, "no meaning");
  PATCH(states, prog_state, 0, dtype, 40, "unknown");
  PATCH(states, prog_state, 0, bytes, 12, "dims say");
  PATCH(states, prog_state, 1, layers, 1 << 20, "leaves the arena");
  PATCH(states, prog_state, 0, layers, 2, "one #");
  PATCH(states, prog_state, 0, name, 1u << 30, "no name");
  PATCH(states, prog_state, 4, of, 0, "copy of no weight");
  PATCH(states, prog_state, 4, cls, PROG_COPY + 2, "unknown class");
  PATCH(states, prog_state, 0, cls, PROG_OPTIMIZER, "copy of no weight");
  PATCH(states, prog_state, 5, step, 2, "not the bf16 of weight h.#.bias");
  PATCH(states, prog_state, 5, layers, TOY_L - 1, "copy of no weight");
  PATCH(states, prog_state, 4, dtype, PROG_F16, "not the bf16 of weight wte.weight");
  PATCH(states, prog_state, 4, init_a, (double)NAN, "bad init");
  PATCH(states, prog_state, 4, init_a, 1e300, "bad init");
  PATCH(ios, prog_io, 0, micro_stride, 1 << 30, "leaves the arena");
  PATCH(entries, prog_entry, 0, micro_batch, 3, "bad batch");
  PATCH(entries, prog_entry, 0, inputs, 4000, "outside the tables");
  PATCH(args, prog_arg, 0, offset, 2, "argument 0");
}

static void test_refuses_products(void **state) {
  (void)state;
  toy *t = toy_build("next_token", TOY_GEMM);
  prog_header *h = (prog_header *)(void *)t->blob;
  prog p;
  status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
  if (s) fail_msg("%s", s->message);
  uint32_t at = 0, kernel = p.nkernels - 1;
  while (p.instrs[at].op != RTOP_gemm) at++;
  uint32_t first = p.instrs[at].first_operand;
  PATCH(gemms, prog_gemm, 0, library, PROG_LIBRARIES, "no meaning");
  PATCH(gemms, prog_gemm, 0, start, PROG_GEMM_STARTS, "no meaning");
  PATCH(gemms, prog_gemm, 0, start, PROG_GEMM_SUM, "not the operands");
  PATCH(gemms, prog_gemm, 0, turned, 4, "no meaning");
  PATCH(gemms, prog_gemm, 0, axes, PROG_GEMM_AXES + 1, "no meaning");
  PATCH(gemms, prog_gemm, 0, m, 0, "bad shape");
  PATCH(gemms, prog_gemm, 0, n, (int64_t)1 << 40, "bad shape");
  PATCH(gemms, prog_gemm, 0, k, -1, "bad shape");
  PATCH(gemms, prog_gemm, 0, size[1], 0, "bad batch");
  PATCH(gemms, prog_gemm, 0, size[1], INT64_MAX, "bad batch");
  PATCH(gemms, prog_gemm, 0, ld[0], 19, "bad strides");
  PATCH(gemms, prog_gemm, 0, ld[2], INT64_MAX, "bad strides");
  PATCH(gemms, prog_gemm, 0, offset[1], -1, "bad strides");
  PATCH(gemms, prog_gemm, 0, stride[1][0], -1, "bad strides");
  PATCH(gemms, prog_gemm, 0, stride[1][0], INT64_MAX, "bad strides");
  PATCH(gemms, prog_gemm, 0, m, 240, "no matrix");
  PATCH(gemms, prog_gemm, 0, offset[2], TOY_V * TOY_V, "no matrix");
  PATCH(kernels, prog_kernel, kernel, gemm, 2, "unknown product");
  PATCH(kernels, prog_kernel, kernel, gemm, 0, "not what its kernel is");
  PATCH(instrs, prog_instr, at, kernel, 2, "not what its kernel is");
  PATCH(instrs, prog_instr, at, operands, 2, "2 operands, expected 4");
  PATCH(instrs, prog_instr, at, op, RTOP_launch, "not what its kernel is");
  PATCH(operands, prog_operand, first + 2, writes, 1, "not the operands");
  PATCH(operands, prog_operand, first, base, 2, "no matrix");
  PATCH(operands, prog_operand, first + 3, bytes, 4, "not the operands");
  // The bytes up to which the operands are touched are enough, and not a byte more than needed.
  prog_operand *o = (prog_operand *)(void *)(t->blob + h->operands.offset) + first;
  const int64_t enough[] = {4 * (2 * 16 * TOY_V + 32 + 15 * TOY_V + 20), 4 * (16 + 11 * TOY_V + 20),
                            4 * (2 * 16 * TOY_V + 16 + 15 * TOY_V + 12)};
  for (int i = 0; i < 3; i++) {
    int64_t whole = o[i].bytes;
    o[i].bytes = enough[i];
    if (i == 2) o[3].bytes = enough[i];
    toy_seal(t);
    s = prog_open(t->blob, t->n, t->code_bytes, &p);
    if (s) fail_msg("operand %d: %s", i, s->message);
    o[i].bytes--;
    if (i == 2) o[3].bytes--;
    refuse(t, "no matrix");
    o[i].bytes = whole;
    if (i == 2) o[3].bytes = whole;
  }
  toy_free(t);
}

// What a program for the host may not say, and one for a device must.
static void test_refuses_machines(void **state) {
  world *w = *state;
  toy *t = w->toy;
  prog_header *h = (prog_header *)(void *)t->blob;
  h->machine = PROG_MACHINES;
  refuse(t, "no known machine");
  h->machine = PROG_CUDA;
  refuse(t, "kernel 0 is ");  // for a device and has code of the host, or an unknown function
  h->machine = PROG_HOST;
  h->events = 1;
  refuse(t, "has 1 events");
  h->events = 0;
  h->step_offset = 16;
  refuse(t, "has functions of a device");
  h->step_offset = 0;
  PATCH(kernels, prog_kernel, 1, function, 1, "names a function of a device");
  PATCH(kernels, prog_kernel, 1, numbers, 1, "names a function of a device");
  PATCH(instrs, prog_instr, 0, stream, PROG_COPIES, "unknown stream");
  PATCH(instrs, prog_instr, 0, event, 1, "unknown event");
  PATCH(operands, prog_operand, 0, home, PROG_HOST_HOME, "not at home");
}

static void test_refuses_devices(void **state) {
  (void)state;
  toy *t = toy_build("next_token", TOY_DEVICE);
  prog_header *h = (prog_header *)(void *)t->blob;
  prog p;
  status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
  if (s) fail_msg("%s", s->message);
  assert_null(prog_check_code(&p, t->code));
  assert_int_equal(prog_argument_bytes(&p.kernels[0]), 8 * (6 + 4 + 1));
  assert_int_equal(
      check_split(&p, prog_entry_of(&p, PROG_TRAIN),
                  (const prog_io *[]){prog_output(&p, prog_entry_of(&p, PROG_TRAIN), "loss")}, 1),
      6);  // the outputs are on the host before the first weight changes
  h->machine = PROG_HOST;
  refuse(t, "has 3 events");
  h->events = 0;
  refuse(t, "has functions of a device");
  h->events = 3;
  h->machine = PROG_CUDA;
  prog_str targets = h->targets;
  h->targets = 0;
  refuse(t, "names no target");
  h->targets = h->model;
  refuse(t, "names target toy and has no module");
  h->targets = targets;
  h->events = 2;
  refuse(t, "unknown event");
  h->events = 1 << 20;
  refuse(t, "events");
  h->events = 3;
  h->step_offset = 20;
  refuse(t, "step lies outside");
  h->step_offset = AT_WORK;
  refuse(t, "step lies outside");
  h->step_offset = AT_STEP;
  PATCH(functions, prog_function, 0, threads, 0, "bad shape");
  PATCH(functions, prog_function, 0, threads, 48, "bad shape");
  PATCH(functions, prog_function, 0, threads, 1056, "bad shape");
  PATCH(functions, prog_function, 0, shared_bytes, (227 << 10) + 1, "bad shape");
  PATCH(functions, prog_function, 0, registers, 256, "bad shape");
  PATCH(functions, prog_function, 0, symbol, h->targets, "has no name");
  PATCH(functions, prog_function, 0, symbol, 0, "has no name");
  PATCH(kernels, prog_kernel, 0, function, K_COUNT, "unknown function");
  PATCH(kernels, prog_kernel, 0, code_offset, 8, "code of the host");
  PATCH(kernels, prog_kernel, 0, first_number, p.nnumbers, "numbers outside");
  PATCH(kernels, prog_kernel, 0, numbers, p.nnumbers + 1, "numbers outside");
  PATCH(kernels, prog_kernel, 0, cells, (int64_t)1 << 31, "one launch");
  PATCH(modules, prog_module, 0, kind, PROG_PTX, "no architecture");
  PATCH(modules, prog_module, 2, kind, PROG_CUBIN, "no architecture");
  PATCH(modules, prog_module, 0, target, h->model, "no architecture");
  PATCH(modules, prog_module, 0, functions, K_COUNT - 1, "hold 5 functions of 6");
  PATCH(modules, prog_module, 0, functions, K_COUNT + 1, "hold 7 functions of 6");
  PATCH(modules, prog_module, 1, first_function, 1, "from 1 on, expected 0");
  PATCH(modules, prog_module, 1, target, p.modules[0].target, "from 0 on, expected 6");
  PATCH(modules, prog_module, 1, offset, -8, "outside the code");
  PATCH(modules, prog_module, 1, offset, 4, "outside the code");
  PATCH(modules, prog_module, 2, bytes, (int64_t)t->code_bytes - 31, "outside the code");
  PATCH(modules, prog_module, 2, bytes, 0, "outside the code");
  uint32_t at = 0;
  while (p.instrs[at].op != RTOP_fetch) at++;
  uint32_t o = p.instrs[at].first_operand;
  PATCH(instrs, prog_instr, at, op, RTOP_evict, "not at home");
  PATCH(instrs, prog_instr, at, op, RTOP_copy, "not at home");
  PATCH(instrs, prog_instr, at, stream, PROG_STREAMS, "unknown stream");
  PATCH(instrs, prog_instr, at, event, 1, "unknown event");
  PATCH(operands, prog_operand, o, home, PROG_HOST_HOME, "not at home");
  PATCH(operands, prog_operand, o + 1, home, PROG_DEVICE_HOME, "not at home");
  PATCH(operands, prog_operand, o, home, PROG_HOMES, "not at home");
  PATCH(operands, prog_operand, o, writes, 1, "wrong way");
  PATCH(operands, prog_operand, o + 1, bytes, 8, "different sizes");
  // A text that does not end, at the end of the image.
  prog_module *m = (prog_module *)(void *)(t->blob + h->modules.offset) + 2;
  m->bytes--;
  toy_seal(t);
  assert_null(prog_open(t->blob, t->n, t->code_bytes, &p));
  s = prog_check_code(&p, t->code);
  assert_non_null(s);
  has(s->message, "the text of module 2 has no end");
  status_free(s);
  toy_free(t);
}

static void test_targets(void **state) {
  (void)state;
  static const struct {
    const char *text;
    int number;  // 0: none
    bool exact;
  } cases[] = {{"sm_80", 80, false},        {"sm_90a", 90, true},   {"compute_90a", 90, true},
               {"sm_100", 100, false},      {"sm_120f", 120, true}, {"compute_75", 75, false},
               {"sm_", 0, false},           {"sm_8x", 0, false},    {"sm_90ab", 0, false},
               {"sm_-80", 0, false},        {"gfx_90", 0, false},   {"sm_ 80", 0, false},
               {"sm_99999999999", 0, false}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int number;
    bool exact, ok = prog_target(cases[i].text, &number, &exact);
    assert_int_equal(ok, cases[i].number > 0);
    if (!ok) continue;
    assert_int_equal(number, cases[i].number);
    assert_int_equal(exact, cases[i].exact);
  }
}

// A library's product on the toy: sums that start at another operand, set, and go on.
static void test_library_product(void **state) {
  (void)state;
  void *library = dlopen("libopenblas.so.0", RTLD_LAZY);
  if (!library) {
    print_message("libopenblas.so.0 is not installed\n");
    skip();
  }
  toy *t = toy_build("next_token", TOY_GEMM);
  prog_header *h = (prog_header *)(void *)t->blob;
  prog_gemm *g = (prog_gemm *)(void *)(t->blob + h->gemms.offset);
  image img;
  assert_null(toy_image(t, &img));
  uint32_t at = 0;
  while (img.prog.instrs[at].op != RTOP_gemm) at++;
  prog_instr *in = (prog_instr *)(void *)(t->blob + h->instrs.offset) + at;
  prog_kernel *k = (prog_kernel *)(void *)(t->blob + h->kernels.offset) + in->kernel;
  prog_run *run = (prog_run *)(void *)(t->blob + h->runs.offset);
  const prog_entry *e = prog_entry_of(&img.prog, PROG_EVAL);
  float *want = calloc((size_t)TOY_V * TOY_V, sizeof *want);
  for (int start = PROG_GEMM_SET; start < PROG_GEMM_STARTS; start++) {
    g->start = (uint32_t)start;
    in->operands = k->nbufs = start == PROG_GEMM_ADD ? 4 : 3;
    uint32_t last = e->first_run + e->runs - 1;
    // The runs of evaluate become: for micro in 0..1, the task with the product.
    run[last - 3] = (prog_run){.kind = PROG_LOOP, .task = 1, .micro_count = 2};
    run[last - 2] = run[last];
    toy_seal(t);
    assert_null(toy_image(t, &img));
    pool *threads = pool_new(2);
    vm *m;
    assert_null(vm_open(&img.prog, img.code, threads, &m));
    float *a = (float *)(void *)vm_at(m, AT_WTE), *b = (float *)(void *)vm_at(m, AT_M);
    float *c = (float *)(void *)vm_at(m, AT_GRAD);
    for (int i = 0; i < TOY_V * TOY_V; i++) {
      a[i] = (float)(i * 7 % 11 - 5), b[i] = (float)(i * 5 % 13 - 6), c[i] = 3;
      want[i] = start == PROG_GEMM_ADD ? a[i] : 3;
    }
    vm_call_part(m, e, &(vm_step){.seed = 1}, 0, 2);
    int times = start == PROG_GEMM_SUM ? 2 : 1;
    for (int x = 0; x < 3; x++)
      for (int y = 0; y < 2; y++)
        for (int i = 0; i < 16; i++)
          for (int j = 0; j < 12; j++) {
            float sum = 0;
            for (int s = 0; s < 20; s++)
              sum += a[x * 16 * TOY_V + y * 32 + i * TOY_V + s] * b[y * 16 + j * TOY_V + s];
            float *w = &want[x * 16 * TOY_V + y * 16 + i * TOY_V + j];
            *w = (start == PROG_GEMM_ADD ? *w : 0) + (float)times * sum;
          }
    assert_memory_equal(c, want, sizeof *want * TOY_V * TOY_V);  // small whole numbers: exact
    vm_close(m);
    pool_free(threads);
  }
  free(want);
  toy_free(t);
}

static void test_layer_ring(void **state) {
  // layer_mod: a ring of 2 slots for 7 layers stays inside 2 slots.
  world *w = *state;
  toy *t = w->toy;
  prog_header *h = (prog_header *)(void *)t->blob;
  prog_operand *o = (prog_operand *)(void *)(t->blob + h->operands.offset);
  prog_run *r = (prog_run *)(void *)(t->blob + h->runs.offset) + 5;
  prog_instr *in = (prog_instr *)(void *)(t->blob + h->instrs.offset);
  prog_task *k = (prog_task *)(void *)(t->blob + h->tasks.offset) + r->task;
  r->layer_count = 7;
  for (uint32_t i = 0; i < in[k->first_instr].operands; i++)
    o[in[k->first_instr].first_operand + i].layer_mod = 2;
  toy_seal(t);
  prog p;
  status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
  if (s) fail_msg("%s", s->message);
  r->layer_dir = -1;  // layer -6 has no slot
  refuse(t, "leaves the arena");
}

static void test_micro_places(void **state) {
  // micro_mod: two micro-batches in one place. micro_add: a run of a later one, if there is one.
  world *w = *state;
  toy *t = w->toy;
  prog_header *h = (prog_header *)(void *)t->blob;
  prog_run *r = (prog_run *)(void *)(t->blob + h->runs.offset) + 1;
  prog_operand *o = (prog_operand *)(void *)(t->blob + h->operands.offset);
  assert_int_equal(r->kind, PROG_LOOP);
  assert_int_equal(r->micro_count, 2);
  int64_t stride = o[2].micro_stride;
  o[2].micro_stride = (int64_t)h->arena_bytes;
  refuse(t, "leaves the arena");
  o[2].micro_mod = 1;
  toy_seal(t);
  prog p;
  status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
  if (s) fail_msg("%s", s->message);
  o[2].micro_mod = 2;
  refuse(t, "leaves the arena");
  o[2].micro_mod = 0;
  o[2].micro_stride = stride;
  r[1].micro_add = 1;
  refuse(t, "no such micro-batch");
  r[1].micro_add = -1;
  refuse(t, "no such micro-batch");
  r[1].micro_add = INT64_MAX;
  refuse(t, "no such micro-batch");
  r->micro_count = 1;
  r[1].micro_add = 1;
  toy_seal(t);
  s = prog_open(t->blob, t->n, t->code_bytes, &p);
  if (s) fail_msg("%s", s->message);
}

static void refuse_file(const char *exe, const unsigned char *file, size_t n, const char *part) {
  image img;
  write_file(exe, file, n);
  status *s = image_open(exe, "exe", 0, &img);
  assert_non_null(s);
  has(s->message, part);
  status_free(s);
}

// Two programs in one file: each rank opens that of its stage, and all compare one number.
static void test_stages_file(void **state) {
  world *w = *state;
  const char *exe = path(w, "exe");
  toy *t[] = {toy_build("next_token", TOY_RANKS), toy_build("next_token", TOY_RANKS)};
  // The toy's mesh has one axis of two; call it `pipeline`, and tell the second program apart.
  prog_part part[2] = {{0}};
  unsigned char *file = calloc(1, 1 << 20);
  size_t at = 4096;
  for (int i = 0; i < 2; i++) {
    prog_header *h = (prog_header *)(void *)t[i]->blob;
    prog_axis *axis = (prog_axis *)(void *)(t[i]->blob + h->axes.offset);
    assert_int_equal(h->axes.count, 1);
    for (size_t k = 0; k + 9 <= h->strings.count; k++)
      if (strcmp((char *)t[i]->blob + h->strings.offset + k, "pipeline") == 0)
        axis[0].name = (prog_str)k;
    h->parameters = (uint64_t)(100 + i);
    toy_seal(t[i]);
    part[i].code_offset = at;
    part[i].code_bytes = t[i]->code_bytes;
    memcpy(file + at, t[i]->code, t[i]->code_bytes);
    part[i].code_checksum = XXH3_64bits(file + at, t[i]->code_bytes);
    at = (at + t[i]->code_bytes + 4095) / 4096 * 4096;
    part[i].program_offset = at;
    part[i].program_bytes = t[i]->n;
    memcpy(file + at, t[i]->blob, t[i]->n);
    at = (at + t[i]->n + 4095) / 4096 * 4096;
  }
  prog_trailer tr = {.first = part[0], .parts_offset = at, .parts = 2};
  memcpy(tr.magic, PROG_TRAILER_MAGIC, 8);
  memcpy(file + at, part, sizeof part);
  size_t end = at + sizeof part, n = end + sizeof tr;
  memcpy(file + end, &tr, sizeof tr);
  write_file(exe, file, n);
  image img[2];
  for (int r = 0; r < 2; r++) {
    status *s = image_open(exe, "exe", r, &img[r]);
    if (s) fail_msg("%s", s->message);
    assert_int_equal(prog_parameters(&img[r].prog), 100 + r);
  }
  assert_true(img[0].prog.identity == img[1].prog.identity);
  assert_true(img[0].prog.header->checksum != img[1].prog.header->checksum);
  for (int r = 0; r < 2; r++) image_close(&img[r]);
  tr.parts = 1;
  memcpy(file + end, &tr, sizeof tr);
  refuse_file(exe, file, n, "trailer points outside");
  tr.parts = 3;
  memcpy(file + end, &tr, sizeof tr);
  refuse_file(exe, file, n, "trailer points outside");
  tr.parts = 2;
  memcpy(file + end, &tr, sizeof tr);
  part[1].program_bytes = n;
  memcpy(file + at, part, sizeof part);
  refuse_file(exe, file, n, "trailer points outside");
  for (int i = 0; i < 2; i++) toy_free(t[i]);
  free(file);
}

static void test_cpu(void **state) {
  (void)state;
  status *s = image_check_cpu("x86-64 avx2 fma avx512f", "x86-64", "fpu avx avx2 fma sse4_2\n");
  assert_non_null(s);
  has(s->message, "lacks avx512f:");
  status_free(s);
  assert_null(image_check_cpu("x86-64 +avx2,+sse4.2,-sse4a avx512vnni bmi", "x86-64",
                              " avx2 avx512_vnni sse4_2 bmi1"));
  s = image_check_cpu("aarch64 neon", "x86-64", "");
  assert_non_null(s);
  has(s->message, "is for aarch64");
  status_free(s);
}

static void test_executable_file(void **state) {
  world *w = *state;
  toy *t = w->toy;
  const char *exe = path(w, "exe");
  size_t code_at = 8192, prog_at = code_at + (t->code_bytes + 4095) / 4096 * 4096;
  size_t n = prog_at + t->n + sizeof(prog_trailer);
  unsigned char *file = calloc(1, n);
  prog_trailer tr = {.first = {.code_offset = code_at,
                               .code_bytes = t->code_bytes,
                               .program_offset = prog_at,
                               .program_bytes = t->n}};
  memcpy(tr.magic, PROG_TRAILER_MAGIC, 8);
  image img;
  // The code is not run here: zeros will do, with their checksum wrong at first.
  memcpy(file + prog_at, t->blob, t->n);
  memcpy(file + n - sizeof tr, &tr, sizeof tr);
  write_file(exe, file, n);
  status *s = image_open(exe, "exe", 0, &img);
  assert_non_null(s);
  has(s->message, "checksum of its code");
  status_free(s);
#if defined(__x86_64__)
  // Code that is nothing but `ret`: every kernel returns at once, and losses are 0.
  memset(file + code_at, 0xc3, t->code_bytes);
#endif
  tr.first.code_checksum = XXH3_64bits(file + code_at, t->code_bytes);
  memcpy(file + n - sizeof tr, &tr, sizeof tr);
  write_file(exe, file, n);
  s = image_open(exe, "exe", 0, &img);
  if (s) fail_msg("%s", s->message);
  image kept = w->img;
  w->img = img;
  expect(w, 0, "info");
#if defined(__x86_64__)
  expect(w, 0, "train --data @/corpus.txt --steps 3");
  has(w->out, "loss 0.0000 -> 0.0000 over 3 steps");
#endif
  w->img = kept;
  image_close(&img);
  file[prog_at + 700] ^= 1;
  write_file(exe, file, n);
  s = image_open(exe, "exe", 0, &img);
  assert_non_null(s);
  has(s->message, "exe: the program is damaged");
  status_free(s);
  write_file(exe, file, n - 10);
  s = image_open(exe, "exe", 0, &img);
  assert_non_null(s);
  has(s->message, "carries no program");
  status_free(s);
  free(file);
}

static void test_schedule_values(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  call_text c;
  assert_null(settings_call(&a, "cosine(warmup=10, floor=1e-4)", &c));
  assert_true(fabs(settings_lr(&c, 1e-2, 0, 110) - 1e-3) < 1e-12);
  assert_true(fabs(settings_lr(&c, 1e-2, 9, 110) - 1e-2) < 1e-12);
  assert_true(fabs(settings_lr(&c, 1e-2, 10, 110) - 1e-2) < 1e-12);
  assert_true(fabs(settings_lr(&c, 1e-2, 60, 110) - (1e-2 + 1e-4) / 2) < 1e-12);
  assert_true(fabs(settings_lr(&c, 1e-2, 110, 110) - 1e-4) < 1e-12);
  assert_null(settings_call(&a, "linear(warmup=0, floor=0)", &c));
  assert_true(fabs(settings_lr(&c, 1, 25, 100) - 0.75) < 1e-12);
  assert_null(settings_call(&a, "constant", &c));
  assert_true(settings_lr(&c, 0.5, 1000, 10) == 0.5);
  arena_free(&a);
}

static void test_normal_draws(void **state) {
  (void)state;
  double sum = 0, square = 0;
  enum { N = 100000 };
  for (uint64_t i = 0; i < N; i++) {
    double x = init_normal(42, i);
    sum += x;
    square += x * x;
  }
  assert_true(fabs(sum / N) < 0.02);
  assert_true(fabs(square / N - 1) < 0.02);
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
      T(test_flipped_bits),
      T(test_refuses_products),
      T(test_library_product),
      T(test_refuses),
      T(test_refuses_machines),
      T(test_refuses_devices),
      cmocka_unit_test(test_targets),
      T(test_layer_ring),
      T(test_micro_places),
      T(test_stages_file),
      T(test_executable_file),
      cmocka_unit_test(test_cpu),
      cmocka_unit_test(test_schedule_values),
      cmocka_unit_test(test_normal_draws),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
