/* The grammar of .dsm texts. LALR(1) without conflicts; a conflict is a build error. Its tables are
 * made canonical all the same: they are small, and in them an error is seen before any reduction
 * and the list of what would have fitted is exact, without bison's second (LAC) stack, whose memory
 * could not come from the arena.
 *
 * Reading order: files, models, statements, sections, expressions. Actions only make nodes; all
 * that is more than that is in parse.c. Locations are ranges of tokens. A syntax error is reported
 * by parse_syntax_error from the tokens around it; recovery is by statement and by entry: the
 * parser goes on at the next line (or `;`) that stands at the same bracket depth.
 *
 * The kinds of tokens come in an order that parse.c and brackets.c use: T_IMPORT to T_RETURN are
 * words that may begin an item or statement, T_IMPORT to T_NOT all words of the language.
 */
%define api.prefix {dsm_}
%define api.pure full
%define api.location.type {token_range}
%define api.value.type union
%define parse.error custom
%define lr.type canonical-lr
%define lr.default-reduction consistent
%locations
%param {parse_state *ps}

%code requires {
#include "frontend/parse.h"
}

%code {
#include <string.h>

static int dsm_lex(DSM_STYPE *value, token_range *at, parse_state *ps);
static void dsm_error(const token_range *at, parse_state *ps, const char *message);

// All memory of the parser is the arena's; a stack that is left behind stays there.
#define YYMALLOC(size) arena_alloc(ps->arena, size)
#define YYFREE(p) ((void)(p))
#define YYMAXDEPTH 100000
#define YYLLOC_DEFAULT(Current, Rhs, N)                                \
  do {                                                                 \
    (Current).first = (N) ? YYRHSLOC(Rhs, 1).first : YYRHSLOC(Rhs, 0).last + 1; \
    (Current).last = (N) ? YYRHSLOC(Rhs, N).last : YYRHSLOC(Rhs, 0).last;       \
  } while (0)

// After an error: the grammar goes on at the token that parse_recover chose, or stops.
#define RECOVER(first_token)                         \
  do {                                               \
    if (!parse_recover(ps, (first_token))) YYABORT;  \
    yyclearin;                                       \
    yyerrok;                                         \
  } while (0)
}

%token T_NAME "a name" T_PATH "a path" T_NUMBER "a number" T_STRING "a string"
%token T_IMPORT "import" T_MODEL "model" T_BLOCK "block" T_FN "fn" T_PARAM "param" T_DIM "dim"
%token T_INPUT "input" T_WEIGHT "weight" T_OUTPUT "output" T_REPEAT "repeat"
%token T_REQUIRE "require" T_RETURN "return"
%token T_GRAD "grad" T_AS "as" T_USING "using" T_IF "if" T_THEN "then" T_ELSE "else"
%token T_OR "or" T_AND "and" T_NOT "not"
%token T_REST ".." T_FLOORDIV "//" T_EQ "==" T_NE "!=" T_LE "<=" T_GE ">="
%token T_START_FILE T_START_EXPR T_START_SETTINGS
%token YYEOF 0 "the end of the file"

%precedence T_ELSE
%left T_OR
%left T_AND
%precedence T_NOT
%nonassoc T_EQ T_NE '<' T_LE '>' T_GE
%left '+' '-'
%left '*' '/' T_FLOORDIV '%'
%precedence NEGATE
%right '^'

%type <ident> name string word path opt_path
%type <ident_list> names
%type <expr *> expr postfix primary call opt_value opt_expr
%type <expr_list> exprs
%type <arg_list> args arg_items
%type <arg> arg
%type <pick_list> picks
%type <pick> pick
%type <formal_list> formals formal_items
%type <formal> formal
%type <type *> type
%type <extent_list> extents extent_items
%type <extent> extent
%type <bind_list> binds dims
%type <bind> bind dim
%type <stmt_list> stmts body
%type <stmt *> stmt simple
%type <fn *> fn
%type <block *> block
%type <section *> section section_head
%type <entry_list> entries
%type <entry *> entry
%type <item *> item

%%

start
  : T_START_FILE file
  | T_START_EXPR expr               { ps->expr = $2; }
  | T_START_SETTINGS settings
  ;

settings
  : setting
  | settings ',' setting
  ;
setting
  : path '=' expr {
      setting s = {.name = $1, .value = $3, .at = parse_span(ps, @$)};
      vec_push(ps->arena, &ps->settings, s);
    }
  ;

/* ---- files ---------------------------------------------------------------------------------- */

file
  : %empty
  | file item                       { if ($2) vec_push(ps->arena, &ps->file->items, $2); }
  | file ';'
  | file error                      { RECOVER(@2.first); }
  ;

item
  : T_IMPORT string                 { $$ = parse_item(ps, @$, ITEM_IMPORT); $$->import = $2; }
  | T_MODEL name body {
      $$ = parse_item(ps, @$, ITEM_MODEL);
      $$->model = arena_new(ps->arena, model, 1);
      *$$->model = (model){.name = $2, .body = $3, .at = $$->at};
    }
  | T_MODEL name '=' name '(' args ')' {
      $$ = parse_item(ps, @$, ITEM_MODEL);
      $$->model = arena_new(ps->arena, model, 1);
      *$$->model = (model){.name = $2, .base = $4, .args = $6, .at = $$->at};
    }
  | block                           { $$ = parse_item(ps, @$, ITEM_BLOCK); $$->block = $1; }
  | fn                              { $$ = parse_item(ps, @$, ITEM_FN); $$->fn = $1; }
  | section                         { $$ = parse_item(ps, @$, ITEM_SECTION); $$->section = $1; }
  ;

block
  : T_BLOCK name '(' formals ')' body     { $$ = parse_block(ps, @$, $2, $4, $6); }
  ;

fn
  : T_FN name '(' formals ')' '=' expr    { $$ = parse_fn(ps, @$, $2, $4, $7); }
  | T_FN name '(' formals ')' '=' expr T_GRAD '(' name ')' '=' exprs {
      $$ = parse_fn(ps, @$, $2, $4, $7);
      $$->grad = $10;
      $$->grads = $13;
    }
  ;

formals
  : %empty                          { $$ = (formal_list){0}; }
  | formal_items
  | formal_items ','
  ;
formal_items
  : formal                          { $$ = (formal_list){0}; vec_push(ps->arena, &$$, $1); }
  | formal_items ',' formal         { $$ = $1; vec_push(ps->arena, &$$, $3); }
  ;
formal
  : name opt_value                  { $$ = (formal){$1, NULL, $2, parse_span(ps, @$)}; }
  | name ':' type opt_value         { $$ = (formal){$1, $3, $4, parse_span(ps, @$)}; }
  ;

type
  : name {
      $$ = arena_new(ps->arena, type, 1);
      *$$ = (type){.element = $1, .at = parse_span(ps, @$)};
    }
  | '[' extents ']' {
      $$ = arena_new(ps->arena, type, 1);
      *$$ = (type){.shaped = true, .extents = $2, .at = parse_span(ps, @$)};
    }
  | name '[' extents ']' {
      $$ = arena_new(ps->arena, type, 1);
      *$$ = (type){.element = $1, .shaped = true, .extents = $3, .at = parse_span(ps, @$)};
    }
  ;
extents
  : %empty                          { $$ = (extent_list){0}; }
  | extent_items
  ;
extent_items
  : extent                          { $$ = (extent_list){0}; vec_push(ps->arena, &$$, $1); }
  | extent_items ',' extent         { $$ = $1; vec_push(ps->arena, &$$, $3); }
  ;
extent
  : expr                            { $$ = (extent){$1, parse_span(ps, @$)}; }
  | T_REST                          { $$ = (extent){NULL, parse_span(ps, @$)}; }
  ;

/* ---- statements ----------------------------------------------------------------------------- */

body
  : '{' stmts '}'                   { $$ = $2; }
  ;
stmts
  : %empty                          { $$ = (stmt_list){0}; }
  | stmts stmt                      { $$ = $1; vec_push(ps->arena, &$$, $2); }
  | stmts ';'                       { $$ = $1; }
  | stmts error                     { $$ = $1; RECOVER(@2.first); }
  ;

stmt
  : simple
  | T_REPEAT '(' expr ')' T_AS path body {
      $$ = parse_stmt(ps, @$, STMT_REPEAT);
      $$->value = $3;
      $$->path = $6;
      $$->body = $7;
    }
  | T_REPEAT '(' expr ')' T_AS path '[' name ']' body {
      $$ = parse_stmt(ps, @$, STMT_REPEAT);
      $$->value = $3;
      $$->path = $6;
      $$->index = $8;
      $$->body = $10;
    }
  | block                           { $$ = parse_stmt(ps, @$, STMT_BLOCK); $$->block = $1; }
  | fn                              { $$ = parse_stmt(ps, @$, STMT_FN); $$->fn = $1; }
  ;

simple
  : T_PARAM binds                   { $$ = parse_stmt(ps, @$, STMT_PARAM); $$->binds = $2; }
  | T_DIM dims                      { $$ = parse_stmt(ps, @$, STMT_DIM); $$->binds = $2; }
  | T_INPUT name ':' type opt_value {
      $$ = parse_stmt(ps, @$, STMT_INPUT);
      vec_push(ps->arena, &$$->names, $2);
      $$->type = $4;
      $$->value = $5;
    }
  | T_WEIGHT name opt_path ':' type opt_value {
      $$ = parse_stmt(ps, @$, STMT_WEIGHT);
      vec_push(ps->arena, &$$->names, $2);
      $$->path = $3;
      $$->type = $5;
      $$->value = $6;
    }
  | T_OUTPUT names '=' expr {
      $$ = parse_stmt(ps, @$, STMT_OUTPUT);
      $$->names = $2;
      $$->value = $4;
    }
  | names '=' expr {
      $$ = parse_stmt(ps, @$, STMT_ASSIGN);
      $$->names = $1;
      $$->value = $3;
    }
  | T_REQUIRE expr                  { $$ = parse_stmt(ps, @$, STMT_REQUIRE); $$->value = $2; }
  | T_REQUIRE expr ',' string {
      $$ = parse_stmt(ps, @$, STMT_REQUIRE);
      $$->value = $2;
      $$->message = $4;
    }
  | T_RETURN exprs                  { $$ = parse_stmt(ps, @$, STMT_RETURN); $$->values = $2; }
  ;

binds
  : bind                            { $$ = (bind_list){0}; vec_push(ps->arena, &$$, $1); }
  | binds ',' bind                  { $$ = $1; vec_push(ps->arena, &$$, $3); }
  ;
bind
  : name opt_value                  { $$ = (bind){$1, $2, parse_span(ps, @$)}; }
  ;
dims
  : dim                             { $$ = (bind_list){0}; vec_push(ps->arena, &$$, $1); }
  | dims ',' dim                    { $$ = $1; vec_push(ps->arena, &$$, $3); }
  ;
dim
  : name                            { $$ = (bind){$1, NULL, parse_span(ps, @$)}; }
  | name T_LE expr                  { $$ = (bind){$1, $3, parse_span(ps, @$)}; }
  ;
names
  : name                            { $$ = (ident_list){0}; vec_push(ps->arena, &$$, $1); }
  | names ',' name                  { $$ = $1; vec_push(ps->arena, &$$, $3); }
  ;

opt_value
  : %empty                          { $$ = NULL; }
  | '=' expr                        { $$ = $2; }
  ;
opt_path
  : %empty                          { $$ = (ident){0}; }
  | T_AS path                       { $$ = $2; }
  ;

/* ---- sections ------------------------------------------------------------------------------- */

section
  : section_head '{' entries '}' {
      $$ = $1;
      $$->entries = $3;
      $$->at = parse_span(ps, @$);
      $$->head = parse_span(ps, @1);
    }
  | section_head T_AS name '{' entries '}' {
      $$ = $1;
      $$->as = $3;
      $$->entries = $5;
      $$->at = parse_span(ps, @$);
      $$->head = span_join(parse_span(ps, @1), $3.at);
    }
  ;
section_head
  : name {
      $$ = arena_new(ps->arena, section, 1);
      $$->kind = $1;
    }
  | name name {
      $$ = arena_new(ps->arena, section, 1);
      $$->kind = $1;
      $$->label = $2;
      $$->label_kind = WORD_NAME;
    }
  | name string {
      $$ = arena_new(ps->arena, section, 1);
      $$->kind = $1;
      $$->label = $2;
      $$->label_kind = WORD_STRING;
    }
  | name T_NUMBER {
      $$ = arena_new(ps->arena, section, 1);
      $$->kind = $1;
      $$->label = parse_ident(ps, @2);
      $$->label_kind = WORD_NUMBER;
    }
  ;
entries
  : %empty                          { $$ = (entry_list){0}; }
  | entries entry                   { $$ = $1; vec_push(ps->arena, &$$, $2); }
  | entries ';'                     { $$ = $1; }
  | entries error                   { $$ = $1; RECOVER(@2.first); }
  ;
entry
  : word '=' expr                   { $$ = parse_entry(ps, @$, $1, WORD_NAME, $3); }
  | T_PATH '=' expr                 { $$ = parse_entry(ps, @$, parse_ident(ps, @1), WORD_PATH, $3); }
  | string '=' expr                 { $$ = parse_entry(ps, @$, $1, WORD_STRING, $3); }
  | section                         { $$ = parse_entry_section(ps, $1); }
  ;

/* ---- expressions ---------------------------------------------------------------------------- */

expr
  : postfix
  | T_IF expr T_THEN expr T_ELSE expr     { $$ = parse_if(ps, @$, $2, $4, $6); }
  | T_NOT expr                      { $$ = parse_unary(ps, UNARY_NOT, @$, $2); }
  | '-' expr %prec NEGATE           { $$ = parse_unary(ps, UNARY_NEG, @$, $2); }
  | expr T_OR expr                  { $$ = parse_binary(ps, BINARY_OR, @$, @2, $1, $3); }
  | expr T_AND expr                 { $$ = parse_binary(ps, BINARY_AND, @$, @2, $1, $3); }
  | expr T_EQ expr                  { $$ = parse_binary(ps, BINARY_EQ, @$, @2, $1, $3); }
  | expr T_NE expr                  { $$ = parse_binary(ps, BINARY_NE, @$, @2, $1, $3); }
  | expr '<' expr                   { $$ = parse_binary(ps, BINARY_LT, @$, @2, $1, $3); }
  | expr T_LE expr                  { $$ = parse_binary(ps, BINARY_LE, @$, @2, $1, $3); }
  | expr '>' expr                   { $$ = parse_binary(ps, BINARY_GT, @$, @2, $1, $3); }
  | expr T_GE expr                  { $$ = parse_binary(ps, BINARY_GE, @$, @2, $1, $3); }
  | expr '+' expr                   { $$ = parse_binary(ps, BINARY_ADD, @$, @2, $1, $3); }
  | expr '-' expr                   { $$ = parse_binary(ps, BINARY_SUB, @$, @2, $1, $3); }
  | expr '*' expr                   { $$ = parse_binary(ps, BINARY_MUL, @$, @2, $1, $3); }
  | expr '/' expr                   { $$ = parse_binary(ps, BINARY_DIV, @$, @2, $1, $3); }
  | expr T_FLOORDIV expr            { $$ = parse_binary(ps, BINARY_FLOORDIV, @$, @2, $1, $3); }
  | expr '%' expr                   { $$ = parse_binary(ps, BINARY_MOD, @$, @2, $1, $3); }
  | expr '^' expr                   { $$ = parse_binary(ps, BINARY_POW, @$, @2, $1, $3); }
  ;

postfix
  : primary
  | postfix '[' picks ']'           { $$ = parse_index(ps, @$, $1, $3); }
  ;
picks
  : pick                            { $$ = (pick_list){0}; vec_push(ps->arena, &$$, $1); }
  | picks ',' pick                  { $$ = $1; vec_push(ps->arena, &$$, $3); }
  ;
pick
  : T_REST                          { $$ = (pick){.kind = PICK_REST, .at = parse_span(ps, @$)}; }
  | expr {
      $$ = (pick){.kind = PICK_AT, .at_expr = $1, .at = parse_span(ps, @$)};
    }
  | opt_expr ':' opt_expr {
      $$ = (pick){.kind = PICK_RANGE, .from = $1, .to = $3, .at = parse_span(ps, @$)};
    }
  ;
opt_expr
  : %empty                          { $$ = NULL; }
  | expr
  ;

primary
  : T_NUMBER                        { $$ = parse_leaf(ps, EXPR_NUMBER, @$); }
  | T_STRING                        { $$ = parse_leaf(ps, EXPR_STRING, @$); }
  | T_NAME                          { $$ = parse_leaf(ps, EXPR_NAME, @$); }
  | call
  | '(' expr ')'                    { $$ = $2; }
  | '[' ']'                         { $$ = parse_list(ps, @$, (expr_list){0}); }
  | '[' exprs ']'                   { $$ = parse_list(ps, @$, $2); }
  | '[' exprs ',' ']'               { $$ = parse_list(ps, @$, $2); }
  ;

call
  : name '(' args ')'               { $$ = parse_call(ps, @$, $1, $3); }
  | name '(' args ')' T_AS path {
      $$ = parse_call(ps, @$, $1, $3);
      $$->call.role = PATH_AS;
      $$->call.path = $6;
    }
  | name '(' args ')' T_USING path {
      $$ = parse_call(ps, @$, $1, $3);
      $$->call.role = PATH_USING;
      $$->call.path = $6;
    }
  ;
args
  : %empty                          { $$ = (arg_list){0}; }
  | arg_items
  | arg_items ','
  ;
arg_items
  : arg                             { $$ = (arg_list){0}; vec_push(ps->arena, &$$, $1); }
  | arg_items ',' arg               { $$ = $1; vec_push(ps->arena, &$$, $3); }
  ;
arg
  : expr                            { $$ = (arg){.value = $1, .at = parse_span(ps, @$)}; }
  | word '=' expr                   { $$ = (arg){$1, $3, parse_span(ps, @$)}; }
  ;

exprs
  : expr                            { $$ = (expr_list){0}; vec_push(ps->arena, &$$, $1); }
  | exprs ',' expr                  { $$ = $1; vec_push(ps->arena, &$$, $3); }
  ;

/* ---- words ---------------------------------------------------------------------------------- */

name
  : T_NAME                          { $$ = parse_ident(ps, @$); }
  ;
string
  : T_STRING                        { $$ = parse_string(ps, @$); }
  ;
path
  : word
  | T_PATH                          { $$ = parse_ident(ps, @$); }
  ;
word
  : T_NAME                          { $$ = parse_ident(ps, @$); }
  | keyword                         { $$ = parse_ident(ps, @$); }
  ;
keyword
  : T_IMPORT | T_MODEL | T_BLOCK | T_FN | T_PARAM | T_DIM | T_INPUT | T_WEIGHT | T_OUTPUT
  | T_REPEAT | T_REQUIRE | T_RETURN | T_GRAD
  ;

%%

static int dsm_lex(DSM_STYPE *value, token_range *at, parse_state *ps) {
  (void)value;
  if (ps->start_kind) {
    int kind = ps->start_kind;
    ps->start_kind = 0;
    *at = (token_range){0, -1};
    return kind;
  }
  int i = ps->next < ps->tokens.n ? ps->next : ps->tokens.n - 1;
  ps->next = i + 1;
  *at = (token_range){i, i};
  return ps->tokens.at[i].kind;
}

// Bison calls this only when its stack is exhausted: syntax errors go below.
static void dsm_error(const token_range *at, parse_state *ps, const char *message) {
  (void)at;
  (void)message;
  parse_stack_exhausted(ps);
}

static int yyreport_syntax_error(const yypcontext_t *context, parse_state *ps) {
  enum { MOST = 100 };
  yysymbol_kind_t kinds[MOST];
  int n = yypcontext_expected_tokens(context, kinds, MOST);
  expected want = {0};
  for (int i = 0; i < n; i++) {
    switch (kinds[i]) {
      case YYSYMBOL_T_NOT: want.value = true; break;
      case YYSYMBOL_T_NAME: want.name = true; break;
      case YYSYMBOL_T_PATH: want.path = true; break;
      case YYSYMBOL_T_REQUIRE: want.statement = true; break;
      case YYSYMBOL_T_IMPORT: want.item = true; break;
      case YYSYMBOL_T_STRING: want.entry = true; break;
      case YYSYMBOL_T_AND: want.after = true; break;
      case YYSYMBOL_T_EQ: want.compare = true; break;
      default: {
        const char *text = yysymbol_name(kinds[i]);
        bool word = kinds[i] == YYSYMBOL_T_AS || kinds[i] == YYSYMBOL_T_THEN ||
                    kinds[i] == YYSYMBOL_T_ELSE;
        bool mark = text[0] == '\'' && strchr(")]}{(,=:", text[1]);
        if ((word || mark) && want.nmarks < 8) want.marks[want.nmarks++] = text;
      }
    }
  }
  // Keywords may be keys and paths: where words of files and of models would both do, a word is
  // wanted and neither of them.
  if (want.item && want.statement) {
    want.item = want.statement = false;
    want.path = !want.entry;
  } else {
    want.entry = want.entry && !want.value && !want.item && !want.statement;
  }
  parse_syntax_error(ps, yypcontext_location(context)->first, &want);
  return 0;
}
