#include "runtime/drivers/args.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"
#include "runtime/settings.h"

typedef enum opt_type { TEXT, WHOLE, NUMBER, FLAG, LIST } opt_type;

static const struct {
  const char *name, *metavar, *verbs, *help;
  opt_type type;
  size_t value, has;  // offsets in struct options
} opts[] = {
#define OPT(field, type, name, metavar, verbs, help) \
  {name, metavar, verbs, help, type, offsetof(options, field), offsetof(options, has_##field)},
#include "runtime/drivers/options.def"
};
enum { NOPTS = sizeof opts / sizeof *opts };

static const struct {
  const char *name, *help;
  char letter;
} verbs[] = {
    {"", "", '-'},
    {"train", "train from initial weights, --load or --resume", 'T'},
    {"eval", "mean loss over a data file", 'E'},
    {"generate", "go on from a prompt", 'G'},
    {"info", "model, settings, memory, kernels", 'I'},
    {"schedule", "the program: entries, runs, tasks, instructions", 'S'},
};
enum { NVERBS = sizeof verbs / sizeof *verbs };

static bool belongs(int k, verb v) {
  return str_eq(opts[k].verbs, "*") || strchr(opts[k].verbs, verbs[v].letter);
}

void args_help(FILE *out, const char *exe, verb v) {
  if (v == VERB_NONE) {
    fprintf(out, "usage: %s VERB [options]\n\n", exe);
    for (int i = 1; i < NVERBS; i++) fprintf(out, "  %-10s %s\n", verbs[i].name, verbs[i].help);
    fprintf(out, "\n%s VERB --help lists the options of a verb; %s --version says what made it.\n",
            exe, exe);
    fprintf(out,
            "exit codes: 0 good, 1 input, 2 usage, 3 does not fit, 5 a value is not finite,\n"
            "            75 stopped by a signal after a save\n");
    return;
  }
  fprintf(out, "usage: %s %s [options]\n  %s\n\n", exe, verbs[v].name, verbs[v].help);
  for (int k = 0; k < NOPTS; k++) {
    char left[64];
    if (!belongs(k, v)) continue;
    snprintf(left, sizeof left, "--%s %s", opts[k].name, opts[k].metavar);
    fprintf(out, "  %-24s %s\n", left, opts[k].help);
  }
}

static status *unknown_verb(const char *exe, const char *word) {
  const char *names[NVERBS];
  for (int i = 1; i < NVERBS; i++) names[i - 1] = verbs[i].name;
  const char *near = str_nearest(word, names, NVERBS - 1);
  if (near) return status_exit(2, "unknown verb `%s`; did you mean `%s`?", word, near);
  return status_exit(2, "unknown verb `%s`; `%s --help` lists them", word, exe);
}

static status *unknown_option(const options *o, const char *word) {
  const char *names[NOPTS];
  int n = 0;
  for (int k = 0; k < NOPTS; k++) {
    if (o->verb == VERB_NONE ? str_eq(opts[k].verbs, "*") : belongs(k, o->verb))
      names[n++] = opts[k].name;
    else if (str_eq(opts[k].name, word))
      return status_exit(2, "`%s` has no option --%s; `%s %s --help` lists them",
                         verbs[o->verb].name, word, o->exe, verbs[o->verb].name);
  }
  const char *near = str_nearest(word, names, n);
  if (near) return status_exit(2, "unknown option --%s; did you mean `--%s`?", word, near);
  return status_exit(2, "unknown option --%s; `%s %s --help` lists them", word, o->exe,
                     verbs[o->verb].name);
}

static status *store(arena *a, options *o, int k, const char *value) {
  char *at = (char *)o + opts[k].value;
  bool *has = (bool *)((char *)o + opts[k].has);
  double v = 0;
  const char *old;
  switch (opts[k].type) {
    case FLAG: *(bool *)at = true; break;
    case TEXT: memcpy(at, &value, sizeof value); break;
    case LIST:
      memcpy(&old, at, sizeof old);
      if (*has) value = arena_printf(a, "%s,%s", old, value);
      memcpy(at, &value, sizeof value);
      break;
    case NUMBER:
      if (!settings_parse_number(value, &v))
        return status_exit(2, "--%s takes a number, not `%s`", opts[k].name, value);
      memcpy(at, &v, sizeof v);
      break;
    case WHOLE: {
      if (!settings_parse_number(value, &v) || v < 0 || v > 0x1p53 || v != (double)(int64_t)v)
        return status_exit(2, "--%s takes a whole number, not `%s`", opts[k].name, value);
      // Seeds may use all 63 bits: read plain digits exactly.
      int64_t n =
          strspn(value, "0123456789") == strlen(value) ? strtoll(value, NULL, 10) : (int64_t)v;
      memcpy(at, &n, sizeof n);
      break;
    }
  }
  *has = true;
  return NULL;
}

static int find_option(const options *o, const char *name, size_t n) {
  for (int k = 0; k < NOPTS; k++)
    if (strlen(opts[k].name) == n && memcmp(opts[k].name, name, n) == 0 &&
        (o->verb == VERB_NONE ? str_eq(opts[k].verbs, "*") : belongs(k, o->verb)))
      return k;
  return -1;
}

static status *parse_option(arena *a, options *o, int argc, char **argv, int *i) {
  const char *word = argv[*i];
  if (str_eq(word, "-q")) word = "--quiet";
  if (str_eq(word, "-v")) word = "--verbose";
  if (str_eq(word, "-h")) word = "--help";
  if (!str_starts(word, "--") || !word[2]) return status_exit(2, "unexpected argument `%s`", word);
  word += 2;
  const char *eq = strchr(word, '=');
  size_t n = eq ? (size_t)(eq - word) : strlen(word);
  int k = find_option(o, word, n);
  if (k < 0) return unknown_option(o, arena_strndup(a, word, n));
  if (opts[k].type == FLAG) {
    if (eq) return status_exit(2, "--%s takes no value", opts[k].name);
    return store(a, o, k, NULL);
  }
  const char *value = eq ? eq + 1 : NULL;
  if (!value) {
    if (*i + 1 >= argc) return status_exit(2, "--%s needs %s", opts[k].name, opts[k].metavar);
    value = argv[++*i];
  }
  return store(a, o, k, value);
}

status *args_parse(arena *a, int argc, char **argv, options *o) {
  memset(o, 0, sizeof *o);
  o->exe = argc > 0 ? argv[0] : "EXE";
  int i = 1;
  if (i < argc && argv[i][0] != '-') {
    const char *word = argv[i++];
    if (str_eq(word, "help")) {
      o->help = true;
      if (i == argc) return NULL;
      word = argv[i++];
    }
    for (int v = 1; v < NVERBS; v++)
      if (str_eq(verbs[v].name, word)) o->verb = (verb)v;
    if (o->verb == VERB_NONE) return unknown_verb(o->exe, word);
  }
  for (; i < argc; i++) STATUS_DO(parse_option(a, o, argc, argv, &i));
  if (o->verb == VERB_NONE && !o->help && !o->version)
    return status_exit(2, "which verb? train, eval, generate, info or schedule; `%s --help`",
                       o->exe);
  return NULL;
}
