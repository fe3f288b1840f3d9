// The program while it is compiled: modules, functions, regions, ops, values, indices.
//
// Two of dsmc's three forms live in these structures. GRAPH says what to compute over the global
// shapes of the whole batch; LOCAL says what one stage of one rank computes for one micro-batch,
// with every placement conversion explicit. (The third form, SCHEDULE, is ir/schedule.h.)
//
//   func train_step                                     ; text of a GRAPH function
//     %tokens = input() {name="tokens"} : i32[batch=4, seq=64]
//     %wte = state() {name="wte.weight"} : f32[vocab=256, hidden=128]
//     %x = gather(%wte, %tokens) : f32[batch=4, seq=64, hidden=128]
//     ...
//
// A *value* is defined once, by an op or as an argument of a region. Its type is an element type
// and an ordered list of dimensions; each dimension is an *index*: a named extent. Indices, not
// sizes, are what the compiler reasons about: when an op says that two dimensions are the same,
// their indices are unified; when an op views a dimension of 2304 as `qkv 3 . heads 12 . dim 64`,
// the index is refined into that ordered product, everywhere it occurs, weights included.
// Invariants (checked by ir_verify):
//   - every operand is defined before its use, in the same region or one that encloses it;
//     regions of `repeat`, `map` and `attention` see only their own arguments;
//   - an op's operands and results satisfy its row in ir/ops.def;
//   - extents are at least 1 and products fit in 63 bits;
//   - nothing refers to the AST: spans are plain numbers.
//
// All memory belongs to the module's arena. Passes change a module in place or build new regions
// in the same arena.
#ifndef DSM_IR_H
#define DSM_IR_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/arena.h"
#include "runtime/base/map.h"
#include "runtime/base/str.h"
#include "runtime/base/vec.h"

typedef struct ir_index ir_index;
typedef struct ir_value ir_value;
typedef struct ir_op ir_op;
typedef struct ir_region ir_region;
typedef struct ir_func ir_func;
typedef struct ir_module ir_module;

#define IR_MAX_RANK 8
#define IR_MAX_LEAVES 16

// ---- element types -----------------------------------------------------------------------------

typedef enum ir_dtype {
#define DTYPE(name, bytes, kind, st) DT_##name,
#include "ir/dtypes.def"
  DT_COUNT
} ir_dtype;

const char *ir_dtype_name(ir_dtype t);  // "f32"
bool ir_dtype_parse(const char *s, ir_dtype *out);
int ir_dtype_bytes(ir_dtype t);   // 4; bool is 1
bool ir_dtype_float(ir_dtype t);  // f32 bf16 f16 f64 ...
// The type of an arithmetic result over a and b: float beats integer, wider beats narrower.
ir_dtype ir_dtype_join(ir_dtype a, ir_dtype b);

// ---- indices -----------------------------------------------------------------------------------

// A named extent. Always look at one through ir_root(): unified indices share a root.
struct ir_index {
  int id;
  const char *name;  // what the text or an op rule calls it: batch, seq, heads, vocab, ...
  int64_t size;      // >= 1
  int64_t bound;     // bounded dims: `size` is the bound and the extent comes at run time; else 0
  ir_index *same;    // unified with that index; NULL at a root
  int nparts;        // 0: a leaf; else refined into this ordered product, outer to inner
  ir_index *part[4];
};

// Makes an index. `name` may be NULL: the printer then shows the size alone.
ir_index *ir_index_new(ir_module *m, const char *name, int64_t size);
ir_index *ir_root(ir_index *x);
// Says that a and b are the same index. Refinements are merged: 2304 seen as (3, 768) and as
// (36, 64) becomes (3, 12, 64). Returns false, changing nothing visible, when the sizes differ or
// the refinements cannot be nested ((3, 4) against (2, 6)).
bool ir_index_unify(ir_module *m, ir_index *a, ir_index *b);
// Says that x is the ordered product of n parts (sizes must multiply to x's). Parts of size 1 are
// dropped. Returns false when x is already refined in a way that cannot be nested.
bool ir_index_refine(ir_module *m, ir_index *x, ir_index *const *part, int n);
// The leaves of x, outer to inner, roots all; returns how many (at least 1, at most
// IR_MAX_LEAVES). An index of extent 1 is its own leaf.
int ir_index_leaves(ir_index *x, ir_index **out, int max);
// True when a and b are the same index: one root, or the same sequence of leaves.
bool ir_index_same(ir_index *a, ir_index *b);

// Trials: what unify and refine change between ir_index_try and ir_index_undo is taken back;
// ir_index_keep lets it stand. They nest. ir_index_touched gives an index that existed before the
// trial began and was unified or refined in it, or NULL (the verifier infers again this way).
typedef struct ir_index_trial {
  int changes, next_index;
} ir_index_trial;
ir_index_trial ir_index_try(ir_module *m);
const ir_index *ir_index_touched(ir_module *m, ir_index_trial t);
void ir_index_keep(ir_module *m, ir_index_trial t);
void ir_index_undo(ir_module *m, ir_index_trial t);

// ---- types and values --------------------------------------------------------------------------

typedef struct ir_type {
  ir_dtype dtype;
  int rank;
  ir_index *dim[IR_MAX_RANK];
} ir_type;

// Where the user wrote it. Offsets into the file's text; line 0 means "not from the text".
typedef struct ir_span {
  const char *file;
  int line, col, start, end;
} ir_span;

struct ir_value {
  int id;            // unique in the module; the printer names values %id or %name
  const char *name;  // a hint, may be NULL
  ir_type type;
  ir_op *def;         // the op that makes it, or NULL for a region argument
  ir_region *region;  // for an argument: whose
  int pos;            // result number or argument number
  ir_span span;
  const struct ir_place *place;  // LOCAL: how its indices are cut (ir/place.h); NULL: replicated
  ir_value *mapped;              // scratch of the running pass (cloning)
  int mark;                      // scratch of the running pass
};

int64_t ir_elements(const ir_type *t);
int64_t ir_bytes(const ir_type *t);
ir_type ir_scalar(ir_dtype t);
// Same dtype, rank and extents (indices may differ).
bool ir_type_same(const ir_type *a, const ir_type *b);
// All leaves of all dimensions, outer to inner.
int ir_type_leaves(const ir_type *t, ir_index **out, int max);
// The type for messages: "f32[batch=4, seq=64, 128]". Names are not made unique (ir/print.h does).
const char *ir_type_text(arena *a, const ir_type *t);

// ---- ops ---------------------------------------------------------------------------------------

typedef enum ir_opcode {
#define SCALAR(name, arity, kinds, expr, d0, d1, d2, flops, doc) IR_##name,
#define DEFINED(name, params, text, flops, doc) IR_##name,
#define OP(name, nin, nout, rule, kinds, attrs, dtype, grad, interp, build, doc) IR_##name,
#include "ir/ops.def"
  IR_OPCODE_COUNT
} ir_opcode;

typedef enum ir_op_class { IR_CLASS_SCALAR, IR_CLASS_DEFINED, IR_CLASS_OP } ir_op_class;

// One row of the op table.
typedef struct ir_op_info {
  const char *name;
  ir_op_class cls;
  int min_in, max_in;   // max_in -1: any number
  int nout;             // -1: as many as the op says (split, repeat, map)
  const char *rule;     // index rule, see ir/rule.h; SCALAR and DEFINED have "*" (broadcast)
  const char *kinds;    // index kinds: "n:whole, v:table"; "linear:all"
  const char *attrs;    // allowed attributes: "heads:int scale:float"
  const char *dtype;    // dtype rule, see ir/rule.h
  const char *params;   // DEFINED: parameter names, "x" or "x, y"
  const char *text;     // DEFINED: the definition in the expression language of ir/expr.h
  const char *grad[3];  // SCALAR: derivative texts with respect to each operand
  int flops;            // SCALAR, DEFINED: per element
  const char *doc;
} ir_op_info;

const ir_op_info *ir_info(ir_opcode code);
// The `expr` column of a SCALAR row; operands beyond its arity are not read. Aborts for other rows.
double ir_scalar_value(ir_opcode code, double a, double b, double c);
bool ir_opcode_parse(const char *name, ir_opcode *out);
// True for ops computed element by element over broadcast operands: SCALAR, DEFINED and `map`.
bool ir_is_elementwise(const ir_op *op);

typedef enum ir_attr_kind { ATTR_INT, ATTR_FLOAT, ATTR_STR, ATTR_INTS } ir_attr_kind;

typedef struct ir_attr {
  const char *key;
  ir_attr_kind kind;
  int64_t i;         // ATTR_INT (booleans are 0 and 1)
  double f;          // ATTR_FLOAT
  const char *s;     // ATTR_STR
  const int64_t *v;  // ATTR_INTS
  int n;
} ir_attr;

// One op. `repeat` is described at its row in ops.def.
struct ir_op {
  ir_opcode code;
  int nin, nout, nregions, nattrs;
  ir_value **in;
  ir_value **out;
  ir_region **region;  // repeat: the body; map: the scalar function; attention: mask, bias
  ir_attr *attr;       // sorted by key
  ir_region *parent;
  ir_span span;
  const char *path;  // the op's path in the text ("h.attn.c_proj"), key of random numbers
  bool recompute;    // LOCAL: runs again in backward what forward ran: no model work
  int segment;       // LOCAL: when in the step; even: once, odd: once per micro-batch
  int mark;          // scratch of the running pass
};

// A list of ops with arguments and results. A function has one, `repeat`, `map`, `attention` own
// theirs. An argument list and a yield list are vectors too, because passes extend them.
struct ir_region {
  ir_module *module;
  ir_op *owner;  // NULL: the body of a function
  VEC(ir_value *) args;
  VEC(ir_op *) ops;
  VEC(ir_value *) yield;
};

typedef enum ir_entry_kind { ENTRY_TRAIN, ENTRY_EVAL, ENTRY_PREFILL, ENTRY_DECODE } ir_entry_kind;

// One entry of the executable. Inputs and states are read by the ops `input` and `state`; results
// leave through the ops `output` and `set`.
struct ir_func {
  const char *name;  // "train_step", "evaluate", "prefill", "decode"
  ir_entry_kind kind;
  ir_region *body;
  // Of a stage of a pipeline (passes/cut.h): segments loop, loop + 2, ... are the turns of one loop
  // over micro-batches, `chunks` of them for each phase; no turns: of another module.
  int loop, turns, chunks;
};

// ---- states ------------------------------------------------------------------------------------

typedef enum ir_state_class {
  STATE_WEIGHT,     // learned; saved
  STATE_OPTIMIZER,  // m, v, momentum; saved
  STATE_COPY,       // a weight as products read it, rounded: always the cast of `of`; not saved
  STATE_CACHE,      // keys and values of `decode`; not saved, and lost when other entries run
} ir_state_class;

typedef enum ir_init_kind {
  INIT_ZEROS,
  INIT_ONES,
  INIT_NORMAL,
  INIT_UNIFORM,
  INIT_CONST
} ir_init_kind;

// How ranks share a state: prog_cut of runtime/program.h; `axes` are bits over the module's mesh.
typedef struct ir_share {
  unsigned axes;
  int64_t block, whole;
} ir_share;
#define IR_MAX_SHARES 4

// A value that persists between calls of entries. One made inside a `repeat` is stacked: its first
// dimension is the layer, and `name` holds one '#' where the number of the layer stands in
// checkpoints: "h.#.ln_1.weight" with first 0, step 1.
typedef struct ir_state {
  const char *name;
  ir_type type;  // dim[0] is the layer index when stacked
  bool stacked;
  int first, step;  // layer number of slice k is first + k*step
  ir_state_class cls;
  ir_init_kind init;
  double init_a;  // normal: standard deviation; uniform: half width; const: the value
  bool trained;   // weights with `train = false` are not
  double weight_decay, lr_scale;  // STATE_WEIGHT: multipliers of this weight (decay 0 or the job's)
  const char *of;                 // STATE_OPTIMIZER, STATE_COPY: the weight it belongs to
  ir_span span;
  const char *range_of;  // LOCAL, several ranges of the layers of one state in a module
                         // (passes/cut.h): what files call that state; NULL: `name`
  // LOCAL: what a rank has is `type`; `whole` is what all have together (rank 0 of a state that is
  // not shared: all have the same), of which a slice, row-major, is shared by share[0], what that
  // leaves by share[1], and so on.
  ir_type whole;
  int nshares;
  ir_share share[IR_MAX_SHARES];
} ir_state;

// How far the module has come. With IR_SCHEDULE its functions are LOCAL and `schedule` is set.
typedef enum ir_stage { IR_GRAPH, IR_LOCAL, IR_SCHEDULE } ir_stage;

struct ir_module {
  arena *arena;
  arena *bodies;  // of ops, regions and values: `arena`, or one that goes when the module has been
                  // cloned out of it (passes leave more behind than a module holds)
  ir_stage stage;
  const char *name;  // of the model
  VEC(ir_func *) funcs;
  VEC(ir_state *) states;
  map state_by_name;
  ir_index *batch;  // the sample axis: an index by its root; NULL in a module without one
  const struct ir_mesh
      *mesh;  // LOCAL: the axes that placements name (ir/place.h); NULL: one device
  int pipe_stage, pipe_stages;  // LOCAL: of which stage of a pipeline this is; 0 stages: the whole
  struct sched *schedule;       // SCHEDULE: tasks, orders, places (ir/schedule.h)
  int next_value, next_index;
  void *index_log;  // changes of the running trials, owned by ir/index.c
};

// ---- building ----------------------------------------------------------------------------------

ir_module *ir_module_new(arena *a, const char *name);
ir_func *ir_func_new(ir_module *m, const char *name, ir_entry_kind kind);
ir_func *ir_func_find(ir_module *m, const char *name);
ir_region *ir_region_new(ir_module *m, ir_op *owner);
ir_value *ir_region_arg(ir_region *r, ir_type t, const char *name);
ir_state *ir_state_add(ir_module *m, ir_state s);  // name must be new
ir_state *ir_state_find(ir_module *m, const char *name);

// Where new ops go and what they remember. Rules infer the results' types: a builder call that
// breaks the op's rule returns NULL and leaves the reason in `error` (the frontend makes it a
// diagnostic with the span of the call).
typedef struct ir_builder {
  ir_module *m;
  ir_region *at;  // ops are appended here
  ir_span span;
  const char *path;
  const char *error;  // why the last build failed
} ir_builder;

// Builds an op without attributes. `in` is copied.
ir_op *ir_build(ir_builder *b, ir_opcode code, ir_value *const *in, int nin);
// Builds with attributes and regions, then infers types. Attributes are copied and sorted.
ir_op *ir_build_full(ir_builder *b, ir_opcode code, ir_value *const *in, int nin,
                     const ir_attr *attr, int nattrs, ir_region *const *region, int nregions);
// Shorthands that return the first result (NULL on error).
ir_value *ir_build1(ir_builder *b, ir_opcode code, ir_value *x);
ir_value *ir_build2(ir_builder *b, ir_opcode code, ir_value *x, ir_value *y);
ir_value *ir_build3(ir_builder *b, ir_opcode code, ir_value *x, ir_value *y, ir_value *z);
ir_value *ir_const(ir_builder *b, ir_dtype t, double v);  // rank 0
// An op with given result types, for passes and parsers that know them. Nothing is inferred.
ir_op *ir_op_raw(ir_region *at, ir_opcode code, ir_value *const *in, int nin, const ir_type *out,
                 int nout);

ir_attr ir_attr_i(const char *key, int64_t v);
ir_attr ir_attr_f(const char *key, double v);
ir_attr ir_attr_s(const char *key, const char *v);
ir_attr ir_attr_v(const char *key, const int64_t *v, int n);
void ir_set_attr(ir_module *m, ir_op *op, ir_attr a);
const ir_attr *ir_get_attr(const ir_op *op, const char *key);
// The attributes a row of the op table allows; returns how many.
#define IR_MAX_ATTRS 12
typedef struct ir_attr_slot {
  char key[24];
  ir_attr_kind kind;
  bool optional;
} ir_attr_slot;
int ir_attr_slots(const ir_op_info *info, ir_attr_slot out[IR_MAX_ATTRS]);
// Whether the op's row allows the attribute.
bool ir_attr_allowed(const ir_op *op, const char *key);
int64_t ir_attr_int(const ir_op *op, const char *key, int64_t otherwise);
double ir_attr_float(const ir_op *op, const char *key, double otherwise);
const char *ir_attr_str(const ir_op *op, const char *key, const char *otherwise);

// Copies the ops of `from` to the end of `to`. Arguments of `from` must have `mapped` set by the
// caller; results get `mapped`. Values defined outside `from` without `mapped` are used as they
// are. Regions are copied deeply. Returns nothing: look at value->mapped.
void ir_clone_ops(ir_region *to, ir_region *from);
ir_op *ir_clone_op(ir_region *to, ir_op *op);
// A module of its own with the same functions, all in `arena`; states and indices are shared, so
// only passes that change neither may run over both. Not for SCHEDULE. Leaves no value mapped.
ir_module *ir_clone_module(ir_module *m);
// Replaces every use of `old` in `r` and its nested regions (operands and yields).
void ir_replace_uses(ir_region *r, ir_value *old, ir_value *now);

// A bug of ours: prints file, line and message and aborts (the driver writes a reproducer first).
_Noreturn void ir_bug(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
#define IR_BUG(...) ir_bug(__FILE__, __LINE__, __VA_ARGS__)
#define IR_CHECK(cond)                              \
  do {                                              \
    if (!(cond)) IR_BUG("%s does not hold", #cond); \
  } while (0)

#endif
