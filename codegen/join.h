// Launches of single cells that stand next to each other become one (codegen/join.c).
//
//   cg_join(cg, schedule);       // after cg_build of all instructions, before cg_kernels is asked
#ifndef DSM_CODEGEN_JOIN_H
#define DSM_CODEGEN_JOIN_H

#include "codegen/build.h"
#include "ir/schedule.h"

// The launches of an instruction that was joined to an earlier one are none; those ops are in
// `also` of the launch that does them.
void cg_join(cg_context *cg, sched *s);

#endif
