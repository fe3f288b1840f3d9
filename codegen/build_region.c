// Scalar regions on tiles: what a `fn`, a mask or a bias computes, inlined into a kernel; and what
// such a function can be on a whole tile, from the ends of its arguments (intervals).
#include <string.h>

#include "codegen/build_impl.h"
#include "ir/expr.h"
#include "ir/place.h"
#include "runtime/base/random.h"

typedef struct binding {
  ir_value *value;
  k_value *tile;
  const b_capture *capture;
} binding;

struct b_env {
  bld *b;
  VEC(binding) bound;
  k_value *sample, *index;  // for dropout
};

b_env *b_env_new(bld *b) {
  b_env *e = arena_new(b->arena, b_env, 1);
  e->b = b;
  return e;
}

static binding *find(b_env *e, const ir_value *v) {
  for (int i = e->bound.n - 1; i >= 0; i--)
    if (e->bound.at[i].value == v) return &e->bound.at[i];
  IR_BUG("value %%%d of a region is not bound", v->id);
}

void b_bind(b_env *e, ir_value *v, k_value *tile) {
  vec_push(e->b->arena, &e->bound, (binding){.value = v, .tile = tile});
}

void b_bind_capture(b_env *e, ir_value *v, const b_capture *c) {
  // A captured scalar is used as it is, without `at`.
  k_value *tile = c->rank == 0 ? b_at_element(e, c, NULL) : NULL;
  vec_push(e->b->arena, &e->bound, (binding){v, tile, c});
}

k_value *b_bound(b_env *e, const ir_value *v) { return find(e, v)->tile; }

void b_bind_position(b_env *e, k_value *sample, k_value *index) {
  e->sample = sample;
  e->index = index;
}

k_value *b_begin_at(bld *b, k_value *at) { return b_begin_over(b, at, ~0u); }

k_value *b_begin_over(bld *b, k_value *at, unsigned axes) {
  const ir_module *m = cg_module(b->cg);
  const ir_attr *turn = ir_get_attr(b->op, "turn");
  k_kernel *k = b->k;
  for (int a = 0; m->mesh && a < m->mesh->naxes; a++) {
    int64_t step = ir_begin(b->op, a);
    if (!step || !(axes >> a & 1)) continue;
    k_value *place = k_call(k, (k_field)(K_COORD + a));
    if (turn) place = k_modi(k, k_addi(k, place, turn->v[a]), m->mesh->axis[a].size);
    k_value *begin = k_muli(k, place, step);
    at = k_add(k, at, k_cast(k, begin, at->type));
  }
  return at;
}

bool b_of_sample(const bld *b, const ir_index *leaf) {
  ir_index *axis[IR_MAX_LEAVES], *batch = cg_module(b->cg)->batch;
  int n = batch ? ir_index_leaves(batch, axis, IR_MAX_LEAVES) : 0;
  for (int k = 0; k < n; k++)
    if (axis[k] == leaf) return true;
  return false;
}

// ---- captures ----------------------------------------------------------------------------------

b_capture b_capture_of(bld *b, ir_value *v) {
  b_capture c = {.tensor = b_read(b, v), .rank = v->type.rank};
  const ir_view *w = &c.tensor.view;
  for (int d = 0; d < c.rank; d++) {
    c.extent[d] = v->type.dim[d]->size;
    b_part part = {w, w->dim_first[d], w->dim_first[d + 1]};
    bool ok = b_align(&c.dim[d], &part, 1);
    IR_CHECK(ok);
    b_collapse(&c.dim[d]);
  }
  return c;
}

// Element [i0, i1, ...]: real positions are truncated, positions outside read 0.
k_value *b_at_element(b_env *e, const b_capture *c, k_value *const *index) {
  bld *b = e->b;
  k_kernel *k = b->k;
  if (c->tensor.is_const) return k_const(k, k_type_of(c->tensor.dtype), c->tensor.number);
  k_value *at = k_int(k, 0), *inside = NULL;
  int rows = 1, cols = 1;
  for (int d = 0; d < c->rank; d++) {
    k_value *i = k_cast(k, index[d], K_I64);
    if (i->rows > rows) rows = i->rows;
    if (i->cols > cols) cols = i->cols;
    k_value *ok = k_scalar(k, IR_and, k_scalar(k, IR_ge, i, k_int(k, 0), NULL),
                           k_scalar(k, IR_lt, i, k_int(k, c->extent[d]), NULL), NULL);
    inside = inside ? k_scalar(k, IR_and, inside, ok, NULL) : ok;
    k_value *coord[B_MAX_AXES];
    b_coordinates(b, &c->dim[d], i, coord);
    at = k_add(k, at, b_at(b, &c->dim[d], 0, coord));
  }
  k_access x = {.buffer = c->tensor.buffer, .base = c->tensor.base, .offset = at, .mask = inside};
  if (rows == 1 && cols == 1) {
    x.base = k_add(k, x.base, at);
    x.offset = NULL;
  }
  return k_load(k, rows, cols, x);
}

// ---- values ------------------------------------------------------------------------------------

static k_value *dropout(b_env *e, ir_op *op, k_value *x) {
  k_kernel *k = e->b->k;
  double p = ir_attr_float(op, "p", 0);
  IR_CHECK(e->index != NULL);
  if (p <= 0) return x;
  k_value *keep =
      k_draw(k, k_key(k, ir_attr_int(op, "key", 0), e->sample), e->index, base_drop_below(p));
  double scale = p < 1 ? 1 / (1 - p) : 0;
  return k_where(k, keep, k_mul(k, x, k_const(k, K_F32, scale)), k_const(k, K_F32, 0));
}

static ir_region *defined_region(b_env *e, ir_op *op) {
  ir_dtype types[4] = {0};
  for (int i = 0; i < op->nin && i < 4; i++) types[i] = op->in[i]->type.dtype;
  return ir_defined_region(cg_module(e->b->cg), op->code, types);
}

k_value *b_apply(b_env *e, ir_op *op, k_value *const *in) {
  k_kernel *k = e->b->k;
  const ir_op_info *info = ir_info(op->code);
  ir_dtype t = op->out[0]->type.dtype;
  k_value *v = NULL;
  if (info->cls == IR_CLASS_SCALAR) {
    v = k_scalar(k, op->code, in[0], op->nin > 1 ? in[1] : NULL, op->nin > 2 ? in[2] : NULL);
  } else if (info->cls == IR_CLASS_DEFINED) {
    ir_region *r = defined_region(e, op);
    for (int i = 0; i < op->nin; i++) b_bind(e, r->args.at[i], in[i]);
    b_region(e, r, &v);
  } else if (op->code == IR_cast) {
    v = in[0];
  } else if (op->code == IR_dropout) {
    v = dropout(e, op, in[0]);
  } else {
    IR_BUG("%s in a scalar region", info->name);
  }
  return k_round(k, v, t);
}

void b_region(b_env *e, ir_region *r, k_value **out) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    k_value *in[IR_MAX_RANK + 8] = {0};
    if (op->code == IR_const) {
      ir_dtype t = op->out[0]->type.dtype;
      b_bind(e, op->out[0],
             k_round(e->b->k, k_const(e->b->k, k_type_of(t), ir_attr_float(op, "value", 0)), t));
      continue;
    }
    if (op->code == IR_at) {
      for (int j = 1; j < op->nin; j++) in[j - 1] = find(e, op->in[j])->tile;
      b_bind(e, op->out[0], b_at_element(e, find(e, op->in[0])->capture, in));
      continue;
    }
    IR_CHECK(op->nin <= (int)(sizeof in / sizeof *in));
    for (int j = 0; j < op->nin; j++) in[j] = find(e, op->in[j])->tile;
    if (op->code == IR_map) {
      k_value *results[16];
      IR_CHECK(op->nout <= 16);
      for (int j = 0; j < op->nin; j++) b_bind(e, op->region[0]->args.at[j], in[j]);
      b_region(e, op->region[0], results);
      for (int j = 0; j < op->nout; j++) b_bind(e, op->out[j], results[j]);
      continue;
    }
    b_bind(e, op->out[0], b_apply(e, op, in));
  }
  for (int i = 0; i < r->yield.n; i++) {
    k_value *v = find(e, r->yield.at[i])->tile;
    out[i] = k_round(e->b->k, v, r->yield.at[i]->type.dtype);
  }
}

// ---- intervals ---------------------------------------------------------------------------------
// A number is known by its smallest and largest value on the tile; a truth by whether it certainly
// (lo) and possibly (hi) holds. The ends are scalars of the kernel, so a tile's case is decided
// when the kernel runs. A truth about which nothing is known is "not certainly, but possibly".

typedef struct range_binding {
  ir_value *value;
  b_range range;
} range_binding;

typedef struct ranges {
  b_env *e;
  k_kernel *k;
  VEC(range_binding) bound;
} ranges;

static bool is_point(b_range r) { return r.known && r.lo == r.hi; }

static b_range point(k_value *v) { return (b_range){true, v, v}; }

static b_range range_of(ranges *w, const ir_value *v) {
  for (int i = w->bound.n - 1; i >= 0; i--)
    if (w->bound.at[i].value == v) return w->bound.at[i].range;
  return (b_range){0};
}

static b_range unknown_truth(ranges *w) {
  return (b_range){true, k_const(w->k, K_BOOL, 0), k_const(w->k, K_BOOL, 1)};
}

// a < b (or <=): certainly when even the largest a is below the smallest b.
static b_range below(ranges *w, ir_opcode op, b_range a, b_range b) {
  if (!a.known || !b.known) return unknown_truth(w);
  return (b_range){true, k_scalar(w->k, op, a.hi, b.lo, NULL),
                   k_scalar(w->k, op, a.lo, b.hi, NULL)};
}

static b_range negate(ranges *w, b_range a) {
  return (b_range){true, k_scalar(w->k, IR_not, a.hi, NULL, NULL),
                   k_scalar(w->k, IR_not, a.lo, NULL, NULL)};
}

static b_range equal(ranges *w, b_range a, b_range b) {
  if (!a.known || !b.known) return unknown_truth(w);
  k_kernel *k = w->k;
  k_value *overlap = k_scalar(k, IR_and, k_scalar(k, IR_le, a.lo, b.hi, NULL),
                              k_scalar(k, IR_le, b.lo, a.hi, NULL), NULL);
  k_value *same = k_scalar(k, IR_and, k_scalar(k, IR_ge, a.lo, b.hi, NULL),
                           k_scalar(k, IR_ge, b.lo, a.hi, NULL), NULL);
  return (b_range){true, same, overlap};
}

static b_range both_ways(ranges *w, ir_opcode op, b_range a, b_range b) {
  k_kernel *k = w->k;
  switch (op) {
    case IR_add: return (b_range){true, k_add(k, a.lo, b.lo), k_add(k, a.hi, b.hi)};
    case IR_sub: return (b_range){true, k_sub(k, a.lo, b.hi), k_sub(k, a.hi, b.lo)};
    case IR_max:
    case IR_min:
      return (b_range){true, k_scalar(k, op, a.lo, b.lo, NULL), k_scalar(k, op, a.hi, b.hi, NULL)};
    default: {
      // mul: among the products of the ends.
      k_value *p[] = {k_mul(k, a.lo, b.lo), k_mul(k, a.lo, b.hi), k_mul(k, a.hi, b.lo),
                      k_mul(k, a.hi, b.hi)};
      return (b_range){true, k_min(k, k_min(k, p[0], p[1]), k_min(k, p[2], p[3])),
                       k_max(k, k_max(k, p[0], p[1]), k_max(k, p[2], p[3]))};
    }
  }
}

// The range of a scalar row; unknown where no rule is worth having.
static b_range scalar_range(ranges *w, ir_op *op, const b_range *in) {
  k_kernel *k = w->k;
  bool points = true;
  for (int i = 0; i < op->nin; i++) points &= is_point(in[i]);
  if (points)
    return point(k_round(k,
                         k_scalar(k, op->code, in[0].lo, op->nin > 1 ? in[1].lo : NULL,
                                  op->nin > 2 ? in[2].lo : NULL),
                         op->out[0]->type.dtype));
  switch (op->code) {
    case IR_lt:
    case IR_le: return below(w, op->code, in[0], in[1]);
    case IR_gt: return below(w, IR_lt, in[1], in[0]);
    case IR_ge: return below(w, IR_le, in[1], in[0]);
    case IR_eq: return equal(w, in[0], in[1]);
    case IR_ne: return negate(w, equal(w, in[0], in[1]));
    case IR_not: return in[0].known ? negate(w, in[0]) : unknown_truth(w);
    case IR_and:
    case IR_or: {
      b_range a = in[0].known ? in[0] : unknown_truth(w),
              c = in[1].known ? in[1] : unknown_truth(w);
      return (b_range){true, k_scalar(k, op->code, a.lo, c.lo, NULL),
                       k_scalar(k, op->code, a.hi, c.hi, NULL)};
    }
    case IR_add:
    case IR_sub:
    case IR_mul:
    case IR_max:
    case IR_min:
      return in[0].known && in[1].known ? both_ways(w, op->code, in[0], in[1]) : (b_range){0};
    case IR_neg:
      if (!in[0].known) return in[0];
      return (b_range){true, k_scalar(k, IR_neg, in[0].hi, NULL, NULL),
                       k_scalar(k, IR_neg, in[0].lo, NULL, NULL)};
    case IR_floor:
      if (!in[0].known) return in[0];
      return (b_range){true, k_scalar(k, IR_floor, in[0].lo, NULL, NULL),
                       k_scalar(k, IR_floor, in[0].hi, NULL, NULL)};
    case IR_floordiv: {
      // By a point: monotone, which way depends on the divisor's sign.
      if (!in[0].known || !is_point(in[1])) return (b_range){0};
      k_value *a = k_scalar(k, IR_floordiv, in[0].lo, in[1].lo, NULL);
      k_value *c = k_scalar(k, IR_floordiv, in[0].hi, in[1].lo, NULL);
      return (b_range){true, k_min(k, a, c), k_max(k, a, c)};
    }
    case IR_abs: {
      if (!in[0].known) return in[0];
      k_value *m = k_scalar(k, IR_neg, in[0].hi, NULL, NULL);
      k_value *hi = k_max(k, in[0].hi, k_scalar(k, IR_neg, in[0].lo, NULL, NULL));
      k_value *lo = k_max(k, k_max(k, in[0].lo, m), k_const(k, in[0].lo->type, 0));
      return (b_range){true, lo, hi};
    }
    case IR_where: {
      if (!in[0].known || !in[1].known || !in[2].known) return (b_range){0};
      if (op->out[0]->type.dtype == DT_bool)
        return (b_range){true, k_scalar(k, IR_and, in[1].lo, in[2].lo, NULL),
                         k_scalar(k, IR_or, in[1].hi, in[2].hi, NULL)};
      // One of them alone where it is known which.
      k_value *lo = k_min(k, in[1].lo, in[2].lo), *hi = k_max(k, in[1].hi, in[2].hi);
      lo = k_where(k, in[0].lo, in[1].lo, k_where(k, in[0].hi, lo, in[2].lo));
      hi = k_where(k, in[0].lo, in[1].hi, k_where(k, in[0].hi, hi, in[2].hi));
      return (b_range){true, lo, hi};
    }
    default: return op->out[0]->type.dtype == DT_bool ? unknown_truth(w) : (b_range){0};
  }
}

static b_range op_range(ranges *w, ir_op *op) {
  k_kernel *k = w->k;
  b_range in[IR_MAX_RANK + 8];
  for (int i = 0; i < op->nin; i++) in[i] = range_of(w, op->in[i]);
  ir_dtype t = op->out[0]->type.dtype;
  bool truth = t == DT_bool;
  b_range anything = truth ? unknown_truth(w) : (b_range){0};
  if (op->code == IR_const)
    return point(k_round(k, k_const(k, k_type_of(t), ir_attr_float(op, "value", 0)), t));
  if (op->code == IR_at) {
    // An element at one known place (length[b]) is a point.
    k_value *index[IR_MAX_RANK];
    for (int i = 1; i < op->nin; i++) {
      if (!is_point(in[i])) return anything;
      index[i - 1] = in[i].lo;
    }
    return point(b_at_element(w->e, find(w->e, op->in[0])->capture, index));
  }
  if (op->code == IR_cast) {
    if (!in[0].known) return anything;
    bool from_truth = op->in[0]->type.dtype == DT_bool;
    if (truth && !from_truth && !is_point(in[0])) return anything;
    // Conversions keep the order of numbers.
    k_value *lo = k_round(k, in[0].lo, t);
    return (b_range){true, lo, is_point(in[0]) ? lo : k_round(k, in[0].hi, t)};
  }
  if (ir_info(op->code)->cls == IR_CLASS_DEFINED) {
    ir_region *r = defined_region(w->e, op);
    return b_region_range(w->e, r, in);
  }
  if (ir_info(op->code)->cls == IR_CLASS_SCALAR) return scalar_range(w, op, in);
  return anything;
}

b_range b_region_range(b_env *e, ir_region *r, const b_range *arg) {
  ranges w = {.e = e, .k = e->b->k};
  for (int i = 0; i < r->args.n; i++)
    vec_push(e->b->arena, &w.bound, (range_binding){r->args.at[i], arg[i]});
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code == IR_map) {
      b_range in[IR_MAX_RANK + 8];
      for (int j = 0; j < op->nin; j++) in[j] = range_of(&w, op->in[j]);
      b_range v = op->nout == 1 ? b_region_range(e, op->region[0], in) : (b_range){0};
      vec_push(e->b->arena, &w.bound, (range_binding){op->out[0], v});
      continue;
    }
    vec_push(e->b->arena, &w.bound, (range_binding){op->out[0], op_range(&w, op)});
  }
  return range_of(&w, r->yield.at[0]);
}
