// Checkpoints under failure: every system call fails in turn, every kind of damage is noticed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "runtime/base/str.h"
#include "runtime/checkpoint.h"
#include "runtime/dtype.h"
#include "runtime/init.h"
#include "runtime/safetensors.h"
#include "tests/unit/flip.h"
#include "tests/unit/toy_refuse.h"

// ---- a disk that fails ------------------------------------------------------------------------

typedef enum fault { FAULT_NONE, FAULT_ONCE, FAULT_FULL, FAULT_CRASH, FAULT_INTERRUPTED } fault;

// What happens to one write.
typedef enum write_fault {
  WRITE_GOOD,
  WRITE_FULL,             // ENOSPC
  WRITE_BROKEN,           // EIO
  WRITE_QUOTA,            // EDQUOT
  WRITE_NOTHING,          // takes 0 bytes
  WRITE_SHORT_THEN_FULL,  // takes half, then there is no space for the rest
  WRITE_SHORT,            // takes half
  WRITE_BYTE,             // takes one byte
  WRITE_INTERRUPTED,      // EINTR three times
  WRITE_FAULTS
} write_fault;

typedef struct bad_disk {
  fault kind;
  int64_t countdown;  // calls that still work
  int64_t calls;
  bool hit;
  bool mixed;  // EINTR and short writes are mixed in
  int interruptions;
  write_fault bad_write;  // happens to write number `which`
  int64_t which, writes;
  int again;           // calls of the same write that follow
  char failed[300];    // the path of the first call that failed
  char open[64][300];  // by descriptor
} bad_disk;

static void hit(bad_disk *d, const char *path) {
  if (!d->hit) snprintf(d->failed, sizeof d->failed, "%s", path);
  d->hit = true;
}

// Whether this call fails. `grows`: it needs space on the disk. `slow`: signals interrupt it.
static bool fails(bad_disk *d, const char *path, bool grows, bool slow) {
  if (d->kind == FAULT_INTERRUPTED && !slow) return false;
  d->calls++;
  bool due = d->calls > d->countdown;
  bool once = d->calls == d->countdown + 1;
  bool now = ((d->kind == FAULT_ONCE || d->kind == FAULT_INTERRUPTED) && once) ||
             (d->kind == FAULT_FULL && due && grows) || (d->kind == FAULT_CRASH && due);
  if (!now) return false;
  hit(d, path);
  errno = d->kind == FAULT_FULL ? ENOSPC : d->kind == FAULT_INTERRUPTED ? EINTR : EIO;
  return true;
}

static const char *path_of(const bad_disk *d, int fd) { return d->open[fd & 63]; }

static int bad_open(void *ctx, const char *path, int flags, unsigned mode) {
  bad_disk *d = ctx;
  if (fails(d, path, flags & O_CREAT, true)) return -1;
  int fd = open(path, flags, mode);
  if (fd >= 0) snprintf(d->open[fd & 63], sizeof d->open[0], "%s", path);
  return fd;
}

static ssize_t failed_write(bad_disk *d, int fd, int why) {
  hit(d, path_of(d, fd));
  errno = why;
  return -1;
}

// The write that was chosen, and those that go on with what it left.
static ssize_t chosen_write(bad_disk *d, int fd, const void *bytes, size_t n) {
  int before = d->again++;
  switch (d->bad_write) {
    case WRITE_FULL: return failed_write(d, fd, ENOSPC);
    case WRITE_BROKEN: return failed_write(d, fd, EIO);
    case WRITE_QUOTA: return failed_write(d, fd, EDQUOT);
    case WRITE_NOTHING: hit(d, path_of(d, fd)); return 0;
    case WRITE_SHORT_THEN_FULL:
      if (before) return failed_write(d, fd, ENOSPC);
      return write(fd, bytes, n / 2);
    case WRITE_SHORT: n = before ? n : (n + 1) / 2; break;
    case WRITE_BYTE: n = before ? n : 1; break;
    case WRITE_INTERRUPTED:
      if (before < 3) return failed_write(d, fd, EINTR);
      break;
    default: break;
  }
  hit(d, path_of(d, fd));
  return write(fd, bytes, n);
}

static ssize_t bad_write(void *ctx, int fd, const void *bytes, size_t n) {
  bad_disk *d = ctx;
  // What follows a write that took too little belongs to it.
  bool goes_on = d->again > 0 && d->writes == d->which + 1;
  if (d->bad_write && (goes_on || d->writes++ == d->which)) {
    ssize_t k = chosen_write(d, fd, bytes, n);
    if (k == (ssize_t)n) d->again = 0;
    return k;
  }
  if (fails(d, path_of(d, fd), true, false)) return -1;
  if (!d->mixed) return write(fd, bytes, n);
  if (d->interruptions++ % 3 == 1) {
    errno = EINTR;
    return -1;
  }
  return write(fd, bytes, d->interruptions % 3 == 0 && n > 1 ? n / 2 : n);
}
static int bad_fsync(void *ctx, int fd) {
  return fails(ctx, path_of(ctx, fd), true, true) ? -1 : fsync(fd);
}
static int bad_close(void *ctx, int fd) {
  bool bad = fails(ctx, path_of(ctx, fd), false, true);
  int why = errno, r = close(fd);
  if (bad) errno = why;
  return bad ? -1 : r;
}
static int bad_rename(void *ctx, const char *from, const char *to) {
  return fails(ctx, from, false, false) ? -1 : rename(from, to);
}
static int bad_unlink(void *ctx, const char *path) {
  return fails(ctx, path, false, false) ? -1 : unlink(path);
}
static int bad_mkdir(void *ctx, const char *path, unsigned mode) {
  return fails(ctx, path, true, false) ? -1 : mkdir(path, mode);
}
static int bad_rmdir(void *ctx, const char *path) {
  return fails(ctx, path, false, false) ? -1 : rmdir(path);
}

// ---- the world --------------------------------------------------------------------------------

typedef struct world {
  char dir[64], ck[80];
  toy *toy;
  image img;
  pool *threads;
  vm *vm;
  bad_disk disk;
  file_io io;
  FILE *notes;
  char *text;
  size_t ntext;
  checkpoint c;
} world;

static int setup(void **state) {
  world *w = calloc(1, sizeof *w);
  snprintf(w->dir, sizeof w->dir, "/tmp/dsm_ck_XXXXXX");
  assert_non_null(mkdtemp(w->dir));
  snprintf(w->ck, sizeof w->ck, "%s/ck", w->dir);
  w->toy = toy_new("next_token");
  assert_null(toy_image(w->toy, &w->img));
  w->threads = pool_new(2);
  assert_null(vm_open(&w->img.prog, w->img.code, w->threads, &w->vm));
  w->io = (file_io){&w->disk,   bad_open,   bad_write, bad_fsync, bad_close,
                    bad_rename, bad_unlink, bad_mkdir, bad_rmdir};
  w->notes = open_memstream(&w->text, &w->ntext);
  w->c = (checkpoint){&w->img.prog, w->vm, &w->io, w->notes, NULL};
  init_states(w->vm, &w->img.prog, w->threads, 1, 0);
  *state = w;
  return 0;
}

static int teardown(void **state) {
  world *w = *state;
  char cmd[128];
  fclose(w->notes);
  free(w->text);
  vm_close(w->vm);
  pool_free(w->threads);
  toy_free(w->toy);
  snprintf(cmd, sizeof cmd, "rm -rf %s", w->dir);
  free(w);
  return system(cmd) != 0;
}

static float *weights(world *w) { return (float *)(void *)vm_at(w->vm, AT_WTE); }

// Gives all states the values of step `step`, and says whether they have them.
static void paint(world *w, int64_t step) {
  float *x = weights(w);
  for (int i = 0; i < (AT_COPY - AT_WTE) / 4; i++) x[i] = (float)step + (float)i * 0.5f;
}
// Whether the copies are the roundings of the weights; their numbers are far from denormals.
static bool copied(world *w) {
  const float *wte = weights(w), *bias = wte + (AT_BIAS - AT_WTE) / 4;
  const uint16_t *copy = (uint16_t *)(void *)vm_at(w->vm, AT_COPY);
  const uint16_t *cbias = (uint16_t *)(void *)vm_at(w->vm, AT_CBIAS);
  for (int i = 0; i < TOY_V * TOY_V; i++)
    if (copy[i] != dtype_to_bf16(wte[i])) return false;
  for (int i = 0; i < TOY_V * TOY_L; i++)
    if (cbias[i] != dtype_to_bf16(bias[i])) return false;
  return true;
}
static bool painted(world *w, int64_t step) {
  float *x = weights(w);
  for (int i = 0; i < (AT_COPY - AT_WTE) / 4; i++)
    if (x[i] != (float)step + (float)i * 0.5f) return false;
  return true;
}

static status *save(world *w, int64_t step) {
  paint(w, step);
  ck_state st = {step, step * 4, 1};
  const char *pairs[] = {"train.steps", "40"};
  return ck_save(&w->c, w->ck, 2, &st, pairs, 1, NULL);
}

static int64_t resume(world *w) {
  ck_state st = {0};
  bool found;
  memset(weights(w), 0, 4096);
  memset(vm_at(w->vm, AT_COPY), 0x55, AT_WORK - AT_COPY);
  status *s = ck_resume(&w->c, w->ck, &st, &found);
  if (s) fail_msg("%s", s->message);
  if (!found) return -1;
  assert_true(painted(w, st.step));
  assert_true(copied(w));
  assert_int_equal(st.samples, st.step * 4);
  assert_int_equal(st.seed, 1);
  return st.step;
}

// The message with which loading is refused.
static const char *refused(world *w) {
  static char text[4096];
  ck_state st;
  bool found;
  status *s = ck_resume(&w->c, w->ck, &st, &found);
  if (!s) fail_msg("accepted");
  snprintf(text, sizeof text, "%s", s->message);
  status_free(s);
  return text;
}

static int leftovers(world *w) {
  arena a;
  arena_init(&a);
  file_names names;
  int n = 0;
  assert_null(file_list(&a, w->ck, &names));
  for (int i = 0; i < names.n; i++) n += str_starts(names.at[i], ".tmp-");
  arena_free(&a);
  return n;
}

static const char *part(world *w, const char *name) {
  static char path[200];
  snprintf(path, sizeof path, "%s/%s", w->ck, name);
  return path;
}

// ---- tests ------------------------------------------------------------------------------------

static void test_keeps_the_newest_two(void **state) {
  world *w = *state;
  assert_int_equal(resume(w), -1);
  for (int64_t step = 10; step <= 40; step += 10) assert_null(save(w, step));
  assert_int_equal(resume(w), 40);
  assert_int_equal(file_kind(part(w, "step-00000030")), FILE_DIR);
  assert_int_equal(file_kind(part(w, "step-00000020")), FILE_NONE);
  assert_int_equal(leftovers(w), 0);
  assert_null(save(w, 40));  // the same step again
  assert_int_equal(resume(w), 40);
  assert_int_equal(leftovers(w), 0);
  // The names a checkpoint uses are those of the layers.
  arena a;
  arena_init(&a);
  st_file f;
  assert_null(st_open(&a, part(w, "step-00000040/weights.safetensors"), &f));
  assert_int_equal(f.n, 4);
  assert_non_null(st_find(&f, "h.2.bias"));
  assert_non_null(st_find(&f, "wte.weight"));
  st_close(&f);
  arena_free(&a);
}

static void every_call_fails(world *w, fault kind) {
  assert_null(save(w, 1));
  int64_t step = 2;
  for (int64_t k = 0;; k++, step++) {
    int64_t before = resume(w);
    w->disk = (bad_disk){.kind = kind, .countdown = k, .mixed = kind != FAULT_INTERRUPTED};
    status *s = save(w, step);
    bool met = w->disk.hit;
    char failed[300];
    memcpy(failed, w->disk.failed, sizeof failed);
    w->disk = (bad_disk){0};
    if (s) {
      assert_true(met);
      has(s->message, w->ck);
      has(s->message, strerror(kind == FAULT_FULL ? ENOSPC : EIO));
      // After a crash the first failure may be one that does no harm.
      if (kind != FAULT_CRASH) has(s->message, failed);
      if (kind == FAULT_INTERRUPTED) fail_msg("call %d: %s", (int)k, s->message);
      status_free(s);
    }
    int64_t now = resume(w);
    if (now != before && now != step) fail_msg("call %d: step %d is there", (int)k, (int)now);
    if (!s && !met) assert_int_equal(now, step);
    if (kind == FAULT_INTERRUPTED) assert_int_equal(now, step);
    if (kind != FAULT_CRASH && s && now == before) assert_int_equal(leftovers(w), 0);
    if (!met) {
      assert_int_equal(leftovers(w), 0);
      assert_true(k > (kind == FAULT_INTERRUPTED ? 10 : 20));
      return;
    }
  }
}

static void test_one_call_fails(void **state) { every_call_fails(*state, FAULT_ONCE); }
static void test_disk_is_full(void **state) { every_call_fails(*state, FAULT_FULL); }
static void test_killed(void **state) { every_call_fails(*state, FAULT_CRASH); }
static void test_interrupted(void **state) { every_call_fails(*state, FAULT_INTERRUPTED); }

// Each write of a save in turn meets each fault. Those that no one can help end the save with the
// file and the reason named, and the older checkpoint as it was; the others change nothing.
static void test_every_write_fails(void **state) {
  static const char *const reason[WRITE_FAULTS] = {[WRITE_NOTHING] = "took 0 bytes"};
  world *w = *state;
  assert_null(save(w, 1));
  int64_t step = 2;
  char seen[3] = {0};
  for (write_fault f = WRITE_FULL; f < WRITE_FAULTS; f++) {
    const char *why = reason[f]           ? reason[f]
                      : f == WRITE_BROKEN ? strerror(EIO)
                      : f == WRITE_QUOTA  ? strerror(EDQUOT)
                                          : strerror(ENOSPC);
    for (int64_t k = 0;; k++, step++) {
      int64_t before = resume(w);
      w->disk = (bad_disk){.bad_write = f, .which = k};
      status *s = save(w, step);
      bad_disk d = w->disk;
      w->disk = (bad_disk){0};
      int64_t now = resume(w);
      assert_int_equal(leftovers(w), 0);
      if (!d.hit) {  // the save has k writes: header length, header and 4 tensors twice, manifest
        assert_null(s);
        assert_int_equal(k, 13);
        assert_int_equal(now, step++);
        break;
      }
      seen[0] |= strstr(d.failed, "/weights.safetensors") != NULL;
      seen[1] |= strstr(d.failed, "/optimizer.safetensors") != NULL;
      seen[2] |= strstr(d.failed, "/manifest.json") != NULL;
      if (f >= WRITE_SHORT) {
        if (s) fail_msg("fault %d at write %d: %s", f, (int)k, s->message);
        assert_int_equal(now, step);
        continue;
      }
      if (!s) fail_msg("fault %d at write %d: saved", f, (int)k);
      char saving[300];
      snprintf(saving, sizeof saving, "while saving checkpoint %s/step-%08d: ", w->ck, (int)step);
      has(s->message, saving);
      has(s->message, d.failed);
      has(s->message, why);
      assert_int_equal(s->exit_code, 1);
      status_free(s);
      assert_int_equal(now, before);
    }
  }
  assert_true(seen[0] && seen[1] && seen[2]);
}

static void test_half_written_is_skipped(void **state) {
  world *w = *state;
  assert_null(save(w, 10));
  assert_null(save(w, 20));
  assert_int_equal(unlink(part(w, "step-00000020/manifest.json")), 0);
  assert_int_equal(resume(w), 10);
  fflush(w->notes);
  has(w->text, "step-00000020 has no manifest: it is half-written and skipped");
  assert_null(save(w, 30));
  assert_int_equal(resume(w), 30);
}

// A copy whose data file was cut off, at any length.
static void test_truncation(void **state) {
  world *w = *state;
  assert_null(save(w, 10));
  assert_null(save(w, 20));
  const char *const names[] = {"weights.safetensors", "optimizer.safetensors"};
  for (int f = 0; f < 2; f++) {
    char path[200];
    snprintf(path, sizeof path, "%s/step-00000020/%s", w->ck, names[f]);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    for (off_t n = st.st_size - 1; n >= 0; n = n > 4000 ? n * 3 / 4 : n - 97) {
      assert_int_equal(truncate(path, n), 0);
      has(refused(w), names[f]);
      if (n == 0) break;
    }
    assert_null(save(w, 20));
  }
  assert_int_equal(unlink(part(w, "step-00000020/optimizer.safetensors")), 0);
  has(refused(w), "optimizer.safetensors");
}

static void test_flipped_bits(void **state) {
  world *w = *state;
  assert_null(save(w, 10));
  assert_null(save(w, 20));
  const char *const names[] = {"manifest.json", "weights.safetensors", "optimizer.safetensors"};
  for (int f = 0; f < 3; f++) {
    char path[200];
    snprintf(path, sizeof path, "%s/step-00000020/%s", w->ck, names[f]);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    for (off_t at = 0; at < st.st_size; at += at < 1200 ? 1 : 9973) {
      int bit = (int)(at % 8);
      flip(path, at, bit);
      has(refused(w), names[f]);
      flip(path, at, bit);
    }
  }
  assert_int_equal(resume(w), 20);
  flip(part(w, "step-00000020/weights.safetensors"), 4096, 3);
  has(refused(w), "tensor wte.weight is damaged");
}

// ---- foreign files ----------------------------------------------------------------------------

static void write_foreign(const char *path, uint32_t dtype, int64_t vocab, int ntensors) {
  arena a;
  arena_init(&a);
  float *x = arena_new(&a, float, vocab *TOY_V);
  void *y = arena_alloc(&a, (size_t)(8 * vocab * TOY_V));
  for (int64_t i = 0; i < vocab * TOY_V; i++) x[i] = (float)(i % 128) * 0.25f;
  dtype_convert(y, dtype, x, PROG_F32, vocab * TOY_V);
  uint64_t unit = (uint64_t)dtype_of(dtype)->bytes, bytes, header;
  st_tensor t[5] = {
      {.name = "wte.weight",
       .dtype = dtype,
       .rank = 2,
       .dims = {vocab, TOY_V},
       .data = y,
       .bytes = (uint64_t)(vocab * TOY_V) * unit},
      {.name = "h.0.bias",
       .dtype = dtype,
       .rank = 1,
       .dims = {TOY_V},
       .data = y,
       .bytes = TOY_V * unit},
      {.name = "h.1.bias",
       .dtype = dtype,
       .rank = 1,
       .dims = {TOY_V},
       .data = y,
       .bytes = TOY_V * unit},
      {.name = "h.2.bias",
       .dtype = dtype,
       .rank = 1,
       .dims = {TOY_V},
       .data = y,
       .bytes = TOY_V * unit},
      {.name = "extra", .dtype = dtype, .rank = 1, .dims = {2}, .data = y, .bytes = 2 * unit}};
  assert_null(st_write(&a, file_io_system(), path, t, ntensors, NULL, 0, &bytes, &header));
  arena_free(&a);
}

static void test_foreign_weights(void **state) {
  world *w = *state;
  char path[100];
  snprintf(path, sizeof path, "%s/m.safetensors", w->dir);
  const uint32_t dtypes[] = {PROG_F32, PROG_BF16, PROG_F16, PROG_F64};
  for (int i = 0; i < 4; i++) {
    write_foreign(path, dtypes[i], TOY_V, 5);
    memset(weights(w), 0, AT_M - AT_WTE);
    memset(vm_at(w->vm, AT_COPY), 0x55, AT_WORK - AT_COPY);
    assert_null(ck_load_weights(&w->c, i % 2 ? path : w->dir));
    assert_true(copied(w));
    assert_true(weights(w)[1000] == (float)(1000 % 128) * 0.25f);
    assert_true(weights(w)[(AT_BIAS - AT_WTE) / 4 + 2 * TOY_V + 7] == 7 * 0.25f);
  }
  fflush(w->notes);
  has(w->text, "1 tensors are not used:\n  extra [2]");
  write_foreign(path, PROG_F32, TOY_V, 3);
  status *s = ck_load_weights(&w->c, path);
  has(s->message, "h.2.bias F32 [256] is missing");
  status_free(s);
  write_foreign(path, PROG_F32, TOY_V - 1, 4);
  s = ck_load_weights(&w->c, path);
  has(s->message, "wte.weight is [255, 256], the program needs [256, 256]");
  status_free(s);
  s = ck_load_weights(&w->c, "/nowhere");
  has(s->message, "there is no /nowhere");
  status_free(s);
  assert_null(save(w, 7));
  memset(weights(w), 0, 4096);
  assert_null(ck_load_weights(&w->c, w->ck));
  assert_true(painted(w, 7));
  assert_null(ck_load_weights(&w->c, part(w, "step-00000007")));
  assert_null(ck_load_weights(&w->c, part(w, "step-00000007/weights.safetensors")));
}

// The first values, and what rounding has cases for. Where kernels take denormals for zeros (here
// the biases' copy says so), copies do too.
static void test_copies(void **state) {
  world *w = *state;
  assert_true(copied(w));
  const struct {
    uint32_t bits;
    uint16_t wte, bias;
  } cases[] = {
      {0x3f800000u, 0x3f80, 0x3f80}, {0x3f808000u, 0x3f80, 0x3f80}, {0x3f808001u, 0x3f81, 0x3f81},
      {0x3f818000u, 0x3f82, 0x3f82}, {0xbf807fffu, 0xbf80, 0xbf80}, {0x7f7fffffu, 0x7f80, 0x7f80},
      {0xff800000u, 0xff80, 0xff80}, {0x7f800001u, 0x7fc0, 0x7fc0}, {0x80000000u, 0x8000, 0x8000},
      {0x00800000u, 0x0080, 0x0080}, {0x007fffffu, 0x0080, 0x0000}, {0x80123456u, 0x8012, 0x8000},
  };
  enum { N = sizeof cases / sizeof *cases };
  for (int i = 0; i < N; i++)
    for (int layer = 0; layer < TOY_L; layer++) {
      memcpy(vm_at(w->vm, AT_WTE + 4 * i), &cases[i].bits, 4);
      memcpy(vm_at(w->vm, AT_BIAS + 4 * (layer * TOY_V + i)), &cases[i].bits, 4);
    }
  vm_make_copies(w->vm);
  for (int i = 0; i < N; i++)
    for (int layer = 0; layer < TOY_L; layer++) {
      uint16_t x, y;
      memcpy(&x, vm_at(w->vm, AT_COPY + 2 * i), 2);
      memcpy(&y, vm_at(w->vm, AT_CBIAS + 2 * (layer * TOY_V + i)), 2);
      assert_int_equal(x, cases[i].wte);
      assert_int_equal(y, cases[i].bias);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
      T(test_copies),
      T(test_keeps_the_newest_two),
      T(test_one_call_fails),
      T(test_disk_is_full),
      T(test_killed),
      T(test_interrupted),
      T(test_every_write_fails),
      T(test_half_written_is_skipped),
      T(test_truncation),
      T(test_flipped_bits),
      T(test_foreign_weights),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
