// Sums, maxima and log-sum-exps over any axes.
//
// Two shapes of kernel. When the innermost reduced axis is the finer one in memory, a cell owns
// some results as rows and walks the reduced axes in column tiles (rows of 16 partials, then a
// tree). When a kept axis is finer, a cell owns results as columns and adds rows. A reduction to
// few results of much data is cut into a fixed number of parts (by the shape alone), which a second
// kernel adds: bits never depend on the threads.
#include <math.h>
#include <string.h>

#include "codegen/build_impl.h"

typedef struct reduction {
  ir_opcode kind;  // sum, reduce_max, lse
  cg_tensor x, out;
  b_axes keep, over;  // keep: tensors x, out; over: tensor x
  int64_t parts;
  int64_t part_stride;  // of out, in elements
  ir_region *of;        // the function of each element, or NULL
  bool columns;         // results as columns, whatever the layout
} reduction;

static double neutral_of(ir_opcode kind, k_type t) {
  if (kind == IR_sum) return 0;
  return t == K_F32 ? -__builtin_inf() : t == K_I32 ? -2147483648.0 : -9223372036854775808.0;
}

static ir_opcode scalar_of(ir_opcode kind) { return kind == IR_sum ? IR_add : IR_max; }

// Of what is added up or compared.
static ir_dtype term_dtype(const reduction *r) {
  return r->of ? r->of->yield.at[0]->type.dtype : r->x.dtype;
}

static bool by_rows(const reduction *r) {
  if (r->columns) return false;
  if (r->kind == IR_lse || r->keep.n == 0) return true;
  if (r->over.n == 0) return false;
  return r->over.stride[0][r->over.n - 1] <= r->keep.stride[0][r->keep.n - 1];
}

// Axis `last` of x as tiles, the others as one counted axis.
static b_cut cut_last(const bld *b, b_axes *x, int max, int multiple, int64_t *stride,
                      int tensors) {
  if (x->n == 0) {
    // What is reduced may be one element where it could be many (then its stride is any); results
    // are what they are.
    bool many = b->limit->powers && tensors == 1;
    for (int t = 0; t < tensors; t++) stride[t] = many ? 16 : 0;
    return many ? b_cut_rows(1, max) : b_cut_even(1, 1, 1);
  }
  int64_t size = x->size[x->n - 1];
  for (int t = 0; t < tensors; t++) stride[t] = x->stride[t][x->n - 1];
  b_drop(x, x->n - 1);
  return b->limit->powers ? b_cut_rows(size, max) : b_cut_even(size, max, multiple);
}

// log-sum-exp of what was seen so far as (m, s): the sum is s * exp(m). A row of -inf alone keeps
// m = -inf, and exp(m - m) must not become NaN then.
static void lse_step(bld *b, k_value *x, k_value *const *carry, k_value **next) {
  k_kernel *k = b->k;
  k_value *m = k_max(k, k_reduce(k, IR_max, x, 1), carry[0]);
  k_value *none = k_scalar(k, IR_eq, m, k_const(k, K_F32, -__builtin_inf()), NULL);
  k_value *safe = k_where(k, none, k_const(k, K_F32, 0), m);
  k_value *e = k_scalar(k, IR_exp, k_sub(k, x, safe), NULL, NULL);
  k_value *old = k_scalar(k, IR_exp, k_sub(k, carry[0], safe), NULL, NULL);
  next[0] = m;
  next[1] = k_fma(k, carry[1], old, k_reduce(k, IR_add, e, 1));
}

static k_value *lse_end(bld *b, k_value *const *carry) {
  k_kernel *k = b->k;
  k_value *none = k_scalar(k, IR_eq, carry[0], k_const(k, K_F32, -__builtin_inf()), NULL);
  k_value *v = k_add(k, carry[0], k_scalar(k, IR_log, carry[1], NULL, NULL));
  return k_where(k, none, carry[0], v);
}

// The function of each element; where there is none, the number that does not count.
static k_value *apply(bld *b, const reduction *r, k_value *x, const k_access *a, double neutral) {
  k_kernel *k = b->k;
  b_env *e = b_env_new(b);
  k_value *v, *in = NULL;
  int rows = x->rows, cols = x->cols;
  b_bind(e, r->of->args.at[0], x);
  b_region(e, r->of, &v);
  v = k_spread(k, v, rows, cols);
  if (a->row_limit) in = k_scalar(k, IR_lt, k_iota(k, K_I64, rows, 1), a->row_limit, NULL);
  if (a->col_limit) {
    k_value *here = k_scalar(k, IR_lt, k_iota(k, K_I64, 1, cols), a->col_limit, NULL);
    in = in ? k_scalar(k, IR_and, in, here, NULL) : here;
  }
  return in ? k_where(k, in, v, k_const(k, v->type, neutral)) : v;
}

// Builds the body of one kernel; b_begin was called and both tensors exist.
static void reduce_body(bld *b, const reduction *r) {
  k_kernel *k = b->k;
  bool rows = by_rows(r);
  b_axes keep = r->keep, over = r->over;
  int64_t kept[2], reduced[1];
  b_cut own = cut_last(b, &keep, rows ? 8 : 256, rows ? 1 : 16, kept, 2);
  b_cut part =
      cut_last(b, &over, rows ? b->limit->sum_cols : b->limit->sum_rows, rows ? 16 : 1, reduced, 1);
  if (rows && part.size < 256) own = b_cut_tile(b, own.extent, 32, 1);

  k_value *outer = k_grid(k, b_product(&keep));
  k_value *start = k_muli(k, b_grid(b, &own), own.size);
  k_value *p = b_grid_of(b, r->parts);
  k_value *coord[B_MAX_AXES];
  b_coordinates(b, &keep, outer, coord);
  k_value *base = k_add(k, b_at(b, &keep, 0, coord), k_muli(k, start, kept[0]));
  k_value *to = k_add(k, b_at(b, &keep, 1, coord), k_muli(k, start, kept[1]));
  to = k_add(k, to, k_mul(k, p, b_number(b, r->part_stride)));

  k_type t = k_type_of(term_dtype(r));
  double neutral = neutral_of(r->kind, t);
  int n = r->kind == IR_lse ? 2 : 1;
  int nr = rows ? own.size : 1, nc = rows ? 1 : own.size;
  k_value *init[2] = {k_full(k, t, nr, nc, neutral), NULL};
  if (n == 2) init[1] = k_full(k, K_F32, nr, nc, 0);
  // Chunk number -> coordinates of the outer reduced axes and the tile of the inner one.
  int64_t chunks = b_product(&over) * part.count;
  k_value *all = b_number(b, chunks), *parts = b_number(b, r->parts);
  k_value *lo = k_scalar(k, IR_floordiv, k_mul(k, p, all), parts, NULL);
  k_value *hi = k_scalar(k, IR_floordiv, k_mul(k, k_addi(k, p, 1), all), parts, NULL);
  b_loop l = b_loop_begin(b, lo, hi, 1, r->parts == 1 && !b->limit->powers ? chunks : 0, init, n);
  k_value *first = b_start(b, &part, l.i);
  b_coordinates(b, &over, k_divi(k, l.i, part.count), coord);
  k_access a = {
      .base = k_add(k, k_add(k, base, b_at(b, &over, 0, coord)),
                    rows ? k_muli(k, first, reduced[0]) : k_mul(k, first, b_number(b, reduced[0]))),
      .fill = neutral};
  a.row_stride = rows ? kept[0] : reduced[0];
  a.col_stride = rows ? reduced[0] : kept[0];
  a.row_limit = rows ? b_left(b, &own, start) : b_left(b, &part, first);
  a.col_limit = rows ? b_left(b, &part, first) : b_left(b, &own, start);
  k_value *x = b_load(b, &r->x, rows ? own.size : part.size, rows ? part.size : own.size, a);
  x = k_spread(k, x, rows ? own.size : part.size, rows ? part.size : own.size);
  if (r->of) x = apply(b, r, x, &a, neutral);
  k_value *next[2];
  if (n == 2) {
    lse_step(b, x, l.carry, next);
  } else {
    next[0] =
        k_scalar(k, scalar_of(r->kind), l.carry[0], k_reduce(k, scalar_of(r->kind), x, rows), NULL);
  }
  b_loop_end(b, &l, next);
  k_value *v = n == 2 ? lse_end(b, l.carry) : l.carry[0];
  k_access s = {.base = to, .row_stride = rows ? kept[1] : 0, .col_stride = rows ? 0 : kept[1]};
  *(rows ? &s.row_limit : &s.col_limit) = b_left(b, &own, start);
  b_store(b, &r->out, v, s);
}

// How many parts a reduction is cut into, from its shape.
static int64_t parts_of(const reduction *r) {
  int64_t results = b_product(&r->keep), each = b_product(&r->over);
  if (r->kind == IR_lse || results > 512 || results * each < 1 << 16) return 1;
  int64_t parts = each / (by_rows(r) ? 4096 : 256);
  return parts < 2 ? 1 : parts > 64 ? 64 : parts;
}

static ir_dtype natural_dtype(k_type t) {
  return t == K_F32 ? DT_f32 : t == K_I64 ? DT_i64 : DT_i32;
}

// A reduction of one number repeated is that number, times or plus how often it is.
static bool constant(ir_value *x, double *number) {
  const ir_op *def = ir_view_of(x).root->def;
  if (!def || def->code != IR_const) return false;
  *number = ir_attr_float(def, "value", 0);
  return true;
}

void b_reduce_parts(bld *b, ir_opcode kind, int scratch, ir_dtype t, int64_t parts, ir_value *out,
                    const b_axes *keep) {
  int64_t results = b_product(keep);
  reduction r = {.kind = kind,
                 .keep = *keep,
                 .over = {.n = 1, .tensors = 1, .size = {parts}, .stride = {{results}}},
                 .parts = 1};
  if (b->limit->powers && results == 1) {
    // Parts are few: those of one result are added by the function for those of many.
    r.columns = true;
    r.keep = (b_axes){.n = 1, .tensors = 2, .size = {1}, .stride = {{1}, {1}}};
  }
  b_begin(b, "%s_of_parts", kind == IR_sum ? "sum" : "max");
  r.x = b_scratch(b, scratch, t, parts * results, K_READ);
  r.out = b_write(b, out);
  reduce_body(b, &r);
  b_end(b);
}

void b_reduce_kernels(bld *b, ir_opcode kind, ir_value *x, ir_region *of, ir_value *out,
                      b_axes keep, b_axes over) {
  reduction r = {.kind = kind, .keep = keep, .over = over, .parts = 1, .of = of};
  double read = (double)ir_elements(&x->type), per = kind == IR_lse ? 12 : 1;
  b_collapse(&r.keep);
  b_collapse(&r.over);
  int64_t results = b_product(&r.keep), parts = parts_of(&r);
  const char *name = kind == IR_sum ? "sum" : kind == IR_lse ? "lse" : "max";
  double number;
  if (!of && constant(x, &number)) {
    double each = (double)b_product(&r.over);
    if (kind == IR_sum) number *= each;
    if (kind == IR_lse) number += log(each);
    ir_view w = ir_view_of(out);
    b_copy_kernel(b, name, out, &w, NULL, number);
    return;
  }
  b_begin(b, "%s", parts > 1 ? arena_printf(b->arena, "%s_parts", name) : name);
  r.x = b_read(b, x);
  b->k->flops = read * per;
  b->k->bytes = (double)(ir_bytes(&x->type) + ir_bytes(&out->type));
  if (parts == 1) {
    r.out = b_write(b, out);
    reduce_body(b, &r);
    b_end(b);
    return;
  }
  // Part p's results lie dense at p * results; the second kernel adds them in order.
  ir_dtype t = natural_dtype(k_type_of(term_dtype(&r)));
  int scratch = b_new_scratch(b, t, parts * results);
  reduction last = r;
  int64_t step = 1;
  for (int a = r.keep.n - 1; a >= 0; a--) {
    r.keep.stride[1][a] = last.keep.stride[0][a] = step;
    step *= r.keep.size[a];
  }
  r.parts = parts;
  r.part_stride = results;
  r.out = b_scratch(b, scratch, t, parts * results, K_WRITE);
  reduce_body(b, &r);
  b_end(b);

  b_reduce_parts(b, kind, scratch, t, parts, out, &last.keep);
}

void cg_build_reduce(bld *b) {
  ir_op *op = b->op;
  ir_value *x = op->in[0], *out = op->out[0];
  bool reduced[IR_MAX_RANK] = {0};
  const ir_attr *axes = ir_get_attr(op, "axes");
  if (op->code == IR_lse) reduced[x->type.rank - 1] = true;
  for (int i = 0; axes && i < axes->n; i++) reduced[axes->v[i]] = true;
  bool kept_dims = ir_attr_int(op, "keep", 0) != 0;
  ir_view vx = ir_view_of(x), vo = ir_view_of(out);
  b_axes keep = {.tensors = 2}, over = {.tensors = 1};
  int d_out = 0;
  for (int d = 0; d < x->type.rank; d++) {
    b_part part[2] = {{&vx, vx.dim_first[d], vx.dim_first[d + 1]}, {0}};
    if (reduced[d]) {
      b_align(&over, part, 1);
      d_out += kept_dims;
      continue;
    }
    part[1] = (b_part){&vo, vo.dim_first[d_out], vo.dim_first[d_out + 1]};
    d_out++;
    if (!b_align(&keep, part, 2)) {
      b_fail(b, "%s: layouts do not nest", ir_info(op->code)->name);
      return;
    }
  }
  b_reduce_kernels(b, op->code, x, op->nregions ? op->region[0] : NULL, out, keep, over);
}
