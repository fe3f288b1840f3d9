#include "codegen/cuda_cost.h"

static bool multiplies_bf16(const k_block *b) {
  for (int i = 0; i < b->stmts.n; i++) {
    const k_stmt *s = b->stmts.at[i];
    if (s->code == K_DOT && s->storage != DT_f32) return true;
    for (int k = 0; k < 2; k++)
      if (s->body[k] && multiplies_bf16(s->body[k])) return true;
  }
  return false;
}

static int kernel_number(k_kernel *const *kernel, int n, const k_kernel *k) {
  for (int i = 0; i < n; i++)
    if (kernel[i] == k) return i;
  IR_BUG("a launch of an unknown kernel");
}

// Adds to times[k] how often one execution of `t`, done `n` times, launches kernel k.
static void count_task(const sched_task *t, int64_t n, k_kernel *const *kernel, int nkernels,
                       int64_t *times) {
  for (int i = 0; i < t->instrs.n; i++) {
    const cg_launches *l = t->instrs.at[i].launches;
    for (int k = 0; l && k < l->l.n; k++)
      if (!l->l.at[k].gemm) times[kernel_number(kernel, nkernels, l->l.at[k].kernel)] += n;
  }
}

static void count_entry(const sched *s, const sched_entry *e, k_kernel *const *kernel, int n,
                        int64_t *times) {
  int64_t micros = 1;
  for (int i = 0, inside = 0; i < e->runs.n; i++) {
    const sched_run *r = &e->runs.at[i];
    if (r->kind == SCHED_LOOP) {
      inside = r->task, micros = r->micros;
      continue;
    }
    count_task(&s->tasks.at[r->task], r->layers * (inside > 0 ? micros : 1), kernel, n, times);
    if (inside > 0) inside--;
  }
}

cuda_cost *cuda_cost_of(arena *a, const sched *s, cg_context *cg, const cuda_unit *u) {
  k_kernel *const *kernel;
  int n = cg_kernels(cg, &kernel);
  cuda_cost *cost = arena_new(a, cuda_cost, u->nfunctions);
  int64_t *times = arena_new(a, int64_t, n);
  for (int k = 0; k < n; k++) {
    if (u->function_of[k] < 0) continue;
    cuda_cost *c = &cost[u->function_of[k]];
    c->kernels++;
    c->tensor_cores |= multiplies_bf16(kernel[k]->body);
  }
  IR_CHECK(s->entries.n <= CUDA_MAX_ENTRIES);
  for (int e = 0; e < s->entries.n; e++) {
    for (int k = 0; k < n; k++) times[k] = 0;
    count_entry(s, &s->entries.at[e], kernel, n, times);
    // Sums first, for the functions that no entry before had.
    for (int k = 0; k < n; k++) {
      if (u->function_of[k] < 0 || !times[k]) continue;
      cuda_cost *c = &cost[u->function_of[k]];
      bool first = true;
      for (int before = 0; before < e; before++) first &= c->launches[before] == 0;
      c->launches[e] += times[k];
      if (!first) continue;
      c->bytes += (double)times[k] * kernel[k]->bytes;
      c->flops += (double)times[k] * kernel[k]->flops;
      c->blocks += (double)times[k] * (double)u->kernel[k].blocks;
    }
  }
  for (int f = 0; f < u->nfunctions; f++)
    for (int e = 0; e < s->entries.n; e++) {
      if (!cost[f].launches[e]) continue;
      double launches = (double)cost[f].launches[e];
      cost[f].bytes /= launches, cost[f].flops /= launches, cost[f].blocks /= launches;
      break;
    }
  return cost;
}

double cuda_seconds(const cuda_cost *c, const gpu_target *t, cuda_bound *bound) {
  double memory = c->bytes / t->bandwidth;
  double compute = c->flops / (c->tensor_cores ? t->flops_bf16 : t->flops_f32);
  *bound = memory >= compute ? BOUND_MEMORY : c->tensor_cores ? BOUND_BF16 : BOUND_F32;
  return memory >= compute ? memory : compute;
}
