#include "codegen/target.h"

#include <string.h>

#define GIB (1024.0 * 1024 * 1024)
#define RESERVE (3 * GIB)

static const gpu_target table[] = {
#define TARGET(name, device, memory, bandwidth, f32, bf16, registers, shared) \
  {#name, device, (memory) * GIB, bandwidth, f32, bf16, registers, shared},
#include "codegen/targets.def"
};

int gpu_targets(const gpu_target **out) {
  *out = table;
  return GPU_TARGETS;
}

int gpu_find(const char *name) {
  for (int i = 0; i < GPU_TARGETS; i++)
    if (strcmp(table[i].name, name) == 0) return i;
  return -1;
}

double gpu_capacity(gpu_set s) {
  double least = 0;
  for (int i = 0; i < GPU_TARGETS; i++)
    if (s >> i & 1 && (least == 0 || table[i].memory < least)) least = table[i].memory;
  return least - RESERVE;
}
