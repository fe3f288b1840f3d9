// Matching brackets before the grammar runs.
//
// A grammar sees a missing bracket only where nothing fits any more, often many lines later and
// many times over. This pass knows all brackets of the text, so it can name the one that was opened
// and not closed, put the missing one in (a token of no width) or drop a superfluous one, and leave
// the grammar a text whose brackets are right. It also bounds nesting, so that no recursion over
// the tree can run out of stack.
//
// Where a bracket is missing is a guess that needs layout: `(` and `[` are closed before the first
// line that cannot continue the last one; `{` before a `}` or a top-level word that stands further
// left than the line of the `{` allows.
#include <string.h>

#include "dsm.tab.h"
#include "frontend/parse.h"

static bool is_opener(int kind) { return kind == '(' || kind == '[' || kind == '{'; }
static bool is_closer(int kind) { return kind == ')' || kind == ']' || kind == '}'; }
static int closer_of(int opener) { return opener == '(' ? ')' : opener == '[' ? ']' : '}'; }

bool token_is_operator(int kind) {
  switch (kind) {
    case '+':
    case '-':
    case '*':
    case '/':
    case '%':
    case '^':
    case '<':
    case '>':
    case T_FLOORDIV:
    case T_EQ:
    case T_NE:
    case T_LE:
    case T_GE:
    case T_OR:
    case T_AND: return true;
    default: return false;
  }
}

bool token_wants_more(int kind) {
  return token_is_operator(kind) || kind == ',' || kind == '=' || kind == T_NOT || kind == T_IF ||
         kind == T_THEN || kind == T_ELSE || kind == T_AS || kind == T_USING || kind == ':';
}

bool token_is_keyword(int kind) { return kind >= T_IMPORT && kind <= T_NOT; }

// One bracket that is open.
typedef struct open {
  int kind;
  int token;   // in the repaired list
  int indent;  // column of the first token of its line
} open;

typedef struct pass {
  parse_state *ps;
  token_list out;
  VEC(open) stack;
  int indent;      // of the current line
  bool by_layout;  // second try: believe the layout about `{`
  bool report;
  int problems;
} pass;

static span span_of(pass *p, const token *t) {
  return source_span(p->ps->source, t->start, t->end > t->start ? t->end : t->start + 1);
}

static void emit(pass *p, token t) {
  t.depth = p->stack.n;
  vec_push(p->ps->arena, &p->out, t);
}

// Closes the innermost bracket with a token of no width before `before`.
static void close_missing(pass *p, const token *before, const token *because) {
  open top = vec_last(&p->stack);
  const token *opener = &p->out.at[top.token];
  p->problems++;
  if (p->report) {
    span at = span_of(p, opener);
    diag *e = diag_error(p->ps->diags, at, DIAG_UNBALANCED, "this `%c` is never closed", top.kind);
    diag_label(e, "its `%c` is missing", closer_of(top.kind));
    if (because && because->kind)
      diag_note(e, "`%c` on line %d closes something else", because->kind,
                source_line_of(p->ps->source, because->start));
    else if (before->kind)
      diag_note(e, "it should end before line %d", source_line_of(p->ps->source, before->start));
  }
  p->stack.n--;
  int end = p->out.at[p->out.n - 1].end;
  emit(p, (token){.kind = closer_of(top.kind), .start = end, .end = end});
}

// Whether a token that opens a line cannot belong to the `(` or `[` that is open: the line before
// is complete, and this one starts a statement or an entry.
static bool starts_afresh(const pass *p, const token *t, const token *next) {
  if (!t->opens_line || p->out.n == 0) return false;
  int last = p->out.at[p->out.n - 1].kind;
  if (token_wants_more(last) || is_opener(last)) return false;
  if (is_closer(t->kind) || token_is_operator(t->kind) || t->kind == ',' || t->kind == T_AS ||
      t->kind == T_USING || t->kind == T_THEN || t->kind == T_ELSE)
    return false;
  if (t->kind >= T_IMPORT && t->kind <= T_RETURN) return true;
  return t->kind == T_NAME && (next->kind == '=' || next->kind == ',' || next->kind == '{');
}

// Whether the layout says that the innermost `{` should have been closed before this token.
static bool ends_by_layout(const pass *p, const token *t) {
  if (!p->by_layout || !t->opens_line || p->stack.n == 0 || t->kind == 0) return false;
  open top = vec_last(&p->stack);
  if (top.kind != '{') return false;
  if (t->kind == '}') {
    if (p->indent >= top.indent) return false;
    for (int i = p->stack.n - 2; i >= 0; i--)
      if (p->stack.at[i].kind == '{' && p->stack.at[i].indent <= p->indent) return true;
    return false;
  }
  return p->indent <= top.indent &&
         (p->indent == 1 || t->kind == T_NAME || token_is_keyword(t->kind));
}

static void close_one(pass *p, const token *t) {
  if (p->stack.n == 0) {
    p->problems++;
    if (p->report) {
      diag *e = diag_error(p->ps->diags, span_of(p, t), DIAG_UNBALANCED, "this `%c` closes nothing",
                           t->kind);
      diag_label(e, "remove it, or open a `%c` before it",
                 t->kind == ')'   ? '('
                 : t->kind == ']' ? '['
                                  : '{');
    }
    return;  // dropped
  }
  // Is there one that it closes? `}` reaches past open `(` and `[`; they never reach past `{`.
  int match = p->stack.n - 1;
  while (match >= 0 && closer_of(p->stack.at[match].kind) != t->kind &&
         (t->kind == '}' || p->stack.at[match].kind != '{'))
    match--;
  bool found = match >= 0 && closer_of(p->stack.at[match].kind) == t->kind;
  if (!found) {
    open top = vec_last(&p->stack);
    p->problems++;
    if (top.kind != '{' && t->kind != '}') {  // `(…]`: take it for the right one
      if (p->report) {
        diag *e = diag_error(p->ps->diags, span_of(p, t), DIAG_UNBALANCED, "`%c` is closed by `%c`",
                             top.kind, t->kind);
        diag_label(e, "write `%c`", closer_of(top.kind));
        diag_place_at(e, span_of(p, &p->out.at[top.token]), "opened here");
      }
      token fixed = *t;
      fixed.kind = closer_of(top.kind);
      p->stack.n--;
      emit(p, fixed);
    } else if (p->report) {
      diag *e = diag_error(p->ps->diags, span_of(p, t), DIAG_UNBALANCED, "this `%c` closes nothing",
                           t->kind);
      diag_label(e, "remove it, or open a `%c` before it", t->kind == ')' ? '(' : '[');
    }
    return;
  }
  while (p->stack.n - 1 > match) close_missing(p, t, t);
  p->stack.n--;
  emit(p, *t);
}

// One walk over all tokens. False when nesting is too deep.
static bool walk(pass *p) {
  const token_list *in = &p->ps->tokens;
  for (int i = 0; i < in->n; i++) {
    const token *t = &in->at[i];
    const token *next = &in->at[i + 1 < in->n ? i + 1 : i];
    if (t->opens_line) p->indent = source_span(p->ps->source, t->start, t->start).column;
    while (p->stack.n && vec_last(&p->stack).kind != '{' && starts_afresh(p, t, next))
      close_missing(p, t, NULL);
    while (ends_by_layout(p, t)) close_missing(p, t, t->kind == '}' ? t : NULL);
    if (is_opener(t->kind)) {
      if (p->stack.n >= NESTING_MAX) {
        diag *e = diag_error(p->ps->diags, span_of(p, t), DIAG_TOO_DEEP,
                             "brackets nest deeper than %d", NESTING_MAX);
        diag_note(e, "the rest of the text was not read");
        return false;
      }
      emit(p, *t);
      vec_push(p->ps->arena, &p->stack, (open){t->kind, p->out.n - 1, p->indent});
    } else if (is_closer(t->kind)) {
      close_one(p, t);
    } else {
      if (t->kind == 0)
        while (p->stack.n) close_missing(p, t, NULL);
      emit(p, *t);
    }
  }
  return true;
}

bool match_brackets(parse_state *ps) {
  // Most texts are right: then one silent walk does. Otherwise the layout decides which `{` lacks
  // its `}`, unless that explains more problems than taking the text as it comes.
  pass plain = {.ps = ps};
  if (!walk(&plain)) return false;
  if (plain.problems == 0) {
    ps->tokens.at = plain.out.at;
    ps->tokens.n = plain.out.n;
    ps->tokens.cap = plain.out.cap;
    return true;
  }
  pass layout = {.ps = ps, .by_layout = true};
  walk(&layout);
  pass final = {.ps = ps, .by_layout = layout.problems <= plain.problems, .report = true};
  walk(&final);
  ps->tokens.at = final.out.at;
  ps->tokens.n = final.out.n;
  ps->tokens.cap = final.out.cap;
  return true;
}
