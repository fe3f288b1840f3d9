// Two kernels of a single cell as one that does first the one, then the other.
#include <string.h>

#include "codegen/kernel.h"

typedef struct copier {
  k_kernel *to;
  const int *buffer;  // by buffer of the kernel that is copied: its number in `to`
  k_value **value;    // by id of a value there
} copier;

static k_value *copied(const copier *c, const k_value *v) { return v ? c->value[v->id] : NULL; }

static k_value *copy_value(copier *c, const k_value *v, k_stmt *def, k_block *block) {
  k_value *n = arena_new(c->to->arena, k_value, 1);
  n->id = c->to->next_id++;
  n->type = v->type;
  n->rows = v->rows;
  n->cols = v->cols;
  n->def = def;
  n->block = block;
  n->pos = v->pos;
  n->mark = -1;
  c->value[v->id] = n;
  return n;
}

static void copy_block(copier *c, k_block *to, const k_block *from);

static void use(copier *c, k_value *v, k_stmt *s) {
  if (v) vec_push(c->to->arena, &v->uses, s);
}

static void copy_stmt(copier *c, k_block *to, const k_stmt *s) {
  arena *a = c->to->arena;
  k_stmt *n = arena_new(a, k_stmt, 1);
  *n = *s;
  n->parent = to;
  n->seq = c->to->next_seq++;
  n->in = arena_new(a, k_value *, s->nin + 1);
  n->out = arena_new(a, k_value *, s->nout + 1);
  if (s->code == K_GRID) {
    n->code = K_CONST;  // of a single cell all coordinates are 0
    n->i = 0;
  }
  for (int i = 0; i < s->nin; i++) use(c, n->in[i] = copied(c, s->in[i]), n);
  const k_access *x = &s->access;
  n->access.base = copied(c, x->base);
  n->access.offset = copied(c, x->offset);
  n->access.row_limit = copied(c, x->row_limit);
  n->access.col_limit = copied(c, x->col_limit);
  n->access.mask = copied(c, x->mask);
  k_value *const part[] = {n->access.base, n->access.offset, n->access.row_limit,
                           n->access.col_limit, n->access.mask};
  for (int i = 0; i < 5; i++) use(c, part[i], n);
  if (s->code == K_LOAD || s->code == K_STORE || s->code == K_STORE_ADD)
    n->access.buffer = c->buffer[x->buffer];
  vec_push(a, &to->stmts, n);
  for (int i = 0; i < 2; i++) {
    if (!s->body[i]) continue;
    n->body[i] = arena_new(a, k_block, 1);
    n->body[i]->owner = n;
    n->body[i]->parent = to;
    copy_block(c, n->body[i], s->body[i]);
  }
  for (int i = 0; i < s->nout; i++) {
    n->out[i] = copy_value(c, s->out[i], n, to);
  }
}

static void copy_block(copier *c, k_block *to, const k_block *from) {
  arena *a = c->to->arena;
  for (int i = 0; i < from->args.n; i++)
    vec_push(a, &to->args, copy_value(c, from->args.at[i], NULL, to));
  for (int i = 0; i < from->stmts.n; i++) copy_stmt(c, to, from->stmts.at[i]);
  for (int i = 0; i < from->yield.n; i++) {
    k_value *v = copied(c, from->yield.at[i]);
    vec_push(a, &to->yield, v);
    use(c, v, to->owner);
  }
}

void k_append(k_kernel *to, const k_kernel *from, const int *buffer) {
  IR_CHECK(k_cells(from) == 1 && to->at == to->body);
  copier c = {
      .to = to, .buffer = buffer, .value = arena_new(to->arena, k_value *, from->next_id + 1)};
  if (to->body->stmts.n) k_barrier(to);
  copy_block(&c, to->body, from->body);
  to->flops += from->flops;
  to->bytes += from->bytes;
  to->skip |= from->skip;
  if (!to->op) to->op = from->op;
}
