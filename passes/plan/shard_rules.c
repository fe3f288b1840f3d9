// What each op can do on an axis, from its row of the op table.
//
// Every leaf of every operand and result gets a *label*; leaves with one label are cut together.
// For ops with a rule of words a label is (word, leaf of that word); for ops that only move
// elements it follows from which dims are the same ones. A label's kind says what cutting it means.
#include <string.h>

#include "ir/rule.h"
#include "ir/view.h"
#include "passes/plan/shard.h"

typedef struct labels {
  arena *a;        // of the rules
  arena *scratch;  // goes with the labels
  const pg_graph *g;
  const pg_op *op;
  ir_rule rule;
  int (*of)[IR_MAX_LEAVES];  // of each operand, then result: label of each leaf; -1: not to be cut
  int n;
  ir_kind *kind;
  ir_index **index;
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

static bool has_two_ellipses(const ir_rule_side *s) {
  int n = 0;
  for (int i = 0; i < s->n; i++) n += s->dim[i].ellipsis;
  return n > 1;
}

static void label_side(labels *l, const ir_op *op, const ir_rule *rule, binding *word,
                       binding (*ellipsis)[IR_MAX_RANK], int *dims, int side,
                       const ir_rule_side *s) {
  const ir_type *t = type_at(op, side);
  int plain = 0;
  for (int i = 0; i < s->n; i++) plain += !s->dim[i].ellipsis;
  bool many = has_two_ellipses(s);
  int dim = 0;
  for (int i = 0; i < s->n; i++) {
    const ir_rule_dim *d = &s->dim[i];
    if (!d->ellipsis) {
      if (dim < t->rank) label_dim(l, op, rule, word, side, dim, d);
      dim++;
      continue;
    }
    // One ellipsis of a side takes what is left.
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

// An operand that the rule does not look at stays whole.
static void label_words(labels *l, const ir_op *op) {
  binding word[RULE_MAX_WORDS], ellipsis[RULE_MAX_WORDS][IR_MAX_RANK];
  int dims[RULE_MAX_WORDS] = {0};
  for (int i = 0; i < RULE_MAX_WORDS; i++) {
    word[i].count = -1;
    for (int k = 0; k < IR_MAX_RANK; k++) ellipsis[i][k].count = -1;
  }
  // Sides with two ellipses come last: only the others tell how many dims each stands for.
  for (int two = 0; two < 2; two++) {
    for (int i = 0; i < op->nin && i < l->rule.nin; i++)
      if (has_two_ellipses(&l->rule.in[i]) == two)
        label_side(l, op, &l->rule, word, ellipsis, dims, i, &l->rule.in[i]);
    for (int i = 0; i < op->nout && i < l->rule.nout; i++)
      if (has_two_ellipses(&l->rule.out[i]) == two)
        label_side(l, op, &l->rule, word, ellipsis, dims, op->nin + i, &l->rule.out[i]);
  }
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

// The kind that a raw rule gives to what its attribute `name` names ("axes:sum"), or KIND_PARALLEL.
static ir_kind kind_of(const labels *l, const char *name) {
  for (int w = 0; w < l->rule.nwords; w++)
    if (str_eq(l->rule.word[w], name)) return l->rule.kind[w];
  return KIND_PARALLEL;
}

static bool is_axis(const ir_attr *axes, int d) {
  for (int i = 0; i < axes->n; i++)
    if (axes->v[i] == d) return true;
  return false;
}

// Over the dims of attribute `axes`; the others keep their order.
static void label_reduction(labels *l, const ir_op *op, const ir_attr *axes) {
  bool keep = ir_attr_int(op, "keep", 0);
  for (int d = 0, out = 0; d < type_at(op, 0)->rank; d++) {
    bool axis = is_axis(axes, d);
    fresh_dim(l, op, 0, d, axis ? kind_of(l, "axes") : KIND_PARALLEL);
    if (!axis) same_dim(l, op, 0, d, op->nin, out);
    out += !axis || keep;
  }
}

// The leaf of operand 0 that a step of `stride` over `size` elements of the same storage is.
static int leaf_by_step(const labels *l, const ir_view *v, int64_t size, int64_t stride) {
  const ir_type *t = type_at(l->op->op, 0);
  for (int d = 0; d < t->rank; d++) {
    ir_index *leaf[IR_MAX_LEAVES];
    int n = ir_index_leaves(ir_root(t->dim[d]), leaf, IR_MAX_LEAVES);
    for (int i = 0; i < n; i++) {
      int at = v->dim_first[d] + i;
      if (v->size[at] == size && v->stride[at] == stride && size > 1)
        return pg_leaf(pg_at(l, 0), d, leaf[i]);
    }
  }
  return -1;
}

// A view: leaves that walk the same storage in the same steps are the same ones; along a new one
// the operand repeats. What is walked in other steps (a part of an axis) stays whole.
static void label_view(labels *l, const ir_op *op) {
  if (!pg_at(l, 0)) return;
  for (int d = 0; d < type_at(op, 0)->rank; d++) fresh_dim(l, op, 0, d, KIND_PARALLEL);
  ir_view from = ir_view_of(op->in[0]);
  for (int k = 0; k < op->nout; k++) {
    ir_view to = ir_view_of(op->out[k]);
    const ir_type *t = &op->out[k]->type;
    const pg_value *v = pg_at(l, op->nin + k);
    for (int d = 0; v && d < t->rank; d++) {
      ir_index *leaf[IR_MAX_LEAVES];
      int n = ir_index_leaves(ir_root(t->dim[d]), leaf, IR_MAX_LEAVES);
      for (int i = 0; i < n; i++) {
        int at = to.dim_first[d] + i, mine = pg_leaf(v, d, leaf[i]);
        if (mine < 0) continue;
        int *label = &l->of[op->nin + k][mine];
        int other = to.stride[at] ? leaf_by_step(l, &from, to.size[at], to.stride[at]) : -1;
        if (other >= 0) *label = l->of[0][other];
        if (!to.stride[at]) *label = new_label(l, KIND_PARALLEL, leaf[i]);
      }
    }
  }
}

// What puts operands beside each other along `dim`, or leaves all where it is. A `range` of an axis
// stays whole; of a product that gets an outer part the rest is the operands'.
static void label_copy(labels *l, const ir_op *op) {
  const ir_attr *dim = ir_get_attr(op, "dim");
  bool range = kind_of(l, "dim") == KIND_RANGE;
  for (int d = 0; d < type_at(op, op->nin)->rank; d++) {
    if (range && dim && dim->i == d) continue;
    fresh_dim(l, op, op->nin, d, KIND_PARALLEL);
    for (int s = 0; s < op->nin; s++) same_dim(l, op, op->nin, d, s, d);
  }
}

static void label_op(labels *l) {
  const ir_op *op = l->op->op;
  const ir_attr *axes = ir_get_attr(op, "axes");
  if (l->rule.broadcast)
    label_broadcast(l, op);
  else if (!l->rule.raw || l->rule.nin)
    label_words(l, op);
  else if (axes)
    label_reduction(l, op, axes);
  else if (l->op->view)
    label_view(l, op);
  else
    label_copy(l, op);
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

// The operands with an index that the op reduces by lse: its parts can be merged as they come.
static const bool *reduced_by_lse(const labels *l) {
  bool *has = arena_new(l->a, bool, l->op->nin + 1);
  for (int k = 0; k < l->n; k++)
    for (int i = 0; i < l->op->nin && l->kind[k] == KIND_LSE; i++)
      has[i] |= leaf_of_label(l, i, k) >= 0;
  return has;
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
  if (kind == KIND_PREFIX) s.streams = reduced_by_lse(l);
  // A loss over a cut vocabulary makes its results whole itself.
  int parts = kind == KIND_TABLE ? ir_parts(p->op) : 0;
  bool held = false, partial = false;
  for (int i = 0; i < p->nin + p->nout; i++) {
    if (code[i] < 0) continue;
    int leaf = leaf_of_label(l, i, label);
    if (leaf >= 0) {
      code[i] = (signed char)(SH_LEAF + leaf);
      held = true;
    } else if (i >= p->nin) {
      if (kind == KIND_PARALLEL || kind == KIND_RANGE || kind == KIND_PREFIX) return false;
      code[i] = parts ? SH_REPLICATED : SH_PARTIAL;
      partial |= !parts;
    }
  }
  // An index of extent 1 is on no value's list: each rank would do all of it and the sum be `size`
  // times too large.
  if (!held) return false;
  // What is added to in place is added to once, so each rank brings a part of it.
  int base = partial ? ir_updated(p->op) : -1;
  if (base >= 0 && code[base] == SH_REPLICATED) code[base] = SH_PARTIAL;
  s.reduces = parts;
  *out = s;
  return true;
}

// Operands `among` partial: then so are the results, when the op is linear in them.
static bool pass_partial(labels *l, const bool *among, sh_strategy *out) {
  const pg_op *p = l->op;
  if (!ir_is_linear(p->op, among)) return false;
  sh_strategy s = blank(l);
  signed char *code = (signed char *)(uintptr_t)s.code;
  for (int i = 0; i < p->nin; i++)
    if (among[i]) code[i] = SH_PARTIAL;
  for (int i = p->nin; i < p->nin + p->nout; i++)
    if (code[i] >= 0) code[i] = SH_PARTIAL;
  *out = s;
  return true;
}

static bool is_real(const pg_op *p, int i) {
  return p->in[i] >= 0 && ir_dtype_float(p->op->in[i]->type.dtype);
}

static void strategies_of(labels *l, sh_rules *r, int at) {
  const pg_op *p = l->op;
  VEC(sh_strategy) v = {0};
  sh_strategy s = blank(l);
  vec_push(l->scratch, &v, s);
  if (p->kind != PG_OP) {  // one value in another's place
    for (int leaf = -1; leaf < l->g->value.at[p->out[0]].nleaf; leaf++) {
      s = blank(l);
      signed char *code = (signed char *)(uintptr_t)s.code;
      code[0] = code[1] = (signed char)(leaf < 0 ? SH_PARTIAL : SH_LEAF + leaf);
      if (leaf < 0 && p->kind == PG_UPDATE) code[1] = SH_REPLICATED;
      vec_push(l->scratch, &v, s);
    }
  } else {
    label_op(l);
    for (int label = 0; label < l->n; label++)
      if (cut_label(l, label, &s)) vec_push(l->scratch, &v, s);
    bool *among = arena_new(l->scratch, bool, p->nin + 1);
    int n = 0;
    for (int i = 0; i < p->nin; i++) {
      if (!is_real(p, i)) continue;
      among[i] = true;
      n++;
      if (pass_partial(l, among, &s)) vec_push(l->scratch, &v, s);
      among[i] = false;
    }
    for (int i = 0; i < p->nin; i++) among[i] = is_real(p, i);
    if (n > 1 && pass_partial(l, among, &s)) vec_push(l->scratch, &v, s);
  }
  r->n[at] = v.n;
  r->strategy[at] = arena_new(l->a, sh_strategy, v.n);
  memcpy(r->strategy[at], v.at, sizeof *v.at * (size_t)v.n);
}

bool sh_is_position(const sh_rules *r, const ir_index *x) {
  for (int i = 0; i < r->position.n; i++)
    if (r->position.at[i] == x) return true;
  return false;
}

// Tables; and positions: what some op reads as a causal prefix of another index, and that index,
// which is reduced by lse there.
static void note_positions(const labels *l, sh_rules *r) {
  for (int i = 0; i < l->n; i++) {
    if (l->kind[i] == KIND_TABLE) vec_push(l->a, &r->table, l->index[i]);
    if (l->kind[i] != KIND_PREFIX && l->kind[i] != KIND_LSE) continue;
    if (!sh_is_position(r, l->index[i])) vec_push(l->a, &r->position, l->index[i]);
  }
}

static labels *labels_of(arena *a, arena *scratch, const pg_graph *g, const pg_op *p) {
  labels *l = arena_new(scratch, labels, 1);
  *l = (labels){.a = a, .scratch = scratch, .g = g, .op = p};
  int sides = p->nin + p->nout, most = 1;
  l->of = arena_alloc(scratch, sizeof *l->of * (size_t)sides);
  memset(l->of, -1, sizeof *l->of * (size_t)sides);
  for (int i = 0; i < sides; i++)
    if (pg_at(l, i)) most += pg_at(l, i)->nleaf + 2 * IR_MAX_RANK;  // and leaves of extent 1
  l->kind = arena_new(scratch, ir_kind, most);
  l->index = arena_new(scratch, ir_index *, most);
  if (p->kind == PG_OP) ir_rule_of(g->m, p->op, &l->rule);
  return l;
}

sh_rules *sh_rules_of(arena *a, const pg_graph *g) {
  sh_rules *r = arena_new(a, sh_rules, 1);
  r->g = g;
  r->memo = sh_memo_new(a);
  r->n = arena_new(a, int, g->op.n + 1);
  r->strategy = arena_new(a, sh_strategy *, g->op.n + 1);
  for (int v = 0; v < g->value.n; v++) {
    const pg_value *p = &g->value.at[v];
    for (int i = 0; i < p->nleaf && p->carried && p->batch; i++)
      vec_push(a, &r->stream, p->leaf[i]);
  }
  for (int i = 0; i < g->op.n; i++) {
    arena scratch;  // most of what tells strategies is of no use afterwards
    arena_init(&scratch);
    labels *l = labels_of(a, &scratch, g, &g->op.at[i]);
    strategies_of(l, r, i);
    note_positions(l, r);
    arena_free(&scratch);
  }
  return r;
}
