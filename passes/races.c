#include "passes/races.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/vec.h"

enum { MAX_STREAMS = 5 };

typedef struct clocks {
  int64_t at[MAX_STREAMS];
} clocks;

// Bytes lo .. hi-1, and when each stream read and wrote them last; 0: never.
typedef struct span {
  int64_t lo, hi;
  clocks read, write;
} span;

typedef VEC(span) spans;

struct races {
  arena *arena;
  int streams;
  clocks *stream, *event;  // what each knows
  spans home[RACES_HOMES];
};

races *races_new(arena *a, int streams, int events) {
  races *r = arena_new(a, races, 1);
  r->arena = a;
  if (streams > MAX_STREAMS) abort();
  r->streams = streams;
  r->stream = arena_new(a, clocks, MAX_STREAMS);
  r->event = arena_new(a, clocks, events + 1);
  return r;
}

void races_step(races *r, int stream) { r->stream[stream].at[stream]++; }

// Makes room for `n` spans in front of number `at`.
static void open_gap(races *r, spans *v, int at, int n) {
  for (int i = 0; i < n; i++) vec_push(r->arena, v, (span){0});
  memmove(&v->at[at + n], &v->at[at], (size_t)(v->n - n - at) * sizeof(span));
}

// Cuts a span in two where `at` lies inside it, and returns the number of the first span that ends
// behind `at`.
static int split_at(races *r, spans *v, int64_t at) {
  int lo = 0, hi = v->n;
  while (lo < hi) {
    int mid = (lo + hi) / 2;
    if (v->at[mid].hi > at)
      hi = mid;
    else
      lo = mid + 1;
  }
  if (lo == v->n || v->at[lo].lo >= at) return lo;
  open_gap(r, v, lo, 1);
  v->at[lo] = v->at[lo + 1];
  v->at[lo].hi = v->at[lo + 1].lo = at;
  return lo + 1;
}

static int unordered(const races *r, const clocks *knows, const clocks *access) {
  for (int s = 0; s < r->streams; s++)
    if (access->at[s] > knows->at[s]) return s;
  return -1;
}

int races_access(races *r, int stream, int home, int64_t lo, int64_t hi, bool write) {
  spans *v = &r->home[home];
  const clocks *knows = &r->stream[stream];
  int met = -1;
  if (lo >= hi) return -1;
  int i = split_at(r, v, lo);
  split_at(r, v, hi);
  for (int64_t at = lo; at < hi; i++) {
    if (i == v->n || v->at[i].lo > at) {  // bytes that nobody has touched
      int64_t end = i < v->n && v->at[i].lo < hi ? v->at[i].lo : hi;
      open_gap(r, v, i, 1);
      v->at[i] = (span){.lo = at, .hi = end};
    }
    span *s = &v->at[i];
    if (met < 0) met = unordered(r, knows, &s->write);
    if (met < 0 && write) met = unordered(r, knows, &s->read);
    (write ? &s->write : &s->read)->at[stream] = knows->at[stream];
    at = s->hi;
  }
  return met;
}

void races_record(races *r, int stream, int event) { r->event[event] = r->stream[stream]; }

void races_wait(races *r, int stream, int event) {
  for (int s = 0; s < r->streams; s++)
    if (r->event[event].at[s] > r->stream[stream].at[s])
      r->stream[stream].at[s] = r->event[event].at[s];
}
