// A GPT of known dims on a cluster, planned with pins: for tests of what a dimension of the space
// sends and takes. gpt2.dsm, 8 layers of 4096, 32 heads, 8192 words, 1024 tokens, batch 64, bf16.
#ifndef DSM_TESTS_DIMS_FIXTURE_H
#define DSM_TESTS_DIMS_FIXTURE_H

#include "passes/plan/search.h"
#include "tests/unit/step_fixture.h"

static const int LAYERS = 8, HIDDEN = 4096, VOCAB = 8192, SEQ = 1024, BATCH = 64;

typedef struct fixture {
  arena a;
  plan_job job;
  const cl_cluster *cluster;
  double parameters;
  double sums;     // bytes of all gradients, f32
  double read;     // of weights as products read them: matrices bf16, vectors and positions f32
  double moments;  // two f32 of each parameter, and f32 masters of the matrices
} fixture;

// `file`: gpt2.dsm or a text with the same settings.
static inline void open_text(fixture *x, const char *file, const char *cluster) {
  arena_init(&x->a);
  x->cluster = step_cluster(&x->a, cluster);
  x->job = (plan_job){.source = file,
                      .model = "gpt2",
                      .precision = "bf16",
                      .batch = BATCH,
                      .tokens = (double)BATCH * SEQ};
  for (int r = 0; r < PLAN_RECOMPUTES; r++) {
    static const recompute_mode mode[] = {RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL};
    step s = step_of(&x->a, file,
                     "layers=8,hidden=4096,heads=32,vocab=8192,context=1024,seq=1024,batch=64,"
                     "precision=bf16",
                     mode[r]);
    x->job.rules[r] = s.rules;
    x->parameters = s.g->parameters;
  }
  double vectors = LAYERS * 13.0 * HIDDEN + 2 * HIDDEN + (double)SEQ * HIDDEN;
  double matrices = LAYERS * 12.0 * HIDDEN * HIDDEN + (double)VOCAB * HIDDEN;
  x->sums = 4 * (vectors + matrices);
  x->read = 2 * matrices + 4 * vectors;
  x->moments = 8 * (vectors + matrices) + 4 * matrices;
}

static inline void open_job(fixture *x, const char *cluster) {
  open_text(x, "examples/gpt2.dsm", cluster);
}

// A plan of one stage of one rank for each data rank, all else off.
static inline plan_pins pins_of(int64_t data) {
  plan_pins p = plan_pins_none();
  for (int i = 0; i < PLAN_AXES; i++) p.size[i] = 1;
  p.size[PLAN_DATA] = data;
  p.micro_batch = 1;
  p.zero = 0;
  p.recompute = PLAN_KEEP;
  for (int i = 0; i < PLAN_CLASSES; i++) p.home[i] = PLAN_DEVICE;
  return p;
}

static inline plan_result *search_with(fixture *x, const plan_pins *p, bool exhaustive) {
  plan_options o = {.top = 1, .exhaustive = exhaustive};
  return plan_search(&x->a, &x->job, x->cluster, p, &o);
}

static inline const plan_candidate *best_with(fixture *x, const plan_pins *p) {
  plan_result *r = search_with(x, p, false);
  if (!r->best) fail_msg("no plan: %s", r->rejected.n ? r->rejected.at[0].reason : "?");
  return r->best;
}

#endif
