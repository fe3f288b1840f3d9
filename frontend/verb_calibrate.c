// dsmc calibrate: measures this machine into a cluster text that `--cluster` reads.
//
// What is measured is what steps are made of: products by size with the kernels that dsmc
// generates, on the pool of threads that executables run them on; the rate of memory; how long it
// takes to start a loop on all threads; a copy from one thread's memory to another's and the time
// of a word between them, which is what ranks of one machine have for a link; and writing to the
// disk. Of several tries the best quarter counts: the others say what else the machine did
// meanwhile.
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
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/peak.h"
#include "runtime/pool.h"
#include "runtime/program.h"

enum { TRIES = 400 };

typedef struct session {
  cli *c;
  pool *pool;
  double seconds;  // to measure for, all together
  bool progress;
} session;

static double now(void) { return 1e-9 * (double)clock_ns(); }

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

// Memory of its own, touched; NULL when there is none.
static unsigned char *pages(size_t n) {
  unsigned char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return NULL;
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

static ir_value *input_of(ir_module *m, ir_func *f, int64_t n) {
  ir_type of = {.dtype = DT_f32, .rank = 2};
  of.dim[0] = ir_index_new(m, NULL, n);
  of.dim[1] = ir_index_new(m, NULL, n);
  return ir_op_raw(f->body, IR_input, NULL, 0, &of, 1)->out[0];
}

static ir_op *build_product(ir_module *m, int64_t n, bool bf16) {
  ir_func *f = ir_func_new(m, "f", ENTRY_EVAL);
  ir_builder b = {.m = m, .at = f->body};
  ir_value *in[2] = {input_of(m, f, n), input_of(m, f, n)};
  ir_attr how[2] = {ir_attr_s("spec", "m k, n k -> m n"), ir_attr_s("round", "bf16")};
  ir_op *op = ir_build_full(&b, IR_einsum, in, 2, how, bf16 ? 2 : 1, NULL, 0);
  IR_CHECK(op != NULL);
  op->out[0]->type.dtype = DT_f32;
  return op;
}

// FLOP/s of a product of two n x n matrices; 0 when there is no memory for it. Operands are f32, in
// a bf16 product rounded as they are read.
static double product_speed(const session *s, int64_t n, bool bf16, double seconds) {
  arena a;
  arena_init(&a);
  a.oom = s->c->arena->oom;
  a.oom_ctx = s->c->arena->oom_ctx;
  ir_module *m = ir_module_new(&a, "calibrate");
  ir_op *op = build_product(m, n, bf16);
  cg_context *cg = cg_context_new(&a, m);
  cg_launches all = {0};
  cg_image image;
  const char *folder = compile_cache_folder(s->c);
  cg_target target = {.threads = (int)cli_number(s->c, OPT_JOBS, 0)};
  if (folder) target.cache = arena_printf(&a, "%s/kernels", folder);
  const char *why = cg_build(cg, op, &all);
  if (!why) why = cg_compile(cg, &target, &image);
  if (why) IR_BUG("calibrate: %s", why);

  size_t bytes = (size_t)(n * n) * 4, code_bytes = (size_t)image.n;
  unsigned char *buffer[3], *scratch[8] = {NULL};
  IR_CHECK(all.scratch.n <= 8);
  bool ok = true;
  for (int i = 0; i < 3; i++) ok &= (buffer[i] = pages(bytes)) != NULL;
  for (int i = 0; i < all.scratch.n; i++)
    ok &= (scratch[i] = pages((size_t)all.scratch.at[i])) != NULL;
  unsigned char *code = pages(code_bytes);
  ok = ok && code && memcpy(code, image.bytes, code_bytes) &&
       mprotect(code, code_bytes, PROT_READ | PROT_EXEC) == 0;
  double speed = 0;
  if (ok) {
    for (int64_t i = 0; i < n * n; i++) {  // small, and bf16 has them exactly
      ((float *)(void *)buffer[0])[i] = (float)(i % 17 - 8) / 8;
      ((float *)(void *)buffer[1])[i] = (float)(i % 13 - 6) / 8;
    }
    k_kernel *const *kernel;
    int kernels = cg_kernels(cg, &kernel);
    launch *l = arena_new(&a, launch, all.l.n);
    for (int i = 0; i < all.l.n; i++) {
      const cg_launch *from = &all.l.at[i];
      int at_kernel = 0;
      while (at_kernel < kernels && kernel[at_kernel] != from->kernel) at_kernel++;
      unsigned char *at = code + image.offset[at_kernel];
      memcpy(&l[i].f, &at, sizeof at);
      l[i].cells = k_cells(from->kernel);
      for (int k = 0; k < from->n; k++) {
        const cg_operand *o = &from->operand[k];
        l[i].buffer[k] = !o->root               ? scratch[o->scratch]
                         : o->root == op->in[0] ? buffer[0]
                         : o->root == op->in[1] ? buffer[1]
                                                : buffer[2];
      }
    }
    double t[TRIES], start = now();
    int count = 0;
    for (int turn = -1; count < TRIES && (count < 3 || now() - start < seconds); turn++) {
      double begin = now();
      for (int i = 0; i < all.l.n; i++) pool_run(s->pool, l[i].cells, run_cells, &l[i]);
      if (turn >= 0) t[count++] = now() - begin;
    }
    speed = 2.0 * (double)n * (double)n * (double)n / best_quarter(t, count);
  }
  for (int i = 0; i < 3; i++)
    if (buffer[i]) munmap(buffer[i], bytes);
  for (int i = 0; i < all.scratch.n; i++)
    if (scratch[i]) munmap(scratch[i], (size_t)all.scratch.at[i]);
  if (code) munmap(code, code_bytes);
  arena_free(&a);
  return speed;
}

// Both types over the same sizes. There is one curve, that of f32 against the multiply-adds the
// cores can do; the peak of bf16 is what makes its largest product lie on the curve.
static void measure_products(const session *s, host_facts *h) {
  static const int64_t sizes[] = {32, 64, 128, 256, 512, 1024, 2048};
  enum { SIZES = sizeof sizes / sizeof *sizes };
  double f32[SIZES], peak = peak_flops(s->pool), large = 0;
  bool has_bf16 = h->matmul_bf16 > 0;
  double each = s->seconds * 0.6 / (double)SIZES / (has_bf16 ? 1.5 : 1);
  for (int i = 0; i < SIZES; i++) {
    // With little time the large ones are left out; the curve goes on level from the last.
    double n = (double)sizes[i], takes = i ? 2 * n * n * n / f32[i - 1] : 0;
    f32[i] = 0;
    if (i >= 4 && (f32[i - 1] <= 0 || 3 * takes > 4 * each)) continue;
    say(s, arena_printf(s->c->arena, "products of f32, %d x %d", (int)sizes[i], (int)sizes[i]));
    f32[i] = product_speed(s, sizes[i], false, each);
    if (f32[i] > peak) peak = f32[i];
  }
  h->matmul_f32 = peak;
  h->nmatmul = 0;
  for (int i = 0; i < SIZES; i++) {
    if (f32[i] <= 0) continue;
    double n = (double)sizes[i];
    h->matmul_curve[h->nmatmul][0] = 2 * n * n * n;
    h->matmul_curve[h->nmatmul++][1] = f32[i] / peak;
    large = f32[i];
  }
  h->vector_f32 = peak / 2;  // an addition or a product is half of a multiply-add
  if (!has_bf16 || large <= 0) return;
  say(s, "products of bf16");
  int64_t n = sizes[h->nmatmul - 1];
  h->matmul_bf16 = product_speed(s, n, true, 3 * each) / large * peak;
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
  double t[TRIES], start = now();
  int count = 0, cells = 4 * pool_threads(s->pool);
  copy c = {to, from, n / (size_t)cells};
  while (count < TRIES && (count < 3 || now() - start < seconds)) {
    double begin = now();
    if (all)
      pool_run(s->pool, cells, copy_cells, &c);
    else
      memcpy(to, from, n);
    t[count++] = now() - begin;
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
    double begin = now();
    atomic_store(&b.at, 2 * i + 1);
    while (atomic_load(&b.at) != 2 * i + 2) {}
    time[i] = (now() - begin) / 2;
  }
  pthread_join(t, NULL);
  return best_quarter(time, b.rounds);
}

static void measure_memory(const session *s, host_facts *h) {
  say(s, "memory");
  h->bandwidth = peak_bandwidth(s->pool);
  double t[TRIES];
  for (int i = 0; i < TRIES; i++) {
    double begin = now();
    pool_run(s->pool, pool_threads(s->pool), nothing, NULL);
    t[i] = now() - begin;
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
  double begin = now();
  for (int i = 0; !st && i < PIECES; i++) st = file_write(&out, piece, PIECE);
  if (!st) st = file_sync(&out);
  double took = now() - begin;
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
  measure_products(&s, &h);
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
      "%s# efficiency.matmul: products of dsmc's own kernels in f32, n x n by n x n.\n"
      "# matmul.f32 is what the cores' multiply-adds reach, matmul.bf16 what puts its\n"
      "# largest product on the same curve.\n",
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
