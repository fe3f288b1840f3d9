#include "ir/place.h"

#include <ctype.h>
#include <string.h>

ir_index *place_cut_index(const ir_place *p, int axis) {
  for (int i = 0; p && i < p->ncuts; i++)
    for (int k = 0; k < p->cut[i].naxes; k++)
      if (p->cut[i].axis[k] == axis) return ir_root(p->cut[i].index);
  return NULL;
}

ir_on_axis place_on(const ir_place *p, int axis) {
  if (!p) return ON_REPLICATED;
  if (p->partial_axes >> axis & 1) return ON_PARTIAL;
  return place_cut_index(p, axis) ? ON_CUT : ON_REPLICATED;
}

int mesh_axis(const ir_mesh *m, const char *name) {
  for (int i = 0; i < m->naxes; i++)
    if (str_eq(m->axis[i].name, name)) return i;
  return -1;
}

int mesh_axis_at(const ir_mesh *m, const char *text, size_t *length) {
  int found = -1;
  *length = 0;
  for (int i = 0; i < m->naxes; i++) {
    size_t n = strlen(m->axis[i].name);
    unsigned char after = str_starts(text, m->axis[i].name) ? (unsigned char)text[n] : '_';
    if (n > *length && !isalnum(after) && after != '_') found = i, *length = n;
  }
  return found;
}

unsigned mesh_axes(const ir_mesh *m, const char *names) {
  unsigned axes = 0;
  for (const char *p = names; m && *p;) {
    size_t n;
    int a = mesh_axis_at(m, p, &n);
    if (a < 0 || m->axis[a].time) return 0;
    axes |= 1u << a;
    p += n;
    if (*p == '.') p++;
  }
  return axes;
}

const char *mesh_axes_text(arena *a, const ir_mesh *m, unsigned axes) {
  sb s = {.arena = a};
  for (int i = 0; i < m->naxes; i++)
    if (axes >> i & 1) sb_printf(&s, "%s%s", s.n ? "." : "", m->axis[i].name);
  return sb_str(&s);
}

unsigned mesh_axes_of(const ir_mesh *m, const char *name) {
  unsigned axes = 0;
  size_t n = strlen(name);
  for (int i = 0; m && i < m->naxes; i++) {
    const char *axis = m->axis[i].name;
    if (str_starts(axis, name) && (!axis[n] || axis[n] == '.')) axes |= 1u << i;
  }
  return axes;
}

int64_t mesh_parts(const ir_mesh *m, unsigned axes) {
  int64_t n = 1;
  for (int i = 0; m && i < m->naxes; i++)
    if (axes >> i & 1) n *= m->axis[i].size;
  return n;
}

bool ir_is_exchange(ir_opcode code) { return strstr(ir_info(code)->kinds, "exchange:"); }

bool ir_is_collective(ir_opcode code) { return strstr(ir_info(code)->kinds, "exchange:group"); }

unsigned ir_exchange_axes(const ir_module *m, const ir_op *op) {
  return mesh_axes(m->mesh, ir_attr_str(op, "axes", ""));
}

int64_t mesh_devices(const ir_mesh *m) {
  int64_t n = 1;
  for (int i = 0; i < m->naxes; i++)
    if (!m->axis[i].time) n *= m->axis[i].size;
  return n;
}

static ir_place *copy_of(ir_module *m, const ir_place *base) {
  ir_place *p = arena_new(m->arena, ir_place, 1);
  if (base) *p = *base;
  return p;
}

const ir_place *place_cut(ir_module *m, const ir_place *base, ir_index *index, int axis) {
  IR_CHECK(place_on(base, axis) == ON_REPLICATED);
  ir_place *p = copy_of(m, base);
  index = ir_root(index);
  int i = 0;
  while (i < p->ncuts && ir_root(p->cut[i].index) != index) i++;
  IR_CHECK(i < 4);
  if (i == p->ncuts) p->cut[p->ncuts++] = (ir_cut){.index = index};
  IR_CHECK(p->cut[i].naxes < 4);
  p->cut[i].axis[p->cut[i].naxes++] = axis;
  return p;
}

const ir_place *place_partial(ir_module *m, const ir_place *base, ir_partial kind, int axis) {
  IR_CHECK(place_on(base, axis) == ON_REPLICATED);
  IR_CHECK(!base || base->partial == PARTIAL_NONE || base->partial == kind);
  ir_place *p = copy_of(m, base);
  p->partial = kind;
  p->partial_axes |= 1u << axis;
  return p;
}

ir_conversion place_convert_on(ir_on_axis from, ir_on_axis to, bool same_index, bool time) {
  switch (from) {
    case ON_REPLICATED:
      if (to == ON_REPLICATED) return CONVERT_NONE;
      return to == ON_CUT ? CONVERT_SLICE : CONVERT_IMPOSSIBLE;
    case ON_CUT:
      if (to == ON_CUT && same_index) return CONVERT_NONE;
      if (time || to == ON_PARTIAL) return CONVERT_IMPOSSIBLE;
      return to == ON_CUT ? CONVERT_ALL_TO_ALL : CONVERT_ALL_GATHER;
    case ON_PARTIAL:
      if (to == ON_PARTIAL) return CONVERT_NONE;
      if (to == ON_CUT) return time ? CONVERT_IMPOSSIBLE : CONVERT_REDUCE_SCATTER;
      return time ? CONVERT_ACCUMULATE : CONVERT_ALL_REDUCE;
  }
  return CONVERT_IMPOSSIBLE;
}

ir_conversion place_convert(const ir_mesh *mesh, int axis, const ir_place *from,
                            const ir_place *to) {
  if (mesh->axis[axis].size == 1) return CONVERT_NONE;
  return place_convert_on(place_on(from, axis), place_on(to, axis),
                          place_cut_index(from, axis) == place_cut_index(to, axis),
                          mesh->axis[axis].time);
}

const char *place_convert_name(ir_conversion c) {
  static const char *const names[] = {"none",           "slice",      "all_gather", "all_reduce",
                                      "reduce_scatter", "all_to_all", "accumulate", "impossible"};
  return names[c];
}

const char *place_print(arena *a, const ir_mesh *mesh, const ir_place *p) {
  static const char *const kinds[] = {"none", "sum", "max", "lse"};
  sb s = {.arena = a};
  for (int i = 0; p && i < p->ncuts; i++) {
    const char *name = ir_root(p->cut[i].index)->name;
    sb_printf(&s, "%scut %s", i ? ", " : "", name ? name : "?");
    for (int k = 0; k < p->cut[i].naxes; k++)
      sb_printf(&s, "%c%s", k ? '.' : '/', mesh->axis[p->cut[i].axis[k]].name);
    if (p->cut[i].pattern == PATTERN_ZIGZAG) sb_puts(&s, " zigzag");
  }
  if (p && p->partial_axes) {
    sb_printf(&s, "%spartial %s", p->ncuts ? ", " : "", kinds[p->partial]);
    bool first = true;
    for (int i = 0; i < mesh->naxes; i++)
      if (p->partial_axes >> i & 1) {
        sb_printf(&s, "%c%s", first ? '/' : '.', mesh->axis[i].name);
        first = false;
      }
  }
  return sb_str(&s);
}

// ---- random draws -------------------------------------------------------------------------------

int64_t ir_draw_steps(const ir_module *m, const ir_op *op, const int64_t *size, int n,
                      int64_t *step) {
  const ir_attr *draws = ir_get_attr(op, "draws");
  int64_t all = 1, last = 0;
  for (int i = n - 1; i >= 0; all *= size[i--]) step[i] = all;
  if (!draws) return all;
  // A leaf may have been cut in two since: inner ones first, until all of it has been seen.
  int at = draws->n - 2;
  int64_t seen = 1;
  for (int i = n - 1; i >= 0; i--) {
    while (at >= 0 && seen == draws->v[at]) at -= 2, seen = 1;
    step[i] = 0;
    if (size[i] == 1) continue;
    IR_CHECK(at >= 0 && draws->v[at] % (seen * size[i]) == 0);
    step[i] = draws->v[at + 1] * seen;
    seen *= size[i];
    last += (size[i] - 1) * step[i];
  }
  for (int a = 0; m->mesh && a < m->mesh->naxes; a++)
    last += (m->mesh->axis[a].size - 1) * ir_begin(op, a);
  return last + 1;
}

int64_t ir_begin(const ir_op *op, int axis) {
  const ir_attr *begins = ir_get_attr(op, "begins");
  return begins && axis < begins->n ? begins->v[axis] : 0;
}

ir_mirror ir_mirror_of(const ir_op *op) {
  const ir_attr *a = ir_get_attr(op, "mirror");
  if (!a || a->n != 3) return (ir_mirror){0};
  return (ir_mirror){a->v[0], a->v[1], (unsigned)a->v[2]};
}
