// Exact minimum of a sum of small functions, by eliminating one variable after the other.
//
// Variables take one of a few values; a *term* gives a cost to every combination of the values of
// its variables (one or two of them). The least total is found by taking out variables in turn: all
// functions that name it become one of their other variables, the minimum over it, and what it was
// is remembered for the way back (bucket elimination, Dechter 1999). The work is exponential in the
// number of variables that meet in one function, which in the body of a transformer is small: a
// chain of ops with a residual beside it.
//
//   el_problem *p = el_new(a, 3, (int[]){2, 2, 3});
//   el_one(p, 0, cost0);                      // cost0[v]
//   el_two(p, 0, 1, cost01);                  // cost01[v0 * 2 + v1]
//   if (el_solve(p, scratch, value, &total))  // value[i] of each variable
#ifndef DSM_PLAN_ELIM_H
#define DSM_PLAN_ELIM_H

#include <stdbool.h>

#include "runtime/base/arena.h"
#include "runtime/base/vec.h"

typedef struct el_term {
  int a, b;            // b = -1: of one variable
  const double *cost;  // [na] or [na * nb], a major; EL_NEVER: not allowed
} el_term;

#define EL_NEVER 1e300

typedef struct el_problem {
  arena *arena;
  int n;
  const int *size;  // values of each variable, at least 1
  VEC(el_term) term;
} el_problem;

el_problem *el_new(arena *a, int n, const int *size);
// Tables are not copied; they are read when the problem is solved.
void el_one(el_problem *p, int var, const double *cost);
void el_two(el_problem *p, int a, int b, const double *cost);

typedef struct el_stats {
  double largest;  // entries of the largest function
  double entries;  // of all
} el_stats;

// Least total and a choice that has it; of equal ones the first in the order of elimination, always
// the same. False when no choice is allowed, or a function would have more than EL_LARGEST entries
// (then *total is NAN).
#define EL_LARGEST (1 << 24)
bool el_solve(const el_problem *p, arena *scratch, int *value, double *total, el_stats *stats);
// The same by trying every choice: an oracle for tests, for few variables.
bool el_brute(const el_problem *p, int *value, double *total);

#endif
