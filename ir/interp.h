// The interpreter of GRAPH: what a module means, in float64 and without cleverness.
//
// It is one half of the oracle (the other is independent references per op): passes must not change
// what it computes, kernels must come close to it. All values are arrays of doubles, row-major;
// whole numbers are doubles too and truth is 0 or 1. Nothing is rounded to a storage type.
//
//   ir_interp *x = ir_interp_new(&a, m);
//   ir_interp_give(x, "tokens", tokens, 4 * 64);          // inputs and args
//   ir_interp_set_state(x, "wte.weight", w, 256 * 128);
//   const char *error = ir_interp_run(x, "train_step");   // NULL
//   const double *loss = ir_interp_output(x, "loss", NULL);
//
// States not set begin as zeros; one of class STATE_COPY reads as its weight. `set` takes effect
// after the function, so a second run sees it.
#ifndef DSM_IR_INTERP_H
#define DSM_IR_INTERP_H

#include "ir/ir.h"

typedef struct ir_interp {
  // Set these before a run.
  uint64_t seed, step;  // of random draws (runtime/base/random.h)
  int64_t past;         // positions already decoded, for ops with past=1
  // The largest finite magnitude that any op has given so far; set it to 0 to start anew. Where it
  // leaves the range of f32, squared for norms, a program in f32 has no comparable answer.
  double largest;
  // What a rank exchanges with others: `in` (NULL of a receive) is what it has, `out` (NULL of a
  // send) what it gets. NULL: there are no other ranks, and an exchange is an error.
  void (*exchange)(void *ctx, const ir_op *op, const double *in, double *out);
  void *exchange_ctx;
  // Private.
  arena *arena;
  ir_module *m;
  map given, states, outputs;  // name -> interp_array
  struct interp_frame *frame;
} ir_interp;

ir_interp *ir_interp_new(arena *a, ir_module *m);

// Gives an input or arg its value, or a state; `n` numbers are copied. The run checks the size.
void ir_interp_give(ir_interp *x, const char *name, const double *data, int64_t n);
void ir_interp_set_state(ir_interp *x, const char *name, const double *data, int64_t n);

// Runs one function. NULL, or what is missing or out of range.
const char *ir_interp_run(ir_interp *x, const char *func);

// A result of the last run, or a state as it is now; NULL when there is none. `n` may be NULL.
const double *ir_interp_output(const ir_interp *x, const char *name, int64_t *n);
const double *ir_interp_state(const ir_interp *x, const char *name, int64_t *n);

#endif
