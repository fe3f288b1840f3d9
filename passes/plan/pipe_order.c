// Pipeline orders: which there are, what a stage does, what it holds.
//
// Zero bubble (ZB-H1). Forwards and backwards of the inputs follow 1f1b. The weights' gradients of
// a micro-batch may come later than its backward: stage i lets at most *depth* of them wait, does
// the oldest when there are more, and does waiting ones whenever the next forward or backward would
// leave a gap into which they fit whole. Depth i makes all stages hold the p micro-batches that
// stage 0 holds in 1f1b anyway; depth 0 makes each hold what it holds in 1f1b. What waits is done
// at the end, which on stages with time to spare can take longer than it won. So both depths are
// worked out and the faster one is taken, the deeper one in a tie.
//
// It is never slower than 1f1b: by induction over the events no forward and no backward starts
// later, as each stage has done no more before it and hears from its neighbours no later; and with
// depth 0 the weights' gradients end no later than 1f1b's whole backward does. (Gaps are filled
// only by what fits, so filling delays nothing.)
#include "passes/plan/pipe_order.h"

#include <string.h>

#include "ir/ir.h"
#include "runtime/base/vec.h"

const char *pipe_kind_name(pipe_kind k) {
  switch (k) {
    case PIPE_ONE_F_ONE_B: return "one_f_one_b";
    case PIPE_INTERLEAVED: return "interleaved";
    case PIPE_GPIPE: return "gpipe";
    case PIPE_ZERO_BUBBLE: return "zero_bubble";
  }
  IR_BUG("no pipeline order has number %d", (int)k);
}

const char *pipe_check(arena *a, const pipeline *p) {
  const char *name = pipe_kind_name(p->kind);
  if (p->stages < 1 || p->chunks < 1 || p->micro < 1)
    return arena_printf(
        a,
        "%s needs at least one stage, chunk and micro-batch: there are %d stages of "
        "%d chunks and %lld micro-batches",
        name, p->stages, p->chunks, (long long)p->micro);
  switch (p->kind) {
    case PIPE_GPIPE: return NULL;
    case PIPE_ONE_F_ONE_B:
    case PIPE_ZERO_BUBBLE:
      if (p->chunks == 1) return NULL;
      return arena_printf(a, "%s has one chunk a stage: %d are for interleaved or gpipe", name,
                          p->chunks);
    case PIPE_INTERLEAVED:
      if (p->chunks < 2)
        return arena_printf(a, "%s needs two chunks a stage or more: with one it is one_f_one_b",
                            name);
      if (p->micro % p->stages == 0) return NULL;
      return arena_printf(a,
                          "%s needs a number of micro-batches that %d stages divide: %lld is none",
                          name, p->stages, (long long)p->micro);
  }
  return NULL;
}

// ---- one scheme for 1f1b, interleaved and gpipe -------------------------------------------------

int64_t pipe_group(const pipeline *p) { return p->kind == PIPE_INTERLEAVED ? p->stages : p->micro; }

int64_t pipe_warm(const pipeline *p, int stage) {
  int64_t all = p->micro * p->chunks, behind = p->stages - 1 - stage, warm = all;
  if (p->kind == PIPE_ONE_F_ONE_B || p->kind == PIPE_ZERO_BUBBLE) warm = behind;
  if (p->kind == PIPE_INTERLEAVED) warm = 2 * behind + (int64_t)(p->chunks - 1) * p->stages;
  return warm < all ? warm : all;
}

int64_t pipe_before_back(const pipeline *p, int stage) {
  int64_t all = p->micro * p->chunks, n = pipe_warm(p, stage) + 1;
  return n < all ? n : all;
}

int64_t pipe_of_chunk(const pipeline *p, int64_t n, int chunk) {
  if (p->chunks == 1) return n;
  int64_t g = pipe_group(p), round = g * p->chunks, part = n % round - chunk * g;
  return n / round * g + (part < 0 ? 0 : part > g ? g : part);
}

static void show(pipe_cursor *c) {
  int w = c->way[0].left && c->ahead <= c->warm ? 0 : 1;
  c->phase = w == 0 ? PIPE_F : PIPE_B;
  c->chunk = w == 0 ? c->way[0].chunk : c->chunks - 1 - c->way[1].chunk;
  c->micro = c->way[w].base + c->way[w].at;
}

pipe_cursor pipe_cursor_of(const pipeline *p, int stage) {
  int64_t all = p->micro * p->chunks;
  pipe_cursor c = {.left = 2 * all,
                   .chunks = p->chunks,
                   .warm = pipe_warm(p, stage),
                   .group = pipe_group(p),
                   .way = {{.left = all}, {.left = all}}};
  show(&c);
  return c;
}

void pipe_cursor_next(pipe_cursor *c) {
  int w = c->phase == PIPE_F ? 0 : 1;
  c->ahead += w == 0 ? 1 : -1;
  c->left--;
  c->way[w].left--;
  if (++c->way[w].at == c->group) {
    c->way[w].at = 0;
    if (++c->way[w].chunk == c->chunks) {
      c->way[w].chunk = 0;
      c->way[w].base += c->group;
    }
  }
  if (c->left) show(c);
}

// ---- lists --------------------------------------------------------------------------------------

typedef VEC(pipe_run) runs;

// Appends one phase, to the last run where it goes on with it.
static void add(arena *a, runs *r, pipe_phase phase, int chunk, int64_t micro) {
  if (r->n) {
    pipe_run *last = &vec_last(r);
    if (last->phase == phase && last->chunk == chunk && last->micro + last->count == micro) {
      last->count++;
      return;
    }
  }
  vec_push(a, r, (pipe_run){phase, chunk, micro, 1});
}

static pipe_list walk(arena *a, const pipeline *p, int stage) {
  runs r = {0};
  for (pipe_cursor c = pipe_cursor_of(p, stage); c.left; pipe_cursor_next(&c))
    add(a, &r, c.phase, c.chunk, c.micro);
  return (pipe_list){r.at, r.n};
}

pipe_list *pipe_orders(arena *a, const pipeline *p) {
  pipe_list *l = arena_new(a, pipe_list, p->stages);
  if (p->kind == PIPE_ZERO_BUBBLE) {
    pipe_zero_bubble(a, p, l);
  } else {
    for (int i = 0; i < p->stages; i++) l[i] = walk(a, p, i);
  }
  return l;
}

pipe_list pipe_order_of(arena *a, const pipeline *p, int stage) {
  if (p->kind == PIPE_ZERO_BUBBLE) return pipe_orders(a, p)[stage];
  return walk(a, p, stage);
}

// ---- zero bubble --------------------------------------------------------------------------------

// What a stage has come to.
typedef struct zb_stage {
  double free;               // its compute stream
  double arrived, content;   // last forward message: it arrived; the forward that it carries ended
  double link_back;          // its link to the stage before is free
  int64_t weights, waiting;  // weights' gradients: done, and of those left how many could be
  runs order;
} zb_stage;

typedef struct zb {
  arena *arena;
  const pipeline *p;
  bool record;
  zb_stage *stage;
} zb;

static void zb_weights(zb *z, int i, int64_t n) {
  zb_stage *s = &z->stage[i];
  s->free += (double)n * z->p->chunk[i].weight;
  s->waiting -= n;
  if (z->record)
    for (int64_t k = 0; k < n; k++) add(z->arena, &s->order, PIPE_W, 0, s->weights + k);
  s->weights += n;
}

// Weights' gradients that fit whole before `until`.
static void zb_fill(zb *z, int i, double until) {
  zb_stage *s = &z->stage[i];
  double w = z->p->chunk[i].weight;
  int64_t n = 0;
  while (n < s->waiting && s->free + (double)(n + 1) * w <= until) n++;
  if (n) zb_weights(z, i, n);
}

// Time the stage waits although what is sent to it is done.
static double message_wait(double free, double content, double arrived) {
  double from = free > content ? free : content;
  return arrived > from ? arrived - from : 0;
}

// As in pipeline.c's `one_f_one_b`, wave after wave: in wave j stage i does the forward of
// micro-batch j + p-1-i and the backward of j, the last stage first.
static pipe_result zb_run(zb *z, bool deep) {
  const pipeline *p = z->p;
  int n = p->stages, critical = pipe_critical(p);
  int64_t m = p->micro;
  double exposed = 0, step = 0;
  for (int i = 0; i < n; i++) z->stage[i] = (zb_stage){.free = pipe_before(p, i)};
  for (int64_t j = 1 - n; j < m; j++) {
    double content = 0, arrived = 0;
    for (int i = n - 1; i >= 0; i--) {
      const pipe_chunk *c = &p->chunk[i];
      zb_stage *s = &z->stage[i];
      int64_t f = j + n - 1 - i;
      if (f >= 0 && f < m) {
        zb_fill(z, i, s->arrived);
        if (i == critical) exposed += message_wait(s->free, s->content, s->arrived);
        s->free = pipe_later(s->free, s->arrived) + c->forward;
        if (z->record) add(z->arena, &s->order, PIPE_F, 0, f);
        if (i + 1 < n) {
          zb_stage *next = s + 1;
          next->content = s->free;
          next->arrived = pipe_later(next->arrived, s->free) + c->send;
        }
      }
      if (j < 0) continue;
      zb_fill(z, i, arrived);
      if (i == critical) exposed += message_wait(s->free, content, arrived);
      s->free = pipe_later(s->free, arrived) + (c->backward - c->weight);
      if (z->record) add(z->arena, &s->order, PIPE_B, 0, j);
      s->waiting++;
      content = s->free;
      arrived = s->link_back = pipe_later(s->link_back, s->free) + c->send_back;
      int64_t depth = deep ? i : 0;
      if (s->waiting > depth) zb_weights(z, i, s->waiting - depth);
    }
  }
  for (int i = 0; i < n; i++) {
    zb_weights(z, i, z->stage[i].waiting);
    step = pipe_later(step, z->stage[i].free + pipe_after(p, i));
  }
  return pipe_result_of(p, step, exposed);
}

pipe_result pipe_zero_bubble(arena *a, const pipeline *p, pipe_list *orders) {
  zb z = {.arena = a, .p = p, .stage = arena_new(a, zb_stage, p->stages)};
  pipe_result deep = zb_run(&z, true), flat = zb_run(&z, false);
  bool is_deep = deep.step <= flat.step;
  if (orders) {
    z.record = true;
    zb_run(&z, is_deep);
    for (int i = 0; i < p->stages; i++)
      orders[i] = (pipe_list){z.stage[i].order.at, z.stage[i].order.n};
  }
  return is_deep ? deep : flat;
}

// ---- what a stage holds -------------------------------------------------------------------------

int64_t pipe_held(arena *scratch, const pipeline *p, int stage, pipe_phase from, pipe_phase to) {
  const pipe_list l = pipe_order_of(scratch, p, stage);
  int64_t held = 0, most = 0;
  for (int64_t r = 0; r < l.n; r++) {
    if (l.at[r].phase == from) held += l.at[r].count;
    if (l.at[r].phase == to) held -= l.at[r].count;
    if (held > most) most = held;
  }
  return most;
}

int64_t pipe_stash(arena *scratch, const pipeline *p, int stage, int64_t *each) {
  if (p->kind == PIPE_ZERO_BUBBLE && scratch) {
    int64_t most = pipe_held(scratch, p, stage, PIPE_F, PIPE_W);
    if (each) each[0] = most;
    return most;
  }
  // Most are held before the first backward: from there on each backward follows one forward.
  int64_t most = pipe_before_back(p, stage);
  for (int c = 0; each && c < p->chunks; c++) each[c] = pipe_of_chunk(p, most, c);
  return most;
}

double pipe_stash_bytes(arena *scratch, const pipeline *p, int stage, const double *bytes) {
  if (p->chunks == 1) return (double)pipe_stash(scratch, p, stage, NULL) * bytes[0];
  // Behind the warm-up forward and backward take turns, and both go round the chunks in the same
  // number of phases: after one round what is held repeats, and in the end it only falls.
  pipe_cursor c = pipe_cursor_of(p, stage);
  int64_t all = c.left, seen = c.warm + 2 * (c.group * p->chunks + 1);
  double held = 0, most = 0;
  for (; c.left && all - c.left < seen; pipe_cursor_next(&c)) {
    held += c.phase == PIPE_F ? bytes[c.chunk] : -bytes[c.chunk];
    if (held > most) most = held;
  }
  return most;
}
