// Elementwise ops behind a matrix product, or behind the gradient of a norm, become part of its
// kernel.
//
// needs: LOCAL after `fuse` and `dead`. keeps: every result to the bit: the function sees the
// element that would have been stored, and gives what the ops behind would have. breaks: nothing;
// leaves dead products. Products that a library does (pass_options.by_library) stay as they are.
//
// The product takes the place of the elementwise op, so all that op reads is there. What others
// read of the product's own results stays a result (bias + activation: the sum is kept for the
// backward pass beside the activation), as long as nobody reads it between the two places.

#include <string.h>

#include "ir/rule.h"
#include "ir/view.h"
#include "passes/pass.h"

#define MAX_OPERANDS 16
#define MAX_RESULTS 4

// How often `user` reads `v`.
static int reads(const ir_op *user, const ir_value *v) {
  int n = 0;
  for (int k = 0; k < user->nin; k++) n += user->in[k] == v;
  return n;
}

// True when `op` may be done later, in front of op number `to` of `r`, where now it is followed by
// number `from`: nobody between reads its results, or writes into storage.
static bool may_wait(const ir_region *r, int from, int to, const ir_op *op) {
  for (int i = from; i < to; i++) {
    if (ir_updated(r->ops.at[i]) >= 0) return false;
    for (int k = 0; k < op->nout; k++)
      if (reads(r->ops.at[i], op->out[k])) return false;
  }
  return true;
}

static bool is_const(const ir_value *v) {
  double x;
  return pass_const_value(v, &x);
}

// Ops with an index that must not be cut (norms) have kernels that walk rows.
static bool walks_rows(ir_module *m, const ir_op *op) {
  ir_rule rule;
  ir_rule_of(m, op, &rule);
  for (int i = 0; i < rule.nwords; i++)
    if (rule.kind[i] == KIND_WHOLE) return true;
  return false;
}

// True when `user` may become part of `p`. What a kernel that walks rows reads besides must lie as
// they do, or be a number.
static bool carries(ir_module *m, const ir_op *p, const ir_op *user) {
  if (ir_epilogue_at(p) < 0 || ir_accumulates(p)) return false;
  bool rows = walks_rows(m, p);
  for (int k = 0; rows && k < user->nin; k++) {
    const ir_value *v = user->in[k];
    if (v->def != p && !is_const(v) && !pass_same_extents(v, user->out[0])) return false;
  }
  return true;
}

bool pass_may_carry(ir_module *m, const ir_op *p, const ir_op *user) {
  return pass_fusible(user) && !pass_draws(user) && p->segment == user->segment &&
         p->recompute == user->recompute &&  // what is run again is counted apart
         carries(m, p, user);
}

// True when operand k of op number `i` of `r` is a result of a product that may become part of that
// op; *at is the product's number.
static bool finds_product(ir_module *m, const pass_options *o, const ir_region *r, int i, int k,
                          int *at) {
  const ir_op *user = r->ops.at[i], *p = user->in[k]->def;
  if (!p || p->parent != r || !pass_may_carry(m, p, user)) return false;
  if (o->by_library && o->by_library(o->select_ctx, p)) return false;
  if (!pass_same_extents(user->in[k], user->out[0])) return false;
  for (*at = i; r->ops.at[*at] != p;) --*at;
  return may_wait(r, *at + 1, i, p);
}

typedef struct joined {
  ir_module *m;
  ir_value *in[MAX_OPERANDS];
  int n, from;  // operands; the first that is the function's
  ir_region *r;
  ir_value *result[MAX_RESULTS];
  int nresults;
} joined;

// The argument of the joint function for operand `v`, which may be there already.
static ir_value *operand(joined *j, ir_value *v) {
  for (int i = j->from; i < j->n; i++)
    if (j->in[i] == v) return j->r->args.at[1 + i - j->from];
  if (j->n == MAX_OPERANDS) return NULL;
  j->in[j->n++] = v;
  return ir_region_arg(j->r, ir_scalar(v->type.dtype), v->name);
}

static void copy_body(joined *j, ir_region *from, ir_value **yield) {
  ir_clone_ops(j->r, from);
  for (int k = 0; k < from->yield.n; k++) {
    ir_value *y = from->yield.at[k];
    yield[k] = y->mapped ? y->mapped : y;
  }
}

// Makes value `v` result number j->nresults of the joint op.
static bool add_result(joined *j, ir_value *v, ir_value *yield) {
  if (j->nresults == MAX_RESULTS) return false;
  j->result[j->nresults++] = v;
  vec_push(j->m->arena, &j->r->yield, yield);
  return true;
}

// A value of the same type in the place of one that now belongs to another op.
static ir_value *stand_in(ir_module *m, const ir_value *v) {
  ir_value *now = arena_new(m->arena, ir_value, 1);
  *now = *v;
  now->id = m->next_value++;
  now->mark = 0;
  return now;
}

static bool absorb(ir_module *m, ir_op *p, ir_op *user) {
  joined j = {.m = m, .r = ir_region_new(m, user)};
  j.from = j.n = ir_epilogue_at(p);
  memcpy(j.in, p->in, sizeof *j.in * (size_t)j.n);
  ir_value *acc = ir_region_arg(j.r, ir_scalar(p->out[0]->type.dtype), "acc");
  ir_value *of_product[MAX_RESULTS] = {acc}, *of_user[MAX_RESULTS];
  if (p->nregions) {
    ir_region *f = p->region[0];
    acc->type = f->args.at[0]->type;
    f->args.at[0]->mapped = acc;
    for (int k = j.from; k < p->nin; k++) {
      ir_value *arg = f->args.at[1 + k - j.from];
      arg->mapped = operand(&j, p->in[k]);
      if (!arg->mapped) return false;
    }
    copy_body(&j, f, of_product);
  }
  ir_region *u = pass_function_of(m, user);
  if (user->nout > MAX_RESULTS) return false;
  for (int k = 0; k < user->nin; k++) {
    ir_value *v = user->in[k];
    u->args.at[k]->mapped = v->def == p ? of_product[v->pos] : operand(&j, v);
    if (!u->args.at[k]->mapped) return false;
  }
  copy_body(&j, u, of_user);
  for (int k = 0; k < p->nout; k++)
    if (p->out[k]->mark > reads(user, p->out[k]) && !add_result(&j, p->out[k], of_product[k]))
      return false;
  for (int k = 0; k < user->nout; k++)
    if (!add_result(&j, user->out[k], of_user[k])) return false;

  // Counts of uses follow: the op reads each operand once; the old product reads nothing.
  for (int k = 0; k < p->nin; k++) p->in[k]->mark--;
  for (int k = 0; k < user->nin; k++) user->in[k]->mark--;
  for (int k = 0; k < j.n; k++) j.in[k]->mark++;
  user->code = p->code;
  user->nattrs = 0;
  for (int k = 0; k < p->nattrs; k++) ir_set_attr(m, user, p->attr[k]);
  user->nin = j.n;
  user->in = arena_new(m->arena, ir_value *, j.n);
  memcpy(user->in, j.in, sizeof *j.in * (size_t)j.n);
  user->region = arena_new(m->arena, ir_region *, 1);
  user->region[0] = j.r;
  user->nregions = 1;
  user->path = p->path ? p->path : user->path;
  for (int k = 0; k < p->nout; k++)
    for (int i = 0; i < j.nresults; i++)
      if (j.result[i] == p->out[k]) {
        p->out[k] = stand_in(m, p->out[k]);
        break;
      }
  user->nout = j.nresults;
  user->out = arena_new(m->arena, ir_value *, j.nresults);
  for (int i = 0; i < j.nresults; i++) {
    user->out[i] = j.result[i];
    user->out[i]->def = user;
    user->out[i]->pos = i;
  }
  return true;
}

// The region without the products that were taken over: their operands' counts are right already.
static void visit(ir_module *m, const pass_options *o, ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *user = r->ops.at[i];
    if (user->code == IR_repeat) visit(m, o, user->region[0]);
    int at;
    for (int k = 0; k < user->nin; k++) {
      if (!finds_product(m, o, r, i, k, &at) || !absorb(m, r->ops.at[at], user)) continue;
      pass_take_out(r, at);
      i--;
      break;
    }
  }
}

const char *pass_epilogue(ir_module *m, const pass_options *o) {
  for (int i = 0; i < m->funcs.n; i++) {
    pass_count_uses(m->funcs.at[i]->body);
    visit(m, o, m->funcs.at[i]->body);
  }
  return NULL;
}
