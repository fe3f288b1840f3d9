// The charts of the report page: inline SVG, drawn in a frame 960 units wide that the page scales.
//
// What a mark means never hangs on colour alone: numbers stand in or beside it, and a <title> says
// it in words where the mouse rests.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "passes/plan/report.h"
#include "passes/plan/timeline.h"
#include "runtime/base/str.h"

#define WIDE 960.0

static void open_svg(FILE *out, double high, const char *says) {
  fprintf(out, "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">\n", WIDE, high,
          says);
}

static void rect(FILE *out, const char *class, double x, double y, double w, double h,
                 const char *says) {
  fprintf(out, "<rect class=\"%s\" x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\"", class, x,
          y, w > 0 ? w : 0, h);
  if (says)
    fprintf(out, "><title>%s</title></rect>\n", says);
  else
    fputs("/>\n", out);
}

static void line(FILE *out, const char *class, double x1, double y1, double x2, double y2) {
  fprintf(out, "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", class, x1,
          y1, x2, y2);
}

// `anchor`: start, middle or end.
static void label(FILE *out, const char *class, const char *anchor, double x, double y,
                  const char *text) {
  fprintf(out, "<text class=\"%s\" text-anchor=\"%s\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", class,
          anchor, x, y, text);
}

// Distance of round ticks, about `n` of them up to `most`.
static double tick_step(double most, int n) {
  if (!(most > 0) || !isfinite(most)) return 1;
  double raw = most / n, power = pow(10, floor(log10(raw))), x = raw / power;
  return power * (x <= 1 ? 1 : x <= 2 ? 2 : x <= 5 ? 5 : 10);
}

// A tick's number without needless zeros.
static const char *tick_text(arena *a, double x, double step) {
  int decimals = step >= 1 ? 0 : (int)ceil(-log10(step) - 1e-9);
  return arena_printf(a, "%.*f", decimals > 6 ? 6 : decimals, x);
}

// The same of counts: "50 k", "1.5 M".
static const char *count_tick(arena *a, double x, double step, double most) {
  double by = most >= 1e9 ? 1e9 : most >= 1e6 ? 1e6 : most >= 1e3 ? 1e3 : 1;
  const char *unit = most >= 1e9 ? " B" : most >= 1e6 ? " M" : most >= 1e3 ? " k" : "";
  return x == 0 ? "0" : arena_printf(a, "%s%s", tick_text(a, x / by, step / by), unit);
}

// ---- memory -------------------------------------------------------------------------------------

void svg_memory(arena *a, const plan_candidate *c, FILE *out) {
  // A nearly empty device: its capacity would leave nothing to see of what is in it.
  bool empty = c->peak < c->capacity / 8;
  double peak = (double)c->peak, capacity = (double)c->capacity;
  double right = empty ? 1.1 * peak : peak > capacity ? peak : capacity;
  show_unit u = show_bytes_unit(right), own = show_bytes_unit(peak);
  plan_rows *g = arena_new(a, plan_rows, c->nstages);
  int n = plan_group_stages(c, own, g);
  int shown = n > REPORT_STAGES ? REPORT_STAGES : n;
  bool cut = shown < n;
  const double LEFT = 150, RIGHT = 100, TOP = 26, ROW = 28;
  double most = right > 0 ? right / u.by : 1;
  double bottom = TOP + ROW * (shown + cut), plot = WIDE - LEFT - RIGHT, by = plot / most;
  open_svg(out, bottom + 38, "memory of each stage by class, against the capacity of a device");
  double step = tick_step(most, 6);
  for (double x = 0; x <= most * 1.0001; x += step) {
    line(out, "grid", LEFT + x * by, TOP, LEFT + x * by, bottom);
    label(out, "soft", "middle", LEFT + x * by, bottom + 16, tick_text(a, x, step));
  }
  label(out, "soft", "middle", LEFT + plot / 2, bottom + 33,
        arena_printf(a, "%s per device", u.name));
  for (int row = 0, i = 0; i < n; row++, i++) {
    double y = TOP + ROW * row;
    if (cut && row == shown / 2) {
      i = n - shown / 2 - 1;
      label(out, "soft", "start", LEFT, y + 18,
            arena_printf(a, "%d rows of stages between, not drawn", n - shown));
      continue;
    }
    const plan_stage *s = &c->stage[g[i].first];
    label(out, "ink", "end", LEFT - 10, y + 18,
          g[i].first == g[i].last
              ? arena_printf(a, "stage %d", g[i].first)
              : arena_printf(a, "stages %d\xe2\x80\x93%d", g[i].first, g[i].last));
    double x = LEFT;
    for (int m = 0; m < PLAN_MEMORIES; m++) {
      double value = (double)s->memory[m] / u.by, w = value * by;
      if (s->memory[m] <= 0) continue;
      rect(out, arena_printf(a, "m%d", m), x, y + 4, w, ROW - 8,
           arena_printf(a, "%s: %s", plan_memory_words((plan_memory)m),
                        show_bytes(a, (double)s->memory[m])));
      if (w > 34)
        label(out, arena_printf(a, "in n%d", m), "middle", x + w / 2, y + 18,
              arena_printf(a, "%.1f", value));
      x += w;
    }
    const char *says = show_bytes(a, (double)s->peak);
    double from = x + 8, edge = LEFT + capacity / u.by * by;
    if (from < edge + 4 && from + 7.5 * (double)strlen(says) > edge)
      from = edge + 6;  // not on the line
    label(out, s->peak > c->capacity ? "over" : "ink", "start", from, y + 18, says);
  }
  const char *says = arena_printf(a, "capacity %s", show_bytes(a, capacity));
  if (empty) {
    label(out, "ink", "end", WIDE, TOP - 10, arena_printf(a, "%s, far to the right", says));
  } else {
    double edge = LEFT + capacity / u.by * by;
    bool near = edge > WIDE - 66;
    line(out, "edge", edge, TOP - 4, edge, bottom);
    label(out, "ink", near ? "end" : "middle", near ? WIDE : edge, TOP - 10, says);
  }
  fputs("</svg>\n", out);
}

// ---- timeline -----------------------------------------------------------------------------------

// A part of the step, drawn from `x` on.
typedef struct window {
  double from, to, x, by;
} window;

static void draw_window(arena *a, const plan_candidate *c, const timeline *t, window w, int stage,
                        double y, double high, bool tell, FILE *out) {
  const pipeline *p = &c->pipe;
  static const char *const class[] = {"pf", "pb", "pw"}, *const name[] = {"forward", "backward",
                                                                          "weight gradients"};
  for (int64_t k = 0; k < t->n[stage]; k++) {
    const timeline_bar *b = &t->at[stage][k];
    if (b->end <= w.from || b->start >= w.to) continue;
    double start = b->start > w.from ? b->start : w.from, end = b->end < w.to ? b->end : w.to;
    double x = w.x + (start - w.from) * w.by, wide = (end - start) * w.by;
    // A later chunk is lighter.
    const char *how = p->chunks > 1
                          ? arena_printf(a, "%s c%d", class[b->phase], b->chunk * 4 / p->chunks)
                          : class[b->phase];
    const char *says = NULL;
    if (tell && p->chunks > 1)
      says = arena_printf(a, "%s of micro-batch %" PRId64 ", chunk %d", name[b->phase], b->micro,
                          b->chunk);
    else if (tell)
      says = arena_printf(a, "%s of micro-batch %" PRId64, name[b->phase], b->micro);
    rect(out, how, x, y, wide > 0.8 ? wide - 0.4 : wide, high, says);
    const char *number = arena_printf(a, "%" PRId64, b->micro);
    if (wide > 6.0 * show_columns(number) + 3)
      label(out, "tiny", "middle", x + wide / 2, y + high / 2 + 3.2, number);
  }
  double last = t->n[stage] ? t->at[stage][t->n[stage] - 1].end : 0;
  double after = p->after ? p->after[stage] : 0;
  double start = last > w.from ? last : w.from, end = last + after < w.to ? last + after : w.to;
  if (end > start)
    rect(out, "pa", w.x + (start - w.from) * w.by, y, (end - start) * w.by, high,
         "gradient reduction and optimizer");
  double before = p->before ? p->before[stage] : 0;
  if (before > w.from)
    rect(out, "pa", w.x, y, ((before < w.to ? before : w.to) - w.from) * w.by, high,
         "weights gathered");
}

// Until when the beginning is worth showing: the first backward of stage 0, or some dozens of bars.
static double beginning(const timeline *t) {
  double first = 0, sum = 0;
  int64_t n = 0;
  for (int64_t k = 0; k < t->n[0]; k++) {
    const timeline_bar *b = &t->at[0][k];
    if (b->phase == PIPE_B && first == 0) first = b->end;
    sum += b->end - b->start;
    n++;
  }
  double bars = n ? 44 * sum / (double)n : 0;
  return first * 1.05 > bars ? first * 1.05 : bars;
}

void svg_timeline(arena *a, const plan_candidate *c, FILE *out) {
  const timeline *t = timeline_of(a, &c->pipe);
  if (!t) {
    fputs("<p>The step has too many phases to draw.</p>\n", out);
    return;
  }
  const double LEFT = 76, TOP = 8, GAP = 40;
  int shown = t->stages > REPORT_LANES ? REPORT_LANES : t->stages;
  bool cut = shown < t->stages;
  double row = shown > 10 ? 18 : 24, plot = WIDE - LEFT - 16;
  double bottom = TOP + row * (shown + cut);
  double part = beginning(t);
  bool whole = 2 * part >= 0.9 * t->end;
  window w[2] = {{0, t->end, LEFT, plot / t->end}};
  if (!whole) {
    double by = (plot - GAP) / 2 / part;
    w[0] = (window){0, part, LEFT, by};
    w[1] = (window){t->end - part, t->end, LEFT + (plot + GAP) / 2, by};
  }
  int windows = whole ? 1 : 2;
  int64_t bars = 0;
  for (int i = 0; i < t->stages; i++) bars += t->n[i];
  open_svg(out, bottom + 38, "what each stage does when");
  show_unit u = show_seconds_unit(t->end);
  for (int k = 0; k < windows; k++) {
    double step = tick_step((w[k].to - w[k].from) / u.by, whole ? 8 : 4);
    for (double x = ceil(w[k].from / u.by / step) * step; x <= w[k].to / u.by * 1.0001; x += step) {
      double at = w[k].x + (x * u.by - w[k].from) * w[k].by;
      line(out, "grid", at, TOP, at, bottom);
      label(out, "soft", "middle", at, bottom + 16, tick_text(a, x, step));
    }
  }
  label(out, "soft", "middle", LEFT + plot / 2, bottom + 33,
        arena_printf(a, "time in the step, %s", u.name));
  for (int lane = 0, i = 0; i < t->stages; lane++, i++) {
    double y = TOP + row * lane;
    if (cut && lane == shown / 2) {
      i = t->stages - shown / 2 - 1;
      label(out, "soft", "start", LEFT, y + row - 5,
            arena_printf(a, "stages %d\xe2\x80\x93%d not drawn", shown / 2, i));
      continue;
    }
    label(out, "ink", "end", LEFT - 8, y + row / 2 + 4, arena_printf(a, "stage %d", i));
    for (int k = 0; k < windows; k++)
      draw_window(a, c, t, w[k], i, y + 1.5, row - 3, bars < 200000, out);
  }
  if (!whole) {
    double x = LEFT + plot / 2;
    label(out, "soft", "middle", x, (TOP + bottom) / 2, SHOW_MORE);
  }
  fputs("</svg>\n", out);
  fputs("<p class=\"key\"><i class=\"pf\"></i> forward <i class=\"pb\"></i> backward ", out);
  if (c->pipe.kind == PIPE_ZERO_BUBBLE) fputs("<i class=\"pw\"></i> weight gradients ", out);
  if (c->pipe.after) fputs("<i class=\"pa\"></i> exposed gradient reduction and optimizer ", out);
  fputs("</p>\n<p class=\"note\">Numbers are micro-batches. ", out);
  if (c->pipe.chunks > 1) fputs("Fainter: later chunks of the stage. ", out);
  if (!whole)
    fprintf(out, "Drawn: the first and the last %s of %s; between them %s of the same pattern. ",
            show_seconds(a, part), show_seconds(a, t->end), show_seconds(a, t->end - 2 * part));
  fprintf(out, "On average a stage works %s of the step.</p>\n", show_percent(a, timeline_busy(t)));
}

// ---- where the time goes ------------------------------------------------------------------------

void svg_time(arena *a, const plan_candidate *c, FILE *out) {
  const double TOP = 6, HIGH = 40;
  double sum = 0;
  for (int t = 0; t < PLAN_TIMES; t++) sum += c->time[t];
  open_svg(out, TOP + HIGH + 24, "seconds of the step by what the critical stage waits for");
  double x = 0, by = sum > 0 ? WIDE / sum : 0;
  for (int t = 0; t < PLAN_TIMES; t++) {
    double w = c->time[t] * by;
    if (w <= 0) continue;
    rect(out, arena_printf(a, "t%d", t), x, TOP, w > 1.5 ? w - 0.6 : w, HIGH,
         arena_printf(a, "%s: %s, %s", plan_time_name((plan_time)t), show_seconds(a, c->time[t]),
                      show_percent(a, c->time[t] / sum)));
    const char *name = plan_time_name((plan_time)t);
    const char *both = arena_printf(a, "%s %s", name, show_seconds(a, c->time[t]));
    const char *text = w > 7.5 * show_columns(both) + 8   ? both
                       : w > 7.5 * show_columns(name) + 8 ? name
                                                          : NULL;
    if (text)
      label(out, arena_printf(a, "in o%d", t), "middle", x + w / 2, TOP + HIGH / 2 + 4.5, text);
    x += w;
  }
  label(out, "soft", "start", 0, TOP + HIGH + 18, "0 s");
  label(out, "soft", "end", WIDE, TOP + HIGH + 18, show_seconds(a, sum));
  fputs("</svg>\n", out);
}

// ---- throughput against memory ------------------------------------------------------------------

void report_mark_front(report_points *p) {
  for (int i = 0; i < p->n; i++) {
    report_point *x = &p->at[i];
    x->front = x->fits && x->bytes > 0 && x->tokens_per_s > 0;
    for (int k = 0; k < p->n && x->front; k++) {
      const report_point *y = &p->at[k];
      bool less = y->bytes < x->bytes || y->tokens_per_s > x->tokens_per_s || k < i;
      if (k != i && y->fits && y->bytes > 0 && y->bytes <= x->bytes &&
          y->tokens_per_s >= x->tokens_per_s && less)
        x->front = false;
    }
  }
}

// The front as steps: with this much memory, this many tokens.
static void draw_front(const report_points *p, double x0, double xmost, double y0, double xby,
                       double yby, FILE *out) {
  double memory = -1;
  bool any = false;
  for (;;) {
    const report_point *next = NULL;
    for (int i = 0; i < p->n; i++) {
      const report_point *q = &p->at[i];
      if (q->front && q->bytes > memory && (!next || q->bytes < next->bytes)) next = q;
    }
    if (!next) break;
    double x = x0 + next->bytes * xby, y = y0 - next->tokens_per_s * yby;
    if (!any)
      fprintf(out, "<path class=\"front\" d=\"M%.1f %.1f", x, y);
    else
      fprintf(out, "H%.1fV%.1f", x, y);
    any = true;
    memory = next->bytes;
  }
  if (any) fprintf(out, "H%.1f\"/>\n", xmost);
}

typedef struct spot {
  double x, y;
} spot;

void svg_throughput(arena *a, const report_points *p, double capacity, FILE *out) {
  const double LEFT = 84, RIGHT = 24, TOP = 26, HIGH = 300;
  double most = capacity, fast = 0;
  for (int i = 0; i < p->n; i++) {
    if (p->at[i].bytes > most) most = p->at[i].bytes;
    if (p->at[i].tokens_per_s > fast) fast = p->at[i].tokens_per_s;
  }
  if (most > 2 * capacity && capacity > 0) most = 2 * capacity;
  // Where all is small, the capacity is far away and says little: the plans say where to look.
  double widest = 0;
  for (int i = 0; i < p->n; i++)
    if (p->at[i].bytes > widest) widest = p->at[i].bytes;
  if (widest > 0 && widest < capacity / 8) most = widest * 1.25;
  most *= 1.04;
  fast = fast > 0 ? fast * 1.1 : 1;
  show_unit u = show_bytes_unit(most);
  double plot = WIDE - LEFT - RIGHT, bottom = TOP + HIGH, xby = plot / most, yby = HIGH / fast;
  open_svg(out, bottom + 42, "tokens a second against peak memory, one mark a plan");
  double edge = LEFT + capacity * xby;
  if (edge < WIDE - RIGHT) {
    rect(out, "beyond", edge, TOP, WIDE - RIGHT - edge, HIGH, NULL);
    line(out, "edge", edge, TOP - 4, edge, bottom);
    label(out, "ink", edge > WIDE - 160 ? "end" : "middle", edge > WIDE - 160 ? WIDE - RIGHT : edge,
          TOP - 10, arena_printf(a, "capacity %s", show_bytes(a, capacity)));
  }
  double step = tick_step(most / u.by, 8);
  for (double x = 0; x <= most / u.by; x += step) {
    line(out, "grid", LEFT + x * u.by * xby, TOP, LEFT + x * u.by * xby, bottom);
    label(out, "soft", "middle", LEFT + x * u.by * xby, bottom + 18, tick_text(a, x, step));
  }
  step = tick_step(fast, 5);
  for (double y = 0; y <= fast; y += step) {
    line(out, "grid", LEFT, bottom - y * yby, WIDE - RIGHT, bottom - y * yby);
    label(out, "soft", "end", LEFT - 8, bottom - y * yby + 4, count_tick(a, y, step, fast));
  }
  label(out, "soft", "middle", LEFT + plot / 2, bottom + 37,
        arena_printf(a, "peak memory of the fullest device, %s", u.name));
  label(out, "soft", "start", 0, TOP - 10, "tokens/s");
  draw_front(p, LEFT, edge < WIDE - RIGHT ? edge : WIDE - RIGHT, bottom, xby, yby, out);
  spot *labels = arena_new(a, spot, p->n);
  int nlabels = 0;
  for (int i = 0; i < p->n; i++) {
    const report_point *q = &p->at[i];
    if (q->bytes <= 0) continue;
    bool far = q->bytes > most;
    double x = far ? WIDE - RIGHT - 6 : LEFT + q->bytes * xby, y = bottom - q->tokens_per_s * yby;
    if (q->tokens_per_s > 0)
      fprintf(out,
              "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\"><title>%s</title></circle>\n",
              q->best   ? "best"
              : q->fits ? "fits"
                        : "misfit",
              x, y, q->best ? "8" : "5", q->text);
    else  // a cross on the axis: what it would take is known, how fast it would be is not
      fprintf(out,
              "<path class=\"cross\" d=\"M%.1f %.1fl8 8m0 -8l-8 8\"><title>%s</title></path>\n",
              x - 4, bottom - 4, q->text);
    // Numbers stand above their marks, except where one stands already.
    double ly = q->tokens_per_s > 0 ? y - 11 : bottom - 10;
    bool free = true;
    for (int k = 0; k < nlabels && free; k++)
      free = fabs(labels[k].x - x) > 22 || fabs(labels[k].y - ly) > 12;
    if (!free) continue;
    labels[nlabels++] = (spot){x, ly};
    label(out, q->best ? "ink strong" : "ink", "middle", x, ly, arena_printf(a, "%d", q->number));
  }
  fputs("</svg>\n", out);
}
