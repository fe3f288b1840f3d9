// Shared memory, barriers, and the products of tiles that lie in it.
//
// Operands of a dot lie row by row, as the tile is, with rows a little apart so that the rows a
// warp reads fall into different banks. Extents are rounded up to what the product reads; what is
// beyond the tile is zero. Products of bf16 are fragments of mma.sync, loaded by ldmatrix; those of
// f32 are fmas in order of k, each thread owning four columns by some rows.
#include "codegen/cuda_impl.h"

// ---- barriers ----------------------------------------------------------------------------------

cu_shared *cu_new_shared(cu *c, int bytes) {
  cu_shared *s = arena_new(c->arena, cu_shared, 1);
  c->shared_bytes = (c->shared_bytes + 127) / 128 * 128;
  // In a loop, the round before may still be reading it.
  *s = (cu_shared){.at = c->shared_bytes, .bytes = bytes, .read = c->loops > 0};
  c->shared_bytes += bytes;
  vec_push(c->arena, &c->shared, s);
  return s;
}

// One part for all short uses, which wait for each other. It is given its place at the end, where
// it can grow: texts name it by a constant of the kernel.
cu_shared *cu_scratch(cu *c, int bytes) {
  if (!c->scratch) {
    c->scratch = arena_new(c->arena, cu_shared, 1);
    vec_push(c->arena, &c->shared, c->scratch);
  }
  if (bytes > c->scratch->bytes) c->scratch->bytes = bytes;
  return c->scratch;
}

void cu_barrier(cu *c) {
  cu_line(c, "d_barrier();");
  for (int i = 0; i < c->shared.n; i++) c->shared.at[i]->read = c->shared.at[i]->written = false;
  c->seen.n = 0;
}

void cu_will_write(cu *c, cu_shared *s) {
  if (s->read || s->written) cu_barrier(c);
}

void cu_will_read(cu *c, cu_shared *s) {
  if (s->written) cu_barrier(c);
}

void cu_forget_barriers(cu *c) {
  for (int i = 0; i < c->shared.n; i++) c->shared.at[i]->read = c->shared.at[i]->written = true;
}

// ---- operands ----------------------------------------------------------------------------------

static int round_up(int n, int to) { return (n + to - 1) / to * to; }

static bool is_operand(const k_stmt *s, const k_value *v) {
  return s->code == K_DOT && (s->in[1] == v || s->in[2] == v);
}

// The layout of a dot's result. (A single element has no class: it is a scalar.)
static int layout_of_dot(cu *c, const k_stmt *s) {
  if (!cu_is_scalar(s->out[0])) return cu_layout_for(c, s->out[0]);
  return s->storage == DT_bf16 ? cu_fragment(c, 1, 1, true) : cu_fma_tile(c, 1, 1);
}

static int steps_of(ir_dtype t) { return t == DT_bf16 ? 16 : 4; }

// Rows and columns that the dots which read v reach over.
static void reach(cu *c, const k_value *v, ir_dtype t, int *rows, int *cols) {
  *rows = v->rows;
  *cols = v->cols;
  for (int i = 0; i < v->uses.n; i++) {
    const k_stmt *s = v->uses.at[i];
    if (!is_operand(s, v)) continue;
    const cu_layout *l = cu_lay(c, layout_of_dot(c, s));
    for (int o = 1; o <= 2; o++) {
      if (s->in[o] != v) continue;
      int own = o == 1 ? l->span[0] * l->outer[0] : l->span[1] * l->outer[1];
      bool turned = o == 1 ? s->ta : s->tb, own_rows = o == 1 ? !turned : turned;
      int k = round_up(own_rows ? v->cols : v->rows, steps_of(t));
      int r = own_rows ? own : k, col = own_rows ? k : own;
      if (r > *rows) *rows = r;
      if (col > *cols) *cols = col;
    }
  }
}

void cu_stage_place(cu *c, const k_value *v, ir_dtype t) {
  int rows, cols, size = cu_dtype_bytes(t), pad = 16 / size;
  reach(c, v, t, &rows, &cols);
  int ld = round_up(cols, pad) + pad;
  cu_shared *s = cu_new_shared(c, rows * ld * size);
  s->ld = ld;
  s->dtype = t;
  c->at[v->id].shared = s;
  if (rows == v->rows && cols == v->cols) return;
  // What the product reads beyond the tile.
  sb_printf(&c->head,
            "  for (int i = tid * 16; i < %d; i += %d)\n"
            "    d_shared_store<d_u32, 4>(%d + i, {0, 0, 0, 0});\n",
            s->bytes / 16 * 16, c->threads * 16, s->at);
  s->written = true;
}

// Element j of the chunk is the first of `n` that are neighbours in the row.
static void stage(cu *c, const cu_place *p, const k_value *v, const k_value *from, bool array) {
  const cu_shared *s = c->at[v->id].shared;
  const cu_layout *l = cu_lay(c, p->layout);
  int size = cu_dtype_bytes(s->dtype), n = 1;
  if (p->vaxis == CU_COL)
    while (2 * n <= p->vec && 2 * n * size <= 16 && l->cols % (2 * n) == 0) n *= 2;
  const char *t = cu_dtype(s->dtype), *owner = cu_owner(c, p->layout), *j = n == p->vec ? "0" : "q";
  cu_line(c, "D_UNROLL for (int q = 0; q < %d; q += %d) {", p->vec, n);
  c->depth++;
  sb in = {.arena = c->arena};
  const char *r = cu_coordinate(c, p, CU_ROW, j), *col = cu_coordinate(c, p, CU_COL, j);
  if (owner) sb_printf(&in, " && %s", owner);
  if (cu_padded(l, CU_ROW)) sb_printf(&in, " && %s < %d", r, l->rows);
  if (cu_padded(l, CU_COL)) sb_printf(&in, " && %s < %d", col, l->cols);
  if (in.n)
    cu_line(c, "if (%s) {", sb_str(&in) + 4);
  else
    cu_line(c, "{");
  const char *e = n == p->vec ? "e" : "(q + e)";
  const char *x = array ? arena_printf(c->arena, p->vec == 1 ? "%s[i]" : "%s[i + %s]",
                                       cu_in_layout(c, from, p->layout), e)
                        : cu_ref(c, p, from, e);
  cu_line(c, "  d_vec<%s, %d> x;", t, n);
  cu_line(c, "  D_UNROLL for (int e = 0; e < %d; e++) x.x[e] = d_narrow<%s>(%s);", n, t, x);
  cu_line(c, "  d_shared_store<%s, %d>(%d + %d * (%s * %d + %s), x);", t, n, s->at, size, r, s->ld,
          col);
  cu_line(c, "}");
  c->depth--;
  cu_line(c, "}");
}

void cu_stage_chunk(cu *c, const cu_place *p, const k_value *v) {
  stage(c, p, v, v->def->in[0], false);
}

// Brings an operand that was computed in registers to shared memory.
static cu_shared *in_shared(cu *c, const k_value *v, ir_dtype t) {
  cu_value *at = &c->at[v->id];
  if (at->shared && at->shared->dtype == t) return at->shared;
  cu_stage_place(c, v, t);
  cu_shared *s = c->at[v->id].shared;
  cu_will_write(c, s);
  bool array = c->at[v->id].kind == CU_ARRAY;
  cu_place p = {.layout = array ? c->at[v->id].layout : cu_layout_for(c, v)};
  p.vec = cu_vector(cu_lay(c, p.layout), &p.vaxis);
  cu_line(c, "D_UNROLL for (int i = 0; i < %d; i += %d) {", cu_registers(cu_lay(c, p.layout)),
          p.vec);
  c->depth++;
  stage(c, &p, v, v, array);
  c->depth--;
  cu_line(c, "}");
  s->written = true;
  return s;
}

// ---- products ----------------------------------------------------------------------------------

// acc[m, n] = fma(a[m, k], b[k, n], acc[m, n]) for k in order.
static void fma_product(cu *c, const k_stmt *s, const char *acc, const cu_layout *l, int layout,
                        const cu_shared *x, const cu_shared *y) {
  int k = s->ta ? s->in[1]->rows : s->in[1]->cols, nr = l->outer[0], nc = l->outer[1];
  const char *r = cu_thread_at(c, layout, CU_ROW), *col = cu_thread_at(c, layout, CU_COL);
  cu_line(c, "D_NO_UNROLL for (int k = 0; k < %d; k += 4) {", k);
  c->depth++;
  if (!s->ta) {
    cu_line(c, "d_vec<float, 4> x[%d];", nr);
    cu_line(c, "D_UNROLL for (int m = 0; m < %d; m++)", nr);
    cu_line(c, "  x[m] = d_shared_load<float, 4>(%d + 4 * ((%s + m * %d) * %d + k));", x->at, r,
            l->span[0], x->ld);
  }
  if (s->tb) {
    cu_line(c, "d_vec<float, 4> z[%d];", 4 * nc);
    cu_line(c, "D_UNROLL for (int n = 0; n < %d; n++)", 4 * nc);
    cu_line(c, "  z[n] = d_shared_load<float, 4>(%d + 4 * ((%s + n / 4 * %d + n %% 4) * %d + k));",
            y->at, col, l->span[1], y->ld);
  }
  cu_line(c, "D_UNROLL for (int e = 0; e < 4; e++) {");
  c->depth++;
  if (!s->tb) {
    cu_line(c, "d_vec<float, 4> y[%d];", nc);
    cu_line(c, "D_UNROLL for (int n = 0; n < %d; n++)", nc);
    cu_line(c, "  y[n] = d_shared_load<float, 4>(%d + 4 * ((k + e) * %d + %s + n * %d));", y->at,
            y->ld, col, l->span[1]);
  }
  cu_line(c, "D_UNROLL for (int m = 0; m < %d; m++) {", nr);
  if (s->ta)
    cu_line(
        c, "  const float w = d_shared_load<float, 1>(%d + 4 * ((k + e) * %d + %s + m * %d)).x[0];",
        x->at, x->ld, r, l->span[0]);
  else
    cu_line(c, "  const float w = x[m].x[e];");
  cu_line(c, "  D_UNROLL for (int n = 0; n < %d; n++)", 4 * nc);
  cu_line(c, "    %s[m * %d + n] = d_fma(w, %s, %s[m * %d + n]);", acc, 4 * nc,
          s->tb ? "z[n].x[e]" : "y[n / 4].x[n % 4]", acc, 4 * nc);
  cu_line(c, "}");
  c->depth--;
  cu_line(c, "}");
  c->depth--;
  cu_line(c, "}");
}

// The warp's part of a coordinate.
static const char *warp_at(cu *c, const cu_layout *l, int axis) {
  sb s = {.arena = c->arena};
  for (int i = 0; i < l->nwarp; i++)
    if (l->warp[i].axis == axis)
      sb_printf(&s, "%s((tid >> %d & 1) << %d)", s.n ? " + " : "", CU_LANE_BITS + i,
                l->warp[i].shift);
  return s.n ? arena_printf(c->arena, "(%s)", sb_str(&s)) : "0";
}

// Fragments of 16 x 8 results, 16 steps of k at a time. What each lane points ldmatrix at makes the
// four matrices the fragments' parts in the order that mma.sync wants (prelude.cuh).
static void mma_product(cu *c, const k_stmt *s, const char *acc, const cu_layout *l,
                        const cu_shared *x, const cu_shared *y) {
  int k = s->ta ? s->in[1]->rows : s->in[1]->cols, nm = l->outer[0], nn = l->outer[1];
  int steps = (k + 15) / 16;
  const char *wr = warp_at(c, l, CU_ROW), *wc = warp_at(c, l, CU_COL);
  cu_line(c, "{");
  c->depth++;
  cu_line(c, "const int low = tid & 7, mid = tid >> 3 & 1, high = tid >> 4 & 1;");
  // a: halves of rows by `mid`, of k by `high`.  b: halves of k by `mid`, of columns by `high`.
  if (s->ta)
    cu_line(c, "const int xa = %d + 2 * ((low + 8 * high) * %d + %s + 8 * mid);", x->at, x->ld, wr);
  else
    cu_line(c, "const int xa = %d + 2 * ((%s + low + 8 * mid) * %d + 8 * high);", x->at, wr, x->ld);
  int pair = nn > 1 ? l->span[1] : 0;
  if (s->tb)
    cu_line(c, "const int ya = %d + 2 * ((%s + low + %d * high) * %d + 8 * mid);", y->at, wc, pair,
            y->ld);
  else
    cu_line(c, "const int ya = %d + 2 * ((low + 8 * mid) * %d + %s + %d * high);", y->at, y->ld, wc,
            pair);
  cu_line(c, "%s for (int k = 0; k < %d; k++) {",
          steps * nm * nn <= 64 ? "D_UNROLL" : "D_NO_UNROLL", steps);
  c->depth++;
  cu_line(c, "d_u32 x[%d][4];", nm);
  cu_line(c, "D_UNROLL for (int m = 0; m < %d; m++)", nm);
  cu_line(c, "  d_matrices%s(x[m], xa + 2 * (k * %d + m * %d));", s->ta ? "_turned" : "",
          s->ta ? 16 * x->ld : 16, s->ta ? l->span[0] : l->span[0] * x->ld);
  // Two tiles of columns at a time; of an odd number the last is read twice over.
  cu_line(c, "D_UNROLL for (int n = 0; n < %d; n += 2) {", nn);
  c->depth++;
  cu_line(c, "d_u32 y[4];");
  const char *n = nn > 1 && nn % 2 ? arena_printf(c->arena, "(n + 1 < %d ? n : n - 1)", nn) : "n";
  cu_line(c, "d_matrices%s(y, ya + 2 * (k * %d + %s * %d));", s->tb ? "" : "_turned",
          s->tb ? 16 : 16 * y->ld, n, s->tb ? l->span[1] * y->ld : l->span[1]);
  cu_line(c, "D_UNROLL for (int m = 0; m < %d; m++) {", nm);
  if (nn > 1 && nn % 2) {
    cu_line(c, "  if (n + 1 < %d) {", nn);
    cu_line(c, "    d_mma(%s + 4 * (m * %d + n), x[m], y[0], y[1], d_bf16());", acc, nn);
    cu_line(c, "    d_mma(%s + 4 * (m * %d + n + 1), x[m], y[2], y[3], d_bf16());", acc, nn);
    cu_line(c, "  } else {");
    cu_line(c, "    d_mma(%s + 4 * (m * %d + n), x[m], y[2], y[3], d_bf16());", acc, nn);
    cu_line(c, "  }");
  } else {
    cu_line(c, "  d_mma(%s + 4 * (m * %d + n), x[m], y[0], y[1], d_bf16());", acc, nn);
    if (nn > 1)
      cu_line(c, "  d_mma(%s + 4 * (m * %d + n + 1), x[m], y[2], y[3], d_bf16());", acc, nn);
  }
  cu_line(c, "}");
  for (int i = 0; i < 3; i++) {
    c->depth--;
    cu_line(c, "}");
  }
}

// A product of one element is a scalar, which every thread knows: its thread tells the others.
static void share_single(cu *c, const k_value *v, const char *acc, int layout) {
  cu_shared *sh = cu_scratch(c, 16);
  const char *owner = cu_owner(c, layout);
  cu_will_write(c, sh);
  cu_line(c, "if (%s == 0 && %s == 0%s%s) d_shared_store<float, 1>(%d, {%s[0]});",
          cu_thread_at(c, layout, CU_ROW), cu_thread_at(c, layout, CU_COL), owner ? " && " : "",
          owner ? owner : "", sh->at, acc);
  sh->written = true;
  cu_will_read(c, sh);
  cu_line(c, "const float v%d = d_shared_load<float, 1>(%d).x[0];", v->id, sh->at);
  sh->read = true;
  c->at[v->id].kind = CU_UNIFORM;
  c->at[v->id].text = arena_printf(c->arena, "v%d", v->id);
}

void cu_dot(cu *c, k_stmt *s) {
  cu_flush(c);
  ir_dtype t = s->storage == DT_bf16 ? DT_bf16 : DT_f32;
  k_value *out = s->out[0];
  int layout = layout_of_dot(c, s);
  const cu_layout l = *cu_lay(c, layout);
  bool scalar = cu_is_scalar(out);
  const char *acc = arena_printf(c->arena, scalar ? "w%d" : "v%d", out->id);
  const cu_value *from = &c->at[s->in[0]->id];
  // Nobody else reads what is added to: it is added to where it is.
  bool in_place = from->kind == CU_ARRAY && from->layout == layout && s->in[0]->uses.n == 1;
  if (in_place)
    acc = from->text;
  else
    cu_declare(c, out, acc, layout);
  if (in_place) {
    // nothing to copy
  } else if (scalar)
    cu_line(c, "D_UNROLL for (int i = 0; i < %d; i++) %s[i] = %s;", cu_registers(&l), acc,
            cu_scalar(c, s->in[0]));
  else
    cu_assign_to(c, acc, s->in[0], layout);
  cu_shared *x = in_shared(c, s->in[1], t), *y = in_shared(c, s->in[2], t);
  cu_will_read(c, x);
  cu_will_read(c, y);
  if (t == DT_bf16)
    mma_product(c, s, acc, &l, x, y);
  else
    fma_product(c, s, acc, &l, layout, x, y);
  x->read = y->read = true;
  if (scalar) {
    share_single(c, out, acc, layout);
    return;
  }
  cu_value *at = &c->at[out->id];
  at->kind = CU_ARRAY;
  at->text = acc;
  at->layout = layout;
}
