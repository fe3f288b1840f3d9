// What the printers of plans share: see show.h.
//
// The name tables at the top are the ones that plan.h declares; each is in the order of its enum,
// and a row too few does not compile.
#include "passes/plan/show.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "runtime/base/str.h"

// ---- names --------------------------------------------------------------------------------------

#define NAMES(TABLE, N) \
  _Static_assert(sizeof TABLE / sizeof *TABLE == (N), #TABLE " has another order than its enum")

// ORDER AXES
static const char *const axes[] = {"data", "pipeline", "tensor", "ulysses", "ring", "expert"};
NAMES(axes, PLAN_AXES);
const char *plan_axis_name(plan_axis x) { return axes[x]; }

static const char *const recomputes[] = {"none", "selective", "full"};
NAMES(recomputes, PLAN_RECOMPUTES);
const char *plan_recompute_name(plan_recompute r) { return recomputes[r]; }

static const char *const homes[] = {"device", "host", "disk"};
NAMES(homes, PLAN_HOMES);
const char *plan_home_name(plan_home h) { return homes[h]; }

static const char *const classes[] = {"parameters", "gradients", "optimizer", "activations"};
NAMES(classes, PLAN_CLASSES);
const char *plan_class_name(plan_class c) { return classes[c]; }

static const char *const memories[] = {"parameters", "gradients", "optimizer", "activations",
                                       "workspace"};
NAMES(memories, PLAN_MEMORIES);
const char *plan_memory_name(plan_memory m) { return memories[m]; }
const char *plan_memory_words(plan_memory m) {
  return m == PLAN_M_PARAMETERS ? "weights" : memories[m];
}

static const char *const times[] = {"compute", "tensor",    "sequence", "expert", "pipeline",
                                    "data",    "optimizer", "offload",  "bubble"};
NAMES(times, PLAN_TIMES);
const char *plan_time_name(plan_time t) { return times[t]; }

static const char *const time_words[] = {"the speed of the devices",
                                         "tensor traffic",
                                         "traffic of sequence parallelism",
                                         "expert traffic",
                                         "messages between stages",
                                         "data-parallel traffic",
                                         "the optimizer's update",
                                         "moves to and from the host or disk",
                                         "the pipeline's bubble"};
NAMES(time_words, PLAN_TIMES);
const char *plan_time_words(plan_time t) { return time_words[t]; }

// ---- texts --------------------------------------------------------------------------------------

// Bytes of the code point at `p` when it is valid UTF-8, else 0.
static int code_point(const unsigned char *p) {
  if (*p < 0x80) return 1;
  int more = *p >= 0xc2 && *p < 0xe0   ? 1
             : (*p & 0xf0) == 0xe0     ? 2
             : *p >= 0xf0 && *p < 0xf5 ? 3
                                       : 0;
  if (!more) return 0;
  // Overlong forms, surrogates, beyond Unicode: the second byte tells.
  if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f)) return 0;
  if ((*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f)) return 0;
  for (int i = 1; i <= more; i++)
    if ((p[i] & 0xc0) != 0x80) return 0;
  return more + 1;
}

const char *show_clean(arena *a, const char *s) {
  sb out = {.arena = a};
  for (const unsigned char *p = (const unsigned char *)(s ? s : ""); *p;) {
    int n = code_point(p);
    // C1 controls, too, are orders to a terminal.
    bool control = *p < 0x20 || *p == 0x7f || (n == 2 && *p == 0xc2 && p[1] < 0xa0);
    if (!n) {
      sb_puts(&out, "\xef\xbf\xbd");
      n = 1;
    } else if (control) {
      sb_put(&out, ' ');
    } else {
      sb_putn(&out, (const char *)p, (size_t)n);
    }
    p += n;
  }
  return sb_str(&out);
}

int show_columns(const char *s) {
  int n = 0;
  for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
  return n;
}

const char *show_cut(arena *a, const char *s, int columns) {
  if (show_columns(s) <= columns) return s;
  const char *p = s;
  for (int n = 0; *p; p++) {
    n += ((unsigned char)*p & 0xc0) != 0x80;
    if (n == columns) break;
  }
  return arena_printf(a, "%.*s" SHOW_MORE, (int)(p - s), s);
}

// ---- numbers ------------------------------------------------------------------------------------

const char *show_whole(arena *a, int64_t n) {
  char digits[24];
  snprintf(digits, sizeof digits, "%" PRId64, n);
  sb out = {.arena = a};
  int count = (int)strlen(digits), sign = digits[0] == '-';
  for (int i = 0; i < count; i++) {
    if (i > sign && (count - i) % 3 == 0) sb_put(&out, ',');
    sb_put(&out, digits[i]);
  }
  return sb_str(&out);
}

// Rounds to how it is printed before a unit is chosen: 999.96 ms is 1.0 s.
typedef struct scale {
  double from, by;
  const char *name;
} scale;

static const char *scaled(arena *a, double x, const scale *s, int n) {
  if (!isfinite(x)) return SHOW_DASH;
  double size = fabs(x);
  while (n > 1 && size < s->from) s++, n--;
  double shown = x / s->by;
  if (fabs(shown) >= 999.5) return arena_printf(a, "%s %s", show_whole(a, llround(shown)), s->name);
  return arena_printf(a, fabs(shown) >= 99.95 ? "%.0f %s" : "%.1f %s", shown, s->name);
}

const char *show_seconds(arena *a, double s) {
  static const scale units[] = {{0.9995, 1, "s"}, {0.9995e-3, 1e-3, "ms"}, {0, 1e-6, "\xc2\xb5s"}};
  return s == 0 ? "0 s" : scaled(a, s, units, 3);
}

#define KIB 1024.0
#define MIB (1024.0 * KIB)
#define GIB (1024.0 * MIB)

const char *show_bytes(arena *a, double bytes) {
  if (!isfinite(bytes)) return SHOW_DASH;
  if (fabs(bytes) < KIB) return arena_printf(a, "%.0f B", bytes);
  show_unit u = show_bytes_unit(bytes);
  double x = bytes / u.by;
  return fabs(x) < 9999.5 ? arena_printf(a, "%.1f %s", x, u.name)
                          : arena_printf(a, "%s %s", show_whole(a, llround(x)), u.name);
}

static const scale counts[] = {
    {0.9995e12, 1e12, "T"}, {0.9995e9, 1e9, "B"}, {0.9995e6, 1e6, "M"}, {0.9995e3, 1e3, "k"}};

const char *show_short(arena *a, double x) {
  if (!isfinite(x)) return SHOW_DASH;
  for (int i = 0; i < 4; i++) {
    if (fabs(x) < counts[i].from) continue;
    double v = x / counts[i].by;
    int decimals = fabs(v) >= 99.95 ? 0 : fabs(v) >= 9.995 ? 1 : 2;
    return arena_printf(a, "%.*f %s", decimals, v, counts[i].name);
  }
  return arena_printf(a, fabs(x) >= 99.95 || x == floor(x) ? "%.0f" : "%.1f", x);
}

const char *show_quantity(arena *a, double x) {
  if (!isfinite(x)) return SHOW_DASH;
  for (int i = 0; i < 4; i++)
    if (fabs(x) >= counts[i].from)
      return arena_printf(a, "%.1f %s", x / counts[i].by, counts[i].name);
  return arena_printf(a, "%.0f", x);
}

const char *show_percent(arena *a, double share) {
  if (!isfinite(share)) return SHOW_DASH;
  return arena_printf(a, "%.1f %%", 100 * share);
}

show_unit show_bytes_unit(double most) {
  most = fabs(most);
  return most >= 0.99995 * GIB   ? (show_unit){GIB, "GiB"}
         : most >= 0.99995 * MIB ? (show_unit){MIB, "MiB"}
                                 : (show_unit){KIB, "KiB"};
}

show_unit show_seconds_unit(double most) {
  return most >= 0.9995   ? (show_unit){1, "s"}
         : most >= 0.9e-3 ? (show_unit){1e-3, "ms"}
                          : (show_unit){1e-6, "\xc2\xb5s"};
}

// ---- choices ------------------------------------------------------------------------------------

int64_t plan_batch_ranks(const plan_choice *c) { return c->size[PLAN_DATA] * c->size[PLAN_EXPERT]; }

int64_t plan_stage_layers(const plan_stage *s) {
  return s->layers ? s->layers : s->last_layer - s->first_layer + 1;
}

int64_t plan_choice_devices(const plan_choice *c) {
  int64_t n = 1;
  for (int x = 0; x < PLAN_AXES; x++) n *= c->size[x];
  return n;
}

// The widest group that may share a state.
static int64_t state_ranks(const plan_choice *c) {
  return plan_batch_ranks(c) * c->size[PLAN_ULYSSES] * c->size[PLAN_RING];
}

// Whether the state is cut over fewer ranks than hold copies of it, so that the number is news.
static bool own_group(const plan_choice *c) {
  return c->zero && c->zero_group > 1 && c->zero_group != state_ranks(c);
}

static const char *zero_text(arena *a, const plan_choice *c) {
  return own_group(c) ? arena_printf(a, "zero %d over %" PRId64, c->zero, c->zero_group)
                      : arena_printf(a, "zero %d", c->zero);
}

// "optimizer and gradients on the host", or NULL when all is on the device.
static const char *homes_text(arena *a, const plan_choice *c) {
  sb s = {.arena = a};
  for (int h = PLAN_HOST; h < PLAN_HOMES; h++) {
    int n = 0;
    for (int k = 0; k < PLAN_CLASSES; k++) {
      if ((int)c->home[k] != h) continue;
      if (!n++ && s.n) sb_puts(&s, ", ");
      sb_printf(&s, "%s%s", n > 1 ? " + " : "", classes[k]);
    }
    if (n) sb_printf(&s, " on %s", homes[h]);
  }
  return s.n ? sb_str(&s) : NULL;
}

const char *plan_recompute_words(arena *a, const plan_choice *c) {
  return c->also ? arena_printf(a, "%s+%s", recomputes[c->recompute], recomputes[c->also])
                 : recomputes[c->recompute];
}

static const char *order_text(pipe_kind k) {
  switch (k) {
    case PIPE_ONE_F_ONE_B: return "1F1B";
    case PIPE_INTERLEAVED: return "interleaved 1F1B";
    case PIPE_GPIPE: return "all forwards first";
    case PIPE_ZERO_BUBBLE: return "zero-bubble order";
  }
  IR_BUG("no pipeline order %d", (int)k);
}

static void part(sb *s, const char *between, const char *text) {
  sb_printf(s, "%s%s", s->n ? between : "", text);
}

const char *plan_choice_words(arena *a, const plan_choice *c, const char *times_mark,
                              const char *comma) {
  sb s = {.arena = a};
  for (int i = 0; i < PLAN_AXES; i++) {
    plan_axis x = c->order[i];
    if (c->size[x] > 1) part(&s, times_mark, arena_printf(a, "%s %" PRId64, axes[x], c->size[x]));
  }
  if (!s.n) sb_puts(&s, "one device");
  if (c->micro_batch > 1) part(&s, comma, arena_printf(a, "micro-batch %" PRId64, c->micro_batch));
  if (c->interleave > 1)
    part(&s, comma, arena_printf(a, "interleave %" PRId64, c->interleave));
  else if (c->size[PLAN_PIPELINE] > 1 && c->pipe != PIPE_ONE_F_ONE_B)
    part(&s, comma, order_text(c->pipe));
  if (state_ranks(c) > 1 || c->zero) part(&s, comma, zero_text(a, c));
  part(&s, comma, arena_printf(a, "recompute %s", plan_recompute_words(a, c)));
  const char *away = homes_text(a, c);
  if (away) part(&s, comma, away);
  return sb_str(&s);
}

const char *plan_choice_text(arena *a, const plan_choice *c) {
  return plan_choice_words(a, c, " x ", ", ");
}

const char *plan_choice_differs(arena *a, const plan_choice *base, const plan_choice *c) {
  sb s = {.arena = a};
  bool mesh = false, only_data = c->size[PLAN_DATA] == plan_choice_devices(c);
  for (int i = 0; i < PLAN_AXES; i++) {
    plan_axis x = c->order[i];
    if (c->size[x] == base->size[x]) continue;
    mesh = true;
    // Sizes multiply to the devices: when others say it, what data has is no news.
    if (x != PLAN_DATA && !only_data)
      part(&s, ", ", arena_printf(a, "%s %" PRId64, axes[x], c->size[x]));
  }
  if (mesh && !s.n) part(&s, ", ", arena_printf(a, "data %" PRId64, c->size[PLAN_DATA]));
  if (!mesh && memcmp(c->order, base->order, sizeof c->order)) {
    sb order = {.arena = a};
    for (int i = 0; i < PLAN_AXES; i++)
      if (c->size[c->order[i]] > 1) part(&order, " > ", axes[c->order[i]]);
    sb before = {.arena = a};
    for (int i = 0; i < PLAN_AXES; i++)
      if (base->size[base->order[i]] > 1) part(&before, " > ", axes[base->order[i]]);
    if (!str_eq(sb_str(&order), sb_str(&before)))
      part(&s, ", ", arena_printf(a, "order %s", sb_str(&order)));
  }
  if (c->micro_batch != base->micro_batch)
    part(&s, ", ", arena_printf(a, "micro-batch %" PRId64, c->micro_batch));
  if (c->interleave != base->interleave && c->size[PLAN_PIPELINE] > 1)
    part(&s, ", ", arena_printf(a, "interleave %" PRId64, c->interleave));
  else if (c->pipe != base->pipe && c->size[PLAN_PIPELINE] > 1)
    part(&s, ", ", order_text(c->pipe));
  if (c->zero != base->zero || own_group(c) != own_group(base) ||
      (own_group(c) && c->zero_group != base->zero_group))
    part(&s, ", ", zero_text(a, c));
  if (c->recompute != base->recompute || c->also != base->also)
    part(&s, ", ", arena_printf(a, "recompute %s", plan_recompute_words(a, c)));
  if (memcmp(c->home, base->home, sizeof c->home)) {
    const char *away = homes_text(a, c);
    part(&s, ", ", away ? away : "all on the device");
  }
  return s.n ? sb_str(&s) : "the same choice";
}

bool plan_choice_equal(const plan_choice *x, const plan_choice *y) {
  return !memcmp(x->size, y->size, sizeof x->size) &&
         !memcmp(x->order, y->order, sizeof x->order) && x->micro_batch == y->micro_batch &&
         x->pipe == y->pipe && x->interleave == y->interleave && x->zero == y->zero &&
         x->zero_group == y->zero_group && x->recompute == y->recompute && x->also == y->also &&
         !memcmp(x->home, y->home, sizeof x->home);
}

// ---- flags --------------------------------------------------------------------------------------

static const char *offload_value(arena *a, const plan_choice *c) {
  sb s = {.arena = a};
  for (int k = 0; k < PLAN_CLASSES; k++)
    if (c->home[k] != PLAN_DEVICE)
      part(&s, "+", arena_printf(a, "%s:%s", classes[k], homes[c->home[k]]));
  return s.n ? sb_str(&s) : "none";
}

static const char *zero_value(arena *a, const plan_choice *c) {
  return own_group(c) ? arena_printf(a, "zero=%d:%" PRId64, c->zero, c->zero_group)
                      : arena_printf(a, "zero=%d", c->zero);
}

const char *plan_choice_pins(arena *a, const plan_choice *base, const plan_choice *c) {
  sb s = {.arena = a};
  for (int x = 0; x < PLAN_AXES; x++)
    if (c->size[x] != base->size[x])
      part(&s, ",", arena_printf(a, "%s=%" PRId64, axes[x], c->size[x]));
  if (c->micro_batch != base->micro_batch)
    part(&s, ",", arena_printf(a, "micro_batch=%" PRId64, c->micro_batch));
  if (c->interleave != base->interleave)
    part(&s, ",", arena_printf(a, "interleave=%" PRId64, c->interleave));
  if (c->context_first != base->context_first)
    part(&s, ",", c->context_first ? "placement=context_first" : "placement=head_first");
  if (c->zero != base->zero || own_group(c) != own_group(base) ||
      (own_group(c) && c->zero_group != base->zero_group))
    part(&s, ",", zero_value(a, c));
  if (c->recompute != base->recompute || c->also != base->also)
    part(&s, ",", arena_printf(a, "recompute=%s", plan_recompute_words(a, c)));
  if (memcmp(c->home, base->home, sizeof c->home))
    part(&s, ",", arena_printf(a, "offload=%s", offload_value(a, c)));
  return sb_str(&s);
}

const char *plan_choice_flags(arena *a, const plan_choice *c) {
  sb s = {.arena = a};
  for (int x = 0; x < PLAN_AXES; x++)  // those left out are 1: the sizes multiply to the devices
    if (c->size[x] > 1) part(&s, ",", arena_printf(a, "%s=%" PRId64, axes[x], c->size[x]));
  part(&s, ",", arena_printf(a, "micro_batch=%" PRId64, c->micro_batch));
  if (c->size[PLAN_PIPELINE] > 1)
    part(&s, ",", arena_printf(a, "interleave=%" PRId64, c->interleave));
  if (c->context_first) part(&s, ",", "placement=context_first");
  if (state_ranks(c) > 1 || c->zero) part(&s, ",", zero_value(a, c));
  part(&s, ",", arena_printf(a, "recompute=%s", plan_recompute_words(a, c)));
  if (c->whole_stream) part(&s, ",", "sequence_parallel=false");
  part(&s, ",", arena_printf(a, "offload=%s", offload_value(a, c)));
  return arena_printf(a, "--pin %s", sb_str(&s));
}

// ---- clusters -----------------------------------------------------------------------------------

const char *plan_cluster_words(arena *a, const cl_cluster *c, const char *times_mark) {
  const cl_named *named;
  int64_t nodes;
  int n = cl_census(a, c, &named, &nodes);
  sb s = {.arena = a};
  for (int i = 0; i < n; i++)
    sb_printf(&s, "%s%s %s %s", i ? " + " : "", show_whole(a, named[i].count), times_mark,
              show_clean(a, named[i].device->name));
  if (nodes > 1) sb_printf(&s, " (%s nodes)", show_whole(a, nodes));
  return sb_str(&s);
}

const char *show_bits(arena *a, double speed) {
  return arena_printf(a, "%.3g Gbit/s", 8e-9 * speed);
}

const char *plan_places_words(arena *a, const plan_candidate *c) {
  if (!c->nstages || !c->stage[0].device) return "";
  sb s = {.arena = a};
  for (int i = 0, end; i < c->nstages; i = end) {
    const plan_stage *x = &c->stage[i];
    end = i + 1;
    while (end < c->nstages && str_eq(c->stage[end].group, x->group) &&
           str_eq(c->stage[end].device, x->device))
      end++;
    sb_printf(&s, "%s%d", i ? "; " : end > 1 ? "stages " : "stage ", i);
    if (end - i > 1) sb_printf(&s, "-%d", end - 1);
    sb_printf(&s, " on %s (%s)", show_clean(a, x->group), show_clean(a, x->device));
  }
  const char *sep = ". Spans unlike networks: ";
  for (int i = 0; i < PLAN_AXES; i++)
    if (c->spans[i]) {
      sb_printf(&s, "%s%s", sep, axes[i]);
      sep = ", ";
    }
  return sb_str(&s);
}

const char *plan_crossing_words(arena *a, const plan_crossing *x) {
  sb s = {.arena = a};
  sb_printf(&s, "%s joins unlike networks at %s: the best plan that reduces across it takes %s, ",
            show_clean(a, x->level), show_bits(a, x->speed_now), show_seconds(a, x->across_s));
  sb_printf(&s, "the best that does not %s; ", show_seconds(a, x->inside_s));
  if (x->speed > 0)
    sb_printf(&s, "%s %s a reduction across is better", x->across ? "down to" : "from",
              show_bits(a, x->speed));
  else if (x->across)
    sb_puts(&s, "at a thousandth of the speed too");
  else
    sb_printf(&s, "so it is up to %s, the most that is of use", show_bits(a, x->most));
  return sb_str(&s);
}

// ---- what a candidate says ----------------------------------------------------------------------

bool plan_takes_time(const plan_candidate *c, plan_time t) {
  return c->time[t] > 1e-12 * c->step_s || (t != PLAN_T_BUBBLE && c->busy[t] > 0);
}

double plan_hidden(const plan_candidate *c, plan_time t) {
  return t == PLAN_T_BUBBLE || c->busy[t] <= c->time[t] ? 0 : c->busy[t] - c->time[t];
}

// ORDER AXES. The class of time that an axis' traffic is counted in.
static const plan_time time_of[] = {PLAN_T_DATA,     PLAN_T_PIPELINE, PLAN_T_TENSOR,
                                    PLAN_T_SEQUENCE, PLAN_T_SEQUENCE, PLAN_T_EXPERT};
NAMES(time_of, PLAN_AXES);

int64_t plan_sent(const plan_candidate *c, plan_time t, double sent[2]) {
  int64_t calls = 0;
  sent[0] = sent[1] = 0;
  for (int x = 0; x < PLAN_AXES; x++)
    for (int k = 0; k < CL_COLLECTIVES && time_of[x] == t; k++) {
      for (int i = 0; i < 2; i++) sent[i] += c->bytes.bytes[x][k][i];
      calls += c->bytes.calls[x][k];
    }
  return calls;
}

plan_time plan_slowest(const plan_candidate *c, plan_time *next) {
  plan_time first = PLAN_T_COMPUTE, second = PLAN_TIMES;
  for (int t = 0; t < PLAN_TIMES; t++)
    if (c->time[t] > c->time[first]) first = (plan_time)t;
  for (int t = 0; t < PLAN_TIMES; t++)
    if (t != (int)first && c->time[t] > 0 && (second == PLAN_TIMES || c->time[t] > c->time[second]))
      second = (plan_time)t;
  if (next) *next = second;
  return first;
}

bool plan_is_shown(const plan_result *r, const plan_choice *c) {
  for (int i = 0; i < r->candidates.n; i++)
    if (plan_choice_equal(&r->candidates.at[i]->choice, c)) return true;
  return !r->best && r->closest && plan_choice_equal(&r->closest->choice, c);
}

const char *plan_illegal_why(arena *a, const plan_result *r) {
  bool one = !r->best && !r->closest && r->search.optimal && r->rejected.n == 1;
  return one ? show_clean(a, r->rejected.at[0].reason) : NULL;
}

int plan_highest(const plan_candidate *c) {
  int best = 0;
  for (int i = 1; i < c->nstages; i++)
    if (c->stage[i].peak > c->stage[best].peak) best = i;
  return best;
}

static bool same_shown(double x, double y, double by) {
  return llround(10 * x / by) == llround(10 * y / by);
}

static bool same_row(const plan_stage *x, const plan_stage *y, show_unit u) {
  if (!str_eq(x->extra, y->extra)) return false;
  if (!str_eq(x->device, y->device) || !str_eq(x->group, y->group)) return false;
  if (x->last_layer - x->first_layer != y->last_layer - y->first_layer) return false;
  for (int m = 0; m < PLAN_MEMORIES; m++)
    if (!same_shown((double)x->memory[m], (double)y->memory[m], u.by)) return false;
  return same_shown((double)x->peak, (double)y->peak, u.by) &&
         same_shown((double)x->host, (double)y->host, u.by) &&
         same_shown((double)x->disk, (double)y->disk, u.by);
}

int plan_group_stages(const plan_candidate *c, show_unit unit, plan_rows *out) {
  int n = 0;
  for (int i = 0; i < c->nstages; i++) {
    if (n && same_row(&c->stage[out[n - 1].first], &c->stage[i], unit))
      out[n - 1].last = i;
    else
      out[n++] = (plan_rows){i, i};
  }
  return n;
}

const char *plan_layers_words(arena *a, const plan_candidate *c, plan_rows g) {
  const plan_stage *first = &c->stage[g.first], *last = &c->stage[g.last];
  const char *extra = first->extra ? show_cut(a, show_clean(a, first->extra), 16) : NULL;
  if (first->first_layer > first->last_layer) return extra ? extra : "none";
  sb s = {.arena = a};
  sb_printf(&s, "%" PRId64, first->first_layer);
  if (last->last_layer > first->first_layer) sb_printf(&s, "-%" PRId64, last->last_layer);
  if (plan_stage_layers(first) < first->last_layer - first->first_layer + 1) {  // chunks
    s.n = 0;
    sb_printf(&s, "%" PRId64 " of %" PRId64 "-%" PRId64, first->layers, first->first_layer,
              last->last_layer);
  }
  if (extra) sb_printf(&s, "+%s", extra);
  return sb_str(&s);
}
