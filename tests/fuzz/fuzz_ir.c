// Fuzzing the text of modules: parser, verifier, printer.
//
//   cmake -DDSM_FUZZ=ON -DCMAKE_C_COMPILER=clang-19 ... && ./fuzz_ir CORPUS
//
// Beside "no crash": what can be read prints as a text that reads back as the same text, and the
// verifier leaves the module as it was.
#include <stdlib.h>
#include <string.h>

#include "ir/print.h"
#include "ir/verify.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  arena a;
  arena_init(&a);
  const char *error;
  ir_module *m = ir_parse(&a, (const char *)data, size, &error);
  if ((m == NULL) != (error != NULL)) abort();
  if (m) {
    const char *before = ir_print(m, &a);
    (void)ir_verify(m);
    const char *after = ir_print(m, &a);
    if (strcmp(before, after) != 0) abort();
    ir_module *again = ir_parse(&a, before, strlen(before), &error);
    if (!again || strcmp(ir_print(again, &a), before) != 0) abort();
  }
  arena_free(&a);
  return 0;
}
