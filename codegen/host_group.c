// Pointwise statements over one tile shape become one loop nest: rows outside, columns in vectors
// inside, every intermediate in registers. Only what other statements read is stored to the stack.
//
//   for r: for c in steps of 16:  a = load ..; b = exp(a); part += b; tile[r][c] = b
//          sum[r] = tree(part)
//
// Which statements go together is codegen/group.h's; a group's key is its tiles' rows and columns.
#include <string.h>

#include "codegen/host.h"

void h_group_add(host *h, k_stmt *s) {
  const k_value *shape = k_group_shape(s);
  k_group_add(h->arena, &h->pending, s, shape->rows, shape->cols, NULL, NULL);
}

// ---- one nest ----------------------------------------------------------------------------------

// What is known while the inside of a nest is made.
typedef struct nest {
  host *h;
  k_group *g;
  h_lanes at;
  bool linear;        // the tile is a column: vectors run along rows
  LLVMValueRef *vec;  // by value id: its vector in this chunk
  int *stamp, now;
  LLVMValueRef *row_vec;  // by value id: a column's element of this row, repeated
  int *row_stamp, row_now;
  LLVMBasicBlockRef row_block;
  h_value *to;                  // by value id: tile its vectors are stored to
  LLVMValueRef *part;           // by value id: partials of a reduction
  VEC(const k_value *) banded;  // results of dots that are computed a band of rows at a time
  LLVMValueRef band;            // the first row of this one
} nest;

// Reads from a tile on the stack at element `index`, `lanes` wide.
static LLVMValueRef read_tile(host *h, h_value t, k_type type, LLVMValueRef index, int lanes) {
  LLVMTypeRef e = h_stack_type(h, type);
  LLVMTypeRef vt = lanes == 1 ? e : LLVMVectorType(e, (unsigned)lanes);
  LLVMValueRef v = LLVMBuildLoad2(h->b, vt, h_element(h, e, t.v, index), "");
  LLVMSetAlignment(v, type == K_I64 ? 8 : type == K_BOOL ? 1 : 4);
  return type == K_BOOL ? LLVMBuildTrunc(h->b, v, h_type(h, K_BOOL, lanes), "") : v;
}

static void write_tile(host *h, h_value t, k_type type, LLVMValueRef index, LLVMValueRef v,
                       int lanes) {
  LLVMTypeRef e = h_stack_type(h, type);
  if (type == K_BOOL)
    v = LLVMBuildZExt(h->b, v, lanes == 1 ? e : LLVMVectorType(e, (unsigned)lanes), "");
  LLVMValueRef st = LLVMBuildStore(h->b, v, h_element(h, e, t.v, index));
  LLVMSetAlignment(st, type == K_I64 ? 8 : type == K_BOOL ? 1 : 4);
}

static LLVMValueRef tile_index(host *h, h_value t, LLVMValueRef r, LLVMValueRef c) {
  return LLVMBuildAdd(h->b, LLVMBuildMul(h->b, r, h_i64(h, t.ld), ""), c, "");
}

// The vector of v at this chunk.
static LLVMValueRef get(nest *n, const k_value *v) {
  host *h = n->h;
  if (n->stamp[v->id] == n->now) return n->vec[v->id];
  LLVMValueRef x;
  h_value at = h->at[v->id];
  IR_CHECK(at.kind != H_NONE);
  if (at.kind == H_SCALAR) {
    x = h_splat(h, at.v, n->at.lanes);
  } else if (n->linear) {
    x = read_tile(h, at, v->type, n->at.r, n->at.lanes);
  } else if (v->cols == 1) {
    // One element per row: read it where the row starts.
    if (n->row_stamp[v->id] != n->row_now) {
      LLVMBasicBlockRef here = LLVMGetInsertBlock(h->b);
      LLVMValueRef end = n->row_block == here ? NULL : LLVMGetBasicBlockTerminator(n->row_block);
      if (end) LLVMPositionBuilderBefore(h->b, end);
      n->row_vec[v->id] = h_splat(h, read_tile(h, at, v->type, n->at.r, 1), n->at.lanes);
      n->row_stamp[v->id] = n->row_now;
      LLVMPositionBuilderAtEnd(h->b, here);
    }
    return n->row_vec[v->id];
  } else {
    LLVMValueRef r = v->rows == 1 ? h_i64(h, 0) : n->at.r;
    if (at.kind == H_BANDED) r = LLVMBuildSub(h->b, r, n->band, "");
    x = read_tile(h, at, v->type, tile_index(h, at, r, n->at.c), n->at.lanes);
  }
  n->vec[v->id] = x;
  n->stamp[v->id] = n->now;
  return x;
}

static void set(nest *n, const k_value *v, LLVMValueRef x) {
  n->vec[v->id] = x;
  n->stamp[v->id] = n->now;
}

// Lane numbers 0, 1, 2, ... of type t, plus `from`.
static LLVMValueRef count_from(host *h, k_type t, LLVMValueRef from, int lanes) {
  LLVMTypeRef e = h_type(h, t, 1);
  LLVMValueRef lane[K_LANES];
  for (int i = 0; i < lanes; i++) lane[i] = LLVMConstInt(e, (unsigned)i, 0);
  LLVMValueRef start = LLVMBuildTrunc(h->b, from, e, "");
  if (t == K_F32) IR_BUG("iota of integers");
  if (lanes == 1) return start;
  return LLVMBuildAdd(h->b, h_splat(h, start, lanes), LLVMConstVector(lane, (unsigned)lanes), "");
}

static LLVMValueRef table_vector(nest *n, const k_stmt *s) {
  host *h = n->h;
  int count = s->out[0]->rows * s->out[0]->cols, room = (count + K_LANES - 1) / K_LANES * K_LANES;
  LLVMTypeRef f = LLVMFloatTypeInContext(h->context);
  LLVMValueRef *v = arena_new(h->arena, LLVMValueRef, room);
  for (int i = 0; i < room; i++) v[i] = LLVMConstReal(f, i < count ? (double)s->table[i] : 0);
  LLVMValueRef all = LLVMConstArray2(f, v, (uint64_t)room);
  LLVMValueRef g = LLVMAddGlobal(h->module, LLVMTypeOf(all), "table");
  LLVMSetInitializer(g, all);
  LLVMSetGlobalConstant(g, 1);
  LLVMSetLinkage(g, LLVMInternalLinkage);
  LLVMSetAlignment(g, 64);
  return read_tile(h, (h_value){.kind = H_MEMORY, .v = g}, K_F32, n->linear ? n->at.r : n->at.c,
                   n->at.lanes);
}

// Does the tile change from lane to lane of a vector?
static bool varies(const nest *n, const k_value *v) { return (n->linear ? v->rows : v->cols) > 1; }

static h_lanes access_lanes(nest *n, const k_access *x) {
  host *h = n->h;
  h_lanes at = n->at;
  if (x->offset) {
    at.offset_varies = varies(n, x->offset);
    h_value o = h->at[x->offset->id];
    if (at.offset_varies || n->stamp[x->offset->id] == n->now) {
      at.offset = get(n, x->offset);
      at.offset_varies = true;
    } else {
      at.offset = o.kind == H_SCALAR ? o.v : read_tile(h, o, K_I64, n->at.r, 1);
    }
  }
  if (x->mask) at.mask = get(n, x->mask);
  return at;
}

static LLVMValueRef tail_mask(host *h, const h_lanes *at) {
  LLVMTypeRef i1 = LLVMInt1TypeInContext(h->context);
  LLVMValueRef m[K_LANES];
  for (int i = 0; i < at->lanes; i++) m[i] = LLVMConstInt(i1, i < at->valid, 0);
  return at->lanes == 1 ? m[0] : LLVMConstVector(m, (unsigned)at->lanes);
}

static LLVMValueRef neutral(host *h, const k_stmt *s, int lanes) {
  k_type t = s->in[0]->type;
  if (s->op == IR_add) return h_number(h, t, lanes, 0);
  return h_number(h, t, lanes,
                  t == K_F32   ? -__builtin_inf()
                  : t == K_I32 ? -2147483648.0
                               : -9223372036854775808.0);
}

static void reduce_chunk(nest *n, const k_stmt *s) {
  host *h = n->h;
  int lanes = n->at.lanes;
  LLVMValueRef v = get(n, s->in[0]);
  k_type t = s->in[0]->type;
  if (s->axis == 1 || n->linear) {
    if (n->at.valid < lanes)
      v = LLVMBuildSelect(h->b, tail_mask(h, &n->at), v, neutral(h, s, lanes), "");
    LLVMValueRef part = n->part[s->out[0]->id];
    LLVMValueRef old = LLVMBuildLoad2(h->b, h_type(h, t, lanes), part, "");
    LLVMBuildStore(h->b, h_scalar(h, s->op, t, lanes, old, v, NULL), part);
  } else {
    h_value to = n->to[s->out[0]->id];
    LLVMValueRef old = read_tile(h, to, t, n->at.c, lanes);
    write_tile(h, to, t, n->at.c, h_scalar(h, s->op, t, lanes, old, v, NULL), lanes);
  }
}

static void chunk_stmt(nest *n, const k_stmt *s) {
  host *h = n->h;
  int lanes = n->at.lanes;
  const k_value *out = s->nout ? s->out[0] : NULL;
  LLVMValueRef in[3] = {0};
  if (k_pointwise(s))
    for (int i = 0; i < s->nin; i++) in[i] = get(n, s->in[i]);
  switch (s->code) {
    case K_SCALAR:
      set(n, out, h_scalar(h, s->op, s->in[s->op == IR_where]->type, lanes, in[0], in[1], in[2]));
      break;
    case K_FMA: set(n, out, h_fma(h, in[0], in[1], in[2])); break;
    case K_CAST: {
      LLVMValueRef v = h_cast(h, in[0], s->in[0]->type, out->type, lanes);
      set(n, out, h_widen(h, h_narrow(h, v, s->storage, lanes), s->storage, lanes));
      break;
    }
    case K_SPREAD: set(n, out, in[0]); break;
    case K_KEY: set(n, out, h_key(h, s->i, lanes, in[0])); break;
    case K_DRAW: set(n, out, h_draw(h, (uint32_t)s->i, s->in[1]->type, lanes, in[0], in[1])); break;
    case K_TABLE: set(n, out, table_vector(n, s)); break;
    case K_IOTA: set(n, out, count_from(h, out->type, n->linear ? n->at.r : n->at.c, lanes)); break;
    case K_LOAD: {
      h_lanes at = access_lanes(n, &s->access);
      set(n, out, h_load(h, &s->access, &at));
      break;
    }
    case K_STORE:
    case K_STORE_ADD: {
      LLVMValueRef v = get(n, s->in[0]);
      h_lanes at = access_lanes(n, &s->access);
      h_store(h, &s->access, &at, v, s->code == K_STORE_ADD);
      break;
    }
    case K_REDUCE: reduce_chunk(n, s); break;
    default: IR_BUG("statement %d in a nest", s->seq);
  }
}

static void chunk(nest *n, LLVMValueRef from, int valid) {
  n->now++;
  *(n->linear ? &n->at.r : &n->at.c) = from;
  n->at.valid = valid;
  for (int i = 0; i < n->g->stmts.n; i++) chunk_stmt(n, n->g->stmts.at[i]);
  // Tiles are written last: an in-place one may have been read by any statement of the chunk.
  for (int i = 0; i < n->g->stmts.n; i++) {
    const k_stmt *s = n->g->stmts.at[i];
    if (s->code == K_REDUCE || !s->nout) continue;
    h_value to = n->to[s->out[0]->id];
    if (to.kind == H_MEMORY)
      write_tile(n->h, to, s->out[0]->type,
                 n->linear ? n->at.r : tile_index(n->h, to, n->at.r, n->at.c),
                 n->vec[s->out[0]->id], n->at.lanes);
  }
}

// The vectors of one row: a few are written out, many are a loop with the rest behind it.
static void row(nest *n, int length) {
  host *h = n->h;
  int lanes = n->at.lanes, whole = length / lanes, rest = length % lanes;
  n->row_now++;
  n->row_block = LLVMGetInsertBlock(h->b);
  int unrolled = n->g->stmts.n > 24 ? 2 : 4;
  if (whole + (rest > 0) <= unrolled) {
    for (int i = 0; i < whole; i++) chunk(n, h_i64(h, (int64_t)i * lanes), lanes);
  } else {
    h_loop l;
    LLVMValueRef c = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, (int64_t)whole * lanes));
    chunk(n, c, lanes);
    h_loop_end(h, &l, lanes);
  }
  if (rest) chunk(n, h_i64(h, (int64_t)whole * lanes), rest);
}

// The partials of a reduction as one number: a fixed tree of halves.
static LLVMValueRef tree(host *h, const k_stmt *s, LLVMValueRef v, int lanes) {
  LLVMTypeRef i32 = LLVMInt32TypeInContext(h->context);
  for (int half = lanes / 2; half >= 1; half /= 2) {
    LLVMValueRef lo[K_LANES], hi[K_LANES];
    for (int i = 0; i < half; i++) {
      lo[i] = LLVMConstInt(i32, (unsigned)i, 0);
      hi[i] = LLVMConstInt(i32, (unsigned)(i + half), 0);
    }
    LLVMValueRef a, b;
    if (half == 1) {
      a = LLVMBuildExtractElement(h->b, v, lo[0], "");
      b = LLVMBuildExtractElement(h->b, v, hi[0], "");
    } else {
      a = LLVMBuildShuffleVector(h->b, v, v, LLVMConstVector(lo, (unsigned)half), "");
      b = LLVMBuildShuffleVector(h->b, v, v, LLVMConstVector(hi, (unsigned)half), "");
    }
    v = h_scalar(h, s->op, s->in[0]->type, half, a, b, NULL);
  }
  return v;
}

// Before the nest: tiles for what others read, cleared partials.
static void prepare(nest *n) {
  host *h = n->h;
  for (int i = 0; i < n->g->stmts.n; i++) {
    const k_stmt *s = n->g->stmts.at[i];
    if (!s->nout) continue;
    const k_value *v = s->out[0];
    bool scalar = v->rows == 1 && v->cols == 1;
    if (!scalar && k_group_read_outside(n->g, v)) {
      h_value home = h_home(h, v, n->g);
      n->to[v->id] = home.kind == H_MEMORY ? home : h_tile(h, v);
    }
    if (s->code != K_REDUCE) continue;
    if (s->axis == 1 || n->linear) {
      n->part[v->id] = h_alloca(h, h_type(h, v->type, n->at.lanes), 64);
    } else {
      h_value zero = {.kind = H_SCALAR, .v = neutral(h, s, 1)};
      if (n->to[v->id].kind != H_MEMORY) n->to[v->id] = h_tile(h, v);
      h_copy(h, n->to[v->id], zero, v);
    }
  }
}

static void clear_partials(nest *n) {
  for (int i = 0; i < n->g->stmts.n; i++) {
    const k_stmt *s = n->g->stmts.at[i];
    if (s->code == K_REDUCE && n->part[s->out[0]->id])
      LLVMBuildStore(n->h->b, neutral(n->h, s, n->at.lanes), n->part[s->out[0]->id]);
  }
}

// After a row: reductions of it. With a single row the result is a scalar.
static void finish_partials(nest *n, bool single) {
  host *h = n->h;
  for (int i = 0; i < n->g->stmts.n; i++) {
    const k_stmt *s = n->g->stmts.at[i];
    if (s->code != K_REDUCE || !n->part[s->out[0]->id]) continue;
    const k_value *v = s->out[0];
    LLVMValueRef part = LLVMBuildLoad2(h->b, h_type(h, v->type, n->at.lanes), n->part[v->id], "");
    LLVMValueRef x = tree(h, s, part, n->at.lanes);
    if (single) {
      h->at[v->id] = (h_value){.kind = H_SCALAR, .v = x};
    } else if (n->to[v->id].kind == H_MEMORY) {
      write_tile(h, n->to[v->id], v->type, n->at.r, x, 1);
    }
  }
}

// Dots that wait for this nest: those that it alone reads are computed by bands, others now.
static void take_dots(nest *n) {
  host *h = n->h;
  k_group *g = n->g;
  bool reduces = false;
  for (int i = 0; i < g->stmts.n; i++) reduces |= g->stmts.at[i]->code == K_REDUCE;
  for (int i = 0; i < g->stmts.n; i++) {
    k_value *in[K_MAX_OPERANDS];
    int count = k_operands(g->stmts.at[i], in);
    for (int k = 0; k < count; k++) {
      const h_value *at = &h->at[in[k]->id];
      if (at->kind != H_BANDED) continue;
      bool had = false;
      for (int j = 0; j < n->banded.n; j++) had |= n->banded.at[j] == in[k];
      if (had) continue;
      if (k_group_read_outside(g, in[k]) || in[k]->rows != g->key[0] || in[k]->cols != g->key[1] ||
          (reduces && h_dot_ragged(at))) {
        h_dot_whole(h, in[k]);
      } else {
        vec_push(h->arena, &n->banded, in[k]);
      }
    }
  }
}

static void nest_rows(nest *n, LLVMValueRef from, LLVMValueRef to, int length) {
  h_loop l;
  n->at.r = h_loop_begin(n->h, &l, from, to);
  clear_partials(n);
  row(n, length);
  finish_partials(n, false);
  h_loop_end(n->h, &l, 1);
}

static void lower_group(host *h, k_group *g) {
  int ids = h->k->next_id + 1;
  nest n = {.h = h, .g = g, .linear = g->key[1] == 1};
  n.vec = arena_new(h->arena, LLVMValueRef, ids);
  n.stamp = arena_new(h->arena, int, ids);
  n.row_vec = arena_new(h->arena, LLVMValueRef, ids);
  n.row_stamp = arena_new(h->arena, int, ids);
  n.to = arena_new(h->arena, h_value, ids);
  n.part = arena_new(h->arena, LLVMValueRef, ids);
  int length = n.linear ? g->key[0] : g->key[1], rows = n.linear ? 1 : g->key[0];
  n.at.lanes = length > 8 ? 16 : length > 4 ? 8 : length > 2 ? 4 : 2;
  n.at.along_rows = n.linear;
  n.at.r = n.at.c = h_i64(h, 0);
  take_dots(&n);
  prepare(&n);
  if (rows == 1) {
    clear_partials(&n);
    row(&n, length);
    finish_partials(&n, true);
  } else if (n.banded.n) {
    h_loop l;
    n.band = h_loop_begin(h, &l, h_i64(h, 0), h_i64(h, rows));
    for (int i = 0; i < n.banded.n; i++) h_dot_band(h, &h->at[n.banded.at[i]->id], n.band);
    LLVMTypeRef i64 = LLVMTypeOf(n.band);
    LLVMValueRef end[] = {h_plus(h, n.band, H_BAND), h_i64(h, rows)};
    nest_rows(&n, n.band, h_intrinsic(h, "llvm.smin", &i64, 1, end, 2), length);
    h_loop_end(h, &l, H_BAND);
  } else {
    nest_rows(&n, h_i64(h, 0), h_i64(h, rows), length);
  }
  for (int i = 0; i < g->stmts.n; i++) {
    const k_stmt *s = g->stmts.at[i];
    if (s->nout && n.to[s->out[0]->id].kind == H_MEMORY) h->at[s->out[0]->id] = n.to[s->out[0]->id];
  }
}

void h_flush(host *h) {
  // Lowering may ask for scalars, which flushes again: take the list first.
  int count = h->pending.n;
  k_group **groups = h->pending.at;
  h->pending.at = NULL;
  h->pending.n = h->pending.cap = 0;
  for (int i = 0; i < count; i++) {
    lower_group(h, groups[i]);
    for (int j = 0; j < groups[i]->stmts.n; j++) h->done[groups[i]->stmts.at[j]->seq] = true;
  }
}
