// A trace of some steps as a file for Perfetto or chrome://tracing: one process for the rank, one
// thread for its driver and one for each stream. Slices nest: a step holds what the driver does, a
// task holds its instructions.
//
// Events go into a buffer made beforehand; those that do not fit are counted.
//
//   trace *t = trace_new(p, 3 * trace_events_of(p, e));
//   trace_add(t, &(trace_event){.kind = TRACE_TASK, .index = task, .begin = t0, .end = t1, ...});
//   STATUS_DO(trace_write(t, comm_rank(c), &file));
#ifndef DSM_TRACE_H
#define DSM_TRACE_H

#include "runtime/base/file.h"
#include "runtime/prog.h"

typedef enum trace_kind { TRACE_STEP, TRACE_FILL, TRACE_TASK, TRACE_INSTR } trace_kind;

typedef struct trace_event {
  int64_t begin, end;  // clock_ns
  int64_t step;        // from 1
  int64_t layer, micro, sample0;
  trace_kind kind;
  uint32_t index;  // of a task or an instruction, in the program
} trace_event;

typedef struct trace trace;

// NULL when memory is out.
trace *trace_new(const prog *p, int64_t events);
void trace_free(trace *t);
// How many events one call of an entry makes, with its step and its filling of inputs.
int64_t trace_events_of(const prog *p, const prog_entry *e);

void trace_add(trace *t, const trace_event *e);
int64_t trace_count(const trace *t);
int64_t trace_lost(const trace *t);  // events that did not fit

// Writes all events as JSON; process and labels are called by the rank. Files of several ranks can
// be put together: "clock_ns_of_ts_0" says when each begins, by the clock of its machine.
status *trace_write(const trace *t, int rank, file_out *out) STATUS_MUST_USE;

#endif
