// What the pieces of a step take at given cuts and micro-batch: the planner's unit of work.
//
// A *block* is a graph with its axes inside a stage solved: tensor, ulysses, ring. It is made once
// for each (recompute, tensor, ulysses, ring, order, micro-batch) and shared by all plans that
// differ in data, pipeline, interleaving, ZeRO and homes. All numbers are of one rank and one
// micro-batch; for a piece of layers they are of one layer.
#ifndef DSM_PLAN_BLOCK_H
#define DSM_PLAN_BLOCK_H

#include "passes/plan/handover.h"
#include "passes/plan/plan.h"
#include "passes/plan/shard.h"

enum { BL_TENSOR, BL_ULYSSES, BL_RING, BL_INNER };  // axes inside a stage
typedef struct bl_key {
  plan_recompute recompute;
  int64_t size[BL_INNER];  // tensor, ulysses, ring
  int64_t stride[BL_INNER];
  int64_t micro_batch;
  bool whole_stream;  // plan_choice
} bl_key;
enum { BL_KEY_TEXT = (2 * BL_INNER + 3) * STR_NAME + 1 };
// A key as a name for maps: equal keys have equal ones. At most BL_KEY_TEXT bytes; returns its end.
char *bl_key_text(char *out, const bl_key *k);
plan_axis bl_axis_of(int inner);  // PLAN_TENSOR, PLAN_ULYSSES, PLAN_RING

// What collectives over one axis take.
typedef struct bl_sent {
  double seconds;                   // hidden or not
  double bytes[CL_COLLECTIVES][2];  // sent: inside nodes, between them
  double calls[CL_COLLECTIVES];
} bl_sent;

// Of one phase of a piece.
typedef struct bl_phase {
  double compute;               // seconds of its ops
  double kind[PC_KINDS];        // of these, by what they are
  double weight;                // of these, gradients of weights (what zero-bubble moves)
  double sent[BL_INNER];        // exposed seconds of collectives
  double streamed[BL_INNER];    // of these, what is on its way to an op that runs on chunks of it
  double prefetched[BL_INNER];  // seconds of what is on its way while the phase computes
  const bl_sent *moves[BL_INNER];  // all collectives
  double transient;                // highest sum of values that live only within it
  double transient_one;      // the same with one micro-batch: gradients come as it goes on, those
                             // of a piece between layers are counted here
  const char *transient_at;  // the op there
} bl_phase;

// What weights take on a rank. A stack's layer, or a weight.
typedef struct bl_state {
  double elements;   // that a rank holds
  double logical;    // before cuts
  double parameter;  // bytes as products read them (rounded copies, or f32)
  double master;     // f32 weights behind rounded copies
  double optimizer;  // m, v, momentum
  double gradient;
  double updated;      // what is gathered after an update made of parts: as products read them, or
                       // masters that others read too
  double gathered[2];  // by ranks that share parameters (ZeRO 3): bytes of all gathers, of a
                       // micro-batch, and once a step
  double late;  // of gradients, those that tensor ranks complete once a step: they are parts only
                // then, with ZeRO 2 too
  double whole[4];  // of these bytes, gradients that each ulysses (1), ring (2) rank has whole
} bl_state;
void bl_state_add(bl_state *to, const bl_state *s, double times);
// The least of two in everything, of parts of gradients too.
bl_state bl_state_least(const bl_state *x, const bl_state *y);

// A weight that is not a stack of layers: it is once on every stage that holds one of its pieces,
// and its gradient is summed over these stages (tied embeddings).
typedef struct bl_weight {
  bl_state state;
  int npieces;
  int *piece;
  double *gathers[2];  // of each piece: bytes that one of its layers gathers, as in bl_state
  const bl_sent *once[BL_INNER];  // its gradient's sums, on every stage that has it; NULL: none
} bl_weight;

typedef struct bl_piece {
  bl_phase phase[2];              // PG_FORWARD, PG_BACKWARD
  const bl_sent *once[BL_INNER];  // once a step: gradients of its layers' weights that an axis
                                  // does not cut
  double kept;                    // bytes that wait for backward
  // What gradients of weights wait with when they are done apart: of `kept`, and of what backward
  // makes.
  double kept_longer, late;
  bl_state layer;         // of stacked weights, a layer
  const handover *hands;  // what crosses the cuts of its layers
} bl_piece;

typedef struct bl_block {
  bl_key key;
  const pg_graph *g;
  int npieces;
  bl_piece *piece;
  VEC(bl_weight) weight;
  bl_state layers, others;    // of all layers, and of all other weights
  bl_state least;             // of one layer, the least of all
  double kept;                // bytes of all layers that wait for backward
  sh_result *axis[BL_INNER];  // of each: strategies and codes; what moves is in the pieces
  double *value_part;         // over all inner axes, while it is made
  const char *why;            // not NULL: these cuts are not possible
  const char *code;           // its diagnostic word: "indivisible"
} bl_block;

// The placements inside a stage.
typedef struct bl_axes {
  sh_result *axis[BL_INNER];     // NULL: it has one rank
  double *value_part, *op_part;  // fractions that all of them leave a rank of values, of work
  double *before[BL_INNER];      // value_part without this axis and those that are solved after it
} bl_axes;
// Solves the axes one behind another: sequence axes first, for they cut all activations alike, so
// that what tensor moves is known. The same graph has the same answer, in a plan and in the
// program made by it (passes/distribute.h). `weights`: sh_env's, of each axis, or NULL. Returns why
// these cuts are not possible, or NULL. All of it is in `a`.
const char *bl_solve(arena *a, const sh_rules *rules, const bl_key *key, const cl_cluster *cluster,
                     const cl_device *device, const signed char *const weights[BL_INNER],
                     bl_axes *out);

// `device` is one of `cluster`.
bl_block *bl_make(arena *a, const sh_rules *rules, const bl_key *key, const cl_cluster *cluster,
                  const cl_device *device);

// A lower bound on the seconds of all pieces (layers counted) of any block with these cuts: each op
// by itself at its cheapest, no conversions.
double bl_bound(const pg_graph *g, const bl_key *key, const cl_device *device);

#endif
