// NVRTC, NVIDIA's compiler from CUDA C to machine code, as a library: opened when a program for a
// GPU is built, never linked. It needs no GPU and no driver.
//
//   nvrtc n;
//   const char *why = nvrtc_open(a, &n);              // NULL, or what to do about it
//   nvrtc_output o;
//   nvrtc_compile(&n, a, "twice", text, "sm_90a", &o);
//   if (o.outcome == NVRTC_DONE) use(o.bytes, o.n, o.usage.registers);
//
// Where it is looked for: runtime/base/dynlib.h, with the environment variable DSM_NVRTC. The
// library opens libnvrtc-builtins.so beside itself. Several threads may compile at once.
#ifndef DSM_CODEGEN_NVRTC_H
#define DSM_CODEGEN_NVRTC_H

#include "runtime/base/dynlib.h"

typedef struct nvrtc {
  dynlib library;
  const char *version;  // "13.5"
  int options;          // how many of ours it knows
#define NVRTC(name, result, parameters) result(*name) parameters;
#include "codegen/nvrtc.def"
} nvrtc;

typedef enum nvrtc_outcome {
  NVRTC_DONE,
  NVRTC_REJECTED,  // the text is wrong: `log` says where
  NVRTC_UNABLE     // NVRTC does not know the architecture, lacks memory or its other half: `log`
} nvrtc_outcome;

// What ptxas reports of a function; all 0 for PTX.
typedef struct nvrtc_usage {
  int registers;                  // of a thread
  int shared;                     // static shared memory of a block, bytes
  int stack;                      // bytes of a thread in local memory: spilled registers and arrays
  int spill_stores, spill_loads;  // bytes
} nvrtc_usage;

typedef struct nvrtc_output {
  nvrtc_outcome outcome;
  unsigned char *bytes;  // a cubin, or PTX with its NUL
  size_t n;
  nvrtc_usage usage;
  const char *log;
} nvrtc_output;

// NULL, or in one line what is missing and how to get it.
const char *nvrtc_open(arena *a, nvrtc *out);
// The options that every program is compiled with, besides the architecture: part of what its code
// depends on.
const char *nvrtc_options(const nvrtc *n, arena *a);
// Compiles one text, called `name` in the log. `architecture`: "sm_90a" gives a cubin, "compute_80"
// PTX. When registers do not suffice a cubin is made again with other options, the last of which is
// the macro D_ALONE of codegen/prelude.cuh; the one with the least local memory is given.
//
// Cubins and PTX must not be compiled at the same time: PTX is optimised less, and NVRTC keeps such
// settings where all its threads see them. (Levels above the one used here even stay on for what is
// compiled later; this one does not.)
void nvrtc_compile(const nvrtc *n, arena *a, const char *name, const char *text,
                   const char *architecture, nvrtc_output *out);
// Reads ptxas's report on a function out of a log; `symbol` NULL: on all of them, bytes are sums
// then and registers the most of one. False when there is no report.
bool nvrtc_read_usage(const char *log, const char *symbol, nvrtc_usage *out);

#endif
