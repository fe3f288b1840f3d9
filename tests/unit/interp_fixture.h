// A module with one function, a builder that writes into it, and an interpreter that runs it: what
// tests of single ops start from. Include it first.
#ifndef DSM_INTERP_FIXTURE_H
#define DSM_INTERP_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ir/interp.h"

typedef struct fixture {
  arena a;
  ir_module *m;
  ir_func *f;
  ir_builder b;
  ir_interp *x;
  uint64_t draw;    // random numbers drawn so far
  int inputs;       // given so far
  double *data[4];  // of input i
} fixture;

static int setup(void **state) {
  fixture *x = calloc(1, sizeof *x);
  arena_init(&x->a);
  x->m = ir_module_new(&x->a, "test");
  x->f = ir_func_new(x->m, "f", ENTRY_EVAL);
  x->b = (ir_builder){.m = x->m, .at = x->f->body};
  x->x = ir_interp_new(&x->a, x->m);
  *state = x;
  return 0;
}

static int teardown(void **state) {
  fixture *x = *state;
  arena_free(&x->a);
  free(x);
  return 0;
}

#endif
