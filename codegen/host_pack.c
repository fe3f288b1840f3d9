// Operands of the matrix micro-kernel laid so that it reads them with whole vectors: tiles turned,
// and the second operand of a dot packed from its buffer into panels.
#include <stdio.h>

#include "codegen/host.h"

LLVMValueRef h_f32_at(host *h, LLVMValueRef base, LLVMValueRef index) {
  return h_element(h, LLVMFloatTypeInContext(h->context), base, index);
}

LLVMValueRef h_plus(host *h, LLVMValueRef a, int64_t b) {
  return b ? LLVMBuildAdd(h->b, a, h_i64(h, b), "") : a;
}

LLVMValueRef h_times(host *h, LLVMValueRef a, int64_t b) {
  return b == 1 ? a : LLVMBuildMul(h->b, a, h_i64(h, b), "");
}

// ---- helper functions ---------------------------------------------------------------------------

LLVMTypeRef h_inner_type(host *h, int pointers, int numbers) {
  LLVMTypeRef param[8];
  for (int i = 0; i < pointers; i++) param[i] = LLVMPointerTypeInContext(h->context, 0);
  for (int i = 0; i < numbers; i++) param[pointers + i] = LLVMInt64TypeInContext(h->context);
  return LLVMFunctionType(LLVMVoidTypeInContext(h->context), param, (unsigned)(pointers + numbers),
                          0);
}

void h_inner_open(host *h, h_inner *x, const char *name, LLVMTypeRef type, int pointers) {
  *x = (h_inner){h_new_helper(h, name, type), h->fn, h->entry_end, LLVMGetInsertBlock(h->b)};
  h->fn = x->fn;
  unsigned kind = LLVMGetEnumAttributeKindForName("noalias", 7);
  for (int i = 0; i < pointers; i++)
    LLVMAddAttributeAtIndex(x->fn, (LLVMAttributeIndex)i + 1,
                            LLVMCreateEnumAttribute(h->context, kind, 0));
  unsigned no = LLVMGetEnumAttributeKindForName("noinline", 8);
  LLVMAddAttributeAtIndex(x->fn, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
                          LLVMCreateEnumAttribute(h->context, no, 0));
  LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(h->context, x->fn, "entry");
  LLVMBasicBlockRef start = LLVMAppendBasicBlockInContext(h->context, x->fn, "start");
  LLVMPositionBuilderAtEnd(h->b, entry);
  h->entry_end = LLVMBuildBr(h->b, start);
  LLVMPositionBuilderAtEnd(h->b, start);
}

void h_inner_close(host *h, const h_inner *x) {
  LLVMBuildRetVoid(h->b);
  h->fn = x->outer_fn;
  h->entry_end = x->outer_end;
  LLVMPositionBuilderAtEnd(h->b, x->here);
}

// ---- turning -----------------------------------------------------------------------------------

void h_turn_vectors(host *h, LLVMValueRef *v) {
  LLVMTypeRef i32 = LLVMInt32TypeInContext(h->context);
  LLVMValueRef lo[K_LANES], hi[K_LANES];
  for (int i = 0; i < K_LANES; i++) {
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
}

// Stores the transpose of a block of `nr` rows and `nc` columns (at most 16 each). Rows from `left`
// on (NULL: none) are zeros and not read.
static void turn_block(host *h, LLVMValueRef to, LLVMValueRef from, LLVMValueRef r, LLVMValueRef c,
                       int nr, int nc, int64_t ld_to, int64_t ld_from, LLVMValueRef left,
                       bool ahead) {
  LLVMTypeRef f = LLVMFloatTypeInContext(h->context), vt = LLVMVectorType(f, K_LANES);
  LLVMValueRef v[K_LANES];
  for (int i = 0; i < K_LANES; i++) {
    v[i] = LLVMConstNull(vt);
    if (i < nr) {
      LLVMValueRef at = LLVMBuildAdd(h->b, h_times(h, h_plus(h, r, i), ld_from), c, "");
      LLVMValueRef p = h_f32_at(h, from, at), in = NULL;
      if (ahead) h_prefetch(h, h_f32_at(h, p, h_i64(h, K_LANES * ld_from)));
      if (left) {
        in = LLVMBuildICmp(h->b, LLVMIntSLT, h_plus(h, r, i), left, "");
        p = LLVMBuildSelect(h->b, in, p, h_f32_at(h, from, c), "");
      }
      v[i] = LLVMBuildLoad2(h->b, vt, p, "");
      LLVMSetAlignment(v[i], 4);
      if (in) v[i] = LLVMBuildSelect(h->b, in, v[i], LLVMConstNull(vt), "");
    }
  }
  h_turn_vectors(h, v);
  for (int i = 0; i < nc; i++) {
    LLVMValueRef at = LLVMBuildAdd(h->b, h_times(h, h_plus(h, c, i), ld_to), r, "");
    LLVMSetAlignment(LLVMBuildStore(h->b, v[i], h_f32_at(h, to, at)), 4);
  }
}

void h_prefetch(host *h, LLVMValueRef p) {
  if (skips(h->k->skip, SKIP_prefetch)) return;
  LLVMTypeRef ptr = LLVMPointerTypeInContext(h->context, 0),
              i32 = LLVMInt32TypeInContext(h->context);
  LLVMValueRef args[] = {p, LLVMConstInt(i32, 0, 0), LLVMConstInt(i32, 2, 0),
                         LLVMConstInt(i32, 1, 0)};
  h_intrinsic(h, "llvm.prefetch", &ptr, 1, args, 4);
}

static void turn_row(host *h, LLVMValueRef to, LLVMValueRef from, LLVMValueRef r, int nr, int cols,
                     int64_t ld_to, int64_t ld_from, LLVMValueRef left, bool ahead) {
  int whole = cols / K_LANES * K_LANES;
  if (whole) {
    h_loop l;
    LLVMValueRef c = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, whole));
    turn_block(h, to, from, r, c, nr, K_LANES, ld_to, ld_from, left, ahead);
    h_loop_end(h, &l, K_LANES);
  }
  if (cols > whole)
    turn_block(h, to, from, r, h_i64(h, whole), nr, cols - whole, ld_to, ld_from, left, ahead);
}

void h_turn(host *h, LLVMValueRef to, LLVMValueRef from, int rows, int cols, int64_t ld_to,
            int64_t ld_from) {
  char name[96];
  snprintf(name, sizeof name, "dsm.turn.%d.%d.%lld.%lld", rows, cols, (long long)ld_to,
           (long long)ld_from);
  LLVMTypeRef type = h_inner_type(h, 2, 0);
  LLVMValueRef fn = h_helper(h, name, &type), arg[] = {to, from};
  if (!fn) {
    h_inner x;
    h_inner_open(h, &x, name, type, 2);
    fn = x.fn;
    LLVMValueRef p[] = {LLVMGetParam(fn, 0), LLVMGetParam(fn, 1)};
    int whole = rows / K_LANES * K_LANES;
    if (whole) {
      h_loop l;
      LLVMValueRef r = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, whole));
      turn_row(h, p[0], p[1], r, K_LANES, cols, ld_to, ld_from, NULL, false);
      h_loop_end(h, &l, K_LANES);
    }
    if (rows > whole)
      turn_row(h, p[0], p[1], h_i64(h, whole), rows - whole, cols, ld_to, ld_from, NULL, false);
    h_inner_close(h, &x);
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
    h->at[out->id] = (h_value){
        .kind = H_MEMORY, .v = from.v, .ld = out->cols == 1 ? 1 : (out->cols + 15) / 16 * 16};
    return;
  }
  IR_CHECK(v->type == K_F32 || v->type == K_I32);  // 4-byte elements; the shuffles move bits
  h_value to = h_tile(h, out);
  h_turn(h, to.v, from.v, v->rows, v->cols, to.ld, from.ld);
  h->at[out->id] = to;
}

// ---- panels -------------------------------------------------------------------------------------

// One panel of columns j .. j+width-1 of an operand that lies as [N, K]: its rows become columns.
static void turned_panel(host *h, const h_panels *p, LLVMValueRef to, LLVMValueRef from,
                         LLVMValueRef j, int width, LLVMValueRef left) {
  LLVMValueRef panel = h_f32_at(h, to, h_times(h, j, p->k));
  LLVMValueRef rows = h_f32_at(h, from, h_times(h, j, p->ld));
  if (left) left = LLVMBuildSub(h->b, left, j, "");
  h_loop l;
  LLVMValueRef r = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, width));
  turn_row(h, panel, rows, r, K_LANES, p->k, width, p->ld, left, true);
  h_loop_end(h, &l, K_LANES);
}

// The same of one that lies as [K, N]: `cols` columns from j, one or several panels of p->width (or
// of `cols`, where that is less).
static void straight_panels(host *h, const h_panels *p, LLVMValueRef to, LLVMValueRef from,
                            LLVMValueRef j, int cols, LLVMValueRef left, LLVMValueRef count) {
  LLVMTypeRef f = LLVMFloatTypeInContext(h->context), vt = LLVMVectorType(f, K_LANES);
  LLVMTypeRef i32 = LLVMInt32TypeInContext(h->context);
  int width = cols < p->width ? cols : p->width;
  LLVMValueRef mask[H_PACK_COLS / K_LANES];
  for (int c = 0; left && c < cols / K_LANES; c++) {
    LLVMValueRef lane[K_LANES];
    for (int i = 0; i < K_LANES; i++) lane[i] = h_i64(h, c * K_LANES + i);
    LLVMValueRef at =
        LLVMBuildAdd(h->b, LLVMConstVector(lane, K_LANES), h_splat(h, j, K_LANES), "");
    mask[c] = LLVMBuildICmp(h->b, LLVMIntSLT, at, h_splat(h, left, K_LANES), "");
  }
  LLVMValueRef first = h_f32_at(h, to, h_times(h, j, p->k)), row = h_f32_at(h, from, j);
  h_loop l;
  LLVMValueRef k = h_loop_begin(h, &l, h_i64(h, 0), count);
  for (int c = 0; c < cols; c += K_LANES) {
    LLVMValueRef at = h_f32_at(h, row, h_plus(h, h_times(h, k, p->ld), c)), v;
    if (cols > width) h_prefetch(h, h_f32_at(h, at, h_i64(h, H_PACK_AHEAD * p->ld)));
    if (left) {
      LLVMTypeRef types[] = {vt, LLVMPointerTypeInContext(h->context, 0)};
      LLVMValueRef args[] = {at, LLVMConstInt(i32, 4, 0), mask[c / K_LANES], LLVMConstNull(vt)};
      v = h_intrinsic(h, "llvm.masked.load", types, 2, args, 4);
    } else {
      v = LLVMBuildLoad2(h->b, vt, at, "");
      LLVMSetAlignment(v, 4);
    }
    int64_t place = (int64_t)(c / width * width) * p->k + c % width;
    LLVMValueRef into = h_f32_at(h, first, h_plus(h, h_times(h, k, width), place));
    LLVMSetAlignment(LLVMBuildStore(h->b, v, into), 64);
  }
  h_loop_end(h, &l, 1);
}

static void some_panels(host *h, const h_panels *p, LLVMValueRef const *arg, LLVMValueRef j,
                        int cols, bool ragged) {
  LLVMValueRef left = ragged ? arg[2] : NULL;
  if (p->turned)
    turned_panel(h, p, arg[0], arg[1], j, cols, left);
  else
    straight_panels(h, p, arg[0], arg[1], j, cols, left, arg[3]);
}

// Panels that are there whole are read without masks, a band of several at a time where their
// columns are neighbours in memory: a row's cache lines are then read once, in order.
static void pack_all(host *h, const h_panels *p, LLVMValueRef const *arg) {
  int padded = (p->n + K_LANES - 1) / K_LANES * K_LANES, whole = padded / p->width * p->width;
  int sure = p->ragged ? whole : p->n / p->width * p->width;
  LLVMValueRef lo = h_i64(h, 0);
  LLVMTypeRef i64 = LLVMTypeOf(lo);
  h_loop l;
  int band = p->turned || skips(h->k->skip, SKIP_bands) ? p->width : H_PACK_COLS;
  for (int cols = band; cols; cols = cols > p->width ? p->width : 0) {
    LLVMValueRef c = h_i64(h, cols), end = h_i64(h, sure / cols * cols);
    if (p->ragged) {
      LLVMValueRef ends[] = {LLVMBuildMul(h->b, LLVMBuildSDiv(h->b, arg[2], c, ""), c, ""), end};
      end = h_intrinsic(h, "llvm.smin", &i64, 1, ends, 2);
    }
    LLVMValueRef j = h_loop_begin(h, &l, lo, end);
    some_panels(h, p, arg, j, cols, false);
    h_loop_end(h, &l, cols);
    lo = end;
  }
  if (p->ragged || sure < whole) {
    LLVMValueRef j = h_loop_begin(h, &l, lo, h_i64(h, whole));
    some_panels(h, p, arg, j, p->width, true);
    h_loop_end(h, &l, p->width);
  }
  for (int c = whole; c < padded; c += K_LANES)
    some_panels(h, p, arg, h_i64(h, c), K_LANES, p->ragged || c + K_LANES > p->n);
}

void h_pack(host *h, const h_panels *p, LLVMValueRef to, LLVMValueRef from, LLVMValueRef left_n,
            LLVMValueRef left_k) {
  char name[96];
  snprintf(name, sizeof name, "dsm.pack.%d.%d.%d.%lld.%d.%d", p->k, p->n, p->width,
           (long long)p->ld, p->turned, p->ragged);
  LLVMTypeRef type = h_inner_type(h, 2, 2);
  LLVMValueRef fn = h_helper(h, name, &type);
  if (!fn) {
    h_inner x;
    h_inner_open(h, &x, name, type, 2);
    fn = x.fn;
    LLVMValueRef arg[4];
    for (unsigned i = 0; i < 4; i++) arg[i] = LLVMGetParam(fn, i);
    pack_all(h, p, arg);
    h_inner_close(h, &x);
  }
  LLVMValueRef arg[] = {to, from, left_n ? left_n : h_i64(h, p->n),
                        left_k ? left_k : h_i64(h, p->k)};
  LLVMBuildCall2(h->b, type, fn, arg, 4, "");
}
