// Types of ops that move elements or add them up, whose rules are not made of words: movement,
// reductions, tables.
#include <string.h>

#include "ir/infer_impl.h"

// ---- movement ----------------------------------------------------------------------------------

// The attribute `dim`, or -1 when it is not below `limit`.
static int dim_attr(const infer *t, int limit) {
  int64_t d = ir_attr_int(t->op, "dim", -1);
  return d >= 0 && d < limit ? (int)d : -1;
}

static const char *no_such_dim(const infer *t) {
  return SAY("%s: %s has no dimension %lld", t->name, infer_text_of(t, 0),
             (long long)ir_attr_int(t->op, "dim", -1));
}

// transpose: result dim k is operand dim perm[k].
const char *infer_transpose(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  const ir_attr *perm = ir_get_attr(t->op, "perm");
  bool seen[IR_MAX_RANK] = {0};
  if (perm->n != x->rank)
    return SAY("transpose: %d axes given for %s", perm->n, infer_text_of(t, 0));
  out->rank = x->rank;
  for (int i = 0; i < x->rank; i++) {
    int64_t p = perm->v[i];
    if (p < 0 || p >= x->rank || seen[p])
      return SAY("transpose: the axes given are not an order of the %d axes of %s", x->rank,
                 infer_text_of(t, 0));
    seen[p] = true;
    out->dim[i] = x->dim[p];
  }
  return NULL;
}

// expand: an axis of extent 1 before `dim`, with an index of its own: it is not the extent-1 axis
// of any other value.
const char *infer_expand(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank + 1);
  if (d < 0) return no_such_dim(t);
  if (x->rank == IR_MAX_RANK) return SAY("expand: more than %d dimensions", IR_MAX_RANK);
  out->rank = x->rank + 1;
  for (int i = 0; i < out->rank; i++)
    out->dim[i] = i == d ? ir_index_new(t->m, NULL, 1) : x->dim[i - (i > d)];
  return NULL;
}

// squeeze: drops an axis of extent 1; any other axis would lose elements.
const char *infer_squeeze(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank);
  if (d < 0) return no_such_dim(t);
  if (x->dim[d]->size != 1)
    return SAY("squeeze: dimension %s of %s is not of extent 1", infer_dim_text(t, x->dim[d]),
               infer_text_of(t, 0));
  for (int i = 0; i < x->rank; i++)
    if (i != d) out->dim[out->rank++] = x->dim[i];
  return NULL;
}

// unfold: the index of the axis is refined into the two.
const char *infer_unfold(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank);
  if (d < 0) return no_such_dim(t);
  if (x->rank == IR_MAX_RANK) return SAY("unfold: more than %d dimensions", IR_MAX_RANK);
  int64_t outer = ir_attr_int(t->op, "outer", 0), extent = x->dim[d]->size;
  if (outer < 1 || extent % outer)
    return SAY("unfold: dimension %s of %s does not divide into %lld parts",
               infer_dim_text(t, x->dim[d]), infer_text_of(t, 0), (long long)outer);
  ir_index *part[2] = {ir_index_new(t->m, NULL, outer), ir_index_new(t->m, NULL, extent / outer)};
  if (!ir_index_refine(t->m, x->dim[d], part, 2))
    return SAY("unfold: dimension %s of %s is already divided in a way that %lld parts cut across",
               infer_dim_text(t, x->dim[d]), infer_text_of(t, 0), (long long)outer);
  out->rank = x->rank + 1;
  for (int i = 0; i < out->rank; i++)
    out->dim[i] = i == d || i == d + 1 ? part[i - d] : x->dim[i - (i > d)];
  return NULL;
}

// fold: a new index, the product of the two.
const char *infer_fold(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank - 1);
  if (d < 0) return no_such_dim(t);
  int64_t size;
  if (__builtin_mul_overflow(x->dim[d]->size, x->dim[d + 1]->size, &size))
    return SAY("fold: the result is too large");
  ir_index *all = ir_index_new(t->m, NULL, size);
  if (!ir_index_refine(t->m, all, (ir_index *const[]){x->dim[d], x->dim[d + 1]}, 2))
    return SAY("fold: too many parts");
  out->rank = x->rank - 1;
  for (int i = 0; i < out->rank; i++) out->dim[i] = i == d ? all : x->dim[i + (i > d)];
  return NULL;
}

// The operand's type with dimension d replaced.
static void with_dim(const infer *t, ir_type *out, int d, ir_index *x) {
  *out = t->op->in[0]->type;
  out->dim[d] = x;
}

// slice: a part of an axis is a new index, because position 0 of it is not position 0 of the whole;
// the whole range keeps the index. No name is given: the first op that combines the slice with
// another value (wpe[0:seq] + x) says what it is.
const char *infer_slice(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank);
  if (d < 0) return no_such_dim(t);
  int64_t start = ir_attr_int(t->op, "start", 0), size = ir_attr_int(t->op, "size", 0);
  int64_t extent = x->dim[d]->size;
  if (size < 1 || start < 0 || start > extent || size > extent - start)
    return SAY("slice: positions %lld to %lld do not lie in dimension %s of %s", (long long)start,
               (long long)start + (long long)size, infer_dim_text(t, x->dim[d]),
               infer_text_of(t, 0));
  with_dim(t, out, d, size == extent ? x->dim[d] : ir_index_new(t->m, NULL, size));
  return NULL;
}

// pad: as slice, in the other direction.
const char *infer_pad(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank);
  if (d < 0) return no_such_dim(t);
  int64_t before = ir_attr_int(t->op, "before", 0), after = ir_attr_int(t->op, "after", 0), size;
  if (before < 0 || after < 0 || __builtin_add_overflow(x->dim[d]->size, before, &size) ||
      __builtin_add_overflow(size, after, &size))
    return SAY("pad: %lld before and %lld after are not sizes", (long long)before,
               (long long)after);
  with_dim(t, out, d, size == x->dim[d]->size ? x->dim[d] : ir_index_new(t->m, NULL, size));
  return NULL;
}

// Unifies all dimensions but `except` of operand k with those of operand 0.
static const char *agree_except(const infer *t, int k, int except) {
  const ir_type *a = &t->op->in[0]->type, *b = &t->op->in[k]->type;
  if (a->rank != b->rank)
    return SAY("%s: %s and %s have different numbers of dimensions", t->name, infer_text_of(t, 0),
               infer_text_of(t, k));
  for (int i = 0; i < a->rank; i++)
    if (i != except && !ir_index_unify(t->m, a->dim[i], b->dim[i]))
      return SAY("%s: %s and %s differ in dimension %d", t->name, infer_text_of(t, 0),
                 infer_text_of(t, k), i);
  return NULL;
}

// concat: all axes but `dim` are the same; `dim` is a new index of the summed extent.
const char *infer_concat(const infer *t, ir_type *out) {
  int d = dim_attr(t, t->op->in[0]->type.rank);
  if (d < 0) return no_such_dim(t);
  int64_t size = 0;
  for (int k = 0; k < t->op->nin; k++) {
    const char *error = agree_except(t, k, d);
    if (error) return error;
    if (__builtin_add_overflow(size, t->op->in[k]->type.dim[d]->size, &size))
      return SAY("concat: the result is too large");
  }
  with_dim(t, out, d, t->op->nin == 1 ? t->op->in[0]->type.dim[d] : ir_index_new(t->m, NULL, size));
  return NULL;
}

// split: refines the axis into part . rest, everywhere that index occurs: so a fused QKV weight is
// seen as qkv 3 . width as soon as its output is split.
const char *infer_split(const infer *t, ir_type *out, int *nout) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank);
  if (d < 0) return no_such_dim(t);
  int64_t parts = ir_attr_int(t->op, "parts", 0), extent = x->dim[d]->size;
  if (parts < 1 || parts > 1 << 16 || extent % parts)
    return SAY("split: dimension %s of %s does not divide into %lld parts",
               infer_dim_text(t, x->dim[d]), infer_text_of(t, 0), (long long)parts);
  ir_index *part[2] = {ir_index_new(t->m, "part", parts), ir_index_new(t->m, NULL, extent / parts)};
  if (!ir_index_refine(t->m, x->dim[d], part, 2))
    return SAY("split: dimension %s of %s is already divided in a way that %lld parts cut across",
               infer_dim_text(t, x->dim[d]), infer_text_of(t, 0), (long long)parts);
  // One part is the whole: the operand's own index says more than the new one.
  ir_index *rest = parts == 1 ? x->dim[d] : part[1];
  *nout = (int)parts;
  for (int i = 0; i < *nout; i++) with_dim(t, &out[i], d, rest);
  return NULL;
}

// join: the inverse of split. Its result is a new product part . rest; adding it to the value that
// was split, as gradients are, makes the two products one.
const char *infer_join(const infer *t, ir_type *out) {
  int d = dim_attr(t, t->op->in[0]->type.rank);
  if (d < 0) return no_such_dim(t);
  if (ir_attr_int(t->op, "parts", t->op->nin) != t->op->nin)
    return SAY("join: %d values for %lld parts", t->op->nin,
               (long long)ir_attr_int(t->op, "parts", 0));
  for (int k = 1; k < t->op->nin; k++) {
    const char *error = agree_except(t, k, -1);
    if (error) return error;
  }
  ir_index *rest = t->op->in[0]->type.dim[d];
  int64_t size;
  if (__builtin_mul_overflow(rest->size, (int64_t)t->op->nin, &size))
    return SAY("join: the result is too large");
  ir_index *all = t->op->nin == 1 ? rest : ir_index_new(t->m, NULL, size);
  ir_index *part[2] = {ir_index_new(t->m, NULL, t->op->nin), rest};
  if (t->op->nin > 1 && !ir_index_refine(t->m, all, part, 2)) return SAY("join: too many parts");
  with_dim(t, out, d, all);
  return NULL;
}

// ---- reductions --------------------------------------------------------------------------------

// sum, reduce_max: drops the axes, or keeps them with extent 1.
const char *infer_reduce(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  const ir_attr *axes = ir_get_attr(t->op, "axes");
  bool gone[IR_MAX_RANK] = {0}, keep = ir_attr_int(t->op, "keep", 0) != 0;
  if (t->op->nregions) {
    const ir_region *f = t->op->region[0];
    if (f->args.n != 1 || f->yield.n != 1 || f->args.at[0]->type.dtype != x->dtype)
      return SAY("%s: its function takes one %s and gives one value", t->name,
                 ir_dtype_name(x->dtype));
    out->dtype = f->yield.at[0]->type.dtype;
  }
  for (int i = 0; i < axes->n; i++) {
    int64_t a = axes->v[i];
    if (a < 0 || a >= x->rank || gone[a])
      return SAY("%s: axis %lld is not one of the axes of %s, or given twice", t->name,
                 (long long)a, infer_text_of(t, 0));
    gone[a] = true;
  }
  for (int i = 0; i < x->rank; i++)
    if (!gone[i])
      out->dim[out->rank++] = x->dim[i];
    else if (keep)
      out->dim[out->rank++] = ir_index_new(t->m, NULL, 1);
  return NULL;
}

// scatter_add: the gradient of gather.
const char *infer_scatter_add(const infer *t, ir_type *out) {
  // (g : i... h..., ids : i...) -> rows h...
  const ir_type *g = &t->op->in[0]->type, *ids = &t->op->in[1]->type;
  int64_t rows = ir_attr_int(t->op, "rows", 0);
  if (rows < 1) return SAY("scatter_add: rows must be at least 1");
  if (g->rank < ids->rank || g->rank - ids->rank + 1 > IR_MAX_RANK)
    return SAY("scatter_add: %s and %s do not agree", infer_text_of(t, 0), infer_text_of(t, 1));
  for (int i = 0; i < ids->rank; i++)
    if (!ir_index_unify(t->m, g->dim[i], ids->dim[i]))
      return SAY("scatter_add: %s and %s do not agree", infer_text_of(t, 0), infer_text_of(t, 1));
  if (t->op->nin > 3) return SAY("scatter_add takes at most 3 operands");
  // The builder may give the type, to say that the rows are those of a table it knows.
  const ir_type *given = t->op->nout == 1 ? &t->op->out[0]->type : NULL;
  out->dim[out->rank++] = given && given->rank && given->dim[0]->size == rows
                              ? given->dim[0]
                              : ir_index_new(t->m, NULL, rows);
  for (int i = ids->rank; i < g->rank; i++) out->dim[out->rank++] = g->dim[i];
  if (t->op->nin == 3) {
    const ir_type *base = &t->op->in[2]->type;
    bool same = base->rank == out->rank;
    for (int i = 0; i < out->rank && same; i++) {
      same = ir_index_unify(t->m, base->dim[i], out->dim[i]);
      out->dim[i] = base->dim[i];
    }
    if (!same)
      return SAY("scatter_add: %s is no table of %lld rows", infer_text_of(t, 2), (long long)rows);
  }
  return NULL;
}

// append: the type of the cache; what is appended fits in it along `dim` and agrees elsewhere.
const char *infer_append(const infer *t, ir_type *out) {
  int d = dim_attr(t, t->op->in[0]->type.rank);
  if (d < 0) return no_such_dim(t);
  const char *error = agree_except(t, 1, d);
  if (error) return error;
  if (t->op->in[1]->type.dim[d]->size > t->op->in[0]->type.dim[d]->size)
    return SAY("append: %s does not fit in %s", infer_text_of(t, 1), infer_text_of(t, 0));
  *out = t->op->in[0]->type;
  return NULL;
}

// at(tensor, i0, ...): as many indices as the tensor has axes.
const char *infer_at(const infer *t) {
  int rank = t->op->in[0]->type.rank;
  if (t->op->nin != rank + 1)
    return SAY("at: %s has %d axes, but %d positions are given", infer_text_of(t, 0), rank,
               t->op->nin - 1);
  for (int i = 1; i < t->op->nin; i++)
    if (t->op->in[i]->type.rank) return SAY("at: position %d is not a scalar", i);
  return NULL;
}
