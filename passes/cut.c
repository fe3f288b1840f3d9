// The second step of a cut: every op gets the stages that compute it, then one module a stage is
// written. (The third, on demand, is cut_weights.c.)
//
// needs: repeats of one part each (cut_layers.c). keeps: values, but for the order of sums of which
// several stages have parts. breaks: nothing.
//
// What a value is on the axis `pipeline`, a stage being a coordinate:
//   anywhere   follows from inputs, constants and arguments alone, or from weights alone: whoever
//              needs it makes it
//   at home    made for one part of the layers, by its stage, in the loop over micro-batches
//   parts      a sum; each stage of a set has a part. Linear ops go on with parts, adding a part to
//              a sum is the sum of what else it has, and `accumulate` is linear
//   by demand  made behind the loop, by those who need it (an update, by whoever has the weight)
//
// All stages are written in one walk over the old order: what one sends is written when the other's
// receive is. So in every pair of stages messages are received in the order they were sent.
#include "passes/cut.h"

#include <string.h>

#include "ir/place.h"
#include "ir/rule.h"
#include "ir/view.h"
#include "passes/pass.h"

typedef uint64_t stage_set;
typedef enum op_class { OP_ANYWHERE, OP_PENDING, OP_HOME, OP_PARTS, OP_DEMAND, OP_EFFECT } op_class;

typedef struct info {  // of a value
  bool anywhere, input, state, pending, forward;
  int op;           // the number of the op that makes it
  int home;         // the part of the layers that it is made for; -1: none
  int made;         // the part that makes it, from where it goes home
  stage_set parts;  // of a sum of parts
  stage_set need;   // who reads the whole of it
  bool whole;       // all who need it have it
} info;

typedef struct stages {
  ir_module *m;
  int n, chunks, micro;
  bool weights;  // gradients of weights have turns
  ir_module **out;
  map reads;  // weight -> set of stages that read it (or its copy)
  // Of the function at hand.
  ir_func *f;
  ir_region *r, **to;  // the body, and those of the stages
  int loop;            // segment of forward and backward
  bool *forward, *norm;
  op_class *cls;
  int front, start, stop;  // the first part that has layers; the first op that is layers, and the
                           // last one of backward
  int *home, *next;  // of each op; next: the part of the layers that it stands before, forward
  stage_set *at;     // of each op: who computes it
  int turns, *turn;  // of each op of the loop by number * n + stage: when that stage does it
  info *v;           // by value id
  ir_value **whole, **part;  // by value id * n + stage
  const char *error;
} stages;

static stage_set bit(int s) { return (stage_set)1 << s; }
static stage_set all_of(const stages *c) { return c->n == 64 ? ~(stage_set)0 : bit(c->n) - 1; }
static int lowest(stage_set s) { return __builtin_ctzll(s); }

static const char *refuse(stages *c, const ir_op *op, const char *why) {
  if (!c->error)
    c->error = arena_printf(c->m->arena, "%s:%d:%d: the step cannot be cut into stages at `%s`: %s",
                            op->span.file ? op->span.file : "?", op->span.line, op->span.col,
                            ir_info(op->code)->name, why);
  return c->error;
}

// ---- the gradient norm --------------------------------------------------------------------------

static void open_map(ir_region *r, ir_op *whole) {
  ir_region *fn = whole->region[0];
  int at = pass_number_of(whole);
  for (int k = 0; k < fn->args.n; k++) fn->args.at[k]->mapped = whole->in[k];
  for (int k = 0; k < fn->ops.n; k++) {
    ir_op *now = ir_clone_op(r, fn->ops.at[k]);
    now->segment = whole->segment;
    pass_move_last(r, at++);
  }
  for (int k = 0; k < fn->yield.n; k++) {
    ir_value *now = fn->yield.at[k]->mapped;
    if (whole->out[k]->name) now->name = whole->out[k]->name;
    ir_replace_uses(r, whole->out[k], now);
  }
  pass_clear_mapped(fn);
  pass_take_out(r, at);
}

// The norm is a function of all gradients' squares: opened, so that each stage adds up its own.
static void open_norm(stages *c) {
  ir_region *r = c->r;
  bool *live = arena_new(c->m->arena, bool, c->m->next_value + 1);
  for (int i = r->ops.n - 1; i >= 0; i--) {
    ir_op *op = r->ops.at[i];
    bool on = op->code == IR_output && str_eq(ir_attr_str(op, "name", ""), "grad_norm");
    for (int k = 0; k < op->nout; k++) on |= live[op->out[k]->id];
    for (int k = 0; k < op->nin && on; k++) live[op->in[k]->id] = true;
    if (on && op->code == IR_map && op->nregions == 1 && !op->out[0]->type.rank &&
        op->segment > c->loop)
      open_map(r, op);
  }
}

static void mark_norm(stages *c) {
  const ir_region *r = c->r;
  bool *live = arena_new(c->m->arena, bool, c->m->next_value + 1);
  c->norm = arena_new(c->m->arena, bool, r->ops.n + 1);
  for (int i = r->ops.n - 1; i >= 0; i--) {
    const ir_op *op = r->ops.at[i];
    c->norm[i] = op->code == IR_output && str_eq(ir_attr_str(op, "name", ""), "grad_norm");
    for (int k = 0; k < op->nout; k++) c->norm[i] |= live[op->out[k]->id];
    for (int k = 0; k < op->nin && c->norm[i]; k++) live[op->in[k]->id] = true;
  }
}

// ---- where ops are ------------------------------------------------------------------------------

static bool partial(const stages *c, const ir_value *v) { return cut_is_partial(v, c->micro); }

static bool definite(const info *v) { return v->home >= 0 || v->parts; }

// Whether operand k is added to what the rest of the op makes, so that without the rest it is the
// result.
static bool is_added(const ir_op *op, int k) {
  return op->code == IR_add || k == ir_base(op) || (op->code == IR_scatter_add && k == 2);
}

// May each stage do this op with its own operands, so that the results are parts of the sum?
static bool goes_by_parts(const stages *c, int i) {
  enum { MAX = 64 };
  const ir_op *op = c->r->ops.at[i];
  bool among[MAX] = {false}, loop = op->segment == c->loop;
  if (op->nin > MAX || op->nout != 1) return false;
  if (op->code == IR_sum && op->nregions) return false;  // of squares, say
  for (int k = 0; k < op->nin; k++) {
    const info *v = &c->v[op->in[k]->id];
    if (loop && v->home >= 0 && !partial(c, op->in[k]) && !ir_dtype_float(op->in[k]->type.dtype))
      return false;
    among[k] = definite(v);
  }
  if (!ir_is_linear(op, among)) return false;
  // In the loop a sum over micro-batches; behind it the squares of the norm.
  if (loop) return partial(c, op->out[0]) || ir_accumulates(op);
  return c->norm[i] && op->out[0]->type.rank == 0;
}

static int stage_of(const stages *c, int part) { return part % c->n; }

static stage_set places_of(const stages *c, const info *v) {
  return v->parts ? v->parts : bit(stage_of(c, v->home));
}

// True for a value of the loop that is a sum over it: whole when the loop is over.
static bool made_by_loop(const stages *c, const ir_value *v) {
  const ir_op *op = v->def;
  if (op->segment != c->loop) return false;
  const ir_value *maker = op->code == IR_repeat ? op->region[0]->yield.at[v->pos] : v;
  return maker->def && ir_accumulates(maker->def);
}

static void set_result(stages *c, int i, op_class cls, int home, stage_set parts) {
  const ir_op *op = c->r->ops.at[i];
  c->cls[i] = cls;
  c->home[i] = home;
  c->at[i] = parts;
  for (int k = 0; k < op->nout; k++) {
    info *v = &c->v[op->out[k]->id];
    v->home = v->made = parts ? -1 : home;
    v->parts = parts;
    v->anywhere = cls == OP_ANYWHERE;
    v->pending = cls == OP_PENDING;
    v->op = i;
  }
}

// In forward an op between layers is where those are that it stands before, as the planner has it:
// then its gradient is made there too, from what it saved, and only its operand and the gradient of
// that cross. What stands behind all layers is on the last part, and what stands in front of them
// on the first, though these may have no layers. Other ops of forward are where the last of their
// operands is, those of backward where the first is; operands of forward have been there before.
static void find_class(stages *c, int i) {
  const ir_op *op = c->r->ops.at[i];
  bool anywhere = true, input = op->code == IR_input, state = op->code == IR_state, parts = false;
  int first = -1, last = -1;
  stage_set where = 0;
  for (int k = 0; k < op->nin; k++) {
    const info *v = &c->v[op->in[k]->id];
    anywhere &= v->anywhere;
    input |= v->input;
    state |= v->state;
    parts |= v->parts != 0;
    if (!definite(v)) continue;
    where |= places_of(c, v);
    int at = v->parts ? lowest(v->parts) : v->home;
    if (v->forward)
      last = at > last ? at : last;
    else
      first = first < 0 || at < first ? at : first;
  }
  for (int k = 0; k < op->nout; k++) {
    info *v = &c->v[op->out[k]->id];
    v->input = input;
    v->state = state;
    v->forward = c->forward[i];
  }
  bool loop = op->segment == c->loop;
  int home = first >= 0 ? first : last;
  if (loop && c->forward[i] && home >= 0 && home < c->next[i]) home = c->next[i];
  if (op->code == IR_output || op->code == IR_set) {
    set_result(c, i, OP_EFFECT, -1, 0);
  } else if (cut_is_layers(op)) {
    set_result(c, i, OP_HOME, op->mark - 1, 0);
    for (int k = 0; k < op->nout && i == c->stop && op->mark - 1 == c->front; k++)
      if (!partial(c, op->out[k]) && !made_by_loop(c, op->out[k])) c->v[op->out[k]->id].home = 0;
  } else if (anywhere && !(input && state && loop)) {
    set_result(c, i, OP_ANYWHERE, -1, 0);
  } else if (home < 0) {
    set_result(c, i, OP_PENDING, -1, 0);
  } else if ((parts || (where & (where - 1)) || (first >= 0 && last >= 0 && first != last)) &&
             goes_by_parts(c, i)) {
    set_result(c, i, OP_PARTS, -1, where);
  } else if (loop && parts) {
    refuse(c, op, "it needs a sum in the loop over micro-batches of which stages have parts");
  } else {
    set_result(c, i, loop ? OP_HOME : OP_DEMAND, loop ? home : stage_of(c, home), 0);
  }
}

static void find_next(stages *c) {
  const ir_region *r = c->r;
  int next = c->n * c->chunks - 1;
  c->next = arena_new(c->m->arena, int, r->ops.n + 1);
  c->start = c->stop = -1;
  for (int i = r->ops.n - 1; i >= 0; i--) {
    const ir_op *op = r->ops.at[i];
    bool layers = op->segment == c->loop && cut_is_layers(op);
    if (layers && c->forward[i]) {
      next = op->mark - 1;
      c->start = i;
    } else if (layers && c->stop < 0) {
      c->stop = i;
    }
    c->next[i] = next;
  }
}

// What only follows from an input and a weight is at home where it is first needed; in front of the
// first layers, on the first part.
static void settle_pending(stages *c) {
  const ir_region *r = c->r;
  int none = c->n * c->chunks, *first = arena_new(c->m->arena, int, c->m->next_value + 1);
  for (int i = 0; i < c->m->next_value; i++) first[i] = none;
  for (int i = r->ops.n - 1; i >= 0; i--) {
    const ir_op *op = r->ops.at[i];
    if (c->cls[i] == OP_PENDING) {
      int home = none;
      for (int k = 0; k < op->nout; k++)
        if (first[op->out[k]->id] < home) home = first[op->out[k]->id];
      set_result(c, i, OP_HOME, home < none && !(home == c->front && i < c->start) ? home : 0, 0);
    }
    int at = c->cls[i] == OP_PARTS ? lowest(c->at[i]) : c->home[i];
    for (int k = 0; k < op->nin && at >= 0; k++)
      if (at < first[op->in[k]->id]) first[op->in[k]->id] = at;
  }
}

// ---- who needs what -----------------------------------------------------------------------------

// The weight that a state belongs to.
static const char *owner(const stages *c, const ir_op *op) {
  const ir_state *s = ir_state_find(c->m, ir_attr_str(op, "name", ""));
  return s->of ? s->of : s->name;
}

static stage_set read_by(const stages *c, const ir_op *op) {
  const stage_set *s = map_get(&c->reads, owner(c, op));
  return s && *s ? *s : bit(0);
}

static void note_read(stages *c, const ir_op *op, stage_set by) {
  stage_set *s = map_get(&c->reads, owner(c, op));
  if (!s) map_set(&c->reads, owner(c, op), s = arena_new(c->m->arena, stage_set, 1));
  *s |= by;
}

// A stage of an op that goes by parts computes nothing when all it has is one operand that is
// added.
static int only_operand(const stages *c, const ir_op *op, int s) {
  int only = -1;
  for (int k = 0; k < op->nin; k++) {
    const info *v = &c->v[op->in[k]->id];
    if (v->anywhere && is_added(op, k)) return -1;
    if (!definite(v) || !(places_of(c, v) & bit(s))) continue;
    if (only >= 0 || !is_added(op, k)) return -1;
    only = k;
  }
  return only;
}

// From the last op to the first. `sets`: states are written where their weight is read; without,
// nobody writes them (and what is needed is what is read of them).
static void find_needs(stages *c, bool sets) {
  const ir_region *r = c->r;
  for (int i = 0; i < c->m->next_value; i++) c->v[i].need = 0;
  for (int i = r->ops.n - 1; i >= 0; i--) {
    ir_op *op = r->ops.at[i];
    stage_set need = 0;
    for (int k = 0; k < op->nout; k++) need |= c->v[op->out[k]->id].need;
    switch (c->cls[i]) {
      case OP_ANYWHERE: c->at[i] = op->code == IR_input ? all_of(c) : need; break;
      case OP_DEMAND: c->at[i] = need; break;
      case OP_HOME: c->at[i] = bit(stage_of(c, c->home[i])); break;
      case OP_EFFECT:
        c->at[i] = op->code == IR_output ? all_of(c) : sets ? read_by(c, op) : 0;
        break;
      case OP_PARTS:
      case OP_PENDING: break;
    }
    if (op->code == IR_state && !sets) note_read(c, op, c->at[i]);
    for (int k = 0; k < op->nin; k++) {
      info *v = &c->v[op->in[k]->id];
      if (c->cls[i] != OP_PARTS || v->anywhere) {
        stage_set by = c->at[i];
        for (int s = 0; s < c->n && c->cls[i] == OP_PARTS; s++)
          if (only_operand(c, op, s) >= 0) by &= ~bit(s);
        v->need |= by;
      } else if (v->home >= 0) {
        v->need |= bit(stage_of(c, v->home));
      }
    }
  }
}

// ---- when --------------------------------------------------------------------------------------

// The turn of a part of the layers, forward or backward.
static int turn_of(const stages *c, int part, bool forward) {
  return cut_turn(forward ? CUT_FORWARD : CUT_BACKWARD, part / c->n, c->chunks);
}

static int *turn_at(const stages *c, int op, int s) { return &c->turn[op * c->n + s]; }

// What is at home is done in the turn of its part, a part of a sum when all that the stage has of
// it is there, and what can be done anywhere when it is first needed.
static void find_turns(stages *c) {
  const ir_region *r = c->r;
  c->turn = arena_new(c->m->arena, int, r->ops.n * c->n + 1);
  for (int i = 0; i < r->ops.n; i++)
    for (int s = 0; s < c->n; s++) {
      const ir_op *op = r->ops.at[i];
      int *t = turn_at(c, i, s);
      if (c->cls[i] == OP_HOME) *t = turn_of(c, c->home[i], c->forward[i]);
      if (c->cls[i] == OP_ANYWHERE) *t = c->turns;
      for (int k = 0; k < op->nin && c->cls[i] == OP_PARTS; k++) {
        const info *v = &c->v[op->in[k]->id];
        if (!definite(v) || !(places_of(c, v) & bit(s))) continue;
        if (*turn_at(c, v->op, s) > *t) *t = *turn_at(c, v->op, s);
      }
    }
  for (int i = r->ops.n - 1; i >= 0; i--)
    for (int s = 0; s < c->n; s++) {
      const ir_op *op = r->ops.at[i];
      if (op->segment != c->loop || !(c->at[i] & bit(s))) continue;
      int t = *turn_at(c, i, s);
      if (t >= c->turns) t = *turn_at(c, i, s) = 0;  // nobody needs it: an input
      for (int k = 0; k < op->nin; k++) {
        const info *v = &c->v[op->in[k]->id];
        if (v->anywhere && t < *turn_at(c, v->op, s)) *turn_at(c, v->op, s) = t;
      }
    }
}

// A stage's segments: those of the loop are its turns, and what comes behind is later by as many.
static int segment_at(const stages *c, int i, int s) {
  int segment = c->r->ops.at[i]->segment;
  if (segment == c->loop) return segment + 2 * *turn_at(c, i, s);
  return segment < c->loop ? segment : segment + 2 * (c->turns - 1);
}

// ---- writing ------------------------------------------------------------------------------------

static ir_value **whole_at(const stages *c, const ir_value *v, int s) {
  return &c->whole[(size_t)v->id * (size_t)c->n + (size_t)s];
}

static ir_value **part_at(const stages *c, const ir_value *v, int s) {
  return &c->part[(size_t)v->id * (size_t)c->n + (size_t)s];
}

static ir_op *exchange(stages *c, ir_opcode code, int s, ir_value *in, const ir_value *out,
                       int segment, int step) {
  ir_op *op = ir_op_raw(c->to[s], code, &in, in != NULL, out ? &out->type : NULL, out != NULL);
  ir_set_attr(c->out[s], op, ir_attr_s("axes", "pipeline"));
  if (code != IR_all_reduce) ir_set_attr(c->out[s], op, ir_attr_i("step", step));
  op->segment = segment;
  if (out) {
    op->span = out->span;
    op->out[0]->name = out->name;
    op->out[0]->place = out->place;
    op->out[0]->span = out->span;
  } else {
    op->span = in->span;
  }
  return op;
}

// `v` as stage `from` has it goes to the stage `step` further; returns what is received there.
static ir_value *pass_on(stages *c, const ir_value *v, ir_value *has, int from, int step, int sent,
                         int received) {
  exchange(c, IR_send, from, has, NULL, sent, step);
  int to = (from + step + c->n) % c->n;
  return exchange(c, IR_receive, to, NULL, v, received, -step)->out[0];
}

static ir_value *zeros(stages *c, const ir_value *v, int s, int segment) {
  ir_op *op = ir_op_raw(c->to[s], IR_zeros, NULL, 0, &v->type, 1);
  op->segment = segment;
  op->out[0]->place = v->place;
  return op->out[0];
}

static ir_value *sum(stages *c, int s, ir_value *a, ir_value *b, int segment) {
  ir_value *in[] = {a, b};
  ir_op *op = ir_op_raw(c->to[s], IR_add, in, 2, &a->type, 1);
  op->segment = segment;
  op->span = a->span;
  op->out[0]->name = a->name;
  return op->out[0];
}

// Everyone needs it: what a stage does not have a part of is 0.
static void reduce_to_all(stages *c, const ir_value *v, int segment) {
  for (int s = 0; s < c->n; s++) {
    ir_value *has = *part_at(c, v, s);
    if (!has) has = zeros(c, v, s, segment);
    *whole_at(c, v, s) = exchange(c, IR_all_reduce, s, has, v, segment, 0)->out[0];
  }
}

// Each of the two stages that have a part and need the sum sends its own: as many bytes as to one
// and back, in half the time.
static void swap_parts(stages *c, const ir_value *v, int first, int second, int segment) {
  ir_value *a = *part_at(c, v, first), *b = *part_at(c, v, second);
  int step = second - first;
  exchange(c, IR_send, first, a, NULL, segment, step);
  exchange(c, IR_send, second, b, NULL, segment, -step);
  ir_value *to_second = exchange(c, IR_receive, second, NULL, v, segment, -step)->out[0];
  ir_value *to_first = exchange(c, IR_receive, first, NULL, v, segment, step)->out[0];
  *whole_at(c, v, first) = sum(c, first, a, to_first, segment);
  *whole_at(c, v, second) = sum(c, second, to_second, b, segment);
}

// The parts meet at the first stage that needs the sum.
static int gather_parts(stages *c, const ir_value *v, stage_set parts, int root, int segment) {
  ir_value *total = parts & bit(root) ? *part_at(c, v, root) : NULL;
  for (int s = 0; s < c->n; s++) {
    if (s == root || !(parts & bit(s))) continue;
    ir_value *got = pass_on(c, v, *part_at(c, v, s), s, root - s, segment, segment);
    total = total ? sum(c, root, total, got, segment) : got;
  }
  *whole_at(c, v, root) = total;
  return root;
}

// Who needs `v` and does not have the whole of it.
static stage_set missing(const stages *c, const ir_value *v) {
  stage_set m = c->v[v->id].need;
  for (int s = 0; s < c->n; s++)
    if (*whole_at(c, v, s)) m &= ~bit(s);
  return m;
}

// In the loop: from part to part, forward or backward, as far as it is needed.
static void carry(stages *c, const ir_value *v) {
  const info *x = &c->v[v->id];
  int step = x->forward ? 1 : -1;
  for (int p = x->made; missing(c, v); p += step) {
    int next = p + step, from = stage_of(c, p);
    if (next < 0 || next >= c->n * c->chunks) {
      refuse(c, v->def,
             x->forward ? "an earlier stage needs what it makes in forward"
                        : "a later stage needs what it makes in backward");
      return;
    }
    *whole_at(c, v, stage_of(c, next)) =
        pass_on(c, v, *whole_at(c, v, from), from, step, c->loop + 2 * turn_of(c, p, x->forward),
                c->loop + 2 * turn_of(c, next, x->forward));
  }
  int home = stage_of(c, x->home);
  *part_at(c, v, home) = *whole_at(c, v, home);
}

// Behind the loop: makes `v` whole for all who need it, in the segment at hand.
static void complete(stages *c, const ir_value *v, int segment) {
  info *x = &c->v[v->id];
  if (x->whole || x->anywhere || !definite(x)) return;
  x->whole = true;
  stage_set to = missing(c, v);
  if (!to) return;
  if (x->need == all_of(c) && (x->parts || v->type.rank == 0)) {
    reduce_to_all(c, v, segment);
    return;
  }
  int first = lowest(x->need);
  stage_set others = x->need & ~bit(first);
  if (x->parts == x->need && others && !(others & (others - 1))) {
    swap_parts(c, v, first, lowest(others), segment);
    return;
  }
  int from =
      x->parts ? gather_parts(c, v, x->parts, lowest(x->need), segment) : stage_of(c, x->made);
  for (int s = 0; s < c->n; s++)
    if (s != from && to & bit(s))
      *whole_at(c, v, s) = pass_on(c, v, *whole_at(c, v, from), from, s - from, segment, segment);
}

static ir_op *clone(stages *c, int i, int s, ir_value *const *in) {
  ir_op *op = c->r->ops.at[i], *now = ir_clone_op(c->to[s], op);
  now->segment = segment_at(c, i, s);
  for (int k = 0; k < op->nin; k++) now->in[k] = in[k];
  for (int k = 0; k < op->nout; k++) op->out[k]->mapped = NULL;
  return now;
}

static void write_whole(stages *c, int i, int s) {
  ir_op *op = c->r->ops.at[i];
  ir_value **in = arena_new(c->m->arena, ir_value *, op->nin + 1);
  for (int k = 0; k < op->nin; k++) {
    in[k] = *whole_at(c, op->in[k], s);
    if (!in[k]) IR_BUG("cut: stage %d lacks operand %d of %s", s, k, ir_info(op->code)->name);
  }
  ir_op *now = clone(c, i, s, in);
  for (int k = 0; k < op->nout; k++) {
    *whole_at(c, op->out[k], s) = now->out[k];
    if (c->home[i] >= 0 && stage_of(c, c->home[i]) == s) *part_at(c, op->out[k], s) = now->out[k];
  }
}

// The op on what stage s has; the rest is 0, or left out where it would be added.
static void write_part(stages *c, int i, int s) {
  ir_op *op = c->r->ops.at[i];
  int only = only_operand(c, op, s), base = ir_base(op);
  if (only >= 0) {
    *part_at(c, op->out[0], s) = *part_at(c, op->in[only], s);
    return;
  }
  ir_value **in = arena_new(c->m->arena, ir_value *, op->nin + 1);
  bool drop = false;
  for (int k = 0; k < op->nin; k++) {
    const info *v = &c->v[op->in[k]->id];
    in[k] = v->anywhere ? *whole_at(c, op->in[k], s) : *part_at(c, op->in[k], s);
    if (in[k]) continue;
    drop |= k == op->nin - 1 && (k == base || (op->code == IR_scatter_add && k == 2));
    in[k] = drop ? op->in[k] : zeros(c, op->in[k], s, segment_at(c, i, s));
  }
  ir_op *now = clone(c, i, s, in);
  if (drop) now->nin--;
  if (drop && base >= 0) ir_set_attr(c->out[s], now, ir_attr_i("base", 0));
  *part_at(c, op->out[0], s) = now->out[0];
}

// By segment; ops of one stay in the order they have.
static void sort_ops(arena *a, ir_region *r) {
  int last = 0, n = 0;
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->segment > last) last = r->ops.at[i]->segment;
  ir_op **old = arena_new(a, ir_op *, r->ops.n + 1);
  if (r->ops.n) memcpy(old, r->ops.at, sizeof *old * (size_t)r->ops.n);
  for (int t = 0; t <= last; t++)
    for (int i = 0; i < r->ops.n; i++)
      if (old[i]->segment == t) r->ops.at[n++] = old[i];
}

static void write_func(stages *c) {
  const ir_region *r = c->r;
  size_t n = (size_t)c->m->next_value * (size_t)c->n + 1;
  c->whole = arena_alloc(c->m->arena, n * sizeof *c->whole);
  c->part = arena_alloc(c->m->arena, n * sizeof *c->part);
  memset(c->whole, 0, n * sizeof *c->whole);
  memset(c->part, 0, n * sizeof *c->part);
  find_turns(c);
  for (int i = 0; i < r->ops.n && !c->error; i++) {
    const ir_op *op = r->ops.at[i];
    // Sums over the loop cross behind it, when they are first read there.
    for (int k = 0; k < op->nin && op->segment > c->loop && c->cls[i] != OP_PARTS; k++)
      complete(c, op->in[k], segment_at(c, i, 0));
    for (int s = 0; s < c->n; s++) {
      if (!(c->at[i] & bit(s))) continue;
      if (c->cls[i] == OP_PARTS)
        write_part(c, i, s);
      else
        write_whole(c, i, s);
    }
    for (int k = 0; k < op->nout; k++)
      if (c->cls[i] == OP_HOME && op->segment == c->loop && !made_by_loop(c, op->out[k]))
        carry(c, op->out[k]);
  }
}

static bool has(const ir_module *m, const char *state) {
  return ir_state_find((ir_module *)(uintptr_t)m, state) != NULL;
}

static void begin_func(stages *c, ir_func *f) {
  arena *a = c->m->arena;
  c->f = f;
  c->r = f->body;
  c->turns = (f->kind != ENTRY_TRAIN ? 1 : c->weights ? 3 : 2) * c->chunks;
  c->loop = -1;
  for (int i = 0; i < c->r->ops.n; i++)
    if (c->r->ops.at[i]->segment % 2) c->loop = c->r->ops.at[i]->segment;
  open_norm(c);
  c->forward = cut_forward(a, f);
  mark_norm(c);
  c->cls = arena_new(a, op_class, c->r->ops.n + 1);
  c->home = arena_new(a, int, c->r->ops.n + 1);
  find_next(c);
  c->at = arena_new(a, stage_set, c->r->ops.n + 1);
  c->v = arena_new(a, info, c->m->next_value + 1);
  for (int i = 0; i < c->m->next_value; i++) c->v[i].home = -1;
  for (int i = 0; i < c->r->ops.n && !c->error; i++) find_class(c, i);
  if (!c->error) settle_pending(c);
}

// ---- modules ------------------------------------------------------------------------------------

static void new_modules(stages *c) {
  ir_module *m = c->m;
  for (int s = 0; s < c->n; s++) {
    ir_module *now = c->out[s] = arena_new(m->arena, ir_module, 1);
    *now = *m;
    now->bodies = m->arena;
    now->pipe_stage = s;
    now->pipe_stages = c->n;
    now->next_value = 0;
    memset(&now->funcs, 0, sizeof now->funcs);
    memset(&now->states, 0, sizeof now->states);
    now->state_by_name = (map){.arena = m->arena};
  }
}

// A stage that has one range of a stack has it by the name of the whole.
static void add_states(stages *c) {
  arena *a = c->m->arena;
  for (int s = 0; s < c->n; s++) {
    ir_module *m = c->out[s];
    map used = {.arena = a};
    for (int f = 0; f < m->funcs.n; f++)
      for (int i = 0; i < m->funcs.at[f]->body->ops.n; i++) {
        const ir_op *op = m->funcs.at[f]->body->ops.at[i];
        if (op->code == IR_state || op->code == IR_set)
          map_set(&used, ir_attr_str(op, "name", ""), m);
      }
    map names = {.arena = a};
    for (int i = 0; i < c->m->states.n; i++) {
      ir_state now = *c->m->states.at[i];
      if (!map_get(&used, now.name)) continue;
      if (now.range_of && !has(m, now.range_of)) {
        const ir_state *of = now.of ? ir_state_find(c->m, now.of) : NULL;
        map_set(&names, now.name, (void *)(uintptr_t)now.range_of);
        now.name = now.range_of;
        now.range_of = NULL;
        if (of) now.of = of->range_of;
      }
      ir_state_add(m, now);
    }
    for (int f = 0; f < m->funcs.n; f++)
      for (int i = 0; i < m->funcs.at[f]->body->ops.n; i++) {
        ir_op *op = m->funcs.at[f]->body->ops.at[i];
        if (op->code != IR_state && op->code != IR_set) continue;
        const char *name = map_get(&names, ir_attr_str(op, "name", ""));
        if (name) ir_set_attr(m, op, ir_attr_s("name", name));
      }
  }
}

const char *cut_stages(ir_module *m, const cut_job *j, ir_module **out) {
  IR_CHECK(j->stages >= 2 && j->stages <= CUT_MAX_STAGES);
  IR_CHECK(m->mesh && mesh_axis(m->mesh, "micro") >= 0);
  int axis = mesh_axis(m->mesh, "pipeline");
  IR_CHECK(axis >= 0 && m->mesh->axis[axis].size == j->stages);
  const char *why = cut_repeats(m, j);
  if (why) return why;
  stages c = {.m = m,
              .n = j->stages,
              .chunks = j->chunks ? j->chunks : 1,
              .weights = j->weights,
              .out = out,
              .micro = mesh_axis(m->mesh, "micro")};
  while (c.front + 1 < c.n * c.chunks && j->first[c.front + 1] == 0) c.front++;
  c.reads.arena = m->arena;
  new_modules(&c);
  c.to = arena_new(m->arena, ir_region *, c.n);
  // Who has a weight is a matter of all functions together.
  stages *of = arena_new(m->arena, stages, m->funcs.n + 1);
  for (int i = 0; i < m->funcs.n && !c.error; i++) {
    begin_func(&c, m->funcs.at[i]);
    if (c.error) return c.error;
    find_needs(&c, false);
    of[i] = c;
  }
  for (int i = 0; i < m->funcs.n; i++) {
    of[i].reads = c.reads;
    find_needs(&of[i], true);
    ir_func **f = arena_new(m->arena, ir_func *, c.n);
    for (int s = 0; s < c.n; s++) {
      f[s] = ir_func_new(out[s], m->funcs.at[i]->name, m->funcs.at[i]->kind);
      f[s]->loop = of[i].loop;
      f[s]->turns = of[i].turns;
      f[s]->chunks = c.chunks;
      c.to[s] = f[s]->body;
    }
    write_func(&of[i]);
    if (of[i].error) return of[i].error;
    for (int s = 0; s < c.n; s++) {
      if (c.weights && f[s]->kind == ENTRY_TRAIN) cut_weights(f[s]);
      sort_ops(m->arena, f[s]->body);
    }
  }
  add_states(&c);
  for (int s = 0; s < c.n && c.weights; s++) pass_dead(out[s], NULL);
  for (int s = 0; s < c.n; s++) out[s]->next_index = m->next_index;
  return NULL;
}
