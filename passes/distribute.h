// The axes inside a stage: what the planner found by rule is made explicit in LOCAL.
//
// The planner (passes/plan/shard.h) chooses for every op what it does on an axis, and for every
// value the placement it is made in and those it is brought to. `distribute` asks it again, on the
// module that is compiled, and writes the answer down: extents of one rank, and an exchange
// wherever an op reads a value in another placement than it is made in.
//
//   %q = einsum(%n, %w) : f32[b, s, heads=8 ...]     %n2 = all_gather(%n) {axes="tensor"}
//                                                    %q  = einsum(%n2, %w) : f32[b, s, heads=4 ...]
#ifndef DSM_PASSES_DISTRIBUTE_H
#define DSM_PASSES_DISTRIBUTE_H

#include "passes/plan/block.h"

typedef struct distribution {
  const cl_cluster *cluster;
  bl_key key;               // sizes and strides of the axes, micro-batch
  unsigned axes[BL_INNER];  // of the mesh, by bits: each is one, or two factors; 0: there is none
} distribution;

#endif
