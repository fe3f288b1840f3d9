// Reading `--plan` and `--pin`: one list of keys, each with one reader, for sections and flags.
#include "frontend/verb_planfile.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/clusters.h"
#include "frontend/keys.h"
#include "frontend/sema_impl.h"
#include "passes/plan/show.h"

// Beyond this a value is made in chunks where it can be, unless `stream` says otherwise.
#define STREAM_BYTES ((int64_t)256 << 20)

plan_given plan_given_none(void) {
  return (plan_given){.pins = plan_pins_none(),
                      .recompute_text = "none",
                      .stream = STREAM_BYTES,
                      .matmul = CG_BUILTIN};
}

const plan_said *plan_given_said(const plan_given *g, const char *key) {
  for (int i = g->said.n - 1; i >= 0; i--)
    if (str_eq(g->said.at[i].key, key)) return &g->said.at[i];
  return NULL;
}

// ---- values -------------------------------------------------------------------------------------

// One key with its value, from wherever.
typedef struct reading {
  cli *c;
  const char *key;
  const expr *value;
  span at;  // of the key
  bool pinned;
  plan_given *out;
} reading;

static bool wrong(const reading *r, const char *what) {
  diag_error(&r->c->diags, r->value->at, DIAG_WRONG_VALUE, "`%s` is %s", r->key, what);
  return false;
}

static bool whole_of(const expr *e, int64_t *out) {
  if (e->kind != EXPR_NUMBER || !e->number.integral) return false;
  *out = e->number.whole;
  return true;
}

// Multiplies sizes of factors; false when one is none.
static bool factor(const reading *r, const expr *e, int64_t *n, bool data) {
  int64_t k;
  if (!whole_of(e, &k)) return wrong(r, "a whole number, a list of factors, or auto");
  if (k < 1) return wrong(r, "a size from 1 on");
  if (k > INT64_C(1) << 30 || *n * k > INT64_C(1) << 30) return wrong(r, "larger than any cluster");
  *n *= k;
  if (data) vec_push(r->c->arena, &r->out->data_factors, k);
  return true;
}

// The search cuts nothing over experts: a size above 1 would be left unheeded.
static bool set_axis(const reading *r, plan_axis x, int64_t n) {
  if (x == PLAN_EXPERT && n > 1) {
    diag_error(&r->c->diags, r->value->at, DIAG_PLANNED,
               "`expert` above 1 is planned, not built: no layer is cut by its experts yet");
    return false;
  }
  r->out->pins.size[x] = n;
  return true;
}

// A size, or the sizes of an axis's factors, which multiply.
static bool read_axis(const reading *r, plan_axis x) {
  const expr *e = r->value;
  int64_t n = 1;
  if (x == PLAN_DATA) r->out->data_factors.n = 0;
  if (e->kind != EXPR_LIST) {
    if (!factor(r, e, &n, x == PLAN_DATA)) return false;
  } else {
    for (int i = 0; i < e->items.n; i++)
      if (!factor(r, e->items.at[i], &n, x == PLAN_DATA)) return false;
  }
  return set_axis(r, x, n);
}

// [pipeline(4), data(2, 4)]: axes that are not there have one rank.
static bool read_mesh(const reading *r) {
  plan_given *g = r->out;
  for (int x = 0; x < PLAN_AXES; x++) g->pins.size[x] = 1;
  for (int i = 0; i < r->value->items.n; i++) {
    const expr *e = r->value->items.at[i];
    int x = 0;
    while (x < PLAN_AXES && !expr_is_call(e, plan_axis_name((plan_axis)x))) x++;
    if (x == PLAN_AXES || g->naxes == PLAN_AXES) return wrong(r, "a list of axes with sizes");
    int64_t n = 1;
    for (int k = 0; k < e->call.args.n; k++)
      if (!factor(r, e->call.args.at[k].value, &n, x == PLAN_DATA)) return false;
    if (!set_axis(r, (plan_axis)x, n)) return false;
    // The later of the two lies closer together.
    if (x == PLAN_ULYSSES || x == PLAN_RING) g->pins.context_first = x == PLAN_RING;
    g->axis[g->naxes++] = (plan_axis)x;
  }
  return true;
}

static bool read_order(const reading *r) {
  const expr *e = r->value;
  const char *name = e->kind == EXPR_NAME ? e->text : e->kind == EXPR_CALL ? e->call.name.text : "";
  int kind = -1;
  for (int k = PIPE_ONE_F_ONE_B; k <= PIPE_ZERO_BUBBLE; k++)
    if (str_eq(name, pipe_kind_name((pipe_kind)k))) kind = k;
  if (kind < 0) return wrong(r, "one_f_one_b, interleaved(CHUNKS), gpipe or zero_bubble");
  plan_pins *p = &r->out->pins;
  p->schedule = kind;
  int64_t chunks;
  if (e->kind != EXPR_CALL || e->call.args.n != 1 || !whole_of(e->call.args.at[0].value, &chunks))
    return true;
  const plan_said *other = plan_given_said(r->out, "interleave");
  if (other && other->pinned == r->pinned && p->interleave && p->interleave != chunks) {
    diag *d = diag_error(&r->c->diags, e->at, DIAG_CONFLICTING_KEYS,
                         "%" PRId64 " chunks here and interleave = %s", chunks, other->value);
    diag_place_at(d, other->at, "chunks are given here too");
    return false;
  }
  p->interleave = chunks;
  return true;
}

static bool read_home(const reading *r, plan_class class, plan_home home) {
  bool states = class == PLAN_OPTIMIZER || class == PLAN_PARAMETERS;
  if (home == PLAN_DISK && !states) {
    diag *e =
        diag_error(&r->c->diags, r->value->at, DIAG_PLANNED, "%s on the %s is planned, not built",
                   plan_class_name(class), plan_home_name(home));
    diag_note(e, "on the disk live parameters and optimizer, on the host all classes");
    return false;
  }
  r->out->pins.home[class] = (int)home;
  return true;
}

static int home_of(const char *name) {
  for (int i = 0; i < PLAN_HOMES; i++)
    if (str_eq(name, plan_home_name((plan_home)i))) return i;
  return -1;
}

static int class_of(const char *name) {
  for (int i = 0; i < PLAN_CLASSES; i++)
    if (str_eq(name, plan_class_name((plan_class)i))) return i;
  return -1;
}

// A word of CLASS:HOME that is none, beside those that are.
static bool no_such(const reading *r, const char *word, const char *what, bool home) {
  const char *names[(int)PLAN_CLASSES + (int)PLAN_HOMES];
  int n = home ? (int)PLAN_HOMES : (int)PLAN_CLASSES;
  for (int i = 0; i < n; i++)
    names[i] = home ? plan_home_name((plan_home)i) : plan_class_name((plan_class)i);
  diag *d = diag_error(&r->c->diags, r->value->at, DIAG_WRONG_VALUE, "`%s`: `%s` is no %s", r->key,
                       word, what);
  diag_did_you_mean(d, word, names, n);
  diag_list(d, home ? "homes" : "classes", names, n);
  return false;
}

// "optimizer:host+activations:device", or none.
static bool read_offload(const reading *r) {
  arena *a = r->c->arena;
  sb text = {.arena = a};
  expr_print(&text, r->value);
  const char *p = sb_str(&text);
  if (*p == '"') p = arena_strndup(a, p + 1, strlen(p) - 2);
  for (int i = 0; i < PLAN_CLASSES; i++) r->out->pins.home[i] = PLAN_DEVICE;
  if (str_eq(p, "none")) return true;
  while (*p) {
    size_t n = strcspn(p, "+");
    const char *one = arena_strndup(a, p, n), *colon = strchr(one, ':');
    if (!colon)
      return wrong(r,
                   "none, or CLASS:HOME, several joined by `+`, such as optimizer:host: classes "
                   "parameters gradients optimizer activations, homes device host disk");
    const char *word = arena_strndup(a, one, (size_t)(colon - one));
    int class = class_of(word), home = home_of(colon + 1);
    if (class < 0) return no_such(r, word, "class of bytes that has a home", false);
    if (home < 0) return no_such(r, colon + 1, "home", true);
    if (!read_home(r, (plan_class) class, (plan_home)home)) return false;
    p += n + (p[n] == '+');
  }
  return true;
}

// none|selective|full|BYTES, which has been checked.
static bool read_recompute(const reading *r) {
  plan_given *g = r->out;
  const expr *e = r->value;
  sb text = {.arena = r->c->arena};
  expr_print(&text, e);
  g->recompute_text = sb_str(&text);
  g->recompute_bytes = 0;
  g->pins.recompute = -1;
  g->pins.also = PLAN_KEEP;
  if (e->kind == EXPR_BINARY) {  // less + more
    for (int i = 0; i < PLAN_RECOMPUTES; i++) {
      const char *name = plan_recompute_name((plan_recompute)i);
      if (expr_is_name(e->binary.left, name)) g->pins.recompute = i;
      if (expr_is_name(e->binary.right, name)) g->pins.also = i;
    }
    g->recompute = RECOMPUTE_NONE;
    if (g->pins.recompute >= 0 && g->pins.also > g->pins.recompute) return true;
    return wrong(r,
                 "LESS + MORE, where MORE is computed again in as many layers as memory asks for: "
                 "none + selective, none + full or selective + full");
  }
  for (int i = 0; i < PLAN_RECOMPUTES; i++)
    if (expr_is_name(e, plan_recompute_name((plan_recompute)i))) {
      static const recompute_mode mode[PLAN_RECOMPUTES] = {RECOMPUTE_NONE, RECOMPUTE_SELECTIVE,
                                                           RECOMPUTE_FULL};
      g->recompute = mode[i];
      g->pins.recompute = i;
    }
  if (e->kind != EXPR_NUMBER) return true;
  g->recompute = RECOMPUTE_BYTES;
  g->recompute_bytes = e->number.integral ? e->number.whole : (int64_t)e->number.value;
  return true;
}

// A whole number from 1 on.
static bool read_count(const reading *r, int64_t *out) {
  int64_t n;
  if (!whole_of(r->value, &n) || n < 1) return wrong(r, "a whole number from 1 on");
  *out = n;
  return true;
}

static bool read_stages(const reading *r) {
  r->out->stages.n = 0;
  if (!r->value->items.n) return wrong(r, "a list of whole numbers, the layers of each stage");
  for (int i = 0; i < r->value->items.n; i++) {
    int64_t n;
    if (!whole_of(r->value->items.at[i], &n) || n < 0 || n > INT32_MAX)
      return wrong(r, "a list of whole numbers, the layers of each stage");
    vec_push(r->c->arena, &r->out->stages, n);
  }
  return true;
}

// 0..3, and as a pin also "N:RANKS", where so many ranks share a state.
static bool read_zero(const reading *r) {
  plan_given *g = r->out;
  int64_t n;
  const char *text = r->pinned && r->value->kind == EXPR_STRING ? r->value->text : NULL;
  if (text) {
    const char *ranks = text + 2;
    size_t digits = *text && text[1] ? strspn(ranks, "0123456789") : 0;
    if (*text < '0' || *text > '3' || text[1] != ':' || !digits || ranks[digits] || digits > 9 ||
        *ranks == '0')
      return wrong(r, "N:RANKS: 0, 1, 2 or 3, and how many ranks share a state");
    g->pins.zero = *text - '0';
    g->pins.zero_group = strtoll(ranks, NULL, 10);
    vec_push(r->c->arena, &g->said, (plan_said){"cut", text, r->value->at, true});
    return true;
  }
  if (!whole_of(r->value, &n) || n < 0 || n > 3) return wrong(r, "0, 1, 2 or 3");
  g->pins.zero = (int)n;
  return true;
}

// A plan's stages were cut for its other choices. What is pinned stays.
static void free_stages(plan_given *g) {
  const plan_said *s = plan_given_said(g, "stages");
  if (!s || !s->pinned) g->stages.n = 0;
}

// `auto`, or what a pin makes void: the plan's say is forgotten.
static void forget(const reading *r) {
  plan_given *g = r->out;
  const char *key = r->key;
  plan_given none = plan_given_none();
  for (int x = 0; x < PLAN_AXES; x++)
    if (str_eq(key, plan_axis_name((plan_axis)x))) {
      g->pins.size[x] = 0;
      g->naxes = 0;  // the order of a mesh was that of other sizes
      const plan_said *cut = plan_given_said(g, "cut");
      if (x == PLAN_DATA && !(cut && cut->pinned)) g->pins.zero_factor = 0;
      if (x == PLAN_PIPELINE) free_stages(g);
      if (x == PLAN_TENSOR) g->layers.n = 0;
    }
  if (str_eq(key, "zero")) g->pins.zero = -1, g->pins.zero_group = g->pins.zero_factor = 0;
  if (str_eq(key, "placement")) g->pins.context_first = -1, g->naxes = 0;
  if (str_eq(key, "micro_batch")) g->pins.micro_batch = 0;
  if (str_eq(key, "sequence_parallel")) g->pins.whole_stream = false;
  if (str_eq(key, "interleave")) {
    if (g->pins.schedule == PIPE_INTERLEAVED || g->pins.interleave > 1) free_stages(g);
    g->pins.interleave = 0;
  }
  if (str_eq(key, "order")) {
    g->pins.schedule = -1;
    g->pins.interleave = 0;
    free_stages(g);
  }
  if (str_eq(key, "stages")) {
    g->stages.n = 0;
    if (!plan_given_said(g, "pipeline") && !plan_given_said(g, "mesh"))
      g->pins.size[PLAN_PIPELINE] = 0;
  }
  if (str_eq(key, "offload"))
    for (int i = 0; i < PLAN_CLASSES; i++) g->pins.home[i] = -1;
  if (str_eq(key, "recompute")) {
    g->pins.recompute = g->pins.also = -1;
    g->recompute = none.recompute;
    g->recompute_bytes = 0;
    g->recompute_text = none.recompute_text;
  }
  if (str_eq(key, "stream")) g->stream = none.stream;
  if (str_eq(key, "matmul")) g->matmul = none.matmul;
}

static bool not_heeded(const reading *r, const char *what) {
  diag_error(&r->c->diags, r->at, DIAG_PLANNED, "`%s` in a plan is planned, not built", what);
  return false;
}

static bool read_value(const reading *r) {
  plan_given *g = r->out;
  const expr *e = r->value;
  const char *key = r->key;
  for (int x = 0; x < PLAN_AXES; x++)
    if (str_eq(key, plan_axis_name((plan_axis)x))) return read_axis(r, (plan_axis)x);
  if (str_eq(key, "mesh")) return read_mesh(r);
  if (str_eq(key, "order")) return read_order(r);
  if (str_eq(key, "offload")) return read_offload(r);
  if (str_eq(key, "recompute")) return read_recompute(r);
  if (str_eq(key, "micro_batch")) return read_count(r, &g->pins.micro_batch);
  if (str_eq(key, "interleave")) return read_count(r, &g->pins.interleave);
  if (str_eq(key, "zero")) return read_zero(r);
  if (str_eq(key, "sequence_parallel")) {
    g->pins.whole_stream = expr_is_name(e, "false");
    return true;
  }
  if (str_eq(key, "stages")) return read_stages(r);
  if (str_eq(key, "placement")) {
    g->pins.context_first = expr_is_name(e, "context_first");
    return true;
  }
  if (str_eq(key, "stream")) {
    if (expr_is_name(e, "none")) g->stream = 0;
    if (e->kind == EXPR_NUMBER) g->stream = (int64_t)e->number.value;
    return true;
  }
  if (str_eq(key, "matmul")) {
    g->matmul = expr_is_name(e, "openblas") ? CG_OPENBLAS : CG_BUILTIN;
    return true;
  }
  if (str_eq(key, "cluster")) {
    if (r->pinned) return wrong(r, "said by --cluster");
    if (e->kind != EXPR_STRING) return wrong(r, "a name in quotes, such as \"dgx-a100-80g:64\"");
    g->cluster = e->text;
    return true;
  }
  return not_heeded(r, key);
}

static bool read_one(const reading *r) {
  bool free = expr_is_name(r->value, "auto");
  if (r->pinned && str_eq(r->key, "mesh")) {
    diag *d = diag_error(&r->c->diags, r->at, DIAG_PLANNED, "`%s` is for a plan section", r->key);
    diag_note(d, "pin the sizes: data=4,pipeline=2");
    return false;
  }
  if (r->pinned || free) forget(r);
  if (r->pinned) free_stages(r->out);
  if (!free && !read_value(r)) return false;
  sb text = {.arena = r->c->arena};
  expr_print(&text, r->value);
  plan_said s = {r->key, sb_str(&text), r->value->at, r->pinned};
  vec_push(r->c->arena, &r->out->said, s);
  return true;
}

// `offload=optimizer:host` and `zero=1:8` are no expressions: on the command line such values get
// quotes.
static const char *quote_colons(arena *a, const char *text) {
  static const char *const keys[] = {"offload=", "zero="};
  sb s = {.arena = a};
  for (const char *p = text; *p;) {
    size_t key = 0, n = strcspn(p, ",");
    for (int i = 0; i < 2; i++)
      if (str_starts(p, keys[i])) key = strlen(keys[i]);
    if (key && p[key] != '"' && memchr(p + key, ':', n - key))
      sb_printf(&s, "%.*s\"%.*s\"", (int)key, p, (int)(n - key), p + key);
    else
      sb_putn(&s, p, n);
    p += n;
    if (*p) sb_put(&s, *p++);
  }
  return sb_str(&s);
}

// As many stages as layers are listed for, where nothing says how many. (Where something does, and
// says another number, plan_given_suits reports it.)
static void pin_stages(plan_given *g) {
  int64_t *size = &g->pins.size[PLAN_PIPELINE];
  if (g->stages.n && !*size) *size = g->stages.n;
  g->pins.nstages = *size == g->stages.n ? g->stages.n : 0;
  g->pins.stages = g->stages.at;
}

bool plan_given_pin(cli *c, const char *where, const char *text, plan_given *out) {
  text = quote_colons(c->arena, text);
  int errors = diags_errors(&c->diags);
  setting_list list =
      parse_settings(c->arena, &c->diags, source_from_text(c->arena, where, text, strlen(text)));
  if (diags_errors(&c->diags) != errors) return false;
  for (int i = 0; i < list.n; i++) {
    const setting *s = &list.at[i];
    reading r = {c, s->name.text, s->value, s->name.at, true, out};
    bool ranks = str_eq(s->name.text, "zero") && s->value->kind == EXPR_STRING;
    if (!(ranks || keys_check_pin(c->arena, &c->diags, s)) || !read_one(&r)) return false;
  }
  pin_stages(out);
  return true;
}

// ---- sections -----------------------------------------------------------------------------------

static bool conflict(const reading *r, const char *key) {
  const plan_said *s = plan_given_said(r->out, key);
  if (!s) return false;
  diag *d = diag_error(&r->c->diags, r->at, DIAG_CONFLICTING_KEYS,
                       "`%s` is said here and by `%s = %s`", r->key, key, s->value);
  diag_place_at(d, s->at, "said here too");
  return true;
}

// "data": all ranks that hold the same weights. "data.1": the innermost factors from 1 on.
static bool read_cut(const reading *r) {
  plan_given *g = r->out;
  const char *text = r->value->kind == EXPR_STRING ? r->value->text : "";
  if (str_eq(text, "data")) return true;
  if (!str_starts(text, "data.")) {
    diag_error(&r->c->diags, r->value->at, DIAG_PLANNED,
               "a state that is cut over `%s` is planned, not built: \"data\" is", text);
    return false;
  }
  int from = 0;
  const char *digits = text + 5;
  if (strlen(digits) == 1 && *digits >= '0' && *digits <= '9') from = *digits - '0';
  if (g->data_factors.n < 2 || from >= g->data_factors.n) {
    diag *d = diag_error(&r->c->diags, r->value->at, DIAG_CONFLICTING_KEYS,
                         "`data` has no factor `%s`", text);
    diag_note(d, "a mesh with data(2, 4) has data.0 of 2 and data.1 of 4");
    return false;
  }
  g->pins.zero_factor = 1;
  for (int i = from; i < g->data_factors.n; i++) g->pins.zero_factor *= g->data_factors.at[i];
  vec_push(r->c->arena, &g->said, (plan_said){r->key, text, r->value->at, false});
  return true;
}

static bool read_state(cli *c, const section *s, plan_given *g) {
  for (int i = 0; i < s->entries.n; i++) {
    const entry *e = s->entries.at[i];
    reading r = {c, e->key.text, e->value, e->key.at, false, g};
    if (expr_is_name(e->value, "auto")) continue;
    bool good = true;
    int class = class_of(r.key);
    if (str_eq(r.key, "zero")) {
      good = !conflict(&r, "zero") && read_one(&r);
    } else if (str_eq(r.key, "cut")) {
      good = read_cut(&r);
    } else if (class >= 0) {
      int home = e->value->kind == EXPR_NAME ? home_of(e->value->text) : -1;
      good = !conflict(&r, "offload") &&
             (home >= 0 ? read_home(&r, (plan_class) class, (plan_home)home)
                        : wrong(&r, "device, host or disk"));
      plan_said said = {r.key, home >= 0 ? e->value->text : "", e->value->at, false};
      if (good) vec_push(c->arena, &g->said, said);
    } else {
      good = not_heeded(&r, r.key);
    }
    if (!good) return false;
  }
  return true;
}

// layers "*" { "h.#.mlp.c_fc.weight" = "ffn/tensor" }: kept, to be compared.
static bool read_layers(cli *c, const section *s, plan_given *g) {
  bool all = str_eq(s->label.text, "*");
  for (int i = 0; i < s->entries.n; i++) {
    const entry *e = s->entries.at[i];
    reading r = {c, e->key.text, e->value, e->key.at, false, g};
    if (e->key_kind == WORD_STRING || expr_is_name(e->value, "auto")) continue;
    if (!all || !str_eq(r.key, "recompute")) return not_heeded(&r, r.key);
    if (conflict(&r, "recompute") || !read_one(&r)) return false;
  }
  vec_push(c->arena, &g->layers, s);
  return true;
}

static bool read_section(cli *c, const section *s, plan_given *g) {
  g->plan = s;
  // Sizes first: what is cut refers to them.
  for (int i = 0; i < s->entries.n; i++) {
    const entry *e = s->entries.at[i];
    if (e->section) continue;
    reading r = {c, e->key.text, e->value, e->key.at, false, g};
    if (!read_one(&r)) return false;
  }
  memcpy(g->planned_size, g->pins.size, sizeof g->planned_size);
  for (int i = 0; i < s->entries.n; i++) {
    const section *in = s->entries.at[i]->section;
    if (!in) continue;
    if (!(str_eq(in->kind.text, "state") ? read_state(c, in, g) : read_layers(c, in, g)))
      return false;
  }
  if (g->pins.schedule >= 0 && g->pins.schedule != PIPE_INTERLEAVED && g->pins.interleave > 1) {
    const plan_said *o = plan_given_said(g, "order"), *v = plan_given_said(g, "interleave");
    diag *d =
        diag_error(&c->diags, v ? v->at : o->at, DIAG_CONFLICTING_KEYS,
                   "`interleave` above 1 is the order interleaved(CHUNKS), not `%s`", o->value);
    diag_place_at(d, o->at, "the order is here");
    return false;
  }
  return true;
}

// The plan section NAME of these, or the only one.
static const section *named_plan(cli *c, section *const *list, int n, const char *name,
                                 const char *where) {
  VEC(const char *) names = {0};
  const section *only = NULL;
  for (int i = 0; i < n; i++) {
    const section *s = list[i];
    if (!str_eq(s->kind.text, "plan")) continue;
    const char *own = s->as.text ? s->as.text : s->label.text;
    if (name && own && str_eq(own, name)) return s;
    only = s;
    vec_push(c->arena, &names, own ? own : "");
  }
  if (!name && names.n == 1) return only;
  diag *d;
  if (name) {
    d = diag_error(&c->diags, span_none(), DIAG_UNDECLARED_NAME, "%s has no plan `%s`", where,
                   name);
    diag_did_you_mean(d, name, names.at, names.n);
    diag_note(d, "the name of a plan file has a `.` or a `/` in it");
  } else {
    d = diag_error(&c->diags, span_none(), DIAG_UNDECLARED_NAME,
                   names.n ? "%s has %d plans: write --plan %s:NAME" : "%s has no plan section",
                   where, names.n, where);
  }
  if (names.n) diag_list(d, "plans", names.at, names.n);
  return NULL;
}

static bool read_plan(cli *c, const sema_program *program, const char *which, plan_given *out) {
  arena *a = c->arena;
  if (!strpbrk(which, "./")) {
    const section *s =
        named_plan(c, program->sections.at, program->sections.n, which, program->path);
    return s && read_section(c, s, out);
  }
  const char *why, *path = which, *name = NULL, *colon = strrchr(which, ':');
  source *src = source_read(a, path, &why);
  if (!src && colon && colon[1] && !strchr(colon, '/')) {
    path = arena_strndup(a, which, (size_t)(colon - which));
    name = colon + 1;
    src = source_read(a, path, &why);
  }
  if (!src) {
    diag_error(&c->diags, span_none(), DIAG_CANNOT_READ, "cannot read %s: %s", path, why);
    return false;
  }
  int errors = diags_errors(&c->diags);
  file *f = parse_file(a, &c->diags, src);
  keys_check_file(a, &c->diags, f);
  if (diags_errors(&c->diags) != errors) return false;
  VEC(section *) list = {0};
  for (int i = 0; i < f->items.n; i++)
    if (f->items.at[i]->kind == ITEM_SECTION) vec_push(a, &list, f->items.at[i]->section);
  const section *s = named_plan(c, list.at, list.n, name, path);
  return s && read_section(c, s, out);
}

bool plan_given_read_plan(cli *c, const sema_program *program, const char *which, plan_given *out) {
  if (!read_plan(c, program, which, out)) return false;
  pin_stages(out);
  return true;
}

bool plan_given_read(cli *c, const sema_program *program, plan_given *out) {
  *out = plan_given_none();
  const char *plan = cli_get(c, OPT_PLAN);
  if (plan && !read_plan(c, program, plan, out)) return false;
  for (int i = 0; i < c->options[OPT_PIN].n; i++)
    if (!plan_given_pin(c, "--pin", c->options[OPT_PIN].at[i], out)) return false;
  pin_stages(out);
  return true;
}
