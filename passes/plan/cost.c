#include "passes/plan/cost.h"

#include "ir/rule.h"

bool pc_attends(const ir_op *op) { return ir_attr_allowed(op, "has_mask"); }

// mask (b, h, i, j) -> j <= i, or i >= j
double pc_unmasked(const ir_op *op) {
  if (!pc_attends(op) || !ir_attr_int(op, "has_mask", 0) || !op->nregions) return 1;
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

double pc_op_seconds(const cl_device *d, const ir_op *op, double flops, double bytes) {
  double move = bytes / (d->bandwidth * cl_share(&d->memory_share, bytes));
  double work;
  if (pc_attends(op)) {
    flops *= pc_unmasked(op);
    work = flops / (cl_matmul_peak(d, multiplied(op)) * cl_share(&d->attention_share, flops));
  } else if (ir_is_product(op)) {
    work = flops / (cl_matmul_peak(d, multiplied(op)) * cl_share(&d->matmul_share, flops));
  } else {
    double peak = d->vector[DT_f32];
    work = peak > 0 ? flops / (peak * cl_share(&d->vector_share, flops)) : 0;
  }
  return d->launch + (move > work ? move : work);
}
