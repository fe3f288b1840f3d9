// Stage cuts by dynamic programming.
//
// least[i][l] is the least possible worst cost of stages 0..i that take layers 0..l-1 together:
//
//   least[i][l] = min over k <= l of max(least[i-1][k], cost(i, k, l))
//
// More layers never cost less, so least[i-1][k] does not fall with k and cost(i, k, l) does not
// rise: the least of their maximum is where they cross, found by bisection. The cost is the stage's
// seconds, or infinite beyond its capacity; when all cuts are infinite, a second pass takes the
// bytes beyond the capacity as the cost.
//
// On stages of unlike kinds the sum of all seconds depends on the cut too. Its least under a limit
// of the slowest stage is found by
//
//   sum[i][l] = min over k in from(l) .. l of sum[i-1][k] + cost(i, k, l)
//
// where cost(i, k, l) is a difference of two sums of layers, so that the minimum is one over a
// window that only moves up. The limit then goes below the slowest stage of what was found, and so
// on.
#include "passes/plan/stages.h"

#include <math.h>

// What differs by less is rounding, and equal: which of equal cuts is taken must not depend on it.
#define ROUNDING 1e-12

// Sums of the layers before, by kind of stage.
typedef struct sums {
  double *seconds, *kept, *state;  // [layers + 1]
} sums;

typedef struct dp {
  const stages_job *job;
  int64_t layers;
  sums *sum;
  bool beyond;  // the cost is bytes beyond the capacity
} dp;

static int kind_of(const stages_job *j, int i) { return j->kind ? j->kind[i] : 0; }

static double seconds_of(const dp *d, int i, int64_t from, int64_t to) {
  const stages_job *j = d->job;
  const stages_work *w = &j->work[kind_of(j, i)];
  const double *sum = d->sum[kind_of(j, i)].seconds;
  double s = sum[to] - sum[from];
  if (i == 0) s += w->first.seconds;
  if (i == j->stages - 1) s += w->last.seconds;
  return s * (j->slowness ? j->slowness[i] : 1);
}

static double bytes_of(const dp *d, int i, int64_t from, int64_t to) {
  const stages_job *j = d->job;
  const stages_work *w = &j->work[kind_of(j, i)];
  const sums *sum = &d->sum[kind_of(j, i)];
  double kept = sum->kept[to] - sum->kept[from], state = sum->state[to] - sum->state[from];
  if (i == 0) kept += w->first.kept, state += w->first.state;
  if (i == j->stages - 1) kept += w->last.kept, state += w->last.state;
  return state + kept * (j->stash ? j->stash[i] : 0);
}

static double cost_of(const dp *d, int i, int64_t from, int64_t to) {
  double over = d->job->capacity ? bytes_of(d, i, from, to) - d->job->capacity[i] : 0;
  if (d->beyond) return fmax(0, over);
  return over > 0 ? INFINITY : seconds_of(d, i, from, to);
}

// Fills `first` and returns the least worst cost.
static double cut(arena *a, const dp *d, int64_t *first) {
  int n = d->job->stages;
  int64_t size = d->layers + 1;
  double *least = arena_new(a, double, n *size);
  for (int64_t l = 0; l < size; l++) least[l] = cost_of(d, 0, 0, l);
  for (int i = 1; i < n; i++) {
    const double *before = least + (i - 1) * size;
    double *now = least + i * size;
    // The first k at which what lies before costs at least as much as this stage, it or the one
    // before it, is the best. It does not fall as l grows.
    int64_t k = 0;
    for (int64_t l = 0; l < size; l++) {
      double cost = cost_of(d, i, k, l);
      while (k < l && before[k] < cost) cost = cost_of(d, i, ++k, l);
      double best = fmax(before[k], cost);
      if (k > 0) best = fmin(best, cost_of(d, i, k - 1, l));
      now[l] = best;
    }
  }
  first[n] = d->layers;
  for (int i = n - 1; i > 0; i--) {
    // The first k as good. What lies before costs no more there, so only the stage's cost counts.
    int64_t l = first[i + 1], low = 0, high = l;
    double best = least[i * size + l];
    while (low < high) {
      int64_t k = (low + high) / 2;
      if (cost_of(d, i, k, l) <= best * (1 + ROUNDING))
        high = k;
      else
        low = k + 1;
    }
    first[i] = low;
  }
  return least[(n - 1) * size + d->layers];
}

// The cut with the least sum of seconds whose stages take less than `limit` each, into `first`;
// INFINITY when there is none.
static double least_sum(arena *a, const dp *d, double limit, int64_t *first) {
  int n = d->job->stages;
  int64_t size = d->layers + 1;
  double *sum = arena_new(a, double, size), *next = arena_new(a, double, size);
  int64_t *from = arena_new(a, int64_t, n *size), *window = arena_new(a, int64_t, size);
  for (int64_t l = 1; l < size; l++) sum[l] = INFINITY;
  for (int i = 0; i < n; i++) {
    int64_t low = 0, head = 0, tail = 0;  // window[head .. tail - 1]: rising k, rising value
    for (int64_t l = 0; l < size; l++) {
      // What k is worth apart from l: its sum less the layers before it.
      while (tail > head && sum[l] - seconds_of(d, i, 0, l) <
                                sum[window[tail - 1]] - seconds_of(d, i, 0, window[tail - 1]))
        tail--;
      window[tail++] = l;
      while (low <= l && cost_of(d, i, low, l) >= limit) low++;
      while (head < tail && window[head] < low) head++;
      int64_t k = head < tail ? window[head] : -1;
      from[i * size + l] = k;
      next[l] = k < 0 ? INFINITY : sum[k] + cost_of(d, i, k, l);
    }
    double *swap = sum;
    sum = next;
    next = swap;
  }
  if (isinf(sum[d->layers])) return INFINITY;
  first[n] = d->layers;
  for (int i = n - 1; i >= 0; i--) first[i] = from[i * size + first[i + 1]];
  return sum[d->layers];
}

static double slowest_of(const dp *d, const int64_t *first) {
  double slowest = 0;
  for (int i = 0; i < d->job->stages; i++)
    slowest = fmax(slowest, seconds_of(d, i, first[i], first[i + 1]));
  return slowest;
}

// No cut's sum of seconds is less: each layer, and each end, where it takes least.
static double sum_bound(const dp *d) {
  const stages_job *j = d->job;
  int n = j->stages;
  double sum = seconds_of(d, 0, 0, 0) + (n > 1 ? seconds_of(d, n - 1, d->layers, d->layers) : 0);
  for (int64_t l = 0; l < d->layers; l++) {
    double least = INFINITY;
    for (int i = 0; i < n; i++) {
      if (i && !j->slowness && kind_of(j, i) == kind_of(j, i - 1)) continue;
      const double *before = d->sum[kind_of(j, i)].seconds;
      least = fmin(least, (before[l + 1] - before[l]) * (j->slowness ? j->slowness[i] : 1));
    }
    sum += least;
  }
  return sum;
}

// Makes `first`, a cut with the least slowest stage, one with the least of sum and slowest. Of
// equal ones it is the one with the least slowest stage.
static void balance(arena *a, const dp *d, double slowest, int64_t *first) {
  double more = d->job->micro - 1, best = more * slowest;
  int n = d->job->stages;
  for (int i = 0; i < n; i++) best += seconds_of(d, i, first[i], first[i + 1]);
  int64_t *other = arena_new(a, int64_t, n + 1);
  double limit = INFINITY;
  if (more > 0) limit = (best - sum_bound(d)) / more * (1 + ROUNDING);  // no slower one is of use
  while (limit > slowest * (1 + 1e-9)) {
    double sum = least_sum(a, d, limit, other);
    if (isinf(sum) || sum + more * slowest >= best * (1 - ROUNDING)) break;
    limit = slowest_of(d, other);
    if (sum + more * limit >= best * (1 - ROUNDING)) continue;
    best = sum + more * limit;
    for (int i = 0; i <= n; i++) first[i] = other[i];
  }
}

static sums sums_of(arena *a, const stages_run *run, int runs, int64_t layers) {
  sums s = {arena_new(a, double, layers + 1), arena_new(a, double, layers + 1),
            arena_new(a, double, layers + 1)};
  int64_t l = 0;
  for (int r = 0; r < runs; r++) {
    const stages_cost *c = &run[r].layer;
    for (int64_t k = 0; k < run[r].count; k++, l++) {
      s.seconds[l + 1] = s.seconds[l] + c->seconds;
      s.kept[l + 1] = s.kept[l] + c->kept;
      s.state[l + 1] = s.state[l] + c->state;
    }
  }
  return s;
}

stages_cut stages_find(arena *a, const stages_job *job) {
  dp d = {.job = job, .sum = arena_new(a, sums, job->kinds)};
  for (int r = 0; r < job->runs; r++) d.layers += job->work[0].run[r].count;
  for (int k = 0; k < job->kinds; k++) d.sum[k] = sums_of(a, job->work[k].run, job->runs, d.layers);
  stages_cut s = {.first = arena_new(a, int64_t, job->stages + 1),
                  .seconds = arena_new(a, double, job->stages),
                  .bytes = arena_new(a, double, job->stages),
                  .fits = true};
  double slowest = cut(a, &d, s.first);
  if (isinf(slowest)) {
    s.fits = false;
    if (job->only_fitting) return s;
    d.beyond = true;
    s.over = cut(a, &d, s.first);
  } else if (job->micro > 0) {
    balance(a, &d, slowest, s.first);
  }
  for (int i = 0; i < job->stages; i++) {
    s.seconds[i] = seconds_of(&d, i, s.first[i], s.first[i + 1]);
    s.bytes[i] = bytes_of(&d, i, s.first[i], s.first[i + 1]);
    s.slowest = fmax(s.slowest, s.seconds[i]);
  }
  return s;
}

int64_t stages_of_chunk(int64_t own, int chunks, int chunk) {
  return own * (chunk + 1) / chunks - own * chunk / chunks;
}

int64_t *stages_deal(arena *a, const stages_cut *cut, int stages, int chunks) {
  int64_t *first = arena_new(a, int64_t, (int64_t)stages *chunks + 1);
  int64_t *own = arena_new(a, int64_t, stages);
  for (int i = 0; i < stages; i++) own[i] = cut->first[i + 1] - cut->first[i];
  for (int i = 0; i < stages; i++)
    while (own[i] < chunks) {
      int most = 0;
      for (int k = 1; k < stages; k++)
        if (own[k] > own[most]) most = k;
      if (own[most] <= own[i] + 1) break;  // there are not enough layers, or none
      own[most]--;
      own[i]++;
    }
  for (int c = 0, k = 0; c < chunks; c++)
    for (int i = 0; i < stages; i++, k++)
      first[k + 1] = first[k] + stages_of_chunk(own[i], chunks, c);
  return first;
}
