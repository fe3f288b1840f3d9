// Removes ops whose results nobody uses.
//
// needs: nothing. keeps: everything else. breaks: nothing.
// Ops with effects (set, output) stay; a repeat loses carried and stacked results, operands and
// arguments that became useless.

#include <string.h>

#include "passes/pass.h"

static bool has_effect(const ir_op *op) { return op->code == IR_set || op->code == IR_output; }

static void drop(void *vec_at, int *n, int i, size_t size) {
  char *at = vec_at;
  memmove(at + (size_t)i * size, at + (size_t)(i + 1) * size, (size_t)(*n - i - 1) * size);
  (*n)--;
}

static void drop_value(ir_value **at, int *n, int i) { drop(at, n, i, sizeof *at); }

static void renumber(ir_value **at, int n) {
  for (int i = 0; i < n; i++) at[i]->pos = i;
}

// Trims one repeat; value->mark holds use counts. Returns true when anything went.
static bool trim_repeat(ir_module *m, ir_op *op) {
  bool any = false;
  ir_region *body = op->region[0];
  int carried = (int)ir_attr_int(op, "carried", 0), stacked = (int)ir_attr_int(op, "stacked", 0);
  int accum = (int)ir_attr_int(op, "accum", 0);
  // Stacked results nobody reads.
  for (int k = op->nout - 1; k >= carried; k--) {
    if (op->out[k]->mark) continue;
    drop_value(op->out, &op->nout, k);
    drop_value(body->yield.at, &body->yield.n, k);
    any = true;
  }
  // Carried values that nobody reads: not after the loop, and in the body only to carry itself on.
  for (int k = carried - 1; k >= 0; k--) {
    ir_value *arg = body->args.at[1 + k];
    bool only_itself = arg->mark == 0 || (arg->mark == 1 && body->yield.at[k] == arg);
    if (op->out[k]->mark || !only_itself) continue;
    drop_value(op->out, &op->nout, k);
    drop_value(op->in, &op->nin, k);
    drop_value(body->yield.at, &body->yield.n, k);
    drop_value(body->args.at, &body->args.n, 1 + k);
    if (k >= carried - accum) accum--;
    carried--;
    any = true;
  }
  // Slices and invariants the body does not read.
  for (int k = op->nin - 1; k >= carried; k--) {
    if (body->args.at[1 + k]->mark) continue;
    drop_value(op->in, &op->nin, k);
    drop_value(body->args.at, &body->args.n, 1 + k);
    if (k < carried + stacked) stacked--;
    any = true;
  }
  if (any) {
    ir_set_attr(m, op, ir_attr_i("carried", carried));
    ir_set_attr(m, op, ir_attr_i("stacked", stacked));
    if (ir_get_attr(op, "accum")) ir_set_attr(m, op, ir_attr_i("accum", accum));
    renumber(op->out, op->nout);
    renumber(body->args.at, body->args.n);
  }
  return any;
}

static bool sweep(ir_module *m, ir_region *r) {
  bool any = false;
  int kept = 0;
  bool *live = arena_new(m->arena, bool, r->ops.n + 1);
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    bool used = has_effect(op);
    for (int k = 0; k < op->nout; k++) used |= op->out[k]->mark > 0;
    live[i] = used;
  }
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (!live[i]) {
      any = true;
      continue;
    }
    if (op->code == IR_repeat) {
      any |= trim_repeat(m, op);
      any |= sweep(m, op->region[0]);
    }
    r->ops.at[kept++] = op;
  }
  r->ops.n = kept;
  return any;
}

const char *pass_dead(ir_module *m, const pass_options *o) {
  (void)o;
  for (int i = 0; i < m->funcs.n; i++) {
    ir_region *body = m->funcs.at[i]->body;
    do pass_count_uses(body);
    while (sweep(m, body));
  }
  return NULL;
}
