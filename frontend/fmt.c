// Canonical layout, token by token.
//
// The tokens (with comments) say what is written, the tree says where statements start; with that
// every decision is local: does a line break come before this token, and if not, a space?
#include "frontend/fmt.h"

#include <string.h>

#include "dsm.tab.h"
#include "frontend/parse.h"

typedef struct open {
  int kind;
  bool one_line;  // `{`: written on one line; stays so
  bool formals;   // `(` of a block or fn: `=` has spaces there
} open;

typedef struct printer {
  arena *arena;
  const source *source;
  const token *t;
  int n;
  const bool *starts;  // by byte: a statement, entry or item begins here
  VEC(open) stack;
  int braces;  // open `{`
  sb out;
} printer;

// ---------------------------------------------------------------------------------------------
// Where statements start
// ---------------------------------------------------------------------------------------------

static void mark_stmts(bool *starts, const stmt_list *l) {
  for (int i = 0; i < l->n; i++) {
    starts[l->at[i]->at.start] = true;
    mark_stmts(starts, &l->at[i]->body);
    if (l->at[i]->block) mark_stmts(starts, &l->at[i]->block->body);
  }
}

static void mark_section(bool *starts, const section *s) {
  for (int i = 0; i < s->entries.n; i++) {
    starts[s->entries.at[i]->at.start] = true;
    if (s->entries.at[i]->section) mark_section(starts, s->entries.at[i]->section);
  }
}

static const bool *mark(arena *a, const file *f) {
  bool *starts = arena_new(a, bool, f->source->length + 1);
  for (int i = 0; i < f->items.n; i++) {
    const item *it = f->items.at[i];
    starts[it->at.start] = true;
    if (it->kind == ITEM_MODEL) mark_stmts(starts, &it->model->body);
    if (it->kind == ITEM_BLOCK) mark_stmts(starts, &it->block->body);
    if (it->kind == ITEM_SECTION) mark_section(starts, it->section);
  }
  return starts;
}

// ---------------------------------------------------------------------------------------------
// Spaces
// ---------------------------------------------------------------------------------------------

static bool ends_operand(int kind) {
  return kind == T_NAME || kind == T_PATH || kind == T_NUMBER || kind == T_STRING || kind == ')' ||
         kind == ']';
}

static bool is_word(int kind) { return kind == T_NAME || kind == T_PATH || token_is_keyword(kind); }

// A keyword in the place of a path or key: `as output[i]`, `input = 3`.
static bool is_path_at(const printer *p, int i) {
  return i > 0 && (p->t[i - 1].kind == T_AS || p->t[i - 1].kind == T_USING);
}

static bool is_unary(const printer *p, int i) {
  if (p->t[i].kind != '-') return false;
  return i == 0 || !(ends_operand(p->t[i - 1].kind) || is_path_at(p, i - 1));
}

// Arithmetic written tight on both sides (`4*hidden`) stays tight; `^` always is, and comparisons
// and logic never.
static bool is_tight(const printer *p, int i) {
  int k = p->t[i].kind;
  if (k == '^') return true;
  if (k != '+' && k != '-' && k != '*' && k != '/' && k != T_FLOORDIV && k != '%') return false;
  return i > 0 && i + 1 < p->n && p->t[i - 1].end == p->t[i].start &&
         p->t[i].end == p->t[i + 1].start;
}

static int inside(const printer *p) { return p->stack.n ? vec_last(&p->stack).kind : 0; }

// Whether a space stands between token i - 1 and token i when they are on one line.
static bool space_before(const printer *p, int i) {
  int a = p->t[i - 1].kind, b = p->t[i].kind;
  if (a == '(' || a == '[' || b == ')' || b == ']' || b == ',' || b == ';') return false;
  if (a == '{' && b == '}') return false;
  if (b == '{' || a == '{' || b == '}' || a == '}' || a == ',' || a == ';') return true;
  if (b == '[' && (ends_operand(a) || (is_word(a) && is_path_at(p, i - 1)))) return false;
  if (b == '(' && (a == T_NAME || a == T_GRAD)) return false;
  if (is_unary(p, i - 1)) return false;
  if (a == '=' || b == '=') return inside(p) != '(' || vec_last(&p->stack).formals;
  if ((a == ':' || b == ':') && inside(p) == '[') return false;
  if (token_is_operator(a)) return !is_tight(p, i - 1);
  if (token_is_operator(b)) return is_unary(p, i) || !is_tight(p, i);
  return true;
}

// ---------------------------------------------------------------------------------------------
// Lines
// ---------------------------------------------------------------------------------------------

static int line_of(const printer *p, int i) { return source_line_of(p->source, p->t[i].start); }

// A blank line between two tokens that stand on different lines.
static bool blank_between(const printer *p, int from, int to) {
  int newlines = 0;
  for (int k = p->t[from].end; k < p->t[to].start; k++) newlines += p->source->text[k] == '\n';
  return newlines > 1;
}

static void new_line(printer *p, int indent, bool blank) {
  while (p->out.n && p->out.at[p->out.n - 1] == ' ') p->out.n--;
  if (p->out.n) sb_puts(&p->out, blank ? "\n\n" : "\n");
  for (int k = 0; k < indent; k++) sb_put(&p->out, ' ');
}

static void put_token(printer *p, int i) {
  int end = p->t[i].end;
  if (p->t[i].kind == TOKEN_COMMENT)
    while (end > p->t[i].start && strchr(" \t\r", p->source->text[end - 1])) end--;
  sb_putn(&p->out, p->source->text + p->t[i].start, (size_t)(end - p->t[i].start));
}

// Indent of a line: by braces, and inside a statement by the brackets open in it.
static int indent_at(const printer *p, int i, bool starts) {
  int brackets = 0;
  for (int k = p->stack.n - 1; k >= 0 && p->stack.at[k].kind != '{'; k--) brackets++;
  int base = 2 * p->braces;
  if (starts || p->t[i].kind == '}') return base;
  if (p->t[i].kind == ')' || p->t[i].kind == ']') return base + 2 * (brackets - 1);
  return base + (brackets ? 2 * brackets : 4);
}

// The index of the closer of the bracket at i.
static int closer_of(const printer *p, int i) {
  int k = i + 1;
  while (k < p->n && !(p->t[k].depth == p->t[i].depth && strchr(")]}", p->t[k].kind) &&
                       p->t[k].kind > TOKEN_COMMENT))
    k++;
  return k < p->n ? k : p->n - 1;
}

static void push(printer *p, int i) {
  int k = p->t[i].kind;
  open o = {.kind = k};
  if (k == '{') {
    o.one_line = line_of(p, i) == line_of(p, closer_of(p, i));
    p->braces++;
  }
  o.formals = k == '(' && i >= 2 && (p->t[i - 2].kind == T_BLOCK || p->t[i - 2].kind == T_FN);
  vec_push(p->arena, &p->stack, o);
}

// Prints token i; `last` is the token printed before it (-1: none). Dropped `;` are not printed.
static void step(printer *p, int i, int last) {
  int k = p->t[i].kind;
  bool first = last < 0, starts = p->starts[p->t[i].start];
  bool after_comment = !first && p->t[last].kind == TOKEN_COMMENT;
  bool one_line = p->stack.n && vec_last(&p->stack).kind == '{' && vec_last(&p->stack).one_line;
  if (k == '}') p->braces--;
  bool opened = !first && p->t[last].kind == '{';
  // `;` between two tokens was dropped; if it opened a line, what follows starts one.
  bool opens = p->t[i].opens_line;
  for (int j = last + 1; j < i; j++) opens = opens || p->t[j].opens_line;

  bool line = first || after_comment || opens;
  bool join = false;
  if (k == TOKEN_COMMENT) {
    line = first || p->t[i].opens_line;
  } else if (k == '}' && p->t[i].opens_line == false) {
    line = after_comment || !one_line;
    if (opened) line = false;
  } else if (starts && !line) {
    if (opened)
      line = !one_line;
    else if (one_line)
      join = true;
    else if (i - last > 1)  // `;` stood between them
      join = true;
    else
      line = true;
  }
  bool empty = k == '}' && opened;  // {}, also when a `;` stood between
  if (empty) line = false;

  if (line) {
    bool comment_starts = k == TOKEN_COMMENT;
    int next = i + 1;  // a comment is indented like what it stands above
    while (comment_starts && next < p->n && p->t[next].kind == TOKEN_COMMENT) next++;
    bool like_start = starts || (comment_starts && next < p->n &&
                                 (p->starts[p->t[next].start] || p->t[next].kind == '}' ||
                                  p->t[next].kind == 0 || p->t[next].kind == ';'));
    bool blank = !first && !opened && k != '}' && blank_between(p, i - 1, i);
    new_line(p, indent_at(p, i, like_start), blank);
  } else if (k == TOKEN_COMMENT) {
    sb_puts(&p->out, "  ");
  } else if (join) {
    sb_puts(&p->out, "; ");
  } else if (!first && !empty && space_before(p, i)) {
    sb_put(&p->out, ' ');
  }
  put_token(p, i);
}

static const char *print(printer *p) {
  p->out.arena = p->arena;
  int last = -1;
  for (int i = 0; i < p->n; i++) {
    int k = p->t[i].kind;
    if (k == 0) break;
    if (k == ';') continue;
    // Inside the brackets it closes, a closer is printed with them still open: its indent and its
    // spaces are theirs.
    step(p, i, last);
    if (k == '(' || k == '[' || k == '{') push(p, i);
    if ((k == ')' || k == ']' || k == '}') && p->stack.n) p->stack.n--;
    last = i;
  }
  if (p->out.n) sb_put(&p->out, '\n');
  return sb_str(&p->out);
}

const char *fmt_text(arena *a, diags *d, const source *src) {
  int before = diags_errors(d);
  file *f = parse_file(a, d, src);
  if (diags_errors(d) != before) return NULL;
  parse_state ps = {.arena = a, .diags = d, .source = src};
  lex_all(&ps, true);
  match_brackets(&ps);
  printer p = {.arena = a, .source = src, .t = ps.tokens.at, .n = ps.tokens.n};
  p.starts = mark(a, f);
  return print(&p);
}
