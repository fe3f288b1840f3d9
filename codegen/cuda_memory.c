// Buffers: which bytes a thread reads and writes.
//
// Neighbouring registers of a thread hold neighbouring elements; where they are neighbours in
// memory too, and where the address is a multiple, they move in one access of up to 16 bytes.
#include <math.h>

#include "codegen/cuda_impl.h"

// ---- what is known of numbers ------------------------------------------------------------------

enum { MOST_ZEROS = 16 };

static int zeros_of(int64_t v) {
  return v == 0 ? MOST_ZEROS
         : __builtin_ctzll((unsigned long long)v) < MOST_ZEROS
             ? __builtin_ctzll((unsigned long long)v)
             : MOST_ZEROS;
}

static int least(int a, int b) { return a < b ? a : b; }

int cu_zeros(const k_value *v) {
  if (!v) return MOST_ZEROS;
  const k_stmt *d = v->def;
  if (!d) {
    // A loop's counter goes from its first value in steps.
    const k_stmt *loop = v->block->owner;
    if (loop && loop->code == K_FOR && v->pos == 0)
      return least(cu_zeros(loop->in[0]), zeros_of(loop->i));
    return 0;
  }
  switch (d->code) {
    case K_CONST: return v->type == K_F32 ? 0 : zeros_of(d->i);
    case K_SPREAD: return cu_zeros(d->in[0]);
    case K_CAST:
      return d->in[0]->type == K_F32 || d->in[0]->type == K_BOOL ? 0 : cu_zeros(d->in[0]);
    case K_SCALAR: break;
    default: return 0;
  }
  switch (d->op) {
    case IR_add:
    case IR_sub:
    case IR_min:
    case IR_max: return least(cu_zeros(d->in[0]), cu_zeros(d->in[1]));
    case IR_mul: return least(MOST_ZEROS, cu_zeros(d->in[0]) + cu_zeros(d->in[1]));
    case IR_mod: return least(cu_zeros(d->in[0]), cu_zeros(d->in[1]));
    case IR_where: return least(cu_zeros(d->in[1]), cu_zeros(d->in[2]));
    default: return 0;
  }
}

static bool is_number(const k_value *v) { return v->def && v->def->code == K_CONST; }

int64_t cu_bound(const cu *c, const k_value *v) {
  const k_stmt *d = v->def;
  int64_t n;
  if (!d) {
    const k_stmt *loop = v->block->owner;
    if (!loop || loop->code != K_FOR || v->pos != 0) return -1;
    return cu_bound(c, loop->in[0]) < 0 ? -1 : cu_bound(c, loop->in[1]);
  }
  if (d->code == K_GRID) return c->k->grid[d->i] - 1;
  if (d->code == K_CONST) return v->type != K_F32 && d->i >= 0 ? d->i : -1;
  if (d->code != K_SCALAR || d->nin != 2) return -1;
  int64_t x = cu_bound(c, d->in[0]), y = cu_bound(c, d->in[1]);
  if (x < 0 || y < 0) return -1;
  switch (d->op) {
    case IR_add: return __builtin_add_overflow(x, y, &n) ? -1 : n;
    case IR_mul: return __builtin_mul_overflow(x, y, &n) ? -1 : n;
    case IR_floordiv: return is_number(d->in[1]) && y > 0 ? x / y : x;
    case IR_mod: return is_number(d->in[1]) && y > 0 && y - 1 < x ? y - 1 : x;
    case IR_min: return x < y ? x : y;
    case IR_max: return x > y ? x : y;
    default: return -1;
  }
}

// ---- accesses ----------------------------------------------------------------------------------

// The limit along the layout's vectors.
static const k_value *end_of(const cu_place *p, const k_access *x) {
  return p->vaxis == CU_COL ? x->col_limit : x->row_limit;
}

// Elements that may move at once along the layout's vectors. *by_end: some of them may lie beyond
// the limit, so what is left is counted and the address looked at: rows of any length are one
// function. (Kernels with dots have none of that: there limit and address must be multiples, and
// inner loops stay short.)
static int width_of(const cu *c, const cu_place *p, const k_access *x, bool *by_end) {
  const cu_layout *l = cu_lay(c, p->layout);
  bool cols = p->vaxis == CU_COL;
  int64_t along = cols ? x->col_stride : x->row_stride,
          across = cols ? x->row_stride : x->col_stride;
  *by_end = false;
  if (along != 1) return 1;
  if (x->offset && (cols ? x->offset->cols : x->offset->rows) > 1) return 1;
  if (x->mask && (cols ? x->mask->cols : x->mask->rows) > 1) return 1;
  bool look = !c->dots && end_of(p, x);
  int z = zeros_of(cols ? l->cols : l->rows), most = 16;
  if (!look) {
    z = least(z, least(cu_zeros(x->base), zeros_of(across)));
    if (end_of(p, x)) z = least(z, cu_zeros(end_of(p, x)));
    if (x->offset) z = least(z, cu_zeros(x->offset));
    if (c->k->buffer[x->buffer].align) most = c->k->buffer[x->buffer].align;
  }
  int n = 1, size = cu_dtype_bytes(c->k->buffer[x->buffer].dtype);
  while (2 * n <= p->vec && 2 * n * size <= most && z >= __builtin_ctz(2u * (unsigned)n)) n *= 2;
  *by_end = n > 1 && look;
  return n;
}

static const char *stride_text(cu *c, int64_t stride, const char *at) {
  return stride == 1 ? at : arena_printf(c->arena, "%s * %s", at, cu_number(c, stride));
}

// Across the vectors of the layout a stride is a number of the launch, 1 as any other.
static const char *across_text(cu *c, int64_t stride, const char *at) {
  return arena_printf(c->arena, "%s * %s", at, cu_number(c, stride));
}

// Where element j is: an address, and a condition or NULL.
static void locate(cu *c, const cu_place *p, const k_access *x, const char *j, bool by_end,
                   const char **address, const char **condition) {
  const cu_layout *l = cu_lay(c, p->layout);
  const char *r = cu_coordinate(c, p, CU_ROW, j), *col = cu_coordinate(c, p, CU_COL, j);
  sb at = {.arena = c->arena}, in = {.arena = c->arena};
  sb_printf(&at, "b%d + (", x->buffer);
  sb_puts(&at, x->base ? cu_scalar(c, x->base) : "0");
  if (x->offset) sb_printf(&at, " + %s", cu_ref(c, p, x->offset, j));
  bool cols = p->vaxis == CU_COL;
  if (x->row_stride && l->rows > 1)
    sb_printf(&at, " + %s", (cols ? across_text : stride_text)(c, x->row_stride, r));
  if (x->col_stride && l->cols > 1)
    sb_printf(&at, " + %s", (cols ? stride_text : across_text)(c, x->col_stride, col));
  sb_puts(&at, ")");
  if (cu_padded(l, CU_ROW)) sb_printf(&in, " && %s < %d", r, l->rows);
  if (cu_padded(l, CU_COL)) sb_printf(&in, " && %s < %d", col, l->cols);
  if (x->row_limit && !(by_end && p->vaxis == CU_ROW))
    sb_printf(&in, " && %s < %s", r, cu_scalar(c, x->row_limit));
  if (x->col_limit && !(by_end && p->vaxis == CU_COL))
    sb_printf(&in, " && %s < %s", col, cu_scalar(c, x->col_limit));
  if (x->mask) sb_printf(&in, " && %s", cu_ref(c, p, x->mask, j));
  *address = sb_str(&at);
  *condition = in.n ? arena_printf(c->arena, "%s", sb_str(&in) + 4) : NULL;
}

// A loop over the accesses of a chunk; returns the text of the first element's j.
static const char *open_pieces(cu *c, const cu_place *p, int width) {
  if (width == p->vec) {
    cu_line(c, "{");
    c->depth++;
    return "0";
  }
  cu_line(c, "D_UNROLL for (int q = 0; q < %d; q += %d) {", p->vec, width);
  c->depth++;
  return "q";
}

static void close_pieces(cu *c) {
  c->depth--;
  cu_line(c, "}");
}

static const char *plus_e(cu *c, const char *j) {
  return *j == '0' ? "e" : arena_printf(c->arena, "(%s + e)", j);
}

// How many elements exist from element j on, along the vectors.
static const char *left_text(cu *c, const cu_place *p, const k_access *x, const char *j) {
  return arena_printf(c->arena, "%s - %s", cu_scalar(c, end_of(p, x)),
                      cu_coordinate(c, p, p->vaxis, j));
}

void cu_load(cu *c, const cu_place *p, const k_stmt *s) {
  const k_access *x = &s->access;
  ir_dtype t = c->k->buffer[x->buffer].dtype;
  const k_value *out = s->out[0];
  bool by_end;
  int n = width_of(c, p, x, &by_end);
  const char *j = open_pieces(c, p, n), *at, *in;
  locate(c, p, x, j, by_end, &at, &in);
  const char *get = arena_printf(c->arena, "d_load<%d>(%s)", n, at);
  if (by_end) {
    cu_line(c, "const d_i64 left = %s;", left_text(c, p, x, j));
    get = arena_printf(c->arena, "d_load_left<%d>(%s, left)", n, at);
  }
  if (in) {
    cu_line(c, "const bool in = %s;", in);
    cu_line(c, "d_vec<%s, %d> x = {};", cu_dtype(t), n);
    cu_line(c, "if (in) x = %s;", get);
  } else {
    cu_line(c, "const d_vec<%s, %d> x = %s;", cu_dtype(t), n, get);
  }
  bool fills = (in || by_end) && (x->fill != 0 || signbit(x->fill));
  const char *fill =
      fills ? arena_printf(c->arena, " : %s", cu_literal(c, out->type, x->fill)) : "";
  const char *when = !fills         ? ""
                     : in && by_end ? "in && e < left ? "
                     : in           ? "in ? "
                                    : "e < left ? ";
  cu_line(c, "D_UNROLL for (int e = 0; e < %d; e++) %s = %sd_widen(x.x[e])%s;", n,
          cu_ref(c, p, out, plus_e(c, j)), when, fill);
  close_pieces(c);
}

void cu_store(cu *c, const cu_place *p, const k_stmt *s) {
  const k_access *x = &s->access;
  ir_dtype t = c->k->buffer[x->buffer].dtype;
  bool by_end;
  int n = width_of(c, p, x, &by_end);
  const char *j = open_pieces(c, p, n), *at, *in, *owner = cu_owner(c, p->layout);
  locate(c, p, x, j, by_end, &at, &in);
  if (owner || in)
    cu_line(c, "if (%s%s%s) {", owner ? owner : "", owner && in ? " && " : "", in ? in : "");
  else
    cu_line(c, "{");
  cu_line(c, "  d_vec<%s, %d> x;", cu_dtype(t), n);
  cu_line(c, "  D_UNROLL for (int e = 0; e < %d; e++) x.x[e] = d_narrow<%s>(%s);", n, cu_dtype(t),
          cu_ref(c, p, s->in[0], plus_e(c, j)));
  if (by_end)
    cu_line(c, "  d_store_left(%s, %s, x);", at, left_text(c, p, x, j));
  else
    cu_line(c, "  d_store(%s, x);", at);
  cu_line(c, "}");
  close_pieces(c);
}

void cu_before_store(cu *c, int rows, int cols, int layout) {
  for (int i = 0; i < c->seen.n; i++) {
    const cu_seen *o = &c->seen.at[i];
    if (o->rows != rows || o->cols != cols) continue;
    if (layout >= 0 && o->layout == layout && !cu_copies(cu_lay(c, layout))) continue;
    cu_barrier(c);
    return;
  }
}

// ---- scalars -----------------------------------------------------------------------------------

static void locate_scalar(cu *c, const k_access *x, const char **address, const char **condition) {
  sb at = {.arena = c->arena}, in = {.arena = c->arena};
  sb_printf(&at, "b%d + (%s", x->buffer, x->base ? cu_scalar(c, x->base) : "0");
  if (x->offset) sb_printf(&at, " + %s", cu_scalar(c, x->offset));
  sb_puts(&at, ")");
  if (x->row_limit) sb_printf(&in, " && 0 < %s", cu_scalar(c, x->row_limit));
  if (x->col_limit) sb_printf(&in, " && 0 < %s", cu_scalar(c, x->col_limit));
  if (x->mask) sb_printf(&in, " && %s", cu_scalar(c, x->mask));
  *address = sb_str(&at);
  *condition = in.n ? arena_printf(c->arena, "%s", sb_str(&in) + 4) : NULL;
}

void cu_scalar_load(cu *c, const k_stmt *s) {
  const char *at, *in;
  locate_scalar(c, &s->access, &at, &in);
  const char *x = arena_printf(c->arena, "d_widen(d_load<1>(%s).x[0])", at);
  if (in)
    x = arena_printf(c->arena, "%s ? %s : %s", in, x,
                     cu_literal(c, s->out[0]->type, s->access.fill));
  cu_line(c, "const %s v%d = %s;", cu_type(s->out[0]->type), s->out[0]->id, x);
  cu_seen seen = {1, 1, -1};
  vec_push(c->arena, &c->seen, seen);
}

void cu_scalar_store(cu *c, const k_stmt *s) {
  const char *at, *in, *t = cu_dtype(c->k->buffer[s->access.buffer].dtype);
  locate_scalar(c, &s->access, &at, &in);
  cu_before_store(c, 1, 1, -1);
  cu_line(c, "if (tid == 0%s%s) d_store(%s, d_vec<%s, 1>{{d_narrow<%s>(%s)}});", in ? " && " : "",
          in ? in : "", at, t, t, cu_scalar(c, s->in[0]));
}

// ---- adding to memory --------------------------------------------------------------------------
// Places may repeat, and the order of additions is that of the elements, row by row. So the tile
// and its places go to shared memory, and every place has one thread that adds all that belongs to
// it, in order: that of its column where a row's elements go to places of their own, else the
// place's number modulo the threads. No atomics, fixed bits.

// A reference outside of a group: operands are brought to the layout first.
static const char *operand(cu *c, const cu_place *p, const k_value *v) {
  if (v->rows == 1 && v->cols == 1) return cu_scalar(c, v);
  if (c->at[v->id].kind != CU_ARRAY) return cu_ref(c, p, v, "0");
  const cu_layout *l = cu_lay(c, p->layout);
  int axis = v->rows == 1 && l->rows > 1 ? CU_ROW : v->cols == 1 && l->cols > 1 ? CU_COL : CU_NONE;
  if (axis == CU_NONE) return arena_printf(c->arena, "%s[i]", cu_in_layout(c, v, p->layout));
  const char *name = cu_in_layout(c, v, cu_slice(c, p->layout, axis));
  return arena_printf(c->arena, "%s[%s]", name, cu_register_of(c, cu_lay(c, p->layout), axis, "i"));
}

void cu_store_add(cu *c, const k_stmt *s) {
  const k_access *x = &s->access;
  const k_value *v = s->in[0];
  int rows = v->rows, cols = v->cols, size = v->type == K_I64 ? 8 : 4;
  bool by_column = cols > 1 && x->col_stride && (!x->offset || x->offset->cols == 1) &&
                   (!x->mask || x->mask->cols == 1);
  cu_flush(c);
  cu_place p = {.layout = cu_layout_for(c, v), .vec = 1};
  const cu_layout l = *cu_lay(c, p.layout);
  const char *value = operand(c, &p, v), *offset = x->offset ? operand(c, &p, x->offset) : NULL;
  const char *mask = x->mask ? operand(c, &p, x->mask) : NULL, *t = cu_type(v->type);
  const char *r = cu_coordinate(c, &p, CU_ROW, "0"), *col = cu_coordinate(c, &p, CU_COL, "0");
  int value_bytes = (rows * cols * size + 7) / 8 * 8, places = by_column ? rows : rows * cols;
  cu_shared *sh = cu_scratch(c, value_bytes + 8 * places);
  int at = sh->at, place_at = sh->at + value_bytes;
  cu_will_write(c, sh);
  cu_line(c, "D_UNROLL for (int i = 0; i < %d; i++) {", cu_registers(&l));
  c->depth++;
  const char *owner = cu_owner(c, p.layout);
  sb in = {.arena = c->arena};
  sb_printf(&in, "%s", owner ? owner : "true");
  if (cu_padded(&l, CU_ROW)) sb_printf(&in, " && %s < %d", r, rows);
  if (cu_padded(&l, CU_COL)) sb_printf(&in, " && %s < %d", col, cols);
  cu_line(c, "if (%s) {", sb_str(&in));
  c->depth++;
  cu_line(c, "d_shared_store<%s, 1>(%d + %d * (%s * %d + %s), {%s});", t, at, size, r, cols, col,
          value);
  sb place = {.arena = c->arena}, ok = {.arena = c->arena};
  sb_puts(&place, offset ? offset : "0");
  if (x->row_stride) sb_printf(&place, " + %s", stride_text(c, x->row_stride, r));
  if (!by_column && x->col_stride) sb_printf(&place, " + %s", stride_text(c, x->col_stride, col));
  if (mask) sb_printf(&ok, " && %s", mask);
  if (x->row_limit) sb_printf(&ok, " && %s < %s", r, cu_scalar(c, x->row_limit));
  if (x->col_limit && !by_column) sb_printf(&ok, " && %s < %s", col, cu_scalar(c, x->col_limit));
  cu_line(c, "%sd_shared_store<d_i64, 1>(%d + 8 * (%s), {%s%s%s%s});",
          by_column ? arena_printf(c->arena, "if (%s == 0) ", col) : "", place_at,
          by_column ? r : arena_printf(c->arena, "%s * %d + %s", r, cols, col),
          ok.n ? sb_str(&ok) + 4 : "", ok.n ? " ? (d_i64)(" : "(d_i64)(", sb_str(&place),
          ok.n ? ") : (d_i64)-1" : ")");
  c->depth--;
  cu_line(c, "}");
  c->depth--;
  cu_line(c, "}");
  sh->written = true;
  cu_will_read(c, sh);
  const char *base = x->base ? cu_scalar(c, x->base) : "0",
             *kind = cu_dtype(c->k->buffer[x->buffer].dtype);
  const char *of = arena_printf(c->arena, "d_shared_load<d_i64, 1>(%d + 8 * e).x[0]", place_at);
  if (by_column) {
    cu_line(c, "for (int j = tid; j < %d; j += %d)", cols, c->threads);
    if (x->col_limit) cu_line(c, "  if (j < %s)", cu_scalar(c, x->col_limit));
    cu_line(c, "    D_NO_UNROLL for (int e = 0; e < %d; e++) {", rows);
  } else {
    cu_line(c, "    D_NO_UNROLL for (int e = 0; e < %d; e++) {", rows * cols);
  }
  c->depth += 3;
  cu_line(c, "const d_i64 to = %s;", of);
  cu_line(c, "if (to >= 0%s) {",
          by_column ? "" : arena_printf(c->arena, " && to %% %d == tid", c->threads));
  cu_line(c, "  %s *const m = b%d + (%s + to%s);", kind, x->buffer, base,
          by_column ? arena_printf(c->arena, " + %s", stride_text(c, x->col_stride, "j")) : "");
  cu_line(c,
          "  const %s y = d_widen(d_load<1>(m).x[0]) + d_shared_load<%s, 1>(%d + %d * (%s)).x[0];",
          t, t, at, size, by_column ? arena_printf(c->arena, "e * %d + j", cols) : "e");
  cu_line(c, "  d_store(m, d_vec<%s, 1>{{d_narrow<%s>(y)}});", kind, kind);
  cu_line(c, "}");
  c->depth -= 3;
  cu_line(c, "    }");
  sh->read = true;
}
