// The front of choices, by dynamic programming over the items (passes/recompute.h).
#include "passes/recompute.h"

#include <stdlib.h>
#include <string.h>

// A choice among the items so far. `open` is the part of `taken` that later items ask for.
typedef struct partial {
  double work;
  int64_t bytes;
  int words;
  uint64_t *open, *taken;
} partial;

typedef struct chooser {
  arena scratch;
  const rc_item *item;
  int n, words, limit;
  const int *last_use;  // by item: the last item that needs it, or -1
  partial *now, *next;  // two generations, swapped
  int nnow, nnext;
  uint64_t *now_bits, *next_bits;
  bool exact;
} chooser;

static bool has(const uint64_t *set, int i) { return set[i / 64] >> (i % 64) & 1; }
static void put(uint64_t *set, int i) { set[i / 64] |= (uint64_t)1 << (i % 64); }

static int by_words(const uint64_t *a, const uint64_t *b, int n) {
  for (int i = 0; i < n; i++)
    if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
  return 0;
}

static int by_bytes(const partial *a, const partial *b) {
  if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1;
  if (a->work < b->work || a->work > b->work) return a->work < b->work ? -1 : 1;
  return by_words(a->taken, b->taken, a->words);  // a total order: results do not depend on qsort
}

static int by_open(const void *pa, const void *pb) {
  const partial *a = pa, *b = pb;
  int c = by_words(a->open, b->open, a->words);
  return c ? c : by_bytes(a, b);
}

static int by_bytes_alone(const void *pa, const void *pb) { return by_bytes(pa, pb); }

// Copies `from` into the next generation, with item `i` when `take`.
static void extend(chooser *c, const partial *from, int i, bool take) {
  partial *to = &c->next[c->nnext];
  uint64_t *bits = c->next_bits + (size_t)c->nnext * 2 * (size_t)c->words;
  c->nnext++;
  *to = (partial){from->work, from->bytes, c->words, bits, bits + c->words};
  memcpy(to->taken, from->taken, sizeof *bits * (size_t)c->words);
  memcpy(to->open, from->open, sizeof *bits * (size_t)c->words);
  if (take) {
    to->work += c->item[i].work;
    to->bytes += c->item[i].bytes;
    put(to->taken, i);
    if (c->last_use[i] > i) put(to->open, i);
  }
  for (int k = 0; k < c->item[i].nneeds; k++) {
    int need = c->item[i].needs[k];
    if (c->last_use[need] == i) to->open[need / 64] &= ~((uint64_t)1 << (need % 64));
  }
}

static bool may_take(const chooser *c, const partial *p, int i) {
  for (int k = 0; k < c->item[i].nneeds; k++)
    if (!has(p->taken, c->item[i].needs[k])) return false;
  return true;
}

// Forgets what is dominated: among equal `open`, sorted by bytes, work must fall.
static int drop_dominated(partial *p, int n) {
  qsort(p, (size_t)n, sizeof *p, by_open);
  int kept = 0;
  for (int i = 0; i < n; i++) {
    bool same = kept && by_words(p[kept - 1].open, p[i].open, p[i].words) == 0;
    if (same && p[i].work >= p[kept - 1].work) continue;
    p[kept++] = p[i];
  }
  return kept;
}

static int thin(chooser *c, partial *p, int n) {
  if (n <= c->limit) return n;
  c->exact = false;
  qsort(p, (size_t)n, sizeof *p, by_bytes_alone);
  int least = 0, kept = 0;
  for (int i = 1; i < n; i++)
    if (p[i].work < p[least].work) least = i;
  for (int i = 0; i < n; i++) {
    int64_t room = c->limit - 1;
    bool turn = (int64_t)i * room / n != (int64_t)(i - 1) * room / n;
    if (i == 0 || i == least || turn) p[kept++] = p[i];
  }
  return kept;
}

static void decide(chooser *c, int i) {
  c->nnext = 0;
  for (int k = 0; k < c->nnow; k++) {
    extend(c, &c->now[k], i, false);
    if (may_take(c, &c->now[k], i)) extend(c, &c->now[k], i, true);
  }
  c->nnow = thin(c, c->next, drop_dominated(c->next, c->nnext));
  partial *p = c->now;
  uint64_t *bits = c->now_bits;
  c->now = c->next, c->now_bits = c->next_bits;
  c->next = p, c->next_bits = bits;
}

rc_front rc_choose(arena *a, const rc_item *item, int n, int limit) {
  chooser c = {.item = item, .n = n, .words = n / 64 + 1, .limit = limit, .exact = true};
  arena_init(&c.scratch);
  c.scratch.oom = a->oom;
  c.scratch.oom_ctx = a->oom_ctx;
  int *last_use = arena_new(&c.scratch, int, n + 1);
  for (int i = 0; i < n; i++) {
    last_use[i] = -1;
    for (int k = 0; k < item[i].nneeds; k++) last_use[item[i].needs[k]] = i;
  }
  c.last_use = last_use;
  // 2 * limit survive a step at most before it is pruned; one more for the choice of everything.
  int most = 2 * limit + 2;
  // All that follows is written before it is read.
  c.now = arena_alloc_raw(&c.scratch, sizeof *c.now * (size_t)most);
  c.next = arena_alloc_raw(&c.scratch, sizeof *c.next * (size_t)most);
  size_t words = (size_t)(most * 2 * c.words);
  c.now_bits = arena_alloc_raw(&c.scratch, words * sizeof *c.now_bits);
  c.next_bits = arena_alloc_raw(&c.scratch, words * sizeof *c.next_bits);
  memset(c.now_bits, 0, 2 * (size_t)c.words * sizeof *c.now_bits);
  c.now[0] = (partial){0, 0, c.words, c.now_bits, c.now_bits + c.words};
  c.nnow = 1;
  for (int i = 0; i < n; i++) decide(&c, i);

  // Everything: on the front anyway when the search was exact and it is not dominated.
  partial *all = &c.now[c.nnow];
  uint64_t *bits = arena_new(&c.scratch, uint64_t, 2 * c.words);
  *all = (partial){0, 0, c.words, bits, bits + c.words};
  for (int i = 0; i < n; i++) {
    all->work += item[i].work;
    all->bytes += item[i].bytes;
    put(all->taken, i);
  }
  c.nnow = drop_dominated(c.now, c.nnow + 1);
  rc_front f = {.exact = c.exact};
  for (int i = c.nnow - 1; i >= 0; i--) {
    uint64_t *taken = arena_new(a, uint64_t, c.words);
    memcpy(taken, c.now[i].taken, sizeof *taken * (size_t)c.words);
    vec_push(a, &f.at, (rc_choice){c.now[i].bytes, c.now[i].work, taken});
  }
  arena_free(&c.scratch);
  return f;
}
