// Every op against numbers that owe nothing to dsmc: PyTorch's in float64 (tests/oracle/README.md).
//
//   oracle_ops [--here] [--cuda [--keep] [--beside]] [NAME...]   cases whose names begin so
//
// --here: in this process. --cuda: programs run as CUDA kernels under the emulation
// (tests/oracle/emulated.h); what the interpreter alone has to do with is left out. --keep leaves
// the folder with the functions, one a file, and prints its name; --beside compares each launch
// with host code of the same kernel, to find the kernel that is wrong.
//
// A case is a model that computes one op. It is checked in four ways:
//   interp    the interpreter of GRAPH gives PyTorch's values, to 1e-9 of the tensor's largest;
//   program   so does the whole pipeline in f32, to 1e-5;
//   gradient  with every float input a trained weight and loss = sum(output * weights), pass
//             differentiate gives PyTorch's gradients in the interpreter, to 1e-8, and in a
//             compiled program by the rule of DESIGN section 8;
//   slope     differences of the interpreter's values give the same gradients.
// Optimizer cases go through pass `optimize`. Ops that have no single value to write down (dropout,
// repeat, micro-batches, caches) have cases here. At the end every row of ir/ops.def must have been
// met by a case that was interpreted and compiled.

#include <dirent.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ir/place.h"
#include "runtime/base/rng.h"
#include "tests/oracle/decode_check.h"
#include "tests/oracle/emulated.h"
#include "tests/oracle/op_case.h"

#ifndef ORACLE_DATA
#define ORACLE_DATA "tests/oracle/data"
#endif

// ---- which rows of the op table were met --------------------------------------------------------

typedef struct coverage {
  int met[IR_OPCODE_COUNT];
} coverage;

static coverage *seen;    // shared with the processes of the cases
static h_device *device;  // NULL: programs run on the host

static void see_op(void *ctx, ir_op *op) {
  (void)ctx;
  seen->met[op->code]++;
}

static void see(ir_module *m) {
  for (int i = 0; i < m->funcs.n; i++) pass_walk(m->funcs.at[i]->body, see_op, NULL);
}

static int report_unseen(void) {
  int unseen = 0, exchanges = 0;
  for (int i = 0; i < IR_OPCODE_COUNT; i++) {
    // What ranks exchange needs ranks: tests/unit/test_comm.c and tests/e2e/ranks.py. So does what
    // goes on with a part that was handed on: in parts is as whole, tests/unit/test_interp.c, and
    // kernels are as the interpreter, test_kernel.c.
    if (seen->met[i] || ir_is_exchange((ir_opcode)i) || i == IR_place || i == IR_attention_next) {
      exchanges += !seen->met[i];
      continue;
    }
    printf("FAILED coverage: no case meets op `%s`\n", ir_info((ir_opcode)i)->name);
    unseen++;
  }
  if (!unseen)
    printf("ok coverage: all %d rows of the op table that one rank can do\n",
           IR_OPCODE_COUNT - exchanges);
  return unseen;
}

// ---- a case of the data -------------------------------------------------------------------------

// Tolerances of the compiled program, relative to the tensor's largest magnitude.
typedef struct looser {
  const char *name;
  double forward, gradient;
  const char *why;
} looser;
static const looser loose[] = {
    {"log_softmax_4", 1e-3, 1e-3,
     "log-sum-exp of logits near 1e4, stored in f32, is rounded by 5e-4"},
    {"softmax_3", 1e-5, 1e-1,
     "one probability is 1 - 1e-6: y * (g - sum(g * y)) is 1e-6 of its parts"},
};

static const looser *loose_of(const char *name) {
  static const looser strict = {"", 1e-5, 1e-4, ""};
  for (size_t i = 0; i < sizeof loose / sizeof *loose; i++)
    if (str_eq(loose[i].name, name)) return &loose[i];
  return &strict;
}

static double *tensor(op_case *c, const char *what, int i, int64_t *n) {
  const st_tensor *t = st_find(&c->file, arena_printf(c->a, "%s.%d", what, i));
  return t ? h_numbers(c->a, t, n) : NULL;
}

static const char *load_case(op_case *c) {
  status *s =
      st_open(c->a, arena_printf(c->a, ORACLE_DATA "/ops/%s.safetensors", c->name), &c->file);
  if (s) return s->message;
  c->op = map_get(&c->file.metadata, "op");
  c->dsm = map_get(&c->file.metadata, "dsm");
  char *names = arena_strdup(c->a, map_get(&c->file.metadata, "names"));
  for (char *rest = NULL, *w = strtok_r(names, " ", &rest); w; w = strtok_r(NULL, " ", &rest)) {
    if (c->n == MAX_TENSORS) return "too many tensors";
    c->names[c->n] = w;
    int64_t n;
    c->in[c->n] = tensor(c, "in", c->n, &c->size[c->n]);
    c->grad[c->n] = tensor(c, "grad_in", c->n, &n);
    if (c->grad[c->n]) c->largest_gradient = fmax(c->largest_gradient, h_max_abs(c->grad[c->n], n));
    c->n++;
  }
  for (; c->nout < MAX_TENSORS; c->nout++) {
    c->out[c->nout] = tensor(c, "out", c->nout, &c->out_size[c->nout]);
    if (!c->out[c->nout]) break;
    int64_t n;
    double *w = c->weight[c->nout] = tensor(c, "grad_out", c->nout, &n);
    if (!w) c->loss = NAN;
    for (int64_t i = 0; w && i < n; i++) c->loss += w[i] * c->out[c->nout][i];
    if (fabs(c->loss) > FLT_MAX) c->loss = NAN;  // f32 has no such number
  }
  return NULL;
}

static double meta_number(const op_case *c, const char *key) {
  const char *text = map_get(&c->file.metadata, key);
  return text ? strtod(text, NULL) : 0;
}

static bool has_gradient(const op_case *c) {
  for (int i = 0; i < c->n; i++)
    if (c->grad[i]) return true;
  return false;
}

// Stored in 16 bits, a value is right to half a step of that type.
static double storage_tolerance(const ir_func *f, int k) {
  switch (oc_output(f, k)->in[0]->type.dtype) {
    case DT_bf16: return 0x1p-8;
    case DT_f16: return 0x1p-11;
    default: return 0;
  }
}

static const char *forward_interp(op_case *c) {
  ir_module *m;
  ir_func *f;
  const char *why = oc_lower(c, &m, &f);
  if (why) return why;
  ir_interp *x = oc_interp(c, m, f);
  if ((why = ir_interp_run(x, f->name))) return arena_printf(c->a, "interp: %s", why);
  see(m);
  // The interpreter does not round to storage types, the reference does.
  for (int k = 0; k < c->nout && !why; k++)
    why =
        oc_check_interp(c, x, "interp", arena_printf(c->a, "out.%d", k), c->out[k], c->out_size[k],
                        fmax(1e-9, storage_tolerance(f, k)), h_max_abs(c->out[k], c->out_size[k]));
  return why;
}

// ---- gradients ----------------------------------------------------------------------------------

static const char *gradients_interp(op_case *c) {
  ir_module *m;
  ir_func *f;
  const char *why = oc_lower_trainable(c, &m, &f);
  if (why) return why;
  pass_options o = pass_defaults();
  o.after = "differentiate";
  why = pass_run(m, &o);
  if (why && oc_flat(c) && strstr(why, "depends on no trained weight")) return NULL;
  if (why) return arena_printf(c->a, "passes: %s", why);
  see(m);
  ir_interp *x = oc_interp(c, m, f);
  if ((why = ir_interp_run(x, f->name))) return arena_printf(c->a, "interp: %s", why);
  for (int i = 0; i < c->n && !why; i++)
    if (c->grad[i])
      why = oc_check_interp(c, x, "gradient", arena_printf(c->a, "grad:%s", c->names[i]),
                            c->grad[i], c->size[i], 1e-8,
                            fmax(h_max_abs(c->grad[i], c->size[i]), 1e-3 * c->largest_gradient));
  return why;
}

// ---- differences --------------------------------------------------------------------------------

// sum of weight * (y(x + h v) - y(x - h v)), element by element, so that nothing drowns.
static const char *difference(op_case *c, ir_module *m, ir_func *f, int i, const double *h,
                              double *out) {
  double *kept = c->in[i], *y[2][MAX_TENSORS];
  for (int side = 0; side < 2; side++) {
    double *moved = arena_new(c->a, double, c->size[i] + 1);
    for (int64_t k = 0; k < c->size[i]; k++) moved[k] = kept[k] + (side ? -h[k] : h[k]);
    c->in[i] = moved;
    ir_interp *x = oc_interp(c, m, f);
    c->in[i] = kept;
    const char *why = ir_interp_run(x, f->name);
    if (why) return why;
    for (int k = 0; k < c->nout; k++) {
      const double *v = ir_interp_output(x, arena_printf(c->a, "out.%d", k), NULL);
      y[side][k] = arena_new(c->a, double, c->out_size[k] + 1);
      memcpy(y[side][k], v, sizeof *v * (size_t)c->out_size[k]);
    }
  }
  *out = 0;
  for (int k = 0; k < c->nout; k++)
    for (int64_t j = 0; j < c->out_size[k]; j++)
      *out += c->weight[k][j] * (y[0][k][j] - y[1][k][j]);
  return NULL;
}

static const char *slope_along(op_case *c, ir_module *m, ir_func *f, int i, const double *h,
                               const char *which) {
  double got = 0, want = 0, size = 0, noise = 0;
  const char *why = difference(c, m, f, i, h, &got);
  if (why) return why;
  for (int64_t k = 0; k < c->size[i]; k++) {
    double moved = (c->in[i][k] + h[k]) - (c->in[i][k] - h[k]);  // as rounded
    want += c->grad[i][k] * moved;
    size += fabs(c->grad[i][k] * moved);
  }
  double step = h_max_abs(h, c->size[i]);
  for (int k = 0; k < c->nout; k++)
    for (int64_t j = 0; j < c->out_size[k]; j++)
      noise += fabs(c->weight[k][j] * c->out[k][j]) * 0x1p-51;
  noise *= 1 + h_max_abs(c->in[i], c->size[i]);
  size = fmax(size, 2e-3 * c->largest_gradient * step);
  if (fabs(got - want) <= 1e-4 * size + noise) return NULL;
  return arena_printf(c->a, "slope along %s of %s is %.9g, the gradient says %.9g", which,
                      c->names[i], got / step, want / step);
}

static const char *slopes(op_case *c) {
  ir_module *m;
  ir_func *f;
  const char *why = oc_lower(c, &m, &f);
  bool relative = str_eq(c->op, "log") || str_eq(c->op, "sqrt") || str_eq(c->op, "rsqrt");
  for (int i = 0; i < c->n && !why; i++) {
    if (!c->grad[i]) continue;
    uint64_t key = rng_key((uint64_t)i, 77);
    double *h = arena_new(c->a, double, c->size[i] + 1);
    for (int64_t k = 0; k < c->size[i]; k++) {
      double sign = rng_unit(key, (uint64_t)k) < 0.5 ? -1 : 1;
      h[k] = sign * 1e-6 * (relative ? fabs(c->in[i][k]) : 1);
    }
    why = slope_along(c, m, f, i, h, "a random direction");
    for (int t = 0; t < 12 && !why; t++) {
      int64_t k =
          c->size[i] <= 12 ? t : (int64_t)rng_below(key, 1000 + (uint64_t)t, (uint64_t)c->size[i]);
      if (k >= c->size[i]) break;
      double *one = arena_new(c->a, double, c->size[i] + 1);
      one[k] = h[k];
      why = slope_along(c, m, f, i, one, arena_printf(c->a, "element %lld", (long long)k));
    }
  }
  return why;
}

// ---- optimizers ---------------------------------------------------------------------------------

// A train_step whose gradients are inputs.
static ir_module *optimizer_module(op_case *c, const char *const *weight, const int *grad, int n) {
  ir_module *m = ir_module_new(c->a, c->name);
  ir_func *f = ir_func_new(m, "train_step", ENTRY_TRAIN);
  for (int i = 0; i < n; i++) {
    const st_tensor *t = st_find(&c->file, arena_printf(c->a, "in.%d", grad[i]));
    ir_type shape = {.dtype = DT_f32, .rank = (int)t->rank};
    for (uint32_t d = 0; d < t->rank; d++) shape.dim[d] = ir_index_new(m, NULL, t->dims[d]);
    ir_state_add(m, (ir_state){.name = weight[i],
                               .type = shape,
                               .trained = true,
                               .cls = STATE_WEIGHT,
                               .weight_decay = t->rank >= 2,
                               .lr_scale = 1});
    ir_op *g = ir_op_raw(f->body, IR_input, NULL, 0, &shape, 1);
    ir_set_attr(m, g, ir_attr_s("name", c->names[grad[i]]));
    ir_op *out = ir_op_raw(f->body, IR_output, g->out, 1, NULL, 0);
    ir_set_attr(m, out, ir_attr_s("name", arena_printf(c->a, "grad:%s", weight[i])));
  }
  return m;
}

// What a step is told and what it must leave: states by name, args by name.
typedef struct expectation {
  const char *name[MAX_TENSORS];
  const double *before[MAX_TENSORS], *after[MAX_TENSORS];
  int64_t size[MAX_TENSORS];
  int n;
  const char *arg[MAX_TENSORS];
  double value[MAX_TENSORS];
  int nargs;
  double norm;  // NAN: not checked
} expectation;

static void expect_state(expectation *x, const char *name, const double *before,
                         const double *after, int64_t n) {
  x->name[x->n] = name;
  x->before[x->n] = before;
  x->after[x->n] = after;
  x->size[x->n++] = n;
}

static void expect_arg(expectation *x, const char *name, double v) {
  x->arg[x->nargs] = name;
  x->value[x->nargs++] = v;
}

static const char *step_interp(op_case *c, ir_module *m, const expectation *e) {
  ir_interp *x = ir_interp_new(c->a, m);
  for (int i = 0; i < c->n; i++) ir_interp_give(x, c->names[i], c->in[i], c->size[i]);
  for (int i = 0; i < e->n; i++) ir_interp_set_state(x, e->name[i], e->before[i], e->size[i]);
  for (int i = 0; i < e->nargs; i++) ir_interp_give(x, e->arg[i], &e->value[i], 1);
  const char *why = ir_interp_run(x, "train_step");
  if (why) return why;
  for (int i = 0; i < e->n && !why; i++) {
    int64_t n = 0;
    const double *got = ir_interp_state(x, e->name[i], &n);
    if (!got || n != e->size[i]) return arena_printf(c->a, "no state %s", e->name[i]);
    why = h_compare(c->a, arena_printf(c->a, "interp %s", e->name[i]), got, e->after[i], n, 1e-9,
                    h_max_abs(e->after[i], n));
  }
  if (!why && !isnan(e->norm))
    why = oc_check_interp(c, x, "interp", "grad_norm", &e->norm, 1, 1e-9, e->norm);
  return why;
}

static const char *step_program(op_case *c, ir_module *m, const expectation *x) {
  h_program *p;
  const char *why = h_compile_for(c->a, m, 1, 0, device, &p);
  if (why || !p) return why;
  const prog_entry *e = prog_entry_of(&p->p, PROG_TRAIN);
  for (int i = 0; i < c->n; i++)
    if (prog_input(&p->p, e, c->names[i]))
      why = why ? why : h_give(p, e, c->names[i], c->in[i], c->size[i]);
  for (int i = 0; i < x->n && !why; i++) why = h_set_state(p, x->name[i], x->before[i], x->size[i]);
  for (int i = 0; i < x->nargs; i++) vm_set_arg(p->vm, x->arg[i], x->value[i]);
  if (why) return why;
  why = h_call(c->a, p, e, &(vm_step){0});
  for (int i = 0; i < x->n && !why; i++) {
    double *got = arena_new(c->a, double, x->size[i] + 1);
    why = h_get_state(p, x->name[i], got, x->size[i]);
    if (!why)
      why = h_compare(c->a, arena_printf(c->a, "program %s", x->name[i]), got, x->after[i],
                      x->size[i], 1e-5, h_max_abs(x->after[i], x->size[i]));
  }
  if (!why && !isnan(x->norm))
    why = oc_check_program(c, p, e, "program", "grad_norm", &x->norm, 1, 1e-5, x->norm);
  h_close(p);
  return why;
}

static const char *optimizer(op_case *c) {
  expectation e = {.norm = NAN};
  pass_options o = pass_defaults();
  const char *weight[MAX_TENSORS] = {"p"};
  int grad[MAX_TENSORS] = {1}, n = 1;
  double step = meta_number(c, "step");
  if (str_eq(c->op, "adamw")) {
    expect_state(&e, "p", c->in[0], c->out[0], c->size[0]);
    expect_state(&e, "p.m", c->in[2], c->out[1], c->size[0]);
    expect_state(&e, "p.v", c->in[3], c->out[2], c->size[0]);
    double b1 = meta_number(c, "beta1"), b2 = meta_number(c, "beta2");
    expect_arg(&e, "beta1", b1), expect_arg(&e, "beta2", b2),
        expect_arg(&e, "eps", meta_number(c, "eps"));
    expect_arg(&e, "bias1", 1 - pow(b1, step)), expect_arg(&e, "bias2", 1 - pow(b2, step));
  } else if (str_eq(c->op, "sgd")) {
    o.optimizer = OPT_SGD;
    o.momentum = meta_number(c, "momentum") != 0;
    expect_state(&e, "p", c->in[0], c->out[0], c->size[0]);
    if (o.momentum) expect_state(&e, "p.u", c->in[2], c->out[1], c->size[0]);
    if (o.momentum) expect_arg(&e, "momentum", meta_number(c, "momentum"));
  } else {
    // A step of size 1 down from 0 leaves minus the clipped gradient.
    o.optimizer = OPT_SGD;
    n = c->n;
    for (int i = 0; i < n; i++) {
      weight[i] = arena_printf(c->a, "p%d", i);
      grad[i] = i;
      double *minus = arena_new(c->a, double, c->size[i] + 1);
      for (int64_t k = 0; k < c->size[i]; k++) minus[k] = -c->out[i][k];
      expect_state(&e, weight[i], arena_new(c->a, double, c->size[i] + 1), minus, c->size[i]);
    }
    e.norm = c->out[n][0];
  }
  bool clips = str_eq(c->op, "clip");
  expect_arg(&e, "lr", clips ? 1 : meta_number(c, "lr"));
  expect_arg(&e, "weight_decay", meta_number(c, "weight_decay"));
  expect_arg(&e, "clip", meta_number(c, "clip"));

  ir_module *m = optimizer_module(c, weight, grad, n);
  o.only = "optimize";
  const char *why = pass_run(m, &o);
  if (!why) why = step_interp(c, m, &e);
  if (why) return why;
  see(m);
  m = optimizer_module(c, weight, grad, n);
  o.only = h_passes_without(c->a, "differentiate");
  why = pass_run(m, &o);
  if (why) return why;
  see(m);
  return step_program(c, m, &e);
}

static const char *run_case(arena *a, void *ctx) {
  op_case c = {.name = ctx,
               .a = a,
               .sets = "batch=1,steps=1",
               .forward = loose_of(ctx)->forward,
               .gradient = loose_of(ctx)->gradient,
               .share = 1e-3,
               .device = device,
               .see = see};
  const char *why = load_case(&c);
  if (why) return why;
  if (!c.dsm) return optimizer(&c);
  bool gradient = has_gradient(&c);
  if (!device) {
    why = forward_interp(&c);
    if (!why && gradient) why = gradients_interp(&c);
    // The slope of rounding is nought or infinite.
    if (!why && gradient && !str_eq(c.op, "cast")) why = slopes(&c);
  }
  if (!why) why = oc_forward(&c);
  if (!why && gradient) why = oc_gradients(&c);
  return why;
}

// ---- cases of our own: structure ----------------------------------------------------------------

// Losses and gradients of `text` as interpreter and program see them; `micro` samples at a time.
typedef struct run_of {
  double loss;
  int n;
  const ir_state *state[32];
  const char *name[32];
  const double *grad[32];
  int64_t size[32];
} run_of;

static double drawn(const char *name, int64_t i) {
  return rng_unit(base_hash(name, strlen(name), 1), (uint64_t)i) - 0.5;
}

// The name of slice k of a stack: "h.#.w" is "h.2.w".
static const char *slice_name(arena *a, const ir_state *s, int64_t k) {
  const char *mark = strchr(s->name, '#');
  if (!s->stacked || !mark) return s->name;
  return arena_printf(a, "%.*s%lld%s", (int)(mark - s->name), s->name,
                      (long long)(s->first + k * s->step), mark + 1);
}

// Deterministic numbers for an input: below 5 for integers.
static double *fill(arena *a, const char *name, const ir_type *t) {
  int64_t n = ir_elements(t);
  double *x = arena_new(a, double, n + 1);
  for (int64_t i = 0; i < n; i++)
    x[i] = ir_dtype_float(t->dtype) ? (double)(float)drawn(name, i)
                                    : floor(5 * (drawn(name, i) + 0.5));
  return x;
}

// For a state: slices are drawn under their own names, so stacking changes nothing.
static double *fill_state(arena *a, const ir_state *s) {
  int64_t n = ir_elements(&s->type), slices = s->stacked ? s->type.dim[0]->size : 1;
  double *x = arena_new(a, double, n + 1);
  for (int64_t i = 0; i < n; i++)
    x[i] = (double)(float)drawn(slice_name(a, s, i / (n / slices)), i % (n / slices));
  return x;
}

static const char *lower_train(arena *a, const char *text, h_text *t) {
  *t = h_lower(a, text, NULL, NULL, SEMA_TRAIN);
  return t->m ? NULL : t->error;
}

// The whole batch in float64.
static const char *reference(arena *a, const char *text, run_of *r) {
  h_text t;
  const char *why = lower_train(a, text, &t);
  if (why) return why;
  see(t.m);
  pass_options o = pass_defaults();
  o.after = "differentiate";
  if ((why = pass_run(t.m, &o))) return why;
  ir_func *f = ir_func_find(t.m, "train_step");
  ir_interp *x = ir_interp_new(a, t.m);
  x->seed = 3;
  for (int i = 0; i < t.m->states.n; i++) {
    ir_state *s = t.m->states.at[i];
    ir_interp_set_state(x, s->name, fill_state(a, s), ir_elements(&s->type));
  }
  for (int i = 0; i < f->body->ops.n; i++) {
    ir_op *op = f->body->ops.at[i];
    const char *name = ir_attr_str(op, "name", "");
    if (op->code == IR_input)
      ir_interp_give(x, name, fill(a, name, &op->out[0]->type), ir_elements(&op->out[0]->type));
  }
  if ((why = ir_interp_run(x, "train_step"))) return why;
  *r = (run_of){.loss = *ir_interp_output(x, "loss", NULL)};
  for (int i = 0; i < t.m->states.n && r->n < 32; i++) {
    r->state[r->n] = t.m->states.at[i];
    r->name[r->n] = t.m->states.at[i]->name;
    r->grad[r->n] = ir_interp_output(x, arena_printf(a, "grad:%s", r->name[r->n]), &r->size[r->n]);
    if (!r->grad[r->n]) return arena_printf(a, "no gradient of %s", r->name[r->n]);
    r->n++;
  }
  return NULL;
}

static const char *against(arena *a, const char *text, int64_t micro, const run_of *r) {
  h_text t;
  const char *why = lower_train(a, text, &t);
  if (why) return why;
  pass_options o = pass_defaults();
  o.only = h_passes_without(a, "optimize");
  o.micro_batch = micro;
  int64_t batch = t.m->batch ? ir_root(t.m->batch)->size : 1;
  // Sizes before the batch is cut.
  ir_func *f = ir_func_find(t.m, "train_step");
  VEC(ir_op *) inputs = {0};
  VEC(double *) data = {0};
  VEC(int64_t) size = {0};
  for (int i = 0; i < f->body->ops.n; i++) {
    ir_op *op = f->body->ops.at[i];
    if (op->code != IR_input) continue;
    vec_push(a, &inputs, op);
    vec_push(a, &data, fill(a, ir_attr_str(op, "name", ""), &op->out[0]->type));
    vec_push(a, &size, ir_elements(&op->out[0]->type));
  }
  if ((why = pass_run(t.m, &o))) return why;
  see(t.m);
  h_program *p;
  if ((why = h_compile_for(a, t.m, batch, 0, device, &p)) || !p) return why;
  const prog_entry *e = prog_entry_of(&p->p, PROG_TRAIN);
  for (int i = 0; i < t.m->states.n && !why; i++) {
    ir_state *s = t.m->states.at[i];
    why = h_set_state(p, s->name, fill_state(a, s), ir_elements(&s->type));
  }
  for (int i = 0; i < inputs.n && !why; i++)
    if (prog_input(&p->p, e, ir_attr_str(inputs.at[i], "name", "")))
      why = h_give(p, e, ir_attr_str(inputs.at[i], "name", ""), data.at[i], size.at[i]);
  if (!why) why = h_call(a, p, e, &(vm_step){.seed = 3});
  if (why) return why;
  double loss, largest = 0;
  if ((why = h_output(p, e, "loss", &loss, 1))) return why;
  if ((why = h_compare(a, "loss", &loss, &r->loss, 1, 1e-5, fabs(r->loss)))) return why;
  for (int i = 0; i < r->n; i++) largest = fmax(largest, h_max_abs(r->grad[i], r->size[i]));
  for (int i = 0; i < r->n && !why; i++) {
    double *got = arena_new(a, double, r->size[i] + 1);
    const char *name = arena_printf(a, "grad:%s", r->name[i]);
    why = h_output(p, e, name, got, r->size[i]);
    if (!why)
      why = h_compare(a, name, got, r->grad[i], r->size[i], 1e-4,
                      fmax(h_max_abs(r->grad[i], r->size[i]), 1e-3 * largest));
  }
  h_close(p);
  return why;
}

static const char head[] =
    "train m { batch = 6; steps = 1 }\n"
    "model m {\n  dim batch\n  input x : f32[batch, 5, 8]\n  input t : i32[batch, 5]\n";

// A rolled repeat is what it says when written out.
static const char *repeat_case(arena *a, void *ctx) {
  (void)ctx;
  static const char rolled[] =
      "  repeat (3) as h[i] { x = x + tanh(linear(layernorm(x) as n, 8, bias=true) as p) }\n"
      "  output loss = cross_entropy(linear(x, 7) as head, t)\n}\n";
  static const char written[] =
      "  x = x + tanh(linear(layernorm(x) as h.0.n, 8, bias=true) as h.0.p)\n"
      "  x = x + tanh(linear(layernorm(x) as h.1.n, 8, bias=true) as h.1.p)\n"
      "  x = x + tanh(linear(layernorm(x) as h.2.n, 8, bias=true) as h.2.p)\n"
      "  output loss = cross_entropy(linear(x, 7) as head, t)\n}\n";
  run_of r, w;
  const char *one = arena_printf(a, "%s%s", head, rolled),
             *two = arena_printf(a, "%s%s", head, written);
  const char *why = reference(a, one, &r);
  if (!why) why = reference(a, two, &w);
  if (why) return why;
  why = h_compare(a, "loss of the rolled model", &r.loss, &w.loss, 1, 1e-12, fabs(w.loss));
  for (int i = 0; i < r.n && !why; i++) {
    int64_t slices = r.state[i]->stacked ? r.state[i]->type.dim[0]->size : 1,
            n = r.size[i] / slices;
    for (int64_t k = 0; k < slices && !why; k++) {
      const char *name = slice_name(a, r.state[i], k);
      int j = 0;
      while (j < w.n && !str_eq(w.name[j], name)) j++;
      if (j == w.n) return arena_printf(a, "the model written out has no %s", name);
      why = h_compare(a, name, r.grad[i] + k * n, w.grad[j], n, 1e-12, h_max_abs(w.grad[j], n));
    }
  }
  if (!why) why = against(a, one, 0, &r);
  if (!why) why = against(a, two, 0, &w);
  return why;
}

// Cutting the batch changes nothing; masked targets are counted over the whole batch first.
static const char *micro_case(arena *a, void *ctx) {
  (void)ctx;
  const char *text =
      arena_printf(a,
                   "%s  weight scale : [8] = ones\n  x = rmsnorm(x) as n\n"
                   "  repeat (2) as h[i] { x = x + silu(linear(x, 8) as p) * scale }\n"
                   "  output loss = cross_entropy(linear(x, 7) as head, t, ignore=2)\n}\n",
                   head);
  run_of r;
  const char *why = reference(a, text, &r);
  for (int64_t micro = 0; micro <= 3 && !why; micro++) {
    why = against(a, text, micro, &r);
    if (why) why = arena_printf(a, "micro_batch = %d: %s", (int)micro, why);
  }
  return why;
}

static const char *dropout_case(arena *a, void *ctx) {
  (void)ctx;
  const char *text =
      arena_printf(a,
                   "%s  weight w : [5, 8] = ones\n  x = dropout(x + w, 0.25)\n"
                   "  repeat (2) as h[i] { x = x + dropout(linear(x, 8) as p, 0.5) }\n"
                   "  output loss = cross_entropy(linear(x, 7) as head, t)\n}\n",
                   head);
  run_of r;
  const char *why = reference(a, text, &r);
  for (int64_t micro = 0; micro <= 2 && !why; micro++) {
    why = against(a, text, micro, &r);
    if (why) why = arena_printf(a, "micro_batch = %d: %s", (int)micro, why);
  }
  return why;
}

// Dropout keeps 1-p of the elements, scales them by 1/(1-p), and draws anew each step.
static const char *dropout_share(arena *a, void *ctx) {
  (void)ctx;
  h_text t = h_lower(a,
                     "train m { batch = 40; steps = 1 }\nmodel m {\n  dim batch\n"
                     "  input x : f32[batch, 500]\n  weight w : [500] = ones\n"
                     "  output loss = mean(dropout(x * w, 0.3))\n}\n",
                     NULL, NULL, SEMA_TRAIN);
  if (!t.m) return t.error;
  pass_options o = pass_defaults();
  o.only = h_passes_without(a, "optimize");
  const char *why = pass_run(t.m, &o);
  if (why) return why;
  h_program *p;
  if ((why = h_compile_for(a, t.m, 40, 0, device, &p)) || !p) return why;
  const prog_entry *e = prog_entry_of(&p->p, PROG_TRAIN);
  double *x = arena_new(a, double, 20000), w[500], g[500], first = 0;
  for (int i = 0; i < 20000; i++) x[i] = 1;
  for (int i = 0; i < 500; i++) w[i] = 1;
  if ((why = h_give(p, e, "x", x, 20000)) || (why = h_set_state(p, "w", w, 500))) return why;
  for (int step = 0; step < 3 && !why; step++) {
    double loss, sum = 0;
    if ((why = h_call(a, p, e, &(vm_step){.step = step, .seed = 9})) ||
        (why = h_output(p, e, "loss", &loss, 1)) || (why = h_output(p, e, "grad:w", g, 500)))
      break;
    for (int i = 0; i < 500; i++) sum += g[i];
    // Standard deviation of the mean of 20000 draws: sqrt(0.3 / 0.7 / 20000) = 0.0046.
    if (fabs(loss - 1) > 5 * 0.0046) why = arena_printf(a, "the mean is %g, not 1", loss);
    if (fabs(sum - loss) > 1e-4) why = arena_printf(a, "gradients sum to %g, not %g", sum, loss);
    if (step && loss == first) why = "two steps drew the same";
    if (!step) first = loss;
    // A column's gradient is its number of kept elements / (40 * 500 * 0.7).
    for (int i = 0; i < 500 && !why; i++) {
      double kept = g[i] * 20000 * 0.7;
      if (fabs(kept - round(kept)) > 1e-2 || kept < 8 || kept > 40)
        why = arena_printf(a, "column %d keeps %g of 40", i, kept);
    }
  }
  h_close(p);
  return why;
}

// Everything a cache needs: prefill and decode against the full forward.
static const char *decode_case(arena *a, void *ctx) {
  (void)ctx;
  static const char text[] =
      "model m {\n  param vocab = 11, context = 9\n  dim batch, seq <= context\n"
      "  input tokens : i32[batch, seq]\n  input targets : i32[batch, seq]\n"
      "  weight wte : [vocab, 12] = normal(1)\n  weight wpe : [context, 12] = normal(1)\n"
      "  x = gather(wte, tokens) + wpe[0:seq]\n"
      "  repeat (2) as h[i] {\n    n = rmsnorm(x) as n\n"
      "    q = rope(linear(n, 12) as q, heads=2, theta=100)\n"
      "    k = rope(linear(n, 6) as k, heads=1, theta=100)\n"
      "    x = x + linear(attention(q, k, linear(n, 6) as v, heads=2, mask=causal), 12) as o\n"
      "    x = x + linear(attention(linear(x, 3) as a, linear(x, 3) as b, linear(x, 3) as c, "
      "heads=3,"
      " mask=causal), 12) as d\n  }\n"
      "  output logits = matmul(x, transpose(wte))\n"
      "  output loss = cross_entropy(logits, targets)\n}\n"
      "train m { batch = 1; seq = 9; steps = 1 }\n";
  h_text t = h_lower(a, text, NULL, NULL, SEMA_EVAL | SEMA_DECODE);
  if (!t.m) return t.error;
  see(t.m);
  return decode_check(a, text, NULL, NULL, device, see);
}

// min and max of equal numbers, `min` by its own row, and reductions of ties share the gradient.
static const char *scalar_rows(arena *a, void *ctx) {
  (void)ctx;
  const char *text = arena_printf(
      a,
      "%sfn f(a, b) = where((a < b and not (a >= 0.1)) or a != a, floor(a * 7) %% 3, "
      "where(a <= b, abs(b) ^ 1.5, where(a > 0.3, (a // 0.1) / 7, where(a == b, 1, b))))\n"
      "  weight w : [5, 8] = ones\n  y = f(w, x) * min(w, x) + max(w, x)\n"
      "  output loss = mean(square(y) + sin(w) * cos(x) + erf(w) + relu2(w) + softplus(w))\n}\n",
      head);
  run_of r;
  const char *why = reference(a, text, &r);
  return why ? why : against(a, text, 0, &r);
}

typedef struct own_case {
  const char *name;
  h_case_fn *run;
} own_case;
static const own_case own[] = {
    {"own_repeat", repeat_case},          {"own_micro_batch", micro_case},
    {"own_dropout", dropout_case},        {"own_decode", decode_case},
    {"own_dropout_share", dropout_share}, {"own_scalars", scalar_rows},
};

// ---- main ---------------------------------------------------------------------------------------

static int by_name(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static char **case_names(arena *a, int *n) {
  VEC(char *) names = {0};
  DIR *d = opendir(ORACLE_DATA "/ops");
  for (struct dirent *e; d && (e = readdir(d));) {
    size_t len = strlen(e->d_name), tail = strlen(".safetensors");
    if (len > tail && str_ends(e->d_name, ".safetensors"))
      vec_push(a, &names, arena_strndup(a, e->d_name, len - tail));
  }
  if (d) closedir(d);
  if (names.n) qsort(names.at, (size_t)names.n, sizeof *names.at, by_name);
  *n = names.n;
  return names.at;
}

typedef struct tally {
  arena *a;
  int passed, failed, not_lowered;
  bool here;
  char **wanted;
  int nwanted;
} tally;

static bool is_wanted(const tally *t, const char *name) {
  for (int i = 0; i < t->nwanted; i++)
    if (str_starts(name, t->wanted[i])) return true;
  return t->nwanted == 0;
}

static void try_case(tally *t, const char *name, h_case_fn *run, void *ctx) {
  if (!is_wanted(t, name)) return;
  const char *why = t->here ? h_inline(t->a, run, ctx) : h_isolated(t->a, run, ctx, 60);
  if (device && !device->compiled) return;  // its functions are collected; the next time it runs
  if (!why) {
    printf("ok %s\n", name);
    t->passed++;
    return;
  }
  printf("FAILED %s: %s\n", name, why);
  t->failed++;
  t->not_lowered += strstr(why, H_NOT_LOWERED) != NULL;
}

static void try_all(tally *t, char **name, int n) {
  for (int i = 0; i < n; i++) try_case(t, name[i], run_case, name[i]);
  for (size_t i = 0; i < sizeof own / sizeof *own; i++) try_case(t, own[i].name, own[i].run, NULL);
}

// A device with all functions of the wanted cases.
static const char *make_device(tally *t, h_device *d, char **name, int n) {
  const char *why = h_device_open(t->a, d);
  if (why) return why;
  device = d;
  try_all(t, name, n);
  why = h_device_compile(t->a, d);
  if (!why) printf("%d functions compiled in %.1f s\n", d->functions, d->compile_s);
  return why;
}

static bool take_flag(tally *t, const char *flag) {
  bool is = t->nwanted && str_eq(t->wanted[0], flag);
  t->wanted += is, t->nwanted -= is;
  return is;
}

int main(int argc, char **argv) {
  arena a;
  arena_init(&a);
  tally t = {.a = &a, .wanted = argv + 1, .nwanted = argc - 1};
  t.here = take_flag(&t, "--here");
  bool cuda = take_flag(&t, "--cuda"), keep = take_flag(&t, "--keep"),
       beside = take_flag(&t, "--beside");
  if (cuda && emu_missing()) return puts(emu_missing()), 77;
  seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (seen == MAP_FAILED) return 1;
  int n;
  char **names = case_names(&a, &n);
  if (n < 300) printf("only %d cases below %s/ops\n", n, ORACLE_DATA), t.failed++;
  h_device d = {0};
  const char *why = cuda ? make_device(&t, &d, names, n) : NULL;
  d.beside_host = beside;
  if (why)
    printf("FAILED %s\n", why), t.failed++;
  else
    try_all(&t, names, n);
  if (keep) printf("functions are in %s\n", d.dir);
  if (cuda && !keep) h_device_close(&a, &d);
  if (!t.nwanted && !cuda) t.failed += report_unseen();
  printf("%d passed, %d failed", t.passed, t.failed);
  if (cuda) printf(", %d of them not lowered", t.not_lowered);
  printf("\n");
  arena_free(&a);
  return t.failed != 0;
}
