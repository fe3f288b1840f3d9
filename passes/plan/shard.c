// The search: variables are the strategy of each op and the state of each value, that is, the
// placement it is produced in and those it is converted to. An op constrains the values it touches:
// what it produces is what its strategy says, what it reads must be among what is there. Costs are
// the seconds of ops and of conversions, of one micro-batch; so every term has one variable, or two
// and only zeros and EL_NEVER.
//
// What is forbidden depends only on which indices the axis can cut. So all that follows from it,
// the compiled problem with it, is a *shape* that is made once; a search fills in the costs.
#include "passes/plan/shard.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ir/place.h"
#include "ir/view.h"
#include "runtime/base/intern.h"
#include "runtime/base/map.h"
#include "runtime/base/str.h"

bool sh_divides(const sh_rules *r, const ir_index *x, int64_t n) {
  if (x->size % n == 0) return true;
  for (int i = 0; i < r->table.n; i++)
    if (r->table.at[i] == x) return x->size >= 64 * n;
  return false;
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

// The ops that read each value, each once, in order: of value v, at[first[v]] .. at[first[v + 1] -
// 1].
typedef struct reader_list {
  int *first, *at;
} reader_list;

// What all searches of a graph share.
typedef struct basis {
  int *times;  // runs of what makes a value
  bool *once;
  int *piece;
  pg_phase *phase;
  bool *multiplied;             // a weight that is an operand of a product
  VEC(const ir_index *) index;  // all leaves of values, each once
  int **leaf;                   // of each value: the numbers of its leaves there
  reader_list readers;
} basis;

// What searches share whose axes may cut the same.
typedef struct shape {
  const char *cuts;  // the domain, then for each index of the basis how it can be cut: '-' not, '+'
                     // evenly, 'p' with padding
  unsigned *made, *asked;  // codes of each value
  state **state;
  int *nstates;
  int **keep;  // strategies of each op that this axis can use
  int *nkeep;
  int *alike;  // of each op, then of each value: a number that those share whose costs are the same
               // function of what other axes leave
  int classes;          // such numbers
  el_circuit *circuit;  // NULL: too large
  el_stats stats;
} shape;

struct sh_memo {
  arena *a;
  basis *basis;
  VEC(shape *) shape;
  map solved;  // of sh_env with `behind`: the value of each variable, as short
};

sh_memo *sh_memo_new(arena *a) {
  sh_memo *m = arena_new(a, sh_memo, 1);
  m->a = m->solved.arena = a;
  return m;
}

typedef struct solver {
  arena *a;       // of this search alone
  arena *result;  // of what it finds
  const sh_rules *r;
  const pg_graph *g;
  const sh_env *e;
  const double *value_part, *op_part;
  const basis *b;
  const shape *x;
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
  double n = s->b->times[v];
  return s->b->once[v] ? n / (double)s->e->micro_batches : n;
}

static void add_state(shape *x, int v, state s) { x->state[v][x->nstates[v]++] = s; }

// Whether one reader may ask for x and another one for y: else not both are needed.
static bool both_asked(const sh_rules *r, const shape *s, const int *reader, int n, int v, int x,
                       int y) {
  int asks = 0, of_x = 0, of_y = 0;  // operands that may ask for either
  for (int i = 0; i < n; i++) {
    const pg_op *p = &r->g->op.at[reader[i]];
    for (int k = 0; k < p->nin; k++) {
      bool has_x = false, has_y = false;
      for (int j = 0; p->in[k] == v && j < s->nkeep[reader[i]]; j++) {
        int code = r->strategy[reader[i]][s->keep[reader[i]][j]].code[k];
        has_x |= code == x;
        has_y |= code == y;
      }
      of_x += has_x;
      of_y += has_y;
      asks += has_x || has_y;
    }
  }
  return of_x && of_y && asks > 1;
}

// Codes that a value can be made in and read in but not brought to or from: parts that end in
// padding and do not lie one behind the other. (What exchanges would move them knows one end
// alone.)
static unsigned stuck_codes(const sh_rules *r, const basis *b, const shape *s, int v) {
  const pg_value *p = &r->g->value.at[v];
  unsigned codes = 0;
  for (int l = 0; l < p->nleaf; l++)
    if (s->cuts[1 + b->leaf[v][l]] == 'p' && (l || p->batch)) codes |= 1u << (SH_LEAF + l);
  return codes;
}

// All states of a value: each placement it may be produced in, with up to two conversions. What is
// replicated is there in every cut form too. `reader`: the ops that read it.
static void make_states(arena *scratch, const sh_rules *r, shape *s, int v, const int *reader,
                        int readers) {
  unsigned stuck = stuck_codes(r, r->memo->basis, s, v);
  unsigned made = s->made[v], asked = s->asked[v];
  const pg_value *value = &r->g->value.at[v];
  int codes = SH_LEAF + value->nleaf;
  unsigned leaves = ~3u & ~stuck;
  int n = __builtin_popcount(asked);
  s->state[v] = arena_new(scratch, state, __builtin_popcount(made) * (2 + n + n * n));
  for (int p = 0; p < codes; p++) {
    if (!(made >> p & 1)) continue;
    unsigned there = 1u << p;
    if (p == SH_REPLICATED) {
      add_state(s, v, (state){p, there | leaves, {-1, -1}, {0, 0}});
      continue;
    }
    add_state(s, v, (state){p, there, {-1, -1}, {0, 0}});
    if (stuck >> p & 1) continue;
    // A weight stays as it lies: to gather it is what ZeRO 3 does, over the axes it is replicated
    // on.
    // The same holds for a view of one: gathered, it would be a whole copy on every rank.
    if (value->weight || value->view_of >= 0) continue;
    if (asked & ~there)  // replicated: serves all
      add_state(s, v, (state){p, there | 1u | leaves, {SH_REPLICATED, -1}, {p, 0}});
    for (int x = SH_LEAF; x < codes; x++) {
      if (x == p || !(asked >> x & 1) || stuck >> x & 1) continue;
      add_state(s, v, (state){p, there | 1u << x, {x, -1}, {p, 0}});
      for (int y = x + 1; y < codes; y++)
        if (y != p && (asked >> y & 1) && !(stuck >> y & 1) &&
            both_asked(r, s, reader, readers, v, x, y))
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
  if (p->ahead) seconds *= 1e-9;  // prefetched: block.c counts what backward does not hide
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

// ---- shapes -------------------------------------------------------------------------------------

// `number`: of the index with an id, + 1.
static int number_of(arena *a, basis *b, int *number, const ir_index *x) {
  if (!number[x->id]) {
    vec_push(a, &b->index, x);
    number[x->id] = b->index.n;
  }
  return number[x->id] - 1;
}

// The value of operand k, when it has one and no operand before it is the same; else -1.
static int read_first(const pg_op *p, int k) {
  for (int j = 0; j < k; j++)
    if (p->in[j] == p->in[k]) return -1;
  return p->in[k];
}

static reader_list find_readers(const pg_graph *g, arena *a) {
  reader_list r = {.first = arena_new(a, int, g->value.n + 2)};
  int *end = r.first + 1;  // of value v: where its next reader goes
  for (int i = 0; i < g->op.n; i++)
    for (int k = 0; k < g->op.at[i].nin; k++) {
      int v = read_first(&g->op.at[i], k);
      if (v >= 0) end[v]++;
    }
  int n = 0;
  for (int v = 0; v < g->value.n; v++) {
    int many = end[v];
    end[v] = n;
    n += many;
  }
  r.at = arena_new(a, int, n + 1);
  for (int i = 0; i < g->op.n; i++)
    for (int k = 0; k < g->op.at[i].nin; k++) {
      int v = read_first(&g->op.at[i], k);
      if (v >= 0) r.at[end[v]++] = i;
    }
  return r;
}

static basis *make_basis(arena *a, const sh_rules *r) {
  const pg_graph *g = r->g;
  int nv = g->value.n;
  basis *b = arena_new(a, basis, 1);
  b->times = arena_new(a, int, nv + 1);
  b->once = arena_new(a, bool, nv + 1);
  b->piece = arena_new(a, int, nv + 1);
  b->phase = arena_new(a, pg_phase, nv + 1);
  b->multiplied = arena_new(a, bool, nv + 1);
  b->leaf = arena_new(a, int *, nv + 1);
  int *number = arena_new(a, int, g->m->next_index + 1);
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    for (int j = 0; j < p->nout; j++) {
      int v = p->out[j];
      if (v < 0 || p->kind == PG_UPDATE) continue;
      if (p->times >= b->times[v]) {
        b->times[v] = p->times;
        b->once[v] = p->once || g->value.at[v].gradient;
        b->piece[v] = p->piece;
        b->phase[v] = p->phase;
        // What is done to it behind a repeat is of the piece that stands there, if one does.
        int next = p->phase == PG_FORWARD ? p->piece + 1 : p->piece - 1;
        if (p->kind == PG_LEAVE && !g->piece.at[next].empty) b->piece[v] = next;
      }
    }
    for (int k = 0; k < p->nin && p->kind == PG_OP && p->cost.kind == PC_PRODUCT; k++) {
      int v = p->in[k];
      if (v >= 0) b->multiplied[g->value.at[v].view_of >= 0 ? g->value.at[v].view_of : v] = true;
    }
  }
  for (int v = 0; v < nv; v++) {
    const pg_value *p = &g->value.at[v];
    b->leaf[v] = arena_new(a, int, p->nleaf + 1);
    for (int i = 0; i < p->nleaf; i++) b->leaf[v][i] = number_of(a, b, number, p->leaf[i]);
    if (!p->weight) continue;
    b->times[v] = p->layers;
    b->piece[v] = -1;
  }
  b->readers = find_readers(g, a);
  return b;
}

sh_made sh_made_of(const sh_rules *r, int value) {
  const basis *b = r->memo->basis;
  return (sh_made){b->times[value], b->once[value], b->piece[value], b->phase[value]};
}

static bool leaf_allowed(const sh_rules *r, const sh_env *e, const ir_index *x) {
  if (!sh_divides(r, x, e->size)) return false;
  for (int i = 0; i < r->stream.n && e->whole_stream; i++)
    if (r->stream.at[i] == x) return false;
  return e->domain != SH_SEQUENCE || sh_is_position(r, x);
}

// What makes a shape.
typedef struct shaper {
  arena *a;  // of the shape
  const sh_rules *r;
  const pg_graph *g;
  const basis *b;
  sh_domain domain;
  const signed char *weights;  // codes that are known; NULL: none
  shape *x;
  intern_key key;
  int *set;                 // of each value a number of its states
  intern ties;              // by the codes that meet
  VEC(const double *) tie;  // ORDER ties: tables of el_two; those that forbid nothing: NULL
} shaper;

static bool code_allowed(const shaper *s, int v, int code) {
  if (code < SH_LEAF) return true;
  if (s->domain != SH_ANY && !s->g->value.at[v].batch) return false;
  return s->x->cuts[1 + s->b->leaf[v][code - SH_LEAF]] != '-';
}

static bool usable(const shaper *s, const pg_op *p, const sh_strategy *x) {
  for (int i = 0; i < p->nin + p->nout; i++) {
    int v = i < p->nin ? p->in[i] : p->out[i - p->nin];
    if (v >= 0 && !code_allowed(s, v, x->code[i])) return false;
  }
  // A gradient that stays partial is summed with those of the data ranks, over which its weight is
  // whole too. On `tensor` it must become what the weight is.
  return p->kind != PG_UPDATE || x->code[0] != SH_PARTIAL || s->domain != SH_ANY;
}

static void find_codes(shaper *s) {
  const pg_graph *g = s->g;
  int nv = g->value.n, no = g->op.n;
  shape *x = s->x;
  x->made = arena_new(s->a, unsigned, nv + 1);
  x->asked = arena_new(s->a, unsigned, nv + 1);
  x->keep = arena_new(s->a, int *, no + 1);
  x->nkeep = arena_new(s->a, int, no + 1);
  for (int i = 0; i < no; i++) {
    const pg_op *p = &g->op.at[i];
    x->keep[i] = arena_new(s->a, int, s->r->n[i]);
    for (int k = 0; k < s->r->n[i]; k++) {
      const sh_strategy *y = &s->r->strategy[i][k];
      if (!usable(s, p, y)) continue;
      x->keep[i][x->nkeep[i]++] = k;
      for (int j = 0; j < p->nin + p->nout; j++) {
        int v = j < p->nin ? p->in[j] : p->out[j - p->nin];
        if (v < 0) continue;
        if (j < p->nin)
          x->asked[v] |= 1u << y->code[j];
        else
          x->made[v] |= 1u << y->code[j];
      }
    }
  }
  for (int v = 0; v < nv; v++) {
    const pg_value *p = &g->value.at[v];
    if (!p->weight) continue;
    x->made[v] = s->weights ? 1u << s->weights[v] : 0;
    if (s->weights) continue;
    for (int c = SH_LEAF; c < SH_LEAF + p->nleaf; c++)
      if (code_allowed(s, v, c) && !(stuck_codes(s->r, s->b, x, v) >> c & 1)) x->made[v] |= 1u << c;
    // Matrices are cut where they can be: that is what `tensor` means. (Weights that are whole
    // while tokens are cut are what ulysses has.) Norms and biases may be whole.
    if (!x->made[v] || !s->b->multiplied[v]) x->made[v] |= 1u;
  }
}

// ---- what costs the same ------------------------------------------------------------------------

// Layers are alike, or differ in a few ops: costs are worked out once for what they are a function
// of, which also tells elimination which bodies are equal.
static void put_value(intern_key *key, const pg_value *v) {
  KEY_PUT(key, v->bytes);
  KEY_PUT(key, v->sent);
  KEY_PUT(key, v->batch);
}

// All that op_cost reads, but for the fractions.
static void put_op(intern_key *key, const shaper *s, int at) {
  const pg_op *p = &s->g->op.at[at];
  bool free = p->kind != PG_OP || p->view;
  int n = s->x->nkeep[at];
  KEY_PUT(key, free);
  KEY_PUT(key, n);
  if (free) return;
  KEY_PUT(key, p->cost.flops);
  KEY_PUT(key, p->cost.unmasked);
  KEY_PUT(key, p->cost.kind);
  KEY_PUT(key, p->cost.type);
  KEY_PUT(key, p->cost.carried);
  KEY_PUT(key, p->times);
  KEY_PUT(key, p->once);
  KEY_PUT(key, p->near);
  KEY_PUT(key, p->nin);
  for (int i = 0; i < p->nin + p->nout; i++) {
    int v = i < p->nin ? p->in[i] : p->out[i - p->nin];
    bool used = v >= 0;
    KEY_PUT(key, used);
    if (used) put_value(key, &s->g->value.at[v]);
  }
  for (int k = 0; k < n; k++) {
    const sh_strategy *x = &s->r->strategy[at][s->x->keep[at][k]];
    int64_t size = x->cuts ? x->index->size : 0;
    KEY_PUT(key, size);
    KEY_PUT(key, x->reduces);
    for (int i = 0; i < p->nin + p->nout; i++) {
      int v = i < p->nin ? p->in[i] : p->out[i - p->nin];
      int64_t leaf =
          v >= 0 && x->code[i] >= SH_LEAF ? s->g->value.at[v].leaf[x->code[i] - SH_LEAF]->size : 0;
      KEY_PUT(key, leaf);
    }
  }
}

// All that state_cost reads.
static void put_states(intern_key *key, const shaper *s, int v) {
  const pg_value *p = &s->g->value.at[v];
  bool weight = p->weight != NULL;
  put_value(key, p);
  KEY_PUT(key, s->set[v]);
  KEY_PUT(key, s->b->times[v]);
  KEY_PUT(key, s->b->once[v]);
  KEY_PUT(key, p->saved);
  KEY_PUT(key, p->ahead);
  KEY_PUT(key, weight);
  KEY_PUT(key, p->layers);
  for (int i = 0; i < p->nleaf; i++) KEY_PUT(key, p->leaf[i]->size);
}

static void find_alike(shaper *s, arena *scratch) {
  const pg_graph *g = s->g;
  int n = g->op.n + g->value.n;
  s->x->alike = arena_new(s->a, int, n + 1);
  intern seen = {.arena = scratch};
  for (int i = 0; i < n; i++) {
    key_clear(&s->key);
    bool op = i < g->op.n;
    KEY_PUT(&s->key, op);
    if (op)
      put_op(&s->key, s, i);
    else
      put_states(&s->key, s, i - g->op.n);
    s->x->alike[i] = intern_of(&seen, &s->key);
  }
  s->x->classes = seen.n;
}

// A value that comes in any placement asks for nothing.
static bool unbound(const shaper *s, int v) {
  return s->g->value.at[v].free || (!s->x->made[v] && !s->g->value.at[v].weight);
}

// What meets in a tie: bodies are alike, so most meet again.
static int tie_number(shaper *s, int op, int side, int v, bool def) {
  const shape *y = s->x;
  key_clear(&s->key);
  KEY_PUT(&s->key, def);
  KEY_PUT(&s->key, y->nkeep[op]);
  for (int i = 0; i < y->nkeep[op]; i++)
    KEY_PUT(&s->key, s->r->strategy[op][y->keep[op][i]].code[side]);
  KEY_PUT(&s->key, s->set[v]);
  return intern_of(&s->ties, &s->key);
}

static void tie(shaper *s, el_problem *p, int op, int side, int v, bool def) {
  const shape *y = s->x;
  int number = tie_number(s, op, side, v, def), n = y->nkeep[op], m = y->nstates[v];
  if (number == s->tie.n) {
    double *cost = arena_new(p->arena, double, n *m);
    bool binds = false;
    for (int i = 0; i < n; i++) {
      int code = s->r->strategy[op][y->keep[op][i]].code[side];
      for (int k = 0; k < m; k++) {
        const state *x = &y->state[v][k];
        bool ok = def ? x->produced == code : (x->there >> code & 1) != 0;
        cost[i * m + k] = ok ? 0 : EL_NEVER;
        binds |= !ok;
      }
    }
    vec_push(p->arena, &s->tie, binds ? cost : NULL);
  }
  if (s->tie.at[number]) el_two(p, op, s->g->op.n + v, s->tie.at[number]);
}

static void find_states(shaper *s, arena *scratch) {
  const pg_graph *g = s->g;
  shape *x = s->x;
  int nv = g->value.n;
  x->state = arena_new(s->a, state *, nv + 1);
  x->nstates = arena_new(s->a, int, nv + 1);
  const reader_list *r = &s->b->readers;
  // Bodies are alike: most values have the states of another one, and share them.
  intern seen = {.arena = scratch};
  VEC(state *) set = {0};
  s->set = arena_new(scratch, int, nv + 1);
  for (int v = 0; v < nv; v++) {
    if (!unbound(s, v))
      make_states(scratch, s->r, x, v, r->at + r->first[v], r->first[v + 1] - r->first[v]);
    size_t size = sizeof(state) * (size_t)x->nstates[v];
    key_clear(&s->key);
    key_put(&s->key, x->state[v], size);
    s->set[v] = intern_of(&seen, &s->key);
    if (s->set[v] == set.n) {
      state *own = arena_alloc(s->a, size);
      if (size) memcpy(own, x->state[v], size);
      vec_push(scratch, &set, own);
    }
    x->state[v] = set.at[s->set[v]];
  }
}

// Its variables: the ops' strategies, then the values' states. Terms 0 .. n - 1 are their costs.
static void compile(shaper *s, arena *scratch) {
  const pg_graph *g = s->g;
  shape *x = s->x;
  int n = g->op.n + g->value.n, most = 1;
  int *size = arena_new(scratch, int, n + 1);
  for (int i = 0; i < g->op.n; i++) size[i] = x->nkeep[i];
  for (int v = 0; v < g->value.n; v++) size[g->op.n + v] = x->nstates[v] ? x->nstates[v] : 1;
  for (int i = 0; i < n; i++)
    if (size[i] > most) most = size[i];
  el_problem *p = el_new(scratch, n, size);
  s->ties.arena = scratch;
  const double *open = arena_new(scratch, double, most);
  for (int i = 0; i < n; i++) el_one(p, i, open);
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *o = &g->op.at[i];
    for (int k = 0; k < o->nin + o->nout; k++) {
      int v = k < o->nin ? o->in[k] : o->out[k - o->nin];
      if (v >= 0 && x->nstates[v]) tie(s, p, i, k, v, k >= o->nin);
    }
  }
  x->circuit = el_compile(s->a, p, &x->stats);
}

static const shape *shape_of(const sh_rules *r, const sh_env *e) {
  sh_memo *m = r->memo;
  if (!m->basis) m->basis = make_basis(m->a, r);
  const basis *b = m->basis;
  arena scratch;
  arena_init(&scratch);
  char *cuts = arena_alloc(&scratch, (size_t)b->index.n + 2);
  cuts[0] = (char)('0' + (int)e->domain);
  for (int i = 0; i < b->index.n; i++)
    cuts[1 + i] = !leaf_allowed(r, e, b->index.at[i])   ? '-'
                  : b->index.at[i]->size % e->size == 0 ? '+'
                                                        : 'p';
  shape *x = NULL;
  for (int i = 0; i < m->shape.n && !x; i++)
    if (str_eq(m->shape.at[i]->cuts, cuts)) x = m->shape.at[i];
  if (!x) {
    x = arena_new(m->a, shape, 1);
    x->cuts = arena_strdup(m->a, cuts);
    shaper s = {
        .a = m->a, .r = r, .g = r->g, .b = b, .domain = e->domain, .weights = e->weights, .x = x};
    s.key.arena = &scratch;
    find_codes(&s);
    find_states(&s, &scratch);
    find_alike(&s, &scratch);
    compile(&s, &scratch);
    vec_push(m->a, &m->shape, x);
  }
  arena_free(&scratch);
  return x;
}

// ---- searches -----------------------------------------------------------------------------------

// What the costs of a variable are a function of: which it is like, and what other axes leave of it
// and of its operands and results.
static void put_costs(intern_key *key, const solver *s, int var) {
  const pg_graph *g = s->g;
  key_clear(key);
  KEY_PUT(key, s->x->alike[var]);
  if (!s->value_part) return;
  if (var >= g->op.n) {
    KEY_PUT(key, s->value_part[var - g->op.n]);
    return;
  }
  const pg_op *p = &g->op.at[var];
  KEY_PUT(key, s->op_part[var]);
  for (int i = 0; i < p->nin; i++)
    if (p->in[i] >= 0) KEY_PUT(key, s->value_part[p->in[i]]);
  for (int i = 0; i < p->nout; i++)
    if (p->out[i] >= 0) KEY_PUT(key, s->value_part[p->out[i]]);
}

// The cost tables of all variables; equal ones are one.
static const double **find_costs(const solver *s, arena *scratch) {
  const pg_graph *g = s->g;
  int n = g->op.n + g->value.n;
  const double **cost = arena_new(scratch, const double *, n + 1);
  intern seen = {.arena = scratch};
  intern_key key = {.arena = scratch};
  VEC(const double *) of = {0};  // ORDER seen
  intern_reserve(&seen, s->x->classes);
  for (int i = 0; i < n; i++) {
    int v = i - g->op.n, k = v < 0 ? s->x->nkeep[i] : s->x->nstates[v];
    put_costs(&key, s, i);
    int number = intern_of(&seen, &key);
    if (number == of.n) {
      double *own = arena_new(scratch, double, k + 1);
      for (int j = 0; j < k; j++)
        own[j] = v < 0 ? op_cost(s, i, &s->r->strategy[i][s->x->keep[i][j]])
                       : state_cost(s, v, &s->x->state[v][j]);
      vec_push(scratch, &of, own);
    }
    cost[i] = of.at[number];
  }
  return cost;
}

// Behind the value's other moves.
static void add_move(const solver *s, sh_result *out, sh_move m) {
  int *end = &out->first[m.value];
  while (*end) end = &out->moves.at[*end - 1].next;
  *end = out->moves.n + 1;
  vec_push(s->result, &out->moves, m);
}

// Whether anything but `leave` reads a value in this placement.
static bool read_so(const solver *s, const reader_list *r, const sh_result *out, int v, int code,
                    int leave) {
  for (int n = r->first[v]; n < r->first[v + 1]; n++) {
    int i = r->at[n];
    const pg_op *p = &s->g->op.at[i];
    for (int k = 0; k < p->nin && i != leave; k++)
      if (p->in[k] == v && s->r->strategy[i][out->strategy[i]].code[k] == code) return true;
  }
  return false;
}

// What leaves a repeat is the value behind its last layer, which no layer reads: where it leaves in
// another placement than it is carried in, that is one more conversion, behind the layers.
static void move_leaving(const solver *s, sh_result *out) {
  const pg_graph *g = s->g;
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    if (p->kind != PG_LEAVE || p->in[0] < 0) continue;
    int v = p->in[0], code = s->r->strategy[i][out->strategy[i]].code[0];
    SH_MOVES_OF(out, v, m) {
      if (m->to != code) continue;
      sh_move last = *m;
      last.times = 1;
      last.piece = p->phase == PG_FORWARD ? p->piece + 1 : p->piece - 1;
      last.prefetched = false;
      if (!read_so(s, &s->b->readers, out, v, code, i)) {
        *m = last;
      } else {
        last.next = 0;
        add_move(s, out, last);
      }
      break;
    }
  }
}

static void record(solver *s, sh_result *out, const int *value) {
  const pg_graph *g = s->g;
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    out->strategy[i] = (short)s->x->keep[i][value[i]];
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
    if (!s->x->nstates[v]) continue;
    const state *x = &s->x->state[v][value[g->op.n + v]];
    out->code[v] = (signed char)x->produced;
    out->value_part[v] = part_of(s, v, x->produced);
    for (int i = 0; i < 2; i++) {
      if (x->to[i] < 0) continue;
      sh_move m = {.value = v,
                   .from = x->from[i],
                   .to = x->to[i],
                   .piece = s->b->piece[v],
                   .phase = s->b->phase[v],
                   .times = s->b->times[v],
                   .once = s->b->once[v],
                   .streamed = s->streamed[v],
                   .prefetched = g->value.at[v].ahead};
      if (m.prefetched) m.phase = PG_BACKWARD;
      m.cost = move_cost(s, v, m.from, m.to, &m.kind, &m.bytes);
      add_move(s, out, m);
    }
  }
  move_leaving(s, out);
  // Of values that are free the placement is that of whoever reads them.
  for (int i = 0; i < g->op.n; i++)
    for (int k = 0; k < g->op.at[i].nin; k++) {
      int v = g->op.at[i].in[k];
      if (v < 0 || s->x->nstates[v]) continue;
      int code = s->r->strategy[i][out->strategy[i]].code[k];
      if (part_of(s, v, code) < out->value_part[v]) out->value_part[v] = part_of(s, v, code);
    }
}

// The value of each variable; NULL: none is allowed.
static const int *solve(const solver *s, arena *scratch) {
  int n = s->g->op.n + s->g->value.n, *value = arena_new(scratch, int, n + 1);
  double seconds;
  const double **cost = find_costs(s, scratch);
  return el_run(s->x->circuit, scratch, cost, value, &seconds) ? value : NULL;
}

// The same, found again where it was found before.
static const int *solve_once(const solver *s, arena *scratch) {
  const sh_env *e = s->e;
  sh_memo *m = s->r->memo;
  int n = s->g->op.n + s->g->value.n;
  const char *name =
      arena_printf(scratch, "%s; %d/%d %lld over %llx of %llx, %lld x %lld", e->behind,
                   (int)e->domain, e->whole_stream, (long long)e->size,
                   (unsigned long long)cl_route_digest(e->cluster, e->stride, e->size),
                   (unsigned long long)(uintptr_t)e->device, (long long)e->micro_batches,
                   (long long)e->micro_batch);
  const short *had = map_get(&m->solved, name);
  if (had) {
    int *value = arena_new(scratch, int, n + 1);
    for (int i = 0; i < n; i++) value[i] = had[i];
    return value;
  }
  const int *value = solve(s, scratch);
  if (!value) return NULL;
  short *kept = arena_new(m->a, short, n + 1);
  for (int i = 0; i < n; i++) kept[i] = (short)value[i];
  map_set(&m->solved, arena_strdup(m->a, name), kept);
  return value;
}

sh_result *sh_solve(arena *a, const sh_rules *r, const sh_env *e, const double *value_part,
                    const double *op_part, const char **why) {
  const pg_graph *g = r->g;
  const shape *x = shape_of(r, e);
  if (!x->circuit) {
    *why = SH_ENTANGLED;
    return NULL;
  }
  arena own;
  arena_init(&own);
  solver s = {.a = &own,
              .result = a,
              .r = r,
              .g = g,
              .e = e,
              .value_part = value_part,
              .op_part = op_part,
              .b = r->memo->basis,
              .x = x,
              .streamed = arena_new(&own, bool, g->value.n + 1)};
  const int *value = e->behind ? solve_once(&s, &own) : solve(&s, &own);
  sh_result *out = NULL;
  if (value) {
    out = arena_new(a, sh_result, 1);
    out->strategy = arena_new(a, short, g->op.n + 1);
    out->op_part = arena_new(a, double, g->op.n + 1);
    out->code = arena_alloc(a, (size_t)g->value.n + 1);
    out->value_part = arena_new(a, double, g->value.n + 1);
    out->first = arena_new(a, int, g->value.n + 1);
    for (int v = 0; v < g->value.n; v++) out->value_part[v] = 1;
    out->stats = x->stats;
    record(&s, out, value);
  } else {
    *why = "no placement of its values is possible";
  }
  arena_free(&own);
  return out;
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
