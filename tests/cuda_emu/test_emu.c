// The emulation itself: kernels written by hand (kernels.cuh) compute what they should, the same
// bits in every order of the threads, and each planted bug is caught.
//
//   test_emu [--keep]     --keep: the folder with the compiled texts stays, and its name is printed
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/cuda.h"
#include "runtime/base/rng.h"
#include "runtime/base/str.h"
#include "runtime/dtype.h"
#include "runtime/program.h"
#include "tests/cuda_emu/emulate.h"

// ---- what a kernel is run on --------------------------------------------------------------------

enum { MAX_BUFFERS = 3, MAX_NUMBERS = 3 };

typedef struct job {
  arena *a;
  int64_t blocks;
  int threads, shared_bytes, nbuffers;
  emu_buffer buffer[MAX_BUFFERS];
  int64_t number[MAX_NUMBERS];
  prog_step step;
} job;

static void give(job *j, int64_t bytes, unsigned use) {
  emu_buffer *b = &j->buffer[j->nbuffers++];
  *b = (emu_buffer){.at = arena_alloc(j->a, (size_t)bytes + 16), .bytes = bytes, .use = use};
  if (use == EMU_WRITE) b->written = arena_alloc(j->a, (size_t)bytes + 1);
}

static void give_floats(job *j, int64_t n, unsigned use) {
  give(j, 4 * n, use);
  float *x = j->buffer[j->nbuffers - 1].at;
  for (int64_t i = 0; i < n; i++)
    x[i] = (float)(0.25 + rng_unit((uint64_t)j->nbuffers, (uint64_t)i));
}

static void give_bf16(job *j, int64_t n) {
  give(j, 2 * n, EMU_READ);
  for (int64_t i = 0; i < n; i++) {
    double v = rng_unit((uint64_t)j->nbuffers, (uint64_t)i) - 0.5;
    dtype_convert((uint16_t *)j->buffer[j->nbuffers - 1].at + i, PROG_BF16, &v, PROG_F64, 1);
  }
}

// The arguments as d_args<buffers, numbers> has them.
static void *arguments(job *j) {
  int64_t *word = arena_new(j->a, int64_t, j->nbuffers + 4 + MAX_NUMBERS);
  for (int i = 0; i < j->nbuffers; i++) word[i] = (int64_t)(intptr_t)j->buffer[i].at;
  word[j->nbuffers] = (int64_t)(intptr_t)&j->step;
  memcpy(word + j->nbuffers + 4, j->number, sizeof j->number);
  return word;
}

// ---- kernels: what they are given and what they should give -------------------------------------

static const float *floats(const job *j, int i) { return j->buffer[i].at; }
static const int32_t *ints(const job *j, int i) { return j->buffer[i].at; }

static const char *differs(const job *j, const char *what, int64_t at, double got, double want) {
  return arena_printf(j->a, "differs: %s %lld is %.9g, should be %.9g", what, (long long)at, got,
                      want);
}

static void make_add_twice(job *j) {
  j->blocks = 3;
  j->threads = 128;
  j->number[0] = 1300;
  give_floats(j, 1304, EMU_READ);
  give_floats(j, 1304, EMU_READ | EMU_WRITE);
  j->buffer[1].written = arena_alloc(j->a, 4 * 1304);  // four numbers more that nobody wrote
  memset(j->buffer[1].written, 1, 4 * 1300);
}

static const char *check_add_twice(const job *j) {
  for (int64_t i = 0; i < 1300; i++) {
    float before = (float)(0.25 + rng_unit(2, (uint64_t)i));
    double want = fmaf(2, floats(j, 0)[i], before);
    if (floats(j, 1)[i] != want) return differs(j, "element", i, floats(j, 1)[i], want);
  }
  return NULL;
}

enum { ROWS = 5, COLS = 203 };

static void make_share_of_row(job *j) {
  j->blocks = 3;
  j->threads = 128;
  j->shared_bytes = 16;
  j->number[0] = ROWS;
  j->number[1] = COLS;
  give_floats(j, ROWS * COLS, EMU_READ);
  give_floats(j, ROWS * COLS, EMU_WRITE);
}

static const char *check_share_of_row(const job *j) {
  for (int64_t r = 0; r < ROWS; r++) {
    double sum = 0;
    for (int64_t c = 0; c < COLS; c++) sum += (double)floats(j, 0)[r * COLS + c];
    for (int64_t i = r * COLS; i < (r + 1) * COLS; i++) {
      double want = (double)floats(j, 0)[i] / sum, got = (double)floats(j, 1)[i];
      if (!(fabs(got - want) <= 1e-6 * want)) return differs(j, "element", i, got, want);
    }
  }
  return NULL;
}

static void make_ints(job *j, int64_t blocks, int64_t out) {
  j->blocks = blocks;
  j->threads = 64;
  give(j, 4 * 64 * blocks, EMU_READ);
  int32_t *x = j->buffer[0].at;
  for (int i = 0; i < 64 * blocks; i++) x[i] = i % 21;
  x[70] = 100;
  give(j, 4 * out, EMU_WRITE);
}

static void make_warps_reversed(job *j) {
  make_ints(j, 2, 128);
  j->shared_bytes = 256;
}

static const char *check_warps_reversed(const job *j) {
  for (int i = 0; i < 128; i++) {
    int want = ints(j, 0)[i / 32 * 32 + 31 - i % 32];
    if (ints(j, 1)[i] != want) return differs(j, "element", i, ints(j, 1)[i], want);
  }
  return NULL;
}

static void make_above(job *j) {
  make_ints(j, 2, 2);
  j->shared_bytes = 8;
}

static const char *check_above(const job *j) {
  for (int b = 0; b < 2; b++) {
    int want = 0;
    for (int w = 0; w < 2; w++) {
      int n = 0, large = 0;
      for (int i = 0; i < 32; i++) {
        int v = ints(j, 0)[64 * b + 32 * w + i];
        n += v > 9, large |= v > 99;
      }
      want += large ? 1000 : n;
    }
    if (ints(j, 1)[b] != want) return differs(j, "element", b, ints(j, 1)[b], want);
  }
  return NULL;
}

// Every f16, the numbers half way between neighbours, and their own neighbours in f32.
enum { HALVES = 4 * 65536 };

static void make_halves(job *j) {
  j->blocks = HALVES / 128;
  j->threads = 128;
  give(j, 4 * HALVES, EMU_READ);
  float *x = j->buffer[0].at;
  for (uint32_t u = 0; u < 65536; u++) {
    uint16_t at[2] = {(uint16_t)u, (uint16_t)(u + 1)};
    float v[2];
    dtype_convert(v, PROG_F32, at, PROG_F16, 2);
    float half = isfinite(v[0]) && isfinite(v[1]) ? (v[0] + v[1]) / 2 : 65520;
    x[4 * u] = v[0];
    x[4 * u + 1] = half;
    x[4 * u + 2] = nextafterf(half, INFINITY);
    x[4 * u + 3] = nextafterf(half, -INFINITY);
  }
  give(j, 2 * HALVES, EMU_WRITE);
  give(j, 4 * HALVES, EMU_WRITE);
}

static const char *check_halves(const job *j) {
  const uint16_t *half = j->buffer[1].at;
  for (int64_t i = 0; i < HALVES; i++) {
    uint16_t want;
    float x = floats(j, 0)[i], back, got = floats(j, 2)[i];
    dtype_convert(&want, PROG_F16, &x, PROG_F32, 1);
    dtype_convert(&back, PROG_F32, &half[i], PROG_F16, 1);
    if (isnan(x) ? !isnan(back) || !isnan(got) : half[i] != want)
      return differs(j, "bits of number", i, half[i], want);
    if (!isnan(x) && (got != back || signbit(got) != signbit(back)))
      return differs(j, "number", i, (double)got, (double)back);
  }
  return NULL;
}

enum { M = 70, N = 88, K = 104 };

static void make_product(job *j) {
  j->blocks = 4;
  j->threads = 128;
  j->shared_bytes = 2 * (64 * 80 + 32 * 144);
  j->number[0] = M, j->number[1] = N, j->number[2] = K;
  give_bf16(j, M * K);
  give_bf16(j, K * N);
  give_floats(j, M * N, EMU_WRITE);
}

static const char *check_product(const job *j) {
  const uint16_t *a = j->buffer[0].at, *b = j->buffer[1].at;
  for (int r = 0; r < M; r++) {
    for (int c = 0; c < N; c++) {
      double want = 0, got = (double)floats(j, 2)[r * N + c];
      for (int k = 0; k < K; k++) {
        double x[2];
        dtype_convert(&x[0], PROG_F64, &a[r * K + k], PROG_BF16, 1);
        dtype_convert(&x[1], PROG_F64, &b[k * N + c], PROG_BF16, 1);
        want += x[0] * x[1];
      }
      if (!(fabs(got - want) <= 1e-5)) return differs(j, "element", r * N + c, got, want);
    }
  }
  return NULL;
}

typedef struct kernel_test {
  const char *name;
  void (*make)(job *j);
  const char *(*check)(const job *j);
} kernel_test;

static const kernel_test kernels[] = {
    {"add_twice", make_add_twice, check_add_twice},
    {"share_of_row", make_share_of_row, check_share_of_row},
    {"warps_reversed", make_warps_reversed, check_warps_reversed},
    {"above", make_above, check_above},
    {"halves", make_halves, check_halves},
    {"product", make_product, check_product},
};
enum { KERNELS = sizeof kernels / sizeof *kernels };

// ---- bugs ---------------------------------------------------------------------------------------

// The first `from` behind the first `behind` ("": of the kernel) becomes `to`; the emulation or the
// comparison must say `says`.
typedef struct planted {
  const char *what, *kernel, *behind, *from, *to, *says;
} planted;

static const planted bugs[] = {
    // Barriers.
    {"a barrier is missing before parts are read", "share_of_row", "", "d_barrier();", "",
     "that nobody wrote|races with a write by thread"},
    {"a barrier is missing before parts are written again", "share_of_row", "p = d_shared",
     "d_barrier();", "", "races with a read by"},
    {"no barrier between a warp's lanes", "warps_reversed", "", "d_warp_barrier();", "",
     "that nobody wrote|races with a write by thread"},
    {"a barrier is missing after copies are there", "product", "wait<1>();", "d_barrier();", "",
     "that nobody wrote|while a copy to them is under way|races with a write by thread"},
    {"a barrier is missing before a part is copied over", "product", "d_bf16());", "d_barrier();",
     "", "races with a read by"},
    {"a barrier that one warp does not come to", "share_of_row", "", "d_barrier();",
     "if (d_tid() < 96) d_barrier();",
     "waits at another, of line|that nobody wrote|races with a write by thread"},
    {"a barrier after some threads have ended", "above", "", "d_barrier();",
     "if (d_tid() == 40) return; d_barrier();", "barrier: thread 40 has ended"},
    // Tiles.
    {"the last part along k is left out", "product", "", "k0 < k; k0 += 32",
     "k0 < k - 32; k0 += 32", "differs"},
    {"a row too many is copied", "product", "", "row0 + r < m", "row0 + r <= m", "is outside"},
    {"a row too few is stored", "product", "if (row <", " m && col < n", " m - 1 && col < n",
     "never written"},
    {"one column too many along k", "product", "", "next + c < k", "next + c <= k",
     "differs|is outside"},
    {"tiles overlap", "product", "", "d_block() % across * 64", "d_block() % across * 32",
     "by another block"},
    // Fragments.
    {"rows of a fragment by the wrong lanes", "product", "d_matrices(fa", "lane % 16", "lane % 8",
     "differs"},
    {"halves of a fragment swapped", "product", "d_mma(",
     "fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]",
     "fb[j / 2][j % 2 * 2 + 1], fb[j / 2][j % 2 * 2]", "differs"},
    {"a fragment turned the wrong way", "product", "", "d_matrices_turned(", "d_matrices(",
     "differs"},
    {"results stored by the wrong lanes", "product", "d_i64 row =", "lane % 4 * 2", "lane % 2 * 2",
     "races with a write by thread"},
    // Shared memory.
    {"rows beyond the matrix are not filled", "product", "A + (row0", "d_shared_store(at, zeros)",
     "(void)zeros", "that nobody wrote"},
    {"copies are not waited for", "product", "", "d_copies_wait<1>();", "",
     "while a copy to them is under way"},
    {"one group of copies too many is left under way", "product", "", "d_copies_wait<1>",
     "d_copies_wait<2>", "while a copy to them is under way"},
    {"shared memory beyond its end", "product", "", "(part ^ 1) * (64 * 80",
     "(part ^ 1) * (65 * 80", "is outside"},
    {"a shared access not aligned", "share_of_row", "", "d_shared_load<float, 4>(0)",
     "d_shared_load<float, 4>(8)", "is not aligned|is outside"},
    // Global memory.
    {"a store out of bounds", "warps_reversed", "", "d_store(y + d_tid()",
     "d_store(y + d_tid() + 1", "global write of bytes 512..515 of buffer 1 is outside"},
    {"a number is read that nobody wrote", "add_twice", "", "i + 4 <= n", "i + 4 <= n + 4",
     "global read of bytes 5200..5215 of buffer 1 that nobody wrote"},
    {"a vector not aligned", "add_twice", "", "d_tid() * 4;", "d_tid() * 4 + 1;", "is not aligned"},
    {"a store into what is only read", "above", "d_tid() == 0", "a.buffer[1]", "a.buffer[0]",
     "is not what the buffer is for"},
    {"an output is read", "share_of_row", "", "a.buffer[0]", "a.buffer[1]",
     "of buffer 1 is not what the buffer is for"},
    {"two blocks write one place", "above", "d_tid() == 0", "+ d_block()", "+ d_block() / 2",
     "by another block"},
    {"every thread stores", "above", "", "if (d_tid() == 0) d_store", "d_store",
     "races with a write by thread"},
    // Warps.
    {"a shuffle that half a warp does not come to", "above", "", "n += d_shuffle_xor(n, mask)",
     "if (d_tid() % 32 < 16) n += d_shuffle_xor(n, mask)", "waits elsewhere|has ended"},
    {"lanes come to different votes", "above", "", "bool large = d_any(v > 99);",
     "bool large;\nif (d_tid() % 2) large = d_any(v > 99);\nelse large = d_any(v > 99);",
     "waits elsewhere, at the vote"},
    {"a vote after lanes have ended", "above", "", "bool large", "if (v == 3) return; bool large",
     "has ended"},
};
enum { BUGS = sizeof bugs / sizeof *bugs };

static bool says_one_of(arena *a, const char *text, const char *wanted) {
  char *list = arena_strdup(a, wanted);
  for (char *rest = NULL, *w = strtok_r(list, "|", &rest); w; w = strtok_r(NULL, "|", &rest))
    if (strstr(text, w)) return true;
  return false;
}

// ---- texts --------------------------------------------------------------------------------------

static const char *kernel_text(arena *a, const char *all, const char *name) {
  const char *at = strstr(all, arena_printf(a, "D_KERNEL(%s,", name));
  if (!at) return NULL;
  const char *end = strstr(at + 1, "\nD_KERNEL(");
  return end ? arena_strndup(a, at, (size_t)(end - at) + 1) : arena_strdup(a, at);
}

static const char *edited(arena *a, const char *text, const planted *b, const char *symbol) {
  const char *at = strstr(text, b->behind);
  at = at ? strstr(at, b->from) : NULL;
  if (!at) return NULL;
  const char *head = strchr(text, ',');
  return arena_printf(a, "D_KERNEL(%s%.*s%s%s", symbol, (int)(at - head), head, b->to,
                      at + strlen(b->from));
}

// ---- runs ---------------------------------------------------------------------------------------

// Everything written and right, or what is not. `out` is the job after the launch.
static const char *run(arena *a, const emu_code *code, const char *symbol, const kernel_test *t,
                       const emu_turn *w, job *out) {
  *out = (job){.a = a};
  t->make(out);
  const emu_kernel *k = emu_find(code, symbol);
  if (!k) return "the object has no such kernel";
  emu_launch_info l = {.kernel = k,
                       .blocks = out->blocks,
                       .threads = out->threads,
                       .shared_bytes = out->shared_bytes,
                       .args = arguments(out),
                       .buffer = out->buffer,
                       .nbuffers = out->nbuffers,
                       .order = w->order,
                       .seed = w->seed};
  char *error = arena_alloc(a, EMU_ERROR);
  if (code->launch(&l, error, EMU_ERROR)) return error;
  for (int i = 0; i < out->nbuffers; i++) {
    const emu_buffer *b = &out->buffer[i];
    const unsigned char *written = b->use == EMU_WRITE ? b->written : NULL;
    const unsigned char *hole = written ? memchr(written, 0, (size_t)b->bytes) : NULL;
    if (hole)
      return arena_printf(a, "byte %lld of buffer %d was never written",
                          (long long)(hole - written), i);
  }
  return t->check(out);
}

static int check_right(arena *a, const emu_code *code, const kernel_test *t) {
  job first = {0}, other;
  for (int i = 0; i < EMU_TURNS; i++) {
    const char *why = run(a, code, t->name, t, emu_turn_at(i), i ? &other : &first);
    for (int k = 0; i && !why && k < first.nbuffers; k++)
      if (memcmp(first.buffer[k].at, other.buffer[k].at, (size_t)first.buffer[k].bytes))
        why = "other bits than forward";
    if (!why) continue;
    printf("FAILED %s, %s: %s\n", t->name, emu_turn_at(i)->name, why);
    return 1;
  }
  printf("ok %s\n", t->name);
  return 0;
}

static const kernel_test *test_of(const char *name) {
  for (int i = 0; i < KERNELS; i++)
    if (str_eq(kernels[i].name, name)) return &kernels[i];
  return NULL;
}

static int check_bug(arena *a, const emu_code *code, const planted *b, const char *symbol) {
  job j;
  const char *first = NULL;
  for (int i = 0; i < EMU_TURNS; i++) {
    const char *why = run(a, code, symbol, test_of(b->kernel), emu_turn_at(i), &j);
    if (!why || !says_one_of(a, why, b->says)) {
      printf("FAILED %s, %s: %s, not \"%s\"\n", b->what, emu_turn_at(i)->name,
             why ? why : "nothing said", b->says);
      return 1;
    }
    if (!first) first = why;
  }
  printf("ok caught: %s\n   %s\n", b->what, first);
  return 0;
}

// A launch that does not fit its kernel.
static int check_launch(arena *a, const emu_code *code) {
  job j = {.a = a};
  make_add_twice(&j);
  int64_t *args = arguments(&j);
  char error[EMU_ERROR];
  emu_launch_info good = {.kernel = emu_find(code, "add_twice"),
                          .blocks = j.blocks,
                          .threads = 128,
                          .args = args,
                          .buffer = j.buffer,
                          .nbuffers = 2};
  emu_launch_info l[3] = {good, good, good};
  const char *const says[] = {"64 threads, the kernel is for 128", "1 buffers, the kernel has 2",
                              "the address of buffer 1"};
  l[0].threads = 64;
  l[1].nbuffers = 1;
  int failed = 0;
  for (int i = 0; i < 3; i++) {
    if (i == 2) args[1] += 4;
    if (code->launch(&l[i], error, sizeof error) && strstr(error, says[i])) {
      printf("ok caught: %s\n", error);
      continue;
    }
    printf("FAILED a wrong launch: \"%s\", not \"%s\"\n", error, says[i]);
    failed++;
  }
  return failed;
}

static char *file_text(arena *a, const char *path) {
  FILE *f = fopen(path, "r");
  if (!f) return NULL;
  sb s = {.arena = a};
  char part[4096];
  for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;) sb_putn(&s, part, n);
  fclose(f);
  return arena_strdup(a, sb_str(&s));
}

static const char *make_unit(arena *a, const char *all, const char **out) {
  sb unit = {.arena = a};
  sb_puts(&unit, cuda_prelude());
  for (int i = 0; i < KERNELS; i++) {
    const char *text = kernel_text(a, all, kernels[i].name);
    if (!text) return arena_printf(a, "no kernel %s", kernels[i].name);
    sb_printf(&unit, "#line 1 \"%s\"\n%s\n", kernels[i].name, text);
  }
  for (int i = 0; i < BUGS; i++) {
    const char *name = arena_printf(a, "bug_%d", i);
    const char *text = kernel_text(a, all, bugs[i].kernel);
    text = text ? edited(a, text, &bugs[i], name) : NULL;
    if (!text) return arena_printf(a, "cannot plant: %s", bugs[i].what);
    sb_printf(&unit, "#line 1 \"%s\"\n%s\n", name, text);
  }
  *out = sb_str(&unit);
  return NULL;
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (emu_missing()) return puts(emu_missing()), 77;
  arena a;
  arena_init(&a);
  const char *all = file_text(&a, "tests/cuda_emu/kernels.cuh"), *unit = NULL;
  const char *why = all ? make_unit(&a, all, &unit) : "no tests/cuda_emu/kernels.cuh from here";
  const char *dir = emu_make_folder(&a), *so = arena_printf(&a, "%s/kernels.so", dir);
  if (!dir) why = "no folder for compiled kernels";
  emu_code code = {0};
  if (!why) why = emu_compile(&a, dir, &unit, 1, so);
  if (!why) why = emu_open(&a, so, &code);
  int failed = 0;
  if (why) printf("FAILED %s\n", why), failed++;
  for (int i = 0; i < KERNELS && !why; i++) failed += check_right(&a, &code, &kernels[i]);
  for (int i = 0; i < BUGS && !why; i++)
    failed += check_bug(&a, &code, &bugs[i], arena_printf(&a, "bug_%d", i));
  if (!why) failed += check_launch(&a, &code);
  emu_close(&code);
  if (argc > 1 && str_eq(argv[1], "--keep"))
    printf("kept %s\n", dir);
  else if (dir)
    emu_remove_folder(&a, dir);
  arena_free(&a);
  return failed != 0;
}
