// Copies of weights: the bits that a step's kernels leave in them are those that vm_make_copies
// makes of the same weights, and neither are those of other numbers.
//
// SGD with a learning rate of 0 leaves weights as they are and still writes their copies. The
// weights are random bits, a quarter of them denormals, which kernels take for zeros on some CPUs.
#include <stdio.h>
#include <string.h>

#include "runtime/base/rng.h"
#include "runtime/dtype.h"
#include "tests/oracle/harness.h"

static const char text[] =
    "train m { batch = 4; seq = 3; steps = 1; precision = bf16 }\n"
    "model m {\n"
    "  param hidden = 24, vocab = 120\n"
    "  dim batch, seq\n"
    "  input tokens : i32[batch, seq]\n"
    "  input targets : i32[batch, seq]\n"
    "  weight wte as wte : [vocab, hidden] = normal(1)\n"
    "  x = gather(wte, tokens)\n"
    "  repeat (3) as h[i] { x = x + linear(rmsnorm(x) as n, hidden, bias=true) as p }\n"
    "  output loss = cross_entropy(matmul(x, transpose(wte)), targets)\n"
    "}\n";

static unsigned char *slice(const h_program *p, const prog_state *s, int64_t k) {
  return vm_at(p->vm, s->offset + (s->layers ? k * s->layer_stride : 0));
}

static uint32_t random_bits(uint64_t key, uint64_t i) {
  uint32_t u = (uint32_t)(rng_unit(key, 2 * i) * 0x1p32) & 0xbfffffffu;  // finite, below 2
  return i % 4 ? u : u & 0x807fffffu;
}

static void draw_weights(const h_program *p, uint64_t key) {
  for (uint32_t w = 0; w < p->p.nstates; w++) {
    const prog_state *s = &p->p.states[w];
    if (s->cls != PROG_WEIGHT) continue;
    int64_t n = prog_state_elements(s);
    for (int64_t k = 0; k < prog_state_slices(s); k++)
      for (int64_t i = 0; i < n; i++) {
        uint32_t u = random_bits(key + w, (uint64_t)(k * n + i));
        memcpy(slice(p, s, k) + 4 * i, &u, sizeof u);
      }
  }
}

// Each slice of a copy after the step, against what the runtime makes of its weight.
static const char *same_copy(arena *a, const h_program *p, const prog_state *s, uint64_t key) {
  const prog_state *w = prog_weight_of(&p->p, s);
  const char *name = prog_text(&p->p, s->name);
  int64_t n = prog_state_elements(s);
  uint16_t *made = arena_new(a, uint16_t, n);
  for (int64_t k = 0; k < prog_state_slices(s); k++) {
    memcpy(made, slice(p, s, k), (size_t)n * sizeof *made);
    memset(slice(p, s, k), 0xff, (size_t)n * sizeof *made);
    vm_make_copies(p->vm);
    for (int64_t i = 0; i < n; i++) {
      uint32_t now, was = random_bits(key + (uint32_t)(w - p->p.states), (uint64_t)(k * n + i));
      uint16_t again;
      memcpy(&now, slice(p, w, k) + 4 * i, sizeof now);
      memcpy(&again, slice(p, s, k) + 2 * i, sizeof again);
      if (now != was) return arena_printf(a, "%s: the step made %08x of %08x", name, now, was);
      if (made[i] != again)
        return arena_printf(a, "%s: %08x is %04x by the kernel, %04x by the runtime", name, now,
                            made[i], again);
      bool denormal = (now & 0x7f800000u) == 0;
      if (!denormal && again != dtype_bf16_bits(now))
        return arena_printf(a, "%s: %08x is rounded to %04x", name, now, again);
    }
  }
  return NULL;
}

static const char *check(arena *a, uint64_t seed, int *copies) {
  h_text t = h_lower(a, text, NULL, NULL, SEMA_TRAIN | SEMA_EVAL);
  if (!t.m) return t.error;
  pass_options o = pass_defaults();
  o.optimizer = OPT_SGD;
  o.batch = 4;
  o.micro_batch = seed % 2 ? 4 : 2;
  const char *why = pass_run(t.m, &o);
  h_program *p = NULL;
  if (!why) why = h_compile(a, t.m, 4, &p);
  if (why) return why;
  draw_weights(p, seed);
  const prog_entry *e = prog_entry_of(&p->p, PROG_TRAIN);
  double tokens[12], targets[12];
  for (int i = 0; i < 12; i++) tokens[i] = 7 * i, targets[i] = 119 - i;
  if (!(why = h_give(p, e, "tokens", tokens, 12))) why = h_give(p, e, "targets", targets, 12);
  for (uint32_t i = 0; i < p->p.nstates && !why; i++) {
    const prog_state *s = &p->p.states[i];
    if (s->cls != PROG_COPY) continue;
    // The step must write it: what lay there is no rounding of these weights, but finite.
    for (int64_t k = 0; k < prog_state_slices(s); k++) memset(slice(p, s, k), 0, (size_t)s->bytes);
    vm_call(p->vm, e, &(vm_step){.seed = seed});
    why = same_copy(a, p, s, seed);
    ++*copies;
  }
  h_close(p);
  return why;
}

int main(void) {
  int failed = 0;
  for (uint64_t seed = 1; seed <= 4; seed++) {
    arena a;
    arena_init(&a);
    int copies = 0;
    const char *why = check(&a, seed, &copies);
    if (!why && copies != 2) why = "expected copies of the table and of the layers' weights";
    printf(why ? "FAILED seed %d: %s\n" : "ok seed %d%s\n", (int)seed, why ? why : "");
    failed += why != NULL;
    arena_free(&a);
  }
  return failed != 0;
}
