#include "tests/oracle/decode_check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/base/rng.h"

// An input of the full forward. `axis` is its axis along the decoding dim, or -1.
typedef struct given {
  const char *name;
  ir_type shape;
  int axis;
  double *data;
} given;

typedef struct check {
  arena *a;
  ir_module *m;
  const ir_func *full, *prefill, *decode;
  VEC(given) inputs;
  const double *logits;  // of the full forward in float64: [positions, vocab]
  double largest;
  int64_t positions, context, vocab;
  ir_interp *x;
  h_program *p;
} check;

static double drawn(const char *name, int64_t i) {
  return rng_unit(base_hash(name, strlen(name), 5), (uint64_t)i);
}

static const ir_value *logits_of(const ir_func *f) {
  for (int i = 0; i < f->body->ops.n; i++) {
    const ir_op *op = f->body->ops.at[i];
    if (op->code == IR_output && str_eq(ir_attr_str(op, "name", ""), "logits")) return op->in[0];
  }
  return NULL;
}

// ---- data ---------------------------------------------------------------------------------------

static double draw_input(const check *c, const char *name, int64_t i) {
  double n = (double)c->vocab;
  if (str_eq(name, "kind") || str_eq(name, "segments")) n = 2;
  if (str_eq(name, "length")) return 1 + floor(drawn(name, i) * 5);
  return floor(drawn(name, i) * n);
}

static void draw_inputs(check *c) {
  const ir_value *logits = logits_of(c->full);
  const ir_index *d = ir_root(logits->type.dim[logits->type.rank - 2]);
  for (int i = 0; i < c->full->body->ops.n; i++) {
    const ir_op *op = c->full->body->ops.at[i];
    if (op->code != IR_input) continue;
    given g = {.name = ir_attr_str(op, "name", ""), .shape = op->out[0]->type, .axis = -1};
    for (int k = 0; k < g.shape.rank; k++)
      if (ir_root(g.shape.dim[k]) == d) g.axis = k;
    int64_t n = ir_elements(&g.shape);
    g.data = arena_new(c->a, double, n + 1);
    for (int64_t k = 0; k < n; k++) g.data[k] = draw_input(c, g.name, k);
    vec_push(c->a, &c->inputs, g);
  }
}

// The input for `count` positions from `first` on; positions that the sequence has not (padding of
// prefill) hold 0.
static double *positions_of(const check *c, const given *g, int64_t first, int64_t known,
                            int64_t count, int64_t *n) {
  if (g->axis < 0) {
    *n = ir_elements(&g->shape);
    return g->data;
  }
  int64_t inner = 1, outer = 1, have = g->shape.dim[g->axis]->size;
  for (int k = 0; k < g->axis; k++) outer *= g->shape.dim[k]->size;
  for (int k = g->axis + 1; k < g->shape.rank; k++) inner *= g->shape.dim[k]->size;
  *n = outer * count * inner;
  double *x = arena_new(c->a, double, *n + 1);
  for (int64_t o = 0; o < outer; o++)
    for (int64_t i = 0; i < known; i++)
      memcpy(x + (o * count + i) * inner, g->data + (o * have + first + i) * inner,
             sizeof *x * (size_t)inner);
  return x;
}

static const char *slice_name(arena *a, const ir_state *s, int64_t k) {
  const char *mark = strchr(s->name, '#');
  if (!s->stacked || !mark) return s->name;
  return arena_printf(a, "%.*s%lld%s", (int)(mark - s->name), s->name,
                      (long long)(s->first + k * s->step), mark + 1);
}

// Slice by slice from the checkpoint, or drawn.
static double *state_data(check *c, const ir_state *s, const st_file *weights, int64_t *n) {
  *n = ir_elements(&s->type);
  double *x = arena_new(c->a, double, *n + 1);
  if (s->cls != STATE_WEIGHT) return x;
  int64_t slices = s->stacked ? s->type.dim[0]->size : 1, each = *n / slices;
  double in = (double)s->type.dim[s->type.rank - 1]->size;
  int rank = s->type.rank - (s->stacked ? 1 : 0);
  for (int64_t k = 0; k < slices; k++) {
    const char *name = slice_name(c->a, s, k);
    const st_tensor *t = weights ? st_find(weights, name) : NULL;
    int64_t have = 0;
    const double *from = t ? h_numbers(c->a, t, &have) : NULL;
    for (int64_t i = 0; i < each; i++) {
      double u = 2 * drawn(name, i) - 1;
      double v = rank >= 2 ? 1.7 * u / sqrt(in) : s->init == INIT_ONES ? 1 + 0.3 * u : 0.3 * u;
      x[k * each + i] = from && have == each ? from[i] : (double)(float)v;
    }
  }
  return x;
}

// ---- one call -----------------------------------------------------------------------------------

// Runs `f` for positions first .. first+known-1 (padded to `count`) and compares the rows of its
// logits with those of the full forward.
static const char *compare_rows(check *c, const char *who, const double *got, int64_t first,
                                int64_t known, double tolerance) {
  for (int64_t i = 0; i < known; i++) {
    const char *what = arena_printf(c->a, "%s, position %lld of %lld", who, (long long)(first + i),
                                    (long long)c->positions);
    const char *why = h_compare(c->a, what, got + i * c->vocab, c->logits + (first + i) * c->vocab,
                                c->vocab, tolerance, c->largest);
    if (why) return why;
  }
  return NULL;
}

static const char *call_interp(check *c, const ir_func *f, int64_t first, int64_t known,
                               int64_t count) {
  for (int i = 0; i < c->inputs.n; i++) {
    int64_t n;
    const double *x = positions_of(c, &c->inputs.at[i], first, known, count, &n);
    ir_interp_give(c->x, c->inputs.at[i].name, x, n);
  }
  c->x->past = first;
  const char *why = ir_interp_run(c->x, f->name);
  if (why) return arena_printf(c->a, "interp: %s: %s", f->name, why);
  int64_t n;
  const double *got = ir_interp_output(c->x, "logits", &n);
  if (!got || n != count * c->vocab) return arena_printf(c->a, "%s has other logits", f->name);
  return compare_rows(c, arena_printf(c->a, "interp: %s", f->name), got, first, known, 1e-9);
}

static const char *call_program(check *c, const prog_entry *e, int64_t first, int64_t known,
                                int64_t count) {
  const char *name = prog_text(&c->p->p, e->name);
  for (int i = 0; i < c->inputs.n; i++) {
    const given *g = &c->inputs.at[i];
    int64_t n;
    const double *x = positions_of(c, g, first, known, count, &n);
    if (!prog_input(&c->p->p, e, g->name)) continue;
    const char *why = h_give(c->p, e, g->name, x, n);
    if (why) return arena_printf(c->a, "%s: input %s: %s", name, g->name, why);
  }
  const char *why = h_call(c->a, c->p, e, &(vm_step){.past = first});
  if (why) return arena_printf(c->a, "%s: %s", name, why);
  double *got = arena_new(c->a, double, count * c->vocab + 1);
  why = h_output(c->p, e, "logits", got, count * c->vocab);
  if (why) return arena_printf(c->a, "%s: logits: %s", name, why);
  return compare_rows(c, arena_printf(c->a, "program: %s", name), got, first, known, 1e-5);
}

// ---- a model ------------------------------------------------------------------------------------

static const char *interp_generates(check *c, const st_file *weights, int64_t prompt) {
  c->x = ir_interp_new(c->a, c->m);
  for (int i = 0; i < c->m->states.n; i++) {
    int64_t n;
    const double *x = state_data(c, c->m->states.at[i], weights, &n);
    ir_interp_set_state(c->x, c->m->states.at[i]->name, x, n);
  }
  if (!c->logits) {
    for (int i = 0; i < c->inputs.n; i++)
      ir_interp_give(c->x, c->inputs.at[i].name, c->inputs.at[i].data,
                     ir_elements(&c->inputs.at[i].shape));
    const char *why = ir_interp_run(c->x, c->full->name);
    if (why) return arena_printf(c->a, "interp: %s", why);
    int64_t n;
    c->logits = ir_interp_output(c->x, "logits", &n);
    if (n != c->positions * c->vocab) return "the full forward has other logits";
    c->largest = h_max_abs(c->logits, n);
  }
  const char *why = call_interp(c, c->prefill, 0, prompt, c->context);
  for (int64_t i = prompt; i < c->positions && !why; i++) why = call_interp(c, c->decode, i, 1, 1);
  return why;
}

static const char *program_generates(check *c, const st_file *weights, int64_t prompt) {
  for (int i = 0; i < c->m->states.n; i++) {
    int64_t n;
    const double *x = state_data(c, c->m->states.at[i], weights, &n);
    const char *why = h_set_state(c->p, c->m->states.at[i]->name, x, n);
    if (why) return arena_printf(c->a, "state %s: %s", c->m->states.at[i]->name, why);
  }
  const prog_entry *full = prog_entry_of(&c->p->p, PROG_EVAL);
  const prog_entry *prefill = prog_entry_of(&c->p->p, PROG_PREFILL);
  const prog_entry *decode = prog_entry_of(&c->p->p, PROG_DECODE);
  if (!full || !prefill || !decode) return "entries are missing in the program";
  const char *why = call_program(c, full, 0, c->positions, c->positions);
  if (!why) why = call_program(c, prefill, 0, prompt, c->context);
  for (int64_t i = prompt; i < c->positions && !why; i++) why = call_program(c, decode, i, 1, 1);
  return why;
}

static const char *check_model(arena *a, h_text t, const st_file *weights,
                               const struct h_device *device, void (*see)(ir_module *m)) {
  if (!t.m) return t.error;
  check c = {.a = a, .m = t.m};
  c.full = ir_func_find(t.m, "outputs");
  c.prefill = ir_func_find(t.m, "prefill");
  c.decode = ir_func_find(t.m, "decode");
  if (!c.full || !c.prefill || !c.decode) return "functions are missing in the module";
  const ir_type *full = &logits_of(c.full)->type, *pre = &logits_of(c.prefill)->type;
  c.vocab = full->dim[full->rank - 1]->size;
  c.positions = full->dim[full->rank - 2]->size;
  c.context = pre->dim[pre->rank - 2]->size;
  draw_inputs(&c);
  const int64_t prompts[] = {1, (c.positions + 2) / 3, c.positions};
  const char *why = NULL;
  for (int i = 0; i < 3 && !why; i++) why = interp_generates(&c, weights, prompts[i]);
  if (why) return why;
  pass_options o = pass_defaults();
  if ((why = pass_run(t.m, &o))) return arena_printf(a, "passes: %s", why);
  if (see) see(t.m);
  if ((why = h_compile_for(a, t.m, 1, 0, device, &c.p)) || !c.p) return why;
  for (int i = 0; i < 3 && !why; i++) why = program_generates(&c, weights, prompts[i]);
  h_close(c.p);
  return why;
}

static const char *one_sample(arena *a, const char *sets) {
  return sets && *sets ? arena_printf(a, "%s,batch=1,steps=1", sets) : "batch=1,steps=1";
}

const char *decode_check(arena *a, const char *text, const char *sets, const st_file *weights,
                         const struct h_device *device, void (*see)(ir_module *m)) {
  h_text t = h_lower(a, text, NULL, one_sample(a, sets), SEMA_OUTPUTS | SEMA_DECODE);
  return check_model(a, t, weights, device, see);
}

const char *decode_check_file(arena *a, const char *file_and_name, const char *sets,
                              const st_file *weights, const struct h_device *device,
                              void (*see)(ir_module *m)) {
  h_text t = h_lower_file(a, file_and_name, one_sample(a, sets), SEMA_OUTPUTS | SEMA_DECODE);
  return check_model(a, t, weights, device, see);
}
