// Chooses the kernels of every instruction, and with them the scratch memory it needs.
//
// needs: tasks (`order`). keeps: tasks and orders. breaks: nothing.
//
// Kernels belong to codegen, which passes do not know: the choice is made through
// pass_options.select. Without it instructions have no scratch, which is enough to look at orders
// and the places of values.
#include "ir/schedule.h"
#include "passes/pass.h"

const char *pass_select(ir_module *m, const pass_options *o) {
  return o->select ? o->select(o->select_ctx, m->schedule, o->skip) : NULL;
}
