// Dots of bf16 pairs, to the bit: awkward shapes, awkward numbers, each kind of CPU.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernel_fixture.h"

static float float_of(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
static uint32_t bits_of(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}
// Denormals become zeros, as vdpbf16ps and vcvtneps2bf16 have it.
static float flushed(float f) {
  return (bits_of(f) & 0x7f800000) ? f : float_of(bits_of(f) & 0x80000000);
}
static float rounded(float f, bool flush) {
  uint32_t u = bits_of(flush ? flushed(f) : f);
  if (isnan(f)) return f;
  return float_of((u + 0x7fff + (u >> 16 & 1)) & 0xffff0000);
}

// What kernel.h says of one sum: acc + the products of n k.
static float dot_of(float acc, const float *a, const float *b, int n, bool pairs) {
  for (int k = 0; k < n && !pairs; k++) acc = fmaf(rounded(a[k], false), rounded(b[k], false), acc);
  for (int k = 0; k < n && pairs; k += 2) {
    float a1 = k + 1 < n ? rounded(a[k + 1], true) : 0;
    float b1 = k + 1 < n ? rounded(b[k + 1], true) : 0;
    acc = flushed(fmaf(a1, b1, flushed(acc)));
    acc = flushed(fmaf(rounded(a[k], true), rounded(b[k], true), acc));
  }
  return acc;
}

// One operand of a test: `own` rows of the result by k, in a buffer or on the stack, either way.
typedef struct dot_operand {
  ir_dtype t;
  bool k_last, on_stack;
  int own, tile, ld;  // tile: extent of the tile, own of which are there
  unsigned char *at;
  float *value;  // [own][k]
} dot_operand;

static float awkward(fixture *x, ir_dtype t) {
  float f = (float)draw(x);
  switch (below(x, 24)) {
    case 0: f *= 0x1p-126f; break;  // denormal, or rounds up to the smallest normal number
    case 1: f *= 0x1p-64f; break;   // products that are denormal
    case 2: f = float_of(0x007fffff); break;
    case 3: f = 0; break;
    case 4: f *= 0x1p20f; break;
    case 5:
      f = float_of(bits_of(f) | 0x8000);
      f = float_of(bits_of(f) & 0xffff8000);
      break;  // a tie
    default: break;
  }
  return t == DT_bf16 ? rounded(f, false) : f;
}

static dot_operand dot_operand_of(fixture *x, int own, int tile, int k) {
  dot_operand o = {
      .t = below(x, 2) ? DT_bf16 : DT_f32, .k_last = below(x, 2), .own = own, .tile = tile};
  o.on_stack = below(x, 5) == 0;
  int rows = o.k_last ? own : k, cols = o.k_last ? k : own;
  o.ld = cols + (int)below(x, 3);
  o.at = guarded(x, (size_t)ir_dtype_bytes(o.t) * (size_t)((rows - 1) * o.ld + cols));
  o.value = arena_new(&x->a, float, own *k);
  for (int i = 0; i < own; i++)
    for (int j = 0; j < k; j++) {
      float f = awkward(x, o.t);
      o.value[i * k + j] = f;
      put_element(o.t, o.at, o.k_last ? i * o.ld + j : j * o.ld + i, (double)f);
    }
  return o;
}

static k_value *dot_load(k_kernel *k, const dot_operand *o, int buffer, int ktile,
                         k_value *left_own, k_value *k0, k_value *left_k) {
  k_access a = {.buffer = buffer, .row_stride = o->ld, .col_stride = 1};
  a.base = o->k_last ? k0 : k_muli(k, k0, o->ld);
  a.row_limit = o->k_last ? left_own : left_k;
  a.col_limit = o->k_last ? left_k : left_own;
  k_value *v = k_load(k, o->k_last ? o->tile : ktile, o->k_last ? ktile : o->tile, a);
  return o->on_stack ? k_mul(k, v, k_const(k, K_F32, 1)) : v;
}

static bool has_pairs(const char *features) { return strstr(features, "+avx512bf16") != NULL; }

// out[m, n] = acc + a b over k in tiles of `ktile`, on each kind of CPU this one can be.
static void one_dot(fixture *x, int m, int n, int k, int ktile) {
  bool ragged = below(x, 2), from_zero = below(x, 2);
  // The result is stored; or a product with 1 is, which large ones wait for (host_dot.c); or its
  // rows are added up besides, for which rows that are not there must be zeros.
  enum { STORED, TIMES_ONE, ADDED, USES } use = (int)below(x, USES);
  int mt = ragged ? m + (int)below(x, 9) : m, nt = ragged ? n + (int)below(x, 20) : n;
  dot_operand a = dot_operand_of(x, m, mt, k), b = dot_operand_of(x, n, nt, k);
  float *acc = (float *)(void *)guarded(x, sizeof *acc * (size_t)(m * n));
  float *out = (float *)(void *)guarded(x, sizeof *out * (size_t)(m * n));
  float *total = (float *)(void *)guarded(x, sizeof *total * (size_t)m);
  for (int i = 0; i < m * n; i++) acc[i] = from_zero ? 0 : awkward(x, DT_f32);
  k_kernel *kern = k_new(&x->a, "dot");
  int buffer[] = {k_buffer(kern, "a", a.t, K_READ), k_buffer(kern, "b", b.t, K_READ),
                  k_buffer(kern, "c", DT_f32, K_READ), k_buffer(kern, "y", DT_f32, K_WRITE),
                  k_buffer(kern, "z", DT_f32, K_WRITE)};
  k_value *zero = k_call(kern, K_PAST);  // limits that the compiler does not know
  k_value *left_m = ragged ? k_addi(kern, zero, m) : NULL,
          *left_n = ragged ? k_addi(kern, zero, n) : NULL;
  k_access at = {.buffer = buffer[2],
                 .row_stride = n,
                 .col_stride = 1,
                 .row_limit = left_m,
                 .col_limit = left_n};
  k_value *sum = from_zero ? k_full(kern, K_F32, mt, nt, 0) : k_load(kern, mt, nt, at);
  int tiles = (k + ktile - 1) / ktile;
  for (int last = tiles == 1; last < 2; last++) {
    k_stmt *l = NULL;
    k_value *k0 = k_int(kern, (tiles - 1) * ktile), *left = NULL, *carry = sum;
    if (!last) {
      l = k_for(kern, k_int(kern, 0), k_int(kern, (tiles - 1) * ktile), ktile, &sum, 1);
      k0 = l->body[0]->args.at[0], carry = l->body[0]->args.at[1];
    }
    if (k % ktile) left = k_sub(kern, k_addi(kern, zero, k), k0);
    k_value *va = dot_load(kern, &a, buffer[0], ktile, left_m, k0, left),
            *vb = dot_load(kern, &b, buffer[1], ktile, left_n, k0, left);
    k_value *next = k_dot_rounded(kern, DT_bf16, carry, va, vb, !a.k_last, b.k_last);
    if (!last) k_end_for(kern, l, &next);
    sum = last ? next : l->out[0];
  }
  at.buffer = buffer[3];
  if (use != STORED) sum = k_mul(kern, sum, k_const(kern, K_F32, 1));
  k_store(kern, sum, at);
  if (use == ADDED)
    k_store(kern, k_reduce(kern, IR_add, sum, 1),
            (k_access){.buffer = buffer[4], .row_stride = 1, .row_limit = left_m});
  k_finish(kern);

  static const cg_target other[] = {{.cpu = "x86-64-v4"}, {.cpu = "x86-64-v3"}};
  bool wide = true, pairs = true;
  for (int turn = 0; turn < 3; turn++) {
    if (turn == 1 && !wide) continue;
    cg_image image;
    const char *why = cg_compile_kernels(&x->a, &kern, 1, turn ? &other[turn - 1] : NULL, &image);
    if (why) fail_msg("%s", why);
    if (!turn) wide = strstr(image.features, "+avx512f,"), pairs = has_pairs(image.features);
    unsigned char *code = map_code(&image);
    unsigned char *buf[] = {a.at, b.at, (unsigned char *)acc, (unsigned char *)out,
                            (unsigned char *)total};
    memset(out, 0xff, sizeof *out * (size_t)(m * n));
    entry(code, image.offset[0])(buf, &x->call, 0, 1);
    for (int i = 0; i < m * n; i++) {
      float want = acc[i];
      for (int k0 = 0; k0 < k; k0 += ktile)
        want = dot_of(want, &a.value[i / n * k + k0], &b.value[i % n * k + k0],
                      k - k0 < ktile ? k - k0 : ktile, pairs && !turn);
      // Adding zeros beyond a limit may turn -0 into 0.
      bool same = isnan(want) ? isnan(out[i])
                  : want == 0 ? out[i] == 0
                              : bits_of(out[i]) == bits_of(want);
      if (!same)
        fail_msg("%d x %d x %d, tile %d x %d x %d, %s %s, %s %s, target %d: [%d, %d] is %a, not %a",
                 m, n, k, mt, nt, ktile, ir_dtype_name(a.t), a.k_last ? "along k" : "across k",
                 ir_dtype_name(b.t), b.k_last ? "along k" : "across k", turn, i / n, i % n,
                 (double)out[i], (double)want);
    }
    munmap(code, (size_t)image.n + 1);
  }
}

static void dots(void **state) {
  (void)state;
  static const int size[] = {1, 2, 3, 7, 8, 9, 16, 17, 31, 32, 33, 48, 64, 67};
  fixture x = {0};
  for (int turn = 0; turn < 60; turn++) {
    begin(&x);
    int m = size[below(&x, 14)], n = size[below(&x, 14)], k = size[below(&x, 14)];
    if (turn % 3 == 0) m = 64 + (int)below(&x, 30), n = 128 + (int)below(&x, 30);
    one_dot(&x, m, n, k, below(&x, 2) ? k : size[below(&x, 14)]);
    end(&x);
  }
}

// Products with round = "bf16" through the builder, of operands that are bf16 or become it.
static void products_of_bf16(void **state) {
  (void)state;
  static const int64_t size[] = {1, 3, 16, 31, 64, 67, 130, 300};
  fixture x = {0};
  for (int turn = 0; turn < 6; turn++) {
    begin(&x);
    int64_t m = size[below(&x, 8)], n = size[below(&x, 8)], k = size[below(&x, 8)];
    static const char *const spec[] = {"m k, n k -> m n", "m k, k n -> m n", "k m, k n -> n m"};
    for (int i = 0; i < 3; i++) {
      int64_t a[] = {i == 2 ? k : m, i == 2 ? m : k}, b[] = {i ? k : n, i ? n : k};
      ir_value *in[] = {below(&x, 2) ? input_of(&x, DT_bf16, 0, a, 2) : view(&x, a, 2),
                        below(&x, 2) ? input_of(&x, DT_bf16, 0, b, 2) : view(&x, b, 2)};
      ir_attr s[] = {ir_attr_s("spec", spec[i]), ir_attr_s("round", "bf16")};
      check(&x, make(&x, IR_einsum, in, 2, s, 2, NULL, 0)->out[0], 8e-3);
    }
    run(&x);
    end(&x);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(dots),
      cmocka_unit_test(products_of_bf16),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
