// Functions of ir/cluster.h and pipeline.h that what prints plans calls, for a tree without the
// files that define them. Delete this file once passes/plan/pipeline.c and ir/cluster.c are there.
#ifndef DSM_TESTS_PLAN_STAND_INS_H
#define DSM_TESTS_PLAN_STAND_INS_H

#include "passes/plan/pipeline.h"
#include "passes/plan/plan.h"

#if !__has_include("ir/cluster.c")
const char *cl_collective_name(cl_collective k) {
  static const char *const names[] = {"all_gather", "reduce_scatter", "all_reduce", "all_to_all",
                                      "send"};
  return names[k];
}
#endif

#if !__has_include("passes/plan/pipeline.c")
const char *pipe_kind_name(pipe_kind k) {
  static const char *const names[] = {"one_f_one_b", "interleaved", "gpipe", "zero_bubble"};
  return names[k];
}

// 1F1B, interleaved where there are chunks (Narayanan et al. 2021): warm-up, steady, cool-down over
// work items, of which each is one chunk of one micro-batch.
pipe_list pipe_order_of(arena *a, const pipeline *p, int stage) {
  int64_t all = p->micro * p->chunks, v = p->chunks, n = p->stages;
  int64_t warm = v > 1 ? 2 * (n - 1 - stage) + (v - 1) * n : n - 1 - stage;
  if (warm > all) warm = all;
  pipe_list l = {arena_new(a, pipe_run, 2 * all), 0};
  for (int64_t f = 0, b = 0; b < all;) {
    bool forward = f < all && f <= b + warm - (f >= warm ? 0 : 1);
    int64_t k = forward ? f++ : b++;
    int64_t chunk = v > 1 ? k % (n * v) / n : 0;
    l.at[l.n++] = (pipe_run){.phase = forward ? PIPE_F : PIPE_B,
                             .chunk = (int)(forward ? chunk : v - 1 - chunk),
                             .micro = v > 1 ? k / (n * v) * n + k % n : k,
                             .count = 1};
  }
  return l;
}
#endif
#endif
