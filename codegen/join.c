// Choice `joins`: an op that makes a few numbers of what the one before it made, such as what is
// done to a loss or to a sum of squares, becomes part of its launch, if both are one cell. On a GPU
// a launch takes longer than such an op. (Ops that do not need each other are left alone: chains of
// them would be many functions of no use to anybody else.)
//
// The joint kernel does what the kernels did, in their order, with barriers between: what the one
// writes the next one reads, and where layout put a result on an operand that was read for the last
// time, that holds as before.
#include "codegen/join.h"

#include <string.h>

// More operands or statements are work that deserves a launch.
enum { MOST_OPERANDS = CG_MAX_OPERANDS, MOST_STATEMENTS = 300, MOST_ELEMENTS = 64 };

// What a kernel's layouts depend on besides its tiles' shapes (codegen/cuda_layout.c).
typedef struct traits {
  int most;  // elements of the largest tile
  bool dots, reduces, narrow;
} traits;

static void look(const k_kernel *k, const k_block *b, traits *t) {
  for (int i = 0; i < b->stmts.n; i++) {
    const k_stmt *s = b->stmts.at[i];
    for (int j = 0; j < s->nout; j++)
      if (s->out[j]->rows * s->out[j]->cols > t->most) t->most = s->out[j]->rows * s->out[j]->cols;
    t->dots |= s->code == K_DOT;
    t->reduces |= s->code == K_REDUCE;
    if (s->code == K_LOAD || s->code == K_STORE)
      t->narrow |= ir_dtype_bytes(k->buffer[s->access.buffer].dtype) <= 2;
    for (int j = 0; j < 2; j++)
      if (s->body[j]) look(k, s->body[j], t);
  }
}

// A sum's bits depend on its layout: in company it must have the one that it has alone, so that it
// makes no difference whether something stands between two ops.
static bool keeps_bits(const k_kernel *x, const k_kernel *y) {
  traits a = {0}, b = {0};
  look(x, x->body, &a);
  look(y, y->body, &b);
  if (a.dots || b.dots) return false;
  if (a.narrow != b.narrow && (a.reduces || b.reduces)) return false;
  return (!a.reduces || b.most <= a.most) && (!b.reduces || a.most <= b.most);
}

static const cg_launch *last_of(const sched_instr *in) {
  const cg_launches *l = in->launches;
  return l && l->l.n ? &l->l.at[l->l.n - 1] : NULL;
}

static bool is_small(const cg_launch *l) {
  return l && l->kernel && !l->gemm && k_cells(l->kernel) == 1 && l->n <= MOST_OPERANDS &&
         l->kernel->next_seq <= MOST_STATEMENTS;
}

// Does it read what `first` writes, and write little?
static bool goes_on(const cg_launch *first, const cg_launch *next) {
  bool reads = false, little = true;
  for (int i = 0; i < next->n; i++) {
    const cg_operand *o = &next->operand[i];
    if (o->write) little &= o->root && ir_elements(&o->root->type) <= MOST_ELEMENTS;
    for (int k = 0; k < first->n && o->read; k++)
      reads |= o->root && first->operand[k].write && first->operand[k].root == o->root;
  }
  return reads && little;
}

// The whole of an op, without scratch of its own; not one that writes a part of what was there.
static bool can_follow(const cg_launch *first, const sched_instr *in) {
  const cg_launches *l = in->launches;
  return l && l->l.n == 1 && l->scratch.n == 0 && ir_updated(in->op) < 0 && is_small(&l->l.at[0]) &&
         is_small(first) && goes_on(first, &l->l.at[0]);
}

// Adds the operands of `from` to those of `to`; buffer[i] is where operand i is then. False: too
// many.
static bool unite(cg_launch *to, const cg_launch *from, int *buffer) {
  for (int i = 0; i < from->n; i++) {
    const cg_operand *o = &from->operand[i];
    int at = 0;
    while (at < to->n && (!o->root || to->operand[at].root != o->root)) at++;
    if (at == to->n) {
      if (to->n == MOST_OPERANDS) return false;
      to->operand[to->n++] = *o;
    } else {
      to->operand[at].read |= o->read;
      to->operand[at].write |= o->write;
    }
    buffer[i] = at;
  }
  return true;
}

static void give_buffers(k_kernel *k, const cg_launch *l, const k_kernel *from, const int *buffer) {
  for (int i = 0; i < from->nbuffers; i++)
    if (buffer[i] == k->nbuffers) {
      k_buffer(k, arena_printf(k->arena, "b%d", buffer[i]), from->buffer[i].dtype, 0);
      k->buffer[buffer[i]].align = from->buffer[i].align;
    }
  for (int i = 0; i < k->nbuffers; i++)
    k->buffer[i].use = (l->operand[i].read ? K_READ : 0) | (l->operand[i].write ? K_WRITE : 0);
}

// Is a buffer they share of one type for both? A copy, for one, moves whole numbers as reals.
static bool same_types(const k_kernel *first, const k_kernel *next, const int *buffer) {
  for (int i = 0; i < next->nbuffers; i++) {
    ir_dtype t = next->buffer[i].dtype;
    if (buffer[i] < first->nbuffers && first->buffer[buffer[i]].dtype != t) return false;
    for (int j = 0; j < i; j++)
      if (buffer[i] == buffer[j] && next->buffer[j].dtype != t) return false;
  }
  return true;
}

static const char *joint_name(arena *a, const k_kernel *x, const k_kernel *y) {
  if (strlen(x->name) > 40) return x->name;
  return arena_printf(a, "%s_%s", x->name, y->name);
}

// Launch `next` behind `first`, or NULL.
static const cg_launch *joined(cg_context *cg, const cg_launch *first, const cg_launch *next,
                               const ir_op *op) {
  if (first->nalso == CG_MAX_ALSO || !keeps_bits(first->kernel, next->kernel)) return NULL;
  if (first->kernel->next_seq + next->kernel->next_seq > MOST_STATEMENTS) return NULL;
  arena *a = cg_arena(cg);
  cg_launch *l = arena_new(a, cg_launch, 1);
  int of_first[CG_MAX_OPERANDS], of_next[CG_MAX_OPERANDS];
  *l = *first;
  for (int i = 0; i < first->n; i++) of_first[i] = i;
  if (!unite(l, next, of_next) || !same_types(first->kernel, next->kernel, of_next)) return NULL;
  k_kernel *k = k_new(a, joint_name(a, first->kernel, next->kernel));
  give_buffers(k, l, first->kernel, of_first);
  give_buffers(k, l, next->kernel, of_next);
  k_append(k, first->kernel, of_first);
  k_append(k, next->kernel, of_next);
  k_finish(k);
  l->kernel = cg_shared(cg, k);
  l->also[l->nalso++] = op;
  return l;
}

static void join_task(cg_context *cg, sched_task *t) {
  sched_instr *first = NULL;
  for (int i = 0; i < t->instrs.n; i++) {
    sched_instr *in = &t->instrs.at[i];
    const cg_launches *l = in->launches;
    if (in->code == SCHED_OP && l && l->l.n == 0) continue;  // it launches nothing: a view
    const cg_launch *both = NULL;
    if (first && in->code == SCHED_OP && can_follow(last_of(first), in) &&
        first->op->recompute == in->op->recompute)
      both = joined(cg, last_of(first), last_of(in), in->op);
    if (both) {
      cg_launches *of = first->launches, *none = in->launches;
      of->l.at[of->l.n - 1] = *both;
      none->l.n = 0;
    } else {
      first = in->code == SCHED_OP && is_small(last_of(in)) ? in : NULL;
    }
  }
}

void cg_join(cg_context *cg, sched *s) {
  for (int t = 0; t < s->tasks.n; t++) join_task(cg, &s->tasks.at[t]);
  // What is launched now; others are not compiled.
  cg_forget_kernels(cg);
  for (int t = 0; t < s->tasks.n; t++)
    for (int i = 0; i < s->tasks.at[t].instrs.n; i++) {
      const cg_launches *l = s->tasks.at[t].instrs.at[i].launches;
      for (int k = 0; l && k < l->l.n; k++)
        if (l->l.at[k].kernel) cg_shared(cg, l->l.at[k].kernel);
    }
}
