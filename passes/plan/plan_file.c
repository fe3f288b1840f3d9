// `dsmc plan -o OUT.plan`: a plan as a section of the language, to read, to edit, to build from.
//
//   plan gpt3 {
//     cluster = "dgx-a100-80g:1024"
//     mesh = [data(32), pipeline(8), tensor(4)]   # outer to inner
//     micro_batch = 1
//     order = interleaved(6);  stages = [12, 12, 12, 12, 12, 12, 12, 12]
//     ...
//
// The long form: it says order and factors, which the flat keys cannot. Only what was chosen is
// written; what it takes is in comments, since nothing reads it back.
#include <ctype.h>
#include <inttypes.h>
#include <string.h>

#include "passes/plan/show.h"
#include "runtime/base/str.h"

// A model's name as a name of the language.
static const char *label(arena *a, const char *name) {
  sb s = {.arena = a};
  for (const char *p = name ? name : ""; *p && s.n < 60; p++) {
    bool plain = ((unsigned char)*p < 0x80 && isalnum((unsigned char)*p)) || *p == '_';
    if (!s.n && isdigit((unsigned char)*p)) sb_put(&s, '_');
    sb_put(&s, plain ? *p : '_');
  }
  // Words of the grammar cannot be names.
  static const char *const words[] = {
      "import", "model",  "block",   "fn",     "param", "dim",  "input", "weight", "as",
      "output", "repeat", "require", "return", "grad",  "if",   "then",  "else",   "using",
      "and",    "or",     "not",     "true",   "false", "none", "auto"};
  const char *text = s.n ? sb_str(&s) : "best";
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (str_eq(text, words[i])) return arena_printf(a, "%s_plan", text);
  return text;
}

static const char *quoted(arena *a, const char *text) {
  sb s = {.arena = a};
  sb_put(&s, '"');
  for (const char *p = show_clean(a, text); *p; p++) {
    if (*p == '"' || *p == '\\') sb_put(&s, '\\');
    sb_put(&s, *p);
  }
  sb_put(&s, '"');
  return sb_str(&s);
}

// The inner factor of `data` that a state is cut over, when that is not all of it. (All ulysses
// and ring ranks share it anyway.)
static int64_t inner_factor(const plan_choice *c) {
  int64_t data = c->size[PLAN_DATA];
  int64_t factor = c->zero_group / (c->size[PLAN_ULYSSES] * c->size[PLAN_RING]);
  return c->zero && factor > 0 && factor < data && data % factor == 0 ? factor : 0;
}

static void print_mesh(const plan_choice *c, FILE *out) {
  int n = 0;
  fputs("  mesh = [", out);
  for (int i = 0; i < PLAN_AXES; i++) {
    plan_axis x = c->order[i];
    // Of one device the list is not empty: a mesh has an axis.
    bool only = plan_choice_devices(c) == 1 && x == PLAN_DATA;
    if (c->size[x] <= 1 && !only) continue;
    fprintf(out, "%s%s(", n++ ? ", " : "", plan_axis_name(x));
    int64_t inner = x == PLAN_DATA ? inner_factor(c) : 0;
    if (inner)
      fprintf(out, "%" PRId64 ", %" PRId64 ")", c->size[x] / inner, inner);
    else
      fprintf(out, "%" PRId64 ")", c->size[x]);
  }
  fputs("]  # outer to inner\n", out);
}

static void print_stages(const plan_candidate *c, FILE *out) {
  int column = fprintf(out, "  stages = [");
  for (int i = 0; i < c->nstages; i++) {
    if (i && column > 90)
      column = fprintf(out, ",\n            ") - 2;
    else if (i)
      column += fprintf(out, ", ");
    column += fprintf(out, "%" PRId64, plan_stage_layers(&c->stage[i]));
  }
  fputs("]  # layers of each\n", out);
}

static void print_order(const plan_choice *c, FILE *out) {
  if (c->interleave > 1)
    fprintf(out, "  order = interleaved(%" PRId64 ")\n", c->interleave);
  else
    fprintf(out, "  order = %s\n", pipe_kind_name(c->pipe));
}

static void print_state(const plan_choice *c, FILE *out) {
  fprintf(out, "  state {\n    zero = %d\n", c->zero);
  if (c->zero) fprintf(out, "    cut = \"data%s\"\n", inner_factor(c) ? ".1" : "");
  for (int k = 0; k < PLAN_CLASSES; k++)
    fprintf(out, "    %s = %s\n", plan_class_name((plan_class)k), plan_home_name(c->home[k]));
  fputs("  }\n", out);
}

void plan_print_file(const plan_result *r, const plan_candidate *c, FILE *out) {
  arena a;
  arena_init(&a);
  const plan_choice *k = &c->choice;
  fprintf(out, "# %s: %s a step, %s of %s on the fullest device\n", show_clean(&a, r->model.name),
          show_seconds(&a, c->step_s), show_bytes(&a, (double)c->peak),
          show_bytes(&a, (double)c->capacity));
  fprintf(out, "# %s\n", plan_choice_text(&a, k));
  const char *cluster = r->cluster->name ? r->cluster->name : "";
  if (!strchr(cluster, ':'))
    cluster = arena_printf(&a, "%s:%" PRId64, cluster, r->cluster->devices);
  fprintf(out, "plan %s {\n  cluster = %s\n", label(&a, r->model.name), quoted(&a, cluster));
  print_mesh(k, out);
  fprintf(out,
          "%s  micro_batch = %" PRId64 "  # of %" PRId64
          " sequences; micro-batches a step: %" PRId64 "\n",
          k->whole_stream ? "  sequence_parallel = false\n" : "", k->micro_batch, r->model.batch,
          k->micro_batches);
  if (k->size[PLAN_PIPELINE] > 1) {
    print_order(k, out);
    print_stages(c, out);
  }
  fprintf(out, "  recompute = %s", plan_recompute_words(&a, k));
  for (int i = 0, n = 0; k->also && i < c->nlayers; i++)
    if (c->layers[i].recompute == k->also)
      fprintf(out, "%s%" PRId64 "-%" PRId64, n++ ? ", " : "  # the latter in ", c->layers[i].first,
              c->layers[i].last);
  fputc('\n', out);
  if (c->ncuts) {
    fputs("  layers \"*\" {\n", out);
    for (int i = 0; i < c->ncuts; i++)
      fprintf(out, "    %s = %s\n", quoted(&a, c->cut[i].name), quoted(&a, c->cut[i].cut));
    fputs("  }\n", out);
  }
  print_state(k, out);
  fputs("}\n", out);
  arena_free(&a);
}
