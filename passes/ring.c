// Rings: keys and values that ranks gather for attention come one part after the other.
//
// needs: LOCAL that `distribute` has written. keeps: values, but for the order in which keys are
// added up, and the bytes that are sent. breaks: nothing.
//
//   %k = all_gather(%kl)                        %k1 = permute(%kl), %v1 = permute(%vl)
//   %v = all_gather(%vl)                 =>     %o0, %l0 = attention(%q, %kl, %vl)
//   %o, %l = attention(%q, %k, %v)              %k2 = permute(%k1), %v2 = permute(%v1)
//                                               %o1, %l1 = attention_next(%o0, %l0, %q, %k1, %v1)
//                                               ...
//
// A rank begins with its own part and gets the next ones from the rank behind it, so in step s it
// looks at the part of the rank s further on; what it looks at it hands on meanwhile. It never has
// more than two parts, of keys and of values (of a double ring three: one is from another node).
// Softmax goes on from part to part with a running maximum and sum (o and the log of the sum,
// `lse`).
//
// Backward goes round the same way. A part's gradient is a sum over all ranks: it is handed on
// together with the part, each rank adding its own, and comes home behind the last step; what the
// owner has of it itself waits there. These are the hops of a reduce_scatter:
//
//   %dq, %dk, %dv = attention_grad(...)         %dq0, %dk0, %dv0 = attention_grad(.., %kl, %vl)
//   reduce_scatter(%dk), (%dv)           =>     %dq1, %t = attention_grad(.., %k1, %v1)
//                                               %u = permute(%t) ...; %dk = %dk0 + permute(%u ...)
//
// Double ring. Where the ring's axis has two factors (nodes, and ranks inside one), parts go round
// inside a node, and once for each other node a part comes from there, asked for when the node's
// round begins: of the n - 1 hops only n/w - 1 are between nodes of w ranks. A gradient goes on to
// the next node when it has been round in one.
//
// Parts in zigzag (passes/distribute_zigzag.c) are handed on as they are.
//
// What else reads what was gathered (the gradient of a bias) needs all of it at once: then it is
// gathered. So it is where probabilities are dropped, whose draws count keys from the first.
#include "ir/place.h"
#include "ir/rule.h"
#include "passes/distribute_impl.h"
#include "passes/pass.h"

// The parts of a gathered value as they come, by step; made once, whoever reads them.
typedef struct parts {
  const ir_value *whole;
  ir_value **part;
} parts;

typedef struct ring {
  ir_module *m;
  arena *scratch;
  unsigned all, outer, inner;  // mesh axes: outer 0, where there is one factor
  int64_t n, w;                // ranks; of them, in the inner ring
  // Of the op at hand.
  ir_region *r;
  int at;  // what is built goes there
  int segment;
  VEC(parts) made;  // of the region
} ring;

// ---- what can come in parts ---------------------------------------------------------------------

static bool over_ring(const ring *g, const ir_op *op, ir_opcode code) {
  return op && op->code == code && ir_exchange_axes(g->m, op) == g->all &&
         !ir_attr_int(op, "whole", 0);
}

// Whether `part` has of dim rank - 2 what one rank has of `whole`, and all of the others.
static bool cuts_rows(const ring *g, const ir_type *whole, const ir_type *part) {
  int rows = whole->rank - 2;
  bool same = whole->rank == part->rank && rows >= 0 && whole->dtype == part->dtype;
  for (int d = 0; same && d < whole->rank; d++)
    same = whole->dim[d]->size == part->dim[d]->size * (d == rows ? g->n : 1);
  return same;
}

// Gathered over the ring, keys after keys.
static bool comes_in_parts(const ring *g, const ir_value *v) {
  return over_ring(g, v->def, IR_all_gather) && v->def->parent == g->r &&
         cuts_rows(g, &v->type, &v->def->in[0]->type);
}

// The one that reads `v`; NULL: nobody, or several.
static ir_op *reader_of(const ring *g, const ir_value *v) {
  ir_op *one = NULL;
  for (int i = 0; i < g->r->ops.n; i++)
    for (int k = 0; k < g->r->ops.at[i]->nin; k++)
      if (g->r->ops.at[i]->in[k] == v) {
        if (one) return NULL;
        one = g->r->ops.at[i];
      }
  for (int k = 0; k < g->r->yield.n; k++)
    if (g->r->yield.at[k] == v) return NULL;
  return one;
}

static bool goes_home(const ring *g, const ir_value *v) {
  const ir_op *op = reader_of(g, v);
  return over_ring(g, op, IR_reduce_scatter) && cuts_rows(g, &v->type, &op->out[0]->type);
}

// By itself; what it reads may have other readers.
static bool streams(const ring *g, const ir_op *op) {
  int q = ir_queries(op);
  if (op->code != IR_attention && op->code != IR_attention_grad) return false;
  if (ir_attr_float(op, "drop", 0) > 0 || ir_attr_int(op, "past", 0)) return false;
  if (!comes_in_parts(g, op->in[q + 1]) || !comes_in_parts(g, op->in[q + 2])) return false;
  return op->code == IR_attention || (goes_home(g, op->out[1]) && goes_home(g, op->out[2]));
}

static bool all_stream(const ring *g, const ir_value *v) {
  for (int i = 0; i < g->r->ops.n; i++) {
    const ir_op *op = g->r->ops.at[i];
    bool reads = false;
    for (int k = 0; k < op->nin; k++) reads |= op->in[k] == v;
    if (reads && !streams(g, op)) return false;
  }
  for (int k = 0; k < g->r->yield.n; k++)
    if (g->r->yield.at[k] == v) return false;
  return true;
}

// ---- building -----------------------------------------------------------------------------------

// The last op of the region goes where the op at hand is.
static ir_value *put(ring *g, ir_value *v) {
  v->def->segment = g->segment;
  pass_move_last(g->r, g->at++);
  return v;
}

// To the rank before this one on each of `axes`.
static ir_value *hop(ring *g, ir_value *v, unsigned axes, bool sums) {
  ir_op *op = ir_op_raw(g->r, IR_permute, &v, 1, &v->type, 1);
  ir_set_attr(g->m, op, ir_attr_s("axes", mesh_axes_text(g->m->arena, g->m->mesh, axes)));
  ir_set_attr(g->m, op, ir_attr_i("step", -1));
  if (sums) ir_set_attr(g->m, op, ir_attr_i("sums", 1));
  op->span = v->span;
  op->out[0]->name = v->name;
  return put(g, op->out[0]);
}

static parts *parts_of(ring *g, const ir_value *whole) {
  for (int i = 0; i < g->made.n; i++)
    if (g->made.at[i].whole == whole) return &g->made.at[i];
  parts p = {whole, arena_new(g->scratch, ir_value *, g->n)};
  p.part[0] = whole->def->in[0];
  vec_push(g->scratch, &g->made, p);
  return &g->made.at[g->made.n - 1];
}

// What will be looked at next is on its way while step s computes; a part from another node during
// all of a node's round.
static void ask_for_next(ring *g, int64_t s, ir_value *keys, ir_value *values) {
  ir_value *whole[] = {keys, values};
  for (int far = 0; far < 2; far++)
    for (int i = 0; i < 2; i++) {
      int64_t next = far ? s + g->w : s + 1;
      bool wanted = next < g->n && (far ? s % g->w == 0 : next % g->w != 0);
      parts *p = parts_of(g, whole[i]);
      if (wanted && !p->part[next])
        p->part[next] = hop(g, p->part[s], far ? g->outer : g->inner, false);
    }
}

// What counts the keys of step s: the place of the rank some steps further round each factor, times
// `step`, plus `base`.
static ir_value *place_at(ring *g, int64_t s, int64_t step, int64_t base) {
  ir_type t = ir_scalar(DT_i32);
  ir_op *op = ir_op_raw(g->r, IR_place, NULL, 0, &t, 1);
  int n = g->m->mesh->naxes;
  int64_t *begins = arena_new(g->m->arena, int64_t, n), *turn = arena_new(g->m->arena, int64_t, n);
  for (int a = 0; a < n; a++) {
    bool inner = g->inner >> a & 1, outer = g->outer >> a & 1;
    begins[a] = inner ? step : outer ? step * g->w : 0;
    turn[a] = inner ? s % g->w : outer ? s / g->w : 0;
  }
  ir_set_attr(g->m, op, ir_attr_v("begins", begins, n));
  if (s) ir_set_attr(g->m, op, ir_attr_v("turn", turn, n));
  if (base) ir_set_attr(g->m, op, ir_attr_i("base", base));
  return put(g, op->out[0]);
}

// The op at hand for the keys of step s; `before`: attention of the steps before it.
static ir_op *step(ring *g, ir_op *op, int64_t s, const ir_op *before) {
  int q = ir_queries(op);
  ir_value *k = parts_of(g, op->in[q + 1])->part[s], *v = parts_of(g, op->in[q + 2])->part[s];
  dist_count keys = {0};
  if (dist_asks_for(op, 3)) {
    int64_t rows = k->type.dim[k->type.rank - 2]->size;
    bool mirrored = ir_attr_int(op->in[q + 1]->def, "mirror", 0);
    keys.begin = place_at(g, s, mirrored ? rows / 2 : rows, 0);
    keys.edge = mirrored ? place_at(g, s, 0, rows / 2) : NULL;
    keys.gap = mirrored ? place_at(g, s, -rows, rows * (g->n - 1)) : NULL;
  }
  ir_op *now = ir_clone_op(g->r, op);
  for (int i = 0; i < op->nout; i++) op->out[i]->mapped = NULL;
  now->in[q + 1] = k;
  now->in[q + 2] = v;
  if (op->code == IR_attention_grad) {
    now->out[1]->type = k->type;
    now->out[2]->type = v->type;
    now->out[1]->type.dtype = now->out[2]->type.dtype = now->in[0]->type.dtype;
  }
  if (before) {
    ir_value **in = arena_new(g->m->arena, ir_value *, now->nin + 2);
    in[0] = before->out[0];
    in[1] = before->out[1];
    for (int i = 0; i < now->nin; i++) in[2 + i] = now->in[i];
    now->code = IR_attention_next;
    now->in = in;
    now->nin += 2;
  }
  if (keys.begin) dist_shift(g->m, now, &keys, 3);
  put(g, now->out[0]);
  return now;
}

static ir_value *added(ring *g, ir_value *a, ir_value *b) {
  ir_value *in[] = {a, b};
  ir_op *op = ir_op_raw(g->r, IR_add, in, 2, &a->type, 1);
  op->span = a->span;
  op->out[0]->name = a->name;
  return put(g, op->out[0]);
}

static void forward(ring *g, ir_op *op) {
  const ir_op *last = NULL;
  for (int64_t s = 0; s < g->n; s++) {
    ask_for_next(g, s, op->in[1], op->in[2]);
    last = step(g, op, s, last);
  }
  for (int k = 0; k < 2; k++) {
    last->out[k]->name = op->out[k]->name;
    ir_replace_uses(g->r, op->out[k], last->out[k]);
  }
}

static void backward(ring *g, ir_op *op) {
  ir_op *home[3] = {NULL, reader_of(g, op->out[1]), reader_of(g, op->out[2])};
  ir_value *dq = NULL, *own[3] = {NULL}, *sum[3] = {NULL};
  for (int64_t s = 0; s < g->n; s++) {
    ask_for_next(g, s, op->in[4], op->in[5]);
    ir_op *now = step(g, op, s, NULL);
    dq = dq ? added(g, dq, now->out[0]) : now->out[0];
    for (int k = 1; k < 3; k++) {
      if (!s) {
        own[k] = now->out[k];
        continue;
      }
      ir_value *mine = now->out[k];
      if (sum[k]) mine = added(g, sum[k], mine);
      bool round = (s + 1) % g->w == 0;
      sum[k] = hop(g, mine, g->inner | (round ? g->outer : 0), true);
    }
  }
  ir_replace_uses(g->r, op->out[0], dq);
  for (int k = 1; k < 3; k++) {
    ir_value *all = added(g, own[k], sum[k]);
    all->name = home[k]->out[0]->name;
    ir_replace_uses(g->r, home[k]->out[0], all);
    pass_take_out(g->r, pass_number_of(home[k]));
  }
}

static void stream_region(ring *g, ir_region *r) {
  g->r = r;
  g->made.n = 0;
  VEC(ir_op *) found = {0};
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code == IR_repeat) continue;
    int q = ir_queries(op);
    if (streams(g, op) && all_stream(g, op->in[q + 1]) && all_stream(g, op->in[q + 2]))
      vec_push(g->scratch, &found, op);
  }
  for (int i = 0; i < found.n; i++) {
    ir_op *op = found.at[i];
    g->at = pass_number_of(op);
    g->segment = op->segment;
    if (op->code == IR_attention)
      forward(g, op);
    else
      backward(g, op);
    pass_take_out(g->r, pass_number_of(op));
  }
}

const char *pass_ring(ir_module *m, const pass_options *o) {
  unsigned axes = o->distribution ? o->distribution->axes[BL_RING] : 0;
  if (!axes) return NULL;
  arena scratch;
  arena_init(&scratch);
  scratch.oom = m->arena->oom;
  scratch.oom_ctx = m->arena->oom_ctx;
  ring g = {.m = m, .scratch = &scratch, .all = axes, .n = mesh_parts(m->mesh, axes)};
  g.inner = axes & (axes - 1) ? axes & (axes - 1) : axes;  // the later of two lies inside
  g.outer = axes & ~g.inner;
  g.w = mesh_parts(m->mesh, g.inner);
  for (int f = 0; f < m->funcs.n; f++) {
    ir_region *top = m->funcs.at[f]->body;
    pass_clear_mapped(top);  // of earlier passes
    for (int i = 0; i < top->ops.n; i++)
      if (top->ops.at[i]->code == IR_repeat) stream_region(&g, top->ops.at[i]->region[0]);
    stream_region(&g, top);
  }
  arena_free(&scratch);
  return NULL;
}
