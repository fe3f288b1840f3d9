// Modules, functions, regions, ops and values: making, copying and changing them.
//
// The op table of ir/ops.def is expanded here once into rows (ir_info). Index unification is in
// ir/index.c, type inference in ir/rule.c.
#include "ir/ir.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ir/rule.h"

void ir_bug(const char *file, int line, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  fprintf(stderr, "dsmc: internal error at %s:%d: ", file, line);
  vfprintf(stderr, fmt, ap);
  fputc('\n', stderr);
  va_end(ap);
  fflush(stderr);
  abort();
}

// ---- element types -----------------------------------------------------------------------------

typedef struct dtype_row {
  const char *name;
  int bytes;
  char kind;  // F, I or B
} dtype_row;

// The rows of ir/dtypes.def.
static const dtype_row *dtype_of(ir_dtype t) {
  static const dtype_row rows[DT_COUNT] = {
#define DTYPE(name, bytes, kind, st) {#name, bytes, #kind[0]},
#include "ir/dtypes.def"
  };
  IR_CHECK((unsigned)t < DT_COUNT);
  return &rows[t];
}

const char *ir_dtype_name(ir_dtype t) { return dtype_of(t)->name; }

bool ir_dtype_parse(const char *s, ir_dtype *out) {
  for (int t = 0; t < DT_COUNT; t++)
    if (strcmp(s, ir_dtype_name((ir_dtype)t)) == 0) {
      *out = (ir_dtype)t;
      return true;
    }
  return false;
}

int ir_dtype_bytes(ir_dtype t) { return dtype_of(t)->bytes; }

bool ir_dtype_float(ir_dtype t) { return dtype_of(t)->kind == 'F'; }

// Kinds first (real over whole over truth), then width.
ir_dtype ir_dtype_join(ir_dtype a, ir_dtype b) {
  if (a == b) return a;
  const dtype_row *x = dtype_of(a), *y = dtype_of(b);
  if (x->kind != y->kind) {
    if (x->kind == 'F') return a;
    if (y->kind == 'F') return b;
    return x->kind == 'I' ? a : b;
  }
  if (x->bytes != y->bytes) return x->bytes > y->bytes ? a : b;
  // Two types of one width that do not hold each other's values: the next wider one holds both.
  if (x->kind == 'F') return x->bytes == 1 ? DT_f16 : DT_f32;
  return DT_i32;
}

// ---- the op table ------------------------------------------------------------------------------

#define AT_LEAST(n) ((n) < 0 ? -(n) : (n))
#define AT_MOST(n) ((n) < 0 ? -1 : (n))

const ir_op_info *ir_info(ir_opcode code) {
  static const ir_op_info rows[IR_OPCODE_COUNT] = {
#define SCALAR(name, arity, kinds, expr, d0, d1, d2, flops, doc)      \
  {#name, IR_CLASS_SCALAR, arity, arity, 1, "*", kinds, "", "", NULL, \
   NULL,  {d0, d1, d2},    flops, doc},
#define DEFINED(name, params, text, flops, doc) \
  {#name,                                       \
   IR_CLASS_DEFINED,                            \
   sizeof(params) > 2 ? 2 : 1,                  \
   sizeof(params) > 2 ? 2 : 1,                  \
   1,                                           \
   "*",                                         \
   "",                                          \
   "",                                          \
   "",                                          \
   params,                                      \
   text,                                        \
   {NULL, NULL, NULL},                          \
   flops,                                       \
   doc},
#define OP(name, nin, nout, rule, kinds, attrs, dtype, grad, interp, build, doc)    \
  {#name, IR_CLASS_OP, AT_LEAST(nin), AT_MOST(nin),       nout, rule, kinds, attrs, \
   dtype, NULL,        NULL,          {NULL, NULL, NULL}, 0,    doc},
#include "ir/ops.def"
  };
  IR_CHECK((unsigned)code < IR_OPCODE_COUNT);
  return &rows[code];
}

double ir_scalar_value(ir_opcode code, double a, double b, double c) {
  switch (code) {
#define SCALAR(name, arity, kinds, expr, d0, d1, d2, flops, doc) \
  case IR_##name: return (double)(expr);
#define DEFINED(name, params, text, flops, doc)
#define OP(name, nin, nout, rule, kinds, attrs, dtype, grad, interp, build, doc)
#include "ir/ops.def"
    default: IR_BUG("%s is not a SCALAR row", ir_info(code)->name);
  }
}

// Linear: only parsers look ops up by name, and there are about a hundred.
bool ir_opcode_parse(const char *name, ir_opcode *out) {
  for (int i = 0; i < IR_OPCODE_COUNT; i++)
    if (strcmp(name, ir_info((ir_opcode)i)->name) == 0) {
      *out = (ir_opcode)i;
      return true;
    }
  return false;
}

bool ir_is_elementwise(const ir_op *op) {
  return op->code == IR_map || ir_info(op->code)->cls != IR_CLASS_OP;
}

// ---- types -------------------------------------------------------------------------------------

int64_t ir_elements(const ir_type *t) {
  int64_t n = 1;
  for (int i = 0; i < t->rank; i++) n *= t->dim[i]->size;
  return n;
}

int64_t ir_bytes(const ir_type *t) { return ir_elements(t) * ir_dtype_bytes(t->dtype); }

ir_type ir_scalar(ir_dtype t) { return (ir_type){.dtype = t}; }

bool ir_type_same(const ir_type *a, const ir_type *b) {
  if (a->dtype != b->dtype || a->rank != b->rank) return false;
  for (int i = 0; i < a->rank; i++)
    if (a->dim[i]->size != b->dim[i]->size) return false;
  return true;
}

int ir_type_leaves(const ir_type *t, ir_index **out, int max) {
  int n = 0;
  for (int i = 0; i < t->rank; i++) n += ir_index_leaves(t->dim[i], out + n, max - n);
  return n;
}

const char *ir_type_text(arena *a, const ir_type *t) {
  sb s = {.arena = a};
  sb_puts(&s, ir_dtype_name(t->dtype));
  for (int i = 0; i < t->rank; i++) {
    const ir_index *x = ir_root(t->dim[i]);
    sb_puts(&s, i ? ", " : "[");
    if (x->name) sb_printf(&s, "%s=", x->name);
    sb_printf(&s, "%lld", (long long)x->size);
  }
  if (t->rank) sb_put(&s, ']');
  return sb_str(&s);
}

// ---- modules, functions, regions, states -------------------------------------------------------

ir_module *ir_module_new(arena *a, const char *name) {
  ir_module *m = arena_new(a, ir_module, 1);
  m->arena = m->bodies = a;
  m->name = name;
  m->state_by_name.arena = a;
  return m;
}

ir_region *ir_region_new(ir_module *m, ir_op *owner) {
  ir_region *r = arena_new(m->bodies, ir_region, 1);
  r->module = m;
  r->owner = owner;
  return r;
}

ir_func *ir_func_new(ir_module *m, const char *name, ir_entry_kind kind) {
  ir_func *f = arena_new(m->arena, ir_func, 1);
  f->name = name;
  f->kind = kind;
  f->body = ir_region_new(m, NULL);
  vec_push(m->arena, &m->funcs, f);
  return f;
}

ir_func *ir_func_find(ir_module *m, const char *name) {
  for (int i = 0; i < m->funcs.n; i++)
    if (strcmp(m->funcs.at[i]->name, name) == 0) return m->funcs.at[i];
  return NULL;
}

// Ids are never reused: passes index tables by them.
static ir_value *value_new(ir_module *m, ir_type t, const char *name) {
  ir_value *v = arena_new(m->bodies, ir_value, 1);
  v->id = m->next_value++;
  v->type = t;
  v->name = name;
  return v;
}

ir_value *ir_region_arg(ir_region *r, ir_type t, const char *name) {
  ir_value *v = value_new(r->module, t, name);
  v->region = r;
  v->pos = r->args.n;
  vec_push(r->module->bodies, &r->args, v);
  return v;
}

ir_state *ir_state_add(ir_module *m, ir_state s) {
  if (map_get(&m->state_by_name, s.name)) IR_BUG("state %s exists already", s.name);
  ir_state *p = arena_new(m->arena, ir_state, 1);
  *p = s;
  vec_push(m->arena, &m->states, p);
  map_set(&m->state_by_name, p->name, p);
  return p;
}

ir_state *ir_state_find(ir_module *m, const char *name) { return map_get(&m->state_by_name, name); }

// ---- attributes --------------------------------------------------------------------------------

ir_attr ir_attr_i(const char *key, int64_t v) {
  return (ir_attr){.key = key, .kind = ATTR_INT, .i = v};
}

ir_attr ir_attr_f(const char *key, double v) {
  return (ir_attr){.key = key, .kind = ATTR_FLOAT, .f = v};
}

ir_attr ir_attr_s(const char *key, const char *v) {
  return (ir_attr){.key = key, .kind = ATTR_STR, .s = v};
}

ir_attr ir_attr_v(const char *key, const int64_t *v, int n) {
  return (ir_attr){.key = key, .kind = ATTR_INTS, .v = v, .n = n};
}

// Reads "heads:int scale:float past:int?".
int ir_attr_slots(const ir_op_info *info, ir_attr_slot out[IR_MAX_ATTRS]) {
  int n = 0;
  for (const char *p = info->attrs; *p;) {
    while (*p == ' ') p++;
    size_t key = strcspn(p, ": "), type = strcspn(p + key, " ");
    if (!key) break;
    IR_CHECK(n < IR_MAX_ATTRS && key < sizeof out->key && p[key] == ':');
    ir_attr_slot *s = &out[n++];
    memcpy(s->key, p, key);
    s->key[key] = 0;
    const char *t = p + key + 1;
    s->kind = str_starts(t, "ints")    ? ATTR_INTS
              : str_starts(t, "int")   ? ATTR_INT
              : str_starts(t, "float") ? ATTR_FLOAT
                                       : ATTR_STR;
    s->optional = p[key + type - 1] == '?';
    p += key + type;
  }
  return n;
}

static int attr_find(const ir_op *op, const char *key) {
  for (int i = 0; i < op->nattrs; i++)
    if (strcmp(op->attr[i].key, key) == 0) return i;
  return -1;
}

// Copies what the attribute points to, and keeps the array sorted so that the text of an op does
// not depend on how it was built.
void ir_set_attr(ir_module *m, ir_op *op, ir_attr a) {
  if (a.kind == ATTR_STR) a.s = arena_strdup(m->arena, a.s);
  if (a.kind == ATTR_INTS) {
    int64_t *v = arena_new(m->arena, int64_t, a.n);
    if (a.n) memcpy(v, a.v, sizeof *v * (size_t)a.n);
    a.v = v;
  }
  int at = attr_find(op, a.key);
  if (at >= 0) {
    a.key = op->attr[at].key;
    op->attr[at] = a;
    return;
  }
  a.key = arena_strdup(m->arena, a.key);
  // Into a new array: ops made by cloning or copying a struct may look at the old one.
  ir_attr *all = arena_new(m->bodies, ir_attr, op->nattrs + 1);
  for (at = 0; at < op->nattrs && strcmp(op->attr[at].key, a.key) < 0; at++) all[at] = op->attr[at];
  all[at] = a;
  for (int i = at; i < op->nattrs; i++) all[i + 1] = op->attr[i];
  op->attr = all;
  op->nattrs++;
}

const ir_attr *ir_get_attr(const ir_op *op, const char *key) {
  int i = attr_find(op, key);
  return i < 0 ? NULL : &op->attr[i];
}

bool ir_attr_allowed(const ir_op *op, const char *key) {
  ir_attr_slot slot[IR_MAX_ATTRS];
  int n = ir_attr_slots(ir_info(op->code), slot);
  for (int i = 0; i < n; i++)
    if (strcmp(slot[i].key, key) == 0) return true;
  return false;
}

int64_t ir_attr_int(const ir_op *op, const char *key, int64_t otherwise) {
  const ir_attr *a = ir_get_attr(op, key);
  return a && a->kind == ATTR_INT ? a->i : otherwise;
}

double ir_attr_float(const ir_op *op, const char *key, double otherwise) {
  const ir_attr *a = ir_get_attr(op, key);
  return a && a->kind == ATTR_FLOAT ? a->f : otherwise;
}

const char *ir_attr_str(const ir_op *op, const char *key, const char *otherwise) {
  const ir_attr *a = ir_get_attr(op, key);
  return a && a->kind == ATTR_STR ? a->s : otherwise;
}

// ---- building ----------------------------------------------------------------------------------

// An op that is in no region yet and has no results.
static ir_op *op_new(ir_module *m, ir_opcode code, ir_value *const *in, int nin) {
  ir_op *op = arena_new(m->bodies, ir_op, 1);
  op->code = code;
  op->nin = nin;
  op->in = arena_new(m->bodies, ir_value *, nin);
  if (nin) memcpy(op->in, in, sizeof *in * (size_t)nin);
  return op;
}

static void op_results(ir_module *m, ir_op *op, const ir_type *type, int n) {
  op->nout = n;
  op->out = arena_new(m->bodies, ir_value *, n);
  for (int i = 0; i < n; i++) {
    ir_value *v = value_new(m, type[i], NULL);
    v->def = op;
    v->pos = i;
    v->span = op->span;
    op->out[i] = v;
  }
}

static void op_append(ir_region *at, ir_op *op) {
  op->parent = at;
  vec_push(at->module->bodies, &at->ops, op);
}

// Results without inference, for those who know the types.
ir_op *ir_op_raw(ir_region *at, ir_opcode code, ir_value *const *in, int nin, const ir_type *out,
                 int nout) {
  ir_op *op = op_new(at->module, code, in, nin);
  op_results(at->module, op, out, nout);
  op_append(at, op);
  return op;
}

// A whole number given for an attribute that is real is what the writer meant.
static void settle_attrs(ir_op *op) {
  ir_attr_slot slot[IR_MAX_ATTRS];
  int n = ir_attr_slots(ir_info(op->code), slot);
  for (int i = 0; i < n; i++) {
    int at = attr_find(op, slot[i].key);
    if (at < 0 || slot[i].kind != ATTR_FLOAT || op->attr[at].kind != ATTR_INT) continue;
    op->attr[at].kind = ATTR_FLOAT;
    op->attr[at].f = (double)op->attr[at].i;
  }
}

// The op is put into its region only after inference accepted it, so a refused call leaves nothing
// but a few unreachable bytes in the arena.
ir_op *ir_build_full(ir_builder *b, ir_opcode code, ir_value *const *in, int nin,
                     const ir_attr *attr, int nattrs, ir_region *const *region, int nregions) {
  ir_module *m = b->m;
  for (int i = 0; i < nin; i++)
    if (!in[i]) {
      // The operand failed to build: its own message is the one to keep.
      if (!b->error)
        b->error =
            arena_printf(m->arena, "operand %d of %s is missing", i + 1, ir_info(code)->name);
      return NULL;
    }
  b->error = NULL;
  ir_op *op = op_new(m, code, in, nin);
  op->span = b->span;
  op->path = b->path;
  op->attr = arena_new(m->bodies, ir_attr, nattrs);
  for (int i = 0; i < nattrs; i++) ir_set_attr(m, op, attr[i]);
  settle_attrs(op);
  op->nregions = nregions;
  op->region = arena_new(m->bodies, ir_region *, nregions);
  for (int i = 0; i < nregions; i++) op->region[i] = region[i];

  ir_type *type = arena_new(m->bodies, ir_type, ir_result_count(op));
  int nout = 0;
  b->error = ir_infer(m, op, type, &nout);
  if (b->error) return NULL;
  for (int i = 0; i < nregions; i++) op->region[i]->owner = op;
  op_results(m, op, type, nout);
  op_append(b->at, op);
  return op;
}

ir_op *ir_build(ir_builder *b, ir_opcode code, ir_value *const *in, int nin) {
  return ir_build_full(b, code, in, nin, NULL, 0, NULL, 0);
}

static ir_value *first_result(const ir_op *op) { return op && op->nout ? op->out[0] : NULL; }

ir_value *ir_build1(ir_builder *b, ir_opcode code, ir_value *x) {
  return first_result(ir_build(b, code, &x, 1));
}

ir_value *ir_build2(ir_builder *b, ir_opcode code, ir_value *x, ir_value *y) {
  ir_value *in[] = {x, y};
  return first_result(ir_build(b, code, in, 2));
}

ir_value *ir_build3(ir_builder *b, ir_opcode code, ir_value *x, ir_value *y, ir_value *z) {
  ir_value *in[] = {x, y, z};
  return first_result(ir_build(b, code, in, 3));
}

ir_value *ir_const(ir_builder *b, ir_dtype t, double v) {
  ir_attr attr[] = {ir_attr_f("value", v), ir_attr_s("dtype", ir_dtype_name(t))};
  return first_result(ir_build_full(b, IR_const, NULL, 0, attr, 2, NULL, 0));
}

// ---- cloning and replacing ---------------------------------------------------------------------

// What a value became in the copy; itself when it was defined outside of what is copied.
static ir_value *mapped(ir_value *v) { return v->mapped ? v->mapped : v; }

// A deep copy; arguments are mapped before the ops that use them.
static ir_region *clone_region(ir_module *m, ir_op *owner, ir_region *from) {
  ir_region *to = ir_region_new(m, owner);
  for (int i = 0; i < from->args.n; i++) {
    ir_value *old = from->args.at[i];
    ir_value *now = ir_region_arg(to, old->type, old->name);
    now->span = old->span;
    now->place = old->place;
    old->mapped = now;
  }
  ir_clone_ops(to, from);
  for (int i = 0; i < from->yield.n; i++)
    vec_push(m->bodies, &to->yield, mapped(from->yield.at[i]));
  return to;
}

ir_op *ir_clone_op(ir_region *to, ir_op *op) {
  ir_module *m = to->module;
  ir_op *now = op_new(m, op->code, op->in, op->nin);
  for (int i = 0; i < now->nin; i++) now->in[i] = mapped(now->in[i]);
  now->nattrs = op->nattrs;
  now->attr = arena_new(m->bodies, ir_attr, op->nattrs);
  if (op->nattrs) memcpy(now->attr, op->attr, sizeof *op->attr * (size_t)op->nattrs);
  now->span = op->span;
  now->path = op->path;
  now->recompute = op->recompute;
  now->nregions = op->nregions;
  now->region = arena_new(m->bodies, ir_region *, op->nregions);
  for (int i = 0; i < op->nregions; i++) now->region[i] = clone_region(m, now, op->region[i]);
  now->nout = op->nout;
  now->out = arena_new(m->bodies, ir_value *, op->nout);
  for (int i = 0; i < op->nout; i++) {
    ir_value *v = value_new(m, op->out[i]->type, op->out[i]->name);
    v->def = now;
    v->pos = i;
    v->span = op->out[i]->span;
    v->place = op->out[i]->place;
    now->out[i] = op->out[i]->mapped = v;
  }
  op_append(to, now);
  return now;
}

void ir_clone_ops(ir_region *to, ir_region *from) {
  // `to` may be `from` itself (unrolling in place): take only what was there at the start.
  int n = from->ops.n;
  for (int i = 0; i < n; i++) ir_clone_op(to, from->ops.at[i]);
}

// The copy of a body has its ops in the same order.
static void finish_clone(ir_region *to, ir_region *from) {
  for (int i = 0; i < from->args.n; i++) from->args.at[i]->mapped = NULL;
  for (int i = 0; i < from->ops.n; i++) {
    ir_op *now = to->ops.at[i], *op = from->ops.at[i];
    now->segment = op->segment;
    for (int k = 0; k < op->nout; k++) op->out[k]->mapped = NULL;
    for (int k = 0; k < op->nregions; k++) finish_clone(now->region[k], op->region[k]);
  }
}

ir_module *ir_clone_module(ir_module *m) {
  ir_module *c = arena_new(m->arena, ir_module, 1);
  *c = *m;
  c->bodies = c->arena;
  memset(&c->funcs, 0, sizeof c->funcs);
  for (int i = 0; i < m->funcs.n; i++) {
    const ir_func *f = m->funcs.at[i];
    ir_func *now = ir_func_new(c, f->name, f->kind);
    now->body = clone_region(c, NULL, f->body);
    finish_clone(now->body, f->body);
  }
  return c;
}

void ir_replace_uses(ir_region *r, ir_value *old, ir_value *now) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nin; k++)
      if (op->in[k] == old) op->in[k] = now;
    for (int k = 0; k < op->nregions; k++) ir_replace_uses(op->region[k], old, now);
  }
  for (int i = 0; i < r->yield.n; i++)
    if (r->yield.at[i] == old) r->yield.at[i] = now;
}
