#include "passes/plan/cost.h"

#include "ir/cost.h"
#include "ir/rule.h"

// mask (b, h, i, j) -> j <= i, or i >= j
static double unmasked(const ir_op *op) {
  if (!ir_attr_int(op, "has_mask", 0) || !op->nregions) return 1;
  const ir_region *r = op->region[0];
  if (r->yield.n != 1 || !r->yield.at[0]->def || r->args.n < 4) return 1;
  const ir_op *test = r->yield.at[0]->def;
  const ir_value *i = r->args.at[2], *j = r->args.at[3];
  bool causal = (test->code == IR_le && test->in[0] == j && test->in[1] == i) ||
                (test->code == IR_ge && test->in[0] == i && test->in[1] == j);
  return causal ? 0.5 : 1;
}

// The type that a product multiplies.
static ir_dtype multiplied(const ir_op *op) {
  ir_dtype t = ir_rounds(op, 0);
  if (t != DT_COUNT) return t;
  const char *round = ir_attr_str(op, "round", NULL);
  if (round && ir_dtype_parse(round, &t)) return t;
  return op->in[0]->type.dtype;
}

// Attention and its gradients are the ops that take a mask as a function.
pc_op pc_op_of(const ir_op *op) {
  pc_op p = {.flops = ir_op_flops(op), .unmasked = 1, .type = DT_f32};
  if (ir_attr_allowed(op, "has_mask"))
    p.kind = PC_ATTENTION;
  else if (ir_is_product(op))
    p.kind = PC_PRODUCT;
  if (p.kind == PC_OTHER) return p;
  p.type = multiplied(op);
  p.unmasked = unmasked(op);
  return p;
}

double pc_op_seconds(const cl_device *d, const pc_op *op, double flops, double bytes) {
  double move = bytes / (d->bandwidth * cl_share(&d->memory_share, bytes)), work;
  flops *= op->unmasked;
  if (op->kind == PC_OTHER) {
    double peak = d->vector[DT_f32];
    work = peak > 0 ? flops / (peak * cl_share(&d->vector_share, flops)) : 0;
  } else {
    const cl_curve *share = op->kind == PC_ATTENTION ? &d->attention_share : &d->matmul_share;
    work = flops / (cl_matmul_peak(d, op->type) * cl_share(share, flops));
  }
  return (op->carried ? 0 : d->launch) + (move > work ? move : work);
}
