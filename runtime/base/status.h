// Run-time failures: a status that gains context as it unwinds.
//
// The compiler reports the user's mistakes as diagnostics (frontend/diag.h) and aborts on its own
// bugs; everything that can fail while an executable runs (files, memory, bad data) returns a
// status. A status is must-use. Success is NULL, so the hot path costs a compare.
//
//   status *read_header(const char *path) {
//     FILE *f = fopen(path, "rb");
//     if (!f) return status_errno("cannot open %s", path);
//     ...
//   }
//   STATUS_TRY(read_header(path), "while loading checkpoint %s", dir);
//
// prints, when it surfaces: "while loading checkpoint ck: cannot open ck/a: No such file".
#ifndef DSM_BASE_STATUS_H
#define DSM_BASE_STATUS_H

#include <stdarg.h>

typedef struct status {
  int exit_code;  // what main returns when nobody handles it: 1 input, 5 NaN, 75 signal, ...
  char *message;
} status;

#define STATUS_MUST_USE __attribute__((warn_unused_result))

// A failure with exit code 1. Never returns NULL: when memory is short it returns a static one.
status *status_error(const char *fmt, ...) __attribute__((format(printf, 1, 2))) STATUS_MUST_USE;
// The same with `: strerror(errno)` appended.
status *status_errno(const char *fmt, ...) __attribute__((format(printf, 1, 2))) STATUS_MUST_USE;
status *status_exit(int exit_code, const char *fmt, ...)
    __attribute__((format(printf, 2, 3))) STATUS_MUST_USE;
// Puts "context: " in front of the message; NULL stays NULL. Takes and returns ownership.
status *status_context(status *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3))) STATUS_MUST_USE;
// Keeps both failures ("first; then second"); either may be NULL.
status *status_join(status *first, status *second) STATUS_MUST_USE;
void status_free(status *s);

// Returns from the caller with context when `expr` fails.
#define STATUS_TRY(expr, ...)                                         \
  do {                                                                \
    status *status_try_ = (expr);                                     \
    if (status_try_) return status_context(status_try_, __VA_ARGS__); \
  } while (0)
// The same without added context.
#define STATUS_DO(expr)                  \
  do {                                   \
    status *status_try_ = (expr);        \
    if (status_try_) return status_try_; \
  } while (0)

#endif
