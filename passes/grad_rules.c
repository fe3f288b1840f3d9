// One gradient rule per class of op, named by the `grad` column of ir/ops.def.
//
// A rule builds the gradients of its operands from the gradients of its results (either may be
// NULL: unused, or not wanted). Formulas are written in the comment of each rule. Shapes that were
// broadcast are summed by the caller (ad_add).

#include <string.h>

#include "ir/expr.h"
#include "ir/scalar_grad.h"
#include "passes/autodiff.h"

// ---- helpers ------------------------------------------------------------------------------------

static ir_value *op1(ad *c, ir_opcode code, ir_value *x) {
  return ad_ok(c, ir_build1(&c->b, code, x));
}

static ir_value *op2(ad *c, ir_opcode code, ir_value *x, ir_value *y) {
  return ad_ok(c, ir_build2(&c->b, code, x, y));
}

// An op like `op` (same attributes) on other operands, result k.
static ir_op *like(ad *c, ir_opcode code, ir_value **in, int nin, const ir_op *op) {
  ir_op *made = ir_build_full(&c->b, code, in, nin, op->attr, op->nattrs, NULL, 0);
  if (!made) ad_ok(c, NULL);
  return made;
}

static ir_op *with(ad *c, ir_opcode code, ir_value **in, int nin, const ir_attr *a, int na) {
  ir_op *made = ir_build_full(&c->b, code, in, nin, a, na, NULL, 0);
  if (!made) ad_ok(c, NULL);
  return made;
}

// Repeats g along the axes that a reduction removed (or kept with extent 1), to the type `t`.
static ir_value *respread(ad *c, ir_value *g, const ir_op *op, const ir_type *t) {
  const ir_attr *axes = ir_get_attr(op, "axes");
  bool keep = ir_attr_int(op, "keep", 0) != 0, gone[IR_MAX_RANK] = {false};
  for (int i = 0; i < axes->n; i++) gone[axes->v[i]] = true;
  if (keep)
    for (int d = t->rank - 1; d >= 0; d--)
      if (gone[d]) {
        ir_attr a = ir_attr_i("dim", d);
        g = with(c, IR_squeeze, &g, 1, &a, 1)->out[0];
      }
  int64_t dims[IR_MAX_RANK];
  int n = 0;
  for (int d = 0; d < t->rank; d++)
    if (!gone[d]) dims[n++] = d;
  ir_type out = *t;
  out.dtype = g->type.dtype;
  ir_op *made = ir_op_raw(c->b.at, IR_broadcast, &g, 1, &out, 1);
  ir_set_attr(c->m, made, ir_attr_v("dims", dims, n));
  return made->out[0];
}

// g[..., none]: an axis of extent 1 at the end.
static ir_value *last_axis(ad *c, ir_value *x) {
  ir_attr a = ir_attr_i("dim", x->type.rank);
  return with(c, IR_expand, &x, 1, &a, 1)->out[0];
}

// ---- elementwise --------------------------------------------------------------------------------

// SCALAR rows: the texts of their d0, d1, d2 columns.
static void grad_scalar(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  const ir_op_info *info = ir_info(op->code);
  const char *names[] = {"a", "b", "c", "r", "g"};
  ir_value *values[5] = {NULL, NULL, NULL, NULL, g[0]};
  for (int i = 0; i < op->nin; i++) {
    if (!info->grad[i][0] || !ad_active(c, op->in[i])) continue;
    // Only what the text names is used, so that nothing is saved in vain.
    const char *use[5];
    ir_value *given[5];
    int n = 0;
    for (int k = 0; k < 5; k++) {
      bool named = false;
      for (const char *p = info->grad[i]; *p; p++) {
        bool start = p == info->grad[i] || !((p[-1] >= 'a' && p[-1] <= 'z') || p[-1] == '_');
        bool end = !((p[1] >= 'a' && p[1] <= 'z') || p[1] == '_' || (p[1] >= '0' && p[1] <= '9'));
        named |= start && end && *p == names[k][0];
      }
      if (!named) continue;
      if (k < 3) values[k] = ad_use(c, op->in[k]);
      if (k == 3) values[k] = ad_use(c, op->out[0]);
      use[n] = names[k];
      given[n++] = values[k];
    }
    if (ir_expr_emit(&c->b, info->grad[i], use, given, n, &gin[i], 1) != 1) ad_ok(c, NULL);
  }
}

// A scalar region differentiated, as one `map` over (operands..., g).
static void grad_by_region(ad *c, ir_op *op, ir_region *fn, ir_value *const *g, ir_value **gin) {
  ir_module *m = c->m;
  bool *want = arena_new(m->arena, bool, op->nin + 1);
  ir_value **in = arena_new(m->arena, ir_value *, op->nin + op->nout);
  int n = 0;
  for (int i = 0; i < op->nin; i++) {
    want[i] = ad_active(c, op->in[i]);
    in[n++] = ad_use(c, op->in[i]);
  }
  for (int k = 0; k < op->nout; k++)
    in[n++] = g[k] ? g[k] : ir_const(&c->b, op->out[k]->type.dtype, 0);
  ir_region *d = ir_scalar_grad(m, fn, want);
  ir_op *made = ir_build_full(&c->b, IR_map, in, n, NULL, 0, &d, 1);
  if (!made) ad_ok(c, NULL);
  int k = 0;
  for (int i = 0; i < op->nin; i++)
    if (want[i]) gin[i] = made->out[k++];
}

static void grad_defined(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  ir_dtype types[8];
  for (int i = 0; i < op->nin; i++) types[i] = op->in[i]->type.dtype;
  grad_by_region(c, op, ir_defined_region(c->m, op->code, types), g, gin);
}

static void grad_map(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  if (op->nregions < 2) {
    grad_by_region(c, op, op->region[0], g, gin);
    return;
  }
  // The user's own gradient: region 1 yields one value per operand.
  ir_value **in = arena_new(c->m->arena, ir_value *, op->nin + op->nout);
  int n = 0;
  for (int i = 0; i < op->nin; i++) in[n++] = ad_use(c, op->in[i]);
  for (int k = 0; k < op->nout; k++) in[n++] = g[k];
  ir_region *d = ad_copy_region(c->m, op->region[1]);
  ir_op *made = ir_build_full(&c->b, IR_map, in, n, NULL, 0, &d, 1);
  if (!made) ad_ok(c, NULL);
  for (int i = 0; i < op->nin && i < made->nout; i++) gin[i] = made->out[i];
}

static void grad_cast(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  ir_attr a = ir_attr_s("dtype", ir_dtype_name(op->in[0]->type.dtype));
  ir_value *x = g[0];
  gin[0] = with(c, IR_cast, &x, 1, &a, 1)->out[0];
}

// The same draw, keyed by the op's path, times the gradient.
static void grad_dropout(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  ir_value *x = g[0];
  ir_op *made = like(c, IR_dropout, &x, 1, op);
  made->path = op->path;
  gin[0] = made->out[0];
}

// ---- movement -----------------------------------------------------------------------------------

static void grad_transpose(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  const ir_attr *perm = ir_get_attr(op, "perm");
  int64_t inverse[IR_MAX_RANK];
  for (int i = 0; i < perm->n; i++) inverse[perm->v[i]] = i;
  ir_attr a = ir_attr_v("perm", inverse, perm->n);
  ir_value *x = g[0];
  gin[0] = with(c, IR_transpose, &x, 1, &a, 1)->out[0];
}

static void grad_expand(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  ir_value *x = g[0];
  gin[0] = like(c, IR_squeeze, &x, 1, op)->out[0];
}

static void grad_squeeze(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  ir_value *x = g[0];
  gin[0] = like(c, IR_expand, &x, 1, op)->out[0];
}

static void grad_broadcast(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  const ir_attr *dims = ir_get_attr(op, "dims");
  const ir_type *from = &op->in[0]->type, *to = &op->out[0]->type;
  int64_t axes[IR_MAX_RANK];
  int n = 0;
  bool unit[IR_MAX_RANK] = {false};
  for (int d = 0; d < to->rank; d++) {
    int source = -1;
    for (int k = 0; k < dims->n; k++)
      if (dims->v[k] == d) source = k;
    bool repeats = source < 0 || from->dim[source]->size != to->dim[d]->size;
    if (!repeats) continue;
    if (source >= 0) unit[source] = true;
    axes[n++] = d;
  }
  ir_value *x = g[0];
  if (n) {
    ir_attr a = ir_attr_v("axes", axes, n);
    x = with(c, IR_sum, &x, 1, &a, 1)->out[0];
  }
  for (int k = 0; k < from->rank; k++)
    if (unit[k]) {
      ir_attr a = ir_attr_i("dim", k);
      x = with(c, IR_expand, &x, 1, &a, 1)->out[0];
    }
  gin[0] = x;
}

static void grad_slice(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  int dim = (int)ir_attr_int(op, "dim", 0);
  int64_t start = ir_attr_int(op, "start", 0), size = ir_attr_int(op, "size", 0);
  int64_t whole = op->in[0]->type.dim[dim]->size;
  ir_attr a[] = {ir_attr_i("dim", dim), ir_attr_i("before", start),
                 ir_attr_i("after", whole - start - size)};
  ir_value *x = g[0];
  if (whole == size) {
    gin[0] = x;
    return;
  }
  gin[0] = with(c, IR_pad, &x, 1, a, 3)->out[0];
}

static void grad_pad(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  int dim = (int)ir_attr_int(op, "dim", 0);
  ir_attr a[] = {ir_attr_i("dim", dim), ir_attr_i("start", ir_attr_int(op, "before", 0)),
                 ir_attr_i("size", op->in[0]->type.dim[dim]->size)};
  ir_value *x = g[0];
  gin[0] = with(c, IR_slice, &x, 1, a, 3)->out[0];
}

static void grad_concat(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  int dim = (int)ir_attr_int(op, "dim", 0);
  int64_t start = 0;
  for (int i = 0; i < op->nin; i++) {
    int64_t size = op->in[i]->type.dim[dim]->size;
    ir_attr a[] = {ir_attr_i("dim", dim), ir_attr_i("start", start), ir_attr_i("size", size)};
    ir_value *x = g[0];
    if (ad_active(c, op->in[i])) gin[i] = with(c, IR_slice, &x, 1, a, 3)->out[0];
    start += size;
  }
}

static void grad_join(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  grad_concat(c, op, g, gin);
}

static void grad_split(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  ir_value **in = arena_new(c->m->arena, ir_value *, op->nout);
  for (int k = 0; k < op->nout; k++) in[k] = g[k] ? g[k] : ad_zeros(c->b.at, &op->out[k]->type);
  gin[0] = like(c, IR_join, in, op->nout, op)->out[0];
}

static void grad_gather(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  ir_value *in[] = {g[0], ad_use(c, op->in[1])};
  ir_attr a = ir_attr_i("rows", op->in[0]->type.dim[0]->size);
  ir_op *made = ir_op_raw(c->b.at, IR_scatter_add, in, 2, &op->in[0]->type, 1);
  ir_set_attr(c->m, made, a);
  gin[0] = made->out[0];
}

// ---- contraction and reduction ------------------------------------------------------------------

// True when the one-letter or longer name `w` (of length n) is a word of `side`.
static bool has_word(const char *side, const char *end, const char *w, size_t n) {
  for (const char *p = side; p < end;) {
    while (p < end && *p == ' ') p++;
    const char *q = p;
    while (q < end && *q != ' ' && *q != ',') q++;
    if ((size_t)(q - p) == n && memcmp(p, w, n) == 0) return true;
    p = q < end && *q == ',' ? q + 1 : q;
    if (p == q && p < end && *p != ' ') p++;
  }
  return false;
}

static const char *trimmed(ad *c, const char *p, const char *end) {
  while (p < end && *p == ' ') p++;
  while (end > p && end[-1] == ' ') end--;
  return arena_strndup(c->m->arena, p, (size_t)(end - p));
}

// einsum "A, B -> C": dA = einsum "C, B -> A". An index of A that neither C nor B has was summed
// alone; its gradient repeats along it.
static void grad_einsum(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  const char *spec = ir_attr_str(op, "spec", "");
  const char *arrow = strstr(spec, "->"), *comma = memchr(spec, ',', (size_t)(arrow - spec));
  const char *out = arrow + 2, *out_end = spec + strlen(spec);
  for (int i = 0; i < op->nin; i++) {
    if (!ad_active(c, op->in[i])) continue;
    const char *own = i == 0 ? spec : comma + 1, *own_end = i == 0 && comma ? comma : arrow;
    const char *other = comma ? (i == 0 ? comma + 1 : spec) : NULL;
    const char *other_end = comma ? (i == 0 ? arrow : comma) : NULL;
    // The words of A that the gradient can have directly, and where they stand in A.
    sb kept = {.arena = c->m->arena};
    int64_t dims[IR_MAX_RANK];
    int n = 0, d = 0;
    for (const char *p = own; p < own_end;) {
      while (p < own_end && *p == ' ') p++;
      const char *q = p;
      while (q < own_end && *q != ' ') q++;
      if (q == p) break;
      if (has_word(out, out_end, p, (size_t)(q - p)) ||
          (other && has_word(other, other_end, p, (size_t)(q - p)))) {
        sb_put(&kept, ' ');
        sb_putn(&kept, p, (size_t)(q - p));
        dims[n++] = d;
      }
      d++;
      p = q;
    }
    ir_value *in[2] = {g[0], NULL};
    const char *text;
    if (other) {
      in[1] = ad_use(c, op->in[1 - i]);
      text = arena_printf(c->m->arena, "%s, %s ->%s", trimmed(c, out, out_end),
                          trimmed(c, other, other_end), sb_str(&kept));
    } else {
      text = arena_printf(c->m->arena, "%s ->%s", trimmed(c, out, out_end), sb_str(&kept));
    }
    ir_attr a[2] = {ir_attr_s("spec", text)};
    int na = 1;
    if (other && ir_get_attr(op, "round")) a[na++] = *ir_get_attr(op, "round");
    ir_value *r = with(c, IR_einsum, in, other ? 2 : 1, a, na)->out[0];
    if (n < d) {
      ir_type spread = op->in[i]->type;
      spread.dtype = r->type.dtype;  // ad_add casts it
      ir_op *made = ir_op_raw(c->b.at, IR_broadcast, &r, 1, &spread, 1);
      ir_set_attr(c->m, made, ir_attr_v("dims", dims, n));
      r = made->out[0];
    }
    gin[i] = r;
  }
}

static void grad_sum(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  gin[0] = respread(c, g[0], op, &op->in[0]->type);
}

// The gradient goes to the elements that are the maximum, in equal parts where several are.
static void grad_reduce_max(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  ir_value *x = ad_use(c, op->in[0]);
  ir_value *top = respread(c, ad_use(c, op->out[0]), op, &op->in[0]->type);
  ir_value *hit = op2(c, IR_eq, x, top);
  ir_attr to = ir_attr_s("dtype", ir_dtype_name(x->type.dtype));
  hit = with(c, IR_cast, &hit, 1, &to, 1)->out[0];
  ir_value *ties = like(c, IR_sum, &hit, 1, op)->out[0];
  ir_value *share = respread(c, op2(c, IR_div, g[0], ties), op, &op->in[0]->type);
  gin[0] = op2(c, IR_mul, share, hit);
}

// d lse(x) = softmax(x) = exp(x - lse)
static void grad_lse(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  ir_value *x = ad_use(c, op->in[0]), *y = last_axis(c, ad_use(c, op->out[0]));
  ir_value *p = op1(c, IR_exp, op2(c, IR_sub, x, y));
  gin[0] = op2(c, IR_mul, p, last_axis(c, g[0]));
}

static void grad_softmax(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  gin[0] = op2(c, IR_softmax_grad, g[0], ad_use(c, op->out[0]));
}

// ---- norms --------------------------------------------------------------------------------------

static void grad_layernorm(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  IR_CHECK(g[0] && !g[1] && !g[2]);
  ir_value *x = ad_use(c, op->in[0]), *mean = ad_use(c, op->out[1]), *rstd = ad_use(c, op->out[2]);
  if (ad_active(c, op->in[0])) {
    ir_value *in[] = {g[0], x, ad_use(c, op->in[1]), mean, rstd};
    gin[0] = with(c, IR_layernorm_grad, in, 5, NULL, 0)->out[0];
  }
  if (ad_active(c, op->in[1]) || ad_active(c, op->in[2])) {
    ir_value *in[] = {g[0], x, mean, rstd};
    ir_op *made = with(c, IR_layernorm_grad_w, in, 4, NULL, 0);
    gin[1] = made->out[0];
    gin[2] = made->out[1];
  }
}

static void grad_rmsnorm(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  IR_CHECK(g[0] && !g[1]);
  ir_value *x = ad_use(c, op->in[0]), *rrms = ad_use(c, op->out[1]);
  ir_attr heads = ir_attr_i("heads", ir_attr_int(op, "heads", 1));
  if (ad_active(c, op->in[0])) {
    ir_value *in[] = {g[0], x, ad_use(c, op->in[1]), rrms};
    gin[0] = with(c, IR_rmsnorm_grad, in, 4, &heads, 1)->out[0];
  }
  if (ad_active(c, op->in[1])) {
    ir_value *in[] = {g[0], x, rrms};
    gin[1] = with(c, IR_rmsnorm_grad_w, in, 3, &heads, 1)->out[0];
  }
}

// ---- loss, attention, positions -----------------------------------------------------------------

static void grad_nll(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  IR_CHECK(g[0] && !g[1]);
  ir_value *in[] = {g[0], ad_use(c, op->in[0]), ad_use(c, op->in[1]), ad_use(c, op->out[1])};
  gin[0] = like(c, IR_nll_grad, in, 4, op)->out[0];
}

static ir_op *attention_grad_op(ad *c, ir_opcode code, ir_op *op, ir_value **in, int nin,
                                int capture) {
  ir_region *regions[2];
  for (int i = 0; i < op->nregions; i++) regions[i] = ad_copy_region(c->m, op->region[i]);
  ir_attr attrs[16];
  int n = 0;
  for (int i = 0; i < op->nattrs; i++)
    if (!str_eq(op->attr[i].key, "past")) attrs[n++] = op->attr[i];
  if (code == IR_attention_grad) {
    ir_op *made = ir_build_full(&c->b, code, in, nin, attrs, n, regions, op->nregions);
    if (!made) ad_ok(c, NULL);
    return made;
  }
  ir_op *made = ir_op_raw(c->b.at, code, in, nin, &op->in[3 + capture]->type, 1);
  for (int i = 0; i < n; i++) ir_set_attr(c->m, made, attrs[i]);
  ir_set_attr(c->m, made, ir_attr_i("capture", capture));
  made->region = arena_new(c->m->arena, ir_region *, op->nregions);
  made->nregions = op->nregions;
  for (int i = 0; i < op->nregions; i++) {
    made->region[i] = regions[i];
    regions[i]->owner = made;
  }
  return made;
}

static void grad_attention(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  IR_CHECK(g[0] && !g[1]);
  int ncap = op->nin - 3, first_bias = (int)ir_attr_int(op, "ncap_mask", 0);
  ir_value **in = arena_new(c->m->arena, ir_value *, op->nin + 3);
  in[0] = g[0];
  in[1] = ad_use(c, op->out[0]);
  in[2] = ad_use(c, op->out[1]);
  for (int i = 0; i < op->nin; i++) in[3 + i] = ad_use(c, op->in[i]);
  if (ad_active(c, op->in[0]) || ad_active(c, op->in[1]) || ad_active(c, op->in[2])) {
    ir_op *made = attention_grad_op(c, IR_attention_grad, op, in, op->nin + 3, 0);
    for (int i = 0; i < 3; i++) gin[i] = made->out[i];
  }
  for (int k = first_bias; k < ncap; k++)
    if (ad_active(c, op->in[3 + k]))
      gin[3 + k] = attention_grad_op(c, IR_attention_grad_bias, op, in, op->nin + 3, k)->out[0];
}

static void grad_rope(ad *c, ir_op *op, ir_value *const *g, ir_value **gin) {
  ir_attr a[] = {ir_attr_i("heads", ir_attr_int(op, "heads", 1)),
                 ir_attr_f("theta", ir_attr_float(op, "theta", 1e4)),
                 ir_attr_i("inverse", !ir_attr_int(op, "inverse", 0))};
  ir_value *x = g[0];
  gin[0] = with(c, IR_rope, &x, 1, a, 3)->out[0];
}

// ---- the table ----------------------------------------------------------------------------------

#define grad_none NULL
#define grad_zero NULL
#define grad_repeat NULL  // differentiate.c does repeats itself

grad_fn *grad_rule(ir_opcode code) {
  const ir_op_info *info = ir_info(code);
  if (info->cls == IR_CLASS_SCALAR)
    return info->grad[0][0] || info->grad[1][0] || info->grad[2][0] ? grad_scalar : NULL;
  if (info->cls == IR_CLASS_DEFINED) return grad_defined;
  switch (code) {
#define SCALAR(name, arity, kinds, expr, d0, d1, d2, flops, doc)
#define DEFINED(name, params, text, flops, doc)
#define OP(name, nin, nout, rule, kinds, attrs, dtype, grad, interp, build, doc) \
  case IR_##name: return grad_##grad;
#include "ir/ops.def"
    default: return NULL;
  }
}
