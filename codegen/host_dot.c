// The matrix micro-kernel: acc[M, N] += a[M, K] b[K, N].
//
// A block of MR rows by NR vectors of acc stays in registers while k runs: per step NR loads of b,
// MR broadcasts of a, MR*NR fma. With 512-bit vectors 8 x 2 blocks (16 accumulators of 32
// registers), with 256-bit ones 6 x 1 (a 16-lane vector is two registers there). Blocking changes
// which sums are made at once, never the order within one: k ascending, one fma each.
//
// One internal function per set of extents and strides ("dsm.dot.64.64.128..."), shared by all
// kernels of the module. acc lies on the stack. a may lie on the stack or in its buffer: the kernel
// only broadcasts its elements, so copying it would buy nothing. b must lie row by row: on the
// stack, turned there when it was transposed; or packed from its buffer into panels of the width
// that one block reads, which stay in the first-level cache while the rows of a go by.
// Columns are padded to whole vectors: sums in the padding are never read.
#include <stdio.h>

#include "codegen/host.h"

typedef struct shape {
  int m, n, k;  // n in vectors of K_LANES
  int64_t ldc, ldb;
  int64_t a_row, a_col;  // element (i, k) of a is at i*a_row + k*a_col
  bool panels;           // b lies in panels (host.h), else row by row, ldb apart
  bool ragged;           // of the m rows of a only some may be there
} shape;

enum { ACC, A, B, ROWS, STEPS };  // arguments of the function: three addresses, two numbers

// mr rows from i, nr vectors from column j (in elements).
static void micro(host *h, const shape *s, LLVMValueRef const *arg, LLVMValueRef i, LLVMValueRef j,
                  int mr, int nr) {
  LLVMTypeRef f = LLVMFloatTypeInContext(h->context), vt = LLVMVectorType(f, K_LANES);
  LLVMValueRef sum[32], place[32];
  for (int r = 0; r < mr; r++)
    for (int c = 0; c < nr; c++) {
      int x = r * nr + c;
      LLVMValueRef at =
          LLVMBuildAdd(h->b, h_times(h, h_plus(h, i, r), s->ldc), h_plus(h, j, c * K_LANES), "");
      place[x] = h_f32_at(h, arg[ACC], at);
      sum[x] = h_alloca(h, vt, 64);
      LLVMValueRef v = LLVMBuildLoad2(h->b, vt, place[x], "");
      LLVMSetAlignment(v, 64);
      LLVMBuildStore(h->b, v, sum[x]);
    }
  LLVMValueRef row[32];
  for (int r = 0; r < mr; r++) row[r] = h_f32_at(h, arg[A], h_times(h, h_plus(h, i, r), s->a_row));
  LLVMValueRef col = h_f32_at(h, arg[B], s->panels ? h_times(h, j, s->k) : j);
  int64_t ldb = s->panels ? nr * K_LANES : s->ldb;
  h_loop l;
  LLVMValueRef k = h_loop_begin(h, &l, h_i64(h, 0), arg[STEPS]);
  LLVMValueRef b[4];
  for (int c = 0; c < nr; c++) {
    b[c] =
        LLVMBuildLoad2(h->b, vt, h_f32_at(h, col, h_plus(h, h_times(h, k, ldb), c * K_LANES)), "");
    LLVMSetAlignment(b[c], 64);
  }
  for (int r = 0; r < mr; r++) {
    LLVMValueRef a = LLVMBuildLoad2(h->b, f, h_f32_at(h, row[r], h_times(h, k, s->a_col)), "");
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
  h_loop l;
  if (s->ragged) {
    LLVMValueRef whole =
        LLVMBuildMul(h->b, LLVMBuildSDiv(h->b, arg[ROWS], h_i64(h, mr), ""), h_i64(h, mr), "");
    LLVMValueRef i = h_loop_begin(h, &l, h_i64(h, 0), whole);
    micro(h, s, arg, i, j, mr, nr);
    h_loop_end(h, &l, mr);
    i = h_loop_begin(h, &l, whole, arg[ROWS]);
    micro(h, s, arg, i, j, 1, nr);
    h_loop_end(h, &l, 1);
    return;
  }
  int whole = s->m / mr * mr;
  if (whole == mr) {
    micro(h, s, arg, h_i64(h, 0), j, mr, nr);
  } else if (whole) {
    LLVMValueRef i = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, whole));
    micro(h, s, arg, i, j, mr, nr);
    h_loop_end(h, &l, mr);
  }
  if (s->m > whole) micro(h, s, arg, h_i64(h, whole), j, s->m - whole, nr);
}

typedef struct block {
  int mr, nr;  // rows and vectors at once
} block;

static block block_of(const host *h, int m) {
  // A few rows leave registers free: then more columns at once.
  if (m <= 4 && h->wide) return (block){m, 4};
  return h->wide ? (block){8, 2} : (block){6, 1};
}

static void call_dot(host *h, const shape *s, LLVMValueRef *arg) {
  char name[128];
  snprintf(name, sizeof name, "dsm.dot.%d.%d.%d.%lld.%lld.%lld.%lld.%d.%d", s->m, s->n, s->k,
           (long long)s->ldc, (long long)s->a_row, (long long)s->a_col, (long long)s->ldb,
           s->panels, s->ragged);
  LLVMTypeRef type = h_inner_type(h, 3, 2);
  LLVMValueRef fn = h_helper(h, name, &type);
  if (!fn) {
    h_inner x;
    h_inner_open(h, &x, name, type, 3);
    fn = x.fn;
    LLVMValueRef p[5];
    for (unsigned i = 0; i < 5; i++) p[i] = LLVMGetParam(fn, i);
    block b = block_of(h, s->m);
    int whole = s->n / b.nr * b.nr;
    if (whole) {
      h_loop l;
      LLVMValueRef j = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, whole * K_LANES));
      rows(h, s, p, j, b.mr, b.nr);
      h_loop_end(h, &l, b.nr * K_LANES);
    }
    for (int j = whole; j < s->n; j++) rows(h, s, p, h_i64(h, j * K_LANES), b.mr, 1);
    h_inner_close(h, &x);
  }
  LLVMBuildCall2(h->b, type, fn, arg, 5, "");
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
  if (h->k->buffer[x->buffer].dtype != DT_f32 || x->mask || x->offset || x->fill != 0) return false;
  if (x->col_stride != 1 || x->row_stride < 1 || is_line(v)) return false;
  const k_value *read = v;
  if (v->uses.n == 1 && v->uses.at[0]->code == K_STAGE) read = v->uses.at[0]->out[0];
  if (read->uses.n != 1) return false;
  const k_stmt *dot = read->uses.at[0];
  if (dot->code != K_DOT || dot->parent != load->parent || is_line(dot->out[0])) return false;
  if (!untouched_until(load, dot)) return false;
  if (dot->in[1] == read) return dot->in[0] != read && dot->in[2] != read;
  // Turning reads whole vectors along k.
  return dot->in[2] == read && dot->in[0] != read &&
         (!dot->tb || (!x->col_limit && v->cols % K_LANES == 0));
}

static LLVMValueRef least(host *h, LLVMValueRef a, LLVMValueRef b) {
  LLVMTypeRef i64 = LLVMInt64TypeInContext(h->context);
  LLVMValueRef args[] = {a, b};
  return h_intrinsic(h, "llvm.smin", &i64, 1, args, 2);
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

// ---- the statement ------------------------------------------------------------------------------

// A row times a column is one number. Both lie without gaps.
static void dot_of_lines(host *h, const k_stmt *s) {
  const k_value *acc = s->in[0], *a = s->in[1], *out = s->out[0];
  h_value pa = h_in_memory(h, a), pb = h_in_memory(h, s->in[2]);
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

// Where the sums are: acc's own tile when nobody else needs it.
static h_value place_acc(host *h, const k_stmt *s) {
  const k_value *acc = s->in[0], *out = s->out[0];
  h_value at = h->at[acc->id], home = h_home(h, out, NULL);
  // In place when this is acc's only reader, unless acc belongs to a loop and the loop's next value
  // lives elsewhere: then the slot may be promised to it.
  bool own = at.kind == H_MEMORY && acc->uses.n == 1 && acc->block == s->parent &&
             (acc->def ? acc->def->code != K_STAGE : home.kind == H_MEMORY && home.v == at.v);
  h_value to = own ? at : home.kind == H_MEMORY ? home : h_tile(h, out);
  h_copy(h, to, at, acc);
  h->at[out->id] = to;
  return to;
}

void h_dot(host *h, const k_stmt *s) {
  const k_value *a = s->in[1], *b = s->in[2], *out = s->out[0];
  if (out->rows == 1 && out->cols == 1) {
    dot_of_lines(h, s);
    return;
  }
  h_value pa = h->at[a->id], pb = h->at[b->id];
  if (pa.kind != H_LOADED) pa = h_in_memory(h, a);
  if (pb.kind != H_LOADED) pb = h_in_memory(h, b);
  h_value to = place_acc(h, s);
  shape d = {.k = s->ta ? a->rows : a->cols};
  LLVMValueRef arg[5] = {to.v};
  arg[STEPS] = h_i64(h, d.k);
  if (out->cols == 1) {
    // A column of acc lies like a row: compute it as b' a'.
    h_value turned = rows_along_k(h, a, pa, !s->ta);
    d.m = 1, d.n = padded(out->rows) / K_LANES;
    d.ldc = padded(out->rows), d.ldb = padded(out->rows);
    d.a_row = 0, d.a_col = 1;
    arg[A] = pb.v, arg[B] = turned.v, arg[ROWS] = h_i64(h, 1);
  } else {
    d.m = out->rows, d.n = padded(out->cols) / K_LANES;
    d.ldc = to.ld, d.ldb = padded(out->cols);
    d.panels = pb.kind == H_LOADED;
    h_value rows_of_b = d.panels ? panels_of(h, s, &pb, d.m) : rows_along_k(h, b, pb, s->tb);
    int64_t ld = a->cols == 1 ? 1 : pa.ld;  // of a column's elements there are no gaps
    d.a_row = s->ta ? 1 : ld, d.a_col = s->ta ? ld : 1;
    // Beyond a's limits it is zero: those products add nothing.
    const k_value *m_limit = limit_of(&pa, !s->ta), *k_limit = limit_of(&pa, s->ta);
    d.ragged = m_limit != NULL;
    arg[A] = pa.v, arg[B] = rows_of_b.v, arg[ROWS] = there(h, m_limit, d.m);
    arg[STEPS] = least(h, there(h, k_limit, d.k), there(h, limit_of(&pb, !s->tb), d.k));
  }
  call_dot(h, &d, arg);
}
