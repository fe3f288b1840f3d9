// dsmc build FILE -o EXE: an executable that trains, evaluates and generates.
#include <stdio.h>
#include <string.h>

#include "frontend/verb_common.h"

// "examples/gpt2.dsm:gpt2_xl" -> "gpt2_xl" or "gpt2": a name for the executable.
static const char *default_name(cli *c, const compiled *k) {
  if (k->program->asked) return k->program->asked;
  const char *base = strrchr(k->program->path, '/');
  base = base ? base + 1 : k->program->path;
  const char *dot = strrchr(base, '.');
  return arena_strndup(c->arena, base, dot ? (size_t)(dot - base) : strlen(base));
}

int verb_build(cli *c) {
  compiled k;
  if (!compile(c, c->files.at[0], COMPILE_EXECUTABLE, &k)) return compile_finish(c, &k);
  const char *out = cli_get(c, OPT_OUT);
  if (!out) out = default_name(c, &k);
  if (!compile_write(c, &k, out)) return compile_finish(c, &k);
  if (!cli_has(c, OPT_QUIET)) {
    k_kernel *const *kernels;
    printf("%s: %s, %.2f M parameters, batch %lld = %lld x %lld, arena %s, %d kernels\n", out,
           k.job->model_name, (double)k.parameters / 1e6, (long long)k.job->batch,
           (long long)(k.job->batch / k.micro_batch), (long long)k.micro_batch,
           compile_bytes_text(c->arena, (double)k.schedule->arena_bytes),
           cg_kernels(k.cg, &kernels));
    if (k.recomputed.done) printf("%s\n", compile_recompute_text(c->arena, &k, false));
    if (k.recomputed.done && cli_has(c, OPT_VERBOSE)) fputs(k.recomputed.list, stdout);
  }
  return compile_finish(c, &k);
}
