// A map from strings to pointers, in an arena, that remembers the order of insertion.
//
//   map m = {.arena = a};
//   map_set(&m, "layers", value);
//   value = map_get(&m, "layers");            // NULL when absent
//   for (int i = 0; i < m.n; i++) use(m.keys[i], m.values[i]);
//
// Keys are not copied: they must live as long as the map. Iteration order is insertion order, so
// nothing the compiler emits depends on hashing.
#ifndef DSM_BASE_MAP_H
#define DSM_BASE_MAP_H

#include "runtime/base/arena.h"

typedef struct map {
  arena *arena;
  const char **keys;
  void **values;
  int n, cap;
  int *slots;  // hash table of indices + 1; 0 is empty
  int nslots;
} map;

void *map_get(const map *m, const char *key);
// Sets or replaces; returns the value that was there before, or NULL.
void *map_set(map *m, const char *key, void *value);
// The position of `key` in insertion order, or -1.
int map_find(const map *m, const char *key);

// FNV-1a, the hash the map uses; also good for small digests.
uint64_t base_hash(const void *data, size_t n, uint64_t seed);

#endif
