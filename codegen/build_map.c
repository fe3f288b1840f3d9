// Elementwise ops: scalar and defined rows, `map` with any number of operands and results, cast,
// dropout. One kernel, one pass over memory.
//
// All tensors are walked over the same axes; the innermost becomes columns, the next rows, the
// others and the tiles' numbers the grid:
//
//   x[4, 64, 768] + bias[768]:  axes 256 (x 768, bias 0) . 768 (x 1, bias 1)
//                               tiles of 8 x 768, bias read once a tile
//
// For a GPU there are always an outer axis, rows and columns, of extent 1 where tensors have fewer
// axes, and tiles are of one size: so a position's vector and a batch of sequences, a stack of
// matrices and a bias are walked by one function.
#include "codegen/build_impl.h"
#include "ir/place.h"

// How a set of axes is cut into tiles, and where a cell is.
typedef struct tiles {
  b_axes outer;  // axes of the grid
  b_cut row, col;
  int64_t row_stride[B_MAX_TENSORS], col_stride[B_MAX_TENSORS];
  k_value *coord[B_MAX_AXES], *r, *c;
} tiles;

// Whole tiles when some divisor allows it, so that no lane needs a mask.
static b_cut cut_columns(const bld *b, int64_t n, int max) {
  if (b->limit->powers && n == 1) return b_cut_rows(1, b->limit->map_cols);  // a copy's
  if (b->limit->powers) return b_cut_tile(b, n, b->limit->map_cols, 1);
  if (n > max)
    for (int size = max; size >= max / 4; size -= 16)
      if (n % size == 0) return (b_cut){n, size, n / size, false};
  return b_cut_even(n, max, 16);
}

// Puts an axis of extent 1 in front. Its strides are never used; where a tensor repeats along the
// axis that was the first one, it repeats along this one too.
static void add_axis(b_axes *x, int cols) {
  for (int a = x->n; a > 0; a--) {
    x->size[a] = x->size[a - 1];
    for (int t = 0; t < x->tensors; t++) x->stride[t][a] = x->stride[t][a - 1];
  }
  x->size[0] = 1;
  for (int t = 0; t < x->tensors; t++) x->stride[t][0] = x->stride[t][1] ? cols : 0;
  x->n++;
}

// Does v lack leading dimensions of the result, all of extent 1? It repeats along them, once.
static bool repeats_once(const ir_view *v, const ir_type *out) {
  int rank = 0;
  int64_t n = 1;
  while (rank < IR_MAX_RANK && v->dim_first[rank] < v->nleaves) rank++;
  for (int d = 0; d < out->rank - rank; d++) n *= out->dim[d]->size;
  return rank && rank < out->rank && n == 1;
}

// What is added to each sequence of a batch is, where the batch is one sequence, added to one of
// many all the same: an axis along which it repeats.
static void single_repeat(b_axes *x, const ir_type *out, const ir_view *const *view, int n,
                          int cols) {
  bool once[B_MAX_TENSORS] = {false}, any = false;
  for (int t = 0; t < n; t++) any |= once[t] = repeats_once(view[t], out);
  if (!any || x->n == 0 || x->n + 1 > B_MAX_AXES) return;
  add_axis(x, cols);
  for (int t = 0; t < n; t++)
    if (once[t]) x->stride[t][0] = 0;
}

// At least an outer axis, rows and columns. A single axis becomes rows of a tile's columns where
// they divide it.
static void fill_axes(b_axes *x, int cols) {
  IR_CHECK(x->n + 2 <= B_MAX_AXES);
  if (x->n == 1) {
    add_axis(x, cols);
    if (x->size[1] % cols == 0) {
      x->size[0] = x->size[1] / cols;
      x->size[1] = cols;
      for (int t = 0; t < x->tensors; t++) x->stride[t][0] = x->stride[t][1] * cols;
    }
  }
  if (x->n == 2) add_axis(x, cols);
}

static void make_tiles(bld *b, const b_axes *whole, int elements, tiles *t) {
  b_axes filled = *whole, *axes = &filled;
  if (b->limit->powers) fill_axes(axes, b->limit->map_cols);
  t->outer = *axes;
  int last = axes->n - 1;
  for (int i = 0; i < axes->tensors; i++) {
    t->col_stride[i] = axes->n ? axes->stride[i][last] : 0;
    t->row_stride[i] = axes->n > 1 ? axes->stride[i][last - 1] : 0;
  }
  t->col = axes->n ? cut_columns(b, axes->size[last], elements) : b_cut_even(1, 1, 1);
  int rows = elements / ((t->col.size + 15) / 16 * 16);
  // Enough cells for a few threads even when the whole is small.
  int64_t total = b_product(axes);
  while (!b->limit->powers && rows > 1 && total / ((int64_t)rows * t->col.size) < 8) rows /= 2;
  if (axes->n < 2)
    t->row = b_cut_even(1, 1, 1);
  else if (b->limit->powers)
    t->row = b_cut_rows(axes->size[last - 1], rows);
  else
    t->row = b_cut_even(axes->size[last - 1], rows > 0 ? rows : 1, 1);
  for (int i = 0; i < 2 && t->outer.n; i++) b_drop(&t->outer, t->outer.n - 1);
  int64_t cells = b_product(&t->outer);
  k_value *outer = axes->n ? b_grid_of(b, cells) : k_grid(b->k, cells);
  t->r = k_muli(b->k, b_grid(b, &t->row), t->row.size);
  t->c = k_muli(b->k, b_grid(b, &t->col), t->col.size);
  b_coordinates(b, &t->outer, outer, t->coord);
}

static k_access access_of(bld *b, const tiles *t, int i) {
  k_value *base = b_at(b, &t->outer, i, t->coord);
  base = k_add(b->k, base, k_muli(b->k, t->r, t->row_stride[i]));
  base = k_add(b->k, base, k_muli(b->k, t->c, t->col_stride[i]));
  return (k_access){.base = base,
                    .row_stride = t->row_stride[i],
                    .col_stride = t->col_stride[i],
                    .row_limit = b_left(b, &t->row, t->r),
                    .col_limit = b_left(b, &t->col, t->c)};
}

static bool has_dropout(const ir_op *op) {
  if (op->code == IR_dropout) return true;
  for (int i = 0; i < op->nregions; i++)
    for (int j = 0; j < op->region[i]->ops.n; j++)
      if (has_dropout(op->region[i]->ops.at[j])) return true;
  return false;
}

// Two made-up tensors whose "addresses" are the sample and the position in it: the sample axis may
// be one leaf of a dimension (rows = batch . seq). Returns whether there is a sample axis; *end:
// all positions are below.
static bool position_views(bld *b, ir_value *out, ir_view *sample, ir_view *index, int64_t *end) {
  ir_index *leaf[IR_MAX_LEAVES];
  int n = ir_type_leaves(&out->type, leaf, IR_MAX_LEAVES), rest = 0;
  int64_t size[IR_MAX_LEAVES], step[IR_MAX_LEAVES], samples = 1;
  bool of_sample[IR_MAX_LEAVES], sampled = false;
  *sample = *index = ir_view_of(out);
  for (int i = 0; i < n; i++) {
    of_sample[i] = b_of_sample(b, leaf[i]);
    if (!of_sample[i]) size[rest++] = leaf[i]->size;
    sampled |= of_sample[i];
  }
  *end = ir_draw_steps(cg_module(b->cg), b->op, size, rest, step);
  for (int i = n - 1; i >= 0; i--) {
    sample->stride[i] = of_sample[i] ? samples : 0;
    index->stride[i] = of_sample[i] ? 0 : step[--rest];
    if (of_sample[i]) samples *= leaf[i]->size;
  }
  return sampled;
}

// The affine tile base + r*row_stride + c*col_stride.
static k_value *affine(bld *b, const tiles *t, int i, k_type type) {
  k_kernel *k = b->k;
  k_access x = access_of(b, t, i);
  k_value *v = k_cast(k, x.base, type);
  if (x.row_stride)
    v = k_add(k, v,
              k_mul(k, k_iota(k, type, t->row.size, 1), k_const(k, type, (double)x.row_stride)));
  if (x.col_stride)
    v = k_add(k, v,
              k_mul(k, k_iota(k, type, 1, t->col.size), k_const(k, type, (double)x.col_stride)));
  return v;
}

// A sum of two tensors on a GPU: of x and y, or, y being NULL, of x and what earlier micro-batches
// gave, of which nothing is read for the first one. That is one function. False: not of this kind.
static bool sum_of_two(bld *b, const char *name, ir_value *x, ir_value *y) {
  ir_value *out = b->op->out[0], *of[] = {out, x, y ? y : out};
  if (!b->limit->powers || ir_elements(&out->type) == 1) return false;
  for (int i = 0; i < 3; i++) {
    ir_view v = ir_view_of(of[i]);
    if (of[i]->type.dtype != DT_f32 || ir_elements(&of[i]->type) != ir_elements(&out->type) ||
        repeats_once(&v, &out->type))
      return false;
  }
  b_begin(b, "%s", name);
  cg_tensor t[] = {b_write(b, out), b_read(b, x), {0}};
  t[2] = y ? b_read(b, y) : b_old(b, &t[0], out);
  const ir_view *view[] = {&t[0].view, &t[1].view, &t[2].view};
  b_axes axes;
  if (!b_align_to(&axes, &out->type, view, 3)) {
    b_fail(b, "%s: layouts do not nest", name);
    return true;
  }
  b_collapse(&axes);
  tiles grid;
  make_tiles(b, &axes, b->limit->map, &grid);
  k_value *v[2];
  for (int i = 0; i < 2; i++) {
    k_access a = access_of(b, &grid, 1 + i);
    if (i) {
      a.row_limit = k_mul(b->k, a.row_limit, b_present(b, y ? B_PRESENT : B_OLD));
      a.fill = b_no_summand(b);
    }
    v[i] = b_load(b, &t[1 + i], grid.row.size, grid.col.size, a);
  }
  b_store(b, &t[0], k_add(b->k, v[0], v[1]), access_of(b, &grid, 0));
  b_end(b);
  return true;
}

void cg_build_map(bld *b) {
  ir_op *op = b->op;
  ir_value *out = op->out[0];
  int n = op->nout + op->nin;
  if (op->code == IR_cast && op->in[0]->type.dtype == out->type.dtype) {
    ir_view w = ir_view_of(out);
    b_copy_kernel(b, "cast", out, &w, op->in[0], 0);
    return;
  }
  if (op->code == IR_add && sum_of_two(b, "add", op->in[0], op->in[1])) return;
  if (n + 2 > B_MAX_TENSORS) {
    b_fail(b, "an elementwise function of %d operands", op->nin);
    return;
  }
  b_begin(b, "%s", ir_attr_str(op, "name", ir_info(op->code)->name));
  cg_tensor t[B_MAX_TENSORS];
  const ir_view *view[B_MAX_TENSORS];
  ir_view sample, index;
  int64_t end = 0;
  for (int i = 0; i < n; i++) {
    t[i] = i < op->nout ? b_write(b, op->out[i]) : b_read(b, op->in[i - op->nout]);
    view[i] = &t[i].view;
  }
  bool random = has_dropout(op), sampled = false;
  if (random) {
    sampled = position_views(b, out, &sample, &index, &end);
    view[n] = &sample;
    view[n + 1] = &index;
  }
  b_axes axes;
  if (!b_align_to(&axes, &out->type, view, random ? n + 2 : n)) {
    b_fail(b, "operands of %s are laid out in ways that do not nest", ir_info(op->code)->name);
    return;
  }
  b_collapse(&axes);
  if (b->limit->powers) single_repeat(&axes, &out->type, view, n, b->limit->map_cols);
  tiles grid;
  make_tiles(b, &axes, b->limit->map, &grid);
  b_env *e = b_env_new(b);
  if (random) {
    k_type type = end < INT32_MAX ? K_I32 : K_I64;
    k_value *s = k_add(b->k, k_call(b->k, K_SAMPLE0), affine(b, &grid, n, K_I64));
    // A value without a sample axis draws as sample 0.
    b_bind_position(e, sampled ? s : k_int(b->k, 0), b_begin_at(b, affine(b, &grid, n + 1, type)));
  }
  k_value *in[B_MAX_TENSORS], *result[B_MAX_TENSORS];
  for (int i = 0; i < op->nin; i++) {
    int x = op->nout + i;
    in[i] = b_load(b, &t[x], grid.row.size, grid.col.size, access_of(b, &grid, x));
  }
  if (op->code == IR_map) {
    for (int i = 0; i < op->nin; i++) b_bind(e, op->region[0]->args.at[i], in[i]);
    b_region(e, op->region[0], result);
  } else {
    result[0] = b_apply(e, op, in);
  }
  for (int i = 0; i < op->nout; i++)
    b_store(b, &t[i], k_spread(b->k, result[i], grid.row.size, grid.col.size),
            access_of(b, &grid, i));
  b_end(b);
}

// ---- copies ------------------------------------------------------------------------------------

// The body of a kernel that stores what it loads.
void b_copy_axes(bld *b, const cg_tensor *to, const cg_tensor *from, const b_axes *axes) {
  tiles grid;
  make_tiles(b, axes, b->limit->map, &grid);
  k_value *v = b_load(b, from, grid.row.size, grid.col.size, access_of(b, &grid, 1));
  b_store(b, to, k_spread(b->k, v, grid.row.size, grid.col.size), access_of(b, &grid, 0));
}

// Of a copy on a GPU: what is moved is 32 bits, whatever they mean, and may be a single one. (Loads
// and stores change none.)
static void move_bits(bld *b, cg_tensor *to, cg_tensor *from, b_axes *axes) {
  if (axes->n == 0) {
    axes->n = 1;
    axes->size[0] = axes->stride[0][0] = axes->stride[1][0] = 1;
  }
  if (to->dtype != from->dtype || to->dtype != DT_i32 || from->is_const) return;
  to->dtype = from->dtype = DT_f32;
  b->k->buffer[to->buffer].dtype = b->k->buffer[from->buffer].dtype = DT_f32;
}

void b_copy_kernel(bld *b, const char *name, ir_value *dst, const ir_view *dst_view, ir_value *src,
                   double number) {
  b_begin(b, "%s", name);
  cg_tensor y = b_write(b, dst), x = {0};
  y.view = *dst_view;
  y.base = b_number(b, dst_view->offset);
  // A copy that goes on behind what came before and one that does not are one function of a GPU.
  if (dst_view->past_stride || b->limit->powers) {
    k_value *past = b_number(b, dst_view->past_stride);
    y.base = k_add(b->k, y.base, k_mul(b->k, k_call(b->k, K_PAST), past));
  }
  b_axes axes = {0};
  b_part part[2] = {0};
  bool ok = true;
  if (src) x = b_read(b, src);
  axes.tensors = src ? 2 : 1;
  for (int d = 0; d < dst->type.rank && ok; d++) {
    part[0] = (b_part){&y.view, y.view.dim_first[d], y.view.dim_first[d + 1]};
    if (src) part[1] = (b_part){&x.view, x.view.dim_first[d], x.view.dim_first[d + 1]};
    ok = b_align(&axes, part, axes.tensors);
  }
  if (!ok) {
    b_fail(b, "%s: layouts do not nest", name);
    return;
  }
  b_collapse(&axes);
  if (b->limit->powers && src) move_bits(b, &y, &x, &axes);
  tiles grid;
  make_tiles(b, &axes, b->limit->map, &grid);
  k_value *v = src ? b_load(b, &x, grid.row.size, grid.col.size, access_of(b, &grid, 1))
                   : k_const(b->k, k_type_of(dst->type.dtype), number);
  b_store(b, &y, k_spread(b->k, v, grid.row.size, grid.col.size), access_of(b, &grid, 0));
  b_end(b);
}

// The part of a dense value's dimension `dim` that starts at `start`, `size` long.
static ir_view part_view(ir_value *v, int dim, int64_t start, int64_t size) {
  ir_view w = ir_view_of(v);
  int last = w.dim_first[dim + 1] - 1;
  int64_t step = w.stride[last];
  w.offset += start * step;
  // The dimension becomes one leaf: its parts lie evenly in a dense value.
  int first = w.dim_first[dim], gone = last - first;
  for (int i = first + 1; i + gone < w.nleaves; i++) {
    w.size[i] = w.size[i + gone];
    w.stride[i] = w.stride[i + gone];
  }
  w.size[first] = size;
  w.stride[first] = step;
  for (int d = dim + 1; d <= v->type.rank; d++) w.dim_first[d] -= gone;
  w.nleaves -= gone;
  return w;
}

void cg_build_copy(bld *b) {
  ir_op *op = b->op;
  ir_value *out = op->out[0];
  int dim = (int)ir_attr_int(op, "dim", 0);
  const char *name = ir_info(op->code)->name;
  int64_t at = 0;
  if (op->code == IR_pad) {
    int64_t before = ir_attr_int(op, "before", 0), after = ir_attr_int(op, "after", 0);
    int64_t size = op->in[0]->type.dim[dim]->size;
    if (before) {
      ir_view w = part_view(out, dim, 0, before);
      b_copy_kernel(b, "pad_zeros", out, &w, NULL, 0);
    }
    if (after) {
      ir_view w = part_view(out, dim, before + size, after);
      b_copy_kernel(b, "pad_zeros", out, &w, NULL, 0);
    }
    at = before;
  }
  for (int i = 0; i < op->nin; i++) {
    // A joined operand's dimension holds one part.
    int64_t size = op->in[i]->type.dim[dim]->size;
    ir_view w = part_view(out, dim, at, size);
    b_copy_kernel(b, name, out, &w, op->in[i], 0);
    at += size;
  }
}

void cg_build_fill(bld *b) {
  ir_view w = ir_view_of(b->op->out[0]);
  b_copy_kernel(b, "zeros", b->op->out[0], &w, NULL, 0);
}

// (cache, x) -> cache: the result is the cache's own storage; x goes to position `past` of dim.
void cg_build_append(bld *b) {
  ir_op *op = b->op;
  int dim = (int)ir_attr_int(op, "dim", 0);
  ir_view w = part_view(op->out[0], dim, 0, op->in[1]->type.dim[dim]->size);
  w.past_stride = w.stride[w.dim_first[dim]];
  b_copy_kernel(b, "append", op->out[0], &w, op->in[1], 0);
}

// The sum over micro-batches: the first one sets it, the others add.
void cg_build_accumulate(bld *b) {
  ir_op *op = b->op;
  if (sum_of_two(b, "accumulate", op->in[0], NULL)) return;
  b_begin(b, "accumulate");
  cg_tensor y = b_update(b, op->out[0]), x = b_read(b, op->in[0]);
  const ir_view *view[] = {&y.view, &x.view};
  b_axes axes;
  if (!b_align_to(&axes, &op->out[0]->type, view, 2)) {
    b_fail(b, "accumulate: layouts do not nest");
    return;
  }
  b_collapse(&axes);
  tiles grid;
  make_tiles(b, &axes, b->limit->map, &grid);
  k_value *v = k_spread(b->k, b_load(b, &x, grid.row.size, grid.col.size, access_of(b, &grid, 1)),
                        grid.row.size, grid.col.size);
  k_access at = access_of(b, &grid, 0);
  k_value *old = b_load(b, &y, grid.row.size, grid.col.size, at);
  k_value *first = k_scalar(b->k, IR_eq, k_call(b->k, K_MICRO), k_int(b->k, 0), NULL);
  b_store(b, &y, k_where(b->k, first, v, k_add(b->k, old, v)), at);
  b_end(b);
}
