// ZeRO: what ranks would hold alike they share.
//
// needs: LOCAL whose gradients are complete (all_reduce) before one elementwise update a weight.
// keeps: values, but for the order in which the parts of the gradient norm are added. breaks: types
// of states, which become those of a rank's part.
//
// Ranks that differ only on `zero_axes` have the same weights and would make the same update of
// them. Here each makes a part of it, and has only that part of what nobody else reads:
//
//   %g  = all_reduce(%x)                    %g  = reduce_scatter(%x)     a part of each layer's
//   %w' = adamw(%w, %g, %m, %v, ...)        %p  = part(%w)
//                                           %p' = adamw(%p, %g, %m, %v, ...)
//   set(%w') {name="w"}                     %w' = all_gather(%p')
//                                           set(%w') {name="w"}
//
// A layer's elements are shared as they lie, ceil(n / ranks) each, so that the last ranks may have
// fewer; behind them is 0, which no update changes and no norm sees. A weight that only the update
// reads, because products read its rounded copy, is not gathered: its part is the state.
#include <string.h>

#include "ir/place.h"
#include "passes/pass.h"
#include "passes/ranks.h"

typedef struct zero {
  ir_module *m;
  ir_func *f;
  unsigned axes;
  int64_t ranks;
} zero;

// How a weight is shared.
typedef struct sharing {
  int64_t n, block;  // elements of a layer, and of a rank's part
  ir_type part;
  ir_share share;
} sharing;

static sharing sharing_of(const zero *z, const ir_state *w) {
  int64_t layers = w->stacked ? w->type.dim[0]->size : 1;
  sharing s = {.n = ir_elements(&w->type) / layers};
  s.block = (s.n + z->ranks - 1) / z->ranks;
  s.part = (ir_type){.dtype = w->type.dtype};
  if (w->stacked) s.part.dim[s.part.rank++] = w->type.dim[0];
  s.part.dim[s.part.rank++] = ir_index_new(z->m, "part", s.block);
  s.share = (ir_share){.axes = z->axes, .block = s.block, .whole = s.n};
  return s;
}

static ir_type as(ir_type t, ir_dtype dtype) {
  t.dtype = dtype;
  return t;
}

// Brings the last op of the function to number `at`.
static ir_value *exchange(zero *z, int at, ir_opcode code, ir_value *v, ir_type t,
                          const sharing *s) {
  ir_value *now = ranks_exchange(z->m, z->f->body, code, v, &t, z->axes, s->block,
                                 s->block * z->ranks == s->n ? 0 : s->n);
  now->def->segment = z->f->body->ops.at[at]->segment;
  pass_move_last(z->f->body, at);
  return now;
}

// Whether something but `update` reads the state, in any entry.
static bool read_elsewhere(const ir_module *m, const char *name, const ir_op *update) {
  for (int i = 0; i < m->funcs.n; i++) {
    const ir_region *r = m->funcs.at[i]->body;
    for (int k = 0; k < r->ops.n; k++) {
      const ir_op *op = r->ops.at[k];
      for (int j = 0; j < op->nin; j++) {
        const ir_op *def = op->in[j]->def;
        if (def && def->code == IR_state && op != update &&
            str_eq(ir_attr_str(def, "name", ""), name))
          return true;
      }
    }
  }
  return false;
}

static void share_state(zero *z, ir_state *st, const sharing *s) {
  IR_CHECK(st->nshares < IR_MAX_SHARES);
  if (!st->nshares) st->whole = st->type;
  st->share[st->nshares++] = s->share;
  st->type = as(s->part, st->type.dtype);
  for (int i = 0; i < z->m->funcs.n; i++) {
    const ir_region *r = z->m->funcs.at[i]->body;
    for (int k = 0; k < r->ops.n; k++)
      if (r->ops.at[k]->code == IR_state && str_eq(ir_attr_str(r->ops.at[k], "name", ""), st->name))
        r->ops.at[k]->out[0]->type = st->type;
  }
}

static ir_op *setter_of(const ir_region *r, const ir_value *v) {
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->code == IR_set && r->ops.at[i]->in[0] == v) return r->ops.at[i];
  return NULL;
}

// The weight that an elementwise op updates: operand 0, and a result is set to it.
static ir_state *updated_by(const zero *z, const ir_op *op) {
  if (!ir_is_elementwise(op) || op->nin < 2 || !op->in[0]->def) return NULL;
  if (op->in[0]->def->code != IR_state || !op->in[0]->type.rank) return NULL;
  ir_state *w = ir_state_find(z->m, ir_attr_str(op->in[0]->def, "name", ""));
  if (!w || w->cls != STATE_WEIGHT) return NULL;
  const ir_op *set = setter_of(z->f->body, op->out[0]);
  return set && str_eq(ir_attr_str(set, "name", ""), w->name) ? w : NULL;
}

// Only the update reads the gradient, and the sum of its squares.
static bool gradient_is_simple(const zero *z, const ir_op *update, ir_op **sum) {
  const ir_value *g = update->in[1];
  const ir_region *r = z->f->body;
  *sum = NULL;
  if (!g->def || g->def->code != IR_all_reduce || ir_exchange_axes(z->m, g->def) != z->axes)
    return false;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nin; k++) {
      if (op->in[k] != g || op == update) continue;
      if (op->code != IR_sum || *sum) return false;
      *sum = op;
    }
  }
  return true;
}

static void sum_part(zero *z, ir_op *sum, ir_value *part) {
  int64_t *axes = arena_new(z->m->arena, int64_t, part->type.rank);
  for (int d = 0; d < part->type.rank; d++) axes[d] = d;
  sum->in[0] = part;
  ir_set_attr(z->m, sum, ir_attr_v("axes", axes, part->type.rank));
  for (int a = 0; a < z->m->mesh->naxes; a++)
    if (z->axes >> a & 1)
      sum->out[0]->place = place_partial(z->m, sum->out[0]->place, PARTIAL_SUM, a);
}

static void share_update(zero *z, ir_op *op, ir_state *w, ir_op *sum) {
  ir_region *r = z->f->body;
  sharing s = sharing_of(z, w);
  ir_type whole = w->type;
  bool kept = read_elsewhere(z->m, w->name, op);  // then the weight stays whole
  ir_op *all = op->in[1]->def;
  ir_value *g = exchange(z, pass_number_of(all), IR_reduce_scatter, all->in[0],
                         as(s.part, all->in[0]->type.dtype), &s);
  op->in[1] = g;
  if (sum) sum_part(z, sum, g);
  if (kept)
    op->in[0] = exchange(z, pass_number_of(op), IR_part, op->in[0], s.part, &s);
  else
    share_state(z, w, &s);
  for (int k = 2; k < op->nin; k++) {
    const ir_op *def = op->in[k]->def;
    ir_state *st =
        def && def->code == IR_state ? ir_state_find(z->m, ir_attr_str(def, "name", "")) : NULL;
    if (st && st->cls == STATE_OPTIMIZER) share_state(z, st, &s);
  }
  for (int k = 0; k < op->nout; k++) {
    ir_value *v = op->out[k];
    v->type = as(s.part, v->type.dtype);
    ir_op *set = setter_of(r, v);
    const ir_state *st = set ? ir_state_find(z->m, ir_attr_str(set, "name", "")) : NULL;
    if (!st || (st->nshares && st->share[st->nshares - 1].axes == z->axes)) continue;
    set->in[0] = exchange(z, pass_number_of(set), IR_all_gather, v, as(whole, v->type.dtype), &s);
  }
}

static void share_updates(zero *z) {
  VEC(ir_op *) updates = {0};
  ir_region *r = z->f->body;
  ir_op *sum;
  for (int i = 0; i < r->ops.n; i++)
    if (updated_by(z, r->ops.at[i]) && gradient_is_simple(z, r->ops.at[i], &sum))
      vec_push(z->m->arena, &updates, r->ops.at[i]);
  for (int i = 0; i < updates.n; i++) {
    ir_state *w = updated_by(z, updates.at[i]);
    gradient_is_simple(z, updates.at[i], &sum);
    share_update(z, updates.at[i], w, sum);
  }
}

const char *pass_zero(ir_module *m, const pass_options *o) {
  ir_func *f = ir_func_find(m, "train_step");
  if (!f || !m->mesh) return NULL;
  zero z = {.m = m, .f = f, .axes = o->zero_axes, .ranks = mesh_parts(m->mesh, o->zero_axes)};
  if (o->zero && o->zero_axes) share_updates(&z);
  ranks_complete_norm(m, f);
  return NULL;
}
