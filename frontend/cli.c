// Parsing the command line and printing help, both from cli.def.
#include "frontend/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"

typedef struct verb_info {
  const char *name, *args;
  int fewest, most;
  int (*run)(cli *c);  // NULL: planned
  const char *group, *help;
} verb_info;

typedef struct option_info {
  const char *name;
  char letter;
  const char *arg, *verbs, *group, *help;
} option_info;

static const verb_info verbs[] = {
#define BUILT(NAME) verb_##NAME
#define PLANNED(NAME) NULL
#define VERB(NAME, ARGS, FEWEST, MOST, STATUS, GROUP, HELP) \
  {#NAME, ARGS, FEWEST, MOST, STATUS(NAME), GROUP, HELP},
#define OPTION(ID, LONG, SHORT, ARG, VERBS, GROUP, HELP)
#include "frontend/cli.def"
#undef BUILT
#undef PLANNED
#undef VERB
#undef OPTION
};

static const option_info options[] = {
#define VERB(NAME, ARGS, FEWEST, MOST, STATUS, GROUP, HELP)
#define OPTION(ID, LONG, SHORT, ARG, VERBS, GROUP, HELP) {LONG, SHORT, ARG, VERBS, GROUP, HELP},
#include "frontend/cli.def"
#undef VERB
#undef OPTION
};

enum { VERBS = sizeof verbs / sizeof *verbs };

int cli_usage(const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  fputs("dsmc: ", stderr);
  vfprintf(stderr, fmt, ap);
  fputc('\n', stderr);
  va_end(ap);
  return EXIT_USAGE;
}

int cli_verb(const char *name) {
  for (int i = 0; i < VERBS; i++)
    if (strcmp(verbs[i].name, name) == 0) return i;
  return -1;
}

int cli_verb_names(const char **names, int most) {
  int n = 0;
  for (int i = 0; i < VERBS && n < most; i++) names[n++] = verbs[i].name;
  return n;
}

bool cli_has(const cli *c, option_id id) { return c->options[id].n > 0; }

const char *cli_get(const cli *c, option_id id) {
  return c->options[id].n ? vec_last(&c->options[id]) : NULL;
}

long cli_number(const cli *c, option_id id, long otherwise) {
  const char *text = cli_get(c, id);
  return text ? strtol(text, NULL, 10) : otherwise;
}

int cli_finish(cli *c) {
  diags_print(&c->diags, stderr);
  return diags_errors(&c->diags) ? EXIT_INPUT : EXIT_GOOD;
}

// ---------------------------------------------------------------------------------------------
// Parsing
// ---------------------------------------------------------------------------------------------

static bool takes(const option_info *o, const char *verb) {
  if (strcmp(o->verbs, "*") == 0) return true;
  size_t n = strlen(verb);
  for (const char *p = o->verbs; (p = strstr(p, verb)) != NULL; p += n)
    if ((p == o->verbs || p[-1] == ' ') && (p[n] == 0 || p[n] == ' ')) return true;
  return false;
}

// Whether a value is one that the option's argument allows; says so when it is not.
static bool value_fits(const option_info *o, const char *value) {
  char *end;
  if (strcmp(o->arg, "N") == 0 || strcmp(o->arg, "K") == 0) {
    errno = 0;
    long v = strtol(value, &end, 10);
    if (*value && *end == 0 && v > 0 && !errno) return true;
    cli_usage("--%s takes a whole number above 0, not `%s`", o->name, value);
    return false;
  }
  if (strcmp(o->arg, "SECONDS") == 0) {
    double v = strtod(value, &end);
    if (*value && *end == 0 && v >= 0) return true;
    cli_usage("--%s takes seconds, not `%s`", o->name, value);
    return false;
  }
  // Lists of lower-case words are all there is, unless they end in `...` or name other things.
  bool closed =
      strchr(o->arg, '|') && strspn(o->arg, "abcdefghijklmnopqrstuvwxyz|") == strlen(o->arg);
  if (!closed) return true;
  size_t n = strlen(value);
  for (const char *p = o->arg; p; p = strchr(p, '|'), p = p ? p + 1 : NULL)
    if (n && strncmp(p, value, n) == 0 && (p[n] == 0 || p[n] == '|')) return true;
  cli_usage("--%s takes %s, not `%s`", o->name, o->arg, value);
  return false;
}

static int unknown_option(const char *text, int verb) {
  const char *names[OPTIONS];
  int n = 0;
  for (int i = 0; i < OPTIONS; i++)
    if (verb < 0 || takes(&options[i], verbs[verb].name)) names[n++] = options[i].name;
  size_t len = strcspn(text + 2, "=");
  char word[64];
  snprintf(word, sizeof word, "%.*s", (int)len, text + 2);
  const char *near = text[1] == '-' ? str_nearest(word, names, n) : NULL;
  if (near) return cli_usage("unknown option `--%s`; did you mean `--%s`?", word, near);
  if (verb >= 0)
    return cli_usage("unknown option `%s`; `dsmc help %s` lists them", text, verbs[verb].name);
  return cli_usage("unknown option `%s`; `dsmc help` lists them", text);
}

// Finds the option that argv[*i] names and its value, which may be the next argument. -1: fine.
static int take_option(cli *c, int *i) {
  const char *text = c->argv[*i], *value = NULL;
  int id = -1;
  if (text[1] == '-') {
    size_t n = strcspn(text + 2, "=");
    for (int k = 0; k < OPTIONS; k++)
      if (strlen(options[k].name) == n && strncmp(options[k].name, text + 2, n) == 0) id = k;
    if (text[2 + n] == '=') value = text + 3 + n;
  } else {
    for (int k = 0; k < OPTIONS; k++)
      if (options[k].letter && options[k].letter == text[1]) id = k;
    if (text[2]) value = text + 2;
  }
  if (id < 0) return unknown_option(text, c->verb);
  const option_info *o = &options[id];
  if (*o->arg == 0 && value)
    return cli_usage("%s takes no value", text[1] == '-'
                                              ? arena_printf(c->arena, "--%s", o->name)
                                              : arena_printf(c->arena, "-%c", o->letter));
  if (*o->arg && !value) {
    if (*i + 1 >= c->argc) return cli_usage("--%s needs %s", o->name, o->arg);
    value = c->argv[++*i];
  }
  if (*o->arg && !value_fits(o, value)) return EXIT_USAGE;
  vec_push(c->arena, &c->options[id], value ? value : "");
  return -1;
}

int cli_parse(cli *c, arena *a, int argc, char **argv) {
  *c = (cli){.arena = a, .verb = -1, .argc = argc, .argv = argv};
  diags_init(&c->diags, a);
  for (int i = 1; i < argc; i++) {
    const char *text = argv[i];
    if (strcmp(text, "--") == 0) {
      for (i++; i < argc; i++) vec_push(a, &c->rest, argv[i]);
    } else if (text[0] == '-' && text[1]) {
      int rc = take_option(c, &i);
      if (rc >= 0) return rc;
    } else if (c->verb < 0) {
      c->verb = cli_verb(text);
      if (c->verb < 0) {
        const char *names[VERBS];
        int n = cli_verb_names(names, VERBS);
        const char *near = str_nearest(text, names, n);
        return near ? cli_usage("unknown command `%s`; did you mean `%s`?", text, near)
                    : cli_usage("unknown command `%s`; `dsmc help` lists them", text);
      }
    } else {
      vec_push(a, &c->files, text);
    }
  }
  if (cli_has(c, OPT_VERSION)) {
    printf("dsmc %s\n", DSMC_VERSION);
    return EXIT_GOOD;
  }
  if (c->verb < 0 || cli_has(c, OPT_HELP)) {
    if (c->verb < 0 && argc > 1 && !cli_has(c, OPT_HELP))
      return cli_usage("a command is missing; `dsmc help` lists them");
    cli_help(stdout, c->verb < 0 ? NULL : verbs[c->verb].name);
    return EXIT_GOOD;
  }
  const verb_info *v = &verbs[c->verb];
  for (int k = 0; k < OPTIONS; k++)
    if (c->options[k].n && !takes(&options[k], v->name))
      return cli_usage("`dsmc %s` takes no --%s", v->name, options[k].name);
  if (c->files.n < v->fewest) return cli_usage("`dsmc %s` needs %s", v->name, v->args);
  if (v->most >= 0 && c->files.n > v->most)
    return cli_usage("`dsmc %s` takes %s, and `%s` is too much", v->name,
                     *v->args ? v->args : "no argument", c->files.at[v->most]);
  if (c->rest.n && strcmp(v->name, "run") != 0)
    return cli_usage("only `dsmc run` passes arguments on behind `--`");
  c->diags.format = str_eq(cli_get(c, OPT_DIAG), "json") ? DIAG_JSON : DIAG_TEXT;
  diags_color(&c->diags, cli_has(c, OPT_COLOR) ? cli_get(c, OPT_COLOR) : "auto", stderr);
  return -1;
}

int cli_run(cli *c) {
  const verb_info *v = &verbs[c->verb];
  if (v->run) return v->run(c);
  fprintf(stderr, "dsmc: `%s` is planned, not built\n", v->name);
  return EXIT_INPUT;
}

// ---------------------------------------------------------------------------------------------
// Help
// ---------------------------------------------------------------------------------------------

// Text in a column from `indent`, wrapped at 100.
static void put_help(FILE *out, int at, int indent, const char *text) {
  if (at + 1 >= indent) {
    fprintf(out, "\n");
    at = 0;
  }
  fprintf(out, "%*s", indent - at, "");
  int column = indent;
  while (*text) {
    int n = (int)strcspn(text, " ");
    if (column > indent && column + 1 + n > 100) {
      fprintf(out, "\n%*s", indent, "");
      column = indent;
    } else if (column > indent) {
      fputc(' ', out);
      column++;
    }
    fprintf(out, "%.*s", n, text);
    column += n;
    text += n;
    while (*text == ' ') text++;
  }
  fputc('\n', out);
}

static void put_option(FILE *out, const option_info *o) {
  int n =
      o->letter ? fprintf(out, "  -%c, --%s", o->letter, o->name) : fprintf(out, "  --%s", o->name);
  if (*o->arg) n += fprintf(out, " %s", o->arg);
  put_help(out, n, 34, o->help);
}

static void put_verb(FILE *out, const verb_info *v) {
  int n = fprintf(out, "  %s %s", v->name, v->args);
  put_help(out, n, 34, v->help);
}

static void help_verb(FILE *out, const verb_info *v) {
  fprintf(out, "dsmc %s%s%s\n", v->name, *v->args ? " " : "", v->args);
  fprintf(out, "  %s%s\n", v->help, v->run ? "" : " (planned, not built)");
  for (int pass = 0; pass < 2; pass++) {
    bool first = true;
    for (int i = 0; i < OPTIONS; i++) {
      const option_info *o = &options[i];
      bool shared = strcmp(o->group, "plan") == 0;
      if (strcmp(o->verbs, "*") == 0 || !takes(o, v->name) || shared != (pass == 1)) continue;
      if (first) fprintf(out, pass ? "plan options\n" : "options\n");
      first = false;
      put_option(out, o);
    }
  }
}

static void help_every(FILE *out) {
  fprintf(out, "every command takes\n");
  for (int i = 0; i < OPTIONS; i++)
    if (strcmp(options[i].verbs, "*") == 0) put_option(out, &options[i]);
}

void cli_help(FILE *out, const char *topic) {
  if (topic && strcmp(topic, "all") != 0) {
    help_verb(out, &verbs[cli_verb(topic)]);
    help_every(out);
    return;
  }
  if (topic) {
    for (int i = 0; i < VERBS; i++) {
      help_verb(out, &verbs[i]);
      fputc('\n', out);
    }
    help_every(out);
    return;
  }
  static const char *const groups[][2] = {
      {"start", "to start"}, {"text", "about texts"},    {"plan", "to plan"},
      {"run", "to run"},     {"look", "to look inside"}, {"machine", "about machines"}};
  fprintf(out, "dsmc %s, an ahead-of-time compiler for transformers\n", DSMC_VERSION);
  for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
    fprintf(out, "%s\n", groups[g][1]);
    for (int i = 0; i < VERBS; i++)
      if (strcmp(verbs[i].group, groups[g][0]) == 0) put_verb(out, &verbs[i]);
  }
  fprintf(out, "`dsmc help COMMAND` says more, `dsmc help all` everything.\n");
}
