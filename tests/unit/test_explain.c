// How plans are shown: text, JSON, plan files and the page, over the plans of plan_fixture.h.
//
//   test_explain --print gpt3 text|color|json|html|file [columns]     shows one of them
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// cmocka.h wants the four above first
#include <cmocka.h>
#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/ast.h"
#include "frontend/diag.h"
#include "frontend/keys.h"
#include "passes/plan/show.h"
#include "plan_fixture.h"
#include "plan_stand_ins.h"
#include "runtime/base/version.h"

static int make_arena(void **state) {
  arena *a = malloc(sizeof *a);
  arena_init(a);
  *state = a;
  return 0;
}

static int free_arena(void **state) {
  arena_free(*state);
  free(*state);
  return 0;
}

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
      "36 % hidden",
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
      "NEXT    --report plan.html",
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
}

static void text_of_one_device(void **state) {
  arena *a = *state;
  const char *text = printed(a, fx_single(a), TEXT, 80);
  assert_has(text, "PLAN    one device \xc2\xb7 micro-batch 4 \xc2\xb7 recompute none\n");
  assert_has(text, "STEP    14.0 ms (11.9 to 16.1)");
  assert_has(text, "MEMORY  MiB per device, of 14.5 GiB\n");
  assert_lacks(text, "zero");
  assert_lacks(text, "OTHERS");
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

/*HTML*/
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
      T(numbers_have_units),  T(texts_are_made_safe),    T(choices_in_words_and_flags),
      T(no_line_is_too_long), T(text_says_what_matters), T(text_of_what_does_not_fit),
      T(text_of_one_device),  T(text_of_many_stages),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
