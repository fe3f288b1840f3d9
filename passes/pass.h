// The pipeline: an ordered list of passes over a module (passes.def), run by one function.
//
// A pass is one exported function in a file of its name. Its contract (needs, keeps, breaks) stands
// at the top of that file. The list drives the pipeline itself, `dsmc ir --after PASS`, `--time`,
// the verifier between passes, and docs/passes in architecture.md.
//
//   pass_options o = pass_defaults();
//   const char *why = pass_run(m, &o);      // up to LOCAL; NULL or an error in the user's words
#ifndef DSM_PASS_H
#define DSM_PASS_H

#include "ir/ir.h"

// How to optimise: set by the job section and `--set`.
typedef enum pass_optimizer { OPT_ADAMW, OPT_SGD } pass_optimizer;

typedef struct pass_options {
  pass_optimizer optimizer;
  bool momentum;  // SGD keeps a velocity
  bool nesterov;
  int64_t batch;        // samples of a step; for orders
  int64_t micro_batch;  // samples per micro-batch; 0: the whole batch at once
  int64_t stream;       // largest value, in bytes, that is made at once where a stream can help it;
                        // 0: no limit
  ir_stage stage;       // no pass that leads beyond this stage is run; IR_LOCAL by default
  // Gives the instructions of a schedule their kernels and scratch sizes (codegen's cg_select).
  // NULL or an error in the user's words.
  const char *(*select)(void *ctx, struct sched *s);
  void *select_ctx;
  const char *after;  // stop after this pass (its last occurrence); NULL: run all
  const char *only;   // comma-separated names: run just these, in the list's order; NULL: all
  const char *skip;   // comma-separated optional passes to leave out (measurements)
  // Called after each pass with its name and seconds; may be NULL.
  void (*report)(void *ctx, const char *pass, double seconds, ir_module *m);
  void *report_ctx;
} pass_options;

pass_options pass_defaults(void);

// Runs the list. A verifier failure after a pass is our bug and aborts, naming the pass.
const char *pass_run(ir_module *m, const pass_options *o);

typedef struct pass_info {
  const char *name, *doc;
  ir_stage before, after;
  bool optional;  // results stay the same without it
} pass_info;
// The list as data; returns how many.
int pass_list(const pass_info **out);

// One function per pass, named by its file. Each returns NULL or an error in the user's words.
#define PASS(name, fn, before, after, optional, doc) \
  const char *pass_##fn(ir_module *m, const pass_options *o);
#include "passes/passes.def"

// ---- shared by passes --------------------------------------------------------------------------

// Calls `visit` on every op of `r` and of the regions below it, outer before inner.
void pass_walk(ir_region *r, void (*visit)(void *ctx, ir_op *op), void *ctx);
// Sets value->mark to 0 for all values under `r`.
void pass_clear_marks(ir_region *r);
// Sets value->mark to the number of uses (operands and yields) for all values under `r`.
void pass_count_uses(ir_region *r);
// Sets value->mapped to NULL for all values under `r`.
void pass_clear_mapped(ir_region *r);
// The value of a `const` (through cast and views), or false.
bool pass_const_value(const ir_value *v, double *out);
// True for elementwise ops that may become part of another kernel: all but those that draw.
bool pass_fusible(const ir_op *op);
// The scalar function of such an op, in a fresh region.
ir_region *pass_function_of(ir_module *m, ir_op *op);
// Same rank and sizes; indices may differ.
bool pass_same_extents(const ir_value *a, const ir_value *b);
// The batch index among the dimensions of `v`: its position, or -1.
int pass_batch_dim(const ir_module *m, const ir_value *v);

#endif
