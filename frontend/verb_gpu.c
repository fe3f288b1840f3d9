#include "frontend/verb_gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/cuda_cost.h"

bool gpu_parse_target(cli *c, gpu_set *out) {
  const char *text = cli_get(c, OPT_TARGET);
  // `ir --form cuda` needs a GPU; its text is the same for all.
  *out = !text && str_eq(cli_get(c, OPT_FORM), "cuda");
  if (!text) return true;
  const gpu_target *t;
  const char *names[GPU_TARGETS + 1] = {"cpu"};
  for (int i = 0, n = gpu_targets(&t); i < n; i++) names[i + 1] = t[i].name;
  const source *src = source_from_text(c->arena, "--target", text, strlen(text));
  bool cpu = false;
  for (int at = 0; at <= src->length;) {
    int n = (int)strcspn(text + at, ",");
    const char *name = arena_strndup(c->arena, text + at, (size_t)n);
    int row = gpu_find(name);
    cpu |= str_eq(name, "cpu");
    if (row >= 0) *out |= 1u << row;
    if (row < 0 && !str_eq(name, "cpu")) {
      diag *e = diag_error(&c->diags, source_span(src, at, at + n), DIAG_UNKNOWN_TARGET,
                           "`%s` is not a target", name);
      // `sm_90` means `sm_90a`, however near `sm_80` is.
      const char *longer = NULL;
      for (int i = 0; n && i <= GPU_TARGETS && !longer; i++)
        if (str_starts(names[i], name)) longer = names[i];
      if (longer)
        diag_help(e, longer, "did you mean `%s`?", longer);
      else
        diag_did_you_mean(e, name, names, GPU_TARGETS + 1);
      diag_list(e, "known", names, GPU_TARGETS + 1);
      return false;
    }
    at += n + 1;
  }
  if (!cpu || !*out) return true;
  diag *e = diag_error(&c->diags, source_span(src, 0, src->length), DIAG_UNKNOWN_TARGET,
                       "an executable is for `cpu` or for GPUs, not for both");
  diag_note(e, "build two");
  return false;
}

const char *gpu_names(arena *a, gpu_set s) {
  const gpu_target *t;
  sb names = {.arena = a};
  for (int i = 0, n = gpu_targets(&t); i < n; i++)
    if (s >> i & 1) sb_printf(&names, "%s%s", names.n ? "," : "", t[i].name);
  return sb_str(&names);
}

// ---- code ---------------------------------------------------------------------------------------

static void lower(compiled *k, arena *a) {
  k_kernel *const *kernels;
  int n = cg_kernels(k->cg, &kernels);
  cuda_lower_all(a, kernels, n, &k->unit);
}

static void report_refused(cli *c, compiled *k) {
  k_kernel *const *kernels;
  cg_kernels(k->cg, &kernels);
  fprintf(stderr, "dsmc: %d of %d kernels have no code for GPUs yet:\n", k->unit.refused,
          k->unit.nkernels);
  for (int i = 0; i < k->unit.nkernels; i++)
    if (k->unit.why[i])
      fprintf(stderr, "  %s, made for %s: %s\n", kernels[i]->name,
              cuda_made_for(c->arena, kernels[i]), k->unit.why[i]);
  k->exit_code = EXIT_INPUT;
}

// Lowered kernels to machine code, as far as NVRTC is there. NULL or what is missing.
static const char *to_machine_code(cli *c, compiled *k, bool ptx) {
  const char *folder = compile_cache_folder(c);
  cuda_options o = {.targets = k->targets, .ptx = ptx, .threads = (int)cli_number(c, OPT_JOBS, 0)};
  if (folder) o.cache = arena_printf(c->arena, "%s/kernels", folder);
  cuda_failure f;
  if (cuda_compile(c->arena, &k->unit, &o, &k->image, &f)) return NULL;
  if (f.ours) IR_BUG("codegen: %s", f.text);
  return f.text;
}

bool gpu_code(cli *c, compiled *k) {
  lower(k, c->arena);
  if (k->unit.refused) {
    report_refused(c, k);
    return false;
  }
  const char *missing = to_machine_code(c, k, true);
  if (!missing) return true;
  fprintf(stderr, "dsmc: --target %s: %s\n", cli_get(c, OPT_TARGET), missing);
  k->exit_code = EXIT_INPUT;
  return false;
}

// ---- dsmc ir --form cuda ------------------------------------------------------------------------

// A function with what it costs on one target.
typedef struct row {
  const cuda_function *function;
  const cuda_cost *cost;
  double seconds, total;  // of a launch; of all launches in the first entry that has some
  cuda_bound bound;
} row;

static int slowest_first(const void *a, const void *b) {
  const row *x = a, *y = b;
  if (x->total != y->total) return x->total > y->total ? -1 : 1;
  return strcmp(x->function->symbol, y->function->symbol);
}

static row *make_rows(arena *a, const compiled *k, const cuda_cost *cost, const gpu_target *t) {
  row *rows = arena_new(a, row, k->unit.nfunctions);
  for (int f = 0; f < k->unit.nfunctions; f++) {
    row *r = &rows[f];
    *r = (row){.function = &k->unit.function[f], .cost = &cost[f]};
    r->seconds = cuda_seconds(r->cost, t, &r->bound);
    int e = 0;
    while (e + 1 < k->schedule->entries.n && !r->cost->launches[e]) e++;
    r->total = r->seconds * (double)r->cost->launches[e];
  }
  qsort(rows, (size_t)k->unit.nfunctions, sizeof *rows, slowest_first);
  return rows;
}

static const char *const bound_word[] = {"memory", "f32", "bf16"};  // ORDER cuda_bound

static void print_table(cli *c, const compiled *k, const cuda_cost *cost, int which,
                        bool compiled_too) {
  const gpu_target *t;
  gpu_targets(&t);
  t += which;
  const sched *s = k->schedule;
  int n = k->unit.nfunctions;
  row *rows = make_rows(c->arena, k, cost, t);
  printf("%s for %s (%s): %.2f TB/s, %.1f TFLOP/s f32, %.0f bf16; arena %s of %s\n",
         k->job->model_name, t->name, t->device, t->bandwidth * 1e-12, t->flops_f32 * 1e-12,
         t->flops_bf16 * 1e-12, compile_bytes_text(c->arena, (double)s->arena_bytes),
         compile_bytes_text(c->arena, t->memory));
  printf("batch %lld = %lld x %lld; %d kernels are %d functions\n", (long long)k->job->batch,
         (long long)(k->job->batch / k->micro_batch), (long long)k->micro_batch, k->unit.nkernels,
         n);
  for (int e = 0; e < s->entries.n; e++) printf(" %10.10s", s->entries.at[e].func->name);
  printf(
      "  kernels    blocks threads  regs  shared  spill      MB    GFLOP        us bound   "
      "function\n");
  double total[CUDA_MAX_ENTRIES] = {0};
  int64_t launches[CUDA_MAX_ENTRIES] = {0};
  int spilling = 0, most = 0;
  for (int i = 0; i < n; i++) {
    const row *r = &rows[i];
    const cuda_function *f = r->function;
    const nvrtc_usage *u = &f->usage[which];
    for (int e = 0; e < s->entries.n; e++) {
      printf(" %10lld", (long long)r->cost->launches[e]);
      launches[e] += r->cost->launches[e];
      total[e] += r->seconds * (double)r->cost->launches[e];
    }
    printf(" %8d %9.0f %7d ", r->cost->kernels, r->cost->blocks, f->threads);
    if (compiled_too)
      printf("%5d %7d %6d", u->registers, f->shared_bytes + u->shared,
             u->spill_stores + u->spill_loads);
    else
      printf("%5s %7d %6s", "-", f->shared_bytes, "-");
    printf(" %7.1f %8.2f %9.1f %-7s %s: %s\n", r->cost->bytes * 1e-6, r->cost->flops * 1e-9,
           r->seconds * 1e6, bound_word[r->bound], f->symbol, cuda_made_for(c->arena, f->kernel));
    spilling += u->stack > 0;
    if (u->registers > most) most = u->registers;
  }
  for (int e = 0; e < s->entries.n; e++) printf(" %10lld", (long long)launches[e]);
  printf("  launches of one call\n");
  for (int e = 0; e < s->entries.n; e++) printf(" %10.3f", total[e] * 1e3);
  printf("  ms at the least: bytes at the memory's bandwidth or FLOPs at the peak\n");
  if (compiled_too) printf("most registers %d; %d functions use local memory\n", most, spilling);
}

static void print_json(cli *c, const compiled *k, const cuda_cost *cost, bool compiled_too) {
  const gpu_target *t;
  int nt = gpu_targets(&t);
  sb s = {.arena = c->arena};
  sb_puts(&s, "{\"dsmc\":\"" DSMC_VERSION "\",\"model\":");
  diag_json_string(&s, k->job->model_name);
  sb_printf(&s, ",\"batch\":%lld,\"micro_batch\":%lld,\"arena_bytes\":%lld,\"kernels\":%d",
            (long long)k->job->batch, (long long)k->micro_batch,
            (long long)k->schedule->arena_bytes, k->unit.nkernels);
  sb_puts(&s, ",\"refused\":[");
  k_kernel *const *kernels;
  cg_kernels(k->cg, &kernels);
  for (int i = 0, some = 0; i < k->unit.nkernels; i++) {
    if (!k->unit.why[i]) continue;
    sb_puts(&s, some++ ? ",{\"kernel\":" : "{\"kernel\":");
    diag_json_string(&s, kernels[i]->name);
    sb_puts(&s, ",\"made_for\":");
    diag_json_string(&s, cuda_made_for(c->arena, kernels[i]));
    sb_puts(&s, ",\"why\":");
    diag_json_string(&s, k->unit.why[i]);
    sb_put(&s, '}');
  }
  sb_puts(&s, "],\"targets\":[");
  for (int i = 0, some = 0; i < nt; i++) {
    if (!(k->targets >> i & 1)) continue;
    sb_printf(&s, "%s{\"name\":\"%s\",\"device\":\"%s\",\"functions\":[", some++ ? "," : "",
              t[i].name, t[i].device);
    row *rows = make_rows(c->arena, k, cost, &t[i]);
    for (int f = 0; f < k->unit.nfunctions; f++) {
      const row *r = &rows[f];
      const nvrtc_usage *u = &r->function->usage[i];
      sb_printf(&s, "%s{\"function\":\"%s\",\"made_for\":", f ? "," : "", r->function->symbol);
      diag_json_string(&s, cuda_made_for(c->arena, r->function->kernel));
      sb_puts(&s, ",\"launches\":{");
      for (int e = 0; e < k->schedule->entries.n; e++)
        sb_printf(&s, "%s\"%s\":%lld", e ? "," : "", k->schedule->entries.at[e].func->name,
                  (long long)r->cost->launches[e]);
      sb_printf(&s,
                "},\"kernels\":%d,\"blocks\":%.17g,\"threads\":%d,\"bytes\":%.17g,\"flops\":%.17g,"
                "\"seconds\":%.17g,\"bound\":\"%s\",\"dynamic_shared_bytes\":%d",
                r->cost->kernels, r->cost->blocks, r->function->threads, r->cost->bytes,
                r->cost->flops, r->seconds, bound_word[r->bound], r->function->shared_bytes);
      if (compiled_too)
        sb_printf(&s,
                  ",\"registers\":%d,\"static_shared_bytes\":%d,\"local_bytes\":%d,"
                  "\"spill_store_bytes\":%d,\"spill_load_bytes\":%d",
                  u->registers, u->shared, u->stack, u->spill_stores, u->spill_loads);
      sb_put(&s, '}');
    }
    sb_puts(&s, "]}");
  }
  sb_puts(&s, "]}\n");
  fputs(sb_str(&s), stdout);
}

static void print_cost(cli *c, compiled *k) {
  const char *missing = to_machine_code(c, k, false);
  cuda_cost *cost = cuda_cost_of(c->arena, k->schedule, k->cg, &k->unit);
  if (missing) fprintf(stderr, "dsmc: no registers and spills: %s\n", missing);
  if (cli_has(c, OPT_JSON)) {
    print_json(c, k, cost, !missing);
    return;
  }
  for (int i = 0, some = 0; i < GPU_TARGETS; i++) {
    if (!(k->targets >> i & 1)) continue;
    if (some++) putchar('\n');
    print_table(c, k, cost, i, !missing);
  }
}

int gpu_print(cli *c, compiled *k) {
  lower(k, c->arena);
  if (cli_has(c, OPT_COST)) {
    print_cost(c, k);
  } else {
    sb s = {.arena = c->arena};
    cuda_print(&k->unit, &s);
    fputs(sb_str(&s), stdout);
  }
  if (k->unit.refused) report_refused(c, k);
  return compile_finish(c, k);
}
