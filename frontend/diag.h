// Diagnostics: what the user did wrong, where, and what to write instead.
//
//   diag *e = diag_error(d, key.at, DIAG_UNKNOWN_KEY, "`%s` is not a setting of %s", key.text, s);
//   diag_did_you_mean(e, key.text, names, n);       // after the caret: did you mean `optimizer`?
//   diag_list(e, "allowed", names, n);              // = allowed: batch clip data ...
//   ...
//   diags_print(d, stderr);                         // sorted, deduplicated, at most 20
//   return diags_errors(d) ? 1 : 0;
//
// prints
//
//   gpt2.dsm:27:3: error: `optimiser` is not a setting of train [unknown-key]
//      27 |   optimiser = adamw(lr=6e-4)
//         |   ^~~~~~~~~ did you mean `optimizer`?
//      = allowed: batch clip data optimizer precision read schedule seed seq steps update weights
//
// Every code is one row of diag.def: word, severity, and the texts `dsmc explain` prints. To add a
// diagnostic add a row there and a test file of the same name. Messages are lower case, name the
// user's things in `backquotes`, and say what to write.
#ifndef DSM_FRONTEND_DIAG_H
#define DSM_FRONTEND_DIAG_H

#include <stdio.h>

#include "frontend/source.h"
#include "runtime/base/arena.h"
#include "runtime/base/str.h"
#include "runtime/base/vec.h"

typedef enum diag_level { DIAG_ERROR, DIAG_WARNING, DIAG_NOTE } diag_level;

typedef enum diag_code {
#define DIAG(ID, WORD, LEVEL, SUMMARY, TEXT, FAILING, FIXED) DIAG_##ID,
#include "frontend/diag.def"
#undef DIAG
  DIAG_CODES
} diag_code;

typedef struct diag_info {
  const char *word;  // "unknown-key"
  diag_level level;
  const char *summary;  // one line
  const char *text;     // paragraphs
  const char *failing;  // an example that draws it; "$ …" lines are commands
  const char *fixed;    // the same, right
} diag_info;

const diag_info *diag_info_of(diag_code code);
// The code with this word, or DIAG_CODES.
diag_code diag_find(const char *word);

// One more place that belongs to a diagnostic ("first defined here", "in the call from ...").
typedef struct diag_place {
  span at;
  const char *text;
} diag_place;

typedef VEC(const char *) diag_lines;

typedef struct diag {
  arena *arena;  // NULL: one too many, what is added to it is dropped
  diag_code code;
  diag_level level;
  span at;
  int order;  // of arrival, to keep sorting stable
  const char *message;
  bool bare;               // show the place but not its source line
  const char *label;       // after the caret; NULL when none
  const char *suggestion;  // text that may replace the span; NULL when none
  diag_lines notes;        // the `= ` lines
  VEC(diag_place) places;
} diag;

typedef enum diag_format { DIAG_TEXT, DIAG_JSON } diag_format;

typedef struct diags {
  arena *arena;
  VEC(diag *) all;
  diag_format format;
  bool color;   // decided by diags_color
  int limit;    // most printed; 0 is 20
  int errors;   // reported so far, printed or not
  diag *spare;  // stands for all that are too many to keep
} diags;

void diags_init(diags *d, arena *a);
// color: "auto" looks at the stream and NO_COLOR; "always"; "never".
void diags_color(diags *d, const char *color, FILE *stream);

// Reports at a place (span_none() for none). The severity is the code's row in diag.def, so
// diag_error, diag_warning and diag_remark are one function; the three names are for the reader.
diag *diag_add(diags *d, span at, diag_code code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
#define diag_error diag_add
#define diag_warning diag_add
#define diag_remark diag_add

// Text behind the caret. The last call wins.
void diag_label(diag *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// One `= ` line. Continuation lines: put "\n" in the text.
void diag_note(diag *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// Behind the caret, plus a machine-applicable replacement of the span.
void diag_help(diag *e, const char *replacement, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
// "did you mean `x`?" when one of the names is near; returns it or NULL.
const char *diag_did_you_mean(diag *e, const char *word, const char *const *names, int n);
// `= what: a b c`, sorted as given, wrapped at 100 columns.
void diag_list(diag *e, const char *what, const char *const *names, int n);
// A second place, shown with its own source line.
void diag_place_at(diag *e, span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

int diags_errors(const diags *d);  // how many are errors
// Whether an error lies within a span: what stands there need not be complained about again.
bool diags_within(const diags *d, span at);
// Prints all collected so far (files in order of arrival, then by position; equal ones once) and
// forgets them, but keeps counting errors.
void diags_print(diags *d, FILE *out);

// `s` as a JSON string, NULL as null.
void diag_json_string(sb *out, const char *s);
// One diagnostic in the text form, with or without color.
const char *diag_render(arena *a, const diag *e, bool color);

#endif
