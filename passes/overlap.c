// What ranks exchange moves beside kernels, small reductions together.
//
// needs: tasks and orders. keeps: what is computed, and the order of exchanges, which is the same
// on all ranks. breaks: nothing. A schedule for a device is left as it is.
//
// Buckets. Reductions of one task over the same axes and of one type become one instruction when
// they are small and nobody reads a result before the last of them is begun (sched_instr.more): a
// message costs some microseconds however short it is. Each element is summed as it was alone.
//
// What reads gradients that are being reduced (the sums of their norm) does so in the order in
// which they come, so that the last ones are on their way while the first are read.
//
// Weights of a layer that ranks have parts of are gathered one ahead of what reads them, and parts
// of gradients are added up when the next one is made.
//
// Streams. An exchange goes to STREAM_COMMUNICATION when kernels can run before its result is
// needed. It begins when all that was given to compute before has been done (an event), and compute
// waits for it (another) in front of
//   - the first instruction of the task, or of a later one, that reads the result;
//   - of a body, whose result is only stacked: the first that reads the stack, behind the repeat:
//     it goes on while the next layer is computed; the end of the body when the bytes are used
//     again in the next layer.
// What is read behind a loop over micro-batches may be in flight only from the last one on. Nobody
// waits for what nobody reads: the call ends when all streams are done.
//
// Places in the order that the layout must keep (`until`) are those of the waits; passes/replay.c
// proves that events and places are enough.
#include "ir/place.h"
#include "ir/rule.h"
#include "ir/schedule.h"
#include "ir/view.h"
#include "passes/pass.h"

enum {
  SMALL_BYTES = 256 << 10,  // larger values are reduced by themselves, as soon as they are made
  BUCKET_BYTES = 4 << 20
};

// An exchange on its way: where it stands, and in front of which instruction it is waited for.
typedef struct flight {
  int task, instr;            // task: by place in the order of first runs
  int wait_task, wait_instr;  // wait_task -1: nowhere
  int event;                  // recorded behind it
} flight;

// A reduced gradient, and which of the entry's reductions it comes from.
typedef struct arrival {
  const ir_value *what;
  int number;
} arrival;

typedef struct over {
  sched *s;
  sched_entry *e;
  VEC(arrival) arrivals;
  int reductions;
  VEC(int) order;  // tasks by their first runs
  VEC(flight) flights;
  bool several;  // micro-batches
  int events;
} over;

static sched_task *task_of(over *v, int i) { return &v->s->tasks.at[v->order.at[i]]; }
static ir_value *storage(const ir_value *v) { return ir_storage_of((ir_value *)(uintptr_t)v); }

// ---- buckets ------------------------------------------------------------------------------------

static bool reads(const sched_instr *in, const ir_value *what) {
  for (int n = 0; n < sched_ops(in); n++) {
    const ir_op *op = sched_op(in, n);
    for (int k = 0; k < op->nin; k++)
      if (storage(op->in[k]) == what) return true;
  }
  return false;
}

static bool small(const sched_instr *in) {
  return in->op && in->op->code == IR_all_reduce && ir_bytes(&in->op->in[0]->type) <= SMALL_BYTES;
}

static bool alike(const over *v, const sched_instr *a, const sched_instr *b) {
  // Each stage of a pipeline has an order of its own: where one could put two together another
  // could not.
  int stages = v->s->m->mesh ? mesh_axis(v->s->m->mesh, "pipeline") : -1;
  const ir_op *x = a->op, *y = b->op;
  unsigned axes = ir_exchange_axes(v->s->m, x);
  if (stages >= 0 && (axes >> stages & 1)) return false;
  return axes == ir_exchange_axes(v->s->m, y) && a->last == b->last &&
         x->in[0]->type.dtype == y->in[0]->type.dtype &&
         ir_attr_int(x, "max", 0) == ir_attr_int(y, "max", 0);
}

static int64_t bytes_of(const sched_instr *in) {
  int64_t n = 0;
  for (int k = 0; k < sched_ops(in); k++) n += ir_bytes(&sched_op(in, k)->in[0]->type);
  return n;
}

// Whether instruction `from` may be done at `to`, behind it.
static bool may_wait(const sched_task *t, int from, int to) {
  const sched_instr *in = &t->instrs.at[from];
  for (int k = 0; k < sched_ops(in); k++)
    for (int i = from + 1; i < to; i++)
      if (reads(&t->instrs.at[i], storage(sched_op(in, k)->out[0]))) return false;
  return true;
}

// Puts what instruction `from` does in front of what `to` does.
static void join(over *v, sched_task *t, int from, int to) {
  sched_instr *a = &t->instrs.at[from], *b = &t->instrs.at[to];
  int n = 0;
  ir_op **ops = arena_new(v->s->m->arena, ir_op *, sched_ops(a) + sched_ops(b));
  for (int k = 0; k < sched_ops(a); k++) ops[n++] = sched_op(a, k);
  for (int k = 0; k < sched_ops(b); k++) ops[n++] = sched_op(b, k);
  b->op = ops[0];
  b->more = ops + 1;
  b->nmore = n - 1;
  for (int i = from; i + 1 < t->instrs.n; i++) t->instrs.at[i] = t->instrs.at[i + 1];
  t->instrs.n--;
}

static void fill_buckets(over *v, sched_task *t) {
  for (int i = 0; i < t->instrs.n; i++) {
    if (!small(&t->instrs.at[i])) continue;
    int to = i + 1;
    while (to < t->instrs.n &&
           !(small(&t->instrs.at[to]) && alike(v, &t->instrs.at[i], &t->instrs.at[to])))
      to++;
    if (to == t->instrs.n || !may_wait(t, i, to)) continue;
    if (bytes_of(&t->instrs.at[i]) + bytes_of(&t->instrs.at[to]) > BUCKET_BYTES) continue;
    join(v, t, i--, to);
  }
}

// ---- later, earlier -----------------------------------------------------------------------------

// Brings instruction `from` to number `to`; each number keeps its position in the entry's order.
static void move(sched_task *t, int from, int to) {
  sched_instr *at = t->instrs.at;
  for (int step = from < to ? 1 : -1; from != to; from += step) {
    const sched_instr in = at[from];
    const int here = in.position, there = at[from + step].position;
    at[from] = at[from + step];
    at[from + step] = in;
    at[from].position = here;
    at[from + step].position = there;
  }
}

// A state is set at the end of its task when ranks make it: it is there already, or else the copy
// would wait for it while there is something to compute.
static void set_late(sched_task *t) {
  for (int i = 0, left = t->instrs.n; left > 0; left--) {
    const sched_instr *in = &t->instrs.at[i];
    const ir_op *def = in->op && in->op->code == IR_set ? in->op->in[0]->def : NULL;
    if (def && ir_is_exchange(def->code))
      move(t, i, t->instrs.n - 1);
    else
      i++;
  }
}

static int reader_of(const sched_task *t, int from, const ir_value *what) {
  while (from < t->instrs.n && !reads(&t->instrs.at[from], what)) from++;
  return from;
}

static bool exchanges(const sched_instr *in) { return in->op && ir_is_exchange(in->op->code); }

static bool computes(const sched_instr *in) {
  return in->op && !ir_is_exchange(in->op->code) && in->op->code != IR_set;
}

// A part of a gradient (ZeRO 2) is added up in front of the next exchange, so that it is on its way
// while that one's operand is computed; one is at a time.
static void accumulate_late(sched_task *t) {
  for (int i = t->instrs.n - 1; i >= 0; i--) {
    const ir_op *op = t->instrs.at[i].op;
    if (!op || op->code != IR_accumulate || !op->in[0]->def) continue;
    if (!ir_is_exchange(op->in[0]->def->code)) continue;
    int to = i, end = reader_of(t, i + 1, storage(op->out[0]));
    bool computed = false;
    while (to + 1 < end && !exchanges(&t->instrs.at[to + 1]))
      computed |= computes(&t->instrs.at[++to]);
    if (computed) move(t, i, to);
  }
}

// In a body that gathers the weights of its layer (ZeRO 3), each is asked for in front of what
// reads the one before it, so that it comes in while that is computed; two are there at a time.
static void gather_ahead(sched_task *t) {
  int to = t->instrs.n;
  for (int i = 0; i < t->instrs.n; i++) {
    const sched_instr in = t->instrs.at[i];
    if (!in.op || in.op->code != IR_all_gather || storage(in.op->in[0])->def) continue;
    if (to < i) move(t, i, to);
    to = reader_of(t, i + 1, storage(in.op->out[0]));
  }
}

// ---- as gradients come --------------------------------------------------------------------------

static bool reduces(const sched_instr *in) {
  return in->op && (in->op->code == IR_all_reduce || in->op->code == IR_reduce_scatter);
}

static void comes(over *v, const ir_value *what) {
  vec_push(v->s->m->arena, &v->arrivals, ((arrival){what, v->reductions}));
}

// What the reductions of a task make, at the top or stacked by a repeat.
static void note_arrivals(over *v, const sched_task *t) {
  for (int i = 0; i < t->instrs.n; i++) {
    const sched_instr *in = &t->instrs.at[i];
    if (!reduces(in)) continue;
    for (int k = 0; k < sched_ops(in); k++) {
      const ir_value *out = storage(sched_op(in, k)->out[0]);
      const ir_region *body = t->loop ? t->loop->region[0] : NULL;
      if (!body) comes(v, out);
      for (int j = 0; body && j < body->yield.n; j++)
        if (storage(body->yield.at[j]) == out) comes(v, storage(t->loop->out[j]));
    }
    v->reductions++;
  }
}

// The last reduction that instruction i reads of, of those in tasks before; -1: of none.
static int read_arrival(const over *v, const sched_instr *in) {
  int number = -1;
  for (int k = 0; k < v->arrivals.n; k++)
    if (v->arrivals.at[k].number > number && reads(in, v->arrivals.at[k].what))
      number = v->arrivals.at[k].number;
  return number;
}

// Whether b has to stay behind a: it reads or writes what a writes, or writes what a reads.
static bool bound(const sched_instr *a, const sched_instr *b) {
  for (int n = 0; n < sched_ops(a); n++)
    for (int j = 0; j < sched_op(a, n)->nout; j++) {
      const ir_value *out = storage(sched_op(a, n)->out[j]);
      if (reads(b, out)) return true;
      for (int m = 0; m < sched_ops(b); m++)
        for (int k = 0; k < sched_op(b, m)->nout; k++)
          if (storage(sched_op(b, m)->out[k]) == out) return true;
    }
  for (int m = 0; m < sched_ops(b); m++)
    for (int k = 0; k < sched_op(b, m)->nout; k++)
      if (reads(a, storage(sched_op(b, m)->out[k]))) return true;
  return false;
}

static void raise_to(int *key, int least) {
  if (*key < least) *key = least;
}

// Orders a task of the top by the reduction that each instruction has to wait for (its key).
// Reductions stay in their order, which ranks agree on; what neither computes nor reduces stays
// behind all that was in front of it, and in front of all that was behind it.
static void read_as_it_comes(over *v, sched_task *t) {
  sched_instr *at = t->instrs.at;
  int *key = arena_new(v->s->m->arena, int, t->instrs.n + 1), floor = -1;
  bool any = false;
  for (int i = 0; i < t->instrs.n; i++) {
    if (exchanges(&at[i]) && !reduces(&at[i])) return;
    bool stays = !computes(&at[i]) && !reduces(&at[i]);
    key[i] = read_arrival(v, &at[i]);
    any |= key[i] >= 0;
    raise_to(&key[i], floor);
    for (int j = 0, number = v->reductions; j < i; number += reduces(&at[j++])) {
      if (stays || (reduces(&at[j]) && reduces(&at[i]))) raise_to(&key[i], key[j]);
      if (bound(&at[j], &at[i])) raise_to(&key[i], reduces(&at[j]) ? number : key[j]);
    }
    if (stays) floor = key[i];
  }
  for (int i = 1; any && i < t->instrs.n; i++) {
    int to = i, mine = key[i];
    for (; to > 0 && key[to - 1] > mine; to--) key[to] = key[to - 1];
    key[to] = mine;
    move(t, i, to);
  }
}

// ---- where a result is needed -------------------------------------------------------------------

static bool moves(const sched_instr *in) { return in->op && ir_is_collective(in->op->code); }

// The first instruction from (task, instr) on that reads `what`, a value of the top; of a body, its
// begin.
static bool first_reader(over *v, int task, int instr, const ir_value *what, flight *f) {
  for (int k = task; k < v->order.n; k++, instr = 0) {
    const sched_task *t = task_of(v, k);
    for (int j = 0; t->loop && k > task && j < t->loop->nin; j++)
      if (storage(t->loop->in[j]) == what) {
        f->wait_task = k, f->wait_instr = 0;
        return true;
      }
    for (int i = instr; !t->loop && i < t->instrs.n; i++)
      if (reads(&t->instrs.at[i], what)) {
        f->wait_task = k, f->wait_instr = i;
        return true;
      }
  }
  f->wait_task = -1;
  return false;
}

static bool earlier(const flight *a, const flight *b) {
  if (b->wait_task < 0) return a->wait_task >= 0;
  if (a->wait_task < 0) return false;
  return a->wait_task != b->wait_task ? a->wait_task < b->wait_task : a->wait_instr < b->wait_instr;
}

// Whether what is begun in task `from` may be waited for in task `to` (-1: not at all): not when
// another micro-batch comes between.
static bool same_turn(over *v, int from, int to, bool last) {
  if (!v->several || last) return true;
  int segment = task_of(v, from)->segment;
  return !(segment & 1) || (to >= 0 && task_of(v, to)->segment == segment);
}

static bool worth(over *v, const flight *f) {
  for (int k = f->task; k < v->order.n && (f->wait_task < 0 || k <= f->wait_task); k++) {
    const sched_task *t = task_of(v, k);
    int i = k == f->task ? f->instr + 1 : 0, end = k == f->wait_task ? f->wait_instr : t->instrs.n;
    for (; i < end; i++)
      if (computes(&t->instrs.at[i])) return true;
  }
  return false;
}

// The stacked results of the repeat that lie where `what` lies; false: it lies elsewhere.
static bool stacked(over *v, int task, const ir_value *what, flight *f, bool *read) {
  const ir_op *loop = task_of(v, task)->loop;
  const ir_region *body = loop->region[0];
  bool found = false;
  for (int j = 0; j < body->yield.n; j++) {
    if (storage(body->yield.at[j]) != what) continue;
    if (j < ir_attr_int(loop, "carried", 0) || !what->def) return false;
    flight g = *f;
    found = true;
    *read |= first_reader(v, task + 1, 0, storage(loop->out[j]), &g);
    if (earlier(&g, f)) *f = g;
  }
  return found;
}

static bool in_body(over *v, flight *f) {
  const sched_task *t = task_of(v, f->task);
  sched_instr *in = &t->instrs.at[f->instr];
  bool read = false, behind = true;
  f->wait_task = f->task;
  for (f->wait_instr = f->instr + 1; f->wait_instr < t->instrs.n; f->wait_instr++)
    for (int k = 0; k < sched_ops(in); k++)
      if (reads(&t->instrs.at[f->wait_instr], storage(sched_op(in, k)->out[0]))) return worth(v, f);
  flight g = *f;
  g.wait_task = -1;
  for (int k = 0; k < sched_ops(in); k++) {
    const ir_op *op = sched_op(in, k);
    behind = behind && stacked(v, f->task, storage(op->in[0]), &g, &read) &&
             stacked(v, f->task, storage(op->out[0]), &g, &read);
  }
  if (!behind || !read || !same_turn(v, f->task, g.wait_task, in->last)) return worth(v, f);
  *f = g;
  return ir_attr_int(t->loop, "count", 1) > 1 || worth(v, f);
}

static bool at_top(over *v, flight *f) {
  const sched_instr *in = &task_of(v, f->task)->instrs.at[f->instr];
  f->wait_task = -1;
  for (int k = 0; k < sched_ops(in); k++) {
    flight g = *f;
    first_reader(v, f->task, f->instr + 1, storage(sched_op(in, k)->out[0]), &g);
    if (earlier(&g, f)) *f = g;
  }
  return same_turn(v, f->task, f->wait_task, in->last) && worth(v, f);
}

static void find_flights(over *v) {
  for (int k = 0; k < v->order.n; k++)
    for (int i = 0; i < task_of(v, k)->instrs.n; i++) {
      flight f = {.task = k, .instr = i};
      if (!moves(&task_of(v, k)->instrs.at[i])) continue;
      if (task_of(v, k)->loop ? in_body(v, &f) : at_top(v, &f))
        vec_push(v->s->m->arena, &v->flights, f);
    }
}

// ---- events -------------------------------------------------------------------------------------

typedef VEC(sched_instr) instr_list;

static void add_event(over *v, instr_list *out, sched_code code, sched_stream stream, int event,
                      int position) {
  vec_push(v->s->m->arena, out,
           (sched_instr){.code = code, .stream = stream, .event = event, .position = position});
}

// The exchange itself, between its events.
static void add_flight(over *v, instr_list *out, flight *f, sched_instr in) {
  const sched_instr *before = out->n ? &out->at[out->n - 1] : NULL;
  int end = v->e->positions;
  if (f->wait_task >= 0) {
    const sched_task *t = task_of(v, f->wait_task);
    end =
        t->instrs.n ? t->instrs.at[f->wait_instr < t->instrs.n ? f->wait_instr : 0].position : end;
  }
  // What began before it did so behind the same kernels.
  bool begun = before && before->code == SCHED_RECORD && before->stream == STREAM_COMMUNICATION;
  if (!begun) {
    add_event(v, out, SCHED_RECORD, STREAM_COMPUTE, v->events, in.position);
    add_event(v, out, SCHED_WAIT, STREAM_COMMUNICATION, v->events++, in.position);
  }
  in.stream = STREAM_COMMUNICATION;
  in.within = task_of(v, f->task)->loop && f->wait_task == f->task;
  in.until = end;
  vec_push(v->s->m->arena, out, in);
  f->event = v->events++;
  add_event(v, out, SCHED_RECORD, STREAM_COMMUNICATION, f->event, in.position);
}

// In front of instruction `i`: the stream is a queue, so the last one is enough.
static void add_waits(over *v, instr_list *out, int task, int i, int position) {
  int event = -1, number = -1;
  for (int k = 0; k < v->flights.n; k++) {
    const flight *f = &v->flights.at[k];
    if (f->wait_task == task && f->wait_instr == i) event = f->event, number = k;
  }
  if (event < 0) return;
  for (int k = 0; k <= number; k++) {
    const flight *f = &v->flights.at[k];
    if (f->wait_task != task || f->wait_instr != i || f->task != task) continue;
    for (int j = 0; j < out->n; j++)
      if (sched_beside(&out->at[j]) && out->at[j].within && out->at[j + 1].event == f->event)
        out->at[j].until = out->n;
  }
  add_event(v, out, SCHED_WAIT, STREAM_COMPUTE, event, position);
}

static void add_events(over *v, int task, instr_list *out) {
  sched_task *t = task_of(v, task);
  int next = 0;
  for (int i = 0; i < t->instrs.n; i++) {
    while (next < v->flights.n &&
           (v->flights.at[next].task < task ||
            (v->flights.at[next].task == task && v->flights.at[next].instr < i)))
      next++;
    add_waits(v, out, task, i, t->instrs.at[i].position);
    flight *f = next < v->flights.n ? &v->flights.at[next] : NULL;
    if (f && f->task == task && f->instr == i)
      add_flight(v, out, f, t->instrs.at[i]);
    else
      vec_push(v->s->m->arena, out, t->instrs.at[i]);
  }
  if (t->instrs.n) add_waits(v, out, task, t->instrs.n, t->instrs.at[t->instrs.n - 1].position);
}

static void overlap_entry(sched *s, sched_entry *e, skip_set skip) {
  over v = {.s = s, .e = e, .several = e->batch / e->micro_batch > 1};
  for (int i = 0; i < e->runs.n; i++)
    if (sched_first_run(e, i)) vec_push(s->m->arena, &v.order, e->runs.at[i].task);
  for (int k = 0; k < v.order.n; k++) {
    if (!skips(skip, SKIP_buckets)) fill_buckets(&v, task_of(&v, k));
    accumulate_late(task_of(&v, k));
    if (task_of(&v, k)->loop)
      gather_ahead(task_of(&v, k));
    else
      set_late(task_of(&v, k));
    if (!task_of(&v, k)->loop) read_as_it_comes(&v, task_of(&v, k));
    note_arrivals(&v, task_of(&v, k));
  }
  find_flights(&v);
  if (!v.flights.n) return;
  instr_list *out = arena_new(s->m->arena, instr_list, v.order.n);
  for (int k = 0; k < v.order.n; k++) add_events(&v, k, &out[k]);
  for (int k = 0; k < v.order.n; k++) {
    sched_task *t = task_of(&v, k);
    t->instrs.at = out[k].at;
    t->instrs.n = out[k].n;
    t->instrs.cap = out[k].cap;
  }
  if (v.events > s->events) s->events = v.events;
}

const char *pass_overlap(ir_module *m, const pass_options *o) {
  sched *s = m->schedule;
  for (int i = 0; m->mesh && !s->device && i < s->entries.n; i++)
    overlap_entry(s, &s->entries.at[i], o->skip);
  return NULL;
}
