#include "passes/plan/block.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ir/rule.h"
#include "ir/view.h"
#include "passes/plan/steps.h"

plan_axis bl_axis_of(int inner) {
  static const plan_axis axis[BL_INNER] = {
      [BL_TENSOR] = PLAN_TENSOR, [BL_ULYSSES] = PLAN_ULYSSES, [BL_RING] = PLAN_RING};
  return axis[inner];
}

char *bl_key_text(char *out, const bl_key *k) {
  out = str_name(out, (uint64_t)k->recompute);
  out = str_name(out, k->whole_stream);
  out = str_name(out, (uint64_t)k->micro_batch);
  for (int x = 0; x < BL_INNER; x++) {
    out = str_name(out, (uint64_t)k->size[x]);
    out = str_name(out, (uint64_t)k->stride[x]);
  }
  return out;
}

static const sh_domain domain_of[BL_INNER] = {SH_ANY, SH_ACTIVATIONS,
                                              SH_SEQUENCE};  // ORDER bl_axis_of

void bl_state_add(bl_state *to, const bl_state *s, double times) {
  to->elements += times * s->elements;
  to->logical += times * s->logical;
  to->parameter += times * s->parameter;
  to->master += times * s->master;
  to->optimizer += times * s->optimizer;
  to->gradient += times * s->gradient;
  to->updated += times * s->updated;
  to->late += times * s->late;
  for (int i = 0; i < 2; i++) to->gathered[i] += times * s->gathered[i];
  for (int i = 1; i < 4; i++) to->whole[i] += times * s->whole[i];
}

bl_state bl_state_least(const bl_state *x, const bl_state *y) {
  bl_state s = {.elements = fmin(x->elements, y->elements),
                .logical = fmin(x->logical, y->logical),
                .parameter = fmin(x->parameter, y->parameter),
                .master = fmin(x->master, y->master),
                .optimizer = fmin(x->optimizer, y->optimizer),
                .gradient = fmin(x->gradient, y->gradient),
                .updated = fmin(x->updated, y->updated),
                .late = fmin(x->late, y->late)};
  for (int i = 1; i < 4; i++) s.whole[i] = fmax(x->whole[i], y->whole[i]);
  return s;
}

// What is said of a weight by those who update it.
typedef struct uses {
  int whole;  // over which axes (1 ulysses, 2 ring) its gradient is no part of a sum
  bool late;  // tensor ranks bring its gradient to where it lies
} uses;

// The states of a weight, for `part` of a slice.
static bl_state state_of(const pg_value *w, double part, uses of) {
  double n = w->elements * part, own = n * ir_dtype_bytes(w->weight->type.dtype);
  bl_state s = {.elements = n, .logical = w->elements, .parameter = own};
  if (w->copy) {
    s.parameter = n * w->copy;
    s.master = own;
  }
  s.updated = w->master ? own : s.parameter;
  if (w->weight->trained) {
    s.gradient = n * 4;  // sums are f32
    if (of.whole)
      s.whole[of.whole] = s.gradient;
    else if (of.late)
      s.late = s.gradient;
    s.optimizer = n * w->moments;
  }
  return s;
}

typedef struct maker {
  arena *a;        // of the block
  arena *scratch;  // goes when it is made
  const sh_rules *r;
  const pg_graph *g;
  bl_block *b;
  const cl_cluster *cluster;
  const cl_device *device;
  double *op_part;
  bool *moved;       // values that are converted on some axis
  bl_sent **sent;    // [piece][BL_INNER] NULL: nothing yet
  int *weight;       // of a gradient: its weight's value, + 1; of stacks 0
  bl_sent **summed;  // [value][BL_INNER] of such weights, once a step; NULL: nothing
} maker;

static double local_bytes(const maker *k, int v) {
  const pg_value *p = &k->g->value.at[v];
  return p->bytes * (p->batch ? (double)k->b->key.micro_batch : 1) * k->b->value_part[v];
}

// Layers of the piece, which a phase's numbers are divided by.
static double layers_of(const maker *k, int piece) { return (double)k->g->piece.at[piece].count; }

// ---- time ---------------------------------------------------------------------------------------

// Bytes of operand or result j of op `at`, as the op sees it: whole where it was gathered for it.
static double bytes_at(const maker *k, int at, int j) {
  const pg_op *p = &k->g->op.at[at];
  int v = j < p->nin ? p->in[j] : p->out[j - p->nin];
  const pg_value *w = &k->g->value.at[v];
  double bytes = k->moved[v] ? w->sent : w->bytes;
  if (w->batch) bytes *= (double)k->b->key.micro_batch;
  for (int x = 0; x < BL_INNER; x++) {
    const sh_result *s = k->b->axis[x];
    if (!s->strategy) continue;
    int code = k->r->strategy[at][s->strategy[at]].code[j];
    if (code < 0)
      bytes *= s->value_part[v];
    else if (code >= SH_LEAF)
      bytes *= sh_part(w->leaf[code - SH_LEAF], k->b->key.size[x]);
  }
  return bytes;
}

static void find_moved(maker *k) {
  k->moved = arena_new(k->scratch, bool, k->g->value.n + 1);
  for (int x = 0; x < BL_INNER; x++)
    for (int i = 0; i < k->b->axis[x]->moves.n; i++)
      k->moved[k->b->axis[x]->moves.at[i].value] = true;
}

// Whether operand or result j of `p` stays in the kernel: what is converted on its way does not.
static bool is_near(const maker *k, const pg_op *p, int j) {
  if (j >= 64 || !(p->near >> j & 1)) return false;
  return !k->moved[j < p->nin ? p->in[j] : p->out[j - p->nin]];
}

static void add_ops(maker *k) {
  const pg_graph *g = k->g;
  find_moved(k);
  double b = (double)k->b->key.micro_batch;
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    if (p->kind != PG_OP || p->view) continue;
    bl_phase *f = &k->b->piece[p->piece].phase[p->phase];
    double bytes = 0, flops = p->cost.flops;
    bool batch = false;
    pc_op cost = p->cost;
    cost.carried = false;
    for (int j = 0; j < p->nin + p->nout; j++) {
      int v = j < p->nin ? p->in[j] : p->out[j - p->nin];
      if (v < 0) continue;
      if (is_near(k, p, j))
        cost.carried |= j < p->nin;
      else
        bytes += bytes_at(k, i, j);
      batch |= g->value.at[v].batch;
    }
    if (batch) flops *= b;
    flops *= k->op_part[i];
    double times = p->times / layers_of(k, p->piece);
    if (p->once) continue;  // counted with the optimizer: once a step, of weights only
    double seconds = times * pc_op_seconds(k->device, &cost, flops, bytes);
    f->compute += seconds;
    f->kind[cost.kind] += seconds;
    if (p->phase == PG_BACKWARD && p->weights) f->weight += seconds;
  }
}

// How operand j of op `at` is asked for on an axis.
static int asked_on(const maker *k, int at, int j, int axis) {
  const sh_result *s = k->b->axis[axis];
  int code = k->r->strategy[at][s->strategy[at]].code[j];
  return code < 0 ? s->code[k->g->op.at[at].in[j]] : code;
}

static bool moves_to(const sh_result *s, int value, int code) {
  SH_MOVES_OF(s, value, m)
  if (m->to == code) return true;
  return false;
}

// The fraction of operand j of op `at` that axes inside `inner` leave when `inner` moves it to code
// `to`. They have moved it before (passes/plan/steps.h): what they gathered is whole by then, what
// they are still to cut too.
static double part_when_moved(const maker *k, int at, int j, int inner, int to) {
  int v = k->g->op.at[at].in[j];
  double part = 1;
  for (int y = 0; y < inner; y++) {
    const sh_result *s = k->b->axis[y];
    if (!s->strategy) continue;
    int code = asked_on(k, at, j, y), made = s->code[v];
    bool both = code >= SH_LEAF && ((code == made && code == k->b->axis[inner]->code[v]) ||
                                    (code == to && made >= SH_LEAF));
    // Positions of tokens that both cut, or both will, are made whole before, and cut again behind.
    if (both && sh_is_position(k->r, k->g->value.at[v].leaf[code - SH_LEAF])) continue;
    if (code == made)
      part *= s->value_part[v];
    else if (code >= SH_LEAF && made != SH_REPLICATED && moves_to(s, v, code))
      part *= sh_part(k->g->value.at[v].leaf[code - SH_LEAF], k->b->key.size[y]);
  }
  return part;
}

// By move of an axis: the fraction of its value that the axes inside it leave then; 0: nothing is
// known of who asks.
static double *parts_when_moved(const maker *k, int inner) {
  const sh_result *s = k->b->axis[inner];
  double *part = arena_new(k->scratch, double, s->moves.n + 1);
  for (int at = 0; at < k->g->op.n && s->strategy; at++)
    for (int j = 0; j < k->g->op.at[at].nin; j++) {
      int v = k->g->op.at[at].in[j];
      if (v < 0) continue;
      SH_MOVES_OF(s, v, m) {
        int code = asked_on(k, at, j, inner);
        // What is whole serves those who ask for a part.
        if (code != m->to && (m->to != SH_REPLICATED || code == s->code[v])) continue;
        double now = part_when_moved(k, at, j, inner, m->to), *most = &part[m - s->moves.at];
        if (now > *most) *most = now;
      }
    }
  return part;
}

// Axes are solved from the outer one in, and move values from the inner one out: what those solved
// later cut, and have not gathered by then, is smaller for the collectives of those before them
// too.
static void shrink_moves(maker *k, int inner, const double *before) {
  sh_result *s = k->b->axis[inner];
  const double *inside = parts_when_moved(k, inner);
  for (int i = 0; i < s->moves.n + s->reduces.n; i++) {
    bool moves = i < s->moves.n;
    sh_move *m = moves ? &s->moves.at[i] : &s->reduces.at[i - s->moves.n];
    double others = k->b->value_part[m->value] / s->value_part[m->value];
    if (moves) others = fmax(others, before[m->value] * inside[i]);
    if (others >= before[m->value]) continue;
    m->bytes *= others / before[m->value];
    m->cost = cl_collective_cost(k->cluster, m->kind, k->b->key.stride[inner],
                                 k->b->key.size[inner], m->bytes);
  }
}

static void count_move(bl_sent *to, const sh_move *m, double times) {
  to->seconds += times * m->cost.seconds;
  to->bytes[m->kind][0] += times * m->cost.intra;
  to->bytes[m->kind][1] += times * m->cost.inter;
  to->calls[m->kind] += times;
}

// What a piece sends over an axis: forward, backward, once a step. Most pieces between unlike
// layers send nothing.
static bl_sent *sent_of(maker *k, int piece, int inner, int which) {
  bl_piece *q = &k->b->piece[piece];
  bl_sent **all = &k->sent[piece * BL_INNER + inner];
  if (!*all) {
    *all = arena_new(k->a, bl_sent, 3);
    q->phase[PG_FORWARD].moves[inner] = *all;
    q->phase[PG_BACKWARD].moves[inner] = *all + 1;
    q->once[inner] = *all + 2;
  }
  return *all + which;
}

static void send_nothing(maker *k) {
  static const bl_sent nothing;
  k->sent = arena_new(k->scratch, bl_sent *, k->b->npieces * BL_INNER + 1);
  for (int i = 0; i < k->b->npieces; i++)
    for (int x = 0; x < BL_INNER; x++) {
      bl_piece *q = &k->b->piece[i];
      q->phase[PG_FORWARD].moves[x] = q->phase[PG_BACKWARD].moves[x] = q->once[x] = &nothing;
    }
}

static void find_gradients(maker *k) {
  const pg_graph *g = k->g;
  k->weight = arena_new(k->scratch, int, g->value.n + 1);
  k->summed = arena_new(k->scratch, bl_sent *, g->value.n * BL_INNER + 1);
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    if (p->kind == PG_UPDATE && g->value.at[p->out[0]].layers == 1)
      k->weight[p->in[0]] = p->out[0] + 1;
  }
}

// The gradient of a weight that is no stack is summed wherever the weight is.
static bool sum_gradient(maker *k, int inner, const sh_move *m) {
  int w = m->once ? k->weight[m->value] - 1 : -1;
  if (w < 0) return false;
  bl_sent **to = &k->summed[w * BL_INNER + inner];
  if (!*to) *to = arena_new(k->a, bl_sent, 1);
  count_move(*to, m, m->times);
  return true;
}

static void add_moves(maker *k, int inner, const sh_move *move, int n) {
  for (int i = 0; i < n; i++) {
    const sh_move *m = &move[i];
    if (m->piece < 0 || sum_gradient(k, inner, m)) continue;
    bl_piece *q = &k->b->piece[m->piece];
    double times = m->times / layers_of(k, m->piece);
    count_move(sent_of(k, m->piece, inner, m->once ? 2 : (int)m->phase), m, times);
    if (m->once || m->streamed) continue;
    bl_phase *f = &q->phase[m->phase];
    (m->prefetched ? f->prefetched : f->sent)[inner] += times * m->cost.seconds;
  }
}

// What is prefetched delays a phase by what its ops do not hide.
static void hide_prefetched(maker *k, int inner) {
  for (int i = 0; i < k->b->npieces; i++)
    for (int p = 0; p < 2; p++) {
      bl_phase *f = &k->b->piece[i].phase[p];
      if (f->prefetched[inner] > f->compute) f->sent[inner] += f->prefetched[inner] - f->compute;
    }
}

// What is gathered chunk by chunk while the op it feeds runs on the chunks before.
static void hide_streams(maker *k, int inner) {
  const pg_graph *g = k->g;
  const sh_result *s = k->b->axis[inner];
  for (int i = 0; i < g->op.n && s->strategy; i++) {
    const pg_op *p = &g->op.at[i];
    const bool *streams = k->r->strategy[i][s->strategy[i]].streams;
    if (!streams) continue;
    double flops = p->cost.flops * (double)k->b->key.micro_batch * k->op_part[i];
    double work = pc_op_seconds(k->device, &p->cost, flops, 0), moved = 0;
    for (int o = 0; o < p->nin; o++) {
      bool feeds = streams[o] && p->in[o] >= 0;
      for (int b = 0; b < o; b++) feeds &= !streams[b] || p->in[b] != p->in[o];
      if (!feeds) continue;
      SH_MOVES_OF(s, p->in[o], m)
      if (m->streamed && m->phase == p->phase) moved += m->cost.seconds;
    }
    // The first chunk cannot be hidden.
    double first = moved / (double)k->b->key.size[inner];
    double exposed = first + (moved - first > work ? moved - first - work : 0);
    exposed *= p->times / layers_of(k, p->piece);
    k->b->piece[p->piece].phase[p->phase].sent[inner] += exposed;
    k->b->piece[p->piece].phase[p->phase].streamed[inner] += exposed;
  }
}

// ---- memory -------------------------------------------------------------------------------------

// What is known of a value while one piece is looked at.
typedef struct life {
  int root;      // the value whose storage it looks at
  int last;      // the last op that reads it, by its place in the piece; -1: none does
  int readers;   // how many operands it is
  bool made;     // by an op of the piece
  bool inner;    // only within a kernel
  bool stored;   // a stack or a carried value has it
  double moved;  // bytes of its whole form, where it is gathered
} life;

static void begin_lives(const maker *k, life *l) {
  for (int v = 0; v < k->g->value.n; v++) l[v] = (life){.root = v, .last = -1};
  for (int x = 0; x < BL_INNER; x++)
    for (int j = 0; j < k->b->axis[x]->moves.n; j++) {
      const sh_move *m = &k->b->axis[x]->moves.at[j];
      if (m->to == SH_REPLICATED && !m->streamed) l[m->value].moved += m->bytes;
    }
}

static void forget(life *l, int v) {
  if (v >= 0) l[v] = (life){.root = v, .last = -1, .moved = l[v].moved};
}

static bool is_in(const pg_op *p, bool both, pg_phase phase) { return both || p->phase == phase; }

// Bytes of its own that the results of op i need not have, because an operand dies there and its
// place will do.
static double taken_over(const maker *k, const life *l, const pg_op *p, int i) {
  double bytes = 0;
  int used[16], n = 0;
  for (int j = 0; j < p->nout && n < 16; j++) {
    double most = 0;
    int with = -1, v = p->out[j];
    if (v < 0 || l[v].stored || k->g->value.at[v].gradient) continue;
    for (int x = 0; x < p->nin; x++) {
      int r = p->in[x] < 0 ? -1 : l[p->in[x]].root;
      if (r >= 0 && l[r].inner) continue;  // it is not there
      if (r < 0 || l[r].last != i || !l[r].made || l[r].stored || k->g->value.at[r].gradient)
        continue;
      bool taken = false;
      for (int y = 0; y < n; y++) taken |= used[y] == r;
      if (taken || !pg_takes_over(p, j, x)) continue;
      double own = local_bytes(k, r), other = local_bytes(k, v);
      if (other < own) own = other;
      if (own > most) most = own, with = r;
    }
    if (with >= 0) used[n++] = with;
    bytes += most;
  }
  return bytes;
}

// Whether result `v` of op i is a part of a gradient, which with one micro-batch lies where that
// does: it is added to what another use of the weight made, in this piece or in one before it.
static bool is_part(const maker *k, const life *l, const pg_op *p, const int *at, int i, int v) {
  if (k->g->value.at[v].batch || p->phase != PG_BACKWARD || l[v].readers > 1) return false;
  if (l[v].last == i) return true;
  const ir_op *q = k->g->op.at[at[l[v].last]].op;
  return ir_accumulates(q) || ir_updated(q) >= 0;
}

// Live ranges over the ops of one or both phases of a piece: the highest sum of what lives there
// only. `held`: room for as many numbers as the piece has ops.
static void add_transient(maker *k, life *l, double *held, int piece, bool both, pg_phase phase) {
  const pg_graph *g = k->g;
  const int *at = g->by_piece + g->first[piece];
  int n = g->first[piece + 1] - g->first[piece];
  for (int i = 0; i < n; i++) {
    const pg_op *p = &g->op.at[at[i]];
    for (int j = 0; j < p->nin; j++) forget(l, p->in[j]);
    for (int j = 0; j < p->nout; j++) forget(l, p->out[j]);
  }
  for (int i = 0; i < n; i++) {
    const pg_op *p = &g->op.at[at[i]];
    if (!is_in(p, both, phase)) continue;
    if (p->kind == PG_STORE || p->kind == PG_CARRY) l[l[p->in[0]].root].stored = true;
    if (p->kind != PG_OP) continue;
    for (int j = 0; j < p->nin; j++)
      if (p->in[j] >= 0) {
        life *r = &l[l[p->in[j]].root];
        r->last = i;
        r->readers++;
      }
    for (int j = 0; j < p->nout; j++) {
      int v = p->out[j];
      if (v < 0) continue;
      if (p->view && p->in[0] >= 0) l[v].root = l[p->in[0]].root;
      life *r = &l[l[v].root];
      r->made |= !p->view;
      if (r->last < i) r->last = i;
    }
  }
  bl_phase *f = &k->b->piece[piece].phase[phase];
  bool layers = g->piece.at[piece].name != NULL;
  for (int one = 0; one < 2; one++) {
    double live = 0, most = 0;
    const pg_op *where = NULL;  // there is most
    memset(held, 0, sizeof *held * (size_t)n);
    for (int i = 0; i < n; i++) {
      const pg_op *p = &g->op.at[at[i]];
      if (!is_in(p, both, phase) || p->kind != PG_OP) continue;
      for (int j = 0; j < p->nout; j++) {
        int v = p->out[j];
        if (v < 0 || l[v].root != v || !l[v].made || l[v].stored || g->value.at[v].gradient)
          continue;
        if (one && is_part(k, l, p, at, i, v)) {  // it stays
          if (!layers && ir_updated(p->op) < 0) live += local_bytes(k, v);
          continue;
        }
        l[v].inner = is_near(k, p, p->nin + j);
        if (l[v].inner) continue;
        double bytes = local_bytes(k, v) + l[v].moved;
        live += bytes;
        held[l[v].last] += bytes;
      }
      double now = live - taken_over(k, l, p, i);
      if (now > most) most = now, where = p;
      live -= held[i];
    }
    *(one ? &f->transient_one : &f->transient) = most;
    if (!one && where) f->transient_at = pg_op_name(where);
  }
}

static void add_transients(maker *k) {
  const pg_graph *g = k->g;
  life *l = arena_new(k->scratch, life, g->value.n + 1);
  double *held = arena_new(k->scratch, double, g->op.n + 1);
  begin_lives(k, l);
  for (int i = 0; i < g->piece.n; i++) {
    bool tail = i == g->piece.n - 1;
    add_transient(k, l, held, i, tail, PG_FORWARD);
    add_transient(k, l, held, i, tail, PG_BACKWARD);
  }
}

// What waits for backward: stacks of layers, and what the backward part of a piece between layers
// reads of its forward part.
static void add_kept(maker *k) {
  const pg_graph *g = k->g;
  int last = g->piece.n - 1;
  int *made_in = arena_new(k->scratch, int, g->value.n + 1);  // piece + 1; 0: by none, or counted
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    bl_piece *q = &k->b->piece[p->piece];
    if (p->kind == PG_STORE && p->phase == PG_FORWARD && g->value.at[p->out[0]].saved)
      q->kept += local_bytes(k, p->out[0]);
    if (p->kind != PG_OP || g->piece.at[p->piece].name || p->piece == last) continue;
    for (int j = 0; j < p->nout && p->phase == PG_FORWARD; j++)
      if (p->out[j] >= 0 && g->value.at[p->out[j]].batch) made_in[p->out[j]] = p->piece + 1;
    for (int j = 0; j < p->nin && p->phase == PG_BACKWARD; j++)
      if (p->in[j] >= 0 && made_in[p->in[j]] == p->piece + 1) {
        q->kept += local_bytes(k, p->in[j]);
        made_in[p->in[j]] = 0;
      }
  }
}

// Of a value that a piece makes or keeps.
typedef struct reads {
  int root;             // the value that it is a view of
  int weights;          // the piece in which gradients of weights read it, + 1; 0: none do
  bool chain;           // something else reads it that goes backward
  bool kept, backward;  // it waits for backward; it is made there
} reads;

// Not of the update, nor inside a stream, which is no turn of backward.
static bool in_turn(const pg_graph *g, const pg_op *p) {
  bool stream = p->kind == PG_OP && !g->piece.at[p->piece].name && p->op->parent->owner;
  return !p->once && !stream;
}

static void note_reads(const pg_graph *g, const pg_op *p, reads *v) {
  bool layers = g->piece.at[p->piece].name != NULL, weights = p->weights;
  if (p->kind == PG_STORE && p->phase == PG_FORWARD && g->value.at[p->out[0]].saved)
    v[p->out[0]].kept = true;
  for (int j = 0; j < p->nout && p->kind == PG_OP; j++) {
    if (p->out[j] < 0) continue;
    reads *out = &v[p->out[j]];
    if (p->view)
      out->root = p->in[0] < 0 ? out->root : v[p->in[0]].root;
    else if (p->phase == PG_BACKWARD)
      out->backward = !weights;
    else
      out->kept |= !layers;
  }
  for (int j = 0; j < p->nin && p->kind == PG_OP && p->phase == PG_BACKWARD && !p->view; j++) {
    if (p->in[j] < 0) continue;
    reads *in = &v[v[p->in[j]].root];
    if (weights)
      in->weights = p->piece + 1;
    else
      in->chain = true;
  }
}

// What gradients of weights need when they have turns of their own (passes/cut_weights.c). What
// backward makes waits for them when something else reads it too; what does not may go with them.
static void add_late(maker *k) {
  const pg_graph *g = k->g;
  reads *v = arena_new(k->scratch, reads, g->value.n + 1);
  for (int i = 0; i < g->value.n; i++) v[i].root = i;
  for (int i = 0; i < g->op.n; i++)
    if (in_turn(g, &g->op.at[i])) note_reads(g, &g->op.at[i], v);
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    bl_piece *q = &k->b->piece[p->piece];
    for (int j = 0; j < p->nout && in_turn(g, p); j++) {
      reads *r = p->out[j] >= 0 ? &v[p->out[j]] : NULL;
      if (!r || r->weights != p->piece + 1 || !g->value.at[p->out[j]].batch) continue;
      bool late = p->kind == PG_OP && p->phase == PG_BACKWARD && r->backward && r->chain;
      bool longer = p->kind == (g->piece.at[p->piece].name ? PG_STORE : PG_OP) &&
                    p->phase == PG_FORWARD && r->kept;
      if (!late && !longer) continue;
      *(late ? &q->late : &q->kept_longer) += local_bytes(k, p->out[j]);
      r->weights = 0;  // it is counted
    }
  }
}

static void add_piece(arena *a, bl_weight *w, int piece) {
  for (int i = 0; i < w->npieces; i++)
    if (w->piece[i] == piece) return;
  int *more = arena_new(a, int, w->npieces + 1);
  if (w->npieces) memcpy(more, w->piece, sizeof *more * (size_t)w->npieces);
  more[w->npieces++] = piece;
  w->piece = more;
}

// A layer that is alone has what its weights need.
static void give_to_layer(maker *k, const bl_weight *x) {
  int piece = x->piece[0];
  bl_state_add(&k->b->piece[piece].layer, &x->state, 1);
  for (int inner = 0; inner < BL_INNER; inner++) {
    const bl_sent *from = x->once[inner];
    if (!from) continue;
    bl_sent *to = sent_of(k, piece, inner, 2);
    to->seconds += from->seconds;
    for (int c = 0; c < CL_COLLECTIVES; c++) {
      for (int far = 0; far < 2; far++) to->bytes[c][far] += from->bytes[c][far];
      to->calls[c] += from->calls[c];
    }
  }
}

static void keep_weight(arena *a, bl_block *b, const bl_weight *x) {
  bl_weight w = *x;
  w.piece = arena_new(a, int, w.npieces);
  memcpy(w.piece, x->piece, sizeof *w.piece * (size_t)w.npieces);
  for (int i = 0; i < 2; i++) {
    w.gathers[i] = arena_new(a, double, w.npieces);
    memcpy(w.gathers[i], x->gathers[i], sizeof *w.gathers[i] * (size_t)w.npieces);
  }
  vec_push(a, &b->weight, w);
}

// By weight.
static uses *find_uses(const maker *k) {
  uses *of = arena_new(k->scratch, uses, k->g->value.n + 1);
  for (int i = 0; i < k->g->op.n; i++) {
    const pg_op *p = &k->g->op.at[i];
    if (p->kind != PG_UPDATE || p->in[0] < 0 || p->out[0] < 0) continue;
    for (int x = 0; x < BL_INNER; x++) {
      const sh_result *s = k->b->axis[x];
      if (!s->strategy) continue;
      int code = k->r->strategy[i][s->strategy[i]].code[0], made = s->code[p->in[0]];
      if (code < 0) code = made;
      if (x == 0)
        of[p->out[0]].late |= code != made;
      else if (code != SH_PARTIAL)
        of[p->out[0]].whole |= x;
    }
  }
  return of;
}

// `bytes`: those of one.
static void count_gather(const maker *k, bl_weight *w, int piece, bool once, double bytes) {
  int at = 0;  // a view above the repeats is read elsewhere
  while (at < w->npieces && w->piece[at] != piece) at++;
  double n = at < w->npieces ? (double)k->g->piece.at[piece].count : 1;
  if (at == w->npieces) at = 0;
  w->gathers[once][at] += bytes * n / (double)k->g->piece.at[w->piece[at]].count;
  w->state.gathered[once] += bytes * n;
}

// Counts them for all weights: `all`, by `number` - 1, and those of stacks.
static void add_gathers(maker *k, bl_weight *all, int n, const int *number) {
  for (int w = 0; w < n; w++)
    for (int i = 0; i < 2; i++) all[w].gathers[i] = arena_new(k->scratch, double, all[w].npieces);
  for (int i = 0; i < k->g->op.n; i++) {
    const pg_op *p = &k->g->op.at[i];
    for (int j = 0; j < p->nin && j < 64 && p->gathers; j++) {
      int v = p->in[j];
      if (!(p->gathers >> j & 1) || !number[v]) continue;
      // Products read a rounded copy, lookups the weight.
      double bytes = k->g->value.at[v].elements * k->b->value_part[v] *
                     ir_dtype_bytes(p->op->in[j]->type.dtype);
      if (k->g->value.at[v].layers > 1)
        k->b->piece[p->piece].layer.gathered[p->once] += bytes;
      else
        count_gather(k, &all[number[v] - 1], p->piece, p->once, bytes);
    }
  }
}

// Weights by the pieces that read them. A view above the repeats is read where its readers are.
static void add_weights(maker *k) {
  const pg_graph *g = k->g;
  VEC(bl_weight) all = {0};
  int *number = arena_new(k->scratch, int, g->value.n + 1);  // of its bl_weight + 1; a stack: 1
  const uses *of = find_uses(k);
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    if (p->kind != PG_OP || p->view) continue;
    for (int j = 0; j < p->nin; j++) {
      int v = p->in[j];
      if (v >= 0 && g->value.at[v].view_of >= 0) v = g->value.at[v].view_of;
      const pg_value *w = v < 0 ? NULL : &g->value.at[v];
      if (!w || !w->weight) continue;
      bool stack = w->layers > 1;  // only its repeat reads it
      if (!number[v]) {
        bl_state s = state_of(w, k->b->value_part[v], of[v]);
        number[v] = 1;
        if (stack) bl_state_add(&k->b->piece[p->piece].layer, &s, 1);
        if (stack) continue;
        bl_weight new = {.state = s};
        for (int x = 0; x < BL_INNER; x++) new.once[x] = k->summed[v * BL_INNER + x];
        vec_push(k->scratch, &all, new);
        number[v] = all.n;
      }
      if (!stack) add_piece(k->scratch, &all.at[number[v] - 1], p->piece);
    }
  }
  add_gathers(k, all.at, all.n, number);
  // A layer that is alone in its repeat has no stacks: what only it reads is its own too.
  for (int w = 0; w < all.n; w++) {
    const bl_weight *x = &all.at[w];
    const pg_piece *only = x->npieces == 1 ? &g->piece.at[x->piece[0]] : NULL;
    if (only && only->name && only->count == 1)
      give_to_layer(k, x);
    else
      keep_weight(k->a, k->b, x);
  }
  bool any = false;
  for (int i = 0; i < g->piece.n; i++) {
    double n = (double)g->piece.at[i].count;
    const bl_piece *q = &k->b->piece[i];
    bl_state_add(&k->b->layers, &q->layer, n);
    if (!g->piece.at[i].name) continue;
    k->b->kept += n * q->kept;
    k->b->least = any ? bl_state_least(&k->b->least, &q->layer) : q->layer;
    any = true;
  }
  for (int w = 0; w < k->b->weight.n; w++)
    bl_state_add(&k->b->others, &k->b->weight.at[w].state, 1);
}

static void add_handovers(maker *k) {
  double *bytes = arena_new(k->scratch, double, k->g->value.n + 1);
  for (int v = 0; v < k->g->value.n; v++) bytes[v] = local_bytes(k, v);
  const handover *const *h = ho_find(k->a, k->scratch, k->g, bytes);
  for (int i = 0; i < k->b->npieces; i++) k->b->piece[i].hands = h[i];
}

// What is asked of a solved axis when the block is made: all else of it goes.
static sh_result *keep_axis(arena *a, const pg_graph *g, const sh_result *from) {
  sh_result *to = arena_new(a, sh_result, 1);
  if (!from->strategy) return to;
  to->strategy = arena_new(a, short, g->op.n + 1);
  memcpy(to->strategy, from->strategy, sizeof *to->strategy * (size_t)g->op.n);
  to->code = arena_alloc(a, (size_t)g->value.n + 1);
  memcpy(to->code, from->code, (size_t)g->value.n);
  to->stats = from->stats;
  return to;
}

// ---- all ----------------------------------------------------------------------------------------

// In a step: a share of what happens once is counted with each. Placements are found before the
// number is known.
enum { MICRO_BATCHES = 8 };

const char *bl_solve(arena *a, const sh_rules *rules, const bl_key *key, const cl_cluster *cluster,
                     const cl_device *device, const signed char *const weights[BL_INNER],
                     bl_axes *out) {
  static const int order[BL_INNER] = {2, 1, 0};
  const pg_graph *g = rules->g;
  *out = (bl_axes){.value_part = arena_new(a, double, g->value.n + 1),
                   .op_part = arena_new(a, double, g->op.n + 1)};
  for (int v = 0; v < g->value.n; v++) out->value_part[v] = 1;
  for (int i = 0; i < g->op.n; i++) out->op_part[i] = 1;
  const char *behind = "", *why = NULL;
  for (int n = 0; n < BL_INNER; n++) {
    int x = order[n];
    if (key->size[x] == 1) continue;
    out->before[x] = arena_new(a, double, g->value.n + 1);
    memcpy(out->before[x], out->value_part, sizeof *out->before[x] * (size_t)g->value.n);
    sh_env e = {.cluster = cluster,
                .device = device,
                .size = key->size[x],
                .stride = key->stride[x],
                .domain = domain_of[x],
                .whole_stream = x == 0 && key->whole_stream,
                .micro_batch = key->micro_batch,
                .micro_batches = MICRO_BATCHES,
                .behind = x ? behind : NULL,  // nothing is solved after the last one
                .weights = weights ? weights[x] : NULL};
    sh_result *s = sh_solve(a, rules, &e, out->value_part, out->op_part, &why);
    if (!s) return why;
    uint64_t route = cl_route_digest(cluster, key->stride[x], key->size[x]);
    behind = arena_printf(a, "%s %d %" PRId64 " over %" PRIx64, behind, x, key->size[x], route);
    for (int i = 0; i < g->op.n; i++) out->op_part[i] *= s->op_part[i];
    for (int v = 0; v < g->value.n; v++) out->value_part[v] *= s->value_part[v];
    out->axis[x] = s;
  }
  return NULL;
}

bl_block *bl_make(arena *a, const sh_rules *rules, const bl_key *key, const cl_cluster *cluster,
                  const cl_device *device) {
  const pg_graph *g = rules->g;
  bl_block *b = arena_new(a, bl_block, 1);
  b->key = *key;
  b->g = g;
  b->npieces = g->piece.n;
  b->piece = arena_new(a, bl_piece, g->piece.n);
  arena scratch;
  arena_init(&scratch);
  bl_axes axes;
  b->why = bl_solve(&scratch, rules, key, cluster, device, NULL, &axes);
  if (b->why) {
    b->code = str_eq(b->why, SH_ENTANGLED) ? "entangled" : "indivisible";
    arena_free(&scratch);
    return b;
  }
  maker k = {.a = a,
             .scratch = &scratch,
             .r = rules,
             .g = g,
             .b = b,
             .cluster = cluster,
             .device = device,
             .op_part = axes.op_part};
  b->value_part = axes.value_part;
  for (int x = 0; x < BL_INNER; x++)
    b->axis[x] = axes.axis[x] ? axes.axis[x] : arena_new(&scratch, sh_result, 1);
  add_ops(&k);
  send_nothing(&k);
  find_gradients(&k);
  steps_gathers asides = steps_aside(&scratch, rules, b->axis, key, cluster);
  for (int i = 0; i < asides.n; i++) add_moves(&k, asides.at[i].axis, &asides.at[i].move, 1);
  for (int x = 0; x < BL_INNER; x++) {
    shrink_moves(&k, x, axes.before[x]);
    add_moves(&k, x, b->axis[x]->moves.at, b->axis[x]->moves.n);
    add_moves(&k, x, b->axis[x]->reduces.at, b->axis[x]->reduces.n);
    hide_prefetched(&k, x);
    hide_streams(&k, x);
  }
  add_transients(&k);
  add_kept(&k);
  add_late(&k);
  add_weights(&k);
  add_handovers(&k);
  for (int x = 0; x < BL_INNER; x++) b->axis[x] = keep_axis(a, g, b->axis[x]);
  b->value_part = NULL;
  arena_free(&scratch);
  return b;
}

// No rank holds less than 1/n of a value, and none sees fewer bytes than the smaller one of what is
// stored and what is sent. What stays in a kernel at best does so here.
double bl_bound(const pg_graph *g, const bl_key *key, const cl_device *device) {
  double n = (double)(key->size[0] * key->size[1] * key->size[2]), seconds = 0;
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    if (p->kind != PG_OP || p->once || p->view) continue;
    double flops = p->cost.flops, bytes = 0;
    bool batch = false;
    for (int j = 0; j < p->nin + p->nout; j++) {
      int v = j < p->nin ? p->in[j] : p->out[j - p->nin];
      if (v < 0) continue;
      const pg_value *w = &g->value.at[v];
      batch |= w->batch;
      if (j < 64 && (p->near >> j & 1)) continue;
      bytes += fmin(w->bytes, w->sent) * (w->batch ? (double)key->micro_batch : 1);
    }
    if (batch) flops *= (double)key->micro_batch;
    seconds += p->times * pc_op_seconds(device, &p->cost, flops / n, bytes / n);
  }
  return seconds;
}
