// How plans are shown: text, JSON, plan files and the page, over the plans of plan_fixture.h.
//
//   test_explain --print gpt3 text|color|json|html|file [columns]     shows one of them
#include "tests/unit/arena_fixture.h"

#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "frontend/ast.h"
#include "frontend/diag.h"
#include "frontend/keys.h"
#include "passes/plan/report.h"
#include "passes/plan/show.h"
#include "passes/plan/timeline.h"
#include "runtime/base/str.h"
#include "runtime/base/version.h"
#include "tests/unit/draw.h"
#include "tests/unit/plan_fixture.h"

typedef enum form { TEXT, COLOR, JSON, HTML, PLAN } form;
static const char *const form_names[] = {"text", "color", "json", "html", "file"};

static void print_as(const plan_result *r, form f, int columns, FILE *out) {
  const plan_candidate *c = r->best ? r->best : r->closest;
  switch (f) {
    case TEXT: plan_print_text(r, out, columns, false); break;
    case COLOR: plan_print_text(r, out, columns, true); break;
    case JSON: plan_print_json(r, out); break;
    case HTML: plan_print_html(r, out); break;
    case PLAN:
      if (c) plan_print_file(r, c, out);
      break;
  }
}

// What is printed, in the arena.
static const char *printed(arena *a, const plan_result *r, form f, int columns) {
  char *text = NULL;
  size_t n = 0;
  FILE *out = open_memstream(&text, &n);
  print_as(r, f, columns, out);
  fclose(out);
  assert_int_equal(strlen(text), n);  // no NUL inside
  const char *copy = arena_strndup(a, text, n);
  free(text);
  return copy;
}

static void assert_has(const char *text, const char *part) {
  if (!strstr(text, part)) fail_msg("`%s` is not in\n%s", part, text);
}

static void assert_lacks(const char *text, const char *part) {
  if (strstr(text, part)) fail_msg("`%s` is in\n%s", part, text);
}

// ---- numbers and names --------------------------------------------------------------------------

static void numbers_have_units(void **state) {
  arena *a = *state;
  static const struct {
    double x;
    const char *seconds, *bytes, *count, *quantity;
  } rows[] = {
      {0, "0 s", "0 B", "0", "0"},
      {1, "1.0 s", "1 B", "1", "1"},
      {0.0042, "4.2 ms", "0 B", "0.0", "0"},
      {0.9996, "1.0 s", "1 B", "1.0", "1"},
      {2.5e-7, "0.2 \xc2\xb5s", "0 B", "0.0", "0"},
      {17.97, "18.0 s", "18 B", "18.0", "18"},
      {63, "63.0 s", "63 B", "63", "63"},
      {1023.6, "1,024 s", "1024 B", "1.02 k", "1.0 k"},
      {175055, "175,055 s", "171.0 KiB", "175 k", "175.1 k"},
      {174.6e9, "174,600,000,000 s", "162.6 GiB", "175 B", "174.6 B"},
      {999.96e6, "999,960,000 s", "953.6 MiB", "1.00 B", "1.0 B"},
      {(double)NAN, SHOW_DASH, SHOW_DASH, SHOW_DASH, SHOW_DASH},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    assert_string_equal(show_seconds(a, rows[i].x), rows[i].seconds);
    assert_string_equal(show_bytes(a, rows[i].x), rows[i].bytes);
    assert_string_equal(show_short(a, rows[i].x), rows[i].count);
    assert_string_equal(show_quantity(a, rows[i].x), rows[i].quantity);
  }
  assert_string_equal(show_whole(a, 41208), "41,208");
  assert_string_equal(show_whole(a, -1234567), "-1,234,567");
  assert_string_equal(show_whole(a, 999), "999");
  assert_string_equal(show_percent(a, 0.8961), "89.6 %");
}

static void texts_are_made_safe(void **state) {
  arena *a = *state;
  assert_string_equal(show_clean(a, "a\x1b[31mb\n\tc\x7f"), "a [31mb  c ");
  assert_string_equal(show_clean(a, "\xc3\xa9\xff\xc3"), "\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd");
  assert_string_equal(show_clean(a, "\xed\xa0\x80"),  // a surrogate: three wrong bytes
                      "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
  assert_string_equal(show_clean(a, "x\xc2\x9by"), "x y");  // a control of one character
  assert_string_equal(show_clean(a, NULL), "");
  assert_int_equal(show_columns("a \xc2\xb7 \xc3\x97"), 5);
  assert_string_equal(show_cut(a, "abcdef", 4), "abc\xe2\x80\xa6");
  assert_string_equal(show_cut(a, "abcd", 4), "abcd");
}

static void choices_in_words_and_flags(void **state) {
  arena *a = *state;
  plan_result *r = fx_gpt3(a);
  const plan_choice *best = &r->best->choice;
  assert_string_equal(plan_choice_text(a, best),
                      "data 32 x pipeline 8 x tensor 4, interleave 6, zero 1, recompute none");
  assert_string_equal(plan_choice_flags(a, best),
                      "--pin data=32,pipeline=8,tensor=4,micro_batch=1,interleave=6,zero=1,"
                      "recompute=none,offload=none");
  plan_choice c = *best;
  assert_true(plan_choice_equal(best, &c));
  assert_string_equal(plan_choice_differs(a, best, &c), "the same choice");
  assert_string_equal(plan_choice_pins(a, best, &c), "");
  c.size[PLAN_DATA] = 16, c.size[PLAN_TENSOR] = 8;
  c.zero = 3, c.zero_group = 4;
  c.recompute = PLAN_FULL;
  c.home[PLAN_OPTIMIZER] = PLAN_HOST, c.home[PLAN_GRADIENTS] = PLAN_HOST;
  c.home[PLAN_ACTIVATIONS] = PLAN_DISK;
  assert_false(plan_choice_equal(best, &c));
  assert_string_equal(plan_choice_differs(a, best, &c),
                      "tensor 8, zero 3 over 4, recompute full, gradients + optimizer on host, "
                      "activations on disk");
  assert_string_equal(plan_choice_pins(a, best, &c),
                      "data=16,tensor=8,zero=3:4,recompute=full,"
                      "offload=gradients:host+optimizer:host+activations:disk");
  // The order of axes that cut nothing is no difference.
  plan_choice d = *best;
  d.order[2] = PLAN_RING, d.order[3] = PLAN_EXPERT;
  assert_string_equal(plan_choice_differs(a, best, &d), "the same choice");
  d.order[0] = PLAN_PIPELINE, d.order[1] = PLAN_DATA;
  assert_string_equal(plan_choice_differs(a, best, &d), "order pipeline > data > tensor");
  plan_choice one = fx_single(a)->best->choice;
  assert_string_equal(plan_choice_text(a, &one), "one device, micro-batch 4, recompute none");
}

// ---- text ---------------------------------------------------------------------------------------

static void no_line_is_too_long(void **state) {
  arena *a = *state;
  static const int widths[] = {10, 60, 72, 80, 100, 300};
  for (int i = 0; i < FX_ALL; i++) {
    plan_result *r = fx_all[i].make(a);
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
      int most = widths[w] < 60 ? 60 : widths[w] > 100 ? 100 : widths[w];
      const char *text = printed(a, r, TEXT, widths[w]);
      for (const char *s = text; *s;) {
        size_t n = strcspn(s, "\n");
        const char *line = arena_strndup(a, s, n);
        if (show_columns(line) > most)
          fail_msg("%s at %d: %d columns:\n%s", fx_all[i].name, most, show_columns(line), line);
        if (n && line[n - 1] == ' ') fail_msg("%s: blank at the end of `%s`", fx_all[i].name, line);
        for (const char *p = line; *p; p++) assert_false(iscntrl((unsigned char)*p));
        assert_string_equal(show_clean(a, line), line);
        s += n + (s[n] == '\n');
      }
    }
  }
}

static void text_says_what_matters(void **state) {
  arena *a = *state;
  const char *text = printed(a, fx_gpt3(a), TEXT, 100);
  static const char *const parts[] = {
      "gpt3, 174.6 B parameters \xc2\xb7 batch 1536 \xc3\x97 2048 tokens \xc2\xb7 bf16 \xc2\xb7 "
      "1,024 \xc3\x97 a100_80g (128 nodes)\n",
      "PLAN    data 32 \xc3\x97 pipeline 8 \xc3\x97 tensor 4 \xc2\xb7 interleave 6 \xc2\xb7 zero 1 "
      "\xc2\xb7 recompute none\n",
      "1536 sequences = 32 data \xc3\x97 48 micro-batches \xc3\x97 1",
      "STEP    18.0 s (17.0 to 18.9) \xc2\xb7 175 k tokens/s \xc2\xb7 184 TFLOP/s per device "
      "\xc2\xb7 MFU 59.0 %\n",
      "TIME    compute       16.10 s   89.6 %",
      "tensor         1.09 s    6.1 %  ###     sends 162.0 GiB inside nodes, 36 % hidden\n",
      "data           0.20 s    1.1 %  #       sends 15.1 GiB between nodes, 89 % hidden\n",
      "optimizer      0.01 s    0.1 %\n",
      "7 / (6 \xc3\x97 48)",
      "of 77.0 GiB (80 less 3 reserved)",
      "0-11+embed",
      "  1-6    12-83 ",
      "84-95+head",
      "stage 0 is highest: warm-up, layer 11, mlp.c_fc\n",
      "LIMIT   the speed of the devices, 89.6 % of the step; the next gain is tensor traffic, 6.1 "
      "%",
      "a tie within the error; peak 68.7 GiB",
      "1536 sequences do not divide over 1024; batch",
      "PROOF   optimal: 41,208 plans, 40,913 pruned by bound, 410 ms\n",
      "NEXT    --report plan.html \xc2\xb7 --why ",
      "-o gpt3.plan, then dsmc build --plan gpt3.plan\n",
      "NOTE    seq 4k is 4000, not 4096\n",
  };
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) assert_has(text, parts[i]);
  assert_lacks(text, "\x1b");
  // Colour changes what it looks like, not what it says.
  const char *color = printed(a, fx_gpt3(a), COLOR, 100);
  assert_has(color, "\x1b[1mPLAN");
  sb plain = {.arena = a};
  for (const char *s = color; *s; s++) {
    if (*s == '\x1b')
      s += strcspn(s, "m");
    else
      sb_put(&plain, *s);
  }
  assert_string_equal(sb_str(&plain), text);
}

static void text_of_what_does_not_fit(void **state) {
  arena *a = *state;
  const char *text = printed(a, fx_unfit(a), TEXT, 100);
  assert_has(text, "PLAN    none fits: the closest is over by 58.1 GiB; a device has 77.0 GiB");
  assert_has(text, "CLOSEST tensor 8 \xc2\xb7 recompute full");
  assert_has(text,
             "NEEDS   optimizer 98.6 GiB \xc2\xb7 weights 16.4 GiB \xc2\xb7 gradients 16.4 GiB");
  assert_has(text, "1. offload the optimizer to the host \xc2\xb7 --pin offload=optimizer:host");
  assert_has(text, "2. use 16 devices \xc2\xb7 --cluster dgx-a100-80g:16 \xc2\xb7 peak 69.4 GiB");
  assert_lacks(text, "STEP");
  assert_lacks(text, "PROOF");
  const char *illegal = printed(a, fx_illegal(a), TEXT, 100);
  assert_has(illegal, "PLAN    none: every way to split this job is illegal");
  assert_has(illegal, "64 heads cannot be split over tensor = 7");
  // A single reason stands where the plan would; that no plan was worked out is no row.
  plan_result *one = fx_illegal(a);
  one->rejected.n = 1;
  const char *why = printed(a, one, TEXT, 100);
  assert_has(why, "PLAN    none: 64 heads cannot be split over tensor = 7\n");
  assert_lacks(why, "OTHERS");
  // A search that was stopped knows neither.
  one->search.optimal = false;
  const char *stopped = printed(a, one, TEXT, 100);
  assert_has(stopped, "PLAN    none so far: the search was stopped at its limit before it met");
  assert_lacks(stopped, "64 heads");
  assert_has(printed(a, one, HTML, 0), "The search was stopped before its end.");
  plan_result *unfit = fx_unfit(a);
  unfit->search.optimal = false;
  assert_has(printed(a, unfit, TEXT, 100),
             "none fits so far (the search was stopped at its limit): the closest is over by 58.1");
  // The closest is shown in full, so it is not among the others.
  plan_result *again = fx_unfit(a);
  fx_reject(again, again->closest->choice, "does-not-fit", "the closest itself", 58.1, 0, 135.1);
  assert_lacks(printed(a, again, TEXT, 100), "the closest itself");
  assert_lacks(printed(a, again, HTML, 0), "the closest itself");
}

static void text_of_one_device(void **state) {
  arena *a = *state;
  const char *text = printed(a, fx_single(a), TEXT, 80);
  assert_has(text, "PLAN    one device \xc2\xb7 micro-batch 4 \xc2\xb7 recompute none\n");
  assert_has(text, "STEP    14.0 ms (11.9 to 16.1)");
  assert_has(text, "MEMORY  MiB per device, of 14.5 GiB\n");
  assert_lacks(text, "zero");
  assert_lacks(text, "OTHERS");
  // What is left of a difference of seconds is no bubble.
  plan_result *one = fx_single(a);
  one->best->time[PLAN_T_BUBBLE] = 1e-18;
  assert_lacks(printed(a, one, TEXT, 80), "bubble");
  assert_lacks(printed(a, one, HTML, 0), "</i> bubble</td>");
  one->search.considered = 1;
  assert_has(printed(a, one, TEXT, 80), "optimal: 1 plan, 1 pruned");
}

static void text_of_many_stages(void **state) {
  arena *a = *state;
  const char *text = printed(a, fx_wide(a), TEXT, 100);
  assert_has(text, "52 more rows");
  assert_has(text, "8 data-parallel (data 4 \xc3\x97 expert 2)");
  assert_has(text, "  0      0-2 ");
  assert_has(text, "  63     ");
  assert_has(text, "host  disk");
  assert_has(text, "within 1.2 % of the best (no plan takes less than 13.3 s)");
}

// ---- JSON ---------------------------------------------------------------------------------------

static json_t *loaded(arena *a, const plan_result *r) {
  json_error_t e;
  json_t *j = json_loads(printed(a, r, JSON, 0), JSON_REJECT_DUPLICATES, &e);
  if (!j) fail_msg("line %d: %s", e.line, e.text);
  return j;
}

// The value at a path like "best.mesh.data"; "stages.0" indexes. Fails when there is none.
static const json_t *at(const json_t *j, const char *path) {
  char word[64];
  for (const char *p = path; *p;) {
    size_t n = strcspn(p, ".");
    assert_true(n < sizeof word);
    memcpy(word, p, n);
    word[n] = 0;
    j = json_is_array(j) ? json_array_get(j, (size_t)atoi(word)) : json_object_get(j, word);
    if (!j) fail_msg("no `%s`", path);
    p += n + (p[n] == '.');
  }
  return j;
}

static void json_has_every_field(void **state) {
  arena *a = *state;
  json_t *j = loaded(a, fx_gpt3(a));
  // DESIGN section 6, in its order. `#` a whole number, `.` a real one, `"` a string, `[` a list,
  // `{` an object, `?` true or false.
  static const char *const fields[] = {"#schema",
                                       "\"dsmc",
                                       "\"source.digest",
                                       "\"cluster.digest",
                                       "{settings",
                                       "\"model.name",
                                       "#model.parameters",
                                       ".model.flops_per_step",
                                       "\"cluster.name",
                                       "#cluster.devices",
                                       "{best",
                                       "[candidates",
                                       "#best.mesh.data",
                                       "#best.mesh.pipeline",
                                       "#best.mesh.tensor",
                                       "#best.mesh.ulysses",
                                       "#best.mesh.ring",
                                       "#best.mesh.expert",
                                       "[best.mesh.order",
                                       "#best.micro_batch",
                                       "#best.micro_batches",
                                       "#best.interleave",
                                       "#best.zero.stage",
                                       "#best.zero.group",
                                       "\"best.recompute.summary",
                                       "[best.recompute.blocks",
                                       "\"best.offload.parameters",
                                       "\"best.offload.gradients",
                                       "\"best.offload.optimizer",
                                       "\"best.offload.activations",
                                       "#best.stages.0.first_layer",
                                       "#best.stages.7.last_layer",
                                       "[best.stages.0.extra",
                                       "#best.stages.0.parameters",
                                       "#best.stages.0.memory_bytes.parameters",
                                       ".best.stages.0.time_s.compute",
                                       ".best.step_s",
                                       ".best.step_s_low",
                                       ".best.step_s_high",
                                       ".best.tokens_per_s",
                                       ".best.tflops_per_device",
                                       ".best.mfu",
                                       ".best.hfu",
                                       "#best.memory_bytes.parameters",
                                       "#best.memory_bytes.gradients",
                                       "#best.memory_bytes.optimizer",
                                       "#best.memory_bytes.activations",
                                       "#best.memory_bytes.workspace",
                                       "#best.memory_bytes.reserve",
                                       "#best.memory_bytes.peak",
                                       "#best.memory_bytes.capacity",
                                       "{best.memory_bytes.host",
                                       "{best.memory_bytes.disk",
                                       "{best.memory_bytes.peak_at",
                                       ".best.time_s.compute",
                                       ".best.time_s.tensor",
                                       ".best.time_s.sequence",
                                       ".best.time_s.expert",
                                       ".best.time_s.pipeline",
                                       ".best.time_s.data",
                                       ".best.time_s.optimizer",
                                       ".best.time_s.offload",
                                       ".best.time_s.bubble",
                                       ".best.busy_s.tensor",
                                       "#best.bytes.tensor.all_reduce.intra",
                                       "#best.bytes.data.reduce_scatter.inter",
                                       "#best.bytes.data.all_gather.inter",
                                       "#best.bytes.ulysses.all_to_all.intra",
                                       "#best.bytes.pipeline.send.inter",
                                       "#search.considered",
                                       "#search.pruned",
                                       ".search.seconds",
                                       "?search.optimal",
                                       ".search.gap",
                                       ".search.bound_s",
                                       "\"rejected.0.plan",
                                       "\"rejected.0.code",
                                       "\"rejected.0.reason",
                                       "#rejected.3.over_bytes",
                                       ".rejected.0.slower",
                                       "[fixes",
                                       "[warnings"};
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    const json_t *x = at(j, fields[i] + 1);
    bool right = fields[i][0] == '#'   ? json_is_integer(x)
                 : fields[i][0] == '.' ? json_is_real(x)
                 : fields[i][0] == '"' ? json_is_string(x)
                 : fields[i][0] == '[' ? json_is_array(x)
                 : fields[i][0] == '?' ? json_is_boolean(x)
                                       : json_is_object(x);
    if (!right) fail_msg("`%s` has another type", fields[i]);
  }
  assert_true(json_equal(at(j, "best"), at(j, "candidates.0")));
  assert_int_equal(json_array_size(at(j, "candidates")), 4);
  assert_string_equal(json_string_value(at(j, "dsmc")), DSMC_VERSION);
  assert_string_equal(json_string_value(at(j, "best.stages.7.extra.0")), "head");
  assert_int_equal(json_array_size(at(j, "best.stages.1.extra")), 0);
  assert_true(json_is_null(at(j, "rejected.4.slower")));  // never timed
  // Settings are what they are: numbers, words, truth.
  assert_int_equal(json_integer_value(json_object_get(at(j, "settings"), "train.seq")), 2048);
  assert_true(json_is_real(json_object_get(at(j, "settings"), "train.optimizer.lr")));
  assert_true(json_is_true(json_object_get(at(j, "settings"), "gpt3.tied")));
  assert_true(json_is_string(json_object_get(at(j, "settings"), "train.precision")));
  json_decref(j);
}

static double sum_of(const json_t *o) {
  double sum = 0;
  for (void *i = json_object_iter((json_t *)o); i; i = json_object_iter_next((json_t *)o, i))
    sum += json_number_value(json_object_iter_value(i));
  return sum;
}

static void json_sums_hold(void **state) {
  arena *a = *state;
  for (int i = 0; i < FX_ALL; i++) {
    plan_result *r = fx_all[i].make(a);
    json_t *j = loaded(a, r);
    const json_t *all = at(j, "candidates"), *c;
    size_t k;
    assert_int_equal(json_array_size(all), r->candidates.n);
    json_array_foreach((json_t *)all, k, c) {
      double step = json_number_value(at(c, "step_s"));
      assert_true(fabs(sum_of(at(c, "time_s")) - step) <= 1e-9 * step);
      int64_t product = 1;
      for (int x = 0; x < PLAN_AXES; x++)
        product *=
            json_integer_value(at(c, arena_printf(a, "mesh.%s", plan_axis_name((plan_axis)x))));
      if (r->candidates.n > 1 && strcmp(fx_all[i].name, "gpt3") == 0)
        assert_int_equal(product, json_integer_value(at(j, "cluster.devices")));
      if (k) continue;
      const plan_stage *s = &r->best->stage[0];
      assert_int_equal(json_integer_value(at(c, "stages.0.memory_bytes.peak")), s->peak);
      assert_int_equal(json_integer_value(at(c, "memory_bytes.peak")), r->best->peak);
      assert_int_equal(json_array_size(at(c, "stages")), r->best->nstages);
    }
    assert_int_equal(json_array_size(at(j, "rejected")), r->rejected.n);
    json_decref(j);
  }
}

static void json_of_what_does_not_fit(void **state) {
  arena *a = *state;
  json_t *j = loaded(a, fx_unfit(a));
  assert_true(json_is_null(at(j, "best")));
  assert_int_equal(json_array_size(at(j, "candidates")), 0);
  assert_int_equal(json_integer_value(at(j, "fixes.0.peak")), fx_gib(38.1));
  assert_string_equal(json_string_value(at(j, "fixes.1.flags")), "--cluster dgx-a100-80g:16");
  assert_true(json_is_object(at(j, "closest.memory_bytes")));
  assert_true(json_is_true(at(j, "search.optimal")));
  json_decref(j);
  plan_result *stopped = fx_unfit(a);
  stopped->search.optimal = false;
  j = loaded(a, stopped);
  assert_false(json_is_true(at(j, "search.optimal")));
  json_decref(j);
  j = loaded(a, fx_illegal(a));
  assert_true(json_is_null(at(j, "closest")));
  json_decref(j);
}

static void json_keeps_hostile_names(void **state) {
  arena *a = *state;
  plan_result *r = fx_hostile(a);
  r->best->mfu = NAN;  // JSON has no word for it
  json_t *j = loaded(a, r);
  assert_string_equal(json_string_value(at(j, "model.name")), show_clean(a, r->model.name));
  assert_string_equal(json_string_value(at(j, "cluster.name")), show_clean(a, FX_NASTY));
  assert_true(json_is_null(at(j, "best.mfu")));
  json_decref(j);
}

// ---- plan files ---------------------------------------------------------------------------------

static const section *read_plan(arena *a, const plan_result *r) {
  const char *text = printed(a, r, PLAN, 0);
  diags d;
  diags_init(&d, a);
  file *f = parse_file(a, &d, source_from_text(a, "x.plan", text, strlen(text)));
  keys_check_file(a, &d, f);
  if (diags_errors(&d)) {
    diags_print(&d, stderr);
    fail_msg("not accepted:\n%s", text);
  }
  assert_int_equal(f->items.n, 1);
  assert_int_equal(f->items.at[0]->kind, ITEM_SECTION);
  return f->items.at[0]->section;
}

static const expr *value_of(const section *s, const char *key) {
  for (int i = 0; i < s->entries.n; i++)
    if (s->entries.at[i]->value && strcmp(s->entries.at[i]->key.text, key) == 0)
      return s->entries.at[i]->value;
  fail_msg("no `%s`", key);
  return NULL;
}

static void plan_files_read_back(void **state) {
  arena *a = *state;
  for (int i = 0; i < FX_ALL; i++) {
    plan_result *r = fx_all[i].make(a);
    const plan_candidate *c = r->best ? r->best : r->closest;
    if (!c) continue;
    const section *s = read_plan(a, r);
    assert_string_equal(s->kind.text, "plan");
    const expr *mesh = value_of(s, "mesh");
    int64_t product = 1;
    for (int k = 0; k < mesh->items.n; k++)
      for (int n = 0; n < mesh->items.at[k]->call.args.n; n++)
        product *= mesh->items.at[k]->call.args.at[n].value->number.whole;
    assert_int_equal(product, plan_choice_devices(&c->choice));
    assert_int_equal(value_of(s, "micro_batch")->number.whole, c->choice.micro_batch);
    if (c->nstages < 2) continue;
    const expr *stages = value_of(s, "stages");
    assert_int_equal(stages->items.n, c->nstages);
    for (int k = 0; k < c->nstages; k++)
      assert_int_equal(stages->items.at[k]->number.whole,
                       c->stage[k].last_layer - c->stage[k].first_layer + 1);
  }
  const char *text = printed(a, fx_gpt3(a), PLAN, 0);
  assert_has(text, "plan gpt3 {\n  cluster = \"dgx-a100-80g:1024\"\n");
  assert_has(text, "mesh = [data(32), pipeline(8), tensor(4)]");
  assert_has(text, "order = interleaved(6)");
  assert_has(text, "\"h.attn.c_attn.weight\" = \"heads/tensor\"");
  // A state cut over a part of the data ranks names the factor.
  const char *wide = printed(a, fx_wide(a), PLAN, 0);
  assert_has(wide, "mesh = [data(2, 2), pipeline(64)");
  assert_has(wide, "cut = \"data.1\"");
  assert_has(wide, "optimizer = disk");
  // Names that the grammar keeps for itself.
  plan_result *r = fx_single(a);
  static const char *const names[][2] = {{"model", "plan model_plan {"},
                                         {"7b", "plan _7b {"},
                                         {"a-b", "plan a_b {"},
                                         {"", "plan best {"}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    r->model.name = names[i][0];
    assert_has(printed(a, r, PLAN, 0), names[i][1]);
    read_plan(a, r);
  }
  // All of them, as the lexer has them: `"repeat"   { put(...) }`.
  const char *why;
  const source *lexer = source_read(a, "frontend/dsm.l", &why);
  assert_non_null(lexer);
  int words = 0;
  for (const char *p = lexer->text; (p = strstr(p, "\n\"")); p += 2) {
    size_t n = strspn(p + 2, "abcdefghijklmnopqrstuvwxyz");
    if (!n || p[2 + n] != '"') continue;
    r->model.name = arena_strndup(a, p + 2, n);
    read_plan(a, r);
    words++;
  }
  assert_true(words >= 21);
}

// ---- the page -----------------------------------------------------------------------------------

// Every tag closed, in order; attributes in quotes; `&` only where it begins an entity.
static void assert_well_formed(arena *a, const char *page) {
  VEC(const char *) open = {0};
  assert_true(str_starts(page, "<!DOCTYPE html>"));
  for (const char *p = page + strlen("<!DOCTYPE html>"); *p;) {
    if (*p == '&') {
      size_t n = 1 + strcspn(p + 1, ";<& \n");
      if (p[n] != ';' || n < 3) fail_msg("a bare & at %.40s", p);
      p += n;
      continue;
    }
    if (*p == '>') fail_msg("a bare > before %.40s", p);
    if (*p != '<') {
      p++;
      continue;
    }
    const char *start = ++p;
    bool closes = *p == '/';
    p += closes;
    size_t n = strspn(p, "abcdefghijklmnopqrstuvwxyz0123456789");
    if (!n) fail_msg("no tag: %.40s", start);
    const char *name = arena_strndup(a, p, n);
    p += n;
    while (*p && *p != '>' && *p != '/') {  // attributes
      assert_int_equal(*p, ' ');
      p += strspn(p, " ");
      size_t key = strcspn(p, "= >");
      p += key;
      if (!key || p[0] != '=' || p[1] != '"') fail_msg("an attribute of %.60s", start);
      p += 2 + strcspn(p + 2, "\"<");
      if (*p != '"') fail_msg("an attribute of %.60s does not end", start);
      p++;
    }
    bool empty = *p == '/';
    p += empty;
    assert_int_equal(*p, '>');
    p++;
    if (closes) {
      if (!open.n || strcmp(vec_last(&open), name) != 0)
        fail_msg("</%s> closes <%s>", name, open.n ? vec_last(&open) : "nothing");
      open.n--;
    } else if (!empty) {
      vec_push(a, &open, name);
      if (strcmp(name, "style") == 0) p = strstr(p, "</style>");  // another language
    }
  }
  if (open.n) fail_msg("<%s> is never closed", vec_last(&open));
}

static void pages_are_well_formed_and_alone(void **state) {
  arena *a = *state;
  static const char *const foreign[] = {"http", "src=",  "href=", "url(", "@import", "<script",
                                        ">nan", "\"nan", "-nan",  "inf%", "(null)"};
  for (int i = 0; i < FX_ALL; i++) {
    const char *page = printed(a, fx_all[i].make(a), HTML, 0);
    assert_well_formed(a, page);
    for (size_t k = 0; k < sizeof foreign / sizeof *foreign; k++) assert_lacks(page, foreign[k]);
    assert_has(page, "prefers-color-scheme:dark");
    assert_has(page, "@media print");
  }
  const char *hostile = printed(a, fx_hostile(a), HTML, 0);
  assert_lacks(hostile, "<b a=");
  assert_lacks(hostile, "\x1b");
  assert_has(hostile, "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;amp; [31m");
}

static void page_says_what_matters(void **state) {
  arena *a = *state;
  const char *page = printed(a, fx_gpt3(a), HTML, 0);
  static const char *const parts[] = {
      "<b>data 32 \xc3\x97 pipeline 8 \xc3\x97 tensor 4</b>",
      "interleave 6 \xc2\xb7 zero 1",
      "<b>18.0 s</b>",
      "17.0 to 18.9 s",
      "<b>45.8 GiB</b>",
      "of 77.0 GiB, 59.5 %",
      "stage 0: warm-up, layer 11, mlp.c_fc",
      "<b>the speed of the devices</b>",
      "89.6 % of the step",
      "capacity 77.0 GiB",
      ("stages 1\xe2\x80\x93"
       "6"),
      ">16.10 s<",
      ">35.9 %<",
      ">162.0 GiB<",
      "4 \xc3\x97 all_reduce",
      "slower by 250 %: weights gathered 6 times a step over links of 25 GB/s",
      "does not fit by 16.8 GiB",
      "<code>heads/tensor</code>",
      "Narayanan et al. 2021, table 1",
      "Proved optimal",
      ">41,208<",
      ">40,913<",
      "What each pipeline stage does"};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) assert_has(page, parts[i]);
  const char *unfit = printed(a, fx_unfit(a), HTML, 0);
  assert_has(unfit, "No plan fits.");
  assert_has(unfit, "over by 58.1 GiB");
  assert_has(unfit, "<code>--pin offload=optimizer:host</code>");
  assert_lacks(unfit, "What each pipeline stage does");
  const char *illegal = printed(a, fx_illegal(a), HTML, 0);
  assert_has(illegal, "Every way to split this job is illegal");
  assert_has(illegal, "64 heads cannot be split over tensor = 7");
  plan_result *one = fx_illegal(a);
  one->rejected.n = 1;
  assert_has(printed(a, one, HTML, 0), "None is legal: 64 heads cannot be split over tensor = 7.");
  const char *wide = printed(a, fx_wide(a), HTML, 0);
  assert_has(wide,
             "stages 8\xe2\x80\x93"
             "55 not drawn");
  assert_has(wide, "40 rows between");
}

static void the_front_is_what_nothing_beats(void **state) {
  arena *a = *state;
  static const struct {
    double bytes, tokens;
    bool fits, front;
  } rows[] = {
      {10, 100, true, true},  {20, 150, true, true}, {20, 140, true, false},
      {30, 150, true, false}, {5, 10, true, true},   {40, 900, false, false},
      {10, 100, true, false},  // a twin: the first
      {0, 500, true, false},  {50, 160, true, true}, {7, 0, true, false},
  };
  report_points p = {0};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    vec_push(a, &p,
             (report_point){
                 .bytes = rows[i].bytes, .tokens_per_s = rows[i].tokens, .fits = rows[i].fits});
  report_mark_front(&p);
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    assert_int_equal(p.at[i].front, rows[i].front);
}

// ---- the timeline -------------------------------------------------------------------------------

static const timeline *equal_stages(arena *a, pipe_kind kind, int stages, int chunks, int64_t micro,
                                    double send) {
  pipe_chunk *c = arena_new(a, pipe_chunk, stages * chunks);
  for (int i = 0; i < stages * chunks; i++)
    c[i] = (pipe_chunk){.forward = 1, .backward = 2, .weight = 1, .send = send, .send_back = send};
  pipeline *p = arena_new(a, pipeline, 1);
  *p = (pipeline){.kind = kind, .stages = stages, .chunks = chunks, .micro = micro, .chunk = c};
  return timeline_of(a, p);
}

static void assert_near(double got, double want) {
  if (fabs(got - want) > 1e-9 * want) fail_msg("%.12g instead of %.12g", got, want);
}

static void timelines_take_what_formulas_say(void **state) {
  arena *a = *state;
  const timeline *t = equal_stages(a, PIPE_ONE_F_ONE_B, 4, 1, 8, 0);
  assert_near(t->end, (8 + 3) * 3);
  assert_near(timeline_busy(t), 8.0 / 11);
  t = equal_stages(a, PIPE_ONE_F_ONE_B, 1, 1, 5, 0);
  assert_near(t->end, 15);
  t = equal_stages(a, PIPE_INTERLEAVED, 4, 2, 8, 0);
  assert_near(t->end, (2 * 8 + 3) * 3);
  // One micro-batch goes down and comes back: each of the six messages counts.
  t = equal_stages(a, PIPE_ONE_F_ONE_B, 4, 1, 1, 0.25);
  assert_near(t->end, 4 * 3 + 6 * 0.25);
  // Nothing overlaps on a stage, and no phase is lost.
  t = equal_stages(a, PIPE_INTERLEAVED, 4, 3, 12, 0.1);
  for (int i = 0; i < 4; i++) {
    assert_int_equal(t->n[i], 2 * 3 * 12);
    for (int64_t k = 1; k < t->n[i]; k++)
      assert_true(t->at[i][k].start >= t->at[i][k - 1].end - 1e-12);
  }
  pipeline none = {.stages = 0};
  assert_null(timeline_of(a, &none));
}

// The picture and the planner's own time of a step are of one thing.
static void timelines_agree_with_the_longest_path(void **state) {
  arena *a = *state;
  uint64_t seed = 7;
  for (int round = 0; round < 400; round++) {
    int kind = round % 4, stages = 1 + round % 7, chunks = kind == PIPE_INTERLEAVED ? 2 : 1;
    int64_t micro = kind == PIPE_INTERLEAVED ? stages * (1 + round % 3) : 1 + round % 11;
    pipe_chunk *c = arena_new(a, pipe_chunk, stages * chunks);
    double *before = arena_new(a, double, stages), *after = arena_new(a, double, stages);
    for (int i = 0; i < stages * chunks; i++) {
      double weight = 0.1 + draw_real(&seed);
      c[i] = (pipe_chunk){.forward = 0.1 + draw_real(&seed),
                          .backward = 2 * weight,
                          .weight = weight,
                          .send = (0.1 + draw_real(&seed)) / 8,
                          .send_back = (0.1 + draw_real(&seed)) / 8};
    }
    for (int i = 0; i < stages; i++) before[i] = 0.05 * i, after[i] = 0.3 - 0.02 * i;
    pipeline p = {.kind = (pipe_kind)kind,
                  .stages = stages,
                  .chunks = chunks,
                  .micro = micro,
                  .chunk = c,
                  .before = before,
                  .after = after};
    if (pipe_check(a, &p)) continue;
    assert_near(timeline_of(a, &p)->end, pipe_longest(a, &p).step);
  }
}

int main(int argc, char **argv) {
  if (argc >= 4 && strcmp(argv[1], "--print") == 0) {
    arena a;
    arena_init(&a);
    int which = -1, how = -1;
    for (int i = 0; i < FX_ALL; i++)
      if (strcmp(argv[2], fx_all[i].name) == 0) which = i;
    for (int f = 0; f < (int)(sizeof form_names / sizeof *form_names); f++)
      if (strcmp(argv[3], form_names[f]) == 0) how = f;
    if (which < 0 || how < 0) return 2;
    print_as(fx_all[which].make(&a), (form)how, argc > 4 ? atoi(argv[4]) : 100, stdout);
    arena_free(&a);
    return 0;
  }
  const struct CMUnitTest tests[] = {
#define T(NAME) cmocka_unit_test_setup_teardown(NAME, make_arena, free_arena)
      T(numbers_have_units),
      T(texts_are_made_safe),
      T(choices_in_words_and_flags),
      T(no_line_is_too_long),
      T(text_says_what_matters),
      T(text_of_what_does_not_fit),
      T(text_of_one_device),
      T(text_of_many_stages),
      T(json_has_every_field),
      T(json_sums_hold),
      T(json_of_what_does_not_fit),
      T(json_keeps_hostile_names),
      T(plan_files_read_back),
      T(pages_are_well_formed_and_alone),
      T(page_says_what_matters),
      T(the_front_is_what_nothing_beats),
      T(timelines_take_what_formulas_say),
      T(timelines_agree_with_the_longest_path),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
