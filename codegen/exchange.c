#include "codegen/exchange.h"

#include "ir/place.h"
#include "runtime/exchange.h"

// Pieces of `block` elements, some times over: each rank's own on the one side, all beside each
// other on the other. Mirrored, a piece is of two runs, which lie apart where all do.
static void box(prog_exchange *r, const ir_op *op, int64_t mine, int64_t parts, bool gathers) {
  int64_t block = ir_attr_int(op, "block", 1), whole = ir_attr_int(op, "whole", 0);
  int64_t *own = gathers ? r->in_stride : r->out_stride,
          *all = gathers ? r->out_stride : r->in_stride;
  r->mirror = ir_attr_int(op, "mirror", 0) != 0;
  r->run = r->mirror ? block / 2 : block;
  r->size[0] = mine / block;
  r->size[2] = r->mirror ? 2 : 1;
  own[0] = block;
  own[2] = r->mirror ? r->run : 0;
  all[0] = whole ? whole : block * parts;
  *(gathers ? &r->out_step : &r->in_step) = r->run;
  r->whole = whole;
}

// o . a . m . b . i: `a` and `b` are what lies cut and whole before, the other way round after.
static void turn(prog_exchange *r, const int64_t *s, int64_t parts, bool turned) {
  int64_t o = s[0], a = s[1], m = s[2], b = s[3], i = s[4];
  // Extents of what a piece has of each: all of what its sender has of one, a part of the other.
  int64_t pa = turned ? a / parts : a, pb = turned ? b : b / parts;
  int64_t in_a = a, in_b = b, out_a = turned ? pa : a * parts, out_b = turned ? b * parts : pb;
  r->run = pb * i;
  r->size[0] = o, r->size[1] = pa, r->size[2] = m;
  r->in_stride[2] = in_b * i, r->out_stride[2] = out_b * i;
  r->in_stride[1] = m * r->in_stride[2], r->out_stride[1] = m * r->out_stride[2];
  r->in_stride[0] = in_a * r->in_stride[1], r->out_stride[0] = out_a * r->out_stride[1];
  // By rank: parts of what was whole are sent, and stand in what was cut.
  r->in_step = turned ? pa * r->in_stride[1] : pb * i;
  r->out_step = turned ? pb * i : pa * r->out_stride[1];
}

prog_exchange cg_exchange_of(const ir_module *m, const ir_op *op) {
  const ir_value *v = op->nin ? op->in[0] : op->out[0];
  int64_t parts = mesh_parts(m->mesh, ir_exchange_axes(m, op)), n = ir_elements(&v->type);
  int64_t out = op->nout ? ir_elements(&op->out[0]->type) : 0;
  prog_exchange r = {.dtype = (uint32_t)v->type.dtype, .size = {1, 1, 1}, .run = n};
  switch (op->code) {
    case IR_all_reduce:
      r.kind = PROG_ALL_REDUCE;
      r.reduce = ir_attr_int(op, "max", 0) ? PROG_MAX : PROG_SUM;
      break;
    case IR_all_gather:
      r.kind = PROG_ALL_GATHER;
      box(&r, op, n, parts, true);
      break;
    case IR_reduce_scatter:
    case IR_part:
      r.kind = op->code == IR_part ? PROG_PART : PROG_REDUCE_SCATTER;
      box(&r, op, out, parts, false);
      break;
    case IR_all_to_all:
      r.kind = PROG_ALL_TO_ALL;
      turn(&r, ir_get_attr(op, "shape")->v, parts, ir_attr_int(op, "turned", 0) != 0);
      break;
    case IR_permute:
      r.kind = PROG_PERMUTE;
      r.step = ir_attr_int(op, "step", 1);
      break;
    case IR_send:
    case IR_receive:
      r.kind = op->code == IR_send ? PROG_SEND : PROG_RECEIVE;
      r.step = ir_attr_int(op, "step", 1);
      break;
    default: IR_BUG("%s is no exchange", ir_info(op->code)->name);
  }
  r.of = r.kind;
  if (op->code == IR_permute)
    r.of = ir_attr_int(op, "sums", 0) ? PROG_REDUCE_SCATTER : PROG_ALL_GATHER;
  r.scratch = comm_scratch_bytes(&r, (int)parts);
  return r;
}

prog_exchange cg_exchange_by(const ir_module *m, const sched_instr *in) {
  prog_exchange r = cg_exchange_of(m, in->op);
  if (!in->nmore) return r;
  IR_CHECK(r.kind == PROG_ALL_REDUCE);
  for (int k = 1; k < sched_ops(in); k++) r.run += ir_elements(&sched_op(in, k)->in[0]->type);
  r.values = (uint32_t)sched_ops(in);
  r.scratch = comm_scratch_bytes(&r, mesh_parts(m->mesh, ir_exchange_axes(m, in->op)));
  return r;
}
