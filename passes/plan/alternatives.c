// What is shown beside the best plan: alternatives with the reason they lost, and, when nothing
// fits, changes that would. Each is a search under other pins.
#include <string.h>

#include "passes/plan/crossing.h"
#include "passes/plan/search.h"
#include "passes/plan/show.h"

// ---- alternatives -------------------------------------------------------------------------------

// Where the seconds go that a plan takes more than the best one.
static const char *why_slower(arena *a, const plan_candidate *x, const plan_candidate *best) {
  int most = 0;
  for (int t = 1; t < PLAN_TIMES; t++)
    if (x->time[t] - best->time[t] > x->time[most] - best->time[most]) most = t;
  return arena_printf(a, "slower by %.1f %%: %s %s instead of %s",
                      100 * (x->step_s / best->step_s - 1), plan_time_name((plan_time)most),
                      show_seconds(a, x->time[most]), show_seconds(a, best->time[most]));
}

const char *plan_why_over(arena *a, const plan_candidate *x) {
  int first = 0, second = -1;
  for (int i = 1; i < PLAN_MEMORIES; i++)
    if (x->memory[i] > x->memory[first]) first = i;
  for (int i = 0; i < PLAN_MEMORIES; i++)
    if (i != first && (second < 0 || x->memory[i] > x->memory[second])) second = i;
  return arena_printf(a, "does not fit by %s (%s %s, %s %s)", show_bytes(a, (double)x->over),
                      plan_memory_name((plan_memory)first), show_bytes(a, (double)x->memory[first]),
                      plan_memory_name((plan_memory)second),
                      show_bytes(a, (double)x->memory[second]));
}

static bool same_choice(const plan_choice *a, const plan_choice *b) {
  for (int i = 0; i < PLAN_AXES; i++)
    if (a->size[i] != b->size[i]) return false;
  return a->micro_batch == b->micro_batch && a->interleave == b->interleave && a->zero == b->zero &&
         a->zero_group == b->zero_group && a->recompute == b->recompute && a->also == b->also &&
         a->context_first == b->context_first && a->pipe == b->pipe &&
         !memcmp(a->home, b->home, sizeof a->home);
}

// The best plan under other pins, as an alternative to the best of all.
static void reject(plan_result *r, const plan_space *space, const plan_pins *pins,
                   laid_maker *layouts) {
  plan_space s = *space;
  s.pins = *pins;
  // An alternative is shown, not proved: the best one near what is known will do, and steps from
  // plan to plan that gain less than 2 % are not taken.
  plan_choice *near = arena_new(r->arena, plan_choice, r->rejected.n + 1);
  near[0] = r->best->choice;
  for (int i = 0; i < r->rejected.n; i++) near[i + 1] = r->rejected.at[i].choice;
  plan_found f = plan_find(&s, layouts, 0.02, near, r->rejected.n + 1);
  if (!f.any) return;
  for (int i = 0; i < r->rejected.n; i++)
    if (same_choice(&r->rejected.at[i].choice, &f.c)) return;
  if (same_choice(&r->best->choice, &f.c)) return;
  plan_candidate *x = plan_work_out(&s, layouts, &f.c);
  plan_rejected j = {.choice = f.c, .step_s = x->step_s, .peak = x->peak, .over = x->over};
  j.code = x->over ? "does-not-fit" : "slower";
  j.reason = x->over ? plan_why_over(r->arena, x) : why_slower(r->arena, x, r->best);
  vec_push(r->arena, &r->rejected, j);
}

// What a person would ask about: each axis halved, doubled, left out; other stages of ZeRO, other
// recomputation, the optimizer elsewhere, all devices data parallel.
void plan_add_alternatives(plan_result *r, const plan_space *s, const plan_pins *pins,
                           laid_maker *layouts) {
  const plan_choice *c = &r->best->choice;
  for (int x = 0; x < PLAN_AXES; x++) {
    if (pins->size[x] || x == PLAN_DATA || x == PLAN_EXPERT) continue;
    int64_t other[3] = {c->size[x] / 2, c->size[x] * 2, 1};
    for (int i = 0; i < 3; i++) {
      if (other[i] < 1 || other[i] == c->size[x] || (i == 2 && other[i] == c->size[x] / 2))
        continue;
      plan_pins p = *pins;
      p.size[x] = other[i];
      reject(r, s, &p, layouts);
    }
  }
  for (int i = 1; i < 4; i++)  // from the best one's on: each is near the one before
    for (int z = c->zero - i; z <= c->zero + i; z += 2 * i) {
      if (pins->zero >= 0 || z < 0 || z > 3) continue;
      plan_pins p = *pins;
      p.zero = z;
      reject(r, s, &p, layouts);
    }
  for (int i = 0; i < PLAN_RECOMPUTES; i++)
    if (pins->recompute < 0 && i != (int)c->recompute) {
      plan_pins p = *pins;
      p.recompute = i;
      p.also = PLAN_KEEP;
      reject(r, s, &p, layouts);
    }
  plan_pins all = *pins;
  bool free = true;
  for (int x = 0; x < PLAN_AXES; x++) {
    free &= pins->size[x] == 0;
    all.size[x] = x == PLAN_DATA ? s->cluster->devices : 1;
  }
  if (free) reject(r, s, &all, layouts);
  for (int i = 1; i < r->rejected.n; i++)  // fastest first, those that do not fit last
    for (int k = i; k > 0; k--) {
      plan_rejected *a = &r->rejected.at[k - 1], *b = &r->rejected.at[k], t = *a;
      bool swap = (a->over > 0) != (b->over > 0) ? a->over > 0 : a->step_s > b->step_s;
      if (!swap) break;
      *a = *b;
      *b = t;
    }
}

void plan_add_crossing(plan_result *r, plan_space *s, const plan_pins *pins, double seconds) {
  bool late;
  r->crossing = plan_find_crossing(s, pins, r->best, seconds, &late);
  if (!late) return;
  const char *note = arena_printf(
      r->arena,
      "%s s were not enough to find from which speed of the link between unlike networks a "
      "reduction across it would be better; a longer --limit may be",
      show_short(r->arena, seconds));
  vec_push(r->arena, &r->warnings, note);
}

// Stages are cut by the seconds of their layers (stages.h), and chunks dealt evenly. What a stage
// does once a step is not in that.
void plan_note_cut(plan_result *r, const plan_pins *pins) {
  const plan_candidate *x = r->best;
  if (x->nstages == 1 || pins->nstages) return;
  double once = x->time[PLAN_T_DATA] + x->time[PLAN_T_OPTIMIZER] + x->time[PLAN_T_OFFLOAD];
  if (once < 0.01 * x->step_s) return;
  const char *note = arena_printf(
      r->arena,
      "stages are cut by the seconds of their layers; what they do once a step, %.0f %% of it, is "
      "not in that, so another cut may be faster: --pin stages=[...] tries one",
      100 * once / x->step_s);
  vec_push(r->arena, &r->warnings, note);
}

// ---- fixes --------------------------------------------------------------------------------------

static void try_fix(plan_result *r, const plan_space *space, const plan_pins *pins,
                    laid_maker *layouts, const char *change, const char *flags) {
  plan_space s = *space;
  s.pins = *pins;
  plan_found w = plan_find(&s, layouts, 0.05, NULL, 0);
  if (!w.fits) return;
  plan_fix f = {change, flags, w.peak, w.step, w.step / s.job->tokens};
  int at = r->fixes.n;
  vec_push(r->arena, &r->fixes, f);
  for (; at > 0 && r->fixes.at[at - 1].per_token > f.per_token; at--)
    r->fixes.at[at] = r->fixes.at[at - 1];
  r->fixes.at[at] = f;
}

// Classes that are to be on the device, each by itself on the host; then all of them; where that is
// not enough, wherever they fit.
static void try_homes(plan_result *r, const plan_space *s, const plan_pins *pins,
                      laid_maker *layouts) {
  static const char *const change[PLAN_CLASSES] = {
      "keep the weights on the host", "keep sums of gradients on the host",
      "keep the optimizer's state on the host", "keep activations on the host"};
  sb all = {.arena = r->arena};
  plan_pins away = *pins, anywhere = *pins;
  int before = r->fixes.n, pinned = 0;
  for (int k = 0; k < PLAN_CLASSES; k++) {
    pinned += pins->home[k] >= 0;
    anywhere.home[k] = -1;
    if (pins->home[k] != PLAN_DEVICE) continue;
    plan_pins p = *pins;
    p.home[k] = away.home[k] = PLAN_HOST;
    const char *flag = arena_printf(r->arena, "%s:host", plan_class_name((plan_class)k));
    sb_printf(&all, "%s%s", all.n ? "+" : "", flag);
    // The pin says all homes: what is not named is on the device.
    bool others = false;
    for (int j = 0; j < PLAN_CLASSES; j++) others |= j != k && pins->home[j] != PLAN_DEVICE;
    if (!others)
      try_fix(r, s, &p, layouts, change[k], arena_printf(r->arena, "--pin offload=%s", flag));
  }
  int n = 0;
  for (int k = 0; k < PLAN_CLASSES; k++) n += pins->home[k] == PLAN_DEVICE;
  if (n == PLAN_CLASSES)
    try_fix(r, s, &away, layouts, "keep all of them on the host",
            arena_printf(r->arena, "--pin offload=%s", sb_str(&all)));
  if (pinned && r->fixes.n == before)
    try_fix(r, s, &anywhere, layouts, "keep what does not fit on the host or the disk",
            "--pin offload=auto");
}

// A smaller batch, the largest by halves that fits: fewer micro-batches are in flight. (One device
// has one in flight anyway.)
static void try_batch(plan_result *r, const plan_space *s, const plan_pins *pins,
                      laid_maker *layouts) {
  if (s->cluster->devices == 1) return;
  for (int64_t batch = s->job->batch; batch % 2 == 0;) {
    batch /= 2;
    plan_job less = *s->job;
    less.tokens *= (double)batch / (double)less.batch;
    less.batch = batch;
    plan_space smaller = *s;
    smaller.job = &less;
    int before = r->fixes.n;
    try_fix(r, &smaller, pins, layouts, arena_printf(r->arena, "a batch of %lld", (long long)batch),
            arena_printf(r->arena, "--set batch=%lld", (long long)batch));
    if (r->fixes.n > before) return;
  }
}

// Shorter sequences: the longest by halves that fit.
static void try_shorter(plan_result *r, const plan_space *s, const plan_pins *pins,
                        const plan_options *options) {
  // One device's memory is that of its executable, and there is none of another length.
  bool may = options->shorter && s->cluster->devices > 1;
  for (int64_t divide = 2; may && divide <= 64; divide *= 2) {
    const char *flags;
    const plan_job *job = options->shorter(options->shorter_ctx, divide, &flags);
    if (!job) return;
    plan_space other = *s;
    map blocks = {.arena = r->arena}, bounds = {.arena = r->arena};
    other.job = job;
    other.blocks = &blocks;
    other.bounds = &bounds;
    plan_note_saved(&other);
    int before = r->fixes.n;
    const char *change = divide == 2 ? "sequences half as long"
                                     : arena_printf(r->arena, "sequences of 1/%lld of their length",
                                                    (long long)divide);
    try_fix(r, &other, pins, options->layouts, change, flags);
    if (r->fixes.n > before) return;
  }
}

// Every pin by itself let go, classes of bytes away, a smaller batch, more devices of the same
// kind.
void plan_add_fixes(plan_result *r, const plan_space *s, const plan_pins *pins,
                    const plan_options *options) {
  const cl_cluster *whole = options->whole;
  laid_maker *layouts = options->layouts;
  plan_pins p;
  if (pins->recompute >= 0) {
    p = *pins;
    p.recompute = p.also = -1;
    try_fix(r, s, &p, layouts, "compute more of it again in backward", "--pin recompute=auto");
  }
  try_homes(r, s, pins, layouts);
  try_batch(r, s, pins, layouts);
  try_shorter(r, s, pins, options);
  if (pins->zero >= 0) {
    p = *pins;
    p.zero = -1;
    try_fix(r, s, &p, layouts, "cut states over data ranks", "--pin zero=auto");
  }
  if (pins->micro_batch) {
    p = *pins;
    p.micro_batch = 0;
    try_fix(r, s, &p, layouts, "another micro-batch", "--pin micro_batch=auto");
  }
  if (pins->interleave) {
    p = *pins;
    p.interleave = 0;
    try_fix(r, s, &p, layouts, "another number of chunks", "--pin interleave=auto");
  }
  if (pins->whole_stream) {
    p = *pins;
    p.whole_stream = false;
    try_fix(r, s, &p, layouts, "cut what goes from layer to layer", "--pin sequence_parallel=auto");
  }
  if (pins->nstages) {
    p = *pins;
    p.nstages = 0;
    try_fix(r, s, &p, layouts, "stages cut otherwise", "--pin stages=auto");
  }
  for (int x = 0; x < PLAN_AXES; x++) {
    if (!pins->size[x]) continue;
    p = *pins;
    p.size[x] = 0;
    bool cut = x == PLAN_PIPELINE && p.nstages;  // they are those of this size
    if (cut) p.nstages = 0;
    const char *name = plan_axis_name((plan_axis)x);
    try_fix(r, s, &p, layouts, arena_printf(r->arena, "another size of `%s`", name),
            arena_printf(r->arena, "--pin %s=auto%s", name, cut ? ",stages=auto" : ""));
  }
  for (int64_t n = 2; whole && n <= 64; n *= 2) {
    const char *why;
    const cl_cluster *more = cl_part(r->arena, whole, s->cluster->devices * n, &why);
    if (!more) break;
    plan_space bigger = *s;
    bigger.cluster = more;
    map blocks = {.arena = r->arena}, bounds = {.arena = r->arena};
    bigger.blocks = &blocks;
    bigger.bounds = &bounds;
    int before = r->fixes.n;
    try_fix(r, &bigger, pins, layouts,
            arena_printf(r->arena, "%lld devices", (long long)more->devices),
            arena_printf(r->arena, "--cluster %s:%lld", whole->name, (long long)more->devices));
    if (r->fixes.n > before) break;
  }
  if (r->fixes.n > 3) r->fixes.n = 3;
}
