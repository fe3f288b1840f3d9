// Section keys: one table (keys.def) that checks them and documents them.
//
//   keys_check_file(a, d, f);                       // every section of a parsed file
//   keys_check_section(a, d, s, dims, ndims);       // one `train` section, knowing its model's
//   dims const key_info *k = key_find("train", "steps"); // kind, default, help
//
// What is checked: that a section of this kind exists and may stand here, that its label is of the
// right kind, that every key is known ("did you mean"), set once, and its value of the right kind
// and unit, that no required key is missing, and that nothing planned is used. What a value refers
// to (a device, a model, a weight pattern) is for those who look names up.
#ifndef DSM_FRONTEND_KEYS_H
#define DSM_FRONTEND_KEYS_H

#include "frontend/ast.h"
#include "frontend/diag.h"

typedef enum key_kind {
  KEY_COUNT,
  KEY_NUMBER,
  KEY_BOOL,
  KEY_BYTES,
  KEY_RATE,
  KEY_SPEED,
  KEY_TIME,
  KEY_POWER,
  KEY_PRICE,
  KEY_TEXT,
  KEY_TEXTS,
  KEY_WORD,
  KEY_CALL,
  KEY_COUNTS,
  KEY_NAMES,
  KEY_MEMBERS,
  KEY_CURVE,
  KEY_MESH,
  KEY_MANY,
  KEY_MAPPING,
  KEY_FACTORED,
  KEY_BYTES_OR_WORD,
  KEY_LATER,
  KEY_DERIVED,
} key_kind;

typedef struct key_info {
  const char *sections;  // "cluster node group"
  const char *key;       // may end in `.*`, or be `*`
  key_kind kind;
  const char *what;   // words, call group, example: see keys.def
  const char *value;  // the default, in words
  const char *help;
} key_info;

typedef struct call_info {
  const char *group, *name, *args, *help;
} call_info;

// The row of a key in a section, or NULL.
const key_info *key_find(const char *section, const char *key);
// All rows, for documentation.
const key_info *key_table(int *n);
const call_info *call_table(int *n);

// Checks every section of a file. The dims of models that the file holds are known as keys of
// their `train` sections; for a model from elsewhere any count is taken for a dim.
void keys_check_file(arena *a, diags *d, const file *f);

// Checks one top-level section. `dims`: names that a `train` section takes beside its keys; NULL:
// not known, so any key with a count for a value passes.
void keys_check_section(arena *a, diags *d, const section *s, const char *const *dims, int ndims);
// Checks a setting that stands elsewhere (`--pin`) as if it stood in a `plan` section. False when
// there is no such key or the value is wrong, which has been reported.
bool keys_check_pin(arena *a, diags *d, const setting *s);

#endif
