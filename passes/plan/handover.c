#include "passes/plan/handover.h"

// Where a value comes from.
typedef enum source {
  MADE,      // of others that are made
  ANYWHERE,  // of inputs and constants alone
  PENDING    // of these and of weights: made where it is first read
} source;

typedef struct known {  // of a value
  source from;
  bool made, back;  // by a piece; in backward
  int piece;        // that makes it
  int far, far_in;  // the furthest piece that reads it, and whose layers do; as from the piece that
                    // makes it: how many pieces away
  double bytes;     // that cross
} known;

typedef struct finder {
  arena *a;
  const pg_graph *g;
  known *k;
  handover **out;
} finder;

// Nobody cuts in front of a piece where nothing runs, but of the last one, which ends the cuts; nor
// a layer that is alone.
static bool is_cut(const pg_graph *g, int piece, bool between) {
  const pg_piece *p = &g->piece.at[piece];
  return between ? p->count > 1 : !p->empty || piece == g->piece.n - 1;
}

static void put(finder *f, int piece, bool between, pg_phase phase, int made, double bytes) {
  if (piece >= f->g->piece.n || !is_cut(f->g, piece, between)) return;
  if (!f->out[piece]) f->out[piece] = arena_new(f->a, handover, 1);
  ho_cut *cut = between ? &f->out[piece]->between[phase] : &f->out[piece]->front[phase];
  for (int i = 0; i < cut->n; i++)
    if (cut->at[i].made == made) {
      cut->at[i].bytes += bytes;
      return;
    }
  // (Most cuts have one or two, and there are many cuts: room for 1, 2, 4, ...)
  if ((cut->n & (cut->n - 1)) == 0) {
    ho_bundle *more = arena_new(f->a, ho_bundle, cut->n ? 2 * cut->n : 1);
    for (int i = 0; i < cut->n; i++) more[i] = cut->at[i];
    cut->at = more;
  }
  cut->at[cut->n++] = (ho_bundle){made, bytes};
}

// What an op's results come from.
static source source_of(const finder *f, const pg_op *p) {
  source s = ANYWHERE;
  if (p->kind != PG_OP || p->phase != PG_FORWARD) return MADE;
  for (int j = 0; j < p->nin; j++) {
    if (p->in[j] < 0) continue;
    const pg_value *v = &f->g->value.at[p->in[j]];
    if (v->weight || v->view_of >= 0)
      s = PENDING;
    else if (v->free || f->k[p->in[j]].from == ANYWHERE)
      continue;
    else if (f->k[p->in[j]].from == PENDING)
      s = PENDING;
    else
      return MADE;
  }
  return s;
}

static void read_by(finder *f, const pg_op *p, int v) {
  known *k = &f->k[v];
  const pg_value *w = &f->g->value.at[v];
  if (!w->batch || w->carried || w->free || k->from == ANYWHERE) return;
  if (k->from == PENDING && !k->made) {
    k->made = true;
    if (k->piece > 0 || p->piece > 1) k->piece = p->piece;
  }
  if (!k->made) return;
  int away = k->back ? k->piece - p->piece : p->piece - k->piece;
  if (away > k->far) k->far = away;
  if (p->kind != PG_ENTER && away > k->far_in) k->far_in = away;
}

static void find_lives(finder *f, const double *bytes) {
  for (int i = 0; i < f->g->op.n; i++) {
    const pg_op *p = &f->g->op.at[i];
    if (p->kind == PG_UPDATE) continue;
    source s = source_of(f, p);
    for (int j = 0; j < p->nin && s == MADE; j++)
      if (p->in[j] >= 0) read_by(f, p, p->in[j]);
    for (int j = 0; j < p->nout; j++) {
      known *k = p->out[j] < 0 ? NULL : &f->k[p->out[j]];
      if (!k || k->made) continue;
      bool forward = p->phase == PG_FORWARD;
      *k = (known){.from = s, .made = s == MADE, .back = !forward, .piece = p->piece};
      k->bytes = bytes[p->out[j]];
      // What leaves layers is brought to what is read where it is read.
      if (p->kind == PG_LEAVE && forward) k->bytes = bytes[p->in[0]];
    }
  }
}

// A value crosses all cuts on the way to its furthest reader.
static void spread(finder *f, const known *k) {
  for (int away = 1; away <= k->far; away++) {
    int way = k->back ? -away : away, piece = k->piece + way;
    // Forward it enters a piece by its front, backward it leaves the one before by that one's.
    pg_phase phase = k->back ? PG_BACKWARD : PG_FORWARD;
    put(f, k->back ? piece + 1 : piece, false, phase, k->piece, k->bytes);
    if (away < k->far || away <= k->far_in) put(f, piece, true, phase, k->piece, k->bytes);
  }
}

const handover *const *ho_find(arena *a, arena *scratch, const pg_graph *g, const double *bytes) {
  finder f = {.a = a, .g = g};
  f.k = arena_new(scratch, known, g->value.n + 1);
  f.out = arena_new(scratch, handover *, g->piece.n + 1);
  find_lives(&f, bytes);
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    if (p->kind == PG_ENTER && g->value.at[p->out[0]].batch)
      put(&f, p->piece, true, p->phase, -1, bytes[p->out[0]]);
  }
  for (int v = 0; v < g->value.n; v++) spread(&f, &f.k[v]);
  return (const handover *const *)f.out;
}

ho_cut ho_at(const handover *h, bool between, pg_phase phase) {
  if (!h) return (ho_cut){0};
  return between ? h->between[phase] : h->front[phase];
}

double ho_bytes(const ho_cut *c) {
  double bytes = 0;
  for (int i = 0; i < c->n; i++) bytes += c->at[i].bytes;
  return bytes;
}
