// What is fixed of how a job runs: from `--plan` and `--pin` to the planner's pins and the
// compiler's options.
//
//   plan_given g;
//   if (!plan_given_read(c, program, &g)) return cli_finish(c);      // it has been reported
//   plan_search(a, &job, cluster, &g.pins, &o);
//
// A plan is a `plan` section, of the job's file (`--plan wide`) or of a file of its own (`--plan
// gpt3.plan`, what `dsmc plan -o` writes), in flat keys or with a mesh. Pins come after it and win,
// key by key; `auto` frees what a plan fixed, and any pin frees a plan's `stages`, which were cut
// for other choices (`--pin stages=[7,5]` stays). What the search takes no pin for - the order of a
// mesh, how a weight is cut - it finds by itself: plan_given_choose takes the best of its plans
// that agrees, and says in words, with a caret in the plan, what none agrees with.
#ifndef DSM_FRONTEND_VERB_PLANFILE_H
#define DSM_FRONTEND_VERB_PLANFILE_H

#include "codegen/emit.h"
#include "frontend/cli.h"
#include "frontend/sema.h"
#include "passes/pass.h"
#include "passes/plan/search.h"

// A choice as it was written.
typedef struct plan_said {
  const char *key, *value;
  span at;
  bool pinned;  // by --pin; else by the plan
} plan_said;

typedef struct plan_given {
  plan_pins pins;
  VEC(plan_said) said;  // those that hold, in order

  // What the compiler alone heeds.
  recompute_mode recompute;    // as in pins, or RECOMPUTE_BYTES
  int64_t recompute_bytes;     // most that is saved for backward
  const char *recompute_text;  // as written: "full", "200MB"
  int64_t stream;              // largest value made at once, in bytes; 0: no limit
  cg_library matmul;

  // What is compared with the plan found.
  const section *plan;  // NULL without --plan
  const char *cluster;  // that the plan is for; NULL: not said
  int naxes;            // of a mesh; 0 without one
  plan_axis axis[PLAN_AXES];
  VEC(int64_t) data_factors;        // of `data = [2, 4]`, `data(2, 4)`
  VEC(int64_t) stages;              // layers of each
  VEC(const section *) layers;      // their strings are cuts
  int64_t planned_size[PLAN_AXES];  // what the plan says without pins; 0: not said
} plan_given;

// Nothing is fixed.
plan_given plan_given_none(void);
// Reads `--plan` and every `--pin`. False after an error, which has been reported.
bool plan_given_read(cli *c, const sema_program *program, plan_given *out);
// Reads the plan that `which` names, without pins.
bool plan_given_read_plan(cli *c, const sema_program *program, const char *which, plan_given *out);
// Adds "tensor=8,zero=1"; `where` names it in diagnostics.
bool plan_given_pin(cli *c, const char *where, const char *text, plan_given *out);
// How a key was said, the last time; NULL when it was not. Axes of a mesh are said as `mesh`.
const plan_said *plan_given_said(const plan_given *g, const char *key);

// Whether the plan is one of the cluster's devices and of a model of so many layers: it has been
// reported what contradicts. `*unfit`: the plan is in order, but for another cluster.
bool plan_given_suits(cli *c, const plan_given *g, const cl_cluster *cluster, int64_t layers,
                      bool *unfit);
// What a search has to be asked for, so that a plan that agrees may be among the answers.
int plan_given_top(const plan_given *g, int top);
// Puts the best candidate that agrees first and leaves `top` of them. False when none does, which
// has been reported.
bool plan_given_choose(cli *c, const plan_given *g, plan_result *r, int top);

// Whether one device can do it: false after a report; *unfit says that it is a wish that this host
// cannot meet, not an error of the text.
bool plan_given_one_device(cli *c, const sema_program *program, const plan_given *g, bool *unfit);

#endif
