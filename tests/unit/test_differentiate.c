// A small transformer through the whole GRAPH pipeline: the interpreter says what the forward
// function means, central differences say what its gradients are, and neither the gradients that
// `differentiate` makes nor any later pass may change that.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/expr.h"
#include "ir/interp.h"
#include "ir/print.h"
#include "ir/verify.h"
#include "passes/pass.h"
#include "runtime/base/random.h"

enum { BATCH = 2, SEQ = 3, HIDDEN = 8, HEADS = 2, KV = 1, VOCAB = 5, LAYERS = 2, FFN = 6 };

typedef struct build {
  arena a;
  ir_module *m;
  ir_builder b;
  ir_index *batch, *seq, *hidden, *vocab, *layer, *context;
} build;

static ir_value *ok(build *x, ir_op *op) {
  if (!op) fail_msg("%s", x->b.error);
  return op->out[0];
}

static ir_value *with(build *x, ir_opcode code, ir_value *v, ir_attr a) {
  return ok(x, ir_build_full(&x->b, code, &v, 1, &a, 1, NULL, 0));
}

static ir_value *einsum(build *x, const char *spec, ir_value *u, ir_value *w) {
  ir_value *in[] = {u, w};
  ir_attr a = ir_attr_s("spec", spec);
  return ok(x, ir_build_full(&x->b, IR_einsum, in, 2, &a, 1, NULL, 0));
}

static ir_value *two(build *x, ir_opcode code, ir_value *u, ir_value *v) {
  ir_value *r = ir_build2(&x->b, code, u, v);
  if (!r) fail_msg("%s", x->b.error);
  return r;
}

static ir_value *weight(build *x, const char *name, ir_index *i, ir_index *j, ir_index *k) {
  ir_type t = {.dtype = DT_f32};
  ir_index *all[] = {i, j, k};
  for (int d = 0; d < 3; d++)
    if (all[d]) t.dim[t.rank++] = all[d];
  ir_state_add(x->m, (ir_state){.name = name,
                                .type = t,
                                .stacked = i == x->layer,
                                .step = 1,
                                .init = INIT_NORMAL,
                                .init_a = 0.5,
                                .trained = true,
                                .lr_scale = 1});
  ir_attr a = ir_attr_s("name", name);
  ir_value *v = ok(x, ir_build_full(&x->b, IR_state, NULL, 0, &a, 1, NULL, 0));
  v->name = name;
  return v;
}

static ir_value *input(build *x, const char *name) {
  ir_type t = {.dtype = DT_i32, .rank = 2, .dim = {x->batch, x->seq}};
  ir_op *op = ir_op_raw(x->b.at, IR_input, NULL, 0, &t, 1);
  ir_set_attr(x->m, op, ir_attr_s("name", name));
  return op->out[0];
}

static ir_index *fresh(build *x, int64_t n) { return ir_index_new(x->m, NULL, n); }

static ir_value *layernorm(build *x, ir_value *v, ir_value *w, ir_value *b) {
  ir_value *in[] = {v, w, b};
  ir_attr eps = ir_attr_f("eps", 1e-3);
  return ok(x, ir_build_full(&x->b, IR_layernorm, in, 3, &eps, 1, NULL, 0));
}

// Attention with dropout, a causal mask and a bias that reads a table by distance and head.
static ir_value *attend(build *x, ir_value *q, ir_value *k, ir_value *v, ir_value *table) {
  const ir_dtype t[] = {DT_i32, DT_i32, DT_i32, DT_i32};
  ir_region *r[2] = {ir_expr_region(x->m, NULL, "b, h, i, j", "j <= i", t),
                     ir_region_new(x->m, NULL)};
  ir_value *a[4];
  for (int i = 0; i < 4; i++) a[i] = ir_region_arg(r[1], ir_scalar(DT_i32), NULL);
  ir_value *c = ir_region_arg(r[1], table->type, "table");
  ir_builder b = {.m = x->m, .at = r[1]};
  ir_value *y = ir_build3(&b, IR_at, c, ir_build2(&b, IR_sub, a[2], a[3]), a[1]);
  vec_push(&x->a, &r[1]->yield, y);
  ir_value *in[] = {q, k, v, table};
  ir_attr attr[] = {ir_attr_i("kv_heads", KV), ir_attr_i("rep", HEADS / KV),
                    ir_attr_f("scale", 0.5),   ir_attr_i("has_mask", 1),
                    ir_attr_i("has_bias", 1),  ir_attr_i("ncap_mask", 0),
                    ir_attr_f("drop", 0.2),    ir_attr_i("key", 6)};
  return ok(x, ir_build_full(&x->b, IR_attention, in, 4, attr, 8, r, 2));
}

static ir_value *body(build *x, ir_value *v, ir_value *const *w) {
  ir_value *n = layernorm(x, v, w[0], w[1]);
  ir_value *qkv = einsum(x, "b s i, o i -> b s o", n, w[2]);
  ir_attr slice[] = {ir_attr_i("dim", 2), ir_attr_i("start", 0), ir_attr_i("size", HIDDEN)};
  ir_value *part[3];
  for (int i = 0; i < 3; i++) {
    part[i] = ok(x, ir_build_full(&x->b, IR_slice, &qkv, 1, slice, 3, NULL, 0));
    slice[1] = ir_attr_i("start", i ? HIDDEN + HIDDEN / HEADS * KV : HIDDEN);
    slice[2] = ir_attr_i("size", HIDDEN / HEADS * KV);
  }
  ir_attr rope[] = {ir_attr_i("heads", HEADS), ir_attr_f("theta", 100), ir_attr_i("inverse", 0)};
  part[0] = ok(x, ir_build_full(&x->b, IR_rope, &part[0], 1, rope, 3, NULL, 0));
  ir_value *o = attend(x, part[0], part[1], part[2], w[5]);
  ir_attr drop[] = {ir_attr_f("p", 0.25), ir_attr_i("key", 5)};
  o = ok(x, ir_build_full(&x->b, IR_dropout, &o, 1, drop, 2, NULL, 0));
  v = two(x, IR_add, v, einsum(x, "b s i, o i -> b s o", o, w[3]));
  ir_value *in[] = {v, w[0]};
  ir_attr rms[] = {ir_attr_f("eps", 1e-3), ir_attr_i("heads", 1)};
  n = ok(x, ir_build_full(&x->b, IR_rmsnorm, in, 2, rms, 2, NULL, 0));
  ir_value *up = einsum(x, "b s i, o i -> b s o", n, w[4]);
  ir_attr parts[] = {ir_attr_i("dim", 2), ir_attr_i("parts", 2)};
  ir_op *halves = ir_build_full(&x->b, IR_split, &up, 1, parts, 2, NULL, 0);
  up = two(x, IR_mul, ir_build1(&x->b, IR_silu, ok(x, halves)), halves->out[1]);
  return two(x, IR_add, v, einsum(x, "b s o, o i -> b s i", up, w[6]));
}

static void build_model(build *x) {
  arena_init(&x->a);
  x->m = ir_module_new(&x->a, "small");
  ir_func *f = ir_func_new(x->m, "train_step", ENTRY_TRAIN);
  x->b = (ir_builder){.m = x->m, .at = f->body};
  x->batch = x->m->batch = ir_index_new(x->m, "batch", BATCH);
  x->seq = ir_index_new(x->m, "seq", SEQ);
  x->hidden = ir_index_new(x->m, "hidden", HIDDEN);
  x->vocab = ir_index_new(x->m, "vocab", VOCAB);
  x->layer = ir_index_new(x->m, "layer", LAYERS);
  ir_value *tokens = input(x, "tokens"), *targets = input(x, "targets");
  ir_value *wte = weight(x, "wte", x->vocab, x->hidden, NULL);
  ir_value *wpe = weight(x, "wpe", fresh(x, SEQ + 2), x->hidden, NULL);
  ir_value *rel = weight(x, "rel", fresh(x, SEQ), fresh(x, HEADS), NULL);
  ir_index *qkv = fresh(x, HIDDEN + 2 * KV * HIDDEN / HEADS), *ffn = fresh(x, 2 * FFN);
  ir_value *stack[] = {weight(x, "h.#.ln.w", x->layer, x->hidden, NULL),
                       weight(x, "h.#.ln.b", x->layer, x->hidden, NULL),
                       weight(x, "h.#.qkv", x->layer, qkv, x->hidden),
                       weight(x, "h.#.proj", x->layer, x->hidden, fresh(x, HIDDEN)),
                       weight(x, "h.#.up", x->layer, ffn, x->hidden),
                       weight(x, "h.#.down", x->layer, fresh(x, FFN), x->hidden)};
  ir_value *v = ir_build2(&x->b, IR_gather, wte, tokens);
  ir_attr slice[] = {ir_attr_i("dim", 0), ir_attr_i("start", 0), ir_attr_i("size", SEQ)};
  v = two(x, IR_add, v, ok(x, ir_build_full(&x->b, IR_slice, &wpe, 1, slice, 3, NULL, 0)));

  ir_builder outer = x->b;
  x->b.at = ir_region_new(x->m, NULL);
  ir_region_arg(x->b.at, ir_scalar(DT_i32), "layer");
  ir_value *carried = ir_region_arg(x->b.at, v->type, "x"), *w[7], *in[8] = {v};
  for (int i = 0; i < 6; i++) {
    ir_type t = stack[i]->type;
    t.rank--;
    memmove(t.dim, t.dim + 1, sizeof *t.dim * (size_t)t.rank);
    w[i + (i == 5)] = ir_region_arg(x->b.at, t, stack[i]->name);
    in[i + 1] = stack[i];
  }
  w[5] = ir_region_arg(x->b.at, rel->type, "rel");
  in[7] = rel;
  vec_push(&x->a, &x->b.at->yield, body(x, carried, w));
  ir_region *r = x->b.at;
  x->b = outer;
  ir_attr loop[] = {ir_attr_i("count", LAYERS), ir_attr_i("carried", 1), ir_attr_i("stacked", 6),
                    ir_attr_i("reverse", 0),    ir_attr_i("first", 0),   ir_attr_i("step", 1)};
  v = ok(x, ir_build_full(&x->b, IR_repeat, in, 8, loop, 6, &r, 1));

  // Tied head, mean over the targets that count.
  ir_value *logits = einsum(x, "b s i, v i -> b s v", v, wte);
  ir_value *both[] = {logits, targets};
  ir_attr ignore[] = {ir_attr_i("ignore", -100), ir_attr_i("has_ignore", 1)};
  ir_value *nll = ok(x, ir_build_full(&x->b, IR_nll, both, 2, ignore, 2, NULL, 0));
  const int64_t axes[] = {0, 1};
  ir_value *sum = with(x, IR_sum, nll, ir_attr_v("axes", axes, 2));
  ir_value *valid = two(x, IR_ne, targets, ir_const(&x->b, DT_i32, -100));
  valid = with(x, IR_sum, with(x, IR_cast, valid, ir_attr_s("dtype", "f32")),
               ir_attr_v("axes", axes, 2));
  with(x, IR_output, nll, ir_attr_s("name", "nll"));
  ir_value *loss = two(x, IR_div, sum, valid);
  ir_attr name = ir_attr_s("name", "loss");
  ir_build_full(&x->b, IR_output, &loss, 1, &name, 1, NULL, 0);
}

// The same module for every run: what passes do must not show.
static ir_interp *interpret(build *x) {
  ir_interp *it = ir_interp_new(&x->a, x->m);
  double tokens[BATCH * SEQ], targets[BATCH * SEQ], data[1024];
  for (int i = 0; i < BATCH * SEQ; i++) tokens[i] = i * 3 % VOCAB, targets[i] = i * 2 % VOCAB;
  targets[2] = -100;
  ir_interp_give(it, "tokens", tokens, BATCH * SEQ);
  ir_interp_give(it, "targets", targets, BATCH * SEQ);
  for (int s = 0; s < x->m->states.n; s++) {
    int64_t n = ir_elements(&x->m->states.at[s]->type);
    for (int64_t i = 0; i < n; i++)
      data[i] = (double)base_draw(1, 0, 0, 0, (uint64_t)s, (uint64_t)i) / 4294967296.0 - 0.5;
    if (x->m->states.at[s]->cls == STATE_WEIGHT)
      ir_interp_set_state(it, x->m->states.at[s]->name, data, n);
  }
  it->seed = 3;
  return it;
}

static double loss_of(ir_interp *it) {
  const char *bad = ir_interp_run(it, "train_step");
  if (bad) fail_msg("%s", bad);
  return *ir_interp_output(it, "loss", NULL);
}

static void run_passes(build *x, const char *only) {
  pass_options o = pass_defaults();
  o.only = only;
  const char *bad = ir_verify(x->m);
  if (bad) fail_msg("%s\n%s", bad, ir_print(x->m, &x->a));
  bad = pass_run(x->m, &o);
  if (bad) fail_msg("%s", bad);
}

static void gradients(void **state) {
  (void)state;
  build x;
  build_model(&x);
  double before = loss_of(interpret(&x));
  run_passes(&x, "canonicalise,common,dead,differentiate");
  ir_interp *it = interpret(&x);
  assert_true(fabs(loss_of(it) - before) < 1e-12);
  double largest = 0;
  for (int s = 0; s < x.m->states.n; s++) {
    const char *name = x.m->states.at[s]->name;
    int64_t n;
    const double *g = ir_interp_output(it, arena_printf(&x.a, "grad:%s", name), &n);
    if (!g) fail_msg("no gradient of %s", name);
    assert_int_equal(n, ir_elements(&x.m->states.at[s]->type));
    double got[1024], *w = arena_new(&x.a, double, n);
    memcpy(got, g, sizeof(double) * (size_t)n);
    memcpy(w, ir_interp_state(it, name, NULL), sizeof(double) * (size_t)n);
    for (int64_t i = 0; i < n; i += n > 40 ? 5 : 1) {
      double keep = w[i], at[2];
      for (int k = 0; k < 2; k++) {
        w[i] = keep + (k ? 1e-5 : -1e-5);
        ir_interp_set_state(it, name, w, n);
        at[k] = loss_of(it);
      }
      w[i] = keep;
      double numeric = (at[1] - at[0]) / 2e-5;
      if (fabs(numeric - got[i]) > 1e-7 * (1 + fabs(numeric)))
        fail_msg("d loss / d %s[%d]: %.10g, not %.10g", name, (int)i, got[i], numeric);
      largest = fmax(largest, fabs(numeric));
    }
    ir_interp_set_state(it, name, w, n);
    loss_of(it);
  }
  assert_true(largest > 0.01);
  arena_free(&x.a);
}

// The text of the differentiated module is the module.
static void text_of_gradients(void **state) {
  (void)state;
  build x;
  build_model(&x);
  run_passes(&x, "canonicalise,common,dead,differentiate");
  const char *text = ir_print(x.m, &x.a), *error;
  ir_module *again = ir_parse(&x.a, text, strlen(text), &error);
  if (!again) fail_msg("%s\n%s", error, text);
  assert_string_equal(ir_print(again, &x.a), text);
  const char *bad = ir_verify(again);
  if (bad) fail_msg("%s\n%s", bad, text);
  double loss = loss_of(interpret(&x));
  x.m = again;
  assert_true(loss_of(interpret(&x)) == loss);
  arena_free(&x.a);
}

// All passes down to LOCAL, the verifier after each, with the text read back; loss and updated
// weights stay those of the plain GRAPH. The interpreter runs LOCAL as one micro-batch.
static void whole_pipeline(void **state) {
  (void)state;
  build x;
  const char *graph = "differentiate,optimize",
             *names[] = {"lr", "beta1", "beta2", "eps", "clip", "weight_decay", "bias1", "bias2"};
  const double args[] = {0.1, 0.9, 0.99, 1e-8, 0.5, 0.1, 0.1, 0.01};
  double loss[2], *after[2];
  int64_t n = 0;
  for (int run = 0; run < 2; run++) {
    build_model(&x);
    run_passes(&x, run ? NULL : graph);
    const char *text = ir_print(x.m, &x.a), *error;
    ir_module *again = ir_parse(&x.a, text, strlen(text), &error);
    if (!again) fail_msg("%s\n%s", error, text);
    assert_string_equal(ir_print(again, &x.a), text);
    const char *bad = ir_verify(again);
    if (bad) fail_msg("%s\n%s", bad, text);
    ir_interp *it = interpret(&x);
    for (int i = 0; i < 8; i++) ir_interp_give(it, names[i], &args[i], 1);
    loss[run] = loss_of(it);
    after[run] = malloc(sizeof(double) * 4096);
    n = 0;
    for (int s = 0; s < x.m->states.n; s++) {
      int64_t k;
      const double *w = ir_interp_state(it, x.m->states.at[s]->name, &k);
      if (x.m->states.at[s]->cls != STATE_WEIGHT) continue;
      memcpy(after[run] + n, w, sizeof(double) * (size_t)k);
      n += k;
    }
    arena_free(&x.a);
  }
  assert_true(fabs(loss[0] - loss[1]) < 1e-12);
  for (int64_t i = 0; i < n; i++)
    if (fabs(after[0][i] - after[1][i]) > 1e-9)
      fail_msg("weight element %d: %g, %g", (int)i, after[0][i], after[1][i]);
  free(after[0]);
  free(after[1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(gradients),
                                     cmocka_unit_test(text_of_gradients),
                                     cmocka_unit_test(whole_pipeline)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
