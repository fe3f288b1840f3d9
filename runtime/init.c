#include "runtime/init.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/rng.h"
#include "runtime/dtype.h"
#include "runtime/parts.h"

#define CELL 4096  // elements a cell fills

double init_normal(uint64_t key, uint64_t i) {
  // A pair of uniforms makes a pair of normals: cosine for even numbers, sine for odd ones.
  double u = 1.0 - rng_unit(key, i & ~(uint64_t)1);  // in (0, 1]
  double angle = 6.283185307179586 * rng_unit(key, i | 1);
  return sqrt(-2.0 * log(u)) * (i & 1 ? sin(angle) : cos(angle));
}

const char *init_state_name(const prog *p, const prog_state *s, int64_t k, char *buf, size_t n) {
  const char *name = prog_text(p, s->name);
  if (s->layers == 0) {
    snprintf(buf, n, "%s", name);
    return buf;
  }
  // Layers unlike the first ones are stacks of their own, told apart by "@FIRST" in the program;
  // the file knows each tensor by its layer alone: "h.#.w@1.m" is h.1.w.m, h.3.w.m, ...
  const char *hash = strchr(name, '#'), *at = strchr(hash, '@');
  const char *after = at ? at + 1 + strspn(at + 1, "0123456789") : "";
  int rest = at ? (int)(at - hash - 1) : (int)strlen(hash + 1);
  snprintf(buf, n, "%.*s%lld%.*s%s", (int)(hash - name), name, (long long)(s->first + k * s->step),
           rest, hash + 1, after);
  return buf;
}

typedef struct fill {
  unsigned char *at;
  const prog_state *weight;  // says what is drawn
  const prog_state *copy;    // NULL, or what `at` is: rounded, then
  part part;
  uint64_t key;
} fill;

// Element `i` of the whole slice.
static void fill_one(const fill *f, int64_t i, unsigned char *at) {
  uint32_t dtype = f->weight->dtype;
  double a = f->weight->init_a, v = 0;
  switch (f->weight->init) {
    case PROG_ONES: v = 1; break;
    case PROG_CONST: v = a; break;
    case PROG_NORMAL: v = a * init_normal(f->key, (uint64_t)i); break;
    case PROG_UNIFORM: v = a * (2 * rng_unit(f->key, (uint64_t)i) - 1); break;
  }
  // Through f32 first: a bf16 weight starts at the rounding of the f32 one.
  float x = (float)v;
  int64_t whole = (int64_t)v;
  if (f->copy)
    vm_round_copy(f->copy, (const unsigned char *)&x, at, 1);
  else if (dtype == PROG_F64)
    dtype_convert(at, dtype, &v, PROG_F64, 1);
  else if (dtype_convertible(dtype, PROG_F32))
    dtype_convert(at, dtype, &x, PROG_F32, 1);
  else if (dtype_convertible(dtype, PROG_I64))
    dtype_convert(at, dtype, &whole, PROG_I64, 1);
  else
    *at = 0;
}

static void fill_cells(void *ctx, int64_t lo, int64_t hi) {
  const fill *f = ctx;
  int bytes = dtype_of(f->copy ? f->copy->dtype : f->weight->dtype)->bytes;
  part_run r;
  for (int64_t at = lo * CELL; at < hi * CELL && part_next(&f->part, &at, &r);)
    for (int64_t i = 0; i < r.n && r.local + i < hi * CELL; i++)
      fill_one(f, r.global + i, f->at + (r.local + i) * bytes);
}

void init_states(vm *m, const prog *p, pool *threads, uint64_t seed, int rank) {
  char name[4096];
  for (uint32_t i = 0; i < p->nstates; i++) {
    const prog_state *s = &p->states[i], *w = s->cls == PROG_COPY ? prog_weight_of(p, s) : s;
    // Copies of what the rank has itself are made below.
    bool copy = s != w;
    if (w->init == PROG_ZEROS || (copy && part_cut_alike(p, s, w))) continue;
    fill f = {.weight = w, .copy = copy ? s : NULL, .part = part_of(p, rank, s)};
    for (int64_t k = 0; k < prog_state_slices(s); k++) {
      init_state_name(p, w, k, name, sizeof name);
      f.at = vm_at(m, s->offset + (s->layers ? k * s->layer_stride : 0));
      f.key = rng_key(seed, XXH3_64bits(name, strlen(name)));
      pool_run(threads, (part_elements(&f.part) + CELL - 1) / CELL, fill_cells, &f);
    }
  }
  vm_make_copies(m);
}
