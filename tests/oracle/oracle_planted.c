// Bugs planted in generated CUDA kernels: the emulation or the comparison must see them.
//
//   oracle_planted [--keep] [MODEL...]
//
// Each model below is lowered; then, in the text of each of its functions, one thing is made wrong:
// a barrier left out, a bound off by one, an operand of mma taken from the wrong place, a store to
// shared memory left out, a store moved by one element. The model runs once with each such
// function. What passes all the same is printed: a barrier that nothing needs, a bound that is
// never met. But of each kind that a model's functions have room for, it must see the share that
// stands beside it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/oracle/emulated.h"
#include "tests/oracle/op_case.h"

// Every place of a function's text where `from` stands can become `to`.
typedef struct bug {
  const char *what, *from, *to;
  int percent;  // at least so many must be seen
} bug;
static const bug bugs[] = {
    {"a barrier left out", "d_barrier();", "", 50},
    {"a bound too large by one", " < a.number[", " <= a.number[", 50},
    {"a bound too small by one", " < a.number[", " + 1 < a.number[", 75},
    {"a wrong lane's fragment", ", y[0], y[1], d_", ", y[1], y[0], d_", 100},
    {"rows of fragments from the wrong lanes", "low = tid & 7", "low = tid & 3", 100},
    {"a store to shared memory left out", "d_shared_store<", "if (tid < 0) d_shared_store<", 90},
    {"a store moved by one element", "d_store(b", "d_store(1 + b", 100},
};
enum { BUGS = sizeof bugs / sizeof *bugs, MAX_PLACES = 12 };

typedef struct op_model {
  const char *name, *text;
  bool bf16;
} op_model;
static const op_model models[] = {
    {"product",
     "model op {\n  input a : f32[70, 37]\n  input b : f32[37, 45]\n  output y = matmul(a, b)\n}\n",
     false},
    {"product_bf16",
     "model op {\n  input a : f32[70, 44]\n  input b : f32[44, 90]\n  output y = matmul(a, b)\n}\n",
     true},
    {"rows",
     "model op {\n  input x : f32[5, 203]\n  output y = softmax(layernorm(x, bias=true) as p)\n}\n",
     false},
    {"attention",
     "model op {\n  input q : f32[1, 37, 20]\n  input k : f32[1, 37, 20]\n"
     "  input v : f32[1, 37, 20]\n  output y = attention(q, k, v, heads=2, mask=causal)\n}\n",
     false},
    {"attention_bf16",
     "model op {\n  input q : f32[1, 37, 20]\n  input k : f32[1, 37, 20]\n"
     "  input v : f32[1, 37, 20]\n  output y = attention(q, k, v, heads=2, mask=causal)\n}\n",
     true},
};
enum { MODELS = sizeof models / sizeof *models };

typedef struct request {
  const op_model *m;
  const h_device *device;
} request;

static const char *run_model(arena *a, void *ctx) {
  const request *q = ctx;
  double tolerance = q->m->bf16 ? 2e-2 : 1e-5;
  op_case c = {.name = q->m->name,
               .a = a,
               .dsm = q->m->text,
               .sets = q->m->bf16 ? "batch=1,steps=1,precision=bf16" : "batch=1,steps=1",
               .forward = tolerance,
               .gradient = tolerance,
               .share = 1e-3,
               .device = q->device};
  const char *why = oc_draw(&c, 7, NULL, 0);
  if (!why && q->device->compiled) why = oc_reference(&c);
  if (!why) why = oc_forward(&c);
  if (!why) why = oc_gradients(&c);
  return why;
}

// ---- planting -----------------------------------------------------------------------------------

typedef struct planted {
  const char *victim, *symbol;
  const bug *b;
  int line;
} planted;
typedef struct planted_list {
  VEC(planted) l;
} planted_list;

// The text with the change at `at`, under a name of its own.
static const char *changed(arena *a, const char *text, const char *at, const bug *b,
                           const char *symbol) {
  const char *head = strchr(text, ',');
  return arena_printf(a, "D_KERNEL(%s%.*s%s%s", symbol, (int)(at - head), head, b->to,
                      at + strlen(b->from));
}

static const char *plant(arena *a, const h_device *d, const char *victim, const bug *b,
                         planted_list *out) {
  const char *text = h_device_text(a, d, victim);
  if (!text) return "a function is gone";
  const char *at = strchr(text, ',');
  for (int k = 0; (at = strstr(at, b->from)) && k < MAX_PLACES; at++, k++) {
    planted p = {.victim = victim, .b = b, .line = 1};
    for (const char *c = text; c < at; c++) p.line += *c == '\n';
    p.symbol = arena_printf(a, "%s_bug%d_%d", victim, (int)(b - bugs), k);
    const char *why = h_device_add(a, d, p.symbol, changed(a, text, at, b, p.symbol));
    if (why) return why;
    vec_push(a, &out->l, p);
  }
  return NULL;
}

static const char *plant_all(arena *a, const h_device *d, planted_list *out) {
  const char *const *symbol;
  int n = h_device_functions(a, d, &symbol);
  const char *why = NULL;
  for (int i = 0; i < n && !why; i++)
    for (int k = 0; k < BUGS && !why; k++) why = plant(a, d, symbol[i], &bugs[k], out);
  return why;
}

// ---- seeing -------------------------------------------------------------------------------------

static const char *first_line(arena *a, const char *text) {
  const char *end = strchr(text, '\n');
  return end ? arena_strndup(a, text, (size_t)(end - text)) : text;
}

static int count_seen(const op_model *m, const int *tried, const int *seen) {
  int failed = 0;
  for (int k = 0; k < BUGS; k++) {
    if (!tried[k]) continue;
    bool enough = 100 * seen[k] >= bugs[k].percent * tried[k];
    printf("%s %s: %s: %d of %d seen\n", enough ? "ok" : "FAILED", m->name, bugs[k].what, seen[k],
           tried[k]);
    failed += !enough;
  }
  return failed;
}

static int check_model(arena *a, const op_model *m, bool keep) {
  h_device d;
  request q = {m, &d};
  planted_list bad = {0};
  int tried[BUGS] = {0}, seen[BUGS] = {0};
  const char *why = h_device_open(a, &d);
  if (!why) why = h_isolated(a, run_model, &q, 60);
  if (!why) why = plant_all(a, &d, &bad);
  if (!why) why = h_device_compile(a, &d);
  if (!why) why = h_isolated(a, run_model, &q, 60);  // the functions as they are
  if (why) printf("FAILED %s: %s\n", m->name, why);
  for (int i = 0; i < bad.l.n && !why; i++) {
    const planted *p = &bad.l.at[i];
    d.victim = p->victim;
    d.instead = p->symbol;
    const char *said = h_isolated(a, run_model, &q, 60);
    tried[p->b - bugs]++;
    seen[p->b - bugs] += said != NULL;
    printf("   %s, line %d of %s: %s\n", p->b->what, p->line, p->victim,
           said ? first_line(a, said) : "NOT SEEN");
  }
  if (keep)
    printf("functions are in %s\n", d.dir);
  else
    h_device_close(a, &d);
  return why ? 1 : count_seen(m, tried, seen);
}

int main(int argc, char **argv) {
  if (emu_missing()) return puts(emu_missing()), 77;
  arena a;
  arena_init(&a);
  bool keep = argc > 1 && str_eq(argv[1], "--keep");
  int failed = 0;
  for (int i = 0; i < MODELS; i++) {
    bool wanted = argc == 1 + keep;
    for (int k = 1 + keep; k < argc; k++) wanted |= str_eq(argv[k], models[i].name);
    if (wanted) failed += check_model(&a, &models[i], keep);
  }
  arena_free(&a);
  return failed != 0;
}
