// Views: how a value looks at storage.
//
// Ops whose `build` column says `view` (transpose, slice, split, expand, squeeze, broadcast) move
// nothing: their result is another way to address the storage of their operand. ir_view_of follows
// them to the value that owns storage, the *root*, and gives one stride per leaf index. Kernels
// take the root's address as their operand and have offset and strides built in.
//
//   %h = linear output, f32[batch=4, seq=64, (qkv=3 heads=12 dim=64)]      root, dense
//   %k = split(%h) {dim=2}, second result
//   ir_view_of(%k): root %h, offset 768, sizes  4     64   12 64
//                                        strides 147456 2304 64 1
#ifndef DSM_IR_VIEW_H
#define DSM_IR_VIEW_H

#include "ir/ir.h"

typedef struct ir_view {
  ir_value *root;
  int64_t offset;  // in elements, from the root's address
  int64_t
      past_stride;  // elements the address moves for each position already decoded (dsm_call.past)
  int nleaves;      // leaves of the value's type, dimension after dimension, outer to inner
  int64_t size[IR_MAX_LEAVES];
  int64_t stride[IR_MAX_LEAVES];   // in elements; 0 where the value repeats
  int dim_first[IR_MAX_RANK + 1];  // leaves dim_first[d] .. dim_first[d+1]-1 make up dimension d
} ir_view;

// The view of `v`. A root is dense: last leaf has stride 1.
ir_view ir_view_of(ir_value *v);
// True when `op` makes only views (no kernel).
bool ir_is_view(const ir_op *op);
// Which operand's storage `op` writes in place, so that its result lies there too (`updates` in
// ir/ops.def); -1: none.
int ir_updated(const ir_op *op);
// The value whose storage holds `v`: the root of the view, and through updates in place the value
// that was there first.
ir_value *ir_storage_of(ir_value *v);
// Whether result `j` of `op` may be written over operand `k`, because no kernel of it reads an
// element of that operand after writing the result there. Elementwise ops load a tile of each
// operand, then store the tile of each result (codegen/build_map.c); ops on rows load and store a
// tile in their last pass (codegen/build_rows.c; `over` in ir/ops.def). So result and operand must
// be the same elements in the same order, and no other operand may look at that storage in another
// way.
bool ir_may_overwrite(const ir_op *op, int j, int k);
// Merges neighbouring leaves d, d+1 of `n` views with equal sizes wherever every view walks them as
// one (stride[d] == size[d+1]*stride[d+1], or both 0); drops leaves of size 1. Changes the views;
// returns the number of dimensions left (at least 1).
int ir_views_collapse(ir_view *const *view, int n);

#endif
