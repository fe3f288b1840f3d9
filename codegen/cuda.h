// The second lowering: kernel IR to CUDA C.
//
// A cell of a kernel is a block of threads. A tile is spread over the threads' registers by a
// *layout* (codegen/cuda_layout.h), or lies in shared memory where a dot reads it. The text is C++
// on top of the functions of codegen/prelude.cuh and includes nothing:
//
//   cuda_kernel c;
//   const char *why = cuda_lower(a, kernel, &c);       // NULL, or why this kernel cannot be
//   sb_puts(&unit, cuda_prelude());                    // once
//   sb_puts(&unit, c.source);                          // each function once: equal symbols, equal
//   text
//
// Numbers that tell one launch from another and do not shape the code (strides, extents, counts,
// constant operands) are not in the text but in `number`: kernels that differ only in them are one
// function, which is compiled once. A launch passes one struct (d_args of the prelude): the
// addresses of the kernel's buffers, that of the call's d_step, layer, micro, sample, then the
// numbers; eight bytes each.
//
// Results of f32 equal the host's to the bit but for sums: a thread adds its own elements in order,
// lanes and then warps add as a tree; which elements a thread has depends on the tile's shape
// alone. (Dots of f32 add in order of k, as the host does.) Dots of bf16 add as mma.sync does.
#ifndef DSM_CODEGEN_CUDA_H
#define DSM_CODEGEN_CUDA_H

#include "codegen/kernel.h"

typedef struct cuda_kernel {
  const char *symbol;  // of the function: the kernel's name and a hash of the text
  const char *source;  // the function, starting with its D_KERNEL line
  const char *text;    // the part of it behind the symbol
  int threads;         // of a block
  int shared_bytes;    // dynamic shared memory of a block
  int64_t blocks;      // of the grid: its cells
  int nnumbers;
  const int64_t *number;  // of this kernel
} cuda_kernel;

const char *cuda_lower(arena *a, const k_kernel *k, cuda_kernel *out);
// codegen/prelude.cuh, NUL-terminated.
const char *cuda_prelude(void);

#endif
