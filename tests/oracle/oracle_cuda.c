// CUDA kernels at random shapes, run by the emulation: what the interpreter says in float64 they
// say in f32 to 1e-5, and with products rounded to bf16 to 2e-2, of a tensor's largest magnitude.
//
//   oracle_cuda [--count N] [--seed S] [--print] [--keep] [--beside] [NAME...]
//
// Each family below draws N models of one op or a few: extents are 1, primes, and numbers around
// powers of two, so that tiles are whole, cut, and almost empty. A model's outputs are compared,
// and the gradients of sum(output * weights) of all its float inputs and weights (op_case.h). Model
// k of a family is a pure function of seed S+k; a failure prints its text. Options as in
// oracle_ops.c.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/rng.h"
#include "tests/oracle/emulated.h"
#include "tests/oracle/op_case.h"

// ---- drawing ------------------------------------------------------------------------------------

typedef struct gen {
  uint64_t key, draws;
  arena *a;
  sb text;
  bool bf16;
  oc_limit limit[4];
  int nlimits;
} gen;

static int below(gen *g, int n) { return (int)rng_below(g->key, g->draws++, (uint64_t)n); }
static bool chance(gen *g, int percent) { return below(g, 100) < percent; }

#define ONE_OF(g, ...) \
  ((const int[]){__VA_ARGS__})[below((g), (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)))]
#define WORD_OF(g, ...)                       \
  ((const char *const[]){__VA_ARGS__})[below( \
      (g), (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))]

static int small(gen *g) { return ONE_OF(g, 1, 2, 3, 5, 7, 8); }
static int any_size(gen *g) {
  return ONE_OF(g, 1, 2, 3, 5, 8, 13, 16, 17, 24, 31, 32, 33, 61, 64, 67, 100, 127, 128, 131, 144);
}
static int length(gen *g) { return ONE_OF(g, 1, 2, 7, 16, 17, 31, 33, 48, 64, 65, 70, 131); }

static void say(gen *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(gen *g, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  sb_vprintf(&g->text, fmt, ap);
  sb_put(&g->text, '\n');
  va_end(ap);
}

static void whole_numbers(gen *g, const char *name, int limit) {
  g->limit[g->nlimits++] = (oc_limit){name, limit};
}

// "3, 17, 64": extents of a tensor of that rank.
static const char *extents(gen *g, int rank, const int *extent_of) {
  sb s = {.arena = g->a};
  for (int i = 0; i < rank; i++) sb_printf(&s, "%s%d", i ? ", " : "", extent_of[i]);
  return sb_str(&s);
}

// ---- families -----------------------------------------------------------------------------------

// The letters of `set` in a random order, by spaces; their extents.
static const char *letters(gen *g, const char *set, const int *extent_of, const char **shape) {
  char order[8];
  int n = (int)strlen(set), e[8];
  memcpy(order, set, (size_t)n + 1);
  for (int i = n - 1; i > 0; i--) {
    int k = below(g, i + 1);
    char c = order[i];
    order[i] = order[k];
    order[k] = c;
  }
  sb s = {.arena = g->a};
  for (int i = 0; i < n; i++) {
    sb_printf(&s, "%s%c", i ? " " : "", order[i]);
    e[i] = extent_of[order[i] - 'a'];
  }
  if (shape) *shape = extents(g, n, e);
  return sb_str(&s);
}

// A product of matrices, or of batches of them, all axes in any order.
static void product(gen *g) {
  int e[26] = {0};
  e['m' - 'a'] = any_size(g), e['n' - 'a'] = any_size(g), e['k' - 'a'] = any_size(g);
  e['b' - 'a'] = ONE_OF(g, 1, 2, 3), e['s' - 'a'] = small(g);
  const char *a = "mk", *b = "kn", *out = "mn", *sa, *sb_;
  switch (below(g, 4)) {
    case 0: a = "bmk", b = "bkn", out = "bmn"; break;
    case 1: a = "smk", out = "smn"; break;
    default: break;
  }
  a = letters(g, a, e, &sa);
  b = letters(g, b, e, &sb_);
  out = letters(g, out, e, NULL);
  say(g, "  input a : f32[%s]\n  input b : f32[%s]", sa, sb_);
  say(g, "  output y = einsum(\"%s, %s -> %s\", a, b)", a, b, out);
}

static void product_bf16(gen *g) {
  g->bf16 = true;
  product(g);
}

// What runs before a product and with its results.
static void layer(gen *g) {
  int b = small(g), in = any_size(g), out = any_size(g);
  say(g, "  input x : f32[%d, %d]\n  input r : f32[%d, %d]", b, in, b, out);
  say(g, "  n = %s", WORD_OF(g, "layernorm(x) as n", "rmsnorm(x) as n", "tanh(x)"));
  say(g, "  u = %s(linear(n, %d, bias=true) as p)", WORD_OF(g, "gelu", "silu", "tanh"), out);
  say(g, "  output y = u * r + linear(u, %d) as q", out);
}

static void layer_bf16(gen *g) {
  g->bf16 = true;
  layer(g);
}

static void attention(gen *g) {
  int kv = ONE_OF(g, 1, 2, 3), heads = kv * ONE_OF(g, 1, 1, 2, 3), batch = ONE_OF(g, 1, 2, 3);
  int head = ONE_OF(g, 1, 3, 8, 16, 20, 32, 64), q = length(g), k = chance(g, 60) ? q : length(g);
  if (q * k * heads > 20000) heads = kv = 1;
  say(g, "  input q : f32[%d, %d, %d]", batch, q, heads * head);
  say(g, "  input k : f32[%d, %d, %d]", batch, k, kv * head);
  say(g, "  input v : f32[%d, %d, %d]", batch, k, kv * head);
  const char *mask = "";
  int which = below(g, q == k ? 6 : 3);
  if (which == 1) {
    say(g, "  input length : i32[%d]\n  fn present(i, j) = j <= length", batch);
    whole_numbers(g, "length", k);
    mask = ", mask=present";
  } else if (which == 2) {
    say(g, "  input kind : i32[%d, %d]\n  fn odd(i, j) = (i + kind[j]) %% 3 != 1 or j == 0", batch,
        k);
    whole_numbers(g, "kind", 3);
    mask = ", mask=odd";
  } else if (which == 3) {
    say(g, "  fn window(i, j) = j <= i and i - j < %d", 1 + below(g, 40));
    mask = ", mask=window";
  } else if (which == 4) {
    mask = ", mask=causal";
  }
  const char *bias = "";
  which = below(g, 4);
  if (which == 1) {
    say(g, "  fn slope(h, i, j) = -0.25 * (h + 1) * abs(i - j)");
    bias = ", bias=slope";
  } else if (which == 2) {
    say(g, "  input pair : f32[%d, %d, %d]", heads, q, k);
    bias = ", bias=pair";
  }
  const char *more = chance(g, 30) ? ", dropout=0.25" : "";
  say(g, "  output y = attention(q, k, v, heads=%d%s%s%s)", heads, mask, bias, more);
}

static void attention_bf16(gen *g) {
  g->bf16 = true;
  attention(g);
}

// Along rows of which there may be many or one.
static void rows(gen *g) {
  int heads = small(g), e[2] = {any_size(g), heads * ONE_OF(g, 1, 3, 8, 17, 32, 67)};
  say(g, "  input x : f32[%s]", extents(g, 2, e));
  switch (below(g, 5)) {
    case 0: say(g, "  output y = layernorm(x, bias=true) as p"); break;
    case 1: say(g, "  output y = rmsnorm(x) as p"); break;
    case 2: say(g, "  output y = rmsnorm(x, heads=%d) as p", heads); break;
    case 3: say(g, "  output y = softmax(3 * x)"); break;
    default: say(g, "  output y = log_softmax(3 * x)"); break;
  }
}

// Over any one axis, or all.
static void reduction(gen *g) {
  int rank = 1 + below(g, 4), e[4], axis = below(g, rank);
  for (int i = 0; i < rank; i++) e[i] = rank > 2 ? ONE_OF(g, 1, 3, 5, 16, 17) : any_size(g);
  if (chance(g, 50)) e[axis] = ONE_OF(g, 1, 131, 256, 700);
  say(g, "  input x : f32[%s]", extents(g, rank, e));
  const char *what = WORD_OF(g, "sum", "mean", "max", "min");
  if (chance(g, 15))
    say(g, "  output y = %s(x)", what);
  else
    say(g, "  output y = %s(x, axis=%d, keep=%s)", what, axis, WORD_OF(g, "true", "false"));
}

static void lookup(gen *g) {
  int n = any_size(g), width = any_size(g);
  say(g, "  input w : f32[%d, %d]\n  input t : i32[%d, %d]", n, width, small(g), length(g));
  whole_numbers(g, "t", n);
  say(g, "  output y = gather(w, t)");
}

static void loss(gen *g) {
  int n = 2 + any_size(g), b = small(g), s = small(g), in = any_size(g);
  say(g, "  input x : f32[%d, %d, %d]\n  input t : i32[%d, %d]", b, s, in, b, s);
  whole_numbers(g, "t", n);
  say(g, "  z = %s",
      chance(g, 50) ? arena_printf(g->a, "linear(x, %d) as p", n)
                    : arena_printf(g->a, "linear(x, %d, bias=true) as p", n));
  say(g, "  output y = cross_entropy(z, t%s)", chance(g, 50) ? ", ignore=1" : "");
}

// Pointwise work over axes that are there or not, and moves of parts.
static void pointwise(gen *g) {
  int rank = 1 + below(g, 3), e[3], f[3];
  for (int i = 0; i < rank; i++) e[i] = rank > 2 ? small(g) * 3 : any_size(g);
  for (int i = 0; i < rank; i++) f[i] = chance(g, 30) ? 1 : e[i];
  say(g, "  input a : f32[%s]\n  input b : f32[%s]", extents(g, rank, e), extents(g, rank, f));
  say(g, "  u = a * b + %s(a)", WORD_OF(g, "tanh", "sin", "exp", "sigmoid", "erf", "gelu"));
  switch (below(g, 5)) {
    case 0: say(g, "  output y = transpose(u[none, ..])"); break;
    case 1: say(g, "  output y = concat(u, a * 2, axis=%d)", below(g, rank)); break;
    case 2: say(g, "  output y = u[%d:]", below(g, e[0])); break;
    case 3: say(g, "  output y = dropout(u, 0.25) + a"); break;
    default: say(g, "  output y = where(a < b, u, square(a))"); break;
  }
}

static void turning(gen *g) {
  int heads = small(g);
  say(g, "  input x : f32[%d, %d, %d]", small(g), length(g), heads * 2 * small(g));
  say(g, "  output y = rope(x, heads=%d, theta=%d)", heads, ONE_OF(g, 100, 10000));
}

typedef struct family {
  const char *name;
  void (*draw)(gen *g);
} family;
static const family families[] = {
    {"product", product},     {"product_bf16", product_bf16},
    {"layer", layer},         {"layer_bf16", layer_bf16},
    {"attention", attention}, {"attention_bf16", attention_bf16},
    {"rows", rows},           {"reduction", reduction},
    {"lookup", lookup},       {"loss", loss},
    {"pointwise", pointwise}, {"turning", turning},
};
enum { FAMILIES = sizeof families / sizeof *families };

// ---- a model ------------------------------------------------------------------------------------

typedef struct request {
  const family *of;
  uint64_t seed;
  const h_device *device;
} request;

static void draw_text(gen *g, arena *a, const request *q) {
  *g = (gen){.a = a, .key = rng_key(q->seed, base_hash(q->of->name, strlen(q->of->name), 1))};
  g->text.arena = a;
  say(g, "model op {");
  q->of->draw(g);
  say(g, "}");
}

static const char *run_model(arena *a, void *ctx) {
  const request *q = ctx;
  gen g;
  draw_text(&g, a, q);
  op_case c = {.name = q->of->name,
               .a = a,
               .dsm = sb_str(&g.text),
               .sets = g.bf16 ? "batch=1,steps=1,precision=bf16" : "batch=1,steps=1",
               .forward = g.bf16 ? 2e-2 : 1e-5,
               .gradient = g.bf16 ? 2e-2 : 1e-5,
               .share = 0.1,
               .device = q->device};
  const char *why = oc_draw(&c, g.key, g.limit, g.nlimits);
  if (!why && q->device->compiled) why = oc_reference(&c);
  if (!why) why = oc_forward(&c);
  if (!why) why = oc_gradients(&c);
  return why ? arena_printf(a, "%s\n%s", why, c.dsm) : NULL;
}

// ---- main ---------------------------------------------------------------------------------------

typedef struct options {
  long count;
  uint64_t seed;
  bool print, keep, beside;
  char **wanted;
  int nwanted;
} options;

static bool is_wanted(const options *o, const char *name) {
  for (int i = 0; i < o->nwanted; i++)
    if (str_eq(o->wanted[i], name)) return true;
  return o->nwanted == 0;
}

static int run_all(arena *a, const options *o, const h_device *d) {
  int passed = 0, failed = 0, not_lowered = 0;
  for (int i = 0; i < FAMILIES; i++) {
    if (!is_wanted(o, families[i].name)) continue;
    for (long k = 0; k < o->count; k++) {
      request q = {.of = &families[i], .seed = o->seed + (uint64_t)k, .device = d};
      const char *why = h_isolated(a, run_model, &q, 120);
      if (!d->compiled) continue;
      if (o->print) {
        gen g;
        draw_text(&g, a, &q);
        printf("%s", sb_str(&g.text));
      }
      printf("%s %s --seed %llu%s%s\n", why ? "FAILED" : "ok", families[i].name,
             (unsigned long long)q.seed, why ? ": " : "", why ? why : "");
      passed += !why, failed += why != NULL;
      not_lowered += why && strstr(why, H_NOT_LOWERED);
    }
  }
  if (d->compiled)
    printf("%d passed, %d failed, %d of them not lowered\n", passed, failed, not_lowered);
  return failed;
}

static int usage(void) {
  fputs("oracle_cuda [--count N] [--seed S] [--print] [--keep] [--beside] [NAME...]\n", stderr);
  return 2;
}

int main(int argc, char **argv) {
  options o = {.count = 4, .seed = 1};
  for (int i = 1; i < argc; i++) {
    if (str_eq(argv[i], "--print")) {
      o.print = true;
    } else if (str_eq(argv[i], "--keep")) {
      o.keep = true;
    } else if (str_eq(argv[i], "--beside")) {
      o.beside = true;
    } else if (str_eq(argv[i], "--count") && i + 1 < argc) {
      o.count = strtol(argv[++i], NULL, 10);
    } else if (str_eq(argv[i], "--seed") && i + 1 < argc) {
      o.seed = strtoull(argv[++i], NULL, 10);
    } else if (argv[i][0] == '-') {
      return usage();
    } else {
      o.wanted = argv + i, o.nwanted = argc - i;
      break;
    }
  }
  if (emu_missing()) return puts(emu_missing()), 77;
  arena a;
  arena_init(&a);
  h_device d;
  const char *why = h_device_open(&a, &d);
  d.beside_host = o.beside;
  if (!why) run_all(&a, &o, &d);
  if (!why) why = h_device_compile(&a, &d);
  if (why) {
    printf("FAILED %s\n", why);
  } else {
    printf("%d functions compiled in %.1f s\n", d.functions, d.compile_s);
  }
  int failed = why ? 1 : run_all(&a, &o, &d);
  if (o.keep)
    printf("functions are in %s\n", d.dir);
  else
    h_device_close(&a, &d);
  arena_free(&a);
  return failed != 0;
}
