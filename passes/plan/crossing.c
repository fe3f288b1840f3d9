#include "passes/plan/crossing.h"

#include <math.h>

#include "passes/plan/stage_kind.h"
#include "runtime/base/clock.h"

// The best plan without a reduction across, and with one.
enum { INSIDE, ACROSS };
typedef struct both {
  bool any[2];
  plan_choice c[2];
  double step[2];
} both;

typedef struct finder {
  const plan_space *s;
  const plan_pins *pins;
  const cl_level *level;
  double deadline;
  bool late;
} finder;

// The space with another speed of the link. Blocks are shared: they are kept by what they depend
// on.
static plan_space space_at(const finder *f, double speed) {
  plan_space s = *f->s;
  s.cluster = cl_with_speed(s.a, s.cluster, f->level, speed);
  return s;
}

static void search_one(finder *f, plan_space *s, int sort, both *out) {
  plan_pins pins = *f->pins;
  pins.spans = sort;
  double left = f->deadline - clock_s();
  bool stopped = false;
  if (left > 0)
    out->any[sort] = plan_best_of(s, &pins, left, &out->c[sort], &out->step[sort], &stopped);
  f->late |= left <= 0 || stopped;
}

static both search_both(finder *f, double speed) {
  both b = {0};
  plan_space s = space_at(f, speed);
  for (int sort = 0; sort < 2; sort++) search_one(f, &s, sort, &b);
  return b;
}

// How much longer the plan across takes than the one inside, at this speed.
static double longer(const finder *f, const both *b, double speed) {
  arena scratch;
  arena_init(&scratch);
  plan_space s = space_at(f, speed);
  double step[2];
  for (int sort = 0; sort < 2; sort++) {
    const char *code, *why;
    const plan_choice *c = &b->c[sort];
    const plan_candidate *x =
        plan_evaluate(&scratch, &s, c, plan_block_of(&s, c), INFINITY, &code, &why);
    IR_CHECK(x);
    step[sort] = x->step_s;
  }
  arena_free(&scratch);
  return step[ACROSS] - step[INSIDE];
}

// Where two plans are equally fast, between a speed at which the one inside is faster and one at
// which it is not; where that is not so, the middle.
static double meet(const finder *f, const both *b, double low, double high) {
  if (longer(f, b, low) <= 0 || longer(f, b, high) > 0) return sqrt(low * high);
  while (high > low * (1 + 1e-7)) {
    double middle = sqrt(low * high);
    if (longer(f, b, middle) > 0)
      low = middle;
    else
      high = middle;
  }
  return high;
}

// Both sorts are searched for where the best known ones meet, until no better ones turn up.
static double between(finder *f, both b, double low, double high) {
  for (int round = 0; round < 20 && high > low * 1.0001 && !f->late; round++) {
    double at = meet(f, &b, low, high);
    both better = search_both(f, at);
    if (!better.any[INSIDE] || !better.any[ACROSS]) break;
    double known = longer(f, &b, at), more = better.step[ACROSS] - better.step[INSIDE];
    b = better;
    if (fabs(known) < 1e-5 * b.step[INSIDE] && fabs(more) < 1e-5 * b.step[INSIDE]) return at;
    if (more > 0)
      low = at;
    else
      high = at;
  }
  return high;
}

plan_crossing *plan_find_crossing(plan_space *s, const plan_pins *pins, const plan_candidate *best,
                                  double seconds, bool *late) {
  const cl_level *level = cl_unlike_level(s->cluster);
  *late = false;
  if (!level) return NULL;
  finder f = {.s = s, .pins = pins, .level = level, .deadline = clock_s() + seconds};
  plan_crossing *x = arena_new(s->a, plan_crossing, 1);
  both here = {0};
  int sort = sk_spans(s, &best->choice) ? ACROSS : INSIDE;
  here.any[sort] = true;
  here.c[sort] = best->choice;
  here.step[sort] = best->step_s;
  search_one(&f, s, !sort, &here);
  *late = f.late;
  if (f.late || !here.any[!sort]) return NULL;
  double most = cl_member_most(level);
  *x = (plan_crossing){.level = level->name,
                       .speed_now = cl_member_speed(level),
                       .across = sort == ACROSS,
                       .inside_s = here.step[INSIDE],
                       .across_s = here.step[ACROSS],
                       .other = here.c[!sort]};
  x->most = most > 0 ? most : 1024 * x->speed_now;
  // The other end: as fast as it can be, or so slow that nothing crosses gladly.
  double end = sort == INSIDE ? x->most : x->speed_now / 1024;
  both there = here;
  if ((longer(&f, &here, end) > 0) == (sort == INSIDE)) {
    there = search_both(&f, end);
    *late = f.late;
    if (f.late) return NULL;
    bool same = !there.any[!sort] ||
                (there.any[sort] && (there.step[ACROSS] > there.step[INSIDE]) == (sort == INSIDE));
    if (same || !there.any[sort]) return x;
  }
  x->speed = sort == INSIDE ? between(&f, there, x->speed_now, end)
                            : between(&f, there, end, x->speed_now);
  *late = f.late;
  return f.late ? NULL : x;
}
