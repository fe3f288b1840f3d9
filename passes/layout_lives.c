// Lifetimes, and which results are written over an operand that dies.
//
// A lifetime is first and last position, inclusive: at the top of a function the position of the
// instruction in the entry's order, in the body of a repeat the number of the instruction in it.
// Inside a loop over micro-batches, what comes from outside lives to the loop's end.
//
// Chains. Some results may take the storage of an operand of the same type that nobody reads
// afterwards (ir_may_overwrite: elementwise ops, norms, softmax, the gradient of the loss): no byte
// more, and one stream of memory less in the processor's caches.
// Results follow each other so, a *chain*, one storage:
//
//   add  %b <- %g, %a       ; %g, which the loop carries, is read here for the last time
//   sum  %c <- %b
//   add  %y <- %b, %d       ; what the loop carries next: %g, %b, %y are one chain, one slot
//
// A chain may begin with a carried argument and may end in a yield; when both are the same carried
// value, its ring has one slot. It may also end in a stack or in the other slot of a ring: the slot
// of this layer is free while the layer is computed. It never begins in a slice of a stack or in an
// invariant, which others may read. When an op could be written over several operands, a carried
// argument goes first: this is how rings get down to one slot.

#include <string.h>

#include "ir/place.h"
#include "ir/rule.h"
#include "passes/layout.h"

// ---- lifetimes at the top level -----------------------------------------------------------------

bool lives_sums(const ir_op *op, int k) {
  ir_value *v = op->code == IR_repeat ? op->region[0]->yield.at[k] : op->out[k];
  v = ir_storage_of(v);
  return v->def && v->def->parent == (op->code == IR_repeat ? op->region[0] : op->parent) &&
         ir_accumulates(v->def);
}

static bool in_loop(const lay *l, const ir_op *op) {
  return (op->segment & 1) && l->e->batch / l->e->micro_batch > 1;
}

static void reach(lay *l, const ir_value *v, int until) {
  if (l->last[v->id] < until) l->last[v->id] = until;
}

// What an exchange reads and writes is there until it has been waited for: of a body, the stacks of
// the repeat.
static void extend(lay *l, const sched_task *t, const sched_instr *in) {
  if (!sched_beside(in) || in->within) return;
  const ir_region *body = t->loop ? t->loop->region[0] : NULL;
  for (int n = 0; n < sched_ops(in); n++) {
    const ir_op *op = sched_op(in, n);
    const ir_value *read = ir_storage_of(op->in[0]), *made = ir_storage_of(op->out[0]);
    if (!body) reach(l, read, in->until), reach(l, made, in->until);
    for (int j = 0; body && j < body->yield.n; j++) {
      const ir_value *y = ir_storage_of(body->yield.at[j]);
      if (y == read || y == made) reach(l, t->loop->out[j], in->until);
    }
  }
}

// Positions of top-level ops go to op->mark; ops without an instruction get the end.
void lives_find(lay *l) {
  sched *s = l->s;
  ir_region *r = l->e->func->body;
  int end = l->e->positions;
  for (int i = 0; i < r->ops.n; i++) r->ops.at[i]->mark = end;
  int segments = 0;
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->segment + 1 > segments) segments = r->ops.at[i]->segment + 1;
  int *seg_first = arena_new(s->m->arena, int, segments + 1),
      *seg_last = arena_new(s->m->arena, int, segments + 1);
  for (int i = 0; i < segments; i++) seg_first[i] = end, seg_last[i] = 0;
  for (int ri = 0; ri < l->e->runs.n; ri++) {
    sched_run *run = &l->e->runs.at[ri];
    if (run->kind == SCHED_LOOP) continue;
    sched_task *t = &s->tasks.at[run->task];
    for (int i = 0; i < t->instrs.n; i++) {
      if (t->instrs.at[i].code != SCHED_OP) continue;
      int p = t->instrs.at[i].position;
      for (int k = 0; k < sched_ops(&t->instrs.at[i]) && !t->loop; k++)
        sched_op(&t->instrs.at[i], k)->mark = p;
      if (t->loop) t->loop->mark = p;
      int segment = lay_segment(l, t->segment);
      if (p < seg_first[segment]) seg_first[segment] = p;
      if (p > seg_last[segment]) seg_last[segment] = p;
    }
  }
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    bool repeats = in_loop(l, op);
    for (int k = 0; k < op->nout; k++) {
      ir_value *v = op->out[k];
      l->first[v->id] = op->mark;
      // A sum over micro-batches lives while they run, wherever it is made, and read.
      if (!lives_sums(op, k) || !repeats) continue;
      l->first[v->id] = seg_first[lay_segment(l, op->segment)];
      reach(l, v, seg_last[lay_segment(l, op->segment)]);
    }
    if (ir_is_view(op)) continue;
    // Every use of a view or of what was updated in place is a use of its storage.
    for (int k = 0; k < op->nin; k++) {
      ir_value *root = ir_storage_of(op->in[k]);
      int p = op->mark;
      bool from_outside =
          root->def && (lay_segment(l, root->def->segment) != lay_segment(l, op->segment) ||
                        root->def->code == IR_input);
      if (repeats && from_outside) p = seg_last[lay_segment(l, op->segment)];
      if (p > l->last[root->id]) l->last[root->id] = p;
    }
  }
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nout; k++)
      if (l->last[op->out[k]->id] < l->first[op->out[k]->id])
        l->last[op->out[k]->id] = l->first[op->out[k]->id];
  }
  for (int ri = 0; ri < l->e->runs.n; ri++) {
    if (l->e->runs.at[ri].kind == SCHED_LOOP) continue;
    const sched_task *t = &s->tasks.at[l->e->runs.at[ri].task];
    for (int i = 0; i < t->instrs.n; i++) extend(l, t, &t->instrs.at[i]);
  }
}

// ---- states updated in place --------------------------------------------------------------------

// The state that a value is, or is a view of; NULL: none.
static const char *state_behind(ir_value *v) {
  const ir_op *def = ir_view_of(v).root->def;
  return def && def->code == IR_state ? ir_attr_str(def, "name", "") : NULL;
}

// By the name of a state: the last position at which it is read.
static map last_reads(arena *a, const ir_region *r) {
  map last = {.arena = a};
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (ir_is_view(op)) continue;
    for (int k = 0; k < op->nin; k++) {
      const char *name = state_behind(op->in[k]);
      if (!name) continue;
      int *at = map_get(&last, name);
      if (!at) map_set(&last, name, at = arena_new(a, int, 1));
      if (op->mark > *at) *at = op->mark;
    }
  }
  return last;
}

// True when `v`, which is to be set into state `name`, may be written there.
static bool in_place(lay *l, const map *last, const char *name, const ir_value *v) {
  ir_op *def = v->def;
  bool in_step = def && (ir_is_elementwise(def) || ir_epilogue(def) >= 0 ||
                         (ir_is_exchange(def->code) && ir_updated(def) < 0));
  if (!in_step || lay_bound(l, v)) return false;
  const int *read = map_get(last, name);
  if (read && *read > def->mark) return false;
  for (int k = 0; k < def->nin && !ir_is_view(def); k++) {
    const char *own = state_behind(def->in[k]);
    if (own && str_eq(own, name) && !ir_may_overwrite(def, v->pos, k)) return false;
  }
  return true;
}

void lives_bind_sets(lay *l) {
  ir_region *r = l->e->func->body;
  arena scratch;
  arena_init(&scratch);
  map last = last_reads(&scratch, r);
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code != IR_set) continue;
    const char *name = ir_attr_str(op, "name", "");
    ir_value *v = op->in[0];
    if (in_place(l, &last, name, v))
      l->bind[v->id] =
          (binding){.kind = BIND_STATE, .index = lay_state(l, name), .bytes = lay_bytes(v)};
  }
  arena_free(&scratch);
}

// ---- chains -------------------------------------------------------------------------------------

const ir_value *lives_head(const lay *l, const ir_value *v) {
  while (l->over[v->id]) v = l->over[v->id];
  return v;
}

const ir_value *lives_tail(const lay *l, const ir_value *v) {
  while (l->under[v->id]) v = l->under[v->id];
  return v;
}

static void link_chain(lay *l, const ir_value *result, const ir_value *operand) {
  l->over[result->id] = operand;
  l->under[operand->id] = result;
}

// The number of the carried value whose argument `v` is, or -1.
static int carried_number(const ir_op *loop, const ir_value *v) {
  int carried = (int)ir_attr_int(loop, "carried", 0);
  bool is = !v->def && v->region == loop->region[0] && v->pos >= 1 && v->pos < 1 + carried;
  return is ? v->pos - 1 : -1;
}

static int yield_number(const ir_region *body, const ir_value *v) {
  for (int k = 0; k < body->yield.n; k++)
    if (body->yield.at[k] == v) return k;
  return -1;
}

// First and last instruction that uses a value of the body; what is yielded lives to its end.
static void find_body_lifetimes(lay *l, const sched_task *t) {
  const ir_region *body = t->loop->region[0];
  for (int i = 0; i < t->instrs.n; i++) {
    const sched_instr *in = &t->instrs.at[i];
    for (int n = 0; n < sched_ops(in); n++) {
      const ir_op *op = sched_op(in, n);
      for (int k = 0; k < op->nout; k++) l->first[op->out[k]->id] = l->last[op->out[k]->id] = i;
      for (int k = 0; k < op->nin; k++) l->last[ir_storage_of(op->in[k])->id] = i;
    }
  }
  for (int i = 0; i < t->instrs.n; i++) {
    const sched_instr *in = &t->instrs.at[i];
    for (int n = 0; sched_beside(in) && in->within && n < sched_ops(in); n++) {
      reach(l, ir_storage_of(sched_op(in, n)->in[0]), in->until);
      reach(l, ir_storage_of(sched_op(in, n)->out[0]), in->until);
    }
  }
  for (int k = 0; k < body->yield.n; k++)
    l->last[ir_storage_of(body->yield.at[k])->id] = t->instrs.n;
}

// Whether result `u` of instruction i may end the chain that `v`, an operand's storage, is in.
static bool may_follow(const lay *l, const ir_op *loop, int i, const ir_value *u,
                       const ir_value *v) {
  if (l->last[v->id] != i || l->under[v->id]) return false;
  bool made = v->def && v->def->parent == loop->region[0] && v->def->code != IR_const;
  if (!made && carried_number(loop, v) < 0) return false;
  int to = yield_number(loop->region[0], u), from = carried_number(loop, lives_head(l, v));
  return to < 0 || from < 0 || to == from;
}

static void chain_body(lay *l, const sched_task *t) {
  for (int i = 0; i < t->instrs.n; i++) {
    const ir_op *op = t->instrs.at[i].op;
    for (int j = 0; op && j < op->nout; j++) {
      const ir_value *best = NULL;
      for (int k = 0; k < op->nin; k++) {
        const ir_value *v = ir_storage_of(op->in[k]);
        if (!ir_may_overwrite(op, j, k) || !may_follow(l, t->loop, i, op->out[j], v)) continue;
        bool carried = carried_number(t->loop, lives_head(l, v)) >= 0;
        if (!best || (carried && carried_number(t->loop, lives_head(l, best)) < 0)) best = v;
      }
      if (best) link_chain(l, op->out[j], best);
    }
  }
}

// At the top: results of instructions with an item of their own, no part of a ring or a state.
static bool plain(const lay *l, const ir_value *v) {
  if (!v->def || lay_bound(l, v) || lay_target(v)) return false;
  switch (v->def->code) {
    case IR_state:
    case IR_arg:
    case IR_input:
    case IR_const:
    case IR_repeat: return false;
    default: return true;
  }
}

static void chain_top(lay *l) {
  const ir_region *r = l->e->func->body;
  bool *starts = arena_new(l->s->m->arena, bool, l->s->m->next_value);  // a ring
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    int carried = op->code == IR_repeat ? (int)ir_attr_int(op, "carried", 0) : 0;
    for (int k = 0; k < carried; k++) starts[op->in[k]->id] = true;
  }
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    for (int j = 0; j < op->nout; j++) {
      const ir_value *u = op->out[j];
      for (int k = 0; k < op->nin && !starts[u->id] && plain(l, u) && !l->over[u->id]; k++) {
        const ir_value *v = ir_storage_of(op->in[k]);
        bool dies = l->last[v->id] == op->mark && !l->under[v->id];
        if (dies && in_loop(l, op))
          dies = v->def && lay_segment(l, v->def->segment) == lay_segment(l, op->segment);
        if (dies && plain(l, v) && !starts[v->id] && ir_may_overwrite(op, j, k))
          link_chain(l, u, v);
      }
    }
  }
}

void lives_chains(lay *l) {
  bool wanted = !skips(l->skip, SKIP_chains);
  for (int i = 0; i < l->e->runs.n; i++) {
    if (!sched_first_run(l->e, i)) continue;
    const sched_task *t = &l->s->tasks.at[l->e->runs.at[i].task];
    if (!t->loop) continue;
    find_body_lifetimes(l, t);
    if (wanted) chain_body(l, t);
  }
  if (wanted) chain_top(l);
}
