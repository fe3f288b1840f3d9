// What of an op depends on where a rank's part begins.
//
// Ids that look up a cut table are counted from the part's first row: kernels read zeros for rows
// outside, and skip them when they add. A loss over a cut vocabulary is made of its parts:
//
//   nll, lse = nll(x, t)        n, l = nll(x', t')            of this part; t' counts from its
//   begin
//                               m = all_reduce max(l)
//                               s = all_reduce(exp(l - m))    lse = m + log(s)
//                               y = all_reduce(t' in the part ? l - n : 0)    the target's logit
//                               nll = t counts ? lse - y : 0
#include <string.h>

#include "ir/expr.h"
#include "ir/place.h"
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
      axes |= 1u << d->d->axis[x];
  return axes;
}

static unsigned cut_any(const dist *d, int number, int side) {
  return dist_cut_axes(d, dist_side(d, number, side));
}

// Puts what was built behind the last op in front of it.
static void before_last(ir_region *r, int built) {
  ir_op *op = r->ops.at[r->ops.n - 1 - built];
  for (int i = r->ops.n - 1 - built; i + 1 < r->ops.n; i++) r->ops.at[i] = r->ops.at[i + 1];
  r->ops.at[r->ops.n - 1] = op;
}

static ir_value *place_value(dist *d, ir_region *r, unsigned axes, int64_t scale, int segment) {
  ir_type t = ir_scalar(DT_i32);
  ir_op *op = ir_op_raw(r, IR_place, NULL, 0, &t, 1);
  ir_set_attr(d->m, op, ir_attr_s("axes", mesh_axes_text(d->m->arena, d->m->mesh, axes)));
  ir_set_attr(d->m, op, ir_attr_i("scale", scale));
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

// Ids counted from the first row of a rank's part of the table.
static ir_value *shifted(dist *d, ir_region *r, ir_value *ids, unsigned axes, int64_t rows,
                         int segment) {
  ir_value *begin = place_value(d, r, axes, rows, segment);
  ir_builder b = {.m = d->m, .at = r};
  ir_value *now = ir_build2(&b, IR_sub, ids, begin);
  if (!now) IR_BUG("distribute: %s", b.error);
  now->def->segment = segment;
  now->name = ids->name;
  return now;
}

static void adapt_table(dist *d, ir_region *r, ir_op *op, int number) {
  bool adds = op->code == IR_scatter_add;
  unsigned axes = adds ? cut_dim(d, number, op->nin, 0) : cut_dim(d, number, 0, 0);
  int64_t rows = adds ? op->out[0]->type.dim[0]->size : op->in[0]->type.dim[0]->size;
  if (adds) ir_set_attr(d->m, op, ir_attr_i("rows", rows));
  if (!axes) return;
  int n = r->ops.n;
  op->in[1] = shifted(d, r, op->in[1], axes, rows, op->segment);
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

static int64_t classes_of(const dist *d, const ir_value *logits, unsigned axes) {
  return logits->type.dim[logits->type.rank - 1]->size * mesh_parts(d->m->mesh, axes);
}

static void adapt_nll(dist *d, ir_region *r, ir_op *op, int number) {
  const ir_value *x = op->in[0];
  unsigned axes = cut_dim(d, number, 0, x->type.rank - 1);
  if (!axes) return;
  arena *a = d->m->arena;
  int64_t part = x->type.dim[x->type.rank - 1]->size, all = classes_of(d, x, axes);
  int n = r->ops.n, seg = op->segment;
  ir_value *target = op->in[1];
  op->in[1] = shifted(d, r, target, axes, part, seg);
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
  int64_t part = x->type.dim[x->type.rank - 1]->size, all = classes_of(d, x, axes);
  int n = r->ops.n;
  ir_value *target = op->in[2];
  const char *text = instead(d->m->arena, counting(d, op, all), "g");
  op->in[0] = map_of(d, r, "g, t", text, (ir_value *[]){op->in[0], target}, 2, op->segment);
  op->in[2] = shifted(d, r, target, axes, part, op->segment);
  before_last(r, r->ops.n - n);
  ir_set_attr(d->m, op, ir_attr_i("has_ignore", 0));
  ir_set_attr(d->m, op, ir_attr_i("part", 1));
}

// ---- attention ----------------------------------------------------------------------------------

// Masks and biases are functions of the sample, head, query and key, counted in the whole: argument
// `arg` of them becomes the local number and where the part begins, which is one more capture.
static void shift_argument(dist *d, ir_op *op, ir_value *begin, int arg) {
  bool masks = ir_attr_int(op, "has_mask", 0) != 0;
  int q = op->code == IR_attention ? 3 : 6, ncap = (int)ir_attr_int(op, "ncap_mask", 0);
  for (int i = 0; i < op->nregions; i++) {
    ir_region *r = op->region[i];
    pass_count_uses(r);
    if (!r->args.at[arg]->mark) continue;
    bool mask = masks && i == 0;
    ir_value **in = arena_new(d->m->arena, ir_value *, op->nin + 1);
    int at = mask ? q + ncap : op->nin;
    for (int k = 0; k < op->nin; k++) in[k + (k >= at)] = op->in[k];
    in[at] = begin;
    op->in = in;
    op->nin++;
    if (mask) ir_set_attr(d->m, op, ir_attr_i("ncap_mask", ++ncap));
    ir_value *capture = ir_region_arg(r, begin->type, "begin");
    ir_builder b = {.m = d->m, .at = r};
    int n = r->ops.n;
    ir_value *read = ir_build1(&b, IR_at, capture);
    ir_value *sum = read ? ir_build2(&b, IR_add, r->args.at[arg], read) : NULL;
    if (!sum) IR_BUG("distribute: %s", b.error);
    ir_replace_uses(r, r->args.at[arg], sum);
    sum->def->in[0] = r->args.at[arg];
    for (int k = 0, put = r->ops.n - n; k < put; k++) pass_move_last(r, 0);
  }
}

// Whether a mask or bias asks for that argument.
static bool asks_for(const ir_op *op, int arg) {
  bool asks = false;
  for (int i = 0; i < op->nregions; i++) {
    pass_count_uses(op->region[i]);
    asks |= op->region[i]->args.at[arg]->mark != 0;
  }
  return asks;
}

// Positions or heads of a part: `axes` cut dim `dim` of operand `side`, of which it has `part`.
static void begin_at(dist *d, ir_region *r, ir_op *op, int arg, unsigned axes, int64_t part) {
  if (!axes || !asks_for(op, arg)) return;
  int n = r->ops.n;
  ir_value *begin = place_value(d, r, axes, part, op->segment);
  before_last(r, r->ops.n - n);
  int masked = (int)ir_attr_int(op, "ncap_mask", 0);
  shift_argument(d, op, begin, arg);
  // A capture of the bias is counted among all captures.
  int more = (int)ir_attr_int(op, "ncap_mask", 0) - masked;
  if (op->code == IR_attention_grad_bias && more)
    ir_set_attr(d->m, op, ir_attr_i("capture", ir_attr_int(op, "capture", 0) + more));
}

static void adapt_attention(dist *d, ir_region *r, ir_op *op, int number) {
  int q = op->code == IR_attention ? 0 : 3;
  const ir_type *tq = &op->in[q]->type, *tk = &op->in[q + 1]->type;
  int64_t kv = ir_attr_int(op, "kv_heads", 1), rep = ir_attr_int(op, "rep", 1);
  int v = d->g->op.at[number].in[q + 1];
  // The size of a head is not cut: what is left of the dims tells how many heads are.
  const ir_type *whole = &d->whole[d->g->value.at[v].v->id];
  int64_t dh = whole->dim[whole->rank - 1]->size / kv;
  int64_t kv_now = tk->dim[tk->rank - 1]->size / dh;
  int64_t rep_now = tq->dim[tq->rank - 1]->size / (kv_now * dh);
  ir_set_attr(d->m, op, ir_attr_i("kv_heads", kv_now));
  ir_set_attr(d->m, op, ir_attr_i("rep", rep_now));
  bool heads = kv_now != kv || rep_now != rep;
  unsigned queries = cut_dim(d, number, q, tq->rank - 2),
           keys = cut_dim(d, number, q + 1, tk->rank - 2);
  if ((heads || queries || keys) && ir_attr_float(op, "drop", 0) > 0)
    dist_refuse(d, op, "dropout of a part of the probabilities");
  if (heads && kv_now != kv && rep_now != rep)
    dist_refuse(d, op, "heads and their groups cut at once");
  // Query heads are groups of those of keys: a part of the groups' members is no range of heads.
  if (heads && rep_now != rep && kv_now > 1 && asks_for(op, 1))
    dist_refuse(d, op, "a mask or bias that depends on the head, of a part of each group");
  int64_t nq = tq->dim[tq->rank - 2]->size, nk = tk->dim[tk->rank - 2]->size;
  unsigned by_head = cut_dim(d, number, q, tq->rank - 1);
  begin_at(d, r, op, 1, by_head, kv_now * rep_now);
  begin_at(d, r, op, 2, queries, nq);
  begin_at(d, r, op, 3, keys, nk);
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
  if (pass_draws(op) && op->nout && cut_any(d, number, op->nin)) {
    dist_refuse(d, op, "dropout of a part of a value");
    return;
  }
  switch (op->code) {
    case IR_gather:
    case IR_scatter_add: adapt_table(d, r, op, number); break;
    case IR_nll: adapt_nll(d, r, op, number); break;
    case IR_nll_grad: adapt_nll_grad(d, r, op, number); break;
    case IR_attention:
    case IR_attention_grad:
    case IR_attention_grad_bias: adapt_attention(d, r, op, number); break;
    case IR_rope: {
      unsigned axes = cut_dim(d, number, 0, op->in[0]->type.rank - 2);
      if (axes)
        ir_set_attr(d->m, op, ir_attr_s("axes", mesh_axes_text(d->m->arena, d->m->mesh, axes)));
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
