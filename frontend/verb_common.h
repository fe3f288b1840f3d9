// What the verbs that compile share: from FILE and options to passes, schedule and executable.
//
//   compiled k;
//   if (compile(c, c->files.at[0], COMPILE_EXECUTABLE, &k)) exe_write(...);
//   return compile_finish(c, &k);
#ifndef DSM_FRONTEND_VERB_COMMON_H
#define DSM_FRONTEND_VERB_COMMON_H

#include "codegen/cuda_emit.h"
#include "codegen/emit.h"
#include "codegen/program.h"
#include "frontend/cli.h"
#include "frontend/sema.h"
#include "ir/schedule.h"
#include "passes/pass.h"

struct cl_cluster;
struct plan_candidate;
struct plan_given;

typedef enum compile_stage {
  COMPILE_GRAPH,       // as lowered, before any pass
  COMPILE_LOCAL,       // after the passes (or up to --after)
  COMPILE_SCHEDULE,    // tasks, orders, places; kernels built; it may be too large to run
  COMPILE_EXECUTABLE,  // code image and program
} compile_stage;

// A stage of a pipeline (verb_stages.h).
typedef struct compiled_stage {
  ir_module *module;
  sched *schedule;
  cg_context *cg;
  cg_image image;
  program_bytes bytes;
} compiled_stage;

typedef struct compiled {
  sema_program *program;
  job *job;
  ir_module *module;
  gpu_set targets;  // 0: this host
  int64_t micro_batch, parameters;
  bool fits;       // into the memory of the host, or of each GPU it is for; or so it was pinned
  bool generates;  // prefill and decode exist
  sched *schedule;
  const struct plan_candidate *plan;        // that is built; NULL: one device, without a search
  const struct ir_mesh *mesh;               // its axes among ranks; NULL: one
  const struct distribution *distribution;  // those inside a stage; NULL: none
  const char *recompute;  // as pinned and done: "full", "200MB", or "none"; NULL: none
  recompute_result recomputed;
  cg_context *cg;
  cg_image image;
  cuda_unit unit;  // what the image holds when it is for GPUs
  program_bytes bytes;
  int nstages;            // of a pipeline; 0: none. Then module, schedule, image and program are
  compiled_stage *stage;  // those of one of them
  uint64_t digest;        // of the texts and settings: names the executable in the cache
  bool quiet;             // what cannot be compiled is not reported
  int exit_code;          // when it failed for another reason than a diagnostic
} compiled;

// Compiles as far as `stage`. False when something was wrong; it has been reported or is in
// c->diags, and compile_finish gives the exit code.
bool compile(cli *c, const char *path, compile_stage stage, compiled *out);
// Reads the file and resolves the job, no more; for verbs that do not compile.
bool compile_open(cli *c, const char *path, compiled *out);
// Of the texts that were read and the settings that were given: what a plan says it is of.
uint64_t compile_source_digest(const cli *c, const sema_program *p);
// The training step as the planner reads it (passes/plan/graph.h): LOCAL at a micro-batch of one
// sample, nothing chunked; out[i] with what mode[i] makes again in backward. All but the last steps
// of lowering are made once. False after an error.
bool compile_steps(compiled *k, const recompute_mode *mode, int n, ir_module **out);
// As far as COMPILE_SCHEDULE with the pins of `given`, but for this micro-batch and recomputation
// and for a device of architecture `arch` ("cpu", "sm_80"): the schedule that `build` would lay
// out. NULL when no code is made for such a device, or not with these pins.
const sched *compile_layout(cli *c, compiled *k, const struct plan_given *given, const char *arch,
                            int64_t micro_batch, recompute_mode recompute);
// The same of a plan for the ranks of a cluster: out[x->nstages], a schedule for each stage. False,
// and nothing said, when no code is made for it.
bool compile_layout_ranks(cli *c, compiled *k, const struct plan_given *given,
                          const struct cl_cluster *cluster, const struct plan_candidate *x,
                          const sched **out);
// As far as COMPILE_SCHEDULE with a text of ours, to see what it takes on this host: out->fits says
// whether it has the memory, and when it has not, `out` is what a micro-batch of 1 would need.
bool compile_measure(cli *c, const char *name, const char *text, compiled *out);
// From COMPILE_SCHEDULE on to COMPILE_EXECUTABLE. What does not fit is refused here.
bool compile_code(cli *c, compiled *k);
int compile_finish(cli *c, const compiled *k);
// Writes the executable of a compiled program; reports and returns false when it cannot.
bool compile_write(cli *c, compiled *k, const char *path);
// "recompute: 36 MiB of 340 MiB saved for backward, 12 of 13 stacks dropped, ...", when
// recomputed.done; `exact` gives whole bytes.
const char *compile_recompute_text(arena *a, const compiled *k, bool exact);
// The folder of --cache, or this user's: executables of `dsmc run` lie in it, and code of kernels
// in its folder `kernels`. NULL with `--cache none`.
const char *compile_cache_folder(cli *c);
// "1.2 GiB"
const char *compile_bytes_text(arena *a, double bytes);

#endif
