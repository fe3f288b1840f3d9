// Where stages lie: on which devices, and over which links their ranks talk.
//
// On a cluster whose parts are all alike every stage is of one *kind*: a block is made once, and
// collectives cost what the whole cluster's links give. Elsewhere the ranks of a mesh are followed
// to their devices: with `pipeline` outermost a stage is a run of consecutive devices, and pays for
// these and their network only; a stage that lies on several kinds is as slow as its slowest device
// and its slowest link, and has room for what its smallest device holds.
//
//   two groups of 32, InfiniBand and RoCE, 4 stages of 16:    kinds 0 0 1 1
//   the same with data ranks outermost:                       kinds 0 0 0 0, and data spans
#ifndef DSM_PLAN_STAGE_KIND_H
#define DSM_PLAN_STAGE_KIND_H

#include "passes/plan/homes.h"
#include "passes/plan/search.h"

// The ranks inside a stage (tensor, ulysses, ring) of one data rank: what a block is made for.
typedef struct sk_seat {
  const cl_device *device;
  const cl_cluster *net;  // the devices of the ranks, from 0 on
  uint64_t digest;        // of all that a block depends on: device, and routes of the axes
} sk_seat;

typedef struct sk_kind {
  int nseats;
  const sk_seat *const *seat;
  const cl_cluster *net;       // over which a stage's ranks reduce, its first device being 0
  int64_t capacity, reserve;   // of the device with least room
  double bandwidth;            // of the slowest memory
  hm_store store;              // the least of all nodes
  const char *device, *group;  // names: "a100 + v100"; of the part of the cluster it lies in
} sk_kind;

typedef struct sk_places {
  int stages, kinds;
  const sk_kind *kind;
  const int *of;          // [stages]
  const int64_t *from;    // [stages] the rank whose way to the next stage is slowest
  const int64_t *to;      // [stages] and who it sends to; the last stage sends to the first
  bool spans[PLAN_AXES];  // a group that reduces or exchanges over this axis has devices of
                          // networks that differ
} sk_places;

// Of a choice whose sizes and order are set. Kept in the space.
const sk_places *sk_places_of(const plan_space *s, const plan_choice *c);
// The only kind of stage of a cluster whose parts are alike; without names.
sk_kind sk_alike(const plan_space *s);
// hm_store_of, kept in the space.
hm_store sk_store(const plan_space *s);
// Room of the device with most.
int64_t sk_most_memory(const plan_space *s);
// Distances between neighbours on each axis.
void sk_strides(const plan_choice *c, int64_t stride[PLAN_AXES]);

// Blocks of all seats of a choice whose outer dimensions are set. One on an alike cluster.
int sk_blocks(plan_space *s, const plan_choice *c, const bl_block *const **out);
// The block of a kind of stage: of its slowest seat.
const bl_block *sk_block_of(plan_space *s, const plan_choice *c, const sk_kind *k);
// Seconds of all pieces of a block, for one micro-batch, before what ZeRO adds.
double sk_block_seconds(const bl_block *b);

// Whether any axis of a choice spans; never on an alike cluster.
bool sk_spans(const plan_space *s, const plan_choice *c);
// Peak of products of all devices together. `a` is scratch.
double sk_peak(arena *a, const cl_cluster *c, ir_dtype t);

#endif
