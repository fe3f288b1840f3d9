// Adds gradient norm, clipping and the optimizer's updates to train_step.
//
// needs: `output {name="grad:NAME"}` per trained weight (pass differentiate). keeps: everything
// else. breaks: those outputs, which it consumes.
//
// norm = sqrt(sum over all gradients of g^2), a logged output; each gradient is scaled by
// min(1, clip / norm) when clip > 0. The updates are those of PyTorch's AdamW (decoupled decay) and
// SGD; learning rate, betas and the like are scalars of the argument block, so an executable takes
// them from its command line. What a weight multiplies learning rate and decay by are numbers of
// its update, 1 and 0 among them: weights are updated alike. Optimizer states become states of the
// module, named after their weight.

#include <string.h>

#include "ir/expr.h"
#include "passes/pass.h"

static ir_value *arg(ir_builder *b, const char *name) {
  ir_type t = ir_scalar(DT_f32);
  ir_op *op = ir_op_raw(b->at, IR_arg, NULL, 0, &t, 1);
  ir_set_attr(b->m, op, ir_attr_s("name", name));
  op->out[0]->name = name;
  return op->out[0];
}

static ir_value *read_state(ir_builder *b, const ir_state *s) {
  ir_op *op = ir_op_raw(b->at, IR_state, NULL, 0, &s->type, 1);
  ir_set_attr(b->m, op, ir_attr_s("name", s->name));
  return op->out[0];
}

static void write_state(ir_builder *b, const char *name, ir_value *v) {
  ir_op *op = ir_op_raw(b->at, IR_set, &v, 1, NULL, 0);
  ir_set_attr(b->m, op, ir_attr_s("name", name));
}

static ir_state *optimizer_state(ir_module *m, const ir_state *w, const char *what) {
  ir_state s = {.name = arena_printf(m->arena, "%s.%s", w->name, what),
                .type = w->type,
                .stacked = w->stacked,
                .first = w->first,
                .step = w->step,
                .cls = STATE_OPTIMIZER,
                .init = INIT_ZEROS,
                .of = w->name,
                .span = w->span};
  return ir_state_add(m, s);
}

static ir_value *emit(ir_builder *b, const char *text, const char *const *names,
                      ir_value *const *values, int n) {
  ir_value *out = NULL;
  if (ir_expr_emit(b, text, names, values, n, &out, 1) != 1)
    IR_BUG("optimize: `%s`: %s", text, b->error ? b->error : "?");
  return out;
}

// One elementwise update as a map: `text` over `params`, which are in[0..n).
static ir_op *update(ir_builder *b, const char *name, const char *params, const char *text,
                     ir_value *const *in, int n) {
  ir_dtype types[16];
  for (int i = 0; i < n; i++) types[i] = in[i]->type.dtype;
  ir_region *fn = ir_expr_region(b->m, NULL, params, text, types);
  if (!fn) IR_BUG("optimize: bad text `%s`", text);
  ir_attr a = ir_attr_s("name", name);
  ir_op *op = ir_build_full(b, IR_map, in, n, &a, 1, &fn, 1);
  if (!op) IR_BUG("optimize: %s", b->error);
  return op;
}

typedef struct scalars {
  ir_value *lr, *decay, *scale;  // scale: what clipping multiplies gradients by
  ir_value *beta1, *beta2, *eps, *bias1, *bias2, *momentum;
} scalars;

// PyTorch's AdamW: decay first, then the bias-corrected step.
static void adamw(ir_builder *b, const ir_state *w, ir_value *p, ir_value *g, const scalars *s,
                  ir_value *lr_scale, ir_value *decay_scale) {
  ir_state *m1 = optimizer_state(b->m, w, "m"), *m2 = optimizer_state(b->m, w, "v");
  ir_value *in[] = {p,        g,        read_state(b, m1), read_state(b, m2), s->scale,
                    s->lr,    s->decay, s->beta1,          s->beta2,          s->eps,
                    s->bias1, s->bias2, lr_scale,          decay_scale};
  ir_op *op = update(b, "adamw",
                     "p, g0, m, v, scale, lr0, decay0, beta1, beta2, eps, bias1, bias2, "
                     "lr_scale, decay_scale",
                     "lr = lr0 * lr_scale;"
                     "decay = decay0 * decay_scale;"
                     "g = g0 * scale;"
                     "m1 = beta1 * m + (1 - beta1) * g;"
                     "v1 = beta2 * v + (1 - beta2) * (g * g);"
                     "p * (1 - lr * decay) - lr / bias1 * (m1 / (sqrt(v1) / sqrt(bias2) + eps)),"
                     "m1, v1",
                     in, 14);
  write_state(b, w->name, op->out[0]);
  write_state(b, m1->name, op->out[1]);
  write_state(b, m2->name, op->out[2]);
}

// PyTorch's SGD, with decay decoupled as everywhere in dsmc.
static void sgd(ir_builder *b, const ir_state *w, ir_value *p, ir_value *g, const scalars *s,
                ir_value *lr_scale, ir_value *decay_scale, const pass_options *o) {
  if (!o->momentum) {
    ir_value *in[] = {p, g, s->scale, s->lr, s->decay, lr_scale, decay_scale};
    ir_op *op = update(b, "sgd", "p, g, scale, lr0, decay0, lr_scale, decay_scale",
                       "lr = lr0 * lr_scale; decay = decay0 * decay_scale;"
                       "p * (1 - lr * decay) - lr * (g * scale)",
                       in, 7);
    write_state(b, w->name, op->out[0]);
    return;
  }
  ir_state *u = optimizer_state(b->m, w, "u");
  ir_value *in[] = {p,        g,           read_state(b, u), s->scale,   s->lr,
                    s->decay, s->momentum, lr_scale,         decay_scale};
  ir_op *op = update(b, "sgd", "p, g0, u, scale, lr0, decay0, momentum, lr_scale, decay_scale",
                     o->nesterov ? "lr = lr0 * lr_scale; decay = decay0 * decay_scale;"
                                   "g = g0 * scale; u1 = momentum * u + g;"
                                   "p * (1 - lr * decay) - lr * (g + momentum * u1), u1"
                                 : "lr = lr0 * lr_scale; decay = decay0 * decay_scale;"
                                   "g = g0 * scale; u1 = momentum * u + g;"
                                   "p * (1 - lr * decay) - lr * u1, u1",
                     in, 9);
  write_state(b, w->name, op->out[0]);
  write_state(b, u->name, op->out[1]);
}

static ir_value *sum_of_squares(ir_builder *b, ir_value *g) {
  ir_value *sq = ir_build1(b, IR_square, g);
  int64_t axes[IR_MAX_RANK];
  for (int d = 0; d < g->type.rank; d++) axes[d] = d;
  if (g->type.rank == 0) return sq;
  ir_attr a = ir_attr_v("axes", axes, g->type.rank);
  ir_op *op = ir_build_full(b, IR_sum, &sq, 1, &a, 1, NULL, 0);
  if (!op) IR_BUG("optimize: %s", b->error);
  return op->out[0];
}

const char *pass_optimize(ir_module *m, const pass_options *o) {
  ir_func *f = ir_func_find(m, "train_step");
  if (!f) return NULL;
  ir_region *body = f->body;
  ir_builder b = {.m = m, .at = body};

  VEC(ir_state *) weights = {0};
  VEC(ir_value *) grads = {0};
  int kept = 0, n = body->ops.n;
  for (int i = 0; i < n; i++) {
    ir_op *op = body->ops.at[i];
    const char *name = op->code == IR_output ? ir_attr_str(op, "name", "") : "";
    if (!str_starts(name, "grad:")) {
      body->ops.at[kept++] = op;
      continue;
    }
    vec_push(m->bodies, &weights, ir_state_find(m, name + 5));
    vec_push(m->bodies, &grads, op->in[0]);
  }
  body->ops.n = kept;
  if (!weights.n) return "train_step has no gradients to optimize with";

  ir_value *total = NULL;
  for (int i = 0; i < grads.n; i++) {
    ir_value *s = sum_of_squares(&b, grads.at[i]);
    total = total ? ir_build2(&b, IR_add, total, s) : s;
  }
  ir_value *norm = ir_build1(&b, IR_sqrt, total);
  norm->name = "grad_norm";
  ir_op *out = ir_op_raw(body, IR_output, &norm, 1, NULL, 0);
  ir_set_attr(m, out, ir_attr_s("name", "grad_norm"));

  scalars s = {.lr = arg(&b, "lr"), .decay = arg(&b, "weight_decay")};
  ir_value *clip = arg(&b, "clip");
  const char *names[] = {"clip", "norm"};
  ir_value *values[] = {clip, norm};
  s.scale = emit(&b, "where(clip > 0, min(1, clip / norm), 1)", names, values, 2);
  s.scale->name = "scale";
  if (o->optimizer == OPT_ADAMW) {
    s.beta1 = arg(&b, "beta1"), s.beta2 = arg(&b, "beta2"), s.eps = arg(&b, "eps");
    s.bias1 = arg(&b, "bias1"), s.bias2 = arg(&b, "bias2");
  } else if (o->momentum) {
    s.momentum = arg(&b, "momentum");
  }
  for (int i = 0; i < weights.n; i++) {
    ir_state *w = weights.at[i];
    b.span = w->span;
    ir_value *p = read_state(&b, w);
    ir_value *lr_scale = ir_const(&b, DT_f32, w->lr_scale);
    ir_value *decay_scale = ir_const(&b, DT_f32, w->weight_decay);
    if (o->optimizer == OPT_ADAMW)
      adamw(&b, w, p, grads.at[i], &s, lr_scale, decay_scale);
    else
      sgd(&b, w, p, grads.at[i], &s, lr_scale, decay_scale, o);
  }
  return NULL;
}
