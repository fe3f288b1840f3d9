// The expression language of ir/ops.def: texts of DEFINED rows and of SCALAR gradients.
//
//   text    = { name "=" expr ";" } expr { "," expr }
//   expr    = sum [ ("<" | "<=" | ">" | ">=" | "==" | "!=") sum ]
//   sum     = product { ("+" | "-") product }
//   product = unary { ("*" | "/" | "//" | "%") unary }
//   unary   = "-" unary | number | name | row "(" [ expr { "," expr } ] ")" | "(" expr ")"
//
// `row` is a SCALAR or DEFINED row of the op table; DEFINED ones are expanded, so what comes out
// holds SCALAR ops and constants (and casts) only. A number becomes a rank-0 constant of the float
// type: the join of the float values given, f32 when there are none.
//
//   const char *names[] = {"a", "b", "g"};
//   ir_value *values[] = {x, y, gradient}, *out;
//   ir_expr_emit(&b, "where(a >= b, g, 0)", names, values, 3, &out, 1);   // 1
#ifndef DSM_IR_EXPR_H
#define DSM_IR_EXPR_H

#include "ir/ir.h"

// Emits the ops of `text` at the builder; operands may have any shapes that broadcast. Returns how
// many results the text has (at most max_out), or -1 with the reason in b->error.
int ir_expr_emit(ir_builder *b, const char *text, const char *const *names, ir_value *const *values,
                 int n, ir_value **out, int max_out);

// A scalar region whose arguments are `params` ("x, y") of the given types and whose yields are
// the results of `text`. Aborts on a bad text: texts come from tables.
ir_region *ir_expr_region(ir_module *m, ir_op *owner, const char *params, const char *text,
                          const ir_dtype *param_types);

// The body of a DEFINED row for operands of the given types, yielding the type the row infers.
ir_region *ir_defined_region(ir_module *m, ir_opcode code, const ir_dtype *types);

#endif
