// dsmc plan FILE: how to run it on a cluster, and why so.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/clusters.h"
#include "frontend/verb_plan.h"
#include "passes/plan/show.h"

static const recompute_mode mode_of[PLAN_RECOMPUTES] = {RECOMPUTE_NONE, RECOMPUTE_SELECTIVE,
                                                        RECOMPUTE_FULL};

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
  *out = (plan_job){.source = c->files.at[0],
                    .digest = compile_source_digest(c, k->program),
                    .model = k->job->model_name,
                    .batch = k->job->batch,
                    .precision = ir_dtype_name(k->job->precision)};
  ir_module *step[PLAN_RECOMPUTES];
  if (!compile_steps(k, mode_of, PLAN_RECOMPUTES, step)) return false;
  for (int i = 0; i < PLAN_RECOMPUTES; i++) {
    pg_graph *g = pg_read(c->arena, step[i]);
    if (g->error) {
      fprintf(stderr, "dsmc: %s cannot be planned: %s\n", out->source, g->error);
      k->exit_code = EXIT_UNFIT;
      return false;
    }
    out->rules[i] = sh_rules_of(c->arena, g);
    if (!i) out->tokens = tokens_of(step[i], out->batch);
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
    diag_error(&c->diags, span_none(), DIAG_CANNOT_WRITE, "cannot write %s: %s", path,
               strerror(errno));
  else if (!cli_has(c, OPT_QUIET))
    fprintf(stderr, "wrote %s\n", path);
  return good;
}

static void print_best_file(const plan_result *r, FILE *out) { plan_print_file(r, r->best, out); }

// Why a plan with these pins lost: the best one that has them, beside the best of all.
static bool print_why(cli *c, const plan_job *out, const cl_cluster *cluster,
                      const plan_given *given, const plan_options *o, const plan_result *best) {
  plan_given p = *given;
  const char *text = cli_get(c, OPT_WHY);
  if (!plan_given_pin(c, "--why", text, &p)) return false;
  plan_result *r = plan_search(c->arena, out, cluster, &p.pins, o);
  printf("\n%s: ", text);
  if (r->best && best->best) {
    double more = r->best->step_s / best->best->step_s - 1;
    arena *a = c->arena;
    printf("%s, %s", plan_choice_text(a, &r->best->choice), show_seconds(a, r->best->step_s));
    if (more < 1e-9) {
      puts(" - that is the plan above, or as fast");
      return true;
    }
    printf(", %.1f %% slower\n", 100 * more);
    for (int t = 0; t < PLAN_TIMES; t++) {
      double was = best->best->time[t], is = r->best->time[t];
      if (is - was > 0.002 * best->best->step_s || was - is > 0.002 * best->best->step_s)
        printf("  %-10s %9s instead of %s\n", plan_time_name((plan_time)t), show_seconds(a, is),
               show_seconds(a, was));
    }
  } else {
    printf("%s\n", r->rejected.n ? r->rejected.at[0].reason : "no such plan");
  }
  return true;
}

// ---- memory -------------------------------------------------------------------------------------

typedef struct layouts {
  cli *c;
  compiled *compiled;
  const plan_given *given;
  int ops;  // of the graph
} layouts;

static bool lay_out(void *ctx, const cl_device *d, const plan_choice *choice, laid *out) {
  const layouts *l = ctx;
  arena scratch;  // of what is compiled: only the layout's sums are kept
  arena_init(&scratch);
  scratch.oom = l->c->arena->oom;
  scratch.oom_ctx = l->c->arena->oom_ctx;
  cli own = *l->c;
  own.arena = &scratch;
  const sched *s = compile_layout(&own, l->compiled, l->given, d->arch, choice->micro_batch,
                                  mode_of[choice->recompute]);
  if (s) laid_read(l->c->arena, s, out);
  l->c->diags = own.diags;
  arena_free(&scratch);
  return s != NULL;
}

// Each stage is compiled. What is larger takes longer than a search should.
enum { MOST_OPS = 20000, MOST_STAGES = 16 };

static bool lay_out_ranks(void *ctx, const cl_cluster *cluster, const plan_candidate *x,
                          laid *out) {
  const layouts *l = ctx;
  if (x->nstages > MOST_STAGES || l->ops > MOST_OPS) return false;
  arena scratch;
  arena_init(&scratch);
  scratch.oom = l->c->arena->oom;
  scratch.oom_ctx = l->c->arena->oom_ctx;
  cli own = *l->c;
  own.arena = &scratch;
  const sched **s = arena_new(&scratch, const sched *, x->nstages);
  bool known = compile_layout_ranks(&own, l->compiled, l->given, cluster, x, s);
  for (int i = 0; known && i < x->nstages; i++) laid_read(l->c->arena, s[i], &out[i]);
  l->c->diags = own.diags;
  arena_free(&scratch);
  return known;
}

static laid_maker *layouts_of(cli *c, planning *p, const plan_given *g) {
  layouts *ctx = arena_new(c->arena, layouts, 1);
  *ctx = (layouts){c, &p->compiled, g, p->job.rules[0]->g->op.n};
  laid_maker *m = arena_new(c->arena, laid_maker, 1);
  *m = (laid_maker){.a = c->arena,
                    .make = lay_out,
                    .make_ranks = lay_out_ranks,
                    .ctx = ctx,
                    .made = {.arena = c->arena}};
  return m;
}

// ---- planning -----------------------------------------------------------------------------------

static int64_t layers_of(const plan_job *j) {
  int64_t n = 0;
  const pg_graph *g = j->rules[0]->g;
  for (int i = 0; i < g->piece.n; i++)
    if (g->piece.at[i].name) n += g->piece.at[i].count;
  return n;
}

static const cl_cluster *find_cluster(cli *c, const sema_program *program, const plan_given *g) {
  const char *flag = cli_get(c, OPT_CLUSTER), *own = g->cluster;
  const cl_cluster *found = cluster_find(c->arena, &c->diags, program,
                                         flag  ? flag
                                         : own ? own
                                               : "this-host:1",
                                         compile_cache_folder(c));
  if (!found && !flag && own && c->diags.all.n)
    diag_place_at(vec_last(&c->diags.all), plan_given_said(g, "cluster")->at, "the plan names it");
  return found;
}

// The best plan that agrees with what is given; NULL after a report.
static plan_result *search_given(cli *c, planning *p, const plan_given *g,
                                 const cl_cluster *cluster) {
  bool unfit;
  if (!plan_given_suits(c, g, cluster, layers_of(&p->job), &unfit)) {
    if (unfit) p->compiled.exit_code = EXIT_UNFIT;
    return NULL;
  }
  plan_options o = p->options;
  o.top = plan_given_top(g, o.top);
  if (g != &p->given) o.layouts = layouts_of(c, p, g);
  plan_result *r = plan_search(c->arena, &p->job, cluster, &g->pins, &o);
  return plan_given_choose(c, g, r, p->options.top) ? r : NULL;
}

// On a terminal only: one line, written over again.
static void show_search(void *ctx, const plan_search_stats *s, double best) {
  cli *c = ctx;
  fprintf(stderr, "\rsearching: %lld of %lld plans looked at, best %s \033[K",
          (long long)s->considered, (long long)s->points,
          best > 0 ? show_seconds(c->arena, best) : "none yet");
}

// The cluster that NAME:DEVICES is a part of.
static const cl_cluster *whole_of(cli *c, const sema_program *p, const char *spec) {
  const char *colon = spec ? strrchr(spec, ':') : NULL;
  if (!colon || !colon[1] || colon[1 + strspn(colon + 1, "0123456789")]) return NULL;
  if (str_starts(spec, "this-host")) return NULL;
  const char *name = arena_strndup(c->arena, spec, (size_t)(colon - spec));
  return cluster_find(c->arena, &c->diags, p, name, compile_cache_folder(c));
}

// The job with shorter sequences, compiled again.
typedef struct shortening {
  cli *c;
  const compiled *k;
} shortening;
static const plan_job *shorter_job(void *ctx, int64_t divide, const char **flags) {
  shortening *s = ctx;
  cli *c = s->c;
  int64_t seq = 0;
  for (int i = 0; i < s->k->job->settings.n; i++) {
    const job_setting *x = &s->k->job->settings.at[i];
    if (str_eq(x->name, "train.seq")) seq = strtoll(x->value, NULL, 10);
  }
  if (seq % divide || seq / divide < 16) return NULL;
  const char *text = arena_printf(c->arena, "seq=%lld", (long long)(seq / divide));
  *flags = arena_printf(c->arena, "--set %s", text);
  vec_push(c->arena, &c->options[OPT_SET], text);
  int said = c->diags.all.n;
  compiled *k = arena_new(c->arena, compiled, 1);
  plan_job *shorter = arena_new(c->arena, plan_job, 1);
  bool good = compile_open(c, c->files.at[0], k) && plan_open(c, k, shorter);
  c->options[OPT_SET].n--;
  if (!good) c->diags.all.n = said;
  return good ? shorter : NULL;
}

bool plan_make(cli *c, planning *p) {
  *p = (planning){0};
  compiled *k = &p->compiled;
  if (!compile_open(c, c->files.at[0], k)) return false;
  if (!plan_given_read(c, k->program, &p->given)) return false;
  p->cluster = find_cluster(c, k->program, &p->given);
  if (!p->cluster || !plan_open(c, k, &p->job)) return false;
  const char *search = cli_get(c, OPT_SEARCH), *limit = cli_get(c, OPT_LIMIT);
  p->options = (plan_options){.exhaustive = search && str_eq(search, "exhaustive"),
                              .limit = limit ? strtod(limit, NULL) : 0,
                              .top = (int)cli_number(c, OPT_TOP, 1)};
  p->options.layouts = layouts_of(c, p, &p->given);
  const char *flag = cli_get(c, OPT_CLUSTER);
  p->options.whole = whole_of(c, k->program, flag ? flag : p->given.cluster);
  shortening *shorter = arena_new(c->arena, shortening, 1);
  *shorter = (shortening){c, k};
  p->options.shorter = shorter_job;
  p->options.shorter_ctx = shorter;
  bool shows = isatty(2) && !cli_has(c, OPT_QUIET);
  if (shows) p->options.report = show_search, p->options.report_ctx = c;
  p->result = search_given(c, p, &p->given, p->cluster);
  if (shows) fputs("\r\033[K", stderr);
  return p->result != NULL;
}

// ---- against ------------------------------------------------------------------------------------

static void row(const char *what, const char *a, const char *b) {
  printf("  %-13s %-34s %s\n", what, a, b);
}

static const char *choice_line(arena *a, const plan_candidate *x, int line) {
  const plan_choice *c = &x->choice;
  if (line == 0)
    return arena_printf(a, "data %lld, pipeline %lld, tensor %lld", (long long)c->size[PLAN_DATA],
                        (long long)c->size[PLAN_PIPELINE], (long long)c->size[PLAN_TENSOR]);
  if (line == 1)
    return arena_printf(a, "ulysses %lld, ring %lld, expert %lld", (long long)c->size[PLAN_ULYSSES],
                        (long long)c->size[PLAN_RING], (long long)c->size[PLAN_EXPERT]);
  if (line == 2)
    return arena_printf(a, "micro-batch %lld, interleave %lld", (long long)c->micro_batch,
                        (long long)c->interleave);
  return arena_printf(a, "zero %d, recompute %s", c->zero, plan_recompute_words(a, c));
}

// Both plans side by side. False after an error.
static bool print_against(cli *c, planning *p) {
  const char *path = cli_get(c, OPT_AGAINST);
  plan_given g = plan_given_none();
  if (!plan_given_read_plan(c, p->compiled.program, path, &g)) return false;
  const cl_cluster *cluster = find_cluster(c, p->compiled.program, &g);
  plan_result *r = cluster ? search_given(c, p, &g, cluster) : NULL;
  if (!r) return false;
  arena *a = c->arena;
  const plan_candidate *x = p->result->best, *y = r->best ? r->best : r->closest;
  if (!y) {
    printf("\n%s: %s\n", path, r->rejected.n ? r->rejected.at[0].reason : "no such plan");
    p->compiled.exit_code = EXIT_UNFIT;
    return true;
  }
  printf("\nAGAINST %s\n", path);
  row("", "this", "that");
  row("cluster", p->cluster->name, cluster->name);
  for (int i = 0; i < 4; i++) row(i ? "" : "choice", choice_line(a, x, i), choice_line(a, y, i));
  row("step", show_seconds(a, x->step_s),
      arena_printf(a, "%s  %+.1f %%", show_seconds(a, y->step_s),
                   100 * (y->step_s / x->step_s - 1)));
  for (int t = 0; t < PLAN_TIMES; t++)
    if (x->time[t] > 0 || y->time[t] > 0)
      row(plan_time_name((plan_time)t), show_seconds(a, x->time[t]), show_seconds(a, y->time[t]));
  for (int m = 0; m < PLAN_MEMORIES; m++)
    row(plan_memory_name((plan_memory)m), show_bytes(a, (double)x->memory[m]),
        show_bytes(a, (double)y->memory[m]));
  row("peak", show_bytes(a, (double)x->peak),
      y->over ? arena_printf(a, "%s  does not fit by %s", show_bytes(a, (double)y->peak),
                             show_bytes(a, (double)y->over))
              : show_bytes(a, (double)y->peak));
  return true;
}

int verb_plan(cli *c) {
  planning p;
  if (cli_has(c, OPT_AGAINST) && cli_has(c, OPT_JSON))
    return cli_usage("plan: --against prints a table: leave --json out");
  if (cli_has(c, OPT_WHY) && cli_has(c, OPT_JSON))
    return cli_usage("plan: --why prints a table: leave --json out");
  plan_given asked = plan_given_none();  // a typo is said before the search
  if (cli_has(c, OPT_WHY) && !plan_given_pin(c, "--why", cli_get(c, OPT_WHY), &asked))
    return cli_finish(c);
  if (!plan_make(c, &p)) return compile_finish(c, &p.compiled);
  plan_result *r = p.result;
  bool good = true;
  if (cli_has(c, OPT_JSON))
    plan_print_json(r, stdout);
  else
    plan_print_text(r, stdout, 100, c->diags.color && isatty(1));
  if (cli_has(c, OPT_REPORT)) good &= write_to(c, cli_get(c, OPT_REPORT), r, plan_print_html);
  if (cli_has(c, OPT_OUT) && r->best)
    good &= write_to(c, cli_get(c, OPT_OUT), r, print_best_file);
  else if (cli_has(c, OPT_OUT))
    fprintf(stderr, "there is no plan: %s is not written\n", cli_get(c, OPT_OUT));
  if (cli_has(c, OPT_WHY)) good &= print_why(c, &p.job, p.cluster, &p.given, &p.options, r);
  if (cli_has(c, OPT_AGAINST) && r->best) good &= print_against(c, &p);
  int rc = compile_finish(c, &p.compiled);
  return rc ? rc : !good ? EXIT_INPUT : r->best ? EXIT_GOOD : EXIT_UNFIT;
}
