// The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
// ("Trace Event Format"): complete events ("ph": "X") with begin and duration in microseconds.
#include "runtime/trace.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/exchange.h"

enum { DRIVER, COMPUTE };  // threads

struct trace {
  const prog *prog;
  trace_event *at;
  int64_t n, cap, lost;
};

trace *trace_new(const prog *p, int64_t events) {
  trace *t = calloc(1, sizeof *t);
  if (!t) return NULL;
  t->prog = p;
  t->cap = events;
  t->at = malloc((size_t)(events + 1) * sizeof *t->at);
  if (!t->at) {
    free(t);
    return NULL;
  }
  // Touched now: a page fault in a step would be seen in the trace.
  memset(t->at, 0, (size_t)(events + 1) * sizeof *t->at);
  return t;
}

void trace_free(trace *t) {
  if (t) free(t->at);
  free(t);
}

int64_t trace_events_of(const prog *p, const prog_entry *e) {
  int64_t n = 2, loop_end = -1, micros = 1;
  for (int64_t i = 0; i < e->runs; i++) {
    const prog_run *r = &p->runs[e->first_run + i];
    if (r->kind == PROG_LOOP) {
      loop_end = i + r->task;
      micros = r->micro_count;
      continue;
    }
    int64_t each = r->layer_count * (1 + (int64_t)p->tasks[r->task].instrs);
    n += each * (i <= loop_end ? micros : 1);
  }
  return n;
}

void trace_add(trace *t, const trace_event *e) {
  if (t->n == t->cap)
    t->lost++;
  else
    t->at[t->n++] = *e;
}

int64_t trace_count(const trace *t) { return t->n; }
int64_t trace_lost(const trace *t) { return t->lost; }

// ---- the file -----------------------------------------------------------------------------------

// Text on its way to the file; after the first failure nothing more is written.
typedef struct writer {
  file_out *out;
  status *failed;
  size_t n;
  char buf[1 << 16];
} writer;

static void flush(writer *w) {
  if (!w->failed) w->failed = file_write(w->out, w->buf, w->n);
  w->n = 0;
}

static void put(writer *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(writer *w, const char *fmt, ...) {
  enum { LONGEST = 512 };  // of what one call makes
  if (w->n + LONGEST > sizeof w->buf) flush(w);
  va_list ap;
  va_start(ap, fmt);
  int k = vsnprintf(w->buf + w->n, LONGEST, fmt, ap);
  va_end(ap);
  if (k > 0) w->n += k < LONGEST ? (size_t)k : LONGEST - 1;
}

static void put_text(writer *w, const char *text) {
  put(w, "\"");
  for (const char *p = text; *p; p++) {
    unsigned char c = (unsigned char)*p;
    if (c == '"' || c == '\\')
      put(w, "\\%c", c);
    else if (c < 0x20)
      put(w, "\\u%04x", c);
    else
      put(w, "%c", c);
  }
  put(w, "\"");
}

static void put_thread(writer *w, int rank, int thread, const char *name) {
  put(w,
      "{\"ph\": \"M\", \"name\": \"thread_name\", \"pid\": %d, \"tid\": %d, "
      "\"args\": {\"name\": \"%s\"}},\n",
      rank, thread, name);
  put(w,
      "{\"ph\": \"M\", \"name\": \"thread_sort_index\", \"pid\": %d, \"tid\": %d, "
      "\"args\": {\"sort_index\": %d}},\n",
      rank, thread, thread);
}

static void put_rates(writer *w, double flops, double bytes, int64_t ns) {
  if (ns <= 0) return;
  put(w, ", \"gflops_per_s\": %.3f, \"gbytes_per_s\": %.3f", flops / (double)ns,
      bytes / (double)ns);
}

static void put_instr(writer *w, const prog *p, const trace_event *e) {
  const prog_instr *in = &p->instrs[e->index];
  const prog_kernel *k = prog_kernel_of(p, in);
  put(w,
      ", \"cat\": \"instruction%s\", \"name\": ", in->flags & PROG_RECOMPUTE ? ",recompute" : "");
  put_text(w, k                         ? prog_text(p, k->name)
              : in->op == RTOP_exchange ? exchange_name(p->exchanges[in->kernel].kind)
                                        : prog_opcode_name(in->op));
  put(w, ", \"args\": {\"note\": ");
  put_text(w, prog_text(p, in->note));
  if (k) {
    put(w, ", \"cells\": %" PRId64, k->cells);
    put_rates(w, k->flops, k->bytes, e->end - e->begin);
  }
}

static void put_task(writer *w, const prog *p, const trace_event *e) {
  const prog_task *t = &p->tasks[e->index];
  put(w, ", \"cat\": \"task\", \"name\": ");
  put_text(w, prog_text(p, t->name));
  put(w, ", \"args\": {\"phase\": ");
  put_text(w, prog_text(p, t->phase));
  put_rates(w, t->flops, t->bytes, e->end - e->begin);
}

// Nanoseconds as microseconds, exactly.
static void put_us(writer *w, const char *name, int64_t ns) {
  put(w, ", \"%s\": %" PRId64 ".%03d", name, ns / 1000, (int)(ns % 1000));
}

static void put_event(writer *w, const prog *p, int rank, const trace_event *e, int64_t zero) {
  bool compute = e->kind == TRACE_TASK || e->kind == TRACE_INSTR;
  put(w, "{\"ph\": \"X\", \"pid\": %d, \"tid\": %d", rank, compute ? COMPUTE : DRIVER);
  put_us(w, "ts", e->begin - zero);
  put_us(w, "dur", e->end - e->begin);
  switch (e->kind) {
    case TRACE_STEP:
      put(w, ", \"cat\": \"step\", \"name\": \"step %" PRId64 "\", \"args\": {", e->step);
      break;
    case TRACE_FILL: put(w, ", \"cat\": \"data\", \"name\": \"fill inputs\", \"args\": {"); break;
    case TRACE_TASK: put_task(w, p, e); break;
    case TRACE_INSTR: put_instr(w, p, e); break;
  }
  if (compute)
    put(w, ", \"layer\": %" PRId64 ", \"micro_batch\": %" PRId64 ", \"sample\": %" PRId64 ", ",
        e->layer, e->micro, e->sample0);
  put(w, "\"step\": %" PRId64 "}}", e->step);
}

status *trace_write(const trace *t, int rank, file_out *out) {
  writer *w = malloc(sizeof *w);
  if (!w) return status_error("out of memory");
  w->out = out;
  w->failed = NULL;
  w->n = 0;
  int64_t zero = INT64_MAX;
  for (int64_t i = 0; i < t->n; i++)
    if (t->at[i].begin < zero) zero = t->at[i].begin;
  put(w,
      "{\"displayTimeUnit\": \"ms\",\n\"otherData\": {\"events_left_out\": %" PRId64
      ", \"clock_ns_of_ts_0\": %" PRId64 "},\n\"traceEvents\": [\n",
      t->lost, t->n ? zero : 0);
  put(w, "{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": %d, \"args\": {\"name\": ", rank);
  put_text(w, prog_text(t->prog, t->prog->header->model));
  put(w, "}},\n");
  put_thread(w, rank, DRIVER, "driver");
  put_thread(w, rank, COMPUTE, "compute");
  put(w,
      "{\"ph\": \"M\", \"name\": \"process_labels\", \"pid\": %d, "
      "\"args\": {\"labels\": \"rank %d\"}}",
      rank, rank);
  for (int64_t i = 0; i < t->n; i++) {
    put(w, ",\n");
    put_event(w, t->prog, rank, &t->at[i], zero);
  }
  put(w, "\n]}\n");
  flush(w);
  status *s = w->failed;
  free(w);
  return s;
}
