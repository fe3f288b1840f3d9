// Numbers for byte strings: against comparing each with all before it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/base/intern.h"
#include "tests/unit/draw.h"

static void test_numbers(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  uint64_t s = 11;
  enum { KEYS = 3000, MOST = 40 };
  static unsigned char seen[KEYS][MOST];
  static size_t length[KEYS];
  int n = 0, again = 0;
  intern x = {.arena = &a};
  intern_key key = {.arena = &a};
  for (int i = 0; i < KEYS; i++) {
    unsigned char bytes[MOST];
    size_t size = (size_t)draw_int(&s, 0, i % 2 ? 3 : MOST);  // half of them come again, zeros too
    for (size_t k = 0; k < size; k++) bytes[k] = (unsigned char)draw_int(&s, 0, i % 2 ? 3 : 255);
    int expected = 0;
    while (expected < n && !(length[expected] == size && memcmp(seen[expected], bytes, size) == 0))
      expected++;
    key_clear(&key);
    for (size_t k = 0; k < size; k++) KEY_PUT(&key, bytes[k]);
    assert_int_equal(intern_of(&x, &key), expected);
    again += expected < n;
    if (expected == n) {
      memcpy(seen[n], bytes, size);
      length[n++] = size;
    }
    assert_int_equal(x.n, n);
  }
  assert_true(again > 500 && n > 1000);
  arena_free(&a);
}

// Room beforehand changes no number, whether too little, too much, or asked for later.
static void test_reserve(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  const int room[] = {0, 1, 100, 5000};
  for (int k = 0; k < 4; k++) {
    intern x = {.arena = &a};
    intern_key key = {.arena = &a};
    for (int i = 0; i < 1000; i++) {
      if (i == (k % 2 ? 0 : 500)) intern_reserve(&x, room[k]);
      for (int old = 0; old <= i; old += 1 + i / 3) {
        key_clear(&key);
        KEY_PUT(&key, old);
        if (old < x.n) assert_int_equal(intern_of(&x, &key), old);
      }
      key_clear(&key);
      KEY_PUT(&key, i);
      assert_int_equal(intern_of(&x, &key), i);
    }
    assert_true(x.cap >= room[k]);
  }
  arena_free(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_numbers),
                                     cmocka_unit_test(test_reserve)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
