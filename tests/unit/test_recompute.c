// What to make again in backward: the front of choices against all subsets of random items.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "passes/recompute.h"
#include "tests/unit/draw.h"

// Lists of items compared with all subsets.
#ifndef LISTS
#define LISTS 4000
#endif
#define MOST 13

// Items as bodies give them and others: few or many needs, ties in work and in bytes, items that
// cost bytes (arguments to be saved), items that cost nothing. Whole numbers, so sums are exact.
static int draw_items(arena *a, uint64_t *rng, rc_item *item, int most) {
  int n = draw_int(rng, 0, most), dense = draw_int(rng, 0, 60), sizes = draw_int(rng, 1, 40);
  for (int i = 0; i < n; i++) {
    int *needs = arena_new(a, int, i + 1), nneeds = 0;
    for (int k = 0; k < i; k++)
      if (draw_int(rng, 1, 100) <= dense) needs[nneeds++] = k;
    int kind = draw_int(rng, 0, 5);
    item[i] = (rc_item){.work = kind == 0 ? 0 : draw_int(rng, 0, sizes),
                        .bytes = kind == 0   ? draw_int(rng, 0, sizes)
                                 : kind == 1 ? 0
                                             : -draw_int(rng, 0, sizes),
                        .needs = needs,
                        .nneeds = nneeds};
  }
  return n;
}

static bool closed(const rc_item *item, int n, uint64_t set) {
  for (int i = 0; i < n; i++)
    for (int k = 0; k < item[i].nneeds; k++)
      if ((set >> i & 1) && !(set >> item[i].needs[k] & 1)) return false;
  return true;
}

static rc_choice sum_of(const rc_item *item, int n, uint64_t set) {
  rc_choice c = {0};
  for (int i = 0; i < n; i++)
    if (set >> i & 1) c.work += item[i].work, c.bytes += item[i].bytes;
  return c;
}

static uint64_t set_of(const rc_choice *c, int n) {
  uint64_t set = 0;
  for (int i = 0; i < n; i++) set |= (uint64_t)rc_taken(c, i) << i;
  return set;
}

// Every point is a closed set with the sums it says, and bytes fall while work rises.
static void assert_sound(const rc_item *item, int n, const rc_front *f) {
  assert_true(f->at.n > 0);
  for (int i = 0; i < f->at.n; i++) {
    const rc_choice *c = &f->at.at[i];
    rc_choice sum = sum_of(item, n, set_of(c, n));
    assert_true(closed(item, n, set_of(c, n)));
    assert_int_equal(sum.bytes, c->bytes);
    assert_true(sum.work >= c->work && sum.work <= c->work);
    if (i) assert_true(c[-1].bytes > c->bytes && c[-1].work < c->work);
  }
}

// The least work of a choice with at most so many bytes, or -1.
static double best_of(const rc_front *f, int64_t bytes) {
  for (int i = 0; i < f->at.n; i++)
    if (f->at.at[i].bytes <= bytes) return f->at.at[i].work;
  return -1;
}

static void test_all_subsets(void **state) {
  (void)state;
  int points = 0;
  for (uint64_t list = 1; list <= LISTS; list++) {
    arena a;
    arena_init(&a);
    uint64_t rng = list;
    rc_item item[MOST];
    int n = draw_items(&a, &rng, item, list % 50 ? 10 : MOST);
    rc_front f = rc_choose(&a, item, n, RC_LIMIT);
    assert_true(f.exact);
    assert_sound(item, n, &f);
    // No subset is better than the front's choice of the same budget, and the sound points above
    // are subsets: so the front is the one of all subsets.
    for (uint64_t set = 0; set < (uint64_t)1 << n; set++) {
      if (!closed(item, n, set)) continue;
      rc_choice c = sum_of(item, n, set);
      double best = best_of(&f, c.bytes);
      assert_true(best >= 0 && best <= c.work);
    }
    points += f.at.n;
    arena_free(&a);
  }
  assert_true(points > 4 * LISTS);  // fronts of one point would say little
}

// With a small limit the front is still made of choices, and has both ends.
static void test_limit(void **state) {
  (void)state;
  int inexact = 0;
  for (uint64_t list = 1; list <= LISTS / 10; list++) {
    arena a;
    arena_init(&a);
    uint64_t rng = list;
    rc_item item[60];
    int n = draw_items(&a, &rng, item, 60);
    rc_front f = rc_choose(&a, item, n, 4);
    assert_sound(item, n, &f);
    rc_choice all = sum_of(item, n, n ? UINT64_MAX >> (64 - n) : 0);
    assert_true(f.at.at[0].work <= 0);
    assert_true(vec_last(&f.at).bytes <= all.bytes);
    inexact += !f.exact;
    if (f.exact) {
      rc_front g = rc_choose(&a, item, n, RC_LIMIT);
      assert_int_equal(f.at.n, g.at.n);
    }
    arena_free(&a);
  }
  assert_true(inexact > LISTS / 40);
}

// The example of passes/recompute.h, and items beyond one word.
static void test_example(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  const int zero[] = {0};
  const rc_item item[] = {
      {.work = 1}, {.work = 90, .bytes = -4, .nneeds = 1, .needs = zero}, {.work = 3, .bytes = -4}};
  rc_front f = rc_choose(&a, item, 3, RC_LIMIT);
  assert_int_equal(f.at.n, 3);
  assert_int_equal(set_of(&f.at.at[0], 3), 0);
  assert_int_equal(set_of(&f.at.at[1], 3), 4);
  assert_int_equal(set_of(&f.at.at[2], 3), 7);
  rc_item many[150] = {0};
  for (int i = 0; i < 150; i++) {
    int *need = arena_new(&a, int, 1);
    *need = i - 100;
    many[i] = (rc_item){.work = 1, .bytes = i < 100 ? 0 : -1};
    if (i >= 100) many[i].nneeds = 1, many[i].needs = need;
  }
  f = rc_choose(&a, many, 150, RC_LIMIT);  // pairs (i, 100 + i), each alone of use
  assert_int_equal(vec_last(&f.at).bytes, -50);
  assert_true(vec_last(&f.at).work >= 100 && vec_last(&f.at).work <= 150);
  arena_free(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_all_subsets),
      cmocka_unit_test(test_limit),
      cmocka_unit_test(test_example),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
