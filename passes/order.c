// Cuts functions into tasks and orders.
//
// needs: LOCAL after `legalise`. keeps: the order of ops within a segment. breaks: nothing; the
// tasks of the new schedule refer to the module's ops.
// A task ends where a repeat begins, where the segment changes, or where the phase does. Phases of
// train_step: what `loss` follows from is forward, what the gradient norm follows from besides is
// backward, and so is what is made of the norm and arguments alone, such as the factor that clips:
// it changes no state, and can share a launch with the norm. The rest is update.
//
// Of a stage of a pipeline, forward is besides what it sends to later stages, and what it receives
// from earlier ones; backward what goes the other way. Its loop is put in the order of the pipeline
// (passes/plan/pipe_order.h), the one that the planner counts with.

#include <string.h>

#include "ir/cost.h"
#include "ir/place.h"
#include "ir/schedule.h"
#include "ir/view.h"
#include "passes/pass.h"
#include "passes/plan/pipe_order.h"

enum { PHASE_UPDATE, PHASE_BACKWARD, PHASE_FORWARD };
static const char *const phase_name[] = {"update", "backward", "forward"};

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

// Does an exchange among stages make it a phase's own?
static bool goes(const ir_op *op, int phase) {
  if (op->code != IR_send && op->code != IR_receive) return false;
  bool up = (ir_attr_int(op, "step", 0) > 0) == (op->code == IR_send);
  return phase == PHASE_BACKWARD || ((op->segment & 1) && up);
}

static void mark_ancestors(ir_region *r, const char *output, int phase) {
  for (int i = r->ops.n - 1; i >= 0; i--) {
    ir_op *op = r->ops.at[i];
    bool root = op->code == IR_output && str_eq(ir_attr_str(op, "name", NULL), output);
    if (!root && op->mark < phase && !goes(op, phase)) continue;
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

// Runs first .. + n - 1 of phase `phase` go to the end of the list, as part of the loop at `loop`.
static void add_phase(sched *s, sched_entry *e, int loop, const sched_run *runs, int n,
                      pipe_phase phase, int64_t add) {
  for (int i = 0; i < n; i++) {
    bool forward = str_eq(s->tasks.at[runs[i].task].phase, phase_name[PHASE_FORWARD]);
    if (forward != (phase == PIPE_F)) continue;
    sched_run r = runs[i];
    r.micro_add = add;
    vec_push(s->m->arena, &e->runs, r);
    e->runs.at[loop].task++;
  }
}

static int open_loop(sched *s, sched_entry *e, int64_t first, int64_t micros) {
  sched_run loop = {.kind = SCHED_LOOP, .micro_first = first, .micros = micros, .dir = 1};
  vec_push(s->m->arena, &e->runs, loop);
  return e->runs.n - 1;
}

typedef struct turn {  // a phase of one micro-batch
  pipe_phase phase;
  int64_t micro;
} turn;

static bool follow(const turn *t, int64_t i, int64_t by, int64_t n) {
  return i + by < n && t[i + by].phase == t[i].phase && t[i + by].micro == t[i].micro + 1;
}

// The loop at number `at` in the order of the pipeline: phases of one kind in turn are a loop, and
// so are a forward and a backward that go on together.
static void order_pipeline(sched *s, sched_entry *e, int at, int kind) {
  arena *a = s->m->arena;
  int64_t micros = e->runs.at[at].micros;
  int n = e->runs.at[at].task, rest = e->runs.n - at - 1 - n;
  pipeline p = {.kind = (pipe_kind)kind, .stages = s->m->pipe_stages, .chunks = 1, .micro = micros};
  sched_run *runs = arena_new(a, sched_run, n + rest + 1);
  memcpy(runs, e->runs.at + at + 1, sizeof *runs * (size_t)(n + rest));
  e->runs.n = at;
  turn *t = arena_new(a, turn, 2 * micros);
  int64_t turns = 0;
  for (pipe_cursor c = pipe_cursor_of(&p, s->m->pipe_stage); c.left; pipe_cursor_next(&c))
    t[turns++] = (turn){c.phase, c.micro};
  for (int64_t i = 0; i < turns;) {
    // The last of several forwards begins the pairs, if a backward comes next.
    int64_t same = 1, pairs = 1;
    while (follow(t, i + same - 1, 1, turns)) same++;
    bool pair = i + same < turns && t[i].phase == PIPE_F && t[i + same].phase == PIPE_B;
    if (pair) same--;
    if (same) {
      add_phase(s, e, open_loop(s, e, t[i].micro, same), runs, n, t[i].phase, 0);
      i += same;
      continue;
    }
    while (follow(t, i + 2 * pairs - 2, 2, turns) && follow(t, i + 2 * pairs - 1, 2, turns))
      pairs++;
    int loop = open_loop(s, e, t[i + 1].micro, pairs);
    add_phase(s, e, loop, runs, n, PIPE_F, t[i].micro - t[i + 1].micro);
    add_phase(s, e, loop, runs, n, PIPE_B, 0);
    i += 2 * pairs;
  }
  for (int i = 0; i < rest; i++) vec_push(a, &e->runs, runs[n + i]);
  e->in_flight = pipe_stash(NULL, &p, s->m->pipe_stage, NULL);
}

// The loop that has forward and backward is the last one.
static void order_pipelines(sched *s, sched_entry *e, int kind) {
  int at = -1;
  for (int i = 0; i < e->runs.n; i++)
    if (e->runs.at[i].kind == SCHED_LOOP) at = i;
  if (at >= 0) order_pipeline(s, e, at, kind);
}

static void build_entry(sched *s, ir_func *f, const pass_options *o) {
  int64_t batch = o->batch;
  ir_module *m = s->m;
  ir_region *r = f->body;
  sched_entry e = {.func = f, .batch = 1, .micro_batch = 1, .in_flight = 1};
  if (m->batch && (f->kind == ENTRY_TRAIN || f->kind == ENTRY_EVAL)) {
    int data = m->mesh ? mesh_axis(m->mesh, "data") : -1;
    e.batch = data < 0 ? batch : batch / m->mesh->axis[data].size;
    e.micro_batch = ir_root(m->batch)->size;
  }
  int64_t micros = e.batch / e.micro_batch;
  set_phases(m, f);
  int count[3] = {0, 0, 0}, loops = 0;
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
  if (m->pipe_stages && f->kind == ENTRY_TRAIN) order_pipelines(s, &e, o->pipe_order);
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
