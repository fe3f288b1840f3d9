// The rows of space.def as functions.
#include <string.h>

#include "ir/rule.h"
#include "passes/plan/homes.h"
#include "passes/plan/search.h"
#include "passes/plan/stage_kind.h"

plan_pins plan_pins_none(void) {
  plan_pins p = {
      .schedule = -1, .zero = -1, .recompute = -1, .also = -1, .context_first = -1, .spans = -1};
  for (int i = 0; i < PLAN_CLASSES; i++) p.home[i] = -1;
  return p;
}

plan_choice plan_choice_start(const plan_space *s) {
  plan_choice c = {
      .micro_batch = 1, .micro_batches = 1, .interleave = 1, .whole_stream = s->pins.whole_stream};
  for (int i = 0; i < PLAN_AXES; i++) c.size[i] = 1;
  return c;
}

// ---- helpers ------------------------------------------------------------------------------------

static int one(int64_t out[PLAN_VALUES], int64_t v) {
  out[0] = v;
  return 1;
}

// Devices that are not taken yet.
static int64_t left(const plan_space *s, const plan_choice *c) {
  int64_t n = s->cluster->devices;
  for (int i = 0; i < PLAN_AXES; i++) n /= c->size[i];
  return n;
}

static int64_t divisors(int64_t n, int64_t most, int64_t out[PLAN_VALUES]) {
  int k = 0;
  for (int64_t d = 1; d <= n && d <= most && k < PLAN_VALUES; d++)
    if (n % d == 0) out[k++] = d;
  return k;
}

static const sh_rules *rules(const plan_space *s) {
  for (int i = 0; i < PLAN_RECOMPUTES; i++)
    if (s->job->rules[i]) return s->job->rules[i];
  IR_BUG("a job without a graph");
}

// Every op with heads can be cut in n: by its key-value heads, or by the queries that share one.
static bool heads_divide(const plan_space *s, int64_t n) {
  const pg_graph *g = rules(s)->g;
  for (int i = 0; i < g->heads.n; i++)
    if (g->heads.at[i].kv % n && g->heads.at[i].rep % n) return false;
  return true;
}

static bool positions_divide(const plan_space *s, int64_t n) {
  const sh_rules *r = rules(s);
  for (int i = 0; i < r->position.n; i++)
    if (r->position.at[i]->size % n) return false;
  return r->position.n > 0 || n == 1;
}

// An axis: its pin, or the divisors of what is left that pass a test.
static int axis_values(const plan_space *s, const plan_choice *c, plan_axis x,
                       bool (*test)(const plan_space *, int64_t), int64_t out[PLAN_VALUES]) {
  int64_t pin = s->pins.size[x], n = left(s, c), all[PLAN_VALUES];
  if (pin) return n % pin == 0 && test(s, pin) ? one(out, pin) : 0;
  int k = 0, count = (int)divisors(n, n, all);
  for (int i = 0; i < count; i++)
    if (test(s, all[i])) out[k++] = all[i];
  return k;
}

// ---- outer --------------------------------------------------------------------------------------

static int values_tensor(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  return axis_values(s, c, PLAN_TENSOR, heads_divide, out);
}
static void set_tensor(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  c->size[PLAN_TENSOR] = v;
}

static bool ulysses_divides(const plan_space *s, int64_t n) {
  return positions_divide(s, n) && heads_divide(s, n);
}
static int values_ulysses(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  int n = axis_values(s, c, PLAN_ULYSSES, ulysses_divides, out), k = 0;
  // Heads are cut by tensor first.
  for (int i = 0; i < n; i++)
    if (heads_divide(s, out[i] * c->size[PLAN_TENSOR])) out[k++] = out[i];
  return k;
}
static void set_ulysses(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  c->size[PLAN_ULYSSES] = v;
}

static int values_ring(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  int n = axis_values(s, c, PLAN_RING, positions_divide, out), k = 0;
  for (int i = 0; i < n; i++)
    if (positions_divide(s, out[i] * c->size[PLAN_ULYSSES])) out[k++] = out[i];
  return k;
}
static void set_ring(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  c->size[PLAN_RING] = v;
}

// On one tier of the cluster, or with one of the axes, both are the same.
static int values_placement(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  int64_t u = c->size[PLAN_ULYSSES], r = c->size[PLAN_RING], near = c->size[PLAN_TENSOR] * u * r;
  int pin = s->pins.context_first;
  if (u == 1 || r == 1) return one(out, 0);
  if (pin >= 0) return one(out, pin);
  out[0] = 0;
  out[1] = 1;
  return s->cluster->ntiers && s->cluster->tier[0].unit % near == 0 ? 1 : 2;
}
static void set_placement(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  c->context_first = v != 0;
}

static bool stages_divide(const plan_space *s, int64_t n) { return n == 1 || n <= s->layers; }
// Whether the layers that are pinned for each stage are those of a model in so many stages.
static bool stages_suit(const plan_space *s, int64_t stages) {
  int64_t layers = 0;
  for (int i = 0; i < s->pins.nstages; i++) layers += s->pins.stages[i];
  return !s->pins.nstages || (s->pins.nstages == stages && layers == s->layers);
}

// What is left is data parallel, and has to divide the batch.
static int values_pipeline(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  int n = axis_values(s, c, PLAN_PIPELINE, stages_divide, out), k = 0;
  int64_t pin = s->pins.size[PLAN_DATA];
  for (int i = 0; i < n; i++) {
    int64_t data = left(s, c) / out[i];
    if (s->job->batch % data == 0 && (!pin || pin == data) && stages_suit(s, out[i]))
      out[k++] = out[i];
  }
  return k;
}
static void set_pipeline(const plan_space *s, plan_choice *c, int64_t v) {
  c->size[PLAN_PIPELINE] = v;
  c->size[PLAN_DATA] = 1;
  c->size[PLAN_DATA] = left(s, c);
}

static int values_recompute(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  (void)c;
  int k = 0;
  for (int i = 0; i < PLAN_RECOMPUTES; i++)
    if (s->job->rules[i] && (s->pins.recompute < 0 || s->pins.recompute == i)) out[k++] = i;
  return k;
}
static void set_recompute(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  c->recompute = (plan_recompute)v;
}

static int values_micro_batch(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  int64_t share = s->job->batch / c->size[PLAN_DATA], pin = s->pins.micro_batch;
  if (pin) return share % pin == 0 ? one(out, pin) : 0;
  return (int)divisors(share, share, out);
}
static void set_micro_batch(const plan_space *s, plan_choice *c, int64_t v) {
  c->micro_batch = v;
  c->micro_batches = s->job->batch / c->size[PLAN_DATA] / v;
}

// ---- inner --------------------------------------------------------------------------------------

// 0: stages lie far apart, data ranks side by side; 1: the other way round.
static void set_order(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  static const plan_axis order[2][PLAN_AXES] = {
      {PLAN_PIPELINE, PLAN_DATA, PLAN_EXPERT, PLAN_RING, PLAN_ULYSSES, PLAN_TENSOR},
      {PLAN_DATA, PLAN_PIPELINE, PLAN_EXPERT, PLAN_RING, PLAN_ULYSSES, PLAN_TENSOR}};
  memcpy(c->order, order[v], sizeof c->order);
  for (int i = 0; c->context_first && i < PLAN_AXES; i++)
    c->order[i] = c->order[i] == PLAN_RING      ? PLAN_ULYSSES
                  : c->order[i] == PLAN_ULYSSES ? PLAN_RING
                                                : c->order[i];
}
static int values_order(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  int n = c->size[PLAN_PIPELINE] > 1 && c->size[PLAN_DATA] > 1 ? 2 : 1, k = 0;
  for (int v = 0; v < n; v++) {
    plan_choice with = *c;
    set_order(s, &with, v);
    if (s->pins.spans < 0 || sk_spans(s, &with) == (s->pins.spans == 1)) out[k++] = v;
  }
  return k;
}

static int values_schedule(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  int64_t p = c->size[PLAN_PIPELINE];
  // One stage goes through a micro-batch at a time, and has no chunks.
  if (p == 1 && s->pins.schedule == PIPE_INTERLEAVED) return 0;
  if (p == 1) return one(out, PIPE_ONE_F_ONE_B);
  if (s->pins.schedule >= 0) return one(out, s->pins.schedule);
  int k = 0;
  out[k++] = PIPE_ONE_F_ONE_B;
  if (c->micro_batches % p == 0 && s->layers >= 2 * p) out[k++] = PIPE_INTERLEAVED;
  return k;
}
static void set_schedule(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  c->pipe = (pipe_kind)v;
}

// No chunk is without a layer.
static int64_t most_chunks(const plan_space *s, int64_t stages) {
  int64_t most = s->layers / stages;
  for (int i = 0; i < s->pins.nstages; i++)
    if (s->pins.stages[i] < most) most = s->pins.stages[i];
  return most;
}

// Chunk counts that divide the layers evenly; where none does, powers of two, and the chunks of a
// stage differ by a layer. A pin may name any.
static int values_interleave(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  int64_t p = c->size[PLAN_PIPELINE], pin = s->pins.interleave;
  if (c->pipe != PIPE_INTERLEAVED) return pin > 1 ? 0 : one(out, 1);
  int64_t most = most_chunks(s, p);
  if (pin) return pin > 1 && pin <= most ? one(out, pin) : 0;
  int k = 0;
  for (int64_t v = 2; v <= most && k < PLAN_VALUES; v++)
    if (s->layers % (v * p) == 0) out[k++] = v;
  for (int64_t v = 2, even = k; !even && v <= most && k < PLAN_VALUES; v *= 2) out[k++] = v;
  return k;
}
static void set_interleave(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  c->interleave = v;
}

// Ranks that hold the same weights.
static int64_t replicas(const plan_choice *c) {
  return c->size[PLAN_DATA] * c->size[PLAN_ULYSSES] * c->size[PLAN_RING];
}
static int values_zero(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  if (replicas(c) == 1) return s->pins.zero > 0 ? 0 : one(out, 0);
  if (s->pins.zero >= 0) return one(out, s->pins.zero);
  for (int i = 0; i < 4; i++) out[i] = i;
  return 4;
}
static void set_zero(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  c->zero = (int)v;
}

// Groups hold all ulysses and ring ranks and some of data's, which lie next to each other. Worth a
// look are those that end where a level of the cluster does.
static int values_group(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  int64_t all = replicas(c), data = c->size[PLAN_DATA], inner = all / data;
  int64_t ranks = s->pins.zero_group, factor = s->pins.zero_factor;
  if (!c->zero) return one(out, 1);
  if (factor && !ranks) ranks = factor * inner;
  if (ranks) return ranks > 1 && ranks % inner == 0 && all % ranks == 0 ? one(out, ranks) : 0;
  int64_t apart = 1;  // devices between neighbours on `data`
  for (int i = PLAN_AXES - 1; c->order[i] != PLAN_DATA; i--) apart *= c->size[c->order[i]];
  int n = one(out, all);
  for (int t = 0; t < s->cluster->ntiers; t++) {
    int64_t unit = s->cluster->tier[t].unit;
    if (unit < c->size[PLAN_TENSOR] * inner) continue;
    int64_t group = inner * cl_gcd(unit < apart ? 1 : unit / apart, data);
    if (group > 1 && group < all && group != out[n - 1]) out[n++] = group;
  }
  return n;
}
static void set_group(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  c->zero_group = v;
}

// ---- away ---------------------------------------------------------------------------------------

// The homes of a class that the nodes have, nearest first; `last` is the farthest that it may have.
static int homes(const plan_space *s, plan_class k, plan_home last, int64_t out[PLAN_VALUES]) {
  hm_store store = sk_store(s);
  int n = 0;
  for (int h = PLAN_DEVICE; h <= (int)last; h++) {
    if ((h == PLAN_HOST && !store.host) || (h == PLAN_DISK && !store.disk)) continue;
    if (s->pins.home[k] < 0 || s->pins.home[k] == h) out[n++] = h;
  }
  return n;
}

// An executable of one device has one kind for all layers. Stages on unlike devices have too: the
// search has no blocks of two kinds for each. Where what is saved lives on the host
// there is nothing to save for the device.
bool plan_may_mix(const plan_space *s, const plan_choice *c, int kind) {
  int pin = s->pins.also;
  return kind > (int)c->recompute && s->cluster->devices > 1 && s->cluster->alike &&
         c->home[PLAN_ACTIVATIONS] == PLAN_DEVICE && s->job->rules[kind] &&
         (pin < 0 || pin == kind);
}
static int values_also(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) {
  int pin = s->pins.also, n = 0;
  if (pin <= PLAN_KEEP) out[n++] = PLAN_KEEP;
  for (int i = 0; i < PLAN_RECOMPUTES; i++)
    if (plan_may_mix(s, c, i)) out[n++] = i;
  return n;
}
static void set_also(const plan_space *s, plan_choice *c, int64_t v) {
  (void)s;
  c->also = (plan_recompute)v;
}

#define HOME(NAME, CLASS, LAST)                                                                   \
  static int values_##NAME(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]) { \
    (void)c;                                                                                      \
    return homes(s, CLASS, LAST, out);                                                            \
  }                                                                                               \
  static void set_##NAME(const plan_space *s, plan_choice *c, int64_t v) {                        \
    (void)s;                                                                                      \
    c->home[CLASS] = (plan_home)v;                                                                \
  }
HOME(parameters, PLAN_PARAMETERS, PLAN_DISK)
HOME(gradients, PLAN_GRADIENTS, PLAN_HOST)
HOME(optimizer, PLAN_OPTIMIZER, PLAN_DISK)
HOME(activations, PLAN_ACTIVATIONS, PLAN_HOST)

// "1, 2, 3, 4, 6, 12"
static const char *list_of(arena *a, const plan_space *s, bool (*test)(const plan_space *, int64_t),
                           int64_t most) {
  sb text = {.arena = a};
  for (int64_t n = 1; n <= most && n <= 4096; n++)
    if (test(s, n)) sb_printf(&text, "%s%lld", text.n ? ", " : "", (long long)n);
  return sb_str(&text);
}

const char *plan_why_illegal(arena *a, const plan_space *s, const char **code) {
  *code = "indivisible";
  int64_t devices = s->cluster->devices, product = 1, heads = 1;
  const pg_graph *g = rules(s)->g;
  for (int i = 0; i < g->heads.n; i++) heads = g->heads.at[i].kv * g->heads.at[i].rep;
  for (int x = 0; x < PLAN_AXES; x++) {
    int64_t pin = s->pins.size[x];
    if (!pin) continue;
    product *= pin;
    const char *name = plan_axis_name((plan_axis)x);
    bool by_heads = x == PLAN_TENSOR || x == PLAN_ULYSSES;
    if (by_heads && !heads_divide(s, pin))
      return arena_printf(a, "%lld heads cannot be split over %s = %lld; %s can", (long long)heads,
                          name, (long long)pin, list_of(a, s, heads_divide, heads));
    if ((x == PLAN_RING || x == PLAN_ULYSSES) && !positions_divide(s, pin))
      return arena_printf(a, "the sequence does not divide over %s = %lld", name, (long long)pin);
    if (x == PLAN_PIPELINE && !stages_divide(s, pin))
      return arena_printf(a, "%lld layers are too few for %lld stages", (long long)s->layers,
                          (long long)pin);
    if (x == PLAN_DATA && s->job->batch % pin)
      return arena_printf(a, "a batch of %lld does not divide over data = %lld",
                          (long long)s->job->batch, (long long)pin);
    if (devices % pin)
      return arena_printf(a, "%s = %lld does not divide %lld devices", name, (long long)pin,
                          (long long)devices);
  }
  if (devices % product)
    return arena_printf(a, "the pinned sizes multiply to %lld, which does not divide %lld devices",
                        (long long)product, (long long)devices);
  if (s->pins.micro_batch && s->job->batch % s->pins.micro_batch)
    return arena_printf(a, "micro_batch = %lld does not divide batch = %lld",
                        (long long)s->pins.micro_batch, (long long)s->job->batch);
  *code = "infeasible";
  bool one_stage = devices == 1 || s->pins.size[PLAN_PIPELINE] == 1;
  if (one_stage && (s->pins.schedule == PIPE_INTERLEAVED || s->pins.interleave > 1))
    return "only a pipeline of two stages or more can be interleaved";
  if (s->pins.schedule >= 0 && s->pins.interleave) {
    // (Whether micro-batches divide is asked of each point.)
    const int stages = s->pins.size[PLAN_PIPELINE] ? (int)s->pins.size[PLAN_PIPELINE] : 1;
    const pipeline line = {.kind = (pipe_kind)s->pins.schedule,
                           .stages = stages,
                           .chunks = (int)s->pins.interleave,
                           .micro = stages};
    const char *why = pipe_check(a, &line);
    if (why) return why;
  }
  if (!stages_suit(s, s->pins.nstages))
    return arena_printf(a, "the stages do not have the %lld layers of the model",
                        (long long)s->layers);
  for (int i = 0; i < s->pins.nstages; i++)
    if (s->pins.stages[i] < s->pins.interleave)
      return arena_printf(a, "%lld layer%s of stage %d are no %lld chunks",
                          (long long)s->pins.stages[i], s->pins.stages[i] == 1 ? "" : "s", i,
                          (long long)s->pins.interleave);
  if (s->pins.also > PLAN_KEEP && devices == 1)
    return "an executable of one device recomputes all layers alike";
  if (s->pins.also > PLAN_KEEP && s->pins.home[PLAN_ACTIVATIONS] == PLAN_HOST)
    return "two kinds of recomputation are for activations on the device";
  if (s->pins.zero_group)
    return arena_printf(
        a,
        "%lld ranks cannot share a state: they are all ulysses and ring ranks times "
        "a divisor of data",
        (long long)s->pins.zero_group);
  if (s->pins.zero_factor)
    return arena_printf(a, "%lld data ranks cannot share a state: no divisor of data",
                        (long long)s->pins.zero_factor);
  for (int k = 0; k < PLAN_CLASSES; k++) {
    hm_store store = hm_store_of(s->cluster);
    int home = s->pins.home[k];
    if ((home == PLAN_HOST && !store.host) || (home == PLAN_DISK && !store.disk))
      return arena_printf(a, "%s cannot be on the %s: nodes of %s have no %s",
                          plan_class_name((plan_class)k), plan_home_name((plan_home)home),
                          s->cluster->name,
                          home == PLAN_DISK && store.host ? "disk" : "host memory");
  }
  if (s->pins.zero > 0)
    return arena_printf(a, "zero = %d needs ranks that hold the same weights", s->pins.zero);
  return arena_printf(a, "a batch of %lld cannot be dealt to %lld device%s%s",
                      (long long)s->job->batch, (long long)devices, devices == 1 ? "" : "s",
                      product > 1 || s->pins.micro_batch ? " under these pins" : "");
}

int plan_dims(const plan_dim **out) {
#define OUTER PLAN_OUTER
#define INNER PLAN_INNER
#define AWAY PLAN_AWAY
#define DIM(name, level, doc) {#name, doc, level, values_##name, set_##name},
  static const plan_dim dims[] = {
#include "passes/plan/space.def"
  };
#undef OUTER
#undef INNER
#undef AWAY
  *out = dims;
  return (int)(sizeof dims / sizeof *dims);
}
