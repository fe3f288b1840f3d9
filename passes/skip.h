// What may be left out of a compilation, to measure what it brings (`--skip NAME[,NAME]`).
//
// Two kinds of rows of passes.def have such a switch: passes that are optional, and *choices*:
// parts of a pass, of codegen's builders or of its lowering that the rest does without. No bit of a
// run changes with either (tests/e2e/skips.py). A choice that would change sums has no switch.
//
//   skip_set s = 0;
//   const char *wrong = skip_add(&s, "fuse,chains");   // NULL: every word is a name
//   if (!skips(s, SKIP_chains)) ...                     // the one question, for both kinds
//
// A set is a number, copied freely: pass_options has it for the passes, `select` hands it to
// codegen, and kernels carry the part of it that their lowering heeds (codegen/kernel.h).
#ifndef DSM_SKIP_H
#define DSM_SKIP_H

#include <stdbool.h>
#include <stdint.h>

// A bit for each row of passes.def: passes by their place in the list, then choices.
typedef uint64_t skip_set;

enum {
  SKIP_PASSES = 0
#define PASS(name, fn, before, after, optional, doc) +1
#include "passes/passes.def"
};

enum {
  SKIP_BEFORE_CHOICES = SKIP_PASSES - 1,
#define CHOICE(name, of, doc) SKIP_##name,
#include "passes/passes.def"
  SKIP_ROWS,
  SKIP_CHOICES = SKIP_ROWS - SKIP_PASSES
};

// Is row `row` (a SKIP_x, or a pass by its number) left out?
static inline bool skips(skip_set s, int row) { return s >> row & 1; }

// Adds what the comma-separated `names` name (NULL: nothing); a pass is left out wherever it
// stands in the list. Returns NULL, or where in `names` the first word begins that is no name.
const char *skip_add(skip_set *s, const char *names);
// All names, each once, passes first; returns how many, at most SKIP_ROWS.
int skip_names(const char *out[SKIP_ROWS]);

typedef struct choice_info {
  const char *name, *doc;
  const char *of;  // a pass, or "lowering": kernels become machine code
} choice_info;
// The choices as data: row SKIP_PASSES + i is at i. Returns how many.
int choice_list(const choice_info **out);
// The choices that belong to `of`.
skip_set skip_of(const char *of);

#endif
