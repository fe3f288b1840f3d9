// What of an op depends on where a rank's part begins.
//
// Ids that look up a cut table are counted from the part's first row: kernels read zeros for rows
// outside, and skip them when they add. A loss over a cut vocabulary is made of its parts:
//
//   nll, lse = nll(x, t)        n, l = nll(x', t')      of this part; t' counts from its start
//                               m = all_reduce max(l)
//                               s = all_reduce(exp(l - m))    lse = m + log(s)
//                               y = all_reduce(t' in the part ? l - n : 0)    the target's logit
//                               nll = t counts ? lse - y : 0
#include <string.h>

#include "ir/expr.h"
#include "ir/place.h"
#include "ir/rule.h"
#include "passes/distribute_impl.h"
#include "passes/pass.h"
#include "passes/ranks.h"

// Mesh axes that cut the leaves of dim `dim` of a side of the op.
static unsigned cut_dim(const dist *d, int number, int side, int dim) {
  const pg_op *p = &d->g->op.at[number];
  int v = side < p->nin ? p->in[side] : p->out[side - p->nin];
  codes in = dist_side(d, number, side);
  unsigned axes = 0;
  for (int x = 0; v >= 0 && x < BL_INNER; x++)
    if (d->axis[x] && in.on[x] >= SH_LEAF && d->g->value.at[v].dim[in.on[x] - SH_LEAF] == dim)
      axes |= d->d->axes[x];
  return axes;
}

// The type that a side of the op has before; of a stack that of a slice.
static ir_type whole_type(const dist *d, int number, int side) {
  const pg_op *p = &d->g->op.at[number];
  const pg_value *v = &d->g->value.at[side < p->nin ? p->in[side] : p->out[side - p->nin]];
  ir_type t = d->whole[v->v->id];
  for (; t.rank > v->rank; t.rank--)
    memmove(t.dim, t.dim + 1, sizeof *t.dim * (size_t)(t.rank - 1));
  return t;
}

// Puts what was built behind the last op in front of it.
static void before_last(ir_region *r, int built) {
  ir_op *op = r->ops.at[r->ops.n - 1 - built];
  for (int i = r->ops.n - 1 - built; i + 1 < r->ops.n; i++) r->ops.at[i] = r->ops.at[i + 1];
  r->ops.at[r->ops.n - 1] = op;
}

// What numbers a dim of a part: rows of a table, classes, queries' heads, queries, keys.
typedef struct counted {
  int side, dim;    // operand of the op, or behind them result, and its dim
  unsigned within;  // mesh axes that cut the dim and are meant
  int64_t size;     // of the part
} counted;

// How far apart the parts of two neighbours on axis x begin; 0: x does not cut it.
static int64_t part_step(const dist *d, int number, const counted *c, int x) {
  if (!d->axis[x] || !(c->within & d->d->axes[x])) return 0;
  const pg_op *p = &d->g->op.at[number];
  int value = c->side < p->nin ? p->in[c->side] : p->out[c->side - p->nin];
  codes in = dist_side(d, number, c->side);
  int64_t n = c->size;
  for (int y = 0; y < BL_INNER; y++)
    if (y != x && d->axis[y] && in.on[y] == in.on[x] && dist_inside(d, value, in.on[x], y, x))
      n *= d->d->key.size[y];
  return n;
}

// Whether the ring cuts it in zigzag.
static ir_mirror mirror_of(const dist *d, int number, const counted *c) {
  const pg_op *p = &d->g->op.at[number];
  int value = c->side < p->nin ? p->in[c->side] : p->out[c->side - p->nin];
  int code = dist_side(d, number, c->side).on[BL_RING];
  unsigned axes = d->d->axes[BL_RING] & c->within;
  if (!axes || code < SH_LEAF || !dist_mirrors(d, value, code, BL_RING)) return (ir_mirror){0};
  return (ir_mirror){part_step(d, number, c, BL_RING) / 2, d->d->key.size[BL_RING], axes};
}

// Adds to `begins` (ir/place.h) parts along x that are `by` apart.
static void add_begin(const dist *d, int64_t *begins, int x, int64_t by) {
  const ir_mesh *m = d->m->mesh;
  for (int a = m->naxes - 1; a >= 0; a--) {
    if (!(d->d->axes[x] >> a & 1)) continue;
    begins[a] += by;
    by *= m->axis[a].size;
  }
}

// Where a rank's parts of `c`, n of them, each with steps of `step` (NULL: 1) numbers of the whole,
// begin; NULL: at 0.
static int64_t *begins_of(const dist *d, int number, const counted *c, const int64_t *step, int n) {
  int64_t *begins = arena_new(d->m->arena, int64_t, d->m->mesh->naxes);
  bool any = false;
  for (int i = 0; i < n; i++)
    for (int x = 0; x < BL_INNER; x++) {
      int64_t by = part_step(d, number, &c[i], x) * (step ? step[i] : 1);
      if (by && mirror_of(d, number, &c[i]).axes && x == BL_RING) by /= 2;
      any |= by != 0;
      add_begin(d, begins, x, by);
    }
  return any ? begins : NULL;
}

static void set_begins(dist *d, ir_op *op, const int64_t *begins) {
  if (begins) ir_set_attr(d->m, op, ir_attr_v("begins", begins, d->m->mesh->naxes));
}

static void set_mirror(ir_module *m, ir_op *op, const ir_mirror *x) {
  int64_t *v = arena_new(m->arena, int64_t, 3);
  v[0] = x->half, v[1] = x->n, v[2] = x->axes;
  ir_set_attr(m, op, ir_attr_v("mirror", v, 3));
}

static ir_value *place_value(dist *d, ir_region *r, const int64_t *begins, int segment) {
  ir_type t = ir_scalar(DT_i32);
  ir_op *op = ir_op_raw(r, IR_place, NULL, 0, &t, 1);
  set_begins(d, op, begins);
  op->segment = segment;
  return op->out[0];
}

// An elementwise function by its text, of result type `dtype`.
static ir_value *map_of(dist *d, ir_region *r, const char *params, const char *text,
                        ir_value *const *in, int n, int segment) {
  ir_dtype type[8];
  for (int i = 0; i < n; i++) type[i] = in[i]->type.dtype;
  ir_region *fn = ir_expr_region(d->m, NULL, params, text, type);
  ir_builder b = {.m = d->m, .at = r};
  ir_op *op = ir_build_full(&b, IR_map, in, n, NULL, 0, &fn, 1);
  if (!op) IR_BUG("distribute: %s", b.error);
  op->segment = segment;
  op->span = in[0]->span;
  return op->out[0];
}

// i < all ? i - begin : -1
static ir_value *known_rows(dist *d, ir_region *r, ir_value *ids, ir_value *begin, int64_t all,
                            int segment) {
  ir_dtype type = ids->type.dtype;
  ir_region *fn = ir_region_new(d->m, NULL);
  ir_value *i = ir_region_arg(fn, ir_scalar(type), "i"),
           *start = ir_region_arg(fn, ir_scalar(begin->type.dtype), "begin");
  ir_builder in = {.m = d->m, .at = fn}, b = {.m = d->m, .at = r};
  ir_value *known = ir_build2(&in, IR_lt, i, ir_const(&in, type, (double)all));
  ir_value *row = ir_build2(&in, IR_sub, i, start);
  vec_push(d->m->arena, &fn->yield, ir_build3(&in, IR_where, known, row, ir_const(&in, type, -1)));
  ir_op *op = ir_build_full(&b, IR_map, (ir_value *[]){ids, begin}, 2, NULL, 0, &fn, 1);
  if (!op) IR_BUG("distribute: %s", b.error);
  op->segment = segment;
  op->span = ids->span;
  return op->out[0];
}

// Ids counted from the first row of a rank's part of the table, which has `all`. What is behind its
// last row is in no part.
static ir_value *shifted(dist *d, ir_region *r, ir_value *ids, int number, const counted *c,
                         int64_t all, int segment) {
  ir_value *begin = place_value(d, r, begins_of(d, number, c, NULL, 1), segment);
  ir_builder b = {.m = d->m, .at = r};
  if (all % c->size) return known_rows(d, r, ids, begin, all, segment);
  ir_value *now = ir_build2(&b, IR_sub, ids, begin);
  if (!now) IR_BUG("distribute: %s", b.error);
  now->def->segment = segment;
  now->name = ids->name;
  return now;
}

static void adapt_table(dist *d, ir_region *r, ir_op *op, int number) {
  bool adds = op->code == IR_scatter_add;
  int side = adds ? op->nin : 0;
  int64_t rows = adds ? op->out[0]->type.dim[0]->size : op->in[0]->type.dim[0]->size;
  if (adds) ir_set_attr(d->m, op, ir_attr_i("rows", rows));
  counted c = {side, 0, cut_dim(d, number, side, 0), rows};
  if (!c.within) return;
  int n = r->ops.n;
  int64_t all = whole_type(d, number, side).dim[0]->size;
  op->in[1] = shifted(d, r, op->in[1], number, &c, all, op->segment);
  before_last(r, r->ops.n - n);
}

// "t counts": it is a class, and not the one that is ignored.
static const char *counting(dist *d, const ir_op *op, int64_t classes) {
  const char *in =
      arena_printf(d->m->arena, "where(t >= 0, where(t < %lld, $, 0), 0)", (long long)classes);
  if (!ir_attr_int(op, "has_ignore", 0)) return in;
  return arena_printf(d->m->arena, "where(t != %lld, %s, 0)",
                      (long long)ir_attr_int(op, "ignore", 0), in);
}

static const char *instead(arena *a, const char *text, const char *value) {
  const char *at = strchr(text, '$');
  return arena_printf(a, "%.*s%s%s", (int)(at - text), text, value, at + 1);
}

// How many classes the logits, a side of the op, have in all; where `part` does not divide them, it
// says so to the kernel.
static int64_t count_classes(dist *d, ir_op *op, int number, const counted *c) {
  ir_type t = whole_type(d, number, c->side);
  int64_t all = t.dim[t.rank - 1]->size;
  if (all % c->size == 0) return all;
  ir_set_attr(d->m, op, ir_attr_i("classes", all));
  set_begins(d, op, begins_of(d, number, c, NULL, 1));
  return all;
}

static void adapt_nll(dist *d, ir_region *r, ir_op *op, int number) {
  const ir_value *x = op->in[0];
  unsigned axes = cut_dim(d, number, 0, x->type.rank - 1);
  if (!axes) return;
  arena *a = d->m->arena;
  int64_t part = x->type.dim[x->type.rank - 1]->size;
  counted c = {0, x->type.rank - 1, axes, part};
  int64_t all = count_classes(d, op, number, &c);
  int n = r->ops.n, seg = op->segment;
  ir_value *target = op->in[1];
  op->in[1] = shifted(d, r, target, number, &c, all, seg);
  before_last(r, r->ops.n - n);
  const char *counts = counting(d, op, all);
  ir_set_attr(d->m, op, ir_attr_i("has_ignore", 0));
  ir_value *loss = op->out[0], *lse = op->out[1];
  ir_value *max = ranks_exchange(d->m, r, IR_all_reduce, lse, &lse->type, axes, 0, 0);
  ir_set_attr(d->m, max->def, ir_attr_i("max", 1));
  max->def->segment = seg;
  ir_value *e = map_of(d, r, "l, m", "exp(l - m)", (ir_value *[]){lse, max}, 2, seg);
  ir_value *sum = ranks_exchange(d->m, r, IR_all_reduce, e, &e->type, axes, 0, 0);
  sum->def->segment = seg;
  // Outside its part the target's loss is 0.
  ir_value *mine =
      map_of(d, r, "t, l, n",
             arena_printf(a, "where(t >= 0, where(t < %lld, l - n, 0), 0)", (long long)part),
             (ir_value *[]){op->in[1], lse, loss}, 3, seg);
  ir_value *logit = ranks_exchange(d->m, r, IR_all_reduce, mine, &mine->type, axes, 0, 0);
  logit->def->segment = seg;
  d->stands[lse->id] = map_of(d, r, "m, s", "m + log(s)", (ir_value *[]){max, sum}, 2, seg);
  d->stands[loss->id] = map_of(d, r, "t, l, y", instead(a, counts, "l - y"),
                               (ir_value *[]){target, d->stands[lse->id], logit}, 3, seg);
}

static void adapt_nll_grad(dist *d, ir_region *r, ir_op *op, int number) {
  const ir_value *x = op->in[1];
  unsigned axes = cut_dim(d, number, 1, x->type.rank - 1);
  if (!axes) return;
  int64_t part = x->type.dim[x->type.rank - 1]->size;
  counted c = {1, x->type.rank - 1, axes, part};
  int64_t all = count_classes(d, op, number, &c);
  int n = r->ops.n;
  ir_value *target = op->in[2];
  const char *text = instead(d->m->arena, counting(d, op, all), "g");
  op->in[0] = map_of(d, r, "g, t", text, (ir_value *[]){op->in[0], target}, 2, op->segment);
  op->in[2] = shifted(d, r, target, number, &c, all, op->segment);
  before_last(r, r->ops.n - n);
  ir_set_attr(d->m, op, ir_attr_i("has_ignore", 0));
  ir_set_attr(d->m, op, ir_attr_i("part", 1));
}

// ---- masks and biases ---------------------------------------------------------------------------

// One more value that region number i of attention sees; its argument.
static ir_value *captured(ir_module *m, ir_op *op, int i, ir_value *v, const char *name) {
  bool mask = i == 0 && ir_attr_int(op, "has_mask", 0);
  int64_t ncap = ir_attr_int(op, "ncap_mask", 0);
  ir_value **in = arena_new(m->arena, ir_value *, op->nin + 1);
  int at = mask ? ir_queries(op) + 3 + (int)ncap : op->nin;
  for (int k = 0; k < op->nin; k++) in[k + (k >= at)] = op->in[k];
  in[at] = v;
  op->in = in;
  op->nin++;
  if (mask) ir_set_attr(m, op, ir_attr_i("ncap_mask", ncap + 1));
  return ir_region_arg(op->region[i], v->type, name);
}

void dist_shift(ir_module *m, ir_op *op, const dist_count *c, int arg) {
  for (int i = 0; i < op->nregions; i++) {
    ir_region *r = op->region[i];
    pass_count_uses(r);
    if (!r->args.at[arg]->mark) continue;
    ir_value *begin = captured(m, op, i, c->begin, "begin"), *local = r->args.at[arg];
    ir_value *edge = c->gap ? captured(m, op, i, c->edge, "edge") : NULL;
    ir_value *gap = c->gap ? captured(m, op, i, c->gap, "gap") : NULL;
    ir_replace_uses(r, local, c->begin);  // which does not occur inside
    int n = r->ops.n;
    ir_builder b = {.m = m, .at = r};
    ir_value *sum = ir_build2(&b, IR_add, local, ir_build1(&b, IR_at, begin));
    if (c->group) {
      ir_value *before = ir_build2(&b, IR_floordiv, local, ir_const(&b, DT_i32, (double)c->group));
      ir_value *left_out = ir_const(&b, DT_i32, (double)(c->groups - c->group));
      sum = ir_build2(&b, IR_add, sum, ir_build2(&b, IR_mul, before, left_out));
    }
    if (gap) {
      ir_value *late = ir_build2(&b, IR_ge, local, ir_build1(&b, IR_at, edge));
      ir_value *more =
          ir_build3(&b, IR_where, late, ir_build1(&b, IR_at, gap), ir_const(&b, DT_i32, 0));
      sum = ir_build2(&b, IR_add, sum, more);
    }
    if (!sum) IR_BUG("distribute: %s", b.error);
    ir_replace_uses(r, c->begin, sum);
    for (int k = 0, put = r->ops.n - n; k < put; k++) pass_move_last(r, 0);
  }
}

bool dist_asks_for(const ir_op *op, int arg) {
  bool asks = false;
  for (int i = 0; i < op->nregions; i++) {
    pass_count_uses(op->region[i]);
    asks |= op->region[i]->args.at[arg]->mark != 0;
  }
  return asks;
}

// Argument `arg` of masks and biases counts in the whole: parts of `c`, n of them, each with steps
// of `step` numbers of the whole.
static void begin_at(dist *d, ir_region *r, ir_op *op, int number, int arg, const counted *c,
                     const int64_t *step, int n, int64_t group, int64_t groups) {
  if (!dist_asks_for(op, arg)) return;
  const int64_t *begins = begins_of(d, number, c, step, n);
  if (!begins) return;
  int had = r->ops.n, naxes = d->m->mesh->naxes;
  ir_mirror m = mirror_of(d, number, c);
  dist_count how = {
      .begin = place_value(d, r, begins, op->segment), .group = group, .groups = groups};
  if (m.axes) {
    int64_t *inside = arena_new(d->m->arena, int64_t, naxes),
            *mirrored = arena_new(d->m->arena, int64_t, naxes);
    for (int a = 0; a < naxes; a++) {
      bool of_ring = m.axes >> a & 1;
      inside[a] = of_ring ? 0 : -begins[a];
      mirrored[a] = of_ring ? -2 * begins[a] : 0;
    }
    how.edge = place_value(d, r, inside, op->segment);
    ir_set_attr(d->m, how.edge->def, ir_attr_i("base", m.half));
    how.gap = place_value(d, r, mirrored, op->segment);
    ir_set_attr(d->m, how.gap->def, ir_attr_i("base", 2 * m.half * (m.n - 1)));
  }
  before_last(r, r->ops.n - had);
  int masked = (int)ir_attr_int(op, "ncap_mask", 0);
  dist_shift(d->m, op, &how, arg);
  // A capture of the bias is counted among all captures.
  int more = (int)ir_attr_int(op, "ncap_mask", 0) - masked;
  if (op->code == IR_attention_grad_bias && more)
    ir_set_attr(d->m, op, ir_attr_i("capture", ir_attr_int(op, "capture", 0) + more));
}

// ---- random draws -------------------------------------------------------------------------------

// Attributes `draws` and `begins` of an op (ir/place.h), from the leaves of what is drawn for,
// outer to inner: their extents in the whole and here, and steps of the axes that cut them.
typedef struct drawn {
  int n;
  int64_t whole[IR_MAX_LEAVES + 4], here[IR_MAX_LEAVES + 4];
  int64_t begin[IR_MAX_LEAVES + 4][BL_INNER];
} drawn;

// The leaves of the first dims of `t` (whole) but for those of the sample.
static void drawn_leaves(const dist *d, drawn *w, const ir_type *t, int dims, int value, codes in) {
  const pg_value *v = &d->g->value.at[value];
  ir_index *axis[IR_MAX_LEAVES];
  int naxis = d->m->batch ? ir_index_leaves(d->m->batch, axis, IR_MAX_LEAVES) : 0;
  for (int k = 0; k < dims; k++) {
    ir_index *leaf[IR_MAX_LEAVES];
    int n = ir_index_leaves(ir_root(t->dim[k]), leaf, IR_MAX_LEAVES);
    for (int i = 0; i < n; i++) {
      bool sample = false;
      for (int j = 0; j < naxis; j++) sample |= axis[j] == leaf[i];
      if (sample) continue;
      int code = SH_LEAF + pg_leaf(v, k, ir_root(leaf[i]));
      IR_CHECK(w->n < IR_MAX_LEAVES);
      w->whole[w->n] = w->here[w->n] = leaf[i]->size;
      for (int x = 0; x < BL_INNER; x++)
        if (d->axis[x] && code >= SH_LEAF && in.on[x] == code) w->here[w->n] /= d->d->key.size[x];
      for (int x = 0; x < BL_INNER; x++) {
        w->begin[w->n][x] = 0;
        if (!d->axis[x] || code < SH_LEAF || in.on[x] != code) continue;
        w->begin[w->n][x] = w->here[w->n];
        for (int y = 0; y < BL_INNER; y++)
          if (y != x && d->axis[y] && in.on[y] == code && dist_inside(d, value, code, y, x))
            w->begin[w->n][x] *= d->d->key.size[y];
      }
      w->n++;
    }
  }
}

static void set_draws(dist *d, ir_op *op, const drawn *w) {
  arena *a = d->m->arena;
  int naxes = d->m->mesh->naxes;
  int64_t *draws = arena_new(a, int64_t, 2 * w->n + 1), *begins = arena_new(a, int64_t, naxes),
          step = 1;
  bool any = false;
  for (int i = w->n - 1; i >= 0; i--) {
    draws[2 * i] = w->here[i];
    draws[2 * i + 1] = step;
    for (int x = 0; x < BL_INNER; x++) {
      if (!w->begin[i][x]) continue;
      add_begin(d, begins, x, w->begin[i][x] * step);
      any = true;
    }
    step *= w->whole[i];
  }
  if (!any) return;
  ir_set_attr(d->m, op, ir_attr_v("draws", draws, 2 * w->n));
  ir_set_attr(d->m, op, ir_attr_v("begins", begins, naxes));
}

static void adapt_draws(dist *d, ir_op *op, int number) {
  const pg_op *p = &d->g->op.at[number];
  int v = p->out[0];
  if (v < 0) return;
  ir_type whole = whole_type(d, number, p->nin);
  drawn w = {0};
  drawn_leaves(d, &w, &whole, whole.rank, v, dist_side(d, number, p->nin));
  set_draws(d, op, &w);
}

// ---- attention, all of it -----------------------------------------------------------------------

static void drawn_part(const dist *d, drawn *w, int number, const counted *c, int64_t whole,
                       int64_t here) {
  w->whole[w->n] = whole;
  w->here[w->n] = here;
  for (int x = 0; x < BL_INNER; x++) w->begin[w->n][x] = part_step(d, number, c, x);
  w->n++;
}

static void adapt_attention(dist *d, ir_region *r, ir_op *op, int number) {
  int q = ir_queries(op);
  const pg_op *p = &d->g->op.at[number];
  const ir_type *tq = &op->in[q]->type, *tk = &op->in[q + 1]->type;
  int64_t kv = ir_attr_int(op, "kv_heads", 1), rep = ir_attr_int(op, "rep", 1);
  // The size of a head is not cut: what is left of the dims tells how many heads are.
  ir_type wq = whole_type(d, number, q), wk = whole_type(d, number, q + 1);
  int64_t dh = wk.dim[wk.rank - 1]->size / kv;
  int64_t kv_now = tk->dim[tk->rank - 1]->size / dh;
  int64_t rep_now = tq->dim[tq->rank - 1]->size / (kv_now * dh);
  ir_set_attr(d->m, op, ir_attr_i("kv_heads", kv_now));
  ir_set_attr(d->m, op, ir_attr_i("rep", rep_now));
  int last = tq->rank - 1, rows = tq->rank - 2;
  unsigned heads = cut_dim(d, number, q, last), groups = cut_dim(d, number, q + 1, last);
  counted by_group = {q, last, heads & groups, kv_now},
          member = {q, last, heads & ~groups, rep_now},
          query = {q, rows, cut_dim(d, number, q, rows), tq->dim[rows]->size},
          key = {q + 1, rows, cut_dim(d, number, q + 1, rows), tk->dim[rows]->size};
  if (ir_attr_float(op, "drop", 0) > 0) {
    drawn w = {0};
    drawn_leaves(d, &w, &wq, rows, p->in[q], dist_side(d, number, q));
    drawn_part(d, &w, number, &by_group, kv, kv_now);
    drawn_part(d, &w, number, &member, rep, rep_now);
    drawn_part(d, &w, number, &query, wq.dim[rows]->size, tq->dim[rows]->size);
    drawn_part(d, &w, number, &key, wk.dim[rows]->size, tk->dim[rows]->size);
    set_draws(d, op, &w);
  }
  // Query heads are groups of those of keys: a part of the groups' members is no range of heads.
  bool some = rep_now != rep && kv_now > 1;
  begin_at(d, r, op, number, 1, (counted[]){by_group, member}, (int64_t[]){rep, 1}, 2,
           some ? rep_now : 0, rep);
  begin_at(d, r, op, number, 2, &query, (int64_t[]){1}, 1, 0, 0);
  begin_at(d, r, op, number, 3, &key, (int64_t[]){1}, 1, 0, 0);
}

// ---- all ----------------------------------------------------------------------------------------

// Of (heads n) the heads may be cut, and where it is summed over all else also n.
static void adapt_heads(dist *d, ir_op *op, int number) {
  int v = d->g->op.at[number].in[0];
  int64_t heads = ir_attr_int(op, "heads", 1);
  const ir_type *t = &op->in[0]->type, *whole = &d->whole[d->g->value.at[v].v->id];
  int64_t n = whole->dim[whole->rank - 1]->size / heads, now = t->dim[t->rank - 1]->size;
  if (heads > 1 && cut_dim(d, number, 0, t->rank - 1)) {
    if (now % n) dist_refuse(d, op, "a part of each head");
    ir_set_attr(d->m, op, ir_attr_i("heads", now / n));
  }
}

void dist_adapt(dist *d, ir_region *r, ir_op *op, int number) {
  if (pass_draws(op) && op->nout) adapt_draws(d, op, number);
  switch (op->code) {
    case IR_gather:
    case IR_scatter_add: adapt_table(d, r, op, number); break;
    case IR_nll: adapt_nll(d, r, op, number); break;
    case IR_nll_grad: adapt_nll_grad(d, r, op, number); break;
    case IR_attention:
    case IR_attention_grad:
    case IR_attention_grad_bias: adapt_attention(d, r, op, number); break;
    case IR_rope: {
      int dim = op->in[0]->type.rank - 2;
      counted c = {0, dim, cut_dim(d, number, 0, dim), op->in[0]->type.dim[dim]->size};
      set_begins(d, op, begins_of(d, number, &c, NULL, 1));
      ir_mirror m = mirror_of(d, number, &c);
      if (m.axes) set_mirror(d->m, op, &m);
      adapt_heads(d, op, number);
      break;
    }
    case IR_rmsnorm:
    case IR_rmsnorm_grad:
    case IR_rmsnorm_grad_w: adapt_heads(d, op, number); break;
    case IR_unfold:
      ir_set_attr(d->m, op,
                  ir_attr_i("outer", op->out[0]->type.dim[ir_attr_int(op, "dim", 0)]->size));
      break;
    default: break;
  }
}
