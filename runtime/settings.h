// The job's settings: what the compiler resolved, changed by --set where the schedule allows it.
//
//   settings s;
//   STATUS_DO(settings_open(a, prog, &s));
//   STATUS_DO(settings_set(&s, "lr=1e-3,steps=200"));
//   STATUS_DO(settings_number(&s, "train.steps", 0, &steps));
//
// Names are full ones ("train.optimizer.lr"); --set takes any suffix that fits exactly one. What
// an executable can change: train.steps, train.seed, train.clip, train.optimizer.*,
// train.schedule and its arguments (schedule.warmup, ...), as far as the program has an argument
// for them. Everything else changes the schedule and is refused with the command that rebuilds.
#ifndef DSM_SETTINGS_H
#define DSM_SETTINGS_H

#include "runtime/base/map.h"
#include "runtime/base/status.h"
#include "runtime/prog.h"

// A value such as "cosine(warmup=200, floor=6e-5)" or "next_token", taken apart.
#define CALL_MAX_ARGS 8
typedef struct call_arg {
  const char *key;  // "" for a positional one
  double value;
} call_arg;
typedef struct call_text {
  const char *name;
  int nargs;
  call_arg arg[CALL_MAX_ARGS];
} call_text;

typedef struct settings {
  arena *arena;
  const prog *prog;
  map values;  // full name -> text
  call_text schedule;
} settings;

status *settings_open(arena *a, const prog *p, settings *out) STATUS_MUST_USE;
// "NAME=VALUE[,NAME=VALUE...]"
status *settings_set(settings *s, const char *assignments) STATUS_MUST_USE;

// NULL when the program has no such setting.
const char *settings_text(const settings *s, const char *name);
// `otherwise` when it is missing or `none`.
status *settings_number(const settings *s, const char *name, double otherwise,
                        double *out) STATUS_MUST_USE;
status *settings_whole(const settings *s, const char *name, int64_t otherwise,
                       int64_t *out) STATUS_MUST_USE;
status *settings_bool(const settings *s, const char *name, bool otherwise,
                      bool *out) STATUS_MUST_USE;

// The learning rate of step `step` (0 is the first) of `steps`.
double settings_lr(const call_text *schedule, double lr, int64_t step, int64_t steps);

status *settings_call(arena *a, const char *text, call_text *out) STATUS_MUST_USE;
// The value of a named argument, or of positional number `pos` (-1: none); else `otherwise`.
double settings_call_value(const call_text *c, const char *key, int pos, double otherwise);
// A number as the language writes it: 6e-4, 10k, 1M, 4Ki, 200GFLOPS. False when it is none.
bool settings_parse_number(const char *text, double *out);

#endif
