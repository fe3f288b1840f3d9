// Random models: what the interpreter says in float64, the compiled program says in f32.
//
//   test_random [--count N] [--seed S] [--here] [--print] [--times] [--text FILE] [--cuda]
//
// Model number k is a pure function of seed S+k. Each is lowered, differentiated and optimised; two
// steps of the interpreter over the whole batch are compared with two steps of the program: loss,
// gradient norm, and the optimizer's first moment, which is the (clipped) gradient. The program is
// cut into random micro-batches, a random set of optional passes is left out, and half of the
// programs make saved values again in backward: their states must be those of the program that does
// not, to the bit. One in four also compares `evaluate`, and one in eight generation against the
// full forward. --cuda: programs run as CUDA kernels under the emulation (tests/oracle/emulated.h).
// A failure prints the seed and the text: `--seed S --count 1` replays it, `--here` in this process
// for a debugger,
// `--text` with another text (a shorter one) on the same data.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "runtime/base/rng.h"
#include "tests/oracle/decode_check.h"
#include "tests/oracle/emulated.h"
#include "tests/oracle/harness.h"

// ---- drawing ------------------------------------------------------------------------------------

typedef struct gen {
  arena *a;
  uint64_t key, draws;
  sb top, body;  // fns before the model; its statements
  int hidden, heads, head, kv_heads, vocab, seq, context, batch, micro;
  int names;  // numbers for names that must differ
  int indent;
  bool even_head;  // rope is possible
  bool has_length, has_kind, has_aux, ignores, dropout, causal_only;
  const char *act;   // the user's own activation, or NULL
  const char *gate;  // of two values
} gen;

static int below(gen *g, int n) { return (int)rng_below(g->key, g->draws++, (uint64_t)n); }
static int between(gen *g, int lo, int hi) { return lo + below(g, hi - lo + 1); }
static bool chance(gen *g, int percent) { return below(g, 100) < percent; }

static const char *one_of(gen *g, const char *const *list, int n) { return list[below(g, n)]; }
#define ONE_OF(g, ...)                            \
  one_of((g), (const char *const[]){__VA_ARGS__}, \
         (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))

static const char *fresh(gen *g, const char *stem) {
  return arena_printf(g->a, "%s%d", stem, g->names++);
}

static void line(gen *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void line(gen *g, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  for (int i = 0; i < g->indent; i++) sb_puts(&g->body, "  ");
  sb_vprintf(&g->body, fmt, ap);
  sb_put(&g->body, '\n');
  va_end(ap);
}

// ---- user functions -----------------------------------------------------------------------------

// A smooth (but for max, min, abs, where) expression over the formals, of bounded growth.
static const char *expression(gen *g, const char *const *names, int n, int depth) {
  if (depth == 0 || chance(g, 15))
    return chance(g, 75) ? names[below(g, n)] : arena_printf(g->a, "%.2f", 0.25 * between(g, 1, 9));
  const char *x = expression(g, names, n, depth - 1), *y = names[below(g, n)];
  if (chance(g, 25)) y = expression(g, names, n, depth - 1);
  switch (below(g, 16)) {
    case 0: return arena_printf(g->a, "(%s + %s)", x, y);
    case 1: return arena_printf(g->a, "(%s - %s)", x, y);
    case 2: return arena_printf(g->a, "tanh(%s) * %s", x, y);
    case 3: return arena_printf(g->a, "sigmoid(%s) * %s", y, x);
    case 4: return arena_printf(g->a, "sin(%s)", x);
    case 5: return arena_printf(g->a, "cos(%s) * %s", x, y);
    case 6: return arena_printf(g->a, "exp(-square(%s))", x);
    case 7: return arena_printf(g->a, "max(%s, -%.1f)", x, 0.1 * between(g, 1, 9));
    case 8: return arena_printf(g->a, "min(%s, %s)", x, y);
    case 9: return arena_printf(g->a, "abs(%s)", x);
    case 10: return arena_printf(g->a, "where(%s > 0.3, %s, 0.5 * %s)", y, x, y);
    case 11: return arena_printf(g->a, "sqrt(1 + square(%s))", x);
    case 12: return arena_printf(g->a, "log(1.5 + abs(%s))", x);
    case 13: return arena_printf(g->a, "%s / (1 + square(%s))", x, y);
    case 14: return arena_printf(g->a, "(abs(%s) + 0.5)^%.1f", x, 0.1 * between(g, 3, 15));
    default: return arena_printf(g->a, "silu(%s) - erf(%s)", x, y);
  }
}

static void functions(gen *g) {
  static const char *const one[] = {"x"}, *const two[] = {"a", "b"};
  sb_puts(&g->top, "fn swiglu(gate, up) = gate * sigmoid(gate) * up\n");
  if (chance(g, 60)) {
    g->act = "act";
    sb_printf(&g->top, "fn act(x) = %s\n", expression(g, one, 1, 3));
  } else if (chance(g, 30)) {
    g->act = "damped";
    sb_puts(&g->top, "fn damped(x) = tanh(x) grad(g) = 0.5 * g * cos(x)\n");
  }
  g->gate = "swiglu";
  if (chance(g, 50)) {
    g->gate = "mix";
    sb_printf(&g->top, "fn mix(a, b) = %s\n", expression(g, two, 2, 3));
  }
}

static const char *activation(gen *g) {
  if (g->act && chance(g, 40)) return g->act;
  return ONE_OF(g, "gelu", "silu", "relu", "relu2", "tanh", "sigmoid", "softplus", "square", "sin",
                "gelu_tanh");
}

static const char *activated(gen *g, const char *x) {
  const char *f = activation(g);
  if (str_eq(f, "gelu_tanh")) return arena_printf(g->a, "gelu(%s, approximate=true)", x);
  if (str_eq(f, "square")) return arena_printf(g->a, "0.3 * square(%s)", x);
  return arena_printf(g->a, "%s(%s)", f, x);
}

// ---- parts of a layer ---------------------------------------------------------------------------

static const char *bias_arg(gen *g) { return chance(g, 50) ? ", bias=true" : ""; }

static const char *norm(gen *g, const char *x) {
  switch (below(g, 5)) {
    case 0: return arena_printf(g->a, "layernorm(%s) as %s", x, fresh(g, "ln"));
    case 1: return arena_printf(g->a, "layernorm(%s, eps=1e-3) as %s", x, fresh(g, "ln"));
    case 2: return arena_printf(g->a, "rmsnorm(%s, heads=%d) as %s", x, g->heads, fresh(g, "rn"));
    default: return arena_printf(g->a, "rmsnorm(%s) as %s", x, fresh(g, "rn"));
  }
}

static const char *dropped(gen *g, const char *x) {
  if (!g->dropout || chance(g, 50)) return x;
  return arena_printf(g->a, "dropout(%s, 0.%d)", x, between(g, 1, 5));
}

static const char *mask_arg(gen *g) {
  if (g->causal_only) return chance(g, 60) ? ", mask=causal" : ", mask=window";
  switch (below(g, 7)) {
    case 0: return "";
    case 1: return ", mask=window";
    case 2: return g->has_length ? ", mask=present" : ", mask=before";
    case 3: return g->has_length ? ", mask=both" : ", mask=causal";
    case 4: return g->has_kind ? ", mask=same" : ", mask=causal";
    case 5: return ", mask=before";
    default: return ", mask=causal";
  }
}

static const char *score_arg(gen *g) {
  if (chance(g, 55)) return "";
  if (chance(g, 40)) return ", bias=slope";
  if (chance(g, 60)) return ", bias=near";
  return g->causal_only ? ", bias=slope" : chance(g, 50) ? ", bias=pair" : ", bias=[pair, row]";
}

// q, k, v by separate products or one split product, then attention; the result is hidden wide.
static const char *attention_part(gen *g, const char *n) {
  const char *p = fresh(g, "at"), *bias = bias_arg(g);
  int width = g->kv_heads * g->head;
  bool rope = g->even_head && chance(g, 40);
  if (g->kv_heads == g->heads && chance(g, 50)) {
    line(g, "%sq, %sk, %sv = split(linear(%s, %d%s) as %s.qkv, 3)", p, p, p, n, 3 * g->hidden, bias,
         p);
  } else {
    line(g, "%sq = linear(%s, %d%s) as %s.q", p, n, g->hidden, bias, p);
    line(g, "%sk = linear(%s, %d%s) as %s.k", p, n, width, bias_arg(g), p);
    line(g, "%sv = linear(%s, %d%s) as %s.v", p, n, width, bias, p);
  }
  if (chance(g, 15)) line(g, "%sq = rmsnorm(%sq, heads=%d) as %s.qn", p, p, g->heads, p);
  if (rope) {
    line(g, "%sq = rope(%sq, heads=%d, theta=100)", p, p, g->heads);
    line(g, "%sk = rope(%sk, heads=%d, theta=100)", p, p, g->kv_heads);
  }
  const char *scale = chance(g, 20) ? ", scale=0.5" : "", *mask = mask_arg(g);
  line(g, "%sa = attention(%sq, %sk, %sv, heads=%d%s%s%s)", p, p, p, p, g->heads, mask,
       score_arg(g), scale);
  return arena_printf(g->a, "linear(%sa, %d%s) as %s.o", p, g->hidden, bias, p);
}

// Works on each position alone. Names are new each time: an old one would be carried by a repeat.
static const char *dense_part(gen *g, const char *n) {
  const char *p = fresh(g, "ff"), *u = arena_printf(g->a, "%su", p), *bias = bias_arg(g);
  int ffn = between(g, 2, 19);
  switch (below(g, 7)) {
    case 0:
      line(g, "%s = %s(linear(%s, %d) as %s.gate, linear(%s, %d) as %s.up)", u, g->gate, n, ffn, p,
           n, ffn, p);
      break;
    case 1:
      line(g, "%sc, %sd = split(linear(%s, %d%s) as %s.both, 2)", p, p, n, 2 * ffn, bias, p);
      line(g, "%s = %s(%sc, %sd)", u, g->gate, p, p);
      break;
    case 2:
      line(g, "weight %sw as %s.w : [%d, %d] = normal(0.3)", p, p, g->hidden, ffn);
      line(g, "%s = %s", u,
           activated(g, arena_printf(g->a, "einsum(\"b s k, k n -> b s n\", %s, %sw)", n, p)));
      break;
    case 3:
      line(g, "%sc = linear(%s, %d) as %s.c", p, n, ffn, p);
      line(g, "%s = concat(%s, 0.5 * %sc, axis=-1)", u, activated(g, arena_printf(g->a, "%sc", p)),
           p);
      break;
    case 4:
      line(g, "%sc = linear(%s, %d%s) as %s.c", p, n, ffn + 1, bias, p);
      line(g, "%s = %s * %sc[.., 0:1]", u, activated(g, arena_printf(g->a, "%sc[.., 1:]", p)), p);
      break;
    case 5: line(g, "%s = softmax(linear(%s, %d%s) as %s.c)", u, n, ffn, bias, p); break;
    default:
      line(g, "%s = %s", u,
           activated(g, arena_printf(g->a, "linear(%s, %d%s) as %s.c", n, ffn, bias, p)));
  }
  if (g->has_aux && chance(g, 50)) {
    const char *more = ONE_OF(g, "0.1 * mean(square(%s))", "0.01 * sum(mean(abs(%s), axis=0))",
                              "0.1 * mean(max(%s, axis=-1))", "0.1 * mean(lse(%s))");
    const char *hole = strchr(more, '%');
    line(g, "aux = aux + %.*s%s%s", (int)(hole - more), more, u, hole + 2);
  }
  u = dropped(g, u);
  return arena_printf(g->a, "linear(%s, %d%s) as %s.o", u, g->hidden, bias_arg(g), p);
}

// Mixes positions by a learned matrix over the sequence.
static const char *mixer_part(gen *g, const char *n) {
  const char *p = fresh(g, "mx");
  line(g, "weight %sw as %s.w : [seq, seq] = normal(0.3)", p, p);
  return arena_printf(
      g->a, "%s",
      activated(g, arena_printf(g->a, "einsum(\"b s h, t s -> b t h\", %s, %sw)", n, p)));
}

static void part(gen *g, bool attends) {
  bool post = chance(g, 25), bare = !post && chance(g, 15);
  const char *n = "x";
  if (!post && !bare) {
    line(g, "n = %s", norm(g, "x"));
    n = "n";
  }
  const char *y = attends                            ? attention_part(g, n)
                  : !g->causal_only && chance(g, 15) ? mixer_part(g, n)
                                                     : dense_part(g, n);
  line(g, "y = %s", y);
  y = dropped(g, "y");
  if (post) {
    line(g, "x = x + %s", y);
    line(g, "x = %s", norm(g, "x"));
  } else if (chance(g, 10)) {
    line(g, "x = 0.7 * x + %s * %s", y, activated(g, "x"));
  } else {
    line(g, "x = x + %s", y);
  }
}

static void layer(gen *g) {
  bool attends = chance(g, 80);
  if (attends) part(g, true);
  if (!attends || chance(g, 75)) part(g, false);
}

static void repeats(gen *g) {
  int count = between(g, 1, 3);
  for (int r = 0; r < count; r++) {
    const char *p = fresh(g, "r");
    int layers = between(g, 1, 4);
    line(g, "repeat (%d) as %s[i] {", layers, p);
    g->indent++;
    if (layers > 1 && chance(g, 20)) {
      // Unlike bodies: every second layer does something else.
      const char *f = ONE_OF(g, "tanh", "sin", "gelu", "silu", "sigmoid");
      line(g, "x = if i %% 2 == 1 then x + 0.5 * %s(x) else x", f);
    }
    layer(g);
    if (chance(g, 10)) {
      const char *inner = fresh(g, "in");
      line(g, "repeat (%d) as %s[j] {", between(g, 2, 3), inner);
      g->indent++;
      part(g, false);
      g->indent--;
      line(g, "}");
    }
    g->indent--;
    line(g, "}");
    if (chance(g, 20)) layer(g);
  }
}

// ---- a whole model ------------------------------------------------------------------------------

static void shapes(gen *g) {
  g->heads = between(g, 1, 4);
  g->head = between(g, 1, 7);
  g->even_head = g->head % 2 == 0;
  g->hidden = g->heads * g->head;
  do g->kv_heads = between(g, 1, g->heads);
  while (g->heads % g->kv_heads);
  if (chance(g, 50)) g->kv_heads = g->heads;
  g->vocab = between(g, 3, 29);
  g->seq = between(g, 1, 11);
  g->context = g->seq + below(g, 3);
  g->batch = between(g, 1, 6);
  do g->micro = between(g, 1, g->batch);
  while (g->batch % g->micro);
  if (chance(g, 40)) g->micro = 0;
}

static void scores(gen *g) {
  line(g, "fn window(i, j) = j <= i and i - j < %d", between(g, 1, 5));
  line(g, "fn before(i, j) = j < i");
  if (g->has_length) line(g, "fn present(i, j) = j < length");
  if (g->has_length) line(g, "fn both(i, j) = j <= i and j < length");
  if (g->has_kind) line(g, "fn same(i, j) = kind[i] == kind[j]");
  line(g, "fn slope(h, i, j) = -0.25 * (h + 1) * abs(i - j)");
  line(g, "weight rel : [5, %d] = normal(0.5)", g->heads);
  line(g, "fn near(h, i, j) = rel[min(abs(i - j), 4), h]");
  if (g->causal_only) return;
  line(g, "weight pair : [%d, seq, seq] = normal(0.5)", g->heads);
  line(g, "weight row : [1, seq] = normal(0.5)");
}

static void embedding(gen *g) {
  line(g, "weight wte : [%d, %d] = normal(1)", g->vocab, g->hidden);
  const char *place = "";
  if (chance(g, 60)) {
    line(g, "weight wpe : [context, %d] = normal(0.3)", g->hidden);
    place = " + wpe[0:seq]";
  }
  const char *kind = "";
  if (g->has_kind) {
    line(g, "weight wke : [3, %d] = normal(0.3)", g->hidden);
    kind = " + gather(wke, kind)";
  }
  const char *sum = arena_printf(g->a, "gather(wte, tokens)%s%s", place, kind);
  line(g, "x = %s", dropped(g, sum));
  if (chance(g, 20)) line(g, "x = %s", norm(g, "x"));
}

static void ending(gen *g) {
  if (chance(g, 70)) line(g, "x = %s", norm(g, "x"));
  if (chance(g, 50))
    line(g, "output logits = matmul(x, transpose(wte))");
  else
    line(g, "output logits = linear(x, %d%s) as head", g->vocab, bias_arg(g));
  g->ignores = chance(g, 50);
  line(g, "output loss = cross_entropy(logits, targets%s)%s", g->ignores ? ", ignore=-100" : "",
       g->has_aux ? " + aux" : "");
}

static const char *job_section(gen *g) {
  sb s = {.arena = g->a};
  sb_printf(&s, "train m {\n  batch = %d;  seq = %d;  steps = 2\n", g->batch, g->seq);
  if (chance(g, 50))
    sb_printf(&s, "  optimizer = sgd(lr=0.1, momentum=0.9%s)\n",
              chance(g, 30) ? ", nesterov=true" : "");
  else
    sb_puts(&s, "  optimizer = adamw(lr=0.01, betas=[0.9, 0.95], eps=1e-2, weight_decay=0.1)\n");
  if (chance(g, 50)) sb_printf(&s, "  clip = %.1f\n", 0.1 * between(g, 1, 20));
  if (chance(g, 15)) sb_puts(&s, "  weights \"wte\" { lr_scale = 0.5 }\n");
  if (chance(g, 10)) sb_puts(&s, "  weights \"wte\" { train = false }\n");
  sb_puts(&s, "}\n");
  return sb_str(&s);
}

// The text of model `seed`; what else was drawn stays in *g.
static const char *generate(gen *g, arena *a, uint64_t seed) {
  *g = (gen){.a = a, .key = rng_key(seed, 1), .top.arena = a, .body.arena = a, .indent = 1};
  shapes(g);
  g->causal_only = chance(g, 25);
  g->has_length = !g->causal_only && chance(g, 40);
  g->has_kind = !g->causal_only && chance(g, 30);
  g->has_aux = chance(g, 25);
  g->dropout = chance(g, 40);
  functions(g);
  line(g, "param context = %d", g->context);
  line(g, "dim batch, seq <= context");
  line(g, "input tokens : i32[batch, seq]");
  line(g, "input targets : i32[batch, seq]");
  if (g->has_length) line(g, "input length : i32[batch]");
  if (g->has_kind) line(g, "input kind : i32[batch, seq]");
  scores(g);
  embedding(g);
  if (g->has_aux) line(g, "aux = 0");
  repeats(g);
  ending(g);

  return arena_printf(a, "%smodel m {\n%s}\n%s", sb_str(&g->top), sb_str(&g->body), job_section(g));
}

// ---- running ------------------------------------------------------------------------------------

typedef struct times {
  double lower, passes, compile, interp, run, total;
  double slowest;
  int n, exploded, recomputed;
} times;
static times *spent;      // shared with the processes of the models
static h_device *device;  // NULL: programs run on the host

typedef struct array {
  const char *name;
  double *data;
  int64_t n;
} array;
typedef VEC(array) array_list;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double unit_of(const char *name, uint64_t seed, int64_t i) {
  return rng_unit(rng_key(seed, base_hash(name, strlen(name), 0)), (uint64_t)i);
}

static array input_of(arena *a, const gen *g, uint64_t seed, const ir_op *op) {
  array x = {.name = ir_attr_str(op, "name", ""), .n = ir_elements(&op->out[0]->type)};
  x.data = arena_new(a, double, x.n + 1);
  for (int64_t i = 0; i < x.n; i++) {
    double u = unit_of(x.name, seed, i);
    if (str_eq(x.name, "length"))
      x.data[i] = floor(u * (g->seq + 1));
    else if (str_eq(x.name, "kind"))
      x.data[i] = floor(u * 3);
    else
      x.data[i] = floor(u * g->vocab);
    if (str_eq(x.name, "targets") && g->ignores && unit_of("ignored", seed, i) < 0.3)
      x.data[i] = -100;
  }
  return x;
}

static array state_of(arena *a, uint64_t seed, const ir_state *s) {
  array x = {.name = s->name, .n = ir_elements(&s->type)};
  x.data = arena_new(a, double, x.n + 1);
  if (s->cls != STATE_WEIGHT) return x;
  int rank = s->type.rank - (s->stacked ? 1 : 0);
  double in = (double)s->type.dim[s->type.rank - 1]->size;
  for (int64_t i = 0; i < x.n; i++) {
    double u = 2 * unit_of(s->name, seed, i) - 1;
    double v = rank >= 2 ? u * 1.7 / sqrt(in) : s->init == INIT_ONES ? 1 + 0.3 * u : 0.3 * u;
    x.data[i] = (double)(float)v;
  }
  return x;
}

static array_list inputs_of(arena *a, const gen *g, uint64_t seed, const ir_func *f) {
  array_list list = {0};
  for (int i = 0; i < f->body->ops.n; i++)
    if (f->body->ops.at[i]->code == IR_input)
      vec_push(a, &list, input_of(a, g, seed, f->body->ops.at[i]));
  return list;
}

static array_list states_of(arena *a, uint64_t seed, const ir_module *m) {
  array_list list = {0};
  for (int i = 0; i < m->states.n; i++) vec_push(a, &list, state_of(a, seed, m->states.at[i]));
  return list;
}

// The scalars a driver would write before step number `step`.
static array_list args_of(arena *a, const job *j, int step) {
  const job_optimizer *o = &j->optimizer;
  const char *const name[] = {"lr",  "weight_decay", "clip",  "beta1",   "beta2",
                              "eps", "bias1",        "bias2", "momentum"};
  double value[] = {o->lr,
                    o->weight_decay,
                    j->clip,
                    o->beta1,
                    o->beta2,
                    o->eps,
                    1 - pow(o->beta1, step + 1),
                    1 - pow(o->beta2, step + 1),
                    o->momentum};
  array_list list = {0};
  for (int i = 0; i < 9; i++) {
    double *v = arena_new(a, double, 1);
    *v = value[i];
    vec_push(a, &list, (array){name[i], v, 1});
  }
  return list;
}

static pass_options options_of(const job *j) {
  pass_options o = pass_defaults();
  o.optimizer = j->optimizer.kind == OPTIMIZER_ADAMW ? OPT_ADAMW : OPT_SGD;
  o.momentum = j->optimizer.momentum != 0;
  o.nesterov = j->optimizer.nesterov;
  return o;
}

typedef struct model_run {
  arena *a;
  gen g;
  uint64_t seed;
  const char *text;
  unsigned entries;
  ir_interp *x;      // the reference
  ir_interp *moved;  // the same with weights moved by 1e-6: how far f32 may be off
  bool explodes;
  ir_module *graph;
  h_program *p;
  array_list inputs;
  const char *skip;  // passes and choices left out
  recompute_mode recompute;
  int64_t recompute_bytes;
} model_run;

// An interpreter with the drawn weights, each moved by up to `move` of itself.
static ir_interp *interp_with(model_run *r, double move) {
  ir_interp *x = ir_interp_new(r->a, r->graph);
  x->seed = r->seed;
  array_list states = states_of(r->a, r->seed, r->graph);
  for (int i = 0; i < states.n; i++) {
    array *s = &states.at[i];
    for (int64_t k = 0; k < s->n; k++)
      s->data[k] *= 1 + move * (2 * unit_of("move", r->seed, k) - 1);
    ir_interp_set_state(x, s->name, s->data, s->n);
  }
  for (int i = 0; i < r->inputs.n; i++)
    ir_interp_give(x, r->inputs.at[i].name, r->inputs.at[i].data, r->inputs.at[i].n);
  return x;
}

static const char *prepare_interp(model_run *r) {
  double t = now();
  h_text text = h_lower(r->a, r->text, NULL, NULL, r->entries);
  spent->lower += now() - t;
  if (!text.m) return arena_printf(r->a, "does not lower:\n%s", text.error);
  r->graph = text.m;
  r->inputs = inputs_of(r->a, &r->g, r->seed, ir_func_find(text.m, "train_step"));
  pass_options o = options_of(text.job);
  o.only = "differentiate,optimize";
  const char *why = pass_dead(text.m, &o);  // a weight that nobody uses is not learned
  if (!why) why = pass_run(text.m, &o);
  if (why) return arena_printf(r->a, "passes: %s", why);
  r->x = interp_with(r, 0);
  r->moved = interp_with(r, 1e-6);
  return NULL;
}

static const char *skipped(gen *g) {
  if (chance(g, 60)) return NULL;
  return ONE_OF(g, "fuse", "canonicalise", "common", "canonicalise,common", "fuse,common",
                "canonicalise,common,fuse", "frames,chains,caches,updates", "fuse,chains",
                "epilogue,updates", "buffers,hidden", "direct,strips,bands",
                "preround,tall,buffers,direct");
}

// Lowers the text again and runs the passes; `result` says what recompute did.
static const char *lower_program(model_run *r, recompute_mode mode, h_text *text,
                                 recompute_result *result) {
  *text = h_lower(r->a, r->text, NULL, NULL, r->entries);
  if (!text->m) return text->error;
  pass_options o = options_of(text->job);
  o.micro_batch = r->g.micro;
  skip_add(&o.skip, r->skip);
  o.recompute = mode;
  o.recompute_bytes = r->recompute_bytes;
  o.recomputed = result;
  double t = now();
  const char *why = pass_run(text->m, &o);
  spent->passes += now() - t;
  return why ? arena_printf(r->a, "passes: %s", why) : NULL;
}

// Half of the models recompute something; budgets lie anywhere from the least to all.
static const char *draw_recompute(model_run *r) {
  if (chance(&r->g, 50)) return NULL;
  r->recompute = (recompute_mode)between(&r->g, RECOMPUTE_SELECTIVE, RECOMPUTE_BYTES);
  if (r->recompute != RECOMPUTE_BYTES) return NULL;
  h_text text;
  recompute_result full;
  const char *why = lower_program(r, RECOMPUTE_FULL, &text, &full);
  r->recompute_bytes = full.least + (full.before - full.least) * below(&r->g, 5) / 4;
  return why;
}

static const char *make_program(model_run *r, recompute_mode mode, job **j, h_program **out) {
  h_text text;
  recompute_result result;
  const char *why = lower_program(r, mode, &text, &result);
  if (why) return why;
  if (mode == RECOMPUTE_BYTES && result.after > r->recompute_bytes) return "saves too much";
  spent->recomputed += mode != RECOMPUTE_NONE && result.ops > 0;
  *j = text.job;
  skip_set skip = 0;
  skip_add(&skip, r->skip);
  why = h_compile_for(r->a, text.m, r->g.batch, skip, device, out);
  if (why || !*out) return why;
  spent->compile += (*out)->compile_s;
  array_list states = states_of(r->a, r->seed, text.m);
  for (int i = 0; i < states.n; i++) {
    why = h_set_state(*out, states.at[i].name, states.at[i].data, states.at[i].n);
    if (why) return arena_printf(r->a, "state %s: %s", states.at[i].name, why);
  }
  return NULL;
}

static const char *prepare_program(model_run *r, job **j) {
  r->skip = skipped(&r->g);
  const char *why = draw_recompute(r);
  return why ? why : make_program(r, r->recompute, j, &r->p);
}

static const char *give_all(model_run *r, h_program *p, const prog_entry *e) {
  for (int i = 0; i < r->inputs.n; i++) {
    const array *in = &r->inputs.at[i];
    if (!prog_input(&p->p, e, in->name)) continue;
    const char *why = h_give(p, e, in->name, in->data, in->n);
    if (why) return arena_printf(r->a, "input %s: %s", in->name, why);
  }
  return NULL;
}

// What f32 is allowed: `share` of `scale`, and ten times what moving each weight by 1e-6 does.
static const char *same_values(model_run *r, const char *what, const double *got,
                               const double *want, const double *moved, int64_t n, double share,
                               double scale) {
  double shift = 0;
  for (int64_t i = 0; i < n; i++) shift = fmax(shift, fabs(moved[i] - want[i]));
  return h_compare(r->a, what, got, want, n, share, scale + 10 / share * shift);
}

static const char *same_scalar(model_run *r, const prog_entry *e, const char *name, int step) {
  double got;
  const double *want = ir_interp_output(r->x, name, NULL);
  const double *moved = ir_interp_output(r->moved, name, NULL);
  if (!want || !moved) return arena_printf(r->a, "no %s in the interpreter", name);
  const char *why = h_output(r->p, e, name, &got, 1);
  if (why) return arena_printf(r->a, "%s: %s", name, why);
  return same_values(r, arena_printf(r->a, "step %d %s", step, name), &got, want, moved, 1, 1e-4,
                     fmax(fabs(*want), 1e-4));
}

// First moments are gradients: the rule of DESIGN section 8. A gradient much smaller than the
// step's largest has been through sums of numbers of that size: 0.2 of the largest counts. The
// second step's is the gradient at weights that rounding and the optimizer have moved: 3e-3.
static const char *same_moments(model_run *r, int step) {
  double largest = 0;
  sb all = {.arena = r->a};
  for (int pass = 0; pass < 2; pass++)
    for (int i = 0; i < r->graph->states.n; i++) {
      const ir_state *s = r->graph->states.at[i];
      if (s->cls != STATE_OPTIMIZER || str_ends(s->name, ".v")) continue;
      int64_t n;
      const double *want = ir_interp_state(r->x, s->name, &n);
      const double *moved = ir_interp_state(r->moved, s->name, NULL);
      if (!want || !moved) return arena_printf(r->a, "no state %s in the interpreter", s->name);
      double scale = h_max_abs(want, n);
      if (pass == 0) {
        largest = fmax(largest, scale);
        continue;
      }
      double *got = arena_new(r->a, double, n + 1);
      const char *why = h_get_state(r->p, s->name, got, n);
      if (why) return arena_printf(r->a, "%s: %s", s->name, why);
      why = same_values(r, arena_printf(r->a, "step %d %s", step, s->name), got, want, moved, n,
                        step ? 3e-3 : 1e-4, fmax(scale, 0.2 * largest));
      if (why) sb_printf(&all, "%s%s", all.n ? "\n" : "", why);
    }
  return all.n ? sb_str(&all) : NULL;
}

static const char *steps(model_run *r, const job *j) {
  const prog_entry *e = prog_entry_of(&r->p->p, PROG_TRAIN);
  if (!e) return "no train_step in the program";
  for (int step = 0; step < 2; step++) {
    array_list args = args_of(r->a, j, step);
    for (int i = 0; i < args.n; i++) {
      ir_interp_give(r->x, args.at[i].name, args.at[i].data, 1);
      ir_interp_give(r->moved, args.at[i].name, args.at[i].data, 1);
      vm_set_arg(r->p->vm, args.at[i].name, *args.at[i].data);
    }
    r->x->step = r->moved->step = (uint64_t)step;
    double t = now();
    const char *why = ir_interp_run(r->x, "train_step");
    if (!why) why = ir_interp_run(r->moved, "train_step");
    spent->interp += now() - t;
    if (why) return arena_printf(r->a, "interp: %s", why);
    // f32 has nothing to say about such numbers: a norm squares them.
    r->explodes = !(*ir_interp_output(r->x, "grad_norm", NULL) < 1e4) || r->x->largest > 1e12;
    if (r->explodes) return NULL;
    if ((why = give_all(r, r->p, e))) return why;
    t = now();
    why = h_call(r->a, r->p, e, &(vm_step){.step = step, .seed = r->seed});
    spent->run += now() - t;
    if (why) return why;
    if ((why = same_scalar(r, e, "loss", step))) return why;
    if (j->clip == 0 && (why = same_moments(r, step))) return why;  // says which weight it is
    if ((why = same_scalar(r, e, "grad_norm", step))) return why;
    if ((why = same_moments(r, step))) return why;
  }
  return NULL;
}

// After as many steps, a program without recompute has the same bits in all states.
static const char *same_bits(model_run *r) {
  job *j;
  h_program *p = NULL;
  const char *why = make_program(r, RECOMPUTE_NONE, &j, &p);
  const prog_entry *e = why ? NULL : prog_entry_of(&p->p, PROG_TRAIN);
  for (int step = 0; step < 2 && !why; step++) {
    array_list args = args_of(r->a, j, step);
    for (int i = 0; i < args.n; i++) vm_set_arg(p->vm, args.at[i].name, *args.at[i].data);
    why = give_all(r, p, e);
    if (!why) why = h_call(r->a, p, e, &(vm_step){.step = step, .seed = r->seed});
  }
  for (int i = 0; i < r->graph->states.n && !why; i++) {
    const ir_state *s = r->graph->states.at[i];
    int64_t n = ir_elements(&s->type);
    double *a = arena_new(r->a, double, n + 1), *b = arena_new(r->a, double, n + 1);
    why = h_get_state(p, s->name, a, n);
    if (!why) why = h_get_state(r->p, s->name, b, n);
    if (!why && memcmp(a, b, sizeof *a * (size_t)n))
      why = arena_printf(r->a, "recompute changes %s", s->name);
  }
  h_close(p);
  return why;
}

static const char *evaluates(model_run *r) {
  const prog_entry *e = prog_entry_of(&r->p->p, PROG_EVAL);
  if (!e) return "no evaluate in the program";
  const char *why = ir_interp_run(r->x, "evaluate");
  if (!why) why = ir_interp_run(r->moved, "evaluate");
  if (why) return arena_printf(r->a, "interp: evaluate: %s", why);
  if ((why = give_all(r, r->p, e))) return why;
  if ((why = h_call(r->a, r->p, e, &(vm_step){0}))) return why;
  return same_scalar(r, e, "loss", 2);
}

typedef struct request {
  uint64_t seed;
  const char *text;  // instead of the seed's, with its data and sizes; NULL: the seed's
} request;

// Everything that run_model may compile, for the device.
static const char *collect(model_run *r) {
  job *j;
  h_program *none;
  const char *why = r->recompute ? make_program(r, RECOMPUTE_NONE, &j, &none) : NULL;
  if (!why && r->g.causal_only) why = decode_check(r->a, r->text, NULL, NULL, device, NULL);
  return why;
}

static const char *run_model(arena *a, void *ctx) {
  double t = now();
  const request *q = ctx;
  model_run r = {.a = a, .seed = q->seed};
  r.text = generate(&r.g, a, r.seed);
  if (q->text) r.text = q->text;
  bool eval = chance(&r.g, 25);
  r.entries = SEMA_TRAIN | (eval ? SEMA_EVAL : 0);
  job *j = NULL;
  const char *why = prepare_interp(&r);
  if (!why) why = prepare_program(&r, &j);
  if (!why && !r.p) return collect(&r);
  if (!why) why = steps(&r, j);
  if (!why && r.recompute && !r.explodes) why = same_bits(&r);
  if (!why && eval && !r.explodes) why = evaluates(&r);
  h_close(r.p);
  spent->exploded += r.explodes;
  if (!why && !r.explodes && r.g.causal_only && chance(&r.g, 50))
    why = decode_check(a, r.text, NULL, NULL, device, NULL);
  t = now() - t;
  spent->total += t;
  if (t > spent->slowest) spent->slowest = t;
  spent->n++;
  return why;
}

// ---- main ---------------------------------------------------------------------------------------

static const char *read_text(arena *a, const char *path) {
  file_map m;
  status *s = file_map_open(path, &m);
  if (s) {
    fprintf(stderr, "%s\n", s->message);
    exit(2);
  }
  return arena_strndup(a, (const char *)m.bytes, m.n);
}

typedef struct options {
  uint64_t seed;
  long count;
  bool here, print, show_times, cuda;
  const char *path;
} options;

// How many failed; nothing is said while functions are collected.
static long run_all(const options *o) {
  bool quiet = device && !device->compiled;
  long failed = 0;
  for (long k = 0; k < o->count; k++) {
    arena a;
    arena_init(&a);
    uint64_t s = o->seed + (uint64_t)k;
    gen g;
    const char *text = generate(&g, &a, s);
    request q = {.seed = s};
    if (o->path) text = q.text = read_text(&a, o->path);
    if (o->print && !quiet) printf("# seed %llu\n%s", (unsigned long long)s, text);
    const char *why = o->here ? h_inline(&a, run_model, &q) : h_isolated(&a, run_model, &q, 60);
    failed += why != NULL;
    if (why && !quiet)
      printf("FAILED seed %llu (batch %d, micro_batch %d): %s\n%s", (unsigned long long)s, g.batch,
             g.micro, why, o->print ? "" : text);
    arena_free(&a);
  }
  return failed;
}

int main(int argc, char **argv) {
  options o = {.seed = 1, .count = 60};
  for (int i = 1; i < argc; i++) {
    if (str_eq(argv[i], "--count") && i + 1 < argc)
      o.count = strtol(argv[++i], NULL, 10);
    else if (str_eq(argv[i], "--seed") && i + 1 < argc)
      o.seed = strtoull(argv[++i], NULL, 10);
    else if (str_eq(argv[i], "--here"))
      o.here = true;
    else if (str_eq(argv[i], "--print"))
      o.print = true;
    else if (str_eq(argv[i], "--text") && i + 1 < argc)
      o.path = argv[++i];
    else if (str_eq(argv[i], "--times"))
      o.show_times = true;
    else if (str_eq(argv[i], "--cuda"))
      o.cuda = true;
    else
      return fprintf(stderr,
                     "usage: %s [--count N] [--seed S] [--here] [--print] [--times] [--text FILE] "
                     "[--cuda]\n",
                     argv[0]),
             2;
  }
  if (o.cuda && emu_missing()) return puts(emu_missing()), 77;
  spent = mmap(NULL, sizeof *spent, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (spent == MAP_FAILED) return 1;
  arena own;
  arena_init(&own);
  h_device d;
  const char *broken = NULL;
  if (o.cuda) {
    broken = h_device_open(&own, &d);
    device = &d;
    if (!broken) run_all(&o);
    if (!broken) broken = h_device_compile(&own, &d);
    memset(spent, 0, sizeof *spent);
  }
  long failed = broken ? 1 : run_all(&o);
  if (broken) printf("FAILED %s\n", broken);
  if (o.cuda) h_device_close(&own, &d);
  arena_free(&own);
  if (o.show_times && spent->n)
    printf(
        "ms per model: %.1f (lower %.1f, passes %.1f, compile %.1f, interp %.1f, run %.1f); "
        "slowest %.0f\n",
        1e3 * spent->total / spent->n, 1e3 * spent->lower / spent->n,
        1e3 * spent->passes / spent->n, 1e3 * spent->compile / spent->n,
        1e3 * spent->interp / spent->n, 1e3 * spent->run / spent->n, 1e3 * spent->slowest);
  // A check that checks nothing must not look like one.
  if (o.count >= 20 && spent->exploded * 5 > o.count) {
    printf("FAILED: %d of %ld models leave the range of f32\n", spent->exploded, o.count);
    failed++;
  }
  printf("%d of %ld models left the range of f32 and were compared no further\n", spent->exploded,
         o.count);
  if (o.count >= 20 && spent->recomputed * 5 < o.count) {
    printf("FAILED: only %d of %ld models make something again\n", spent->recomputed, o.count);
    failed++;
  }
  printf("%d of %ld models make saved values again\n", spent->recomputed, o.count);
  printf("%ld passed, %ld failed\n", o.count - failed, failed);
  return failed != 0;
}
