// What layers take on each stage: the block's seconds, and what ZeRO and homes move for them; which
// layers, weights and states a stage has. See evaluate_impl.h.
#include <math.h>
#include <string.h>

#include "passes/plan/evaluate_impl.h"

const ev_rates *ev_at_stage(const ev_point *p, int stage) {
  return &p->kind[p->places ? p->places->of[stage] : 0];
}

// Layers come in one kind of recomputation or in two, fast (0) and slow (1).
int ev_recomputes(const ev_point *p) { return p->second ? 2 : 1; }
const ev_rates *ev_of_layers(const ev_point *p, int stage, int slow) {
  return slow ? p->second : ev_at_stage(p, stage);
}

// ---- data ranks ---------------------------------------------------------------------------------

// A collective over ranks that hold the same weights: ring and ulysses ranks (`inner` of them) and
// `data` of the data ranks. Where stages lie between them it is done factor by factor.
static cl_cost over_ranks(const ev_point *p, const ev_rates *r, cl_collective k, int64_t inner,
                          int64_t data, double bytes) {
  const cl_cluster *cl = r->k.net;
  int64_t stride = p->stride[p->c->context_first ? PLAN_RING : PLAN_ULYSSES];
  if (p->stride[PLAN_DATA] == stride * inner || data == 1 || inner == 1)
    return cl_collective_cost(cl, k, inner == 1 ? p->stride[PLAN_DATA] : stride, inner * data,
                              bytes);
  cl_cost out = {.how = "by factors"};
  double part = bytes / (double)inner;
  cl_cost step[3] = {{0}};
  if (k != CL_ALL_GATHER) step[0] = cl_collective_cost(cl, CL_REDUCE_SCATTER, stride, inner, bytes);
  step[1] = cl_collective_cost(cl, k, p->stride[PLAN_DATA], data, part);
  if (k != CL_REDUCE_SCATTER) step[2] = cl_collective_cost(cl, CL_ALL_GATHER, stride, inner, bytes);
  for (int i = 0; i < 3; i++) {
    out.seconds += step[i].seconds;
    out.intra += step[i].intra;
    out.inter += step[i].inter;
  }
  return out;
}

// All ranks that hold the same weights.
int64_t ev_replicas(const plan_choice *c) {
  return c->size[PLAN_DATA] * c->size[PLAN_ULYSSES] * c->size[PLAN_RING];
}

// Over the ranks that share a state: all ring and ulysses ranks, the innermost ones of data.
cl_cost ev_over_group(const ev_point *p, const ev_rates *r, cl_collective k, double bytes) {
  int64_t inner = p->c->size[PLAN_ULYSSES] * p->c->size[PLAN_RING];
  int64_t group = p->c->zero ? p->c->zero_group : ev_replicas(p->c);
  return over_ranks(p, r, k, inner, group / inner, bytes);
}

// Over the groups: ranks that hold the same part of a state sum their parts of the gradients.
cl_cost ev_across_groups(const ev_point *p, const ev_rates *r, double gradient) {
  const plan_choice *c = p->c;
  int64_t inner = c->size[PLAN_ULYSSES] * c->size[PLAN_RING], data = c->zero_group / inner;
  return cl_collective_cost(r->k.net, CL_ALL_REDUCE, p->stride[PLAN_DATA] * data,
                            c->size[PLAN_DATA] / data, gradient / (double)c->zero_group);
}

double ev_partial_bytes(const bl_state *s) {
  double bytes = s->gradient - s->whole[1] - s->whole[2] - s->whole[3];
  return bytes > 0 ? bytes : 0;
}

cl_cost ev_over_others(const ev_point *p, const ev_rates *r, int whole, double bytes,
                       int64_t *ranks, plan_axis *axis) {
  const plan_choice *c = p->c;
  int64_t ulysses = whole & 1 ? 1 : c->size[PLAN_ULYSSES],
          ring = whole & 2 ? 1 : c->size[PLAN_RING];
  *ranks = c->size[PLAN_DATA] * ulysses * ring;
  *axis = *ranks == ulysses ? PLAN_ULYSSES : *ranks == ring ? PLAN_RING : PLAN_DATA;
  return over_ranks(p, r, CL_ALL_REDUCE, ulysses * ring, c->size[PLAN_DATA], bytes);
}

bool ev_has_groups(const plan_choice *c) { return c->zero && c->zero_group < ev_replicas(c); }

void ev_count(plan_bytes *b, plan_axis axis, cl_collective k, const cl_cost *cost, double times) {
  b->bytes[axis][k][0] += times * cost->intra;
  b->bytes[axis][k][1] += times * cost->inter;
  b->calls[axis][k] += (int64_t)llround(times);
}

// ---- layers -------------------------------------------------------------------------------------

// Weights that a layer of a piece reads, or a piece between layers.
bl_state ev_piece_state(const ev_point *p, const bl_block *b, int piece) {
  bl_state s = b->piece[piece].layer;
  if (b->g->piece.at[piece].empty) return s;  // between unlike layers, most are
  for (int w = 0; w < b->weight.n && !ev_is_layers(p, piece); w++)
    for (int k = 0; k < b->weight.at[w].npieces; k++)
      if (b->weight.at[w].piece[k] == piece) bl_state_add(&s, &b->weight.at[w].state, 1);
  return s;
}

// Seconds of a phase of one layer, with what ZeRO and homes move for it and the phase does not
// hide.
void ev_layer_seconds(const ev_point *p, ev_rates *r) {
  int zero = p->c->zero, n = r->b->npieces;
  bool away = hm_any_away(p->c);
  double *seconds = arena_new(p->a, double, 7 * n);
  r->forward = seconds;
  r->backward = seconds + n;
  r->weight = seconds + 2 * n;
  r->linked[PG_FORWARD] = seconds + 3 * n;
  r->linked[PG_BACKWARD] = seconds + 4 * n;
  r->shared[PG_FORWARD] = seconds + 5 * n;
  r->shared[PG_BACKWARD] = seconds + 6 * n;
  for (int i = 0; i < n; i++) {
    const bl_piece *q = &r->b->piece[i];
    double f = q->phase[PG_FORWARD].compute + ev_exposed(&q->phase[PG_FORWARD]);
    double b = q->phase[PG_BACKWARD].compute + ev_exposed(&q->phase[PG_BACKWARD]);
    double gather = 0, scatter = 0;
    bl_state own = zero >= 2 || away ? ev_piece_state(p, r->b, i) : q->layer;
    if (zero == 3 && own.parameter > 0)
      gather = ev_over_group(p, r, CL_ALL_GATHER, own.parameter).seconds;
    if (zero >= 2 && own.gradient > own.late)
      scatter = ev_over_group(p, r, CL_REDUCE_SCATTER, own.gradient - own.late).seconds;
    r->shared[PG_FORWARD][i] = gather;
    r->shared[PG_BACKWARD][i] = gather + scatter;
    r->forward[i] = fmax(f, gather);
    r->backward[i] = fmax(b, gather + scatter);
    r->weight[i] = q->phase[PG_BACKWARD].weight;
    bool moves = own.parameter > 0 || own.gradient > 0 || q->kept > 0;
    if (!away || !moves) continue;  // between unlike layers, most pieces are empty
    double *phase[2] = {&r->forward[i], &r->backward[i]};
    for (int k = 0; k < 2; k++) {
      hm_moves m = hm_phase(p->c, &own, q->kept, (pg_phase)k);
      double link = hm_seconds(&r->k.store, &m);
      if (link <= *phase[k]) continue;
      r->linked[k][i] = link - *phase[k];
      *phase[k] = link;
    }
  }
}

// The kinds of stages of a choice. `b`: of the only kind there is on a cluster of parts that are
// alike.
ev_point *ev_open_point(arena *a, plan_space *s, const plan_choice *c, const bl_block *b) {
  ev_point *p = arena_new(a, ev_point, 1);
  *p = (ev_point){.a = a, .s = s, .c = c, .g = b->g, .kinds = 1};
  sk_strides(c, p->stride);
  if (!s->cluster->alike) {
    p->places = sk_places_of(s, c);
    p->kinds = p->places->kinds;
  }
  p->kind = arena_new(a, ev_rates, p->kinds);
  for (int i = 0; i < p->kinds; i++) {
    ev_rates *r = &p->kind[i];
    r->k = p->places ? p->places->kind[i] : sk_alike(s);
    r->b = p->places ? sk_block_of(s, c, &r->k) : b;
  }
  return p;
}

ev_point *ev_start_point(arena *a, plan_space *s, const plan_choice *c, const bl_block *b) {
  ev_point *p = ev_open_point(a, s, c, b);
  for (int i = 0; i < p->kinds; i++) ev_layer_seconds(p, &p->kind[i]);
  return p;
}

void ev_find_layers(ev_point *p) {
  const pg_graph *g = p->g;
  for (int i = 0; i < g->piece.n; i++)
    if (ev_is_layers(p, i)) p->layers += g->piece.at[i].count;
  p->piece_of = arena_new(p->a, int, p->layers + 1);
  p->first_of = arena_new(p->a, int64_t, g->piece.n);
  int64_t n = 0;
  for (int i = 0; i < g->piece.n; i++) {
    p->first_of[i] = n;
    for (int64_t k = 0; ev_is_layers(p, i) && k < g->piece.at[i].count; k++) p->piece_of[n++] = i;
  }
}

// ---- states -------------------------------------------------------------------------------------

// Bytes of states of a rank's device.
double ev_on_device(const plan_choice *c, const bl_state *s) {
  const plan_class states[] = {PLAN_PARAMETERS, PLAN_GRADIENTS, PLAN_OPTIMIZER};
  hm_kept kept = hm_kept_of(c, s);
  double bytes = 0;
  for (int i = 0; i < 3; i++)
    if (c->home[states[i]] == PLAN_DEVICE) bytes += kept.bytes[states[i]];
  return bytes;
}

double ev_gradients_here(const plan_choice *c, const bl_state *s) {
  return hm_held_by(c, s).device[PLAN_GRADIENTS];
}

// How many layers of a piece lie in from .. to-1.
static int64_t layers_in(const ev_point *p, int64_t from, int64_t to, int piece) {
  int64_t first = p->first_of[piece], last = first + p->g->piece.at[piece].count;
  if (first > from) from = first;
  if (last < to) to = last;
  return to > from ? to - from : 0;
}

// The straight pieces of a part: those before its first layer that no earlier part has, and the
// last one behind the last layer.
bool ev_part_has(const ev_point *p, const stages_cut *cut, int part, int piece) {
  int64_t from = cut->first[part], to = cut->first[part + 1];
  if (ev_is_layers(p, piece)) return layers_in(p, from, to, piece) > 0;
  if (piece == 0) return part == 0;
  if (piece == p->g->piece.n - 1) return part == p->parts - 1;
  int64_t next = p->first_of[piece + 1];  // it stands in front of that layer
  return next >= from && next < to;
}

// How many layers of a piece a part has; of a piece between layers 1 or 0.
static double layers_of_part(const ev_point *p, const stages_cut *cut, int part, int piece) {
  if (!ev_is_layers(p, piece)) return ev_part_has(p, cut, part, piece);
  return (double)layers_in(p, cut->first[part], cut->first[part + 1], piece);
}

// The same of fast or of slow ones; pieces between layers are fast.
double ev_layers_of_kind(const ev_point *p, const stages_cut *cut, int part, int piece, int slow) {
  if (!p->second) return layers_of_part(p, cut, part, piece);
  if (!ev_is_layers(p, piece)) return slow ? 0 : ev_part_has(p, cut, part, piece);
  int64_t from = cut->first[part], to = cut->first[part + 1], mid = from + p->slow[part];
  return (double)(slow ? layers_in(p, from, mid, piece) : layers_in(p, mid, to, piece));
}

int ev_first_piece(const ev_point *p, const stages_cut *cut, int part) {
  int64_t from = cut->first[part];
  if (part == 0) return 0;
  if (from == p->layers) return p->g->piece.n - 1;
  return p->piece_of[from] > 0 ? p->piece_of[from] - 1 : 0;  // what stands before its first layer
}

int ev_end_piece(const ev_point *p, const stages_cut *cut, int part) {
  int64_t to = cut->first[part + 1];
  if (part == p->parts - 1) return p->g->piece.n;
  return to > 0 ? p->piece_of[to - 1] + 1 : 1;
}

void ev_find_weights(ev_point *p, const stages_cut *cut) {
  int n = (int)p->c->size[PLAN_PIPELINE];
  const bl_block *b = p->kind[0].b;
  p->has = arena_new(p->a, bool, n * b->weight.n);
  for (int w = 0; w < b->weight.n; w++)
    for (int part = 0; part < p->parts; part++)
      for (int i = 0; i < b->weight.at[w].npieces; i++)
        p->has[part % n * b->weight.n + w] |= ev_part_has(p, cut, part, b->weight.at[w].piece[i]);
}

bool ev_stage_has(const ev_point *p, int stage, int w) {
  return p->has[stage * p->kind[0].b->weight.n + w];
}

// Once a step, on a stage: sums of gradients over the axes inside it.
double ev_once_inside(const ev_point *p, const stages_cut *cut, int stage, int axis) {
  double seconds = 0;
  for (int part = stage; part < p->parts; part += (int)p->c->size[PLAN_PIPELINE])
    for (int i = ev_first_piece(p, cut, part); i < ev_end_piece(p, cut, part); i++)
      for (int k = 0; k < ev_recomputes(p); k++)
        seconds += ev_layers_of_kind(p, cut, part, i, k) *
                   ev_of_layers(p, stage, k)->b->piece[i].once[axis]->seconds;
  const bl_block *b = ev_at_stage(p, stage)->b;
  for (int w = 0; w < b->weight.n; w++) {
    const bl_sent *once = b->weight.at[w].once[axis];
    if (once && ev_stage_has(p, stage, w)) seconds += once->seconds;
  }
  return seconds;
}

// States of a stage: its layers', and each other weight once.
bl_state ev_stage_state(const ev_point *p, const stages_cut *cut, int stage) {
  bl_state s = {0};
  const bl_block *b = ev_at_stage(p, stage)->b;
  int n = (int)p->c->size[PLAN_PIPELINE];
  for (int part = stage; part < p->parts; part += n)
    for (int i = ev_first_piece(p, cut, part); i < ev_end_piece(p, cut, part); i++)
      if (ev_is_layers(p, i)) bl_state_add(&s, &b->piece[i].layer, layers_of_part(p, cut, part, i));
  for (int w = 0; w < b->weight.n; w++) {
    const bl_weight *x = &b->weight.at[w];
    if (!ev_stage_has(p, stage, w)) continue;
    bl_state_add(&s, &x->state, 1);
    // Only what this stage reads of it.
    for (int once = 0; once < 2; once++) {
      double bytes = 0;
      for (int part = stage; part < p->parts; part += n)
        for (int i = 0; i < x->npieces; i++)
          bytes += x->gathers[once][i] * layers_of_part(p, cut, part, x->piece[i]);
      s.gathered[once] += bytes - x->state.gathered[once];
    }
  }
  return s;
}

// The stages that have a weight which is no stack of layers: how many, and the first.
static int stages_with(const ev_point *p, int w, int *first) {
  int n = (int)p->c->size[PLAN_PIPELINE], count = 0;
  *first = n;
  for (int i = n - 1; i >= 0; i--)
    if (ev_stage_has(p, i, w)) count++, *first = i;
  return count;
}

// Gradients of weights that lie on several stages, this one among them, are summed. All stages
// reduce them; two send each other theirs; of more the first one gets those of the others and sends
// them the sum (passes/cut.c).
double ev_tied(const ev_point *p, int stage, plan_bytes *b) {
  const bl_block *own = ev_at_stage(p, stage)->b;
  int n = (int)p->c->size[PLAN_PIPELINE], first;
  double seconds = 0;
  if (n == 1) return 0;
  for (int w = 0; w < own->weight.n; w++) {
    double bytes = own->weight.at[w].state.gradient;
    int count = bytes > 0 && ev_stage_has(p, stage, w) ? stages_with(p, w, &first) : 0;
    if (count < 2) continue;
    if (count == n) {
      cl_cost all =
          cl_collective_cost(p->s->cluster, CL_ALL_REDUCE, p->stride[PLAN_PIPELINE], n, bytes);
      ev_count(b, PLAN_PIPELINE, CL_ALL_REDUCE, &all, 1);
      seconds += all.seconds;
      continue;
    }
    for (int i = first + 1; i < n; i++) {
      if (!ev_stage_has(p, i, w)) continue;
      int64_t apart = (i - first) * p->stride[PLAN_PIPELINE];
      cl_cost send = cl_collective_cost(p->s->cluster, CL_SEND, apart, 2, bytes);
      if (stage == first || stage == i) ev_count(b, PLAN_PIPELINE, CL_SEND, &send, 1);
      seconds += (count == 2 ? 1 : 2) * send.seconds;
    }
  }
  return seconds;
}
