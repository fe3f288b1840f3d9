// The interpreter: every op against values computed here another way, gradients against central
// differences of the forward op.
#include "tests/unit/interp_fixture.h"

#include <math.h>
#include <string.h>

#include "ir/expr.h"
#include "ir/verify.h"
#include "runtime/base/random.h"

#define MAX 4096

// Numbers between -1 and 1, the same in every run.
static double draw(fixture *x) {
  return (double)base_draw(1, 2, 3, 4, 5, x->draw++) / 2147483648.0 - 1;
}

// An input with fresh indices (extents end with 0), given random numbers, or whole ones below
// `below` when that is positive.
static ir_value *input(fixture *x, const char *name, double below, ...) {
  ir_type t = {.dtype = below > 0 ? DT_i32 : DT_f64};
  va_list ap;
  va_start(ap, below);
  for (int n; (n = va_arg(ap, int)) != 0;) t.dim[t.rank++] = ir_index_new(x->m, NULL, n);
  va_end(ap);
  ir_op *op = ir_op_raw(x->f->body, IR_input, NULL, 0, &t, 1);
  ir_set_attr(x->m, op, ir_attr_s("name", name));
  op->out[0]->name = name;
  double data[MAX];
  int64_t n = ir_elements(&t);
  for (int64_t i = 0; i < n; i++) data[i] = below > 0 ? floor((draw(x) + 1) / 2 * below) : draw(x);
  ir_interp_give(x->x, name, data, n);
  return op->out[0];
}

static ir_op *make(fixture *x, ir_opcode code, ir_value **in, int nin, const ir_attr *a, int na) {
  ir_op *op = ir_build_full(&x->b, code, in, nin, a, na, NULL, 0);
  if (!op) fail_msg("%s", x->b.error);
  return op;
}

static void output(fixture *x, const char *name, ir_value *v) {
  ir_attr a = ir_attr_s("name", name);
  make(x, IR_output, &v, 1, &a, 1);
}

static const double *run(fixture *x, const char *name) {
  const char *bad = ir_verify(x->m);
  if (bad) fail_msg("%s", bad);
  bad = ir_interp_run(x->x, "f");
  if (bad) fail_msg("%s", bad);
  const double *d = ir_interp_output(x->x, name, NULL);
  assert_non_null(d);
  return d;
}

static void near(double got, double want, double by) {
  if (!(fabs(got - want) <= by * (1 + fabs(want)))) fail_msg("%.12g, not %.12g", got, want);
}

static double *given(fixture *x, const char *name, int64_t *n) {
  struct {
    double *data;
    int64_t n;
  } *a = map_get(&x->x->given, name);
  *n = a->n;
  return a->data;
}

// Checks that `grad` is the derivative of sum(weight * out) by input `name`, where the function has
// an output "out" and an input "g" that holds the weights.
static void check_gradient(fixture *x, const char *name, const char *grad) {
  int64_t n, ng;
  double *v = given(x, name, &n), *g = given(x, "g", &ng), got[MAX];
  memcpy(got, run(x, grad), sizeof(double) * (size_t)n);
  for (int64_t i = 0; i < n; i++) {
    double keep = v[i], h = 1e-5, numeric = 0;
    for (int sign = 1; sign >= -1; sign -= 2) {
      v[i] = keep + sign * h;
      const double *out = run(x, "out");
      for (int64_t k = 0; k < ng; k++) numeric += sign * g[k] * out[k] / (2 * h);
    }
    v[i] = keep;
    if (fabs(got[i] - numeric) > 1e-7 * (1 + fabs(numeric)))
      fail_msg("%s[%d]: %.10g, not %.10g", grad, (int)i, got[i], numeric);
  }
}

// ---- movement, contraction ---------------------------------------------------------------------

static void movement(void **state) {
  fixture *x = *state;
  ir_value *v = input(x, "x", 0, 2, 3, 4, 0);
  int64_t perm[] = {2, 0, 1}, n, dims[] = {1, 2, 3};
  ir_attr a[3] = {ir_attr_v("perm", perm, 3)};
  output(x, "t", make(x, IR_transpose, &v, 1, a, 1)->out[0]);
  a[0] = ir_attr_i("dim", 1), a[1] = ir_attr_i("start", 1), a[2] = ir_attr_i("size", 2);
  ir_value *s = make(x, IR_slice, &v, 1, a, 3)->out[0];
  output(x, "s", s);
  a[1] = ir_attr_i("before", 1), a[2] = ir_attr_i("after", 0);
  output(x, "p", make(x, IR_pad, &s, 1, a, 3)->out[0]);
  ir_value *two[] = {s, v};
  output(x, "c", make(x, IR_concat, two, 2, a, 1)->out[0]);
  a[0] = ir_attr_i("dim", 2), a[1] = ir_attr_i("parts", 2);
  ir_op *parts = make(x, IR_split, &v, 1, a, 2);
  output(x, "h", parts->out[1]);
  output(x, "j", make(x, IR_join, parts->out, 2, a, 1)->out[0]);
  ir_type big = {
      .dtype = DT_f64,
      .rank = 4,
      .dim = {ir_index_new(x->m, NULL, 5), v->type.dim[0], v->type.dim[1], v->type.dim[2]}};
  ir_op *b = ir_op_raw(x->f->body, IR_broadcast, &v, 1, &big, 1);
  ir_set_attr(x->m, b, ir_attr_v("dims", dims, 3));
  output(x, "b", b->out[0]);
  run(x, "t");
  const double *d = given(x, "x", &n), *t = ir_interp_output(x->x, "t", NULL);
  const double *sl = ir_interp_output(x->x, "s", NULL), *p = ir_interp_output(x->x, "p", NULL);
  const double *c = ir_interp_output(x->x, "c", NULL), *h = ir_interp_output(x->x, "h", NULL);
  const double *j = ir_interp_output(x->x, "j", NULL), *r = ir_interp_output(x->x, "b", NULL);
  for (int i = 0; i < 2; i++)
    for (int k = 0; k < 3; k++)
      for (int l = 0; l < 4; l++) {
        double e = d[(i * 3 + k) * 4 + l];
        assert_true(t[(l * 2 + i) * 3 + k] == e);
        if (k > 0) assert_true(sl[(i * 2 + k - 1) * 4 + l] == e);
        assert_true(p[(i * 3 + k) * 4 + l] == (k > 0 ? e : 0));
        assert_true(c[(i * 5 + k + 2) * 4 + l] == e);
        if (l >= 2) assert_true(h[(i * 3 + k) * 2 + l - 2] == e);
        assert_true(j[(i * 3 + k) * 4 + l] == e);
        for (int m = 0; m < 5; m++) assert_true(r[((m * 2 + i) * 3 + k) * 4 + l] == e);
      }
}

static void einsum_and_reductions(void **state) {
  fixture *x = *state;
  ir_value *in[] = {input(x, "x", 0, 2, 3, 4, 0), input(x, "w", 0, 5, 4, 0)};
  ir_attr a = ir_attr_s("spec", "b s k, n k -> s n b");
  output(x, "y", make(x, IR_einsum, in, 2, &a, 1)->out[0]);
  a = ir_attr_s("spec", "b s k -> k");
  output(x, "z", make(x, IR_einsum, in, 1, &a, 1)->out[0]);
  int64_t axes[] = {0, 1}, n;
  a = ir_attr_v("axes", axes, 2);
  output(x, "sum", make(x, IR_sum, in, 1, &a, 1)->out[0]);
  output(x, "max", make(x, IR_reduce_max, in, 1, &a, 1)->out[0]);
  output(x, "lse", make(x, IR_lse, in, 1, NULL, 0)->out[0]);
  output(x, "soft", make(x, IR_softmax, in, 1, NULL, 0)->out[0]);
  run(x, "y");
  const double *d = given(x, "x", &n), *w = given(x, "w", &n);
  const double *y = ir_interp_output(x->x, "y", NULL), *z = ir_interp_output(x->x, "z", NULL);
  const double *sum = ir_interp_output(x->x, "sum", NULL),
               *max = ir_interp_output(x->x, "max", NULL);
  const double *lse = ir_interp_output(x->x, "lse", NULL),
               *soft = ir_interp_output(x->x, "soft", NULL);
  for (int b = 0; b < 2; b++)
    for (int s = 0; s < 3; s++) {
      for (int k = 0; k < 5; k++) {
        double e = 0;
        for (int i = 0; i < 4; i++) e += d[(b * 3 + s) * 4 + i] * w[k * 4 + i];
        near(y[(s * 5 + k) * 2 + b], e, 1e-14);
      }
      double e = 0;
      for (int i = 0; i < 4; i++) e += exp(d[(b * 3 + s) * 4 + i]);
      near(lse[b * 3 + s], log(e), 1e-14);
      for (int i = 0; i < 4; i++)
        near(soft[(b * 3 + s) * 4 + i], exp(d[(b * 3 + s) * 4 + i]) / e, 1e-14);
    }
  for (int k = 0; k < 4; k++) {
    double e = 0, top = -9;
    for (int r = 0; r < 6; r++) e += d[r * 4 + k], top = fmax(top, d[r * 4 + k]);
    near(z[k], e, 1e-14), near(sum[k], e, 1e-14), near(max[k], top, 0);
  }
}

static void tables(void **state) {
  fixture *x = *state;
  ir_value *in[] = {input(x, "t", 0, 7, 3, 0), input(x, "ids", 7, 2, 4, 0)};
  output(x, "out", make(x, IR_gather, in, 2, NULL, 0)->out[0]);
  ir_value *g[] = {input(x, "g", 0, 2, 4, 3, 0), in[1]};
  ir_attr rows = ir_attr_i("rows", 7);
  output(x, "dt", make(x, IR_scatter_add, g, 2, &rows, 1)->out[0]);
  check_gradient(x, "t", "dt");
  int64_t n;
  given(x, "ids", &n)[3] = 7;
  assert_string_equal(ir_interp_run(x->x, "f"), "gather: 7 is not a row of a table of 7");
}

// ---- elementwise -------------------------------------------------------------------------------

static void elementwise(void **state) {
  fixture *x = *state;
  ir_value *a = input(x, "a", 0, 2, 1, 3, 0), *b = input(x, "b", 0, 4, 1, 0);
  output(x, "sum", ir_build2(&x->b, IR_add, a, b));
  output(x, "gelu", ir_build1(&x->b, IR_gelu, a));
  ir_attr to = ir_attr_s("dtype", "i32");
  ir_value *ten = ir_build2(&x->b, IR_mul, a, ir_const(&x->b, DT_f64, 10));
  output(x, "whole", make(x, IR_cast, &ten, 1, &to, 1)->out[0]);
  const ir_dtype t[] = {DT_f64, DT_f64};
  ir_region *r = ir_expr_region(x->m, NULL, "p, q", "silu(p) * q, p < q", t);
  ir_value *in[] = {a, b};
  ir_op *m = ir_build_full(&x->b, IR_map, in, 2, NULL, 0, &r, 1);
  if (!m) fail_msg("%s", x->b.error);
  output(x, "map", m->out[0]);
  output(x, "less", m->out[1]);
  run(x, "sum");
  int64_t n;
  const double *pa = given(x, "a", &n), *pb = given(x, "b", &n);
  const double *sum = ir_interp_output(x->x, "sum", NULL),
               *gelu = ir_interp_output(x->x, "gelu", NULL);
  const double *mapped = ir_interp_output(x->x, "map", NULL),
               *less = ir_interp_output(x->x, "less", NULL);
  const double *whole = ir_interp_output(x->x, "whole", NULL);
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int k = 0; k < 3; k++) {
        double p = pa[i * 3 + k], q = pb[j];
        int e = (i * 4 + j) * 3 + k;
        near(sum[e], p + q, 0);
        near(mapped[e], p / (1 + exp(-p)) * q, 1e-14);
        assert_true(less[e] == (p < q));
        near(gelu[i * 3 + k], 0.5 * p * (1 + erf(p / sqrt(2))), 1e-14);
        assert_true(whole[i * 3 + k] == trunc(p * 10));
      }
}

// ---- norms and loss ----------------------------------------------------------------------------

static void layernorm(void **state) {
  fixture *x = *state;
  ir_value *in[] = {input(x, "x", 0, 3, 5, 0), input(x, "w", 0, 5, 0), input(x, "b", 0, 5, 0)};
  ir_value *g = input(x, "g", 0, 3, 5, 0);
  ir_attr eps = ir_attr_f("eps", 1e-3);
  ir_op *y = make(x, IR_layernorm, in, 3, &eps, 1);
  output(x, "out", y->out[0]);
  ir_value *gx[] = {g, in[0], in[1], y->out[1], y->out[2]},
           *gw[] = {g, in[0], y->out[1], y->out[2]};
  output(x, "dx", make(x, IR_layernorm_grad, gx, 5, NULL, 0)->out[0]);
  ir_op *dw = make(x, IR_layernorm_grad_w, gw, 4, NULL, 0);
  output(x, "dw", dw->out[0]);
  output(x, "db", dw->out[1]);
  check_gradient(x, "x", "dx");
  check_gradient(x, "w", "dw");
  check_gradient(x, "b", "db");
}

static void rmsnorm(void **state) {
  fixture *x = *state;
  for (int heads = 1; heads <= 3; heads += 2) {
    teardown(state), setup(state);
    x = *state;
    ir_value *in[] = {input(x, "x", 0, 2, 12, 0), input(x, "w", 0, 12 / heads, 0)};
    ir_value *g = input(x, "g", 0, 2, 12, 0);
    ir_attr a[] = {ir_attr_f("eps", 1e-3), ir_attr_i("heads", heads)};
    ir_op *y = make(x, IR_rmsnorm, in, 2, a, 2);
    output(x, "out", y->out[0]);
    ir_value *gx[] = {g, in[0], in[1], y->out[1]}, *gw[] = {g, in[0], y->out[1]};
    output(x, "dx", make(x, IR_rmsnorm_grad, gx, 4, a + 1, 1)->out[0]);
    output(x, "dw", make(x, IR_rmsnorm_grad_w, gw, 3, a + 1, 1)->out[0]);
    check_gradient(x, "x", "dx");
    check_gradient(x, "w", "dw");
  }
}

static void loss(void **state) {
  fixture *x = *state;
  ir_value *in[] = {input(x, "x", 0, 4, 6, 0), input(x, "t", 6, 4, 0)}, *g = input(x, "g", 0, 4, 0);
  int64_t n;
  given(x, "t", &n)[2] = -100;
  ir_attr a[] = {ir_attr_i("ignore", -100), ir_attr_i("has_ignore", 1)};
  ir_op *y = make(x, IR_nll, in, 2, a, 2);
  output(x, "out", y->out[0]);
  ir_value *gx[] = {g, in[0], in[1], y->out[1]};
  output(x, "dx", make(x, IR_nll_grad, gx, 4, a, 2)->out[0]);
  check_gradient(x, "x", "dx");
  assert_true(run(x, "out")[2] == 0);
  const double *d = given(x, "x", &n), *t = given(x, "t", &n);
  double sum = 0;
  for (int i = 0; i < 6; i++) sum += exp(d[i]);
  near(run(x, "out")[0], log(sum) - d[(int)t[0]], 1e-14);
}

static void softmax_gradient(void **state) {
  fixture *x = *state;
  ir_value *v = input(x, "x", 0, 3, 4, 0), *g = input(x, "g", 0, 3, 4, 0);
  ir_value *in[] = {g, make(x, IR_softmax, &v, 1, NULL, 0)->out[0]};
  output(x, "out", in[1]);
  output(x, "dx", make(x, IR_softmax_grad, in, 2, NULL, 0)->out[0]);
  check_gradient(x, "x", "dx");
}

// ---- attention ---------------------------------------------------------------------------------

// Mask: j <= i and j < length[b]. Bias: slope * table[i - j, h] * table[i - j, h].
static void attention_regions(fixture *x, ir_value *length, ir_value *table, ir_value *slope,
                              ir_region *out[2]) {
  ir_value *a[4];
  for (int r = 0; r < 2; r++) {
    out[r] = ir_region_new(x->m, NULL);
    for (int i = 0; i < 4; i++) a[i] = ir_region_arg(out[r], ir_scalar(DT_i32), NULL);
    ir_builder b = {.m = x->m, .at = out[r]};
    ir_value *y;
    if (r == 0) {
      ir_value *l = ir_region_arg(out[r], length->type, "length");
      y = ir_build2(&b, IR_and, ir_build2(&b, IR_le, a[3], a[2]),
                    ir_build2(&b, IR_lt, a[3], ir_build2(&b, IR_at, l, a[0])));
    } else {
      ir_value *t = ir_region_arg(out[r], table->type, "table");
      ir_value *s = ir_region_arg(out[r], slope->type, "slope");
      ir_value *d = ir_build2(&b, IR_sub, a[2], a[3]);
      y = ir_build2(&b, IR_mul, ir_build3(&b, IR_at, t, d, a[1]), ir_build3(&b, IR_at, t, d, a[1]));
      y = ir_build2(&b, IR_mul, s, y);
    }
    if (!y) fail_msg("%s", b.error);
    vec_push(&x->a, &out[r]->yield, y);
  }
}

static ir_op *build_with(fixture *x, ir_opcode code, ir_value **in, int nin, ir_attr *a, int na,
                         ir_region **r) {
  ir_op *op = ir_build_full(&x->b, code, in, nin, a, na, r, 2);
  if (!op) fail_msg("%s", x->b.error);
  return op;
}

static void check_attention(fixture *x, double drop) {
  enum { B = 2, S = 3, T = 3, KV = 2, REP = 2, D = 3, V = 2 };
  ir_value *in[6] = {input(x, "q", 0, B, S, KV * REP * D, 0), input(x, "k", 0, B, T, KV * D, 0),
                     input(x, "v", 0, B, T, KV * V, 0),       input(x, "length", 3, B, 0),
                     input(x, "table", 0, S, KV * REP, 0),    input(x, "slope", 0, 0)};
  int64_t n;
  double *length = given(x, "length", &n);
  length[0] = 3, length[1] = 0;  // the second sample sees nothing
  ir_value *g = input(x, "g", 0, B, S, KV * REP * V, 0);
  ir_attr a[9] = {ir_attr_i("kv_heads", KV), ir_attr_i("rep", REP),    ir_attr_f("scale", 0.7),
                  ir_attr_i("has_mask", 1),  ir_attr_i("has_bias", 1), ir_attr_i("ncap_mask", 1),
                  ir_attr_f("drop", drop),   ir_attr_i("key", 99)};
  int na = drop > 0 ? 8 : 6;
  x->m->batch = in[0]->type.dim[0];
  x->x->seed = 7, x->x->step = 3;
  ir_region *r[2];
  attention_regions(x, in[3], in[4], in[5], r);
  ir_op *y = build_with(x, IR_attention, in, 6, a, na, r);
  output(x, "out", y->out[0]);
  output(x, "lse", y->out[1]);
  ir_value *gin[9] = {g, y->out[0], y->out[1]};
  memcpy(gin + 3, in, sizeof in);
  attention_regions(x, in[3], in[4], in[5], r);
  ir_op *d = build_with(x, IR_attention_grad, gin, 9, a, na, r);
  output(x, "dq", d->out[0]), output(x, "dk", d->out[1]), output(x, "dv", d->out[2]);
  for (int c = 1; c <= 2; c++) {
    attention_regions(x, in[3], in[4], in[5], r);
    a[na] = ir_attr_i("capture", c);
    output(x, c == 1 ? "dtable" : "dslope",
           build_with(x, IR_attention_grad_bias, gin, 9, a, na + 1, r)->out[0]);
  }
  const double *o = run(x, "out"), *lse = ir_interp_output(x->x, "lse", NULL);
  const double *q = given(x, "q", &n), *k = given(x, "k", &n), *v = given(x, "v", &n);
  const double *table = given(x, "table", &n), slope = *given(x, "slope", &n);
  for (int b = 0; b < B; b++)
    for (int h = 0; h < KV * REP; h++)
      for (int i = 0; i < S; i++) {
        double sum = 0, want[V] = {0};
        for (int j = 0; j <= i && j < length[b]; j++) {
          double s = 0;
          for (int e = 0; e < D; e++)
            s += q[((b * S + i) * KV * REP + h) * D + e] * k[((b * T + j) * KV + h / REP) * D + e];
          double t = table[(i - j) * KV * REP + h], p = exp(0.7 * s + slope * t * t);
          sum += p;
          uint32_t random = base_draw(7, 3, 99, 0, (uint64_t)b, (uint64_t)((h * S + i) * T + j));
          p *= random >= base_drop_below(drop) ? 1 / (1 - drop) : 0;
          for (int e = 0; e < V; e++) want[e] += p * v[((b * T + j) * KV + h / REP) * V + e];
        }
        for (int e = 0; e < V; e++)
          near(o[((b * S + i) * KV * REP + h) * V + e], sum > 0 ? want[e] / sum : 0, 1e-13);
        double l = lse[(b * KV * REP + h) * S + i];
        if (sum > 0)
          near(l, log(sum), 1e-13);
        else
          assert_true(isinf(l) && l < 0);
      }
  check_gradient(x, "q", "dq");
  check_gradient(x, "k", "dk");
  check_gradient(x, "v", "dv");
  check_gradient(x, "table", "dtable");
  check_gradient(x, "slope", "dslope");
}

static void attention(void **state) { check_attention(*state, 0); }

static void attention_drops(void **state) { check_attention(*state, 0.4); }

// Uniform probabilities over values that name their key: the result shows each draw. Without a
// share nothing changes.
static void attention_draws(void **state) {
  fixture *x = *state;
  enum { B = 4, S = 16, H = 4, KV = 2, N = B * S * H * S };
  ir_value *in[] = {input(x, "q", 0, B, S, H, 0), input(x, "k", 0, B, S, KV, 0),
                    input(x, "v", 0, B, S, KV * S, 0)};
  x->m->batch = in[0]->type.dim[0];
  int64_t n;
  double *q = given(x, "q", &n);
  memset(q, 0, sizeof *q * (size_t)n);
  double *v = given(x, "v", &n);
  for (int64_t i = 0; i < n; i++) v[i] = i % S == i / (KV * S) % S;
  ir_attr a[] = {ir_attr_i("kv_heads", KV), ir_attr_i("rep", H / KV), ir_attr_f("scale", 1),
                 ir_attr_i("has_mask", 0),  ir_attr_i("has_bias", 0), ir_attr_i("ncap_mask", 0),
                 ir_attr_f("drop", 0.25),   ir_attr_i("key", 99)};
  ir_op *y = make(x, IR_attention, in, 3, a, 8);
  output(x, "out", y->out[0]);
  output(x, "lse", y->out[1]);
  a[6] = ir_attr_f("drop", 0);
  output(x, "zero", make(x, IR_attention, in, 3, a, 8)->out[0]);
  output(x, "none", make(x, IR_attention, in, 3, a, 6)->out[0]);
  const double *o = run(x, "out"), *lse = ir_interp_output(x->x, "lse", NULL);
  int kept = 0, pairs = 0, same = 0, heads = 0;
  for (int e = 0; e < N; e++) {
    bool keep = o[e] > 0;  // e is sample, query, head, key
    near(o[e], keep ? 1 / (0.75 * S) : 0, 1e-12);
    kept += keep;
    pairs += e % S > 0 && keep && o[e - 1] > 0;
    same += e >= N / B && keep == (o[e - N / B] > 0);
    heads += e / S % H > 0 && keep == (o[e - S] > 0);
  }
  for (int i = 0; i < B * H * S; i++) near(lse[i], log(S), 1e-12);
  assert_true(abs(kept - N * 3 / 4) < 140);                  // 5 deviations
  assert_true(abs(pairs - N / S * (S - 1) * 9 / 16) < 200);  // neighbours,
  assert_true(abs(same - N / B * (B - 1) * 5 / 8) < 200);    // samples
  assert_true(abs(heads - N / H * (H - 1) * 5 / 8) < 200);   // and heads
  assert_memory_equal(ir_interp_output(x->x, "zero", NULL), ir_interp_output(x->x, "none", NULL),
                      sizeof(double) * N);
}

// Decoding position by position through caches gives the rows of the causal whole.
static void decoding(void **state) {
  fixture *x = *state;
  enum { S = 4, W = 8 };
  double data[3][S * W], whole[S * W];
  for (int i = 0; i < 3 * S * W; i++) data[i / (S * W)][i % (S * W)] = draw(x);
  const ir_dtype t[] = {DT_i32, DT_i32, DT_i32, DT_i32};
  for (int decode = 0; decode < 2; decode++) {
    teardown(state), setup(state);
    x = *state;
    int rows = decode ? 1 : S;
    ir_value *in[3] = {input(x, "q", 0, 1, rows, W, 0), input(x, "k", 0, 1, rows, W, 0),
                       input(x, "v", 0, 1, rows, W, 0)};
    static const char *const names[] = {"q", "k", "v"};
    ir_attr rope[] = {ir_attr_i("heads", 2), ir_attr_f("theta", 100), ir_attr_i("inverse", 0),
                      ir_attr_i("past", decode)};
    for (int i = 0; i < 2; i++) in[i] = make(x, IR_rope, &in[i], 1, rope, 4)->out[0];
    for (int i = 1; i < 3 && decode; i++) {
      ir_type c = in[i]->type;
      c.dim[1] = ir_index_new(x->m, NULL, S);
      ir_state_add(x->m, (ir_state){.name = names[i], .type = c, .cls = STATE_CACHE});
      ir_attr name = ir_attr_s("name", names[i]), dim = ir_attr_i("dim", 1);
      ir_value *both[] = {make(x, IR_state, NULL, 0, &name, 1)->out[0], in[i]};
      in[i] = make(x, IR_append, both, 2, &dim, 1)->out[0];
      make(x, IR_set, &in[i], 1, &name, 1);
    }
    ir_attr a[] = {ir_attr_i("kv_heads", 2), ir_attr_i("rep", 1),      ir_attr_f("scale", 0.5),
                   ir_attr_i("has_mask", 1), ir_attr_i("has_bias", 0), ir_attr_i("ncap_mask", 0),
                   ir_attr_i("past", decode)};
    ir_region *mask = ir_expr_region(x->m, NULL, "b, h, i, j", "j <= i", t);
    ir_op *y = ir_build_full(&x->b, IR_attention, in, 3, a, 7, &mask, 1);
    if (!y) fail_msg("%s", x->b.error);
    output(x, "out", y->out[0]);
    for (int p = 0; p < S; p += rows) {
      x->x->past = p;
      for (int i = 0; i < 3; i++) ir_interp_give(x->x, names[i], data[i] + p * W, rows * W);
      const double *o = run(x, "out");
      for (int i = 0; i < rows * W; i++)
        if (decode)
          near(o[i], whole[p * W + i], 1e-13);
        else
          whole[i] = o[i];
    }
  }
}

// Keys in two parts, one after the other, are all keys at once; the second is hidden from some.
static void attention_in_parts(void **state) {
  enum { S = 6, T = 4, W = 8 };
  fixture *x = *state;
  static const ir_dtype t[4] = {DT_i32, DT_i32, DT_i32, DT_i32};
  ir_attr a[] = {ir_attr_i("kv_heads", 1), ir_attr_i("rep", 2),      ir_attr_f("scale", 0.5),
                 ir_attr_i("has_mask", 1), ir_attr_i("has_bias", 0), ir_attr_i("ncap_mask", 0)};
  ir_value *q = input(x, "q", 0, 2, S, 2 * W, 0), *k[3], *v[3];
  static const char *const key[] = {"k", "k0", "k1"}, *const value[] = {"v", "v0", "v1"};
  static const char *const sees[] = {"j <= i", "j <= i", "j + 4 <= i"};
  ir_region *mask[3];
  for (int i = 0; i < 3; i++) {
    k[i] = input(x, key[i], 0, 2, i ? T : 2 * T, W, 0);
    v[i] = input(x, value[i], 0, 2, i ? T : 2 * T, W, 0);
    mask[i] = ir_expr_region(x->m, NULL, "b, h, i, j", sees[i], t);
  }
  for (int w = 0; w < 2; w++) {
    int64_t n;
    const double *whole = given(x, w ? "v" : "k", &n);
    for (int part = 0; part < 2; part++) {
      double *to = given(x, w ? value[1 + part] : key[1 + part], &n);
      for (int b = 0; b < 2; b++)
        memcpy(to + b * T * W, whole + (2 * b + part) * T * W, sizeof *to * T * W);
    }
  }
  ir_op *all = ir_build_full(&x->b, IR_attention, (ir_value *[]){q, k[0], v[0]}, 3, a, 6, mask, 1);
  ir_op *first =
      ir_build_full(&x->b, IR_attention, (ir_value *[]){q, k[1], v[1]}, 3, a, 6, mask + 1, 1);
  ir_op *next = ir_build_full(&x->b, IR_attention_next,
                              (ir_value *[]){first->out[0], first->out[1], q, k[2], v[2]}, 5, a, 6,
                              mask + 2, 1);
  if (!all || !next) fail_msg("%s", x->b.error);
  output(x, "o", all->out[0]);
  output(x, "lse", all->out[1]);
  output(x, "o2", next->out[0]);
  output(x, "lse2", next->out[1]);
  const double *o = run(x, "o"), *o2 = ir_interp_output(x->x, "o2", NULL),
               *lse = ir_interp_output(x->x, "lse", NULL),
               *lse2 = ir_interp_output(x->x, "lse2", NULL);
  for (int i = 0; i < 2 * S * 2 * W; i++) near(o2[i], o[i], 1e-13);
  for (int i = 0; i < 2 * 2 * S; i++) near(lse2[i], lse[i], 1e-13);
}

static void rope_turns_back(void **state) {
  fixture *x = *state;
  ir_value *v = input(x, "x", 0, 2, 5, 12, 0);
  ir_attr a[] = {ir_attr_i("heads", 3), ir_attr_f("theta", 1e4), ir_attr_i("inverse", 0)};
  ir_value *y = make(x, IR_rope, &v, 1, a, 3)->out[0];
  a[2] = ir_attr_i("inverse", 1);
  output(x, "y", y);
  output(x, "z", make(x, IR_rope, &y, 1, a, 3)->out[0]);
  run(x, "y");
  int64_t n;
  const double *d = given(x, "x", &n), *z = ir_interp_output(x->x, "z", NULL);
  const double *r = ir_interp_output(x->x, "y", NULL);
  for (int64_t i = 0; i < n; i++) near(z[i], d[i], 1e-14);
  // Position 3, head 1, pair 1: by hand.
  int at = 3 * 12 + 4 + 1;
  double angle = 3 * pow(1e4, -2.0 / 4);
  near(r[at], d[at] * cos(angle) - d[at + 2] * sin(angle), 1e-14);
  near(r[at + 2], d[at + 2] * cos(angle) + d[at] * sin(angle), 1e-14);
}

// ---- structure ---------------------------------------------------------------------------------

// Forward: x = x * w[layer] + layer, stacking x. Reverse reads the stack and accumulates dw.
static void repeat(void **state) {
  fixture *x = *state;
  ir_value *v = input(x, "x", 0, 2, 0), *w = input(x, "w", 0, 3, 2, 0), *g = input(x, "g", 0, 2, 0);
  ir_builder b = {.m = x->m, .at = ir_region_new(x->m, NULL)};
  ir_type slice = {.dtype = DT_f64, .rank = 1, .dim = {w->type.dim[1]}};
  ir_value *layer = ir_region_arg(b.at, ir_scalar(DT_i32), "layer");
  ir_value *c = ir_region_arg(b.at, v->type, "x"), *s = ir_region_arg(b.at, slice, "w");
  vec_push(&x->a, &b.at->yield, ir_build2(&b, IR_add, ir_build2(&b, IR_mul, c, s), layer));
  vec_push(&x->a, &b.at->yield, c);
  ir_attr a[] = {ir_attr_i("count", 3), ir_attr_i("carried", 1), ir_attr_i("stacked", 1),
                 ir_attr_i("reverse", 0)};
  ir_value *in[] = {v, w};
  ir_op *y = ir_build_full(&x->b, IR_repeat, in, 2, a, 4, &b.at, 1);
  if (!y) fail_msg("%s", x->b.error);
  output(x, "out", y->out[0]);
  // Backward: g = g * w[layer]; dw[layer] = g * x[layer].
  b.at = ir_region_new(x->m, NULL);
  ir_region_arg(b.at, ir_scalar(DT_i32), "layer");
  c = ir_region_arg(b.at, g->type, "g"), s = ir_region_arg(b.at, slice, "w");
  ir_value *saved = ir_region_arg(b.at, slice, "x");
  vec_push(&x->a, &b.at->yield, ir_build2(&b, IR_mul, c, s));
  vec_push(&x->a, &b.at->yield, ir_build2(&b, IR_mul, c, saved));
  a[2] = ir_attr_i("stacked", 2), a[3] = ir_attr_i("reverse", 1);
  ir_value *back[] = {g, w, y->out[1]};
  ir_op *d = ir_build_full(&x->b, IR_repeat, back, 3, a, 4, &b.at, 1);
  if (!d) fail_msg("%s", x->b.error);
  output(x, "dx", d->out[0]);
  output(x, "dw", d->out[1]);
  const double *out = run(x, "out");
  int64_t n;
  const double *p = given(x, "x", &n), *q = given(x, "w", &n);
  for (int i = 0; i < 2; i++) near(out[i], ((p[i] * q[i]) * q[2 + i] + 1) * q[4 + i] + 2, 1e-14);
  check_gradient(x, "x", "dx");
  check_gradient(x, "w", "dw");
}

static void states(void **state) {
  fixture *x = *state;
  ir_type t = {.dtype = DT_f64, .rank = 1, .dim = {ir_index_new(x->m, NULL, 2)}};
  ir_state_add(x->m, (ir_state){.name = "s", .type = t});
  ir_attr name = ir_attr_s("name", "s");
  ir_value *s = make(x, IR_state, NULL, 0, &name, 1)->out[0];
  ir_value *now = ir_build2(&x->b, IR_add, s, ir_const(&x->b, DT_f64, 1));
  make(x, IR_set, &now, 1, &name, 1);
  output(x, "old", s);
  const double start[] = {3, 4};
  ir_interp_set_state(x->x, "s", start, 2);
  assert_true(run(x, "old")[1] == 4);
  assert_true(run(x, "old")[1] == 5);
  int64_t n;
  assert_true(ir_interp_state(x->x, "s", &n)[0] == 5);
  assert_int_equal(n, 2);
  ir_interp_set_state(x->x, "s", start, 1);
  assert_string_equal(ir_interp_run(x->x, "f"), "state `s` has 1 elements, not 2");
  assert_string_equal(ir_interp_run(x->x, "g"), "there is no function `g`");
}

// A copy is its weight, whoever gave that its value.
static void copies(void **state) {
  fixture *x = *state;
  ir_type t = {.dtype = DT_f32, .rank = 1, .dim = {ir_index_new(x->m, NULL, 2)}};
  ir_state_add(x->m, (ir_state){.name = "w", .type = t, .cls = STATE_WEIGHT});
  t.dtype = DT_bf16;
  ir_state_add(x->m, (ir_state){.name = "c", .type = t, .cls = STATE_COPY, .of = "w"});
  ir_attr w = ir_attr_s("name", "w"), c = ir_attr_s("name", "c"), d = ir_attr_s("dtype", "bf16");
  ir_value *v = make(x, IR_state, NULL, 0, &w, 1)->out[0];
  output(x, "old", make(x, IR_state, NULL, 0, &c, 1)->out[0]);
  ir_value *now = ir_build2(&x->b, IR_add, v, ir_const(&x->b, DT_f32, 1));
  make(x, IR_set, &now, 1, &w, 1);
  ir_value *small = make(x, IR_cast, &now, 1, &d, 1)->out[0];
  make(x, IR_set, &small, 1, &c, 1);
  for (int i = 0; i < 2; i++) {
    const double start[] = {3 + 10 * i, 4};
    ir_interp_set_state(x->x, "w", start, 2);
    assert_true(run(x, "old")[0] == 3 + 10 * i);
    assert_true(run(x, "old")[0] == 4 + 10 * i);
    assert_true(ir_interp_state(x->x, "c", NULL)[0] == 5 + 10 * i);
  }
}

// ---- random ------------------------------------------------------------------------------------

// Dropout is the draw of (key, layer, sample, index), whatever the shape around it.
static void dropout(void **state) {
  fixture *x = *state;
  ir_value *v = input(x, "x", 0, 4, 6, 10, 0);
  x->m->batch = v->type.dim[1];
  ir_attr a[] = {ir_attr_f("p", 0.25), ir_attr_i("key", 99)};
  output(x, "y", make(x, IR_dropout, &v, 1, a, 2)->out[0]);
  x->x->seed = 7, x->x->step = 3;
  const double *y = run(x, "y");
  int64_t n;
  const double *d = given(x, "x", &n);
  for (int i = 0; i < 4; i++)
    for (int s = 0; s < 6; s++)
      for (int k = 0; k < 10; k++) {
        int e = (i * 6 + s) * 10 + k;
        bool keep = base_draw(7, 3, 99, 0, (uint64_t)s, (uint64_t)(i * 10 + k)) >= 0x40000000u;
        near(y[e], keep ? d[e] / 0.75 : 0, 1e-15);
      }
}

// Bits are fair, neighbours do not follow each other, and each part of the key matters.
static void draws(void **state) {
  (void)state;
  enum { N = 1 << 16 };
  double sum = 0, pairs = 0, last = 0;
  int bit[32] = {0}, below = 0, bucket[256] = {0};
  for (uint64_t i = 0; i < N; i++) {
    uint32_t r = base_draw(1, 2, 3, 4, 5, i);
    double u = (double)r / 4294967296.0 - 0.5;
    sum += u;
    pairs += u * last;
    last = u;
    for (int k = 0; k < 32; k++) bit[k] += (int)(r >> k & 1);
    below += r < base_drop_below(0.1);
    bucket[r >> 24]++;
  }
  assert_true(fabs(sum / N) < 0.005);  // 4.4 standard deviations
  assert_true(fabs(pairs / N) < 0.0015);
  for (int k = 0; k < 32; k++) assert_true(abs(bit[k] - N / 2) < 640);  // 5 standard deviations
  assert_true(abs(below - N / 10) < 400);
  double chi = 0;
  for (int k = 0; k < 256; k++) chi += (bucket[k] - 256.0) * (bucket[k] - 256.0) / 256;
  assert_true(chi > 150 && chi < 380);  // 255 degrees of freedom
  uint32_t r = base_draw(1, 2, 3, 4, 5, 6);
  assert_true(r != base_draw(2, 2, 3, 4, 5, 6) && r != base_draw(1, 3, 3, 4, 5, 6));
  assert_true(r != base_draw(1, 2, 4, 4, 5, 6) && r != base_draw(1, 2, 3, 5, 5, 6));
  assert_true(r != base_draw(1, 2, 3, 4, 6, 6) && r != base_draw(1, 2, 3, 4, 5, 6 | 1ull << 32));
  assert_true(base_draw(2, 1, 3, 4, 5, 6) != base_draw(1, 2, 3, 4, 5, 6));
  // Written down once: a change of these is a change of every model's random numbers.
  assert_int_equal(base_draw(0, 0, 0, 0, 0, 0), 0xfe97adb4u);
  assert_int_equal(base_draw(1, 2, 3, 4, 5, (6ull << 32) | 7), 0x84c3ab5fu);
  assert_int_equal(base_drop_below(0.1), 429496729u);
  assert_int_equal(base_drop_below(0), 0u);
  assert_int_equal(base_drop_below(1), UINT32_MAX);
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
      T(movement),
      T(einsum_and_reductions),
      T(tables),
      T(elementwise),
      T(layernorm),
      T(rmsnorm),
      T(loss),
      T(softmax_gradient),
      T(attention),
      T(attention_drops),
      T(attention_draws),
      T(decoding),
      T(attention_in_parts),
      T(rope_turns_back),
      T(repeat),
      T(states),
      T(copies),
      T(dropout),
      T(draws),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
