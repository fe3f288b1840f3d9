// Exchanges against what program.h says of them, element by element, written down plainly here.
//
//   test_comm           ranks are threads of this process
//   mpirun -n R test_comm --mpi    they are processes: meshes of R ranks are gone through
//
// Each twice: with messages, and with memory that the ranks share.
//
// Each rank makes its own inputs from (rank, record, index), so each can work out what any other
// one has sent. All records of a mesh run one after the other without a pause between them.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// cmocka wants the four above it
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/comm_impl.h"
#include "runtime/dtype.h"
#include "tests/unit/draw.h"
#include "tests/unit/thread_engine.h"

enum { RECORDS = 120, MAX_BYTES = 1 << 20, GUARD = 64, MEMORY = 16 << 20 };

typedef struct mesh {
  int n;
  int64_t size[3];
} mesh;

static const mesh meshes[] = {{1, {2}},    {1, {3}},       {2, {2, 2}}, {1, {4}},
                              {2, {2, 3}}, {3, {2, 2, 2}}, {1, {8}},    {2, {4, 2}}};

typedef struct world {
  prog p;
  prog_header header;
  prog_axis axis[3];
  prog_exchange x[RECORDS];
  int64_t in_elements[RECORDS], out_elements[RECORDS];
  void *shared;  // a test's own, for all its ranks
} world;

// ---- records ------------------------------------------------------------------------------------

static int64_t pick(uint64_t *seed, int64_t lo, int64_t hi) {
  return lo + (int64_t)(draw(seed) % (uint64_t)(hi - lo + 1));
}

// Strides of size[0..2], and the step from rank to rank when `steps` > 0, of an array whose axes
// may stand in any order and have gaps behind them. Returns its elements.
static int64_t lay_out(uint64_t *seed, const prog_exchange *x, int64_t stride[3], int64_t steps,
                       int64_t *step, bool plain) {
  int order[4] = {3, 0, 1, 2};  // 3: the rank
  for (int i = 3; i > 0 && !plain; i--) {
    int k = (int)pick(seed, 0, i), t = order[i];
    order[i] = order[k];
    order[k] = t;
  }
  int64_t at = x->run;
  for (int i = 3; i >= 0; i--) {
    int a = order[i];
    if (a == 3 && !steps) continue;
    if (!plain && pick(seed, 0, 2) == 0) at += pick(seed, 1, 3);
    if (a == 3)
      *step = at;
    else
      stride[a] = at;
    at *= a == 3 ? steps : x->size[a];
  }
  return at;
}

// The side where all pieces lie, of a record whose pieces are mirrored. Returns its elements.
static int64_t lay_mirrored(const prog_exchange *x, int64_t stride[3], int64_t ranks,
                            int64_t *step) {
  *step = x->run;
  stride[2] = 0;
  stride[1] = 2 * ranks * x->run;
  stride[0] = x->size[1] * stride[1];
  return x->size[0] * stride[0];
}

static void make_record(uint64_t *seed, world *w, int i, uint32_t kind) {
  static const uint32_t summed[] = {PROG_F32, PROG_BF16, PROG_F16, PROG_F64, PROG_I32, PROG_I64};
  prog_exchange *x = &w->x[i];
  *x = (prog_exchange){.kind = kind, .size = {1, 1, 1}};
  x->axes = (uint32_t)pick(seed, 1, (1 << w->p.naxes) - 1);
  if (kind >= PROG_SEND) x->axes = 1u << pick(seed, 0, w->p.naxes - 1);
  bool adds = kind == PROG_REDUCE_SCATTER || kind == PROG_ALL_REDUCE;
  x->dtype = adds ? summed[pick(seed, 0, 5)] : (uint32_t)pick(seed, 0, PROG_DTYPES - 1);
  x->reduce = adds ? (uint32_t)pick(seed, 0, 1) : 0;
  int64_t ranks = comm_group_size(&w->p, x->axes);
  x->run = pick(seed, 1, pick(seed, 0, 3) ? 20 : 2000);
  bool box = kind <= PROG_ALL_TO_ALL || kind == PROG_PART;
  if (kind == PROG_ALL_REDUCE) box = false;
  if (kind == PROG_PERMUTE) x->step = pick(seed, -2, 2);
  for (int a = 0; a < 3 && box; a++) x->size[a] = pick(seed, 0, 1) ? 1 : pick(seed, 2, 4);
  if (box && kind != PROG_ALL_TO_ALL && pick(seed, 0, 2) == 0)
    x->whole = pick(seed, 1, ranks * x->run);
  x->mirror = box && kind != PROG_ALL_TO_ALL && !x->whole && pick(seed, 0, 2) == 0;
  if (x->mirror) x->size[2] = 2;
  bool plain = pick(seed, 0, 1);
  int64_t from = kind == PROG_ALL_GATHER || !box ? 0 : ranks;
  int64_t to = kind == PROG_REDUCE_SCATTER || kind == PROG_PART || !box ? 0 : ranks;
  w->in_elements[i] = lay_out(seed, x, x->in_stride, from, &x->in_step, plain);
  if (kind != PROG_ALL_TO_ALL) plain = pick(seed, 0, 1);
  w->out_elements[i] = lay_out(seed, x, x->out_stride, to, &x->out_step, plain);
  if (x->mirror && from) w->in_elements[i] = lay_mirrored(x, x->in_stride, ranks, &x->in_step);
  if (x->mirror && to) w->out_elements[i] = lay_mirrored(x, x->out_stride, ranks, &x->out_step);
  x->scratch = comm_scratch_bytes(x, ranks);
}

static void make_world(world *w, const mesh *m, uint64_t seed) {
  memset(w, 0, sizeof *w);
  int64_t stride = 1;
  for (int i = m->n - 1; i >= 0; i--) {
    w->axis[i] = (prog_axis){.size = m->size[i], .stride = stride};
    stride *= m->size[i];
  }
  w->p = (prog){.header = &w->header,
                .strings = "",
                .nstrings = 1,
                .axes = w->axis,
                .naxes = (uint32_t)m->n,
                .exchanges = w->x,
                .nexchanges = RECORDS};
  for (int i = 0; i < RECORDS; i++) {
    uint32_t kind = (uint32_t)pick(&seed, 0, PROG_SEND);
    if (i + 1 == RECORDS && kind == PROG_SEND) kind = PROG_PART;
    make_record(&seed, w, i, kind);
    if (kind != PROG_SEND) continue;
    // Who sends `step` on is received from `step` before.
    w->x[i].step = pick(&seed, -2, 2);
    w->x[i + 1] = w->x[i];
    w->x[i + 1].kind = PROG_RECEIVE;
    w->x[i + 1].step = -w->x[i].step;
    w->in_elements[i + 1] = w->out_elements[i + 1] = w->x[i].run;
    i++;
  }
}

// ---- values -------------------------------------------------------------------------------------

// Element `at` of what `rank` has as input of record `i`; any bits for types that are only moved.
static void value(int rank, int i, int64_t at, uint32_t dtype, unsigned char *out) {
  uint64_t s = (uint64_t)rank * 1000003u + (uint64_t)i * 7919u + (uint64_t)at * 2654435761u;
  uint64_t bits = draw(&s);
  bits = draw(&s) ^ bits;
  double v = ((double)(bits >> 11) * 0x1p-53 - 0.5) * 8;
  float f = (float)v;
  uint16_t h;
  switch (dtype) {
    case PROG_F32: memcpy(out, &f, 4); break;
    case PROG_F64: memcpy(out, &v, 8); break;
    case PROG_BF16:
      h = dtype_to_bf16(f);
      memcpy(out, &h, 2);
      break;
    case PROG_F16:
      h = dtype_to_f16(f);
      memcpy(out, &h, 2);
      break;
    default: memcpy(out, &bits, (size_t)exchange_unit(dtype)); break;
  }
}

static void sum_in_order(uint32_t dtype, uint32_t reduce, int n, unsigned char (*in)[8],
                         unsigned char *out) {
  float f = 0, g;
  double d = 0, e;
  uint16_t h;
  int32_t a = 0, b;
  int64_t k = 0, l;
  for (int r = 0; r < n; r++) switch (dtype) {
      case PROG_F32:
      case PROG_BF16:
      case PROG_F16:
        memcpy(&g, in[r], 4);
        memcpy(&h, in[r], 2);
        if (dtype == PROG_BF16) g = dtype_from_bf16(h);
        if (dtype == PROG_F16) g = dtype_from_f16(h);
        f = r == 0 ? g : reduce == PROG_SUM ? f + g : g > f ? g : f;
        break;
      case PROG_F64:
        memcpy(&e, in[r], 8);
        d = r == 0 ? e : reduce == PROG_SUM ? d + e : e > d ? e : d;
        break;
      case PROG_I32:
        memcpy(&b, in[r], 4);
        a = r == 0 ? b : reduce == PROG_SUM ? (int32_t)((uint32_t)a + (uint32_t)b) : b > a ? b : a;
        break;
      case PROG_I64:
        memcpy(&l, in[r], 8);
        k = r == 0 ? l : reduce == PROG_SUM ? (int64_t)((uint64_t)k + (uint64_t)l) : l > k ? l : k;
        break;
    }
  uint16_t rounded = dtype == PROG_BF16 ? dtype_to_bf16(f) : dtype_to_f16(f);
  switch (dtype) {
    case PROG_F32: memcpy(out, &f, 4); break;
    case PROG_F64: memcpy(out, &d, 8); break;
    case PROG_I32: memcpy(out, &a, 4); break;
    case PROG_I64: memcpy(out, &k, 8); break;
    default: memcpy(out, &rounded, 2); break;
  }
}

// ---- what is expected ---------------------------------------------------------------------------

static int rank_at(const world *w, int rank, uint32_t axes, int64_t place) {
  // The ranks that differ from `rank` on those axes alone, counted upwards.
  int64_t ranks = comm_program_ranks(&w->p);
  for (int r = 0; r < ranks; r++) {
    bool same = true;
    for (uint32_t a = 0; a < w->p.naxes; a++)
      if (!(axes >> a & 1) && comm_coordinate(&w->p, r, a) != comm_coordinate(&w->p, rank, a))
        same = false;
    if (same && place-- == 0) return r;
  }
  return -1;
}

// Zeros stand behind the elements of a piece that is shorter than the others.
static void expect_padding(const prog_exchange *x, int64_t me, int64_t unit, unsigned char *out) {
  int64_t run = x->whole - me * x->run < 0 ? 0 : x->whole - me * x->run;
  for (int64_t a = 0; a < x->size[0]; a++)
    for (int64_t b = 0; b < x->size[1]; b++)
      for (int64_t c = 0; c < x->size[2]; c++)
        for (int64_t e = run; e < x->run; e++)
          memset(
              out + (a * x->out_stride[0] + b * x->out_stride[1] + c * x->out_stride[2] + e) * unit,
              0, (size_t)unit);
}

// The rank that `rank` is `step` further than, on each of the axes.
static int rank_behind(const world *w, int rank, uint32_t axes, int64_t step) {
  for (int r = 0;; r++) {
    bool it = true;
    for (uint32_t a = 0; a < w->p.naxes; a++) {
      int64_t far = comm_coordinate(&w->p, r, a) - comm_coordinate(&w->p, rank, a);
      if (axes >> a & 1) far += step;
      it &= axes >> a & 1 ? far % w->p.axes[a].size == 0 : far == 0;
    }
    if (it) return r;
  }
}

// Where run c of the piece of a place begins: of mirrored ones, number `place` or the one that is
// as far from the end.
static int64_t run_at(const prog_exchange *x, const int64_t stride[3], int64_t step, int64_t n,
                      int64_t place, int64_t c) {
  if (!x->mirror || !step) return place * step + c * stride[2];
  return (c ? 2 * n - 1 - place : place) * x->run;
}

// `out` as record i must leave it at `rank`: it begins as `out` is.
static void expect(const world *w, int rank, int i, unsigned char *out) {
  const prog_exchange *x = &w->x[i];
  int64_t unit = exchange_unit(x->dtype), n = comm_group_size(&w->p, x->axes), me = 0;
  while (rank_at(w, rank, x->axes, me) != rank) me++;
  if (x->kind == PROG_RECEIVE) {
    int from = rank_at(w, rank, x->axes, ((me + x->step) % n + n) % n);
    for (int64_t e = 0; e < x->run; e++) value(from, i - 1, e, x->dtype, out + e * unit);
    return;
  }
  if (x->kind == PROG_PERMUTE) {
    int from = rank_behind(w, rank, x->axes, x->step);
    for (int64_t e = 0; e < x->run; e++) value(from, i, e, x->dtype, out + e * unit);
    return;
  }
  unsigned char all[16][8];
  if (x->kind == PROG_ALL_REDUCE) {
    for (int64_t e = 0; e < x->run; e++) {
      for (int r = 0; r < n; r++) value(rank_at(w, rank, x->axes, r), i, e, x->dtype, all[r]);
      sum_in_order(x->dtype, x->reduce, (int)n, all, out + e * unit);
    }
    return;
  }
  if (x->whole && (x->kind == PROG_REDUCE_SCATTER || x->kind == PROG_PART))
    expect_padding(x, me, unit, out);
  for (int64_t r = 0; r < n; r++) {
    // The piece that comes from r, or, where they are added, the n-th of all at once.
    bool sums = x->kind == PROG_REDUCE_SCATTER, part = x->kind == PROG_PART;
    if ((sums && r > 0) || (part && r != me)) continue;
    int64_t whose = x->kind == PROG_ALL_GATHER ? r : me;
    int64_t run = x->whole ? x->whole - whose * x->run : x->run;
    if (run > x->run) run = x->run;
    // Behind a short run of what is a rank's own, zeros; of others nothing is written.
    for (int64_t a = 0; a < x->size[0]; a++)
      for (int64_t b = 0; b < x->size[1]; b++)
        for (int64_t c = 0; c < x->size[2]; c++)
          for (int64_t e = 0; e < (sums || part ? x->run : run); e++) {
            int64_t from = a * x->in_stride[0] + b * x->in_stride[1] + e +
                           run_at(x, x->in_stride, x->in_step, n, me, c);
            int64_t to = a * x->out_stride[0] + b * x->out_stride[1] + e +
                         run_at(x, x->out_stride, x->out_step, n, sums ? 0 : r, c);
            for (int k = sums ? 0 : (int)r; k < (sums ? n : r + 1); k++)
              value(rank_at(w, rank, x->axes, k), i, from, x->dtype, all[k]);
            if (e >= run)
              memset(out + to * unit, 0, (size_t)unit);
            else if (sums)
              sum_in_order(x->dtype, x->reduce, (int)n, all, out + to * unit);
            else
              memcpy(out + to * unit, all[r], (size_t)unit);
          }
  }
}

// Bytes for the others, by the definition of each kind.
static int64_t expect_bytes(const world *w, int rank, const prog_exchange *x) {
  int64_t n = comm_group_size(&w->p, x->axes), me = 0, elements = 0;
  while (rank_at(w, rank, x->axes, me) != rank) me++;
  int64_t runs = x->size[0] * x->size[1] * x->size[2];
  if (x->kind == PROG_SEND || x->kind == PROG_PERMUTE) elements = n > 1 ? x->run : 0;
  for (int64_t e = 0; e < n * x->run; e++) {
    int64_t r = e / x->run;  // whose element of a cut array this is
    bool there = !x->whole || e < x->whole;
    if (x->kind == PROG_ALL_GATHER && r == me && there) elements += runs * (n - 1);
    if (x->kind == PROG_REDUCE_SCATTER && r != me && there) elements += runs;
    if (x->kind == PROG_ALL_TO_ALL && r != me) elements += runs;
  }
  for (int64_t e = 0; e < x->run && x->kind == PROG_ALL_REDUCE; e++)
    elements += e / ((x->run + n - 1) / n) == me ? n - 1 : 1;
  return elements * exchange_unit(x->dtype);
}

// ---- a rank -------------------------------------------------------------------------------------

// What a rank works with.
typedef struct desk {
  comm *c;
  const world *w;
  unsigned char *memory;  // that others can touch; NULL: operands come from malloc
  size_t used;
} desk;

// Memory for others, if the engine lets them. How many things were wrong.
static int open_memory(desk *d) {
  if (!d->c->engine.direct) return 0;
  int fd = memfd_create("test", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, MEMORY)) abort();
  d->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (d->memory == MAP_FAILED) abort();
  status *s = comm_share(d->c, fd, d->memory, MEMORY);
  close(fd);
  if (s || !comm_reaches(d->c, 1)) fprintf(stderr, "ranks do not share their memory\n");
  return s || !comm_reaches(d->c, 1);
}

static void close_memory(desk *d) {
  if (d->memory) munmap(d->memory, MEMORY);
}

static unsigned char *room(desk *d, size_t bytes) {
  if (!d->memory) return malloc(bytes);
  unsigned char *at = d->memory + d->used;
  d->used += (bytes + 63) / 64 * 64;
  return d->used + comm_shared_bytes(&d->w->p) <= MEMORY ? at : NULL;
}

static void give_up(desk *d, unsigned char *at) {
  if (!d->memory) free(at);
}

static unsigned char *filled(desk *d, int64_t bytes) {
  unsigned char *at = room(d, (size_t)bytes + GUARD);
  if (!at) abort();
  memset(at, 0xa5, (size_t)bytes + GUARD);
  return at;
}

static bool guarded(const unsigned char *at, int64_t bytes) {
  for (int k = 0; k < GUARD; k++)
    if (at[bytes + k] != 0xa5) return false;
  return true;
}

// Runs record i at this rank; how many things were wrong, each said.
static int run_record(desk *d, int i) {
  const world *w = d->w;
  comm *c = d->c;
  const prog_exchange *x = &w->x[i];
  int rank = comm_rank(c), wrong = 0;
  int64_t unit = exchange_unit(x->dtype), in_bytes = w->in_elements[i] * unit,
          out_bytes = w->out_elements[i] * unit;
  unsigned char *in = filled(d, in_bytes), *out = filled(d, out_bytes),
                *want = filled(d, out_bytes), *kept = filled(d, in_bytes),
                *scratch = filled(d, x->scratch), *buf[3];
  for (int64_t e = 0; e < w->in_elements[i]; e++) value(rank, i, e, x->dtype, in + e * unit);
  memcpy(kept, in, (size_t)in_bytes);
  if (x->kind != PROG_SEND) expect(w, rank, i, want);
  int n = 0;
  if (x->kind != PROG_SEND) buf[n++] = out;
  if (x->kind != PROG_RECEIVE) buf[n++] = in;
  if (x->scratch) buf[n++] = scratch;
  status *s = comm_exchange(c, x, buf, NULL, NULL);
  const char *what = s                                              ? s->message
                     : memcmp(out, want, (size_t)out_bytes + GUARD) ? "another result"
                     : memcmp(in, kept, (size_t)in_bytes)           ? "the input was changed"
                     : !guarded(scratch, x->scratch)                ? "more scratch"
                     : comm_sent_bytes(c, (uint32_t)i) != expect_bytes(w, rank, x)
                         ? "another number of bytes"
                         : NULL;
  if (what) {
    fprintf(stderr, "rank %d record %d (%s of %s over %x, run %lld, whole %lld): %s\n", rank, i,
            exchange_name(x->kind), dtype_of(x->dtype)->name, x->axes, (long long)x->run,
            (long long)x->whole, what);
    wrong++;
  }
  status_free(s);
  // A sent message may still be on its way: its buffer is the runtime's, ours can go.
  unsigned char *all[] = {in, out, want, kept, scratch};
  for (int k = 0; k < 5; k++) give_up(d, all[k]);
  d->used = 0;
  return wrong;
}

static int run_all(desk *d) {
  int wrong = 0;
  for (int i = 0; i < RECORDS && !wrong; i++) wrong += run_record(d, i);
  return wrong;
}

// ---- ranks as threads ---------------------------------------------------------------------------

typedef struct seat {
  pthread_t thread;
  thread_hub *hub;
  const world *w;
  int rank, wrong;
  int (*work)(desk *d);
} seat;

static void *sit(void *at) {
  seat *s = at;
  comm_engine e = hub_engine(s->hub, s->rank);
  desk d = {.w = s->w};
  status *failed = comm_open_engine(&s->w->p, &e, &d.c);
  if (failed) abort();
  s->wrong = open_memory(&d);
  s->wrong += s->work(&d);
  if (s->wrong) comm_abort(d.c, 1);
  comm_close(d.c);
  close_memory(&d);
  return NULL;
}

static int with_hub(const world *w, bool direct, int (*work)(desk *)) {
  seat seats[HUB_RANKS];
  int n = (int)comm_program_ranks(&w->p), wrong = 0;
  thread_hub *h = hub_new(n);
  h->direct = direct;
  for (int r = 0; r < n; r++) {
    seats[r] = (seat){.hub = h, .w = w, .rank = r, .work = work};
    pthread_create(&seats[r].thread, NULL, sit, &seats[r]);
  }
  for (int r = 0; r < n; r++) {
    pthread_join(seats[r].thread, NULL);
    wrong += seats[r].wrong;
  }
  hub_free(h);
  return wrong;
}

static int with_threads(const world *w, int (*work)(desk *)) {
  return with_hub(w, false, work) + with_hub(w, true, work);
}

// The last rank has no memory to share: all of them send, and nothing else changes.
static int run_not_shared(desk *d) {
  int fd = comm_rank(d->c) + 1 < comm_ranks(d->c) ? memfd_create("test", MFD_CLOEXEC) : -1;
  unsigned char *at = NULL;
  if (fd >= 0 && ftruncate(fd, MEMORY)) abort();
  if (fd >= 0) at = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  d->c->engine.direct = true;
  status *s = comm_share(d->c, fd, at, MEMORY);
  int wrong = s != NULL || comm_reaches(d->c, 1);
  wrong += run_all(d);
  if (fd >= 0) munmap(at, MEMORY), close(fd);
  return wrong;
}

static void test_not_shared(void **state) {
  (void)state;
  static world w;
  make_world(&w, &meshes[4], 5);
  assert_int_equal(with_hub(&w, false, run_not_shared), 0);
}

static void test_exchanges(void **state) {
  (void)state;
  static world w;
  int kinds[PROG_EXCHANGES] = {0}, types[PROG_DTYPES] = {0}, ragged = 0, mirrored = 0;
  for (uint64_t seed = 1; seed <= 3; seed++)
    for (size_t m = 0; m < sizeof meshes / sizeof *meshes; m++) {
      make_world(&w, &meshes[m], seed * 100 + m);
      assert_int_equal(with_threads(&w, run_all), 0);
      for (int i = 0; i < RECORDS; i++) {
        kinds[w.x[i].kind]++;
        types[w.x[i].dtype]++;
        ragged += w.x[i].whole > 0;
        mirrored += w.x[i].mirror > 0;
      }
    }
  for (int k = 0; k < PROG_EXCHANGES; k++) assert_true(kinds[k] > 100);
  for (int k = 0; k < PROG_DTYPES; k++) assert_true(types[k] > 20);
  assert_true(ragged > 200 && mirrored > 200);
}

// A record of f32 over axis 0, in one block.
static prog_exchange *plain_record(world *w, int i, uint32_t kind, int64_t run) {
  w->x[i] =
      (prog_exchange){.kind = kind, .axes = 1, .dtype = PROG_F32, .size = {1, 1, 1}, .run = run};
  w->x[i].scratch = comm_scratch_bytes(&w->x[i], comm_group_size(&w->p, 1));
  return &w->x[i];
}

// Own pieces that lie where they go.
static int run_in_place(desk *d) {
  comm *c = d->c;
  const world *w = d->w;
  int me = comm_rank(c), n = comm_ranks(c), wrong = 0;
  float *a = (float *)(void *)filled(d, 64), *b = (float *)(void *)filled(d, 64),
        *scratch = (float *)(void *)filled(d, 256);
  unsigned char *buf[] = {(unsigned char *)a, (unsigned char *)(a + 4 * me),
                          (unsigned char *)scratch};
  for (int i = 0; i < 16; i++) a[i] = i / 4 == me ? (float)i : -1;
  status_free(comm_exchange(c, &w->x[0], buf, NULL, NULL));
  for (int i = 0; i < 16; i++) wrong += a[i] != (float)i;
  for (int i = 0; i < 16; i++) b[i] = (float)(i * me);
  buf[0] = (unsigned char *)(b + 4 * me), buf[1] = (unsigned char *)b;
  status_free(comm_exchange(c, &w->x[1], buf, NULL, NULL));
  for (int i = 4 * me; i < 4 * me + 4; i++) wrong += b[i] != (float)(i * n * (n - 1) / 2);
  for (int i = 0; i < 16; i++) a[i] = (float)(i + me);
  buf[0] = buf[1] = (unsigned char *)a;
  status_free(comm_exchange(c, &w->x[2], buf, NULL, NULL));
  for (int i = 0; i < 10; i++) wrong += a[i] != (float)(n * i + n * (n - 1) / 2);
  for (int i = 10; i < 16; i++) wrong += a[i] != (float)(i + me);
  give_up(d, (unsigned char *)a);
  give_up(d, (unsigned char *)b);
  give_up(d, (unsigned char *)scratch);
  return wrong;
}

static void test_in_place(void **state) {
  (void)state;
  static world w;
  make_world(&w, &meshes[3], 1);
  plain_record(&w, 0, PROG_ALL_GATHER, 4)->out_step = 4;
  plain_record(&w, 1, PROG_REDUCE_SCATTER, 4)->in_step = 4;
  plain_record(&w, 2, PROG_ALL_REDUCE, 10);
  assert_int_equal(with_threads(&w, run_in_place), 0);
}

// Values of a bucket: behind one another or apart, in place or not; each element as it was alone.
enum { BUCKET = 4 };
static const int64_t bucket_size[BUCKET] = {7, 1, 30, 5};

static int run_bucket(desk *d) {
  comm *c = d->c;
  const world *w = d->w;
  int me = comm_rank(c), n = comm_ranks(c), wrong = 0;
  float *in = (float *)(void *)filled(d, 256), *out = (float *)(void *)filled(d, 256),
        *scratch = (float *)(void *)filled(d, 2048);
  for (int way = 0; way < 4; way++) {
    bool apart = way & 1, in_place = way & 2;
    unsigned char *buf[2 * BUCKET + 1];
    int64_t at = 0, begin[BUCKET];
    for (int k = 0; k < BUCKET; k++) {
      begin[k] = at;
      buf[2 * k + 1] = (unsigned char *)(in + at);
      buf[2 * k] = in_place ? buf[2 * k + 1] : (unsigned char *)(out + at);
      at += bucket_size[k] + (apart ? 3 : 0);
    }
    buf[2 * BUCKET] = (unsigned char *)scratch;
    for (int i = 0; i < 64; i++) in[i] = 1.0f / (float)(1 + i + 10 * me), out[i] = -1;
    status_free(comm_exchange(c, &w->x[0], buf, NULL, NULL));
    const float *got = in_place ? in : out;
    for (int k = 0; k < BUCKET; k++)
      for (int64_t i = begin[k]; i < begin[k] + bucket_size[k]; i++) {
        float sum = 1.0f / (float)(1 + i);
        for (int r = 1; r < n; r++) sum += 1.0f / (float)(1 + i + 10 * r);
        wrong += got[i] != sum;
      }
    for (int64_t i = bucket_size[0]; apart && i < bucket_size[0] + 3; i++)  // between two values
      wrong += got[i] != (in_place ? 1.0f / (float)(1 + i + 10 * me) : -1);
  }
  give_up(d, (unsigned char *)in);
  give_up(d, (unsigned char *)out);
  give_up(d, (unsigned char *)scratch);
  return wrong;
}

static void test_bucket(void **state) {
  (void)state;
  static world w;
  static prog_operand o[2 * BUCKET + 1];
  for (size_t m = 0; m < sizeof meshes / sizeof *meshes; m++) {
    make_world(&w, &meshes[m], 1);
    int64_t ranks = comm_group_size(&w.p, 1);
    if (meshes[m].n > 1) continue;
    w.x[0] = (prog_exchange){.kind = PROG_ALL_REDUCE, .axes = 1, .size = {1, 1, 1}};
    w.x[0].values = BUCKET;
    for (int k = 0; k < BUCKET; k++) {
      w.x[0].run += bucket_size[k];
      o[2 * k].bytes = o[2 * k + 1].bytes = 4 * bucket_size[k];
    }
    w.x[0].scratch = comm_scratch_bytes(&w.x[0], ranks);
    assert_true(w.x[0].scratch >= 4 * w.x[0].run && w.x[0].scratch <= 2048);
    w.p.operands = o;
    w.p.noperands = 2 * BUCKET + 1;
    assert_int_equal(with_threads(&w, run_bucket), 0);
  }
}

// ---- who has time -------------------------------------------------------------------------------

enum { LONG_SUM = 200001 };  // several units

// The last rank that comes to an exchange gives way until all the others have left it: they do all
// of it, and it finds its result.
typedef struct crossing {
  _Atomic int left[3], gave_way[3];
} crossing;

typedef struct walker {
  crossing *at;
  int record, others;
} walker;

static status *yield(void *ctx, const comm_await *what, int64_t since) {
  (void)ctx, (void)what;
  comm_rest(since);
  return NULL;
}

static void let_others(void *ctx) {
  walker *k = ctx;
  k->at->gave_way[k->record]++;
  while (k->at->left[k->record] < k->others) comm_rest(0);
}

static int run_give_way(desk *d) {
  comm *c = d->c;
  int me = comm_rank(c), n = comm_ranks(c), wrong = 0;
  crossing *at = d->w->shared;
  float *in = (float *)(void *)filled(d, 4 * LONG_SUM), *out = (float *)(void *)filled(d, 64),
        *scratch = (float *)(void *)filled(d, d->w->x[0].scratch);
  walker mine = {.at = at, .others = n - 1};
  comm_idle idle = {yield, let_others, &mine};
  for (int i = 0; i < LONG_SUM; i++) in[i] = (float)(i % 1000 + me);
  for (int record = 0; record < 3; record++) {
    float *to = record == 0 ? in : out;
    unsigned char *buf[] = {(unsigned char *)to, (unsigned char *)in, (unsigned char *)scratch};
    mine.record = record;
    status_free(comm_exchange(c, &d->w->x[record], buf, NULL, &idle));
    at->left[record]++;
    float sum = (float)(n * (n - 1) / 2);
    if (record == 0)
      for (int i = 0; i < LONG_SUM; i++) wrong += in[i] != (float)(n * (i % 1000)) + sum;
    for (int i = 0; record == 1 && i < 4; i++)  // sums of sums
      wrong += out[i] != (float)n * ((float)(n * (4 * me + i)) + sum);
    for (int i = 0; record == 2 && i < 4; i++) wrong += out[i] != (float)(n * i) + sum;
  }
  give_up(d, (unsigned char *)in);
  give_up(d, (unsigned char *)out);
  give_up(d, (unsigned char *)scratch);
  return wrong;
}

static void test_give_way(void **state) {
  (void)state;
  static world w;
  crossing at = {0};
  make_world(&w, &meshes[3], 1);
  plain_record(&w, 0, PROG_ALL_REDUCE, LONG_SUM);
  plain_record(&w, 1, PROG_REDUCE_SCATTER, 4)->in_step = 4;
  plain_record(&w, 2, PROG_PERMUTE, 4)->step = 1;
  w.shared = &at;
  assert_int_equal(with_hub(&w, true, run_give_way), 0);
  for (int i = 0; i < 3; i++) assert_true(at.gave_way[i] == 1 && at.left[i] == 4);
}

// ---- control messages ---------------------------------------------------------------------------

static int run_control(desk *d) {
  comm *c = d->c;
  int me = comm_rank(c), n = comm_ranks(c), wrong = 0;
  for (int round = 0; round < 50; round++) {
    int from = round % n, all[HUB_RANKS];
    int64_t v = me == from ? 100 + round : -1, most = me * round, sum = me;
    status_free(comm_broadcast(c, &v, sizeof v, from));
    wrong += v != 100 + round;
    int mine = me * me + round;
    status_free(comm_collect(c, &mine, sizeof mine, me == from ? all : NULL, from));
    for (int r = 0; r < n && me == from; r++) wrong += all[r] != r * r + round;
    status_free(comm_max(c, &most));
    wrong += most != (n - 1) * round;
    status_free(comm_sum(c, &sum));
    wrong += sum != n * (n - 1) / 2;
  }
  return wrong;
}

static void test_control(void **state) {
  (void)state;
  static world w;
  make_world(&w, &meshes[5], 1);
  assert_int_equal(with_threads(&w, run_control), 0);
  // One rank.
  int64_t v = 7, w7 = 0;
  assert_null(comm_broadcast(NULL, &v, sizeof v, 0));
  assert_null(comm_collect(NULL, &v, sizeof v, &w7, 0));
  assert_null(comm_barrier(NULL));
  assert_int_equal(w7, 7);
  assert_int_equal(comm_rank(NULL), 0);
  assert_int_equal(comm_ranks(NULL), 1);
}

// Ranks of 2 x 3: 0 1 2 | 3 4 5.
static void test_groups(void **state) {
  (void)state;
  static world w;
  make_world(&w, &meshes[4], 1);
  assert_int_equal(comm_program_ranks(&w.p), 6);
  assert_int_equal(comm_group_size(&w.p, 1), 2);
  assert_int_equal(comm_group_size(&w.p, 2), 3);
  assert_int_equal(comm_group_size(&w.p, 3), 6);
  assert_int_equal(comm_group_size(&w.p, 0), 1);
  assert_int_equal(comm_coordinate(&w.p, 4, 0), 1);
  assert_int_equal(comm_coordinate(&w.p, 4, 1), 1);
  assert_int_equal(comm_place(&w.p, 5, 2), 2);
  assert_int_equal(comm_place(&w.p, 5, 3), 5);
  for (int r = 0; r < 6; r++)
    for (uint32_t axes = 0; axes < 4; axes++)
      for (int64_t k = 0; k < comm_group_size(&w.p, axes); k++)
        assert_int_equal(comm_at(&w.p, r, axes, k), rank_at(&w, r, axes, k));
}

// NaN is greater than any number, on whichever rank it is.
static int run_nan(desk *d) {
  int wrong = 0;
  unsigned char *buf[] = {filled(d, 4), filled(d, 4), filled(d, 256)};
  for (int who = 0; who < comm_ranks(d->c); who++) {
    float v = comm_rank(d->c) == who ? NAN : 1, out;
    memcpy(buf[1], &v, sizeof v);
    status_free(comm_exchange(d->c, &d->w->x[0], buf, NULL, NULL));
    memcpy(&out, buf[0], sizeof out);
    wrong += !isnan(out);
  }
  for (int k = 0; k < 3; k++) give_up(d, buf[k]);
  return wrong;
}

static void test_nan(void **state) {
  (void)state;
  static world w;
  make_world(&w, &meshes[1], 1);
  w.x[0] = (prog_exchange){.kind = PROG_ALL_REDUCE,
                           .axes = 1,
                           .reduce = PROG_MAX,
                           .size = {1, 1, 1},
                           .run = 1,
                           .scratch = 128};
  assert_int_equal(with_threads(&w, run_nan), 0);
}

// ---- ranks as processes -------------------------------------------------------------------------

static int with_mpi(void) {
  static world w;
  const char *size = getenv("OMPI_COMM_WORLD_SIZE");
  int64_t ranks = size ? strtoll(size, NULL, 10) : 1;
  int wrong = 0, tried = 0;
  for (size_t m = 0; m < sizeof meshes / sizeof *meshes && !tried; m++) {
    make_world(&w, &meshes[m], 17 + m);
    if (comm_program_ranks(&w.p) != ranks) continue;
    tried++;
    desk d = {.w = &w};
    status *s = comm_open(&w.p, &d.c);
    if (s) {
      fprintf(stderr, "%s\n", s->message);
      return 1;
    }
    wrong += open_memory(&d) + run_control(&d) + run_all(&d);
    if (comm_rank(d.c) == 0)
      printf("%lld ranks%s: %d wrong\n", (long long)ranks, d.memory ? " that share memory" : "",
             wrong);
    comm_close(d.c);
    close_memory(&d);
  }
  return wrong || !tried;
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "--mpi") == 0) return with_mpi();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_groups),     cmocka_unit_test(test_exchanges),
      cmocka_unit_test(test_not_shared), cmocka_unit_test(test_bucket),
      cmocka_unit_test(test_in_place),   cmocka_unit_test(test_nan),
      cmocka_unit_test(test_give_way),   cmocka_unit_test(test_control),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
