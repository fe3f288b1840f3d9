// Generation of the example models: prefill, then token by token, equals the full forward; in the
// interpreter to 1e-9, compiled to 1e-5 of the largest logit. BERT, whose positions all see each
// other, is refused.
//
//   oracle_decode [--here] [NAME...]

#include <stdio.h>
#include <string.h>

#include "tests/oracle/decode_check.h"

#ifndef ORACLE_DATA
#define ORACLE_DATA "tests/oracle/data"
#endif
#ifndef EXAMPLES
#define EXAMPLES "examples"
#endif

typedef struct example {
  const char *name, *file, *sets;
} example;
static const example examples[] = {
    {"gpt2", EXAMPLES "/gpt2.dsm:gpt2",
     "layers=2,hidden=32,heads=4,vocab=61,context=24,drop=0,seq=17"},
    {"gpt2_full_context", EXAMPLES "/gpt2.dsm:gpt2",
     "layers=2,hidden=32,heads=4,vocab=61,context=24,drop=0.1,seq=24"},
    {"llama", EXAMPLES "/llama.dsm:llama3_8b",
     "layers=2,hidden=48,heads=4,kv_heads=2,ffn=80,vocab=53,context=16,theta=1e4,tied=false,seq="
     "13"},
    {"t5", EXAMPLES "/t5.dsm:t5_11b",
     "layers=2,hidden=24,heads=3,head=8,ffn=40,vocab=47,buckets=8,far=10,src=11,dst=7"},
};

static const char *run_example(arena *a, void *ctx) {
  const example *e = ctx;
  st_file weights;
  char stem[16] = "";
  for (size_t i = 0; i + 1 < sizeof stem && e->name[i] && e->name[i] != '_'; i++)
    stem[i] = e->name[i];
  status *s = st_open(a, arena_printf(a, ORACLE_DATA "/%s/init.safetensors", stem), &weights);
  if (s) return s->message;
  return decode_check_file(a, e->file, e->sets, &weights, NULL, NULL);
}

static const char *bert_is_refused(arena *a, void *ctx) {
  (void)ctx;
  const char *sets = "layers=1,hidden=8,heads=2,vocab=11,context=8,drop=0,seq=8,batch=1";
  h_text t = h_lower_file(a, EXAMPLES "/bert.dsm:bert_large", sets, SEMA_DECODE);
  if (t.m) return "it was not refused";
  return strstr(t.error, "[cannot-decode]") && strstr(t.error, "attention") ? NULL : t.error;
}

int main(int argc, char **argv) {
  arena a;
  arena_init(&a);
  bool here = argc > 1 && str_eq(argv[1], "--here");
  int from = here ? 2 : 1, passed = 0, failed = 0, n = sizeof examples / sizeof *examples;
  for (int i = 0; i <= n; i++) {
    example e = i < n ? examples[i] : (example){.name = "bert"};
    bool wanted = from == argc;
    for (int k = from; k < argc; k++) wanted |= str_starts(e.name, argv[k]);
    if (!wanted) continue;
    h_case_fn *run = i < n ? run_example : bert_is_refused;
    const char *why = here ? h_inline(&a, run, &e) : h_isolated(&a, run, &e, 120);
    printf(why ? "FAILED %s: %s\n" : "ok %s\n", e.name, why);
    if (why)
      failed++;
    else
      passed++;
  }
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
