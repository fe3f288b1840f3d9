// Numbers for byte strings: equal ones have equal numbers, in the order in which they came.
//
// For keys that are made of numbers and looked up often: what is the same for many things is worked
// out once and kept in an array beside the numbers.
//
//   intern x = {.arena = a};
//   intern_key key = {.arena = a};
//   key_put(&key, &op->code, sizeof op->code);
//   int n = intern_of(&x, &key);        // x.n - 1 when it is new
//   key_clear(&key);
#ifndef DSM_BASE_INTERN_H
#define DSM_BASE_INTERN_H

#include <stdint.h>
#include <string.h>

#include "runtime/base/arena.h"

// A key while it is made; its room is used again for the next one.
typedef struct intern_key {
  arena *arena;
  unsigned char *at;
  size_t n, cap;
} intern_key;
void key_grow(intern_key *b, size_t n);  // room for n more
static inline void key_put(intern_key *b, const void *data, size_t n) {
  if (b->n + n > b->cap) key_grow(b, n);
  if (n) memcpy(b->at + b->n, data, n);
  b->n += n;
}
static inline void key_clear(intern_key *b) { b->n = 0; }
#define KEY_PUT(b, x) key_put((b), &(x), sizeof(x))

typedef struct intern_entry {
  const unsigned char *key;
  size_t n;
  uint64_t hash;
} intern_entry;

typedef struct intern {
  arena *arena;
  int n, cap;
  intern_entry *entry;  // [n]
  int *slot;            // hash table of numbers + 1; 0 is empty
  int nslots;
} intern;

// Makes room for n keys, where so many will come.
void intern_reserve(intern *x, int n);
// The number of a key, which is copied when it is new: then it is the last one, n - 1. Padding in
// structs would count: put their fields.
int intern_of(intern *x, const intern_key *key);

#endif
