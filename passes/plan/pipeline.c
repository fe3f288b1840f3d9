// The step of a pipeline: longest path, lower bound, closed forms.
//
// Events are phases; each starts when the stage's phase before it in the order is over and what it
// needs has arrived. All three ways below go through the events once, in an order in which what an
// event needs comes before it, and keep one time a stream.
//
// **Closed forms**, of equal stages. f, b: forward and backward of one chunk, w: the part of b that
// weights take, s, t: messages forward and back. Equal `before` and `after` are added.
//
//   one_f_one_b   (m + p-1)(f + b) + (s + t) hops             where s <= f and t <= b
//                 hops = (q+1)(p-1) + max(r-1, 0);  m-1 = q p + r, 0 <= r < p
//   interleaved   (m v + p-1)(f + b) + (s + t)(v p - 1)       where s, t <= f and s, t <= b
//   gpipe, v = 1  p(f + b) + (p-1)(s + t) + (m-1)(max(f, s) + max(b, t))    (p > 1)
//   gpipe, v > 1  ((v-1) max(m, p) + m + p-1)(f + b)          where s = t = 0
//   zero_bubble   m(f + b) + (p-1)(f + max(b-2w, 0))          where s = t = 0, w <= f, w <= b-w,
//                                                             m >= p
//
// Why 1f1b pays for messages in its steady state: micro-batch j + p-i starts on stage i behind the
// backward of j, so one round from stage i to the last and back, p-i stages and p-1-i messages each
// way, brings p-i micro-batches: f + b + (s + t)(p-1-i)/(p-i) each, most for i = 0. The longest
// path makes q+1 such rounds, and one over r-1 messages with the micro-batches that are left.
// Interleaved stages warm up twice as far, and pay only for the first micro-batch's way through all
// parts and back. The conditions on zero_bubble and interleaved were found by trying (test_pipeline
// draws stages within them); they are not necessary ones.
#include "passes/plan/pipeline.h"

#include <math.h>
#include <string.h>

#include "ir/ir.h"
#include "passes/plan/pipe_order.h"

double pipe_busy(const pipeline *p, int stage) {
  double sum = 0;
  for (int c = 0; c < p->chunks; c++) {
    const pipe_chunk *k = &p->chunk[stage * p->chunks + c];
    sum += k->forward + k->backward;
  }
  return sum * (double)p->micro;
}

int pipe_critical(const pipeline *p) {
  int critical = 0;
  double most = -1;
  for (int i = 0; i < p->stages; i++) {
    double own = pipe_before(p, i) + pipe_busy(p, i) + pipe_after(p, i);
    if (own > most) most = own, critical = i;
  }
  return critical;
}

pipe_result pipe_result_of(const pipeline *p, double step, double exposed) {
  int c = pipe_critical(p);
  pipe_result r = {.step = step, .busy = pipe_busy(p, c), .critical = c, .exposed_send = exposed};
  r.bubble = step - r.busy - exposed - pipe_before(p, c) - pipe_after(p, c);
  // Of a stage that never waits, all that is left is rounding.
  if (fabs(r.bubble) < 1e-12 * step) r.bubble = 0;
  return r;
}

// ---- 1f1b ---------------------------------------------------------------------------------------
//
// In *waves*: in wave j stage i does the forward of micro-batch j + p-1-i and the backward of j,
// the last stage first. The forward's message left stage i-1 in wave j-1, the backward's comes from
// stage i+1 in this wave. So a wave needs of the waves before it three times a stage, and nothing
// of the number j: it is a function of those times that commutes with shifts. Once a wave finds
// them as `period` waves ago, all later by the same, every further period does too and is skipped.
// Such maps (max and +) bring two inputs no further apart than they were, so when the shifts of the
// times differ by e, skipping n periods is wrong by n e at most.

typedef struct wave_state {
  const pipeline *p;
  int critical;
  double exposed;
  double *free;       // [p] the stage's compute stream
  double *link_back;  // [p] its link to the stage before is free
  double *arrived;    // [p + 1] last forward message to this stage; its link is free then, too
  double *content;    // [p + 1] the forward which that message carries ended (for `exposed`)
} wave_state;
#define WAVE_TIMES(p) (4 * (p) + 2)

// Shifts that differ by less than this, relative to the time, are equal: rounding.
#define SAME_SHIFT 1e-13

static void wave(wave_state *w, int64_t j) {
  const pipeline *p = w->p;
  int n = p->stages;
  int64_t m = p->micro;
  double content = 0, arrived = 0;  // of the gradient from the stage behind
  for (int i = n - 1; i >= 0; i--) {
    const pipe_chunk *c = &p->chunk[i];
    double t = w->free[i];
    int64_t f = j + n - 1 - i;
    if (f >= 0 && f < m) {
      if (i == w->critical)
        w->exposed += pipe_later(0, w->arrived[i] - pipe_later(t, w->content[i]));
      t = pipe_later(t, w->arrived[i]) + c->forward;
      w->content[i + 1] = t;
      w->arrived[i + 1] = pipe_later(t, w->arrived[i + 1]) + c->send;
    }
    if (j >= 0) {
      if (i == w->critical) w->exposed += pipe_later(0, arrived - pipe_later(t, content));
      t = pipe_later(t, arrived) + c->backward;
      content = t;
      arrived = pipe_later(t, w->link_back[i]) + c->send_back;
      w->link_back[i] = arrived;
    }
    w->free[i] = t;
  }
}

// Widens [low, high] by the shifts of n times; false when it gets wider than `within`.
static bool widen(const double *now, const double *then, int n, double within, double *low,
                  double *high) {
  for (int i = 0; i < n; i++) {
    double d = now[i] - then[i];
    if (d < *low) *low = d;
    if (d > *high) *high = d;
    if (*high - *low > within) return false;
  }
  return true;
}

// All times that later waves depend on are later than `then` by the same. The first stage gets no
// forward message and sends none back, the last one sends none forward: those links do not count.
static bool repeats(const wave_state *w, const double *then) {
  int n = w->p->stages;
  double low = w->free[0] - then[0], high = low, within = SAME_SHIFT * w->free[0];
  return widen(w->free, then, n, within, &low, &high) &&
         widen(w->link_back + 1, then + n + 1, n - 1, within, &low, &high) &&
         widen(w->arrived + 1, then + 2 * n + 1, n - 1, within, &low, &high);
}

static pipe_result one_f_one_b(arena *a, const pipeline *p) {
  int n = p->stages, times = WAVE_TIMES(n);
  double *block = arena_new(a, double, 2 * times), *then = block + times, then_exposed = 0;
  wave_state w = {.p = p, .critical = pipe_critical(p), .free = block};
  w.link_back = block + n;
  w.arrived = w.link_back + n;
  w.content = w.arrived + n + 1;
  for (int i = 0; i < n; i++) w.free[i] = pipe_before(p, i);
  int64_t last = p->micro - n;  // the last wave in which all stages have a forward
  int64_t then_wave = -1, next = 0;
  for (int64_t j = 1 - n; j < p->micro; j++) {
    wave(&w, j);
    if (j < 0 || j >= last) continue;
    if (then_wave >= 0 && repeats(&w, then)) {
      int64_t period = j - then_wave, skip = (last - j) / period;
      for (int i = 0; i < times; i++) block[i] += (double)skip * (block[i] - then[i]);
      w.exposed += (double)skip * (w.exposed - then_exposed);
      j += skip * period;
      then_wave = -1;
      next = p->micro;
    } else if (j == next) {
      // Brent: compared with waves 0, 1, 3, 7, ..., so any period is met after a while.
      memcpy(then, block, sizeof *then * (size_t)times);
      then_exposed = w.exposed;
      then_wave = j;
      next = 2 * j + 1;
    }
  }
  double step = 0;
  for (int i = 0; i < n; i++) step = pipe_later(step, w.free[i] + pipe_after(p, i));
  return pipe_result_of(p, step, w.exposed);
}

// ---- interleaved, gpipe -------------------------------------------------------------------------
//
// Stages in turn, up and down, each as far as what it needs has come. Messages that have not been
// read wait in a ring for each part: as many as the part that sent them holds micro-batches, at
// most.

typedef struct mail {
  double content, arrived;  // what it carries ended; it arrived
} mail;

typedef struct walker {
  const pipeline *p;
  int parts, critical;
  int64_t mask;  // size of a ring less 1
  double exposed;
  pipe_cursor *cursor;  // [stages]
  double *free;         // [stages]
  double *link[2];      // [stages] forward, back: free
  int64_t *done[2];     // [parts] micro-batches forward, backward
  mail *mail[2];        // [parts][mask + 1] what a part sent, of micro-batch j at j & mask
} walker;

static void send(walker *w, int way, int part, int stage, int64_t micro, double seconds) {
  double end = w->free[stage], at = end;
  if (w->p->stages > 1) {
    double *link = &w->link[way][stage];
    at = *link = pipe_later(*link, end) + seconds;
  }
  w->mail[way][part * (w->mask + 1) + (micro & w->mask)] = (mail){end, at};
}

// Does the next phase of a stage if what it needs has been sent.
static bool advance(walker *w, int stage) {
  const pipeline *p = w->p;
  pipe_cursor *c = &w->cursor[stage];
  if (!c->left) return false;
  int part = c->chunk * p->stages + stage, way = c->phase == PIPE_F ? 0 : 1;
  int from = way == 0 ? part - 1 : part + 1, to = way == 0 ? part + 1 : part - 1;
  const pipe_chunk *k = &p->chunk[stage * p->chunks + c->chunk];
  double start = w->free[stage];
  if (from >= 0 && from < w->parts) {
    if (w->done[way][from] <= c->micro) return false;
    mail m = w->mail[way][from * (w->mask + 1) + (c->micro & w->mask)];
    if (stage == w->critical) w->exposed += pipe_later(0, m.arrived - pipe_later(start, m.content));
    start = pipe_later(start, m.arrived);
  }
  w->free[stage] = start + (way == 0 ? k->forward : k->backward);
  w->done[way][part]++;
  if (to >= 0 && to < w->parts)
    send(w, way, part, stage, c->micro, way == 0 ? k->send : k->send_back);
  pipe_cursor_next(c);
  return true;
}

static pipe_result walk_orders(arena *a, const pipeline *p) {
  int n = p->stages, parts = n * p->chunks;
  int64_t size = 1;
  // A stage's warm-up and one more is what it holds; of one part that is two groups at most.
  int64_t held = p->kind == PIPE_GPIPE ? p->micro : 2 * pipe_group(p);
  while (size < held) size *= 2;
  walker w = {.p = p, .parts = parts, .critical = pipe_critical(p), .mask = size - 1};
  w.cursor = arena_new(a, pipe_cursor, n);
  w.free = arena_new(a, double, n);
  for (int k = 0; k < 2; k++) {
    w.link[k] = arena_new(a, double, n);
    w.done[k] = arena_new(a, int64_t, parts);
    w.mail[k] = arena_new(a, mail, parts * size);
  }
  for (int i = 0; i < n; i++) {
    w.cursor[i] = pipe_cursor_of(p, i);
    w.free[i] = pipe_before(p, i);
  }
  int64_t left = 2 * parts * p->micro;
  while (left) {
    int64_t was = left;
    for (int i = 0; i < n; i++)
      while (advance(&w, i)) left--;
    for (int i = n - 1; i >= 0; i--)
      while (advance(&w, i)) left--;
    if (left == was) IR_BUG("the %s order of %d stages stands still", pipe_kind_name(p->kind), n);
  }
  double step = 0;
  for (int i = 0; i < n; i++) step = pipe_later(step, w.free[i] + pipe_after(p, i));
  return pipe_result_of(p, step, w.exposed);
}

pipe_result pipe_longest(arena *scratch, const pipeline *p) {
  switch (p->kind) {
    case PIPE_ONE_F_ONE_B: return one_f_one_b(scratch, p);
    case PIPE_ZERO_BUBBLE: return pipe_zero_bubble(scratch, p, NULL);
    case PIPE_INTERLEAVED:
    case PIPE_GPIPE: return walk_orders(scratch, p);
  }
  IR_BUG("no pipeline order has number %d", (int)p->kind);
}

// ---- bound --------------------------------------------------------------------------------------
//
// Every path through events that must follow each other is a lower bound; the longest of some that
// cost O(p) together is taken. Of stage i with one chunk (g: the part of its backward that others
// wait for, w: what zero bubble puts off, else 0; s, t: messages to i+1 and to i-1):
//
//   first   its first forward can start: the first micro-batch's way through the stages before
//   ahead   from a forward's end here to the same micro-batch's on the last stage
//   back    from a forward's end on the last stage to the same micro-batch's backward's end here
//   drain   from its last backward's end to the end of the step, through the stages before it
//
// Any order: first, all its work, drain. 1f1b: stage i forwards micro-batch n(p-i) behind its
// backward of (n-1)(p-i), so after n rounds to the last stage and back a known number of its phases
// is left; n = 1 is fill, all other work, drain, and the most rounds that fit are the path of the
// closed form. Zero bubble: the same with g; w of micro-batches that must be done by then are
// added, or all of them and no drain. gpipe: its forwards and its backwards are flow shops of equal
// jobs, whose length is all machines once and the slowest for each further job; links are machines.

static double put_off(const pipeline *p, const pipe_chunk *c) {
  return p->kind == PIPE_ZERO_BUBBLE ? c->weight : 0;
}
static const pipe_chunk *first_chunk(const pipeline *p, int stage) {
  return &p->chunk[stage * p->chunks];
}

// Prefix values of a stage, as the stages are gone through upwards.
typedef struct prefix {
  double first, drain;
  double ahead, back;  // of stage 0 to here: subtracted from those of all stages
} prefix;

static prefix prefix_of(const pipeline *p, int i, const prefix *was) {
  const pipe_chunk *c = first_chunk(p, i);
  double w = put_off(p, c);
  if (i == 0) return (prefix){pipe_before(p, 0), w + pipe_after(p, 0), 0, 0};
  const pipe_chunk *b = first_chunk(p, i - 1);
  double g = b->backward - put_off(p, b);
  return (prefix){
      .first = pipe_later(pipe_before(p, i), was->first + b->forward + b->send),
      .drain = pipe_later(w + pipe_after(p, i), c->send_back + g + was->drain),
      .ahead = was->ahead + b->send + c->forward,
      .back = was->back + g + c->send_back,
  };
}

// With chunks: paths of the first micro-batch through all parts and of all work of one stage.
static double bound_chunks(const pipeline *p) {
  int n = p->stages, v = p->chunks;
  double m = (double)p->micro, best = 0;
  prefix all = {0};
  for (int i = 0; i < n; i++) all = prefix_of(p, i, &all);
  // To the last part's forward's end, by the first micro-batch; and by all of them (gpipe).
  double through = all.first, most = 0, forwards = 0;
  for (int c = 0; c < v; c++)
    for (int i = 0; i < n; i++) {
      const pipe_chunk *k = &p->chunk[i * v + c];
      if (c > 0) through += k->forward;
      if (c > 0 && i == 0 && n > 1) through += p->chunk[(n - 1) * v + c - 1].send;
      if (c > 0 && i > 0) through += p->chunk[(i - 1) * v + c].send;
      most = pipe_later(most, k->forward);
    }
  through += first_chunk(p, n - 1)->forward;
  if (p->kind == PIPE_GPIPE) {
    prefix at = {0};
    double ahead = 0;  // from the last chunk here to the last part
    for (int i = 0; i < n; i++) {
      const pipe_chunk *k = &p->chunk[i * v + v - 1];
      if (i > 0) ahead += p->chunk[(i - 1) * v + v - 1].send + k->forward;
    }
    for (int i = 0; i < n; i++) {
      const pipe_chunk *k = &p->chunk[i * v + v - 1];
      at = prefix_of(p, i, &at);
      if (i > 0) ahead -= p->chunk[(i - 1) * v + v - 1].send + k->forward;
      double f = 0;
      for (int c = 0; c < v; c++) f += p->chunk[i * v + c].forward;
      forwards = pipe_later(forwards, at.first + m * f + ahead);
    }
    forwards = pipe_later(forwards, through + (m - 1) * most);
  }
  double last = pipe_later(through, forwards);
  // Then the first gradient's way back to the last chunk of each stage, what is left there, drain.
  double back = 0, whole = 0, slowest = 0;
  for (int i = 0; i < n; i++) {
    const pipe_chunk *k = &p->chunk[i * v + v - 1];
    if (i > 0) back += k->backward + k->send_back;
    for (int c = 0; c < v; c++) {
      const pipe_chunk *x = &p->chunk[i * v + c];
      whole += x->backward;
      if (n > 1 && i + c > 0) whole += x->send_back;
      slowest = pipe_later(slowest, x->backward);
    }
  }
  if (p->kind == PIPE_GPIPE) best = pipe_later(best, last + whole + (m - 1) * slowest);
  prefix at = {0};
  for (int i = 0; i < n; i++) {
    at = prefix_of(p, i, &at);
    best = pipe_later(best, at.first + pipe_busy(p, i) + at.drain);
    if (i > 0) {
      const pipe_chunk *k = &p->chunk[i * v + v - 1];
      back -= k->backward + k->send_back;
    }
    // Behind the start of the first backward on this stage come all backwards, and the forwards
    // after the warm-up but one.
    int64_t first = pipe_before_back(p, i);
    double left = 0;
    for (int c = 0; c < v; c++) {
      int64_t done = pipe_of_chunk(p, first, c);
      const pipe_chunk *k = &p->chunk[i * v + c];
      left += (double)(p->micro - done) * k->forward + m * k->backward;
    }
    best = pipe_later(best, last + back + left + at.drain);
  }
  return best;
}

double pipe_bound(const pipeline *p) {
  // The sums below were rounded in another order than the step's.
  const double rounding = 1 - 1e-12;
  if (p->chunks > 1) return bound_chunks(p) * rounding;
  int n = p->stages;
  double m = (double)p->micro, best = 0;
  bool gpipe = p->kind == PIPE_GPIPE;
  prefix all = {0};
  for (int i = 0; i < n; i++) all = prefix_of(p, i, &all);
  const pipe_chunk *end = first_chunk(p, n - 1);
  double turn = end->backward - put_off(p, end);  // of the last stage
  double forwards = 0, backwards = 0;             // gpipe: the two flow shops
  prefix at = {0};
  for (int i = 0; i < n; i++) {
    at = prefix_of(p, i, &at);
    const pipe_chunk *c = first_chunk(p, i);
    double f = c->forward, w = put_off(p, c), g = c->backward - w;
    double s = i + 1 < n ? c->send : 0, t = i > 0 ? c->send_back : 0;
    double ahead = all.ahead - at.ahead, back = all.back - at.back + turn;
    // Links: the first message starts behind the first phase; behind the last one comes the way on.
    double sent = at.first + f + (m - 1) * s + ahead;  // the last forward on the last stage
    double sent_back = back + (m - 1) * t + at.drain;  // from the first turn to the end
    if (gpipe) {
      forwards = pipe_later(forwards, pipe_later(sent, at.first + m * f + ahead));
      backwards = pipe_later(backwards, pipe_later(sent_back, back + (m - 1) * g + at.drain));
      continue;
    }
    best = pipe_later(best, sent + turn + all.drain);
    best = pipe_later(best, all.first + end->forward + sent_back);
    // Rounds: the first one starts when the first micro-batch comes to the last stage.
    double window = n - i, round = f + ahead + back, most = floor((m - 1) / window) + 1;
    double tries[] = {1, most - 1, most};
    for (int k = 0; k < 3; k++) {
      double r = tries[k];
      if (r < 1) continue;
      double path = all.first + end->forward + back + (r - 1) * round;
      double forward = pipe_later(0, m - r * window), backward = m - 1 - (r - 1) * window;
      path += forward * f + backward * g;
      // Weights' gradients that follow the first backward and must be done before the last one's
      // end: all but depth + 1 of them, and the depth is i at most.
      if (r == 1) {
        best = pipe_later(best, path + m * w + pipe_after(p, i));
        path += pipe_later(0, m - 1 - i) * w;
      }
      best = pipe_later(best, path + at.drain);
    }
    // What comes before the first round's end on this stage, when that is more than the round.
    best = pipe_later(best, at.first + m * (f + g + w) + pipe_after(p, i));
    best = pipe_later(best, at.first + m * (f + g) + pipe_later(0, m - 1 - i) * w + at.drain);
  }
  best = pipe_later(best, forwards + backwards);
  return best * rounding;
}

// ---- closed forms -------------------------------------------------------------------------------

static bool alike(const double *x, int n) {
  for (int i = 1; x && i < n; i++)
    if (x[i] != x[0]) return false;
  return true;
}

double pipe_closed(const pipeline *p) {
  const pipe_chunk *c = p->chunk;
  bool equal = alike(p->before, p->stages) && alike(p->after, p->stages);
  for (int k = 1; k < p->stages * p->chunks; k++)
    if (c[k].forward != c->forward || c[k].backward != c->backward || c[k].weight != c->weight ||
        c[k].send != c->send || c[k].send_back != c->send_back)
      equal = false;
  if (!equal) return -1;
  double n = p->stages, v = p->chunks, m = (double)p->micro;
  double f = c->forward, b = c->backward, w = c->weight, s = c->send, t = c->send_back;
  if (p->stages == 1) s = t = 0;
  double own = pipe_before(p, 0) + pipe_after(p, 0);
  bool silent = s == 0 && t == 0;
  switch (p->kind) {
    case PIPE_ONE_F_ONE_B: {
      if (s > f || t > b) return -1;
      double q = floor((m - 1) / n), r = m - 1 - q * n;
      return own + (m + n - 1) * (f + b) + (s + t) * ((q + 1) * (n - 1) + pipe_later(r - 1, 0));
    }
    case PIPE_INTERLEAVED:
      if (pipe_later(s, t) > fmin(f, b)) return -1;
      return own + (m * v + n - 1) * (f + b) + (s + t) * (n * v - 1);
    case PIPE_GPIPE:
      if (p->chunks == 1)
        return own + n * (f + b) + (n - 1) * (s + t) +
               (m - 1) * (pipe_later(f, s) + pipe_later(b, t));
      return silent ? own + ((v - 1) * pipe_later(m, n) + m + n - 1) * (f + b) : -1;
    case PIPE_ZERO_BUBBLE:
      if (!silent || w > f || w > b - w || m < n) return -1;
      return own + m * (f + b) + (n - 1) * (f + pipe_later(b - 2 * w, 0));
  }
  return -1;
}
