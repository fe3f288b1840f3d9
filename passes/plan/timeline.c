// When each phase of a step runs: see timeline.h.
//
// Stages are visited round after round, each going on with its list as far as what it waits for is
// known; an order that waits for itself stops the rounds, which is a bug of whoever made it.
#include "passes/plan/timeline.h"

#include "ir/ir.h"

#define MOST_PHASES (4 << 20)

// What is known of one part's work on one micro-batch; negative: not yet.
typedef struct done {
  double forward, backward, arrived, arrived_back;
} done;

typedef struct run {
  const pipeline *p;
  timeline *t;
  done *of;                            // [part * micro + m]
  double *free_at, *link, *link_back;  // by stage
} run;

static done *done_of(run *r, int64_t part, int64_t micro) {
  return &r->of[part * r->p->micro + micro];
}

static double later(double x, double y) { return x > y ? x : y; }

// Sends what ended at `from` over a link; when it arrives. Parts of one stage need no message.
static double send(const pipeline *p, double *link, double from, double seconds) {
  if (p->stages == 1) return from;
  *link = later(*link, from) + seconds;
  return *link;
}

// Does one phase when what it waits for is known.
static bool step(run *r, int stage, pipe_phase phase, int chunk, int64_t micro) {
  const pipeline *p = r->p;
  int64_t part = (int64_t)chunk * p->stages + stage, last = (int64_t)p->stages * p->chunks - 1;
  const pipe_chunk *c = &p->chunk[stage * p->chunks + chunk];
  done *d = done_of(r, part, micro);
  double ready = 0, seconds = 0;
  switch (phase) {
    case PIPE_F:
      ready = part ? d->arrived : 0;
      seconds = c->forward;
      break;
    case PIPE_B:
      ready = d->forward < 0 ? -1 : part < last ? d->arrived_back : d->forward;
      seconds = p->kind == PIPE_ZERO_BUBBLE ? c->backward - c->weight : c->backward;
      break;
    case PIPE_W:
      ready = d->backward;
      seconds = c->weight;
      break;
  }
  if (ready < 0) return false;
  timeline_bar bar = {
      .start = later(ready, r->free_at[stage]), .phase = phase, .chunk = chunk, .micro = micro};
  bar.end = r->free_at[stage] = bar.start + seconds;
  r->t->at[stage][r->t->n[stage]++] = bar;
  if (phase == PIPE_F) {
    d->forward = bar.end;
    if (part < last)
      done_of(r, part + 1, micro)->arrived = send(p, &r->link[stage], bar.end, c->send);
  } else if (phase == PIPE_B) {
    d->backward = bar.end;
    if (part)
      done_of(r, part - 1, micro)->arrived_back =
          send(p, &r->link_back[stage], bar.end, c->send_back);
  }
  return true;
}

timeline *timeline_of(arena *a, const pipeline *p) {
  if (p->stages < 1 || p->chunks < 1 || p->micro < 1 || !p->chunk) return NULL;
  int64_t parts = (int64_t)p->stages * p->chunks;
  if (p->micro > MOST_PHASES / 3 / parts) return NULL;
  timeline *t = arena_new(a, timeline, 1);
  *t = (timeline){.stages = p->stages,
                  .at = arena_new(a, timeline_bar *, p->stages),
                  .n = arena_new(a, int64_t, p->stages)};
  run r = {.p = p,
           .t = t,
           .of = arena_new(a, done, parts * p->micro),
           .free_at = arena_new(a, double, p->stages),
           .link = arena_new(a, double, p->stages),
           .link_back = arena_new(a, double, p->stages)};
  for (int64_t i = 0; i < parts * p->micro; i++) r.of[i] = (done){-1, -1, -1, -1};
  pipe_list *list = pipe_orders(a, p);
  int64_t *run_at = arena_new(a, int64_t, p->stages), *within = arena_new(a, int64_t, p->stages);
  for (int i = 0; i < p->stages; i++) {
    int64_t phases = 0;
    for (int64_t k = 0; k < list[i].n; k++) phases += list[i].at[k].count;
    t->at[i] = arena_new(a, timeline_bar, phases);
    r.free_at[i] = p->before ? p->before[i] : 0;
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (int i = 0; i < p->stages; i++) {
      while (run_at[i] < list[i].n) {
        const pipe_run *k = &list[i].at[run_at[i]];
        if (!step(&r, i, k->phase, k->chunk, k->micro + within[i])) break;
        moved = true;
        if (++within[i] == k->count) run_at[i]++, within[i] = 0;
      }
    }
  }
  for (int i = 0; i < p->stages; i++) {
    if (run_at[i] < list[i].n) IR_BUG("stage %d waits for what never comes", i);
    t->end = later(t->end, r.free_at[i] + (p->after ? p->after[i] : 0));
  }
  return t;
}

double timeline_busy(const timeline *t) {
  double busy = 0;
  for (int i = 0; i < t->stages; i++)
    for (int64_t k = 0; k < t->n[i]; k++) busy += t->at[i][k].end - t->at[i][k].start;
  return t->end > 0 ? busy / (t->end * t->stages) : 0;
}
