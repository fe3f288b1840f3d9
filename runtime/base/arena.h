// Memory by lifetime: an arena hands out zeroed memory and is released as a whole.
//
// Every structure of the compiler lives in an arena: one per compilation, one scratch arena per
// pass. Nothing is freed by hand and objects own nothing. An arena never returns NULL: when memory
// runs out it calls its `oom` handler, which must not return (the compiler's handler longjmps to
// the driver, which reports `out of memory` and exits cleanly). Tests make the n-th request fail
// through `fail_at`.
//
//   arena a;
//   arena_init(&a);
//   int *p = arena_new(&a, int, 16);        // sixteen zeroed ints
//   char *s = arena_printf(&a, "h.%d", 3);  // "h.3"
//   arena_free(&a);
#ifndef DSM_BASE_ARENA_H
#define DSM_BASE_ARENA_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

typedef struct arena_chunk arena_chunk;

typedef struct arena {
  arena_chunk *chunk;      // newest chunk; older ones are chained behind it
  size_t total;            // bytes requested from the system so far
  uint64_t requests;       // chunk requests made so far
  uint64_t fail_at;        // 0: never; n: the n-th chunk request from now on fails (tests)
  size_t min_chunk;        // smallest chunk asked for; tests make it small to meet every request
  void (*oom)(void *ctx);  // called when memory runs out; must not return (abort when NULL)
  void *oom_ctx;
} arena;

// Makes an empty arena. It asks for memory only when first used.
void arena_init(arena *a);

// Releases everything the arena handed out. The arena is empty and usable afterwards.
void arena_free(arena *a);

// Hands all that `from` gave out to `a`, which releases it then. `from` is empty afterwards.
void arena_adopt(arena *a, arena *from);

// Returns `size` zeroed bytes aligned to 16. `size` 0 gives a valid, unique pointer.
void *arena_alloc(arena *a, size_t size);

// The same, but the bytes may be anything: for what is written before it is read.
void *arena_alloc_raw(arena *a, size_t size);

// Copies `n` bytes and appends a NUL.
char *arena_strndup(arena *a, const char *s, size_t n);
char *arena_strdup(arena *a, const char *s);

// printf into the arena.
char *arena_printf(arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
char *arena_vprintf(arena *a, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));

// `n` zeroed objects of type T.
#define arena_new(a, T, n) ((T *)arena_alloc((a), sizeof(T) * (size_t)(n)))

#endif
