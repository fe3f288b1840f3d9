#include "runtime/base/map.h"

#include <string.h>

uint64_t base_hash(const void *data, size_t n, uint64_t seed) {
  const unsigned char *p = data;
  uint64_t h = 0xcbf29ce484222325u ^ seed;
  for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
  return h ^ (h >> 29);
}

static uint64_t hash_key(const char *key) { return base_hash(key, strlen(key), 0); }

int map_find(const map *m, const char *key) {
  if (!m->nslots) return -1;
  unsigned mask = (unsigned)m->nslots - 1;
  for (unsigned i = (unsigned)hash_key(key) & mask; m->slots[i]; i = (i + 1) & mask)
    if (strcmp(m->keys[m->slots[i] - 1], key) == 0) return m->slots[i] - 1;
  return -1;
}

void *map_get(const map *m, const char *key) {
  int i = map_find(m, key);
  return i < 0 ? NULL : m->values[i];
}

static void place(map *m, int entry) {
  unsigned mask = (unsigned)m->nslots - 1;
  unsigned i = (unsigned)hash_key(m->keys[entry]) & mask;
  while (m->slots[i]) i = (i + 1) & mask;
  m->slots[i] = entry + 1;
}

static void grow(map *m) {
  int cap = m->cap ? m->cap * 2 : 16;
  const char **keys = arena_new(m->arena, const char *, cap);
  void **values = arena_new(m->arena, void *, cap);
  if (m->n) {
    memcpy(keys, m->keys, sizeof *keys * (size_t)m->n);
    memcpy(values, m->values, sizeof *values * (size_t)m->n);
  }
  m->keys = keys;
  m->values = values;
  m->cap = cap;
  m->nslots = cap * 2;
  m->slots = arena_new(m->arena, int, m->nslots);
  for (int i = 0; i < m->n; i++) place(m, i);
}

void *map_set(map *m, const char *key, void *value) {
  int i = map_find(m, key);
  if (i >= 0) {
    void *old = m->values[i];
    m->values[i] = value;
    return old;
  }
  if (m->n == m->cap) grow(m);
  m->keys[m->n] = key;
  m->values[m->n] = value;
  place(m, m->n++);
  return NULL;
}
