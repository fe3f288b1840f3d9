// Values, scopes and arithmetic on constants.
//
// Whole numbers are exact 64-bit integers, and stay whole under + - * // % ^ and under `/` where it
// is exact. A number written with a point or an exponent is real; one real operand makes the result
// real. Sizes are whole numbers, so an inexact `/` on them is an error instead of a wrong shape. In
// a fn `/` is the real quotient, because there the same text also works on tensors.
#include <math.h>
#include <string.h>

#include "frontend/sema_impl.h"

// ---------------------------------------------------------------------------------------------
// Values
// ---------------------------------------------------------------------------------------------

int dim_bit(int dim) { return 1 << (dim < 30 ? dim : 30); }

int val_taint(const val *v) { return v->taint | (v->dim ? dim_bit(v->dim - 1) : 0); }

val val_error(void) { return (val){.kind = VAL_ERROR}; }

val val_none(void) { return (val){.kind = VAL_NONE}; }

val val_whole(int64_t x) { return (val){.kind = VAL_NUMBER, .whole = x, .number = (double)x}; }

val val_real(double x) { return (val){.kind = VAL_NUMBER, .real = true, .number = x}; }

val val_bool(bool x) { return (val){.kind = VAL_BOOL, .truth = x}; }

val val_string(const char *s) { return (val){.kind = VAL_STRING, .text = s}; }

val val_tensor(ir_value *v) { return v ? (val){.kind = VAL_TENSOR, .tensor = v} : val_error(); }

bool val_is_constant(const val *v) {
  switch (v->kind) {
    case VAL_TENSOR:
    case VAL_MULTI:
    case VAL_ERROR: return false;
    default: return true;
  }
}

const char *val_what(const val *v) {
  switch (v->kind) {
    case VAL_ERROR: return "a mistake";
    case VAL_NONE: return "none";
    case VAL_AUTO: return "auto";
    case VAL_NUMBER: return v->unit > UNIT_COUNT ? "a number with a unit" : "a number";
    case VAL_BOOL: return "true or false";
    case VAL_STRING: return "a string";
    case VAL_LIST: return "a list";
    case VAL_DTYPE: return "an element type";
    case VAL_FN: return "a fn";
    case VAL_BLOCK: return "a block";
    case VAL_OP: return "an op";
    case VAL_INIT: return "an initial value";
    case VAL_RECORD: return "a setting";
    case VAL_TENSOR: return "a tensor";
    case VAL_MULTI: return "several values";
  }
  return "a value";
}

bool val_same(const val *a, const val *b) {
  if (a->kind != b->kind) return false;
  switch (a->kind) {
    case VAL_NUMBER: return a->real || b->real ? a->number == b->number : a->whole == b->whole;
    case VAL_BOOL: return a->truth == b->truth;
    case VAL_STRING:
    case VAL_OP: return str_eq(a->text, b->text);
    case VAL_DTYPE: return a->dtype == b->dtype;
    case VAL_FN: return a->closure->fn == b->closure->fn;
    case VAL_BLOCK: return a->closure->block == b->closure->block;
    case VAL_INIT: return a->init.kind == b->init.kind && a->init.a == b->init.a;
    case VAL_TENSOR: return a->tensor == b->tensor;
    case VAL_LIST:
    case VAL_RECORD:
    case VAL_MULTI:
      if (a->n != b->n || (a->kind == VAL_RECORD && !str_eq(a->text, b->text))) return false;
      for (int i = 0; i < a->n; i++)
        if (!val_same(&a->items[i], &b->items[i])) return false;
      return true;
    default: return true;
  }
}

static void put_double(sb *out, double x) {
  char buf[32];
  sb_puts(out, str_double(buf, x));
}

static void put_val(sb *out, const val *v) {
  switch (v->kind) {
    case VAL_ERROR: sb_puts(out, "?"); break;
    case VAL_NONE: sb_puts(out, "none"); break;
    case VAL_AUTO: sb_puts(out, "auto"); break;
    case VAL_NUMBER:
      if (v->real)
        put_double(out, v->number);
      else
        sb_printf(out, "%lld", (long long)v->whole);
      break;
    case VAL_BOOL: sb_puts(out, v->truth ? "true" : "false"); break;
    case VAL_STRING: sb_printf(out, "\"%s\"", v->text); break;
    case VAL_DTYPE: sb_puts(out, ir_dtype_name(v->dtype)); break;
    case VAL_OP: sb_puts(out, v->text); break;
    case VAL_FN: sb_puts(out, v->closure->fn->name.text); break;
    case VAL_BLOCK: sb_puts(out, v->closure->block->name.text); break;
    case VAL_INIT:
      switch (v->init.kind) {
        case INIT_ZEROS: sb_puts(out, "zeros"); break;
        case INIT_ONES: sb_puts(out, "ones"); break;
        case INIT_CONST: put_double(out, v->init.a); break;
        case INIT_NORMAL:
        case INIT_UNIFORM:
          sb_puts(out, v->init.kind == INIT_NORMAL ? "normal(" : "uniform(");
          put_double(out, v->init.a);
          sb_put(out, ')');
          break;
      }
      break;
    case VAL_LIST:
    case VAL_MULTI:
      sb_put(out, '[');
      for (int i = 0; i < v->n; i++) {
        if (i) sb_puts(out, ", ");
        put_val(out, &v->items[i]);
      }
      sb_put(out, ']');
      break;
    case VAL_RECORD:
      sb_puts(out, v->text);
      if (!v->n) break;
      sb_put(out, '(');
      for (int i = 0; i < v->n; i++) {
        sb_printf(out, "%s%s=", i ? ", " : "", v->keys[i]);
        put_val(out, &v->items[i]);
      }
      sb_put(out, ')');
      break;
    case VAL_TENSOR: sb_puts(out, "a tensor"); break;
  }
}

const char *val_text(arena *a, const val *v) {
  sb s = {.arena = a};
  put_val(&s, v);
  return sb_str(&s);
}

// ---------------------------------------------------------------------------------------------
// Scopes
// ---------------------------------------------------------------------------------------------

scope *scope_new(lowering *lw, scope *parent, int limit) {
  scope *s = arena_new(lw->arena, scope, 1);
  s->parent = parent;
  s->limit = limit;
  s->names.arena = lw->arena;
  return s;
}

void scope_bind(lowering *lw, scope *s, const char *name, val value, span at) {
  binding *b = arena_new(lw->arena, binding, 1);
  b->name = name;
  b->value = value;
  b->at = at;
  b->seq = lw->seq++;
  b->older = map_set(&s->names, name, b);
}

const binding *scope_find(const scope *s, int limit, const char *name) {
  for (; s; limit = s->limit, s = s->parent)
    for (const binding *b = map_get(&s->names, name); b; b = b->older)
      if (b->seq < limit) return b;
  return NULL;
}

void scope_names(arena *a, const scope *s, name_list *out) {
  for (; s; s = s->parent)
    for (int i = 0; i < s->names.n && out->n < 2000; i++) vec_push(a, out, s->names.keys[i]);
}

// ---------------------------------------------------------------------------------------------
// Arithmetic
// ---------------------------------------------------------------------------------------------

static bool plain_number(lowering *lw, span at, const val *x, const char *op) {
  if (x->kind != VAL_NUMBER) {
    diag *e = sema_error(lw, at, DIAG_WRONG_KIND, "`%s` takes numbers and tensors; this is %s", op,
                         val_what(x));
    if (x->kind == VAL_FN || x->kind == VAL_OP || x->kind == VAL_BLOCK)
      diag_note(e, "to apply it, give it arguments: `%s(...)`", val_text(lw->arena, x));
    return false;
  }
  if (x->unit > UNIT_COUNT) {
    sema_error(lw, at, DIAG_WRONG_UNIT, "`%s` takes numbers without unit; this is %s", op,
               unit_name(x->unit));
    return false;
  }
  return true;
}

val const_unary(lowering *lw, const expr *e, val x) {
  if (x.kind == VAL_ERROR) return x;
  span at = e->unary.operand->at;
  if (e->unary.op == UNARY_NOT) {
    if (x.kind == VAL_BOOL) return val_bool(!x.truth);
    sema_error(lw, at, DIAG_WRONG_KIND, "`not` takes true or false; this is %s", val_what(&x));
    return val_error();
  }
  if (!plain_number(lw, at, &x, "-")) return val_error();
  if (!x.real && x.whole == INT64_MIN) {
    sema_error(lw, e->at, DIAG_NUMBER_TOO_LARGE, "the result does not fit in 64 bits");
    return val_error();
  }
  val r = x.real ? val_real(-x.number) : val_whole(-x.whole);
  r.taint = val_taint(&x);
  return r;
}

// Whole x^y by squaring; false when it does not fit.
static bool whole_power(int64_t x, int64_t y, int64_t *out) {
  int64_t r = 1;
  while (y) {
    if ((y & 1) && __builtin_mul_overflow(r, x, &r)) return false;
    y >>= 1;
    if (y && __builtin_mul_overflow(x, x, &x)) return false;
  }
  *out = r;
  return true;
}

static int64_t floor_div(int64_t a, int64_t b) {
  int64_t q = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

static val whole_binary(lowering *lw, const expr *e, binary_op op, int64_t x, int64_t y) {
  int64_t r = 0;
  bool fits = true;
  switch (op) {
    case BINARY_ADD: fits = !__builtin_add_overflow(x, y, &r); break;
    case BINARY_SUB: fits = !__builtin_sub_overflow(x, y, &r); break;
    case BINARY_MUL: fits = !__builtin_mul_overflow(x, y, &r); break;
    case BINARY_POW:
      if (y < 0) return val_real(pow((double)x, (double)y));
      fits = whole_power(x, y, &r);
      break;
    default:
      if (y == 0) {
        sema_error(lw, e->at, DIAG_DIVISION_BY_ZERO, "division by zero");
        return val_error();
      }
      if (x == INT64_MIN && y == -1) {
        fits = false;
      } else if (op == BINARY_DIV && lw->in_fn) {
        return val_real((double)x / (double)y);
      } else if (op == BINARY_DIV && x % y != 0) {
        diag *d = sema_error(lw, e->at, DIAG_INEXACT_DIVISION, "%lld / %lld is not a whole number",
                             (long long)x, (long long)y);
        diag_note(d,
                  "on sizes `/` must be exact; `//` rounds down, and a real quotient has a real "
                  "operand: %lld.0 / %lld",
                  (long long)x, (long long)y);
        return val_error();
      } else {
        r = op == BINARY_MOD ? x - y * floor_div(x, y) : floor_div(x, y);
      }
  }
  if (!fits) {
    sema_error(lw, e->at, DIAG_NUMBER_TOO_LARGE, "the result does not fit in 64 bits");
    return val_error();
  }
  return val_whole(r);
}

static val real_binary(lowering *lw, const expr *e, binary_op op, double x, double y) {
  switch (op) {
    case BINARY_ADD: return val_real(x + y);
    case BINARY_SUB: return val_real(x - y);
    case BINARY_MUL: return val_real(x * y);
    case BINARY_POW: return val_real(pow(x, y));
    default: break;
  }
  if (y == 0) {
    sema_error(lw, e->at, DIAG_DIVISION_BY_ZERO, "division by zero");
    return val_error();
  }
  if (op == BINARY_DIV) return val_real(x / y);
  double q = floor(x / y);
  return val_real(op == BINARY_FLOORDIV ? q : x - y * q);
}

static val compare(lowering *lw, const expr *e, binary_op op, const val *x, const val *y) {
  if (x->kind == VAL_NUMBER && y->kind == VAL_NUMBER) {
    if ((x->unit > UNIT_COUNT || y->unit > UNIT_COUNT) && x->unit != y->unit) {
      sema_error(lw, e->at, DIAG_WRONG_UNIT, "%s cannot be compared with %s", unit_name(x->unit),
                 unit_name(y->unit));
      return val_error();
    }
    bool exact = !x->real && !y->real;
    bool less = exact ? x->whole < y->whole : x->number < y->number;
    bool more = exact ? x->whole > y->whole : x->number > y->number;
    switch (op) {
      case BINARY_EQ: return val_bool(!less && !more);
      case BINARY_NE: return val_bool(less || more);
      case BINARY_LT: return val_bool(less);
      case BINARY_LE: return val_bool(!more);
      case BINARY_GT: return val_bool(more);
      default: return val_bool(!less);
    }
  }
  if (op == BINARY_EQ || op == BINARY_NE) {
    bool comparable = x->kind == y->kind || x->kind == VAL_NONE || y->kind == VAL_NONE ||
                      x->kind == VAL_AUTO || y->kind == VAL_AUTO ||
                      // A function given by name may be the user's or an op.
                      (x->kind == VAL_FN && y->kind == VAL_OP) ||
                      (x->kind == VAL_OP && y->kind == VAL_FN);
    if (comparable) return val_bool(val_same(x, y) == (op == BINARY_EQ));
  }
  sema_error(lw, e->at, DIAG_WRONG_KIND, "`%s` cannot compare %s with %s", binary_op_text(op),
             val_what(x), val_what(y));
  return val_error();
}

val const_binary(lowering *lw, const expr *e, binary_op op, val x, val y) {
  if (x.kind == VAL_ERROR || y.kind == VAL_ERROR) return val_error();
  if (op == BINARY_AND || op == BINARY_OR) {
    if (x.kind == VAL_BOOL && y.kind == VAL_BOOL)
      return val_bool(op == BINARY_AND ? x.truth && y.truth : x.truth || y.truth);
    const val *wrong = x.kind == VAL_BOOL ? &y : &x;
    span at = wrong == &x ? e->binary.left->at : e->binary.right->at;
    sema_error(lw, at, DIAG_WRONG_KIND, "`%s` takes true or false; this is %s", binary_op_text(op),
               val_what(wrong));
    return val_error();
  }
  if (op >= BINARY_EQ && op <= BINARY_GE) return compare(lw, e, op, &x, &y);
  if (op == BINARY_ADD && x.kind == VAL_LIST && y.kind == VAL_LIST) {
    if (x.n + y.n > 100000) {
      sema_error(lw, e->at, DIAG_TOO_LARGE, "a list has at most 100000 items");
      return val_error();
    }
    val r = {.kind = VAL_LIST, .n = x.n + y.n};
    r.items = arena_new(lw->arena, val, r.n);
    if (x.n) memcpy(r.items, x.items, sizeof(val) * (size_t)x.n);
    if (y.n) memcpy(r.items + x.n, y.items, sizeof(val) * (size_t)y.n);
    return r;
  }
  if (!plain_number(lw, e->binary.left->at, &x, binary_op_text(op)) ||
      !plain_number(lw, e->binary.right->at, &y, binary_op_text(op)))
    return val_error();
  val r = x.real || y.real ? real_binary(lw, e, op, x.number, y.number)
                           : whole_binary(lw, e, op, x.whole, y.whole);
  if (r.kind == VAL_NUMBER && r.real && !isfinite(r.number)) {
    sema_error(lw, e->at, DIAG_NUMBER_TOO_LARGE, "the result is not a finite number");
    return val_error();
  }
  r.taint = val_taint(&x) | val_taint(&y);
  return r;
}

bool const_call(const char *name, const val *x, int n, val *out) {
  ir_opcode code;
  if (!ir_opcode_parse(name, &code) || ir_info(code)->cls != IR_CLASS_SCALAR) return false;
  if (n < 1 || n > 3 || n != ir_info(code)->min_in) return false;
  if (code == IR_where && x[0].kind == VAL_BOOL) {
    *out = x[x[0].truth ? 1 : 2];
    return true;
  }
  bool whole = true;
  int taint = 0;
  for (int i = 0; i < n; i++) {
    if (x[i].kind != VAL_NUMBER || x[i].unit > UNIT_COUNT) return false;
    whole = whole && !x[i].real;
    taint |= val_taint(&x[i]);
  }
  double r = ir_scalar_value(code, x[0].number, n > 1 ? x[1].number : 0, n > 2 ? x[2].number : 0);
  if (!isfinite(r)) return false;
  switch (code) {
    case IR_lt:
    case IR_le:
    case IR_gt:
    case IR_ge:
    case IR_eq:
    case IR_ne: *out = val_bool(r != 0); return true;
    case IR_and:
    case IR_or:
    case IR_not: return false;
    case IR_max:
    case IR_min:
      if (whole) {
        bool first = (x[0].whole > x[1].whole) == (code == IR_max);
        *out = val_whole(first ? x[0].whole : x[1].whole);
        break;
      }
      *out = val_real(r);
      break;
    case IR_floor: *out = fabs(r) < 0x1p62 ? val_whole((int64_t)r) : val_real(r); break;
    case IR_add:
    case IR_sub:
    case IR_mul:
    case IR_abs:
    case IR_neg:
    case IR_floordiv:
    case IR_mod: *out = whole && fabs(r) < 0x1p53 ? val_whole((int64_t)r) : val_real(r); break;
    default: *out = val_real(r); break;
  }
  out->taint = taint;
  return true;
}

// ---------------------------------------------------------------------------------------------
// Values as arguments
// ---------------------------------------------------------------------------------------------

bool want_whole(lowering *lw, span at, const val *v, const char *what, int64_t lo, int64_t hi,
                int64_t *out) {
  if (v->kind == VAL_ERROR) return false;
  bool plain = v->kind == VAL_NUMBER && v->unit <= UNIT_COUNT;
  bool whole = plain && (!v->real || (v->number == floor(v->number) && fabs(v->number) < 0x1p62));
  if (whole) {
    *out = v->real ? (int64_t)v->number : v->whole;
    if (*out >= lo && *out <= hi) return true;
  }
  diag *e;
  if (v->kind == VAL_TENSOR || v->kind == VAL_MULTI)
    e = sema_error(lw, at, DIAG_NOT_CONSTANT, "%s must be known when compiling; this is %s", what,
                   val_what(v));
  else if (v->kind == VAL_NUMBER && !plain)
    e = sema_error(lw, at, DIAG_WRONG_UNIT, "%s is a whole number without unit; this is %s", what,
                   unit_name(v->unit));
  else if (!plain)
    e = sema_error(lw, at, DIAG_WRONG_VALUE, "%s must be a whole number; this is %s", what,
                   val_what(v));
  else if (!whole)
    e = sema_error(lw, at, DIAG_WRONG_VALUE, "%s must be a whole number, not %s", what,
                   val_text(lw->arena, v));
  else
    e = sema_error(lw, at, DIAG_WRONG_VALUE, "%s is %lld", what, (long long)*out);
  if (whole && hi == INT64_MAX)
    diag_note(e, "it must be at least %lld", (long long)lo);
  else if (whole)
    diag_note(e, "it must be between %lld and %lld", (long long)lo, (long long)hi);
  return false;
}

bool want_number(lowering *lw, span at, const val *v, const char *what, double *out) {
  if (v->kind == VAL_ERROR) return false;
  if (v->kind == VAL_NUMBER && v->unit <= UNIT_COUNT) {
    *out = v->number;
    return true;
  }
  if (v->kind == VAL_TENSOR || v->kind == VAL_MULTI)
    sema_error(lw, at, DIAG_NOT_CONSTANT, "%s must be known when compiling; this is %s", what,
               val_what(v));
  else
    sema_error(lw, at, v->kind == VAL_NUMBER ? DIAG_WRONG_UNIT : DIAG_WRONG_VALUE,
               "%s must be a number; this is %s", what, val_what(v));
  return false;
}

bool want_bool(lowering *lw, span at, const val *v, const char *what, bool *out) {
  if (v->kind == VAL_ERROR) return false;
  if (v->kind == VAL_BOOL) {
    *out = v->truth;
    return true;
  }
  if (v->kind == VAL_TENSOR) {
    diag *e = sema_error(lw, at, DIAG_NOT_CONSTANT,
                         "%s must be known when compiling; this is a tensor", what);
    diag_note(e, "`if` chooses by constants; `where(test, a, b)` chooses by data");
  } else {
    sema_error(lw, at, DIAG_WRONG_VALUE, "%s must be true or false; this is %s", what, val_what(v));
  }
  return false;
}
