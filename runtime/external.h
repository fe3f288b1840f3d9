// Libraries that an executable may use in place of kernels of ours: OpenBLAS for matrix products
// (`dsmc build --pin matmul=openblas`). The only file that knows them is external.c.
//
// Nothing is linked: the library is opened when a program that has such an instruction is about to
// run, and never for `info` and `schedule`. Where it is looked for: the file that the environment
// variable DSM_OPENBLAS names, else libopenblas.so.0 where the loader finds it.
//
//   external *x;                                     // NULL for a program that needs none
//   STATUS_DO(external_open(p, pool_threads(threads), &x));
//   external_gemm(x, g, buf, call.micro == 0);
//   external_close(x);
//
// Bits: a library's sums have an order of its own, which may depend on the machine, the version of
// the library and the number of threads. They are not those of our kernels; runs of one plan on one
// machine with one number of threads give the same.
#ifndef DSM_EXTERNAL_H
#define DSM_EXTERNAL_H

#include <stdbool.h>

#include "runtime/base/status.h"
#include "runtime/prog.h"

typedef struct external external;

// Opens what the program's instructions need and gives it `threads` threads, which sleep when there
// is nothing to multiply: the pool wants the cores then. Exit code 1, with what to install, when
// a library is missing or lacks a function.
status *external_open(const prog *p, int threads, external **out) STATUS_MUST_USE;
// The library itself stays loaded: its threads do not survive being unloaded.
void external_close(external *x);

// Does all matrices of a product. `buf`: addresses of A, B, C. `set`: the sums start at 0, else at
// what C holds.
void external_gemm(const external *x, const prog_gemm *g, unsigned char *const *buf, bool set);

#endif
