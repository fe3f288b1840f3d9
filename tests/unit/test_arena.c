// Memory by lifetime: what one arena hands to another lives as long as that one.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/base/arena.h"

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

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_adopt)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
