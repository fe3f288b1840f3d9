// Stages of a pipeline against the whole step: every stage is interpreted by a thread of its own,
// in float64, and what they send each other goes through queues. Loss, gradient norm and every
// state after a step must be those of the whole, but for the order of sums.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>

#include "ir/interp.h"
#include "ir/place.h"
#include "ir/rule.h"
#include "ir/schedule.h"
#include "ir/verify.h"
#include "passes/cut.h"
#include "passes/plan/pipeline.h"
#include "tests/unit/step_fixture.h"

enum { MOST = 4 };

// ---- compiling ----------------------------------------------------------------------------------

typedef struct wish {
  const char *path, *settings;
  int stages;
  const int64_t *layers;  // of each stage; NULL: as even as can be
  recompute_mode recompute;
  int64_t micro_batch;  // 0: all at once
  int chunks;           // 0: one
  bool weights;         // their gradients have turns
} wish;

// LOCAL of a step, as a pipeline is cut from.
static ir_module *local_of(arena *a, const wish *w) {
  diags d;
  diags_init(&d, a);
  sema_program *p = sema_open(a, &d, w->path);
  job *j = NULL;
  if (p && !diags_errors(&d)) {
    source *text = source_from_text(a, "--set", w->settings, strlen(w->settings));
    j = sema_job(p, p->asked, parse_settings(a, &d, text));
  }
  ir_module *m = j && !diags_errors(&d) ? sema_lower(p, j, SEMA_TRAIN | SEMA_EVAL) : NULL;
  if (!m) {
    diags_print(&d, stderr);
    fail_msg("%s with %s does not compile", w->path, w->settings);
  }
  ir_mesh mesh = {.naxes = 1, .axis = {{.name = "pipeline", .size = w->stages}}};
  pass_options o = pass_defaults();
  o.batch = j->batch;
  o.mesh = &mesh;
  o.recompute = w->recompute;
  o.micro_batch = w->micro_batch;
  o.stage = IR_LOCAL;
  bool stopped;
  const char *why = pass_run_front(m, &o, &stopped);
  if (why) fail_msg("%s: %s", w->path, why);
  return m;
}

static void cut(arena *a, const wish *w, ir_module **stage) {
  ir_module *m = local_of(a, w);
  int parts = w->stages * (w->chunks ? w->chunks : 1);
  int64_t *first = cut_evenly(a, cut_layers(m), parts);
  for (int s = 0; s < parts && w->layers; s++) first[s + 1] = first[s] + w->layers[s];
  cut_job how = {.stages = w->stages, .chunks = w->chunks, .first = first, .weights = w->weights};
  const char *why = cut_stages(m, &how, stage);
  if (why) fail_msg("%s: %s", w->path, why);
  for (int s = 0; s < w->stages; s++) {
    const char *bad = ir_verify(stage[s]);
    if (bad) fail_msg("%s, stage %d: %s", w->path, s, bad);
  }
}

// ---- messages -----------------------------------------------------------------------------------

typedef struct message {
  struct message *next;
  int64_t n;
  double data[];
} message;

typedef struct ranks {
  int n;
  pthread_mutex_t lock;
  pthread_cond_t change;
  message *first[MOST][MOST][2], **last[MOST][MOST][2];  // from, to, forward
  // A reduction: how many have come, and which one it is.
  double sum[1 << 14];
  int come, round;
  int sends, reductions;
} ranks;

typedef struct rank {
  ranks *all;
  int number;
  ir_interp *x;
  const char *func, *error;
} rank;

static int64_t numbers(const ir_op *op) {
  return ir_elements(op->nout ? &op->out[0]->type : &op->in[0]->type);
}

static void exchange(void *ctx, const ir_op *op, const double *in, double *out) {
  rank *r = ctx;
  ranks *q = r->all;
  int64_t n = numbers(op);
  pthread_mutex_lock(&q->lock);
  if (op->code == IR_all_reduce) {
    assert_true(n <= (int64_t)(sizeof q->sum / sizeof *q->sum));
    for (int64_t i = 0; i < n; i++) q->sum[i] = (q->come ? q->sum[i] : 0) + in[i];
    int round = q->round;
    q->come++;
    // The last one to come lets the others see the sum; it goes when all have.
    if (q->come == q->n) q->come = -q->n, q->round++, q->reductions++;
    pthread_cond_broadcast(&q->change);
    while (q->round == round) pthread_cond_wait(&q->change, &q->lock);
    memcpy(out, q->sum, sizeof *out * (size_t)n);
    q->come++;
    pthread_cond_broadcast(&q->change);
    while (q->come < 0) pthread_cond_wait(&q->change, &q->lock);
  } else {
    int step = (int)ir_attr_int(op, "step", 0), other = (r->number + step + q->n) % q->n;
    bool forward = (op->code == IR_send) == (step > 0);
    if (op->code == IR_send) {
      message *m = malloc(sizeof *m + sizeof(double) * (size_t)n);
      m->next = NULL;
      m->n = n;
      memcpy(m->data, in, sizeof(double) * (size_t)n);
      *q->last[r->number][other][forward] = m;
      q->last[r->number][other][forward] = &m->next;
      q->sends++;
    } else {
      message **at = &q->first[other][r->number][forward];
      while (!*at) pthread_cond_wait(&q->change, &q->lock);
      message *m = *at;
      *at = m->next;
      if (!m->next) q->last[other][r->number][forward] = at;
      if (m->n != n) r->error = "a message of another size";
      memcpy(out, m->data, sizeof(double) * (size_t)n);
      free(m);
    }
    pthread_cond_broadcast(&q->change);
  }
  pthread_mutex_unlock(&q->lock);
}

static void *run(void *ctx) {
  rank *r = ctx;
  const char *why = ir_interp_run(r->x, r->func);
  if (why) r->error = why;
  return NULL;
}

// ---- numbers ------------------------------------------------------------------------------------

static uint64_t hash(const char *name, int64_t i) {
  uint64_t h = 1469598103934665603u;
  for (const char *p = name; *p; p++) h = (h ^ (unsigned char)*p) * 1099511628211u;
  h ^= (uint64_t)i * 0x9e3779b97f4a7c15u;
  h ^= h >> 31, h *= 0xbf58476d1ce4e5b9u, h ^= h >> 29;
  return h;
}

// Element i of a state as the whole has it.
static double start(const ir_state *s, const char *name, int64_t i) {
  double u = (double)(hash(name, i) >> 40) / (double)(1 << 24);
  bool second = s->cls == STATE_OPTIMIZER && name[strlen(name) - 1] == 'v';
  return second ? u + 0.1 : 0.4 * (u - 0.5) + (s->type.rank == 1 + s->stacked ? 1 : 0);
}

static const char *called(const ir_state *s) { return s->range_of ? s->range_of : s->name; }

// Where a stage's state begins in that of the whole.
static int64_t offset_in(const ir_state *s, const ir_module *whole) {
  const ir_state *w = ir_state_find((ir_module *)(uintptr_t)whole, called(s));
  assert_non_null(w);
  if (!s->stacked) return 0;
  return ir_elements(&w->type) / w->type.dim[0]->size * ((s->first - w->first) / w->step);
}

static void give(arena *a, ir_interp *x, ir_module *m, const ir_module *whole, const char *func) {
  for (int i = 0; i < m->states.n; i++) {
    const ir_state *s = m->states.at[i];
    int64_t n = ir_elements(&s->type), from = offset_in(s, whole);
    double *v = arena_new(a, double, n);
    for (int64_t k = 0; k < n; k++) v[k] = start(s, called(s), from + k);
    if (s->cls != STATE_COPY) ir_interp_set_state(x, s->name, v, n);
  }
  const ir_region *r = ir_func_find(m, func)->body;
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    if (op->code != IR_input && op->code != IR_arg) continue;
    const char *name = ir_attr_str(op, "name", "");
    int64_t n = ir_elements(&op->out[0]->type);
    double *v = arena_new(a, double, n);
    for (int64_t k = 0; k < n; k++)
      v[k] = op->code == IR_arg ? 0.5 + 0.01 * (double)(hash(name, 0) % 32)
                                : (double)(1 + hash(name, k) % 7);
    ir_interp_give(x, name, v, n);
  }
}

static void assert_near(const char *what, double is, double want, double scale) {
  if (!(fabs(is - want) <= 1e-9 * (fabs(want) + scale)))
    fail_msg("%s: %.17g, not %.17g", what, is, want);
}

// ---- the comparison -----------------------------------------------------------------------------

typedef struct counts {
  int sends, reductions;
} counts;

static counts compare(arena *a, const wish *w, const char *func, ir_module **stage) {
  ir_module *whole = local_of(a, w);
  ir_interp *x = ir_interp_new(a, whole);
  give(a, x, whole, whole, func);
  const char *why = ir_interp_run(x, func);
  if (why) fail_msg("the whole: %s", why);

  ranks *q = calloc(1, sizeof *q);
  q->n = w->stages;
  pthread_mutex_init(&q->lock, NULL);
  pthread_cond_init(&q->change, NULL);
  for (int i = 0; i < MOST; i++)
    for (int k = 0; k < 2 * MOST; k++) q->last[i][k / 2][k % 2] = &q->first[i][k / 2][k % 2];
  rank r[MOST];
  arena own[MOST];
  pthread_t thread[MOST];
  for (int s = 0; s < w->stages; s++) {
    arena_init(&own[s]);
    // The tables of values are made in it while others run.
    stage[s]->arena = stage[s]->bodies = &own[s];
    r[s] = (rank){.all = q, .number = s, .x = ir_interp_new(&own[s], stage[s]), .func = func};
    r[s].x->exchange = exchange;
    r[s].x->exchange_ctx = &r[s];
    give(&own[s], r[s].x, stage[s], whole, func);
  }
  for (int s = 0; s < w->stages; s++) pthread_create(&thread[s], NULL, run, &r[s]);
  for (int s = 0; s < w->stages; s++) pthread_join(thread[s], NULL);
  for (int s = 0; s < w->stages; s++) {
    if (r[s].error) fail_msg("stage %d: %s", s, r[s].error);
    for (int k = 0; k < 2 * w->stages; k++)
      assert_null(q->first[s][k / 2][k % 2]);  // all that was sent came
    static const char *const outputs[] = {"loss", "grad_norm"};
    for (int k = 0; k < 2; k++) {
      const double *want = ir_interp_output(x, outputs[k], NULL);
      const double *is = ir_interp_output(r[s].x, outputs[k], NULL);
      assert_int_equal(is != NULL, want != NULL);
      if (want) assert_near(outputs[k], *is, *want, 0);
    }
    for (int i = 0; i < stage[s]->states.n; i++) {
      const ir_state *st = stage[s]->states.at[i];
      int64_t n = ir_elements(&st->type), from = offset_in(st, whole);
      const double *is = ir_interp_state(r[s].x, st->name, NULL);
      const double *want = ir_interp_state(x, called(st), NULL);
      for (int64_t k = 0; k < n && is && want; k++) assert_near(st->name, is[k], want[from + k], 1);
    }
  }
  // Together the stages have all of every state.
  for (int i = 0; i < whole->states.n; i++) {
    const ir_state *st = whole->states.at[i];
    int64_t layers = 0, have = 0;
    for (int s = 0; s < w->stages; s++)
      for (int k = 0; k < stage[s]->states.n; k++) {
        const ir_state *mine = stage[s]->states.at[k];
        if (!str_eq(called(mine), st->name)) continue;
        have++;
        if (st->stacked) layers += mine->type.dim[0]->size;
      }
    if (st->cls == STATE_CACHE) continue;
    assert_true(have > 0);
    if (st->stacked) assert_int_equal(layers, st->type.dim[0]->size);
  }
  counts n = {q->sends, q->reductions};
  for (int s = 0; s < w->stages; s++) arena_free(&own[s]);
  pthread_mutex_destroy(&q->lock);
  pthread_cond_destroy(&q->change);
  free(q);
  return n;
}

static counts check(const wish *w, const char *func) {
  arena a;
  arena_init(&a);
  ir_module *stage[MOST];
  cut(&a, w, stage);
  counts n = compare(&a, w, func, stage);
  arena_free(&a);
  return n;
}

#define TINY "layers=5,hidden=16,batch=2,seq=6,vocab=24,context=6,heads=2"

static void test_gpt_tied(void **state) {
  (void)state;
  wish w = {"examples/tiny.dsm", TINY, 2, NULL, RECOMPUTE_NONE, 0, 0};
  counts n = check(&w, "train_step");
  assert_int_equal(n.sends, 2);       // an activation and its gradient
  assert_int_equal(n.reductions, 3);  // loss, norm, and the embedding's gradient
  n = check(&w, "evaluate");
  assert_int_equal(n.sends, 1);
  assert_int_equal(n.reductions, 1);
  w.stages = 4;
  n = check(&w, "train_step");
  assert_int_equal(n.sends, 8);  // three cuts both ways; the embedding's gradient, and the sum back
  assert_int_equal(n.reductions, 2);
  assert_int_equal(check(&w, "evaluate").sends, 3);
  const int64_t layers[] = {1, 0, 3, 1};  // a stage without layers passes on
  w.layers = layers;
  assert_int_equal(check(&w, "train_step").sends, 8);
}

static void test_recompute(void **state) {
  (void)state;
  wish w = {"examples/tiny.dsm", TINY, 3, NULL, RECOMPUTE_FULL, 0, 0};
  check(&w, "train_step");
  w.recompute = RECOMPUTE_SELECTIVE;
  check(&w, "train_step");
}

static void test_dropout(void **state) {
  (void)state;
  wish w = {"examples/tiny.dsm", TINY ",drop=0.3", 3, NULL, RECOMPUTE_NONE, 0, 0};
  check(&w, "train_step");  // draws are those of the layer in the whole model
}

// Two and three chunks a stage: what goes on comes back to a stage for its next chunk.
static void test_chunks(void **state) {
  (void)state;
  wish w = {"examples/tiny.dsm", TINY, 2, NULL, RECOMPUTE_NONE, 0, 2};
  counts n = check(&w, "train_step");
  assert_int_equal(n.sends, 6);       // three cuts, both ways
  assert_int_equal(n.reductions, 3);  // loss, norm, and the embedding's gradient
  assert_int_equal(check(&w, "evaluate").sends, 3);
  const int64_t layers[] = {1, 0, 1, 1, 1, 1};
  w.layers = layers;
  w.chunks = 3;
  assert_int_equal(check(&w, "train_step").sends, 6);  // the second part has nothing to do
  wish t5 = {"examples/t5.dsm",
             "layers=4,hidden=16,batch=2,src=6,dst=5,vocab=24,heads=2,head=8,ffn=24",
             2,
             NULL,
             RECOMPUTE_NONE,
             0,
             2};
  check(&t5, "train_step");
  t5.chunks = 4;
  check(&t5, "train_step");
  t5.chunks = 2;
  t5.stages = 4;
  t5.recompute = RECOMPUTE_FULL;
  check(&t5, "train_step");
  check(&t5, "evaluate");
}

static void test_untied(void **state) {
  (void)state;
  wish w = {"examples/llama.dsm",
            "layers=4,hidden=16,batch=2,seq=6,vocab=24,context=6,heads=2,kv_heads=1,ffn=24", 2,
            NULL, RECOMPUTE_NONE};
  counts n = check(&w, "train_step");
  assert_int_equal(n.sends, 2);
  w.stages = 4;
  assert_int_equal(check(&w, "train_step").sends, 6);
}

// T5 in two stages.
static const wish t5 = {"examples/t5.dsm",
                        "layers=4,hidden=16,batch=2,src=6,dst=5,vocab=24,heads=2,head=8,ffn=24",
                        2,
                        NULL,
                        RECOMPUTE_NONE,
                        0};

static void test_t5(void **state) {
  (void)state;
  wish w = t5;
  // The encoder's last norm is where the decoder begins: what it norms and the gradient cross, not
  // what it saves for backward.
  counts n = check(&w, "train_step");
  assert_int_equal(n.sends, 2);
  assert_int_equal(check(&w, "evaluate").sends, 1);
  w.stages = 4;
  // Two values at each cut, three where the decoder is cut, both ways; behind them two stages swap
  // the gradients of the encoder's biases, two those of the decoder's; three have the table.
  n = check(&w, "train_step");
  assert_int_equal(n.sends, 2 * (1 + 1 + 2) + 2 + 2 + 4);
  const int64_t layers[] = {3, 2, 1, 2};  // a stage with layers of both
  w.layers = layers;
  check(&w, "train_step");
}

// ---- gradients of weights by themselves ---------------------------------------------------------

typedef struct seen {  // in a turn
  int sums, exchanges, ops;
} seen;

static void look(void *ctx, ir_op *op) {
  seen *s = ctx;
  s->ops++;
  s->sums += ir_accumulates(op);
  s->exchanges += ir_is_exchange(op->code);
}

// What the phases of a stage have, and that what turns of weights make is read behind the loop
// alone.
static void look_at(const ir_module *m, int phases, int chunks, seen *phase) {
  const ir_func *f = ir_func_find((ir_module *)(uintptr_t)m, "train_step");
  const ir_region *r = f->body;
  bool *late = arena_new(m->arena, bool, m->next_value + 1);
  assert_int_equal(f->turns, phases * chunks);
  assert_int_equal(f->chunks, chunks);
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    int turn = cut_turn_of(f, op), is = turn < 0 ? -1 : (int)cut_phase_of(f, turn);
    for (int k = 0; k < op->nin && is >= 0; k++)
      assert_true(!late[op->in[k]->id] || is == CUT_WEIGHTS);
    if (is < 0) continue;
    for (int k = 0; k < ir_attr_int(op, "carried", 0) && is == CUT_BACKWARD && phases == 3; k++)
      assert_false(cut_is_partial(op->region[0]->args.at[1 + k], mesh_axis(m->mesh, "micro")));
    look(&phase[is], op);
    for (int k = 0; k < op->nregions; k++) pass_walk(op->region[k], look, &phase[is]);
    for (int k = 0; k < op->nout; k++) late[op->out[k]->id] = is == CUT_WEIGHTS;
  }
}

// All sums over micro-batches that backward has otherwise are in turns of weights; messages stay.
static void check_apart(wish w) {
  arena a;
  arena_init(&a);
  ir_module *together[MOST], *apart[MOST];
  int chunks = w.chunks ? w.chunks : 1, all = 0;
  cut(&a, &w, together);
  w.weights = true;
  cut(&a, &w, apart);
  for (int s = 0; s < w.stages; s++) {
    seen two[3] = {0}, three[3] = {0};
    look_at(together[s], 2, chunks, two);
    look_at(apart[s], 3, chunks, three);
    assert_int_equal(three[CUT_WEIGHTS].sums, two[CUT_BACKWARD].sums);
    assert_int_equal(three[CUT_BACKWARD].sums, 0);
    assert_int_equal(three[CUT_WEIGHTS].exchanges, 0);
    assert_int_equal(three[CUT_BACKWARD].exchanges, two[CUT_BACKWARD].exchanges);
    all += three[CUT_WEIGHTS].sums;
  }
  assert_true(all > 0);
  int sends = compare(&a, &w, "train_step", together).sends;
  assert_int_equal(compare(&a, &w, "train_step", apart).sends, sends);
  arena_free(&a);
  check(&w, "evaluate");
}

static void test_weights(void **state) {
  (void)state;
  wish w = {"examples/tiny.dsm", TINY, 2, NULL, RECOMPUTE_NONE, 0, 0};
  check_apart(w);
  w.recompute = RECOMPUTE_FULL;
  check_apart(w);
  w.recompute = RECOMPUTE_SELECTIVE;
  w.settings = TINY ",drop=0.3";
  w.stages = 4;
  check_apart(w);
  const int64_t layers[] = {0, 1, 4, 0};  // the first stage has an embedding, the last one a loss
  w.layers = layers;
  check_apart(w);
  wish two = {"examples/tiny.dsm", TINY, 2, NULL, RECOMPUTE_NONE, 0, 2};
  check_apart(two);
}

// Sums that a repeat carries: of the bias of all layers' attention, and of the encoder's output,
// which the encoder waits for.
static void test_weights_t5(void **state) {
  (void)state;
  wish w = t5;
  check_apart(w);
  w.stages = 4;
  check_apart(w);
  const int64_t layers[] = {3, 2, 1, 2};
  w.layers = layers;
  w.recompute = RECOMPUTE_FULL;
  check_apart(w);
  wish llama = {"examples/llama.dsm",
                "layers=4,hidden=16,batch=2,seq=6,vocab=24,context=6,heads=2,kv_heads=1,ffn=24", 4,
                NULL, RECOMPUTE_NONE};
  check_apart(llama);
}

// ---- orders and places --------------------------------------------------------------------------

enum { BATCH = 8 };

// SCHEDULE of every stage for eight samples in micro-batches.
static void schedule(arena *a, wish w, const pipeline *p, ir_module **stage) {
  w.micro_batch = BATCH / p->micro;
  w.weights = p->kind == PIPE_ZERO_BUBBLE;
  cut(a, &w, stage);
  for (int s = 0; s < w.stages; s++) {
    pass_options o = pass_defaults();
    o.batch = BATCH;
    o.micro_batch = w.micro_batch;
    o.pipe = p;
    o.stage = IR_SCHEDULE;
    const char *why = pass_run_back(stage[s], &o);  // its replay proves the places
    if (why) fail_msg("stage %d: %s", s, why);
  }
}

static const sched_entry *train_entry(const sched *s) {
  for (int i = 0; i < s->entries.n; i++)
    if (s->entries.at[i].func->kind == ENTRY_TRAIN) return &s->entries.at[i];
  fail_msg("no entry trains");
  return NULL;
}

// The turns that the runs of a stage's loops execute are those of the pipeline's order, and as many
// micro-batches as it says are on their way.
static void check_order(const sched *s, const pipeline *p, int stage) {
  static const char *const phase[] = {"forward", "backward", "weights"};
  const sched_entry *e = train_entry(s);
  const pipe_list order = pipe_order_of(s->m->arena, p, stage);
  const bool apart = p->kind == PIPE_ZERO_BUBBLE;
  int last = -1, chunks = p->chunks;
  int64_t last_micro = -1, run = 0, within = 0;
  assert_int_equal(e->func->turns, (apart ? 3 : 2) * chunks);
  for (int i = 0; i < e->runs.n; i++) {
    const sched_run *r = &e->runs.at[i];
    if (r->kind != SCHED_LOOP) continue;
    for (int64_t m = 0; m < r->micros; m++)
      for (int k = 1; k <= r->task; k++) {
        const sched_task *t = &s->tasks.at[r[k].task];
        int64_t micro = r->micro_first + m + r[k].micro_add;
        int turn = (t->segment - e->func->loop) / 2;
        if (t->segment < e->func->loop) continue;           // targets are counted
        if (turn == last && micro == last_micro) continue;  // more of the same turn
        last = turn;
        last_micro = micro;
        assert_true(run < order.n);
        const pipe_run *want = &order.at[run];
        assert_string_equal(t->phase, phase[want->phase]);
        assert_int_equal(turn, want->phase == PIPE_F   ? want->chunk
                               : want->phase == PIPE_B ? 2 * chunks - 1 - want->chunk
                                                       : 3 * chunks - 1 - want->chunk);
        assert_int_equal(micro, want->micro + within);
        if (++within == want->count) run++, within = 0;
      }
    i += r->task;
  }
  assert_int_equal(run, order.n);
  int64_t micros = p->micro, behind = p->stages - stage, stash = micros < behind ? micros : behind;
  if (p->kind == PIPE_ONE_F_ONE_B) assert_int_equal(e->in_flight, stash);
  if (p->kind == PIPE_GPIPE) assert_int_equal(e->in_flight, micros);
  if (apart) assert_int_equal(e->in_flight, pipe_stash(s->m->arena, p, stage, NULL));
}

// What is saved has a place for each micro-batch on its way; with a place less than that, forward
// of one writes over what backward of another reads.
static void check_stash(sched *s, int64_t in_flight) {
  int64_t stashed = 0;
  for (int i = 0; i < s->items.n; i++)
    if (s->items.at[i].slots) {
      const sched_item *it = &s->items.at[i];
      assert_true(it->slots >= 1 && it->slots <= in_flight);
      assert_int_equal(it->bytes, it->slots * it->slot);
      stashed++;
    }
  assert_int_equal(stashed > 0, in_flight > 1);
  assert_null(sched_replay(s));
  if (!stashed) return;
  for (int i = 0; i < s->nplaces; i++)
    if (s->place[i].micro_mod) s->place[i].micro_mod--;
  const char *wrong = sched_replay(s);
  if (!wrong) fail_msg("a place less and nothing is wrong");
  assert_non_null(strstr(wrong, "reads"));
}

static void check_orders(const char *path, const char *settings) {
  // Weights' gradients wait for a gap, or come at once where none is as long.
  static const pipe_chunk gaps[] = {{1, 2, 0.5, 0, 0},
                                    {1, 2, 0.5, 0, 0},
                                    {1, 2, 0.5, 0, 0},
                                    {2, 4, 1, 0, 0}},
                          none[] = {
                              {1, 2, 1, 0, 0}, {1, 2, 1, 0, 0}, {1, 2, 1, 0, 0}, {1, 2, 1, 0, 0}};
  static const pipeline cases[] = {
      {PIPE_ONE_F_ONE_B, 2, 1, 2},
      {PIPE_ONE_F_ONE_B, 2, 1, 8},
      {PIPE_ONE_F_ONE_B, 4, 1, 2},
      {PIPE_ONE_F_ONE_B, 4, 1, 4},
      {PIPE_ONE_F_ONE_B, 4, 1, 8},
      {PIPE_GPIPE, 2, 1, 4},
      {PIPE_GPIPE, 4, 1, 8},
      {PIPE_GPIPE, 2, 2, 4},
      {PIPE_INTERLEAVED, 2, 2, 2},
      {PIPE_INTERLEAVED, 2, 2, 4},
      {PIPE_INTERLEAVED, 2, 2, 8},
      {PIPE_INTERLEAVED, 2, 4, 4},
      {PIPE_INTERLEAVED, 4, 2, 4},
      {PIPE_INTERLEAVED, 4, 2, 8},
      {PIPE_ZERO_BUBBLE, 2, 1, 2, gaps},
      {PIPE_ZERO_BUBBLE, 2, 1, 8, gaps},
      {PIPE_ZERO_BUBBLE, 4, 1, 2, gaps},
      {PIPE_ZERO_BUBBLE, 4, 1, 8, gaps},
      {PIPE_ZERO_BUBBLE, 2, 1, 4, none},
      {PIPE_ZERO_BUBBLE, 4, 1, 8, none},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    arena a;
    arena_init(&a);
    ir_module *stage[MOST];
    const pipeline *p = &cases[i];
    wish w = {path, settings, p->stages, NULL, RECOMPUTE_NONE, 0, p->chunks};
    schedule(&a, w, p, stage);
    for (int s = 0; s < p->stages; s++) {
      check_order(stage[s]->schedule, p, s);
      check_stash(stage[s]->schedule, train_entry(stage[s]->schedule)->in_flight);
    }
    arena_free(&a);
  }
}

static void test_orders_gpt(void **state) {
  (void)state;
  check_orders("examples/tiny.dsm", "layers=9,hidden=16,batch=8,seq=6,vocab=24,context=6,heads=2");
}

// The encoder's output waits on every stage of the decoder.
static void test_orders_t5(void **state) {
  (void)state;
  check_orders("examples/t5.dsm",
               "layers=4,hidden=16,batch=8,src=6,dst=5,vocab=24,heads=2,head=8,ffn=24");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_gpt_tied),   cmocka_unit_test(test_recompute),
      cmocka_unit_test(test_chunks),     cmocka_unit_test(test_dropout),
      cmocka_unit_test(test_untied),     cmocka_unit_test(test_t5),
      cmocka_unit_test(test_weights),    cmocka_unit_test(test_weights_t5),
      cmocka_unit_test(test_orders_gpt), cmocka_unit_test(test_orders_t5),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
