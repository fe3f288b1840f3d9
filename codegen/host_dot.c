// The matrix micro-kernel: acc[M, N] += a[M, K] b[K, N] on tiles that lie on the stack.
//
// A block of MR rows by NR vectors of acc stays in registers while k runs: per step NR loads of b,
// MR broadcasts of a, MR*NR fma. With 512-bit vectors 8 x 2 blocks (16 accumulators of 32
// registers), with 256-bit ones 6 x 1 (a 16-lane vector is two registers there). Blocking changes
// which sums are made at once, never the order within one: k ascending, one fma each.
//
// One internal function per set of extents and strides ("dsm.dot.64.64.128..."), shared by all
// kernels of the module. b must lie row by row; a transposed b is turned first, 16 x 16 elements at
// a time in registers. Columns are padded to whole vectors: sums in the padding are never read.
#include <stdio.h>

#include "codegen/host.h"

typedef struct shape {
  int m, n, k;  // n in vectors of K_LANES
  int ldc, ldb;
  int a_row, a_col;  // element (i, k) of a is at i*a_row + k*a_col
} shape;

static LLVMValueRef vector_at(host *h, LLVMValueRef base, LLVMValueRef index) {
  return h_element(h, LLVMFloatTypeInContext(h->context), base, index);
}

static LLVMValueRef plus(host *h, LLVMValueRef a, int64_t b) {
  return b ? LLVMBuildAdd(h->b, a, h_i64(h, b), "") : a;
}

static LLVMValueRef times(host *h, LLVMValueRef a, int64_t b) {
  return b == 1 ? a : LLVMBuildMul(h->b, a, h_i64(h, b), "");
}

// mr rows from i, nr vectors from column j (in elements).
static void micro(host *h, const shape *s, LLVMValueRef const *arg, LLVMValueRef i, LLVMValueRef j,
                  int mr, int nr) {
  LLVMTypeRef f = LLVMFloatTypeInContext(h->context), vt = LLVMVectorType(f, K_LANES);
  LLVMValueRef sum[32], place[32];
  for (int r = 0; r < mr; r++)
    for (int c = 0; c < nr; c++) {
      int x = r * nr + c;
      LLVMValueRef at =
          LLVMBuildAdd(h->b, times(h, plus(h, i, r), s->ldc), plus(h, j, c * K_LANES), "");
      place[x] = vector_at(h, arg[0], at);
      sum[x] = h_alloca(h, vt, 64);
      LLVMValueRef v = LLVMBuildLoad2(h->b, vt, place[x], "");
      LLVMSetAlignment(v, 64);
      LLVMBuildStore(h->b, v, sum[x]);
    }
  LLVMValueRef row[32];
  for (int r = 0; r < mr; r++) row[r] = vector_at(h, arg[1], times(h, plus(h, i, r), s->a_row));
  LLVMValueRef col = vector_at(h, arg[2], j);
  h_loop l;
  LLVMValueRef k = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, s->k));
  LLVMValueRef b[4];
  for (int c = 0; c < nr; c++) {
    b[c] =
        LLVMBuildLoad2(h->b, vt, vector_at(h, col, plus(h, times(h, k, s->ldb), c * K_LANES)), "");
    LLVMSetAlignment(b[c], 64);
  }
  for (int r = 0; r < mr; r++) {
    LLVMValueRef a = LLVMBuildLoad2(h->b, f, vector_at(h, row[r], times(h, k, s->a_col)), "");
    LLVMSetAlignment(a, 4);
    a = h_splat(h, a, K_LANES);
    for (int c = 0; c < nr; c++) {
      int x = r * nr + c;
      LLVMValueRef old = LLVMBuildLoad2(h->b, vt, sum[x], "");
      LLVMBuildStore(h->b, h_fma(h, a, b[c], old), sum[x]);
    }
  }
  h_loop_end(h, &l, 1);
  for (int x = 0; x < mr * nr; x++) {
    LLVMValueRef st = LLVMBuildStore(h->b, LLVMBuildLoad2(h->b, vt, sum[x], ""), place[x]);
    LLVMSetAlignment(st, 64);
  }
}

// All rows for one column block.
static void rows(host *h, const shape *s, LLVMValueRef const *arg, LLVMValueRef j, int mr, int nr) {
  int whole = s->m / mr * mr;
  if (whole == mr) {
    micro(h, s, arg, h_i64(h, 0), j, mr, nr);
  } else if (whole) {
    h_loop l;
    LLVMValueRef i = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, whole));
    micro(h, s, arg, i, j, mr, nr);
    h_loop_end(h, &l, mr);
  }
  if (s->m > whole) micro(h, s, arg, h_i64(h, whole), j, s->m - whole, nr);
}

static void noalias(host *h, LLVMValueRef fn, int n) {
  unsigned kind = LLVMGetEnumAttributeKindForName("noalias", 7);
  for (int i = 0; i < n; i++)
    LLVMAddAttributeAtIndex(fn, (LLVMAttributeIndex)i + 1,
                            LLVMCreateEnumAttribute(h->context, kind, 0));
  unsigned no = LLVMGetEnumAttributeKindForName("noinline", 8);
  LLVMAddAttributeAtIndex(fn, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
                          LLVMCreateEnumAttribute(h->context, no, 0));
}

// The builder is inside a helper between open and close.
typedef struct helper {
  LLVMValueRef fn, outer_fn, outer_end;
  LLVMBasicBlockRef here;
} helper;

static void open_helper(host *h, helper *x, const char *name, LLVMTypeRef type) {
  *x = (helper){h_new_helper(h, name, type), h->fn, h->entry_end, LLVMGetInsertBlock(h->b)};
  h->fn = x->fn;
  LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(h->context, x->fn, "entry");
  LLVMBasicBlockRef start = LLVMAppendBasicBlockInContext(h->context, x->fn, "start");
  LLVMPositionBuilderAtEnd(h->b, entry);
  h->entry_end = LLVMBuildBr(h->b, start);
  LLVMPositionBuilderAtEnd(h->b, start);
}

static void close_helper(host *h, const helper *x) {
  LLVMBuildRetVoid(h->b);
  h->fn = x->outer_fn;
  h->entry_end = x->outer_end;
  LLVMPositionBuilderAtEnd(h->b, x->here);
}

static LLVMTypeRef pointers_type(host *h, int n) {
  LLVMTypeRef ptr = LLVMPointerTypeInContext(h->context, 0), params[] = {ptr, ptr, ptr};
  return LLVMFunctionType(LLVMVoidTypeInContext(h->context), params, (unsigned)n, 0);
}

static void call_dot(host *h, const shape *s, LLVMValueRef *arg) {
  char name[96];
  snprintf(name, sizeof name, "dsm.dot.%d.%d.%d.%d.%d.%d.%d", s->m, s->n, s->k, s->ldc, s->a_row,
           s->a_col, s->ldb);
  LLVMTypeRef type = pointers_type(h, 3);
  LLVMValueRef fn = h_helper(h, name, &type);
  if (!fn) {
    helper x;
    open_helper(h, &x, name, type);
    fn = x.fn;
    noalias(h, fn, 3);
    LLVMValueRef p[] = {LLVMGetParam(fn, 0), LLVMGetParam(fn, 1), LLVMGetParam(fn, 2)};
    int mr = h->wide ? 8 : 6, nr = h->wide ? 2 : 1, whole = s->n / nr * nr;
    // A few rows leave registers free: then more columns at once.
    if (s->m <= 4 && h->wide) nr = 4, whole = s->n / 4 * 4;
    if (whole) {
      h_loop l;
      LLVMValueRef j = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, whole * K_LANES));
      rows(h, s, p, j, mr, nr);
      h_loop_end(h, &l, nr * K_LANES);
    }
    for (int j = whole; j < s->n; j++) rows(h, s, p, h_i64(h, j * K_LANES), mr, 1);
    close_helper(h, &x);
  }
  LLVMBuildCall2(h->b, type, fn, arg, 3, "");
}

// ---- turning -----------------------------------------------------------------------------------

// Stores the transpose of a block of `nr` rows and `nc` columns (at most 16 each).
static void turn_block(host *h, LLVMValueRef to, LLVMValueRef from, LLVMValueRef r, LLVMValueRef c,
                       int nr, int nc, int ld_to, int ld_from) {
  LLVMTypeRef f = LLVMFloatTypeInContext(h->context), vt = LLVMVectorType(f, K_LANES);
  LLVMTypeRef i32 = LLVMInt32TypeInContext(h->context);
  LLVMValueRef v[K_LANES], lo[K_LANES], hi[K_LANES];
  for (int i = 0; i < K_LANES; i++) {
    v[i] = LLVMConstNull(vt);
    if (i < nr) {
      LLVMValueRef at = LLVMBuildAdd(h->b, times(h, plus(h, r, i), ld_from), c, "");
      v[i] = LLVMBuildLoad2(h->b, vt, vector_at(h, from, at), "");
      LLVMSetAlignment(v[i], 4);
    }
    int base = i / 2, other = K_LANES * (i % 2);
    lo[i] = LLVMConstInt(i32, (unsigned)(base + other), 0);
    hi[i] = LLVMConstInt(i32, (unsigned)(base + K_LANES / 2 + other), 0);
  }
  // Four perfect shuffles of rows i and i+8 make rows of columns.
  LLVMValueRef ml = LLVMConstVector(lo, K_LANES), mh = LLVMConstVector(hi, K_LANES);
  for (int round = 0; round < 4; round++) {
    LLVMValueRef w[K_LANES];
    for (int i = 0; i < K_LANES / 2; i++) {
      w[2 * i] = LLVMBuildShuffleVector(h->b, v[i], v[i + K_LANES / 2], ml, "");
      w[2 * i + 1] = LLVMBuildShuffleVector(h->b, v[i], v[i + K_LANES / 2], mh, "");
    }
    for (int i = 0; i < K_LANES; i++) v[i] = w[i];
  }
  for (int i = 0; i < nc; i++) {
    LLVMValueRef at = LLVMBuildAdd(h->b, times(h, plus(h, c, i), ld_to), r, "");
    LLVMSetAlignment(LLVMBuildStore(h->b, v[i], vector_at(h, to, at)), 4);
  }
}

static void turn_row(host *h, LLVMValueRef to, LLVMValueRef from, LLVMValueRef r, int nr, int cols,
                     int ld_to, int ld_from) {
  int whole = cols / K_LANES * K_LANES;
  if (whole) {
    h_loop l;
    LLVMValueRef c = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, whole));
    turn_block(h, to, from, r, c, nr, K_LANES, ld_to, ld_from);
    h_loop_end(h, &l, K_LANES);
  }
  if (cols > whole) turn_block(h, to, from, r, h_i64(h, whole), nr, cols - whole, ld_to, ld_from);
}

// to[cols, rows] = from[rows, cols]; rows of both are padded to whole vectors.
static void call_turn(host *h, LLVMValueRef to, LLVMValueRef from, int nrows, int cols, int ld_to,
                      int ld_from) {
  char name[96];
  snprintf(name, sizeof name, "dsm.turn.%d.%d.%d.%d", nrows, cols, ld_to, ld_from);
  LLVMTypeRef type = pointers_type(h, 2);
  LLVMValueRef fn = h_helper(h, name, &type), arg[] = {to, from};
  if (!fn) {
    helper x;
    open_helper(h, &x, name, type);
    fn = x.fn;
    noalias(h, fn, 2);
    LLVMValueRef p[] = {LLVMGetParam(fn, 0), LLVMGetParam(fn, 1)};
    int whole = nrows / K_LANES * K_LANES;
    if (whole) {
      h_loop l;
      LLVMValueRef r = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, whole));
      turn_row(h, p[0], p[1], r, K_LANES, cols, ld_to, ld_from);
      h_loop_end(h, &l, K_LANES);
    }
    if (nrows > whole)
      turn_row(h, p[0], p[1], h_i64(h, whole), nrows - whole, cols, ld_to, ld_from);
    close_helper(h, &x);
  }
  LLVMBuildCall2(h->b, type, fn, arg, 2, "");
}

// A column or row tile has the same elements in the same order when turned.
static bool is_line(const k_value *v) { return v->rows == 1 || v->cols == 1; }

// Tiles of one element are scalars everywhere: the one at `p` becomes v.
static void h_take_scalar(host *h, const k_value *v, LLVMValueRef p) {
  LLVMValueRef x = LLVMBuildLoad2(h->b, h_type(h, v->type, 1), p, "");
  h->at[v->id] = (h_value){.kind = H_SCALAR, .v = x};
}

void h_transpose(host *h, const k_stmt *s) {
  const k_value *v = s->in[0], *out = s->out[0];
  h_value from = h_in_memory(h, v);
  if (v->rows == 1 && v->cols == 1) {
    h_take_scalar(h, out, from.v);
    return;
  }
  if (is_line(v)) {
    h->at[out->id] = (h_value){H_MEMORY, from.v, out->cols == 1 ? 1 : (out->cols + 15) / 16 * 16};
    return;
  }
  IR_CHECK(v->type == K_F32 || v->type == K_I32);  // 4-byte elements; the shuffles move bits
  h_value to = h_tile(h, out);
  call_turn(h, to.v, from.v, v->rows, v->cols, to.ld, from.ld);
  h->at[out->id] = to;
}

// b as rows along k, turned when it is not: [k, n].
static h_value rows_along_k(host *h, const k_value *b, h_value at, bool turned) {
  if (!turned || is_line(b)) return at;
  k_value shape_only = {.type = K_F32, .rows = b->cols, .cols = b->rows};
  h_value t = h_tile(h, &shape_only);
  call_turn(h, t.v, at.v, b->rows, b->cols, t.ld, at.ld);
  return t;
}

static int padded(int n) { return (n + K_LANES - 1) / K_LANES * K_LANES; }

// A row times a column is one number. Both lie without gaps.
static void dot_of_lines(host *h, const k_stmt *s) {
  const k_value *acc = s->in[0], *a = s->in[1];
  h_value pa = h_in_memory(h, a), pb = h_in_memory(h, s->in[2]);
  if (h->at[acc->id].kind == H_NONE) h_flush(h);
  LLVMTypeRef t = h_type(h, s->out[0]->type, 1);
  LLVMValueRef sum = h_alloca(h, t, 0);
  LLVMBuildStore(h->b, h->at[acc->id].v, sum);
  h_loop l;
  LLVMValueRef i = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, s->ta ? a->rows : a->cols));
  LLVMValueRef x = LLVMBuildLoad2(h->b, t, h_element(h, t, pa.v, i), "");
  LLVMValueRef y = LLVMBuildLoad2(h->b, t, h_element(h, t, pb.v, i), "");
  LLVMBuildStore(h->b, h_fma(h, x, y, LLVMBuildLoad2(h->b, t, sum, "")), sum);
  h_loop_end(h, &l, 1);
  h_take_scalar(h, s->out[0], sum);
}

void h_dot(host *h, const k_stmt *s) {
  const k_value *acc = s->in[0], *a = s->in[1], *b = s->in[2], *out = s->out[0];
  if (out->rows == 1 && out->cols == 1) {
    dot_of_lines(h, s);
    return;
  }
  h_value pa = h_in_memory(h, a), pb = h_in_memory(h, b), pc = h->at[acc->id];
  h_value home = h_home(h, out, NULL);
  // In place when this is acc's only reader, unless acc belongs to a loop and the loop's next value
  // lives elsewhere: then the slot may be promised to it.
  bool own = pc.kind == H_MEMORY && acc->uses.n == 1 && acc->block == s->parent &&
             (acc->def ? acc->def->code != K_STAGE : home.kind == H_MEMORY && home.v == pc.v);
  h_value to = own ? pc : home.kind == H_MEMORY ? home : h_tile(h, out);
  h_copy(h, to, pc, acc);
  h->at[out->id] = to;

  shape d = {.k = s->ta ? a->rows : a->cols};
  LLVMValueRef arg[3] = {to.v};
  if (out->cols == 1) {
    // A column of acc lies like a row: compute it as b' a'.
    h_value turned = rows_along_k(h, a, pa, !s->ta);
    d.m = 1, d.n = padded(out->rows) / K_LANES;
    d.ldc = padded(out->rows), d.ldb = padded(out->rows);
    d.a_row = 0, d.a_col = 1;
    arg[1] = pb.v, arg[2] = turned.v;
  } else {
    h_value turned = rows_along_k(h, b, pb, s->tb);
    int ld = a->cols == 1 ? 1 : pa.ld;  // of a column's elements there are no gaps
    d.m = out->rows, d.n = padded(out->cols) / K_LANES;
    d.ldc = to.ld, d.ldb = padded(out->cols);
    d.a_row = s->ta ? 1 : ld, d.a_col = s->ta ? ld : 1;
    arg[1] = pa.v, arg[2] = turned.v;
  }
  call_dot(h, &d, arg);
}
