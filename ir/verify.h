// Checks that a module keeps the rules of its stage: ir.h's invariants and the op table's rows.
//
// Runs between passes, so a broken pass is caught where it breaks something. Changes nothing.
#ifndef DSM_IR_VERIFY_H
#define DSM_IR_VERIFY_H

#include "ir/ir.h"

// NULL, or a message naming the function, the op and the rule it breaks (in the module's arena).
const char *ir_verify(ir_module *m);

#endif
