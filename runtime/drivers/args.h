// The command line of an executable: EXE VERB [options].
//
// Options are declared once, in options.def, from which come this struct, the parser, the help and
// the suggestions. An option may be written `--name value` or `--name=value`.
#ifndef DSM_ARGS_H
#define DSM_ARGS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "runtime/base/arena.h"
#include "runtime/base/status.h"

typedef enum verb {
  VERB_NONE,
  VERB_TRAIN,
  VERB_EVAL,
  VERB_GENERATE,
  VERB_INFO,
  VERB_SCHEDULE
} verb;

typedef const char *opt_TEXT;
typedef const char *opt_LIST;
typedef int64_t opt_WHOLE;
typedef double opt_NUMBER;
typedef bool opt_FLAG;

typedef struct options {
  verb verb;
  const char *exe;  // argv[0]
#define OPT(field, type, name, metavar, verbs, help) \
  opt_##type field;                                  \
  bool has_##field;
#include "runtime/drivers/options.def"
} options;

// Fills `out`. Mistakes are one line with exit code 2.
status *args_parse(arena *a, int argc, char **argv, options *out) STATUS_MUST_USE;
// All verbs, or one with its options.
void args_help(FILE *out, const char *exe, verb v);

#endif
