// The parser around the grammar: making nodes, wording syntax errors, choosing where to go on.
#include <stdlib.h>
#include <string.h>

#include "dsm.tab.h"
#include "frontend/parse.h"
#include "frontend/units.h"

enum { ERRORS_MAX = 200 };  // after so many syntax errors the text is no .dsm text

// ---------------------------------------------------------------------------------------------
// Spans and words
// ---------------------------------------------------------------------------------------------

span token_span(const parse_state *ps, int i) {
  return source_span(ps->source, ps->tokens.at[i].start, ps->tokens.at[i].end);
}

span parse_span(const parse_state *ps, token_range r) {
  if (r.last < r.first) r.last = r.first;  // an empty rule: the place where it would stand
  return source_span(ps->source, ps->tokens.at[r.first].start, ps->tokens.at[r.last].end);
}

ident parse_ident(parse_state *ps, token_range r) {
  span at = parse_span(ps, r);
  return (ident){.text = span_text(ps->arena, at), .at = at};
}

ident parse_string(parse_state *ps, token_range r) {
  span at = parse_span(ps, r);
  // The lexer has reported unknown escapes and missing quotes; here both are taken as they come.
  const char *raw = ps->source->text + at.start + 1;
  int n = at.end - at.start - 1;
  char *text = arena_alloc(ps->arena, (size_t)n + 1);
  int k = 0;
  for (int i = 0; i < n && raw[i] != '"'; i++) {
    if (raw[i] == '\\' && i + 1 < n) {
      i++;
      text[k++] = raw[i];
      if (raw[i] == 'n') text[k - 1] = '\n';
      if (raw[i] == 't') text[k - 1] = '\t';
    } else {
      text[k++] = raw[i];
    }
  }
  return (ident){.text = text, .at = at};
}

// ---------------------------------------------------------------------------------------------
// Expressions
// ---------------------------------------------------------------------------------------------

static expr *make(parse_state *ps, expr_kind kind, token_range r) {
  expr *e = arena_new(ps->arena, expr, 1);
  e->kind = kind;
  e->depth = 1;
  e->at = parse_span(ps, r);
  return e;
}

// Accounts for a child. False when the expression is now too deep: the caller drops the child, so
// the tree stays shallow, and the error has been reported.
static bool add_depth(parse_state *ps, expr *e, const expr *child) {
  if (!child || child->depth < e->depth) return true;
  if (child->depth < EXPR_MAX_DEPTH) {
    e->depth = child->depth + 1;
    return true;
  }
  if (!ps->deep) {
    diag *d = diag_error(ps->diags, e->at, DIAG_TOO_DEEP,
                         "this expression is more than %d operators deep", EXPR_MAX_DEPTH);
    diag_note(d, "give parts of it names");
  }
  ps->deep = true;
  return false;
}

// What stands for an expression that was too deep; the error has been reported.
static expr *shallow(parse_state *ps, token_range r) {
  expr *e = make(ps, EXPR_NAME, r);
  e->text = "none";
  return e;
}

expr *parse_leaf(parse_state *ps, expr_kind kind, token_range r) {
  expr *e = make(ps, kind, r);
  if (kind == EXPR_NUMBER)
    unit_parse(ps->arena, ps->source->text + e->at.start, e->at.end - e->at.start, &e->number,
               NULL);
  else if (kind == EXPR_STRING)
    e->text = parse_string(ps, r).text;
  else
    e->text = span_text(ps->arena, e->at);
  return e;
}

expr *parse_binary(parse_state *ps, binary_op op, token_range r, token_range op_at, expr *left,
                   expr *right) {
  expr *e = make(ps, EXPR_BINARY, r);
  e->binary.op = op;
  e->binary.op_at = parse_span(ps, op_at);
  e->binary.left = left;
  e->binary.right = right;
  return add_depth(ps, e, left) && add_depth(ps, e, right) ? e : shallow(ps, r);
}

expr *parse_unary(parse_state *ps, unary_op op, token_range r, expr *operand) {
  expr *e = make(ps, EXPR_UNARY, r);
  e->unary.op = op;
  e->unary.operand = operand;
  return add_depth(ps, e, operand) ? e : shallow(ps, r);
}

expr *parse_call(parse_state *ps, token_range r, ident name, arg_list args) {
  expr *e = make(ps, EXPR_CALL, r);
  e->call.name = name;
  e->call.args = args;
  for (int i = 0; i < args.n; i++)
    if (!add_depth(ps, e, args.at[i].value)) args.at[i].value = shallow(ps, r);
  return e;
}

expr *parse_index(parse_state *ps, token_range r, expr *base, pick_list picks) {
  expr *e = make(ps, EXPR_INDEX, r);
  e->index.base = base;
  e->index.picks = picks;
  bool fits = add_depth(ps, e, base);
  for (int i = 0; i < picks.n; i++) {
    const pick *p = &picks.at[i];
    fits = add_depth(ps, e, p->at_expr) && add_depth(ps, e, p->from) && add_depth(ps, e, p->to) &&
           fits;
  }
  return fits ? e : shallow(ps, r);
}

expr *parse_list(parse_state *ps, token_range r, expr_list items) {
  expr *e = make(ps, EXPR_LIST, r);
  e->items = items;
  for (int i = 0; i < items.n; i++)
    if (!add_depth(ps, e, items.at[i])) items.at[i] = shallow(ps, r);
  return e;
}

expr *parse_if(parse_state *ps, token_range r, expr *test, expr *yes, expr *no) {
  expr *e = make(ps, EXPR_IF, r);
  e->cond.test = test;
  e->cond.yes = yes;
  e->cond.no = no;
  bool fits = add_depth(ps, e, test) && add_depth(ps, e, yes) && add_depth(ps, e, no);
  return fits ? e : shallow(ps, r);
}

// ---------------------------------------------------------------------------------------------
// Statements, items, entries
// ---------------------------------------------------------------------------------------------

stmt *parse_stmt(parse_state *ps, token_range r, stmt_kind kind) {
  stmt *s = arena_new(ps->arena, stmt, 1);
  s->kind = kind;
  s->at = parse_span(ps, r);
  return s;
}

item *parse_item(parse_state *ps, token_range r, item_kind kind) {
  item *i = arena_new(ps->arena, item, 1);
  i->kind = kind;
  i->at = parse_span(ps, r);
  return i;
}

fn *parse_fn(parse_state *ps, token_range r, ident name, formal_list formals, expr *body) {
  fn *f = arena_new(ps->arena, fn, 1);
  *f = (fn){.name = name, .formals = formals, .body = body, .at = parse_span(ps, r)};
  return f;
}

block *parse_block(parse_state *ps, token_range r, ident name, formal_list formals,
                   stmt_list body) {
  block *b = arena_new(ps->arena, block, 1);
  *b = (block){.name = name, .formals = formals, .body = body, .at = parse_span(ps, r)};
  return b;
}

entry *parse_entry(parse_state *ps, token_range r, ident key, word_kind kind, expr *value) {
  entry *e = arena_new(ps->arena, entry, 1);
  *e = (entry){.key = key, .key_kind = kind, .value = value, .at = parse_span(ps, r)};
  return e;
}

entry *parse_entry_section(parse_state *ps, section *s) {
  entry *e = arena_new(ps->arena, entry, 1);
  *e = (entry){.key = s->kind, .section = s, .at = s->at};
  return e;
}

// ---------------------------------------------------------------------------------------------
// Syntax errors
// ---------------------------------------------------------------------------------------------

static const char *describe(parse_state *ps, int i) {
  const token *t = &ps->tokens.at[i];
  int n = t->end - t->start;
  if (t->kind == 0) return "the end of the file";
  if (n > 40) n = 40;
  if (t->kind == T_STRING) return "a string";
  return arena_printf(ps->arena, "`%.*s`", n, ps->source->text + t->start);
}

static const char *text_of(parse_state *ps, int i) {
  return i < 0 ? "" : span_text(ps->arena, token_span(ps, i));
}

// One list of what would have fitted: "`)` or `,`", "a name", "a value".
static const char *wanted(parse_state *ps, int found, const expected *want) {
  const char *words[12];
  int n = 0;
  bool fresh = ps->tokens.at[found].opens_line || ps->tokens.at[found].kind == 0;
  if (want->item && fresh) words[n++] = "a model, block, fn or section";
  if (want->statement && fresh) words[n++] = "a statement";
  if (want->value) words[n++] = "a value";
  if (want->entry) words[n++] = want->path ? "a path" : want->name ? "a key" : "a string in quotes";
  if (want->path && !want->entry && !want->value) words[n++] = "a path";
  bool start = want->item || want->statement || want->entry;  // a name could begin the next one
  if (want->name && n == 0 && (fresh || !start)) words[n++] = "a name";
  if (want->after && n == 0 && want->nmarks == 0) words[n++] = "an operator";
  bool whole = (want->item || want->statement) && fresh;
  for (int i = 0; i < want->nmarks && n < 5 && !whole; i++) {
    const char *m = want->marks[i];
    if (m[1] == '}' && !fresh) continue;
    // Any value may be followed by `[`, any name by `(`: saying so helps nobody.
    if (m[0] == '\'' && (m[1] == '(' || m[1] == '{') && want->nmarks > 1 && want->after) continue;
    words[n++] =
        m[0] == '\'' ? arena_printf(ps->arena, "`%c`", m[1]) : arena_printf(ps->arena, "`%s`", m);
  }
  if (whole && want->statement) words[n++] = "`}`";
  sb out = {.arena = ps->arena};
  for (int i = 0; i < n; i++)
    sb_printf(&out, "%s%s", i == 0 ? "" : i == n - 1 ? " or " : ", ", words[i]);
  return arena_strdup(ps->arena, sb_str(&out));
}

// Whether a line has an error already: its other errors most often follow from that one.
static bool line_is_reported(const parse_state *ps, int line) {
  for (int i = 0; i < ps->diags->all.n; i++) {
    const diag *e = ps->diags->all.at[i];
    if (e->level == DIAG_ERROR && e->at.file == ps->source && e->at.line == line) return true;
  }
  return false;
}

// `x = a +` and then a line that is no operand: the message belongs to the operator.
static bool missing_operand(parse_state *ps, int found) {
  const token *t = ps->tokens.at;
  int op = -1, resume = -1;
  if (found >= 1 && token_wants_more(t[found - 1].kind)) {
    op = found - 1;
    resume = found;
  } else if (found >= 2 && t[found - 1].kind == T_NAME && t[found - 1].opens_line &&
             (t[found].kind == '=' || t[found].kind == ',') &&
             token_wants_more(t[found - 2].kind)) {
    // The next statement's first name was taken for the operand.
    op = found - 2;
    resume = found - 1;
  }
  if (op < 0) return false;
  bool next_line = t[resume].opens_line || t[resume].kind == 0;
  bool closed = t[resume].kind == ';' || t[resume].kind == '}' || t[resume].kind == ')' ||
                t[resume].kind == ']';
  if (!next_line && !closed) return false;
  const char *text = text_of(ps, op);
  const char *what = token_is_operator(t[op].kind) ? "its right side" : "what follows it";
  if (next_line) {
    diag *e = diag_error(ps->diags, token_span(ps, resume), DIAG_MISSING_OPERAND,
                         "the line above ends in `%s`; %s is missing", text, what);
    if (t[resume].kind) diag_label(e, "a new line goes on with the expression");
    diag_place_at(e, token_span(ps, op), "it ends here");
  } else {
    bool sided = token_is_operator(t[op].kind) || t[op].kind == '=';
    diag_error(ps->diags, token_span(ps, op), DIAG_MISSING_OPERAND,
               sided ? "the right side of `%s` is missing" : "nothing follows `%s`", text);
  }
  ps->resume = resume;
  return true;
}

static bool is_comparison(int kind) {
  return kind == T_EQ || kind == T_NE || kind == '<' || kind == '>' || kind == T_LE || kind == T_GE;
}

static bool has_mark(const expected *want, const char *mark) {
  for (int i = 0; i < want->nmarks; i++)
    if (strcmp(want->marks[i], mark) == 0) return true;
  return false;
}

// `x = a b`: the grammar took `b` for the next statement's name and saw the error only behind it.
static bool two_values(parse_state *ps, int found, const expected *want) {
  const token *t = ps->tokens.at;
  if (found < 2 || !has_mark(want, "'='") || t[found - 1].kind != T_NAME) return false;
  if (t[found - 1].opens_line || t[found].kind == '=') return false;
  int before = t[found - 2].kind;
  if (before != T_NAME && before != T_NUMBER && before != T_STRING && before != ')' &&
      before != ']' && before != T_PATH)
    return false;
  diag_error(ps->diags, token_span(ps, found - 1), DIAG_SYNTAX,
             "expected an operator or a new line, found %s", describe(ps, found - 1));
  ps->resume = t[found].opens_line ? found : -1;
  return true;
}

// Mistakes that have a better answer than a list of what would fit. True when it was one.
static bool well_known(parse_state *ps, int found, const expected *want) {
  const token *t = &ps->tokens.at[found];
  span at = token_span(ps, found);
  int before = found ? ps->tokens.at[found - 1].kind : 0;
  diag *e;
  if (is_comparison(t->kind) && want->after && !want->compare) {
    e = diag_error(ps->diags, at, DIAG_CHAINED_COMPARISON, "comparisons do not chain");
    diag_label(e, "join two comparisons with `and`");
    return true;
  }
  if (t->kind == '=' && want->after && want->compare) {
    e = diag_error(ps->diags, at, DIAG_SYNTAX, "`=` does not compare");
    diag_help(e, "==", "write `==`");
    return true;
  }
  if (t->kind == ':' && has_mark(want, "'='")) {
    e = diag_error(ps->diags, at, DIAG_SYNTAX, "a value is given with `=`, not with `:`");
    diag_help(e, "=", "write `=`");
    return true;
  }
  if (t->kind == T_PATH && want->value) {
    e = diag_error(ps->diags, at, DIAG_SYNTAX, "`%s` is a path, not a value", text_of(ps, found));
    diag_note(e, "values have no fields; a path stands after `as` or `using`, or in quotes");
    return true;
  }
  if (t->kind == T_AS && want->after) {
    e = diag_error(ps->diags, at, DIAG_SYNTAX, "`as` names a call, and this is none");
    diag_label(e, "put it behind the `)` of the call that owns the weights");
    return true;
  }
  if (want->item && t->kind >= T_PARAM && t->kind <= T_RETURN) {
    e = diag_error(ps->diags, at, DIAG_SYNTAX, "`%s` does not stand alone in a file",
                   text_of(ps, found));
    diag_label(e, "statements stand inside `model NAME { ... }`");
    return true;
  }
  if (token_is_keyword(t->kind) && want->name && !want->path && !want->statement && !want->item) {
    e = diag_error(ps->diags, at, DIAG_SYNTAX, "`%s` is a word of the language, not a name",
                   text_of(ps, found));
    return true;
  }
  if (token_is_keyword(t->kind) && want->value && t->kind != T_THEN && t->kind != T_ELSE) {
    e = diag_error(ps->diags, at, DIAG_SYNTAX, "`%s` is a word of the language, not a value",
                   text_of(ps, found));
    return true;
  }
  if ((t->kind == '+' || t->kind == '*' || t->kind == '/' || t->kind == '^') && want->value &&
      token_is_operator(before)) {
    e = diag_error(ps->diags, at, DIAG_SYNTAX, "two operators in a row: `%s` after `%s`",
                   text_of(ps, found), text_of(ps, found - 1));
    return true;
  }
  if (t->kind == '=' && token_is_operator(before)) {
    e = diag_error(ps->diags, at, DIAG_SYNTAX, "`%s=` is not an operator here",
                   text_of(ps, found - 1));
    diag_note(e, "write it out: x = x %s ...", text_of(ps, found - 1));
    return true;
  }
  return false;
}

void parse_syntax_error(parse_state *ps, int found, const expected *want) {
  ps->resume = -1;
  if (ps->errors++ >= ERRORS_MAX) return;
  if (found >= ps->tokens.n) found = ps->tokens.n - 1;
  span at = token_span(ps, found);
  if (line_is_reported(ps, at.line)) return;
  if (missing_operand(ps, found) || two_values(ps, found, want) || well_known(ps, found, want))
    return;
  const char *list = wanted(ps, found, want);
  if (*list)
    diag_error(ps->diags, at, DIAG_SYNTAX, "expected %s, found %s", list, describe(ps, found));
  else
    diag_error(ps->diags, at, DIAG_SYNTAX, "%s does not belong here", describe(ps, found));
}

void parse_stack_exhausted(parse_state *ps) {
  int i = ps->next > 0 ? ps->next - 1 : 0;
  if (!ps->deep)
    diag_error(ps->diags, token_span(ps, i), DIAG_TOO_DEEP, "this nests too deep to be read");
  ps->deep = true;
}

// The statement or entry that began at token `first` is lost. The next one begins at a token of the
// same bracket depth that opens a line, or behind a `;`; or the enclosing `}` ends the list.
bool parse_recover(parse_state *ps, int first) {
  const token *t = ps->tokens.at;
  int last = ps->tokens.n - 1;
  if (first >= last || ps->errors >= ERRORS_MAX) return false;
  int depth = t[first].depth;
  int j = ps->resume >= 0 ? ps->resume : ps->next - 1;
  bool forced = ps->resume > first && t[ps->resume].depth == depth;
  ps->resume = -1;
  if (j <= first && t[j].kind != '}') j = first + 1;
  for (; j < last && !forced; j++) {
    if (t[j].depth < depth) break;
    if (t[j].depth > depth) continue;
    if (t[j].kind == ';') break;
    if (t[j].opens_line && t[j].kind != '{' && t[j].kind != '}' &&
        !token_wants_more(t[j - 1].kind) && !token_is_operator(t[j].kind))
      break;
  }
  ps->next = j < last ? j : last;
  return true;
}

// ---------------------------------------------------------------------------------------------
// Entry points
// ---------------------------------------------------------------------------------------------

bool check_utf8(parse_state *ps) {
  const unsigned char *s = (const unsigned char *)ps->source->text;
  int n = ps->source->length;
  for (int i = 0; i < n;) {
    int len = s[i] < 0x80 ? 1 : s[i] < 0xC2 ? 0 : s[i] < 0xE0 ? 2 : s[i] < 0xF0 ? 3 : 4;
    if (len > n - i || s[i] > 0xF4) len = 0;
    for (int k = 1; k < len; k++)
      if ((s[i + k] & 0xC0) != 0x80) len = 0;
    if (len == 0 || s[i] == 0) {
      diag *e = diag_error(ps->diags, source_span(ps->source, i, i + 1), DIAG_NOT_UTF8,
                           s[i] ? "byte 0x%02X is not UTF-8" : "a NUL byte in the text", s[i]);
      e->bare = s[i] == 0;
      diag_note(e, "a .dsm file is UTF-8 text; the rest of it was not read");
      return false;
    }
    i += len;
  }
  return true;
}

// Everything up to the grammar, and the grammar. False when nothing could be parsed.
static bool run(parse_state *ps, int start_kind) {
  ps->resume = -1;
  ps->start_kind = start_kind;
  if (!check_utf8(ps)) return false;
  lex_all(ps, false);
  if (!match_brackets(ps)) return false;
  return dsm_parse(ps) == 0;
}

file *parse_file(arena *a, diags *d, const source *src) {
  parse_state ps = {.arena = a, .diags = d, .source = src};
  ps.file = arena_new(a, file, 1);
  ps.file->source = src;
  run(&ps, T_START_FILE);
  return ps.file;
}

expr *parse_expr(arena *a, diags *d, const source *src) {
  parse_state ps = {.arena = a, .diags = d, .source = src};
  int before = d->errors;
  bool good = run(&ps, T_START_EXPR);
  return good && d->errors == before ? ps.expr : NULL;
}

setting_list parse_settings(arena *a, diags *d, const source *src) {
  parse_state ps = {.arena = a, .diags = d, .source = src};
  int before = d->errors;
  bool good = run(&ps, T_START_SETTINGS);
  return good && d->errors == before ? ps.settings : (setting_list){0};
}
