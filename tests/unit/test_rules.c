// What a rank needs to know: every strategy of every op, against the whole op.
//
// A strategy promises what each rank can work out from what it holds. The interpreter runs the
// whole op on random operands; then
//
//   a result that is cut     has the right slice on rank r when all that r does not hold, of every
//                            operand that is cut, is something else;
//   one that is replicated   stays the same then (the loss alone sums within the op);
//   one that is partial      is the sum over the ranks of the op run with zeros where they hold
//                            nothing, or of the op run on the parts of its partial operands.
//
// Nothing here reads the op table: what an op computes is the interpreter's word, so a wrong kind
// in a row, or a wrong reading of it, fails.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include <math.h>

#include "ir/interp.h"
#include "tests/unit/draw.h"
#include "tests/unit/step_fixture.h"

enum { SIDES = 40 };

// One op in a function of its own, operands given as inputs.
typedef struct probe {
  arena a;
  const pg_graph *g;
  const pg_op *p;
  ir_func *f;
  uint64_t rng;
  bool positive;       // operands, where the op has no value for others
  double *in[SIDES];   // the whole operands
  double *out[SIDES];  // the whole results
  int ranks;
} probe;

static const ir_value *side_value(const probe *x, int side) {
  const ir_op *op = x->p->op;
  return side < op->nin ? op->in[side] : op->out[side - op->nin];
}
static int side_pg(const probe *x, int side) {
  return side < x->p->nin ? x->p->in[side] : x->p->out[side - x->p->nin];
}

static void make(probe *x, ir_module *m) {
  ir_op *op = (ir_op *)(uintptr_t)x->p->op;
  x->f = ir_func_new(m, arena_printf(m->arena, "probe%d", m->next_value), ENTRY_EVAL);
  for (int i = 0; i < op->nin; i++) {
    ir_op *in = ir_op_raw(x->f->body, IR_input, NULL, 0, &op->in[i]->type, 1);
    ir_set_attr(m, in, ir_attr_s("name", arena_printf(m->arena, "%d", i)));
    op->in[i]->mapped = in->out[0];
  }
  // An operand that is there twice has two inputs; the last one maps both, so clone, then say.
  ir_op *now = ir_clone_op(x->f->body, op);
  for (int i = 0; i < op->nin; i++) {
    now->in[i] = x->f->body->ops.at[i]->out[0];
    op->in[i]->mapped = NULL;
  }
  for (int i = 0; i < op->nout; i++) {
    ir_op *out = ir_op_raw(x->f->body, IR_output, &now->out[i], 1, NULL, 0);
    ir_set_attr(m, out, ir_attr_s("name", arena_printf(m->arena, "%d", i)));
    op->out[i]->mapped = NULL;
  }
}

// Values of whole numbers are ids of rows.
static double id_limit(const ir_op *op) {
  switch (op->code) {
    case IR_gather: return (double)op->in[0]->type.dim[0]->size;
    case IR_scatter_add: return (double)ir_attr_int(op, "rows", 1);
    case IR_nll: return (double)op->in[0]->type.dim[op->in[0]->type.rank - 1]->size;
    case IR_nll_grad: return (double)op->in[1]->type.dim[op->in[1]->type.rank - 1]->size;
    default: return 4;
  }
}

static double element(probe *x, const ir_value *v) {
  double r = draw_real(&x->rng);
  if (v->type.dtype == DT_bool) return r < 0.5;
  if (!ir_dtype_float(v->type.dtype)) return floor(r * id_limit(x->p->op));
  return x->positive ? 0.2 + r : 2 * r - 1;
}

static double *random_value(probe *x, const ir_value *v) {
  int64_t n = ir_elements(&v->type);
  double *d = arena_new(&x->a, double, n + 1);
  for (int64_t i = 0; i < n; i++) d[i] = element(x, v);
  return d;
}

static void run(probe *x, double *const *in, double **out) {
  const ir_op *op = x->p->op;
  ir_interp *t = ir_interp_new(&x->a, x->g->m);
  for (int i = 0; i < op->nin; i++)
    ir_interp_give(t, arena_printf(&x->a, "%d", i), in[i], ir_elements(&op->in[i]->type));
  const char *error = ir_interp_run(t, x->f->name);
  if (error) fail_msg("%s: %s", ir_info(op->code)->name, error);
  for (int i = 0; i < op->nout; i++) {
    int64_t n;
    const double *d = ir_interp_output(t, arena_printf(&x->a, "%d", i), &n);
    out[i] = arena_new(&x->a, double, n + 1);
    memcpy(out[i], d, sizeof *d * (size_t)n);
  }
}

static bool has_nan(const probe *x, double *const *out) {
  for (int i = 0; i < x->p->op->nout; i++)
    for (int64_t k = 0; k < ir_elements(&x->p->op->out[i]->type); k++)
      if (!isfinite(out[i][k])) return true;
  return false;
}

// ---- who holds an element -----------------------------------------------------------------------

// Walks a value's elements by one leaf: element e has coordinate e / stride % size.
typedef struct cut {
  int64_t size, stride, part;
} cut;

static cut cut_of(const probe *x, int side, int code) {
  const ir_value *v = side_value(x, side);
  const pg_value *p = &x->g->value.at[side_pg(x, side)];
  int leaf = code - SH_LEAF, shift = 0;
  // A stack seen above its repeat has a dim more.
  if (p->layers > 1 && x->p->times == 1 && v->type.rank && v->type.dim[0]->size == p->layers)
    shift = 1;
  int64_t stride = 1;
  for (int d = v->type.rank - 1; d >= 0; d--) {
    ir_index *l[IR_MAX_LEAVES];
    for (int n = ir_index_leaves(ir_root(v->type.dim[d]), l, IR_MAX_LEAVES), k = n - 1; k >= 0;
         k--) {
      if (d == p->dim[leaf] + shift && ir_root(l[k]) == p->leaf[leaf])
        return (cut){l[k]->size, stride, (l[k]->size + x->ranks - 1) / x->ranks};
      stride *= l[k]->size;
    }
  }
  fail_msg("%s: operand %d has no such leaf", ir_info(x->p->op->code)->name, side);
  return (cut){0};
}

static bool holds(cut c, int64_t e, int rank) { return e / c.stride % c.size / c.part == rank; }

// ---- the checks ---------------------------------------------------------------------------------

static bool close_to(double a, double b) { return fabs(a - b) <= 1e-9 * (1 + fabs(a) + fabs(b)); }

// Why the strategy is wrong, or NULL.
static const char *judge(probe *x, const sh_strategy *s) {
  const ir_op *op = x->p->op;
  int nin = op->nin, nout = op->nout;
  double *in[SIDES], *out[SIDES], *sum[SIDES];
  bool partial_in = false, cut_in = false;
  for (int i = 0; i < nin; i++) {
    partial_in |= s->code[i] == SH_PARTIAL;
    cut_in |= s->code[i] >= SH_LEAF;
  }
  for (int o = 0; o < nout; o++)
    sum[o] = arena_new(&x->a, double, ir_elements(&op->out[o]->type) + 1);

  // Partial operands: each rank has a part; the parts sum to the operand.
  double *part[SIDES][4];
  for (int i = 0; i < nin; i++) {
    int64_t n = ir_elements(&op->in[i]->type);
    if (s->code[i] != SH_PARTIAL) continue;
    for (int r = 0; r < x->ranks; r++) part[i][r] = random_value(x, op->in[i]);
    for (int64_t e = 0; e < n; e++) {
      part[i][x->ranks - 1][e] = x->in[i][e];
      for (int r = 0; r < x->ranks - 1; r++) part[i][x->ranks - 1][e] -= part[i][r][e];
    }
  }
  for (int zero = 0; zero < 2; zero++) {
    for (int r = 0; r < x->ranks; r++) {
      for (int i = 0; i < nin; i++) {
        in[i] = s->code[i] == SH_PARTIAL ? part[i][r] : x->in[i];
        if (s->code[i] < SH_LEAF) continue;
        cut c = cut_of(x, i, s->code[i]);
        double *other = random_value(x, op->in[i]);
        for (int64_t e = 0; e < ir_elements(&op->in[i]->type); e++)
          if (holds(c, e, r))
            other[e] = x->in[i][e];
          else if (zero)
            other[e] = 0;
        in[i] = other;
      }
      run(x, in, out);
      for (int o = 0; o < nout; o++) {
        int code = s->code[x->p->nin + o];
        int64_t n = ir_elements(&op->out[o]->type);
        if (code == SH_PARTIAL) {
          for (int64_t e = 0; e < n && zero; e++) sum[o][e] += out[o][e];
        } else if (code >= SH_LEAF) {
          cut c = cut_of(x, nin + o, code);
          for (int64_t e = 0; e < n; e++)
            if (holds(c, e, r) && !close_to(out[o][e], x->out[o][e]))
              return "a slice of a result needs what its rank does not hold";
        } else if (code == SH_REPLICATED && s->reduces <= 0) {
          for (int64_t e = 0; e < n; e++)
            if (!close_to(out[o][e], x->out[o][e])) return "a whole result needs more than it has";
        }
      }
    }
  }
  for (int o = 0; o < nout; o++)
    for (int64_t e = 0; e < ir_elements(&op->out[o]->type); e++)
      if (s->code[x->p->nin + o] == SH_PARTIAL && !close_to(sum[o][e], x->out[o][e]))
        return "parts of a result do not sum to it";
  if (s->cuts && !cut_in && !partial_in) {  // cut by what only results have: rows of a table
    bool any = false;
    for (int o = 0; o < nout; o++) any |= s->code[x->p->nin + o] >= SH_LEAF;
    if (!any) return "it cuts nothing";
  }
  return NULL;
}

static void begin(probe *x, const step *s, const pg_op *p, int ranks, uint64_t seed) {
  *x = (probe){.g = s->g, .p = p, .ranks = ranks, .rng = seed};
  arena_init(&x->a);
  make(x, s->m);
  // Drawn again where there is no value: roots of what is negative, attention of a sample without
  // keys.
  for (int draw = 0; draw < 16; draw++) {
    x->positive = draw % 2;
    for (int i = 0; i < p->op->nin; i++) x->in[i] = random_value(x, p->op->in[i]);
    run(x, x->in, x->out);
    if (!has_nan(x, x->out)) return;
  }
  fail_msg("%s has no value on random operands", ir_info(p->op->code)->name);
}

// Every strategy of every op of a step; `seen` counts them by op.
static void judge_all(const char *path, const char *settings, int *seen) {
  arena a;
  arena_init(&a);
  step s = step_of(&a, path, settings, RECOMPUTE_NONE);
  int wrong = 0;
  for (int i = 0; i < s.g->op.n; i++) {
    const pg_op *p = &s.g->op.at[i];
    if (p->kind != PG_OP) continue;
    for (int ranks = 2; ranks <= 3; ranks++) {
      probe x;
      begin(&x, &s, p, ranks, (uint64_t)i + 1);
      for (int k = 0; k < s.rules->n[i]; k++) {
        const sh_strategy *y = &s.rules->strategy[i][k];
        const char *why = judge(&x, y);
        seen[p->op->code]++;
        if (!why) continue;
        wrong++;
        print_error("%s: %s (%s), strategy %d of index %s:", path, pg_op_name(p),
                    ir_info(p->op->code)->name, k, y->index ? y->index->name : "-");
        for (int c = 0; c < p->nin + p->nout; c++) print_error(" %d", y->code[c]);
        print_error(": %s\n", why);
      }
      arena_free(&x.a);
    }
  }
  arena_free(&a);
  assert_int_equal(wrong, 0);
}

// In f32: a product of rounded operands is not the sum of products of rounded parts, to 1e-9.
#define SMALL "layers=2,hidden=24,heads=4,batch=2,"
static const char *const models[][2] = {
    {"examples/gpt2.dsm", SMALL "vocab=21,context=10,seq=10,drop=0.1"},
    {"examples/llama.dsm", SMALL "kv_heads=2,ffn=20,vocab=21,seq=10"},
    {"examples/bert.dsm", SMALL "vocab=21,context=10,seq=10"},
    {"examples/t5.dsm",
     "layers=2,hidden=24,heads=4,head=6,ffn=20,vocab=21,buckets=8,src=10,dst=7,"
     "batch=2"},
    {"tests/plan/opt.dsm", SMALL "vocab=21,context=10,seq=10,precision=f32"},
};
enum { MODELS = (int)(sizeof models / sizeof *models) };

static void test_every_strategy(void **state) {
  (void)state;
  static const ir_opcode must[] = {IR_einsum,
                                   IR_attention,
                                   IR_attention_grad,
                                   IR_layernorm,
                                   IR_gather,
                                   IR_rmsnorm,
                                   IR_layernorm_grad,
                                   IR_rmsnorm_grad,
                                   IR_rope,
                                   IR_scatter_add,
                                   IR_nll,
                                   IR_nll_grad,
                                   IR_sum,
                                   IR_dropout,
                                   IR_layernorm_grad_w,
                                   IR_rmsnorm_grad_w,
                                   IR_attention_grad_bias};
  int seen[IR_OPCODE_COUNT] = {0}, total = 0;
  for (int i = 0; i < MODELS; i++) judge_all(models[i][0], models[i][1], seen);
  for (int i = 0; i < IR_OPCODE_COUNT; i++) total += seen[i];
  for (size_t i = 0; i < sizeof must / sizeof *must; i++)
    if (!seen[must[i]]) fail_msg("no model has %s", ir_info(must[i])->name);
  print_message("%d strategies\n", total);
}

// The judge has teeth: strategies that are wrong are found so.
static void test_wrong_ones_are_found(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  step s = step_of(&a, models[0][0], models[0][1], RECOMPUTE_NONE);
  int norms = 0, rows = 0, gelus = 0;
  for (int i = 0; i < s.g->op.n; i++) {
    const pg_op *p = &s.g->op.at[i];
    if (p->kind != PG_OP) continue;
    probe x;
    begin(&x, &s, p, 2, 5);
    signed char code[SIDES] = {0};
    for (int c = 0; c < p->nin + p->nout; c++) code[c] = side_pg(&x, c) < 0 ? -1 : SH_REPLICATED;
    sh_strategy y = {.code = code, .cuts = true};
    if (p->op->code == IR_layernorm) {  // its last index cut, which it takes a mean over
      int in = s.g->value.at[p->in[0]].nleaf - 1, out = s.g->value.at[p->out[0]].nleaf - 1;
      code[0] = (signed char)(SH_LEAF + in);
      code[p->nin] = (signed char)(SH_LEAF + out);
      assert_non_null(judge(&x, &y));
      norms++;
    } else if (p->op->code == IR_einsum) {
      // A row product whose result is called whole, a column product called partial.
      for (int k = 0; k < s.rules->n[i]; k++) {
        const sh_strategy *right = &s.rules->strategy[i][k];
        if (right->code[0] < SH_LEAF || right->code[1] < SH_LEAF) continue;
        if (right->code[2] != SH_PARTIAL) continue;
        for (int c = 0; c < 3; c++) code[c] = right->code[c];
        code[2] = SH_REPLICATED;
        assert_non_null(judge(&x, &y));
        rows++;
      }
    } else if (p->op->code == IR_gelu_tanh) {  // not linear
      code[0] = code[p->nin] = SH_PARTIAL;
      assert_non_null(judge(&x, &y));
      gelus++;
    }
    arena_free(&x.a);
  }
  assert_true(norms > 0 && rows > 0 && gelus > 0);
  arena_free(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_strategy),
      cmocka_unit_test(test_wrong_ones_are_found),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
