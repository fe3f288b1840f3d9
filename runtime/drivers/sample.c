// A vocabulary is tens of thousands of logits, and a token of a small model takes ten milliseconds:
// exponentials are computed by all threads, sums of blocks find the block that a draw falls into,
// and top-k and top-p order only as many candidates as they need.
#include "runtime/drivers/sample.h"

#include <math.h>
#include <stdlib.h>

#include "runtime/dtype.h"

#define BLOCK 1024           // tokens whose weights are added up together
#define FIRST_CANDIDATES 64  // top-p orders that many, then eight times as many, ...

typedef struct sample_block {
  double top, sum;  // largest logit; sum of weights
  int32_t at;       // the first token with the largest logit
  bool bad;         // a logit is NaN
} sample_block;

typedef struct candidate {
  double p;
  int32_t id;
} candidate;

static int64_t blocks_of(const sampler *s) { return (s->vocab + BLOCK - 1) / BLOCK; }

static int64_t end_of(const sampler *s, int64_t block) {
  int64_t end = (block + 1) * BLOCK;
  return end < s->vocab ? end : s->vocab;
}

void sampler_open(sampler *s, arena *a) {
  s->p = arena_new(a, double, s->vocab);
  s->block = arena_new(a, sample_block, blocks_of(s));
  bool cuts = s->temperature > 0 && ((s->top_k > 0 && s->top_k < s->vocab) || s->top_p < 1);
  s->order = cuts ? arena_new(a, candidate, s->vocab) : NULL;
}

// ---- over the vocabulary, by all threads --------------------------------------------------------

typedef struct reading {
  sampler *s;
  const unsigned char *logits;
  uint32_t dtype;
  double top;
} reading;

static void read_blocks(void *ctx, int64_t lo, int64_t hi) {
  const reading *r = ctx;
  sampler *s = r->s;
  int bytes = dtype_of(r->dtype)->bytes;
  for (int64_t b = lo; b < hi; b++) {
    int64_t from = b * BLOCK, end = end_of(s, b);
    dtype_convert(s->p + from, PROG_F64, r->logits + from * bytes, r->dtype, end - from);
    sample_block x = {.top = s->p[from], .at = (int32_t)from};
    for (int64_t i = from; i < end; i++) {
      x.bad |= isnan(s->p[i]);
      if (s->p[i] > x.top) x.top = s->p[i], x.at = (int32_t)i;
    }
    s->block[b] = x;
  }
}

static void weigh_blocks(void *ctx, int64_t lo, int64_t hi) {
  const reading *r = ctx;
  sampler *s = r->s;
  for (int64_t b = lo; b < hi; b++) {
    double sum = 0;
    for (int64_t i = b * BLOCK; i < end_of(s, b); i++) {
      s->p[i] = exp((s->p[i] - r->top) / s->temperature);
      sum += s->p[i];
    }
    s->block[b].sum = sum;
  }
}

// ---- the likeliest ------------------------------------------------------------------------------

static int likeliest_first(const void *a, const void *b) {
  const candidate *x = a, *y = b;
  if (x->p != y->p) return x->p < y->p ? 1 : -1;
  return x->id < y->id ? -1 : x->id > y->id;
}

// Moves the `k` likeliest of c[0..n) in front of the others (quickselect). No two candidates are
// equal, so which ones they are does not depend on how they lay.
static void move_likeliest(candidate *c, int64_t n, int64_t k) {
  int64_t lo = 0, hi = n;
  while (hi - lo > 1) {
    candidate pivot = c[lo + (hi - lo) / 2];
    int64_t i = lo, j = hi - 1;
    while (i <= j) {
      while (likeliest_first(&c[i], &pivot) < 0) i++;
      while (likeliest_first(&c[j], &pivot) > 0) j--;
      if (i <= j) {
        candidate t = c[i];
        c[i++] = c[j];
        c[j--] = t;
      }
    }
    if (k <= j + 1)
      hi = j + 1;
    else if (k >= i)
      lo = i;
    else
      return;
    if (k <= lo) return;
  }
}

// Orders the `k` likeliest of c[0..n), of which the first `done` are so already.
static void order_likeliest(candidate *c, int64_t n, int64_t done, int64_t k) {
  move_likeliest(c + done, n - done, k - done);
  qsort(c + done, (size_t)(k - done), sizeof *c, likeliest_first);
}

// How many of the likeliest are left; they are put in order. *sum is what they weigh together.
static int64_t cut(sampler *s, double total, double *sum) {
  candidate *c = s->order;
  int64_t n = s->vocab, done = 0;
  for (int64_t i = 0; i < n; i++) c[i] = (candidate){s->p[i], (int32_t)i};
  if (s->top_k > 0 && s->top_k < n) {
    order_likeliest(c, n, 0, s->top_k);
    n = done = s->top_k;
    total = 0;
    for (int64_t i = 0; i < n; i++) total += c[i].p;
  }
  int64_t kept = 0;
  *sum = 0;
  while (kept < n && (kept == 0 || *sum < s->top_p * total)) {
    if (kept == done) {
      int64_t more = done ? done * 8 : FIRST_CANDIDATES;
      if (more > n) more = n;
      order_likeliest(c, n, done, more);
      done = more;
    }
    *sum += c[kept++].p;
  }
  return kept;
}

// ---- the choice ---------------------------------------------------------------------------------

static int32_t draw_candidate(const sampler *s, int64_t n, double u) {
  for (int64_t i = 0; i < n - 1; i++) {
    u -= s->order[i].p;
    if (u < 0) return s->order[i].id;
  }
  return s->order[n - 1].id;
}

static int32_t draw_token(const sampler *s, double u) {
  int64_t b = 0, last = blocks_of(s) - 1;
  while (b < last && u >= s->block[b].sum) u -= s->block[b++].sum;
  int64_t i = b * BLOCK;
  while (i < end_of(s, b) - 1 && u >= s->p[i]) u -= s->p[i++];
  return (int32_t)i;
}

bool sampler_choose(sampler *s, const void *logits, uint32_t dtype, double draw, int32_t *out) {
  reading r = {.s = s, .logits = logits, .dtype = dtype};
  int64_t n = blocks_of(s);
  pool_run(s->threads, n, read_blocks, &r);
  sample_block best = s->block[0];
  for (int64_t b = 0; b < n; b++) {
    if (s->block[b].bad) return false;
    if (s->block[b].top > best.top) best = s->block[b];
  }
  *out = best.at;
  if (s->temperature == 0) return true;
  r.top = best.top;
  pool_run(s->threads, n, weigh_blocks, &r);
  double total = 0, sum;
  for (int64_t b = 0; b < n; b++) total += s->block[b].sum;
  if (!s->order) {
    *out = draw_token(s, draw * total);
  } else {
    int64_t kept = cut(s, total, &sum);
    *out = draw_candidate(s, kept, draw * sum);
  }
  return true;
}
