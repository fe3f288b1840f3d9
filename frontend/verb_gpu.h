// What the verbs do when the program is for GPUs: `--target`, code by NVRTC, `--form cuda`.
//
//   if (!gpu_parse_target(c, &k->targets)) ...        // a diagnostic says why
//   if (k->targets && !gpu_code(c, k)) ...            // reported; compile_finish gives the code
#ifndef DSM_FRONTEND_VERB_GPU_H
#define DSM_FRONTEND_VERB_GPU_H

#include "frontend/verb_common.h"

// The set that --target names, 0 for `cpu` or without it. False after a diagnostic.
bool gpu_parse_target(cli *c, gpu_set *out);
// "sm_80,sm_90a"
const char *gpu_names(arena *a, gpu_set s);
// Lowers and compiles all kernels: k->unit and k->image. False when it has been reported: a kernel
// without a lowering, or no NVRTC (k->exit_code). A mistake in generated code is ours and aborts.
bool gpu_code(cli *c, compiled *k);
// `dsmc ir --form cuda`, with --cost the table. The exit code.
int gpu_print(cli *c, compiled *k);

#endif
