// Indices: union-find with refinement.
//
// A root is either a leaf or refined into an ordered product of smaller indices. Unifying two
// refined roots finds their common refinement: their leaf sequences are walked side by side, and
// where the extents differ the larger leaf is divided by the smaller one:
//
//   3 . 768          3 . 12 . 64
//   36 . 64     ->   3 . 12 . 64      36 = 3 . 12, then 768 = 12 . 64
//
//   3 . 4 against 2 . 6: 3 is not divisible by 2, so no nesting exists and nothing changes.
//
// Every change of an existing index is logged while a trial runs, so that a refused unification
// (or a refused inference, or the verifier's second inference) can be taken back exactly.
#include <string.h>

#include "ir/ir.h"

typedef struct index_change {
  ir_index *at;
  ir_index before;
} index_change;

typedef struct index_log {
  VEC(index_change) changes;
  int depth;  // trials running; the log is emptied when the outermost one ends
} index_log;

// Leaves have extent 2 or more, so no product that fits in 63 bits has more than this.
#define MANY_LEAVES 64

ir_index *ir_index_new(ir_module *m, const char *name, int64_t size) {
  IR_CHECK(size >= 1);
  ir_index *x = arena_new(m->arena, ir_index, 1);
  x->id = m->next_index++;
  x->name = name;
  x->size = size;
  return x;
}

ir_index *ir_root(ir_index *x) {
  while (x->same) x = x->same;
  return x;
}

// ---- trials ------------------------------------------------------------------------------------

static index_log *log_of(ir_module *m) {
  if (!m->index_log) m->index_log = arena_new(m->arena, index_log, 1);
  return m->index_log;
}

ir_index_trial ir_index_try(ir_module *m) {
  index_log *log = log_of(m);
  log->depth++;
  return (ir_index_trial){.changes = log->changes.n, .next_index = m->next_index};
}

const ir_index *ir_index_touched(ir_module *m, ir_index_trial t) {
  index_log *log = log_of(m);
  for (int i = t.changes; i < log->changes.n; i++) {
    const index_change *c = &log->changes.at[i];
    // A name gained from a new index says nothing about identity.
    if (c->at->id < t.next_index &&
        (c->at->same != c->before.same || c->at->nparts != c->before.nparts))
      return c->at;
  }
  return NULL;
}

void ir_index_keep(ir_module *m, ir_index_trial t) {
  index_log *log = log_of(m);
  IR_CHECK(log->depth > 0 && log->changes.n >= t.changes);
  if (--log->depth == 0) log->changes.n = 0;
}

void ir_index_undo(ir_module *m, ir_index_trial t) {
  index_log *log = log_of(m);
  IR_CHECK(log->depth > 0);
  while (log->changes.n > t.changes) {
    index_change *c = &vec_last(&log->changes);
    *c->at = c->before;
    log->changes.n--;
  }
  log->depth--;
}

static void remember(ir_module *m, ir_index *x) {
  index_log *log = log_of(m);
  if (log->depth) vec_push(m->arena, &log->changes, (index_change){.at = x, .before = *x});
}

// ---- leaves ------------------------------------------------------------------------------------

static int leaves(ir_index *x, ir_index **out, int n, int max) {
  x = ir_root(x);
  if (!x->nparts) {
    if (n < max) out[n] = x;
    return n + 1;
  }
  for (int i = 0; i < x->nparts; i++) n = leaves(x->part[i], out, n, max);
  return n;
}

int ir_index_leaves(ir_index *x, ir_index **out, int max) {
  int n = leaves(x, out, 0, max);
  if (n > max) IR_BUG("index %d has %d leaves, more than %d", x->id, n, max);
  return n;
}

bool ir_index_same(ir_index *a, ir_index *b) {
  a = ir_root(a);
  b = ir_root(b);
  if (a == b) return true;
  if (a->size != b->size || !a->nparts || !b->nparts) return false;
  ir_index *la[MANY_LEAVES], *lb[MANY_LEAVES];
  int n = leaves(a, la, 0, MANY_LEAVES);
  return n == leaves(b, lb, 0, MANY_LEAVES) && memcmp(la, lb, sizeof *la * (size_t)n) == 0;
}

// ---- unification -------------------------------------------------------------------------------

// Makes two roots one. The older one stays, because names given in the text are older than names
// that op rules invent; the sample axis keeps its name in any case.
static void link_roots(ir_module *m, ir_index *a, ir_index *b) {
  ir_index *stays = a->id < b->id ? a : b, *goes = stays == a ? b : a;
  bool parts = !stays->nparts && goes->nparts, bound = goes->bound > stays->bound;
  bool name = goes->name && (!stays->name || (m->batch && ir_root(m->batch) == goes));
  if (parts || bound || name) remember(m, stays);
  remember(m, goes);
  if (parts) {
    stays->nparts = goes->nparts;
    memcpy(stays->part, goes->part, sizeof stays->part);
  }
  if (name) stays->name = goes->name;
  if (bound) stays->bound = goes->bound;
  goes->same = stays;
}

// leaf = outer . (a new index of what is left)
static void divide(ir_module *m, ir_index *leaf, ir_index *outer) {
  ir_index *rest = ir_index_new(m, NULL, leaf->size / outer->size);
  remember(m, leaf);
  leaf->nparts = 2;
  leaf->part[0] = outer;
  leaf->part[1] = rest;
}

static bool merge(ir_module *m, ir_index *a, ir_index *b) {
  // Every turn links two roots or divides a leaf, so the loop ends. The leaves are looked up anew
  // each turn because one leaf may stand in both products, or twice in one.
  for (;;) {
    a = ir_root(a);
    b = ir_root(b);
    if (a == b) return true;
    if (a->size != b->size) return false;
    ir_index *la[MANY_LEAVES], *lb[MANY_LEAVES];
    int na = leaves(a, la, 0, MANY_LEAVES), nb = leaves(b, lb, 0, MANY_LEAVES), k = 0;
    if (na > IR_MAX_LEAVES || nb > IR_MAX_LEAVES) return false;
    while (k < na && k < nb && la[k] == lb[k]) k++;
    // Equal products up to k leave equal products after k, so both end together.
    if (!a->nparts || !b->nparts || k == na) {
      link_roots(m, a, b);
      return true;
    }
    ir_index *x = la[k], *y = lb[k];
    if (x->size == y->size)
      link_roots(m, x, y);
    else if (x->size < y->size && y->size % x->size == 0)
      divide(m, y, x);
    else if (x->size > y->size && x->size % y->size == 0)
      divide(m, x, y);
    else
      return false;
  }
}

bool ir_index_unify(ir_module *m, ir_index *a, ir_index *b) {
  ir_index_trial t = ir_index_try(m);
  bool ok = merge(m, a, b);
  if (ok)
    ir_index_keep(m, t);
  else
    ir_index_undo(m, t);
  return ok;
}

// A new index that is the product of n parts, n at least 2. An index has room for four parts, so
// longer lists nest to the right.
static ir_index *product(ir_module *m, ir_index *const *part, int n, int64_t size) {
  ir_index *x = ir_index_new(m, NULL, size);
  int direct = n <= 4 ? n : 3;
  for (int i = 0; i < direct; i++) {
    x->part[i] = part[i];
    size /= part[i]->size;
  }
  x->nparts = direct;
  if (n > 4) x->part[x->nparts++] = product(m, part + 3, n - 3, size);
  return x;
}

bool ir_index_refine(ir_module *m, ir_index *x, ir_index *const *part, int n) {
  ir_index *kept[IR_MAX_LEAVES];
  int nkept = 0;
  int64_t size = 1;
  for (int i = 0; i < n; i++) {
    if (part[i]->size == 1) continue;
    if (nkept == IR_MAX_LEAVES || __builtin_mul_overflow(size, part[i]->size, &size)) return false;
    kept[nkept++] = part[i];
  }
  if (size != x->size) return false;
  if (nkept == 0) return true;
  if (nkept == 1) return ir_index_unify(m, x, kept[0]);
  return ir_index_unify(m, x, product(m, kept, nkept, size));
}
