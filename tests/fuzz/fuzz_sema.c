// Any text: parse, check sections, resolve the job, lower every entry. A module that comes out must
// pass the verifier, and print and read back as itself.
//
// A text may start with settings, as `--set` takes them, up to the first NUL or form feed.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/sema.h"
#include "ir/print.h"
#include "ir/verify.h"

// As many as the command line prints: rendering hundreds would be all that the fuzzer does.
enum { RENDERED = 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void stop(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  abort();
}

static void check_module(arena *a, ir_module *m) {
  const char *why = ir_verify(m);
  if (why) stop("verify", why);
  char *text = ir_print(m, a);
  ir_module *again = ir_parse(a, text, strlen(text), &why);
  if (!again) stop("read back", why);
  if (strcmp(text, ir_print(again, a)) != 0) stop("print", "the text does not read back as itself");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  arena a;
  arena_init(&a);
  diags d;
  diags_init(&d, &a);
  const char *text = (const char *)data;
  setting_list sets = {0};
  const char *cut = memchr(text, '\f', n);
  if (cut) {
    sets = parse_settings(&a, &d, source_from_text(&a, "--set", text, (size_t)(cut - text)));
    n -= (size_t)(cut + 1 - text);
    text = cut + 1;
  }
  sema_program *p = sema_open_text(&a, &d, "fuzz.dsm", text, n);
  sema_check(p, sets, NULL);
  job *j = sema_job(p, NULL, sets);
  if (j) {
    unsigned entries[] = {SEMA_TRAIN | SEMA_EVAL | SEMA_TRY_DECODE, SEMA_DECODE, SEMA_EVAL};
    for (int i = 0; i < 3; i++) {
      ir_module *m = sema_lower(p, j, entries[i]);
      if (m && n < 20000) check_module(&a, m);
    }
  }
  for (int i = 0; i < d.all.n && i < RENDERED; i++) diag_render(&a, d.all.at[i], false);
  arena_free(&a);
  return 0;
}
