// What the oracle tests share: from a text to float64 numbers and to a program running in process.
//
//   h_text t = h_lower(&a, "model op { ... }", "batch=4", SEMA_EVAL);   // t.m NULL: t.error
//   h_program *p;
//   const char *why = h_compile(&a, t.m, 4, &p);            // passes have run
//   h_give(p, entry, "x", data, n);  vm_call(p->vm, entry, &step);  h_output(p, entry, "y", out,
//   n);
//
// Numbers cross as doubles, row-major over the logical shape, whatever the storage type.
#ifndef DSM_TESTS_HARNESS_H
#define DSM_TESTS_HARNESS_H

#include "frontend/sema.h"
#include "ir/interp.h"
#include "passes/pass.h"
#include "runtime/safetensors.h"
#include "runtime/vm.h"

// ---- texts --------------------------------------------------------------------------------------

typedef struct h_text {
  job *job;
  ir_module *m;       // NULL after errors
  const char *error;  // the diagnostics as printed
} h_text;

// `sets` as for --set, or NULL. `name` of a job or model, or NULL. SEMA_* entries.
h_text h_lower(arena *a, const char *text, const char *name, const char *sets, unsigned entries);
// The same for a file (`examples/gpt2.dsm`).
h_text h_lower_file(arena *a, const char *file_and_name, const char *sets, unsigned entries);

// All passes but `one`, for pass_options.only.
const char *h_passes_without(arena *a, const char *one);

// ---- programs -----------------------------------------------------------------------------------

typedef struct h_program {
  prog p;
  vm *vm;
  pool *threads;
  void *code;
  size_t code_bytes;
  double compile_s;             // kernels built and compiled, program written and opened
  struct h_emulated *emulated;  // kernels run as CUDA kernels; NULL: as host code
} h_program;

// From LOCAL to a running program: schedule, kernels, layout, code, program, arena. `batch` is the
// global batch. NULL or what went wrong; the layout's own check aborts.
const char *h_compile(arena *a, ir_module *m, int64_t batch, h_program **out);
// The same without some choices of layout and codegen.
const char *h_compile_without(arena *a, ir_module *m, int64_t batch, skip_set skip,
                              h_program **out);
// The same with kernels for `d` (tests/oracle/emulated.h; NULL: the host). *out is NULL without an
// error when functions are only being collected.
struct h_device;
const char *h_compile_for(arena *a, ir_module *m, int64_t batch, skip_set skip,
                          const struct h_device *d, h_program **out);
// vm_call; NULL or what went wrong, which only an emulated program can tell.
const char *h_call(arena *a, h_program *p, const prog_entry *e, const vm_step *s);
void h_close(h_program *p);

// Writes an input of an entry, all micro-batches; NULL or what is wrong. Integers are rounded.
const char *h_give(h_program *p, const prog_entry *e, const char *name, const double *data,
                   int64_t n);
// Writes and reads a state, all slices behind each other as in the module.
const char *h_set_state(h_program *p, const char *name, const double *data, int64_t n);
const char *h_get_state(h_program *p, const char *name, double *data, int64_t n);
const char *h_output(h_program *p, const prog_entry *e, const char *name, double *data, int64_t n);

// ---- data ---------------------------------------------------------------------------------------

// The numbers of a tensor of a file, as doubles.
double *h_numbers(arena *a, const st_tensor *t, int64_t *n);
// Rounds to f32, as storage would.
void h_round_f32(double *x, int64_t n);
// The largest |x|.
double h_max_abs(const double *x, int64_t n);

// ---- comparing ----------------------------------------------------------------------------------

// NULL when |got - want| <= tolerance * scale everywhere, else a sentence about the worst element.
// NaN is never close.
const char *h_compare(arena *a, const char *what, const double *got, const double *want, int64_t n,
                      double tolerance, double scale);

// ---- cases in processes of their own ------------------------------------------------------------

// A case gets memory of its own and writes why it failed, if it did.
typedef const char *h_case_fn(arena *a, void *ctx);
// Runs a case in a forked process, so that a crash or a hang is the failure of one case. NULL or
// why it failed (in `a`). `seconds` is the limit.
const char *h_isolated(arena *a, h_case_fn *body, void *ctx, int seconds);
// The same in this process, for debuggers.
const char *h_inline(arena *a, h_case_fn *body, void *ctx);

#endif
