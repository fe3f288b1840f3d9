// Reverse-mode differentiation of scalar regions.
//
// The region is cloned (the forward part), then walked backwards: each op hands the gradient of its
// result to its operands by the texts in its row's gradient columns. Whole numbers and truth values
// carry no gradient, so a cast from an integer stops it. What the gradients do not need of the
// forward part is dropped at the end.
#include "ir/scalar_grad.h"

#include <string.h>

#include "ir/expr.h"

typedef struct walk {
  ir_module *m;
  ir_region *to;
  ir_builder b;
  ir_value **grad;   // by id - first: the gradient so far, or NULL
  int first, count;  // the ids of the cloned values
} walk;

// Texts and types come from the table, so a refusal is our bug.
static ir_value *must(walk *w, ir_value *v) {
  if (!v) IR_BUG("gradient of a scalar region: %s", w->b.error ? w->b.error : "?");
  return v;
}

static ir_value **slot(walk *w, const ir_value *v) {
  int i = v->id - w->first;
  return i >= 0 && i < w->count ? &w->grad[i] : NULL;
}

static ir_value *as_type(walk *w, ir_value *v, ir_dtype t) {
  if (v->type.dtype == t) return v;
  ir_attr to = ir_attr_s("dtype", ir_dtype_name(t));
  ir_op *op = ir_build_full(&w->b, IR_cast, &v, 1, &to, 1, NULL, 0);
  return must(w, op ? op->out[0] : NULL);
}

// Adds g to the gradient of v, if v can have one.
static void add(walk *w, ir_value *v, ir_value *g) {
  ir_value **p = slot(w, v);
  if (!p || v->type.rank || !ir_dtype_float(v->type.dtype)) return;
  g = as_type(w, g, v->type.dtype);
  *p = *p ? must(w, ir_build2(&w->b, IR_add, *p, g)) : g;
}

// One op backwards.
static void back(walk *w, const ir_op *op) {
  ir_value **p = slot(w, op->out[0]);
  if (!p || !*p) return;
  ir_value *g = *p;
  const ir_op_info *info = ir_info(op->code);
  if (info->cls == IR_CLASS_SCALAR) {
    const char *names[] = {"r", "g", "a", "b", "c"};
    ir_value *values[5] = {op->out[0], g};
    for (int i = 0; i < op->nin; i++) values[2 + i] = op->in[i];
    for (int i = 0; i < op->nin; i++) {
      if (!info->grad[i][0] || !ir_dtype_float(op->in[i]->type.dtype)) continue;
      ir_value *d = NULL;
      ir_expr_emit(&w->b, info->grad[i], names, values, 2 + op->nin, &d, 1);
      add(w, op->in[i], must(w, d));
    }
  } else if (op->code == IR_cast) {
    add(w, op->in[0], g);
  } else if (op->code == IR_dropout) {  // the same draw
    const char *path = w->b.path;
    w->b.path = op->path;
    ir_op *d = ir_build_full(&w->b, IR_dropout, &g, 1, op->attr, op->nattrs, NULL, 0);
    w->b.path = path;
    add(w, op->in[0], must(w, d ? d->out[0] : NULL));
  } else if (op->code == IR_at && op->nin == 1) {  // a captured scalar read as it is
    add(w, op->in[0], g);
  }
}

// Clones one op; a DEFINED one becomes the ops of its text, so that the walk meets only primitives.
static void clone(walk *w, ir_op *op) {
  const ir_op_info *info = ir_info(op->code);
  if (info->cls != IR_CLASS_DEFINED) {
    ir_clone_op(w->to, op);
    return;
  }
  ir_dtype types[3];
  for (int i = 0; i < op->nin; i++) types[i] = op->in[i]->type.dtype;
  ir_region *body = ir_defined_region(w->m, op->code, types);
  for (int i = 0; i < op->nin; i++)
    body->args.at[i]->mapped = op->in[i]->mapped ? op->in[i]->mapped : op->in[i];
  ir_clone_ops(w->to, body);
  ir_value *v = body->yield.at[0];
  op->out[0]->mapped = v->mapped ? v->mapped : v;
}

// Removes ops that nothing uses. Marks are this function's own.
static void drop_unused(ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) r->ops.at[i]->out[0]->mark = 0;
  for (int i = 0; i < r->yield.n; i++) r->yield.at[i]->mark = 1;
  for (int i = r->ops.n - 1; i >= 0; i--) {
    ir_op *op = r->ops.at[i];
    if (op->out[0]->mark)
      for (int k = 0; k < op->nin; k++) op->in[k]->mark = 1;
  }
  int n = 0;
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->out[0]->mark) r->ops.at[n++] = r->ops.at[i];
  r->ops.n = n;
}

// The forward part and the gradients of all its values. `mapped` of fn's values stays set until
// `finish`.
static void run(walk *w, ir_module *m, ir_region *fn) {
  *w = (walk){.m = m, .to = ir_region_new(m, NULL), .first = m->next_value};
  w->b = (ir_builder){.m = m, .at = w->to};
  for (int i = 0; i < fn->args.n; i++) {
    ir_value *a = fn->args.at[i];
    a->mapped = ir_region_arg(w->to, a->type, a->name);
  }
  for (int i = 0; i < fn->ops.n; i++) clone(w, fn->ops.at[i]);
  int forward = w->to->ops.n;
  w->count = m->next_value - w->first;
  w->grad = arena_new(m->arena, ir_value *, w->count);
  for (int i = 0; i < fn->yield.n; i++) {
    ir_value *y = fn->yield.at[i];
    ir_value *g = ir_region_arg(w->to, y->type, fn->yield.n == 1 ? "g" : NULL);
    add(w, y->mapped, g);
  }
  for (int i = forward - 1; i >= 0; i--) back(w, w->to->ops.at[i]);
}

// Leaves no mark on `fn`: `mapped` belongs to whoever clones next.
static ir_region *finish(walk *w, ir_region *fn) {
  for (int i = 0; i < fn->args.n; i++) fn->args.at[i]->mapped = NULL;
  for (int i = 0; i < fn->ops.n; i++) fn->ops.at[i]->out[0]->mapped = NULL;
  drop_unused(w->to);
  return w->to;
}

// What has arrived at v; zero when nothing has.
static ir_value *gradient(walk *w, const ir_value *v) {
  ir_value **p = slot(w, v);
  if (p && *p) return *p;
  ir_dtype t = ir_dtype_float(v->type.dtype) ? v->type.dtype : DT_f32;
  return must(w, ir_const(&w->b, t, 0));
}

ir_region *ir_scalar_grad(ir_module *m, ir_region *fn, const bool *want) {
  walk w;
  run(&w, m, fn);
  for (int i = 0; i < fn->args.n; i++)
    if (want[i]) vec_push(m->arena, &w.to->yield, gradient(&w, fn->args.at[i]->mapped));
  return finish(&w, fn);
}

int ir_scalar_ats(const ir_region *fn, int arg, int *out, int max) {
  int n = 0;
  for (int i = 0; i < fn->ops.n; i++) {
    const ir_op *op = fn->ops.at[i];
    if (op->code != IR_at || op->in[0] != fn->args.at[arg]) continue;
    if (n < max) out[n] = i;
    n++;
  }
  return n;
}

ir_region *ir_scalar_grad_at(ir_module *m, ir_region *fn, int at) {
  walk w;
  run(&w, m, fn);
  const ir_op *op = fn->ops.at[at];
  IR_CHECK(op->code == IR_at);
  vec_push(m->arena, &w.to->yield, gradient(&w, op->out[0]->mapped));
  for (int i = 1; i < op->nin; i++)
    vec_push(m->arena, &w.to->yield, op->in[i]->mapped ? op->in[i]->mapped : op->in[i]);
  return finish(&w, fn);
}
