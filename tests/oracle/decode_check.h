// Generation against the full forward: what prefill and decode say about position i must be what
// `evaluate` says about it when it sees all tokens.
#ifndef DSM_TESTS_DECODE_CHECK_H
#define DSM_TESTS_DECODE_CHECK_H

#include "tests/oracle/harness.h"

// Checks a model, in the interpreter to 1e-9 and compiled to 1e-5 of the largest logit. `weights`
// is a checkpoint to take them from, or NULL for drawn ones. `see` (may be NULL) is shown the
// module once the passes have run.
const char *decode_check(arena *a, const char *text, const char *sets, const st_file *weights,
                         const struct h_device *device, void (*see)(ir_module *m));
// The same for a file.
const char *decode_check_file(arena *a, const char *file_and_name, const char *sets,
                              const st_file *weights, const struct h_device *device,
                              void (*see)(ir_module *m));

#endif
