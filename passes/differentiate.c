// Adds the backward pass to train_step.
//
// needs: train_step outputs a scalar `loss`. keeps: the forward ops; repeats stay rolled.
// breaks: nothing. Leaves `output {name="grad:NAME"}` for each trained weight; pass `optimize`
// consumes them.
//
// A repeat is differentiated into a repeat that runs from the last layer to the first: it carries
// the gradients of the carried values and the sums of the invariants' gradients, reads slices of
// the stacks that the forward loop saves, and stacks the gradients of the stacked weights.

#include <string.h>

#include "ir/view.h"
#include "passes/autodiff.h"
#include "passes/pass.h"

static void diff_region(ad *c, ir_region *fwd);

bool ad_active(const ad *c, const ir_value *v) {
  return c->active[v->id] && ir_dtype_float(v->type.dtype);
}

ir_value *ad_ok(ad *c, ir_value *v) {
  if (!v) IR_BUG("differentiate: %s", c->b.error ? c->b.error : "no value");
  return v;
}

ir_value *ad_zeros(ir_region *at, const ir_type *t) {
  return ir_op_raw(at, IR_zeros, NULL, 0, t, 1)->out[0];
}

ir_region *ad_copy_region(ir_module *m, ir_region *from) {
  ir_region *to = ir_region_new(m, NULL);
  for (int i = 0; i < from->args.n; i++) {
    ir_value *a = from->args.at[i];
    a->mapped = ir_region_arg(to, a->type, a->name);
  }
  ir_clone_ops(to, from);
  for (int i = 0; i < from->yield.n; i++) vec_push(m->arena, &to->yield, from->yield.at[i]->mapped);
  return to;
}

// ---- what the backward region sees of forward values --------------------------------------------

static ir_value *new_slice(ad *c, ir_value *fwd) {
  ir_value *a = ir_region_arg(c->b.at, fwd->type, fwd->name);
  return a;
}

ir_value *ad_use(ad *c, ir_value *v) {
  if (!c->loop) return v;
  if (c->seen[v->id]) return c->seen[v->id];
  ir_op *op = v->def;
  ir_value *r = NULL;
  if (!op) {
    int carried = (int)ir_attr_int(c->loop, "carried", 0);
    int stacked = (int)ir_attr_int(c->loop, "stacked", 0);
    IR_CHECK(v->region == c->loop->region[0]);
    if (v->pos == 0) {
      r = c->layer;
    } else if (v->pos >= 1 + carried) {
      r = new_slice(c, v);
      if (v->pos < 1 + carried + stacked)
        vec_push(c->m->arena, &c->slices, (ad_saved){v, r});
      else
        vec_push(c->m->arena, &c->invariants, (ad_saved){v, r});
    }
  } else if (op->code == IR_const || op->code == IR_zeros) {
    ir_op *again = ir_op_raw(c->b.at, op->code, NULL, 0, &v->type, 1);
    for (int i = 0; i < op->nattrs; i++) ir_set_attr(c->m, again, op->attr[i]);
    r = again->out[0];
  } else if (ir_is_view(op)) {
    // Views cost nothing: save what they look at.
    ir_value *from = ad_use(c, op->in[0]);
    ir_type *types = arena_new(c->m->arena, ir_type, op->nout);
    for (int k = 0; k < op->nout; k++) types[k] = op->out[k]->type;
    ir_op *again = ir_op_raw(c->b.at, op->code, &from, 1, types, op->nout);
    for (int i = 0; i < op->nattrs; i++) ir_set_attr(c->m, again, op->attr[i]);
    for (int k = 0; k < op->nout; k++) c->seen[op->out[k]->id] = again->out[k];
    r = again->out[v->pos];
  }
  if (!r) {
    r = new_slice(c, v);
    vec_push(c->m->arena, &c->saved, (ad_saved){v, r});
  }
  c->seen[v->id] = r;
  return r;
}

// ---- gradients ----------------------------------------------------------------------------------

ir_value *ad_unbroadcast(ad *c, ir_value *g, const ir_type *like) {
  int lead = g->type.rank - like->rank;
  int64_t lead_axes[IR_MAX_RANK], unit_axes[IR_MAX_RANK];
  int nlead = 0, nunit = 0;
  for (int d = 0; d < g->type.rank; d++) {
    if (d < lead)
      lead_axes[nlead++] = d;
    else if (like->dim[d - lead]->size == 1 && g->type.dim[d]->size != 1)
      unit_axes[nunit++] = d;
  }
  if ((nunit || nlead) && ir_dtype_bytes(g->type.dtype) < ir_dtype_bytes(like->dtype)) {
    ir_attr to = ir_attr_s("dtype", ir_dtype_name(like->dtype));  // not rounded sums, widened
    ir_op *op = ir_build_full(&c->b, IR_cast, &g, 1, &to, 1, NULL, 0);
    g = ad_ok(c, op ? op->out[0] : NULL);
  }
  if (nunit) {
    ir_attr a[] = {ir_attr_v("axes", unit_axes, nunit), ir_attr_i("keep", 1)};
    ir_op *op = ir_build_full(&c->b, IR_sum, &g, 1, a, 2, NULL, 0);
    g = ad_ok(c, op ? op->out[0] : NULL);
  }
  if (nlead) {
    ir_attr a[] = {ir_attr_v("axes", lead_axes, nlead)};
    ir_op *op = ir_build_full(&c->b, IR_sum, &g, 1, a, 1, NULL, 0);
    g = ad_ok(c, op ? op->out[0] : NULL);
  }
  return g;
}

// g may lack dimensions that v has (a constant gradient): spread it.
static ir_value *spread(ad *c, ir_value *g, const ir_type *like) {
  if (g->type.rank == like->rank && ir_type_same(&g->type, like)) return g;
  int64_t dims[IR_MAX_RANK];
  for (int d = 0; d < g->type.rank; d++) dims[d] = like->rank - g->type.rank + d;
  ir_type t = *like;
  t.dtype = g->type.dtype;
  ir_op *op = ir_op_raw(c->b.at, IR_broadcast, &g, 1, &t, 1);
  ir_set_attr(c->m, op, ir_attr_v("dims", dims, g->type.rank));
  return op->out[0];
}

void ad_add(ad *c, ir_value *v, ir_value *g) {
  if (!g || !ad_active(c, v)) return;
  g = ad_unbroadcast(c, g, &v->type);
  g = spread(c, g, &v->type);
  if (g->type.dtype != v->type.dtype) {
    ir_attr a = ir_attr_s("dtype", ir_dtype_name(v->type.dtype));
    ir_op *op = ir_build_full(&c->b, IR_cast, &g, 1, &a, 1, NULL, 0);
    g = ad_ok(c, op ? op->out[0] : NULL);
  }
  ir_value **slot = &c->grad[v->id];
  if (*slot && g->def && g->def->code == IR_scatter_add && g->def->nin == 2) {
    // Rows are added to the gradient that is there: a table of zeros, filled and added as a whole,
    // would cost as much as the optimizer's step.
    ir_value *in[] = {g->def->in[0], g->def->in[1], *slot};
    ir_op *op = ir_build_full(&c->b, IR_scatter_add, in, 3, g->def->attr, g->def->nattrs, NULL, 0);
    *slot = ad_ok(c, op ? op->out[0] : NULL);
    return;
  }
  *slot = *slot ? ad_ok(c, ir_build2(&c->b, IR_add, *slot, g)) : g;
}

// ---- activity -----------------------------------------------------------------------------------

static void activity(ir_module *m, ir_region *r, bool *active);

static bool trained_state(ir_module *m, const ir_op *op) {
  const ir_state *s = ir_state_find(m, ir_attr_str(op, "name", ""));
  return s && s->cls == STATE_WEIGHT && s->trained;
}

static void activity_repeat(ir_module *m, ir_op *op, bool *active) {
  ir_region *body = op->region[0];
  int carried = (int)ir_attr_int(op, "carried", 0);
  for (int i = 0; i < op->nin; i++) active[body->args.at[1 + i]->id] |= active[op->in[i]->id];
  // A carried value is active when its start is, or becomes so by what the body yields.
  for (bool more = true; more;) {
    activity(m, body, active);
    more = false;
    for (int k = 0; k < carried; k++) {
      bool *arg = &active[body->args.at[1 + k]->id];
      if (active[body->yield.at[k]->id] && !*arg) *arg = more = true;
    }
  }
  for (int k = 0; k < op->nout; k++)
    active[op->out[k]->id] =
        active[body->yield.at[k]->id] || (k < carried && active[op->in[k]->id]);
}

static void activity(ir_module *m, ir_region *r, bool *active) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code == IR_repeat) {
      activity_repeat(m, op, active);
      continue;
    }
    bool any = op->code == IR_state && trained_state(m, op);
    for (int k = 0; k < op->nin; k++) any |= active[op->in[k]->id];
    if (op->code != IR_state && op->code != IR_repeat && !grad_rule(op->code)) any = false;
    for (int k = 0; k < op->nout; k++)
      active[op->out[k]->id] = any && ir_dtype_float(op->out[k]->type.dtype);
  }
}

// ---- repeat -------------------------------------------------------------------------------------

static ir_index *layer_index(ir_module *m, ir_op *op) {
  int carried = (int)ir_attr_int(op, "carried", 0);
  if (ir_attr_int(op, "stacked", 0) > 0) return op->in[carried]->type.dim[0];
  if (op->nout > carried) return op->out[carried]->type.dim[0];
  return ir_index_new(m, "layers", ir_attr_int(op, "count", 1));
}

static void diff_repeat(ad *outer, ir_op *op) {
  ir_module *m = outer->m;
  ir_region *body = op->region[0];
  int carried = (int)ir_attr_int(op, "carried", 0), stacked = (int)ir_attr_int(op, "stacked", 0);
  ir_index *layers = layer_index(m, op);
  bool wanted = false;
  for (int k = 0; k < op->nout; k++) wanted |= outer->grad[op->out[k]->id] != NULL;
  if (!wanted) return;

  ir_region *back = ir_region_new(m, NULL);
  ad c = {.m = m,
          .b = {.m = m, .at = back, .span = op->span, .path = op->path},
          .loop = op,
          .grad = outer->grad,
          .seen = outer->seen,
          .active = outer->active};
  c.layer = ir_region_arg(back, ir_scalar(DT_i32), "layer");

  // Carried into the backward body: gradients of active carried values, then the sums of the
  // gradients of active invariants.
  VEC(ir_value *) init = {0}, args = {0}, yields = {0};
  VEC(ad_saved) grads_in = {0};  // gradients of stacked results: outer stack, slice
  int *carry_of = arena_new(m->arena, int, carried + 1);
  for (int k = 0; k < carried; k++) {
    carry_of[k] = -1;
    if (!ad_active(outer, op->out[k])) continue;
    ir_value *g = outer->grad[op->out[k]->id];
    if (!g) g = ad_zeros(outer->b.at, &op->out[k]->type);
    carry_of[k] = init.n;
    vec_push(m->arena, &init, g);
    ir_value *a = ir_region_arg(back, body->args.at[1 + k]->type, "g");
    vec_push(m->arena, &args, a);
    // The body's yield and its argument may be one value (carried through untouched).
    c.grad[body->yield.at[k]->id] =
        c.grad[body->yield.at[k]->id]
            ? ad_ok(&c, ir_build2(&c.b, IR_add, c.grad[body->yield.at[k]->id], a))
            : a;
  }
  for (int k = carried; k < op->nout; k++) {
    ir_value *g = outer->grad[op->out[k]->id];
    if (!g || !ad_active(outer, op->out[k])) continue;
    ir_value *slice = ir_region_arg(back, body->yield.at[k]->type, "g");
    vec_push(m->arena, &grads_in, (ad_saved){g, slice});
    ad_add(&c, body->yield.at[k], slice);
  }
  VEC(int) sums = {0};  // operand numbers of invariants with a gradient
  for (int i = carried + stacked; i < op->nin; i++) {
    if (!ad_active(outer, op->in[i])) continue;
    vec_push(m->arena, &sums, i);
    vec_push(m->arena, &init, ad_zeros(outer->b.at, &op->in[i]->type));
    vec_push(m->arena, &args, ir_region_arg(back, op->in[i]->type, "sum"));
  }

  diff_region(&c, body);

  for (int k = 0; k < carried; k++) {
    if (carry_of[k] < 0) continue;
    ir_value *arg = body->args.at[1 + k];
    ir_value *g = c.grad[arg->id];
    // An argument carried through keeps the incoming gradient only through its own yield.
    vec_push(m->arena, &yields, g ? g : ad_zeros(back, &arg->type));
  }
  for (int s = 0; s < sums.n; s++) {
    ir_value *acc = args.at[args.n - sums.n + s];
    ir_value *g = c.grad[body->args.at[1 + sums.at[s]]->id];
    vec_push(m->arena, &yields, g ? ad_ok(&c, ir_build2(&c.b, IR_add, acc, g)) : acc);
  }
  int ncarried = yields.n;
  VEC(int) weights = {0};  // stacked operands with a gradient
  for (int i = carried; i < carried + stacked; i++) {
    ir_value *g = c.grad[body->args.at[1 + i]->id];
    if (!g) continue;
    vec_push(m->arena, &weights, i);
    vec_push(m->arena, &yields, g);
  }

  // Forward: one more stacked result per saved value.
  VEC(ir_value *) in = {0};
  for (int i = 0; i < init.n; i++) vec_push(m->arena, &in, init.at[i]);
  ir_region *final = back;
  VEC(ir_value *) order = {0};
  vec_push(m->arena, &order, c.layer);
  for (int i = 0; i < args.n; i++) vec_push(m->arena, &order, args.at[i]);
  for (int i = 0; i < c.saved.n; i++) {
    vec_push(m->arena, &in, pass_save(m, op, layers, c.saved.at[i].fwd));
    vec_push(m->arena, &order, c.saved.at[i].slice);
  }
  for (int i = 0; i < c.slices.n; i++) {
    vec_push(m->arena, &in, op->in[c.slices.at[i].fwd->pos - 1]);
    vec_push(m->arena, &order, c.slices.at[i].slice);
  }
  for (int i = 0; i < grads_in.n; i++) {
    vec_push(m->arena, &in, grads_in.at[i].fwd);
    vec_push(m->arena, &order, grads_in.at[i].slice);
  }
  int nstacked = in.n - init.n;
  for (int i = 0; i < c.invariants.n; i++) {
    vec_push(m->arena, &in, op->in[c.invariants.at[i].fwd->pos - 1]);
    vec_push(m->arena, &order, c.invariants.at[i].slice);
  }
  IR_CHECK(order.n == final->args.n && order.n == in.n + 1);
  for (int i = 0; i < order.n; i++) {
    final->args.at[i] = order.at[i];
    order.at[i]->pos = i;
  }
  final->yield.n = 0;
  for (int i = 0; i < yields.n; i++) vec_push(m->arena, &final->yield, yields.at[i]);

  ir_type *types = arena_new(m->arena, ir_type, yields.n + 1);
  for (int i = 0; i < yields.n; i++)
    types[i] = i < ncarried ? args.at[i]->type : pass_stacked(layers, &yields.at[i]->type);
  ir_op *rev = ir_op_raw(outer->b.at, IR_repeat, in.at, in.n, types, yields.n);
  rev->region = arena_new(m->arena, ir_region *, 1);
  rev->region[0] = final;
  rev->nregions = 1;
  final->owner = rev;
  rev->span = op->span;
  rev->path = op->path;
  ir_set_attr(m, rev, ir_attr_i("count", ir_attr_int(op, "count", 1)));
  ir_set_attr(m, rev, ir_attr_i("carried", ncarried));
  ir_set_attr(m, rev, ir_attr_i("stacked", nstacked));
  ir_set_attr(m, rev, ir_attr_i("reverse", !ir_attr_int(op, "reverse", 0)));
  ir_set_attr(m, rev, ir_attr_i("accum", sums.n));
  ir_set_attr(m, rev, ir_attr_i("first", ir_attr_int(op, "first", 0)));
  ir_set_attr(m, rev, ir_attr_i("step", ir_attr_int(op, "step", 1)));
  if (ir_get_attr(op, "name")) ir_set_attr(m, rev, *ir_get_attr(op, "name"));

  int n = 0;
  for (int k = 0; k < carried; k++)
    if (carry_of[k] >= 0) ad_add(outer, op->in[k], rev->out[n++]);
  for (int s = 0; s < sums.n; s++) ad_add(outer, op->in[sums.at[s]], rev->out[n++]);
  for (int s = 0; s < weights.n; s++) ad_add(outer, op->in[weights.at[s]], rev->out[n++]);
}

// ---- a region, backwards ------------------------------------------------------------------------

static void diff_op(ad *c, ir_op *op) {
  bool any = false;
  ir_value **g = arena_new(c->m->arena, ir_value *, op->nout + 1);
  for (int k = 0; k < op->nout; k++) {
    g[k] = c->grad[op->out[k]->id];
    any |= g[k] != NULL;
  }
  if (!any) return;
  c->b.span = op->span;
  c->b.path = op->path;
  if (op->code == IR_repeat) {
    diff_repeat(c, op);
    return;
  }
  grad_fn *rule = grad_rule(op->code);
  if (!rule) return;
  ir_value **gin = arena_new(c->m->arena, ir_value *, op->nin + 1);
  rule(c, op, g, gin);
  for (int i = 0; i < op->nin; i++) ad_add(c, op->in[i], gin[i]);
}

static void diff_region(ad *c, ir_region *fwd) {
  for (int i = fwd->ops.n - 1; i >= 0; i--) diff_op(c, fwd->ops.at[i]);
}

const char *pass_differentiate(ir_module *m, const pass_options *o) {
  (void)o;
  ir_func *f = ir_func_find(m, "train_step");
  if (!f) return NULL;
  ir_region *body = f->body;
  ir_value *loss = NULL;
  for (int i = 0; i < body->ops.n; i++) {
    ir_op *op = body->ops.at[i];
    if (op->code == IR_output && str_eq(ir_attr_str(op, "name", NULL), "loss")) loss = op->in[0];
  }
  if (!loss) return "train_step has no output `loss`";
  int n = m->next_value;
  bool *active = arena_new(m->arena, bool, n);
  activity(m, body, active);
  if (!active[loss->id]) return "`loss` depends on no trained weight";
  ad c = {.m = m, .b = {.m = m, .at = body}};
  c.grad = arena_new(m->arena, ir_value *, n);
  c.seen = arena_new(m->arena, ir_value *, n);
  c.active = active;
  int forward = body->ops.n;
  c.grad[loss->id] = ir_const(&c.b, loss->type.dtype, 1.0);
  for (int i = forward - 1; i >= 0; i--) diff_op(&c, body->ops.at[i]);
  for (int i = 0; i < forward; i++) {
    ir_op *op = body->ops.at[i];
    if (op->code != IR_state || !active[op->out[0]->id]) continue;
    ir_value *g = c.grad[op->out[0]->id];
    if (!g) g = ad_zeros(body, &op->out[0]->type);
    const char *name = ir_attr_str(op, "name", "");
    ir_op *out = ir_op_raw(body, IR_output, &g, 1, NULL, 0);
    ir_set_attr(m, out, ir_attr_s("name", arena_printf(m->arena, "grad:%s", name)));
  }
  return NULL;
}
