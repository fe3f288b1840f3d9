// A model of a text as the planner reads it: its training step in LOCAL form, a graph, rules.
// Include it after cmocka.h.
#ifndef DSM_STEP_FIXTURE_H
#define DSM_STEP_FIXTURE_H

#include <string.h>

#include "frontend/clusters.h"
#include "frontend/sema.h"
#include "passes/pass.h"
#include "passes/plan/shard.h"

typedef struct step {
  sema_program *program;
  job *job;
  ir_module *m;
  pg_graph *g;
  sh_rules *rules;
} step;

// "examples/gpt2.dsm" with "layers=2,hidden=64", at a micro-batch of one sample.
static inline step step_of(arena *a, const char *path, const char *settings, recompute_mode mode) {
  diags d;
  diags_init(&d, a);
  step s = {.program = sema_open(a, &d, path)};
  if (s.program && !diags_errors(&d)) {
    source *text = source_from_text(a, "--set", settings, strlen(settings));
    s.job = sema_job(s.program, s.program->asked, parse_settings(a, &d, text));
  }
  if (s.job && !diags_errors(&d)) s.m = sema_lower(s.program, s.job, SEMA_TRAIN);
  if (!s.m) {
    diags_print(&d, stderr);
    fail_msg("%s with %s does not compile", path, settings);
  }
  pass_options o = pass_defaults();
  o.optimizer = OPT_ADAMW;
  o.batch = s.job->batch;
  o.micro_batch = 1;
  o.recompute = mode;
  o.stage = IR_LOCAL;
  o.after = "recompute";
  const char *why = pass_run(s.m, &o);
  if (!why) why = pass_dead(s.m, &o);
  if (why) fail_msg("%s: %s", path, why);
  s.g = pg_read(a, s.m);
  if (s.g->error) fail_msg("%s: %s", path, s.g->error);
  s.rules = sh_rules_of(a, s.g);
  return s;
}

static inline const cl_cluster *step_cluster(arena *a, const char *name) {
  diags d;
  diags_init(&d, a);
  const cl_cluster *c = cluster_find(a, &d, NULL, name, NULL);
  if (!c) {
    diags_print(&d, stderr);
    fail_msg("no cluster %s", name);
  }
  return c;
}

#endif
