#include "runtime/base/intern.h"

#include <limits.h>

static uint64_t hash_word(uint64_t h, uint64_t word) {
  h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
  return h ^ h >> 29;
}

void key_grow(intern_key *b, size_t n) {
  b->cap = 2 * (b->n + n) + 256;
  unsigned char *more = arena_alloc(b->arena, b->cap);
  if (b->n) memcpy(more, b->at, b->n);
  b->at = more;
}

static uint64_t hash_of(const intern_key *key) {
  uint64_t h = key->n;
  size_t i = 0;
  for (; i + 8 <= key->n; i += 8) {
    uint64_t word;
    memcpy(&word, key->at + i, 8);
    h = hash_word(h, word);
  }
  uint64_t tail = 0;
  if (i < key->n) memcpy(&tail, key->at + i, key->n - i);
  return hash_word(h, tail);
}

static void place(intern *x, int number) {
  unsigned mask = (unsigned)x->nslots - 1, at = (unsigned)x->entry[number].hash & mask;
  while (x->slot[at]) at = (at + 1) & mask;
  x->slot[at] = number + 1;
}

static void grow(intern *x, int cap) {
  intern_entry *entry = arena_new(x->arena, intern_entry, cap);
  if (x->n) memcpy(entry, x->entry, sizeof *entry * (size_t)x->n);
  x->entry = entry;
  x->cap = cap;
  x->nslots = 2 * cap;
  x->slot = arena_new(x->arena, int, x->nslots);
  for (int i = 0; i < x->n; i++) place(x, i);
}

void intern_reserve(intern *x, int n) {
  int cap = 16;
  while (cap < n && cap <= INT_MAX / 4) cap *= 2;
  if (cap > x->cap) grow(x, cap);
}

int intern_of(intern *x, const intern_key *key) {
  uint64_t h = hash_of(key);
  unsigned mask = (unsigned)x->nslots - 1;
  for (unsigned at = (unsigned)h & mask; x->nslots && x->slot[at]; at = (at + 1) & mask) {
    const intern_entry *e = &x->entry[x->slot[at] - 1];
    if (e->hash == h && e->n == key->n && (!e->n || memcmp(e->key, key->at, e->n) == 0))
      return x->slot[at] - 1;
  }
  if (x->n == x->cap) grow(x, x->cap ? 2 * x->cap : 16);
  unsigned char *copy = arena_alloc(x->arena, key->n);
  if (key->n) memcpy(copy, key->at, key->n);
  x->entry[x->n] = (intern_entry){copy, key->n, h};
  place(x, x->n);
  return x->n++;
}
