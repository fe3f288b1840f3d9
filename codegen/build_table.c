// Tables: gather (embedding), its gradient scatter_add, and rotary positions.
#include <math.h>

#include "codegen/build_impl.h"
#include "ir/place.h"

// gather(table[v, h...], ids[i...]) -> [i..., h...]: a tile is some ids by some of the row.
void cg_build_gather(bld *b) {
  ir_op *op = b->op;
  b_begin(b, "gather");
  cg_tensor table = b_read(b, op->in[0]), ids = b_read(b, op->in[1]), y = b_write(b, op->out[0]);
  k_kernel *k = b->k;
  // Row axes: ids, y. Column axes: table, y. The table's first dimension is looked up.
  int ids_rank = op->in[1]->type.rank, y_at = y.view.dim_first[ids_rank];
  int v_leaves = table.view.dim_first[1];
  b_part row[2] = {{&ids.view, 0, ids.view.nleaves}, {&y.view, 0, y_at}};
  b_part col[2] = {{&table.view, v_leaves, table.view.nleaves}, {&y.view, y_at, y.view.nleaves}};
  b_axes rows = {0}, cols = {0}, look = {0};
  b_part looked = {&table.view, 0, v_leaves};
  bool ok = b_align(&rows, row, 2) && b_align(&cols, col, 2) && b_align(&look, &looked, 1);
  b_collapse(&rows);
  b_collapse(&cols);
  b_collapse(&look);
  if (!ok || look.n > 1) {
    b_fail(b, "gather: layouts do not nest");
    return;
  }
  int64_t re = rows.n ? rows.size[rows.n - 1] : 1, ce = cols.n ? cols.size[cols.n - 1] : 1;
  int64_t rs[2] = {0}, cs[2] = {0};
  for (int i = 0; i < 2; i++) {
    rs[i] = rows.n ? rows.stride[i][rows.n - 1] : i ? ce : 1;  // one row: as of many
    cs[i] = cols.n ? cols.stride[i][cols.n - 1] : 0;
  }
  if (rows.n) b_drop(&rows, rows.n - 1);
  if (cols.n) b_drop(&cols, cols.n - 1);
  b_cut cc = b_cut_tile(b, ce, b->limit->table_cols, 16),
        rc = b_cut_tile(b, re, cc.size >= 256 ? b->limit->table_rows : 32, 1);
  if (b->limit->powers)
    rc = b_cut_rows(re, rc.size > b->limit->table_rows ? rc.size : b->limit->table_rows);
  k_value *ro = k_grid(k, b_product(&rows)), *r0 = k_muli(k, b_grid(b, &rc), rc.size);
  k_value *co = k_grid(k, b_product(&cols)), *c0 = k_muli(k, b_grid(b, &cc), cc.size);
  k_value *rcoord[B_MAX_AXES], *ccoord[B_MAX_AXES];
  b_coordinates(b, &rows, ro, rcoord);
  b_coordinates(b, &cols, co, ccoord);
  k_value *id = b_load(b, &ids, rc.size, 1,
                       (k_access){.base = k_add(k, b_at(b, &rows, 0, rcoord), k_muli(k, r0, rs[0])),
                                  .row_stride = rs[0],
                                  .row_limit = b_left(b, &rc, r0)});
  id = k_spread(k, k_cast(k, id, K_I64), rc.size, 1);
  // Ids outside the table read zeros; nothing outside is touched.
  int64_t v = op->in[0]->type.dim[0]->size;
  k_value *in = k_scalar(k, IR_and, k_scalar(k, IR_ge, id, k_int(k, 0), NULL),
                         k_scalar(k, IR_lt, id, k_int(k, v), NULL), NULL);
  k_access x = {.base = k_add(k, b_at(b, &cols, 0, ccoord), k_muli(k, c0, cs[0])),
                .offset = k_muli(k, id, look.n ? look.stride[0][0] : 0),
                .mask = in,
                .col_stride = cs[0],
                .col_limit = b_left(b, &cc, c0)};
  k_value *e = b_load(b, &table, rc.size, cc.size, x);
  k_value *to = k_add(k, k_add(k, b_at(b, &rows, 1, rcoord), b_at(b, &cols, 1, ccoord)),
                      k_add(k, k_muli(k, r0, rs[1]), k_muli(k, c0, cs[1])));
  b_store(b, &y, k_spread(k, e, rc.size, cc.size),
          (k_access){.base = to,
                     .row_stride = rs[1],
                     .col_stride = cs[1],
                     .row_limit = b_left(b, &rc, r0),
                     .col_limit = b_left(b, &cc, c0)});
  b_end(b);
}

// scatter_add(g[i..., h...], ids[i...][, base]) -> table[rows, h...]. A cell owns columns of the
// table: it clears them, unless they hold the base, and adds the rows of g in the order of the ids,
// so no atomics and fixed bits.
void cg_build_scatter_add(bld *b) {
  ir_op *op = b->op;
  b_begin(b, "scatter_add");
  cg_tensor g = b_read(b, op->in[0]), ids = b_read(b, op->in[1]), y = b_update(b, op->out[0]);
  k_kernel *k = b->k;
  int ids_rank = op->in[1]->type.rank, g_at = g.view.dim_first[ids_rank];
  int64_t table_rows = op->out[0]->type.dim[0]->size,
          width = ir_elements(&op->out[0]->type) / table_rows;
  int y_at = y.view.dim_first[1];
  b_part row[2] = {{&ids.view, 0, ids.view.nleaves}, {&g.view, 0, g_at}};
  b_part col[2] = {{&y.view, y_at, y.view.nleaves}, {&g.view, g_at, g.view.nleaves}};
  b_axes rows = {0}, cols = {0};
  bool ok = b_align(&rows, row, 2) && b_align(&cols, col, 2);
  b_collapse(&rows);
  b_collapse(&cols);
  if (!ok) {
    b_fail(b, "scatter_add: layouts do not nest");
    return;
  }
  int64_t re = rows.n ? rows.size[rows.n - 1] : 1, ce = cols.n ? cols.size[cols.n - 1] : 1;
  int64_t rs[2] = {0}, cs[2] = {0};
  for (int i = 0; i < 2; i++) {
    rs[i] = rows.n ? rows.stride[i][rows.n - 1] : 0;
    cs[i] = cols.n ? cols.stride[i][cols.n - 1] : 0;
  }
  if (rows.n) b_drop(&rows, rows.n - 1);
  if (cols.n) b_drop(&cols, cols.n - 1);
  b_cut cc = b_cut_tile(b, ce, 64, 16), rc = b_cut_tile(b, re, 32, 1),
        tc = b->limit->powers ? b_cut_rows(table_rows, 32) : b_cut_even(table_rows, 64, 1);
  k_value *co = k_grid(k, b_product(&cols)), *c0 = k_muli(k, b_grid(b, &cc), cc.size);
  k_value *ccoord[B_MAX_AXES], *rcoord[B_MAX_AXES], *left = b_left(b, &cc, c0);
  b_coordinates(b, &cols, co, ccoord);
  k_value *own = k_add(k, b_at(b, &cols, 0, ccoord), k_muli(k, c0, cs[0]));
  // On a GPU how many are cleared is a number, 0 where they hold the base.
  if (op->nin == 2 || b->limit->powers) {
    k_value *end = b_number(b, op->nin == 2 ? tc.count * tc.size : 0);
    int64_t rounds = b->limit->powers ? 0 : tc.count;
    b_loop clear = b_loop_begin(b, k_int(k, 0), end, tc.size, rounds, NULL, 0);
    b_store(b, &y, k_full(k, k_type_of(y.dtype), tc.size, cc.size, 0),
            (k_access){.base = k_add(k, own, k_muli(k, clear.i, width)),
                       .row_stride = width,
                       .col_stride = cs[0],
                       .row_limit = b_left(b, &tc, clear.i),
                       .col_limit = left});
    b_loop_end(b, &clear, NULL);
    k_barrier(k);
  }
  int64_t chunks = b_product(&rows) * rc.count;
  b_loop l = b_loop_begin(b, k_int(k, 0), k_int(k, chunks), 1, chunks, NULL, 0);
  k_value *r0 = b_start(b, &rc, l.i);
  b_coordinates(b, &rows, k_divi(k, l.i, rc.count), rcoord);
  k_value *rleft = b_left(b, &rc, r0);
  k_value *id = b_load(b, &ids, rc.size, 1,
                       (k_access){.base = k_add(k, b_at(b, &rows, 0, rcoord), k_muli(k, r0, rs[0])),
                                  .row_stride = rs[0],
                                  .row_limit = rleft,
                                  .fill = -1});
  id = k_spread(k, k_cast(k, id, K_I64), rc.size, 1);
  k_value *in = k_scalar(k, IR_and, k_scalar(k, IR_ge, id, k_int(k, 0), NULL),
                         k_scalar(k, IR_lt, id, k_int(k, table_rows), NULL), NULL);
  k_access xg = {.base = k_add(k, k_add(k, b_at(b, &rows, 1, rcoord), b_at(b, &cols, 1, ccoord)),
                               k_add(k, k_muli(k, r0, rs[1]), k_muli(k, c0, cs[1]))),
                 .row_stride = rs[1],
                 .col_stride = cs[1],
                 .row_limit = rleft,
                 .col_limit = left};
  k_value *v = k_spread(k, b_load(b, &g, rc.size, cc.size, xg), rc.size, cc.size);
  k_access to = {.buffer = y.buffer,
                 .base = k_add(k, y.base, own),
                 .offset = k_muli(k, id, width),
                 .col_stride = cs[0],
                 .row_limit = rleft,
                 .col_limit = left,
                 .mask = in};
  k_store_add(k, v, to);
  b_loop_end(b, &l, NULL);
  b_end(b);
}

// rope: halves of each head are turned by position * theta^(-2i/n). The angle is computed in turns,
// split in two floats, so that it is exact to 1e-7 of a turn whatever the position.
void cg_build_rope(bld *b) {
  ir_op *op = b->op;
  ir_value *x = op->in[0], *y = op->out[0];
  int64_t heads = ir_attr_int(op, "heads", 1);
  int rank = x->type.rank;
  int64_t n = x->type.dim[rank - 1]->size / heads, half = n / 2;
  double theta = ir_attr_float(op, "theta", 1e4), turn = ir_attr_int(op, "inverse", 0) ? -1 : 1;
  b_begin(b, "rope_%lld", (long long)n);
  k_kernel *k = b->k;
  cg_tensor tx = b_read(b, x), ty = b_write(b, y);
  // Axes: outside the sequence . sequence . heads . the elements of a head.
  b_axes outer = {0}, seq = {0}, last = {0};
  b_part part[2];
  bool ok = true;
  for (int d = 0; d < rank && ok; d++) {
    part[0] = (b_part){&tx.view, tx.view.dim_first[d], tx.view.dim_first[d + 1]};
    part[1] = (b_part){&ty.view, ty.view.dim_first[d], ty.view.dim_first[d + 1]};
    ok = b_align(d < rank - 2 ? &outer : d == rank - 2 ? &seq : &last, part, 2);
  }
  b_collapse(&outer);
  b_collapse(&seq);
  b_collapse(&last);
  // A head's elements: the last axis, cut where n of them are together.
  if (last.n == 1 && last.size[0] > n) {
    last.n = 2;
    last.size[1] = n;
    last.size[0] = heads;
    for (int t = 0; t < 2; t++) {
      last.stride[t][1] = last.stride[t][0];
      last.stride[t][0] *= n;
    }
  }
  if (seq.n == 0) seq = (b_axes){.n = 1, .tensors = 2, .size = {1}};
  if (!ok || last.n == 0 || last.size[last.n - 1] != n || seq.n != 1 || last.n > 2) {
    b_fail(b, "rope: heads are laid out in pieces");
    return;
  }
  int64_t rs[2], cs[2], hs[2] = {0};
  for (int t = 0; t < 2; t++) {
    rs[t] = seq.size[0] > 1 ? seq.stride[t][0] : heads * n;  // one row: as of many
    cs[t] = last.stride[t][last.n - 1];
    if (last.n == 2) hs[t] = last.stride[t][0];
  }
  int tile = half >= 64 ? 16 : 32;
  b_cut rc = b->limit->powers ? b_cut_rows(seq.size[0], tile) : b_cut_even(seq.size[0], tile, 1);
  // Heads of one position share its angles: they are a loop of the cell.
  k_value *o = k_grid(k, b_product(&outer)), *r0 = k_muli(k, b_grid(b, &rc), rc.size),
          *coord[B_MAX_AXES];
  b_coordinates(b, &outer, o, coord);
  float *hi = arena_new(b->arena, float, half), *lo = arena_new(b->arena, float, half);
  for (int64_t i = 0; i < half; i++) {
    double f = pow(theta, -2 * (double)i / (double)n) / 6.283185307179586476925;
    hi[i] = (float)f;
    lo[i] = (float)(f - (double)hi[i]);
  }
  int nr = rc.size, nc = (int)half;
  k_value *th = k_table(k, hi, 1, nc), *tl = k_table(k, lo, 1, nc);
  k_value *pos = r0;
  // Where nothing came before, `past` is 0.
  if (b->limit->powers || ir_attr_int(op, "past", 0)) pos = k_add(k, pos, k_call(k, K_PAST));
  ir_mirror m = ir_mirror_of(op);
  pos = b_begin_over(b, pos, ~m.axes);
  // Backwards is the other way round: a number, so that it is the same function.
  k_value *position = k_add(k, pos, k_iota(k, K_I64, nr, 1));
  if (m.axes) {
    k_value *begin = b_begin_over(b, k_int(k, 0), m.axes);
    k_value *gap = k_sub(k, k_int(k, 2 * m.half * (m.n - 1)), k_muli(k, begin, 2));
    k_value *late = k_scalar(k, IR_ge, position, k_int(k, m.half), NULL);
    position = k_add(k, position, k_add(k, begin, k_where(k, late, gap, k_int(k, 0))));
  }
  k_value *p = k_mul(k, k_cast(k, position, K_F32), b_real(b, turn));
  k_value *turns = k_mul(k, p, th);
  k_value *error = k_fma(k, p, th, k_scalar(k, IR_neg, turns, NULL, NULL));
  k_value *whole = k_scalar(k, IR_floor, k_add(k, turns, k_const(k, K_F32, 0.5)), NULL, NULL);
  k_value *rest = k_add(k, k_sub(k, turns, whole), k_fma(k, p, tl, error));
  k_value *angle = k_mul(k, rest, k_const(k, K_F32, 6.283185307179586476925));
  k_value *c = k_scalar(k, IR_cos, angle, NULL, NULL), *s = k_scalar(k, IR_sin, angle, NULL, NULL);
  k_value *left = b_left(b, &rc, r0), *at[2];
  b_loop l = b_loop_begin(b, k_int(k, 0), k_int(k, heads), 1, heads, NULL, 0);
  for (int t = 0; t < 2; t++)
    at[t] =
        k_add(k, b_at(b, &outer, t, coord), k_add(k, k_muli(k, r0, rs[t]), k_muli(k, l.i, hs[t])));
  k_access a = {.base = at[0], .row_stride = rs[0], .col_stride = cs[0], .row_limit = left}, a2 = a;
  a2.base = k_addi(k, at[0], half * cs[0]);
  k_value *x1 = b_load(b, &tx, nr, nc, a), *x2 = b_load(b, &tx, nr, nc, a2);
  k_access w = {.base = at[1], .row_stride = rs[1], .col_stride = cs[1], .row_limit = left}, w2 = w;
  w2.base = k_addi(k, at[1], half * cs[1]);
  b_store(b, &ty, k_sub(k, k_mul(k, x1, c), k_mul(k, x2, s)), w);
  b_store(b, &ty, k_add(k, k_mul(k, x2, c), k_mul(k, x1, s)), w2);
  b_loop_end(b, &l, NULL);
  b_end(b);
}

void cg_build_place(bld *b) {
  b_begin(b, "place");
  cg_tensor y = b_write(b, b->op->out[0]);
  k_value *at = b_begin_at(b, k_int(b->k, ir_attr_int(b->op, "base", 0)));
  b_store(b, &y, k_cast(b->k, at, K_I32), (k_access){.base = k_int(b->k, 0)});
  b_end(b);
}
