// Static offsets for storage with lifetimes.
//
// Largest first, each at the lowest offset that is free during its whole life: not optimal, but
// near it for the lists a training step gives (tens of items), and deterministic.

#include <stdlib.h>
#include <string.h>

#include "ir/schedule.h"

static int by_size(const void *pa, const void *pb) {
  const sched_item *a = *(const sched_item *const *)pa, *b = *(const sched_item *const *)pb;
  if (a->bytes != b->bytes) return a->bytes < b->bytes ? 1 : -1;
  if (a->first != b->first) return a->first < b->first ? -1 : 1;
  return a < b ? -1 : a > b;
}

static int by_base(const void *pa, const void *pb) {
  const sched_item *a = *(const sched_item *const *)pa, *b = *(const sched_item *const *)pb;
  return a->base < b->base ? -1 : a->base > b->base;
}

int64_t sched_pack(arena *scratch, sched_item *item, int n, int64_t align) {
  sched_item **order = arena_new(scratch, sched_item *, n + 1);
  sched_item **meet = arena_new(scratch, sched_item *, n + 1);
  for (int i = 0; i < n; i++) order[i] = &item[i];
  qsort(order, (size_t)n, sizeof *order, by_size);
  int64_t height = 0;
  for (int i = 0; i < n; i++) {
    sched_item *x = order[i];
    int k = 0;
    for (int j = 0; j < i; j++)
      if (order[j]->first <= x->last && x->first <= order[j]->last) meet[k++] = order[j];
    qsort(meet, (size_t)k, sizeof *meet, by_base);
    int64_t at = 0;
    for (int j = 0; j < k; j++) {
      if (meet[j]->base >= at + x->bytes) break;
      int64_t end = (meet[j]->base + meet[j]->bytes + align - 1) & ~(align - 1);
      if (end > at) at = end;
    }
    x->base = at;
    if (at + x->bytes > height) height = at + x->bytes;
  }
  return height;
}
