// An arena as the state of a test: `arena *a = *state;`. Include it first.
//
//   cmocka_unit_test_setup_teardown(NAME, make_arena, free_arena)
#ifndef DSM_TESTS_ARENA_FIXTURE_H
#define DSM_TESTS_ARENA_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "runtime/base/arena.h"

static inline int make_arena(void **state) {
  arena *a = malloc(sizeof *a);
  if (!a) return -1;
  arena_init(a);
  *state = a;
  return 0;
}

static inline int free_arena(void **state) {
  arena_free(*state);
  free(*state);
  return 0;
}

#endif
