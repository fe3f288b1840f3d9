// The sampler against a plain one that sorts everything (runtime/drivers/sample.h).
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/base/rng.h"
#include "runtime/drivers/sample.h"
#include "runtime/dtype.h"

enum { MOST = 5000 };

typedef struct pair {
  double p;
  int32_t id;
} pair;

static int by_weight(const void *a, const void *b) {
  const pair *x = a, *y = b;
  if (x->p != y->p) return x->p < y->p ? 1 : -1;
  return x->id < y->id ? -1 : 1;
}

// What the sampler may answer: a draw that falls within rounding of a border has two answers.
static bool plain_allows(const float *logit, const sampler *s, double draw, int32_t got) {
  int64_t n = s->vocab;
  pair *c = calloc((size_t)n, sizeof *c);
  double top = -INFINITY, total = 0;
  for (int64_t i = 0; i < n; i++) top = fmax(top, logit[i]);
  for (int64_t i = 0; i < n; i++)
    c[i] =
        (pair){s->temperature > 0 ? exp((logit[i] - top) / s->temperature) : logit[i], (int32_t)i};
  bool cuts = (s->top_k > 0 && s->top_k < n) || s->top_p < 1;
  if (cuts || s->temperature == 0) qsort(c, (size_t)n, sizeof *c, by_weight);
  bool good = s->temperature == 0 && got == c[0].id;
  if (s->temperature > 0) {
    if (s->top_k > 0 && s->top_k < n) n = s->top_k;
    for (int64_t i = 0; i < n; i++) total += c[i].p;
    double kept = 0;
    int64_t m = 0;
    while (m < n && (m == 0 || kept < s->top_p * total)) kept += c[m++].p;
    double before = 0, slack = 1e-12 * kept;
    for (int64_t i = 0; i < m; i++) {
      if (c[i].id == got)
        good = draw * kept > before - slack && draw * kept < before + c[i].p + slack;
      before += c[i].p;
    }
  }
  free(c);
  return good;
}

// Logits with many ties, a long tail, or one that rules.
static void make_logits(float *x, int64_t n, int kind) {
  for (int64_t i = 0; i < n; i++) {
    double u = rng_unit(rng_key(5, (uint64_t)kind), (uint64_t)i);
    x[i] = kind == 0 ? (float)floor(8 * u) : kind == 1 ? (float)(-3 * log(1 - u)) : (float)u;
  }
  if (kind == 2) x[n / 2] = 30;
}

static void agrees_with_sorting(void **state) {
  (void)state;
  static float logit[MOST];
  pool *one = pool_new(1), *two = pool_new(2);
  const int64_t vocabs[] = {1, 2, 255, 1024, 1025, MOST}, top_k[] = {0, 1, 7, 100, 2000};
  const double temperature[] = {0, 0.3, 1.5}, top_p[] = {1, 0.9, 0.3, 1e-9};
  int chosen = 0;
  for (int v = 0; v < 6; v++)
    for (int kind = 0; kind < 3; kind++)
      for (int t = 0; t < 3; t++)
        for (int k = 0; k < 5; k++)
          for (int p = 0; p < 4; p++) {
            make_logits(logit, vocabs[v], kind);
            arena a;
            arena_init(&a);
            sampler s = {.temperature = temperature[t],
                         .top_p = top_p[p],
                         .top_k = top_k[k],
                         .vocab = vocabs[v],
                         .threads = one};
            sampler s2 = s;
            s2.threads = two;
            sampler_open(&s, &a);
            sampler_open(&s2, &a);
            for (uint64_t i = 0; i < 6; i++) {
              double draw = i == 0 ? 0 : i == 1 ? 1 - 0x1p-53 : rng_unit(9, i);
              int32_t id = -1, id2 = -2;
              assert_true(sampler_choose(&s, logit, PROG_F32, draw, &id));
              assert_true(sampler_choose(&s2, logit, PROG_F32, draw, &id2));
              assert_int_equal(id, id2);
              assert_true(plain_allows(logit, &s, draw, id));
              chosen++;
            }
            arena_free(&a);
          }
  assert_int_equal(chosen, 6 * 3 * 3 * 5 * 4 * 6);
  pool_free(one);
  pool_free(two);
}

static void refuses_nan(void **state) {
  (void)state;
  static float logit[MOST];
  pool *two = pool_new(2);
  arena a;
  arena_init(&a);
  for (int greedy = 0; greedy < 2; greedy++) {
    sampler s = {.temperature = greedy ? 0 : 1, .top_p = 1, .vocab = MOST, .threads = two};
    sampler_open(&s, &a);
    for (int at = 0; at < MOST; at += 499) {
      make_logits(logit, MOST, 1);
      logit[at] = NAN;
      int32_t id;
      assert_false(sampler_choose(&s, logit, PROG_F32, 0.5, &id));
    }
  }
  arena_free(&a);
  pool_free(two);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(agrees_with_sorting),
                                     cmocka_unit_test(refuses_nan)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
