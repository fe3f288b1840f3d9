// Checking sections against keys.def.
//
// Values are checked as far as they can be seen: a name or a sum may be anything that somebody
// else will compute, but a number has a unit here and now, and that is what people get wrong.
#include "frontend/keys.h"

#include <string.h>

#include "runtime/base/map.h"

typedef enum label_kind { MODEL, OWN, PATTERN, NUMBER, NOTHING } label_kind;
typedef enum status_kind { BUILT, PLANNED } status_kind;

typedef struct section_info {
  const char *kind, *parents;
  label_kind label;
  status_kind status;
  const char *help;
} section_info;

static const section_info sections[] = {
#define SECTION(KIND, PARENTS, LABEL, STATUS, HELP) {KIND, PARENTS, LABEL, STATUS, HELP},
#define KEY(SECTIONS, NAME, KIND, WHAT, VALUE, HELP)
#define CALL(GROUP, NAME, ARGS, HELP)
#include "frontend/keys.def"
#undef SECTION
#undef KEY
#undef CALL
};

static const key_info keys[] = {
#define SECTION(KIND, PARENTS, LABEL, STATUS, HELP)
#define KEY(SECTIONS, NAME, KIND, WHAT, VALUE, HELP) \
  {SECTIONS, NAME, KEY_##KIND, WHAT, VALUE, HELP},
#define CALL(GROUP, NAME, ARGS, HELP)
#include "frontend/keys.def"
#undef SECTION
#undef KEY
#undef CALL
};

static const call_info calls[] = {
#define SECTION(KIND, PARENTS, LABEL, STATUS, HELP)
#define KEY(SECTIONS, NAME, KIND, WHAT, VALUE, HELP)
#define CALL(GROUP, NAME, ARGS, HELP) {GROUP, NAME, ARGS, HELP},
#include "frontend/keys.def"
#undef SECTION
#undef KEY
#undef CALL
};

enum {
  NSECTIONS = sizeof sections / sizeof *sections,
  NKEYS = sizeof keys / sizeof *keys,
  NCALLS = sizeof calls / sizeof *calls,
  NAMES_MAX = 64,
};

const key_info *key_table(int *n) {
  *n = NKEYS;
  return keys;
}

const call_info *call_table(int *n) {
  *n = NCALLS;
  return calls;
}

// ---------------------------------------------------------------------------------------------
// Lists of words in the table
// ---------------------------------------------------------------------------------------------

// Takes the next word off a list separated by spaces; NULL at its end.
static const char *next_word(arena *a, const char **list) {
  while (**list == ' ') ++*list;
  size_t n = strcspn(*list, " ");
  if (n == 0) return NULL;
  const char *word = arena_strndup(a, *list, n);
  *list += n;
  return word;
}

static bool has_word(const char *list, const char *word) {
  size_t n = strlen(word);
  for (const char *p = list; (p = strstr(p, word)) != NULL; p += n)
    if ((p == list || p[-1] == ' ') && (p[n] == 0 || p[n] == ' ')) return true;
  return false;
}

static const section_info *section_find(const char *kind) {
  for (int i = 0; i < NSECTIONS; i++)
    if (strcmp(sections[i].kind, kind) == 0) return &sections[i];
  return NULL;
}

const key_info *key_find(const char *kind, const char *key) {
  const key_info *any = NULL;
  for (int i = 0; i < NKEYS; i++) {
    if (!has_word(keys[i].sections, kind)) continue;
    size_t n = strlen(keys[i].key);
    if (strcmp(keys[i].key, key) == 0) return &keys[i];
    if (strcmp(keys[i].key, "*") == 0)
      any = &keys[i];
    else if (n > 2 && keys[i].key[n - 1] == '*' && strncmp(keys[i].key, key, n - 1) == 0 &&
             key[n - 1])
      return &keys[i];
  }
  return any;
}

// ---------------------------------------------------------------------------------------------
// Values
// ---------------------------------------------------------------------------------------------

typedef struct check {
  arena *arena;
  diags *diags;
  bool automatic;       // `auto` is a value here
  const char *name;     // of the key or argument, for messages
  const char *example;  // a value of the right unit; NULL: the unit's usual one
} check;

// The unit of an expression as far as it shows; false when it does not.
static bool unit_of(const expr *e, unit *u) {
  unit l, r;
  switch (e->kind) {
    case EXPR_NUMBER: *u = e->number.unit; return true;
    case EXPR_UNARY: return e->unary.op == UNARY_NEG && unit_of(e->unary.operand, u);
    case EXPR_BINARY:
      if (!unit_of(e->binary.left, &l) || !unit_of(e->binary.right, &r)) return false;
      if (l == UNIT_COUNT) l = UNIT_NONE;
      if (r == UNIT_COUNT) r = UNIT_NONE;
      *u = l != UNIT_NONE ? l : r;
      return l == UNIT_NONE || r == UNIT_NONE || l == r;
    default: return false;
  }
}

static bool is_plain(unit u) { return u == UNIT_NONE || u == UNIT_COUNT; }

static const char *written(const check *c, const expr *e) { return span_text(c->arena, e->at); }

static diag *wrong_value(const check *c, const expr *e, const char *takes) {
  return diag_error(c->diags, e->at, DIAG_WRONG_VALUE, "`%s` takes %s", c->name, takes);
}

// A value that is no number where one is needed: names and calls are left to others, the rest can
// only be wrong.
static bool may_be_number(const expr *e) {
  return e->kind == EXPR_NUMBER || e->kind == EXPR_NAME || e->kind == EXPR_CALL ||
         e->kind == EXPR_UNARY || e->kind == EXPR_BINARY || e->kind == EXPR_IF ||
         e->kind == EXPR_INDEX;
}

static bool is_reserved_word(const expr *e) {
  return expr_is_name(e, "true") || expr_is_name(e, "false") || expr_is_name(e, "none") ||
         expr_is_name(e, "auto");
}

static void check_plain(const check *c, const expr *e, bool whole) {
  const char *takes = whole ? "a whole number" : "a number";
  unit u;
  if (!may_be_number(e) || is_reserved_word(e)) {
    wrong_value(c, e, takes);
    return;
  }
  if (unit_of(e, &u) && !is_plain(u)) {
    diag *d = diag_error(c->diags, e->at, DIAG_WRONG_UNIT, "`%s` takes %s, not %s", c->name, takes,
                         unit_name(u));
    const char *text = written(c, e);
    size_t n = strlen(text);
    if (e->kind == EXPR_NUMBER && n > 1 && text[n - 1] == 'B' && u == UNIT_BYTES) {
      // 7B is how people write seven billion, 7GB at times too.
      bool prefix = text[n - 2] < '0' || text[n - 2] > '9';
      const char *fix = arena_printf(c->arena, "%.*s%s", (int)n - 1, text, prefix ? "" : "G");
      diag_help(d, fix, prefix ? "write `%s`" : "`B` is bytes; for billions write `%s`", fix);
    }
    return;
  }
  if (whole && e->kind == EXPR_NUMBER && !e->number.integral)
    wrong_value(c, e, takes);
  else if (whole && e->kind == EXPR_UNARY && e->unary.op == UNARY_NEG &&
           e->unary.operand->kind == EXPR_NUMBER)
    wrong_value(c, e, "a whole number, not below 0");
}

// What to write instead of a bare number, and an example of the dimension.
static const char *unit_example(unit u) {
  switch (u) {
    case UNIT_BYTES: return "GiB";
    case UNIT_BYTES_PER_S: return "GB/s";
    case UNIT_FLOPS: return "TFLOPS";
    case UNIT_SECONDS: return "us";
    case UNIT_WATTS: return "W";
    case UNIT_USD_PER_H: return "USD/h";
    default: return "";
  }
}

static void check_unit(const check *c, const expr *e, unit want) {
  unit u;
  const char *suffix = unit_example(want);
  if (c->example && *c->example) suffix = c->example + strspn(c->example, "0123456789.");
  if (!may_be_number(e) || is_reserved_word(e)) {
    wrong_value(c, e, arena_printf(c->arena, "%s, such as `80%s`", unit_name(want), suffix));
    return;
  }
  if (!unit_of(e, &u) || u == want) return;
  if (e->kind == EXPR_NUMBER && u == UNIT_NONE && e->number.value == 0) return;
  const char *text = written(c, e);
  diag *d;
  if (is_plain(u)) {
    d = diag_error(c->diags, e->at, DIAG_WRONG_UNIT, "`%s` needs a unit: it is %s", c->name,
                   unit_name(want));
    const char *fix = arena_printf(c->arena, "%s%s", text, suffix);
    if (u == UNIT_COUNT) {  // 80G: the prefix is there, the unit itself is what is left out
      bool prefixed = want == UNIT_BYTES_PER_S || want == UNIT_FLOPS;
      fix = arena_printf(c->arena, "%s%s", text, want == UNIT_BYTES ? "B" : suffix + prefixed);
    }
    if (e->kind == EXPR_NUMBER) diag_help(d, fix, "write `%s`", fix);
  } else {
    d = diag_error(c->diags, e->at, DIAG_WRONG_UNIT, "`%s` is %s, not %s", c->name, unit_name(want),
                   unit_name(u));
    if (u == UNIT_BYTES && want == UNIT_BYTES_PER_S && e->kind == EXPR_NUMBER) {
      const char *fix = arena_printf(c->arena, "%s/s", text);
      diag_help(d, fix, "write `%s`", fix);
    } else {
      diag_label(d, "such as `80%s`", suffix);
    }
  }
}

// One of the words in a list; `!word` in the list is planned.
static void check_word(const check *c, const expr *e, const char *list) {
  const char *words[NAMES_MAX];
  int n = 0;
  for (const char *p = list, *w; (w = next_word(c->arena, &p)) != NULL && n < NAMES_MAX;) {
    bool planned = *w == '!';
    w += planned;
    if (expr_is_name(e, w)) {
      if (planned)
        diag_error(c->diags, e->at, DIAG_PLANNED, "`%s = %s` is planned, not built", c->name, w);
      return;
    }
    if (!planned) words[n++] = w;
  }
  if (e->kind == EXPR_NAME && n == 0 && !is_reserved_word(e)) return;
  if (e->kind == EXPR_IF) return;  // decided by constants elsewhere
  diag *d;
  if (n == 0) {
    wrong_value(c, e, "a name");
    return;
  }
  d = diag_error(c->diags, e->at, DIAG_WRONG_VALUE, "`%s` cannot be `%s`", c->name, written(c, e));
  const char *word = written(c, e);
  if (strcmp(word, "fp16") == 0 || strcmp(word, "float16") == 0 || strcmp(word, "half") == 0)
    diag_help(d, "f16", "write `f16`");
  else if (strcmp(word, "fp32") == 0 || strcmp(word, "float32") == 0)
    diag_help(d, "f32", "write `f32`");
  else if (strcmp(word, "bfloat16") == 0)
    diag_help(d, "bf16", "write `bf16`");
  else
    diag_did_you_mean(d, word, words, n);
  diag_list(d, "allowed", words, n);
}

// ---------------------------------------------------------------------------------------------
// Calls
// ---------------------------------------------------------------------------------------------

typedef struct parameter {
  const char *name, *kind;
  bool optional, many;
} parameter;

// Reads "lr:number eps:number? size:count..." into an array; returns how many.
static int parameters_of(arena *a, const char *args, parameter *out, int most) {
  int n = 0;
  for (const char *w; (w = next_word(a, &args)) != NULL && n < most; n++) {
    const char *colon = strchr(w, ':');
    char *kind = arena_strdup(a, colon ? colon + 1 : w);
    size_t k = strlen(kind);
    out[n] =
        (parameter){.name = colon ? arena_strndup(a, w, (size_t)(colon - w)) : "", .kind = kind};
    if (k && kind[k - 1] == '?') {
      out[n].optional = true;
      kind[k - 1] = 0;
    } else if (k > 3 && strcmp(kind + k - 3, "...") == 0) {
      out[n].many = out[n].optional = true;
      kind[k - 3] = 0;
    }
  }
  return n;
}

static void check_argument(const check *c, const expr *e, const char *kind) {
  if (strcmp(kind, "number") == 0) check_plain(c, e, false);
  if (strcmp(kind, "count") == 0) check_plain(c, e, true);
  if (strcmp(kind, "bytes") == 0) check_unit(c, e, UNIT_BYTES);
  if (strcmp(kind, "rate") == 0) check_unit(c, e, UNIT_BYTES_PER_S);
  if (strcmp(kind, "time") == 0) check_unit(c, e, UNIT_SECONDS);
  if (strcmp(kind, "bool") == 0) check_word(c, e, "true false");
  if (strcmp(kind, "numbers") == 0) {
    if (e->kind != EXPR_LIST)
      wrong_value(c, e, "a list of numbers in `[ ]`");
    else
      for (int i = 0; i < e->items.n; i++) check_plain(c, e->items.at[i], false);
  }
}

// "switch(bandwidth, latency)": how a call is written.
static const char *signature(arena *a, const call_info *call) {
  parameter p[16];
  int n = parameters_of(a, call->args, p, 16);
  sb s = {.arena = a};
  sb_printf(&s, "%s(", call->name);
  for (int i = 0; i < n; i++)
    sb_printf(&s, "%s%s%s", i ? ", " : "", p[i].name,
              p[i].many       ? ", ..."
              : p[i].optional ? "?"
                              : "");
  sb_put(&s, ')');
  return arena_strdup(a, sb_str(&s));
}

static void check_arguments(const check *c, const expr *e, const call_info *info) {
  parameter p[16];
  bool given[16] = {false};
  int n = parameters_of(c->arena, info->args, p, 16);
  const arg_list *args = &e->call.args;
  int place = 0;
  for (int i = 0; i < args->n; i++) {
    const arg *one = &args->at[i];
    int k = -1;
    if (one->name.text) {
      const char *names[16];
      for (int j = 0; j < n; j++) {
        names[j] = p[j].name;
        if (strcmp(p[j].name, one->name.text) == 0) k = j;
      }
      if (k < 0) {
        diag *d = diag_error(c->diags, one->name.at, DIAG_UNKNOWN_KEY,
                             "`%s` is not an argument of %s", one->name.text, info->name);
        diag_did_you_mean(d, one->name.text, names, n);
        if (n)
          diag_list(d, "allowed", names, n);
        else
          diag_note(d, "%s takes none", info->name);
        continue;
      }
    } else if (place < n) {
      k = p[place].many ? place : place++;
    } else {
      diag *d = diag_error(c->diags, one->at, DIAG_WRONG_VALUE, "%s takes %d argument%s",
                           info->name, n, n == 1 ? "" : "s");
      diag_note(d, "it is written %s", signature(c->arena, info));
      continue;
    }
    if (given[k] && !p[k].many) {
      diag_error(c->diags, one->at, DIAG_DUPLICATE_KEY, "`%s` is given twice", p[k].name);
      continue;
    }
    given[k] = true;
    check inner = *c;
    inner.example = NULL;
    inner.name = *p[k].name ? p[k].name : info->name;
    check_argument(&inner, one->value, p[k].kind);
  }
  for (int k = 0; k < n; k++) {
    if (given[k] || (p[k].optional && !p[k].many)) continue;
    if (p[k].many && strcmp(p[k].kind, "any") == 0) continue;
    diag *d =
        diag_error(c->diags, e->at, DIAG_MISSING_KEY, "%s needs its %s", info->name, p[k].name);
    diag_note(d, "it is written %s", signature(c->arena, info));
    return;
  }
}

static const call_info *call_find(const char *group, const char *name) {
  for (int i = 0; i < NCALLS; i++)
    if (strcmp(calls[i].group, group) == 0 && strcmp(calls[i].name, name) == 0) return &calls[i];
  return NULL;
}

static void check_call(const check *c, const expr *e, const char *group) {
  const char *names[NAMES_MAX];
  int n = 0;
  for (int i = 0; i < NCALLS; i++)
    if (strcmp(calls[i].group, group) == 0) names[n++] = calls[i].name;
  bool bare = e->kind == EXPR_NAME;
  const char *name = bare ? e->text : e->kind == EXPR_CALL ? e->call.name.text : NULL;
  span at = e->kind == EXPR_CALL ? e->call.name.at : e->at;
  const call_info *info = name ? call_find(group, name) : NULL;
  if (!info) {
    diag *d = diag_error(c->diags, at, DIAG_WRONG_VALUE, "`%s` cannot be `%s`", c->name,
                         name ? name : written(c, e));
    if (name) diag_did_you_mean(d, name, names, n);
    diag_list(d, "allowed", names, n);
    for (int i = 0; name && i < NCALLS; i++)
      if (strcmp(calls[i].name, name) == 0) {
        diag_note(d, "`%s` belongs to another key", name);
        break;
      }
    return;
  }
  if (!bare) {
    check_arguments(c, e, info);
    return;
  }
  parameter p[16];
  int k = parameters_of(c->arena, info->args, p, 16);
  for (int i = 0; i < k; i++)
    if (!p[i].optional) {
      diag *d = diag_error(c->diags, e->at, DIAG_MISSING_KEY, "`%s` needs its arguments", name);
      diag_note(d, "it is written %s", signature(c->arena, info));
      return;
    }
}

// COUNT * call(…), call(…) * COUNT or the call.
static void check_many(const check *c, const expr *e, const char *group) {
  if (e->kind == EXPR_BINARY && e->binary.op == BINARY_MUL) {
    const expr *l = e->binary.left, *r = e->binary.right;
    if (l->kind == EXPR_CALL) r = e->binary.left, l = e->binary.right;
    check_plain(c, l, true);
    check_call(c, r, group);
  } else {
    check_call(c, e, group);
  }
}

// 8 * a100 + 4 * b: what a level of a cluster is made of.
static void check_members(const check *c, const expr *e) {
  if (e->kind == EXPR_BINARY && e->binary.op == BINARY_ADD) {
    check_members(c, e->binary.left);
    check_members(c, e->binary.right);
    return;
  }
  if (e->kind == EXPR_BINARY && e->binary.op == BINARY_MUL) {
    const expr *l = e->binary.left, *r = e->binary.right;
    if (l->kind == EXPR_NAME && r->kind == EXPR_NUMBER) r = e->binary.left, l = e->binary.right;
    check_plain(c, l, true);
    if (r->kind == EXPR_NAME && !is_reserved_word(r)) return;
    e = r;
  }
  if (e->kind == EXPR_NAME && !is_reserved_word(e)) return;
  diag *d = wrong_value(c, e, "a sum of COUNT * NAME");
  diag_label(d, e->kind == EXPR_NUMBER ? "of what? write `%s * NAME`" : "such as `8 * NAME`",
             written(c, e));
}

static void check_mapping(const check *c, const expr *e, int depth) {
  if (e->kind == EXPR_STRING) return;
  if (e->kind == EXPR_CALL) {
    if (!call_find("mapping", e->call.name.text)) {
      check_call(c, e, "mapping");
      return;
    }
    for (int i = 0; i < e->call.args.n; i++) check_mapping(c, e->call.args.at[i].value, depth + 1);
    return;
  }
  if (depth > 0 && (e->kind == EXPR_NUMBER || e->kind == EXPR_LIST || e->kind == EXPR_NAME)) return;
  diag *d = wrong_value(c, e, "a string, or a call over strings");
  if (depth == 0 && e->kind == EXPR_NAME)
    diag_help(d, arena_printf(c->arena, "\"%s\"", e->text), "write \"%s\"", e->text);
}

static void check_list(const check *c, const expr *e, key_kind kind) {
  if (e->kind != EXPR_LIST) {
    wrong_value(c, e,
                kind == KEY_NAMES   ? "a list of names in `[ ]`"
                : kind == KEY_MESH  ? "a list such as `[pipeline(4), data(8)]`"
                : kind == KEY_CURVE ? "a list of pairs such as `[[1e8, 0.12], [1e12, 0.78]]`"
                                    : "a list of whole numbers in `[ ]`");
    return;
  }
  for (int i = 0; i < e->items.n; i++) {
    const expr *x = e->items.at[i];
    if (kind == KEY_COUNTS) check_plain(c, x, true);
    if (kind == KEY_NAMES && x->kind != EXPR_NAME) wrong_value(c, x, "names");
    if (kind == KEY_MESH) check_call(c, x, "mesh");
    if (kind == KEY_MESH && x->kind == EXPR_CALL)
      for (int j = 0; j < i; j++)
        if (expr_is_call(e->items.at[j], x->call.name.text))
          diag_error(c->diags, x->at, DIAG_DUPLICATE_KEY, "the axis `%s` is there twice",
                     x->call.name.text);
    if (kind != KEY_CURVE) continue;
    if (x->kind != EXPR_LIST || x->items.n != 2) {
      wrong_value(c, x, "pairs [FLOPs, share]");
      continue;
    }
    check_plain(c, x->items.at[0], false);
    check_plain(c, x->items.at[1], false);
  }
}

// ---------------------------------------------------------------------------------------------
// One value
// ---------------------------------------------------------------------------------------------

static void check_text(const check *c, const key_info *k, const expr *e) {
  if (k->kind == KEY_TEXTS && e->kind == EXPR_LIST) {
    for (int i = 0; i < e->items.n; i++)
      if (e->items.at[i]->kind != EXPR_STRING) wrong_value(c, e->items.at[i], "strings");
    return;
  }
  if (e->kind == EXPR_STRING || (e->kind == EXPR_NAME && has_word(k->what, e->text))) return;
  diag *d = wrong_value(c, e, "a string in quotes");
  if (e->kind == EXPR_NAME)
    diag_help(d, arena_printf(c->arena, "\"%s\"", e->text), "write \"%s\"", e->text);
}

static void check_value(const check *given, const key_info *k, const expr *e) {
  check with = *given;
  const check *c = &with;
  if (k->kind >= KEY_BYTES && k->kind <= KEY_PRICE && k->kind != KEY_SPEED) with.example = k->what;
  if (c->automatic && expr_is_name(e, "auto")) return;
  switch (k->kind) {
    case KEY_COUNT: check_plain(c, e, true); break;
    case KEY_NUMBER:
      if (e->kind == EXPR_NAME && has_word(k->what, e->text)) break;
      check_plain(c, e, false);
      break;
    case KEY_BOOL: check_word(c, e, "true false"); break;
    case KEY_BYTES: check_unit(c, e, UNIT_BYTES); break;
    case KEY_RATE: check_unit(c, e, UNIT_BYTES_PER_S); break;
    case KEY_SPEED: check_unit(c, e, UNIT_FLOPS); break;
    case KEY_TIME: check_unit(c, e, UNIT_SECONDS); break;
    case KEY_POWER: check_unit(c, e, UNIT_WATTS); break;
    case KEY_PRICE: check_unit(c, e, UNIT_USD_PER_H); break;
    case KEY_TEXTS:
    case KEY_TEXT: check_text(c, k, e); break;
    case KEY_WORD: check_word(c, e, k->what); break;
    case KEY_CALL: check_call(c, e, k->what); break;
    case KEY_COUNTS:
    case KEY_NAMES:
    case KEY_CURVE:
    case KEY_MESH: check_list(c, e, k->kind); break;
    case KEY_MEMBERS: check_members(c, e); break;
    case KEY_MANY: check_many(c, e, k->what); break;
    case KEY_MAPPING: check_mapping(c, e, 0); break;
    case KEY_FACTORED:
      if (e->kind == EXPR_LIST)
        check_list(c, e, KEY_COUNTS);
      else
        check_plain(c, e, true);
      break;
    case KEY_BYTES_OR_WORD:
      if (e->kind == EXPR_NAME)
        check_word(c, e, k->what);
      else if (e->kind == EXPR_BINARY && e->binary.op == BINARY_ADD && has_word(k->what, "full"))
        check_word(c, e->binary.left, k->what), check_word(c, e->binary.right, k->what);
      else
        check_unit(c, e, UNIT_BYTES);
      break;
    case KEY_LATER:
    case KEY_DERIVED: break;  // refused before
  }
}

// ---------------------------------------------------------------------------------------------
// Sections
// ---------------------------------------------------------------------------------------------

// All keys and nested sections of a section, and the dims, sorted.
static int allowed_in(arena *a, const char *kind, const char *const *dims, int ndims,
                      const char **out) {
  int n = 0;
  for (int i = 0; i < NKEYS; i++) {
    if (!has_word(keys[i].sections, kind) || keys[i].kind == KEY_DERIVED ||
        keys[i].kind == KEY_LATER || strcmp(keys[i].key, "*") == 0)
      continue;
    size_t len = strlen(keys[i].key);
    const char *name = keys[i].key;
    if (name[len - 1] == '*') {  // `matmul.*`: name the first as an example
      const char *what = keys[i].what,
                 *first = keys[i].kind == KEY_COUNT ? NULL : next_word(a, &what);
      name = arena_printf(a, "%.*s%s", (int)len - 1, name, first ? first : "NAME");
    }
    out[n++] = name;
  }
  for (int i = 0; i < NSECTIONS; i++)
    if (*sections[i].parents && has_word(sections[i].parents, kind) && sections[i].status == BUILT)
      out[n++] = sections[i].kind;
  for (int i = 0; i < ndims && n < NAMES_MAX; i++) {
    bool known = false;
    for (int j = 0; j < n; j++) known = known || strcmp(out[j], dims[i]) == 0;
    if (!known) out[n++] = dims[i];
  }
  for (int i = 1; i < n; i++)  // few: insertion sort
    for (int j = i; j > 0 && strcmp(out[j - 1], out[j]) > 0; j--) {
      const char *t = out[j];
      out[j] = out[j - 1];
      out[j - 1] = t;
    }
  return n;
}

// Words people bring from elsewhere; the key that says the same here.
static const char *synonym(const char *key) {
  static const char *const pairs[][2] = {
      {"lr", "optimizer = adamw(lr=...)"},
      {"learning_rate", "optimizer = adamw(lr=...)"},
      {"weight_decay", "optimizer = adamw(weight_decay=...)"},
      {"warmup", "schedule = cosine(warmup=...)"},
      {"batch_size", "batch"},
      {"dtype", "precision"},
      {"grad_clip", "clip"},
      {"max_steps", "steps"},
      {"epochs", "steps"},
      {"gradient_accumulation", "batch"},
  };
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
    if (strcmp(pairs[i][0], key) == 0) return pairs[i][1];
  return NULL;
}

static void unknown_key(arena *a, diags *d, const char *kind, span at, const char *key,
                        const char *const *dims, int ndims) {
  const char *names[NAMES_MAX + NSECTIONS];
  int n = allowed_in(a, kind, dims, ndims, names);
  diag *g = diag_error(d, at, DIAG_UNKNOWN_KEY, "`%s` is not a setting of %s", key, kind);
  const char *same = strcmp(kind, "train") == 0 ? synonym(key) : NULL;
  if (same)
    diag_label(g, "write `%s`", same);
  else
    diag_did_you_mean(g, key, names, n);
  diag_list(g, "allowed", names, n);
}

// `seq = 4k`, `param context = 4k`: right, but most often 4096 was meant.
static void note_decimal(arena *a, diags *d, const char *name, const expr *e) {
  if (!e || e->kind != EXPR_NUMBER || e->number.unit != UNIT_COUNT || !e->number.integral) return;
  const char *text = span_text(a, e->at);
  size_t n = strlen(text);
  if (n < 2 || text[n - 1] != 'k') return;
  diag *g = diag_remark(d, e->at, DIAG_DECIMAL_PREFIX, "`%s = %s` is %lld", name, text,
                        (long long)e->number.whole);
  const char *binary = arena_printf(a, "%.*sKi", (int)n - 1, text);
  diag_help(g, binary, "for %lld write `%s`", (long long)(e->number.whole / 1000 * 1024), binary);
}

static bool label_fits(arena *a, diags *d, const section *s, const section_info *info) {
  const char *needs = NULL;
  bool has = s->label.text != NULL;
  switch (info->label) {
    case MODEL:
      if (!has || s->label_kind != WORD_NAME) needs = "the model it is for";
      break;
    case OWN:
      if (!has || s->label_kind != WORD_NAME) needs = "a name of its own";
      break;
    case PATTERN:
      if (!has || s->label_kind != WORD_STRING) needs = "a pattern in quotes";
      break;
    case NUMBER:
      if (!has || s->label_kind != WORD_NUMBER) needs = "a number";
      break;
    case NOTHING:
      if (has) {
        diag_error(d, s->label.at, DIAG_SECTION_NAME, "`%s` has no name", s->kind.text);
        return false;
      }
  }
  if (needs) {
    diag *g = diag_error(d, has ? s->label.at : s->kind.at, DIAG_SECTION_NAME, "`%s` needs %s",
                         s->kind.text, needs);
    const char *example = info->label == PATTERN ? "\"*\"" : info->label == NUMBER ? "0" : "NAME";
    diag_label(g, "write `%s %s { ... }`", s->kind.text, example);
    return false;
  }
  bool job = info->label == MODEL;
  if (s->as.text && !job)
    diag_error(d, s->as.at, DIAG_SECTION_NAME, "`as` names jobs and name maps, not a %s",
               s->kind.text);
  (void)a;
  return true;
}

static void check_entries(arena *a, diags *d, const section *s, const char *const *dims, int ndims,
                          bool dims_known);

// A section in its place (parent NULL: alone in the file).
static void check_section(arena *a, diags *d, const section *s, const char *parent,
                          const char *const *dims, int ndims, bool dims_known) {
  const section_info *info = section_find(s->kind.text);
  if (!info) {
    const char *names[NSECTIONS];
    int n = 0;
    for (int i = 0; i < NSECTIONS; i++) {
      bool here = parent ? has_word(sections[i].parents, parent)
                         : !*sections[i].parents || *sections[i].parents == ' ';
      if (here && sections[i].status == BUILT) names[n++] = sections[i].kind;
    }
    diag *g = diag_error(d, s->kind.at, DIAG_UNKNOWN_SECTION, "there is no section `%s`%s%s",
                         s->kind.text, parent ? " in " : "", parent ? parent : "");
    if (n) {
      diag_did_you_mean(g, s->kind.text, names, n);
      diag_list(g, "allowed", names, n);
    } else {
      diag_note(g, "%s has no sections inside", parent);
    }
    return;
  }
  if (info->status == PLANNED) {
    diag *g = diag_error(d, s->kind.at, DIAG_PLANNED, "`%s` is planned, not built", s->kind.text);
    diag_note(g, "%s", info->help);
    return;
  }
  bool fits = parent ? has_word(info->parents, parent) : !*info->parents || *info->parents == ' ';
  if (!fits) {
    diag *g = parent ? diag_error(d, s->kind.at, DIAG_MISPLACED_SECTION,
                                  "`%s` does not belong in %s", s->kind.text, parent)
                     : diag_error(d, s->kind.at, DIAG_MISPLACED_SECTION,
                                  "`%s` does not stand alone", s->kind.text);
    if (*info->parents && *info->parents != ' ')
      diag_note(g, "it belongs in: %s", info->parents);
    else
      diag_note(g, "it stands alone in the file");
    return;
  }
  label_fits(a, d, s, info);
  check_entries(a, d, s, dims, ndims, dims_known);
}

static void check_required(diags *d, const section *s) {
  for (int i = 0; i < NKEYS; i++) {
    // A training job may get its required keys from --set: whoever resolves settings checks them.
    if (strcmp(keys[i].value, "required") != 0 || !has_word(keys[i].sections, s->kind.text))
      continue;
    if (strcmp(s->kind.text, "train") == 0 || section_get(s, keys[i].key)) continue;
    bool inner = false;  // a cluster whose levels are its sections takes the last one as member
    for (int j = 0; j < s->entries.n; j++) inner = inner || s->entries.at[j]->section;
    if (inner && strcmp(keys[i].key, "members") == 0) continue;
    diag *g = diag_error(d, s->head, DIAG_MISSING_KEY, "%s %s has no `%s`", s->kind.text,
                         s->label.text ? s->label.text : "", keys[i].key);
    diag_note(g, "%s", keys[i].help);
  }
}

// Rules between keys that a table row cannot say.
static void check_together(diags *d, const section *s) {
  if (strcmp(s->kind.text, "plan") == 0) {
    static const char *const flat[] = {"data", "pipeline", "tensor", "ulysses", "ring", "expert"};
    const entry *mesh = section_get(s, "mesh");
    for (size_t i = 0; mesh && i < sizeof flat / sizeof *flat; i++) {
      const entry *e = section_get(s, flat[i]);
      if (!e) continue;
      diag *g = diag_error(d, e->key.at, DIAG_CONFLICTING_KEYS, "`%s` is given here and in `mesh`",
                           flat[i]);
      diag_place_at(g, mesh->at, "a mesh says all sizes");
    }
  }
  if (strcmp(s->kind.text, "device") == 0) {
    bool speed = false;
    for (int i = 0; i < s->entries.n; i++)
      speed = speed || str_starts(s->entries.at[i]->key.text, "matmul.");
    if (!speed) {
      diag *g = diag_error(d, s->head, DIAG_MISSING_KEY, "device %s has no matmul speed",
                           s->label.text ? s->label.text : "");
      diag_note(g, "such as matmul.bf16 = 312TFLOPS");
    }
  }
}

static void check_key(arena *a, diags *d, const section *s, const entry *e, const char *const *dims,
                      int ndims, bool dims_known) {
  const char *kind = s->kind.text, *key = e->key.text;
  const key_info *k = key_find(kind, key);
  check c = {.arena = a, .diags = d, .name = key};
  c.automatic = !strcmp(kind, "plan") || !strcmp(kind, "layers") || !strcmp(kind, "state");
  bool train = strcmp(kind, "train") == 0, is_dim = false;
  for (int i = 0; i < ndims; i++) is_dim = is_dim || strcmp(dims[i], key) == 0;
  unit u;
  if (train && !k && !dims_known && e->key_kind == WORD_NAME && unit_of(e->value, &u) &&
      is_plain(u))
    is_dim = true;
  if (train && !k && is_dim) {
    check_plain(&c, e->value, true);
    note_decimal(a, d, key, e->value);
    return;
  }
  bool pattern = k && strcmp(k->key, "*") == 0;
  if (!k || (pattern && strcmp(kind, "layers") == 0 && e->key_kind != WORD_STRING)) {
    unknown_key(a, d, kind, e->key.at, key, dims, ndims);
    return;
  }
  size_t n = strlen(k->key);
  if (k->kind == KEY_LATER) {
    diag *g = diag_error(d, e->key.at, DIAG_PLANNED, "`%s` is planned, not built", key);
    diag_note(g, "%s", k->help);
  } else if (k->kind == KEY_DERIVED) {
    diag *g = diag_error(d, e->key.at, DIAG_DERIVED_KEY, "`%s` is derived, never typed", key);
    diag_note(g, "`batch` is all sequences of a step; to force a cut: --pin micro_batch=N");
  } else {
    // `matmul.bf16`: the second part out of the words, where the row has some.
    bool dotted = n > 2 && k->key[n - 1] == '*' && k->kind != KEY_COUNT;
    if (dotted && !has_word(k->what, key + n - 1)) {
      diag *g =
          diag_error(d, e->key.at, DIAG_UNKNOWN_KEY, "`%s` is not a setting of %s", key, kind);
      diag_note(g, "%.*s is followed by one of: %s", (int)n - 1, k->key, k->what);
      return;
    }
    if (!diags_within(d, e->value->at)) check_value(&c, k, e->value);
  }
}

static void check_entries(arena *a, diags *d, const section *s, const char *const *dims, int ndims,
                          bool dims_known) {
  map seen = {.arena = a};
  for (int i = 0; i < s->entries.n; i++) {
    entry *e = s->entries.at[i];
    if (e->section) {
      check_section(a, d, e->section, s->kind.text, NULL, 0, true);
      continue;
    }
    entry *first = map_get(&seen, e->key.text);
    if (first) {
      diag *g = diag_error(d, e->key.at, DIAG_DUPLICATE_KEY, "`%s` is set twice", e->key.text);
      diag_place_at(g, first->at, "first set here");
      continue;
    }
    map_set(&seen, e->key.text, e);
    check_key(a, d, s, e, dims, ndims, dims_known);
  }
  check_required(d, s);
  check_together(d, s);
}

void keys_check_section(arena *a, diags *d, const section *s, const char *const *dims, int ndims) {
  check_section(a, d, s, NULL, dims, ndims, dims != NULL);
}

// ---------------------------------------------------------------------------------------------
// Files
// ---------------------------------------------------------------------------------------------

// The body of a model of this file, through its variants; NULL when it is not here.
static const model *body_of(const file *f, const char *name) {
  for (int hops = 0; hops < 100; hops++) {
    const model *m = NULL;
    for (int i = 0; i < f->items.n; i++)
      if (f->items.at[i]->kind == ITEM_MODEL && str_eq(f->items.at[i]->model->name.text, name))
        m = f->items.at[i]->model;
    if (!m || !m->base.text) return m;
    name = m->base.text;
  }
  return NULL;
}

static void note_params(arena *a, diags *d, const model *m) {
  for (int i = 0; i < m->body.n; i++) {
    const stmt *s = m->body.at[i];
    for (int j = 0; s->kind == STMT_PARAM && j < s->binds.n; j++)
      if (str_eq(s->binds.at[j].name.text, "context") || str_eq(s->binds.at[j].name.text, "seq"))
        note_decimal(a, d, s->binds.at[j].name.text, s->binds.at[j].value);
  }
}

void keys_check_file(arena *a, diags *d, const file *f) {
  for (int i = 0; i < f->items.n; i++) {
    const item *it = f->items.at[i];
    if (it->kind == ITEM_MODEL) note_params(a, d, it->model);
    if (it->kind != ITEM_SECTION) continue;
    const section *s = it->section;
    const model *m = s->label.text ? body_of(f, s->label.text) : NULL;
    VEC(const char *) dims = {0};
    for (int j = 0; m && j < m->body.n; j++) {
      const stmt *t = m->body.at[j];
      for (int k = 0; t->kind == STMT_DIM && k < t->binds.n; k++)
        vec_push(a, &dims, t->binds.at[k].name.text);
    }
    check_section(a, d, s, NULL, dims.at, dims.n, m != NULL);
  }
}

bool keys_check_pin(arena *a, diags *d, const setting *s) {
  check c = {.arena = a, .diags = d, .automatic = true, .name = s->name.text};
  int before = diags_errors(d);
  const key_info *k = key_find("plan", s->name.text);
  if (k && k->kind == KEY_TEXT) return true;  // CLASS:HOME is not quoted there
  if (k)
    check_value(&c, k, s->value);
  else
    unknown_key(a, d, "plan", s->name.at, s->name.text, NULL, 0);
  return diags_errors(d) == before;
}
