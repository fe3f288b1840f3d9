// Exchanges, made of messages between two.
//
// What lies in one block is sent from where it lies and received where it belongs; boxes go through
// scratch, one peer after the other: in round k a rank sends to the k-th behind it and receives
// from the k-th before it, so no rank is everybody's target at once. What is added up is received
// in full first and then summed in the order of ranks, own piece in its place, so that no bit
// depends on who came when.
#include <string.h>

#include "runtime/comm_impl.h"
#include "runtime/dtype.h"

// One exchange while it runs. Steps and strides are in elements.
typedef struct job {
  comm *c;
  const prog_exchange *x;
  unsigned char *out, *in, *scratch;
  int64_t unit, ranks, me;  // bytes of an element; of the group; the place in it
  int tag;
  const comm_idle *idle;
} job;

static int peer(const job *j, int64_t place) {
  return comm_at(j->c->prog, j->c->engine.rank, j->x->axes, place);
}

static status *send_to(job *j, int64_t place, const unsigned char *at, int64_t elements) {
  return comm_post_send(j->c, COMM_OUT, peer(j, place), j->tag, at, elements * j->unit);
}

static status *receive_from(job *j, int64_t place, unsigned char *at, int64_t elements) {
  return comm_post_receive(j->c, COMM_IN, peer(j, place), j->tag, at, elements * j->unit);
}

static status *wait_for(job *j, int lane) { return comm_wait(j->c, lane, j->idle); }

static unsigned char *element(const job *j, unsigned char *base, int64_t at) {
  return base + at * j->unit;
}

// ---- boxes --------------------------------------------------------------------------------------

// Calls for each run of a box: `number` counts them, `at` is where one begins, in elements.
#define EACH_RUN(x, stride, number, at)                                                 \
  for (int64_t number = 0, a_ = 0; a_ < (x)->size[0]; a_++)                             \
    for (int64_t b_ = 0; b_ < (x)->size[1]; b_++)                                       \
      for (int64_t c_ = 0, at = a_ * (stride)[0] + b_ * (stride)[1]; c_ < (x)->size[2]; \
           c_++, number++, at += (stride)[2])

// Strides of what is read, or written, for the piece of a place.
static void in_strides(const job *j, int64_t place, int64_t stride[3]) {
  exchange_strides(j->x, j->x->in_stride, j->x->in_step, j->ranks, place, stride);
}

static void out_strides(const job *j, int64_t place, int64_t stride[3]) {
  exchange_strides(j->x, j->x->out_stride, j->x->out_step, j->ranks, place, stride);
}

// The box of a place's piece to runs that lie behind one another, and back.
static void pack(const job *j, int64_t place, unsigned char *to, unsigned char *from, int64_t run) {
  int64_t stride[3];
  in_strides(j, place, stride);
  EACH_RUN(j->x, stride, n, at)
  memcpy(element(j, to, n * run), element(j, from, at), (size_t)(run * j->unit));
}

static void unpack(const job *j, int64_t place, unsigned char *to, unsigned char *from,
                   int64_t run) {
  int64_t stride[3];
  out_strides(j, place, stride);
  EACH_RUN(j->x, stride, n, at)
  memcpy(element(j, to, at), element(j, from, n * run), (size_t)(run * j->unit));
}

// A rank's own piece; it may be there already.
static void copy_own(const job *j) {
  const prog_exchange *x = j->x;
  unsigned char *from = element(j, j->in, j->me * x->in_step);
  unsigned char *to = element(j, j->out, j->me * x->out_step);
  int64_t run = exchange_run(x, j->me), is[3], os[3];
  in_strides(j, j->me, is);
  out_strides(j, j->me, os);
  for (int64_t a = 0; a < x->size[0]; a++)
    for (int64_t b = 0; b < x->size[1]; b++)
      for (int64_t c = 0; c < x->size[2]; c++) {
        int64_t i = a * is[0] + b * is[1] + c * is[2], o = a * os[0] + b * os[1] + c * os[2];
        unsigned char *source = element(j, from, i), *target = element(j, to, o);
        if (source != target) memmove(target, source, (size_t)(run * j->unit));
      }
}

// ---- moving -------------------------------------------------------------------------------------

// all_gather and all_to_all.
static status *trade(job *j) {
  const prog_exchange *x = j->x;
  int64_t n = j->ranks, unit = exchange_round(exchange_piece(x, 0) * j->unit);
  bool in_block = exchange_dense(x, x->in_stride), out_block = exchange_dense(x, x->out_stride);
  unsigned char *packed = j->scratch, *arrived = in_block ? packed : packed + unit;
  bool same = x->in_step == 0, rounds = !out_block || !(in_block || same);
  copy_own(j);
  if (!in_block && same) pack(j, j->me, packed, j->in, exchange_run(x, j->me));
  for (int64_t k = 1; k < n; k++) {
    int64_t to = (j->me + k) % n, from = (j->me + n - k) % n;
    unsigned char *source = element(j, j->in, to * x->in_step);
    unsigned char *target = element(j, j->out, from * x->out_step);
    if (!in_block && !same) pack(j, to, packed, source, x->run);
    STATUS_DO(receive_from(j, from, out_block ? target : arrived, exchange_piece(x, from)));
    STATUS_DO(send_to(j, to, in_block ? source : packed, exchange_piece(x, j->me)));
    if (!rounds) continue;
    STATUS_DO(wait_for(j, COMM_IN));
    if (!out_block) unpack(j, from, target, arrived, exchange_run(x, from));
    STATUS_DO(wait_for(j, COMM_OUT));
  }
  STATUS_DO(wait_for(j, COMM_IN));
  return wait_for(j, COMM_OUT);
}

// ---- adding up ----------------------------------------------------------------------------------

enum { BLOCK = 512 };  // elements that are summed at a time

// Where the pieces of all places lie; run number n of a place begins at piece + n * distance.
typedef struct sources {
  unsigned char *own, *first;
  int64_t me, piece;  // bytes between those of two others
} sources;

static const unsigned char *source_of(const sources *s, int64_t place, int64_t bytes,
                                      int64_t own_bytes) {
  if (place == s->me) return s->own + own_bytes;
  return s->first + (place < s->me ? place : place - 1) * s->piece + bytes;
}

static float same_f32(float v) { return v; }
static double same_f64(double v) { return v; }
static uint32_t same_u32(uint32_t v) { return v; }
static uint64_t same_u64(uint64_t v) { return v; }
static float from_bf16(uint16_t v) {
  uint32_t bits = (uint32_t)v << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}
static uint16_t to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return dtype_bf16_bits(bits);
}

// A NaN stays one whichever side it is on.
#define GREATER(S, a, b) ((S)(b) > (S)(a) || (b) != (b) ? (b) : (a))

// Elements T, summed as A, compared as S.
#define ADD_UP(T, A, S, LOAD, STORE)                                                \
  for (int64_t at = 0; at < n; at += BLOCK) {                                       \
    A sum[BLOCK];                                                                   \
    int64_t m = n - at < BLOCK ? n - at : BLOCK;                                    \
    for (int64_t r = 0; r < ranks; r++) {                                           \
      const T *from = (const T *)(const void *)source_of(s, r, packed, own) + at;   \
      if (r == 0)                                                                   \
        for (int64_t i = 0; i < m; i++) sum[i] = LOAD(from[i]);                     \
      else if (reduce == PROG_SUM)                                                  \
        for (int64_t i = 0; i < m; i++) sum[i] += LOAD(from[i]);                    \
      else                                                                          \
        for (int64_t i = 0; i < m; i++) sum[i] = GREATER(S, sum[i], LOAD(from[i])); \
    }                                                                               \
    T *to = (T *)(void *)out + at;                                                  \
    for (int64_t i = 0; i < m; i++) to[i] = STORE(sum[i]);                          \
  }

// n elements that lie side by side; whole numbers wrap around.
static void add_up(uint32_t dtype, uint32_t reduce, int64_t ranks, const sources *s, int64_t packed,
                   int64_t own, unsigned char *out, int64_t n) {
  switch (dtype) {
    case PROG_F32: ADD_UP(float, float, float, same_f32, same_f32) break;
    case PROG_F64: ADD_UP(double, double, double, same_f64, same_f64) break;
    case PROG_BF16: ADD_UP(uint16_t, float, float, from_bf16, to_bf16) break;
    case PROG_F16: ADD_UP(uint16_t, float, float, dtype_from_f16, dtype_to_f16) break;
    case PROG_I32: ADD_UP(uint32_t, uint32_t, int32_t, same_u32, same_u32) break;
    case PROG_I64: ADD_UP(uint64_t, uint64_t, int64_t, same_u64, same_u64) break;
    default: break;
  }
}

static status *reduce_scatter(job *j) {
  const prog_exchange *x = j->x;
  bool in_block = exchange_dense(x, x->in_stride);
  int64_t piece = exchange_round(exchange_piece(x, 0) * j->unit), run = exchange_run(x, j->me);
  unsigned char *packed = j->scratch, *arrived = in_block ? packed : packed + piece;
  sources s = {element(j, j->in, j->me * x->in_step), arrived, j->me, piece};
  for (int64_t r = 0, slot = 0; r < j->ranks; r++)
    if (r != j->me)
      STATUS_DO(receive_from(j, r, arrived + slot++ * piece, exchange_piece(x, j->me)));
  for (int64_t k = 1; k < j->ranks; k++) {
    int64_t to = (j->me + k) % j->ranks;
    unsigned char *from = element(j, j->in, to * x->in_step);
    if (!in_block) pack(j, to, packed, from, exchange_run(x, to));
    STATUS_DO(send_to(j, to, in_block ? from : packed, exchange_piece(x, to)));
    // Others have asked for theirs by now, or will without waiting for us.
    if (!in_block) STATUS_DO(wait_for(j, COMM_OUT));
  }
  STATUS_DO(wait_for(j, COMM_IN));
  STATUS_DO(wait_for(j, COMM_OUT));
  int64_t stride[3];
  in_strides(j, j->me, stride);
  EACH_RUN(x, x->out_stride, n, at) {
    int64_t a = n / (x->size[1] * x->size[2]), b = n / x->size[2] % x->size[1], c = n % x->size[2];
    int64_t own = a * stride[0] + b * stride[1] + c * stride[2];
    add_up(x->dtype, x->reduce, j->ranks, &s, n * run * j->unit, own * j->unit,
           element(j, j->out, at), run);
  }
  return NULL;
}

static status *all_reduce(job *j) {
  const prog_exchange *x = j->x;
  int64_t mine, begin, first, n = exchange_share(x, j->ranks, j->me, &mine);
  int64_t piece = exchange_round(exchange_share(x, j->ranks, 0, &first) * j->unit);
  sources s = {element(j, j->in, mine), j->scratch, j->me, piece};
  for (int64_t r = 0, slot = 0; r < j->ranks; r++)
    if (r != j->me) STATUS_DO(receive_from(j, r, j->scratch + slot++ * piece, n));
  for (int64_t k = 1; k < j->ranks; k++) {
    int64_t to = (j->me + k) % j->ranks, share = exchange_share(x, j->ranks, to, &begin);
    STATUS_DO(send_to(j, to, element(j, j->in, begin), share));
  }
  STATUS_DO(wait_for(j, COMM_IN));
  STATUS_DO(wait_for(j, COMM_OUT));
  add_up(x->dtype, x->reduce, j->ranks, &s, 0, 0, element(j, j->out, mine), n);
  for (int64_t k = 1; k < j->ranks; k++) {
    int64_t to = (j->me + k) % j->ranks, from = (j->me + j->ranks - k) % j->ranks;
    int64_t share = exchange_share(x, j->ranks, from, &begin);
    STATUS_DO(receive_from(j, from, element(j, j->out, begin), share));
    STATUS_DO(send_to(j, to, element(j, j->out, mine), n));
  }
  STATUS_DO(wait_for(j, COMM_IN));
  return wait_for(j, COMM_OUT);
}

// ---- buckets ------------------------------------------------------------------------------------

static int64_t value_bytes(const job *j, uint32_t k) {
  return j->c->prog->operands[j->x->first_operand + 2 * k].bytes;
}

// Reduces the values of a bucket, out and in of each in turn, as one array: where they lie, or,
// when they are not behind one another, gathered in scratch.
static status *reduce_bucket(job *j, unsigned char *const *buf) {
  const prog_exchange *x = j->x;
  bool beside = true;
  for (uint32_t k = 0; k + 1 < x->values; k++)
    for (uint32_t i = 0; i < 2; i++)
      beside = beside && buf[2 * k + 2 + i] == buf[2 * k + i] + value_bytes(j, k);
  if (beside) return all_reduce(j);
  unsigned char *bucket = j->scratch, *at = bucket;
  for (uint32_t k = 0; k < x->values; at += value_bytes(j, k++))
    memcpy(at, buf[2 * k + 1], (size_t)value_bytes(j, k));
  j->in = j->out = bucket;
  j->scratch = bucket + exchange_bucket(x);
  STATUS_DO(all_reduce(j));
  at = bucket;
  for (uint32_t k = 0; k < x->values; at += value_bytes(j, k++))
    memcpy(buf[2 * k], at, (size_t)value_bytes(j, k));
  return NULL;
}

// ---- one to one ---------------------------------------------------------------------------------

// The place of the rank `step` further on each axis.
static int64_t neighbour(const job *j, int64_t step) {
  const prog *p = j->c->prog;
  int64_t place = 0;
  for (uint32_t a = 0; a < p->naxes; a++) {
    if (!(j->x->axes >> a & 1)) continue;
    int64_t n = p->axes[a].size, to = (comm_coordinate(p, j->c->engine.rank, a) + step) % n;
    place = place * n + (to < 0 ? to + n : to);
  }
  return place;
}

static status *permute(job *j) {
  int64_t to = neighbour(j, j->x->step), from = neighbour(j, -j->x->step);
  STATUS_DO(receive_from(j, from, j->out, j->x->run));
  STATUS_DO(send_to(j, to, j->in, j->x->run));
  STATUS_DO(wait_for(j, COMM_IN));
  return wait_for(j, COMM_OUT);
}

// Messages that go up the axis and those that go down do not wait for each other, though with two
// ranks both are between the same ones: stages of a pipeline send what goes forward up.
static int direction_tag(const job *j, bool up) {
  return comm_tag(TAG_SEND, j->x->axes, up ? 0 : 1);
}

static status *send_one(job *j) {
  int64_t to = neighbour(j, j->x->step), bytes = j->x->run * j->unit;
  comm_buffer *b = &j->c->buffers[j->x - j->c->prog->exchanges];
  if (b->busy) STATUS_DO(wait_for(j, b->lane));
  memcpy(b->at, j->in, (size_t)bytes);
  b->busy = true;
  return comm_post_send(j->c, b->lane, peer(j, to), direction_tag(j, j->x->step > 0), b->at, bytes);
}

static status *receive_one(job *j) {
  j->tag = direction_tag(j, j->x->step < 0);
  STATUS_DO(receive_from(j, neighbour(j, j->x->step), j->out, j->x->run));
  return wait_for(j, COMM_IN);
}

status *comm_drain(comm *c) {
  for (uint32_t i = 0; c && i < c->prog->nexchanges; i++) {
    comm_buffer *b = &c->buffers[i];
    if (b->busy) STATUS_DO(comm_wait(c, b->lane, NULL));
    b->busy = false;
  }
  return NULL;
}

// ---- all ----------------------------------------------------------------------------------------

// Behind the elements of a piece that is shorter than the others.
static void clear_padding(job *j) {
  const prog_exchange *x = j->x;
  int64_t run = exchange_run(x, j->me);
  if (run == x->run) return;
  EACH_RUN(x, x->out_stride, n, at) {
    (void)n;
    memset(element(j, j->out, at + run), 0, (size_t)((x->run - run) * j->unit));
  }
}

static status *carry_out(job *j, unsigned char *const *buf) {
  if (j->x->values > 1) return reduce_bucket(j, buf);
  if (j->x->kind == PROG_REDUCE_SCATTER || j->x->kind == PROG_PART) clear_padding(j);
  switch (j->x->kind) {
    case PROG_ALL_GATHER:
    case PROG_ALL_TO_ALL: return trade(j);
    case PROG_REDUCE_SCATTER: return reduce_scatter(j);
    case PROG_ALL_REDUCE: return all_reduce(j);
    case PROG_PERMUTE: return permute(j);
    case PROG_PART: copy_own(j); return NULL;
    case PROG_SEND: return send_one(j);
    case PROG_RECEIVE: return receive_one(j);
    default: return status_error("an exchange of unknown kind: a bug in dsmc");
  }
}

status *comm_exchange(comm *c, const prog_exchange *x, unsigned char *const *buf,
                      const dsm_call *call, const comm_idle *idle) {
  const prog *p = c->prog;
  uint32_t index = (uint32_t)(x - p->exchanges);
  job j = {.c = c,
           .x = x,
           .unit = exchange_unit(x->dtype),
           .ranks = comm_group_size(p, x->axes),
           .me = comm_place(p, c->engine.rank, x->axes),
           .idle = idle};
  j.tag = comm_tag(TAG_EXCHANGE, x->axes, 0);
  if (x->kind < PROG_PART) j.tag = comm_tag(TAG_EXCHANGE, x->axes, c->exchanges[x->axes & 0xff]++);
  int k = 0;
  if (x->kind != PROG_SEND) j.out = buf[k++];
  if (x->kind != PROG_RECEIVE) j.in = buf[k++];
  if (x->scratch) j.scratch = buf[x->values > 1 ? 2 * (int)x->values : k];
  comm_take_off(c, index, call);
  status *s = carry_out(&j, buf);
  comm_land(c);
  if (s) return status_context(s, "%s of %s", exchange_name(x->kind), prog_text(p, x->name));
  c->count[index].bytes += exchange_sent_bytes(x, j.ranks, j.me);
  c->count[index].times++;
  return NULL;
}
