// A growing array in an arena.
//
//   VEC(int) v = {0};
//   vec_push(a, &v, 7);
//   for (int i = 0; i < v.n; i++) use(v.at[i]);
//
// Growth copies into a new block and leaves the old one to the arena, so pointers into `at` are
// valid only until the next push.
#ifndef DSM_BASE_VEC_H
#define DSM_BASE_VEC_H

#include "runtime/base/arena.h"

#define VEC(T)  \
  struct {      \
    T *at;      \
    int n, cap; \
  }

// Appends `...` (an expression of the element type) to *v. The expression is worked out first, so
// it may read *v and even push to it.
#define vec_push(a, v, ...)                                                                       \
  do {                                                                                            \
    __typeof__(*(v)->at) vec_new = (__VA_ARGS__);                                                 \
    if ((v)->n == (v)->cap) (v)->at = vec_grow((a), (v)->at, (v)->n, &(v)->cap, sizeof *(v)->at); \
    (v)->at[(v)->n++] = vec_new;                                                                  \
  } while (0)

// Room for `k` elements in all, for a vector whose size is known before: no block is left behind.
#define vec_reserve(a, v, k)                                          \
  do {                                                                \
    if (!(v)->cap) {                                                  \
      (v)->cap = (k);                                                 \
      (v)->at = arena_alloc((a), sizeof *(v)->at * (size_t)(v)->cap); \
    }                                                                 \
  } while (0)

#define vec_last(v) ((v)->at[(v)->n - 1])

// Doubles the capacity (`*cap`, at least 8) of an array of `n` elements of `size` bytes.
void *vec_grow(arena *a, void *at, int n, int *cap, size_t size);

#endif
