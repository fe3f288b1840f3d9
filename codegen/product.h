// A matrix product as kernels and libraries see it: the axes of an einsum.
//
// The letters of the spec fall into four classes: batch (in both operands and the result), m (first
// and result), n (second and result), k (summed). Each class is a list of axes with one stride per
// tensor, so transposed, split and broadcast operands are nothing special. The operands may have
// changed places: the finest axis of the result is one of n, so its rows are [n].
//
//   product p;
//   const char *why = product_of(op, &p);      // NULL, or why this einsum cannot be computed
//   b_axes m = product_axis(&p.m, -1);         // the longest axis of m; p.m keeps the others
//
// An op may carry a function of each element (ir_epilogue): its results and further operands are
// tensors with the letters of the result. So is the operand at which the sums start (ir_base).
#ifndef DSM_CODEGEN_PRODUCT_H
#define DSM_CODEGEN_PRODUCT_H

#include "codegen/build_impl.h"

// Tensors of the axes: the operands, the results, then further operands.
enum { A, B, O, MAX_TENSORS = 24 };

// A product of at most so many rows (decoding) reads weights as fast as memory gives them, whoever
// multiplies.
enum { PRODUCT_FEW = 4 };

enum { MOST_SUMMANDS = 2 };

typedef struct product {
  b_axes batch, m, n, k;
  ir_value *value[MAX_TENSORS];
  cg_tensor t[MAX_TENSORS];  // filled in by who builds a kernel
  int tensors, results;
  // Operands in the shape of the result that are added last, in this order: tensors summand[i]. The
  // last `made` tensors are summands that are not operands of the op.
  int summands, made, summand[MOST_SUMMANDS];
  b_summand kind[MOST_SUMMANDS];
  ir_dtype round;  // what operands are rounded through
  double flops;
} product;

// Of an einsum of one or two operands (of one: value[B] is NULL, and n is empty).
const char *product_of(ir_op *op, product *p);
// Takes an axis out of x: the finest of tensor `finest_of`, the longest when that is negative. An
// axis of extent 1 and strides 0 when there is none.
b_axes product_axis(b_axes *x, int finest_of);

// gemm.c: the product as a library's, if it can be one. False: a kernel of ours does it.
bool product_gemm(const product *p, const ir_op *op, prog_gemm *out);
// Builds its launch.
void product_build_gemm(bld *b, const product *p, const prog_gemm *g);

#endif
