// The third step of a cut: gradients of weights leave the turns of backward.
//
// needs: a stage of a pipeline as cut.c writes it. keeps: values, to the bit. breaks: nothing;
// leaves dead results.
//
// Backward of a stage is a chain: it takes the gradient of what the stage made and ends in that of
// what it read, which the stage before waits for. Gradients of weights hang on the chain, nobody
// waits for them until the loop is over, and a pipeline has gaps to do them in (zero bubble,
// passes/plan/pipe_order.h). So every op is asked, from the last to the first, whether the chain
// needs it:
//   - messages do, and what they carry; what a repeat carries from layer to layer does, but for
//     sums of which each micro-batch has a part, even on the first stage, where nobody waits: all
//     gradients of its layers follow from it;
//   - what the chain reads does. All else goes: sums, their parts, and what only they read.
// A repeat has some of both. Its body is cut by the same question into two repeats over the same
// layers in the same direction. The one that stays stacks what the other one reads of its values;
// views, and what follows from nothing, are made in both.
//
// What turns of backward make and these read waits for them as what forward makes waits for
// backward (passes/layout.c).

#include "ir/place.h"
#include "ir/view.h"
#include "passes/cut.h"
#include "passes/pass.h"

typedef struct weights {
  ir_module *m;
  ir_func *f;
  int micro;    // axis of the mesh, or -1
  bool *chain;  // by value id, of those there were: the chain needs it
} weights;

// A repeat of a turn of backward.
typedef struct halves {
  weights *w;
  ir_op *stay, *go;
  int carried, stacked, results;  // of `stay`, as it was
} halves;

static bool in_backward(const ir_func *f, const ir_op *op) {
  int turn = cut_turn_of(f, op);
  return turn >= 0 && cut_phase_of(f, turn) == CUT_BACKWARD;
}

static int later(const weights *w, int segment) { return segment + 2 * w->f->chunks; }

static bool on_chain(const weights *w, const ir_op *op) {
  bool on = false;
  for (int k = 0; k < op->nout; k++) on |= w->chain[op->out[k]->id];
  return on;
}

static void need_operands(weights *w, const ir_op *op) {
  for (int k = 0; k < op->nin; k++) w->chain[op->in[k]->id] = true;
}

// ---- what of a repeat the chain needs -----------------------------------------------------------

static void need_result(weights *w, const ir_op *op, int k) {
  w->chain[op->out[k]->id] = w->chain[op->region[0]->yield.at[k]->id] = true;
}

// Returns whether the chain goes through the repeat at all.
static bool find_chain(weights *w, const ir_op *op) {
  const ir_region *body = op->region[0];
  int carried = (int)ir_attr_int(op, "carried", 0);
  bool any = false;
  for (int k = 0; k < op->nout; k++) {
    bool link = k < carried && !cut_is_partial(body->args.at[1 + k], w->micro);
    if (link || w->chain[op->out[k]->id]) need_result(w, op, k);
  }
  for (bool more = true; more;) {
    more = false;
    for (int i = body->ops.n - 1; i >= 0; i--)
      if (on_chain(w, body->ops.at[i])) need_operands(w, body->ops.at[i]);
    for (int k = 0; k < carried; k++) {
      if (!w->chain[body->args.at[1 + k]->id] || w->chain[op->out[k]->id]) continue;
      need_result(w, op, k);
      more = true;
    }
  }
  for (int k = 0; k < op->nout; k++) {
    if (k >= carried && w->chain[body->yield.at[k]->id]) w->chain[op->out[k]->id] = true;
    any |= w->chain[op->out[k]->id];
  }
  for (int k = 0; k < op->nin; k++)
    if (k < carried ? w->chain[op->out[k]->id] : w->chain[body->args.at[1 + k]->id])
      w->chain[op->in[k]->id] = true;
  return any;
}

// ---- the repeat that goes -----------------------------------------------------------------------

static ir_value *look_like(ir_value *v, const ir_value *old) {
  v->name = old->name;
  v->place = old->place;
  v->span = old->span;
  return v;
}

// `v` of the old body in the new one.
static ir_value *have(halves *h, ir_value *v) {
  if (v->mapped) return v->mapped;
  ir_module *m = h->w->m;
  ir_op *stay = h->stay, *op = v->def;
  ir_value *outer = NULL;
  bool slices = true;
  if (op && (ir_is_view(op) || !op->nin)) {
    for (int k = 0; k < op->nin; k++) have(h, op->in[k]);
    ir_clone_op(h->go->region[0], op);
    return v->mapped;
  }
  if (!op && v->pos > h->carried) {
    outer = stay->in[v->pos - 1];
    slices = v->pos <= h->carried + h->stacked;
  } else {
    outer = pass_save(m, stay, cut_layer_index(stay), v);
  }
  return v->mapped = look_like(pass_add_operand(m, h->go, outer, slices, v->type, v->name), v);
}

static bool goes(const halves *h, int k) { return !h->w->chain[h->stay->out[k]->id]; }

// With what it carries, and without a body.
static ir_op *new_repeat(halves *h, ir_region *r) {
  ir_module *m = h->w->m;
  ir_op *stay = h->stay;
  const ir_region *body = stay->region[0];
  ir_value **in = arena_new(m->arena, ir_value *, h->carried + 1);
  ir_type *out = arena_new(m->arena, ir_type, h->results + 1);
  int carried = 0, results = 0;
  for (int k = 0; k < h->results; k++) {
    if (!goes(h, k)) continue;
    if (k < h->carried) in[carried++] = stay->in[k];
    out[results++] = stay->out[k]->type;
  }
  ir_op *go = ir_op_raw(r, IR_repeat, in, carried, out, results);
  for (int k = 0; k < stay->nattrs; k++) ir_set_attr(m, go, stay->attr[k]);
  ir_set_attr(m, go, ir_attr_i("carried", carried));
  ir_set_attr(m, go, ir_attr_i("accum", carried));
  ir_set_attr(m, go, ir_attr_i("stacked", 0));
  go->region = arena_new(m->arena, ir_region *, 1);
  go->nregions = 1;
  go->region[0] = ir_region_new(m, go);
  go->span = stay->span;
  go->path = stay->path;
  go->mark = stay->mark;
  go->segment = later(h->w, stay->segment);
  for (int k = -1; k < h->carried; k++) {
    ir_value *arg = body->args.at[1 + k];
    if (k < 0 || goes(h, k))
      arg->mapped = look_like(ir_region_arg(go->region[0], arg->type, arg->name), arg);
  }
  return go;
}

// Repeat number `at` of the function.
static void split(weights *w, int at) {
  ir_region *r = w->f->body;
  ir_op *stay = r->ops.at[at];
  ir_region *body = stay->region[0];
  halves h = {.w = w,
              .stay = stay,
              .carried = (int)ir_attr_int(stay, "carried", 0),
              .stacked = (int)ir_attr_int(stay, "stacked", 0),
              .results = stay->nout};
  pass_clear_mapped(body);
  h.go = new_repeat(&h, r);
  pass_move_last(r, at + 1);
  for (int i = 0; i < body->ops.n; i++) {
    ir_op *op = body->ops.at[i];
    if (on_chain(w, op) || ir_is_view(op) || !op->nin) continue;
    for (int k = 0; k < op->nin; k++) have(&h, op->in[k]);
    ir_clone_op(h.go->region[0], op);
  }
  for (int k = 0, j = 0; k < h.results; k++) {
    if (!goes(&h, k)) continue;
    vec_push(w->m->arena, &h.go->region[0]->yield, have(&h, body->yield.at[k]));
    ir_value *out = look_like(h.go->out[j++], stay->out[k]);
    ir_replace_uses(r, stay->out[k], out);
  }
  pass_clear_mapped(body);
}

static bool some_go(const weights *w, const ir_op *op) {
  for (int k = 0; k < op->nout; k++)
    if (!w->chain[op->out[k]->id]) return true;
  return false;
}

void cut_weights(ir_func *f) {
  ir_region *r = f->body;
  ir_module *m = r->module;
  weights w = {.m = m, .f = f, .micro = m->mesh ? mesh_axis(m->mesh, "micro") : -1};
  w.chain = arena_new(m->arena, bool, m->next_value + 1);
  for (int i = r->ops.n - 1; i >= 0; i--) {
    ir_op *op = r->ops.at[i];
    if (!in_backward(f, op)) continue;
    bool layers = cut_is_layers(op);
    if (layers ? find_chain(&w, op) : on_chain(&w, op)) {
      if (layers && some_go(&w, op) && cut_layer_index(op)) split(&w, i);
      if (!layers) need_operands(&w, op);
    } else if (op->code == IR_send || op->code == IR_receive) {
      need_operands(&w, op);
    } else {
      op->segment = later(&w, op->segment);
    }
  }
}
