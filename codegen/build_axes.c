// Axes: how several strided tensors are walked together, and how extents are cut into tiles.
#include <string.h>

#include "codegen/build_impl.h"

// ---- alignment ---------------------------------------------------------------------------------

// One tensor's leaves, consumed from the inside.
typedef struct cursor {
  const b_part *part;
  int leaf;        // the current leaf; below part->first: exhausted
  int64_t left;    // of the current leaf, not consumed yet
  int64_t stride;  // step of the next axis taken from it
} cursor;

static void advance(cursor *c) {
  while (c->part->view && c->left == 1 && c->leaf > c->part->first) {
    c->leaf--;
    c->left = c->part->view->size[c->leaf];
    c->stride = c->part->view->stride[c->leaf];
  }
}

static int64_t part_product(const b_part *p) {
  int64_t n = 1;
  for (int i = p->first; p->view && i < p->last; i++) n *= p->view->size[i];
  return n;
}

bool b_align(b_axes *out, const b_part *part, int tensors) {
  cursor c[B_MAX_TENSORS];
  int64_t total = 1;
  out->tensors = tensors;
  for (int t = 0; t < tensors; t++) {
    int64_t n = part_product(&part[t]);
    if (n > total) total = n;
  }
  for (int t = 0; t < tensors; t++) {
    c[t] = (cursor){.part = &part[t]};
    // Extent 1 (or no part at all) repeats along the others.
    if (!part[t].view || part_product(&part[t]) == 1) {
      c[t].left = total;
      c[t].leaf = part[t].first;
      continue;
    }
    if (part_product(&part[t]) != total) return false;
    c[t].leaf = part[t].last - 1;
    c[t].left = part[t].view->size[c[t].leaf];
    c[t].stride = part[t].view->stride[c[t].leaf];
  }
  // The axes of this dimension, inner first.
  int64_t size[B_MAX_AXES], stride[B_MAX_TENSORS][B_MAX_AXES];
  int n = 0;
  while (total > 1) {
    int64_t s = total;
    for (int t = 0; t < tensors; t++) {
      advance(&c[t]);
      if (c[t].left < s) s = c[t].left;
    }
    IR_CHECK(n < B_MAX_AXES);
    for (int t = 0; t < tensors; t++) {
      if (c[t].left % s != 0) return false;
      stride[t][n] = c[t].stride;
      c[t].left /= s;
      c[t].stride *= s;
    }
    size[n++] = s;
    total /= s;
  }
  IR_CHECK(out->n + n <= B_MAX_AXES);
  for (int i = n - 1; i >= 0; i--) {
    for (int t = 0; t < tensors; t++) out->stride[t][out->n] = stride[t][i];
    out->size[out->n++] = size[i];
  }
  return true;
}

bool b_align_to(b_axes *out, const ir_type *type, const ir_view *const *view, int tensors) {
  memset(out, 0, sizeof *out);
  out->tensors = tensors;
  for (int d = 0; d < type->rank; d++) {
    b_part part[B_MAX_TENSORS] = {0};
    for (int t = 0; t < tensors; t++) {
      int rank = 0;
      while (rank < IR_MAX_RANK && view[t]->dim_first[rank] < view[t]->nleaves) rank++;
      int own = d - (type->rank - rank);  // aligned at the last dimension
      if (own < 0) continue;
      part[t] = (b_part){view[t], view[t]->dim_first[own], view[t]->dim_first[own + 1]};
    }
    if (!b_align(out, part, tensors)) return false;
  }
  return true;
}

void b_drop(b_axes *x, int a) {
  size_t rest = (size_t)(x->n - a - 1);
  memmove(&x->size[a], &x->size[a + 1], rest * sizeof x->size[0]);
  for (int t = 0; t < x->tensors; t++)
    memmove(&x->stride[t][a], &x->stride[t][a + 1], rest * sizeof x->stride[t][0]);
  x->n--;
}

void b_collapse(b_axes *x) {
  for (int a = x->n - 1; a >= 0; a--)
    if (x->size[a] == 1) b_drop(x, a);
  for (int a = x->n - 2; a >= 0; a--) {
    bool one = true;
    for (int t = 0; t < x->tensors && one; t++)
      one = x->stride[t][a] == x->size[a + 1] * x->stride[t][a + 1];
    if (!one) continue;
    x->size[a + 1] *= x->size[a];
    b_drop(x, a);
  }
}

int64_t b_product(const b_axes *x) {
  int64_t n = 1;
  for (int a = 0; a < x->n; a++) n *= x->size[a];
  return n;
}

void b_coordinates(bld *b, const b_axes *x, k_value *index, k_value **coord) {
  for (int a = x->n - 1; a >= 0; a--) {
    coord[a] = a == 0 ? index : k_modi(b->k, index, x->size[a]);
    if (a > 0) index = k_divi(b->k, index, x->size[a]);
  }
}

k_value *b_at(bld *b, const b_axes *x, int t, k_value *const *coord) {
  k_value *at = k_int(b->k, 0);
  for (int a = 0; a < x->n; a++)
    if (x->stride[t][a]) at = k_add(b->k, at, k_muli(b->k, coord[a], x->stride[t][a]));
  return at;
}

// ---- tiles -------------------------------------------------------------------------------------

// The largest power of two up to n.
static int64_t power_below(int64_t n) {
  int64_t p = 1;
  while (2 * p <= n) p *= 2;
  return p;
}

b_cut b_cut_exact(const bld *b, int64_t extent, int max, int multiple) {
  if (!b->limit->powers) return b_cut_even(extent, max, multiple);
  int64_t size = power_below(max);
  // A power that divides the extent needs no limits, if it is not much smaller.
  for (int64_t s = size; s >= size / 4 && s >= multiple; s /= 2)
    if (extent % s == 0) return (b_cut){extent, (int)s, extent / s, false};
  while (size / 2 >= extent) size /= 2;
  return (b_cut){extent, (int)size, (extent + size - 1) / size, extent % size != 0};
}

b_cut b_cut_rows(int64_t extent, int size) {
  return (b_cut){extent, size, (extent + size - 1) / size, true};
}

b_cut b_cut_tile(const bld *b, int64_t extent, int max, int multiple) {
  if (!b->limit->powers) return b_cut_even(extent, max, multiple);
  int64_t size = extent == 1 ? 1 : power_below(max);
  // A tile of which less than a quarter would be used is not worth sharing.
  while (extent > 1 && size > 4 * extent) size /= 2;
  return (b_cut){extent, (int)size, (extent + size - 1) / size, extent > 1};
}

b_cut b_cut_even(int64_t extent, int max, int multiple) {
  b_cut c = {.extent = extent};
  int64_t count = (extent + max - 1) / max;
  int64_t size = (extent + count - 1) / count;
  if (count > 1) size = (size + multiple - 1) / multiple * multiple;
  if (size > max) size = max;
  c.size = (int)size;
  c.count = (extent + size - 1) / size;
  c.ragged = extent % size != 0;
  return c;
}

k_value *b_number(bld *b, int64_t v) { return b->limit->powers ? k_open(b->k, v) : k_int(b->k, v); }

k_value *b_real(bld *b, double v) {
  return b->limit->powers ? k_open_real(b->k, v) : k_const(b->k, K_F32, v);
}

k_value *b_grid_of(bld *b, int64_t extent) {
  return b->limit->powers ? k_grid_open(b->k, extent) : k_grid(b->k, extent);
}

k_value *b_grid(bld *b, const b_cut *c) { return b_grid_of(b, c->count); }

k_value *b_start(bld *b, const b_cut *c, k_value *i) {
  if (!b->limit->powers) return k_muli(b->k, k_modi(b->k, i, c->count), c->size);
  return k_muli(b->k, k_scalar(b->k, IR_mod, i, b_number(b, c->count), NULL), c->size);
}

k_value *b_left(bld *b, const b_cut *c, k_value *start) {
  return c->ragged ? k_sub(b->k, k_int(b->k, c->extent), start) : NULL;
}

b_loop b_loop_begin(bld *b, k_value *lo, k_value *hi, int64_t step, int64_t rounds,
                    k_value *const *init, int n) {
  b_loop l = {.n = n};
  IR_CHECK(n <= 4);
  if (rounds == 1) {
    l.i = lo;
    for (int i = 0; i < n; i++) l.carry[i] = init[i];
    return l;
  }
  l.stmt = k_for(b->k, lo, hi, step, init, n);
  l.i = l.stmt->body[0]->args.at[0];
  for (int i = 0; i < n; i++) l.carry[i] = l.stmt->body[0]->args.at[1 + i];
  return l;
}

void b_loop_end(bld *b, b_loop *l, k_value *const *next) {
  if (!l->stmt) {
    for (int i = 0; i < l->n; i++) l->carry[i] = next[i];
    return;
  }
  k_end_for(b->k, l->stmt, next);
  for (int i = 0; i < l->n; i++) l->carry[i] = l->stmt->out[i];
}
