// Derivatives of scalar regions, in reverse mode.
//
//   region (%x : f32) { %r = tanh(%x)  yield %r }
//
// differentiated by x is
//
//   region (%x : f32, %g : f32) { %r = tanh(%x)  %d = g * (1 - r * r)  yield %d }
#ifndef DSM_IR_SCALAR_GRAD_H
#define DSM_IR_SCALAR_GRAD_H

#include "ir/ir.h"

// A new region without owner: the arguments of `fn`, then one gradient per yield of `fn` (of the
// yield's type). It yields, for each argument i with want[i], the gradient by that argument, of the
// argument's type; an f32 zero for arguments that are not real, and for captured tensors.
ir_region *ir_scalar_grad(ir_module *m, ir_region *fn, const bool *want);

// The `at` ops of `fn` that read its argument `arg`: their positions in fn->ops, at most `max`;
// returns how many there are.
int ir_scalar_ats(const ir_region *fn, int arg, int *out, int max);

// What flows back to the element that the `at` op fn->ops.at[at] reads: arguments as above; yields
// the gradient of the element, then the positions i0, i1, ... it stands at, as that op has them.
ir_region *ir_scalar_grad_at(ir_module *m, ir_region *fn, int at);

#endif
