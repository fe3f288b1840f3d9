// From exchange ops of LOCAL to the records that the runtime carries out.
//
//   prog_exchange r = cg_exchange_of(m, op);      // %g = all_gather(%x) {axes="tensor", block=64}
//   // r.run 64, r.in_stride 64, r.out_step 64, r.out_stride 128 with two ranks
#ifndef DSM_CODEGEN_EXCHANGE_H
#define DSM_CODEGEN_EXCHANGE_H

#include "ir/schedule.h"
#include "runtime/program.h"

// The record of an exchange op (ir_is_exchange), its scratch bytes included; `name` and `axes` are
// left to whoever writes it: axes of a program are those of space.
prog_exchange cg_exchange_of(const ir_module *m, const ir_op *op);
// That of an instruction, which may be a bucket of all_reduces.
prog_exchange cg_exchange_by(const ir_module *m, const sched_instr *in);

#endif
