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
#include "runtime/program.h"

#define CG_MAX_OPERANDS 40
#define CG_MAX_ALSO 12

typedef struct cg_operand {
  ir_value *root;  // storage; NULL: scratch number `scratch` of this op
  int scratch;
  bool read, write;
} cg_operand;

// A product that a library does (runtime/program.h says how), with what listings show of it.
typedef struct cg_gemm {
  const char *name;  // "openblas_nt_256x768x3072": which operands are turned, then m x n x k
  int64_t matrices;  // in the batch
  double flops, bytes;
  prog_gemm record;
} cg_gemm;

typedef struct cg_launch {
  k_kernel *kernel;     // shared: equal kernels of one program are the same object
  const cg_gemm *gemm;  // shared too; NULL: the kernel does it, else there is none
  int n;
  cg_operand operand[CG_MAX_OPERANDS];  // in the order of the kernel's buffers
  const ir_op *also[CG_MAX_ALSO];       // ops that it does besides its own (codegen/join.h)
  int nalso;
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
// What kernels are built for: tiles that suit its registers and memory (codegen/machine.h).
typedef enum cg_machine { CG_HOST, CG_CUDA } cg_machine;  // ORDER PROG_HOST
void cg_use_machine(cg_context *cg, cg_machine m);        // CG_HOST at first
cg_machine cg_machine_of(const cg_context *cg);
// Who multiplies matrices. A library gets the products it can do as they are (cg_by_library), our
// kernels all others.
typedef enum cg_library { CG_OPENBLAS, CG_BUILTIN } cg_library;  // ORDER PROG_OPENBLAS
void cg_use_library(cg_context *cg, cg_library l);               // CG_BUILTIN at first
// The name of the library that is used, "openblas"; NULL: our kernels do all.
const char *cg_library_name(const cg_context *cg);
// Whether the library that is used does the product `op`: an einsum of two matrices of f32, or of
// batches of them, that carries no function and rounds nothing. Each of m, n and k must be a single
// axis in both operands and the result, with stride 1 along one axis of each matrix. `cg` is the
// cg_context: it is pass_options.by_library.
bool cg_by_library(void *cg, const ir_op *op);

// Builds the launches of `op`. Op results are roots that the launches write. Ops `const` are never
// built: a kernel that reads one has the number inside.
const char *cg_build(cg_context *cg, ir_op *op, cg_launches *out);
// All distinct kernels, and products for the library, built so far, in order of first use.
int cg_kernels(cg_context *cg, k_kernel *const **out);
// The kernel of that text, which is this one if it is the first.
k_kernel *cg_shared(cg_context *cg, k_kernel *k);
// Begins the list of cg_kernels anew, and what cg_shared knows.
void cg_forget_kernels(cg_context *cg);
int cg_gemms(cg_context *cg, const cg_gemm *const **out);

#endif
