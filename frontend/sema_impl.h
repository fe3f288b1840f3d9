// What the files of the semantic half of the frontend share. Others include frontend/sema.h.
//
//   program.c          files, imports, definitions, FILE:NAME
//   settings.c         which value each param, dim and key has; jobs
//   rules.c            patterns over weight names
//   eval.c             values, scopes, arithmetic on constants
//   lower.c            expressions and statements of a model body; functions of the module
//   lower_call.c       arguments, blocks, fns
//   lower_repeat.c     `repeat`: rolled bodies, unlike bodies, periods
//   lower_weights.c    paths, states, initial values
//   lower_ops.c        the ops of the language, one function each (builtins.def)
//   lower_attention.c  attention and its mask and bias functions
//   decode.c           prefill and decode out of the inference slice
//
// One walker, `eval` in lower.c, serves all of them: an expression over constants yields a
// constant, one over tensors builds ops. Settings are evaluated by the same walker without a
// module.
#ifndef DSM_FRONTEND_SEMA_IMPL_H
#define DSM_FRONTEND_SEMA_IMPL_H

#include "frontend/sema.h"

// ---------------------------------------------------------------------------------------------
// Values
// ---------------------------------------------------------------------------------------------

typedef enum val_kind {
  VAL_ERROR,  // a mistake that was reported; whatever is made of it is VAL_ERROR in silence
  VAL_NONE,
  VAL_AUTO,
  VAL_NUMBER,
  VAL_BOOL,
  VAL_STRING,
  VAL_LIST,
  VAL_DTYPE,
  VAL_FN,      // closure: a user's fn
  VAL_BLOCK,   // closure: a user's block
  VAL_OP,      // text: an op of the language, as a value (`act = gelu`)
  VAL_INIT,    // init: normal(0.02), zeros, ...
  VAL_RECORD,  // text and fields: adamw(lr=1e-4) in a job
  VAL_TENSOR,
  VAL_MULTI,  // items: what split or a block with several results yields
} val_kind;

typedef struct scope scope;

typedef struct closure {
  const fn *fn;        // or
  const block *block;  //
  scope *env;          // names around it; NULL for one at the top of a file
  int limit;           // only bindings older than this are seen
} closure;

typedef struct val {
  val_kind kind;
  bool real;   // NUMBER: not a whole number by construction (4.0, 1e-3, 7/2.0)
  int taint;   // NUMBER: set of dims whose extents it was computed from (bit dim_bit)
  bool truth;  // BOOL
  unit unit;   // NUMBER
  int dim;     // NUMBER: the extent of dim number dim-1; 0: of none
  int64_t whole;
  double number;  // also of whole numbers
  const char *text;
  struct val *items;
  const char **keys;  // RECORD: names of the items
  int n;
  ir_dtype dtype;
  const closure *closure;
  weight_init init;
  ir_value *tensor;
} val;

val val_error(void);
val val_none(void);
val val_whole(int64_t x);
val val_real(double x);
val val_bool(bool x);
val val_string(const char *s);
val val_tensor(ir_value *v);

bool val_is_constant(const val *v);            // can be compared, printed and computed with
bool val_same(const val *a, const val *b);     // same kind and value
const char *val_text(arena *a, const val *v);  // as the user would write it: "0.1", "[8, 16]"
const char *val_what(const val *v);            // "a number", "a tensor", "a function", ...

// ---------------------------------------------------------------------------------------------
// Scopes
// ---------------------------------------------------------------------------------------------

// Later bindings shadow earlier ones of the same name; all are kept, because a fn or block sees the
// names as they were where it stands.
typedef struct binding {
  const char *name;
  val value;
  span at;
  int seq;
  struct binding *older;
} binding;

struct scope {
  scope *parent;
  int limit;  // what of the parent is seen
  map names;  // -> newest binding *
};

typedef struct lowering lowering;

scope *scope_new(lowering *lw, scope *parent, int limit);
void scope_bind(lowering *lw, scope *s, const char *name, val value, span at);
const binding *scope_find(const scope *s, int limit, const char *name);
// All names that can be seen, for "did you mean".
typedef VEC(const char *) name_list;
void scope_names(arena *a, const scope *s, name_list *out);

// ---------------------------------------------------------------------------------------------
// Frames: which region ops go to
// ---------------------------------------------------------------------------------------------

typedef enum frame_kind {
  FRAME_FUNC,
  FRAME_REPEAT,  // a body; tensors from outside become invariants
  FRAME_MAP,     // the scalar function of a map; tensors from outside become operands
  FRAME_SCORE,   // a mask or bias; tensors from outside are captures and must be indexed
} frame_kind;

typedef struct import {
  ir_value *outer, *arg;
} import;

// A weight as the walker made it, in the function or in a body.
typedef struct weight {
  const char *name;  // "h.#.ln_1.weight"
  ir_type type;      // of one slice
  weight_init init;
  span at;
  ir_value *value;         // the result of `state`, or the argument of the body
  ir_value *shared_stack;  // the stack of an earlier repeat whose weights these are (`using`)
} weight;

typedef struct frame {
  struct frame *outer;
  frame_kind kind;
  ir_region *region;
  VEC(import) imports;    // invariants, operands of a map, captures
  VEC(weight *) weights;  // made in a body, in the order of its stacked arguments
  map weight_by_name;     // FUNC, REPEAT
  map stacks;             // FUNC: names of stacked weights so far -> their states' values
  map path_uses;          // FUNC, REPEAT: path -> number of random ops so far (as intptr_t)
  const char *again;      // REPEAT: "/2" in the second repeat of one path, and so on
  const char *repeat;     // REPEAT: "h.#", the path of its weights
  ir_value *position[4];  // SCORE: b, h, i, j
  int batch_rank;         // SCORE
  ir_index *batch[IR_MAX_RANK];
} frame;

// ---------------------------------------------------------------------------------------------
// One lowering: one function of the module
// ---------------------------------------------------------------------------------------------

typedef enum lower_mode { LOWER_TRAIN, LOWER_EVAL, LOWER_INFER } lower_mode;

typedef struct dim_info {
  const char *name;
  int64_t extent;
  ir_index *index;
} dim_info;

// How a repeat whose body names its index was cut into rolled repeats: the same in all functions,
// because the states are stacked accordingly.
typedef struct segment {
  int first, period, times;
} segment;
typedef struct rolling {
  const char *path;
  VEC(segment) segments;
} rolling;

// What the functions of one module share while they are lowered.
typedef struct lowering_shared {
  map made_names;           // forms of weight names, to find the same path twice
  VEC(rolling *) rollings;  // recorded by the first function, followed by the others
} lowering_shared;

typedef struct call_site {
  const char *name;
  span at;
  const void *def;  // the block or fn, to find recursion
} call_site;

// The params, dims and keys of a job while they are being resolved (settings.c).
typedef struct settings settings;

struct lowering {
  arena *arena;
  diags *diags;
  sema_program *program;
  const job *job;
  settings *settings;  // resolving settings: names are looked up there; else NULL
  ir_module *m;        // NULL while resolving settings
  lower_mode mode;
  frame *frame;
  scope *scope;
  VEC(dim_info) dims;
  VEC(call_site) calls;
  const char *chain;      // path of the names around: "h", "" at the top; '#' for the layer
  const char *statement;  // first name of the statement, for paths of ops
  bool in_fn;             // `/` is a real quotient
  bool sharing;           // inside `using`: weights are looked up, not made
  bool shared_any;        // `using` found a weight
  bool tensor_fn;         // a fn is lowered as ops, not as a map (it calls one with a gradient)
  bool wants_tensors;     // set when a map found that it has to be
  bool ignore_grads;      // inside a fn with its own gradient the others' do not count
  int repeat_depth;
  bool quiet_notes;    // notes were given by the first function
  bool failed_output;  // an output had a mistake: its absence is no further one
  int depth;           // of eval
  int seq;             // number of bindings so far
  long fuel;           // expressions left to evaluate
  long ops;            // ops left to build
  bool spent;
  lowering_shared *shared;
  bool follow;       // not the first function of the module
  int next_rolling;  // of shared->rollings
  map states_used;   // names of states this function has
  map outputs;       // name -> val *
  name_list input_names;
};

// op->mark while a module is lowered: positive, the set of dims whose extents a constant was made
// of; negative, a slice `x[0:dim]` of dim number -mark-1. Decoding has to know.
int dim_bit(int dim);  // of dim number `dim`, from 0
int val_taint(const val *v);

#define SEMA_FUEL 2000000L
#define SEMA_OPS 100000L
#define SEMA_EXTENT ((int64_t)1 << 40)
#define SEMA_CALLS 64
#define SEMA_DEPTH 1500

// A diagnostic with the calls that led here. While a lowering is spent or speculative it is
// dropped.
diag *sema_error(lowering *lw, span at, diag_code code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void sema_undeclared(lowering *lw, span at, const char *name, const char *what);

// ---- eval.c ----
val const_unary(lowering *lw, const expr *e, val x);
val const_binary(lowering *lw, const expr *e, binary_op op, val x, val y);
// An elementwise op by its name over constants; false when it does not apply.
bool const_call(const char *name, const val *x, int n, val *out);
// Settings and arguments: the value as the C type asked for, or a report.
bool want_whole(lowering *lw, span at, const val *v, const char *what, int64_t lo, int64_t hi,
                int64_t *out);
bool want_number(lowering *lw, span at, const val *v, const char *what, double *out);
bool want_bool(lowering *lw, span at, const val *v, const char *what, bool *out);

// ---- lower.c ----
val eval(lowering *lw, const expr *e);
void lower_statements(lowering *lw, const stmt_list *body, bool in_model);
void lower_statement(lowering *lw, const stmt *s, bool in_model);
bool eval_extent(lowering *lw, const expr *e, int64_t *size, const char **name, ir_index **index);
bool predefined_value(const char *name, val *out);

// Ops. `at` is the place shown when the op's rule is broken. NULL after a report.
ir_op *emit(lowering *lw, span at, ir_opcode code, ir_value *const *in, int nin,
            const ir_attr *attr, int nattrs, ir_region *const *region, int nregions);
ir_value *emit1(lowering *lw, span at, ir_opcode code, ir_value *x);
ir_value *emit2(lowering *lw, span at, ir_opcode code, ir_value *x, ir_value *y);
ir_value *emit_const(lowering *lw, span at, ir_dtype t, double v);
ir_value *import_value(lowering *lw, frame *f, ir_value *v);
// A tensor for a tensor or number; `like` (may be NULL) says which type a number takes.
ir_value *as_tensor(lowering *lw, span at, const val *v, const ir_value *like, const char *what);
bool tensor_sizes_ok(const ir_type *t);
ir_span ir_span_of(span s);
const char *path_here(lowering *lw, const char *last);
// The same made unique among the random ops of this body.
const char *path_unique(lowering *lw, const char *path);
int64_t path_key(const char *path);  // the key of random numbers drawn at a path

// ---- lower_call.c ----
typedef struct bound_args {
  val v[16];
  const expr *e[16];  // NULL: a default or absent
  bool given[16];
  span at[16];
} bound_args;

val eval_call(lowering *lw, const expr *e);
val call_fn(lowering *lw, span at, const closure *f, const val *x, int n);
// The body of a fn over values already bound (scalars of a region, constants).
val inline_fn(lowering *lw, span at, const closure *f, const val *x, int n);
val call_elementwise(lowering *lw, span at, const char *name, const val *x, int n);
val call_block(lowering *lw, const expr *e, const closure *b);
bool enter_call(lowering *lw, span at, const char *name, const void *def);
void leave_call(lowering *lw);
int fn_formals(const closure *f);

// ---- lower_ops.c ----
typedef val builtin_fn(lowering *lw, const expr *e, bound_args *a);
typedef struct builtin {
  const char *name;
  const char *formals;  // "x n bias? init?"; a trailing `...` takes any number
  bool owns;            // has weights: takes `as` or `using`
  builtin_fn *run;
} builtin;
const builtin *builtin_find(const char *name);
void builtin_names(arena *a, name_list *out);
// Elementwise rows of the op table that are functions of the language; arity, or 0.
int elementwise_arity(const char *name, ir_opcode *code);
bool planned_name(const char *name);
val lower_index(lowering *lw, const expr *e, val base);

// ---- lower_attention.c ----
val lower_attention(lowering *lw, const expr *e, bound_args *a);
// `x[i, j]` or the bare name of a tensor inside a mask or bias.
val score_capture(lowering *lw, span at, ir_value *tensor, const char *name, const val *pick,
                  int npicks);

// ---- lower_repeat.c ----
void lower_repeat(lowering *lw, const stmt *s);

// ---- lower_weights.c ----
const char *path_join(arena *a, const char *chain, const char *path);
// A weight at `path` below the chain, made or (inside `using`) found. NULL after a report.
ir_value *make_weight(lowering *lw, span at, const char *path, ir_type slice, weight_init init);
// Enters `as p` or `using p` of a call: changes chain and sharing.
typedef struct path_save {
  const char *chain;
  bool sharing, shared_any, entered;
} path_save;
bool path_enter(lowering *lw, const expr *call, path_save *save);
void path_leave(lowering *lw, const expr *call, const path_save *save);
bool want_init(lowering *lw, span at, const val *v, weight_init *out);
// Makes the module's state of a weight of the function or of a stack, or checks that it is there.
ir_state *make_state(lowering *lw, const weight *w, ir_type type, int first, int step, int count);

// ---- rules.c ----
bool pattern_match(arena *a, const char *pattern, const char *name);
// Checks the pattern's own form.
bool pattern_ok(lowering *lw, span at, const char *pattern);
void apply_weight_rules(lowering *lw, const job *j, ir_module *m);
void check_name_maps(lowering *lw, const job *j, ir_module *m);

// ---- decode.c ----
// Makes decode out of the inference slice `prefill`, which gets its caches; dim number `dim` is the
// one decoded along. False after a report (or in silence when `quiet`).
bool make_decode(lowering *lw, ir_func *prefill, int dim, bool quiet);

// ---- lower_module.c ----
// Removes what no output, set or cache needs, loops' carried values included.
void slice_dead(ir_region *body);
// Sets value->mark of all values to 0, in regions inside too.
void clear_marks(ir_region *r);

// ---- settings.c ----
val settings_value(lowering *lw, span at, const char *name, bool *found);
void settings_names(lowering *lw, name_list *out);
void sema_no_model(sema_program *p, const ident *name);

#endif
