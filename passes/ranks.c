#include "passes/ranks.h"

#include "ir/expr.h"
#include "ir/place.h"
#include "passes/pass.h"

ir_value *ranks_exchange(ir_module *m, ir_region *r, ir_opcode code, ir_value *v, const ir_type *t,
                         unsigned axes, int64_t block, int64_t whole) {
  ir_op *op = ir_op_raw(r, code, &v, 1, t, 1);
  ir_set_attr(m, op, ir_attr_s("axes", mesh_axes_text(m->arena, m->mesh, axes)));
  if (code != IR_all_reduce) ir_set_attr(m, op, ir_attr_i("block", block));
  if (whole && code != IR_all_reduce) ir_set_attr(m, op, ir_attr_i("whole", whole));
  op->span = v->span;
  op->out[0]->name = v->name;
  return op->out[0];
}

// ---- the norm -----------------------------------------------------------------------------------

typedef VEC(ir_value *) value_list;

static ir_op *norm_op(ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code == IR_output && str_eq(ir_attr_str(op, "name", ""), "grad_norm"))
      return op->in[0]->def;
  }
  return NULL;
}

// The sums of squares that scalars are made of. False: something else is among them.
static bool find_sums(ir_module *m, const ir_op *op, value_list *out) {
  if (!ir_is_elementwise(op)) return false;
  bool good = true;
  for (int i = 0; i < op->nin; i++) {
    ir_value *v = op->in[i];
    if (!v->def || v->type.rank)
      good = false;
    else if (v->def->code == IR_sum)
      vec_push(m->arena, out, v);
    else if (v->def->code != IR_const)
      good &= find_sums(m, v->def, out);
  }
  return good;
}

// text(a0 + a1 + ...) of up to SUMMANDS values, at the end of `r`.
enum { SUMMANDS = 24 };
static ir_value *sum_of(ir_module *m, ir_region *r, ir_value *const *v, int n, int segment,
                        const char *text) {
  sb params = {.arena = m->arena}, sum = {.arena = m->arena};
  ir_dtype type[SUMMANDS];
  for (int i = 0; i < n; i++) {
    sb_printf(&params, "%sa%d", i ? ", " : "", i);
    sb_printf(&sum, "%sa%d", i ? " + " : "", i);
    type[i] = v[i]->type.dtype;
  }
  ir_region *fn =
      ir_expr_region(m, NULL, sb_str(&params), arena_printf(m->arena, text, sb_str(&sum)), type);
  ir_builder b = {.m = m, .at = r};
  ir_op *op = ir_build_full(&b, IR_map, v, n, NULL, 0, &fn, 1);
  if (!op) IR_BUG("norm: %s", b.error);
  op->segment = segment;
  return op->out[0];
}

// All of a list as one value.
static ir_value *total(ir_module *m, ir_region *r, value_list *l, int segment) {
  while (l->n > 1) {
    value_list less = {0};
    for (int i = 0; i < l->n; i += SUMMANDS) {
      int n = l->n - i < SUMMANDS ? l->n - i : SUMMANDS;
      vec_push(m->arena, &less, n == 1 ? l->at[i] : sum_of(m, r, l->at + i, n, segment, "%s"));
    }
    *l = less;
  }
  return l->at[0];
}

static ir_value *reduced(ir_module *m, ir_region *r, ir_value *v, unsigned axes, int segment) {
  ir_value *now = ranks_exchange(m, r, IR_all_reduce, v, &v->type, axes, 0, 0);
  now->def->segment = segment;
  return now;
}

static unsigned partial_of(const ir_value *v) {
  return v->place && v->place->partial == PARTIAL_SUM ? v->place->partial_axes : 0;
}

void ranks_complete_norm(ir_module *m, ir_func *f) {
  ir_region *r = f->body;
  ir_op *norm = norm_op(r);
  if (!norm) return;
  value_list sums = {0}, terms = {0};
  bool plain = find_sums(m, norm, &sums), any = false;
  for (int i = 0; i < sums.n; i++) any |= partial_of(sums.at[i]) != 0;
  if (!any) return;
  int at = pass_number_of(norm), before = r->ops.n, segment = norm->segment;
  if (plain) {
    bool *done = arena_new(m->arena, bool, sums.n);
    for (int i = 0; i < sums.n; i++) {
      unsigned over = partial_of(sums.at[i]);
      value_list same = {0};
      for (int k = i; k < sums.n && !done[i]; k++)
        if (partial_of(sums.at[k]) == over && (k == i || !done[k])) {
          vec_push(m->arena, &same, sums.at[k]);
          if (k > i) done[k] = true;
        }
      if (!same.n) continue;
      ir_value *v = total(m, r, &same, segment);
      vec_push(m->arena, &terms, over ? reduced(m, r, v, over, segment) : v);
    }
    ir_value *all = total(m, r, &terms, segment);
    ir_value *root = sum_of(m, r, &all, 1, segment, "sqrt(%s)");
    root->name = norm->out[0]->name;
    root->def->span = norm->span;
    ir_replace_uses(r, norm->out[0], root);
  }
  // What else reads a part (a weight of one element is squared where all is added; a norm of one
  // term may be made again by who scales with it) reads it made whole by itself.
  int built = r->ops.n - before;
  for (int i = 0; i < sums.n; i++) {
    ir_value *v = sums.at[i], *now = NULL;
    for (int k = 0; k < before && partial_of(v); k++) {
      ir_op *op = r->ops.at[k];
      for (int j = 0; j < op->nin; j++) {
        if (op->in[j] != v || (plain && op == norm)) continue;
        if (!now) now = reduced(m, r, v, partial_of(v), segment);
        op->in[j] = now;
      }
    }
    if (!now) continue;
    // Behind the sum itself.
    pass_move_last(r, pass_number_of(v->def) + 1);
    at++, before++;
  }
  IR_CHECK(r->ops.n == before + built);
  // In front of what reads them.
  for (int i = 0; i < built; i++) pass_move_last(r, at);
}
