// Calls: arguments to formals, blocks, fns, ops by name.
//
// A fn over tensors becomes one `map` op whose region is the fn's body on single elements, with
// the fns it calls written out inside; tensors around a fn that it names are further operands. A fn
// with a gradient of its own (`grad(g) = ...`) is a map with a second region; since that gradient
// belongs to one map, a fn that calls such a fn is lowered as ops instead, one of them that map.
#include <limits.h>
#include <string.h>

#include "frontend/sema_impl.h"

// ---------------------------------------------------------------------------------------------
// Calls in progress
// ---------------------------------------------------------------------------------------------

bool enter_call(lowering *lw, span at, const char *name, const void *def) {
  for (int i = 0; i < lw->calls.n; i++)
    if (lw->calls.at[i].def == def) {
      sema_error(lw, at, DIAG_RECURSION, "`%s` calls itself", name);
      return false;
    }
  if (lw->calls.n >= SEMA_CALLS) {
    sema_error(lw, at, DIAG_TOO_DEEP, "calls nest more than %d deep", SEMA_CALLS);
    return false;
  }
  vec_push(lw->arena, &lw->calls, (call_site){name, at, def});
  return true;
}

void leave_call(lowering *lw) { lw->calls.n--; }

static bool scalar_frame(const lowering *lw) {
  return lw->frame && (lw->frame->kind == FRAME_MAP || lw->frame->kind == FRAME_SCORE);
}

// ---------------------------------------------------------------------------------------------
// Arguments of the user's fns and blocks
// ---------------------------------------------------------------------------------------------

static void list_formals(lowering *lw, diag *e, const formal_list *f) {
  const char **names = arena_new(lw->arena, const char *, f->n);
  for (int i = 0; i < f->n; i++) names[i] = f->at[i].name.text;
  diag_list(e, "arguments", names, f->n);
}

// The number of the formal that argument `a` of the call goes to, or -1 after a report.
static int formal_of(lowering *lw, const char *name, const formal_list *f, const arg *a, int i) {
  if (!a->name.text) {
    if (i < f->n) return i;
    diag *e = sema_error(lw, a->at, DIAG_TOO_MANY_ARGUMENTS, "`%s` takes %d argument%s", name, f->n,
                         f->n == 1 ? "" : "s");
    list_formals(lw, e, f);
    return -1;
  }
  const char **names = arena_new(lw->arena, const char *, f->n);
  for (int k = 0; k < f->n; k++) {
    names[k] = f->at[k].name.text;
    if (str_eq(names[k], a->name.text)) return k;
  }
  diag *e = sema_error(lw, a->name.at, DIAG_UNKNOWN_ARGUMENT, "`%s` has no argument `%s`", name,
                       a->name.text);
  diag_did_you_mean(e, a->name.text, names, f->n);
  list_formals(lw, e, f);
  return -1;
}

static bool positional_first(lowering *lw, const arg_list *args) {
  bool named = false, ok = true;
  for (int i = 0; i < args->n; i++) {
    if (args->at[i].name.text)
      named = true;
    else if (named) {
      sema_error(lw, args->at[i].at, DIAG_UNKNOWN_ARGUMENT,
                 "positional arguments come before named ones");
      ok = false;
    }
  }
  return ok;
}

// Evaluates the arguments in the caller's scope. x[k] stays VAL_MULTI with n -1 where none is
// given. False after a mistake in the call itself.
static bool eval_args(lowering *lw, const expr *e, const formal_list *f, val *x) {
  const arg_list *args = &e->call.args;
  bool ok = positional_first(lw, args);
  for (int k = 0; k < f->n; k++) x[k] = (val){.kind = VAL_MULTI, .n = -1};
  for (int i = 0; i < args->n; i++) {
    const arg *a = &args->at[i];
    int k = ok ? formal_of(lw, e->call.name.text, f, a, i) : -1;
    val v = eval(lw, a->value);
    if (k < 0) {
      ok = false;
    } else if (x[k].n != -1 || x[k].kind != VAL_MULTI) {
      sema_error(lw, a->at, DIAG_DUPLICATE_ARGUMENT, "`%s` is given twice", f->at[k].name.text);
      ok = false;
    } else if (v.kind == VAL_MULTI) {
      sema_error(lw, a->value->at, DIAG_WRONG_COUNT, "an argument is one value; this is %d", v.n);
      x[k] = val_error();
    } else {
      x[k] = v;
    }
  }
  return ok;
}

// The type of a formal against the value given for it.
static void check_formal_type(lowering *lw, const formal *f, const val *v) {
  const type *t = f->type;
  if (!t || v->kind != VAL_TENSOR) return;
  const ir_type *have = &v->tensor->type;
  const char *shown = ir_type_text(lw->arena, have);
  ir_dtype dtype = have->dtype;
  if (t->element.text && !ir_dtype_parse(t->element.text, &dtype)) {
    sema_error(lw, t->element.at, DIAG_UNDECLARED_NAME, "`%s` is not an element type",
               t->element.text);
    return;
  }
  if (dtype != have->dtype) {
    sema_error(lw, f->at, DIAG_WRONG_SHAPE, "`%s` is %s here, not %s", f->name.text, shown,
               ir_dtype_name(dtype));
    return;
  }
  if (!t->shaped) return;
  int rest = -1, n = t->extents.n;
  for (int i = 0; i < n; i++)
    if (!t->extents.at[i].size) {
      if (rest >= 0) {
        sema_error(lw, t->extents.at[i].at, DIAG_BAD_EXTENT, "`..` stands once in a type");
        return;
      }
      rest = i;
    }
  bool fits = rest < 0 ? have->rank == n : have->rank >= n - 1;
  for (int i = 0; fits && i < n; i++) {
    if (i == rest) continue;
    int at = rest >= 0 && i > rest ? have->rank - (n - i) : i;
    int64_t size;
    const char *name;
    ir_index *index;
    if (!eval_extent(lw, t->extents.at[i].size, &size, &name, &index)) return;
    fits = have->dim[at]->size == size;
  }
  if (!fits)
    sema_error(lw, f->at, DIAG_WRONG_SHAPE, "`%s` is %s here, which is not what its type says",
               f->name.text, shown);
}

// Binds the formals in the current scope, defaults evaluated there in order. False when one is
// missing.
static bool bind_formals(lowering *lw, span at, const char *name, const formal_list *f,
                         const val *x) {
  bool ok = true;
  for (int k = 0; k < f->n; k++) {
    const formal *g = &f->at[k];
    val v = x[k];
    if (v.kind == VAL_MULTI && v.n == -1) {
      if (g->value) {
        v = eval(lw, g->value);
      } else {
        diag *e = sema_error(lw, at, DIAG_MISSING_ARGUMENT, "`%s` needs `%s`", name, g->name.text);
        e->places.n = 0;
        diag_place_at(e, g->at, "`%s` has no default", g->name.text);
        v = val_error();
        ok = false;
      }
    }
    check_formal_type(lw, g, &v);
    scope_bind(lw, lw->scope, g->name.text, v, g->name.at);
  }
  return ok;
}

static bool duplicate_formals(lowering *lw, const formal_list *f) {
  for (int i = 0; i < f->n; i++)
    for (int k = 0; k < i; k++)
      if (str_eq(f->at[i].name.text, f->at[k].name.text)) {
        sema_error(lw, f->at[i].at, DIAG_DUPLICATE_NAME, "there are two formals `%s`",
                   f->at[i].name.text);
        return true;
      }
  return false;
}

// ---------------------------------------------------------------------------------------------
// Fns
// ---------------------------------------------------------------------------------------------

int fn_formals(const closure *f) { return f->fn->formals.n; }

val inline_fn(lowering *lw, span at, const closure *f, const val *x, int n) {
  (void)n;
  const char *name = f->fn->name.text;
  if (duplicate_formals(lw, &f->fn->formals) || !enter_call(lw, at, name, f->fn))
    return val_error();
  scope *caller = lw->scope;
  bool in_fn = lw->in_fn;
  lw->scope = scope_new(lw, f->env, f->limit);
  lw->in_fn = true;
  val r = val_error();
  if (bind_formals(lw, at, name, &f->fn->formals, x)) r = eval(lw, f->fn->body);
  if (r.kind == VAL_MULTI) {
    sema_error(lw, f->fn->body->at, DIAG_WRONG_COUNT, "a fn has one value; this is %d", r.n);
    r = val_error();
  }
  lw->scope = caller;
  lw->in_fn = in_fn;
  leave_call(lw);
  return r;
}

// An argument of the map's region for each formal that is a tensor; constants stay constants.
static void scalar_formals(lowering *lw, frame *f, const val *x, int n, val *inside) {
  for (int i = 0; i < n; i++) {
    inside[i] = x[i];
    if (x[i].kind != VAL_TENSOR) continue;
    ir_value *outer = import_value(lw, f->outer, x[i].tensor);
    ir_value *made = ir_region_arg(f->region, ir_scalar(outer->type.dtype), outer->name);
    vec_push(lw->arena, &f->imports, (import){outer, made});
    inside[i].tensor = made;
  }
}

static ir_value *yield_of(lowering *lw, span at, frame *f, const val *r) {
  ir_value *v = as_tensor(lw, at, r, NULL, "the value of a fn");
  v = v ? import_value(lw, f, v) : NULL;
  if (v) vec_push(lw->arena, &f->region->yield, v);
  return v;
}

// Region 1 of a fn with its own gradient: (formals, gradient of the result) -> a gradient of each.
static ir_region *gradient_region(lowering *lw, span at, const closure *f, const val *x, int n,
                                  ir_dtype result) {
  const fn *def = f->fn;
  if (def->grads.n != n) {
    sema_error(lw, def->grad.at, DIAG_WRONG_COUNT,
               "`grad` gives %d expressions for %d formals of `%s`", def->grads.n, n,
               def->name.text);
    return NULL;
  }
  if (!enter_call(lw, at, def->name.text, def)) return NULL;
  frame g = {.outer = lw->frame, .kind = FRAME_MAP, .region = ir_region_new(lw->m, NULL)};
  val inside[64];
  scalar_formals(lw, &g, x, n, inside);
  int operands = g.imports.n;
  ir_value *given = ir_region_arg(g.region, ir_scalar(result), def->grad.text);
  scope *caller = lw->scope;
  bool in_fn = lw->in_fn, ok;
  lw->frame = &g;
  lw->in_fn = true;
  lw->scope = scope_new(lw, f->env, f->limit);
  ok = bind_formals(lw, at, def->name.text, &def->formals, inside);
  scope_bind(lw, lw->scope, def->grad.text, val_tensor(given), def->grad.at);
  for (int i = 0; i < n && ok; i++) {
    if (x[i].kind != VAL_TENSOR) continue;
    val r = eval(lw, def->grads.at[i]);
    ok = yield_of(lw, def->grads.at[i]->at, &g, &r) != NULL;
  }
  if (ok && g.imports.n != operands) {
    sema_error(lw, def->grad.at, DIAG_PLANNED,
               "a gradient that reads tensors around the fn is planned, not built");
    ok = false;
  }
  lw->frame = g.outer;
  lw->in_fn = in_fn;
  lw->scope = caller;
  leave_call(lw);
  return ok ? g.region : NULL;
}

static val map_of_fn(lowering *lw, span at, const closure *f, const val *x, int n) {
  frame g = {.outer = lw->frame, .kind = FRAME_MAP, .region = ir_region_new(lw->m, NULL)};
  val inside[64];
  scalar_formals(lw, &g, x, n, inside);
  int formals = g.imports.n;
  bool own = f->fn->grads.n > 0, ignore = lw->ignore_grads;
  lw->frame = &g;
  lw->ignore_grads = ignore || own;
  val r = inline_fn(lw, at, f, inside, n);
  if (own && r.kind == VAL_TENSOR && !ir_dtype_float(r.tensor->type.dtype)) {
    // `where(x > 0, 1, 0)` with a gradient of its own: whole numbers have no gradient.
    ir_attr f32 = ir_attr_s("dtype", "f32");
    ir_op *cast = emit(lw, at, IR_cast, &r.tensor, 1, &f32, 1, NULL, 0);
    r = val_tensor(cast ? cast->out[0] : NULL);
  }
  ir_value *v = r.kind == VAL_ERROR ? NULL : yield_of(lw, at, &g, &r);
  lw->frame = g.outer;
  lw->ignore_grads = ignore;
  if (!v) return val_error();
  ir_region *region[2] = {g.region, NULL};
  if (own) {
    if (g.imports.n != formals) {
      sema_error(lw, f->fn->grad.at, DIAG_PLANNED,
                 "a fn with its own gradient that reads tensors around it is planned, not built");
      return val_error();
    }
    region[1] = gradient_region(lw, at, f, x, n, v->type.dtype);
    if (!region[1]) return val_error();
  }
  ir_value **in = arena_new(lw->arena, ir_value *, g.imports.n);
  for (int i = 0; i < g.imports.n; i++) in[i] = g.imports.at[i].outer;
  ir_attr name = ir_attr_s("name", f->fn->name.text);
  ir_op *op = emit(lw, at, IR_map, in, g.imports.n, &name, 1, region, own ? 2 : 1);
  return val_tensor(op ? op->out[0] : NULL);
}

val call_fn(lowering *lw, span at, const closure *f, const val *x, int n) {
  bool own = f->fn->grads.n > 0 && !lw->ignore_grads, constant = true;
  for (int i = 0; i < n; i++) {
    if (x[i].kind == VAL_ERROR) return val_error();
    constant = constant && x[i].kind != VAL_TENSOR;
  }
  if (n > 64) {
    sema_error(lw, at, DIAG_TOO_MANY_ARGUMENTS, "a fn takes at most 64 arguments");
    return val_error();
  }
  if (scalar_frame(lw)) {
    if (own && !constant) {
      if (lw->frame->kind == FRAME_SCORE)
        sema_error(lw, at, DIAG_PLANNED,
                   "a fn with its own gradient in a mask or bias is planned, not built");
      else
        lw->wants_tensors = true;  // the outermost fn starts over as ops
      return val_error();
    }
    return inline_fn(lw, at, f, x, n);
  }
  if (constant || (lw->tensor_fn && !own)) return inline_fn(lw, at, f, x, n);
  bool tensor_fn = lw->tensor_fn;
  lw->tensor_fn = false;
  lw->wants_tensors = false;
  val r = map_of_fn(lw, at, f, x, n);
  if (lw->wants_tensors) {
    lw->wants_tensors = false;
    lw->tensor_fn = true;
    r = inline_fn(lw, at, f, x, n);
  }
  lw->tensor_fn = tensor_fn;
  return r;
}

// ---------------------------------------------------------------------------------------------
// Elementwise ops
// ---------------------------------------------------------------------------------------------

val call_elementwise(lowering *lw, span at, const char *name, const val *x, int n) {
  ir_opcode code = IR_add;
  elementwise_arity(name, &code);
  const ir_value *like = NULL;
  bool whole = true;
  for (int i = 0; i < n; i++) {
    if (x[i].kind == VAL_ERROR) return val_error();
    if (x[i].kind == VAL_TENSOR && !(code == IR_where && i == 0)) like = like ? like : x[i].tensor;
    whole = whole && (x[i].kind != VAL_NUMBER || !x[i].real);
  }
  val r;
  if (const_call(name, x, n, &r)) return r;
  ir_value *in[3];
  for (int i = 0; i < n; i++) {
    const char *what = arena_printf(lw->arena, "an argument of `%s`", name);
    bool count = code == IR_where && i > 0 && !like && whole && x[i].kind == VAL_NUMBER &&
                 x[i].unit <= UNIT_COUNT && x[i].number >= INT32_MIN && x[i].number <= INT32_MAX;
    in[i] = count ? emit_const(lw, at, DT_i32, x[i].number) : as_tensor(lw, at, &x[i], like, what);
    if (!in[i]) return val_error();
  }
  ir_op *op = emit(lw, at, code, in, n, NULL, 0, NULL, 0);
  return val_tensor(op ? op->out[0] : NULL);
}

// ---------------------------------------------------------------------------------------------
// Ops of the language
// ---------------------------------------------------------------------------------------------

// The words of "x n bias? init?".
static int split_formals(lowering *lw, const char *text, const char **names, bool *optional) {
  int n = 0;
  for (const char *p = text; *p && n < 16;) {
    p += strspn(p, " ");
    size_t len = strcspn(p, " ");
    if (!len) break;
    optional[n] = p[len - 1] == '?';
    names[n] = arena_strndup(lw->arena, p, len - (optional[n] ? 1 : 0));
    n++;
    p += len;
  }
  return n;
}

static bool bind_builtin(lowering *lw, const expr *e, const char *name, const char *formals,
                         bound_args *out) {
  const char *names[16];
  bool optional[16] = {0};
  int n = split_formals(lw, formals, names, optional);
  bool rest = n && str_ends(names[0], "...");
  if (rest) names[0] = arena_strndup(lw->arena, names[0], strlen(names[0]) - 3);
  const arg_list *args = &e->call.args;
  if (!positional_first(lw, args)) return false;
  bool ok = true;
  val *many = arena_new(lw->arena, val, args->n);
  int count = 0;
  for (int i = 0; i < args->n; i++) {
    const arg *a = &args->at[i];
    int k = -1;
    if (!a->name.text) {
      k = rest ? 0 : i < n ? i : -1;
      if (k < 0) {
        diag *d = sema_error(lw, a->at, DIAG_TOO_MANY_ARGUMENTS, "`%s` takes %d argument%s", name,
                             n, n == 1 ? "" : "s");
        diag_list(d, "arguments", names, n);
      }
    } else {
      for (int j = rest ? 1 : 0; j < n; j++)
        if (str_eq(names[j], a->name.text)) k = j;
      if (k < 0) {
        diag *d = sema_error(lw, a->name.at, DIAG_UNKNOWN_ARGUMENT, "`%s` has no argument `%s`",
                             name, a->name.text);
        diag_did_you_mean(d, a->name.text, names, n);
        diag_list(d, "arguments", names, n);
      }
    }
    val v = eval(lw, a->value);
    if (v.kind == VAL_ERROR || k < 0) {
      ok = false;
      continue;
    }
    if (v.kind == VAL_MULTI) {
      sema_error(lw, a->value->at, DIAG_WRONG_COUNT, "an argument is one value; this is %d", v.n);
      ok = false;
      continue;
    }
    if (rest && k == 0) {
      many[count++] = v;
      out->v[0] = (val){.kind = VAL_LIST, .items = many, .n = count};
    } else if (out->given[k]) {
      sema_error(lw, a->at, DIAG_DUPLICATE_ARGUMENT, "`%s` is given twice", names[k]);
      ok = false;
    } else {
      out->v[k] = v;
    }
    out->given[k] = true;
    out->e[k] = a->value;
    out->at[k] = a->at;
  }
  for (int k = 0; k < n && ok; k++)
    if (!out->given[k] && !optional[k]) {
      diag *d = sema_error(lw, e->at, DIAG_MISSING_ARGUMENT, "`%s` needs `%s`", name, names[k]);
      diag_list(d, "arguments", names, n);
      ok = false;
    }
  return ok;
}

// The name that messages offer for `as`.
static const char *offered_path(lowering *lw, const char *op) {
  const char *s = lw->statement;
  return s && *s ? s : op;
}

static val call_builtin(lowering *lw, const expr *e, const char *name) {
  const char *shown = e->call.name.text;
  const builtin *b = builtin_find(name);
  ir_opcode code;
  int arity = elementwise_arity(name, &code);
  bool owns = b && b->owns;
  if (e->call.role != PATH_NONE && !owns) {
    diag *d = sema_error(lw, e->call.path.at, DIAG_UNEXPECTED_PATH,
                         "`%s` has no weights to give a path to", shown);
    diag_note(d,
              "`as` belongs to the call before it: f(x) as p names f(x), and in "
              "`x + f(y) as p` it names f(y)");
    return val_error();
  }
  if (e->call.role == PATH_NONE && owns) {
    const char *path = offered_path(lw, shown);
    diag *d = sema_error(lw, e->at, DIAG_MISSING_PATH, "`%s` has weights and needs a path", shown);
    diag_label(d, "write `%s(...) as %s`", shown, path);
    return val_error();
  }
  if (b && scalar_frame(lw) && !str_eq(name, "gelu") && !str_eq(name, "cast") &&
      !str_eq(name, "max") && !str_eq(name, "min")) {
    diag *d =
        sema_error(lw, e->at, DIAG_NOT_ELEMENTWISE, "`%s` does not work on single elements", shown);
    diag_note(d, "a fn is elementwise; use a block for what is not");
    return val_error();
  }
  bound_args *a = arena_new(lw->arena, bound_args, 1);
  if (b) {
    if (!bind_builtin(lw, e, shown, b->formals, a)) return val_error();
    return b->run(lw, e, a);
  }
  if (!bind_builtin(lw, e, shown, arity == 1 ? "x" : arity == 2 ? "x y" : "test x y", a))
    return val_error();
  return call_elementwise(lw, e->at, name, a->v, arity);
}

static val call_init(lowering *lw, const expr *e, const char *name) {
  bound_args *a = arena_new(lw->arena, bound_args, 1);
  bool constant = str_eq(name, "constant"), normal = str_eq(name, "normal");
  double x;
  if (!bind_builtin(lw, e, name,
                    normal     ? "std"
                    : constant ? "value"
                               : "bound",
                    a) ||
      !want_number(lw, a->at[0], &a->v[0], "its argument", &x))
    return val_error();
  if (!constant && x < 0) {
    sema_error(lw, a->at[0], DIAG_WRONG_VALUE, "the width of a distribution is not negative");
    return val_error();
  }
  ir_init_kind kind = normal ? INIT_NORMAL : constant ? INIT_CONST : INIT_UNIFORM;
  return (val){.kind = VAL_INIT, .init = {kind, x}};
}

// ---------------------------------------------------------------------------------------------
// Blocks
// ---------------------------------------------------------------------------------------------

static val return_values(lowering *lw, const stmt *s) {
  int n = s->values.n;
  lw->statement = NULL;  // what is returned is called by the path around
  if (n == 1) return eval(lw, s->values.at[0]);
  val r = {.kind = VAL_MULTI, .n = n, .items = arena_new(lw->arena, val, n)};
  bool ok = true;
  for (int i = 0; i < n; i++) {
    r.items[i] = eval(lw, s->values.at[i]);
    if (r.items[i].kind == VAL_MULTI) {
      sema_error(lw, s->values.at[i]->at, DIAG_WRONG_COUNT, "each of several results is one value");
      ok = false;
    }
  }
  return ok ? r : val_error();
}

static val block_body(lowering *lw, const block *b) {
  const stmt_list *body = &b->body;
  for (int i = 0; i < body->n; i++) {
    const stmt *s = body->at[i];
    if (s->kind != STMT_RETURN) {
      lower_statement(lw, s, false);
      if (lw->spent) return val_error();
      continue;
    }
    if (i + 1 < body->n)
      sema_error(lw, body->at[i + 1]->at, DIAG_MISPLACED_STATEMENT,
                 "nothing after `return` is ever done");
    return return_values(lw, s);
  }
  diag *e = sema_error(lw, b->name.at, DIAG_MISSING_RETURN, "the block `%s` has no `return`",
                       b->name.text);
  diag_note(e, "a block ends in `return` with one or more values");
  return val_error();
}

val call_block(lowering *lw, const expr *e, const closure *c) {
  const block *b = c->block;
  const char *name = b->name.text;
  if (!lw->m) {
    sema_error(lw, e->at, DIAG_NOT_CONSTANT,
               "a setting is computed from constants; `%s` is a block", name);
    return val_error();
  }
  if (scalar_frame(lw)) {
    sema_error(lw, e->at, DIAG_NOT_ELEMENTWISE,
               "a fn is elementwise and cannot call the block `%s`", name);
    return val_error();
  }
  val *x = arena_new(lw->arena, val, b->formals.n);
  if (!eval_args(lw, e, &b->formals, x) || duplicate_formals(lw, &b->formals)) return val_error();
  if (!enter_call(lw, e->at, name, b)) return val_error();
  path_save save;
  val r = val_error();
  scope *caller = lw->scope;
  bool in_fn = lw->in_fn;
  const char *statement = lw->statement;
  if (path_enter(lw, e, &save)) {
    lw->scope = scope_new(lw, c->env, c->limit);
    lw->in_fn = false;
    if (bind_formals(lw, e->at, name, &b->formals, x)) r = block_body(lw, b);
    lw->scope = caller;
    lw->in_fn = in_fn;
    lw->statement = statement;
    path_leave(lw, e, &save);
  }
  leave_call(lw);
  return r;
}

// ---------------------------------------------------------------------------------------------
// Whatever is called
// ---------------------------------------------------------------------------------------------

static val call_value(lowering *lw, const expr *e, const val *f) {
  const char *name = e->call.name.text;
  switch (f->kind) {
    case VAL_ERROR: return val_error();
    case VAL_BLOCK: return call_block(lw, e, f->closure);
    case VAL_OP: return call_builtin(lw, e, f->text);
    case VAL_FN: {
      if (e->call.role != PATH_NONE) {
        sema_error(lw, e->call.path.at, DIAG_UNEXPECTED_PATH,
                   "the fn `%s` has no weights to give a path to", name);
        return val_error();
      }
      const formal_list *formals = &f->closure->fn->formals;
      val *x = arena_new(lw->arena, val, formals->n);
      if (!eval_args(lw, e, formals, x)) return val_error();
      return call_fn(lw, e->at, f->closure, x, formals->n);
    }
    default: break;
  }
  diag *d = sema_error(lw, e->call.name.at, DIAG_WRONG_KIND, "`%s` is %s and cannot be called",
                       name, val_what(f));
  val predefined;
  if (predefined_value(name, &predefined) && predefined.kind == VAL_OP)
    diag_note(d, "the op `%s` is shadowed by this name: use another name", name);
  return val_error();
}

val eval_call(lowering *lw, const expr *e) {
  const char *name = e->call.name.text;
  const binding *b = scope_find(lw->scope, INT_MAX, name);
  if (b) return call_value(lw, e, &b->value);
  if (lw->settings) {
    bool found = false;
    val v = settings_value(lw, e->call.name.at, name, &found);
    if (found) return call_value(lw, e, &v);
  }
  closure top = {.fn = map_get(&lw->program->fns, name)};
  if (!top.fn) top.block = map_get(&lw->program->blocks, name);
  if (top.fn || top.block) {
    closure *kept = arena_new(lw->arena, closure, 1);
    *kept = top;
    val v = {.kind = top.fn ? VAL_FN : VAL_BLOCK, .closure = kept};
    return call_value(lw, e, &v);
  }
  ir_dtype t;
  ir_opcode code;
  if (builtin_find(name) || elementwise_arity(name, &code)) return call_builtin(lw, e, name);
  if (str_eq(name, "normal") || str_eq(name, "uniform") || str_eq(name, "constant"))
    return call_init(lw, e, name);
  if (str_eq(name, "zeros") || str_eq(name, "ones") || str_eq(name, "causal") ||
      ir_dtype_parse(name, &t)) {
    diag *d = sema_error(lw, e->call.name.at, DIAG_WRONG_KIND, "`%s` is a value, not an op", name);
    if (ir_dtype_parse(name, &t)) diag_note(d, "to change the element type: `cast(x, %s)`", name);
    return val_error();
  }
  if (planned_name(name) || map_get(&lw->program->models, name)) {
    sema_error(lw, e->call.name.at, DIAG_PLANNED, "%s`%s` is planned, not built",
               planned_name(name) ? "" : "calling the model ", name);
    for (int i = 0; i < e->call.args.n; i++) eval(lw, e->call.args.at[i].value);
    return val_error();
  }
  sema_undeclared(lw, e->call.name.at, name, "the op or block");
  return val_error();
}
