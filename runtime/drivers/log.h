// The training log: one JSON object a step, one line each.
//
//   {"step": 3, "loss": 5.41, "grad_norm": 1.2, "lr": 0.001, "tokens": 2048, "step_s": 0.11,
//    "tokens_per_s": 18618, "peak_bytes": 98566144, "page_faults": 0}
//
// Among ranks a line also has what all of them sent in the step, by kind of exchange and axes
// (runtime/ledger.h): "sent": {"all_reduce over data": {"bytes": 98304, "exchanges": 28}}.
//
// `step` counts from 1; scalar outputs of the model follow the loss; step_s is seconds of wall
// time. peak_bytes is the most that was resident so far; page_faults are those of the whole
// process, minor and major, since the line before (in the first line: since training was ready to
// start). After the first steps there are none: all memory was taken, and touched, before them.
//
// A resumed run cuts the log back to the step it starts from and goes on, so that the file of an
// interrupted run is the file of an undisturbed one. A log that cannot be written is told at once
// and makes the run end with an error, but does not stop it.
#ifndef DSM_LOG_H
#define DSM_LOG_H

#include <stdint.h>

#include "runtime/base/file.h"

typedef struct train_log {
  const char *path;  // NULL: no log
  int fd;
  status *failed;  // the first failure
} train_log;

// The end of a line is more scalars: "name": value.
typedef struct log_scalar {
  const char *name;
  double value;
} log_scalar;

typedef struct log_line {
  int64_t step, tokens;
  double loss, lr, step_s, tokens_per_s;
  uint64_t peak_bytes, page_faults;
  const log_scalar *more;  // grad_norm first when there is one
  int nmore;
  const char *sent;  // a JSON object, NULL: one rank
} log_line;

// Keeps the lines of steps 1 .. `from_step`; 0 starts a new file.
status *log_open(train_log *l, const char *path, int64_t from_step) STATUS_MUST_USE;
void log_step(train_log *l, const log_line *line);
// Returns the first failure of the log.
status *log_close(train_log *l) STATUS_MUST_USE;

#endif
