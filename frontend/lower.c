// The walker: expressions, statements and the functions of a module.
//
// `eval` yields a constant or a tensor. Tensors are values of the region of the current *frame*;
// using one from further out imports it through every frame in between (an invariant of a repeat,
// an operand of a map). After a mistake the value is VAL_ERROR, which spreads without further
// reports.
//
// Work is bounded: every expression and statement takes a unit of fuel and every op one of the op
// budget, so no text, however its blocks and repeats multiply, runs for long.
#include <limits.h>
#include <string.h>

#include "frontend/sema_impl.h"

// ---------------------------------------------------------------------------------------------
// Diagnostics
// ---------------------------------------------------------------------------------------------

diag *sema_error(lowering *lw, span at, diag_code code, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  const char *message = arena_vprintf(lw->arena, fmt, ap);
  va_end(ap);
  if (lw->spent) {  // the budget was exceeded: what follows is noise
    diag *silent = arena_new(lw->arena, diag, 1);
    silent->arena = lw->arena;
    return silent;
  }
  diag *e = diag_add(lw->diags, at, code, "%s", message);
  for (int i = lw->calls.n - 1, shown = 0; i >= 0 && shown < 4; i--, shown++)
    diag_place_at(e, lw->calls.at[i].at, "in the call of `%s` from here", lw->calls.at[i].name);
  return e;
}

static void spend_all(lowering *lw, span at, const char *what) {
  if (!lw->spent) {
    diag *e = sema_error(lw, at, DIAG_TOO_LARGE, "%s", what);
    diag_note(e, "unlike bodies and nested repeats are written out: make iterations equal");
  }
  lw->spent = true;
}

static bool use_fuel(lowering *lw, span at) {
  if (lw->spent) return false;
  if (lw->fuel-- > 0) return true;
  spend_all(lw, at, "the model takes more than 2 million steps to write out");
  return false;
}

void sema_undeclared(lowering *lw, span at, const char *name, const char *what) {
  diag *e = sema_error(lw, at, DIAG_UNDECLARED_NAME, "%s `%s` is not declared", what, name);
  name_list names = {0};
  scope_names(lw->arena, lw->scope, &names);
  for (int i = 0; i < lw->program->fns.n; i++)
    vec_push(lw->arena, &names, lw->program->fns.keys[i]);
  for (int i = 0; i < lw->program->blocks.n; i++)
    vec_push(lw->arena, &names, lw->program->blocks.keys[i]);
  if (lw->settings) settings_names(lw, &names);
  builtin_names(lw->arena, &names);
  if (!diag_did_you_mean(e, name, names.at, names.n))
    diag_label(e, "not declared before this line");
}

ir_span ir_span_of(span s) {
  if (!s.file) return (ir_span){0};
  return (ir_span){s.file->path, s.line, s.column, s.start, s.end};
}

// ---------------------------------------------------------------------------------------------
// Ops
// ---------------------------------------------------------------------------------------------

// "h.#.attn" without the "#": what random numbers are keyed by.
static const char *plain_path(arena *a, const char *chain) {
  const char *mark = strchr(chain, '#');
  if (!mark) return chain;
  size_t before = (size_t)(mark - chain);
  const char *after = mark + 1;
  if (*after == '.')
    after++;
  else if (before)
    before--;
  return arena_printf(a, "%.*s%s", (int)before, chain, after);
}

const char *path_here(lowering *lw, const char *last) {
  const char *chain = plain_path(lw->arena, lw->chain);
  if (!last) last = lw->statement;
  if (!last || !*last) return chain;
  return *chain ? arena_printf(lw->arena, "%s.%s", chain, last) : last;
}

const char *path_unique(lowering *lw, const char *path) {
  frame *f = lw->frame;
  while (f->kind != FRAME_FUNC && f->kind != FRAME_REPEAT) f = f->outer;
  intptr_t n = (intptr_t)map_get(&f->path_uses, path) + 1;
  map_set(&f->path_uses, path, (void *)n);
  if (f->again) path = arena_printf(lw->arena, "%s%s", path, f->again);
  return n == 1 ? path : arena_printf(lw->arena, "%s/%d", path, (int)n);
}

int64_t path_key(const char *path) { return (int64_t)(base_hash(path, strlen(path), 0) >> 1); }

static const ir_region *region_of(const ir_value *v) { return v->def ? v->def->parent : v->region; }

// The value as seen from frame `f`: itself, or the argument that brings it in.
ir_value *import_value(lowering *lw, frame *f, ir_value *v) {
  if (!v || region_of(v) == f->region) return v;
  if (!f->outer) IR_BUG("a value of another function is used");
  for (int i = 0; i < f->imports.n; i++)
    if (f->imports.at[i].outer == v) return f->imports.at[i].arg;
  if (f->kind == FRAME_SCORE) IR_BUG("a tensor reached a mask or bias without index");
  ir_value *outer = import_value(lw, f->outer, v);
  if (!outer) return NULL;
  // Two names of one outer value share an argument.
  for (int i = 0; i < f->imports.n; i++)
    if (f->imports.at[i].outer == outer) return f->imports.at[i].arg;
  ir_type t = f->kind == FRAME_MAP ? ir_scalar(outer->type.dtype) : outer->type;
  ir_value *made = ir_region_arg(f->region, t, outer->name);
  made->span = outer->span;
  vec_push(lw->arena, &f->imports, (import){outer, made});
  return made;
}

bool tensor_sizes_ok(const ir_type *t) {
  int64_t n = ir_dtype_bytes(t->dtype);
  for (int i = 0; i < t->rank; i++)
    if (__builtin_mul_overflow(n, t->dim[i]->size, &n)) return false;
  return true;
}

ir_op *emit(lowering *lw, span at, ir_opcode code, ir_value *const *in, int nin,
            const ir_attr *attr, int nattrs, ir_region *const *region, int nregions) {
  if (!lw->m) {
    sema_error(lw, at, DIAG_NOT_CONSTANT,
               "a setting is computed from constants only; this would be a tensor");
    return NULL;
  }
  if (lw->ops-- <= 0) spend_all(lw, at, "the model has more than 100000 ops when written out");
  if (lw->spent) return NULL;
  ir_value **seen = arena_new(lw->arena, ir_value *, nin);
  for (int i = 0; i < nin; i++)
    if (!in[i] || !(seen[i] = import_value(lw, lw->frame, in[i]))) return NULL;
  ir_builder b = {
      .m = lw->m, .at = lw->frame->region, .span = ir_span_of(at), .path = path_here(lw, NULL)};
  if (!*b.path) b.path = NULL;
  ir_op *op = ir_build_full(&b, code, seen, nin, attr, nattrs, region, nregions);
  if (!op) sema_error(lw, at, DIAG_WRONG_SHAPE, "%s", b.error);
  return op;
}

ir_value *emit1(lowering *lw, span at, ir_opcode code, ir_value *x) {
  ir_op *op = emit(lw, at, code, &x, 1, NULL, 0, NULL, 0);
  return op ? op->out[0] : NULL;
}

ir_value *emit2(lowering *lw, span at, ir_opcode code, ir_value *x, ir_value *y) {
  ir_value *in[] = {x, y};
  ir_op *op = emit(lw, at, code, in, 2, NULL, 0, NULL, 0);
  return op ? op->out[0] : NULL;
}

ir_value *emit_const(lowering *lw, span at, ir_dtype t, double v) {
  ir_attr attr[] = {ir_attr_f("value", v), ir_attr_s("dtype", ir_dtype_name(t))};
  ir_op *op = emit(lw, at, IR_const, NULL, 0, attr, 2, NULL, 0);
  return op ? op->out[0] : NULL;
}

ir_value *as_tensor(lowering *lw, span at, const val *v, const ir_value *like, const char *what) {
  switch (v->kind) {
    case VAL_ERROR: return NULL;
    case VAL_TENSOR: return v->tensor;
    case VAL_BOOL: return emit_const(lw, at, DT_bool, v->truth);
    case VAL_NUMBER: {
      if (v->unit > UNIT_COUNT) {
        sema_error(lw, at, DIAG_WRONG_UNIT, "%s has no unit; this is %s", what, unit_name(v->unit));
        return NULL;
      }
      bool whole = !v->real;
      ir_dtype t = whole && v->whole >= INT32_MIN && v->whole <= INT32_MAX ? DT_i32 : DT_f32;
      if (like && ir_dtype_float(like->type.dtype))
        t = like->type.dtype;
      else if (like && whole && like->type.dtype != DT_bool)
        t = like->type.dtype;
      else if (!like)
        t = DT_f32;
      ir_value *c = emit_const(lw, at, t, v->number);
      // Decoding changes the extents of dims, so a number made of one says something else there.
      if (c) c->def->mark = val_taint(v);
      return c;
    }
    case VAL_MULTI:
      sema_error(lw, at, DIAG_WRONG_COUNT, "%s is one value; this is %d", what, v->n);
      return NULL;
    default: break;
  }
  diag *e = sema_error(lw, at, DIAG_WRONG_KIND, "%s must be a tensor or a number; this is %s", what,
                       val_what(v));
  if (v->kind == VAL_FN || v->kind == VAL_OP || v->kind == VAL_BLOCK)
    diag_note(e, "to apply it, give it arguments: `%s(...)`", val_text(lw->arena, v));
  return NULL;
}

// ---------------------------------------------------------------------------------------------
// Expressions
// ---------------------------------------------------------------------------------------------

bool predefined_value(const char *name, val *out) {
  ir_dtype t;
  ir_opcode code;
  if (str_eq(name, "true") || str_eq(name, "false"))
    *out = val_bool(*name == 't');
  else if (str_eq(name, "none"))
    *out = val_none();
  else if (str_eq(name, "auto"))
    *out = (val){.kind = VAL_AUTO};
  else if (ir_dtype_parse(name, &t))
    *out = (val){.kind = VAL_DTYPE, .dtype = t};
  else if (str_eq(name, "zeros") || str_eq(name, "ones"))
    *out = (val){.kind = VAL_INIT, .init.kind = *name == 'z' ? INIT_ZEROS : INIT_ONES};
  else if (str_eq(name, "causal") || builtin_find(name) || elementwise_arity(name, &code))
    *out = (val){.kind = VAL_OP, .text = name};
  else
    return false;
  return true;
}

static val top_closure(lowering *lw, const fn *f, const block *b) {
  closure *c = arena_new(lw->arena, closure, 1);
  *c = (closure){.fn = f, .block = b};
  return (val){.kind = f ? VAL_FN : VAL_BLOCK, .closure = c};
}

static bool outside_tensor(const lowering *lw, const val *v) {
  return lw->frame && lw->frame->kind == FRAME_SCORE && v->kind == VAL_TENSOR &&
         region_of(v->tensor) != lw->frame->region;
}

// A name without the last step of a mask or bias, where a bare tensor must be given positions.
static val eval_name(lowering *lw, const expr *e) {
  const char *name = e->text;
  const binding *b = scope_find(lw->scope, INT_MAX, name);
  if (b) return b->value;
  bool found = false;
  val v;
  if (lw->settings) {
    v = settings_value(lw, e->at, name, &found);
    if (found) return v;
  }
  const fn *f = map_get(&lw->program->fns, name);
  const block *k = map_get(&lw->program->blocks, name);
  if (f || k) return top_closure(lw, f, k);
  if (predefined_value(name, &v)) return v;
  if (map_get(&lw->program->models, name)) {
    sema_error(lw, e->at, DIAG_PLANNED, "using the model `%s` inside another is planned, not built",
               name);
    return val_error();
  }
  if (planned_name(name)) {
    sema_error(lw, e->at, DIAG_PLANNED, "`%s` is planned, not built", name);
    return val_error();
  }
  sema_undeclared(lw, e->at, name, "the name");
  return val_error();
}

static val eval_list(lowering *lw, const expr *e) {
  val r = {.kind = VAL_LIST, .n = e->items.n};
  r.items = arena_new(lw->arena, val, r.n);
  for (int i = 0; i < r.n; i++) {
    r.items[i] = eval(lw, e->items.at[i]);
    if (r.items[i].kind == VAL_ERROR) return val_error();
    if (r.items[i].kind == VAL_MULTI) {
      sema_error(lw, e->items.at[i]->at, DIAG_WRONG_COUNT, "an item of a list is one value");
      return val_error();
    }
  }
  return r;
}

static val eval_unary(lowering *lw, const expr *e) {
  val x = eval(lw, e->unary.operand);
  if (x.kind != VAL_TENSOR) {
    if (x.kind == VAL_MULTI) {
      sema_error(lw, e->unary.operand->at, DIAG_WRONG_COUNT, "this is %d values", x.n);
      return val_error();
    }
    return const_unary(lw, e, x);
  }
  return val_tensor(emit1(lw, e->at, e->unary.op == UNARY_NEG ? IR_neg : IR_not, x.tensor));
}

static ir_opcode binary_code(binary_op op) {
  switch (op) {
    case BINARY_OR: return IR_or;
    case BINARY_AND: return IR_and;
    case BINARY_EQ: return IR_eq;
    case BINARY_NE: return IR_ne;
    case BINARY_LT: return IR_lt;
    case BINARY_LE: return IR_le;
    case BINARY_GT: return IR_gt;
    case BINARY_GE: return IR_ge;
    case BINARY_ADD: return IR_add;
    case BINARY_SUB: return IR_sub;
    case BINARY_MUL: return IR_mul;
    case BINARY_DIV: return IR_div;
    case BINARY_FLOORDIV: return IR_floordiv;
    case BINARY_MOD: return IR_mod;
    case BINARY_POW: return IR_pow;
  }
  return IR_add;
}

static val tensor_binary(lowering *lw, const expr *e, val x, val y) {
  binary_op op = e->binary.op;
  if ((op == BINARY_EQ || op == BINARY_NE) && (x.kind == VAL_NONE || y.kind == VAL_NONE))
    return val_bool(op == BINARY_NE);  // a tensor is not none
  if (op == BINARY_POW && y.kind == VAL_NUMBER && (y.number == 2 || y.number == 0.5))
    return val_tensor(emit1(lw, e->at, y.number == 2 ? IR_square : IR_sqrt, x.tensor));
  const char *what = arena_printf(lw->arena, "an operand of `%s`", binary_op_text(op));
  const ir_value *like = x.kind == VAL_TENSOR ? x.tensor : y.kind == VAL_TENSOR ? y.tensor : NULL;
  ir_value *a = as_tensor(lw, e->binary.left->at, &x, like, what);
  ir_value *b = as_tensor(lw, e->binary.right->at, &y, like, what);
  if (!a || !b) return val_error();
  return val_tensor(emit2(lw, e->at, binary_code(op), a, b));
}

static val eval_binary(lowering *lw, const expr *e) {
  binary_op op = e->binary.op;
  val x = eval(lw, e->binary.left);
  // What a constant left side decides, the right side is not asked.
  if (x.kind == VAL_BOOL && ((op == BINARY_AND && !x.truth) || (op == BINARY_OR && x.truth)))
    return x;
  val y = eval(lw, e->binary.right);
  if (x.kind == VAL_ERROR || y.kind == VAL_ERROR) return val_error();
  if (x.kind == VAL_MULTI || y.kind == VAL_MULTI) {
    bool left = x.kind == VAL_MULTI;
    sema_error(lw, left ? e->binary.left->at : e->binary.right->at, DIAG_WRONG_COUNT,
               "an operand of `%s` is one value; this is %d", binary_op_text(op), left ? x.n : y.n);
    return val_error();
  }
  if (x.kind == VAL_TENSOR || y.kind == VAL_TENSOR) {
    if (op == BINARY_AND || op == BINARY_OR) {  // true and t is t
      if (x.kind == VAL_BOOL) return y;
      if (y.kind == VAL_BOOL) {
        bool decided = op == BINARY_AND ? !y.truth : y.truth;
        return decided ? y : x;
      }
    }
    return tensor_binary(lw, e, x, y);
  }
  return const_binary(lw, e, op, x, y);
}

static val eval_if(lowering *lw, const expr *e) {
  val test = eval(lw, e->cond.test);
  bool yes;
  if (!want_bool(lw, e->cond.test->at, &test, "the condition of `if`", &yes)) return val_error();
  return eval(lw, yes ? e->cond.yes : e->cond.no);
}

static val index_list(lowering *lw, const expr *e, val base) {
  for (int k = 0; k < e->index.picks.n; k++) {
    const pick *p = &e->index.picks.at[k];
    if (base.kind != VAL_LIST || p->kind != PICK_AT) {
      sema_error(lw, p->at, DIAG_BAD_INDEX, "a list is indexed by one whole number for each level");
      return val_error();
    }
    val at = eval(lw, p->at_expr);
    int64_t i;
    if (!want_whole(lw, p->at, &at, "the index of a list", INT64_MIN, INT64_MAX, &i))
      return val_error();
    if (i < -base.n || i >= base.n) {
      sema_error(lw, p->at, DIAG_BAD_INDEX, "there is no item %lld in a list of %d", (long long)i,
                 base.n);
      return val_error();
    }
    base = base.items[i < 0 ? i + base.n : i];
  }
  return base;
}

static val index_score(lowering *lw, const expr *e, val base) {
  val picks[IR_MAX_RANK];
  if (e->index.picks.n > IR_MAX_RANK) {
    sema_error(lw, e->at, DIAG_BAD_INDEX, "a tensor has at most %d axes", IR_MAX_RANK);
    return val_error();
  }
  for (int k = 0; k < e->index.picks.n; k++) {
    const pick *p = &e->index.picks.at[k];
    if (p->kind != PICK_AT) {
      sema_error(lw, p->at, DIAG_BAD_MASK,
                 "in a fn a tensor is indexed by one position for each "
                 "axis");
      return val_error();
    }
    picks[k] = eval(lw, p->at_expr);
    if (picks[k].kind == VAL_ERROR) return val_error();
  }
  const char *name = e->index.base->kind == EXPR_NAME ? e->index.base->text : "the tensor";
  return score_capture(lw, e->at, base.tensor, name, picks, e->index.picks.n);
}

static val eval_index(lowering *lw, const expr *e) {
  bool named = e->index.base->kind == EXPR_NAME;
  val base = named ? eval_name(lw, e->index.base) : eval(lw, e->index.base);
  switch (base.kind) {
    case VAL_ERROR: return base;
    case VAL_LIST: return index_list(lw, e, base);
    case VAL_TENSOR:
      if (outside_tensor(lw, &base)) return index_score(lw, e, base);
      if (lw->frame->kind == FRAME_MAP || lw->frame->kind == FRAME_SCORE) {
        sema_error(lw, e->at, DIAG_NOT_ELEMENTWISE,
                   "a fn works on single elements: there is "
                   "nothing to index here");
        return val_error();
      }
      return lower_index(lw, e, base);
    default:
      sema_error(lw, e->index.base->at, DIAG_WRONG_KIND,
                 "`[...]` indexes tensors and lists; this "
                 "is %s",
                 val_what(&base));
      return val_error();
  }
}

val eval(lowering *lw, const expr *e) {
  if (!use_fuel(lw, e->at)) return val_error();
  if (lw->depth >= SEMA_DEPTH) {
    sema_error(lw, e->at, DIAG_TOO_DEEP, "calls and expressions nest too deep here");
    return val_error();
  }
  val r = val_error();
  lw->depth++;
  switch (e->kind) {
    case EXPR_NUMBER:
      r = (val){.kind = VAL_NUMBER, .unit = e->number.unit, .number = e->number.value};
      r.real = e->number.real || !e->number.integral;
      r.whole = e->number.whole;
      break;
    case EXPR_STRING: r = val_string(e->text); break;
    case EXPR_NAME:
      r = eval_name(lw, e);
      if (outside_tensor(lw, &r)) r = score_capture(lw, e->at, r.tensor, e->text, NULL, 0);
      break;
    case EXPR_CALL: r = eval_call(lw, e); break;
    case EXPR_INDEX: r = eval_index(lw, e); break;
    case EXPR_LIST: r = eval_list(lw, e); break;
    case EXPR_UNARY: r = eval_unary(lw, e); break;
    case EXPR_BINARY: r = eval_binary(lw, e); break;
    case EXPR_IF: r = eval_if(lw, e); break;
  }
  lw->depth--;
  return r;
}

// ---------------------------------------------------------------------------------------------
// Types
// ---------------------------------------------------------------------------------------------

bool eval_extent(lowering *lw, const expr *e, int64_t *size, const char **name, ir_index **index) {
  val v = eval(lw, e);
  *index = NULL;
  *name = e->kind == EXPR_NAME ? e->text : NULL;
  if (v.kind == VAL_ERROR) return false;
  if (v.kind == VAL_NUMBER && v.unit <= UNIT_COUNT && (!v.real || v.number >= 1)) {
    if (!want_whole(lw, e->at, &v, "an extent", INT64_MIN, INT64_MAX, size)) return false;
    if (*size < 1 || *size > SEMA_EXTENT) {
      sema_error(lw, e->at, DIAG_BAD_EXTENT, "an extent is from 1 to 2^40; this is %lld",
                 (long long)*size);
      return false;
    }
    if (v.dim) *index = lw->dims.at[v.dim - 1].index;
    return true;
  }
  return want_whole(lw, e->at, &v, "an extent", 1, SEMA_EXTENT, size);
}

static bool eval_type(lowering *lw, const type *t, ir_type *out) {
  *out = (ir_type){.dtype = DT_f32};
  bool ok = true;
  if (t->element.text && !ir_dtype_parse(t->element.text, &out->dtype)) {
    diag *e = sema_error(lw, t->element.at, DIAG_UNDECLARED_NAME, "`%s` is not an element type",
                         t->element.text);
    const char *names[DT_COUNT];
    for (int i = 0; i < DT_COUNT; i++) names[i] = ir_dtype_name((ir_dtype)i);
    diag_did_you_mean(e, t->element.text, names, DT_COUNT);
    diag_list(e, "types", names, DT_COUNT);
    ok = false;
  }
  if (t->extents.n > IR_MAX_RANK) {
    sema_error(lw, t->at, DIAG_BAD_EXTENT, "a tensor has at most %d axes", IR_MAX_RANK);
    return false;
  }
  for (int i = 0; i < t->extents.n; i++) {
    const extent *x = &t->extents.at[i];
    int64_t size;
    const char *name;
    ir_index *index;
    if (!x->size) {
      sema_error(lw, x->at, DIAG_BAD_EXTENT, "`..` stands only in the types of formals");
      ok = false;
    } else if (!eval_extent(lw, x->size, &size, &name, &index)) {
      ok = false;
    } else {
      out->dim[out->rank++] = index ? index : ir_index_new(lw->m, name, size);
    }
  }
  if (ok && !tensor_sizes_ok(out)) {
    sema_error(lw, t->at, DIAG_TOO_LARGE, "a tensor of these extents is too large");
    return false;
  }
  return ok;
}

// ---------------------------------------------------------------------------------------------
// Statements
// ---------------------------------------------------------------------------------------------

static void bind_name(lowering *lw, const ident *name, val value) {
  val predefined;
  if (!lw->quiet_notes && predefined_value(name->text, &predefined)) {
    diag *e = sema_error(lw, name->at, DIAG_SHADOWED_NAME,
                         "`%s` is predefined; from here on it means this value", name->text);
    e->places.n = 0;
  }
  scope_bind(lw, lw->scope, name->text, value, name->at);
}

static void lower_dim(lowering *lw, const stmt *s) {
  for (int i = 0; i < s->binds.n; i++) {
    const bind *b = &s->binds.at[i];
    for (int k = 0; k < lw->dims.n; k++)
      if (str_eq(lw->dims.at[k].name, b->name.text)) {
        val v = val_whole(lw->dims.at[k].extent);
        v.dim = k + 1;
        bind_name(lw, &b->name, v);
      }
  }
}

static void lower_param(lowering *lw, const stmt *s) {
  for (int i = 0; i < s->binds.n; i++) {
    const bind *b = &s->binds.at[i];
    const val *v = map_get(&lw->job->params, b->name.text);
    bind_name(lw, &b->name, v ? *v : val_error());
  }
}

static void lower_input(lowering *lw, const stmt *s) {
  const ident *name = &s->names.at[0];
  if (s->value) {
    val v = eval(lw, s->value);
    if (v.kind != VAL_NONE && v.kind != VAL_ERROR)
      sema_error(lw, s->value->at, DIAG_WRONG_VALUE, "the default of an input can only be `none`");
    bind_name(lw, name, val_none());
    return;
  }
  ir_type t;
  if (!s->type || !eval_type(lw, s->type, &t)) {
    bind_name(lw, name, val_error());
    return;
  }
  for (int i = 0; i < lw->input_names.n; i++)
    if (str_eq(lw->input_names.at[i], name->text)) {
      sema_error(lw, name->at, DIAG_DUPLICATE_NAME, "there are two inputs `%s`", name->text);
      return;
    }
  vec_push(lw->arena, &lw->input_names, name->text);
  if (!s->type->element.text) t.dtype = DT_f32;
  if (lw->ops-- <= 0) return;
  ir_op *op = ir_op_raw(lw->frame->region, IR_input, NULL, 0, &t, 1);
  op->span = ir_span_of(s->at);
  op->path = name->text;
  ir_set_attr(lw->m, op, ir_attr_s("name", name->text));
  op->out[0]->name = name->text;
  op->out[0]->span = ir_span_of(name->at);
  bind_name(lw, name, val_tensor(op->out[0]));
}

static void lower_weight(lowering *lw, const stmt *s) {
  const ident *name = &s->names.at[0];
  ir_type t = {0};
  bool ok = s->type && eval_type(lw, s->type, &t);
  weight_init init = {t.rank >= 2 ? INIT_NORMAL : INIT_ZEROS, 0.02};
  if (s->value) {
    val v = eval(lw, s->value);
    ok = want_init(lw, s->value->at, &v, &init) && ok;
  }
  if (ok && !ir_dtype_float(t.dtype)) {
    sema_error(lw, s->type->at, DIAG_WRONG_KIND, "a weight is made of real numbers, not %s",
               ir_dtype_name(t.dtype));
    ok = false;
  }
  ir_value *v = NULL;
  if (ok) {
    // `weight w as p`: p is complete. Otherwise the name is the last component.
    const ident *path = s->path.text ? &s->path : name;
    v = make_weight(lw, path->at, path->text, t, init);
    if (v && !v->name) v->name = name->text;
  }
  bind_name(lw, name, val_tensor(v));
}

static void name_value(const val *v, const char *name) {
  if (v->kind == VAL_TENSOR && !v->tensor->name && v->tensor->def) v->tensor->name = name;
}

// Binds names to the values of an expression; false after a mistake (all are bound in any case, so
// that one mistake is not reported at every use).
static bool assign(lowering *lw, const stmt *s) {
  lw->statement = s->names.at[0].text;
  val v = eval(lw, s->value);
  int n = s->names.n;
  if (n == 1 && v.kind != VAL_MULTI) {
    name_value(&v, s->names.at[0].text);
    bind_name(lw, &s->names.at[0], v);
    return v.kind != VAL_ERROR;
  }
  bool many = (v.kind == VAL_MULTI || v.kind == VAL_LIST) && v.n == n;
  if (!many && v.kind != VAL_ERROR) {
    int have = v.kind == VAL_MULTI || v.kind == VAL_LIST ? v.n : 1;
    diag *e = sema_error(lw, s->names.at[0].at, DIAG_WRONG_COUNT, "%d name%s for %d value%s", n,
                         n == 1 ? "" : "s", have, have == 1 ? "" : "s");
    diag_place_at(e, s->value->at, "this gives %d", have);
  }
  for (int i = 0; i < n; i++) {
    val one = many ? v.items[i] : val_error();
    name_value(&one, s->names.at[i].text);
    bind_name(lw, &s->names.at[i], one);
  }
  return many;
}

static void lower_output(lowering *lw, const stmt *s) {
  if (!assign(lw, s)) {
    lw->failed_output = true;
    return;
  }
  for (int i = 0; i < s->names.n; i++) {
    const ident *name = &s->names.at[i];
    const binding *b = scope_find(lw->scope, INT_MAX, name->text);
    if (map_get(&lw->outputs, name->text)) {
      sema_error(lw, name->at, DIAG_DUPLICATE_NAME, "there are two outputs `%s`", name->text);
      continue;
    }
    val v = b->value;
    ir_value *t = as_tensor(lw, s->value->at, &v, NULL, "an output");
    if (!t) continue;
    val *kept = arena_new(lw->arena, val, 1);
    *kept = val_tensor(t);
    map_set(&lw->outputs, name->text, kept);
  }
}

static void require_side(lowering *lw, diag *d, const expr *e) {
  if (e->kind == EXPR_NUMBER || e->kind == EXPR_STRING) return;
  val v = eval(lw, e);
  if (!val_is_constant(&v)) return;
  sb text = {.arena = lw->arena};
  expr_print(&text, e);
  diag_note(d, "`%s` is %s", sb_str(&text), val_text(lw->arena, &v));
}

static void lower_require(lowering *lw, const stmt *s) {
  val v = eval(lw, s->value);
  bool holds;
  if (!want_bool(lw, s->value->at, &v, "what `require` checks", &holds) || holds) return;
  const expr *e = s->value;
  diag *d;
  if (s->message.text) {
    d = sema_error(lw, e->at, DIAG_REQUIRE_FAILED, "%s", s->message.text);
  } else {
    sb text = {.arena = lw->arena};
    expr_print(&text, e);
    d = sema_error(lw, e->at, DIAG_REQUIRE_FAILED, "`%s` does not hold", sb_str(&text));
  }
  if (e->kind != EXPR_BINARY) return;
  require_side(lw, d, e->binary.left);
  require_side(lw, d, e->binary.right);
  // The names in it, where they were set: what has to change is one of them.
  for (int i = 0; i < lw->job->settings.n; i++) {
    const job_setting *j = &lw->job->settings.at[i];
    const char *dot = strrchr(j->name, '.'), *name = dot ? dot + 1 : j->name;
    sb text = {.arena = lw->arena};
    expr_print(&text, e);
    const char *found = strstr(sb_str(&text), name);
    size_t n = strlen(name);
    if (!found || !map_get(&lw->job->params, name)) continue;
    bool starts =
        found == sb_str(&text) || !(found[-1] == '_' || (found[-1] >= '0' && found[-1] <= '9') ||
                                    ((found[-1] | 32) >= 'a' && (found[-1] | 32) <= 'z'));
    char after = found[n];
    bool ends = !(after == '_' || (after >= '0' && after <= '9') ||
                  ((after | 32) >= 'a' && (after | 32) <= 'z'));
    if (starts && ends) diag_note(d, "%s = %s (%s)", name, j->value, j->origin);
  }
}

static void misplaced(lowering *lw, const stmt *s, const char *what, const char *where) {
  sema_error(lw, s->at, DIAG_MISPLACED_STATEMENT, "`%s` stands only %s", what, where);
}

static void bind_closure(lowering *lw, const ident *name, const fn *f, const block *b) {
  closure *c = arena_new(lw->arena, closure, 1);
  *c = (closure){.fn = f, .block = b, .env = lw->scope, .limit = lw->seq};
  bind_name(lw, name, (val){.kind = f ? VAL_FN : VAL_BLOCK, .closure = c});
}

void lower_statement(lowering *lw, const stmt *s, bool in_model) {
  if (!use_fuel(lw, s->at)) return;
  const char *outer = lw->statement;
  const char *model_only = "in the body of a model, outside of blocks and repeats";
  switch (s->kind) {
    case STMT_PARAM:
      if (in_model)
        lower_param(lw, s);
      else
        misplaced(lw, s, "param", model_only);
      break;
    case STMT_DIM:
      if (in_model)
        lower_dim(lw, s);
      else
        misplaced(lw, s, "dim", model_only);
      break;
    case STMT_INPUT:
      if (in_model)
        lower_input(lw, s);
      else
        misplaced(lw, s, "input", model_only);
      break;
    case STMT_OUTPUT:
      if (in_model)
        lower_output(lw, s);
      else
        misplaced(lw, s, "output", model_only);
      break;
    case STMT_WEIGHT: lower_weight(lw, s); break;
    case STMT_ASSIGN: assign(lw, s); break;
    case STMT_REPEAT: lower_repeat(lw, s); break;
    case STMT_REQUIRE:
      if (lw->mode != LOWER_INFER) lower_require(lw, s);
      break;
    case STMT_RETURN: misplaced(lw, s, "return", "at the end of a block"); break;
    case STMT_BLOCK: bind_closure(lw, &s->block->name, NULL, s->block); break;
    case STMT_FN: bind_closure(lw, &s->fn->name, s->fn, NULL); break;
  }
  lw->statement = outer;
}

void lower_statements(lowering *lw, const stmt_list *body, bool in_model) {
  for (int i = 0; i < body->n && !lw->spent; i++) lower_statement(lw, body->at[i], in_model);
}
