// What an op costs, derived from its row and types.
#ifndef DSM_IR_COST_H
#define DSM_IR_COST_H

#include "ir/ir.h"

// Model FLOPs of one op: a multiply and an add are two; elementwise ops by the table's column.
// attention counts every pair of positions (4 b h s t d), its gradient twice that: recomputing
// scores is not model work. A repeat counts its body `count` times, without what stands there to be
// run again (ir_op.recompute): that is work of the plan, not of the model. Of such an op by itself
// it gives what that one run takes.
double ir_op_flops(const ir_op *op);
// Bytes an op must move at least: operands read once, results written once.
double ir_op_bytes(const ir_op *op);
// What running an op once costs, in FLOPs, for choices between ops: its FLOPs, and for each byte
// it moves as many as are done in that time, so that ops without any (a copy) are not free. On CPUs
// and on GPUs without tensor cores that is near IR_FLOPS_A_BYTE (2 threads of a Zen 4: 236 GFLOP/s
// and 33.8 GB/s by `train --profile`).
// Views and constants cost nothing.
#define IR_FLOPS_A_BYTE 8
double ir_op_work(const ir_op *op);

#endif
