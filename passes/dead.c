// Removes ops whose results nobody uses.
//
// needs: nothing. keeps: everything else. breaks: nothing.
// Ops with effects (set, output) are live, and so is what a live op reads; the rest goes. A repeat
// loses carried and stacked results, operands and arguments that became useless: a carried value is
// live when it is read after the loop or when a live value of the body follows from it, so values
// that only lead to themselves go.

#include <string.h>

#include "passes/pass.h"

// Every stage of a pipeline has all inputs, because every rank loads them (and counts targets).
static bool has_effect(const ir_op *op) {
  if (op->code == IR_input) return op->parent->module->pipe_stages > 0;
  return op->code == IR_set || op->code == IR_output || op->code == IR_send;
}

static void drop(void *vec_at, int *n, int i, size_t size) {
  char *at = vec_at;
  memmove(at + (size_t)i * size, at + (size_t)(i + 1) * size, (size_t)(*n - i - 1) * size);
  (*n)--;
}

static void drop_value(ir_value **at, int *n, int i) { drop(at, n, i, sizeof *at); }

static void renumber(ir_value **at, int n) {
  for (int i = 0; i < n; i++) at[i]->pos = i;
}

// ---- liveness: value->mark is 1 for live values -------------------------------------------------

static void mark_live(ir_region *r);

// Marks the body and the operands of a live repeat. A carried value that is live anywhere is so as
// result, argument, yield and operand.
static void mark_repeat(ir_op *op) {
  ir_region *body = op->region[0];
  int carried = (int)ir_attr_int(op, "carried", 0);
  for (bool more = true; more;) {
    for (int k = 0; k < op->nout; k++)
      if (op->out[k]->mark) body->yield.at[k]->mark = 1;
    mark_live(body);
    more = false;
    for (int k = 0; k < carried; k++) {
      if (!body->args.at[1 + k]->mark || op->out[k]->mark) continue;
      op->out[k]->mark = 1;
      more = true;
    }
  }
  for (int k = 0; k < op->nin; k++)
    if (k < carried ? op->out[k]->mark : body->args.at[1 + k]->mark) op->in[k]->mark = 1;
}

static void mark_live(ir_region *r) {
  for (int i = r->ops.n - 1; i >= 0; i--) {
    ir_op *op = r->ops.at[i];
    bool live = has_effect(op);
    for (int k = 0; k < op->nout; k++) live |= op->out[k]->mark != 0;
    if (!live) continue;
    if (op->code == IR_repeat) {
      mark_repeat(op);
      continue;
    }
    for (int k = 0; k < op->nin; k++) op->in[k]->mark = 1;
  }
}

// ---- sweeping -----------------------------------------------------------------------------------

static void trim_repeat(ir_module *m, ir_op *op) {
  ir_region *body = op->region[0];
  int carried = (int)ir_attr_int(op, "carried", 0), stacked = (int)ir_attr_int(op, "stacked", 0);
  int accum = (int)ir_attr_int(op, "accum", 0);
  for (int k = op->nin - 1; k >= carried; k--) {  // slices and invariants
    if (body->args.at[1 + k]->mark) continue;
    drop_value(op->in, &op->nin, k);
    drop_value(body->args.at, &body->args.n, 1 + k);
    if (k < carried + stacked) stacked--;
  }
  for (int k = op->nout - 1; k >= 0; k--) {
    if (op->out[k]->mark) continue;
    drop_value(op->out, &op->nout, k);
    drop_value(body->yield.at, &body->yield.n, k);
    if (k >= carried) continue;
    drop_value(op->in, &op->nin, k);
    drop_value(body->args.at, &body->args.n, 1 + k);
    if (k >= carried - accum) accum--;
    carried--;
  }
  ir_set_attr(m, op, ir_attr_i("carried", carried));
  ir_set_attr(m, op, ir_attr_i("stacked", stacked));
  if (ir_get_attr(op, "accum")) ir_set_attr(m, op, ir_attr_i("accum", accum));
  renumber(op->out, op->nout);
  renumber(body->args.at, body->args.n);
}

static void sweep(ir_module *m, ir_region *r) {
  int kept = 0;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    bool live = has_effect(op);
    for (int k = 0; k < op->nout; k++) live |= op->out[k]->mark != 0;
    if (!live) continue;
    if (op->code == IR_repeat) {
      sweep(m, op->region[0]);
      trim_repeat(m, op);
    }
    r->ops.at[kept++] = op;
  }
  r->ops.n = kept;
}

const char *pass_dead(ir_module *m, const pass_options *o) {
  (void)o;
  for (int i = 0; i < m->funcs.n; i++) {
    ir_region *body = m->funcs.at[i]->body;
    pass_clear_marks(body);
    mark_live(body);
    sweep(m, body);
  }
  return NULL;
}
