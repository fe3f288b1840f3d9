// What a plan takes: time by the longest path of its pipeline, memory by what lies on each stage.
//
// A stage's work on a micro-batch is the sum of its layers' blocks. Around the pipeline stand, once
// a step, the reduction of gradients (hidden behind the last backward but for its last layer), the
// optimizer and, with ZeRO, the gather of updated parameters. With ZeRO 3 the parameters of a layer
// are gathered before each phase of each micro-batch, while the layer before computes.
#include <math.h>
#include <string.h>

#include "passes/plan/homes.h"
#include "passes/plan/mixed.h"
#include "passes/plan/search.h"
#include "passes/plan/stage_kind.h"
#include "passes/plan/stages.h"

// A kind of stage, and seconds of a layer of each piece on it.
typedef struct rates {
  sk_kind k;
  const bl_block *b;
  double *forward, *backward, *weight;
  double *linked[2];  // of these, waited for from the host, by phase
} rates;

typedef struct point {
  arena *a;
  plan_space *s;
  const plan_choice *c;
  const pg_graph *g;
  int kinds;
  rates *kind;
  const sk_places *places;  // NULL: one kind
  rates *second;            // of layers recomputed as `also` says; NULL: there are none
  int64_t *slow;            // [parts] how many of its first layers are such
  int64_t stride[PLAN_AXES];
  int parts;  // stages * chunks
  int64_t layers;
  int *piece_of;      // of each layer
  int64_t *first_of;  // of each piece: its first layer
} point;

static const rates *at_stage(const point *p, int stage) {
  return &p->kind[p->places ? p->places->of[stage] : 0];
}

// Layers come in one kind of recomputation or in two, fast (0) and slow (1).
static int recomputes(const point *p) { return p->second ? 2 : 1; }
static const rates *of_layers(const point *p, int stage, int slow) {
  return slow ? p->second : at_stage(p, stage);
}

// ---- data ranks ---------------------------------------------------------------------------------

// A collective over ranks that hold the same weights: ring and ulysses ranks (`inner` of them) and
// `data` of the data ranks. Where stages lie between them it is done factor by factor.
static cl_cost over_ranks(const point *p, const rates *r, cl_collective k, int64_t inner,
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
static int64_t replicas(const plan_choice *c) {
  return c->size[PLAN_DATA] * c->size[PLAN_ULYSSES] * c->size[PLAN_RING];
}

// Over the ranks that share a state: all ring and ulysses ranks, the innermost ones of data.
static cl_cost over_group(const point *p, const rates *r, cl_collective k, double bytes) {
  int64_t inner = p->c->size[PLAN_ULYSSES] * p->c->size[PLAN_RING];
  int64_t group = p->c->zero ? p->c->zero_group : replicas(p->c);
  return over_ranks(p, r, k, inner, group / inner, bytes);
}

// Over the groups: ranks that hold the same part of a state sum their parts of the gradients.
static cl_cost across_groups(const point *p, const rates *r, double gradient) {
  const plan_choice *c = p->c;
  int64_t inner = c->size[PLAN_ULYSSES] * c->size[PLAN_RING], data = c->zero_group / inner;
  return cl_collective_cost(r->k.net, CL_ALL_REDUCE, p->stride[PLAN_DATA] * data,
                            c->size[PLAN_DATA] / data, gradient / (double)c->zero_group);
}
static bool has_groups(const plan_choice *c) { return c->zero && c->zero_group < replicas(c); }

static void count(plan_candidate *x, plan_axis axis, cl_collective k, const cl_cost *cost,
                  double times) {
  x->bytes.bytes[axis][k][0] += times * cost->intra;
  x->bytes.bytes[axis][k][1] += times * cost->inter;
  x->bytes.calls[axis][k] += (int64_t)llround(times);
}

// ---- layers -------------------------------------------------------------------------------------

static bool is_layers(const point *p, int piece) { return p->g->piece.at[piece].name != NULL; }

static double exposed(const bl_phase *f) {
  double s = 0;
  for (int x = 0; x < BL_INNER; x++) s += f->sent[x];
  return s;
}

// Weights that a layer of a piece reads, or a piece between layers.
static bl_state piece_state(const point *p, const bl_block *b, int piece) {
  bl_state s = b->piece[piece].layer;
  if (b->g->piece.at[piece].empty) return s;  // between unlike layers, most are
  for (int w = 0; w < b->weight.n && !is_layers(p, piece); w++)
    for (int k = 0; k < b->weight.at[w].npieces; k++)
      if (b->weight.at[w].piece[k] == piece) bl_state_add(&s, &b->weight.at[w].state, 1);
  return s;
}

// Seconds of a phase of one layer, with what ZeRO and homes move for it and the phase does not
// hide.
static void layer_seconds(const point *p, rates *r) {
  int zero = p->c->zero, n = r->b->npieces;
  bool away = hm_any_away(p->c);
  double *seconds = arena_new(p->a, double, 5 * n);
  r->forward = seconds;
  r->backward = seconds + n;
  r->weight = seconds + 2 * n;
  r->linked[PG_FORWARD] = seconds + 3 * n;
  r->linked[PG_BACKWARD] = seconds + 4 * n;
  for (int i = 0; i < n; i++) {
    const bl_piece *q = &r->b->piece[i];
    double f = q->phase[PG_FORWARD].compute + exposed(&q->phase[PG_FORWARD]);
    double b = q->phase[PG_BACKWARD].compute + exposed(&q->phase[PG_BACKWARD]);
    double gather = 0, scatter = 0;
    bl_state own = zero >= 2 || away ? piece_state(p, r->b, i) : q->layer;
    if (zero == 3) gather = over_group(p, r, CL_ALL_GATHER, own.parameter).seconds;
    if (zero >= 2) scatter = over_group(p, r, CL_REDUCE_SCATTER, own.gradient).seconds;
    double move = gather + scatter;
    r->forward[i] = f > gather ? f : gather;
    r->backward[i] = b > move ? b : move;
    r->weight[i] = q->phase[PG_BACKWARD].weight;
    if (!away) continue;
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

// The kinds of stages of a choice and what layers take on them. `b`: of the only kind there is on
// a cluster of parts that are alike.
static point *start_point(arena *a, plan_space *s, const plan_choice *c, const bl_block *b) {
  point *p = arena_new(a, point, 1);
  *p = (point){.a = a, .s = s, .c = c, .g = b->g, .kinds = 1};
  sk_strides(c, p->stride);
  if (!s->cluster->alike) {
    p->places = sk_places_of(s, c);
    p->kinds = p->places->kinds;
  }
  p->kind = arena_new(a, rates, p->kinds);
  for (int i = 0; i < p->kinds; i++) {
    rates *r = &p->kind[i];
    r->k = p->places ? p->places->kind[i] : sk_alike(s);
    r->b = p->places ? sk_block_of(s, c, &r->k) : b;
    layer_seconds(p, r);
  }
  return p;
}

static void find_layers(point *p) {
  const pg_graph *g = p->g;
  for (int i = 0; i < g->piece.n; i++)
    if (is_layers(p, i)) p->layers += g->piece.at[i].count;
  p->piece_of = arena_new(p->a, int, p->layers + 1);
  p->first_of = arena_new(p->a, int64_t, g->piece.n);
  int64_t n = 0;
  for (int i = 0; i < g->piece.n; i++) {
    p->first_of[i] = n;
    for (int64_t k = 0; is_layers(p, i) && k < g->piece.at[i].count; k++) p->piece_of[n++] = i;
  }
}

// ---- states -------------------------------------------------------------------------------------

// Bytes of states of a rank's device.
static double on_device(const plan_choice *c, const bl_state *s) {
  hm_held h = hm_held_by(c, s);
  return h.device[PLAN_PARAMETERS] + h.device[PLAN_GRADIENTS] + h.device[PLAN_OPTIMIZER];
}

// Saved bytes that stay on the device; of a piece or a stage.
static double saved_here(const plan_choice *c, double kept) {
  return c->home[PLAN_ACTIVATIONS] == PLAN_DEVICE ? kept : 0;
}

static double gradients_here(const plan_choice *c, const bl_state *s) {
  return hm_held_by(c, s).device[PLAN_GRADIENTS];
}

// How many layers of a piece lie in from .. to-1.
static int64_t layers_in(const point *p, int64_t from, int64_t to, int piece) {
  int64_t first = p->first_of[piece], last = first + p->g->piece.at[piece].count;
  if (first > from) from = first;
  if (last < to) to = last;
  return to > from ? to - from : 0;
}

// The straight pieces of a part: those before its first layer that no earlier part has, and the
// last one behind the last layer.
static bool part_has(const point *p, const stages_cut *cut, int part, int piece) {
  int64_t from = cut->first[part], to = cut->first[part + 1];
  if (is_layers(p, piece)) return layers_in(p, from, to, piece) > 0;
  if (piece == 0) return part == 0;
  if (piece == p->g->piece.n - 1) return part == p->parts - 1;
  int64_t next = p->first_of[piece + 1];  // it stands in front of that layer
  return next >= from && next < to;
}

// How many layers of a piece a part has; of a piece between layers 1 or 0.
static double layers_of_part(const point *p, const stages_cut *cut, int part, int piece) {
  if (!is_layers(p, piece)) return part_has(p, cut, part, piece);
  return (double)layers_in(p, cut->first[part], cut->first[part + 1], piece);
}

// The same of fast or of slow ones; pieces between layers are fast.
static double layers_of_kind(const point *p, const stages_cut *cut, int part, int piece, int slow) {
  if (!p->second) return layers_of_part(p, cut, part, piece);
  if (!is_layers(p, piece)) return slow ? 0 : part_has(p, cut, part, piece);
  int64_t from = cut->first[part], to = cut->first[part + 1], mid = from + p->slow[part];
  return (double)(slow ? layers_in(p, from, mid, piece) : layers_in(p, mid, to, piece));
}

// Once a step, on a stage: sums of gradients over the axes inside it.
static double once_inside(const point *p, const stages_cut *cut, int stage, int axis) {
  double seconds = 0;
  for (int part = stage; part < p->parts; part += (int)p->c->size[PLAN_PIPELINE])
    for (int i = 0; i < p->g->piece.n; i++)
      for (int k = 0; k < recomputes(p); k++)
        seconds += layers_of_kind(p, cut, part, i, k) *
                   of_layers(p, stage, k)->b->piece[i].once[axis].seconds;
  return seconds;
}

// States of a stage: its layers', and each other weight once.
static bl_state stage_state(const point *p, const stages_cut *cut, int stage) {
  bl_state s = {0};
  const bl_block *b = at_stage(p, stage)->b;
  int n = (int)p->c->size[PLAN_PIPELINE];
  for (int part = stage; part < p->parts; part += n)
    for (int i = 0; i < b->npieces; i++)
      if (is_layers(p, i)) bl_state_add(&s, &b->piece[i].layer, layers_of_part(p, cut, part, i));
  for (int w = 0; w < b->weight.n; w++) {
    const bl_weight *x = &b->weight.at[w];
    bool has = false;
    for (int part = stage; part < p->parts && !has; part += n)
      for (int i = 0; i < x->npieces && !has; i++) has = part_has(p, cut, part, x->piece[i]);
    if (has) bl_state_add(&s, &x->state, 1);
  }
  return s;
}

// Bytes of gradients of weights that lie on several stages, this one among them.
static double tied_bytes(const point *p, const stages_cut *cut, int stage, int *other) {
  double bytes = 0;
  const bl_block *b = at_stage(p, stage)->b;
  int n = (int)p->c->size[PLAN_PIPELINE];
  for (int w = 0; w < b->weight.n; w++) {
    const bl_weight *x = &b->weight.at[w];
    int first = -1, last = -1;
    bool here = false;
    for (int part = 0; part < p->parts; part++) {
      bool has = false;
      for (int i = 0; i < x->npieces && !has; i++) has = part_has(p, cut, part, x->piece[i]);
      if (!has) continue;
      int at = part % n;
      if (first < 0) first = at;
      last = at;
      here |= at == stage;
    }
    if (!here || first == last) continue;
    bytes += x->state.gradient;
    *other = first == stage ? last : first;
  }
  return bytes;
}

// ---- stages -------------------------------------------------------------------------------------

// What a layer's states and activations are for a bound on what a stage holds. With one micro-batch
// gradients come where activations go, so that not both of all layers are there at a time: the
// larger of the two is.
static void bound_bytes(const plan_choice *c, const bl_state *s, double saved, bool gradients,
                        double *state, double *kept) {
  *state = on_device(c, s);
  *kept = gradients ? 0 : saved_here(c, saved);
  if (c->micro_batches == 1 && !gradients) *state -= gradients_here(c, s);
}

// Whether there is one micro-batch, and gradients of all layers take more than their activations.
static bool more_gradients(const point *p) {
  if (p->c->micro_batches > 1) return false;
  double gradients = 0, kept = 0;
  for (int i = 0; i < p->g->piece.n; i++) {
    if (!is_layers(p, i)) continue;
    double n = (double)p->g->piece.at[i].count;
    gradients += n * gradients_here(p->c, &p->kind[0].b->piece[i].layer);
    kept += n * saved_here(p->c, p->kind[0].b->piece[i].kept);
  }
  return gradients > kept;
}

// Seconds of both phases of a layer, were everything on the device. Stages are cut by these: what
// lives away changes a cut only where memory does, so that with the room it had no such plan is
// faster than the one without (search.c looks at them where memory presses).
static double at_home(const point *p, const rates *r, int piece) {
  double seconds = r->forward[piece] + r->backward[piece];
  for (int k = 0; k < 2 && hm_any_away(p->c); k++) seconds -= r->linked[k][piece];
  return seconds;
}

// What a layer of the piece saves, or a piece between layers, of the kind that saves less.
static double least_kept(const point *p, const rates *r, int piece) {
  double kept = r->b->piece[piece].kept;
  return p->second && is_layers(p, piece) ? fmin(kept, p->second->b->piece[piece].kept) : kept;
}

// What layers and ends cost on a kind of stage. What it is said to hold here is no more than it
// will hold (the highest transient of one piece, not of all), so that `fits` is false only where no
// cut can fit. Returns how many runs of equal layers there are.
static int work_of(const point *p, const rates *r, stages_work *out) {
  const pg_graph *g = p->g;
  bool gradients = more_gradients(p);
  stages_run *run = arena_new(p->a, stages_run, 2 * g->piece.n + 2);
  int runs = 0;
  for (int i = 0; i < g->piece.n; i++) {
    const bl_piece *q = &r->b->piece[i];
    bl_state own = piece_state(p, r->b, i);
    stages_cost cost = {at_home(p, r, i), 0, 0};
    bound_bytes(p->c, &own, least_kept(p, r, i), gradients, &cost.state, &cost.kept);
    if (!is_layers(p, i)) {
      bool one = p->c->micro_batches == 1;
      double f = one ? q->phase[PG_FORWARD].transient_one : q->phase[PG_FORWARD].transient;
      double b = one ? q->phase[PG_BACKWARD].transient_one : q->phase[PG_BACKWARD].transient;
      if (i == 0) out->first = cost;
      if (i == g->piece.n - 1) out->last = cost;
      // Its end is at work when all is kept.
      if (i == g->piece.n - 1 && !gradients) out->last.state += f > b ? f : b;
      continue;
    }
    int64_t n = g->piece.at[i].count;
    if (i > 1 && !g->piece.at[i - 1].empty) {  // what stands before it goes with its first layer
      const bl_piece *m = &r->b->piece[i - 1];
      stages_cost both = cost;
      both.seconds += at_home(p, r, i - 1);
      if (!gradients) both.kept += saved_here(p->c, m->kept);
      run[runs++] = (stages_run){both, 1};
      n--;
    }
    if (n) run[runs++] = (stages_run){cost, n};
  }
  out->run = run;
  return runs;
}

// Chunks of stages that are alike have as many layers as they can have alike, whatever memory says:
// where they do not divide, the last stage, which has the head, is the first to have one less, then
// the first one, then those before the last.
static bool even_chunks(const point *p) {
  return p->parts == 1 || (p->c->interleave > 1 && p->kinds == 1);
}

static int64_t even_layers(const point *p, int stage) {
  int64_t n = p->c->size[PLAN_PIPELINE], most = (p->layers + n - 1) / n;
  int64_t less = most * n - p->layers;  // stages that have one less
  int64_t turn = stage == n - 1 ? 0 : stage == 0 ? 1 : n - stage;
  return turn < less ? most - 1 : most;
}

// Micro-batches that the chunk of a stage holds which holds fewest. each: room for all chunks.
static int64_t least_stash(const pipeline *line, int stage, int64_t *each) {
  pipe_stash(NULL, line, stage, each);
  int64_t least = each[0];
  for (int c = 1; c < line->chunks; c++)
    if (each[c] < least) least = each[c];
  return least;
}

// `*pressed`: with more memory it would be another cut.
static stages_cut cut_stages(point *p, const pipeline *line, bool only_fitting, bool *pressed) {
  int n = line->stages, v = line->chunks;
  if (even_chunks(p)) {
    stages_cut even = {.fits = true, .first = arena_new(p->a, int64_t, n + 1)};
    for (int i = 0; i < n; i++) even.first[i + 1] = even.first[i] + even_layers(p, i);
    even.first = stages_deal(p->a, &even, n, v);
    return even;
  }
  stages_work *work = arena_new(p->a, stages_work, p->kinds);
  stages_job job = {.work = work,
                    .kinds = p->kinds,
                    .kind = p->places ? p->places->of : NULL,
                    .stages = n,
                    .micro = p->kinds > 1 ? (double)p->c->micro_batches : 0,
                    .only_fitting = only_fitting};
  for (int k = 0; k < p->kinds; k++) job.runs = work_of(p, &p->kind[k], &work[k]);
  double *stash = arena_new(p->a, double, n), *room = arena_new(p->a, double, n);
  int64_t *each = arena_new(p->a, int64_t, v);
  for (int i = 0; i < n; i++) {
    stash[i] = (double)least_stash(line, i, each);
    room[i] = (double)at_stage(p, i)->k.capacity;
  }
  job.stash = stash;
  stages_cut cut = stages_find(p->a, &job);
  for (int i = 0; i < n; i++) *pressed |= cut.bytes[i] > room[i];
  job.capacity = room;
  if (*pressed) cut = stages_find(p->a, &job);
  if (v > 1 && (cut.fits || !only_fitting)) cut.first = stages_deal(p->a, &cut, n, v);
  return cut;
}

static int64_t device_of(const point *p, int stage) { return stage * p->stride[PLAN_PIPELINE]; }

static void fill_chunks(point *p, const stages_cut *cut, pipe_chunk *chunk, plan_candidate *x) {
  int n = (int)p->c->size[PLAN_PIPELINE], v = (int)p->c->interleave;
  double m = (double)p->c->micro_batches;
  cl_cost *sent = arena_new(p->a, cl_cost, n);
  double *messages = arena_new(p->a, double, n);
  for (int part = 0; part < p->parts; part++) {
    pipe_chunk *c = &chunk[(part % n) * v + part / n];
    for (int i = 0; i < p->g->piece.n; i++)
      for (int k = 0; k < recomputes(p); k++) {
        const rates *r = of_layers(p, part % n, k);
        double times = layers_of_kind(p, cut, part, i, k);
        c->forward += times * r->forward[i];
        c->backward += times * r->backward[i];
        c->weight += times * r->weight[i];
      }
    if (c->weight > c->backward) c->weight = c->backward;
    if (part + 1 == p->parts || n == 1) continue;
    int64_t next = cut->first[part + 1];
    int piece = next < p->layers ? p->piece_of[next] : p->g->piece.n - 2;
    double bytes = at_stage(p, (part + 1) % n)->b->piece[piece < 0 ? 0 : piece].boundary;
    int64_t sender = p->places ? p->places->from[part % n] : device_of(p, part % n);
    int64_t receiver = p->places ? p->places->to[part % n] : device_of(p, (part + 1) % n);
    cl_cost send = cl_send_cost(p->s->cluster, sender, receiver, bytes);
    c->send = send.seconds;
    pipe_chunk *after = &chunk[((part + 1) % n) * v + (part + 1) / n];
    after->send_back = send.seconds;
    // The activation goes from this stage, its gradient from the next one.
    int to = (part + 1) % n, from = part % n;
    sent[from].intra += m * send.intra, sent[to].intra += m * send.intra;
    sent[from].inter += m * send.inter, sent[to].inter += m * send.inter;
    messages[from] += m, messages[to] += m;
  }
  int most = 0;
  for (int i = 1; i < n; i++)
    if (sent[i].intra + sent[i].inter > sent[most].intra + sent[most].inter) most = i;
  if (n == 1) return;
  x->bytes.bytes[PLAN_PIPELINE][CL_SEND][0] = sent[most].intra;
  x->bytes.bytes[PLAN_PIPELINE][CL_SEND][1] = sent[most].inter;
  x->bytes.calls[PLAN_PIPELINE][CL_SEND] = llround(messages[most]);
}

// ---- once a step --------------------------------------------------------------------------------

static double optimizer_seconds(const point *p, const rates *r, const bl_state *s,
                                double *offload) {
  const plan_choice *c = p->c;
  double g = c->zero >= 1 ? (double)c->zero_group : 1;
  double master = s->master > 0 ? s->master : s->parameter;
  double rounded = s->master > 0 ? s->parameter : 0;
  // Read and written: weights, m, v; read: gradients, twice (their norm); written: rounded copies.
  double bytes = (2 * master + 2 * s->optimizer + 2 * s->gradient + rounded) / g;
  if (!hm_any_away(c)) return bytes / r->k.bandwidth;
  hm_moves m = hm_once(c, s);
  *offload = hm_seconds_in_turn(&r->k.store, &m);
  if (c->home[PLAN_OPTIMIZER] == PLAN_DEVICE) return bytes / r->k.bandwidth;
  // The host updates at the speed of its memory, which all devices of the node share as they share
  // the way to it.
  return hm_update_seconds(&r->k.store, &m, bytes);
}

typedef struct once {
  double reduce, hidden;  // seconds of the gradients' reduction, and what of it is hidden
  double gather;          // updated parameters
  double tied, optimizer, offload;
  double inside;  // sums over the axes inside the stage
} once;

static once once_of(const point *p, const bl_state *s, const stages_cut *cut, int stage,
                    const pipe_chunk *chunk, plan_candidate *x, bool counted) {
  const plan_choice *c = p->c;
  once o = {0};
  const rates *r = at_stage(p, stage);
  o.optimizer = optimizer_seconds(p, r, s, &o.offload);
  for (int a = 0; a < BL_INNER; a++) o.inside += once_inside(p, cut, stage, a);
  double layers = 0;
  int n = (int)c->size[PLAN_PIPELINE], v = (int)c->interleave;
  for (int part = stage; part < p->parts; part += n)
    layers += (double)(cut->first[part + 1] - cut->first[part]);
  if (replicas(c) > 1) {
    cl_collective k = c->zero == 0 ? CL_ALL_REDUCE : CL_REDUCE_SCATTER;
    cl_cost cost = over_group(p, r, k, s->gradient);
    if (counted) count(x, PLAN_DATA, k, &cost, c->zero >= 2 ? (double)c->micro_batches : 1);
    if (c->zero < 2) o.reduce = cost.seconds;
    if (has_groups(c)) {
      cost = across_groups(p, r, s->gradient);
      if (counted) count(x, PLAN_DATA, CL_ALL_REDUCE, &cost, 1);
      o.reduce += cost.seconds;
    }
    if (o.reduce > 0) {
      // Gradients of a layer go while the layers before it compute: the last backward hides all but
      // the last layer's.
      double window = 0;
      for (int i = 0; i < v; i++) window += chunk[stage * v + i].backward;
      double last = layers > 1 ? 1 / layers : 1;
      window *= 1 - last;
      double most = o.reduce * (1 - last);
      o.hidden = most < window ? most : window;
    }
    if (c->zero == 1 || c->zero == 2) {
      cost = over_group(p, r, CL_ALL_GATHER, s->parameter);
      o.gather = cost.seconds;
      if (counted) count(x, PLAN_DATA, CL_ALL_GATHER, &cost, 1);
    }
    if (c->zero == 3 && counted) {
      cost = over_group(p, r, CL_ALL_GATHER, s->parameter);
      count(x, PLAN_DATA, CL_ALL_GATHER, &cost, 2 * (double)c->micro_batches);
    }
  }
  int other = stage;
  double tied = tied_bytes(p, cut, stage, &other);
  if (tied > 0) {
    int64_t apart = device_of(p, other) - device_of(p, stage);
    cl_cost cost =
        cl_collective_cost(p->s->cluster, CL_ALL_REDUCE, apart < 0 ? -apart : apart, 2, tied);
    o.tied = cost.seconds;
    if (counted) count(x, PLAN_PIPELINE, CL_ALL_REDUCE, &cost, 1);
  }
  return o;
}

// ---- memory -------------------------------------------------------------------------------------

// A stage at its fullest.
typedef struct moment {
  double kept, gradients, work;
  const char *at;
} moment;

static void fuller(moment *most, double kept, double gradients, const bl_phase *f, bool one) {
  double work = one ? f->transient_one : f->transient;
  if (most->at && kept + gradients + work <= most->kept + most->gradients + most->work) return;
  *most = (moment){kept, gradients, work, f->transient_at ? f->transient_at : ""};
}

// Of weights that are no stacks of layers: the piece of a stage whose backward makes the gradient.
static int made_at(const point *p, const stages_cut *cut, int part, const bl_weight *w) {
  int last = -1;
  for (int i = 0; i < w->npieces; i++)
    if (w->piece[i] > last && part_has(p, cut, part, w->piece[i])) last = w->piece[i];
  return last;
}

// Without chunks a stage goes through its pieces forward, keeping more and more, and back. Beside
// the micro-batch that is worked on lie those in flight. Gradients of earlier micro-batches are
// there from the beginning; with one micro-batch those of a layer come where its activations were
// (frames, passes/layout_loops.c), so the fullest moment is the first or the last layer of a piece.
static moment fullest(const point *p, const stages_cut *cut, int stage, double in_flight,
                      double all_gradients) {
  const bl_block *b = at_stage(p, stage)->b;
  bool one = p->c->micro_batches == 1;
  moment most = {0};
  double kept = 0, later = 0, all = 0;
  int n = recomputes(p), runs = n * b->npieces;  // slow layers of a piece come before fast ones
  for (int r = 0; r < runs; r++) {
    int i = r / n, slow = n - 1 - r % n;
    all += layers_of_kind(p, cut, stage, i, slow) *
           saved_here(p->c, of_layers(p, stage, slow)->b->piece[i].kept);
  }
  double others = (in_flight - 1) * all;
  for (int r = 0; r < runs; r++) {
    int i = r / n, slow = n - 1 - r % n;
    double count = layers_of_kind(p, cut, stage, i, slow);
    if (count <= 0) continue;
    const bl_piece *q = &of_layers(p, stage, slow)->b->piece[i];
    kept += count * saved_here(p->c, q->kept);
    fuller(&most, others + kept, one ? 0 : all_gradients, &q->phase[PG_FORWARD], one);
  }
  for (int r = runs - 1; r >= 0; r--) {
    int i = r / n, slow = n - 1 - r % n;
    double count = layers_of_kind(p, cut, stage, i, slow);
    if (count <= 0) continue;
    const bl_piece *q = &of_layers(p, stage, slow)->b->piece[i];
    const bl_phase *f = &q->phase[PG_BACKWARD];
    double own = gradients_here(p->c, &q->layer);
    double each = saved_here(p->c, q->kept), before = kept - count * each;
    // What a piece between layers kept dies on the way through it.
    fuller(&most, others + (is_layers(p, i) ? kept : before),
           one ? later + (is_layers(p, i) ? own : 0) : all_gradients, f, one);
    if (one && is_layers(p, i)) {
      later += count * own;
      fuller(&most, others + before + each, later, f, one);
    }
    bool done = slow || n == 1 || layers_of_kind(p, cut, stage, i, 1) <= 0;  // with the piece
    for (int w = 0; w < b->weight.n && one && done; w++)
      if (made_at(p, cut, stage, &b->weight.at[w]) == i)
        later += gradients_here(p->c, &b->weight.at[w].state);
    kept = before;
  }
  static const bl_phase end = {.transient_at = "update"};
  if (one) fuller(&most, others, later, &end, one);
  return most;
}

static void stage_memory(const point *p, const stages_cut *cut, int stage, const pipeline *line,
                         const bl_state *s, plan_stage *out) {
  const plan_choice *c = p->c;
  int n = (int)c->size[PLAN_PIPELINE], v = (int)c->interleave;
  double *kept = arena_new(p->a, double, v), layer = 0;
  double unit[PLAN_CLASSES] = {0};  // the most that one layer, or piece between layers, has
  hm_held h = hm_held_by(c, s);
  moment most = {.gradients = h.device[PLAN_GRADIENTS], .at = ""};
  for (int part = stage; part < p->parts; part += n)
    for (int r = 0; r < p->g->piece.n * recomputes(p); r++) {
      int i = r / recomputes(p), slow = r % recomputes(p);
      double layers = layers_of_kind(p, cut, part, i, slow);
      if (layers <= 0) continue;
      const bl_piece *q = &of_layers(p, stage, slow)->b->piece[i];
      kept[part / n] += layers * q->kept;
      double moved =
          (c->zero >= 3 ? 2 * q->layer.parameter : 0) + (c->zero >= 2 ? q->layer.gradient : 0);
      if (moved > layer) layer = moved;
      if (hm_any_away(c)) {
        bl_state own = piece_state(p, at_stage(p, stage)->b, i);
        hm_kept k = hm_kept_of(c, &own);
        k.bytes[PLAN_ACTIVATIONS] = q->kept;
        for (int j = 0; j < PLAN_CLASSES; j++)
          if (k.bytes[j] > unit[j]) unit[j] = k.bytes[j];
      }
      for (int f = 0; f < 2; f++)
        if (q->phase[f].transient > most.work) {
          most.work = q->phase[f].transient;
          most.at = q->phase[f].transient_at;
        }
    }
  out->stash = pipe_stash(p->a, line, stage, NULL);
  hm_kept full = hm_kept_of(c, s);
  double saved = pipe_stash_bytes(p->a, line, stage, kept);
  if (v == 1)
    most = fullest(p, cut, stage, (double)out->stash, h.device[PLAN_GRADIENTS]);
  else
    most.kept = saved_here(c, saved);
  h.device[PLAN_GRADIENTS] = most.gradients;
  h.device[PLAN_ACTIVATIONS] = most.kept;
  full.bytes[PLAN_ACTIVATIONS] = saved;
  if (c->home[PLAN_ACTIVATIONS] == PLAN_HOST) h.host += saved;
  for (int k = 0; k < PLAN_CLASSES; k++) {
    if (k == PLAN_OPTIMIZER || c->home[k] == PLAN_DEVICE) continue;
    double ring = 2 * unit[k] < full.bytes[k] ? 2 * unit[k] : full.bytes[k];
    h.device[k] = ring;
    if (c->home[k] == PLAN_DISK) h.host += ring;  // and on the way to it
  }
  out->memory[PLAN_M_PARAMETERS] = llround(h.device[PLAN_PARAMETERS]);
  out->memory[PLAN_M_GRADIENTS] = llround(h.device[PLAN_GRADIENTS]);
  out->memory[PLAN_M_OPTIMIZER] = llround(h.device[PLAN_OPTIMIZER]);
  out->memory[PLAN_M_ACTIVATIONS] = llround(h.device[PLAN_ACTIVATIONS]);
  out->memory[PLAN_M_WORKSPACE] = llround(most.work + layer);
  out->host = llround(h.host);
  out->disk = llround(h.disk);
  for (int i = 0; i < PLAN_MEMORIES; i++) out->peak += out->memory[i];
  out->peak_at = arena_printf(p->a, "%s with %lld micro-batch%s in flight", most.at,
                              (long long)out->stash, out->stash == 1 ? "" : "es");
  out->parameters = s->logical;
}

// The first `slow` layers of a stage, chunk by chunk, are of the second kind.
static void set_slow(point *p, const stages_cut *cut, int stage, int64_t slow) {
  for (int part = stage; part < p->parts; part += (int)p->c->size[PLAN_PIPELINE]) {
    int64_t layers = cut->first[part + 1] - cut->first[part];
    p->slow[part] = slow < layers ? slow : layers;
    slow -= p->slow[part];
  }
}

// As few layers of the second kind on each stage as let it fit, all when none do: its peak falls
// with their number, but for the workspace of the first one.
static void find_slow(point *p, const stages_cut *cut, const pipeline *line, int64_t capacity) {
  int n = (int)p->c->size[PLAN_PIPELINE];
  for (int stage = 0; stage < n; stage++) {
    bl_state state = stage_state(p, cut, stage);
    int64_t low = 0, high = 0, tried = 0;
    for (int part = stage; part < p->parts; part += n)
      high += cut->first[part + 1] - cut->first[part];
    while (low < high) {
      set_slow(p, cut, stage, tried);
      plan_stage with = {0};
      stage_memory(p, cut, stage, line, &state, &with);
      if (with.peak <= capacity)
        high = tried;
      else
        low = tried + 1;
      tried = (low + high) / 2;
    }
    set_slow(p, cut, stage, high);
  }
}

// The runs of layers that are recomputed alike, in order.
static void list_layers(const point *p, const stages_cut *cut, plan_candidate *x) {
  x->layers = arena_new(p->a, plan_layers, 2 * p->parts);
  for (int half = 0; half < 2 * p->parts; half++) {
    int part = half / 2;
    int64_t from = cut->first[part], to = cut->first[part + 1];
    int64_t mid = p->second ? from + p->slow[part] : from;
    plan_recompute kind = half % 2 ? p->c->recompute : p->c->also;
    if (half % 2)
      from = mid;
    else
      to = mid;
    plan_layers *last = x->nlayers ? &x->layers[x->nlayers - 1] : NULL;
    if (from >= to) continue;
    if (last && last->recompute == kind)
      last->last = to - 1;
    else
      x->layers[x->nlayers++] = (plan_layers){from, to - 1, kind};
  }
}

static void name_stage(const point *p, const stages_cut *cut, int stage, plan_stage *out) {
  int n = (int)p->c->size[PLAN_PIPELINE];
  out->first_layer = cut->first[stage];
  out->last_layer = cut->first[stage + 1] - 1;
  for (int part = stage; part < p->parts; part += n) {
    out->last_layer = cut->first[part + 1] - 1;
    out->layers += cut->first[part + 1] - cut->first[part];
  }
  bool first = stage == 0, last = stage == n - 1;
  out->extra = first && last ? "embed+head" : first ? "embed" : last ? "head" : NULL;
}

// ---- before the work ----------------------------------------------------------------------------

// The least of two states in everything.
static bl_state least_state(const bl_state *x, const bl_state *y) {
  return (bl_state){fmin(x->elements, y->elements),   fmin(x->logical, y->logical),
                    fmin(x->parameter, y->parameter), fmin(x->master, y->master),
                    fmin(x->optimizer, y->optimizer), fmin(x->gradient, y->gradient)};
}

// Seconds of a micro-batch over all stages, were they all of the first kind; states of all layers
// and of all other weights together, at least.
static double totals(const point *p, bl_state *layers, bl_state *others) {
  double work = 0;
  const rates *r = &p->kind[0];
  for (int i = 0; i < p->g->piece.n; i++) {
    double n = (double)p->g->piece.at[i].count;
    work += n * (r->forward[i] + r->backward[i]);
    bl_state least = r->b->piece[i].layer;
    for (int k = 1; k < p->kinds; k++) least = least_state(&least, &p->kind[k].b->piece[i].layer);
    bl_state_add(layers, &least, n);
  }
  for (int w = 0; w < r->b->weight.n; w++) {
    bl_state least = r->b->weight.at[w].state;
    for (int k = 1; k < p->kinds; k++)
      least = least_state(&least, &p->kind[k].b->weight.at[w].state);
    bl_state_add(others, &least, 1);
  }
  return work;
}

// Seconds behind a stage's last phase, were the states spread evenly: what a stage has at least on
// average. Reductions and the optimizer grow at least in proportion to bytes, so that of all stages
// the mean is no less than that of the mean.
typedef struct behind {
  double reduce;  // of gradients, hidden or not
  double rest;
} behind;
static behind behind_mean(const point *p, const rates *r, const bl_state *mean) {
  const plan_choice *c = p->c;
  double offload = 0;
  behind out = {.rest = optimizer_seconds(p, r, mean, &offload)};
  out.rest += offload;
  if (replicas(c) == 1) return out;
  if (c->zero < 2)
    out.reduce =
        over_group(p, r, c->zero ? CL_REDUCE_SCATTER : CL_ALL_REDUCE, mean->gradient).seconds;
  if (has_groups(c)) out.reduce += across_groups(p, r, mean->gradient).seconds;
  if (c->zero == 1 || c->zero == 2)
    out.rest += over_group(p, r, CL_ALL_GATHER, mean->parameter).seconds;
  return out;
}

static double after_mean(const point *p, const bl_state *mean, double backward) {
  behind x = behind_mean(p, &p->kind[0], mean);
  // A backward with layers that are computed again hides more of it.
  bool longer = false;
  for (int i = 0; i < PLAN_RECOMPUTES; i++) longer |= plan_may_mix(p->s, p->c, i);
  return x.rest + (x.reduce > backward && !longer ? x.reduce - backward : 0);
}

// How many times longer than on the first kind any piece takes on this one, at least.
static double slowness(const point *p, const rates *r) {
  double least = INFINITY;
  const rates *one = &p->kind[0];
  for (int i = 0; i < p->g->piece.n; i++) {
    double s = one->forward[i] + one->backward[i];
    if (s > 0) least = fmin(least, (r->forward[i] + r->backward[i]) / s);
  }
  return isfinite(least) ? least : 1;
}

// Seconds of the sum of gradients of weights that the first and the last stage have, at least.
static double tied_least(const point *p) {
  const bl_block *b = p->kind[0].b;
  int64_t apart = device_of(p, p->places->stages - 1);
  double bytes = 0;
  for (int w = 0; w < b->weight.n && apart; w++) {
    const bl_weight *x = &b->weight.at[w];
    bool first = false, last = false;
    for (int i = 0; i < x->npieces; i++) {
      first |= x->piece[i] == 0;
      last |= x->piece[i] == b->npieces - 1;
    }
    double least = x->state.gradient;
    for (int k = 1; k < p->kinds; k++)
      least = fmin(least, p->kind[k].b->weight.at[w].state.gradient);
    if (first && last) bytes += least;
  }
  if (bytes <= 0) return 0;
  return cl_collective_cost(p->s->cluster, CL_ALL_REDUCE, apart, 2, bytes).seconds;
}

// A bound of the step on stages of several kinds. Stage i takes r[i] u[i] seconds for a micro-batch
// where the u sum to `work`: with weights 1 / r[i], the mean of them is work / sum of 1 / r, and no
// stage's step is less than such a mean of m r u and what comes behind it. That grows at least in
// proportion to a stage's states, of which a share of at least the smallest weight is counted. The
// last backward, which hides the reduction, is no longer than the stage's work.
static double bound_of_kinds(const point *p, double work, const bl_state *mean) {
  double m = (double)p->c->micro_batches, n = (double)p->places->stages;
  double sum = 0, fastest = INFINITY, slowest = 0;
  behind least = {INFINITY, INFINITY};
  for (int k = 0; k < p->kinds; k++) {
    double own = slowness(p, &p->kind[k]);
    fastest = fmin(fastest, own);
    slowest = fmax(slowest, own);
    for (int i = 0; i < p->places->stages; i++)
      if (p->places->of[i] == k) sum += 1 / own;
    behind b = behind_mean(p, &p->kind[k], mean);
    least.reduce = fmin(least.reduce, b.reduce);
    least.rest = fmin(least.rest, b.rest);
  }
  double busy = work / sum, share = n / (slowest * sum);
  double bound = fmax(m * busy, (m - 1) * busy + share * least.reduce) + share * least.rest;
  // A micro-batch goes through all stages; then the first one sums what the last one has too.
  bound = fmax(bound, fastest * work + tied_least(p));
  // And the pipeline fills, were all stages as fast as the fastest: see plan_quickly.
  if (p->c->pipe == PIPE_ONE_F_ONE_B && n > 1)
    bound = fmax(bound, fastest * work / (1 - pow(1 - 1 / m, n)));
  return bound;
}

// A bound for chunks of stages that are alike: each stage waits for the first chunks of those
// before it, forward and back. `rest`: what stands behind the last phase of the stage with fewest
// layers.
static double bound_chunks(const point *p, double rest) {
  double m = (double)p->c->micro_batches, least = INFINITY, bound = 0, before = 0;
  int64_t v = p->c->interleave;
  int n = (int)p->c->size[PLAN_PIPELINE];
  for (int i = 0; i < p->g->piece.n; i++)
    if (is_layers(p, i)) least = fmin(least, p->kind[0].forward[i] + p->kind[0].backward[i]);
  for (int i = 0; i < n; i++) {
    int64_t own = even_layers(p, i);
    bound = fmax(bound, before + m * least * (double)own + rest);
    before += least * (double)(own / v);
  }
  return bound;
}

// Layers of a piece, as a bound counts them.
typedef struct layer_bytes {
  double state, kept, count;
} layer_bytes;

// Whether layers can be dealt to stages so that none holds more than it has room for; ends of the
// model and workspace not counted. A layer of stage i needs its states and its activations of all
// micro-batches in flight, state + kept * stash[i]. Where layers are alike it is a count. Where
// not, let the mean stash price them: a stage of capacity C carries layers worth at most
// C * max over kinds of price / need, and all of them must be carried. p: whose stages they are,
// `capacity` being added to theirs; NULL: all have `capacity`.
static bool layers_fit(const point *p, double capacity, const layer_bytes *kind, int kinds,
                       bool alike, const pipeline *line, int64_t *each) {
  double mean = 0, room = 0, worth = 0;
  for (int i = 0; i < line->stages; i++) mean += (double)pipe_stash(NULL, line, i, each);
  mean /= (double)(line->stages * line->chunks);
  for (int i = 0; i < kinds; i++)
    worth += kind[i].count * (alike ? 1 : kind[i].state + kind[i].kept * mean);
  if (worth <= 0) return true;
  for (int i = 0; i < line->stages; i++) {
    pipe_stash(NULL, line, i, each);
    int64_t least = each[0];
    for (int k = 1; k < line->chunks; k++)
      if (each[k] < least) least = each[k];
    double most = 0, own = capacity + (p ? (double)at_stage(p, i)->k.capacity : 0);
    for (int k = 0; k < kinds; k++) {
      double need = kind[k].state + kind[k].kept * (double)least;
      double price = alike ? 1 : kind[k].state + kind[k].kept * mean;
      if (price > 0 && need <= 0) return true;
      if (price > 0 && price / need > most) most = price / need;
    }
    room += alike ? floor(own * most) : own * most;
  }
  return room >= worth * (1 - 1e-12);
}

// Bytes that all layers save of a micro-batch, were they cut by all axes of a stage.
static double saved_of(const plan_space *s, const plan_choice *c, plan_recompute kind) {
  double cut = (double)(c->size[PLAN_TENSOR] * c->size[PLAN_ULYSSES] * c->size[PLAN_RING]);
  return s->saved[kind] * (double)c->micro_batch / cut;
}

static pipeline plain_line(const plan_choice *c) {
  return (pipeline){.stages = (int)c->size[PLAN_PIPELINE], .chunks = 1, .micro = c->micro_batches};
}

static int repeats(const pg_graph *g) {
  int n = 0;
  for (int i = 0; i < g->piece.n; i++) n += g->piece.at[i].name != NULL;
  return n;
}

// Whether what layers save fits into `more` bytes beside the device.
static bool saved_fits(const plan_space *s, const plan_choice *c, double more) {
  pipeline line = plain_line(c);
  double layers = (double)s->layers;
  if (layers <= 0) return true;
  int64_t each;
  layer_bytes mean = {0, saved_of(s, c, c->recompute) / layers, layers};
  bool alike = repeats(s->job->rules[c->recompute]->g) == 1;
  return layers_fit(NULL, (double)sk_most_memory(s) + more, &mean, 1, alike, &line, &each);
}

bool plan_outer_fits(const plan_space *s, const plan_choice *c) { return saved_fits(s, c, 0); }

double plan_outer_away(const plan_space *s, const plan_choice *c) {
  hm_store store = hm_store_best(s->cluster);
  int pin = s->pins.home[PLAN_ACTIVATIONS];
  bool may = store.host && (pin < 0 || pin == PLAN_HOST);
  if (!may || !saved_fits(s, c, (double)store.host)) return INFINITY;
  return 2 * saved_of(s, c, c->recompute) / store.host_rate * (double)c->micro_batches /
         (double)c->size[PLAN_PIPELINE];
}

// All stages together have room for so many bytes of one micro-batch of a layer; the more of them
// are taken by layers that save less, the more layers there are. Unlike layers save unlike amounts,
// of which this says nothing.
double plan_outer_share(const plan_space *s, const plan_choice *c, plan_recompute kind) {
  pipeline line = plain_line(c);
  double room = 0, fast = saved_of(s, c, c->recompute), slow = saved_of(s, c, kind);
  for (int i = 0; i < line.stages; i++)
    room += (double)sk_most_memory(s) / (double)pipe_stash(NULL, &line, i, NULL);
  if (repeats(s->job->rules[kind]->g) > 1) return 0;
  if (slow > room) return 2;
  return slow < fast ? fmax(0, (fast - room) / (fast - slow)) : 0;
}

// What a stage with a layer holds at least beside states and saved activations: workspace, and of
// what lives away one of its two slots.
static double least_beside(const point *p, const bl_block *slow) {
  const plan_choice *c = p->c;
  double least = INFINITY;
  for (int i = 0; i < p->g->piece.n; i++) {
    if (!is_layers(p, i)) continue;
    const bl_piece *q = &p->kind[0].b->piece[i], *o = slow ? &slow->piece[i] : q;
    const bl_phase *f = &q->phase[PG_FORWARD], *g = &o->phase[PG_FORWARD];
    double work = fmin(f->transient_one, g->transient_one), saved = fmin(q->kept, o->kept);
    work = fmin(work, fmin(f->transient, g->transient));
    if (c->also && !slow) work = saved = 0;
    if (c->zero >= 3) work += 2 * q->layer.parameter;
    if (c->zero >= 2) work += q->layer.gradient;
    hm_kept k = hm_kept_of(c, &q->layer);
    k.bytes[PLAN_ACTIVATIONS] = saved;
    for (int j = 0; j < PLAN_CLASSES; j++)
      if (j != PLAN_OPTIMIZER && c->home[j] != PLAN_DEVICE) work += k.bytes[j];
    least = fmin(least, work);
  }
  return isinf(least) ? 0 : least;
}

plan_quick plan_quickly(arena *a, plan_space *s, const plan_choice *c, const bl_block *b) {
  point *p = start_point(a, s, c, b);
  for (int k = 0; k < p->kinds; k++)  // a stage without weights waits for none
    p->kind[k].k.store.host_wait = p->kind[k].k.store.disk_wait = 0;
  bl_state layers = {0}, others = {0}, mean = {0};
  double work = totals(p, &layers, &others), m = (double)c->micro_batches;
  double n = (double)c->size[PLAN_PIPELINE];
  bl_state_add(&mean, &layers, 1 / n);
  bl_state_add(&mean, &others, 1 / n);
  double backward = 0;
  plan_quick q = {0};
  for (int i = 0; i < b->npieces; i++) {
    double count = (double)b->g->piece.at[i].count;
    backward += count * p->kind[0].backward[i];
    if (is_layers(p, i))
      q.layers += m / n * count * (p->kind[0].forward[i] + p->kind[0].backward[i]);
  }
  if (p->kinds > 1)
    q.bound = bound_of_kinds(p, work, &mean);
  else
    q.bound = m * work / n + after_mean(p, &mean, backward / n);
  // Stage i starts when a micro-batch has come through the stages before it, and behind its last
  // phase one goes back through them: step >= sum of w[j < i] + m w[i] for the seconds w of stages
  // that sum to `work`. The best w is a geometric row, which gives work / (1 - (1 - 1/m)^p).
  if (c->pipe == PIPE_ONE_F_ONE_B && n > 1 && p->kinds == 1) {
    double filled = work / (1 - pow(1 - 1 / m, n));
    if (filled > q.bound) q.bound = filled;
  }
  p->layers = s->layers;
  p->parts = (int)(c->size[PLAN_PIPELINE] * c->interleave);
  // Equal chunks: the last stage waits for the first chunks of the others, forward and back.
  if (c->interleave > 1 && p->kinds == 1 && p->layers % p->parts == 0) {
    double chunk = 0, v = (double)c->interleave;
    for (int i = 0; i < b->npieces; i++)
      if (is_layers(p, i))
        chunk += (double)b->g->piece.at[i].count *
                 (p->kind[0].forward[i] + p->kind[0].backward[i]) / n / v;
    bl_state own = {0};
    bl_state_add(&own, &layers, 1 / n);
    double filled = chunk * (m * v + n - 1) + after_mean(p, &own, backward / n);
    if (filled > q.bound) q.bound = filled;
  } else if (c->interleave > 1 && p->kinds == 1) {
    bl_state own = {0};
    bl_state_add(&own, &layers, (double)(p->layers / (int64_t)n) / (double)p->layers);
    q.bound = fmax(q.bound, bound_chunks(p, behind_mean(p, &p->kind[0], &own).rest));
  }
  pipeline line = {
      .kind = c->pipe, .stages = (int)n, .chunks = (int)c->interleave, .micro = c->micro_batches};
  double capacity = 0, state = on_device(c, &layers), kept = 0;
  int64_t *each = arena_new(a, int64_t, c->interleave);
  layer_bytes *kind = arena_new(a, layer_bytes, b->npieces);
  bool gradients = more_gradients(p);
  const bl_block *slow = c->also ? plan_second_block(s, c) : NULL;
  double most_kept = 0, least_saved = 0, all_state = 0;
  int kinds = 0;
  for (int i = 0; i < b->npieces; i++) {
    if (!is_layers(p, i)) continue;
    layer_bytes *own = &kind[kinds++];
    own->count = (double)b->g->piece.at[i].count;
    for (int k = 0; k < p->kinds; k++) {  // the least of all kinds of stages
      const bl_piece *piece = &p->kind[k].b->piece[i];
      double bytes, saved;
      bound_bytes(c, &piece->layer, piece->kept, gradients, &bytes, &saved);
      own->state = k ? fmin(own->state, bytes) : bytes;
      own->kept = k ? fmin(own->kept, saved) : saved;
    }
    kept += own->count * saved_here(c, b->piece[i].kept);
    most_kept += own->count * own->kept;
    if (c->also) {
      double less = slow ? slow->piece[i].kept : 0;
      if (!slow && repeats(b->g) == 1) less = saved_of(s, c, c->also) / own->count;
      own->kept = fmin(own->kept, saved_here(c, less));
    }
    least_saved += own->count * own->kept;
    all_state += own->count * own->state;
  }
  double beside = gradients || p->kinds > 1 ? 0 : least_beside(p, slow);
  if (c->also && kinds == 1 && most_kept > least_saved) {
    // A stage has room for so many bytes of one micro-batch: capacity over those in flight.
    double room = 0, state_of = c->interleave > 1 ? all_state / n : 0;  // of equal stages known
    if (p->layers % p->parts) state_of = 0;
    for (int i = 0; i < line.stages; i++)
      room += fmax(0, (double)at_stage(p, i)->k.capacity - beside - state_of) /
              (double)least_stash(&line, i, each);
    q.share = fmin(1, fmax(0, (most_kept - room) / (most_kept - least_saved)));
  }
  for (int k = 0; k < p->kinds; k++) capacity = fmax(capacity, (double)p->kind[k].k.capacity);
  q.fits = !pipe_check(a, &line) && layers_fit(p, -beside, kind, kinds, kinds == 1, &line, each);
  if (q.fits && hm_any_away(c) && p->kinds == 1 && kinds == 1) {
    const hm_store *store = &p->kind[0].k.store;
    hm_held held = hm_held_by(c, &layers);
    layer_bytes away = {held.host / kind[0].count, 0, kind[0].count};
    for (int i = 0; c->home[PLAN_ACTIVATIONS] == PLAN_HOST && i < b->npieces; i++)
      if (is_layers(p, i)) away.kept = b->piece[i].kept;
    q.fits = held.disk <= n * (double)store->disk &&
             layers_fit(NULL, (double)store->host, &away, 1, true, &line, each);
  }
  // When it does not: what a stage has too much, on average over them, with one in flight.
  q.over = (state + on_device(c, &others) + kept) / n - capacity;
  return q;
}

// ---- all ----------------------------------------------------------------------------------------

static void count_sent(plan_candidate *x, int axis, const bl_sent *s, double times) {
  plan_bytes *b = &x->bytes;
  plan_axis a = bl_axis_of(axis);
  for (int k = 0; k < CL_COLLECTIVES; k++) {
    for (int far = 0; far < 2; far++) b->bytes[a][k][far] += times * s->bytes[k][far];
    b->calls[a][k] += llround(times * s->calls[k]);
  }
}

static void inner_times(const point *p, const stages_cut *cut, int stage, double *time,
                        double *busy, plan_candidate *x, bool counted) {
  hm_moves moves = {{{0}}, {{0}}}, *moved = &moves;
  int n = (int)p->c->size[PLAN_PIPELINE];
  for (int part = stage; part < p->parts; part += n)
    for (int run = 0; run < p->g->piece.n * recomputes(p); run++) {
      int i = run / recomputes(p), slow = run % recomputes(p);
      double layers = layers_of_kind(p, cut, part, i, slow);
      double times = layers * (double)p->c->micro_batches;
      const rates *r = of_layers(p, stage, slow);
      const bl_piece *piece = &r->b->piece[i];
      for (int a = 0; a < BL_INNER; a++) {
        plan_time t = bl_axis_of(a) == PLAN_TENSOR ? PLAN_T_TENSOR : PLAN_T_SEQUENCE;
        time[t] += layers * piece->once[a].seconds;
        busy[t] += layers * piece->once[a].seconds;
        if (counted) count_sent(x, a, &piece->once[a], layers);
        for (int f = 0; f < 2; f++) {
          time[t] += times * piece->phase[f].sent[a];
          busy[t] += times * piece->phase[f].moves[a].seconds;
          if (counted) count_sent(x, a, &piece->phase[f].moves[a], times);
        }
      }
      for (int f = 0; f < 2; f++) {
        const bl_phase *q = &piece->phase[f];
        time[PLAN_T_COMPUTE] += times * q->compute;
        x->products_s += counted ? times * q->kind[PC_PRODUCT] : 0;
        x->attention_s += counted ? times * q->kind[PC_ATTENTION] : 0;
        double phase = f ? r->backward[i] : r->forward[i];
        double own = q->compute + exposed(q);
        // What ZeRO moves, and what homes do, that is not hidden.
        time[PLAN_T_DATA] += times * (phase - own - r->linked[f][i]);
        time[PLAN_T_OFFLOAD] += times * r->linked[f][i];
        if (!hm_any_away(p->c)) continue;
        bl_state unit = piece_state(p, r->b, i);
        hm_moves m = hm_phase(p->c, &unit, piece->kept, (pg_phase)f);
        busy[PLAN_T_OFFLOAD] += times * hm_seconds(&r->k.store, &m);
        if (counted) hm_add(moved, &m, times);
      }
    }
  busy[PLAN_T_COMPUTE] = time[PLAN_T_COMPUTE];
  if (!counted || !hm_any_away(p->c)) return;
  bl_state state = stage_state(p, cut, stage);
  hm_moves m = hm_once(p->c, &state);
  hm_add(moved, &m, 1);
  memcpy(x->moved, moved->link, sizeof x->moved);
  memcpy(x->moved_disk, moved->disk, sizeof x->moved_disk);
}

// How many neighbours on `ring` lie in one node, where the ring goes through several: keys and
// values are gathered factor by factor (ir/cluster.h), each rank sends to other nodes only the
// chunks that those nodes lack.
static int64_t ring_in_node(const point *p) {
  int64_t inner = 1, size = p->c->size[PLAN_RING];
  for (int t = 0; t < p->s->cluster->ntiers; t++) {
    const cl_tier *tier = &p->s->cluster->tier[t];
    if (tier->node && tier->unit > p->stride[PLAN_RING])
      inner = cl_gcd(tier->unit / p->stride[PLAN_RING], size);
  }
  return inner > 1 && inner < size ? inner : 0;
}

static void list_cuts(const point *p, plan_candidate *x) {
  const pg_graph *g = p->g;
  const sh_result *r = p->kind[0].b->axis[0];
  if (!r->strategy) return;
  x->cut = arena_new(p->a, plan_cut, g->value.n + 1);
  for (int v = 0; v < g->value.n; v++)
    if (g->value.at[v].weight && r->code[v] >= SH_LEAF)
      x->cut[x->ncuts++] = (plan_cut){g->value.at[v].weight->name,
                                      sh_code_text(p->a, &g->value.at[v], r->code[v], "tensor")};
  for (int v = 0; v < g->value.n && !x->choice.sequence_parallel; v++)
    if (g->value.at[v].carried && r->code[v] >= SH_LEAF) x->choice.sequence_parallel = true;
  for (int i = 0; i < g->piece.n; i++)
    for (int f = 0; f < 2 && is_layers(p, i); f++)
      for (int k = 0; k < CL_COLLECTIVES; k++)
        x->tensor_calls_layer[k] += llround(p->kind[0].b->piece[i].phase[f].moves[0].calls[k]);
}

static void set_rates(const point *p, plan_candidate *x) {
  const plan_job *j = p->s->job;
  double n = (double)p->s->cluster->devices, batch = (double)j->batch;
  ir_dtype t = DT_f32;
  if (!ir_dtype_parse(j->precision, &t)) t = DT_f32;
  double peak = p->s->cluster->alike ? cl_matmul_peak(cl_device_at(p->s->cluster, 0), t)
                                     : sk_peak(p->a, p->s->cluster, t) / n;
  x->tokens_per_s = j->tokens / x->step_s;
  x->tflops_per_device = p->g->flops * batch / x->step_s / n / 1e12;
  x->mfu = peak > 0 ? x->tflops_per_device * 1e12 / peak : 0;
  double run = p->g->hardware_flops;
  for (int i = 0; p->second && i < x->nlayers; i++)  // slow layers run more
    if (x->layers[i].recompute == p->c->also)
      run += (p->second->b->g->hardware_flops - p->g->hardware_flops) *
             (double)(x->layers[i].last + 1 - x->layers[i].first) / (double)p->layers;
  x->hfu = peak > 0 ? run * batch / x->step_s / n / peak : 0;
  // 80 % of a normal distribution with the residuals of the H100 fit, 4.6 % root mean square, lie
  // within 1.28 of that. docs/planner.md and bench/published.py have the coverage on other rows.
  const double spread = 1.28 * 0.046;
  x->step_low = x->step_s * (1 - spread);
  x->step_high = x->step_s * (1 + spread);
}

plan_candidate *plan_evaluate(arena *a, plan_space *s, const plan_choice *c, const bl_block *b,
                              double limit, const char **code, const char **why) {
  point *p = start_point(a, s, c, b);
  int n = (int)c->size[PLAN_PIPELINE], v = (int)c->interleave;
  p->parts = n * v;
  find_layers(p);
  if (c->also) {
    plan_choice slow = *c;
    slow.recompute = c->also;
    const bl_block *other = plan_block_of(s, &slow);
    *code = "infeasible";
    *why = other->why ? other->why : mixed_why_not(b, other);
    if (*why) return NULL;
    p->second = arena_new(a, rates, 1);
    *p->second = (rates){.k = p->kind[0].k, .b = other};
    p->slow = arena_new(a, int64_t, p->parts);
    layer_seconds(p, p->second);
  }
  pipe_chunk *chunk = arena_new(a, pipe_chunk, p->parts);
  double *after = arena_new(a, double, n);
  plan_candidate *x = arena_new(a, plan_candidate, 1);
  x->choice = *c;
  x->pipe = (pipeline){.kind = c->pipe,
                       .stages = n,
                       .chunks = v,
                       .micro = c->micro_batches,
                       .chunk = chunk,
                       .after = after};
  const char *wrong = pipe_check(a, &x->pipe);
  if (wrong) {
    *code = "infeasible";
    *why = wrong;
    return NULL;
  }
  stages_cut cut = cut_stages(p, &x->pipe, isfinite(limit), &x->pressed);
  if (!cut.fits && isfinite(limit)) {  // a plan that fits is known
    *code = "does-not-fit";
    *why = "no cut of its layers fits";
    return NULL;
  }
  x->nstages = n;
  x->stage = arena_new(a, plan_stage, n);
  fill_chunks(p, &cut, chunk, x);
  if (p->second) {
    find_slow(p, &cut, &x->pipe, p->kind[0].k.capacity);
    memset(chunk, 0, sizeof *chunk * (size_t)p->parts);
    fill_chunks(p, &cut, chunk, x);
  }
  list_layers(p, &cut, x);
  once *once_at = arena_new(a, once, n);
  for (int i = 0; i < n; i++) {
    bl_state state = stage_state(p, &cut, i);
    once_at[i] = once_of(p, &state, &cut, i, chunk, x, i == 0);
    const once *o = &once_at[i];
    after[i] = o->reduce - o->hidden + o->gather + o->tied + o->inside + o->optimizer + o->offload;
    plan_stage *q = &x->stage[i];
    name_stage(p, &cut, i, q);
    stage_memory(p, &cut, i, &x->pipe, &state, q);
    for (int j = 0; j < v; j++) {
      q->forward_s += chunk[i * v + j].forward;
      q->backward_s += chunk[i * v + j].backward;
    }
    const sk_kind *k = &at_stage(p, i)->k;
    q->capacity = k->capacity;
    q->device = k->device;
    q->group = k->group;
    int64_t over = q->peak - k->capacity;
    if (q->host - k->store.host > over) over = q->host - k->store.host;
    if (q->disk - k->store.disk > over) over = q->disk - k->store.disk;
    if (over > x->over) x->over = over;
    if (i && q->peak <= x->peak) continue;
    x->peak = q->peak;
    x->capacity = k->capacity;
    x->reserve = k->reserve;
    x->peak_at = q->peak_at;
    memcpy(x->memory, q->memory, sizeof x->memory);
  }
  x->load = x->peak;
  if (pipe_bound(&x->pipe) > limit) {
    *code = x->peak > x->capacity || x->pressed ? "does-not-fit" : "slower";  // more room may help
    *why = "a bound of its step says so";
    return NULL;
  }
  pipe_result r = pipe_longest(a, &x->pipe);
  x->step_s = r.step;
  x->critical = r.critical;
  for (int i = 0; i < n; i++) {
    double *t = x->stage[i].time, busy[PLAN_TIMES] = {0};
    const once *o = &once_at[i];
    inner_times(p, &cut, i, t, busy, x, i == r.critical);
    t[PLAN_T_DATA] += o->reduce - o->hidden + o->gather;
    t[PLAN_T_OPTIMIZER] = o->optimizer;
    t[PLAN_T_OFFLOAD] += o->offload;
    t[PLAN_T_PIPELINE] = (i == r.critical ? r.exposed_send : 0) + o->tied;
    double sum = 0;
    for (int k = 0; k < PLAN_TIMES; k++) sum += t[k];
    t[PLAN_T_BUBBLE] = x->step_s - sum > 1e-12 * sum ? x->step_s - sum : 0;
    if (i != r.critical) continue;
    memcpy(x->time, t, sizeof x->time);
    memcpy(x->busy, busy, sizeof x->busy);
    x->busy[PLAN_T_DATA] = o->reduce + o->gather;
    x->busy[PLAN_T_OPTIMIZER] = o->optimizer;
    x->busy[PLAN_T_OFFLOAD] += o->offload;
    x->busy[PLAN_T_BUBBLE] = t[PLAN_T_BUBBLE];
  }
  if (p->places) memcpy(x->spans, p->places->spans, sizeof x->spans);
  list_cuts(p, x);
  x->ring_inner = ring_in_node(p);
  set_rates(p, x);
  return x;
}
