// Plans made by hand, for the tests of what prints them; test_explain --print shows them.
//
//   gpt3     GPT-3 175B on 1024 A100: 8 stages, interleaved; the figures of LANGUAGE.md section 6
//   unfit    a 70B on one node of 8: nothing fits
//   single   a small model on one device
//   hostile  names that are long, or that mean something to a terminal, to HTML, to JSON
//   wide     64 unlike stages of unequal layers, offloaded, with every axis in use
//   illegal  no legal way to split the job at all
#ifndef DSM_TESTS_PLAN_FIXTURE_H
#define DSM_TESTS_PLAN_FIXTURE_H

#include <string.h>

#include "passes/plan/plan.h"

#define FX_GIB (1024.0 * 1024 * 1024)

static inline int64_t fx_gib(double x) { return (int64_t)(x * FX_GIB); }

static inline const cl_cluster *fx_cluster(arena *a, const char *name, const char *device,
                                           int64_t nodes, int64_t each) {
  cl_device *d = arena_new(a, cl_device, 1);
  d->name = device;
  d->memory = fx_gib(80);
  d->reserve = fx_gib(3);
  cl_member *leaf = arena_new(a, cl_member, 1), *boxes = arena_new(a, cl_member, 1);
  cl_level *node = arena_new(a, cl_level, 1), *top = arena_new(a, cl_level, 1);
  *leaf = (cl_member){.count = each, .device = d};
  *node = (cl_level){.name = "dgx", .node = true, .nmembers = 1, .member = leaf, .devices = each};
  *boxes = (cl_member){.count = nodes, .level = node};
  *top = (cl_level){.name = "pod", .nmembers = 1, .member = boxes, .devices = nodes * each};
  cl_cluster *c = arena_new(a, cl_cluster, 1);
  *c = (cl_cluster){.name = name, .top = top, .devices = nodes * each, .digest = 0x5e1e4e};
  return c;
}

static inline plan_choice fx_choice(int64_t data, int64_t pipeline, int64_t tensor) {
  return (plan_choice){
      .size = {data, pipeline, tensor, 1, 1, 1},
      .order = {PLAN_DATA, PLAN_PIPELINE, PLAN_EXPERT, PLAN_RING, PLAN_ULYSSES, PLAN_TENSOR},
      .micro_batch = 1,
      .micro_batches = 1536 / data,
      .interleave = 1,
      .zero = 1,
      .zero_group = data};
}

static inline plan_result *fx_result(arena *a) {
  plan_result *r = arena_new(a, plan_result, 1);
  r->arena = a;
  return r;
}

static inline void fx_best(plan_result *r, plan_candidate *c) {
  if (!r->best) r->best = c;
  vec_push(r->arena, &r->candidates, c);
}

// A stage of `gib` parameters, gradients, optimizer, activations, workspace.
static inline plan_stage fx_stage(int64_t first, int64_t last, const char *extra,
                                  const double gib[PLAN_MEMORIES]) {
  plan_stage s = {.first_layer = first, .last_layer = last, .extra = extra};
  for (int m = 0; m < PLAN_MEMORIES; m++) {
    s.memory[m] = fx_gib(gib[m]);
    s.peak += s.memory[m];
  }
  s.parameters = gib[0] * FX_GIB / 2;
  return s;
}

static inline void fx_pipe(arena *a, plan_candidate *c, double forward, double backward,
                           double send, double after) {
  const plan_choice *k = &c->choice;
  int p = (int)k->size[PLAN_PIPELINE], v = (int)k->interleave;
  pipe_chunk *chunk = arena_new(a, pipe_chunk, p * v);
  double *behind = arena_new(a, double, p);
  for (int i = 0; i < p * v; i++)
    chunk[i] = (pipe_chunk){.forward = forward,
                            .backward = backward,
                            .weight = backward / 2,
                            .send = send,
                            .send_back = send};
  for (int i = 0; i < p; i++) behind[i] = after;
  c->pipe = (pipeline){.kind = k->pipe,
                       .stages = p,
                       .chunks = v,
                       .micro = k->micro_batches,
                       .chunk = chunk,
                       .after = behind};
}

// Peak, memory of the highest stage, times of the critical one.
static inline void fx_sum(plan_candidate *c) {
  int high = 0;
  for (int i = 0; i < c->nstages; i++) {
    if (c->stage[i].peak > c->stage[high].peak) high = i;
    memcpy(c->stage[i].time, c->time, sizeof c->time);
  }
  memcpy(c->memory, c->stage[high].memory, sizeof c->memory);
  c->peak = c->stage[high].peak;
  c->step_s = 0;
  for (int t = 0; t < PLAN_TIMES; t++) c->step_s += c->time[t];
  c->capacity = fx_gib(77);
  c->reserve = fx_gib(3);
  c->over = c->peak > c->capacity ? c->peak - c->capacity : 0;
}

static inline void fx_reject(plan_result *r, plan_choice c, const char *code, const char *reason,
                             double over_gib, double step, double peak_gib) {
  vec_push(r->arena, &r->rejected,
           (plan_rejected){.choice = c,
                           .code = code,
                           .reason = reason,
                           .over = fx_gib(over_gib),
                           .step_s = step,
                           .peak = fx_gib(peak_gib)});
}

static inline plan_result *fx_gpt3(arena *a) {
  plan_result *r = fx_result(a);
  r->source = "gpt3.dsm";
  r->source_digest = 0x1234abcd;
  r->model = (plan_model){.name = "gpt3",
                          .parameters = 174.6e9,
                          .flops = 3.4e18,
                          .tokens = 1536.0 * 2048,
                          .batch = 1536,
                          .layers = 96,
                          .precision = "bf16"};
  r->cluster = fx_cluster(a, "dgx-a100-80g", "a100_80g", 128, 8);
  static const char *const settings[][2] = {
      {"gpt3.layers", "96"},          {"gpt3.hidden", "12288"}, {"train.batch", "1536"},
      {"train.seq", "2048"},          {"train.clip", "1.0"},    {"train.precision", "bf16"},
      {"train.optimizer.lr", "6e-5"}, {"gpt3.tied", "true"}};
  for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
    vec_push(a, &r->settings, (plan_setting){settings[i][0], settings[i][1]});

  plan_candidate *c = arena_new(a, plan_candidate, 1);
  c->choice = fx_choice(32, 8, 4);
  c->choice.pipe = PIPE_INTERLEAVED;
  c->choice.interleave = 6;
  c->choice.sequence_parallel = true;
  c->nstages = 8;
  c->stage = arena_new(a, plan_stage, 8);
  for (int i = 0; i < 8; i++) {
    double gib[PLAN_MEMORIES] = {10.1, 10.1, 1.9, 21.4, 1.1};
    if (i == 0) gib[0] = gib[1] = 10.4, gib[2] = 2.0, gib[3] = 21.9;
    if (i == 7) gib[0] = gib[1] = 10.4, gib[2] = 2.0, gib[3] = 19.2, gib[4] = 1.9;
    c->stage[i] = fx_stage(12 * i, 12 * i + 11, i == 0 ? "embed" : i == 7 ? "head" : NULL, gib);
    c->stage[i].forward_s = 0.1204;
    c->stage[i].backward_s = 0.2408;
    c->stage[i].stash = 55 - 2 * i;
    c->stage[i].peak_at = "warm-up, layer 11, mlp.c_fc";
  }
  c->time[PLAN_T_COMPUTE] = c->busy[PLAN_T_COMPUTE] = 16.10;
  c->time[PLAN_T_TENSOR] = 1.09;
  c->busy[PLAN_T_TENSOR] = 1.70;
  c->time[PLAN_T_BUBBLE] = 0.42;
  c->time[PLAN_T_DATA] = 0.20;
  c->busy[PLAN_T_DATA] = 1.82;
  c->time[PLAN_T_PIPELINE] = 0.15;
  c->busy[PLAN_T_PIPELINE] = 0.31;
  c->time[PLAN_T_OPTIMIZER] = c->busy[PLAN_T_OPTIMIZER] = 0.01;
  fx_sum(c);
  c->step_low = 17.0;
  c->step_high = 18.9;
  c->tokens_per_s = r->model.tokens / c->step_s;
  c->tflops_per_device = 184;
  c->mfu = c->hfu = 0.590;
  c->peak_at = "warm-up, layer 11, mlp.c_fc";
  c->bytes.bytes[PLAN_DATA][CL_REDUCE_SCATTER][1] = 10.4 * FX_GIB * 31 / 32;
  c->bytes.bytes[PLAN_DATA][CL_ALL_GATHER][1] = 5.2 * FX_GIB * 31 / 32;
  c->bytes.calls[PLAN_DATA][CL_REDUCE_SCATTER] = 12;
  c->bytes.calls[PLAN_DATA][CL_ALL_GATHER] = 12;
  c->bytes.bytes[PLAN_TENSOR][CL_ALL_REDUCE][0] = 162.0 * FX_GIB;
  c->bytes.calls[PLAN_TENSOR][CL_ALL_REDUCE] = 4 * 12 * 48;
  c->bytes.bytes[PLAN_PIPELINE][CL_SEND][1] = 27.0 * FX_GIB;
  c->bytes.calls[PLAN_PIPELINE][CL_SEND] = 2 * 6 * 48;
  c->tensor_calls_layer[CL_ALL_REDUCE] = 4;
  static const plan_cut cuts[] = {
      {"wte.weight", "vocab/tensor"},           {"h.attn.c_attn.weight", "heads/tensor"},
      {"h.attn.c_proj.weight", "heads/tensor"}, {"h.mlp.c_fc.weight", "ffn/tensor"},
      {"h.mlp.c_proj.weight", "ffn/tensor"},    {"h.ln_1.weight", "replicated"}};
  c->ncuts = 6;
  c->cut = arena_new(a, plan_cut, 6);
  memcpy(c->cut, cuts, sizeof cuts);
  fx_pipe(a, c, 0.02007, 0.04014, 0.0008, 0.21);
  fx_best(r, c);

  // Runners-up: the same with other sizes, times stretched.
  static const struct {
    int64_t data, pipeline, tensor, interleave;
    double times, gib;
  } more[] = {{32, 16, 2, 3, 1.004, 68.7}, {16, 8, 8, 6, 1.096, 31.0}, {64, 8, 2, 6, 1.02, 71.5}};
  for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
    plan_candidate *o = arena_new(a, plan_candidate, 1);
    *o = *c;
    int64_t interleave = more[i].interleave;
    o->choice = fx_choice(more[i].data, more[i].pipeline, more[i].tensor);
    o->choice.pipe = PIPE_INTERLEAVED;
    o->choice.interleave = interleave;
    for (int t = 0; t < PLAN_TIMES; t++) o->time[t] *= more[i].times;
    o->step_s *= more[i].times;
    o->step_low *= more[i].times;
    o->step_high *= more[i].times;
    o->tokens_per_s /= more[i].times;
    o->peak = fx_gib(more[i].gib);
    fx_best(r, o);
  }
  fx_reject(r, fx_choice(16, 8, 8), "slower",
            "slower by 9.6 %: tensor traffic 2.5 s instead of 1.1 s", 0, 19.7, 31.2);
  plan_choice zero3 = fx_choice(512, 1, 2);
  zero3.zero = 3;
  fx_reject(r, zero3, "slower",
            "slower by 250 %: weights gathered 6 times a step over links of 25 GB/s", 0, 63, 38.5);
  plan_choice full = fx_choice(32, 8, 4);
  full.recompute = PLAN_FULL;
  fx_reject(r, full, "slower", "slower by 31 %: the forward pass is run twice", 0, 23.6, 26.4);
  fx_reject(r, fx_choice(128, 1, 8), "does-not-fit",
            "does not fit by 16.8 GiB: weights 40.7 GiB, gradients 40.7 GiB", 16.8, 0, 93.8);
  fx_reject(r, fx_choice(1024, 1, 1), "indivisible",
            "1536 sequences do not divide over 1024; batch 2048 would", 0, 0, 0);
  vec_push(a, &r->warnings, "seq 4k is 4000, not 4096");
  static const plan_assumption facts[] = {
      {"matmul at 1e12 FLOPs", "0.78 of 312 TFLOP/s", "Narayanan et al. 2021, table 1"},
      {"NVLink, per device and direction", "300 GB/s, 3 \xc2\xb5s", "A100 datasheet"},
      {"InfiniBand, per device", "25 GB/s, 5 \xc2\xb5s", "8 HDR cards a node, DGX A100 user guide"},
  };
  for (int i = 0; i < 3; i++) vec_push(a, &r->assumptions, facts[i]);
  r->search = (plan_search_stats){.points = 61344,
                                  .considered = 41208,
                                  .pruned = 40913,
                                  .fronts = 84,
                                  .predicted_points = 61344,
                                  .predicted_fronts = 84,
                                  .seconds = 0.41,
                                  .optimal = true,
                                  .bound_s = 17.97};
  return r;
}

static inline plan_result *fx_unfit(arena *a) {
  plan_result *r = fx_result(a);
  r->source = "llama3.dsm";
  r->model = (plan_model){.name = "llama3_70b",
                          .parameters = 70.6e9,
                          .flops = 1.2e18,
                          .tokens = 64.0 * 8192,
                          .batch = 64,
                          .layers = 80,
                          .precision = "bf16"};
  r->cluster = fx_cluster(a, "dgx-a100-80g", "a100_80g", 1, 8);
  plan_candidate *c = arena_new(a, plan_candidate, 1);
  c->choice = fx_choice(1, 1, 8);
  c->choice.zero = 0;
  c->choice.recompute = PLAN_FULL;
  c->choice.micro_batches = 64;
  c->nstages = 1;
  c->stage = arena_new(a, plan_stage, 1);
  const double gib[PLAN_MEMORIES] = {16.4, 16.4, 98.6, 2.7, 1.0};
  c->stage[0] = fx_stage(0, 79, "embed+head", gib);
  c->stage[0].stash = 1;
  c->time[PLAN_T_COMPUTE] = c->busy[PLAN_T_COMPUTE] = 610;
  c->time[PLAN_T_TENSOR] = c->busy[PLAN_T_TENSOR] = 44;
  fx_sum(c);
  c->step_low = 600, c->step_high = 700;
  c->tokens_per_s = r->model.tokens / c->step_s;
  c->tflops_per_device = 229, c->mfu = 0.55, c->hfu = 0.73;
  c->peak_at = "optimizer, layer 79";
  fx_pipe(a, c, 3.4, 6.8, 0, 0);
  r->closest = c;
  fx_reject(r, fx_choice(2, 1, 4), "does-not-fit",
            "does not fit by 131.4 GiB: optimizer 98.6 GiB, weights 32.8 GiB", 131.4, 0, 208.4);
  fx_reject(r, fx_choice(8, 1, 1), "does-not-fit", "does not fit by 301.0 GiB: weights 131.5 GiB",
            301, 0, 378);
  vec_push(a, &r->fixes,
           (plan_fix){"offload the optimizer to the host", "--pin offload=optimizer:host",
                      fx_gib(38.1), 915});
  vec_push(a, &r->fixes,
           (plan_fix){"use 16 devices", "--cluster dgx-a100-80g:16", fx_gib(69.4), 340});
  r->search = (plan_search_stats){.points = 5120,
                                  .considered = 3312,
                                  .pruned = 3300,
                                  .fronts = 12,
                                  .seconds = 0.031,
                                  .optimal = true};  // all of it was searched
  return r;
}

static inline plan_result *fx_single(arena *a) {
  plan_result *r = fx_result(a);
  r->source = "tiny.dsm";
  r->model = (plan_model){.name = "tiny",
                          .parameters = 823296,
                          .flops = 1.27e9,
                          .tokens = 256,
                          .batch = 4,
                          .layers = 2,
                          .precision = "f32"};
  r->cluster = fx_cluster(a, "this-host", "cpu", 1, 1);
  plan_candidate *c = arena_new(a, plan_candidate, 1);
  c->choice = fx_choice(1, 1, 1);
  c->choice.zero = 0, c->choice.zero_group = 1;
  c->choice.micro_batch = 4, c->choice.micro_batches = 1;
  c->nstages = 1;
  c->stage = arena_new(a, plan_stage, 1);
  const double gib[PLAN_MEMORIES] = {0.00307, 0.00307, 0.00614, 0.0021, 0.0006};
  c->stage[0] = fx_stage(0, 1, "embed+head", gib);
  c->time[PLAN_T_COMPUTE] = c->busy[PLAN_T_COMPUTE] = 0.0131;
  c->time[PLAN_T_OPTIMIZER] = c->busy[PLAN_T_OPTIMIZER] = 0.0009;
  fx_sum(c);
  c->capacity = fx_gib(14.5);
  c->reserve = 0;
  c->step_low = 0.0119, c->step_high = 0.0161;
  c->tokens_per_s = 256 / c->step_s;
  c->tflops_per_device = 0.0907, c->mfu = 0.31, c->hfu = 0.31;
  c->peak_at = "backward, layer 1, mlp.c_fc";
  c->stage[0].forward_s = 0.0044, c->stage[0].backward_s = 0.0087;
  fx_pipe(a, c, 0.0044, 0.0087, 0, 0.0009);
  fx_best(r, c);
  r->search = (plan_search_stats){
      .points = 6, .considered = 4, .pruned = 1, .fronts = 2, .seconds = 0.0004, .optimal = true};
  return r;
}

// What names may hold: markup, quotes, orders to a terminal, broken UTF-8, great length.
#define FX_NASTY "<b a=\"1\" c='2'>&amp;\x1b[31m\xff\xc3\n\t\"\\ \xe2\x82\xac"
static inline plan_result *fx_hostile(arena *a) {
  plan_result *r = fx_gpt3(a);
  char *endless = arena_alloc(a, 302);
  memset(endless, 'W', 301);
  const char *both = arena_printf(a, "%s %s", FX_NASTY, endless);
  r->source = both;
  r->model.name = both;
  r->model.precision = FX_NASTY;
  r->cluster = fx_cluster(a, FX_NASTY, both, 3, 5);
  for (int i = 0; i < r->settings.n; i++) r->settings.at[i].value = both;
  for (int i = 0; i < r->rejected.n; i++) r->rejected.at[i].reason = both;
  for (int i = 0; i < r->assumptions.n; i++)
    r->assumptions.at[i] = (plan_assumption){both, endless, FX_NASTY};
  for (int i = 0; i < r->candidates.n; i++) {
    plan_candidate *c = r->candidates.at[i];
    c->peak_at = both;
    for (int k = 0; k < c->ncuts; k++)
      c->cut[k] = (plan_cut){arena_printf(a, "%d%s", k, both), FX_NASTY};
    for (int s = 0; s < c->nstages; s++) c->stage[s].peak_at = both, c->stage[s].extra = endless;
    c->time[PLAN_T_BUBBLE] += 1e7;  // wide numbers
    c->step_s += 1e7;
    c->memory[0] = c->stage[0].memory[0] = INT64_MAX / 4;
    c->stage[0].peak = c->peak = INT64_MAX / 2;
  }
  vec_push(a, &r->warnings, both);
  vec_push(a, &r->fixes, (plan_fix){both, both, 1, 1e-9});
  return r;
}

static inline plan_result *fx_wide(arena *a) {
  plan_result *r = fx_result(a);
  r->source = "mixture.dsm";
  r->model = (plan_model){.name = "mixture",
                          .parameters = 1.02e12,
                          .flops = 9e18,
                          .tokens = 1001.0 * 4096 + 7,
                          .batch = 1024,
                          .layers = 160,
                          .precision = "bf16"};
  r->cluster = fx_cluster(a, "dgx-h100", "h100", 2048, 8);
  plan_candidate *c = arena_new(a, plan_candidate, 1);
  c->choice = fx_choice(4, 64, 8);
  c->choice.size[PLAN_ULYSSES] = c->choice.size[PLAN_RING] = 2;
  c->choice.size[PLAN_EXPERT] = 2;
  c->choice.micro_batches = 128;
  c->choice.zero = 2;
  c->choice.zero_group = 8;
  c->choice.recompute = PLAN_SELECTIVE;
  c->choice.home[PLAN_OPTIMIZER] = PLAN_DISK;
  c->choice.home[PLAN_ACTIVATIONS] = PLAN_HOST;
  c->nstages = 64;
  c->stage = arena_new(a, plan_stage, 64);
  int64_t layer = 0;
  for (int i = 0; i < 64; i++) {
    int64_t layers = i % 2 ? 2 : 3;
    double gib[PLAN_MEMORIES] = {4.1 + (double)layers, 8.2, 0, 0.5 * (64 - i), 2.5};
    c->stage[i] = fx_stage(layer, layer + layers - 1, NULL, gib);
    layer += layers;
    c->stage[i].host = fx_gib(12.5), c->stage[i].disk = fx_gib(41);
    c->stage[i].stash = 64 - i;
  }
  c->choice.pipe = PIPE_ONE_F_ONE_B;
  for (int t = 0; t < PLAN_TIMES; t++) c->time[t] = 0.5 + 0.25 * t, c->busy[t] = 2 * c->time[t];
  fx_sum(c);
  c->critical = 3;
  c->step_low = c->step_s * 0.97, c->step_high = c->step_s * 1.03;
  c->tokens_per_s = r->model.tokens / c->step_s;
  c->tflops_per_device = 412, c->mfu = 0.42, c->hfu = 0.51;
  for (int x = 0; x < PLAN_AXES; x++)
    for (int k = 0; k < CL_COLLECTIVES; k++)
      c->bytes.bytes[x][k][0] = 1e9 * (x + 1), c->bytes.bytes[x][k][1] = 3e8 * (k + 1);
  fx_pipe(a, c, 0.021, 0.043, 0.001, 0.2);
  fx_best(r, c);
  r->search = (plan_search_stats){.points = 902112,
                                  .considered = 511020,
                                  .pruned = 510000,
                                  .fronts = 1280,
                                  .seconds = 2.4,
                                  .gap = 0.012,
                                  .bound_s = 13.3};
  return r;
}

static inline plan_result *fx_illegal(arena *a) {
  plan_result *r = fx_unfit(a);
  r->closest = NULL;
  r->fixes.n = 0;
  for (int i = 0; i < r->rejected.n; i++) {
    r->rejected.at[i].code = "indivisible";
    r->rejected.at[i].reason = "64 heads cannot be split over tensor = 7";
    r->rejected.at[i].over = r->rejected.at[i].peak = 0;
  }
  return r;
}

static const struct {
  const char *name;
  plan_result *(*make)(arena *a);
} fx_all[] = {{"gpt3", fx_gpt3},       {"unfit", fx_unfit}, {"single", fx_single},
              {"hostile", fx_hostile}, {"wide", fx_wide},   {"illegal", fx_illegal}};
#define FX_ALL (int)(sizeof fx_all / sizeof *fx_all)

#endif
