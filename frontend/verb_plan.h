// What the verbs that plan share: pins and the job as the planner sees it.
#ifndef DSM_FRONTEND_VERB_PLAN_H
#define DSM_FRONTEND_VERB_PLAN_H

#include "frontend/verb_common.h"
#include "passes/plan/search.h"

// Adds "tensor=8,zero=1" to *out; `where` names it in diagnostics. False after an error, which has
// been reported.
bool plan_parse_pins(cli *c, const char *where, const char *text, plan_pins *out);
// Compiles the training step of `k` (compile_open) once for each kind of recomputation and reads
// it. False after an error: reported, or k->exit_code says so.
bool plan_open(cli *c, compiled *k, plan_job *out);

#endif
