#include "passes/plan/mixed.h"

#include <math.h>

static bool same(double a, double b) { return fabs(a - b) <= 1e-9 * fabs(a); }

static double seconds(const bl_phase *f) {
  double s = f->compute;
  for (int x = 0; x < BL_INNER; x++) s += f->sent[x];
  return s;
}

// What values are placed as: weights by their names, carried values by their order.
static bool agree(const bl_block *a, const bl_block *b, int axis) {
  const sh_result *x = a->axis[axis], *y = b->axis[axis];
  if (!x->strategy || !y->strategy) return !x->strategy == !y->strategy;
  int at = 0;
  for (int i = 0; i < a->g->value.n; i++) {
    const pg_value *v = &a->g->value.at[i];
    if (!v->weight && !(v->carried && v->batch)) continue;
    for (;; at++) {
      if (at == b->g->value.n) return false;
      const pg_value *u = &b->g->value.at[at];
      bool like = v->weight ? u->weight && str_eq(u->weight->name, v->weight->name)
                            : !u->weight && u->carried && u->batch && u->bytes == v->bytes;
      if (like) break;
    }
    if (x->code[i] != y->code[at++]) return false;
  }
  return true;
}

const char *mixed_why_not(const bl_block *fast, const bl_block *slow) {
  if (fast->npieces != slow->npieces || fast->weight.n != slow->weight.n)
    return "the two kinds of recomputation cut the step otherwise";
  for (int i = 0; i < fast->npieces; i++) {
    const bl_piece *f = &fast->piece[i], *s = &slow->piece[i];
    if (fast->g->piece.at[i].count != slow->g->piece.at[i].count)
      return "the two kinds of recomputation cut the step otherwise";
    bool alike = true;
    for (int k = 0; k < 4; k++) {
      ho_cut fast_cut = ho_at(f->hands, k & 1, k < 2 ? PG_FORWARD : PG_BACKWARD);
      ho_cut slow_cut = ho_at(s->hands, k & 1, k < 2 ? PG_FORWARD : PG_BACKWARD);
      alike &= same(ho_bytes(&fast_cut), ho_bytes(&slow_cut));
    }
    // Gradients are sums over the same ranks, at the same time.
    alike &= same(f->layer.late, s->layer.late);
    for (int k = 1; k < 4; k++) alike &= same(f->layer.whole[k], s->layer.whole[k]);
    if (!alike || !same(f->layer.elements, s->layer.elements))
      return "layers of the two kinds are placed otherwise";
    double both = seconds(&f->phase[PG_FORWARD]) + seconds(&f->phase[PG_BACKWARD]);
    double slower = seconds(&s->phase[PG_FORWARD]) + seconds(&s->phase[PG_BACKWARD]);
    if (slower < both * (1 - 1e-12)) return "layers that save less take no more time";
  }
  for (int x = 0; x < BL_INNER; x++)
    if (!agree(fast, slow, x)) return "layers of the two kinds are placed otherwise";
  return NULL;
}
