// Gives every value a place: one arena, static offsets.
//
// needs: the scratch sizes that `select` has asked codegen for. keeps: the order. breaks: nothing.
//
// The arena is the states, then the argument block, then one region that the entries overlay. In an
// entry, every storage object has a lifetime in positions (an instruction at the top level is one
// position, a whole repeat is one) and sched_pack finds offsets. Inside a repeat:
//   - a carried value lives in a *ring* of slots. Iteration l reads one slot and writes the next.
//     When the argument is also saved as a stack, the ring has count+1 slots and is the stack; an
//     accumulator updated elementwise needs one; all others two;
//   - a stacked result is an array of `count` slices, written in place by the kernel that yields
//   it;
//   - slices of stacked operands are addresses into them;
//   - all else dies within one execution of the body and is packed once for all layers.
// An optimizer's update writes the state it reads (`set` in place) when nobody reads it afterwards;
// what an op updates in place (ir_updated) lives as long as its result.

#include <string.h>

#include "ir/rule.h"
#include "ir/schedule.h"
#include "ir/view.h"
#include "passes/pass.h"

#define ALIGN 64

typedef enum bind_kind { BIND_NONE, BIND_ITEM, BIND_STATE, BIND_ARG, BIND_ALIAS } bind_kind;

// How a root value gets its place.
typedef struct binding {
  bind_kind kind;
  int index;           // item, state or arg number
  const ir_value *of;  // BIND_ALIAS
  int64_t offset, layer_stride, layer_add, layer_mod, micro_stride, bytes;
} binding;

typedef struct lay {
  sched *s;
  sched_entry *e;
  int entry, first_item;
  int *first, *last;  // by value id, of top-level roots: positions
  binding *bind;      // by value id
} lay;

static int64_t align_up(int64_t x) { return (x + ALIGN - 1) & ~(int64_t)(ALIGN - 1); }

static int64_t root_bytes(const ir_value *v) { return ir_bytes(&v->type); }

static int new_item(lay *l, const char *name, int64_t bytes, int first, int last) {
  sched_item it = {.entry = l->entry,
                   .name = name ? name : "",
                   .bytes = bytes,
                   .first = first,
                   .last = last < first ? first : last};
  vec_push(l->s->m->arena, &l->s->items, it);
  return l->s->items.n - 1;
}

static void bind_item(lay *l, const ir_value *v, int item, int64_t offset) {
  l->bind[v->id] =
      (binding){.kind = BIND_ITEM, .index = item, .offset = offset, .bytes = root_bytes(v)};
}

static bool bound(const lay *l, const ir_value *v) { return l->bind[v->id].kind != BIND_NONE; }

// ---- lifetimes at the top level -----------------------------------------------------------------

static int state_number(const ir_module *m, const char *name) {
  for (int i = 0; i < m->states.n; i++)
    if (str_eq(m->states.at[i]->name, name)) return i;
  IR_BUG("no state %s", name);
}

static int arg_number(const sched *s, const char *name) {
  for (int i = 0; i < s->args.n; i++)
    if (str_eq(s->args.at[i], name)) return i;
  IR_BUG("no argument %s", name);
}

// Positions of top-level ops go to op->mark; ops without an instruction get the end.
static void find_lifetimes(lay *l) {
  sched *s = l->s;
  ir_region *r = l->e->func->body;
  int end = l->e->positions;
  int64_t micros = l->e->batch / l->e->micro_batch;
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
      int p = t->instrs.at[i].position;
      if (!t->loop) t->instrs.at[i].op->mark = p;
      if (t->loop) t->loop->mark = p;
      if (p < seg_first[t->segment]) seg_first[t->segment] = p;
      if (p > seg_last[t->segment]) seg_last[t->segment] = p;
    }
  }
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    bool in_loop = (op->segment & 1) && micros > 1;
    for (int k = 0; k < op->nout; k++) {
      ir_value *v = op->out[k];
      l->first[v->id] = op->mark;
      // A sum over micro-batches lives while they run, wherever it is made.
      const ir_op *maker = op->code == IR_repeat ? op->region[0]->yield.at[k]->def : op;
      if (maker && ir_accumulates(maker) && in_loop) l->first[v->id] = seg_first[op->segment];
    }
    if (ir_is_view(op)) continue;
    for (int k = 0; k < op->nin; k++) {
      ir_value *root = ir_storage_of(op->in[k]);
      int p = op->mark;
      bool from_outside =
          root->def && (root->def->segment != op->segment || root->def->code == IR_input);
      if (in_loop && from_outside) p = seg_last[op->segment];
      if (p > l->last[root->id]) l->last[root->id] = p;
    }
  }
  // Every use of a view is a use of its root: uses of views were resolved above by ir_view_of.
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nout; k++)
      if (l->last[op->out[k]->id] < l->first[op->out[k]->id])
        l->last[op->out[k]->id] = l->first[op->out[k]->id];
  }
}

// ---- states updated in place --------------------------------------------------------------------

// True when `v`, which is to be set into state `name`, may be written there directly.
static bool in_place(lay *l, const char *name, const ir_value *v) {
  ir_op *def = v->def;
  if (!def || !(ir_is_elementwise(def) || ir_epilogue(def) >= 0) || bound(l, v)) return false;
  ir_region *r = l->e->func->body;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (ir_is_view(op)) continue;
    for (int k = 0; k < op->nin; k++) {
      ir_value *root = ir_view_of(op->in[k]).root;
      bool is_state = root->def && root->def->code == IR_state &&
                      str_eq(ir_attr_str(root->def, "name", ""), name);
      if (!is_state) continue;
      if (op == def && (op->in[k] != root || !ir_in_step(op, k, v->pos))) return false;
      if (op != def && op->mark > def->mark) return false;
    }
  }
  return true;
}

static void bind_sets(lay *l) {
  ir_region *r = l->e->func->body;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code != IR_set) continue;
    const char *name = ir_attr_str(op, "name", "");
    if (in_place(l, name, op->in[0]))
      l->bind[op->in[0]->id] = (binding){
          .kind = BIND_STATE, .index = state_number(l->s->m, name), .bytes = root_bytes(op->in[0])};
  }
}

// ---- repeats ------------------------------------------------------------------------------------

// An accumulator whose new value is made elementwise from the old one, read nowhere else.
static bool updates_in_place(const ir_region *body, int k) {
  const ir_value *arg = body->args.at[1 + k], *y = body->yield.at[k];
  if (!y->def || y->def->code == IR_dropout) return false;
  int uses = 0;
  bool direct = false;
  for (int i = 0; i < body->ops.n; i++)
    for (int j = 0; j < body->ops.at[i]->nin; j++)
      if (body->ops.at[i]->in[j] == arg) {
        uses++;
        direct = body->ops.at[i] == y->def && ir_in_step(y->def, j, y->pos);
      }
  for (int i = 0; i < body->yield.n; i++) uses += body->yield.at[i] == arg;
  return uses == 1 && direct;
}

static void bind_ring(lay *l, ir_op *op, int k) {
  ir_region *body = op->region[0];
  int64_t count = ir_attr_int(op, "count", 1);
  int carried = (int)ir_attr_int(op, "carried", 0);
  bool reverse = ir_attr_int(op, "reverse", 0) != 0;
  const ir_value *arg = body->args.at[1 + k], *y = body->yield.at[k], *init = op->in[k];
  int64_t bytes = root_bytes(arg);
  int last = l->last[op->out[k]->id];
  bool saved = false;
  for (int j = carried; j < op->nout; j++)
    if (body->yield.at[j] == arg) {
      saved = true;
      if (l->last[op->out[j]->id] > last) last = l->last[op->out[j]->id];
    }
  int64_t slots = saved ? count + 1 : updates_in_place(body, k) ? 1 : 2;
  int64_t mod = saved ? 0 : slots;
  int item = new_item(l, arg->name, slots * bytes, l->first[init->id], last);
  int64_t start = reverse ? (mod ? count % mod : count) : 0;
  int64_t final = reverse ? 0 : (mod ? count % mod : count);
  bind_item(l, init, item, start * bytes);
  bind_item(l, op->out[k], item, final * bytes);
  binding b = {.kind = BIND_ITEM,
               .index = item,
               .bytes = bytes,
               .layer_stride = slots == 1 ? 0 : bytes,
               .layer_mod = slots == 1 ? 0 : mod};
  b.layer_add = slots == 1 ? 0 : reverse;
  l->bind[arg->id] = b;
  b.layer_add = slots == 1 ? 0 : !reverse;
  l->bind[y->id] = b;
  for (int j = carried; j < op->nout; j++)
    if (body->yield.at[j] == arg) bind_item(l, op->out[j], item, reverse ? bytes : 0);
}

// The value whose storage an op that updates in place writes, or NULL.
static const ir_value *target_of(const ir_value *v) {
  int k = v->def ? ir_updated(v->def) : -1;
  return k < 0 ? NULL : ir_view_of(v->def->in[k]).root;
}

static void bind_alias(lay *l, const ir_value *v, const ir_value *of, int64_t layer_stride) {
  l->bind[v->id] =
      (binding){.kind = BIND_ALIAS, .of = of, .layer_stride = layer_stride, .bytes = root_bytes(v)};
}

static void bind_repeat(lay *l, ir_op *op) {
  ir_region *body = op->region[0];
  int carried = (int)ir_attr_int(op, "carried", 0), stacked = (int)ir_attr_int(op, "stacked", 0);
  int64_t count = ir_attr_int(op, "count", 1);
  for (int k = 0; k < carried; k++) bind_ring(l, op, k);
  for (int k = carried; k < op->nin; k++) {
    const ir_value *arg = body->args.at[1 + k], *outer = ir_view_of(op->in[k]).root;
    bind_alias(l, arg, outer, k < carried + stacked ? root_bytes(arg) : 0);
  }
  for (int j = carried; j < op->nout; j++) {
    const ir_value *y = body->yield.at[j], *out = op->out[j];
    if (bound(l, out)) continue;  // a ring that is the stack
    const ir_value *cache = target_of(y);
    if (cache && !cache->def && cache->region == body && cache->pos >= 1 + carried) {
      bind_alias(l, out, ir_view_of(op->in[cache->pos - 1]).root, 0);
      continue;
    }
    int64_t bytes = root_bytes(y);
    int item = new_item(l, y->name, count * bytes, l->first[out->id], l->last[out->id]);
    bind_item(l, out, item, 0);
    l->bind[y->id] =
        (binding){.kind = BIND_ITEM, .index = item, .layer_stride = bytes, .bytes = bytes};
  }
}

// ---- values that die within one execution of a body ---------------------------------------------

static void bind_body(lay *l, sched_task *t) {
  sched *s = l->s;
  ir_region *body = t->loop->region[0];
  int nscratch = 0, nvalues = 0;
  for (int i = 0; i < t->instrs.n; i++) {
    nscratch += t->instrs.at[i].nscratch;
    nvalues += t->instrs.at[i].op->nout;
  }
  sched_item *local = arena_new(s->m->arena, sched_item, nscratch + nvalues + 1);
  const ir_value **value = arena_new(s->m->arena, const ir_value *, nscratch + nvalues + 1);
  int n = 0;
  for (int i = 0; i < t->instrs.n; i++) {
    sched_instr *in = &t->instrs.at[i];
    for (int k = 0; k < in->nscratch; k++)
      local[n++] = (sched_item){.bytes = in->scratch_bytes[k], .first = i, .last = i};
    for (int k = 0; k < in->op->nout; k++) {
      ir_value *v = in->op->out[k];
      const ir_value *target = target_of(v);
      if (target) bind_alias(l, v, target, 0);
      if (bound(l, v)) continue;
      int last = i;
      for (int j = i + 1; j < t->instrs.n; j++)
        for (int q = 0; q < t->instrs.at[j].op->nin; q++)
          if (ir_storage_of(t->instrs.at[j].op->in[q]) == v) last = j;
      value[n] = v;
      local[n++] = (sched_item){.name = v->name, .bytes = root_bytes(v), .first = i, .last = last};
    }
  }
  (void)body;
  t->transient_bytes = sched_pack(s->m->arena, local, n, ALIGN);
  if (!n) return;
  int item = new_item(l, t->name, t->transient_bytes, t->loop->mark, t->loop->mark);
  n = 0;
  for (int i = 0; i < t->instrs.n; i++) {
    sched_instr *in = &t->instrs.at[i];
    for (int k = 0; k < in->nscratch; k++) in->scratch_base[k] = local[n++].base;
    for (int k = 0; k < in->op->nout; k++) {
      ir_value *v = in->op->out[k];
      if (n >= nscratch + nvalues || value[n] != v) continue;
      bind_item(l, v, item, local[n++].base);
    }
  }
  t->transient_base = item;  // an item number until the packer has run
}

// ---- one entry ----------------------------------------------------------------------------------

static void bind_top(lay *l) {
  sched *s = l->s;
  ir_region *r = l->e->func->body;
  int64_t micros = l->e->batch / l->e->micro_batch;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (ir_is_view(op) || op->code == IR_const) continue;
    for (int k = 0; k < op->nout; k++) {
      ir_value *v = op->out[k];
      binding b = {.bytes = root_bytes(v)};
      const ir_value *cache = target_of(v);
      if (bound(l, v)) continue;
      if (op->code == IR_state) {
        b.kind = BIND_STATE;
        b.index = state_number(s->m, ir_attr_str(op, "name", ""));
        l->bind[v->id] = b;
      } else if (op->code == IR_arg) {
        b.kind = BIND_ARG;
        b.index = arg_number(s, ir_attr_str(op, "name", ""));
        l->bind[v->id] = b;
      } else if (op->code == IR_input) {
        bool cut = pass_batch_dim(s->m, v) >= 0 && micros > 1;
        int64_t stride = align_up(b.bytes);
        b.kind = BIND_ITEM;
        b.index = new_item(l, v->name, cut ? stride * micros : b.bytes, 0, l->e->positions);
        b.micro_stride = cut ? stride : 0;
        l->bind[v->id] = b;
      } else if (cache) {
        bind_alias(l, v, cache, 0);
      } else {
        bind_item(l, v, new_item(l, v->name, b.bytes, l->first[v->id], l->last[v->id]), 0);
      }
    }
  }
}

static sched_place resolve(lay *l, const ir_value *v, int64_t transient) {
  sched *s = l->s;
  const binding *b = &l->bind[v->id];
  sched_place p = {.known = true, .bytes = b->bytes};
  switch (b->kind) {
    case BIND_ITEM: p.base = transient + s->items.at[b->index].base; break;
    case BIND_STATE: p.base = s->state_place[b->index].base; break;
    case BIND_ARG: p.base = s->arg_place[b->index].base; break;
    case BIND_ALIAS: {
      sched_place of = resolve(l, b->of, transient);
      of.bytes = b->bytes;
      if (b->layer_stride) {
        IR_CHECK(of.layer_stride == 0);
        of.layer_stride = b->layer_stride;
      }
      return of;
    }
    case BIND_NONE: IR_BUG("value %d (%s) has no place", v->id, v->name ? v->name : "?");
  }
  p.base += b->offset;
  p.layer_stride = b->layer_stride;
  p.layer_add = b->layer_add;
  p.layer_mod = b->layer_mod;
  p.micro_stride = b->micro_stride;
  return p;
}

static void layout_entry(sched *s, int entry, int64_t transient) {
  lay l = {.s = s, .e = &s->entries.at[entry], .entry = entry, .first_item = s->items.n};
  int n = s->m->next_value;
  l.first = arena_new(s->m->arena, int, n);
  l.last = arena_new(s->m->arena, int, n);
  l.bind = arena_new(s->m->arena, binding, n);
  find_lifetimes(&l);
  bind_sets(&l);
  ir_region *r = l.e->func->body;
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->code == IR_repeat) bind_repeat(&l, r->ops.at[i]);
  bind_top(&l);
  for (int ri = 0; ri < l.e->runs.n; ri++) {
    if (l.e->runs.at[ri].kind == SCHED_LOOP) continue;
    sched_task *t = &s->tasks.at[l.e->runs.at[ri].task];
    if (t->loop) {
      bind_body(&l, t);
      continue;
    }
    for (int i = 0; i < t->instrs.n; i++) {
      sched_instr *in = &t->instrs.at[i];
      for (int k = 0; k < in->nscratch; k++)
        in->scratch_base[k] =
            new_item(&l, "scratch", in->scratch_bytes[k], in->position, in->position);
    }
  }
  arena scratch;
  arena_init(&scratch);
  scratch.oom = s->m->arena->oom;
  scratch.oom_ctx = s->m->arena->oom_ctx;
  l.e->transient_bytes =
      sched_pack(&scratch, s->items.at + l.first_item, s->items.n - l.first_item, ALIGN);
  arena_free(&scratch);

  for (int ri = 0; ri < l.e->runs.n; ri++) {
    if (l.e->runs.at[ri].kind == SCHED_LOOP) continue;
    sched_task *t = &s->tasks.at[l.e->runs.at[ri].task];
    if (t->loop && t->transient_bytes)
      t->transient_base = transient + s->items.at[t->transient_base].base;
    for (int i = 0; i < t->instrs.n; i++)
      for (int k = 0; k < t->instrs.at[i].nscratch; k++) {
        int64_t *base = &t->instrs.at[i].scratch_base[k];
        *base = t->loop ? t->transient_base + *base : transient + s->items.at[*base].base;
      }
  }
  for (int i = 0; i < n; i++)
    if (l.bind[i].kind != BIND_NONE) {
      ir_value v = {.id = i};
      s->place[i] = resolve(&l, &v, transient);
    }
}

const char *pass_layout(ir_module *m, const pass_options *o) {
  (void)o;
  sched *s = m->schedule;
  s->nplaces = m->next_value;
  s->place = arena_new(m->arena, sched_place, s->nplaces);
  s->state_place = arena_new(m->arena, sched_place, m->states.n + 1);
  s->arg_place = arena_new(m->arena, sched_place, s->args.n + 1);
  int64_t at = 0;
  for (int i = 0; i < m->states.n; i++) {
    int64_t bytes = ir_bytes(&m->states.at[i]->type);
    s->state_place[i] = (sched_place){.known = true, .base = at, .bytes = bytes};
    at = align_up(at + bytes);
  }
  for (int i = 0; i < s->args.n; i++, at += 4)
    s->arg_place[i] = (sched_place){.known = true, .base = at, .bytes = 4};
  s->states_bytes = align_up(at);
  s->arena_bytes = s->states_bytes;
  for (int i = 0; i < s->entries.n; i++) {
    layout_entry(s, i, s->states_bytes);
    int64_t end = s->states_bytes + align_up(s->entries.at[i].transient_bytes);
    if (end > s->arena_bytes) s->arena_bytes = end;
  }
  const char *bad = sched_check(s);
  if (bad) IR_BUG("layout: %s", bad);
  return NULL;
}

const sched_place *sched_place_of(const sched *s, const ir_value *v) {
  ir_view w = ir_view_of((ir_value *)(uintptr_t)v);
  const sched_place *p = &s->place[w.root->id];
  return p->known ? p : NULL;
}

const char *sched_check(const sched *s) {
  for (int i = 0; i < s->items.n; i++)
    for (int j = i + 1; j < s->items.n; j++) {
      const sched_item *a = &s->items.at[i], *b = &s->items.at[j];
      if (a->entry != b->entry || a->first > b->last || b->first > a->last) continue;
      if (a->base < b->base + b->bytes && b->base < a->base + a->bytes)
        return arena_printf(s->m->arena, "%s [%d..%d] at %lld and %s [%d..%d] at %lld overlap",
                            a->name, a->first, a->last, (long long)a->base, b->name, b->first,
                            b->last, (long long)b->base);
    }
  return NULL;
}
