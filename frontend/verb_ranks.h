// Plans for several ranks, from the search to what passes are told.
#ifndef DSM_FRONTEND_VERB_RANKS_H
#define DSM_FRONTEND_VERB_RANKS_H

#include "frontend/verb_common.h"
#include "frontend/verb_planfile.h"

// Whether `--cluster`, or the plan that `--plan` names, has more than one device.
bool ranks_wanted(cli *c, const plan_given *given);

// Searches as `dsmc plan` does, and makes the best plan that agrees with what is given the one that
// is built: k->plan, k->mesh, and in `given` its micro-batch and what is recomputed. False after a
// report: an error, a plan that does not fit, or one with something that is planned but not built.
bool ranks_plan(cli *c, compiled *k, plan_given *given);
// A plan of the cluster as what is compiled: the same, without a search. False, and nothing said,
// when no executable does it yet.
bool ranks_take(arena *a, compiled *k, const cl_cluster *cluster, const plan_candidate *x,
                plan_given *given);
// What the plan asks of passes, but for its mesh, micro-batch and recomputation.
void ranks_options(const compiled *k, pass_options *o);

// The entries that an executable of the plan has (SEMA_TRAIN, ...).
unsigned ranks_entries(const compiled *k);

#endif
