// The ops of the language, one function each: arguments checked, weights made, ops emitted.
#include <math.h>
#include <string.h>

#include "frontend/sema_impl.h"

#define BUILTIN(name, formals, owns, doc) static builtin_fn op_##name;
#include "frontend/builtins.def"

static val op_attention(lowering *lw, const expr *e, bound_args *a) {
  return lower_attention(lw, e, a);
}

const builtin *builtin_find(const char *name) {
  static const builtin rows[] = {
#define BUILTIN(name, formals, owns, doc) {#name, formals, owns, op_##name},
#include "frontend/builtins.def"
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (strcmp(rows[i].name, name) == 0) return &rows[i];
  return NULL;
}

void builtin_names(arena *a, name_list *out) {
#define BUILTIN(name, formals, owns, doc) vec_push(a, out, #name);
#include "frontend/builtins.def"
  for (int i = 0; i < IR_OPCODE_COUNT; i++)
    if (ir_info((ir_opcode)i)->cls != IR_CLASS_OP) vec_push(a, out, ir_info((ir_opcode)i)->name);
  static const char *const words[] = {"true",   "false",   "none",     "auto",  "causal",
                                      "normal", "uniform", "constant", "zeros", "ones"};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) vec_push(a, out, words[i]);
}

int elementwise_arity(const char *name, ir_opcode *code) {
  if (!ir_opcode_parse(name, code)) return 0;
  const ir_op_info *info = ir_info(*code);
  return info->cls == IR_CLASS_OP ? 0 : info->min_in;
}

bool planned_name(const char *name) {
  static const char *const names[] = {"route", "dispatch",  "combine",       "lora",  "nf4",
                                      "topk",  "tiled_csl", "heavy_hitters", "sort",  "cumsum",
                                      "conv",  "scatter",   "dequantize",    "ragged"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(names[i], name) == 0) return true;
  return false;
}

// ---------------------------------------------------------------------------------------------
// Arguments
// ---------------------------------------------------------------------------------------------

static ir_value *want_tensor(lowering *lw, const bound_args *a, int k, const char *what) {
  const val *v = &a->v[k];
  if (v->kind == VAL_TENSOR) return v->tensor;
  if (v->kind != VAL_ERROR) {
    diag *e =
        sema_error(lw, a->at[k], DIAG_WRONG_KIND, "%s is a tensor; this is %s", what, val_what(v));
    if (v->kind == VAL_FN || v->kind == VAL_OP || v->kind == VAL_BLOCK)
      diag_note(e, "to apply it, give it arguments: `%s(...)`", val_text(lw->arena, v));
  }
  return NULL;
}

static bool axis_of(lowering *lw, span at, const val *v, int rank, int *out) {
  int64_t axis;
  if (!want_whole(lw, at, v, "an axis", INT64_MIN, INT64_MAX, &axis)) return false;
  if (axis < -rank || axis >= rank) {
    diag *e = sema_error(lw, at, DIAG_BAD_INDEX, "there is no axis %lld in %d axes",
                         (long long)axis, rank);
    diag_note(e, "axes count from 0, or from -1 backwards");
    return false;
  }
  *out = (int)(axis < 0 ? axis + rank : axis);
  return true;
}

// Argument `k` as one axis; `otherwise` (may be -1 for the last) when it is not given.
static bool want_axis(lowering *lw, const bound_args *a, int k, const ir_value *x, int *out) {
  int rank = x->type.rank;
  if (a->given[k]) return axis_of(lw, a->at[k], &a->v[k], rank, out);
  *out = rank - 1;
  if (rank) return true;
  sema_error(lw, a->at[0], DIAG_WRONG_SHAPE, "this is a single number and has no axis");
  return false;
}

// Argument `k` as axes (a number or a list); all when it is not given.
static bool want_axes(lowering *lw, const bound_args *a, int k, const ir_value *x, int64_t *axes,
                      int *n) {
  *n = 0;
  int rank = x->type.rank;
  if (!a->given[k] || a->v[k].kind == VAL_NONE) {
    for (int i = 0; i < rank; i++) axes[(*n)++] = i;
    return true;
  }
  const val *v = &a->v[k];
  const val *items = v->kind == VAL_LIST ? v->items : v;
  int count = v->kind == VAL_LIST ? v->n : 1;
  bool seen[IR_MAX_RANK] = {0};
  for (int i = 0; i < count; i++) {
    int axis;
    if (!axis_of(lw, a->at[k], &items[i], rank, &axis)) return false;
    if (seen[axis]) {
      sema_error(lw, a->at[k], DIAG_BAD_INDEX, "axis %d is given twice", axis);
      return false;
    }
    seen[axis] = true;
  }
  for (int i = 0; i < rank; i++)
    if (seen[i]) axes[(*n)++] = i;
  return true;
}

static bool flag(lowering *lw, const bound_args *a, int k, const char *what, bool otherwise,
                 bool *out) {
  *out = otherwise;
  return !a->given[k] || want_bool(lw, a->at[k], &a->v[k], what, out);
}

static bool positive(lowering *lw, const bound_args *a, int k, const char *what, double otherwise,
                     double *out) {
  *out = otherwise;
  if (!a->given[k]) return true;
  if (!want_number(lw, a->at[k], &a->v[k], what, out)) return false;
  if (*out > 0 && isfinite(*out)) return true;
  sema_error(lw, a->at[k], DIAG_WRONG_VALUE, "%s must be more than 0", what);
  return false;
}

static ir_value *first(const ir_op *op) { return op ? op->out[0] : NULL; }

static ir_index *last_dim(const ir_value *x) { return x->type.dim[x->type.rank - 1]; }

static bool needs_axis(lowering *lw, span at, const ir_value *x, const char *op) {
  if (x->type.rank) return true;
  sema_error(lw, at, DIAG_WRONG_SHAPE, "`%s` works along the last axis; this is a single number",
             op);
  return false;
}

static const char *name_of_extent(const expr *e) {
  return e && e->kind == EXPR_NAME ? e->text : NULL;
}

// ---------------------------------------------------------------------------------------------
// Products
// ---------------------------------------------------------------------------------------------

static ir_value *emit_einsum(lowering *lw, span at, const char *spec, ir_value *const *in, int n) {
  ir_attr attr[2] = {ir_attr_s("spec", spec)};
  int nattrs = 1;
  bool real = true;
  for (int i = 0; i < n; i++) real &= in[i] && ir_dtype_float(in[i]->type.dtype);
  if (n == 2 && real && lw->job->precision != DT_f32)
    attr[nattrs++] = ir_attr_s("round", ir_dtype_name(lw->job->precision));
  return first(emit(lw, at, IR_einsum, in, n, attr, nattrs, NULL, 0));
}

static val op_linear(lowering *lw, const expr *e, bound_args *a) {
  ir_value *x = want_tensor(lw, a, 0, "what `linear` multiplies");
  int64_t n;
  bool bias;
  weight_init init = {INIT_NORMAL, 0.02};
  if (!x || !needs_axis(lw, a->at[0], x, "linear") ||
      !want_whole(lw, a->at[1], &a->v[1], "the width of `linear`", 1, SEMA_EXTENT, &n) ||
      !flag(lw, a, 2, "bias", false, &bias) ||
      (a->given[3] && !want_init(lw, a->at[3], &a->v[3], &init)))
    return val_error();
  path_save save;
  if (!path_enter(lw, e, &save)) return val_error();
  ir_index *out = ir_index_new(lw->m, name_of_extent(a->e[1]), n);
  ir_index *in = last_dim(x);
  ir_type w = {
      .dtype = DT_f32, .rank = 2, .dim = {out, ir_index_new(lw->m, ir_root(in)->name, in->size)}};
  ir_value *matrix = make_weight(lw, e->call.path.at, "weight", w, init), *b = NULL;
  if (bias && matrix) {
    ir_type t = {
        .dtype = w.dtype, .rank = 1, .dim = {ir_index_new(lw->m, name_of_extent(a->e[1]), n)}};
    b = make_weight(lw, e->call.path.at, "bias", t, (weight_init){INIT_ZEROS, 0});
  }
  const char *statement = lw->statement;
  lw->statement = NULL;  // the path says it all
  ir_value *y = NULL;
  if (matrix && (b || !bias)) {
    sb left = {.arena = lw->arena};
    for (int i = 0; i + 1 < x->type.rank; i++) sb_printf(&left, "%c ", 'a' + i);
    const char *rows = sb_str(&left);
    const char *spec = arena_printf(lw->arena, "%sk, n k -> %sn", rows, rows);
    y = emit_einsum(lw, e->at, spec, (ir_value *[]){x, matrix}, 2);
    if (y && b) y = emit2(lw, e->at, IR_add, y, b);
  }
  lw->statement = statement;
  path_leave(lw, e, &save);
  return val_tensor(y);
}

static ir_value *drop_axis(lowering *lw, span at, ir_value *x, int axis) {
  ir_attr attr = ir_attr_i("dim", axis);
  return first(emit(lw, at, IR_squeeze, &x, 1, &attr, 1, NULL, 0));
}

static val product(lowering *lw, span at, ir_value *x, ir_value *y) {
  int rx = x->type.rank, ry = y->type.rank;
  if (rx < 1 || ry < 2) {
    diag *d = sema_error(lw, at, DIAG_WRONG_SHAPE, "`matmul` of %s and %s",
                         ir_type_text(lw->arena, &x->type), ir_type_text(lw->arena, &y->type));
    diag_note(d, "the right side needs two axes or more, the left side one");
    return val_error();
  }
  // x: axes m k.  y: axes k n. The axes before are aligned from the last; one of extent 1 repeats.
  int lx = rx < 2 ? 0 : rx - 2, ly = ry - 2, lead = lx > ly ? lx : ly;
  sb l = {.arena = lw->arena}, r = {.arena = lw->arena}, o = {.arena = lw->arena};
  for (int i = 0; i < lead; i++) {
    int ix = i - (lead - lx), iy = i - (lead - ly);
    int64_t sx = ix < 0 ? 1 : x->type.dim[ix]->size, sy = iy < 0 ? 1 : y->type.dim[iy]->size;
    bool repeat_x = ix >= 0 && iy >= 0 && sx == 1 && sy != 1;
    bool repeat_y = ix >= 0 && iy >= 0 && sy == 1 && sx != 1;
    if (repeat_x) x = drop_axis(lw, at, x, ix), rx--, lx--;
    if (repeat_y) y = drop_axis(lw, at, y, iy), ry--, ly--;
    if (!x || !y) return val_error();
    if (ix >= 0 && !repeat_x) sb_printf(&l, "%c ", 'a' + i);
    if (iy >= 0 && !repeat_y) sb_printf(&r, "%c ", 'a' + i);
    sb_printf(&o, "%c ", 'a' + i);
  }
  if (rx > 1) sb_printf(&l, "%c ", 'a' + lead);
  if (rx > 1) sb_printf(&o, "%c ", 'a' + lead);
  const char *spec =
      arena_printf(lw->arena, "%sk, %sk n -> %sn", sb_str(&l), sb_str(&r), sb_str(&o));
  return val_tensor(emit_einsum(lw, at, spec, (ir_value *[]){x, y}, 2));
}

static val op_matmul(lowering *lw, const expr *e, bound_args *a) {
  ir_value *x = want_tensor(lw, a, 0, "the left side of `matmul`");
  ir_value *y = want_tensor(lw, a, 1, "the right side of `matmul`");
  return x && y ? product(lw, e->at, x, y) : val_error();
}

static val op_einsum(lowering *lw, const expr *e, bound_args *a) {
  int n = a->v[0].n;
  const val *items = a->v[0].items;
  if (n < 2 || n > 3 || items[0].kind != VAL_STRING) {
    diag *d =
        sema_error(lw, e->at, DIAG_WRONG_COUNT, "`einsum` takes a rule and one or two tensors");
    diag_note(d, "such as einsum(\"b s k, k n -> b s n\", x, w)");
    return val_error();
  }
  ir_value *in[2] = {NULL, NULL};
  for (int i = 1; i < n; i++) {
    if (items[i].kind != VAL_TENSOR) {
      sema_error(lw, e->call.args.at[i].at, DIAG_WRONG_KIND,
                 "`einsum` multiplies tensors; this is "
                 "%s",
                 val_what(&items[i]));
      return val_error();
    }
    in[i - 1] = items[i].tensor;
  }
  return val_tensor(emit_einsum(lw, e->at, items[0].text, in, n - 1));
}

// ---------------------------------------------------------------------------------------------
// Norms
// ---------------------------------------------------------------------------------------------

static ir_value *norm_weight(lowering *lw, const expr *e, const char *name, const ir_index *like,
                             int64_t n, ir_init_kind init) {
  ir_type t = {.dtype = DT_f32,
               .rank = 1,
               .dim = {ir_index_new(lw->m, like ? ir_root((ir_index *)like)->name : NULL, n)}};
  return make_weight(lw, e->call.path.at, name, t, (weight_init){init, init == INIT_ONES});
}

static val op_layernorm(lowering *lw, const expr *e, bound_args *a) {
  ir_value *x = want_tensor(lw, a, 0, "what `layernorm` normalises");
  double eps;
  bool bias;
  if (!x || !needs_axis(lw, a->at[0], x, "layernorm") || !positive(lw, a, 1, "eps", 1e-5, &eps) ||
      !flag(lw, a, 2, "bias", true, &bias))
    return val_error();
  path_save save;
  if (!path_enter(lw, e, &save)) return val_error();
  const char *statement = lw->statement;
  lw->statement = NULL;
  ir_index *last = last_dim(x);
  ir_value *w = norm_weight(lw, e, "weight", last, last->size, INIT_ONES), *b = NULL;
  if (w && bias) {
    b = norm_weight(lw, e, "bias", last, last->size, INIT_ZEROS);
  } else if (w) {
    ir_type t = {.dtype = w->type.dtype, .rank = 1, .dim = {last}};
    ir_op *zeros = ir_op_raw(lw->frame->region, IR_zeros, NULL, 0, &t, 1);
    zeros->span = ir_span_of(e->at);
    zeros->path = path_here(lw, NULL);
    b = zeros->out[0];
  }
  ir_attr attr = ir_attr_f("eps", eps);
  ir_op *op =
      w && b ? emit(lw, e->at, IR_layernorm, (ir_value *[]){x, w, b}, 3, &attr, 1, NULL, 0) : NULL;
  lw->statement = statement;
  path_leave(lw, e, &save);
  return val_tensor(first(op));
}

static val op_rmsnorm(lowering *lw, const expr *e, bound_args *a) {
  ir_value *x = want_tensor(lw, a, 0, "what `rmsnorm` normalises");
  double eps;
  int64_t heads = 1;
  if (!x || !needs_axis(lw, a->at[0], x, "rmsnorm") || !positive(lw, a, 1, "eps", 1e-6, &eps) ||
      (a->given[2] && !want_whole(lw, a->at[2], &a->v[2], "heads", 1, SEMA_EXTENT, &heads)))
    return val_error();
  ir_index *last = last_dim(x);
  if (last->size % heads) {
    sema_error(lw, a->at[2], DIAG_WRONG_SHAPE, "an axis of %lld cannot be seen as %lld heads",
               (long long)last->size, (long long)heads);
    return val_error();
  }
  path_save save;
  if (!path_enter(lw, e, &save)) return val_error();
  const char *statement = lw->statement;
  lw->statement = NULL;
  ir_value *w =
      norm_weight(lw, e, "weight", heads == 1 ? last : NULL, last->size / heads, INIT_ONES);
  ir_attr attr[] = {ir_attr_f("eps", eps), ir_attr_i("heads", heads)};
  ir_op *op = w ? emit(lw, e->at, IR_rmsnorm, (ir_value *[]){x, w}, 2, attr, 2, NULL, 0) : NULL;
  lw->statement = statement;
  path_leave(lw, e, &save);
  return val_tensor(first(op));
}

// ---------------------------------------------------------------------------------------------
// Movement
// ---------------------------------------------------------------------------------------------

static ir_value *emit_transpose(lowering *lw, span at, ir_value *x, const int64_t *perm) {
  ir_attr attr = ir_attr_v("perm", perm, x->type.rank);
  return first(emit(lw, at, IR_transpose, &x, 1, &attr, 1, NULL, 0));
}

// Swaps axis and the last one, for ops that work along the last.
static ir_value *swap_last(lowering *lw, span at, ir_value *x, int axis) {
  int64_t perm[IR_MAX_RANK];
  int rank = x->type.rank;
  if (axis == rank - 1) return x;
  for (int i = 0; i < rank; i++) perm[i] = i;
  perm[axis] = rank - 1;
  perm[rank - 1] = axis;
  return emit_transpose(lw, at, x, perm);
}

static val op_transpose(lowering *lw, const expr *e, bound_args *a) {
  ir_value *x = want_tensor(lw, a, 0, "what `transpose` turns");
  if (!x) return val_error();
  int rank = x->type.rank;
  int64_t perm[IR_MAX_RANK];
  bool seen[IR_MAX_RANK] = {0};
  if (!a->given[1]) {
    if (rank < 2) {
      sema_error(lw, e->at, DIAG_WRONG_SHAPE, "`transpose` swaps the last two axes; this has %d",
                 rank);
      return val_error();
    }
    for (int i = 0; i < rank; i++) perm[i] = i;
    perm[rank - 1] = rank - 2;
    perm[rank - 2] = rank - 1;
    return val_tensor(emit_transpose(lw, e->at, x, perm));
  }
  const val *v = &a->v[1];
  bool ok = v->kind == VAL_LIST && v->n == rank;
  for (int i = 0; ok && i < rank; i++) {
    int axis;
    if (!axis_of(lw, a->at[1], &v->items[i], rank, &axis)) return val_error();
    ok = !seen[axis];
    seen[axis] = true;
    perm[i] = axis;
  }
  if (!ok) {
    sema_error(lw, a->at[1], DIAG_WRONG_VALUE, "the new order is a list of all %d axes", rank);
    return val_error();
  }
  return val_tensor(emit_transpose(lw, e->at, x, perm));
}

static val op_gather(lowering *lw, const expr *e, bound_args *a) {
  ir_value *table = want_tensor(lw, a, 0, "the table of `gather`");
  ir_value *ids = want_tensor(lw, a, 1, "the second argument of `gather`");
  if (!table || !ids) return val_error();
  return val_tensor(emit2(lw, e->at, IR_gather, table, ids));
}

static val op_split(lowering *lw, const expr *e, bound_args *a) {
  ir_value *x = want_tensor(lw, a, 0, "what `split` divides");
  int64_t parts;
  int axis;
  if (!x || !want_whole(lw, a->at[1], &a->v[1], "the number of parts", 1, 65536, &parts) ||
      !want_axis(lw, a, 2, x, &axis))
    return val_error();
  ir_attr attr[] = {ir_attr_i("dim", axis), ir_attr_i("parts", parts)};
  ir_op *op = emit(lw, e->at, IR_split, &x, 1, attr, 2, NULL, 0);
  if (!op) return val_error();
  if (op->nout == 1) return val_tensor(op->out[0]);
  val r = {.kind = VAL_MULTI, .n = op->nout, .items = arena_new(lw->arena, val, op->nout)};
  for (int i = 0; i < op->nout; i++) r.items[i] = val_tensor(op->out[i]);
  return r;
}

static val op_concat(lowering *lw, const expr *e, bound_args *a) {
  // `concat(a, b)` and `concat([a, b])` are both natural.
  const val *v = &a->v[0];
  if (v->n == 1 && v->items[0].kind == VAL_LIST) v = &v->items[0];
  ir_value **in = arena_new(lw->arena, ir_value *, v->n);
  for (int i = 0; i < v->n; i++) {
    in[i] = v->items[i].tensor;
    if (v->items[i].kind != VAL_TENSOR) {
      sema_error(lw, e->at, DIAG_WRONG_KIND, "`concat` joins tensors; item %d is %s", i + 1,
                 val_what(&v->items[i]));
      return val_error();
    }
  }
  if (!v->n) {
    sema_error(lw, e->at, DIAG_WRONG_COUNT, "`concat` needs at least one tensor");
    return val_error();
  }
  int axis;
  if (!want_axis(lw, a, 1, in[0], &axis)) return val_error();
  ir_attr attr = ir_attr_i("dim", axis);
  return val_tensor(first(emit(lw, e->at, IR_concat, in, v->n, &attr, 1, NULL, 0)));
}

static val op_cast(lowering *lw, const expr *e, bound_args *a) {
  const val *x = &a->v[0], *t = &a->v[1];
  if (t->kind != VAL_DTYPE) {
    diag *d =
        sema_error(lw, a->at[1], DIAG_WRONG_KIND,
                   "the second argument of `cast` is an element type; this is %s", val_what(t));
    diag_note(d, "types: f32 bf16 f16 f8e4m3 f8e5m2 i32 i16 i8 u16 bool");
    return val_error();
  }
  if (x->kind == VAL_NUMBER && x->unit <= UNIT_COUNT && t->dtype != DT_bool) {
    val r = *x;
    if (ir_dtype_float(t->dtype)) r.real = true;
    if (!ir_dtype_float(t->dtype) && r.real && fabs(r.number) < 0x1p53) {
      r = val_whole((int64_t)r.number);
      r.taint = val_taint(x);
    }
    return r;
  }
  ir_value *v = want_tensor(lw, a, 0, "what `cast` changes");
  if (!v || v->type.dtype == t->dtype) return v ? val_tensor(v) : val_error();
  ir_attr attr = ir_attr_s("dtype", ir_dtype_name(t->dtype));
  return val_tensor(first(emit(lw, e->at, IR_cast, &v, 1, &attr, 1, NULL, 0)));
}

static val op_size(lowering *lw, const expr *e, bound_args *a) {
  (void)e;
  ir_value *x = want_tensor(lw, a, 0, "what `size` measures");
  int axis;
  if (!x || !axis_of(lw, a->at[1], &a->v[1], x->type.rank, &axis)) return val_error();
  ir_index *d = x->type.dim[axis];
  val r = val_whole(d->size);
  for (int i = 0; i < lw->dims.n; i++)
    if (ir_root(lw->dims.at[i].index) == ir_root(d)) r.dim = i + 1;
  return r;
}

// ---- picks --------------------------------------------------------------------------------------

static ir_value *emit_slice(lowering *lw, span at, ir_value *x, int axis, int64_t start,
                            int64_t size, int taint) {
  ir_attr attr[] = {ir_attr_i("dim", axis), ir_attr_i("start", start), ir_attr_i("size", size)};
  ir_op *op = emit(lw, at, IR_slice, &x, 1, attr, 3, NULL, 0);
  if (op) op->mark = taint;
  return first(op);
}

// One end of a range; negative counts from the end of the axis.
static bool range_end(lowering *lw, const expr *e, int64_t size_of, int64_t otherwise, val *v,
                      int64_t *out) {
  *out = otherwise;
  *v = val_whole(otherwise);
  if (!e) return true;
  *v = eval(lw, e);
  if (!want_whole(lw, e->at, v, "a position", INT64_MIN / 2, INT64_MAX / 2, out)) return false;
  if (*out < 0) *out += size_of;
  if (*out >= 0 && *out <= size_of) return true;
  diag *d = sema_error(lw, e->at, DIAG_BAD_INDEX, "position %s lies outside of an axis of %lld",
                       val_text(lw->arena, v), (long long)size_of);
  if (v->dim) diag_note(d, "`%s` is %lld here", lw->dims.at[v->dim - 1].name, (long long)v->whole);
  return false;
}

static ir_value *pick_range(lowering *lw, const pick *p, ir_value *x, int axis) {
  ir_index *d = x->type.dim[axis];
  val from, to;
  int64_t lo, hi;
  if (!range_end(lw, p->from, d->size, 0, &from, &lo) ||
      !range_end(lw, p->to, d->size, d->size, &to, &hi))
    return NULL;
  if (lo >= hi) {
    sema_error(lw, p->at, DIAG_BAD_INDEX, "the range %lld:%lld is empty", (long long)lo,
               (long long)hi);
    return NULL;
  }
  if (!to.dim || lo != 0) {
    int taint = val_taint(&to) | val_taint(&from);
    if (lo == 0 && hi == d->size) return x;
    return emit_slice(lw, p->at, x, axis, lo, hi - lo, taint);
  }
  // x[0:seq]: the positions of that dim. Decoding shifts them.
  ir_index *dim = lw->dims.at[to.dim - 1].index;
  if (ir_root(d) == ir_root(dim) && lw->mode != LOWER_INFER) return x;
  if (ir_root(d) == ir_root(dim) && x->def && x->def->code != IR_state) return x;
  ir_value *y = emit_slice(lw, p->at, x, axis, 0, hi, 0);
  if (y && !ir_index_unify(lw->m, y->type.dim[axis], dim)) {
    sema_error(lw, p->at, DIAG_WRONG_SHAPE, "this axis is divided in another way than `%s`",
               lw->dims.at[to.dim - 1].name);
    return NULL;
  }
  if (y) y->def->mark = -to.dim;
  return y;
}

static ir_value *pick_at(lowering *lw, const pick *p, const val *v, ir_value *x, int axis) {
  int64_t size_of = x->type.dim[axis]->size, i;
  if (v->kind == VAL_TENSOR) {
    diag *d = sema_error(lw, p->at, DIAG_NOT_CONSTANT,
                         "a pick is known when compiling; this is a "
                         "tensor");
    diag_note(d, "`gather(x, ids)` takes rows by data");
    return NULL;
  }
  if (!want_whole(lw, p->at, v, "a position", INT64_MIN, INT64_MAX, &i)) return NULL;
  if (i < -size_of || i >= size_of) {
    sema_error(lw, p->at, DIAG_BAD_INDEX, "position %lld lies outside of an axis of %lld",
               (long long)i, (long long)size_of);
    return NULL;
  }
  ir_value *y = emit_slice(lw, p->at, x, axis, i < 0 ? i + size_of : i, 1, val_taint(v));
  ir_attr attr = ir_attr_i("dim", axis);
  return y ? first(emit(lw, p->at, IR_squeeze, &y, 1, &attr, 1, NULL, 0)) : NULL;
}

val lower_index(lowering *lw, const expr *e, val base) {
  const pick_list *picks = &e->index.picks;
  ir_value *x = base.tensor;
  val *at = arena_new(lw->arena, val, picks->n);
  int used = 0, rests = 0;
  for (int i = 0; i < picks->n; i++) {
    const pick *p = &picks->at[i];
    if (p->kind == PICK_REST) {
      rests++;
      continue;
    }
    if (p->kind == PICK_AT) {
      at[i] = eval(lw, p->at_expr);
      if (at[i].kind == VAL_ERROR) return at[i];
      if (at[i].kind == VAL_NONE) continue;
    }
    used++;
  }
  if (rests > 1 || used > x->type.rank) {
    diag *d = sema_error(
        lw, e->at, DIAG_BAD_INDEX,
        rests > 1 ? "`..` stands once among the picks" : "there are more picks than axes");
    diag_note(d, "the tensor is %s", ir_type_text(lw->arena, &x->type));
    return val_error();
  }
  int axis = 0, skip = x->type.rank - used;
  for (int i = 0; i < picks->n && x; i++) {
    const pick *p = &picks->at[i];
    if (p->kind == PICK_REST) {
      axis += skip;
    } else if (p->kind == PICK_RANGE) {
      x = pick_range(lw, p, x, axis++);
    } else if (at[i].kind == VAL_NONE) {
      ir_attr attr = ir_attr_i("dim", axis++);
      x = first(emit(lw, p->at, IR_expand, &x, 1, &attr, 1, NULL, 0));
    } else {
      x = pick_at(lw, p, &at[i], x, axis);
    }
  }
  return val_tensor(x);
}

// ---------------------------------------------------------------------------------------------
// Reductions
// ---------------------------------------------------------------------------------------------

static ir_value *emit_reduce(lowering *lw, span at, ir_opcode code, ir_value *x,
                             const int64_t *axes, int n, bool keep) {
  if (!n) return x;
  ir_attr attr[] = {ir_attr_v("axes", axes, n), ir_attr_i("keep", 1)};
  return first(emit(lw, at, code, &x, 1, attr, keep ? 2 : 1, NULL, 0));
}

// What a mean divides by: the elements of the axes. Marked when a dim is among them.
static ir_value *element_count(lowering *lw, span at, const ir_value *x, const int64_t *axes,
                               int n) {
  double count = 1;
  int taint = 0;
  for (int i = 0; i < n; i++) {
    ir_index *d = x->type.dim[axes[i]];
    count *= (double)d->size;
    for (int k = 0; k < lw->dims.n; k++)
      if (ir_root(lw->dims.at[k].index) == ir_root(d)) taint |= dim_bit(k);
  }
  ir_value *c = emit_const(lw, at, DT_f32, count);
  if (c) c->def->mark = taint;
  return c;
}

static val reduce(lowering *lw, const expr *e, bound_args *a, ir_opcode code, int axis_at,
                  bool mean) {
  ir_value *x = want_tensor(lw, a, 0, "what is reduced");
  int64_t axes[IR_MAX_RANK];
  int n;
  bool keep;
  if (!x || !want_axes(lw, a, axis_at, x, axes, &n) ||
      !flag(lw, a, axis_at + 1, "keep", false, &keep))
    return val_error();
  if (mean && !ir_dtype_float(x->type.dtype)) {
    ir_attr attr = ir_attr_s("dtype", "f32");
    x = first(emit(lw, e->at, IR_cast, &x, 1, &attr, 1, NULL, 0));
    if (!x) return val_error();
  }
  ir_value *y = emit_reduce(lw, e->at, code, x, axes, n, keep);
  if (mean && y) {
    ir_value *count = element_count(lw, e->at, x, axes, n);
    y = count ? emit2(lw, e->at, IR_div, y, count) : NULL;
  }
  return val_tensor(y);
}

static val op_sum(lowering *lw, const expr *e, bound_args *a) {
  return reduce(lw, e, a, IR_sum, 1, false);
}

static val op_mean(lowering *lw, const expr *e, bound_args *a) {
  return reduce(lw, e, a, IR_sum, 1, true);
}

// `max` and `min`: of two values, or over axes of one.
static val extreme(lowering *lw, const expr *e, bound_args *a, const char *name) {
  if (a->given[1]) {
    if (!a->given[2] && !a->given[3]) return call_elementwise(lw, e->at, name, a->v, 2);
    sema_error(lw, e->at, DIAG_TOO_MANY_ARGUMENTS,
               "`%s` is of two values, or over axes of one, not both", name);
    return val_error();
  }
  if (lw->frame && lw->frame->kind != FRAME_FUNC && lw->frame->kind != FRAME_REPEAT) {
    sema_error(lw, e->at, DIAG_MISSING_ARGUMENT, "in a fn `%s` takes two values", name);
    return val_error();
  }
  bool min = str_eq(name, "min");
  if (min && a->v[0].kind == VAL_TENSOR)  // min(x) is -max(-x)
    a->v[0] = val_tensor(emit1(lw, e->at, IR_neg, a->v[0].tensor));
  val r = reduce(lw, e, a, IR_reduce_max, 2, false);
  return min && r.kind == VAL_TENSOR ? val_tensor(emit1(lw, e->at, IR_neg, r.tensor)) : r;
}

static val op_max(lowering *lw, const expr *e, bound_args *a) { return extreme(lw, e, a, "max"); }

static val op_min(lowering *lw, const expr *e, bound_args *a) { return extreme(lw, e, a, "min"); }

static val along(lowering *lw, const expr *e, bound_args *a, ir_opcode code) {
  ir_value *x = want_tensor(lw, a, 0, "the argument");
  int axis;
  if (!x || !want_axis(lw, a, 1, x, &axis)) return val_error();
  x = swap_last(lw, e->at, x, axis);
  ir_value *y = x ? emit1(lw, e->at, code, x) : NULL;
  return val_tensor(y ? swap_last(lw, e->at, y, axis) : NULL);
}

static val op_softmax(lowering *lw, const expr *e, bound_args *a) {
  return along(lw, e, a, IR_softmax);
}

static ir_value *lse_along(lowering *lw, span at, ir_value *x, int axis, bool keep) {
  int rank = x->type.rank;
  int64_t perm[IR_MAX_RANK];
  int n = 0;
  for (int i = 0; i < rank; i++)
    if (i != axis) perm[n++] = i;
  perm[n] = axis;
  ir_value *y = axis == rank - 1 ? x : emit_transpose(lw, at, x, perm);
  y = y ? emit1(lw, at, IR_lse, y) : NULL;
  ir_attr attr = ir_attr_i("dim", axis);
  return y && keep ? first(emit(lw, at, IR_expand, &y, 1, &attr, 1, NULL, 0)) : y;
}

static val op_lse(lowering *lw, const expr *e, bound_args *a) {
  ir_value *x = want_tensor(lw, a, 0, "the argument of `lse`");
  int axis;
  if (!x || !want_axis(lw, a, 1, x, &axis)) return val_error();
  return val_tensor(lse_along(lw, e->at, x, axis, false));
}

static val op_log_softmax(lowering *lw, const expr *e, bound_args *a) {
  ir_value *x = want_tensor(lw, a, 0, "the argument of `log_softmax`");
  int axis;
  if (!x || !want_axis(lw, a, 1, x, &axis)) return val_error();
  ir_value *z = lse_along(lw, e->at, x, axis, true);
  return val_tensor(z ? emit2(lw, e->at, IR_sub, x, z) : NULL);
}

// Mean over the valid targets of the whole batch: total / max(count, 1).
static val op_cross_entropy(lowering *lw, const expr *e, bound_args *a) {
  ir_value *logits = want_tensor(lw, a, 0, "the logits"), *targets = NULL;
  int64_t ignore = 0;
  bool has = a->given[2] && a->v[2].kind != VAL_NONE;
  if (logits) targets = want_tensor(lw, a, 1, "the targets");
  if (!targets ||
      (has && !want_whole(lw, a->at[2], &a->v[2], "ignore", INT32_MIN, INT32_MAX, &ignore)))
    return val_error();
  ir_attr attr[] = {ir_attr_i("ignore", ignore), ir_attr_i("has_ignore", has)};
  ir_value *loss =
      first(emit(lw, e->at, IR_nll, (ir_value *[]){logits, targets}, 2, attr, 2, NULL, 0));
  if (!loss) return val_error();
  int64_t axes[IR_MAX_RANK];
  int n = targets->type.rank;
  for (int i = 0; i < n; i++) axes[i] = i;
  ir_value *total = emit_reduce(lw, e->at, IR_sum, loss, axes, n, false), *count;
  if (has) {
    ir_value *skipped = emit_const(lw, e->at, targets->type.dtype, (double)ignore);
    ir_value *valid = skipped ? emit2(lw, e->at, IR_ne, targets, skipped) : NULL;
    ir_attr f32 = ir_attr_s("dtype", "f32");
    valid = valid ? first(emit(lw, e->at, IR_cast, &valid, 1, &f32, 1, NULL, 0)) : NULL;
    count = valid ? emit_reduce(lw, e->at, IR_sum, valid, axes, n, false) : NULL;
  } else {
    count = element_count(lw, e->at, targets, axes, n);
  }
  ir_value *one = total && count ? emit_const(lw, e->at, DT_f32, 1) : NULL;
  count = one ? emit2(lw, e->at, IR_max, count, one) : NULL;
  return val_tensor(count ? emit2(lw, e->at, IR_div, total, count) : NULL);
}

// ---------------------------------------------------------------------------------------------
// The rest
// ---------------------------------------------------------------------------------------------

static val op_dropout(lowering *lw, const expr *e, bound_args *a) {
  ir_value *x = want_tensor(lw, a, 0, "what `dropout` thins");
  double p;
  if (!x || !want_number(lw, a->at[1], &a->v[1], "the share of `dropout`", &p)) return val_error();
  if (!(p >= 0 && p < 1)) {
    diag *d = sema_error(lw, a->at[1], DIAG_WRONG_VALUE, "the share of `dropout` is %s",
                         val_text(lw->arena, &a->v[1]));
    diag_note(d, "it must be at least 0 and less than 1");
    return val_error();
  }
  if (p == 0 || lw->mode != LOWER_TRAIN) return val_tensor(x);
  const char *path = path_unique(lw, path_here(lw, NULL));
  ir_attr attr[] = {ir_attr_f("p", p), ir_attr_i("key", path_key(path))};
  ir_op *op = emit(lw, e->at, IR_dropout, &x, 1, attr, 2, NULL, 0);
  if (op) op->path = path;
  return val_tensor(first(op));
}

static val op_rope(lowering *lw, const expr *e, bound_args *a) {
  ir_value *x = want_tensor(lw, a, 0, "what `rope` turns");
  int64_t heads;
  double theta;
  if (!x || !want_whole(lw, a->at[1], &a->v[1], "heads", 1, SEMA_EXTENT, &heads) ||
      !positive(lw, a, 2, "theta", 1e4, &theta))
    return val_error();
  int64_t width = x->type.rank ? last_dim(x)->size : 1;
  if (width % heads || width / heads % 2) {
    sema_error(lw, a->at[1], DIAG_WRONG_SHAPE,
               "`rope` turns pairs: %lld is not %lld heads of an even size", (long long)width,
               (long long)heads);
    return val_error();
  }
  ir_attr attr[] = {ir_attr_i("heads", heads), ir_attr_f("theta", theta), ir_attr_i("inverse", 0)};
  return val_tensor(first(emit(lw, e->at, IR_rope, &x, 1, attr, 3, NULL, 0)));
}

static val op_gelu(lowering *lw, const expr *e, bound_args *a) {
  bool approximate;
  if (!flag(lw, a, 1, "approximate", false, &approximate)) return val_error();
  ir_value *x = as_tensor(lw, a->at[0], &a->v[0], NULL, "the argument of `gelu`");
  return val_tensor(x ? emit1(lw, e->at, approximate ? IR_gelu_tanh : IR_gelu, x) : NULL);
}
