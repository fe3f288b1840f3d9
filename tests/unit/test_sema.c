// The promises of diag.def for the semantic half, jobs as plain data, patterns over weights.
#include "tests/unit/arena_fixture.h"

#include <string.h>

#include "frontend/sema.h"
#include "ir/verify.h"

static setting_list sets_of(arena *a, diags *d, const char *text) {
  return text ? parse_settings(a, d, source_from_text(a, "--set", text, strlen(text)))
              : (setting_list){0};
}

// ---- diag.def -----------------------------------------------------------------------------------

static bool draws(arena *a, const char *text, diag_code code, int *errors) {
  diags d;
  diags_init(&d, a);
  sema_program *p = sema_open_text(a, &d, "t.dsm", text, strlen(text));
  if (!diags_errors(&d)) sema_check(p, (setting_list){0}, NULL);
  *errors = diags_errors(&d);
  for (int i = 0; i < d.all.n; i++)
    if (d.all.at[i]->code == code) return true;
  return false;
}

// Rows up to DECIMAL_PREFIX are of the parser; its own test shows them.
static void examples_hold(void **state) {
  for (int i = DIAG_DECIMAL_PREFIX + 1; i < DIAG_CODES; i++) {
    const diag_info *info = diag_info_of((diag_code)i);
    int errors;
    if (*info->failing && *info->failing != '$' &&
        (!draws(*state, info->failing, (diag_code)i, &errors) ||
         (errors > 0) != (info->level == DIAG_ERROR)))
      fail_msg("the failing example of %s draws something else", info->word);
    if (*info->fixed && *info->fixed != '$' &&
        (draws(*state, info->fixed, (diag_code)i, &errors) || errors))
      fail_msg("the fixed example of %s is not clean", info->word);
  }
}

// ---- jobs ---------------------------------------------------------------------------------------

static const char model_text[] =
    "model m { param layers = 2, width = 4*layers; dim batch, seq <= 16\n"
    "  input tokens : i32[batch, seq]; input targets : i32[batch, seq]\n"
    "  weight e : [8, width]; x = gather(e, tokens)\n"
    "  repeat (layers) as h { x = x + linear(x, width, bias=true) as up }\n"
    "  output logits = matmul(x, transpose(e)); output loss = cross_entropy(logits, targets) }\n"
    "model big = m(layers=3)\n"
    "train m { data = [\"a\", \"b\"]; batch = 8; seq = 4; steps = 1k; clip = 0.5; seed = 7\n"
    "  optimizer = adamw(1e-3, betas=[0.9, 0.95], weight_decay=0.1)\n"
    "  schedule = cosine(warmup=10, floor=1e-5); save_every = steps // 4; shuffle = false\n"
    "  weights \"h.*.up.bias\" { train = false; lr_scale = 0.5 }\n"
    "  weights \"*.{weight,bias}\" { init = normal(0.5) } }\n"
    "train m as quick { batch = 2; seq = 2; steps = 1; optimizer = sgd(lr=1, nesterov=true)\n"
    "  read = span(0.15, 3) }\n"
    "names m as hf { \"h.*.{up}.weight\" = transpose(\"h.*.{}.weight\") }\n";

static job *job_of(arena *a, diags *d, const char *name, const char *sets, sema_program **out) {
  diags_init(d, a);
  sema_program *p = sema_open_text(a, d, "t.dsm", model_text, strlen(model_text));
  if (out) *out = p;
  return sema_job(p, name, sets_of(a, d, sets));
}

static const char *setting_of(const job *j, const char *name) {
  for (int i = 0; i < j->settings.n; i++)
    if (str_eq(j->settings.at[i].name, name)) return j->settings.at[i].value;
  return "";
}

static void jobs_are_resolved(void **state) {
  diags d;
  job *j = job_of(*state, &d, "m", NULL, NULL);
  assert_null(j);  // two jobs: which?
  j = job_of(*state, &d, "quick", NULL, NULL);
  assert_non_null(j);
  assert_string_equal(j->name, "quick");
  assert_string_equal(j->model_name, "m");
  assert_int_equal(j->optimizer.kind, OPTIMIZER_SGD);
  assert_true(j->optimizer.nesterov);
  assert_true(j->optimizer.lr == 1 && j->optimizer.momentum == 0);
  assert_int_equal(j->read.kind, READ_SPAN);
  assert_true(j->read.share == 0.15 && j->read.mean_span == 3);
  assert_true(j->shuffle);
  assert_int_equal(job_dim_extent(j, "seq"), 2);
  assert_int_equal(job_dim_extent(j, "batch"), 2);
  assert_int_equal(job_dim_extent(j, "nothing"), 0);
}

// The first job alone, by way of a text without the second.
static job *first_job(arena *a, diags *d, const char *name, const char *sets, sema_program **out) {
  const char *second = strstr(model_text, "train m as quick"), *names = strstr(model_text, "names");
  const char *text = arena_printf(a, "%.*s%s", (int)(second - model_text), model_text, names);
  diags_init(d, a);
  sema_program *p = sema_open_text(a, d, "t.dsm", text, strlen(text));
  if (out) *out = p;
  return sema_job(p, name, sets_of(a, d, sets));
}

static void values_have_an_order(void **state) {
  diags d;
  job *j = first_job(*state, &d, NULL, NULL, NULL);
  assert_non_null(j);
  assert_int_equal(j->batch, 8);
  assert_int_equal(j->steps, 1000);
  assert_int_equal(j->save_every, 250);
  assert_int_equal(j->seed, 7);
  assert_true(j->clip == 0.5 && !j->shuffle);
  assert_true(j->optimizer.lr == 1e-3 && j->optimizer.beta2 == 0.95 && j->optimizer.eps == 1e-8);
  assert_int_equal(j->schedule.kind, SCHEDULE_COSINE);
  assert_int_equal(j->schedule.warmup, 10);
  assert_int_equal(j->data_paths.n, 2);
  assert_string_equal(j->data, "a");
  assert_int_equal(j->read.kind, READ_NEXT_TOKEN);
  assert_false(j->read.given);
  assert_int_equal(j->weight_rules.n, 2);
  assert_int_equal(j->name_maps.n, 1);
  assert_string_equal(setting_of(j, "m.width"), "8");
  assert_string_equal(setting_of(j, "train.optimizer.lr"), "0.001");
  assert_string_equal(setting_of(j, "train.schedule.floor"), "1e-05");

  // The variant takes its base's job; --set is last and what depends on it follows.
  j = first_job(*state, &d, "big", "steps=40,lr=2,layers=5,schedule=linear(warmup=3)", NULL);
  assert_non_null(j);
  assert_string_equal(setting_of(j, "big.layers"), "5");
  assert_string_equal(setting_of(j, "big.width"), "20");
  assert_int_equal(j->save_every, 10);
  assert_true(j->optimizer.lr == 2);
  assert_int_equal(j->schedule.kind, SCHEDULE_LINEAR);
  assert_int_equal(j->schedule.warmup, 3);
  assert_true(j->schedule.floor == 0);
  // A base's name says the same as the variant's own.
  j = first_job(*state, &d, "big", "m.layers=4", NULL);
  assert_string_equal(setting_of(j, "big.layers"), "4");
}

static void what_is_not_built_is_refused(void **state) {
  static const char *const bad[] = {"precision=f8e4m3",
                                    "precision=f16",
                                    "steps=-1",
                                    "batch=0",
                                    "lr=-1",
                                    "betas=[1,2]",
                                    "optimizer=adam(lr=1)",
                                    "seq=17",
                                    "data=3",
                                    "optimizer=sgd(lr=1,x=2)",
                                    "layers=\"2\"",
                                    "clip=0"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    diags d;
    if (first_job(*state, &d, NULL, bad[i], NULL)) fail_msg("--set %s passes", bad[i]);
    assert_true(diags_errors(&d) > 0);
  }
}

static void rules_reach_states(void **state) {
  diags d;
  sema_program *p;
  job *j = first_job(*state, &d, NULL, NULL, &p);
  ir_module *m = sema_lower(p, j, SEMA_TRAIN | SEMA_EVAL | SEMA_DECODE);
  assert_non_null(m);
  assert_null(ir_verify(m));
  assert_int_equal(sema_parameters(m), 8 * 8 + 2 * (8 * 8 + 8));
  const ir_state *bias = ir_state_find(m, "h.#.up.bias"), *w = ir_state_find(m, "h.#.up.weight");
  const ir_state *e = ir_state_find(m, "e");
  assert_true(bias && w && e);
  assert_false(bias->trained);
  assert_true(bias->lr_scale == 0.5 && bias->weight_decay == 0 && bias->init_a == 0.5);
  assert_true(w->trained && w->weight_decay == 1 && w->init == INIT_NORMAL && w->init_a == 0.5);
  assert_true(e->init_a == 0.02);
  static const char *const funcs[] = {"train_step", "evaluate", "prefill", "decode"};
  assert_int_equal(m->funcs.n, 4);
  for (int i = 0; i < 4; i++) assert_string_equal(m->funcs.at[i]->name, funcs[i]);
}

// A text that would write out too much stops soon, whatever multiplies.
static void work_is_bounded(void **state) {
  sb s = {.arena = *state};
  sb_puts(&s, "block b0(x) { return x + 1 }\n");
  for (int i = 1; i < 40; i++)
    sb_printf(&s, "block b%d(x) { y = b%d(x); return b%d(y) }\n", i, i - 1, i - 1);
  sb_puts(&s, "model m { dim batch; input x : f32[batch]; output loss = mean(b39(x)) }\n");
  int errors;
  assert_true(draws(*state, sb_str(&s), DIAG_TOO_LARGE, &errors));
  assert_int_equal(errors, 1);
  sb t = {.arena = *state};
  sb_puts(&t, "model m { dim batch; input x : f32[batch]\n");
  for (int i = 0; i < 60; i++) sb_printf(&t, "repeat (1000) as r%d {\n", i);
  for (int i = 0; i < 60; i++) sb_puts(&t, "}\n");
  sb_puts(&t, "output loss = mean(x) }\n");
  assert_true(draws(*state, sb_str(&t), DIAG_TOO_LARGE, &errors));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(examples_hold, make_arena, free_arena),
      cmocka_unit_test_setup_teardown(jobs_are_resolved, make_arena, free_arena),
      cmocka_unit_test_setup_teardown(values_have_an_order, make_arena, free_arena),
      cmocka_unit_test_setup_teardown(what_is_not_built_is_refused, make_arena, free_arena),
      cmocka_unit_test_setup_teardown(rules_reach_states, make_arena, free_arena),
      cmocka_unit_test_setup_teardown(work_is_bounded, make_arena, free_arena),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
