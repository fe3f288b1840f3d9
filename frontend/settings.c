// Settings: which value each param, dim and key of a job has.
//
// A *slot* is one setting with its full name ("gpt2.layers", "train.seq", "train.optimizer.lr"). It
// is filled four times, each time over the last: the text's default, the model's variants, the
// train section, `--set`. Values are evaluated when first asked for, so any may use any other, and
// one that uses itself is found.
//
// Two calls make slots of their own: `optimizer = adamw(lr=6e-4)` makes train.optimizer.lr, and so
// do `schedule` and `read`. They are known once the call itself is, so `--set optimizer=...` goes
// first.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "frontend/keys.h"
#include "frontend/sema_impl.h"
#include "frontend/settings_impl.h"

void sema_no_model(sema_program *p, const ident *name) {
  diag *e =
      diag_error(p->diags, name->at, DIAG_UNDECLARED_NAME, "there is no model `%s`", name->text);
  diag_did_you_mean(e, name->text, p->models.keys, p->models.n);
  if (p->models.n) diag_list(e, "models", p->models.keys, p->models.n < 30 ? p->models.n : 30);
}

// ---------------------------------------------------------------------------------------------
// Slots
// ---------------------------------------------------------------------------------------------

static slot *add_slot(settings *st, slot_kind kind, const char *prefix, const char *name) {
  arena *a = st->lw->arena;
  slot *s = arena_new(a, slot, 1);
  s->kind = kind;
  s->name = name;
  s->full = arena_printf(a, "%s.%s", prefix, name);
  s->fallback = val_error();
  s->origin = "default";
  vec_push(a, &st->slots, s);
  return s;
}

// The first setting of this name that is no part of a call: params and dims before keys.
static slot *slot_named(const settings *st, const char *name) {
  for (int i = 0; i < st->slots.n; i++)
    if (str_eq(st->slots.at[i]->name, name) && st->slots.at[i]->kind != SLOT_PART)
      return st->slots.at[i];
  return NULL;
}

// The key or dim of this name: what a train section sets.
slot *settings_key(const settings *st, const char *name) {
  for (int i = 0; i < st->slots.n; i++)
    if (str_eq(st->slots.at[i]->name, name) && st->slots.at[i]->kind != SLOT_PART &&
        st->slots.at[i]->kind != SLOT_PARAM)
      return st->slots.at[i];
  return NULL;
}

static void fill(settings *st, slot *s, const expr *e, bool flag) {
  s->given = e;
  s->where = e->at;
  s->origin =
      flag ? "--set"
           : arena_printf(st->lw->arena, "%s:%d", e->at.file ? e->at.file->path : "?", e->at.line);
}

// Does `name` mean this slot: its full name or a suffix of it after a dot?
static bool fits(const settings *st, const slot *s, const char *name, bool *exact) {
  size_t n = strlen(name), m = strlen(s->full);
  *exact = str_eq(name, s->full);
  if (s->kind == SLOT_PARAM)
    for (int i = 0; i < st->chain.n; i++) {
      const char *c = st->chain.at[i];
      size_t k = strlen(c);
      if (strncmp(name, c, k) == 0 && name[k] == '.' && str_eq(name + k + 1, s->name))
        *exact = true;
    }
  return *exact || (m > n && s->full[m - n - 1] == '.' && str_eq(s->full + m - n, name));
}

static slot *find_slot(settings *st, const ident *name, bool report) {
  slot *found = NULL;
  name_list all = {0};
  arena *a = st->lw->arena;
  for (int i = 0; i < st->slots.n; i++) {
    bool exact;
    if (!fits(st, st->slots.at[i], name->text, &exact)) continue;
    if (exact) return st->slots.at[i];
    found = st->slots.at[i];
    vec_push(a, &all, found->full);
  }
  if (all.n == 1) return found;
  if (!report) return NULL;
  if (all.n > 1) {
    diag *e = sema_error(st->lw, name->at, DIAG_AMBIGUOUS_SETTING, "`%s` may be %d settings",
                         name->text, all.n);
    diag_list(e, "they are", all.at, all.n);
    return NULL;
  }
  diag *e =
      sema_error(st->lw, name->at, DIAG_UNKNOWN_SETTING, "there is no setting `%s`", name->text);
  name_list names = {0};
  for (int i = 0; i < st->slots.n; i++) {
    vec_push(a, &names, st->slots.at[i]->name);
    vec_push(a, &all, st->slots.at[i]->full);
  }
  bool dotted = strchr(name->text, '.') != NULL;
  diag_did_you_mean(e, name->text, dotted ? all.at : names.at, dotted ? all.n : names.n);
  diag_list(e, "settings", all.at, all.n);
  return NULL;
}

// ---------------------------------------------------------------------------------------------
// Values
// ---------------------------------------------------------------------------------------------

// What a literal is; VAL_ERROR when the text does not say.
static val_kind literal_kind(const expr *e) {
  if (!e) return VAL_ERROR;
  switch (e->kind) {
    case EXPR_NUMBER: return VAL_NUMBER;
    case EXPR_STRING: return VAL_STRING;
    case EXPR_LIST: return VAL_LIST;
    case EXPR_NAME:
      if (str_eq(e->text, "true") || str_eq(e->text, "false")) return VAL_BOOL;
      return VAL_ERROR;
    default: return VAL_ERROR;
  }
}

const val *settings_slot_value(settings *st, slot *s) {
  lowering *lw = st->lw;
  if (s->state == 2) return &s->value;
  if (s->state == 1) {
    sema_error(lw, s->given ? s->given->at : s->at.at, DIAG_SETTING_CYCLE,
               "`%s` is computed from itself", s->name);
    s->value = val_error();
    s->state = 2;
    return &s->value;
  }
  s->state = 1;
  val v = s->given ? eval(lw, s->given) : s->fallback;
  if (s->state == 2) return &s->value;  // a cycle: reported on the way
  s->state = 2;
  bool tensor = v.kind == VAL_TENSOR || v.kind == VAL_MULTI;
  val_kind text = literal_kind(s->text);
  if (tensor) {
    sema_error(lw, s->given->at, DIAG_NOT_CONSTANT, "`%s` must be known when compiling", s->name);
    v = val_error();
  } else if (s->kind == SLOT_PARAM && text != VAL_ERROR && v.kind != text && v.kind != VAL_ERROR &&
             v.kind != VAL_NONE && v.kind != VAL_AUTO) {
    val was = {.kind = text};
    diag *e = sema_error(lw, s->given->at, DIAG_WRONG_VALUE, "`%s` is %s; this is %s", s->name,
                         val_what(&was), val_what(&v));
    diag_place_at(e, s->at.at, "its default says so");
    v = val_error();
  } else if (!s->given && v.kind == VAL_ERROR && s->kind == SLOT_PARAM) {
    diag *e = sema_error(lw, s->at.at, DIAG_UNSET_PARAM, "the param `%s` has no value", s->name);
    diag_note(e, "set it in a variant (model big = %s(%s=...)) or by --set %s=...",
              st->body->name.text, s->name, s->name);
  }
  s->value = v;
  return &s->value;
}

val settings_value(lowering *lw, span at, const char *name, bool *found) {
  (void)at;
  slot *s = slot_named(lw->settings, name);
  *found = s && s->kind != SLOT_CALL;
  return *found ? *settings_slot_value(lw->settings, s) : val_error();
}

void settings_names(lowering *lw, name_list *out) {
  for (int i = 0; i < lw->settings->slots.n; i++)
    vec_push(lw->arena, out, lw->settings->slots.at[i]->name);
}

// ---------------------------------------------------------------------------------------------
// From the model
// ---------------------------------------------------------------------------------------------

static void duplicate(settings *st, const bind *b, const slot *old) {
  diag *e =
      sema_error(st->lw, b->name.at, DIAG_DUPLICATE_NAME, "`%s` is declared twice", b->name.text);
  diag_place_at(e, old->at.at, "first declared here");
}

static void model_slots(settings *st, const char *model_name) {
  for (int i = 0; i < st->body->body.n; i++) {
    const stmt *s = st->body->body.at[i];
    if (s->kind != STMT_PARAM && s->kind != STMT_DIM) continue;
    for (int k = 0; k < s->binds.n; k++) {
      const bind *b = &s->binds.at[k];
      bool param = s->kind == STMT_PARAM;
      const slot *old = slot_named(st, b->name.text);
      if (old && old->at.text) {
        duplicate(st, b, old);
        continue;
      }
      slot *now =
          add_slot(st, param ? SLOT_PARAM : SLOT_DIM, param ? model_name : "train", b->name.text);
      now->at = b->name;
      if (!param) {
        now->bound = b->value;
      } else if (b->value) {
        now->text = b->value;
        fill(st, now, b->value, false);
      }
    }
  }
}

// The chain of models from `m` to the one with the body; NULL after a report.
static const model *find_body(settings *st, const model *m) {
  lowering *lw = st->lw;
  for (;;) {
    for (int i = 0; i < st->chain.n; i++)
      if (str_eq(st->chain.at[i], m->name.text)) {
        sema_error(lw, m->name.at, DIAG_VARIANT_CYCLE, "`%s` is a variant of itself", m->name.text);
        return NULL;
      }
    vec_push(lw->arena, &st->chain, m->name.text);
    if (!m->base.text) return m;
    const model *base = map_get(&lw->program->models, m->base.text);
    if (!base) {
      sema_no_model(lw->program, &m->base);
      return NULL;
    }
    m = base;
  }
}

static void apply_variant(settings *st, const model *m) {
  lowering *lw = st->lw;
  for (int i = 0; i < m->args.n; i++) {
    const arg *a = &m->args.at[i];
    if (!a->name.text) {
      sema_error(lw, a->at, DIAG_UNKNOWN_ARGUMENT, "a variant sets params by name: %s(layers=48)",
                 m->base.text);
      continue;
    }
    slot *s = slot_named(st, a->name.text);
    for (int k = 0; k < i; k++)
      if (str_eq(m->args.at[k].name.text, a->name.text))
        sema_error(lw, a->at, DIAG_DUPLICATE_ARGUMENT, "`%s` is given twice", a->name.text);
    if (s && s->kind == SLOT_PARAM) {
      fill(st, s, a->value, false);
      continue;
    }
    diag *e = sema_error(lw, a->name.at, DIAG_UNKNOWN_ARGUMENT, "`%s` is no param of `%s`",
                         a->name.text, st->body->name.text);
    name_list names = {0};
    for (int k = 0; k < st->slots.n; k++)
      if (st->slots.at[k]->kind == SLOT_PARAM) vec_push(lw->arena, &names, st->slots.at[k]->name);
    diag_did_you_mean(e, a->name.text, names.at, names.n);
    diag_list(e, "params", names.at, names.n);
  }
}

// ---------------------------------------------------------------------------------------------
// From the job
// ---------------------------------------------------------------------------------------------

static void key_slots(settings *st) {
  static const char *const keys[] = {"batch", "steps",     "data",       "precision",
                                     "clip",  "optimizer", "schedule",   "read",
                                     "seed",  "shuffle",   "save_every", "update"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
    if (settings_key(st, keys[i])) continue;  // `batch` is a dim of the model too
    bool call =
        str_eq(keys[i], "optimizer") || str_eq(keys[i], "schedule") || str_eq(keys[i], "read");
    slot *s = add_slot(st, call ? SLOT_CALL : SLOT_KEY, "train", keys[i]);
    if (str_eq(keys[i], "precision")) s->fallback = (val){.kind = VAL_DTYPE, .dtype = DT_f32};
    if (str_eq(keys[i], "clip")) s->fallback = val_none();
    if (str_eq(keys[i], "data")) s->fallback = val_none();
    if (str_eq(keys[i], "seed") || str_eq(keys[i], "save_every")) s->fallback = val_whole(0);
    if (str_eq(keys[i], "shuffle")) s->fallback = val_bool(true);
    if (str_eq(keys[i], "update")) s->fallback = (val){.kind = VAL_OP, .text = "step"};
  }
}

static void apply_section(settings *st, const section *sec) {
  for (int i = 0; sec && i < sec->entries.n; i++) {
    const entry *e = sec->entries.at[i];
    if (!e->value) continue;
    slot *s = settings_key(st, e->key.text);
    if (s) {
      fill(st, s, e->value, false);
      continue;
    }
    diag *d = sema_error(st->lw, e->key.at, DIAG_UNKNOWN_KEY, "`%s` is not a setting of train",
                         e->key.text);
    if (slot_named(st, e->key.text)) {
      diag_note(d, "it is a param of the model: set it in a variant or by --set %s=...",
                e->key.text);
      continue;
    }
    name_list names = {0};
    for (int k = 0; k < st->slots.n; k++)
      if (settings_key(st, st->slots.at[k]->name) == st->slots.at[k])
        vec_push(st->lw->arena, &names, st->slots.at[k]->name);
    diag_did_you_mean(d, e->key.text, names.at, names.n);
    diag_list(d, "allowed", names.at, names.n);
  }
}

// The arguments of a call of keys.def, in order: "lr:number betas:numbers?".
static name_list call_args(arena *a, const char *group, const char *name, bool *known) {
  int n;
  const call_info *rows = call_table(&n);
  name_list out = {0};
  *known = false;
  for (int i = 0; i < n; i++) {
    if (!str_eq(rows[i].group, group) || !str_eq(rows[i].name, name)) continue;
    *known = true;
    for (const char *p = rows[i].args; *p;) {
      size_t len = strcspn(p, ":");
      vec_push(a, &out, arena_strndup(a, p, len));
      p += strcspn(p, " ");
      p += strspn(p, " ");
    }
  }
  return out;
}

static val list2(arena *a, double x, double y) {
  val v = {.kind = VAL_LIST, .n = 2, .items = arena_new(a, val, 2)};
  v.items[0] = val_real(x);
  v.items[1] = val_real(y);
  return v;
}

// What an argument that is left out is; VAL_ERROR: it cannot be.
static val part_default(arena *a, const char *call, const char *name) {
  if (str_eq(name, "betas")) return list2(a, 0.9, 0.999);
  if (str_eq(name, "eps")) return val_real(1e-8);
  if (str_eq(name, "weight_decay")) return val_real(str_eq(call, "adamw") ? 0.01 : 0);
  if (str_eq(name, "momentum") || str_eq(name, "floor")) return val_real(0);
  if (str_eq(name, "nesterov")) return val_bool(false);
  if (str_eq(name, "warmup")) return val_whole(0);
  return val_error();
}

static void unknown_call(settings *st, const slot *s, const char *name) {
  int n;
  const call_info *rows = call_table(&n);
  name_list names = {0};
  for (int i = 0; i < n; i++)
    if (str_eq(rows[i].group, s->name)) vec_push(st->lw->arena, &names, rows[i].name);
  diag *e = sema_error(st->lw, s->given->at, DIAG_WRONG_VALUE, "`%s` is no %s", name, s->name);
  diag_did_you_mean(e, name, names.at, names.n);
  diag_list(e, "allowed", names.at, names.n);
}

// Makes the slots of a call's arguments and fills them from the call.
static void expand_call(settings *st, slot *s) {
  lowering *lw = st->lw;
  arena *a = lw->arena;
  bool optimizer = str_eq(s->name, "optimizer");
  const char *name = optimizer ? "adamw" : str_eq(s->name, "schedule") ? "constant" : "none";
  const expr *e = s->given;
  if (e && e->kind == EXPR_CALL)
    name = e->call.name.text;
  else if (e && e->kind == EXPR_NAME)
    name = e->text;
  else if (e) {
    sema_error(lw, e->at, DIAG_WRONG_VALUE, "`%s` is a call such as %s", s->name,
               optimizer ? "adamw(lr=1e-4)" : "cosine(warmup=100)");
    return;
  }
  s->value = (val){.kind = VAL_RECORD, .text = name};
  s->state = 2;
  if (str_eq(name, "none") && str_eq(s->name, "read")) return;
  bool known;
  name_list args = call_args(a, s->name, name, &known);
  if (!known) {
    unknown_call(st, s, name);
    return;
  }
  int first = st->slots.n;
  for (int i = 0; i < args.n; i++) {
    slot *part = add_slot(st, SLOT_PART, arena_printf(a, "train.%s", s->name), args.at[i]);
    part->fallback = part_default(a, name, args.at[i]);
    if (!e && optimizer && str_eq(args.at[i], "lr")) part->fallback = val_real(3e-4);
    part->where = s->where;
  }
  for (int i = 0; e && e->kind == EXPR_CALL && i < e->call.args.n; i++) {
    const arg *x = &e->call.args.at[i];
    int k = x->name.text ? -1 : i < args.n ? i : -1;
    for (int m = 0; x->name.text && m < args.n; m++)
      if (str_eq(x->name.text, args.at[m])) k = m;
    if (k >= 0) {
      fill(st, st->slots.at[first + k], x->value, str_eq(s->origin, "--set"));
      continue;
    }
    diag *d = sema_error(lw, x->name.text ? x->name.at : x->at,
                         x->name.text ? DIAG_UNKNOWN_ARGUMENT : DIAG_TOO_MANY_ARGUMENTS,
                         "`%s` has no argument %s%s%s", name, x->name.text ? "`" : "",
                         x->name.text ? x->name.text : "here", x->name.text ? "`" : "");
    if (x->name.text) diag_did_you_mean(d, x->name.text, args.at, args.n);
    diag_list(d, "arguments", args.at, args.n);
  }
  val *items = arena_new(a, val, args.n);
  s->value.keys = args.at;
  s->value.items = items;
  s->value.n = args.n;
}

static void apply_sets(settings *st, setting_list sets) {
  for (int i = 0; i < sets.n; i++) {  // calls first: they say which parts there are
    slot *s = find_slot(st, &sets.at[i].name, false);
    if (s && s->kind == SLOT_CALL) fill(st, s, sets.at[i].value, true);
  }
  int n = st->slots.n;
  for (int i = 0; i < n; i++)
    if (st->slots.at[i]->kind == SLOT_CALL) expand_call(st, st->slots.at[i]);
  for (int i = 0; i < sets.n; i++) {
    slot *s = find_slot(st, &sets.at[i].name, true);
    if (s && s->kind != SLOT_CALL) fill(st, s, sets.at[i].value, true);
  }
}

bool settings_fill(settings *st, const model *m, const section *sec, setting_list sets) {
  const sema_program *p = st->lw->program;
  int errors = diags_errors(p->diags);
  st->job->body = st->body = find_body(st, m);
  if (!st->body) return false;
  model_slots(st, m->name.text);
  for (int i = st->chain.n - 2; i >= 0; i--)
    apply_variant(st, map_get(&p->models, st->chain.at[i]));
  key_slots(st);
  apply_section(st, sec);
  apply_sets(st, sets);
  return diags_errors(p->diags) == errors;
}
