// The memory of a stage: its fullest moment, and how many of its layers must be computed again for
// it to fit.
#include <math.h>
#include <string.h>

#include "passes/plan/evaluate_impl.h"

// ---- memory -------------------------------------------------------------------------------------

// A stage at its fullest.
typedef struct moment {
  double kept, gradients, work;
  const char *at;
} moment;

// Micro-batches that wait on a stage at most: for backward with what it reads of forward, and,
// where gradients of weights are done apart, for those with what they read of forward and of
// backward.
typedef struct waiting {
  double back, weights, late;
} waiting;

static waiting waiting_of(const ev_point *p, const pipeline *line, int stage, int64_t stash) {
  waiting w = {.back = (double)stash, .weights = (double)stash};
  if (line->kind == PIPE_ZERO_BUBBLE) {
    w.back = (double)pipe_held(p->a, line, stage, PIPE_F, PIPE_B);
    w.late = (double)pipe_held(p->a, line, stage, PIPE_B, PIPE_W);
  }
  return w;
}

static void fuller(moment *most, double kept, double gradients, const bl_phase *f, bool one) {
  double work = one ? f->transient_one : f->transient;
  if (most->at && kept + gradients + work <= most->kept + most->gradients + most->work) return;
  *most = (moment){kept, gradients, work, f->transient_at ? f->transient_at : ""};
}

// Of weights that are no stacks of layers: the piece of a stage whose backward makes the gradient.
static int made_at(const ev_point *p, const stages_cut *cut, int part, const bl_weight *w) {
  int last = -1;
  for (int i = 0; i < w->npieces; i++)
    if (w->piece[i] > last && ev_part_has(p, cut, part, w->piece[i])) last = w->piece[i];
  return last;
}

// Without chunks a stage goes through its pieces forward, keeping more and more, and back. Beside
// the micro-batch that is worked on lie those in flight. Gradients of earlier micro-batches are
// there from the beginning; with one micro-batch those of a layer come where its activations were
// (frames, passes/layout_loops.c), so the fullest moment is the first or the last layer of a piece.
static moment fullest(const ev_point *p, const stages_cut *cut, int stage, const waiting *wait,
                      double all_gradients) {
  const bl_block *b = ev_at_stage(p, stage)->b;
  bool one = p->c->micro_batches == 1, apart = p->c->pipe == PIPE_ZERO_BUBBLE;
  moment most = {0};
  double kept = 0, later = 0, all = 0, longer = 0, late = 0;
  int n = ev_recomputes(p);  // slow layers of a piece come before fast ones
  int first = n * ev_first_piece(p, cut, stage), runs = n * ev_end_piece(p, cut, stage);
  for (int r = first; r < runs; r++) {
    int i = r / n, slow = n - 1 - r % n;
    double count = ev_layers_of_kind(p, cut, stage, i, slow);
    const bl_piece *q = &ev_of_layers(p, stage, slow)->b->piece[i];
    all += count * ev_saved_here(p->c, q->kept);
    longer += count * ev_saved_here(p->c, q->kept_longer);
    late += count * q->late;
  }
  double others = (wait->back - 1) * all + (wait->weights - wait->back) * longer;
  // (Of the one that is worked on too, when there are others: layout.c, stash.)
  double waits = wait->weights > 1 ? wait->late * late : 0;
  others += waits;
  for (int r = first; r < runs; r++) {
    int i = r / n, slow = n - 1 - r % n;
    double count = ev_layers_of_kind(p, cut, stage, i, slow);
    if (count <= 0) continue;
    const bl_piece *q = &ev_of_layers(p, stage, slow)->b->piece[i];
    kept += count * ev_saved_here(p->c, q->kept);
    fuller(&most, others + kept, one ? 0 : all_gradients, &q->phase[PG_FORWARD], one);
  }
  for (int r = runs - 1; r >= first; r--) {
    int i = r / n, slow = n - 1 - r % n;
    double count = ev_layers_of_kind(p, cut, stage, i, slow);
    if (count <= 0) continue;
    const bl_piece *q = &ev_of_layers(p, stage, slow)->b->piece[i];
    const bl_phase *f = &q->phase[PG_BACKWARD];
    double own = ev_gradients_here(p->c, &q->layer);
    double each = ev_saved_here(p->c, q->kept), before = kept - count * each;
    // What a piece between layers kept dies on the way through it.
    fuller(&most, others + (ev_is_layers(p, i) ? kept : before),
           one ? later + (ev_is_layers(p, i) ? own : 0) : all_gradients, f, one);
    if (one && ev_is_layers(p, i)) {
      later += count * own;
      fuller(&most, others + before + each, later, f, one);
    }
    bool done = slow || n == 1 || ev_layers_of_kind(p, cut, stage, i, 1) <= 0;  // with the piece
    for (int w = 0; w < b->weight.n && one && done; w++)
      if (made_at(p, cut, stage, &b->weight.at[w]) == i)
        later += ev_gradients_here(p->c, &b->weight.at[w].state);
    kept = before;
  }
  static const bl_phase end = {.transient_at = "update"}, weights = {.transient_at = "weights"};
  if (apart)
    fuller(&most, others + longer + late - fmin(late, waits), one ? 0 : all_gradients, &weights,
           one);
  if (one) fuller(&most, others, later, &end, one);
  return most;
}

void ev_stage_memory(const ev_point *p, const stages_cut *cut, int stage, const pipeline *line,
                     const bl_state *s, plan_stage *out) {
  const plan_choice *c = p->c;
  int n = (int)c->size[PLAN_PIPELINE], v = (int)c->interleave;
  double *kept = arena_new(p->a, double, v), layer = 0;
  double unit[PLAN_CLASSES] = {0};  // the most that one layer, or piece between layers, has
  hm_held h = hm_held_by(c, s);
  moment most = {.gradients = h.device[PLAN_GRADIENTS], .at = ""};
  for (int part = stage; part < p->parts; part += n) {
    int kinds = ev_recomputes(p), end = ev_end_piece(p, cut, part) * kinds;
    for (int r = ev_first_piece(p, cut, part) * kinds; r < end; r++) {
      int i = r / kinds, slow = r % kinds;
      double layers = ev_layers_of_kind(p, cut, part, i, slow);
      if (layers <= 0) continue;
      const bl_piece *q = &ev_of_layers(p, stage, slow)->b->piece[i];
      kept[part / n] += layers * q->kept;
      double moved =
          (c->zero >= 3 ? 2 * q->layer.parameter : 0) + (c->zero >= 2 ? q->layer.gradient : 0);
      if (moved > layer) layer = moved;
      if (hm_any_away(c)) {
        bl_state own = ev_piece_state(p, ev_at_stage(p, stage)->b, i);
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
  }
  out->stash = pipe_stash(p->a, line, stage, NULL);
  const waiting wait = waiting_of(p, line, stage, out->stash);
  hm_kept full = hm_kept_of(c, s);
  double saved = pipe_stash_bytes(p->a, line, stage, kept);
  if (v == 1)
    most = fullest(p, cut, stage, &wait, h.device[PLAN_GRADIENTS]);
  else
    most.kept = ev_saved_here(c, saved);
  h.device[PLAN_GRADIENTS] = most.gradients;
  h.device[PLAN_ACTIVATIONS] = most.kept;
  full.bytes[PLAN_ACTIVATIONS] = saved;
  if (c->home[PLAN_ACTIVATIONS] == PLAN_HOST) h.host += saved;
  for (int k = 0; k < PLAN_CLASSES; k++) {
    if (k == PLAN_OPTIMIZER || c->home[k] == PLAN_DEVICE) continue;
    double ring = 2 * unit[k] < full.bytes[k] ? 2 * unit[k] : full.bytes[k];
    // What backward made for gradients of weights stays here.
    h.device[k] = ring + (k == PLAN_ACTIVATIONS ? most.kept : 0);
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
static void set_slow(ev_point *p, const stages_cut *cut, int stage, int64_t slow) {
  for (int part = stage; part < p->parts; part += (int)p->c->size[PLAN_PIPELINE]) {
    int64_t layers = cut->first[part + 1] - cut->first[part];
    p->slow[part] = slow < layers ? slow : layers;
    slow -= p->slow[part];
  }
}

// As few layers of the second kind on each stage as let it fit, all when none do: its peak falls
// with their number, but for the workspace of the first one.
void ev_find_slow(ev_point *p, const stages_cut *cut, const pipeline *line, int64_t capacity) {
  int n = (int)p->c->size[PLAN_PIPELINE];
  for (int stage = 0; stage < n; stage++) {
    bl_state state = ev_stage_state(p, cut, stage);
    int64_t low = 0, high = 0, tried = 0;
    for (int part = stage; part < p->parts; part += n)
      high += cut->first[part + 1] - cut->first[part];
    while (low < high) {
      set_slow(p, cut, stage, tried);
      plan_stage with = {0};
      ev_stage_memory(p, cut, stage, line, &state, &with);
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
void ev_list_layers(const ev_point *p, const stages_cut *cut, plan_candidate *x) {
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

void ev_name_stage(const ev_point *p, const stages_cut *cut, int stage, plan_stage *out) {
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
