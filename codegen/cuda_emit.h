// From kernels to code for GPUs: functions of CUDA C, machine code by NVRTC, one image of modules.
//
//   cuda_unit u;
//   cuda_lower_all(a, kernels, n, &u);               // as text, each distinct function once
//   if (u.refused) ...                               // some kernels have no lowering: u.why[i]
//   cuda_options o = {.targets = 1u << GPU_sm_90a, .ptx = true, .cache = folder};
//   cg_image image;
//   cuda_failure f;
//   if (!cuda_compile(a, &u, &o, &image, &f)) say(f.text);
//   use(image.bytes + u.module[0].offset, u.module[0].bytes);
//
// A few functions together are an NVRTC program and a module, so that code depends on nothing but
// their text, and comes from the cache program by program (codegen/cache.h). For every architecture
// there is a cubin, and PTX for those to come (GPU_PTX).
//
// Compiling twice gives the same bytes, whatever the threads and whether or not from the cache.
#ifndef DSM_CODEGEN_CUDA_EMIT_H
#define DSM_CODEGEN_CUDA_EMIT_H

#include "codegen/cuda.h"
#include "codegen/emit.h"
#include "codegen/nvrtc.h"
#include "codegen/target.h"

typedef struct cuda_function {
  const char *symbol, *source;
  int threads, shared_bytes;       // of a block; dynamic shared memory
  const k_kernel *kernel;          // the first that is this function: for messages; may be NULL
  nvrtc_usage usage[GPU_TARGETS];  // by row of targets.def, of those compiled for
} cuda_function;

typedef struct cuda_module {
  const char *target;  // "sm_90a", or GPU_PTX
  bool ptx;            // NUL-terminated text
  int function;        // the first that it holds
  int functions;       // so many
  int64_t offset, bytes;
} cuda_module;

typedef struct cuda_unit {
  int nfunctions;
  cuda_function *function;
  // By number of the kernels given.
  int nkernels, refused;
  cuda_kernel *kernel;
  int *function_of;  // -1: it has no lowering, and
  const char **why;  // this is why
  // By targets, as their rows come, then PTX; for each, all functions in order. From cuda_compile.
  int nmodules;
  cuda_module *module;
} cuda_unit;

typedef struct cuda_options {
  gpu_set targets;
  bool ptx;           // and PTX; without it the image is for looking at reports
  const char *cache;  // folder of the kernel cache; NULL: none
  int threads;        // 0: one a processor, at most 8
} cuda_options;

typedef struct cuda_failure {
  bool ours;  // a mistake in generated code; else NVRTC is missing, too old or out of memory
  const char *text;
} cuda_failure;

void cuda_lower_all(arena *a, k_kernel *const *kernel, int n, cuda_unit *out);
// Compiles all functions for all targets; fills in usage and modules. out->cuda is `u`.
bool cuda_compile(arena *a, cuda_unit *u, const cuda_options *o, cg_image *out,
                  cuda_failure *failure);
// "layernorm x, line 12 of gpt2.dsm": what a kernel was made for.
const char *cuda_made_for(arena *a, const k_kernel *k);
// The text of `dsmc ir --form cuda`: the prelude and all functions; a translation unit.
void cuda_print(const cuda_unit *u, sb *out);

#endif
