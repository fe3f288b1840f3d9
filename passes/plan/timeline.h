// When each phase of a step runs, for a picture: the orders of pipeline.h run forward once.
//
// A stage does its list in order; a phase starts when its stage is free and what it reads has
// come: forward of part k from part k-1, backward from part k+1 and from its own forward. Messages
// of a link in one direction go one after another. pipe_simulate is the judge of how long a step
// takes; this only keeps every start and end, which a picture needs.
#ifndef DSM_PLAN_TIMELINE_H
#define DSM_PLAN_TIMELINE_H

#include "passes/plan/pipeline.h"

typedef struct timeline_bar {
  double start, end;
  pipe_phase phase;
  int chunk;
  int64_t micro;
} timeline_bar;

typedef struct timeline {
  int stages;
  timeline_bar **at;  // of a stage, by start
  int64_t *n;
  double end;  // of the last phase and what comes behind it
} timeline;

// NULL when the pipe has no stages, or more phases than a picture is worth (some millions).
timeline *timeline_of(arena *a, const pipeline *p);
// The part of the stages' time up to `end` that phases take, from 0 to 1.
double timeline_busy(const timeline *t);

#endif
