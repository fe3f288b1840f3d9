#include "frontend/verb_stages.h"

#include "ir/place.h"
#include "passes/cut.h"
#include "passes/plan/plan.h"
#include "passes/plan/show.h"
#include "passes/plan/stages.h"

bool stages_wanted(const compiled *k) { return k->mesh && mesh_axis(k->mesh, "pipeline") >= 0; }

// The first layer of each part: as the plan cuts the stages and deals them to chunks, or, where it
// does not say, as even as can be.
static const int64_t *first_layers(arena *a, const compiled *k, int64_t layers, int stages,
                                   int chunks) {
  const plan_candidate *p = k->plan;
  if (!p || p->nstages != stages) return cut_evenly(a, layers, stages * chunks);
  int64_t *first = arena_new(a, int64_t, stages + 1);
  for (int s = 0; s < stages; s++) first[s + 1] = first[s] + plan_stage_layers(&p->stage[s]);
  if (first[stages] != layers) return cut_evenly(a, layers, stages * chunks);
  return chunks > 1 ? stages_deal(a, &(stages_cut){.first = first}, stages, chunks) : first;
}

const char *stages_compile(compiled *k, const pass_options *o, cg_library library) {
  ir_module *m = k->module;
  bool stopped;
  const char *why = pass_run_front(m, o, &stopped);
  if (why || stopped) return why;
  int n = (int)k->mesh->axis[mesh_axis(k->mesh, "pipeline")].size;
  ir_module **module = arena_new(m->arena, ir_module *, n);
  int chunks = k->plan ? (int)k->plan->choice.interleave : 1;
  cut_job how = {.stages = n,
                 .chunks = chunks,
                 .first = first_layers(m->arena, k, cut_layers(m), n, chunks),
                 .weights = k->plan && k->plan->choice.pipe == PIPE_ZERO_BUBBLE};
  why = cut_stages(m, &how, module);
  if (why) return why;
  k->nstages = n;
  k->stage = arena_new(m->arena, compiled_stage, n);
  for (int s = 0; s < n; s++) {
    compiled_stage *st = &k->stage[s];
    st->module = module[s];
    st->cg = cg_context_new(m->arena, st->module);
    cg_use_library(st->cg, library);
    cg_use_machine(st->cg, cg_machine_of(k->cg));
    pass_options mine = *o;
    mine.select_ctx = st->cg;
    why = pass_run_back(st->module, &mine);
    if (why) return why;
    st->schedule = st->module->schedule;
  }
  const compiled_stage *most = &k->stage[0];
  for (int s = 1; s < n; s++) {
    const sched *x = k->stage[s].schedule;
    if (x && x->arena_bytes > most->schedule->arena_bytes) most = &k->stage[s];
  }
  k->module = most->module;
  k->schedule = most->schedule;
  k->cg = most->cg;
  return NULL;
}

void stages_code(cli *c, compiled *k, void (*one)(cli *c, compiled *k)) {
  for (int s = 0; s < k->nstages; s++) {
    compiled_stage *st = &k->stage[s];
    compiled own = *k;
    own.module = st->module;
    own.schedule = st->schedule;
    own.cg = st->cg;
    own.image = (cg_image){0};
    one(c, &own);
    st->image = own.image;
    st->bytes = own.bytes;
    if (st->schedule != k->schedule) continue;
    k->image = own.image;
    k->bytes = own.bytes;
  }
}
