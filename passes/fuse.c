// Elementwise chains become one map, one in front of a sum part of the sum, and a cast behind one a
// further result of it.
//
// needs: LOCAL. keeps: every result to the bit: a fused value is computed in the type it would have
// been stored in, and no kernel contracts or reassociates. breaks: nothing; leaves dead producers.
//
// A producer joins its consumer when both are elementwise over the same shape in one segment and
// nobody else reads it. That is enough for chains such as residual + dropout, activation gradients
// and optimizer arithmetic; what follows a matrix product is for `epilogue`. What makes one number
// of another, such as a count that is at least 1, is done by all who read it: a kernel takes
// longer.

#include <string.h>

#include "ir/expr.h"
#include "passes/pass.h"

#define MAX_OPERANDS 32
#define MAX_RESULTS 4

bool pass_fusible(const ir_op *op) {
  if (op->code == IR_map) return op->nregions == 1 || op->nregions == 2;
  return op->code == IR_cast || op->code == IR_dropout || ir_is_elementwise(op);
}

bool pass_draws(const ir_op *op) {
  if (op->code == IR_dropout) return true;
  for (int i = 0; i < op->nregions; i++)
    for (int j = 0; j < op->region[i]->ops.n; j++)
      if (pass_draws(op->region[i]->ops.at[j])) return true;
  return false;
}

ir_region *pass_function_of(ir_module *m, ir_op *op) {
  ir_dtype types[MAX_OPERANDS];
  for (int i = 0; i < op->nin; i++) types[i] = op->in[i]->type.dtype;
  if (ir_info(op->code)->cls == IR_CLASS_DEFINED) return ir_defined_region(m, op->code, types);
  ir_region *r = ir_region_new(m, NULL);
  ir_value *args[MAX_OPERANDS];
  for (int i = 0; i < op->nin; i++) args[i] = ir_region_arg(r, ir_scalar(types[i]), NULL);
  if (op->code == IR_map) {
    ir_region *from = op->region[0];
    for (int i = 0; i < op->nin; i++) from->args.at[i]->mapped = args[i];
    ir_clone_ops(r, from);
    for (int k = 0; k < from->yield.n; k++)
      vec_push(m->bodies, &r->yield, from->yield.at[k]->mapped);
    return r;
  }
  ir_type t = ir_scalar(op->out[0]->type.dtype);
  ir_op *one = ir_op_raw(r, op->code, args, op->nin, &t, 1);
  for (int i = 0; i < op->nattrs; i++) ir_set_attr(m, one, op->attr[i]);
  vec_push(m->bodies, &r->yield, one->out[0]);
  return r;
}

bool pass_same_extents(const ir_value *a, const ir_value *b) {
  if (a->type.rank != b->type.rank) return false;
  for (int d = 0; d < a->type.rank; d++)
    if (a->type.dim[d]->size != b->type.dim[d]->size) return false;
  return true;
}

// Operands of the two ops together; where[i] is the position of user operand i in the result, or
// -1 - k when it is the producer's result k.
static int join_operands(const ir_op *producer, const ir_op *user, ir_value **in, int *of_producer,
                         int *of_user) {
  int n = 0;
  for (int pass = 0; pass < 2; pass++) {
    const ir_op *op = pass ? user : producer;
    int *where = pass ? of_user : of_producer;
    for (int i = 0; i < op->nin; i++) {
      ir_value *v = op->in[i];
      if (pass && v->def == producer) {
        where[i] = -1 - v->pos;
        continue;
      }
      int k = 0;
      while (k < n && in[k] != v) k++;
      if (k == n) {
        if (n == MAX_OPERANDS) return -1;
        in[n++] = v;
      }
      where[i] = k;
    }
  }
  return n;
}

// The same to be copied from: a map's own.
static ir_region *read_function(ir_module *m, ir_op *op) {
  return op->code == IR_map ? op->region[0] : pass_function_of(m, op);
}

static bool absorb(ir_module *m, ir_op *producer, ir_op *user) {
  if (producer->nin > MAX_OPERANDS || user->nin > MAX_OPERANDS) return false;
  ir_value *in[MAX_OPERANDS];
  int of_producer[MAX_OPERANDS], of_user[MAX_OPERANDS];
  int n = join_operands(producer, user, in, of_producer, of_user);
  if (n < 0) return false;
  ir_region *p = read_function(m, producer), *u = read_function(m, user);
  ir_region *r = ir_region_new(m, user);
  for (int i = 0; i < n; i++) ir_region_arg(r, ir_scalar(in[i]->type.dtype), in[i]->name);
  for (int i = 0; i < producer->nin; i++) p->args.at[i]->mapped = r->args.at[of_producer[i]];
  ir_clone_ops(r, p);
  for (int i = 0; i < user->nin; i++) {
    ir_value *y = of_user[i] < 0 ? p->yield.at[-1 - of_user[i]] : NULL;
    u->args.at[i]->mapped = y ? (y->mapped ? y->mapped : y) : r->args.at[of_user[i]];
  }
  ir_clone_ops(r, u);
  for (int k = 0; k < u->yield.n; k++) vec_push(m->bodies, &r->yield, u->yield.at[k]->mapped);
  user->code = IR_map;
  user->nattrs = 0;
  user->nin = n;
  user->in = arena_new(m->bodies, ir_value *, n);
  memcpy(user->in, in, sizeof *in * (size_t)n);
  user->region = arena_new(m->bodies, ir_region *, 1);
  user->region[0] = r;
  user->nregions = 1;
  return true;
}

// The sum of a function of one value's elements reads that value and holds the function, so that
// the function's results need no memory.
static void absorb_in_sum(ir_module *m, ir_op *sum) {
  ir_op *p = sum->in[0]->def;
  if (sum->nregions || !p || p->parent != sum->parent || !pass_fusible(p) || p->nout != 1) return;
  if (pass_draws(p)) return;  // a sum's kernel has no positions to draw by
  if (p->out[0]->mark != 1 || p->segment != sum->segment) return;
  int at = -1;
  for (int i = 0; i < p->nin; i++) {
    double x;
    if (at < 0 && pass_same_extents(p->in[i], p->out[0]))
      at = i;
    else if (!pass_const_value(p->in[i], &x))
      return;
  }
  if (at < 0) return;
  ir_region *f = pass_function_of(m, p), *r = ir_region_new(m, sum);
  for (int i = 0; i < p->nin; i++) {
    double x = 0;
    if (i == at) {
      f->args.at[i]->mapped = ir_region_arg(r, ir_scalar(p->in[i]->type.dtype), p->in[i]->name);
      continue;
    }
    (void)pass_const_value(p->in[i], &x);
    ir_type t = ir_scalar(p->in[i]->type.dtype);
    ir_op *c = ir_op_raw(r, IR_const, NULL, 0, &t, 1);
    ir_set_attr(m, c, ir_attr_f("value", x));
    ir_set_attr(m, c, ir_attr_s("dtype", ir_dtype_name(t.dtype)));
    f->args.at[i]->mapped = c->out[0];
  }
  ir_clone_ops(r, f);
  ir_value *y = f->yield.at[0];
  vec_push(m->bodies, &r->yield, y->mapped ? y->mapped : y);
  sum->region = arena_new(m->bodies, ir_region *, 1);
  sum->region[0] = r;
  sum->nregions = 1;
  sum->in[0] = p->in[at];
  p->out[0]->mark = 0;
}

// One number, of one other number and constants.
static bool is_one_of_one(const ir_op *op) {
  int n = 0;
  double x;
  for (int i = 0; i < op->nin; i++) {
    if (ir_elements(&op->in[i]->type) != 1) return false;
    n += !pass_const_value(op->in[i], &x);
  }
  return n == 1 && ir_elements(&op->out[0]->type) == 1;
}

static void fuse_region(ir_module *m, ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *user = r->ops.at[i];
    if (user->code == IR_repeat) fuse_region(m, user->region[0]);
    if (user->code == IR_sum) absorb_in_sum(m, user);
    if (!pass_fusible(user)) continue;
    for (int k = 0; k < user->nin; k++) {
      ir_op *p = user->in[k]->def;
      if (!p || p->parent != r || p == user || !pass_fusible(p) || p->nout != 1) continue;
      if (!pass_same_extents(p->out[0], user->out[0])) continue;
      int uses = 0;
      for (int j = 0; j < user->nin; j++) uses += user->in[j] == p->out[0];
      bool last = p->out[0]->mark == uses && p->segment == user->segment;
      if (!last && !is_one_of_one(p)) continue;
      if (!absorb(m, p, user)) continue;
      p->out[0]->mark -= uses;
      for (int j = 0; j < p->nin && p->out[0]->mark; j++) p->in[j]->mark++;
      k = -1;  // the operands are new: look again
    }
  }
}

// A cast of what others read too is a further result of the op that makes it, which then stores
// both: nobody reads the value again to round it. Casts that their only reader could absorb are
// gone by now.
static void absorb_cast(ir_module *m, ir_op *cast) {
  ir_value *v = cast->in[0];
  ir_op *p = v->def;
  if (!p || p->parent != cast->parent || !pass_fusible(p) || p->segment != cast->segment) return;
  if (p->nin > MAX_OPERANDS || p->nout == MAX_RESULTS) return;
  ir_region *r = pass_function_of(m, p);
  r->owner = p;
  vec_push(m->bodies, &r->yield, pass_cast(m, r, r->yield.at[v->pos], cast->out[0]->type.dtype));
  ir_value **out = arena_new(m->bodies, ir_value *, p->nout + 1);
  memcpy(out, p->out, sizeof *out * (size_t)p->nout);
  out[p->nout] = cast->out[0];
  out[p->nout]->def = p;
  out[p->nout]->pos = p->nout;
  p->out = out;
  p->nout++;
  if (p->code != IR_map) p->nattrs = 0;
  p->code = IR_map;
  p->region = arena_new(m->bodies, ir_region *, 1);
  p->region[0] = r;
  p->nregions = 1;
  v->mark--;
  pass_take_out(p->parent, pass_number_of(cast));
}

static void absorb_casts(ir_module *m, ir_region *r) {
  for (int i = r->ops.n - 1; i >= 0; i--) {
    if (r->ops.at[i]->code == IR_repeat) absorb_casts(m, r->ops.at[i]->region[0]);
    if (r->ops.at[i]->code == IR_cast) absorb_cast(m, r->ops.at[i]);
  }
}

const char *pass_fuse(ir_module *m, const pass_options *o) {
  (void)o;
  for (int i = 0; i < m->funcs.n; i++) {
    pass_count_uses(m->funcs.at[i]->body);
    fuse_region(m, m->funcs.at[i]->body);
    absorb_casts(m, m->funcs.at[i]->body);
  }
  return NULL;
}
