// Which positions the ring cuts in zigzag.
//
// Where attention is causal, late queries have more keys to look at than early ones: of n ranks
// with a block of positions each the last one does 2n - 1 times what the first one does. With two
// pieces each, number p and number 2n - 1 - p of 2n, all have the same. What is whole stays in its
// order; only parts are mirrored, so exchanges over the ring know it (attribute `mirror`), and ops
// that count positions (ir_mirror, ir/place.h). Other axes cut such a part as if it were a range.
//
// Not where something is drawn for each element: draws are numbered by a step for each axis.
#include "ir/place.h"
#include "ir/rule.h"
#include "passes/distribute_impl.h"
#include "passes/pass.h"

bool dist_mirrors(const dist *d, int value, int code, int x) {
  if (x != BL_RING || code < SH_LEAF) return false;
  const ir_index *leaf = ir_root(d->g->value.at[value].leaf[code - SH_LEAF]);
  for (int i = 0; i < d->mirrored.n; i++)
    if (d->mirrored.at[i] == leaf) return true;
  return false;
}

// The one leaf that is dim `dim` of a value; NULL: it has several, or none that can be cut.
static const ir_index *leaf_at(const dist *d, int value, int dim) {
  const pg_value *v = &d->g->value.at[value];
  const ir_index *leaf = NULL;
  for (int k = 0; k < v->nleaf; k++) {
    if (v->dim[k] != dim) continue;
    if (leaf) return NULL;
    leaf = ir_root(v->leaf[k]);
  }
  return leaf;
}

// Positions of queries and keys of attention whose mask compares them; NULL: it is no such op.
static const ir_index *causal_positions(const dist *d, const pg_op *p) {
  const ir_op *op = p->op;
  if (p->kind != PG_OP || op->code != IR_attention || !ir_attr_int(op, "has_mask", 0)) return NULL;
  ir_region *mask = op->region[0];
  pass_count_uses(mask);
  if (!mask->args.at[2]->mark || !mask->args.at[3]->mark) return NULL;
  const ir_index *q = leaf_at(d, p->in[0], d->g->value.at[p->in[0]].rank - 2),
                 *k = leaf_at(d, p->in[1], d->g->value.at[p->in[1]].rank - 2);
  return q == k ? q : NULL;
}

static bool draws(const ir_op *op) {
  return pass_draws(op) || (ir_queries(op) >= 0 && ir_attr_float(op, "drop", 0) > 0);
}

void dist_find_mirrored(dist *d) {
  int64_t ranks = d->d->key.size[BL_RING];
  if (!d->axis[BL_RING]) return;
  for (int i = 0; i < d->g->op.n; i++)
    if (d->g->op.at[i].kind == PG_OP && draws(d->g->op.at[i].op)) return;
  for (int i = 0; i < d->g->op.n; i++) {
    const ir_index *x = causal_positions(d, &d->g->op.at[i]);
    if (x && x->size % (2 * ranks) == 0) vec_push(d->scratch, &d->mirrored, x);
  }
}
