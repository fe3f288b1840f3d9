// Storage of repeats: rings, stacks, frames, and what dies within one execution of a body.
//
// A carried value lives in a *ring* of slots. Iteration l reads one slot and writes the next. When
// the argument is also saved as a stack, the ring has count + 1 slots and is the stack; when a
// chain (layout_lives.c) leads from the argument to what is yielded for it, one slot; otherwise
// two. A stacked result is an array of `count` slices, written in place by the kernel that yields
// it.
//
// Frames. The forward repeat stacks activations; the backward repeat reads them in the other
// direction, each layer for the last time, while it stacks gradients. So gradients of layer l may
// lie where activations of layers above l lay: a stack with two ends. Stacks that one repeat writes
// and only one later repeat reads, slice by slice, in the other direction, are interleaved: slices
// of one layer lie side by side, A bytes from layer to layer. A gradient stack must stay dense,
// because kernels after the loop read it whole: G bytes from layer to layer. With L layers,
// activations of layer l at b + l A and the gradient of layer l at b + D + l G:
//
//   backward runs L-1 .. 0; while layer l is computed, activations of 0 .. l are still needed:
//     b + D + l G >= b + (l + 1) A  for l = 0 .. L-1,    D = max(A, L A - (L-1) G),
//   since the condition is linear in l and holds everywhere if it holds at both ends;
//     height  max(L A, D + L G) = max(A + L G, L A + G)      apart it would be L A + L G
//
//   A = 2, G = 3, L = 3, D = 2:      gggGGGggg     one letter a byte, layers 0, 1, 2
//                                  aaAAaa          height 11 for 15
//
// Mirrored, when forward runs L-1 .. 0: the gradient of layer l must stay below activations of
// l .. L-1, b - D + l G + G <= b + l A, D = max(G, L G - (L-1) A); the height is the same. With one
// layer, D = A: nothing is gained, and there are no frames.
//
// There are many gradient stacks, and only one can have distance D to one set of activations. So
// activations are dealt out: one frame to a gradient stack, to keep the sum of the heights low. The
// sum is at its least, max(A + L G, L A + G) of the totals, when in all frames A <= G or in all
// A >= G; dealing the largest slice first, to the frame that grows least, comes near that.
//
// A ring that is a stack may be part of a frame: its slot 0 is alive before the forward loop (the
// first layer's input), and its slot L, one slice behind the last layer, until the result's last
// use. Both are parts of their own, and the slot L must be dead before the backward loop starts.

#include <stdlib.h>
#include <string.h>

#include "passes/layout.h"

static int carried_of(const ir_op *repeat) { return (int)ir_attr_int(repeat, "carried", 0); }
static int64_t count_of(const ir_op *repeat) { return ir_attr_int(repeat, "count", 1); }
static bool reversed(const ir_op *repeat) { return ir_attr_int(repeat, "reverse", 0) != 0; }

// The carried value whose argument stacked result `j` saves, or -1.
static int saved_ring(const ir_op *repeat, int j) {
  const ir_value *y = repeat->region[0]->yield.at[j];
  return y->def ? -1 : y->pos - 1;
}

// The value of the body that has the storage of what is yielded: another one when ranks reduce it
// in place. NULL: it lies outside, since an op of the body updates a cache.
static const ir_value *stored_as(const ir_op *repeat, int j) {
  ir_value *y = repeat->region[0]->yield.at[j];
  if (!lay_target(y)) return y;
  y = ir_storage_of(y);
  return y->def && y->def->parent == repeat->region[0] ? y : NULL;
}

// Whether stacked result `j` gets storage of its own.
static bool has_storage(const ir_op *repeat, int j) {
  const ir_value *y = stored_as(repeat, j);
  return y && y->def;
}

// ---- frames -------------------------------------------------------------------------------------

typedef struct saved {
  ir_op *repeat;
  int result;
  int64_t bytes;  // of a slice, aligned
} saved;

typedef struct frame {
  ir_op *repeat;  // the backward repeat, and which of its results is the gradient
  int result;
  int64_t layers, grad, stride;  // L, G, A
  VEC(saved) stack;
} frame;

static bool only_reader(const lay *l, const ir_value *stack, const ir_op *reader) {
  const ir_region *r = l->e->func->body;
  int carried = carried_of(reader), stacked = (int)ir_attr_int(reader, "stacked", 0);
  bool reads = false;
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nin; k++) {
      if (op->in[k] != stack) continue;
      if (op != reader || k < carried || k >= carried + stacked) return false;
      reads = true;
    }
  }
  return reads;
}

// What `forward` stacks for `backward` alone.
static void find_saved(lay *l, ir_op *forward, const ir_op *backward, saved *out, int *n) {
  if (lay_segment(l, forward->segment) != lay_segment(l, backward->segment) ||
      count_of(forward) != count_of(backward) || reversed(forward) == reversed(backward))
    return;
  for (int j = carried_of(forward); j < forward->nout; j++) {
    if (l->frame[forward->out[j]->id].stride || !only_reader(l, forward->out[j], backward))
      continue;
    int k = saved_ring(forward, j);
    bool ring = k >= 0 && !reversed(forward) && l->last[forward->out[k]->id] < backward->mark;
    if (!ring && !has_storage(forward, j)) continue;
    out[(*n)++] = (saved){forward, j, lay_align(lay_bytes(forward->region[0]->yield.at[j]))};
  }
}

static int larger_first(const void *pa, const void *pb) {
  const saved *a = pa, *b = pb;
  if (a->bytes != b->bytes) return a->bytes < b->bytes ? 1 : -1;
  return a->result - b->result;
}

static int64_t frame_height(const frame *f, int64_t stride) {
  int64_t up = stride + f->layers * f->grad, down = f->layers * stride + f->grad;
  return stride == 0 ? f->layers * f->grad : up > down ? up : down;
}

static void deal(arena *a, frame *f, int n, const saved *s) {
  frame *best = NULL;
  int64_t least = 0;
  for (int i = 0; i < n; i++) {
    int64_t growth = frame_height(&f[i], f[i].stride + s->bytes) - frame_height(&f[i], f[i].stride);
    bool roomier = best && growth == least && f[i].grad - f[i].stride > best->grad - best->stride;
    if (best && growth >= least && !roomier) continue;
    best = &f[i];
    least = growth;
  }
  vec_push(a, &best->stack, *s);
  best->stride += s->bytes;
}

// Makes the items of a frame and says which part of it each stack is.
static void build_frame(lay *l, frame *f) {
  if (!f->stack.n) return;
  int64_t n = f->layers, a = f->stride, g = f->grad, offset = 0;
  ir_op *forward = f->stack.at[0].repeat;
  int glue = ++l->glues;
  int item =
      lay_item(l, ir_attr_str(forward, "name", "repeat"), n * a, forward->mark, f->repeat->mark);
  l->s->items.at[item].glue = glue;
  l->s->items.at[item].value = forward->out[f->stack.at[0].result];
  for (int i = 0; i < f->stack.n; i++) {
    const saved *s = &f->stack.at[i];
    l->frame[forward->out[s->result]->id] = (frame_part){item, offset, a};
    int k = saved_ring(forward, s->result);
    if (k >= 0) {
      const ir_value *x = forward->in[k], *y = forward->out[k];
      sched_item *it;
      int start = lay_item_of(l, x, s->bytes, l->first[x->id], forward->mark);
      it = &l->s->items.at[start];
      it->glue = glue, it->at = offset;
      int end = lay_item_of(l, y, s->bytes, forward->mark, l->last[y->id]);
      it = &l->s->items.at[end];
      it->glue = glue, it->at = n * a + offset;
    }
    offset += s->bytes;
  }
  const ir_value *grad = f->repeat->out[f->result];
  int64_t up = n * a - (n - 1) * g > a ? n * a - (n - 1) * g : a;
  int64_t down = n * g - (n - 1) * a > g ? n * g - (n - 1) * a : g;
  item = lay_item(l, f->repeat->region[0]->yield.at[f->result]->name, n * g, f->repeat->mark,
                  l->last[grad->id]);
  l->s->items.at[item].glue = glue;
  l->s->items.at[item].value = grad;
  l->s->items.at[item].at = reversed(forward) ? -lay_align(down) : lay_align(up);
  l->frame[grad->id] = (frame_part){item, 0, g};
}

static void frame_repeat(lay *l, ir_op *backward) {
  arena *a = l->s->m->arena;
  const ir_region *r = l->e->func->body;
  frame *f = arena_new(a, frame, backward->nout + 1);
  int n = 0;
  for (int j = carried_of(backward); j < backward->nout; j++) {
    const ir_value *out = backward->out[j];
    if (!has_storage(backward, j) || l->last[out->id] <= backward->mark) continue;
    if (l->first[out->id] < backward->mark) continue;  // a sum over micro-batches was there before
    f[n++] = (frame){.repeat = backward,
                     .result = j,
                     .layers = count_of(backward),
                     .grad = lay_bytes(backward->region[0]->yield.at[j])};
  }
  // Stacks of one forward repeat at a time; a gradient that has a frame is not there for the next.
  for (int i = 0; i < r->ops.n && n && r->ops.at[i] != backward; i++) {
    ir_op *forward = r->ops.at[i];
    if (forward->code != IR_repeat || count_of(forward) < 2) continue;
    saved *s = arena_new(a, saved, forward->nout + 1);
    int stacks = 0;
    find_saved(l, forward, backward, s, &stacks);
    qsort(s, (size_t)stacks, sizeof *s, larger_first);
    for (int k = 0; k < stacks; k++) deal(a, f, n, &s[k]);
    int left = 0;
    for (int k = 0; k < n; k++) {
      build_frame(l, &f[k]);
      if (!f[k].stack.n) f[left++] = f[k];
    }
    n = left;
  }
}

void loops_frames(lay *l) {
  const ir_region *r = l->e->func->body;
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->code == IR_repeat) frame_repeat(l, r->ops.at[i]);
}

// ---- rings and stacks ---------------------------------------------------------------------------

static void bind_ring(lay *l, ir_op *op, int k) {
  ir_region *body = op->region[0];
  int64_t count = count_of(op);
  bool reverse = reversed(op);
  const ir_value *arg = body->args.at[1 + k], *y = body->yield.at[k], *init = op->in[k];
  int64_t bytes = lay_bytes(arg);
  int last = l->last[op->out[k]->id];
  const ir_value *stack = NULL;
  for (int j = carried_of(op); j < op->nout; j++)
    if (body->yield.at[j] == arg) {
      stack = op->out[j];
      if (l->last[stack->id] > last) last = l->last[stack->id];
    }
  frame_part part = {.stride = bytes};
  int64_t slots = stack ? count + 1 : lives_head(l, y) == arg ? 1 : 2;
  if (stack && l->frame[stack->id].stride)
    part = l->frame[stack->id];
  else
    part.item = lay_item(l, arg->name, slots * bytes, l->first[init->id], last);
  if (!l->s->items.at[part.item].value)
    l->s->items.at[part.item].value = stack ? stack : op->out[k];
  int64_t mod = stack ? 0 : slots;
  int64_t end = mod ? count % mod : count, start = reverse ? end : 0, final = reverse ? 0 : end;
  lay_bind_item(l, init, part.item, part.offset + start * part.stride);
  lay_bind_item(l, op->out[k], part.item, part.offset + final * part.stride);
  binding b = {.kind = BIND_ITEM, .index = part.item, .offset = part.offset, .bytes = bytes};
  if (slots > 1) {
    b.layer_stride = part.stride;
    b.layer_mod = mod;
  }
  b.layer_add = slots > 1 && reverse;
  l->bind[arg->id] = b;
  b.layer_add = slots > 1 && !reverse;
  l->bind[y->id] = b;
  if (!stack) return;
  lay_bind_item(l, stack, part.item, part.offset + (reverse ? part.stride : 0));
  l->bind[stack->id].slice = part.stride;
}

void loops_bind(lay *l, ir_op *op) {
  ir_region *body = op->region[0];
  int carried = carried_of(op), stacked = (int)ir_attr_int(op, "stacked", 0);
  for (int k = 0; k < carried; k++) bind_ring(l, op, k);
  for (int k = carried; k < op->nin; k++)
    lay_bind_alias(l, body->args.at[1 + k], ir_view_of(op->in[k]).root, k < carried + stacked);
  for (int j = carried; j < op->nout; j++) {
    const ir_value *y = stored_as(op, j), *out = op->out[j];
    if (lay_bound(l, out)) continue;  // a ring that is the stack
    if (!y) y = body->yield.at[j];
    const ir_value *cache = lay_target(y);
    if (cache && !cache->def && cache->region == body && cache->pos >= 1 + carried) {
      lay_bind_alias(l, out, ir_view_of(op->in[cache->pos - 1]).root, false);
      continue;
    }
    int64_t bytes = lay_bytes(y);
    frame_part part = l->frame[out->id];
    if (!part.stride)
      part = (frame_part){
          lay_item(l, y->name, count_of(op) * bytes, l->first[out->id], l->last[out->id]), 0,
          bytes};
    if (!l->s->items.at[part.item].value) l->s->items.at[part.item].value = out;
    lay_bind_item(l, out, part.item, part.offset);
    l->bind[out->id].slice = part.stride;
    l->bind[y->id] = (binding){.kind = BIND_ITEM,
                               .index = part.item,
                               .offset = part.offset,
                               .layer_stride = part.stride,
                               .bytes = bytes};
  }
}

// ---- values that die within one execution of a body ---------------------------------------------

bool loops_scratch_apart(const sched_task *t, const sched_instr *in) {
  return t->loop && sched_beside(in) && !in->within;
}

// Results of an instruction; those of a bucket are one an op.
static int outs(const sched_instr *in) {
  return in->nmore ? sched_ops(in) : in->op ? in->op->nout : 0;
}
static const ir_value *out_of(const sched_instr *in, int k) {
  return in->nmore ? sched_op(in, k)->out[0] : in->op->out[k];
}

void loops_bind_body(lay *l, sched_task *t) {
  sched *s = l->s;
  int most = 0;
  for (int i = 0; i < t->instrs.n; i++) {
    const sched_instr *in = &t->instrs.at[i];
    most += in->nscratch;
    for (int m = 0; m < sched_ops(in); m++) most += sched_op(in, m)->nout;
  }
  arena scratch;
  arena_init(&scratch);
  scratch.oom = s->m->arena->oom;
  scratch.oom_ctx = s->m->arena->oom_ctx;
  sched_item *local = arena_new(&scratch, sched_item, most + 1);
  int *number = arena_new(&scratch, int, s->m->next_value);  // by value id: local item + 1
  int n = 0;
  for (int i = 0; i < t->instrs.n; i++) {
    sched_instr *in = &t->instrs.at[i];
    for (int k = 0; k < in->nscratch; k++) {
      // An item's number until the packer has run.
      if (loops_scratch_apart(t, in)) {
        in->scratch_base[k] =
            lay_item(l, "scratch", in->scratch_bytes[k], t->loop->mark, in->until);
        continue;
      }
      in->scratch_base[k] = n;
      local[n++] = (sched_item){
          .bytes = in->scratch_bytes[k], .first = i, .last = sched_beside(in) ? in->until : i};
    }
    for (int k = 0; k < outs(in); k++) {
      const ir_value *v = out_of(in, k), *target = lay_target(v);
      if (target) lay_bind_alias(l, v, target, false);
      if (lay_bound(l, v)) continue;
      const ir_value *head = lives_head(l, v), *tail = lives_tail(l, v);
      if (lay_bound(l, tail)) {
        l->bind[v->id] = l->bind[tail->id];
      } else if (lay_bound(l, head)) {
        l->bind[v->id] = l->bind[head->id];
      } else if (number[head->id]) {
        number[v->id] = number[head->id];
      } else {
        local[n++] = (sched_item){.name = v->name,
                                  .bytes = lay_bytes(v),
                                  .first = l->first[v->id],
                                  .last = l->last[tail->id]};
        number[v->id] = n;
      }
    }
  }
  if (!n) {
    arena_free(&scratch);
    return;
  }
  t->transient_bytes = sched_pack(&scratch, local, n, LAYOUT_ALIGN);
  int item = lay_item(l, t->name, t->transient_bytes, t->loop->mark, t->loop->mark);
  for (int i = 0; i < t->instrs.n; i++) {
    sched_instr *in = &t->instrs.at[i];
    for (int k = 0; k < in->nscratch && !loops_scratch_apart(t, in); k++)
      in->scratch_base[k] = local[in->scratch_base[k]].base;
    for (int k = 0; k < outs(in); k++) {
      const ir_value *v = out_of(in, k);
      if (number[v->id]) lay_bind_item(l, v, item, local[number[v->id] - 1].base);
    }
  }
  t->transient_base = item;  // an item number until the packer has run
  arena_free(&scratch);
}
