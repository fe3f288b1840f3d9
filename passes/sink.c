// Sums over micro-batches are made where their parts are.
//
// needs: LOCAL after `fuse`. keeps: every sum to the bit, for each still adds the same parts in the
// same order. breaks: nothing.
//
// `localise` puts an `accumulate` behind what makes a partial sum. Behind a repeat that would be
// one pass more over the gradients of all layers, and storage for them twice: the parts of this
// micro-batch and the sums. Here
//   - the sum of what a repeat stacks moves into its body: each layer adds its part to its slice;
//   - a matrix product that only such a sum reads adds to it as it writes (`accumulate=1`).
#include "ir/rule.h"
#include "passes/pass.h"

// Moves `acc`, the sum of result j of `loop`, into the body. The result becomes the sum.
static void into_body(ir_op *loop, int j, ir_op *acc) {
  ir_region *body = loop->region[0];
  ir_value *part = body->yield.at[j];
  ir_op *now = ir_op_raw(body, IR_accumulate, &part, 1, &part->type, 1);
  now->span = acc->span;
  now->out[0]->name = part->name;
  now->out[0]->mark = 1;
  body->yield.at[j] = now->out[0];
  // Readers of the sum read the loop's result in its place, number and all.
  ir_value *sum = acc->out[0], *old = loop->out[j];
  acc->out[0] = old;
  old->def = acc;
  old->pos = 0;
  loop->out[j] = sum;
  sum->def = loop;
  sum->pos = j;
}

static bool made_stacked(const ir_region *r, const ir_op *acc) {
  const ir_value *v = acc->in[0];
  return v->def && v->def->code == IR_repeat && v->def->parent == r && v->mark == 1 &&
         v->def->segment == acc->segment && v->pos >= ir_attr_int(v->def, "carried", 0);
}

static bool made_by_product(const ir_region *r, const ir_op *acc) {
  const ir_value *v = acc->in[0];
  return v->def && ir_attr_allowed(v->def, "accumulate") && v->def->parent == r && v->mark == 1 &&
         v->def->segment == acc->segment && !v->def->nregions && ir_base(v->def) < 0;
}

static void visit(ir_module *m, ir_region *r) {
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code != IR_accumulate) continue;
    ir_value *v = op->in[0];
    if (made_stacked(r, op)) {
      into_body(v->def, v->pos, op);
      pass_take_out(r, i--);
    } else if (made_by_product(r, op)) {
      ir_op *product = v->def;
      ir_set_attr(m, product, ir_attr_i("accumulate", 1));
      ir_value *sum = op->out[0];
      op->out[0] = v;
      v->def = op;
      product->out[0] = sum;
      sum->def = product;
      pass_take_out(r, i--);
    }
  }
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->code == IR_repeat) visit(m, r->ops.at[i]->region[0]);
}

const char *pass_sink(ir_module *m, const pass_options *o) {
  (void)o;
  for (int i = 0; i < m->funcs.n; i++) {
    pass_count_uses(m->funcs.at[i]->body);
    visit(m, m->funcs.at[i]->body);
  }
  return NULL;
}
