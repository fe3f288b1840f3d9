// Gives every value a place: one arena, static offsets.
//
// needs: the scratch sizes that `select` has asked codegen for. keeps: the order. breaks: nothing.
//
// The arena is the persistent states (weights, their copies, the optimizer's), then the argument
// block (of a device: the call and its arguments), then one region that the entries overlay. Caches
// (STATE_CACHE) are part of that region: prefill fills them before decode reads them, and no other
// entry knows them, so their bytes are transients of other entries. Entries that use caches have
// them all at its beginning, and their transients behind.
//
// In an entry, every storage object has a lifetime in positions (an instruction at the top level is
// one position, a whole repeat is one) and sched_pack finds offsets. layout_lives.c has lifetimes,
// and values that share one storage because one is written over the other; layout_loops.c has the
// storage of repeats. What dies within one execution of a body is packed once for all layers.
// An optimizer's update writes the state it reads (`set` in place) when nobody reads it afterwards;
// what an op updates in place (ir_updated) lives as long as its result.
//
// Frames, chains, overlaid caches and updates in place can each be left out (skip.h).
// The result is proved by execution: replay.c.

#include "passes/layout.h"

#include <string.h>

int64_t lay_align(int64_t x) { return (x + LAYOUT_ALIGN - 1) & ~(int64_t)(LAYOUT_ALIGN - 1); }

int64_t lay_bytes(const ir_value *v) { return ir_bytes(&v->type); }

int lay_item(lay *l, const char *name, int64_t bytes, int first, int last) {
  sched_item it = {.entry = l->entry,
                   .name = name ? name : "",
                   .bytes = bytes,
                   .first = first,
                   .last = last < first ? first : last};
  vec_push(l->s->m->arena, &l->s->items, it);
  return l->s->items.n - 1;
}

int lay_item_of(lay *l, const ir_value *v, int64_t bytes, int first, int last) {
  int item = lay_item(l, v->name, bytes, first, last);
  l->s->items.at[item].value = v;
  return item;
}

void lay_bind_item(lay *l, const ir_value *v, int item, int64_t offset) {
  l->bind[v->id] =
      (binding){.kind = BIND_ITEM, .index = item, .offset = offset, .bytes = lay_bytes(v)};
}

void lay_bind_alias(lay *l, const ir_value *v, const ir_value *of, bool sliced) {
  l->bind[v->id] = (binding){.kind = BIND_ALIAS, .of = of, .sliced = sliced, .bytes = lay_bytes(v)};
}

bool lay_bound(const lay *l, const ir_value *v) { return l->bind[v->id].kind != BIND_NONE; }

const ir_value *lay_target(const ir_value *v) {
  int k = v->def ? ir_updated(v->def) : -1;
  return k < 0 ? NULL : ir_view_of(v->def->in[k]).root;
}

static map number_states(arena *a, const ir_module *m) {
  map number = {.arena = a};
  for (int i = 0; i < m->states.n; i++)
    if (!map_get(&number, m->states.at[i]->name))
      map_set(&number, m->states.at[i]->name, (void *)(intptr_t)(i + 1));
  return number;
}

int lay_state(const lay *l, const char *name) {
  intptr_t n = (intptr_t)map_get(&l->states, name);
  IR_CHECK(n > 0);
  return (int)n - 1;
}

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

// ---- one entry ----------------------------------------------------------------------------------

static void bind_top(lay *l) {
  sched *s = l->s;
  ir_region *r = l->e->func->body;
  int64_t micros = l->e->batch / l->e->micro_batch;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (ir_is_view(op) || op->code == IR_const) continue;
    for (int k = 0; k < op->nout; k++) {
      const ir_value *v = op->out[k], *cache = lay_target(v), *over = l->over[v->id];
      binding b = {.bytes = lay_bytes(v)};
      if (lay_bound(l, v)) continue;
      if (op->code == IR_state) {
        b.kind = BIND_STATE;
        b.index = lay_state(l, ir_attr_str(op, "name", ""));
        l->bind[v->id] = b;
      } else if (op->code == IR_arg) {
        b.kind = BIND_ARG;
        b.index = arg_number(s, ir_attr_str(op, "name", ""));
        l->bind[v->id] = b;
      } else if (op->code == IR_input) {
        bool cut = pass_batch_dim(s->m, v) >= 0 && micros > 1;
        int64_t stride = lay_align(b.bytes);
        b.kind = BIND_ITEM;
        b.index = lay_item_of(l, v, cut ? stride * micros : b.bytes, 0, l->e->positions);
        b.micro_stride = cut ? stride : 0;
        l->bind[v->id] = b;
      } else if (cache) {
        lay_bind_alias(l, v, cache, false);
      } else if (over) {
        l->bind[v->id] = l->bind[over->id];
        sched_item *it = &s->items.at[l->bind[v->id].index];
        if (l->last[v->id] > it->last) it->last = l->last[v->id];
      } else {
        lay_bind_item(l, v, lay_item_of(l, v, b.bytes, l->first[v->id], l->last[v->id]), 0);
      }
    }
  }
}

// Bytes from one layer's slice of a stack to the next, 0: it is dense.
static int64_t slice_of(const lay *l, const ir_value *v) {
  const binding *b = &l->bind[v->id];
  while (b->kind == BIND_ALIAS && !b->sliced) b = &l->bind[b->of->id];
  return b->slice;
}

static sched_place resolve(lay *l, const ir_value *v, int64_t transient) {
  sched *s = l->s;
  const binding *b = &l->bind[v->id];
  sched_place p = {.known = true, .bytes = b->bytes};
  switch (b->kind) {
    case BIND_ITEM: {
      const sched_item *it = &s->items.at[b->index];
      p.base = transient + it->base;
      if (it->slots > 1) {
        p.base += b->offset;
        p.layer_stride = b->layer_stride;
        p.layer_add = b->layer_add;
        p.layer_mod = b->layer_mod;
        p.micro_stride = it->slot;
        p.micro_mod = it->slots;
        return p;
      }
      break;
    }
    case BIND_STATE: p.base = s->state_place[b->index].base; break;
    case BIND_ARG: p.base = s->arg_place[b->index].base; break;
    case BIND_ALIAS: {
      sched_place of = resolve(l, b->of, transient);
      of.bytes = b->bytes;
      if (b->sliced) {
        int64_t stride = slice_of(l, b->of);
        IR_CHECK(of.layer_stride == 0);
        of.layer_stride = stride ? stride : b->bytes;
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

static bool uses_caches(const sched *s, const sched_entry *e) {
  const ir_region *r = e->func->body;
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    if (op->code != IR_state && op->code != IR_set) continue;
    int k = state_number(s->m, ir_attr_str(op, "name", ""));
    if (s->m->states.at[k]->cls == STATE_CACHE) return true;
  }
  return false;
}

// ---- what waits for a later turn ----------------------------------------------------------------

int lay_segment(const lay *l, int segment) {
  const ir_func *f = l->e->func;
  bool turn = f->turns && (segment & 1) && segment >= f->loop;
  return turn ? f->loop : segment;
}

typedef struct turn_use {
  int made, read;  // the first turn that makes what lies there, the last that reads it; -1: none
} turn_use;

static void use_in_turn(turn_use *u, const ir_op *op, int turn) {
  for (int k = 0; k < op->nout; k++)
    if (u[op->out[k]->id].made < 0) u[op->out[k]->id].made = turn;
  for (int k = 0; k < op->nin; k++) {
    int *read = &u[ir_storage_of(op->in[k])->id].read;
    if (turn > *read) *read = turn;
  }
}

// What one turn makes and a later one reads has a place for each micro-batch that is between them,
// during the whole loop over micro-batches.
static void stash(lay *l) {
  sched *s = l->s;
  const ir_func *f = l->e->func;
  if (l->e->in_flight < 2) return;
  int n = s->m->next_value, first = l->e->positions, last = 0;
  turn_use *use = arena_new(s->m->arena, turn_use, n),
           *items = arena_new(s->m->arena, turn_use, s->items.n + 1);
  for (int i = 0; i < n; i++) use[i] = (turn_use){-1, -1};
  for (int i = 0; i < s->items.n; i++) items[i] = (turn_use){-1, -1};
  for (int ri = 0; ri < l->e->runs.n; ri++) {
    if (!sched_first_run(l->e, ri)) continue;
    const sched_task *t = &s->tasks.at[l->e->runs.at[ri].task];
    if (lay_segment(l, t->segment) != f->loop) continue;
    for (int i = 0; i < t->instrs.n; i++) {
      const sched_instr *in = &t->instrs.at[i];
      if (in->position < first) first = in->position;
      if (in->position > last) last = in->position;
      int turn = (t->segment - f->loop) / 2;
      if (t->loop) use_in_turn(use, t->loop, turn);
      for (int k = 0; k < sched_ops(in) && !t->loop; k++) use_in_turn(use, sched_op(in, k), turn);
    }
  }
  for (int i = 0; i < n; i++) {
    if (use[i].made < 0 || l->bind[i].kind != BIND_ITEM) continue;
    turn_use *u = &items[l->bind[i].index];
    if (u->made < 0 || use[i].made < u->made) u->made = use[i].made;
    if (use[i].read > u->read) u->read = use[i].read;
  }
  for (int i = l->first_item; i < s->items.n; i++) {
    sched_item *it = &s->items.at[i];
    if (items[i].made < 0 || items[i].read <= items[i].made) continue;
    IR_CHECK(!it->glue);
    it->slots = sched_on_their_way(s, l->e, items[i].made, items[i].read);
    it->slot = lay_align(it->bytes);
    it->bytes = it->slot * it->slots;
    it->first = first;
    it->last = last;
  }
}

static void layout_entry(sched *s, int entry, skip_set skip) {
  lay l = {
      .s = s, .e = &s->entries.at[entry], .skip = skip, .entry = entry, .first_item = s->items.n};
  int n = s->m->next_value;
  arena *a = s->m->arena;
  l.states = number_states(a, s->m);
  l.first = arena_new(a, int, n);
  l.last = arena_new(a, int, n);
  l.bind = arena_new(a, binding, n);
  l.over = arena_new(a, const ir_value *, n);
  l.under = arena_new(a, const ir_value *, n);
  l.frame = arena_new(a, frame_part, n);
  lives_find(&l);
  if (!skips(skip, SKIP_updates)) lives_bind_sets(&l);
  lives_chains(&l);
  // A frame is of one micro-batch: it lets gradients in as it goes backward.
  if (!skips(skip, SKIP_frames) && l.e->in_flight < 2) loops_frames(&l);
  ir_region *r = l.e->func->body;
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->code == IR_repeat) loops_bind(&l, r->ops.at[i]);
  bind_top(&l);
  for (int ri = 0; ri < l.e->runs.n; ri++) {
    if (!sched_first_run(l.e, ri)) continue;
    sched_task *t = &s->tasks.at[l.e->runs.at[ri].task];
    if (t->loop) {
      loops_bind_body(&l, t);
      continue;
    }
    for (int i = 0; i < t->instrs.n; i++) {
      sched_instr *in = &t->instrs.at[i];
      for (int k = 0; k < in->nscratch; k++)
        in->scratch_base[k] = lay_item(&l, "scratch", in->scratch_bytes[k], in->position,
                                       sched_beside(in) ? in->until : in->position);
    }
  }
  stash(&l);
  arena scratch;
  arena_init(&scratch);
  scratch.oom = a->oom;
  scratch.oom_ctx = a->oom_ctx;
  int64_t caches = uses_caches(s, l.e) ? s->cache_bytes : 0, transient = s->states_bytes + caches;
  sched_item *item = s->items.at + l.first_item;
  l.e->transient_bytes =
      caches + sched_pack(&scratch, item, s->items.n - l.first_item, LAYOUT_ALIGN);
  l.e->live_bytes = caches + sched_load(&scratch, item, s->items.n - l.first_item);
  arena_free(&scratch);

  for (int ri = 0; ri < l.e->runs.n; ri++) {
    if (!sched_first_run(l.e, ri)) continue;
    sched_task *t = &s->tasks.at[l.e->runs.at[ri].task];
    if (t->loop && t->transient_bytes)
      t->transient_base = transient + s->items.at[t->transient_base].base;
    for (int i = 0; i < t->instrs.n; i++)
      for (int k = 0; k < t->instrs.at[i].nscratch; k++) {
        int64_t *base = &t->instrs.at[i].scratch_base[k];
        bool body = t->loop && !loops_scratch_apart(t, &t->instrs.at[i]);
        *base = body ? t->transient_base + *base : transient + s->items.at[*base].base;
      }
  }
  for (int i = 0; i < n; i++)
    if (l.bind[i].kind != BIND_NONE) {
      ir_value v = {.id = i};
      s->place[i] = resolve(&l, &v, transient);
    }
}

// Places for the states of one lifetime: those that persist, or caches. Returns the end.
static int64_t place_states(sched *s, bool caches, int64_t at) {
  for (int i = 0; i < s->m->states.n; i++) {
    const ir_state *st = s->m->states.at[i];
    if ((st->cls == STATE_CACHE) != caches) continue;
    s->state_place[i] = (sched_place){.known = true, .base = at, .bytes = ir_bytes(&st->type)};
    at = lay_align(at + s->state_place[i].bytes);
  }
  return at;
}

const char *pass_layout(ir_module *m, const pass_options *o) {
  bool overlaid = !skips(o->skip, SKIP_caches);
  sched *s = m->schedule;
  s->nplaces = m->next_value;
  s->place = arena_new(m->arena, sched_place, s->nplaces);
  s->state_place = arena_new(m->arena, sched_place, m->states.n + 1);
  s->arg_place = arena_new(m->arena, sched_place, s->args.n + 1);
  int64_t at = place_states(s, false, 0);
  if (!overlaid) at = place_states(s, true, at);
  s->call_base = at;
  if (s->device) at += SCHED_CALL_BYTES;
  for (int i = 0; i < s->args.n; i++, at += 4)
    s->arg_place[i] = (sched_place){.known = true, .base = at, .bytes = 4};
  s->call_bytes = at - s->call_base;
  s->states_bytes = lay_align(at);
  if (overlaid) s->cache_bytes = place_states(s, true, s->states_bytes) - s->states_bytes;
  s->arena_bytes = s->states_bytes + s->cache_bytes;
  for (int i = 0; i < s->entries.n; i++) {
    layout_entry(s, i, o->skip);
    int64_t end = s->states_bytes + lay_align(s->entries.at[i].transient_bytes);
    if (end > s->arena_bytes) s->arena_bytes = end;
  }
  const char *wrong = sched_replay(s);
  if (wrong) IR_BUG("layout: %s", wrong);
  return NULL;
}

bool sched_first_run(const sched_entry *e, int run) {
  const sched_run *r = &e->runs.at[run];
  for (int i = 0; i < run; i++)
    if (e->runs.at[i].kind == SCHED_RUN && e->runs.at[i].task == r->task) return false;
  return r->kind == SCHED_RUN;
}

const sched_place *sched_place_of(const sched *s, const ir_value *v) {
  ir_view w = ir_view_of((ir_value *)(uintptr_t)v);
  const sched_place *p = &s->place[w.root->id];
  return p->known ? p : NULL;
}
