// The first step of a cut: repeats become one repeat for each part of their layers.
//
// needs: LOCAL in front of `epilogue`. keeps: values, but for the order in which sums over layers
// and over what a repeat carries are added. breaks: nothing. Leaves in op->mark of each repeat over
// layers the number of its part, plus 1.
//
// A layer index is known by its root. States with it are replaced by states of a range of layers
// (ir_state.range_of), and so are all values that have it: an op on them is cloned for each part. A
// sum over it becomes a sum of the parts' sums. What is carried from layer to layer goes from part
// to part, except a sum of which each micro-batch has a part (the gradient of what all layers
// read): every part starts it at 0, and the parts are added behind.

#include <string.h>

#include "ir/place.h"
#include "passes/cut.h"
#include "passes/pass.h"

typedef struct range {
  int part;
  int64_t lo, hi;  // layers of the repeat
  ir_index *index;
} range;

// The layers of one repeat, forward and backward.
typedef struct layer_set {
  ir_index *root;  // NULL: it stacks nothing
  int64_t first, count;
  int n;
  range *range;
} layer_set;

typedef struct cutter {
  ir_module *m;
  const cut_job *job;
  VEC(layer_set *) all;
  int micro;  // axis of the mesh, or -1
  // Of the function at hand, by value id: what it became, whole or in ranges.
  ir_value **now, ***piece;
  ir_region *r;
  const char *error;
} cutter;

bool cut_is_layers(const ir_op *op) {
  return op->code == IR_repeat && !ir_attr_int(op, "stream", 0);
}

bool *cut_forward(arena *a, const ir_func *f) {
  const ir_region *r = f->body;
  bool *on = arena_new(a, bool, r->ops.n + 1),
       *live = arena_new(a, bool, r->module->next_value + 1);
  for (int i = r->ops.n - 1; i >= 0; i--) {
    const ir_op *op = r->ops.at[i];
    on[i] = f->kind != ENTRY_TRAIN ||
            (op->code == IR_output && str_eq(ir_attr_str(op, "name", ""), "loss"));
    for (int k = 0; k < op->nout; k++) on[i] |= live[op->out[k]->id];
    for (int k = 0; k < op->nin && on[i]; k++) live[op->in[k]->id] = true;
  }
  return on;
}

static const ir_func *first_func(const ir_module *m) {
  for (int i = 0; i < m->funcs.n; i++)
    if (m->funcs.at[i]->kind == ENTRY_TRAIN) return m->funcs.at[i];
  for (int i = 0; i < m->funcs.n; i++)
    if (m->funcs.at[i]->kind == ENTRY_EVAL) return m->funcs.at[i];
  return NULL;
}

int64_t cut_layers(ir_module *m) {
  const ir_func *f = first_func(m);
  if (!f) return 0;
  bool *forward = cut_forward(m->arena, f);
  int64_t n = 0;
  for (int i = 0; i < f->body->ops.n; i++) {
    const ir_op *op = f->body->ops.at[i];
    if (forward[i] && cut_is_layers(op)) n += ir_attr_int(op, "count", 1);
  }
  return n;
}

int64_t *cut_evenly(arena *a, int64_t layers, int parts) {
  int64_t *first = arena_new(a, int64_t, parts + 1);
  for (int k = 0; k <= parts; k++) first[k] = layers * k / parts;
  return first;
}

static int parts_of(const cut_job *j) { return j->stages * (j->chunks ? j->chunks : 1); }

static const char *refuse(cutter *c, const ir_op *op, const char *why) {
  if (!c->error)
    c->error =
        arena_printf(c->m->arena, "%s:%d:%d: the layers cannot be cut into stages at `%s`: %s",
                     op->span.file ? op->span.file : "?", op->span.line, op->span.col,
                     ir_info(op->code)->name, why);
  return c->error;
}

// ---- which layers there are ---------------------------------------------------------------------

ir_index *cut_layer_index(const ir_op *op) {
  int carried = (int)ir_attr_int(op, "carried", 0), stacked = (int)ir_attr_int(op, "stacked", 0);
  if (stacked) return ir_root(op->in[carried]->type.dim[0]);
  return op->nout > carried ? ir_root(op->out[carried]->type.dim[0]) : NULL;
}

static layer_set *layers_of(const cutter *c, ir_index *root) {
  for (int i = 0; i < c->all.n && root; i++)
    if (c->all.at[i]->root == root) return c->all.at[i];
  return NULL;
}

// The layers `first` .. + count - 1 of the model, as the parts have them.
static layer_set *new_layers(cutter *c, ir_index *root, int64_t first, int64_t count) {
  arena *a = c->m->arena;
  layer_set *l = arena_new(a, layer_set, 1);
  *l = (layer_set){.root = root, .first = first, .count = count};
  l->range = arena_new(a, range, parts_of(c->job));
  for (int k = 0; k < parts_of(c->job); k++) {
    int64_t lo = c->job->first[k] - first, hi = c->job->first[k + 1] - first;
    if (lo < 0) lo = 0;
    if (hi > count) hi = count;
    if (hi > lo) l->range[l->n++] = (range){.part = k, .lo = lo, .hi = hi};
  }
  IR_CHECK(l->n > 0);
  for (int k = 0; k < l->n && l->n > 1 && root; k++)
    l->range[k].index = ir_index_new(c->m, root->name, l->range[k].hi - l->range[k].lo);
  vec_push(a, &c->all, l);
  return l;
}

// Gives every repeat of `f` its layers; out[i] of op number i.
static void find_layers(cutter *c, const ir_func *f, layer_set **out) {
  const ir_region *r = f->body;
  bool *forward = cut_forward(c->m->arena, f);
  layer_set **stack = arena_new(c->m->arena, layer_set *, r->ops.n + 1);
  int n = 0;
  int64_t at = 0;
  for (int i = 0; i < r->ops.n && !c->error; i++) {
    const ir_op *op = r->ops.at[i];
    if (!cut_is_layers(op)) continue;
    int64_t count = ir_attr_int(op, "count", 1);
    ir_index *root = cut_layer_index(op);
    layer_set *l = NULL;
    if (forward[i]) {
      l = layers_of(c, root);
      if (!l) l = new_layers(c, root, at, count);
      if (l->first != at || l->count != count) refuse(c, op, "two repeats go over the same layers");
      at += count;
      stack[n++] = l;
    } else if (n > 0) {
      l = stack[--n];
      if (l->count != count || (root && l->root && root != l->root))
        refuse(c, op, "it has other layers than the forward pass");
    } else {
      refuse(c, op, "a repeat of the backward pass has no forward one");
    }
    out[i] = l;
  }
}

// The layers that a value has a dimension of, when they are of several parts; else NULL.
static layer_set *layers_in(const cutter *c, const ir_value *v) {
  for (int d = 0; d < v->type.rank; d++) {
    layer_set *l = layers_of(c, ir_root(v->type.dim[d]));
    if (l && l->n > 1) return l;
  }
  return NULL;
}

static void retype(ir_type *t, const layer_set *l, int k) {
  for (int d = 0; d < t->rank; d++)
    if (ir_root(t->dim[d]) == l->root) t->dim[d] = l->range[k].index;
}

// ---- states -------------------------------------------------------------------------------------

static const char *piece_name(arena *a, const char *name, const range *g) {
  return arena_printf(a, "%s@%lld", name, (long long)g->lo);
}

static void cut_states(cutter *c) {
  ir_module *m = c->m;
  arena *a = m->arena;
  VEC(ir_state *) old = {0};
  for (int i = 0; i < m->states.n; i++) vec_push(a, &old, m->states.at[i]);
  m->states.n = 0;
  m->state_by_name = (map){.arena = a};
  for (int i = 0; i < old.n; i++) {
    const ir_state *s = old.at[i];
    layer_set *l = s->stacked ? layers_of(c, ir_root(s->type.dim[0])) : NULL;
    for (int k = 0; l && l->n > 1 && k < l->n; k++) {
      ir_state p = *s;
      const range *g = &l->range[k];
      p.range_of = s->name;
      p.name = piece_name(a, s->name, g);
      if (s->of) p.of = piece_name(a, s->of, g);
      p.first = s->first + (int)g->lo * s->step;
      retype(&p.type, l, k);
      if (p.nshares) retype(&p.whole, l, k);
      ir_state_add(m, p);
    }
    if (!l || l->n < 2) ir_state_add(m, *s);
  }
}

// ---- ops ----------------------------------------------------------------------------------------

static ir_value *whole(const cutter *c, const ir_value *v) { return c->now[v->id]; }

static ir_value *add(cutter *c, const ir_op *like, ir_value *a, ir_value *b) {
  ir_value *in[] = {a, b};
  ir_op *op = ir_op_raw(c->r, IR_add, in, 2, &a->type, 1);
  op->segment = like->segment;
  op->span = like->span;
  op->out[0]->place = a->place;
  return op->out[0];
}

static ir_op *clone(cutter *c, ir_op *op) {
  ir_op *now = ir_clone_op(c->r, op);
  now->segment = op->segment;
  for (int k = 0; k < op->nout; k++) op->out[k]->mapped = NULL;
  return now;
}

// Operand of an op on layers for range k.
static ir_value *operand(cutter *c, const ir_op *op, int i, int k) {
  const ir_value *v = op->in[i];
  ir_value *now = c->piece[v->id] ? c->piece[v->id][k] : whole(c, v);
  if (!now) refuse(c, op, "it needs all layers at once");
  return now ? now : op->in[i];
}

static bool sums_layers(const ir_op *op, const layer_set *l) {
  if (op->code != IR_sum) return false;
  const ir_attr *axes = ir_get_attr(op, "axes");
  for (int i = 0; i < axes->n; i++)
    if (ir_root(op->in[0]->type.dim[axes->v[i]]) == l->root) return true;
  return false;
}

// An op on values that have the layers: once for each range of them.
static void cut_layered(cutter *c, ir_op *op, const layer_set *l) {
  bool keeps = op->nout > 0, sums = sums_layers(op, l);
  for (int k = 0; k < op->nout; k++) keeps &= layers_in(c, op->out[k]) == l;
  for (int k = 0; k < op->nin; k++) {
    const layer_set *other = layers_in(c, op->in[k]);
    if (other && other != l) refuse(c, op, "it mixes layers of two repeats");
  }
  bool state = op->code == IR_state, set = op->code == IR_set;
  const ir_attr *dim = ir_get_attr(op, "dim");
  bool across = dim && op->nin && dim->i < op->in[0]->type.rank && op->code != IR_expand &&
                ir_root(op->in[0]->type.dim[dim->i]) == l->root;
  if ((!keeps && !sums && !set) || across || pass_draws(op))
    refuse(c, op, "it needs all layers at once");
  if (c->error) return;
  for (int k = 0; k < op->nout; k++)
    c->piece[op->out[k]->id] = arena_new(c->m->arena, ir_value *, l->n);
  ir_value *total = NULL;
  for (int k = 0; k < l->n; k++) {
    ir_op *now = clone(c, op);
    for (int i = 0; i < op->nin; i++) now->in[i] = operand(c, op, i, k);
    if (state || set) {
      const char *name = piece_name(c->m->arena, ir_attr_str(op, "name", ""), &l->range[k]);
      ir_set_attr(c->m, now, ir_attr_s("name", name));
    }
    for (int i = 0; i < op->nout; i++) {
      retype(&now->out[i]->type, l, k);
      c->piece[op->out[i]->id][k] = now->out[i];
    }
    if (sums) total = total ? add(c, op, total, now->out[0]) : now->out[0];
  }
  if (!sums) return;
  c->piece[op->out[0]->id] = NULL;
  c->now[op->out[0]->id] = total;
}

// The number of the layer, as a body of part of the layers sees it, begins at 0 again.
static void shift_layer(ir_module *m, ir_region *body, int64_t lo) {
  ir_value *layer = body->args.at[0];
  if (!lo) return;
  pass_count_uses(body);
  if (!layer->mark) return;
  ir_op *by = ir_op_raw(body, IR_const, NULL, 0, &layer->type, 1);
  ir_set_attr(m, by, ir_attr_f("value", (double)lo));
  ir_set_attr(m, by, ir_attr_s("dtype", ir_dtype_name(layer->type.dtype)));
  pass_move_last(body, 0);
  ir_value *in[] = {layer, by->out[0]};
  ir_op *sum = ir_op_raw(body, IR_add, in, 2, &layer->type, 1);
  pass_move_last(body, 1);
  ir_replace_uses(body, layer, sum->out[0]);
  sum->in[0] = layer;
}

bool cut_is_partial(const ir_value *v, int micro) {
  return micro >= 0 && place_on(v->place, micro) == ON_PARTIAL;
}

static bool partial(const cutter *c, const ir_value *v) { return cut_is_partial(v, c->micro); }

static void cut_repeat(cutter *c, ir_op *op, const layer_set *l) {
  ir_module *m = c->m;
  int carried = (int)ir_attr_int(op, "carried", 0), stacked = (int)ir_attr_int(op, "stacked", 0);
  bool reverse = ir_attr_int(op, "reverse", 0) != 0;
  ir_value **next = arena_new(m->arena, ir_value *, carried + 1);
  ir_value **sum = arena_new(m->arena, ir_value *, carried + 1);
  for (int i = carried; i < op->nout; i++)
    c->piece[op->out[i]->id] = arena_new(m->arena, ir_value *, l->n);
  for (int i = 0; i < carried; i++) next[i] = operand(c, op, i, 0);
  for (int t = 0; t < l->n && !c->error; t++) {
    int k = reverse ? l->n - 1 - t : t;
    const range *g = &l->range[k];
    ir_value **in = arena_new(m->arena, ir_value *, op->nin + 1);
    for (int i = 0; i < op->nin; i++) {
      bool slices = i >= carried && i < carried + stacked;
      if (slices && !c->piece[op->in[i]->id]) refuse(c, op, "what it reads is not cut by layer");
      if (!slices && c->piece[op->in[i]->id]) refuse(c, op, "its body needs all layers at once");
      if (c->error) return;
      in[i] = i < carried ? next[i] : operand(c, op, i, k);
      if (t == 0 || i >= carried || !partial(c, op->region[0]->args.at[1 + i])) continue;
      ir_op *zeros = ir_op_raw(c->r, IR_zeros, NULL, 0, &op->in[i]->type, 1);
      zeros->segment = op->segment;
      in[i] = zeros->out[0];
    }
    ir_op *now = clone(c, op);
    for (int i = 0; i < op->nin; i++) now->in[i] = in[i];
    ir_set_attr(m, now, ir_attr_i("count", g->hi - g->lo));
    int64_t first = ir_attr_int(op, "first", 0), step = ir_attr_int(op, "step", 1);
    ir_set_attr(m, now, ir_attr_i("first", first + g->lo * step));
    ir_set_attr(m, now, ir_attr_i("step", step));
    now->mark = g->part + 1;
    shift_layer(m, now->region[0], g->lo);
    for (int i = 0; i < op->nout; i++) {
      if (i >= carried) {
        retype(&now->out[i]->type, l, k);
        c->piece[op->out[i]->id][k] = now->out[i];
      } else {
        next[i] = now->out[i];
      }
    }
    for (int i = 0; i < carried; i++)
      if (partial(c, op->region[0]->args.at[1 + i]))
        sum[i] = sum[i] ? add(c, op, sum[i], next[i]) : next[i];
  }
  for (int i = 0; i < carried; i++) c->now[op->out[i]->id] = sum[i] ? sum[i] : next[i];
}

static void cut_func(cutter *c, ir_func *f) {
  ir_module *m = c->m;
  ir_region *r = c->r = f->body;
  int n = r->ops.n;
  layer_set **of = arena_new(m->arena, layer_set *, n + 1);
  find_layers(c, f, of);
  if (c->error) return;
  c->now = arena_new(m->arena, ir_value *, m->next_value + 1);
  c->piece = arena_new(m->arena, ir_value **, m->next_value + 1);
  ir_op **old = arena_new(m->arena, ir_op *, n + 1);
  if (n) memcpy(old, r->ops.at, sizeof *old * (size_t)n);
  r->ops.n = 0;
  for (int i = 0; i < n && !c->error; i++) {
    ir_op *op = old[i];
    op->mark = 0;
    layer_set *l = NULL;
    for (int k = 0; k < op->nin && !l; k++) l = layers_in(c, op->in[k]);
    for (int k = 0; k < op->nout && !l; k++) l = layers_in(c, op->out[k]);
    if (of[i] && of[i]->n > 1) {
      cut_repeat(c, op, of[i]);
    } else if (l) {
      cut_layered(c, op, l);
    } else {
      if (of[i]) op->mark = of[i]->range[0].part + 1;
      for (int k = 0; k < op->nin; k++) op->in[k] = operand(c, op, k, 0);
      vec_push(m->bodies, &r->ops, op);
      for (int k = 0; k < op->nout; k++) c->now[op->out[k]->id] = op->out[k];
    }
  }
}

const char *cut_repeats(ir_module *m, const cut_job *j) {
  cutter c = {.m = m, .job = j, .micro = m->mesh ? mesh_axis(m->mesh, "micro") : -1};
  int64_t n = cut_layers(m);
  IR_CHECK(j->stages >= 1 && j->first[0] == 0 && j->first[parts_of(j)] == n);
  int kept = 0;
  for (int i = 0; i < m->funcs.n; i++) {
    ir_func *f = m->funcs.at[i];
    if (f->kind == ENTRY_TRAIN || f->kind == ENTRY_EVAL) m->funcs.at[kept++] = f;
  }
  m->funcs.n = kept;
  // All functions read the same states, so all layers are known before states are cut.
  for (int i = 0; i < m->funcs.n && !c.error; i++)
    find_layers(&c, m->funcs.at[i],
                arena_new(m->arena, layer_set *, m->funcs.at[i]->body->ops.n + 1));
  if (c.error) return c.error;
  cut_states(&c);
  for (int i = 0; i < m->funcs.n && !c.error; i++) cut_func(&c, m->funcs.at[i]);
  return c.error;
}
