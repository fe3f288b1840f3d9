// What products read rounded is rounded once, where it is made.
//
// needs: LOCAL; products with `round`. keeps: every result to the bit: a rounded number rounds to
// itself. breaks: nothing; adds casts, which `fuse` and `epilogue` make part of the kernels in
// front.
//
// A product rounds its operands as it reads them. A value that several products read (an activation
// by the next layer and by the weight's gradient) would be rounded by each, and be stored in twice
// the bytes. Here
//   - a value made in a region and read by products there gets one cast behind it, which they read;
//     what else reads the value reads it as before;
//   - a stack that backward only multiplies is kept rounded: half the bytes between forward and
//     backward.
// Weights have rounded copies already (`narrow`).
#include "ir/rule.h"
#include "ir/view.h"
#include "passes/pass.h"

// Made by an instruction of its region.
static bool made(const ir_value *v) {
  if (!v->def || v->type.dtype != DT_f32) return false;
  switch (v->def->code) {
    case IR_const:
    case IR_zeros:
    case IR_input:
    case IR_arg:
    case IR_state:
    case IR_repeat:
    case IR_append: return false;
    default: return !ir_is_view(v->def);
  }
}

static ir_value *cast_behind(ir_module *m, ir_value *v, ir_dtype t) {
  ir_op *def = v->def;
  ir_value *now = pass_cast(m, def->parent, v, t);
  now->def->segment = def->segment;
  now->def->path = def->path;
  now->place = v->place;
  pass_move_last(def->parent, pass_number_of(def) + 1);
  return now;
}

// `v` rounded to t: its cast, or a view of one. NULL when it is not made here.
static ir_value *rounded(ir_module *m, ir_value *v, ir_dtype t) {
  if (v->mapped) return v->mapped;
  if (v->def && v->def->code == IR_cast && v->def->in[0]->type.dtype == t)
    return v->mapped = v->def->in[0];  // it was widened
  if (made(v)) return v->mapped = cast_behind(m, v, t);
  ir_op *def = v->def;
  if (!def || !ir_is_view(def) || def->nin != 1 || !ir_dtype_float(v->type.dtype)) return NULL;
  ir_value *from = rounded(m, def->in[0], t);
  if (!from) return NULL;
  ir_op *now = pass_view_again(m, def, from);
  for (int k = 0; k < def->nout; k++) def->out[k]->mapped = now->out[k];
  return v->mapped;
}

static void visit(ir_module *m, ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code == IR_repeat) visit(m, op->region[0]);
    int before = r->ops.n;
    for (int k = 0; k < op->nin; k++) {
      ir_dtype t = ir_rounds(op, k);
      ir_value *v = t != DT_COUNT ? rounded(m, op->in[k], t) : NULL;
      if (v) op->in[k] = v;
    }
    i += r->ops.n - before;
  }
}

// ---- stacks -------------------------------------------------------------------------------------

// Whether all that read `v` in its region are products that round it to one type, *t.
static bool only_products(const ir_region *r, const ir_value *v, ir_dtype *t) {
  for (int i = 0; i < r->yield.n; i++)
    if (r->yield.at[i] == v) return false;
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nin; k++) {
      if (op->in[k] != v) continue;
      ir_dtype to = ir_rounds(op, k);
      if (to == DT_COUNT || (*t != DT_COUNT && to != *t)) return false;
      *t = to;
    }
  }
  return true;
}

// An operand that is a result of a repeat of the region.
typedef struct use {
  ir_op *op;
  int operand;
} use;
typedef VEC(use) uses;

// The uses of each result of a repeat in `r`, by its id.
static uses *uses_of(arena *a, const ir_module *m, const ir_region *r) {
  uses *of = (void *)arena_alloc(a, sizeof *of * (size_t)(m->next_value + 1));
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nin; k++) {
      const ir_value *v = op->in[k];
      if (v->def && v->def->code == IR_repeat && v->def->parent == r)
        vec_push(a, &of[v->id], (use){op, k});
    }
  }
  return of;
}

// The type that all readers of a stack, repeats that slice it, round it to; or DT_COUNT.
static ir_dtype read_as(const uses *of) {
  ir_dtype t = DT_COUNT;
  for (int i = 0; i < of->n; i++) {
    const ir_op *op = of->at[i].op;
    int k = of->at[i].operand;
    if (op->code != IR_repeat) return DT_COUNT;
    int carried = (int)ir_attr_int(op, "carried", 0), stacked = (int)ir_attr_int(op, "stacked", 0);
    bool slices = k >= carried && k < carried + stacked;
    if (!slices || !only_products(op->region[0], op->region[0]->args.at[1 + k], &t))
      return DT_COUNT;
  }
  return t;
}

static void keep_rounded(ir_module *m, ir_region *r) {
  arena scratch;
  arena_init(&scratch);
  scratch.oom = m->arena->oom;
  scratch.oom_ctx = m->arena->oom_ctx;
  const uses *of = uses_of(&scratch, m, r);
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *loop = r->ops.at[i];
    if (loop->code != IR_repeat) continue;
    for (int j = (int)ir_attr_int(loop, "carried", 0); j < loop->nout; j++) {
      ir_value **y = &loop->region[0]->yield.at[j];
      const uses *u = &of[loop->out[j]->id];
      ir_dtype t = (*y)->type.dtype == DT_f32 ? read_as(u) : DT_COUNT;
      ir_value *now = t != DT_COUNT ? rounded(m, *y, t) : NULL;
      if (!now || now->type.dtype != t) continue;
      *y = now;
      loop->out[j]->type.dtype = t;
      for (int k = 0; k < u->n; k++)
        u->at[k].op->region[0]->args.at[1 + u->at[k].operand]->type.dtype = t;
    }
  }
  arena_free(&scratch);
}

const char *pass_round(ir_module *m, const pass_options *o) {
  (void)o;
  for (int i = 0; i < m->funcs.n; i++) {
    pass_clear_mapped(m->funcs.at[i]->body);
    visit(m, m->funcs.at[i]->body);
    keep_rounded(m, m->funcs.at[i]->body);
  }
  return NULL;
}
