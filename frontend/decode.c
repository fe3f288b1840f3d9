// prefill and decode out of the inference slice.
//
// `prefill` is lowered like any function: batch 1, the decoding dim D at its full extent. Every
// value is one of three: along D (it has D among its axes), fixed (it depends on inputs but not on
// D: an encoder, the keys of cross-attention), or free (it depends on weights alone). decode is a
// copy of the ops along D with D = 1, where
//   - attention whose keys lie along D reads keys and values from caches that it extends:
//       cache' = append(cache, k);  attention(q, cache', ...) {past=1};  set(cache')
//     with the heads outside of the positions, so that a head's keys are one stream of memory,
//   - `x[0:D]` and rope shift by the past,
//   - fixed values are read from caches that prefill has set,
//   - free values are computed again (they are views of weights).
// Caches of a body of `repeat` are stacked: an operand in, a stacked result out, a `set` behind.
//
// The copy is right only when no op carries something from a later position to an earlier one, nor
// counts positions. Every op along D is checked against its row: D must be `parallel` there.
// Attention must hide later keys: its mask is evaluated for j > i in three-valued logic over linear
// forms of i and j, and must come out false.
#include <string.h>

#include "frontend/sema_impl.h"
#include "ir/rule.h"

enum { ALONG = 1, FROM_INPUT = 2 };  // value->mark

// ---------------------------------------------------------------------------------------------
// What depends on what
// ---------------------------------------------------------------------------------------------

typedef struct decoding decoding;

// A value that decode reads from a cache: in the region of decode that `held` belongs to.
typedef struct cached {
  const ir_value *from;
  ir_value *held;
  bool fixed;  // set by prefill alone; otherwise extended (`append`) by both
} cached;

// One region of prefill and its copy.
typedef struct level {
  struct level *outer;
  ir_region *p, *q;
  const char *repeat, *repeat_plain;  // "h.#" and "h"; NULL in the function
  int first, step, count;
  ir_index *layers;
  VEC(cached) caches;
  // In a repeat: what is added to it. New stacked operands (args of p and q, states) and results.
  VEC(ir_value *) p_in, p_arg, p_yield, q_in, q_arg, q_yield;
  VEC(const char *) p_sets, q_sets;  // the states that the results are written to
  VEC(import) q_imports;             // outer value of q -> argument
} level;

struct decoding {
  lowering *lw;
  ir_module *m;
  ir_index *dim, *one;  // D in prefill, in decode
  int number;           // of D among the dims
  bool quiet, failed;
};

static span span_of(decoding *d, const ir_op *op) {
  for (int i = 0; i < d->lw->program->files.n; i++) {
    const source *src = d->lw->program->files.at[i]->source;
    if (op->span.file && str_eq(src->path, op->span.file))
      return source_span(src, op->span.start, op->span.end);
  }
  return span_none();
}

__attribute__((format(printf, 3, 4))) static bool refuse(decoding *d, const ir_op *op,
                                                         const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  const char *why = arena_vprintf(d->lw->arena, fmt, ap);
  va_end(ap);
  if (!d->failed && !d->quiet) {
    diag *e = sema_error(d->lw, span_of(d, op), DIAG_CANNOT_DECODE, "`%s` cannot generate: %s",
                         d->lw->job->model_name, why);
    diag_note(e, "generating makes `%s` one position after the other", d->dim->name);
  }
  d->failed = true;
  return false;
}

static bool is_along(const decoding *d, const ir_index *x) {
  return ir_root((ir_index *)x) == ir_root(d->dim);
}

static int count_along(const decoding *d, const ir_value *v) {
  int n = 0;
  for (int i = 0; i < v->type.rank; i++) n += is_along(d, v->type.dim[i]);
  return n;
}

static int operand_marks(const ir_op *op) {
  int mark = 0;
  for (int i = 0; i < op->nin; i++) mark |= op->in[i]->mark;
  return mark;
}

static void mark_region(decoding *d, ir_region *r);

static void mark_repeat(decoding *d, ir_op *op) {
  ir_region *r = op->region[0];
  int nc = (int)ir_attr_int(op, "carried", 0);
  for (int i = 0; i < op->nin; i++) r->args.at[i + 1]->mark = op->in[i]->mark;
  for (bool again = true; again;) {
    again = false;
    mark_region(d, r);
    for (int i = 0; i < nc; i++) {
      int now = r->args.at[i + 1]->mark | r->yield.at[i]->mark;
      again = again || now != r->args.at[i + 1]->mark;
      r->args.at[i + 1]->mark = now;
    }
  }
  for (int i = 0; i < op->nout; i++) op->out[i]->mark = r->yield.at[i]->mark;
}

static void mark_region(decoding *d, ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    int mark = operand_marks(op);
    if (op->code == IR_repeat) {
      mark_repeat(d, op);
      continue;
    }
    if (op->code == IR_input) mark = FROM_INPUT | (count_along(d, op->out[0]) ? ALONG : 0);
    if (op->code == IR_slice && op->mark == -(d->number + 1)) mark |= ALONG;
    for (int k = 0; k < op->nout; k++) op->out[k]->mark = mark;
  }
}

// ---------------------------------------------------------------------------------------------
// Masks: false for every later key?
// ---------------------------------------------------------------------------------------------

typedef enum truth { UNKNOWN, LINEAR, FALSE_, TRUE_ } truth;

typedef struct form {
  truth kind;
  double c, i, j;  // LINEAR: c + i*(query) + j*(key)
} form;

static form form_truth(int known) {
  return (form){.kind = known < 0 ? UNKNOWN : known ? TRUE_ : FALSE_};
}

static int known(form f) { return f.kind == TRUE_ ? 1 : f.kind == FALSE_ ? 0 : -1; }

// The least and largest of a - b over i >= 0, j = i + 1 + k, k >= 0.
static void bounds(form a, form b, double *lo, double *hi) {
  double c = a.c - b.c + (a.j - b.j), i = a.i - b.i + (a.j - b.j), k = a.j - b.j;
  *lo = i >= 0 && k >= 0 ? c : -1e300;
  *hi = i <= 0 && k <= 0 ? c : 1e300;
}

static form compare_forms(ir_opcode code, form a, form b) {
  if (a.kind != LINEAR || b.kind != LINEAR) return form_truth(-1);
  double lo, hi;
  bounds(a, b, &lo, &hi);
  int less = hi < 0 ? 1 : lo >= 0 ? 0 : -1, more = lo > 0 ? 1 : hi <= 0 ? 0 : -1;
  int equal = lo == 0 && hi == 0 ? 1 : less == 1 || more == 1 ? 0 : -1;
  switch (code) {
    case IR_lt: return form_truth(less);
    case IR_ge: return form_truth(less < 0 ? -1 : !less);
    case IR_gt: return form_truth(more);
    case IR_le: return form_truth(more < 0 ? -1 : !more);
    case IR_eq: return form_truth(equal);
    default: return form_truth(equal < 0 ? -1 : !equal);
  }
}

static form linear(double c, double i, double j) { return (form){LINEAR, c, i, j}; }

static bool is_constant(form f) { return f.kind == LINEAR && f.i == 0 && f.j == 0; }

static form form_of(const ir_op *op, const form *of) {
  form a = op->nin > 0 ? of[op->in[0]->mark] : form_truth(-1);
  form b = op->nin > 1 ? of[op->in[1]->mark] : form_truth(-1);
  bool both = a.kind == LINEAR && b.kind == LINEAR;
  double lo, hi;
  int x = known(a), y = known(b);
  switch (op->code) {
    case IR_const:
      if (str_eq(ir_attr_str(op, "dtype", ""), "bool"))
        return form_truth(ir_attr_float(op, "value", 0) != 0);
      return linear(ir_attr_float(op, "value", 0), 0, 0);
    case IR_add: return both ? linear(a.c + b.c, a.i + b.i, a.j + b.j) : form_truth(-1);
    case IR_sub: return both ? linear(a.c - b.c, a.i - b.i, a.j - b.j) : form_truth(-1);
    case IR_neg: return a.kind == LINEAR ? linear(-a.c, -a.i, -a.j) : a;
    case IR_mul:
      if (both && is_constant(a)) return linear(a.c * b.c, a.c * b.i, a.c * b.j);
      if (both && is_constant(b)) return linear(a.c * b.c, a.i * b.c, a.j * b.c);
      return form_truth(-1);
    case IR_cast: return a;
    case IR_max:
    case IR_min:
      if (!both) return form_truth(-1);
      bounds(a, b, &lo, &hi);
      if (lo >= 0) return op->code == IR_max ? a : b;
      if (hi <= 0) return op->code == IR_max ? b : a;
      return form_truth(-1);
    case IR_abs:
      if (a.kind != LINEAR) return form_truth(-1);
      bounds(a, linear(0, 0, 0), &lo, &hi);
      return lo >= 0 ? a : hi <= 0 ? linear(-a.c, -a.i, -a.j) : form_truth(-1);
    case IR_lt:
    case IR_le:
    case IR_gt:
    case IR_ge:
    case IR_eq:
    case IR_ne: return compare_forms(op->code, a, b);
    case IR_and: return form_truth(x == 0 || y == 0 ? 0 : x == 1 && y == 1 ? 1 : -1);
    case IR_or: return form_truth(x == 1 || y == 1 ? 1 : x == 0 && y == 0 ? 0 : -1);
    case IR_not: return form_truth(x < 0 ? -1 : !x);
    case IR_where: {
      form c = of[op->in[2]->mark];
      if (x >= 0) return x ? b : c;
      return known(b) >= 0 && known(b) == known(c) ? b : form_truth(-1);
    }
    default: return form_truth(-1);
  }
}

static bool hides_later(decoding *d, const ir_region *mask) {
  form *of = arena_new(d->lw->arena, form, mask->args.n + mask->ops.n + 1);
  int n = 0;
  for (int i = 0; i < mask->args.n; i++) {
    mask->args.at[i]->mark = n;
    of[n++] = i == 2 ? linear(0, 1, 0) : i == 3 ? linear(0, 0, 1) : form_truth(-1);
  }
  for (int i = 0; i < mask->ops.n; i++) {
    const ir_op *op = mask->ops.at[i];
    form f = form_of(op, of);
    op->out[0]->mark = n;
    of[n++] = f;
  }
  return of[mask->yield.at[0]->mark].kind == FALSE_;
}

static bool reads(const ir_region *r, const ir_value *v) {
  for (int i = 0; i < r->ops.n; i++)
    for (int k = 0; k < r->ops.at[i]->nin; k++)
      if (r->ops.at[i]->in[k] == v) return true;
  return r->yield.at[0] == v;
}

// ---------------------------------------------------------------------------------------------
// May this op be done one position at a time?
// ---------------------------------------------------------------------------------------------

static bool region_counts_positions(const decoding *d, const ir_region *r) {
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->mark > 0 && (r->ops.at[i]->mark & dim_bit(d->number))) return true;
  return false;
}

// The kind that D has in an op whose rule is made of words; false when it is not parallel.
static bool parallel_by_rule(decoding *d, const ir_op *op) {
  ir_rule rule;
  ir_rule_of(d->m, op, &rule);
  for (int k = 0; k < rule.nin && k < op->nin; k++) {
    const ir_type *t = &op->in[k]->type;
    if (!(op->in[k]->mark & ALONG)) continue;
    const ir_rule_side *s = &rule.in[k];
    int ellipsis = -1;
    for (int i = 0; i < s->n; i++)
      if (s->dim[i].ellipsis) ellipsis = i;
    for (int i = 0; i < t->rank; i++) {
      if (!is_along(d, t->dim[i])) continue;
      int after = ellipsis < 0 ? 0 : s->n - 1 - ellipsis, w = i;
      if (ellipsis >= 0 && i >= ellipsis) w = i >= t->rank - after ? i - t->rank + s->n : ellipsis;
      const ir_rule_dim *r = &s->dim[w];
      if (r->nwords > 1) return false;
      ir_kind kind = rule.kind[r->word[0]];
      if (kind != KIND_PARALLEL && !(op->code == IR_rope && kind == KIND_RANGE)) return false;
    }
  }
  return true;
}

static bool check_op(decoding *d, const ir_op *op) {
  const char *name = ir_info(op->code)->name, *dim = d->dim->name;
  for (int i = 0; i < op->nregions; i++)
    if (op->code != IR_repeat && region_counts_positions(d, op->region[i]))
      return refuse(d, op, "`%s` is used as a number here", dim);
  bool slices_dim = op->code == IR_slice && op->mark == -(d->number + 1);
  if (op->code == IR_slice && !slices_dim && op->mark > 0 && (op->mark & dim_bit(d->number)))
    return refuse(d, op, "`%s` is used as a number here", dim);
  for (int i = 0; i < op->nin && op->code != IR_repeat && !slices_dim; i++) {
    const ir_value *v = op->in[i];
    if (!(v->mark & ALONG) && count_along(d, v) && op->code != IR_attention)
      return refuse(d, op, "`%s` holds all positions here: write `x[0:%s]` to take those of `%s`",
                    v->name ? v->name : name, dim, dim);
  }
  bool whole = false;
  switch (op->code) {
    case IR_attention:
    case IR_repeat: return true;
    case IR_slice:
    case IR_split:
    case IR_join:
    case IR_concat:
    case IR_pad: {
      int64_t at = ir_attr_int(op, "dim", 0);
      whole = !slices_dim && is_along(d, op->in[0]->type.dim[at]);
      if (slices_dim && (op->in[0]->mark & ALONG)) whole = true;
      break;
    }
    default:
      if (!str_starts(ir_info(op->code)->rule, "raw") && !str_eq(ir_info(op->code)->rule, "*"))
        whole = !parallel_by_rule(d, op);
  }
  for (int i = 0; i < op->nout && !whole; i++)
    if (count_along(d, op->out[i]) != 1) whole = true;
  if (op->code == IR_output && count_along(d, op->in[0]) != 1) whole = true;
  if (whole) return refuse(d, op, "`%s` mixes positions along `%s`", name, dim);
  return true;
}

// ---------------------------------------------------------------------------------------------
// Caches
// ---------------------------------------------------------------------------------------------

// "cache.h.#.a.k"
static const char *cache_name(decoding *d, const level *l, const char *path, const char *part) {
  arena *a = d->lw->arena;
  if (l->repeat) {
    size_t n = strlen(l->repeat_plain);
    bool inside = strncmp(path, l->repeat_plain, n) == 0 && path[n] == '.';
    path = arena_printf(a, "%s.%s", l->repeat, inside ? path + n + 1 : path);
  }
  const char *name = arena_printf(a, "cache.%s%s%s", path, part ? "." : "", part ? part : "");
  const char *stem = name;
  if (ir_state_find(d->m, name) && l->repeat && l->first)
    stem = name = arena_printf(a, "%s@%d", name, l->first);
  for (int i = 2; ir_state_find(d->m, name); i++) name = arena_printf(a, "%s/%d", stem, i);
  return name;
}

static const char *value_path(decoding *d, const ir_value *v) {
  const char *path = v->def ? v->def->path : NULL;
  if (v->def && v->def->code == IR_input) return ir_attr_str(v->def, "name", "input");
  if (!path || !*path) path = v->name ? v->name : "value";
  return v->pos ? arena_printf(d->lw->arena, "%s.%d", path, v->pos) : path;
}

static ir_op *op_named(ir_region *at, ir_opcode code, ir_value *in, const ir_type *t,
                       const char *name, const ir_op *like) {
  ir_op *op = ir_op_raw(at, code, &in, in ? 1 : 0, t, t ? 1 : 0);
  ir_set_attr(at->module, op, ir_attr_s("name", name));
  if (like) op->span = like->span;
  return op;
}

// A state read at the very beginning of a function.
static ir_value *read_first(ir_region *at, const char *name, const ir_type *t, const ir_op *like) {
  ir_op *op = op_named(at, IR_state, NULL, t, name, like);
  memmove(at->ops.at + 1, at->ops.at, sizeof *at->ops.at * (size_t)(at->ops.n - 1));
  at->ops.at[0] = op;
  return op->out[0];
}

static const char *new_cache(decoding *d, const level *l, const char *name, const ir_type *slice,
                             const ir_op *like, ir_type *whole) {
  *whole = *slice;
  if (l->repeat) {
    whole->rank++;
    whole->dim[0] = l->layers;
    memcpy(whole->dim + 1, slice->dim, sizeof *slice->dim * (size_t)slice->rank);
  }
  ir_state s = {.name = name,
                .type = *whole,
                .stacked = l->repeat != NULL,
                .first = l->first,
                .step = l->step,
                .cls = STATE_CACHE,
                .init = INIT_ZEROS};
  if (like) s.span = like->span;
  ir_state_add(d->m, s);
  return name;
}

static const cached *find_cached(const level *l, const ir_value *v, bool fixed) {
  for (int i = 0; i < l->caches.n; i++)
    if (l->caches.at[i].from == v && l->caches.at[i].fixed == fixed) return &l->caches.at[i];
  return NULL;
}

static ir_value *append_to(decoding *d, ir_region *at, ir_value *cache, ir_value *x, int dim,
                           const ir_op *like) {
  ir_builder b = {.m = d->m, .at = at, .span = like->span, .path = like->path};
  ir_attr attr = ir_attr_i("dim", dim);
  ir_op *op = ir_build_full(&b, IR_append, (ir_value *[]){cache, x}, 2, &attr, 1, NULL, 0);
  if (!op) IR_BUG("append: %s", b.error);
  return op->out[0];
}

static bool room_for_layers(decoding *d, const level *l, const ir_value *v) {
  if (!l->repeat || v->type.rank < IR_MAX_RANK) return true;
  return refuse(d, v->def, "a cache of this value would have too many axes");
}

static ir_value *move_axes(decoding *d, ir_region *at, ir_opcode code, ir_value *x, ir_attr *attr,
                           int n, const ir_op *like) {
  ir_builder b = {.m = d->m, .at = at, .span = like->span, .path = like->path};
  ir_op *op = ir_build_full(&b, code, &x, 1, attr, n, NULL, 0);
  if (!op) IR_BUG("%s: %s", ir_info(code)->name, b.error);
  return op->out[0];
}

static ir_value *swap_axes(decoding *d, ir_region *at, ir_value *x, int one, int other,
                           const ir_op *like) {
  int64_t perm[IR_MAX_RANK];
  for (int i = 0; i < x->type.rank; i++) perm[i] = i == one ? other : i == other ? one : i;
  ir_attr attr = ir_attr_v("perm", perm, x->type.rank);
  return move_axes(d, at, IR_transpose, x, &attr, 1, like);
}

// [..., positions, heads . width] as [..., heads, positions, width], and back. One head: as it is.
static ir_value *heads_first(decoding *d, ir_region *at, ir_value *x, int64_t heads,
                             const ir_op *like) {
  if (heads <= 1) return x;
  int last = x->type.rank - 1;
  ir_attr attr[] = {ir_attr_i("dim", last), ir_attr_i("outer", heads)};
  x = move_axes(d, at, IR_unfold, x, attr, 2, like);
  return swap_axes(d, at, x, last - 1, last, like);
}

static ir_value *heads_last(decoding *d, ir_region *at, ir_value *x, int64_t heads,
                            const ir_op *like) {
  if (heads <= 1) return x;
  int last = x->type.rank - 2;
  x = swap_axes(d, at, x, last - 1, last, like);
  ir_attr attr = ir_attr_i("dim", last);
  return move_axes(d, at, IR_fold, x, &attr, 1, like);
}

// The cache of a value along D, with the positions of this call appended: what the copy of an op
// reads that looks at all positions. `now` is the value in the copy; `heads` are those of its last
// axis, 0 when it is not cut into heads.
static ir_value *extended(decoding *d, level *l, ir_value *v, ir_value *now, const ir_op *user,
                          const char *part, int64_t heads) {
  const cached *old = find_cached(l, v, false);
  if (old) return old->held;
  const ir_value *from = v;
  if (v->type.rank >= IR_MAX_RANK - 1) heads = 0;
  if (!room_for_layers(d, l, v)) return NULL;
  v = heads_first(d, l->p, v, heads, user);
  now = heads_first(d, l->q, now, heads, user);
  int dim = 0;
  while (!is_along(d, v->type.dim[dim])) dim++;
  ir_type whole;
  const char *name = cache_name(d, l, user->path ? user->path : "attention", part);
  new_cache(d, l, name, &v->type, user, &whole);
  ir_value *held;
  if (!l->repeat) {
    ir_value *p = append_to(d, l->p, read_first(l->p, name, &whole, user), v, dim, user);
    op_named(l->p, IR_set, p, NULL, name, user);
    held = append_to(d, l->q, op_named(l->q, IR_state, NULL, &whole, name, user)->out[0], now, dim,
                     user);
    op_named(l->q, IR_set, held, NULL, name, user);
  } else {
    // Behind the carried ones; emitted when the repeat is put together.
    ir_value *p_arg = ir_region_arg(l->p, v->type, "cache"), *q_arg;
    l->p->args.n--;
    vec_push(d->lw->arena, &l->p_in, read_first(l->outer->p, name, &whole, user));
    vec_push(d->lw->arena, &l->p_arg, p_arg);
    vec_push(d->lw->arena, &l->p_yield, append_to(d, l->p, p_arg, v, dim, user));
    vec_push(d->lw->arena, &l->p_sets, name);
    q_arg = ir_region_arg(l->q, v->type, "cache");
    l->q->args.n--;
    held = append_to(d, l->q, q_arg, now, dim, user);
    vec_push(d->lw->arena, &l->q_in,
             op_named(l->outer->q, IR_state, NULL, &whole, name, user)->out[0]);
    vec_push(d->lw->arena, &l->q_arg, q_arg);
    vec_push(d->lw->arena, &l->q_yield, held);
    vec_push(d->lw->arena, &l->q_sets, name);
  }
  ir_value *all = heads_last(d, l->q, held, heads, user);
  vec_push(d->lw->arena, &l->caches, (cached){from, all, false});
  return all;
}

// A fixed value in decode: prefill keeps it.
static ir_value *kept(decoding *d, level *l, ir_value *v, const ir_op *user) {
  const cached *old = find_cached(l, v, true);
  if (old) return old->held;
  if (!room_for_layers(d, l, v)) return NULL;
  ir_type whole;
  const char *name = cache_name(d, l, value_path(d, v), NULL);
  new_cache(d, l, name, &v->type, v->def ? v->def : user, &whole);
  ir_value *held;
  if (!l->repeat) {
    op_named(l->p, IR_set, v, NULL, name, user);
    held = op_named(l->q, IR_state, NULL, &whole, name, user)->out[0];
  } else {
    vec_push(d->lw->arena, &l->p_yield, v);
    vec_push(d->lw->arena, &l->p_sets, name);
    held = ir_region_arg(l->q, v->type, v->name);
    l->q->args.n--;
    vec_push(d->lw->arena, &l->q_in,
             op_named(l->outer->q, IR_state, NULL, &whole, name, user)->out[0]);
    vec_push(d->lw->arena, &l->q_arg, held);
  }
  held->name = v->name;
  vec_push(d->lw->arena, &l->caches, (cached){v, held, true});
  return held;
}

// ---------------------------------------------------------------------------------------------
// The copy
// ---------------------------------------------------------------------------------------------

static int arg_number(const level *l, const ir_value *v) {
  for (int i = 0; i < l->p->args.n; i++)
    if (l->p->args.at[i] == v) return i;
  return -1;
}

// The value `v` of prefill in the copy of the same region. NULL after a refusal.
static ir_value *in_copy(decoding *d, level *l, ir_value *v, const ir_op *user) {
  if ((v->mark & FROM_INPUT) && !(v->mark & ALONG)) {
    // From outside of the loop: one copy, not one a layer.
    const ir_op *owner = l->p->owner;
    int k = l->repeat ? arg_number(l, v) - 1 : -1;
    if (k >= 0 && k >= ir_attr_int(owner, "carried", 0) + ir_attr_int(owner, "stacked", 0)) {
      ir_value *outer = in_copy(d, l->outer, owner->in[k], user);
      if (!outer) return NULL;
      for (int i = 0; i < l->q_imports.n; i++)
        if (l->q_imports.at[i].outer == outer) return l->q_imports.at[i].arg;
      ir_value *made = ir_region_arg(l->q, outer->type, outer->name);
      l->q->args.n--;
      vec_push(d->lw->arena, &l->q_imports, (import){outer, made});
      return made;
    }
    return kept(d, l, v, user);
  }
  if (!v->mapped) IR_BUG("a value of prefill has no copy");
  return v->mapped;
}

// Copies `op` with the operands given. (One value of prefill may be two operands of an op and have
// two copies: as it is, and as a cache.)
static ir_op *copy_op(level *l, ir_op *op, ir_value *const *in) {
  ir_op *now = ir_clone_op(l->q, op);
  now->mark = op->mark;
  for (int i = 0; i < op->nin; i++) now->in[i] = in[i];
  return now;
}

static bool infer_again(decoding *d, ir_op *now, const ir_op *op) {
  ir_type t[8];
  int n = 0;
  if (now->nout > 8) {  // split into many parts
    ir_type *many = arena_new(d->lw->arena, ir_type, now->nout);
    const char *error = ir_infer(d->m, now, many, &n);
    if (error) return refuse(d, op, "%s", error);
    for (int i = 0; i < n; i++) now->out[i]->type = many[i];
    return true;
  }
  const char *error = ir_infer(d->m, now, t, &n);
  if (error) return refuse(d, op, "%s", error);
  for (int i = 0; i < n; i++) now->out[i]->type = t[i];
  return true;
}

static bool copy_attention(decoding *d, level *l, ir_op *op) {
  ir_value *q = op->in[0], *k = op->in[1], *v = op->in[2];
  const char *dim = d->dim->name;
  int rank = q->type.rank;
  bool self = k->mark & ALONG, from_d = q->mark & ALONG;
  if (!from_d) return refuse(d, op, "its keys lie along `%s` and its queries do not", dim);
  if (!is_along(d, q->type.dim[rank - 2]) || count_along(d, q) != 1)
    return refuse(d, op, "`attention` mixes positions along `%s`", dim);
  int has_mask = (int)ir_attr_int(op, "has_mask", 0), n = op->nin;
  ir_value **in = arena_new(d->lw->arena, ir_value *, n);
  in[0] = in_copy(d, l, q, op);
  if (self) {
    if (!(v->mark & ALONG) || !is_along(d, k->type.dim[rank - 2]) || count_along(d, k) != 1 ||
        count_along(d, v) != 1)
      return refuse(d, op, "its keys and values do not both lie along `%s`", dim);
    if (!has_mask)
      return refuse(d, op, "this attention has no mask, so every position sees later ones");
    if (!hides_later(d, op->region[0]))
      return refuse(d, op, "the mask of this attention lets a position see later ones");
    int64_t heads = ir_attr_int(op, "kv_heads", 1);
    in[1] = extended(d, l, k, in_copy(d, l, k, op), op, "k", heads);
    in[2] = in[1] ? extended(d, l, v, in_copy(d, l, v, op), op, "v", heads) : NULL;
  } else {
    if ((v->mark & ALONG) || count_along(d, k))
      return refuse(d, op, "its keys and values do not both lie along `%s`", dim);
    for (int r = 0; r < op->nregions; r++)
      if (reads(op->region[r], op->region[r]->args.at[2]))
        return refuse(d, op,
                      "a mask or bias of cross-attention that reads the query's position "
                      "is planned for generating, not built");
    in[1] = in_copy(d, l, k, op);
    in[2] = in_copy(d, l, v, op);
  }
  for (int i = 3; i < n; i++) {
    ir_value *c = op->in[i];
    if (count_along(d, c) && !(c->mark & ALONG)) {
      in[i] = in_copy(d, l, c, op);  // a table over all positions stays one
    } else if (c->mark & ALONG) {
      if (count_along(d, c) != 1)
        return refuse(d, op, "`%s` has an axis for queries and one for keys",
                      c->name ? c->name : "a tensor it reads");
      in[i] = extended(d, l, c, in_copy(d, l, c, op), op, c->name ? c->name : "x", 0);
    } else {
      in[i] = in_copy(d, l, c, op);
    }
  }
  for (int i = 0; i < n; i++)
    if (!in[i]) return false;
  ir_op *now = copy_op(l, op, in);
  if (self) ir_set_attr(d->m, now, ir_attr_i("past", 1));
  return infer_again(d, now, op);
}

static bool copy_along(decoding *d, level *l, ir_op *op);

static bool copy_region(decoding *d, level *l) {
  int n = l->p->ops.n;  // caches add ops behind
  ir_op **ops = arena_new(d->lw->arena, ir_op *, n);
  if (n) memcpy(ops, l->p->ops.at, sizeof *ops * (size_t)n);
  for (int i = 0; i < n; i++) {
    ir_op *op = ops[i];
    bool along = operand_marks(op) & ALONG;
    for (int k = 0; k < op->nout; k++) along = along || (op->out[k]->mark & ALONG);
    bool fixed = !along && (operand_marks(op) & FROM_INPUT);
    if (op->code == IR_input && !along) fixed = true;
    if (fixed) continue;
    if (along) {
      if (!copy_along(d, l, op)) return false;
      continue;
    }
    ir_value **in = arena_new(d->lw->arena, ir_value *, op->nin);
    for (int k = 0; k < op->nin; k++) in[k] = op->in[k]->mapped;
    copy_op(l, op, in);
  }
  return true;
}

static void push_arg(decoding *d, ir_region *r, ir_value *v) {
  v->pos = r->args.n;
  vec_push(d->lw->arena, &r->args, v);
}

// prefill's repeat gets the caches: stacked operands behind the others, results behind all.
static void extend_prefill(decoding *d, level *l, ir_op *op) {
  arena *a = d->lw->arena;
  int nc = (int)ir_attr_int(op, "carried", 0), ns = (int)ir_attr_int(op, "stacked", 0);
  int add = l->p_in.n, nin = op->nin + add, nout = op->nout + l->p_yield.n;
  ir_region *r = l->p, old = *r;
  ir_value **in = arena_new(a, ir_value *, nin), **out = arena_new(a, ir_value *, nout);
  r->args.at = NULL;
  r->args.n = r->args.cap = 0;
  push_arg(d, r, old.args.at[0]);
  for (int i = 0, k = 0; i < nin; i++) {
    bool added = i >= nc + ns && i < nc + ns + add;
    in[i] = added ? l->p_in.at[i - nc - ns] : op->in[k];
    push_arg(d, r, added ? l->p_arg.at[i - nc - ns] : old.args.at[k + 1]);
    if (!added) k++;
  }
  for (int i = 0; i < nout; i++) {
    if (i < op->nout) {
      out[i] = op->out[i];
      continue;
    }
    ir_value *y = l->p_yield.at[i - op->nout];
    vec_push(a, &r->yield, y);
    ir_type t = y->type;
    t.rank++;
    t.dim[0] = l->layers;
    memcpy(t.dim + 1, y->type.dim, sizeof *t.dim * (size_t)y->type.rank);
    // A result of its own: the value is made by a throw-away op and moved here.
    ir_region *aside = ir_region_new(d->m, NULL);
    ir_value *v = ir_op_raw(aside, IR_zeros, NULL, 0, &t, 1)->out[0];
    v->def = op;
    v->pos = i;
    v->mark = y->mark;
    out[i] = v;
  }
  int before = op->nout;
  op->in = in;
  op->nin = nin;
  op->out = out;
  op->nout = nout;
  ir_set_attr(d->m, op, ir_attr_i("stacked", ns + add));
  for (int i = before; i < nout; i++)
    op_named(l->outer->p, IR_set, out[i], NULL, l->p_sets.at[i - before], op);
}

static bool copy_repeat(decoding *d, level *outer, ir_op *op) {
  arena *a = d->lw->arena;
  ir_region *p = op->region[0];
  int nc = (int)ir_attr_int(op, "carried", 0), ns = (int)ir_attr_int(op, "stacked", 0);
  level l = {.outer = outer, .p = p, .q = ir_region_new(d->m, NULL)};
  l.repeat_plain = ir_attr_str(op, "name", "layer");
  l.repeat = arena_printf(a, "%s.#", l.repeat_plain);
  l.first = (int)ir_attr_int(op, "first", 0);
  l.step = (int)ir_attr_int(op, "step", 1);
  l.count = (int)ir_attr_int(op, "count", 1);
  l.layers = ns ? op->in[nc]->type.dim[0] : ir_index_new(d->m, "layer", l.count);
  // What the body keeps of its operands: fixed ones are read from caches where they are needed.
  VEC(ir_value *) in = {0};
  VEC(int) carried = {0};
  int stacked = 0;
  p->args.at[0]->mapped = ir_region_arg(l.q, ir_scalar(DT_i32), "layer");
  VEC(import) late = {0};  // stacked and invariant, in order, behind the caches
  for (int i = 0; i < op->nin; i++) {
    ir_value *inner = p->args.at[i + 1], *v = op->in[i];
    inner->mapped = NULL;
    bool fixed = (inner->mark & FROM_INPUT) && !(inner->mark & ALONG);
    if (fixed) continue;
    if ((inner->mark & ALONG) && !(v->mark & ALONG))
      return refuse(d, op, "the value carried here starts with all positions at once");
    ir_value *now = in_copy(d, outer, v, op);
    if (!now) return false;
    ir_type t = now->type;
    if (i >= nc && i < nc + ns) {
      t.rank--;
      memmove(t.dim, t.dim + 1, sizeof *t.dim * (size_t)t.rank);
    }
    inner->mapped = ir_region_arg(l.q, t, inner->name);
    inner->mapped->span = inner->span;
    if (i < nc) {
      vec_push(a, &in, now);
      vec_push(a, &carried, i);
    } else {
      stacked += i < nc + ns;
      vec_push(a, &late, (import){now, inner->mapped});
    }
  }
  if (!copy_region(d, &l)) return false;
  ir_region *q = l.q, old = *q;
  q->args.at = NULL;
  q->args.n = q->args.cap = 0;
  for (int i = 0; i <= carried.n; i++) push_arg(d, q, old.args.at[i]);
  for (int i = 0; i < stacked; i++) {
    push_arg(d, q, late.at[i].arg);
    vec_push(a, &in, late.at[i].outer);
  }
  for (int i = 0; i < l.q_in.n; i++) {
    push_arg(d, q, l.q_arg.at[i]);
    vec_push(a, &in, l.q_in.at[i]);
  }
  for (int i = stacked; i < late.n; i++) {
    push_arg(d, q, late.at[i].arg);
    vec_push(a, &in, late.at[i].outer);
  }
  for (int i = 0; i < l.q_imports.n; i++) {
    push_arg(d, q, l.q_imports.at[i].arg);
    vec_push(a, &in, l.q_imports.at[i].outer);
  }
  for (int i = 0; i < carried.n; i++) {
    ir_value *y = in_copy(d, &l, p->yield.at[carried.at[i]], op);
    if (!y) return false;
    vec_push(a, &q->yield, y);
  }
  for (int i = 0; i < l.q_yield.n; i++) vec_push(a, &q->yield, l.q_yield.at[i]);
  ir_attr attr[8];
  int nattrs = 0;
  for (int i = 0; i < op->nattrs && nattrs < 8; i++) attr[nattrs++] = op->attr[i];
  for (int i = 0; i < nattrs; i++) {
    if (str_eq(attr[i].key, "carried")) attr[i].i = carried.n;
    if (str_eq(attr[i].key, "stacked")) attr[i].i = stacked + l.q_in.n;
  }
  ir_builder b = {.m = d->m, .at = outer->q, .path = op->path, .span = op->span};
  ir_op *now = ir_build_full(&b, IR_repeat, in.at, in.n, attr, nattrs, &q, 1);
  if (!now) return refuse(d, op, "%s", b.error);
  for (int i = 0; i < carried.n; i++) {
    op->out[carried.at[i]]->mapped = now->out[i];
    now->out[i]->name = op->out[carried.at[i]]->name;
  }
  for (int i = 0; i < l.q_sets.n; i++)
    op_named(outer->q, IR_set, now->out[carried.n + i], NULL, l.q_sets.at[i], op);
  extend_prefill(d, &l, op);
  return true;
}

static bool copy_along(decoding *d, level *l, ir_op *op) {
  if (!check_op(d, op)) return false;
  if (op->code == IR_attention) return copy_attention(d, l, op);
  if (op->code == IR_repeat) return copy_repeat(d, l, op);
  ir_value **in = arena_new(d->lw->arena, ir_value *, op->nin);
  for (int i = 0; i < op->nin; i++)
    if (!(in[i] = in_copy(d, l, op->in[i], op))) return false;
  ir_op *now = copy_op(l, op, in);
  if (op->code == IR_input)
    for (int i = 0; i < now->out[0]->type.rank; i++)
      if (is_along(d, now->out[0]->type.dim[i])) now->out[0]->type.dim[i] = d->one;
  bool shifts = op->code == IR_rope && is_along(d, op->in[0]->type.dim[op->in[0]->type.rank - 2]);
  if (op->code == IR_slice && op->mark == -(d->number + 1)) {
    ir_set_attr(d->m, now, ir_attr_i("size", 1));
    shifts = true;
  }
  if (shifts) ir_set_attr(d->m, now, ir_attr_i("past", 1));
  if (!infer_again(d, now, op)) return false;
  if (op->code == IR_slice && shifts)
    ir_index_unify(d->m, now->out[0]->type.dim[ir_attr_int(op, "dim", 0)], d->one);
  return true;
}

static bool counts_positions(decoding *d, const ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    if (op->mark > 0 && (op->mark & dim_bit(d->number)))
      return !refuse(d, op, "`%s` is used as a number here", d->dim->name);
    if (op->code == IR_repeat && counts_positions(d, op->region[0])) return true;
  }
  return false;
}

static void clear_mapped(ir_region *r) {
  for (int i = 0; i < r->args.n; i++) r->args.at[i]->mapped = NULL;
  for (int i = 0; i < r->ops.n; i++) {
    for (int k = 0; k < r->ops.at[i]->nout; k++) r->ops.at[i]->out[k]->mapped = NULL;
    for (int k = 0; k < r->ops.at[i]->nregions; k++) clear_mapped(r->ops.at[i]->region[k]);
  }
}

bool make_decode(lowering *lw, ir_func *prefill, int dim, bool quiet) {
  decoding d = {.lw = lw, .m = lw->m, .dim = lw->dims.at[dim].index, .number = dim, .quiet = quiet};
  d.one = ir_index_new(lw->m, d.dim->name, 1);
  clear_marks(prefill->body);
  clear_mapped(prefill->body);
  mark_region(&d, prefill->body);
  // The function joins the module when it is whole.
  ir_func *f = arena_new(lw->arena, ir_func, 1);
  *f = (ir_func){.name = "decode", .kind = ENTRY_DECODE, .body = ir_region_new(lw->m, NULL)};
  level top = {.p = prefill->body, .q = f->body, .step = 1};
  if (!copy_region(&d, &top)) return false;
  slice_dead(f->body);
  if (counts_positions(&d, f->body)) return false;
  vec_push(lw->m->arena, &lw->m->funcs, f);
  return true;
}
