// The syntax tree of a .dsm text: plain structs in an arena, every one with its span.
//
// The tree says what was written, not what it means: names are not looked up, nothing is
// evaluated, `a*2+1` is a tree of two binaries. The order of every list is the order of the text.
//
// A worked example. The text
//
//   model m {
//     param n = 4k
//     x, y = split(linear(x, 2*n) as up.proj, 2)
//   }
//   train m { optimizer = adamw(lr=1e-4) }
//
// is parsed by
//
//   source *src = source_read(a, path, &why);
//   file *f = parse_file(a, d, src);         // never NULL; `d` holds the errors (frontend/diag.h)
//
// and then
//
//   f->items.at[0]->kind == ITEM_MODEL
//   model *m = f->items.at[0]->model;        // m->name.text == "m", m->base.text == NULL
//   m->body.at[0]->kind == STMT_PARAM        // ->binds.at[0].name.text == "n"
//     ->binds.at[0].value->kind == EXPR_NUMBER, ->number = {4000.0, 4000, true, .., UNIT_COUNT}
//   m->body.at[1]->kind == STMT_ASSIGN       // ->names.n == 2
//     ->value->kind == EXPR_CALL             // ->call.name.text == "split", ->call.args.n == 2
//       ->call.args.at[0].value->call.path.text == "up.proj", ->call.role == PATH_AS
//   section *s = f->items.at[1]->section;    // s->kind.text == "train", s->label.text == "m"
//   s->entries.at[0]->key.text == "optimizer", ->value->kind == EXPR_CALL
//
// After an error the tree holds everything that could be read; nothing in it is NULL that is not
// documented as optional. Statements and entries with errors inside are left out. A caller that
// found errors in `d` should still run its checks only if it wants more diagnostics.
//
// Depth is bounded: no expression is deeper than EXPR_MAX_DEPTH and blocks, sections and
// brackets nest at most NESTING_MAX deep (the parser refuses others), so recursion over the tree
// is safe.
#ifndef DSM_FRONTEND_AST_H
#define DSM_FRONTEND_AST_H

#include <stdbool.h>
#include <stdint.h>

#include "frontend/source.h"
#include "runtime/base/arena.h"
#include "runtime/base/str.h"
#include "runtime/base/vec.h"

#define NESTING_MAX 200
#define EXPR_MAX_DEPTH 1000

typedef struct expr expr;
typedef struct stmt stmt;
typedef struct section section;
typedef struct entry entry;
typedef struct item item;

// A name, path, key or label where it was written. `text` NULL means absent (optional parts).
typedef struct ident {
  const char *text;
  span at;
} ident;

typedef VEC(ident) ident_list;
typedef VEC(expr *) expr_list;
typedef VEC(stmt *) stmt_list;
typedef VEC(entry *) entry_list;
typedef VEC(item *) item_list;

// ---------------------------------------------------------------------------------------------
// Numbers and units
// ---------------------------------------------------------------------------------------------

// What a number measures. UNIT_NONE is a bare number, UNIT_COUNT one with a bare prefix (`4k`).
typedef enum unit {
  UNIT_NONE,
  UNIT_COUNT,
  UNIT_BYTES,        // 80GiB, 80GB, 10Gbit (bits are converted: value is in bytes)
  UNIT_BYTES_PER_S,  // 2039GB/s, 200Gbit/s (value is in bytes per second)
  UNIT_FLOPS,        // 312TFLOPS, 624TOPS: operations per second
  UNIT_SECONDS,      // 25us, 2s, 3min, 1.5h
  UNIT_WATTS,        // 400W
  UNIT_USD_PER_H,    // 2USD/h
} unit;

// "bytes", "bytes per second", ...: how messages call a unit.
const char *unit_name(unit u);

typedef struct number {
  double value;   // in the base unit: bytes, seconds, ...; nearest double of the exact decimal
  int64_t whole;  // the exact value when `integral`
  bool integral;  // the exact value is a whole number that fits int64 (`1e4`, `4k`, `2.5k` are)
  bool real;      // written with `.` or an exponent: `2.0`, `1e4`
  unit unit;
} number;

// ---------------------------------------------------------------------------------------------
// Expressions
// ---------------------------------------------------------------------------------------------

typedef enum expr_kind {
  EXPR_NUMBER,  // number
  EXPR_STRING,  // text: without quotes, escapes resolved
  EXPR_NAME,    // text; also true, false, none, auto and type names
  EXPR_CALL,    // call
  EXPR_INDEX,   // index: x[0:seq, .., none]
  EXPR_LIST,    // items: [1, 2]
  EXPR_UNARY,   // unary
  EXPR_BINARY,  // binary
  EXPR_IF,      // cond
} expr_kind;

typedef enum unary_op { UNARY_NEG, UNARY_NOT } unary_op;

// In the order of the grammar's table, loosest first.
typedef enum binary_op {
  BINARY_OR,
  BINARY_AND,
  BINARY_EQ,
  BINARY_NE,
  BINARY_LT,
  BINARY_LE,
  BINARY_GT,
  BINARY_GE,
  BINARY_ADD,
  BINARY_SUB,
  BINARY_MUL,
  BINARY_DIV,
  BINARY_FLOORDIV,  // a // b
  BINARY_MOD,
  BINARY_POW,
} binary_op;

// "+", "//", "and", ...
const char *binary_op_text(binary_op op);

// One argument; `name.text` is NULL when positional.
typedef struct arg {
  ident name;
  expr *value;
  span at;
} arg;
typedef VEC(arg) arg_list;

typedef enum path_role { PATH_NONE, PATH_AS, PATH_USING } path_role;

// One place between `[` and `]`.
typedef enum pick_kind {
  PICK_AT,     // an expression (`none` adds an axis: an EXPR_NAME with text "none")
  PICK_RANGE,  // from:to, each optional
  PICK_REST,   // ..
} pick_kind;

typedef struct pick {
  pick_kind kind;
  expr *at_expr;    // PICK_AT
  expr *from, *to;  // PICK_RANGE; NULL when left out
  span at;
} pick;
typedef VEC(pick) pick_list;

struct expr {
  expr_kind kind;
  int depth;  // 1 for a leaf
  span at;    // the whole expression; parentheses around it are not included
  union {
    number number;
    const char *text;
    struct {
      ident name;
      arg_list args;
      path_role role;
      ident path;  // text NULL when role is PATH_NONE
    } call;
    struct {
      expr *base;
      pick_list picks;  // at least one
    } index;
    expr_list items;
    struct {
      unary_op op;
      expr *operand;
    } unary;
    struct {
      binary_op op;
      span op_at;
      expr *left, *right;
    } binary;
    struct {
      expr *test, *yes, *no;
    } cond;
  };
};

// ---------------------------------------------------------------------------------------------
// Types, formals, functions, blocks
// ---------------------------------------------------------------------------------------------

// One extent of a type; `size` is NULL for `..`.
typedef struct extent {
  expr *size;
  span at;
} extent;
typedef VEC(extent) extent_list;

// `i32[batch, seq]`, `[vocab, hidden]` (element.text NULL: the job's precision), `f32` (no shape).
typedef struct type {
  ident element;
  bool shaped;  // brackets were written, even empty ones
  extent_list extents;
  span at;
} type;

typedef struct formal {
  ident name;
  type *type;   // optional
  expr *value;  // the default; optional
  span at;
} formal;
typedef VEC(formal) formal_list;

typedef struct fn {
  ident name;
  formal_list formals;
  expr *body;
  ident grad;       // the name in `grad(g)`; text NULL when no gradient is given
  expr_list grads;  // one expression per formal
  span at;
} fn;

typedef struct block {
  ident name;
  formal_list formals;
  stmt_list body;
  span at;
} block;

// ---------------------------------------------------------------------------------------------
// Statements
// ---------------------------------------------------------------------------------------------

typedef enum stmt_kind {
  STMT_PARAM,    // binds; a value NULL must be set from outside
  STMT_DIM,      // binds; the value is the bound, NULL when unbounded
  STMT_INPUT,    // names.at[0], type, value (optional default)
  STMT_WEIGHT,   // names.at[0], path (optional), type, value (optional init)
  STMT_OUTPUT,   // names, value
  STMT_ASSIGN,   // names, value
  STMT_REPEAT,   // value is the count, path, index (optional), body
  STMT_REQUIRE,  // value is the condition, message (optional)
  STMT_RETURN,   // values
  STMT_BLOCK,    // block
  STMT_FN,       // fn
} stmt_kind;

typedef struct bind {
  ident name;
  expr *value;  // optional
  span at;
} bind;
typedef VEC(bind) bind_list;

struct stmt {
  stmt_kind kind;
  span at;           // the whole statement
  bind_list binds;   // PARAM, DIM
  ident_list names;  // INPUT, WEIGHT (one), OUTPUT, ASSIGN
  type *type;        // INPUT, WEIGHT
  expr *value;       // INPUT, WEIGHT (optional), OUTPUT, ASSIGN, REPEAT, REQUIRE
  ident path;        // WEIGHT (optional), REPEAT
  ident index;       // REPEAT (optional)
  ident message;     // REQUIRE (optional): the text without quotes
  expr_list values;  // RETURN
  stmt_list body;    // REPEAT
  block *block;      // BLOCK
  fn *fn;            // FN
};

// ---------------------------------------------------------------------------------------------
// Sections and files
// ---------------------------------------------------------------------------------------------

typedef enum word_kind { WORD_NAME, WORD_PATH, WORD_STRING, WORD_NUMBER } word_kind;

// `train m as big { … }`, `weights "*" { … }`, `draft 0 { … }`, `layers "h.*" { … }`.
struct section {
  ident kind;            // train, names, plan, ...
  ident label;           // m, "*", 0: optional; the text without quotes
  word_kind label_kind;  // WORD_NAME, WORD_STRING or WORD_NUMBER
  ident as;              // optional
  entry_list entries;
  span at;    // the whole section
  span head;  // kind, label and `as`
};

// `key = value`, or a nested section (then `section` is set and `value` is NULL).
struct entry {
  ident key;  // `batch`, `matmul.bf16`, or the text of a string
  word_kind key_kind;
  expr *value;
  section *section;
  span at;
};

// A model is a body (base.text NULL) or a variant: `model xl = base(layers=48)`.
typedef struct model {
  ident name;
  stmt_list body;
  ident base;
  arg_list args;
  span at;
} model;

typedef enum item_kind { ITEM_IMPORT, ITEM_MODEL, ITEM_BLOCK, ITEM_FN, ITEM_SECTION } item_kind;

struct item {
  item_kind kind;
  span at;
  union {
    ident import;  // the file's name without quotes
    model *model;
    block *block;
    fn *fn;
    section *section;
  };
};

typedef struct file {
  const source *source;
  item_list items;
} file;

// One `NAME=EXPR` of `--set`; the name may be dotted.
typedef struct setting {
  ident name;
  expr *value;
  span at;
} setting;
typedef VEC(setting) setting_list;

// ---------------------------------------------------------------------------------------------
// The parser (frontend/parse.c around dsm.l and dsm.y)
// ---------------------------------------------------------------------------------------------

struct diags;

// Parses a whole text. Never NULL; errors are in `d`.
file *parse_file(arena *a, struct diags *d, const source *src);
// Parses one expression, such as the value of an option. NULL after an error.
expr *parse_expr(arena *a, struct diags *d, const source *src);
// Parses `name=expr,name=expr`, the argument of --set. Empty after an error.
setting_list parse_settings(arena *a, struct diags *d, const source *src);

// ---------------------------------------------------------------------------------------------
// Looking at trees (ast.c)
// ---------------------------------------------------------------------------------------------

bool expr_is_name(const expr *e, const char *name);
bool expr_is_call(const expr *e, const char *name);
// The entry with this key, the last one when written twice; NULL when absent.
const entry *section_get(const section *s, const char *key);

// Writes an expression in canonical spelling ("4*hidden + 1"); numbers as they were written.
void expr_print(sb *out, const expr *e);
// Writes the whole tree as one s-expression per item, without spans: equal texts, equal trees.
void ast_dump(sb *out, const file *f);

#endif
