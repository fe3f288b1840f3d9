#include "runtime/settings.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"
#include "runtime/base/vec.h"

static const char *const schedules[] = {"constant", "cosine", "linear"};
static const char *const schedule_args[] = {"warmup", "floor"};

bool settings_parse_number(const char *text, double *out) {
  char *end;
  while (isspace((unsigned char)*text)) text++;
  if (!isdigit((unsigned char)*text) && !strchr("+-.", *text)) return false;
  double v = strtod(text, &end);
  if (end == text || !isfinite(v)) return false;
  static const struct {
    const char *prefix;
    double scale;
  } prefixes[] = {{"Ki", 0x1p10}, {"Mi", 0x1p20}, {"Gi", 0x1p30}, {"Ti", 0x1p40},
                  {"k", 1e3},     {"M", 1e6},     {"G", 1e9},     {"T", 1e12},
                  {"P", 1e15},    {"m", 1e-3},    {"u", 1e-6},    {"n", 1e-9}};
  for (size_t i = 0; *end && i < sizeof prefixes / sizeof *prefixes; i++)
    if (str_starts(end, prefixes[i].prefix)) {
      v *= prefixes[i].scale;
      end += strlen(prefixes[i].prefix);
      break;
    }
  if (str_starts(end, "FLOPS")) end += 5;
  while (isspace((unsigned char)*end)) end++;
  *out = v;
  return *end == 0;
}

// ---- calls ------------------------------------------------------------------------------------

static const char *trimmed(arena *a, const char *s, const char *end) {
  while (s < end && isspace((unsigned char)*s)) s++;
  while (end > s && isspace((unsigned char)end[-1])) end--;
  return arena_strndup(a, s, (size_t)(end - s));
}

status *settings_call(arena *a, const char *text, call_text *out) {
  memset(out, 0, sizeof *out);
  const char *open = strchr(text, '(');
  out->name = trimmed(a, text, open ? open : text + strlen(text));
  if (!open) return NULL;
  const char *close = strrchr(text, ')');
  if (!close || close < open || close[1 + strspn(close + 1, " \t")])
    return status_error("`%s` has no closing parenthesis at its end", text);
  const char *p = open + 1;
  while (p < close) {
    const char *end = p;
    while (end < close && *end != ',') end++;
    const char *eq = memchr(p, '=', (size_t)(end - p));
    if (out->nargs == CALL_MAX_ARGS) return status_error("`%s` has too many arguments", text);
    call_arg *arg = &out->arg[out->nargs];
    arg->key = eq ? trimmed(a, p, eq) : "";
    const char *value = trimmed(a, eq ? eq + 1 : p, end);
    if (*value || eq || end < close) {
      if (!settings_parse_number(value, &arg->value))
        return status_error("`%s` in `%s` is not a number", value, text);
      out->nargs++;
    }
    p = end + (end < close);
  }
  return NULL;
}

double settings_call_value(const call_text *c, const char *key, int pos, double otherwise) {
  int seen = 0;
  for (int i = 0; i < c->nargs; i++) {
    if (str_eq(c->arg[i].key, key)) return c->arg[i].value;
    if (!*c->arg[i].key && seen++ == pos) return c->arg[i].value;
  }
  return otherwise;
}

// ---- the schedule -----------------------------------------------------------------------------

static status *parse_schedule(settings *s, const char *text) {
  STATUS_TRY(settings_call(s->arena, text, &s->schedule), "setting train.schedule");
  call_text *c = &s->schedule;
  if (str_eq(c->name, "none") || str_eq(c->name, "")) c->name = "constant";
  bool known = false;
  for (size_t i = 0; i < sizeof schedules / sizeof *schedules; i++)
    known |= str_eq(c->name, schedules[i]);
  if (!known)
    return status_error("setting train.schedule: `%s` is none of constant, cosine, linear",
                        c->name);
  for (int i = 0; i < c->nargs; i++) {
    if (!*c->arg[i].key) {  // positional: warmup, floor
      if (i >= 2) return status_error("setting train.schedule: `%s` takes two arguments", text);
      c->arg[i].key = schedule_args[i];
    }
    const char *key = c->arg[i].key;
    if (!str_eq(key, "warmup") && !str_eq(key, "floor"))
      return status_error(
          "setting train.schedule: `%s` has no argument `%s`; it takes warmup, floor", c->name,
          key);
    if (c->arg[i].value < 0)
      return status_error("setting train.schedule: %s must not be negative", key);
  }
  return NULL;
}

double settings_lr(const call_text *c, double lr, int64_t step, int64_t steps) {
  double warmup = settings_call_value(c, "warmup", -1, 0),
         floor_lr = settings_call_value(c, "floor", -1, 0);
  if ((double)step < warmup) return lr * (double)(step + 1) / warmup;
  if (str_eq(c->name, "constant")) return lr;
  double span = (double)steps - warmup;
  double done = span > 0 ? ((double)step - warmup) / span : 1;
  if (done > 1) done = 1;
  double left = str_eq(c->name, "cosine") ? 0.5 * (1 + cos(3.141592653589793 * done)) : 1 - done;
  return floor_lr + (lr - floor_lr) * left;
}

// ---- reading ----------------------------------------------------------------------------------

status *settings_open(arena *a, const prog *p, settings *s) {
  memset(s, 0, sizeof *s);
  s->arena = a;
  s->prog = p;
  s->values.arena = a;
  for (uint32_t i = 0; i < p->nsettings; i++)
    map_set(&s->values, prog_text(p, p->settings[i].name),
            (void *)(uintptr_t)prog_text(p, p->settings[i].value));
  const char *schedule = settings_text(s, "train.schedule");
  return parse_schedule(s, schedule ? schedule : "constant");
}

const char *settings_text(const settings *s, const char *name) { return map_get(&s->values, name); }

status *settings_number(const settings *s, const char *name, double otherwise, double *out) {
  const char *text = settings_text(s, name);
  *out = otherwise;
  if (!text || str_eq(text, "none") || str_eq(text, "")) return NULL;
  if (settings_parse_number(text, out)) return NULL;
  return status_error("setting %s = %s is not a number", name, text);
}

status *settings_whole(const settings *s, const char *name, int64_t otherwise, int64_t *out) {
  double v;
  *out = otherwise;
  STATUS_DO(settings_number(s, name, (double)otherwise, &v));
  if (v != floor(v) || v < 0 || v > 0x1p53)
    return status_error("setting %s = %s is not a whole number", name, settings_text(s, name));
  *out = (int64_t)v;
  return NULL;
}

status *settings_bool(const settings *s, const char *name, bool otherwise, bool *out) {
  const char *text = settings_text(s, name);
  *out = otherwise;
  if (!text || str_eq(text, "none") || str_eq(text, "")) return NULL;
  *out = str_eq(text, "true") || str_eq(text, "1");
  if (*out || str_eq(text, "false") || str_eq(text, "0")) return NULL;
  return status_error("setting %s = %s is neither true nor false", name, text);
}

// ---- changing ---------------------------------------------------------------------------------

static bool changeable(const char *name) {
  return str_eq(name, "train.steps") || str_eq(name, "train.seed") || str_eq(name, "train.clip") ||
         str_eq(name, "train.schedule") || str_starts(name, "train.schedule.") ||
         str_starts(name, "train.optimizer.");
}

static bool fits(const char *full, const char *suffix) {
  if (str_eq(full, suffix)) return true;
  size_t n = strlen(full), m = strlen(suffix);
  return n > m && full[n - m - 1] == '.' && str_ends(full, suffix);
}

// The full name a suffix stands for.
static status *resolve(settings *s, const char *name, const char **full) {
  VEC(const char *) names = {0};
  arena *a = s->arena;
  for (int i = 0; i < s->values.n; i++) vec_push(a, &names, s->values.keys[i]);
  // What every job has, whether the program lists it or not.
  const char *const always[] = {
      "train.steps",           "train.seed",          "train.clip", "train.schedule",
      "train.schedule.warmup", "train.schedule.floor"};
  for (size_t i = 0; i < sizeof always / sizeof *always; i++)
    if (map_find(&s->values, always[i]) < 0) vec_push(a, &names, always[i]);

  sb hits = {.arena = a};
  int n = 0, n_changeable = 0;
  const char *only = NULL;
  for (int i = 0; i < names.n; i++) {
    if (str_eq(names.at[i], name)) {
      *full = names.at[i];
      return NULL;
    }
    if (!fits(names.at[i], name)) continue;
    sb_printf(&hits, "%s%s", n++ ? ", " : "", names.at[i]);
    if (changeable(names.at[i])) n_changeable++, *full = names.at[i];
    only = names.at[i];
  }
  if (n_changeable == 1) return NULL;
  if (n == 1) {
    *full = only;
    return NULL;
  }
  if (n > 1) return status_error("--set %s fits several settings: %s", name, sb_str(&hits));
  // Suggest by last parts: that is what people type.
  VEC(const char *) tails = {0};
  for (int i = 0; i < names.n; i++) {
    const char *dot = strrchr(names.at[i], '.');
    vec_push(a, &tails, dot ? dot + 1 : names.at[i]);
  }
  const char *last = strrchr(name, '.');
  const char *near = str_nearest(last ? last + 1 : name, tails.at, tails.n);
  if (near) return status_error("there is no setting `%s`; did you mean `%s`?", name, near);
  return status_error("there is no setting `%s`; `info` lists them", name);
}

static void put(settings *s, const char *full, const char *value) {
  map_set(&s->values, full, (void *)(uintptr_t)value);
}

// Whether kernels of this program read what the setting says.
static bool compiled_in(const settings *s, const char *full) {
  if (str_eq(full, "train.clip")) return prog_arg_find(s->prog, "clip") != NULL;
  if (str_eq(full, "train.optimizer.betas"))
    return prog_arg_find(s->prog, "beta1") && prog_arg_find(s->prog, "beta2");
  if (str_starts(full, "train.optimizer."))
    return prog_arg_find(s->prog, full + strlen("train.optimizer.")) != NULL;
  return true;
}

static status *assign_schedule_part(settings *s, const char *full, const char *value) {
  const char *key = full + strlen("train.schedule.");
  call_text *c = &s->schedule;
  int i = 0;
  double v;
  while (i < c->nargs && !str_eq(c->arg[i].key, key)) i++;
  if (i == CALL_MAX_ARGS) return status_error("too many arguments of train.schedule");
  if (!settings_parse_number(value, &v) || v < 0)
    return status_error("--set %s: `%s` is not a number", full, value);
  c->arg[i] = (call_arg){key, v};
  if (i == c->nargs) c->nargs++;
  put(s, full, value);
  return NULL;
}

static status *assign_betas(settings *s, const char *value) {
  double v;
  const char *comma = strchr(value, ','), *close = strchr(value, ']');
  if (*value != '[' || !comma || !close || close < comma || close[1])
    return status_error("--set betas takes two numbers such as [0.9, 0.95], not `%s`", value);
  const char *beta1 = trimmed(s->arena, value + 1, comma),
             *beta2 = trimmed(s->arena, comma + 1, close);
  if (!settings_parse_number(beta1, &v) || !settings_parse_number(beta2, &v))
    return status_error("--set betas: `%s` are not two numbers", value);
  put(s, "train.optimizer.beta1", beta1);
  put(s, "train.optimizer.beta2", beta2);
  put(s, "train.optimizer.betas", value);
  return NULL;
}

static status *assign(settings *s, const char *name, const char *value) {
  const char *full = NULL;
  STATUS_DO(resolve(s, name, &full));
  if (!changeable(full) || !compiled_in(s, full))
    return status_error(
        "%s is part of the compiled schedule: rebuild with `dsmc build --set %s=%s`", full, name,
        value);
  if (str_starts(full, "train.schedule.")) return assign_schedule_part(s, full, value);
  if (str_eq(full, "train.optimizer.betas")) return assign_betas(s, value);
  if (str_eq(full, "train.schedule")) {
    put(s, full, value);
    return parse_schedule(s, value);
  }
  double v;
  bool none = str_eq(full, "train.clip") && str_eq(value, "none");
  if (!none && !settings_parse_number(value, &v))
    return status_error("--set %s: `%s` is not a number", name, value);
  put(s, full, value);
  return NULL;
}

status *settings_set(settings *s, const char *text) {
  const char *p = text;
  while (*p) {
    int depth = 0;
    const char *end = p, *eq = NULL;
    for (; *end && !(*end == ',' && depth == 0); end++) {
      if (*end == '(' || *end == '[') depth++;
      if (*end == ')' || *end == ']') depth--;
      if (*end == '=' && depth == 0 && !eq) eq = end;
    }
    if (!eq) return status_error("--set takes NAME=VALUE, not `%.*s`", (int)(end - p), p);
    STATUS_DO(assign(s, trimmed(s->arena, p, eq), trimmed(s->arena, eq + 1, end)));
    p = end + (*end == ',');
  }
  return NULL;
}
