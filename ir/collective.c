// What collectives take: alpha-beta costs on the tiers of a cluster.
//
// A group of n devices is cut, tier by tier from the inside, into as many as lie in one level: n is
// the product of these factors. A collective is then done factor by factor. Reduce-scatter goes
// from the inside out, and after a factor f each device is left with 1/f of the bytes; all-gather
// is the same backwards; all-reduce is one after the other, where the outermost factor may be a
// tree. The bytes of all factors add up to (n-1)/n of the whole, whatever the factors are.
#include "ir/cluster.h"

#include <math.h>

const char *cl_collective_name(cl_collective k) {
  static const char *const names[CL_COLLECTIVES] = {
      [CL_ALL_GATHER] = "all_gather",
      [CL_REDUCE_SCATTER] = "reduce_scatter",
      [CL_ALL_REDUCE] = "all_reduce",
      [CL_ALL_TO_ALL] = "all_to_all",
      [CL_SEND] = "send",
  };
  return names[k];
}

// A group's way out: per tier how many of it lie together, and the link that joins those of this
// tier.
typedef struct steps {
  int n;
  int64_t ranks[CL_TIERS];  // together at this tier; the last is all
  const cl_tier *tier;
} steps;

static cl_cost cost_of(const steps *s, cl_collective k, double bytes) {
  static const char *const rings[] = {"none", "ring", "ring x ring", "ring x ring x ring", "rings"};
  static const char *const trees[] = {"none", "tree", "ring x tree", "ring x ring x tree",
                                      "rings x tree"};
  cl_cost c = {.how = "none"};
  double size = (double)s->ranks[s->n - 1], inner = 1;
  double ring = 0, all_trees = 0, outer_ring = 0, outer_tree = 0;
  int factors = 0;
  for (int i = 0; i < s->n; i++) {
    const cl_tier *t = &s->tier[i];
    double ranks = (double)s->ranks[i], f = ranks / inner, sent = 0;
    if (f == 1) continue;
    factors++;
    switch (k) {
      case CL_SEND:  // the slowest of the group's hops; outer tiers come last
        c = (cl_cost){.seconds = bytes / t->bandwidth + t->latency, .how = "send"};
        *(t->node ? &c.intra : &c.inter) = bytes;
        inner = ranks;
        continue;
      case CL_ALL_TO_ALL:
        sent = (ranks - inner) / size * bytes;
        ring += sent / t->bandwidth + (ranks - inner) * t->latency;
        break;
      default: {
        double twice = k == CL_ALL_REDUCE ? 2 : 1, hops = 2 * ceil(log2(f));
        sent = twice * (f - 1) / f * bytes / inner;
        outer_ring = sent / t->bandwidth + twice * (f - 1) * t->latency;
        ring += outer_ring;
        outer_tree = 2 * bytes / inner / t->bandwidth + hops * t->latency;
        all_trees += 2 * bytes / t->bandwidth + hops * t->latency;
      }
    }
    *(t->node ? &c.intra : &c.inter) += sent;
    inner = ranks;
  }
  if (k == CL_SEND || factors == 0) return c;
  c.seconds = ring;
  c.how = k == CL_ALL_TO_ALL ? "pairwise" : rings[factors < 4 ? factors : 4];
  if (k != CL_ALL_REDUCE) return c;
  double mixed = ring - outer_ring + outer_tree;
  if (mixed < c.seconds) {
    c.seconds = mixed;
    c.how = trees[factors < 4 ? factors : 4];
  }
  if (all_trees < c.seconds) {
    c.seconds = all_trees;
    c.how = "tree";
  }
  return c;
}

// How many consecutive devices of a group surely lie in one level whose units are `unit` devices,
// the group's first being `first` after the start of one. (First devices of other groups of the
// axis are a multiple of stride * size further, or less than the stride.)
static int64_t together(int64_t unit, int64_t first, int64_t stride, int64_t size) {
  return unit % stride == 0 ? cl_gcd(cl_gcd(size, unit / stride), first / stride) : 1;
}

static cl_cost cost_on(const cl_tier *tier, int n, cl_collective k, cl_group g, double bytes) {
  steps s = {.n = n, .tier = tier};
  for (int i = 0; i < n - 1; i++) s.ranks[i] = together(tier[i].unit, g.first, g.stride, g.size);
  s.ranks[n - 1] = g.size;
  return cost_of(&s, k, bytes);
}

cl_cost cl_collective_cost(const cl_cluster *c, cl_collective k, int64_t stride, int64_t size,
                           double bytes) {
  IR_CHECK(stride > 0 && size > 0 && (size - 1) * stride < c->devices);
  return cost_on(c->tier, c->ntiers, k, (cl_group){0, stride, size}, bytes);
}

uint64_t cl_route_digest(const cl_cluster *c, int64_t stride, int64_t size) {
  uint64_t h = 0;
  int64_t inner = 1;
  for (int i = 0; i < c->ntiers; i++) {
    const cl_tier *t = &c->tier[i];
    int64_t ranks = i == c->ntiers - 1 ? size : together(t->unit, 0, stride, size);
    if (ranks == inner) continue;
    const double factor[] = {(double)ranks, t->bandwidth, t->latency, t->node};
    h = base_hash(factor, sizeof factor, h);
    inner = ranks;
  }
  return h;
}

cl_cost cl_group_cost(const cl_cluster *c, cl_collective k, cl_group g, double bytes) {
  int64_t last = g.first + (g.size - 1) * g.stride, base;
  IR_CHECK(g.first >= 0 && g.stride > 0 && g.size > 0 && last < c->devices);
  bool in_node;
  const cl_level *l = cl_holds(c, g.first, last, &base, &in_node);
  cl_tier tier[CL_TIERS];
  int n = cl_tiers(l, in_node, tier);
  g.first -= base;
  return cost_on(tier, n, k, g, bytes);
}

bool cl_spans_unlike(const cl_cluster *c, int64_t stride, int64_t size) {
  int64_t inner = 1;
  for (int i = 0; i < c->ntiers; i++) {
    int64_t ranks = i == c->ntiers - 1 ? size : together(c->tier[i].unit, 0, stride, size);
    if (ranks > inner && c->tier[i].unlike) return true;
    inner = ranks;
  }
  return false;
}
