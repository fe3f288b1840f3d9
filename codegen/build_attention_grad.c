// The gradient of attention, from lse: probabilities are recomputed tile by tile.
//
//   p = exp(s - lse)    dp = do v'    ds = p * (dp - delta),  delta = rowsum(do * o)
//   dv = p' do          dq = scale * ds k          dk = scale * ds' q
//
// With dropout, dp and the p of dv are thinned as p was in the forward pass.
//
// Three kernels: delta; dq, whose cells own query tiles; dk and dv, whose cells own key tiles and
// walk the query heads that share them. Nothing is added across cells, so bits are fixed. The
// gradient of a tensor that the bias reads adds ds at the places it was read from, in order, by
// cells that own what they add to.
#include <string.h>

#include "codegen/build_attention.h"
#include "ir/scalar_grad.h"

// The tile: q, do, lse, delta of its queries; k, v of its keys.
typedef struct grad_tile {
  k_value *q, *go, *lse, *delta, *keys, *v;
} grad_tile;

// Probabilities after dropout, and ds.
static void probabilities(att *a, const grad_tile *t, k_value *i0, k_value *j0, k_value *all,
                          k_value **p, k_value **ds) {
  k_kernel *k = a->b->k;
  k_value *s = att_scores(a, t->q, t->keys, i0, j0, all);
  *p = k_scalar(k, IR_exp, k_sub(k, s, t->lse), NULL, NULL);
  k_value *dp;
  if (a->qc.size == 1) {
    dp = k_transpose(k, k_reduce(k, IR_add, k_mul(k, t->v, t->go), 1));
  } else {
    dp = k_dot_rounded(k, a->round, k_full(k, K_F32, a->qc.size, a->kc.size, 0), t->go, t->v, false,
                       true);
  }
  k_value *by = att_dropout(a, i0, j0);
  if (by) dp = k_mul(k, dp, by);
  *ds = k_mul(k, *p, k_sub(k, dp, t->delta));
  if (by) *p = k_mul(k, *p, by);
}

// A row that sees nothing has lse = -inf; +inf in its place makes every probability 0.
static k_value *load_lse(att *a, k_value *i0) {
  k_kernel *k = a->b->k;
  k_value *lse = att_load(a, AT_LSE, i0, __builtin_inf());
  k_value *none = k_scalar(k, IR_eq, lse, k_const(k, K_F32, -__builtin_inf()), NULL);
  return k_where(k, none, k_const(k, K_F32, __builtin_inf()), lse);
}

static void load_queries(att *a, grad_tile *t, k_value *i0) {
  k_kernel *k = a->b->k;
  t->q = k_stage(k, att_load(a, AT_Q, i0, 0));
  t->go = k_stage(k, att_load(a, AT_DO, i0, 0));
  t->lse = load_lse(a, i0);
  t->delta = att_load(a, AT_DELTA, i0, 0);
}

static void load_keys(att *a, grad_tile *t, k_value *j0) {
  k_kernel *k = a->b->k;
  t->keys = k_stage(k, att_load(a, AT_K, j0, 0));
  t->v = k_stage(k, att_load(a, AT_V, j0, 0));
}

static void use_inputs(att *a, int delta) {
  ir_op *op = a->op;
  att_use(a, AT_DO, op->in[0], K_READ);
  att_use(a, AT_LSE, op->in[2], K_READ);
  att_use(a, AT_Q, op->in[3], K_READ);
  att_use(a, AT_K, op->in[4], K_READ);
  att_use(a, AT_V, op->in[5], K_READ);
  att_use_delta(a, delta, K_READ);
}

// delta = rowsum(do * o).
static int build_delta(att *a) {
  bld *b = a->b;
  ir_op *op = b->op;
  int scratch = b_new_scratch(b, DT_f32, ir_elements(&a->lse_value->type));
  // Its captures are not needed here: a kernel without mask and bias.
  att plain = *a;
  plain.mask = plain.bias = NULL;
  plain.drop = 0;
  plain.first_capture = op->nin;
  if (b->limit->powers) plain.qc = b_cut_rows(a->s, a->qc.size);
  att_begin(&plain, "attention_delta");
  att_use(&plain, AT_DO, op->in[0], K_READ);
  att_use(&plain, AT_O, op->in[1], K_READ);
  att_use_delta(&plain, scratch, K_WRITE);
  if (!att_ready(&plain)) return scratch;
  k_kernel *k = b->k;
  k_value *batch = b_grid_of(b, a->batch_n), *kv = k_grid(k, a->kv), *rep = k_grid(k, a->rep);
  k_value *i0 = k_muli(k, b_grid_of(b, plain.qc.count), plain.qc.size);
  att_cell(&plain, batch, kv, rep);
  k_value *product = k_mul(k, att_load(&plain, AT_DO, i0, 0), att_load(&plain, AT_O, i0, 0));
  att_store(&plain, AT_DELTA, i0, k_reduce(k, IR_add, product, 1));
  b_end(b);
  return scratch;
}

// Runs `next = body(carry)` only where the tile has something to see.
static bool open_case(att *a, k_value *some, k_stmt **st) {
  int64_t always;
  *st = NULL;
  if (k_is_const(some, &always) && always) return false;
  *st = k_if(a->b->k, some);
  return true;
}

static void close_case(att *a, k_stmt *st, k_value **next, k_value *const *carry, int n) {
  if (!st) return;
  k_else(a->b->k, st, next, n);
  k_end_if(a->b->k, st, carry, n);
  for (int i = 0; i < n; i++) next[i] = st->out[i];
}

static void build_dq(att *a, int delta) {
  bld *b = a->b;
  att_begin(a, "attention_dq");
  use_inputs(a, delta);
  att_use(a, AT_DQ, b->op->out[0], K_WRITE);
  if (!att_ready(a)) return;
  k_kernel *k = b->k;
  k_value *batch = b_grid_of(b, a->batch_n), *kv = k_grid(k, a->kv), *rep = k_grid(k, a->rep);
  k_value *i0 = k_muli(k, k_grid(k, a->qc.count), a->qc.size);
  att_cell(a, batch, kv, rep);
  grad_tile t;
  load_queries(a, &t, i0);
  k_value *dq = k_full(k, K_F32, a->qc.size, (int)a->d, 0), *some, *all, *p, *ds, *next;
  b_loop l = b_loop_begin(b, k_int(k, 0), k_int(k, a->t), a->kc.size, a->kc.count, &dq, 1);
  att_case(a, i0, l.i, &some, &all);
  k_stmt *st;
  open_case(a, some, &st);
  load_keys(a, &t, l.i);
  probabilities(a, &t, i0, l.i, all, &p, &ds);
  next = k_dot_rounded(k, a->round, l.carry[0], ds, t.keys, false, false);
  close_case(a, st, &next, l.carry, 1);
  b_loop_end(b, &l, &next);
  att_store(a, AT_DQ, i0, k_mul(k, l.carry[0], k_const(k, K_F32, a->scale)));
  double pairs = (double)(a->batch_n * a->kv * a->rep) * (double)a->s * (double)a->t;
  k->flops = pairs * (4.0 * (double)a->d + 2.0 * (double)a->v + 14);
  b_end(b);
}

static void build_dkv(att *a, int delta) {
  bld *b = a->b;
  att_begin(a, "attention_dkv");
  use_inputs(a, delta);
  att_use(a, AT_DK, b->op->out[1], K_WRITE);
  att_use(a, AT_DV, b->op->out[2], K_WRITE);
  if (!att_ready(a)) return;
  k_kernel *k = b->k;
  k_value *batch = b_grid_of(b, a->batch_n), *kv = k_grid(k, a->kv);
  k_value *j0 = k_muli(k, k_grid(k, a->kc.count), a->kc.size);
  grad_tile t;
  att_cell(a, batch, kv, k_int(k, 0));
  load_keys(a, &t, j0);
  k_value *init[] = {k_full(k, K_F32, a->kc.size, (int)a->d, 0),
                     k_full(k, K_F32, a->kc.size, (int)a->v, 0)};
  int64_t rounds = a->rep * a->qc.count;
  b_loop l = b_loop_begin(b, k_int(k, 0), k_int(k, rounds), 1, rounds, init, 2);
  k_value *i0 = k_muli(k, k_modi(k, l.i, a->qc.count), a->qc.size), *some, *all, *p, *ds, *next[2];
  att_cell(a, batch, kv, k_divi(k, l.i, a->qc.count));
  att_case(a, i0, j0, &some, &all);
  k_stmt *st;
  open_case(a, some, &st);
  load_queries(a, &t, i0);
  probabilities(a, &t, i0, j0, all, &p, &ds);
  next[1] = k_dot_rounded(k, a->round, l.carry[1], p, t.go, true, false);
  next[0] = k_dot_rounded(k, a->round, l.carry[0], ds, t.q, true, false);
  close_case(a, st, next, l.carry, 2);
  b_loop_end(b, &l, next);
  att_cell(a, batch, kv, k_int(k, 0));
  att_store(a, AT_DK, j0, k_mul(k, l.carry[0], k_const(k, K_F32, a->scale)));
  att_store(a, AT_DV, j0, l.carry[1]);
  double pairs = (double)(a->batch_n * a->kv * a->rep) * (double)a->s * (double)a->t;
  k->flops = pairs * (4.0 * (double)a->d + 4.0 * (double)a->v + 14);
  b_end(b);
}

void cg_build_attention_grad(bld *b) {
  ir_op *op = b->op;
  att a;
  if (!att_open(&a, b, op->in[3], op->in[4], op->in[5], 6)) return;
  a.lse_value = op->in[2];
  int delta = build_delta(&a);
  if (!b->why) build_dq(&a, delta);
  if (!b->why) build_dkv(&a, delta);
}

// ---- the bias's captured tensor ----------------------------------------------------------------

// Which dimension of the capture is read exactly at `arg` by every `at`; -1: none. Such positions
// partition the capture: cells with different values of arg own different parts.
static int owned_dim(ir_region *fn, const int *at, int n, int arg) {
  int rank = fn->ops.at[at[0]]->nin - 1;
  for (int d = 0; d < rank; d++) {
    bool all = true;
    for (int i = 0; i < n && all; i++) {
      ir_value *v = fn->ops.at[at[i]]->in[1 + d];
      while (v->def && v->def->code == IR_cast) v = v->def->in[0];
      all = v == fn->args.at[arg];
    }
    if (all) return d;
  }
  return -1;
}

// Clears what the cell owns of the result: all of it, or position `own` of dimension `dim`.
static void clear_owned(bld *b, const cg_tensor *y, const ir_value *out, int dim, k_value *own) {
  k_kernel *k = b->k;
  b_axes rest = {.tensors = 1};
  k_value *base = k_int(k, 0);
  for (int d = 0; d < out->type.rank; d++) {
    b_part part = {&y->view, y->view.dim_first[d], y->view.dim_first[d + 1]};
    b_axes one = {.tensors = 1};
    b_align(d == dim ? &one : &rest, &part, 1);
    if (d == dim) {
      k_value *coord[B_MAX_AXES];
      b_collapse(&one);
      b_coordinates(b, &one, own, coord);
      base = b_at(b, &one, 0, coord);
    }
  }
  b_collapse(&rest);
  int64_t n = rest.n ? rest.size[rest.n - 1] : 1, step = rest.n ? rest.stride[0][rest.n - 1] : 0;
  if (rest.n) b_drop(&rest, rest.n - 1);
  b_cut c = b_cut_tile(b, n, 1024, 16);
  int64_t chunks = b_product(&rest) * c.count;
  b_loop l = b_loop_begin(b, k_int(k, 0), k_int(k, chunks), 1, chunks, NULL, 0);
  k_value *c0 = b_start(b, &c, l.i), *coord[B_MAX_AXES];
  b_coordinates(b, &rest, k_divi(k, l.i, c.count), coord);
  k_access x = {.base = k_add(k, k_add(k, base, b_at(b, &rest, 0, coord)), k_muli(k, c0, step)),
                .col_stride = step,
                .col_limit = b_left(b, &c, c0)};
  b_store(b, y, k_full(k, K_F32, 1, c.size, 0), x);
  b_loop_end(b, &l, NULL);
  k_barrier(k);
}

// Evaluates a region over (the bias's arguments, gradient of the score) on the tile.
static void eval_gradient(att *a, ir_region *r, k_value *i0, k_value *j0, k_value *ds,
                          k_value **result) {
  k_value *i, *j;
  att_positions(a, i0, j0, &i, &j);
  k_value *position[] = {a->bi, a->h, i, j};
  int nargs = a->bias->args.n;
  for (int n = 0; n < 4; n++) b_bind(a->env, r->args.at[n], position[n]);
  int captures = a->first_capture + (int)ir_attr_int(a->op, "ncap_mask", 0);
  for (int n = 4; n < nargs; n++) {
    b_capture *c = arena_new(a->b->arena, b_capture, 1);
    *c = b_capture_of(a->b, a->op->in[captures + n - 4]);
    b_bind_capture(a->env, r->args.at[n], c);
  }
  b_bind(a->env, r->args.at[nargs], ds);
  b_region(a->env, r, result);
}

// A captured scalar: the sum of its gradient over the tile.
static k_value *scalar_sum(att *a, int arg, k_value *i0, k_value *j0, k_value *ds) {
  k_kernel *k = a->b->k;
  bool *want = arena_new(a->b->arena, bool, a->bias->args.n);
  want[arg] = true;
  k_value **result = arena_new(a->b->arena, k_value *, a->bias->args.n);
  ir_region *r = ir_scalar_grad(cg_module(a->b->cg), a->bias, want);
  eval_gradient(a, r, i0, j0, ds, result);
  k_value *g = k_spread(k, result[0], a->qc.size, a->kc.size);
  return k_reduce(k, IR_add, k_reduce(k, IR_add, g, 1), 0);
}

// Adds what flows back through one `at` of the bias, for the tile.
static void add_at(att *a, const cg_tensor *y, const ir_value *out, int at, k_value *i0,
                   k_value *j0, k_value *ds) {
  bld *b = a->b;
  k_kernel *k = b->k;
  k_value *result[IR_MAX_RANK + 1];
  eval_gradient(a, ir_scalar_grad_at(cg_module(b->cg), a->bias, at), i0, j0, ds, result);
  k_value *offset = k_int(k, 0), *in = k_const(k, K_BOOL, 1);
  for (int d = 0; d < out->type.rank; d++) {
    k_value *p = k_cast(k, result[1 + d], K_I64), *coord[B_MAX_AXES];
    k_value *ok = k_scalar(k, IR_and, k_scalar(k, IR_ge, p, k_int(k, 0), NULL),
                           k_scalar(k, IR_lt, p, k_int(k, out->type.dim[d]->size), NULL), NULL);
    in = k_scalar(k, IR_and, in, ok, NULL);
    b_axes one = {.tensors = 1};
    b_part part = {&y->view, y->view.dim_first[d], y->view.dim_first[d + 1]};
    b_align(&one, &part, 1);
    b_collapse(&one);
    b_coordinates(b, &one, p, coord);
    offset = k_add(k, offset, b_at(b, &one, 0, coord));
  }
  k_value *g = k_spread(k, result[0], a->qc.size, a->kc.size);
  k_access x = {
      .buffer = y->buffer, .base = y->base, .mask = in, .row_limit = b_left(b, &a->qc, i0)};
  x.offset = k_spread(k, offset, a->qc.size, a->kc.size);
  x.col_limit = b_left(b, &a->kc, j0);
  k_store_add(k, g, x);
}

void cg_build_attention_grad_bias(bld *b) {
  ir_op *op = b->op;
  ir_value *out = op->out[0];
  att a;
  if (!att_open(&a, b, op->in[3], op->in[4], op->in[5], 6)) return;
  a.lse_value = op->in[2];
  int masks = (int)ir_attr_int(op, "ncap_mask", 0);
  int arg = 4 + (int)ir_attr_int(op, "capture", 0) - masks;
  if (!a.bias || arg < 4) {
    b_fail(b, "attention_grad_bias of a capture that the bias does not read");
    return;
  }
  int at[64], n = ir_scalar_ats(a.bias, arg, at, 64);
  if (n > 64) {
    b_fail(b, "a bias that reads one tensor in more than 64 places");
    return;
  }
  int delta = build_delta(&a);
  if (b->why) return;
  att_begin(&a, "attention_dbias");
  use_inputs(&a, delta);
  cg_tensor y = b_update(b, out);
  if (!att_ready(&a)) return;
  k_kernel *k = b->k;
  // Owners: heads when every read is at exactly h, else samples when at exactly b, else one cell.
  int64_t heads = a.kv * a.rep;
  int dim_h = n ? owned_dim(a.bias, at, n, 1) : -1,
      dim_b = n && dim_h < 0 ? owned_dim(a.bias, at, n, 0) : -1;
  if (dim_h >= 0 && out->type.dim[dim_h]->size != heads) dim_h = -1;
  if (dim_b >= 0 && out->type.dim[dim_b]->size != a.batch_n) dim_b = -1;
  int64_t owners = dim_h >= 0 ? heads : dim_b >= 0 ? a.batch_n : 1;
  k_value *own = k_grid(k, owners);
  if (out->type.rank > 0) clear_owned(b, &y, out, dim_h >= 0 ? dim_h : dim_b, own);
  int64_t nb = dim_b >= 0 ? 1 : a.batch_n, nh = dim_h >= 0 ? 1 : heads;
  int64_t tiles = a.qc.count * a.kc.count;
  bool scalar = out->type.rank == 0;
  k_value *sum = k_const(k, K_F32, 0);
  k_stmt *loop =
      k_for(k, k_int(k, 0), k_int(k, n || scalar ? nb * nh * tiles : 0), 1, &sum, scalar);
  k_value *index = loop->body[0]->args.at[0];
  k_value *j0 = k_muli(k, k_modi(k, index, a.kc.count), a.kc.size);
  k_value *i0 = k_muli(k, k_modi(k, k_divi(k, index, a.kc.count), a.qc.count), a.qc.size);
  k_value *rest = k_divi(k, index, tiles);
  k_value *h = dim_h >= 0 ? own : k_modi(k, rest, nh), *bi = dim_b >= 0 ? own : k_divi(k, rest, nh);
  att_cell(&a, bi, k_divi(k, h, a.rep), k_modi(k, h, a.rep));
  k_value *some, *all, *p, *ds;
  att_case(&a, i0, j0, &some, &all);
  k_stmt *st;
  bool cased = open_case(&a, some, &st);
  grad_tile t;
  load_queries(&a, &t, i0);
  load_keys(&a, &t, j0);
  probabilities(&a, &t, i0, j0, all, &p, &ds);
  for (int i = 0; i < n; i++) add_at(&a, &y, out, at[i], i0, j0, ds);
  k_value *carry = scalar ? loop->body[0]->args.at[1] : NULL, *next = NULL;
  if (scalar) next = k_add(k, carry, scalar_sum(&a, arg, i0, j0, ds));
  if (cased) close_case(&a, st, &next, &carry, scalar);
  k_end_for(k, loop, &next);
  if (scalar) b_store(b, &y, loop->out[0], (k_access){0});
  double pairs = (double)(a.batch_n * heads) * (double)a.s * (double)a.t;
  k->flops = pairs * (2.0 * (double)a.d + 2.0 * (double)a.v + 20);
  b_end(b);
}
