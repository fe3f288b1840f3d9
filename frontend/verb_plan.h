// What the verbs that plan share: pins and the job as the planner sees it.
#ifndef DSM_FRONTEND_VERB_PLAN_H
#define DSM_FRONTEND_VERB_PLAN_H

#include "frontend/verb_common.h"
#include "frontend/verb_planfile.h"
#include "passes/plan/search.h"

// Compiles the training step of `k` (compile_open) once for each kind of recomputation and reads
// it. False after an error: reported, or k->exit_code says so.
bool plan_open(cli *c, compiled *k, plan_job *out);

// From the command line to a plan.
typedef struct planning {
  compiled compiled;
  plan_given given;
  plan_job job;
  const cl_cluster *cluster;
  plan_options options;
  plan_result *result;  // its best one agrees with what is given
} planning;
// False after an error: reported, or p->compiled.exit_code says so.
bool plan_make(cli *c, planning *p);

#endif
