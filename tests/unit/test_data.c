// Data: order, windows, readers, and what is said about files that do not fit.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/base/file.h"
#include "runtime/data.h"
#include "runtime/safetensors.h"

enum { B = 4, MB = 2, S = 12, D = 7, MAX = 4096 };

// A program that is nothing but one entry's inputs.
typedef struct world {
  char dir[64];
  arena a;
  prog p;
  prog_header h;
  prog_io io[6];
  prog_entry e;
  prog_setting set;
  char strings[256];
  int32_t arena32[MAX];
} world;

static int setup(void **state) {
  world *w = calloc(1, sizeof *w);
  arena_init(&w->a);
  snprintf(w->dir, sizeof w->dir, "/tmp/dsm_data_XXXXXX");
  assert_non_null(mkdtemp(w->dir));
  static const char names[] =
      "\0tokens\0targets\0length\0segments\0source\0m.vocab\0"
      "256";
  memcpy(w->strings, names, sizeof names);
  w->p = (prog){.header = &w->h,
                .strings = w->strings,
                .ios = w->io,
                .entries = &w->e,
                .settings = &w->set,
                .nentries = 1,
                .nsettings = 1};
  w->set = (prog_setting){39, 47};
  w->e = (prog_entry){.batch = B, .micro_batch = MB};
  *state = w;
  return 0;
}

static int teardown(void **state) {
  world *w = *state;
  char cmd[100];
  snprintf(cmd, sizeof cmd, "rm -rf %s", w->dir);
  arena_free(&w->a);
  free(w);
  return system(cmd) != 0;
}

static prog_str name_at(const world *w, const char *name) {
  for (prog_str i = 1; i < 100; i += (prog_str)strlen(w->strings + i) + 1)
    if (strcmp(w->strings + i, name) == 0) return i;
  fail_msg("no name %s", name);
  return 0;
}

static void input(world *w, const char *name, int64_t width) {
  prog_io *io = &w->io[w->e.inputs];
  int64_t row = width ? width : 1;
  *io = (prog_io){.name = name_at(w, name),
                  .dtype = PROG_I32,
                  .rank = width ? 2 : 1,
                  .sampled = 1,
                  .dims = {MB, width},
                  .offset = (int64_t)w->e.inputs * 2048,
                  .bytes = 4 * MB * row,
                  .micro_stride = 4 * MB * row};
  w->e.inputs++;
}

static const char *file(world *w, const char *name, const void *bytes, size_t n) {
  const char *path = arena_printf(&w->a, "%s/%s", w->dir, name);
  FILE *f = fopen(path, "wb");
  assert_int_equal(fwrite(bytes, 1, n, f), n);
  fclose(f);
  return path;
}

static data *open_data(world *w, const char *path, const char *read, bool shuffle, uint64_t seed) {
  data_spec spec = {path, read, seed, shuffle};
  data *d;
  status *s = data_open(&w->a, &w->p, &w->e, &spec, &d);
  if (s) fail_msg("%s", s->message);
  return d;
}

static void refused(world *w, const char *path, const char *read, const char *part) {
  data_spec spec = {path, read, 1, false};
  data *d;
  status *s = data_open(&w->a, &w->p, &w->e, &spec, &d);
  if (!s) fail_msg("accepted, expected: %s", part);
  if (!strstr(s->message, part)) fail_msg("`%s` does not say `%s`", s->message, part);
  status_free(s);
}

static int64_t fill(world *w, data *d, int64_t sample0) {
  int64_t predicted = 0;
  status *s = data_fill(d, (unsigned char *)w->arena32, sample0, &predicted);
  if (s) fail_msg("%s", s->message);
  return predicted;
}

// Row r of the batch, of input number k with `width` positions.
static int32_t *row(world *w, int k, int r, int64_t width) {
  return w->arena32 + k * 512 + r * (width ? width : 1);
}

static void test_permutation(void **state) {
  (void)state;
  for (uint64_t n = 1; n < 300; n += 1 + n / 9) {
    char seen[300] = {0};
    for (uint64_t i = 0; i < n; i++) {
      uint64_t k = data_permute(n * 77, n, i);
      assert_true(k < n && !seen[k]);
      seen[k] = 1;
    }
  }
  int same = 0, fixed = 0;
  for (uint64_t i = 0; i < 1000; i++) {
    same += data_permute(1, 1000, i) == data_permute(2, 1000, i);
    fixed += data_permute(1, 1000, i) == i;
  }
  assert_true(same < 12 && fixed < 12);
}

static void test_next_token(void **state) {
  world *w = *state;
  input(w, "tokens", S);
  input(w, "targets", S);
  unsigned char text[100];
  for (int i = 0; i < 100; i++) text[i] = (unsigned char)i;
  data *d = open_data(w, file(w, "a.txt", text, 100), "next_token", false, 1);
  assert_int_equal(data_samples(d), 8);  // 8 windows of 12, and one token more
  assert_int_equal(fill(w, d, 0), B * S);
  for (int r = 0; r < B; r++)
    for (int i = 0; i < S; i++) {
      assert_int_equal(row(w, 0, r, S)[i], r * S + i);
      assert_int_equal(row(w, 1, r, S)[i], r * S + i + 1);
    }
  fill(w, d, 6);  // runs into the next epoch
  assert_int_equal(row(w, 0, 2, S)[0], 0);
  data_close(d);
}

static void test_order_is_by_global_sample(void **state) {
  world *w = *state;
  input(w, "tokens", S);
  input(w, "targets", S);
  unsigned char text[250];
  for (int i = 0; i < 250; i++) text[i] = (unsigned char)i;
  const char *path = file(w, "a.txt", text, 250);
  data *d = open_data(w, path, "next_token", true, 5);
  int first[64];
  for (int n = 0; n < 60; n += B) {
    fill(w, d, n);
    for (int r = 0; r < B; r++) first[n + r] = row(w, 0, r, S)[0];
  }
  char seen[250] = {0};
  for (int n = 0; n < 20; n++) {  // one epoch: each window once
    assert_int_equal(seen[first[n]], 0);
    seen[first[n]] = 1;
  }
  int same = 0;
  for (int n = 0; n < 20; n++) same += first[n] == first[n + 20];
  assert_true(same < 8);             // the next epoch has another order
  for (int n = 1; n < 50; n += 7) {  // sample n does not depend on where a batch starts
    fill(w, d, n);
    for (int r = 0; r < B; r++) assert_int_equal(row(w, 0, r, S)[0], first[n + r]);
  }
  data_close(d);
}

static void test_several_files(void **state) {
  world *w = *state;
  input(w, "tokens", S);
  input(w, "targets", S);
  uint16_t a[9], b[30];
  for (int i = 0; i < 9; i++) a[i] = (uint16_t)i;
  for (int i = 0; i < 30; i++) b[i] = (uint16_t)(9 + i);
  file(w, "2.bin", b, sizeof b);
  file(w, "1.bin", a, sizeof a);
  file(w, "15.bin", a, 0);
  file(w, "3.txt", "xyz", 3);
  data *d = open_data(w, arena_printf(&w->a, "%s/*.bin", w->dir), "next_token", false, 1);
  assert_int_equal(data_samples(d), 3);
  fill(w, d, 0);
  for (int i = 0; i < 3 * S; i++) assert_int_equal(row(w, 0, 0, S)[i], i);
  assert_string_equal(data_summary(d), "3 files, 39 tokens, 3 samples");
  data_close(d);
  d = open_data(w, arena_printf(&w->a, "[\"%s/2.bin\", \"%s/3.txt\"]", w->dir, w->dir),
                "next_token", false, 1);
  assert_string_equal(data_summary(d), "2 files, 33 tokens, 2 samples");
  data_close(d);
}

static void test_masked(void **state) {
  world *w = *state;
  input(w, "tokens", S);
  input(w, "targets", S);
  input(w, "length", 0);
  input(w, "segments", S);
  unsigned char text[S * 100];
  for (size_t i = 0; i < sizeof text; i++) text[i] = (unsigned char)(i % 200);
  data *d = open_data(w, file(w, "a.txt", text, sizeof text), "masked(share=0.15)", false, 1);
  int chosen = 0, masked = 0, kept = 0, other = 0;
  int64_t predicted = 0;
  for (int n = 0; n < 4000; n += B) {
    predicted += fill(w, d, n);
    for (int r = 0; r < B; r++) {
      assert_int_equal(*row(w, 2, r, 0), S);
      for (int i = 0; i < S; i++) {
        int32_t in = row(w, 0, r, S)[i], out = row(w, 1, r, S)[i];
        int32_t truth = text[((n + r) % 100) * S + i];
        assert_int_equal(row(w, 3, r, S)[i], 0);
        if (out == -100) {
          assert_int_equal(in, truth);
          continue;
        }
        assert_int_equal(out, truth);
        chosen++;
        if (in == 255)
          masked++;
        else if (in == truth)
          kept++;
        else
          other++;
      }
    }
  }
  assert_int_equal(predicted, chosen);
  double share = chosen / (4000.0 * S), m = masked / (double)chosen, k = kept / (double)chosen;
  assert_true(share > 0.14 && share < 0.16);
  assert_true(m > 0.77 && m < 0.83 && k > 0.08 && k < 0.12 && other > 0);
  int32_t before[B * S];
  fill(w, d, 8);
  memcpy(before, row(w, 1, 0, S), sizeof before);
  fill(w, d, 9);
  assert_memory_equal(before + S, row(w, 1, 0, S), 3 * S * 4);  // draws are keyed by the sample
  data_close(d);
}

static void test_span(void **state) {
  world *w = *state;
  enum { SRC = 20 };
  input(w, "source", SRC);
  input(w, "length", 0);
  input(w, "tokens", D);
  input(w, "targets", D);
  unsigned char text[2000];
  for (size_t i = 0; i < sizeof text; i++) text[i] = (unsigned char)(i % 100);
  data *d = open_data(w, file(w, "a.txt", text, sizeof text), "span(0.2, 2)", false, 1);
  int64_t noise, spans, window = data_span_window(SRC, D, 0.2, 2, &noise, &spans);
  assert_true(window > 18 && window - noise + spans <= SRC && noise + spans + 1 <= D);
  for (int n = 0; n < 40; n += B) {
    fill(w, d, n);
    for (int r = 0; r < B; r++) {
      int32_t *src = row(w, 0, r, SRC), *tok = row(w, 2, r, D), *tgt = row(w, 3, r, D);
      int64_t len = *row(w, 1, r, 0), at = 0;
      assert_int_equal(len, window - noise + spans);
      assert_int_equal(tok[0], 0);
      for (int i = 1; i < D; i++) assert_int_equal(tok[i], tgt[i - 1] == -100 ? 0 : tgt[i - 1]);
      // Putting the spans back where their sentinels stand gives the window.
      int32_t back[64];
      for (int64_t i = 0; i < len; i++) {
        if (src[i] < 200) {
          back[at++] = src[i];
          continue;
        }
        int k = 0;
        while (tgt[k] != src[i]) k++;
        for (k++; tgt[k] < 200; k++) back[at++] = tgt[k];
      }
      assert_int_equal(at, window);
      for (int64_t i = 0; i < window; i++) assert_int_equal(back[i], text[(n + r) * window + i]);
      for (int64_t i = len; i < SRC; i++) assert_int_equal(src[i], 0);
    }
  }
  data_close(d);
}

static void test_tensors(void **state) {
  world *w = *state;
  input(w, "tokens", S);
  input(w, "length", 0);
  int32_t tokens[10 * S], length[10];
  int64_t wide[3] = {1, 2, 3};
  for (int i = 0; i < 10 * S; i++) tokens[i] = i;
  for (int i = 0; i < 10; i++) length[i] = i;
  uint64_t n, header;
  st_tensor t[2] = {{.name = "tokens",
                     .dtype = PROG_I32,
                     .rank = 2,
                     .dims = {10, S},
                     .data = tokens,
                     .bytes = sizeof tokens},
                    {.name = "length",
                     .dtype = PROG_I32,
                     .rank = 1,
                     .dims = {10},
                     .data = length,
                     .bytes = sizeof length}};
  const char *one = arena_printf(&w->a, "%s/1.safetensors", w->dir),
             *two = arena_printf(&w->a, "%s/2.safetensors", w->dir);
  const file_io *io = file_io_system();
  assert_null(st_write(&w->a, io, one, t, 2, NULL, 0, &n, &header));
  t[0].dims[0] = t[1].dims[0] = 3;
  t[0].bytes = 3 * S * 4;
  t[1] = (st_tensor){
      .name = "length", .dtype = PROG_I64, .rank = 1, .dims = {3}, .data = wide, .bytes = 24};
  assert_null(st_write(&w->a, io, two, t, 2, NULL, 0, &n, &header));
  data *d = open_data(w, w->dir, "next_token", false, 1);
  assert_int_equal(data_samples(d), 13);
  fill(w, d, 8);
  assert_int_equal(row(w, 0, 0, S)[0], 8 * S);
  assert_int_equal(row(w, 0, 2, S)[5], 5);
  assert_int_equal(*row(w, 1, 1, 0), 9);
  assert_int_equal(*row(w, 1, 3, 0), 2);
  data_close(d);
  wide[1] = S + 1;
  assert_null(st_write(&w->a, io, two, t, 2, NULL, 0, &n, &header));
  refused(w, w->dir, NULL, "tensor length: element 1 is 13, expected 0 to 12");
  tokens[7] = 256;
  assert_null(st_write(&w->a, io, two, t, 1, NULL, 0, &n, &header));
  refused(w, two, NULL, "tensor tokens: element 7 is 256, expected 0 to 255");
  tokens[7] = 7;
  assert_null(st_write(&w->a, io, two, t, 1, NULL, 0, &n, &header));
  refused(w, two, NULL, "tensor length is missing");
  t[0].dims[1] = S / 2;
  t[0].dims[0] = 6;
  assert_null(st_write(&w->a, io, two, t, 2, NULL, 0, &n, &header));
  refused(w, two, NULL, "tensor tokens is [6, 6], expected [samples, 12]");
}

static void test_refuses(void **state) {
  world *w = *state;
  input(w, "tokens", S);
  input(w, "targets", S);
  uint16_t a[40] = {0};
  const char *small = file(w, "small.txt", "hello", 5);
  refused(w, small, "next_token", "has 5 tokens, one sample needs 13");
  a[17] = 300;
  refused(w, file(w, "big.bin", a, sizeof a), "next_token",
          "big.bin: token 17 is 300, the vocabulary has 256 (ids 0 to 255)");
  refused(w, file(w, "odd.bin", a, 7), "next_token", "odd.bin has 7 bytes");
  refused(w, small, "backwards", "is not one of next_token");
  refused(w, small, NULL, "does not say how to read");
  refused(w, arena_printf(&w->a, "%s/*.none", w->dir), "next_token", "no data file matches");
  refused(w, w->dir, "next_token", "holds no safetensors files");
  refused(w, small, "masked(0.15, mask=300)", "mask id 300 is outside");
  refused(w, small, "span(0.15, 3)", "needs an input `source`");
  refused(w, small, "next_token(2)", "takes no arguments");
  refused(w, small, "masked(x)", "not a number");
  input(w, "segments", S);
  refused(w, small, "next_token", "does not make input `segments`");
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
      T(test_permutation),   T(test_next_token), T(test_order_is_by_global_sample),
      T(test_several_files), T(test_masked),     T(test_span),
      T(test_tensors),       T(test_refuses),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
