// The packer against an exhaustive one, and on lists whose best height is known because they were
// made by cutting a full rectangle.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "passes/pack.h"
#include "runtime/base/clock.h"
#include "tests/unit/draw.h"

// Lists compared with the exhaustive packer.
#ifndef LISTS
#define LISTS 5000
#endif

// ---- a check that shares nothing with the one of the packer: all pairs -----------------------

static bool share_a_byte(const pack_buffer *a, const pack_buffer *b) {
  bool time = a->lower < b->upper && b->lower < a->upper;
  bool space = a->offset < b->offset + b->size && b->offset < a->offset + a->size;
  return time && space && a->size && b->size;
}

static void assert_good(const pack_buffer *b, int n, const pack_result *r) {
  int64_t height = 0;
  for (int i = 0; i < n; i++) {
    assert_true(b[i].offset >= 0);
    if (b[i].size && b[i].offset + b[i].size > height) height = b[i].offset + b[i].size;
    for (int j = 0; j < i; j++) assert_false(share_a_byte(&b[i], &b[j]));
  }
  assert_int_equal(height, r->height);
  assert_true(r->load <= r->floor && r->floor <= r->height);
  assert_int_equal(r->optimal, r->floor == r->height);
}

static int64_t load_of(const pack_buffer *b, int n) {
  int64_t most = 0;
  for (int i = 0; i < n; i++) {
    int64_t sum = 0;
    for (int j = 0; j < n; j++)
      if (b[j].lower <= b[i].lower && b[i].lower < b[j].upper) sum += b[j].size;
    if (sum > most) most = sum;
  }
  return most;
}

// ---- the exhaustive packer ------------------------------------------------------------------
//
// Every packing can be pushed down until each buffer lies on 0 or on the top of another one it
// meets. Taken by rising offset, each lies on 0 or on one taken before. So all packings worth
// looking at come from trying, again and again, every buffer left at every such offset that is
// free and not below the last one. No bound but the best height so far.

typedef struct exhaustive {
  pack_buffer b[12];
  int n;
  int64_t best;
  int64_t load;
} exhaustive;

static void try_all(exhaustive *e, unsigned done, int64_t last, int64_t height) {
  if (height >= e->best || e->best == e->load) return;
  if (done == (1u << e->n) - 1) {
    e->best = height;
    return;
  }
  for (int x = 0; x < e->n; x++) {
    if (done >> x & 1) continue;
    for (int on = -1; on < e->n; on++) {
      pack_buffer *b = &e->b[x];
      if (on >= 0 && !(done >> on & 1)) continue;
      b->offset = on < 0 ? 0 : e->b[on].offset + e->b[on].size;
      if (on >= 0 && (e->b[on].lower >= b->upper || b->lower >= e->b[on].upper)) continue;
      if (b->offset < last) continue;
      bool free_here = true;
      for (int y = 0; y < e->n && free_here; y++)
        free_here = !(done >> y & 1) || !share_a_byte(b, &e->b[y]);
      if (!free_here) continue;
      int64_t top = b->offset + b->size;
      try_all(e, done | 1u << x, b->offset, top > height ? top : height);
    }
  }
}

static int64_t least_height(const pack_buffer *b, int n) {
  exhaustive e = {.n = n, .best = 0, .load = load_of(b, n)};
  memcpy(e.b, b, sizeof *b * (size_t)n);
  for (int i = 0; i < n; i++) e.best += b[i].size;
  e.best++;
  try_all(&e, 0, 0, 0);
  return e.best;
}

// ---- full rectangles, cut up ----------------------------------------------------------------

typedef struct cut {
  int64_t x0, x1, y0, y1;
} cut;

// Cuts [0, width) x [0, height) into about `n` pieces. `pinwheel` percent of the cuts make five
// pieces around a middle, which no straight cuts could.
static int cut_up(uint64_t *seed, cut *c, int n, int64_t width, int64_t height, int pinwheel) {
  int count = 1;
  c[0] = (cut){0, width, 0, height};
  for (int tries = 0; count + 4 < n && tries < 100 * n; tries++) {
    int k = 0;  // of some, the largest: no crumbs
    for (int i = 0; i < 4; i++) {
      int j = draw_int(seed, 0, count - 1);
      if ((c[j].x1 - c[j].x0) * (c[j].y1 - c[j].y0) > (c[k].x1 - c[k].x0) * (c[k].y1 - c[k].y0))
        k = j;
    }
    cut r = c[k];
    int64_t w = r.x1 - r.x0, h = r.y1 - r.y0;
    if (w >= 4 && h >= 4 && draw_int64(seed, 0, 99) < pinwheel) {
      int64_t a = draw_int64(seed, r.x0 + 1, r.x1 - 2), b = draw_int64(seed, a + 1, r.x1 - 1);
      int64_t d = draw_int64(seed, r.y0 + 1, r.y1 - 2), e = draw_int64(seed, d + 1, r.y1 - 1);
      c[k] = (cut){r.x0, b, r.y0, d};
      c[count++] = (cut){b, r.x1, r.y0, e};
      c[count++] = (cut){a, r.x1, e, r.y1};
      c[count++] = (cut){r.x0, a, d, r.y1};
      c[count++] = (cut){a, b, d, e};
    } else if (w >= 2 && draw_int64(seed, 0, w + 4 * h) < w) {
      int64_t a = draw_int64(seed, r.x0 + 1, r.x1 - 1);
      c[k].x1 = a;
      c[count++] = (cut){a, r.x1, r.y0, r.y1};
    } else if (h >= 2) {
      int64_t a = draw_int64(seed, r.y0 + 1, r.y1 - 1);
      c[k].y1 = a;
      c[count++] = (cut){r.x0, r.x1, a, r.y1};
    }
  }
  return count;
}

static int shuffled(uint64_t *seed, pack_buffer *b, int n, int pinwheel, int64_t scale) {
  cut c[400];
  int count = cut_up(seed, c, n, 512, 256, pinwheel);
  for (int i = 0; i < count; i++) {
    int j = draw_int(seed, 0, i);
    b[i] = b[j];
    b[j] = (pack_buffer){c[i].x0, c[i].x1, scale * (c[i].y1 - c[i].y0), 0};
  }
  return count;
}

// Lists whose least height is above their load are very rare among random ones. These are filled up
// to a height at every time, buffers growing wherever the load allows, until they hardly fit.
static int grown(uint64_t *seed, pack_buffer *b, int most) {
  int64_t times = draw_int64(seed, 10, 14), height = draw_int64(seed, 6, 9);
  int n = 0;
  for (int fails = 0; n < most && fails < 60;) {
    int64_t lower = draw_int64(seed, 0, times - 1), upper = lower + draw_int64(seed, 1, times / 2);
    b[n] = (pack_buffer){lower, upper < times ? upper : times, draw_int64(seed, 1, height / 2), 0};
    if (load_of(b, n + 1) > height)
      fails++;
    else
      n++;
  }
  for (int t = 0; t < 12 * n; t++) {
    pack_buffer *x = &b[draw_int64(seed, 0, n - 1)], old = *x;
    switch (draw_int64(seed, 0, 2)) {
      case 0: x->upper += x->upper < times; break;
      case 1: x->lower -= x->lower > 0; break;
      default: x->size++; break;
    }
    if (load_of(b, n) > height) *x = old;
  }
  return n;
}

static void test_equals_exhaustive(void **state) {
  (void)state;
  uint64_t seed = 1;
  int above_load = 0;
  for (int t = 0; t < LISTS; t++) {
    pack_buffer b[16];
    // Few long lists: the exhaustive packer takes factorial time.
    int n = draw_int(&seed, 1, t % 60 == 0 ? 12 : t % 4 == 0 ? 9 : 7);
    if (t % 4) {
      n = grown(&seed, b, t % 200 == 1 ? 12 : draw_int(&seed, 8, 10));
    } else {
      int64_t times = draw_int64(&seed, 2, 12), sizes = draw_int64(&seed, 1, 9);
      for (int i = 0; i < n; i++) {
        int64_t lower = draw_int64(&seed, 0, times - 1);
        b[i] = (pack_buffer){lower, draw_int64(&seed, lower + 1, times),
                             draw_int64(&seed, 1, sizes), 0};
      }
    }
    int64_t unit = t % 5 == 0 ? 1000 : 1;
    for (int i = 0; i < n; i++) b[i].size *= unit;
    arena a;
    arena_init(&a);
    pack_result r;
    pack_solve(&a, b, n, &(pack_options){.seconds = 30}, &r);
    assert_good(b, n, &r);
    assert_true(r.optimal);
    assert_int_equal(r.load, load_of(b, n));
    int64_t least = least_height(b, n);
    if (r.height != least) {
      for (int i = 0; i < n; i++)
        printf("%d,%lld,%lld,%lld\n", i, (long long)b[i].lower, (long long)b[i].upper,
               (long long)b[i].size);
      printf("list %d: least %lld\n", t, (long long)least);
    }
    assert_int_equal(r.height, least);
    above_load += r.height > r.load;
    // As much fits, one unit less is proved not to.
    pack_solve(&a, b, n, &(pack_options){.capacity = least, .seconds = 30}, &r);
    assert_int_equal(r.height, least);
    if (least > unit) {
      pack_solve(&a, b, n, &(pack_options){.capacity = least - unit, .seconds = 30}, &r);
      assert_good(b, n, &r);
      assert_true(r.floor > least - unit);
    }
    arena_free(&a);
  }
  printf("%d of %d lists need more than their load\n", above_load, LISTS);
  // Otherwise they say nothing about refutations.
  assert_true(above_load > 40);
}

static void test_no_waste(void **state) {
  (void)state;
  for (uint64_t t = 0; t < 24; t++) {
    uint64_t seed = t;
    pack_buffer b[400];
    int n = shuffled(&seed, b, 30 + (int)t * 4, t % 2 ? 25 : 0, 4096);
    arena a;
    arena_init(&a);
    pack_result r;
    pack_solve(&a, b, n, &(pack_options){.seconds = 30}, &r);
    arena_free(&a);
    assert_good(b, n, &r);
    assert_int_equal(r.height, 256 * 4096);
    assert_true(r.optimal);
  }
}

static void test_same_every_time(void **state) {
  (void)state;
  pack_buffer b[400], again[400];
  uint64_t seed = 77;
  int n = shuffled(&seed, b, 150, 25, 1);
  // A few removed: the load is the same in fewer places, so it takes some searching.
  n -= 5;
  memcpy(again, b, sizeof b);
  for (int i = 0; i < 2; i++) {
    arena a;
    arena_init(&a);
    pack_result r;
    pack_solve(&a, i ? again : b, n, &(pack_options){.capacity = 256, .seconds = 60}, &r);
    arena_free(&a);
    assert_good(i ? again : b, n, &r);
    assert_int_equal(r.height, 256);
  }
  assert_memory_equal(b, again, sizeof *b * (size_t)n);
}

// ---- edges ----------------------------------------------------------------------------------

static pack_result solve(pack_buffer *b, int n, int64_t capacity, double seconds) {
  arena a;
  arena_init(&a);
  pack_result r;
  pack_solve(&a, b, n, &(pack_options){.capacity = capacity, .seconds = seconds}, &r);
  arena_free(&a);
  assert_good(b, n, &r);
  return r;
}

static void test_edges(void **state) {
  (void)state;
  pack_result r = solve(NULL, 0, 0, 1);
  assert_int_equal(r.height, 0);
  assert_true(r.optimal);

  pack_buffer empty[] = {{0, 5, 0, 7}, {1, 2, 0, 7}};
  r = solve(empty, 2, 0, 1);
  assert_int_equal(r.height, 0);
  assert_int_equal(empty[0].offset, 0);

  // Lifetimes are half-open: one ends where the other begins.
  pack_buffer after[] = {{0, 5, 8, 0}, {5, 9, 8, 0}};
  assert_int_equal(solve(after, 2, 0, 1).height, 8);

  // Largest numbers.
  int64_t big = PACK_MOST_BYTES / 2;
  pack_buffer large[] = {
      {0, INT64_MAX, big, 0}, {INT64_MAX - 1, INT64_MAX, big - 1, 0}, {0, 1, 1, 0}};
  assert_int_equal(solve(large, 3, 0, 1).height, 2 * big - 1);

  // Less than any size, and less than the unit.
  pack_buffer pair[] = {{0, 2, 1024, 0}, {1, 3, 1024, 0}};
  r = solve(pair, 2, 10, 1);
  assert_int_equal(r.height, 2048);
  assert_int_equal(r.floor, 2048);

  // The worked example of pack.h.
  pack_buffer example[] = {{0, 2, 4, 0}, {1, 3, 2, 0}, {2, 4, 4, 0}};
  r = solve(example, 3, 0, 10);
  assert_int_equal(r.height, 6);
  assert_int_equal(r.load, 6);
  assert_true(r.optimal);
}

// Many separate stretches of time, one of which needs searching.
static void test_stretches(void **state) {
  (void)state;
  pack_buffer b[400];
  uint64_t seed = 3;
  int n = shuffled(&seed, b, 60, 25, 16);
  for (int i = 0; i < 200; i++) {
    int64_t at = 1000 + 10 * (i / 2);
    b[n++] = (pack_buffer){at, at + 5, 16 * draw_int64(&seed, 1, 128), 0};
  }
  pack_result r = solve(b, n, 0, 30);
  assert_int_equal(r.height, 256 * 16);
  assert_true(r.optimal);
}

// Too many to search: still a packing, and soon.
static void test_many(void **state) {
  (void)state;
  enum { N = 6000 };
  pack_buffer *b = calloc(N, sizeof *b);
  uint64_t seed = 5;
  for (int i = 0; i < N; i++) {
    int64_t lower = draw_int64(&seed, 0, 100000);
    b[i] =
        (pack_buffer){lower, lower + draw_int64(&seed, 1, 3000), draw_int64(&seed, 1, 1 << 20), 0};
  }
  double began = clock_s();
  pack_result r = solve(b, N, 0, 1);
  assert_true(r.height >= r.load);
  assert_true(clock_s() - began < 20);
  free(b);
}

static void test_check_finds(void **state) {
  (void)state;
  int x, y;
  arena a;
  arena_init(&a);
  pack_buffer b[] = {{0, 9, 10, 0}, {2, 4, 10, 10}, {3, 5, 10, 19}};
  assert_false(pack_check(&a, b, 3, &x, &y));
  assert_int_equal(x + y, 3);
  b[2].offset = 20;
  assert_true(pack_check(&a, b, 3, &x, &y));
  b[2].lower = 4;
  b[2].offset = 12;
  assert_true(pack_check(&a, b, 3, &x, &y));
  b[0].offset = -1;
  assert_false(pack_check(&a, b, 3, &x, &y));
  arena_free(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_edges),
      cmocka_unit_test(test_check_finds),
      cmocka_unit_test(test_many),
      cmocka_unit_test(test_stretches),
      cmocka_unit_test(test_no_waste),
      cmocka_unit_test(test_same_every_time),
      cmocka_unit_test(test_equals_exhaustive),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
