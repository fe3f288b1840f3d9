// Inside the interpreter: what ir/interp.c offers to the ops of ir/interp_ops.c and
// ir/interp_attention.c.
#ifndef DSM_IR_INTERP_IMPL_H
#define DSM_IR_INTERP_IMPL_H

#include "ir/interp.h"

typedef struct interp_array {
  double *data;
  int64_t n;
} interp_array;

// The state of a run. Regions see only their arguments, so one table of values serves all of them:
// each iteration of a repeat writes the values of its body anew.
typedef struct interp_frame {
  ir_interp *x;
  arena *arena;     // of the running iteration
  int nvalues;      // length of the tables
  double **data;    // by value id: arrays
  double *scalar;   // by value id: values inside scalar regions
  ir_module *defs;  // a module of our own for the bodies of DEFINED rows
  ir_region *def[IR_OPCODE_COUNT];
  double *def_scalar;      // like `scalar`, for values of defs
  int64_t layer;           // for random draws
  uint64_t sample, index;  // of the element a map is at, for dropout inside it
  map sets;                // name -> interp_array, to become states after the function
  const char *error;
} interp_frame;

// Row-major extents.
typedef struct interp_shape {
  int rank;
  int64_t size[IR_MAX_RANK], stride[IR_MAX_RANK], n;
} interp_shape;

interp_shape interp_shape_of(const ir_type *t);
// The product of extents first .. last-1.
int64_t interp_extent(const ir_type *t, int first, int last);

double *interp_in(interp_frame *f, const ir_op *op, int k);
// Makes the zeroed array of result k.
double *interp_out(interp_frame *f, const ir_op *op, int k);
__attribute__((format(printf, 2, 3))) void interp_fail(interp_frame *f, const char *fmt, ...);

// Runs the ops of a region whose arguments have their data.
void interp_region(interp_frame *f, const ir_region *r);

// Gives argument `arg` of a scalar region a captured array.
void interp_capture(interp_frame *f, const ir_value *arg, double *data);
// Evaluates a scalar region: its first n arguments get `args` (captures were given before), and its
// yields go to `out`.
void interp_scalars(interp_frame *f, const ir_region *r, const double *args, int n, double *out);
// Applies the function that `op` carries (ir_epilogue) to result 0 and gives all results.
void interp_epilogue(interp_frame *f, const ir_op *op);
// After new regions were made in the module: the tables grow.
void interp_grow(interp_frame *f);

// Where element `flat` of a value stands for random draws: sample, and position in the sample.
void interp_position(const interp_frame *f, const ir_type *t, int64_t flat, uint64_t *sample,
                     uint64_t *index);
// 1/(1-p) or 0: what dropout by the op's key multiplies the element with.
double interp_dropout_factor(const interp_frame *f, const ir_op *op, double p, uint64_t sample,
                             uint64_t index);
// To an element type: whole numbers are truncated, truth is 0 or 1.
double interp_convert(ir_dtype t, double v);

typedef void interp_fn(interp_frame *f, const ir_op *op);
#define SCALAR(name, arity, kinds, expr, d0, d1, d2, flops, doc)
#define DEFINED(name, params, text, flops, doc)
#define OP(name, nin, nout, rule, kinds, attrs, dtype, grad, interp, build, doc) \
  interp_fn interp_##interp;
#include "ir/ops.def"

#endif
