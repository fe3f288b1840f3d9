// Packing by simple rules, and the check of a packing.
//
// Everything here goes through time once with the buffers alive at that moment, or through the
// buffers once in a given order: no search. The rules give the search a height to beat, and are all
// that is done for lists too long to search.

#include <stdlib.h>
#include <string.h>

#include "passes/pack.h"
#include "runtime/base/clock.h"

// A birth or a death. Deaths come first: lifetimes are half-open.
typedef struct event {
  int64_t time;
  int born;  // 0 or 1
  int buffer;
} event;

static int by_time(const void *pa, const void *pb) {
  const event *a = pa, *b = pb;
  if (a->time != b->time) return a->time < b->time ? -1 : 1;
  if (a->born != b->born) return a->born - b->born;
  return a->buffer - b->buffer;
}

// Both ends of every buffer that has a size, in order; *n of them.
static event *events_of(arena *scratch, const pack_buffer *b, int buffers, int *n) {
  event *e = arena_new(scratch, event, 2 * (size_t)buffers);
  *n = 0;
  for (int i = 0; i < buffers; i++) {
    if (!b[i].size) continue;
    e[(*n)++] = (event){b[i].lower, 1, i};
    e[(*n)++] = (event){b[i].upper, 0, i};
  }
  qsort(e, (size_t)*n, sizeof *e, by_time);
  return e;
}

int64_t pack_load(arena *scratch, const pack_buffer *b, int n) {
  int events;
  const event *e = events_of(scratch, b, n, &events);
  int64_t now = 0, most = 0;
  for (int i = 0; i < events; i++) {
    now += e[i].born ? b[e[i].buffer].size : -b[e[i].buffer].size;
    if (now > most) most = now;
  }
  return most;
}

// Buffers sorted by offset: those alive, or those placed.
typedef struct stack {
  int *at;
  int n;
} stack;

static int place_of(const stack *s, const pack_buffer *b, int64_t offset) {
  int lo = 0, hi = s->n;
  while (lo < hi) {
    int mid = (lo + hi) / 2;
    if (b[s->at[mid]].offset < offset)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

static void insert(stack *s, int k, int buffer) {
  memmove(s->at + k + 1, s->at + k, sizeof *s->at * (size_t)(s->n - k));
  s->at[k] = buffer;
  s->n++;
}

static void take_out(stack *s, const pack_buffer *b, int buffer) {
  int k = place_of(s, b, b[buffer].offset);
  while (s->at[k] != buffer) k++;
  s->n--;
  memmove(s->at + k, s->at + k + 1, sizeof *s->at * (size_t)(s->n - k));
}

int64_t pack_by_time(arena *scratch, pack_buffer *b, int n) {
  int events;
  const event *e = events_of(scratch, b, n, &events);
  stack alive = {arena_new(scratch, int, (size_t)n + 1), 0};
  int64_t height = 0;
  for (int i = 0; i < n; i++) b[i].offset = 0;
  for (int i = 0; i < events; i++) {
    int x = e[i].buffer, k = 0;
    if (!e[i].born) {
      take_out(&alive, b, x);
      continue;
    }
    int64_t at = 0;
    for (; k < alive.n && b[alive.at[k]].offset - at < b[x].size; k++)
      at = b[alive.at[k]].offset + b[alive.at[k]].size;
    b[x].offset = at;
    insert(&alive, k, x);
    if (at + b[x].size > height) height = at + b[x].size;
  }
  return height;
}

int64_t pack_by_order(arena *scratch, pack_buffer *b, int n, const int *order, double deadline) {
  stack placed = {arena_new(scratch, int, (size_t)n + 1), 0};
  int64_t height = 0;
  for (int i = 0; i < n; i++) {
    pack_buffer *x = &b[order[i]];
    x->offset = 0;
    if (!x->size) continue;
    if ((i & 255) == 255 && clock_s() > deadline) return -1;
    for (int k = 0; k < placed.n; k++) {
      const pack_buffer *y = &b[placed.at[k]];
      if (y->lower >= x->upper || x->lower >= y->upper) continue;
      if (y->offset - x->offset >= x->size) break;
      int64_t top = y->offset + y->size;
      if (top > x->offset) x->offset = top;
    }
    insert(&placed, place_of(&placed, b, x->offset), order[i]);
    if (x->offset + x->size > height) height = x->offset + x->size;
  }
  return height;
}

// Those alive are sorted by offset and do not overlap, so a newcomer can only meet the two beside
// its place.
bool pack_check(arena *scratch, const pack_buffer *b, int n, int *x, int *y) {
  int events;
  const event *e = events_of(scratch, b, n, &events);
  stack alive = {arena_new(scratch, int, (size_t)n + 1), 0};
  for (int i = 0; i < events; i++) {
    int a = e[i].buffer;
    *x = *y = a;
    if (b[a].offset < 0) return false;
    if (!e[i].born) {
      take_out(&alive, b, a);
      continue;
    }
    int k = place_of(&alive, b, b[a].offset);
    if (k < alive.n) {
      *y = alive.at[k];
      if (b[*y].offset - b[a].offset < b[a].size) return false;
    }
    if (k > 0) {
      *y = alive.at[k - 1];
      if (b[a].offset - b[*y].offset < b[*y].size) return false;
    }
    insert(&alive, k, a);
  }
  return true;
}
