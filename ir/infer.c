// Types of results: the dispatcher ir_infer and the ops whose rule is not made of words.
//
// ir_infer is a transaction: indices are unified and refined on the way, and when a message comes
// out all of that is taken back.
#include <string.h>

#include "ir/infer_impl.h"
#include "ir/place.h"

const char *infer_text_of(const infer *t, int k) {
  return ir_type_text(t->m->arena, &t->op->in[k]->type);
}

const char *infer_dim_text(const infer *t, const ir_index *x) {
  x = ir_root((ir_index *)x);
  return x->name ? SAY("`%s` (%lld)", x->name, (long long)x->size)
                 : SAY("%lld", (long long)x->size);
}

// ---- the row: operands, attributes, regions ----------------------------------------------------

// How many regions the op must have; *most how many it may have (a map may bring its own gradient
// as a second one).
static int regions_wanted(const ir_op *op, int *most) {
  *most = 0;
  if (ir_queries(op) >= 0)
    return *most = (ir_attr_int(op, "has_mask", 0) != 0) + (ir_attr_int(op, "has_bias", 0) != 0);
  switch (op->code) {
    case IR_map: return *most = 2, 1;
    case IR_repeat: return *most = 1;
    case IR_sum: return *most = 1, 0;
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
    } else if (n == 1 && *p == 'r') {
      ir_dtype own = op->in[0]->type.dtype;
      out[i].dtype = ir_dtype_float(own) ? own : DT_f32;
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
               infer_text_of(t, whole));
  if (real >= 0 && !ir_dtype_float(t->op->in[real]->type.dtype))
    return SAY("%s needs real numbers, not %s", t->name, infer_text_of(t, real));
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
          const char *left = ir_type_text(t->m->arena, &before), *right = infer_text_of(t, k);
          if (a->size == b->size)
            return SAY("%s: %s and %s: dimension %s is divided in ways that cannot be combined",
                       t->name, left, right, infer_dim_text(t, a));
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
                 ir_dtype_name(r->args.at[i]->type.dtype), infer_text_of(t, i));
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
  return SAY("set: `%s` is %s, not %s", name, ir_type_text(t->m->arena, &s->type),
             infer_text_of(t, 0));
}

// broadcast: operand dim k is result dim dims[k]. The result's type is given.
static const char *check_broadcast(const infer *t, const ir_type *out) {
  const ir_type *x = &t->op->in[0]->type;
  const ir_attr *dims = ir_get_attr(t->op, "dims");
  if (dims->n != x->rank)
    return SAY("broadcast: %d dims given for %s", dims->n, infer_text_of(t, 0));
  int64_t last = -1;
  for (int i = 0; i < x->rank; i++) {
    int64_t d = dims->v[i];
    if (d <= last || d >= out->rank)
      return SAY("broadcast: dims are not rising positions in %s", ir_type_text(t->m->arena, out));
    last = d;
    if (x->dim[i]->size != 1 && !ir_index_unify(t->m, x->dim[i], out->dim[d]))
      return SAY("broadcast: %s does not repeat to %s", infer_text_of(t, 0),
                 ir_type_text(t->m->arena, out));
  }
  return x->dtype == out->dtype ? NULL : SAY("broadcast: the element type changes");
}

// What moves between ranks has a type of its own: extents of one rank. They must fit the mesh.
static const char *infer_exchange(const infer *t, ir_type *o) {
  const ir_op *op = t->op;
  if (op->code == IR_place) {
    const ir_attr *begins = ir_get_attr(op, "begins"), *turn = ir_get_attr(op, "turn");
    int naxes = t->m->mesh ? t->m->mesh->naxes : 0;
    *o = ir_scalar(DT_i32);
    if (begins->n == naxes && (!turn || turn->n == naxes)) return NULL;
    return SAY("place: the mesh has %d axes", naxes);
  }
  unsigned axes = ir_exchange_axes(t->m, op);
  if (!axes) return SAY("%s: the mesh has no axes `%s`", t->name, ir_attr_str(op, "axes", ""));
  int64_t n = mesh_parts(t->m->mesh, axes), block = ir_attr_int(op, "block", 1);
  if (op->code == IR_send) return NULL;
  if (op->nout != 1) return SAY("%s: its type has to be given", t->name);
  bool same = op->code == IR_all_reduce || op->code == IR_permute;
  *o = same ? op->in[0]->type : op->out[0]->type;
  if (op->code == IR_receive) return NULL;
  if (o->dtype != op->in[0]->type.dtype) return SAY("%s: it changes the element type", t->name);
  int64_t in = ir_elements(&op->in[0]->type), out = ir_elements(o);
  bool gathers = op->code == IR_all_gather;
  int64_t mine = gathers ? in : out, all = gathers ? out : in;
  bool fits = true;
  if (op->code == IR_all_to_all) {
    const ir_attr *s = ir_get_attr(op, "shape");
    int64_t have = 1;
    for (int i = 0; i < s->n && fits; i++)
      fits = s->v[i] > 0 && !__builtin_mul_overflow(have, s->v[i], &have);
    fits = fits && s->n == 5 && have == in && in == out &&
           s->v[ir_attr_int(op, "turned", 0) ? 1 : 3] % n == 0;
  } else if (!same) {
    int64_t whole = ir_attr_int(op, "whole", 0), boxes = block > 0 ? mine / block : 0;
    bool shares = whole ? block == (whole + n - 1) / n && all / whole == boxes && all % whole == 0
                        : mine <= INT64_MAX / n && all == mine * n;
    fits = boxes > 0 && mine % block == 0 && shares;
    if (ir_attr_int(op, "mirror", 0)) fits &= block % 2 == 0 && !whole;
  }
  return fits ? NULL
              : SAY("%s: %s of %lld ranks is no %s", t->name, infer_text_of(t, 0), (long long)n,
                    ir_type_text(t->m->arena, o));
}

// All rows whose rule is "raw", with words behind it or without.
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
    case IR_all_reduce:
    case IR_all_gather:
    case IR_reduce_scatter:
    case IR_part:
    case IR_all_to_all:
    case IR_permute:
    case IR_place:
    case IR_send:
    case IR_receive: return infer_exchange(t, o);
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
            : SAY("%s: %s does not repeat to %s", t->name, infer_text_of(t, k),
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
      error =
          SAY("%s: argument %d of the function is %s, but the operand is %s", t->name, 2 + k - from,
              ir_dtype_name(r->args.at[1 + k - from]->type.dtype), infer_text_of(t, k));
    if (!error) error = repeats_to(t, k, &shape);
  }
  for (int i = 0; i < nout; i++) {
    out[i] = shape;
    out[i].dtype = r->yield.at[i]->type.dtype;
  }
  return error;
}

// Sums start in a value of their own type, whose indices are theirs.
static const char *check_base(const infer *t, int k, const ir_type *sums) {
  const ir_type *from = &t->op->in[k]->type;
  bool ok = ir_type_same(from, sums);
  for (int d = 0; ok && d < from->rank; d++) ok = ir_index_unify(t->m, from->dim[d], sums->dim[d]);
  return ok ? NULL
            : SAY("%s: the sums are %s and start at %s", t->name, ir_type_text(t->m->arena, sums),
                  infer_text_of(t, k));
}

// ---- the whole ---------------------------------------------------------------------------------

static const char *infer_op(const infer *t, ir_type *out, int *nout) {
  const ir_op *op = t->op;
  const char *rule = ir_info(op->code)->rule, *error = check_dtypes(t);
  if (error) return error;
  if (strcmp(rule, "*") == 0) return infer_broadcast(t, out, nout);
  if (str_starts(rule, "raw")) return infer_raw(t, out, nout);
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
  if (!error && ir_base(op) >= 0) error = check_base(t, ir_base(op), out);
  if (!error && op->code == IR_rope) error = check_rope(t);
  if (!error && ir_queries(op) >= 0) error = check_attention(t, ir_queries(op) + 3);
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
