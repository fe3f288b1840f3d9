#include <string.h>

#include "ir/verify.h"
#include "passes/pass.h"
#include "runtime/base/clock.h"

typedef const char *pass_fn(ir_module *m, const pass_options *o);

static const pass_info list[] = {
#define PASS(name, fn, before, after, optional, doc) {name, doc, before, after, optional},
#include "passes/passes.def"
};
static pass_fn *const function[] = {
#define PASS(name, fn, before, after, optional, doc) pass_##fn,
#include "passes/passes.def"
};

int pass_list(const pass_info **out) {
  *out = list;
  return SKIP_PASSES;
}

// ---- what may be left out -----------------------------------------------------------------------

static const choice_info choices[] = {
#define CHOICE(name, of, doc) {#name, doc, of},
#include "passes/passes.def"
};
_Static_assert(SKIP_ROWS <= 8 * sizeof(skip_set), "more rows than bits");

int choice_list(const choice_info **out) {
  *out = choices;
  return SKIP_CHOICES;
}

skip_set skip_of(const char *of) {
  skip_set s = 0;
  for (int i = 0; i < SKIP_CHOICES; i++)
    if (strcmp(choices[i].of, of) == 0) s |= (skip_set)1 << (SKIP_PASSES + i);
  return s;
}

// The name of a row, or NULL where it may not be left out.
static const char *row_name(int row) {
  if (row >= SKIP_PASSES) return choices[row - SKIP_PASSES].name;
  return list[row].optional ? list[row].name : NULL;
}

int skip_names(const char *out[SKIP_ROWS]) {
  int n = 0;
  for (int row = 0; row < SKIP_ROWS; row++) {
    bool seen = !row_name(row);
    for (int i = 0; i < n && !seen; i++) seen = strcmp(out[i], row_name(row)) == 0;
    if (!seen) out[n++] = row_name(row);
  }
  return n;
}

const char *skip_add(skip_set *s, const char *names) {
  for (const char *p = names; p && *p;) {
    size_t n = strcspn(p, ",");
    skip_set found = 0;
    for (int row = 0; row < SKIP_ROWS; row++) {
      const char *name = row_name(row);
      if (name && strlen(name) == n && memcmp(name, p, n) == 0) found |= (skip_set)1 << row;
    }
    if (!found) return p;
    *s |= found;
    p += n + (p[n] == ',');
  }
  return NULL;
}

// ---- running ------------------------------------------------------------------------------------

pass_options pass_defaults(void) {
  return (pass_options){.optimizer = OPT_ADAMW, .batch = 1, .stage = IR_LOCAL};
}

// True when `name` is one of the comma-separated words of `words`.
static bool named(const char *words, const char *name) {
  if (!words) return false;
  size_t n = strlen(name);
  for (const char *p = words; *p;) {
    size_t len = strcspn(p, ",");
    if (len == n && memcmp(p, name, n) == 0) return true;
    p += len + (p[len] == ',');
  }
  return false;
}

static int last_row(const pass_options *o) {
  int last = SKIP_PASSES - 1;
  for (int i = 0; i < SKIP_PASSES && o->after; i++)
    if (strcmp(list[i].name, o->after) == 0) last = i;
  return last;
}

// The first row that is run on stages.
static int back_row(void) {
  int i = 0;
  while (strcmp(list[i].name, "epilogue") != 0) i++;
  return i;
}

static void verify(ir_module *m, const char *pass) {
  const char *bad = ir_verify(m);
  if (bad) IR_BUG("after pass `%s`: %s", pass, bad);
}

static const char *run_rows(ir_module *m, const pass_options *o, int first, int last) {
  const char *ran = NULL;
  for (int i = first; i <= last; i++) {
    const pass_info *p = &list[i];
    if (o->only && !named(o->only, p->name)) continue;
    if (skips(o->skip, i)) continue;
    if (p->after > o->stage) break;
    double t = clock_s();
    const char *why = function[i](m, o);
    if (why) return why;
    m->stage = p->after;
    if (o->verify == VERIFY_EACH) verify(m, p->name);
    ran = p->name;
    if (o->report) o->report(o->report_ctx, p->name, clock_s() - t, m);
  }
  if (ran && o->verify == VERIFY_LAST) verify(m, ran);
  return NULL;
}

const char *pass_run(ir_module *m, const pass_options *o) { return run_rows(m, o, 0, last_row(o)); }

const char *pass_run_front(ir_module *m, const pass_options *o, bool *stopped) {
  int last = last_row(o), end = back_row() - 1;
  *stopped = last <= end || list[end].after > o->stage;
  return run_rows(m, o, 0, last < end ? last : end);
}

const char *pass_run_back(ir_module *m, const pass_options *o) {
  return run_rows(m, o, back_row(), last_row(o));
}

void pass_walk(ir_region *r, void (*visit)(void *ctx, ir_op *op), void *ctx) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    visit(ctx, op);
    for (int k = 0; k < op->nregions; k++) pass_walk(op->region[k], visit, ctx);
  }
}

void pass_clear_marks(ir_region *r) {
  for (int i = 0; i < r->args.n; i++) r->args.at[i]->mark = 0;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nout; k++) op->out[k]->mark = 0;
    for (int k = 0; k < op->nregions; k++) pass_clear_marks(op->region[k]);
  }
}

static void add_uses(ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nin; k++) op->in[k]->mark++;
    for (int k = 0; k < op->nregions; k++) add_uses(op->region[k]);
  }
  for (int i = 0; i < r->yield.n; i++) r->yield.at[i]->mark++;
}

void pass_count_uses(ir_region *r) {
  pass_clear_marks(r);
  add_uses(r);
}

void pass_clear_mapped(ir_region *r) {
  for (int i = 0; i < r->args.n; i++) r->args.at[i]->mapped = NULL;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nout; k++) op->out[k]->mapped = NULL;
    for (int k = 0; k < op->nregions; k++) pass_clear_mapped(op->region[k]);
  }
}

int pass_number_of(const ir_op *op) {
  int i = 0;
  while (op->parent->ops.at[i] != op) i++;
  return i;
}

void pass_move_last(ir_region *r, int to) {
  ir_op *op = r->ops.at[r->ops.n - 1];
  for (int i = r->ops.n - 1; i > to; i--) r->ops.at[i] = r->ops.at[i - 1];
  r->ops.at[to] = op;
}

void pass_take_out(ir_region *r, int at) {
  for (int i = at; i + 1 < r->ops.n; i++) r->ops.at[i] = r->ops.at[i + 1];
  r->ops.n--;
}

ir_value *pass_cast(ir_module *m, ir_region *r, ir_value *v, ir_dtype t) {
  ir_type type = v->type;
  type.dtype = t;
  ir_op *op = ir_op_raw(r, IR_cast, &v, 1, &type, 1);
  ir_set_attr(m, op, ir_attr_s("dtype", ir_dtype_name(t)));
  op->span = v->span;
  op->out[0]->name = v->name;
  return op->out[0];
}

ir_op *pass_view_again(ir_module *m, ir_op *op, ir_value *from) {
  ir_type *types = arena_new(m->arena, ir_type, op->nout);
  for (int k = 0; k < op->nout; k++) {
    types[k] = op->out[k]->type;
    types[k].dtype = from->type.dtype;
  }
  ir_op *now = ir_op_raw(op->parent, op->code, &from, 1, types, op->nout);
  for (int k = 0; k < op->nattrs; k++) ir_set_attr(m, now, op->attr[k]);
  for (int k = 0; k < op->nout; k++) now->out[k]->place = op->out[k]->place;
  now->segment = op->segment;
  now->span = op->span;
  now->path = op->path;
  pass_move_last(op->parent, pass_number_of(op) + 1);
  return now;
}

bool pass_const_value(const ir_value *v, double *out) {
  const ir_op *op = v->def;
  if (!op) return false;
  if (op->code == IR_const) {
    *out = ir_attr_float(op, "value", 0);
    return true;
  }
  if (op->code == IR_broadcast || op->code == IR_expand) return pass_const_value(op->in[0], out);
  return false;
}

int pass_batch_dim(const ir_module *m, const ir_value *v) {
  if (!m->batch) return -1;
  for (int d = 0; d < v->type.rank; d++)
    if (ir_root(v->type.dim[d]) == ir_root(m->batch)) return d;
  return -1;
}

ir_type pass_stacked(ir_index *layers, const ir_type *t) {
  ir_type s = {.dtype = t->dtype, .rank = t->rank + 1};
  IR_CHECK(s.rank <= IR_MAX_RANK);
  s.dim[0] = layers;
  for (int d = 0; d < t->rank; d++) s.dim[d + 1] = t->dim[d];
  return s;
}

ir_value *pass_save(ir_module *m, ir_op *repeat, ir_index *layers, ir_value *v) {
  vec_push(m->arena, &repeat->region[0]->yield, v);
  ir_value **out = arena_new(m->arena, ir_value *, repeat->nout + 1);
  if (repeat->nout) memcpy(out, repeat->out, sizeof *out * (size_t)repeat->nout);
  ir_value *stack = arena_new(m->arena, ir_value, 1);
  *stack = (ir_value){.id = m->next_value++,
                      .name = v->name,
                      .type = pass_stacked(layers, &v->type),
                      .def = repeat,
                      .pos = repeat->nout,
                      .span = repeat->span,
                      .place = v->place};
  out[repeat->nout++] = stack;
  repeat->out = out;
  return stack;
}

ir_value *pass_add_operand(ir_module *m, ir_op *repeat, ir_value *outer, bool stacked, ir_type type,
                           const char *name) {
  ir_region *body = repeat->region[0];
  int ns = (int)ir_attr_int(repeat, "stacked", 0);
  int at = stacked ? (int)ir_attr_int(repeat, "carried", 0) + ns : repeat->nin;
  ir_value *arg = ir_region_arg(body, type, name);
  ir_value **in = arena_new(m->arena, ir_value *, repeat->nin + 1);
  for (int k = 0; k < repeat->nin; k++) in[k + (k >= at)] = repeat->in[k];
  in[at] = outer;
  for (int k = body->args.n - 1; k > 1 + at; k--) body->args.at[k] = body->args.at[k - 1];
  body->args.at[1 + at] = arg;
  for (int k = 0; k < body->args.n; k++) body->args.at[k]->pos = k;
  repeat->in = in;
  repeat->nin++;
  if (stacked) ir_set_attr(m, repeat, ir_attr_i("stacked", ns + 1));
  return arg;
}
