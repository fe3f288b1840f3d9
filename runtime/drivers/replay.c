// train --replay: kernels take the seconds that `dsmc simulate --json` predicts, and compute
// nothing.
//
// The file has, for each stage of the pipeline, the seconds of forward and backward of one
// micro-batch (of the weights' gradients too, where they are done apart) and of what stands outside
// of the loop over micro-batches. Each of these is shared out among its kernels by their FLOPs, so
// that what is sent in between leaves when it would.
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"
#include "runtime/drivers/driver.h"

enum { FORWARD, BACKWARD, WEIGHTS, OUTSIDE, KINDS };

typedef struct shares {
  const prog *prog;
  int *kind;              // of each task
  double flops[KINDS];    // of a step
  double seconds[KINDS];  // of a step
} shares;

static double flops_of(const prog *p, const prog_instr *in) {
  const prog_kernel *k = prog_kernel_of(p, in);
  return k && in->stream == PROG_COMPUTE ? k->flops : 0;
}

static void add_run(shares *s, const prog_run *r, bool loop, int64_t times) {
  const prog_task *t = &s->prog->tasks[r->task];
  const char *phase = prog_text(s->prog, t->phase);
  int kind = str_eq(phase, "forward") ? FORWARD : str_eq(phase, "weights") ? WEIGHTS : BACKWARD;
  if (!loop) kind = OUTSIDE;
  s->kind[r->task] = kind;
  for (uint32_t i = 0; i < t->instrs; i++)
    s->flops[kind] +=
        (double)(times * r->layer_count) * flops_of(s->prog, &s->prog->instrs[t->first_instr + i]);
}

static void add_entry(shares *s, const prog_entry *e) {
  for (uint32_t i = 0; i < e->runs; i++) {
    const prog_run *r = &s->prog->runs[e->first_run + i];
    if (r->kind == PROG_RUN) {
      add_run(s, r, false, 1);
      continue;
    }
    for (uint32_t k = 1; k <= r->task; k++) add_run(s, r + k, true, r->micro_count);
    i += r->task;
  }
}

static status *read_seconds(const rt *r, int64_t micros, shares *s) {
  static const char *const key[KINDS] = {"forward_s", "backward_s", "weights_s", "outside_s"};
  json_error_t why;
  json_t *root = json_load_file(r->opt.replay, 0, &why);
  if (!root) return status_error("%s:%d: %s", r->opt.replay, why.line, why.text);
  const int64_t number = prog_stage(r->prog, comm_rank(r->comm));
  const json_t *stage = json_array_get(json_object_get(root, "stages"), (size_t)number);
  status *bad = NULL;
  for (int k = 0; k < KINDS && !bad; k++) {
    const json_t *v = json_object_get(stage, key[k]);
    if (!json_is_number(v) || json_number_value(v) < 0)
      bad = status_error("%s has no %s of stage %d; `dsmc simulate --json` writes such files",
                         r->opt.replay, key[k], (int)number);
    else
      s->seconds[k] = json_number_value(v) * (k == OUTSIDE ? 1 : (double)micros);
  }
  json_decref(root);
  return bad;
}

status *rt_start_replay(rt *r) {
  const prog *p = r->prog;
  const prog_entry *e = prog_entry_of(p, PROG_TRAIN);
  if (!r->opt.replay) return NULL;
  if (r->opt.save || r->opt.eval || r->opt.resume)
    return status_exit(2,
                       "--replay computes nothing: there is nothing to save, resume or evaluate");
  if (!e || vm_device(r->vm)) return status_error("--replay is for training on the host");
  shares s = {.prog = p, .kind = arena_new(r->arena, int, p->ntasks + 1u)};
  STATUS_DO(read_seconds(r, e->batch / e->micro_batch, &s));
  add_entry(&s, e);
  double *seconds = arena_new(r->arena, double, p->ninstrs + 1u);
  for (uint32_t i = 0; i < p->ntasks; i++)
    for (uint32_t k = 0; k < p->tasks[i].instrs; k++) {
      uint32_t at = p->tasks[i].first_instr + k;
      double all = s.flops[s.kind[i]];
      seconds[at] = all > 0 ? flops_of(p, &p->instrs[at]) / all * s.seconds[s.kind[i]] : 0;
    }
  vm_replay(r->vm, seconds);
  return NULL;
}
