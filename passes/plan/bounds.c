// What can be said of a choice before its stages are cut: bounds of its step, and whether it cannot
// fit. plan_quickly and plan_outer_fits of search.h.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "passes/plan/evaluate_impl.h"

// States of all layers and of all other weights together, at least.
static void states_of(const ev_point *p, bl_state *layers, bl_state *others) {
  const bl_block *b = p->kind[0].b;
  *layers = b->layers;
  *others = b->others;
  if (p->kinds == 1) return;
  *layers = *others = (bl_state){0};
  for (int i = 0; i < b->npieces; i++) {
    bl_state least = b->piece[i].layer;
    for (int k = 1; k < p->kinds; k++)
      least = bl_state_least(&least, &p->kind[k].b->piece[i].layer);
    bl_state_add(layers, &least, (double)p->g->piece.at[i].count);
  }
  for (int w = 0; w < b->weight.n; w++) {
    bl_state least = b->weight.at[w].state;
    for (int k = 1; k < p->kinds; k++)
      least = bl_state_least(&least, &p->kind[k].b->weight.at[w].state);
    bl_state_add(others, &least, 1);
  }
}

// Seconds behind a stage's last phase, were the states spread evenly: what a stage has at least on
// average. Reductions and the optimizer grow at least in proportion to bytes, so that of all stages
// the mean is no less than that of the mean.
typedef struct behind {
  double reduce;  // of gradients, hidden or not
  double gather;  // of updated parameters
  double rest;    // with that
} behind;
static behind behind_mean(const ev_point *p, const ev_rates *r, const bl_state *mean) {
  const plan_choice *c = p->c;
  double offload = 0;
  behind out = {.rest = ev_optimizer_seconds(p, r, mean, &offload)};
  out.rest += offload;
  if (ev_replicas(c) == 1) return out;
  if (c->zero < 2)
    out.reduce =
        ev_over_group(p, r, c->zero ? CL_REDUCE_SCATTER : CL_ALL_REDUCE, ev_partial_bytes(mean))
            .seconds;
  if (ev_has_groups(c)) out.reduce += ev_across_groups(p, r, ev_partial_bytes(mean)).seconds;
  if (c->zero == 1 || c->zero == 2)
    out.gather = ev_over_group(p, r, CL_ALL_GATHER, mean->updated).seconds;
  out.rest += out.gather;
  return out;
}

// Whether some layers of a choice, or of one that differs from it in homes and `also`, may be
// recomputed otherwise.
static bool may_mix(const ev_point *p) {
  for (int i = 0; i < PLAN_RECOMPUTES; i++)
    if (plan_may_mix(p->s, p->c, i)) return true;
  return p->c->also != PLAN_KEEP;
}

// Seconds behind the last backward, which takes `backward`. One with layers that are computed again
// hides more of the reduction.
static double after(const behind *x, double backward, bool mixes) {
  return x->rest + (x->reduce > backward && !mixes ? x->reduce - backward : 0);
}

// Seconds of both phases of a layer of a piece, at least, were it recomputed as the choice says or
// more. A layer of the other kind takes no less in both phases together (mixed.h), but in one of
// them it may, and what is hidden there goes by phases.
static double both_of(const ev_point *p, const ev_rates *r, int piece, bool mixes) {
  double both = r->forward[piece] + r->backward[piece], compute = 0, shared = 0, linked = 0;
  if (!mixes || !ev_is_layers(p, piece)) return both;
  for (int f = 0; f < 2; f++) {
    const bl_phase *q = &r->b->piece[piece].phase[f];
    compute += q->compute + ev_exposed(q);
    shared += r->shared[f][piece];
    if (r->linked[f][piece] > 0) linked += f ? r->backward[piece] : r->forward[piece];
  }
  return fmax(compute, fmax(shared, linked));
}

// How many times longer than on the first kind any piece takes on this one, at least.
static double slowness(const ev_point *p, const ev_rates *r) {
  double least = INFINITY;
  const ev_rates *one = &p->kind[0];
  for (int i = 0; i < p->g->piece.n; i++) {
    double s = one->forward[i] + one->backward[i];
    if (s > 0) least = fmin(least, (r->forward[i] + r->backward[i]) / s);
  }
  return isfinite(least) ? least : 1;
}

// Seconds of the sum of gradients of weights that the first and the last stage have, at least. Two
// stages are all there are, or no others have what only the model's ends read.
static double tied_least(const ev_point *p) {
  const bl_block *b = p->kind[0].b;
  int last_stage = p->places->stages - 1;
  int64_t apart = ev_device_of(p, last_stage);
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
    if (first && last && (last_stage == 1 || x->npieces == 2)) bytes += least;
  }
  if (bytes <= 0) return 0;
  cl_collective k = last_stage == 1 ? CL_ALL_REDUCE : CL_SEND;
  return cl_collective_cost(p->s->cluster, k, apart, 2, bytes).seconds;
}

// A bound of the step on stages of several kinds. Stage i takes r[i] u[i] seconds for a micro-batch
// where the u sum to `work`: with weights 1 / r[i], the mean of them is work / sum of 1 / r, and no
// stage's step is less than such a mean of m r u and what comes behind it. That grows at least in
// proportion to a stage's states, of which a share of at least the smallest weight is counted. The
// last backward, which hides the reduction, is no longer than the stage's work.
static double bound_of_kinds(const ev_point *p, double work, const bl_state *mean) {
  double m = (double)p->c->micro_batches, n = (double)p->places->stages;
  double sum = 0, fastest = INFINITY, slowest = 0;
  behind least = {.reduce = INFINITY, .rest = INFINITY};
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
  // A micro-batch goes through all stages; then the first one sums what the last one has too. (In
  // the zero-bubble order it does not wait for gradients of weights on its way.)
  if (p->c->pipe != PIPE_ZERO_BUBBLE) bound = fmax(bound, fastest * work + tied_least(p));
  // And the pipeline fills, were all stages as fast as the fastest: see plan_quickly.
  if (p->c->pipe == PIPE_ONE_F_ONE_B && n > 1)
    bound = fmax(bound, fastest * work / (1 - pow(1 - 1 / m, n)));
  return bound;
}

// Layers of a piece, as a bound counts them. Of the second kind each saves so many bytes of a
// micro-batch less, and takes so many seconds more.
typedef struct layer_bytes {
  double state, kept, count, less, more;
} layer_bytes;

static int by_price(const void *a, const void *b) {
  const layer_bytes *x = a, *y = b;
  double p = x->more * y->less, q = y->more * x->less;
  return (p > q) - (p < q);
}

// Seconds that so many bytes less take at least: the layers where a byte costs least, the last of
// them in part; and all that take no longer. `kind` is used up.
static double least_more(layer_bytes *kind, int kinds, double bytes) {
  double seconds = 0;
  int n = 0;
  for (int i = 0; i < kinds; i++) {
    if (kind[i].less > 0)
      kind[n++] = kind[i];
    else
      seconds += kind[i].count * fmin(0, kind[i].more);
  }
  qsort(kind, (size_t)n, sizeof *kind, by_price);
  for (int i = 0; i < n && (bytes > 0 || kind[i].more < 0); i++) {
    double most = kind[i].less * kind[i].count, part = kind[i].count;
    if (most > bytes && kind[i].more > 0) part = bytes / kind[i].less;
    seconds += part * kind[i].more;
    bytes -= most;
  }
  return fmax(0, seconds);
}

// Whether layers can be dealt to stages so that none holds more than it has room for; ends of the
// model and workspace not counted. A layer of stage i needs its states and its activations of all
// micro-batches in flight, state + kept * stash[i]. Where layers are alike it is a count. Where
// not, let the mean stash price them: a stage of capacity C carries layers worth at most
// C * max over kinds of price / need, and all of them must be carried. p: whose stages they are,
// `capacity` being added to theirs; NULL: all have `capacity`.
static bool layers_fit(const ev_point *p, double capacity, const layer_bytes *kind, int kinds,
                       bool alike, const pipeline *line, int64_t *each) {
  double mean = 0, room = 0, worth = 0;
  for (int i = 0; i < line->stages && !alike; i++) mean += (double)pipe_stash(NULL, line, i, each);
  mean /= (double)(line->stages * line->chunks);
  for (int i = 0; i < kinds; i++)
    worth += kind[i].count * (alike ? 1 : kind[i].state + kind[i].kept * mean);
  if (worth <= 0) return true;
  for (int i = 0; i < line->stages; i++) {
    pipe_stash(NULL, line, i, each);
    int64_t least = each[0];
    for (int k = 1; k < line->chunks; k++)
      if (each[k] < least) least = each[k];
    double most = 0, own = capacity + (p ? (double)ev_at_stage(p, i)->k.capacity : 0);
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

// Chunks of stages that are alike: which layers each has follows from their number alone.
typedef struct dealt {
  int64_t *layers;  // [stages][chunks]; NULL: it does not
  int64_t *stash;   // [stages][chunks]: micro-batches it holds when most are in flight on the stage
} dealt;

static dealt deal_of(const ev_point *p, const pipeline *line) {
  int n = line->stages, v = line->chunks;
  dealt d = {0};
  if (v == 1 || p->kinds > 1 || p->layers / n < v) return d;
  d.layers = arena_new(p->a, int64_t, n *v);
  d.stash = arena_new(p->a, int64_t, n *v);
  for (int i = 0; i < n; i++) {
    int64_t own = ev_known_layers(p, i);
    pipe_stash(NULL, line, i, &d.stash[i * v]);
    for (int k = 0; k < v; k++) d.layers[i * v + k] = stages_of_chunk(own, v, k);
  }
  return d;
}

// The same for them: what they hold then is no more than the most that they hold.
static bool chunks_fit(const ev_point *p, double capacity, const layer_bytes *kind,
                       const pipeline *line, const dealt *d) {
  int n = line->stages, v = line->chunks, at = 0;
  double *held = arena_new(p->a, double, n);
  int64_t left = llround(kind->count);
  for (int part = 0; part < n * v; part++) {
    int i = part % n, own = i * v + part / n;
    int64_t layers = d->layers[own];
    double waiting = (double)d->stash[own];
    while (layers > 0) {
      if (!left) left = llround(kind[++at].count);
      int64_t some = layers < left ? layers : left;
      held[i] += (double)some * (kind[at].state + waiting * kind[at].kept);
      layers -= some;
      left -= some;
    }
    if (held[i] > capacity) return false;
  }
  return true;
}

// Samples of a micro-batch that a rank has of what layers save, were it cut by all axes of a stage.
static double cut_of(const plan_choice *c) {
  double cut = (double)(c->size[PLAN_TENSOR] * c->size[PLAN_ULYSSES] * c->size[PLAN_RING]);
  return (double)c->micro_batch / cut;
}

// Bytes that all layers save of a micro-batch then.
static double saved_of(const plan_space *s, const plan_choice *c, plan_recompute kind) {
  return s->saved[kind] * cut_of(c);
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
  layer_bytes mean = {.kept = saved_of(s, c, c->recompute) / layers, .count = layers};
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
// are taken, the more layers must save less. (Counted are the bytes of which the layer is known.)
double plan_outer_more(const plan_space *s, const plan_choice *c, plan_recompute kind,
                       const double *fast, const double *slow) {
  const pg_graph *g = s->job->rules[c->recompute]->g, *other = s->job->rules[kind]->g;
  pipeline line = plain_line(c);
  double room = 0, taken = 0;
  for (int i = 0; i < line.stages; i++)
    room += (double)sk_most_memory(s) / (double)pipe_stash(NULL, &line, i, NULL);
  if (saved_of(s, c, kind) > room) return INFINITY;
  if (g->piece.n != other->piece.n) return 0;
  arena own;
  arena_init(&own);
  layer_bytes *layer = arena_new(&own, layer_bytes, g->piece.n);
  int n = 0;
  for (int i = 0; i < g->piece.n; i++) {
    if (!g->piece.at[i].name) continue;
    double count = (double)g->piece.at[i].count, bytes = s->saved_by[c->recompute][i] * cut_of(c);
    double less = fmax(0, bytes - s->saved_by[kind][i] * cut_of(c));
    layer[n++] = (layer_bytes){.count = count, .less = less, .more = slow[i] - fast[i]};
    taken += count * bytes;
  }
  double more = least_more(layer, n, taken - room);
  arena_free(&own);
  return more;
}

// fmin is a call.
static inline double smaller(double a, double b) { return a < b ? a : b; }

// What a stage with a layer holds at least beside states and saved activations: workspace, and of
// what lives away one of its two slots.
static double least_beside(const ev_point *p, const bl_block *slow) {
  const plan_choice *c = p->c;
  double least = INFINITY;
  bool away = hm_any_away(c);
  for (int i = 0; i < p->g->piece.n; i++) {
    if (!ev_is_layers(p, i)) continue;
    const bl_piece *q = &p->kind[0].b->piece[i], *o = slow ? &slow->piece[i] : q;
    const bl_phase *f = &q->phase[PG_FORWARD], *g = &o->phase[PG_FORWARD];
    double work = smaller(f->transient_one, g->transient_one), saved = smaller(q->kept, o->kept);
    work = smaller(work, smaller(f->transient, g->transient));
    if (c->also && !slow) work = saved = 0;
    if (c->zero >= 3) work += 2 * q->layer.parameter;
    if (c->zero >= 2) work += q->layer.gradient;
    if (away) {
      hm_kept k = hm_kept_of(c, &q->layer);
      k.bytes[PLAN_ACTIVATIONS] = saved;
      for (int j = 0; j < PLAN_CLASSES; j++)
        if (j != PLAN_OPTIMIZER && c->home[j] != PLAN_DEVICE) work += k.bytes[j];
    }
    least = smaller(least, work);
  }
  return isinf(least) ? 0 : least;
}

// The layers of a choice as memory sees them, and whether they fit.
typedef struct load {
  pipeline line;
  dealt chunks;
  layer_bytes *kind;
  int kinds;
  double state, most_kept, least_kept;  // bytes of all layers: without and with a second kind
  double beside;
  bool fits;
} load;

static layer_bytes layer_of(const ev_point *p, const bl_block *slow, bool gradients, int piece) {
  const plan_choice *c = p->c;
  layer_bytes own = {.count = (double)p->g->piece.at[piece].count};
  for (int k = 0; k < p->kinds; k++) {  // the least of all kinds of stages
    const bl_piece *q = &p->kind[k].b->piece[piece];
    double bytes, saved;
    ev_bound_bytes(c, &q->layer, q->kept, gradients, &bytes, &saved);
    own.state = k ? smaller(own.state, bytes) : bytes;
    own.kept = k ? smaller(own.kept, saved) : saved;
  }
  if (!c->also) return own;
  double least = slow ? slow->piece[piece].kept : 0;
  if (!slow && repeats(p->g) == 1) least = saved_of(p->s, c, c->also) / own.count;
  own.less = fmax(0, own.kept - ev_saved_here(c, least));
  own.kept -= own.less;
  return own;
}

// Whether what lives away has room on the host and the disk.
static bool away_fits(const ev_point *p, const load *l, int64_t *each) {
  const plan_choice *c = p->c;
  const hm_store *store = &p->kind[0].k.store;
  layer_bytes *away = arena_new(p->a, layer_bytes, l->kinds);
  double disk = 0;
  for (int i = 0, k = 0; i < p->g->piece.n; i++) {
    if (!ev_is_layers(p, i)) continue;
    const bl_piece *q = &p->kind[0].b->piece[i];
    hm_held held = hm_held_by(c, &q->layer);
    away[k] = (layer_bytes){.state = held.host, .count = l->kind[k].count};
    if (c->home[PLAN_ACTIVATIONS] == PLAN_HOST) away[k].kept = q->kept;
    disk += away[k++].count * held.disk;
  }
  if (disk > (double)l->line.stages * (double)store->disk) return false;
  if (l->chunks.layers) return chunks_fit(p, (double)store->host, away, &l->line, &l->chunks);
  return layers_fit(NULL, (double)store->host, away, l->kinds, l->kinds == 1, &l->line, each);
}

static load load_of(const ev_point *p, const bl_block *slow) {
  const plan_choice *c = p->c;
  load l = {.line = {.kind = c->pipe,
                     .stages = (int)c->size[PLAN_PIPELINE],
                     .chunks = (int)c->interleave,
                     .micro = c->micro_batches}};
  int64_t *each = arena_new(p->a, int64_t, c->interleave);
  l.kind = arena_new(p->a, layer_bytes, p->g->piece.n);
  bool gradients = ev_more_gradients(p);
  for (int i = 0; i < p->g->piece.n; i++) {
    if (!ev_is_layers(p, i)) continue;
    layer_bytes own = l.kind[l.kinds++] = layer_of(p, slow, gradients, i);
    l.state += own.count * own.state;
    l.most_kept += own.count * (own.kept + own.less);
    l.least_kept += own.count * own.kept;
  }
  l.beside = gradients || p->kinds > 1 ? 0 : least_beside(p, slow);
  l.fits = !pipe_check(p->a, &l.line);
  if (l.fits) l.chunks = deal_of(p, &l.line);
  if (l.fits && l.chunks.layers) {
    double capacity = (double)p->kind[0].k.capacity - l.beside;
    l.fits = chunks_fit(p, capacity, l.kind, &l.line, &l.chunks);
  } else if (l.fits) {
    l.fits = layers_fit(p, -l.beside, l.kind, l.kinds, l.kinds == 1, &l.line, each);
  }
  if (l.fits && hm_any_away(c) && p->kinds == 1) l.fits = away_fits(p, &l, each);
  return l;
}

// What a stage has too much, on average over them, with one micro-batch in flight.
static double lacking(const ev_point *p, const bl_state *layers, const bl_state *others) {
  double bytes = ev_on_device(p->c, layers) + ev_on_device(p->c, others), capacity = 0;
  const bl_block *b = p->kind[0].b;
  for (int i = 0; i < b->npieces; i++)
    if (ev_is_layers(p, i))
      bytes += (double)p->g->piece.at[i].count * ev_saved_here(p->c, b->piece[i].kept);
  for (int k = 0; k < p->kinds; k++) capacity = fmax(capacity, (double)p->kind[k].k.capacity);
  return bytes / (double)p->c->size[PLAN_PIPELINE] - capacity;
}

// A bound of the step from sums over all stages, and what it is made of.
static double bound_of(ev_point *p, const bl_state *layers, const bl_state *others, plan_quick *q) {
  const plan_choice *c = p->c;
  const ev_rates *r = &p->kind[0];
  double m = (double)c->micro_batches, n = (double)c->size[PLAN_PIPELINE];
  double work = 0, repeated = 0;  // seconds of a micro-batch over all stages
  q->mixes = may_mix(p);
  for (int i = 0; i < p->g->piece.n; i++) {
    double count = (double)p->g->piece.at[i].count, both = both_of(p, r, i, q->mixes);
    work += count * both;
    q->phase[PG_FORWARD] += count * r->forward[i];
    q->phase[PG_BACKWARD] += count * r->backward[i];
    if (ev_is_layers(p, i)) repeated += count * both;
  }
  q->work = work;
  q->layers = m / n * repeated;
  bl_state mean = {0};
  bl_state_add(&mean, layers, 1 / n);
  bl_state_add(&mean, others, 1 / n);
  if (p->kinds > 1) return bound_of_kinds(p, work, &mean);
  behind b = behind_mean(p, r, &mean);
  q->gather = b.gather;
  double bound = m * work / n + after(&b, q->phase[PG_BACKWARD] / n, q->mixes);
  // Stage i starts when a micro-batch has come through the stages before it, and behind its last
  // phase one goes back through them: step >= sum of w[j < i] + m w[i] for the seconds w of stages
  // that sum to `work`. The best w is a geometric row, which gives work / (1 - (1 - 1/m)^p).
  if (c->pipe == PIPE_ONE_F_ONE_B && n > 1) bound = fmax(bound, work / (1 - pow(1 - 1 / m, n)));
  return bound;
}

// Seconds of a micro-batch that layers of the second kind add on stage i, at least, where those of
// the first are `over` its room. Of alike ones the first go, chunk by chunk, and as few as it
// takes; of others the bytes that are cheapest, in the fullest chunk.
static double least_slow(const load *l, int i, double over) {
  const layer_bytes *kind = l->kind;
  const int64_t *own = &l->chunks.layers[i * l->line.chunks];
  const int64_t *stash = &l->chunks.stash[i * l->line.chunks];
  double slow = 0, price = INFINITY, most = 0;
  if (over <= 0) return 0;
  if (l->kinds > 1) {
    for (int k = 0; k < l->kinds; k++)
      if (kind[k].less > 0) price = fmin(price, kind[k].more / kind[k].less);
    for (int k = 0; k < l->line.chunks; k++) most = fmax(most, (double)stash[k]);
    return isfinite(price) && most > 0 ? over / most * price : 0;
  }
  for (int k = 0; k < l->line.chunks && over > 0; k++) {
    double less = (double)stash[k] * kind->less;
    double some = less > 0 ? fmin((double)own[k], ceil(over / less - 1e-9)) : 0;
    over -= some * less;
    slow += some;
  }
  return slow * kind->more;
}

// A bound for chunks of stages that are alike, whose layers are known. Each stage waits until a
// micro-batch has come through the first chunks of those before it, and behind its last phase one
// goes back through these; then the first stage comes to its states. The model's ends are on the
// first and the last stage. `slow`: layers of the second kind count too.
static double bound_chunks(const ev_point *p, const load *l, bool slow, const plan_quick *q) {
  int n = l->line.stages, v = l->line.chunks, pieces = p->g->piece.n, at = -1;
  const ev_rates *r = &p->kind[0];
  double m = (double)p->c->micro_batches, bound = 0, before = 0, most = 0;
  double *own = arena_new(p->a, double, 4 * n), *first = own + n, *back = own + 2 * n;
  double *over = own + 3 * n;  // bytes, were all layers of the first kind
  int which = -1;              // of the kinds of layers
  int64_t left = 0, fewest = p->layers;
  double both = 0;
  for (int part = 0; part < n * v; part++) {
    int i = part % n;
    int64_t layers = l->chunks.layers[i * v + part / n];
    while (layers > 0) {
      while (!left) {
        if (!ev_is_layers(p, ++at)) continue;
        left = p->g->piece.at[at].count;
        which++;
        both = both_of(p, r, at, q->mixes);
      }
      int64_t some = layers < left ? layers : left;
      own[i] += (double)some * both;
      back[i] += (double)some * r->backward[at];
      if (part < n) first[i] += (double)some * both;
      const layer_bytes *kind = &l->kind[which];
      double held = (double)l->chunks.stash[i * v + part / n] * (kind->kept + kind->less);
      over[i] += (double)some * (kind->state + held);
      layers -= some;
      left -= some;
    }
  }
  for (int end = 0; end < 2; end++) {
    int piece = end ? pieces - 1 : 0, i = end ? n - 1 : 0;
    own[i] += r->forward[piece] + r->backward[piece];
    back[i] += r->backward[piece];
    if (!end) first[i] += r->forward[piece] + r->backward[piece];
  }
  for (int i = 0; i < n; i++) {
    most = fmax(most, back[i]);
    int64_t layers = ev_known_layers(p, i);
    if (layers < fewest) fewest = layers;
  }
  bl_state state = {0};
  bl_state_add(&state, &r->b->least, (double)fewest);
  behind b = behind_mean(p, r, &state);
  double rest = after(&b, most, q->mixes);
  for (int i = 0; i < n; i++) {
    over[i] += l->beside - (double)r->k.capacity;
    double more = slow ? least_slow(l, i, over[i]) : 0;
    bound = fmax(bound, before + m * (own[i] + more) + rest);
    before += first[i];
  }
  return bound;
}

// What layers of the second kind add to a bound of sums.
static void add_second(const ev_point *p, const bl_block *slow, load *l, plan_quick *q) {
  const plan_choice *c = p->c;
  double n = (double)l->line.stages;
  int64_t *each = arena_new(p->a, int64_t, c->interleave), most = 1;
  // A stage has room for so many bytes of one micro-batch: what its states leave, over those in
  // flight. Where it is not known which states it has, they are where most are in flight.
  bool equal =
      c->interleave > 1 && l->kinds == 1 && p->layers % p->parts == 0 && !p->s->pins.nstages;
  double room = 0, own = equal ? l->state / n : 0;
  for (int i = 0; i < l->line.stages; i++) {
    int64_t stash = ev_least_stash(&l->line, i, each);
    room += ((double)ev_at_stage(p, i)->k.capacity - l->beside - own) / (double)stash;
    if (stash > most) most = stash;
  }
  if (!equal) room -= l->state / (double)most;
  double bytes = fmax(0, l->most_kept - room);
  if (l->kinds == 1) q->share = fmin(1, bytes / (l->most_kept - l->least_kept));
  if (!slow) return;
  for (int i = 0, k = 0; i < p->g->piece.n; i++) {
    if (!ev_is_layers(p, i)) continue;
    double *more = &l->kind[k++].more;
    *more = -both_of(p, &p->kind[0], i, true);
    for (int f = 0; f < 2; f++)
      *more += slow->piece[i].phase[f].compute + ev_exposed(&slow->piece[i].phase[f]);
    *more = fmax(0, *more);
  }
  layer_bytes *sorted = arena_new(p->a, layer_bytes, l->kinds);
  memcpy(sorted, l->kind, sizeof *sorted * (size_t)l->kinds);
  q->more = (double)c->micro_batches / n * least_more(sorted, l->kinds, bytes);
}

plan_quick plan_quickly(arena *a, plan_space *s, const plan_choice *c, const bl_block *b,
                        bool open) {
  ev_point *p = ev_open_point(a, s, c, b);
  const bl_block *slow = c->also ? plan_second_block(s, c) : NULL;
  bl_state layers, others;
  states_of(p, &layers, &others);
  p->layers = s->layers;
  p->parts = (int)(c->size[PLAN_PIPELINE] * c->interleave);
  load l = load_of(p, slow);
  plan_quick q = {.fits = l.fits, .second = slow != NULL};
  if (!q.fits) q.over = lacking(p, &layers, &others);
  if (!q.fits && !open) return q;
  for (int k = 0; k < p->kinds; k++) {
    ev_layer_seconds(p, &p->kind[k]);  // a stage without weights waits for none
    p->kind[k].k.store.host_wait = p->kind[k].k.store.disk_wait = 0;
  }
  q.bound = q.mean = bound_of(p, &layers, &others, &q);
  bool second = c->also && l.most_kept > l.least_kept;
  if (second) add_second(p, slow, &l, &q);
  // With other homes there is more room on the device, and fewer layers need be of the second kind.
  bool slows = second && slow && !open;
  if (l.chunks.layers) q.bound = fmax(q.bound, bound_chunks(p, &l, slows, &q));
  return q;
}

// The longer one of two sums is no longer than the sum of the longer ones, layer by layer.
double plan_with_homes(arena *a, plan_space *s, const plan_choice *c, const bl_block *b,
                       const plan_quick *first) {
  ev_point *p = ev_open_point(a, s, c, b);
  if (p->kinds > 1) return first->bound;
  b = p->kind[0].b;
  hm_store *store = &p->kind[0].k.store;
  store->host_wait = store->disk_wait = 0;
  double m = (double)c->micro_batches, n = (double)c->size[PLAN_PIPELINE];
  double seconds = 0, moved = 0, offload = 0;
  for (int f = 0; f < 2; f++) {
    hm_moves moves = hm_phase(c, &b->layers, b->kept, (pg_phase)f);
    double link = hm_seconds(store, &moves);
    seconds += fmax(first->phase[f], link);
    moved += link;
  }
  if (first->mixes) seconds = fmax(first->work, moved);
  bl_state mean = {0};
  bl_state_add(&mean, &b->layers, 1 / n);
  bl_state_add(&mean, &b->others, 1 / n);
  double update = ev_optimizer_seconds(p, &p->kind[0], &mean, &offload);
  return fmax(first->bound, m / n * seconds + update + offload + first->gather);
}
