// Programs of the tests whose kernels run as CUDA kernels do: lowered by codegen/cuda.h, compiled
// as C++ and run by the emulation (tests/cuda_emu), which checks every access.
//
// Compiling is what costs time, so functions of many programs are compiled together. Each program
// is made twice: first its functions are only written down, then it runs.
//
//   h_device d;
//   h_device_open(&a, &d);                        // collects
//   h_compile_for(&a, m, 4, 0, &d, &p);              // p NULL and no error: written down
//   h_device_compile(&a, &d);                     // all functions collected so far
//   h_compile_for(&a, m2, 4, 0, &d, &p);             // now it is a program; m2 is lowered again
//   const char *why = h_call(&a, p, entry, &step);
//   h_device_close(&a, &d);
//
// A call runs in several orders of blocks and threads, which must leave the same bits in all of the
// arena. What an op writes is filled with 0xff bytes before: reading it is an error, and so is a
// byte that the op leaves so.
#ifndef DSM_TESTS_EMULATED_H
#define DSM_TESTS_EMULATED_H

#include "codegen/build.h"
#include "codegen/emit.h"
#include "tests/cuda_emu/emulate.h"
#include "tests/oracle/harness.h"

typedef struct h_device {
  const char *dir;  // functions are written here, one a file, named by their symbols
  bool compiled;
  // Each launch is also run as host code, on a copy of the arena; the first that writes other
  // numbers (beyond what sums in another order make of them) is an error. Says which kernel is
  // wrong.
  bool beside_host;
  const char *victim, *instead;  // function `instead` runs for `victim`; NULL: every one for itself
  emu_code code;
  int functions;
  double compile_s;
} h_device;

// NULL or what is wrong. Test emu_missing() first.
const char *h_device_open(arena *a, h_device *d);
const char *h_device_compile(arena *a, h_device *d);
// Functions written down so far, and one more: equal symbols must have equal texts.
int h_device_functions(arena *a, const h_device *d, const char *const **symbol);
char *h_device_text(arena *a, const h_device *d, const char *symbol);
const char *h_device_add(arena *a, const h_device *d, const char *symbol, const char *text);
void h_device_close(arena *a, h_device *d);

// What harness.c needs. Lowers all kernels of `cg`; writes them down (*out NULL) or makes an image
// of calls into the emulation. Errors that begin with H_NOT_LOWERED are of cuda_lower.
#define H_NOT_LOWERED "not lowered: "
typedef struct h_emulated h_emulated;
const char *h_emulate(arena *a, const h_device *d, cg_context *cg, cg_image *image,
                      h_emulated **out);
// The program that the image belongs to has been opened.
void h_emulated_start(h_emulated *e, const prog *p, vm *m);
const char *h_emulated_call(arena *a, h_emulated *e, const prog_entry *en, const vm_step *s);
void h_emulated_close(h_emulated *e);

#endif
