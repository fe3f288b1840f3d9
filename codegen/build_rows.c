// Ops on rows: softmax, norms, negative log likelihood, and their gradients.
//
// A value is seen as rows of `n` elements (the normalised axis). A cell owns some rows and walks
// their columns in tiles, once per pass; when one tile holds the whole row it is read once and
// kept. Gradients of norm weights are column sums instead: a cell owns columns and adds rows, in a
// fixed number of parts when rows are many.
#include <string.h>

#include "codegen/build_impl.h"
#include "ir/rule.h"
#include "passes/pass.h"

#define MAX_ROW_TENSORS 24
enum { FULL, ROW, COL };  // [rows, n], [rows], [n]

typedef struct rows {
  bld *b;
  int tensors;
  int kind[MAX_ROW_TENSORS];
  cg_tensor t[MAX_ROW_TENSORS];
  b_axes outer;  // row axes that the grid walks
  b_axes col;    // one axis
  b_cut rc, cc;
  int64_t row_stride[MAX_ROW_TENSORS];
  k_value *coord[B_MAX_AXES], *r0;
  k_value *kept[MAX_ROW_TENSORS];  // the tile, when it is the whole row
  int absent;                      // the number of a tensor that is not there; 0: none is
  k_value *valid;                  // of tensor `padded` only so many columns are; NULL: all
  int padded;
} rows;

static void add_tensor(rows *w, ir_value *v, int kind, bool write) {
  IR_CHECK(w->tensors < MAX_ROW_TENSORS);
  w->kind[w->tensors] = kind;
  w->t[w->tensors++] = write ? b_write(w->b, v) : b_read(w->b, v);
}

// Where the trailing leaves make up n elements.
static int split_leaves(const ir_view *v, int64_t n) {
  int at = v->nleaves;
  for (int64_t p = 1; at > 0 && p < n;) p *= v->size[--at];
  int64_t p = 1;
  for (int i = at; i < v->nleaves; i++) p *= v->size[i];
  return p == n ? at : -1;
}

// Row axes and the column axis of all tensors. False: laid out in ways that do not nest.
static bool find_axes(rows *w, int64_t n) {
  b_part row[MAX_ROW_TENSORS] = {0}, col[MAX_ROW_TENSORS] = {0};
  for (int i = 0; i < w->tensors; i++) {
    const ir_view *v = &w->t[i].view;
    int at = w->kind[i] == FULL ? split_leaves(v, n) : w->kind[i] == ROW ? v->nleaves : 0;
    if (at < 0) return false;
    if (w->kind[i] != COL) row[i] = (b_part){v, 0, at};
    if (w->kind[i] != ROW) col[i] = (b_part){v, at, v->nleaves};
  }
  if (!b_align(&w->outer, row, w->tensors) || !b_align(&w->col, col, w->tensors)) return false;
  b_collapse(&w->outer);
  b_collapse(&w->col);
  if (w->col.n == 0) {
    w->col.n = 1;
    w->col.size[0] = 1;
    memset(w->col.stride, 0, sizeof w->col.stride);
  }
  return w->col.n == 1;
}

static bool begin_rows(rows *w, int64_t n) {
  bld *b = w->b;
  if (!find_axes(w, n)) {
    b_fail(b, "%s: the last axis is laid out in pieces", ir_info(b->op->code)->name);
    return false;
  }
  int64_t total = b_product(&w->outer), extent = 1;
  const cg_limits *limit = b->limit;
  w->cc = n <= limit->row_all ? b_cut_even(n, limit->row_all, 16)
                              : b_cut_tile(b, n, limit->row_cols, 16);
  int tile_rows = limit->row_tile / ((w->cc.size + 15) / 16 * 16);
  if (tile_rows > limit->rows) tile_rows = limit->rows;
  if (limit->powers) {
    while (tile_rows & (tile_rows - 1)) tile_rows &= tile_rows - 1;
  } else {
    while (tile_rows > 1 && total / tile_rows < 8) tile_rows /= 2;
  }
  int last = w->outer.n - 1;
  // A single row: the stride that many would have, where it is a tile of several all the same.
  for (int i = 0; i < w->tensors; i++)
    w->row_stride[i] = last >= 0            ? w->outer.stride[i][last]
                       : w->kind[i] == COL  ? 0
                       : w->kind[i] == FULL ? n
                                            : 1;
  if (last >= 0) {
    extent = w->outer.size[last];
    b_drop(&w->outer, last);
  }
  if (tile_rows < 1) tile_rows = 1;
  w->rc = limit->powers ? b_cut_rows(extent, tile_rows) : b_cut_even(extent, tile_rows, 1);
  k_value *cell = k_grid(b->k, b_product(&w->outer));
  w->r0 = k_muli(b->k, b_grid(w->b, &w->rc), w->rc.size);
  b_coordinates(b, &w->outer, cell, w->coord);
  return true;
}

static k_access row_access(rows *w, int i, k_value *c0) {
  k_kernel *k = w->b->k;
  k_access x = {
      .base = k_add(k, b_at(w->b, &w->outer, i, w->coord), k_muli(k, w->r0, w->row_stride[i])),
      .row_stride = w->row_stride[i],
      .row_limit = b_left(w->b, &w->rc, w->r0)};
  if (w->absent && i == w->absent) x.row_limit = k_sub(k, b_number(w->b, 0), w->r0);
  if (w->kind[i] == ROW) return x;
  x.base = k_add(k, x.base, k_muli(k, c0, w->col.stride[i][0]));
  x.col_stride = w->col.stride[i][0];
  x.col_limit = b_left(w->b, &w->cc, c0);
  if (w->valid && i == w->padded) {
    k_value *left = k_sub(k, w->valid, c0);
    x.col_limit = x.col_limit ? k_min(k, x.col_limit, left) : left;
  }
  if (w->kind[i] == COL) x.row_limit = NULL;
  return x;
}

// The tile of tensor i at column c0, as f32, whole shape where it is FULL.
static k_value *get(rows *w, int i, k_value *c0, double fill) {
  bool whole = w->cc.count == 1;
  if (whole && w->kept[i]) return w->kept[i];
  k_access x = row_access(w, i, c0);
  x.fill = fill;
  int nr = w->kind[i] == COL ? 1 : w->rc.size, nc = w->kind[i] == ROW ? 1 : w->cc.size;
  k_value *v = b_load(w->b, &w->t[i], nr, nc, x);
  if (k_type_of(w->t[i].dtype) == K_F32 && w->kind[i] == FULL) v = k_spread(w->b->k, v, nr, nc);
  if (whole) w->kept[i] = v;
  return v;
}

static void put(rows *w, int i, k_value *c0, k_value *v) {
  int nr = w->rc.size, nc = w->kind[i] == ROW ? 1 : w->cc.size;
  b_store(w->b, &w->t[i], k_spread(w->b->k, v, nr, nc), row_access(w, i, c0));
}

// Stores the tile v of the op's result from tensor number y on: it, or what the function that the
// op carries makes of it. Behind the results stand the tensors that the function reads.
static void put_results(rows *w, int y, k_value *c0, k_value *v) {
  bld *b = w->b;
  ir_op *op = b->op;
  k_value *result[MAX_ROW_TENSORS] = {v};
  int from = ir_epilogue(op), next = y + op->nout;
  if (from >= 0) {
    b_env *e = b_env_new(b);
    ir_region *r = op->region[0];
    v = k_spread(b->k, v, w->rc.size, w->cc.size);
    b_bind(e, r->args.at[0], k_round(b->k, v, r->args.at[0]->type.dtype));
    for (int i = from; i < op->nin; i++) {
      double x;
      ir_value *arg = r->args.at[1 + i - from];
      if (pass_const_value(op->in[i], &x))
        b_bind(e, arg, k_const(b->k, k_type_of(arg->type.dtype), x));
      else
        b_bind(e, arg, get(w, next++, c0, b_no_summand(w->b)));
    }
    b_region(e, r, result);
  }
  if (w->absent) result[0] = k_add(b->k, v, get(w, w->absent, c0, b_no_summand(w->b)));
  for (int i = 0; i < op->nout; i++) put(w, y + i, c0, result[i]);
}

static b_loop each_tile(rows *w, k_value *const *init, int n) {
  k_kernel *k = w->b->k;
  int64_t hi = w->cc.count * w->cc.size;
  return b_loop_begin(w->b, k_int(k, 0), k_int(k, hi), w->cc.size, w->cc.count, init, n);
}

static k_value *column(rows *w, double v) { return k_full(w->b->k, K_F32, w->rc.size, 1, v); }
static k_value *num(rows *w, double v) { return k_const(w->b->k, K_F32, v); }
static k_value *un(rows *w, ir_opcode op, k_value *a) {
  return k_scalar(w->b->k, op, a, NULL, NULL);
}

// Masks what lies behind the last column, where a value that is not 0 there would be summed.
static k_value *only_inside(rows *w, k_value *v, k_value *c0) {
  k_kernel *k = w->b->k;
  if (!w->cc.ragged) return v;
  k_value *left = b_left(w->b, &w->cc, c0);
  k_value *in = k_scalar(k, IR_lt, k_iota(k, K_I64, 1, w->cc.size), left, NULL);
  return k_where(k, in, v, num(w, 0));
}

// Maximum and sum of exp(x - max) of rows of tensor i. A row of -inf alone gets max 0 (and sum 0).
static void max_and_sum(rows *w, int i, k_value **max, k_value **sum) {
  k_kernel *k = w->b->k;
  k_value *init = column(w, -__builtin_inf());
  b_loop l = each_tile(w, &init, 1);
  k_value *next = k_max(k, k_reduce(k, IR_max, get(w, i, l.i, -__builtin_inf()), 1), l.carry[0]);
  b_loop_end(w->b, &l, &next);
  k_value *none = k_scalar(k, IR_eq, l.carry[0], num(w, -__builtin_inf()), NULL);
  *max = k_where(k, none, num(w, 0), l.carry[0]);
  init = column(w, 0);
  l = each_tile(w, &init, 1);
  k_value *e = un(w, IR_exp, k_sub(k, get(w, i, l.i, -__builtin_inf()), *max));
  next = k_add(k, l.carry[0], k_reduce(k, IR_add, e, 1));
  b_loop_end(w->b, &l, &next);
  *sum = l.carry[0];
}

// ---- softmax -----------------------------------------------------------------------------------

void cg_build_softmax(bld *b) {
  ir_op *op = b->op;
  ir_value *y = op->out[0];
  int64_t n = y->type.dim[y->type.rank - 1]->size;
  rows w = {.b = b};
  b_begin(b, "%s_%lld", ir_info(op->code)->name, (long long)n);
  for (int i = 0; i < op->nin; i++) add_tensor(&w, op->in[i], FULL, false);
  add_tensor(&w, y, FULL, true);
  if (!begin_rows(&w, n)) return;
  k_kernel *k = b->k;
  if (op->code == IR_softmax) {
    k_value *max, *sum;
    max_and_sum(&w, 0, &max, &sum);
    k_value *scale = k_scalar(k, IR_div, num(&w, 1), sum, NULL);
    b_loop l = each_tile(&w, NULL, 0);
    k_value *e = un(&w, IR_exp, k_sub(k, get(&w, 0, l.i, -__builtin_inf()), max));
    put(&w, 1, l.i, k_mul(k, e, scale));
    b_loop_end(b, &l, NULL);
  } else {
    k_value *dot = column(&w, 0);
    b_loop l = each_tile(&w, &dot, 1);
    k_value *next = k_add(k, l.carry[0],
                          k_reduce(k, IR_add, k_mul(k, get(&w, 0, l.i, 0), get(&w, 1, l.i, 0)), 1));
    b_loop_end(b, &l, &next);
    dot = l.carry[0];
    l = each_tile(&w, NULL, 0);
    put(&w, 2, l.i, k_mul(k, get(&w, 1, l.i, 0), k_sub(k, get(&w, 0, l.i, 0), dot)));
    b_loop_end(b, &l, NULL);
  }
  b_end(b);
}

// ---- norms -------------------------------------------------------------------------------------

// Sum over a row of f(tile), f given by the caller for each tile.
typedef k_value *tile_fn(rows *w, k_value *c0, k_value *a);

static k_value *row_sum(rows *w, tile_fn *f, k_value *a) {
  k_value *init = column(w, 0);
  b_loop l = each_tile(w, &init, 1);
  k_value *v = only_inside(w, f(w, l.i, a), l.i);
  k_value *next = k_add(w->b->k, l.carry[0], k_reduce(w->b->k, IR_add, v, 1));
  b_loop_end(w->b, &l, &next);
  return l.carry[0];
}

static k_value *plain(rows *w, k_value *c0, k_value *a) {
  (void)a;
  return get(w, 0, c0, 0);
}
static k_value *square_from(rows *w, k_value *c0, k_value *mean) {
  k_value *x = get(w, 0, c0, 0), *d = mean ? k_sub(w->b->k, x, mean) : x;
  return k_mul(w->b->k, d, d);
}

static void layernorm(rows *w, int64_t n, double eps) {
  k_kernel *k = w->b->k;
  enum { X, W, BIAS, Y, MEAN, RSTD };
  k_value *mean = k_mul(k, row_sum(w, plain, NULL), b_real(w->b, 1.0 / (double)n));
  k_value *var = k_mul(k, row_sum(w, square_from, mean), b_real(w->b, 1.0 / (double)n));
  k_value *rstd = un(w, IR_rsqrt, k_add(k, var, b_real(w->b, eps)));
  put(w, MEAN, NULL, mean);
  put(w, RSTD, NULL, rstd);
  b_loop l = each_tile(w, NULL, 0);
  k_value *y = k_mul(k, k_sub(k, get(w, X, l.i, 0), mean), rstd);
  put(w, Y, l.i, k_add(k, k_mul(k, y, get(w, W, l.i, 0)), get(w, BIAS, l.i, 0)));
  b_loop_end(w->b, &l, NULL);
}

static void rmsnorm(rows *w, int64_t n, double eps) {
  k_kernel *k = w->b->k;
  enum { X, W, Y, RRMS };
  k_value *ms = k_mul(k, row_sum(w, square_from, NULL), b_real(w->b, 1.0 / (double)n));
  k_value *rrms = un(w, IR_rsqrt, k_add(k, ms, b_real(w->b, eps)));
  put(w, RRMS, NULL, rrms);
  b_loop l = each_tile(w, NULL, 0);
  put(w, Y, l.i, k_mul(k, k_mul(k, get(w, X, l.i, 0), rrms), get(w, W, l.i, 0)));
  b_loop_end(w->b, &l, NULL);
}

// Gradients: with xh = (x - mean) * rstd and u = g * weight,
//   layernorm dx = rstd * (u - mean(u) - xh * mean(u * xh)),  rmsnorm the same without mean(u).
enum { GG, GX, GW, GMEAN, GRSTD };

static k_value *normalised(rows *w, k_value *c0) {
  k_kernel *k = w->b->k;
  k_value *x = get(w, GX, c0, 0);
  if (w->kind[GMEAN] == ROW && w->b->op->code == IR_layernorm_grad)
    return k_mul(k, k_sub(k, x, get(w, GMEAN, c0, 0)), get(w, GRSTD, c0, 0));
  return k_mul(k, x, get(w, GMEAN, c0, 0));
}
static k_value *weighted(rows *w, k_value *c0, k_value *a) {
  (void)a;
  return k_mul(w->b->k, get(w, GG, c0, 0), get(w, GW, c0, 0));
}
static k_value *weighted_normalised(rows *w, k_value *c0, k_value *a) {
  return k_mul(w->b->k, weighted(w, c0, a), normalised(w, c0));
}

static void norm_grad(rows *w, int64_t n) {
  k_kernel *k = w->b->k;
  bool layer = w->b->op->code == IR_layernorm_grad;
  int y = layer ? 5 : 4;
  k_value *inverse = b_real(w->b, 1.0 / (double)n), *mean_u = NULL;
  if (layer) mean_u = k_mul(k, row_sum(w, weighted, NULL), inverse);
  k_value *mean_ux = k_mul(k, row_sum(w, weighted_normalised, NULL), inverse);
  b_loop l = each_tile(w, NULL, 0);
  k_value *d = weighted(w, l.i, NULL);
  if (layer) d = k_sub(k, d, mean_u);
  d = k_sub(k, d, k_mul(k, normalised(w, l.i), mean_ux));
  put_results(w, y, l.i, k_mul(k, d, get(w, layer ? GRSTD : GMEAN, l.i, 0)));
  b_loop_end(w->b, &l, NULL);
}

void cg_build_norm(bld *b) {
  ir_op *op = b->op;
  bool grad = op->code == IR_layernorm_grad || op->code == IR_rmsnorm_grad;
  ir_value *weight = op->in[grad ? 2 : 1];
  int64_t n = weight->type.dim[0]->size;
  rows w = {.b = b};
  b_begin(b, "%s_%lld", ir_info(op->code)->name, (long long)n);
  int own = ir_epilogue(op) >= 0 ? ir_epilogue(op) : op->nin;
  for (int i = 0; i < own; i++) {
    bool full = grad ? i < 2 : i == 0, col = grad ? i == 2 : i >= 1;
    add_tensor(&w, op->in[i], full ? FULL : col ? COL : ROW, false);
  }
  for (int i = 0; i < op->nout; i++) add_tensor(&w, op->out[i], grad || i == 0 ? FULL : ROW, true);
  for (int i = own; i < op->nin; i++) {
    double x;
    if (!pass_const_value(op->in[i], &x)) add_tensor(&w, op->in[i], FULL, false);
  }
  // Most gradients of norms are added to that of the residual; on a GPU the last norm's, which is
  // not, is the same function.
  if (grad && b->limit->powers && ir_epilogue(op) < 0) {
    w.absent = w.tensors;
    w.kind[w.tensors] = FULL;
    w.t[w.tensors++] = b_absent(b, op->out[0]);
  }
  if (!begin_rows(&w, n)) return;
  double eps = ir_attr_float(op, "eps", 0);
  if (grad) {
    norm_grad(&w, n);
  } else if (op->code == IR_layernorm) {
    layernorm(&w, n, eps);
  } else {
    rmsnorm(&w, n, eps);
  }
  b_end(b);
}

// ---- gradients of norm weights: sums over rows -------------------------------------------------

// One kernel: sums over the rows of part p of `parts`. `mean` is NULL for rmsnorm, `bias` too.
typedef struct column_sums {
  cg_tensor g, x, mean, rstd, weight, bias;
  bool layer;
  b_axes row, col;  // tensors g, x, mean, rstd
  int64_t parts, n;
} column_sums;

static void sums_body(bld *b, column_sums *s) {
  k_kernel *k = b->k;
  b_axes outer = s->row;
  // A single row: the strides that many would have, so that a tile of several has one all the same.
  int64_t extent = 1, stride[4] = {s->n, s->n, 1, 1};
  if (outer.n) {
    extent = outer.size[outer.n - 1];
    for (int t = 0; t < 4; t++) stride[t] = outer.stride[t][outer.n - 1];
    b_drop(&outer, outer.n - 1);
  }
  int most = b->limit->weight_rows;
  b_cut cc = b_cut_tile(b, s->n, 128, 16),
        rc = b->limit->powers ? b_cut_rows(extent, most) : b_cut_even(extent, most, 1);
  k_value *c0 = k_muli(k, b_grid(b, &cc), cc.size), *p = b_grid_of(b, s->parts);
  int64_t chunks = b_product(&outer) * rc.count;
  k_value *all = b_number(b, chunks), *parts = b_number(b, s->parts);
  k_value *lo = k_scalar(k, IR_floordiv, k_mul(k, p, all), parts, NULL);
  k_value *hi = k_scalar(k, IR_floordiv, k_mul(k, k_addi(k, p, 1), all), parts, NULL);
  k_value *init[2] = {k_full(k, K_F32, 1, cc.size, 0), k_full(k, K_F32, 1, cc.size, 0)};
  int64_t rounds = s->parts == 1 && !b->limit->powers ? chunks : 0;
  b_loop l = b_loop_begin(b, lo, hi, 1, rounds, init, s->layer ? 2 : 1);
  k_value *r0 = b_start(b, &rc, l.i), *coord[B_MAX_AXES], *v[4] = {0};
  b_coordinates(b, &outer, k_divi(k, l.i, rc.count), coord);
  const cg_tensor *t[] = {&s->g, &s->x, &s->mean, &s->rstd};
  for (int i = 0; i < 4; i++) {
    if (i == 2 && !s->layer) continue;
    int64_t cs = i < 2 ? s->col.stride[i][0] : 0;
    k_access x = {.base = k_add(k, b_at(b, &outer, i, coord),
                                k_add(k, k_muli(k, r0, stride[i]), k_muli(k, c0, cs))),
                  .row_stride = stride[i],
                  .col_stride = cs,
                  .row_limit = b_left(b, &rc, r0),
                  .col_limit = i < 2 ? b_left(b, &cc, c0) : NULL};
    v[i] = b_load(b, t[i], rc.size, i < 2 ? cc.size : 1, x);
  }
  // Rows behind the last are 0 in g, so whatever the others hold there adds nothing (all are 0).
  k_value *xh = k_mul(k, s->layer ? k_sub(k, v[1], v[2]) : v[1], v[3]);
  k_value *g = k_spread(k, v[0], rc.size, cc.size), *next[2];
  next[0] =
      k_add(k, l.carry[0], k_reduce(k, IR_add, k_spread(k, k_mul(k, g, xh), rc.size, cc.size), 0));
  if (s->layer) next[1] = k_add(k, l.carry[1], k_reduce(k, IR_add, g, 0));
  b_loop_end(b, &l, next);
  k_access o = {
      .base = k_add(k, k_muli(k, p, s->n), c0), .col_stride = 1, .col_limit = b_left(b, &cc, c0)};
  b_store(b, &s->weight, l.carry[0], o);
  if (s->layer) b_store(b, &s->bias, l.carry[1], o);
}

void cg_build_norm_w(bld *b) {
  ir_op *op = b->op;
  column_sums s = {.layer = op->code == IR_layernorm_grad_w, .parts = 1};
  s.n = op->out[0]->type.dim[0]->size;
  ir_view v[4] = {ir_view_of(op->in[0]), ir_view_of(op->in[1]), ir_view_of(op->in[2]), {0}};
  // rmsnorm has no mean: its rrms takes the place of both.
  v[3] = s.layer ? ir_view_of(op->in[3]) : v[2];
  b_part row[4] = {0}, col[4] = {0};
  for (int i = 0; i < 4; i++) {
    int at = i < 2 ? split_leaves(&v[i], s.n) : v[i].nleaves;
    if (at < 0) {
      b_fail(b, "%s: the last axis is laid out in pieces", ir_info(op->code)->name);
      return;
    }
    row[i] = (b_part){&v[i], 0, at};
    if (i < 2) col[i] = (b_part){&v[i], at, v[i].nleaves};
  }
  bool ok = b_align(&s.row, row, 4) && b_align(&s.col, col, 4);
  b_collapse(&s.row);
  b_collapse(&s.col);
  if (s.col.n == 0) s.col = (b_axes){.n = 1, .tensors = 4, .size = {1}};
  if (!ok || s.col.n != 1) {
    b_fail(b, "%s: the last axis is laid out in pieces", ir_info(op->code)->name);
    return;
  }
  int64_t nrows = b_product(&s.row);
  s.parts = nrows / 256 < 1 ? 1 : nrows / 256 > 16 ? 16 : nrows / 256;
  int scratch[2] = {0};
  if (s.parts > 1)
    for (int i = 0; i < op->nout; i++) scratch[i] = b_new_scratch(b, DT_f32, s.parts * s.n);
  b_begin(b, "%s_%lld", ir_info(op->code)->name, (long long)s.n);
  s.g = b_read(b, op->in[0]);
  s.x = b_read(b, op->in[1]);
  if (s.layer) s.mean = b_read(b, op->in[2]);
  s.rstd = b_read(b, op->in[s.layer ? 3 : 2]);
  cg_tensor *to[2] = {&s.weight, &s.bias};
  for (int i = 0; i < op->nout; i++)
    *to[i] = s.parts > 1 ? b_scratch(b, scratch[i], DT_f32, s.parts * s.n, K_WRITE)
                         : b_write(b, op->out[i]);
  sums_body(b, &s);
  b->k->flops = (s.layer ? 5.0 : 3.0) * (double)ir_elements(&op->in[0]->type);
  b->k->bytes = (double)(ir_bytes(&op->in[0]->type) + ir_bytes(&op->in[1]->type));
  b_end(b);
  b_axes dense = {.n = 1, .tensors = 2, .size = {s.n}, .stride = {{1}, {1}}};
  for (int i = 0; i < op->nout && s.parts > 1; i++)
    b_reduce_parts(b, IR_sum, scratch[i], DT_f32, s.parts, op->out[i], &dense);
}

// ---- negative log likelihood -------------------------------------------------------------------

// Is the target a class that counts? Ignored and out-of-range targets do not.
static k_value *counts(rows *w, k_value *target, int64_t n) {
  k_kernel *k = w->b->k;
  if (ir_attr_int(w->b->op, "part", 0)) return k_const(k, K_BOOL, 1);
  k_value *ok =
      k_scalar(k, IR_and, k_scalar(k, IR_ge, target, k_const(k, target->type, 0), NULL),
               k_scalar(k, IR_lt, target, k_const(k, target->type, (double)n), NULL), NULL);
  if (!ir_attr_int(w->b->op, "has_ignore", 0)) return ok;
  k_value *ignore = k_const(k, target->type, (double)ir_attr_int(w->b->op, "ignore", 0));
  return k_scalar(k, IR_and, ok, k_scalar(k, IR_ne, target, ignore, NULL), NULL);
}

static void nll(rows *w, int64_t n) {
  k_kernel *k = w->b->k;
  enum { X, TARGET, LOSS, LSE };
  k_value *max, *sum, *target = k_spread(k, get(w, TARGET, NULL, 0), w->rc.size, 1);
  max_and_sum(w, X, &max, &sum);
  k_value *lse = k_add(k, max, un(w, IR_log, sum));
  put(w, LSE, NULL, lse);
  k_value *ok = counts(w, target, n);
  k_access x = row_access(w, X, k_int(k, 0));
  x.col_stride = 0;
  x.col_limit = NULL;
  x.offset = k_muli(k, k_cast(k, target, K_I64), w->col.stride[X][0]);
  x.mask = ok;
  k_value *logit = b_load(w->b, &w->t[X], w->rc.size, 1, x);
  put(w, LOSS, NULL, k_where(k, ok, k_sub(k, lse, logit), num(w, 0)));
}

static void nll_grad(rows *w, int64_t n) {
  k_kernel *k = w->b->k;
  enum { G, X, TARGET, LSE, Y };
  k_value *target = k_spread(k, get(w, TARGET, NULL, 0), w->rc.size, 1);
  k_value *g = k_where(k, counts(w, target, n), get(w, G, NULL, 0), num(w, 0));
  b_loop l = each_tile(w, NULL, 0);
  double fill = w->valid ? -__builtin_inf() : 0;  // of classes that are none: p is 0
  k_value *p = un(w, IR_exp, k_sub(k, get(w, X, l.i, fill), get(w, LSE, NULL, 0)));
  k_value *c = k_add(k, k_cast(k, l.i, target->type), k_iota(k, target->type, 1, w->cc.size));
  k_value *one = k_where(k, k_scalar(k, IR_eq, c, target, NULL), num(w, 1), num(w, 0));
  put(w, Y, l.i, k_mul(k, k_sub(k, p, one), g));
  b_loop_end(w->b, &l, NULL);
}

void cg_build_nll(bld *b) {
  ir_op *op = b->op;
  bool grad = op->code == IR_nll_grad;
  ir_value *x = op->in[grad ? 1 : 0];
  int64_t n = x->type.dim[x->type.rank - 1]->size;
  rows w = {.b = b};
  b_begin(b, "%s_%lld", ir_info(op->code)->name, (long long)n);
  for (int i = 0; i < op->nin; i++)
    add_tensor(&w, op->in[i], i == (grad ? 1 : 0) ? FULL : ROW, false);
  for (int i = 0; i < op->nout; i++) add_tensor(&w, op->out[i], grad ? FULL : ROW, true);
  if (!begin_rows(&w, n)) return;
  int64_t classes = ir_attr_int(op, "classes", 0);
  if (classes) {  // the last ranks have fewer than n, or none
    w.padded = grad ? 1 : 0;
    w.valid = k_sub(b->k, k_int(b->k, classes), b_begin_at(b, k_int(b->k, 0)));
  }
  if (grad) {
    nll_grad(&w, n);
  } else {
    nll(&w, n);
  }
  b_end(b);
}
