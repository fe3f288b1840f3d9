// Gives every value that a repeat carries or stacks, and every result, storage of its own; and what
// an op writes in place a value that nobody else reads.
//
// needs: LOCAL. keeps: values. breaks: nothing; adds copies (`cast` to the same type).
//
// The layout places what a body yields directly in the stack or ring it belongs to, so each yield
// must be made by a kernel of the body, once. Afterwards:
//   - a yield is the result of a non-view op of the body and appears once among the yields, or is
//     a carried argument that is saved as a stack (its ring then keeps all layers);
//   - the start of a carried value is made by a non-view op and used by that repeat alone;
//   - the operand that an op updates in place is made by a kernel of the same region and segment,
//     or is a finished stack that ranks reduce, and has no other reader (a cache is a state that
//     `append` alone writes);
//   - what ranks exchange is no view;
//   - stacked operands, invariants and operands of `set` and `output` are no views; an invariant
//     constant is inside the body instead.

#include <string.h>

#include "ir/place.h"
#include "ir/view.h"
#include "passes/pass.h"

// Inserts a copy of `v` into `r` at position `at`.
static ir_value *copy_at(ir_module *m, ir_region *r, int at, ir_value *v, int segment) {
  ir_value *now = pass_cast(m, r, v, v->type.dtype);
  now->def->segment = segment;
  pass_move_last(r, at);
  return now;
}

static bool made_here(const ir_value *v, const ir_region *r) {
  const ir_op *op = v->def;
  if (!op || op->parent != r || ir_is_view(op)) return false;
  if (ir_updated(op) >= 0 && op->code != IR_append) return false;  // it lies where its operand does
  switch (op->code) {
    case IR_const:
    case IR_input:
    case IR_arg:
    case IR_state:
    case IR_repeat: return false;
    default: return true;
  }
}

static void legalise_body(ir_module *m, ir_op *loop) {
  ir_region *r = loop->region[0];
  int carried = (int)ir_attr_int(loop, "carried", 0),
      stacked = (int)ir_attr_int(loop, "stacked", 0);
  for (int i = carried + stacked; i < loop->nin; i++) {
    double x;
    ir_op *def = loop->in[i]->def;
    if (!def || def->code != IR_const || !pass_const_value(loop->in[i], &x)) continue;
    ir_op *op = ir_op_raw(r, IR_const, NULL, 0, &loop->in[i]->type, 1);
    for (int k = 0; k < def->nattrs; k++) ir_set_attr(m, op, def->attr[k]);
    pass_move_last(r, 0);
    ir_replace_uses(r, r->args.at[1 + i], op->out[0]);
  }
  for (int k = 0; k < r->yield.n; k++) {
    ir_value *v = r->yield.at[k];
    bool saved_arg = k >= carried && !v->def && v->pos >= 1 && v->pos < 1 + carried;
    bool good = made_here(v, r) || saved_arg;
    for (int j = 0; j < k; j++) good &= r->yield.at[j] != v;
    if (!good) r->yield.at[k] = copy_at(m, r, r->ops.n, v, 0);
  }
}

// A stack that a repeat has made, or a sum over micro-batches, is a place of its own once the loop
// is over: a reduction among ranks may be made there.
static bool reduced_in_place(const ir_op *op, const ir_value *v, const ir_region *r) {
  const ir_op *def = v->def;
  if (op->code != IR_all_reduce || !def || def->parent != r || v->mark != 1) return false;
  bool stack = def->code == IR_repeat && v->pos >= ir_attr_int(def, "carried", 0);
  return (stack || made_here(v, r)) && (def->segment == op->segment || !(op->segment & 1));
}

// What ranks exchange lies in one block.
static void legalise_exchanges(ir_module *m, ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    ir_op *def = op->nin ? op->in[0]->def : NULL;
    if (!ir_is_exchange(op->code) || !def) continue;
    if (ir_is_view(def) || def->code == IR_const)
      op->in[0] = copy_at(m, r, i++, op->in[0], op->segment);
  }
}

// Value->mark holds use counts.
static void legalise_updates(ir_module *m, ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    int k = ir_updated(op);
    if (k < 0 || op->code == IR_append) continue;
    ir_value *v = op->in[k];
    if (reduced_in_place(op, v, r)) continue;
    if (!made_here(v, r) || v->mark != 1 || v->def->segment != op->segment)
      op->in[k] = copy_at(m, r, i++, v, op->segment);
  }
}

static void legalise_func(ir_module *m, ir_func *f) {
  ir_region *r = f->body;
  legalise_exchanges(m, r);
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->code == IR_repeat) legalise_exchanges(m, r->ops.at[i]->region[0]);
  pass_count_uses(r);
  legalise_updates(m, r);
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->code == IR_repeat) legalise_updates(m, r->ops.at[i]->region[0]);
  pass_count_uses(r);
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code == IR_set || op->code == IR_output) {
      ir_op *def = op->in[0]->def;
      bool bare = def && (ir_is_view(def) || def->code == IR_const || def->code == IR_input ||
                          def->code == IR_arg || (def->code == IR_state && op->code == IR_output));
      if (bare) op->in[0] = copy_at(m, r, i++, op->in[0], op->segment);
    }
    if (op->code != IR_repeat) continue;
    int carried = (int)ir_attr_int(op, "carried", 0);
    legalise_body(m, op);
    for (int k = 0; k < op->nin; k++) {
      ir_value *v = op->in[k];
      bool view = v->def && ir_is_view(v->def);
      bool shared =
          k < carried && (!made_here(v, r) || v->mark != 1 || v->def->segment != op->segment);
      if (view || shared) op->in[k] = copy_at(m, r, i++, v, op->segment);
    }
  }
}

const char *pass_legalise(ir_module *m, const pass_options *o) {
  (void)o;
  for (int i = 0; i < m->funcs.n; i++) legalise_func(m, m->funcs.at[i]);
  return NULL;
}
