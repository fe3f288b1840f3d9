// safetensors: what is written is read back, and nothing that is wrong is accepted.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/base/rng.h"
#include "runtime/dtype.h"
#include "runtime/safetensors.h"

// Parses header text followed by `data` zero bytes; NULL or the message.
static const char *parse(arena *a, const char *header, size_t data) {
  size_t n = strlen(header);
  unsigned char *file = arena_alloc(a, 8 + n + data);
  for (int i = 0; i < 8; i++) file[i] = (unsigned char)(n >> (8 * i));
  memcpy(file + 8, header, n);
  st_file f;
  status *s = st_parse(a, "x.safetensors", file, 8 + n + data, &f);
  const char *text = s ? arena_strdup(a, s->message) : NULL;
  status_free(s);
  return text;
}

static void refuses(const char *header, size_t data, const char *part) {
  arena a;
  arena_init(&a);
  const char *text = parse(&a, header, data);
  if (!text) fail_msg("accepted: %s", header);
  if (!strstr(text, part) || !strstr(text, "x.safetensors"))
    fail_msg("`%s` does not say `%s`", text, part);
  arena_free(&a);
}

static void test_round_trip(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  char dir[] = "/tmp/dsm_st_XXXXXX";
  assert_non_null(mkdtemp(dir));
  const char *path = arena_printf(&a, "%s/a.safetensors", dir);
  float x[6] = {1, 2, 3, 4, 5, -0.0f};
  int32_t y[2] = {7, -100};
  st_tensor t[3] = {{.name = "w\"eird\\name\n\xc3\xa9",
                     .dtype = PROG_F32,
                     .rank = 2,
                     .dims = {2, 3},
                     .data = x,
                     .bytes = 24},
                    {.name = "y", .dtype = PROG_I32, .rank = 1, .dims = {2}, .data = y, .bytes = 8},
                    {.name = "scalar", .dtype = PROG_F32, .rank = 0, .data = x, .bytes = 4}};
  const char *pairs[] = {"format", "pt", "note", "a \"quoted\" text"};
  uint64_t bytes, header;
  assert_null(st_write(&a, file_io_system(), path, t, 3, pairs, 2, &bytes, &header));
  st_file f;
  status *s = st_open(&a, path, &f);
  if (s) fail_msg("%s", s->message);
  assert_int_equal(f.n, 3);
  assert_int_equal(f.map.n, bytes);
  assert_true(header == st_header_xxh3(f.map.bytes, f.map.n));
  assert_string_equal(map_get(&f.metadata, "note"), pairs[3]);
  const st_tensor *r = st_find(&f, t[0].name);
  assert_non_null(r);
  assert_int_equal(r->rank, 2);
  assert_int_equal(r->dims[1], 3);
  assert_int_equal((uintptr_t)r->data % 8, 0);
  assert_memory_equal(r->data, x, 24);
  assert_memory_equal(st_find(&f, "y")->data, y, 8);
  assert_int_equal(st_find(&f, "scalar")->rank, 0);
  assert_null(st_find(&f, "z"));
  // Cut off anywhere, it is refused.
  for (size_t n = 0; n < f.map.n; n++) {
    st_file g;
    s = st_parse(&a, "cut", f.map.bytes, n, &g);
    assert_non_null(s);
    status_free(s);
  }
  st_close(&f);
  unlink(path);
  rmdir(dir);
  arena_free(&a);
}

static void test_refuses(void **state) {
  (void)state;
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4,
          "tensor a ends at byte 8 of 4");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8,
          "tensor a has 8 bytes, its shape [3] of F32 needs 12");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, "last 1 bytes");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "before tensor a");
  refuses(
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
      "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
      8, "tensors a and b overlap");
  refuses("{\"a\":{\"dtype\":\"Q9\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown type Q9");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "bad dimension");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4, "bad dimension");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,4]}}", 4,
          "larger than memory");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
          "9 dimensions");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4,
          "bad data_offsets");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "bad data_offsets");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "exactly dtype, shape and data_offsets");
  refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "exactly");
  refuses(
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"F32\","
      "\"shape\":[1],\"data_offsets\":[0,4]}}",
      4, "not JSON");
  refuses("{\"a\":7}", 0, "tensor a");
  refuses("[]", 0, "no JSON object");
  refuses("{", 0, "not JSON");
  refuses("{\"__metadata__\":{\"a\":1}}", 0, "not a text");
  arena a;
  arena_init(&a);
  assert_null(parse(&a, "{}  ", 0));
  assert_null(parse(&a, "{\"a\":{\"dtype\":\"U8\",\"shape\":[0,3],\"data_offsets\":[0,0]}}", 0));
  unsigned char huge[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f};
  st_file f;
  status *s = st_parse(&a, "x", huge, sizeof huge, &f);
  assert_non_null(strstr(s->message, "is not safetensors"));
  status_free(s);
  arena_free(&a);
}

static void test_missing_file(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  st_file f;
  status *s = st_open(&a, "/nowhere/x.safetensors", &f);
  assert_non_null(strstr(s->message, "/nowhere/x.safetensors"));
  status_free(s);
  s = st_open(&a, "/tmp", &f);
  assert_non_null(strstr(s->message, "a directory"));
  status_free(s);
  arena_free(&a);
}

// f16 and bf16: every value survives the way through f32; rounding is to nearest even.
static void test_small_floats(void **state) {
  (void)state;
  for (uint32_t i = 0; i < 65536; i++) {
    uint16_t h = (uint16_t)i;
    float x = dtype_from_f16(h), y = dtype_from_bf16(h);
    if (x == x) assert_int_equal(dtype_to_f16(x), h);
    if (y == y) assert_int_equal(dtype_to_bf16(y), h);
    if (x != x) assert_true(dtype_from_f16(dtype_to_f16(x)) != dtype_from_f16(dtype_to_f16(x)));
    if (y != y) assert_true(dtype_from_bf16(dtype_to_bf16(y)) != dtype_from_bf16(dtype_to_bf16(y)));
  }
#if defined(__FLT16_MAX__)
  for (uint64_t i = 0; i < 2000000; i++) {
    uint32_t bits = (uint32_t)rng_bits(1, i);
    float x;
    memcpy(&x, &bits, 4);
    if (x != x) continue;
    _Float16 want = (_Float16)x;
    uint16_t h;
    memcpy(&h, &want, 2);
    assert_int_equal(dtype_to_f16(x), h);
  }
#endif
  assert_int_equal(dtype_to_f16(65520.0f), 0x7c00);
  assert_int_equal(dtype_to_f16(65519.0f), 0x7bff);
  assert_int_equal(dtype_to_bf16(1.00390625f), 0x3f80);  // a tie goes to the even one
  assert_int_equal(dtype_to_bf16(1.01171875f), 0x3f82);
}

static void test_conversions(void **state) {
  (void)state;
  int64_t big[3] = {1, 40000, 70000};
  uint16_t small[3];
  int32_t i32[3];
  assert_int_equal(dtype_convert(small, PROG_U16, big, PROG_I64, 3), 2);
  assert_int_equal(dtype_convert(i32, PROG_I32, big, PROG_I64, 3), 3);
  assert_int_equal(i32[2], 70000);
  double d[2] = {0.1, -2};
  uint16_t b[2];
  float back[2];
  assert_int_equal(dtype_convert(b, PROG_BF16, d, PROG_F64, 2), 2);
  assert_int_equal(dtype_convert(back, PROG_F32, b, PROG_BF16, 2), 2);
  assert_true(back[1] == -2.0f && back[0] > 0.0995f && back[0] < 0.1005f);
  assert_false(dtype_convertible(PROG_F32, PROG_I32));
  assert_false(dtype_convertible(PROG_F32, PROG_F8E4M3));
  assert_true(dtype_convertible(PROG_BOOL, PROG_BOOL));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_refuses),
      cmocka_unit_test(test_missing_file), cmocka_unit_test(test_small_floats),
      cmocka_unit_test(test_conversions),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
