// The rules, each with its message. Types are checked by inferring them again inside a trial: the
// inferred types must be the recorded ones, and no index that existed before may have been unified
// or refined on the way, because then two dimensions that an op says are one are not.
#include "ir/verify.h"

#include <string.h>

#include "ir/place.h"
#include "ir/rule.h"

typedef struct verifier {
  ir_module *m;
  arena *scratch;
  const ir_func *func;
  const ir_op *op;
  const char *error;
  const ir_region **home;     // by value id: the region that defines it, set when its op is passed
  map sets, outputs, inputs;  // of the function, by name
} verifier;

typedef enum region_kind { REGION_BODY, REGION_REPEAT, REGION_MAP, REGION_SCORE } region_kind;

// The first fault, with function, op and result in front.
__attribute__((format(printf, 2, 3))) static void fail(verifier *v, const char *fmt, ...) {
  if (v->error) return;
  sb s = {.arena = v->m->arena};
  if (v->func) sb_printf(&s, "func %s: ", v->func->name);
  if (v->op) {
    const ir_op *op = v->op;
    bool known = (unsigned)op->code < IR_OPCODE_COUNT;
    sb_printf(&s, "op `%s`", known ? ir_info(op->code)->name : "?");
    if (op->nout && op->out[0]) {
      if (op->out[0]->name)
        sb_printf(&s, " making %%%s", op->out[0]->name);
      else
        sb_printf(&s, " making value %d", op->out[0]->id);
    }
    sb_puts(&s, ": ");
  }
  va_list ap;
  va_start(ap, fmt);
  sb_vprintf(&s, fmt, ap);
  va_end(ap);
  v->error = sb_str(&s);
}

// ---- types and values --------------------------------------------------------------------------

// Everything else relies on well-formed types, so they are looked at first.
static bool type_ok(verifier *v, const ir_type *t) {
  if ((unsigned)t->dtype >= DT_COUNT) return fail(v, "an element type that does not exist"), false;
  if (t->rank < 0 || t->rank > IR_MAX_RANK) return fail(v, "a rank of %d", t->rank), false;
  int64_t bytes = ir_dtype_bytes(t->dtype);
  for (int i = 0; i < t->rank; i++) {
    if (!t->dim[i]) return fail(v, "dimension %d has no index", i), false;
    const ir_index *x = ir_root(t->dim[i]);
    if (x->size < 1) return fail(v, "dimension %d has extent %lld", i, (long long)x->size), false;
    int64_t product = 1;
    for (int k = 0; k < x->nparts; k++) product *= x->part[k]->size;
    if (x->nparts && product != x->size)
      return fail(v, "the parts of dimension %d do not multiply to %lld", i, (long long)x->size),
             false;
    if (__builtin_mul_overflow(bytes, x->size, &bytes))
      return fail(v, "a value of more than 2^63 bytes"), false;
  }
  return true;
}

// A placement cuts indices the value has, by axes of the mesh, and uses no axis twice.
static void check_placement(verifier *v, const ir_value *x) {
  const ir_place *at = x->place;
  if (!at) return;
  if (!v->m->mesh) {
    fail(v, "a placement in a module without a mesh");
    return;
  }
  unsigned used = at->partial == PARTIAL_NONE ? 0 : at->partial_axes;
  if (used >> v->m->mesh->naxes) fail(v, "a placement over an axis the mesh does not have");
  for (int i = 0; i < at->ncuts; i++) {
    const ir_cut *c = &at->cut[i];
    ir_index *leaf[IR_MAX_LEAVES], *part[IR_MAX_LEAVES];
    int n = ir_type_leaves(&x->type, leaf, IR_MAX_LEAVES), found = 0;
    int nparts = ir_index_leaves(c->index, part, IR_MAX_LEAVES);
    for (int k = 0; k < n; k++) found += leaf[k] == part[0];
    if (!found || !nparts) fail(v, "a placement cuts an index the value does not have");
    for (int k = 0; k < c->naxes; k++) {
      int a = c->axis[k];
      if (a < 0 || a >= v->m->mesh->naxes || (used >> a & 1))
        fail(v, "a placement uses an axis twice, or one the mesh does not have");
      else
        used |= 1u << a;
    }
  }
}

// Records that region r defines x.
static void define(verifier *v, ir_value *x, const ir_region *r) {
  if (x->id < 0 || x->id >= v->m->next_value) {
    fail(v, "a value has number %d of %d", x->id, v->m->next_value);
  } else if (v->home[x->id]) {
    fail(v, "value %d is defined twice", x->id);
  } else if (type_ok(v, &x->type)) {
    v->home[x->id] = r;
    check_placement(v, x);
  }
}

// A region sees only what it defines itself: all regions belong to repeat, map or attention.
static void use(verifier *v, const ir_value *x, const ir_region *r, const char *what, int i) {
  if (!x) {
    fail(v, "%s %d is missing", what, i + 1);
    return;
  }
  const ir_region *home = x->id >= 0 && x->id < v->m->next_value ? v->home[x->id] : NULL;
  if (!home)
    fail(v, "%s %d (%s) is used before it is defined", what, i + 1, x->name ? x->name : "no name");
  else if (home != r)
    fail(v, "%s %d (%s) is defined outside this region, which sees only its arguments", what, i + 1,
         x->name ? x->name : "no name");
}

// ---- stage and place ---------------------------------------------------------------------------

// What may stand inside a map or a mask. DEFINED rows are expanded before LOCAL, because code
// generation knows primitives only.
static bool scalar_op(const verifier *v, ir_opcode code, region_kind kind) {
  switch (ir_info(code)->cls) {
    case IR_CLASS_SCALAR: return true;
    case IR_CLASS_DEFINED: return v->m->stage == IR_GRAPH;
    case IR_CLASS_OP: break;
  }
  if (code == IR_at) return kind == REGION_SCORE;
  if (code == IR_dropout) return kind == REGION_MAP;
  return code == IR_const || code == IR_cast;
}

// Ops that belong to one stage or one kind of region; and names that are read or written twice.
static void check_place(verifier *v, const ir_op *op, region_kind kind) {
  ir_opcode code = op->code;
  if (kind == REGION_MAP || kind == REGION_SCORE) {
    if (!scalar_op(v, code, kind)) fail(v, "a scalar region holds only elementwise ops");
    for (int i = 0; i < op->nout; i++)
      if (op->out[i]->type.rank) fail(v, "a scalar region holds only scalars");
    return;
  }
  if (code == IR_at) fail(v, "stands only in the mask or bias of an attention");
  if (ir_accumulates(op) && v->m->stage == IR_GRAPH)
    fail(v, "belongs to LOCAL: GRAPH has no micro-batches");
  if (ir_is_exchange(code) && v->m->stage == IR_GRAPH)
    fail(v, "belongs to LOCAL: GRAPH has no ranks");
  if (op->recompute && (v->m->stage == IR_GRAPH || kind != REGION_REPEAT))
    fail(v, "`recompute` belongs to the body of a repeat, in LOCAL");
  bool effect =
      code == IR_input || code == IR_arg || code == IR_state || code == IR_set || code == IR_output;
  if (!effect) return;
  if (kind != REGION_BODY) fail(v, "stands only in the body of a function");
  const char *name = ir_attr_str(op, "name", "");
  map *seen = code == IR_set ? &v->sets : code == IR_output ? &v->outputs : &v->inputs;
  if (code == IR_state) return;
  const ir_op *before = map_set(seen, name, (void *)(uintptr_t)op);
  if (!before) return;
  if (code == IR_set || code == IR_output)
    fail(v, "`%s` is given twice", name);
  else if (before->code != code || !ir_type_same(&before->out[0]->type, &op->out[0]->type))
    fail(v, "`%s` is read before with another type", name);
}

// ---- types against the rule --------------------------------------------------------------------

static void check_types(verifier *v, ir_op *op) {
  enum { FEW = 4 };  // results; of more they lie in the arena
  ir_type few[FEW] = {0};
  int count = ir_result_count(op), n = 0;
  ir_type *type = count <= FEW ? few : arena_new(v->scratch, ir_type, count);
  ir_index_trial trial = ir_index_try(v->m);
  const char *error = ir_infer(v->m, op, type, &n);
  if (error)
    fail(v, "%s", error);
  else if (n != op->nout)
    fail(v, "has %d results, its rule gives %d", op->nout, n);
  for (int i = 0; i < op->nout && !v->error; i++) {
    const ir_type *is = &op->out[i]->type;
    bool same = ir_type_same(is, &type[i]);
    for (int d = 0; same && d < is->rank; d++)
      same = (is->dim[d]->size == 1 && type[i].dim[d]->size == 1) ||
             ir_index_unify(v->m, is->dim[d], type[i].dim[d]);
    if (!same)
      fail(v, "result %d is %s, its rule gives %s", i + 1, ir_type_text(v->m->arena, is),
           ir_type_text(v->m->arena, &type[i]));
  }
  const ir_index *x = v->error ? NULL : ir_index_touched(v->m, trial);
  if (x)
    fail(v, "its rule makes index %s (%lld) one with another or divides it, but here it is not",
         x->name ? x->name : "without name", (long long)x->size);
  ir_index_undo(v->m, trial);
}

// What inference does not need and therefore does not check.
static void check_repeat(verifier *v, const ir_op *op) {
  int64_t reverse = ir_attr_int(op, "reverse", 0), accum = ir_attr_int(op, "accum", 0);
  if (reverse != 0 && reverse != 1) fail(v, "reverse is %lld", (long long)reverse);
  if (accum < 0 || accum > ir_attr_int(op, "carried", 0))
    fail(v, "accum is %lld of %lld carried values", (long long)accum,
         (long long)ir_attr_int(op, "carried", 0));
}

// ---- regions -----------------------------------------------------------------------------------

static void check_region(verifier *v, ir_region *r, const ir_op *owner, region_kind kind);

// Order matters: operands, then the row, then nested regions, then results, because inference may
// look at anything that was checked before it. (It checks the row too: of ops without regions once
// is enough.)
static void check_op(verifier *v, ir_op *op, ir_region *r, region_kind kind) {
  const ir_op *outer = v->op;
  v->op = op;
  if ((unsigned)op->code >= IR_OPCODE_COUNT) {
    fail(v, "an op that is not in the table");
    return;
  }
  if (op->parent != r) fail(v, "its parent is not the region it stands in");
  for (int i = 0; i < op->nin && !v->error; i++) use(v, op->in[i], r, "operand", i);
  if (v->error) return;
  const char *error = op->nregions ? ir_check_row(v->m, op) : NULL;
  if (error) fail(v, "%s", error);
  region_kind inner = op->code == IR_repeat ? REGION_REPEAT
                      : op->code == IR_map || op->code == IR_sum || ir_epilogue(op) >= 0
                          ? REGION_MAP
                          : REGION_SCORE;
  for (int i = 0; i < op->nregions && !v->error; i++) check_region(v, op->region[i], op, inner);
  v->op = op;
  for (int i = 0; i < op->nout && !v->error; i++) {
    ir_value *x = op->out[i];
    if (x->def != op || x->pos != i) fail(v, "result %d does not point back to it", i + 1);
    define(v, x, r);
  }
  if (!v->error) check_place(v, op, kind);
  if (!v->error) check_types(v, op);
  for (int i = 1; i < op->nattrs; i++)
    if (strcmp(op->attr[i - 1].key, op->attr[i].key) >= 0) fail(v, "its attributes are not sorted");
  if (!v->error && op->code == IR_repeat) check_repeat(v, op);
  v->op = outer;
}

static void check_region(verifier *v, ir_region *r, const ir_op *owner, region_kind kind) {
  if (r->owner != owner) fail(v, "a region's owner is not the op that has it");
  if (r->module != v->m) fail(v, "a region belongs to another module");
  for (int i = 0; i < r->args.n && !v->error; i++) {
    ir_value *x = r->args.at[i];
    if (x->def || x->region != r || x->pos != i) fail(v, "argument %d is not the region's", i + 1);
    define(v, x, r);
  }
  for (int i = 0; i < r->ops.n && !v->error; i++) check_op(v, r->ops.at[i], r, kind);
  for (int i = 0; i < r->yield.n && !v->error; i++) use(v, r->yield.at[i], r, "yield", i);
}

static void check_func(verifier *v, ir_func *f) {
  v->func = f;
  v->op = NULL;
  v->sets = v->outputs = v->inputs = (map){.arena = v->scratch};
  for (int i = 0; i < v->m->funcs.n && v->m->funcs.at[i] != f; i++)
    if (strcmp(v->m->funcs.at[i]->name, f->name) == 0) fail(v, "two functions have this name");
  if (f->body->args.n || f->body->yield.n)
    fail(v, "a function has no arguments and yields nothing");
  if (!v->error) check_region(v, f->body, NULL, REGION_BODY);
  for (int i = 0; i < v->m->states.n && !v->error; i++) {
    const ir_state *s = v->m->states.at[i];
    if (s->cls != STATE_COPY) continue;
    if ((map_find(&v->sets, s->of) < 0) != (map_find(&v->sets, s->name) < 0))
      fail(v, "%s: weight %s and its copy %s are not set together", f->name, s->of, s->name);
  }
}

// A copy is its weight in another type.
static bool copies(const ir_state *s, const ir_state *w) {
  if (!w || w->cls != STATE_WEIGHT || w->type.dtype != DT_f32 || s->type.dtype != DT_bf16)
    return false;
  if (s->stacked != w->stacked) return false;
  if (s->stacked && (s->first != w->first || s->step != w->step)) return false;
  const ir_type *a = s->nshares ? &s->whole : &s->type, *b = w->nshares ? &w->whole : &w->type;
  if (a->rank != b->rank) return false;
  for (int d = 0; d < a->rank; d++)
    if (a->dim[d]->size != b->dim[d]->size) return false;
  return true;
}

static void check_state(verifier *v, const ir_state *s) {
  if (!type_ok(v, &s->type)) return;
  if (ir_state_find(v->m, s->name) != s) fail(v, "state %s: its name is not its own", s->name);
  if (s->stacked && (!s->type.rank || s->step < 1))
    fail(v, "state %s: stacked, but it has no layers or no step", s->name);
  if (s->cls == STATE_OPTIMIZER && s->of && !ir_state_find(v->m, s->of))
    fail(v, "state %s: there is no weight %s", s->name, s->of);
  if (s->cls == STATE_COPY && !(s->of && copies(s, ir_state_find(v->m, s->of))))
    fail(v, "state %s: a copy is bf16, of an f32 weight of its shape and layers", s->name);
}

const char *ir_verify(ir_module *m) {
  arena scratch;
  arena_init(&scratch);
  scratch.oom = m->arena->oom;
  scratch.oom_ctx = m->arena->oom_ctx;
  verifier v = {.m = m, .scratch = &scratch};
  v.home = arena_new(&scratch, const ir_region *, m->next_value + 1);
  for (int i = 0; i < m->states.n && !v.error; i++) check_state(&v, m->states.at[i]);
  for (int i = 0; i < m->funcs.n && !v.error; i++) check_func(&v, m->funcs.at[i]);
  arena_free(&scratch);
  return v.error;
}
