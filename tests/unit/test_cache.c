// The kernel cache: what it gives back, what it refuses, what it drops (codegen/cache.h).
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "codegen/emit.h"
#include "runtime/base/file.h"

typedef struct fixture {
  arena a;
  const char *folder;
  kernel_cache *c;
} fixture;

static int set_up(void **state) {
  fixture *f = calloc(1, sizeof *f);
  arena_init(&f->a);
  char *folder = arena_strdup(&f->a, "/tmp/test_cache_XXXXXX");
  assert_non_null(mkdtemp(folder));
  f->folder = arena_printf(&f->a, "%s/deep/kernels", folder);
  f->c = cache_open(&f->a, f->folder);
  assert_non_null(f->c);
  *state = f;
  return 0;
}

static int tear_down(void **state) {
  fixture *f = *state;
  const char *command =
      arena_printf(&f->a, "rm -rf '%.*s'", (int)strlen("/tmp/test_cache_XXXXXX"), f->folder);
  int rc = system(command);
  arena_free(&f->a);
  free(f);
  return rc;
}

// A kernel that doubles `n` numbers.
static k_kernel *doubling(arena *a, int n) {
  k_kernel *k = k_new(a, "double");
  int x = k_buffer(k, "x", DT_f32, K_READ), y = k_buffer(k, "y", DT_f32, K_WRITE);
  k_access at = {.buffer = x, .col_stride = 1};
  k_value *v = k_load(k, 1, n, at);
  at.buffer = y;
  k_store(k, k_add(k, v, v), at);
  k_finish(k);
  return k;
}

// The key of kernel `doubling(n)`'s code for some CPU.
static cache_key key_of(fixture *f, int n) {
  const char *identity = cg_cache_identity(&f->a, "znver4", "+avx2");
  assert_non_null(identity);
  return cg_cache_key(&f->a, identity, doubling(&f->a, n));
}

static const unsigned char some_code[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

static cache_bytes some_bytes(arena *a) {
  cache_bytes b = {arena_alloc(a, sizeof some_code), sizeof some_code};
  memcpy(b.at, some_code, sizeof some_code);
  return b;
}

static const char *entry(fixture *f, cache_key key) {
  return arena_printf(&f->a, "%s/%016llx%016llx", f->folder, (unsigned long long)key.high,
                      (unsigned long long)key.low);
}

static void write_bytes(const char *path, const void *bytes, size_t n) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  assert_true(fd >= 0);
  assert_int_equal(write(fd, bytes, n), (ssize_t)n);
  close(fd);
}

static int entries(fixture *f) {
  file_names names = {0};
  assert_null(file_list(&f->a, f->folder, &names));
  return names.n;
}

static void gives_back_what_was_put(void **state) {
  fixture *f = *state;
  cache_bytes bytes = some_bytes(&f->a), got = {0};
  cache_key key = key_of(f, 16);
  assert_false(cache_get(f->c, &f->a, key, &got));
  cache_put(f->c, &f->a, key, bytes);
  assert_int_equal(entries(f), 1);  // no temporary file is left
  assert_true(cache_get(f->c, &f->a, key, &got));
  assert_int_equal(got.n, bytes.n);
  assert_memory_equal(got.at, some_code, sizeof some_code);
}

// Entries of any size, also of none; what repeats takes less on the disk.
static void compresses(void **state) {
  fixture *f = *state;
  for (int i = 0; i < 3; i++) {
    const size_t n = (const size_t[]){0, 1, 1 << 20}[i];
    cache_bytes bytes = {arena_alloc(&f->a, n), n}, got = {0};
    for (size_t k = 0; k < n; k++) bytes.at[k] = (unsigned char)(k % 251);
    cache_put(f->c, &f->a, key_of(f, 16 + 16 * i), bytes);
    assert_true(cache_get(f->c, &f->a, key_of(f, 16 + 16 * i), &got));
    assert_int_equal(got.n, n);
    assert_memory_equal(got.at, bytes.at, n);
  }
  struct stat st;
  assert_int_equal(stat(entry(f, key_of(f, 48)), &st), 0);
  assert_true(st.st_size < 1 << 14);
}

static bool same_key(cache_key a, cache_key b) { return a.high == b.high && a.low == b.low; }

static void keys_tell_apart(void **state) {
  fixture *f = *state;
  const char *const texts[][2] = {{"ab", "c"}, {"a", "bc"}, {"abc", ""}, {"", "abc"}};
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 4; k++)
      assert_int_equal(same_key(cache_key_of(texts[i], 2), cache_key_of(texts[k], 2)), i == k);
  cache_key key = key_of(f, 16);
  assert_true(same_key(key, key_of(f, 16)));
  assert_false(same_key(key, key_of(f, 32)));
  const char *const other[][2] = {
      {"znver3", "+avx2"}, {"znver4", "+avx2,+fma"}, {"znver4", ""}, {"znver4+", "avx2"}};
  for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
    const char *identity = cg_cache_identity(&f->a, other[i][0], other[i][1]);
    assert_false(same_key(key, cg_cache_key(&f->a, identity, doubling(&f->a, 16))));
  }
  // A kernel whose lowering leaves something out is another kernel.
  const char *identity = cg_cache_identity(&f->a, "znver4", "+avx2");
  const choice_info *choice;
  int n = choice_list(&choice), heeded = 0;
  for (int i = 0; i < n; i++) {
    if (strcmp(choice[i].of, "lowering") != 0) continue;
    k_kernel *k = doubling(&f->a, 16);
    assert_null(skip_add(&k->skip, choice[i].name));
    cache_key other_code = cg_cache_key(&f->a, identity, k);
    assert_false(same_key(key, other_code));
    k->skip |= skip_of("lowering");
    assert_false(same_key(other_code, cg_cache_key(&f->a, identity, k)));
    heeded++;
  }
  assert_true(heeded > 1);
}

// Every flipped byte and every cut of an entry, and an entry under another's name.
static void refuses_damage(void **state) {
  fixture *f = *state;
  cache_bytes bytes = some_bytes(&f->a), got = {0};
  cache_key key = key_of(f, 16);
  cache_put(f->c, &f->a, key, bytes);
  const char *path = entry(f, key);
  file_map m;
  assert_null(file_map_open(path, &m));
  size_t n = m.n;
  unsigned char *good = arena_alloc(&f->a, n + 1), *bad = arena_alloc(&f->a, n + 1);
  memcpy(good, m.bytes, n);
  file_map_close(&m);
  for (size_t i = 0; i < n; i++)
    for (int bit = 0; bit < 8; bit += 7) {
      memcpy(bad, good, n);
      bad[i] ^= (unsigned char)(1 << bit);
      write_bytes(path, bad, n);
      assert_false(cache_get(f->c, &f->a, key, &got));
    }
  for (size_t i = 0; i < n; i++) {
    write_bytes(path, good, i);
    assert_false(cache_get(f->c, &f->a, key, &got));
  }
  write_bytes(path, good, n + 1);
  assert_false(cache_get(f->c, &f->a, key, &got));
  cache_key other = key_of(f, 32);
  write_bytes(entry(f, other), good, n);
  assert_false(cache_get(f->c, &f->a, other, &got));
  cache_put(f->c, &f->a, key, bytes);  // written again
  assert_true(cache_get(f->c, &f->a, key, &got));
}

static void set_age(const char *path, time_t seconds) {
  struct timespec now, when[2];
  clock_gettime(CLOCK_REALTIME, &now);
  now.tv_sec -= seconds;
  when[0] = when[1] = now;
  assert_int_equal(utimensat(AT_FDCWD, path, when, 0), 0);
}

static int64_t disk_bytes(const char *path) {
  struct stat st;
  return stat(path, &st) ? -1 : (int64_t)st.st_blocks * 512;
}

static void trims_what_was_used_longest_ago(void **state) {
  fixture *f = *state;
  cache_bytes bytes = some_bytes(&f->a), got = {0};
  cache_key key[6];
  int64_t each = 0;
  for (int i = 0; i < 6; i++) {
    key[i] = key_of(f, 16 * (i + 1));
    cache_put(f->c, &f->a, key[i], bytes);
    set_age(entry(f, key[i]), 100000 - 10000 * i);
    each = disk_bytes(entry(f, key[i]));
  }
  assert_true(each > 0);
  assert_true(cache_get(f->c, &f->a, key[0], &got));  // the oldest is used: now it is the newest
  const char *killed = arena_printf(&f->a, "%s.123", entry(f, key[0]));
  const char *writing = arena_printf(&f->a, "%s.124", entry(f, key[0]));
  const char *foreign = arena_printf(&f->a, "%s/README", f->folder);
  write_bytes(killed, "x", 1);
  set_age(killed, 100000);
  write_bytes(writing, "x", 1);
  write_bytes(foreign, "x", 1);
  set_age(foreign, 100000);

  cache_trim(f->c, &f->a, 6 * each);
  assert_int_equal(disk_bytes(killed), -1);
  assert_true(disk_bytes(writing) >= 0 && disk_bytes(foreign) >= 0);
  for (int i = 0; i < 6; i++) assert_true(cache_get(f->c, &f->a, key[i], &got));
  for (int i = 1; i < 6; i++) set_age(entry(f, key[i]), 100000 - 10000 * i);
  cache_trim(f->c, &f->a, 3 * each);
  for (int i = 0; i < 6; i++)
    assert_int_equal(cache_get(f->c, &f->a, key[i], &got), i == 0 || i >= 4);
}

static void unsafe_folders_are_not_used(void **state) {
  fixture *f = *state;
  assert_int_equal(chmod(f->folder, 0770), 0);
  assert_null(cache_open(&f->a, f->folder));
  assert_int_equal(chmod(f->folder, 0777), 0);
  assert_null(cache_open(&f->a, f->folder));
  assert_int_equal(chmod(f->folder, 0755), 0);
  assert_non_null(cache_open(&f->a, f->folder));
  const char *file = arena_printf(&f->a, "%s/file", f->folder);
  write_bytes(file, "x", 1);
  assert_null(cache_open(&f->a, file));
  assert_null(cache_open(&f->a, arena_printf(&f->a, "%s/below", file)));
}

// A folder that takes no entries: nothing is there, nothing fails.
static void putting_may_fail(void **state) {
  fixture *f = *state;
  cache_bytes bytes = some_bytes(&f->a), got = {0};
  cache_key key = key_of(f, 16);
  assert_int_equal(mkdir(entry(f, key), 0700), 0);  // the rename fails
  cache_put(f->c, &f->a, key, bytes);
  assert_false(cache_get(f->c, &f->a, key, &got));
  assert_int_equal(entries(f), 1);
  assert_int_equal(rmdir(entry(f, key)), 0);
  assert_int_equal(rmdir(f->folder), 0);  // the folder goes away while it is used
  cache_put(f->c, &f->a, key, bytes);
  assert_false(cache_get(f->c, &f->a, key, &got));
  cache_trim(f->c, &f->a, 0);
  assert_int_equal(mkdir(f->folder, 0700), 0);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
  const struct CMUnitTest tests[] = {TEST(gives_back_what_was_put),
                                     TEST(compresses),
                                     TEST(keys_tell_apart),
                                     TEST(refuses_damage),
                                     TEST(trims_what_was_used_longest_ago),
                                     TEST(unsafe_folders_are_not_used),
                                     TEST(putting_may_fail)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
