// The kernels of tests/unit/toy_program.h as the fake driver finds those of a GPU (emu_api.h): C
// functions, and an emu_launch that calls them block by block. No emulation, and no compiler
// needed.
#include <stdio.h>

#include "tests/cuda_emu/emu_api.h"
#include "tests/unit/toy_program.h"

enum { TOY_ARGS = 8 };  // buffers at most

static void run(const emu_kernel *k, dsm_kernel *code, const void *args, int64_t blocks) {
  unsigned char *buf[TOY_ARGS];
  int64_t words[TOY_ARGS + 5];
  memcpy(words, args, k->args_bytes);
  for (int i = 0; i < k->buffers; i++) buf[i] = (unsigned char *)(uintptr_t)words[i];
  const prog_step *step = (const prog_step *)(uintptr_t)words[k->buffers];
  const int64_t *w = words + k->buffers + 1;
  dsm_call call = {.layer = w[0],
                   .micro = w[1],
                   .sample0 = step->sample0 + w[2],
                   .step = step->step,
                   .past = step->past,
                   .seed = step->seed};
  for (int64_t b = 0; b < blocks; b++) code(buf, &call, b, b + 1);
}

#define KERNEL(label, which, nbufs)                           \
  extern const emu_kernel gpu_##label;                        \
  const emu_kernel gpu_##label = {.name = "gpu_" #label,      \
                                  .threads = 32 + 32 * which, \
                                  .buffers = nbufs,           \
                                  .numbers = 1,               \
                                  .args_bytes = 8 * (nbufs + 5)};
KERNEL(grad, K_GRAD, 6)
KERNEL(column, K_COLUMN, 2)
KERNEL(reduce, K_REDUCE, 4)
KERNEL(update, K_UPDATE, 6)
KERNEL(logits, K_LOGITS, 4)
KERNEL(end, K_END, 0)

__attribute__((visibility("default"))) int emu_launch(const emu_launch_info *l, char *error,
                                                      size_t n) {
  const emu_kernel *const all[K_COUNT] = {&gpu_grad,   &gpu_column, &gpu_reduce,
                                          &gpu_update, &gpu_logits, &gpu_end};
  for (int i = 0; i < K_COUNT; i++) {
    if (all[i] != l->kernel) continue;
    if (l->threads != l->kernel->threads || l->nbuffers != l->kernel->buffers) break;
    run(l->kernel, toy_kernel[i], l->args, l->blocks);
    return 0;
  }
  snprintf(error, n, "a launch of %d threads with %d buffers", l->threads, l->nbuffers);
  return 1;
}
