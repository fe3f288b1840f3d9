// What each op can do on an axis, from its row of the op table.
//
// Every leaf of every operand and result gets a *label*; leaves with one label are cut together.
// For ops with a rule of words a label is (word, leaf of that word); for ops that only move
// elements it follows from which dims are the same ones. A label's kind says what cutting it means.
#include <string.h>

#include "ir/rule.h"
#include "ir/view.h"
#include "passes/plan/shard.h"

enum { SIDES = 40, LABELS = 96 };

typedef struct labels {
  arena *a;
  const pg_graph *g;
  const pg_op *op;
  int nsides;                    // operands, then results
  int of[SIDES][IR_MAX_LEAVES];  // label of each leaf; -1: must not be cut
  int n;
  ir_kind kind[LABELS];
  ir_index *index[LABELS];
  bool open[SIDES];  // an operand the rule does not look at: whole
} labels;

static int value_at(const pg_op *p, int side) {
  return side < p->nin ? p->in[side] : p->out[side - p->nin];
}

static const ir_type *type_at(const ir_op *op, int side) {
  return side < op->nin ? &op->in[side]->type : &op->out[side - op->nin]->type;
}

static const pg_value *pg_at(const labels *l, int side) {
  int v = value_at(l->op, side);
  return v < 0 ? NULL : &l->g->value.at[v];
}

static int new_label(labels *l, ir_kind kind, ir_index *index) {
  IR_CHECK(l->n < LABELS);
  l->kind[l->n] = kind;
  l->index[l->n] = index;
  return l->n++;
}

// Dims of the pg_value count without layers; inside bodies and above them they are those of the
// type, for a stack handled above its repeat they are not (such an op is not read here).
static void set_label(labels *l, int side, int dim, const ir_index *leaf, int label) {
  const pg_value *v = pg_at(l, side);
  int at = v ? pg_leaf(v, dim, ir_root((ir_index *)(uintptr_t)leaf)) : -1;
  if (at >= 0) l->of[side][at] = label;
}

// ---- rules of words -----------------------------------------------------------------------------

typedef struct binding {
  int first, count;  // labels of a word's leaves, in order; count -1: not bound
} binding;

// The labels of word `w` over the leaves of a dim, made when new.
static binding bind_word(labels *l, binding *b, ir_kind kind, ir_index *const *leaf, int n) {
  if (b->count < 0) {
    b->first = l->n;
    b->count = n;
    for (int i = 0; i < n; i++) new_label(l, kind, leaf[i]);
  }
  return *b;
}

// How many elements one word of a product dim has: by an attribute of its name, or what is left.
static int64_t word_size(const ir_op *op, const ir_rule *rule, const ir_rule_dim *d, int k,
                         int64_t total) {
  int64_t size = ir_attr_int(op, rule->word[d->word[k]], 0);
  if (size) return size;
  for (int i = 0; i < d->nwords; i++)
    if (i != k) {
      int64_t other = ir_attr_int(op, rule->word[d->word[i]], 1);
      if (other > 0) total /= other;
    }
  return total;
}

static void label_dim(labels *l, const ir_op *op, const ir_rule *rule, binding *word, int side,
                      int dim, const ir_rule_dim *d) {
  ir_index *x = ir_root(type_at(op, side)->dim[dim]), *leaf[IR_MAX_LEAVES];
  int n = ir_index_leaves(x, leaf, IR_MAX_LEAVES), at = 0;
  for (int k = 0; k < d->nwords; k++) {
    int w = d->word[k], from = at;
    int64_t size = d->nwords == 1 ? x->size : word_size(op, rule, d, k, x->size), have = 1;
    while (at < n && have < size) have *= leaf[at++]->size;
    // A word that is read and not part of any result is a contraction the rule does not call one.
    binding b = bind_word(l, &word[w], rule->kind[w], leaf + from, at - from);
    for (int i = 0; i < at - from && i < b.count; i++)
      set_label(l, side, dim, leaf[from + i], b.first + i);
  }
}

static void label_side(labels *l, const ir_op *op, const ir_rule *rule, binding *word,
                       binding (*ellipsis)[IR_MAX_RANK], int *dims, int side,
                       const ir_rule_side *s) {
  const ir_type *t = type_at(op, side);
  int plain = 0;
  for (int i = 0; i < s->n; i++) plain += !s->dim[i].ellipsis;
  bool many = s->n - plain > 1;
  int dim = 0;
  for (int i = 0; i < s->n; i++) {
    const ir_rule_dim *d = &s->dim[i];
    if (!d->ellipsis) {
      if (dim < t->rank) label_dim(l, op, rule, word, side, dim, d);
      dim++;
      continue;
    }
    // One ellipsis of a side takes what is left; where there are two, operands have told before.
    int w = d->word[0], n = many ? dims[w] : t->rank - plain;
    dims[w] = n;
    for (int k = 0; k < n && dim < t->rank; k++, dim++) {
      ir_index *leaf[IR_MAX_LEAVES];
      int nl = ir_index_leaves(ir_root(t->dim[dim]), leaf, IR_MAX_LEAVES);
      binding b = bind_word(l, &ellipsis[w][k], rule->kind[w], leaf, nl);
      for (int j = 0; j < nl && j < b.count; j++) set_label(l, side, dim, leaf[j], b.first + j);
    }
  }
}

static void label_words(labels *l, const ir_op *op) {
  ir_rule rule;
  ir_rule_of(l->g->m, op, &rule);
  binding word[RULE_MAX_WORDS], ellipsis[RULE_MAX_WORDS][IR_MAX_RANK];
  int dims[RULE_MAX_WORDS] = {0};
  for (int i = 0; i < RULE_MAX_WORDS; i++) {
    word[i].count = -1;
    for (int k = 0; k < IR_MAX_RANK; k++) ellipsis[i][k].count = -1;
  }
  for (int i = 0; i < op->nin; i++) {
    if (i < rule.nin)
      label_side(l, op, &rule, word, ellipsis, dims, i, &rule.in[i]);
    else
      l->open[i] = true;
  }
  for (int i = 0; i < op->nout && i < rule.nout; i++)
    label_side(l, op, &rule, word, ellipsis, dims, op->nin + i, &rule.out[i]);
}

// ---- broadcast and movement ---------------------------------------------------------------------

// Dim `b` of side `other` is dim `a` of side `sa`: their leaves are the same ones.
static void same_dim(labels *l, const ir_op *op, int sa, int a, int other, int b) {
  ir_index *leaf[IR_MAX_LEAVES];
  const pg_value *va = pg_at(l, sa);
  if (!va || a < 0 || b < 0) return;
  int n = ir_index_leaves(ir_root(type_at(op, sa)->dim[a]), leaf, IR_MAX_LEAVES);
  for (int i = 0; i < n; i++) {
    int at = pg_leaf(va, a, leaf[i]);
    if (at >= 0 && l->of[sa][at] >= 0) set_label(l, other, b, leaf[i], l->of[sa][at]);
  }
}

static void fresh_dim(labels *l, const ir_op *op, int side, int dim, ir_kind kind) {
  ir_index *leaf[IR_MAX_LEAVES];
  const pg_value *v = pg_at(l, side);
  int n = ir_index_leaves(ir_root(type_at(op, side)->dim[dim]), leaf, IR_MAX_LEAVES);
  for (int i = 0; v && i < n; i++) {
    int at = pg_leaf(v, dim, leaf[i]);
    if (at >= 0 && l->of[side][at] < 0) l->of[side][at] = new_label(l, kind, leaf[i]);
  }
}

// Elementwise: dims are aligned at the last one.
static void label_broadcast(labels *l, const ir_op *op) {
  const ir_type *t = type_at(op, op->nin);
  for (int d = 0; d < t->rank; d++) fresh_dim(l, op, op->nin, d, KIND_PARALLEL);
  for (int s = 0; s < op->nin + op->nout; s++) {
    const ir_type *u = type_at(op, s);
    for (int d = 0; d < u->rank && s != op->nin; d++) {
      int at = d + t->rank - u->rank;
      if (at >= 0 && u->dim[d]->size == t->dim[at]->size) same_dim(l, op, op->nin, at, s, d);
    }
  }
}

// Which dim of operand `k` the dim `d` of the result is; -1: none. For ops that only move elements.
static int source_dim(const ir_op *op, int d) {
  int dim = (int)ir_attr_int(op, "dim", -1);
  switch (op->code) {
    case IR_transpose: return (int)ir_get_attr(op, "perm")->v[d];
    case IR_expand: return d == dim ? -1 : d < dim ? d : d - 1;
    case IR_squeeze: return d < dim ? d : d + 1;
    case IR_unfold: return d <= dim ? d : d - 1;
    case IR_fold: return d <= dim ? d : d + 1;
    case IR_broadcast: {
      const ir_attr *dims = ir_get_attr(op, "dims");
      for (int i = 0; i < dims->n; i++)
        if (dims->v[i] == d) return i;
      return -1;
    }
    default: return d;
  }
}

static bool is_axis(const ir_op *op, int d) {
  const ir_attr *axes = ir_get_attr(op, "axes");
  for (int i = 0; axes && i < axes->n; i++)
    if (axes->v[i] == d) return true;
  return false;
}

static void label_reduction(labels *l, const ir_op *op, ir_kind kind) {
  bool keep = ir_attr_int(op, "keep", 0);
  for (int d = 0, out = 0; d < type_at(op, 0)->rank; d++) {
    bool axis = is_axis(op, d);
    fresh_dim(l, op, 0, d, axis ? kind : KIND_PARALLEL);
    if (!axis) same_dim(l, op, 0, d, op->nin, out);
    out += !axis || keep;
  }
}

// (g, ids[, base]) -> table
static void label_scatter(labels *l, const ir_op *op) {
  int ids = type_at(op, 1)->rank, width = type_at(op, op->nin)->rank;
  fresh_dim(l, op, op->nin, 0, KIND_TABLE);  // each rank owns rows
  for (int d = 0; d < ids; d++) {
    fresh_dim(l, op, 0, d, KIND_SUM);
    same_dim(l, op, 0, d, 1, d);
  }
  for (int d = 1; d < width; d++) {
    fresh_dim(l, op, 0, ids + d - 1, KIND_PARALLEL);
    same_dim(l, op, 0, ids + d - 1, op->nin, d);
  }
  for (int d = 0; d < width && op->nin > 2; d++) same_dim(l, op, op->nin, d, 2, d);
}

// (do, o, lse, q, k, v, captures...) -> gradient of a capture: a sum over heads and queries. The
// leaves of lse are both; keys and values have heads, their positions stay whole.
static void label_grad_bias(labels *l, const ir_op *op) {
  const pg_value *lse = pg_at(l, 2);
  for (int d = 0; d < type_at(op, 2)->rank; d++) fresh_dim(l, op, 2, d, KIND_SUM);
  for (int side = 0; side < 6 && lse; side++) {
    const pg_value *v = pg_at(l, side);
    int rank = type_at(op, side)->rank;
    for (int i = 0; v && side != 2 && i < v->nleaf; i++) {
      if (v->dim[i] == rank - 2 && side >= 4) continue;
      for (int k = 0; k < lse->nleaf; k++)
        if (lse->leaf[k] == v->leaf[i]) l->of[side][i] = l->of[2][k];
    }
  }
}

static void label_moves(labels *l, const ir_op *op) {
  const ir_attr *dim = ir_get_attr(op, "dim");
  bool whole =
      op->code == IR_slice || op->code == IR_pad || op->code == IR_concat || op->code == IR_append;
  for (int d = 0; d < type_at(op, 0)->rank; d++)
    if (!whole || !dim || dim->i != d) fresh_dim(l, op, 0, d, KIND_PARALLEL);
  for (int s = 1; s < op->nin; s++)
    for (int d = 0; d < type_at(op, s)->rank; d++) same_dim(l, op, 0, d, s, d);
  for (int s = op->nin; s < op->nin + op->nout; s++)
    for (int d = 0; d < type_at(op, s)->rank; d++) {
      int from = source_dim(op, d);
      same_dim(l, op, 0, from, s, d);
      if (op->code == IR_fold && dim && dim->i == d) same_dim(l, op, 0, d + 1, s, d);
      if (op->code == IR_broadcast && from < 0) fresh_dim(l, op, s, d, KIND_PARALLEL);
    }
  if (op->code == IR_join)  // the new dim part . rest: rest is the operands'
    for (int k = 0; k < op->nin && dim; k++) same_dim(l, op, op->nin, (int)dim->i, k, (int)dim->i);
}

static void label_op(labels *l) {
  const ir_op *op = l->op->op;
  const ir_op_info *info = ir_info(op->code);
  switch (op->code) {
    case IR_sum: label_reduction(l, op, KIND_SUM); return;
    case IR_reduce_max: label_reduction(l, op, KIND_MAX); return;
    case IR_scatter_add: label_scatter(l, op); return;
    case IR_attention_grad_bias: label_grad_bias(l, op); return;
    default: break;
  }
  if (str_eq(info->rule, "*"))
    label_broadcast(l, op);
  else if (!str_eq(info->rule, "raw"))
    label_words(l, op);
  else
    label_moves(l, op);
}

// ---- strategies ---------------------------------------------------------------------------------

static int leaf_of_label(const labels *l, int side, int label) {
  const pg_value *v = pg_at(l, side);
  for (int i = 0; v && i < v->nleaf; i++)
    if (l->of[side][i] == label) return i;
  return -1;
}

static sh_strategy blank(labels *l) {
  const pg_op *p = l->op;
  signed char *code = arena_alloc(l->a, (size_t)(p->nin + p->nout));
  for (int s = 0; s < p->nin + p->nout; s++) code[s] = value_at(p, s) < 0 ? -1 : SH_REPLICATED;
  return (sh_strategy){.code = code};
}

// True when no result has the label.
static bool vanishes(const labels *l, int label) {
  for (int s = l->op->nin; s < l->op->nin + l->op->nout; s++)
    if (leaf_of_label(l, s, label) >= 0) return false;
  return true;
}

static bool cut_label(labels *l, int label, sh_strategy *out) {
  const pg_op *p = l->op;
  ir_kind kind = l->kind[label];
  if (kind == KIND_WHOLE || kind == KIND_MAX || kind == KIND_LSE) return false;
  // Read, in no result, and not called a sum: a contraction inside the op (attention's head size).
  if (kind != KIND_SUM && kind != KIND_TABLE && vanishes(l, label)) return false;
  sh_strategy s = blank(l);
  signed char *code = (signed char *)(uintptr_t)s.code;
  s.cuts = true;
  s.index = l->index[label];
  s.streams = p->op && p->op->code == IR_attention && kind == KIND_PREFIX;
  bool loss = p->op && p->op->code == IR_nll && kind == KIND_TABLE, held = false, partial = false;
  for (int i = 0; i < p->nin + p->nout; i++) {
    if (code[i] < 0) continue;
    int leaf = leaf_of_label(l, i, label);
    if (leaf >= 0) {
      code[i] = (signed char)(SH_LEAF + leaf);
      held = true;
    } else if (i >= p->nin) {
      if (kind == KIND_PARALLEL || kind == KIND_RANGE || kind == KIND_PREFIX) return false;
      code[i] = loss ? SH_REPLICATED : SH_PARTIAL;
      partial |= !loss;
    }
  }
  // An index of extent 1 is on no value's list: each rank would do all of it and the sum be `size`
  // times too large.
  if (!held) return false;
  // What gradients are added to is added once, so each rank brings a part of it.
  if (partial && p->op->code == IR_scatter_add && p->nin > 2 && code[2] == SH_REPLICATED)
    code[2] = SH_PARTIAL;
  // The loss over a cut vocabulary: maximum, sum of exponentials and the target's logit.
  if (loss) s.reduces = 3 * l->g->value.at[p->out[0]].elements;
  *out = s;
  return true;
}

// What a value of a map's function is to operands that are partial: nothing to do with them, linear
// in them (each of its terms has exactly one of them once), or neither.
enum { APART, LINEAR, NEITHER };

static int degree(const ir_op *op, const int *of) {
  int d[3] = {APART, APART, APART}, most = APART;
  for (int i = 0; i < op->nin; i++) {
    const ir_value *v = op->in[i];
    int at = v->def ? v->def->mark : of[v->pos];
    if (at > most) most = at;
    if (i < 3) d[i] = at;
  }
  if (most != LINEAR) return most;
  switch (op->code) {
    case IR_add:
    case IR_sub: return d[0] == d[1] ? LINEAR : NEITHER;  // of `x + bias` each rank would add one
    case IR_neg: return LINEAR;
    case IR_mul: return d[0] != d[1] ? LINEAR : NEITHER;
    case IR_div: return d[1] == APART ? LINEAR : NEITHER;
    default: return NEITHER;
  }
}

// A map whose function is linear, as a sum of gradients is.
static bool map_is_linear(const ir_op *op, const bool *among) {
  const ir_region *body = op->region[0];
  int of[SIDES];
  if (body->args.n != op->nin) return false;
  for (int i = 0; i < op->nin; i++) of[i] = among[i] ? LINEAR : APART;
  for (int i = 0; i < body->ops.n; i++) body->ops.at[i]->mark = degree(body->ops.at[i], of);
  for (int i = 0; i < body->yield.n; i++) {
    const ir_value *y = body->yield.at[i];
    if ((y->def ? y->def->mark : of[y->pos]) != LINEAR) return false;
  }
  return body->yield.n > 0;
}

// Operands `among` partial: then so are the results, when the op is linear in them.
static bool pass_partial(labels *l, const bool *among, sh_strategy *out) {
  const pg_op *p = l->op;
  if (p->op->code == IR_map ? !map_is_linear(p->op, among) : !ir_is_linear(p->op, among))
    return false;
  sh_strategy s = blank(l);
  signed char *code = (signed char *)(uintptr_t)s.code;
  for (int i = 0; i < p->nin; i++)
    if (among[i]) code[i] = SH_PARTIAL;
  for (int i = p->nin; i < p->nin + p->nout; i++)
    if (code[i] >= 0) code[i] = SH_PARTIAL;
  *out = s;
  return true;
}

static bool accumulates(const ir_op *op) { return op->code == IR_accumulate; }

static void strategies_of(labels *l, sh_rules *r, int at) {
  const pg_op *p = l->op;
  VEC(sh_strategy) v = {0};
  sh_strategy s = blank(l);
  vec_push(l->a, &v, s);
  if (p->kind != PG_OP) {  // one value in another's place
    for (int leaf = -1; leaf < l->g->value.at[p->out[0]].nleaf; leaf++) {
      s = blank(l);
      signed char *code = (signed char *)(uintptr_t)s.code;
      code[0] = code[1] = (signed char)(leaf < 0 ? SH_PARTIAL : SH_LEAF + leaf);
      if (leaf < 0 && p->kind == PG_UPDATE) code[1] = SH_REPLICATED;
      vec_push(l->a, &v, s);
    }
  } else {
    label_op(l);
    for (int label = 0; label < l->n; label++)
      if (cut_label(l, label, &s)) vec_push(l->a, &v, s);
    bool among[64] = {false}, any = false;
    if (accumulates(p->op)) {
      s = blank(l);
      ((signed char *)(uintptr_t)s.code)[0] = ((signed char *)(uintptr_t)s.code)[1] = SH_PARTIAL;
      vec_push(l->a, &v, s);
    } else if (p->nin <= 64) {
      for (int i = 0; i < p->nin; i++) {
        if (p->in[i] < 0 || !ir_dtype_float(p->op->in[i]->type.dtype)) continue;
        among[i] = true;
        if (pass_partial(l, among, &s)) vec_push(l->a, &v, s);
        among[i] = false;
      }
      int n = 0;
      for (int i = 0; i < p->nin; i++) {
        among[i] = p->in[i] >= 0 && ir_dtype_float(p->op->in[i]->type.dtype);
        n += among[i];
        any |= among[i];
      }
      if (any && n > 1 && pass_partial(l, among, &s)) vec_push(l->a, &v, s);
    }
  }
  r->n[at] = v.n;
  r->strategy[at] = v.at;
}

sh_rules *sh_rules_of(arena *a, const pg_graph *g) {
  sh_rules *r = arena_new(a, sh_rules, 1);
  r->g = g;
  r->n = arena_new(a, int, g->op.n + 1);
  r->strategy = arena_new(a, sh_strategy *, g->op.n + 1);
  for (int i = 0; i < g->op.n; i++) {
    labels *l = arena_new(a, labels, 1);
    l->a = a;
    l->g = g;
    l->op = &g->op.at[i];
    IR_CHECK(l->op->nin + l->op->nout <= SIDES);
    memset(l->of, -1, sizeof l->of);
    strategies_of(l, r, i);
  }
  return r;
}
