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
// A stage may take no layer (a head that is worth a stage). With chunks (interleaving) the parts
// are the stages here: part k = c * p + i with slowness, stash and a share of the capacity of stage
// i. Then the slowest part is the least possible; the slowest sum of the parts of a stage need not
// be.
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

typedef struct stages_job {
  const stages_run *run;
  int runs;
  stages_cost first, last;  // beside the layers: of the first stage, of the last one
  int stages;
  const double *slowness;  // [stages] of its device: seconds are multiplied by it; NULL: 1
  const double *stash;     // [stages] micro-batches it holds (pipe_stash); NULL: 0
  const double *capacity;  // [stages] bytes; NULL: no limit
  bool only_fitting;       // when no cut fits, look no further: then only `fits` is set
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

#endif
