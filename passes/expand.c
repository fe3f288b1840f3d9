// Defined ops inside scalar regions become the scalars their texts say.
//
// needs: nothing. keeps: values. breaks: nothing.
// At the top level a defined op (gelu) stays one op: its gradient needs its operand alone, and its
// kernel expands it. Inside the function of a `map`, mask or bias it is part of a text that kernels
// walk op by op.

#include "ir/expr.h"
#include "passes/pass.h"

static void expand_region(ir_module *m, ir_region *r) {
  VEC(ir_op *) old = {0};
  for (int i = 0; i < r->ops.n; i++) vec_push(m->arena, &old, r->ops.at[i]);
  r->ops.n = 0;
  for (int i = 0; i < old.n; i++) {
    ir_op *op = old.at[i];
    for (int k = 0; k < op->nin; k++)
      while (op->in[k]->mapped) op->in[k] = op->in[k]->mapped;
    if (ir_info(op->code)->cls != IR_CLASS_DEFINED) {
      vec_push(m->arena, &r->ops, op);
      continue;
    }
    ir_dtype types[8];
    for (int k = 0; k < op->nin; k++) types[k] = op->in[k]->type.dtype;
    ir_region *body = ir_defined_region(m, op->code, types);
    for (int k = 0; k < op->nin; k++) body->args.at[k]->mapped = op->in[k];
    ir_clone_ops(r, body);
    ir_value *y = body->yield.at[0];
    op->out[0]->mapped = y->mapped ? y->mapped : y;
  }
  for (int i = 0; i < r->yield.n; i++)
    while (r->yield.at[i]->mapped) r->yield.at[i] = r->yield.at[i]->mapped;
}

static void visit(void *ctx, ir_op *op) {
  ir_module *m = ctx;
  if (op->code == IR_repeat) return;
  for (int k = 0; k < op->nregions; k++) {
    pass_clear_mapped(op->region[k]);
    expand_region(m, op->region[k]);
  }
}

const char *pass_expand(ir_module *m, const pass_options *o) {
  (void)o;
  for (int i = 0; i < m->funcs.n; i++) pass_walk(m->funcs.at[i]->body, visit, m);
  return NULL;
}
