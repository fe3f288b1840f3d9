// Streams: a value too large to be held, the ops that make it and those that read it run in chunks
// of its leading dims, so that only a chunk of it is ever there. The logits of a language model are
// the case at hand: head, loss and both their gradients go chunk by chunk.
//
// needs: LOCAL. keeps: every value to the bit: a sum over the rows (the head's weight gradient)
// goes on in each chunk from where the last one left it. breaks: nothing; the ops are in the body
// of a `repeat` with stream=1 afterwards.
//
//   %logits[4, 256, 50257] = einsum(%x, %w)              %nll, %dx, %dw = repeat(0, %x, %targets,
//   %w) %nll, %lse = nll(%logits, %targets)           =>       region(i, %sum, %xc, %tc, %w) %g =
//   nll_grad(c, %logits, %targets, %lse)                %lc[1, 256, 50257] = einsum(%xc, %w) %dx =
//   einsum(%g, %w);  %dw = einsum(%g, %x)              ...  %dwc = einsum(%gc, %xc, %sum)
//                                                            yield %dwc, %nllc, %dxc
//
// The ops of a stream are found from the large value: whoever reads it, and whoever reads what is
// as large in its turn. Every value among them must have the cut dims in front (it is cut with
// them), or not at all (it stays whole; a result is then a sum over the chunks). Where one does
// not, or an op outside depends on the stream and the stream on it, the value is made at once as
// before.

#include <string.h>

#include "ir/rule.h"
#include "ir/view.h"
#include "passes/pass.h"

typedef enum part { PART_WHOLE, PART_CUT, PART_NEITHER } part;

typedef struct cut {
  ir_module *m;
  ir_region *r;
  int64_t limit;
  const ir_value *large;
  int dims;  // leading dims of `large` that are cut
  ir_index *outer[IR_MAX_RANK], *inner[IR_MAX_RANK];
  int64_t count;
  bool *in;  // by number in r: belongs to the stream
  int first, last;
} cut;

// ---- where to cut -------------------------------------------------------------------------------

// Fewest chunks of at most `limit` bytes; the last dim stays whole. False when there is no need.
static bool choose(cut *c) {
  const ir_type *t = &c->large->type;
  int64_t bytes = ir_bytes(t);
  c->count = 1;
  for (int d = 0; d + 1 < t->rank && bytes > c->limit; d++) {
    int64_t n = t->dim[d]->size, k = 1;
    while (k < n && (n % k || bytes / k > c->limit)) k++;
    c->outer[d] = t->dim[d];
    c->inner[d] = ir_index_new(c->m, ir_root(t->dim[d])->name, n / k);
    c->dims = d + 1;
    c->count *= k;
    bytes /= k;
  }
  return c->count > 1;
}

static part part_of(const cut *c, const ir_type *t) {
  bool front = t->rank >= c->dims, any = false;
  for (int d = 0; d < t->rank; d++)
    for (int i = 0; i < c->dims; i++) {
      if (c->outer[i]->size == 1) continue;
      bool same = ir_index_same(t->dim[d], c->outer[i]);
      any |= same;
      if (d == i && !same) front = false;
    }
  return front && any ? PART_CUT : any ? PART_NEITHER : PART_WHOLE;
}

static ir_type chunk_type(const cut *c, ir_type t) {
  if (part_of(c, &t) == PART_CUT)
    for (int d = 0; d < c->dims; d++) t.dim[d] = c->inner[d];
  return t;
}

// ---- what belongs to it -------------------------------------------------------------------------

// True when the op table says that the leading dims of operand `k` may be cut: every position by
// itself, or sums over them.
static bool cuts_in_front(const cut *c, const ir_rule *rule, int k) {
  if (rule->broadcast) return true;
  if (rule->raw || k >= rule->nin) return false;
  for (int d = 0; d < c->dims; d++) {
    const ir_rule_dim *dim = &rule->in[k].dim[d];
    if (d >= rule->in[k].n || dim->nwords != 1) return false;
    ir_kind kind = rule->kind[dim->word[0]];
    if (kind != KIND_PARALLEL && kind != KIND_SUM) return false;
    if (dim->ellipsis) return true;
  }
  return true;
}

static bool may_stream(const cut *c, const ir_op *op) {
  if (pass_draws(op)) return false;  // by the position in the whole sample
  if (ir_is_elementwise(op) ? !pass_fusible(op) : op->nregions > 0) return false;
  ir_rule rule;
  ir_rule_of(c->m, op, &rule);
  bool some = false;
  for (int k = 0; k < op->nin; k++) {
    part p = part_of(c, &op->in[k]->type);
    if (p == PART_NEITHER || (p == PART_CUT && !cuts_in_front(c, &rule, k))) return false;
    some |= p == PART_CUT;
  }
  for (int k = 0; k < op->nout; k++) {
    part p = part_of(c, &op->out[k]->type);
    // A sum over the rows must be able to go on where the last chunk's ended.
    bool sum = ir_attr_allowed(op, "base") && ir_is_product(op);
    if (p == PART_NEITHER || (p == PART_WHOLE && !sum)) return false;
  }
  return some && op->segment == c->large->def->segment;
}

static bool reads(const ir_op *op, const ir_value *v) {
  for (int k = 0; k < op->nin; k++)
    if (op->in[k] == v) return true;
  return false;
}

// As large as the value for which the stream is made. Smaller ones leave it whole.
static bool is_large(const cut *c, const ir_value *v) {
  return ir_elements(&v->type) >= ir_elements(&c->large->type) && part_of(c, &v->type) == PART_CUT;
}

// One pass is enough: readers stand behind what they read.
static bool collect(cut *c) {
  for (int i = 0; i < c->r->ops.n; i++) {
    ir_op *op = c->r->ops.at[i];
    if (op != c->large->def && !c->in[i]) continue;
    if (!may_stream(c, op)) return false;
    if (c->first < 0) c->first = i;
    c->in[i] = true;
    c->last = i;
    for (int k = 0; k < op->nout; k++)
      for (int j = i + 1; is_large(c, op->out[k]) && j < c->r->ops.n; j++)
        if (reads(c->r->ops.at[j], op->out[k])) c->in[j] = true;
  }
  return true;
}

// behind[i]: op i, not of the stream, depends on it. False when the stream depends on such an op.
static bool order(const cut *c, bool *behind) {
  for (int i = 0; i < c->r->ops.n; i++) c->r->ops.at[i]->mark = c->in[i] ? 1 : 0;
  for (int i = c->first; i <= c->last; i++) {
    ir_op *op = c->r->ops.at[i];
    bool after_stream = false, after_behind = false;
    for (int k = 0; k < op->nin; k++) {
      int mark = op->in[k]->def ? op->in[k]->def->mark : 0;
      after_stream |= mark != 0;
      after_behind |= mark == 2;
    }
    if (c->in[i] && after_behind) return false;
    if (c->in[i] || !after_stream) continue;
    if (ir_updated(op) >= 0) return false;  // it would have to stay where it is
    behind[i] = true;
    op->mark = 2;
  }
  return true;
}

// ---- the body -----------------------------------------------------------------------------------

typedef struct build {
  cut *c;
  ir_region *body;
  VEC(ir_value *) sums, stacked, invariants;  // what goes in; a sum by what it becomes
  VEC(ir_value *) sum_arg, stacked_arg, whole_arg;
  VEC(ir_value *) out;  // values that leave in chunks
} build;

// `v`, not of the stream, as the body sees it. Views of what is whole are made inside: they cost
// nothing there, and a stream's operands must not be views.
static ir_value *operand(build *b, ir_value *v) {
  if (v->mapped) return v->mapped;
  arena *a = b->c->m->bodies;
  ir_op *def = v->def;
  bool is_cut = part_of(b->c, &v->type) == PART_CUT;
  bool inside =
      def && (def->code == IR_const || (ir_is_view(def) && (!is_cut || def->code == IR_broadcast) &&
                                        part_of(b->c, &def->in[0]->type) == PART_WHOLE));
  if (inside) {
    for (int k = 0; k < def->nin; k++) (void)operand(b, def->in[k]);
    ir_op *now = ir_clone_op(b->body, def);
    for (int k = 0; k < now->nout; k++) now->out[k]->type = chunk_type(b->c, now->out[k]->type);
    return v->mapped;
  }
  v->mapped = ir_region_arg(b->body, chunk_type(b->c, v->type), v->name);
  if (is_cut) {
    vec_push(a, &b->stacked, v);
    vec_push(a, &b->stacked_arg, v->mapped);
  } else {
    vec_push(a, &b->invariants, v);
    vec_push(a, &b->whole_arg, v->mapped);
  }
  return v->mapped;
}

static bool leaves(const cut *c, const ir_value *v) {
  for (int i = c->first; i < c->r->ops.n; i++)
    if (!c->in[i] && reads(c->r->ops.at[i], v)) return true;
  return false;
}

static void fill(build *b) {
  cut *c = b->c;
  arena *a = c->m->bodies;
  for (int i = c->first; i <= c->last; i++) {
    ir_op *op = c->r->ops.at[i];
    if (!c->in[i]) continue;
    for (int k = 0; k < op->nin; k++) (void)operand(b, op->in[k]);
    ir_op *now = ir_clone_op(b->body, op);
    for (int k = 0; k < now->nout; k++) {
      ir_value *v = op->out[k], *y = now->out[k];
      bool is_cut = part_of(c, &v->type) == PART_CUT;
      y->type = chunk_type(c, v->type);
      y->place = NULL;
      if (is_cut && leaves(c, v)) vec_push(a, &b->out, v);
      if (is_cut) continue;
      ir_value *sum = ir_region_arg(b->body, v->type, "sum"), **in = arena_new(a, ir_value *, 3);
      in[0] = now->in[0], in[1] = now->in[1], in[2] = sum;
      now->in = in;
      now->nin = 3;
      ir_set_attr(c->m, now, ir_attr_i("base", 1));
      vec_push(a, &b->sums, v);
      vec_push(a, &b->sum_arg, sum);
    }
  }
}

static ir_op *zeros_like(ir_region *r, const ir_op *near, const ir_type *t) {
  ir_op *op = ir_op_raw(r, IR_zeros, NULL, 0, t, 1);
  op->segment = near->segment;
  op->span = near->span;
  return op;
}

static void put_args(build *b, ir_value *chunk) {
  ir_region *r = b->body;
  r->args.n = 0;
  arena *a = b->c->m->bodies;
  vec_push(a, &r->args, chunk);
  for (int i = 0; i < b->sum_arg.n; i++) vec_push(a, &r->args, b->sum_arg.at[i]);
  for (int i = 0; i < b->stacked_arg.n; i++) vec_push(a, &r->args, b->stacked_arg.at[i]);
  for (int i = 0; i < b->whole_arg.n; i++) vec_push(a, &r->args, b->whole_arg.at[i]);
  for (int i = 0; i < r->args.n; i++) r->args.at[i]->pos = i;
}

// Puts the repeat in the place of its ops; `behind` follow it.
static void replace(cut *c, const bool *behind) {
  ir_module *m = c->m;
  ir_region *r = c->r;
  const ir_op *large = c->large->def;
  pass_clear_mapped(r);
  build b = {.c = c, .body = ir_region_new(m, NULL)};
  ir_value *chunk = ir_region_arg(b.body, ir_scalar(DT_i32), "chunk");
  fill(&b);
  put_args(&b, chunk);

  int n = r->ops.n;
  ir_op **old = arena_new(m->bodies, ir_op *, n);
  memcpy(old, r->ops.at, sizeof *old * (size_t)n);
  r->ops.n = 0;
  for (int i = 0; i <= c->last; i++)
    if (!c->in[i] && !behind[i]) vec_push(m->bodies, &r->ops, old[i]);
  VEC(ir_value *) in = {0}, out = {0};
  for (int i = 0; i < b.sums.n; i++) {
    vec_push(m->bodies, &in, zeros_like(r, large, &b.sums.at[i]->type)->out[0]);
    vec_push(m->bodies, &out, b.sums.at[i]);
  }
  for (int i = 0; i < b.stacked.n; i++) vec_push(m->bodies, &in, b.stacked.at[i]);
  for (int i = 0; i < b.invariants.n; i++) vec_push(m->bodies, &in, b.invariants.at[i]);
  for (int i = 0; i < b.out.n; i++) vec_push(m->bodies, &out, b.out.at[i]);
  ir_type *types = arena_new(m->bodies, ir_type, out.n + 1);
  for (int i = 0; i < out.n; i++) {
    types[i] = out.at[i]->type;
    vec_push(m->bodies, &b.body->yield, out.at[i]->mapped);
  }
  ir_op *op = ir_op_raw(r, IR_repeat, in.at, in.n, types, out.n);
  op->region = arena_new(m->bodies, ir_region *, 1);
  op->region[0] = b.body;
  op->nregions = 1;
  b.body->owner = op;
  op->segment = large->segment;
  op->span = large->span;
  op->path = large->path;
  ir_set_attr(m, op, ir_attr_i("count", c->count));
  ir_set_attr(m, op, ir_attr_i("carried", b.sums.n));
  ir_set_attr(m, op, ir_attr_i("stacked", b.stacked.n));
  ir_set_attr(m, op, ir_attr_i("reverse", 0));
  ir_set_attr(m, op, ir_attr_i("stream", 1));
  ir_set_attr(m, op, ir_attr_s("name", large->path ? large->path : "stream"));
  for (int i = 0; i < out.n; i++) {
    op->out[i] = out.at[i];
    op->out[i]->def = op;
    op->out[i]->pos = i;
  }
  for (int i = 0; i < n; i++)
    if (!c->in[i] && (behind[i] || i > c->last)) vec_push(m->bodies, &r->ops, old[i]);
}

static void stream_func(ir_module *m, ir_func *f, int64_t limit) {
  ir_region *r = f->body;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (!ir_is_product(op) || op->nout != 1 || ir_bytes(&op->out[0]->type) <= limit) continue;
    cut c = {.m = m, .r = r, .limit = limit, .large = op->out[0], .first = -1};
    c.in = arena_new(m->bodies, bool, r->ops.n);
    bool *behind = arena_new(m->bodies, bool, r->ops.n);
    if (choose(&c) && collect(&c) && order(&c, behind)) replace(&c, behind);
  }
}

const char *pass_stream(ir_module *m, const pass_options *o) {
  if (o->stream <= 0) return NULL;
  for (int i = 0; i < m->funcs.n; i++) {
    ir_func *f = m->funcs.at[i];
    if (f->kind == ENTRY_TRAIN || f->kind == ENTRY_EVAL) stream_func(m, f, o->stream);
  }
  return NULL;
}
