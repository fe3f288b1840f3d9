// Packing by search: is there a packing of these buffers no higher than `target`?
//
// Time is cut into *sections*, one per maximal set of buffers alive together; a buffer covers a run
// of sections, and in each one the buffers form a stack. The state is a lower bound on every
// unplaced buffer's offset, its *head*; placed buffers are only visible as heads. A node of the
// search
//
//   1. raises heads until nothing changes, or finds a section that cannot hold its buffers
//      (`propagate`);
//   2. falls apart into runs of sections that no unplaced buffer joins, solved one by one
//   (`parts`);
//   3. is looked up among the subproblems that were refuted: unplaced buffers and their heads are
//      the whole subproblem, however it was reached;
//   4. chooses one section and asks which buffer is lowest there (`choose`, `solve`). The
//      candidates are those whose head is the least of the section. Either one of them lies at its
//      head, or all of them lie on some other buffer, which raises their heads (`lift`).
//
// Why a candidate may be placed at its head: in a pushed-down solution it lies there or on another
// buffer, and the latter is case `lift`. Why placing it may raise the heads of all its neighbours
// above it: `choose` takes only sections where no unplaced neighbour of a candidate is thin enough
// to fit below it. The section with the least head of all is always such a one.
//
// Sizes are divided by their greatest common divisor first, so heights go in steps of it.

#include <stdlib.h>
#include <string.h>

#include "passes/pack.h"
#include "runtime/base/clock.h"
#include "runtime/base/vec.h"

#define NEVER (INT64_MAX / 4)

// The inner loops run over arrays of 64-bit numbers, which AVX2 can compare. All of it is whole
// numbers, so both variants give the same result.
#if defined(__x86_64__) && defined(__linux__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif
// The arrays of `section_facts` do not overlap, and gcc cannot know. (clang would warn where it
// still sees no gain.)
#ifdef __clang__
#define APART
#else
#define APART _Pragma("GCC ivdep")
#endif

// A run of sections that nothing else joins, with its unplaced buffers.
typedef struct part {
  int *buffer, n;
  int first, end;  // sections
} part;

// What is known of each section at a node, one array per fact so that runs of sections are handled
// by vector instructions. All heads and tops (head + size) are those of unplaced buffers.
typedef struct section_facts {
  int64_t *load;              // sum of sizes
  int64_t *low, *low2;        // least head and second least
  int64_t *low_top;           // top of the buffer with the least head
  int64_t *top, *top2;        // least top and second least
  int64_t *first_top;         // low_top when that buffer must be first here, else 0
  int64_t *late, *late_head;  // see `sweep`
  int64_t *early, *early_load, *early_low, *early_top, *early_tail,
      *early_base;      // see `sweep_tails`
  int64_t *candidates;  // buffers whose head is `low`
  int64_t *open;        // not 0: something may fit below a candidate, not to be chosen
  double *weight;       // how often it refuted, fading
} section_facts;

typedef struct change {
  int buffer;
  int64_t head;
} change;

typedef struct digest {
  uint64_t a, b;
} digest;

typedef struct search {
  arena *scratch;
  int sections;
  const int *first, *end;  // of each buffer: the sections it covers
  const int64_t *size;
  int64_t *head, *offset;
  const double *rank;  // candidates are tried from the lowest
  int rule;            // how sections are chosen
  int64_t target;
  section_facts at;
  int *joins;  // `parts`: buffers that cross the border behind a section
  int *pool;   // a stack of buffer numbers: candidates and parts of the nodes on the way down
  int npool;
  part *part;  // a stack of parts, the same
  int nparts;
  int64_t *lifted, *tail;
  int *tailed;
  VEC(change) trail;
  digest *refuted;         // buckets of four
  uint64_t buckets, salt;  // salt tells the problems of one table apart
  uint64_t nodes, most_nodes;
  double deadline, heavy;
  bool stopped, out_of_time;
} search;

// ---------------------------------------------------------------------------------------------
// Heads
// ---------------------------------------------------------------------------------------------

static void raise(search *s, int x, int64_t head) {
  vec_push(s->scratch, &s->trail, (change){x, s->head[x]});
  s->head[x] = head;
}

static void take_back(search *s, int trail) {
  while (s->trail.n > trail) {
    change c = s->trail.at[--s->trail.n];
    s->head[c.buffer] = c.head;
  }
}

// Sorted by head, so that parts come out nearly sorted again.
static void sort_by_head(const search *s, part p) {
  for (int i = 1; i < p.n; i++) {
    int x = p.buffer[i], j = i;
    for (; j > 0 && s->head[p.buffer[j - 1]] > s->head[x]; j--) p.buffer[j] = p.buffer[j - 1];
    p.buffer[j] = x;
  }
}

// The sections that buffer `x` overfilled get weight; new weight counts more than old.
static void blame(search *s, int x) {
  for (int k = s->first[x]; k < s->end[x]; k++)
    if (s->head[x] + s->at.load[k] > s->target) s->at.weight[k] += s->heavy;
  s->heavy *= 1.0005;
  if (s->heavy < 1e50) return;
  for (int k = 0; k < s->sections; k++) s->at.weight[k] *= 1e-50;
  s->heavy *= 1e-50;
}

static void fill(int64_t *at, int first, int end, int64_t value) {
  for (int k = first; k < end; k++) at[k] = value;
}

// From the highest head down, adds each buffer to its sections. At every step a section holds the
// buffers that start no lower than this head, so head + sizes is a bound on the height; the set
// with the largest bound is the section's *late* one.
WIDE static int sweep(const search *s, part p) {
  const section_facts c = s->at;
  int64_t *restrict load = c.load, *restrict low = c.low, *restrict low2 = c.low2;
  int64_t *restrict low_top = c.low_top, *restrict top = c.top, *restrict top2 = c.top2;
  int64_t *restrict late = c.late, *restrict late_head = c.late_head;
  APART for (int k = p.first; k < p.end; k++) {
    load[k] = late[k] = late_head[k] = low_top[k] = 0;
    low[k] = low2[k] = top[k] = top2[k] = NEVER;
  }
  for (int i = p.n - 1; i >= 0; i--) {
    int x = p.buffer[i], first = s->first[x], end = s->end[x];
    int64_t size = s->size[x], head = s->head[x], its_top = head + size, most = 0;
    APART for (int k = first; k < end; k++) {
      // Loaded before anything is chosen: only then do compilers see that no branch is needed.
      int64_t sum = load[k] + size, need = head + sum, t = top[k], t2 = top2[k];
      int64_t late_was = late[k], head_was = late_head[k];
      load[k] = sum;
      most = sum > most ? sum : most;
      late[k] = need >= late_was ? need : late_was;
      late_head[k] = need >= late_was ? head : head_was;
      low2[k] = low[k];
      low[k] = head;
      low_top[k] = its_top;
      int64_t above = its_top > t ? its_top : t;
      top[k] = its_top < t ? its_top : t;
      top2[k] = above < t2 ? above : t2;
    }
    if (head + most > s->target) return x;
  }
  return -1;
}

// The other way round, for buffers that must have something above them: `tail` bytes at least. A
// section's *early* set is the one of those with large tails that leaves least room.
static bool sweep_tails(search *s, part p) {
  const section_facts c = s->at;
  int n = 0, *with = s->tailed;
  for (int i = 0; i < p.n; i++) {
    int x = p.buffer[i], j = n;
    if (!s->tail[x]) continue;
    for (; j > 0 && s->tail[with[j - 1]] < s->tail[x]; j--) with[j] = with[j - 1];
    with[j] = x;
    n++;
  }
  fill(c.early, p.first, p.end, 0);
  fill(c.early_load, p.first, p.end, 0);
  fill(c.early_top, p.first, p.end, 0);
  fill(c.early_tail, p.first, p.end, 0);
  fill(c.early_base, p.first, p.end, 0);
  fill(c.early_low, p.first, p.end, NEVER);
  for (int i = 0; i < n; i++) {
    int x = with[i];
    int64_t size = s->size[x], tail = s->tail[x], head = s->head[x];
    for (int k = s->first[x]; k < s->end[x]; k++) {
      c.early_load[k] += size;
      if (head < c.early_low[k]) c.early_low[k] = head;
      int64_t need = c.early_low[k] + c.early_load[k] + tail;
      if (need > s->target) return false;
      if (need < c.early[k]) continue;
      c.early[k] = need;
      c.early_top[k] = c.early_low[k] + c.early_load[k];
      c.early_tail[k] = tail;
      c.early_base[k] = c.early_low[k];
    }
  }
  return true;
}

// What must be above each buffer. False: some buffer has no room for it.
WIDE static bool find_tails(search *s, part p, bool *any) {
  const int64_t *restrict late = s->at.late, *restrict late_head = s->at.late_head;
  for (int i = 0; i < p.n; i++) {
    int x = p.buffer[i], first = s->first[x], end = s->end[x];
    int64_t size = s->size[x], head = s->head[x], tail = s->tail[x], room = s->target - size;
    for (int k = first; k < end; k++) {
      // Were it not below all of the late set, that set would start there and be too high.
      int64_t above = late[k] > room && head < late_head[k] ? late[k] - late_head[k] : 0;
      tail = above > tail ? above : tail;
    }
    if (head + size + tail > s->target) return false;
    s->tail[x] = tail;
    *any |= tail > 0;
  }
  return true;
}

// How far `x` must be raised, from what its sections know.
WIDE static int64_t raised(const search *s, int x, bool tails) {
  const section_facts c = s->at;
  const int64_t *restrict low = c.low, *restrict load = c.load, *restrict first_top = c.first_top;
  const int64_t *restrict top = c.top, *restrict top2 = c.top2;
  int first = s->first[x], end = s->end[x];
  int64_t size = s->size[x], old = s->head[x], head = old, its_top = old + size;
  int64_t room = s->target - old;
  for (int k = first; k < end; k++) {
    // The buffer that must be first here is the only one with the least head.
    int64_t a = low[k] == old ? 0 : first_top[k];
    // When it cannot be first here, it lies above one of the others.
    int64_t other = top[k] == its_top ? top2[k] : top[k];
    int64_t b = load[k] > room ? other : 0;
    a = a > b ? a : b;
    head = a > head ? a : head;
  }
  if (!tails) return head;
  for (int k = first; k < end; k++) {
    // Were it not above all of the early set, one of that set would be last, and it or one of them
    // first.
    int64_t down = c.early_base[k] > old ? c.early_base[k] - old : 0;
    if (c.early[k] - down + size > s->target && s->tail[x] < c.early_tail[k] &&
        c.early_top[k] > head)
      head = c.early_top[k];
  }
  return head;
}

// Raises heads by what one section says, until nothing changes. False: there is no solution.
static bool propagate(search *s, part p) {
  const section_facts c = s->at;
  for (int i = 0; i < p.n; i++) s->tail[p.buffer[i]] = 0;
  for (bool again = true; again;) {
    sort_by_head(s, p);
    int full = sweep(s, p);
    if (full >= 0) {
      blame(s, full);
      return false;
    }
    for (int k = p.first; k < p.end; k++) {
      // Were another one first, the section would start at low2 and be too high.
      bool must = c.low2[k] < NEVER && c.low2[k] + c.load[k] > s->target;
      c.first_top[k] = must ? c.low_top[k] : 0;
    }
    bool tails = false;
    if (!find_tails(s, p, &tails)) return false;
    if (tails && !sweep_tails(s, p)) return false;
    again = false;
    for (int i = 0; i < p.n; i++) {
      int x = p.buffer[i];
      int64_t head = raised(s, x, tails);
      if (head == s->head[x]) continue;
      if (head + s->size[x] > s->target) return false;
      raise(s, x, head);
      again = true;
    }
  }
  return true;
}

// ---------------------------------------------------------------------------------------------
// Refuted subproblems
// ---------------------------------------------------------------------------------------------

static uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// Sums, so the order of buffers does not matter. The target is part of it.
static digest digest_of(const search *s, part p) {
  digest d = {mix((uint64_t)s->target), mix(s->salt)};
  for (int i = 0; i < p.n; i++) {
    uint64_t x = (uint64_t)p.buffer[i] + 1, head = (uint64_t)s->head[p.buffer[i]];
    d.a += mix(mix(head + 0x9e3779b97f4a7c15u) + x * 0xd1342543de82ef95u);
    d.b += mix(mix(head + 0x632be59bd9b4e019u) ^ x * 0xaf251af3b0f025b5u);
  }
  return d;
}

static bool was_refuted(const search *s, digest d) {
  const digest *bucket = s->refuted + 4 * (d.a & (s->buckets - 1));
  for (int i = 0; i < 4; i++)
    if (bucket[i].a == d.a && bucket[i].b == d.b) return true;
  return false;
}

static void remember(search *s, digest d) {
  digest *bucket = s->refuted + 4 * (d.a & (s->buckets - 1));
  int place = (int)(d.b & 3);
  for (int i = 3; i >= 0; i--)
    if (!bucket[i].b) place = i;
  bucket[place] = d;
}

// ---------------------------------------------------------------------------------------------
// Branching
// ---------------------------------------------------------------------------------------------

// Rules to choose a section. None is best on all lists, so they take turns.
enum { FEW_TIGHT, FEW_LOW, TIGHT, LOW, FEW, BLAMED, MOST_BLAMED, RULES };

static double rate(const search *s, int k, double *tie) {
  double slack = (double)(s->target - s->at.low[k] - s->at.load[k]);
  double few = (double)s->at.candidates[k], options = 2 * few - (slack > 0 ? 0 : 1);
  double weight = s->at.weight[k] / s->heavy;
  *tie = slack;
  switch (s->rule) {
    case FEW_LOW: *tie = (double)s->at.low[k]; return options;
    case TIGHT: *tie = few; return slack;
    case LOW: *tie = few; return (double)s->at.low[k];
    case FEW: return few;
    case BLAMED: return options / (1 + weight);
    case MOST_BLAMED: return options / (1e-3 + weight);
    default: return options;
  }
}

WIDE static void find_candidates(const search *s, part p) {
  const int64_t *restrict low = s->at.low, *restrict top = s->at.top;
  int64_t *restrict candidates = s->at.candidates, *restrict open = s->at.open;
  for (int k = p.first; k < p.end; k++) candidates[k] = open[k] = 0;
  for (int i = 0; i < p.n; i++) {
    int x = p.buffer[i], first = s->first[x], end = s->end[x];
    int64_t head = s->head[x], least = NEVER, lows = 0;
    for (int k = first; k < end; k++) {
      least = top[k] < least ? top[k] : least;
      lows += low[k] == head;
    }
    if (!lows) continue;
    // Its own top is above its head, so `least <= head` speaks of a neighbour that fits below.
    int64_t fits = least <= head;
    APART for (int k = first; k < end; k++) {
      int64_t here = low[k] == head;
      candidates[k] += here;
      open[k] |= here & fits;
    }
  }
}

// The section to ask "who is lowest here?".
static int choose(const search *s, part p) {
  find_candidates(s, p);
  int best = -1;
  double least = 0, least_tie = 0;
  for (int k = p.first; k < p.end; k++) {
    if (!s->at.candidates[k] || s->at.open[k]) continue;
    double tie, rating = rate(s, k, &tie);
    if (best >= 0 && (rating > least || (rating == least && tie >= least_tie))) continue;
    best = k;
    least = rating;
    least_tie = tie;
  }
  return best;
}

static bool meet(const search *s, int x, int y) {
  return s->first[x] < s->end[y] && s->first[y] < s->end[x];
}

// None of the candidates at section `k` lies at its head `low`: each lies on a neighbour, either
// one that is no candidate, or a candidate that does. False: then one would be too high.
static bool lift(search *s, part p, int k, const int *candidate, int n, int64_t low) {
  int64_t *on = s->lifted;
  for (int j = 0; j < n; j++) {
    int x = candidate[j];
    on[j] = NEVER;
    for (int i = 0; i < p.n; i++) {
      int y = p.buffer[i];
      if (!meet(s, x, y)) continue;
      if (s->first[y] <= k && k < s->end[y] && s->head[y] == low) continue;
      int64_t top = s->head[y] + s->size[y];
      if (top < on[j]) on[j] = top;
    }
  }
  // All candidates meet at `k`: the least of them carries the others.
  int least = 0;
  int64_t carried = NEVER, carried2 = NEVER;
  for (int j = 0; j < n; j++) {
    int64_t top = on[j] + s->size[candidate[j]];
    if (top < carried) {
      carried2 = carried;
      carried = top;
      least = j;
    } else if (top < carried2) {
      carried2 = top;
    }
  }
  for (int j = 0; j < n; j++) {
    int64_t other = j == least ? carried2 : carried;
    int64_t head = on[j] < other ? on[j] : other;
    if (head + s->size[candidate[j]] > s->target) return false;
    raise(s, candidate[j], head);
  }
  return true;
}

static bool parts(search *s, part p);

static bool count_node(search *s) {
  if (++s->nodes > s->most_nodes) s->stopped = true;
  if ((s->nodes & 255) == 0 && clock_s() > s->deadline) s->stopped = s->out_of_time = true;
  return !s->stopped;
}

// Places the buffers of a part, which are joined; offsets are set when it returns true. False: it
// cannot be done, or s->stopped. Heads are then as they were.
static bool solve(search *s, part p) {
  if (p.n == 1) {
    s->offset[p.buffer[0]] = s->head[p.buffer[0]];
    return s->head[p.buffer[0]] + s->size[p.buffer[0]] <= s->target;
  }
  int trail = s->trail.n;
  digest first = {0};
  bool looked = false;
  while (count_node(s) && propagate(s, p)) {
    digest d = digest_of(s, p);
    if (was_refuted(s, d)) break;
    if (!looked) first = d;
    looked = true;
    int k = choose(s, p), pool = s->npool, *candidate = s->pool + pool, n = 0;
    int64_t low = s->at.low[k];
    for (int i = 0; i < p.n; i++) {
      int x = p.buffer[i], j = n;
      if (s->first[x] > k || s->end[x] <= k || s->head[x] != low) continue;
      for (; j > 0 && s->rank[candidate[j - 1]] > s->rank[x]; j--) candidate[j] = candidate[j - 1];
      candidate[j] = x;
      n++;
    }
    s->npool += n;
    for (int j = 0; j < n; j++) {
      int x = candidate[j], before = s->trail.n, kept = s->npool;
      part rest = {s->pool + s->npool, 0, p.first, p.end};
      for (int i = 0; i < p.n; i++) {
        int y = p.buffer[i];
        if (y == x) continue;
        rest.buffer[rest.n++] = y;
        if (s->head[y] < low + s->size[x] && meet(s, x, y)) raise(s, y, low + s->size[x]);
      }
      s->npool += rest.n;
      bool good = parts(s, rest);
      s->npool = kept;
      if (good) {
        s->offset[x] = low;
        s->npool = pool;
        return true;
      }
      take_back(s, before);
      if (s->stopped) break;
    }
    bool go_on = !s->stopped && lift(s, p, k, candidate, n, low);
    s->npool = pool;
    if (!go_on) break;
  }
  take_back(s, trail);
  if (looked && !s->stopped) remember(s, first);
  return false;
}

// Cuts where no buffer crosses and solves what is left, small parts first: they fail sooner.
static bool parts(search *s, part p) {
  for (int k = p.first; k < p.end; k++) s->joins[k] = 0;
  for (int i = 0; i < p.n; i++) {
    s->joins[s->first[p.buffer[i]]]++;
    s->joins[s->end[p.buffer[i]] - 1]--;
  }
  int pool = s->npool, base = s->nparts, crossing = 0, first = p.first;
  for (int k = p.first; k < p.end; k++) {
    crossing += s->joins[k];
    if (crossing) continue;
    part q = {s->pool + s->npool, 0, first, k + 1};
    first = k + 1;
    for (int i = 0; i < p.n; i++)
      if (s->first[p.buffer[i]] >= q.first && s->end[p.buffer[i]] <= q.end)
        q.buffer[q.n++] = p.buffer[i];
    if (!q.n) continue;
    s->npool += q.n;
    int j = s->nparts++;
    for (; j > base && s->part[j - 1].n > q.n; j--) s->part[j] = s->part[j - 1];
    s->part[j] = q;
  }
  bool good = true;
  for (int j = base; good && j < s->nparts; j++) good = solve(s, s->part[j]);
  s->npool = pool;
  s->nparts = base;
  return good;
}

// ---------------------------------------------------------------------------------------------
// Restarts
// ---------------------------------------------------------------------------------------------

typedef enum answer { FOUND, REFUTED, STOPPED } answer;

// What is worth placing first: big, long or both.
enum { ORDERS = 6 };

static double weigh(int order, double life, double sections, double size) {
  switch (order) {
    case 0: return life * size;
    case 1: return size;
    case 2: return life;
    case 3: return sections * size;
    case 4: return sections;
    default: return sections * size * size;
  }
}

// One list that is joined in time, and what is known about its height.
typedef struct problem {
  search s;
  pack_buffer *b;  // its buffers, with the best offsets so far
  int n;
  int64_t unit;           // greatest common divisor of the sizes
  int64_t height, floor;  // in units
  int *first, *end, *all;
  int64_t *size, *born, *dead, *time;
  double *rank;
  uint64_t spent;  // nodes
} problem;

static int by_number(const void *pa, const void *pb) {
  int64_t a = *(const int64_t *)pa, b = *(const int64_t *)pb;
  return a < b ? -1 : a > b;
}

// The times at which the set of buffers alive is maximal: a birth that a death follows.
static int find_sections(problem *q) {
  int64_t *born = q->born, *dead = q->dead;
  for (int i = 0; i < q->n; i++) {
    born[i] = q->b[i].lower;
    dead[i] = q->b[i].upper;
  }
  qsort(born, (size_t)q->n, sizeof *born, by_number);
  qsort(dead, (size_t)q->n, sizeof *dead, by_number);
  int sections = 0;
  for (int i = 0, d = 0; i < q->n; i++) {
    while (dead[d] <= born[i]) d++;
    if (i + 1 == q->n || dead[d] <= born[i + 1]) q->time[sections++] = born[i];
  }
  return sections;
}

static int first_not_before(const int64_t *time, int n, int64_t t) {
  int lo = 0, hi = n;
  while (lo < hi) {
    int mid = (lo + hi) / 2;
    if (time[mid] < t)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

// Memory for problems of up to `n` buffers.
static void reserve(problem *q, arena *scratch, int n) {
  search *s = &q->s;
  s->scratch = scratch;
  q->first = arena_new(scratch, int, n);
  q->end = arena_new(scratch, int, n);
  q->size = arena_new(scratch, int64_t, n);
  q->rank = arena_new(scratch, double, n);
  q->all = arena_new(scratch, int, n);
  q->born = arena_new(scratch, int64_t, n);
  q->dead = arena_new(scratch, int64_t, n);
  q->time = arena_new(scratch, int64_t, n);
  s->first = q->first;
  s->end = q->end;
  s->size = q->size;
  s->rank = q->rank;
  s->head = arena_new(scratch, int64_t, n);
  s->offset = arena_new(scratch, int64_t, n);
  s->lifted = arena_new(scratch, int64_t, n);
  s->tail = arena_new(scratch, int64_t, n);
  s->tailed = arena_new(scratch, int, n);
  int64_t **facts[] = {&s->at.load,      &s->at.low,        &s->at.low2,       &s->at.low_top,
                       &s->at.top,       &s->at.top2,       &s->at.first_top,  &s->at.late,
                       &s->at.late_head, &s->at.early,      &s->at.early_load, &s->at.early_low,
                       &s->at.early_top, &s->at.early_tail, &s->at.early_base, &s->at.candidates,
                       &s->at.open};
  for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
    *facts[i] = arena_new(scratch, int64_t, n);
  s->at.weight = arena_new(scratch, double, n);
  s->joins = arena_new(scratch, int, n);
  // A node keeps its candidates, the rest and the rest's parts; a node below has one buffer less.
  s->pool = arena_new(scratch, int, 3 * (size_t)n * (size_t)(n + 1) / 2);
  s->part = arena_new(scratch, part, 2 * (size_t)n);
  s->buckets = n < 16 ? 1 << 8 : n < 64 ? 1 << 13 : 1 << 18;
  s->refuted = arena_new(scratch, digest, 4 * s->buckets);
}

// Sections, and sizes in units.
static void prepare(problem *q) {
  search *s = &q->s;
  s->sections = find_sections(q);
  for (int i = 0; i < q->n; i++) {
    q->first[i] = first_not_before(q->time, s->sections, q->b[i].lower);
    q->end[i] = first_not_before(q->time, s->sections, q->b[i].upper);
    q->size[i] = q->b[i].size / q->unit;
  }
  for (int k = 0; k < s->sections; k++) s->at.weight[k] = 0;
  s->heavy = 1;
}

// One try to be no higher than `target`, by one rule and one order, noisy when `seed` is not 0.
static answer attempt(problem *q, int64_t target, int rule, int order, uint64_t seed,
                      uint64_t nodes) {
  search *s = &q->s;
  for (int i = 0; i < q->n; i++) {
    double noise = (double)(mix(seed * 0x9e3779b97f4a7c15u + (uint64_t)i) >> 11) * 0x1p-53;
    q->rank[i] = -weigh(order, (double)(q->b[i].upper - q->b[i].lower),
                        (double)(s->end[i] - s->first[i]), (double)s->size[i]);
    if (seed) q->rank[i] *= 1 + (seed & 1 ? 1 : 0.3) * noise;
    s->head[i] = 0;
    q->all[i] = i;
  }
  s->rule = rule;
  s->target = target;
  s->nodes = 0;
  s->most_nodes = nodes;
  s->stopped = false;
  s->trail.n = s->npool = s->nparts = 0;
  bool good = parts(s, (part){q->all, q->n, 0, s->sections});
  q->spent += s->nodes;
  if (!good) {
    if (s->stopped) return STOPPED;
    if (target + 1 > q->floor) q->floor = target + 1;
    return REFUTED;
  }
  q->height = 0;
  for (int i = 0; i < q->n; i++) {
    q->b[i].offset = s->offset[i] * q->unit;
    if (s->offset[i] + s->size[i] > q->height) q->height = s->offset[i] + s->size[i];
  }
  return FOUND;
}

// Lowers the height and raises the floor until they meet, or the height is down to `goal`, or time
// is up. With a capacity (-1: none), fitting comes first, and once that is decided little is spent
// on heights below.
//
// A round tries every rule with every order at one limit on nodes. Its targets are the floor, where
// the bounds are strongest, a height in the middle, and one step below the best. Each round ends
// with a search as long as all before it, so a refutation costs a few times what it takes.
static void search_heights(problem *q, int64_t capacity, int64_t goal) {
  uint64_t enough = UINT64_MAX, limit = 4 * (uint64_t)q->n;
  for (int round = 0;; round++, limit *= 2) {
    for (int run = 0; run <= RULES * ORDERS; run++) {
      bool deep = run == RULES * ORDERS;
      int rule = deep ? BLAMED : run / ORDERS, order = (deep ? round : run) % ORDERS;
      int64_t tried = -1;
      for (int aim = 0; aim < 3; aim++) {
        bool decided = capacity < 0 || q->height <= capacity || q->floor > capacity;
        if (decided && capacity >= 0 && enough == UINT64_MAX) enough = 4 * q->spent + 20000;
        if (q->height <= q->floor || q->height <= goal) return;
        if (q->s.out_of_time || q->spent > enough) return;
        // Not fitting yet, a lower height is only the better failure: now and then.
        if (!decided && aim && (aim > 1 || run % ORDERS)) continue;
        int64_t low = !decided ? capacity : q->floor > goal ? q->floor : goal;
        int64_t high = q->height - 1, middle = low + (high - low) / 2;
        int64_t target = aim == 0 ? low : aim == 1 ? middle : high;
        if (target == tried) continue;
        tried = target;
        uint64_t seed = round ? (uint64_t)(round * 1000 + run * 3 + aim) : 0;
        attempt(q, target, rule, order, seed, deep ? q->spent / 4 + 1 : limit);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// All of it
// ---------------------------------------------------------------------------------------------

typedef struct ranked {
  double rank;
  int buffer;
} ranked;

static int by_rank(const void *pa, const void *pb) {
  const ranked *a = pa, *b = pb;
  if (a->rank != b->rank) return a->rank < b->rank ? -1 : 1;
  return a->buffer - b->buffer;
}

// The simple rules; the best one's offsets stay.
static int64_t start(arena *scratch, pack_buffer *b, int n, int64_t load, double deadline) {
  int64_t best = pack_by_time(scratch, b, n);
  if (best == load) return best;
  pack_buffer *other = arena_new(scratch, pack_buffer, n);
  ranked *r = arena_new(scratch, ranked, n);
  int *sorted = arena_new(scratch, int, n);
  memcpy(other, b, sizeof *b * (size_t)n);
  for (int order = 0; order < 3 && best > load; order++) {  // those that need no sections
    for (int i = 0; i < n; i++)
      r[i] = (ranked){-weigh(order, (double)(b[i].upper - b[i].lower), 0, (double)b[i].size), i};
    qsort(r, (size_t)n, sizeof *r, by_rank);
    for (int i = 0; i < n; i++) sorted[i] = r[i].buffer;
    int64_t height = pack_by_order(scratch, other, n, sorted, deadline);
    if (height < 0) break;
    if (height >= best) continue;
    best = height;
    memcpy(b, other, sizeof *b * (size_t)n);
  }
  return best;
}

// Buffers that time joins, from b[from] on, when sorted by birth.
typedef struct stretch {
  int from, n;
  int64_t load, height;
} stretch;

// The longest comes last: it has all the time that the others left.
static int by_number_of_buffers(const void *pa, const void *pb) {
  const stretch *a = pa, *b = pb;
  return a->n != b->n ? a->n - b->n : a->from - b->from;
}

typedef struct birth {
  int64_t time;
  int buffer;
} birth;

static int by_birth(const void *pa, const void *pb) {
  const birth *a = pa, *b = pb;
  if (a->time != b->time) return a->time < b->time ? -1 : 1;
  return a->buffer - b->buffer;
}

static int64_t common_divisor(int64_t a, int64_t b) {
  while (b) {
    int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

static void search_stretch(problem *q, const stretch *t, const pack_options *o, int64_t goal) {
  q->n = t->n;
  q->unit = 0;
  for (int i = 0; i < t->n; i++) q->unit = common_divisor(q->b[i].size, q->unit);
  q->height = t->height / q->unit;
  q->floor = t->load / q->unit;
  q->spent = 0;
  q->s.salt++;
  prepare(q);
  search_heights(q, o->capacity ? o->capacity / q->unit : -1, (goal + q->unit - 1) / q->unit);
}

void pack_solve(arena *scratch, pack_buffer *b, int n, const pack_options *o, pack_result *out) {
  double began = clock_s(), end = began + o->seconds;
  *out = (pack_result){0};
  // A copy without empty buffers, sorted by birth, and cut where nobody is alive.
  birth *born = arena_new(scratch, birth, n);
  int m = 0;
  for (int i = 0; i < n; i++) {
    b[i].offset = 0;
    if (b[i].size) born[m++] = (birth){b[i].lower, i};
  }
  qsort(born, (size_t)m, sizeof *born, by_birth);
  pack_buffer *sorted = arena_new(scratch, pack_buffer, m);
  stretch *t = arena_new(scratch, stretch, m);
  int stretches = 0, longest = 0;
  int64_t last = 0;
  for (int i = 0; i < m; i++) {
    sorted[i] = b[born[i].buffer];
    if (i == 0 || sorted[i].lower >= last) t[stretches++].from = i;
    t[stretches - 1].n++;
    if (sorted[i].upper > last) last = sorted[i].upper;
  }
  for (int i = 0; i < stretches; i++) {
    pack_buffer *part_of = sorted + t[i].from;
    t[i].load = pack_load(scratch, part_of, t[i].n);
    t[i].height = start(scratch, part_of, t[i].n, t[i].load, end);
    if (t[i].load > out->load) out->load = t[i].load;
    if (t[i].n > longest && t[i].n <= PACK_SEARCH_MOST) longest = t[i].n;
  }
  qsort(t, (size_t)stretches, sizeof *t, by_number_of_buffers);
  out->floor = out->load;
  problem q = {0};
  for (int i = 0; i < stretches; i++) {
    // Below what another stretch needs, a height is worth nothing.
    int64_t goal = out->floor > out->height ? out->floor : out->height;
    int left = 0;
    for (int j = i; j < stretches; j++) left += t[j].height > goal;
    if (t[i].height > goal && t[i].n <= PACK_SEARCH_MOST && o->seconds > 0) {
      if (!q.s.head) reserve(&q, scratch, longest);
      double now = clock_s();
      q.b = sorted + t[i].from;
      q.s.out_of_time = false;
      q.s.deadline = now + (end - now) / left;
      search_stretch(&q, &t[i], o, goal);
      t[i].height = q.height * q.unit;
      if (q.floor * q.unit > out->floor) out->floor = q.floor * q.unit;
      out->gave_up |= q.s.out_of_time;
      out->nodes += q.spent;
    }
    if (t[i].height > out->height) out->height = t[i].height;
  }
  for (int i = 0; i < m; i++) b[born[i].buffer].offset = sorted[i].offset;
  out->optimal = out->height == out->floor;
  out->seconds = clock_s() - began;
}
