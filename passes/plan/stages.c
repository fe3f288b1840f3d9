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
#include "passes/plan/stages.h"

#include <math.h>

typedef struct dp {
  const stages_job *job;
  int64_t layers;
  double *seconds, *kept, *state;  // [layers + 1] sums of the layers before
  bool beyond;                     // the cost is bytes beyond the capacity
} dp;

static double seconds_of(const dp *d, int i, int64_t from, int64_t to) {
  const stages_job *j = d->job;
  double s = d->seconds[to] - d->seconds[from];
  if (i == 0) s += j->first.seconds;
  if (i == j->stages - 1) s += j->last.seconds;
  return s * (j->slowness ? j->slowness[i] : 1);
}

static double bytes_of(const dp *d, int i, int64_t from, int64_t to) {
  const stages_job *j = d->job;
  double kept = d->kept[to] - d->kept[from], state = d->state[to] - d->state[from];
  if (i == 0) kept += j->first.kept, state += j->first.state;
  if (i == j->stages - 1) kept += j->last.kept, state += j->last.state;
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
      if (cost_of(d, i, k, l) <= best)
        high = k;
      else
        low = k + 1;
    }
    first[i] = low;
  }
  return least[(n - 1) * size + d->layers];
}

stages_cut stages_find(arena *a, const stages_job *job) {
  dp d = {.job = job};
  for (int r = 0; r < job->runs; r++) d.layers += job->run[r].count;
  d.seconds = arena_new(a, double, d.layers + 1);
  d.kept = arena_new(a, double, d.layers + 1);
  d.state = arena_new(a, double, d.layers + 1);
  int64_t l = 0;
  for (int r = 0; r < job->runs; r++) {
    const stages_cost *c = &job->run[r].layer;
    for (int64_t k = 0; k < job->run[r].count; k++, l++) {
      d.seconds[l + 1] = d.seconds[l] + c->seconds;
      d.kept[l + 1] = d.kept[l] + c->kept;
      d.state[l + 1] = d.state[l] + c->state;
    }
  }
  stages_cut s = {.first = arena_new(a, int64_t, job->stages + 1),
                  .seconds = arena_new(a, double, job->stages),
                  .bytes = arena_new(a, double, job->stages),
                  .fits = true};
  if (isinf(cut(a, &d, s.first))) {
    s.fits = false;
    if (job->only_fitting) return s;
    d.beyond = true;
    s.over = cut(a, &d, s.first);
  }
  for (int i = 0; i < job->stages; i++) {
    s.seconds[i] = seconds_of(&d, i, s.first[i], s.first[i + 1]);
    s.bytes[i] = bytes_of(&d, i, s.first[i], s.first[i + 1]);
    s.slowest = fmax(s.slowest, s.seconds[i]);
  }
  return s;
}
