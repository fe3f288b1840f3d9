// From kernels to the code image of an executable.
//
// The image is flat: machine code and its constants, every reference inside it already resolved and
// relative, so it runs at any address once mapped read + execute. Nothing in it refers to anything
// outside (no libc, no libm); an undefined symbol is a bug of ours and is reported as one.
//
//   cg_image image;
//   const char *why = cg_compile(cg, NULL, &image);            // for this machine
//   dsm_kernel *f = (dsm_kernel *)(mapped + image.offset[i]);  // kernel i of cg_kernels
//
// Compiling twice gives the same bytes, whatever the threads and whether or not kernels come from
// the cache (codegen/cache.h).
#ifndef DSM_CODEGEN_EMIT_H
#define DSM_CODEGEN_EMIT_H

#include "codegen/build.h"
#include "codegen/cache.h"

// What to compile for. NULL fields: this machine.
typedef struct cg_target {
  const char *cpu;       // LLVM's name: "znver4", "x86-64-v3"
  const char *features;  // "+avx2,+fma"
  bool want_ir;          // keep the LLVM IR as text, after optimisation; compiles everything
  const char *cache;     // folder of the kernel cache; NULL: none
  int threads;           // 0: one a processor, at most 8
} cg_target;

typedef struct cg_image {
  unsigned char *bytes;
  int64_t n;
  int64_t *offset;  // of each kernel
  // For GPUs: functions and modules of which the bytes are made (codegen/cuda_emit.h), and nothing
  // of `offset`, `cpu`, `features`, `stack`. NULL: for the host.
  const struct cuda_unit *cuda;
  const char *cpu, *features;
  bool flushes;    // rounding to bf16 takes denormals for zeros (codegen/kernel.h)
  const char *ir;  // when wanted
  int64_t stack;   // most bytes of stack a kernel's tiles take
  bool cached;     // a cache was in use, and
  int hits;        // this many kernels came from it,
  int misses;      // this many were compiled
} cg_image;

// All kernels of a context, in the order of cg_kernels.
const char *cg_compile(cg_context *cg, const cg_target *target, cg_image *out);
// The same for any kernels.
const char *cg_compile_kernels(arena *a, k_kernel *const *kernel, int n, const cg_target *target,
                               cg_image *out);
// What code of the host depends on besides a kernel's text: the compiler (the build id of the
// program that holds the lowering, and LLVM's) and the CPU. NULL when there is no build id: then
// there is no cache. And the key of a kernel's code in the cache.
const char *cg_cache_identity(arena *a, const char *cpu, const char *features);
cache_key cg_cache_key(arena *a, const char *identity, const k_kernel *k);
// The text of all kernels (`dsmc ir --form kernel`).
void cg_print_kernels(cg_context *cg, sb *out);

// image.c: lays out one relocatable ELF object. `symbol` are the functions to find.
const char *image_layout(arena *a, const unsigned char *object, size_t n, const char *const *symbol,
                         int nsymbols, cg_image *out);

#endif
