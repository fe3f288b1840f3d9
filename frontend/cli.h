// The command line: parsed once, from the tables of cli.def.
//
//   cli c;
//   int rc = cli_parse(&c, a, argc, argv);      // -1: go on; else the exit code, all has been said
//   if (rc < 0) rc = cli_run(&c);
//
// and in a verb
//
//   int verb_build(cli *c) {
//     const char *out = cli_get(c, OPT_OUT);    // NULL when not given
//     for (int i = 0; i < c->options[OPT_SET].n; i++) use(c->options[OPT_SET].at[i]);
//     ... c->files.at[0], c->arena, &c->diags ...
//     return cli_finish(c);                     // prints diagnostics; 0, or 1 when there were
//     errors
//   }
//
// To add a verb: one row in cli.def and `int verb_NAME(cli *c)` in frontend/verb_NAME.c.
#ifndef DSM_FRONTEND_CLI_H
#define DSM_FRONTEND_CLI_H

#include "frontend/diag.h"
#include "runtime/base/vec.h"
#include "runtime/base/version.h"

// Exit codes are a contract.
enum { EXIT_GOOD = 0, EXIT_INPUT = 1, EXIT_USAGE = 2, EXIT_UNFIT = 3, EXIT_INTERNAL = 4 };

typedef enum option_id {
#define VERB(NAME, ARGS, FEWEST, MOST, STATUS, GROUP, HELP)
#define OPTION(ID, LONG, SHORT, ARG, VERBS, GROUP, HELP) OPT_##ID,
#include "frontend/cli.def"
#undef VERB
#undef OPTION
  OPTIONS
} option_id;

typedef VEC(const char *) string_list;

typedef struct cli {
  arena *arena;
  diags diags;
  int verb;                      // row of cli.def
  string_list files;             // arguments of the verb
  string_list rest;              // behind `--`
  string_list options[OPTIONS];  // values in order; "" for each time a switch was given
  int argc;
  char **argv;
} cli;

// Parses. -1 to go on; otherwise the exit code (help and version: 0, usage: 2).
int cli_parse(cli *c, arena *a, int argc, char **argv);
// Runs the verb that was asked for.
int cli_run(cli *c);

bool cli_has(const cli *c, option_id id);
// The last value given, or NULL.
const char *cli_get(const cli *c, option_id id);
// The value of an option that is a whole number, or `otherwise`.
long cli_number(const cli *c, option_id id, long otherwise);
// Prints the diagnostics to stderr. EXIT_INPUT when one is an error, else EXIT_GOOD.
int cli_finish(cli *c);
// One line on stderr: "dsmc: ..."; returns EXIT_USAGE.
int cli_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

// `dsmc help`: an overview, one command (its name) or "all".
void cli_help(FILE *out, const char *topic);
// The verb with this name or NULL; for "did you mean", all names.
int cli_verb(const char *name);
int cli_verb_names(const char **names, int most);

// The verbs.
#define BUILT(NAME) int verb_##NAME(cli *c);
#define PLANNED(NAME)
#define VERB(NAME, ARGS, FEWEST, MOST, STATUS, GROUP, HELP) STATUS(NAME)
#define OPTION(ID, LONG, SHORT, ARG, VERBS, GROUP, HELP)
#include "frontend/cli.def"
#undef BUILT
#undef PLANNED
#undef VERB
#undef OPTION

#endif
