// Reading a step. Three walks: pieces are found by the repeats of train_step; ops above repeats are
// given to pieces by where they stand between them; bodies are read with their arguments standing
// for the operands outside.
#include "passes/plan/graph.h"

#include <string.h>

#include "ir/view.h"
#include "passes/pass.h"

typedef struct reader {
  arena *a;
  ir_module *m;
  pg_graph *g;
  int *of;        // by value id: number of the pg_value, -1 before it has one
  map weight;     // name of a weight -> its pg_value + 1
  bool *forward;  // by value id: the loss follows from it
  int segment;    // of forward and backward
} reader;

int pg_leaf(const pg_value *v, int dim, const ir_index *x) {
  for (int i = 0; i < v->nleaf; i++)
    if (v->dim[i] == dim && v->leaf[i] == x) return i;
  return -1;
}

const char *pg_op_name(const pg_op *op) {
  static const char *const kinds[] = {"", "enter", "carry", "leave", "store", "update"};
  if (op->kind != PG_OP) return kinds[op->kind];
  const char *path = op->op->path;
  return path && *path ? path : ir_info(op->op->code)->name;
}

// ---- values -------------------------------------------------------------------------------------

// `skip`: leading dims that are layers.
static int new_value(reader *r, const ir_value *v, int skip, int layers) {
  pg_value p = {
      .v = v, .layers = layers, .elements = 1, .view_of = -1, .rank = v->type.rank - skip};
  ir_index *cut[IR_MAX_LEAVES];
  int at[IR_MAX_LEAVES];
  for (int d = skip; d < v->type.rank; d++) {
    ir_index *dim = ir_root(v->type.dim[d]), *leaf[IR_MAX_LEAVES];
    if (r->m->batch && dim == ir_root(r->m->batch)) {
      p.batch = true;
      continue;
    }
    p.elements *= (double)dim->size;
    int n = ir_index_leaves(dim, leaf, IR_MAX_LEAVES);
    for (int i = 0; i < n && p.nleaf < IR_MAX_LEAVES; i++) {
      if (leaf[i]->size == 1) continue;
      at[p.nleaf] = d - skip;
      cut[p.nleaf++] = ir_root(leaf[i]);
    }
  }
  p.leaf = arena_new(r->a, ir_index *, p.nleaf);
  p.dim = arena_new(r->a, int, p.nleaf);
  for (int i = 0; i < p.nleaf; i++) p.leaf[i] = cut[i], p.dim[i] = at[i];
  p.bytes = p.elements * ir_dtype_bytes(v->type.dtype);
  vec_push(r->a, &r->g->value, p);
  return r->g->value.n - 1;
}

static int value_of(reader *r, const ir_value *v) {
  if (r->of[v->id] < 0) r->of[v->id] = new_value(r, v, 0, 1);
  return r->of[v->id];
}

// A state: a weight and its rounded copy are one value, with the bytes of the copy.
static void read_state(reader *r, const ir_op *op) {
  const ir_state *s = ir_state_find(r->m, ir_attr_str(op, "name", ""));
  const ir_value *v = op->out[0];
  int skip = s && s->stacked, layers = skip ? (int)v->type.dim[0]->size : 1;
  const char *name = s && s->cls == STATE_COPY ? s->of : s ? s->name : "";
  const ir_state *of = ir_state_find(r->m, name);
  bool weight = of && of->cls == STATE_WEIGHT;
  int known = weight ? (int)(intptr_t)map_get(&r->weight, name) - 1 : -1;
  if (known < 0) {
    known = new_value(r, v, skip, layers);
    if (weight) {
      r->g->value.at[known].weight = of;
      map_set(&r->weight, name, (void *)(intptr_t)(known + 1));
    } else {
      r->g->value.at[known].free = true;
    }
  }
  pg_value *p = &r->g->value.at[known];
  double bytes = p->elements * ir_dtype_bytes(v->type.dtype);
  if (bytes < p->bytes) p->bytes = bytes;
  r->of[v->id] = known;
}

// ---- ops ----------------------------------------------------------------------------------------

static pg_op *add_op(reader *r, pg_kind kind, const ir_op *op, int piece, pg_phase phase,
                     int times) {
  vec_push(r->a, &r->g->op,
           (pg_op){.kind = kind, .op = op, .piece = piece, .phase = phase, .times = times});
  if (kind != PG_STORE) r->g->piece.at[piece].empty = false;
  return &vec_last(&r->g->op);
}

// enter, carry, leave, store, update: one value in, one out.
static void add_move(reader *r, pg_kind kind, int piece, pg_phase phase, int times, int in,
                     int out) {
  pg_op *p = add_op(r, kind, NULL, piece, phase, times);
  int *v = arena_new(r->a, int, 2);
  v[0] = in;
  v[1] = out;
  p->nin = p->nout = 1;
  p->in = v;
  p->out = v + 1;
}

// `times`: how often a micro-batch runs it, as many as a repeat has layers. `once`: once a step.
static void read_op(reader *r, const ir_op *op, int piece, pg_phase phase, int times, bool once) {
  if (op->code == IR_state) {
    read_state(r, op);
    return;
  }
  if (op->code == IR_const || op->code == IR_arg) return;
  if (op->code == IR_set || op->code == IR_output) return;
  int *in = arena_new(r->a, int, op->nin + 1), *out = arena_new(r->a, int, op->nout + 1);
  for (int i = 0; i < op->nin; i++) in[i] = op->in[i]->type.rank ? value_of(r, op->in[i]) : -1;
  for (int i = 0; i < op->nout; i++) {
    out[i] = op->out[i]->type.rank ? value_of(r, op->out[i]) : -1;
    if (out[i] >= 0 && !op->nin) r->g->value.at[out[i]].free = true;
  }
  if (!op->nin) return;  // an input, zeros: in any placement
  if (ir_is_view(op) && in[0] >= 0 && out[0] >= 0) {
    const pg_value *v = &r->g->value.at[in[0]];
    r->g->value.at[out[0]].view_of = v->weight ? in[0] : v->view_of;
    for (int i = 0; i < op->nout && phase == PG_BACKWARD; i++)
      if (out[i] >= 0) r->g->value.at[out[i]].ahead = r->g->value.at[in[0]].ahead;
  }
  pg_op *p = add_op(r, PG_OP, op, piece, phase, times);
  p->once = once;
  p->cost = pc_op_of(op);
  p->view = ir_is_view(op);
  p->nin = op->nin;
  p->nout = op->nout;
  p->in = in;
  p->out = out;
}

// A repeat: operands are carried, stacked, then invariant; results carried, then stacks.
static void read_repeat(reader *r, const ir_op *op, int piece, pg_phase phase) {
  ir_region *body = op->region[0];
  int count = (int)ir_attr_int(op, "count", 1), carried = (int)ir_attr_int(op, "carried", 0);
  int stacked = (int)ir_attr_int(op, "stacked", 0);
  int *state = arena_new(r->a, int, carried + 1);
  for (int i = 0; i < op->nin; i++) {
    const ir_value *arg = body->args.at[i + 1];
    if (i < carried) {
      state[i] = new_value(r, arg, 0, 1);
      r->g->value.at[state[i]].carried = true;
      r->of[arg->id] = state[i];
      if (op->in[i]->type.rank)
        add_move(r, PG_ENTER, piece, phase, 1, value_of(r, op->in[i]), state[i]);
    } else if (i < carried + stacked) {
      if (r->of[op->in[i]->id] < 0) r->of[op->in[i]->id] = new_value(r, op->in[i], 1, count);
      r->of[arg->id] = r->of[op->in[i]->id];
      pg_value *p = &r->g->value.at[r->of[arg->id]];
      if (p->batch && phase == PG_BACKWARD) p->saved = p->ahead = true;
    } else if (op->in[i]->type.rank) {
      r->of[arg->id] = value_of(r, op->in[i]);
    }
  }
  for (int i = 0; i < body->ops.n; i++) read_op(r, body->ops.at[i], piece, phase, count, false);
  for (int i = 0; i < op->nout; i++) {
    const ir_value *y = body->yield.at[i];
    if (!y->type.rank) continue;
    if (i < carried) {
      add_move(r, PG_CARRY, piece, phase, count, value_of(r, y), state[i]);
      add_move(r, PG_LEAVE, piece, phase, 1, state[i], value_of(r, op->out[i]));
    } else {
      int stack = new_value(r, op->out[i], 1, count);
      r->of[op->out[i]->id] = stack;
      add_move(r, PG_STORE, piece, phase, count, value_of(r, y), stack);
    }
  }
}

// ---- forward ------------------------------------------------------------------------------------

// Marks what the loss follows from.
static void mark_forward(reader *r, const ir_value *v) {
  if (r->forward[v->id]) return;
  r->forward[v->id] = true;
  if (!v->def) return;
  for (int i = 0; i < v->def->nin; i++) mark_forward(r, v->def->in[i]);
}

static bool is_forward(const reader *r, const ir_op *op) {
  for (int i = 0; i < op->nout; i++)
    if (r->forward[op->out[i]->id]) return true;
  return false;
}

static bool is_layers(const ir_op *op) {
  return op->code == IR_repeat && !ir_attr_int(op, "stream", 0);
}

static int new_piece(reader *r, const char *name, int64_t count) {
  vec_push(r->a, &r->g->piece, (pg_piece){.name = name, .count = count, .empty = true});
  return r->g->piece.n - 1;
}

// The gradients that the update of a weight reads: through the elementwise ops of the update's
// segment, back to what forward and backward made.
static void find_gradients(reader *r, const ir_value *v, int weight) {
  if (!v->def || v->def->segment <= r->segment) {
    int g = r->of[v->id];
    if (g < 0) return;
    r->g->value.at[g].gradient = true;
    const pg_value *w = &r->g->value.at[weight];
    int last = r->g->piece.n - 1;
    if (r->g->value.at[g].nleaf != w->nleaf) return;
    add_move(r, PG_UPDATE, last, PG_BACKWARD, w->layers, g, weight);
    vec_last(&r->g->op).once = true;
    return;
  }
  for (int i = 0; i < v->def->nin; i++)
    if (v->def->in[i]->type.rank) find_gradients(r, v->def->in[i], weight);
}

static void read_updates(reader *r, const ir_region *top) {
  for (int i = 0; i < top->ops.n; i++) {
    const ir_op *op = top->ops.at[i];
    if (op->segment <= r->segment || op->nin < 2) continue;
    const ir_op *state = op->in[0]->def;
    if (!state || state->code != IR_state) continue;
    int w = r->of[op->in[0]->id];
    if (w < 0) {
      read_state(r, state);
      w = r->of[op->in[0]->id];
    }
    if (!r->g->value.at[w].weight || !op->in[1]->type.rank) continue;
    find_gradients(r, op->in[1], w);
  }
}

// ---- what is the same for every plan ------------------------------------------------------------

static bool may_take(const ir_op *op, int j, int i) {
  return ir_is_elementwise(op) || ir_may_overwrite(op, j, i);
}

bool pg_takes_over(const pg_op *op, int j, int i) {
  int bit = j * op->nin + i;
  return bit < 64 ? op->over >> bit & 1 : may_take(op->op, j, i);
}

static void find_over(pg_op *p) {
  for (int j = 0; j < p->nout; j++)
    for (int i = 0; i < p->nin && j * p->nin + i < 64; i++)
      if (may_take(p->op, j, i)) p->over |= UINT64_C(1) << (j * p->nin + i);
}

// A weight is an argument of a body, or a state outside of bodies. The first op of a segment that
// reads it gathers it, and the others read the same whole (passes/zero.c).
static void find_gathers(pg_graph *g, pg_op *p, uint64_t *seen) {
  for (int j = 0; j < p->nin && j < 64; j++) {
    const ir_value *x = p->in[j] < 0 ? NULL : p->op->in[j];
    if (!x || !g->value.at[p->in[j]].weight) continue;
    uint64_t segment = UINT64_C(1) << (p->op->segment & 63);
    if (!(seen[x->id] & segment)) p->gathers |= UINT64_C(1) << j;
    seen[x->id] |= segment;
  }
}

static void find_masters(pg_graph *g, const pg_op *p) {
  for (int j = 0; j < p->nin; j++) {
    pg_value *w = p->in[j] < 0 ? NULL : &g->value.at[p->in[j]];
    if (w && w->weight && w->copy) w->master |= ir_dtype_bytes(p->op->in[j]->type.dtype) > w->copy;
  }
}

static void sort_ops(arena *a, arena *scratch, pg_graph *g) {
  int *first = arena_new(a, int, g->piece.n + 1), *by_piece = arena_new(a, int, g->op.n + 1);
  for (int i = 0; i < g->op.n; i++) first[g->op.at[i].piece + 1]++;
  for (int i = 0; i < g->piece.n; i++) first[i + 1] += first[i];
  int *next = arena_new(scratch, int, g->piece.n + 1);
  for (int i = 0; i < g->piece.n; i++) next[i] = first[i];
  for (int i = 0; i < g->op.n; i++) by_piece[next[g->op.at[i].piece]++] = i;
  g->first = first;
  g->by_piece = by_piece;
}

static void find_facts(arena *a, pg_graph *g) {
  arena scratch;
  arena_init(&scratch);
  uint64_t *seen = arena_new(&scratch, uint64_t, g->m->next_value + 1);  // segments, by bits
  for (int i = 0; i < g->op.n; i++) {
    pg_op *p = &g->op.at[i];
    for (int j = 0; j < p->nout; j++) p->weights |= p->out[j] >= 0 && !g->value.at[p->out[j]].batch;
    if (p->kind != PG_OP) continue;
    find_over(p);
    find_gathers(g, p, seen);
    find_masters(g, p);
  }
  sort_ops(a, &scratch, g);
  arena_free(&scratch);
}

// ---- all ----------------------------------------------------------------------------------------

// FLOPs as the field counts them: products and attention (full, whatever its mask closes).
static void count_model(reader *r) {
  for (int i = 0; i < r->m->states.n; i++)
    if (r->m->states.at[i]->cls == STATE_WEIGHT)
      r->g->parameters += (double)ir_elements(&r->m->states.at[i]->type);
  for (int i = 0; i < r->g->op.n; i++) {
    const pg_op *p = &r->g->op.at[i];
    if (p->kind != PG_OP || p->once || p->cost.kind == PC_OTHER) continue;
    double flops = p->times * p->cost.flops;
    r->g->hardware_flops += flops;
    if (!p->op->recompute) r->g->flops += flops;
  }
}

static void find_heads(arena *a, pg_graph *g) {
  for (int i = 0; i < g->op.n; i++) {
    const ir_op *op = g->op.at[i].op;
    if (g->op.at[i].kind != PG_OP || !ir_get_attr(op, "kv_heads")) continue;
    const pg_heads h = {ir_attr_int(op, "kv_heads", 1), ir_attr_int(op, "rep", 1)};
    int k = 0;
    while (k < g->heads.n && (g->heads.at[k].kv != h.kv || g->heads.at[k].rep != h.rep)) k++;
    if (k == g->heads.n) vec_push(a, &g->heads, h);
  }
}

// The states beside each weight.
static void find_states(reader *r) {
  for (int i = 0; i < r->m->states.n; i++) {
    const ir_state *s = r->m->states.at[i];
    int v = s->of ? (int)(intptr_t)map_get(&r->weight, s->of) - 1 : -1;
    if (v < 0) continue;
    if (s->cls == STATE_COPY) r->g->value.at[v].copy = ir_dtype_bytes(s->type.dtype);
    if (s->cls == STATE_OPTIMIZER) r->g->value.at[v].moments += ir_dtype_bytes(s->type.dtype);
  }
}

// Room for all values and ops: of 512 unlike layers they are many, and twice as many would be left
// behind. Moves and gradients come beside the ops of the text.
static void reserve(reader *r, const ir_region *top) {
  int values = 64, ops = 64;
  for (int i = 0; i < r->m->states.n; i++)
    if (r->m->states.at[i]->cls == STATE_WEIGHT) values++, ops++;
  for (int i = 0; i < top->ops.n; i++) {
    const ir_op *op = top->ops.at[i];
    if (op->segment > r->segment) continue;
    const ir_region *body = is_layers(op) ? op->region[0] : NULL;
    ops += 1 + (body ? op->nin + 2 * op->nout : 0);
    values += op->nout + (body ? op->nin : 0);
    for (int k = 0; body && k < body->ops.n; k++, ops++) values += body->ops.at[k]->nout;
  }
  vec_reserve(r->a, &r->g->value, values);
  vec_reserve(r->a, &r->g->op, ops);
}

pg_graph *pg_read(arena *a, ir_module *m) {
  ir_func *f = ir_func_find(m, "train_step");
  if (f) return pg_read_func(a, m, f);
  pg_graph *g = arena_new(a, pg_graph, 1);
  g->m = m;
  g->error = "there is no training step";
  return g;
}

pg_graph *pg_read_func(arena *a, ir_module *m, const ir_func *f) {
  pg_graph *g = arena_new(a, pg_graph, 1);
  g->m = m;
  reader r = {.a = a, .m = m, .g = g, .segment = -1, .weight = {.arena = a}};
  r.of = arena_new(a, int, m->next_value);
  r.forward = arena_new(a, bool, m->next_value);
  memset(r.of, -1, sizeof *r.of * (size_t)m->next_value);
  g->of = r.of;
  g->nof = m->next_value;
  ir_region *top = f->body;
  int loops = 0;
  for (int i = 0; i < top->ops.n; i++) {
    const ir_op *op = top->ops.at[i];
    if (op->code == IR_output &&
        (f->kind != ENTRY_TRAIN || str_eq(ir_attr_str(op, "name", ""), "loss")))
      mark_forward(&r, op->in[0]);
    if (op->segment % 2) r.segment = op->segment;  // the last loop over micro-batches
    loops += is_layers(op);
  }
  g->segment = r.segment;
  reserve(&r, top);
  // Pieces of the forward part, then the same ones backwards.
  int at = new_piece(&r, NULL, 1), forward = 0;
  int *stack = arena_new(a, int, loops + 1);
  for (int i = 0; i < top->ops.n; i++)
    if (is_layers(top->ops.at[i]) && is_forward(&r, top->ops.at[i])) {
      stack[forward++] = new_piece(&r, ir_attr_str(top->ops.at[i], "name", ""),
                                   ir_attr_int(top->ops.at[i], "count", 1));
      new_piece(&r, NULL, 1);
    }
  int back = forward;
  for (int i = 0; i < top->ops.n; i++) {
    const ir_op *op = top->ops.at[i];
    if (op->segment > r.segment) continue;
    if (op->segment % 2 && op->segment < r.segment) continue;  // counting valid targets
    bool fwd = is_forward(&r, op) || op->segment < r.segment;
    if (is_layers(op) && fwd) {
      read_repeat(&r, op, at + 1, PG_FORWARD);
      at += 2;
    } else if (is_layers(op)) {
      if (!back) {
        g->error = "a repeat of the backward pass has no forward one";
        return g;
      }
      at = stack[--back];
      read_repeat(&r, op, at, PG_BACKWARD);
      at--;
    } else {
      read_op(&r, op, at, fwd ? PG_FORWARD : PG_BACKWARD, 1, op->segment % 2 == 0);
    }
  }
  read_updates(&r, top);
  find_states(&r);
  pg_find_kernels(a, g);
  count_model(&r);
  find_heads(a, g);
  find_facts(a, g);
  return g;
}
