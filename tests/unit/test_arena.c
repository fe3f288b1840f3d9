// Memory by lifetime: what one arena hands to another lives as long as that one.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/base/arena.h"
#include "runtime/base/vec.h"

enum { MOST = 200 };

static unsigned char *fill(arena *a, int i) {
  unsigned char *p = arena_alloc(a, (size_t)(i * 37 % 5000));
  memset(p, i, (size_t)(i * 37 % 5000));
  return p;
}

static void check(unsigned char *const *p, int n) {
  for (int i = 0; i < n; i++)
    for (int k = 0; k < i * 37 % 5000; k++) assert_int_equal(p[i][k], (unsigned char)i);
}

// Both empty, either, neither; each goes on to be used afterwards. (ASan looks for what is lost.)
static void test_adopt(void **state) {
  (void)state;
  for (int kind = 0; kind < 4; kind++) {
    arena to, from;
    arena_init(&to);
    arena_init(&from);
    unsigned char *p[MOST];
    int n = 0;
    for (; kind & 1 && n < 80; n++) p[n] = fill(&to, n);
    for (; kind & 2 && n < 160; n++) p[n] = fill(&from, n);
    size_t both = to.total + from.total;
    arena_adopt(&to, &from);
    assert_int_equal(to.total, both);
    assert_int_equal(from.total, 0);
    arena_free(&from);
    int most = n + 40;
    for (; n < most; n++) p[n] = fill(&to, n);
    strcpy(arena_alloc(&from, 8), "used");
    check(p, n);
    arena_free(&from);
    check(p, n);
    arena_free(&to);
  }
}

typedef VEC(int) numbers;

// The sum of what is there, so that an element which is not yet there would be seen.
static int sum(const numbers *v) {
  int all = 0;
  for (int i = 0; i < v->n; i++) all += v->at[i];
  return all;
}

static int push_two(arena *a, numbers *v) {
  vec_push(a, v, 1);
  vec_push(a, v, 2);
  return 3;
}

// What is pushed may be found by looking at the vector, or by pushing to it; blocks of a vector are
// not cleared, and may hold what memory held before.
static void test_push(void **state) {
  (void)state;
  enum { ROOM = 4096 };
  arena a;
  arena_init(&a);
  memset(arena_alloc(&a, ROOM), 0x55, ROOM);
  arena_free(&a);  // and malloc gives the same memory again
  numbers v = {0};
  for (int i = 0; i < 20; i++) vec_push(&a, &v, sum(&v) + 1);
  for (int i = 0; i < 20; i++) assert_int_equal(v.at[i], 1 << i);
  v.n = 0;
  for (int i = 0; i < 60; i += 3) vec_push(&a, &v, push_two(&a, &v));
  assert_int_equal(v.n, 60);
  for (int i = 0; i < 60; i++) assert_int_equal(v.at[i], i % 3 + 1);
  arena_free(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_adopt), cmocka_unit_test(test_push)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
