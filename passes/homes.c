// Moves what has its home on the host to a device and back.
//
// needs: tasks and orders (`order`). keeps: them, with tasks of moves between. breaks: nothing. A
// schedule for the host is left as it is.
//
// A call of an entry begins with one task that fetches the call, its arguments and the inputs, of
// all micro-batches, on the stream of copies. Events order it both ways: the copies wait for what
// compute was given before, because earlier calls read and write the bytes that they overwrite
// (entries overlay each other); compute waits for the copies. An output is evicted behind the run,
// or the loop, that makes it, not at the end of the entry: a driver looks at the loss before the
// states change (runtime/check.h). What an eviction reads, nobody writes before the next call,
// whose copies are behind it on the same stream.
//
// passes/replay.c proves that these events are enough.
#include "ir/schedule.h"
#include "ir/view.h"
#include "passes/pass.h"

typedef struct homes {
  sched *s;
  sched_entry *e;
  VEC(sched_run) runs;  // the new order
  int events, moves[2];
} homes;

static void order_streams(homes *h, sched_task *t, sched_stream first, sched_stream then) {
  arena *a = h->s->m->arena;
  int event = h->events++;
  vec_push(a, &t->instrs, (sched_instr){.code = SCHED_RECORD, .stream = first, .event = event});
  vec_push(a, &t->instrs, (sched_instr){.code = SCHED_WAIT, .stream = then, .event = event});
}

static void move(homes *h, sched_task *t, sched_code code, const ir_value *v) {
  vec_push(h->s->m->arena, &t->instrs,
           (sched_instr){.code = code,
                         .stream = STREAM_COPIES,
                         .moved = v,
                         .micros = h->e->batch / h->e->micro_batch});
}

static sched_task new_task(homes *h, sched_code code) {
  const char *phase = code == SCHED_FETCH ? "fetch" : "evict";
  return (sched_task){.name = arena_printf(h->s->m->arena, "%s.%s.%d", h->e->func->name, phase,
                                           h->moves[code == SCHED_EVICT]++),
                      .phase = phase};
}

static void add_task(homes *h, const sched_task *t) {
  arena *a = h->s->m->arena;
  sched_run run = {
      .kind = SCHED_RUN, .task = h->s->tasks.n, .layers = 1, .dir = 1, .number_step = 1};
  vec_push(a, &h->s->tasks, *t);
  vec_push(a, &h->runs, run);
}

static void fetch(homes *h) {
  const ir_region *body = h->e->func->body;
  sched_task t = new_task(h, SCHED_FETCH);
  order_streams(h, &t, STREAM_COMPUTE, STREAM_COPIES);
  move(h, &t, SCHED_FETCH, NULL);
  for (int i = 0; i < body->ops.n; i++)
    if (body->ops.at[i]->code == IR_input) move(h, &t, SCHED_FETCH, body->ops.at[i]->out[0]);
  order_streams(h, &t, STREAM_COPIES, STREAM_COMPUTE);
  add_task(h, &t);
}

// Whether runs from .. to-1 of the entry compute `op`.
static bool made_by(const homes *h, int from, int to, const ir_op *op) {
  for (int i = from; i < to; i++) {
    const sched_run *r = &h->e->runs.at[i];
    if (r->kind == SCHED_LOOP) continue;
    const sched_task *t = &h->s->tasks.at[r->task];
    if (t->loop) {
      if (t->loop == op) return true;
      continue;
    }
    for (int k = 0; k < t->instrs.n; k++)
      if (t->instrs.at[k].op == op) return true;
  }
  return false;
}

// Outputs that these runs make; `rest`: those that none makes, such as a state.
static void evict(homes *h, int from, int to, bool rest) {
  const ir_region *body = h->e->func->body;
  sched_task t = {0};
  for (int i = 0; i < body->ops.n; i++) {
    const ir_op *op = body->ops.at[i];
    if (op->code != IR_output) continue;
    const ir_value *root = ir_view_of(op->in[0]).root;
    if (made_by(h, from, to, root->def) == rest) continue;
    if (!t.name) {
      t = new_task(h, SCHED_EVICT);
      order_streams(h, &t, STREAM_COMPUTE, STREAM_COPIES);
    }
    move(h, &t, SCHED_EVICT, root);
  }
  if (t.name) add_task(h, &t);
}

static void move_entry(sched *s, sched_entry *e) {
  homes h = {.s = s, .e = e};
  fetch(&h);
  for (int i = 0; i < e->runs.n;) {
    int end = i + 1 + (e->runs.at[i].kind == SCHED_LOOP ? e->runs.at[i].task : 0);
    for (int k = i; k < end; k++) vec_push(s->m->arena, &h.runs, e->runs.at[k]);
    evict(&h, i, end, false);
    i = end;
  }
  evict(&h, 0, e->runs.n, true);
  e->runs.at = h.runs.at;
  e->runs.n = h.runs.n;
  e->runs.cap = h.runs.cap;
  if (h.events > s->events) s->events = h.events;
}

void sched_moved(const sched *s, const sched_instr *in, int64_t *base, int64_t *bytes) {
  *base = s->call_base;
  *bytes = s->call_bytes;
  if (!in->moved) return;
  const sched_place *p = &s->place[in->moved->id];
  IR_CHECK(p->known);
  int64_t slot = p->layer_mod ? p->layer_add % p->layer_mod : p->layer_add;
  *base = p->base + slot * p->layer_stride;
  *bytes = p->bytes + (in->micros - 1) * p->micro_stride;
}

const char *pass_homes(ir_module *m, const pass_options *o) {
  (void)o;
  sched *s = m->schedule;
  for (int i = 0; s->device && i < s->entries.n; i++) move_entry(s, &s->entries.at[i]);
  return NULL;
}
