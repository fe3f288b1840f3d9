// The memory of a plan, as its executable has it: to the byte.
//
// Planning goes by a load, the bytes that live at the fullest moment (evaluate.c). It is never
// above what the arena of an executable takes, so what it refuses does not fit. What it lets
// through is compiled as far as pass `layout`, by the functions that `build` calls and with the
// same pins, and the arena laid out there is the plan's memory: a plan is taken when that fits. One
// layout serves all points with its recomputation and micro-batch, so a search makes a few of them.
//
// A plan for ranks is laid out too, a stage at a time, when it is one that is built: then the plan
// of each stage and the arena of its ranks are one number. That takes a compilation for each plan,
// so only what the search ends with is laid out, and on the way only what comes near its capacity.
//
//   laid l;
//   if (laid_of(&layouts, device, &choice, &l)) use(l.peak);   // false: the load stands
#ifndef DSM_PLAN_LAID_H
#define DSM_PLAN_LAID_H

#include "ir/schedule.h"
#include "passes/plan/plan.h"
#include "runtime/base/map.h"

// The memory of one executable by class; the classes sum to `peak`, its arena.
typedef struct laid {
  int64_t memory[PLAN_MEMORIES], peak;
  const char *peak_at;  // the task that runs while most is in use: "backward.h.0"
} laid;

// Reads it off a schedule that has places. States are counted by what they are; of what lives
// between them, gradients and what forward saved for backward are those of the fullest moment of
// train_step, where they share bytes (frames, passes/layout_loops.c) these are the gradients'; all
// the rest of the arena is workspace, also where another entry is the largest.
void laid_read(arena *a, const sched *s, laid *out);

// Where layouts come from, and those that were made.
typedef struct laid_maker {
  arena *a;
  // Lays out what `build` would make for the choice on such a device. False when that is not known:
  // no code is generated for the device, or not for the choice. NULL: never known.
  bool (*make)(void *ctx, const cl_device *d, const plan_choice *c, laid *out);
  // The same of a plan of several devices that the cluster has: out[x->nstages]. NULL: never known.
  bool (*make_ranks)(void *ctx, const cl_cluster *c, const plan_candidate *x, laid *out);
  void *ctx;
  map made;  // recomputation and micro-batch -> laid, or the maker itself: not known
} laid_maker;

// The layout of a choice, of one device; false when it is not known. `m` may be NULL.
bool laid_of(laid_maker *m, const cl_cluster *c, const plan_choice *choice, laid *out);
// Gives a candidate the memory of its layout, when that is known, in place of its load.
void laid_set(arena *a, laid_maker *m, const cl_cluster *c, plan_candidate *x);
// The same for a plan of several devices, stage by stage. laid_set does so only for what comes so
// near its capacity that the difference of load and arena may decide.
void laid_set_ranks(arena *a, laid_maker *m, const cl_cluster *c, plan_candidate *x);

#endif
