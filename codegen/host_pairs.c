// Operands of a bf16 dot, laid for vdpbf16ps: pairs of neighbours along k, 32 bits each.
//
// The first operand needs its pairs one at a time. A bf16 buffer whose rows run along k is read
// where it lies; f32 rows are rounded into bf16 rows (h_pair_rows); an operand that runs across k
// becomes panels 16 wide. The second operand always becomes panels (h_pair_panels). In panels,
// pair p of column n is at (n / width)*width*steps + p*width + n % width, `steps` being
// h_pair_steps(k); the last panel is as narrow as whole vectors allow, as h_pack has it.
//
// f32 is rounded on the way by vcvtneps2bf16, which is what h_narrow does on these CPUs. The half
// of a pair that has no k is zero; pairs beyond it are never read, and hold anything.
#include <stdio.h>

#include "codegen/host.h"

enum { TO, FROM, LEFT_OWN, LEFT_K, ARGS };  // arguments of the helpers: 2 addresses, 2 numbers

int h_pair_steps(int k) { return ((k + 1) / 2 + K_LANES - 1) / K_LANES * K_LANES; }

static int padded(int n) { return (n + K_LANES - 1) / K_LANES * K_LANES; }

static LLVMTypeRef storage(host *h, const h_operand *o) {
  return o->dtype == DT_bf16 ? LLVMInt16TypeInContext(h->context)
                             : LLVMFloatTypeInContext(h->context);
}

static LLVMTypeRef pairs_type(host *h) {
  return LLVMVectorType(LLVMInt32TypeInContext(h->context), K_LANES);
}

// The address of element (i, k).
static LLVMValueRef place(host *h, const h_operand *o, LLVMValueRef const *arg, LLVMValueRef i,
                          LLVMValueRef k) {
  LLVMValueRef at = o->along_k ? LLVMBuildAdd(h->b, h_times(h, i, o->ld), k, "")
                               : LLVMBuildAdd(h->b, h_times(h, k, o->ld), i, "");
  return h_element(h, storage(h, o), arg[FROM], at);
}

// n elements at p, of which the first `left` are there (NULL: all); the others are zeros.
static LLVMValueRef some(host *h, const h_operand *o, LLVMValueRef p, int n, LLVMValueRef left) {
  unsigned size = o->dtype == DT_bf16 ? 2 : 4;
  LLVMTypeRef vt = LLVMVectorType(storage(h, o), (unsigned)n);
  if (!left) {
    LLVMValueRef v = LLVMBuildLoad2(h->b, vt, p, "");
    LLVMSetAlignment(v, size);
    return v;
  }
  LLVMTypeRef i32 = LLVMInt32TypeInContext(h->context);
  LLVMValueRef lane[2 * K_LANES];
  for (int i = 0; i < n; i++) lane[i] = LLVMConstInt(i32, (unsigned)i, 0);
  LLVMValueRef count = h_splat(h, LLVMBuildTrunc(h->b, left, i32, ""), n);
  LLVMTypeRef types[] = {vt, LLVMPointerTypeInContext(h->context, 0)};
  LLVMValueRef args[] = {
      p, LLVMConstInt(i32, size, 0),
      LLVMBuildICmp(h->b, LLVMIntSLT, LLVMConstVector(lane, (unsigned)n), count, ""),
      LLVMConstNull(vt)};
  return h_intrinsic(h, "llvm.masked.load", types, 2, args, 4);
}

// Two f32 vectors as one of bf16, `low` first.
static LLVMValueRef join(host *h, LLVMValueRef low, LLVMValueRef high) {
  LLVMValueRef args[] = {high, low};
  return h_intrinsic(h, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", NULL, 0, args, 2);
}

static LLVMValueRef minus(host *h, LLVMValueRef a, LLVMValueRef b) {
  return LLVMBuildSub(h->b, a, b, "");
}

// ---- along k: pairs are neighbours in memory ----------------------------------------------------

// 16 pairs of row i from k on.
static LLVMValueRef pairs_of_row(host *h, const h_operand *o, LLVMValueRef p, LLVMValueRef left) {
  LLVMValueRef v;
  if (o->dtype == DT_bf16) {
    v = some(h, o, p, 2 * K_LANES, left);
  } else {
    LLVMValueRef high = h_f32_at(h, p, h_i64(h, K_LANES));
    v = join(h, some(h, o, p, K_LANES, left),
             some(h, o, high, K_LANES, left ? minus(h, left, h_i64(h, K_LANES)) : NULL));
  }
  return LLVMBuildBitCast(h->b, v, pairs_type(h), "");
}

// 16 rows from i, 32 k from k on, into a panel: pairs become rows.
static void turn_pairs(host *h, const h_operand *o, LLVMValueRef const *arg, LLVMValueRef to,
                       int width, LLVMValueRef i, LLVMValueRef k, bool some_rows, bool some_k) {
  LLVMValueRef v[K_LANES];
  LLVMValueRef left = some_k ? minus(h, arg[LEFT_K], k) : NULL;
  for (int r = 0; r < K_LANES; r++) {
    LLVMValueRef row = h_plus(h, i, r), in = NULL;
    if (some_rows) {  // rows that are not there: the block's first is read instead, and dropped
      in = LLVMBuildICmp(h->b, LLVMIntSLT, row, arg[LEFT_OWN], "");
      row = LLVMBuildSelect(h->b, in, row, i, "");
    }
    if (!some_rows && !some_k) h_prefetch(h, place(h, o, arg, h_plus(h, row, K_LANES), k));
    v[r] = pairs_of_row(h, o, place(h, o, arg, row, k), left);
    if (in) v[r] = LLVMBuildSelect(h->b, in, v[r], LLVMConstNull(pairs_type(h)), "");
  }
  h_turn_vectors(h, v);
  for (int p = 0; p < K_LANES; p++)
    LLVMSetAlignment(LLVMBuildStore(h->b, v[p], h_f32_at(h, to, h_i64(h, (int64_t)p * width))), 64);
}

// All k of 16 rows.
static void turned_strip(host *h, const h_operand *o, LLVMValueRef const *arg, LLVMValueRef to,
                         int width, LLVMValueRef i, bool some_rows) {
  LLVMValueRef step = h_i64(h, 2 * K_LANES);
  LLVMValueRef whole = LLVMBuildMul(h->b, LLVMBuildSDiv(h->b, arg[LEFT_K], step, ""), step, "");
  h_loop l;
  LLVMValueRef k = h_loop_begin(h, &l, h_i64(h, 0), whole);
  LLVMValueRef half = LLVMBuildSDiv(h->b, k, h_i64(h, 2), "");
  turn_pairs(h, o, arg, h_f32_at(h, to, h_times(h, half, width)), width, i, k, some_rows, false);
  h_loop_end(h, &l, 2 * K_LANES);
  if (o->k % (2 * K_LANES) == 0 && !o->left_k) return;
  k = h_loop_begin(h, &l, whole, arg[LEFT_K]);
  half = LLVMBuildSDiv(h->b, k, h_i64(h, 2), "");
  turn_pairs(h, o, arg, h_f32_at(h, to, h_times(h, half, width)), width, i, k, some_rows, true);
  h_loop_end(h, &l, 2 * K_LANES);
}

// ---- across k: pairs are made of two rows -------------------------------------------------------

// Pairs of `n` columns (16 or 32) from two rows; one_row: the second half is zero. `to` are the
// places of each 16.
static void mix_rows(host *h, const h_operand *o, LLVMValueRef const *to, LLVMValueRef const *row,
                     int n, LLVMValueRef left, bool one_row) {
  LLVMTypeRef i32 = LLVMInt32TypeInContext(h->context);
  LLVMValueRef v[2];
  for (int i = 0; i < 2; i++)
    v[i] = i && one_row ? LLVMConstNull(LLVMVectorType(storage(h, o), (unsigned)n))
                        : some(h, o, row[i], n, left);
  if (o->dtype != DT_bf16) {
    v[0] = join(h, v[0], v[1]);
    v[1] = LLVMGetPoison(LLVMTypeOf(v[0]));
  }
  for (int half = 0; half < n / K_LANES; half++) {
    LLVMValueRef pick[2 * K_LANES];
    for (int i = 0; i < 2 * K_LANES; i++)
      pick[i] = LLVMConstInt(i32, (unsigned)(i % 2 * n + half * K_LANES + i / 2), 0);
    LLVMValueRef mixed =
        LLVMBuildShuffleVector(h->b, v[0], v[1], LLVMConstVector(pick, 2 * K_LANES), "");
    LLVMSetAlignment(LLVMBuildStore(h->b, mixed, to[half]), 64);
  }
}

// One pair of k for `cols` columns from j, of panels of `width`.
static void mixed_step(host *h, const h_operand *o, LLVMValueRef const *arg, LLVMValueRef j,
                       LLVMValueRef pair, int width, int cols, bool some_cols, bool one_row) {
  LLVMValueRef k = h_times(h, pair, 2);
  LLVMValueRef first =
      h_f32_at(h, arg[TO],
               LLVMBuildAdd(h->b, h_times(h, j, h_pair_steps(o->k)), h_times(h, pair, width), ""));
  int n = o->dtype == DT_bf16 && cols % (2 * K_LANES) == 0 ? 2 * K_LANES : K_LANES;
  for (int c = 0; c < cols; c += n) {
    LLVMValueRef col = h_plus(h, j, c), left = some_cols ? minus(h, arg[LEFT_OWN], col) : NULL;
    LLVMValueRef row[2] = {place(h, o, arg, col, k)}, to[2];
    if (!one_row) row[1] = place(h, o, arg, col, h_plus(h, k, 1));
    if (cols > width) {
      h_prefetch(h, place(h, o, arg, col, h_plus(h, k, H_PACK_AHEAD)));
      h_prefetch(h, place(h, o, arg, col, h_plus(h, k, H_PACK_AHEAD + 1)));
    }
    for (int i = 0; i < n / K_LANES; i++) {
      int at = c + i * K_LANES;
      to[i] = h_f32_at(h, first,
                       h_i64(h, (int64_t)(at / width * width) * h_pair_steps(o->k) + at % width));
    }
    mix_rows(h, o, to, row, n, left, one_row);
  }
}

static void mixed_panels(host *h, const h_operand *o, LLVMValueRef const *arg, LLVMValueRef j,
                         int width, int cols, bool some_cols) {
  LLVMValueRef two = h_i64(h, 2), whole = LLVMBuildSDiv(h->b, arg[LEFT_K], two, "");
  h_loop l;
  LLVMValueRef pair = h_loop_begin(h, &l, h_i64(h, 0), whole);
  mixed_step(h, o, arg, j, pair, width, cols, some_cols, false);
  h_loop_end(h, &l, 1);
  if (o->k % 2 == 0 && !o->left_k) return;
  pair = h_loop_begin(h, &l, whole, LLVMBuildSDiv(h->b, h_plus(h, arg[LEFT_K], 1), two, ""));
  mixed_step(h, o, arg, j, pair, width, cols, some_cols, true);
  h_loop_end(h, &l, 1);
}

// ---- the helpers --------------------------------------------------------------------------------

// `cols` columns from j, which are one or several panels of `width`.
static void panel(host *h, const h_operand *o, LLVMValueRef const *arg, LLVMValueRef j, int width,
                  int cols, bool some_own) {
  if (!o->along_k) {
    mixed_panels(h, o, arg, j, width, cols, some_own);
    return;
  }
  LLVMValueRef to = h_f32_at(h, arg[TO], h_times(h, j, h_pair_steps(o->k)));
  h_loop l;
  LLVMValueRef c = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, width));
  turned_strip(h, o, arg, h_f32_at(h, to, c), width, LLVMBuildAdd(h->b, j, c, ""), some_own);
  h_loop_end(h, &l, K_LANES);
}

// Panels that are there whole are read without masks, several at a time where their columns are
// neighbours in memory: a row's cache lines are then read once, in order.
static void panels(host *h, const h_operand *o, LLVMValueRef const *arg, int width) {
  int all = padded(o->own), whole = all / width * width;
  int sure = o->left_own ? whole : o->own / width * width;
  LLVMValueRef end = h_i64(h, sure), lo = h_i64(h, 0);
  LLVMTypeRef i64 = LLVMTypeOf(end);
  h_loop l;
  int band = o->along_k || skips(h->k->skip, SKIP_bands) ? width : H_PACK_COLS;
  for (int cols = band; cols >= width; cols = cols > width ? width : 0) {
    LLVMValueRef c = h_i64(h, cols);
    LLVMValueRef ends[] = {h_i64(h, sure / cols * cols),
                           LLVMBuildMul(h->b, LLVMBuildSDiv(h->b, arg[LEFT_OWN], c, ""), c, "")};
    end = o->left_own ? h_intrinsic(h, "llvm.smin", &i64, 1, ends, 2) : ends[0];
    LLVMValueRef j = h_loop_begin(h, &l, lo, end);
    panel(h, o, arg, j, width, cols, false);
    h_loop_end(h, &l, cols);
    lo = end;
  }
  if (o->left_own || sure < whole) {
    LLVMValueRef j = h_loop_begin(h, &l, lo, h_i64(h, whole));
    panel(h, o, arg, j, width, width, true);
    h_loop_end(h, &l, width);
  }
  for (int c = whole; c < all; c += K_LANES)
    panel(h, o, arg, h_i64(h, c), K_LANES, K_LANES, o->left_own || c + K_LANES > o->own);
}

// Rows of 16 pairs at a time.
static void rounded_rows(host *h, const h_operand *o, LLVMValueRef const *arg) {
  LLVMValueRef step = h_i64(h, 2 * K_LANES);
  LLVMValueRef whole = LLVMBuildMul(h->b, LLVMBuildSDiv(h->b, arg[LEFT_K], step, ""), step, "");
  bool tail = o->k % (2 * K_LANES) != 0 || o->left_k;
  h_loop row, col;
  LLVMValueRef i = h_loop_begin(h, &row, h_i64(h, 0), arg[LEFT_OWN]);
  for (int last = 0; last <= tail; last++) {
    LLVMValueRef k = h_loop_begin(h, &col, last ? whole : h_i64(h, 0), last ? arg[LEFT_K] : whole);
    LLVMValueRef v =
        pairs_of_row(h, o, place(h, o, arg, i, k), last ? minus(h, arg[LEFT_K], k) : NULL);
    LLVMValueRef at = LLVMBuildAdd(h->b, h_times(h, i, h_pair_steps(o->k)),
                                   LLVMBuildSDiv(h->b, k, h_i64(h, 2), ""), "");
    LLVMSetAlignment(LLVMBuildStore(h->b, v, h_f32_at(h, arg[TO], at)), 64);
    h_loop_end(h, &col, 2 * K_LANES);
  }
  h_loop_end(h, &row, 1);
}

// Calls the helper for this kind of operand; makes it when it is not there. width 0: rows.
static LLVMValueRef lay(host *h, const h_operand *o, int width) {
  k_value like = {.type = K_I32, .rows = h_pair_steps(o->k), .cols = padded(o->own)};
  if (!width) like = (k_value){.type = K_I32, .rows = o->own, .cols = h_pair_steps(o->k)};
  LLVMValueRef to = h_tile(h, &like).v;
  char name[128];
  snprintf(name, sizeof name, "dsm.pairs.%s.%d.%d.%d.%lld.%d%d%d", ir_dtype_name(o->dtype), o->own,
           o->k, width, (long long)o->ld, o->along_k, o->left_own != NULL, o->left_k != NULL);
  LLVMTypeRef type = h_inner_type(h, LEFT_OWN, ARGS - LEFT_OWN);
  LLVMValueRef fn = h_helper(h, name, &type);
  if (!fn) {
    h_inner x;
    h_inner_open(h, &x, name, type, LEFT_OWN);
    fn = x.fn;
    LLVMValueRef p[ARGS];
    for (unsigned i = 0; i < ARGS; i++) p[i] = LLVMGetParam(fn, i);
    if (width) {
      panels(h, o, p, width);
    } else {
      rounded_rows(h, o, p);
    }
    h_inner_close(h, &x);
  }
  LLVMValueRef arg[ARGS] = {to, o->at, o->left_own ? o->left_own : h_i64(h, o->own),
                            o->left_k ? o->left_k : h_i64(h, o->k)};
  LLVMBuildCall2(h->b, type, fn, arg, ARGS, "");
  return to;
}

LLVMValueRef h_pair_panels(host *h, const h_operand *o, int width) { return lay(h, o, width); }

LLVMValueRef h_pair_rows(host *h, const h_operand *o) {
  IR_CHECK(o->along_k);
  return lay(h, o, 0);
}

// ---- CPUs without pairs -------------------------------------------------------------------------

h_value h_round_tile(host *h, const k_value *v, h_value from, ir_dtype t) {
  h_value to = h_tile(h, v);
  int n = v->cols == 1 ? padded(v->rows) : v->rows * padded(v->cols);
  IR_CHECK(v->cols == 1 || from.ld == padded(v->cols));
  h_loop l;
  LLVMValueRef i = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, n));
  LLVMValueRef x = LLVMBuildLoad2(h->b, h_type(h, K_F32, K_LANES), h_f32_at(h, from.v, i), "");
  LLVMSetAlignment(x, 64);
  x = h_widen(h, h_narrow(h, x, t, K_LANES), t, K_LANES);
  LLVMSetAlignment(LLVMBuildStore(h->b, x, h_f32_at(h, to.v, i)), 64);
  h_loop_end(h, &l, K_LANES);
  return to;
}
