// Fibers: the order in which both sides run, what each keeps, many at once, deep stacks.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// cmocka wants the four above it
#include <cmocka.h>
#include <string.h>

#include "runtime/base/fiber.h"

enum { STACK = 1 << 20 };

typedef struct turns {
  fiber *self;
  int n, sum;
  char order[64];
} turns;

static void say(turns *t, char c) {
  size_t n = strlen(t->order);
  t->order[n] = c;
}

static void take_turns(void *ctx) {
  turns *t = ctx;
  int own = 0;  // survives each switch
  for (int i = 1; i <= t->n; i++) {
    own += i;
    say(t, 'i');
    fiber_leave(t->self);
  }
  t->sum = own;
  say(t, 'e');
}

static void test_turns(void **state) {
  (void)state;
  turns t = {.n = 3};
  t.self = fiber_new(take_turns, &t, STACK);
  assert_non_null(t.self);
  assert_string_equal(t.order, "");  // nothing runs before it is entered
  while (!fiber_done(t.self)) {
    say(&t, 'o');
    fiber_enter(t.self);
  }
  assert_string_equal(t.order, "oioioioe");
  assert_int_equal(t.sum, 6);
  fiber_free(t.self);
}

// Each has a stack of its own, and one may be forgotten in its middle.
static void test_many(void **state) {
  (void)state;
  turns t[16] = {0};
  for (int k = 0; k < 16; k++) {
    t[k].n = k;
    t[k].self = fiber_new(take_turns, &t[k], STACK);
    assert_non_null(t[k].self);
  }
  for (int round = 0; round < 12; round++)
    for (int k = 0; k < 16; k++)
      if (!fiber_done(t[k].self)) fiber_enter(t[k].self);
  for (int k = 0; k < 16; k++) {
    assert_int_equal(fiber_done(t[k].self), k < 12);
    assert_int_equal(t[k].sum, k < 12 ? k * (k + 1) / 2 : 0);
    fiber_free(t[k].self);
  }
}

typedef struct dive {
  fiber *self;
  int depth, reached;
} dive;

static int go_down(dive *d, int left) {
  volatile unsigned char page[4096];
  page[0] = (unsigned char)left;
  if (left == 0) fiber_leave(d->self);  // from the bottom
  int below = left > 0 ? go_down(d, left - 1) : 0;
  return below + (page[0] == (unsigned char)left);
}

static void dive_in(void *ctx) {
  dive *d = ctx;
  d->reached = go_down(d, d->depth);
}

static void test_deep(void **state) {
  (void)state;
  dive d = {.depth = 150};
  d.self = fiber_new(dive_in, &d, STACK);
  fiber_enter(d.self);
  assert_int_equal(d.reached, 0);
  assert_int_equal(go_down(&(dive){.self = NULL, .depth = 0}, -1), 1);  // outside its own goes on
  fiber_enter(d.self);
  assert_true(fiber_done(d.self));
  assert_int_equal(d.reached, 151);
  fiber_free(d.self);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_turns),
      cmocka_unit_test(test_many),
      cmocka_unit_test(test_deep),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
