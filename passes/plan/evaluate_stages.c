// Stage cuts, what goes from stage to stage, and what stands behind the last phase once a step.
#include <math.h>
#include <string.h>

#include "passes/plan/evaluate_impl.h"

// ---- stages -------------------------------------------------------------------------------------

// What a layer's states and activations are for a bound on what a stage holds. With one micro-batch
// gradients come where activations go, so that not both of all layers are there at a time: the
// larger of the two is.
void ev_bound_bytes(const plan_choice *c, const bl_state *s, double saved, bool gradients,
                    double *state, double *kept) {
  *state = ev_on_device(c, s);
  *kept = gradients ? 0 : ev_saved_here(c, saved);
  if (c->micro_batches == 1 && !gradients) *state -= ev_gradients_here(c, s);
}

// Whether there is one micro-batch, and gradients of all layers take more than their activations.
bool ev_more_gradients(const ev_point *p) {
  if (p->c->micro_batches > 1) return false;
  double gradients = 0, kept = 0;
  for (int i = 0; i < p->g->piece.n; i++) {
    if (!ev_is_layers(p, i)) continue;
    double n = (double)p->g->piece.at[i].count;
    gradients += n * ev_gradients_here(p->c, &p->kind[0].b->piece[i].layer);
    kept += n * ev_saved_here(p->c, p->kind[0].b->piece[i].kept);
  }
  return gradients > kept;
}

// Seconds of both phases of a layer, were everything on the device. Stages are cut by these: what
// lives away changes a cut only where memory does, so that with the room it had no such plan is
// faster than the one without (search.c looks at them where memory presses).
static double at_home(const ev_point *p, const ev_rates *r, int piece) {
  double seconds = r->forward[piece] + r->backward[piece];
  for (int k = 0; k < 2 && hm_any_away(p->c); k++) seconds -= r->linked[k][piece];
  return seconds;
}

// What a layer of the piece saves, or a piece between layers, of the kind that saves less.
static double least_kept(const ev_point *p, const ev_rates *r, int piece) {
  double kept = r->b->piece[piece].kept;
  return p->second && ev_is_layers(p, piece) ? fmin(kept, p->second->b->piece[piece].kept) : kept;
}

// What layers and ends cost on a kind of stage. What it is said to hold here is no more than it
// will hold (the highest transient of one piece, not of all), so that `fits` is false only where no
// cut can fit. Returns how many runs of equal layers there are.
static int work_of(const ev_point *p, const ev_rates *r, stages_work *out) {
  const pg_graph *g = p->g;
  bool gradients = ev_more_gradients(p);
  stages_run *run = arena_new(p->a, stages_run, 2 * g->piece.n + 2);
  int runs = 0;
  for (int i = 0; i < g->piece.n; i++) {
    const bl_piece *q = &r->b->piece[i];
    bl_state own = ev_piece_state(p, r->b, i);
    stages_cost cost = {at_home(p, r, i), 0, 0};
    ev_bound_bytes(p->c, &own, least_kept(p, r, i), gradients, &cost.state, &cost.kept);
    if (!ev_is_layers(p, i)) {
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
      if (!gradients) both.kept += ev_saved_here(p->c, m->kept);
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
static bool even_chunks(const ev_point *p) {
  return p->parts == 1 || (p->c->interleave > 1 && p->kinds == 1);
}

int64_t ev_known_layers(const ev_point *p, int stage) {
  if (p->s->pins.nstages) return p->s->pins.stages[stage];
  int64_t n = p->c->size[PLAN_PIPELINE], most = (p->layers + n - 1) / n;
  int64_t less = most * n - p->layers;  // stages that have one less
  int64_t turn = stage == n - 1 ? 0 : stage == 0 ? 1 : n - stage;
  return turn < less ? most - 1 : most;
}

// Micro-batches that the chunk of a stage holds which holds fewest. each: room for all chunks.
int64_t ev_least_stash(const pipeline *line, int stage, int64_t *each) {
  pipe_stash(NULL, line, stage, each);
  int64_t least = each[0];
  for (int c = 1; c < line->chunks; c++)
    if (each[c] < least) least = each[c];
  return least;
}

// `*pressed`: with more memory it would be another cut.
stages_cut ev_cut_stages(ev_point *p, const pipeline *line, bool only_fitting, bool *pressed) {
  int n = line->stages, v = line->chunks;
  if (p->s->pins.nstages || even_chunks(p)) {
    stages_cut known = {.fits = true, .first = arena_new(p->a, int64_t, n + 1)};
    for (int i = 0; i < n; i++) known.first[i + 1] = known.first[i] + ev_known_layers(p, i);
    if (v > 1) known.first = stages_deal(p->a, &known, n, v);
    return known;
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
    stash[i] = (double)ev_least_stash(line, i, each);
    room[i] = (double)ev_at_stage(p, i)->k.capacity;
  }
  job.stash = stash;
  stages_cut cut = stages_find(p->a, &job);
  for (int i = 0; i < n; i++) *pressed |= cut.bytes[i] > room[i];
  job.capacity = room;
  if (*pressed) cut = stages_find(p->a, &job);
  if (v > 1 && (cut.fits || !only_fitting)) cut.first = stages_deal(p->a, &cut, n, v);
  return cut;
}

int64_t ev_device_of(const ev_point *p, int stage) { return stage * p->stride[PLAN_PIPELINE]; }

// The part that makes what a piece hands on: forward its last layer's, backward its first one's.
// What stands before layers is where these are.
static int part_of(const ev_point *p, const stages_cut *cut, int piece, pg_phase phase) {
  const pg_graph *g = p->g;
  if (piece == g->piece.n - 1) return p->parts - 1;
  bool layers = ev_is_layers(p, piece);
  int64_t layer = layers ? p->first_of[piece] : p->first_of[piece + 1];
  if (layers && phase == PG_FORWARD) layer += g->piece.at[piece].count - 1;
  int part = 0;
  while (piece > 0 && part + 1 < p->parts && cut->first[part + 1] <= layer) part++;
  return part;
}

// Bytes of a micro-batch that cross the cut behind a part. In front of the first layer of a repeat
// it is what its straight piece, which goes with it, reads. What has been to all stages, each with
// several chunks, is there.
static double crossing(const ev_point *p, const stages_cut *cut, int part, pg_phase phase) {
  const pg_graph *g = p->g;
  int64_t next = cut->first[part + 1];
  int n = (int)p->c->size[PLAN_PIPELINE];
  int piece = next < p->layers ? p->piece_of[next] : g->piece.n - 1;
  bool front = next == p->layers || next == p->first_of[piece];
  if (front && next < p->layers && piece > 1 && !g->piece.at[piece - 1].empty) piece--;
  const handover *h = ev_at_stage(p, (part + 1) % n)->b->piece[piece].hands;
  const ho_cut c = ho_at(h, !front, phase);
  double bytes = 0;
  for (int i = 0; i < c.n; i++) {
    int made = c.at[i].made;
    bool there = false;
    if (made >= 0 && p->parts > n) {
      int at = part_of(p, cut, made, phase);
      there = (phase == PG_FORWARD ? part + 1 - at : at - part) >= n;
    }
    if (!there) bytes += c.at[i].bytes;
  }
  return bytes;
}

void ev_fill_chunks(ev_point *p, const stages_cut *cut, pipe_chunk *chunk, plan_candidate *x) {
  int n = (int)p->c->size[PLAN_PIPELINE], v = (int)p->c->interleave;
  double m = (double)p->c->micro_batches;
  cl_cost *sent = arena_new(p->a, cl_cost, n);
  double *messages = arena_new(p->a, double, n);
  for (int part = 0; part < p->parts; part++) {
    pipe_chunk *c = &chunk[(part % n) * v + part / n];
    for (int i = ev_first_piece(p, cut, part); i < ev_end_piece(p, cut, part); i++)
      for (int k = 0; k < ev_recomputes(p); k++) {
        const ev_rates *r = ev_of_layers(p, part % n, k);
        double times = ev_layers_of_kind(p, cut, part, i, k);
        c->forward += times * r->forward[i];
        c->backward += times * r->backward[i];
        c->weight += times * r->weight[i];
      }
    if (c->weight > c->backward) c->weight = c->backward;
    if (part + 1 == p->parts || n == 1) continue;
    // The activation goes from this stage, its gradient from the next one.
    int to = (part + 1) % n, from = part % n;
    int64_t sender = p->places ? p->places->from[from] : ev_device_of(p, from);
    int64_t receiver = p->places ? p->places->to[to] : ev_device_of(p, to);
    cl_cost way[2];
    for (int f = 0; f < 2; f++)
      way[f] = cl_send_cost(p->s->cluster, sender, receiver, crossing(p, cut, part, (pg_phase)f));
    c->send = way[PG_FORWARD].seconds;
    chunk[to * v + (part + 1) / n].send_back = way[PG_BACKWARD].seconds;
    sent[from].intra += m * way[PG_FORWARD].intra, sent[to].intra += m * way[PG_BACKWARD].intra;
    sent[from].inter += m * way[PG_FORWARD].inter, sent[to].inter += m * way[PG_BACKWARD].inter;
    messages[from] += m, messages[to] += m;
  }
  for (int i = 0; i < n && n > 1; i++) {
    plan_bytes *b = &x->stage[i].bytes;
    b->bytes[PLAN_PIPELINE][CL_SEND][0] = sent[i].intra;
    b->bytes[PLAN_PIPELINE][CL_SEND][1] = sent[i].inter;
    b->calls[PLAN_PIPELINE][CL_SEND] = llround(messages[i]);
  }
}

// ---- once a step --------------------------------------------------------------------------------

double ev_optimizer_seconds(const ev_point *p, const ev_rates *r, const bl_state *s,
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

ev_once ev_once_of(const ev_point *p, const bl_state *s, const stages_cut *cut, int stage,
                   const pipe_chunk *chunk, plan_bytes *b) {
  const plan_choice *c = p->c;
  ev_once o = {0};
  const ev_rates *r = ev_at_stage(p, stage);
  o.optimizer = ev_optimizer_seconds(p, r, s, &o.offload);
  for (int a = 0; a < BL_INNER; a++) o.inside += ev_once_inside(p, cut, stage, a);
  double layers = 0;
  int n = (int)c->size[PLAN_PIPELINE], v = (int)c->interleave;
  for (int part = stage; part < p->parts; part += n)
    layers += (double)(cut->first[part + 1] - cut->first[part]);
  if (ev_replicas(c) > 1) {
    cl_collective k = c->zero == 0 ? CL_ALL_REDUCE : CL_REDUCE_SCATTER;
    double parts = ev_partial_bytes(s), late = c->zero >= 2 ? s->late : parts;
    cl_cost cost = ev_over_group(p, r, k, late);
    if (late > 0) {
      ev_count(b, PLAN_DATA, k, &cost, 1);
      o.reduce = cost.seconds;
    }
    if (late < parts) {  // after each micro-batch
      cost = ev_over_group(p, r, k, parts - late);
      ev_count(b, PLAN_DATA, k, &cost, (double)c->micro_batches);
    }
    for (int i = 1; i < 4; i++) {
      int64_t ranks;
      plan_axis axis;
      if (s->whole[i] <= 0) continue;
      cost = ev_over_others(p, r, i, s->whole[i], &ranks, &axis);
      if (ranks == 1) continue;
      o.reduce += cost.seconds;
      ev_count(b, axis, CL_ALL_REDUCE, &cost, 1);
    }
    if (ev_has_groups(c)) {
      cost = ev_across_groups(p, r, parts);
      ev_count(b, PLAN_DATA, CL_ALL_REDUCE, &cost, 1);
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
      cost = ev_over_group(p, r, CL_ALL_GATHER, s->updated);
      o.gather = cost.seconds;
      ev_count(b, PLAN_DATA, CL_ALL_GATHER, &cost, 1);
    }
    if (c->zero == 3) {
      cost = ev_over_group(p, r, CL_ALL_GATHER, s->gathered[0]);
      ev_count(b, PLAN_DATA, CL_ALL_GATHER, &cost, (double)c->micro_batches);
      cost = ev_over_group(p, r, CL_ALL_GATHER, s->gathered[1]);
      if (s->gathered[1] > 0) ev_count(b, PLAN_DATA, CL_ALL_GATHER, &cost, 1);
    }
  }
  o.tied = ev_tied(p, stage, b);
  return o;
}
