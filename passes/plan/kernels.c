// What the kernels of a step will carry, before they are made: see graph.h.
#include <string.h>

#include "ir/rule.h"
#include "passes/pass.h"
#include "passes/plan/graph.h"

typedef struct finder {
  pg_graph *g;
  int *carrier;  // by value id: the pg_op whose kernel it comes from, -1: none that can carry
  int *readers;  // of each pg_value, every read counted
  int *carried;  // of these, reads by ops that its own kernel carries
  int *last;     // the last op that reads it otherwise, -1: none
} finder;

static bool is_near(const finder *f, int v) { return f->readers[v] == f->carried[v]; }

// Op `at` becomes part of the kernel that makes its operand k, when the kernel may wait until all
// that the op reads is there: nobody in between reads what the kernel makes.
static bool carry(finder *f, int at, int k) {
  pg_op *user = &f->g->op.at[at];
  const ir_value *v = user->op->in[k];
  int by = user->in[k] < 0 || !v->def ? -1 : f->carrier[v->id];
  if (by < 0 || v->def->parent != user->op->parent) return false;
  const ir_op *root = f->g->op.at[by].op;
  if (!pass_may_carry(f->g->m, root, user->op)) return false;
  if (!pass_same_extents(v, user->op->out[0])) return false;
  if (f->last[user->in[k]] >= 0) return false;
  user->cost.carried = true;
  for (int i = 0; i < user->nout; i++)
    if (user->out[i] >= 0) f->carrier[user->op->out[i]->id] = by;
  for (int i = 0; i < user->nin; i++)
    if (user->in[i] >= 0 && f->carrier[user->op->in[i]->id] == by && i < 64) {
      user->near |= UINT64_C(1) << i;
      f->carried[user->in[i]]++;
    }
  return true;
}

static void find_carried(finder *f) {
  for (int i = 0; i < f->g->op.n; i++) {
    pg_op *p = &f->g->op.at[i];
    for (int k = 0; k < p->nin; k++)
      if (p->in[k] >= 0) f->readers[p->in[k]]++;
    if (p->kind != PG_OP) continue;
    if (ir_epilogue_at(p->op) >= 0)
      for (int k = 0; k < p->nout; k++) f->carrier[p->op->out[k]->id] = i;
    bool done = false;
    for (int k = 0; k < p->nin && !done; k++) done = carry(f, i, k);
    for (int k = 0; k < p->nin && !done; k++)
      if (p->in[k] >= 0) f->last[p->in[k]] = i;
  }
  // What only the kernel itself reads is not stored.
  for (int i = 0; i < f->g->op.n; i++) {
    pg_op *p = &f->g->op.at[i];
    for (int k = 0; k < p->nout && p->nin + k < 64 && p->kind == PG_OP; k++)
      if (p->out[k] >= 0 && f->carried[p->out[k]] && is_near(f, p->out[k]))
        p->near |= UINT64_C(1) << (p->nin + k);
  }
}

// The type that every use of operand k rounds it to; DT_COUNT: there is a use that does not.
static ir_dtype rounds_to(const ir_op *op, int k) {
  if (op->code == IR_cast) return op->out[0]->type.dtype;
  if (op->code != IR_map || !op->nregions) return DT_COUNT;
  const ir_region *r = op->region[0];
  const ir_value *arg = r->args.at[k];
  ir_dtype t = DT_COUNT;
  for (int i = 0; i < r->yield.n; i++)
    if (r->yield.at[i] == arg) return DT_COUNT;
  for (int i = 0; i < r->ops.n; i++)
    for (int j = 0; j < r->ops.at[i]->nin; j++) {
      if (r->ops.at[i]->in[j] != arg) continue;
      ir_dtype to = r->ops.at[i]->code == IR_cast ? r->ops.at[i]->out[0]->type.dtype : DT_COUNT;
      if (to == DT_COUNT || (t != DT_COUNT && t != to)) return DT_COUNT;
      t = to;
    }
  return t;
}

static void find_sent(const finder *f, arena *a) {
  pg_graph *g = f->g;
  ir_dtype *to = arena_new(a, ir_dtype, g->value.n + 1);
  bool *seen = arena_new(a, bool, g->value.n + 1);
  for (int i = 0; i < g->op.n; i++) {
    const pg_op *p = &g->op.at[i];
    for (int k = 0; k < p->nin; k++) {
      int v = p->in[k];
      if (v < 0) continue;
      ir_dtype t = p->kind == PG_OP ? rounds_to(p->op, k) : DT_COUNT;
      to[v] = seen[v] && to[v] != t ? DT_COUNT : t;
      seen[v] = true;
    }
  }
  for (int v = 0; v < g->value.n; v++) {
    pg_value *p = &g->value.at[v];
    p->sent = p->bytes;
    p->sent_as = DT_COUNT;
    if (!seen[v] || to[v] == DT_COUNT || !ir_dtype_float(to[v]) || !p->batch) continue;
    double rounded = p->elements * ir_dtype_bytes(to[v]);
    if (rounded >= p->sent) continue;
    p->sent = rounded;
    p->sent_as = to[v];
  }
}

void pg_find_kernels(arena *a, pg_graph *g) {
  size_t values = (size_t)g->value.n + 1;
  finder f = {.g = g};
  f.carrier = arena_new(a, int, g->m->next_value + 1);
  memset(f.carrier, -1, sizeof *f.carrier * (size_t)(g->m->next_value + 1));
  f.readers = arena_new(a, int, g->value.n + 1);
  f.carried = arena_new(a, int, g->value.n + 1);
  f.last = arena_new(a, int, g->value.n + 1);
  memset(f.last, -1, sizeof *f.last * values);
  find_carried(&f);
  find_sent(&f, a);
}
