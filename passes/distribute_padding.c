// Indices that ranks cut in parts which do not divide them: the last ranks have less, and padding.
//
// Only indices of tables are cut so (sh_divides): vocabularies. All parts have the extent
// ceil(n / parts), and behind the end there are rows and classes that are none:
//
//   vocab = 50257 on tensor=2     25129 each; rank 1 has one that is none
//
// What is *zero* there is weights, what the runtime cuts out of a whole, gradients of a loss, and
// what is made of these by ops that make zeros of zeros; the rest is anything. A lookup reads no
// such row, a loss leaves such classes out (`classes` of nll), a product summed over such an index
// is right where one of its operands is zero, and a gradient must be zero, so that norms are those
// of the whole and updates leave the weight zero. What would read anything else is refused.
#include <string.h>

#include "ir/place.h"
#include "ir/rule.h"
#include "passes/distribute_impl.h"

bool dist_pads(const dist *d, int value, int code, int x) {
  return d->axis[x] && code >= SH_LEAF &&
         d->g->value.at[value].leaf[code - SH_LEAF]->size % d->d->key.size[x] != 0;
}

typedef struct padding {
  dist *d;
  int x;       // the axis
  int *maker;  // by value: the graph's op; -1: none
} padding;

static int value_of(const pg_op *p, int side) {
  return side < p->nin ? p->in[side] : p->out[side - p->nin];
}

// Whether the side has padding on this axis.
static bool padded(const padding *w, int op, int side) {
  int v = value_of(&w->d->g->op.at[op], side);
  return v >= 0 && dist_pads(w->d, v, dist_side(w->d, op, side).on[w->x], w->x);
}

static bool is_zero(const padding *w, int value);

// Operand k is padded, and zero there.
static bool zero_side(const padding *w, int op, int k) {
  return padded(w, op, k) && is_zero(w, w->d->g->op.at[op].in[k]);
}

// A product of padded operands, of which one is zero: with what its sums start from.
static bool zero_product(const padding *w, int at, bool summed) {
  const pg_op *p = &w->d->g->op.at[at];
  bool base = ir_attr_int(p->op, "base", 0) != 0, zero = false;
  int n = base ? p->nin - 1 : p->nin;
  for (int k = 0; k < n; k++) zero |= zero_side(w, at, k);
  return zero && (!base || summed || zero_side(w, at, n));
}

// Whether what is behind the end of a padded value is zero.
static bool is_zero(const padding *w, int value) {
  const pg_graph *g = w->d->g;
  if (g->value.at[value].weight) return true;
  int at = w->maker[value];
  if (at < 0 || g->op.at[at].kind != PG_OP) return false;
  const pg_op *p = &g->op.at[at];
  switch (p->op->code) {
    case IR_state:
    case IR_zeros:
    case IR_nll_grad: return true;
    case IR_scatter_add: return p->nin == 2 || is_zero(w, p->in[2]);
    case IR_einsum: return zero_product(w, at, false);
    case IR_sum:
      if (p->op->nregions) return false;
      break;
    default: break;
  }
  enum { MAX = 64 };
  bool among[MAX] = {false}, any = false;
  if (p->nin > MAX) return false;
  for (int k = 0; k < p->nin; k++) {
    if (!padded(w, at, k)) continue;
    if (!is_zero(w, p->in[k])) continue;
    any = among[k] = true;
  }
  return any && ir_is_linear(p->op, among);
}

// The name of what is padded, for words.
static const char *padded_text(const padding *w, int op, int side) {
  const pg_value *v = &w->d->g->value.at[value_of(&w->d->g->op.at[op], side)];
  const ir_index *x = v->leaf[dist_side(w->d, op, side).on[w->x] - SH_LEAF];
  return arena_printf(w->d->m->arena, "%s = %lld is no multiple of %lld",
                      x->name ? x->name : "an index", (long long)x->size,
                      (long long)w->d->d->key.size[w->x]);
}

static bool reads_well(const padding *w, int at, bool made) {
  const pg_op *p = &w->d->g->op.at[at];
  if (made && p->view) return true;
  if (made && ir_is_elementwise(p->op)) return true;
  if (made) switch (p->op->code) {  // position by position: what is behind the end stays there
      case IR_cast:
      case IR_einsum:
      case IR_sum:
      case IR_nll_grad:
      case IR_scatter_add:
      case IR_accumulate:
      case IR_zeros:
      case IR_state: return true;
      default: return false;
    }
  switch (p->op->code) {
    case IR_gather:
    case IR_nll: return true;
    case IR_einsum: return zero_product(w, at, true);
    case IR_sum: return p->op->nregions == 0 && zero_side(w, at, 0);
    default: return false;
  }
}

static void check_op(const padding *w, int at) {
  const pg_op *p = &w->d->g->op.at[at];
  int side = -1;
  bool made = false;
  for (int k = 0; k < p->nin + p->nout; k++) {
    if (!padded(w, at, k)) continue;
    side = k;
    made |= k >= p->nin;
  }
  if (side < 0) return;
  int v = value_of(p, side);
  codes in = dist_side(w->d, at, side);
  bool alone = true;
  for (int y = 0; y < BL_INNER; y++) alone &= y == w->x || in.on[y] != in.on[w->x];
  bool good = alone;
  if (p->kind == PG_UPDATE) good &= is_zero(w, v);
  if (p->kind == PG_OP) good &= reads_well(w, at, made);
  if (good || w->d->error) return;
  const char *why = padded_text(w, at, side);
  if (p->kind == PG_OP)
    dist_refuse(w->d, p->op, why);
  else
    w->d->error = arena_printf(w->d->m->arena, "%s: planned, not built: what is behind its end %s",
                               why, alone ? "would be added to a weight" : "is cut by two axes");
}

void dist_check_padding(dist *d) {
  const pg_graph *g = d->g;
  padding w = {.d = d, .maker = arena_new(d->scratch, int, g->value.n + 1)};
  memset(w.maker, -1, sizeof *w.maker * (size_t)g->value.n);
  for (int i = 0; i < g->op.n; i++)
    for (int k = 0; k < g->op.at[i].nout; k++)
      if (g->op.at[i].out[k] >= 0) w.maker[g->op.at[i].out[k]] = i;
  for (w.x = 0; w.x < BL_INNER; w.x++)
    for (int i = 0; i < g->op.n && d->axis[w.x]; i++) check_op(&w, i);
}
