// Indices, rules, expressions, scalar gradients, text and verifier of ir/.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/cost.h"
#include "ir/expr.h"
#include "ir/ir.h"
#include "ir/place.h"
#include "ir/print.h"
#include "ir/rule.h"
#include "ir/scalar_grad.h"
#include "ir/verify.h"

typedef struct fixture {
  arena a;
  ir_module *m;
  ir_func *f;
  ir_builder b;
} fixture;

static int setup(void **state) {
  fixture *x = calloc(1, sizeof *x);
  arena_init(&x->a);
  x->m = ir_module_new(&x->a, "test");
  x->f = ir_func_new(x->m, "train_step", ENTRY_TRAIN);
  x->b = (ir_builder){.m = x->m, .at = x->f->body};
  *state = x;
  return 0;
}

static int teardown(void **state) {
  fixture *x = *state;
  arena_free(&x->a);
  free(x);
  return 0;
}

// An input called `name` with fresh indices of the given extents, which end with 0.
static ir_value *input(fixture *x, const char *name, ir_dtype t, ...) {
  ir_type type = {.dtype = t};
  va_list ap;
  va_start(ap, t);
  for (int n; (n = va_arg(ap, int)) != 0;) type.dim[type.rank++] = ir_index_new(x->m, NULL, n);
  va_end(ap);
  ir_op *op = ir_op_raw(x->f->body, IR_input, NULL, 0, &type, 1);
  ir_set_attr(x->m, op, ir_attr_s("name", name));
  op->out[0]->name = name;
  return op->out[0];
}

static void assert_leaves(ir_index *i, ...) {
  ir_index *leaf[IR_MAX_LEAVES];
  int n = ir_index_leaves(i, leaf, IR_MAX_LEAVES), k = 0;
  va_list ap;
  va_start(ap, i);
  for (int size; (size = va_arg(ap, int)) != 0; k++) {
    assert_true(k < n);
    assert_int_equal(leaf[k]->size, size);
  }
  va_end(ap);
  assert_int_equal(k, n);
}

static void assert_type(fixture *x, const ir_value *v, const char *text) {
  if (!v) fail_msg("no value: %s", x->b.error);
  assert_string_equal(ir_type_text(&x->a, &v->type), text);
}

static ir_index *view(fixture *x, int64_t size, ...) {
  ir_index *i = ir_index_new(x->m, NULL, size), *part[4];
  int n = 0;
  va_list ap;
  va_start(ap, size);
  for (int s; (s = va_arg(ap, int)) != 0;) part[n++] = ir_index_new(x->m, NULL, s);
  va_end(ap);
  assert_true(ir_index_refine(x->m, i, part, n));
  return i;
}

// ---- indices -----------------------------------------------------------------------------------

static void common_refinement(void **state) {
  fixture *x = *state;
  ir_index *a = view(x, 2304, 3, 768, 0), *b = view(x, 2304, 36, 64, 0);
  assert_true(ir_index_unify(x->m, a, b));
  assert_leaves(a, 3, 12, 64, 0);
  assert_leaves(b, 3, 12, 64, 0);
  assert_ptr_equal(ir_root(a), ir_root(b));
}

static void refinement_that_cannot_nest(void **state) {
  fixture *x = *state;
  ir_index *a = view(x, 12, 3, 4, 0), *b = view(x, 12, 2, 6, 0);
  assert_false(ir_index_unify(x->m, a, b));
  assert_leaves(a, 3, 4, 0);
  assert_leaves(b, 2, 6, 0);
  assert_false(ir_index_unify(x->m, a, ir_index_new(x->m, NULL, 13)));
}

// A refusal deep inside takes back what was unified before it: 8 . 3 . 4 against 2 . 4 . 2 . 6.
static void refusal_changes_nothing(void **state) {
  fixture *x = *state;
  ir_index *a = view(x, 96, 8, 3, 4, 0), *b = view(x, 96, 2, 4, 2, 6, 0);
  assert_false(ir_index_unify(x->m, a, b));
  assert_leaves(a, 8, 3, 4, 0);
  assert_leaves(b, 2, 4, 2, 6, 0);
}

static void older_names_win(void **state) {
  fixture *x = *state;
  ir_index *a = ir_index_new(x->m, NULL, 8), *b = ir_index_new(x->m, "seq", 8);
  ir_index *c = ir_index_new(x->m, "rows", 8);
  assert_true(ir_index_unify(x->m, b, c));
  assert_true(ir_index_unify(x->m, c, a));
  assert_string_equal(ir_root(a)->name, "seq");
}

static void parts_of_one_are_dropped(void **state) {
  fixture *x = *state;
  ir_index *a = view(x, 6, 1, 6, 1, 0);
  assert_leaves(a, 6, 0);
}

static void long_products_nest(void **state) {
  fixture *x = *state;
  ir_index *a = ir_index_new(x->m, NULL, 2 * 3 * 5 * 7 * 11 * 13), *part[6];
  const int size[] = {2, 3, 5, 7, 11, 13};
  for (int i = 0; i < 6; i++) part[i] = ir_index_new(x->m, NULL, size[i]);
  assert_true(ir_index_refine(x->m, a, part, 6));
  assert_leaves(a, 2, 3, 5, 7, 11, 13, 0);
}

// ---- inference ---------------------------------------------------------------------------------

static void broadcast_aligns_right(void **state) {
  fixture *x = *state;
  ir_value *a = input(x, "a", DT_f32, 4, 1, 8, 0), *b = input(x, "b", DT_bf16, 5, 8, 0);
  assert_type(x, ir_build2(&x->b, IR_add, a, b), "f32[4, 5, 8]");
  assert_ptr_equal(ir_root(a->type.dim[2]), ir_root(b->type.dim[1]));
  ir_value *c = input(x, "c", DT_f32, 7, 0);
  int before = x->f->body->ops.n;
  assert_null(ir_build2(&x->b, IR_mul, a, c));
  assert_string_equal(x->b.error, "mul: f32[4, 1, 8] and f32[7] do not fit together: 8 against 7");
  assert_int_equal(x->f->body->ops.n, before);
}

static void scalar_types(void **state) {
  fixture *x = *state;
  ir_value *f = input(x, "f", DT_bf16, 3, 0), *i = input(x, "i", DT_i32, 3, 0);
  assert_type(x, ir_build2(&x->b, IR_lt, f, i), "bool[3]");
  assert_type(x, ir_build2(&x->b, IR_div, i, i), "f32[3]");
  assert_type(x, ir_build2(&x->b, IR_floordiv, i, i), "i32[3]");
  assert_type(x, ir_build2(&x->b, IR_mul, f, i), "bf16[3]");
  assert_type(x, ir_build1(&x->b, IR_exp, i), "f32[3]");
  assert_type(x, ir_build1(&x->b, IR_floor, f), "bf16[3]");
  assert_type(x, ir_build1(&x->b, IR_gelu, f), "bf16[3]");
  assert_type(x, ir_build1(&x->b, IR_square, i), "f32[3]");
  ir_value *c = ir_build2(&x->b, IR_eq, i, i);
  assert_type(x, ir_build3(&x->b, IR_where, c, i, f), "bf16[3]");
  assert_type(x, ir_build2(&x->b, IR_add, c, c), "i32[3]");
  assert_int_equal(ir_dtype_join(DT_f16, DT_bf16), DT_f32);
  assert_int_equal(ir_dtype_join(DT_bool, DT_i8), DT_i8);
}

static ir_op *with(fixture *x, ir_opcode code, ir_value **in, int nin, const ir_attr *a, int n) {
  return ir_build_full(&x->b, code, in, nin, a, n, NULL, 0);
}

static void einsum(void **state) {
  fixture *x = *state;
  ir_value *in[] = {input(x, "x", DT_f32, 2, 3, 4, 0), input(x, "w", DT_f32, 5, 4, 0)};
  ir_attr a = ir_attr_s("spec", "b s k, n k -> b s n");
  ir_op *op = with(x, IR_einsum, in, 2, &a, 1);
  assert_type(x, op->out[0], "f32[2, 3, 5]");
  ir_rule rule;
  ir_rule_of(x->m, op, &rule);
  int k = 0;
  while (strcmp(rule.word[k], "k") != 0) k++;
  assert_int_equal(rule.kind[k], KIND_SUM);
  const char *bad[][2] = {
      {"b s s, n s -> b n", "the rule \"b s s, n s -> b n\" names `s` twice in one operand"},
      {"b s k, n k -> b s z", "the rule \"b s k, n k -> b s z\" has `z` in the result only"},
      {"b s k, n k", "the rule \"b s k, n k\" has no `->`"},
      {"b s k, k n -> b s n", "einsum: `k` is 4 in `x` and 5 in `w`"},
      {"b s k -> b", "einsum has 2 operands, but its rule has 1"},
      {"b k, n k -> b n", "einsum: `x` is f32[2, 3, 4], but needs 2 dimensions"},
      {"b (s), n k -> b n",
       "the rule \"b (s), n k -> b n\" has something that is not a name, `,` or `->`"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    a = ir_attr_s("spec", bad[i][0]);
    assert_null(with(x, IR_einsum, in, 2, &a, 1));
    assert_string_equal(x->b.error, bad[i][1]);
  }
  a = ir_attr_s("spec", "a b c -> c a");
  assert_type(x, with(x, IR_einsum, in, 1, &a, 1)->out[0], "f32[4, 2]");
}

static void movement(void **state) {
  fixture *x = *state;
  ir_value *v = input(x, "x", DT_f32, 4, 6, 0);
  int64_t perm[] = {1, 0};
  ir_attr a[3] = {ir_attr_v("perm", perm, 2)};
  assert_type(x, with(x, IR_transpose, &v, 1, a, 1)->out[0], "f32[6, 4]");
  a[0] = ir_attr_i("dim", 2);
  ir_value *e = with(x, IR_expand, &v, 1, a, 1)->out[0];
  assert_type(x, e, "f32[4, 6, 1]");
  assert_type(x, with(x, IR_squeeze, &e, 1, a, 1)->out[0], "f32[4, 6]");
  a[0] = ir_attr_i("dim", 0);
  assert_null(with(x, IR_squeeze, &e, 1, a, 1));
  assert_null(with(x, IR_squeeze, &e, 1, NULL, 0));
  assert_string_equal(x->b.error, "squeeze needs `dim`");

  // One axis as two and back: the index knows both.
  ir_attr cut[] = {ir_attr_i("dim", 1), ir_attr_i("outer", 3)};
  ir_value *u = with(x, IR_unfold, &v, 1, cut, 2)->out[0];
  assert_type(x, u, "f32[4, 3, 2]");
  ir_value *w = with(x, IR_fold, &u, 1, cut, 1)->out[0];
  assert_int_equal(w->type.rank, 2);
  assert_true(ir_index_same(w->type.dim[1], v->type.dim[1]));
  cut[1].i = 4;
  assert_null(with(x, IR_unfold, &v, 1, cut, 2));
  cut[0].i = 2;
  assert_null(with(x, IR_fold, &u, 1, cut, 1));

  a[0] = ir_attr_i("dim", 1), a[1] = ir_attr_i("start", 2), a[2] = ir_attr_i("size", 4);
  assert_type(x, with(x, IR_slice, &v, 1, a, 3)->out[0], "f32[4, 4]");
  a[1] = ir_attr_i("start", 3);
  assert_null(with(x, IR_slice, &v, 1, a, 3));
  a[1] = ir_attr_i("start", 0), a[2] = ir_attr_i("size", 6);
  assert_ptr_equal(with(x, IR_slice, &v, 1, a, 3)->out[0]->type.dim[1], v->type.dim[1]);
  a[1] = ir_attr_i("before", 1), a[2] = ir_attr_i("after", 2);
  assert_type(x, with(x, IR_pad, &v, 1, a, 3)->out[0], "f32[4, 9]");
  ir_value *two[] = {v, v};
  assert_type(x, with(x, IR_concat, two, 2, a, 1)->out[0], "f32[4, 12]");
  int64_t axes[] = {0};
  a[0] = ir_attr_v("axes", axes, 1), a[1] = ir_attr_i("keep", 1);
  assert_type(x, with(x, IR_sum, &v, 1, a, 2)->out[0], "f32[1, 6]");
  assert_type(x, with(x, IR_reduce_max, &v, 1, a, 1)->out[0], "f32[6]");
}

static void split_refines_and_join_undoes(void **state) {
  fixture *x = *state;
  ir_value *v = input(x, "x", DT_f32, 4, 6, 0);
  ir_attr a[] = {ir_attr_i("dim", 1), ir_attr_i("parts", 3)};
  ir_op *s = with(x, IR_split, &v, 1, a, 2);
  assert_int_equal(s->nout, 3);
  assert_type(x, s->out[2], "f32[4, 2]");
  assert_leaves(v->type.dim[1], 3, 2, 0);
  ir_op *j = with(x, IR_join, s->out, 3, a, 1);
  assert_type(x, j->out[0], "f32[4, 6]");
  // Adding them says that they are one index.
  assert_non_null(ir_build2(&x->b, IR_add, v, j->out[0]));
  assert_true(ir_index_same(v->type.dim[1], j->out[0]->type.dim[1]));
  a[1] = ir_attr_i("parts", 4);
  assert_null(with(x, IR_split, &v, 1, a, 2));
}

static void words(void **state) {
  fixture *x = *state;
  ir_value *ln[] = {input(x, "x", DT_bf16, 2, 3, 8, 0), input(x, "w", DT_f32, 8, 0),
                    input(x, "b", DT_f32, 8, 0)};
  ir_attr eps = ir_attr_i("eps", 0);  // a whole number where a real one is meant
  ir_op *op = with(x, IR_layernorm, ln, 3, &eps, 1);
  assert_type(x, op->out[0], "bf16[2, 3, 8]");
  assert_type(x, op->out[1], "f32[2, 3]");
  assert_ptr_equal(ir_root(ln[0]->type.dim[2]), ir_root(ln[1]->type.dim[0]));

  ir_value *ga[] = {input(x, "t", DT_f32, 10, 5, 6, 0), input(x, "ids", DT_i32, 2, 3, 0)};
  assert_type(x, with(x, IR_gather, ga, 2, NULL, 0)->out[0], "f32[2, 3, 5, 6]");
  ir_value *swapped[] = {ga[0], ga[0]};
  assert_null(with(x, IR_gather, swapped, 2, NULL, 0));
  assert_string_equal(x->b.error, "gather needs whole numbers as operand 2, not f32[10, 5, 6]");

  ir_value *rn[] = {input(x, "y", DT_f32, 2, 12, 0), input(x, "g", DT_f32, 4, 0)};
  ir_attr heads[] = {ir_attr_f("eps", 1e-6), ir_attr_i("heads", 3)};
  op = with(x, IR_rmsnorm, rn, 2, heads, 2);
  assert_type(x, op->out[0], "f32[2, 12]");
  assert_type(x, op->out[1], "f32[2, heads=3]");
  assert_leaves(rn[0]->type.dim[1], 3, 4, 0);
  heads[1] = ir_attr_i("heads", 2);
  assert_null(with(x, IR_rmsnorm, rn, 2, heads, 2));
  assert_string_equal(x->b.error,
                      "rmsnorm: a dimension of `y` has extent 12, which is not heads 2 × n 4");
}

static ir_op *attention(fixture *x, ir_value **in, int nin, int kv_heads, int rep,
                        ir_region *mask) {
  ir_attr a[] = {ir_attr_i("kv_heads", kv_heads), ir_attr_i("rep", rep),
                 ir_attr_f("scale", 0.5),         ir_attr_i("has_mask", mask != NULL),
                 ir_attr_i("has_bias", 0),        ir_attr_i("ncap_mask", nin - 3)};
  return ir_build_full(&x->b, IR_attention, in, nin, a, 6, &mask, mask != NULL);
}

static ir_region *causal(fixture *x) {
  const ir_dtype t[] = {DT_i32, DT_i32, DT_i32, DT_i32};
  return ir_expr_region(x->m, NULL, "b, h, i, j", "j <= i", t);
}

static void attention_types(void **state) {
  fixture *x = *state;
  ir_value *in[] = {input(x, "q", DT_f32, 2, 5, 48, 0), input(x, "k", DT_f32, 2, 7, 24, 0),
                    input(x, "v", DT_f32, 2, 7, 8, 0)};
  ir_op *op = attention(x, in, 3, 2, 2, causal(x));
  if (!op) fail_msg("%s", x->b.error);
  assert_type(x, op->out[0], "f32[2, 5, 16]");
  assert_type(x, op->out[1], "f32[2, 4, 5]");
  assert_leaves(in[0]->type.dim[2], 2, 2, 12, 0);
  assert_leaves(op->out[0]->type.dim[2], 2, 2, 4, 0);
  assert_null(attention(x, in, 3, 5, 2, NULL));
  assert_string_equal(
      x->b.error,
      "attention: a dimension of `q` has extent 48, which is not kv_heads 5 × rep 2 × head");
}

static void attention_messages(void **state) {
  fixture *x = *state;
  ir_value *in[] = {input(x, "q", DT_f32, 2, 5, 48, 0), input(x, "k", DT_f32, 2, 7, 36, 0),
                    input(x, "v", DT_f32, 2, 7, 8, 0)};
  assert_null(attention(x, in, 3, 2, 2, NULL));
  assert_string_equal(
      x->b.error, "attention: a dimension of `k` has extent 36, which is not kv_heads 2 × head 12");
  assert_leaves(in[0]->type.dim[2], 48, 0);  // nothing was refined
}

// ---- repeat, map -------------------------------------------------------------------------------

// x = repeat over 3 layers of x * w[layer] + b, with the squares of x stacked.
static ir_op *loop(fixture *x, ir_value *v, ir_value *w, ir_value *bias) {
  ir_region *r = ir_region_new(x->m, NULL);
  ir_type slice = w->type;
  slice.rank--;
  slice.dim[0] = w->type.dim[1];
  ir_region_arg(r, ir_scalar(DT_i32), "layer");
  ir_value *c = ir_region_arg(r, v->type, "x"), *s = ir_region_arg(r, slice, "w");
  ir_value *i = ir_region_arg(r, bias->type, "bias");
  ir_builder b = {.m = x->m, .at = r};
  ir_value *y = ir_build2(&b, IR_add, ir_build2(&b, IR_mul, c, s), i);
  vec_push(&x->a, &r->yield, y);
  vec_push(&x->a, &r->yield, ir_build1(&b, IR_square, c));
  ir_attr a[] = {ir_attr_i("count", 3), ir_attr_i("carried", 1), ir_attr_i("stacked", 1),
                 ir_attr_i("reverse", 0)};
  ir_value *in[] = {v, w, bias};
  return ir_build_full(&x->b, IR_repeat, in, 3, a, 4, &r, 1);
}

static void repeat_types(void **state) {
  fixture *x = *state;
  ir_value *v = input(x, "v", DT_f32, 4, 8, 0), *w = input(x, "w", DT_f32, 3, 8, 0);
  ir_op *op = loop(x, v, w, input(x, "b", DT_f32, 8, 0));
  if (!op) fail_msg("%s", x->b.error);
  assert_type(x, op->out[0], "f32[4, 8]");
  assert_type(x, op->out[1], "f32[3, 4, 8]");
  assert_ptr_equal(ir_root(op->out[1]->type.dim[0]), ir_root(w->type.dim[0]));
  assert_ptr_equal(op->region[0]->owner, op);
  ir_value *wrong = input(x, "w5", DT_f32, 5, 8, 0);
  assert_null(loop(x, v, wrong, input(x, "b", DT_f32, 8, 0)));
  assert_string_equal(x->b.error, "repeat: the stacked value f32[5, 8] does not have 3 layers");
}

static void clone_and_replace(void **state) {
  fixture *x = *state;
  ir_value *v = input(x, "v", DT_f32, 4, 8, 0), *w = input(x, "w", DT_f32, 3, 8, 0);
  ir_op *op = loop(x, v, w, input(x, "b", DT_f32, 8, 0));
  ir_func *f = ir_func_new(x->m, "evaluate", ENTRY_EVAL);
  ir_clone_ops(f->body, x->f->body);
  assert_int_equal(f->body->ops.n, x->f->body->ops.n);
  ir_value *now = op->out[1]->mapped;
  assert_ptr_equal(now->def->parent, f->body);
  assert_ptr_not_equal(now->def->region[0], op->region[0]);
  assert_ptr_equal(now->def->region[0]->args.at[1]->region, now->def->region[0]);
  assert_null(ir_verify(x->m));
  ir_replace_uses(f->body, v->mapped, v->mapped);
  ir_replace_uses(x->f->body, v, v);
  assert_null(ir_verify(x->m));
}

// ---- what the op table says of linearity -------------------------------------------------------

// The largest residue of f(x + y) - f(x) - f(y) over the operands of `among` (a bit each), at
// points between -4 and 4: half of them whole, where operands meet; in some the first operand is 0.
static double superposition(ir_opcode code, int among) {
  double worst = 0;
  uint32_t seed = 7;
  for (int i = 0; i < 64; i++) {
    double part[2][3], sum[3], r[3];
    for (int n = 0; n < 3; n++) {
      for (int k = 0; k < 2; k++) {
        seed = seed * 1664525u + 1013904223u;
        double u = (double)(seed >> 8) / 0x1p21 - 4;
        part[k][n] = i % 2 ? (u < 0 ? floor(u) : ceil(u)) : u;
      }
      if (n == 0 && i % 4 == 0) part[0][0] = among & 1 ? -part[1][0] : 0;
      if (!(among >> n & 1)) part[1][n] = part[0][n];
      sum[n] = among >> n & 1 ? part[0][n] + part[1][n] : part[0][n];
    }
    const double *at[] = {sum, part[0], part[1]};
    for (int k = 0; k < 3; k++) r[k] = ir_scalar_value(code, at[k][0], at[k][1], at[k][2]);
    double off = fabs(r[0] - r[1] - r[2]);
    if (isnan(off)) return INFINITY;
    if (off > worst) worst = off;
  }
  return worst;
}

// For every SCALAR row and every set of its operands, the table's word is what its numbers show.
static void linear_rows(void **state) {
  fixture *x = *state;
  for (int c = 0; c < IR_OPCODE_COUNT; c++) {
    const ir_op_info *info = ir_info((ir_opcode)c);
    if (info->cls != IR_CLASS_SCALAR) continue;
    ir_value *in[3];
    for (int i = 0; i < info->min_in; i++) in[i] = ir_const(&x->b, DT_f32, 1);
    ir_type t = ir_scalar(DT_f32);
    ir_op *op = ir_op_raw(x->f->body, (ir_opcode)c, in, info->min_in, &t, 1);
    for (int set = 0; set < 1 << info->min_in; set++) {
      bool among[3] = {set & 1, set & 2, set & 4};
      bool shown = set && superposition((ir_opcode)c, set) < 1e-9;
      if (ir_is_linear(op, among) != shown)
        fail_msg("%s in operands %d: the table says %d, its numbers %d", info->name, set, !shown,
                 shown);
    }
  }
}

// ---- expressions and their gradients -----------------------------------------------------------

static double eval_scalar(const ir_op *op, const double *v) {
  double a = v[op->in[0]->id], b = op->nin > 1 ? v[op->in[1]->id] : 0;
  double c = op->nin > 2 ? v[op->in[2]->id] : 0;
  return ir_info(op->code)->cls == IR_CLASS_SCALAR ? ir_scalar_value(op->code, a, b, c)
                                                   : a;  // cast
}

static void run_region(fixture *x, const ir_region *r, const double *args, double *out) {
  double *v = arena_new(&x->a, double, x->m->next_value);
  for (int i = 0; i < r->args.n; i++) v[r->args.at[i]->id] = args[i];
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    v[op->out[0]->id] = op->code == IR_const ? ir_attr_float(op, "value", 0) : eval_scalar(op, v);
  }
  for (int i = 0; i < r->yield.n; i++) out[i] = v[r->yield.at[i]->id];
}

static void expressions(void **state) {
  fixture *x = *state;
  const ir_dtype t[] = {DT_f32, DT_f32};
  static const struct {
    const char *text;
    double want;
  } rows[] = {{"1 + 2 * x - y / 2", 1 + 2 * 3.0 - 5.0 / 2},
              {"-x * -2", 6},
              {"(x + y) * (x - y)", -16},
              {"y // x + y % x", 3},
              {"where(x < y, max(x, 4), 0)", 4},
              {"d = x * x; e = d + y; e * d", 14 * 9},
              {"x - y - 1", -3},
              {"min(x, 1e-2) * 100", 1}};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    double args[] = {3, 5}, out;
    run_region(x, ir_expr_region(x->m, NULL, "x, y", rows[i].text, t), args, &out);
    assert_true(fabs(out - rows[i].want) < 1e-12);
  }
  const char *bad[] = {"",  "x +", "foo(x)", "max(x)",     "max(x, x, x)",
                       "z", "(x",  "x x",    "softmax(x)", "x = 1"};
  const char *names[] = {"x"};
  ir_value *values[] = {input(x, "x", DT_f32, 2, 0)}, *out[2];
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_int_equal(ir_expr_emit(&x->b, bad[i], names, values, 1, out, 2), -1);
    assert_non_null(x->b.error);
  }
  char deep[400];
  memset(deep, '(', sizeof deep);
  deep[sizeof deep - 1] = 0;
  assert_int_equal(ir_expr_emit(&x->b, deep, names, values, 1, out, 2), -1);
  assert_int_equal(ir_expr_emit(&x->b, "x * 2, x", names, values, 1, out, 2), 2);
  assert_type(x, out[0], "f32[2]");
}

// Every DEFINED row and every SCALAR row with gradients, against central differences.
static void gradients_of_all_rows(void **state) {
  fixture *x = *state;
  const ir_dtype t[] = {DT_f64, DT_f64, DT_f64};
  for (int code = 0; code < IR_OPCODE_COUNT; code++) {
    const ir_op_info *info = ir_info((ir_opcode)code);
    if (info->cls == IR_CLASS_OP) continue;
    ir_region *fn;
    if (info->cls == IR_CLASS_DEFINED) {
      fn = ir_defined_region(x->m, (ir_opcode)code, t);
    } else {
      static const char *const form[] = {"", "%s(x)", "%s(x, y)", "%s(x, y, z)"};
      if (!info->grad[0][0] && !info->grad[1][0]) continue;
      const char *text = code == IR_where ? "where(x > 1, y, z)"
                                          : arena_printf(&x->a, form[info->min_in], info->name);
      static const char *const params[] = {"", "x", "x, y", "x, y, z"};
      fn = ir_expr_region(x->m, NULL, params[info->min_in], text, t);
    }
    int n = fn->args.n;
    bool want[3] = {true, true, true};
    ir_region *d = ir_scalar_grad(x->m, fn, want);
    assert_int_equal(d->yield.n, n);
    for (double at = 0.3; at < 2; at += 0.45) {
      double args[4] = {at, 1.7 - at / 2, 0.4, 0}, got[3], up, down;
      args[n] = 1.25;
      run_region(x, d, args, got);
      for (int i = 0; i < n; i++) {
        double keep = args[i], h = 1e-6;
        args[i] = keep + h, run_region(x, fn, args, &up);
        args[i] = keep - h, run_region(x, fn, args, &down);
        args[i] = keep;
        double numeric = 1.25 * (up - down) / (2 * h);
        if (fabs(got[i] - numeric) > 1e-6 * (1 + fabs(numeric)))
          fail_msg("%s by argument %d at %g: %g, not %g", info->name, i, at, got[i], numeric);
      }
    }
  }
}

static void gradient_of_a_chain(void **state) {
  fixture *x = *state;
  const ir_dtype t[] = {DT_f32, DT_i32};
  // y is whole: no gradient; x is used twice.
  ir_region *fn = ir_expr_region(x->m, NULL, "x, y", "u = tanh(x * 2); u * x + y, u", t);
  const bool want[] = {true, false};
  ir_region *d = ir_scalar_grad(x->m, fn, want);
  assert_int_equal(d->args.n, 4);
  assert_int_equal(d->yield.n, 1);
  double args[] = {0.4, 3, 1.5, -0.5}, got, u = tanh(0.8);
  run_region(x, d, args, &got);
  assert_true(fabs(got - (1.5 * (u + 0.4 * 2 * (1 - u * u)) - 0.5 * 2 * (1 - u * u))) < 1e-12);
  // Nothing in the region is unused.
  for (int i = 0; i < d->ops.n; i++) assert_true(d->ops.at[i]->out[0]->mark);
}

static void gradient_of_at(void **state) {
  fixture *x = *state;
  ir_region *fn = ir_region_new(x->m, NULL);
  ir_value *i = ir_region_arg(fn, ir_scalar(DT_i32), "i");
  ir_value *table = ir_region_arg(fn, input(x, "t", DT_f32, 4, 5, 0)->type, "t");
  ir_builder b = {.m = x->m, .at = fn};
  ir_value *j = ir_build2(&b, IR_add, i, i);
  ir_value *e = ir_build3(&b, IR_at, table, j, i);
  assert_non_null(e);
  vec_push(&x->a, &fn->yield, ir_build2(&b, IR_mul, e, e));
  int at[2];
  assert_int_equal(ir_scalar_ats(fn, 1, at, 2), 1);
  assert_int_equal(at[0], 1);
  ir_region *d = ir_scalar_grad_at(x->m, fn, at[0]);
  assert_int_equal(d->yield.n, 3);
  assert_string_equal(ir_print_region(d, &x->a),
                      "\nregion(\n    %0 : i32,\n    %1 : f32[4, 5],\n    %2 : f32) {\n"
                      "  %3 = add(%0, %0) : i32\n"
                      "  %4 = at(%1, %3, %0) : f32\n"
                      "  %5 = mul(%2, %4) : f32\n"
                      "  %6 = mul(%2, %4) : f32\n"
                      "  %7 = add(%5, %6) : f32\n"
                      "  yield %7, %3, %0\n}");
}

// ---- text --------------------------------------------------------------------------------------

// A module with a bit of everything.
static void build_everything(fixture *x) {
  ir_index *batch = x->m->batch = ir_index_new(x->m, "batch", 2);
  ir_index *seq = ir_index_new(x->m, "seq", 5), *hidden = ir_index_new(x->m, "hidden", 12);
  ir_type t = {.dtype = DT_f32, .rank = 3, .dim = {batch, seq, hidden}};
  ir_type w = {.dtype = DT_f32, .rank = 2, .dim = {ir_index_new(x->m, "layer", 3), hidden}};
  ir_state_add(x->m, (ir_state){.name = "h.#.w",
                                .type = w,
                                .stacked = true,
                                .step = 1,
                                .init = INIT_NORMAL,
                                .init_a = 0.02,
                                .trained = true,
                                .weight_decay = 0.1,
                                .lr_scale = 1});
  ir_state_add(x->m,
               (ir_state){.name = "m:\"odd\"\n", .type = w, .cls = STATE_OPTIMIZER, .of = "h.#.w"});
  ir_op *in = ir_op_raw(x->f->body, IR_input, NULL, 0, &t, 1);
  ir_set_attr(x->m, in, ir_attr_s("name", "x"));
  in->out[0]->name = "x";
  ir_attr name = ir_attr_s("name", "h.#.w");
  ir_value *st = ir_build_full(&x->b, IR_state, NULL, 0, &name, 1, NULL, 0)->out[0];
  st->name = "w.1";
  ir_value *bias = input(x, "x", DT_f32, 12, 0);
  ir_set_attr(x->m, bias->def, ir_attr_s("name", "bias"));
  ir_op *r = loop(x, in->out[0], st, bias);
  if (!r) fail_msg("%s", x->b.error);
  x->b.path = "h.0.attn";
  ir_value *q = r->out[0], *qkv[] = {q, q, q};
  ir_op *a = attention(x, qkv, 3, 3, 1, causal(x));
  if (!a) fail_msg("%s", x->b.error);
  a->out[0]->name = "x";
  ir_attr drop[] = {ir_attr_f("p", 0.1), ir_attr_i("key", 77)};
  ir_op *d = ir_build_full(&x->b, IR_dropout, a->out, 1, drop, 2, NULL, 0);
  int64_t axes[] = {0, 1, 2};
  ir_attr sum = ir_attr_v("axes", axes, 3);
  ir_value *loss = ir_build_full(&x->b, IR_sum, d->out, 1, &sum, 1, NULL, 0)->out[0];
  loss = ir_build2(&x->b, IR_mul, loss, ir_const(&x->b, DT_f32, 1.0 / 3));
  name = ir_attr_s("name", "loss");
  ir_build_full(&x->b, IR_output, &loss, 1, &name, 1, NULL, 0);
  ir_attr set = ir_attr_s("name", "h.#.w");
  ir_build_full(&x->b, IR_set, &st, 1, &set, 1, NULL, 0);
}

static void round_trip(void **state) {
  fixture *x = *state;
  build_everything(x);
  const char *bad = ir_verify(x->m), *error;
  if (bad) fail_msg("%s", bad);
  char *text = ir_print(x->m, &x->a);
  ir_module *again = ir_parse(&x->a, text, strlen(text), &error);
  if (!again) fail_msg("%s\n%s", error, text);
  assert_string_equal(ir_print(again, &x->a), text);
  bad = ir_verify(again);
  if (bad) fail_msg("%s\n%s", bad, text);
  // Identity of indices, the sample axis and names came along.
  assert_ptr_equal(ir_root(again->batch),
                   ir_root(again->funcs.at[0]->body->ops.at[0]->out[0]->type.dim[0]));
  assert_non_null(strstr(text, "(kv_heads=3 head=4)"));
  assert_non_null(strstr(text, "%x.1"));
}

// Parses `text`, which must be valid and be printed as it stands.
static ir_module *same_again(fixture *x, const char *text) {
  const char *error;
  ir_module *m = ir_parse(&x->a, text, strlen(text), &error);
  if (!m) fail_msg("%s", error);
  const char *printed = ir_print(m, &x->a), *bad = ir_verify(m);
  if (bad) fail_msg("%s", bad);
  assert_string_equal(strstr(printed, "module"), text);
  return m;
}

// LOCAL: the mesh and the placements of values.
static void placements_round_trip(void **state) {
  fixture *x = *state;
  static const char text[] =
      "module \"m\" local\n"
      "samples batch=4\n"
      "mesh data.0=2, data.1=4, tensor=2, micro=2 time\n"
      "\n"
      "func f train {\n"
      "  %x = input() {name=\"x\"} : f32[batch=4, (heads=3 head=4)] cut(batch/data.0.data.1.micro, "
      "heads/tensor)\n"
      "  %0 = sum(%x) {axes=[0, 1]} : f32 partial(sum/data.0.data.1.tensor.micro)\n"
      "  %1 = input() {name=\"y\"} : f32[(heads=3 head=4), seq=8] cut((heads head)/tensor, "
      "seq/data.0 zigzag)\n"
      "}\n";
  ir_module *m = same_again(x, text);
  ir_place *at = (ir_place *)(uintptr_t)m->funcs.at[0]->body->ops.at[0]->out[0]->place;
  at->cut[1].axis[0] = 0;
  assert_non_null(strstr(ir_verify(m), "uses an axis twice"));
  at->cut[1].axis[0] = 1;
  at->cut[1].index = ir_index_new(m, NULL, 3);
  assert_non_null(strstr(ir_verify(m), "an index the value does not have"));
}

// LOCAL: an op that runs again is marked in the text, and is no work of the model.
static void recompute_round_trip(void **state) {
  fixture *x = *state;
  static const char text[] =
      "module \"m\" local\n"
      "\n"
      "func f train {\n"
      "  %x = input() {name=\"x\"} : f32[hidden=4]\n"
      "  %0 = repeat(%x) {carried=1, count=3, reverse=1, stacked=0} : f32[hidden=4]\n"
      "    region(\n"
      "        %layer : i32,\n"
      "        %x.1 : f32[hidden=4]) {\n"
      "      %1 = exp(%x.1) @\"h.e\" recompute : f32[hidden=4]\n"
      "      %2 = add(%x.1, %1) : f32[hidden=4]\n"
      "      yield %2\n"
      "    }\n"
      "}\n";
  ir_module *m = same_again(x, text);
  ir_op *loop = m->funcs.at[0]->body->ops.at[1], *again = loop->region[0]->ops.at[0];
  assert_true(again->recompute);
  assert_true(ir_op_flops(loop) == 3 * 4);    // the sums
  assert_true(ir_op_flops(again) == 4 * 10);  // of itself
  assert_true(ir_op_work(again) == 4 * 10 + 32 * IR_FLOPS_A_BYTE);
  m->stage = IR_GRAPH;
  assert_non_null(strstr(ir_verify(m), "belongs to the body of a repeat, in LOCAL"));
}

// Cutting the text anywhere, or changing any byte, gives a module or a message, never a crash; and
// what is read can be verified and printed.
static void broken_texts(void **state) {
  fixture *x = *state;
  build_everything(x);
  char *text = ir_print(x->m, &x->a);
  size_t n = strlen(text);
  unsigned seed = 1;
  for (size_t i = 0; i < n; i++) {
    arena a;
    arena_init(&a);
    const char *error;
    char *copy = arena_strndup(&a, text, n);
    size_t len = n;
    if (i % 3 == 0) {
      len = i;
    } else {
      seed = seed * 1103515245u + 12345u;
      copy[i] = "0-9}{)(]%@\",=x.: \n"[seed / 65536 % 19];
    }
    ir_module *m = ir_parse(&a, copy, len, &error);
    assert_true((m != NULL) == (error == NULL));
    if (m) {
      (void)ir_verify(m);
      char *first = ir_print(m, &a);
      ir_module *again = ir_parse(&a, first, strlen(first), &error);
      if (!again) fail_msg("%s in\n%s", error, first);
      assert_string_equal(ir_print(again, &a), first);
    }
    arena_free(&a);
  }
}

static void parser_messages(void **state) {
  fixture *x = *state;
  static const struct {
    const char *text, *error;
  } rows[] = {
      {"", "line 1: expected `module`"},
      {"module \"m\" graph\nfunc f train {\n  %x = foo() : f32\n}", "line 3: there is no op `foo`"},
      {"module \"m\" graph\nfunc f train {\n  %x = neg(%y) : f32\n}",
       "line 3: %y is not defined above"},
      {"module \"m\" graph\nfunc f train {\n  %x = input() {name=3} : f32\n}",
       "line 3: expected a string in \"quotes\" at \"3} : f32\""},
      {"module \"m\" graph\nfunc f train {\n  %x = input() {nam=3} : f32\n}",
       "line 3: input has no attribute `nam`"},
      {"module \"m\" graph\nfunc f train {\n  %x = input() {name=\"x\"} : f32[a=2, a=3]\n}",
       "line 3: `a` is 3 here and 2 above"},
      {"module \"m\" graph\nfunc f train {\n  %x = input() {name=\"x\"} : f32[a=0]\n}",
       "line 3: an extent must be at least 1"},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    const char *error;
    assert_null(ir_parse(&x->a, rows[i].text, strlen(rows[i].text), &error));
    assert_string_equal(error, rows[i].error);
  }
}

// ---- verifier ----------------------------------------------------------------------------------

static void expect_fault(fixture *x, const char *part) {
  const char *bad = ir_verify(x->m);
  if (!bad) fail_msg("no fault found, expected: %s", part);
  if (!strstr(bad, part)) fail_msg("found \"%s\", expected \"%s\"", bad, part);
}

static ir_op *find(fixture *x, ir_opcode code) {
  for (int i = 0; i < x->f->body->ops.n; i++)
    if (x->f->body->ops.at[i]->code == code) return x->f->body->ops.at[i];
  fail_msg("no %s", ir_info(code)->name);
  return NULL;
}

static void planted_faults(void **state) {
  fixture *x = *state;
  build_everything(x);
  assert_null(ir_verify(x->m));
  ir_region *body = x->f->body;

  // Use before definition.
  ir_op *op = body->ops.at[0];
  body->ops.at[0] = body->ops.at[3], body->ops.at[3] = op;
  expect_fault(x, "is used before it is defined");
  body->ops.at[3] = body->ops.at[0], body->ops.at[0] = op;

  // A body that looks outside.
  ir_op *rep = find(x, IR_repeat), *inner = rep->region[0]->ops.at[0];
  ir_value *keep = inner->in[0];
  inner->in[0] = rep->in[0];
  expect_fault(x, "is defined outside this region");
  inner->in[0] = keep;

  // A wrong type, a wrong index.
  ir_op *a = find(x, IR_attention);
  ir_type was = a->out[0]->type;
  a->out[0]->type.dtype = DT_i32;
  expect_fault(x, "result 1 is i32[batch=2, seq=5, 12], its rule gives f32[batch=2, seq=5, 12]");
  a->out[0]->type = was;
  a->out[0]->type.dim[1] = ir_index_new(x->m, "other", 5);
  expect_fault(x, "makes index");
  a->out[0]->type = was;

  // Attributes: missing, unknown, unsorted.
  ir_op *d = find(x, IR_dropout);
  d->nattrs = 1;
  expect_fault(x, "dropout needs `p`");
  d->nattrs = 2;
  d->attr[0].key = "z";
  expect_fault(x, "dropout has no attribute `z`");
  d->attr[0].key = "key";

  // Carried values that change their type.
  ir_value *y = rep->region[0]->yield.at[0];
  rep->region[0]->yield.at[0] = rep->region[0]->args.at[0];
  expect_fault(x, "carried value 1");
  rep->region[0]->yield.at[0] = y;

  // Scalar regions, effects, stages.
  ir_region *mask = a->region[0];
  ir_op *bad = ir_op_raw(mask, IR_softmax, mask->args.at, 1, &mask->args.at[0]->type, 1);
  expect_fault(x, "a scalar region holds only elementwise ops");
  mask->ops.n--;
  ir_type none = ir_scalar(DT_f32);
  bad = ir_op_raw(rep->region[0], IR_input, NULL, 0, &none, 1);
  ir_set_attr(x->m, bad, ir_attr_s("name", "in"));
  expect_fault(x, "stands only in the body of a function");
  rep->region[0]->ops.n--;
  bad = ir_op_raw(body, IR_accumulate, a->out, 1, &a->out[0]->type, 1);
  expect_fault(x, "belongs to LOCAL");
  x->m->stage = IR_LOCAL;
  assert_null(ir_verify(x->m));
  x->m->stage = IR_GRAPH;
  body->ops.n--;

  // A value made twice.
  vec_push(&x->a, &body->ops, d);
  expect_fault(x, "is defined twice");
  body->ops.n--;
  assert_null(ir_verify(x->m));

  // Copies: unlike their weights, or left behind by them.
  ir_state copy = *ir_state_find(x->m, "h.#.w");
  copy.name = "h.#.w.bf16";
  copy.cls = STATE_COPY;
  copy.of = "h.#.w";
  ir_state *c = ir_state_add(x->m, copy);
  expect_fault(x, "a copy is bf16, of an f32 weight");
  c->type.dtype = DT_bf16;
  expect_fault(x, "weight h.#.w and its copy h.#.w.bf16 are not set together");
  ir_value *w = find(x, IR_state)->out[0];
  ir_attr to = ir_attr_s("dtype", "bf16"), name = ir_attr_s("name", "h.#.w.bf16");
  ir_value *small = ir_build_full(&x->b, IR_cast, &w, 1, &to, 1, NULL, 0)->out[0];
  ir_build_full(&x->b, IR_set, &small, 1, &name, 1, NULL, 0);
  assert_null(ir_verify(x->m));
  c->step = 2;
  expect_fault(x, "a copy is bf16, of an f32 weight");
  c->step = 1;
  c->of = "m:\"odd\"\n";
  expect_fault(x, "a copy is bf16, of an f32 weight");
  c->of = "h.#.w";
  const char *text = ir_print(x->m, &x->a), *error;
  ir_module *m = ir_parse(&x->a, text, strlen(text), &error);
  if (!m) fail_msg("%s", error);
  assert_string_equal(ir_print(m, &x->a), text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
      T(common_refinement),
      T(refinement_that_cannot_nest),
      T(refusal_changes_nothing),
      T(older_names_win),
      T(parts_of_one_are_dropped),
      T(long_products_nest),
      T(linear_rows),
      T(broadcast_aligns_right),
      T(scalar_types),
      T(einsum),
      T(movement),
      T(split_refines_and_join_undoes),
      T(words),
      T(attention_types),
      T(attention_messages),
      T(repeat_types),
      T(clone_and_replace),
      T(expressions),
      T(gradients_of_all_rows),
      T(gradient_of_a_chain),
      T(gradient_of_at),
      T(round_trip),
      T(placements_round_trip),
      T(recompute_round_trip),
      T(broken_texts),
      T(parser_messages),
      T(planted_faults),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
