// Inside of the pipeline orders: shared by pipe_order.c (what a stage does) and pipeline.c (when).
//
// All orders but zero_bubble are one scheme: `warm` forwards, then forward and backward in turn,
// then the backwards that are left. Forwards go through the chunks in *groups* of micro-batches:
// `group` of chunk 0, the same of chunk 1, ..., then the next group; backwards the same, from the
// last chunk down.
//
//                  chunks  group  warm of stage i
//   one_f_one_b    1       m      p-1-i
//   interleaved    v       p      2(p-1-i) + (v-1)p
//   gpipe          v       m      v m
#ifndef DSM_PLAN_PIPE_ORDER_H
#define DSM_PLAN_PIPE_ORDER_H

#include "passes/plan/pipeline.h"

int64_t pipe_group(const pipeline *p);
int64_t pipe_warm(const pipeline *p, int stage);  // at most v m
// How many forwards a stage has done when its first backward starts: the warm-up and one more, at
// most v m. And how many of its first n forwards are of one chunk.
int64_t pipe_before_back(const pipeline *p, int stage);
int64_t pipe_of_chunk(const pipeline *p, int64_t n, int chunk);

// Walks an order without a list:
//   for (pipe_cursor c = pipe_cursor_of(p, stage); c.left; pipe_cursor_next(&c)) use(c.phase, ...);
typedef struct pipe_cursor {
  pipe_phase phase;
  int chunk;
  int64_t micro;
  int64_t left;  // phases, with this one; 0: at the end
  int chunks;
  int64_t warm, group, ahead;  // ahead: forwards less backwards that were passed
  // Where the forwards [0] and the backwards [1] are: chunk of this group (backwards count from the
  // last one), place in the group, its first micro-batch, phases left.
  struct {
    int chunk;
    int64_t at, base, left;
  } way[2];
} pipe_cursor;
pipe_cursor pipe_cursor_of(const pipeline *p, int stage);
void pipe_cursor_next(pipe_cursor *c);

// Zero bubble: makes the order and finds its times on the way, since gaps decide where weight
// gradients go. `orders` [stages] is filled in `a` when not NULL.
pipe_result pipe_zero_bubble(arena *a, const pipeline *p, pipe_list *orders);

// ---- what both ways of finding the step share: sums, no times -----------------------------------

// fmax without its care for NaN, which keeps compilers from making it one instruction.
static inline double pipe_later(double a, double b) { return a > b ? a : b; }
static inline double pipe_before(const pipeline *p, int stage) {
  return p->before ? p->before[stage] : 0;
}
static inline double pipe_after(const pipeline *p, int stage) {
  return p->after ? p->after[stage] : 0;
}
double pipe_busy(const pipeline *p, int stage);
int pipe_critical(const pipeline *p);
// The result of a step of `step` seconds whose critical stage waited `exposed` for messages.
pipe_result pipe_result_of(const pipeline *p, double step, double exposed);

#endif
