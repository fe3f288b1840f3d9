// Bucket elimination over dense tables. Which variable goes next: the one whose elimination makes
// the smallest function (ties: the lowest number), so that chains cost their length.
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

// A function of some variables, in order of their numbers, the last one running fastest.
typedef struct factor {
  int n;
  int *var;
  double *cost;
  int *best;  // of an eliminated function: the value of the eliminated variable
  bool gone;
} factor;

enum { MOST = 24 };  // variables of one function

typedef struct entry {
  double cost;
  int var;
} entry;

typedef struct solver {
  const el_problem *p;
  arena *a;
  VEC(factor *) factor;
  bool positive;  // no cost is negative: a sum that is too large need not go on
  VEC(int) * of;  // factors that name a variable
  bool *done;
  double *cost;      // entries of the function that eliminating a variable makes
  VEC(entry) queue;  // a heap of variables, some of them several times; the last offer counts
  int *mark, stamp;
} solver;

static void add(solver *s, factor *f) {
  for (int i = 0; i < f->n; i++) vec_push(s->a, &s->of[f->var[i]], s->factor.n);
  vec_push(s->a, &s->factor, f);
}

static int entries_of(const solver *s, const factor *f) {
  int n = 1;
  for (int i = 0; i < f->n; i++) n *= s->p->size[f->var[i]];
  return n;
}

static factor *factor_of(solver *s, const el_term *t) {
  const int *size = s->p->size;
  factor *f = arena_new(s->a, factor, 1);
  f->n = t->b < 0 || t->b == t->a ? 1 : 2;
  f->var = arena_new(s->a, int, 2);
  int na = size[t->a], nb = t->b < 0 ? 1 : size[t->b];
  f->cost = arena_new(s->a, double, na *nb);
  f->var[0] = t->a;
  if (t->b == t->a) {
    for (int i = 0; i < na; i++) f->cost[i] = t->cost[i * na + i];
  } else if (t->b < 0 || t->a < t->b) {
    if (t->b >= 0) f->var[1] = t->b;
    memcpy(f->cost, t->cost, sizeof *f->cost * (size_t)(na * nb));
  } else {
    f->var[0] = t->b;
    f->var[1] = t->a;
    for (int i = 0; i < na; i++)
      for (int k = 0; k < nb; k++) f->cost[k * na + i] = t->cost[i * nb + k];
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

static double entries(solver *s, int v) {
  int near[MOST], n = neighbours(s, v, near);
  if (n < 0) return INFINITY;
  double e = s->p->size[v];
  for (int i = 0; i < n; i++) e *= s->p->size[near[i]];
  return e;
}

static bool before(const entry *a, const entry *b) {
  return a->cost != b->cost ? a->cost < b->cost : a->var < b->var;
}

// Works out what a variable costs and puts it into the queue.
static void offer(solver *s, int v) {
  entry e = {s->cost[v] = entries(s, v), v};
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

// All functions that name `v` become one without it.
static bool eliminate(solver *s, int v, el_stats *stats) {
  const int *size = s->p->size;
  int near[MOST], n = neighbours(s, v, near);
  if (n < 0) return false;
  double total = 1;
  for (int i = 0; i < n; i++) total *= size[near[i]];
  if (total * size[v] > EL_LARGEST) return false;
  stats->entries += total;
  if (total * size[v] > stats->largest) stats->largest = total * size[v];
  factor *made = arena_new(s->a, factor, 1);
  made->n = n;
  made->var = arena_new(s->a, int, n + 1);
  memcpy(made->var, near, sizeof *near * (size_t)n);
  made->var[n] = v;  // whose value `best` gives
  int count = (int)total;
  made->cost = arena_new(s->a, double, count);
  made->best = arena_new(s->a, int, count);

  // For each function: how far its table moves when a neighbour, or v itself, goes on by one.
  VEC(factor *) in = {0};
  VEC(int) step = {0};
  for (int i = 0; i < s->of[v].n; i++) {
    factor *f = s->factor.at[s->of[v].at[i]];
    if (f->gone) continue;
    vec_push(s->a, &in, f);
    for (int k = 0; k <= n; k++) {
      int w = k < n ? near[k] : v, stride = 1, found = 0;
      for (int j = f->n - 1; j >= 0; j--) {
        if (f->var[j] == w) found = stride;
        stride *= size[f->var[j]];
      }
      vec_push(s->a, &step, found);
    }
    f->gone = true;
  }
  int at[MOST] = {0}, *base = arena_new(s->a, int, in.n + 1);
  for (int e = 0; e < count; e++) {
    double least = INFINITY;
    int best = 0;
    for (int x = 0; x < size[v]; x++) {
      double sum = 0;
      for (int f = 0; f < in.n && (sum < least || !s->positive); f++)
        sum += in.at[f]->cost[base[f] + x * step.at[f * (n + 1) + n]];
      if (sum < least) {
        least = sum;
        best = x;
      }
    }
    made->cost[e] = least < EL_NEVER ? least : EL_NEVER;
    made->best[e] = best;
    for (int k = n - 1; k >= 0; k--) {  // the next combination
      at[k]++;
      for (int f = 0; f < in.n; f++) base[f] += step.at[f * (n + 1) + k];
      if (at[k] < size[near[k]]) break;
      for (int f = 0; f < in.n; f++) base[f] -= at[k] * step.at[f * (n + 1) + k];
      at[k] = 0;
    }
  }
  add(s, made);
  s->done[v] = true;
  for (int i = 0; i < n; i++) offer(s, near[i]);
  return true;
}

bool el_solve(const el_problem *p, arena *scratch, int *value, double *total, el_stats *stats) {
  el_stats none;
  if (!stats) stats = &none;
  *stats = (el_stats){0};
  *total = NAN;
  solver s = {.p = p, .a = scratch};
  s.of = (void *)arena_alloc(scratch, sizeof *s.of * (size_t)(p->n + 1));
  s.done = arena_new(scratch, bool, p->n + 1);
  s.cost = arena_new(scratch, double, p->n + 1);
  s.mark = arena_new(scratch, int, p->n + 1);
  for (int i = 0; i < p->term.n; i++) add(&s, factor_of(&s, &p->term.at[i]));
  int given = s.factor.n;
  s.positive = true;
  for (int i = 0; i < given; i++)
    for (int e = 0; e < entries_of(&s, s.factor.at[i]); e++)
      s.positive &= s.factor.at[i]->cost[e] >= 0;
  for (int i = 0; i < p->n; i++) offer(&s, i);
  while (s.queue.n) {
    entry next = take(&s);
    if (s.done[next.var] || next.cost != s.cost[next.var]) continue;  // it was offered again
    if (!eliminate(&s, next.var, stats)) return false;
  }
  double sum = 0;
  for (int i = given; i < s.factor.n; i++)
    if (!s.factor.at[i]->gone) sum += s.factor.at[i]->cost[0];
  *total = sum;
  for (int i = s.factor.n - 1; i >= given; i--) {
    const factor *f = s.factor.at[i];
    int e = 0;
    for (int k = 0; k < f->n; k++) e = e * p->size[f->var[k]] + value[f->var[k]];
    value[f->var[f->n]] = f->best[e];
  }
  return sum < EL_NEVER;
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
