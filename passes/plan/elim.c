// Bucket elimination over tables of which only allowed entries are kept. Which variable goes next
// is a guess (`order`; ties: the lowest number); several are tried, and the one with the fewest
// sums is taken. Chains cost their length.
//
// Bodies of layers are alike, so most eliminations are: what is allowed of a function is a
// *pattern* with a number, and variables whose functions have the same patterns in the same places
// share one table of sums. Where their costs are the same too the minima are worked out once: each
// run numbers functions by their values, as value numbering does expressions.
#include "passes/plan/elim.h"

#include <math.h>
#include <string.h>

#include "runtime/base/intern.h"

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

// For each allowed combination of its neighbours' values (an entry) the sums of which the minimum
// is taken, over a variable's own values.
typedef struct table {
  int entries;
  const int *start;  // [entries + 1] where an entry's sums begin
  const int *sum;    // the variable's value, then the number of each addend in its function
} table;

// A variable that is taken out: a minimum of sums of costs and of earlier minima.
struct el_step {
  int var;
  int addends;    // of each sum: costs first, then minima
  int given;      // how many are costs
  const int *of;  // [addends] the terms of the costs, then the steps that make the minima
  table *t;
};

// ---- compiling ----------------------------------------------------------------------------------

// What is allowed of a function, and the numbers of what is; the last variable runs fastest.
typedef struct pattern {
  int id;
  const int *number;  // of each entry; -1: not allowed. Of one that only forbids: 0, -1
  bool forbids;
  double allowed;  // share of the entries
} pattern;

// A function of some variables, in order of their numbers.
typedef struct factor {
  int n;
  int *var;
  const pattern *p;
  bool gone;
  int term, step;  // that gave or made it; -1
} factor;

// An elimination that was seen: what it makes.
typedef struct seen {
  table *t;
  const pattern *made;
} seen;

enum { MOST = 24 };  // variables of one function

typedef struct entry {
  double cost;
  int var;
} entry;

// Which variable goes next: the one with the least sums, or whose function has the fewest entries
// that are likely to be allowed, or is smallest beside those that go. None of them is always the
// best one, and where one comes to a function that is too large another one may not.
typedef enum order { BY_SUMS, BY_ALLOWED, BY_GROWTH, ORDERS } order;

typedef struct solver {
  const el_problem *p;
  order order;
  arena *a;  // of the circuit
  arena *scratch;
  el_circuit *c;
  intern_key key;
  intern tables, contents, buckets;  // of given functions; of patterns; of what meets, and how
  VEC(const pattern *) by_table;     // ORDER tables
  VEC(pattern *) pattern;            // ORDER contents
  VEC(seen) seen;                    // ORDER buckets
  VEC(factor *) * of;                // factors that name a variable
  bool *done;
  double *cost;      // of eliminating a variable, by the order
  VEC(entry) queue;  // a heap of variables, some of them several times; the last offer counts
  int *mark, stamp;
  el_stats *stats;
} solver;

static void add(solver *s, factor *f) {
  for (int i = 0; i < f->n; i++) vec_push(s->scratch, &s->of[f->var[i]], f);
}

// Patterns of equal content are one: along a chain of equal bodies what is allowed is soon the same
// from body to body, and so are the tables of sums behind it.
static const pattern *new_pattern(solver *s, const int *number, int entries, bool forbids) {
  key_clear(&s->key);
  KEY_PUT(&s->key, forbids);
  key_put(&s->key, number, sizeof *number * (size_t)entries);
  int id = intern_of(&s->contents, &s->key);
  if (id < s->pattern.n) return s->pattern.at[id];
  int allowed = 0;
  for (int i = 0; i < entries; i++) allowed += number[i] >= 0;
  pattern *p = arena_new(s->scratch, pattern, 1);
  *p = (pattern){id, number, forbids, (double)allowed / (double)entries};
  vec_push(s->scratch, &s->pattern, p);
  return p;
}

static bool only_forbids(const el_term *t, int entries) {
  for (int i = 0; i < entries; i++)
    if (t->cost[i] != 0 && t->cost[i] < EL_NEVER) return false;
  return true;
}

// The pattern of a term of na x nb values, that move by the strides in its table. Terms that share
// their table share it.
static const pattern *pattern_of(solver *s, const el_term *t, int na, int nb, int stride_a,
                                 int stride_b) {
  key_clear(&s->key);
  KEY_PUT(&s->key, t->cost);
  const int shape[] = {na, nb, stride_a, t->b >= 0};
  KEY_PUT(&s->key, shape);
  int at = intern_of(&s->tables, &s->key);
  if (at < s->by_table.n) return s->by_table.at[at];
  int entries = s->p->size[t->a] * (t->b < 0 ? 1 : s->p->size[t->b]);
  bool forbids = t->b >= 0 && only_forbids(t, entries);
  int *number = arena_new(s->scratch, int, na *nb);
  for (int i = 0; i < na; i++)
    for (int k = 0; k < nb; k++) {
      int e = i * stride_a + k * stride_b;
      number[i * nb + k] = t->cost[e] >= EL_NEVER ? -1 : forbids ? 0 : e;
    }
  const pattern *p = new_pattern(s, number, na * nb, forbids);
  vec_push(s->scratch, &s->by_table, p);
  return p;
}

static factor *factor_of(solver *s, int term) {
  const int *size = s->p->size;
  const el_term *t = &s->p->term.at[term];
  factor *f = arena_new(s->scratch, factor, 1);
  int na = size[t->a], nb = t->b < 0 ? 1 : size[t->b], stride_a = nb, stride_b = 1;
  f->term = term;
  f->step = -1;
  f->n = t->b < 0 || t->b == t->a ? 1 : 2;
  f->var = arena_new(s->scratch, int, 2);
  f->var[0] = t->a;
  if (f->n == 2) f->var[1] = t->b;
  if (t->b == t->a) nb = 1, stride_a++;
  if (f->n == 2 && t->b < t->a) {
    f->var[0] = t->b, f->var[1] = t->a;
    int n = na;
    na = nb, nb = n, stride_b = stride_a, stride_a = 1;
  }
  f->p = pattern_of(s, t, na, nb, stride_a, stride_b);
  return f;
}

static void drop_gone(solver *s, int v) {
  factor **of = s->of[v].at;
  int kept = 0;
  for (int i = 0; i < s->of[v].n; i++)
    if (!of[i]->gone) of[kept++] = of[i];
  s->of[v].n = kept;
}

// The other variables of the functions that name `v`, in order; -1 when they are too many.
static int neighbours(solver *s, int v, int *out) {
  int n = 0;
  s->stamp++;
  s->mark[v] = s->stamp;
  drop_gone(s, v);
  for (int i = 0; i < s->of[v].n; i++) {
    const factor *f = s->of[v].at[i];
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

static double entries_of(const solver *s, const factor *f) {
  double e = 1;
  for (int k = 0; k < f->n; k++) e *= s->p->size[f->var[k]];
  return e;
}

static double cost_of(solver *s, int v) {
  int near[MOST], n = neighbours(s, v, near);
  if (n < 0) return INFINITY;
  double e = s->order == BY_SUMS ? s->p->size[v] : 1;
  for (int i = 0; i < n; i++) e *= s->p->size[near[i]];
  for (int i = 0; i < s->of[v].n; i++) {
    const factor *f = s->of[v].at[i];
    if (s->order == BY_GROWTH)
      e -= entries_of(s, f);
    else
      e *= f->p->allowed;
  }
  return e;
}

enum { WAYS = 4 };  // of the heap: fewer lines of cache on the way down than with 2

static bool before(const entry *a, const entry *b) {
  return a->cost != b->cost ? a->cost < b->cost : a->var < b->var;
}

// Works out what a variable costs and puts it into the queue, where it may be at that cost already.
static void offer(solver *s, int v) {
  entry e = {cost_of(s, v), v};
  int at = s->queue.n;
  if (e.cost == s->cost[v]) return;
  s->cost[v] = e.cost;
  vec_push(s->scratch, &s->queue, e);
  for (; at > 0 && before(&e, &s->queue.at[(at - 1) / WAYS]); at = (at - 1) / WAYS)
    s->queue.at[at] = s->queue.at[(at - 1) / WAYS];
  s->queue.at[at] = e;
}

static entry take(solver *s) {
  entry *q = s->queue.at, top = q[0], last = q[--s->queue.n];
  int at = 0, n = s->queue.n;
  for (int child = 1; child < n; child = WAYS * at + 1) {
    int least = child, end = child + WAYS < n ? child + WAYS : n;
    for (int i = child + 1; i < end; i++)
      if (before(&q[i], &q[least])) least = i;
    if (!before(&q[least], &last)) break;
    q[at] = q[least];
    at = least;
  }
  if (n) q[at] = last;
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
  arena *lists;  // of the two below
  VEC(int) sum;
  VEC(int) start;
  int *number;  // of the function to be made
} bucket;

static void open_bucket(solver *s, bucket *b) {
  const int *size = s->p->size;
  int all = s->of[b->v].n, n = b->n;
  b->in = arena_new(s->scratch, factor *, all + 1);
  b->step = arena_new(s->scratch, int, (all + 1) * (n + 1));
  b->last = arena_new(s->scratch, int, all + 1);
  for (int i = 0; i < all; i++) {
    factor *f = s->of[b->v].at[i];
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
}

// Leaves of v's values, those at `from`, what the functions allow whose last neighbour is `k`.
static int keep_allowed(const bucket *b, int k, int level, const int *from, int n, int *to) {
  const int *base = b->base + level * b->nin;
  int kept = 0;
  for (int i = 0; i < n; i++) {
    bool good = true;
    for (int f = 0; f < b->nin && good; f++)
      if (b->last[f] == k)
        good = b->in[f]->p->number[base[f] + from[i] * b->step[f * (b->n + 1) + b->n]] >= 0;
    if (good) to[kept++] = from[i];
  }
  return kept;
}

// All neighbours have their value: the sums of this entry.
static void add_entry(bucket *b, const int *open, int n) {
  const int *base = b->base + b->n * b->nin;
  b->number[b->at] = b->start.n;
  vec_push(b->lists, &b->start, b->sum.n);
  for (int i = 0; i < n; i++) {
    vec_push(b->lists, &b->sum, open[i]);
    for (int f = 0; f < b->nin; f++)
      if (!b->in[f]->p->forbids)
        vec_push(b->lists, &b->sum,
                 b->in[f]->p->number[base[f] + open[i] * b->step[f * (b->n + 1) + b->n]]);
  }
}

// Gives neighbour `level` each of its values, as long as some value of v is allowed beside it.
static void walk(solver *s, bucket *b, int level, const int *open, int n) {
  if (level == b->n) {
    add_entry(b, open, n);
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

// The patterns that meet in a bucket, and how.
static void put_bucket(solver *s, const bucket *b) {
  intern_key *key = &s->key;
  key_clear(key);
  KEY_PUT(key, s->p->size[b->v]);
  KEY_PUT(key, b->n);
  for (int k = 0; k < b->n; k++) KEY_PUT(key, s->p->size[b->near[k]]);
  for (int f = 0; f < b->nin; f++) KEY_PUT(key, b->in[f]->p->id);
  key_put(key, b->step, sizeof *b->step * (size_t)(b->nin * (b->n + 1)));
}

// All sums of the bucket.
static seen see(solver *s, bucket *b, int total) {
  int size = s->p->size[b->v];
  arena lists;
  arena_init(&lists);
  b->lists = &lists;
  b->number = arena_new(s->scratch, int, total);
  memset(b->number, -1, sizeof *b->number * (size_t)total);
  b->base = arena_new(s->scratch, int, (b->n + 1) * (b->nin + 1));
  b->open = arena_new(s->scratch, int, (b->n + 2) * (size + 1));
  for (int x = 0; x < size; x++) b->open[x] = x;
  int *first = b->open + (b->n + 1) * (size + 1);
  int n = keep_allowed(b, -1, 0, b->open, size, first);
  if (n) walk(s, b, 0, first, n);
  table *t = arena_new(s->a, table, 1);
  t->entries = b->start.n;
  vec_push(b->lists, &b->start, b->sum.n);
  t->start = copy(s->a, b->start.at, b->start.n);
  t->sum = copy(s->a, b->sum.at, b->sum.n);
  arena_free(&lists);
  return (seen){t, new_pattern(s, b->number, total, false)};
}

static void close_bucket(solver *s, const bucket *b, const seen *x) {
  el_step *t = &s->c->step[s->c->nsteps];
  *t = (el_step){.var = b->v, .t = x->t};
  int *of = arena_new(s->a, int, b->nin + 1);
  for (int f = 0; f < b->nin; f++) {
    if (b->in[f]->p->forbids) continue;
    bool given = b->in[f]->step < 0;
    of[t->addends++] = given ? b->in[f]->term : b->in[f]->step;
    t->given += given;
  }
  t->of = of;
  s->c->possible &= x->t->entries > 0;
  s->stats->sums += x->t->start[x->t->entries] / (t->addends + 1);
  factor *made = arena_new(s->scratch, factor, 1);
  *made = (factor){.n = b->n, .p = x->made, .term = -1, .step = s->c->nsteps++};
  made->var = copy(s->scratch, b->near, b->n);
  add(s, made);
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
  open_bucket(s, &b);
  put_bucket(s, &b);
  int id = intern_of(&s->buckets, &s->key);
  if (id == s->seen.n) vec_push(s->scratch, &s->seen, see(s, &b, (int)total));
  close_bucket(s, &b, &s->seen.at[id]);
  s->done[v] = true;
  for (int i = 0; i < b.n; i++) offer(s, b.near[i]);
  return true;
}

// NULL: too large, or it takes more than `most` sums.
static el_circuit *compile_by(arena *a, const el_problem *p, order o, double most,
                              el_stats *stats) {
  *stats = (el_stats){0};
  arena scratch;  // tables are large and go at the end
  arena_init(&scratch);
  el_circuit *c = arena_new(a, el_circuit, 1);
  *c = (el_circuit){.n = p->n, .possible = true};
  c->step = arena_new(a, el_step, p->n + 1);
  solver s = {.p = p, .order = o, .a = a, .scratch = &scratch, .c = c, .stats = stats};
  s.key.arena = s.tables.arena = s.contents.arena = s.buckets.arena = &scratch;
  s.of = (void *)arena_alloc(&scratch, sizeof *s.of * (size_t)(p->n + 1));
  s.done = arena_new(&scratch, bool, p->n + 1);
  s.cost = arena_new(&scratch, double, p->n + 1);
  s.mark = arena_new(&scratch, int, p->n + 1);
  for (int i = 0; i < p->term.n; i++) add(&s, factor_of(&s, i));
  for (int i = 0; i < p->n; i++) s.cost[i] = NAN;  // not in the queue
  for (int i = 0; i < p->n; i++) offer(&s, i);
  bool good = true;
  while (good && s.queue.n) {
    entry next = take(&s);
    if (s.done[next.var] || next.cost != s.cost[next.var]) continue;  // it was offered again
    good = eliminate(&s, next.var) && stats->sums <= most;
  }
  arena_free(&scratch);
  return good ? c : NULL;
}

// A graph with more variables has few searches: what a better order saves in them is less than it
// takes to look for one.
enum { TRIED = 4096 };

el_circuit *el_compile(arena *a, const el_problem *p, el_stats *stats) {
  el_stats own = {0}, with;
  el_circuit *c = NULL;
  arena kept;
  arena_init(&kept);
  for (int o = 0; o < ORDERS && (!c || p->n <= TRIED); o++) {
    arena trial;
    arena_init(&trial);
    el_circuit *other = compile_by(&trial, p, (order)o, c ? own.sums : INFINITY, &with);
    if (!c) own = with;
    if (other && (!c || with.sums < own.sums)) {
      arena_free(&kept);
      kept = trial;
      c = other;
      own = with;
    } else {
      arena_free(&trial);
    }
  }
  arena_adopt(a, &kept);
  if (stats) *stats = own;
  return c;
}

// ---- running ------------------------------------------------------------------------------------

static inline double sum_of(const double *const *in, const int *x, int k) {
  double sum = k ? in[0][x[1]] : 0;
  for (int j = 1; j < k; j++) sum += in[j][x[1 + j]];
  return sum;
}

// Where the least sum of entry `at` stands. `in`: the functions that are added.
static int place_of_least(const el_step *s, const double *const *in, int at) {
  int k = s->addends, best = s->t->start[at];
  double least = INFINITY;
  for (int i = best; i < s->t->start[at + 1]; i += k + 1) {
    double sum = sum_of(in, s->t->sum + i, k);
    if (sum < least) {
      least = sum;
      best = i;
    }
  }
  return best;
}

// The least sums of all entries: minima without branches, which is most of what the planner does
// for a model of many unlike layers.
static inline void least_of(const el_step *s, const double *const *in, int k, double *made) {
  const int *start = s->t->start, *x = s->t->sum;
  for (int e = 0; e < s->t->entries; e++) {
    double least = INFINITY;
    for (int i = start[e]; i < start[e + 1]; i += k + 1) {
      double sum = sum_of(in, x + i, k);
      least = sum < least ? sum : least;
    }
    made[e] = least;
  }
}

// Most sums have two to four addends: their loops are unrolled.
static void find_least(const el_step *s, const double *const *in, double *made) {
  switch (s->addends) {
    case 2: least_of(s, in, 2, made); break;
    case 3: least_of(s, in, 3, made); break;
    case 4: least_of(s, in, 4, made); break;
    default: least_of(s, in, s->addends, made);
  }
}

// One run: the minima of each step, equal ones once.
typedef struct run {
  const el_circuit *c;
  const double *const *cost;
  const double **made;         // [nsteps]
  intern sums;                 // by their table and what they add
  VEC(const double *) of_sum;  // ORDER sums
  intern_key key;
} run;

static void find_functions(const run *r, const el_step *s, const double **in) {
  for (int j = 0; j < s->given; j++) in[j] = r->cost[s->of[j]];
  for (int j = s->given; j < s->addends; j++) in[j] = r->made[s->of[j]];
}

// The minima of a step whose functions are `in`.
static const double *minima(run *r, arena *scratch, const el_step *s, const double *const *in) {
  key_clear(&r->key);
  KEY_PUT(&r->key, s->t);
  key_put(&r->key, in, sizeof *in * (size_t)s->addends);
  int n = intern_of(&r->sums, &r->key);
  if (n < r->of_sum.n) return r->of_sum.at[n];
  // All entries are written: no zeroes first.
  double *made = arena_alloc_raw(scratch, sizeof *made * (size_t)s->t->entries);
  find_least(s, in, made);
  vec_push(scratch, &r->of_sum, made);
  return made;
}

bool el_run(const el_circuit *c, arena *scratch, const double *const *cost, int *value,
            double *total) {
  *total = EL_NEVER;
  if (!c->possible) return false;
  run r = {.c = c, .cost = cost};
  r.made = arena_alloc_raw(scratch, sizeof *r.made * (size_t)(c->nsteps + 1));
  r.sums.arena = r.key.arena = scratch;
  int *chosen = arena_new(scratch, int, c->nsteps + 1), most = 1;  // entry of each step
  bool *used = arena_new(scratch, bool, c->nsteps + 1);
  for (int i = 0; i < c->nsteps; i++)
    if (c->step[i].addends > most) most = c->step[i].addends;
  const double **in = arena_new(scratch, const double *, most);
  for (int i = 0; i < c->nsteps; i++) {
    const el_step *s = &c->step[i];
    find_functions(&r, s, in);
    for (int j = s->given; j < s->addends; j++) used[s->of[j]] = true;
    r.made[i] = minima(&r, scratch, s, in);
  }
  double sum = 0;
  for (int i = 0; i < c->nsteps; i++)
    if (!used[i]) sum += r.made[i][0];
  *total = sum;
  for (int i = c->nsteps - 1; i >= 0; i--) {
    const el_step *s = &c->step[i];
    find_functions(&r, s, in);
    int best = place_of_least(s, in, chosen[i]);
    value[s->var] = s->t->sum[best];
    for (int j = s->given; j < s->addends; j++) chosen[s->of[j]] = s->t->sum[best + 1 + j];
  }
  return true;
}

bool el_solve(const el_problem *p, arena *scratch, int *value, double *total, el_stats *stats) {
  *total = NAN;
  el_circuit *c = el_compile(scratch, p, stats);
  if (!c) return false;
  const double **cost = arena_new(scratch, const double *, p->term.n + 1);
  for (int i = 0; i < p->term.n; i++) cost[i] = p->term.at[i].cost;
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
