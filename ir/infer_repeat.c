// Types of repeats: what goes into the body, and what comes out of it.
#include <string.h>

#include "ir/infer_impl.h"

// ---- repeat ------------------------------------------------------------------------------------

// That a value keeps its type and its indices across the border of the body.
static const char *same_type(const infer *t, const ir_type *a, const ir_type *b, const char *what,
                             int i) {
  bool ok = ir_type_same(a, b);
  for (int d = 0; ok && d < a->rank; d++) ok = ir_index_unify(t->m, a->dim[d], b->dim[d]);
  if (ok) return NULL;
  return SAY("repeat: %s %d is %s in the body and %s outside", what, i + 1,
             ir_type_text(t->m->arena, b), ir_type_text(t->m->arena, a));
}

// True when `inside` is one of `count` chunks of `outside`, which lie one behind the other: a dim
// is cut, those before it are walked one by one, those behind it are whole.
static bool is_chunk(const infer *t, const ir_type *outside, const ir_type *inside, int64_t count) {
  if (outside->rank != inside->rank || outside->dtype != inside->dtype) return false;
  int64_t walked = 1;
  for (int d = 0; d < inside->rank; d++) {
    int64_t all = outside->dim[d]->size, own = inside->dim[d]->size;
    bool whole = all % own == 0 && walked * (all / own) == count;
    for (int i = d + 1; i < inside->rank; i++)
      whole &= outside->dim[i]->size == inside->dim[i]->size;
    if (whole) {
      for (int i = d + 1; i < inside->rank && whole; i++)
        whole = ir_index_unify(t->m, outside->dim[i], inside->dim[i]);
      return whole;
    }
    if (own != 1) return false;
    walked *= all;
  }
  return false;
}

// A stream: chunks go in and out, and the types of what is put together are given.
static const char *infer_stream(const infer *t, ir_type *out, int *nout) {
  const ir_op *op = t->op;
  const ir_region *body = op->region[0];
  int64_t count = ir_attr_int(op, "count", 0), nc = ir_attr_int(op, "carried", 0),
          ns = ir_attr_int(op, "stacked", 0);
  if (op->nout != body->yield.n) return SAY("repeat: the types of a stream's results are given");
  *nout = op->nout;
  for (int i = 0; i < op->nin; i++) {
    const ir_type *inside = &body->args.at[i + 1]->type;
    const char *error = NULL;
    if (i >= nc && i < nc + ns) {
      if (!is_chunk(t, &op->in[i]->type, inside, count))
        error = SAY("repeat: %s is not %lld times what the body takes", infer_text_of(t, i),
                    (long long)count);
    } else {
      error = same_type(t, &op->in[i]->type, inside, i < nc ? "carried value" : "invariant", i);
    }
    if (!error && i < nc)
      error = same_type(t, inside, &body->yield.at[i]->type, "carried value", i);
    if (error) return error;
  }
  for (int i = 0; i < *nout; i++) {
    out[i] = i < nc ? op->in[i]->type : op->out[i]->type;
    if (i >= nc && !is_chunk(t, &out[i], &body->yield.at[i]->type, count))
      return SAY("repeat: result %d is not %lld times what the body gives", i + 1,
                 (long long)count);
  }
  return NULL;
}

// repeat: see its row in ops.def. Carried values must not change, stacked ones lose and gain the
// layer axis, and all layer axes of one loop are one index.
const char *infer_repeat(const infer *t, ir_type *out, int *nout) {
  const ir_op *op = t->op;
  const ir_region *body = op->region[0];
  int64_t count = ir_attr_int(op, "count", 0), nc = ir_attr_int(op, "carried", 0),
          ns = ir_attr_int(op, "stacked", 0);
  if (count < 1) return SAY("repeat: the count must be at least 1");
  if (nc < 0 || ns < 0 || nc > op->nin || ns > op->nin - nc)
    return SAY("repeat: %lld carried and %lld stacked of %d operands", (long long)nc, (long long)ns,
               op->nin);
  if (body->args.n != op->nin + 1)
    return SAY("repeat: the body takes %d arguments for %d operands", body->args.n, op->nin);
  if (body->yield.n < nc)
    return SAY("repeat: the body gives %d values, fewer than the %lld carried", body->yield.n,
               (long long)nc);
  const ir_type *layer = &body->args.at[0]->type;
  if (layer->rank || layer->dtype != DT_i32) return SAY("repeat: the layer must be an i32 scalar");
  if (ir_attr_int(op, "stream", 0)) return infer_stream(t, out, nout);
  ir_index *layers = NULL;
  for (int i = 0; i < op->nin; i++) {
    ir_type outside = op->in[i]->type;
    const ir_type *inside = &body->args.at[i + 1]->type;
    const char *what = i < nc ? "carried value" : i < nc + ns ? "stacked value" : "invariant";
    if (i >= nc && i < nc + ns) {
      if (!outside.rank || outside.dim[0]->size != count ||
          (layers && !ir_index_unify(t->m, layers, outside.dim[0])))
        return SAY("repeat: the stacked value %s does not have %lld layers", infer_text_of(t, i),
                   (long long)count);
      layers = outside.dim[0];
      outside.rank--;
      memmove(outside.dim, outside.dim + 1, sizeof *outside.dim * (size_t)outside.rank);
    }
    const char *error = same_type(t, &outside, inside, what, i);
    if (!error && i < nc) error = same_type(t, inside, &body->yield.at[i]->type, what, i);
    if (error) return error;
  }
  *nout = body->yield.n;
  for (int i = 0; i < *nout; i++) {
    out[i] = i < nc ? op->in[i]->type : body->yield.at[i]->type;
    if (i < nc) continue;
    if (out[i].rank == IR_MAX_RANK) return SAY("repeat: a stack of more than %d axes", IR_MAX_RANK);
    memmove(out[i].dim + 1, out[i].dim, sizeof *out[i].dim * (size_t)out[i].rank);
    if (!layers) layers = ir_index_new(t->m, "layer", count);
    out[i].dim[0] = layers;
    out[i].rank++;
  }
  return NULL;
}
