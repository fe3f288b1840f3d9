#include "runtime/drivers/progress.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/str.h"
#include "runtime/drivers/driver.h"

#define REDRAW_S 0.1

void progress_begin(progress *p, FILE *out, int64_t first, int64_t steps) {
  memset(p, 0, sizeof *p);
  const char *term = getenv("TERM");
  p->out = out;
  p->terminal = out && isatty(fileno(out)) && term && !str_eq(term, "dumb");
  p->first = first;
  p->steps = steps;
  p->start = rt_now();
}

static int columns(const progress *p) {
  int64_t n = p->steps - p->first;
  return n < CURVE_COLUMNS ? (int)n : CURVE_COLUMNS;
}

static int line_text(const progress *p, const progress_step *s, char *buf, size_t cap) {
  char a[32], c[32];
  double left = (rt_now() - p->start) / (double)(s->step - p->first) * (double)(p->steps - s->step);
  int n = snprintf(buf, cap,
                   s->loss < 1e5 ? "step %" PRId64 "/%" PRId64 "  loss %.4f"
                                 : "step %" PRId64 "/%" PRId64 "  loss %.4g",
                   s->step, p->steps, s->loss);
  if (!isnan(s->grad_norm)) n += snprintf(buf + n, cap - (size_t)n, "  grad %.3g", s->grad_norm);
  n += snprintf(buf + n, cap - (size_t)n, "  lr %.3g  %s tokens/s", s->lr,
                rt_count(s->tokens_per_s, a));
  double gflops = s->flops_per_s * 1e-9;
  if (gflops > 0)
    n += snprintf(buf + n, cap - (size_t)n, gflops < 100 ? "  %.2f GFLOP/s" : "  %.0f GFLOP/s",
                  gflops);
  if (s->flops_per_s > 0 && s->peak > 0)
    n += snprintf(buf + n, cap - (size_t)n, "  MFU %.1f %%", 100 * s->flops_per_s / s->peak);
  if (s->step < p->steps) n += snprintf(buf + n, cap - (size_t)n, "  %s left", rt_seconds(left, c));
  return n;
}

void progress_show(progress *p, const progress_step *s) {
  if (s->step == p->first + 1) p->first_loss = s->loss;
  p->last_loss = s->loss;
  int64_t n = p->steps - p->first, i = s->step - p->first - 1;
  int col = (int)(i * columns(p) / n);
  p->sum[col] += s->loss;
  p->count[col]++;
  if (!p->out) return;
  char text[512];
  if (p->terminal) {
    double now = rt_now();
    if (s->step < p->steps && p->pending && now - p->shown < REDRAW_S) return;
    line_text(p, s, text, sizeof text);
    fprintf(p->out, "\r%s\033[K", text);
    fflush(p->out);
    p->shown = now;
    p->pending = true;
    return;
  }
  int64_t every = p->steps > 20 ? p->steps / 20 : 1;
  if (s->step % every && s->step != p->steps && i != 0) return;
  line_text(p, s, text, sizeof text);
  fprintf(p->out, "%s\n", text);
  fflush(p->out);
}

void progress_break(progress *p) {
  if (p->pending) fputc('\n', p->out);
  p->pending = false;
}

void progress_plot(progress *p) {
  int n = columns(p);
  double low = INFINITY, high = -INFINITY, y[CURVE_COLUMNS];
  int used = 0;
  for (int i = 0; i < n; i++) {
    if (!p->count[i]) continue;  // a run that was stopped
    y[used] = p->sum[i] / (double)p->count[i];
    low = fmin(low, y[used]);
    high = fmax(high, y[used]);
    used++;
  }
  if (!p->out || used < 2) return;
  for (int r = 0; r < CURVE_ROWS; r++) {
    char row[CURVE_COLUMNS + 1];
    int end = 0;
    for (int i = 0; i < used; i++) {
      double level = high > low ? (high - y[i]) / (high - low) : 0;
      row[i] = (int)(level * (CURVE_ROWS - 1) + 0.5) == r ? '*' : ' ';
      if (row[i] != ' ') end = i + 1;
    }
    row[end] = 0;
    double value = high - (high - low) * r / (CURVE_ROWS - 1);
    if (r == 0 || r == CURVE_ROWS - 1)
      fprintf(p->out, "  %8.4f |%s\n", value, row);
    else
      fprintf(p->out, "  %8s |%s\n", "", row);
  }
}
