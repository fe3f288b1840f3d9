// Checks of what programs for several ranks have: the mesh, cuts of states, exchanges and what they
// touch. Nothing that passes can make comm.c leave an operand, on any rank.
#include "runtime/exchange.h"
#include "runtime/prog_impl.h"

#define MAX_RANKS ((int64_t)1 << 20)

static bool mul(int64_t a, int64_t b, int64_t *out) { return !__builtin_mul_overflow(a, b, out); }
static bool add(int64_t a, int64_t b, int64_t *out) { return !__builtin_add_overflow(a, b, out); }

// How many ranks a set of axes joins; checked axes only.
static int64_t ranks_of(const prog *p, uint32_t axes) {
  int64_t n = 1;
  for (uint32_t i = 0; i < p->naxes; i++)
    if (axes >> i & 1) n *= p->axes[i].size;
  return n;
}

static bool known_axes(const prog *p, uint32_t axes) { return axes < (uint32_t)1 << p->naxes; }

// Ranks are numbered row-major over the axes, in their order.
static status *check_axes(const prog *p) {
  if (p->naxes > PROG_MAX_AXES) BAD("its mesh has %u axes", p->naxes);
  int64_t ranks = 1;
  for (uint32_t i = p->naxes; i-- > 0;) {
    const prog_axis *a = &p->axes[i];
    if (a->name >= p->nstrings) BAD("axis %u has no name", i);
    if (a->size < 1 || a->size > MAX_RANKS || a->stride != ranks || !mul(ranks, a->size, &ranks) ||
        ranks > MAX_RANKS)
      BAD("axis %s has a bad size or stride", p->strings + a->name);
  }
  return NULL;
}

// ---- states -------------------------------------------------------------------------------------

static bool product(const int64_t *dims, uint32_t rank, int64_t *out) {
  *out = 1;
  for (uint32_t i = 0; i < rank; i++)
    if (dims[i] < 1 || !mul(*out, dims[i], out) || *out > PROG_MAX_BYTES) return false;
  return true;
}

static status *check_cuts(const prog *p, const prog_state *s) {
  const char *name = p->strings + s->name;
  if (s->ncuts > PROG_MAX_CUTS || s->global_rank > PROG_MAX_RANK)
    BAD("state %s has too many cuts or dims", name);
  if (s->ncuts == 0) return NULL;
  int64_t n, mine;
  if (!product(s->global, s->global_rank, &n) || !product(s->dims, s->rank, &mine))
    BAD("state %s has bad dims", name);
  uint32_t used = 0;
  for (uint32_t i = 0; i < s->ncuts; i++) {
    const prog_cut *c = &s->cut[i];
    if (c->axes == 0 || !known_axes(p, c->axes) || (c->axes & used))
      BAD("state %s is cut by unknown axes, or twice", name);
    used |= c->axes;
    int64_t parts = ranks_of(p, c->axes), all;
    if (c->whole != n || c->block < 1 || !mul(c->block, parts, &all) || all > 2 * PROG_MAX_BYTES)
      BAD("cut %u of state %s has bad numbers", i, name);
    // Several times a block for each, or one that may be padded.
    if (n % all == 0)
      n /= parts;
    else if (all > n)
      n = c->block;
    else
      BAD("cut %u of state %s does not divide it", i, name);
  }
  if (n != mine) BAD("state %s has not the elements that its cuts leave", name);
  return NULL;
}

// ---- exchanges ----------------------------------------------------------------------------------

// Elements that pieces reach over when they begin `step` apart, for places 0 .. last; -1: too many.
static int64_t reach(const prog_exchange *x, const int64_t stride[3], int64_t step, int64_t ranks) {
  int64_t box = 0, end, t, last = ranks - 1;
  if (x->mirror && step) {  // 2 ranks runs, some times over
    if (step != x->run || stride[2] != 0 || stride[0] < 0 || stride[1] < 0) return -1;
    bool good = mul(x->size[0] - 1, stride[0], &box) && mul(x->size[1] - 1, stride[1], &t) &&
                add(box, t, &box) && mul(2 * ranks, x->run, &t) && add(box, t, &box);
    return good && box <= PROG_MAX_BYTES ? box : -1;
  }
  for (int i = 0; i < 3; i++)
    if (stride[i] < 0 || !mul(x->size[i] - 1, stride[i], &t) || !add(box, t, &box) ||
        box > PROG_MAX_BYTES)
      return -1;
  // What a rank has alone is a full piece, padding included. Of pieces side by side the last one
  // that is not empty may be short, the one before it is not.
  if (step == 0) return box + x->run > PROG_MAX_BYTES ? -1 : box + x->run;
  if (x->whole && (x->whole - 1) / x->run < last) last = (x->whole - 1) / x->run;
  if (step < 0 || !mul(last, step, &end) || end > PROG_MAX_BYTES) return -1;
  int64_t short_end = end + exchange_run(x, last), long_end = last ? end - step + x->run : 0;
  end = box + (short_end > long_end ? short_end : long_end);
  return end > PROG_MAX_BYTES ? -1 : end;
}

static status *check_exchange(const prog *p, uint32_t index) {
  const prog_exchange *x = &p->exchanges[index];
  if (x->name >= p->nstrings || x->kind >= PROG_EXCHANGES || x->of >= PROG_EXCHANGES ||
      x->dtype >= PROG_DTYPES || x->reduce >= PROG_REDUCTIONS || x->axes == 0 ||
      !known_axes(p, x->axes))
    BAD("exchange %u has no meaning", index);
  const char *kind = exchange_name(x->kind);
  int64_t ranks = ranks_of(p, x->axes), n = x->run;
  bool one = x->kind == PROG_SEND || x->kind == PROG_RECEIVE, far = one || x->kind == PROG_PERMUTE,
       plain = far || x->kind == PROG_ALL_REDUCE;
  bool adds = x->kind == PROG_REDUCE_SCATTER || x->kind == PROG_ALL_REDUCE;
  if (adds && !exchange_adds(x->dtype)) BAD("%s %u adds up what has no sum", kind, index);
  if ((one && (x->axes & (x->axes - 1))) || (far && (x->step > ranks || x->step < -ranks)))
    BAD("%s %u has no neighbour", kind, index);
  if (n < 1 || n > PROG_MAX_BYTES) BAD("%s %u has a bad run", kind, index);
  for (int i = 0; i < 3; i++)
    if (x->size[i] < 1 || !mul(n, x->size[i], &n) || n > PROG_MAX_BYTES ||
        (plain && x->size[i] != 1))
      BAD("%s %u has a bad box", kind, index);
  bool halves =
      x->kind == PROG_ALL_GATHER || x->kind == PROG_REDUCE_SCATTER || x->kind == PROG_PART;
  if (x->mirror > 1 || (x->mirror && (!halves || x->size[2] != 2 || x->whole)))
    BAD("%s %u mirrors what has no halves", kind, index);
  int64_t all;
  if (!mul(n, ranks, &all) || all > PROG_MAX_BYTES) BAD("%s %u moves too much", kind, index);
  if (x->whole < 0 || x->whole > ranks * x->run ||
      (x->whole && (plain || x->kind == PROG_ALL_TO_ALL)))
    BAD("%s %u shares its elements badly", kind, index);
  if (reach(x, x->in_stride, x->in_step, ranks) < 0 ||
      reach(x, x->out_stride, x->out_step, ranks) < 0)
    BAD("%s %u has bad strides", kind, index);
  if (x->values > 1 && (x->kind != PROG_ALL_REDUCE || x->values > p->noperands / 2 ||
                        x->first_operand > p->noperands - 2 * x->values))
    BAD("%s %u is no bucket", kind, index);
  if (x->scratch < comm_scratch_bytes(x, ranks) || x->scratch > PROG_MAX_BYTES)
    BAD("%s %u has too little scratch", kind, index);
  return NULL;
}

static status *check_operand(const prog *p, const prog_instr *in, uint32_t k, uint32_t access,
                             int64_t bytes, int64_t unit) {
  const prog_operand *o = &p->operands[in->first_operand + k];
  if (k >= in->operands || (o->writes & access) != access || o->bytes < bytes || o->base % unit ||
      o->layer_stride % unit || o->micro_stride % unit)
    BAD("an operand of exchange %u does not hold what it moves", in->kernel);
  return NULL;
}

// The values of a bucket have `run` elements together.
static status *check_bucket(const prog *p, const prog_instr *in, int64_t unit) {
  const prog_exchange *x = &p->exchanges[in->kernel];
  int64_t n = 0;
  uint32_t operands = 2 * x->values + (x->scratch > 0);
  if (in->operands != operands || x->first_operand != in->first_operand)
    BAD("bucket %u has other operands than its values", in->kernel);
  for (uint32_t k = 0; k < x->values; k++) {
    const prog_operand *o = &p->operands[in->first_operand + 2 * k];
    STATUS_DO(check_operand(p, in, 2 * k, 2, 0, unit));
    STATUS_DO(check_operand(p, in, 2 * k + 1, 1, 0, unit));
    if (o[0].bytes != o[1].bytes || o[0].bytes % unit || !add(n, o[0].bytes / unit, &n))
      BAD("value %u of bucket %u has a bad size", k, in->kernel);
  }
  if (n != x->run) BAD("bucket %u has not the elements of its values", in->kernel);
  return x->scratch ? check_operand(p, in, 2 * x->values, 3, x->scratch, 8) : NULL;
}

static status *check_instr(const prog *p, const prog_instr *in) {
  const prog_exchange *x = &p->exchanges[in->kernel];
  int64_t ranks = ranks_of(p, x->axes), unit = exchange_unit(x->dtype);
  if (x->values > 1) return check_bucket(p, in, unit);
  bool plain = x->kind == PROG_ALL_REDUCE || x->kind == PROG_PERMUTE || x->kind >= PROG_SEND;
  uint32_t k = 0;
  if (x->kind != PROG_SEND) {
    int64_t n = plain ? x->run : reach(x, x->out_stride, x->out_step, ranks);
    STATUS_DO(check_operand(p, in, k++, 2, n * unit, unit));
  }
  if (x->kind != PROG_RECEIVE) {
    int64_t n = plain ? x->run : reach(x, x->in_stride, x->in_step, ranks);
    STATUS_DO(check_operand(p, in, k++, 1, n * unit, unit));
  }
  if (x->scratch) STATUS_DO(check_operand(p, in, k++, 3, x->scratch, 8));
  if (in->operands != k)
    BAD("exchange %u has %u operands, expected %u", in->kernel, in->operands, k);
  return NULL;
}

status *prog_check_ranks(const prog *p) {
  STATUS_DO(check_axes(p));
  for (uint32_t i = 0; i < p->nstates; i++) STATUS_DO(check_cuts(p, &p->states[i]));
  for (uint32_t i = 0; i < p->nentries; i++)
    if (!known_axes(p, p->entries[i].batch_axes)) BAD("entry %u has an unknown axis", i);
  if (p->nexchanges && ranks_of(p, ~(uint32_t)0) < 2) BAD("it has exchanges and one rank");
  if (p->nexchanges && p->header->machine != PROG_HOST)
    return status_error("the program has exchanges among GPUs, which this runtime cannot do");
  for (uint32_t i = 0; i < p->nexchanges; i++) STATUS_DO(check_exchange(p, i));
  for (uint32_t i = 0; i < p->ninstrs; i++)
    if (p->instrs[i].op == RTOP_exchange) STATUS_DO(check_instr(p, &p->instrs[i]));
  return NULL;
}
