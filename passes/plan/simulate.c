// The step of a pipeline as discrete events, and its trace.
//
// Each stage has three streams: compute, which does the stage's order phase after phase, and two
// links, which send what is put into their queues, first come first served. The only events are
// ends (of a phase, of a message); at each, whatever became possible starts. Nothing is shared with
// pipe_longest but the orders, so that each checks the other.
//
// The trace is the JSON array format of Chrome's trace viewer, which Perfetto reads: events of kind
// X (a slice of a stream: start and length in microseconds), C (a counter), M (names). Times are
// rounded to nanoseconds before lengths are taken, so that slices which touch never overlap.
#include <math.h>

#include "ir/ir.h"
#include "passes/plan/pipe_order.h"
#include "runtime/base/vec.h"

enum { STREAM_COMPUTE, STREAM_SEND, STREAM_SEND_BACK, STREAMS };
static const char *const stream_name[STREAMS] = {"compute", "send", "send back"};

typedef struct message {
  int part;
  int64_t micro;
} message;

typedef struct link {
  VEC(message) queue;  // sent ones are taken out at `head`
  int head;
  bool busy;
} link;

typedef struct stage {
  pipe_list order;
  int64_t run, in_run;  // next phase
  bool busy, over;
  double end;
  double wait_from;  // negative, or since when only a message is missing
  double held_bytes;
  int64_t held;
  link link[2];  // forward, back
} stage;

typedef struct part {
  int64_t forward, backward;      // micro-batches that are through
  int64_t arrived, arrived_back;  // messages to it
} part;

typedef struct event {
  double at;
  int64_t number;  // of events at one time the one made first is first
  int stage, stream;
} event;

typedef struct sim {
  arena *arena;
  const pipeline *p;
  int parts, critical;
  double exposed;
  stage *stage;
  part *part;
  VEC(event) heap;
  int64_t numbers;
  FILE *trace;
  bool comma;
  const double *stash_bytes, *fixed_bytes;
} sim;

// ---- trace --------------------------------------------------------------------------------------

static void next_line(sim *s) {
  fputs(s->comma ? ",\n" : "\n", s->trace);
  s->comma = true;
}

// Microseconds with three digits.
static void write_time(FILE *f, const char *key, int64_t ns) {
  fprintf(f, ",\"%s\":%lld.%03d", key, (long long)(ns / 1000), (int)(ns % 1000));
}

static int64_t to_ns(double seconds) { return llround(seconds * 1e9); }

static void write_text(FILE *f, const char *t) {
  fputc('"', f);
  for (; *t; t++) {
    unsigned char c = (unsigned char)*t;
    if (c == '"' || c == '\\')
      fprintf(f, "\\%c", c);
    else if (c < 0x20)
      fprintf(f, "\\u%04x", c);
    else
      fputc(c, f);
  }
  fputc('"', f);
}

static void write_slice(sim *s, int i, int stream, double from, double to, const char *name,
                        int64_t micro, int chunk) {
  if (!s->trace) return;
  int64_t a = to_ns(from), b = to_ns(to);
  next_line(s);
  fprintf(s->trace, "{\"ph\":\"X\",\"pid\":%d,\"tid\":%d", i, stream);
  write_time(s->trace, "ts", a);
  write_time(s->trace, "dur", b - a);
  if (micro < 0) {
    fprintf(s->trace, ",\"name\":\"%s\"}", name);
    return;
  }
  fprintf(s->trace, ",\"name\":\"%s%lld", name, (long long)micro);
  if (s->p->chunks > 1) fprintf(s->trace, ".%d", chunk);
  fprintf(s->trace, "\",\"args\":{\"micro-batch\":%lld,\"chunk\":%d}}", (long long)micro, chunk);
}

static void write_counters(sim *s, int i, double at) {
  if (!s->trace) return;
  const stage *g = &s->stage[i];
  next_line(s);
  fprintf(s->trace, "{\"ph\":\"C\",\"pid\":%d,\"name\":\"stash\"", i);
  write_time(s->trace, "ts", to_ns(at));
  fprintf(s->trace, ",\"args\":{\"micro-batches\":%lld}}", (long long)g->held);
  if (!s->stash_bytes) return;
  double bytes = g->held_bytes + (s->fixed_bytes ? s->fixed_bytes[i] : 0);
  next_line(s);
  fprintf(s->trace, "{\"ph\":\"C\",\"pid\":%d,\"name\":\"memory\"", i);
  write_time(s->trace, "ts", to_ns(at));
  fprintf(s->trace, ",\"args\":{\"bytes\":%.0f}}", bytes);
}

static void write_names(sim *s, const char *const *names) {
  if (!s->trace) return;
  for (int i = 0; i < s->p->stages; i++) {
    next_line(s);
    fprintf(s->trace, "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_name\",\"args\":{\"name\":", i);
    if (names)
      write_text(s->trace, names[i]);
    else
      fprintf(s->trace, "\"stage %d\"", i);
    fputs("}}", s->trace);
    next_line(s);
    fprintf(
        s->trace,
        "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_sort_index\",\"args\":{\"sort_index\":%d}}", i,
        i);
    for (int k = 0; k < (s->p->stages > 1 ? STREAMS : 1); k++) {
      next_line(s);
      fprintf(s->trace,
              "{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":"
              "\"%s\"}}",
              i, k, stream_name[k]);
    }
  }
}

// ---- events -------------------------------------------------------------------------------------

static bool earlier(const event *a, const event *b) {
  return a->at != b->at ? a->at < b->at : a->number < b->number;
}

static void push(sim *s, double at, int i, int stream) {
  vec_push(s->arena, &s->heap, (event){at, s->numbers++, i, stream});
  event *h = s->heap.at;
  for (int k = s->heap.n - 1; k > 0 && earlier(&h[k], &h[(k - 1) / 2]); k = (k - 1) / 2) {
    event t = h[k];
    h[k] = h[(k - 1) / 2];
    h[(k - 1) / 2] = t;
  }
}

static event pop(sim *s) {
  event *h = s->heap.at, first = h[0];
  h[0] = h[--s->heap.n];
  for (int k = 0;;) {
    int least = k;
    for (int c = 2 * k + 1; c <= 2 * k + 2 && c < s->heap.n; c++)
      if (earlier(&h[c], &h[least])) least = c;
    if (least == k) return first;
    event t = h[k];
    h[k] = h[least];
    h[least] = t;
    k = least;
  }
}

static int part_of(const sim *s, int i, int chunk) { return chunk * s->p->stages + i; }
static int stage_of(const sim *s, int k) { return k % s->p->stages; }
static const pipe_chunk *seconds_of(const sim *s, int k) {
  return &s->p->chunk[stage_of(s, k) * s->p->chunks + k / s->p->stages];
}

static void start_link(sim *s, int i, int way, double now) {
  link *l = &s->stage[i].link[way];
  if (l->busy || l->head == l->queue.n) return;
  message m = l->queue.at[l->head];
  const pipe_chunk *c = seconds_of(s, m.part);
  double end = now + (way == 0 ? c->send : c->send_back);
  l->busy = true;
  write_slice(s, i, way == 0 ? STREAM_SEND : STREAM_SEND_BACK, now, end, way == 0 ? "F" : "B",
              m.micro, m.part / s->p->stages);
  push(s, end, i, way == 0 ? STREAM_SEND : STREAM_SEND_BACK);
}

// What a stage does next: whether it can start, and if not, whether only a message is missing.
typedef enum ready { READY, AWAITS_MESSAGE, AWAITS_WORK } ready;

static ready is_ready(const sim *s, int k, pipe_phase phase, int64_t micro) {
  const part *p = &s->part[k];
  if (phase == PIPE_F) {
    if (k == 0 || p->arrived > micro) return READY;
    return s->part[k - 1].forward > micro ? AWAITS_MESSAGE : AWAITS_WORK;
  }
  if (phase == PIPE_W) return p->backward > micro ? READY : AWAITS_WORK;
  if (p->forward <= micro) return AWAITS_WORK;
  if (k == s->parts - 1 || p->arrived_back > micro) return READY;
  return s->part[k + 1].backward > micro ? AWAITS_MESSAGE : AWAITS_WORK;
}

static void start_compute(sim *s, int i, double now) {
  stage *g = &s->stage[i];
  if (g->busy || g->over) return;
  if (g->run == g->order.n) {
    double after = pipe_after(s->p, i);
    g->over = true;
    g->end = now + after;
    if (after > 0) write_slice(s, i, STREAM_COMPUTE, now, g->end, "after", -1, 0);
    return;
  }
  const pipe_run *r = &g->order.at[g->run];
  int64_t micro = r->micro + g->in_run;
  int k = part_of(s, i, r->chunk);
  ready is = is_ready(s, k, r->phase, micro);
  if (is == AWAITS_MESSAGE && g->wait_from < 0) g->wait_from = now;
  if (is != READY) return;
  if (g->wait_from >= 0 && i == s->critical) s->exposed += now - g->wait_from;
  g->wait_from = -1;
  const pipe_chunk *c = seconds_of(s, k);
  bool split = s->p->kind == PIPE_ZERO_BUBBLE;
  double length = r->phase == PIPE_F   ? c->forward
                  : r->phase == PIPE_W ? c->weight
                                       : c->backward - (split ? c->weight : 0);
  static const char *const letter[] = {"F", "B", "W"};
  write_slice(s, i, STREAM_COMPUTE, now, now + length, letter[r->phase], micro, r->chunk);
  if (r->phase == PIPE_F) {
    g->held++;
    if (s->stash_bytes) g->held_bytes += s->stash_bytes[i * s->p->chunks + r->chunk];
    write_counters(s, i, now);
  }
  g->busy = true;
  push(s, now + length, i, STREAM_COMPUTE);
}

// Hands on what a phase of part k has made.
static void hand_on(sim *s, int way, int k, int64_t micro, double now) {
  int to = way == 0 ? k + 1 : k - 1;
  if (to < 0 || to >= s->parts) return;
  if (s->p->stages == 1) {
    if (way == 0)
      s->part[to].arrived++;
    else
      s->part[to].arrived_back++;
    return;
  }
  link *l = &s->stage[stage_of(s, k)].link[way];
  if (l->head == l->queue.n) l->head = l->queue.n = 0;  // empty: its room is used again
  vec_push(s->arena, &l->queue, (message){k, micro});
  start_link(s, stage_of(s, k), way, now);
  start_compute(s, stage_of(s, to), now);  // it may wait for nothing but the message now
}

static void end_compute(sim *s, int i, double now) {
  stage *g = &s->stage[i];
  const pipe_run *r = &g->order.at[g->run];
  int64_t micro = r->micro + g->in_run;
  int k = part_of(s, i, r->chunk);
  g->busy = false;
  if (++g->in_run == r->count) {
    g->in_run = 0;
    g->run++;
  }
  if (r->phase == PIPE_F) s->part[k].forward++;
  if (r->phase == PIPE_B) s->part[k].backward++;
  if (r->phase == (s->p->kind == PIPE_ZERO_BUBBLE ? PIPE_W : PIPE_B)) {
    g->held--;
    if (s->stash_bytes) g->held_bytes -= s->stash_bytes[i * s->p->chunks + r->chunk];
    write_counters(s, i, now);
  }
  if (r->phase != PIPE_W) hand_on(s, r->phase == PIPE_F ? 0 : 1, k, micro, now);
  start_compute(s, i, now);
}

static void end_link(sim *s, int i, int way, double now) {
  link *l = &s->stage[i].link[way];
  message m = l->queue.at[l->head++];
  int to = way == 0 ? m.part + 1 : m.part - 1;
  l->busy = false;
  if (way == 0)
    s->part[to].arrived++;
  else
    s->part[to].arrived_back++;
  start_link(s, i, way, now);
  start_compute(s, stage_of(s, to), now);
}

pipe_result pipe_simulate(arena *scratch, const pipeline *p, const char *const *names,
                          const double *stash_bytes, const double *fixed_bytes, FILE *trace) {
  sim s = {.arena = scratch,
           .p = p,
           .parts = p->stages * p->chunks,
           .critical = pipe_critical(p),
           .stage = arena_new(scratch, stage, p->stages),
           .part = arena_new(scratch, part, p->stages * p->chunks),
           .trace = trace,
           .stash_bytes = stash_bytes,
           .fixed_bytes = fixed_bytes};
  if (trace) fputc('[', trace);
  write_names(&s, names);
  pipe_list *order = pipe_orders(scratch, p);
  for (int i = 0; i < p->stages; i++) {
    double before = pipe_before(p, i);
    s.stage[i] = (stage){.order = order[i], .busy = true, .wait_from = -1};
    if (before > 0) write_slice(&s, i, STREAM_COMPUTE, 0, before, "before", -1, 0);
    write_counters(&s, i, 0);
    push(&s, before, i, STREAMS);  // it may start
  }
  while (s.heap.n) {
    event e = pop(&s);
    if (e.stream == STREAMS) {
      s.stage[e.stage].busy = false;
      start_compute(&s, e.stage, e.at);
    } else if (e.stream == STREAM_COMPUTE) {
      end_compute(&s, e.stage, e.at);
    } else {
      end_link(&s, e.stage, e.stream == STREAM_SEND ? 0 : 1, e.at);
    }
  }
  double step = 0;
  for (int i = 0; i < p->stages; i++) {
    if (!s.stage[i].over)
      IR_BUG("the %s order of %d stages stands still", pipe_kind_name(p->kind), p->stages);
    step = fmax(step, s.stage[i].end);
  }
  if (trace) fputs("\n]\n", trace);
  return pipe_result_of(p, step, s.exposed);
}
