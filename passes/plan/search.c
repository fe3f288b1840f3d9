#include "passes/plan/search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "passes/plan/show.h"
#include "passes/plan/stage_kind.h"
#include "runtime/base/clock.h"

// ---- the walk -----------------------------------------------------------------------------------

// What a block takes for each sample.
typedef struct per_sample {
  int64_t micro_batch;
  double all, layers;  // seconds, at least; of its layers
  double *piece;       // of one layer of each piece
} per_sample;

// Outer points with the same cuts inside a stage, that differ in stages and micro-batch.
typedef struct group {
  int64_t largest;        // micro-batch of them
  VEC(per_sample) known;  // of blocks that are made, the largest micro-batch first
} group;

typedef struct outer {
  plan_choice c;
  double bound;
  group *group;
  const bl_block *block;  // NULL: not asked for yet
  int64_t points;         // in it, where they were counted
} outer;

// What a plan is compared by.
typedef struct found {
  bool any;
  plan_choice c;
  double step;
  int64_t peak, over;
  int64_t all;  // bytes of a rank, wherever they live, as a load: not all plans have a layout
} found;

typedef struct lack {
  plan_choice c;
  double over;
} lack;
enum { UNFITS = 24 };

typedef struct walk {
  plan_space *s;
  const plan_options *o;
  plan_search_stats *stats;
  const plan_dim *inner, *away;  // dimensions of a point in an outer one
  int ninner, naway;
  VEC(outer) outer;
  int64_t variants[PLAN_RECOMPUTES];  // of an inner point, by AWAY dimensions; -1: not counted yet
  map groups;
  arena own;      // outer points, groups, the heap: gone when the walk ends
  arena scratch;  // gone every now and then
  found best, closest;
  lack unfit[UNFITS];  // by what they seem to lack, least first
  int unfits;
  VEC(int) put_off;  // outer points whose activations alone are too much
  int top;
  VEC(found) kept;    // the best ones, best first, up to `top`
  double slack;       // how much better than what is known a plan must be to be looked at
  bool near;          // what lacks least is not asked for
  double left_bound;  // of points that are left out
  double since, next_report;
  int made;  // nodes
  bool stopped;
  const char *code, *why;  // of the last choice that was not legal
} walk;

static bool better(const found *a, const found *b) {
  if (!b->any) return true;
  double eps = 1e-9 * b->step;
  if (a->step < b->step - eps) return true;
  if (a->step > b->step + eps) return false;
  if (a->all != b->all) return a->all < b->all;
  return a->c.size[PLAN_TENSOR] < b->c.size[PLAN_TENSOR];
}

static void keep(walk *w, const found *f) {
  int at = w->kept.n;
  vec_push(w->s->a, &w->kept, *f);
  for (; at > 0 && better(f, &w->kept.at[at - 1]); at--) w->kept.at[at] = w->kept.at[at - 1];
  w->kept.at[at] = *f;
  if (w->kept.n > w->top) w->kept.n = w->top;
}

// What must be beaten: the best plan, or the last of those that are asked for; `slack` below it
// when a plan that is nearly as good will do.
static double to_beat(const walk *w) {
  if (w->o->exhaustive || w->kept.n < w->top) return INFINITY;
  return vec_last(&w->kept).step * (1 - w->slack) * (1 + 1e-9);
}

// Calls `visit` for every legal way to choose the dimensions dim[0 .. n-1] of c.
static void each_choice(const plan_space *s, const plan_dim *dim, int n, plan_choice c,
                        void (*visit)(void *ctx, const plan_choice *c), void *ctx) {
  if (!n) {
    visit(ctx, &c);
    return;
  }
  int64_t v[PLAN_VALUES];
  int k = dim->values(s, &c, v);
  for (int i = 0; i < k; i++) {
    plan_choice next = c;
    dim->set(s, &next, v[i]);
    each_choice(s, dim + 1, n - 1, next, visit, ctx);
  }
}

static void count_one(void *ctx, const plan_choice *c) {
  (void)c;
  ++*(int64_t *)ctx;
}

// How many ways a point has to live away: these rows of the space ask of what is chosen before them
// only how it recomputes.
static int64_t variants_of(walk *w, const plan_choice *c) {
  int64_t *n = &w->variants[c->recompute];
  if (*n < 0) {
    *n = 0;
    each_choice(w->s, w->away, w->naway, *c, count_one, n);
  }
  return *n;
}

static const bl_block *block_of(walk *w, int at) {
  outer *o = &w->outer.at[at];
  if (!o->block) o->block = plan_block_of(w->s, &o->c);
  return o->block;
}

static group *group_of(walk *w, const plan_choice *c) {
  char name[5 * STR_NAME + 1], *end = str_name(name, (uint64_t)c->recompute);
  end = str_name(end, c->context_first);
  for (int i = 0; i < BL_INNER; i++) end = str_name(end, (uint64_t)c->size[bl_axis_of(i)]);
  group *g = map_get(&w->groups, name);
  if (!g) {
    g = arena_new(&w->own, group, 1);
    map_set(&w->groups, arena_strdup(&w->own, name), g);
  }
  if (c->micro_batch > g->largest) g->largest = c->micro_batch;
  return g;
}

static void add_outer(void *ctx, const plan_choice *c) {
  walk *w = ctx;
  for (int i = 0; i < PLAN_RECOMPUTES; i++)
    if (plan_may_mix(w->s, c, i)) {
      plan_choice other = *c;
      other.recompute = (plan_recompute)i;
      group_of(w, &other);
    }
  outer x = {.c = *c, .bound = plan_outer_bound(w->s, c), .group = group_of(w, c)};
  vec_push(&w->own, &w->outer, x);
}

// All outer points, and which dimensions are inner.
static void begin(walk *w) {
  const plan_dim *dim;
  int n = plan_dims(&dim), outer_dims = 0;
  while (outer_dims < n && dim[outer_dims].level == PLAN_OUTER) outer_dims++;
  w->inner = dim + outer_dims;
  while (outer_dims + w->ninner < n && w->inner[w->ninner].level == PLAN_INNER) w->ninner++;
  w->away = w->inner + w->ninner;
  w->naway = n - outer_dims - w->ninner;
  w->left_bound = INFINITY;
  arena_init(&w->own);
  arena_init(&w->scratch);
  w->groups = (map){.arena = &w->own};
  for (int i = 0; i < PLAN_RECOMPUTES; i++) w->variants[i] = -1;
  each_choice(w->s, dim, outer_dims, plan_choice_start(w->s), add_outer, w);
}

// Seconds of a layer of a piece for a micro-batch, at least.
static double least_of(const bl_piece *p) {
  double seconds = 0;
  for (int f = 0; f < 2; f++) {
    seconds += p->phase[f].compute;
    for (int k = 0; k < BL_INNER; k++) seconds += p->phase[f].sent[k] - p->phase[f].streamed[k];
  }
  return seconds;
}

// On a cluster of unlike parts the least of all blocks that stages may have.
static per_sample per_sample_of(walk *w, const plan_choice *c) {
  const bl_block *const *block;
  int n = sk_blocks(w->s, c, &block), pieces = block[0]->npieces;
  per_sample s = {.micro_batch = c->micro_batch, .piece = arena_new(&w->own, double, pieces + 1)};
  for (int i = 0; i < pieces; i++) {
    double least = INFINITY, count = (double)block[0]->g->piece.at[i].count;
    for (int j = 0; j < n; j++)
      least = fmin(least, block[j]->why ? 0 : least_of(&block[j]->piece[i]));
    s.piece[i] = least / (double)c->micro_batch;
    s.all += count * s.piece[i];
    if (block[0]->g->piece.at[i].name) s.layers += count * s.piece[i];
  }
  return s;
}

static void note_block(walk *w, group *g, const plan_choice *c) {
  int at = g->known.n;
  for (int i = 0; i < at; i++)
    if (g->known.at[i].micro_batch == c->micro_batch) return;
  per_sample s = per_sample_of(w, c);
  vec_push(&w->own, &g->known, s);
  for (; at > 0 && g->known.at[at - 1].micro_batch < s.micro_batch; at--)
    g->known.at[at] = g->known.at[at - 1];
  g->known.at[at] = s;
}

// Seconds of a block for each sample do not rise with the micro-batch: efficiencies grow with the
// size of a call, and what does not grow with it (weights, latencies) is shared by more samples. So
// the block of a micro-batch bounds those of all smaller ones; the one of the largest is made
// first. What attention hides of the keys' and values' way could be more there, so it is left out.
static per_sample least_in(walk *w, group *g, const plan_choice *of) {
  if (!g->known.n) {
    plan_choice c = *of;
    c.micro_batch = g->largest;
    note_block(w, g, &c);
  }
  int at = 0;
  while (at + 1 < g->known.n && g->known.at[at + 1].micro_batch >= of->micro_batch) at++;
  return g->known.at[at];
}

static double samples_of(const plan_choice *c) {
  return (double)(c->micro_batch * c->micro_batches) / (double)c->size[PLAN_PIPELINE];
}

static double group_bound(walk *w, const outer *x) {
  return least_in(w, x->group, &x->c).all * samples_of(&x->c);
}

// A bound for an outer point whose saved activations do not fit as they are: some layers save less,
// or it goes to the host. INFINITY: neither helps.
static double away_bound(walk *w, const outer *x) {
  const plan_choice *c = &x->c;
  double best = plan_outer_away(w->s, c), own = isinf(best) ? 0 : group_bound(w, x);
  for (int kind = 0; kind < PLAN_RECOMPUTES; kind++) {
    if (best <= own || !plan_may_mix(w->s, c, kind)) continue;
    plan_choice other = *c;
    other.recompute = (plan_recompute)kind;
    const double *slow = least_in(w, group_of(w, &other), &other).piece;
    per_sample fast = least_in(w, x->group, c);
    double more = plan_outer_more(w->s, c, (plan_recompute)kind, fast.piece, slow);
    best = fmin(best, (fast.all + more) * samples_of(c));
  }
  return isinf(best) ? best : fmax(best, group_bound(w, x));
}

// ---- best first ---------------------------------------------------------------------------------

// What is still to be looked at.
typedef enum node_kind {
  NODE_OUTER,    // an outer point by its first bound
  NODE_GROUP,    // by its group's
  NODE_POINT,    // a point of it with the first values of the AWAY dimensions
  NODE_AWAY,     // that does not fit: its variants, by the same bound
  NODE_HOMES,    // one of them, with the first value of the last dimension, by sums alone
  NODE_VARIANT,  // by all that is known without cutting stages
  NODE_MIXED,    // with another, whose second block is still to be made
  NODE_LAST,     // with another, whose blocks are made
} node_kind;
typedef struct node {
  double bound;
  node_kind kind;
  int outer;
  plan_choice c;  // from NODE_POINT on
} node;

// What is sorted: a node by its bound, and of equal ones the one that was made first.
typedef struct entry {
  double bound;
  int number, node;
} entry;
// Nodes are many and large: they stay where they are, in pages of PAGE.
typedef struct heap {
  VEC(entry) entry;
  VEC(node *) page;
  int nodes;
  VEC(int) gone;  // nodes whose place is free
} heap;
enum { PAGE = 1024 };

static node *node_at(const heap *h, int i) { return &h->page.at[i / PAGE][i % PAGE]; }

static bool before(const entry *a, const entry *b) {
  return a->bound != b->bound ? a->bound < b->bound : a->number < b->number;
}

static void push(walk *w, heap *h, node x) {
  entry e = {x.bound, w->made++, h->gone.n ? h->gone.at[--h->gone.n] : h->nodes++};
  if (e.node / PAGE == h->page.n)
    vec_push(&w->own, &h->page, arena_alloc_raw(&w->own, PAGE * sizeof(node)));
  *node_at(h, e.node) = x;
  int at = h->entry.n;
  vec_push(&w->own, &h->entry, e);
  for (; at > 0 && before(&e, &h->entry.at[(at - 1) / 2]); at = (at - 1) / 2)
    h->entry.at[at] = h->entry.at[(at - 1) / 2];
  h->entry.at[at] = e;
}

static node pop(walk *w, heap *h) {
  entry *q = h->entry.at, top = q[0], last = q[--h->entry.n];
  int at = 0, n = h->entry.n;
  for (int child = 1; child < n; child = 2 * at + 1) {
    if (child + 1 < n && before(&q[child + 1], &q[child])) child++;
    if (!before(&q[child], &last)) break;
    q[at] = q[child];
    at = child;
  }
  if (n) q[at] = last;
  vec_push(&w->own, &h->gone, top.node);
  return *node_at(h, top.node);
}

// Of the points that do not fit those that seem to lack least, in case none does.
static void remember(walk *w, const plan_choice *c, double over) {
  int at = w->unfits;
  if (at == UNFITS && over >= w->unfit[at - 1].over) return;
  if (at < UNFITS)
    w->unfits++;
  else
    at--;
  for (; at > 0 && w->unfit[at - 1].over > over; at--) w->unfit[at] = w->unfit[at - 1];
  w->unfit[at] = (lack){*c, over};
}

typedef struct opened {
  walk *w;
  heap *h;
  int at;
  const bl_block *b;
  int skip;                 // variants that need no look
  const plan_quick *first;  // of the point, with the first values of the AWAY dimensions
} opened;

// What a plan with two kinds of layers takes at least: where the block of the slower kind is not
// made yet, a share of the layers takes no less than its group says.
static double mixed_bound(walk *w, const plan_choice *c, const plan_quick *q) {
  if (!c->also || q->second) return fmax(q->bound, q->mean + q->more);
  plan_choice other = *c;
  other.recompute = c->also;
  double seconds = least_in(w, group_of(w, &other), &other).layers * samples_of(c);
  return fmax(q->bound, q->mean + fmax(0, q->share * (seconds - q->layers)));
}

// The point of a choice: the first values of its AWAY dimensions.
static plan_choice point_of(const walk *w, const plan_choice *of) {
  plan_choice c = *of;
  int64_t value[PLAN_VALUES];
  for (int d = 0; d < w->naway; d++) {
    w->away[d].values(w->s, &c, value);
    w->away[d].set(w->s, &c, value[0]);
  }
  return c;
}

// Nothing bounds an exhaustive search, so it can tell whether bounds are any: no plan takes less
// than one of them says.
static void check_bounds(walk *w, const plan_choice *c, const bl_block *b, double step) {
  const plan_choice first = point_of(w, c);
  plan_quick point = plan_quickly(&w->scratch, w->s, &first, b, true);
  plan_quick own = plan_quickly(&w->scratch, w->s, c, b, false);
  outer o = {.c = *c, .bound = plan_outer_bound(w->s, c), .group = group_of(w, c)};
  const struct {
    const char *of;
    double s;
  } bound[] = {{"a plan", mixed_bound(w, c, &own)},
               {"a point", point.bound},
               {"what lives away", plan_with_homes(&w->scratch, w->s, c, b, &point)},
               {"an outer point", o.bound},
               {"a group", plan_outer_fits(w->s, c) ? group_bound(w, &o) : away_bound(w, &o)}};
  for (size_t i = 0; i < sizeof bound / sizeof *bound; i++)
    if (bound[i].s > step * (1 + 1e-9))
      IR_BUG("the bound of %s is %.12g s, of a plan that takes %.12g", bound[i].of, bound[i].s,
             step);
  if (!own.fits) IR_BUG("a plan fits of which bounds say that it does not");
}

// What could make a point better: more room on the device, or anywhere.
typedef enum room { ROOM_ENOUGH, ROOM_ELSEWHERE, ROOM_DEVICE } room;
static room consider(walk *w, const plan_choice *c, const bl_block *b) {
  const char *code, *why;
  plan_candidate *x = plan_evaluate(&w->scratch, w->s, c, b, to_beat(w), &code, &why);
  w->stats->evaluated++;
  if (!x) {
    if (!w->why && str_eq(code, "infeasible")) {
      w->code = code;
      w->why = arena_strdup(w->s->a, why);
    }
    return str_eq(code, "does-not-fit") ? ROOM_DEVICE : ROOM_ENOUGH;
  }
  // What may be kept, or come closest, is measured by its layout, where there is one.
  bool wins = !x->over && (w->kept.n < w->top || x->step_s <= vec_last(&w->kept).step * (1 + 1e-9));
  bool near = x->over && (!w->closest.any || x->over < w->closest.over);
  if (wins || near) laid_set(&w->scratch, w->o->layouts, w->s->cluster, x);
  found f = {true, *c, x->step_s, x->peak, x->over, 0};
  int64_t host = 0, disk = 0;
  for (int i = 0; i < x->nstages; i++) {
    if (x->stage[i].host > host) host = x->stage[i].host;
    if (x->stage[i].disk > disk) disk = x->stage[i].disk;
  }
  f.all = x->load + host + disk;
  if (f.over) {
    if (!w->closest.any || f.over < w->closest.over) w->closest = f;
  } else {
    if (better(&f, &w->best)) w->best = f;
    keep(w, &f);
    if (w->o->exhaustive) check_bounds(w, c, b, x->step_s);
  }
  bool pressed = x->pressed || x->slowed || x->peak > x->capacity;
  return pressed ? ROOM_DEVICE : x->over ? ROOM_ELSEWHERE : ROOM_ENOUGH;
}

static const plan_dim *last_dim(const walk *w) { return &w->away[w->naway - 1]; }
static int last_values(const walk *w, const plan_choice *c) {
  int64_t value[PLAN_VALUES];
  return last_dim(w)->values(w->s, c, value);
}

// The same with other values of the last dimension, where they may fit and win.
static void add_last(walk *w, heap *h, const plan_choice *of, int at) {
  int64_t value[PLAN_VALUES];
  int n = last_dim(w)->values(w->s, of, value);
  for (int i = 1; i < n; i++) {
    plan_choice c = *of;
    last_dim(w)->set(w->s, &c, value[i]);
    plan_quick q = plan_quickly(&w->scratch, w->s, &c, block_of(w, at), false);
    if (!q.fits && !w->best.any) remember(w, &c, q.over);
    double bound = q.fits ? mixed_bound(w, &c, &q) : INFINITY;
    if (bound > to_beat(w) || !q.fits)
      w->stats->pruned++;
    else
      push(w, h, (node){bound, c.also && !q.second ? NODE_MIXED : NODE_LAST, at, c});
  }
}

// A variant goes on the heap when it may win; whether it fits is asked when its turn comes.
static void add_variant(void *ctx, const plan_choice *homes) {
  opened *o = ctx;
  walk *w = o->w;
  if (o->skip-- > 0) return;
  plan_choice c = *homes;
  int64_t value[PLAN_VALUES];
  int values = last_dim(w)->values(w->s, &c, value);
  if (!values) return;
  last_dim(w)->set(w->s, &c, value[0]);
  double bound = plan_with_homes(&w->scratch, w->s, &c, o->b, o->first);
  if (bound > to_beat(w))
    w->stats->pruned += values;
  else
    push(w, o->h, (node){bound, NODE_HOMES, o->at, c});
}

// The same when it may fit.
static void add_fitting(walk *w, heap *h, node *x) {
  plan_quick q = plan_quickly(&w->scratch, w->s, &x->c, block_of(w, x->outer), false);
  if (!q.fits && !w->best.any) remember(w, &x->c, q.over);
  if (!q.fits) {
    w->stats->pruned++;
    add_last(w, h, &x->c, x->outer);
    return;
  }
  x->kind = NODE_VARIANT;
  // While no plan is known, one that seems to fit is looked at before all others.
  if (w->kept.n) x->bound = fmax(x->bound, q.bound);
  push(w, h, *x);
}

// A point with the first value of each AWAY dimension bounds its variants.
static void add_point(void *ctx, const plan_choice *inner) {
  opened *o = ctx;
  walk *w = o->w;
  plan_choice c = point_of(w, inner);
  int64_t variants = variants_of(w, inner);
  plan_quick q = plan_quickly(&w->scratch, w->s, &c, o->b, variants > 1);
  w->stats->considered += variants;
  if (!q.fits && !w->best.any) remember(w, &c, q.over);
  if (q.bound > to_beat(w) || (!q.fits && variants == 1))
    w->stats->pruned += variants;
  else
    push(w, o->h, (node){q.bound, q.fits ? NODE_POINT : NODE_AWAY, o->at, c});
}

static void add_variants(walk *w, heap *h, const node *x) {
  const bl_block *b = block_of(w, x->outer);
  plan_quick first = plan_quickly(&w->scratch, w->s, &x->c, b, true);
  opened ctx = {w, h, x->outer, b, 1, &first};
  each_choice(w->s, w->away, w->naway - 1, x->c, add_variant, &ctx);
  add_last(w, h, &x->c, x->outer);
}

// An exhaustive search looks at all.
static void add_each(void *ctx, const plan_choice *c) {
  opened *o = ctx;
  o->w->stats->considered++;
  push(o->w, o->h, (node){0, NODE_LAST, o->at, *c});
}
static void add_all(void *ctx, const plan_choice *c) {
  const opened *o = ctx;
  each_choice(o->w->s, o->w->away, o->w->naway, *c, add_each, ctx);
}

static void drop(walk *w, const outer *o) {
  w->stats->considered += o->points;
  w->stats->pruned += o->points;
}

// `bound`: of its points.
static void open_outer(walk *w, heap *h, int at, double bound) {
  outer *o = &w->outer.at[at];
  opened ctx = {.w = w, .h = h, .at = at, .b = block_of(w, at)};
  if (!variants_of(w, &o->c)) return;
  if (!ctx.b->why) {
    note_block(w, o->group, &o->c);
    each_choice(w->s, w->inner, w->ninner, o->c, w->o->exhaustive ? add_all : add_point, &ctx);
    return;
  }
  w->code = ctx.b->code;
  w->why = ctx.b->why;
  drop(w, o);
  if (!str_eq(w->code, "entangled")) return;
  w->stats->left_out += o->points;
  if (bound < w->left_bound) w->left_bound = bound;
}

// An outer point is opened when its turn comes by all that is known of its group: blocks that were
// made since it was put on the heap may bound it better.
static void look_at_outer(walk *w, heap *h, node *x) {
  const outer *o = &w->outer.at[x->outer];
  double bound = plan_outer_fits(w->s, &o->c) ? group_bound(w, o) : away_bound(w, o);
  if (isinf(bound)) {
    drop(w, o);
    vec_push(&w->own, &w->put_off, x->outer);
  } else if (x->kind == NODE_GROUP && bound <= x->bound) {
    open_outer(w, h, x->outer, x->bound);
  } else {
    x->kind = NODE_GROUP;
    x->bound = fmax(x->bound, bound);
    push(w, h, *x);
  }
}

// Nothing fits: which point lacks least. Of the outer points that were put off the ones with the
// smallest micro-batch hold least.
static void find_closest(walk *w) {
  int64_t least = INT64_MAX;
  for (int i = 0; i < w->put_off.n; i++) {
    int64_t b = w->outer.at[w->put_off.at[i]].c.micro_batch;
    if (b < least) least = b;
  }
  heap h = {0};
  const plan_search_stats counted = *w->stats;
  for (int i = 0; i < w->put_off.n; i++)
    if (w->outer.at[w->put_off.at[i]].c.micro_batch == least)
      open_outer(w, &h, w->put_off.at[i], 0);
  while (h.entry.n) {
    node x = pop(w, &h);
    if (x.kind == NODE_AWAY) add_variants(w, &h, &x);
    if (x.kind == NODE_HOMES) add_fitting(w, &h, &x);
  }
  w->stats->considered = counted.considered;  // they were counted
  w->stats->pruned = counted.pruned;
  w->stats->left_out = counted.left_out;
  for (int i = 0; i < w->unfits; i++)
    consider(w, &w->unfit[i].c, plan_block_of(w->s, &w->unfit[i].c));
}

// The best plan of a space under some pins. Exhaustive: every bound is 0 and nothing is left out.
static void search(walk *w) {
  bool all = w->o->exhaustive;
  heap h = {0};
  for (int i = 0; i < w->outer.n; i++)
    push(w, &h, (node){.bound = all ? 0 : w->outer.at[i].bound, .kind = NODE_OUTER, .outer = i});
  w->stats->optimal = true;
  while (h.entry.n) {
    node x = pop(w, &h);
    const outer *o = &w->outer.at[x.outer];
    w->stats->bound_s = x.bound;
    if (w->o->limit > 0 && clock_s() - w->since > w->o->limit) {
      w->stopped = true;
      w->stats->optimal = false;
      break;
    }
    if (w->o->report && clock_s() > w->next_report) {
      w->stats->fronts = w->s->fronts;
      w->o->report(w->o->report_ctx, w->stats, w->best.step);
      w->next_report = clock_s() + 0.25;
    }
    bool lost = x.bound > to_beat(w);
    if (lost && w->slack > 0) break;  // so is all that is left, and nobody counts it
    enum { TRIES = 32 };              // where these do not fit, few do
    if (w->near && !w->best.any && w->stats->evaluated >= TRIES) break;
    if (lost && x.kind >= NODE_POINT) {
      w->stats->pruned += x.kind >= NODE_MIXED   ? 1
                          : x.kind >= NODE_HOMES ? last_values(w, &x.c)
                                                 : variants_of(w, &o->c);
    } else if (lost) {
      drop(w, o);
    } else if (x.kind < NODE_POINT && !all) {
      look_at_outer(w, &h, &x);
    } else if (x.kind == NODE_MIXED) {
      plan_choice slow = x.c;
      slow.recompute = x.c.also;
      plan_block_of(w->s, &slow);
      plan_quick q = plan_quickly(&w->scratch, w->s, &x.c, block_of(w, x.outer), false);
      x.bound = fmax(x.bound, mixed_bound(w, &x.c, &q));
      x.kind = NODE_LAST;
      push(w, &h, x);
    } else if (x.kind == NODE_LAST) {
      consider(w, &x.c, block_of(w, x.outer));
    } else if (x.kind == NODE_HOMES) {
      add_fitting(w, &h, &x);
    } else if (x.kind == NODE_VARIANT) {
      if (consider(w, &x.c, block_of(w, x.outer)) == ROOM_DEVICE)
        add_last(w, &h, &x.c, x.outer);
      else
        w->stats->pruned += last_values(w, &x.c) - 1;
    } else if (x.kind == NODE_POINT) {
      if (consider(w, &x.c, block_of(w, x.outer)) && variants_of(w, &o->c) > 1)
        add_variants(w, &h, &x);
      else
        w->stats->pruned += variants_of(w, &o->c) - 1;
    } else if (x.kind == NODE_AWAY) {
      w->stats->pruned++;
      add_variants(w, &h, &x);
    } else {  // of an exhaustive search
      open_outer(w, &h, x.outer, o->bound);
    }
    if (w->scratch.total > (size_t)1 << 19) {
      arena_free(&w->scratch);
      arena_init(&w->scratch);
    }
  }
  if (!w->stopped) w->stats->bound_s = w->best.step;
  if (!w->stopped && w->best.any && w->left_bound < w->best.step) {
    w->stats->optimal = false;
    w->stats->bound_s = w->left_bound;
  }
  if (!w->best.any && !w->near) find_closest(w);
  arena_free(&w->scratch);
  arena_free(&w->own);
}

bool plan_best_of(const plan_space *space, const plan_pins *pins, double seconds, plan_choice *c,
                  double *step, bool *stopped) {
  plan_space s = *space;
  s.pins = *pins;
  plan_search_stats stats = {0};
  plan_options o = {.top = 1, .limit = seconds};
  walk w = {.s = &s, .o = &o, .stats = &stats, .top = 1};
  w.since = clock_s();
  begin(&w);
  search(&w);
  *stopped = w.stopped;
  *c = w.best.c;
  *step = w.best.step;
  return w.best.any;
}

plan_candidate *plan_work_out(plan_space *s, laid_maker *layouts, const plan_choice *c) {
  const char *code, *why;
  plan_choice *copy = arena_new(s->a, plan_choice, 1);
  *copy = *c;
  plan_candidate *x = plan_evaluate(s->a, s, copy, plan_block_of(s, c), INFINITY, &code, &why);
  laid_set(s->a, layouts, s->cluster, x);
  return x;
}

// ---- searches under other pins ------------------------------------------------------------------

static const plan_axis inner_axis[BL_INNER] = {PLAN_TENSOR, PLAN_ULYSSES, PLAN_RING};

// A search near known plans.
typedef struct neighbourhood {
  walk w;
  VEC(plan_pins) seen;  // that were looked under
} neighbourhood;

// The best of the plans whose stages are cut inside as `c` says, where pins do not say otherwise.
static void look_at(neighbourhood *n, const plan_choice *c) {
  walk *w = &n->w;
  plan_space s = *w->s;
  for (int i = 0; i < BL_INNER; i++)
    if (!s.pins.size[inner_axis[i]]) s.pins.size[inner_axis[i]] = c->size[inner_axis[i]];
  if (s.pins.recompute < 0) s.pins.recompute = (int)c->recompute;
  for (int i = 0; i < n->seen.n; i++)
    if (!memcmp(n->seen.at[i].size, s.pins.size, sizeof s.pins.size) &&
        n->seen.at[i].recompute == s.pins.recompute)
      return;
  vec_push(s.a, &n->seen, s.pins);
  plan_search_stats stats = {0};
  walk near = *w;
  near.s = &s;
  near.stats = &stats;
  near.near = true;
  begin(&near);
  search(&near);
  w->s->fronts = s.fronts;
  w->best = near.best;
  w->kept = near.kept;
}

// From the best plan so far on: one axis twice or half as long, as long as that is better.
static void climb(neighbourhood *n) {
  const found *best = &n->w.best;
  for (double before = INFINITY; best->any && best->step < before;) {
    const plan_choice from = best->c;
    before = best->step;
    for (int i = 0; i < 2 * BL_INNER; i++) {
      plan_choice c = from;
      int64_t *size = &c.size[inner_axis[i / 2]];
      *size = i % 2 ? 2 * *size : *size / 2;
      if (*size) look_at(n, &c);
    }
  }
}

plan_found plan_find(plan_space *s, laid_maker *layouts, double slack, const plan_choice *near,
                     int nnear) {
  plan_search_stats stats = {0};
  plan_options o = {.top = 1, .layouts = layouts};
  neighbourhood n = {.w = {.s = s, .o = &o, .stats = &stats, .top = 1, .slack = slack}};
  for (int i = 0; i < nnear; i++) look_at(&n, &near[i]);
  climb(&n);
  walk *w = &n.w;
  if (!w->best.any) {
    begin(w);
    search(w);
  }
  const found *f = w->best.any ? &w->best : &w->closest;
  return (plan_found){w->best.any, f->any, f->c, f->step, f->peak};
}

// Bytes of a sample that layers save, by recomputation.
void plan_note_saved(plan_space *s) {
  for (int i = 0; i < PLAN_RECOMPUTES; i++) {
    s->saved[i] = 0;
    const pg_graph *g = s->job->rules[i] ? s->job->rules[i]->g : NULL;
    if (!g) continue;
    s->saved_by[i] = arena_new(s->a, double, g->piece.n + 1);
    for (int v = 0; v < g->value.n; v++)
      if (g->value.at[v].saved) s->saved[i] += g->value.at[v].bytes * g->value.at[v].layers;
    bool *seen = arena_new(s->a, bool, g->value.n + 1);
    for (int k = 0; k < g->op.n; k++) {
      const pg_op *p = &g->op.at[k];
      if (p->kind != PG_STORE || !g->value.at[p->out[0]].saved || seen[p->out[0]]) continue;
      seen[p->out[0]] = true;
      s->saved_by[i][p->piece] += g->value.at[p->out[0]].bytes;
    }
  }
}

// ---- all ----------------------------------------------------------------------------------------

// The inner points of outer ones that are cut alike. These rows of the space ask of a micro-batch
// only whether stages divide their number, and nothing of how it recomputes.
typedef struct inner_count {
  const plan_choice *of;
  int64_t n[2];  // [stages divide]; -1: not counted yet
} inner_count;

static int64_t count_inner(const walk *w, inner_count *seen, const plan_choice *c) {
  bool alike = seen->of && !memcmp(seen->of->size, c->size, sizeof c->size) &&
               seen->of->context_first == c->context_first;
  if (!alike) *seen = (inner_count){c, {-1, -1}};
  int64_t *n = &seen->n[c->micro_batches % c->size[PLAN_PIPELINE] == 0];
  if (*n < 0) {
    *n = 0;
    each_choice(w->s, w->inner, w->ninner, *c, count_one, n);
  }
  return *n;
}

// How many blocks and points there are: counted from the outer points before any is worked out.
static void predict(walk *w) {
  map seen = {.arena = w->s->a};
  inner_count count = {0};
  for (int i = 0; i < w->outer.n; i++) {
    outer *o = &w->outer.at[i];
    char name[BL_KEY_TEXT];
    const bl_key k = plan_key_of(&o->c);
    bl_key_text(name, &k);
    map_set(&seen, arena_strdup(w->s->a, name), w);
    int64_t variants = variants_of(w, &o->c);
    o->points = variants ? variants * count_inner(w, &count, &o->c) : 0;
    w->stats->points += o->points;
  }
  w->stats->predicted_fronts = seen.n;
  w->stats->predicted_points = w->stats->points;
}

static int64_t layers_of(const plan_job *job) {
  int64_t n = 0;
  for (int i = 0; i < PLAN_RECOMPUTES; i++) {
    if (!job->rules[i]) continue;
    const pg_graph *g = job->rules[i]->g;
    for (int k = 0; k < g->piece.n; k++)
      if (g->piece.at[k].name) n += g->piece.at[k].count;
    break;
  }
  return n;
}

static void describe(plan_result *r, const plan_job *job, const plan_space *s) {
  const pg_graph *g = NULL;
  for (int i = 0; i < PLAN_RECOMPUTES && !g; i++)
    if (job->rules[i]) g = job->rules[i]->g;
  r->source = job->source;
  r->source_digest = job->digest;
  r->cluster = s->cluster;
  for (int i = 0; i < job->settings.n; i++) vec_push(r->arena, &r->settings, job->settings.at[i]);
  r->model = (plan_model){.name = job->model,
                          .parameters = g->parameters,
                          .flops = g->flops * (double)job->batch,
                          .tokens = job->tokens,
                          .batch = job->batch,
                          .layers = s->layers,
                          .precision = job->precision};
}

plan_result *plan_search(arena *a, const plan_job *job, const cl_cluster *cluster,
                         const plan_pins *pins, const plan_options *options) {
  plan_result *r = arena_new(a, plan_result, 1);
  r->arena = a;
  map memo = {.arena = a}, bounds = {.arena = a}, places = {.arena = a};
  plan_space s = {.a = a,
                  .job = job,
                  .cluster = cluster,
                  .pins = *pins,
                  .blocks = &memo,
                  .bounds = &bounds,
                  .places = &places,
                  .layers = layers_of(job)};
  plan_note_saved(&s);
  describe(r, job, &s);
  walk w = {.s = &s, .o = options, .stats = &r->search, .top = options->top > 0 ? options->top : 1};
  w.since = clock_s();
  w.next_report = w.since + 0.5;
  begin(&w);
  predict(&w);
  search(&w);
  r->search.seconds = clock_s() - w.since;
  r->search.fronts = s.fronts;
  if (r->search.left_out)
    vec_push(a, &r->warnings,
             arena_printf(a, "left out, as " SH_ENTANGLED ": %s of the plans",
                          show_whole(a, r->search.left_out)));
  for (int i = 0; i < w.kept.n; i++)
    vec_push(a, &r->candidates, plan_work_out(&s, options->layouts, &w.kept.at[i].c));
  for (int i = 0; i < r->candidates.n; i++)
    laid_set_ranks(a, options->layouts, cluster, r->candidates.at[i]);
  if (r->candidates.n) {
    r->best = r->candidates.at[0];
    if (!r->search.optimal && r->search.bound_s < r->best->step_s)
      r->search.gap = 1 - r->search.bound_s / r->best->step_s;
    plan_note_cut(r, pins);
    if (w.stopped) return r;  // no time is left for what lost
    plan_add_alternatives(r, &s, pins, options->layouts);
    if (!options->no_crossing)
      plan_add_crossing(r, &s, pins, options->limit > 0 ? options->limit : 60);
    return r;
  }
  if (w.closest.any) {
    r->closest = plan_work_out(&s, options->layouts, &w.closest.c);
    plan_rejected j = {.choice = w.closest.c,
                       .code = "does-not-fit",
                       .over = r->closest->over,
                       .step_s = r->closest->step_s,
                       .peak = r->closest->peak,
                       .reason = plan_why_over(a, r->closest)};
    vec_push(a, &r->rejected, j);
    if (!w.stopped) plan_add_fixes(r, &s, pins, options);  // else it is not known that nothing fits
  } else {
    plan_rejected j = {.choice = plan_choice_start(&s), .code = w.code, .reason = w.why};
    if (!j.reason && w.stopped) {
      j.code = "stopped";
      j.reason = "the search was stopped before it came to a plan; a longer --limit would find one";
    }
    if (!j.reason) j.reason = plan_why_illegal(a, &s, &j.code);
    vec_push(a, &r->rejected, j);
  }
  return r;
}
