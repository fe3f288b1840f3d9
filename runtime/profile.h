// Where the time of steps goes: by task, by kernel, and outside kernels. And, for the first few
// steps, when each thing happened (trace.h).
//
// A profile watches a vm. The driver says when a step begins and ends; everything else it sees. The
// first step is counted apart: it meets cold caches and cold files. All memory is got at the start.
//
//   profile *f = profile_new(p);
//   profile_begin(f, step);
//   ... fill the inputs ...
//   vm_observe(m, &f->observer);
//   vm_call(m, e, &s);
//   vm_observe(m, NULL);
//   profile_end(f);
#ifndef DSM_PROFILE_H
#define DSM_PROFILE_H

#include "runtime/trace.h"
#include "runtime/vm.h"

typedef struct profile_time {
  int64_t ns, count;
  double bytes;  // moved by zero and copy, which have no record that says so
} profile_time;

typedef struct profile_times {
  int64_t steps, ns;     // whole steps
  int64_t fill_ns;       // from the begin of a step to its first call: inputs and arguments
  int64_t call_ns;       // in calls
  int64_t instr_ns;      // in instructions
  int64_t again_ns;      // of it in those that run again what forward ran (PROG_RECOMPUTE)
  profile_time *task;    // one a task
  profile_time *kernel;  // one a kernel, then one an opcode that has none (RTOP_)
} profile_times;

typedef struct profile {
  const prog *prog;
  vm_observer observer;
  profile_times first, rest;  // the first step, all others
  profile_times *current;
  int64_t step;  // number of the running one
  int64_t step_begin, call_begin, task_begin, instr_begin;
  bool called;         // the running step has begun a call
  trace *trace;        // NULL: none
  int64_t trace_left;  // steps to be traced yet
} profile;

// NULL when memory is out.
profile *profile_new(const prog *p);
void profile_free(profile *f);
// Traces the next `steps` steps, into a buffer of `events`. False when memory is out.
bool profile_trace(profile *f, int64_t steps, int64_t events);

void profile_begin(profile *f, int64_t step);
void profile_end(profile *f);

// The times to show: without the first step when `warm` and there are more than two, else of all.
// Adds up in place: call it once, at the end.
const profile_times *profile_result(profile *f, bool warm, bool *left_out);

#endif
