// Kernel IR to CUDA C: the walk over statements, scalars, loops and branches.
//
// Scalars are computed by every thread alike, so conditions and counts are the same for the whole
// block and barriers may stand inside loops and branches.
#include "codegen/cuda.h"

#include <math.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "codegen/cuda_impl.h"

extern const char dsm_cuda_prelude[];  // codegen/prelude.cuh (CMakeLists.txt)

const char *cuda_prelude(void) { return dsm_cuda_prelude; }

void cu_fail(cu *c, const char *fmt, ...) {
  if (c->why) return;
  va_list ap;
  va_start(ap, fmt);
  c->why = arena_vprintf(c->arena, fmt, ap);
  va_end(ap);
}

void cu_line(cu *c, const char *fmt, ...) {
  sb_printf(&c->body, "%*s", 2 * c->depth, "");
  va_list ap;
  va_start(ap, fmt);
  sb_puts(&c->body, arena_vprintf(c->arena, fmt, ap));
  va_end(ap);
  sb_put(&c->body, '\n');
}

// ---- types and numbers -------------------------------------------------------------------------

const char *cu_type(k_type t) {
  static const char *const name[] = {"float", "int", "d_i64", "bool"};  // ORDER k_type
  return name[t];
}

const char *cu_dtype(ir_dtype t) {
  switch (t) {
    case DT_f32: return "float";
    case DT_f64: return "double";
    case DT_bf16: return "d_bf16";
    case DT_f16: return "d_f16";
    case DT_f8e4m3: return "d_f8e4m3";
    case DT_f8e5m2: return "d_f8e5m2";
    case DT_i32: return "int";
    case DT_i64: return "d_i64";
    case DT_i16: return "d_i16";
    case DT_i8: return "d_i8";
    case DT_u16: return "d_u16";
    default: return "bool";
  }
}

int cu_dtype_bytes(ir_dtype t) { return (int)ir_dtype_bytes(t); }

ir_dtype cu_natural(k_type t) {
  static const ir_dtype natural[] = {DT_f32, DT_i32, DT_i64, DT_bool};  // ORDER k_type
  return natural[t];
}

const char *cu_literal(cu *c, k_type t, double v) {
  if (t == K_BOOL) return v != 0 ? "true" : "false";
  if (t == K_F32) {
    float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (!isfinite(f)) return arena_printf(c->arena, "d_real(0x%08xu)", u);
    // Nine digits tell every float from its neighbours.
    const char *s = arena_printf(c->arena, "%.9g", (double)f);
    return arena_printf(c->arena, "%s%s%sf%s", signbit(f) ? "(" : "", s,
                        strpbrk(s, ".e") ? "" : ".0", signbit(f) ? ")" : "");
  }
  int64_t i = (int64_t)v;
  if (t == K_I32)
    return i == INT32_MIN ? "(-2147483647 - 1)" : arena_printf(c->arena, "%lld", (long long)i);
  return i == INT64_MIN ? "(-9223372036854775807ll - 1)"
                        : arena_printf(c->arena, "%lldll", (long long)i);
}

static const char *new_number(cu *c, int64_t v) {
  vec_push(c->arena, &c->number, v);
  return arena_printf(c->arena, "a.number[%d]", c->number.n - 1);
}

const char *cu_number(cu *c, int64_t v) { return v == 0 ? "0ll" : new_number(c, v); }

// ---- expressions -------------------------------------------------------------------------------

// Rows of the op table that C++ has an operator for; all others are functions of the prelude,
// d_NAME.
static const char *const operator_of[IR_OPCODE_COUNT] = {
    [IR_add] = "+", [IR_sub] = "-", [IR_mul] = "*", [IR_lt] = "<",  [IR_le] = "<=", [IR_gt] = ">",
    [IR_ge] = ">=", [IR_eq] = "==", [IR_ne] = "!=", [IR_and] = "&", [IR_or] = "|",
};

// Of whole numbers, where both are known to be small: 32 bits.
static bool divides_small(const cu *c, const k_stmt *s) {
  if ((s->op != IR_floordiv && s->op != IR_mod) || s->out[0]->type != K_I64) return false;
  int64_t x = cu_bound(c, s->in[0]), y = cu_bound(c, s->in[1]);
  return x >= 0 && x <= UINT32_MAX && y > 0 && y <= UINT32_MAX && s->in[1]->def &&
         s->in[1]->def->code == K_CONST;
}

static const char *scalar_row(cu *c, const k_stmt *s, const char *const *in) {
  if (divides_small(c, s))
    return arena_printf(c->arena, "(d_i64)((d_u32)%s %s (d_u32)%s)", in[0],
                        s->op == IR_mod ? "%" : "/", in[1]);
  // Sums and products are the same either way round: what was computed first stands first.
  bool turned = (s->op == IR_add || s->op == IR_mul) && s->in[0]->id > s->in[1]->id;
  if (operator_of[s->op])
    return arena_printf(c->arena, "(%s %s %s)", in[turned], operator_of[s->op], in[!turned]);
  sb text = {.arena = c->arena};
  sb_printf(&text, "d_%s(", ir_info(s->op)->name);
  for (int i = 0; i < s->nin; i++) sb_printf(&text, "%s%s", i ? ", " : "", in[i]);
  sb_put(&text, ')');
  return sb_str(&text);
}

static const char *cast_to(cu *c, const char *x, k_type from, k_type to) {
  if (from == to) return x;
  if (to == K_BOOL) return arena_printf(c->arena, "(%s != 0)", x);
  if (from == K_F32) return arena_printf(c->arena, "d_to_%s(%s)", to == K_I32 ? "i32" : "i64", x);
  return arena_printf(c->arena, "(%s)%s", cu_type(to), x);
}

const char *cu_expr(cu *c, const k_stmt *s, const char *const *in) {
  switch (s->code) {
    case K_SCALAR: return scalar_row(c, s, in);
    case K_FMA: return arena_printf(c->arena, "d_fma(%s, %s, %s)", in[0], in[1], in[2]);
    case K_SPREAD:
    case K_STAGE:
    case K_TRANSPOSE: return in[0];
    case K_CAST: {
      const char *x = cast_to(c, in[0], s->in[0]->type, s->out[0]->type);
      if (s->storage == cu_natural(s->out[0]->type) || s->storage == DT_f64) return x;
      if (s->out[0]->type == K_F32)
        return arena_printf(c->arena, "d_round<%s>(%s)", cu_dtype(s->storage), x);
      return arena_printf(c->arena, "(%s)(%s)%s", cu_type(s->out[0]->type), cu_dtype(s->storage),
                          x);
    }
    case K_KEY:
      return arena_printf(c->arena, "d_key(a.step, %s, a.layer, %s)", cu_number(c, s->i), in[0]);
    case K_DRAW: return arena_printf(c->arena, "d_draw(%uu, %s, %s)", (unsigned)s->i, in[0], in[1]);
    default: IR_BUG("statement %d is not pointwise", s->seq);
  }
}

// ---- scalars -----------------------------------------------------------------------------------

static void set_scalar(cu *c, const k_value *v, const char *text) {
  c->at[v->id].kind = CU_UNIFORM;
  c->at[v->id].text = text;
}

static void new_scalar(cu *c, const k_value *v, const char *expr) {
  cu_line(c, "const %s v%d = %s;", cu_type(v->type), v->id, expr);
  set_scalar(c, v, arena_printf(c->arena, "v%d", v->id));
}

const char *cu_scalar(cu *c, const k_value *v) {
  if (c->at[v->id].kind == CU_ABSENT) cu_flush(c);
  if (c->at[v->id].kind != CU_UNIFORM) IR_BUG("%%%d is no scalar", v->id);
  return c->at[v->id].text;
}

// The text of an f32 that is an argument: its bits.
static const char *real_number(cu *c, double v) {
  float f = (float)v;
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return arena_printf(c->arena, "d_real((d_u32)%s)", new_number(c, bits));
}

static void constant(cu *c, const k_stmt *s) {
  const k_value *v = s->out[0];
  if (s->open && v->type == K_F32)
    new_scalar(c, v, real_number(c, s->f));
  else if (s->open)
    set_scalar(c, v, new_number(c, s->i));
  else if (v->type == K_I64)
    set_scalar(c, v, cu_is_scalar(v) ? cu_number(c, s->i) : cu_literal(c, K_I64, (double)s->i));
  else
    set_scalar(c, v, cu_literal(c, v->type, v->type == K_F32 ? s->f : (double)s->i));
}

static const char *field_text(const k_stmt *s) {
  static const char *const text[] = {
      "a.layer",      "a.micro",      "(a.step->sample0 + a.sample)",
      "a.step->step", "a.step->past", "(d_i64)a.step->seed"};  // ORDER k_field
  if (s->i >= K_COORD) IR_BUG("a coordinate of ranks in code for a GPU");
  return text[s->i];
}

static void scalar_stmt(cu *c, k_stmt *s) {
  const char *in[3] = {0};
  switch (s->code) {
    case K_LOAD:
      for (int i = 0; i < c->pending.n; i++)
        if (c->pending.at[i]->stores) {
          cu_flush(c);
          break;
        }
      cu_scalar_load(c, s);
      set_scalar(c, s->out[0], arena_printf(c->arena, "v%d", s->out[0]->id));
      return;
    case K_STORE:
      cu_flush(c);
      cu_scalar_store(c, s);
      return;
    case K_TABLE: set_scalar(c, s->out[0], cu_literal(c, K_F32, (double)s->table[0])); return;
    case K_IOTA: set_scalar(c, s->out[0], "0"); return;
    default: break;
  }
  for (int i = 0; i < s->nin; i++) in[i] = cu_scalar(c, s->in[i]);
  const char *x = cu_expr(c, s, in);
  if (x == in[0])
    set_scalar(c, s->out[0], x);
  else
    new_scalar(c, s->out[0], x);
}

// ---- loops and branches ------------------------------------------------------------------------

static void lower_block(cu *c, k_block *b);

static const char *name_of(cu *c, const k_value *v) { return arena_printf(c->arena, "v%d", v->id); }

// A variable (array) for v that is assigned to later.
static void declare_variable(cu *c, const k_value *v) {
  if (cu_is_scalar(v)) {
    cu_line(c, "%s v%d;", cu_type(v->type), v->id);
  } else {
    cu_declare(c, v, name_of(c, v), cu_layout_for(c, v));
  }
}

// v is what lies in the variable of `of`.
static void lies_in(cu *c, const k_value *v, const k_value *of) {
  cu_value *at = &c->at[v->id];
  at->kind = cu_is_scalar(v) ? CU_UNIFORM : CU_ARRAY;
  at->text = name_of(c, of);
  at->layout = cu_is_scalar(v) ? 0 : cu_layout_for(c, of);
}

static bool is_argument(const k_block *b, const k_value *v) {
  for (int i = 1; i < b->args.n; i++)
    if (b->args.at[i] == v) return true;
  return false;
}

static void lower_for(cu *c, k_stmt *s) {
  cu_flush(c);
  k_block *b = s->body[0];
  for (int i = 0; i < s->nout; i++) {
    const k_value *arg = b->args.at[1 + i];
    declare_variable(c, arg);
    cu_assign_to(c, name_of(c, arg), s->in[2 + i], cu_is_scalar(arg) ? 0 : cu_layout_for(c, arg));
    lies_in(c, arg, arg);
  }
  const char *i = name_of(c, b->args.at[0]);
  cu_line(c, "for (d_i64 %s = %s; %s < %s; %s += %lld) {", i, cu_scalar(c, s->in[0]), i,
          cu_scalar(c, s->in[1]), i, (long long)s->i);
  c->depth++;
  set_scalar(c, b->args.at[0], i);
  cu_forget_barriers(c);
  c->loops++;
  lower_block(c, b);
  c->loops--;
  // A yield may be another carried value, which must be read before it is assigned to.
  const char **from = arena_new(c->arena, const char *, s->nout + 1);
  for (int k = 0; k < s->nout; k++) {
    const k_value *y = b->yield.at[k];
    if (y == b->args.at[1 + k] || !is_argument(b, y)) continue;
    from[k] = arena_printf(c->arena, "next%d_%d", s->seq, k);
    if (cu_is_scalar(y)) {
      cu_line(c, "%s %s;", cu_type(y->type), from[k]);
    } else {
      cu_declare(c, y, from[k], cu_layout_for(c, y));
    }
    cu_assign_to(c, from[k], y, cu_is_scalar(y) ? 0 : cu_layout_for(c, y));
  }
  for (int k = 0; k < s->nout; k++) {
    const k_value *y = b->yield.at[k], *arg = b->args.at[1 + k];
    if (y == arg) continue;
    if (from[k] && cu_is_scalar(y)) {
      cu_line(c, "%s = %s;", name_of(c, arg), from[k]);
    } else if (from[k]) {
      cu_line(c, "D_UNROLL for (int i = 0; i < %d; i++) %s[i] = %s[i];",
              cu_registers(cu_lay(c, cu_layout_for(c, y))), name_of(c, arg), from[k]);
    } else {
      cu_assign_to(c, name_of(c, arg), y, cu_is_scalar(y) ? 0 : cu_layout_for(c, arg));
    }
  }
  c->depth--;
  cu_line(c, "}");
  cu_forget_barriers(c);
  for (int k = 0; k < s->nout; k++) lies_in(c, s->out[k], b->args.at[1 + k]);
}

static void lower_if(cu *c, k_stmt *s) {
  cu_flush(c);
  const char *condition = cu_scalar(c, s->in[0]);
  for (int i = 0; i < s->nout; i++) declare_variable(c, s->out[i]);
  for (int j = 0; j < 2; j++) {
    cu_line(c, j ? "} else {" : "if (%s) {", condition);
    c->depth++;
    cu_forget_barriers(c);
    lower_block(c, s->body[j]);
    for (int i = 0; i < s->nout; i++)
      cu_assign_to(c, name_of(c, s->out[i]), s->body[j]->yield.at[i],
                   cu_is_scalar(s->out[i]) ? 0 : cu_layout_for(c, s->out[i]));
    c->depth--;
  }
  cu_line(c, "}");
  cu_forget_barriers(c);
  for (int i = 0; i < s->nout; i++) lies_in(c, s->out[i], s->out[i]);
}

// ---- statements --------------------------------------------------------------------------------

static void table(cu *c, const k_stmt *s) {
  const k_value *v = s->out[0];
  // As long as any layout's registers reach.
  int n = v->rows * v->cols, room = 1;
  while (room < n) room *= 2;
  sb_printf(&c->head, "  static D_TABLE float t%d[%d] = {", v->id, room);
  for (int i = 0; i < n; i++)
    sb_printf(&c->head, "%s%s", i ? ", " : "", cu_literal(c, K_F32, (double)s->table[i]));
  sb_puts(&c->head, "};\n");
}

static bool only_feeds_dots(const k_value *v) {
  for (int i = 0; i < v->uses.n; i++)
    if (v->uses.at[i]->code != K_DOT) return false;
  return true;
}

static ir_dtype dot_storage(const k_value *v) {
  for (int i = 0; i < v->uses.n; i++)
    if (v->uses.at[i]->code == K_DOT && v->uses.at[i]->in[0] != v)
      return v->uses.at[i]->storage == DT_bf16 ? DT_bf16 : DT_f32;
  return DT_f32;
}

static void stage(cu *c, k_stmt *s) {
  const k_value *v = s->out[0], *in = s->in[0];
  if (!only_feeds_dots(v)) {
    // Read as a tile too: then it is what was staged, and a dot brings it to shared memory itself.
    if (c->at[in->id].kind == CU_ABSENT) cu_flush(c);
    c->at[v->id] = c->at[in->id];
    return;
  }
  cu_stage_place(c, v, dot_storage(v));
  cu_group_add(c, s, cu_layout_for(c, in));
}

static void transpose(cu *c, k_stmt *s) {
  const k_value *in = s->in[0], *out = s->out[0];
  if (c->at[in->id].kind == CU_ABSENT) cu_flush(c);
  const cu_value from = c->at[in->id];
  if (from.kind == CU_UNIFORM) {
    set_scalar(c, out, from.text);
    return;
  }
  int t = from.kind == CU_ARRAY ? cu_turned(c, from.layout) : -1;
  if (t < 0) {
    cu_fail(c, "a tile that cannot be turned in registers");
    return;
  }
  c->at[out->id] = (cu_value){.kind = CU_ARRAY, .text = from.text, .layout = t};
  if (t == cu_layout_for(c, out)) return;
  // Its class has another layout: from here on it is that.
  const char *name = cu_in_layout(c, out, cu_layout_for(c, out));
  c->at[out->id].text = name;
  c->at[out->id].layout = cu_layout_for(c, out);
}

static void lower_stmt(cu *c, k_stmt *s) {
  const k_value *first = s->nout ? s->out[0] : s->nin ? s->in[0] : NULL;
  switch (s->code) {
    case K_CONST: constant(c, s); return;
    case K_GRID: set_scalar(c, first, arena_printf(c->arena, "g%lld", (long long)s->i)); return;
    case K_FIELD: set_scalar(c, first, field_text(s)); return;
    case K_BARRIER:
      cu_flush(c);
      cu_barrier(c);
      return;
    case K_FOR: lower_for(c, s); return;
    case K_IF: lower_if(c, s); return;
    case K_DOT: cu_dot(c, s); return;
    case K_STORE_ADD: cu_store_add(c, s); return;
    case K_TRANSPOSE: transpose(c, s); return;
    case K_TABLE:
      if (!cu_is_scalar(first)) {
        table(c, s);
        return;
      }
      break;
    case K_IOTA:
      if (!cu_is_scalar(first)) return;
      break;
    case K_SPREAD:
      if (cu_is_scalar(s->in[0]) || c->at[s->in[0]->id].kind == CU_UNIFORM) {
        set_scalar(c, first, cu_scalar(c, s->in[0]));
        return;
      }
      break;
    case K_STAGE:
      if (!cu_is_scalar(first)) {
        stage(c, s);
        return;
      }
      break;
    case K_REDUCE:
      if (cu_is_scalar(s->in[0])) {
        set_scalar(c, first, cu_scalar(c, s->in[0]));
      } else {
        cu_group_add(c, s, cu_layout_for(c, s->in[0]));
      }
      return;
    default: break;
  }
  if (cu_is_scalar(first)) {
    scalar_stmt(c, s);
  } else {
    cu_group_add(c, s, cu_layout_for(c, first));
  }
}

static void lower_block(cu *c, k_block *b) {
  for (int i = 0; i < b->stmts.n && !c->why; i++) lower_stmt(c, b->stmts.at[i]);
  cu_flush(c);
}

// ---- the kernel --------------------------------------------------------------------------------

static void mark_grid(const k_block *b, bool *used) {
  for (int i = 0; i < b->stmts.n; i++) {
    const k_stmt *s = b->stmts.at[i];
    if (s->code == K_GRID) used[s->i] = true;
    for (int j = 0; j < 2; j++)
      if (s->body[j]) mark_grid(s->body[j], used);
  }
}

// The cell's coordinates, the last grid dimension fastest. A dimension of one cell that the kernel
// does not ask for leaves no trace.
static void coordinates(cu *c) {
  const k_kernel *k = c->k;
  bool used[K_MAX_GRID] = {false};
  int first = -1;
  mark_grid(k->body, used);
  for (int d = k->ngrid - 1; d >= 0; d--)
    if (used[d] || k->grid[d] > 1) used[d] = true, first = d;
  if (first < 0) return;
  sb_puts(&c->head, "  d_u32 cell = (d_u32)d_block();\n");
  for (int d = k->ngrid - 1; d >= 0; d--) {
    if (!used[d]) continue;
    if (d == first) {
      sb_printf(&c->head, "  const d_i64 g%d = cell;\n", d);
      continue;
    }
    // Not a literal where it is 1: that is a number like any other.
    vec_push(c->arena, &c->number, k->grid[d]);
    int n = c->number.n - 1;
    sb_printf(&c->head,
              "  const d_i64 g%d = cell %% (d_u32)a.number[%d];\n  cell /= (d_u32)a.number[%d];\n",
              d, n, n);
  }
}

static void run(cu *c, const k_kernel *k, arena *a, int scratch_bytes) {
  memset(c, 0, sizeof *c);
  c->arena = a;
  c->k = k;
  c->head.arena = c->body.arena = a;
  c->depth = 1;
  c->at = arena_new(a, cu_value, k->next_id + 1);
  if (scratch_bytes) c->scratch = cu_new_shared(c, scratch_bytes);
  cu_assign(c);
  sb_puts(&c->head, "  const int tid = d_tid();\n");
  coordinates(c);
  for (int i = 0; i < k->nbuffers; i++)
    sb_printf(&c->head, "  %s *const b%d = (%s *)a.buffer[%d];\n", cu_dtype(k->buffer[i].dtype), i,
              cu_dtype(k->buffer[i].dtype), i);
  lower_block(c, k->body);
}

// The kernel's name without its numbers, and without what says which step of several it is: other
// steps may have the same text.
static const char *base_name(arena *a, const char *name) {
  sb s = {.arena = a};
  for (const char *p = name; *p; p++) {
    if (*p == '_' && p[1] >= '0' && p[1] <= '9') break;
    bool plain = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9');
    sb_put(&s, plain ? *p : '_');
  }
  const char *text = s.n ? sb_str(&s) : "kernel";
  static const char *const step[] = {"_of_parts", "_parts"};
  for (size_t i = 0; i < sizeof step / sizeof *step; i++)
    if (str_ends(text, step[i])) return arena_strndup(a, text, strlen(text) - strlen(step[i]));
  return text;
}

const char *cuda_lower(arena *a, const k_kernel *k, cuda_kernel *out) {
  *out = (cuda_kernel){0};
  if (k_cells(k) > UINT32_MAX / 2)
    return arena_printf(a, "%s: a grid of more than 2^31 blocks", k->name);
  // Twice: the first time tells how much shared memory short uses take, which then lies in front.
  cu c;
  run(&c, k, a, 0);
  if (!c.why && c.scratch) run(&c, k, a, (c.scratch->bytes + 15) / 16 * 16);
  if (c.why) return arena_printf(a, "%s: %s", k->name, c.why);
  sb text = {.arena = a};
  sb_printf(&text, "%d, %d, %d) {\n%s%s}\n", c.threads, k->nbuffers, c.number.n, sb_str(&c.head),
            sb_str(&c.body));
  uint64_t hash = XXH3_64bits(sb_str(&text), (size_t)text.n);
  out->symbol = arena_printf(a, "%s_%012llx", base_name(a, k->name),
                             (unsigned long long)(hash & 0xffffffffffffull));
  out->source = arena_printf(a, "D_KERNEL(%s, %s", out->symbol, sb_str(&text));
  out->text = out->source + strlen("D_KERNEL(") + strlen(out->symbol);
  out->threads = c.threads;
  out->shared_bytes = c.shared_bytes;
  out->blocks = k_cells(k);
  out->nnumbers = c.number.n;
  out->number = c.number.at;
  return NULL;
}
