// The charts of the report page, and how texts get into it. Private to report*.c.
#ifndef DSM_PLAN_REPORT_H
#define DSM_PLAN_REPORT_H

#include "passes/plan/show.h"

// A text as HTML: safe to print and with `<`, `&` and quotes written out.
const char *html_escape(arena *a, const char *s);

// Where a plan stands in the picture of throughput against memory, and its number in the table.
typedef struct report_point {
  int number;
  double bytes, tokens_per_s;  // 0: not worked out
  bool fits, best, front;
  const char *text;  // of its tooltip
} report_point;
typedef VEC(report_point) report_points;
// Marks what no other plan that fits beats in both.
void report_mark_front(report_points *p);

// Each prints one <svg>. The colours are classes of the style sheet: m0..m4 of memory, t0..t8 of
// time, in the order of their enums.
void svg_memory(arena *a, const plan_candidate *c, FILE *out);
void svg_timeline(arena *a, const plan_candidate *c, FILE *out);
void svg_time(arena *a, const plan_candidate *c, FILE *out);
void svg_throughput(arena *a, const report_points *p, double capacity, FILE *out);

// A table shows as many rows, the first and the last ones; so do the charts.
#define REPORT_STAGES 24
#define REPORT_LANES 16

#endif
