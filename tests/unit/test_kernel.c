// Kernels: our polynomials against libm, dots of awkward shapes, and every builder against the
// float64 interpreter on odd shapes and odd views. Each kernel runs as one range of cells, then
// cell by cell from the last to the first, then so again for a CPU with narrow vectors: the bits
// must be equal (of products that round to bf16, those of the first two).
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernel_fixture.h"

// ---- elementwise -------------------------------------------------------------------------------

// n elements, `width` in a cell.
static k_kernel *unary_kernel(arena *a, ir_opcode op, int n, int width) {
  k_kernel *k = k_new(a, ir_info(op)->name);
  int x = k_buffer(k, "x", DT_f32, K_READ), y = k_buffer(k, "y", DT_f32, K_WRITE);
  k_access at = {.buffer = x, .base = k_muli(k, k_grid(k, n / width), width), .col_stride = 1};
  k_value *v = k_scalar(k, op, k_load(k, 1, width, at), NULL, NULL);
  at.buffer = y;
  k_store(k, v, at);
  k_finish(k);
  return k;
}

// Every function on values of all magnitudes, within `ulp` units in the last place or `absolute`,
// and the same bits whether vectors of 16 lanes, of 8 or single numbers are computed.
static void polynomials(void **state) {
  (void)state;
  enum { N = 1 << 15, FUNCTIONS = 8 };
  static const struct {
    ir_opcode op;
    double (*f)(double);
    double ulp, absolute, largest;
  } row[FUNCTIONS] = {{IR_exp, exp, 1.5, 0, 1e30},    {IR_log, log, 1.5, 0, 1e38},
                      {IR_tanh, tanh, 3, 0, 1e30},    {IR_erf, erf, 2, 0, 1e30},
                      {IR_sin, sin, 0, 1.5e-7, 1e4},  {IR_cos, cos, 0, 1.5e-7, 1e4},
                      {IR_sqrt, sqrt, 0.51, 0, 1e38}, {IR_floor, floor, 0.1, 0, 1e30}};
  static const float special[] = {0.0f,    -0.0f,   INFINITY, -INFINITY, NAN,    80,
                                  -80,     1e-40f,  -1e-40f,  88.72f,    88.73f, -87.4f,
                                  -103.9f, -104.2f, 1,        0.5f,      3e38f};
  fixture x = {0};
  begin(&x);
  static const int width[] = {256, 8, 1};
  k_kernel *k[3 * FUNCTIONS];
  for (int i = 0; i < 3 * FUNCTIONS; i++) k[i] = unary_kernel(&x.a, row[i / 3].op, N, width[i % 3]);
  cg_image image;
  assert_null(cg_compile_kernels(&x.a, k, 3 * FUNCTIONS, NULL, &image));
  unsigned char *code = map_code(&image);
  float *in = arena_new(&x.a, float, N), *out = arena_new(&x.a, float, N);
  float *narrow = arena_new(&x.a, float, N);
  for (int i = 0; i < FUNCTIONS; i++) {
    for (int j = 0; j < N; j++) {
      double v = pow(10, draw(&x) * 5) * (draw(&x) < 0 ? -1 : 1) * (j % 3 ? 1 : 20);
      if (j % 4 == 0) v = draw(&x) * 100;
      if (fabs(v) > row[i].largest) v = draw(&x);
      in[j] = (float)v;
    }
    memcpy(in, special, sizeof special);
    unsigned char *buf[] = {(unsigned char *)in, (unsigned char *)out};
    entry(code, image.offset[3 * i])(buf, &x.call, 0, N / width[0]);
    for (int w = 1; w < 3; w++) {
      unsigned char *other[] = {(unsigned char *)in, (unsigned char *)narrow};
      entry(code, image.offset[3 * i + w])(other, &x.call, 0, N / width[w]);
      assert_memory_equal(out, narrow, N * sizeof *out);
    }
    for (int j = 0; j < N; j++) {
      double want = row[i].f((double)in[j]), got = (double)out[j];
      float w = (float)want;
      if (isnan(want) || isinf(w)) {
        if (!(isnan(want) ? isnan(got) : got == (double)w))
          fail_msg("%s(%g) = %g", ir_info(row[i].op)->name, (double)in[j], got);
        continue;
      }
      if (fabs((double)in[j]) > row[i].largest) continue;
      double unit = w == 0 ? 0x1p-149 : fmax(ldexp(1, ilogb(w) - 23), 0x1p-149);
      if (fabs(got - want) > fmax(row[i].ulp * unit, row[i].absolute))
        fail_msg("%s(%.9g) = %.9g, not %.9g", ir_info(row[i].op)->name, (double)in[j], got, want);
    }
  }
  munmap(code, (size_t)image.n + 1);
  end(&x);
}

static void elementwise(void **state) {
  (void)state;
  static const ir_opcode two[] = {IR_add, IR_sub, IR_mul, IR_div,      IR_max,
                                  IR_min, IR_lt,  IR_ge,  IR_floordiv, IR_mod};
  static const ir_opcode one[] = {IR_sigmoid, IR_relu, IR_silu, IR_gelu, IR_gelu_tanh, IR_softplus,
                                  IR_square,  IR_neg,  IR_abs,  IR_exp,  IR_tanh,      IR_erf};
  fixture x = {0};
  begin(&x);
  for (size_t i = 0; i < sizeof two / sizeof *two; i++) {
    ir_value *in[] = {VIEW(&x, 3, 5, 17), i % 2 ? VIEW(&x, 3, 5, 17) : VIEW(&x, 5, 1)};
    bool jumps = two[i] == IR_floordiv || two[i] == IR_mod;
    if (jumps) in[0] = INPUT(&x, DT_i32, 50, 3, 5, 17), in[1] = INPUT(&x, DT_i32, 7, 17);
    if (jumps) in[1] = ir_build2(&x.b, IR_add, in[1], ir_const(&x.b, DT_i32, 1));
    check(&x, make(&x, two[i], in, 2, NULL, 0, NULL, 0)->out[0],
          two[i] == IR_lt || two[i] == IR_ge ? 0 : 1e-6);
  }
  for (size_t i = 0; i < sizeof one / sizeof *one; i++) {
    ir_value *v = VIEW(&x, 7, 33);
    check(&x, make(&x, one[i], &v, 1, NULL, 0, NULL, 0)->out[0], 1e-6);
  }
  ir_value *in[] = {VIEW(&x, 4, 100), VIEW(&x, 100)}, *base[] = {NULL, ir_const(&x.b, DT_f32, 2.5)};
  base[0] = ir_build1(&x.b, IR_abs, in[0]);
  check(&x, make(&x, IR_pow, base, 2, NULL, 0, NULL, 0)->out[0], 1e-6);
  const ir_dtype t[] = {DT_f32, DT_f32};
  ir_region *r = ir_expr_region(x.m, NULL, "p, q", "where(p < q, silu(p) * q, p), p < q", t);
  ir_op *both = make(&x, IR_map, in, 2, NULL, 0, &r, 1);
  check(&x, both->out[0], 1e-6);
  check(&x, both->out[1], 0);
  ir_attr to = ir_attr_s("dtype", "bf16");
  ir_value *half = make(&x, IR_cast, &in[0], 1, &to, 1, NULL, 0)->out[0];
  check(&x, half, 4e-3);
  check(&x, ir_build2(&x.b, IR_add, half, in[1]), 4e-3);
  run(&x);
  end(&x);
}

static void dropout(void **state) {
  (void)state;
  fixture x = {0};
  begin(&x);
  x.call = (dsm_call){.step = 3, .seed = 7};
  ir_value *v = INPUT(&x, DT_f32, 0, 4, 6, 37);
  x.m->batch = v->type.dim[1];
  ir_attr a[] = {ir_attr_f("p", 0.25), ir_attr_i("key", 9900000000123)};
  check(&x, make(&x, IR_dropout, &v, 1, a, 2, NULL, 0)->out[0], 1e-6);
  ir_value *w = INPUT(&x, DT_f32, 0, 4, 37);
  check(&x, make(&x, IR_dropout, &w, 1, a, 2, NULL, 0)->out[0], 1e-6);
  run(&x);
  end(&x);
}

// ---- products and sums -------------------------------------------------------------------------

static void products(void **state) {
  (void)state;
  static const int64_t size[] = {1, 2, 3, 7, 16, 31, 64, 67, 130};
  fixture x = {0};
  for (int turn = 0; turn < 24; turn++) {
    begin(&x);
    int64_t m = size[below(&x, 9)], n = size[below(&x, 9)], k = size[below(&x, 9)];
    ir_value *in[] = {VIEW(&x, m, k), VIEW(&x, n, k)};
    ir_attr s = ir_attr_s("spec", "m k, n k -> m n");
    check(&x, make(&x, IR_einsum, in, 2, &s, 1, NULL, 0)->out[0], 1e-5);
    in[1] = VIEW(&x, k, n);
    s = ir_attr_s("spec", "m k, k n -> m n");
    check(&x, make(&x, IR_einsum, in, 2, &s, 1, NULL, 0)->out[0], 1e-5);
    in[0] = VIEW(&x, k, m);
    s = ir_attr_s("spec", "k m, k n -> n m");
    check(&x, make(&x, IR_einsum, in, 2, &s, 1, NULL, 0)->out[0], 1e-5);
    run(&x);
    end(&x);
  }
  begin(&x);
  static const char *const spec[] = {"b s k, n k -> b s n", "b s n, b s k -> n k",
                                     "b h i d, b h j d -> b h i j", "b s h d, d h n -> b s n",
                                     "i j, k -> i k j"};
  ir_value *in[5][2] = {{VIEW(&x, 3, 5, 40), VIEW(&x, 24, 40)},
                        {VIEW(&x, 3, 5, 24), VIEW(&x, 3, 5, 40)},
                        {VIEW(&x, 2, 3, 5, 8), VIEW(&x, 2, 3, 9, 8)},
                        {VIEW(&x, 2, 5, 3, 8), VIEW(&x, 8, 3, 20)},
                        {VIEW(&x, 4, 6), VIEW(&x, 5)}};
  for (int i = 0; i < 5; i++) {
    ir_attr s = ir_attr_s("spec", spec[i]);
    check(&x, make(&x, IR_einsum, in[i], 2, &s, 1, NULL, 0)->out[0], 1e-5);
  }
  ir_value *one = VIEW(&x, 3, 4, 5);
  ir_attr s = ir_attr_s("spec", "a b c -> c a");
  check(&x, make(&x, IR_einsum, &one, 1, &s, 1, NULL, 0)->out[0], 1e-5);
  run(&x);
  end(&x);
}

static void reductions(void **state) {
  (void)state;
  static const int64_t axes[][3] = {{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}, {0, 1, 2}};
  static const int count[] = {1, 1, 1, 2, 2, 2, 3};
  fixture x = {0};
  begin(&x);
  for (int i = 0; i < 14; i++) {
    ir_value *v = i < 7 ? VIEW(&x, 3, 5, 41) : VIEW(&x, 40, 2, 3);
    ir_attr a[] = {ir_attr_v("axes", axes[i % 7], count[i % 7]), ir_attr_i("keep", i & 1)};
    check(&x, make(&x, i % 3 == 2 ? IR_reduce_max : IR_sum, &v, 1, a, 2, NULL, 0)->out[0], 1e-5);
  }
  ir_value *v = VIEW(&x, 6, 77), *whole = INPUT(&x, DT_i32, 9, 12, 50), *big = VIEW(&x, 300, 400);
  check(&x, make(&x, IR_lse, &v, 1, NULL, 0, NULL, 0)->out[0], 1e-6);
  ir_attr all = ir_attr_v("axes", axes[3], 2);
  check(&x, make(&x, IR_sum, &whole, 1, &all, 1, NULL, 0)->out[0], 0);
  check(&x, make(&x, IR_sum, &big, 1, &all, 1, NULL, 0)->out[0], 1e-4);
  ir_attr first = ir_attr_v("axes", axes[0], 1);
  check(&x, make(&x, IR_sum, &big, 1, &first, 1, NULL, 0)->out[0], 1e-5);
  run(&x);
  end(&x);
}

// ---- rows --------------------------------------------------------------------------------------

// A view has no storage of its own that could be written over: there is a size without.
static ir_value *cube(fixture *x, int64_t n) {
  return n == 33 ? INPUT(x, DT_f32, 0, 3, 5, n) : VIEW(x, 3, 5, n);
}

static void rows_of(int64_t n, int overwritten[IR_OPCODE_COUNT]) {
  fixture x = {0};
  begin(&x);
  // A view has no storage of its own to be written over: one size without.
  ir_value *v = n == 33 ? INPUT(&x, DT_f32, 0, 3, 5, n) : VIEW(&x, 3, 5, n), *g = VIEW(&x, 3, 5, n),
           *w = VIEW(&x, n), *bias = VIEW(&x, n);
  ir_value *y = make(&x, IR_softmax, &v, 1, NULL, 0, NULL, 0)->out[0], *in[5] = {g, y};
  check(&x, y, 2e-6);
  check(&x, make(&x, IR_softmax_grad, in, 2, NULL, 0, NULL, 0)->out[0], 1e-5);
  ir_attr a[] = {ir_attr_f("eps", 1e-5), ir_attr_i("heads", 1)};
  in[0] = v, in[1] = w, in[2] = bias;
  ir_op *ln = make(&x, IR_layernorm, in, 3, a, 1, NULL, 0);
  for (int i = 0; i < 3; i++) check(&x, ln->out[i], 1e-5);
  in[0] = g, in[1] = v, in[2] = w, in[3] = ln->out[1], in[4] = ln->out[2];
  check(&x, make(&x, IR_layernorm_grad, in, 5, NULL, 0, NULL, 0)->out[0], 1e-5);
  in[2] = ln->out[1], in[3] = ln->out[2];
  ir_op *gw = make(&x, IR_layernorm_grad_w, in, 4, NULL, 0, NULL, 0);
  for (int i = 0; i < 2; i++) check(&x, gw->out[i], 1e-5);
  for (int64_t heads = 1; heads <= 3; heads += 2) {
    if (n % heads) continue;
    ir_value *hw = VIEW(&x, n / heads);
    a[1] = ir_attr_i("heads", heads);
    in[0] = cube(&x, n), in[1] = hw;
    ir_op *rms = make(&x, IR_rmsnorm, in, 2, a, 2, NULL, 0);
    for (int i = 0; i < 2; i++) check(&x, rms->out[i], 1e-5);
    ir_value *rin[] = {g, in[0], hw, rms->out[1]};
    check(&x, make(&x, IR_rmsnorm_grad, rin, 4, a + 1, 1, NULL, 0)->out[0], 1e-5);
    rin[2] = rms->out[1];
    check(&x, make(&x, IR_rmsnorm_grad_w, rin, 3, a + 1, 1, NULL, 0)->out[0], 1e-5);
  }
  ir_value *logits = cube(&x, n), *target = INPUT(&x, DT_i32, (double)n, 3, 5),
           *lg = VIEW(&x, 3, 5);
  ir_attr ig[] = {ir_attr_i("ignore", 1), ir_attr_i("has_ignore", 1)};
  ir_value *pair[] = {logits, target};
  ir_op *nll = make(&x, IR_nll, pair, 2, ig, 2, NULL, 0);
  check(&x, nll->out[0], 1e-6);
  check(&x, nll->out[1], 1e-6);
  ir_value *nin[] = {lg, logits, target, nll->out[1]};
  check(&x, make(&x, IR_nll_grad, nin, 4, ig, 2, NULL, 0)->out[0], 1e-5);
  if (n <= 256) {
    ir_attr at[] = {ir_attr_i("kv_heads", 1), ir_attr_i("rep", 1),      ir_attr_f("scale", 0.6),
                    ir_attr_i("has_mask", 0), ir_attr_i("has_bias", 0), ir_attr_i("ncap_mask", 0)};
    ir_value *o = n == 33 ? VIEW(&x, 3, 5, n) : INPUT(&x, DT_f32, 0, 3, 5, n),
             *ain[] = {o, VIEW(&x, 3, 1, 5), VIEW(&x, 3, 5, n), VIEW(&x, 3, 7, n),
                       VIEW(&x, 3, 7, n)};
    ir_op *next = make(&x, IR_attention_next, ain, 5, at, 6, NULL, 0);
    for (int i = 0; i < 2; i++) check(&x, next->out[i], 1e-5);
  }
  run(&x);
  for (int i = 0; i < IR_OPCODE_COUNT; i++) overwritten[i] += x.overwritten[i];
  end(&x);
}

static void rows(void **state) {
  (void)state;
  static const int64_t n[] = {3, 12, 33, 96, 5001};
  int overwritten[IR_OPCODE_COUNT] = {0};
  for (size_t i = 0; i < sizeof n / sizeof *n; i++) rows_of(n[i], overwritten);
  for (int i = 0; i < IR_OPCODE_COUNT; i++)  // what the op table says was tried
    if (strstr(ir_info((ir_opcode)i)->kinds, "over:") && !overwritten[i])
      fail_msg("%s was never written over an operand", ir_info((ir_opcode)i)->name);
}

static void many_rows(void **state) {
  (void)state;
  fixture x = {0};
  begin(&x);
  ir_value *in[] = {VIEW(&x, 700, 40), VIEW(&x, 700, 40), VIEW(&x, 700), VIEW(&x, 700)};
  ir_op *gw = make(&x, IR_layernorm_grad_w, in, 4, NULL, 0, NULL, 0);
  for (int i = 0; i < 2; i++) check(&x, gw->out[i], 1e-5);
  run(&x);
  end(&x);
}

// ---- tables and movement -----------------------------------------------------------------------

static void tables(void **state) {
  (void)state;
  fixture x = {0};
  begin(&x);
  for (int turn = 0; turn < 3; turn++) {
    ir_value *in[] = {VIEW(&x, 19, turn == 1 ? 130 : 21), INPUT(&x, DT_i32, 19, 4, 9)};
    check(&x, make(&x, IR_gather, in, 2, NULL, 0, NULL, 0)->out[0], 0);
    ir_value *g[] = {VIEW(&x, 4, 9, 21), in[1]};
    ir_attr n = ir_attr_i("rows", 70);
    check(&x, make(&x, IR_scatter_add, g, 2, &n, 1, NULL, 0)->out[0], 1e-6);
    ir_value *v = VIEW(&x, 2, 11, 24);
    ir_attr r[] = {ir_attr_i("heads", 3), ir_attr_f("theta", 100), ir_attr_i("inverse", turn == 1),
                   ir_attr_i("past", turn == 2)};
    check(&x, make(&x, IR_rope, &v, 1, r, 4, NULL, 0)->out[0], 1e-6);
    ir_value *c[] = {VIEW(&x, 3, 4, 5), VIEW(&x, 3, 4, 5), VIEW(&x, 3, 4, 5)};
    ir_attr d[] = {ir_attr_i("dim", turn), ir_attr_i("before", 2), ir_attr_i("after", turn)};
    check(&x, make(&x, IR_concat, c, 3, d, 1, NULL, 0)->out[0], 0);
    check(&x, make(&x, IR_join, c, 3, d, 1, NULL, 0)->out[0], 0);
    check(&x, make(&x, IR_pad, c, 1, d, 3, NULL, 0)->out[0], 0);
  }
  x.call.past = 1000;
  run(&x);
  end(&x);
}

// ---- attention ---------------------------------------------------------------------------------

typedef struct attention_case {
  int64_t batch, s, t, kv, rep, d, v;
  const char *mask,
      *bias;  // over b, h, i, j, and l = length[b], e = table[i - j + 3, h], c = slope
  int64_t past;
} attention_case;

// A region over (b, h, i, j, capture) whose text may use the element `e` of the capture.
static ir_region *region_with(fixture *x, ir_value *capture, bool of_sample, const char *text) {
  ir_region *r = ir_region_new(x->m, NULL);
  ir_value *v[6];
  for (int i = 0; i < 4; i++) v[i] = ir_region_arg(r, ir_scalar(DT_i32), NULL);
  ir_builder b = {.m = x->m, .at = r};
  ir_value *c = ir_region_arg(r, capture->type, NULL);
  ir_value *at[] = {
      c,
      of_sample ? v[0]
                : ir_build2(&b, IR_add, ir_build2(&b, IR_sub, v[2], v[3]), ir_const(&b, DT_i32, 3)),
      v[1]};
  v[4] = capture->type.rank == 0 ? c : ir_build(&b, IR_at, at, 1 + capture->type.rank)->out[0];
  static const char *const names[] = {"b", "h", "i", "j", "e"};
  ir_value *y;
  if (ir_expr_emit(&b, text, names, v, 5, &y, 1) != 1) fail_msg("%s", b.error);
  vec_push(&x->a, &r->yield, y);
  return r;
}

static void attention_of(fixture *x, const attention_case *c, int bias_rank, double drop) {
  int64_t heads = c->kv * c->rep;
  ir_value *in[16] = {VIEW(x, c->batch, c->s, heads * c->d), VIEW(x, c->batch, c->t, c->kv * c->d),
                      VIEW(x, c->batch, c->t, c->kv * c->v)};
  int n = 3, nr = 0;
  ir_value *length = INPUT(x, DT_i32, (double)c->t, c->batch), *table = NULL;
  if (c->mask) in[n++] = length;
  if (c->bias)
    table = in[n++] = bias_rank == 0   ? INPUT(x, DT_f32, 0, 1)
                      : bias_rank == 1 ? VIEW(x, 9)
                                       : VIEW(x, 9, heads);
  if (table && bias_rank == 0) {
    ir_attr d = ir_attr_i("dim", 0);
    table = in[n - 1] = make(x, IR_squeeze, &table, 1, &d, 1, NULL, 0)->out[0];
  }
  ir_attr a[10] = {ir_attr_i("kv_heads", c->kv),
                   ir_attr_i("rep", c->rep),
                   ir_attr_f("scale", 0.6),
                   ir_attr_i("has_mask", c->mask != NULL),
                   ir_attr_i("has_bias", c->bias != NULL),
                   ir_attr_i("ncap_mask", c->mask != NULL)};
  int na = 6;
  if (drop > 0) {
    a[na++] = ir_attr_f("drop", drop);
    a[na++] = ir_attr_i("key", 9900000000123);
    x->m->batch = in[0]->type.dim[0];
    x->call.step = 3;
    x->call.seed = 7;
  }
  if (c->past >= 0) a[na++] = ir_attr_i("past", 1);
  x->call.past = c->past >= 0 ? c->past : 0;
  ir_region *r[2];
#define REGIONS()                                                                \
  (nr = 0, (void)(c->mask && (r[nr++] = region_with(x, length, true, c->mask))), \
   (void)(c->bias && (r[nr++] = region_with(x, table, false, c->bias))))
  REGIONS();
  ir_op *y = make(x, IR_attention, in, n, a, na, r, nr);
  check(x, y->out[0], 1e-5);
  check(x, y->out[1], 1e-5);
  if (c->past >= 0) return;
  if (drop <= 0) {  // on with the same keys and values, as if there were twice as many
    ir_value *nin[16] = {y->out[0], y->out[1]};
    memcpy(nin + 2, in, sizeof *in * (size_t)n);
    REGIONS();
    ir_op *next = make(x, IR_attention_next, nin, n + 2, a, na, r, nr);
    check(x, next->out[0], 1e-5);
    check(x, next->out[1], 1e-5);
  }
  ir_value *gin[16] = {VIEW(x, c->batch, c->s, heads * c->v), y->out[0], y->out[1]};
  memcpy(gin + 3, in, sizeof *in * (size_t)n);
  REGIONS();
  ir_op *g = make(x, IR_attention_grad, gin, n + 3, a, na, r, nr);
  for (int i = 0; i < 3; i++) check(x, g->out[i], 1e-5);
  if (!c->bias) return;
  a[na++] = ir_attr_i("capture", c->mask != NULL);
  REGIONS();
  // A captured scalar gets a sum of terms that mostly cancel (each row's gradients add up to 0).
  check(x, make(x, IR_attention_grad_bias, gin, n + 3, a, na, r, nr)->out[0],
        bias_rank ? 1e-5 : 1e-3);
}

static void attention(void **state) {
  (void)state;
  static const attention_case c[] = {
      {2, 5, 5, 2, 1, 8, 8, NULL, NULL, -1},
      {1, 130, 130, 1, 2, 16, 16, "j <= i", NULL, -1},
      {2, 100, 100, 2, 2, 8, 12, "and(j <= i, i - j < 20)", NULL, -1},
      {2, 40, 70, 1, 3, 5, 7, "j < e", NULL, -1},
      {1, 67, 67, 2, 1, 32, 32, "and(j <= i, j < e)", "e * 0.5 + e * (i - j) * 0.02", -1},
      {1, 70, 20, 1, 1, 8, 8, "j % 2 == 0", "e * e * (j + 1) * 0.1", -1},
      {2, 3, 50, 2, 2, 8, 8, "j <= i", NULL, 20},
      {2, 1, 50, 2, 2, 8, 8, NULL, NULL, 33},
      {1, 1, 200, 1, 4, 64, 64, "and(j <= i, j >= e)", NULL, 133},
      {1, 50, 50, 1, 1, 200, 256, "j <= i", NULL, -1},
      {2, 9, 9, 2, 1, 4, 4, NULL, "e * where(i > j, 1, 0.5)", -1},
  };
  for (size_t i = 0; i < sizeof c / sizeof *c; i++)
    for (int rank = 0; rank < (c[i].bias ? 3 : 1); rank++)
      for (int turn = 0; turn < (rank == 1 ? 1 : 2); turn++) {
        fixture x = {.draw = i * 100000};
        begin(&x);
        attention_of(&x, &c[i], rank, turn ? 0.3 : 0);
        run(&x);
        end(&x);
      }
}

// The sample axis is the second of two, or none of them.
static void attention_drops(void **state) {
  (void)state;
  for (int axis = 0; axis < 3; axis++) {
    fixture x = {0};
    begin(&x);
    x.call = (dsm_call){.step = 5, .seed = 11};
    ir_value *in[6] = {NULL,
                       NULL,
                       NULL,
                       INPUT(&x, DT_f32, 0, 2, 3, 37, 4 * 8),
                       VIEW(&x, 2, 3, 21, 2 * 8),
                       VIEW(&x, 2, 3, 21, 2 * 6)};
    ir_attr a[] = {ir_attr_i("kv_heads", 2), ir_attr_i("rep", 2),      ir_attr_f("scale", 0.6),
                   ir_attr_i("has_mask", 0), ir_attr_i("has_bias", 0), ir_attr_i("ncap_mask", 0),
                   ir_attr_f("drop", 0.75),  ir_attr_i("key", 42)};
    if (axis < 2) x.m->batch = in[3]->type.dim[axis];
    ir_op *y = make(&x, IR_attention, in + 3, 3, a, 8, NULL, 0);
    check(&x, y->out[0], 1e-5);
    check(&x, y->out[1], 1e-5);
    in[0] = VIEW(&x, 2, 3, 37, 4 * 6), in[1] = y->out[0], in[2] = y->out[1];
    ir_op *g = make(&x, IR_attention_grad, in, 6, a, 8, NULL, 0);
    for (int i = 0; i < 3; i++) check(&x, g->out[i], 1e-5);
    run(&x);
    end(&x);
  }
}

// The first micro-batch sets the sum whatever lay there; zeros are written.
static void sums_over_micro_batches(void **state) {
  (void)state;
  fixture x = {0};
  begin(&x);
  x.m->stage = IR_LOCAL;
  ir_value *v = VIEW(&x, 5, 33);
  check(&x, make(&x, IR_accumulate, &v, 1, NULL, 0, NULL, 0)->out[0], 0);
  check(&x, ir_op_raw(x.f->body, IR_zeros, NULL, 0, &v->type, 1)->out[0], 0);
  run(&x);
  end(&x);
}

static void caches(void **state) {
  (void)state;
  fixture x = {0};
  begin(&x);
  ir_value *in[] = {INPUT(&x, DT_f32, 0, 2, 12, 6), VIEW(&x, 2, 3, 6)};
  ir_attr d = ir_attr_i("dim", 1);
  check(&x, make(&x, IR_append, in, 2, &d, 1, NULL, 0)->out[0], 0);
  x.call.past = 7;
  run(&x);
  end(&x);
}

// ---- the text ----------------------------------------------------------------------------------

static void text(void **state) {
  (void)state;
  fixture x = {0};
  begin(&x);
  k_kernel *k = k_new(&x.a, "rows_scale");
  int in = k_buffer(k, "x", DT_f32, K_READ), out = k_buffer(k, "y", DT_bf16, K_WRITE);
  k_value *row = k_muli(k, k_grid(k, 8), 2048), *sum = k_full(k, K_F32, 16, 1, 0);
  k_stmt *loop = k_for(k, k_int(k, 0), k_int(k, 128), 32, &sum, 1);
  k_value *c = loop->body[0]->args.at[0];
  k_access a = {.buffer = in,
                .base = k_add(k, row, c),
                .row_stride = 128,
                .col_stride = 1,
                .col_limit = k_sub(k, k_int(k, 100), c)};
  k_value *next = k_add(k, loop->body[0]->args.at[1], k_reduce(k, IR_add, k_load(k, 16, 32, a), 1));
  k_end_for(k, loop, &next);
  k_store(k, k_mul(k, loop->out[0], k_const(k, K_F32, 0.5)),
          (k_access){.buffer = out, .base = row, .row_stride = 1});
  k_finish(k);
  sb s = {.arena = &x.a};
  k_print(&s, k);
  assert_string_equal(sb_str(&s),
                      "kernel rows_scale(x: f32 in, y: bf16 out) grid(8)\n"
                      "  %0 = grid 0 : i64\n"
                      "  %1 = mul %0, 2048 : i64\n"
                      "  %2 = 0 : f32[16,1]\n"
                      "  %10 = for %3 = 0; < 128; += 32, %4 = %2 : f32[16,1]\n"
                      "    %5 = add %1, %3 : i64\n"
                      "    %6 = sub 100, %3 : i64\n"
                      "    %7 = load x[%5 + 128*r + c] where c < %6 else 0 : f32[16,32]\n"
                      "    %8 = sum_over_c %7 : f32[16,1]\n"
                      "    %9 = add %4, %8 : f32[16,1]\n"
                      "    yield %9\n"
                      "  %11 = mul %10, 0.5f : f32[16,1]\n"
                      "  store y[%1 + r], %11\n");
  assert_int_equal(k_cells(k), 8);

  k = k_new(&x.a, "product");
  in = k_buffer(k, "x", DT_f32, K_READ), out = k_buffer(k, "y", DT_f32, K_WRITE);
  a = (k_access){.buffer = in, .row_stride = 16, .col_stride = 1};
  k_value *v = k_load(k, 16, 16, a), *zero = k_full(k, K_F32, 16, 16, 0);
  a.buffer = out;
  k_store(k, k_dot(k, k_dot_rounded(k, DT_bf16, zero, v, v, true, false), v, v, false, true), a);
  k_finish(k);
  s.n = 0;
  k_print(&s, k);
  assert_string_equal(sb_str(&s),
                      "kernel product(x: f32 in, y: f32 out) grid(1)\n"
                      "  %0 = load x[16*r + c] : f32[16,16]\n"
                      "  %1 = 0 : f32[16,16]\n"
                      "  %2 = dot bf16 ta %1, %0, %0 : f32[16,16]\n"
                      "  %3 = dot tb %2, %0, %0 : f32[16,16]\n"
                      "  store y[16*r + c], %3\n");
  end(&x);
}

// Compiling twice gives the same bytes; a narrow target computes the same numbers as a wide one.
static void targets(void **state) {
  (void)state;
  enum { N = 512 };
  fixture x = {0};
  begin(&x);
  k_kernel *k[] = {unary_kernel(&x.a, IR_exp, N, 256), unary_kernel(&x.a, IR_erf, N, 256)};
  static const cg_target narrow = {.cpu = "x86-64-v3"};
  cg_image image[3];
  for (int i = 0; i < 3; i++)
    assert_null(cg_compile_kernels(&x.a, k, 2, i == 2 ? &narrow : NULL, &image[i]));
  assert_int_equal(image[0].n, image[1].n);
  assert_memory_equal(image[0].bytes, image[1].bytes, (size_t)image[0].n);
  float in[N], out[2][N];
  for (int i = 0; i < N; i++) in[i] = (float)(draw(&x) * 10);
  for (int f = 0; f < 2; f++) {
    for (int t = 0; t < 2; t++) {
      unsigned char *code = map_code(&image[t * 2]),
                    *buf[] = {(unsigned char *)in, (unsigned char *)out[t]};
      entry(code, image[t * 2].offset[f])(buf, &x.call, 0, N / 256);
      munmap(code, (size_t)image[t * 2].n + 1);
    }
    assert_memory_equal(out[0], out[1], sizeof out[0]);
  }
  end(&x);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(text),       cmocka_unit_test(polynomials),
      cmocka_unit_test(targets),    cmocka_unit_test(elementwise),
      cmocka_unit_test(dropout),    cmocka_unit_test(products),
      cmocka_unit_test(reductions), cmocka_unit_test(rows),
      cmocka_unit_test(many_rows),  cmocka_unit_test(tables),
      cmocka_unit_test(caches),     cmocka_unit_test(sums_over_micro_batches),
      cmocka_unit_test(attention),  cmocka_unit_test(attention_drops),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
