// Index rules of words: reading them, and matching them against the operands of an op.
//
// Matching binds each word to an index (an ellipsis to a list of indices) in three rounds:
//   1. plain dimensions bind their word, or are unified with what it is bound to;
//   2. the extents of words inside products come from round 1, from an attribute of the same name,
//      or from dividing the dimension by the other parts; dimensions are refined accordingly;
//   3. result dimensions are read off the bindings.
// For attention's "... s (kv_heads rep head)" with kv_heads = 8, rep = 4 and a width of 2048,
// `head` becomes 64 and the width is refined into 8 . 4 . 64.
#include "ir/rule.h"

#include <ctype.h>
#include <string.h>

// ---- reading -----------------------------------------------------------------------------------

typedef struct reader {
  ir_module *m;
  const char *at;
  ir_rule *rule;
  const char *error;
  bool spec;  // the user's own text: `,` separates, no products and no ellipses
} reader;

// The first mistake counts.
static void fail(reader *r, const char *why) {
  if (!r->error) r->error = why;
}

static void skip_space(reader *r) {
  while (isspace((unsigned char)*r->at)) r->at++;
}

static size_t word_length(const char *s) {
  size_t n = 0;
  while (isalnum((unsigned char)s[n]) || s[n] == '_') n++;
  return n;
}

// The number of a word, made when new.
static int word_of(reader *r, const char *text, size_t n) {
  ir_rule *rule = r->rule;
  for (int i = 0; i < rule->nwords; i++)
    if (strlen(rule->word[i]) == n && memcmp(rule->word[i], text, n) == 0) return i;
  if (rule->nwords == RULE_MAX_WORDS) {
    fail(r, "has too many names");
    return 0;
  }
  rule->word[rule->nwords] = arena_strndup(r->m->arena, text, n);
  return rule->nwords++;
}

// A name, "...name", or "(a b c)".
static void read_dim(reader *r, ir_rule_side *side) {
  if (side->n == IR_MAX_RANK) {
    fail(r, "has an operand with more than 8 dimensions");
    return;
  }
  ir_rule_dim *d = &side->dim[side->n++];
  if (!r->spec && strncmp(r->at, "...", 3) == 0) {
    size_t n = 3 + word_length(r->at + 3);
    d->ellipsis = true;
    d->nwords = 1;
    d->word[0] = word_of(r, r->at, n);
    r->at += n;
  } else if (!r->spec && *r->at == '(') {
    for (r->at++, skip_space(r); *r->at != ')' && !r->error; skip_space(r)) {
      size_t n = word_length(r->at);
      if (!n || d->nwords == 4) {
        fail(r, "has a bad product");
        return;
      }
      d->word[d->nwords++] = word_of(r, r->at, n);
      r->at += n;
    }
    r->at++;
  } else {
    size_t n = word_length(r->at);
    if (!n) {
      fail(r, "has something that is not a name, `,` or `->`");
      return;
    }
    d->nwords = 1;
    d->word[0] = word_of(r, r->at, n);
    r->at += n;
  }
}

// Reads "side; side; ..." up to the end of the text or "->".
static int read_sides(reader *r, ir_rule_side *side, bool results) {
  int n = 0;
  for (;;) {
    skip_space(r);
    if (!results && !r->spec && *r->at == '*') {
      r->rule->open = true;
      r->at++;
      skip_space(r);
      return n;
    }
    if (n == RULE_MAX_OPERANDS) {
      fail(r, "has too many operands");
      return n;
    }
    ir_rule_side *s = &side[n++];
    s->n = 0;
    while (*r->at && strncmp(r->at, "->", 2) != 0 && *r->at != (r->spec ? ',' : ';') && !r->error) {
      read_dim(r, s);
      skip_space(r);
    }
    if (r->error || !*r->at || *r->at == '-') return n;
    r->at++;
  }
}

// operands "->" results
static void read_rule(reader *r) {
  ir_rule *rule = r->rule;
  rule->nin = read_sides(r, rule->in, false);
  if (r->error) return;
  if (strncmp(r->at, "->", 2) != 0) {
    fail(r, "has no `->`");
    return;
  }
  r->at += 2;
  rule->nout = read_sides(r, rule->out, true);
  if (!r->error && *r->at) fail(r, "has two `->`");
}

static bool side_has(const ir_rule_side *s, int word) {
  for (int i = 0; i < s->n; i++)
    for (int k = 0; k < s->dim[i].nwords; k++)
      if (s->dim[i].word[k] == word) return true;
  return false;
}

// What only a user's spec can get wrong, and the kinds of its words.
static void finish_spec(reader *r) {
  ir_rule *rule = r->rule;
  if (rule->nin > 2) fail(r, "has more than two operands");
  if (rule->nout != 1) fail(r, "has more than one result");
  for (int k = 0; k <= rule->nin; k++) {
    const ir_rule_side *s = k < rule->nin ? &rule->in[k] : &rule->out[0];
    for (int i = 0; i < s->n; i++)
      for (int j = 0; j < i; j++)
        if (s->dim[i].word[0] == s->dim[j].word[0]) {
          fail(r,
               arena_printf(r->m->arena, "names `%s` twice in one %s",
                            rule->word[s->dim[i].word[0]], k < rule->nin ? "operand" : "result"));
          return;
        }
  }
  for (int w = 0; w < rule->nwords; w++) {
    bool left = false;
    for (int k = 0; k < rule->nin; k++) left |= side_has(&rule->in[k], w);
    bool right = side_has(&rule->out[0], w);
    if (right && !left)
      fail(r, arena_printf(r->m->arena, "has `%s` in the result only", rule->word[w]));
    if (!right) rule->kind[w] = KIND_SUM;
  }
}

static bool kind_parse(const char *s, size_t n, ir_kind *out) {
  static const struct {
    const char *name;
    ir_kind kind;
  } rows[] = {{"sum", KIND_SUM},     {"max", KIND_MAX},       {"lse", KIND_LSE},
              {"whole", KIND_WHOLE}, {"prefix", KIND_PREFIX}, {"table", KIND_TABLE},
              {"range", KIND_RANGE}};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (strlen(rows[i].name) == n && memcmp(s, rows[i].name, n) == 0) {
      *out = rows[i].kind;
      return true;
    }
  return false;
}

// "n:whole, v:table": words that the rule itself does not have (raw rules) are added.
static void read_kinds(reader *r, const char *kinds) {
  for (const char *p = kinds; *p;) {
    size_t space = strspn(p, ", ");
    p += space;
    size_t name = strcspn(p, ":");
    if (!name || p[name] != ':') break;
    size_t kind = strcspn(p + name + 1, ", ");
    static const char *const of_operands[] = {
        "linear:", "updates:", "over:",     "epilogue:", "rounds:",
        "work:",   "parts:",   "exchange:", "queries:"};
    bool index = true;
    for (size_t i = 0; i < sizeof of_operands / sizeof *of_operands; i++)
      index &= !str_starts(p, of_operands[i]);
    if (!index) {  // ir_is_linear, ir_updated, ir_rounds, ...
      p += name + 1 + kind;
      continue;
    }
    int w = word_of(r, p, name);
    if (!kind_parse(p + name + 1, kind, &r->rule->kind[w])) fail(r, "has an unknown kind");
    p += name + 1 + kind;
  }
}

// What a value of a scalar function is to some of its arguments: nothing to do with them, linear in
// them together, or neither.
enum { APART, LINEAR, NEITHER };

static int class_of(const ir_op *op, const unsigned char *arg, const unsigned char *made, int at) {
  bool among[IR_MAX_LEAVES] = {false}, any = false;
  for (int i = 0; i < op->nin; i++) {
    const ir_value *v = op->in[i];
    int c = APART;
    if (!v->def) c = arg[v->pos];
    for (int k = 0; v->def && k < at; k++)
      if (op->parent->ops.at[k] == v->def) c = made[k];
    if (c == NEITHER || (c == LINEAR && i >= IR_MAX_LEAVES)) return NEITHER;
    if (c == LINEAR) among[i] = any = true;
  }
  return !any ? APART : op->nin <= IR_MAX_LEAVES && ir_is_linear(op, among) ? LINEAR : NEITHER;
}

// Of a function of scalars: all that it gives is linear in the arguments `among`.
static bool function_is_linear(const ir_region *f, const bool *among) {
  unsigned char *arg = arena_alloc(f->module->arena, (size_t)f->args.n + 1);
  unsigned char *made = arena_alloc(f->module->arena, (size_t)f->ops.n + 1);
  for (int i = 0; i < f->args.n; i++) arg[i] = among[i] ? LINEAR : APART;
  for (int i = 0; i < f->ops.n; i++) made[i] = (unsigned char)class_of(f->ops.at[i], arg, made, i);
  for (int i = 0; i < f->yield.n; i++) {
    const ir_value *y = f->yield.at[i];
    int c = y->def ? APART : arg[y->pos];
    for (int k = 0; y->def && k < f->ops.n; k++)
      if (f->ops.at[k] == y->def) c = made[k];
    if (c != LINEAR) return false;
  }
  return f->yield.n > 0;
}

bool ir_is_linear(const ir_op *op, const bool *among) {
  const char *how = strstr(ir_info(op->code)->kinds, "linear:");
  if (!how) return false;
  how += strlen("linear:");
  if (str_starts(how, "function"))
    return op->region[0]->args.n == op->nin && function_is_linear(op->region[0], among);
  size_t letters = strcspn(how, ", ");
  bool all = str_starts(how, "all"), each = str_starts(how, "each");
  int n = 0;
  for (int i = 0; i < op->nin; i++) {
    n += among[i];
    bool may = all || each || (i < 26 && memchr(how, 'a' + i, letters));
    bool must = all || (!each && may);
    if (among[i] ? !may : must) return false;
  }
  return n > 0 && (!each || n == 1);
}

// The first letter of a word of the row's kinds, as the number of an operand; -1: no such word.
static int letter_of(const ir_op *op, const char *word) {
  const char *how = strstr(ir_info(op->code)->kinds, word);
  return how ? how[strlen(word)] - 'a' : -1;
}

int ir_base(const ir_op *op) {
  return ir_attr_int(op, "base", 0) ? letter_of(op, "epilogue:") : -1;
}

int ir_epilogue_at(const ir_op *op) {
  int at = letter_of(op, "epilogue:");
  return at < 0 || op->nin < at || ir_attr_int(op, "base", 0) ? -1 : at;
}

int ir_epilogue(const ir_op *op) { return op->nregions ? ir_epilogue_at(op) : -1; }

bool ir_accumulates(const ir_op *op) {
  return op->code == IR_accumulate || ir_attr_int(op, "accumulate", 0);
}

ir_dtype ir_rounds(const ir_op *op, int k) {
  const char *how = strstr(ir_info(op->code)->kinds, "rounds:");
  const char *to = how ? ir_attr_str(op, "round", NULL) : NULL;
  ir_dtype t = DT_COUNT;
  if (!to || k >= 26) return t;
  how += strlen("rounds:");
  if (!memchr(how, 'a' + k, strcspn(how, ", ")) || !ir_dtype_parse(to, &t)) return DT_COUNT;
  return t;
}

int ir_parts(const ir_op *op) {
  const char *how = strstr(ir_info(op->code)->kinds, "parts:");
  return how ? how[strlen("parts:")] - '0' : 0;
}

int ir_queries(const ir_op *op) {
  const char *which = strstr(ir_info(op->code)->kinds, "queries:");
  return which ? which[strlen("queries:")] - 'a' : -1;
}

bool ir_is_product(const ir_op *op) {
  return op->nin > 1 && strstr(ir_info(op->code)->kinds, "work:product");
}

const char *ir_rule_read(ir_module *m, const ir_op *op, ir_rule *out) {
  const ir_op_info *info = ir_info(op->code);
  memset(out, 0, sizeof *out);
  reader r = {.m = m, .rule = out, .at = info->rule};
  if (strcmp(info->rule, "*") == 0) {
    out->broadcast = true;
  } else if (str_starts(info->rule, "raw")) {
    out->raw = true;
    r.at += strlen("raw");
    if (*r.at) read_rule(&r);
  } else if (strcmp(info->rule, "spec") == 0) {
    out->spec = r.spec = true;
    r.at = ir_attr_str(op, "spec", "");
    read_rule(&r);
    if (!r.error) finish_spec(&r);
    if (r.error)
      return arena_printf(m->arena, "the rule \"%s\" %s", ir_attr_str(op, "spec", ""), r.error);
    return NULL;
  } else {
    read_rule(&r);
  }
  read_kinds(&r, info->kinds);
  if (r.error) IR_BUG("the rule of %s in ir/ops.def %s", info->name, r.error);
  return NULL;
}

void ir_rule_of(ir_module *m, const ir_op *op, ir_rule *out) {
  const char *error = ir_rule_read(m, op, out);
  if (error) IR_BUG("%s", error);
}

// ---- matching ----------------------------------------------------------------------------------

typedef struct match {
  ir_module *m;
  const ir_op *op;
  const ir_rule *rule;
  struct {
    ir_index *index;             // bound to; NULL while unknown
    int64_t size;                // 0 while unknown
    int from;                    // the operand that bound it, for messages
    bool list;                   // an ellipsis that has been met
    int n;                       // its length
    ir_index *dim[IR_MAX_RANK];  // its dimensions
  } word[RULE_MAX_WORDS];
  const char *error;
} match;

// "`q`" or "operand 1".
static const char *operand_name(const match *t, int k) {
  const char *name = t->op->in[k]->name;
  if (name) return arena_printf(t->m->arena, "`%s`", name);
  return arena_printf(t->m->arena, "operand %d", k + 1);
}

// What a message calls a dimension: the index's name, or the rule's word for it.
static const char *dim_name(const match *t, const ir_index *x, int word) {
  const char *name = ir_root((ir_index *)x)->name;
  if (!name) name = t->rule->word[word];
  return str_starts(name, "...") ? "a leading dimension" : arena_printf(t->m->arena, "`%s`", name);
}

// Unifies what one word names in two places, or says which sizes or refinements clash.
static void same_index(match *t, ir_index *bound, int from, ir_index *now, int k, int word) {
  if (ir_index_unify(t->m, bound, now)) return;
  const char *op = ir_info(t->op->code)->name, *name = dim_name(t, bound, word);
  if (bound->size != now->size)
    t->error = arena_printf(t->m->arena, "%s: %s is %lld in %s and %lld in %s", op, name,
                            (long long)bound->size, operand_name(t, from), (long long)now->size,
                            operand_name(t, k));
  else
    t->error =
        arena_printf(t->m->arena,
                     "%s: %s (%lld) is divided one way in %s and another way in %s, and "
                     "neither divides the other's parts",
                     op, name, (long long)bound->size, operand_name(t, from), operand_name(t, k));
}

// One dimension, one word.
static void bind_plain(match *t, int word, ir_index *x, int k) {
  if (t->word[word].index) {
    same_index(t, t->word[word].index, t->word[word].from, x, k, word);
    return;
  }
  t->word[word].index = x;
  t->word[word].size = x->size;
  t->word[word].from = k;
}

// An ellipsis stands for the same dimensions in every operand.
static void bind_list(match *t, int word, ir_index *const *dim, int n, int k) {
  if (t->word[word].list) {
    if (t->word[word].n != n) {
      t->error = arena_printf(t->m->arena,
                              "%s: %s is %s and %s is %s: their leading dimensions do not agree",
                              ir_info(t->op->code)->name, operand_name(t, t->word[word].from),
                              ir_type_text(t->m->arena, &t->op->in[t->word[word].from]->type),
                              operand_name(t, k), ir_type_text(t->m->arena, &t->op->in[k]->type));
      return;
    }
    for (int i = 0; i < n && !t->error; i++)
      same_index(t, t->word[word].dim[i], t->word[word].from, dim[i], k, word);
    return;
  }
  t->word[word].list = true;
  t->word[word].n = n;
  t->word[word].from = k;
  for (int i = 0; i < n; i++) t->word[word].dim[i] = dim[i];
}

// Where dimension i of a side lies in an operand whose ellipsis (if any) has length `len`.
static int position(const ir_rule_side *s, int i, int len) {
  for (int k = 0; k < i; k++)
    if (s->dim[k].ellipsis) return i - 1 + len;
  return i;
}

// The length the ellipsis of side s has in an operand of this rank, or -1 when the rank is wrong.
static int ellipsis_length(const ir_rule_side *s, int rank) {
  for (int i = 0; i < s->n; i++)
    if (s->dim[i].ellipsis) return rank >= s->n - 1 ? rank - (s->n - 1) : -1;
  return rank == s->n ? 0 : -1;
}

// Round 1 for one operand. Its products wait for round 2.
static void bind_operand(match *t, int k) {
  const ir_rule_side *s = &t->rule->in[k];
  const ir_type *type = &t->op->in[k]->type;
  int len = ellipsis_length(s, type->rank);
  if (len < 0) {
    bool open = ellipsis_length(s, IR_MAX_RANK) >= 0;
    t->error = arena_printf(t->m->arena, "%s: %s is %s, but needs %s%d dimension%s",
                            ir_info(t->op->code)->name, operand_name(t, k),
                            ir_type_text(t->m->arena, type), open ? "at least " : "",
                            open ? s->n - 1 : s->n, (open ? s->n - 1 : s->n) == 1 ? "" : "s");
    return;
  }
  for (int i = 0; i < s->n && !t->error; i++) {
    const ir_rule_dim *d = &s->dim[i];
    int at = position(s, i, len);
    if (d->ellipsis)
      bind_list(t, d->word[0], type->dim + at, len, k);
    else if (d->nwords == 1)
      bind_plain(t, d->word[0], type->dim[at], k);
  }
}

// Extents given by attributes of the same name as a word.
static void bind_attributes(match *t) {
  for (int w = 0; w < t->rule->nwords && !t->error; w++) {
    const ir_attr *a = ir_get_attr(t->op, t->rule->word[w]);
    if (!a || a->kind != ATTR_INT) continue;
    if (a->i < 1)
      t->error = arena_printf(t->m->arena, "%s: %s must be at least 1, not %lld",
                              ir_info(t->op->code)->name, a->key, (long long)a->i);
    else if (t->word[w].size && t->word[w].size != a->i)
      t->error = arena_printf(t->m->arena, "%s: %s is %lld, but %s has %lld",
                              ir_info(t->op->code)->name, a->key, (long long)a->i,
                              operand_name(t, t->word[w].from), (long long)t->word[w].size);
    t->word[w].size = a->i;
  }
}

static const char *product_text(const match *t, const ir_rule_dim *d) {
  sb s = {.arena = t->m->arena};
  for (int i = 0; i < d->nwords; i++) {
    if (i) sb_puts(&s, " × ");
    sb_puts(&s, t->rule->word[d->word[i]]);
    if (t->word[d->word[i]].size) sb_printf(&s, " %lld", (long long)t->word[d->word[i]].size);
  }
  return sb_str(&s);
}

static const char *product_name(const match *t, const ir_index *x) {
  const char *name = ir_root((ir_index *)x)->name;
  return name ? arena_printf(t->m->arena, "`%s`", name) : "a dimension";
}

// Finds the extent of a product's one unknown word, or checks the product when all are known.
// Returns false when two or more are unknown yet.
static bool solve_product(match *t, const ir_rule_dim *d, ir_index *x, int k) {
  int64_t known = 1;
  int unknown = -1;
  for (int i = 0; i < d->nwords; i++) {
    int w = d->word[i];
    if (!t->word[w].size) {
      if (unknown >= 0) return false;
      unknown = w;
    } else if (__builtin_mul_overflow(known, t->word[w].size, &known)) {
      known = INT64_MAX;
    }
  }
  if (unknown < 0 ? known == x->size : x->size % known == 0) {
    if (unknown >= 0) t->word[unknown].size = x->size / known;
    return true;
  }
  t->error = arena_printf(t->m->arena, "%s: %s of %s has extent %lld, which is not %s",
                          ir_info(t->op->code)->name, product_name(t, x), operand_name(t, k),
                          (long long)x->size, product_text(t, d));
  return true;
}

// Gives every word of a product an index and refines the dimension into them.
static void refine_product(match *t, const ir_rule_dim *d, ir_index *x, int k) {
  ir_index *part[4];
  for (int i = 0; i < d->nwords; i++) {
    int w = d->word[i];
    if (!t->word[w].index) {
      // One-letter words are the rule's own shorthand; as names they would only confuse.
      const char *name = strlen(t->rule->word[w]) > 1 ? t->rule->word[w] : NULL;
      t->word[w].index = ir_index_new(t->m, name, t->word[w].size);
      t->word[w].from = k;
    }
    part[i] = t->word[w].index;
  }
  if (ir_index_refine(t->m, x, part, d->nwords)) return;
  t->error = arena_printf(t->m->arena,
                          "%s: %s of %s cannot be seen as %s, because it is already divided "
                          "another way",
                          ir_info(t->op->code)->name, product_name(t, x), operand_name(t, k),
                          product_text(t, d));
}

typedef struct product_at {
  const ir_rule_dim *dim;
  ir_index *index;
  int operand;
  bool solved;
} product_at;

// The products of all operands, with the dimensions they stand for.
static int find_products(const match *t, product_at *out, int max) {
  int n = 0;
  for (int k = 0; k < t->rule->nin; k++) {
    const ir_rule_side *s = &t->rule->in[k];
    const ir_type *type = &t->op->in[k]->type;
    int len = ellipsis_length(s, type->rank);
    for (int i = 0; i < s->n; i++)
      if (!s->dim[i].ellipsis && s->dim[i].nwords > 1) {
        IR_CHECK(n < max);
        out[n++] = (product_at){&s->dim[i], type->dim[position(s, i, len)], k, false};
      }
  }
  return n;
}

// Round 2. One product may settle a word another one waits for, so it turns until nothing moves.
static void bind_products(match *t, const product_at *found, int n) {
  product_at p[RULE_MAX_OPERANDS];
  memcpy(p, found, sizeof *p * (size_t)n);
  for (bool moved = true; moved && !t->error;) {
    moved = false;
    for (int i = 0; i < n && !t->error; i++)
      if (!p[i].solved && solve_product(t, p[i].dim, p[i].index, p[i].operand))
        p[i].solved = moved = true;
  }
  for (int i = 0; i < n && !t->error; i++) {
    if (!p[i].solved)
      t->error = arena_printf(t->m->arena, "%s: cannot tell the extents in %s",
                              ir_info(t->op->code)->name, product_text(t, p[i].dim));
    else
      refine_product(t, p[i].dim, p[i].index, p[i].operand);
  }
}

static bool dims_equal(const ir_rule_dim *a, const ir_rule_dim *b) {
  return a->nwords == b->nwords &&
         memcmp(a->word, b->word, sizeof *a->word * (size_t)a->nwords) == 0;
}

// Round 3 for one dimension.
static ir_index *result_index(match *t, const ir_rule_dim *d, const product_at *p, int np) {
  if (d->nwords > 1)  // the operand's own dimension where it is the same product: its name is kept
    for (int i = 0; i < np; i++)
      if (dims_equal(p[i].dim, d)) return p[i].index;
  ir_index *part[4];
  int64_t size = 1;
  for (int i = 0; i < d->nwords; i++) {
    int w = d->word[i];
    if (!t->word[w].index && t->word[w].size)
      t->word[w].index = ir_index_new(t->m, t->rule->word[w], t->word[w].size);
    part[i] = t->word[w].index;
    if (!part[i]) IR_BUG("%s: word %s has no extent", ir_info(t->op->code)->name, t->rule->word[w]);
    if (__builtin_mul_overflow(size, part[i]->size, &size)) {
      t->error = arena_printf(t->m->arena, "%s: the extent %s is too large",
                              ir_info(t->op->code)->name, product_text(t, d));
      return part[0];
    }
  }
  if (d->nwords == 1) return part[0];
  ir_index *x = ir_index_new(t->m, NULL, size);
  IR_CHECK(ir_index_refine(t->m, x, part, d->nwords));
  return x;
}

const char *ir_rule_match(ir_module *m, const ir_op *op, const ir_rule *rule, ir_type *out) {
  match t = {.m = m, .op = op, .rule = rule};
  if (op->nin != rule->nin && !(rule->open && op->nin > rule->nin))
    return arena_printf(m->arena, "%s has %d operands, but its rule has %d",
                        ir_info(op->code)->name, op->nin, rule->nin);
  for (int k = 0; k < rule->nin && !t.error; k++) bind_operand(&t, k);
  if (!t.error) bind_attributes(&t);
  if (t.error) return t.error;
  product_at p[RULE_MAX_OPERANDS];
  int np = find_products(&t, p, RULE_MAX_OPERANDS);
  bind_products(&t, p, np);
  for (int k = 0; k < rule->nout && !t.error; k++) {
    const ir_rule_side *s = &rule->out[k];
    out[k].rank = 0;
    for (int i = 0; i < s->n; i++) {
      const ir_rule_dim *d = &s->dim[i];
      int n = d->ellipsis ? t.word[d->word[0]].n : 1;
      if (out[k].rank + n > IR_MAX_RANK)
        return arena_printf(m->arena, "%s: the result has more than %d dimensions",
                            ir_info(op->code)->name, IR_MAX_RANK);
      for (int j = 0; j < n; j++)
        out[k].dim[out[k].rank++] =
            d->ellipsis ? t.word[d->word[0]].dim[j] : result_index(&t, d, p, np);
    }
  }
  return t.error;
}
