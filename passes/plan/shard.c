// The search: variables are the strategy of each op and the state of each value, that is, the
// placement it is produced in and those it is converted to. An op constrains the values it touches:
// what it produces is what its strategy says, what it reads must be among what is there. Costs are
// the seconds of ops and of conversions, of one micro-batch; so every term has one variable, or two
// and only zeros and EL_NEVER.
#include "passes/plan/shard.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ir/place.h"
#include "ir/view.h"

bool sh_divides(const ir_index *x, int64_t n) { return x->size % n == 0 || x->size >= 64 * n; }

double sh_part(const ir_index *x, int64_t n) {
  return (double)((x->size + n - 1) / n) / (double)x->size;
}

const char *sh_code_text(arena *a, const pg_value *v, int code, const char *axis) {
  if (code == SH_REPLICATED) return "";
  if (code == SH_PARTIAL) return arena_printf(a, "partial/%s", axis);
  const char *name = v->leaf[code - SH_LEAF]->name;
  return arena_printf(a, "%s/%s", name ? name : "index", axis);
}

// ---- states of values ---------------------------------------------------------------------------

typedef struct state {
  int produced;
  unsigned there;  // codes that are there, by bits: what is produced and what it is converted to
  int to[2];       // conversions, one after the other; -1: none
  int from[2];
} state;

typedef struct solver {
  arena *a;       // of this search alone
  arena *result;  // of what it finds
  const sh_rules *r;
  const pg_graph *g;
  const sh_env *e;
  const double *value_part, *op_part;
  int *times;  // runs of what makes a value
  bool *once;
  int *piece;
  pg_phase *phase;
  unsigned *made, *asked;  // codes of each value
  state **state;
  int *nstates;
  int **keep;  // strategies of each op that this axis can use
  int *nkeep;
  bool *streamed;  // the value feeds an attention that its conversion overlaps
} solver;

// What a rank holds of the value before this axis cuts it, at the micro-batch, in bytes.
static double bytes_of(const solver *s, int v) {
  const pg_value *p = &s->g->value.at[v];
  double b = p->bytes * (p->batch ? (double)s->e->micro_batch : 1);
  return s->value_part ? b * s->value_part[v] : b;
}

static double part_of(const solver *s, int v, int code) {
  if (code < SH_LEAF) return 1;
  return sh_part(s->g->value.at[v].leaf[code - SH_LEAF], s->e->size);
}

static ir_on_axis on(int code) {
  return code == SH_REPLICATED ? ON_REPLICATED : code == SH_PARTIAL ? ON_PARTIAL : ON_CUT;
}

// The collective of a conversion; false: it sends nothing.
static bool collective_of(ir_conversion c, cl_collective *kind) {
  switch (c) {
    case CONVERT_ALL_GATHER: *kind = CL_ALL_GATHER; return true;
    case CONVERT_ALL_REDUCE: *kind = CL_ALL_REDUCE; return true;
    case CONVERT_REDUCE_SCATTER: *kind = CL_REDUCE_SCATTER; return true;
    case CONVERT_ALL_TO_ALL: *kind = CL_ALL_TO_ALL; return true;
    default: return false;
  }
}

static cl_cost move_cost(const solver *s, int v, int from, int to, cl_collective *kind,
                         double *bytes) {
  *bytes = bytes_of(s, v);
  if (s->g->value.at[v].bytes > 0) *bytes *= s->g->value.at[v].sent / s->g->value.at[v].bytes;
  if (!collective_of(place_convert_on(on(from), on(to), from == to, false), kind))
    return (cl_cost){.how = ""};
  if (*kind == CL_ALL_TO_ALL) *bytes *= part_of(s, v, from);  // what a rank holds
  return cl_collective_cost(s->e->cluster, *kind, s->e->stride, s->e->size, *bytes);
}

static double runs_of(const solver *s, int v) {
  double n = s->times[v];
  return s->once[v] ? n / (double)s->e->micro_batches : n;
}

static void add_state(solver *s, int v, state x) { s->state[v][s->nstates[v]++] = x; }

// All states of a value: each placement it may be produced in, with up to two conversions. What is
// replicated is there in every cut form too.
static void make_states(solver *s, int v) {
  unsigned made = s->made[v], asked = s->asked[v];
  int codes = SH_LEAF + s->g->value.at[v].nleaf;
  unsigned leaves = ~3u;
  int n = __builtin_popcount(asked);
  s->state[v] = arena_new(s->a, state, __builtin_popcount(made) * (2 + n + n * n));
  for (int p = 0; p < codes; p++) {
    if (!(made >> p & 1)) continue;
    unsigned there = 1u << p;
    if (p == SH_REPLICATED) {
      add_state(s, v, (state){p, there | leaves, {-1, -1}, {0, 0}});
      continue;
    }
    add_state(s, v, (state){p, there, {-1, -1}, {0, 0}});
    // A weight stays as it lies: to gather it is what ZeRO 3 does, over the axes it is replicated
    // on.
    // The same holds for a view of one: gathered, it would be a whole copy on every rank.
    if (s->g->value.at[v].weight || s->g->value.at[v].view_of >= 0) continue;
    if (asked & ~there)  // replicated: serves all
      add_state(s, v, (state){p, there | 1u | leaves, {SH_REPLICATED, -1}, {p, 0}});
    for (int x = SH_LEAF; x < codes; x++) {
      if (x == p || !(asked >> x & 1)) continue;
      add_state(s, v, (state){p, there | 1u << x, {x, -1}, {p, 0}});
      for (int y = x + 1; y < codes; y++)
        if (y != p && (asked >> y & 1))
          add_state(s, v, (state){p, there | 1u << x | 1u << y, {x, y}, {p, p}});
    }
  }
}

static double state_cost(const solver *s, int v, const state *x) {
  double seconds = 0;
  for (int i = 0; i < 2; i++) {
    if (x->to[i] < 0) continue;
    cl_collective kind;
    double bytes;
    seconds += move_cost(s, v, x->from[i], x->to[i], &kind, &bytes).seconds;
  }
  seconds *= runs_of(s, v);
  const pg_value *p = &s->g->value.at[v];
  if (p->saved) seconds *= 1e-9;  // prefetched: block.c counts what backward does not hide
  // Of equal plans the one that keeps less for backward, and weights cut: far below any real cost.
  double held = bytes_of(s, v) * part_of(s, v, x->produced) * p->layers;
  if (p->saved || p->weight) seconds += held * 1e-18;
  return seconds;
}

// ---- ops ----------------------------------------------------------------------------------------

static double op_cost(const solver *s, int at, const sh_strategy *x) {
  const pg_op *p = &s->g->op.at[at];
  if (p->kind != PG_OP || p->view) return 0;
  double share = x->cuts ? sh_part(x->index, s->e->size) : 1, flops = p->cost.flops, bytes = 0;
  bool batch = false;
  for (int i = 0; i < p->nin + p->nout; i++) {
    int v = i < p->nin ? p->in[i] : p->out[i - p->nin];
    if (v < 0) continue;
    if (i >= 64 || !(p->near >> i & 1)) bytes += bytes_of(s, v) * part_of(s, v, x->code[i]);
    batch |= s->g->value.at[v].batch;
  }
  if (batch) flops *= (double)s->e->micro_batch;
  flops *= share * (s->op_part ? s->op_part[at] : 1);
  double seconds = pc_op_seconds(s->e->device, &p->cost, flops, bytes);
  if (x->reduces)
    seconds += x->reduces * cl_collective_cost(s->e->cluster, CL_ALL_REDUCE, s->e->stride,
                                               s->e->size, bytes_of(s, p->out[0]))
                                .seconds;
  seconds *= p->times;
  return p->once ? seconds / (double)s->e->micro_batches : seconds;
}

static bool leaf_allowed(const solver *s, const ir_index *x) {
  return sh_divides(x, s->e->size) && (s->e->domain != SH_SEQUENCE || sh_is_position(s->r, x));
}

static bool code_allowed(const solver *s, int v, int code) {
  if (code < SH_LEAF) return true;
  const pg_value *p = &s->g->value.at[v];
  if (s->e->domain != SH_ANY && !p->batch) return false;
  return leaf_allowed(s, p->leaf[code - SH_LEAF]);
}

static bool usable(const solver *s, const pg_op *p, const sh_strategy *x) {
  for (int i = 0; i < p->nin + p->nout; i++) {
    int v = i < p->nin ? p->in[i] : p->out[i - p->nin];
    if (v >= 0 && !code_allowed(s, v, x->code[i])) return false;
  }
  // A gradient that stays partial is summed with those of the data ranks, over which its weight is
  // whole too. On `tensor` it must become what the weight is.
  return p->kind != PG_UPDATE || x->code[0] != SH_PARTIAL || s->e->domain != SH_ANY;
}

static void prepare(solver *s) {
  const pg_graph *g = s->g;
  int nv = g->value.n, no = g->op.n;
  s->times = arena_new(s->a, int, nv + 1);
  s->once = arena_new(s->a, bool, nv + 1);
  s->piece = arena_new(s->a, int, nv + 1);
  s->phase = arena_new(s->a, pg_phase, nv + 1);
  s->made = arena_new(s->a, unsigned, nv + 1);
  s->asked = arena_new(s->a, unsigned, nv + 1);
  s->state = arena_new(s->a, state *, nv + 1);
  s->nstates = arena_new(s->a, int, nv + 1);
  s->keep = arena_new(s->a, int *, no + 1);
  s->nkeep = arena_new(s->a, int, no + 1);
  s->streamed = arena_new(s->a, bool, nv + 1);
  for (int i = 0; i < no; i++) {
    const pg_op *p = &g->op.at[i];
    s->keep[i] = arena_new(s->a, int, s->r->n[i]);
    for (int k = 0; k < s->r->n[i]; k++) {
      const sh_strategy *x = &s->r->strategy[i][k];
      if (!usable(s, p, x)) continue;
      s->keep[i][s->nkeep[i]++] = k;
      for (int j = 0; j < p->nin + p->nout; j++) {
        int v = j < p->nin ? p->in[j] : p->out[j - p->nin];
        if (v < 0) continue;
        if (j < p->nin)
          s->asked[v] |= 1u << x->code[j];
        else
          s->made[v] |= 1u << x->code[j];
      }
    }
    for (int j = 0; j < p->nout; j++) {
      int v = p->out[j];
      if (v < 0 || p->kind == PG_UPDATE) continue;
      if (p->times >= s->times[v]) {
        s->times[v] = p->times;
        s->once[v] = p->once || g->value.at[v].gradient;
        s->piece[v] = p->piece;
        s->phase[v] = p->phase;
      }
    }
  }
  bool *multiplied = arena_new(s->a, bool, nv + 1);
  for (int i = 0; i < no; i++) {
    const pg_op *p = &g->op.at[i];
    for (int k = 0; k < p->nin && p->kind == PG_OP && p->cost.kind == PC_PRODUCT; k++) {
      int v = p->in[k];
      if (v >= 0) multiplied[g->value.at[v].view_of >= 0 ? g->value.at[v].view_of : v] = true;
    }
  }
  for (int v = 0; v < nv; v++) {
    const pg_value *p = &g->value.at[v];
    if (!p->weight) continue;
    s->made[v] = 0;
    for (int c = SH_LEAF; c < SH_LEAF + p->nleaf; c++)
      if (code_allowed(s, v, c)) s->made[v] |= 1u << c;
    // Matrices are cut where they can be: that is what `tensor` means. (Weights that are whole
    // while tokens are cut are what ulysses has.) Norms and biases may be whole.
    if (!s->made[v] || !multiplied[v]) s->made[v] |= 1u;
    s->times[v] = p->layers;
    s->piece[v] = -1;
  }
}

// A value that comes in any placement asks for nothing.
static bool unbound(const solver *s, int v) {
  return v < 0 || s->g->value.at[v].free || (!s->made[v] && !s->g->value.at[v].weight);
}

static void tie(solver *s, el_problem *p, int op, int side, int v, bool def) {
  int n = s->nkeep[op], m = s->nstates[v];
  double *cost = arena_new(s->a, double, n *m);
  bool binds = false;
  for (int i = 0; i < n; i++) {
    int code = s->r->strategy[op][s->keep[op][i]].code[side];
    for (int k = 0; k < m; k++) {
      const state *x = &s->state[v][k];
      bool ok = def ? x->produced == code : (x->there >> code & 1) != 0;
      cost[i * m + k] = ok ? 0 : EL_NEVER;
      binds |= !ok;
    }
  }
  if (binds) el_two(p, op, s->g->op.n + v, cost);
}

static void record(solver *s, sh_result *out, const int *value) {
  const pg_graph *g = s->g;
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    out->strategy[i] = s->keep[i][value[i]];
    const sh_strategy *x = &s->r->strategy[i][out->strategy[i]];
    out->op_part[i] = x->cuts ? sh_part(x->index, s->e->size) : 1;
    if (x->reduces) {
      sh_move m = {.value = p->out[0],
                   .kind = CL_ALL_REDUCE,
                   .piece = p->piece,
                   .phase = p->phase,
                   .times = x->reduces * p->times,
                   .once = p->once,
                   .bytes = bytes_of(s, p->out[0])};
      m.cost = cl_collective_cost(s->e->cluster, m.kind, s->e->stride, s->e->size, m.bytes);
      vec_push(s->result, &out->reduces, m);
    }
    for (int k = 0; k < p->nin && x->streams; k++)
      if (x->streams[k] && p->in[k] >= 0) s->streamed[p->in[k]] = true;
  }
  for (int v = 0; v < g->value.n; v++) {
    out->code[v] = SH_REPLICATED;
    if (!s->nstates[v]) continue;
    const state *x = &s->state[v][value[g->op.n + v]];
    out->code[v] = (signed char)x->produced;
    out->value_part[v] = part_of(s, v, x->produced);
    for (int i = 0; i < 2; i++) {
      if (x->to[i] < 0) continue;
      sh_move m = {.value = v,
                   .from = x->from[i],
                   .to = x->to[i],
                   .piece = s->piece[v],
                   .phase = s->phase[v],
                   .times = s->times[v],
                   .once = s->once[v],
                   .streamed = s->streamed[v],
                   .prefetched = g->value.at[v].saved};
      if (m.prefetched) m.phase = PG_BACKWARD;
      m.cost = move_cost(s, v, m.from, m.to, &m.kind, &m.bytes);
      vec_push(s->result, &out->moves, m);
    }
  }
  // Of values that are free the placement is that of whoever reads them.
  for (int i = 0; i < g->op.n; i++)
    for (int k = 0; k < g->op.at[i].nin; k++) {
      int v = g->op.at[i].in[k];
      if (v < 0 || s->nstates[v]) continue;
      int code = s->r->strategy[i][out->strategy[i]].code[k];
      if (part_of(s, v, code) < out->value_part[v]) out->value_part[v] = part_of(s, v, code);
    }
}

sh_result *sh_solve(arena *a, const sh_rules *r, const sh_env *e, const double *value_part,
                    const double *op_part, const char **why) {
  const pg_graph *g = r->g;
  arena own;  // tables are large and go at the end
  arena_init(&own);
  solver s = {
      .a = &own, .result = a, .r = r, .g = g, .e = e, .value_part = value_part, .op_part = op_part};
  prepare(&s);
  int *size = arena_new(&own, int, g->op.n + g->value.n + 1);
  for (int i = 0; i < g->op.n; i++) size[i] = s.nkeep[i];
  for (int v = 0; v < g->value.n; v++) {
    if (!unbound(&s, v)) make_states(&s, v);
    size[g->op.n + v] = s.nstates[v] ? s.nstates[v] : 1;
  }
  el_problem *p = el_new(&own, g->op.n + g->value.n, size);
  for (int i = 0; i < g->op.n; i++) {
    double *cost = arena_new(&own, double, s.nkeep[i]);
    for (int k = 0; k < s.nkeep[i]; k++) cost[k] = op_cost(&s, i, &r->strategy[i][s.keep[i][k]]);
    el_one(p, i, cost);
    const pg_op *o = &g->op.at[i];
    for (int k = 0; k < o->nin + o->nout; k++) {
      int v = k < o->nin ? o->in[k] : o->out[k - o->nin];
      if (v >= 0 && s.nstates[v]) tie(&s, p, i, k, v, k >= o->nin);
    }
  }
  for (int v = 0; v < g->value.n; v++) {
    if (!s.nstates[v]) continue;
    double *cost = arena_new(&own, double, s.nstates[v]);
    for (int k = 0; k < s.nstates[v]; k++) cost[k] = state_cost(&s, v, &s.state[v][k]);
    el_one(p, g->op.n + v, cost);
  }
  sh_result *out = arena_new(a, sh_result, 1);
  out->strategy = arena_new(a, int, g->op.n + 1);
  out->op_part = arena_new(a, double, g->op.n + 1);
  out->code = arena_alloc(a, (size_t)g->value.n + 1);
  out->value_part = arena_new(a, double, g->value.n + 1);
  for (int v = 0; v < g->value.n; v++) out->value_part[v] = 1;
  int *value = arena_new(&own, int, g->op.n + g->value.n + 1);
  bool found = el_solve(p, &own, value, &out->seconds, &out->stats);
  if (found)
    record(&s, out, value);
  else
    *why = isnan(out->seconds) ? "its ops are too entangled to place exactly"
                               : "no placement of its values is possible";
  arena_free(&own);
  return found ? out : NULL;
}

// ---- printing -----------------------------------------------------------------------------------

// Which op makes a value first; -1: a weight or an input.
static int maker_of(const pg_graph *g, int v) {
  for (int i = 0; i < g->op.n; i++)
    for (int k = 0; k < g->op.at[i].nout && g->op.at[i].kind != PG_UPDATE; k++)
      if (g->op.at[i].out[k] == v) return i;
  return -1;
}

static void print_move(FILE *out, arena *a, const pg_graph *g, const sh_move *m, bool inside,
                       const char *axis) {
  const pg_value *v = &g->value.at[m->value];
  int made = maker_of(g, m->value);
  const char *piece = m->piece < 0 ? NULL : g->piece.at[m->piece].name;
  const char *by = v->carried ? "carried" : made < 0 ? "input" : pg_op_name(&g->op.at[made]);
  const char *op =
      made >= 0 && g->op.at[made].kind == PG_OP ? ir_info(g->op.at[made].op->code)->name : "-";
  const char *from = sh_code_text(a, v, m->from, axis), *to = sh_code_text(a, v, m->to, axis);
  fprintf(out, "%-9s %-8s %-14s %s (%s): %s -> %s, %.0f bytes%s%s\n", piece ? piece : "-",
          m->phase == PG_FORWARD ? "forward" : "backward", cl_collective_name(m->kind), by, op,
          inside  ? "within the op"
          : *from ? from
                  : "whole",
          *to ? to : "whole", m->bytes, m->streamed ? ", streamed" : "",
          m->once ? ", once a step" : "");
}

void sh_print(FILE *out, arena *a, const sh_rules *r, const sh_result *s, const char *axis) {
  const pg_graph *g = r->g;
  for (int v = 0; v < g->value.n; v++) {
    const pg_value *p = &g->value.at[v];
    if (!p->weight) continue;
    const char *text = sh_code_text(a, p, s->code[v], axis);
    fprintf(out, "weight    %-44s %s", p->weight->name, *text ? text : "whole");
    // Which dim that is tells a column from a row: weights are [out, in].
    if (s->code[v] >= SH_LEAF) fprintf(out, " (dim %d)", p->dim[s->code[v] - SH_LEAF]);
    fputc('\n', out);
  }
  for (int i = 0; i < g->op.n + 1; i++)
    for (int k = 0; k < s->moves.n; k++) {
      int made = maker_of(g, s->moves.at[k].value);
      if (made == i || (made < 0 && i == g->op.n))
        print_move(out, a, g, &s->moves.at[k], false, axis);
    }
  for (int k = 0; k < s->reduces.n; k++) print_move(out, a, g, &s->reduces.at[k], true, axis);
}
