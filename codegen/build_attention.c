// Attention without the matrix of scores: a cell owns a tile of queries of one head and walks the
// keys in tiles with a running maximum m, sum l and output acc per query:
//
//   s = scale * q k' + bias, -inf where the mask hides
//   m' = max(m, rowmax(s)); p = exp(s - m'); a = exp(m - m')
//   l = l*a + rowsum(p); acc = acc*a + p v            at the end o = acc / l, lse = m + log(l)
//
// Dropout thins the p that v is weighed with, not those that l adds up.
//
// Mask and bias are the op's scalar regions, inlined on tiles of positions. Before a tile is
// touched its case is decided from the ends of its positions (b_region_range): nothing seen
// (skipped, so causal attention does half the work and windows do what they need), all seen (the
// mask is not evaluated), or mixed.
#include "codegen/build_attention.h"

#include <string.h>

#include "ir/place.h"
#include "ir/rule.h"
#include "runtime/base/random.h"

// ---- geometry ----------------------------------------------------------------------------------

// Cuts the leaves of dimension `dim` into n consecutive products. Part i are leaves
// first[i] .. first[i+1]-1 of `out`.
static bool cut_dim(const ir_view *v, int dim, const int64_t *size, int n, ir_view *out,
                    int *first) {
  int64_t rs[IR_MAX_LEAVES], rt[IR_MAX_LEAVES];  // inner first
  int count[8] = {0}, at = v->dim_first[dim + 1] - 1, total = 0;
  int64_t left = v->size[at], stride = v->stride[at];
  for (int p = n - 1; p >= 0; p--) {
    for (int64_t need = size[p]; need > 1;) {
      if (left == 1) {
        if (--at < v->dim_first[dim]) return false;
        left = v->size[at];
        stride = v->stride[at];
        continue;
      }
      int64_t take = left < need ? left : need;
      if (left % take || need % take || total == IR_MAX_LEAVES) return false;
      rs[total] = take;
      rt[total++] = stride;
      count[p]++;
      left /= take;
      stride *= take;
      need /= take;
    }
  }
  *out = *v;
  out->nleaves = total;
  for (int i = 0; i < total; i++) {
    out->size[i] = rs[total - 1 - i];
    out->stride[i] = rt[total - 1 - i];
  }
  first[0] = 0;
  for (int p = 0; p < n; p++) first[p + 1] = first[p] + count[p];
  return true;
}

// The step of a part that must be one even walk.
static bool even_step(const b_part *p, int64_t *step) {
  b_axes x = {0};
  if (!b_align(&x, p, 1)) return false;
  b_collapse(&x);
  *step = x.n ? x.stride[0][0] : 0;
  return x.n <= 1;
}

bool att_open(att *a, bld *b, ir_value *q, ir_value *k, ir_value *v, int first_capture) {
  ir_op *op = b->op;
  *a = (att){.b = b, .op = op, .first_capture = first_capture};
  int rank = q->type.rank;
  a->kv = ir_attr_int(op, "kv_heads", 1);
  a->rep = ir_attr_int(op, "rep", 1);
  a->scale = ir_attr_float(op, "scale", 1);
  a->drop = ir_attr_float(op, "drop", 0);
  a->round = str_eq(ir_attr_str(op, "round", ""), "bf16") ? DT_bf16 : DT_f32;
  a->past = ir_attr_int(op, "past", 0) != 0;
  a->s = q->type.dim[rank - 2]->size;
  a->t = k->type.dim[rank - 2]->size;
  a->d = q->type.dim[rank - 1]->size / (a->kv * a->rep);
  a->v = v->type.dim[rank - 1]->size / a->kv;
  a->batch_n = 1;
  for (int d = 0; d < rank - 2; d++) a->batch_n *= q->type.dim[d]->size;
  int region = 0;
  if (ir_attr_int(op, "has_mask", 0)) a->mask = op->region[region++];
  if (ir_attr_int(op, "has_bias", 0)) a->bias = op->region[region];
  // Tiles of wide heads are lower, so that the gradient's tiles stay within a core's cache.
  int rows = a->d > 128 || a->v > 128 ? 32 : 64, queries = rows;
  // On a GPU operands lie in shared memory, 163 KiB at most.
  if (b->limit->powers && a->round == DT_f32 && (a->d > 64 || a->v > 64)) queries = 32;
  if (b->limit->powers && a->s == 1 && (a->d > 64 || a->v > 64)) rows = 32;
  a->qc = b_cut_exact(b, a->s, queries, 8);
  a->kc = b_cut_exact(b, a->t, rows, 16);
  if (a->d > 256 || a->v > 256) b_fail(b, "attention with heads of more than 256");
  return !b->why;
}

void att_begin(att *a, const char *name) {
  memset(a->used, 0, sizeof a->used);
  memset(a->part, 0, sizeof a->part);
  b_begin(a->b, "%s_%lldx%lldx%lld", name, (long long)a->s, (long long)a->t, (long long)a->d);
}

static bool on_queries(att_role r) {
  return r == AT_Q || r == AT_O || r == AT_O_IN || r == AT_DO || r == AT_DQ;
}
static bool per_row(att_role r) { return r == AT_LSE || r == AT_LSE_IN || r == AT_DELTA; }
static int64_t width_of(const att *a, att_role r) {
  return r == AT_Q || r == AT_K || r == AT_DQ || r == AT_DK ? a->d : a->v;
}

static void use_view(att *a, att_role r, const ir_view *v, int rank) {
  a->used[r] = true;
  int first[4], heads_dim = per_row(r) ? rank - 2 : rank - 1,
                row_dim = per_row(r) ? rank - 1 : rank - 2;
  bool q = on_queries(r), w = per_row(r);
  int64_t size[3] = {a->kv, q || w ? a->rep : 1, w ? 1 : width_of(a, r)};
  if (!cut_dim(v, heads_dim, size, 3, &a->split[r], first)) {
    b_fail(a->b, "attention: heads are laid out in pieces");
    return;
  }
  const ir_view *s = &a->split[r];
  a->part[0][r] = (b_part){&a->tensor[r].view, 0, v->dim_first[rank - 2]};
  a->part[1][r] = (b_part){s, first[0], first[1]};
  if (q || w) a->part[2][r] = (b_part){s, first[1], first[2]};
  b_part e = {s, first[2], first[3]},
         row = {&a->tensor[r].view, v->dim_first[row_dim], v->dim_first[row_dim + 1]};
  if (!even_step(&e, &a->col_stride[r]) || !even_step(&row, &a->row_stride[r]))
    b_fail(a->b, "attention: rows are laid out in pieces");
}

void att_use(att *a, att_role r, ir_value *v, k_use use) {
  a->tensor[r] = use == K_READ ? b_read(a->b, v) : b_write(a->b, v);
  use_view(a, r, &a->tensor[r].view, v->type.rank);
}

void att_use_delta(att *a, int scratch, k_use use) {
  ir_value fake = *a->lse_value;  // delta lies dense in the shape of lse
  fake.def = NULL;
  a->tensor[AT_DELTA] = b_scratch(a->b, scratch, DT_f32, ir_elements(&fake.type), use);
  a->tensor[AT_DELTA].view = ir_view_of(&fake);
  a->tensor[AT_DELTA].view.root = NULL;
  use_view(a, AT_DELTA, &a->tensor[AT_DELTA].view, fake.type.rank);
}

// A batch of one has an axis too, whose strides nobody uses: one function for it and for many.
static void single_batch(att *a) {
  enum { ANY_ALIGNED = 1 << 16 };
  b_axes *x = &a->axes[0];
  x->n = 1;
  x->size[0] = 1;
  for (int r = 0; r < AT_ROLES; r++) x->stride[r][0] = a->used[r] ? ANY_ALIGNED : 0;
}

bool att_ready(att *a) {
  bld *b = a->b;
  if (b->why) return false;
  for (int x = 0; x < 3; x++) {
    a->axes[x] = (b_axes){0};
    if (!b_align(&a->axes[x], a->part[x], AT_ROLES)) {
      b_fail(b, "attention: layouts do not nest");
      return false;
    }
    b_collapse(&a->axes[x]);
  }
  if (b->limit->powers && !a->axes[0].n) single_batch(a);
  a->env = b_env_new(b);
  int masks = (int)ir_attr_int(a->op, "ncap_mask", 0);
  for (int i = a->first_capture; i < a->op->nin; i++) {
    bool of_mask = i - a->first_capture < masks;
    ir_region *r = of_mask ? a->mask : a->bias;
    ir_value *arg = r->args.at[4 + i - a->first_capture - (of_mask ? 0 : masks)];
    b_capture *c = arena_new(b->arena, b_capture, 1);
    *c = b_capture_of(b, a->op->in[i]);
    b_bind_capture(a->env, arg, c);
  }
  a->keys = NULL;
  if (a->past) a->keys = k_min(b->k, k_addi(b->k, k_call(b->k, K_PAST), a->s), k_int(b->k, a->t));
  return true;
}

// Where the cell's head begins in the positions of random draws (ir/ops.def, attention).
static void begin_draws(att *a, k_value *batch, k_value *kv, k_value *rep) {
  bld *b = a->b;
  k_kernel *k = b->k;
  ir_type rows = a->op->in[a->first_capture - 3]->type;
  rows.rank -= 2;
  ir_index *leaf[IR_MAX_LEAVES];
  int64_t size[IR_MAX_LEAVES + 4], step[IR_MAX_LEAVES + 4], samples = 1;
  int n = ir_type_leaves(&rows, leaf, IR_MAX_LEAVES), rest = 0;
  for (int i = 0; i < n; i++)
    if (!b_of_sample(b, leaf[i])) size[rest++] = leaf[i]->size;
  size[rest] = a->kv;
  size[rest + 1] = a->rep;
  size[rest + 2] = a->s;
  size[rest + 3] = a->t;
  int64_t end = ir_draw_steps(cg_module(b->cg), a->op, size, rest + 4, step);
  a->draw_query = step[rest + 2];
  a->draw_next = step[rest + 3];
  k_value *sample = k_int(k, 0), *row = k_int(k, 0);
  bool sampled = false;
  for (int i = n - 1, r = rest; i >= 0; i--) {
    bool of_sample = b_of_sample(b, leaf[i]);
    k_value *at = i ? k_modi(k, batch, leaf[i]->size) : batch;
    batch = k_divi(k, batch, leaf[i]->size);
    if (of_sample) {
      sample = k_add(k, sample, k_muli(k, at, samples));
      samples *= leaf[i]->size;
      sampled = true;
    } else {
      row = k_add(k, row, k_muli(k, at, step[--r]));
    }
  }
  // Rows without a sample axis draw as sample 0.
  sample = sampled ? k_add(k, k_call(k, K_SAMPLE0), sample) : k_int(k, 0);
  a->draw_key = k_key(k, ir_attr_int(a->op, "key", 0), sample);
  int64_t room = a->qc.size * a->draw_query + a->kc.size * a->draw_next;
  k_type type = !a->past && end + room < INT32_MAX ? K_I32 : K_I64;
  k_value *head = k_add(k, k_muli(k, kv, step[rest]), k_muli(k, rep, step[rest + 1]));
  a->draw_row = k_cast(k, b_begin_at(b, k_add(k, row, head)), type);
}

void att_cell(att *a, k_value *batch, k_value *kv, k_value *rep) {
  k_kernel *k = a->b->k;
  k_value *index[] = {batch, kv, rep};
  for (int x = 0; x < 3; x++) b_coordinates(a->b, &a->axes[x], index[x], a->coord[x]);
  a->bi = k_cast(k, batch, K_I32);
  a->h = k_cast(k, k_add(k, k_muli(k, kv, a->rep), rep), K_I32);
  if (a->drop > 0) begin_draws(a, batch, kv, rep);
}

static k_access access_of(att *a, att_role r, k_value *row0) {
  bld *b = a->b;
  k_kernel *k = b->k;
  bool keys = r == AT_K || r == AT_V || r == AT_DK || r == AT_DV;
  k_access x = {.base = k_muli(k, row0, a->row_stride[r]), .row_stride = a->row_stride[r]};
  for (int i = 0; i < 3; i++) x.base = k_add(k, x.base, b_at(b, &a->axes[i], (int)r, a->coord[i]));
  x.col_stride = per_row(r) ? 0 : a->col_stride[r];
  x.row_limit = keys && a->keys ? k_sub(k, a->keys, row0) : b_left(b, keys ? &a->kc : &a->qc, row0);
  return x;
}

k_value *att_load(att *a, att_role r, k_value *row0, double fill) {
  k_kernel *k = a->b->k;
  bool keys = r == AT_K || r == AT_V;
  int nr = keys ? a->kc.size : a->qc.size, nc = per_row(r) ? 1 : (int)width_of(a, r);
  k_access x = access_of(a, r, row0);
  x.fill = fill;
  k_value *v = k_cast(k, b_load(a->b, &a->tensor[r], nr, nc, x), K_F32);
  return k_spread(k, v, nr, nc);
}

void att_store(att *a, att_role r, k_value *row0, k_value *v) {
  b_store(a->b, &a->tensor[r], v, access_of(a, r, row0));
}

// ---- scores ------------------------------------------------------------------------------------

void att_positions(att *a, k_value *i0, k_value *j0, k_value **i, k_value **j) {
  k_kernel *k = a->b->k;
  k_value *first = a->past ? k_add(k, i0, k_call(k, K_PAST)) : i0;
  *i = k_add(k, k_cast(k, first, K_I32), k_iota(k, K_I32, a->qc.size, 1));
  *j = k_add(k, k_cast(k, j0, K_I32), k_iota(k, K_I32, 1, a->kc.size));
}

void att_case(att *a, k_value *i0, k_value *j0, k_value **some, k_value **all) {
  bld *b = a->b;
  k_kernel *k = b->k;
  k_value *i1 = k_addi(k, i0, a->qc.size), *j1 = k_addi(k, j0, a->kc.size);
  k_value *keys = a->keys ? a->keys : k_int(k, a->t);
  bool cut = a->keys || a->kc.ragged;
  *some = k_const(k, K_BOOL, 1);
  *all = cut ? k_scalar(k, IR_le, j1, keys, NULL) : *some;
  if (a->mask && skips(b->skip, SKIP_hidden)) {
    *all = k_const(k, K_BOOL, 0);
  } else if (a->mask) {
    if (a->qc.ragged) i1 = k_min(k, i1, k_int(k, a->s));
    if (cut) j1 = k_min(k, j1, keys);
    k_value *past = a->past ? k_call(k, K_PAST) : k_int(k, 0);
    k_value *end[] = {k_add(k, i0, past), k_addi(k, k_add(k, i1, past), -1), j0, k_addi(k, j1, -1)};
    for (int n = 0; n < 4; n++) end[n] = k_cast(k, end[n], K_I32);
    b_range *arg = arena_new(b->arena, b_range, a->mask->args.n);
    arg[0] = (b_range){true, a->bi, a->bi};
    arg[1] = (b_range){true, a->h, a->h};
    arg[2] = (b_range){true, end[0], end[1]};
    arg[3] = (b_range){true, end[2], end[3]};
    for (int n = 4; n < a->mask->args.n; n++) {
      k_value *v = b_bound(a->env, a->mask->args.at[n]);
      if (v) arg[n] = (b_range){true, v, v};
    }
    b_range r = b_region_range(a->env, a->mask, arg);
    if (!r.known) r = (b_range){true, k_const(k, K_BOOL, 0), k_const(k, K_BOOL, 1)};
    *some = k_cast(k, r.hi, K_BOOL);
    *all = k_scalar(k, IR_and, *all, r.lo, NULL);
  }
}

static void bind_positions(att *a, ir_region *r, k_value *i, k_value *j) {
  k_value *v[] = {a->bi, a->h, i, j};
  for (int n = 0; n < 4; n++) b_bind(a->env, r->args.at[n], v[n]);
}

k_value *att_scores(att *a, k_value *q, k_value *keys, k_value *i0, k_value *j0, k_value *all) {
  bld *b = a->b;
  k_kernel *k = b->k;
  int nq = a->qc.size, nk = a->kc.size;
  k_value *s, *i, *j;
  if (nq == 1) {
    // One query (decoding): a sum along each key, so that keys are not turned for one row.
    s = k_transpose(k, k_reduce(k, IR_add, k_mul(k, keys, q), 1));
  } else {
    s = k_dot_rounded(k, a->round, k_full(k, K_F32, nq, nk, 0), q, keys, false, true);
  }
  s = k_mul(k, s, k_const(k, K_F32, a->scale));
  att_positions(a, i0, j0, &i, &j);
  if (a->bias) {
    k_value *bias;
    bind_positions(a, a->bias, i, j);
    b_region(a->env, a->bias, &bias);
    s = k_add(k, s, bias);
  }
  int64_t always;
  if (k_is_const(all, &always) && always) return s;
  k_stmt *st = k_if(k, all);
  k_else(k, st, &s, 1);
  k_value *seen = k_const(k, K_BOOL, 1);
  if (a->mask) {
    bind_positions(a, a->mask, i, j);
    b_region(a->env, a->mask, &seen);
  }
  if (a->keys || a->kc.ragged) {
    k_value *count = k_cast(k, a->keys ? a->keys : k_int(k, a->t), K_I32);
    seen = k_scalar(k, IR_and, seen, k_scalar(k, IR_lt, j, count, NULL), NULL);
  }
  k_value *hidden = k_where(k, seen, s, k_const(k, K_F32, -__builtin_inf()));
  k_end_if(k, st, &hidden, 1);
  return st->out[0];
}

k_value *att_dropout(att *a, k_value *i0, k_value *j0) {
  k_kernel *k = a->b->k;
  if (a->drop <= 0) return NULL;
  k_value *i, *j;
  att_positions(a, i0, j0, &i, &j);
  k_type t = a->draw_row->type;
  k_value *row = k_add(k, a->draw_row, k_muli(k, k_cast(k, i, t), a->draw_query));
  k_value *at = k_add(k, row, k_muli(k, k_cast(k, j, t), a->draw_next));
  k_value *keep = k_draw(k, a->draw_key, at, base_drop_below(a->drop));
  return k_where(k, keep, k_const(k, K_F32, 1 / (1 - a->drop)), k_const(k, K_F32, 0));
}

// ---- forward -----------------------------------------------------------------------------------

// One tile of keys: the next m, l, acc.
static void forward_tile(att *a, k_value *q, k_value *i0, k_value *j0, k_value *all,
                         k_value *const *in, k_value **out) {
  k_kernel *k = a->b->k;
  bool one = a->qc.size == 1;
  k_value *keys = att_load(a, AT_K, j0, 0), *v = NULL;
  if (!one) keys = k_stage(k, keys), v = k_stage(k, att_load(a, AT_V, j0, 0));
  k_value *s = att_scores(a, q, keys, i0, j0, all);
  k_value *m = k_max(k, in[0], k_reduce(k, IR_max, s, 1));
  k_value *none = k_scalar(k, IR_eq, m, k_const(k, K_F32, -__builtin_inf()), NULL);
  k_value *safe = k_where(k, none, k_const(k, K_F32, 0), m);
  k_value *p = k_scalar(k, IR_exp, k_sub(k, s, safe), NULL, NULL);
  k_value *old = k_scalar(k, IR_exp, k_sub(k, in[0], safe), NULL, NULL);
  out[0] = m;
  out[1] = k_fma(k, in[1], old, k_reduce(k, IR_add, p, 1));
  k_value *by = att_dropout(a, i0, j0);
  if (by) p = k_mul(k, p, by);
  if (one) {
    // Keys and values of a single query are read once, where they lie.
    k_value *weighed = k_mul(k, att_load(a, AT_V, j0, 0), k_transpose(k, p));
    out[2] = k_add(k, k_mul(k, in[2], old), k_reduce(k, IR_add, weighed, 0));
  } else {
    out[2] = k_dot_rounded(k, a->round, k_mul(k, in[2], old), p, v, false, false);
  }
}

// Where m, l and acc begin: nothing was seen, or what attention_next goes on with, which stands for
// one key of score lse and value o.
static void forward_begin(att *a, k_value *i0, k_value **init) {
  k_kernel *k = a->b->k;
  int nq = a->qc.size;
  k_value *hidden = k_const(k, K_F32, -__builtin_inf()), *zero = k_const(k, K_F32, 0);
  if (a->op->code != IR_attention_next) {
    init[0] = k_full(k, K_F32, nq, 1, -__builtin_inf());
    init[1] = k_full(k, K_F32, nq, 1, 0);
    init[2] = k_full(k, K_F32, nq, (int)a->v, 0);
    return;
  }
  init[0] = att_load(a, AT_LSE_IN, i0, -__builtin_inf());
  k_value *none = k_scalar(k, IR_eq, init[0], hidden, NULL);
  init[1] = k_where(k, none, zero, k_const(k, K_F32, 1));
  init[2] = att_load(a, AT_O_IN, i0, 0);
}

void cg_build_attention(bld *b) {
  ir_op *op = b->op;
  att a;
  int q_at = ir_queries(op);
  if (!att_open(&a, b, op->in[q_at], op->in[q_at + 1], op->in[q_at + 2], q_at + 3)) return;
  bool goes_on = op->code == IR_attention_next;
  att_begin(&a, goes_on ? "attention_next" : "attention");
  if (goes_on) {
    att_use(&a, AT_O_IN, op->in[0], K_READ);
    att_use(&a, AT_LSE_IN, op->in[1], K_READ);
  }
  att_use(&a, AT_Q, op->in[q_at], K_READ);
  att_use(&a, AT_K, op->in[q_at + 1], K_READ);
  att_use(&a, AT_V, op->in[q_at + 2], K_READ);
  att_use(&a, AT_O, op->out[0], K_WRITE);
  att_use(&a, AT_LSE, op->out[1], K_WRITE);
  if (!att_ready(&a)) return;
  k_kernel *k = b->k;
  k_value *batch = b_grid_of(b, a.batch_n), *kv = k_grid(k, a.kv), *rep = k_grid(k, a.rep);
  k_value *i0 = k_muli(k, k_grid(k, a.qc.count), a.qc.size);
  att_cell(&a, batch, kv, rep);
  k_value *q = k_stage(k, att_load(&a, AT_Q, i0, 0)), *init[3];
  forward_begin(&a, i0, init);
  k_value *end = a.keys ? a.keys : k_int(k, a.t);
  b_loop l = b_loop_begin(b, k_int(k, 0), end, a.kc.size, a.kc.count, init, 3);
  k_value *some, *all, *next[3];
  att_case(&a, i0, l.i, &some, &all);
  int64_t always;
  if (k_is_const(some, &always) && always) {
    forward_tile(&a, q, i0, l.i, all, l.carry, next);
  } else {
    k_stmt *st = k_if(k, some);
    forward_tile(&a, q, i0, l.i, all, l.carry, next);
    k_else(k, st, next, 3);
    k_end_if(k, st, l.carry, 3);
    for (int n = 0; n < 3; n++) next[n] = st->out[n];
  }
  b_loop_end(b, &l, next);
  k_value *m = l.carry[0], *sum = l.carry[1];
  k_value *none = k_scalar(k, IR_eq, sum, k_const(k, K_F32, 0), NULL);
  k_value *inverse =
      k_where(k, none, k_const(k, K_F32, 0), k_scalar(k, IR_div, k_const(k, K_F32, 1), sum, NULL));
  att_store(&a, AT_O, i0, k_mul(k, l.carry[2], inverse));
  k_value *lse = k_add(k, m, k_scalar(k, IR_log, sum, NULL, NULL));
  att_store(&a, AT_LSE, i0, k_where(k, none, k_const(k, K_F32, -__builtin_inf()), lse));
  double pairs = (double)(a.batch_n * a.kv * a.rep) * (double)a.s * (double)a.t;
  k->flops = pairs * (2.0 * (double)a.d + 2.0 * (double)a.v + 12);
  k->bytes = (double)ir_bytes(&op->out[0]->type);
  for (int i = 0; i < q_at + 3; i++) k->bytes += (double)ir_bytes(&op->in[i]->type);
  b_end(b);
}
