#include "runtime/base/arena.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_MIN_CHUNK ((size_t)64 * 1024)

struct arena_chunk {
  arena_chunk *older;
  size_t used, size;  // of `bytes`
  _Alignas(16) unsigned char bytes[];
};

void arena_init(arena *a) {
  memset(a, 0, sizeof *a);
  a->min_chunk = ARENA_MIN_CHUNK;
}

void arena_free(arena *a) {
  arena_chunk *c = a->chunk;
  while (c) {
    arena_chunk *older = c->older;
    free(c);
    c = older;
  }
  a->chunk = NULL;
  a->total = 0;
}

void arena_adopt(arena *a, arena *from) {
  arena_chunk *last = from->chunk;
  if (!last) return;
  while (last->older) last = last->older;
  if (a->chunk) {  // behind the newest one, of which some is free
    last->older = a->chunk->older;
    a->chunk->older = from->chunk;
  } else {
    a->chunk = from->chunk;
  }
  a->total += from->total;
  from->chunk = NULL;
  from->total = 0;
}

static void out_of_memory(arena *a) {
  if (a->oom) a->oom(a->oom_ctx);
  fputs("out of memory\n", stderr);
  abort();
}

static void grow(arena *a, size_t size) {
  // Doubling keeps the number of chunks logarithmic without wasting more than half.
  size_t want = a->chunk && a->min_chunk >= ARENA_MIN_CHUNK ? a->chunk->size * 2 : a->min_chunk;
  if (want > (size_t)16 << 20) want = (size_t)16 << 20;
  if (want < size) want = size;
  a->requests++;
  arena_chunk *c = NULL;
  if (!(a->fail_at && a->requests >= a->fail_at) && want <= SIZE_MAX - sizeof *c)
    c = malloc(sizeof *c + want);
  if (!c) {
    out_of_memory(a);
    return;
  }
  c->older = a->chunk;
  c->used = 0;
  c->size = want;
  a->chunk = c;
  a->total += want;
}

void *arena_alloc_raw(arena *a, size_t size) {
  if (size > SIZE_MAX / 2) out_of_memory(a);
  size = (size + 15) & ~(size_t)15;
  if (size == 0) size = 16;
  if (!a->chunk || a->chunk->size - a->chunk->used < size) grow(a, size);
  unsigned char *p = a->chunk->bytes + a->chunk->used;
  a->chunk->used += size;
  return p;
}

void *arena_alloc(arena *a, size_t size) { return memset(arena_alloc_raw(a, size), 0, size); }

char *arena_strndup(arena *a, const char *s, size_t n) {
  char *p = arena_alloc(a, n + 1);
  if (n) memcpy(p, s, n);
  return p;
}

char *arena_strdup(arena *a, const char *s) { return arena_strndup(a, s, strlen(s)); }

char *arena_vprintf(arena *a, const char *fmt, va_list ap) {
  va_list again;
  va_copy(again, ap);
  int n = vsnprintf(NULL, 0, fmt, again);
  va_end(again);
  if (n < 0) n = 0;
  char *p = arena_alloc(a, (size_t)n + 1);
  vsnprintf(p, (size_t)n + 1, fmt, ap);
  return p;
}

char *arena_printf(arena *a, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  char *p = arena_vprintf(a, fmt, ap);
  va_end(ap);
  return p;
}
