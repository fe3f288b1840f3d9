// What a person sees of a training run: a line that is rewritten on a terminal, plain lines about
// every 5 % of the steps elsewhere, and a plot of the loss at the end.
#ifndef DSM_PROGRESS_H
#define DSM_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define CURVE_COLUMNS 60
#define CURVE_ROWS 8

typedef struct progress {
  FILE *out;  // NULL: silent
  bool terminal;
  bool pending;          // a rewritten line is on the screen
  int64_t first, steps;  // the run does steps first+1 .. steps
  double start, shown;
  double sum[CURVE_COLUMNS];  // of losses, by column of the plot
  int64_t count[CURVE_COLUMNS];
  double first_loss, last_loss;
} progress;

typedef struct progress_step {
  int64_t step;
  double loss, grad_norm;  // NaN: the program has none
  double lr, tokens_per_s;
  double flops_per_s;  // 0: unknown
  double peak;         // FLOP/s of the machine; 0: unknown
} progress_step;

void progress_begin(progress *p, FILE *out, int64_t first, int64_t steps);
void progress_show(progress *p, const progress_step *s);
// Ends a rewritten line, so that something else can be printed.
void progress_break(progress *p);
// The plot: 8 rows, up to 60 columns, plain ASCII.
void progress_plot(progress *p);

#endif
