// Jobs: what a model, a train section and `--set` come to, with every key checked.
//
// frontend/settings.c says which value a setting has; here the values become the fields of a job
// (frontend/sema.h): numbers within their bounds, calls such as adamw(...) taken apart, dims with
// their extents, rules for weights, maps of names.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "frontend/keys.h"
#include "frontend/sema_impl.h"
#include "frontend/settings_impl.h"

// ---------------------------------------------------------------------------------------------
// Keys
// ---------------------------------------------------------------------------------------------

static span value_span(const slot *s) { return s->given ? s->given->at : s->where; }

static int64_t whole_key(settings *st, const char *name, int64_t lo, int64_t otherwise) {
  slot *s = settings_key(st, name);
  const val *v = settings_slot_value(st, s);
  int64_t out = otherwise;
  if (!s->given && v->kind == VAL_ERROR) {
    if (st->lenient) {
      s->value = val_whole(otherwise);
      return otherwise;
    }
    span at = st->job->section ? st->job->section->head : st->body->name.at;
    diag *e = sema_error(st->lw, at, DIAG_MISSING_KEY, "%s has no `%s`",
                         st->job->section ? "the job" : "there is no job, and so", name);
    diag_note(e, "write `%s = N` in `train %s { ... }`, or give --set %s=N", name,
              st->body->name.text, name);
    return otherwise;
  }
  want_whole(st->lw, value_span(s), v, arena_printf(st->lw->arena, "`%s`", name), lo, INT64_MAX / 4,
             &out);
  return out;
}

static slot *part(settings *st, const char *call, const char *name) {
  const char *full = arena_printf(st->lw->arena, "train.%s.%s", call, name);
  for (int i = 0; i < st->slots.n; i++)
    if (str_eq(st->slots.at[i]->full, full)) return st->slots.at[i];
  return NULL;
}

// An argument of a call as a number of at least `lo` and below `hi`; 0 when the call has it not.
static double number_part(settings *st, const char *call, const char *name, double lo, double hi) {
  slot *s = part(st, call, name);
  if (!s) return 0;
  const val *v = settings_slot_value(st, s);
  double x = 0;
  if (!s->given && v->kind == VAL_ERROR) {
    sema_error(st->lw, s->where, DIAG_MISSING_ARGUMENT, "`%s` needs `%s`", call, name);
    return 0;
  }
  if (!want_number(st->lw, value_span(s), v, arena_printf(st->lw->arena, "`%s`", name), &x))
    return 0;
  if (x >= lo && x < hi) return x;
  char a[32], b[32];
  diag *e = sema_error(st->lw, value_span(s), DIAG_WRONG_VALUE, "`%s` is %s", name,
                       val_text(st->lw->arena, v));
  if (isfinite(hi))
    diag_note(e, "it must be at least %s and less than %s", str_double(a, lo), str_double(b, hi));
  else
    diag_note(e, "it must be at least %s", str_double(a, lo));
  return 0;
}

static void job_optimizer_of(settings *st) {
  job_optimizer *o = &st->job->optimizer;
  const char *name = settings_key(st, "optimizer")->value.text;
  o->kind = str_eq(name, "sgd") ? OPTIMIZER_SGD : OPTIMIZER_ADAMW;
  o->lr = number_part(st, "optimizer", "lr", 0, HUGE_VAL);
  o->eps = number_part(st, "optimizer", "eps", 0, HUGE_VAL);
  o->weight_decay = number_part(st, "optimizer", "weight_decay", 0, HUGE_VAL);
  o->momentum = number_part(st, "optimizer", "momentum", 0, 1);
  slot *nesterov = part(st, "optimizer", "nesterov"), *betas = part(st, "optimizer", "betas");
  if (nesterov)
    want_bool(st->lw, value_span(nesterov), settings_slot_value(st, nesterov), "`nesterov`",
              &o->nesterov);
  if (!betas) return;
  const val *b = settings_slot_value(st, betas);
  bool ok = b->kind == VAL_LIST && b->n == 2;
  for (int i = 0; ok && i < 2; i++)
    ok = b->items[i].kind == VAL_NUMBER && b->items[i].number >= 0 && b->items[i].number < 1;
  if (ok) {
    o->beta1 = b->items[0].number;
    o->beta2 = b->items[1].number;
  } else if (b->kind != VAL_ERROR) {
    sema_error(st->lw, value_span(betas), DIAG_WRONG_VALUE,
               "`betas` is a list of two numbers from 0 to below 1, such as [0.9, 0.95]");
  }
}

static void job_schedule_of(settings *st) {
  job_schedule *s = &st->job->schedule;
  const char *name = settings_key(st, "schedule")->value.text;
  s->kind = str_eq(name, "cosine")   ? SCHEDULE_COSINE
            : str_eq(name, "linear") ? SCHEDULE_LINEAR
                                     : SCHEDULE_CONSTANT;
  slot *w = part(st, "schedule", "warmup");
  if (w)
    want_whole(st->lw, value_span(w), settings_slot_value(st, w), "`warmup`", 0, INT64_MAX / 4,
               &s->warmup);
  s->floor = number_part(st, "schedule", "floor", 0, HUGE_VAL);
}

// Do the inputs look like a stream of tokens and its next ones?
static bool next_token_inputs(const model *m) {
  const type *tokens = NULL, *targets = NULL;
  int n = 0;
  for (int i = 0; i < m->body.n; i++) {
    const stmt *s = m->body.at[i];
    if (s->kind != STMT_INPUT || s->value) continue;
    n++;
    if (str_eq(s->names.at[0].text, "tokens")) tokens = s->type;
    if (str_eq(s->names.at[0].text, "targets")) targets = s->type;
  }
  if (n != 2 || !tokens || !targets || tokens->extents.n != 2 || targets->extents.n != 2)
    return false;
  for (int i = 0; i < 2; i++) {
    const expr *a = tokens->extents.at[i].size, *b = targets->extents.at[i].size;
    if (!a || !b || a->kind != EXPR_NAME || !expr_is_name(b, a->text)) return false;
  }
  return true;
}

static void job_read_of(settings *st) {
  read_rule *r = &st->job->read;
  slot *s = settings_key(st, "read");
  const char *name = s->value.text;
  r->given = s->given != NULL;
  if (!r->given) {
    r->kind = next_token_inputs(st->body) ? READ_NEXT_TOKEN : READ_TENSORS;
    if (r->kind == READ_NEXT_TOKEN) s->value.text = "next_token";
    return;
  }
  r->kind = str_eq(name, "next_token") ? READ_NEXT_TOKEN
            : str_eq(name, "masked")   ? READ_MASKED
            : str_eq(name, "span")     ? READ_SPAN
                                       : READ_TENSORS;
  r->share = number_part(st, "read", "share", 0, 1);
  r->mean_span = number_part(st, "read", "mean", 0, HUGE_VAL);
}

static void job_precision_of(settings *st) {
  slot *s = settings_key(st, "precision");
  const val *v = settings_slot_value(st, s);
  st->job->precision = DT_f32;
  if (v->kind == VAL_ERROR) return;
  if (v->kind == VAL_DTYPE && (v->dtype == DT_f32 || v->dtype == DT_bf16)) {
    st->job->precision = v->dtype;
    return;
  }
  if (v->kind != VAL_DTYPE || !ir_dtype_float(v->dtype)) {
    diag *e = sema_error(st->lw, value_span(s), DIAG_WRONG_VALUE,
                         "`precision` is an element type of real numbers; this is %s", val_what(v));
    diag_note(e, "allowed: f32 bf16 f16");
  } else if (!st->lenient) {
    diag *e = sema_error(st->lw, value_span(s), DIAG_PLANNED,
                         "`precision = %s` is planned, not built", ir_dtype_name(v->dtype));
    diag_note(e, "what is built is f32 and bf16: --set precision=bf16");
  }
}

static void job_data_of(settings *st) {
  slot *s = settings_key(st, "data");
  const val *v = settings_slot_value(st, s);
  job *j = st->job;
  if (v->kind == VAL_NONE || v->kind == VAL_ERROR) return;
  const val *items = v->kind == VAL_LIST ? v->items : v;
  int n = v->kind == VAL_LIST ? v->n : 1;
  for (int i = 0; i < n; i++) {
    if (items[i].kind == VAL_STRING) {
      vec_push(st->lw->arena, &j->data_paths, items[i].text);
      continue;
    }
    sema_error(st->lw, value_span(s), DIAG_WRONG_VALUE,
               "`data` is a path in quotes or a list of them; this is %s", val_what(&items[i]));
    return;
  }
  if (n) j->data = j->data_paths.at[0];
}

static void job_dims_of(settings *st) {
  job *j = st->job;
  for (int i = 0; i < st->slots.n; i++) {
    slot *s = st->slots.at[i];
    if (s->kind != SLOT_DIM) continue;
    job_dim d = {.name = s->name};
    if (s->bound) {
      val v = eval(st->lw, s->bound);
      if (!want_whole(st->lw, s->bound->at, &v,
                      arena_printf(st->lw->arena, "the bound of `%s`", s->name), 1, SEMA_EXTENT,
                      &d.bound))
        continue;
    }
    if (str_eq(s->name, "batch")) {
      d.extent = j->batch;
      vec_push(st->lw->arena, &j->dims, d);
      continue;
    }
    const val *v = settings_slot_value(st, s);
    if (!s->given) {
      // A bounded dim that nobody set is as large as it may be.
      d.extent = d.bound ? d.bound : st->lenient ? 64 : 0;
      if (!d.extent) {
        diag *e = sema_error(st->lw, s->at.at, DIAG_UNSET_DIM,
                             "the job does not say how large `%s` "
                             "is",
                             s->name);
        diag_note(e, "write `%s = N` in `train %s { ... }`, or give --set %s=N", s->name,
                  st->body->name.text, s->name);
        continue;
      }
      s->value = val_whole(d.extent);
    } else if (!want_whole(st->lw, value_span(s), v, arena_printf(st->lw->arena, "`%s`", s->name),
                           1, SEMA_EXTENT, &d.extent)) {
      continue;
    }
    if (d.bound && d.extent > d.bound) {
      sb text = {.arena = st->lw->arena};
      expr_print(&text, s->bound);
      diag *e = sema_error(st->lw, value_span(s), DIAG_DIM_BOUND, "`%s` is %lld, above its bound",
                           s->name, (long long)d.extent);
      diag_place_at(e, s->at.at, "%s <= %s, which is %lld", s->name, sb_str(&text),
                    (long long)d.bound);
      continue;
    }
    vec_push(st->lw->arena, &j->dims, d);
  }
}

// ---- weights and names --------------------------------------------------------------------------

static void add_weight_rule(settings *st, const section *sec) {
  lowering *lw = st->lw;
  weight_rule r = {.pattern = sec->label.text, .at = sec->label.at};
  for (int i = 0; i < sec->entries.n; i++) {
    const entry *e = sec->entries.at[i];
    if (!e->value) continue;
    const char *key = e->key.text;
    val v = eval(lw, e->value);
    span at = e->value->at;
    if (str_eq(key, "train"))
      r.has_train = want_bool(lw, at, &v, "`train`", &r.train);
    else if (str_eq(key, "weight_decay"))
      r.has_weight_decay = want_number(lw, at, &v, "`weight_decay`", &r.weight_decay);
    else if (str_eq(key, "lr_scale"))
      r.has_lr_scale = want_number(lw, at, &v, "`lr_scale`", &r.lr_scale);
    else if (str_eq(key, "init"))
      r.has_init = want_init(lw, at, &v, &r.init);
    else if (str_eq(key, "load") && v.kind == VAL_STRING)
      r.load = v.text;
  }
  if (r.pattern) vec_push(lw->arena, &st->job->weight_rules, r);
}

static bool theirs_ok(settings *st, const expr *e) {
  if (e->kind == EXPR_STRING) return true;
  bool call = expr_is_call(e, "transpose") || expr_is_call(e, "concat") ||
              expr_is_call(e, "stack") || expr_is_call(e, "reshape");
  if (!call) {
    diag *d = sema_error(st->lw, e->at, DIAG_WRONG_VALUE,
                         "their side is names in quotes and invertible ops over them");
    diag_note(d, "allowed: \"name\" transpose(...) concat(...) stack(...) reshape(...)");
    return false;
  }
  for (int i = 0; i < e->call.args.n; i++) {
    const expr *x = e->call.args.at[i].value;
    bool shape = expr_is_call(e, "reshape") && i > 0;
    if (!shape && x->kind != EXPR_NUMBER && x->kind != EXPR_LIST && !theirs_ok(st, x)) return false;
  }
  return true;
}

static void add_name_map(settings *st, const section *sec) {
  name_map m = {.name = sec->as.text, .at = sec->head};
  for (int i = 0; i < sec->entries.n; i++) {
    const entry *e = sec->entries.at[i];
    if (e->value && theirs_ok(st, e->value)) {
      name_rule r = {e->key.text, e->key.at, e->value};
      vec_push(st->lw->arena, &m.rules, r);
    }
  }
  vec_push(st->lw->arena, &st->job->name_maps, m);
}

static void job_rules_of(settings *st) {
  const sema_program *p = st->lw->program;
  const section *sec = st->job->section;
  for (int i = 0; sec && i < sec->entries.n; i++)
    if (sec->entries.at[i]->section && str_eq(sec->entries.at[i]->section->kind.text, "weights"))
      add_weight_rule(st, sec->entries.at[i]->section);
  for (int i = 0; i < p->sections.n; i++)
    for (int k = 0; k < st->chain.n; k++)
      if (str_eq(p->sections.at[i]->kind.text, "names") &&
          str_eq(p->sections.at[i]->label.text, st->chain.at[k]))
        add_name_map(st, p->sections.at[i]);
}

// ---------------------------------------------------------------------------------------------
// The job
// ---------------------------------------------------------------------------------------------

// `update = step`: a word, not a name to look up.
static void job_update_of(settings *st) {
  slot *s = settings_key(st, "update");
  s->state = 2;
  s->value = s->fallback;
  if (!s->given || expr_is_name(s->given, "step")) return;
  bool fused = expr_is_name(s->given, "fused");
  diag *e = sema_error(st->lw, s->given->at, fused ? DIAG_PLANNED : DIAG_WRONG_VALUE,
                       fused ? "`update = fused` is planned, not built" : "`update` is a word");
  diag_list(e, "allowed", (const char *const[]){"step"}, 1);
}

static void list_settings(settings *st) {
  arena *a = st->lw->arena;
  for (int i = 0; i < st->slots.n; i++) {
    slot *s = st->slots.at[i];
    if (s->kind == SLOT_CALL)
      for (int k = 0; k < s->value.n; k++)
        s->value.items[k] = part(st, s->name, s->value.keys[k])->value;
    val v = s->value;
    job_setting out = {s->full, val_text(a, &v), s->origin};
    vec_push(a, &st->job->settings, out);
    if (s->kind != SLOT_PARAM) continue;
    val *kept = arena_new(a, val, 1);
    *kept = v;
    map_set(&st->job->params, s->name, kept);
  }
}

static job *resolve(sema_program *p, const model *m, const section *sec, setting_list sets,
                    bool lenient) {
  int errors = diags_errors(p->diags);
  arena *a = p->arena;
  job *j = arena_new(a, job, 1);
  lowering *lw = arena_new(a, lowering, 1);
  settings *st = arena_new(a, settings, 1);
  *lw = (lowering){.arena = a,
                   .diags = p->diags,
                   .program = p,
                   .job = j,
                   .settings = st,
                   .chain = "",
                   .fuel = SEMA_FUEL,
                   .ops = SEMA_OPS};
  lw->scope = scope_new(lw, NULL, 0);
  *st = (settings){.lw = lw, .job = j, .lenient = lenient};
  j->section = sec;
  j->model_name = m->name.text;
  j->name = sec && sec->as.text ? sec->as.text : m->name.text;
  j->params.arena = a;
  if (!settings_fill(st, m, sec, sets)) return NULL;

  for (int i = 0; i < st->slots.n; i++)
    if (st->slots.at[i]->kind == SLOT_PARAM) settings_slot_value(st, st->slots.at[i]);
  if (diags_errors(p->diags) != errors) return NULL;
  j->batch = whole_key(st, "batch", 1, 2);
  j->steps = whole_key(st, "steps", 0, 1);
  j->seed = whole_key(st, "seed", 0, 0);
  j->save_every = whole_key(st, "save_every", 0, 0);
  slot *shuffle = settings_key(st, "shuffle"), *clip = settings_key(st, "clip");
  want_bool(lw, value_span(shuffle), settings_slot_value(st, shuffle), "`shuffle`", &j->shuffle);
  const val *c = settings_slot_value(st, clip);
  if (c->kind != VAL_NONE && want_number(lw, value_span(clip), c, "`clip`", &j->clip) &&
      !(j->clip > 0))
    sema_error(lw, value_span(clip), DIAG_WRONG_VALUE, "`clip` is more than 0, or none");
  job_optimizer_of(st);
  job_schedule_of(st);
  job_read_of(st);
  job_precision_of(st);
  job_data_of(st);
  job_dims_of(st);
  job_rules_of(st);
  job_update_of(st);
  if (diags_errors(p->diags) != errors) return NULL;
  list_settings(st);
  return j;
}

static void which(sema_program *p, const char *what, name_list names) {
  diag *e = diag_error(p->diags, span_none(), DIAG_WHICH_JOB, "%s has several %s", p->path, what);
  for (int i = 0; i < names.n; i++) diag_note(e, "%s:%s", p->path, names.at[i]);
}

// Did keys.c report mistakes in this section? Then it is not looked at again.
static bool bad_section(sema_program *p, const section *s) {
  diags scratch;
  diags_init(&scratch, p->arena);
  keys_check_section(p->arena, &scratch, s, NULL, 0);
  return diags_errors(&scratch) > 0;
}

static const section *section_of_model(const sema_program *p, const char *model_name, int *n) {
  const section *found = NULL;
  *n = 0;
  for (int pass = 0; pass < 2 && !*n; pass++) {
    int from = pass ? p->main_sections : 0, to = pass ? p->sections.n : p->main_sections;
    for (int i = from; i < to; i++)
      if (str_eq(p->sections.at[i]->kind.text, "train") &&
          str_eq(p->sections.at[i]->label.text, model_name)) {
        found = p->sections.at[i];
        ++*n;
      }
  }
  return found;
}

static job *job_of_model(sema_program *p, const model *m, setting_list sets, bool lenient) {
  const section *sec = NULL;
  const model *at = m;
  for (int hops = 0; at && hops < 100; hops++) {
    int n;
    sec = section_of_model(p, at->name.text, &n);
    if (n > 1 && !lenient) {
      name_list names = {0};
      for (int i = 0; i < p->sections.n; i++) {
        const section *s = p->sections.at[i];
        if (str_eq(s->kind.text, "train") && str_eq(s->label.text, at->name.text))
          vec_push(p->arena, &names, s->as.text ? s->as.text : s->label.text);
      }
      which(p, "jobs for this model; say which", names);
      return NULL;
    }
    if (n) break;
    at = at->base.text ? map_get(&p->models, at->base.text) : NULL;
  }
  if (sec && bad_section(p, sec)) {
    if (!lenient) return NULL;
    sec = NULL;  // the mistakes are known; the model is still worth checking
  }
  return resolve(p, m, sec, sets, lenient);
}

static job *find_job(sema_program *p, const char *name, setting_list sets, bool lenient) {
  name_list jobs = {0}, models = {0};
  const section *only = NULL;
  for (int i = 0; i < p->sections.n; i++) {
    const section *s = p->sections.at[i];
    if (!str_eq(s->kind.text, "train") || !s->label.text) continue;
    const model *m = map_get(&p->models, s->label.text);
    bool asked = name && str_eq(s->as.text ? s->as.text : s->label.text, name);
    if ((asked && (s->as.text || !map_get(&p->models, name))) || (asked && m && s->as.text)) {
      if (!m) {
        sema_no_model(p, &s->label);
        return NULL;
      }
      return bad_section(p, s) ? NULL : resolve(p, m, s, sets, lenient);
    }
    if (i < p->main_sections) {
      only = s;
      vec_push(p->arena, &jobs, s->as.text ? s->as.text : s->label.text);
    }
  }
  if (!name && jobs.n == 1) {
    const model *m = map_get(&p->models, only->label.text);
    if (m) return bad_section(p, only) ? NULL : resolve(p, m, only, sets, lenient);
    sema_no_model(p, &only->label);
    return NULL;
  }
  if (!name && jobs.n > 1) {
    which(p, "jobs; say which", jobs);
    return NULL;
  }
  const file *f = p->files.at[0];
  for (int i = 0; i < f->items.n; i++)
    if (f->items.at[i]->kind == ITEM_MODEL)
      vec_push(p->arena, &models, f->items.at[i]->model->name.text);
  if (!name && models.n == 1) name = models.at[0];
  const model *m = name ? map_get(&p->models, name) : NULL;
  if (m) return job_of_model(p, m, sets, lenient);
  if (!name && models.n > 1) {
    which(p, "models and no job; say which", models);
    return NULL;
  }
  diag *e = name ? diag_error(p->diags, span_none(), DIAG_WHICH_JOB, "%s has no job or model `%s`",
                              p->path, name)
                 : diag_error(p->diags, span_none(), DIAG_WHICH_JOB, "%s has no model", p->path);
  for (int i = 0; i < jobs.n; i++) vec_push(p->arena, &models, jobs.at[i]);
  if (name) diag_did_you_mean(e, name, models.at, models.n);
  if (models.n) diag_list(e, "it has", models.at, models.n);
  return NULL;
}

job *sema_job(sema_program *p, const char *name, setting_list sets) {
  return find_job(p, name, sets, false);
}

job *sema_job_for_check(sema_program *p, const char *name, setting_list sets) {
  return find_job(p, name, sets, true);
}

int64_t job_dim_extent(const job *j, const char *name) {
  for (int i = 0; i < j->dims.n; i++)
    if (str_eq(j->dims.at[i].name, name)) return j->dims.at[i].extent;
  return 0;
}
