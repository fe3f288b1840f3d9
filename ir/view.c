#include "ir/view.h"

#include "ir/rule.h"

#include <string.h>

bool ir_is_view(const ir_op *op) {
  switch (op->code) {
    case IR_transpose:
    case IR_slice:
    case IR_split:
    case IR_expand:
    case IR_squeeze:
    case IR_unfold:
    case IR_fold:
    case IR_broadcast: return true;
    default: return false;
  }
}

static ir_view dense(ir_value *v) {
  ir_view w = {.root = v};
  for (int d = 0; d < v->type.rank; d++) {
    ir_index *leaf[IR_MAX_LEAVES];
    int n = ir_index_leaves(v->type.dim[d], leaf, IR_MAX_LEAVES);
    w.dim_first[d] = w.nleaves;
    for (int i = 0; i < n; i++) {
      IR_CHECK(w.nleaves < IR_MAX_LEAVES);
      w.size[w.nleaves++] = leaf[i]->size;
    }
  }
  w.dim_first[v->type.rank] = w.nleaves;
  int64_t stride = 1;
  for (int i = w.nleaves - 1; i >= 0; i--) {
    w.stride[i] = stride;
    stride *= w.size[i];
  }
  return w;
}

// The leaves of `v`'s own type with strides still to be filled in.
static ir_view shape_only(ir_value *v, const ir_view *from) {
  ir_view w = dense(v);
  w.root = from->root;
  w.offset = from->offset;
  w.past_stride = from->past_stride;
  memset(w.stride, 0, sizeof w.stride);
  return w;
}

// The step of one position along a dimension whose leaves together walk evenly, or -1.
static int64_t dim_stride(const ir_view *w, int d) {
  int last = w->dim_first[d + 1] - 1;
  for (int i = w->dim_first[d]; i < last; i++)
    if (w->stride[i] != w->size[i + 1] * w->stride[i + 1]) return -1;
  return w->stride[last];
}

// Gives dimension d of `w` the strides of dimension sd of `s`. The two are the same index, or d is
// an even cut of it; leaves may be divided differently (refined since), so fall back on the step.
static void take_dim(ir_view *w, int d, const ir_view *s, int sd) {
  int n = w->dim_first[d + 1] - w->dim_first[d], sn = s->dim_first[sd + 1] - s->dim_first[sd];
  bool same = n == sn;
  for (int i = 0; same && i < n; i++)
    same = w->size[w->dim_first[d] + i] == s->size[s->dim_first[sd] + i];
  if (same) {
    memcpy(&w->stride[w->dim_first[d]], &s->stride[s->dim_first[sd]], sizeof(int64_t) * (size_t)n);
    return;
  }
  int64_t step = dim_stride(s, sd);
  IR_CHECK(step >= 0);
  for (int i = w->dim_first[d + 1] - 1; i >= w->dim_first[d]; i--) {
    w->stride[i] = step;
    step *= w->size[i];
  }
}

static ir_view view_transpose(ir_op *op, ir_value *v, const ir_view *s) {
  ir_view w = shape_only(v, s);
  const ir_attr *perm = ir_get_attr(op, "perm");
  for (int d = 0; d < v->type.rank; d++) take_dim(&w, d, s, (int)perm->v[d]);
  return w;
}

static ir_view view_slice(ir_op *op, ir_value *v, const ir_view *s) {
  ir_view w = shape_only(v, s);
  int dim = (int)ir_attr_int(op, "dim", 0);
  for (int d = 0; d < v->type.rank; d++) {
    if (d != dim) {
      take_dim(&w, d, s, d);
      continue;
    }
    int64_t step = dim_stride(s, d);
    IR_CHECK(step >= 0);
    w.offset += ir_attr_int(op, "start", 0) * step;
    if (ir_attr_int(op, "past", 0)) w.past_stride += step;
    for (int i = w.dim_first[d + 1] - 1; i >= w.dim_first[d]; i--) {
      w.stride[i] = step;
      step *= w.size[i];
    }
  }
  return w;
}

static ir_view view_split(ir_op *op, ir_value *v, const ir_view *s) {
  ir_view w = shape_only(v, s);
  int dim = (int)ir_attr_int(op, "dim", 0);
  for (int d = 0; d < v->type.rank; d++) {
    if (d != dim) {
      take_dim(&w, d, s, d);
      continue;
    }
    // The operand's first leaf of this dimension is the part (or holds it); a part is `rest` long.
    int64_t rest = v->type.dim[d]->size, offset = rest * v->pos;
    for (int i = s->dim_first[d + 1] - 1; i >= s->dim_first[d]; i--) {
      w.offset += offset % s->size[i] * s->stride[i];
      offset /= s->size[i];
    }
    int n = w.dim_first[d + 1] - w.dim_first[d];
    int from = s->dim_first[d + 1] - n;
    bool same = from >= s->dim_first[d];
    for (int i = 0; same && i < n; i++) same = w.size[w.dim_first[d] + i] == s->size[from + i];
    if (same) {
      for (int i = 0; i < n; i++) w.stride[w.dim_first[d] + i] = s->stride[from + i];
    } else {
      int64_t step = dim_stride(s, d);
      IR_CHECK(step >= 0);
      for (int i = w.dim_first[d + 1] - 1; i >= w.dim_first[d]; i--) {
        w.stride[i] = step;
        step *= w.size[i];
      }
    }
  }
  return w;
}

// Inserting or dropping an axis of extent 1.
static ir_view view_unit_axis(ir_op *op, ir_value *v, const ir_view *s, int shift) {
  ir_view w = shape_only(v, s);
  int dim = (int)ir_attr_int(op, "dim", 0);
  for (int d = 0; d < v->type.rank; d++) {
    if (shift < 0 && d == dim) continue;  // the new axis: stride 0
    int sd = d < dim ? d : d + shift;
    take_dim(&w, d, s, sd);
  }
  return w;
}

// Dimensions d .. d+n-1 of `w` are dimension sd .. sd+sn-1 of `s`: the same leaves, but for those
// of extent 1, or an even walk.
static void take_leaves(ir_view *w, int d, int n, const ir_view *s, int sd, int sn) {
  int at = w->dim_first[d], end = w->dim_first[d + n];
  bool same = true;
  for (int i = s->dim_first[sd]; i < s->dim_first[sd + sn]; i++) {
    if (s->size[i] == 1) continue;
    while (at < end && w->size[at] == 1) at++;
    same = same && at < end && w->size[at] == s->size[i];
    if (same) w->stride[at++] = s->stride[i];
  }
  while (same && at < end) same = w->size[at++] == 1;
  if (same) return;
  IR_CHECK(sn == 1);
  int64_t step = dim_stride(s, sd);
  IR_CHECK(step >= 0);
  for (int i = end - 1; i >= w->dim_first[d]; i--) {
    w->stride[i] = step;
    step *= w->size[i];
  }
}

// One axis as two, or two as one.
static ir_view view_fold(ir_op *op, ir_value *v, const ir_view *s) {
  ir_view w = shape_only(v, s);
  int dim = (int)ir_attr_int(op, "dim", 0), more = v->type.rank - op->in[0]->type.rank;
  for (int d = 0; d < dim; d++) take_dim(&w, d, s, d);
  take_leaves(&w, dim, more > 0 ? 2 : 1, s, dim, more > 0 ? 1 : 2);
  for (int d = dim + (more > 0 ? 2 : 1); d < v->type.rank; d++) take_dim(&w, d, s, d - more);
  return w;
}

static ir_view view_broadcast(ir_op *op, ir_value *v, const ir_view *s) {
  ir_view w = shape_only(v, s);
  const ir_attr *dims = ir_get_attr(op, "dims");
  for (int sd = 0; sd < op->in[0]->type.rank; sd++) {
    int d = (int)dims->v[sd];
    if (op->in[0]->type.dim[sd]->size == v->type.dim[d]->size) take_dim(&w, d, s, sd);
  }
  return w;
}

ir_view ir_view_of(ir_value *v) {
  ir_op *op = v->def;
  if (!op || !ir_is_view(op)) return dense(v);
  ir_view s = ir_view_of(op->in[0]);
  switch (op->code) {
    case IR_transpose: return view_transpose(op, v, &s);
    case IR_slice: return view_slice(op, v, &s);
    case IR_split: return view_split(op, v, &s);
    case IR_expand: return view_unit_axis(op, v, &s, -1);
    case IR_squeeze: return view_unit_axis(op, v, &s, +1);
    case IR_unfold:
    case IR_fold: return view_fold(op, v, &s);
    case IR_broadcast: return view_broadcast(op, v, &s);
    default: IR_BUG("not a view: %s", ir_info(op->code)->name);
  }
}

int ir_views_collapse(ir_view *const *view, int n) {
  int rank = view[0]->nleaves, kept = 0;
  for (int d = 0; d < rank; d++) {
    int64_t size = view[0]->size[d];
    if (size == 1) continue;
    bool merge = kept > 0;
    for (int k = 0; merge && k < n; k++)
      merge = view[k]->stride[kept - 1] == size * view[k]->stride[d];
    for (int k = 0; k < n; k++) {
      int at = merge ? kept - 1 : kept;
      view[k]->size[at] = merge ? view[k]->size[at] * size : size;
      view[k]->stride[at] = view[k]->stride[d];
    }
    if (!merge) kept++;
  }
  if (kept == 0) {
    for (int k = 0; k < n; k++) view[k]->size[0] = 1, view[k]->stride[0] = 0;
    kept = 1;
  }
  for (int k = 0; k < n; k++) view[k]->nleaves = kept;
  return kept;
}

int ir_updated(const ir_op *op) {
  const char *how = strstr(ir_info(op->code)->kinds, "updates:");
  int k = how ? how[strlen("updates:")] - 'a' : -1;
  return k < op->nin ? k : -1;
}

ir_value *ir_storage_of(ir_value *v) {
  for (;;) {
    v = ir_view_of(v).root;
    int k = v->def ? ir_updated(v->def) : -1;
    if (k < 0) return v;
    v = v->def->in[k];
  }
}

// Whether each element of operand k is read where the same element of the results is written.
static bool reads_in_step(const ir_op *op, int k) {
  int from = ir_is_elementwise(op) ? 0 : ir_epilogue(op);
  return (from >= 0 && k >= from) || k == ir_base(op);
}

// Whether the op table says that result 0 may be written over operand k.
static bool stored_over(const ir_op *op, int k) {
  const char *over = strstr(ir_info(op->code)->kinds, "over:");
  if (!over || k >= 26) return false;
  over += strlen("over:");
  return memchr(over, 'a' + k, strcspn(over, ", ")) != NULL;
}

bool ir_may_overwrite(const ir_op *op, int j, int k) {
  ir_value *v = op->in[k];
  bool by_row = j == 0 && stored_over(op, k);
  if (!by_row && !reads_in_step(op, k)) return false;
  if (!ir_type_same(&op->out[j]->type, &v->type)) return false;
  if (ir_view_of(v).root != v) return false;
  const ir_value *storage = ir_storage_of(v);
  for (int i = 0; i < op->nin; i++) {
    bool same = op->in[i] == v && (reads_in_step(op, i) || (j == 0 && stored_over(op, i)));
    if (!same && ir_storage_of(op->in[i]) == storage) return false;
  }
  return true;
}
