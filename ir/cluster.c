// Clusters as trees of levels; what is worked out about them once.
//
// Planners ask about axes thousands of times, so the tree is summed up into *tiers*: all levels of
// one height, with the slowest of their links and with a *unit*, the greatest number of devices
// such that devices from a multiple of it to the next always lie in one level of that height. In a
// tree of equal nodes it is the node's size; where nodes differ it is a common divisor.
#include "ir/cluster.h"

#include <math.h>
#include <string.h>

// ---- curves and devices -------------------------------------------------------------------------

double cl_share(const cl_curve *c, double x) {
  if (c->n == 0) return 1;
  if (x <= c->x[0]) return c->share[0];
  for (int i = 1; i < c->n; i++) {
    if (x > c->x[i]) continue;
    double at = log(x / c->x[i - 1]) / log(c->x[i] / c->x[i - 1]);
    return c->share[i - 1] + at * (c->share[i] - c->share[i - 1]);
  }
  return c->share[c->n - 1];
}

double cl_matmul_peak(const cl_device *d, ir_dtype t) {
  static const ir_dtype narrow[] = {DT_f16, DT_bf16, DT_f32};
  if (d->matmul[t] > 0) return d->matmul[t];
  if (ir_dtype_bytes(t) == 1)
    for (size_t i = 0; i < sizeof narrow / sizeof *narrow; i++)
      if (d->matmul[narrow[i]] > 0) return d->matmul[narrow[i]];
  if (ir_dtype_bytes(t) <= 4 && d->matmul[DT_f32] > 0) return d->matmul[DT_f32];
  if (d->matmul[DT_f64] > 0) return d->matmul[DT_f64];
  return ir_dtype_bytes(t) <= 4 ? d->vector[DT_f32] : 0;
}

// ---- levels -------------------------------------------------------------------------------------

static int64_t size_of(const cl_member *m) { return m->level ? m->level->devices : 1; }

static int64_t members_of(const cl_level *l) {
  int64_t n = 0;
  for (int i = 0; i < l->nmembers; i++) n += l->member[i].count;
  return n;
}

static double least(double x, double y) { return x > 0 && (y <= 0 || x < y) ? x : y; }

const cl_level *cl_level_make(arena *a, const cl_level *written) {
  cl_level *l = arena_new(a, cl_level, 1);
  *l = *written;
  int64_t largest = 1;
  double below = 0, card = 0;  // of the networks of the members; latency of the slowest card
  l->devices = 0;
  l->height = 1;
  l->share = 0;
  for (int i = 0; i < l->nmembers; i++) {
    const cl_member *m = &l->member[i];
    IR_CHECK(m->count > 0 && !m->level != !m->device);
    l->devices += m->count * size_of(m);
    if (size_of(m) > largest) largest = size_of(m);
    if (!m->level) {
      l->node = true;
      continue;
    }
    if (m->level->height >= l->height) l->height = m->level->height + 1;
    l->share = least(m->level->share, l->share);
    card = fmax(card, m->level->nic_latency);
    if (!m->level->node && members_of(m->level) > 1)
      below = least(m->level->link.bandwidth * m->level->link.taper, below);
  }
  if (l->node) {
    l->share = l->nic_bandwidth / (double)l->devices;
  } else {
    // The cards of what lies in it, for the level above.
    l->nic_latency = card;
    l->nic_bandwidth = 0;
  }
  if (l->link.taper <= 0) l->link.taper = 1;
  double own = l->link.bandwidth / (double)largest;
  l->link.bandwidth = l->node ? own : least(least(own, l->share), below);
  if (!l->node) l->link.latency += card;
  return l;
}

// ---- tiers --------------------------------------------------------------------------------------

int64_t cl_gcd(int64_t x, int64_t y) {
  while (y) {
    int64_t r = x % y;
    x = y;
    y = r;
  }
  return x;
}

// Divides every place where a level of this height or lower ends, seen from the start of `l`.
static int64_t unit_of(const cl_level *l, int height) {
  if (l->height <= height) return l->devices;
  int64_t unit = 0, base = 0;
  for (int i = 0; i < l->nmembers; i++) {
    const cl_member *m = &l->member[i];
    unit = cl_gcd(cl_gcd(unit, base), size_of(m));
    if (m->level) unit = cl_gcd(unit, unit_of(m->level, height));
    base += m->count * size_of(m);
  }
  return unit;
}

// Whether the networks by which two members are reached are the same.
static bool same_network(const cl_level *x, const cl_level *y) {
  if (!x || !y) return x == y;
  if (x->share != y->share || x->nic_latency != y->nic_latency || x->node != y->node) return false;
  if (x->node) return true;
  return members_of(x) == 1 || members_of(y) == 1 ||
         (x->link.kind == y->link.kind && x->link.bandwidth == y->link.bandwidth &&
          x->link.latency == y->link.latency && x->link.taper == y->link.taper);
}

static bool members_unlike(const cl_level *l) {
  for (int i = 1; i < l->nmembers; i++)
    if (!same_network(l->member[0].level, l->member[i].level)) return true;
  return false;
}

static void slower(cl_tier *t, const cl_level *l) {
  t->bandwidth = fmin(t->bandwidth, l->link.bandwidth * l->link.taper);
  t->latency = fmax(t->latency, l->link.latency);
  t->unlike |= members_unlike(l);
}

static void gather_tiers(const cl_level *l, bool in_node, cl_tier *tier) {
  in_node |= l->node;
  tier[l->height - 1].node &= in_node;
  if (members_of(l) > 1) slower(&tier[l->height - 1], l);
  for (int i = 0; i < l->nmembers; i++)
    if (l->member[i].level) gather_tiers(l->member[i].level, in_node, tier);
}

int cl_tiers(const cl_level *l, bool in_node, cl_tier *tier) {
  for (int h = 0; h < l->height; h++)
    tier[h] = (cl_tier){.unit = unit_of(l, h + 1), .bandwidth = INFINITY, .node = true};
  gather_tiers(l, in_node, tier);
  return l->height;
}

// ---- digest -------------------------------------------------------------------------------------

static uint64_t mix(uint64_t h, double x) {
  x += 0.0;  // one zero
  return base_hash(&x, sizeof x, h);
}

static uint64_t mix_text(uint64_t h, const char *s) {
  return base_hash(s ? s : "", s ? strlen(s) + 1 : 1, h);
}

static uint64_t mix_curve(uint64_t h, const cl_curve *c) {
  h = mix(h, c->n);
  for (int i = 0; i < c->n; i++) h = mix(mix(h, c->x[i]), c->share[i]);
  return h;
}

static uint64_t mix_device(uint64_t h, const cl_device *d) {
  h = mix_text(mix_text(h, d->name), d->arch);
  const double numbers[] = {
      (double)d->memory, (double)d->reserve, d->bandwidth, d->matmul_tf32, d->launch,
      d->units,          (double)d->cache,   d->threads,   d->power,       d->price};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) h = mix(h, numbers[i]);
  for (int t = 0; t < DT_COUNT; t++) h = mix(mix(h, d->matmul[t]), d->vector[t]);
  h = mix_curve(mix_curve(h, &d->matmul_share), &d->attention_share);
  return mix_curve(mix_curve(h, &d->vector_share), &d->memory_share);
}

static uint64_t mix_store(uint64_t h, const cl_store *s) {
  return mix(mix(mix(h, (double)s->size), s->bandwidth), s->latency);
}

static uint64_t mix_level(uint64_t h, const cl_level *l) {
  h = mix(mix_text(h, l->name), l->node);
  h = mix(mix(mix(mix(h, l->link.kind), l->link.bandwidth), l->link.latency), l->link.taper);
  h = mix(mix(mix(h, l->nic_bandwidth), l->nic_latency), l->price);
  h = mix_store(mix_store(h, &l->host), &l->disk);
  for (int i = 0; i < l->nmembers; i++) {
    const cl_member *m = &l->member[i];
    h = mix(h, (double)m->count);
    h = m->level ? mix_level(h, m->level) : mix_device(h, m->device);
  }
  return h;
}

// ---- clusters -----------------------------------------------------------------------------------

uint64_t cl_device_digest(const cl_device *d) { return mix_device(0, d); }

typedef VEC(const cl_device *) device_list;

// By what they are: a part of a cluster has copies of devices.
static void gather_kinds(arena *a, const cl_level *l, map *seen, device_list *out) {
  for (int i = 0; i < l->nmembers; i++) {
    const cl_member *m = &l->member[i];
    if (m->level) {
      gather_kinds(a, m->level, seen, out);
      continue;
    }
    const char *name = arena_printf(a, "%llx", (unsigned long long)cl_device_digest(m->device));
    if (map_get(seen, name)) continue;
    map_set(seen, name, seen);
    vec_push(a, out, m->device);
  }
}

int cl_device_kinds(arena *a, const cl_cluster *c, const cl_device *const **out) {
  map seen = {.arena = a};
  device_list list = {0};
  gather_kinds(a, c->top, &seen, &list);
  *out = list.at;
  return list.n;
}

// Whether two members are the same in all but their names.
static bool same_member(const cl_member *x, const cl_member *y);

static bool same_level(const cl_level *x, const cl_level *y) {
  if (x == y) return true;
  bool same = x->node == y->node && x->nmembers == y->nmembers && x->devices == y->devices &&
              x->nic_bandwidth == y->nic_bandwidth && x->nic_latency == y->nic_latency &&
              x->link.kind == y->link.kind && x->link.bandwidth == y->link.bandwidth &&
              x->link.latency == y->link.latency && x->link.taper == y->link.taper &&
              mix_store(0, &x->host) == mix_store(0, &y->host) &&
              mix_store(0, &x->disk) == mix_store(0, &y->disk);
  for (int i = 0; same && i < x->nmembers; i++)
    same = x->member[i].count == y->member[i].count && same_member(&x->member[i], &y->member[i]);
  return same;
}

static bool same_member(const cl_member *x, const cl_member *y) {
  if (!x->level || !y->level)
    return x->level == y->level && cl_device_digest(x->device) == cl_device_digest(y->device);
  return same_level(x->level, y->level);
}

static bool all_alike(const cl_level *l) {
  for (int i = 0; i < l->nmembers; i++) {
    if (!same_member(&l->member[0], &l->member[i])) return false;
    if (l->member[i].level && !all_alike(l->member[i].level)) return false;
  }
  return true;
}

const cl_cluster *cl_cluster_make(arena *a, const char *name, const cl_level *top) {
  IR_CHECK(top->height <= CL_TIERS);
  cl_cluster *c = arena_new(a, cl_cluster, 1);
  *c = (cl_cluster){.name = name, .top = top, .devices = top->devices, .ntiers = top->height};
  c->digest = mix_level(mix_text(0, name), top);
  const cl_device *const *kind;
  c->kinds = cl_device_kinds(a, c, &kind);
  c->alike = c->kinds == 1 && all_alike(top);
  cl_tiers(top, false, c->tier);
  return c;
}

typedef struct census {
  VEC(cl_named) named;
  int64_t nodes;
} census;

// Counts what lies in a level, `times` over.
static void count_level(arena *a, const cl_level *l, int64_t times, bool in_node, census *out) {
  if (l->node && !in_node) out->nodes += times;
  for (int i = 0; i < l->nmembers; i++) {
    const cl_member *m = &l->member[i];
    if (m->level) {
      count_level(a, m->level, times * m->count, in_node || l->node, out);
      continue;
    }
    int k = 0;
    while (k < out->named.n && !str_eq(out->named.at[k].device->name, m->device->name)) k++;
    if (k == out->named.n) vec_push(a, &out->named, (cl_named){.device = m->device});
    out->named.at[k].count += times * m->count;
  }
}

int cl_census(arena *a, const cl_cluster *c, const cl_named **out, int64_t *nodes) {
  census all = {0};
  count_level(a, c->top, 1, false, &all);
  *out = all.named.at;
  *nodes = all.nodes;
  return all.named.n;
}

// The member of `l` that holds device *number, which becomes its number in it; *base the number of
// the member's first device.
static const cl_member *descend(const cl_level *l, int64_t *number, int64_t *base) {
  int64_t first = 0;
  for (int i = 0; i < l->nmembers; i++) {
    const cl_member *m = &l->member[i];
    int64_t all = m->count * size_of(m);
    if (*number < first + all) {
      int64_t inside = (*number - first) % size_of(m);
      *base = *number - inside;
      *number = inside;
      return m;
    }
    first += all;
  }
  IR_BUG("a level of %lld devices has no device %lld", (long long)l->devices, (long long)*number);
}

const cl_device *cl_device_at(const cl_cluster *c, int64_t number) {
  int64_t base;
  const cl_member *m = descend(c->top, &number, &base);
  while (m->level) m = descend(m->level, &number, &base);
  return m->device;
}

const cl_level *cl_node_of(const cl_cluster *c, int64_t number, int64_t *first, int64_t *count) {
  const cl_level *l = c->top;
  int64_t start = 0, base;
  // Every device lies in a node: cl_level_make calls the level above devices one.
  while (!l->node) {
    l = descend(l, &number, &base)->level;
    start += base;
  }
  *first = start;
  *count = l->devices;
  return l;
}

const cl_level *cl_holds(const cl_cluster *c, int64_t x, int64_t y, int64_t *first, bool *in_node) {
  const cl_level *l = c->top;
  *first = 0;
  *in_node = l->node;
  for (;;) {
    int64_t first_of_x, first_of_y;
    const cl_member *m = descend(l, &x, &first_of_x);
    descend(l, &y, &first_of_y);
    if (first_of_x != first_of_y || !m->level) return l;
    l = m->level;
    *first += first_of_x;
    *in_node |= l->node;
  }
}

const cl_level *cl_between(const cl_cluster *c, int64_t a, int64_t b) {
  int64_t first;
  bool in_node;
  return cl_holds(c, a, b, &first, &in_node);
}

cl_cost cl_send_cost(const cl_cluster *c, int64_t from, int64_t to, double bytes) {
  if (from == to) return (cl_cost){.how = "none"};
  int64_t first;
  bool in_node;
  const cl_level *l = cl_holds(c, from, to, &first, &in_node);
  double seconds = bytes / (l->link.bandwidth * l->link.taper) + l->link.latency;
  return (cl_cost){seconds, in_node ? bytes : 0, in_node ? 0 : bytes, "send"};
}

// ---- parts --------------------------------------------------------------------------------------

// The first n devices of a level; a node that is cut keeps its devices' share of the cards.
static const cl_level *first_of(arena *a, const cl_level *l, int64_t n) {
  if (n == l->devices) return l;
  cl_level *part = arena_new(a, cl_level, 1);
  cl_member *m = arena_new(a, cl_member, l->nmembers);
  *part = *l;
  part->member = m;
  part->nmembers = 0;
  if (l->node) part->nic_bandwidth = l->share * (double)n;
  part->devices = n;
  for (int i = 0; n > 0; i++) {
    const cl_member *from = &l->member[i];
    int64_t whole = n / size_of(from) < from->count ? n / size_of(from) : from->count;
    if (whole > 0) {
      m[part->nmembers] = *from;
      m[part->nmembers++].count = whole;
      n -= whole * size_of(from);
    }
    if (n > 0 && whole < from->count) {
      m[part->nmembers++] = (cl_member){1, first_of(a, from->level, n), NULL};
      n = 0;
    }
  }
  return part;
}

// Members that are gone may have been the tallest.
static const cl_level *measured(arena *a, const cl_level *l) {
  cl_level *fresh = arena_new(a, cl_level, 1);
  *fresh = *l;
  fresh->height = 1;
  cl_member *m = arena_new(a, cl_member, l->nmembers);
  for (int i = 0; i < l->nmembers; i++) {
    m[i] = l->member[i];
    if (!m[i].level) continue;
    m[i].level = measured(a, m[i].level);
    if (m[i].level->height >= fresh->height) fresh->height = m[i].level->height + 1;
  }
  fresh->member = m;
  return fresh;
}

const cl_cluster *cl_part(arena *a, const cl_cluster *c, int64_t n, const char **why) {
  *why = NULL;
  if (n == c->devices) return c;
  if (n < 1 || n > c->devices) {
    *why = arena_printf(a, "%s has %lld device%s", c->name, (long long)c->devices,
                        c->devices == 1 ? "" : "s");
    return NULL;
  }
  int64_t first, count;
  cl_node_of(c, n - 1, &first, &count);
  if (first > 0 && first + count != n) {
    *why =
        arena_printf(a, "%lld devices would cut a node of %lld: %lld or %lld are whole nodes",
                     (long long)n, (long long)count, (long long)first, (long long)(first + count));
    return NULL;
  }
  const cl_level *top = first_of(a, c->top, n);
  // A level of one level says nothing.
  while (!top->node && members_of(top) == 1) top = top->member[0].level;
  return cl_cluster_make(a, c->name, measured(a, top));
}

// ---- slices -------------------------------------------------------------------------------------

// Devices from .. to-1 of a level.
static const cl_level *slice(arena *a, const cl_level *l, int64_t from, int64_t to) {
  if (from == 0 && to == l->devices) return l;
  cl_level *part = arena_new(a, cl_level, 1);
  cl_member *m = arena_new(a, cl_member, 3 * (size_t)l->nmembers);
  *part = *l;
  part->member = m;
  part->nmembers = 0;
  part->devices = to - from;
  if (l->node) part->nic_bandwidth = l->share * (double)part->devices;
  int64_t base = 0;
  for (int i = 0; i < l->nmembers && base < to; i++) {
    const cl_member *x = &l->member[i];
    int64_t size = size_of(x), end = base + x->count * size;
    int64_t low = (from > base ? from : base) - base, high = (to < end ? to : end) - base;
    base = end;
    if (low >= high) continue;
    // A cut member at the start, whole ones, a cut one at the end.
    int64_t first = low / size, last = (high - 1) / size;
    if (first == last && high - low < size) {
      const cl_level *cut = slice(a, x->level, low - first * size, high - first * size);
      m[part->nmembers++] = (cl_member){1, cut, NULL};
      continue;
    }
    if (low % size) {
      const cl_level *cut = slice(a, x->level, low % size, size);
      m[part->nmembers++] = (cl_member){1, cut, NULL};
      first++;
    }
    int64_t whole = high / size - first;
    if (whole > 0) m[part->nmembers++] = (cl_member){whole, x->level, x->device};
    if (high % size) {
      const cl_level *cut = slice(a, x->level, 0, high % size);
      m[part->nmembers++] = (cl_member){1, cut, NULL};
    }
  }
  return part;
}

const cl_cluster *cl_slice(arena *a, const cl_cluster *c, int64_t first, int64_t n) {
  IR_CHECK(first >= 0 && n > 0 && first + n <= c->devices);
  if (n == c->devices) return c;
  const cl_level *top = slice(a, c->top, first, first + n);
  while (!top->node && members_of(top) == 1) top = top->member[0].level;
  return cl_cluster_make(a, c->name, measured(a, top));
}

// ---- links between unlike networks --------------------------------------------------------------

static const cl_level *unlike_level(const cl_level *l) {
  if (l->node) return NULL;
  if (members_unlike(l)) return l;
  for (int i = 0; i < l->nmembers; i++) {
    const cl_level *found = unlike_level(l->member[i].level);
    if (found) return found;
  }
  return NULL;
}

const cl_level *cl_unlike_level(const cl_cluster *c) { return unlike_level(c->top); }

static double largest_member(const cl_level *l) {
  int64_t most = 1;
  for (int i = 0; i < l->nmembers; i++)
    if (size_of(&l->member[i]) > most) most = size_of(&l->member[i]);
  return (double)most;
}

double cl_member_speed(const cl_level *l) { return l->link.bandwidth * largest_member(l); }

// As it was written, with another speed; 0: that of the cards.
static const cl_level *with_speed(arena *a, const cl_level *l, double speed) {
  cl_level written = *l;
  written.link.bandwidth = speed;
  if (!l->node) written.link.latency -= l->nic_latency;
  return cl_level_make(a, &written);
}

double cl_member_most(const cl_level *l) {
  arena a;
  arena_init(&a);
  double most = cl_member_speed(with_speed(&a, l, 0));
  arena_free(&a);
  return most;
}

static const cl_level *replaced(arena *a, const cl_level *in, const cl_level *l, double speed) {
  if (in == l) return with_speed(a, l, speed);
  if (in->node) return in;
  cl_member *m = arena_new(a, cl_member, in->nmembers);
  bool other = false;
  cl_level *copy = arena_new(a, cl_level, 1);
  *copy = *in;
  for (int i = 0; i < in->nmembers; i++) {
    m[i] = in->member[i];
    m[i].level = replaced(a, m[i].level, l, speed);
    if (m[i].level == in->member[i].level) continue;
    other = true;
    double below = m[i].level->link.bandwidth * m[i].level->link.taper;
    copy->link.bandwidth = least(below, copy->link.bandwidth);
  }
  copy->member = m;
  return other ? copy : in;
}

const cl_cluster *cl_with_speed(arena *a, const cl_cluster *c, const cl_level *l, double speed) {
  return cl_cluster_make(a, c->name, replaced(a, c->top, l, speed));
}
