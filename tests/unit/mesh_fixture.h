// States of a mesh without a compiler: a prog made by hand that has axes and cut states, and no
// entries. Every rank of it can be opened as a vm of its own.
#ifndef MESH_FIXTURE_H
#define MESH_FIXTURE_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "runtime/dtype.h"
#include "runtime/prog.h"

enum { MESH_STATES = 32, MESH_STRINGS = 2048 };

typedef struct mesh {
  prog prog;
  prog_header header;
  prog_axis axes[PROG_MAX_AXES];
  prog_state states[MESH_STATES];
  char strings[MESH_STRINGS];
} mesh;

static prog_str mesh_str(mesh *m, const char *text) {
  prog_str at = m->prog.nstrings;
  size_t n = strlen(text) + 1;
  assert(at + n <= MESH_STRINGS);
  memcpy(m->strings + at, text, n);
  m->prog.nstrings += (uint32_t)n;
  return at;
}

// Axes of these sizes, named a, b, ..., the first one outermost.
static void mesh_init(mesh *m, int naxes, const int64_t *sizes) {
  memset(m, 0, sizeof *m);
  prog *p = &m->prog;
  p->header = &m->header;
  p->states = m->states;
  p->axes = m->axes;
  p->strings = m->strings;
  m->header.model = m->header.compiler = mesh_str(m, "mesh");
  m->header.machine = PROG_HOST;
  int64_t stride = 1;
  p->naxes = (uint32_t)naxes;
  for (int i = naxes - 1; i >= 0; i--) {
    char name[2] = {(char)('a' + i), 0};
    m->axes[i] = (prog_axis){mesh_str(m, name), 0, sizes[i], stride};
    stride *= sizes[i];
  }
}

__attribute__((unused)) static int mesh_ranks(const mesh *m) {
  int64_t n = 1;
  for (uint32_t i = 0; i < m->prog.naxes; i++) n *= m->axes[i].size;
  return (int)n;
}

// Adds a whole state that fills the arena's end; mesh_cut, mesh_stack may follow.
__attribute__((unused)) static prog_state *mesh_state(mesh *m, const char *name, const char *of,
                                                      uint32_t cls, uint32_t dtype, uint32_t rank,
                                                      const int64_t *dims) {
  assert(m->prog.nstates < MESH_STATES);
  prog_state *s = &m->states[m->prog.nstates++];
  *s = (prog_state){.cls = cls, .dtype = dtype, .rank = rank, .global_rank = rank, .step = 1};
  s->name = mesh_str(m, name);
  s->of = mesh_str(m, of);
  memcpy(s->dims, dims, rank * sizeof *dims);
  memcpy(s->global, dims, rank * sizeof *dims);
  return s;
}

static int64_t mesh_product(const int64_t *dims, uint32_t rank) {
  int64_t n = 1;
  for (uint32_t i = 0; i < rank; i++) n *= dims[i];
  return n;
}

// Cuts what is left of a state among the ranks of a group over `axes`: dimension `dim` of what a
// rank has, or, -1, all elements as they lie.
static void mesh_cut(mesh *m, prog_state *s, uint32_t axes, int dim) {
  int64_t parts = 1, held = mesh_product(s->dims, s->rank), inner = 1;
  for (uint32_t i = 0; i < m->prog.naxes; i++)
    if (axes >> i & 1) parts *= m->axes[i].size;
  if (dim < 0) {
    s->rank = 1;
    s->dims[0] = (held + parts - 1) / parts;
  } else {
    inner = mesh_product(s->dims + dim + 1, s->rank - (uint32_t)dim - 1);
    s->dims[dim] = (s->dims[dim] + parts - 1) / parts;
    // Dimensions but the first must divide.
    assert(dim == 0 || mesh_product(s->dims, s->rank) * parts == held);
    inner *= s->dims[dim];
  }
  prog_cut c = {.axes = axes, .block = dim < 0 ? s->dims[0] : inner, .whole = held};
  assert(s->ncuts < PROG_MAX_CUTS);
  s->cut[s->ncuts++] = c;
}

// Gives states their places, one behind the other.
__attribute__((unused)) static void mesh_lay(mesh *m) {
  int64_t at = 64;
  for (uint32_t i = 0; i < m->prog.nstates; i++) {
    prog_state *s = &m->states[i];
    s->bytes = mesh_product(s->dims, s->rank) * dtype_of(s->dtype)->bytes;
    s->layer_stride = s->layers ? (s->bytes + 15) / 16 * 16 : 0;
    s->offset = at;
    at += (s->layers ? s->layer_stride * s->layers : s->bytes) + 63;
    at -= at % 64;
  }
  m->header.arena_bytes = m->header.states_bytes = (uint64_t)at;
}

#endif
