// The matrix micro-kernel: out[M, N] = acc[M, N] + a[M, K] b[K, N].
//
// A block of MR rows by NR vectors of sums stays in registers while k runs: per step NR loads of b,
// MR broadcasts of a, MR*NR fma. With 512-bit vectors 8 x 2 blocks (16 accumulators of 32
// registers), with 256-bit ones 6 x 1 (a 16-lane vector is two registers there). Blocking changes
// which sums are made at once, never the order within one: k ascending, one fma each.
//
// A dot of bf16 operands (k_stmt.storage) takes two k a step where the CPU has vdpbf16ps: elements
// of a and b are then 32-bit pairs (k, k+1), laid out by host_pairs.c. Elsewhere its operands are
// rounded on the stack, and the rest is as for f32.
//
// One internal function per set of extents and strides ("dsm.dot.64.64.128..."), shared by all
// kernels of the module. a may lie on the stack or in its buffer: the kernel only broadcasts its
// elements, so copying it would buy nothing. b must lie row by row: on the stack, turned there when
// it was transposed; or packed from its buffer into panels of the width that one block reads, which
// stay in the nearest caches while the rows of a go by. acc lies on the stack, where the sums stay,
// unless it is all zeros (then sums begin with none) or the next statement stores the result (then
// they go to that buffer: each block's stores drain while the next block is computed). A result
// that pointwise statements read and nobody else waits for them: their nest then asks for a band of
// rows at a time, which is still in the nearest cache when it reads them (struct h_band). Columns
// are padded to whole vectors: sums in the padding are never read.
#include <stdio.h>
#include <string.h>

#include "codegen/host.h"

typedef struct shape {
  int m, n, k;  // n in vectors of K_LANES; k in steps
  int cols;     // columns of the tile
  int64_t ldc, ldb, ldo;
  int64_t a_row, a_col;  // element (i, k) of a is at i*a_row + k*a_col
  int64_t a_strip;       // or, when not 0, rows lie in strips of 16: i/16*a_strip + i%16 + k*a_col
  bool panels;           // b lies in panels (host.h), else row by row, ldb apart
  bool ragged;           // of the m rows of a only some may be there
  bool fresh;            // acc is zeros
  bool direct;           // the result goes to a buffer, rows ldo apart
  bool ragged_cols;      // of which only some columns may be there
  bool pairs;            // bf16: steps are pairs of k, elements of a are 16 bits wide
  bool half;             // pairs: the last pair may have one half only
} shape;

// Arguments of the function: addresses, then numbers. HALF: 1 when after STEPS whole pairs one k is
// left.
enum { ACC, A, B, OUT, ROWS, STEPS, COLS, HALF, ARGS };

static LLVMTypeRef vector_type(host *h) {
  return LLVMVectorType(LLVMFloatTypeInContext(h->context), K_LANES);
}

// The address of a's row i (k = 0).
static LLVMValueRef row_of_a(host *h, const shape *s, LLVMValueRef a, LLVMValueRef i) {
  LLVMTypeRef e =
      s->pairs ? LLVMInt16TypeInContext(h->context) : LLVMFloatTypeInContext(h->context);
  if (!s->a_strip) return h_element(h, e, a, h_times(h, i, s->a_row));
  LLVMValueRef in = LLVMBuildAnd(h->b, i, h_i64(h, K_LANES - 1), "");
  LLVMValueRef strip = LLVMBuildSDiv(h->b, LLVMBuildSub(h->b, i, in, ""), h_i64(h, K_LANES), "");
  return h_element(h, e, a,
                   LLVMBuildAdd(h->b, h_times(h, strip, s->a_strip), h_times(h, in, s->a_row), ""));
}

// sum[] += a's rows at step k times b's vectors there. half: only the first k of the pair is there.
static void step(host *h, const shape *s, LLVMValueRef const *row, LLVMValueRef b_row,
                 LLVMValueRef k, LLVMValueRef const *sum, int mr, int nr, bool half) {
  LLVMTypeRef f = LLVMFloatTypeInContext(h->context), vt = vector_type(h);
  LLVMTypeRef i16 = LLVMInt16TypeInContext(h->context), i32 = LLVMInt32TypeInContext(h->context);
  LLVMTypeRef bf = LLVMVectorType(LLVMBFloatTypeInContext(h->context), 2 * K_LANES);
  LLVMValueRef b[4];
  for (int c = 0; c < nr; c++) {
    b[c] = LLVMBuildLoad2(h->b, s->pairs ? bf : vt, h_f32_at(h, b_row, h_i64(h, c * K_LANES)), "");
    LLVMSetAlignment(b[c], 64);
  }
  for (int r = 0; r < mr; r++) {
    LLVMValueRef at = h_element(h, s->pairs ? i16 : f, row[r], h_times(h, k, s->a_col));
    LLVMValueRef a = LLVMBuildLoad2(h->b, half ? i16 : s->pairs ? i32 : f, at, "");
    LLVMSetAlignment(a, s->pairs ? 2 : 4);
    if (half) a = LLVMBuildZExt(h->b, a, i32, "");
    a = h_splat(h, a, K_LANES);
    if (s->pairs) a = LLVMBuildBitCast(h->b, a, bf, "");
    for (int c = 0; c < nr; c++) {
      LLVMValueRef old = LLVMBuildLoad2(h->b, vt, sum[r * nr + c], "");
      LLVMValueRef args[] = {old, a, b[c]};
      LLVMValueRef next = s->pairs
                              ? h_intrinsic(h, "llvm.x86.avx512bf16.dpbf16ps.512", NULL, 0, args, 3)
                              : h_fma(h, a, b[c], old);
      LLVMBuildStore(h->b, next, sum[r * nr + c]);
    }
  }
}

// Where the block's columns are that exist: lanes of vector c, from column j.
static LLVMValueRef lanes_there(host *h, LLVMValueRef cols, LLVMValueRef j, int c) {
  LLVMValueRef lane[K_LANES];
  for (int i = 0; i < K_LANES; i++) lane[i] = h_i64(h, c * K_LANES + i);
  LLVMValueRef at = LLVMBuildAdd(h->b, LLVMConstVector(lane, K_LANES), h_splat(h, j, K_LANES), "");
  return LLVMBuildICmp(h->b, LLVMIntSLT, at, h_splat(h, cols, K_LANES), "");
}

// mr rows from i, nr vectors from column j (in elements). masked: some columns may not be there.
static void micro(host *h, const shape *s, LLVMValueRef const *arg, LLVMValueRef i, LLVMValueRef j,
                  int mr, int nr, bool masked) {
  LLVMTypeRef vt = vector_type(h);
  LLVMValueRef sum[32], row[32];
  for (int r = 0; r < mr; r++)
    for (int c = 0; c < nr; c++) {
      int x = r * nr + c;
      sum[x] = h_alloca(h, vt, 64);
      LLVMValueRef v = LLVMConstNull(vt);
      if (!s->fresh) {
        LLVMValueRef at =
            LLVMBuildAdd(h->b, h_times(h, h_plus(h, i, r), s->ldc), h_plus(h, j, c * K_LANES), "");
        v = LLVMBuildLoad2(h->b, vt, h_f32_at(h, arg[ACC], at), "");
        LLVMSetAlignment(v, 64);
      }
      LLVMBuildStore(h->b, v, sum[x]);
    }
  for (int r = 0; r < mr; r++) row[r] = row_of_a(h, s, arg[A], h_plus(h, i, r));
  LLVMValueRef col = h_f32_at(h, arg[B], s->panels ? h_times(h, j, s->k) : j);
  int64_t ldb = s->panels ? nr * K_LANES : s->ldb;
  h_loop l;
  LLVMValueRef k = h_loop_begin(h, &l, h_i64(h, 0), arg[STEPS]);
  step(h, s, row, h_f32_at(h, col, h_times(h, k, ldb)), k, sum, mr, nr, false);
  h_loop_end(h, &l, 1);
  if (s->half) {
    k = h_loop_begin(h, &l, arg[STEPS], LLVMBuildAdd(h->b, arg[STEPS], arg[HALF], ""));
    step(h, s, row, h_f32_at(h, col, h_times(h, k, ldb)), k, sum, mr, nr, true);
    h_loop_end(h, &l, 1);
  }
  int64_t ld = s->direct ? s->ldo : s->ldc;
  for (int x = 0; x < mr * nr; x++) {
    int r = x / nr, c = x % nr;
    LLVMValueRef at =
        LLVMBuildAdd(h->b, h_times(h, h_plus(h, i, r), ld), h_plus(h, j, c * K_LANES), "");
    LLVMValueRef v = LLVMBuildLoad2(h->b, vt, sum[x], "");
    LLVMValueRef to = h_f32_at(h, arg[s->direct ? OUT : ACC], at);
    if (masked) {
      LLVMTypeRef types[] = {vt, LLVMPointerTypeInContext(h->context, 0)};
      LLVMValueRef args[] = {v, to, LLVMConstInt(LLVMInt32TypeInContext(h->context), 4, 0),
                             lanes_there(h, arg[COLS], j, c)};
      h_intrinsic(h, "llvm.masked.store", types, 2, args, 4);
    } else {
      LLVMSetAlignment(LLVMBuildStore(h->b, v, to), s->direct ? 4 : 64);
    }
  }
}

typedef struct block {
  int mr, nr;  // rows and vectors at once
} block;

static block block_of(const host *h, int m) {
  // A few rows leave registers free: then more columns at once.
  if (m <= 4 && h->wide) return (block){m, 4};
  return h->wide ? (block){8, 2} : (block){6, 1};
}

static LLVMValueRef least(host *h, LLVMValueRef a, LLVMValueRef b) {
  LLVMTypeRef i64 = LLVMInt64TypeInContext(h->context);
  LLVMValueRef args[] = {a, b};
  return h_intrinsic(h, "llvm.smin", &i64, 1, args, 2);
}

// mr rows from i, column blocks from `lo` to `hi` (elements), nr vectors each.
static void blocks(host *h, const shape *s, LLVMValueRef const *arg, LLVMValueRef i,
                   LLVMValueRef lo, LLVMValueRef hi, int mr, int nr, bool masked) {
  h_loop l;
  LLVMValueRef j = h_loop_begin(h, &l, lo, hi);
  micro(h, s, arg, i, j, mr, nr, masked);
  h_loop_end(h, &l, nr * K_LANES);
}

// mr rows from i, all columns: blocks of which every column is stored, then those with a mask, then
// single vectors.
static void columns(host *h, const shape *s, LLVMValueRef const *arg, LLVMValueRef i, int mr) {
  int nr = block_of(h, s->m).nr, width = nr * K_LANES, whole = s->n / nr * width;
  bool limited = s->direct && s->ragged_cols;
  int sure = limited ? 0 : s->direct ? s->cols / width * width : whole;
  LLVMValueRef end = h_i64(h, sure);
  if (limited) {
    LLVMValueRef w = h_i64(h, width);
    end =
        least(h, LLVMBuildMul(h->b, LLVMBuildSDiv(h->b, arg[COLS], w, ""), w, ""), h_i64(h, whole));
  }
  if (whole) blocks(h, s, arg, i, h_i64(h, 0), end, mr, nr, false);
  if (sure < whole) blocks(h, s, arg, i, end, least(h, arg[COLS], h_i64(h, whole)), mr, nr, true);
  for (int j = whole; j < s->n * K_LANES; j += K_LANES)
    micro(h, s, arg, i, h_i64(h, j), mr, 1, s->direct && (limited || j + K_LANES > s->cols));
}

// All rows, a few at a time.
static void rows(host *h, const shape *s, LLVMValueRef const *arg) {
  h_loop l;
  int mr = block_of(h, s->m).mr;
  if (s->ragged) {
    LLVMValueRef whole =
        LLVMBuildMul(h->b, LLVMBuildSDiv(h->b, arg[ROWS], h_i64(h, mr), ""), h_i64(h, mr), "");
    LLVMValueRef i = h_loop_begin(h, &l, h_i64(h, 0), whole);
    columns(h, s, arg, i, mr);
    h_loop_end(h, &l, mr);
    i = h_loop_begin(h, &l, whole, arg[ROWS]);
    columns(h, s, arg, i, 1);
    h_loop_end(h, &l, 1);
    return;
  }
  int whole = s->m / mr * mr;
  if (whole == mr) {
    columns(h, s, arg, h_i64(h, 0), mr);
  } else if (whole) {
    LLVMValueRef i = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, whole));
    columns(h, s, arg, i, mr);
    h_loop_end(h, &l, mr);
  }
  if (s->m > whole) columns(h, s, arg, h_i64(h, whole), s->m - whole);
}

static void call_dot(host *h, const shape *s, LLVMValueRef *arg) {
  char name[192];
  snprintf(name, sizeof name, "dsm.dot%s.%d.%d.%d.%lld.%lld.%lld.%lld.%lld.%lld.%d%d%d%d%d%d",
           s->pairs ? ".bf16" : "", s->m, s->direct ? s->cols : s->n * K_LANES, s->k,
           (long long)s->ldc, (long long)s->a_row, (long long)s->a_col, (long long)s->a_strip,
           (long long)s->ldb, (long long)s->ldo, s->panels, s->ragged, s->fresh, s->direct,
           s->ragged_cols, s->half);
  LLVMTypeRef type = h_inner_type(h, ROWS, ARGS - ROWS);
  LLVMValueRef fn = h_helper(h, name, &type);
  if (!fn) {
    h_inner x;
    h_inner_open(h, &x, name, type, ROWS);
    fn = x.fn;
    LLVMValueRef p[ARGS];
    for (unsigned i = 0; i < ARGS; i++) p[i] = LLVMGetParam(fn, i);
    rows(h, s, p);
    h_inner_close(h, &x);
  }
  // What this shape does not use.
  if (!arg[ACC]) arg[ACC] = LLVMGetPoison(LLVMPointerTypeInContext(h->context, 0));
  if (!arg[OUT]) arg[OUT] = LLVMGetPoison(LLVMPointerTypeInContext(h->context, 0));
  if (!arg[COLS]) arg[COLS] = h_i64(h, s->cols);
  if (!arg[HALF]) arg[HALF] = h_i64(h, 0);
  LLVMBuildCall2(h->b, type, fn, arg, ARGS, "");
}

// ---- operands -----------------------------------------------------------------------------------

static int padded(int n) { return (n + K_LANES - 1) / K_LANES * K_LANES; }

static bool is_line(const k_value *v) { return v->rows == 1 || v->cols == 1; }

// The statements of a block between a load and its reader leave the buffer as it is.
static bool untouched_until(const k_stmt *load, const k_stmt *reader) {
  const k_block *b = load->parent;
  bool between = false;
  for (int i = 0; i < b->stmts.n; i++) {
    const k_stmt *s = b->stmts.at[i];
    if (s == reader) return between;
    if (s == load) between = true;
    if (!between) continue;
    if (s->code == K_FOR || s->code == K_IF) return false;
    if ((s->code == K_STORE || s->code == K_STORE_ADD) && s->access.buffer == load->access.buffer)
      return false;
  }
  return false;
}

bool h_stays_in_buffer(const host *h, const k_stmt *load) {
  const k_access *x = &load->access;
  const k_value *v = load->out[0];
  ir_dtype t = h->k->buffer[x->buffer].dtype;
  if (x->mask || x->offset || x->fill != 0 || skips(h->k->skip, SKIP_buffers)) return false;
  if (x->col_stride != 1 || x->row_stride < 1 || is_line(v)) return false;
  const k_value *read = v;
  if (v->uses.n == 1 && v->uses.at[0]->code == K_STAGE) read = v->uses.at[0]->out[0];
  if (read->uses.n != 1) return false;
  const k_stmt *dot = read->uses.at[0];
  if (dot->code != K_DOT || dot->parent != load->parent) return false;
  if (!untouched_until(load, dot)) return false;
  bool first = dot->in[1] == read;
  if (first == (dot->in[2] == read) || dot->in[0] == read) return false;
  if (dot->storage == DT_bf16) return h->bf16 && (t == DT_f32 || t == DT_bf16);
  if (t != DT_f32 || is_line(dot->out[0])) return false;
  // Turning reads whole vectors along k.
  return first || !dot->tb || (!x->col_limit && v->cols % K_LANES == 0);
}

// How many of `most` rows (columns) of a loaded operand there are: its limit, cut to 0 .. most.
static LLVMValueRef there(host *h, const k_value *limit, int most) {
  if (!limit) return h_i64(h, most);
  LLVMTypeRef i64 = LLVMInt64TypeInContext(h->context);
  LLVMValueRef low[] = {h->at[limit->id].v, h_i64(h, 0)};
  return least(h, h_intrinsic(h, "llvm.smax", &i64, 1, low, 2), h_i64(h, most));
}

static const k_value *limit_of(const h_value *v, bool rows_of) {
  if (v->kind != H_LOADED) return NULL;
  return rows_of ? v->load->access.row_limit : v->load->access.col_limit;
}

// b as rows along k, turned when it is not: [k, n].
static h_value rows_along_k(host *h, const k_value *b, h_value at, bool turned) {
  if (!turned || is_line(b)) return at;
  k_value shape_only = {.type = K_F32, .rows = b->cols, .cols = b->rows};
  h_value t = h_tile(h, &shape_only);
  h_turn(h, t.v, at.v, b->rows, b->cols, t.ld, at.ld);
  return t;
}

static h_value panels_of(host *h, const k_stmt *s, const h_value *b, int m) {
  const k_value *v = s->in[2];
  const k_value *n_limit = limit_of(b, s->tb), *k_limit = limit_of(b, !s->tb);
  h_panels p = {.k = s->tb ? v->cols : v->rows,
                .n = s->tb ? v->rows : v->cols,
                .width = block_of(h, m).nr * K_LANES,
                .ld = b->ld,
                .turned = s->tb,
                .ragged = n_limit != NULL};
  k_value shape_only = {.type = K_F32, .rows = p.k, .cols = p.n};
  h_value t = h_tile(h, &shape_only);
  h_pack(h, &p, t.v, b->v, n_limit ? there(h, n_limit, p.n) : NULL,
         k_limit ? there(h, k_limit, p.k) : NULL);
  return t;
}

// Rows of a buffer so many f32 apart (4 KiB) begin in the same set of the first-level cache: a
// block that reads a few floats of each would find none of them there again.
enum { SAME_SETS = 1024 };

// A first operand [K, M] in strips of 16 rows.
static LLVMValueRef strips_of(host *h, const k_stmt *s, const h_value *a) {
  const k_value *v = s->in[1];
  const k_value *m_limit = limit_of(a, false), *k_limit = limit_of(a, true);
  h_panels p = {
      .k = v->rows, .n = v->cols, .width = K_LANES, .ld = a->ld, .ragged = m_limit != NULL};
  k_value shape_only = {.type = K_F32, .rows = p.k, .cols = p.n};
  h_value t = h_tile(h, &shape_only);
  h_pack(h, &p, t.v, a->v, m_limit ? there(h, m_limit, p.n) : NULL,
         k_limit ? there(h, k_limit, p.k) : NULL);
  return t.v;
}

// ---- the statement ------------------------------------------------------------------------------

// The tile of an f32 dot's operand, rounded when the dot says so.
static h_value in_memory(host *h, const k_stmt *s, const k_value *v) {
  if (h->at[v->id].kind == H_LOADED) return h->at[v->id];
  h_value at = h_in_memory(h, v);
  return s->storage == DT_f32 ? at : h_round_tile(h, v, at, s->storage);
}

// A row times a column is one number. Both lie without gaps.
static void dot_of_lines(host *h, const k_stmt *s) {
  const k_value *acc = s->in[0], *a = s->in[1], *out = s->out[0];
  h_value pa = in_memory(h, s, a), pb = in_memory(h, s, s->in[2]);
  if (h->at[acc->id].kind == H_NONE) h_flush(h);
  LLVMTypeRef t = h_type(h, out->type, 1);
  LLVMValueRef sum = h_alloca(h, t, 0);
  LLVMBuildStore(h->b, h->at[acc->id].v, sum);
  h_loop l;
  LLVMValueRef i = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, s->ta ? a->rows : a->cols));
  LLVMValueRef x = LLVMBuildLoad2(h->b, t, h_element(h, t, pa.v, i), "");
  LLVMValueRef y = LLVMBuildLoad2(h->b, t, h_element(h, t, pb.v, i), "");
  LLVMBuildStore(h->b, h_fma(h, x, y, LLVMBuildLoad2(h->b, t, sum, "")), sum);
  h_loop_end(h, &l, 1);
  h->at[out->id] = (h_value){.kind = H_SCALAR, .v = LLVMBuildLoad2(h->b, t, sum, "")};
}

// The next statement, when it stores the result of this dot and nobody else reads it: rows of f32
// in a buffer that the dot does not read. m_limit: that of the first operand's rows.
static const k_stmt *stored_by(host *h, const k_stmt *s, const k_value *m_limit) {
  const k_value *out = s->out[0];
  if (out->uses.n != 1 || out->cols == 1 || skips(h->k->skip, SKIP_direct)) return NULL;
  const k_stmt *st = out->uses.at[0];
  if (st->code != K_STORE || st->parent != s->parent || st->seq != s->seq + 1) return NULL;
  const k_access *x = &st->access;
  if (h->k->buffer[x->buffer].dtype != DT_f32 || x->offset || x->mask || x->col_stride != 1)
    return NULL;
  // Of rows that a limit of a cuts off nothing is computed.
  if (m_limit && m_limit != x->row_limit) return NULL;
  for (int i = 1; i < 3; i++) {
    const h_value *v = &h->at[s->in[i]->id];
    if (v->kind == H_LOADED && v->load->access.buffer == x->buffer) return NULL;
  }
  return st;
}

// ---- results by bands ---------------------------------------------------------------------------

// A dot that waits: its shape and arguments, ACC and A for row 0.
struct h_band {
  const k_stmt *dot;
  shape d;
  LLVMValueRef arg[ARGS];
};

// Less than this stays in the first-level cache anyway.
enum { BANDED_ROWS = 64, BANDED_ELEMENTS = 8192 };

// Whether pointwise statements alone read the result of s, and nothing until the last of them may
// change what s reads or needs it done.
static bool may_wait(const host *h, const k_stmt *s) {
  const k_value *out = s->out[0];
  if (skips(h->k->skip, SKIP_near) || out->cols == 1 || out->rows < BANDED_ROWS ||
      out->rows * out->cols < BANDED_ELEMENTS || !out->uses.n)
    return false;
  int last = 0;
  for (int i = 0; i < out->uses.n; i++) {
    const k_stmt *u = out->uses.at[i];
    bool pointwise = u->code == K_SCALAR || u->code == K_FMA || u->code == K_CAST ||
                     u->code == K_STORE || u->code == K_STORE_ADD;
    if (!pointwise || u->parent != s->parent) return false;
    if (u->seq > last) last = u->seq;
  }
  bool behind = false;
  for (int i = 0; i < s->parent->stmts.n; i++) {
    const k_stmt *t = s->parent->stmts.at[i];
    if (behind) {
      if (t->code == K_FOR || t->code == K_IF || t->code == K_DOT || t->code == K_BARRIER)
        return false;
      for (int k = 1; k < 3 && (t->code == K_STORE || t->code == K_STORE_ADD); k++) {
        const h_value *v = &h->at[s->in[k]->id];
        if (v->kind == H_LOADED && v->load->access.buffer == t->access.buffer) return false;
      }
    }
    behind |= t == s;
    if (t->seq == last) return true;
  }
  return false;
}

// Rows i .. i + d->m - 1 of a waiting dot, into a tile whose rows are `ld` apart.
static void some_rows(host *h, const h_band *w, shape d, LLVMValueRef i, LLVMValueRef to,
                      int64_t ld) {
  LLVMValueRef arg[ARGS];
  memcpy(arg, w->arg, sizeof arg);
  bool partly = d.ragged || w->d.m % d.m;  // rows of the last band may be missing
  if (partly) {
    LLVMTypeRef i64 = LLVMInt64TypeInContext(h->context);
    LLVMValueRef left[] = {LLVMBuildSub(h->b, arg[ROWS], i, ""), h_i64(h, 0)};
    arg[ROWS] = least(h, h_intrinsic(h, "llvm.smax", &i64, 1, left, 2), h_i64(h, d.m));
  } else {
    arg[ROWS] = h_i64(h, d.m);
  }
  d.ragged = partly;
  d.direct = true, d.ldo = ld, d.cols = d.n * K_LANES;
  if (!d.fresh) arg[ACC] = h_f32_at(h, arg[ACC], h_times(h, i, d.ldc));
  arg[A] = row_of_a(h, &d, arg[A], i);
  arg[OUT] = to;
  arg[COLS] = NULL;
  call_dot(h, &d, arg);
}

void h_dot_band(host *h, const h_value *v, LLVMValueRef i) {
  shape d = v->band->d;
  d.m = H_BAND;
  some_rows(h, v->band, d, i, v->v, v->ld);
  h->done[v->band->dot->seq] = true;
}

bool h_dot_ragged(const h_value *v) { return v->band->d.ragged; }

void h_dot_whole(host *h, const k_value *v) {
  const h_band *w = h->at[v->id].band;
  h_value to = h_tile(h, v);
  h_value zero = {.kind = H_SCALAR, .v = h_number(h, K_F32, 1, 0)};
  if (w->d.ragged) h_copy(h, to, zero, v);
  some_rows(h, w, w->d, h_i64(h, 0), to.v, to.ld);
  h->at[v->id] = to;
  h->done[w->dot->seq] = true;
}

// Calls the dot, or leaves it to the nest that reads it.
static void run_dot(host *h, const k_stmt *s, const shape *d, LLVMValueRef *arg) {
  h_value *out = &h->at[s->out[0]->id];
  if (out->kind != H_BANDED) {
    call_dot(h, d, arg);
    return;
  }
  out->band = arena_new(h->arena, h_band, 1);
  out->band->dot = s;
  out->band->d = *d;
  memcpy(out->band->arg, arg, sizeof out->band->arg);
}

// Where the sums begin and end; fills in the shape's part of it.
static void place_sums(host *h, const k_stmt *s, const k_value *m_limit, shape *d,
                       LLVMValueRef *arg) {
  const k_value *acc = s->in[0], *out = s->out[0];
  const k_stmt *st = stored_by(h, s, m_limit);
  bool waits = !st && may_wait(h, s);
  h_value at = h->at[acc->id];
  d->fresh =
      at.kind == H_SCALAR && LLVMIsConstant(at.v) && LLVMIsNull(at.v) && (st || waits || !m_limit);
  if (st || waits) {
    h_value sums = d->fresh ? (h_value){0} : h_in_memory(h, acc);
    d->ldc = sums.ld;
    arg[ACC] = sums.v;
  }
  if (st) {
    const k_access *x = &st->access;
    d->direct = true;
    d->ldo = x->row_stride;
    d->ragged |= x->row_limit != NULL;
    d->ragged_cols = x->col_limit != NULL;
    arg[OUT] = h_f32_at(h, h->buf[x->buffer], x->base ? h->at[x->base->id].v : h_i64(h, 0));
    arg[ROWS] = there(h, x->row_limit, d->m);
    arg[COLS] = there(h, x->col_limit, d->cols);
    h->at[out->id] = (h_value){.kind = H_STORED};
    return;
  }
  if (waits) {
    const k_value few = {.type = K_F32, .rows = H_BAND, .cols = out->cols};
    arg[ROWS] = there(h, m_limit, d->m);
    h->at[out->id] = h_tile(h, &few);
    h->at[out->id].kind = H_BANDED;
    return;
  }
  h_value home = h_home(h, out, NULL);
  // In place when this is acc's only reader, unless acc belongs to a loop and the loop's next value
  // lives elsewhere: then the slot may be promised to it.
  bool own = at.kind == H_MEMORY && acc->uses.n == 1 && acc->block == s->parent &&
             (acc->def ? acc->def->code != K_STAGE : home.kind == H_MEMORY && home.v == at.v);
  h_value to = own ? at : home.kind == H_MEMORY ? home : h_tile(h, out);
  if (!d->fresh) h_copy(h, to, at, acc);
  d->ldc = out->cols == 1 ? padded(out->rows) : to.ld;
  arg[ACC] = to.v;
  arg[ROWS] = there(h, m_limit, d->m);
  h->at[out->id] = to;
}

// An operand of a bf16 dot; own_rows: its rows are the result's rows or columns, not k.
static h_operand operand_of(host *h, const k_value *v, bool own_rows) {
  h_value at = h->at[v->id];
  h_operand o = {.own = own_rows ? v->rows : v->cols, .k = own_rows ? v->cols : v->rows};
  if (at.kind == H_LOADED) {
    const k_access *x = &at.load->access;
    o.dtype = h->k->buffer[x->buffer].dtype;
    o.along_k = own_rows;
    o.own_limit = own_rows ? x->row_limit : x->col_limit;
    o.k_limit = own_rows ? x->col_limit : x->row_limit;
    if (o.own_limit) o.left_own = there(h, o.own_limit, o.own);
    if (o.k_limit) o.left_k = there(h, o.k_limit, o.k);
  } else {
    at = h_in_memory(h, v);
    o.dtype = DT_f32;
    o.along_k = is_line(v) ? o.own == 1 : own_rows;  // a line lies without gaps
  }
  o.at = at.v, o.ld = at.ld;
  return o;
}

// A bf16 dot by pairs of k.
static void dot_of_pairs(host *h, const k_stmt *s) {
  const k_value *out = s->out[0];
  h_operand a = operand_of(h, s->in[1], !s->ta), b = operand_of(h, s->in[2], s->tb);
  shape d = {.panels = true, .pairs = true, .k = h_pair_steps(a.k)};
  LLVMValueRef arg[ARGS] = {0};
  if (out->cols == 1) {
    // A column of acc lies like a row: compute it as b' a'.
    h_operand t = a;
    a = b, b = t;
  }
  d.m = a.own, d.cols = b.own, d.n = padded(b.own) / K_LANES;
  d.ragged = a.left_own != NULL;
  bool one = out->rows == 1 && out->cols == 1;
  if (one) {
    h_value sum = h_in_memory(h, s->in[0]);
    arg[ACC] = sum.v, arg[ROWS] = h_i64(h, 1), d.ldc = K_LANES;
  } else {
    place_sums(h, s, a.own_limit, &d, arg);
  }
  LLVMValueRef k =
      least(h, a.left_k ? a.left_k : h_i64(h, a.k), b.left_k ? b.left_k : h_i64(h, b.k));
  if (a.left_k || b.left_k) a.left_k = b.left_k = k;
  d.half = a.k % 2 || a.left_k;
  LLVMValueRef two = h_i64(h, 2);
  arg[A] = a.at;
  if (a.along_k && a.dtype == DT_bf16) {
    d.a_row = a.ld, d.a_col = 2;
    arg[STEPS] = LLVMBuildSDiv(h->b, k, two, "");
    arg[HALF] = LLVMBuildSRem(h->b, k, two, "");
  } else {
    d.half = false;  // laid with zeros
    arg[STEPS] = LLVMBuildSDiv(h->b, h_plus(h, k, 1), two, "");
    if (a.along_k) {
      arg[A] = h_pair_rows(h, &a);
      d.a_row = 2 * d.k, d.a_col = 2;
    } else {
      arg[A] = h_pair_panels(h, &a, K_LANES);
      d.a_row = 2, d.a_col = 2 * K_LANES, d.a_strip = (int64_t)2 * K_LANES * d.k;
    }
  }
  arg[B] = h_pair_panels(h, &b, block_of(h, d.m).nr * K_LANES);
  run_dot(h, s, &d, arg);
  if (one) {
    LLVMValueRef sum = LLVMBuildLoad2(h->b, h_type(h, K_F32, 1), arg[ACC], "");
    h->at[out->id] = (h_value){.kind = H_SCALAR, .v = sum};
  }
}

void h_dot(host *h, const k_stmt *s) {
  const k_value *a = s->in[1], *b = s->in[2], *out = s->out[0];
  if (s->storage == DT_bf16 && h->bf16) {
    dot_of_pairs(h, s);
    return;
  }
  if (out->rows == 1 && out->cols == 1) {
    dot_of_lines(h, s);
    return;
  }
  h_value pa = in_memory(h, s, a), pb = in_memory(h, s, b);
  shape d = {.k = s->ta ? a->rows : a->cols};
  LLVMValueRef arg[ARGS] = {0};
  arg[STEPS] = h_i64(h, d.k);
  if (out->cols == 1) {
    // A column of acc lies like a row: compute it as b' a'.
    h_value turned = rows_along_k(h, a, pa, !s->ta);
    d.m = 1, d.cols = out->rows, d.n = padded(out->rows) / K_LANES;
    d.ldb = padded(out->rows);
    d.a_row = 0, d.a_col = 1;
    arg[A] = pb.v, arg[B] = turned.v;
    place_sums(h, s, NULL, &d, arg);
  } else {
    d.m = out->rows, d.cols = out->cols, d.n = padded(out->cols) / K_LANES;
    d.ldb = padded(out->cols);
    d.panels = pb.kind == H_LOADED;
    int64_t ld = a->cols == 1 ? 1 : pa.ld;  // of a column's elements there are no gaps
    d.a_row = s->ta ? 1 : ld, d.a_col = s->ta ? ld : 1;
    // Beyond a's limits it is zero: those products add nothing.
    const k_value *m_limit = limit_of(&pa, !s->ta), *k_limit = limit_of(&pa, s->ta);
    d.ragged = m_limit != NULL;
    place_sums(h, s, m_limit, &d, arg);
    h_value rows_of_b = d.panels ? panels_of(h, s, &pb, d.m) : rows_along_k(h, b, pb, s->tb);
    arg[A] = pa.v, arg[B] = rows_of_b.v;
    if (s->ta && pa.kind == H_LOADED && d.m >= 64 && pa.ld % SAME_SETS == 0 &&
        !skips(h->k->skip, SKIP_strips)) {
      arg[A] = strips_of(h, s, &pa);
      d.a_row = 1, d.a_col = K_LANES, d.a_strip = (int64_t)K_LANES * d.k;
    }
    arg[STEPS] = least(h, there(h, k_limit, d.k), there(h, limit_of(&pb, !s->tb), d.k));
  }
  run_dot(h, s, &d, arg);
}
