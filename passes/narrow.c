// Weights that decoding only multiplies are kept as what it multiplies.
//
// needs: GRAPH with `decode`; products with `round`. keeps: every result to the bit, for a product
// rounds its operands anyway, and a rounded number rounds to itself. breaks: nothing; adds a state
// of class STATE_CACHE a weight.
//
// Decoding reads every weight once a token, so the bytes of a weight are its cost. Training keeps
// the weights in f32; `prefill`, which runs once a prompt, stores them rounded beside the keys and
// values, and `decode` reads those:
//
//   prefill:  %w = state("fc.weight") : f32          decode:  %w = state("fc.weight.bf16") : bf16
//             %w16 = cast(%w) : bf16                           %y = einsum(%x, %w) {round="bf16"}
//             %y = einsum(%x, %w16) {round="bf16"}
//             set(%w16) {name="fc.weight.bf16"}
//
// What reads the weight otherwise (the embedding's gather) reads the f32 one as before.
#include <string.h>

#include "ir/rule.h"
#include "ir/view.h"
#include "passes/pass.h"

typedef struct nar {
  ir_module *m;
  ir_func *f;
  map made;  // name of a weight -> its rounded value in this function
} nar;

// The state that holds `s` rounded to t.
static const char *rounded_state(ir_module *m, const ir_state *s, ir_dtype t) {
  const char *name = arena_printf(m->arena, "%s.%s", s->name, ir_dtype_name(t));
  if (ir_state_find(m, name)) return name;
  ir_state now = *s;
  now.name = name;
  now.type.dtype = t;
  now.cls = STATE_CACHE;
  now.init = INIT_ZEROS;
  now.trained = false;
  ir_state_add(m, now);
  return name;
}

// The rounded value of the weight that the op `state` reads.
static ir_value *of_state(nar *c, ir_op *op, ir_dtype t) {
  const char *name = ir_attr_str(op, "name", "");
  const ir_state *s = ir_state_find(c->m, name);
  if (!s || s->cls != STATE_WEIGHT || s->type.dtype != DT_f32) return NULL;
  ir_value *had = map_get(&c->made, name);
  if (had) return had;
  ir_region *r = c->f->body;
  const char *rounded = rounded_state(c->m, s, t);
  ir_value *v;
  if (c->f->kind == ENTRY_PREFILL) {
    v = pass_cast(c->m, r, op->out[0], t);
    pass_move_last(r, pass_number_of(op) + 1);
    ir_op *set = ir_op_raw(r, IR_set, &v, 1, NULL, 0);
    ir_set_attr(c->m, set, ir_attr_s("name", rounded));
  } else {
    ir_type type = op->out[0]->type;
    type.dtype = t;
    ir_op *now = ir_op_raw(r, IR_state, NULL, 0, &type, 1);
    ir_set_attr(c->m, now, ir_attr_s("name", rounded));
    now->span = op->span;
    pass_move_last(r, pass_number_of(op) + 1);
    v = now->out[0];
  }
  map_set(&c->made, name, v);
  return v;
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
    if (op->code == IR_repeat) visit(c, op->region[0]);
    for (int k = 0; k < op->nin; k++) {
      ir_dtype t = ir_rounds(op, k);
      ir_value *v = t != DT_COUNT ? rounded(c, op->in[k], t) : NULL;
      if (v) op->in[k] = v;
    }
    i = pass_number_of(op);  // ops were put in front of it
  }
}

const char *pass_narrow(ir_module *m, const pass_options *o) {
  (void)o;
  if (!ir_func_find(m, "decode")) return NULL;
  for (int i = 0; i < m->funcs.n; i++) {
    nar c = {.m = m, .f = m->funcs.at[i], .made = {.arena = m->arena}};
    if (c.f->kind == ENTRY_PREFILL || c.f->kind == ENTRY_DECODE) visit(&c, c.f->body);
  }
  return NULL;
}
