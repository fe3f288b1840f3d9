// einsum of one or two operands.
//
// codegen/product.h says what a product is: batch, m, n and k axes with one stride per tensor. A
// cell computes a tile [m, n]; it walks k in tiles, first k tile to last (the order depends on the
// shape alone):
//
//   acc = 0; for k0: acc = dot(acc, A[m, k0..], B[k0.., n]); store f(acc, ...)
//
// f is the function the op may carry (ir_epilogue): its results and further operands are tensors
// with the letters of the result.
// Operand tiles are loaded along their finer axis and the dot is told which way they lie. With a
// single row or few (decoding), a dot would turn the weights for nothing: there the product is
// elementwise and the sum a reduction over the finer axis.
#include "codegen/product.h"
#include "ir/rule.h"

// An operand's tile: loaded along k or along the other axis, whichever is finer.
typedef struct tile {
  k_value *v;
  bool k_last;  // columns run along k
} tile;

static tile load_tile(bld *b, const cg_tensor *t, k_value *base, const b_cut *own, k_value *start,
                      k_value *left, int64_t own_stride, const b_cut *kc, k_value *k0,
                      int64_t k_stride) {
  k_kernel *k = b->k;
  bool k_last = k_stride <= own_stride && k_stride != 0 ? true : own_stride == 0;
  k_access x = {
      .base = k_add(k, base, k_add(k, k_muli(k, start, own_stride), k_muli(k, k0, k_stride)))};
  int rows = k_last ? own->size : kc->size, cols = k_last ? kc->size : own->size;
  x.row_stride = k_last ? own_stride : k_stride;
  x.col_stride = k_last ? k_stride : own_stride;
  k_value *left_k = b_left(b, kc, k0);
  x.row_limit = k_last ? left : left_k;
  x.col_limit = k_last ? left_k : left;
  k_value *v = k_const(k, K_F32, t->number);
  if (!t->is_const) {
    x.buffer = t->buffer;
    x.base = k_add(k, t->base, x.base);
    v = k_cast(k, k_load(k, rows, cols, x), K_F32);
  }
  return (tile){k_stage(k, k_spread(k, v, rows, cols)), k_last};
}

// What stays the same while a cell walks k.
typedef struct cell {
  const b_axes *m, *n, *k;  // the axes that are tiled
  b_cut cm, cn, ck;
  k_value *m0, *n0, *left_m, *left_n;
  k_value *base[MAX_TENSORS];
} cell;

// Tiles of m, n and k. The host packs a tile of b once and runs all rows of a through it, so many
// rows pay for the packing; many k pay for moving the sums in and out of registers. A panel of b
// (96 KiB of f32) stays within a core's second-level cache; rows of a that run along k stream
// through it, others (across_k) are packed too and should fit. Measured on a Zen 4, one thread,
// GPT-2's products: 128x128x128 is 92 GFLOP/s of 117, 256x128x768 106 - 109, 512x128x768 108 - 112.
// Pairs of bf16 are made of both operands across k: then more columns pay for the first one.
// Products with few tiles are cut finer, so that a few threads have equal work.
static void choose_tiles(const bld *b, const product *p, const b_axes *m, const b_axes *n,
                         const b_axes *k, cell *c) {
  const cg_limits *limit = b->limit;
  if (limit->powers) {
    // One size, so that there are few functions.
    c->cm = b_cut_tile(b, m->size[0], limit->dot_m, 8);
    c->cn = b_cut_tile(b, n->size[0], limit->dot_n, 16);
    c->ck = b_cut_tile(b, k->size[0], limit->dot_k, 16);
    return;
  }
  int64_t others = b_product(&p->batch) * b_product(&p->m) * b_product(&p->n);
  bool across_k = m->stride[A][0] < k->stride[A][0];
  bool pairs = p->round == DT_bf16;
  int tm = across_k || skips(b->skip, SKIP_tall) ? limit->dot_m / 2 : limit->dot_m;
  int tn = across_k && pairs && !skips(b->skip, SKIP_broad) ? 2 * limit->dot_n : limit->dot_n;
  while (tm > 32 &&
         others * ((m->size[0] + tm - 1) / tm) * ((n->size[0] + tn - 1) / tn) < limit->cells) {
    if (tm > 256 || tn == 64) {
      tm /= 2;
    } else {
      tn /= 2;
    }
  }
  c->cm = b_cut_even(m->size[0], tm, 8);
  c->cn = b_cut_even(n->size[0], tn, 16);
  c->ck = b_cut_even(k->size[0], limit->dot_k, 16);
}

// Elements of an operand as f32, rounded where they are not of that type already.
static k_value *rounded(bld *b, const product *p, int t, k_value *v) {
  return p->t[t].dtype == p->round ? v : k_round(b->k, v, p->round);
}

// Stores f of a tile of sums. `at[t]` is where the tile begins in tensor t; `rows` and `cols` are
// its axes, of which `rows` may be NULL (a row) and the tile may be turned ([cols, rows]).
static void finish(bld *b, const product *p, k_value *acc, k_value *const *at, const b_axes *rows,
                   const b_axes *cols, k_access limits) {
  ir_op *op = b->op;
  k_kernel *k = b->k;
  k_value *result[MAX_TENSORS] = {acc};
  k_access x[MAX_TENSORS];
  for (int t = O; t < p->tensors; t++) {
    x[t] = limits;
    x[t].base = at[t];
    x[t].row_stride = rows ? rows->stride[t][0] : 0;
    x[t].col_stride = cols ? cols->stride[t][0] : 0;
  }
  // A summand has a limit of its own, which is 0 where it does not count.
  for (int i = 0; i < p->summands; i++) {
    k_access *a = &x[p->summand[i]];
    bool by_rows = a->row_limit || !a->col_limit;
    k_value **limit = by_rows ? &a->row_limit : &a->col_limit, *all = *limit;
    int64_t *stride = by_rows ? &a->row_stride : &a->col_stride;
    if (!all) all = k_int(k, acc->rows);
    *limit = k_mul(k, all, b_present(b, p->kind[i]));
    if (*stride == 0) *stride = 1;  // of a single one: any, so that the limit holds
    a->fill = b_no_summand(b);
  }
  if (!op->nregions && !ir_accumulates(op) && !p->made) {
    // The store itself, so that a dot may write its sums there.
    x[O].buffer = p->t[O].buffer;
    x[O].base = k_add(k, p->t[O].base, at[O]);
    k_store(k, acc, x[O]);
    return;
  }
  int given = p->tensors - p->made;
  k_value *operand[MAX_TENSORS];
  for (int t = O + p->results; t < p->tensors; t++)
    operand[t] = b_load(b, &p->t[t], acc->rows, acc->cols, x[t]);
  if (op->nregions) {
    b_env *e = b_env_new(b);
    ir_region *r = op->region[0];
    b_bind(e, r->args.at[0], k_round(k, acc, r->args.at[0]->type.dtype));
    for (int t = O + p->results; t < given; t++)
      b_bind(e, r->args.at[1 + t - O - p->results], operand[t]);
    b_region(e, r, result);
  }
  for (int t = given; t < p->tensors; t++) result[0] = k_add(k, operand[t], result[0]);
  for (int i = 0; i < p->results; i++) {
    k_value *v = k_spread(k, result[i], acc->rows, acc->cols);
    if (ir_accumulates(op) && !p->made) {
      k_value *old = b_load(b, &p->t[O + i], acc->rows, acc->cols, x[O + i]);
      k_value *first = k_scalar(k, IR_eq, k_call(k, K_MICRO), k_int(k, 0), NULL);
      v = k_where(k, first, k_round(k, v, p->t[O + i].dtype), k_add(k, old, v));
    }
    b_store(b, &p->t[O + i], v, x[O + i]);
  }
}

// What few-rows products share: a cell's place in the outer axes and where each tensor begins
// there.
static void thin_cell(bld *b, product *p, k_value **base) {
  k_kernel *k = b->k;
  b_axes outer = p->batch;
  b_axes *rest[] = {&p->m, &p->n};
  for (int i = 0; i < 2; i++)
    for (int a = 0; a < rest[i]->n; a++) {
      for (int t = 0; t < p->tensors; t++) outer.stride[t][outer.n] = rest[i]->stride[t][a];
      outer.size[outer.n++] = rest[i]->size[a];
    }
  k_value *coord[B_MAX_AXES];
  b_coordinates(b, &outer, k_grid(k, b_product(&outer)), coord);
  for (int t = 0; t < p->tensors; t++) base[t] = b_at(b, &outer, t, coord);
}

// A row of weights that is summed along itself is cut into pieces of at most so many elements.
#define PIECE 768

static int64_t pieces_of(int64_t n) {
  for (int64_t s = (n + PIECE - 1) / PIECE; s <= n / 64; s++)
    if (n % s == 0 && n / s % 16 == 0) return s;
  return 1;
}

// The few-rows product with weights that are fine along k, as a matrix-vector product reads memory
// best: a cell goes through its rows of weights from first to last, each from left to right. A row
// is a tile [pieces, piece], so that sums of a long row do not wait for each other. Where a row of
// a is long too, it falls out of the first-level cache while weights stream through: then two rows
// of weights share a pass over it, far apart, so that both streams go on from row to row.
static void build_thin_rows(bld *b, product *p, const b_axes *m, const b_axes *n,
                            const b_axes *kx) {
  k_kernel *k = b->k;
  enum { ROWS = 8, LONG = 1024, MOST = 4, FAR = 2 };  // rows a cell; elements; rows of a; streams
  int rows = (int)m->size[0], far = kx->size[0] > LONG && n->size[0] % (FAR * ROWS) == 0 ? FAR : 1;
  int pieces = (int)pieces_of(kx->size[0]), piece = (int)(kx->size[0] / pieces);
  int64_t apart = n->size[0] / far;
  b_cut cn = b_cut_even(apart, ROWS, 1);
  k_value *base[MAX_TENSORS];
  thin_cell(b, p, base);
  k_value *n0 = k_muli(k, b_grid(b, &cn), cn.size), *left = b_left(b, &cn, n0);
  k_value *end = left ? k_min(k, left, k_int(k, cn.size)) : k_int(k, cn.size);
  b_loop l = b_loop_begin(b, k_int(k, 0), end, 1, cn.size, NULL, 0);
  k_value *xt[MOST], *wt[FAR], *row[FAR], *sum[FAR][MOST];
  for (int i = 0; i < rows; i++) {
    k_access x = {.buffer = p->t[A].buffer,
                  .base = k_add(k, p->t[A].base, k_addi(k, base[A], i * m->stride[A][0])),
                  .row_stride = piece * kx->stride[A][0],
                  .col_stride = kx->stride[A][0]};
    xt[i] = rounded(b, p, A, k_load(k, pieces, piece, x));
  }
  for (int f = 0; f < far; f++) {
    row[f] = k_add(k, k_addi(k, n0, f * apart), l.i);
    k_access w = {.base = k_add(k, base[B], k_muli(k, row[f], n->stride[B][0])),
                  .row_stride = piece * kx->stride[B][0],
                  .col_stride = kx->stride[B][0]};
    wt[f] = b_load(b, &p->t[B], pieces, piece, w);
    wt[f] = k_spread(k, rounded(b, p, B, wt[f]), pieces, piece);
  }
  for (int f = 0; f < far; f++)
    for (int i = 0; i < rows; i++) sum[f][i] = k_reduce(k, IR_add, k_mul(k, wt[f], xt[i]), 1);
  for (int f = 0; f < far; f++)
    for (int i = 0; i < rows; i++) {
      k_value *at[MAX_TENSORS];
      for (int t = O; t < p->tensors; t++)
        at[t] =
            k_add(k, k_addi(k, base[t], i * m->stride[t][0]), k_muli(k, row[f], n->stride[t][0]));
      finish(b, p, k_reduce(k, IR_add, sum[f][i], 0), at, NULL, NULL, (k_access){0});
    }
  b_loop_end(b, &l, NULL);
}

// The few-rows product of any other layout: out[m, n] = sum_k a[m, k] b[n, k].
static void build_thin(bld *b, product *p, const b_axes *m, const b_axes *n, const b_axes *kx) {
  k_kernel *k = b->k;
  bool along_k = kx->stride[B][0] <= n->stride[B][0];  // are the weights fine along k?
  int own = b->limit->powers ? 4 : 8, most = b->limit->powers ? 1024 : 2048;
  b_cut cn = b_cut_tile(b, n->size[0], along_k ? own : 128, along_k ? 1 : 16);
  b_cut ck = b_cut_tile(b, kx->size[0], along_k ? most : 64, 16);
  k_value *base[MAX_TENSORS], *coord[B_MAX_AXES];
  thin_cell(b, p, base);
  k_value *n0 = k_muli(k, b_grid(b, &cn), cn.size);
  k_value *left_n = b_left(b, &cn, n0);
  int rows = (int)m->size[0];
  k_value *sum[4];
  for (int i = 0; i < rows; i++)
    sum[i] = along_k ? k_full(k, K_F32, cn.size, 1, 0) : k_full(k, K_F32, 1, cn.size, 0);
  int64_t chunks = b_product(&p->k) * ck.count;
  b_loop l =
      b_loop_begin(b, k_int(k, 0), k_int(k, chunks), 1, b->limit->powers ? 0 : chunks, sum, rows);
  k_value *k0 = b_start(b, &ck, l.i);
  b_coordinates(b, &p->k, k_divi(k, l.i, ck.count), coord);
  k_value *left_k = b_left(b, &ck, k0);
  int wr = along_k ? cn.size : ck.size, wc = along_k ? ck.size : cn.size;
  // The few rows first and spread over the tile: everything is one pass over the weights, which are
  // used where they are loaded.
  k_value *xt[4], *next[4];
  for (int i = 0; i < rows; i++) {
    k_access x = {
        .buffer = p->t[A].buffer,
        .base = k_add(k, k_add(k, base[A], b_at(b, &p->k, A, coord)),
                      k_add(k, k_int(k, i * m->stride[A][0]), k_muli(k, k0, kx->stride[A][0])))};
    x.base = k_add(k, p->t[A].base, x.base);
    *(along_k ? &x.col_stride : &x.row_stride) = kx->stride[A][0];
    *(along_k ? &x.col_limit : &x.row_limit) = left_k;
    xt[i] = rounded(b, p, A, k_load(k, wr, wc, x));
  }
  k_access w = {
      .base = k_add(k, k_add(k, base[B], b_at(b, &p->k, B, coord)),
                    k_add(k, k_muli(k, n0, n->stride[B][0]), k_muli(k, k0, kx->stride[B][0])))};
  w.row_stride = along_k ? n->stride[B][0] : kx->stride[B][0];
  w.col_stride = along_k ? kx->stride[B][0] : n->stride[B][0];
  w.row_limit = along_k ? left_n : left_k;
  w.col_limit = along_k ? left_k : left_n;
  k_value *wt = k_spread(k, rounded(b, p, B, b_load(b, &p->t[B], wr, wc, w)), wr, wc);
  for (int i = 0; i < rows; i++)
    next[i] = k_add(k, l.carry[i], k_reduce(k, IR_add, k_mul(k, wt, xt[i]), along_k));
  b_loop_end(b, &l, next);
  for (int i = 0; i < rows; i++) {
    k_value *at[MAX_TENSORS];
    for (int t = O; t < p->tensors; t++)
      at[t] = k_add(k, k_add(k, base[t], k_int(k, i * m->stride[t][0])),
                    k_muli(k, n0, n->stride[t][0]));
    k_access limits = {0};
    *(along_k ? &limits.row_limit : &limits.col_limit) = left_n;
    finish(b, p, l.carry[i], at, along_k ? n : NULL, along_k ? NULL : n, limits);
  }
}

// The next sums: those of k tile number i added to acc.
static k_value *multiply(bld *b, const product *p, const cell *c, k_value *acc, k_value *i) {
  k_kernel *k = b->k;
  k_value *coord[B_MAX_AXES], *k0 = b_start(b, &c->ck, i);
  b_coordinates(b, &p->k, k_divi(k, i, c->ck.count), coord);
  k_value *at[2];
  for (int t = A; t <= B; t++) at[t] = k_add(k, c->base[t], b_at(b, &p->k, t, coord));
  tile x = load_tile(b, &p->t[A], at[A], &c->cm, c->m0, c->left_m, c->m->stride[A][0], &c->ck, k0,
                     c->k->stride[A][0]);
  tile w = load_tile(b, &p->t[B], at[B], &c->cn, c->n0, c->left_n, c->n->stride[B][0], &c->ck, k0,
                     c->k->stride[B][0]);
  return k_dot_rounded(k, p->round, acc, x.v, w.v, !x.k_last, w.k_last);
}

// Where the sums of a cell start: at 0, or in the operand that says so.
static k_value *start_of(bld *b, const product *p, const cell *c, k_access limits) {
  k_kernel *k = b->k;
  if (ir_base(b->op) < 0) return k_full(k, K_F32, c->cm.size, c->cn.size, 0);
  int t = O + p->results;  // the only further operand
  limits.base = c->base[t];
  limits.row_stride = c->m->stride[t][0];
  limits.col_stride = c->n->stride[t][0];
  return k_spread(k, b_load(b, &p->t[t], c->cm.size, c->cn.size, limits), c->cm.size, c->cn.size);
}

// The last k tile is outside of the loop, so that its dot can store what it computes.
static void build_tiled(bld *b, const product *p, cell c) {
  k_kernel *k = b->k;
  const b_axes *m = c.m, *n = c.n;
  k_value *batch = k_grid(k, b_product(&p->batch));
  k_value *om = b_grid_of(b, b_product(&p->m) * c.cm.count),
          *on = b_grid_of(b, b_product(&p->n) * c.cn.count);
  c.m0 = b_start(b, &c.cm, om);
  c.n0 = b_start(b, &c.cn, on);
  c.left_m = b_left(b, &c.cm, c.m0), c.left_n = b_left(b, &c.cn, c.n0);
  k_value *coord[B_MAX_AXES];
  b_coordinates(b, &p->batch, batch, coord);
  for (int t = 0; t < p->tensors; t++) c.base[t] = b_at(b, &p->batch, t, coord);
  b_coordinates(b, &p->m, k_divi(k, om, c.cm.count), coord);
  for (int t = 0; t < p->tensors; t++)
    if (t != B) c.base[t] = k_add(k, c.base[t], b_at(b, &p->m, t, coord));
  b_coordinates(b, &p->n, k_divi(k, on, c.cn.count), coord);
  for (int t = 0; t < p->tensors; t++)
    if (t != A) c.base[t] = k_add(k, c.base[t], b_at(b, &p->n, t, coord));
  for (int t = O; t < p->tensors; t++)
    c.base[t] = k_add(k, c.base[t],
                      k_add(k, k_muli(k, c.m0, m->stride[t][0]), k_muli(k, c.n0, n->stride[t][0])));

  k_access limits = {.row_limit = c.left_m, .col_limit = c.left_n};
  k_value *sum = start_of(b, p, &c, limits);
  int64_t chunks = b_product(&p->k) * c.ck.count;
  if (b->limit->powers) {
    // No dot stores by itself there: all tiles go through one loop.
    b_loop l = b_loop_begin(b, k_int(k, 0), b_number(b, chunks), 1, 0, &sum, 1);
    k_value *next = multiply(b, p, &c, l.carry[0], l.i);
    b_loop_end(b, &l, &next);
    finish(b, p, l.carry[0], c.base, m, n, limits);
    return;
  }
  if (chunks > 1) {
    b_loop l = b_loop_begin(b, k_int(k, 0), k_int(k, chunks - 1), 1, chunks - 1, &sum, 1);
    k_value *next = multiply(b, p, &c, l.carry[0], l.i);
    b_loop_end(b, &l, &next);
    sum = l.carry[0];
  }
  finish(b, p, multiply(b, p, &c, sum, k_int(k, chunks - 1)), c.base, m, n, limits);
}

static bool is_number(ir_value *v) {
  const ir_op *def = ir_view_of(v).root->def;
  return def && def->code == IR_const;
}

// A launch that rounds an operand into scratch of its own, in the order in which it lies; returns
// the scratch, or -1 where that is of no use: each cell would round (and pack) its part anew, so it
// pays when a few cells read the same part. own: the axes of the operand's m (or n), k those of k,
// all of them then with the scratch's strides.
static int round_operand(bld *b, product *p, int t, b_axes *const *axes, int64_t readers,
                         int64_t *elements) {
  if (is_number(p->value[t]) || skips(b->skip, SKIP_preround)) return -1;
  if (p->round == DT_f32 || p->value[t]->type.dtype != DT_f32 || readers < 3) return -1;
  enum { TO, FROM };  // tensors of `all`: the scratch, the operand
  b_axes all = {.tensors = 2};
  int64_t *back[5 * B_MAX_AXES];
  for (int i = 0; axes[i]; i++)
    for (int a = 0; a < axes[i]->n; a++) {
      if (!axes[i]->stride[t][a] || axes[i]->size[a] == 1) continue;
      if (all.n == B_MAX_AXES) return -1;
      int at = all.n++;  // by stride, the finest last
      for (; at > 0 && all.stride[FROM][at - 1] < axes[i]->stride[t][a]; at--) {
        all.size[at] = all.size[at - 1], all.stride[FROM][at] = all.stride[FROM][at - 1];
        back[at] = back[at - 1];
      }
      all.size[at] = axes[i]->size[a], all.stride[FROM][at] = axes[i]->stride[t][a];
      back[at] = &axes[i]->stride[t][a];
    }
  if (all.n == 0 || all.stride[FROM][all.n - 1] != 1) return -1;
  *elements = 1;
  for (int a = all.n - 1; a >= 0; a--) {
    all.stride[TO][a] = *elements;
    *back[a] = *elements;
    *elements *= all.size[a];
  }
  b_collapse(&all);
  int scratch = b_new_scratch(b, p->round, *elements);
  b_begin(b, "round_%lld", (long long)*elements);
  cg_tensor y = b_scratch(b, scratch, p->round, *elements, K_WRITE), x = b_read(b, p->value[t]);
  b_copy_axes(b, &y, &x, &all);
  b_end(b);
  return scratch;
}

// The tensor of a region's argument that is an operand in the shape of the result; 0: it is none.
static int full_operand(const product *p, const ir_region *r, const ir_value *v,
                        const ir_value *out) {
  for (int t = O + 1; t < p->tensors; t++)
    if (v == r->args.at[t - O] && p->value[t]->type.dtype == DT_f32 &&
        ir_elements(&p->value[t]->type) == ir_elements(&out->type))
      return t;
  return 0;
}

// On a GPU a product that adds to its sums only, a bias or nothing, may add two things in the shape
// of its result behind that: residuals, what earlier micro-batches gave, or nothing again. That is
// one function, which reads nothing where there is nothing to add, as for the first micro-batch.
static void find_summands(const bld *b, product *p) {
  const ir_op *op = b->op;
  const ir_value *out = op->out[0];
  if (!b->limit->powers || p->results != 1 || ir_base(op) >= 0 || out->type.dtype != DT_f32 ||
      p->tensors + MOST_SUMMANDS > MAX_TENSORS)
    return;
  const ir_region *r = op->nregions ? op->region[0] : NULL;
  for (int i = 0; r && i < r->ops.n; i++)
    if (r->ops.at[i]->code != IR_add) return;
  // From the last addition back.
  const ir_op *last = r && !ir_accumulates(op) ? r->yield.at[0]->def : NULL;
  while (last && p->summands < MOST_SUMMANDS) {
    int i = full_operand(p, r, last->in[0], out) ? 0 : 1, t = full_operand(p, r, last->in[i], out);
    if (!t) break;
    p->summand[1] = p->summand[0], p->kind[1] = p->kind[0];
    p->summand[0] = t, p->kind[0] = B_PRESENT;
    p->summands++;
    last = last->in[1 - i]->def;
  }
  while (p->summands < MOST_SUMMANDS) {
    int t = p->tensors++, i = p->summands++;
    p->made++;
    p->summand[i] = t;
    p->kind[i] = ir_accumulates(op) && i == 0 ? B_OLD : B_ABSENT;
    p->value[t] = op->out[0];
    b_axes *axes[] = {&p->batch, &p->m, &p->n, &p->k};
    for (int x = 0; x < 4; x++) {
      axes[x]->tensors = p->tensors;
      for (int a = 0; a < axes[x]->n; a++) axes[x]->stride[t][a] = axes[x]->stride[O][a];
    }
  }
}

// One operand: a sum over the letters that the result lacks.
static void build_single(bld *b, product *p) {
  b_axes keep = {.tensors = 2}, over = {.tensors = 1};
  for (int a = 0; a < p->m.n; a++) {
    keep.size[keep.n] = p->m.size[a];
    keep.stride[0][keep.n] = p->m.stride[A][a];
    keep.stride[1][keep.n++] = p->m.stride[O][a];
  }
  for (int a = 0; a < p->k.n; a++) {
    over.size[over.n] = p->k.size[a];
    over.stride[0][over.n++] = p->k.stride[A][a];
  }
  b_reduce_kernels(b, IR_sum, b->op->in[0], NULL, b->op->out[0], keep, over);
}

void cg_build_matmul(bld *b) {
  ir_op *op = b->op;
  product p;
  const char *why = product_of(op, &p);
  if (why) {
    b_fail(b, "%s", why);
    return;
  }
  if (op->nin == 1) {
    build_single(b, &p);
    return;
  }
  prog_gemm g;
  if (cg_library_name(b->cg) && product_gemm(&p, op, &g)) {
    product_build_gemm(b, &p, &g);
    return;
  }
  find_summands(b, &p);
  b_axes m = product_axis(&p.m, -1), n = product_axis(&p.n, O), kx = product_axis(&p.k, -1);
  bool thin = ir_base(op) < 0 && m.size[0] <= PRODUCT_FEW && n.size[0] >= 16 &&
              !is_number(p.value[A]) && !is_number(p.value[B]);
  cell c = {.m = &m, .n = &n, .k = &kx};
  int scratch[2] = {-1, -1};
  int64_t elements[2];
  if (!thin) {
    choose_tiles(b, &p, &m, &n, &kx, &c);
    b_axes *of_a[] = {&p.batch, &p.m, &m, &p.k, &kx, NULL};
    b_axes *of_b[] = {&p.batch, &p.n, &n, &p.k, &kx, NULL};
    scratch[A] = round_operand(b, &p, A, of_a, b_product(&p.n) * c.cn.count, &elements[A]);
    scratch[B] = round_operand(b, &p, B, of_b, b_product(&p.m) * c.cm.count, &elements[B]);
  }
  b_begin(b, "%s_%lldx%lldx%lld", thin ? "matvec" : "matmul", (long long)m.size[0],
          (long long)n.size[0], (long long)kx.size[0]);
  for (int t = A; t <= B; t++)
    p.t[t] = scratch[t] < 0 ? b_read(b, p.value[t])
                            : b_scratch(b, scratch[t], p.round, elements[t], K_READ);
  int given = p.tensors - p.made;
  for (int t = O; t < given; t++)
    p.t[t] = t >= O + p.results              ? b_read(b, p.value[t])
             : ir_accumulates(op) && !p.made ? b_update(b, p.value[t])
                                             : b_write(b, p.value[t]);
  for (int i = p.summands - p.made; i < p.summands; i++)
    p.t[p.summand[i]] =
        p.kind[i] == B_OLD ? b_old(b, &p.t[O], op->out[0]) : b_absent(b, op->out[0]);
  if (thin && !b->limit->powers && p.k.n == 0 && kx.stride[B][0] <= n.stride[B][0]) {
    build_thin_rows(b, &p, &m, &n, &kx);
  } else if (thin) {
    build_thin(b, &p, &m, &n, &kx);
  } else {
    build_tiled(b, &p, c);
  }
  b->k->flops = p.flops;
  for (int t = 0; t < given; t++) b->k->bytes += (double)ir_bytes(&p.value[t]->type);
  b_end(b);
}
