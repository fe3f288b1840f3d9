// Exchanges of one rank with the others of its group.
//
// Between machines they are made of messages. What lies in one block is sent from where it lies and
// received where it belongs; boxes go through scratch, one peer after the other: in round k a rank
// sends to the k-th behind it and receives from the k-th before it, so no rank is everybody's
// target at once. What is added up is received in full first and then summed.
//
// Ranks of one machine touch each other's memory (comm_share). Each that comes to an exchange says
// where its operands lie. Once all have come, any of them does any part of it, straight from
// operand to operand, until nothing is left; when all is done operands are their owners' again. A
// sum passes through the cores once, where messages are copied by the kernel, added up, and copied
// again.
//
// Either way sums are made in the order of ranks, own piece in its place, so that no bit depends on
// who came when, nor on where ranks are.
#include <string.h>

#include "runtime/comm_impl.h"
#include "runtime/comm_sum.h"

// One exchange while it runs. Steps and strides are in elements.
typedef struct job {
  comm *c;
  const prog_exchange *x;
  unsigned char *out, *in, *scratch;
  int64_t unit, ranks, me;  // bytes of an element; of the group; the place in it
  int tag;
  const comm_idle *idle;
  unsigned char *const *buf;  // operands
  bool straight;              // all of the group are on this machine
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

static status *wait_for_both(job *j) {
  STATUS_DO(wait_for(j, COMM_IN));
  return wait_for(j, COMM_OUT);
}

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

// Runs from one box to another. What lies where it goes may be there already.
static void copy_box(const job *j, unsigned char *to, const int64_t to_stride[3],
                     const unsigned char *from, const int64_t from_stride[3], int64_t run) {
  const int64_t *size = j->x->size, *t = to_stride, *f = from_stride;
  for (int64_t a = 0; a < size[0]; a++)
    for (int64_t b = 0; b < size[1]; b++)
      for (int64_t c = 0; c < size[2]; c++) {
        unsigned char *target = to + (a * t[0] + b * t[1] + c * t[2]) * j->unit;
        const unsigned char *source = from + (a * f[0] + b * f[1] + c * f[2]) * j->unit;
        if (source != target) memmove(target, source, (size_t)(run * j->unit));
      }
}

// Strides of runs that lie behind one another.
static void packed_strides(const job *j, int64_t run, int64_t stride[3]) {
  stride[2] = run;
  stride[1] = run * j->x->size[2];
  stride[0] = stride[1] * j->x->size[1];
}

// The box of a place's piece to runs that lie behind one another, and back.
static void pack(const job *j, int64_t place, unsigned char *to, const unsigned char *from,
                 int64_t run) {
  int64_t stride[3], packed[3];
  in_strides(j, place, stride);
  packed_strides(j, run, packed);
  copy_box(j, to, packed, from, stride, run);
}

static void unpack(const job *j, int64_t place, unsigned char *to, const unsigned char *from,
                   int64_t run) {
  int64_t stride[3], packed[3];
  out_strides(j, place, stride);
  packed_strides(j, run, packed);
  copy_box(j, to, stride, from, packed, run);
}

// A rank's own piece.
static void copy_own(const job *j) {
  const prog_exchange *x = j->x;
  int64_t in_stride[3], out_stride[3];
  in_strides(j, j->me, in_stride);
  out_strides(j, j->me, out_stride);
  copy_box(j, element(j, j->out, j->me * x->out_step), out_stride,
           element(j, j->in, j->me * x->in_step), in_stride, exchange_run(x, j->me));
}

// ---- straight from rank to rank -----------------------------------------------------------------

enum { UNIT_BYTES = 256 << 10 };  // of a sum, that one rank does at a time: some 50 us

static uint32_t operands_of(const job *j) { return 2 * (j->x->values > 1 ? j->x->values : 1); }

// Operand k of a place (exchange.h has their order), as this rank sees it.
static unsigned char *operand_of(const job *j, int64_t place, uint32_t k) {
  return place == j->me ? j->buf[k] : comm_there(j->c, peer(j, place), k);
}

// Sums n elements that begin `at` bytes into operand `in` of all ranks, to the same place of
// operand `out` of all.
static void sum_for_all(job *j, uint32_t out, uint32_t in, int64_t at, int64_t n) {
  const unsigned char **from = j->c->from;
  unsigned char **to = j->c->to;
  for (int64_t r = 0; r < j->ranks; r++) {
    from[r] = operand_of(j, r, in) + at;
    to[r] = operand_of(j, (j->me + r) % j->ranks, out) + at;
  }
  comm_add_up(j->x->dtype, j->x->reduce, j->ranks, from, j->ranks, to, n);
}

static int64_t value_bytes(const job *j, uint32_t k) {
  return j->c->prog->operands[j->x->first_operand + 2 * k].bytes;
}

// Elements [begin, end) of all, which may lie in several values.
static void sum_range(job *j, int64_t begin, int64_t end) {
  for (uint32_t k = 0; 2 * k < operands_of(j); k++) {
    int64_t size = j->x->values > 1 ? value_bytes(j, k) / j->unit : j->x->run;
    int64_t lo = begin > 0 ? begin : 0, hi = end < size ? end : size;
    if (lo < hi) sum_for_all(j, 2 * k, 2 * k + 1, lo * j->unit, hi - lo);
    begin -= size;
    end -= size;
  }
}

// The pieces of all for a place, to its result `out`: its own lies in a box, as do those of others
// where they are touched; those that were sent (`arrived`) lie packed, `piece` bytes from one to
// the next.
static void sum_pieces(job *j, int64_t place, unsigned char *out, unsigned char *arrived,
                       int64_t piece) {
  const prog_exchange *x = j->x;
  int64_t stride[3], run = exchange_run(x, place);
  in_strides(j, place, stride);
  EACH_RUN(x, x->out_stride, n, at) {
    int64_t a = n / (x->size[1] * x->size[2]), b = n / x->size[2] % x->size[1], c = n % x->size[2];
    int64_t from = place * x->in_step + a * stride[0] + b * stride[1] + c * stride[2];
    unsigned char *to = element(j, out, at), *sent = arrived;
    for (int64_t r = 0; r < j->ranks; r++) {
      bool packed = arrived && r != place;
      j->c->from[r] = packed ? element(j, sent, n * run) : element(j, operand_of(j, r, 1), from);
      if (packed) sent += piece;
    }
    comm_add_up(x->dtype, x->reduce, j->ranks, j->c->from, 1, &to, run);
  }
}

// The pieces of all for a place; those of an all_gather are what they have.
static void fetch(job *j, int64_t place) {
  const prog_exchange *x = j->x;
  unsigned char *out = operand_of(j, place, 0);
  int64_t in_stride[3], out_stride[3];
  in_strides(j, place, in_stride);
  for (int64_t k = 0; k < j->ranks; k++) {
    int64_t from = (place + k) % j->ranks;
    out_strides(j, from, out_stride);
    copy_box(j, element(j, out, from * x->out_step), out_stride,
             element(j, operand_of(j, from, 1), place * x->in_step), in_stride,
             exchange_run(x, from));
  }
}

// The place of the rank that is `step` further than `place` on each axis.
static int64_t neighbour(const job *j, int64_t place, int64_t step) {
  const prog *p = j->c->prog;
  int64_t to = 0;
  for (uint32_t a = 0; a < p->naxes; a++) {
    if (!(j->x->axes >> a & 1)) continue;
    int64_t n = p->axes[a].size, at = (comm_coordinate(p, peer(j, place), a) + step) % n;
    to = to * n + (at < 0 ? at + n : at);
  }
  return to;
}

// An exchange is made of units that any rank may do: a part of a sum, or else all that a place
// gets. All ranks count the same.
static int64_t units_of(const job *j) {
  int64_t bytes = j->x->run * j->unit;
  if (j->x->kind != PROG_ALL_REDUCE) return j->ranks;
  return bytes > UNIT_BYTES ? (bytes + UNIT_BYTES - 1) / UNIT_BYTES : 1;
}

static void do_unit(job *j, int64_t unit) {
  int64_t each = UNIT_BYTES / j->unit, begin = unit * each, end = begin + each;
  switch (j->x->kind) {
    case PROG_ALL_REDUCE: sum_range(j, begin, end < j->x->run ? end : j->x->run); break;
    case PROG_REDUCE_SCATTER: sum_pieces(j, unit, operand_of(j, unit, 0), NULL, 0); break;
    case PROG_PERMUTE:
      memcpy(operand_of(j, unit, 0), operand_of(j, neighbour(j, unit, -j->x->step), 1),
             (size_t)(j->x->run * j->unit));
      break;
    default: fetch(j, unit); break;
  }
}

// Takes the next unit below `end`, if there is one.
static bool take_unit(_Atomic uint64_t *begun, uint64_t end, uint64_t *unit) {
  *unit = atomic_load_explicit(begun, memory_order_relaxed);
  while (*unit < end)
    if (atomic_compare_exchange_weak(begun, unit, *unit + 1)) return true;
  return false;
}

// Who comes first has time, and who comes last has none: where kernels go on in between, the last
// one leaves the units to those that were there before it, as long as it can. So the work of
// exchanges goes to the ranks that are ahead, and keeps ranks together whose cores are not alike.
static status *straight(job *j) {
  comm *c = j->c;
  uint32_t axes = j->x->axes & ((1u << PROG_MAX_AXES) - 1);
  comm_counts *counts = &c->memory[peer(j, 0)].board->counts[axes];
  uint64_t first = c->counted[axes].units, end = first + (uint64_t)units_of(j), unit;
  c->counted[axes].units = end;
  c->counted[axes].came += (uint64_t)j->ranks;
  const comm_await all_came = {.count = &counts->came, .least = c->counted[axes].came};
  const comm_await all_done = {.count = &counts->done, .least = end};
  for (uint32_t k = 0; k < operands_of(j); k++) comm_tell(c, k, j->buf[k]);
  bool last = atomic_fetch_add(&counts->came, 1) + 1 == all_came.least;
  if (last && j->idle) j->idle->give_way(j->idle->ctx);
  STATUS_DO(comm_wait_for(c, &all_came, j->idle));
  while (take_unit(&counts->begun, end, &unit)) {
    do_unit(j, (int64_t)(unit - first));
    atomic_fetch_add(&counts->done, 1);
  }
  return comm_wait_for(c, &all_done, j->idle);
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
  return wait_for_both(j);
}

// ---- adding up ----------------------------------------------------------------------------------

static status *reduce_scatter(job *j) {
  const prog_exchange *x = j->x;
  bool in_block = exchange_dense(x, x->in_stride);
  int64_t piece = exchange_round(exchange_piece(x, 0) * j->unit);
  unsigned char *packed = j->scratch, *arrived = in_block ? packed : packed + piece;
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
  STATUS_DO(wait_for_both(j));
  sum_pieces(j, j->me, j->out, arrived, piece);
  return NULL;
}

static status *all_reduce(job *j) {
  const prog_exchange *x = j->x;
  int64_t mine, begin, first, n = exchange_share(x, j->ranks, j->me, &mine);
  int64_t piece = exchange_round(exchange_share(x, j->ranks, 0, &first) * j->unit);
  unsigned char *to = element(j, j->out, mine), *other = j->scratch;
  for (int64_t r = 0; r < j->ranks; r++) {
    j->c->from[r] = r == j->me ? element(j, j->in, mine) : other;
    if (r == j->me) continue;
    STATUS_DO(receive_from(j, r, other, n));
    other += piece;
  }
  for (int64_t k = 1; k < j->ranks; k++) {
    int64_t whose = (j->me + k) % j->ranks, share = exchange_share(x, j->ranks, whose, &begin);
    STATUS_DO(send_to(j, whose, element(j, j->in, begin), share));
  }
  STATUS_DO(wait_for_both(j));
  comm_add_up(x->dtype, x->reduce, j->ranks, j->c->from, 1, &to, n);
  for (int64_t k = 1; k < j->ranks; k++) {
    int64_t from = (j->me + j->ranks - k) % j->ranks;
    int64_t share = exchange_share(x, j->ranks, from, &begin);
    STATUS_DO(receive_from(j, from, element(j, j->out, begin), share));
    STATUS_DO(send_to(j, (j->me + k) % j->ranks, to, n));
  }
  return wait_for_both(j);
}

// ---- buckets ------------------------------------------------------------------------------------

// Reduces the values of a bucket, out and in of each in turn, as one array: where they lie, or,
// when they are not behind one another, gathered in scratch.
static status *reduce_bucket(job *j) {
  const prog_exchange *x = j->x;
  unsigned char *const *buf = j->buf;
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

static status *permute(job *j) {
  int64_t to = neighbour(j, j->me, j->x->step), from = neighbour(j, j->me, -j->x->step);
  STATUS_DO(receive_from(j, from, j->out, j->x->run));
  STATUS_DO(send_to(j, to, j->in, j->x->run));
  return wait_for_both(j);
}

// Messages that go up the axis and those that go down do not wait for each other, though with two
// ranks both are between the same ones: stages of a pipeline send what goes forward up.
static int direction_tag(const job *j, bool up) {
  return comm_tag(TAG_SEND, j->x->axes, up ? 0 : 1);
}

static status *send_one(job *j) {
  int64_t to = neighbour(j, j->me, j->x->step), bytes = j->x->run * j->unit;
  comm_buffer *b = &j->c->buffers[j->x - j->c->prog->exchanges];
  if (b->busy) STATUS_DO(wait_for(j, b->lane));
  j->c->busy += !b->busy;
  b->busy = true;
  memcpy(b->at, j->in, (size_t)bytes);
  return comm_post_send(j->c, b->lane, peer(j, to), direction_tag(j, j->x->step > 0), b->at, bytes);
}

static status *receive_one(job *j) {
  j->tag = direction_tag(j, j->x->step < 0);
  STATUS_DO(receive_from(j, neighbour(j, j->me, j->x->step), j->out, j->x->run));
  return wait_for(j, COMM_IN);
}

status *comm_drain(comm *c) {
  for (uint32_t i = 0; c && i < c->prog->nexchanges; i++) {
    comm_buffer *b = &c->buffers[i];
    if (b->busy) STATUS_DO(comm_wait(c, b->lane, NULL));
    b->busy = false;
  }
  if (c) c->busy = 0;
  return NULL;
}

status *comm_push_sends(comm *c) {
  for (uint32_t i = 0; i < c->prog->nexchanges; i++) {
    comm_buffer *b = &c->buffers[i];
    bool gone = false;
    if (b->busy) STATUS_DO(comm_test(c, b->lane, &gone));
    b->busy = b->busy && !gone;
    c->busy -= gone;
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

static status *carry_out(job *j) {
  if (j->x->kind == PROG_REDUCE_SCATTER || j->x->kind == PROG_PART) clear_padding(j);
  if (j->straight && j->x->kind < PROG_PART) return straight(j);
  if (j->x->values > 1) return reduce_bucket(j);
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
           .idle = idle,
           .buf = buf,
           .straight = comm_reaches(c, x->axes)};
  j.tag = comm_tag(TAG_EXCHANGE, x->axes, 0);
  if (x->kind < PROG_PART) j.tag = comm_tag(TAG_EXCHANGE, x->axes, c->exchanges[x->axes & 0xff]++);
  int k = 0;
  if (x->kind != PROG_SEND) j.out = buf[k++];
  if (x->kind != PROG_RECEIVE) j.in = buf[k++];
  if (x->scratch) j.scratch = buf[x->values > 1 ? 2 * (int)x->values : k];
  comm_take_off(c, index, call);
  status *s = carry_out(&j);
  comm_land(c);
  if (s) return status_context(s, "%s of %s", exchange_name(x->kind), prog_text(p, x->name));
  c->count[index].bytes += exchange_sent_bytes(x, j.ranks, j.me);
  c->count[index].times++;
  return NULL;
}
