#include "runtime/profile.h"

#include <stdlib.h>

#include "runtime/base/clock.h"

static void trace_slice(profile *f, trace_kind kind, uint32_t index, const dsm_call *call,
                        int64_t begin, int64_t end) {
  if (!f->trace || f->trace_left <= 0) return;
  trace_event e = {.begin = begin, .end = end, .step = f->step, .kind = kind, .index = index};
  if (call) {
    e.layer = call->layer;
    e.micro = call->micro;
    e.sample0 = call->sample0;
  }
  trace_add(f->trace, &e);
}

static void end_instr(profile *f, const vm_where *at, int64_t now) {
  const prog_instr *in = &f->prog->instrs[at->instr];
  bool moves = !prog_kernel_of(f->prog, in);
  uint32_t k = moves ? f->prog->nkernels + in->op : in->kernel;
  profile_time *t = &f->current->kernel[k];
  t->ns += now - f->instr_begin;
  t->count++;
  if (moves && in->operands)  // a copy reads as much as it writes
    t->bytes += (double)f->prog->operands[in->first_operand].bytes * (in->op == RTOP_zero ? 1 : 2);
  f->current->instr_ns += now - f->instr_begin;
  if (in->flags & PROG_RECOMPUTE) f->current->again_ns += now - f->instr_begin;
  trace_slice(f, TRACE_INSTR, at->instr, at->call, f->instr_begin, now);
}

static void end_task(profile *f, const vm_where *at, int64_t now) {
  profile_time *t = &f->current->task[at->task];
  t->ns += now - f->task_begin;
  t->count++;
  trace_slice(f, TRACE_TASK, at->task, at->call, f->task_begin, now);
}

static void see(void *ctx, vm_moment when, const vm_where *at) {
  profile *f = ctx;
  int64_t now = clock_ns();
  switch (when) {
    case VM_CALL_BEGIN:
      if (!f->called) {
        f->current->fill_ns += now - f->step_begin;
        trace_slice(f, TRACE_FILL, 0, NULL, f->step_begin, now);
      }
      f->called = true;
      f->call_begin = now;
      break;
    case VM_TASK_BEGIN: f->task_begin = now; break;
    case VM_INSTR_BEGIN: f->instr_begin = now; break;
    case VM_INSTR_END: end_instr(f, at, now); break;
    case VM_TASK_END: end_task(f, at, now); break;
    case VM_CALL_END: f->current->call_ns += now - f->call_begin; break;
  }
}

static bool make_times(profile_times *t, const prog *p) {
  t->task = calloc(p->ntasks + 1u, sizeof *t->task);
  t->kernel = calloc(p->nkernels + (uint32_t)RTOP_COUNT, sizeof *t->kernel);
  return t->task && t->kernel;
}

static void free_times(profile_times *t) {
  free(t->task);
  free(t->kernel);
}

profile *profile_new(const prog *p) {
  profile *f = calloc(1, sizeof *f);
  if (!f) return NULL;
  f->prog = p;
  f->observer = (vm_observer){see, f};
  f->current = &f->first;
  if (make_times(&f->first, p) && make_times(&f->rest, p)) return f;
  profile_free(f);
  return NULL;
}

void profile_free(profile *f) {
  if (!f) return;
  free_times(&f->first);
  free_times(&f->rest);
  trace_free(f->trace);
  free(f);
}

bool profile_trace(profile *f, int64_t steps, int64_t events) {
  f->trace = trace_new(f->prog, events);
  f->trace_left = steps;
  return f->trace != NULL;
}

void profile_begin(profile *f, int64_t step) {
  f->step = step;
  f->called = false;
  f->step_begin = clock_ns();
}

void profile_end(profile *f) {
  int64_t now = clock_ns();
  f->current->ns += now - f->step_begin;
  f->current->steps++;
  trace_slice(f, TRACE_STEP, 0, NULL, f->step_begin, now);
  f->trace_left--;
  f->current = &f->rest;
}

static void add_times(profile_time *to, const profile_time *from, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    to[i].ns += from[i].ns;
    to[i].count += from[i].count;
    to[i].bytes += from[i].bytes;
  }
}

const profile_times *profile_result(profile *f, bool warm, bool *left_out) {
  *left_out = warm && f->rest.steps > 1;
  if (*left_out) return &f->rest;
  f->rest.steps += f->first.steps;
  f->rest.ns += f->first.ns;
  f->rest.fill_ns += f->first.fill_ns;
  f->rest.call_ns += f->first.call_ns;
  f->rest.instr_ns += f->first.instr_ns;
  f->rest.again_ns += f->first.again_ns;
  add_times(f->rest.task, f->first.task, f->prog->ntasks);
  add_times(f->rest.kernel, f->first.kernel, f->prog->nkernels + (uint32_t)RTOP_COUNT);
  return &f->rest;
}
