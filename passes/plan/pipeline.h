// Pipeline orders: what each stage does when, how long a step takes, what waits in memory.
//
// A stage holds `chunks` parts of the model (interleaving; 1 without). A step runs m micro-batches
// through all parts. A part's work on one micro-batch is a *phase*: forward, backward (or, where
// the order cuts it in two, backward of the input and of the weights), each with its seconds;
// between parts that follow each other a message takes its seconds on a stream of its own. An order
// is, for each stage, a list of (phase, chunk, micro-batches): `pipe_order_of` writes it,
// `pipe_longest` finds the step by the longest path over the events, `pipe_simulate` by running
// them as discrete events on streams, and `pipe_closed` by formula. All three agree
// (test_pipeline).
//
//   p = 4, m = 8, 1f1b, stage 1:  F0 F1 F2 | B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 | B5 B6 B7
//   warm-up min(m, p-1-i) forwards; stash at most min(m, p-i); bubble (p-1)/(m+p-1)
#ifndef DSM_PLAN_PIPELINE_H
#define DSM_PLAN_PIPELINE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "runtime/base/arena.h"

typedef enum pipe_kind {
  PIPE_ONE_F_ONE_B,  // Narayanan et al. 2021
  PIPE_INTERLEAVED,  // the same, several chunks a stage; m must be a multiple of p
  PIPE_GPIPE,        // all forwards, then all backwards
  PIPE_ZERO_BUBBLE,  // ZB-H1 (Qi et al. 2023): weight gradients fill the gaps, stash as in 1f1b
} pipe_kind;
const char *pipe_kind_name(pipe_kind k);  // "one_f_one_b", as in plan files

// What one chunk of one stage takes for one micro-batch; seconds.
typedef struct pipe_chunk {
  double forward;
  double backward;   // of input and weights together
  double weight;     // the part of `backward` that weight gradients take (zero_bubble uses it)
  double send;       // the activation's message to the chunk after it
  double send_back;  // the gradient's message to the chunk before it
} pipe_chunk;

typedef struct pipe {
  pipe_kind kind;
  int stages;               // p
  int chunks;               // v; of part k = c * p + i (chunk c of stage i) the next part is k + 1
  int64_t micro;            // m
  const pipe_chunk *chunk;  // [stages * chunks], chunk c of stage i at i * chunks + c
  const double *before;  // [stages] seconds at the start of the step (NULL: 0): gathers of weights
  const double *after;   // [stages] behind the last phase of the stage (NULL: 0): exposed
                         // gradient reduction, optimizer
} pipe;

typedef enum pipe_phase { PIPE_F, PIPE_B, PIPE_W } pipe_phase;  // B: input only where W exists
// A run of an order: the phase of `count` micro-batches in turn, from `micro` on, of one chunk.
typedef struct pipe_run {
  pipe_phase phase;
  int chunk;
  int64_t micro, count;
} pipe_run;
typedef struct pipe_list {
  pipe_run *at;
  int64_t n;
} pipe_list;

// NULL when the order exists for p, v and m, else what is wrong in words ("interleaved needs a
// number of micro-batches that 8 stages divide: 12 is none").
const char *pipe_check(const pipe *p);
// What `stage` does, run by run.
pipe_list pipe_order_of(arena *a, const pipe *p, int stage);
// The most micro-batches whose activations of any chunk a stage holds at once (an interleaved stage
// counts each chunk's). 1f1b: min(m, p-i). And the same for each chunk when `each` is not NULL
// ([chunks]; when the sum is largest).
int64_t pipe_stash(const pipe *p, int stage, int64_t *each);

typedef struct pipe_result {
  double step;    // seconds, from the first start to the last end
  double busy;    // of the slowest stage: seconds of its phases
  int critical;   // the stage that sets the pace
  double bubble;  // step less busy of the critical stage, less `before` and `after`, less waits
                  // for messages that were not hidden
  double exposed_send;
} pipe_result;
// By the longest path over (stage, micro-batch, phase). O(p v m). Messages: a stage's sends and
// computes overlap; a message starts when what it carries is done and the link is free.
pipe_result pipe_longest(arena *scratch, const pipe *p);
// By formula, exact for equal stages (see the .c file), a lower bound otherwise:
// max over stages of (before + m (f + b) + after) and the fill and drain of the stages around it.
double pipe_bound(const pipe *p);

// Discrete events: one compute stream and two message streams (forward, backward) a stage. Writes a
// Chrome/Perfetto trace to `trace` when that is not NULL: one process a stage, one thread a stream,
// counter "stash" (and "memory" in bytes, from stash_bytes[stages*chunks] when not NULL).
pipe_result pipe_simulate(arena *scratch, const pipe *p, const double *stash_bytes,
                          const double *fixed_bytes, FILE *trace);

#endif
