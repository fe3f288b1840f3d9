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
// With zero = 2 gradients are parts as soon as they are made: each micro-batch's is reduced in the
// body that makes it, and the sum over micro-batches is one of parts. With zero = 3 weights are
// parts too, the rounded copies with them; a body gathers the layer it works on, forward and
// backward.
//
//   %d = einsum(...) {accumulate=1}         %d = einsum(...)
//   yield %d                                %p = reduce_scatter(%d)
//                                           yield accumulate(%p)
//
// A gradient that some of these ranks have whole already is summed among the others, and each takes
// its part of it.
//
// Where only some of the data ranks share (`data.1`), the others hold the same parts, and parts of
// sums are summed among those.
//
// A layer's elements are shared as they lie, ceil(n / ranks) each, so that the last ranks may have
// fewer; behind them is 0, which no update changes and no norm sees. A weight that only the update
// reads, because products read its rounded copy, is not gathered: its part is the state. Where
// others read it too (a table that is looked up), it is gathered, and its copy is not.
#include <string.h>

#include "ir/place.h"
#include "ir/rule.h"
#include "passes/pass.h"
#include "passes/ranks.h"

typedef struct zero {
  ir_module *m;
  ir_func *f;
  int stage;  // 1, 2, 3
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
  if (!g->def) return false;
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

// ---- gradients as they are made -----------------------------------------------------------------

// `v`, the last op of `r` made it, as a part of what the ranks have together.
static ir_value *scattered(zero *z, ir_region *r, ir_value *v, const ir_type *part,
                           const sharing *s, int segment) {
  ir_value *now = ranks_exchange(z->m, r, IR_reduce_scatter, v, part, z->axes, s->block,
                                 s->block * z->ranks == s->n ? 0 : s->n);
  now->def->segment = segment;
  return now;
}

// A sum over micro-batches becomes one of parts. False: `v` is no such sum.
static bool scatter_summands(zero *z, ir_region *r, ir_value **v, const ir_type *part,
                             const sharing *s) {
  ir_op *sum = (*v)->def;
  if (!sum || sum->parent != r || !ir_accumulates(sum)) return false;
  int at = pass_number_of(sum), n = r->ops.n;
  ir_value *one = sum->code == IR_accumulate ? sum->in[0] : *v;
  ir_value *now = scattered(z, r, one, part, s, sum->segment);
  ir_op *acc = ir_op_raw(r, IR_accumulate, &now, 1, part, 1);
  acc->segment = sum->segment;
  acc->span = sum->span;
  if (sum->code != IR_accumulate) {
    ir_set_attr(z->m, sum, ir_attr_i("accumulate", 0));
    sum->out[0]->place = NULL;
  }
  for (int k = n; k < r->ops.n; k++) pass_move_last(r, at + 1);
  *v = acc->out[0];
  return true;
}

// The gradient `all` completes, reduced where it is made; NULL: that is not known to be possible.
static ir_value *reduced_early(zero *z, ir_op *all, const sharing *s) {
  ir_value *x = all->in[0];
  ir_op *loop = x->def && x->def->code == IR_repeat ? x->def : NULL;
  ir_type part = as(s->part, x->type.dtype);
  if (!loop) return scatter_summands(z, z->f->body, &x, &part, s) ? x : NULL;
  if (x->pos < ir_attr_int(loop, "carried", 0) || ir_attr_int(loop, "stream", 0)) return NULL;
  ir_region *body = loop->region[0];
  ir_value **y = &body->yield.at[x->pos];
  ir_type slice = {.dtype = part.dtype, .rank = 1, .dim = {part.dim[1]}};
  for (int k = 0; k < body->yield.n; k++)
    if (k != x->pos && body->yield.at[k] == *y) return NULL;
  if (part.rank != 2) return NULL;
  if (!scatter_summands(z, body, y, &slice, s)) *y = scattered(z, body, *y, &slice, s, 0);
  x->type = part;
  x->place = NULL;
  return x;
}

// ---- weights as they are read -------------------------------------------------------------------

static ir_value *gathered(zero *z, ir_region *r, int at, ir_value *v, const ir_type *whole,
                          const sharing *s, int segment) {
  ir_value *now = ranks_exchange(z->m, r, IR_all_gather, v, whole, z->axes, s->block,
                                 s->block * z->ranks == s->n ? 0 : s->n);
  now->def->segment = segment;
  pass_move_last(r, at);
  return now;
}

// In a body: the slice is gathered before its first reader.
static void gather_slices(zero *z, ir_op *loop, const ir_value *stack, const ir_type *whole,
                          const sharing *s) {
  ir_region *body = loop->region[0];
  for (int i = 0; i < loop->nin; i++) {
    if (loop->in[i] != stack) continue;
    ir_value *arg = body->args.at[1 + i];
    bool slice = arg->type.rank < whole->rank;
    ir_type t = arg->type;
    arg->type = (ir_type){.dtype = t.dtype, .rank = stack->type.rank - slice};
    for (int k = 0; k < arg->type.rank; k++) arg->type.dim[k] = stack->type.dim[k + slice];
    int first = 0;
    bool read = false;
    for (; first < body->ops.n && !read; first += !read)
      for (int k = 0; k < body->ops.at[first]->nin; k++) read |= body->ops.at[first]->in[k] == arg;
    if (!read) continue;
    ir_value *now = gathered(z, body, first, arg, &t, s, 0);
    ir_replace_uses(body, arg, now);
    now->def->in[0] = arg;
  }
}

// At the top: once in each segment that reads it; the update reads the part.
static void gather_whole(zero *z, ir_region *r, ir_value *v, const ir_type *whole,
                         const ir_op *update, const sharing *s) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    bool read = false;
    for (int k = 0; k < op->nin && op->code != IR_repeat; k++) read |= op->in[k] == v;
    if (!read || op == update || op->code == IR_all_gather) continue;
    ir_value *now = gathered(z, r, i, v, whole, s, op->segment);
    for (int j = i + 1; j < r->ops.n && r->ops.at[j]->segment == op->segment; j++) {
      ir_op *other = r->ops.at[j];
      for (int k = 0; k < other->nin && other->code != IR_repeat && other != update; k++)
        if (other->in[k] == v) other->in[k] = now;
    }
  }
}

// What reads the state `name`, of which ranks have parts now, in all entries; but `update`.
static void gather_reads(zero *z, const char *name, const ir_type *whole, const ir_op *update,
                         const sharing *s) {
  for (int i = 0; i < z->m->funcs.n; i++) {
    ir_region *r = z->m->funcs.at[i]->body;
    for (int k = 0; k < r->ops.n; k++) {
      ir_op *op = r->ops.at[k];
      if (op->code != IR_state || !str_eq(ir_attr_str(op, "name", ""), name)) continue;
      ir_value *v = op->out[0];
      for (int j = 0; j < r->ops.n; j++)
        if (r->ops.at[j]->code == IR_repeat) gather_slices(z, r->ops.at[j], v, whole, s);
      gather_whole(z, r, v, whole, update, s);
    }
  }
}

// ---- updates ------------------------------------------------------------------------------------

static ir_state *copy_of(const zero *z, const ir_state *w) {
  for (int i = 0; i < z->m->states.n; i++) {
    ir_state *s = z->m->states.at[i];
    if (s->cls == STATE_COPY && str_eq(s->of, w->name)) return s;
  }
  return NULL;
}

// The copy of a weight that is gathered is rounded from what was gathered: the set of a copy stands
// behind that of its weight (pass `narrow`).
static ir_value *rounded(zero *z, ir_op *set, ir_value *master, ir_dtype t) {
  ir_region *r = z->f->body;
  ir_value *now = pass_cast(z->m, r, master, t);
  now->def->segment = set->segment;
  now->def->span = set->span;
  pass_move_last(r, pass_number_of(set));
  return now;
}

// Result k of a map that has more, which nobody reads.
static void drop_result(ir_op *op, int k) {
  ir_region *fn = op->region[0];
  ir_op *maker = fn->yield.at[k]->def;
  for (; k + 1 < op->nout; k++) {
    op->out[k] = op->out[k + 1];
    op->out[k]->pos = k;
    fn->yield.at[k] = fn->yield.at[k + 1];
  }
  op->nout--;
  fn->yield.n--;
  pass_count_uses(fn);
  if (maker && maker->nout == 1 && !maker->out[0]->mark) pass_take_out(fn, pass_number_of(maker));
}

static void share_update(zero *z, ir_op *op, ir_state *w, ir_op *sum) {
  ir_region *r = z->f->body;
  sharing s = sharing_of(z, w);
  ir_type whole = w->type;
  // Then the weight stays whole.
  bool kept = z->stage < 3 && read_elsewhere(z->m, w->name, op);
  ir_op *all = op->in[1]->def;
  // Summed over more axes than share it: the parts of its sum are summed over the others.
  unsigned over = all->code == IR_all_reduce ? ir_exchange_axes(z->m, all) : 0;
  bool scatters = over && (over & z->axes) == z->axes;
  ir_value *g = scatters && z->stage > 1 ? reduced_early(z, all, &s) : NULL, *sums = op->in[1];
  if (!g && scatters)
    g = exchange(z, pass_number_of(all), IR_reduce_scatter, all->in[0],
                 as(s.part, all->in[0]->type.dtype), &s);
  else if (!g)
    g = exchange(z, pass_number_of(sum ? sum : op), IR_part, sums, as(s.part, sums->type.dtype),
                 &s);
  if (scatters && over != z->axes) {
    g = ranks_exchange(z->m, r, IR_all_reduce, g, &g->type, over & ~z->axes, 0, 0);
    g->def->segment = all->segment;
    pass_move_last(r, pass_number_of(all));
  }
  op->in[1] = g;
  if (sum) sum_part(z, sum, g);
  if (scatters) pass_take_out(r, pass_number_of(all));
  if (kept)
    op->in[0] = exchange(z, pass_number_of(op), IR_part, op->in[0], s.part, &s);
  else
    share_state(z, w, &s);
  ir_state *copy = z->stage == 3 ? copy_of(z, w) : NULL;
  if (z->stage == 3) gather_reads(z, w->name, &whole, op, &s);
  if (copy) {
    ir_type t = copy->type;
    share_state(z, copy, &s);
    gather_reads(z, copy->name, &t, NULL, &s);
  }
  for (int k = 2; k < op->nin; k++) {
    const ir_op *def = op->in[k]->def;
    ir_state *st =
        def && def->code == IR_state ? ir_state_find(z->m, ir_attr_str(def, "name", "")) : NULL;
    if (st && st->cls == STATE_OPTIMIZER) share_state(z, st, &s);
  }
  ir_value *master = NULL;
  int useless = -1;
  for (int k = 0; k < op->nout; k++) {
    ir_value *v = op->out[k];
    v->type = as(s.part, v->type.dtype);
    ir_op *set = setter_of(r, v);
    const ir_state *st = set ? ir_state_find(z->m, ir_attr_str(set, "name", "")) : NULL;
    if (!st || (st->nshares && st->share[st->nshares - 1].axes == z->axes)) continue;
    if (master && st->cls == STATE_COPY && op->code == IR_map && op->nregions) {
      set->in[0] = rounded(z, set, master, st->type.dtype);
      useless = k;
      continue;
    }
    set->in[0] = exchange(z, pass_number_of(set), IR_all_gather, v, as(whole, v->type.dtype), &s);
    if (st == w) master = set->in[0];
  }
  if (useless >= 0) drop_result(op, useless);
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
  zero z = {.m = m,
            .f = f,
            .stage = o->zero,
            .axes = o->zero_axes,
            .ranks = mesh_parts(m->mesh, o->zero_axes)};
  if (o->zero && o->zero_axes) share_updates(&z);
  ranks_complete_norm(m, f);
  return NULL;
}
