// Products as a library's: which einsums can be one, and the numbers they become. What a gemm of
// these numbers computes (runtime/program.h), done here by three loops, is what the interpreter
// says.
#include "tests/unit/interp_fixture.h"

#include <math.h>
#include <string.h>

#include "codegen/product.h"
#include "ir/verify.h"
#include "runtime/base/random.h"

static ir_value *input(fixture *x, ir_dtype t, const int64_t *size) {
  ir_type type = {.dtype = t};
  for (; size[type.rank]; type.rank++)
    type.dim[type.rank] = ir_index_new(x->m, NULL, size[type.rank]);
  ir_op *op = ir_op_raw(x->f->body, IR_input, NULL, 0, &type, 1);
  const char *name = arena_printf(&x->a, "in%d", x->inputs);
  ir_set_attr(x->m, op, ir_attr_s("name", name));
  int64_t n = ir_elements(&type);
  double *d = arena_new(&x->a, double, n);
  for (int64_t i = 0; i < n; i++)
    d[i] = (double)base_draw(1, 2, 3, 4, (uint64_t)x->inputs, (uint64_t)i) / 2147483648.0 - 1;
  ir_interp_give(x->x, name, d, n);
  x->data[x->inputs++] = d;
  return op->out[0];
}
#define INPUT(x, ...) input(x, DT_f32, (const int64_t[]){__VA_ARGS__, 0})

static ir_value *apply(fixture *x, ir_opcode code, ir_value *const *in, int n, const ir_attr *a,
                       int nattrs) {
  ir_op *op = ir_build_full(&x->b, code, in, n, a, nattrs, NULL, 0);
  if (!op) fail_msg("%s", x->b.error);
  return op->out[0];
}

static ir_op *einsum(fixture *x, const char *spec, ir_value *a, ir_value *b) {
  ir_attr s = ir_attr_s("spec", spec);
  return apply(x, IR_einsum, (ir_value *[]){a, b}, 2, &s, 1)->def;
}

static bool gemm_of(ir_op *op, product *p, prog_gemm *g) {
  const char *why = product_of(op, p);
  if (why) fail_msg("%s", why);
  return product_gemm(p, op, g);
}

// What the numbers say, over a C of zeros.
static void multiply(const prog_gemm *g, const double *a, const double *b, double *c) {
  int64_t at[PROG_GEMM_AXES] = {0}, last = 1;
  for (uint32_t i = 0; i < g->axes; i++) last *= g->size[i];
  for (int64_t z = 0; z < last; z++) {
    int64_t rest = z, from[3];
    for (uint32_t i = g->axes; i-- > 0; rest /= g->size[i]) at[i] = rest % g->size[i];
    for (int t = 0; t < 3; t++) {
      from[t] = g->offset[t];
      for (uint32_t i = 0; i < g->axes; i++) from[t] += at[i] * g->stride[t][i];
    }
    for (int64_t m = 0; m < g->m; m++)
      for (int64_t n = 0; n < g->n; n++)
        for (int64_t k = 0; k < g->k; k++)
          c[from[2] + m * g->ld[2] + n] +=
              a[from[0] + (g->turned & 1 ? k * g->ld[0] + m : m * g->ld[0] + k)] *
              b[from[1] + (g->turned & 2 ? n * g->ld[1] + k : k * g->ld[1] + n)];
  }
}

// The einsum is a product for the library, `turned` and m x n x k in so many matrices; its numbers
// compute what the interpreter does. a, b: the inputs behind the operands.
static void expect(fixture *x, ir_op *op, uint32_t turned, int64_t m, int64_t n, int64_t k,
                   int64_t matrices) {
  static int outputs;
  product p;
  prog_gemm g;
  if (!gemm_of(op, &p, &g)) fail_msg("%s: no gemm", ir_attr_str(op, "spec", ""));
  if (g.turned != turned || g.m != m || g.n != n || g.k != k || b_product(&p.batch) != matrices)
    fail_msg("%s: turned %u, %lld x %lld x %lld, %lld matrices", ir_attr_str(op, "spec", ""),
             g.turned, (long long)g.m, (long long)g.n, (long long)g.k,
             (long long)b_product(&p.batch));
  const char *name = arena_printf(&x->a, "out%d", outputs++);
  ir_attr of = ir_attr_s("name", name);
  ir_op *out = ir_op_raw(x->f->body, IR_output, op->out, 1, NULL, 0);
  ir_set_attr(x->m, out, of);
  const char *bad = ir_verify(x->m);
  if (!bad) bad = ir_interp_run(x->x, "f");
  if (bad) fail_msg("%s", bad);
  int64_t count;
  const double *want = ir_interp_output(x->x, name, &count), *data[2];
  double *got = arena_new(&x->a, double, count);
  for (int t = 0; t < 2; t++) {
    const char *root = ir_attr_str(ir_view_of(p.value[t]).root->def, "name", "");
    data[t] = x->data[root[2] - '0'];
  }
  multiply(&g, data[0], data[1], got);
  for (int64_t i = 0; i < count; i++)
    if (fabs(got[i] - want[i]) > 1e-12)
      fail_msg("%s [%lld]: %g, not %g", ir_attr_str(op, "spec", ""), (long long)i, got[i], want[i]);
}

static void refuse(ir_op *op) {
  product p;
  prog_gemm g;
  if (gemm_of(op, &p, &g)) fail_msg("%s: is a gemm", ir_attr_str(op, "spec", ""));
}

static void four_ways(void **state) {
  fixture *x = *state;
  ir_value *mk = INPUT(x, 6, 7), *km = INPUT(x, 7, 6), *kn = INPUT(x, 7, 9), *nk = INPUT(x, 9, 7);
  expect(x, einsum(x, "m k, k n -> m n", mk, kn), 0, 6, 9, 7, 1);
  expect(x, einsum(x, "k m, k n -> m n", km, kn), 1, 6, 9, 7, 1);
  expect(x, einsum(x, "m k, n k -> m n", mk, nk), 2, 6, 9, 7, 1);
  expect(x, einsum(x, "k m, n k -> m n", km, nk), 3, 6, 9, 7, 1);
  // A turned result: the operands change places.
  expect(x, einsum(x, "m k, k n -> n m", mk, kn), 3, 9, 6, 7, 1);
}

static void axes_that_merge_and_batches(void **state) {
  fixture *x = *state;
  ir_value *bsk = INPUT(x, 2, 5, 7), *nk = INPUT(x, 9, 7), *bsn = INPUT(x, 2, 5, 9);
  expect(x, einsum(x, "b s k, n k -> b s n", bsk, nk), 2, 10, 9, 7, 1);
  expect(x, einsum(x, "b s n, b s k -> n k", bsn, bsk), 1, 9, 7, 10, 1);
  // Heads: [s, h, d] in storage, so rows lie h * d apart and heads d.
  ir_value *q = INPUT(x, 2, 6, 3, 4);
  ir_op *scores = einsum(x, "b i h d, b j h d -> b h i j", q, q);
  product p;
  prog_gemm g;
  assert_true(gemm_of(scores, &p, &g));
  assert_int_equal(g.ld[0], 12);
  assert_int_equal(g.ld[2], 6);
  assert_int_equal(g.axes, 2);
  assert_int_equal(g.stride[1][1], 4);
  expect(x, scores, 2, 6, 6, 4, 6);
}

static void a_part_of_a_value(void **state) {
  fixture *x = *state;
  ir_value *wide = INPUT(x, 6, 20), *nk = INPUT(x, 9, 7);
  ir_attr cut[] = {ir_attr_i("dim", 1), ir_attr_i("start", 3), ir_attr_i("size", 7)};
  ir_value *mk = apply(x, IR_slice, &wide, 1, cut, 3);
  ir_op *op = einsum(x, "m k, n k -> m n", mk, nk);
  product p;
  prog_gemm g;
  assert_true(gemm_of(op, &p, &g));
  assert_int_equal(g.offset[0], 3);
  assert_int_equal(g.ld[0], 20);
  expect(x, op, 2, 6, 9, 7, 1);
}

static void starts(void **state) {
  fixture *x = *state;
  ir_value *in[] = {INPUT(x, 6, 7), INPUT(x, 9, 7), INPUT(x, 6, 9)};
  ir_attr a[] = {ir_attr_s("spec", "m k, n k -> m n"), ir_attr_i("base", 1)};
  product p;
  prog_gemm g;
  assert_true(gemm_of(apply(x, IR_einsum, in, 3, a, 2)->def, &p, &g));
  assert_int_equal(g.start, PROG_GEMM_ADD);
  a[1] = ir_attr_i("accumulate", 1);
  assert_true(gemm_of(apply(x, IR_einsum, in, 2, a, 2)->def, &p, &g));
  assert_int_equal(g.start, PROG_GEMM_SUM);
  assert_true(gemm_of(apply(x, IR_einsum, in, 2, a, 1)->def, &p, &g));
  assert_int_equal(g.start, PROG_GEMM_SET);
}

static void ours(void **state) {
  fixture *x = *state;
  ir_value *mk = INPUT(x, 6, 7), *nk = INPUT(x, 9, 7), *pairs = INPUT(x, 6, 7, 2);
  refuse(einsum(x, "m k, n k -> m n", INPUT(x, 4, 7), nk));  // few rows
  x->inputs = 0;
  refuse(einsum(x, "a k b, n k -> a n b", pairs, nk));                 // two axes are m
  refuse(einsum(x, "m k j, n j k -> m n", pairs, INPUT(x, 9, 2, 7)));  // two axes are k
  x->inputs = 0;
  ir_attr part[] = {ir_attr_i("dim", 2), ir_attr_i("start", 1), ir_attr_i("size", 1)};
  ir_value *apart = apply(x, IR_slice, &pairs, 1, part, 3);
  refuse(einsum(x, "m k z, n k -> m n", apart, nk));  // no axis has stride 1
  ir_value *in[] = {mk, nk};
  ir_attr round[] = {ir_attr_s("spec", "m k, n k -> m n"), ir_attr_s("round", "bf16")};
  refuse(apply(x, IR_einsum, in, 2, round, 2)->def);
  in[0] = input(x, DT_bf16, (const int64_t[]){6, 7, 0});
  refuse(apply(x, IR_einsum, in, 2, round, 1)->def);
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
  const struct CMUnitTest tests[] = {T(four_ways), T(axes_that_merge_and_batches),
                                     T(a_part_of_a_value), T(starts), T(ours)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
