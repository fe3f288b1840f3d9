// Gradients are reduced among ranks where they are made, while backward goes on.
//
// needs: LOCAL after `legalise`, so that a reduction may be made in place where it stands. keeps:
// every sum to the bit: each element is still the sum of the same parts in the order of ranks.
// breaks: nothing.
//
// `localise` and `zero` reduce a gradient once it is complete: behind the loop over micro-batches,
// and the gradients of all layers as one stack. Here
//   - the reduction of what a repeat stacks moves into its body, a slice at a time:
//
//       %g = repeat {... yield %x}              %g = repeat {... %y = all_reduce(%x) yield %y}
//       %s = all_reduce(%g)
//
//     and reduce_scatter becomes one more stack, of parts; the stack of sums, which nobody reads
//     any more, stays, because the slice of the layer above may still be on its way;
//   - that of another value moves behind what makes it;
//   - a sum over micro-batches is only complete in the last one: such a reduction has `last=1`, and
//     its instruction is left out in the others (sched_instr.last).
//
// What stages of a pipeline add up (tied embeddings) stays behind the loop. A repeat whose
// gradients are small keeps its stacks: few calls are better than early ones. Pass `overlap` behind
// this one lets exchanges go on beside kernels; it goes where that one goes.
#include "ir/place.h"
#include "ir/view.h"
#include "passes/pass.h"

// Bytes of gradients of a layer from which on they are reduced layer by layer.
enum { LAYER_BYTES = 16 << 10 };

typedef struct early {
  ir_module *m;
  ir_region *r;  // the function's
  bool several;  // micro-batches
} early;

static bool reduces(const ir_op *op) {
  return op->code == IR_all_reduce || op->code == IR_reduce_scatter;
}

static int64_t count_of(const ir_op *loop) { return ir_attr_int(loop, "count", 1); }

// Where result `v` of a repeat is yielded; NULL: it cannot be reduced in the body. Value->mark
// holds use counts.
static ir_value *yielded(const ir_op *op, const ir_op *loop, const ir_value *v) {
  const ir_region *body = loop->region[0];
  ir_value *y = body->yield.at[v->pos];
  if (v->pos < ir_attr_int(loop, "carried", 0) || ir_attr_int(loop, "stream", 0)) return NULL;
  if (!y->def || y->def->parent != body || ir_is_view(y->def) || ir_updated(y->def) >= 0)
    return NULL;
  if (y->mark != 1 || v->type.rank != y->type.rank + 1) return NULL;
  if (op->code == IR_all_reduce) return y;
  const ir_type *part = &op->out[0]->type;
  int64_t layers = count_of(loop), block = ir_attr_int(op, "block", 1);
  bool cut = part->rank > 1 && part->dim[0]->size == layers && v->type.dim[0]->size == layers;
  return cut && ir_elements(part) / layers % block == 0 ? y : NULL;
}

// Whether a reduction may move to where its operand is made.
static bool may_move(const early *e, const ir_op *op) {
  const ir_value *v = op->nin ? op->in[0] : NULL;
  if (!reduces(op) || (op->segment & 1) || !v->def || v->def->parent != e->r) return false;
  // Stages come to their last micro-batch at different times, and an earlier one comes there only
  // by the gradient that a later one sends next: who waits for it in between waits for ever.
  int pipeline = mesh_axis(e->m->mesh, "pipeline");
  if (pipeline >= 0 && (ir_exchange_axes(e->m, op) >> pipeline & 1)) return false;
  return v->type.rank > 0 && v->mark == 1;
}

static ir_type slice(const ir_type *t) {
  ir_type s = {.dtype = t->dtype, .rank = t->rank - 1};
  for (int d = 0; d < s.rank; d++) s.dim[d] = t->dim[d + 1];
  return s;
}

static void set_last(const early *e, ir_op *op, const ir_op *maker) {
  if (e->several && (maker->segment & 1)) ir_set_attr(e->m, op, ir_attr_i("last", 1));
}

static void into_body(early *e, ir_op *op, ir_value *y) {
  ir_op *loop = op->in[0]->def;
  ir_region *body = loop->region[0];
  bool whole = op->code == IR_all_reduce;
  ir_type t = whole ? y->type : slice(&op->out[0]->type);
  ir_op *now = ir_op_raw(body, op->code, &y, 1, &t, 1);
  for (int k = 0; k < op->nattrs; k++) ir_set_attr(e->m, now, op->attr[k]);
  set_last(e, now, loop);
  now->span = op->span;
  now->path = op->path;
  now->out[0]->name = y->name;
  pass_move_last(body, pass_number_of(y->def) + 1);
  ir_value *stack = op->in[0];
  if (whole)
    body->yield.at[stack->pos] = now->out[0];
  else
    stack = pass_save(e->m, loop, op->out[0]->type.dim[0], now->out[0]);
  ir_replace_uses(e->r, op->out[0], stack);
  pass_take_out(e->r, pass_number_of(op));
}

// Behind what makes its operand.
static void behind(early *e, ir_op *op) {
  const ir_op *maker = op->in[0]->def;
  int from = pass_number_of(op), to = pass_number_of(maker) + 1;
  for (int i = from; i > to; i--) e->r->ops.at[i] = e->r->ops.at[i - 1];
  e->r->ops.at[to] = op;
  op->segment = maker->segment;
  set_last(e, op, maker);
}

// Bytes of a layer that would be reduced in the body of `loop`.
static int64_t layer_bytes(const early *e, const ir_op *loop) {
  int64_t n = 0;
  for (int i = 0; i < e->r->ops.n; i++) {
    const ir_op *op = e->r->ops.at[i];
    if (may_move(e, op) && op->in[0]->def == loop && yielded(op, loop, op->in[0]))
      n += ir_bytes(&op->in[0]->type) / count_of(loop);
  }
  return n;
}

static void reduce_early(early *e) {
  VEC(ir_op *) found = {0};
  VEC(bool) pays = {0};
  pass_count_uses(e->r);
  for (int i = 0; i < e->r->ops.n; i++) {
    ir_op *op = e->r->ops.at[i];
    if (!may_move(e, op)) continue;
    const ir_op *def = op->in[0]->def;
    vec_push(e->m->arena, &found, op);
    vec_push(e->m->arena, &pays, def->code != IR_repeat || layer_bytes(e, def) >= LAYER_BYTES);
  }
  for (int i = 0; i < found.n; i++) {
    ir_op *op = found.at[i], *def = op->in[0]->def;
    ir_value *y = def->code == IR_repeat ? yielded(op, def, op->in[0]) : NULL;
    if (y && pays.at[i])
      into_body(e, op, y);
    else if (def->segment & 1)
      behind(e, op);
  }
}

const char *pass_reduce_early(ir_module *m, const pass_options *o) {
  if (!m->mesh || o->device) return NULL;
  int micro = mesh_axis(m->mesh, "micro");
  for (int i = 0; i < m->funcs.n; i++) {
    early e = {.m = m, .r = m->funcs.at[i]->body};
    e.several = micro >= 0 && m->mesh->axis[micro].size > 1;
    if (m->funcs.at[i]->kind == ENTRY_TRAIN) reduce_early(&e);
  }
  return NULL;
}
