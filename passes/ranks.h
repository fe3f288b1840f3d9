// What passes share that give ranks different parts of a step (localise, zero, distribute).
//
//   unsigned *axes = arena_new(a, unsigned, m->next_value);     // by value id
//   axes[sum->id] = 1u << data;                                 // this rank's share of a sum of
//   squares ranks_complete_norm(m, f, axes);
#ifndef DSM_PASSES_RANKS_H
#define DSM_PASSES_RANKS_H

#include "ir/ir.h"

// An exchange of `v` over `axes` at the end of `r`, with a result of type `t`; block and whole as
// in ir/ops.def (whole 0: none).
ir_value *ranks_exchange(ir_module *m, ir_region *r, ir_opcode code, ir_value *v, const ir_type *t,
                         unsigned axes, int64_t block, int64_t whole);

// The gradient norm is the root of a sum of sums of squares. Those that are partial over axes of
// space are of what a rank has: they are added up and made whole by one all_reduce for each set of
// axes.
void ranks_complete_norm(ir_module *m, ir_func *f);

#endif
