// dsmc plan FILE: how to run it on a cluster, and why so.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/clusters.h"
#include "frontend/keys.h"
#include "frontend/verb_plan.h"

// ---- pins ---------------------------------------------------------------------------------------

static bool wrong_pin(cli *c, const setting *s, const char *what) {
  diag_error(&c->diags, s->value->at, DIAG_WRONG_VALUE, "`%s` is %s", s->name.text, what);
  return false;
}

// A size, or the sizes of an axis's factors, which multiply.
static bool pin_axis(cli *c, const setting *s, int64_t *out) {
  const expr *e = s->value;
  int64_t n = 1;
  if (e->kind == EXPR_NUMBER && e->number.integral) {
    n = e->number.whole;
  } else if (e->kind == EXPR_LIST) {
    for (int i = 0; i < e->items.n; i++) {
      const expr *x = e->items.at[i];
      if (x->kind != EXPR_NUMBER || !x->number.integral) return wrong_pin(c, s, "a list of sizes");
      n *= x->number.whole;
    }
  } else {
    return wrong_pin(c, s, "a whole number, a list of factors, or auto");
  }
  if (n < 1) return wrong_pin(c, s, "a size from 1 on");
  *out = n;
  return true;
}

static bool pin_order(cli *c, const setting *s, plan_pins *out) {
  const expr *e = s->value;
  const char *name = e->kind == EXPR_NAME ? e->text : e->kind == EXPR_CALL ? e->call.name.text : "";
  for (int k = PIPE_ONE_F_ONE_B; k <= PIPE_ZERO_BUBBLE; k++)
    if (str_eq(name, pipe_kind_name((pipe_kind)k))) out->schedule = k;
  if (out->schedule < 0)
    return wrong_pin(c, s, "one_f_one_b, interleaved(CHUNKS), gpipe or zero_bubble");
  if (e->kind == EXPR_CALL && e->call.args.n == 1) {
    const expr *v = e->call.args.at[0].value;
    if (v->kind == EXPR_NUMBER && v->number.integral) out->interleave = v->number.whole;
  }
  return true;
}

// "optimizer:host+activations:device", or none.
static bool pin_offload(cli *c, const setting *s, plan_pins *out) {
  sb text = {.arena = c->arena};
  expr_print(&text, s->value);
  const char *p = sb_str(&text);
  if (*p == '"') p = arena_strndup(c->arena, p + 1, strlen(p) - 2);
  for (int i = 0; i < PLAN_CLASSES; i++) out->home[i] = PLAN_DEVICE;
  if (str_eq(p, "none")) return true;
  while (*p) {
    size_t n = strcspn(p, "+");
    const char *one = arena_strndup(c->arena, p, n), *colon = strchr(one, ':');
    int class = -1, home = -1;
    for (int i = 0; i < PLAN_CLASSES; i++) {
      const char *name = plan_class_name((plan_class)i);
      if (colon && (size_t)(colon - one) == strlen(name) && str_starts(one, name)) class = i;
    }
    for (int i = 0; i < PLAN_HOMES; i++)
      if (colon && str_eq(colon + 1, plan_home_name((plan_home)i))) home = i;
    if (class < 0 || home < 0)
      return wrong_pin(c, s,
                       "CLASS:HOME, several joined by `+`: classes parameters gradients "
                       "optimizer activations, homes device host disk");
    if (home != PLAN_DEVICE && (class != PLAN_OPTIMIZER || home == PLAN_DISK)) {
      diag *e =
          diag_error(&c->diags, s->value->at, DIAG_PLANNED, "%s on the %s is planned, not built",
                     plan_class_name((plan_class) class), plan_home_name((plan_home)home));
      diag_note(e, "optimizer:host is built");
      return false;
    }
    out->home[class] = (plan_home)home;
    p += n + (p[n] == '+');
  }
  return true;
}

static bool pin_one(cli *c, const setting *s, plan_pins *out) {
  const char *name = s->name.text;
  const expr *e = s->value;
  if (!keys_check_pin(c->arena, &c->diags, s)) return false;
  if (expr_is_name(e, "auto")) return true;
  for (int x = 0; x < PLAN_AXES; x++)
    if (str_eq(name, plan_axis_name((plan_axis)x))) return pin_axis(c, s, &out->size[x]);
  if (str_eq(name, "order")) return pin_order(c, s, out);
  if (str_eq(name, "offload")) return pin_offload(c, s, out);
  bool whole = e->kind == EXPR_NUMBER && e->number.integral;
  if (str_eq(name, "recompute")) {
    for (int i = 0; i < PLAN_RECOMPUTES; i++)
      if (expr_is_name(e, plan_recompute_name((plan_recompute)i))) out->recompute = i;
    if (out->recompute >= 0) return true;
    diag *d = diag_error(&c->diags, e->at, DIAG_PLANNED,
                         "a budget of bytes for recompute is planned for `dsmc plan`, not built");
    diag_note(d, "none, selective and full are");
    return false;
  }
  if (str_eq(name, "micro_batch") || str_eq(name, "interleave")) {
    if (!whole || e->number.whole < 1) return wrong_pin(c, s, "a whole number from 1 on");
    if (str_eq(name, "micro_batch"))
      out->micro_batch = e->number.whole;
    else
      out->interleave = e->number.whole;
    return true;
  }
  if (str_eq(name, "zero")) {
    if (!whole || e->number.whole > 3) return wrong_pin(c, s, "0, 1, 2 or 3");
    out->zero = (int)e->number.whole;
    return true;
  }
  if (str_eq(name, "matmul") || str_eq(name, "stream") || str_eq(name, "cluster")) return true;
  diag_error(&c->diags, s->name.at, DIAG_PLANNED, "the planner does not heed `%s` yet", name);
  return false;
}

bool plan_parse_pins(cli *c, const char *where, const char *text, plan_pins *out) {
  setting_list list =
      parse_settings(c->arena, &c->diags, source_from_text(c->arena, where, text, strlen(text)));
  if (diags_errors(&c->diags)) return false;
  for (int i = 0; i < list.n; i++)
    if (!pin_one(c, &list.at[i], out)) return false;
  return true;
}

// ---- the job ------------------------------------------------------------------------------------

// Tokens of a step: of the targets, or of the first input that has positions.
static double tokens_of(const ir_module *m, int64_t batch) {
  const ir_func *f = ir_func_find((ir_module *)(uintptr_t)m, "train_step");
  double n = 1;
  for (int i = 0; f && i < f->body->ops.n; i++) {
    const ir_op *op = f->body->ops.at[i];
    if (op->code != IR_input || op->out[0]->type.rank < 2) continue;
    n = (double)ir_elements(&op->out[0]->type);
    if (str_eq(ir_attr_str(op, "name", ""), "targets")) break;
  }
  return n * (double)batch;  // the module has a micro-batch of one sample
}

bool plan_open(cli *c, compiled *k, plan_job *out) {
  static const recompute_mode mode[PLAN_RECOMPUTES] = {RECOMPUTE_NONE, RECOMPUTE_SELECTIVE,
                                                       RECOMPUTE_FULL};
  *out = (plan_job){.source = c->files.at[0],
                    .model = k->job->model_name,
                    .batch = k->job->batch,
                    .precision = ir_dtype_name(k->job->precision)};
  for (int i = 0; i < PLAN_RECOMPUTES; i++) {
    ir_module *m = compile_step(k, mode[i]);
    if (!m) return false;
    pg_graph *g = pg_read(c->arena, m);
    if (g->error) {
      fprintf(stderr, "dsmc: %s cannot be planned: %s\n", out->source, g->error);
      k->exit_code = EXIT_UNFIT;
      return false;
    }
    out->rules[i] = sh_rules_of(c->arena, g);
    if (!i) out->tokens = tokens_of(m, out->batch);
  }
  for (int i = 0; i < k->job->settings.n; i++) {
    const job_setting *s = &k->job->settings.at[i];
    vec_push(c->arena, &out->settings, (plan_setting){s->name, s->value});
  }
  return true;
}

// ---- output -------------------------------------------------------------------------------------

static bool write_to(cli *c, const char *path, const plan_result *r,
                     void (*print)(const plan_result *, FILE *)) {
  FILE *f = fopen(path, "w");
  bool good = f != NULL;
  if (f) {
    print(r, f);
    good = !ferror(f);
    good &= fclose(f) == 0;
  }
  if (!good)
    fprintf(stderr, "dsmc: error: %s: %s\n", path, strerror(errno));
  else if (!cli_has(c, OPT_QUIET))
    fprintf(stderr, "wrote %s\n", path);
  return good;
}

static void print_best_file(const plan_result *r, FILE *out) { plan_print_file(r, r->best, out); }

// Why a plan with these pins lost: the best one that has them, beside the best of all.
static bool print_why(cli *c, const plan_job *out, const cl_cluster *cluster, const plan_pins *pins,
                      const plan_options *o, const plan_result *best) {
  plan_pins p = *pins;
  const char *text = cli_get(c, OPT_WHY);
  if (!plan_parse_pins(c, "--why", text, &p)) return false;
  plan_result *r = plan_search(c->arena, out, cluster, &p, o);
  printf("\n%s: ", text);
  if (r->best && best->best) {
    double more = r->best->step_s / best->best->step_s - 1;
    printf("%s, %.3g s", plan_choice_text(c->arena, &r->best->choice), r->best->step_s);
    if (more < 1e-9) {
      puts(" - that is the plan above, or as fast");
      return true;
    }
    printf(", %.1f %% slower\n", 100 * more);
    for (int t = 0; t < PLAN_TIMES; t++) {
      double was = best->best->time[t], is = r->best->time[t];
      if (is - was > 0.002 * best->best->step_s || was - is > 0.002 * best->best->step_s)
        printf("  %-10s %9.3g s instead of %.3g s\n", plan_time_name((plan_time)t), is, was);
    }
  } else {
    printf("%s\n", r->rejected.n ? r->rejected.at[0].reason : "no such plan");
  }
  return true;
}

// The cluster that NAME:DEVICES is a part of.
static const cl_cluster *whole_of(cli *c, const sema_program *p, const char *spec) {
  const char *colon = spec ? strrchr(spec, ':') : NULL;
  if (!colon || !colon[1] || colon[1 + strspn(colon + 1, "0123456789")]) return NULL;
  if (str_starts(spec, "this-host")) return NULL;
  const char *name = arena_strndup(c->arena, spec, (size_t)(colon - spec));
  return cluster_find(c->arena, &c->diags, p, name, compile_cache_folder(c));
}

int verb_plan(cli *c) {
  compiled k;
  plan_job planned;
  plan_pins pins = plan_pins_none();
  if (cli_has(c, OPT_AGAINST) || cli_has(c, OPT_PLAN)) {
    fprintf(stderr, "dsmc: --%s is planned, not built\n",
            cli_has(c, OPT_PLAN) ? "plan" : "against");
    return EXIT_INPUT;
  }
  if (!compile_open(c, c->files.at[0], &k)) return compile_finish(c, &k);
  for (int i = 0; i < c->options[OPT_PIN].n; i++)
    if (!plan_parse_pins(c, "--pin", c->options[OPT_PIN].at[i], &pins)) return cli_finish(c);
  const char *spec = cli_get(c, OPT_CLUSTER);
  const cl_cluster *cluster = cluster_find(c->arena, &c->diags, k.program,
                                           spec ? spec : "this-host:1", compile_cache_folder(c));
  if (!cluster) return cli_finish(c);
  if (!plan_open(c, &k, &planned)) return compile_finish(c, &k);
  const char *search = cli_get(c, OPT_SEARCH), *limit = cli_get(c, OPT_LIMIT);
  plan_options o = {.exhaustive = search && str_eq(search, "exhaustive"),
                    .limit = limit ? strtod(limit, NULL) : 0,
                    .top = (int)cli_number(c, OPT_TOP, 1)};
  o.whole = whole_of(c, k.program, spec);
  plan_result *r = plan_search(c->arena, &planned, cluster, &pins, &o);
  bool good = true;
  if (cli_has(c, OPT_JSON))
    plan_print_json(r, stdout);
  else
    plan_print_text(r, stdout, 100, c->diags.color && isatty(1));
  if (cli_has(c, OPT_REPORT)) good &= write_to(c, cli_get(c, OPT_REPORT), r, plan_print_html);
  if (cli_has(c, OPT_OUT) && r->best) good &= write_to(c, cli_get(c, OPT_OUT), r, print_best_file);
  if (cli_has(c, OPT_WHY) && !cli_has(c, OPT_JSON))
    good &= print_why(c, &planned, cluster, &pins, &o, r);
  int rc = compile_finish(c, &k);
  return rc ? rc : !good ? EXIT_INPUT : r->best ? EXIT_GOOD : EXIT_UNFIT;
}
