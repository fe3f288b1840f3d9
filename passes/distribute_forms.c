// Placements and the exchanges between them.
//
// Where two axes cut one index, one is the outer one (dist_inside): what is cut is gathered from
// the inner axis out and cut from the outer one in.
#include <string.h>

#include "ir/place.h"
#include "passes/distribute_impl.h"
#include "passes/pass.h"
#include "passes/ranks.h"

int dist_value(const dist *d, const ir_value *v) {
  return v->id < d->g->nof ? d->g->of[v->id] : -1;
}

codes dist_made(const dist *d, int value) { return steps_made(d->ways, value); }

codes dist_side(const dist *d, int op, int side) { return steps_side(d->ways, op, side); }

void dist_refuse(dist *d, const ir_op *op, const char *why) {
  if (d->error) return;
  d->error = arena_printf(d->m->arena, "%s:%d:%d: `%s` among ranks: planned, not built: %s",
                          op->span.file ? op->span.file : "?", op->span.line, op->span.col,
                          op->path && *op->path ? op->path : ir_info(op->code)->name, why);
}

void dist_refuse_state(dist *d, const ir_state *st, const char *why) {
  if (!d->error)
    d->error =
        arena_printf(d->m->arena, "weight `%s` among ranks: planned, not built: %s", st->name, why);
}

static unsigned axes_with(const dist *d, codes in, int least, int most) {
  unsigned axes = 0;
  for (int x = 0; x < BL_INNER; x++)
    if (d->axis[x] && in.on[x] >= least && in.on[x] <= most) axes |= d->d->axes[x];
  return axes;
}

unsigned dist_cut_axes(const dist *d, codes in) { return axes_with(d, in, SH_LEAF, 127); }
unsigned dist_partial_axes(const dist *d, codes in) {
  return axes_with(d, in, SH_PARTIAL, SH_PARTIAL);
}

// ---- extents ------------------------------------------------------------------------------------

// In how many parts a leaf of a value is cut.
static int64_t parts_of(const dist *d, codes in, int leaf) {
  int64_t n = 1;
  for (int x = 0; x < BL_INNER; x++)
    if (d->axis[x] && leaf >= 0 && in.on[x] == SH_LEAF + leaf) n *= d->d->key.size[x];
  return n;
}

static const ir_op *maker(const ir_value *v) { return v->def ? v->def : v->region->owner; }

static int64_t part_size(int64_t n, int64_t parts) { return (n + parts - 1) / parts; }

// One index for the same part of the same index, wherever it occurs.
static ir_index *part_of(dist *d, ir_index *x, int64_t parts) {
  x = ir_root(x);
  if (parts == 1) return x;
  const char *key = arena_printf(d->m->arena, "%d/%lld", x->id, (long long)parts);
  ir_index *had = map_get(&d->extents, key);
  if (had) return had;
  ir_index *now = ir_index_new(d->m, x->name, part_size(x->size, parts));
  map_set(&d->extents, key, now);
  return now;
}

static ir_index *local_dim(dist *d, ir_index *dim, const pg_value *v, int at, codes in) {
  ir_index *leaf[IR_MAX_LEAVES];
  int n = ir_index_leaves(ir_root(dim), leaf, IR_MAX_LEAVES);
  int64_t parts[IR_MAX_LEAVES], all = 1, size = 1;
  sb key = {.arena = d->m->arena};
  sb_printf(&key, "%d", ir_root(dim)->id);
  for (int i = 0; i < n; i++) {
    parts[i] = parts_of(d, in, pg_leaf(v, at, ir_root(leaf[i])));
    all *= parts[i];
    size *= part_size(leaf[i]->size, parts[i]);
    sb_printf(&key, ".%lld", (long long)parts[i]);
  }
  if (all == 1) return dim;
  if (n == 1) return part_of(d, leaf[0], parts[0]);
  ir_index *had = map_get(&d->extents, sb_str(&key));
  if (had) return had;
  ir_index *now = ir_index_new(d->m, ir_root(dim)->name, size), *part[IR_MAX_LEAVES];
  int k = 0;
  for (int i = 0; i < n; i++) {
    part[k] = part_of(d, leaf[i], parts[i]);
    if (part[k]->size > 1) k++;
  }
  if (k > 1 && !ir_index_refine(d->m, now, part, k)) IR_BUG("an index that cannot be cut");
  if (k == 1) now = part[0];
  map_set(&d->extents, sb_str(&key), now);
  return now;
}

ir_type dist_local(dist *d, const ir_type *whole, int value, codes in) {
  const pg_value *v = &d->g->value.at[value];
  ir_type t = *whole;
  int layers = t.rank - v->rank;  // a stack has one dim more
  IR_CHECK(layers == 0 || layers == 1);
  for (int k = layers; k < t.rank; k++) t.dim[k] = local_dim(d, t.dim[k], v, k - layers, in);
  return t;
}

// ---- exchanges ----------------------------------------------------------------------------------

// All leaves of a value, outer to inner, with a rank's extents, and the number of each in the
// graph.
typedef struct extent_list {
  int n;
  int64_t size[IR_MAX_LEAVES + IR_MAX_RANK];
  int leaf[IR_MAX_LEAVES + IR_MAX_RANK];
} extent_list;

static extent_list extents_of(dist *d, const ir_type *whole, int value, codes in) {
  extent_list e = {0};
  const pg_value *v = &d->g->value.at[value];
  int layers = whole->rank - v->rank;
  for (int k = 0; k < whole->rank; k++) {
    ir_index *leaf[IR_MAX_LEAVES];
    int n = ir_index_leaves(ir_root(whole->dim[k]), leaf, IR_MAX_LEAVES);
    for (int i = 0; i < n; i++, e.n++) {
      IR_CHECK(e.n < IR_MAX_LEAVES + IR_MAX_RANK);
      e.leaf[e.n] = k < layers ? -1 : pg_leaf(v, k - layers, ir_root(leaf[i]));
      e.size[e.n] = part_size(leaf[i]->size, parts_of(d, in, e.leaf[e.n]));
    }
  }
  return e;
}

static int64_t product(const extent_list *e, int from, int to) {
  int64_t n = 1;
  for (int i = from; i < to; i++) n *= e->size[i];
  return n;
}

static int place_of(const extent_list *e, int code) {
  int i = 0;
  while (i < e->n && e->leaf[i] != code - SH_LEAF) i++;
  IR_CHECK(i < e->n);
  return i;
}

bool dist_inside(const dist *d, int value, int code, int y, int x) {
  return steps_inside(d->rules, value, code, y, x);
}

// Whether an axis inside `x` cuts the same leaf: then x's parts do not lie side by side.
static bool cut_inside(const dist *d, int value, codes in, int x, int code) {
  for (int y = 0; y < BL_INNER; y++)
    if (y != x && d->axis[y] && in.on[y] == code && dist_inside(d, value, code, y, x)) return true;
  return false;
}

static ir_value *all_to_all(dist *d, ir_region *r, ir_value *v, const ir_type *t, unsigned axes,
                            const extent_list *e, int from, int to) {
  int i = from < to ? from : to, j = from < to ? to : from;
  int64_t *shape = arena_new(d->m->arena, int64_t, 5);
  shape[0] = product(e, 0, i);
  shape[1] = e->size[i];
  shape[2] = product(e, i + 1, j);
  shape[3] = e->size[j];
  shape[4] = product(e, j + 1, e->n);
  ir_op *op = ir_op_raw(r, IR_all_to_all, &v, 1, t, 1);
  ir_set_attr(d->m, op, ir_attr_s("axes", mesh_axes_text(d->m->arena, d->m->mesh, axes)));
  ir_set_attr(d->m, op, ir_attr_v("shape", shape, 5));
  if (from > to) ir_set_attr(d->m, op, ir_attr_i("turned", 1));
  op->span = v->span;
  op->out[0]->name = v->name;
  return op->out[0];
}

// `v`, in placement `in`, on axis x as `to`.
static ir_value *convert(dist *d, ir_region *r, ir_value *v, const ir_type *whole, int value,
                         codes *in, int x, int to) {
  extent_list e = extents_of(d, whole, value, *in);
  int from = in->on[x];
  unsigned axes = d->d->axes[x];
  int64_t n = d->d->key.size[x];
  if ((from >= SH_LEAF && cut_inside(d, value, *in, x, from)) ||
      (to >= SH_LEAF && cut_inside(d, value, *in, x, to)))
    dist_refuse(d, maker(v), "an index that two axes cut changes its outer cut");
  in->on[x] = (signed char)to;
  ir_type t = dist_local(d, whole, value, *in);
  t.dtype = v->type.dtype;
  if (d->error) return v;
  if (from >= SH_LEAF && to >= SH_LEAF &&
      (dist_pads(d, value, from, x) || dist_pads(d, value, to, x))) {
    in->on[x] = (signed char)from;
    v = convert(d, r, v, whole, value, in, x, SH_REPLICATED);
    return d->error ? v : convert(d, r, v, whole, value, in, x, to);
  }
  if (from >= SH_LEAF && to >= SH_LEAF)
    return all_to_all(d, r, v, &t, axes, &e, place_of(&e, from), place_of(&e, to));
  if (to == SH_REPLICATED && from == SH_PARTIAL)
    return ranks_exchange(d->m, r, IR_all_reduce, v, &t, axes, 0, 0);
  int at = place_of(&e, from >= SH_LEAF ? from : to);
  int64_t inner = product(&e, at + 1, e.n), all = 0;
  if (dist_pads(d, value, from >= SH_LEAF ? from : to, x)) {
    all = d->g->value.at[value].leaf[(from >= SH_LEAF ? from : to) - SH_LEAF]->size * inner;
    if (product(&e, 0, at) > 1)
      dist_refuse(d, maker(v), "a part with padding of an index that is not the outermost one");
  }
  if (to >= SH_LEAF && !all && e.size[at] % n)
    dist_refuse(d, maker(v), "two axes cut an index that has not so many parts");
  if (d->error) return v;
  bool gathers = to == SH_REPLICATED, mirrors = dist_mirrors(d, value, gathers ? from : to, x);
  ir_opcode code = gathers ? IR_all_gather : from == SH_PARTIAL ? IR_reduce_scatter : IR_part;
  int64_t mine = gathers ? e.size[at] : part_size(e.size[at], n);
  ir_value *now = ranks_exchange(d->m, r, code, v, &t, axes, mine * inner, all);
  if (mirrors) ir_set_attr(d->m, now->def, ir_attr_i("mirror", 1));
  return now;
}

static ir_value *had(const dist *d, const ir_region *r, int segment, const ir_value *v, codes in) {
  for (int i = 0; i < d->forms.n; i++) {
    const made_form *f = &d->forms.at[i];
    if (f->of == v && f->at == r && f->segment == segment && codes_same(f->in, in)) return f->now;
  }
  return NULL;
}

static bool is_zero(const ir_value *v) {
  double x;
  return (v->def && v->def->code == IR_zeros) || (pass_const_value(v, &x) && x == 0);
}

// A value that all its readers round first is sent rounded, and is then what they round again.
static ir_value *convert_rounded(dist *d, ir_region *r, int segment, ir_value *v,
                                 const ir_type *whole, int value, codes *in, int x, int to) {
  ir_dtype t = d->g->value.at[value].sent_as, own = v->type.dtype;
  bool rounds = t != DT_COUNT && t != own && in->on[x] != SH_REPLICATED;
  if (rounds) {
    v = pass_cast(d->m, r, v, t);
    v->def->segment = segment;
  }
  v = convert(d, r, v, whole, value, in, x, to);
  if (d->error) return v;
  v->def->segment = segment;
  if (!rounds) return v;
  v = pass_cast(d->m, r, v, own);
  v->def->segment = segment;
  return v;
}

ir_value *dist_bring(dist *d, ir_region *r, int segment, ir_value *v, const ir_type *whole,
                     int value, codes from, codes to) {
  steps s = steps_between(d->ways, value, from, to);
  for (int i = 0; i < s.n && !d->error; i++) {
    if (s.to[i] == SH_PARTIAL) dist_refuse(d, maker(v), "a whole value as a part of a sum");
    if (d->error) return v;
    v = convert_rounded(d, r, segment, v, whole, value, &from, s.x[i], s.to[i]);
  }
  return v;
}

ir_value *dist_form(dist *d, ir_region *r, int segment, ir_value *v, codes in) {
  int value = dist_value(d, v);
  ir_value *cur = d->stands[v->id] ? d->stands[v->id] : v;
  if (value < 0) return cur;
  codes now = dist_made(d, value);
  ir_type whole = d->whole[v->id];
  if (is_zero(v)) {  // zeros are the same as parts of a sum, and anywhere
    for (int x = 0; x < BL_INNER; x++)
      if (in.on[x] == SH_PARTIAL) in.on[x] = now.on[x];
    if (codes_same(now, in)) return cur;
    ir_type t = dist_local(d, &whole, value, in);
    ir_op *zeros = ir_op_raw(r, IR_zeros, NULL, 0, &t, 1);
    zeros->segment = segment;
    zeros->span = v->span;
    return zeros->out[0];
  }
  steps s = steps_between(d->ways, value, now, in);
  for (int i = 0; i < s.n && !d->error; i++) {
    codes next = now;
    next.on[s.x[i]] = (signed char)s.to[i];
    ir_value *old = had(d, r, segment, v, next);
    if (!old) {
      old = dist_bring(d, r, segment, cur, &whole, value, now, next);
      made_form f = {v, next, r, segment, old};
      vec_push(d->m->arena, &d->forms, f);
    }
    cur = old;
    now = next;
  }
  return cur;
}

// ---- states -------------------------------------------------------------------------------------

void dist_share(dist *d, ir_state *st, int value, codes in) {
  ir_type whole = st->type;
  codes now = {{0}};
  for (int x = BL_INNER - 1; x >= 0; x--) {
    if (!d->axis[x] || in.on[x] < SH_LEAF) continue;
    extent_list e = extents_of(d, &whole, value, now);
    int at = place_of(&e, in.on[x]), layers = st->stacked ? 1 : 0;
    int64_t n = d->d->key.size[x];
    if (!st->nshares) st->whole = whole;
    IR_CHECK(st->nshares < IR_MAX_SHARES);
    if (dist_pads(d, value, in.on[x], x) && product(&e, layers, at) > 1)
      dist_refuse_state(d, st, "padding of an index that is not the outermost one");
    st->share[st->nshares++] =
        (ir_share){.axes = d->d->axes[x],
                   .block = part_size(e.size[at], n) * product(&e, at + 1, e.n),
                   .whole = product(&e, layers, e.n)};
    now.on[x] = in.on[x];
  }
  st->type = dist_local(d, &whole, value, in);
}
