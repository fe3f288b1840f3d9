// Printing and looking at syntax trees. The dump is for tests: two texts mean the same to the
// compiler when their dumps are equal.
#include "frontend/ast.h"

#include <inttypes.h>
#include <string.h>

const char *unit_name(unit u) {
  switch (u) {
    case UNIT_NONE: return "a plain number";
    case UNIT_COUNT: return "a count";
    case UNIT_BYTES: return "bytes";
    case UNIT_BYTES_PER_S: return "bytes per second";
    case UNIT_FLOPS: return "operations per second";
    case UNIT_SECONDS: return "a time";
    case UNIT_WATTS: return "a power";
    case UNIT_USD_PER_H: return "a price per hour";
  }
  return "a number";
}

const char *binary_op_text(binary_op op) {
  static const char *const text[] = {
      "or", "and", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "//", "%", "^"};
  return text[op];
}

bool expr_is_name(const expr *e, const char *name) {
  return e && e->kind == EXPR_NAME && strcmp(e->text, name) == 0;
}

bool expr_is_call(const expr *e, const char *name) {
  return e && e->kind == EXPR_CALL && strcmp(e->call.name.text, name) == 0;
}

const entry *section_get(const section *s, const char *key) {
  for (int i = s->entries.n - 1; i >= 0; i--)
    if (s->entries.at[i]->value && str_eq(s->entries.at[i]->key.text, key)) return s->entries.at[i];
  return NULL;
}

// ---------------------------------------------------------------------------------------------
// Canonical expressions
// ---------------------------------------------------------------------------------------------

// How tightly the grammar binds each kind; a child that binds looser gets parentheses.
static int binding(const expr *e) {
  enum { IF, OR, AND, NOT, COMPARE, SUM, PRODUCT, NEG, POWER, ATOM };
  switch (e->kind) {
    case EXPR_IF: return IF;
    case EXPR_UNARY: return e->unary.op == UNARY_NOT ? NOT : NEG;
    case EXPR_BINARY:
      switch (e->binary.op) {
        case BINARY_OR: return OR;
        case BINARY_AND: return AND;
        case BINARY_ADD:
        case BINARY_SUB: return SUM;
        case BINARY_MUL:
        case BINARY_DIV:
        case BINARY_FLOORDIV:
        case BINARY_MOD: return PRODUCT;
        case BINARY_POW: return POWER;
        default: return COMPARE;
      }
    default: return ATOM;
  }
}

static void print_string(sb *out, const char *s) {
  sb_put(out, '"');
  for (; *s; s++) {
    if (*s == '\n')
      sb_puts(out, "\\n");
    else if (*s == '\t')
      sb_puts(out, "\\t");
    else {
      if (*s == '"' || *s == '\\') sb_put(out, '\\');
      sb_put(out, *s);
    }
  }
  sb_put(out, '"');
}

static void print_child(sb *out, const expr *e, int least) {
  bool wrap = binding(e) < least;
  if (wrap) sb_put(out, '(');
  expr_print(out, e);
  if (wrap) sb_put(out, ')');
}

static void print_number(sb *out, const expr *e) {
  if (e->at.file) {  // as it was written: `4Ki` stays `4Ki`
    sb_putn(out, e->at.file->text + e->at.start, (size_t)(e->at.end - e->at.start));
  } else if (e->number.integral && !e->number.real) {
    sb_printf(out, "%" PRId64, e->number.whole);
  } else {
    char buf[32];
    sb_puts(out, str_double(buf, e->number.value));
  }
}

static void print_list(sb *out, const expr_list *l) {
  for (int i = 0; i < l->n; i++) {
    if (i) sb_puts(out, ", ");
    expr_print(out, l->at[i]);
  }
}

static void print_args(sb *out, const arg_list *l) {
  for (int i = 0; i < l->n; i++) {
    if (i) sb_puts(out, ", ");
    if (l->at[i].name.text) sb_printf(out, "%s=", l->at[i].name.text);
    expr_print(out, l->at[i].value);
  }
}

static void print_picks(sb *out, const pick_list *l) {
  for (int i = 0; i < l->n; i++) {
    const pick *p = &l->at[i];
    if (i) sb_puts(out, ", ");
    if (p->kind == PICK_REST) sb_puts(out, "..");
    if (p->kind == PICK_AT) expr_print(out, p->at_expr);
    if (p->kind == PICK_RANGE) {
      if (p->from) expr_print(out, p->from);
      sb_put(out, ':');
      if (p->to) expr_print(out, p->to);
    }
  }
}

static void print_binary(sb *out, const expr *e) {
  int own = binding(e);
  // `^` groups to the right and comparisons not at all; all others to the left.
  bool right = e->binary.op == BINARY_POW;
  bool compare = e->binary.op >= BINARY_EQ && e->binary.op <= BINARY_GE;
  print_child(out, e->binary.left, own + (right || compare));
  bool tight = e->binary.op == BINARY_POW;
  sb_printf(out, tight ? "%s" : " %s ", binary_op_text(e->binary.op));
  // The operand of a prefix operator may stand on the right without parentheses (2^-1).
  print_child(out, e->binary.right, own + !right);
}

void expr_print(sb *out, const expr *e) {
  switch (e->kind) {
    case EXPR_NUMBER: print_number(out, e); break;
    case EXPR_STRING: print_string(out, e->text); break;
    case EXPR_NAME: sb_puts(out, e->text); break;
    case EXPR_CALL:
      sb_printf(out, "%s(", e->call.name.text);
      print_args(out, &e->call.args);
      sb_put(out, ')');
      if (e->call.role != PATH_NONE)
        sb_printf(out, " %s %s", e->call.role == PATH_AS ? "as" : "using", e->call.path.text);
      break;
    case EXPR_INDEX:
      print_child(out, e->index.base, 9);
      sb_put(out, '[');
      print_picks(out, &e->index.picks);
      sb_put(out, ']');
      break;
    case EXPR_LIST:
      sb_put(out, '[');
      print_list(out, &e->items);
      sb_put(out, ']');
      break;
    case EXPR_UNARY:
      sb_puts(out, e->unary.op == UNARY_NOT ? "not " : "-");
      print_child(out, e->unary.operand, binding(e));
      break;
    case EXPR_BINARY: print_binary(out, e); break;
    case EXPR_IF:
      sb_puts(out, "if ");
      expr_print(out, e->cond.test);
      sb_puts(out, " then ");
      expr_print(out, e->cond.yes);
      sb_puts(out, " else ");
      expr_print(out, e->cond.no);
      break;
  }
}

// ---------------------------------------------------------------------------------------------
// The dump
// ---------------------------------------------------------------------------------------------

// Expressions are dumped fully parenthesised, so that grouping shows.
static void dump_expr(sb *out, const expr *e);

static void dump_exprs(sb *out, const expr_list *l) {
  for (int i = 0; i < l->n; i++) sb_put(out, ' '), dump_expr(out, l->at[i]);
}

static void dump_args(sb *out, const arg_list *l) {
  for (int i = 0; i < l->n; i++) {
    sb_put(out, ' ');
    if (l->at[i].name.text) sb_printf(out, "%s=", l->at[i].name.text);
    dump_expr(out, l->at[i].value);
  }
}

static void dump_expr(sb *out, const expr *e) {
  if (!e) {
    sb_puts(out, "()");
    return;
  }
  switch (e->kind) {
    case EXPR_NUMBER:
    case EXPR_STRING:
    case EXPR_NAME: expr_print(out, e); return;
    case EXPR_CALL:
      sb_printf(out, "(call %s", e->call.name.text);
      dump_args(out, &e->call.args);
      if (e->call.role == PATH_AS) sb_printf(out, " as %s", e->call.path.text);
      if (e->call.role == PATH_USING) sb_printf(out, " using %s", e->call.path.text);
      break;
    case EXPR_INDEX:
      sb_puts(out, "(index ");
      dump_expr(out, e->index.base);
      for (int i = 0; i < e->index.picks.n; i++) {
        const pick *p = &e->index.picks.at[i];
        sb_put(out, ' ');
        if (p->kind == PICK_REST) sb_puts(out, "..");
        if (p->kind == PICK_AT) dump_expr(out, p->at_expr);
        if (p->kind == PICK_RANGE) {
          sb_puts(out, "(range ");
          dump_expr(out, p->from);
          sb_put(out, ' ');
          dump_expr(out, p->to);
          sb_put(out, ')');
        }
      }
      break;
    case EXPR_LIST:
      sb_puts(out, "(list");
      dump_exprs(out, &e->items);
      break;
    case EXPR_UNARY:
      sb_puts(out, e->unary.op == UNARY_NOT ? "(not " : "(neg ");
      dump_expr(out, e->unary.operand);
      break;
    case EXPR_BINARY:
      sb_printf(out, "(%s ", binary_op_text(e->binary.op));
      dump_expr(out, e->binary.left);
      sb_put(out, ' ');
      dump_expr(out, e->binary.right);
      break;
    case EXPR_IF:
      sb_puts(out, "(if ");
      dump_expr(out, e->cond.test);
      sb_put(out, ' ');
      dump_expr(out, e->cond.yes);
      sb_put(out, ' ');
      dump_expr(out, e->cond.no);
      break;
  }
  sb_put(out, ')');
}

static void dump_type(sb *out, const type *t) {
  if (!t) return;
  sb_printf(out, " :%s", t->element.text ? t->element.text : "");
  if (!t->shaped) return;
  sb_put(out, '[');
  for (int i = 0; i < t->extents.n; i++) {
    if (i) sb_put(out, ' ');
    if (t->extents.at[i].size)
      dump_expr(out, t->extents.at[i].size);
    else
      sb_puts(out, "..");
  }
  sb_put(out, ']');
}

static void dump_value(sb *out, const expr *e) {
  if (!e) return;
  sb_puts(out, " = ");
  dump_expr(out, e);
}

static void dump_formals(sb *out, const formal_list *l) {
  sb_puts(out, " (");
  for (int i = 0; i < l->n; i++) {
    if (i) sb_puts(out, ", ");
    sb_puts(out, l->at[i].name.text);
    dump_type(out, l->at[i].type);
    dump_value(out, l->at[i].value);
  }
  sb_put(out, ')');
}

static void dump_fn(sb *out, const fn *f) {
  sb_printf(out, "(fn %s", f->name.text);
  dump_formals(out, &f->formals);
  dump_value(out, f->body);
  if (f->grad.text) {
    sb_printf(out, " grad %s", f->grad.text);
    dump_exprs(out, &f->grads);
  }
  sb_put(out, ')');
}

static void dump_body(sb *out, const stmt_list *l, int indent);

static void dump_block(sb *out, const block *b, int indent) {
  sb_printf(out, "(block %s", b->name.text);
  dump_formals(out, &b->formals);
  dump_body(out, &b->body, indent + 1);
  sb_put(out, ')');
}

static void dump_stmt(sb *out, const stmt *s, int indent) {
  static const char *const words[] = {"param",  "dim",     "input",  "weight", "output", "let",
                                      "repeat", "require", "return", "block",  "fn"};
  if (s->kind == STMT_BLOCK) {
    dump_block(out, s->block, indent);
    return;
  }
  if (s->kind == STMT_FN) {
    dump_fn(out, s->fn);
    return;
  }
  sb_printf(out, "(%s", words[s->kind]);
  for (int i = 0; i < s->binds.n; i++) {
    sb_printf(out, " %s", s->binds.at[i].name.text);
    dump_value(out, s->binds.at[i].value);
  }
  for (int i = 0; i < s->names.n; i++) sb_printf(out, " %s", s->names.at[i].text);
  if (s->path.text) sb_printf(out, " as %s", s->path.text);
  if (s->index.text) sb_printf(out, "[%s]", s->index.text);
  dump_type(out, s->type);
  dump_value(out, s->value);
  if (s->message.text) sb_put(out, ' '), print_string(out, s->message.text);
  dump_exprs(out, &s->values);
  dump_body(out, &s->body, indent + 1);
  sb_put(out, ')');
}

static void dump_body(sb *out, const stmt_list *l, int indent) {
  for (int i = 0; i < l->n; i++) {
    sb_printf(out, "\n%*s", indent * 2, "");
    dump_stmt(out, l->at[i], indent);
  }
}

static void dump_word(sb *out, const ident *i, word_kind kind) {
  if (kind == WORD_STRING)
    print_string(out, i->text);
  else
    sb_puts(out, i->text);
}

static void dump_section(sb *out, const section *s, int indent) {
  sb_printf(out, "(section %s", s->kind.text);
  if (s->label.text) sb_put(out, ' '), dump_word(out, &s->label, s->label_kind);
  if (s->as.text) sb_printf(out, " as %s", s->as.text);
  for (int i = 0; i < s->entries.n; i++) {
    const entry *e = s->entries.at[i];
    sb_printf(out, "\n%*s", (indent + 1) * 2, "");
    if (e->section) {
      dump_section(out, e->section, indent + 1);
    } else {
      sb_put(out, '(');
      dump_word(out, &e->key, e->key_kind);
      dump_value(out, e->value);
      sb_put(out, ')');
    }
  }
  sb_put(out, ')');
}

void ast_dump(sb *out, const file *f) {
  for (int i = 0; i < f->items.n; i++) {
    const item *it = f->items.at[i];
    switch (it->kind) {
      case ITEM_IMPORT:
        sb_puts(out, "(import ");
        print_string(out, it->import.text);
        sb_put(out, ')');
        break;
      case ITEM_MODEL:
        sb_printf(out, "(model %s", it->model->name.text);
        if (it->model->base.text) {
          sb_printf(out, " = %s", it->model->base.text);
          dump_args(out, &it->model->args);
        }
        dump_body(out, &it->model->body, 1);
        sb_put(out, ')');
        break;
      case ITEM_BLOCK: dump_block(out, it->block, 0); break;
      case ITEM_FN: dump_fn(out, it->fn); break;
      case ITEM_SECTION: dump_section(out, it->section, 0); break;
    }
    sb_put(out, '\n');
  }
}
