// Backward makes values again that forward would have saved for it.
//
// needs: LOCAL after `fuse` and `dead`: no op without a reader, and nothing may fuse afterwards.
// keeps: every result to the bit. breaks: nothing; `dead` must follow, which takes away the stacks
// that nobody reads any more.
//
// For a forward repeat F, differentiation made a repeat B that runs from the last layer to the
// first and reads stacks that F saves. Dropping a stack means: in B's body, in front of the first
// op that needs the value, stand clones of the ops that make it, whole and with their attributes,
// so that they become the same kernels over the same operands. Their operands are, in this order,
//   - slices of stacks that F saves (still),
//   - weights and invariants of F, which become operands of B where they are not,
//   - what enters the layer: F's carried argument. If F does not save it, it does now. (Layout
//     makes the ring of a carried value its stack, so where it is saved already it costs nothing.)
//   - results of other clones.
// Random draws are the same: they are keyed by the op's attributes, the number of the layer, which
// both loops give alike (first, step), and the sample. Ops with several results are cloned once.
// Clones carry ir_op.recompute: they are no work of the model (ir/cost.h).
//
// The pass stands before `legalise`, because a saved view or a value saved twice is no copy yet:
// what is dropped here is never copied. It is one task per body with marked instructions, not a
// task of a phase `recompute` of its own, because a task is run for a range of layers, and what is
// made again for a layer is read by that layer's backward and gone before the next.
//
// Which stacks: passes/recompute.h, over the ops that make stacks and those they need. Sizes are
// those of one micro-batch, which is all that is saved at a time; work is ir_op_work of all layers.

#include "passes/recompute.h"

#include <string.h>

#include "ir/cost.h"
#include "ir/rule.h"
#include "ir/view.h"
#include "passes/pass.h"

// A forward repeat and its backward.
typedef struct pair {
  ir_op *fwd, *back;
  int carried, stacked;  // operands of fwd
  int64_t count;
  bool *droppable;  // by result of fwd: a stack that only `back` reads, made by an op of the body
  int *arg_item;    // by carried argument: the item "save it", or -1
  int *op_item;     // by op of the body: the item "run it again", or -1
  int first_item;   // its items follow each other
} pair;

typedef struct work {
  ir_module *m;
  arena *a;
  recompute_mode mode;
  int *stack_of;  // by id of a value of a forward body: 1 + the result that saves it, or 0
  VEC(pair) pairs;
  VEC(rc_item) items;
  int64_t before;  // bytes
  int stacks;
} work;

// ---- pairs --------------------------------------------------------------------------------------

// The repeat whose stacks `back` reads, or NULL.
static ir_op *forward_of(const ir_op *back) {
  int carried = (int)ir_attr_int(back, "carried", 0);
  int stacked = (int)ir_attr_int(back, "stacked", 0);
  for (int k = carried; k < carried + stacked; k++) {
    ir_op *f = back->in[k]->def;
    if (!f || f->code != IR_repeat || back->in[k]->pos < ir_attr_int(f, "carried", 0)) continue;
    bool mirrored = ir_attr_int(f, "reverse", 0) != ir_attr_int(back, "reverse", 0) &&
                    ir_attr_int(f, "count", 1) == ir_attr_int(back, "count", 1) &&
                    ir_attr_int(f, "first", 0) == ir_attr_int(back, "first", 0) &&
                    ir_attr_int(f, "step", 1) == ir_attr_int(back, "step", 1);
    if (mirrored && f->segment == back->segment) return f;
  }
  return NULL;
}

// Value->mark holds use counts.
static void add_pair(work *w, ir_op *fwd, ir_op *back) {
  pair p = {.fwd = fwd, .back = back, .count = ir_attr_int(fwd, "count", 1)};
  p.carried = (int)ir_attr_int(fwd, "carried", 0);
  p.stacked = (int)ir_attr_int(fwd, "stacked", 0);
  p.droppable = arena_new(w->a, bool, fwd->nout);
  const ir_region *body = fwd->region[0];
  int from = (int)ir_attr_int(back, "carried", 0);
  int to = from + (int)ir_attr_int(back, "stacked", 0);
  for (int j = p.carried; j < fwd->nout; j++) {
    int reads = 0;
    for (int k = from; k < to; k++) reads += back->in[k] == fwd->out[j];
    int *stack = &w->stack_of[body->yield.at[j]->id];
    if (reads || !*stack) *stack = j + 1;
    if (!reads) continue;
    w->before += ir_bytes(&fwd->out[j]->type);
    w->stacks++;
    p.droppable[j] = reads == fwd->out[j]->mark && body->yield.at[j]->def;
  }
  vec_push(w->a, &w->pairs, p);
}

// ---- items --------------------------------------------------------------------------------------

static bool saved(const work *w, const ir_value *v) { return w->stack_of[v->id] != 0; }

// A product of activations that makes more than it reads, such as the scores of attention written
// out: little work for each byte that need not be saved (arXiv 2205.05198, section 5).
static bool spreads(const work *w, const ir_op *op) {
  int64_t in = 0, out = 0;
  for (int k = 0; k < op->nin; k++) {
    if (w->m->batch && pass_batch_dim(w->m, op->in[k]) < 0) return false;
    in += ir_bytes(&op->in[k]->type);
  }
  for (int k = 0; k < op->nout; k++) out += ir_bytes(&op->out[k]->type);
  return w->m->batch && out > in;
}

static bool may_run_again(const work *w, const ir_op *op) {
  if (op->code == IR_repeat || ir_updated(op) >= 0) return false;
  return w->mode != RECOMPUTE_SELECTIVE || !ir_is_product(op) || spreads(w, op);
}

// Free of work and of bytes: a view or a constant whose results are not saved.
static bool is_free(const work *w, const ir_op *op) {
  if (op->code != IR_const && !ir_is_view(op)) return false;
  for (int k = 0; k < op->nout; k++)
    if (saved(w, op->out[k])) return false;
  return true;
}

// Whether backward can have `v`; op->mark says so of the ops of the body.
static bool within_reach(const work *w, const ir_value *v) {
  return !v->def || saved(w, v) || v->def->mark;
}

// Bytes of the stacks that go when op runs again.
static int64_t dropped_by(const pair *p, const ir_op *op) {
  int64_t n = 0;
  for (int j = p->carried; j < p->fwd->nout; j++)
    if (p->droppable[j] && p->fwd->region[0]->yield.at[j]->def == op)
      n += ir_bytes(&p->fwd->out[j]->type);
  return n;
}

// Calls itself through free ops; `wanted` is by op of the body, `arg` by carried argument.
static void want_operands(const work *w, const pair *p, const ir_op *op, const int *number,
                          bool *wanted, bool *arg) {
  for (int k = 0; k < op->nin; k++) {
    const ir_value *v = op->in[k];
    if (saved(w, v)) continue;
    if (!v->def) {
      if (v->pos >= 1 && v->pos <= p->carried) arg[v->pos - 1] = true;
    } else if (is_free(w, v->def)) {
      want_operands(w, p, v->def, number, wanted, arg);
    } else {
      wanted[number[v->id]] = true;
    }
  }
}

static void collect_needs(const work *w, const pair *p, const ir_op *op, const int *number,
                          int *needs, int *n) {
  for (int k = 0; k < op->nin; k++) {
    const ir_value *v = op->in[k];
    if (saved(w, v)) continue;
    int item = -1;
    if (v->def && is_free(w, v->def))
      collect_needs(w, p, v->def, number, needs, n);
    else if (v->def)
      item = p->op_item[number[v->id]];
    else if (v->pos >= 1 && v->pos <= p->carried)
      item = p->arg_item[v->pos - 1];
    for (int i = 0; i < *n; i++)
      if (needs[i] == item) item = -1;
    if (item >= 0) needs[(*n)++] = item;
  }
}

static void add_items(work *w, pair *p, int *number) {
  ir_region *body = p->fwd->region[0];
  int n = body->ops.n;
  bool *wanted = arena_new(w->a, bool, n + 1), *arg = arena_new(w->a, bool, p->carried + 1);
  p->op_item = arena_new(w->a, int, n + 1);
  p->arg_item = arena_new(w->a, int, p->carried + 1);
  for (int i = 0; i < n; i++) {
    ir_op *op = body->ops.at[i];
    for (int k = 0; k < op->nout; k++) number[op->out[k]->id] = i;
    op->mark = may_run_again(w, op);
    for (int k = 0; k < op->nin; k++) op->mark &= within_reach(w, op->in[k]);
  }
  for (int i = n - 1; i >= 0; i--) {
    const ir_op *op = body->ops.at[i];
    wanted[i] = op->mark && (wanted[i] || dropped_by(p, op));
    if (wanted[i]) want_operands(w, p, op, number, wanted, arg);
  }
  for (int k = 0; k < p->carried; k++) {
    p->arg_item[k] = -1;
    if (!arg[k]) continue;
    p->arg_item[k] = w->items.n;
    vec_push(w->a, &w->items, (rc_item){.bytes = p->count * ir_bytes(&body->args.at[1 + k]->type)});
  }
  for (int i = 0; i < n; i++) {
    const ir_op *op = body->ops.at[i];
    p->op_item[i] = -1;
    if (!wanted[i]) continue;
    int *needs = arena_new(w->a, int, n + p->carried + 1), nneeds = 0;
    collect_needs(w, p, op, number, needs, &nneeds);
    p->op_item[i] = w->items.n;
    vec_push(w->a, &w->items,
             (rc_item){.work = (double)p->count * ir_op_work(op),
                       .bytes = -dropped_by(p, op),
                       .needs = needs,
                       .nneeds = nneeds});
  }
}

// ---- the backward body --------------------------------------------------------------------------

typedef struct rewrite {
  work *w;
  pair *p;
  const rc_choice *choice;
  int nargs;              // arguments of back's body before the rewriting
  ir_value **made_again;  // by argument of back's body: the forward value to make in its place
  VEC(ir_value *) stacked, stacked_args, invariants, invariant_args;  // new operands
  VEC(ir_op *) ran;
} rewrite;

// The argument of back's body that shows operand `outer`, new when there is none; `v` is what it
// is in the forward body.
static ir_value *argument(rewrite *r, ir_value *outer, const ir_value *v, bool stack) {
  ir_op *back = r->p->back;
  ir_region *body = back->region[0];
  int from = (int)ir_attr_int(back, "carried", 0);
  int to = from + (int)ir_attr_int(back, "stacked", 0);
  for (int k = stack ? from : to; k < (stack ? to : back->nin); k++)
    if (back->in[k] == outer) return body->args.at[1 + k];
  ir_value *a = ir_region_arg(body, v->type, v->name);
  a->place = v->place;
  a->span = v->span;
  vec_push(r->w->a, stack ? &r->stacked : &r->invariants, outer);
  vec_push(r->w->a, stack ? &r->stacked_args : &r->invariant_args, a);
  return a;
}

static bool runs_again(const rewrite *r, const ir_op *op) {
  int item = r->p->op_item[op->mark];
  return item >= 0 && rc_taken(r->choice, item);
}

// The value `v` of the forward body as back's body has it; clones go to the end of that body.
static ir_value *have(rewrite *r, ir_value *v) {
  if (v->mapped) return v->mapped;
  const pair *p = r->p;
  ir_op *op = v->def;
  int stack = r->w->stack_of[v->id];
  if (stack && !(op && runs_again(r, op)))
    return v->mapped = argument(r, p->fwd->out[stack - 1], v, true);
  if (!op) {
    if (v->pos == 0) return v->mapped = p->back->region[0]->args.at[0];
    IR_CHECK(v->pos > p->carried);  // carried arguments are saved by now
    bool slice = v->pos <= p->carried + p->stacked;
    return v->mapped = argument(r, p->fwd->in[v->pos - 1], v, slice);
  }
  IR_CHECK(runs_again(r, op) || is_free(r->w, op));
  for (int k = 0; k < op->nin; k++) have(r, op->in[k]);
  ir_op *clone = ir_clone_op(p->back->region[0], op);
  clone->recompute = true;
  if (runs_again(r, op)) vec_push(r->w->a, &r->ran, clone);
  return v->mapped;
}

// Views cost nothing and wait for who reads them, so that clones stand where they are needed.
enum { PLACED, WAITING };

static ir_value *ready(rewrite *r, ir_value *v);

static void place_op(rewrite *r, ir_op *op) {
  op->mark = PLACED;
  for (int k = 0; k < op->nin; k++) op->in[k] = ready(r, op->in[k]);
  vec_push(r->w->m->arena, &r->p->back->region[0]->ops, op);
}

static ir_value *ready(rewrite *r, ir_value *v) {
  if (!v->def && v->pos < r->nargs && r->made_again[v->pos]) return have(r, r->made_again[v->pos]);
  if (v->def && v->def->mark == WAITING) place_op(r, v->def);
  return v;
}

// Puts the new operands behind the old ones of their kind.
static void add_operands(rewrite *r) {
  ir_module *m = r->w->m;
  ir_op *back = r->p->back;
  ir_region *body = back->region[0];
  int carried = (int)ir_attr_int(back, "carried", 0), old = back->nin;
  int stacked = (int)ir_attr_int(back, "stacked", 0), more = r->stacked.n;
  int n = old + more + r->invariants.n;
  ir_value **in = arena_new(m->arena, ir_value *, n + 1);
  ir_value **arg = arena_new(m->arena, ir_value *, n + 1);
  memcpy(in, back->in, sizeof *in * (size_t)(carried + stacked));
  memcpy(arg, body->args.at, sizeof *arg * (size_t)(1 + carried + stacked));
  int at = carried + stacked;
  for (int i = 0; i < more; i++, at++)
    in[at] = r->stacked.at[i], arg[1 + at] = r->stacked_args.at[i];
  for (int k = carried + stacked; k < old; k++, at++)
    in[at] = back->in[k], arg[1 + at] = body->args.at[1 + k];
  for (int i = 0; i < r->invariants.n; i++, at++)
    in[at] = r->invariants.at[i], arg[1 + at] = r->invariant_args.at[i];
  IR_CHECK(at == n && body->args.n == n + 1);
  back->in = in;
  back->nin = n;
  for (int i = 0; i <= n; i++) {
    body->args.at[i] = arg[i];
    arg[i]->pos = i;
  }
  ir_set_attr(m, back, ir_attr_i("stacked", stacked + more));
}

static void rewrite_pair(rewrite *r) {
  work *w = r->w;
  pair *p = r->p;
  ir_region *body = p->back->region[0], *forward = p->fwd->region[0];
  for (int k = 0; k < p->carried; k++) {
    if (p->arg_item[k] < 0 || !rc_taken(r->choice, p->arg_item[k])) continue;
    ir_value *arg = forward->args.at[1 + k];
    w->stack_of[arg->id] = p->fwd->nout + 1;
    pass_save(w->m, p->fwd, p->fwd->out[p->carried]->type.dim[0], arg);
  }
  pass_clear_mapped(forward);
  for (int i = 0; i < forward->ops.n; i++) forward->ops.at[i]->mark = i;
  r->nargs = body->args.n;
  r->made_again = arena_new(w->a, ir_value *, r->nargs);
  int from = (int)ir_attr_int(p->back, "carried", 0);
  int to = from + (int)ir_attr_int(p->back, "stacked", 0);
  for (int k = from; k < to; k++)
    for (int j = p->carried; j < p->fwd->nout; j++) {
      ir_value *v = forward->yield.at[j];
      bool read = p->back->in[k] == p->fwd->out[j];
      if (read && v->def && p->droppable[j] && runs_again(r, v->def)) r->made_again[1 + k] = v;
    }
  int n = body->ops.n;
  ir_op **old = arena_new(w->a, ir_op *, n + 1);
  memcpy(old, body->ops.at, sizeof *old * (size_t)n);
  body->ops.n = 0;
  for (int i = 0; i < n; i++) old[i]->mark = ir_is_view(old[i]) ? WAITING : PLACED;
  for (int i = 0; i < n; i++)
    if (old[i]->mark == PLACED) place_op(r, old[i]);
  for (int i = 0; i < body->yield.n; i++) body->yield.at[i] = ready(r, body->yield.at[i]);
  add_operands(r);
}

// ---- the report ---------------------------------------------------------------------------------

// " layernorm ln_1": the op and its path within the repeat called `name`.
static void list_op(sb *s, const ir_op *op, const char *name, bool first) {
  const char *path = op->path ? op->path : "";
  size_t n = strlen(name);
  if (strncmp(path, name, n) == 0 && path[n] == '.') path += n + 1;
  sb_printf(s, "%s%s", first ? " " : ", ", ir_info(op->code)->name);
  if (*path) sb_printf(s, " %s", path);
}

static void count_dropped(const rewrite *r, recompute_result *out, sb *list) {
  const pair *p = r->p;
  for (int k = 0; k < r->nargs; k++) out->dropped += r->made_again[k] != NULL;
  if (!r->ran.n) return;
  const char *name = ir_attr_str(p->fwd, "name", "repeat");
  sb_printf(list, "  %s:", name);
  for (int i = 0; i < r->ran.n; i++) {
    list_op(list, r->ran.at[i], name, i == 0);
    out->ops += r->ran.at[i]->code != IR_const && !ir_is_view(r->ran.at[i]);
  }
  sb_put(list, '\n');
}

static bool takes_any(const pair *p, const rc_choice *c) {
  for (int i = 0; i < p->fwd->region[0]->ops.n; i++)
    if (p->op_item[i] >= 0 && rc_taken(c, p->op_item[i])) return true;
  return false;
}

// Without a budget to share, repeats are chosen for one by one: the fewest bytes of all are the
// fewest of each, so a model of many unlike layers takes as long as its layers together.
static rc_front choose_apart(work *w) {
  uint64_t *taken = arena_new(w->a, uint64_t, w->items.n / 64 + 1);
  rc_choice all = {.taken = taken};
  rc_front front = {.exact = true};
  for (int i = 0; i < w->pairs.n; i++) {
    int first = w->pairs.at[i].first_item;
    int n = (i + 1 < w->pairs.n ? w->pairs.at[i + 1].first_item : w->items.n) - first;
    rc_item *own = arena_new(w->a, rc_item, n + 1);
    for (int k = 0; k < n; k++) {
      own[k] = w->items.at[first + k];
      int *needs = arena_new(w->a, int, own[k].nneeds + 1);
      for (int j = 0; j < own[k].nneeds; j++) needs[j] = own[k].needs[j] - first;
      own[k].needs = needs;
    }
    rc_front f = rc_choose(w->a, own, n, RC_LIMIT);
    const rc_choice *c = &vec_last(&f.at);
    all.bytes += c->bytes;
    all.work += c->work;
    front.exact &= f.exact;
    for (int k = 0; k < n; k++)
      if (rc_taken(c, k)) taken[(first + k) / 64] |= (uint64_t)1 << ((first + k) % 64);
  }
  vec_push(w->a, &front.at, all);
  return front;
}

static const char *run(work *w, const pass_options *o, ir_func *f, recompute_result *out) {
  ir_region *body = f->body;
  pass_count_uses(body);
  w->stack_of = arena_new(w->a, int, w->m->next_value + 1);
  int *number = arena_new(w->a, int, w->m->next_value + 1);
  for (int i = 0; i < body->ops.n; i++) {
    ir_op *back = body->ops.at[i], *fwd = back->code == IR_repeat ? forward_of(back) : NULL;
    if (fwd) add_pair(w, fwd, back);
  }
  for (int i = 0; i < w->pairs.n; i++) {
    w->pairs.at[i].first_item = w->items.n;
    add_items(w, &w->pairs.at[i], number);
  }
  rc_front front = w->mode == RECOMPUTE_BYTES ? rc_choose(w->a, w->items.at, w->items.n, RC_LIMIT)
                                              : choose_apart(w);
  int at = front.at.n - 1;
  if (w->mode == RECOMPUTE_BYTES)
    while (at > 0 && w->before + front.at.at[at - 1].bytes <= o->recompute_bytes) at--;
  const rc_choice *c = &front.at.at[at];
  *out = (recompute_result){.done = w->stacks > 0,
                            .exact = front.exact,
                            .before = w->before,
                            .after = w->before + c->bytes,
                            .least = w->before + vec_last(&front.at).bytes,
                            .stacks = w->stacks};
  if (w->mode == RECOMPUTE_BYTES && out->after > o->recompute_bytes)
    return arena_printf(
        w->m->arena, "recompute: %lld bytes are asked for, and %lld is the least that can be saved",
        (long long)o->recompute_bytes, (long long)out->least);
  sb list = {.arena = w->m->arena};
  for (int i = 0; i < w->pairs.n; i++) {
    rewrite r = {.w = w, .p = &w->pairs.at[i], .choice = c};
    if (!takes_any(r.p, c)) continue;
    rewrite_pair(&r);
    count_dropped(&r, out, &list);
  }
  out->list = sb_str(&list);
  return NULL;
}

const char *pass_recompute(ir_module *m, const pass_options *o) {
  recompute_result ignored, *out = o->recomputed ? o->recomputed : &ignored;
  *out = (recompute_result){.list = ""};
  ir_func *f = ir_func_find(m, "train_step");
  if (!f || o->recompute == RECOMPUTE_NONE) return NULL;
  arena scratch;
  arena_init(&scratch);
  scratch.oom = m->arena->oom;
  scratch.oom_ctx = m->arena->oom_ctx;
  work w = {.m = m, .a = &scratch, .mode = o->recompute};
  const char *why = run(&w, o, f, out);
  arena_free(&scratch);
  return why;
}
