// Seconds of an op on a device: a roofline with efficiency curves.
//
//   products    max(FLOPs / (peak of the type * share at these FLOPs), bytes / bandwidth)
//   attention   the same by its own curve; a causal mask leaves half of the pairs
//   all others  max(bytes / (bandwidth * share at these bytes), FLOPs / vector peak)
// and the time to start a kernel.
#ifndef DSM_PLAN_COST_H
#define DSM_PLAN_COST_H

#include "ir/cluster.h"

typedef enum pc_kind { PC_OTHER, PC_PRODUCT, PC_ATTENTION, PC_KINDS } pc_kind;
typedef struct pc_op {
  pc_kind kind;
  double flops;     // ir_op_flops: of a sample where the graph is one sample's
  double unmasked;  // share of them that a kernel runs which leaves out masked pairs: 1/2 where a
                    // mask is causal (key position <= query position), else 1
  ir_dtype type;    // that is multiplied
  bool carried;     // part of another op's kernel: it starts none
} pc_op;
pc_op pc_op_of(const ir_op *op);
// `flops` and `bytes`: of the call, as a rank runs it. (Views take no time: do not ask for them.)
double pc_op_seconds(const cl_device *d, const pc_op *op, double flops, double bytes);

#endif
