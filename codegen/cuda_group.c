// Pointwise statements in one layout become one loop over a thread's registers:
//
//   D_UNROLL for (int i = 0; i < 16; i += 4) {
//     float v3[4], v5[4];
//     ...                                            // loads of four neighbours
//     D_UNROLL for (int j = 0; j < 4; j++) {
//       v5[j] = v3[j] * v4[i + j];                   // v4: an array of this thread's 16 elements
//     }
//     ...                                            // stores
//   }
//
// Once unrolled, all of it is registers. Which statements go together is codegen/group.h's; a
// group's key is its layout. Reductions add up inside the loop and are finished behind it: lanes by
// shuffles, warps through shared memory.
#include <string.h>

#include "codegen/cuda_impl.h"

// Where threads hold copies, all of them must have loaded before one stores.
static bool may_store(void *ctx, const k_group *g, const k_stmt *s) {
  const cu *c = ctx;
  return !(s->code == K_STORE && g->loads && cu_copies(cu_lay(c, g->key[0])));
}

// The layout in which a group reads operand v.
static int wanted(cu *c, int layout, const k_value *v) {
  const cu_layout *l = cu_lay(c, layout);
  bool line_of_rows = v->rows == 1 && l->rows > 1, line_of_cols = v->cols == 1 && l->cols > 1;
  if (line_of_rows) return cu_slice(c, layout, CU_ROW);
  if (line_of_cols) return cu_slice(c, layout, CU_COL);
  return layout;
}

static bool is_position(const k_value *v) {
  return v->def && (v->def->code == K_IOTA || v->def->code == K_TABLE);
}

// What a staged or spread value stands for, where that costs nothing in any layout.
static const k_value *seen_through(const k_value *v) {
  while (v->def &&
         (v->def->code == K_STAGE || (v->def->code == K_SPREAD && cu_is_scalar(v->def->in[0]))))
    v = v->def->in[0];
  return v;
}

void cu_group_add(cu *c, k_stmt *s, int layout) {
  k_value *in[K_MAX_OPERANDS];
  int n = k_operands(s, in);
  for (int i = 0; i < n; i++) {
    const k_value *v = in[i];
    if (cu_is_scalar(v)) {
      cu_scalar(c, v);
    } else if (!is_position(seen_through(v)) && c->at[v->id].kind != CU_UNIFORM &&
               wanted(c, layout, v) != cu_layout_for(c, v)) {
      cu_flush(c);  // another layout: it is converted, so it must exist
    }
  }
  k_group_add(c->arena, &c->pending, s, layout, 0, may_store, c);
}

// ---- references --------------------------------------------------------------------------------

// The register's number in a group's loop.
static const char *register_number(cu *c, const cu_place *p, const char *j) {
  return p->vec == 1 || str_eq(j, "0") ? "i" : arena_printf(c->arena, "(i + %s)", j);
}

const char *cu_coordinate(cu *c, const cu_place *p, int axis, const char *j) {
  const cu_layout *l = cu_lay(c, p->layout);
  if (l->span[axis] * l->outer[axis] == 1) return "0";
  const char *at = cu_register_at(c, l, axis, register_number(c, p, j));
  const char *from = cu_thread_at(c, p->layout, axis);
  return *at == '0' && !at[1] ? from : arena_printf(c->arena, "(%s + %s)", from, at);
}

static const char *element_of(cu *c, const cu_place *p, const char *name, const char *j) {
  return p->vec == 1 || str_eq(j, "0") ? arena_printf(c->arena, "%s[i]", name)
                                       : arena_printf(c->arena, "%s[i + %s]", name, j);
}

static const char *table_name(cu *c, const k_stmt *s) {
  return arena_printf(c->arena, "t%d", s->out[0]->id);
}

const char *cu_ref(cu *c, const cu_place *p, const k_value *v, const char *j) {
  if (k_group_defines(p->group, v))
    return k_group_read_outside(p->group, v)
               ? element_of(c, p, arena_printf(c->arena, "v%d", v->id), j)
               : arena_printf(c->arena, "v%d[%s]", v->id, p->vec == 1 ? "0" : j);
  if (c->at[v->id].kind == CU_UNIFORM) return c->at[v->id].text;
  const k_value *o = seen_through(v);
  if (cu_is_scalar(o)) return cu_scalar(c, o);
  if (c->at[o->id].kind == CU_UNIFORM) return c->at[o->id].text;
  if (is_position(o)) {
    const char *at = cu_coordinate(c, p, o->cols == 1 ? CU_ROW : CU_COL, j);
    if (o->def->code == K_TABLE) return arena_printf(c->arena, "%s[%s]", table_name(c, o->def), at);
    return arena_printf(c->arena, "(%s)%s", cu_type(o->type), at);
  }
  int want = wanted(c, p->layout, v);
  if (c->at[v->id].kind != CU_ARRAY) IR_BUG("%%%d is read before it is computed", v->id);
  if (c->at[v->id].layout != want) IR_BUG("%%%d is in another layout", v->id);
  const char *name = c->at[v->id].text;
  if (want == p->layout) return element_of(c, p, name, j);
  const char *i = register_number(c, p, j);
  int axis = v->rows == 1 && cu_lay(c, p->layout)->rows > 1 ? CU_ROW : CU_COL;
  return arena_printf(c->arena, "%s[%s]", name, cu_register_of(c, cu_lay(c, p->layout), axis, i));
}

void cu_declare(cu *c, const k_value *v, const char *name, int layout) {
  cu_line(c, "%s %s[%d];", cu_type(v->type), name, cu_registers(cu_lay(c, layout)));
}

static const char *neutral(const k_stmt *s) {
  k_type t = s->in[0]->type;
  if (s->op == IR_add) return t == K_F32 ? "0.0f" : "0";
  return t == K_F32   ? "d_real(0xff800000u)"
         : t == K_I32 ? "(-2147483647 - 1)"
                      : "(-9223372036854775807ll - 1)";
}

static const char *combine(cu *c, const k_stmt *s, const char *x, const char *y) {
  return s->op == IR_add ? arena_printf(c->arena, "%s + %s", x, y)
                         : arena_printf(c->arena, "(%s > %s ? %s : %s)", x, y, x, y);
}

// ---- reductions --------------------------------------------------------------------------------

static int reduced_axis(const k_stmt *s) { return s->axis == 1 ? CU_COL : CU_ROW; }

static const char *part_name(cu *c, const k_stmt *s) {
  return arena_printf(c->arena, "v%d", s->out[0]->id);
}

static void begin_reduction(cu *c, const k_stmt *s, int layout) {
  int n = cu_registers(cu_lay(c, cu_slice(c, layout, reduced_axis(s))));
  const char *name = part_name(c, s);
  if (cu_is_scalar(s->out[0])) {
    cu_line(c, "%s %s = %s;", cu_type(s->out[0]->type), name, neutral(s));
    return;
  }
  cu_line(c, "%s %s[%d];", cu_type(s->out[0]->type), name, n);
  cu_line(c, "D_UNROLL for (int k = 0; k < %d; k++) %s[k] = %s;", n, name, neutral(s));
}

static const char *part_element(cu *c, const k_stmt *s, const char *k) {
  const char *name = part_name(c, s);
  return cu_is_scalar(s->out[0]) ? name : arena_printf(c->arena, "%s[%s]", name, k);
}

static void reduce_element(cu *c, const cu_place *p, const k_stmt *s, const char *j) {
  const cu_layout *l = cu_lay(c, p->layout);
  int axis = reduced_axis(s);
  const char *i = register_number(c, p, j);
  const char *to = part_element(c, s, cu_register_of(c, l, axis, i));
  const char *guard = "";
  if (cu_padded(l, axis))
    guard = arena_printf(c->arena, "if (%s < %d) ", cu_coordinate(c, p, axis, j),
                         axis == CU_ROW ? l->rows : l->cols);
  cu_line(c, "%s%s = %s;", guard, to, combine(c, s, to, cu_ref(c, p, s->in[0], j)));
}

// The other lanes and warps that hold parts of the same sum. A fixed tree: lanes by halves from the
// nearest, then warps in order.
static void end_reduction(cu *c, const k_stmt *s, int layout) {
  cu_layout l = *cu_lay(c, layout);
  int axis = reduced_axis(s), other = 1 - axis, left = cu_slice(c, layout, axis);
  cu_layout kept = *cu_lay(c, left);
  bool scalar = cu_is_scalar(s->out[0]);
  const char *loop = scalar ? ""
                            : arena_printf(c->arena, "D_UNROLL for (int k = 0; k < %d; k++) ",
                                           cu_registers(&kept));
  const char *x = part_element(c, s, "k");
  for (int b = 0; b < CU_LANE_BITS; b++) {
    if (l.lane[b].axis != axis) continue;
    const char *y = arena_printf(c->arena, "d_shuffle_xor(%s, %d)", x, 1 << b);
    if (s->op == IR_add) {
      cu_line(c, "%s%s = %s + %s;", loop, x, x, y);
    } else {
      cu_line(c, "%s{ const %s y = %s; %s = %s; }", loop, cu_type(s->out[0]->type), y, x,
              combine(c, s, x, "y"));
    }
  }
  // Warps: each leaves its parts in shared memory, all threads add them.
  int nw = 1;
  sb w = {.arena = c->arena}, writer = {.arena = c->arena};
  unsigned copies = 0;
  for (int b = 0; b < CU_LANE_BITS; b++)
    if (kept.lane[b].axis == CU_NONE) copies |= 1u << b;
  for (int b = 0; b < l.nwarp; b++) {
    if (l.warp[b].axis == axis) {
      sb_printf(&w, "%s((tid >> %d & 1) * %d)", nw > 1 ? " + " : "", CU_LANE_BITS + b, nw);
      nw *= 2;
    } else if (l.warp[b].axis == CU_NONE) {
      copies |= 32u << b;
    }
  }
  if (nw > 1) {
    int size = s->out[0]->type == K_I64 ? 8 : 4, extent = kept.span[other] * kept.outer[other];
    const char *t = cu_type(s->out[0]->type);
    const char *at = arena_printf(c->arena, "%s + %s", cu_thread_at(c, left, other),
                                  cu_register_at(c, &kept, other, "k"));
    if (scalar) at = "0";
    cu_shared *sh = cu_scratch(c, nw * extent * size);
    cu_will_write(c, sh);
    if (copies) sb_printf(&writer, "if ((tid & %u) == 0) ", copies);
    cu_line(c, "%s%sd_shared_store<%s, 1>(%d + %d * ((%s) * %d + %s), {%s});",
            copies ? sb_str(&writer) : "", loop, t, sh->at, size, sb_str(&w), extent, at, x);
    sh->written = true;
    cu_will_read(c, sh);
    cu_line(c, "%s{", loop);
    c->depth++;
    cu_line(c, "%s = d_shared_load<%s, 1>(%d + %d * (%s)).x[0];", x, t, sh->at, size, at);
    cu_line(c, "D_UNROLL for (int w = 1; w < %d; w++) {", nw);
    cu_line(c, "  const %s y = d_shared_load<%s, 1>(%d + %d * (w * %d + %s)).x[0];", t, t, sh->at,
            size, extent, at);
    cu_line(c, "  %s = %s;", x, combine(c, s, x, "y"));
    cu_line(c, "}");
    c->depth--;
    cu_line(c, "}");
    sh->read = true;
  }
  if (scalar)
    c->at[s->out[0]->id] = (cu_value){.kind = CU_UNIFORM, .text = part_name(c, s)};
  else
    c->at[s->out[0]->id] = (cu_value){.kind = CU_ARRAY, .text = part_name(c, s), .layout = left};
}

// ---- one group ---------------------------------------------------------------------------------

static bool in_inner_loop(const k_stmt *s) { return k_pointwise(s) || s->code == K_REDUCE; }

static void pointwise(cu *c, const cu_place *p, const k_stmt *s, const char *j) {
  if (s->code == K_REDUCE) {
    reduce_element(c, p, s, j);
    return;
  }
  const char *in[3] = {0};
  for (int i = 0; i < s->nin; i++) in[i] = cu_ref(c, p, s->in[i], j);
  cu_line(c, "%s = %s;", cu_ref(c, p, s->out[0], j), cu_expr(c, s, in));
}

// Operands in other layouts are converted in front of the group; for its time they are known as the
// converted ones.
typedef struct converted {
  int id;
  cu_value before;
} converted;

static void convert_operands(cu *c, const k_group *g, void *list) {
  VEC(converted) *undo = list;
  for (int i = 0; i < g->stmts.n; i++) {
    k_value *in[K_MAX_OPERANDS];
    int n = k_operands(g->stmts.at[i], in);
    for (int k = 0; k < n; k++) {
      const k_value *v = in[k];
      if (cu_is_scalar(v) || k_group_defines(g, v) || c->at[v->id].kind != CU_ARRAY) continue;
      int want = wanted(c, g->key[0], v);
      if (c->at[v->id].layout == want) continue;
      converted d = {v->id, c->at[v->id]};
      const char *name = cu_in_layout(c, v, want);
      vec_push(c->arena, undo, d);
      c->at[v->id].text = name;
      c->at[v->id].layout = want;
    }
  }
}

static void emit_group(cu *c, k_group *g) {
  const cu_layout l = *cu_lay(c, g->key[0]);
  cu_place p = {.layout = g->key[0], .group = g};
  p.vec = cu_vector(&l, &p.vaxis);
  int n = cu_registers(&l), bulk = 0;
  VEC(converted) undo = {0};
  convert_operands(c, g, &undo);
  bool arrays = false;
  for (int i = 0; i < g->stmts.n; i++) {
    k_stmt *s = g->stmts.at[i];
    bulk += in_inner_loop(s) ? 1 : 3;
    if (s->code == K_STORE) cu_before_store(c, s->in[0]->rows, s->in[0]->cols, g->key[0]);
    if (s->code == K_STAGE && c->at[s->out[0]->id].shared)
      cu_will_write(c, c->at[s->out[0]->id].shared);
    if (s->code == K_REDUCE) {
      begin_reduction(c, s, g->key[0]);
      arrays |= !cu_is_scalar(s->out[0]);
    } else if (s->nout && s->code != K_STAGE && k_group_read_outside(g, s->out[0])) {
      cu_declare(c, s->out[0], arena_printf(c->arena, "v%d", s->out[0]->id), g->key[0]);
      arrays = true;
    }
    k_value *in[K_MAX_OPERANDS];
    int operands = k_operands(s, in);
    for (int k = 0; k < operands; k++) arrays |= !k_group_defines(g, in[k]) && !cu_is_scalar(in[k]);
  }
  // Long chains that keep no array are not unrolled: code grows, nothing is gained.
  const char *unroll = !arrays && bulk * n > 2000 ? "D_NO_UNROLL" : "D_UNROLL";
  cu_line(c, "%s for (int i = 0; i < %d; i += %d) {", unroll, n, p.vec);
  c->depth++;
  for (int i = 0; i < g->stmts.n; i++) {
    const k_stmt *s = g->stmts.at[i];
    if (s->nout && s->code != K_REDUCE && s->code != K_STAGE && !k_group_read_outside(g, s->out[0]))
      cu_line(c, "%s v%d[%d];", cu_type(s->out[0]->type), s->out[0]->id, p.vec);
  }
  bool open = false;
  for (int i = 0; i < g->stmts.n; i++) {
    const k_stmt *s = g->stmts.at[i];
    bool inner = in_inner_loop(s) && p.vec > 1;
    if (open && !inner) {
      c->depth--;
      cu_line(c, "}");
    } else if (!open && inner) {
      cu_line(c, "D_UNROLL for (int j = 0; j < %d; j++) {", p.vec);
      c->depth++;
    }
    open = inner;
    if (in_inner_loop(s)) {
      pointwise(c, &p, s, "j");
    } else if (s->code == K_LOAD) {
      cu_load(c, &p, s);
    } else if (s->code == K_STORE) {
      cu_store(c, &p, s);
    } else {
      cu_stage_chunk(c, &p, s->out[0]);
    }
  }
  if (open) {
    c->depth--;
    cu_line(c, "}");
  }
  c->depth--;
  cu_line(c, "}");
  for (int i = 0; i < g->stmts.n; i++) {
    const k_stmt *s = g->stmts.at[i];
    if (s->code == K_LOAD) {
      cu_seen seen = {s->out[0]->rows, s->out[0]->cols, g->key[0]};
      vec_push(c->arena, &c->seen, seen);
    }
    if (!s->nout) continue;
    if (s->code == K_REDUCE) {
      end_reduction(c, s, g->key[0]);
    } else if (s->code != K_STAGE && k_group_read_outside(g, s->out[0]) &&
               c->at[s->out[0]->id].kind == CU_ABSENT) {
      cu_value *at = &c->at[s->out[0]->id];
      at->kind = CU_ARRAY;
      at->text = arena_printf(c->arena, "v%d", s->out[0]->id);
      at->layout = g->key[0];
    }
    if (s->code == K_STAGE && c->at[s->out[0]->id].shared)
      c->at[s->out[0]->id].shared->written = true;
  }
  for (int i = undo.n - 1; i >= 0; i--) c->at[undo.at[i].id] = undo.at[i].before;
}

void cu_flush(cu *c) {
  // A group may flush while it is written (a scalar it needs): what is pending then is older.
  while (c->pending.n) {
    k_group *g = c->pending.at[0];
    memmove(&c->pending.at[0], &c->pending.at[1], sizeof(k_group *) * (size_t)(c->pending.n - 1));
    c->pending.n--;
    emit_group(c, g);
  }
}

// ---- conversions -------------------------------------------------------------------------------

static const char *inside(cu *c, int layout, const cu_place *p) {
  const cu_layout *l = cu_lay(c, layout);
  sb s = {.arena = c->arena};
  if (cu_padded(l, CU_ROW)) sb_printf(&s, "%s < %d", cu_coordinate(c, p, CU_ROW, "0"), l->rows);
  if (cu_padded(l, CU_COL))
    sb_printf(&s, "%s%s < %d", s.n ? " && " : "", cu_coordinate(c, p, CU_COL, "0"), l->cols);
  return s.n ? sb_str(&s) : NULL;
}

const char *cu_in_layout(cu *c, const k_value *v, int layout) {
  const cu_value from = c->at[v->id];
  if (from.kind != CU_ARRAY) IR_BUG("%%%d is converted before it is computed", v->id);
  if (from.layout == layout) return from.text;
  int size = v->type == K_I64 ? 8 : v->type == K_BOOL ? 1 : 4;
  const char *t = cu_type(v->type), *name = arena_printf(c->arena, "v%d_%d", v->id, layout);
  cu_shared *sh = cu_scratch(c, v->rows * v->cols * size);
  cu_place a = {.layout = from.layout, .vec = 1}, b = {.layout = layout, .vec = 1};
  const char *fits_a = inside(c, from.layout, &a), *fits_b = inside(c, layout, &b);
  const char *owner = cu_owner(c, from.layout);
  cu_declare(c, v, name, layout);
  cu_will_write(c, sh);
  cu_line(c, "D_UNROLL for (int i = 0; i < %d; i++)", cu_registers(cu_lay(c, from.layout)));
  if (owner || fits_a)
    cu_line(c, "  if (%s%s%s)", owner ? owner : "", owner && fits_a ? " && " : "",
            fits_a ? fits_a : "");
  cu_line(c, "    d_shared_store<%s, 1>(%d + %d * (%s * %d + %s), {%s[i]});", t, sh->at, size,
          cu_coordinate(c, &a, CU_ROW, "0"), v->cols, cu_coordinate(c, &a, CU_COL, "0"), from.text);
  sh->written = true;
  cu_will_read(c, sh);
  cu_line(c, "D_UNROLL for (int i = 0; i < %d; i++) {", cu_registers(cu_lay(c, layout)));
  cu_line(c, "  %s[i] = 0;", name);
  cu_line(c, "  %s%s%s%s[i] = d_shared_load<%s, 1>(%d + %d * (%s * %d + %s)).x[0];",
          fits_b ? "if (" : "", fits_b ? fits_b : "", fits_b ? ") " : "", name, t, sh->at, size,
          cu_coordinate(c, &b, CU_ROW, "0"), v->cols, cu_coordinate(c, &b, CU_COL, "0"));
  cu_line(c, "}");
  sh->read = true;
  return name;
}

void cu_assign_to(cu *c, const char *to, const k_value *v, int layout) {
  if (cu_is_scalar(v)) {
    cu_line(c, "%s = %s;", to, cu_scalar(c, v));
    return;
  }
  cu_place p = {.layout = layout, .vec = 1};
  const char *from = NULL;
  if (c->at[v->id].kind == CU_ARRAY && c->at[v->id].layout == layout &&
      str_eq(c->at[v->id].text, to))
    return;  // it was computed there
  if (c->at[v->id].kind == CU_ARRAY)
    from = arena_printf(c->arena, "%s[i]", cu_in_layout(c, v, layout));
  else
    from = cu_ref(c, &p, v, "0");
  cu_line(c, "D_UNROLL for (int i = 0; i < %d; i++) %s[i] = %s;", cu_registers(cu_lay(c, layout)),
          to, from);
}
