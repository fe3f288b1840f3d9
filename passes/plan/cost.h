// Seconds of an op on a device: a roofline with efficiency curves.
//
//   products    max(FLOPs / (peak of the type * share at these FLOPs), bytes / bandwidth)
//   attention   the same by its own curve; a causal mask leaves half of the pairs
//   all others  max(bytes / (bandwidth * share at these bytes), FLOPs / vector peak)
// and the time to start a kernel. Views take none: do not ask for them.
#ifndef DSM_PLAN_COST_H
#define DSM_PLAN_COST_H

#include "ir/cluster.h"

// `flops` and `bytes`: of the call, as a rank runs it.
double pc_op_seconds(const cl_device *d, const ir_op *op, double flops, double bytes);
// Attention and its gradients: ops that take a mask as a function.
bool pc_attends(const ir_op *op);
// The share of a call's model FLOPs that a kernel which leaves out masked pairs runs: 1/2 for a
// causal mask (key position <= query position), else 1.
double pc_unmasked(const ir_op *op);

#endif
