// The functions of single elements at their extreme points: data/scalars.json against compiled
// code.
//
// Each function runs as a program over all its points. A primitive must be within 4e-7 of the
// float64 value relative to it, sin and cos within 1e-7 absolutely, up to 1e5, beyond which their
// argument reduction is not exact. gelu, silu, sigmoid and softplus are texts over primitives that
// cancel in f32 where they are small (1 + erf(x)): within 1.2e-7 times the larger of 1 and the
// value. Infinities and NaN must be themselves.
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/oracle/harness.h"

static double number_of(const json_t *v) {
  if (!json_is_string(v)) return json_number_value(v);
  const char *s = json_string_value(v);
  return str_eq(s, "nan") ? NAN : str_eq(s, "-inf") ? -INFINITY : INFINITY;
}

static bool close_enough(bool absolute, double got, double want) {
  if (isnan(want)) return isnan(got);
  if (isinf((float)want)) return got == (double)(float)want;
  double error = fabs(got - want);
  // Below the normal numbers of f32 a unit in the last place is 1.4e-45.
  return error <= (absolute ? 1.2e-7 * fmax(1, fabs(want)) : 4e-7 * fabs(want)) || error <= 2.9e-45;
}

// True for DEFINED rows of the op table.
static bool is_defined(const char *name) {
  ir_opcode code;
  return ir_opcode_parse(name, &code) && ir_info(code)->cls == IR_CLASS_DEFINED;
}

// NULL, or what went wrong.
static const char *check(arena *a, const char *name, const json_t *points, int *compared) {
  int64_t n = (int64_t)json_array_size(points);
  double *x = arena_new(a, double, n), *want = arena_new(a, double, n),
         *got = arena_new(a, double, n);
  for (int64_t i = 0; i < n; i++) {
    const json_t *p = json_array_get(points, (size_t)i);
    x[i] = number_of(json_array_get(p, 0));
    want[i] = number_of(json_array_get(p, 1));
  }
  const char *text = arena_printf(a, "model op {\n  input a : f32[%lld]\n  output y = %s(a)\n}\n",
                                  (long long)n, name);
  h_text t = h_lower(a, text, NULL, "batch=1,steps=1", SEMA_OUTPUTS);
  if (!t.m) return t.error;
  pass_options o = pass_defaults();
  const char *why = pass_run(t.m, &o);
  h_program *p = NULL;
  if (!why) why = h_compile(a, t.m, 1, &p);
  if (why) return why;
  const prog_entry *e = prog_entry_of(&p->p, PROG_EVAL);
  vm_step step = {0};
  why = h_give(p, e, "a", x, n);
  if (!why) {
    vm_call(p->vm, e, &step);
    why = h_output(p, e, "y", got, n);
  }
  for (int64_t i = 0; i < n && !why; i++) {
    bool trig = str_eq(name, "sin") || str_eq(name, "cos");
    if (trig && fabs(x[i]) > 1e5) continue;
    ++*compared;
    if (!close_enough(trig || is_defined(name), got[i], want[i]))
      why = arena_printf(a, "%s(%.9g) is %.9g, should be %.9g", name, x[i], got[i], want[i]);
  }
  h_close(p);
  return why;
}

int main(void) {
  json_error_t error;
  json_t *all = json_load_file(ORACLE_DATA "/scalars.json", 0, &error);
  if (!all) {
    fprintf(stderr, "scalars.json:%d: %s\n", error.line, error.text);
    return 1;
  }
  int passed = 0, failed = 0;
  const char *name;
  json_t *points;
  json_object_foreach(all, name, points) {
    arena a;
    arena_init(&a);
    int compared = 0;
    const char *why = check(&a, name, points, &compared);
    if (why)
      printf("FAILED %s: %s\n", name, why);
    else
      printf("ok %s: %d points\n", name, compared);
    *(why ? &failed : &passed) += 1;
    arena_free(&a);
  }
  json_decref(all);
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
