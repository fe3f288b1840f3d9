// The time of generated matrix products: builds one einsum, compiles it as `dsmc build` does, and
// runs its kernels on the runtime's pool. bench/matmul.py is the command to use.
//
//   bench_matmul ceiling THREADS                  GFLOP/s of f32 and of bf16 multiply-adds
//   bench_matmul run THREADS SECONDS COPIES [SKIP]   one line of input a product:
//       f|d|w  M K N  f32|bf16|stored             f = X W^T, d = dY W, w = dY^T X; X is [M,K], W
//       [N,K]
//
// `bf16` rounds f32 operands as they are read, `stored` reads them from bf16 buffers; results are
// f32. Each product prints its words, the median and the best GFLOP/s, and a sum over its result.
// COPIES > 1 goes round that many sets of buffers, so that operands come from memory.
// SKIP names choices to leave out, as `dsmc build --skip` does.
// THREADS 0 is for a machine that others use: one thread runs the cells in pieces of less than a
// millisecond, and the "best" time is the sum of each piece's best.
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "codegen/emit.h"
#include "ir/verify.h"
#include "runtime/pool.h"
#include "runtime/program.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *what) {
  fprintf(stderr, "bench_matmul: %s\n", what);
  exit(1);
}

// ---- ceilings -----------------------------------------------------------------------------------

// Sixteen sums, so that each multiply-add waits for none of the others. They are single variables:
// an array would be kept in memory.
#define EACH(X) \
  X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define ZERO(i) __m512 s##i = _mm512_setzero_ps();
#define FMA(i) s##i = _mm512_fmadd_ps(a, b, s##i);
#define PAIRS(i) s##i = _mm512_dpbf16_ps(s##i, a, b);
#define KEEP(i) __asm__ volatile("" : "+v"(s##i));
enum { SUMS = 16, LANES = 16, ROUNDS = 20000 };

__attribute__((target("avx512f"))) static double fma_flops(double seconds) {
  __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  EACH(ZERO)
  double start = now(), flops = 0, t;
  do {
    for (int r = 0; r < ROUNDS; r++) {
      EACH(FMA)
      EACH(KEEP)
    }
    flops += (double)(2 * ROUNDS * SUMS * LANES);
    t = now() - start;
  } while (t < seconds);
  return flops / t;
}

__attribute__((target("avx512f,avx512bf16"))) static double bf16_flops(double seconds) {
  __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f003f00), b = (__m512bh)_mm512_set1_epi32(0x3e803e80);
  EACH(ZERO)
  double start = now(), flops = 0, t;
  do {
    for (int r = 0; r < ROUNDS; r++) {
      EACH(PAIRS)
      EACH(KEEP)
    }
    flops += (double)(4 * ROUNDS * SUMS * LANES);
    t = now() - start;
  } while (t < seconds);
  return flops / t;
}

typedef struct loop {
  double (*flops)(double seconds);
  double seconds, got;
} loop;

static void *run_loop(void *p) {
  loop *l = p;
  l->got = l->flops(l->seconds);
  return NULL;
}

// The best of three tries of all threads together.
static double ceiling_of(double (*flops)(double), int threads) {
  enum { MOST = 64 };
  loop l[MOST];
  pthread_t t[MOST];
  double best = 0;
  if (threads > MOST) threads = MOST;
  for (int turn = 0; turn < 3; turn++) {
    double sum = 0;
    for (int i = 0; i < threads; i++) {
      l[i] = (loop){flops, 0.15, 0};
      if (i && pthread_create(&t[i], NULL, run_loop, &l[i])) fail("no thread");
    }
    run_loop(&l[0]);
    for (int i = 0; i < threads; i++) {
      if (i) pthread_join(t[i], NULL);
      sum += l[i].got;
    }
    if (sum > best) best = sum;
  }
  return best * 1e-9;
}

// ---- one product --------------------------------------------------------------------------------

typedef struct product {
  arena a;
  cg_context *cg;
  cg_launches l;
  cg_image image;
  unsigned char *code;
  ir_value *root[3];
} product;

static unsigned char *memory(size_t n) {
  size_t huge = (size_t)1 << 21, all = (n + huge - 1) / huge * huge + huge;
  unsigned char *p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) fail("out of memory");
  p += (huge - (uintptr_t)p % huge) % huge;
  madvise(p, n, MADV_HUGEPAGE);  // as the runtime's arena
  return p;
}

static ir_value *input(ir_module *m, ir_func *f, ir_dtype t, int64_t rows, int64_t cols) {
  ir_type type = {.dtype = t, .rank = 2};
  type.dim[0] = ir_index_new(m, NULL, rows);
  type.dim[1] = ir_index_new(m, NULL, cols);
  return ir_op_raw(f->body, IR_input, NULL, 0, &type, 1)->out[0];
}

static void build(product *p, char mode, int64_t m, int64_t k, int64_t n, const char *type,
                  skip_set skip) {
  arena_init(&p->a);
  ir_module *module = ir_module_new(&p->a, "bench");
  ir_func *f = ir_func_new(module, "f", ENTRY_EVAL);
  ir_builder b = {.m = module, .at = f->body};
  ir_dtype t = strcmp(type, "stored") == 0 ? DT_bf16 : DT_f32;
  ir_value *in[2];
  in[0] = input(module, f, t, m, mode == 'f' ? k : n);
  in[1] = mode == 'w' ? input(module, f, t, m, k) : input(module, f, t, n, k);
  ir_attr a[2] = {ir_attr_s("spec", mode == 'f'   ? "m k, n k -> m n"
                                    : mode == 'd' ? "m n, n k -> m k"
                                                  : "m n, m k -> n k"),
                  ir_attr_s("round", "bf16")};
  ir_op *op = ir_build_full(&b, IR_einsum, in, 2, a, strcmp(type, "f32") == 0 ? 1 : 2, NULL, 0);
  if (!op) fail(b.error);
  op->out[0]->type.dtype = DT_f32;
  p->root[0] = in[0], p->root[1] = in[1], p->root[2] = op->out[0];
  p->cg = cg_context_new(&p->a, module);
  cg_skip(p->cg, skip);
  const char *why = cg_build(p->cg, op, &p->l);
  if (!why) why = cg_compile(p->cg, NULL, &p->image);
  if (why) fail(why);
  p->code =
      mmap(NULL, (size_t)p->image.n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p->code == MAP_FAILED) fail("out of memory");
  memcpy(p->code, p->image.bytes, (size_t)p->image.n);
  if (mprotect(p->code, (size_t)p->image.n, PROT_READ | PROT_EXEC)) fail("no code");
}

typedef struct launch {
  dsm_kernel *f;
  unsigned char *buf[CG_MAX_OPERANDS];
  dsm_call call;
} launch;

static void cells(void *ctx, int64_t lo, int64_t hi) {
  launch *l = ctx;
  l->f(l->buf, &l->call, lo, hi);
}

static void prepare(const product *p, const cg_launch *from, unsigned char *const *root,
                    unsigned char *const *scratch, launch *to) {
  memset(to, 0, sizeof *to);
  k_kernel *const *all;
  int n = cg_kernels(p->cg, &all), number = 0;
  while (number < n && all[number] != from->kernel) number++;
  unsigned char *at = p->code + p->image.offset[number];
  memcpy(&to->f, &at, sizeof at);
  for (int i = 0; i < from->n; i++) {
    const cg_operand *o = &from->operand[i];
    for (int r = 0; o->root && r < 3; r++)
      if (o->root == p->root[r]) to->buf[i] = root[r];
    if (!o->root) to->buf[i] = scratch[o->scratch];
  }
}

// Runs one launch in pieces, keeping each piece's best time; returns how many pieces.
static int run_pieces(const launch *l, int64_t all, int64_t each, double *best) {
  int n = 0;
  for (int64_t c = 0; c < all; c += each, n++) {
    double t = now();
    l->f((unsigned char **)l->buf, &l->call, c, c + each < all ? c + each : all);
    t = now() - t;
    if (t < best[n]) best[n] = t;
  }
  return n;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

// Numbers in -1 .. 1 that bf16 holds exactly.
static void fill(ir_dtype t, unsigned char *p, int64_t n) {
  uint32_t s = 12345;
  for (int64_t i = 0; i < n; i++) {
    s = s * 1664525u + 1013904223u;
    float v = (float)((int)(s >> 24) - 128) / 128.0f;
    uint32_t u;
    memcpy(&u, &v, 4);
    uint16_t high = (uint16_t)(u >> 16);
    if (t == DT_bf16) {
      memcpy(p + 2 * i, &high, 2);
    } else {
      memcpy(p + 4 * i, &v, 4);
    }
  }
}

static void measure(pool *workers, char mode, int64_t m, int64_t k, int64_t n, const char *type,
                    double seconds, int copies, skip_set skip) {
  enum { TIMES = 401, COPIES = 16, LAUNCHES = 4, PIECES = 100000 };
  static double time[TIMES], piece[PIECES];
  product p = {0};
  build(&p, mode, m, k, n, type, skip);
  if (p.l.l.n > LAUNCHES || copies > COPIES) fail("too many");
  unsigned char *root[COPIES][3], *scratch[8];
  size_t bytes[3];
  for (int r = 0; r < 3; r++) bytes[r] = (size_t)ir_bytes(&p.root[r]->type);
  for (int c = 0; c < copies; c++)
    for (int r = 0; r < 3; r++) {
      root[c][r] = memory(bytes[r]);
      if (r < 2) fill(p.root[r]->type.dtype, root[c][r], ir_elements(&p.root[r]->type));
    }
  for (int i = 0; i < p.l.scratch.n; i++) scratch[i] = memory((size_t)p.l.scratch.at[i]);
  launch l[LAUNCHES];
  int count = 0, pieces = 0;
  double flops = 2e-9 * (double)m * (double)k * (double)n;
  for (int i = 0; i < PIECES; i++) piece[i] = 1e9;
  double start = now();
  for (int turn = -copies; count < TIMES && (count < 5 || now() - start < seconds); turn++) {
    double t = now();
    for (int i = 0; i < p.l.l.n; i++) {
      prepare(&p, &p.l.l.at[i], root[(turn + copies) % copies], scratch, &l[i]);
      int64_t all = k_cells(p.l.l.at[i].kernel);
      if (!i) pieces = 0;
      if (workers) {
        pool_run(workers, all, cells, &l[i]);
      } else {
        int64_t each = (int64_t)((double)all / flops * 0.05);  // 50 MFLOP
        pieces += run_pieces(&l[i], all, each > 0 ? each : 1, piece + pieces);
      }
    }
    if (turn >= 0) time[count++] = now() - t;
    if (turn < 0) start = now();
  }
  double sum = 0;
  int64_t elements = ir_elements(&p.root[2]->type);
  for (int64_t i = 0; i < elements; i += 97) sum += (double)((float *)(void *)root[0][2])[i];
  qsort(time, (size_t)count, sizeof *time, ascending);
  if (!workers) {
    time[0] = 0;
    for (int i = 0; i < pieces; i++) time[0] += piece[i];
  }
  printf("%c %lld %lld %lld %s %.1f %.1f %.6g\n", mode, (long long)m, (long long)k, (long long)n,
         type, flops / time[count / 2], flops / time[0], sum);
  fflush(stdout);
  for (int c = 0; c < copies; c++)
    for (int r = 0; r < 3; r++) munmap(root[c][r], bytes[r]);
  for (int i = 0; i < p.l.scratch.n; i++) munmap(scratch[i], (size_t)p.l.scratch.at[i]);
  munmap(p.code, (size_t)p.image.n);
  arena_free(&p.a);
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "ceiling") == 0) {
    int threads = atoi(argv[2]);
    double f32 = __builtin_cpu_supports("avx512f") ? ceiling_of(fma_flops, threads) : 0;
    double bf16 = __builtin_cpu_supports("avx512bf16") ? ceiling_of(bf16_flops, threads) : 0;
    printf("%.1f %.1f\n", f32, bf16);
    return 0;
  }
  skip_set skip = 0;
  if (argc < 5 || argc > 6 || strcmp(argv[1], "run")) fail("see bench/matmul.py");
  if (skip_add(&skip, argc > 5 ? argv[5] : NULL)) fail("SKIP: see `dsmc help skip`");
  int threads = atoi(argv[2]);
  pool *workers = threads ? pool_new(threads) : NULL;
  if (threads && !workers) fail("no pool");
  char mode, type[8];
  long long m, k, n;
  while (scanf(" %c %lld %lld %lld %7s", &mode, &m, &k, &n, type) == 5)
    measure(workers, mode, m, k, n, type, atof(argv[3]), atoi(argv[4]), skip);
  pool_free(workers);
  return 0;
}
