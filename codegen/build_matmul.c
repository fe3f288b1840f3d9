// einsum of one or two operands.
//
// The letters of the spec fall into four classes: batch (in both operands and the result), m (first
// and result), n (second and result), k (summed). Each class is a list of axes with one stride per
// tensor, so transposed, split and broadcast operands are nothing special. A cell computes a tile
// [m, n]; it walks k in tiles, first k tile to last (the order depends on the shape alone):
//
//   acc = 0; for k0: acc = dot(acc, A[m, k0..], B[k0.., n]); store acc
//
// Operand tiles are loaded along their finer axis and the dot is told which way they lie. With a
// single row or few (decoding), a dot would turn the weights for nothing: there the product is
// elementwise and the sum a reduction over the finer axis.
#include <ctype.h>
#include <string.h>

#include "codegen/build_impl.h"

enum { A, B, O };  // tensors of the axes

typedef struct product {
  b_axes batch, m, n, k;
  cg_tensor t[3];
} product;

#define MAX_LETTERS 24

typedef struct spec {
  int n;
  const char *word[MAX_LETTERS];
  int length[MAX_LETTERS];
  int nin;
  int dims[3][IR_MAX_RANK], rank[3];  // word of each dimension; 2 is the result
} spec;

static int word_of(spec *s, const char *at, int length) {
  for (int i = 0; i < s->n; i++)
    if (s->length[i] == length && strncmp(s->word[i], at, (size_t)length) == 0) return i;
  IR_CHECK(s->n < MAX_LETTERS);
  s->word[s->n] = at;
  s->length[s->n] = length;
  return s->n++;
}

// "b s k, n k -> b s n"; the rule syntax with `;` is accepted too.
static spec parse_spec(const char *text) {
  spec s = {.nin = 1};
  int side = 0;
  for (const char *p = text; *p;) {
    if (*p == ',' || *p == ';') {
      side = 1;
      s.nin = 2;
      p++;
    } else if (p[0] == '-' && p[1] == '>') {
      side = 2;
      p += 2;
    } else if (isspace((unsigned char)*p)) {
      p++;
    } else {
      int n = 0;
      while (p[n] && !isspace((unsigned char)p[n]) && p[n] != ',' && p[n] != ';' &&
             !(p[n] == '-' && p[n + 1] == '>'))
        n++;
      IR_CHECK(s.rank[side] < IR_MAX_RANK);
      s.dims[side][s.rank[side]++] = word_of(&s, p, n);
      p += n;
    }
  }
  return s;
}

// The axes of one word in all tensors; a word twice in one operand walks its diagonal.
static bool word_axes(b_axes *to, const spec *s, int word, const ir_view *const *view) {
  b_axes x = {.tensors = 3};
  b_part part[3] = {0};
  for (int i = 0; i < 3; i++)
    for (int d = 0; d < s->rank[i]; d++)
      if (s->dims[i][d] == word && view[i])
        part[i] = (b_part){view[i], view[i]->dim_first[d], view[i]->dim_first[d + 1]};
  if (!b_align(&x, part, 3)) return false;
  for (int i = 0; i < 3; i++) {
    bool first = true;
    for (int d = s->rank[i] - 1; d >= 0; d--) {
      if (s->dims[i][d] != word || !view[i]) continue;
      if (!first) {
        b_axes again = {.tensors = 1};
        b_part more = {view[i], view[i]->dim_first[d], view[i]->dim_first[d + 1]};
        if (!b_align(&again, &more, 1) || again.n != x.n) return false;
        for (int a = 0; a < x.n; a++) x.stride[i][a] += again.stride[0][a];
      }
      first = false;
    }
  }
  IR_CHECK(to->n + x.n <= B_MAX_AXES);
  for (int a = 0; a < x.n; a++) {
    for (int i = 0; i < 3; i++) to->stride[i][to->n] = x.stride[i][a];
    to->size[to->n++] = x.size[a];
  }
  return true;
}

static bool in_side(const spec *s, int side, int word) {
  for (int d = 0; d < s->rank[side]; d++)
    if (s->dims[side][d] == word) return true;
  return false;
}

// Words in the order of the result, then those summed in the order of the first operand: the order
// in which neighbouring axes can merge.
static bool classify(product *p, const spec *s, const ir_view *const *view) {
  b_axes *all[] = {&p->batch, &p->m, &p->n, &p->k};
  for (int i = 0; i < 4; i++) all[i]->tensors = 3;
  bool done[MAX_LETTERS] = {0};
  for (int turn = 0; turn < 3; turn++) {
    int side = turn == 0 ? 2 : turn - 1;
    for (int d = 0; d < s->rank[side]; d++) {
      int w = s->dims[side][d];
      if (done[w]) continue;
      done[w] = true;
      bool a = in_side(s, 0, w), b = s->nin > 1 && in_side(s, 1, w), o = in_side(s, 2, w);
      if (!word_axes(!o ? &p->k : a && b ? &p->batch : a ? &p->m : &p->n, s, w, view)) return false;
    }
  }
  for (int i = 0; i < 4; i++) b_collapse(all[i]);
  return true;
}

// The columns of the result should be the axis that is fine in its storage.
static void swap_operands(product *p) {
  int64_t best_m = INT64_MAX, best_n = INT64_MAX;
  for (int a = 0; a < p->m.n; a++)
    if (p->m.stride[O][a] < best_m) best_m = p->m.stride[O][a];
  for (int a = 0; a < p->n.n; a++)
    if (p->n.stride[O][a] < best_n) best_n = p->n.stride[O][a];
  if (best_n <= best_m) return;
  b_axes m = p->m;
  p->m = p->n;
  p->n = m;
  b_axes *all[] = {&p->batch, &p->m, &p->n, &p->k};
  for (int i = 0; i < 4; i++)
    for (int a = 0; a < all[i]->n; a++) {
      int64_t s = all[i]->stride[A][a];
      all[i]->stride[A][a] = all[i]->stride[B][a];
      all[i]->stride[B][a] = s;
    }
  cg_tensor t = p->t[A];
  p->t[A] = p->t[B];
  p->t[B] = t;
}

// Takes the axis to tile out of x: the finest of tensor t for columns, the longest otherwise.
static b_axes take_axis(b_axes *x, int finest_of) {
  b_axes one = {.n = 1, .tensors = 3, .size = {1}};
  int best = -1;
  for (int a = 0; a < x->n; a++) {
    bool better = best < 0;
    if (!better && finest_of >= 0) better = x->stride[finest_of][a] < x->stride[finest_of][best];
    if (!better && finest_of < 0) better = x->size[a] > x->size[best];
    if (better) best = a;
  }
  if (best < 0) return one;
  one.size[0] = x->size[best];
  for (int t = 0; t < 3; t++) one.stride[t][0] = x->stride[t][best];
  b_drop(x, best);
  return one;
}

// An operand's tile: loaded along k or along the other axis, whichever is finer.
typedef struct tile {
  k_value *v;
  bool k_last;  // columns run along k
} tile;

static tile load_tile(bld *b, const cg_tensor *t, k_value *base, const b_cut *own, k_value *start,
                      int64_t own_stride, const b_cut *kc, k_value *k0, int64_t k_stride) {
  k_kernel *k = b->k;
  bool k_last = k_stride <= own_stride && k_stride != 0 ? true : own_stride == 0;
  k_access x = {
      .base = k_add(k, base, k_add(k, k_muli(k, start, own_stride), k_muli(k, k0, k_stride)))};
  int rows = k_last ? own->size : kc->size, cols = k_last ? kc->size : own->size;
  x.row_stride = k_last ? own_stride : k_stride;
  x.col_stride = k_last ? k_stride : own_stride;
  x.row_limit = k_last ? b_left(b, own, start) : b_left(b, kc, k0);
  x.col_limit = k_last ? b_left(b, kc, k0) : b_left(b, own, start);
  k_value *v = k_const(k, K_F32, t->number);
  if (!t->is_const) {
    x.buffer = t->buffer;
    x.base = k_add(k, t->base, x.base);
    v = k_cast(k, k_load(k, rows, cols, x), K_F32);
  }
  return (tile){k_stage(k, k_spread(k, v, rows, cols)), k_last};
}

// Tiles of m, n and k. The host packs a tile of b once and runs all rows of a through it, so many
// rows pay for the packing; many k pay for moving the sums in and out of registers. The tile of b
// (384 KiB) and the sums (128 KiB) stay within a core's second-level cache. Measured on a Zen 4,
// one thread, GPT-2's products of 256 rows: 128x128x128 is 92 GFLOP/s, 256x128x256 101, this 105,
// of 117. Products with few tiles are cut finer, so that a few threads have equal work.
static void choose_tiles(const product *p, int64_t m, int64_t n, int64_t k, b_cut *cm, b_cut *cn,
                         b_cut *ck) {
  int64_t others = b_product(&p->batch) * b_product(&p->m) * b_product(&p->n);
  int tm = 256, tn = 128;
  while (tm > 32 && others * ((m + tm - 1) / tm) * ((n + tn - 1) / tn) < 12) {
    if (tn > 64) {
      tn /= 2;
    } else {
      tm /= 2;
    }
  }
  *cm = b_cut_even(m, tm, 8);
  *cn = b_cut_even(n, tn, 16);
  *ck = b_cut_even(k, 768, 16);
}

// What few-rows products share: a cell's place in the outer axes and where each tensor begins
// there.
static void thin_cell(bld *b, product *p, k_value **base) {
  k_kernel *k = b->k;
  b_axes outer = p->batch;
  b_axes *rest[] = {&p->m, &p->n};
  for (int i = 0; i < 2; i++)
    for (int a = 0; a < rest[i]->n; a++) {
      for (int t = 0; t < 3; t++) outer.stride[t][outer.n] = rest[i]->stride[t][a];
      outer.size[outer.n++] = rest[i]->size[a];
    }
  k_value *coord[B_MAX_AXES];
  b_coordinates(b, &outer, k_grid(k, b_product(&outer)), coord);
  for (int t = 0; t < 3; t++) base[t] = b_at(b, &outer, t, coord);
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
  k_value *base[3];
  thin_cell(b, p, base);
  k_value *n0 = k_muli(k, k_grid(k, cn.count), cn.size), *left = b_left(b, &cn, n0);
  k_value *end = left ? k_min(k, left, k_int(k, cn.size)) : k_int(k, cn.size);
  b_loop l = b_loop_begin(b, k_int(k, 0), end, 1, cn.size, NULL, 0);
  k_value *xt[MOST], *wt[FAR], *row[FAR], *sum[FAR][MOST];
  for (int i = 0; i < rows; i++) {
    k_access x = {.buffer = p->t[A].buffer,
                  .base = k_add(k, p->t[A].base, k_addi(k, base[A], i * m->stride[A][0])),
                  .row_stride = piece * kx->stride[A][0],
                  .col_stride = kx->stride[A][0]};
    xt[i] = k_cast(k, k_load(k, pieces, piece, x), K_F32);
  }
  for (int f = 0; f < far; f++) {
    row[f] = k_add(k, k_addi(k, n0, f * apart), l.i);
    k_access w = {.base = k_add(k, base[B], k_muli(k, row[f], n->stride[B][0])),
                  .row_stride = piece * kx->stride[B][0],
                  .col_stride = kx->stride[B][0]};
    wt[f] = b_load(b, &p->t[B], pieces, piece, w);
    wt[f] = k_spread(k, k_cast(k, wt[f], K_F32), pieces, piece);
  }
  for (int f = 0; f < far; f++)
    for (int i = 0; i < rows; i++) sum[f][i] = k_reduce(k, IR_add, k_mul(k, wt[f], xt[i]), 1);
  for (int f = 0; f < far; f++)
    for (int i = 0; i < rows; i++) {
      k_access o = {.base = k_add(k, k_addi(k, base[O], i * m->stride[O][0]),
                                  k_muli(k, row[f], n->stride[O][0]))};
      b_store(b, &p->t[O], k_reduce(k, IR_add, sum[f][i], 0), o);
    }
  b_loop_end(b, &l, NULL);
}

// The few-rows product of any other layout: out[m, n] = sum_k a[m, k] b[n, k].
static void build_thin(bld *b, product *p, const b_axes *m, const b_axes *n, const b_axes *kx) {
  k_kernel *k = b->k;
  bool along_k = kx->stride[B][0] <= n->stride[B][0];  // are the weights fine along k?
  b_cut cn = b_cut_even(n->size[0], along_k ? 8 : 128, along_k ? 1 : 16);
  b_cut ck = b_cut_even(kx->size[0], along_k ? 2048 : 64, 16);
  k_value *base[3], *coord[B_MAX_AXES];
  thin_cell(b, p, base);
  k_value *n0 = k_muli(k, k_grid(k, cn.count), cn.size);
  int rows = (int)m->size[0];
  k_value *sum[4];
  for (int i = 0; i < rows; i++)
    sum[i] = along_k ? k_full(k, K_F32, cn.size, 1, 0) : k_full(k, K_F32, 1, cn.size, 0);
  int64_t chunks = b_product(&p->k) * ck.count;
  b_loop l = b_loop_begin(b, k_int(k, 0), k_int(k, chunks), 1, chunks, sum, rows);
  k_value *k0 = k_muli(k, k_modi(k, l.i, ck.count), ck.size);
  b_coordinates(b, &p->k, k_divi(k, l.i, ck.count), coord);
  k_value *left_n = b_left(b, &cn, n0), *left_k = b_left(b, &ck, k0);
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
    xt[i] = k_cast(k, k_load(k, wr, wc, x), K_F32);
  }
  k_access w = {
      .base = k_add(k, k_add(k, base[B], b_at(b, &p->k, B, coord)),
                    k_add(k, k_muli(k, n0, n->stride[B][0]), k_muli(k, k0, kx->stride[B][0])))};
  w.row_stride = along_k ? n->stride[B][0] : kx->stride[B][0];
  w.col_stride = along_k ? kx->stride[B][0] : n->stride[B][0];
  w.row_limit = along_k ? left_n : left_k;
  w.col_limit = along_k ? left_k : left_n;
  k_value *wt = k_spread(k, k_cast(k, b_load(b, &p->t[B], wr, wc, w), K_F32), wr, wc);
  for (int i = 0; i < rows; i++)
    next[i] = k_add(k, l.carry[i], k_reduce(k, IR_add, k_mul(k, wt, xt[i]), along_k));
  b_loop_end(b, &l, next);
  for (int i = 0; i < rows; i++) {
    k_access o = {.base = k_add(k, k_add(k, base[O], k_int(k, i * m->stride[O][0])),
                                k_muli(k, n0, n->stride[O][0]))};
    *(along_k ? &o.row_stride : &o.col_stride) = n->stride[O][0];
    *(along_k ? &o.row_limit : &o.col_limit) = left_n;
    b_store(b, &p->t[O], l.carry[i], o);
  }
}

static void build_tiled(bld *b, product *p, const b_axes *m, const b_axes *n, const b_axes *kx) {
  k_kernel *k = b->k;
  b_cut cm, cn, ck;
  choose_tiles(p, m->size[0], n->size[0], kx->size[0], &cm, &cn, &ck);
  k_value *cell = k_grid(k, b_product(&p->batch));
  k_value *om = k_grid(k, b_product(&p->m) * cm.count),
          *on = k_grid(k, b_product(&p->n) * cn.count);
  k_value *m0 = k_muli(k, k_modi(k, om, cm.count), cm.size);
  k_value *n0 = k_muli(k, k_modi(k, on, cn.count), cn.size);
  k_value *coord[B_MAX_AXES], *base[3];
  b_coordinates(b, &p->batch, cell, coord);
  for (int t = 0; t < 3; t++) base[t] = b_at(b, &p->batch, t, coord);
  b_coordinates(b, &p->m, k_divi(k, om, cm.count), coord);
  base[A] = k_add(k, base[A], b_at(b, &p->m, A, coord));
  base[O] = k_add(k, base[O], b_at(b, &p->m, O, coord));
  b_coordinates(b, &p->n, k_divi(k, on, cn.count), coord);
  base[B] = k_add(k, base[B], b_at(b, &p->n, B, coord));
  base[O] = k_add(k, base[O], b_at(b, &p->n, O, coord));

  k_value *zero = k_full(k, K_F32, cm.size, cn.size, 0);
  int64_t chunks = b_product(&p->k) * ck.count;
  b_loop l = b_loop_begin(b, k_int(k, 0), k_int(k, chunks), 1, chunks, &zero, 1);
  k_value *k0 = k_muli(k, k_modi(k, l.i, ck.count), ck.size);
  b_coordinates(b, &p->k, k_divi(k, l.i, ck.count), coord);
  tile a = load_tile(b, &p->t[A], k_add(k, base[A], b_at(b, &p->k, A, coord)), &cm, m0,
                     m->stride[A][0], &ck, k0, kx->stride[A][0]);
  tile w = load_tile(b, &p->t[B], k_add(k, base[B], b_at(b, &p->k, B, coord)), &cn, n0,
                     n->stride[B][0], &ck, k0, kx->stride[B][0]);
  k_value *next = k_dot(k, l.carry[0], a.v, w.v, !a.k_last, w.k_last);
  b_loop_end(b, &l, &next);
  k_access o = {
      .base = k_add(k, base[O],
                    k_add(k, k_muli(k, m0, m->stride[O][0]), k_muli(k, n0, n->stride[O][0]))),
      .row_stride = m->stride[O][0],
      .col_stride = n->stride[O][0],
      .row_limit = b_left(b, &cm, m0),
      .col_limit = b_left(b, &cn, n0)};
  b_store(b, &p->t[O], l.carry[0], o);
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
  spec s = parse_spec(ir_attr_str(op, "spec", ""));
  product p = {0};
  ir_view va = ir_view_of(op->in[0]), vb = {0}, vo = ir_view_of(op->out[0]);
  if (op->nin > 2 || s.nin != op->nin) {
    b_fail(b, "einsum of %d operands", op->nin);
    return;
  }
  if (op->nin > 1) vb = ir_view_of(op->in[1]);
  const ir_view *view[] = {&va, op->nin > 1 ? &vb : NULL, &vo};
  if (!classify(&p, &s, view)) {
    b_fail(b, "einsum: layouts do not nest");
    return;
  }
  if (op->nin == 1) {
    build_single(b, &p);
    return;
  }
  double flops = 2.0 * (double)b_product(&p.batch) * (double)b_product(&p.m) *
                 (double)b_product(&p.n) * (double)b_product(&p.k);
  b_begin(b, "matmul");
  p.t[A] = b_read(b, op->in[0]);
  p.t[B] = b_read(b, op->in[1]);
  p.t[O] = b_write(b, op->out[0]);
  swap_operands(&p);
  b_axes m = take_axis(&p.m, -1), n = take_axis(&p.n, O), kx = take_axis(&p.k, -1);
  bool thin = m.size[0] <= 4 && n.size[0] >= 16 && !p.t[A].is_const && !p.t[B].is_const;
  b->k->name = arena_printf(b->arena, "%s_%lldx%lldx%lld", thin ? "matvec" : "matmul",
                            (long long)m.size[0], (long long)n.size[0], (long long)kx.size[0]);
  if (thin && p.k.n == 0 && kx.stride[B][0] <= n.stride[B][0]) {
    build_thin_rows(b, &p, &m, &n, &kx);
  } else if (thin) {
    build_thin(b, &p, &m, &n, &kx);
  } else {
    build_tiled(b, &p, &m, &n, &kx);
  }
  b->k->flops = flops;
  b->k->bytes = (double)(ir_bytes(&op->in[0]->type) + ir_bytes(&op->in[1]->type) +
                         ir_bytes(&op->out[0]->type));
  b_end(b);
}
