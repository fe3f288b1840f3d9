// The text of a module in GRAPH or LOCAL, and back.
//
//   module "tiny" graph
//   samples batch=4
//   state "wte.weight" : f32[vocab=256, hidden=128] weight normal(0.02) trained decay 1 lr 1
//
//   func train_step train {
//     %tokens = input() {name="tokens"} : i32[batch=4, seq=64]
//     %wte = state() {name="wte.weight"} : f32[vocab=256, hidden=128]
//     %x = gather(%wte, %tokens) : f32[batch=4, seq=64, hidden=128]
//   }
//
// print(parse(print(m))) equals print(m). Names are hints made unique: a second value called x is
// %x.1, a second index called seq is seq.1; a value without a name is a number. Indices are the
// same where their names are. In LOCAL the mesh follows the module's line, and a type may say how
// the value lies on it: "f32[batch=4, seq=64] cut(batch/data.micro) partial(sum/tensor)". Spans and
// scratch fields are not part of the text.
#ifndef DSM_IR_PRINT_H
#define DSM_IR_PRINT_H

#include "ir/ir.h"

char *ir_print(ir_module *m, arena *a);
// One region, values numbered in order and hints left out: equal regions have equal texts. Values
// from outside the region appear as %v<id>.
const char *ir_print_region(ir_region *r, arena *a);

// Reads a module. On error returns NULL and says in *error the line and what was expected. Does not
// verify: a module that reads well may still break rules (ir/verify.h).
ir_module *ir_parse(arena *a, const char *text, size_t n, const char **error);

// ---- shared by the printer and the parser ------------------------------------------------------

extern const char *const ir_state_classes[4];  // by ir_state_class
extern const char *const ir_init_names[5];     // by ir_init_kind
extern const char *const ir_entry_names[4];    // by ir_entry_kind
extern const char *const ir_partial_names[4];  // by ir_partial
// The length of a name without the ".1" that made it unique.
size_t ir_base_name(const char *name);

#endif
