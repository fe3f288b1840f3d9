// What an op costs, derived from its row and types.
#ifndef DSM_IR_COST_H
#define DSM_IR_COST_H

#include "ir/ir.h"

// Model FLOPs of one op: a multiply and an add are two; elementwise ops by the table's column.
// attention counts every pair of positions (4 b h s t d), its gradient twice that: recomputing
// scores is not model work. A repeat counts its body `count` times.
double ir_op_flops(const ir_op *op);
// Bytes an op must move at least: operands read once, results written once.
double ir_op_bytes(const ir_op *op);

#endif
