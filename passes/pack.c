// Static offsets for storage with lifetimes.
//
// What is glued together is one *piece*; every other item is a piece by itself. A piece is placed
// at the lowest base at which each of its items is free during its life: the placed items it meets
// forbid open intervals of the base, and the lowest base outside all of them is taken.
//
//   an item of the piece at base + at, `bytes` long, and a placed one at [lo, hi), both alive at
//   some position:        base + at + bytes <= lo   or   base + at >= hi
//                         forbidden: lo - at - bytes < base < hi - at
//
// The order of the pieces decides how good it gets. A few are tried; in each, the piece that
// reaches highest is then placed sooner, some turns long, as long as the load is not reached. The
// lowest result is kept: not optimal, but at the load or within some percent of it for the lists
// that a training step gives (tens of items), and deterministic.

#include <stdlib.h>
#include <string.h>

#include "ir/schedule.h"

typedef struct piece {
  sched_item **item;
  int n, number;
  int64_t lo, hi;   // extent around the base
  int64_t weight;   // bytes x positions
  int first, last;  // of the whole piece
  bool peak;        // alive when most bytes are
} piece;

typedef struct gap {
  int64_t lo, hi;  // forbidden bases, ends excluded
} gap;

static int by_glue(const void *pa, const void *pb) {
  const sched_item *a = *(sched_item *const *)pa, *b = *(sched_item *const *)pb;
  if (a->glue != b->glue) return a->glue < b->glue ? -1 : 1;
  return a < b ? -1 : a > b;
}

static int by_lo(const void *pa, const void *pb) {
  const gap *a = pa, *b = pb;
  if (a->lo != b->lo) return a->lo < b->lo ? -1 : 1;
  return a->hi < b->hi ? -1 : a->hi > b->hi;
}

// ---- orders -------------------------------------------------------------------------------------

static int by_size(const void *pa, const void *pb) {
  const piece *a = pa, *b = pb;
  int64_t x = a->hi - a->lo, y = b->hi - b->lo;
  if (x != y) return x < y ? 1 : -1;
  if (a->first != b->first) return a->first < b->first ? -1 : 1;
  return a->number < b->number ? -1 : a->number > b->number;
}

static int by_weight(const void *pa, const void *pb) {
  const piece *a = pa, *b = pb;
  if (a->weight != b->weight) return a->weight < b->weight ? 1 : -1;
  return by_size(pa, pb);
}

// Those that live longest lie at the bottom, as on a stack.
static int by_life(const void *pa, const void *pb) {
  const piece *a = pa, *b = pb;
  int x = a->last - a->first, y = b->last - b->first;
  if (x != y) return x < y ? 1 : -1;
  return by_size(pa, pb);
}

// What makes the load is packed tight, the rest goes where there is room.
static int by_peak(const void *pa, const void *pb) {
  const piece *a = pa, *b = pb;
  if (a->peak != b->peak) return a->peak ? -1 : 1;
  return by_size(pa, pb);
}

static int by_peak_and_life(const void *pa, const void *pb) {
  const piece *a = pa, *b = pb;
  if (a->peak != b->peak) return a->peak ? -1 : 1;
  return by_life(pa, pb);
}

typedef int order(const void *, const void *);
static order *const orders[] = {by_size, by_peak, by_weight, by_life, by_peak_and_life};
enum { ORDERS = sizeof orders / sizeof *orders, TURNS = 40 };

// ---- placing ------------------------------------------------------------------------------------

static int make_pieces(arena *scratch, sched_item *item, int n, piece *out) {
  sched_item **sorted = arena_new(scratch, sched_item *, n + 1);
  for (int i = 0; i < n; i++) sorted[i] = &item[i];
  qsort(sorted, (size_t)n, sizeof *sorted, by_glue);
  int pieces = 0;
  for (int i = 0; i < n; i++) {
    sched_item *x = sorted[i];
    bool more = x->glue && i && sorted[i - 1]->glue == x->glue;
    piece *p = &out[more ? pieces - 1 : pieces];
    int64_t at = x->glue ? x->at : 0;
    if (!more)
      *p = (piece){.item = &sorted[i],
                   .number = pieces++,
                   .lo = at,
                   .hi = at + x->bytes,
                   .first = x->first,
                   .last = x->last};
    p->n++;
    p->weight += x->bytes * (x->last - x->first + 1);
    if (at < p->lo) p->lo = at;
    if (at + x->bytes > p->hi) p->hi = at + x->bytes;
    if (x->first < p->first) p->first = x->first;
    if (x->last > p->last) p->last = x->last;
  }
  return pieces;
}

static bool meet(const sched_item *a, const sched_item *b) {
  return a->first <= b->last && b->first <= a->last && a->bytes && b->bytes;
}

// Gives every item its base; returns the height. `forbidden` has room for all pairs of one piece.
// *top is the piece that reaches it.
static int64_t place(piece *p, int n, gap *forbidden, int64_t align, int *top) {
  int64_t height = 0;
  *top = 0;
  for (int i = 0; i < n; i++) {
    int k = 0;
    for (int a = 0; a < p[i].n; a++) {
      const sched_item *x = p[i].item[a];
      int64_t at = x->glue ? x->at : 0;
      for (int j = 0; j < i; j++)
        for (int b = 0; b < p[j].n; b++) {
          const sched_item *y = p[j].item[b];
          if (meet(x, y)) forbidden[k++] = (gap){y->base - at - x->bytes, y->base + y->bytes - at};
        }
    }
    qsort(forbidden, (size_t)k, sizeof *forbidden, by_lo);
    int64_t base = -p[i].lo;
    for (int j = 0; j < k && forbidden[j].lo < base; j++)
      if (forbidden[j].hi > base) base = (forbidden[j].hi + align - 1) & ~(align - 1);
    for (int a = 0; a < p[i].n; a++)
      p[i].item[a]->base = base + (p[i].item[a]->glue ? p[i].item[a]->at : 0);
    if (base + p[i].hi > height) {
      height = base + p[i].hi;
      *top = i;
    }
  }
  return height;
}

// ---- the bound ----------------------------------------------------------------------------------

// The load and, in *peak, the first position where it is reached.
static int64_t find_load(arena *scratch, const sched_item *item, int n, int *peak) {
  sched_item **sorted = arena_new(scratch, sched_item *, n + 1);
  sched_item *copy = arena_new(scratch, sched_item, n + 1);
  gap *part = arena_new(scratch, gap, n + 1);
  int end = 0;
  for (int i = 0; i < n; i++) {
    copy[i] = item[i];
    sorted[i] = &copy[i];
    if (item[i].last + 1 > end) end = item[i].last + 1;
  }
  qsort(sorted, (size_t)n, sizeof *sorted, by_glue);
  int64_t load = 0;
  for (int t = 0; t < end; t++) {
    int64_t now = 0;
    for (int i = 0; i < n;) {
      // The union of one piece's parts that are alive.
      int glue = sorted[i]->glue, k = 0;
      do {
        int64_t at = glue ? sorted[i]->at : 0;
        if (sorted[i]->first <= t && t <= sorted[i]->last)
          part[k++] = (gap){at, at + sorted[i]->bytes};
        i++;
      } while (glue && i < n && sorted[i]->glue == glue);
      qsort(part, (size_t)k, sizeof *part, by_lo);
      int64_t covered = INT64_MIN;
      for (int j = 0; j < k; j++) {
        int64_t lo = part[j].lo > covered ? part[j].lo : covered;
        if (part[j].hi > lo) now += part[j].hi - lo, covered = part[j].hi;
      }
    }
    if (now > load) {
      load = now;
      *peak = t;
    }
  }
  return load;
}

int64_t sched_load(arena *scratch, const sched_item *item, int n) {
  int peak = 0;
  return find_load(scratch, item, n, &peak);
}

// ---- the whole ----------------------------------------------------------------------------------

int64_t sched_pack(arena *scratch, sched_item *item, int n, int64_t align) {
  piece *p = arena_new(scratch, piece, n + 1);
  int pieces = make_pieces(scratch, item, n, p);
  int most = 1, peak = 0;
  int64_t load = find_load(scratch, item, n, &peak);
  for (int i = 0; i < pieces; i++) {
    if (p[i].n > most) most = p[i].n;
    for (int k = 0; k < p[i].n; k++)
      p[i].peak |= p[i].item[k]->first <= peak && peak <= p[i].item[k]->last;
  }
  gap *forbidden = arena_new(scratch, gap, (size_t)most * (size_t)n + 1);
  int64_t *best = arena_new(scratch, int64_t, n + 1), lowest = -1;
  for (int i = 0; i < ORDERS && lowest != load; i++) {
    qsort(p, (size_t)pieces, sizeof *p, orders[i]);
    for (int turn = 0; turn < TURNS && lowest != load; turn++) {
      int top;
      int64_t height = place(p, pieces, forbidden, align, &top);
      if (lowest < 0 || height < lowest) {
        lowest = height;
        for (int j = 0; j < n; j++) best[j] = item[j].base;
      }
      if (top == 0) break;
      piece sooner = p[top];
      memmove(&p[top / 2 + 1], &p[top / 2], (size_t)(top - top / 2) * sizeof *p);
      p[top / 2] = sooner;
    }
  }
  for (int j = 0; j < n; j++) item[j].base = best[j];
  return lowest;
}
