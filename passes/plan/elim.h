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
//
// A problem that is solved again and again with other costs, and in which the same combinations are
// forbidden, is compiled once: what is left is a *circuit* of sums and minima over the combinations
// that are allowed, a small share of all.
//
//   el_circuit *c = el_compile(a, p, NULL);
//   const double *cost[] = {other0, other01};  // of term 0, the el_one above, and of term 1
//   el_run(c, scratch, cost, value, &total);
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
  double largest;  // entries of the largest function, were nothing forbidden
  double entries;  // of all
  double sums;     // that are worked out: of combinations that are allowed
} el_stats;

typedef struct el_step el_step;
typedef struct el_circuit {
  int n;
  int nsteps;  // variables, in the order in which they are taken out
  el_step *step;
  bool possible;  // false: no choice is allowed
} el_circuit;

// Which entries are EL_NEVER is fixed from here on, and so is which terms of two variables only
// forbid (all their entries are 0 or EL_NEVER); the costs of all others are given to el_run. NULL
// when a function would have more than EL_LARGEST entries.
#define EL_LARGEST (1 << 24)
el_circuit *el_compile(arena *a, const el_problem *p, el_stats *stats);
// Least total for these costs, and a choice that has it; of equal ones the first in the order of
// elimination, always the same. False when no choice is allowed. `cost`: of each term its table;
// what is forbidden is not read. Terms that share a table share work.
bool el_run(const el_circuit *c, arena *scratch, const double *const *cost, int *value,
            double *total);

// Both at once; *total is NAN when the problem is too large.
bool el_solve(const el_problem *p, arena *scratch, int *value, double *total, el_stats *stats);
// The same by trying every choice: an oracle for tests, for few variables.
bool el_brute(const el_problem *p, int *value, double *total);

#endif
