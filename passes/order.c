// Cuts functions into tasks and orders.
//
// needs: LOCAL after `legalise`. keeps: the order of ops within a segment. breaks: nothing; the
// tasks of the new schedule refer to the module's ops.
// A task ends where a repeat begins, where the segment changes, or where the phase does. Phases of
// train_step: what `loss` follows from is forward, what the gradient norm follows from besides is
// backward, and so is what is made of the norm and arguments alone, such as the factor that clips:
// it changes no state, and can share a launch with the norm. The rest is update.
//
// Of a stage of a pipeline, turns say which phase it is (passes/cut.h): one more, weights, where
// their gradients have turns. Turns are put in the order of the pipeline (passes/plan/pipeline.h),
// the one that the planner counts with: `pipe_order_of` of the same pipeline, seconds and all.

#include <string.h>

#include "ir/cost.h"
#include "ir/place.h"
#include "ir/schedule.h"
#include "ir/view.h"
#include "passes/cut.h"
#include "passes/pass.h"
#include "passes/plan/pipeline.h"

enum { PHASE_UPDATE, PHASE_WEIGHTS, PHASE_BACKWARD, PHASE_FORWARD, PHASES };
static const char *const phase_name[] = {"update", "weights", "backward", "forward"};

// Ops that need no instruction.
static bool silent(const ir_op *op) {
  switch (op->code) {
    case IR_const:
    case IR_input:
    case IR_arg:
    case IR_state:
    case IR_output: return true;
    default: return ir_is_view(op);
  }
}

// Is it left out but in the last micro-batch?
static bool last(const ir_op *op) { return ir_attr_int(op, "last", 0) != 0; }

static void mark_ancestors(ir_region *r, const char *output, int phase) {
  for (int i = r->ops.n - 1; i >= 0; i--) {
    ir_op *op = r->ops.at[i];
    bool root = op->code == IR_output && str_eq(ir_attr_str(op, "name", NULL), output);
    if (!root && op->mark < phase) continue;
    op->mark = phase;
    for (int k = 0; k < op->nin; k++)
      if (op->in[k]->def && op->in[k]->def->mark < phase) op->in[k]->def->mark = phase;
  }
}

// Made of `norm`, arguments and constants, by way of others that are?
static bool follows(const ir_op *op, const ir_value *norm, const bool *follower) {
  bool some = false;
  for (int k = 0; k < op->nin; k++) {
    const ir_op *def = op->in[k]->def;
    bool from = op->in[k] == norm || follower[op->in[k]->id];
    if (!from && (!def || (def->code != IR_arg && def->code != IR_const))) return false;
    some |= from;
  }
  return some && op->nout > 0;
}

static void mark_followers(ir_module *m, ir_region *r, const char *output, int phase) {
  const ir_value *norm = NULL;
  bool *follower = arena_new(m->arena, bool, m->next_value + 1);
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code == IR_output && str_eq(ir_attr_str(op, "name", NULL), output)) norm = op->in[0];
    if (op->mark != PHASE_UPDATE || !follows(op, norm, follower)) continue;
    op->mark = phase;
    for (int k = 0; k < op->nout; k++) follower[op->out[k]->id] = true;
  }
}

static void set_phases(ir_module *m, ir_func *f) {
  ir_region *r = f->body;
  for (int i = 0; i < r->ops.n; i++)
    r->ops.at[i]->mark = f->kind == ENTRY_TRAIN ? PHASE_UPDATE : PHASE_FORWARD;
  if (f->kind != ENTRY_TRAIN) return;
  mark_ancestors(r, "grad_norm", PHASE_BACKWARD);
  mark_followers(m, r, "grad_norm", PHASE_BACKWARD);
  mark_ancestors(r, "loss", PHASE_FORWARD);
  for (int i = 0; i < r->ops.n; i++) {
    static const int phase[] = {PHASE_FORWARD, PHASE_BACKWARD, PHASE_WEIGHTS};  // ORDER cut_phase
    int turn = cut_turn_of(f, r->ops.at[i]);
    if (turn >= 0) r->ops.at[i]->mark = phase[cut_phase_of(f, turn)];
  }
}

// What a repeat runs again, in all layers.
static double recompute_flops(const ir_op *loop) {
  double n = 0;
  const ir_region *body = loop->region[0];
  for (int i = 0; i < body->ops.n; i++)
    if (body->ops.at[i]->recompute) n += ir_op_flops(body->ops.at[i]);
  return n * (double)ir_attr_int(loop, "count", 1);
}

static int new_task(sched *s, const char *name, const char *phase, ir_op *loop, int segment) {
  sched_task t = {.name = name, .phase = phase, .loop = loop, .segment = segment};
  vec_push(s->m->arena, &s->tasks, t);
  return s->tasks.n - 1;
}

static void add_arg(sched *s, const char *name) {
  for (int i = 0; i < s->args.n; i++)
    if (str_eq(s->args.at[i], name)) return;
  vec_push(s->m->arena, &s->args, name);
}

// ---- pipelines ----------------------------------------------------------------------------------

typedef struct moment {  // a turn of one micro-batch
  int turn;
  int64_t micro;
} moment;

typedef struct turns {
  sched *s;
  sched_entry *e;
  VEC(sched_run) * runs;  // of each turn
} turns;

static int open_loop(turns *t, int64_t first, int64_t micros) {
  sched_run loop = {.kind = SCHED_LOOP, .micro_first = first, .micros = micros, .dir = 1};
  vec_push(t->s->m->arena, &t->e->runs, loop);
  return t->e->runs.n - 1;
}

static void add_turn(turns *t, int loop, int turn, int64_t micro_add) {
  for (int i = 0; i < t->runs[turn].n; i++) {
    sched_run r = t->runs[turn].at[i];
    r.micro_add = micro_add;
    vec_push(t->s->m->arena, &t->e->runs, r);
    t->e->runs.at[loop].task++;
  }
}

// Whether the moment `by` behind number i is the same turn of the next micro-batch.
static bool follows_on(const moment *t, int64_t i, int64_t by, int64_t n) {
  return i + by < n && t[i + by].turn == t[i].turn && t[i + by].micro == t[i].micro + 1;
}

// How many moments from number i on go through the phases, one of each at most: a round.
static int64_t round_at(const ir_func *f, const moment *t, int64_t i, int64_t n) {
  int64_t k = 1;
  while (i + k < n && cut_phase_of(f, t[i + k].turn) > cut_phase_of(f, t[i + k - 1].turn)) k++;
  return k;
}

// Whether the round from number i on is followed by the same one of the next micro-batches.
static bool goes_on(const moment *t, int64_t i, int64_t round, int64_t n) {
  bool on = true;
  for (int64_t k = 0; k < round; k++) on = on && follows_on(t, i + k, round, n);
  return on;
}

// Moments as loops: a turn of several micro-batches is one, and so are rounds that go on together.
// The last of several forwards begins a round. A loop counts as the last turn of its rounds does,
// which is behind the others.
static void write_loops(turns *t, const moment *at, int64_t n) {
  const ir_func *f = t->e->func;
  for (int64_t i = 0; i < n;) {
    int64_t same = 1, rounds = 1;
    while (follows_on(at, i + same - 1, 1, n)) same++;
    if (round_at(f, at, i + same - 1, n) > 1) same--;
    if (same) {
      add_turn(t, open_loop(t, at[i].micro, same), at[i].turn, 0);
      i += same;
      continue;
    }
    int64_t round = round_at(f, at, i, n), last = at[i + round - 1].micro;
    while (goes_on(at, i + (rounds - 1) * round, round, n)) rounds++;
    int loop = open_loop(t, last, rounds);
    for (int64_t k = 0; k < round; k++) add_turn(t, loop, at[i + k].turn, at[i + k].micro - last);
    i += rounds * round;
  }
}

int64_t sched_on_their_way(const sched *s, const sched_entry *e, int first, int last) {
  int64_t now = 0, most = 0, micro = -1;
  int turn = -1;
  for (int i = 0; i < e->runs.n; i++) {
    const sched_run *r = &e->runs.at[i];
    if (r->kind != SCHED_LOOP) continue;
    for (int64_t m = 0; m < r->micros; m++)
      for (int k = 1; k <= r->task; k++) {
        int segment = s->tasks.at[r[k].task].segment, is = (segment - e->func->loop) / 2;
        int64_t at = r->micro_first + m + r[k].micro_add;
        if (segment < e->func->loop || (is == turn && at == micro)) continue;
        if (turn == last) now--;
        turn = is;
        micro = at;
        if (is == first) now++;
        if (now > most) most = now;
      }
    i += r->task;
  }
  return most ? most : 1;
}

// The loops of the turns, one behind the other so far, become the order of the pipeline; that of
// its forwards where nothing goes backward.
static void order_pipeline(sched *s, sched_entry *e, const pipeline *planned) {
  arena *a = s->m->arena;
  int n = e->func->turns, from = -1, to = -1;
  turns t = {.s = s, .e = e, .runs = arena_alloc(a, sizeof *t.runs * (size_t)n)};
  memset(t.runs, 0, sizeof *t.runs * (size_t)n);
  int64_t micros = e->batch / e->micro_batch;
  for (int i = 0; i < e->runs.n; i++) {
    const sched_run *loop = &e->runs.at[i];
    if (loop->kind != SCHED_LOOP || s->tasks.at[loop[1].task].segment < e->func->loop) continue;
    if (from < 0) from = i;
    int turn = (s->tasks.at[loop[1].task].segment - e->func->loop) / 2;
    for (int k = 1; k <= loop->task; k++) vec_push(a, &t.runs[turn], loop[k]);
    i += loop->task;
    to = i + 1;
  }
  if (from < 0) return;
  VEC(sched_run) rest = {0};
  for (int i = to; i < e->runs.n; i++) vec_push(a, &rest, e->runs.at[i]);
  e->runs.n = from;
  bool trains = e->func->kind == ENTRY_TRAIN;
  int chunks = e->func->chunks;
  pipeline p = {.kind = PIPE_ONE_F_ONE_B};
  if (planned) p = *planned;
  p.stages = s->m->pipe_stages;
  p.chunks = chunks;
  p.micro = micros;
  pipe_list order = pipe_order_of(a, &p, s->m->pipe_stage);
  moment *at = arena_new(a, moment, n * micros);
  int64_t count = 0;
  for (int64_t i = 0; i < order.n; i++) {
    static const cut_phase phase[] = {CUT_FORWARD, CUT_BACKWARD, CUT_WEIGHTS};  // ORDER pipe_phase
    const pipe_run *r = &order.at[i];
    int turn = cut_turn(phase[r->phase], r->chunk, chunks);
    for (int64_t k = 0; k < r->count && (trains || r->phase == PIPE_F); k++)
      at[count++] = (moment){turn, r->micro + k};
  }
  IR_CHECK(count == n * micros);
  write_loops(&t, at, count);
  for (int i = 0; i < rest.n; i++) vec_push(a, &e->runs, rest.at[i]);
  e->in_flight = sched_on_their_way(s, e, 0, n - 1);
}

static void build_entry(sched *s, ir_func *f, const pass_options *o) {
  int64_t batch = o->batch;
  ir_module *m = s->m;
  ir_region *r = f->body;
  sched_entry e = {.func = f, .batch = 1, .micro_batch = 1, .in_flight = 1};
  if (m->batch && (f->kind == ENTRY_TRAIN || f->kind == ENTRY_EVAL)) {
    e.batch = batch / mesh_parts(m->mesh, mesh_axes_of(m->mesh, "data"));
    e.micro_batch = ir_root(m->batch)->size;
  }
  int64_t micros = e.batch / e.micro_batch;
  set_phases(m, f);
  int count[PHASES] = {0}, loops = 0;
  int task = -1, phase = -1, segment = -1, loop_run = -1;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code == IR_arg) add_arg(s, ir_attr_str(op, "name", ""));
    if (silent(op)) continue;
    bool micro = (op->segment & 1) && micros > 1;
    double times = micro ? (double)micros : 1;
    if (op->mark != PHASE_UPDATE || f->kind != ENTRY_TRAIN) e.flops += ir_op_flops(op) * times;
    if (op->code == IR_repeat) e.recompute_flops += recompute_flops(op) * times;
    if (op->segment != segment) {
      segment = op->segment;
      task = -1;
      loop_run = -1;
      if (micro) {
        loop_run = e.runs.n;
        vec_push(m->arena, &e.runs, (sched_run){.kind = SCHED_LOOP, .micros = micros, .dir = 1});
      }
    }
    int position = e.positions++;
    if (op->code == IR_repeat) {
      ir_region *body = op->region[0];
      const char *name = ir_attr_str(op, "name", "repeat");
      name = arena_printf(m->arena, "%s.%s.%d", phase_name[op->mark], name, loops++);
      int t = new_task(s, name, phase_name[op->mark], op, segment);
      for (int k = 0; k < body->ops.n; k++)
        if (!silent(body->ops.at[k]))
          vec_push(m->arena, &s->tasks.at[t].instrs,
                   (sched_instr){
                       .op = body->ops.at[k], .position = position, .last = last(body->ops.at[k])});
      int64_t n = ir_attr_int(op, "count", 1);
      bool reverse = ir_attr_int(op, "reverse", 0) != 0;
      sched_run run = {.kind = SCHED_RUN,
                       .task = t,
                       .first = reverse ? n - 1 : 0,
                       .layers = n,
                       .dir = reverse ? -1 : 1,
                       .number_first = ir_attr_int(op, "first", 0),
                       .number_step = ir_attr_int(op, "step", 1)};
      vec_push(m->arena, &e.runs, run);
      if (loop_run >= 0) e.runs.at[loop_run].task++;
      task = -1;
      continue;
    }
    if (task < 0 || phase != op->mark) {
      phase = op->mark;
      const char *name =
          arena_printf(m->arena, "%s.%s.%d", f->name, phase_name[phase], count[phase]++);
      task = new_task(s, name, phase_name[phase], NULL, segment);
      vec_push(
          m->arena, &e.runs,
          (sched_run){.kind = SCHED_RUN, .task = task, .layers = 1, .dir = 1, .number_step = 1});
      if (loop_run >= 0) e.runs.at[loop_run].task++;
    }
    vec_push(m->arena, &s->tasks.at[task].instrs,
             (sched_instr){.op = op, .position = position, .last = last(op)});
  }
  if (f->turns > 1) order_pipeline(s, &e, o->pipe);
  vec_push(m->arena, &s->entries, e);
}

const char *pass_order(ir_module *m, const pass_options *o) {
  sched *s = arena_new(m->arena, sched, 1);
  s->m = m;
  s->device = o->device;
  for (int i = 0; i < m->funcs.n; i++) build_entry(s, m->funcs.at[i], o);
  m->schedule = s;
  return NULL;
}
