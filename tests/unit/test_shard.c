// Where the weights of known models lie over `tensor` and what is sent: golden files, and what they
// must have in common.
//
//   build/test_shard --write      writes tests/plan/*.txt again; look at the difference
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/unit/step_fixture.h"

#define CLUSTER "dgx-a100-80g"
enum { TENSOR = 8 };

typedef struct golden {
  const char *name, *file, *settings;
  int micro_batch;
} golden;

static const golden goldens[] = {
    {"gpt3_175b", "examples/gpt2.dsm",
     "layers=96,hidden=12288,heads=96,vocab=51200,context=2048,seq=2048,precision=bf16", 1},
    {"llama3_70b", "examples/llama.dsm:llama3_70b", "seq=4096,precision=bf16", 1},
    {"t5_11b", "examples/t5.dsm", "src=512,dst=512,precision=bf16", 8},
    {"bert_large", "examples/bert.dsm", "vocab=30528,seq=512,precision=bf16", 8},
    {"opt", "tests/plan/opt.dsm", "hidden=8192,heads=64,seq=2048,layers=64", 1},
};
enum { GOLDENS = (int)(sizeof goldens / sizeof *goldens) };

typedef struct solved {
  arena a;
  step s;
  sh_result *r;
} solved;

static void solve(solved *x, const golden *k) {
  arena_init(&x->a);
  x->s = step_of(&x->a, k->file, k->settings, RECOMPUTE_NONE);
  const cl_cluster *c = step_cluster(&x->a, CLUSTER);
  sh_env e = {.cluster = c,
              .device = cl_device_at(c, 0),
              .size = TENSOR,
              .stride = 1,
              .micro_batch = k->micro_batch,
              .micro_batches = 64};
  const char *why = NULL;
  x->r = sh_solve(&x->a, x->s.rules, &e, NULL, NULL, &why);
  if (!x->r) fail_msg("%s: %s", k->name, why);
}

static char *text_of(solved *x, const golden *k) {
  char *text = NULL;
  size_t n = 0;
  FILE *f = open_memstream(&text, &n);
  fprintf(f, "%s %s\n%s, tensor %d, micro-batch %d\n", k->file, k->settings, CLUSTER, TENSOR,
          k->micro_batch);
  sh_print(f, &x->a, x->s.rules, x->r, "tensor");
  fclose(f);
  return text;
}

static void test_golden_files(void **state) {
  (void)state;
  for (int i = 0; i < GOLDENS; i++) {
    solved x;
    solve(&x, &goldens[i]);
    char *now = text_of(&x, &goldens[i]), path[96];
    snprintf(path, sizeof path, "tests/plan/%s.txt", goldens[i].name);
    const char *why = "";
    source *was = source_read(&x.a, path, &why);
    if (!was) fail_msg("%s: %s", path, why);
    if (!str_eq(was->text, now)) fail_msg("%s is not what is found now:\n%s", path, now);
    free(now);
    arena_free(&x.a);
  }
}

// The collectives of one layer of repeat `name`, by kind, of a phase.
static void count(const solved *x, const char *name, pg_phase phase, int out[CL_COLLECTIVES]) {
  memset(out, 0, sizeof *out * CL_COLLECTIVES);
  for (int i = 0; i < x->r->moves.n; i++) {
    const sh_move *m = &x->r->moves.at[i];
    const pg_piece *p = m->piece < 0 ? NULL : &x->s.g->piece.at[m->piece];
    // What enters or leaves a repeat runs once; a layer's runs `count` times.
    if (p && p->name && str_eq(p->name, name) && m->phase == phase && m->times == p->count)
      out[m->kind]++;
  }
}

// One reduction behind attention and one behind the FFN, in its two halves, each way.
static void test_megatron_per_layer(void **state) {
  (void)state;
  static const struct {
    int golden;
    const char *repeat;
    int blocks;  // attentions and FFNs
  } row[] = {{0, "h", 2}, {1, "model.layers", 2}, {4, "decoder.layers", 2}};
  for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
    solved x;
    solve(&x, &goldens[row[i].golden]);
    int f[CL_COLLECTIVES];
    count(&x, row[i].repeat, PG_FORWARD, f);
    assert_int_equal(f[CL_ALL_GATHER] + f[CL_ALL_REDUCE], row[i].blocks);
    assert_int_equal(f[CL_REDUCE_SCATTER] + f[CL_ALL_REDUCE], row[i].blocks);
    assert_int_equal(f[CL_ALL_TO_ALL], 0);
    arena_free(&x.a);
  }
}

int main(int argc, char **argv) {
  if (argc > 1 && str_eq(argv[1], "--write")) {
    for (int i = 0; i < GOLDENS; i++) {
      solved x;
      solve(&x, &goldens[i]);
      char path[96];
      snprintf(path, sizeof path, "tests/plan/%s.txt", goldens[i].name);
      FILE *f = fopen(path, "w");
      if (!f) return 1;
      char *text = text_of(&x, &goldens[i]);
      fputs(text, f);
      free(text);
      fclose(f);
      arena_free(&x.a);
    }
    return 0;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_golden_files),
      cmocka_unit_test(test_megatron_per_layer),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
