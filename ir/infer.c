// Types of results: the dispatcher ir_infer and the ops whose rule is not made of words.
//
// ir_infer is a transaction: indices are unified and refined on the way, and when a message comes
// out all of that is taken back.
#include <string.h>

#include "ir/rule.h"

typedef struct infer {
  ir_module *m;
  const ir_op *op;
  const char *name;  // of the op, for messages
} infer;

#define SAY(...) arena_printf(t->m->arena, __VA_ARGS__)

static const char *text_of(const infer *t, int k) {
  return ir_type_text(t->m->arena, &t->op->in[k]->type);
}

static const char *dim_text(const infer *t, const ir_index *x) {
  x = ir_root((ir_index *)x);
  return x->name ? SAY("`%s` (%lld)", x->name, (long long)x->size)
                 : SAY("%lld", (long long)x->size);
}

// ---- the row: operands, attributes, regions ----------------------------------------------------

// How many regions the op must have; *most how many it may have (a map may bring its own gradient
// as a second one).
static int regions_wanted(const ir_op *op, int *most) {
  *most = 0;
  switch (op->code) {
    case IR_map: return *most = 2, 1;
    case IR_repeat: return *most = 1;
    case IR_sum: return *most = 1, 0;
    case IR_attention:
    case IR_attention_grad:
    case IR_attention_grad_bias:
      return *most = (ir_attr_int(op, "has_mask", 0) != 0) + (ir_attr_int(op, "has_bias", 0) != 0);
    default: return *most = ir_epilogue_at(op) >= 0, 0;
  }
}

// Everything about an op that can be checked without looking at types. Inference relies on it: an
// attribute that a row requires is there, and has the type the row says.
const char *ir_check_row(ir_module *m, const ir_op *op) {
  const ir_op_info *info = ir_info(op->code);
  if (op->nin < info->min_in || (info->max_in >= 0 && op->nin > info->max_in))
    return arena_printf(m->arena, "%s takes %s%d operand%s, not %d", info->name,
                        info->max_in < 0 ? "at least " : "", info->min_in,
                        info->min_in == 1 ? "" : "s", op->nin);
  int at = ir_epilogue_at(op);
  if (at >= 0 && op->nin > at && !op->nregions)
    return arena_printf(m->arena, "%s takes %d operands, or a function and what it reads",
                        info->name, at);
  ir_attr_slot slot[IR_MAX_ATTRS];
  int n = ir_attr_slots(info, slot);
  for (int i = 0; i < op->nattrs; i++) {
    int k = 0;
    while (k < n && strcmp(slot[k].key, op->attr[i].key) != 0) k++;
    if (k == n)
      return arena_printf(m->arena, "%s has no attribute `%s`", info->name, op->attr[i].key);
    if (slot[k].kind != op->attr[i].kind)
      return arena_printf(m->arena, "%s: attribute `%s` has the wrong type", info->name,
                          slot[k].key);
  }
  for (int i = 0; i < n; i++)
    if (!slot[i].optional && !ir_get_attr(op, slot[i].key))
      return arena_printf(m->arena, "%s needs `%s`", info->name, slot[i].key);
  int most, least = regions_wanted(op, &most);
  if (op->nregions < least || op->nregions > most)
    return arena_printf(m->arena, "%s takes %d region%s, not %d", info->name, least,
                        least == 1 ? "" : "s", op->nregions);
  return NULL;
}

int ir_result_count(const ir_op *op) {
  int64_t n = ir_info(op->code)->nout;
  if (op->code == IR_split) n = ir_attr_int(op, "parts", 0);
  if (op->code == IR_map || op->code == IR_repeat) n = op->nregions ? op->region[0]->yield.n : 0;
  if (ir_epilogue(op) >= 0) n = op->region[0]->yield.n;
  // A number of parts that is no sensible one is refused by ir_infer.
  return n < 0 || n > 1 << 16 ? 0 : (int)n;
}

// ---- element types -----------------------------------------------------------------------------

// Statistics and probabilities of a 16-bit value are kept in 32 bits.
static ir_dtype at_least_f32(ir_dtype t) {
  if (!ir_dtype_float(t)) return DT_f32;
  return ir_dtype_bytes(t) < 4 ? DT_f32 : t;
}

// The join of all operands from number `from` on.
static ir_dtype joined(const ir_op *op, int from) {
  ir_dtype t = op->in[from]->type.dtype;
  for (int i = from + 1; i < op->nin; i++) t = ir_dtype_join(t, op->in[i]->type.dtype);
  return t;
}

// Element types of SCALAR rows, as a user expects them: comparisons give truth, quotients and
// transcendental functions of whole numbers are real, everything else keeps the joined type.
static ir_dtype scalar_dtype(const ir_op *op) {
  ir_dtype t = joined(op, op->code == IR_where ? 1 : 0);
  switch (op->code) {
    case IR_lt:
    case IR_le:
    case IR_gt:
    case IR_ge:
    case IR_eq:
    case IR_ne:
    case IR_and:
    case IR_or:
    case IR_not: return DT_bool;
    case IR_div:
    case IR_pow:
    case IR_exp:
    case IR_log:
    case IR_sqrt:
    case IR_rsqrt:
    case IR_tanh:
    case IR_erf:
    case IR_sin:
    case IR_cos: return ir_dtype_float(t) ? t : DT_f32;
    case IR_where: return t;
    default:
      // Sums and products of truth values count.
      return t == DT_bool ? DT_i32 : t;
  }
}

// The element types by the dtype column: one word a result.
static const char *column_dtypes(const infer *t, ir_type *out, int nout) {
  const ir_op *op = t->op;
  const char *p = ir_info(op->code)->dtype;
  for (int i = 0; i < nout; i++) {
    p += strspn(p, " ");
    size_t n = strcspn(p, " ");
    if (*p >= '0' && *p <= '9') {
      out[i].dtype = op->in[*p - '0']->type.dtype;
    } else if (n == 1 && *p == 'j') {
      out[i].dtype = joined(op, 0);
      // Sums of rounded factors are kept in f32.
      if (ir_get_attr(op, "round")) out[i].dtype = at_least_f32(out[i].dtype);
    } else if (n == 1 && *p == 'f') {
      out[i].dtype = at_least_f32(op->in[0]->type.dtype);
    } else if (n == 4 && memcmp(p, "attr", 4) == 0) {
      const char *name = ir_attr_str(op, "dtype", "");
      if (!ir_dtype_parse(name, &out[i].dtype))
        return SAY("%s: `%s` is not an element type", t->name, name);
    } else {
      char word[16] = {0};
      IR_CHECK(n > 0 && n < sizeof word);
      memcpy(word, p, n);
      if (!ir_dtype_parse(word, &out[i].dtype)) IR_BUG("dtype column of %s", t->name);
    }
    p += n;
  }
  return NULL;
}

// Operands that must be whole or real numbers for the op to mean anything.
static const char *check_dtypes(const infer *t) {
  int whole = -1, real = -1;
  switch (t->op->code) {
    case IR_einsum: {
      if (ir_base(t->op) >= 0 && (t->op->nin != 3 || t->op->nregions))
        return SAY("einsum: with `base` it takes three operands and no function");
      const char *to = ir_attr_str(t->op, "round", NULL);
      if (!to) break;
      if (!str_eq(to, "bf16")) return SAY("einsum: operands are rounded to bf16, not `%s`", to);
      if (t->op->nin < 2) return SAY("einsum: `round` is for products of two operands");
      break;
    }
    case IR_gather:
    case IR_scatter_add:
    case IR_nll: whole = 1; break;
    case IR_nll_grad: whole = 2; break;
    case IR_layernorm:
    case IR_rmsnorm:
    case IR_rope:
    case IR_dropout:
    case IR_attention: real = 0; break;
    default: break;
  }
  if (whole >= 0 &&
      (ir_dtype_float(t->op->in[whole]->type.dtype) || t->op->in[whole]->type.dtype == DT_bool))
    return SAY("%s needs whole numbers as operand %d, not %s", t->name, whole + 1,
               text_of(t, whole));
  if (real >= 0 && !ir_dtype_float(t->op->in[real]->type.dtype))
    return SAY("%s needs real numbers, not %s", t->name, text_of(t, real));
  return NULL;
}

// ---- broadcasting ------------------------------------------------------------------------------

// Which of two dimensions of extent 1 the result shows: the sample axis, then one with a name.
static ir_index *better_one(const infer *t, ir_index *a, ir_index *b) {
  ir_index *batch = t->m->batch ? ir_root(t->m->batch) : NULL;
  if (ir_root(a) == batch) return a;
  if (ir_root(b) == batch) return b;
  return ir_root(a)->name || !ir_root(b)->name ? a : b;
}

// One shape for all operands, aligned at the last dimension. Dimensions of extent 1 are not
// unified with each other: that two values repeat along an axis does not make the axes one.
static const char *broadcast(const infer *t, ir_type *out) {
  const ir_op *op = t->op;
  *out = op->in[0]->type;
  for (int k = 1; k < op->nin; k++) {
    ir_type before = *out;
    const ir_type *now = &op->in[k]->type;
    int rank = out->rank > now->rank ? out->rank : now->rank;
    ir_type merged = {.dtype = out->dtype, .rank = rank};
    for (int i = 1; i <= rank; i++) {  // from the last dimension
      ir_index *a = i <= before.rank ? before.dim[before.rank - i] : NULL;
      ir_index *b = i <= now->rank ? now->dim[now->rank - i] : NULL;
      ir_index *is = a ? a : b;
      if (a && b) {
        if (a->size == 1 && b->size == 1) {
          is = better_one(t, a, b);
        } else if (a->size == 1) {
          is = b;
        } else if (b->size != 1 && !ir_index_unify(t->m, a, b)) {
          const char *left = ir_type_text(t->m->arena, &before), *right = text_of(t, k);
          if (a->size == b->size)
            return SAY("%s: %s and %s: dimension %s is divided in ways that cannot be combined",
                       t->name, left, right, dim_text(t, a));
          return SAY("%s: %s and %s do not fit together: %lld against %lld", t->name, left, right,
                     (long long)a->size, (long long)b->size);
        }
      }
      merged.dim[rank - i] = is;
    }
    *out = merged;
  }
  return NULL;
}

// Checks a scalar region's arguments: `n` leading scalars of the given types (any when NULL), then
// captures of exactly the operands' types.
static const char *check_args(const infer *t, const ir_region *r, int nscalars,
                              ir_value *const *captured, int ncaptured, const char *what) {
  if (r->args.n != nscalars + ncaptured)
    return SAY("%s: %s takes %d arguments, not %d", t->name, what, nscalars + ncaptured, r->args.n);
  for (int i = 0; i < nscalars; i++)
    if (r->args.at[i]->type.rank)
      return SAY("%s: argument %d of %s is not a scalar", t->name, i + 1, what);
  for (int i = 0; i < ncaptured; i++) {
    const ir_type *a = &r->args.at[nscalars + i]->type, *b = &captured[i]->type;
    if (!ir_type_same(a, b))
      return SAY("%s: argument %d of %s is %s, but the value captured is %s", t->name,
                 nscalars + i + 1, what, ir_type_text(t->m->arena, a),
                 ir_type_text(t->m->arena, b));
    for (int d = 0; d < a->rank; d++)
      if (!ir_index_unify(t->m, a->dim[d], b->dim[d]))
        return SAY("%s: argument %d of %s is divided in another way than the value captured",
                   t->name, nscalars + i + 1, what);
  }
  for (int i = 0; i < r->yield.n; i++)
    if (r->yield.at[i]->type.rank)
      return SAY("%s: %s yields something that is not a scalar", t->name, what);
  return NULL;
}

// map: every operand is broadcast, and the function sees one element of each. The types of the
// results are those its region yields.
static const char *infer_map(const infer *t, ir_type *out, int *nout) {
  const ir_region *r = t->op->region[0];
  ir_type shape;
  const char *error = broadcast(t, &shape);
  if (!error) error = check_args(t, r, t->op->nin, NULL, 0, "the function");
  if (error) return error;
  for (int i = 0; i < t->op->nin; i++)
    if (r->args.at[i]->type.dtype != t->op->in[i]->type.dtype)
      return SAY("map: argument %d of the function is %s, but the operand is %s", i + 1,
                 ir_dtype_name(r->args.at[i]->type.dtype), text_of(t, i));
  if (t->op->nregions == 2) {
    const ir_region *g = t->op->region[1];
    error = check_args(t, g, t->op->nin + r->yield.n, NULL, 0, "the gradient");
    if (error) return error;
    if (g->yield.n != t->op->nin)
      return SAY("map: the gradient gives %d values for %d operands", g->yield.n, t->op->nin);
  }
  *nout = r->yield.n;
  for (int i = 0; i < *nout; i++) {
    out[i] = shape;
    out[i].dtype = r->yield.at[i]->type.dtype;
  }
  return NULL;
}

// All rows with the rule "*".
static const char *infer_broadcast(const infer *t, ir_type *out, int *nout) {
  const ir_op *op = t->op;
  if (op->code == IR_map) return infer_map(t, out, nout);
  const char *error = broadcast(t, &out[0]);
  if (error) return error;
  switch (ir_info(op->code)->cls) {
    case IR_CLASS_SCALAR: out[0].dtype = scalar_dtype(op); return NULL;
    case IR_CLASS_DEFINED:
      out[0].dtype = joined(op, 0);
      if (!ir_dtype_float(out[0].dtype)) out[0].dtype = DT_f32;
      return NULL;
    default: return column_dtypes(t, out, 1);
  }
}

// ---- movement ----------------------------------------------------------------------------------

// The attribute `dim`, or -1 when it is not below `limit`.
static int dim_attr(const infer *t, int limit) {
  int64_t d = ir_attr_int(t->op, "dim", -1);
  return d >= 0 && d < limit ? (int)d : -1;
}

static const char *no_such_dim(const infer *t) {
  return SAY("%s: %s has no dimension %lld", t->name, text_of(t, 0),
             (long long)ir_attr_int(t->op, "dim", -1));
}

// transpose: result dim k is operand dim perm[k].
static const char *infer_transpose(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  const ir_attr *perm = ir_get_attr(t->op, "perm");
  bool seen[IR_MAX_RANK] = {0};
  if (perm->n != x->rank) return SAY("transpose: %d axes given for %s", perm->n, text_of(t, 0));
  out->rank = x->rank;
  for (int i = 0; i < x->rank; i++) {
    int64_t p = perm->v[i];
    if (p < 0 || p >= x->rank || seen[p])
      return SAY("transpose: the axes given are not an order of the %d axes of %s", x->rank,
                 text_of(t, 0));
    seen[p] = true;
    out->dim[i] = x->dim[p];
  }
  return NULL;
}

// expand: an axis of extent 1 before `dim`, with an index of its own: it is not the extent-1 axis
// of any other value.
static const char *infer_expand(const infer *t, ir_type *out) {
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
static const char *infer_squeeze(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank);
  if (d < 0) return no_such_dim(t);
  if (x->dim[d]->size != 1)
    return SAY("squeeze: dimension %s of %s is not of extent 1", dim_text(t, x->dim[d]),
               text_of(t, 0));
  for (int i = 0; i < x->rank; i++)
    if (i != d) out->dim[out->rank++] = x->dim[i];
  return NULL;
}

// unfold: the index of the axis is refined into the two.
static const char *infer_unfold(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank);
  if (d < 0) return no_such_dim(t);
  if (x->rank == IR_MAX_RANK) return SAY("unfold: more than %d dimensions", IR_MAX_RANK);
  int64_t outer = ir_attr_int(t->op, "outer", 0), extent = x->dim[d]->size;
  if (outer < 1 || extent % outer)
    return SAY("unfold: dimension %s of %s does not divide into %lld parts", dim_text(t, x->dim[d]),
               text_of(t, 0), (long long)outer);
  ir_index *part[2] = {ir_index_new(t->m, NULL, outer), ir_index_new(t->m, NULL, extent / outer)};
  if (!ir_index_refine(t->m, x->dim[d], part, 2))
    return SAY("unfold: dimension %s of %s is already divided in a way that %lld parts cut across",
               dim_text(t, x->dim[d]), text_of(t, 0), (long long)outer);
  out->rank = x->rank + 1;
  for (int i = 0; i < out->rank; i++)
    out->dim[i] = i == d || i == d + 1 ? part[i - d] : x->dim[i - (i > d)];
  return NULL;
}

// fold: a new index, the product of the two.
static const char *infer_fold(const infer *t, ir_type *out) {
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
static const char *infer_slice(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank);
  if (d < 0) return no_such_dim(t);
  int64_t start = ir_attr_int(t->op, "start", 0), size = ir_attr_int(t->op, "size", 0);
  int64_t extent = x->dim[d]->size;
  if (size < 1 || start < 0 || start > extent || size > extent - start)
    return SAY("slice: positions %lld to %lld do not lie in dimension %s of %s", (long long)start,
               (long long)start + (long long)size, dim_text(t, x->dim[d]), text_of(t, 0));
  with_dim(t, out, d, size == extent ? x->dim[d] : ir_index_new(t->m, NULL, size));
  return NULL;
}

// pad: as slice, in the other direction.
static const char *infer_pad(const infer *t, ir_type *out) {
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
    return SAY("%s: %s and %s have different numbers of dimensions", t->name, text_of(t, 0),
               text_of(t, k));
  for (int i = 0; i < a->rank; i++)
    if (i != except && !ir_index_unify(t->m, a->dim[i], b->dim[i]))
      return SAY("%s: %s and %s differ in dimension %d", t->name, text_of(t, 0), text_of(t, k), i);
  return NULL;
}

// concat: all axes but `dim` are the same; `dim` is a new index of the summed extent.
static const char *infer_concat(const infer *t, ir_type *out) {
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
static const char *infer_split(const infer *t, ir_type *out, int *nout) {
  const ir_type *x = &t->op->in[0]->type;
  int d = dim_attr(t, x->rank);
  if (d < 0) return no_such_dim(t);
  int64_t parts = ir_attr_int(t->op, "parts", 0), extent = x->dim[d]->size;
  if (parts < 1 || parts > 1 << 16 || extent % parts)
    return SAY("split: dimension %s of %s does not divide into %lld parts", dim_text(t, x->dim[d]),
               text_of(t, 0), (long long)parts);
  ir_index *part[2] = {ir_index_new(t->m, "part", parts), ir_index_new(t->m, NULL, extent / parts)};
  if (!ir_index_refine(t->m, x->dim[d], part, 2))
    return SAY("split: dimension %s of %s is already divided in a way that %lld parts cut across",
               dim_text(t, x->dim[d]), text_of(t, 0), (long long)parts);
  // One part is the whole: the operand's own index says more than the new one.
  ir_index *rest = parts == 1 ? x->dim[d] : part[1];
  *nout = (int)parts;
  for (int i = 0; i < *nout; i++) with_dim(t, &out[i], d, rest);
  return NULL;
}

// join: the inverse of split. Its result is a new product part . rest; adding it to the value that
// was split, as gradients are, makes the two products one.
static const char *infer_join(const infer *t, ir_type *out) {
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
static const char *infer_reduce(const infer *t, ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  const ir_attr *axes = ir_get_attr(t->op, "axes");
  bool gone[IR_MAX_RANK] = {0}, keep = ir_attr_int(t->op, "keep", 0) != 0;
  if (t->op->nregions) {
    const ir_region *f = t->op->region[0];
    if (f->args.n != 1 || f->yield.n != 1 || f->args.at[0]->type.dtype != x->dtype ||
        f->yield.at[0]->type.dtype != x->dtype)
      return SAY("%s: its function takes and gives one %s", t->name, ir_dtype_name(x->dtype));
  }
  for (int i = 0; i < axes->n; i++) {
    int64_t a = axes->v[i];
    if (a < 0 || a >= x->rank || gone[a])
      return SAY("%s: axis %lld is not one of the axes of %s, or given twice", t->name,
                 (long long)a, text_of(t, 0));
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
static const char *infer_scatter_add(const infer *t, ir_type *out) {
  // (g : i... h..., ids : i...) -> rows h...
  const ir_type *g = &t->op->in[0]->type, *ids = &t->op->in[1]->type;
  int64_t rows = ir_attr_int(t->op, "rows", 0);
  if (rows < 1) return SAY("scatter_add: rows must be at least 1");
  if (g->rank < ids->rank || g->rank - ids->rank + 1 > IR_MAX_RANK)
    return SAY("scatter_add: %s and %s do not agree", text_of(t, 0), text_of(t, 1));
  for (int i = 0; i < ids->rank; i++)
    if (!ir_index_unify(t->m, g->dim[i], ids->dim[i]))
      return SAY("scatter_add: %s and %s do not agree", text_of(t, 0), text_of(t, 1));
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
      return SAY("scatter_add: %s is no table of %lld rows", text_of(t, 2), (long long)rows);
  }
  return NULL;
}

// append: the type of the cache; what is appended fits in it along `dim` and agrees elsewhere.
static const char *infer_append(const infer *t, ir_type *out) {
  int d = dim_attr(t, t->op->in[0]->type.rank);
  if (d < 0) return no_such_dim(t);
  const char *error = agree_except(t, 1, d);
  if (error) return error;
  if (t->op->in[1]->type.dim[d]->size > t->op->in[0]->type.dim[d]->size)
    return SAY("append: %s does not fit in %s", text_of(t, 1), text_of(t, 0));
  *out = t->op->in[0]->type;
  return NULL;
}

// at(tensor, i0, ...): as many indices as the tensor has axes.
static const char *infer_at(const infer *t) {
  int rank = t->op->in[0]->type.rank;
  if (t->op->nin != rank + 1)
    return SAY("at: %s has %d axes, but %d positions are given", text_of(t, 0), rank,
               t->op->nin - 1);
  for (int i = 1; i < t->op->nin; i++)
    if (t->op->in[i]->type.rank) return SAY("at: position %d is not a scalar", i);
  return NULL;
}

// ---- attention ---------------------------------------------------------------------------------

// The regions of attention: mask first, then bias, each with (b, h, i, j) and its own captures.
// Captured tensors are unified with the arguments, so that a pass may look at either.
static const char *check_attention(const infer *t, int first_capture) {
  const ir_op *op = t->op;
  int64_t nmask = ir_attr_int(op, "ncap_mask", 0);
  int ncaptured = op->nin - first_capture;
  if (nmask < 0 || nmask > ncaptured)
    return SAY("%s: ncap_mask is %lld of %d captured values", t->name, (long long)nmask, ncaptured);
  int nbias = ncaptured - (int)nmask, r = 0;
  ir_value *const *captured = op->in + first_capture;
  const char *error = NULL;
  if (ir_attr_int(op, "has_mask", 0)) {
    const ir_region *mask = op->region[r++];
    error = check_args(t, mask, 4, captured, (int)nmask, "the mask");
    if (!error && (mask->yield.n != 1 || mask->yield.at[0]->type.dtype != DT_bool))
      error = SAY("%s: a mask gives one truth value", t->name);
  } else if (nmask) {
    error = SAY("%s: values captured by a mask that is not there", t->name);
  }
  if (error) return error;
  if (ir_attr_int(op, "has_bias", 0)) {
    const ir_region *bias = op->region[r];
    error = check_args(t, bias, 4, captured + nmask, nbias, "the bias");
    if (!error && bias->yield.n != 1) error = SAY("%s: a bias gives one number", t->name);
  } else if (nbias) {
    error = SAY("%s: values captured by a bias that is not there", t->name);
  }
  return error;
}

// The gradient of one captured tensor has its type.
static const char *infer_attention_grad_bias(const infer *t, ir_type *out) {
  int64_t capture = ir_attr_int(t->op, "capture", -1);
  if (capture < 0 || capture >= t->op->nin - 6)
    return SAY("%s: there is no captured value %lld", t->name, (long long)capture);
  *out = t->op->in[6 + capture]->type;
  return check_attention(t, 6);
}

// Rotary positions turn pairs: a head must have an even width.
static const char *check_rope(const infer *t) {
  const ir_type *x = &t->op->in[0]->type;
  int64_t width = x->dim[x->rank - 1]->size / ir_attr_int(t->op, "heads", 1);
  return width % 2 ? SAY("rope: heads of %lld elements cannot be turned in pairs", (long long)width)
                   : NULL;
}

// ---- repeat ------------------------------------------------------------------------------------

// That a value keeps its type and its indices across the border of the body.
static const char *same_type(const infer *t, const ir_type *a, const ir_type *b, const char *what,
                             int i) {
  bool ok = ir_type_same(a, b);
  for (int d = 0; ok && d < a->rank; d++) ok = ir_index_unify(t->m, a->dim[d], b->dim[d]);
  if (ok) return NULL;
  return SAY("repeat: %s %d is %s in the body and %s outside", what, i + 1,
             ir_type_text(t->m->arena, b), ir_type_text(t->m->arena, a));
}

// repeat: see its row in ops.def. Carried values must not change, stacked ones lose and gain the
// layer axis, and all layer axes of one loop are one index.
// True when `inside` is one of `count` chunks of `outside`, which lie one behind the other: a dim
// is cut, those before it are walked one by one, those behind it are whole.
static bool is_chunk(const infer *t, const ir_type *outside, const ir_type *inside, int64_t count) {
  if (outside->rank != inside->rank || outside->dtype != inside->dtype) return false;
  int64_t walked = 1;
  for (int d = 0; d < inside->rank; d++) {
    int64_t all = outside->dim[d]->size, own = inside->dim[d]->size;
    bool whole = all % own == 0 && walked * (all / own) == count;
    for (int i = d + 1; i < inside->rank; i++)
      whole &= outside->dim[i]->size == inside->dim[i]->size;
    if (whole) {
      for (int i = d + 1; i < inside->rank && whole; i++)
        whole = ir_index_unify(t->m, outside->dim[i], inside->dim[i]);
      return whole;
    }
    if (own != 1) return false;
    walked *= all;
  }
  return false;
}

// A stream: chunks go in and out, and the types of what is put together are given.
static const char *infer_stream(const infer *t, ir_type *out, int *nout) {
  const ir_op *op = t->op;
  const ir_region *body = op->region[0];
  int64_t count = ir_attr_int(op, "count", 0), nc = ir_attr_int(op, "carried", 0),
          ns = ir_attr_int(op, "stacked", 0);
  if (op->nout != body->yield.n) return SAY("repeat: the types of a stream's results are given");
  *nout = op->nout;
  for (int i = 0; i < op->nin; i++) {
    const ir_type *inside = &body->args.at[i + 1]->type;
    const char *error = NULL;
    if (i >= nc && i < nc + ns) {
      if (!is_chunk(t, &op->in[i]->type, inside, count))
        error = SAY("repeat: %s is not %lld times what the body takes", text_of(t, i),
                    (long long)count);
    } else {
      error = same_type(t, &op->in[i]->type, inside, i < nc ? "carried value" : "invariant", i);
    }
    if (!error && i < nc)
      error = same_type(t, inside, &body->yield.at[i]->type, "carried value", i);
    if (error) return error;
  }
  for (int i = 0; i < *nout; i++) {
    out[i] = i < nc ? op->in[i]->type : op->out[i]->type;
    if (i >= nc && !is_chunk(t, &out[i], &body->yield.at[i]->type, count))
      return SAY("repeat: result %d is not %lld times what the body gives", i + 1,
                 (long long)count);
  }
  return NULL;
}

static const char *infer_repeat(const infer *t, ir_type *out, int *nout) {
  const ir_op *op = t->op;
  const ir_region *body = op->region[0];
  int64_t count = ir_attr_int(op, "count", 0), nc = ir_attr_int(op, "carried", 0),
          ns = ir_attr_int(op, "stacked", 0);
  if (count < 1) return SAY("repeat: the count must be at least 1");
  if (nc < 0 || ns < 0 || nc > op->nin || ns > op->nin - nc)
    return SAY("repeat: %lld carried and %lld stacked of %d operands", (long long)nc, (long long)ns,
               op->nin);
  if (body->args.n != op->nin + 1)
    return SAY("repeat: the body takes %d arguments for %d operands", body->args.n, op->nin);
  if (body->yield.n < nc)
    return SAY("repeat: the body gives %d values, fewer than the %lld carried", body->yield.n,
               (long long)nc);
  const ir_type *layer = &body->args.at[0]->type;
  if (layer->rank || layer->dtype != DT_i32) return SAY("repeat: the layer must be an i32 scalar");
  if (ir_attr_int(op, "stream", 0)) return infer_stream(t, out, nout);
  ir_index *layers = NULL;
  for (int i = 0; i < op->nin; i++) {
    ir_type outside = op->in[i]->type;
    const ir_type *inside = &body->args.at[i + 1]->type;
    const char *what = i < nc ? "carried value" : i < nc + ns ? "stacked value" : "invariant";
    if (i >= nc && i < nc + ns) {
      if (!outside.rank || outside.dim[0]->size != count ||
          (layers && !ir_index_unify(t->m, layers, outside.dim[0])))
        return SAY("repeat: the stacked value %s does not have %lld layers", text_of(t, i),
                   (long long)count);
      layers = outside.dim[0];
      outside.rank--;
      memmove(outside.dim, outside.dim + 1, sizeof *outside.dim * (size_t)outside.rank);
    }
    const char *error = same_type(t, &outside, inside, what, i);
    if (!error && i < nc) error = same_type(t, inside, &body->yield.at[i]->type, what, i);
    if (error) return error;
  }
  *nout = body->yield.n;
  for (int i = 0; i < *nout; i++) {
    out[i] = i < nc ? op->in[i]->type : body->yield.at[i]->type;
    if (i < nc) continue;
    if (out[i].rank == IR_MAX_RANK) return SAY("repeat: a stack of more than %d axes", IR_MAX_RANK);
    memmove(out[i].dim + 1, out[i].dim, sizeof *out[i].dim * (size_t)out[i].rank);
    if (!layers) layers = ir_index_new(t->m, "layer", count);
    out[i].dim[0] = layers;
    out[i].rank++;
  }
  return NULL;
}

// ---- leaves and ends ---------------------------------------------------------------------------

// state and set: the type is the state's.
static const char *infer_state(const infer *t, ir_type *out) {
  const char *name = ir_attr_str(t->op, "name", "");
  const ir_state *s = ir_state_find(t->m, name);
  if (!s) return SAY("%s: there is no state `%s`", t->name, name);
  if (t->op->code == IR_state) {
    *out = s->type;
    return NULL;
  }
  const ir_type *x = &t->op->in[0]->type;
  bool ok = ir_type_same(x, &s->type);
  for (int d = 0; ok && d < x->rank; d++) ok = ir_index_unify(t->m, x->dim[d], s->type.dim[d]);
  if (ok) return NULL;
  return SAY("set: `%s` is %s, not %s", name, ir_type_text(t->m->arena, &s->type), text_of(t, 0));
}

// broadcast: operand dim k is result dim dims[k]. The result's type is given.
static const char *check_broadcast(const infer *t, const ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  const ir_attr *dims = ir_get_attr(t->op, "dims");
  if (dims->n != x->rank) return SAY("broadcast: %d dims given for %s", dims->n, text_of(t, 0));
  int64_t last = -1;
  for (int i = 0; i < x->rank; i++) {
    int64_t d = dims->v[i];
    if (d <= last || d >= out->rank)
      return SAY("broadcast: dims are not rising positions in %s", ir_type_text(t->m->arena, out));
    last = d;
    if (x->dim[i]->size != 1 && !ir_index_unify(t->m, x->dim[i], out->dim[d]))
      return SAY("broadcast: %s does not repeat to %s", text_of(t, 0),
                 ir_type_text(t->m->arena, out));
  }
  return x->dtype == out->dtype ? NULL : SAY("broadcast: the element type changes");
}

// All rows with the rule "raw".
static const char *infer_raw(const infer *t, ir_type *out, int *nout) {
  const ir_op *op = t->op;
  if (strcmp(ir_info(op->code)->dtype, "raw") != 0 && *nout > 0 && op->code != IR_split) {
    const char *error = column_dtypes(t, out, *nout);
    if (error) return error;
  }
  ir_type *o = &out[0];
  ir_dtype dtype = *nout > 0 ? o->dtype : DT_f32;
  const char *error;
  switch (op->code) {
    case IR_const:
      if (ir_dtype_parse(ir_attr_str(op, "dtype", ""), &dtype)) {
        *o = ir_scalar(dtype);
        return NULL;
      }
      return SAY("const: `%s` is not an element type", ir_attr_str(op, "dtype", ""));
    case IR_zeros:
    case IR_input:
    case IR_arg:
    case IR_broadcast:
      if (op->nout != 1) return SAY("%s: its type has to be given", t->name);
      *o = op->out[0]->type;
      return op->code == IR_broadcast ? check_broadcast(t, o) : NULL;
    case IR_state:
    case IR_set: return infer_state(t, o);
    case IR_output: return NULL;
    case IR_transpose: return infer_transpose(t, o);
    case IR_expand: return infer_expand(t, o);
    case IR_squeeze: return infer_squeeze(t, o);
    case IR_unfold: return infer_unfold(t, o);
    case IR_fold: return infer_fold(t, o);
    case IR_slice: return infer_slice(t, o);
    case IR_pad: return infer_pad(t, o);
    case IR_concat:
    case IR_join:
      error = op->code == IR_concat ? infer_concat(t, o) : infer_join(t, o);
      o->dtype = dtype;  // joined over the operands, not the first one's
      return error;
    case IR_split: return infer_split(t, out, nout);
    case IR_scatter_add: return infer_scatter_add(t, o);
    case IR_sum:
    case IR_reduce_max: return infer_reduce(t, o);
    case IR_append: return infer_append(t, o);
    case IR_at: return infer_at(t);
    case IR_attention_grad_bias: return infer_attention_grad_bias(t, o);
    case IR_repeat: return infer_repeat(t, out, nout);
    case IR_accumulate: *o = op->in[0]->type; return NULL;
    default: IR_BUG("%s has a raw rule and no inference", t->name);
  }
}

// ---- epilogues ----------------------------------------------------------------------------------

// Operand k repeats along the axes of `shape`, aligned at the last one.
static const char *repeats_to(const infer *t, int k, const ir_type *shape) {
  const ir_type *x = &t->op->in[k]->type;
  bool ok = x->rank <= shape->rank;
  for (int d = 1; ok && d <= x->rank; d++) {
    int64_t n = x->dim[x->rank - d]->size;
    ok = n == 1 || n == shape->dim[shape->rank - d]->size;
  }
  return ok ? NULL
            : SAY("%s: %s does not repeat to %s", t->name, text_of(t, k),
                  ir_type_text(t->m->arena, shape));
}

// The types of the function's results, from that of the element it is given.
static const char *infer_epilogue(const infer *t, int from, ir_type *out, int nout) {
  const ir_region *r = t->op->region[0];
  ir_type shape = out[0];
  const char *error = check_args(t, r, 1 + t->op->nin - from, NULL, 0, "the function");
  if (!error && r->args.at[0]->type.dtype != shape.dtype)
    error = SAY("%s: the function takes %s, but the element is %s", t->name,
                ir_dtype_name(r->args.at[0]->type.dtype), ir_dtype_name(shape.dtype));
  for (int k = from; k < t->op->nin && !error; k++) {
    if (r->args.at[1 + k - from]->type.dtype != t->op->in[k]->type.dtype)
      error = SAY("%s: argument %d of the function is %s, but the operand is %s", t->name,
                  2 + k - from, ir_dtype_name(r->args.at[1 + k - from]->type.dtype), text_of(t, k));
    if (!error) error = repeats_to(t, k, &shape);
  }
  for (int i = 0; i < nout; i++) {
    out[i] = shape;
    out[i].dtype = r->yield.at[i]->type.dtype;
  }
  return error;
}

// ---- the whole ---------------------------------------------------------------------------------

static const char *infer_op(const infer *t, ir_type *out, int *nout) {
  const ir_op *op = t->op;
  const char *rule = ir_info(op->code)->rule, *error = check_dtypes(t);
  if (error) return error;
  if (strcmp(rule, "*") == 0) return infer_broadcast(t, out, nout);
  if (strcmp(rule, "raw") == 0) return infer_raw(t, out, nout);
  ir_rule parsed;
  int from = ir_epilogue(op);
  if (from >= 0) {
    // What is in front of the function is an op of its own row.
    if (op->nin < from) return SAY("%s takes at least %d operands", t->name, from);
    ir_op plain = *op;
    plain.nin = from, plain.nregions = 0;
    infer front = {.m = t->m, .op = &plain, .name = t->name};
    int one = 1;
    error = infer_op(&front, out, &one);
    return error ? error : infer_epilogue(t, from, out, *nout);
  }
  ir_op product = *op;
  if (ir_base(op) >= 0) product.nin = ir_base(op);
  infer front = {.m = t->m, .op = &product, .name = t->name};
  error = ir_rule_read(t->m, &product, &parsed);
  if (!error) error = ir_rule_match(t->m, &product, &parsed, out);
  if (!error) error = column_dtypes(&front, out, *nout);
  if (!error && ir_base(op) >= 0)
    error = same_type(t, out, &op->in[ir_base(op)]->type, "start of the sums", ir_base(op));
  if (!error && op->code == IR_rope) error = check_rope(t);
  if (!error && op->code == IR_attention) error = check_attention(t, 3);
  if (!error && op->code == IR_attention_grad) error = check_attention(t, 6);
  return error;
}

const char *ir_infer(ir_module *m, ir_op *op, ir_type *out, int *nout) {
  const char *error = ir_check_row(m, op);
  if (error) return error;
  infer t = {.m = m, .op = op, .name = ir_info(op->code)->name};
  *nout = ir_result_count(op);
  for (int i = 0; i < *nout; i++) out[i] = (ir_type){0};
  ir_index_trial trial = ir_index_try(m);
  error = infer_op(&t, out, nout);
  for (int i = 0; i < *nout && !error; i++) {
    int64_t n = ir_dtype_bytes(out[i].dtype);
    for (int d = 0; d < out[i].rank; d++)
      if (__builtin_mul_overflow(n, out[i].dim[d]->size, &n))
        error = arena_printf(m->arena, "%s: the result %s is too large", t.name,
                             ir_type_text(m->arena, &out[i]));
  }
  if (error)
    ir_index_undo(m, trial);
  else
    ir_index_keep(m, trial);
  return error;
}
