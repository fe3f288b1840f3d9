// Reverse-mode differentiation: what the rules of passes/grad_rules.c see.
//
// The pass walks a region backwards. For each op with a gradient at one of its results it calls the
// op's rule, which builds the gradients of its operands. A rule names forward values through
// ad_use: at the top level that is the value itself; inside the backward body of a `repeat` it is
// what the body can see of it - an invariant, a slice of a stacked weight, a cheap view made again,
// or a slice of a stack that the forward loop now saves.
//
//   void grad_exp(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
//     gin[0] = ir_build2(&c->b, IR_mul, g[0], ad_use(c, op->out[0]));
//   }
#ifndef DSM_AUTODIFF_H
#define DSM_AUTODIFF_H

#include "ir/ir.h"

typedef struct ad_saved {
  ir_value *fwd;    // value of the forward body
  ir_value *slice;  // argument of the backward body
} ad_saved;

typedef struct ad {
  ir_module *m;
  ir_builder b;          // at the end of the backward region
  ir_op *loop;           // the forward repeat whose body is being differentiated; NULL at the top
  VEC(ad_saved) saved;   // stacks the forward loop must make
  VEC(ad_saved) slices;  // stacked operands of the forward loop that the backward body reads
  VEC(ad_saved) invariants;  // likewise
  ir_value *layer;           // argument of the backward body
  ir_value **grad;           // by id of the forward value: its gradient so far, or NULL
  ir_value **seen;           // by id of the forward value: what ad_use answered, or NULL
  const bool *active;        // by id: depends on a trained weight
} ad;

// The forward value as the backward region sees it.
ir_value *ad_use(ad *c, ir_value *v);
// True when a gradient for `v` is wanted.
bool ad_active(const ad *c, const ir_value *v);
// Adds g to the gradient of v (summing over what v repeated, where g is larger).
void ad_add(ad *c, ir_value *v, ir_value *g);
// Sums g down to the shape of `like` (undoes broadcasting).
ir_value *ad_unbroadcast(ad *c, ir_value *g, const ir_type *like);
ir_value *ad_zeros(ir_region *at, const ir_type *t);
// A deep copy of a scalar region; its owner is set when it is given to an op.
ir_region *ad_copy_region(ir_module *m, ir_region *from);
// Checks a builder's result: NULL is our bug here, since forward types were checked.
ir_value *ad_ok(ad *c, ir_value *v);

// A rule: g[k] is the gradient of result k or NULL; it sets gin[i] for active operands.
typedef void grad_fn(ad *c, ir_op *op, ir_value *const *g, ir_value **gin);
// The rule of an op, or NULL when it has none (`none`, `zero`).
grad_fn *grad_rule(ir_opcode code);

#endif
