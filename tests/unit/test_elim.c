// Elimination against trying every choice, on random problems.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <math.h>

#include "passes/plan/elim.h"
#include "tests/unit/draw.h"

enum { MOST = 9 };

// Whole numbers, so that sums are exact in any order; `never` in 8 entries are not allowed.
static const double *table(arena *a, uint64_t *s, int n, int never) {
  double *t = arena_new(a, double, n);
  for (int i = 0; i < n; i++) t[i] = draw_int(s, 0, 7) < never ? EL_NEVER : draw_int(s, -20, 20);
  return t;
}

// Up to 9 variables of up to 4 values; `own`: also terms that name one variable twice.
static el_problem *problem(arena *a, uint64_t *s, bool own) {
  int n = draw_int(s, 1, MOST), *size = arena_new(a, int, n), never = draw_int(s, 0, 4);
  for (int i = 0; i < n; i++) size[i] = draw_int(s, 1, 4);
  el_problem *p = el_new(a, n, size);
  for (int k = draw_int(s, 0, 2 * n); k > 0; k--) {
    int x = draw_int(s, 0, n - 1), y = draw_int(s, 0, n - 1);
    if (draw_int(s, 0, 3) == 0)
      el_one(p, x, table(a, s, size[x], never));
    else if (x != y || own)
      el_two(p, x, y, table(a, s, size[x] * size[y], never));
  }
  return p;
}

// What a choice costs, read off the terms; EL_NEVER where one forbids it.
static double cost_of(const el_problem *p, const int *value) {
  double sum = 0;
  for (int i = 0; i < p->term.n; i++) {
    const el_term *t = &p->term.at[i];
    int at = t->b < 0 ? value[t->a] : value[t->a] * p->size[t->b] + value[t->b];
    if (t->cost[at] >= EL_NEVER) return EL_NEVER;
    sum += t->cost[at];
  }
  return sum;
}

// The least cost over all choices, by counting; nothing of elim.c in it.
static double least(const el_problem *p) {
  int value[MOST] = {0};
  double best = EL_NEVER;
  for (;;) {
    double c = cost_of(p, value);
    if (c < best) best = c;
    int i = 0;
    while (i < p->n && ++value[i] == p->size[i]) value[i++] = 0;
    if (i == p->n) return best;
  }
}

static void test_equals_brute_force(void **state) {
  (void)state;
  int solved = 0, refused = 0;
  for (uint64_t seed = 1; seed <= 6000; seed++) {
    arena a;
    arena_init(&a);
    uint64_t s = seed;
    el_problem *p = problem(&a, &s, seed % 2 == 0);
    int fast[MOST] = {0}, slow[MOST] = {0};
    double total = 0, brute = 0, best = least(p);
    el_stats stats;
    bool found = el_solve(p, &a, fast, &total, &stats);
    assert_int_equal(found, best < EL_NEVER);
    assert_int_equal(el_brute(p, slow, &brute), found);
    if (found) {
      assert_true(total == best && brute == best);
      for (int i = 0; i < p->n; i++) assert_in_range(fast[i], 0, p->size[i] - 1);
      assert_true(cost_of(p, fast) == best && cost_of(p, slow) == best);
    } else {
      assert_true(!isnan(total));  // not for want of room
    }
    solved += found;
    refused += !found;
    arena_free(&a);
  }
  assert_true(solved > 2000 && refused > 500);  // the generator makes both
}

// Whether a term of two variables forbids and does nothing else.
static bool only_forbids(const el_problem *p, const el_term *t) {
  for (int k = 0; t->b >= 0 && k < p->size[t->a] * p->size[t->b]; k++)
    if (t->cost[k] != 0 && t->cost[k] < EL_NEVER) return false;
  return t->b >= 0;
}

// Compiled once, run with other costs: what brute force finds for each. Terms that only forbid stay
// as they are, all others get new costs where they had one.
static void test_compiled_for_other_costs(void **state) {
  (void)state;
  int solved = 0;
  for (uint64_t seed = 1; seed <= 1000; seed++) {
    arena a;
    arena_init(&a);
    uint64_t s = seed;
    el_problem *p = problem(&a, &s, seed % 2 == 0);
    el_circuit *c = el_compile(&a, p, NULL);
    assert_non_null(c);
    const double **cost = arena_new(&a, const double *, p->term.n + 1);
    bool *forbids = arena_new(&a, bool, p->term.n + 1);
    for (int i = 0; i < p->term.n; i++) forbids[i] = only_forbids(p, &p->term.at[i]);
    for (int run = 0; run < 3; run++) {
      for (int i = 0; i < p->term.n; i++) {
        el_term *t = &p->term.at[i];
        int n = p->size[t->a] * (t->b < 0 ? 1 : p->size[t->b]);
        double *other = arena_new(&a, double, n);
        for (int k = 0; k < n; k++)
          other[k] = t->cost[k] >= EL_NEVER ? EL_NEVER : forbids[i] ? 0 : draw_int(&s, -20, 20);
        cost[i] = t->cost = other;
      }
      int fast[MOST] = {0}, slow[MOST] = {0};
      double total, brute;
      bool found = el_run(c, &a, cost, fast, &total);
      assert_int_equal(el_brute(p, slow, &brute), found);
      if (found) assert_true(total == brute && cost_of(p, fast) == brute);
      solved += found;
    }
    arena_free(&a);
  }
  assert_true(solved > 1000);
}

static void test_same_choice_each_time(void **state) {
  (void)state;
  for (uint64_t seed = 1; seed <= 200; seed++) {
    arena a;
    arena_init(&a);
    uint64_t s = seed;
    el_problem *p = problem(&a, &s, true);
    int one[MOST] = {0}, two[MOST] = {0};
    double total;
    el_stats stats;
    el_solve(p, &a, one, &total, &stats);
    el_solve(p, &a, two, &total, &stats);
    for (int i = 0; i < p->n; i++) assert_int_equal(one[i], two[i]);
    arena_free(&a);
  }
}

// A chain costs its length: functions of two variables, whatever the order of the numbers.
static void test_chain_stays_small(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  uint64_t s = 7;
  enum { N = 2000, SIZE = 6 };
  int size[N], at[N], value[N];
  for (int i = 0; i < N; i++) size[i] = SIZE, at[i] = i;
  for (int i = N - 1; i > 0; i--) {
    int k = draw_int(&s, 0, i), t = at[i];
    at[i] = at[k];
    at[k] = t;
  }
  el_problem *p = el_new(&a, N, size);
  const double *cost[N];
  for (int i = 1; i < N; i++) el_two(p, at[i - 1], at[i], cost[i] = table(&a, &s, SIZE * SIZE, 0));
  double total, best[SIZE] = {0};
  el_stats stats;
  assert_true(el_solve(p, &a, value, &total, &stats));
  for (int i = 1; i < N; i++) {  // the shortest path, forwards
    double next[SIZE];
    for (int y = 0; y < SIZE; y++) {
      next[y] = EL_NEVER;
      for (int x = 0; x < SIZE; x++) next[y] = fmin(next[y], best[x] + cost[i][x * SIZE + y]);
    }
    for (int y = 0; y < SIZE; y++) best[y] = next[y];
  }
  double least_end = EL_NEVER;
  for (int y = 0; y < SIZE; y++) least_end = fmin(least_end, best[y]);
  assert_true(total == least_end && total == cost_of(p, value));
  assert_true(stats.largest <= SIZE * SIZE * SIZE);
  arena_free(&a);
}

// Bodies that share their tables are worked out once; what is found is what it is when they do not.
static void test_shared_tables(void **state) {
  (void)state;
  for (uint64_t seed = 1; seed <= 100; seed++) {
    arena a;
    arena_init(&a);
    uint64_t s = seed;
    enum { BODIES = 40, KINDS = 3, VARS = 3 * BODIES + 1, TERMS = 4 };
    int size[VARS], one[VARS], two[VARS];
    for (int i = 0; i < VARS; i++) size[i] = 3;
    const double *kind[KINDS][TERMS];
    for (int k = 0; k < KINDS; k++)
      for (int t = 0; t < TERMS; t++) kind[k][t] = table(&a, &s, 9, t == 3 ? 2 : 0);
    el_problem *shared = el_new(&a, VARS, size), *apart = el_new(&a, VARS, size);
    for (int b = 0; b < BODIES; b++) {  // a ring of x, two inner variables and the next body's x
      const double *const *own = kind[draw_int(&s, 0, KINDS - 1)];
      int x = 3 * b, at[TERMS][2] = {{x, x + 1}, {x + 1, x + 2}, {x, x + 2}, {x + 2, x + 3}};
      for (int t = 0; t < TERMS; t++) {
        double *copy = arena_new(&a, double, 9);
        for (int i = 0; i < 9; i++) copy[i] = own[t][i];
        el_two(shared, at[t][0], at[t][1], own[t]);
        el_two(apart, at[t][0], at[t][1], copy);
      }
    }
    double least_shared, least_apart;
    el_stats stats;
    bool found = el_solve(shared, &a, one, &least_shared, &stats);
    assert_int_equal(el_solve(apart, &a, two, &least_apart, &stats), found);
    if (found) assert_true(least_shared == least_apart && cost_of(shared, one) == least_shared);
    for (int i = 0; i < VARS && found; i++) assert_int_equal(one[i], two[i]);
    arena_free(&a);
  }
}

// All of n variables with each other: one function of n - 1 of them, `size` values each.
static bool clique(int n, int values, double *total, el_stats *stats) {
  arena a;
  arena_init(&a);
  int *size = arena_new(&a, int, n), *value = arena_new(&a, int, n);
  for (int i = 0; i < n; i++) size[i] = values;
  const double *none = arena_new(&a, double, values *values);
  el_problem *p = el_new(&a, n, size);
  for (int i = 0; i < n; i++)
    for (int k = i + 1; k < n; k++) el_two(p, i, k, none);
  bool found = el_solve(p, &a, value, total, stats);
  arena_free(&a);
  return found;
}

static void test_limit_is_reported(void **state) {
  (void)state;
  double total = 0;
  el_stats stats;
  // 16^5 entries are few, 16^7 are more than 2^24, 40 variables are more than one function names.
  assert_true(clique(5, 16, &total, &stats));
  assert_true(total == 0);
  assert_true(stats.largest == 16.0 * 16 * 16 * 16 * 16);
  assert_false(clique(7, 16, &total, &stats));
  assert_true(isnan(total));
  assert_true(stats.largest <= EL_LARGEST);
  assert_false(clique(40, 2, &total, &stats));
  assert_true(isnan(total));
  assert_true(stats.largest <= EL_LARGEST);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_equals_brute_force),    cmocka_unit_test(test_compiled_for_other_costs),
      cmocka_unit_test(test_same_choice_each_time), cmocka_unit_test(test_chain_stays_small),
      cmocka_unit_test(test_shared_tables),         cmocka_unit_test(test_limit_is_reported),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
