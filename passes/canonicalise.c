// One form for equal things.
//
// needs: nothing. keeps: values up to the bit. breaks: nothing.
// Rewrites, each exact in floating point: arithmetic on constants; x - 0, x * 1, x / 1 (x + 0 is
// not: -0 + 0 is +0); cast to the same type, and back to it from a wider one; dropout with p = 0; a
// slice, pad or broadcast that changes nothing; transpose of transpose; the transpose of an einsum
// that nobody else reads, which writes its result turned instead (so that what follows, an
// optimizer for one, reads it in order).
// What would change a bit (x * 0, reassociation) is left alone.

#include <math.h>
#include <string.h>

#include "passes/pass.h"

static bool is_const(const ir_value *v, double *x) {
  if (!v->def || v->def->code != IR_const) return false;
  *x = ir_attr_float(v->def, "value", 0);
  return true;
}

static bool same_shape(const ir_value *a, const ir_value *b) {
  return ir_type_same(&a->type, &b->type);
}

static ir_value *fold_scalar(ir_module *m, ir_op *op) {
  double x[3] = {0, 0, 0};
  bool all = op->nin > 0, is[3] = {false, false, false};
  for (int i = 0; i < op->nin; i++) all &= is[i] = is_const(op->in[i], &x[i]);
  ir_value *out = op->out[0];
  if (all && out->type.rank == 0 && out->type.dtype != DT_i32) {
    double v = ir_scalar_value(op->code, x[0], x[1], x[2]);
    if (!isfinite(v)) return NULL;
    op->code = IR_const;
    op->nin = 0;
    op->nattrs = 0;
    ir_set_attr(m, op, ir_attr_f("value", v));
    ir_set_attr(m, op, ir_attr_s("dtype", ir_dtype_name(out->type.dtype)));
    return NULL;
  }
  switch (op->code) {
    case IR_sub: return is[1] && x[1] == 0 && same_shape(out, op->in[0]) ? op->in[0] : NULL;
    case IR_mul:
      if (is[1] && x[1] == 1 && same_shape(out, op->in[0])) return op->in[0];
      if (is[0] && x[0] == 1 && same_shape(out, op->in[1])) return op->in[1];
      return NULL;
    case IR_div: return is[1] && x[1] == 1 && same_shape(out, op->in[0]) ? op->in[0] : NULL;
    default: return NULL;
  }
}

static bool identity_perm(const ir_attr *perm) {
  for (int i = 0; i < perm->n; i++)
    if (perm->v[i] != i) return false;
  return true;
}

// `perm` for the words behind the arrow: "b s k, n k -> b s n" with [2, 0, 1] is "... -> n b s".
static const char *permuted_spec(ir_module *m, const char *spec, const ir_attr *perm) {
  const char *word[IR_MAX_RANK], *arrow = strstr(spec, "->");
  int length[IR_MAX_RANK], n = 0;
  for (const char *p = arrow ? arrow + 2 : ""; *p;) {
    p += strspn(p, " ");
    int len = (int)strcspn(p, " ");
    if (len && n == IR_MAX_RANK) return NULL;
    if (len) word[n] = p, length[n++] = len;
    p += len;
  }
  if (!arrow || n != perm->n) return NULL;
  sb s = {.arena = m->arena};
  sb_printf(&s, "%.*s", (int)(arrow + 2 - spec), spec);
  for (int i = 0; i < n; i++) sb_printf(&s, " %.*s", length[perm->v[i]], word[perm->v[i]]);
  return sb_str(&s);
}

// The einsum under a transpose, made to write its result turned; NULL when others read it too.
static ir_value *turn_einsum(ir_module *m, const ir_op *op) {
  ir_value *v = op->in[0];
  const ir_attr *perm = ir_get_attr(op, "perm");
  if (!v->def || v->def->code != IR_einsum || v->mark != 1) return NULL;
  for (int i = 0; i < perm->n; i++)
    if (!ir_index_same(v->type.dim[perm->v[i]], op->out[0]->type.dim[i])) return NULL;
  const char *spec = permuted_spec(m, ir_attr_str(v->def, "spec", ""), perm);
  if (!spec) return NULL;
  ir_set_attr(m, v->def, ir_attr_s("spec", spec));
  ir_type t = v->type;
  for (int i = 0; i < perm->n; i++) v->type.dim[i] = t.dim[perm->v[i]];
  return v;
}

// A number that was widened and is rounded to what it was is itself.
static ir_value *narrowed_again(const ir_op *cast) {
  const ir_op *wide = cast->in[0]->def;
  if (!wide || wide->code != IR_cast) return NULL;
  const ir_type *t = &wide->in[0]->type, *between = &cast->in[0]->type;
  bool exact = ir_dtype_float(t->dtype) && (between->dtype == DT_f32 || between->dtype == DT_f64) &&
               ir_dtype_bytes(t->dtype) < ir_dtype_bytes(between->dtype);
  return exact && ir_type_same(t, &cast->out[0]->type) ? wide->in[0] : NULL;
}

// The value that can stand for the op's only result, or NULL.
static ir_value *simplify(ir_module *m, ir_op *op) {
  if (op->nout != 1) return NULL;
  if (ir_info(op->code)->cls == IR_CLASS_SCALAR) return fold_scalar(m, op);
  ir_value *out = op->out[0];
  switch (op->code) {
    case IR_cast: return same_shape(out, op->in[0]) ? op->in[0] : narrowed_again(op);
    case IR_dropout: return ir_attr_float(op, "p", 0) == 0 ? op->in[0] : NULL;
    case IR_slice:
      return same_shape(out, op->in[0]) && !ir_attr_int(op, "past", 0) ? op->in[0] : NULL;
    case IR_pad:
    case IR_broadcast: return same_shape(out, op->in[0]) ? op->in[0] : NULL;
    case IR_transpose: {
      const ir_attr *perm = ir_get_attr(op, "perm");
      if (identity_perm(perm)) return op->in[0];
      ir_op *before = op->in[0]->def;
      if (before && before->code == IR_einsum) return turn_einsum(m, op);
      if (!before || before->code != IR_transpose) return NULL;
      const ir_attr *first = ir_get_attr(before, "perm");
      int64_t both[IR_MAX_RANK];
      for (int i = 0; i < perm->n; i++) both[i] = first->v[perm->v[i]];
      op->in[0] = before->in[0];
      ir_set_attr(m, op, ir_attr_v("perm", both, perm->n));
      return identity_perm(ir_get_attr(op, "perm")) ? op->in[0] : NULL;
    }
    default: return NULL;
  }
}

// Value->mark holds use counts.
static void rewrite(ir_module *m, ir_region *r) {
  int kept = 0;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nin; k++)
      while (op->in[k]->mapped) op->in[k] = op->in[k]->mapped;
    for (int k = 0; k < op->nregions; k++) rewrite(m, op->region[k]);
    ir_value *now = simplify(m, op);
    if (now) {
      bool same = true;
      for (int d = 0; d < now->type.rank && same; d++)
        same = ir_index_unify(m, now->type.dim[d], op->out[0]->type.dim[d]);
      if (same) {
        now->mark += op->out[0]->mark - 1;
        op->out[0]->mapped = now;
        continue;
      }
    }
    r->ops.at[kept++] = op;
  }
  r->ops.n = kept;
  for (int i = 0; i < r->yield.n; i++)
    while (r->yield.at[i]->mapped) r->yield.at[i] = r->yield.at[i]->mapped;
}

const char *pass_canonicalise(ir_module *m, const pass_options *o) {
  (void)o;
  for (int i = 0; i < m->funcs.n; i++) {
    pass_clear_mapped(m->funcs.at[i]->body);
    pass_count_uses(m->funcs.at[i]->body);
    rewrite(m, m->funcs.at[i]->body);
  }
  return NULL;
}
