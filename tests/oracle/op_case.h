// A case of one op: a text, numbers to give it, and what it and its gradients must be.
//
// The text is a model without weights of its own (but for those of layers) and without a job. Its
// float inputs can become trained weights and loss = sum(output * weights), so that each element of
// an output and of a gradient is checked:
//
//   op_case c = {.name = "matmul", .a = a, .dsm = text, .sets = "batch=1,steps=1", .forward = 1e-5,
//                .gradient = 1e-4, .share = 1e-3};
//   c.names[0] = "x", c.in[0] = ..., c.size[0] = ...;             // inputs and weights: n of them
//   c.out[0] = ..., c.out_size[0] = ..., c.weight[0] = ...;       // outputs: nout of them
//   c.grad[0] = ...;                                              // NULL: not of a float
//   const char *why = oc_forward(&c);
//   if (!why) why = oc_gradients(&c);
#ifndef DSM_TESTS_OP_CASE_H
#define DSM_TESTS_OP_CASE_H

#include "tests/oracle/harness.h"

#define MAX_TENSORS 8

typedef struct op_case {
  const char *name;
  arena *a;
  st_file file;  // where the numbers come from, if from a file
  const char *op, *dsm, *sets, *names[MAX_TENSORS];
  int n, nout;
  double *in[MAX_TENSORS], *grad[MAX_TENSORS], *out[MAX_TENSORS], *weight[MAX_TENSORS];
  int64_t size[MAX_TENSORS], out_size[MAX_TENSORS];
  double largest_gradient, loss;  // NAN: not looked at
  // Tolerances of programs, relative to a tensor's largest magnitude; for a gradient that is small
  // beside the others, to `share` of the largest of all: it is what numbers of that size leave.
  double forward, gradient, share;
  const struct h_device *device;  // what programs run on (h_compile_for)
  void (*see)(ir_module *m);      // is shown the module that is compiled; may be NULL
} op_case;

// No gradient anywhere: a step. The pass says that there is nothing to learn.
bool oc_flat(const op_case *c);

// The text as a module, its function `outputs`; with trained weights, a `train_step`. Outputs are
// named out.0, out.1, ...
const char *oc_lower(op_case *c, ir_module **m, ir_func **f);
const char *oc_lower_trainable(op_case *c, ir_module **m, ir_func **f);
// The k-th `output` of a function, or NULL.
ir_op *oc_output(const ir_func *f, int k);

// Inputs, weights and outputs as the text has them, with random numbers to give: of (-1, 1), and
// below a limit where whole numbers are asked for. Then what the interpreter makes of them, with
// the gradients: what programs must say.
typedef struct oc_limit {
  const char *name;
  int below;
} oc_limit;
const char *oc_draw(op_case *c, uint64_t key, const oc_limit *limit, int nlimits);
const char *oc_reference(op_case *c);

// An interpreter that was given everything.
ir_interp *oc_interp(op_case *c, ir_module *m, const ir_func *f);
// Output `name` of the interpreter, of a program.
const char *oc_check_interp(op_case *c, ir_interp *x, const char *what, const char *name,
                            const double *want, int64_t n, double tolerance, double scale);
const char *oc_check_program(op_case *c, h_program *p, const prog_entry *e, const char *what,
                             const char *name, const double *want, int64_t n, double tolerance,
                             double scale);

// The whole pipeline gives the outputs, and the gradients, each to its tolerance. Where functions
// for a device are only collected, they are, and no number is looked at.
const char *oc_forward(op_case *c);
const char *oc_gradients(op_case *c);

#endif
