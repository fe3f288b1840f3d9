// Cuts the batch among ranks and into micro-batches: GRAPH becomes LOCAL.
//
// needs: GRAPH over the whole batch. keeps: meaning; a loss or gradient is that of the whole batch
// whatever the micro-batch and the ranks. breaks: extents of the batch index, which become those of
// a micro-batch.
//
// Time is a mesh axis here: the batch index is cut by `data`, among ranks, and by `micro`, in time.
// What the one does to a value the other does too, so every value has one of three placements on
// both. Replicated: the same for all micro-batches. CUT: it has the batch index.
// PARTIAL: it is a sum over the batch of which each micro-batch has a part. The op table's kinds
// say which op turns CUT into PARTIAL; PARTIAL goes on through linear ops; anything else needs the
// whole sum, which `accumulate` makes, and `all_reduce` of what it has made. A step is a sequence
// of segments: even ones run once, odd ones once per micro-batch:
//
//   0: from states alone | 1: count the valid targets | 2: the total | 3: forward, backward | 4:
//   update
//
// Micro-batch ops run as late as their users allow, so that all of forward and backward share a
// loop. What an earlier loop made and a later one needs is made again if it follows from inputs
// alone; otherwise the batch cannot be cut there and the op is named.

#include <string.h>

#include "ir/place.h"
#include "ir/rule.h"
#include "passes/pass.h"

typedef VEC(ir_op *) op_list;

typedef struct loc {
  ir_module *m;
  int axis;       // of the mesh: micro
  unsigned data;  // axes over which ranks have samples of their own
  int *time;      // by value id: segment that makes it; -1: inputs, available in all
  const char *error;
} loc;

static ir_on_axis placed(const loc *c, const ir_value *v) { return place_on(v->place, c->axis); }

static const ir_place *place_by(loc *c, const ir_place *base, ir_on_axis on, int axis) {
  if (on == ON_REPLICATED || axis < 0) return base;
  return on == ON_CUT ? place_cut(c->m, base, c->m->batch, axis)
                      : place_partial(c->m, base, PARTIAL_SUM, axis);
}

static const ir_place *place_by_all(loc *c, const ir_place *base, ir_on_axis on, unsigned axes) {
  for (int a = 0; a < c->m->mesh->naxes; a++)
    if (axes >> a & 1) base = place_by(c, base, on, a);
  return base;
}

static void set_place(loc *c, ir_value *v, ir_on_axis on) {
  v->place = place_by(c, place_by_all(c, NULL, on, c->data), on, c->axis);
}

static bool has_sum_kind(const ir_op_info *info) {
  return str_eq(info->rule, "spec") || strstr(info->kinds, ":sum") != NULL;
}

static const char *refuse(loc *c, const ir_op *op, const char *why) {
  if (!c->error)
    c->error = arena_printf(c->m->arena,
                            "%s:%d:%d: the batch cannot be cut into micro-batches at `%s`: %s",
                            op->span.file ? op->span.file : "?", op->span.line, op->span.col,
                            ir_info(op->code)->name, why);
  return c->error;
}

// True when `op` has PARTIAL operands and is linear in them, so that the result is PARTIAL too. An
// op that sums CUT operands over the batch and adds the sum to a PARTIAL one is linear in both.
static bool passes_partial(loc *c, const ir_op *op) {
  enum { MAX = 64 };
  bool among[MAX] = {false}, partial = false, sums = has_sum_kind(ir_info(op->code));
  if (op->nin > MAX) return false;
  for (int k = 0; k < op->nout; k++) sums &= pass_batch_dim(c->m, op->out[k]) < 0;
  for (int i = 0; i < op->nin; i++) {
    ir_on_axis p = placed(c, op->in[i]);
    if (p == ON_CUT && !sums) return false;
    partial |= p == ON_PARTIAL;
    among[i] = p == ON_PARTIAL || (p == ON_CUT && ir_dtype_float(op->in[i]->type.dtype));
  }
  return partial && ir_is_linear(op, among);
}

static bool on_batch(loc *c, const ir_op *op) {
  const ir_attr *dim = ir_get_attr(op, "dim");
  return dim && op->nin && op->code != IR_expand && op->code != IR_squeeze &&
         pass_batch_dim(c->m, op->in[0]) == dim->i;
}

// Placement of each result of a micro-batch op whose operands are CUT or FULL.
static void place_results(loc *c, const ir_op *op) {
  for (int k = 0; k < op->nout; k++) {
    if (pass_batch_dim(c->m, op->out[k]) >= 0) {
      set_place(c, op->out[k], ON_CUT);
      continue;
    }
    if (op->code == IR_repeat) {
      set_place(c, op->out[k], placed(c, op->region[0]->yield.at[k]));
      continue;
    }
    set_place(c, op->out[k], ON_PARTIAL);
    if (!has_sum_kind(ir_info(op->code)))
      refuse(c, op, "it needs the whole batch, and only sums over the batch can be cut");
  }
}

static void place_body_ops(loc *c, ir_region *r, bool check) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    bool partial = false, cut = false;
    for (int k = 0; k < op->nin; k++) {
      partial |= placed(c, op->in[k]) == ON_PARTIAL;
      cut |= placed(c, op->in[k]) == ON_CUT;
    }
    if (check && on_batch(c, op)) refuse(c, op, "it works on the batch axis itself");
    if (partial) {
      if (check && !passes_partial(c, op))
        refuse(c, op, "it needs the sum over the whole batch inside a repeat");
      for (int k = 0; k < op->nout; k++) set_place(c, op->out[k], ON_PARTIAL);
    } else if (cut) {
      const char *before = c->error;
      place_results(c, op);
      if (!check) c->error = before;
    }
  }
}

static bool is_zero(const ir_value *v) {
  double x;
  return (v->def && v->def->code == IR_zeros) || (pass_const_value(v, &x) && x == 0);
}

// The body of a repeat in a micro-batch segment: all must go without completing a sum. A carried
// value that the body adds to (an auxiliary loss) is a sum of which each micro-batch has a part, as
// are the last `accum` ones; it starts as such a sum or as 0. Other operands are complete.
static void place_body(loc *c, ir_op *loop) {
  ir_region *r = loop->region[0];
  int carried = (int)ir_attr_int(loop, "carried", 0), accum = (int)ir_attr_int(loop, "accum", 0);
  for (int i = 0; i < r->args.n; i++) {
    ir_value *a = r->args.at[i];
    bool cut = pass_batch_dim(c->m, a) >= 0, carries = i >= 1 && i < 1 + carried;
    bool sum = carries && (i >= 1 + carried - accum || placed(c, loop->in[i - 1]) == ON_PARTIAL);
    set_place(c, a, cut ? ON_CUT : sum ? ON_PARTIAL : ON_REPLICATED);
  }
  for (bool again = true; again;) {
    place_body_ops(c, r, false);
    again = false;
    for (int k = 0; k < carried; k++) {
      ir_value *a = r->args.at[1 + k];
      if (placed(c, r->yield.at[k]) != ON_PARTIAL || placed(c, a) != ON_REPLICATED) continue;
      if (!is_zero(loop->in[k])) refuse(c, loop, "a sum that it carries does not start at 0");
      set_place(c, a, ON_PARTIAL);
      again = true;
    }
  }
  place_body_ops(c, r, true);
}

// True when operand k of a micro-batch op may stay PARTIAL.
static bool takes_partial(loc *c, const ir_op *op, int k) {
  if (op->code != IR_repeat) return passes_partial(c, op);
  return k < ir_attr_int(op, "carried", 0) &&
         placed(c, op->region[0]->args.at[1 + k]) == ON_PARTIAL;
}

static bool is_micro(loc *c, const ir_op *op) {
  if (op->code == IR_output || op->code == IR_set) return false;
  for (int i = 0; i < op->nin; i++)
    if (placed(c, op->in[i]) == ON_CUT) return true;
  bool partial = false;
  for (int i = 0; i < op->nin; i++) partial |= placed(c, op->in[i]) == ON_PARTIAL;
  if (!partial) return false;
  return passes_partial(c, op);
}

static int up_to(int t, int parity) { return (t & 1) == parity ? t : t + 1; }

// Earliest segment: a micro-batch op that needs a finished sum waits for the segment after it.
static int earliest(loc *c, const ir_op *op, bool micro) {
  int t = micro ? 1 : 0;
  for (int i = 0; i < op->nin; i++) {
    ir_value *v = op->in[i];
    int s = c->time[v->id];
    ir_on_axis p = placed(c, v);
    if (s < 0) continue;
    if (p == ON_PARTIAL && !(micro && takes_partial(c, op, i)))
      s++;  // completed in the once-segment behind its loop
    if (p == ON_CUT && !micro) s++;
    int need = up_to(s, micro);
    if (need > t) t = need;
  }
  return t;
}

typedef struct rebuilt {
  ir_value **sum;    // by value id: its `accumulate`, or NULL
  ir_value **again;  // by value id: copy of an input-only value in the current later loop
  int again_time;
} rebuilt;

// `v` made again in segment t from inputs and FULL values alone.
static ir_value *make_again(loc *c, rebuilt *rb, ir_region *at, ir_value *v, int t,
                            const ir_op *user) {
  int s = c->time[v->id];
  if (s < 0 || placed(c, v) == ON_REPLICATED || s == t) return v;
  if (rb->again[v->id] && c->time[rb->again[v->id]->id] == t) return rb->again[v->id];
  ir_op *op = v->def;
  if (!op || op->code == IR_repeat || placed(c, v) == ON_PARTIAL) {
    refuse(c, user, "it needs a value that is only known once the whole batch has been seen");
    return v;
  }
  for (int i = 0; i < op->nout; i++) op->out[i]->mapped = NULL;
  ir_value **in = arena_new(c->m->bodies, ir_value *, op->nin + 1);
  for (int i = 0; i < op->nin; i++) in[i] = make_again(c, rb, at, op->in[i], t, user);
  ir_op *copy = ir_clone_op(at, op);
  for (int i = 0; i < op->nin; i++) copy->in[i] = in[i];
  copy->segment = t;
  for (int i = 0; i < op->nout; i++) rb->again[op->out[i]->id] = copy->out[i];
  return rb->again[v->id];
}

// The whole of `v`, of which each micro-batch and each rank has a part: over time first. What ranks
// exchange comes in the segment behind the loop: `later`.
static ir_value *complete(loc *c, ir_region *r, ir_value *v, const ir_op *maker, op_list *later) {
  const ir_mesh *mesh = c->m->mesh;
  ir_value *now = v;
  // (A pipeline of one micro-batch still sums behind its loop what stages have parts of.)
  bool stages = mesh_axis(mesh, "pipeline") >= 0;
  if (stages || !c->data || place_convert(mesh, c->axis, v->place, NULL) == CONVERT_ACCUMULATE) {
    ir_op *acc = ir_op_raw(r, IR_accumulate, &now, 1, &v->type, 1);
    acc->segment = maker->segment;
    now = acc->out[0];
    now->place = place_by_all(c, NULL, ON_PARTIAL, c->data);
  }
  if (c->data) {
    ir_op *all = ir_op_raw(r, IR_all_reduce, &now, 1, &v->type, 1);
    ir_set_attr(c->m, all, ir_attr_s("axes", mesh_axes_text(c->m->arena, mesh, c->data)));
    all->segment = maker->segment + 1;
    r->ops.n--;
    vec_push(c->m->bodies, later, all);
    now = all->out[0];
  }
  if (now == v) return v;  // one micro-batch, on all ranks
  now->def->span = maker->span;
  now->name = v->name;
  return now;
}

static const char *localise_func(ir_module *m, ir_func *f) {
  ir_region *r = f->body;
  // Copies and sums get new ids: at most three for each value and loop.
  int n = m->next_value * 6 + 1024, nops = r->ops.n;
  loc c = {.m = m,
           .axis = mesh_axis(m->mesh, "micro"),
           .data = mesh_axes_of(m->mesh, "data"),
           .time = arena_new(m->bodies, int, n)};
  bool *micro = arena_new(m->bodies, bool, nops + 1);
  int *when = arena_new(m->bodies, int, nops + 1);

  for (int i = 0; i < nops; i++) {
    ir_op *op = r->ops.at[i];
    micro[i] = is_micro(&c, op);
    if (micro[i] && on_batch(&c, op)) refuse(&c, op, "it works on the batch axis itself");
    if (op->code == IR_input) {
      set_place(&c, op->out[0], pass_batch_dim(m, op->out[0]) >= 0 ? ON_CUT : ON_REPLICATED);
      c.time[op->out[0]->id] = -1;
      continue;
    }
    if (micro[i] && op->code == IR_repeat) place_body(&c, op);
    if (micro[i]) {
      if (passes_partial(&c, op))
        for (int k = 0; k < op->nout; k++) set_place(&c, op->out[k], ON_PARTIAL);
      else
        place_results(&c, op);
    } else if (op->code == IR_zeros && pass_batch_dim(m, op->out[0]) >= 0) {
      set_place(&c, op->out[0], ON_CUT);  // zeros of a micro-batch's shape: made where needed
      micro[i] = true;
    }
    when[i] = earliest(&c, op, micro[i]);
    for (int k = 0; k < op->nout; k++) c.time[op->out[k]->id] = when[i];
  }
  if (c.error) return c.error;

  // As late as the users allow.
  int *limit = arena_new(m->bodies, int, n);
  for (int i = 0; i < n; i++) limit[i] = 1 << 20;
  for (int i = nops - 1; i >= 0; i--) {
    ir_op *op = r->ops.at[i];
    int late = 1 << 20;
    for (int k = 0; k < op->nout; k++)
      if (limit[op->out[k]->id] < late) late = limit[op->out[k]->id];
    if (late < (1 << 20) && late > when[i]) when[i] = late;
    for (int k = 0; k < op->nout; k++)
      if (c.time[op->out[k]->id] >= 0) c.time[op->out[k]->id] = when[i];
    for (int k = 0; k < op->nin; k++) {
      ir_value *v = op->in[k];
      int t = when[i];
      if (placed(&c, v) == ON_REPLICATED)
        t -= micro[i];  // the once-segment before the loop, or the same one
      else if (!micro[i])
        t--;  // the loop before a once-segment
      else if (placed(&c, v) == ON_PARTIAL && !takes_partial(&c, op, k))
        t -= 2;  // the loop before this one
      if (t < limit[v->id]) limit[v->id] = t;
    }
  }

  // Rebuild the list segment by segment.
  int segments = 0;
  for (int i = 0; i < nops; i++)
    if (when[i] + 1 > segments) segments = when[i] + 1;
  ir_op **old = arena_new(m->bodies, ir_op *, nops + 1);
  if (nops) memcpy(old, r->ops.at, sizeof *old * (size_t)nops);
  r->ops.n = 0;
  rebuilt rb = {.sum = arena_new(m->bodies, ir_value *, n),
                .again = arena_new(m->bodies, ir_value *, n)};
  bool *want_sum = arena_new(m->bodies, bool, n);
  for (int i = 0; i < nops; i++) {
    for (int k = 0; k < old[i]->nin; k++)
      if (placed(&c, old[i]->in[k]) == ON_PARTIAL && !(micro[i] && takes_partial(&c, old[i], k)))
        want_sum[old[i]->in[k]->id] = true;
  }
  op_list later = {0};
  for (int t = 0; t <= segments; t++) {
    for (int i = 0; i < later.n; i++) vec_push(m->bodies, &r->ops, later.at[i]);
    later.n = 0;
    for (int i = 0; i < nops; i++) {
      ir_op *op = old[i];
      if (when[i] != t) continue;
      for (int k = 0; k < op->nin; k++) {
        ir_value *v = op->in[k];
        if (placed(&c, v) == ON_PARTIAL && !(micro[i] && takes_partial(&c, op, k)))
          op->in[k] = rb.sum[v->id];
        else if (micro[i])
          op->in[k] = make_again(&c, &rb, r, v, t, op);
        else if (placed(&c, v) == ON_CUT && c.time[v->id] >= 0)
          refuse(&c, op, "it needs all samples at once");
      }
      if (c.error) return c.error;
      op->segment = t;
      vec_push(m->bodies, &r->ops, op);
      for (int k = 0; k < op->nout; k++) {
        ir_value *v = op->out[k];
        if (placed(&c, v) != ON_PARTIAL || !want_sum[v->id]) continue;
        rb.sum[v->id] = complete(&c, r, v, op, &later);
        IR_CHECK(m->next_value <= n);
      }
    }
  }
  return NULL;
}

// The axes of space, then time.
static const ir_mesh *mesh_of(ir_module *m, const pass_options *o, int64_t micros) {
  ir_mesh *mesh = arena_new(m->arena, ir_mesh, 1);
  if (o->mesh) *mesh = *o->mesh;
  IR_CHECK(mesh->naxes < IR_MAX_AXES);
  mesh->axis[mesh->naxes++] = (ir_axis){.name = "micro", .size = micros, .time = true};
  return mesh;
}

const char *pass_localise(ir_module *m, const pass_options *o) {
  if (!m->batch) return NULL;
  ir_index *batch = ir_root(m->batch);
  int64_t ranks = mesh_parts(o->mesh, mesh_axes_of(o->mesh, "data")), mine = batch->size / ranks;
  int64_t micro = o->micro_batch > 0 && o->micro_batch < mine ? o->micro_batch : mine;
  if (batch->size % ranks)
    return arena_printf(m->arena, "data = %lld does not divide batch = %lld", (long long)ranks,
                        (long long)batch->size);
  if (!o->mesh && micro == batch->size) return NULL;
  if (mine % micro)
    return arena_printf(m->arena, "micro_batch = %lld does not divide batch = %lld%s",
                        (long long)micro, (long long)mine, ranks > 1 ? " of a rank" : "");
  m->mesh = mesh_of(m, o, mine / micro);
  for (int i = 0; i < m->funcs.n; i++) {
    ir_func *f = m->funcs.at[i];
    if (f->kind != ENTRY_TRAIN && f->kind != ENTRY_EVAL) continue;
    const char *why = localise_func(m, f);
    if (why) return why;
  }
  batch->size = micro;
  return NULL;
}
