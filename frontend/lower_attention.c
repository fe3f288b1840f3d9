// Attention: heads from widths, masks and biases as scalar regions.
//
// `mask=present` with `fn present(i, j) = j < length` becomes
//
//   attention(q, k, v, length) region(b, h, i, j, length) { yield lt(j, at(length, b)) }
//
// A tensor named in such a fn is a *capture*. `kind[j]` gives the position axes, from the last one;
// what axes are left in front must be the batch and are indexed by the sample.
#include <math.h>
#include <string.h>

#include "frontend/sema_impl.h"

enum { Q, K, V, HEADS, MASK, BIAS, SCALE, DROPOUT, GROUPS };  // as in builtins.def

// ---------------------------------------------------------------------------------------------
// Captures
// ---------------------------------------------------------------------------------------------

// Extents written as numbers have no name to be the same by: equal ones are.
static bool leads_with_batch(lowering *lw, const frame *f, const ir_value *t, int lead) {
  if (lead != f->batch_rank) return false;
  for (int i = 0; i < lead; i++) {
    ir_index *have = ir_root(t->type.dim[i]), *want = ir_root(f->batch[i]);
    if (have == want) continue;
    if ((have->name && want->name) || !ir_index_unify(lw->m, have, want)) return false;
  }
  return true;
}

// The position along batch axis d of the flattened sample number.
static ir_value *batch_position(lowering *lw, span at, const frame *f, int d) {
  if (f->batch_rank == 1) return f->position[0];
  int64_t after = 1;
  for (int i = d + 1; i < f->batch_rank; i++) after *= f->batch[i]->size;
  ir_value *v = f->position[0];
  ir_value *c = emit_const(lw, at, DT_i32, (double)after);
  v = c && after > 1 ? emit2(lw, at, IR_floordiv, v, c) : v;
  c = emit_const(lw, at, DT_i32, (double)f->batch[d]->size);
  return v && c && d ? emit2(lw, at, IR_mod, v, c) : v;
}

static ir_value *capture_arg(lowering *lw, frame *f, ir_value *tensor) {
  ir_value *outer = import_value(lw, f->outer, tensor);
  for (int i = 0; i < f->imports.n; i++)
    if (f->imports.at[i].outer == outer) return f->imports.at[i].arg;
  ir_value *made = ir_region_arg(f->region, outer->type, outer->name);
  vec_push(lw->arena, &f->imports, (import){outer, made});
  return made;
}

static val element(lowering *lw, span at, ir_value *tensor, ir_value *const *index) {
  ir_value *in[IR_MAX_RANK + 1] = {capture_arg(lw, lw->frame, tensor)};
  for (int i = 0; i < tensor->type.rank; i++) {
    if (!index[i]) return val_error();
    in[i + 1] = index[i];
  }
  ir_op *op = emit(lw, at, IR_at, in, tensor->type.rank + 1, NULL, 0, NULL, 0);
  return val_tensor(op ? op->out[0] : NULL);
}

val score_capture(lowering *lw, span at, ir_value *tensor, const char *name, const val *at_pick,
                  int npicks) {
  frame *f = lw->frame;
  int rank = tensor->type.rank, lead = rank - npicks;
  const char *shown = ir_type_text(lw->arena, &tensor->type);
  if (lead < 0) {
    sema_error(lw, at, DIAG_BAD_INDEX, "`%s` is %s: %d picks are too many", name, shown, npicks);
    return val_error();
  }
  if (lead > 0 && !leads_with_batch(lw, f, tensor, lead)) {
    diag *e = sema_error(
        lw, at, DIAG_BAD_MASK, "`%s` is %s: %s", name, shown,
        npicks ? "the axes without a pick are not the batch" : "its axes are not just the batch");
    diag_note(e, "index it by position: `%s[j]` by the key's, `%s[i]` by the query's", name, name);
    return val_error();
  }
  ir_value *index[IR_MAX_RANK] = {NULL};
  for (int i = 0; i < lead; i++) index[i] = batch_position(lw, at, f, i);
  for (int i = 0; i < npicks; i++)
    index[lead + i] = as_tensor(lw, at, &at_pick[i], f->position[0], "a position");
  return element(lw, at, tensor, index);
}

// A tensor as bias: its axes are, from the last, key, query, head, batch; extent 1 repeats.
static val broadcast_bias(lowering *lw, span at, ir_value *t, int64_t heads, int64_t queries,
                          int64_t keys) {
  frame *f = lw->frame;
  int rank = t->type.rank;
  const int64_t want_of[3] = {keys, queries, heads};
  ir_value *const position[3] = {f->position[3], f->position[2], f->position[1]};
  ir_value *index[IR_MAX_RANK] = {NULL};
  bool fits = rank <= 3 + f->batch_rank;
  for (int k = 0; k < rank && fits; k++) {  // from the last axis
    int at_dim = rank - 1 - k, batch = f->batch_rank - 1 - (k - 3);
    int64_t have = t->type.dim[at_dim]->size, want = k < 3 ? want_of[k] : f->batch[batch]->size;
    fits = have == want || have == 1;
    index[at_dim] = have == 1 && want != 1 ? emit_const(lw, at, DT_i32, 0)
                    : k < 3                ? position[k]
                                           : batch_position(lw, at, f, batch);
  }
  if (!fits) {
    diag *e = sema_error(lw, at, DIAG_WRONG_SHAPE, "a bias of %s does not fit",
                         ir_type_text(lw->arena, &t->type));
    diag_note(e, "its axes are, from the last: %lld keys, %lld queries, %lld heads, then the batch",
              (long long)keys, (long long)queries, (long long)heads);
    return val_error();
  }
  return element(lw, at, t, index);
}

// ---------------------------------------------------------------------------------------------
// Regions
// ---------------------------------------------------------------------------------------------

static void enter_score(lowering *lw, frame *f, const ir_value *q) {
  *f = (frame){.outer = lw->frame, .kind = FRAME_SCORE, .region = ir_region_new(lw->m, NULL)};
  static const char *const names[] = {"b", "h", "i", "j"};
  for (int i = 0; i < 4; i++)
    f->position[i] = ir_region_arg(f->region, ir_scalar(DT_i32), names[i]);
  f->batch_rank = q->type.rank - 2;
  for (int i = 0; i < f->batch_rank; i++) f->batch[i] = q->type.dim[i];
  lw->frame = f;
}

// Applies a fn to positions; further formals take their defaults.
static val apply(lowering *lw, span at, const val *f, ir_value *const *position, int n,
                 const char *what, const char *formals) {
  const closure *c = f->closure;
  int have = fn_formals(c), needed = 0;
  for (int i = 0; i < have; i++)
    if (!c->fn->formals.at[i].value) needed = i + 1;
  if (have < n || needed > n) {
    diag *e = sema_error(lw, at, DIAG_BAD_MASK, "%s is a fn of %s; `%s` takes %d argument%s", what,
                         formals, c->fn->name.text, have, have == 1 ? "" : "s");
    diag_place_at(e, c->fn->name.at, "`%s` is defined here", c->fn->name.text);
    return val_error();
  }
  val *x = arena_new(lw->arena, val, have);
  for (int i = 0; i < have; i++)
    x[i] = i < n ? val_tensor(position[i]) : (val){.kind = VAL_MULTI, .n = -1};
  return call_fn(lw, at, c, x, have);
}

static bool finish_region(lowering *lw, span at, frame *f, const val *v, const char *what) {
  ir_value *y = as_tensor(lw, at, v, NULL, what);
  if (!y) return false;
  vec_push(lw->arena, &f->region->yield, y);
  return true;
}

static bool mask_region(lowering *lw, span at, const val *mask, const ir_value *q, frame *f) {
  enter_score(lw, f, q);
  val r;
  if (mask->kind == VAL_OP && str_eq(mask->text, "causal")) {
    r = val_tensor(emit2(lw, at, IR_le, f->position[3], f->position[2]));
  } else if (mask->kind == VAL_FN) {
    r = apply(lw, at, mask, &f->position[2], 2, "a mask", "(query position, key position)");
  } else {
    diag *e = sema_error(lw, at, DIAG_BAD_MASK, "a mask is a fn; this is %s", val_what(mask));
    diag_note(e, "such as `fn mine(i, j) = j <= i and kind[j] == 0`, given as mask=mine");
    r = val_error();
  }
  bool truth = r.kind == VAL_BOOL || (r.kind == VAL_TENSOR && r.tensor->type.dtype == DT_bool);
  if (r.kind != VAL_ERROR && !truth)
    sema_error(lw, at, DIAG_BAD_MASK, "a mask gives true or false; this one gives %s",
               r.kind == VAL_TENSOR ? "a number" : val_what(&r));
  bool ok = truth && finish_region(lw, at, f, &r, "a mask");
  lw->frame = f->outer;
  return ok;
}

static ir_value *as_score(lowering *lw, span at, const val *v) {
  ir_value *x = as_tensor(lw, at, v, NULL, "a bias");
  if (!x) return NULL;
  if (x->type.dtype == DT_bool) {
    diag *e = sema_error(lw, at, DIAG_BAD_MASK, "a bias gives a number; this gives true or false");
    diag_note(e, "what says which positions are seen is a mask");
    return NULL;
  }
  if (ir_dtype_float(x->type.dtype)) return x;
  ir_attr attr = ir_attr_s("dtype", "f32");
  ir_op *op = emit(lw, at, IR_cast, &x, 1, &attr, 1, NULL, 0);
  return op ? op->out[0] : NULL;
}

static bool bias_region(lowering *lw, span at, const val *bias, const ir_value *q, int64_t heads,
                        int64_t keys, frame *f) {
  const val *items = bias->kind == VAL_LIST ? bias->items : bias;
  int n = bias->kind == VAL_LIST ? bias->n : 1;
  int64_t queries = q->type.dim[q->type.rank - 2]->size;
  enter_score(lw, f, q);
  ir_value *sum = NULL;
  bool ok = true;
  for (int i = 0; i < n && ok; i++) {
    val r;
    if (items[i].kind == VAL_NONE) continue;
    if (items[i].kind == VAL_FN) {
      r = apply(lw, at, &items[i], &f->position[1], 3, "a bias",
                "(head, query position, key position)");
    } else if (items[i].kind == VAL_TENSOR) {
      r = broadcast_bias(lw, at, items[i].tensor, heads, queries, keys);
    } else {
      sema_error(lw, at, DIAG_BAD_MASK, "a bias is a fn, a tensor or a list of them; this is %s",
                 val_what(&items[i]));
      r = val_error();
    }
    ir_value *x = as_score(lw, at, &r);
    sum = sum && x ? emit2(lw, at, IR_add, sum, x) : x;
    ok = sum != NULL;
  }
  if (ok && sum) vec_push(lw->arena, &f->region->yield, sum);
  lw->frame = f->outer;
  return ok;
}

// ---------------------------------------------------------------------------------------------
// The op
// ---------------------------------------------------------------------------------------------

typedef struct widths {
  int64_t heads, kv_heads, head;
} widths;

static int64_t width_of(const ir_value *v) { return v->type.dim[v->type.rank - 1]->size; }

static bool find_widths(lowering *lw, const expr *e, const bound_args *a, ir_value *const *in,
                        widths *w) {
  int rank = in[0]->type.rank;
  if (rank < 2 || in[1]->type.rank != rank || in[2]->type.rank != rank) {
    diag *d =
        sema_error(lw, e->at, DIAG_WRONG_SHAPE, "`attention` of %s, %s and %s",
                   ir_type_text(lw->arena, &in[0]->type), ir_type_text(lw->arena, &in[1]->type),
                   ir_type_text(lw->arena, &in[2]->type));
    diag_note(d, "all three need the same axes: batch ..., position, width");
    return false;
  }
  if (!want_whole(lw, a->at[HEADS], &a->v[HEADS], "heads", 1, SEMA_EXTENT, &w->heads)) return false;
  int64_t q = width_of(in[0]), k = width_of(in[1]), v = width_of(in[2]);
  if (q % w->heads) {
    diag *d = sema_error(lw, a->at[HEADS], DIAG_WRONG_SHAPE,
                         "%lld heads do not divide the width of the queries, %lld",
                         (long long)w->heads, (long long)q);
    diag_place_at(d, a->at[Q], "the queries");
    return false;
  }
  w->head = q / w->heads;
  w->kv_heads = k / w->head;
  if (k % w->head || w->kv_heads == 0 || w->heads % w->kv_heads) {
    diag *d = sema_error(lw, a->at[K], DIAG_WRONG_SHAPE,
                         "keys of width %lld do not make heads for queries of %lld × %lld",
                         (long long)k, (long long)w->heads, (long long)w->head);
    diag_note(d, "their width is a number of heads that divides %lld, times %lld",
              (long long)w->heads, (long long)w->head);
    return false;
  }
  if (v % w->kv_heads) {
    sema_error(lw, a->at[V], DIAG_WRONG_SHAPE,
               "values of width %lld do not divide into the keys' "
               "%lld heads",
               (long long)v, (long long)w->kv_heads);
    return false;
  }
  return true;
}

static bool given(const bound_args *a, int k) { return a->given[k] && a->v[k].kind != VAL_NONE; }

static bool attention_options(lowering *lw, const bound_args *a, double *scale, double *drop) {
  double p = 0;
  if (given(a, GROUPS)) {
    sema_error(lw, a->at[GROUPS], DIAG_PLANNED, "`groups` of attention is planned, not built");
    return false;
  }
  if (given(a, DROPOUT) && !want_number(lw, a->at[DROPOUT], &a->v[DROPOUT], "dropout", &p))
    return false;
  if (!(p >= 0 && p < 1)) {
    sema_error(lw, a->at[DROPOUT], DIAG_WRONG_VALUE,
               "a share dropped is at least 0 and less than 1");
    return false;
  }
  *drop = lw->mode == LOWER_TRAIN ? p : 0;
  return !given(a, SCALE) || want_number(lw, a->at[SCALE], &a->v[SCALE], "scale", scale);
}

val lower_attention(lowering *lw, const expr *e, bound_args *a) {
  static const char *const what[] = {"the queries", "the keys", "the values"};
  ir_value *in[3];
  for (int i = 0; i < 3; i++) {
    if (a->v[i].kind != VAL_TENSOR) {
      sema_error(lw, a->at[i], DIAG_WRONG_KIND, "%s are a tensor; this is %s", what[i],
                 val_what(&a->v[i]));
      return val_error();
    }
    in[i] = a->v[i].tensor;
  }
  widths w;
  if (!find_widths(lw, e, a, in, &w)) return val_error();
  double scale = 1 / sqrt((double)w.head), drop;
  if (!attention_options(lw, a, &scale, &drop)) return val_error();

  frame mask = {0}, bias = {0};
  ir_region *regions[2];
  int nregions = 0;
  bool has_mask = given(a, MASK), has_bias = given(a, BIAS);
  if (has_mask) {
    if (!mask_region(lw, a->at[MASK], &a->v[MASK], in[0], &mask)) return val_error();
    regions[nregions++] = mask.region;
  }
  if (has_bias) {
    int64_t keys = in[1]->type.dim[in[1]->type.rank - 2]->size;
    if (!bias_region(lw, a->at[BIAS], &a->v[BIAS], in[0], w.heads, keys, &bias)) return val_error();
    has_bias = bias.region->yield.n > 0;  // a list of nones is no bias
    if (has_bias) regions[nregions++] = bias.region;
  }
  int nbias = has_bias ? bias.imports.n : 0, n = 3 + mask.imports.n + nbias;
  ir_value **all = arena_new(lw->arena, ir_value *, n);
  memcpy(all, in, sizeof in);
  for (int i = 0; i < mask.imports.n; i++) all[3 + i] = mask.imports.at[i].outer;
  for (int i = 0; i < nbias; i++) all[3 + mask.imports.n + i] = bias.imports.at[i].outer;
  const char *path = path_unique(lw, path_here(lw, NULL));
  ir_attr attr[9] = {ir_attr_i("kv_heads", w.kv_heads), ir_attr_i("rep", w.heads / w.kv_heads),
                     ir_attr_f("scale", scale),         ir_attr_i("has_mask", has_mask),
                     ir_attr_i("has_bias", has_bias),   ir_attr_i("ncap_mask", mask.imports.n)};
  int nattr = 6;
  if (drop > 0) {
    attr[nattr++] = ir_attr_f("drop", drop);
    attr[nattr++] = ir_attr_i("key", path_key(path));
  }
  if (lw->job->precision != DT_f32)
    attr[nattr++] = ir_attr_s("round", ir_dtype_name(lw->job->precision));
  ir_op *op = emit(lw, e->at, IR_attention, all, n, attr, nattr, regions, nregions);
  if (op) op->path = path;
  return val_tensor(op ? op->out[0] : NULL);
}
