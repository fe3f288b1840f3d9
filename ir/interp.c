// The engine of the interpreter: inputs, states and outputs, regions, scalar functions, repeat.
#include "ir/interp.h"

#include <math.h>
#include <string.h>

#include "ir/expr.h"
#include "ir/interp_impl.h"
#include "ir/rule.h"
#include "runtime/base/random.h"

// ---- arrays and shapes -------------------------------------------------------------------------

// The first failure ends the run; the ops after it do not matter.
void interp_fail(interp_frame *f, const char *fmt, ...) {
  if (f->error) return;
  va_list ap;
  va_start(ap, fmt);
  f->error = arena_vprintf(f->x->arena, fmt, ap);
  va_end(ap);
}

interp_shape interp_shape_of(const ir_type *t) {
  interp_shape s = {.rank = t->rank, .n = 1};
  for (int i = t->rank - 1; i >= 0; i--) {
    s.size[i] = t->dim[i]->size;
    s.stride[i] = s.n;
    s.n *= s.size[i];
  }
  return s;
}

int64_t interp_extent(const ir_type *t, int first, int last) {
  int64_t n = 1;
  for (int i = first; i < last; i++) n *= t->dim[i]->size;
  return n;
}

// The array of operand k.
double *interp_in(interp_frame *f, const ir_op *op, int k) {
  double *data = f->data[op->in[k]->id];
  if (!data)
    IR_BUG("%s reads value %d, which was not computed", ir_info(op->code)->name, op->in[k]->id);
  return data;
}

double *interp_out(interp_frame *f, const ir_op *op, int k) {
  return f->data[op->out[k]->id] = arena_new(f->arena, double, ir_elements(&op->out[k]->type));
}

// Copies an array into a table that outlives the run.
static interp_array *keep(map *to, const char *name, const double *data, int64_t n) {
  interp_array *a = arena_new(to->arena, interp_array, 1);
  a->data = arena_new(to->arena, double, n);
  if (n) memcpy(a->data, data, sizeof *data * (size_t)n);
  a->n = n;
  map_set(to, arena_strdup(to->arena, name), a);
  return a;
}

void ir_interp_give(ir_interp *x, const char *name, const double *data, int64_t n) {
  keep(&x->given, name, data, n);
}

void ir_interp_set_state(ir_interp *x, const char *name, const double *data, int64_t n) {
  keep(&x->states, name, data, n);
}

static const double *look(const map *in, const char *name, int64_t *n) {
  const interp_array *a = map_get(in, name);
  if (n) *n = a ? a->n : 0;
  return a ? a->data : NULL;
}

const double *ir_interp_output(const ir_interp *x, const char *name, int64_t *n) {
  return look(&x->outputs, name, n);
}

const double *ir_interp_state(const ir_interp *x, const char *name, int64_t *n) {
  return look(&x->states, name, n);
}

// ---- leaves and ends ---------------------------------------------------------------------------

// Values read by name are used in place: nothing writes to an operand.
static void read_named(interp_frame *f, const ir_op *op, const interp_array *a, const char *what) {
  const char *name = ir_attr_str(op, "name", "");
  int64_t n = ir_elements(&op->out[0]->type);
  if (!a)
    interp_fail(f, "%s `%s` has no value", what, name);
  else if (a->n != n)
    interp_fail(f, "%s `%s` has %lld elements, not %lld", what, name, (long long)a->n,
                (long long)n);
  else
    f->data[op->out[0]->id] = a->data;
}

void interp_input(interp_frame *f, const ir_op *op) {
  read_named(f, op, map_get(&f->x->given, ir_attr_str(op, "name", "")), "input");
}

// A state that was never set begins as zeros. A copy is its weight: nothing is rounded here.
void interp_state(interp_frame *f, const ir_op *op) {
  const char *name = ir_attr_str(op, "name", "");
  const ir_state *s = ir_state_find(f->x->m, name);
  if (s && s->cls == STATE_COPY) name = s->of;
  interp_array *a = map_get(&f->x->states, name);
  if (!a) {
    int64_t n = ir_elements(&op->out[0]->type);
    a = keep(&f->x->states, name, arena_new(f->arena, double, n), n);
  }
  read_named(f, op, a, "state");
}

// Kept aside: the state changes after the function, so that ops later in the text still read the
// old value.
void interp_set(interp_frame *f, const ir_op *op) {
  keep(&f->sets, ir_attr_str(op, "name", ""), interp_in(f, op, 0), ir_elements(&op->in[0]->type));
}

void interp_output(interp_frame *f, const ir_op *op) {
  keep(&f->x->outputs, ir_attr_str(op, "name", ""), interp_in(f, op, 0),
       ir_elements(&op->in[0]->type));
}

void interp_const(interp_frame *f, const ir_op *op) {
  *interp_out(f, op, 0) = interp_convert(op->out[0]->type.dtype, ir_attr_float(op, "value", 0));
}

void interp_zeros(interp_frame *f, const ir_op *op) { (void)interp_out(f, op, 0); }

// ---- scalars -----------------------------------------------------------------------------------

double interp_convert(ir_dtype t, double v) {
  if (ir_dtype_float(t)) return v;
  return t == DT_bool ? v != 0 : trunc(v);
}

// at(tensor, i0, ...): positions are truncated; outside the tensor there are zeros.
static double element_at(interp_frame *f, const ir_op *op, const double *scalar) {
  interp_shape s = interp_shape_of(&op->in[0]->type);
  const double *data = f->data[op->in[0]->id];
  int64_t at = 0;
  for (int i = 0; i < s.rank; i++) {
    double p = trunc(scalar[op->in[i + 1]->id]);
    if (!(p >= 0 && p < (double)s.size[i])) return 0;
    at += (int64_t)p * s.stride[i];
  }
  return data[at];
}

// Evaluates the ops of a scalar region whose arguments are in `scalar`, a table by value id.
static void scalars(interp_frame *f, const ir_region *r, double *scalar, double *out) {
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    double v[3] = {0};
    for (int k = 0; k < op->nin && k < 3; k++) v[k] = scalar[op->in[k]->id];
    double *to = &scalar[op->out[0]->id];
    ir_dtype t = op->out[0]->type.dtype;
    switch (ir_info(op->code)->cls) {
      case IR_CLASS_SCALAR: *to = ir_scalar_value(op->code, v[0], v[1], v[2]); continue;
      case IR_CLASS_DEFINED: {
        const ir_region *body = f->def[op->code];
        for (int k = 0; k < op->nin; k++) f->def_scalar[body->args.at[k]->id] = v[k];
        scalars(f, body, f->def_scalar, to);
        continue;
      }
      case IR_CLASS_OP: break;
    }
    switch (op->code) {
      case IR_const: *to = interp_convert(t, ir_attr_float(op, "value", 0)); break;
      case IR_cast: *to = interp_convert(t, v[0]); break;
      case IR_at: *to = element_at(f, op, scalar); break;
      case IR_dropout:
        *to = v[0] * interp_dropout_factor(f, op, ir_attr_float(op, "p", 0), f->sample, f->index);
        break;
      default: IR_BUG("%s in a scalar region", ir_info(op->code)->name);
    }
  }
  for (int i = 0; i < r->yield.n; i++) out[i] = scalar[r->yield.at[i]->id];
}

void interp_capture(interp_frame *f, const ir_value *arg, double *data) {
  f->data[arg->id] = data;
  if (!arg->type.rank) f->scalar[arg->id] = *data;
}

void interp_scalars(interp_frame *f, const ir_region *r, const double *args, int n, double *out) {
  for (int i = 0; i < n; i++) f->scalar[r->args.at[i]->id] = args[i];
  scalars(f, r, f->scalar, out);
}

// `at` stands only inside scalar regions.
void interp_at(interp_frame *f, const ir_op *op) {
  (void)f;
  IR_BUG("%s outside a scalar region", ir_info(op->code)->name);
}

// ---- elementwise -------------------------------------------------------------------------------

// The element of operand k that is broadcast to element `flat` of a result of shape `out`.
static double operand_at(interp_frame *f, const ir_op *op, int k, const interp_shape *out,
                         const interp_shape *in, int64_t flat) {
  int64_t at = 0;
  int shift = out->rank - in->rank;
  for (int i = 0; i < in->rank; i++)
    if (in->size[i] > 1) at += flat / out->stride[i + shift] % out->size[i + shift] * in->stride[i];
  return f->data[op->in[k]->id][at];
}

// SCALAR and DEFINED rows, element by element.
static void elementwise(interp_frame *f, const ir_op *op) {
  interp_shape out = interp_shape_of(&op->out[0]->type), in[3];
  double *y = interp_out(f, op, 0);
  for (int k = 0; k < op->nin; k++) in[k] = interp_shape_of(&op->in[k]->type);
  const ir_region *body = f->def[op->code];
  for (int64_t e = 0; e < out.n; e++) {
    double v[3] = {0};
    for (int k = 0; k < op->nin; k++) v[k] = operand_at(f, op, k, &out, &in[k], e);
    if (!body) {
      y[e] = ir_scalar_value(op->code, v[0], v[1], v[2]);
      continue;
    }
    for (int k = 0; k < op->nin; k++) f->def_scalar[body->args.at[k]->id] = v[k];
    scalars(f, body, f->def_scalar, &y[e]);
  }
}

// Positions are costly to find, so only functions that draw ask for them.
static bool draws(const ir_region *r) {
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->code == IR_dropout) return true;
  return false;
}

void interp_map(interp_frame *f, const ir_op *op) {
  const ir_region *r = op->region[0];
  interp_shape out = interp_shape_of(&op->out[0]->type);
  interp_shape *in = arena_new(f->arena, interp_shape, op->nin);
  double *v = arena_new(f->arena, double, op->nin), *result = arena_new(f->arena, double, op->nout);
  for (int k = 0; k < op->nin; k++) in[k] = interp_shape_of(&op->in[k]->type);
  for (int k = 0; k < op->nout; k++) (void)interp_out(f, op, k);
  bool random = draws(r);
  if (random && ir_get_attr(op, "draws")) {
    interp_fail(f, "%s: draws of a part of a value", ir_info(op->code)->name);
    return;
  }
  for (int64_t e = 0; e < out.n; e++) {
    for (int k = 0; k < op->nin; k++) v[k] = operand_at(f, op, k, &out, &in[k], e);
    if (random) interp_position(f, &op->out[0]->type, e, &f->sample, &f->index);
    interp_scalars(f, r, v, op->nin, result);
    for (int k = 0; k < op->nout; k++) f->data[op->out[k]->id][e] = result[k];
  }
}

void interp_epilogue(interp_frame *f, const ir_op *op) {
  int from = ir_epilogue(op);
  if (from < 0) return;
  const double *acc = f->data[op->out[0]->id];
  interp_shape out = interp_shape_of(&op->out[0]->type), in[RULE_MAX_OPERANDS + 16];
  double v[RULE_MAX_OPERANDS + 16], result[RULE_MAX_OPERANDS];
  IR_CHECK(op->nin < RULE_MAX_OPERANDS + 16 && op->nout <= RULE_MAX_OPERANDS);
  for (int k = from; k < op->nin; k++) in[k] = interp_shape_of(&op->in[k]->type);
  for (int k = 0; k < op->nout; k++) (void)interp_out(f, op, k);
  for (int64_t e = 0; e < out.n; e++) {
    v[0] = acc[e];
    for (int k = from; k < op->nin; k++) v[1 + k - from] = operand_at(f, op, k, &out, &in[k], e);
    interp_scalars(f, op->region[0], v, 1 + op->nin - from, result);
    for (int k = 0; k < op->nout; k++) f->data[op->out[k]->id][e] = result[k];
  }
}

void interp_cast(interp_frame *f, const ir_op *op) {
  const double *x = interp_in(f, op, 0);
  double *y = interp_out(f, op, 0);
  int64_t n = ir_elements(&op->out[0]->type);
  for (int64_t e = 0; e < n; e++) y[e] = interp_convert(op->out[0]->type.dtype, x[e]);
}

// ---- random ------------------------------------------------------------------------------------

void interp_position(const interp_frame *f, const ir_type *t, int64_t flat, uint64_t *sample,
                     uint64_t *index) {
  // The sample axis may be one leaf of a dimension (rows = batch . seq), so leaves are what counts.
  ir_index *leaf[IR_MAX_LEAVES], *axis[IR_MAX_LEAVES];
  int n = ir_type_leaves(t, leaf, IR_MAX_LEAVES), naxis = 0;
  if (f->x->m->batch) naxis = ir_index_leaves(f->x->m->batch, axis, IR_MAX_LEAVES);
  uint64_t scale_s = 1, scale_i = 1;
  *sample = *index = 0;
  for (int i = n - 1; i >= 0; i--) {
    uint64_t size = (uint64_t)leaf[i]->size, at = (uint64_t)flat % size;
    flat /= leaf[i]->size;
    bool batch = false;
    for (int k = 0; k < naxis; k++) batch |= axis[k] == leaf[i];
    uint64_t *to = batch ? sample : index, *scale = batch ? &scale_s : &scale_i;
    *to += at * *scale;
    *scale *= size;
  }
}

double interp_dropout_factor(const interp_frame *f, const ir_op *op, double p, uint64_t sample,
                             uint64_t index) {
  uint32_t draw = base_draw(f->x->seed, f->x->step, (uint64_t)ir_attr_int(op, "key", 0),
                            (uint64_t)f->layer, sample, index);
  return draw >= base_drop_below(p) ? 1 / (1 - p) : 0;
}

// The draw depends on where the element stands in its sample, not on where it lies in memory.
void interp_dropout(interp_frame *f, const ir_op *op) {
  const double *x = interp_in(f, op, 0);
  double *y = interp_out(f, op, 0);
  double p = ir_attr_float(op, "p", 0);
  int64_t n = ir_elements(&op->out[0]->type);
  if (ir_get_attr(op, "draws")) interp_fail(f, "dropout: draws of a part of a value");
  for (int64_t e = 0; e < n; e++) {
    uint64_t sample, index;
    interp_position(f, &op->out[0]->type, e, &sample, &index);
    y[e] = x[e] * interp_dropout_factor(f, op, p, sample, index);
  }
}

// ---- regions -----------------------------------------------------------------------------------

static void run_op(interp_frame *f, const ir_op *op) {
  if (ir_info(op->code)->cls != IR_CLASS_OP) {
    elementwise(f, op);
    return;
  }
  switch (op->code) {
#define SCALAR(name, arity, kinds, expr, d0, d1, d2, flops, doc)
#define DEFINED(name, params, text, flops, doc)
#define OP(name, nin, nout, rule, kinds, attrs, dtype, grad, interp, build, doc) \
  case IR_##name: interp_##interp(f, op); break;
#include "ir/ops.def"
    default: break;
  }
}

static void see_largest(interp_frame *f, const ir_value *v) {
  const double *x = f->data[v->id];
  int64_t n = x ? ir_elements(&v->type) : 0;
  for (int64_t i = 0; i < n; i++) {
    double a = fabs(x[i]);
    if (a > f->x->largest && !isinf(a)) f->x->largest = a;
  }
}

void interp_region(interp_frame *f, const ir_region *r) {
  for (int i = 0; i < r->ops.n && !f->error; i++) {
    const ir_op *op = r->ops.at[i];
    run_op(f, r->ops.at[i]);
    for (int k = 0; k < op->nout && !f->error; k++) see_largest(f, op->out[k]);
  }
}

// One iteration: slices in, the body in an arena of its own, results out.
static void iterate(interp_frame *f, const ir_op *op, int64_t k, double *const *carried) {
  const ir_region *r = op->region[0];
  int nc = (int)ir_attr_int(op, "carried", 0), ns = (int)ir_attr_int(op, "stacked", 0);
  arena *outer = f->arena, inner;
  arena_init(&inner);
  inner.oom = outer->oom;
  inner.oom_ctx = outer->oom_ctx;
  f->arena = &inner;
  double layer = (double)k;
  f->data[r->args.at[0]->id] = &layer;
  for (int i = 0; i < op->nin; i++) {
    const ir_value *arg = r->args.at[i + 1];
    double *data = i < nc ? carried[i] : interp_in(f, op, i);
    if (i >= nc && i < nc + ns) data += k * ir_elements(&arg->type);
    f->data[arg->id] = data;
  }
  interp_region(f, r);
  // Two rounds: a yield may be another carried value's storage.
  double **yield = arena_new(&inner, double *, nc);
  for (int i = 0; i < r->yield.n && !f->error; i++) {
    const ir_value *y = r->yield.at[i];
    int64_t n = ir_elements(&y->type);
    if (i < nc) {
      yield[i] = arena_new(&inner, double, n);
      memcpy(yield[i], f->data[y->id], sizeof(double) * (size_t)n);
    } else {
      memcpy(f->data[op->out[i]->id] + k * n, f->data[y->id], sizeof(double) * (size_t)n);
    }
  }
  for (int i = 0; i < nc && !f->error; i++)
    memcpy(carried[i], yield[i], sizeof(double) * (size_t)ir_elements(&r->yield.at[i]->type));
  f->arena = outer;
  arena_free(&inner);
}

// Carried values live in the arrays of the results and are overwritten by every iteration.
void interp_repeat(interp_frame *f, const ir_op *op) {
  int64_t count = ir_attr_int(op, "count", 0), layer = f->layer;
  int nc = (int)ir_attr_int(op, "carried", 0);
  bool reverse = ir_attr_int(op, "reverse", 0) != 0;
  double **carried = arena_new(f->arena, double *, nc);
  for (int i = 0; i < op->nout; i++) (void)interp_out(f, op, i);
  for (int i = 0; i < nc; i++) {
    carried[i] = f->data[op->out[i]->id];
    memcpy(carried[i], interp_in(f, op, i), sizeof(double) * (size_t)ir_elements(&op->in[i]->type));
  }
  for (int64_t i = 0; i < count && !f->error; i++) {
    int64_t k = reverse ? count - 1 - i : i;
    f->layer = layer * (1 << 20) + ir_attr_int(op, "first", 0) + k * ir_attr_int(op, "step", 1);
    iterate(f, op, k, carried);
  }
  f->layer = layer;
}

// ---- running -----------------------------------------------------------------------------------

ir_interp *ir_interp_new(arena *a, ir_module *m) {
  ir_interp *x = arena_new(a, ir_interp, 1);
  x->arena = a;
  x->m = m;
  x->given = x->states = x->outputs = (map){.arena = a};
  return x;
}

// Gradient regions for captured tensors are made while the interpreter runs; their values have
// numbers past the end of the tables.
void interp_grow(interp_frame *f) {
  int n = f->x->m->next_value;
  if (n <= f->nvalues) return;
  double **data = arena_new(f->x->arena, double *, n), *scalar = arena_new(f->x->arena, double, n);
  if (f->nvalues) {
    memcpy(data, f->data, sizeof *data * (size_t)f->nvalues);
    memcpy(scalar, f->scalar, sizeof *scalar * (size_t)f->nvalues);
  }
  f->data = data;
  f->scalar = scalar;
  f->nvalues = n;
}

// DEFINED rows are expanded once, in a module of their own, so that interpreting leaves the module
// that is interpreted as it is.
static interp_frame *frame_new(ir_interp *x) {
  interp_frame *f = arena_new(x->arena, interp_frame, 1);
  f->x = x;
  f->defs = ir_module_new(x->arena, "definitions");
  const ir_dtype t[] = {DT_f64, DT_f64, DT_f64};
  for (int i = 0; i < IR_OPCODE_COUNT; i++)
    if (ir_info((ir_opcode)i)->cls == IR_CLASS_DEFINED)
      f->def[i] = ir_defined_region(f->defs, (ir_opcode)i, t);
  f->def_scalar = arena_new(x->arena, double, f->defs->next_value);
  return f;
}

const char *ir_interp_run(ir_interp *x, const char *func) {
  const ir_func *fn = ir_func_find(x->m, func);
  if (!fn) return arena_printf(x->arena, "there is no function `%s`", func);
  if (!x->frame) x->frame = frame_new(x);
  interp_frame *f = x->frame;
  interp_grow(f);
  arena run;
  arena_init(&run);
  run.oom = x->arena->oom;
  run.oom_ctx = x->arena->oom_ctx;
  f->arena = &run;
  f->layer = 0;
  f->error = NULL;
  f->sets = (map){.arena = x->arena};
  x->outputs = (map){.arena = x->arena};
  interp_region(f, fn->body);
  if (!f->error)
    for (int i = 0; i < f->sets.n; i++) map_set(&x->states, f->sets.keys[i], f->sets.values[i]);
  arena_free(&run);
  // Nothing may point into the arena that is gone.
  memset(f->data, 0, sizeof *f->data * (size_t)f->nvalues);
  return f->error;
}
