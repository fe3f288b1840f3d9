#include "ir/cost.h"

#include <string.h>

#include "ir/place.h"
#include "ir/rule.h"
#include "ir/view.h"

static double elements(const ir_value *v) { return (double)ir_elements(&v->type); }

// 2 * product of all extents an einsum runs over: those of operand 0 and what only the others have.
static double einsum_flops(const ir_op *op) {
  double n = elements(op->in[0]);
  if (op->nin == 1) return n;
  const char *spec = ir_attr_str(op, "spec", ""), *p = spec;
  const char *first_end = strchr(spec, ',');
  for (int d = 0; first_end && d < op->in[1]->type.rank; d++) {
    // Word d of the second operand; count it when the first has no such word.
    if (d == 0) p = first_end + 1;
    while (*p == ' ') p++;
    size_t len = strcspn(p, " ,-");
    bool in_first = false;
    for (const char *q = spec; q < first_end;) {
      while (q < first_end && *q == ' ') q++;
      size_t l = strcspn(q, " ,-");
      if (l == len && memcmp(q, p, len) == 0) in_first = true;
      if (!l) break;
      q += l;
    }
    if (!in_first) n *= (double)op->in[1]->type.dim[d]->size;
    p += len;
  }
  return 2 * n;
}

static double region_flops(const ir_region *r) {
  double n = 0;
  for (int i = 0; i < r->ops.n; i++)
    if (!r->ops.at[i]->recompute) n += ir_op_flops(r->ops.at[i]);
  return n;
}

double ir_op_flops(const ir_op *op) {
  const ir_op_info *info = ir_info(op->code);
  if (info->cls != IR_CLASS_OP) return info->flops * elements(op->out[0]);
  if (ir_is_exchange(op->code)) return 0;
  switch (op->code) {
    case IR_map: return region_flops(op->region[0]) * elements(op->out[0]);
    case IR_repeat: return (double)ir_attr_int(op, "count", 1) * region_flops(op->region[0]);
    case IR_einsum:
      return einsum_flops(op) +
             (op->nregions ? region_flops(op->region[0]) * elements(op->out[0]) : 0);
    case IR_attention:
    case IR_attention_next:
    case IR_attention_grad: {
      // scores: b s (h d) * t; values: b s (h e) * t; gradients of both twice
      const ir_value *q = op->in[ir_queries(op)], *keys = op->in[ir_queries(op) + 1];
      bool grad = op->code == IR_attention_grad;
      double t = (double)keys->type.dim[keys->type.rank - 2]->size;
      return (grad ? 4 : 2) * t * (elements(q) + elements(grad ? op->in[0] : op->out[0]));
    }
    default: {
      // Norms, softmax, losses and reductions: a few operations an element.
      double n = 0;
      if (ir_is_view(op)) return 0;
      for (int i = 0; i < op->nin; i++)
        if (i != ir_updated(op) && elements(op->in[i]) > n) n = elements(op->in[i]);
      if (op->code == IR_sum && op->nregions) n *= 1 + region_flops(op->region[0]);
      return op->code == IR_sum || op->code == IR_reduce_max ? n : op->nin && op->nout ? 5 * n : 0;
    }
  }
}

double ir_op_bytes(const ir_op *op) {
  if (ir_is_view(op)) return 0;
  double n = 0;
  int updated = ir_updated(op);
  for (int i = 0; i < op->nin; i++)
    if (i != updated) n += (double)ir_bytes(&op->in[i]->type);
  if (updated >= 0) return 2 * n;  // what comes in is written into what is there
  for (int i = 0; i < op->nout; i++) n += (double)ir_bytes(&op->out[i]->type);
  return n;
}

double ir_op_work(const ir_op *op) {
  if (op->code == IR_const || ir_is_view(op)) return 0;
  return ir_op_flops(op) + IR_FLOPS_A_BYTE * ir_op_bytes(op);
}
