// Fuzzing everything that reads .dsm texts: lexer, brackets, grammar, keys, diagnostics, fmt.
//
//   cmake -DDSM_FUZZ=ON -DCMAKE_C_COMPILER=clang-19 ... && ./fuzz_parse tests/parse
//
// Beside "no crash" it checks what must hold for every input: rendering never fails, and a text
// without errors keeps its tree through fmt, whose output is its own canonical form.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/ast.h"
#include "frontend/diag.h"
#include "frontend/fmt.h"
#include "frontend/keys.h"

// As many as the command line prints: rendering hundreds would be all that the fuzzer does.
enum { RENDERED = 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  arena a;
  arena_init(&a);
  diags d;
  diags_init(&d, &a);
  const source *src = source_from_text(&a, "fuzz.dsm", (const char *)data, size);
  file *f = parse_file(&a, &d, src);
  int syntax_errors = diags_errors(&d);
  keys_check_file(&a, &d, f);
  for (int i = 0; i < d.all.n && i < RENDERED; i++) diag_render(&a, d.all.at[i], i % 2);
  d.format = DIAG_JSON;
  FILE *null = size % 4 ? NULL : fopen("/dev/null", "w");  // JSON has no limit: one in four
  if (null) {
    diags_print(&d, null);
    fclose(null);
  }
  if (syntax_errors == 0) {
    const char *text = fmt_text(&a, &d, src);
    if (!text) abort();
    const source *again = source_from_text(&a, "fuzz.dsm", text, strlen(text));
    sb before = {.arena = &a}, after = {.arena = &a};
    ast_dump(&before, f);
    ast_dump(&after, parse_file(&a, &d, again));
    if (strcmp(sb_str(&before), sb_str(&after)) != 0) abort();
    const char *twice = fmt_text(&a, &d, again);
    if (!twice || strcmp(text, twice) != 0) abort();
  }
  parse_expr(&a, &d, src);
  parse_settings(&a, &d, src);
  arena_free(&a);
  return 0;
}
