// The two lowerings give the same bits: functions of single elements, as host code and as a CUDA
// kernel under the emulation, on numbers of all magnitudes, denormals, infinities and NaN among
// them.
//
//   oracle_bits [NAME...]
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/base/rng.h"
#include "tests/oracle/emulated.h"

enum { N = 6000 };

typedef struct function_case {
  const char *name, *text;  // of a, b: f32 and t, u: i32
  bool flushes;             // the host may take denormals for zeros (codegen/kernel.h: bf16)
} function_case;
static const function_case cases[] = {
    {"exp", "exp(a)", false},
    {"log", "log(a)", false},
    {"tanh", "tanh(a)", false},
    {"erf", "erf(a)", false},
    {"sin", "sin(a)", false},
    {"cos", "cos(a)", false},
    {"sqrt", "sqrt(a)", false},
    {"rsqrt", "rsqrt(a)", false},
    {"abs", "abs(a)", false},
    {"neg", "-a", false},
    {"floor", "floor(a)", false},
    {"gelu", "gelu(a)", false},
    {"gelu_tanh", "gelu(a, approximate=true)", false},
    {"silu", "silu(a)", false},
    {"sigmoid", "sigmoid(a)", false},
    {"softplus", "softplus(a)", false},
    {"mish", "mish(a)", false},
    {"add", "a + b", false},
    {"mul", "a * b", false},
    {"div", "a / b", false},
    {"pow", "a ^ b", false},
    {"floordiv", "a // b", false},
    {"mod", "a % b", false},
    {"max", "max(a, b)", false},
    {"min", "min(a, b)", false},
    {"where", "where(a < b or not (a >= 1), a, b * 3)", false},
    {"integer_floordiv", "t // u", false},
    {"integer_mod", "t % u", false},
    {"to_bf16", "cast(a, bf16)", true},
    {"to_f16", "cast(a, f16)", false},
    {"to_i32", "cast(a, i32)", false},
    {"from_i32", "cast(t, f32)", false},
};
enum { CASES = sizeof cases / sizeof *cases };

static double real_of(uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof v);
  return (double)v;
}

// A third any bits, a third near 1, the rest special numbers.
static double draw_real(const char *name, int64_t i) {
  static const double special[] = {
      0.0,          -0.0,          1,      -1,       2,        0.5,
      INFINITY,     -INFINITY,     NAN,    0x1p-149, 0x1p-126, -0x1p-140,
      88.7,         -103.9,        3.4e38, 65504,    65520,    1e-8,
      2147483648.0, -2147483648.0, 3,      -2.5,     9.02,     0x1.fffffep-127};
  uint64_t key = base_hash(name, strlen(name), 3), r = rng_bits(key, (uint64_t)i);
  if (i % 3 == 0) return real_of((uint32_t)r);
  if (i % 3 == 1) return (double)(float)((rng_unit(key, (uint64_t)i) - 0.5) * (double)(i % 100));
  return special[r % (sizeof special / sizeof *special)];
}

static double draw_whole(const char *name, int64_t i) {
  static const int32_t special[] = {0, 1, -1, 2, -7, INT32_MAX, INT32_MIN, 100};
  uint64_t key = base_hash(name, strlen(name), 3), r = rng_bits(key, (uint64_t)i);
  if (i % 2) return (double)(int32_t)(uint32_t)(r >> 32);
  return special[r % (sizeof special / sizeof *special)];
}

static const char *run(arena *a, const function_case *f, const h_device *d, double *y) {
  const char *text =
      arena_printf(a,
                   "model op {\n  input a : f32[%d]\n  input b : f32[%d]\n  input t : i32[%d]\n"
                   "  input u : i32[%d]\n  output y = %s\n}\n",
                   N, N, N, N, f->text);
  h_text t = h_lower(a, text, NULL, "batch=1,steps=1", SEMA_OUTPUTS);
  if (!t.m) return t.error;
  pass_options o = pass_defaults();
  const char *why = pass_run(t.m, &o);
  h_program *p = NULL;
  if (!why) why = h_compile_for(a, t.m, 1, 0, d, &p);
  if (why || !p) return why;
  const prog_entry *e = prog_entry_of(&p->p, PROG_EVAL);
  static const char *const inputs[] = {"a", "b", "t", "u"};
  for (int k = 0; k < 4 && !why; k++) {
    double *x = arena_new(a, double, N);
    for (int i = 0; i < N; i++) x[i] = k < 2 ? draw_real(inputs[k], i) : draw_whole(inputs[k], i);
    if (prog_input(&p->p, e, inputs[k])) why = h_give(p, e, inputs[k], x, N);
  }
  if (!why) why = h_call(a, p, e, &(vm_step){0});
  if (!why) why = h_output(p, e, "y", y, N);
  h_close(p);
  return why;
}

typedef struct request {
  const function_case *f;
  const h_device *device;
} request;

static const char *check(arena *a, void *ctx) {
  const request *q = ctx;
  double *host = arena_new(a, double, N), *cuda = arena_new(a, double, N);
  const char *why = run(a, q->f, q->device, cuda);
  if (why || !q->device->compiled) return why;
  if ((why = run(a, q->f, NULL, host))) return why;
  int same = 0;
  for (int i = 0; i < N; i++) {
    bool nan = isnan(host[i]) && isnan(cuda[i]);
    bool zero = q->f->flushes && host[i] == 0 && fabs(cuda[i]) < 0x1p-126;
    if (nan || zero || memcmp(&host[i], &cuda[i], sizeof host[i]) == 0) {
      same += !nan;
      continue;
    }
    return arena_printf(a, "a = %.9g, b = %.9g, t = %.0f, u = %.0f: host %.9g, CUDA %.9g",
                        draw_real("a", i), draw_real("b", i), draw_whole("t", i),
                        draw_whole("u", i), host[i], cuda[i]);
  }
  return same > N / 10 ? NULL : "nearly nothing to compare";
}

static int try_all(arena *a, const h_device *d, char **wanted, int nwanted) {
  int failed = 0;
  for (int i = 0; i < CASES; i++) {
    bool is_wanted = nwanted == 0;
    for (int k = 0; k < nwanted; k++) is_wanted |= str_eq(wanted[k], cases[i].name);
    if (!is_wanted) continue;
    request q = {&cases[i], d};
    const char *why = h_isolated(a, check, &q, 60);
    if (!d->compiled) continue;
    printf("%s %s%s%s\n", why ? "FAILED" : "ok", cases[i].name, why ? ": " : "", why ? why : "");
    failed += why != NULL;
  }
  return failed;
}

int main(int argc, char **argv) {
  if (emu_missing()) return puts(emu_missing()), 77;
  arena a;
  arena_init(&a);
  h_device d;
  const char *why = h_device_open(&a, &d);
  if (!why) try_all(&a, &d, argv + 1, argc - 1);
  if (!why) why = h_device_compile(&a, &d);
  if (why) printf("FAILED %s\n", why);
  int failed = why ? 1 : try_all(&a, &d, argv + 1, argc - 1);
  h_device_close(&a, &d);
  arena_free(&a);
  return failed != 0;
}
