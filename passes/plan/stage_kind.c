#include "passes/plan/stage_kind.h"

#include <math.h>

// Seats of all groups of ranks inside a stage, with these cuts.
typedef struct seats {
  int n;
  const sk_seat **seat;
  int64_t ranks;  // of a group
  int *first;     // of group g: of[first[g]] .. of[first[g + 1] - 1]
  VEC(int) of;
} seats;

void sk_strides(const plan_choice *c, int64_t stride[PLAN_AXES]) {
  int64_t next = 1;
  for (int i = PLAN_AXES - 1; i >= 0; i--) {
    stride[c->order[i]] = next;
    next *= c->size[c->order[i]];
  }
}

// ---- seats --------------------------------------------------------------------------------------

static uint64_t route_of(const cl_cluster *net, const bl_key *k) {
  uint64_t h = 0;
  for (int x = 0; x < BL_INNER; x++) {
    uint64_t part[] = {cl_route_digest(net, k->stride[x], k->size[x]),
                       cl_spans_unlike(net, k->stride[x], k->size[x])};
    h = base_hash(part, sizeof part, h);
  }
  return h;
}

static int seat_number(arena *a, const cl_cluster *c, seats *t, int64_t group,
                       const cl_device *device, uint64_t digest) {
  for (int i = 0; i < t->n; i++)
    if (t->seat[i]->digest == digest) return i;
  sk_seat *seat = arena_new(a, sk_seat, 1);
  *seat = (sk_seat){device, cl_slice(a, c, group * t->ranks, t->ranks), digest};
  const sk_seat **more = arena_new(a, const sk_seat *, t->n + 1);
  for (int i = 0; i < t->n; i++) more[i] = t->seat[i];
  more[t->n] = seat;
  t->seat = more;
  return t->n++;
}

static const seats *seats_of(const plan_space *s, const plan_choice *c) {
  const cl_cluster *cl = s->cluster;
  bl_key k = plan_key_of(c);
  char name[(1 + 2 * BL_INNER) * STR_NAME + 1], *end = str_name(name, cl->digest);
  for (int x = 0; x < BL_INNER; x++) {
    end = str_name(end, (uint64_t)k.size[x]);
    end = str_name(end, (uint64_t)k.stride[x]);
  }
  seats *t = map_get(s->places, name);
  if (t) return t;
  t = arena_new(s->a, seats, 1);
  t->ranks = k.size[0] * k.size[1] * k.size[2];
  int64_t n = cl->devices / t->ranks;
  t->first = arena_new(s->a, int, n + 1);
  arena scratch;
  arena_init(&scratch);
  for (int64_t g = 0; g < n; g++) {
    const cl_cluster *net = cl_slice(&scratch, cl, g * t->ranks, t->ranks);
    const cl_device *const *device;
    int devices = cl_device_kinds(&scratch, net, &device);
    uint64_t route = route_of(net, &k);
    for (int d = 0; d < devices; d++) {
      uint64_t both[] = {route, cl_device_digest(device[d])};
      uint64_t digest = base_hash(both, sizeof both, 0);
      vec_push(s->a, &t->of, seat_number(s->a, cl, t, g, device[d], digest));
    }
    t->first[g + 1] = t->of.n;
  }
  arena_free(&scratch);
  map_set(s->places, arena_strdup(s->a, name), t);
  return t;
}

// ---- kinds --------------------------------------------------------------------------------------

static bool has_seat(const sk_kind *k, const sk_seat *x) {
  for (int i = 0; i < k->nseats; i++)
    if (k->seat[i] == x) return true;
  return false;
}

static void add_name(sb *text, map *seen, const char *name) {
  if (map_get(seen, name)) return;
  map_set(seen, name, text);
  sb_printf(text, "%s%s", text->n ? " + " : "", name);
}

// The parts of a cluster that hold devices first .. last: members of the outermost level that has
// several kinds of them.
static const char *group_name(arena *a, const cl_cluster *c, int64_t first, int64_t last) {
  const cl_level *l = c->top;
  while (l->nmembers == 1 && l->member[0].level) l = l->member[0].level;
  if (l->nmembers == 1) return c->top->name;
  sb text = {.arena = a};
  map seen = {.arena = a};
  int64_t all = c->devices / l->devices;  // levels above only repeat it
  for (int64_t k = 0; k < all; k++) {
    int64_t base = k * l->devices;
    for (int i = 0; i < l->nmembers; i++) {
      const cl_member *m = &l->member[i];
      int64_t end = base + m->count * (m->level ? m->level->devices : 1);
      if (first < end && last >= base)
        add_name(&text, &seen, m->level ? m->level->name : m->device->name);
      base = end;
    }
  }
  return sb_str(&text);
}

static void add_devices(arena *a, sk_kind *k) {
  sb text = {.arena = a};
  map seen = {.arena = a};
  for (int i = 0; i < k->nseats; i++) {
    const cl_device *d = k->seat[i]->device;
    int64_t room = d->memory - d->reserve;
    if (!i || room < k->capacity) k->capacity = room, k->reserve = d->reserve;
    if (!i || d->bandwidth < k->bandwidth) k->bandwidth = d->bandwidth;
    add_name(&text, &seen, d->name);
  }
  k->device = sb_str(&text);
}

typedef struct found_kinds {
  VEC(sk_kind) kind;
  VEC(const char *) name;
} found_kinds;

// The ranks of stage i are those of `data` groups, each `apart` behind the one before.
typedef struct layout {
  int64_t inner, data, data_stride, stage_stride, devices;
  bool together;  // a stage is a run of consecutive devices
} layout;

static int kind_number(const plan_space *s, const seats *t, const layout *l, int64_t stage,
                       found_kinds *out) {
  arena *a = s->a;
  int64_t from = stage * l->stage_stride;
  int64_t to = from + (l->data - 1) * l->data_stride + l->inner - 1;
  const sk_seat **seat = arena_new(a, const sk_seat *, t->n);
  sk_kind k = {.seat = seat, .net = s->cluster};
  for (int64_t d = 0; d < l->data; d++) {
    int64_t g = (from + d * l->data_stride) / l->inner;
    for (int j = t->first[g]; j < t->first[g + 1]; j++) {
      const sk_seat *x = t->seat[t->of.at[j]];
      if (!has_seat(&k, x)) seat[k.nseats++] = x;
    }
  }
  if (l->together) k.net = cl_slice(a, s->cluster, from, to - from + 1);
  k.group = group_name(a, s->cluster, from, to);
  add_devices(a, &k);
  k.store = hm_store_in(s->cluster, from, to);
  sb name = {.arena = a};
  sb_printf(&name, "%llx %s", (unsigned long long)k.net->digest, k.group);
  for (int i = 0; i < k.nseats; i++) sb_printf(&name, " %p", (const void *)k.seat[i]);
  for (int i = 0; i < out->kind.n; i++)
    if (str_eq(out->name.at[i], sb_str(&name))) return i;
  vec_push(a, &out->kind, k);
  vec_push(a, &out->name, sb_str(&name));
  return out->kind.n - 1;
}

// Of the ranks of a stage the one whose message to its neighbour takes longest.
static void slowest_way(const cl_cluster *c, const layout *l, int64_t stage, int64_t next,
                        int64_t *from, int64_t *to) {
  double speed = INFINITY, latency = 0;
  for (int64_t d = 0; d < l->data; d++)
    for (int64_t r = 0; r < l->inner; r++) {
      int64_t x = stage * l->stage_stride + d * l->data_stride + r;
      int64_t y = x + (next - stage) * l->stage_stride;
      const cl_link *link = &cl_between(c, x, y)->link;
      double own = link->bandwidth * link->taper;
      if (own > speed || (own == speed && link->latency <= latency)) continue;
      speed = own;
      latency = link->latency;
      *from = x;
      *to = y;
    }
}

// Whether a group that an axis makes has devices of networks that differ.
static bool axis_spans(const sk_places *p, const int64_t *stride, const plan_choice *c,
                       plan_axis x) {
  if (c->size[x] == 1) return false;
  for (int i = 0; i < p->kinds; i++) {
    const sk_kind *k = &p->kind[i];
    if (x == PLAN_DATA && cl_spans_unlike(k->net, stride[x], c->size[x])) return true;
    for (int j = 0; x != PLAN_DATA && j < k->nseats; j++)
      if (cl_spans_unlike(k->seat[j]->net, stride[x], c->size[x])) return true;
  }
  return false;
}

const sk_places *sk_places_of(const plan_space *s, const plan_choice *c) {
  const cl_cluster *cl = s->cluster;
  int64_t stride[PLAN_AXES];
  sk_strides(c, stride);
  int64_t n = c->size[PLAN_PIPELINE];
  layout l = {.inner = c->size[PLAN_TENSOR] * c->size[PLAN_ULYSSES] * c->size[PLAN_RING],
              .data = c->size[PLAN_DATA],
              .data_stride = stride[PLAN_DATA],
              .stage_stride = stride[PLAN_PIPELINE],
              .devices = cl->devices};
  l.together = stride[PLAN_PIPELINE] * n == cl->devices;
  const seats *t = seats_of(s, c);
  char name[3 * STR_NAME + 3] = "of", *end = str_name(name + 2, (uintptr_t)t);
  str_name(str_name(end, (uint64_t)n), l.together);
  sk_places *p = map_get(s->places, name);
  if (p) return p;
  p = arena_new(s->a, sk_places, 1);
  p->stages = (int)n;
  int *of = arena_new(s->a, int, n);
  int64_t *from = arena_new(s->a, int64_t, n), *to = arena_new(s->a, int64_t, n);
  found_kinds found = {0};
  for (int64_t i = 0; i < n; i++) {
    of[i] = kind_number(s, t, &l, i, &found);
    if (n > 1) slowest_way(cl, &l, i, (i + 1) % n, &from[i], &to[i]);
  }
  p->kind = found.kind.at;
  p->kinds = found.kind.n;
  p->of = of;
  p->from = from;
  p->to = to;
  static const plan_axis reduces[] = {PLAN_DATA, PLAN_TENSOR, PLAN_ULYSSES, PLAN_RING};
  for (size_t i = 0; i < sizeof reduces / sizeof *reduces; i++)
    p->spans[reduces[i]] = axis_spans(p, stride, c, reduces[i]);
  map_set(s->places, arena_strdup(s->a, name), p);
  return p;
}

bool sk_spans(const plan_space *s, const plan_choice *c) {
  if (s->cluster->alike) return false;
  const sk_places *p = sk_places_of(s, c);
  for (int x = 0; x < PLAN_AXES; x++)
    if (p->spans[x]) return true;
  return false;
}

sk_kind sk_alike(const plan_space *s) {
  const cl_device *d = cl_device_at(s->cluster, 0);
  return (sk_kind){.net = s->cluster,
                   .capacity = d->memory - d->reserve,
                   .reserve = d->reserve,
                   .bandwidth = d->bandwidth,
                   .store = hm_store_of(s->cluster)};
}

hm_store sk_store(const plan_space *s) {
  if (s->cluster->alike) return hm_store_of(s->cluster);
  char name[STR_NAME + 6] = "store";
  str_name(name + 5, s->cluster->digest);
  hm_store *known = map_get(s->places, name);
  if (known) return *known;
  known = arena_new(s->a, hm_store, 1);
  *known = hm_store_of(s->cluster);
  map_set(s->places, arena_strdup(s->a, name), known);
  return *known;
}

int64_t sk_most_memory(const plan_space *s) {
  const cl_device *d = cl_device_at(s->cluster, 0);
  int64_t most = d->memory - d->reserve;
  if (s->cluster->alike) return most;
  const cl_device *const *device;
  arena a;
  arena_init(&a);
  for (int i = cl_device_kinds(&a, s->cluster, &device) - 1; i >= 0; i--)
    if (device[i]->memory - device[i]->reserve > most)
      most = device[i]->memory - device[i]->reserve;
  arena_free(&a);
  return most;
}

// ---- blocks -------------------------------------------------------------------------------------

static const bl_block *block_at(plan_space *s, const plan_choice *c, const sk_seat *seat) {
  bl_key k = plan_key_of(c);
  char name[BL_KEY_TEXT + STR_NAME];
  str_name(bl_key_text(name, &k), seat->digest);
  bl_block *b = map_get(s->blocks, name);
  if (b) return b;
  b = bl_make(s->a, s->job->rules[k.recompute], &k, seat->net, seat->device);
  map_set(s->blocks, arena_strdup(s->a, name), b);
  s->fronts++;
  return b;
}

int sk_blocks(plan_space *s, const plan_choice *c, const bl_block *const **out) {
  if (s->cluster->alike) {
    const bl_block **one = arena_new(s->a, const bl_block *, 1);
    one[0] = plan_block_of(s, c);
    *out = one;
    return 1;
  }
  const seats *t = seats_of(s, c);
  const bl_block **b = arena_new(s->a, const bl_block *, t->n);
  for (int i = 0; i < t->n; i++) b[i] = block_at(s, c, t->seat[i]);
  *out = b;
  return t->n;
}

double sk_block_seconds(const bl_block *b) {
  double work = 0;
  for (int i = 0; i < b->npieces; i++)
    for (int f = 0; f < 2; f++) {
      const bl_phase *q = &b->piece[i].phase[f];
      double seconds = q->compute;
      for (int x = 0; x < BL_INNER; x++) seconds += q->sent[x];
      work += (double)b->g->piece.at[i].count * seconds;
    }
  return work;
}

const bl_block *sk_block_of(plan_space *s, const plan_choice *c, const sk_kind *k) {
  const bl_block *slowest = block_at(s, c, k->seat[0]);
  for (int i = 1; i < k->nseats; i++) {
    const bl_block *b = block_at(s, c, k->seat[i]);
    if (sk_block_seconds(b) > sk_block_seconds(slowest)) slowest = b;
  }
  return slowest;
}

double sk_peak(arena *a, const cl_cluster *c, ir_dtype t) {
  const cl_named *named;
  int64_t nodes;
  double peak = 0;
  for (int i = cl_census(a, c, &named, &nodes) - 1; i >= 0; i--)
    peak += (double)named[i].count * cl_matmul_peak(named[i].device, t);
  return peak;
}
