// What can be said about a kernel without running it: its text, its mistakes, its cost. Also the
// clean-up at the end of building (dead statements, numbering), so that equal kernels print equal.
#include <string.h>

#include "codegen/kernel.h"

// ---- text --------------------------------------------------------------------------------------

static void print_type(sb *out, const k_value *v) {
  sb_puts(out, k_type_name(v->type));
  if (v->rows != 1 || v->cols != 1) sb_printf(out, "[%d,%d]", v->rows, v->cols);
}

static void print_real(sb *out, double f) {
  char buf[32];
  sb_puts(out, str_float(buf, (float)f));
}

// A scalar constant is written as its number (reals with an `f`), anything else by its id.
static void print_value(sb *out, const k_value *v) {
  if (!v->def || v->def->code != K_CONST || v->rows * v->cols != 1) {
    sb_printf(out, "%%%d", v->id);
  } else if (v->type == K_F32) {
    print_real(out, v->def->f);
    sb_put(out, 'f');
  } else {
    sb_printf(out, "%lld", (long long)v->def->i);
  }
}

static void print_access(sb *out, const k_kernel *k, const k_access *x) {
  const char *plus = "";
  sb_printf(out, "%s[", k->buffer[x->buffer].name);
  if (x->base) print_value(out, x->base), plus = " + ";
  if (x->offset) sb_puts(out, plus), print_value(out, x->offset), plus = " + ";
  if (x->row_stride) {
    sb_puts(out, plus);
    if (x->row_stride != 1) sb_printf(out, "%lld*", (long long)x->row_stride);
    sb_puts(out, "r"), plus = " + ";
  }
  if (x->col_stride) {
    sb_puts(out, plus);
    if (x->col_stride != 1) sb_printf(out, "%lld*", (long long)x->col_stride);
    sb_puts(out, "c"), plus = " + ";
  }
  sb_puts(out, *plus ? "]" : "0]");
  const char *where = " where ";
  if (x->row_limit) sb_printf(out, "%sr < ", where), print_value(out, x->row_limit), where = ", ";
  if (x->col_limit) sb_printf(out, "%sc < ", where), print_value(out, x->col_limit), where = ", ";
  if (x->mask) sb_puts(out, where), print_value(out, x->mask);
}

static void print_list(sb *out, k_value *const *v, int n) {
  for (int i = 0; i < n; i++) {
    if (i) sb_puts(out, ", ");
    print_value(out, v[i]);
  }
}

static void print_block(sb *out, const k_kernel *k, const k_block *b, int depth);

static void print_stmt(sb *out, const k_kernel *k, const k_stmt *s, int depth) {
  static const char *const field[] = {"layer", "micro", "sample0", "step", "past", "seed"};
  if (s->code == K_CONST && s->out[0]->rows * s->out[0]->cols == 1) return;
  sb_printf(out, "%*s", depth * 2, "");
  print_list(out, s->out, s->nout);
  if (s->nout) sb_puts(out, " = ");
  switch (s->code) {
    case K_CONST:
      if (s->out[0]->type == K_F32) {
        print_real(out, s->f);
      } else {
        sb_printf(out, "%lld", (long long)s->i);
      }
      break;
    case K_GRID: sb_printf(out, "grid %lld", (long long)s->i); break;
    case K_FIELD:
      if (s->i < K_COORD)
        sb_printf(out, "call.%s", field[s->i]);
      else
        sb_printf(out, "call.coord%d", (int)(s->i - K_COORD));
      break;
    case K_IOTA: sb_printf(out, "iota %s", s->axis ? "c" : "r"); break;
    case K_SCALAR: sb_printf(out, "%s ", ir_info(s->op)->name); break;
    case K_FMA: sb_puts(out, "fma "); break;
    case K_CAST: sb_printf(out, "cast %s ", ir_dtype_name(s->storage)); break;
    case K_SPREAD: sb_puts(out, "spread "); break;
    case K_TABLE:
      sb_puts(out, "table");
      for (int i = 0; i < s->out[0]->rows * s->out[0]->cols; i++) {
        sb_put(out, ' ');
        print_real(out, s->table[i]);
      }
      break;
    case K_KEY: sb_printf(out, "key of op %lld, ", (long long)s->i); break;
    case K_DRAW: sb_printf(out, "draw below=%lld ", (long long)s->i); break;
    case K_LOAD:
      sb_puts(out, "load ");
      print_access(out, k, &s->access);
      if (s->access.row_limit || s->access.col_limit || s->access.mask) {
        sb_puts(out, " else ");
        print_real(out, s->access.fill);
      }
      break;
    case K_STORE:
    case K_STORE_ADD:
      sb_puts(out, s->code == K_STORE ? "store " : "store_add ");
      print_access(out, k, &s->access);
      sb_puts(out, ", ");
      break;
    case K_REDUCE:
      sb_printf(out, "%s_over_%s ", s->op == IR_add ? "sum" : "max", s->axis ? "c" : "r");
      break;
    case K_DOT:
      sb_printf(out, "dot%s%s%s ", s->storage == DT_bf16 ? " bf16" : "", s->ta ? " ta" : "",
                s->tb ? " tb" : "");
      break;
    case K_TRANSPOSE: sb_puts(out, "transpose "); break;
    case K_STAGE: sb_puts(out, "stage "); break;
    case K_BARRIER: sb_puts(out, "barrier"); break;
    case K_FOR:
      sb_printf(out, "for %%%d = ", s->body[0]->args.at[0]->id);
      print_value(out, s->in[0]);
      sb_puts(out, "; < ");
      print_value(out, s->in[1]);
      sb_printf(out, "; += %lld", (long long)s->i);
      for (int i = 0; i < s->nout; i++) {
        sb_printf(out, ", %%%d = ", s->body[0]->args.at[i + 1]->id);
        print_value(out, s->in[i + 2]);
      }
      break;
    case K_IF:
      sb_puts(out, "if ");
      print_value(out, s->in[0]);
      break;
  }
  if (s->code != K_FOR && s->code != K_IF) print_list(out, s->in, s->nin);
  for (int i = 0; i < s->nout; i++) {
    sb_puts(out, i ? ", " : " : ");
    print_type(out, s->out[i]);
  }
  sb_put(out, '\n');
  for (int i = 0; i < 2; i++) {
    if (!s->body[i]) continue;
    if (i == 1) sb_printf(out, "%*selse\n", depth * 2, "");
    print_block(out, k, s->body[i], depth + 1);
  }
}

static void print_block(sb *out, const k_kernel *k, const k_block *b, int depth) {
  for (int i = 0; i < b->stmts.n; i++) print_stmt(out, k, b->stmts.at[i], depth);
  if (b->yield.n) {
    sb_printf(out, "%*syield ", depth * 2, "");
    print_list(out, b->yield.at, b->yield.n);
    sb_put(out, '\n');
  }
}

void k_print(sb *out, const k_kernel *k) {
  static const char *const use[] = {"", "in", "out", "inout"};
  sb_printf(out, "kernel %s(", k->name);
  for (int i = 0; i < k->nbuffers; i++) {
    sb_printf(out, "%s%s: %s %s", i ? ", " : "", k->buffer[i].name,
              ir_dtype_name(k->buffer[i].dtype), use[k->buffer[i].use]);
    if (k->buffer[i].align) sb_printf(out, " align %d", k->buffer[i].align);
  }
  sb_puts(out, ") grid(");
  for (int i = 0; i < k->ngrid; i++) sb_printf(out, "%s%lld", i ? ", " : "", (long long)k->grid[i]);
  sb_put(out, ')');
  const choice_info *choice;
  int choices = choice_list(&choice);
  for (int i = 0; i < choices; i++)
    if (skips(k->skip, SKIP_PASSES + i)) sb_printf(out, " without %s", choice[i].name);
  sb_put(out, '\n');
  print_block(out, k, k->body, 1);
}

// ---- clean-up ----------------------------------------------------------------------------------

static void drop_use(k_value *v, const k_stmt *s) {
  for (int i = 0; i < v->uses.n; i++)
    if (v->uses.at[i] == s) {
      v->uses.at[i] = v->uses.at[--v->uses.n];
      return;
    }
}

static bool is_pure(const k_stmt *s) {
  switch (s->code) {
    case K_STORE:
    case K_STORE_ADD:
    case K_BARRIER:
    case K_FOR:
    case K_IF: return false;
    default: return true;
  }
}

// Removes statements whose results nobody reads, last first, so that one walk takes whole chains.
static void drop_dead(k_block *b) {
  for (int i = b->stmts.n - 1; i >= 0; i--) {
    k_stmt *s = b->stmts.at[i];
    for (int j = 1; j >= 0; j--)
      if (s->body[j]) drop_dead(s->body[j]);
    if (!is_pure(s) || s->out[0]->uses.n) continue;
    k_value *in[K_MAX_OPERANDS];
    int n = k_operands(s, in);
    for (int j = 0; j < n; j++) drop_use(in[j], s);
    memmove(&b->stmts.at[i], &b->stmts.at[i + 1], sizeof(k_stmt *) * (size_t)(b->stmts.n - i - 1));
    b->stmts.n--;
  }
}

// Ids in order of definition; scalar constants, which the text shows as numbers, come last.
static void number(k_kernel *k, k_block *b, bool constants) {
  for (int i = 0; i < b->args.n && !constants; i++) b->args.at[i]->id = k->next_id++;
  for (int i = 0; i < b->stmts.n; i++) {
    k_stmt *s = b->stmts.at[i];
    bool hidden = s->code == K_CONST && s->out[0]->rows * s->out[0]->cols == 1;
    if (!constants) s->seq = k->next_seq++;
    for (int j = 0; j < 2; j++)
      if (s->body[j]) number(k, s->body[j], constants);
    for (int j = 0; j < s->nout && hidden == constants; j++) s->out[j]->id = k->next_id++;
  }
}

void k_finish(k_kernel *k) {
  IR_CHECK(k->at == k->body);
  if (k->ngrid == 0) k_grid(k, 1);
  drop_dead(k->body);
  k->next_id = k->next_seq = 0;
  number(k, k->body, false);
  number(k, k->body, true);
  const char *wrong = k_verify(k);
  if (wrong) {
    sb text = {.arena = k->arena};
    k_print(&text, k);
    IR_BUG("%s\n%s", wrong, sb_str(&text));
  }
  double flops, bytes;
  k_estimate(k, &flops, &bytes);
  if (k->flops == 0) k->flops = flops;
  if (k->bytes == 0) k->bytes = bytes;
}

// ---- verifier ----------------------------------------------------------------------------------

typedef struct verifier {
  const k_kernel *k;
  bool *seen;  // by value id: defined on the way here
  const char *wrong;
} verifier;

static void fail(verifier *v, const k_stmt *s, const char *what) {
  if (!v->wrong) v->wrong = arena_printf(v->k->arena, "statement %d: %s", s->seq, what);
}

static bool repeats_to(const k_value *v, int rows, int cols) {
  return (v->rows == rows || v->rows == 1) && (v->cols == cols || v->cols == 1);
}

static void verify_access(verifier *w, const k_stmt *s, int rows, int cols) {
  const k_access *x = &s->access;
  if (x->buffer < 0 || x->buffer >= w->k->nbuffers) {
    fail(w, s, "no such buffer");
    return;
  }
  k_use use = w->k->buffer[x->buffer].use;
  if (s->code != K_STORE && !(use & K_READ)) fail(w, s, "buffer is not read");
  if (s->code != K_LOAD && !(use & K_WRITE)) fail(w, s, "buffer is not written");
  k_value *const i64[] = {x->base, x->row_limit, x->col_limit};
  for (int i = 0; i < 3; i++)
    if (i64[i] && (i64[i]->type != K_I64 || i64[i]->rows * i64[i]->cols != 1))
      fail(w, s, "base and limits are i64 scalars");
  if (x->offset && (x->offset->type != K_I64 || !repeats_to(x->offset, rows, cols)))
    fail(w, s, "offset is an i64 tile that repeats to the tile");
  if (x->mask && (x->mask->type != K_BOOL || !repeats_to(x->mask, rows, cols)))
    fail(w, s, "mask is a bool tile that repeats to the tile");
  if (s->code == K_STORE && !x->offset &&
      ((rows > 1 && !x->row_stride) || (cols > 1 && !x->col_stride)))
    fail(w, s, "two elements of a store at one place");
}

static void verify_block(verifier *w, const k_block *b);
static void leave_block(verifier *w, const k_block *b);

static void verify_yield(verifier *w, const k_stmt *s, const k_block *b) {
  if (b->yield.n != s->nout) {
    fail(w, s, "yields as many values as there are results");
    return;
  }
  for (int i = 0; i < s->nout; i++) {
    const k_value *y = b->yield.at[i], *r = s->out[i];
    if (y->type != r->type || y->rows != r->rows || y->cols != r->cols)
      fail(w, s, "yield of another type");
    if (!w->seen[y->id]) fail(w, s, "yield of a value that is not defined there");
  }
}

static void verify_stmt(verifier *w, const k_stmt *s) {
  k_value *in[K_MAX_OPERANDS];
  int n = k_operands(s, in);
  for (int i = 0; i < n; i++)
    if (!w->seen[in[i]->id]) fail(w, s, "operand is not defined before");
  const k_value *r = s->nout ? s->out[0] : NULL;
  switch (s->code) {
    case K_SCALAR:
    case K_FMA:
    case K_SPREAD:
    case K_KEY:
    case K_DRAW:
      for (int i = 0; i < s->nin; i++)
        if (!repeats_to(s->in[i], r->rows, r->cols))
          fail(w, s, "operand does not repeat to the result");
      if (s->code == K_SCALAR && s->nin != ir_info(s->op)->min_in) fail(w, s, "number of operands");
      break;
    case K_LOAD: verify_access(w, s, r->rows, r->cols); break;
    case K_STORE:
    case K_STORE_ADD: verify_access(w, s, s->in[0]->rows, s->in[0]->cols); break;
    case K_REDUCE:
      if (s->in[0]->type == K_BOOL) fail(w, s, "reduces numbers");
      break;
    case K_DOT: {
      const k_value *a = s->in[1], *b = s->in[2];
      int m = s->ta ? a->cols : a->rows, ka = s->ta ? a->rows : a->cols;
      int kb = s->tb ? b->cols : b->rows, nb = s->tb ? b->rows : b->cols;
      if (m != r->rows || nb != r->cols || ka != kb) fail(w, s, "shapes of a dot");
      if (a->type != K_F32 || b->type != K_F32 || r->type != K_F32) fail(w, s, "dot of f32 tiles");
      if (s->storage != DT_f32 && s->storage != DT_bf16) fail(w, s, "operands of f32 or bf16");
      break;
    }
    case K_FOR:
      if (s->i < 1) fail(w, s, "step");
      for (int i = 0; i < s->body[0]->args.n; i++) w->seen[s->body[0]->args.at[i]->id] = true;
      for (int i = 0; i < s->nout; i++)
        if (s->in[2 + i]->type != s->out[i]->type) fail(w, s, "first value of another type");
      verify_block(w, s->body[0]);
      verify_yield(w, s, s->body[0]);
      leave_block(w, s->body[0]);
      break;
    case K_IF:
      if (s->in[0]->type != K_BOOL || s->in[0]->rows * s->in[0]->cols != 1) fail(w, s, "condition");
      for (int i = 0; i < 2; i++) {
        verify_block(w, s->body[i]);
        verify_yield(w, s, s->body[i]);
        leave_block(w, s->body[i]);
      }
      break;
    default: break;
  }
  for (int i = 0; i < s->nout; i++) w->seen[s->out[i]->id] = true;
}

static void verify_block(verifier *w, const k_block *b) {
  for (int i = 0; i < b->stmts.n; i++) verify_stmt(w, b->stmts.at[i]);
}

// What a block defines is not known behind it.
static void leave_block(verifier *w, const k_block *b) {
  for (int i = 0; i < b->args.n; i++) w->seen[b->args.at[i]->id] = false;
  for (int i = 0; i < b->stmts.n; i++)
    for (int j = 0; j < b->stmts.at[i]->nout; j++) w->seen[b->stmts.at[i]->out[j]->id] = false;
}

const char *k_verify(const k_kernel *k) {
  verifier w = {.k = k, .seen = arena_new(k->arena, bool, k->next_id + 1)};
  verify_block(&w, k->body);
  return w.wrong;
}

// ---- cost --------------------------------------------------------------------------------------

static void estimate_block(const k_kernel *k, const k_block *b, double times, double *flops,
                           double *bytes) {
  for (int i = 0; i < b->stmts.n; i++) {
    const k_stmt *s = b->stmts.at[i];
    const k_value *v = s->nout ? s->out[0] : s->nin ? s->in[0] : NULL;
    double elements = v ? (double)v->rows * v->cols : 0;
    switch (s->code) {
      case K_SCALAR:
        if (v->type == K_F32) *flops += times * elements * ir_info(s->op)->flops;
        break;
      case K_FMA: *flops += times * elements * 2; break;
      case K_REDUCE: *flops += times * s->in[0]->rows * s->in[0]->cols; break;
      case K_DOT: *flops += times * elements * 2 * (s->ta ? s->in[1]->rows : s->in[1]->cols); break;
      case K_LOAD:
      case K_STORE:
      case K_STORE_ADD:
        *bytes += times * elements * ir_dtype_bytes(k->buffer[s->access.buffer].dtype) *
                  (s->code == K_STORE_ADD ? 2 : 1);
        break;
      case K_FOR: {
        int64_t lo, hi;
        double trips = 1;
        if (k_is_const(s->in[0], &lo) && k_is_const(s->in[1], &hi))
          trips = hi > lo ? (double)((hi - lo + s->i - 1) / s->i) : 0;
        estimate_block(k, s->body[0], times * trips, flops, bytes);
        break;
      }
      case K_IF: estimate_block(k, s->body[0], times, flops, bytes); break;
      default: break;
    }
  }
}

void k_estimate(const k_kernel *k, double *flops, double *bytes) {
  *flops = *bytes = 0;
  estimate_block(k, k->body, (double)k_cells(k), flops, bytes);
}

static int64_t tile_bytes(const k_value *v) {
  if (v->rows * v->cols == 1) return 0;
  int64_t wide = v->type == K_I64 ? 8 : v->type == K_BOOL ? 1 : 4;
  int64_t cols = v->cols == 1 ? 1 : (v->cols + 15) / 16 * 16;
  int64_t rows = v->cols == 1 ? (v->rows + 15) / 16 * 16 : v->rows;
  return rows * cols * wide;
}

static int64_t block_bytes(const k_block *b) {
  int64_t n = 0;
  for (int i = 0; i < b->args.n; i++) n += tile_bytes(b->args.at[i]);
  for (int i = 0; i < b->stmts.n; i++) {
    const k_stmt *s = b->stmts.at[i];
    for (int j = 0; j < s->nout; j++) n += tile_bytes(s->out[j]);
    for (int j = 0; j < 2; j++)
      if (s->body[j]) n += block_bytes(s->body[j]);
  }
  return n;
}

int64_t k_scratch_bound(const k_kernel *k) { return block_bytes(k->body); }
