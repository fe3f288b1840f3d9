// dsmc simulate FILE: runs the best plan's pipeline as discrete events, beside what the longest
// path says, and writes what happened as a trace for Perfetto.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "frontend/verb_plan.h"
#include "passes/plan/show.h"

// "stage 0: layers 0-11+embed"
static const char *stage_name(arena *a, const plan_candidate *x, int i) {
  const plan_stage *s = &x->stage[i];
  const char *what = s->first_layer < s->last_layer    ? "layers "
                     : s->first_layer == s->last_layer ? "layer "
                                                       : "";
  return arena_printf(a, "stage %d: %s%s", i, what, plan_layers_words(a, x, (plan_rows){i, i}));
}

// Simulates `x`; the trace goes to `path` unless it is NULL. False when it cannot be written.
static bool simulate(cli *c, const plan_candidate *x, const char *path, pipe_result *out) {
  arena *a = c->arena;
  const pipeline *p = &x->pipe;
  const char **names = arena_new(a, const char *, p->stages);
  double *stash = arena_new(a, double, p->stages * p->chunks);
  double *fixed = arena_new(a, double, p->stages);
  for (int i = 0; i < p->stages; i++) {
    const plan_stage *s = &x->stage[i];
    names[i] = stage_name(a, x, i);
    fixed[i] = (double)(s->peak - s->memory[PLAN_M_ACTIVATIONS]);
    // Chunks of a stage share its activations evenly.
    for (int v = 0; v < p->chunks; v++)
      stash[i * p->chunks + v] =
          s->stash ? (double)s->memory[PLAN_M_ACTIVATIONS] / (double)s->stash : 0;
  }
  FILE *f = path ? fopen(path, "w") : NULL;
  bool good = !path || f;
  *out = pipe_simulate(a, p, names, stash, fixed, f);
  if (f) {
    good = !ferror(f);
    good &= fclose(f) == 0;
  }
  if (!good)
    diag_error(&c->diags, span_none(), DIAG_CANNOT_WRITE, "cannot write %s: %s", path,
               strerror(errno));
  else if (path && !cli_has(c, OPT_QUIET))
    fprintf(stderr, "wrote %s\n", path);
  return good;
}

static void print_json(cli *c, const planning *p, const pipe_result *r) {
  const plan_candidate *x = p->result->best;
  arena *a = c->arena;
  sb s = {.arena = a};
  sb_puts(&s, "{\"schema\": 1, \"model\": ");
  diag_json_string(&s, p->result->model.name);
  sb_puts(&s, ", \"cluster\": ");
  diag_json_string(&s, p->cluster->name);
  sb_puts(&s, ", \"plan\": ");
  diag_json_string(&s, plan_choice_text(a, &x->choice));
  sb_printf(&s,
            ", \"predicted_step_s\": %.17g, \"simulated_step_s\": %.17g, \"difference\": %.17g, "
            "\"bubble_s\": %.17g, \"exposed_send_s\": %.17g, \"critical_stage\": %d, \"stages\": [",
            x->step_s, r->step, r->step / x->step_s - 1, r->bubble, r->exposed_send, r->critical);
  for (int i = 0; i < x->nstages; i++) {
    sb_puts(&s, i ? ", {\"name\": " : "{\"name\": ");
    diag_json_string(&s, stage_name(a, x, i));
    // Of one micro-batch, all chunks of the stage together: what `train --replay` sleeps. What
    // backward takes for the weights is a phase of its own in some orders.
    pipe_chunk sum = {0};
    for (int v = 0; v < x->pipe.chunks; v++) {
      const pipe_chunk *one = &x->pipe.chunk[i * x->pipe.chunks + v];
      sum.forward += one->forward, sum.backward += one->backward;
      sum.send += one->send, sum.send_back += one->send_back;
      if (x->pipe.kind == PIPE_ZERO_BUBBLE) sum.weight += one->weight;
    }
    double outside =
        (x->pipe.before ? x->pipe.before[i] : 0) + (x->pipe.after ? x->pipe.after[i] : 0);
    sb_printf(
        &s,
        ", \"stash\": %lld, \"peak\": %lld, \"forward_s\": %.17g, \"backward_s\": %.17g, "
        "\"weights_s\": %.17g, \"send_s\": %.17g, \"send_back_s\": %.17g, \"outside_s\": %.17g}",
        (long long)x->stage[i].stash, (long long)x->stage[i].peak, sum.forward,
        sum.backward - sum.weight, sum.weight, sum.send, sum.send_back, outside);
  }
  sb_puts(&s, "]}\n");
  fputs(sb_str(&s), stdout);
}

static void print_table(cli *c, const planning *p, const pipe_result *r) {
  const plan_candidate *x = p->result->best;
  arena *a = c->arena;
  printf("%s on %s\n", show_clean(a, p->result->model.name), p->cluster->name);
  printf("%s\n\n", plan_choice_text(a, &x->choice));
  printf("longest path   %s\n", show_seconds(a, x->step_s));
  printf("simulated      %s  %+.4f %%\n", show_seconds(a, r->step),
         100 * (r->step / x->step_s - 1));
  printf("bubble         %s  %s of stage %d, which is busiest\n", show_seconds(a, r->bubble),
         show_percent(a, r->bubble / r->step), r->critical);
  printf("messages       %s  waited for\n\n", show_seconds(a, r->exposed_send));
  printf("%-34s %14s %12s\n", "", "micro-batches", "memory");
  printf("%-34s %14s %12s\n", "stage", "in flight", "at most");
  for (int i = 0; i < x->nstages; i++)
    printf("%-34s %14lld %12s\n", stage_name(a, x, i), (long long)x->stage[i].stash,
           show_bytes(a, (double)x->stage[i].peak));
}

int verb_simulate(cli *c) {
  planning p;
  if (!plan_make(c, &p)) return compile_finish(c, &p.compiled);
  const plan_candidate *x = p.result->best;
  if (!x) {
    if (cli_has(c, OPT_JSON))
      plan_print_json(p.result, stdout);
    else
      plan_print_text(p.result, stdout, 100, false);
    int rc = compile_finish(c, &p.compiled);
    return rc ? rc : EXIT_UNFIT;
  }
  pipe_result r;
  bool good = simulate(c, x, cli_get(c, OPT_TRACE), &r);
  if (cli_has(c, OPT_JSON))
    print_json(c, &p, &r);
  else
    print_table(c, &p, &r);
  int rc = compile_finish(c, &p.compiled);
  return rc ? rc : good ? EXIT_GOOD : EXIT_INPUT;
}
