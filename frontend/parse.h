// What the lexer (dsm.l), the bracket pass (brackets.c), the grammar (dsm.y), its helpers
// (parse.c) and the formatter (fmt.c) share. Others use parse_file of ast.h.
//
// A text is read in three steps. The lexer makes an array of all tokens, brackets.c matches and,
// after reporting, repairs the brackets, and the grammar runs over the repaired array. An array
// instead of a stream makes everything about errors simple: messages look at the neighbours of the
// token that did not fit, and recovery is "go on at token j".
#ifndef DSM_FRONTEND_PARSE_H
#define DSM_FRONTEND_PARSE_H

#include "frontend/ast.h"
#include "frontend/diag.h"

typedef struct token {
  int kind;         // a token of dsm.y: a character or T_...; TOKEN_COMMENT
  int start, end;   // bytes; a bracket that the repair put in has start == end
  int depth;        // brackets open around it; an opener and its closer have the depth outside
  bool opens_line;  // first token of its line
} token;

// Comments are kept only for the formatter and never reach the grammar.
enum { TOKEN_COMMENT = 1 };

typedef VEC(token) token_list;

// A range of tokens, first to last: the grammar's locations.
typedef struct token_range {
  int first, last;
} token_range;

typedef struct parse_state {
  arena *arena;
  diags *diags;
  const source *source;
  token_list tokens;  // ends in a token of kind 0 (end of file)
  int start_kind;     // T_START_...: which start symbol; 0 once it was handed out
  int next;           // the token the grammar reads next
  int resume;         // set with an error: where to go on; -1: find a place
  int errors;         // syntax errors so far; the parser stops after many
  bool deep;          // too-deep was reported
  // Results, by start symbol.
  file *file;
  expr *expr;
  setting_list settings;
} parse_state;

// dsm.l: all tokens of ps->source into ps->tokens. Lexical errors are reported and repaired.
void lex_all(parse_state *ps, bool keep_comments);

// brackets.c: matches brackets and sets depths; reports and repairs those that do not match.
// False when nesting is too deep to go on.
bool match_brackets(parse_state *ps);

// False (after reporting) when the text is not UTF-8.
bool check_utf8(parse_state *ps);

// Names of binary operators, commas and `=`: what cannot end an expression.
bool token_wants_more(int kind);
bool token_is_operator(int kind);  // binary operators only
bool token_is_keyword(int kind);   // words that cannot be names

// parse.c: what the actions of the grammar are made of.
span parse_span(const parse_state *ps, token_range r);
span token_span(const parse_state *ps, int i);
ident parse_ident(parse_state *ps, token_range r);
ident parse_string(parse_state *ps, token_range r);
expr *parse_leaf(parse_state *ps, expr_kind kind, token_range r);
expr *parse_binary(parse_state *ps, binary_op op, token_range r, token_range op_at, expr *left,
                   expr *right);
expr *parse_unary(parse_state *ps, unary_op op, token_range r, expr *operand);
expr *parse_call(parse_state *ps, token_range r, ident name, arg_list args);
expr *parse_index(parse_state *ps, token_range r, expr *base, pick_list picks);
expr *parse_list(parse_state *ps, token_range r, expr_list items);
expr *parse_if(parse_state *ps, token_range r, expr *test, expr *yes, expr *no);
stmt *parse_stmt(parse_state *ps, token_range r, stmt_kind kind);
item *parse_item(parse_state *ps, token_range r, item_kind kind);
fn *parse_fn(parse_state *ps, token_range r, ident name, formal_list formals, expr *body);
block *parse_block(parse_state *ps, token_range r, ident name, formal_list f, stmt_list body);
entry *parse_entry(parse_state *ps, token_range r, ident key, word_kind kind, expr *value);
entry *parse_entry_section(parse_state *ps, section *s);

// Moves ps->next to where the grammar goes on after an error that began at token `first`. False
// when it cannot go on: after too many errors, or where there are no more tokens.
bool parse_recover(parse_state *ps, int first);

// Reports a syntax error. `found` is the index of the token that did not fit, `expected` the
// token kinds that would have (at most `n` of them), as the grammar names them.
typedef struct expected {
  bool value;            // an expression may start here
  bool after;            // an expression has just ended (an operator would fit)
  bool compare;          // a comparison would fit
  bool name;             // a name
  bool path;             // a path
  bool statement;        // a statement of a model may start here
  bool item;             // a model, section, ... may start here
  bool entry;            // a key of a section may start here
  const char *marks[8];  // punctuation and words: `)`, `then`
  int nmarks;
} expected;
void parse_syntax_error(parse_state *ps, int found, const expected *want);
void parse_stack_exhausted(parse_state *ps);

#endif
