// What an exchange among ranks moves: arithmetic on prog_exchange that compiler and runtime share.
//
// Both ask here, so that the scratch the layout plans is the scratch that runtime/comm.c uses, and
// the bytes a plan promises are the bytes that are counted when they are sent.
//
//   prog_exchange x = {.kind = PROG_REDUCE_SCATTER, .axes = 1, .dtype = PROG_F32,
//                      .size = {1, 1, 1}, .run = 250, .in_step = 250, .whole = 998};
//   exchange_piece(&x, 3);           // 248 elements: the last rank of 4 has two less
//   comm_scratch_bytes(&x, 4);       // 3 pieces of others, each on a boundary of 64 bytes: 3072
//   exchange_sent_bytes(&x, 4, 0);   // 4 * (250 + 250 + 248)
//
// An instruction's operands, in this order, absent ones left out:
//
//   out      what is written        not of a send      (a bucket: out and in of each of its values)
//   in       what is read           not of a receive
//   scratch  `scratch` bytes        when that is not 0
//
// Where a rank's own piece (of reduce_scatter, part) is shorter than `run`, zeros are written
// behind it; what others have too little of is not written.
//
// `size` is 1, 1, 1 where there are no boxes: all_reduce, permute, send, receive. `whole` shortens
// the runs of the pieces of the last ranks and can be had by all but all_to_all, permute, send and
// receive; an all_reduce of `run` elements cuts them by itself.
//
// With `mirror` (all_gather, reduce_scatter, part) `size[2]` is 2: where pieces lie beside each
// other there are 2n runs, of n places, and place p has number p and number 2n - 1 - p of them:
// positions of a sequence of which each rank has as many early as late ones. exchange_strides says
// where they are; `step` is a run, and that side's stride[2] is 0.
//
// `in` and `out` may be the same bytes in two cases, and must else be apart: a rank's own piece
// lies where its result goes (all_gather into the array it has a part of, reduce_scatter to the own
// piece, part to where it lies already), or an all_reduce is of one array. Scratch is apart from
// both.
//
// A send does not wait until it has been received, or two ranks that send to each other would for
// ever: it copies what it sends to a buffer of the runtime, one for each record, and waits only
// while the record's last message is still there. `step` counts round the axis: rank c of n sends
// to (c + step) mod n and receives from (c + step) mod n. Messages with a positive step and those
// with a negative one do not wait for each other; among those of one sort the first that was sent
// is the first that is received. A permute is both at once, and waits for both (or,
// where ranks share memory, for all of its group): no buffer, and `step` counts round each of its
// axes.
#ifndef DSM_EXCHANGE_H
#define DSM_EXCHANGE_H

#include <stdbool.h>

#include "runtime/program.h"

// Parts of scratch begin on this boundary.
#define EXCHANGE_ALIGN ((int64_t)64)

// Bytes of one element.
static inline int64_t exchange_unit(uint32_t dtype) {
  switch (dtype) {
    case PROG_F64:
    case PROG_I64: return 8;
    case PROG_F32:
    case PROG_I32: return 4;
    case PROG_BF16:
    case PROG_F16:
    case PROG_I16:
    case PROG_U16: return 2;
    default: return 1;
  }
}

// Types whose pieces can be added up: f32, f64, bf16, f16, i32, i64. Any type can be moved.
static inline bool exchange_adds(uint32_t dtype) {
  return dtype == PROG_F32 || dtype == PROG_F64 || dtype == PROG_BF16 || dtype == PROG_F16 ||
         dtype == PROG_I32 || dtype == PROG_I64;
}

// Elements of one run of the piece that place `place` of the group has, gets or sums.
static inline int64_t exchange_run(const prog_exchange *x, int64_t place) {
  if (!x->whole) return x->run;
  int64_t left = x->whole - place * x->run;
  return left < 0 ? 0 : left < x->run ? left : x->run;
}

// Elements of that piece.
static inline int64_t exchange_piece(const prog_exchange *x, int64_t place) {
  return x->size[0] * x->size[1] * x->size[2] * exchange_run(x, place);
}

// Of an all_reduce: elements of the piece that a place sums, and where it begins.
static inline int64_t exchange_share(const prog_exchange *x, int64_t ranks, int64_t place,
                                     int64_t *begin) {
  int64_t each = (x->run + ranks - 1) / ranks, from = place * each;
  if (from > x->run) from = x->run;
  *begin = from;
  return x->run - from < each ? x->run - from : each;
}

// Whether the runs of a box lie behind one another, so that a piece can be sent as it lies.
static inline bool exchange_dense(const prog_exchange *x, const int64_t stride[3]) {
  int64_t expect = x->run;
  for (int i = 2; i >= 0; i--) {
    if (x->size[i] == 1) continue;
    if (stride[i] != expect) return false;
    expect *= x->size[i];
  }
  // With shorter runs there are gaps behind them.
  return !x->whole || x->size[0] * x->size[1] * x->size[2] == 1;
}

// Strides of a side for the piece of a place: those of the record, but where it is mirrored.
static inline void exchange_strides(const prog_exchange *x, const int64_t stride[3], int64_t step,
                                    int64_t ranks, int64_t place, int64_t out[3]) {
  for (int i = 0; i < 3; i++) out[i] = stride[i];
  if (x->mirror && step) out[2] = (2 * ranks - 1 - 2 * place) * x->run;
}

static inline int64_t exchange_round(int64_t bytes) {
  return (bytes + EXCHANGE_ALIGN - 1) / EXCHANGE_ALIGN * EXCHANGE_ALIGN;
}

// Bytes of scratch in which the values of a bucket are gathered.
static inline int64_t exchange_bucket(const prog_exchange *x) {
  return x->values > 1 ? exchange_round(x->run * exchange_unit(x->dtype)) : 0;
}

// What the record's field `scratch` has to be (or more) for groups of `ranks`: a piece that is sent
// and one that is received where they do not lie in one block, and all pieces of the others where
// they are added up.
static inline int64_t comm_scratch_bytes(const prog_exchange *x, int64_t ranks) {
  if (ranks < 2) return 0;
  int64_t each_bytes = exchange_unit(x->dtype), begin,
          piece = exchange_round(exchange_piece(x, 0) * each_bytes);
  int64_t pack = exchange_dense(x, x->in_stride) ? 0 : piece;
  int64_t unpack = exchange_dense(x, x->out_stride) ? 0 : piece;
  switch (x->kind) {
    case PROG_ALL_GATHER:
    case PROG_ALL_TO_ALL: return pack + unpack;
    case PROG_REDUCE_SCATTER: return pack + (ranks - 1) * piece;
    case PROG_ALL_REDUCE:  // values of a bucket are gathered in front of the pieces
      return exchange_bucket(x) +
             (ranks - 1) * exchange_round(exchange_share(x, ranks, 0, &begin) * each_bytes);
    default: return 0;
  }
}

// Bytes that the rank at `place` of its group hands over to be sent, counted once for each peer.
static inline int64_t exchange_sent_bytes(const prog_exchange *x, int64_t ranks, int64_t place) {
  int64_t n = 0, begin;
  if (ranks < 2) return 0;
  for (int64_t k = 0; k < ranks; k++) {
    if (k == place) continue;
    switch (x->kind) {
      case PROG_ALL_GATHER:
      case PROG_ALL_TO_ALL: n += exchange_piece(x, place); break;
      case PROG_REDUCE_SCATTER: n += exchange_piece(x, k); break;
      case PROG_ALL_REDUCE:
        n += exchange_share(x, ranks, k, &begin) + exchange_share(x, ranks, place, &begin);
        break;
      default: break;
    }
  }
  if (x->kind == PROG_SEND || x->kind == PROG_PERMUTE) n = x->run;
  return n * exchange_unit(x->dtype);
}

// "all_gather", ...
static inline const char *exchange_name(uint32_t kind) {
  static const char *const name[PROG_EXCHANGES] = {"all_gather", "reduce_scatter", "all_reduce",
                                                   "all_to_all", "permute",        "part",
                                                   "send",       "receive"};
  return kind < PROG_EXCHANGES ? name[kind] : "unknown";
}

#endif
