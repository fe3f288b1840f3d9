// Drivers: what an executable does with its program. Each verb is one function that opens what it
// needs, calls entries, and returns a status; none owns a tensor.
#ifndef DSM_DRIVER_H
#define DSM_DRIVER_H

#include <signal.h>
#include <stdio.h>

#include "runtime/base/file.h"
#include "runtime/comm.h"
#include "runtime/data.h"
#include "runtime/drivers/args.h"
#include "runtime/load.h"
#include "runtime/profile.h"
#include "runtime/settings.h"
#include "runtime/vm.h"

// What drivers get from outside; tests give their own streams, disk and signals.
typedef struct rt_env {
  FILE *out, *err;
  const file_io *io;
  const volatile sig_atomic_t *stop;  // number of the signal that asked to stop, 0: none
  comm *comm;  // ranks that are there already, which the command closes; NULL: joined by itself
} rt_env;

// Of several ranks each runs the whole driver; rank 0 alone has a place to print to (`env` of the
// others leads nowhere), and what a driver decides by it has agreed on with the others.
typedef struct rt {
  const rt_env *env;
  arena *arena;
  const image *img;
  const prog *prog;
  options opt;
  settings set;
  comm *comm;  // NULL: one rank
  rt_env rank_env;
  FILE *nowhere;
  bool together;  // all ranks end with the same status now
  pool *threads;
  vm *vm;
  uint64_t seed;
  profile *profile;    // with --profile or --trace, else NULL
  file_out trace_out;  // with --trace
} rt;

// Runs a command line on an opened executable and returns its exit code; errors are printed.
int rt_run(const image *img, int argc, char **argv, const rt_env *env);
// Prints a status that ended a command and returns its exit code (0 for NULL). Frees it.
int rt_report(status *s, FILE *err);

status *drive_train(rt *r) STATUS_MUST_USE;
status *drive_eval(rt *r) STATUS_MUST_USE;
status *drive_generate(rt *r) STATUS_MUST_USE;
status *drive_info(rt *r) STATUS_MUST_USE;
status *drive_schedule(rt *r) STATUS_MUST_USE;

// ---- common.c: shared by the drivers ----------------------------------------------------------

// Ranks, threads and arena, as the options say; arguments get the values of the job.
status *rt_start(rt *r) STATUS_MUST_USE;
// The signal that asked any rank to stop, 0: none. All ranks ask at the same place.
status *rt_stopped(rt *r, int *number) STATUS_MUST_USE;
// Samples of one call of all ranks, and how many of them come before this rank's.
int64_t rt_batch(const rt *r, const prog_entry *e);
int64_t rt_first_sample(const rt *r, const prog_entry *e);
// Opens data for an entry: `path` or the job's.
status *rt_open_data(rt *r, const prog_entry *e, const char *path, bool shuffle,
                     data **out) STATUS_MUST_USE;
// Passes on what all ranks got: a failure that none of them needs to tell the others of.
status *rt_of_all(rt *r, status *s) STATUS_MUST_USE;
// Initial weights, then those of --load.
status *rt_first_weights(rt *r) STATUS_MUST_USE;
// Mean loss of entry `evaluate` over all whole batches of `d`; *batches is how many.
status *rt_evaluate(rt *r, data *d, double *loss, int64_t *batches) STATUS_MUST_USE;

// ---- profile.c: --profile and --trace -----------------------------------------------------------

// Reserves what they need and creates the trace's file, so that a bad path is told at once.
status *rt_start_profile(rt *r) STATUS_MUST_USE;
// Around a step: inputs, calls, what the driver does with the results. Nothing without a profile.
void rt_begin_step(rt *r, int64_t step);
void rt_end_step(rt *r);
// Tables by task and by kernel. `what` is "step" or the like; `warm` leaves the first one out.
void rt_print_profile(rt *r, const char *what, bool warm);
// Writes the trace, if one was begun.
status *rt_write_trace(rt *r) STATUS_MUST_USE;

// ---- replay.c: train --replay -------------------------------------------------------------------

// Reads the file and has the vm sleep instead of computing. Nothing without the option.
status *rt_start_replay(rt *r) STATUS_MUST_USE;

// ---- common.c again -----------------------------------------------------------------------------

double rt_now(void);                             // seconds, monotonic
const char *rt_count(double n, char buf[32]);    // "1.2 M"
const char *rt_bytes(double n, char buf[32]);    // "34.5 MiB"
const char *rt_seconds(double s, char buf[32]);  // "1 h 12 min"
// A line of /proc/self/status ("VmHWM:") in bytes; 0 when there is none.
uint64_t rt_memory(const char *key);
uint64_t rt_page_faults(void);  // of this process so far, minor and major
const char *rt_signal_name(int number);

#endif
