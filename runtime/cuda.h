// An NVIDIA GPU, through the functions of its driver. cuda.c is the only file that knows them.
//
// Nothing is linked: libcuda.so.1, or the file that the environment variable DSM_CUDA_DRIVER names,
// is opened when a program for a GPU is about to run, and never for `info` and `schedule`. So such
// an executable starts on every machine, and says what it lacks.
//
//   cuda *g;
//   STATUS_DO(cuda_open(p, code, mirror, &g));               // device 0, modules, arena, streams
//   STATUS_DO(cuda_push(g, offset, bytes));                  // states, before the first call
//   cuda_instr(g, in, buf, &call, sample);                   // enqueues, for each instruction
//   STATUS_DO(cuda_finish(g));                               // waits, and tells what went wrong
//   cuda_close(g);
//
// The arena is one allocation, `mirror` the host's memory of the same layout. Calls of the driver
// that fail leave the reason with the device; whatever comes after it does nothing, and cuda_finish
// returns it.
#ifndef DSM_CUDA_H
#define DSM_CUDA_H

#include "runtime/base/status.h"
#include "runtime/prog.h"

typedef struct cuda cuda;

// Opens the driver and its first device, loads the modules that suit it, and gets `arena_bytes` of
// its memory, zeroed. Exit code 1, with what is missing, when there is no driver, no device, or no
// module for it; 3 when its memory is too small. `mirror` is the host's: what the program moves is
// pinned there, where the driver allows it, so that copies need not wait for the host.
status *cuda_open(const prog *p, const unsigned char *code, unsigned char *mirror,
                  cuda **out) STATUS_MUST_USE;
void cuda_close(cuda *g);

// "NVIDIA H100 80GB HBM3 (sm_90)"
const char *cuda_name(const cuda *g);

// Address on the device of a byte of the arena.
unsigned char *cuda_at(const cuda *g, int64_t offset);
// Gives an instruction to its stream. `buf` has the addresses of its operands, each in its home;
// `sample` is the micro-batch's first one, counted from the call's first.
void cuda_instr(cuda *g, const prog_instr *in, unsigned char *const *buf, const dsm_call *call,
                int64_t sample);
// Waits for all streams. The first failure since the device was opened, again and again.
status *cuda_finish(cuda *g) STATUS_MUST_USE;
// Bytes of the arena between mirror and device; they wait for all streams first.
status *cuda_push(cuda *g, int64_t offset, int64_t bytes) STATUS_MUST_USE;
status *cuda_pull(cuda *g, int64_t offset, int64_t bytes) STATUS_MUST_USE;
status *cuda_zero(cuda *g, int64_t offset, int64_t bytes) STATUS_MUST_USE;

// The target whose modules a device of this compute capability can load, or NULL: binaries for
// exactly this one or an earlier one of the same major number (those of sm_90a only for 9.0
// itself), else text that the driver compiles, made for an earlier one.
const char *cuda_choose(const prog *p, int major, int minor);

#endif
