// Building kernel IR: statements, implicit casts, and the small folding that lets builders write
// general index formulas without filling kernels with `+ 0` and `* 1`.
#include "codegen/kernel.h"

#include <string.h>

k_kernel *k_new(arena *a, const char *name) {
  k_kernel *k = arena_new(a, k_kernel, 1);
  k->arena = a;
  k->name = name;
  k->body = arena_new(a, k_block, 1);
  k->at = k->body;
  return k;
}

int k_buffer(k_kernel *k, const char *name, ir_dtype t, k_use use) {
  IR_CHECK(k->nbuffers < K_MAX_BUFFERS);
  k->buffer[k->nbuffers] = (k_buffer_info){name, t, use, 0};
  return k->nbuffers++;
}

int64_t k_cells(const k_kernel *k) {
  int64_t n = 1;
  for (int d = 0; d < k->ngrid; d++) n *= k->grid[d];
  return n;
}

k_type k_type_of(ir_dtype t) {
  if (ir_dtype_float(t)) return K_F32;
  if (t == DT_bool) return K_BOOL;
  return t == DT_i64 ? K_I64 : K_I32;
}

bool k_pointwise(const k_stmt *s) {
  switch (s->code) {
    case K_SCALAR:
    case K_FMA:
    case K_CAST:
    case K_SPREAD:
    case K_KEY:
    case K_DRAW: return true;
    default: return false;
  }
}

const char *k_type_name(k_type t) {
  static const char *const name[] = {"f32", "i32", "i64", "bool"};
  return name[t];
}

// ---- statements --------------------------------------------------------------------------------

static k_value *new_value(k_kernel *k, k_block *b, k_type t, int rows, int cols) {
  IR_CHECK(rows >= 1 && cols >= 1);
  k_value *v = arena_new(k->arena, k_value, 1);
  v->id = k->next_id++;
  v->type = t;
  v->rows = rows;
  v->cols = cols;
  v->block = b;
  v->mark = -1;
  return v;
}

static k_stmt *new_stmt(k_kernel *k, k_code code, int nin, int nout) {
  k_stmt *s = arena_new(k->arena, k_stmt, 1);
  s->code = code;
  s->nin = nin;
  s->nout = nout;
  s->in = arena_new(k->arena, k_value *, nin + 1);
  s->out = arena_new(k->arena, k_value *, nout + 1);
  s->parent = k->at;
  s->seq = k->next_seq++;
  vec_push(k->arena, &k->at->stmts, s);
  return s;
}

static void add_use(k_kernel *k, k_value *v, k_stmt *s) {
  if (v) vec_push(k->arena, &v->uses, s);
}

static k_value *result(k_kernel *k, k_stmt *s, k_type t, int rows, int cols) {
  k_value *v = new_value(k, s->parent, t, rows, cols);
  v->def = s;
  s->out[0] = v;
  for (int i = 0; i < s->nin; i++) add_use(k, s->in[i], s);
  return v;
}

int k_operands(const k_stmt *s, k_value **out) {
  int n = 0;
  for (int i = 0; i < s->nin; i++)
    if (s->in[i]) out[n++] = s->in[i];
  const k_access *x = &s->access;
  k_value *const part[] = {x->base, x->offset, x->row_limit, x->col_limit, x->mask};
  for (int i = 0; i < 5; i++)
    if (part[i]) out[n++] = part[i];
  IR_CHECK(n <= K_MAX_OPERANDS);
  return n;
}

k_value *k_full(k_kernel *k, k_type t, int rows, int cols, double v) {
  k_stmt *s = new_stmt(k, K_CONST, 0, 1);
  if (t == K_F32) {
    s->f = v;
  } else {
    s->i = t == K_BOOL ? v != 0 : (int64_t)v;
  }
  return result(k, s, t, rows, cols);
}

k_value *k_const(k_kernel *k, k_type t, double v) { return k_full(k, t, 1, 1, v); }

static k_value *int_of_type(k_kernel *k, k_type t, int64_t v) {
  k_stmt *s = new_stmt(k, K_CONST, 0, 1);
  s->i = v;
  return result(k, s, t, 1, 1);
}

k_value *k_int(k_kernel *k, int64_t v) { return int_of_type(k, K_I64, v); }

k_value *k_open(k_kernel *k, int64_t v) {
  k_value *n = k_int(k, v);
  n->def->open = true;
  return n;
}

k_value *k_open_real(k_kernel *k, double v) {
  k_value *n = k_const(k, K_F32, v);
  n->def->open = true;
  return n;
}

bool k_is_const(const k_value *v, int64_t *out) {
  if (!v->def || v->def->code != K_CONST || v->type == K_F32 || v->def->open) return false;
  if (out) *out = v->def->i;
  return true;
}

k_value *k_grid(k_kernel *k, int64_t extent) {
  k_value *v = k_grid_open(k, extent);
  return extent == 1 ? k_int(k, 0) : v;
}

k_value *k_grid_open(k_kernel *k, int64_t extent) {
  IR_CHECK(k->ngrid < K_MAX_GRID && extent >= 1);
  k->grid[k->ngrid] = extent;
  k_stmt *s = new_stmt(k, K_GRID, 0, 1);
  s->i = k->ngrid++;
  return result(k, s, K_I64, 1, 1);
}

k_value *k_call(k_kernel *k, k_field f) {
  k_stmt *s = new_stmt(k, K_FIELD, 0, 1);
  s->i = f;
  return result(k, s, K_I64, 1, 1);
}

k_value *k_iota(k_kernel *k, k_type t, int rows, int cols) {
  IR_CHECK(rows == 1 || cols == 1);
  if (rows == 1 && cols == 1) return int_of_type(k, t, 0);
  k_stmt *s = new_stmt(k, K_IOTA, 0, 1);
  s->axis = cols > 1;
  return result(k, s, t, rows, cols);
}

k_value *k_table(k_kernel *k, const float *v, int rows, int cols) {
  IR_CHECK(rows == 1 || cols == 1);
  k_stmt *s = new_stmt(k, K_TABLE, 0, 1);
  float *copy = arena_new(k->arena, float, rows *cols);
  memcpy(copy, v, sizeof *v * (size_t)(rows * cols));
  s->table = copy;
  return result(k, s, K_F32, rows, cols);
}

// ---- scalars -----------------------------------------------------------------------------------

k_value *k_cast(k_kernel *k, k_value *a, k_type t) {
  if (a->type == t) return a;
  int64_t c;
  if (a->rows == 1 && a->cols == 1 && k_is_const(a, &c)) {
    if (t == K_F32) return k_const(k, K_F32, (double)c);
    return int_of_type(k, t, t == K_BOOL ? c != 0 : t == K_I32 ? (int32_t)c : c);
  }
  k_stmt *s = new_stmt(k, K_CAST, 1, 1);
  s->in[0] = a;
  s->storage = t == K_F32 ? DT_f32 : t == K_I32 ? DT_i32 : t == K_I64 ? DT_i64 : DT_bool;
  return result(k, s, t, a->rows, a->cols);
}

k_value *k_round(k_kernel *k, k_value *a, ir_dtype t) {
  k_type to = k_type_of(t);
  // f64 is stored from f32 values, so nothing is lost on that way.
  if (t == DT_f32 || t == DT_f64 || t == DT_i32 || t == DT_i64 || t == DT_bool)
    return k_cast(k, a, to);
  k_stmt *s = new_stmt(k, K_CAST, 1, 1);
  s->in[0] = a;
  s->storage = t;
  return result(k, s, to, a->rows, a->cols);
}

static k_type join(k_type a, k_type b) {
  if (a == K_F32 || b == K_F32) return K_F32;
  if (a == K_I64 || b == K_I64) return K_I64;
  if (a == K_I32 || b == K_I32) return K_I32;
  return K_BOOL;
}

// The types a scalar row works on and gives, from the join of its numeric operands.
static void scalar_types(ir_opcode op, k_type j, k_type *operand, k_type *res) {
  switch (op) {
    case IR_lt:
    case IR_le:
    case IR_gt:
    case IR_ge:
    case IR_eq:
    case IR_ne:
      *operand = j == K_BOOL ? K_I32 : j;
      *res = K_BOOL;
      return;
    case IR_and:
    case IR_or:
    case IR_not: *operand = *res = K_BOOL; return;
    case IR_where: *operand = *res = j; return;
    case IR_add:
    case IR_sub:
    case IR_mul:
    case IR_floordiv:
    case IR_mod:
    case IR_max:
    case IR_min:
    case IR_neg:
    case IR_abs:
    case IR_floor: *operand = *res = j == K_BOOL ? K_I32 : j; return;
    default: *operand = *res = K_F32; return;
  }
}

static int64_t floor_div(int64_t a, int64_t b) {
  int64_t q = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

// Integer arithmetic on constants, and the neutral elements. NULL: nothing to fold.
static k_value *fold(k_kernel *k, ir_opcode op, k_value *a, k_value *b) {
  if (!b || a->type == K_F32 || a->rows * a->cols * b->rows * b->cols != 1) return NULL;
  int64_t x = 0, y = 0;
  bool ca = k_is_const(a, &x), cb = k_is_const(b, &y);
  if (ca && cb) {
    switch (op) {
      case IR_add: return int_of_type(k, a->type, x + y);
      case IR_sub: return int_of_type(k, a->type, x - y);
      case IR_mul: return int_of_type(k, a->type, x * y);
      case IR_floordiv: return y ? int_of_type(k, a->type, floor_div(x, y)) : NULL;
      case IR_mod: return y ? int_of_type(k, a->type, x - y * floor_div(x, y)) : NULL;
      case IR_max: return int_of_type(k, a->type, x > y ? x : y);
      case IR_min: return int_of_type(k, a->type, x < y ? x : y);
      case IR_lt: return int_of_type(k, K_BOOL, x < y);
      case IR_le: return int_of_type(k, K_BOOL, x <= y);
      case IR_gt: return int_of_type(k, K_BOOL, x > y);
      case IR_ge: return int_of_type(k, K_BOOL, x >= y);
      case IR_and: return int_of_type(k, K_BOOL, x && y);
      case IR_or: return int_of_type(k, K_BOOL, x || y);
      default: return NULL;
    }
  }
  switch (op) {
    case IR_add: return ca && x == 0 ? b : cb && y == 0 ? a : NULL;
    case IR_sub: return cb && y == 0 ? a : NULL;
    case IR_mul:
      if (ca && x == 0) return a;
      if (cb && y == 0) return b;
      return ca && x == 1 ? b : cb && y == 1 ? a : NULL;
    case IR_floordiv: return cb && y == 1 ? a : NULL;
    case IR_mod: return cb && y == 1 ? int_of_type(k, a->type, 0) : NULL;
    case IR_and:
      if (ca) return x ? b : a;
      return cb ? (y ? a : b) : NULL;
    case IR_or:
      if (ca) return x ? a : b;
      return cb ? (y ? b : a) : NULL;
    default: return NULL;
  }
}

static int wider(int a, int b) {
  IR_CHECK(a == b || a == 1 || b == 1);
  return a > b ? a : b;
}

k_value *k_scalar(k_kernel *k, ir_opcode op, k_value *a, k_value *b, k_value *c) {
  k_value *in[3] = {a, b, c};
  int n = c ? 3 : b ? 2 : 1, rows = 1, cols = 1;
  k_type j = K_BOOL;
  for (int i = op == IR_where; i < n; i++) j = join(j, in[i]->type);
  k_type operand, res;
  scalar_types(op, j, &operand, &res);
  for (int i = 0; i < n; i++) {
    in[i] = op == IR_where && i == 0 ? k_cast(k, in[i], K_BOOL) : k_cast(k, in[i], operand);
    rows = wider(rows, in[i]->rows);
    cols = wider(cols, in[i]->cols);
  }
  if (op == IR_floor && operand != K_F32) return in[0];
  k_value *folded = n == 2 ? fold(k, op, in[0], in[1]) : NULL;
  if (folded) return folded;
  k_stmt *s = new_stmt(k, K_SCALAR, n, 1);
  s->op = op;
  memcpy(s->in, in, sizeof in[0] * (size_t)n);
  return result(k, s, res, rows, cols);
}

k_value *k_add(k_kernel *k, k_value *a, k_value *b) { return k_scalar(k, IR_add, a, b, NULL); }
k_value *k_sub(k_kernel *k, k_value *a, k_value *b) { return k_scalar(k, IR_sub, a, b, NULL); }
k_value *k_mul(k_kernel *k, k_value *a, k_value *b) { return k_scalar(k, IR_mul, a, b, NULL); }
k_value *k_max(k_kernel *k, k_value *a, k_value *b) { return k_scalar(k, IR_max, a, b, NULL); }
k_value *k_min(k_kernel *k, k_value *a, k_value *b) { return k_scalar(k, IR_min, a, b, NULL); }
k_value *k_where(k_kernel *k, k_value *c, k_value *a, k_value *b) {
  return k_scalar(k, IR_where, c, a, b);
}

static k_value *with_int(k_kernel *k, ir_opcode op, k_value *a, int64_t b) {
  return k_scalar(k, op, a, int_of_type(k, a->type, b), NULL);
}
k_value *k_muli(k_kernel *k, k_value *a, int64_t b) { return with_int(k, IR_mul, a, b); }
k_value *k_addi(k_kernel *k, k_value *a, int64_t b) { return with_int(k, IR_add, a, b); }
k_value *k_divi(k_kernel *k, k_value *a, int64_t b) { return with_int(k, IR_floordiv, a, b); }
k_value *k_modi(k_kernel *k, k_value *a, int64_t b) { return with_int(k, IR_mod, a, b); }

k_value *k_fma(k_kernel *k, k_value *a, k_value *b, k_value *c) {
  k_stmt *s = new_stmt(k, K_FMA, 3, 1);
  s->in[0] = a, s->in[1] = b, s->in[2] = c;
  int rows = wider(wider(a->rows, b->rows), c->rows),
      cols = wider(wider(a->cols, b->cols), c->cols);
  return result(k, s, K_F32, rows, cols);
}

k_value *k_spread(k_kernel *k, k_value *a, int rows, int cols) {
  if (a->rows == rows && a->cols == cols) return a;
  k_stmt *s = new_stmt(k, K_SPREAD, 1, 1);
  s->in[0] = a;
  return result(k, s, a->type, rows, cols);
}

k_value *k_key(k_kernel *k, int64_t op_key, k_value *sample) {
  sample = k_cast(k, sample, K_I64);
  k_stmt *s = new_stmt(k, K_KEY, 1, 1);
  s->i = op_key;
  s->in[0] = sample;
  return result(k, s, K_I64, sample->rows, sample->cols);
}

k_value *k_draw(k_kernel *k, k_value *key, k_value *index, uint32_t below) {
  k_stmt *s = new_stmt(k, K_DRAW, 2, 1);
  s->i = below;
  s->in[0] = key;
  s->in[1] = index;
  return result(k, s, K_BOOL, wider(key->rows, index->rows), wider(key->cols, index->cols));
}

// ---- tiles -------------------------------------------------------------------------------------

static void use_access(k_kernel *k, k_stmt *s) {
  const k_access *x = &s->access;
  add_use(k, x->base, s);
  add_use(k, x->offset, s);
  add_use(k, x->row_limit, s);
  add_use(k, x->col_limit, s);
  add_use(k, x->mask, s);
}

// A constant base of 0 and limits that never bite are dropped, so that they cost nothing.
static k_access tidy(k_access x, int rows, int cols) {
  int64_t c;
  if (x.base && k_is_const(x.base, &c) && c == 0) x.base = NULL;
  if (x.row_limit && k_is_const(x.row_limit, &c) && c >= rows) x.row_limit = NULL;
  if (x.col_limit && k_is_const(x.col_limit, &c) && c >= cols) x.col_limit = NULL;
  if (x.mask && x.mask->rows * x.mask->cols == 1 && k_is_const(x.mask, &c) && c) x.mask = NULL;
  if (rows == 1) x.row_stride = 0;
  if (cols == 1) x.col_stride = 0;
  return x;
}

k_value *k_load(k_kernel *k, int rows, int cols, k_access x) {
  if (x.offset) x.offset = k_cast(k, x.offset, K_I64);
  k_stmt *s = new_stmt(k, K_LOAD, 0, 1);
  s->access = tidy(x, rows, cols);
  use_access(k, s);
  return result(k, s, k_type_of(k->buffer[x.buffer].dtype), rows, cols);
}

static void store(k_kernel *k, k_code code, k_value *v, k_access x) {
  v = k_cast(k, v, k_type_of(k->buffer[x.buffer].dtype));
  if (x.offset) x.offset = k_cast(k, x.offset, K_I64);
  k_stmt *s = new_stmt(k, code, 1, 0);
  s->in[0] = v;
  s->access = tidy(x, v->rows, v->cols);
  add_use(k, v, s);
  use_access(k, s);
}

void k_store(k_kernel *k, k_value *v, k_access x) { store(k, K_STORE, v, x); }
void k_store_add(k_kernel *k, k_value *v, k_access x) { store(k, K_STORE_ADD, v, x); }

k_value *k_reduce(k_kernel *k, ir_opcode op, k_value *a, int axis) {
  IR_CHECK(op == IR_add || op == IR_max);
  if ((axis ? a->cols : a->rows) == 1) return a;
  k_stmt *s = new_stmt(k, K_REDUCE, 1, 1);
  s->op = op;
  s->axis = axis;
  s->in[0] = a;
  return result(k, s, a->type, axis ? a->rows : 1, axis ? 1 : a->cols);
}

k_value *k_dot(k_kernel *k, k_value *acc, k_value *a, k_value *b, bool ta, bool tb) {
  return k_dot_rounded(k, DT_f32, acc, a, b, ta, tb);
}

k_value *k_dot_rounded(k_kernel *k, ir_dtype storage, k_value *acc, k_value *a, k_value *b, bool ta,
                       bool tb) {
  k_stmt *s = new_stmt(k, K_DOT, 3, 1);
  s->in[0] = acc, s->in[1] = a, s->in[2] = b;
  s->ta = ta, s->tb = tb;
  s->storage = storage;
  return result(k, s, K_F32, acc->rows, acc->cols);
}

k_value *k_transpose(k_kernel *k, k_value *a) {
  k_stmt *s = new_stmt(k, K_TRANSPOSE, 1, 1);
  s->in[0] = a;
  return result(k, s, a->type, a->cols, a->rows);
}

k_value *k_stage(k_kernel *k, k_value *a) {
  k_stmt *s = new_stmt(k, K_STAGE, 1, 1);
  s->in[0] = a;
  return result(k, s, a->type, a->rows, a->cols);
}

void k_barrier(k_kernel *k) { new_stmt(k, K_BARRIER, 0, 0); }

// ---- structure ---------------------------------------------------------------------------------

static k_block *open_block(k_kernel *k, k_stmt *owner) {
  k_block *b = arena_new(k->arena, k_block, 1);
  b->owner = owner;
  b->parent = k->at;
  k->at = b;
  return b;
}

static void yield_values(k_kernel *k, k_stmt *s, k_block *b, k_value *const *v, int n) {
  IR_CHECK(k->at == b);
  for (int i = 0; i < n; i++) {
    vec_push(k->arena, &b->yield, v[i]);
    add_use(k, v[i], s);
  }
  k->at = b->parent;
}

k_stmt *k_for(k_kernel *k, k_value *lo, k_value *hi, int64_t step, k_value *const *init, int n) {
  k_stmt *s = new_stmt(k, K_FOR, 2 + n, n);
  s->in[0] = lo;
  s->in[1] = hi;
  s->i = step;
  for (int i = 0; i < n; i++) s->in[2 + i] = init[i];
  for (int i = 0; i < s->nin; i++) add_use(k, s->in[i], s);
  s->body[0] = open_block(k, s);
  for (int i = 0; i < n + 1; i++) {
    k_value *v =
        i == 0 ? new_value(k, s->body[0], K_I64, 1, 1)
               : new_value(k, s->body[0], init[i - 1]->type, init[i - 1]->rows, init[i - 1]->cols);
    v->pos = i;
    vec_push(k->arena, &s->body[0]->args, v);
  }
  return s;
}

static void results_like(k_kernel *k, k_stmt *s, k_value *const *v, int n) {
  s->nout = n;
  s->out = arena_new(k->arena, k_value *, n + 1);
  for (int i = 0; i < n; i++) {
    s->out[i] = new_value(k, s->parent, v[i]->type, v[i]->rows, v[i]->cols);
    s->out[i]->def = s;
    s->out[i]->pos = i;
  }
}

void k_end_for(k_kernel *k, k_stmt *loop, k_value *const *next) {
  yield_values(k, loop, loop->body[0], next, loop->nout);
  results_like(k, loop, next, loop->nout);
}

k_stmt *k_if(k_kernel *k, k_value *cond) {
  k_stmt *s = new_stmt(k, K_IF, 1, 0);
  s->in[0] = cond;
  add_use(k, cond, s);
  s->body[0] = open_block(k, s);
  return s;
}

void k_else(k_kernel *k, k_stmt *s, k_value *const *yield, int n) {
  yield_values(k, s, s->body[0], yield, n);
  s->body[1] = open_block(k, s);
}

void k_end_if(k_kernel *k, k_stmt *s, k_value *const *yield, int n) {
  yield_values(k, s, s->body[1], yield, n);
  results_like(k, s, yield, n);
}
