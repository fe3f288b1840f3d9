// Weights that products round are kept rounded, beside themselves.
//
// needs: GRAPH; products with `round`. keeps: every result to the bit, for a product rounds its
// operands anyway, and a rounded number rounds to itself. breaks: nothing; adds a state of class
// STATE_COPY a weight.
//
// A low-precision parameter is a cast of its master. Products would make that cast each time they
// read the f32 weight: once in forward, once in backward, once a token. Here the cast is a state of
// its own, which products read in half the bytes and as they multiply it:
//
//   %w = state("fc.weight") : f32             %w = state("fc.weight.bf16") : bf16
//   %y = einsum(%x, %w) {round="bf16"}        %y = einsum(%x, %w) {round="bf16"}
//
// and what changes the weight changes its copy. `fuse` makes the cast a result of the optimizer's
// map, so that the weight is not read again for it:
//
//   set(%w.new) {name="fc.weight"}            set(%w.new) {name="fc.weight"}
//                                             %w16 = cast(%w.new) : bf16
//                                             set(%w16) {name="fc.weight.bf16"}
//
// Where weights come from outside (their first values, a checkpoint) the runtime makes the copies:
// vm_make_copies. What reads a weight otherwise (the embedding's gather) reads the f32 one.
#include <string.h>

#include "ir/rule.h"
#include "ir/view.h"
#include "passes/pass.h"

typedef struct nar {
  ir_module *m;
  ir_func *f;
  map made;  // name of a weight -> its copy as this function reads it
} nar;

// The state that holds `w` rounded to t; made when it is missing and `make`, NULL otherwise.
static ir_state *copy_of(ir_module *m, const ir_state *w, ir_dtype t, bool make) {
  const char *name = arena_printf(m->arena, "%s.%s", w->name, ir_dtype_name(t));
  ir_state *had = ir_state_find(m, name);
  if (had) return had->cls == STATE_COPY ? had : NULL;
  if (!make) return NULL;
  ir_state now = {.name = name,
                  .type = w->type,
                  .stacked = w->stacked,
                  .first = w->first,
                  .step = w->step,
                  .cls = STATE_COPY,
                  .init = INIT_ZEROS,
                  .of = w->name,
                  .span = w->span};
  now.type.dtype = t;
  return ir_state_add(m, now);
}

// The copy of the weight that the op `state` reads.
static ir_value *of_state(nar *c, ir_op *op, ir_dtype t) {
  const char *name = ir_attr_str(op, "name", "");
  const ir_state *w = ir_state_find(c->m, name);
  if (!w || w->cls != STATE_WEIGHT || w->type.dtype != DT_f32 || t != DT_bf16) return NULL;
  ir_value *had = map_get(&c->made, name);
  if (had) return had;
  const ir_state *copy = copy_of(c->m, w, t, true);
  if (!copy) return NULL;
  ir_region *r = c->f->body;
  ir_type type = op->out[0]->type;
  type.dtype = t;
  ir_op *now = ir_op_raw(r, IR_state, NULL, 0, &type, 1);
  ir_set_attr(c->m, now, ir_attr_s("name", copy->name));
  now->span = op->span;
  pass_move_last(r, pass_number_of(op) + 1);
  map_set(&c->made, name, now->out[0]);
  return now->out[0];
}

// `v` rounded, when it is a weight, or a view of one, or what a repeat shows its body of one.
static ir_value *rounded(nar *c, ir_value *v, ir_dtype t) {
  ir_op *def = v->def;
  if (def && def->code == IR_state) return of_state(c, def, t);
  if (def && ir_is_view(def) && def->nin == 1) {
    ir_value *from = rounded(c, def->in[0], t);
    if (!from) return NULL;
    return pass_view_again(c->m, def, from)->out[v->pos];
  }
  ir_op *loop = !def && v->region ? v->region->owner : NULL;
  int carried = loop ? (int)ir_attr_int(loop, "carried", 0) : 0;
  if (!loop || loop->code != IR_repeat || v->pos < 1 + carried) return NULL;
  ir_value *outer = rounded(c, loop->in[v->pos - 1], t);
  if (!outer) return NULL;
  for (int k = carried; k < loop->nin; k++)
    if (loop->in[k] == outer) return loop->region[0]->args.at[1 + k];
  ir_type type = v->type;
  type.dtype = t;
  bool stacked = v->pos < 1 + carried + (int)ir_attr_int(loop, "stacked", 0);
  return pass_add_operand(c->m, loop, outer, stacked, type, v->name);
}

static void visit(nar *c, ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    int before = r->ops.n;
    if (op->code == IR_repeat) visit(c, op->region[0]);
    for (int k = 0; k < op->nin; k++) {
      ir_dtype t = ir_rounds(op, k);
      ir_value *v = t != DT_COUNT ? rounded(c, op->in[k], t) : NULL;
      if (v) op->in[k] = v;
    }
    if (r->ops.n > before) i = pass_number_of(op);  // ops were put in front of it
  }
}

// Behind each `set` of a weight that has a copy, one of the copy.
static void follow(ir_module *m, ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code != IR_set) continue;
    const ir_state *w = ir_state_find(m, ir_attr_str(op, "name", ""));
    const ir_state *copy = w && w->cls == STATE_WEIGHT ? copy_of(m, w, DT_bf16, false) : NULL;
    if (!copy) continue;
    ir_value *v = pass_cast(m, r, op->in[0], copy->type.dtype);
    v->def->span = op->span;
    pass_move_last(r, ++i);
    ir_op *set = ir_op_raw(r, IR_set, &v, 1, NULL, 0);
    ir_set_attr(m, set, ir_attr_s("name", copy->name));
    set->span = op->span;
    pass_move_last(r, ++i);
  }
}

const char *pass_narrow(ir_module *m, const pass_options *o) {
  (void)o;
  for (int i = 0; i < m->funcs.n; i++) {
    nar c = {.m = m, .f = m->funcs.at[i], .made = {.arena = m->bodies}};
    visit(&c, c.f->body);
  }
  for (int i = 0; i < m->funcs.n; i++) follow(m, m->funcs.at[i]->body);
  return NULL;
}
