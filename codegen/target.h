// GPUs that code is generated for: the rows of targets.def.
//
//   const gpu_target *t;
//   int n = gpu_targets(&t);                    // t[0] .. t[n-1]
//   gpu_set s = (gpu_set)1 << gpu_find("sm_90a");
//   for (int i = 0; i < n; i++) if (s >> i & 1) use(&t[i]);
#ifndef DSM_CODEGEN_TARGET_H
#define DSM_CODEGEN_TARGET_H

#include <stdint.h>

typedef struct gpu_target {
  const char *name, *device;
  double memory;  // bytes
  double bandwidth, flops_f32, flops_bf16;
  int registers, shared;
} gpu_target;

enum {
#define TARGET(name, device, memory, bandwidth, f32, bf16, registers, shared) GPU_##name,
#include "codegen/targets.def"
  GPU_TARGETS
};

// A set of rows; 0: none, the program is for this host.
typedef unsigned gpu_set;

// PTX for any GPU from this architecture on goes with every program: what the prelude's steps need.
#define GPU_PTX "compute_80"

int gpu_targets(const gpu_target **out);
// The row with this name, or -1.
int gpu_find(const char *name);
// Bytes that a program's arena may take on every GPU of a set (not empty): the least memory, less
// 3 GiB for the driver's context, code and stacks.
double gpu_capacity(gpu_set s);

#endif
