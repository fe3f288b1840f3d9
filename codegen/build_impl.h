// Inside the builders: what codegen/build*.c share.
//
// A builder makes one kernel at a time:
//
//   bld b = {...};                                   // cg_build gives it
//   b_begin(&b, "fill");
//   cg_tensor y = b_write(&b, op->out[0]);           // a buffer, with the view of the value
//   ... axes, grid, tiles ...
//   b_end(&b);                                       // verify, share, append the launch
//
// Tensors are walked over *axes*: lists of extents with one stride per tensor, made from the views'
// leaves (b_align) and merged as far as all tensors allow (b_collapse).
#ifndef DSM_CODEGEN_BUILD_IMPL_H
#define DSM_CODEGEN_BUILD_IMPL_H

#include "codegen/build.h"
#include "codegen/machine.h"
#include "runtime/base/map.h"

#define B_MAX_TENSORS 40
#define B_MAX_AXES IR_MAX_LEAVES

typedef struct bld {
  cg_context *cg;
  arena *arena;
  ir_op *op;
  skip_set skip;           // choices to do without
  const cg_limits *limit;  // tile sizes of the machine
  k_kernel *k;
  cg_launches *out;
  cg_launch launch;  // of the kernel being built
  const char *why;   // the first reason the op cannot be built
} bld;

// A value as a kernel sees it: a buffer and where its elements are, or a number (`const` ops).
typedef struct cg_tensor {
  bool is_const;
  double number;
  ir_dtype dtype;
  int buffer;
  ir_view view;   // leaves, strides; offset included in `base`
  k_value *base;  // offset + past * past_stride, in elements
} cg_tensor;

// ---- build.c: kernels, buffers -----------------------------------------------------------------
void b_begin(bld *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void b_end(bld *b);
// Appends the launch of a library's product on the operands in b->launch, which the caller sets.
void b_gemm(bld *b, const cg_gemm *g);
cg_tensor b_read(bld *b, ir_value *v);
cg_tensor b_write(bld *b, ir_value *v);   // v is a root
cg_tensor b_update(bld *b, ir_value *v);  // read and written
// A tensor in the shape of v that is not there, behind all others: what an op would add to its
// result if it carried an addition. Its loads must have a limit of 0; its buffer is some address.
cg_tensor b_absent(bld *b, ir_value *v);
// The result y of v itself, as it was before: a summand of sums over micro-batches.
cg_tensor b_old(bld *b, const cg_tensor *y, ir_value *v);
// 1 where a summand counts in this launch and 0 where it does not, by numbers of the launch: what
// limits of its loads are multiplied by. The old result counts from the second micro-batch on.
typedef enum b_summand { B_ABSENT, B_PRESENT, B_OLD } b_summand;
k_value *b_present(bld *b, b_summand s);
// What loads give for a summand's elements that are not there: on GPUs -0, which changes no bit of
// a sum, so that functions with and without summand are one.
double b_no_summand(const bld *b);
// Scratch of this op: `elements` of type t. b_scratch makes a dense one-axis tensor of it.
int b_new_scratch(bld *b, ir_dtype t, int64_t elements);
cg_tensor b_scratch(bld *b, int scratch, ir_dtype t, int64_t elements, k_use use);
void b_fail(bld *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// ---- build_axes.c: extents and strides ---------------------------------------------------------

// n axes of common extents; stride[t][a] is tensor t's step along axis a.
typedef struct b_axes {
  int n, tensors;
  int64_t size[B_MAX_AXES];
  int64_t stride[B_MAX_TENSORS][B_MAX_AXES];
} b_axes;

// Leaves first .. last-1 of one tensor's view.
typedef struct b_part {
  const ir_view *view;  // NULL: a tensor that repeats along all of it
  int first, last;
} b_part;

// Common axes of parts with equal products (or of which some are 1: they repeat). Appends to `out`,
// which has the same tensors. False when the factorisations cannot be nested.
bool b_align(b_axes *out, const b_part *part, int tensors);
// Aligns whole views dimension by dimension to the shape of `type`, as broadcasting does.
bool b_align_to(b_axes *out, const ir_type *type, const ir_view *const *view, int tensors);
// Drops axes of extent 1 and merges neighbours that every tensor walks as one.
void b_collapse(b_axes *x);
int64_t b_product(const b_axes *x);
// Takes axis `a` out of x.
void b_drop(b_axes *x, int a);
// Where tensor t is at position `index` (i64) of the axes counted as one, in elements.
k_value *b_at(bld *b, const b_axes *x, int t, k_value *const *coord);
// The coordinates of a position counted through all axes, last fastest.
void b_coordinates(bld *b, const b_axes *x, k_value *index, k_value **coord);

// How an extent is cut into tiles: `count` tiles of `size`; `ragged` when the last is not full.
typedef struct b_cut {
  int64_t extent;
  int size;
  int64_t count;
  bool ragged;
} b_cut;
b_cut b_cut_even(int64_t extent, int max, int multiple);  // tiles of about equal size
// As the machine likes it. Powers of two are always cut by limits, also where they need not be:
// then extents are numbers that kernels of one function differ in.
b_cut b_cut_tile(const bld *b, int64_t extent, int max, int multiple);
// Tiles of that size however short the extent: one function for a few rows and for many.
b_cut b_cut_rows(int64_t extent, int size);
// The same without limits where tiles divide the extent.
b_cut b_cut_exact(const bld *b, int64_t extent, int max, int multiple);
// A number of this shape; one that nothing is folded with where kernels of several shapes are one.
k_value *b_number(bld *b, int64_t v);
k_value *b_real(bld *b, double v);  // f32
// The coordinate along a new grid dimension of the cut's tiles.
k_value *b_grid(bld *b, const b_cut *c);
k_value *b_grid_of(bld *b, int64_t extent);
// Where tile number i (counted through several axes, the cut's the inner one) begins.
k_value *b_start(bld *b, const b_cut *c, k_value *i);
// Elements left from `start` on, for limits; NULL when no tile is ragged.
k_value *b_left(bld *b, const b_cut *c, k_value *start);

// A loop over i = 0, step, ... < n that is no loop when it has one round.
typedef struct b_loop {
  k_stmt *stmt;
  k_value *i;
  int n;
  k_value *carry[4];  // inside: the carried values; after b_loop_end: the results
} b_loop;
b_loop b_loop_begin(bld *b, k_value *lo, k_value *hi, int64_t step, int64_t rounds,
                    k_value *const *init, int n);
void b_loop_end(bld *b, b_loop *l, k_value *const *next);

// ---- build_region.c: scalar regions on tiles ---------------------------------------------------

typedef struct b_env b_env;
// A tensor that `at` reads (captures of masks and biases).
typedef struct b_capture {
  cg_tensor tensor;
  int rank;
  int64_t extent[IR_MAX_RANK];
  b_axes dim[IR_MAX_RANK];  // the leaves of each dimension, one tensor
} b_capture;
b_env *b_env_new(bld *b);
void b_bind(b_env *e, ir_value *v, k_value *tile);
void b_bind_capture(b_env *e, ir_value *v, const b_capture *c);
b_capture b_capture_of(bld *b, ir_value *v);
k_value *b_bound(b_env *e, const ir_value *v);  // NULL for a captured tensor
// For dropout: the sample (global) and the position in it, as i64 tiles.
void b_bind_position(b_env *e, k_value *sample, k_value *index);
// `at` plus where this rank's part of what the op counts begins (ir_begin, ir/place.h); over some
// axes alone, by bits.
k_value *b_begin_at(bld *b, k_value *at);
k_value *b_begin_over(bld *b, k_value *at, unsigned axes);
bool b_of_sample(const bld *b, const ir_index *leaf);  // whether it is one of the sample axis
// Evaluates the ops; yields through `out`.
void b_region(b_env *e, ir_region *r, k_value **out);
k_value *b_apply(b_env *e, ir_op *op, k_value *const *in);
k_value *b_at_element(b_env *e, const b_capture *c, k_value *const *index);

// Interval evaluation: what a mask can be on a tile, from the ends of its arguments.
typedef struct b_range {
  bool known;        // false: anything
  k_value *lo, *hi;  // numbers: smallest and largest; truths: certainly (lo), possibly (hi)
} b_range;
// Evaluates region r on intervals; `arg` is per argument of r (captures: known = false).
b_range b_region_range(b_env *e, ir_region *r, const b_range *arg);

// ---- shared pieces -----------------------------------------------------------------------------
k_value *b_load(bld *b, const cg_tensor *t, int rows, int cols, k_access x);
void b_store(bld *b, const cg_tensor *t, k_value *v, k_access x);
// The body of a copy, over axes of the tensors `to`, `from`.
void b_copy_axes(bld *b, const cg_tensor *to, const cg_tensor *from, const b_axes *axes);
// Copies or fills a strided region: dst takes src (NULL: zeros). Views have equal extents per dim.
void b_copy_kernel(bld *b, const char *name, ir_value *dst, const ir_view *dst_view, ir_value *src,
                   double number);
// Reduces x, or the function `of` each of its elements (a scalar region, or NULL): axes `keep`
// (tensors: x, out) and `over` (tensor x).
void b_reduce_kernels(bld *b, ir_opcode kind, ir_value *x, ir_region *of, ir_value *out,
                      b_axes keep, b_axes over);

// Reduces the parts of one result: part p lies dense at p * (product of keep) of a scratch buffer.
// keep: tensors scratch, out.
void b_reduce_parts(bld *b, ir_opcode kind, int scratch, ir_dtype t, int64_t parts, ir_value *out,
                    const b_axes *keep);

// The builders, by the `build` column.
#define SCALAR(name, arity, kinds, expr, d0, d1, d2, flops, doc)
#define DEFINED(name, params, text, flops, doc)
#define OP(name, nin, nout, rule, kinds, attrs, dtype, grad, interp, build, doc) \
  void cg_build_##build(bld *b);
#include "ir/ops.def"

#endif
