// Groups of pointwise statements: what both lowerings turn into one loop.
//
// Statements are held back in *pending* groups, so that work on a row or column between two
// statements on whole tiles does not split a loop. A group has a key, of which only equality
// counts: the host's is the tile's shape, the GPU's its layout. A statement joins the newest group
// of its key, unless a later group computes something it reads, or memory order forbids it.
//
//   k_groups pending = {0};
//   k_group_add(a, &pending, s, k_group_shape(s)->rows, k_group_shape(s)->cols, NULL, NULL);
//   for (int i = 0; i < pending.n; i++) write(pending.at[i]);
#ifndef DSM_CODEGEN_GROUP_H
#define DSM_CODEGEN_GROUP_H

#include "codegen/kernel.h"

typedef struct k_group {
  int key[2];
  bool loads, stores;
  VEC(k_stmt *) stmts;
} k_group;

typedef VEC(k_group *) k_groups;

// Whether `s` may go into a group of its key for reasons of the lowering's own.
typedef bool k_group_rule(void *ctx, const k_group *g, const k_stmt *s);

// The value whose shape a statement is computed over: its result, or the operand of stores and
// reductions.
const k_value *k_group_shape(const k_stmt *s);
// `rule` NULL: none.
void k_group_add(arena *a, k_groups *pending, k_stmt *s, int key0, int key1, k_group_rule *rule,
                 void *ctx);
// Is v computed in the group? (g NULL: no.)
bool k_group_defines(const k_group *g, const k_value *v);
// Does a statement that is not in the group read v?
bool k_group_read_outside(const k_group *g, const k_value *v);

#endif
