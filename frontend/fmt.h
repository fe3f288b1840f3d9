// Canonical layout.
//
//   const char *text = fmt_text(a, d, src);     // NULL: the text has errors, they are in d
//
// Two spaces of indent; one statement on a line, except that those joined by `;` stay joined; a
// brace pair stays on one line when it was written so. `=` has spaces in statements and none in
// call arguments. Comments, line breaks inside statements and single blank lines are the user's.
// Formatting a formatted text changes nothing, and no formatting changes the tree.
#ifndef DSM_FRONTEND_FMT_H
#define DSM_FRONTEND_FMT_H

#include "frontend/ast.h"
#include "frontend/diag.h"

const char *fmt_text(arena *a, diags *d, const source *src);

#endif
