// Layouts: how tiles are spread over a block's threads, and which tile has which.
#include <string.h>

#include "codegen/cuda_impl.h"

static int log2_up(int n) {
  int b = 0;
  while (1 << b < n) b++;
  return b;
}

int cu_intern(cu *c, const cu_layout *l) {
  for (int i = 0; i < c->layouts.n; i++)
    if (memcmp(&c->layouts.at[i], l, sizeof *l) == 0) return i;
  vec_push(c->arena, &c->layouts, *l);
  vec_push(c->arena, &c->named, false);
  return c->layouts.n - 1;
}

int cu_registers(const cu_layout *l) { return l->outer[0] * l->outer[1] << l->nreg; }

static int extent(const cu_layout *l, int axis) { return axis == CU_ROW ? l->rows : l->cols; }

// ---- making layouts ----------------------------------------------------------------------------
// Bits are handed out from the lowest: `shift` counts those of each axis.

typedef struct maker {
  cu_layout l;
  int shift[2], lanes, warps;
  int warp_bits;
} maker;

static maker start(const cu *c, int rows, int cols) {
  maker m;
  memset(&m, 0, sizeof m);
  m.l.rows = rows;
  m.l.cols = cols;
  m.l.nwarp = m.warp_bits = c->warp_bits;
  return m;
}

static cu_bit next_bit(maker *m, int axis) {
  cu_bit b = {(signed char)axis, 0};
  if (axis != CU_NONE) b.shift = (unsigned char)m->shift[axis]++;
  return b;
}

static void give_reg(maker *m, int axis) { m->l.reg[m->l.nreg++] = next_bit(m, axis); }

static bool threads_left(const maker *m) {
  return m->lanes < CU_LANE_BITS || m->warps < m->warp_bits;
}

static void give_thread(maker *m, int axis) {
  if (m->lanes < CU_LANE_BITS) {
    m->l.lane[m->lanes++] = next_bit(m, axis);
  } else {
    m->l.warp[m->warps++] = next_bit(m, axis);
  }
}

static int finish(cu *c, maker *m) {
  while (threads_left(m)) give_thread(m, CU_NONE);
  for (int x = 0; x < 2; x++) {
    m->l.span[x] = 1 << m->shift[x];
    m->l.outer[x] = (extent(&m->l, x) + m->l.span[x] - 1) / m->l.span[x];
  }
  return cu_intern(c, &m->l);
}

// Gives thread bits to `axis` while they are of use. A last bit that would leave the threads of one
// half without elements for much of the extent is given only when nobody else could use it.
static void spread(maker *m, int axis, bool all) {
  int n = extent(&m->l, axis);
  while (threads_left(m) && 1 << m->shift[axis] < n) {
    int covered = 2 << m->shift[axis];  // with one more bit
    if (!all && (n + covered - 1) / covered * covered > n + n / 4) break;
    give_thread(m, axis);
  }
}

int cu_blocked(cu *c, int rows, int cols, int vec) {
  maker m = start(c, rows, cols);
  int axis = cols > 1 ? CU_COL : CU_ROW;
  int n = axis == CU_COL ? cols : rows;
  for (int v = 1; v < vec && n % (2 * v) == 0; v *= 2) give_reg(&m, axis);
  spread(&m, axis, rows == 1 || cols == 1);
  if (axis == CU_COL) spread(&m, CU_ROW, false);
  if (axis == CU_COL) spread(&m, CU_COL, true);
  spread(&m, CU_ROW, true);
  return finish(c, &m);
}

int cu_fragment(cu *c, int rows, int cols, bool rows_whole) {
  maker m = start(c, rows, cols);
  give_reg(&m, CU_COL);
  give_thread(&m, CU_COL);
  give_thread(&m, CU_COL);
  for (int i = 0; i < 3; i++) give_thread(&m, CU_ROW);
  give_reg(&m, CU_ROW);
  // Warps: strips of 16 rows; where rows need not stay in one warp, about as many rows as columns.
  while (threads_left(&m)) {
    bool more_rows = 1 << m.shift[CU_ROW] < rows, more_cols = 1 << m.shift[CU_COL] < cols;
    bool wide = cols >> m.shift[CU_COL] > 2 * (rows >> m.shift[CU_ROW]);
    int axis = more_rows && (rows_whole || !more_cols || !wide) ? CU_ROW
               : more_cols && !rows_whole                       ? CU_COL
               : more_rows                                      ? CU_ROW
                                                                : CU_NONE;
    give_thread(&m, axis);
  }
  return finish(c, &m);
}

int cu_fma_tile(cu *c, int rows, int cols) {
  maker m = start(c, rows, cols);
  give_reg(&m, CU_COL);
  give_reg(&m, CU_COL);
  for (int i = 0; i < 4 && 1 << m.shift[CU_COL] < cols; i++) give_thread(&m, CU_COL);
  while (threads_left(&m) && 1 << m.shift[CU_ROW] < rows) give_thread(&m, CU_ROW);
  return finish(c, &m);
}

static bool same_bit(cu_bit a, int axis) { return a.axis == axis; }

// The bits of `axis` stand for none; its extent becomes 1.
int cu_slice(cu *c, int layout, int axis) {
  const cu_layout *l = cu_lay(c, layout);
  cu_layout s;
  memset(&s, 0, sizeof s);
  s.rows = axis == CU_ROW ? 1 : l->rows;
  s.cols = axis == CU_COL ? 1 : l->cols;
  s.nwarp = l->nwarp;
  for (int i = 0; i < l->nreg; i++)
    if (!same_bit(l->reg[i], axis)) s.reg[s.nreg++] = l->reg[i];
  for (int i = 0; i < CU_LANE_BITS; i++)
    s.lane[i] = same_bit(l->lane[i], axis) ? (cu_bit){CU_NONE, 0} : l->lane[i];
  for (int i = 0; i < l->nwarp; i++)
    s.warp[i] = same_bit(l->warp[i], axis) ? (cu_bit){CU_NONE, 0} : l->warp[i];
  for (int x = 0; x < 2; x++) {
    s.outer[x] = x == axis ? 1 : l->outer[x];
    s.span[x] = x == axis ? 1 : l->span[x];
  }
  return cu_intern(c, &s);
}

static cu_bit turn(cu_bit b) {
  if (b.axis != CU_NONE) b.axis = b.axis == CU_ROW ? CU_COL : CU_ROW;
  return b;
}

int cu_turned(cu *c, int layout) {
  cu_layout l = *cu_lay(c, layout), t = l;
  t.rows = l.cols;
  t.cols = l.rows;
  for (int i = 0; i < l.nreg; i++) t.reg[i] = turn(l.reg[i]);
  for (int i = 0; i < CU_LANE_BITS; i++) t.lane[i] = turn(l.lane[i]);
  for (int i = 0; i < l.nwarp; i++) t.warp[i] = turn(l.warp[i]);
  for (int x = 0; x < 2; x++) {
    t.outer[x] = l.outer[1 - x];
    t.span[x] = l.span[1 - x];
  }
  // The order of repetitions is rows, then columns: with both, registers would be numbered anew.
  if (l.outer[0] > 1 && l.outer[1] > 1) return -1;
  return cu_intern(c, &t);
}

// ---- asking ------------------------------------------------------------------------------------

int cu_vector(const cu_layout *l, int *axis) {
  *axis = l->nreg ? l->reg[0].axis : l->cols > 1 ? CU_COL : CU_ROW;
  int n = 0;
  while (n < l->nreg && n < 3 && l->reg[n].axis == *axis && l->reg[n].shift == n) n++;
  if (n == 0) *axis = CU_COL;
  return 1 << n;
}

bool cu_padded(const cu_layout *l, int axis) {
  return l->span[axis] * l->outer[axis] != extent(l, axis);
}

bool cu_copies(const cu_layout *l) {
  for (int i = 0; i < CU_LANE_BITS; i++)
    if (l->lane[i].axis == CU_NONE) return true;
  for (int i = 0; i < l->nwarp; i++)
    if (l->warp[i].axis == CU_NONE) return true;
  return false;
}

// The bits of number `i` that stand for `axis`, put together: neighbours that stay neighbours move
// at once. `kept`: they are numbered anew, without gaps, from there on. Returns what joins the next
// term.
static const char *gather_bits(sb *s, const cu_bit *bit, int n, int axis, const char *i,
                               const char *plus, int *kept) {
  for (int b = 0; b < n;) {
    if (bit[b].axis != axis) {
      b++;
      continue;
    }
    int run = 1, to = kept ? *kept : bit[b].shift;
    while (b + run < n && bit[b + run].axis == axis && bit[b + run].shift == bit[b].shift + run)
      run++;
    sb_puts(s, plus);
    plus = " + ";
    if (to) sb_put(s, '(');
    if (b)
      sb_printf(s, "(%s >> %d & %d)", i, b, (1 << run) - 1);
    else
      sb_printf(s, "(%s & %d)", i, (1 << run) - 1);
    if (to) sb_printf(s, " << %d)", to);
    if (kept) *kept += run;
    b += run;
  }
  return plus;
}

// Which repetition along `axis` register i belongs to.
static const char *repetition(cu *c, const cu_layout *l, int axis, const char *i) {
  const char *at = l->nreg ? arena_printf(c->arena, "(%s >> %d)", i, l->nreg) : i;
  if (axis == CU_ROW && l->outer[1] > 1) return arena_printf(c->arena, "%s / %d", at, l->outer[1]);
  if (axis == CU_COL && l->outer[0] > 1) return arena_printf(c->arena, "%s %% %d", at, l->outer[1]);
  return at;
}

const char *cu_register_at(cu *c, const cu_layout *l, int axis, const char *i) {
  sb s = {.arena = c->arena};
  const char *plus = gather_bits(&s, l->reg, l->nreg, axis, i, "", NULL);
  if (l->outer[axis] > 1)
    sb_printf(&s, "%s%s * %d", plus, repetition(c, l, axis, i), l->span[axis]);
  return s.n ? sb_str(&s) : "0";
}

const char *cu_register_of(cu *c, const cu_layout *from, int axis, const char *i) {
  // axis: the one that is gone. Bits of the other axis move together; repetitions stay on top.
  sb s = {.arena = c->arena};
  int kept = 0, other = 1 - axis;
  const char *plus = gather_bits(&s, from->reg, from->nreg, other, i, "", &kept);
  if (from->outer[other] > 1)
    sb_printf(&s, "%s(%s << %d)", plus, repetition(c, from, other, i), kept);
  return s.n ? sb_str(&s) : "0";
}

// The thread's share of a coordinate, from lane and warp.
static void thread_sum(cu *c, const cu_layout *l, int axis) {
  cu_bit bit[CU_LANE_BITS + CU_WARP_BITS];
  memcpy(bit, l->lane, sizeof l->lane);
  memcpy(bit + CU_LANE_BITS, l->warp, sizeof l->warp);
  const char *plus = gather_bits(&c->head, bit, CU_LANE_BITS + l->nwarp, axis, "tid", "", NULL);
  if (!*plus) sb_puts(&c->head, "0");
}

static void name_layout(cu *c, int layout) {
  if (c->named.at[layout]) return;
  c->named.at[layout] = true;
  const cu_layout *l = cu_lay(c, layout);
  sb_printf(&c->head, "  const int r%d = ", layout);
  thread_sum(c, l, CU_ROW);
  sb_printf(&c->head, ", c%d = ", layout);
  thread_sum(c, l, CU_COL);
  sb_puts(&c->head, ";\n");
  if (!cu_copies(l)) return;
  unsigned bits = 0;
  for (int i = 0; i < CU_LANE_BITS + l->nwarp; i++) {
    cu_bit b = i < CU_LANE_BITS ? l->lane[i] : l->warp[i - CU_LANE_BITS];
    if (b.axis == CU_NONE) bits |= 1u << i;
  }
  sb_printf(&c->head, "  const bool own%d = (tid & %u) == 0;\n", layout, bits);
}

const char *cu_thread_at(cu *c, int layout, int axis) {
  name_layout(c, layout);
  return arena_printf(c->arena, "%c%d", axis == CU_ROW ? 'r' : 'c', layout);
}

const char *cu_owner(cu *c, int layout) {
  if (!cu_copies(cu_lay(c, layout))) return NULL;
  name_layout(c, layout);
  return arena_printf(c->arena, "own%d", layout);
}

// ---- which tile has which ----------------------------------------------------------------------
// Values of one shape that are computed from each other element by element form a class with one
// layout. Results of dots say theirs; reductions say those of what they leave; other tiles are read
// and written by memory best as blocks.

// Is it there in any layout at no cost: the same number everywhere, or the position itself?
static bool is_free(const k_value *v) {
  if (cu_is_scalar(v)) return true;
  const k_stmt *d = v->def;
  if (!d) return false;
  switch (d->code) {
    case K_CONST:
    case K_IOTA:
    case K_TABLE: return true;
    case K_STAGE: return is_free(d->in[0]);
    case K_SPREAD:
      return cu_is_scalar(d->in[0]) || (d->in[0]->def && d->in[0]->def->code == K_CONST);
    default: return false;
  }
}

static int find(cu *c, const k_value *v) {
  int i = v->id;
  while (c->class_of[i] != i) i = c->class_of[i] = c->class_of[c->class_of[i]];
  return i;
}

static void unite(cu *c, const k_value *a, const k_value *b) {
  if (is_free(a) || is_free(b) || a->rows != b->rows || a->cols != b->cols) return;
  int x = find(c, a), y = find(c, b);
  // The earlier value stands for the class: numbers do not depend on the order of uniting.
  if (x < y)
    c->class_of[y] = x;
  else
    c->class_of[x] = y;
}

typedef struct survey {
  int most;  // elements of the largest tile that is no dot's operand
  int dots, adds;
  double sums;  // elements of results of dots
  bool narrow;  // buffers of two bytes or fewer
  VEC(k_stmt *) all;
} survey;

static void list_block(cu *c, survey *w, const k_block *b) {
  for (int i = 0; i < b->stmts.n; i++) {
    k_stmt *s = b->stmts.at[i];
    vec_push(c->arena, &w->all, s);
    for (int j = 0; j < 2; j++)
      if (s->body[j]) list_block(c, w, s->body[j]);
  }
}

static void unite_stmt(cu *c, const k_stmt *s) {
  const k_value *out = s->nout ? s->out[0] : s->nin ? s->in[0] : NULL;
  if (k_pointwise(s) || s->code == K_STAGE)
    for (int i = 0; i < s->nin; i++) unite(c, s->in[i], out);
  switch (s->code) {
    case K_LOAD:
    case K_STORE:
      if (s->access.offset) unite(c, s->access.offset, out);
      if (s->access.mask) unite(c, s->access.mask, out);
      break;
    case K_DOT: unite(c, s->in[0], out); break;
    case K_FOR:
      for (int i = 0; i < s->nout; i++) {
        unite(c, s->in[2 + i], s->out[i]);
        unite(c, s->body[0]->args.at[1 + i], s->out[i]);
        unite(c, s->body[0]->yield.at[i], s->out[i]);
      }
      break;
    case K_IF:
      for (int i = 0; i < s->nout; i++)
        for (int j = 0; j < 2; j++) unite(c, s->body[j]->yield.at[i], s->out[i]);
      break;
    default: break;
  }
}

static void look_at(cu *c, survey *w, const k_stmt *s) {
  for (int i = 0; i < s->nout; i++) {
    const k_value *v = s->out[i];
    int n = v->rows * v->cols;
    if (n > w->most) w->most = n;
  }
  if (s->code == K_DOT) {
    w->dots++;
    w->sums += (double)s->out[0]->rows * s->out[0]->cols;
  }
  w->adds += s->code == K_STORE_ADD;
  if (s->code == K_LOAD || s->code == K_STORE)
    w->narrow |= cu_dtype_bytes(c->k->buffer[s->access.buffer].dtype) <= 2;
}

// Threads: about 16 elements of the largest tile for each; with dots so many that the sums of all
// results, which live in registers, take at most 96 of them. (What is added to memory is computed
// by long formulas.)
static int choose_threads(const survey *w) {
  int t = 32;
  if (w->dots) {
    t = 128;
    while (t < 256 && (w->adds || w->sums / t > 96)) t *= 2;
  } else {
    while (t < 256 && t * 16 < w->most) t *= 2;
  }
  return t;
}

static void set_layout(cu *c, const k_value *v, int layout) {
  int r = find(c, v);
  if (!is_free(v) && c->layout_of[r] < 0) c->layout_of[r] = layout;
}

static bool is_line(const k_value *v) { return (v->rows == 1) != (v->cols == 1); }
static bool is_tile(const k_value *v) { return v->rows > 1 && v->cols > 1; }

// Is a sum or maximum taken over the columns of something in this class?
static bool reduced_by_rows(cu *c, const survey *w, int class) {
  for (int i = 0; i < w->all.n; i++) {
    const k_stmt *s = w->all.at[i];
    if (s->code == K_REDUCE && s->axis == 1 && !is_free(s->in[0]) && find(c, s->in[0]) == class)
      return true;
  }
  return false;
}

// A line (a row or column) takes the layout of what is left of the tile that it is combined with.
static void line_from_user(cu *c, const k_stmt *s) {
  k_value *in[K_MAX_OPERANDS];
  int n = k_operands(s, in);
  const k_value *shape = s->code == K_STORE || s->code == K_STORE_ADD ? s->in[0]
                         : s->nout && s->code != K_REDUCE             ? s->out[0]
                                                                      : NULL;
  if (!shape || !is_tile(shape) || s->code == K_DOT || s->code == K_FOR || s->code == K_IF) return;
  for (int i = 0; i < n; i++)
    if (is_line(in[i]) && !is_free(in[i]))
      set_layout(c, in[i],
                 cu_slice(c, cu_layout_for(c, shape), in[i]->rows == 1 ? CU_ROW : CU_COL));
}

static void line_from_reduction(cu *c, const k_stmt *s) {
  if (s->code == K_REDUCE && !cu_is_scalar(s->out[0]) && !is_free(s->in[0]))
    set_layout(c, s->out[0],
               cu_slice(c, cu_layout_for(c, s->in[0]), s->axis == 1 ? CU_COL : CU_ROW));
  if (s->code == K_TRANSPOSE && is_line(s->out[0]) && !is_free(s->in[0])) {
    int r = find(c, s->in[0]);
    if (c->layout_of[r] >= 0) {
      int t = cu_turned(c, c->layout_of[r]);
      if (t >= 0) set_layout(c, s->out[0], t);
    }
  }
}

int cu_layout_for(cu *c, const k_value *v) {
  if (!is_free(v)) {
    int r = find(c, v);
    if (c->layout_of[r] >= 0) return c->layout_of[r];
    c->layout_of[r] = cu_blocked(c, v->rows, v->cols, 4);
    return c->layout_of[r];
  }
  return cu_blocked(c, v->rows, v->cols, 4);
}

void cu_assign(cu *c) {
  survey w = {0};
  list_block(c, &w, c->k->body);
  for (int i = 0; i < w.all.n; i++) look_at(c, &w, w.all.at[i]);
  c->dots = w.dots;
  c->threads = choose_threads(&w);
  c->warp_bits = log2_up(c->threads / 32);
  c->class_of = arena_new(c->arena, int, c->k->next_id + 1);
  c->layout_of = arena_new(c->arena, int, c->k->next_id + 1);
  for (int i = 0; i <= c->k->next_id; i++) c->class_of[i] = i, c->layout_of[i] = -1;
  for (int i = 0; i < w.all.n; i++) unite_stmt(c, w.all.at[i]);
  for (int i = 0; i < w.all.n; i++) {
    const k_stmt *s = w.all.at[i];
    if (s->code != K_DOT) continue;
    const k_value *v = s->out[0];
    bool whole = reduced_by_rows(c, &w, find(c, v));
    set_layout(c, v,
               s->storage == DT_bf16 ? cu_fragment(c, v->rows, v->cols, whole)
                                     : cu_fma_tile(c, v->rows, v->cols));
  }
  for (int i = 0; i < w.all.n; i++) {
    const k_stmt *s = w.all.at[i];
    for (int j = 0; j < s->nout; j++)
      if (is_tile(s->out[j]) && !is_free(s->out[j]))
        set_layout(c, s->out[j], cu_blocked(c, s->out[j]->rows, s->out[j]->cols, w.narrow ? 8 : 4));
  }
  for (int i = 0; i < w.all.n; i++) line_from_reduction(c, w.all.at[i]);
  for (int i = 0; i < w.all.n; i++) line_from_user(c, w.all.at[i]);
}
