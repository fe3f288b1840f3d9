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
#include "passes/skip.h"

// How to optimise: set by the job section and `--set`.
typedef enum pass_optimizer { OPT_ADAMW, OPT_SGD } pass_optimizer;

// What backward makes again in place of reading what forward saved (passes/recompute.c).
typedef enum recompute_mode {
  RECOMPUTE_NONE,
  RECOMPUTE_SELECTIVE,  // all that needs no matrix product and no attention, but for products of
                        // activations that make more than they read (scores)
  RECOMPUTE_FULL,       // all that can be: what enters a layer is kept
  RECOMPUTE_BYTES,      // as much as a budget asks for, with the least work
} recompute_mode;

// What the pass did, for reports. All is about one micro-batch of train_step.
typedef struct recompute_result {
  bool done;              // the pass has run, and train_step saves something
  bool exact;             // the choice is proved to be the one with the least work
  int64_t before, after;  // bytes of the stacks that backward reads
  int64_t least;          // the fewest there can be
  int stacks, dropped;    // how many stacks there were, and how many went
  int ops;                // that run again, in all bodies together
  const char *list;       // them, a line a repeat: "  h: layernorm n, einsum attn.c_attn"
} recompute_result;

// A module is verified behind each pass, which tells the one that broke it; or once, behind the
// last. NEVER is for the first part of a run whose rest is verified.
typedef enum pass_verify { VERIFY_EACH, VERIFY_LAST, VERIFY_NEVER } pass_verify;

typedef struct pass_options {
  pass_optimizer optimizer;
  bool momentum;  // SGD keeps a velocity
  bool nesterov;
  int64_t batch;                // samples of a step, of all ranks; for orders
  const struct ir_mesh *mesh;   // axes of space among ranks (ir/place.h); NULL: one rank
  const struct pipeline *pipe;  // of stages, as planned (passes/plan/pipeline.h); NULL: 1f1b
  int64_t micro_batch;          // samples per micro-batch; 0: the whole batch at once
  int zero;            // what is shared among the ranks of `zero_axes` (passes/zero.c): 0 .. 3
  unsigned zero_axes;  // bits of the mesh's axes
  const struct distribution *distribution;  // axes inside a stage (passes/distribute.h); NULL: none
  recompute_mode recompute;
  int64_t recompute_bytes;  // RECOMPUTE_BYTES: most that the saved stacks of a micro-batch may take
  recompute_result *recomputed;  // filled in when not NULL
  bool device;     // for a device other than this host: inputs and outputs move between homes
  int64_t stream;  // largest value, in bytes, that is made at once where a stream can help it;
                   // 0: no limit
  ir_stage stage;  // no pass that leads beyond this stage is run; IR_LOCAL by default
  // Gives the instructions of a schedule their kernels and scratch sizes (codegen's cg_select),
  // without the choices in `skip`. NULL or an error in the user's words.
  const char *(*select)(void *ctx, struct sched *s, skip_set skip);
  void *select_ctx;
  // Whether a library does a product in place of a kernel of ours (codegen's cg_by_library, with
  // select_ctx): then it stays plain, and ops behind it keep kernels of their own. NULL: never.
  bool (*by_library)(void *ctx, const ir_op *op);
  const char *after;   // stop after this pass (its last occurrence); NULL: run all
  const char *only;    // comma-separated names: run just these, in the list's order; NULL: all
  skip_set skip;       // optional passes and choices to leave out (measurements)
  pass_verify verify;  // when the module is verified
  // Called after each pass with its name and seconds; may be NULL.
  void (*report)(void *ctx, const char *pass, double seconds, ir_module *m);
  void *report_ctx;
} pass_options;

pass_options pass_defaults(void);

// Runs the list. A verifier failure after a pass is our bug and aborts, naming the pass.
const char *pass_run(ir_module *m, const pass_options *o);
// The same in two halves, between which a module is cut into stages (passes/cut.h): what comes in
// front of pass `epilogue`, and what comes from it on, for each stage. The first returns in
// `*stopped` whether o->after or o->stage ended it earlier: then there is nothing to cut.
const char *pass_run_front(ir_module *m, const pass_options *o, bool *stopped);
const char *pass_run_back(ir_module *m, const pass_options *o);

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
// Where `op` stands in its region.
int pass_number_of(const ir_op *op);
// Moves the last op of `r`, as builders leave a new one, to number `to`.
void pass_move_last(ir_region *r, int to);
// Takes op number `at` out of `r`. Nobody may read it.
void pass_take_out(ir_region *r, int at);
// `v` as another type (or a copy of it): a `cast` at the end of `r`.
ir_value *pass_cast(ir_module *m, ir_region *r, ir_value *v, ir_dtype t);
// The view `op` of `from` in place of its operand, behind it; its results have the type of `from`.
ir_op *pass_view_again(ir_module *m, ir_op *op, ir_value *from);
// The value of a `const` (through cast and views), or false.
bool pass_const_value(const ir_value *v, double *out);
// True for elementwise ops that may become part of a map.
bool pass_fusible(const ir_op *op);
// True when the op, or a function in it, draws random numbers: by the position of its element.
bool pass_draws(const ir_op *op);
// True when `user` may become part of the kernel of `p`, a matrix product or the gradient of a norm
// in the same region: what `epilogue` asks before it looks at what lies between the two.
bool pass_may_carry(ir_module *m, const ir_op *p, const ir_op *user);
// The scalar function of such an op, in a fresh region.
ir_region *pass_function_of(ir_module *m, ir_op *op);
// Same rank and sizes; indices may differ.
bool pass_same_extents(const ir_value *a, const ir_value *b);
// The type of a stack of `t`, one slice for each layer.
ir_type pass_stacked(ir_index *layers, const ir_type *t);
// Makes `repeat` save the value `v` of its body: a stacked result, which is returned.
ir_value *pass_save(ir_module *m, ir_op *repeat, ir_index *layers, ir_value *v);
// Gives `repeat` one more operand, which its body sees as a slice (`stacked`) or as it is; returns
// the body's argument.
ir_value *pass_add_operand(ir_module *m, ir_op *repeat, ir_value *outer, bool stacked, ir_type type,
                           const char *name);
// The batch index among the dimensions of `v`: its position, or -1.
int pass_batch_dim(const ir_module *m, const ir_value *v);

#endif
