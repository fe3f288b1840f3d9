// Recursive descent that emits while it reads: there is no tree. See ir/expr.h for the grammar.
#include "ir/expr.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NAMES 64  // given values plus the text's own bindings
#define MAX_DEPTH 64  // nesting of parentheses, calls and DEFINED rows

typedef struct emitter {
  ir_builder *b;
  const char *text, *at;
  struct {
    const char *name;
    size_t len;
    ir_value *value;
  } bound[MAX_NAMES];
  int nbound;
  ir_dtype real;  // of constants
  int depth;
} emitter;

// Keeps the first reason, which may also come from a builder; returns NULL for the caller to pass
// on.
static ir_value *fail(emitter *e, const char *why) {
  if (!e->b->error)
    e->b->error =
        arena_printf(e->b->m->arena, "in the text \"%s\" at \"%s\": %s", e->text, e->at, why);
  return NULL;
}

static void space(emitter *e) {
  while (isspace((unsigned char)*e->at)) e->at++;
}

// Takes `token` when it comes next.
static bool take(emitter *e, const char *token) {
  space(e);
  if (!str_starts(e->at, token)) return false;
  e->at += strlen(token);
  return true;
}

static size_t name_length(const char *s) {
  size_t n = 0;
  if (isalpha((unsigned char)*s) || *s == '_')
    while (isalnum((unsigned char)s[n]) || s[n] == '_') n++;
  return n;
}

static bool bind(emitter *e, const char *name, size_t len, ir_value *v) {
  if (e->nbound == MAX_NAMES) return fail(e, "too many names") != NULL;
  e->bound[e->nbound].name = name;
  e->bound[e->nbound].len = len;
  e->bound[e->nbound++].value = v;
  return true;
}

static ir_value *expr(emitter *e);
static int results(emitter *e, ir_value **out, int max);

// A call of a DEFINED row: its text, read by an emitter of its own with the parameters bound.
static ir_value *expand(emitter *e, const ir_op_info *info, ir_value *const *arg, int n) {
  emitter inner = {
      .b = e->b, .text = info->text, .at = info->text, .real = e->real, .depth = e->depth};
  const char *p = info->params;
  for (int i = 0; i < n; i++) {
    p += strspn(p, ", ");
    size_t len = name_length(p);
    if (!len) return fail(e, "wrong number of arguments");
    bind(&inner, p, len, arg[i]);
    p += len;
  }
  ir_value *out;
  return results(&inner, &out, 1) == 1 ? out : NULL;
}

// name "(" has been read. Only elementwise rows make sense on scalars.
static ir_value *call(emitter *e, const char *name) {
  ir_opcode code;
  if (!ir_opcode_parse(name, &code) || ir_info(code)->cls == IR_CLASS_OP)
    return fail(e, "not an elementwise op");
  const ir_op_info *info = ir_info(code);
  ir_value *arg[3];
  int n = 0;
  while (!take(e, ")")) {
    if (n && !take(e, ",")) return fail(e, "expected `,` or `)`");
    if (n == info->max_in) return fail(e, "too many arguments");
    if (!(arg[n++] = expr(e))) return NULL;
  }
  if (n < info->min_in) return fail(e, "too few arguments");
  if (info->cls == IR_CLASS_DEFINED) return expand(e, info, arg, n);
  ir_op *op = ir_build(e->b, code, arg, n);
  return op ? op->out[0] : NULL;
}

// A constant, a name, a call or parentheses.
static ir_value *primary(emitter *e) {
  space(e);
  if (isdigit((unsigned char)*e->at) || *e->at == '.') {
    char *end;
    double v = strtod(e->at, &end);
    if (end == e->at) return fail(e, "not a number");
    e->at = end;
    return ir_const(e->b, e->real, v);
  }
  if (take(e, "(")) {
    ir_value *v = expr(e);
    if (v && !take(e, ")")) return fail(e, "expected `)`");
    return v;
  }
  size_t n = name_length(e->at);
  if (!n) return fail(e, "expected a number, a name or `(`");
  const char *name = arena_strndup(e->b->m->arena, e->at, n);
  e->at += n;
  if (take(e, "(")) return call(e, name);
  // The latest binding of a name counts.
  for (int i = e->nbound - 1; i >= 0; i--)
    if (e->bound[i].len == n && memcmp(e->bound[i].name, name, n) == 0) return e->bound[i].value;
  return fail(e, arena_printf(e->b->m->arena, "`%s` is not defined", name));
}

static ir_value *unary(emitter *e) {
  if (e->depth >= MAX_DEPTH) return fail(e, "nested too deeply");
  e->depth++;
  ir_value *v;
  space(e);
  if (*e->at == '-') {
    e->at++;
    space(e);
    bool number = isdigit((unsigned char)*e->at);
    v = unary(e);
    if (v && number)  // "-0.5" is a constant, not an operation
      ir_set_attr(e->b->m, v->def, ir_attr_f("value", -ir_attr_float(v->def, "value", 0)));
    else if (v)
      v = ir_build1(e->b, IR_neg, v);
  } else {
    v = primary(e);
  }
  e->depth--;
  return v;
}

static ir_value *product(emitter *e) {
  ir_value *v = unary(e);
  while (v) {
    ir_opcode code = take(e, "*")    ? IR_mul
                     : take(e, "//") ? IR_floordiv
                     : take(e, "/")  ? IR_div
                     : take(e, "%")  ? IR_mod
                                     : IR_OPCODE_COUNT;
    if (code == IR_OPCODE_COUNT) break;
    ir_value *right = unary(e);
    v = right ? ir_build2(e->b, code, v, right) : NULL;
  }
  return v;
}

static ir_value *sum(emitter *e) {
  ir_value *v = product(e);
  while (v) {
    ir_opcode code = take(e, "+") ? IR_add : take(e, "-") ? IR_sub : IR_OPCODE_COUNT;
    if (code == IR_OPCODE_COUNT) break;
    ir_value *right = product(e);
    v = right ? ir_build2(e->b, code, v, right) : NULL;
  }
  return v;
}

static ir_value *expr(emitter *e) {
  ir_value *v = sum(e);
  if (!v) return NULL;
  ir_opcode code = take(e, "<=")   ? IR_le
                   : take(e, "<")  ? IR_lt
                   : take(e, ">=") ? IR_ge
                   : take(e, ">")  ? IR_gt
                   : take(e, "==") ? IR_eq
                   : take(e, "!=") ? IR_ne
                                   : IR_OPCODE_COUNT;
  if (code == IR_OPCODE_COUNT) return v;
  ir_value *right = sum(e);
  return right ? ir_build2(e->b, code, v, right) : NULL;
}

// True at "name = ..." (and not at "name == ...").
static size_t binding(emitter *e) {
  space(e);
  size_t n = name_length(e->at), i = n;
  while (isspace((unsigned char)e->at[i])) i++;
  return n && e->at[i] == '=' && e->at[i + 1] != '=' ? n : 0;
}

// The whole text: bindings first, then the results.
static int results(emitter *e, ir_value **out, int max) {
  for (size_t n; (n = binding(e));) {
    const char *name = e->at;
    e->at += n;
    take(e, "=");
    ir_value *v = expr(e);
    if (!v || !bind(e, name, n, v)) return -1;
    if (!take(e, ";")) return fail(e, "expected `;`"), -1;
  }
  int n = 0;
  do {
    if (n == max) return fail(e, "too many results"), -1;
    if (!(out[n++] = expr(e))) return -1;
  } while (take(e, ","));
  space(e);
  if (*e->at) return fail(e, "something follows the end"), -1;
  return n;
}

// Constants take the type of the operands, so that `x * 0.5` of a 16-bit x stays 16 bits wide.
int ir_expr_emit(ir_builder *b, const char *text, const char *const *names, ir_value *const *values,
                 int n, ir_value **out, int max_out) {
  emitter e = {.b = b, .text = text, .at = text, .real = DT_f32};
  bool real = false;
  b->error = NULL;
  for (int i = 0; i < n; i++) {
    if (!bind(&e, names[i], strlen(names[i]), values[i])) return -1;
    ir_dtype t = values[i]->type.dtype;
    if (!ir_dtype_float(t)) continue;
    e.real = real ? ir_dtype_join(e.real, t) : t;
    real = true;
  }
  return results(&e, out, max_out);
}

ir_region *ir_expr_region(ir_module *m, ir_op *owner, const char *params, const char *text,
                          const ir_dtype *param_types) {
  ir_region *r = ir_region_new(m, owner);
  const char *names[MAX_NAMES];
  ir_value *values[MAX_NAMES], *out[MAX_NAMES];
  int n = 0;
  for (const char *p = params + strspn(params, ", "); *p; p += strspn(p, ", ")) {
    size_t len = name_length(p);
    if (!len || n == MAX_NAMES) IR_BUG("bad parameters \"%s\"", params);
    names[n] = arena_strndup(m->arena, p, len);
    values[n] = ir_region_arg(r, ir_scalar(param_types[n]), names[n]);
    n++;
    p += len;
  }
  ir_builder b = {.m = m, .at = r};
  int count = ir_expr_emit(&b, text, names, values, n, out, MAX_NAMES);
  if (count < 0) IR_BUG("%s", b.error);
  for (int i = 0; i < count; i++) vec_push(m->arena, &r->yield, out[i]);
  return r;
}

ir_region *ir_defined_region(ir_module *m, ir_opcode code, const ir_dtype *types) {
  const ir_op_info *info = ir_info(code);
  IR_CHECK(info->cls == IR_CLASS_DEFINED);
  ir_region *r = ir_expr_region(m, NULL, info->params, info->text, types);
  ir_dtype want = types[0];
  for (int i = 1; i < info->min_in; i++) want = ir_dtype_join(want, types[i]);
  if (!ir_dtype_float(want)) want = DT_f32;
  if (r->yield.at[0]->type.dtype != want) {  // a text of whole numbers only, like x * x
    ir_builder b = {.m = m, .at = r};
    ir_attr to = ir_attr_s("dtype", ir_dtype_name(want));
    r->yield.at[0] = ir_build_full(&b, IR_cast, r->yield.at, 1, &to, 1, NULL, 0)->out[0];
  }
  return r;
}
