// Reads the text that ir/print.c writes.
//
//   module  = "module" STRING ("graph" | "local") [ "samples" dim ] [ mesh ] { state } { func }
//   mesh    = "mesh" NAME "=" int [ "(" int { int } ")" ] [ "time" ] { "," ... }
//   state   = "state" STRING ":" type CLASS INIT [ "(" number ")" ]
//             { "layers" int "step" int | "trained" | "decay" number | "lr" number | "of" STRING }
//   func    = "func" NAME KIND "{" { op } "}"
//   op      = [ %name { "," %name } "=" ] NAME "(" [ %name { "," %name } ] ")" [ "{" attr, ... "}"
//   ]
//             [ "@" STRING ] [ "recompute" ] [ ":" type [place] { "," ... } ] {
//             region }
//   region  = "region" "(" [ %name ":" type [place] { "," ... } ] ")"
//             "{" { op } [ "yield" %name, ... ] "}"
//   type    = ELEMENT [ "[" dim { "," dim } "]" ]
//   dim     = leaf | "(" leaf { leaf } ")"        leaf = [ NAME ("=" | "<=") ] int
//   place   = [ "cut" "(" NAME "/" axes [ "zigzag" ] { "," ... } ")" ] [ "partial" "(" KIND "/"
//   axes ")" ] axes    = NAME { "." NAME } attr    = NAME "=" (int | number | STRING | "[" int, ...
//   "]")     as the op table says
//
// The first mistake stops the reading. Nesting, extents and ranks are bounded, so any text, however
// broken, gives a module or a message.
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ir/place.h"
#include "ir/print.h"

#define MAX_NESTING 16

typedef struct parser {
  arena *arena;
  ir_module *m;
  const char *at;  // NUL-terminated copy of the text
  int line, depth;
  const char *error;
  map indices;   // by the name in the text
  map products;  // dimensions of several leaves, by the ids of their leaves
  map values;    // of the function being read
} parser;

// ---- words -------------------------------------------------------------------------------------

// Both message makers return NULL so that callers can `return expected(...)`. Only the first
// message is kept: what follows a mistake says little.
static void *expected(parser *p, const char *what) {
  if (p->error) return NULL;
  size_t n = strcspn(p->at, "\n");
  if (n > 24) n = 24;
  p->error =
      n ? arena_printf(p->arena, "line %d: expected %s at \"%.*s\"", p->line, what, (int)n, p->at)
        : arena_printf(p->arena, "line %d: expected %s", p->line, what);
  return NULL;
}

static void *say(parser *p, const char *what) {
  if (!p->error) p->error = arena_printf(p->arena, "line %d: %s", p->line, what);
  return NULL;
}

// White space and comments never matter.
static void space(parser *p) {
  for (;; p->at++) {
    if (*p->at == ';') p->at += strcspn(p->at, "\n");
    if (*p->at == '\n') p->line++;
    if (!isspace((unsigned char)*p->at)) return;
  }
}

// Takes a mark when it comes next. False after an error, which ends every loop of the parser.
static bool take(parser *p, const char *mark) {
  space(p);
  if (p->error || !str_starts(p->at, mark)) return false;
  p->at += strlen(mark);
  return true;
}

static bool need(parser *p, const char *mark) {
  if (take(p, mark)) return true;
  expected(p, arena_printf(p->arena, "`%s`", mark));
  return false;
}

static size_t word_length(const char *s, bool dots) {
  size_t n = 0;
  while (isalnum((unsigned char)s[n]) || s[n] == '_' || (dots && s[n] == '.')) n++;
  return n;
}

// Takes `word` when it comes next as a whole word.
static bool take_word(parser *p, const char *word) {
  space(p);
  if (p->error || word_length(p->at, false) != strlen(word) || !str_starts(p->at, word))
    return false;
  p->at += strlen(word);
  return true;
}

static const char *word(parser *p, const char *what, bool dots) {
  space(p);
  size_t n = p->error ? 0 : word_length(p->at, dots);
  if (!n) return expected(p, what);
  const char *w = arena_strndup(p->arena, p->at, n);
  p->at += n;
  return w;
}

static int64_t integer(parser *p) {
  space(p);
  if (p->error) return 0;
  char *end;
  errno = 0;
  long long v = strtoll(p->at, &end, 10);
  if (end == p->at || errno) {
    expected(p, "a whole number");
    return 0;
  }
  p->at = end;
  return v;
}

static int small_integer(parser *p) {
  int64_t v = integer(p);
  if (v > INT32_MAX || v < INT32_MIN) say(p, "this number is too large");
  return p->error ? 0 : (int)v;
}

static double number(parser *p) {
  space(p);
  if (p->error) return 0;
  char *end;
  double v = strtod(p->at, &end);
  if (end == p->at) expected(p, "a number");
  p->at = end;
  return v;
}

static const char *string(parser *p) {
  if (!take(p, "\"")) return expected(p, "a string in \"quotes\"");
  sb s = {.arena = p->arena};
  while (*p->at != '"') {
    if (!*p->at || *p->at == '\n') return expected(p, "the closing quote");
    if (*p->at != '\\') {
      sb_put(&s, *p->at++);
      continue;
    }
    p->at++;
    if (*p->at == '"' || *p->at == '\\') {
      sb_put(&s, *p->at++);
    } else if (*p->at == 'x' && isxdigit((unsigned char)p->at[1]) &&
               isxdigit((unsigned char)p->at[2])) {
      char hex[3] = {p->at[1], p->at[2], 0};
      char c = (char)strtol(hex, NULL, 16);
      if (!c) return say(p, "a string cannot hold a zero byte");
      sb_put(&s, c);
      p->at += 3;
    } else {
      return expected(p, "\\\", \\\\ or \\xNN");
    }
  }
  p->at++;
  return arena_strdup(p->arena, sb_str(&s));
}

// The position of the next word in `names`, or -1.
static int one_of(parser *p, const char *const *names, int n, const char *what) {
  space(p);
  for (int i = 0; i < n; i++)
    if (take_word(p, names[i])) return i;
  expected(p, what);
  return -1;
}

// ---- types -------------------------------------------------------------------------------------

// An index by its name in the text: the same name is the same index, so its extent must agree. The
// name it keeps is without the suffix that made it unique; the printer makes a suffix again.
static ir_index *leaf(parser *p) {
  space(p);
  const char *name = NULL;
  bool bounded = false;
  if (isalpha((unsigned char)*p->at) || *p->at == '_') {
    name = word(p, "the name of an index", true);
    bounded = take(p, "<=");
    if (!bounded && !need(p, "=")) return NULL;
  }
  int64_t size = integer(p);
  if (p->error) return NULL;
  if (size < 1) return say(p, "an extent must be at least 1");
  ir_index *x = name ? map_get(&p->indices, name) : NULL;
  if (x) {
    if (x->size != size || (x->bound != 0) != bounded)
      return say(p, arena_printf(p->arena, "`%s` is %lld here and %lld above", name,
                                 (long long)size, (long long)x->size));
    return x;
  }
  const char *hint = name ? arena_strndup(p->arena, name, ir_base_name(name)) : NULL;
  x = ir_index_new(p->m, hint && *hint ? hint : NULL, size);
  if (bounded) x->bound = size;
  if (name) map_set(&p->indices, name, x);
  return x;
}

// A product of the same leaves is the same index.
static ir_index *dim(parser *p) {
  if (!take(p, "(")) return leaf(p);
  ir_index *part[IR_MAX_LEAVES];
  sb key = {.arena = p->arena};
  int64_t size = 1;
  int n = 0;
  while (!take(p, ")")) {
    if (n == IR_MAX_LEAVES) return say(p, "a dimension is a product of too many indices");
    if (!(part[n] = leaf(p))) return NULL;
    if (__builtin_mul_overflow(size, part[n]->size, &size))
      return say(p, "a dimension is too large");
    sb_printf(&key, "%d.", part[n]->id);
    n++;
  }
  if (!n) return expected(p, "an index");
  if (n == 1) return part[0];
  ir_index *x = map_get(&p->products, sb_str(&key));
  if (x) return x;
  x = ir_index_new(p->m, NULL, size);
  if (!ir_index_refine(p->m, x, part, n)) return say(p, "this product of indices is not possible");
  map_set(&p->products, arena_strdup(p->arena, sb_str(&key)), x);
  return x;
}

static ir_type type(parser *p) {
  ir_type t = {0};
  const char *name = word(p, "an element type", false);
  if (!name) return t;
  if (!ir_dtype_parse(name, &t.dtype)) {
    say(p, arena_printf(p->arena, "`%s` is not an element type", name));
    return t;
  }
  if (!take(p, "[")) return t;
  int64_t bytes = ir_dtype_bytes(t.dtype);
  do {
    if (t.rank == IR_MAX_RANK) {
      say(p, "a type has too many dimensions");
      break;
    }
    ir_index *x = dim(p);
    if (!x) break;
    t.dim[t.rank++] = x;
    if (__builtin_mul_overflow(bytes, x->size, &bytes)) say(p, "a value is too large");
  } while (take(p, ","));
  need(p, "]");
  return t;
}

// ---- placements --------------------------------------------------------------------------------

static int axis(parser *p) {
  space(p);
  size_t n = 0;
  int a = p->m->mesh && !p->error ? mesh_axis_at(p->m->mesh, p->at, &n) : -1;
  p->at += n;
  if (a >= 0) return a;
  const char *name = word(p, "an axis of the mesh", true);
  say(p, arena_printf(p->arena, "the mesh has no axis `%s`", name ? name : ""));
  return -1;
}

// An index named in a cut: the type before it has it.
static ir_index *known_leaf(parser *p, const ir_type *t) {
  const char *name = word(p, "the name of an index", true);
  ir_index *x = name ? map_get(&p->indices, name) : NULL, *part[IR_MAX_LEAVES];
  for (int d = 0; x && d < t->rank; d++)
    for (int n = ir_index_leaves(t->dim[d], part, IR_MAX_LEAVES); n > 0; n--)
      if (part[n - 1] == x) return x;
  return say(p, arena_printf(p->arena, "the type has no index `%s`", name ? name : ""));
}

static ir_index *cut_index(parser *p, const ir_type *t) {
  if (!take(p, "(")) return known_leaf(p, t);
  sb key = {.arena = p->arena};
  while (!p->error && !take(p, ")")) {
    ir_index *x = known_leaf(p, t);
    if (x) sb_printf(&key, "%d.", x->id);
  }
  ir_index *x = map_get(&p->products, sb_str(&key));
  return x ? x : say(p, "there is no such product of indices above");
}

static void cut(parser *p, const ir_type *t, ir_place *at) {
  if (at->ncuts == (int)(sizeof at->cut / sizeof *at->cut)) {
    say(p, "a value is cut too often");
    return;
  }
  ir_cut *c = &at->cut[at->ncuts];
  c->index = cut_index(p, t);
  if (!p->error) need(p, "/");
  do {
    if (p->error) return;
    if (c->naxes == (int)(sizeof c->axis / sizeof *c->axis)) {
      say(p, "an index is cut too often");
      return;
    }
    c->axis[c->naxes++] = axis(p);
  } while (take(p, "."));
  if (take_word(p, "zigzag")) c->pattern = PATTERN_ZIGZAG;
  at->ncuts++;
}

// The placement after the type `t`; NULL when there is none.
static const ir_place *place(parser *p, const ir_type *t) {
  ir_place at = {0};
  if (take_word(p, "cut")) {
    need(p, "(");
    do
      if (!p->error) cut(p, t, &at);
    while (take(p, ","));
    need(p, ")");
  }
  if (take_word(p, "partial")) {
    need(p, "(");
    int kind = one_of(p, ir_partial_names, 4, "sum, max or lse");
    need(p, "/");
    do {
      int a = axis(p);
      if (p->error) return NULL;
      at.partial_axes |= 1u << a;
    } while (take(p, "."));
    need(p, ")");
    if (!p->error) at.partial = (ir_partial)kind;
  }
  if (p->error || (!at.ncuts && at.partial == PARTIAL_NONE)) return NULL;
  ir_place *kept = arena_new(p->arena, ir_place, 1);
  *kept = at;
  return kept;
}

static void mesh(parser *p) {
  ir_mesh *m = arena_new(p->arena, ir_mesh, 1);
  do {
    const char *name = word(p, "the name of an axis", true);
    if (!name || !need(p, "=")) return;
    if (m->naxes == IR_MAX_AXES || mesh_axis(m, name) >= 0) {
      say(p, "too many axes, or one given twice");
      return;
    }
    ir_axis *a = &m->axis[m->naxes++];
    a->name = name;
    a->size = integer(p);
    if (!p->error && a->size < 1) say(p, "an axis must have at least one device");
    a->time = take_word(p, "time");
  } while (take(p, ","));
  p->m->mesh = m;
}

// ---- ops ---------------------------------------------------------------------------------------

// The hint is the name without its suffix; a number is no name.
static void define(parser *p, const char *name, ir_value *v) {
  if (map_get(&p->values, name)) {
    say(p, arena_printf(p->arena, "%%%s is defined twice", name));
    return;
  }
  map_set(&p->values, name, v);
  size_t n = ir_base_name(name);
  if (strspn(name, "0123456789") < n) v->name = arena_strndup(p->arena, name, n);
}

static const char *value_name(parser *p) {
  if (!need(p, "%")) return NULL;
  return isspace((unsigned char)*p->at) ? expected(p, "a name") : word(p, "a name", true);
}

static ir_value *use(parser *p) {
  const char *name = value_name(p);
  if (!name) return NULL;
  ir_value *v = map_get(&p->values, name);
  return v ? v : say(p, arena_printf(p->arena, "%%%s is not defined above", name));
}

// The op table says how to read the value.
static void attribute(parser *p, ir_op *op) {
  const char *key = word(p, "the name of an attribute", false);
  if (!key || !need(p, "=")) return;
  ir_attr_slot slot[IR_MAX_ATTRS];
  int n = ir_attr_slots(ir_info(op->code), slot), i = 0;
  while (i < n && strcmp(slot[i].key, key) != 0) i++;
  if (i == n) {
    say(p, arena_printf(p->arena, "%s has no attribute `%s`", ir_info(op->code)->name, key));
    return;
  }
  if (ir_get_attr(op, key)) {
    say(p, arena_printf(p->arena, "attribute `%s` is given twice", key));
    return;
  }
  ir_attr a = {.key = key, .kind = slot[i].kind};
  VEC(int64_t) list = {0};
  switch (a.kind) {
    case ATTR_INT: a.i = integer(p); break;
    case ATTR_FLOAT: a.f = number(p); break;
    case ATTR_STR: a.s = string(p); break;
    case ATTR_INTS:
      if (!need(p, "[") || take(p, "]")) break;
      do vec_push(p->arena, &list, integer(p));
      while (take(p, ","));
      need(p, "]");
      break;
  }
  a.v = list.at;
  a.n = list.n;
  if (!p->error) ir_set_attr(p->m, op, a);
}

static void ops(parser *p, ir_region *r);

static void region(parser *p, ir_op *op, ir_region *r) {
  r->owner = op;
  if (++p->depth > MAX_NESTING) {
    say(p, "regions are nested too deeply");
    return;
  }
  if (!need(p, "(")) return;
  if (!take(p, ")")) {
    do {
      const char *name = value_name(p);
      if (!name || !need(p, ":")) return;
      ir_type t = type(p);
      const ir_place *at = place(p, &t);
      if (p->error) return;
      ir_value *arg = ir_region_arg(r, t, NULL);
      arg->place = at;
      define(p, name, arg);
    } while (take(p, ","));
    need(p, ")");
  }
  need(p, "{");
  ops(p, r);
  need(p, "}");
  p->depth--;
}

static void one_op(parser *p, ir_region *r) {
  VEC(const char *) names = {0};
  VEC(ir_value *) in = {0};
  VEC(ir_type) types = {0};
  VEC(const ir_place *) places = {0};
  VEC(ir_region *) regions = {0};
  space(p);
  if (*p->at == '%') {
    do vec_push(p->arena, &names, value_name(p));
    while (take(p, ","));
    need(p, "=");
  }
  const char *name = word(p, "an op", false);
  if (!name) return;
  ir_opcode code;
  if (!ir_opcode_parse(name, &code)) {
    say(p, arena_printf(p->arena, "there is no op `%s`", name));
    return;
  }
  if (!need(p, "(")) return;
  if (!take(p, ")")) {
    do vec_push(p->arena, &in, use(p));
    while (take(p, ","));
    need(p, ")");
  }
  if (p->error) return;
  // Results come last in the text, so attributes are gathered on an op in no region.
  ir_op scratch = {.code = code};
  if (take(p, "{")) {
    do attribute(p, &scratch);
    while (take(p, ","));
    need(p, "}");
  }
  if (take(p, "@")) scratch.path = string(p);
  scratch.recompute = take_word(p, "recompute");
  if (names.n) {
    need(p, ":");
    do {
      vec_push(p->arena, &types, type(p));
      vec_push(p->arena, &places, place(p, &vec_last(&types)));
    } while (!p->error && take(p, ","));
    if (!p->error && types.n != names.n) say(p, "the number of types is not the number of results");
  }
  if (p->error) return;
  // Regions are read before the results are named: they cannot see them.
  while (!p->error && take_word(p, "region")) {
    vec_push(p->arena, &regions, ir_region_new(p->m, NULL));
    region(p, NULL, vec_last(&regions));
  }
  if (p->error) return;
  ir_op *op = ir_op_raw(r, code, in.at, in.n, types.at, types.n);
  op->attr = scratch.attr;
  op->nattrs = scratch.nattrs;
  op->path = scratch.path;
  op->recompute = scratch.recompute;
  op->region = regions.at;
  op->nregions = regions.n;
  for (int i = 0; i < regions.n; i++) regions.at[i]->owner = op;
  for (int i = 0; i < names.n; i++) {
    op->out[i]->place = places.at[i];
    define(p, names.at[i], op->out[i]);
  }
}

// Ops up to the closing brace; `yield` comes last.
static void ops(parser *p, ir_region *r) {
  for (space(p); !p->error && *p->at && *p->at != '}'; space(p)) {
    if (take_word(p, "yield")) {
      do {
        ir_value *v = use(p);
        if (!v) return;
        vec_push(p->arena, &r->yield, v);
      } while (take(p, ","));
      return;
    }
    one_op(p, r);
  }
}

// ---- the module --------------------------------------------------------------------------------

static void state(parser *p) {
  ir_state s = {.name = string(p)};
  need(p, ":");
  s.type = type(p);
  int cls = one_of(p, ir_state_classes, 4, "weight, optimizer, copy or cache");
  int init = one_of(p, ir_init_names, 5, "how the state begins (zeros, normal(...), ...)");
  if (p->error) return;
  s.cls = (ir_state_class)cls;
  s.init = (ir_init_kind)init;
  if (take(p, "(")) {
    s.init_a = number(p);
    need(p, ")");
  }
  for (;;) {
    if (take_word(p, "layers")) {
      s.stacked = true;
      s.first = small_integer(p);
      if (!take_word(p, "step")) expected(p, "`step`");
      s.step = small_integer(p);
    } else if (take_word(p, "trained")) {
      s.trained = true;
    } else if (take_word(p, "decay")) {
      s.weight_decay = number(p);
    } else if (take_word(p, "lr")) {
      s.lr_scale = number(p);
    } else if (take_word(p, "of")) {
      s.of = string(p);
    } else {
      break;
    }
  }
  if (p->error) return;
  if (ir_state_find(p->m, s.name))
    say(p, arena_printf(p->arena, "state \"%s\" is given twice", s.name));
  else
    ir_state_add(p->m, s);
}

static void func(parser *p) {
  const char *name = word(p, "the name of a function", false);
  int kind = one_of(p, ir_entry_names, 4, "train, eval, prefill or decode");
  if (p->error) return;
  if (ir_func_find(p->m, name)) {
    say(p, arena_printf(p->arena, "function %s is given twice", name));
    return;
  }
  ir_func *f = ir_func_new(p->m, name, (ir_entry_kind)kind);
  p->values = (map){.arena = p->arena};
  need(p, "{");
  ops(p, f->body);
  need(p, "}");
}

static void module(parser *p) {
  if (!take_word(p, "module")) {
    expected(p, "`module`");
    return;
  }
  p->m->name = string(p);
  static const char *const stages[] = {"graph", "local"};
  p->m->stage = one_of(p, stages, 2, "graph or local") == 1 ? IR_LOCAL : IR_GRAPH;
  if (take_word(p, "samples")) p->m->batch = dim(p);
  if (take_word(p, "mesh")) mesh(p);
  while (take_word(p, "state")) state(p);
  while (take_word(p, "func")) func(p);
  space(p);
  if (!p->error && *p->at) expected(p, "`state`, `func` or the end");
}

ir_module *ir_parse(arena *a, const char *text, size_t n, const char **error) {
  *error = NULL;
  if (memchr(text, 0, n)) {
    *error = "the text holds a zero byte";
    return NULL;
  }
  parser p = {.arena = a, .m = ir_module_new(a, ""), .at = arena_strndup(a, text, n), .line = 1};
  p.indices = p.products = p.values = (map){.arena = a};
  module(&p);
  *error = p.error;
  return p.error ? NULL : p.m;
}
