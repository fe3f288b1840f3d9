// Bucket elimination over tables of which only allowed entries are kept. Which variable goes next:
// the one that makes the smallest function, or the one that takes the fewest sums, guessed from the
// shares that are allowed (ties: the lowest number). Either way chains cost their length. Both
// orders are compiled and the one with fewer sums is kept.
#include "passes/plan/elim.h"

#include <math.h>
#include <string.h>

el_problem *el_new(arena *a, int n, const int *size) {
  el_problem *p = arena_new(a, el_problem, 1);
  *p = (el_problem){.arena = a, .n = n, .size = size};
  return p;
}

void el_one(el_problem *p, int var, const double *cost) {
  vec_push(p->arena, &p->term, (el_term){var, -1, cost});
}

void el_two(el_problem *p, int a, int b, const double *cost) {
  vec_push(p->arena, &p->term, (el_term){a, b, cost});
}

// A variable that is taken out: for each allowed combination of its neighbours' values (an entry)
// the minimum over its own of a sum of costs and of earlier minima.
struct el_step {
  int var;
  int addends;    // of each sum: costs first, then minima
  int given;      // how many are costs
  const int *of;  // [addends - given] the steps that make the minima
  int first;      // its entries are values first .. first + entries - 1
  int entries;
  const int *start;  // [entries + 1] where an entry's sums begin
  const int *sum;    // the variable's value, then the numbers of what is added
};

// ---- compiling ----------------------------------------------------------------------------------

// A function of some variables, in order of their numbers, the last one running fastest.
typedef struct factor {
  int n;
  int *var;
  int *number;  // of the value of each entry; -1: not allowed. Of one that only forbids: 0, -1
  bool forbids;
  bool gone;
  int step;        // that made it; -1: given
  double allowed;  // share of its entries
} factor;

enum { MOST = 24 };  // variables of one function

typedef struct entry {
  double cost;
  int var;
} entry;

typedef enum order { BY_FUNCTION, BY_SUMS, ORDERS } order;

typedef struct solver {
  const el_problem *p;
  order order;
  arena *a;  // of the circuit
  arena *scratch;
  el_circuit *c;
  VEC(factor *) factor;
  VEC(int) * of;  // factors that name a variable
  bool *done;
  double *cost;      // of eliminating a variable, by the order
  VEC(entry) queue;  // a heap of variables, some of them several times; the last offer counts
  int *mark, stamp;
  el_stats *stats;
} solver;

static int entries_of(const solver *s, const factor *f) {
  int n = 1;
  for (int i = 0; i < f->n; i++) n *= s->p->size[f->var[i]];
  return n;
}

static void add(solver *s, factor *f) {
  int all = entries_of(s, f), allowed = 0;
  for (int i = 0; i < all; i++) allowed += f->number[i] >= 0;
  f->allowed = (double)allowed / (double)all;
  for (int i = 0; i < f->n; i++) vec_push(s->scratch, &s->of[f->var[i]], s->factor.n);
  vec_push(s->scratch, &s->factor, f);
}

static bool only_forbids(const el_term *t, int entries) {
  for (int i = 0; i < entries; i++)
    if (t->cost[i] != 0 && t->cost[i] < EL_NEVER) return false;
  return true;
}

static factor *factor_of(solver *s, const el_term *t, int *at) {
  const int *size = s->p->size;
  factor *f = arena_new(s->scratch, factor, 1);
  int na = size[t->a], nb = t->b < 0 ? 1 : size[t->b], stride_a = nb, stride_b = 1;
  f->step = -1;
  f->n = t->b < 0 || t->b == t->a ? 1 : 2;
  f->var = arena_new(s->scratch, int, 2);
  f->forbids = t->b >= 0 && only_forbids(t, na * nb);
  *at = f->forbids ? -1 : s->c->ncosts;
  if (!f->forbids) s->c->ncosts += na * nb;
  f->var[0] = t->a;
  if (f->n == 2) f->var[1] = t->b;
  if (t->b == t->a) nb = 1, stride_a++;
  if (f->n == 2 && t->b < t->a) {
    f->var[0] = t->b, f->var[1] = t->a;
    int n = na;
    na = nb, nb = n, stride_b = stride_a, stride_a = 1;
  }
  f->number = arena_new(s->scratch, int, na *nb);
  for (int i = 0; i < na; i++)
    for (int k = 0; k < nb; k++) {
      int e = i * stride_a + k * stride_b;
      f->number[i * nb + k] = t->cost[e] >= EL_NEVER ? -1 : f->forbids ? 0 : *at + e;
    }
  return f;
}

// The other variables of the functions that name `v`, in order; -1 when they are too many.
static int neighbours(solver *s, int v, int *out) {
  int n = 0;
  s->stamp++;
  s->mark[v] = s->stamp;
  for (int i = 0; i < s->of[v].n; i++) {
    factor *f = s->factor.at[s->of[v].at[i]];
    if (f->gone) continue;
    for (int k = 0; k < f->n; k++) {
      int w = f->var[k];
      if (s->mark[w] == s->stamp) continue;
      s->mark[w] = s->stamp;
      if (n == MOST) return -1;
      int at = n++;
      for (; at > 0 && out[at - 1] > w; at--) out[at] = out[at - 1];
      out[at] = w;
    }
  }
  return n;
}

static double cost_of(solver *s, int v) {
  int near[MOST], n = neighbours(s, v, near);
  if (n < 0) return INFINITY;
  double e = s->order == BY_SUMS ? s->p->size[v] : 1;
  for (int i = 0; i < n; i++) e *= s->p->size[near[i]];
  for (int i = 0; i < s->of[v].n && s->order == BY_SUMS; i++) {
    const factor *f = s->factor.at[s->of[v].at[i]];
    if (!f->gone) e *= f->allowed;
  }
  return e;
}

static bool before(const entry *a, const entry *b) {
  return a->cost != b->cost ? a->cost < b->cost : a->var < b->var;
}

// Works out what a variable costs and puts it into the queue.
static void offer(solver *s, int v) {
  entry e = {s->cost[v] = cost_of(s, v), v};
  int at = s->queue.n;
  vec_push(s->a, &s->queue, e);
  for (; at > 0 && before(&e, &s->queue.at[(at - 1) / 2]); at = (at - 1) / 2)
    s->queue.at[at] = s->queue.at[(at - 1) / 2];
  s->queue.at[at] = e;
}

static entry take(solver *s) {
  entry top = s->queue.at[0], last = s->queue.at[--s->queue.n];
  int at = 0;
  for (int child = 1; child < s->queue.n; child = 2 * at + 1) {
    if (child + 1 < s->queue.n && before(&s->queue.at[child + 1], &s->queue.at[child])) child++;
    if (!before(&s->queue.at[child], &last)) break;
    s->queue.at[at] = s->queue.at[child];
    at = child;
  }
  if (s->queue.n) s->queue.at[at] = last;
  return top;
}

// The functions that name a variable, beside its neighbours.
typedef struct bucket {
  int v, n, near[MOST];
  int nin;
  factor **in;
  int *step;  // [nin * (n + 1)] how far in.number moves when a neighbour, or v itself, goes on by
              // one
  int *last;  // [nin] the last neighbour that it names; -1: none
  int *base;  // [(n + 1) * nin] where it stands with the neighbours before one fixed
  int *open;  // [n + 1] lists of v's values that are allowed with these, each of size[v]
  int at;     // entry of the function to be made
  VEC(int) sum;
  VEC(int) start;
  factor *made;
} bucket;

static void open_bucket(solver *s, bucket *b) {
  const int *size = s->p->size;
  int all = s->of[b->v].n, n = b->n;
  b->in = arena_new(s->scratch, factor *, all + 1);
  b->step = arena_new(s->scratch, int, (all + 1) * (n + 1));
  b->last = arena_new(s->scratch, int, all + 1);
  for (int i = 0; i < all; i++) {
    factor *f = s->factor.at[s->of[b->v].at[i]];
    if (f->gone) continue;
    b->last[b->nin] = -1;
    for (int k = 0; k <= n; k++) {
      int w = k < n ? b->near[k] : b->v, stride = 1, found = 0;
      for (int j = f->n - 1; j >= 0; j--) {
        if (f->var[j] == w) found = stride;
        stride *= size[f->var[j]];
      }
      b->step[b->nin * (n + 1) + k] = found;
      if (k < n && found) b->last[b->nin] = k;
    }
    b->in[b->nin++] = f;
    f->gone = true;
  }
  b->base = arena_new(s->scratch, int, (n + 1) * (b->nin + 1));
  b->open = arena_new(s->scratch, int, (n + 2) * (size[b->v] + 1));
}

// Leaves of v's values, those at `from`, what the functions allow whose last neighbour is `k`.
static int keep_allowed(const bucket *b, int k, int level, const int *from, int n, int *to) {
  const int *base = b->base + level * b->nin;
  int kept = 0;
  for (int i = 0; i < n; i++) {
    bool good = true;
    for (int f = 0; f < b->nin && good; f++)
      if (b->last[f] == k)
        good = b->in[f]->number[base[f] + from[i] * b->step[f * (b->n + 1) + b->n]] >= 0;
    if (good) to[kept++] = from[i];
  }
  return kept;
}

// All neighbours have their value: the sums of this entry.
static void add_entry(solver *s, bucket *b, const int *open, int n) {
  const int *base = b->base + b->n * b->nin;
  b->made->number[b->at] = s->c->nvalues + b->start.n;
  vec_push(s->scratch, &b->start, b->sum.n);
  for (int i = 0; i < n; i++) {
    vec_push(s->scratch, &b->sum, open[i]);
    for (int f = 0; f < b->nin; f++)
      if (!b->in[f]->forbids)
        vec_push(s->scratch, &b->sum,
                 b->in[f]->number[base[f] + open[i] * b->step[f * (b->n + 1) + b->n]]);
  }
  s->stats->sums += n;
}

// Gives neighbour `level` each of its values, as long as some value of v is allowed beside it.
static void walk(solver *s, bucket *b, int level, const int *open, int n) {
  if (level == b->n) {
    add_entry(s, b, open, n);
    return;
  }
  int size = s->p->size[b->near[level]], at = b->at;
  const int *from = b->base + level * b->nin;
  int *to = b->base + (level + 1) * b->nin;
  int *kept = b->open + (level + 1) * (s->p->size[b->v] + 1);
  for (int x = 0; x < size; x++) {
    b->at = at * size + x;
    for (int f = 0; f < b->nin; f++) to[f] = from[f] + x * b->step[f * (b->n + 1) + level];
    int left = keep_allowed(b, level, level + 1, open, n, kept);
    if (left) walk(s, b, level + 1, kept, left);
  }
  b->at = at;
}

static int *copy(arena *a, const int *from, int n) {
  int *to = arena_new(a, int, n + 1);
  if (n) memcpy(to, from, sizeof *to * (size_t)n);
  return to;
}

static void close_bucket(solver *s, bucket *b) {
  el_step *t = &s->c->step[s->c->nsteps];
  *t = (el_step){.var = b->v, .first = s->c->nvalues, .entries = b->start.n};
  int *of = arena_new(s->a, int, b->nin + 1);
  for (int f = 0; f < b->nin; f++) {
    if (b->in[f]->forbids) continue;
    t->addends++;
    if (b->in[f]->step < 0)
      t->given++;
    else
      of[t->addends - t->given - 1] = b->in[f]->step;
  }
  vec_push(s->scratch, &b->start, b->sum.n);
  t->of = of;
  t->start = copy(s->a, b->start.at, b->start.n);
  t->sum = copy(s->a, b->sum.at, b->sum.n);
  s->c->nvalues += t->entries;
  s->c->possible &= t->entries > 0;
  b->made->step = s->c->nsteps++;
  add(s, b->made);
}

// All functions that name `v` become one without it.
static bool eliminate(solver *s, int v) {
  const int *size = s->p->size;
  bucket b = {.v = v};
  b.n = neighbours(s, v, b.near);
  if (b.n < 0) return false;
  double total = 1;
  for (int i = 0; i < b.n; i++) total *= size[b.near[i]];
  if (total * size[v] > EL_LARGEST) return false;
  s->stats->entries += total;
  if (total * size[v] > s->stats->largest) s->stats->largest = total * size[v];
  factor *made = b.made = arena_new(s->scratch, factor, 1);
  made->n = b.n;
  made->var = copy(s->scratch, b.near, b.n);
  made->number = arena_new(s->scratch, int, (int)total);
  memset(made->number, -1, sizeof *made->number * (size_t)total);
  open_bucket(s, &b);
  for (int x = 0; x < size[v]; x++) b.open[x] = x;
  int *first = b.open + (b.n + 1) * (size[v] + 1);
  int n = keep_allowed(&b, -1, 0, b.open, size[v], first);
  if (n) walk(s, &b, 0, first, n);
  close_bucket(s, &b);
  s->done[v] = true;
  for (int i = 0; i < b.n; i++) offer(s, b.near[i]);
  return true;
}

static el_circuit *compile_by(arena *a, const el_problem *p, order o, el_stats *stats) {
  *stats = (el_stats){0};
  arena scratch;  // tables are large and go at the end
  arena_init(&scratch);
  el_circuit *c = arena_new(a, el_circuit, 1);
  *c = (el_circuit){.n = p->n, .nterms = p->term.n, .possible = true};
  c->at = arena_new(a, int, p->term.n + 1);
  c->step = arena_new(a, el_step, p->n + 1);
  solver s = {.p = p, .order = o, .a = a, .scratch = &scratch, .c = c, .stats = stats};
  s.of = (void *)arena_alloc(&scratch, sizeof *s.of * (size_t)(p->n + 1));
  s.done = arena_new(&scratch, bool, p->n + 1);
  s.cost = arena_new(&scratch, double, p->n + 1);
  s.mark = arena_new(&scratch, int, p->n + 1);
  for (int i = 0; i < p->term.n; i++) add(&s, factor_of(&s, &p->term.at[i], &c->at[i]));
  c->nvalues = c->ncosts;
  for (int i = 0; i < p->n; i++) offer(&s, i);
  bool good = true;
  while (good && s.queue.n) {
    entry next = take(&s);
    if (s.done[next.var] || next.cost != s.cost[next.var]) continue;  // it was offered again
    good = eliminate(&s, next.var);
  }
  arena_free(&scratch);
  return good ? c : NULL;
}

el_circuit *el_compile(arena *a, const el_problem *p, el_stats *stats) {
  arena own[ORDERS];
  el_stats found[ORDERS];
  int best = -1;
  for (int o = 0; o < ORDERS; o++) {
    arena_init(&own[o]);
    if (compile_by(&own[o], p, (order)o, &found[o]) &&
        (best < 0 || found[o].sums < found[best].sums))
      best = o;
  }
  for (int o = 0; o < ORDERS; o++) arena_free(&own[o]);
  if (stats) *stats = found[best < 0 ? 0 : best];
  el_stats again;
  return best < 0 ? NULL : compile_by(a, p, (order)best, &again);
}

// ---- running ------------------------------------------------------------------------------------

// The least sum of an entry, and where it stands.
static double least_of(const el_step *t, const double *value, int at, int *best) {
  int k = t->addends, from = t->start[at], to = t->start[at + 1];
  double least = INFINITY;
  *best = from;
  for (int i = from; i < to; i += k + 1) {
    const int *x = t->sum + i + 1;
    double sum = k ? value[x[0]] : 0;
    for (int j = 1; j < k; j++) sum += value[x[j]];
    if (sum < least) {
      least = sum;
      *best = i;
    }
  }
  return least;
}

bool el_run(const el_circuit *c, arena *scratch, const double *cost, int *value, double *total) {
  *total = EL_NEVER;
  if (!c->possible) return false;
  double *v = arena_new(scratch, double, c->nvalues + 1);
  memcpy(v, cost, sizeof *v * (size_t)c->ncosts);
  int *chosen = arena_new(scratch, int, c->nsteps + 1), best;  // entry of each step
  bool *used = arena_new(scratch, bool, c->nsteps + 1);
  for (int s = 0; s < c->nsteps; s++) {
    const el_step *t = &c->step[s];
    for (int e = 0; e < t->entries; e++) v[t->first + e] = least_of(t, v, e, &best);
    for (int j = 0; j < t->addends - t->given; j++) used[t->of[j]] = true;
  }
  double sum = 0;
  for (int s = 0; s < c->nsteps; s++)
    if (!used[s]) sum += v[c->step[s].first];
  *total = sum;
  for (int s = c->nsteps - 1; s >= 0; s--) {
    const el_step *t = &c->step[s];
    least_of(t, v, chosen[s], &best);
    value[t->var] = t->sum[best];
    for (int j = t->given; j < t->addends; j++) {
      int of = t->of[j - t->given];
      chosen[of] = t->sum[best + 1 + j] - c->step[of].first;
    }
  }
  return true;
}

bool el_solve(const el_problem *p, arena *scratch, int *value, double *total, el_stats *stats) {
  *total = NAN;
  el_circuit *c = el_compile(scratch, p, stats);
  if (!c) return false;
  double *cost = arena_new(scratch, double, c->ncosts + 1);
  for (int i = 0; i < p->term.n; i++) {
    const el_term *t = &p->term.at[i];
    int n = p->size[t->a] * (t->b < 0 ? 1 : p->size[t->b]);
    if (c->at[i] >= 0) memcpy(cost + c->at[i], t->cost, sizeof *cost * (size_t)n);
  }
  return el_run(c, scratch, cost, value, total);
}

bool el_brute(const el_problem *p, int *value, double *total) {
  int at[MOST] = {0};
  if (p->n > MOST) return false;
  double least = EL_NEVER;
  for (bool more = true; more;) {
    double sum = 0;
    for (int i = 0; i < p->term.n; i++) {
      const el_term *t = &p->term.at[i];
      sum += t->b < 0 ? t->cost[at[t->a]] : t->cost[at[t->a] * p->size[t->b] + at[t->b]];
    }
    if (sum < least) {
      least = sum;
      memcpy(value, at, sizeof *at * (size_t)p->n);
    }
    more = false;
    for (int k = p->n - 1; k >= 0 && !more; k--) {
      more = ++at[k] < p->size[k];
      if (!more) at[k] = 0;
    }
  }
  *total = least;
  return least < EL_NEVER;
}
