// How fast the link between unlike networks would have to be.
//
// Where parts of a cluster have networks of their own, the planner keeps reductions inside a part
// when the link between them is slow, and lets only stage boundaries cross. The *crossing* is the
// speed of that link from which the best plan with a reduction across is faster than the best plan
// without. Both are searched for again as the speed changes.
//
//   two groups of 32 A100, 25 Gbit/s between them:  pipeline 2 x data 32   210 ms  <- best
//                                                   data 64                384 ms
//   the same with 71 Gbit/s:                        both take              208 ms
#ifndef DSM_PLAN_CROSSING_H
#define DSM_PLAN_CROSSING_H

#include "passes/plan/search.h"

// NULL when no networks differ, when plans of one of the two sorts do not exist, or when it would
// take longer than `seconds` (*late). `best` is the plan of the search with these pins.
plan_crossing *plan_find_crossing(plan_space *s, const plan_pins *pins, const plan_candidate *best,
                                  double seconds, bool *late);

#endif
