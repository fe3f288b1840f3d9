// From one placement to another where several axes change: one axis after the other.
//
// The placements of each axis are found by themselves (shard.h), and each knows the conversions it
// asked for. Together they may need more: where two axes cut one index, the parts of the outer one
// lie side by side only while the inner one does not cut it. So the inner one steps *aside*: what
// it cut is gathered, and cut again when the outer one is done. Pass `distribute` writes steps down
// as exchanges; blocks count those aside, which no axis has among its moves.
//
//   x[seq/ulysses, seq/tensor] -> x[heads/ulysses, seq/tensor]
//     all_gather over tensor (aside), all_to_all over ulysses, part over tensor
//
//   steps_ways *w = steps_ways_of(a, rules, axis);
//   steps s = steps_between(w, value, from, to);
#ifndef DSM_PLAN_STEPS_H
#define DSM_PLAN_STEPS_H

#include "passes/plan/block.h"

// A code (shard.h) for each axis.
typedef struct codes {
  signed char on[BL_INNER];
} codes;
bool codes_same(codes a, codes b);

// What is known of the axes of a graph.
typedef struct steps_ways {
  const sh_rules *rules;
  const sh_result *axis[BL_INNER];  // NULL: one rank
  unsigned *moved[BL_INNER];        // by value: codes that the axis brings it to, by bits
} steps_ways;
steps_ways *steps_ways_of(arena *a, const sh_rules *r, sh_result *const axis[BL_INNER]);

// The placement a value is made in, and that which a side of an op has.
codes steps_made(const steps_ways *w, int value);
codes steps_side(const steps_ways *w, int op, int side);

// Whether axis y lies inside axis x where both cut a leaf. Positions of tokens: ring, ulysses,
// tensor, outer to inner, for tensor gathers what it cut of the others' part. All else: tensor
// first, for it cuts weights, and the others cut what comes of them.
bool steps_inside(const sh_rules *r, int value, int code, int y, int x);

// What is cut or partial is made whole from the inner axis out, or becomes another cut at once
// where its axis has that conversion; then it is cut again from the outer axis in.
typedef struct steps {
  int n, x[4 * BL_INNER], to[4 * BL_INNER];
  bool aside[4 * BL_INNER];
} steps;
steps steps_between(const steps_ways *w, int value, codes from, codes to);

// The gathers aside of all that a graph's ops ask for, with what they cost; each form of a value is
// made once.
typedef struct steps_gather {
  int axis;
  sh_move move;
} steps_gather;
typedef struct steps_gathers {
  int n;
  steps_gather *at;
} steps_gathers;
steps_gathers steps_aside(arena *a, const sh_rules *r, sh_result *const axis[BL_INNER],
                          const bl_key *key, const cl_cluster *c);

#endif
