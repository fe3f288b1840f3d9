#include "passes/plan/steps.h"

#include <string.h>

bool codes_same(codes a, codes b) { return memcmp(&a, &b, sizeof a) == 0; }

steps_ways *steps_ways_of(arena *a, const sh_rules *r, sh_result *const axis[BL_INNER]) {
  steps_ways *w = arena_new(a, steps_ways, 1);
  w->rules = r;
  for (int x = 0; x < BL_INNER; x++) {
    if (!axis[x] || !axis[x]->strategy) continue;
    w->axis[x] = axis[x];
    w->moved[x] = arena_new(a, unsigned, r->g->value.n + 1);
    for (int i = 0; i < axis[x]->moves.n; i++)
      w->moved[x][axis[x]->moves.at[i].value] |= 1u << axis[x]->moves.at[i].to;
  }
  return w;
}

codes steps_made(const steps_ways *w, int value) {
  codes c = {{0}};
  for (int x = 0; x < BL_INNER; x++)
    if (w->axis[x]) c.on[x] = w->axis[x]->code[value];
  return c;
}

codes steps_side(const steps_ways *w, int op, int side) {
  codes c = {{0}};
  const pg_op *p = &w->rules->g->op.at[op];
  int v = side < p->nin ? p->in[side] : p->out[side - p->nin];
  for (int x = 0; x < BL_INNER; x++) {
    if (!w->axis[x]) continue;
    int code = w->rules->strategy[op][w->axis[x]->strategy[op]].code[side];
    c.on[x] = code < 0 ? (v < 0 ? SH_REPLICATED : w->axis[x]->code[v]) : (signed char)code;
  }
  return c;
}

bool steps_inside(const sh_rules *r, int value, int code, int y, int x) {
  bool position = sh_is_position(r, r->g->value.at[value].leaf[code - SH_LEAF]);
  return position ? y < x : y > x;
}

static void add_step(steps *s, codes *now, int x, int to, bool aside) {
  IR_CHECK(s->n < 4 * BL_INNER);
  s->x[s->n] = x;
  s->aside[s->n] = aside;
  s->to[s->n++] = to;
  now->on[x] = (signed char)to;
}

// Axes inside x that cut the leaf too step aside.
static void free_leaf(const steps_ways *w, steps *s, codes *now, int value, int x, int code) {
  for (int y = 0; code >= SH_LEAF && y < BL_INNER; y++)
    if (y != x && w->axis[y] && now->on[y] == code && steps_inside(w->rules, value, code, y, x))
      add_step(s, now, y, SH_REPLICATED, true);
}

// An outer cut of the same leaf is still to be made.
static bool outer_to_come(const steps_ways *w, int value, codes now, codes to, int x) {
  for (int y = 0; y < BL_INNER; y++)
    if (y != x && w->axis[y] && now.on[y] != to.on[y] && to.on[y] == to.on[x] &&
        to.on[x] >= SH_LEAF && steps_inside(w->rules, value, to.on[x], x, y))
      return true;
  return false;
}

steps steps_between(const steps_ways *w, int value, codes from, codes to) {
  steps s = {0};
  for (int x = 0; x < BL_INNER; x++) {
    if (!w->axis[x] || from.on[x] == to.on[x] || from.on[x] == SH_REPLICATED) continue;
    bool at_once = to.on[x] < SH_LEAF || w->moved[x][value] >> to.on[x] & 1;
    int next = at_once ? to.on[x] : SH_REPLICATED;
    free_leaf(w, &s, &from, value, x, from.on[x]);
    free_leaf(w, &s, &from, value, x, next);
    if (from.on[x] != next) add_step(&s, &from, x, next, false);
  }
  for (bool more = true; more;) {
    more = false;
    for (int x = 0; x < BL_INNER; x++) {
      if (!w->axis[x] || from.on[x] == to.on[x] || outer_to_come(w, value, from, to, x)) continue;
      free_leaf(w, &s, &from, value, x, to.on[x]);
      add_step(&s, &from, x, to.on[x], false);
      more = true;
    }
  }
  return s;
}

// ---- what is gathered aside ---------------------------------------------------------------------

// A form of a value that its readers, or what is done on the way to them, make.
typedef struct form {
  codes in;
  bool asked;  // a step of its axis leads to it too, which is among the moves
  int gather;  // number of what is gathered for it, + 1
  int next;    // of the same value, + 1
} form;

typedef struct finder {
  arena *a;
  const steps_ways *w;
  const bl_key *key;
  const cl_cluster *cluster;
  VEC(form) forms;
  int *first;  // by value, + 1
  VEC(steps_gather) gathers;
} finder;

static form *form_of(finder *f, int value, codes in) {
  for (int i = f->first[value]; i; i = f->forms.at[i - 1].next)
    if (codes_same(f->forms.at[i - 1].in, in)) return &f->forms.at[i - 1];
  vec_push(f->a, &f->forms, (form){.in = in, .next = f->first[value]});
  f->first[value] = f->forms.n;
  return &vec_last(&f->forms);
}

// The gather of a value that lies in placement `in` over axis x. What leaves a repeat does so once.
static steps_gather gather_of(const finder *f, const pg_op *p, int value, codes in, int x) {
  const sh_rules *r = f->w->rules;
  const pg_value *v = &r->g->value.at[value];
  sh_made made = sh_made_of(r, value);
  sh_move m = {.value = value,
               .from = in.on[x],
               .to = SH_REPLICATED,
               .kind = CL_ALL_GATHER,
               .piece = made.piece,
               .phase = v->ahead ? PG_BACKWARD : made.phase,
               .times = made.times,
               .once = made.once,
               .prefetched = v->ahead};
  if (p->kind == PG_LEAVE) {
    m.times = 1;
    m.piece = p->phase == PG_FORWARD ? p->piece + 1 : p->piece - 1;
    m.prefetched = false;
  }
  m.bytes = v->sent * (v->batch ? (double)f->key->micro_batch : 1);
  for (int y = 0; y < BL_INNER; y++)
    if (y != x && f->w->axis[y] && in.on[y] >= SH_LEAF)
      m.bytes *= sh_part(v->leaf[in.on[y] - SH_LEAF], f->key->size[y]);
  m.cost =
      cl_collective_cost(f->cluster, CL_ALL_GATHER, f->key->stride[x], f->key->size[x], m.bytes);
  return (steps_gather){x, m};
}

static void find_asides(finder *f, const pg_op *p, int value, codes from, codes to) {
  steps s = steps_between(f->w, value, from, to);
  for (int i = 0; i < s.n; i++) {
    codes before = from;
    int x = s.x[i];
    from.on[x] = (signed char)s.to[i];
    bool leaves = p->kind == PG_LEAVE;
    form *now = leaves ? NULL : form_of(f, value, from);
    if (now) now->asked |= !s.aside[i];
    if (!s.aside[i] || (now && now->gather)) continue;
    vec_push(f->a, &f->gathers, gather_of(f, p, value, before, x));
    if (now) now->gather = f->gathers.n;
  }
}

steps_gathers steps_aside(arena *a, const sh_rules *r, sh_result *const axis[BL_INNER],
                          const bl_key *key, const cl_cluster *c) {
  const pg_graph *g = r->g;
  int axes = 0;
  for (int x = 0; x < BL_INNER; x++) axes += axis[x] && axis[x]->strategy;
  if (axes < 2) return (steps_gathers){0};  // nobody is in the way
  const steps_ways *w = steps_ways_of(a, r, axis);
  finder f = {.a = a, .w = w, .key = key, .cluster = c};
  f.first = arena_new(a, int, g->value.n + 1);
  for (int i = 0; i < g->op.n; i++)
    for (int k = 0; k < g->op.at[i].nin; k++) {
      int v = g->op.at[i].in[k];
      if (v < 0 || g->value.at[v].free) continue;
      codes from = steps_made(w, v), to = steps_side(w, i, k);
      if (!codes_same(from, to)) find_asides(&f, &g->op.at[i], v, from, to);
    }
  int n = 0;
  for (int i = 0; i < f.forms.n; i++)
    if (f.forms.at[i].asked && f.forms.at[i].gather)
      f.gathers.at[f.forms.at[i].gather - 1].axis = -1;
  for (int i = 0; i < f.gathers.n; i++)
    if (f.gathers.at[i].axis >= 0) f.gathers.at[n++] = f.gathers.at[i];
  return (steps_gathers){n, f.gathers.at};
}
