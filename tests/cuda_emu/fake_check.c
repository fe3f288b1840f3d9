// Do the calls of a driver follow the schedule of a program?
//
// The program says what each entry gives to which stream, in which order; which entry a call of the
// driver belongs to it does not say. So all entries that fit what was seen so far are followed side
// by side, each with a place in its order: a call must be what at least one of them has next. Where
// an entry ends, or ends its first part (runtime/check.h), any entry may begin.
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"
#include "tests/cuda_emu/fake.h"

typedef struct place {
  uint32_t entry, run, loop;  // loop: 1 + the run that begins the loop, 0 outside
  int64_t micro, layer;       // layer: counted from the run's first
  uint32_t instr;
  bool done;
} place;

enum { MAX_PLACES = 64 };

typedef struct fake_walk {
  image img;
  const prog *p;
  uint32_t *split;  // of each entry: runs of its first part
  place at[MAX_PLACES];
  int n;
  bool lost;                 // a mistake was told: no use in following on
  uint64_t arena;            // of the device; 0: not yet seen
  uint64_t mirror;           // of the host
  int stream[PROG_STREAMS];  // 1 + the number of the driver's stream; 0: not yet seen
} walk;

// ---- places -------------------------------------------------------------------------------------

static const prog_run *run_at(const walk *w, const place *a) {
  return &w->p->runs[w->p->entries[a->entry].first_run + a->run];
}

static const prog_instr *instr_at(const walk *w, const place *a) {
  return &w->p->instrs[w->p->tasks[run_at(w, a)->task].first_instr + a->instr];
}

// Whether an instruction is no call of the driver.
static bool silent(const walk *w, const prog_instr *in) {
  if (in->op == RTOP_launch) return w->p->kernels[in->kernel].cells == 0;
  return in->operands > 0 && w->p->operands[in->first_operand].bytes == 0;
}

static void end_run(const walk *w, place *a) {
  a->layer = 0;
  a->instr = 0;
  a->run++;
  if (!a->loop) return;
  const prog_run *loop = &w->p->runs[w->p->entries[a->entry].first_run + a->loop - 1];
  if (a->run < a->loop + loop->task) return;
  if (++a->micro < loop->micro_first + loop->micro_count) {
    a->run = a->loop;
  } else {
    a->loop = 0;
    a->micro = 0;
  }
}

// Goes on to the next instruction that is a call of the driver, or to the end.
static void settle(const walk *w, place *a) {
  while (a->run < w->p->entries[a->entry].runs) {
    const prog_run *r = run_at(w, a);
    if (r->kind == PROG_LOOP) {
      if (r->task == 0 || r->micro_count == 0) {
        a->run += r->task + 1;
      } else {
        a->loop = a->run + 1;
        a->micro = r->micro_first;
        a->run++;
      }
    } else if (a->layer >= r->layer_count) {
      end_run(w, a);
    } else if (a->instr >= w->p->tasks[r->task].instrs) {
      a->instr = 0;
      a->layer++;
    } else if (silent(w, instr_at(w, a))) {
      a->instr++;
    } else {
      return;
    }
  }
  a->done = true;
}

static void add(walk *w, const place *a) {
  for (int i = 0; i < w->n; i++)
    if (memcmp(&w->at[i], a, sizeof *a) == 0) return;
  if (w->n < MAX_PLACES) w->at[w->n++] = *a;
}

static place begin_of(const walk *w, uint32_t entry) {
  place a;
  memset(&a, 0, sizeof a);  // places are compared byte by byte
  a.entry = entry;
  settle(w, &a);
  return a;
}

static bool may_end(const walk *w, const place *a) {
  return a->done || (a->run == w->split[a->entry] && !a->loop && !a->layer && !a->instr);
}

// Where one entry may have ended, all may begin.
static void add_begins(walk *w) {
  bool ends = w->n == 0;
  for (int i = 0; i < w->n; i++) ends |= may_end(w, &w->at[i]);
  for (uint32_t e = 0; ends && e < w->p->nentries; e++) {
    place a = begin_of(w, e);
    if (!a.done) add(w, &a);
  }
}

// ---- opening ------------------------------------------------------------------------------------

static void find_splits(walk *w) {
  w->split = calloc(w->p->nentries + 1u, sizeof *w->split);
  if (!w->split) abort();
  for (uint32_t i = 0; i < w->p->nentries; i++) {
    const prog_entry *e = &w->p->entries[i];
    uint32_t k = 0;
    while (k < e->runs && !prog_run_writes_states(w->p, e, k)) {
      const prog_run *r = &w->p->runs[e->first_run + k];
      k += r->kind == PROG_LOOP ? r->task + 1 : 1;
    }
    w->split[i] = k;
  }
}

walk *fake_walk_open(const char *path, char *error, size_t n) {
  walk *w = calloc(1, sizeof *w);
  if (!w) abort();
  status *s = image_open(path, path, 0, &w->img);
  if (s) {
    snprintf(error, n, "%s", s->message);
    status_free(s);
    free(w);
    return NULL;
  }
  w->p = &w->img.prog;
  find_splits(w);
  return w;
}

void fake_walk_close(walk *w) {
  if (!w) return;
  image_close(&w->img);
  free(w->split);
  free(w);
}

// ---- comparing ----------------------------------------------------------------------------------

typedef struct expected {
  uint64_t offset[256];  // of the operands in the arena
  int64_t layer, micro, sample;
} expected;

static void expect(const walk *w, const place *a, expected *x) {
  const prog_run *r = run_at(w, a);
  const prog_instr *in = instr_at(w, a);
  int64_t layer = r->layer_first + a->layer * r->layer_dir;
  x->layer = r->number_first + layer * r->number_step;
  x->micro = a->micro;
  x->sample = a->micro * w->p->entries[a->entry].micro_batch;
  for (uint32_t k = 0; k < in->operands; k++) {
    const prog_operand *o = &w->p->operands[in->first_operand + k];
    int64_t slot = layer + o->layer_add;
    if (o->layer_mod) slot %= o->layer_mod;
    x->offset[k] = (uint64_t)(o->base + slot * o->layer_stride + a->micro * o->micro_stride);
  }
}

static const char *const kind_of[] = {"cuLaunchKernel",    "cuMemsetD8Async",   "cuMemcpyDtoDAsync",
                                      "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuEventRecord",
                                      "cuStreamWaitEvent"};

// Says why, when `c` is not this instruction; NULL: it is.
static const char *differs(const walk *w, const place *a, const fake_work *c, char *buf, size_t n) {
  static const int op_of[] = {RTOP_launch, RTOP_zero,   RTOP_copy, RTOP_fetch,
                              RTOP_evict,  RTOP_record, RTOP_wait};
  const prog_instr *in = instr_at(w, a);
  const prog_operand *o = &w->p->operands[in->first_operand];
  expected x;
  expect(w, a, &x);
#define WHY(...) return snprintf(buf, n, __VA_ARGS__), buf
  if (op_of[c->kind] != (int)in->op) WHY("it is no %s", prog_opcode_name(in->op));
  if (w->stream[in->stream] && w->stream[in->stream] != c->stream + 1)
    WHY("it is on another stream than %s", prog_stream_name(in->stream));
  uint64_t device = w->arena, mirror = w->mirror;
  switch (c->kind) {
    case FAKE_RECORD:
    case FAKE_WAIT:
      if (c->event != (int)in->event) WHY("it is event %d, expected %u", c->event, in->event);
      return NULL;
    case FAKE_SET:
      if (c->to != device + x.offset[0]) WHY("it sets other bytes");
      if (c->value) WHY("it sets them to %d", c->value);
      break;
    case FAKE_COPY:
      if (c->to != device + x.offset[0] || c->from != device + x.offset[1])
        WHY("it copies other bytes");
      break;
    case FAKE_IN:
      if (c->to != device + x.offset[0]) WHY("it copies to other bytes");
      if (mirror && c->from != mirror + x.offset[1]) WHY("it copies from other bytes");
      break;
    case FAKE_OUT:
      if (c->from != device + x.offset[1]) WHY("it copies from other bytes");
      if (mirror && c->to != mirror + x.offset[0]) WHY("it copies to other bytes");
      break;
    case FAKE_LAUNCH: {
      const prog_kernel *k = &w->p->kernels[in->kernel];
      const prog_function *f = &w->p->functions[k->function];
      const uint64_t *args = (const uint64_t *)(const void *)c->args;
      if (!str_eq(c->function->name, prog_text(w->p, f->symbol)))
        WHY("it launches %s, expected %s", c->function->name, prog_text(w->p, f->symbol));
      if (c->grid != k->cells || c->block != f->threads || c->shared != f->shared_bytes)
        WHY("it has %u blocks of %u threads and %u bytes", c->grid, c->block, c->shared);
      if ((int64_t)c->bytes != prog_argument_bytes(k)) WHY("it passes %zu bytes", c->bytes);
      for (uint32_t i = 0; i < k->nbufs; i++)
        if (args[i] != device + x.offset[i])
          WHY("buffer %u is at byte %lld of the arena, expected %lld", i,
              (long long)(args[i] - device), (long long)x.offset[i]);
      args += k->nbufs;
      if (args[0] != device + w->p->header->step_offset) WHY("it names another call");
      if ((int64_t)args[1] != x.layer || (int64_t)args[2] != x.micro ||
          (int64_t)args[3] != x.sample)
        WHY("it is told layer %lld, micro-batch %lld, sample %lld, expected %lld, %lld, %lld",
            (long long)args[1], (long long)args[2], (long long)args[3], (long long)x.layer,
            (long long)x.micro, (long long)x.sample);
      for (uint32_t i = 0; i < k->numbers; i++)
        if ((int64_t)args[4 + i] != w->p->numbers[k->first_number + i])
          WHY("number %u is %lld, expected %lld", i, (long long)args[4 + i],
              (long long)w->p->numbers[k->first_number + i]);
      return NULL;
    }
  }
  if ((int64_t)c->bytes != o[0].bytes)
    WHY("it is %zu bytes, expected %lld", c->bytes, (long long)o[0].bytes);
#undef WHY
  return NULL;
}

static void fill_ranges(const walk *w, const place *a, fake_work *c) {
  const prog_instr *in = instr_at(w, a);
  expected x;
  expect(w, a, &x);
  c->nranges = 0;
  for (uint32_t k = 0; k < in->operands && k < FAKE_MAX_RANGES; k++) {
    const prog_operand *o = &w->p->operands[in->first_operand + k];
    c->range[c->nranges++] =
        (fake_range){.at = w->arena + x.offset[k], .bytes = o->bytes, .use = o->writes};
  }
}

static int mistake(fake *f, walk *w, const fake_work *c) {
  char buf[300], text[1200];
  size_t n = 0;
  w->lost = true;
  for (int i = 0; i < w->n && n < sizeof text; i++) {
    const place *a = &w->at[i];
    if (a->done) continue;
    const char *why = differs(w, a, c, buf, sizeof buf);
    n += (size_t)snprintf(text + n, sizeof text - n, "\n  %s, task %s, instruction %u: %s",
                          prog_text(w->p, w->p->entries[a->entry].name),
                          prog_text(w->p, w->p->tasks[run_at(w, a)->task].name), a->instr, why);
  }
  return fake_wrong(f, "%s%s%s is not what the schedule has next:%s", kind_of[c->kind],
                    c->function ? " of " : "", c->function ? c->function->name : "",
                    n ? text : " nothing");
}

int fake_walk_step(fake *f, fake_work *c) {
  walk *w = f->walk;
  if (!w || w->lost) return FAKE_OK;
  if (!w->arena) {
    for (int i = 0; i < f->blocks.n; i++)
      if (f->blocks.at[i].bytes >= w->p->header->arena_bytes) w->arena = f->blocks.at[i].at;
    if (!w->arena) {
      w->lost = true;
      return fake_wrong(f, "nobody asked for an arena of %llu bytes",
                        (unsigned long long)w->p->header->arena_bytes);
    }
  }
  add_begins(w);
  place fit[MAX_PLACES];
  int n = 0;
  char buf[300];
  for (int i = 0; i < w->n; i++)
    if (!w->at[i].done && !differs(w, &w->at[i], c, buf, sizeof buf)) fit[n++] = w->at[i];
  if (n == 0) return mistake(f, w, c);
  const prog_instr *in = instr_at(w, &fit[0]);
  expected x;
  expect(w, &fit[0], &x);
  w->stream[in->stream] = c->stream + 1;
  if (c->kind == FAKE_IN) w->mirror = c->from - x.offset[1];
  if (c->kind == FAKE_OUT) w->mirror = c->to - x.offset[0];
  if (c->kind == FAKE_LAUNCH) fill_ranges(w, &fit[0], c);
  w->n = 0;
  for (int i = 0; i < n; i++) {
    fit[i].instr++;
    settle(w, &fit[i]);
    add(w, &fit[i]);
  }
  return FAKE_OK;
}

int fake_walk_end(fake *f) {
  walk *w = f->walk;
  if (!w || w->lost || w->n == 0) return FAKE_OK;
  for (int i = 0; i < w->n; i++)
    if (may_end(w, &w->at[i])) return FAKE_OK;
  const place *a = &w->at[0];
  return fake_wrong(f, "the last call stopped inside entry %s, task %s",
                    prog_text(w->p, w->p->entries[a->entry].name),
                    prog_text(w->p, w->p->tasks[run_at(w, a)->task].name));
}
