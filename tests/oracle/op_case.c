#include "tests/oracle/op_case.h"

#include <math.h>
#include <string.h>

#include "runtime/base/rng.h"

// ---- modules of a case --------------------------------------------------------------------------

// The k-th `output` of a function, or NULL.
ir_op *oc_output(const ir_func *f, int k) {
  for (int i = 0; i < f->body->ops.n; i++)
    if (f->body->ops.at[i]->code == IR_output && k-- == 0) return f->body->ops.at[i];
  return NULL;
}

const char *oc_lower(op_case *c, ir_module **m, ir_func **f) {
  h_text t = h_lower(c->a, c->dsm, NULL, c->sets, SEMA_OUTPUTS);
  if (!t.m) return arena_printf(c->a, "does not lower:\n%s", t.error);
  *m = t.m;
  *f = ir_func_find(t.m, "outputs");
  if (!*f) return "no function `outputs`";
  // Outputs are numbered, so that an output `loss` is nothing special.
  for (int k = 0; oc_output(*f, k); k++)
    ir_set_attr(t.m, oc_output(*f, k), ir_attr_s("name", arena_printf(c->a, "out.%d", k)));
  if (!oc_output(*f, c->nout - 1) || oc_output(*f, c->nout))
    return "other outputs than in the data";
  return NULL;
}

static ir_op *input_op(const ir_func *f, const char *name) {
  for (int i = 0; i < f->body->ops.n; i++) {
    ir_op *op = f->body->ops.at[i];
    if (op->code == IR_input && str_eq(ir_attr_str(op, "name", ""), name)) return op;
  }
  return NULL;
}

// Float inputs become trained weights, and the function a train_step with a loss.
static const char *make_trainable(op_case *c, ir_module *m, ir_func *f) {
  for (int i = 0; i < c->n; i++) {
    ir_op *op = input_op(f, c->names[i]);
    if (!op || !ir_dtype_float(op->out[0]->type.dtype)) continue;
    op->code = IR_state;
    ir_state_add(m, (ir_state){.name = c->names[i],
                               .type = op->out[0]->type,
                               .trained = true,
                               .cls = STATE_WEIGHT,
                               .weight_decay = 1,
                               .lr_scale = 1});
  }
  f->name = "train_step";
  f->kind = ENTRY_TRAIN;
  ir_builder b = {.m = m, .at = f->body};
  ir_value *loss = NULL;
  for (int k = 0; k < c->nout; k++) {
    ir_value *y = oc_output(f, k)->in[0];
    ir_type t = y->type;
    t.dtype = DT_f32;
    ir_op *g = ir_op_raw(f->body, IR_input, NULL, 0, &t, 1);
    ir_set_attr(m, g, ir_attr_s("name", arena_printf(c->a, "weight.%d", k)));
    ir_value *part = ir_build2(&b, IR_mul, y, g->out[0]);
    if (part && part->type.rank) {
      int64_t axes[IR_MAX_RANK];
      for (int d = 0; d < part->type.rank; d++) axes[d] = d;
      ir_attr all = ir_attr_v("axes", axes, part->type.rank);
      ir_op *sum = ir_build_full(&b, IR_sum, &part, 1, &all, 1, NULL, 0);
      part = sum ? sum->out[0] : NULL;
    }
    if (part && loss) part = ir_build2(&b, IR_add, loss, part);
    if (!part) return arena_printf(c->a, "no loss: %s", b.error);
    loss = part;
  }
  ir_op *out = ir_op_raw(f->body, IR_output, &loss, 1, NULL, 0);
  ir_set_attr(m, out, ir_attr_s("name", "loss"));
  return NULL;
}

const char *oc_lower_trainable(op_case *c, ir_module **m, ir_func **f) {
  const char *why = oc_lower(c, m, f);
  return why ? why : make_trainable(c, *m, *f);
}

// ---- checks -------------------------------------------------------------------------------------

ir_interp *oc_interp(op_case *c, ir_module *m, const ir_func *f) {
  ir_interp *x = ir_interp_new(c->a, m);
  for (int i = 0; i < c->n; i++) {
    if (input_op(f, c->names[i]))
      ir_interp_give(x, c->names[i], c->in[i], c->size[i]);
    else
      ir_interp_set_state(x, c->names[i], c->in[i], c->size[i]);
  }
  for (int k = 0; k < c->nout; k++)
    if (c->weight[k])
      ir_interp_give(x, arena_printf(c->a, "weight.%d", k), c->weight[k], c->out_size[k]);
  return x;
}

const char *oc_check_interp(op_case *c, ir_interp *x, const char *what, const char *name,
                            const double *want, int64_t n, double tolerance, double scale) {
  int64_t have = 0;
  const double *got = ir_interp_output(x, name, &have);
  if (!got || have != n)
    return arena_printf(c->a, "%s: output `%s` has %lld elements", what, name, (long long)have);
  return h_compare(c->a, arena_printf(c->a, "%s %s", what, name), got, want, n, tolerance, scale);
}

static const char *give_program(op_case *c, h_program *p, const prog_entry *e, const ir_func *f) {
  const char *why = NULL;
  for (int i = 0; i < c->n && !why; i++)
    why = input_op(f, c->names[i]) ? h_give(p, e, c->names[i], c->in[i], c->size[i])
                                   : h_set_state(p, c->names[i], c->in[i], c->size[i]);
  for (int k = 0; k < c->nout && !why; k++) {
    const char *name = arena_printf(c->a, "weight.%d", k);
    if (input_op(f, name)) why = h_give(p, e, name, c->weight[k], c->out_size[k]);
  }
  return why;
}

const char *oc_check_program(op_case *c, h_program *p, const prog_entry *e, const char *what,
                             const char *name, const double *want, int64_t n, double tolerance,
                             double scale) {
  double *got = arena_new(c->a, double, n + 1);
  const char *why = h_output(p, e, name, got, n);
  if (why) return arena_printf(c->a, "%s %s: %s", what, name, why);
  return h_compare(c->a, arena_printf(c->a, "%s %s", what, name), got, want, n, tolerance, scale);
}

// ---- random numbers, and what comes of them -----------------------------------------------------

static double *draw_numbers(op_case *c, uint64_t key, const char *name, const ir_type *t,
                            int limit) {
  int64_t n = ir_elements(t);
  double *x = arena_new(c->a, double, n + 1);
  key = base_hash(name, strlen(name), key);
  for (int64_t i = 0; i < n; i++)
    x[i] = limit ? (double)rng_below(key, (uint64_t)i, (uint64_t)limit)
                 : (double)(float)(2 * rng_unit(key, (uint64_t)i) - 1);
  return x;
}

static const char *add_tensor(op_case *c, uint64_t key, const char *name, const ir_type *t,
                              int limit) {
  if (c->n == MAX_TENSORS) return "too many tensors";
  c->names[c->n] = name;
  c->size[c->n] = ir_elements(t);
  c->in[c->n++] = draw_numbers(c, key, name, t, limit);
  return NULL;
}

const char *oc_draw(op_case *c, uint64_t key, const oc_limit *limit, int nlimits) {
  h_text t = h_lower(c->a, c->dsm, NULL, c->sets, SEMA_OUTPUTS);
  if (!t.m) return t.error;
  ir_func *f = ir_func_find(t.m, "outputs");
  const char *why = NULL;
  for (int i = 0; i < f->body->ops.n && !why; i++) {
    ir_op *op = f->body->ops.at[i];
    c->nout += op->code == IR_output;
    if (op->code != IR_input) continue;
    const char *name = ir_attr_str(op, "name", "");
    int below = 0;
    for (int k = 0; k < nlimits; k++)
      if (str_eq(limit[k].name, name)) below = limit[k].below;
    why = add_tensor(c, key, name, &op->out[0]->type, below);
  }
  for (int i = 0; i < t.m->states.n && !why; i++)
    why = add_tensor(c, key, t.m->states.at[i]->name, &t.m->states.at[i]->type, 0);
  if (c->nout > MAX_TENSORS) why = "too many outputs";
  for (int k = 0; k < c->nout && !why; k++) {
    const ir_type *y = &oc_output(f, k)->in[0]->type;
    c->out_size[k] = ir_elements(y);
    c->weight[k] = draw_numbers(c, key, arena_printf(c->a, "weight %d", k), y, 0);
  }
  return why;
}

static double *output_of(op_case *c, ir_interp *x, const char *name, int64_t n) {
  int64_t have = 0;
  const double *v = ir_interp_output(x, name, &have);
  if (!v || have != n) return NULL;
  double *copy = arena_new(c->a, double, n + 1);
  memcpy(copy, v, sizeof *v * (size_t)n);
  return copy;
}

const char *oc_reference(op_case *c) {
  ir_module *m;
  ir_func *f;
  const char *why = oc_lower(c, &m, &f);
  if (why) return why;
  ir_interp *x = oc_interp(c, m, f);
  if ((why = ir_interp_run(x, f->name))) return why;
  for (int k = 0; k < c->nout; k++)
    if (!(c->out[k] = output_of(c, x, arena_printf(c->a, "out.%d", k), c->out_size[k])))
      return "the interpreter has no such output";
  if ((why = oc_lower_trainable(c, &m, &f))) return why;
  pass_options o = pass_defaults();
  o.after = "differentiate";
  if ((why = pass_run(m, &o))) return why;
  x = oc_interp(c, m, f);
  if ((why = ir_interp_run(x, f->name))) return why;
  c->loss = *ir_interp_output(x, "loss", NULL);
  for (int i = 0; i < c->n; i++) {
    c->grad[i] = output_of(c, x, arena_printf(c->a, "grad:%s", c->names[i]), c->size[i]);
    if (c->grad[i])
      c->largest_gradient = fmax(c->largest_gradient, h_max_abs(c->grad[i], c->size[i]));
  }
  return NULL;
}

// ---- programs -----------------------------------------------------------------------------------

const char *oc_forward(op_case *c) {
  ir_module *m;
  ir_func *f;
  const char *why = oc_lower(c, &m, &f);
  if (why) return why;
  pass_options o = pass_defaults();
  if ((why = pass_run(m, &o))) return arena_printf(c->a, "passes: %s", why);
  if (c->see) c->see(m);
  h_program *p;
  if ((why = h_compile_for(c->a, m, 1, 0, c->device, &p)) || !p) return why;
  const prog_entry *e = prog_entry_of(&p->p, PROG_EVAL);
  if ((why = give_program(c, p, e, f))) return why;
  why = h_call(c->a, p, e, &(vm_step){0});
  for (int k = 0; k < c->nout && !why; k++)
    why = oc_check_program(c, p, e, "program", arena_printf(c->a, "out.%d", k), c->out[k],
                           c->out_size[k], c->forward, h_max_abs(c->out[k], c->out_size[k]));
  h_close(p);
  return why;
}

// Steps: no gradient anywhere, and the pass says that there is nothing to learn.
bool oc_flat(const op_case *c) { return c->largest_gradient == 0; }

// A loss sums errors of outputs, each well below the tolerance of the largest, times weights whose
// signs are random: a quarter of a standard deviation.
static double loss_scale(const op_case *c) {
  double squares = 0;
  for (int k = 0; k < c->nout; k++) {
    double y = h_max_abs(c->out[k], c->out_size[k]);
    for (int64_t i = 0; i < c->out_size[k]; i++) squares += pow(y * c->weight[k][i], 2);
  }
  return 0.25 * sqrt(squares);
}

const char *oc_gradients(op_case *c) {
  ir_module *m;
  ir_func *f;
  const char *why = oc_lower_trainable(c, &m, &f);
  if (why) return why;
  pass_options o = pass_defaults();
  o.only = h_passes_without(c->a, "optimize");
  why = pass_run(m, &o);
  if (why && oc_flat(c) && strstr(why, "depends on no trained weight")) return NULL;
  if (why) return arena_printf(c->a, "passes: %s", why);
  if (c->see) c->see(m);
  h_program *p;
  if ((why = h_compile_for(c->a, m, 1, 0, c->device, &p)))
    return arena_printf(c->a, "gradient: %s", why);
  if (!p) return NULL;
  const prog_entry *e = prog_entry_of(&p->p, PROG_TRAIN);
  if ((why = give_program(c, p, e, f))) return why;
  why = h_call(c->a, p, e, &(vm_step){0});
  if (!why && !isnan(c->loss))
    why = oc_check_program(c, p, e, "program's", "loss", &c->loss, 1, c->forward, loss_scale(c));
  for (int i = 0; i < c->n && !why; i++)
    if (c->grad[i])
      why = oc_check_program(
          c, p, e, "program's gradient", arena_printf(c->a, "grad:%s", c->names[i]), c->grad[i],
          c->size[i], c->gradient,
          fmax(h_max_abs(c->grad[i], c->size[i]), c->share * c->largest_gradient));
  h_close(p);
  return why;
}
