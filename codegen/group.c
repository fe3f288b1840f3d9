#include "codegen/group.h"

const k_value *k_group_shape(const k_stmt *s) {
  return s->code == K_STORE || s->code == K_STORE_ADD || s->code == K_REDUCE ? s->in[0] : s->out[0];
}

bool k_group_defines(const k_group *g, const k_value *v) {
  for (int i = 0; g && i < g->stmts.n; i++)
    if (g->stmts.at[i] == v->def) return true;
  return false;
}

bool k_group_read_outside(const k_group *g, const k_value *v) {
  for (int i = 0; i < v->uses.n; i++) {
    bool inside = false;
    for (int j = 0; j < g->stmts.n && !inside; j++) inside = g->stmts.at[j] == v->uses.at[i];
    if (!inside) return true;
  }
  return false;
}

static bool reads_from(const k_group *g, const k_stmt *s) {
  k_value *in[K_MAX_OPERANDS];
  int n = k_operands(s, in);
  for (int i = 0; i < n; i++)
    if (k_group_defines(g, in[i])) return true;
  return false;
}

static bool same_place(const k_access *a, const k_access *b) {
  return a->base == b->base && a->offset == b->offset && a->row_stride == b->row_stride &&
         a->col_stride == b->col_stride;
}

static bool is_memory(const k_stmt *s) {
  return s->code == K_LOAD || s->code == K_STORE || s->code == K_STORE_ADD;
}

// May `s` be computed element by element in the same loop as what is in g already?
static bool fits(const k_group *g, const k_stmt *s) {
  k_value *in[K_MAX_OPERANDS];
  int n = k_operands(s, in);
  const k_value *shape = k_group_shape(s);
  for (int i = 0; i < n; i++) {
    if (!k_group_defines(g, in[i])) continue;
    // A value of another shape (a reduction's result) is there only after the loop.
    if (in[i]->rows != shape->rows || in[i]->cols != shape->cols || in[i]->def->code == K_REDUCE)
      return false;
  }
  if (!is_memory(s)) return true;
  for (int i = 0; i < g->stmts.n; i++) {
    const k_stmt *o = g->stmts.at[i];
    if (!is_memory(o) || (s->code == K_LOAD && o->code == K_LOAD)) continue;
    if (o->access.buffer == s->access.buffer && !same_place(&o->access, &s->access)) return false;
  }
  return true;
}

static void join(arena *a, k_group *g, k_stmt *s) {
  g->loads |= s->code == K_LOAD || s->code == K_STORE_ADD;
  g->stores |= s->code == K_STORE || s->code == K_STORE_ADD;
  vec_push(a, &g->stmts, s);
}

void k_group_add(arena *a, k_groups *pending, k_stmt *s, int key0, int key1, k_group_rule *rule,
                 void *ctx) {
  for (int i = pending->n - 1; i >= 0; i--) {
    k_group *g = pending->at[i];
    bool same = g->key[0] == key0 && g->key[1] == key1;
    if (same && fits(g, s) && (!rule || rule(ctx, g, s))) {
      join(a, g, s);
      return;
    }
    // Moving in front of group g is fine when g neither computes nor touches what s needs.
    if (same || reads_from(g, s)) break;
    if (s->code == K_LOAD && g->stores) break;
    if (is_memory(s) && s->code != K_LOAD && (g->loads || g->stores)) break;
  }
  k_group *g = arena_new(a, k_group, 1);
  g->key[0] = key0;
  g->key[1] = key1;
  vec_push(a, pending, g);
  join(a, g, s);
}
