// What the functions of a program cost on a GPU: how often they are launched, what they move and
// compute, and the time that takes at the least, by the roofline.
//
//   cuda_cost *c = cuda_cost_of(a, m->schedule, cg, &unit);
//   for (int f = 0; f < unit.nfunctions; f++)
//     use(c[f].launches[e], cuda_seconds(&c[f], &target));   // entry e of the schedule
//
// A function stands for several kernels, which differ in numbers only; bytes and FLOPs are means
// over its launches.
#ifndef DSM_CODEGEN_CUDA_COST_H
#define DSM_CODEGEN_CUDA_COST_H

#include "codegen/cuda_emit.h"
#include "ir/schedule.h"

enum { CUDA_MAX_ENTRIES = 8 };

typedef struct cuda_cost {
  int64_t launches[CUDA_MAX_ENTRIES];  // of one call of each entry
  int kernels;                         // how many are this function
  // Of one launch, in the entry with the lowest number that has any.
  double bytes, flops, blocks;
  bool tensor_cores;  // its dots multiply bf16
} cuda_cost;

typedef enum cuda_bound { BOUND_MEMORY, BOUND_F32, BOUND_BF16 } cuda_bound;

// By number of the functions of `u`, which is made of the kernels of `cg`.
cuda_cost *cuda_cost_of(arena *a, const sched *s, cg_context *cg, const cuda_unit *u);
// Seconds of one launch that moves its bytes once at the memory's bandwidth and computes at the
// peak rate of the units it uses, whichever takes longer. What a launch itself takes, memory that
// is set to zero, and copies are not in it.
double cuda_seconds(const cuda_cost *c, const gpu_target *t, cuda_bound *bound);

#endif
