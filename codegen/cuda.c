#include "codegen/cuda.h"

extern const char dsm_cuda_prelude[];  // codegen/prelude.cuh (CMakeLists.txt)

const char *cuda_prelude(void) { return dsm_cuda_prelude; }

const char *cuda_lower(arena *a, const k_kernel *k, cuda_kernel *out) {
  *out = (cuda_kernel){0};
  return arena_printf(a, "no CUDA lowering of kernel %s yet", k->name);
}
