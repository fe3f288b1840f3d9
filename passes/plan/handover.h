// What crosses a cut between layers: values that are there on one side and read on the other.
//
// Forward they go from the layers before a cut to those behind it, backward from those behind it.
// What a repeat carries crosses every cut between its layers; what was made elsewhere crosses all
// cuts between there and its last reader, as T5's encoder does those of the decoder. A cut is *in
// front* of a piece or *between* the layers of one. What follows from inputs and weights alone
// crosses none: it is made where it is first read, or by everyone (passes/cut.c). But what stands
// in front of the first layers (an embedding) is made on the first stage, which may have no layers.
#ifndef DSM_PLAN_HANDOVER_H
#define DSM_PLAN_HANDOVER_H

#include "passes/plan/graph.h"

// What goes over a cut together, of one micro-batch.
typedef struct ho_bundle {
  int made;  // the piece that made it; -1: each layer makes it anew
  double bytes;
} ho_bundle;
typedef struct ho_cut {
  int n;
  ho_bundle *at;
} ho_cut;

// By piece and phase.
typedef struct handover {
  ho_cut front[2], between[2];
} handover;

// Of each piece; NULL where nothing crosses a cut that there may be. `bytes`: of each value, as a
// rank holds it. The list itself is in `scratch`, what it points to in `a`: a planner keeps many.
const handover *const *ho_find(arena *a, arena *scratch, const pg_graph *g, const double *bytes);
// What crosses in front of a piece, or between its layers.
ho_cut ho_at(const handover *h, bool between, pg_phase phase);
double ho_bytes(const ho_cut *c);

#endif
