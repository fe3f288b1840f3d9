// From ops to kernels: for each op of LOCAL, the launches that compute it.
//
// The `build` column of ir/ops.def names the builder (`map`, `matmul`, `attention`, ...): a C
// function cg_build_<name> that *builds* kernel IR (codegen/kernel.h) for one op. Builders see
// operands as views (ir/view.h); an operand of a launch is the root value whose address the runtime
// will pass, with offset and strides built into the kernel.
//
//   cg_launches l = {0};
//   const char *why = cg_build(cg, op, &l);       // NULL, or why this op cannot be built
//   for (int i = 0; i < l.n; i++) use(l.at[i].kernel, l.at[i].operand, ...);
#ifndef DSM_CODEGEN_BUILD_H
#define DSM_CODEGEN_BUILD_H

#include "codegen/kernel.h"
#include "ir/ir.h"
#include "ir/view.h"

#define CG_MAX_OPERANDS 40

typedef struct cg_operand {
  ir_value *root;  // storage; NULL: scratch number `scratch` of this op
  int scratch;
  bool read, write;
} cg_operand;

typedef struct cg_launch {
  k_kernel *kernel;  // shared: equal kernels of one program are the same object
  int n;
  cg_operand operand[CG_MAX_OPERANDS];  // in the order of the kernel's buffers
} cg_launch;

typedef struct cg_launches {
  VEC(cg_launch) l;
  VEC(int64_t) scratch;  // bytes of each scratch buffer, live during this op only
} cg_launches;

typedef struct cg_context cg_context;  // arena, table of kernels made so far (by text)

cg_context *cg_context_new(arena *a, ir_module *m);
arena *cg_arena(cg_context *cg);
ir_module *cg_module(cg_context *cg);
// Kernels built from now on do without these choices; those of "lowering" go with each kernel.
void cg_skip(cg_context *cg, skip_set skip);
// Builds the launches of `op`. Op results are roots that the launches write. Ops `const` are never
// built: a kernel that reads one has the number inside.
const char *cg_build(cg_context *cg, ir_op *op, cg_launches *out);
// All distinct kernels built so far, in order of first use.
int cg_kernels(cg_context *cg, k_kernel *const **out);

#endif
