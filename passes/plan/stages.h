// Stage cuts: which layers each stage takes when layers, ends of the model and devices are unlike.
//
// Layers lie in order, as runs of equal ones; stages take consecutive ones. The first stage also
// has what comes before the layers (embedding), the last one what comes behind (head, loss). The
// cut found has the least seconds of the slowest stage among all that keep every stage within its
// capacity: exact. Of several, late stages take as many layers as they can, since early ones stash
// most; what the early ones are left with is cut by the same rule.
//
//   12 layers of 1 s, a head of 2 s, 4 stages:   3 3 3 3+head   slowest 5 s
//   found:                                       3 3 4 2+head   slowest 4 s
//
// A stage may take no layer (a head that is worth a stage). With chunks (interleaving) stages are
// cut by the sum of their chunks, as if these lay together, and stages_deal makes chunks of them:
// the slowest stage is the least possible when layers are alike.
#ifndef DSM_PLAN_STAGES_H
#define DSM_PLAN_STAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/arena.h"

// What one layer, or an end of the model, costs on a stage of slowness 1. Nothing is negative.
typedef struct stages_cost {
  double seconds;  // forward and backward of one micro-batch
  double kept;     // bytes of activations of one micro-batch until its backward
  double state;    // bytes that stay: parameters, gradients, optimizer
} stages_cost;

typedef struct stages_run {
  stages_cost layer;
  int64_t count;
} stages_run;

// The same layers and ends as a kind of stage has them: other devices, other networks.
typedef struct stages_work {
  const stages_run *run;    // as many layers as the others, in as many runs
  stages_cost first, last;  // beside the layers: of the first stage, of the last one
} stages_work;

typedef struct stages_job {
  const stages_work *work;  // of each kind
  int kinds;
  const int *kind;  // [stages]; NULL: all are of the first
  int runs;
  int stages;
  const double *slowness;  // [stages] of its device: seconds are multiplied by it; NULL: 1
  const double *stash;     // [stages] micro-batches it holds (pipe_stash); NULL: 0
  const double *capacity;  // [stages] bytes; NULL: no limit
  double micro;  // micro-batches: of the cuts that fit the one with the least sum of all stages'
                 // seconds and (micro - 1) times the slowest's, about what a pipeline takes; 0: the
                 // least slowest, which is the same where stages are alike
  bool only_fitting;  // when no cut fits, look no further: then only `fits` is set
} stages_job;

typedef struct stages_cut {
  int64_t *first;           // [stages + 1] stage i takes layers first[i] .. first[i + 1] - 1
  double *seconds, *bytes;  // [stages]
  double slowest;           // seconds of the slowest stage
  bool fits;    // false: no cut keeps within the capacities; this is the one whose worst
                // stage exceeds its own by least
  double over;  // bytes by which it does; 0 when it fits
} stages_cut;

// By dynamic programming over (stage, layers taken so far); O(stages L log L) for L layers.
stages_cut stages_find(arena *a, const stages_job *job);

// Layers of chunk `chunk` of a stage that has `own` of them.
int64_t stages_of_chunk(int64_t own, int chunks, int chunk);

// Layers of the stages of a cut, dealt to `chunks` parts each, as evenly as can be, late ones
// first: part k = c * stages + i is chunk c of stage i. A stage with fewer layers than chunks first
// gets layers of those with most. At least stages * chunks layers. Returns [stages * chunks + 1]
// first layers.
int64_t *stages_deal(arena *a, const stages_cut *cut, int stages, int chunks);

#endif
