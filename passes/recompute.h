// Which saved values to make again in backward: the choice by itself.
//
// Between forward and backward the layers of a repeat keep stacks of values. A stack is not needed
// when the op that made the value runs again in backward; that op reads values which are saved, or
// whose ops run again with it. So the choice is a set of *items*:
//   - an op that runs again: its work, and minus the bytes of the stacks of its results (for
//     backward reads these anyway, so that a result that is made again need not be kept);
//   - a carried value that forward does not keep, but an op that runs again reads: the bytes of a
//     new stack, no work.
// An item *needs* others: the ops that make its operands, as far as these are not saved, and the
// carried values it reads. A choice is a set that holds with every item what it needs.
//
//   norm n = f(x), product m = n w, u = gelu(m); x, m and u are saved, 4 MB each
//   item 0 op norm    work 1   bytes  0   needs -
//   item 1 op product work 90  bytes -4M  needs 0          (n is not saved)
//   item 2 op gelu    work 3   bytes -4M  needs -          (m is a slice, saved or made again)
//   front: {} 0 for 0,  {2} -4M for 3,  {0, 1, 2} -8M for 94
//
// rc_choose gives the *front*: every choice with less bytes than all of less work. A budget is met
// with the least work by the first point that fits, `full` is the last point, and `selective` is
// the last point when products are no items. To take a set that is closed under needs with least
// work within a budget is NP-hard (a knapsack is a special case), but bodies are small and most ops
// need no other, because most of what an op reads is saved.
//
// Items of several loops go into one list: they share a budget, and nothing else.
#ifndef DSM_RECOMPUTE_H
#define DSM_RECOMPUTE_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/arena.h"
#include "runtime/base/vec.h"

typedef struct rc_item {
  double work;       // >= 0
  int64_t bytes;     // added to what is saved; negative where stacks go
  int nneeds;        // items taken with it; all before it in the list
  const int *needs;  // their numbers
} rc_item;

typedef struct rc_choice {
  int64_t bytes;  // sums over the items taken
  double work;
  const uint64_t *taken;  // bit i % 64 of word i / 64: item i
} rc_choice;

typedef struct rc_front {
  VEC(rc_choice) at;  // work rises, bytes fall; the first one takes nothing (or what costs nothing)
  bool exact;         // no choice outside it is better than one of it
} rc_front;

// The items are decided one after the other; a partial choice is forgotten when another has no more
// work, no more bytes, and agrees on all items that later ones need. That is exact. When more than
// `limit` (at least 4) partial choices remain it becomes a heuristic, and `exact` false: of the
// choices in order of bytes it keeps every so manieth, and always those of least work, of least
// bytes, and at the end the one that takes everything. RC_LIMIT is for compilers: the models
// of examples/ have up to 27 items and 144 partial choices.
#define RC_LIMIT 16384
rc_front rc_choose(arena *a, const rc_item *item, int n, int limit);

static inline bool rc_taken(const rc_choice *c, int i) { return c->taken[i / 64] >> (i % 64) & 1; }

#endif
