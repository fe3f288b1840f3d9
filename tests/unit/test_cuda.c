// The CUDA lowering: layouts hold every element of a tile, fragments are those of mma.sync, kernels
// that differ in extents are one function, and barriers stand where they must. What the kernels
// compute is proved under the emulation (tests/oracle).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codegen/cuda_impl.h"

typedef struct fixture {
  arena a;
  cu c;
} fixture;

static void begin(fixture *x, int threads) {
  memset(x, 0, sizeof *x);
  arena_init(&x->a);
  x->c.arena = x->c.head.arena = x->c.body.arena = &x->a;
  x->c.threads = threads;
  for (x->c.warp_bits = 0; 32 << x->c.warp_bits < threads;) x->c.warp_bits++;
}

static void end(fixture *x) { arena_free(&x->a); }

// ---- layouts -----------------------------------------------------------------------------------

static int sum_bits(const cu_bit *bit, int n, int number, int axis) {
  int at = 0;
  for (int b = 0; b < n; b++)
    if (bit[b].axis == axis) at += (number >> b & 1) << bit[b].shift;
  return at;
}

// The row (column) that register `reg` of thread `tid` holds, from the layout's definition.
static int held(const cu_layout *l, int axis, int tid, int reg) {
  int repeat = reg >> l->nreg;
  int n = axis == CU_ROW ? repeat / l->outer[1] : repeat % l->outer[1];
  return sum_bits(l->reg, l->nreg, reg, axis) + sum_bits(l->lane, CU_LANE_BITS, tid & 31, axis) +
         sum_bits(l->warp, l->nwarp, tid >> 5, axis) + n * l->span[axis];
}

// Every element is held; by one register, or by as many as there are copies.
static void check_layout(fixture *x, int layout) {
  const cu_layout l = *cu_lay(&x->c, layout);
  int *count = calloc((size_t)(l.rows * l.cols), sizeof *count);
  assert_non_null(count);
  int copies = 1;
  for (int b = 0; b < CU_LANE_BITS; b++) copies *= l.lane[b].axis == CU_NONE ? 2 : 1;
  for (int b = 0; b < l.nwarp; b++) copies *= l.warp[b].axis == CU_NONE ? 2 : 1;
  assert_int_equal(copies > 1, cu_copies(&l));
  for (int t = 0; t < x->c.threads; t++)
    for (int r = 0; r < cu_registers(&l); r++) {
      int row = held(&l, CU_ROW, t, r), col = held(&l, CU_COL, t, r);
      if (row >= l.rows) assert_true(cu_padded(&l, CU_ROW));
      if (col >= l.cols) assert_true(cu_padded(&l, CU_COL));
      if (row < l.rows && col < l.cols) count[row * l.cols + col]++;
    }
  for (int i = 0; i < l.rows * l.cols; i++) assert_int_equal(count[i], copies);
  free(count);
  // Neighbouring registers hold neighbouring elements.
  int axis, n = cu_vector(&l, &axis);
  for (int r = 0; r < cu_registers(&l); r += n)
    for (int e = 1; e < n; e++) {
      assert_int_equal(held(&l, axis, 5, r + e), held(&l, axis, 5, r) + e);
      assert_int_equal(held(&l, 1 - axis, 5, r + e), held(&l, 1 - axis, 5, r));
    }
}

static void layouts_hold_every_element(void **state) {
  (void)state;
  static const int extent[] = {1, 2, 3, 5, 8, 16, 24, 33, 64, 100, 128, 768};
  for (int threads = 32; threads <= 256; threads *= 2) {
    fixture x;
    begin(&x, threads);
    for (size_t i = 0; i < sizeof extent / sizeof *extent; i++)
      for (size_t j = 0; j < sizeof extent / sizeof *extent; j++) {
        int rows = extent[i], cols = extent[j];
        if (rows * cols > 32768) continue;
        const int made[] = {cu_blocked(&x.c, rows, cols, 4), cu_blocked(&x.c, rows, cols, 8),
                            cu_fragment(&x.c, rows, cols, false),
                            cu_fragment(&x.c, rows, cols, true), cu_fma_tile(&x.c, rows, cols)};
        for (size_t m = 0; m < sizeof made / sizeof *made; m++) {
          check_layout(&x, made[m]);
          for (int axis = 0; axis < 2; axis++) check_layout(&x, cu_slice(&x.c, made[m], axis));
          int turned = cu_turned(&x.c, made[m]);
          if (turned >= 0) check_layout(&x, turned);
        }
      }
    end(&x);
  }
}

static void fragments_are_those_of_mma(void **state) {
  (void)state;
  fixture x;
  begin(&x, 128);
  const cu_layout l = *cu_lay(&x.c, cu_fragment(&x.c, 64, 32, true));
  // The PTX manual: c0, c1 at (lane / 4, 2 * (lane % 4) + 0, 1), c2, c3 eight rows below.
  for (int t = 0; t < 128; t++)
    for (int r = 0; r < cu_registers(&l); r++) {
      int lane = t & 31, warp = t >> 5, i = r & 3, tile = r >> 2;
      assert_int_equal(held(&l, CU_ROW, t, r), 16 * warp + lane / 4 + 8 * (i >> 1));
      assert_int_equal(held(&l, CU_COL, t, r), 8 * tile + 2 * (lane % 4) + (i & 1));
    }
  end(&x);
}

static void a_slice_belongs_to_its_tile(void **state) {
  (void)state;
  // What a reduction over columns leaves is where each thread needs it to go on with the tile.
  fixture x;
  begin(&x, 128);
  const int made[] = {cu_blocked(&x.c, 8, 512, 4), cu_fragment(&x.c, 64, 128, true),
                      cu_fma_tile(&x.c, 64, 64)};
  for (size_t m = 0; m < sizeof made / sizeof *made; m++) {
    int slice = cu_slice(&x.c, made[m], CU_COL);
    const cu_layout l = *cu_lay(&x.c, made[m]), s = *cu_lay(&x.c, slice);
    for (int t = 0; t < 128; t++)
      for (int r = 0; r < cu_registers(&l); r++) {
        int found = 0;
        for (int k = 0; k < cu_registers(&s); k++)
          found += held(&s, CU_ROW, t, k) == held(&l, CU_ROW, t, r);
        assert_int_equal(found, 1);
      }
  }
  end(&x);
}

// ---- functions ---------------------------------------------------------------------------------

// y[n] = 2 * x[n], a row of `stride` a cell.
static k_kernel *doubled(arena *a, int64_t cells, int64_t stride, int64_t n) {
  k_kernel *k = k_new(a, "doubled_7");
  int x = k_buffer(k, "x", DT_f32, K_READ), y = k_buffer(k, "y", DT_f32, K_WRITE);
  k_value *cell = k_grid_open(k, cells);
  k_access at = {.buffer = x,
                 .base = k_mul(k, cell, k_open(k, stride)),
                 .col_stride = 1,
                 .col_limit = k_sub(k, k_open(k, n), k_int(k, 0))};
  k_value *v = k_load(k, 1, 128, at);
  at.buffer = y;
  k_store(k, k_mul(k, v, k_const(k, K_F32, 2)), at);
  k_finish(k);
  return k;
}

static void extents_are_numbers(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  cuda_kernel p, q, odd;
  assert_null(cuda_lower(&a, doubled(&a, 3, 128, 128), &p));
  assert_null(cuda_lower(&a, doubled(&a, 90, 4096, 96), &q));
  assert_null(cuda_lower(&a, doubled(&a, 3, 127, 127), &odd));
  assert_string_equal(p.symbol, q.symbol);
  assert_string_equal(p.source, q.source);
  assert_true(str_starts(p.symbol, "doubled_"));
  assert_int_equal(p.nnumbers, q.nnumbers);
  assert_memory_not_equal(p.number, q.number, sizeof *p.number * (size_t)p.nnumbers);
  assert_int_equal(p.blocks, 3);
  assert_int_equal(q.blocks, 90);
  // Rows that do not begin at multiples of 16 bytes are read in other steps: the address says so
  // when the function runs.
  assert_string_equal(p.symbol, odd.symbol);
  assert_string_equal(p.source, odd.source);
  assert_non_null(strstr(p.source, "d_load_left<4>"));
  arena_free(&a);
}

static int count_of(const char *text, const char *word) {
  int n = 0;
  for (const char *p = text; (p = strstr(p, word)); p += strlen(word)) n++;
  return n;
}

// A row's maximum over more columns than a warp holds goes through shared memory.
static void warps_wait_for_each_other(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  k_kernel *k = k_new(&a, "most");
  int x = k_buffer(k, "x", DT_f32, K_READ), y = k_buffer(k, "y", DT_f32, K_WRITE);
  k_value *v = k_load(k, 1, 1024, (k_access){.buffer = x, .col_stride = 1});
  k_store(k, k_reduce(k, IR_max, v, 1), (k_access){.buffer = y});
  k_finish(k);
  cuda_kernel c;
  assert_null(cuda_lower(&a, k, &c));
  assert_int_equal(c.threads, 64);
  assert_int_equal(count_of(c.source, "d_barrier()"), 1);
  assert_true(c.shared_bytes >= 8);
  // Read back, added to and written in place by one thread: all must have read before.
  k = k_new(&a, "count");
  x = k_buffer(k, "x", DT_f32, K_BOTH);
  v = k_load(k, 1, 1, (k_access){.buffer = x});
  k_store(k, k_add(k, v, k_const(k, K_F32, 1)), (k_access){.buffer = x});
  k_finish(k);
  assert_null(cuda_lower(&a, k, &c));
  const char *load = strstr(c.source, "d_load"), *barrier = strstr(c.source, "d_barrier"),
             *store = strstr(c.source, "d_store");
  assert_true(load && barrier && store && load < barrier && barrier < store);
  arena_free(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(layouts_hold_every_element), cmocka_unit_test(fragments_are_those_of_mma),
      cmocka_unit_test(a_slice_belongs_to_its_tile), cmocka_unit_test(extents_are_numbers),
      cmocka_unit_test(warps_wait_for_each_other)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
