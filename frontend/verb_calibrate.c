// dsmc calibrate: measures this machine into a cluster text that `--cluster` reads.
//
// What is measured is what steps are made of: the products of an MLP, attention and gelu by
// size with the kernels that dsmc generates, on the pool of threads that executables run them on;
// the rate of memory; how long it takes to start a loop on all threads; a copy from one thread's
// memory to another's and the time of a word between them, which is what ranks of one machine have
// for a link; and writing to the disk. Of several tries the best quarter counts: the others say
// what else the machine did meanwhile.
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "codegen/emit.h"
#include "frontend/clusters.h"
#include "frontend/verb_common.h"
#include "ir/print.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/peak.h"
#include "runtime/pool.h"
#include "runtime/program.h"

enum { TRIES = 400, TOKENS = 2048 };

typedef struct session {
  cli *c;
  pool *pool;
  double seconds;  // to measure for, all together
  bool progress;
} session;

static void say(const session *s, const char *what) {
  if (s->progress) fprintf(stderr, "\r%-60s\r%s", "", what);
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

// The time that a quarter of the tries did not need.
static double best_quarter(double *t, int n) {
  qsort(t, (size_t)n, sizeof *t, ascending);
  return t[n / 4];
}

// Memory of its own, touched; NULL when there is none. Large pages, as an executable's arena has
// them (runtime/vm.c): with small ones what comes from afar takes longer.
static unsigned char *pages(size_t n) {
  const size_t large = (size_t)2 << 20, small = (size_t)sysconf(_SC_PAGESIZE);
  size_t own = (n + small - 1) / small * small;
  unsigned char *p =
      mmap(NULL, own + large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return NULL;
  size_t before = (large - (uintptr_t)p % large) % large;
  if (before) munmap(p, before);
  p += before;
  munmap(p + own, large - before);
  madvise(p, own, MADV_HUGEPAGE);  // a wish; small pages work too
  memset(p, 0, n);
  return p;
}

// ---- products -----------------------------------------------------------------------------------

typedef struct launch {
  dsm_kernel *f;
  unsigned char *buffer[CG_MAX_OPERANDS];
  dsm_call call;
  int64_t cells;
} launch;

static void run_cells(void *ctx, int64_t lo, int64_t hi) {
  launch *l = ctx;
  l->f(l->buffer, &l->call, lo, hi);
}

// The value whose buffer an operand of a launch is: by number in the list of roots, or added to it.
static int root_number(const ir_value **root, int *n, const ir_value *v) {
  for (int i = 0; i < *n; i++)
    if (root[i] == v) return i;
  root[*n] = v;
  return (*n)++;
}

enum { MAX_ROOTS = 32, MAX_LAUNCHES = 32, MAX_SETS = 64 };
// What a step touches between two uses of an operand: more than caches near a core hold.
#define AWAY_BYTES ((size_t)64 << 20)

// Buffers and code of some ops. Operands and results come in several sets, taken in turn, so that
// they come from where those of a step come from, and not from the cache of the core.
typedef struct trial {
  arena a;
  launch *launch;  // [sets * launches]
  int launches, sets;
  const ir_value *root[MAX_ROOTS];
  unsigned char *buffer[MAX_ROOTS + MAX_LAUNCHES];  // of a root: its sets one behind the other
  size_t bytes[MAX_ROOTS + MAX_LAUNCHES];           // all of them
  int roots, buffers;
  unsigned char *code;
  size_t code_bytes;
} trial;

static unsigned char *add_buffer(trial *t, size_t bytes) {
  unsigned char *at = pages(bytes);
  t->buffer[t->buffers] = at;
  t->bytes[t->buffers++] = bytes;
  return at;
}

static void trial_free(trial *t) {
  for (int i = 0; i < t->buffers; i++)
    if (t->buffer[i]) munmap(t->buffer[i], t->bytes[i]);
  if (t->code) munmap(t->code, t->code_bytes);
  arena_free(&t->a);
}

// Small numbers, which bf16 has exactly, where a value is of f32.
static void fill(unsigned char *at, size_t bytes, const ir_value *v) {
  enum { PERIOD = 17, BLOCK = PERIOD * 1024 };
  size_t n = v->type.dtype == DT_f32 ? bytes / sizeof(float) : 0;
  float *x = (float *)(void *)at;
  for (size_t i = 0; i < n && i < BLOCK; i++) x[i] = (float)((int)(i % PERIOD) - 8) / 8;
  for (size_t i = BLOCK; i < n; i += BLOCK)
    memcpy(x + i, x, sizeof *x * (n - i < BLOCK ? n - i : BLOCK));
}

// Builds and maps the kernels of the ops of a text that do something. False: there is no memory.
static bool trial_make(const session *s, trial *t, const char *text) {
  arena_init(&t->a);
  t->a.oom = s->c->arena->oom;
  t->a.oom_ctx = s->c->arena->oom_ctx;
  const char *why = NULL;
  ir_module *m = ir_parse(&t->a, text, strlen(text), &why);
  if (why) IR_BUG("calibrate: %s in %s", why, text);
  cg_context *cg = cg_context_new(&t->a, m);
  const ir_region *body = m->funcs.at[0]->body;
  cg_launches *all = arena_new(&t->a, cg_launches, body->ops.n + 1);
  for (int i = 0; i < body->ops.n && !why; i++)
    if (body->ops.at[i]->code != IR_input && !ir_is_view(body->ops.at[i]))
      why = cg_build(cg, body->ops.at[i], &all[i]);
  cg_image image;
  const char *folder = compile_cache_folder(s->c);
  cg_target target = {.threads = (int)cli_number(s->c, OPT_JOBS, 0)};
  if (folder) target.cache = arena_printf(&t->a, "%s/kernels", folder);
  if (!why) why = cg_compile(cg, &target, &image);
  if (why) IR_BUG("calibrate: %s", why);

  t->code_bytes = (size_t)image.n;
  t->code = pages(t->code_bytes);
  if (!t->code) return false;
  memcpy(t->code, image.bytes, t->code_bytes);
  if (mprotect(t->code, t->code_bytes, PROT_READ | PROT_EXEC) != 0) return false;
  // Roots first, so that their numbers are those of their buffers.
  for (int i = 0; i < body->ops.n; i++)
    for (int k = 0; k < all[i].l.n; k++)
      for (int o = 0; o < all[i].l.at[k].n; o++)
        if (all[i].l.at[k].operand[o].root)
          root_number(t->root, &t->roots, all[i].l.at[k].operand[o].root);
  IR_CHECK(t->roots <= MAX_ROOTS);
  size_t all_bytes = 0;
  for (int i = 0; i < t->roots; i++) all_bytes += (size_t)ir_bytes(&t->root[i]->type);
  t->sets = all_bytes * MAX_SETS < AWAY_BYTES ? MAX_SETS : (int)(AWAY_BYTES / all_bytes) + 1;
  for (int i = 0; i < t->roots; i++) {
    size_t bytes = (size_t)ir_bytes(&t->root[i]->type) * (size_t)t->sets;
    unsigned char *at = add_buffer(t, bytes);
    if (!at) return false;
    fill(at, bytes, t->root[i]);
  }
  t->launch = arena_new(&t->a, launch, (size_t)t->sets * MAX_LAUNCHES);
  k_kernel *const *kernel;
  int kernels = cg_kernels(cg, &kernel);
  for (int i = 0; i < body->ops.n; i++) {
    int first = t->buffers;
    for (int k = 0; k < all[i].scratch.n; k++)
      if (!add_buffer(t, (size_t)all[i].scratch.at[k])) return false;
    for (int k = 0; k < all[i].l.n; k++) {
      const cg_launch *from = &all[i].l.at[k];
      IR_CHECK(t->launches < MAX_LAUNCHES);
      int which = 0;
      while (which < kernels && kernel[which] != from->kernel) which++;
      unsigned char *at = t->code + image.offset[which];
      for (int set = 0; set < t->sets; set++) {
        launch *l = &t->launch[set * MAX_LAUNCHES + t->launches];
        memcpy(&l->f, &at, sizeof at);
        l->cells = k_cells(from->kernel);
        for (int o = 0; o < from->n; o++) {
          const ir_value *v = from->operand[o].root;
          int b = v ? root_number(t->root, &t->roots, v) : first + from->operand[o].scratch;
          l->buffer[o] = t->buffer[b] + (v ? (size_t)set * (size_t)ir_bytes(&v->type) : 0);
        }
      }
      t->launches++;
    }
  }
  return true;
}

enum { LEAST_TRIES = 2 };  // in a round

// Seconds of the ops of a text, one after the other on all threads; 0 when there is no memory.
static double text_seconds(const session *s, const char *text, double seconds) {
  trial *t = arena_new(s->c->arena, trial, 1);
  double best = 0;
  if (trial_make(s, t, text)) {
    double time[TRIES], start = clock_s();
    int count = 0;
    for (int turn = -1; count < TRIES && (count < LEAST_TRIES || clock_s() - start < seconds);
         turn++) {
      launch *l = &t->launch[(turn + 1) % t->sets * MAX_LAUNCHES];
      double begin = clock_s();
      for (int i = 0; i < t->launches; i++) pool_run(s->pool, l[i].cells, run_cells, &l[i]);
      if (turn >= 0) time[count++] = clock_s() - begin;
    }
    best = best_quarter(time, count);
  }
  trial_free(t);
  return best;
}

// FLOP/s of the products of an MLP n -> 4n -> n over the tokens of a micro-batch: forward, the
// gradients of what comes in and those of the weights. bf16: operands are f32 and rounded as they
// are read.
static double mlp_speed(const session *s, int64_t n, bool bf16, double seconds) {
  const char *round = bf16 ? "round=\"bf16\", " : "";
  long long w = n, f = 4 * n, rows = TOKENS;
  arena *a = s->c->arena;
  const char *x = arena_printf(a, "f32[r=%lld, n=%lld]", rows, w);
  const char *u = arena_printf(a, "f32[r=%lld, f=%lld]", rows, f);
  const char *up = arena_printf(a, "f32[f=%lld, n=%lld]", f, w);
  const char *down = arena_printf(a, "f32[n=%lld, f=%lld]", w, f);
  const char *text =
      arena_printf(a,
                   "module \"mlp\" graph\n\nfunc f train {\n"
                   "  %%x = input() {name=\"x\"} : %s\n  %%w = input() {name=\"w\"} : %s\n"
                   "  %%v = input() {name=\"v\"} : %s\n  %%g = input() {name=\"g\"} : %s\n"
                   "  %%0 = einsum(%%x, %%w) {%sspec=\"r n, f n -> r f\"} : %s\n"
                   "  %%1 = einsum(%%0, %%v) {%sspec=\"r f, n f -> r n\"} : %s\n"
                   "  %%2 = einsum(%%g, %%v) {%sspec=\"r n, n f -> r f\"} : %s\n"
                   "  %%3 = einsum(%%g, %%0) {%sspec=\"r n, r f -> n f\"} : %s\n"
                   "  %%4 = einsum(%%2, %%w) {%sspec=\"r f, f n -> r n\"} : %s\n"
                   "  %%5 = einsum(%%2, %%x) {%sspec=\"r f, r n -> f n\"} : %s\n"
                   "}\n",
                   x, up, down, x, round, u, round, x, round, u, round, down, round, x, round, up);
  double took = text_seconds(s, text, seconds);
  return took > 0 ? 6 * 2.0 * (double)rows * (double)w * (double)f / took : 0;
}

// The fastest that was seen of each size, in FLOP/s. What neighbours of a machine do comes and goes
// in seconds: everything is measured in several rounds, and the best of each counts.
enum { ROUNDS = 3, SIZES = 8, VECTORS = 3 };
typedef struct speeds {
  double peak, f32[SIZES], bf16[SIZES];
  double attention[SIZES], vector[VECTORS];
} speeds;

static void keep(double *best, double speed) {
  if (speed > *best) *best = speed;
}

static double width_of(int size) { return (double)(4 << size); }

static void measure_products(const session *s, bool has_bf16, speeds *v) {
  double each = s->seconds * 0.35 / (double)(SIZES * ROUNDS);
  int last = 0;
  for (int i = 0; i < SIZES; i++) {
    // With little time the large ones are left out; the curve goes on level from the last.
    double n = width_of(i), takes = i ? 48 * TOKENS * n * n / v->f32[i - 1] : 0;
    if (i >= 5 && (v->f32[i - 1] <= 0 || (double)LEAST_TRIES * takes > 4 * each)) continue;
    say(s, arena_printf(s->c->arena, "products of f32, width %d", (int)n));
    keep(&v->f32[i], mlp_speed(s, (int64_t)n, false, each));
    keep(&v->peak, v->f32[i]);
    if (v->f32[i] > 0) last = i;
  }
  for (int i = last > 4 ? last - 2 : last; has_bf16 && i <= last; i++) {
    say(s, arena_printf(s->c->arena, "products of bf16, width %d", (int)width_of(i)));
    keep(&v->bf16[i], mlp_speed(s, (int64_t)width_of(i), true, each));
  }
}

// Both types over the same sizes. There is one curve, that of f32 against the multiply-adds the
// cores can do; the peak of bf16 is what makes its products of the upper sizes lie on the curve.
static void set_products(const speeds *v, host_facts *h) {
  double ratio = 0;
  int both = 0;
  h->matmul_f32 = v->peak;
  h->vector_f32 = v->peak / 2;  // an addition or a product is half of a multiply-add
  h->nmatmul = 0;
  for (int i = 0; i < SIZES; i++) {
    if (v->f32[i] <= 0) continue;
    h->matmul_curve[h->nmatmul][0] = 8 * TOKENS * width_of(i) * width_of(i);
    h->matmul_curve[h->nmatmul++][1] = v->f32[i] / v->peak;
    if (v->bf16[i] <= 0) continue;
    ratio += v->bf16[i] / v->f32[i];
    both++;
  }
  if (both) h->matmul_bf16 = ratio / both * v->peak;
}

// ---- attention, elementwise work, norms ---------------------------------------------------------

enum { HEADS = 4, HEAD = 64 };
static int64_t length_of(int size) { return 16LL << size; }
static double forward_flops(int size) {
  return 0.5 * 4 * (double)(TOKENS * length_of(size) * HEADS * HEAD);
}

// Attention and its gradient by length, causal, over the tokens of a micro-batch, in the FLOPs that
// plans count: half of the pairs, and twice as many in the gradient as forward.
static void measure_attention(const session *s, speeds *v) {
  const long long heads = HEADS, head = HEAD;
  double each = s->seconds * 0.15 / (double)(SIZES * ROUNDS), speed = 0;
  for (int i = 0; i < SIZES; i++) {
    long long t = length_of(i), b = TOKENS / t;
    double flops = forward_flops(i);
    if (i >= 3 && (double)LEAST_TRIES * 3 * flops / speed > 4 * each) break;
    say(s, arena_printf(s->c->arena, "attention over %lld positions", t));
    const char *x =
        arena_printf(s->c->arena, "f32[b=%lld, t=%lld, (h=%lld d=%lld)]", b, t, heads, head);
    const char *how = "{has_bias=0, has_mask=1, kv_heads=4, ncap_mask=0, rep=1, scale=0.125}";
    const char *mask =
        "    region(%b : i32, %h : i32, %i : i32, %j : i32) {\n"
        "      %m = le(%j, %i) : bool\n      yield %m\n    }\n";
    const char *again =
        "    region(%b.1 : i32, %h.1 : i32, %i.1 : i32, %j.1 : i32) {\n"
        "      %m.1 = le(%j.1, %i.1) : bool\n      yield %m.1\n    }\n";
    const char *text = arena_printf(
        s->c->arena,
        "module \"attention\" graph\n\nfunc f train {\n"
        "  %%q = input() {name=\"q\"} : %s\n  %%k = input() {name=\"k\"} : %s\n"
        "  %%v = input() {name=\"v\"} : %s\n  %%g = input() {name=\"g\"} : %s\n"
        "  %%o, %%l = attention(%%q, %%k, %%v) %s : %s, f32[b=%lld, h=%lld, t=%lld]\n%s"
        "  %%x, %%y, %%z = attention_grad(%%g, %%o, %%l, %%q, %%k, %%v) %s : %s, %s, %s\n%s"
        "}\n",
        x, x, x, x, how, x, b, heads, t, mask, how, x, x, x, again);
    double took = text_seconds(s, text, each);
    if (took <= 0) break;
    speed = 3 * flops / took;
    keep(&v->attention[i], speed);
  }
}

static void set_attention(const speeds *v, host_facts *h) {
  h->nattention = 0;
  for (int i = 0; i < SIZES; i++) {
    if (v->attention[i] <= 0) continue;
    h->attention_curve[h->nattention][0] = forward_flops(i);
    h->attention_curve[h->nattention++][1] = v->attention[i] / v->peak;
  }
}

static int64_t numbers_of(int size) { return 4096LL << (4 * size); }
static double vector_flops(int size) {
  return ir_info(IR_gelu_tanh)->flops * (double)numbers_of(size);
}

// Elementwise work that is more than moving: gelu by tanh, its FLOPs as ir/ops.def has them.
static void measure_vector(const session *s, double start, speeds *v) {
  double each = s->seconds * 0.02 / (double)ROUNDS;
  for (int i = 0; i < VECTORS; i++) {
    long long n = numbers_of(i);
    say(s, arena_printf(s->c->arena, "gelu of %lld numbers", n));
    const char *text = arena_printf(s->c->arena,
                                    "module \"gelu\" graph\n\nfunc f train {\n"
                                    "  %%x = input() {name=\"x\"} : f32[n=%lld]\n"
                                    "  %%0 = gelu_tanh(%%x) : f32[n=%lld]\n}\n",
                                    n, n);
    double took = text_seconds(s, text, each);
    if (took <= 0) break;
    keep(&v->vector[i], vector_flops(i) / (took > start ? took - start : took));
  }
}

static void set_vector(const speeds *v, host_facts *h) {
  h->nvector = 0;
  for (int i = 0; i < VECTORS; i++) {
    if (v->vector[i] <= 0) continue;
    double share = v->vector[i] / h->vector_f32;
    h->vector_curve[h->nvector][0] = vector_flops(i);
    h->vector_curve[h->nvector++][1] = share < 1 ? share : 1;
  }
}

// ---- memory, starts and the link ----------------------------------------------------------------

typedef struct copy {
  unsigned char *to, *from;
  size_t piece;
} copy;

static void copy_cells(void *ctx, int64_t lo, int64_t hi) {
  copy *c = ctx;
  memcpy(c->to + (size_t)lo * c->piece, c->from + (size_t)lo * c->piece,
         (size_t)(hi - lo) * c->piece);
}

// Seconds to copy n bytes; all threads, or one.
static double copy_time(const session *s, unsigned char *to, unsigned char *from, size_t n,
                        bool all, double seconds) {
  double t[TRIES], start = clock_s();
  int count = 0, cells = 4 * pool_threads(s->pool);
  copy c = {to, from, n / (size_t)cells};
  while (count < TRIES && (count < 3 || clock_s() - start < seconds)) {
    double begin = clock_s();
    if (all)
      pool_run(s->pool, cells, copy_cells, &c);
    else
      memcpy(to, from, n);
    t[count++] = clock_s() - begin;
  }
  return best_quarter(t, count);
}

static void nothing(void *ctx, int64_t lo, int64_t hi) { (void)ctx, (void)lo, (void)hi; }

// Two threads hand a number to and fro.
typedef struct ball {
  atomic_int at;
  int rounds;
} ball;

static void *return_ball(void *ctx) {
  ball *b = ctx;
  for (int i = 0; i < b->rounds; i++) {
    while (atomic_load(&b->at) != 2 * i + 1) {}
    atomic_store(&b->at, 2 * i + 2);
  }
  return NULL;
}

// Seconds of one way; 0 when there is one core only.
static double word_time(void) {
  ball b = {.rounds = 2000};
  pthread_t t;
  if (pool_cpus() < 2 || pthread_create(&t, NULL, return_ball, &b)) return 0;
  double time[2000];
  for (int i = 0; i < b.rounds; i++) {
    double begin = clock_s();
    atomic_store(&b.at, 2 * i + 1);
    while (atomic_load(&b.at) != 2 * i + 2) {}
    time[i] = (clock_s() - begin) / 2;
  }
  pthread_join(t, NULL);
  return best_quarter(time, b.rounds);
}

static void measure_memory(const session *s, host_facts *h) {
  say(s, "memory");
  h->bandwidth = peak_bandwidth(s->pool);
  double t[TRIES];
  for (int i = 0; i < TRIES; i++) {
    double begin = clock_s();
    pool_run(s->pool, pool_threads(s->pool), nothing, NULL);
    t[i] = clock_s() - begin;
  }
  h->launch = best_quarter(t, TRIES);
  size_t most = (size_t)64 << 20;
  while (most > ((size_t)4 << 20) && 4 * (int64_t)most > h->memory) most /= 2;
  unsigned char *x = pages(most), *y = pages(most);
  if (x && y) {
    // A copy moves its bytes twice. What lies in caches is faster than memory: a share of 1.
    h->nmemory = 0;
    for (size_t n = most >> 10; n <= most; n <<= 2) {
      double took = copy_time(s, x, y, n, true, s->seconds * 0.02);
      double busy = took > h->launch ? took - h->launch : took;
      double share = h->bandwidth > 0 ? 2 * (double)n / busy / h->bandwidth : 1;
      h->memory_curve[h->nmemory][0] = 2 * (double)n;
      h->memory_curve[h->nmemory++][1] = share < 1 ? share : 1;
    }
    h->link_bandwidth = (double)most / copy_time(s, x, y, most, false, s->seconds * 0.05);
  }
  if (h->bandwidth <= 0) h->bandwidth = 2 * h->link_bandwidth;
  double word = word_time();
  if (word > 0) h->link_latency = word;
  if (x) munmap(x, most);
  if (y) munmap(y, most);
}

// Writes a file of some MB to a folder, through to the disk.
static void measure_disk(const session *s, host_facts *h, const char *folder) {
  say(s, "disk");
  enum { PIECE = 4 << 20, PIECES = 24 };
  struct statvfs disk;
  h->disk = 0;
  const char *path = arena_printf(s->c->arena, "%s/calibrate.%d", folder, (int)getpid());
  if (statvfs(folder, &disk) != 0) return;
  int64_t spare = (int64_t)disk.f_bavail * (int64_t)disk.f_frsize;
  if (spare < 2 * (int64_t)PIECE * PIECES) return;
  unsigned char *piece = pages(PIECE);
  if (!piece) return;
  for (size_t i = 0; i < PIECE; i++) piece[i] = (unsigned char)(i * 2654435761u >> 13);
  const file_io *io = file_io_system();
  file_out out;
  status *st = file_create(io, path, &out);
  double begin = clock_s();
  for (int i = 0; !st && i < PIECES; i++) st = file_write(&out, piece, PIECE);
  if (!st) st = file_sync(&out);
  double took = clock_s() - begin;
  if (!st) {
    h->disk = spare;
    h->disk_bandwidth = (double)PIECE * (double)PIECES / took;
    st = file_close(&out);
  } else {
    status *ignored = file_close(&out);
    status_free(ignored);
  }
  status_free(st);
  unlink(path);
  munmap(piece, PIECE);
}

// ---- the verb -----------------------------------------------------------------------------------

static const char *cpu_name(arena *a) {
  FILE *f = fopen("/proc/cpuinfo", "r");
  char line[256];
  const char *name = "a CPU";
  while (f && fgets(line, sizeof line, f))
    if (str_starts(line, "model name") && strchr(line, ':')) {
      const char *p = strchr(line, ':') + 1;
      p += strspn(p, " ");
      name = arena_strndup(a, p, strcspn(p, "\n"));
      break;
    }
  if (f) fclose(f);
  return name;
}

// Writes beside the old file and puts the new one in its place: a name is whole or old.
static bool write_text(cli *c, const char *path, const char *text) {
  const char *fresh = arena_printf(c->arena, "%s.new", path);
  FILE *f = fopen(fresh, "w");
  bool ok = f && fputs(text, f) >= 0;
  if (f && fclose(f) != 0) ok = false;
  if (ok && rename(fresh, path) == 0) return true;
  diag_error(&c->diags, span_none(), DIAG_CANNOT_WRITE, "cannot write %s: %s", path,
             strerror(errno));
  if (f) unlink(fresh);
  return false;
}

int verb_calibrate(cli *c) {
  arena *a = c->arena;
  const char *out = cli_get(c, OPT_OUT), *cache = compile_cache_folder(c);
  if (!out && !cache) return cli_usage("--cache none leaves no place for the result: give -o FILE");
  const char *folder = ".";
  if (!out) {
    status *st = file_make_dirs(file_io_system(), cache);
    if (st) {
      diag_error(&c->diags, span_none(), DIAG_CANNOT_WRITE, "cannot make the folder %s", cache);
      status_free(st);
      return cli_finish(c);
    }
    folder = cache;
    out = arena_printf(a, "%s/this-host.dsm", cache);
  } else if (strrchr(out, '/')) {
    folder = arena_strndup(a, out, (size_t)(strrchr(out, '/') - out) + 1);
  }
  if (access(folder, W_OK) != 0) {  // before the machine is kept busy for nothing
    diag_error(&c->diags, span_none(), DIAG_CANNOT_WRITE, "cannot write %s: %s", out,
               strerror(errno));
    return cli_finish(c);
  }
  double limit = cli_get(c, OPT_LIMIT) ? atof(cli_get(c, OPT_LIMIT)) : 12;
  session s = {.c = c, .pool = pool_new((int)cli_number(c, OPT_JOBS, 0)), .seconds = limit};
  if (!s.pool) IR_BUG("no pool of threads");
  s.progress = isatty(STDERR_FILENO) && !cli_has(c, OPT_QUIET);

  host_facts h = host_guess(a);
  h.cores = pool_threads(s.pool);
  double load = 0;
  bool busy = getloadavg(&load, 1) == 1 && load > 0.3 * h.cores;
  measure_memory(&s, &h);
  speeds best = {.peak = peak_flops(s.pool)};
  for (int i = 0; i < ROUNDS; i++) {
    measure_products(&s, h.matmul_bf16 > 0, &best);
    measure_attention(&s, &best);
    measure_vector(&s, h.launch, &best);
  }
  set_products(&best, &h);
  set_attention(&best, &h);
  set_vector(&best, &h);
  measure_disk(&s, &h, folder);
  pool_free(s.pool);
  say(&s, "");

  time_t at = time(NULL);
  struct tm local;
  char date[64] = "";
  if (localtime_r(&at, &local)) strftime(date, sizeof date, "%Y-%m-%d %H:%M", &local);
  const char *head =
      arena_printf(a, "# Measured by dsmc %s calibrate on %s, on %d core%s of %s.\n", DSMC_VERSION,
                   date, h.cores, h.cores == 1 ? "" : "s", cpu_name(a));
  if (busy)
    head =
        arena_printf(a, "%s# Other programs ran (load %.1f): speeds may be too low.\n", head, load);
  h.comment = arena_printf(
      a,
      "%s# Measured with dsmc's own kernels in f32. efficiency.matmul: an MLP n -> 4n -> n over "
      "2048\n"
      "# tokens and its gradients; attention: 4 heads of 64, causal, and its gradients; vector: "
      "gelu.\n"
      "# matmul.f32 is what the cores' multiply-adds reach, matmul.bf16 what puts its products of\n"
      "# the upper sizes on the same curve.\n",
      head);
  if (write_text(c, out, host_text(a, &h)) && !cli_has(c, OPT_QUIET))
    printf("%s: %.0f GFLOP/s f32%s, memory %.1f GB/s, link %.1f GB/s, disk %.2f GB/s\n", out,
           1e-9 * h.matmul_f32 * h.matmul_curve[h.nmatmul - 1][1],
           h.matmul_bf16 > 0 ? arena_printf(a, ", %.0f bf16",
                                            1e-9 * h.matmul_bf16 * h.matmul_curve[h.nmatmul - 1][1])
                             : "",
           1e-9 * h.bandwidth, 1e-9 * h.link_bandwidth, 1e-9 * h.disk_bandwidth);
  if (busy)
    fprintf(stderr,
            "dsmc: note: other programs were running (load %.1f), so speeds may be too low; run it "
            "again when the machine is idle\n",
            load);
  return cli_finish(c);
}
