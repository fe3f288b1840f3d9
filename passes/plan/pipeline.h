// Pipeline orders: what each stage does when, how long a step takes, what waits in memory.
//
// A stage holds `chunks` parts of the model (interleaving; 1 without). A step runs m micro-batches
// through all parts. A part's work on one micro-batch is a *phase*: forward, backward (or, where
// the order cuts it in two, backward of the input and of the weights), each with its seconds;
// between parts that follow each other a message takes its seconds on a stream of its own. An order
// is, for each stage, a list of (phase, chunk, micro-batches): `pipe_orders` writes it,
// `pipe_longest` finds the step by the longest path over the events, `pipe_simulate` by running
// them as discrete events on streams, and `pipe_closed` by formula. All three agree
// (test_pipeline).
//
//   p = 4, m = 8, 1f1b, stage 1:  F0 F1 F2 | B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 | B5 B6 B7
//   warm-up min(m, p-1-i) forwards; stash at most min(m, p-i); bubble (p-1)/(m+p-1)
//
// Stages need not be alike in anything; only `pipe_closed` asks for that.
#ifndef DSM_PLAN_PIPELINE_H
#define DSM_PLAN_PIPELINE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "runtime/base/arena.h"

typedef enum pipe_kind {
  PIPE_ONE_F_ONE_B,  // Narayanan et al. 2021
  PIPE_INTERLEAVED,  // the same, two chunks a stage or more; m must be a multiple of p
  PIPE_GPIPE,        // all forwards, then all backwards; with chunks, chunk after chunk
  PIPE_ZERO_BUBBLE,  // ZB-H1 (Qi et al. 2023): weight gradients fill the gaps; no stage stashes
                     // more than the first one does in 1f1b; never slower than 1f1b
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

typedef struct pipeline {
  pipe_kind kind;
  int stages;               // p
  int chunks;               // v; of part k = c * p + i (chunk c of stage i) the next part is k + 1
  int64_t micro;            // m
  const pipe_chunk *chunk;  // [stages * chunks], chunk c of stage i at i * chunks + c
  const double *before;  // [stages] seconds at the start of the step (NULL: 0): gathers of weights
  const double *after;   // [stages] behind the last phase of the stage (NULL: 0): exposed
                         // gradient reduction, optimizer
} pipeline;

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

// NULL when the order exists for p, v and m, else what is wrong in words, in `a` ("interleaved
// needs a number of micro-batches that 8 stages divide: 12 is none"). All other functions here need
// a pipe that passes.
const char *pipe_check(arena *a, const pipeline *p);
// What each stage does, run by run; [stages]. The order of zero_bubble depends on the seconds
// (which gaps there are), that of the others on p, v and m only.
pipe_list *pipe_orders(arena *a, const pipeline *p);
// What `stage` does. For zero_bubble as much work as pipe_orders.
pipe_list pipe_order_of(arena *a, const pipeline *p, int stage);
// The most micro-batches whose activations of any chunk a stage holds at once (an interleaved stage
// counts each chunk's). 1f1b: min(m, p-i). And the same for each chunk when `each` is not NULL
// ([chunks]; at the first moment when the sum is largest). Activations are held until their last
// phase is over: B, or W where it exists. Only zero_bubble needs the scratch arena; without one
// (NULL) the answer is the least that any of its orders holds, that of 1f1b.
int64_t pipe_stash(arena *scratch, const pipeline *p, int stage, int64_t *each);
// The most micro-batches that have begun phase `from` and not ended phase `to` behind it; of a
// stage without chunks. From F to the last phase it is pipe_stash.
int64_t pipe_held(arena *scratch, const pipeline *p, int stage, pipe_phase from, pipe_phase to);
// The same in bytes, when a micro-batch of chunk c holds bytes[c]: the highest sum over the moments
// of the order, which for unlike chunks need not be the moment of the largest count.
double pipe_stash_bytes(arena *scratch, const pipeline *p, int stage, const double *bytes);

// Where the critical stage's seconds go:
//   step = before + busy + exposed_send + bubble + after
typedef struct pipe_result {
  double step;          // seconds, from the first start to the last end
  double busy;          // of the critical stage: seconds of its phases
  int critical;         // the stage with most seconds of its own: before + busy + after
  double bubble;        // the rest: it waits for work of other stages
  double exposed_send;  // it waits for a message whose content is done: the message runs, or queues
} pipe_result;
// By the longest path over (stage, micro-batch, phase). O(p v m), less for 1f1b, which is left as
// soon as it repeats itself. Messages: a stage's sends and computes overlap; a message starts when
// what it carries is done and the link is free; parts of one stage (p = 1) need none.
pipe_result pipe_longest(arena *scratch, const pipeline *p);
// A lower bound of pipe_longest's step for any stages. O(p v), no memory.
double pipe_bound(const pipeline *p);
// By formula, for equal stages; formulas and where they hold are in pipeline.c. Negative where
// there is none (unequal stages, messages that are too long for it).
double pipe_closed(const pipeline *p);

// Discrete events: one compute stream and two message streams (forward, backward) a stage. Writes a
// Chrome/Perfetto trace to `trace` when that is not NULL: one process a stage, one thread a stream,
// counter "stash" (and "memory" in bytes when stash_bytes[stages*chunks], of one micro-batch, is
// not NULL; fixed_bytes[stages] is added to it when not NULL). Processes are called names[stages],
// or "stage 0" and so on when that is NULL. The trace is written as it comes, what is held is the
// orders; whether it could be written is for the caller to ask (ferror).
pipe_result pipe_simulate(arena *scratch, const pipeline *p, const char *const *names,
                          const double *stash_bytes, const double *fixed_bytes, FILE *trace);

#endif
