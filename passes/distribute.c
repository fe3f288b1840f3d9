// Writes placements down: extents of one rank, and exchanges where a value changes its placement.
//
// needs: LOCAL before products carry epilogues, nothing in chunks; pass_options.distribution.
// keeps: what is computed, but for the order in which parts of sums are added, and that parts of a
// sum which all its readers round are rounded before they are. breaks: global shapes; entries but
// train_step and evaluate are refused. Weights lie where training has them.
//
// Ops of forward and backward ask for their operands in the placement of their strategy (the way
// there: plan/steps.h); what the graph calls enter, carry, leave and store are operands, yields and
// results of repeats. What comes behind (norm, clipping, updates) follows the gradients: each is
// brought to where its weight lies, and element by element the rest has that placement too. A
// gradient that the graph leaves partial over axes on which its weight is whole is summed with
// those of the data ranks.
#include "passes/distribute_impl.h"

#include <string.h>

#include "ir/place.h"
#include "ir/view.h"
#include "passes/pass.h"
#include "passes/ranks.h"

// ---- the answer of the planner ------------------------------------------------------------------

static int weight_value(const dist *d, const char *name) {
  const ir_state *s = ir_state_find(d->m, name);
  if (s && s->of && s->cls != STATE_WEIGHT) name = s->of;
  for (int v = 0; v < d->g->value.n; v++)
    if (d->g->value.at[v].weight && str_eq(d->g->value.at[v].weight->name, name)) return v;
  return -1;
}

// Where the weights of d's function lie that `train` has placed over axis x.
static const signed char *weights_as(const dist *d, const dist *train, int x) {
  if (!train->axis[x]) return NULL;
  signed char *code = arena_new(d->scratch, signed char, d->g->value.n + 1);
  for (int v = 0; v < d->g->value.n; v++) {
    const ir_state *w = d->g->value.at[v].weight;
    int there = w ? weight_value(train, w->name) : -1;
    if (there >= 0) code[v] = train->axis[x]->code[there];
  }
  return code;
}

// Weights lie as `train`, if that is not NULL, has them.
static const char *solve(dist *d, const dist *train) {
  const signed char *weights[BL_INNER] = {0};
  for (int x = 0; train && x < BL_INNER; x++) weights[x] = weights_as(d, train, x);
  bl_axes axes;
  const char *why = bl_solve(d->scratch, d->rules, &d->d->key, d->d->cluster,
                             cl_device_at(d->d->cluster, 0), weights, &axes);
  if (why) return why;
  memcpy(d->axis, axes.axis, sizeof d->axis);
  d->ways = steps_ways_of(d->scratch, d->rules, d->axis);
  return NULL;
}

// ---- numbers of ops -----------------------------------------------------------------------------

static void number_ops(const dist *d, ir_region *top) {
  for (int i = 0; i < top->ops.n; i++) {
    ir_op *op = top->ops.at[i];
    op->mark = 0;
    for (int k = 0; op->code == IR_repeat && k < op->region[0]->ops.n; k++)
      op->region[0]->ops.at[k]->mark = 0;
  }
  for (int i = 0; i < d->g->op.n; i++)
    if (d->g->op.at[i].kind == PG_OP) ((ir_op *)(uintptr_t)d->g->op.at[i].op)->mark = i + 1;
}

// The graph's op of a kind that makes (side 1) or takes (side 0) a value; -1: none.
static int move_of(const dist *d, pg_kind kind, int side, int value) {
  for (int i = 0; i < d->g->op.n; i++) {
    const pg_op *p = &d->g->op.at[i];
    if (p->kind == kind && (side ? p->out[0] : p->in[0]) == value) return i;
  }
  return -1;
}

// ---- forward and backward -----------------------------------------------------------------------

static void set_type(dist *d, ir_value *v) {
  int value = dist_value(d, v);
  if (value < 0) return;
  ir_type t = dist_local(d, &d->whole[v->id], value, dist_made(d, value));
  t.dtype = v->type.dtype;
  v->type = t;
}

static void put(dist *d, ir_region *r, ir_op *op) { vec_push(d->m->arena, &r->ops, op); }

// A scalar that the op makes a part of, on each rank: made whole at once.
static void complete_scalars(dist *d, ir_region *r, ir_op *op, int number) {
  unsigned axes = 0;
  for (int x = 0; x < BL_INNER; x++) {
    if (!d->axis[x]) continue;
    const sh_strategy *s = &d->rules->strategy[number][d->axis[x]->strategy[number]];
    bool part = s->cuts;
    for (int k = 0; k < op->nin; k++) part |= s->code[k] == SH_PARTIAL;
    if (part) axes |= d->d->axes[x];
  }
  for (int k = 0; k < op->nout && axes; k++) {
    ir_value *v = op->out[k];
    if (v->type.rank) continue;
    ir_value *all = ranks_exchange(d->m, r, IR_all_reduce, v, &v->type, axes, 0, 0);
    all->def->segment = op->segment;
    d->stands[v->id] = all;
  }
}

static void place_op(dist *d, ir_region *r, ir_op *op) {
  int number = op->mark - 1;
  if (number < 0) {  // of no graph: leaves, outputs, and what counts the batch
    for (int k = 0; k < op->nin; k++)
      op->in[k] = dist_form(d, r, op->segment, op->in[k], (codes){{0}});
    if (op->code == IR_state) set_type(d, op->out[0]);
    put(d, r, op);
    return;
  }
  for (int k = 0; k < op->nin; k++)
    op->in[k] = dist_form(d, r, op->segment, op->in[k], dist_side(d, number, k));
  for (int k = 0; k < op->nout; k++) set_type(d, op->out[k]);
  put(d, r, op);
  if (!d->error) dist_adapt(d, r, op, number);
  complete_scalars(d, r, op, number);
}

// What a body reads of an invariant in another placement is brought there once, before the loop.
static void hoist(dist *d, ir_region *r, ir_op *loop) {
  ir_region *body = loop->region[0];
  int first = (int)ir_attr_int(loop, "carried", 0) + (int)ir_attr_int(loop, "stacked", 0);
  for (int i = first, n = loop->nin; i < n; i++) {
    ir_value *arg = body->args.at[1 + i];
    int value = dist_value(d, arg);
    if (value < 0 || d->g->value.at[value].weight) continue;
    for (int o = 0; o < body->ops.n; o++) {
      const ir_op *op = body->ops.at[o];
      for (int k = 0; k < op->nin && op->mark; k++) {
        if (op->in[k] != arg) continue;
        codes in = dist_side(d, op->mark - 1, k);
        bool same = codes_same(in, dist_made(d, value));
        for (int f = 0; f < d->forms.n; f++)
          same |= d->forms.at[f].of == arg && codes_same(d->forms.at[f].in, in);
        if (same) continue;
        ir_value *outer = dist_form(d, r, loop->segment, loop->in[i], in);
        ir_value *now = pass_add_operand(d->m, loop, outer, false, outer->type, arg->name);
        made_form f = {arg, in, body, op->segment, now};
        vec_push(d->m->arena, &d->forms, f);
      }
    }
  }
}

static void place_repeat(dist *d, ir_region *r, ir_op *loop) {
  ir_region *body = loop->region[0];
  int carried = (int)ir_attr_int(loop, "carried", 0);
  for (int i = 0; i < loop->nin; i++) {
    ir_value *arg = body->args.at[1 + i];
    int value = dist_value(d, arg);
    int enter = i < carried && value >= 0 ? move_of(d, PG_ENTER, 1, value) : -1;
    if (enter >= 0)
      loop->in[i] = dist_form(d, r, loop->segment, loop->in[i], dist_side(d, enter, 0));
    if (enter < 0 && d->stands[loop->in[i]->id]) loop->in[i] = d->stands[loop->in[i]->id];
    set_type(d, arg);
  }
  hoist(d, r, loop);
  ir_op **op = arena_new(d->scratch, ir_op *, body->ops.n + 1);
  int n = body->ops.n;
  for (int i = 0; i < n; i++) op[i] = body->ops.at[i];
  body->ops.n = 0;
  for (int i = 0; i < n && !d->error; i++) place_op(d, body, op[i]);
  for (int k = 0; k < loop->nout && !d->error; k++) {
    ir_value *y = body->yield.at[k];
    int value = dist_value(d, k < carried ? body->args.at[1 + k] : loop->out[k]);
    int move = value < 0 ? -1 : move_of(d, k < carried ? PG_CARRY : PG_STORE, 1, value);
    if (move >= 0) body->yield.at[k] = dist_form(d, body, 0, y, dist_side(d, move, 0));
    if (move < 0 && d->stands[y->id]) body->yield.at[k] = d->stands[y->id];
  }
  put(d, r, loop);
  for (int k = 0; k < loop->nout && !d->error; k++) {
    ir_value *v = loop->out[k];
    int value = dist_value(d, v), state = k < carried ? dist_value(d, body->args.at[1 + k]) : -1;
    if (value < 0) continue;
    if (state < 0) {
      set_type(d, v);
      continue;
    }
    // It comes out as it is carried; its readers know it as it leaves.
    ir_type whole = d->whole[v->id];
    v->type = dist_local(d, &whole, state, dist_made(d, state));
    codes from = dist_made(d, state), to = dist_made(d, value);
    if (!codes_same(from, to))
      d->stands[v->id] = dist_bring(d, r, loop->segment, v, &whole, state, from, to);
  }
}

// ---- behind them --------------------------------------------------------------------------------

static unsigned cut_of(const dist *d, const ir_value *v) {
  return v->id < d->ncut ? d->cut[v->id] : 0;
}

static void set_cut(dist *d, const ir_value *v, unsigned axes) {
  if (v->id >= d->ncut) {
    int n = 2 * v->id + 64;
    unsigned *now = arena_new(d->scratch, unsigned, n);
    if (d->ncut) memcpy(now, d->cut, sizeof *now * (size_t)d->ncut);
    d->cut = now;
    d->ncut = n;
  }
  d->cut[v->id] = axes;
}

// A gradient as its weight lies, but for the axes over which it is left partial: *partial.
static ir_value *gradient(dist *d, ir_region *r, const ir_op *op, ir_value *v, unsigned *partial) {
  int value = dist_value(d, v), update = move_of(d, PG_UPDATE, 0, value);
  codes in = update >= 0 ? dist_side(d, update, 0) : (codes){{0}};
  *partial = dist_partial_axes(d, in);
  ir_value *now = dist_form(d, r, op->segment, v, in);
  set_cut(d, now, dist_cut_axes(d, in));
  return now;
}

// A gradient that is partial over axes, whole; once, however many read it.
static ir_value *completed(dist *d, ir_region *r, const ir_op *op, ir_value *v, unsigned axes) {
  for (int i = 0; i < d->sums.n; i++)
    if (d->sums.at[i]->def->in[0] == v) return d->sums.at[i];
  ir_value *whole = ranks_exchange(d->m, r, IR_all_reduce, v, &v->type, axes, 0, 0);
  whole->def->segment = op->segment;
  set_cut(d, whole, cut_of(d, v));
  vec_push(d->scratch, &d->sums, whole);
  return whole;
}

static void follow(dist *d, ir_region *r, ir_op *op) {
  unsigned partial = 0, cut = 0;
  const ir_value *like = NULL;
  if (op->code == IR_state) {
    int value = weight_value(d, ir_attr_str(op, "name", ""));
    if (value >= 0) {
      codes in = dist_made(d, value);
      op->out[0]->type = dist_local(d, &d->whole[op->out[0]->id], value, in);
      set_cut(d, op->out[0], dist_cut_axes(d, in));
    }
    put(d, r, op);
    return;
  }
  for (int k = 0; k < op->nin; k++) {
    ir_value *v = op->in[k];
    int value = dist_value(d, v);
    unsigned left = 0;
    if (value >= 0 && !d->g->value.at[value].weight)
      op->in[k] = gradient(d, r, op, v, &left);
    else if (d->stands[v->id])
      op->in[k] = d->stands[v->id];
    if (value >= 0 && d->g->value.at[value].weight)
      set_cut(d, v, dist_cut_axes(d, dist_made(d, value)));
    // Ranks that have the same weights are asked once, by the sum that is there among data ranks. A
    // part that tensor ranks have of it is summed before.
    unsigned apart = left & d->d->axes[BL_TENSOR];
    if (op->code != IR_all_reduce) apart = left;
    if (apart) {
      op->in[k] = completed(d, r, op, op->in[k], apart);
      left &= ~apart;
    }
    partial |= left;
    if (cut_of(d, op->in[k])) cut |= cut_of(d, op->in[k]), like = op->in[k];
  }
  if (partial)
    ir_set_attr(d->m, op,
                ir_attr_s("axes", mesh_axes_text(d->m->arena, d->m->mesh,
                                                 partial | ir_exchange_axes(d->m, op))));
  put(d, r, op);
  for (int k = 0; k < op->nout && cut; k++) {
    ir_value *v = op->out[k];
    if (op->code == IR_sum && v->type.rank == 0) {
      const ir_place *p = NULL;
      for (int a = 0; a < d->m->mesh->naxes; a++)
        if (cut >> a & 1) p = place_partial(d->m, p, PARTIAL_SUM, a);
      v->place = p;
    } else if ((op->code == IR_all_reduce || ir_is_elementwise(op)) &&
               v->type.rank == like->type.rank) {
      ir_type t = like->type;
      t.dtype = v->type.dtype;
      v->type = t;
      set_cut(d, v, cut);
    } else {
      dist_refuse(d, op, "it does something to a cut gradient");
    }
  }
}

// ---- all ----------------------------------------------------------------------------------------

static void share_states(dist *d) {
  for (int i = 0; i < d->m->states.n; i++) {
    ir_state *s = d->m->states.at[i];
    int value = weight_value(d, s->name);
    if (value >= 0) dist_share(d, s, value, dist_made(d, value));
  }
}

static const char *distribute(dist *d, ir_func *f) {
  ir_region *top = f->body;
  number_ops(d, top);
  d->nwhole = d->m->next_value;
  d->whole = arena_new(d->scratch, ir_type, d->nwhole + 1);
  d->stands = arena_new(d->scratch, ir_value *, 8 * d->nwhole + 4096);
  for (int i = 0; i < top->ops.n; i++) {
    const ir_op *op = top->ops.at[i];
    for (int k = 0; k < op->nout; k++) d->whole[op->out[k]->id] = op->out[k]->type;
    const ir_region *body = op->code == IR_repeat ? op->region[0] : NULL;
    for (int k = 0; body && k < body->args.n; k++)
      d->whole[body->args.at[k]->id] = body->args.at[k]->type;
    for (int j = 0; body && j < body->ops.n; j++)
      for (int k = 0; k < body->ops.at[j]->nout; k++)
        d->whole[body->ops.at[j]->out[k]->id] = body->ops.at[j]->out[k]->type;
  }
  int n = top->ops.n;
  ir_op **op = arena_new(d->scratch, ir_op *, n + 1);
  for (int i = 0; i < n; i++) op[i] = top->ops.at[i];
  top->ops.n = 0;
  for (int i = 0; i < n && !d->error; i++) {
    if (op[i]->segment > d->g->segment)
      follow(d, top, op[i]);
    else if (op[i]->code == IR_repeat)
      place_repeat(d, top, op[i]);
    else
      place_op(d, top, op[i]);
    if (d->m->next_value > 8 * d->nwhole + 4096) IR_BUG("more values than there is room for");
  }
  return d->error;
}

// What is asked of the planner for one function.
static const char *answer(dist *d, const ir_func *f, const dist *train) {
  d->g = pg_read_func(d->scratch, d->m, f);
  if (d->g->error) return d->g->error;
  d->rules = sh_rules_of(d->scratch, d->g);
  const char *why = solve(d, train);
  if (!why) dist_check_padding(d);
  if (!why) dist_find_mirrored(d);
  return why ? why : d->error;
}

const char *pass_distribute(ir_module *m, const pass_options *o) {
  if (!o->distribution) return NULL;
  ir_func *f = ir_func_find(m, "train_step"), *eval = ir_func_find(m, "evaluate");
  if (!f || m->funcs.n > 1 + (eval != NULL))
    return "only a training step and what evaluates are distributed so far";
  arena scratch;
  arena_init(&scratch);
  scratch.oom = m->arena->oom;
  scratch.oom_ctx = m->arena->oom_ctx;
  // The planner's graph, and so its answer, is that of one sample.
  ir_index *batch = m->batch ? ir_root(m->batch) : NULL;
  int64_t samples = batch ? batch->size : 0;
  if (batch) batch->size = 1;
  dist d = {.m = m, .scratch = &scratch, .d = o->distribution, .extents = {.arena = m->arena}};
  dist e = d;
  const char *why = answer(&d, f, NULL);
  if (!why && eval) why = answer(&e, eval, &d);
  if (batch) batch->size = samples;
  if (!why) why = distribute(&d, f);
  e.extents = d.extents;
  if (!why && eval) why = distribute(&e, eval);
  if (!why) share_states(&d);
  if (!why) why = d.error;
  arena_free(&scratch);
  return why;
}
