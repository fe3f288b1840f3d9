// Pass `layout`: the packer with glued items, frames, chains, and the replay that proves a layout.
// The replay is worth nothing if it accepts everything, so layouts are broken by hand here.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codegen/build.h"
#include "codegen/program.h"
#include "frontend/sema.h"
#include "ir/place.h"
#include "ir/schedule.h"
#include "ir/view.h"
#include "passes/pass.h"
#include "passes/races.h"

// ---- the packer ---------------------------------------------------------------------------------

static int64_t pack(sched_item *it, int n, int64_t align) {
  arena a;
  arena_init(&a);
  int64_t height = sched_pack(&a, it, n, align), load = sched_load(&a, it, n);
  assert_true(height >= load);
  arena_free(&a);
  return height;
}

static void test_pack_plain(void **state) {
  (void)state;
  sched_item it[] = {{.bytes = 4, .first = 0, .last = 1},
                     {.bytes = 2, .first = 1, .last = 2},
                     {.bytes = 4, .first = 2, .last = 3}};
  assert_int_equal(pack(it, 3, 1), 6);
  assert_int_equal(it[0].base, 0);
  assert_int_equal(it[1].base, 4);
  assert_int_equal(it[2].base, 0);
}

static void test_pack_glue(void **state) {
  (void)state;
  // The example of ir/schedule.h.
  sched_item it[] = {{.bytes = 4, .first = 0, .last = 1, .glue = 1, .at = 0},
                     {.bytes = 4, .first = 1, .last = 2, .glue = 1, .at = 2},
                     {.bytes = 2, .first = 0, .last = 0}};
  assert_int_equal(pack(it, 3, 1), 6);
  assert_int_equal(it[1].base - it[0].base, 2);
  assert_int_equal(it[2].base, 4);
  // A part below the base lifts the others.
  it[1].at = -3;
  assert_int_equal(pack(it, 3, 1), 7);
  assert_int_equal(it[0].base, 3);
  assert_int_equal(it[1].base, 0);
}

// No two items that live together share a byte, unless they are glued; distances are kept.
static void test_pack_many(void **state) {
  (void)state;
  enum { N = 60 };
  uint64_t x = 12345;
  for (int round = 0; round < 300; round++) {
    sched_item it[N];
    for (int i = 0; i < N; i++) {
      x = x * 6364136223846793005u + 1442695040888963407u;
      uint64_t r = x >> 20;
      it[i] = (sched_item){.bytes = (int64_t)(r % 500), .first = (int)(r / 500 % 20)};
      it[i].last = it[i].first + (int)(r / 10000 % 8);
      it[i].glue = (int)(r / 80000 % 8) < 4 ? 1 + (int)(r / 640000 % 6) : 0;
      it[i].at = it[i].glue ? 64 * ((int64_t)(r / 3840000 % 9) - 4) : 0;
    }
    int64_t height = pack(it, N, 64), base[N];
    for (int i = 0; i < N; i++) {
      base[i] = it[i].base;
      assert_true(it[i].base >= 0 && it[i].base + it[i].bytes <= height);
      assert_int_equal(it[i].base % 64, 0);
      for (int j = 0; j < i; j++) {
        if (it[i].glue && it[i].glue == it[j].glue) {
          assert_int_equal(it[i].base - it[j].base, it[i].at - it[j].at);
          continue;
        }
        bool meet = it[i].first <= it[j].last && it[j].first <= it[i].last;
        bool share = it[i].base < it[j].base + it[j].bytes && it[j].base < it[i].base + it[i].bytes;
        if (it[i].bytes && it[j].bytes) assert_false(meet && share);
      }
    }
    pack(it, N, 64);
    for (int i = 0; i < N; i++) assert_int_equal(it[i].base, base[i]);
  }
}

// ---- programs -----------------------------------------------------------------------------------

typedef struct built {
  arena a;
  sched *s;
} built;

// Turns every repeat round, which makes another program that is as legal.
static void mirror(ir_module *m) {
  for (int f = 0; f < m->funcs.n; f++) {
    ir_region *r = m->funcs.at[f]->body;
    for (int i = 0; i < r->ops.n; i++)
      if (r->ops.at[i]->code == IR_repeat)
        ir_set_attr(m, r->ops.at[i],
                    ir_attr_i("reverse", !ir_attr_int(r->ops.at[i], "reverse", 0)));
  }
}

static void build_one(built *b, const char *file, const char *sets, int64_t batch, int64_t micro,
                      bool mirrored, const char *skip) {
  arena_init(&b->a);
  diags d;
  diags_init(&d, &b->a);
  sema_program *p = sema_open(&b->a, &d, file);
  setting_list list =
      parse_settings(&b->a, &d, source_from_text(&b->a, "--set", sets, strlen(sets)));
  job *j = sema_job(p, p->asked, list);
  ir_module *m = sema_lower(p, j, SEMA_TRAIN | SEMA_EVAL | SEMA_TRY_DECODE);
  if (diags_errors(&d)) diags_print(&d, stderr);
  assert_non_null(m);
  pass_options o = pass_defaults();
  o.batch = batch;
  o.micro_batch = micro;
  // More results to place; the others are proved wherever one is built.
  assert_null(skip_add(&o.skip, "epilogue,sink"));
  assert_null(skip_add(&o.skip, skip));
  const char *why = pass_run(m, &o);
  if (why) fail_msg("%s", why);
  if (mirrored) mirror(m);
  o.stage = IR_SCHEDULE;
  o.only = "order,select,layout";
  o.select = cg_select;
  o.select_ctx = cg_context_new(&b->a, m);
  why = pass_run(m, &o);
  if (why) fail_msg("%s", why);
  b->s = m->schedule;
}

// The same job for a device: as the command line makes it.
static void build_device(built *b, int64_t micro) {
  arena_init(&b->a);
  diags d;
  diags_init(&d, &b->a);
  sema_program *p = sema_open(&b->a, &d, "examples/tiny.dsm");
  static const char sets[] = "layers=4,hidden=32,heads=2,vocab=64,seq=16,batch=4";
  setting_list list =
      parse_settings(&b->a, &d, source_from_text(&b->a, "--set", sets, strlen(sets)));
  ir_module *m =
      sema_lower(p, sema_job(p, p->asked, list), SEMA_TRAIN | SEMA_EVAL | SEMA_TRY_DECODE);
  assert_non_null(m);
  pass_options o = pass_defaults();
  o.batch = 4;
  o.micro_batch = micro;
  o.device = true;
  o.stage = IR_SCHEDULE;
  const char *why = pass_run(m, &o);
  if (why) fail_msg("%s", why);
  b->s = m->schedule;
}

static void build(built *b, const char *file, const char *sets, int64_t batch, int64_t micro) {
  build_one(b, file, sets, batch, micro, false, NULL);
}

static const char gpt[] = "layers=4,hidden=32,heads=2,vocab=64,seq=16,batch=4";

// What the replay says after the place of one value has changed; the place is put back.
static const char *without(built *b, sched_place *p, sched_place wrong) {
  sched_place right = *p;
  *p = wrong;
  const char *said = sched_replay(b->s);
  *p = right;
  assert_null(sched_replay(b->s));
  return said;
}

static ir_op *find_repeat(const sched *s, bool reverse) {
  const ir_region *r = s->entries.at[0].func->body;
  for (int i = 0; i < r->ops.n; i++)
    if (r->ops.at[i]->code == IR_repeat &&
        (ir_attr_int(r->ops.at[i], "reverse", 0) != 0) == reverse)
      return r->ops.at[i];
  fail_msg("no repeat");
  return NULL;
}

static void test_replay_accepts(void **state) {
  (void)state;
  for (int64_t micro = 1; micro <= 4; micro *= 2) {
    built b;
    build(&b, "examples/tiny.dsm", gpt, 4, micro);
    assert_null(sched_replay(b.s));
    arena_free(&b.a);
  }
}

// Every value that an instruction writes, moved to where the states begin, is noticed; and so is
// every item moved over another one that lives with it.
static void test_replay_meets_moves(void **state) {
  (void)state;
  built b;
  build(&b, "examples/tiny.dsm", gpt, 4, 2);
  int moved = 0;
  for (int t = 0; t < b.s->tasks.n; t++)
    for (int i = 0; i < b.s->tasks.at[t].instrs.n; i++) {
      const ir_op *op = b.s->tasks.at[t].instrs.at[i].op;
      for (int k = 0; k < op->nout; k++) {
        sched_place *p = &b.s->place[op->out[k]->id], wrong = *p;
        wrong.base = wrong.base == 0 ? 64 : 0;
        assert_non_null(without(&b, p, wrong));
        moved++;
        wrong = *p;
        wrong.base = b.s->arena_bytes;
        assert_non_null(without(&b, p, wrong));
      }
    }
  assert_true(moved > 100);
  arena_free(&b.a);
}

// One byte too low or too high is too much: a neighbour's byte.
static void test_replay_meets_one_byte(void **state) {
  (void)state;
  built b;
  build(&b, "examples/tiny.dsm", gpt, 4, 4);
  const ir_op *loop = find_repeat(b.s, true);
  int dense = 0;
  for (int j = (int)ir_attr_int(loop, "carried", 0); j < loop->nout; j++) {
    sched_place *p = &b.s->place[loop->region[0]->yield.at[j]->id], wrong = *p;
    wrong.base++;  // the stack is read whole afterwards
    assert_non_null(without(&b, p, wrong));
    dense++;
  }
  assert_true(dense > 5);
  arena_free(&b.a);
}

static void test_replay_meets_slots(void **state) {
  (void)state;
  built b;
  build(&b, "examples/tiny.dsm", gpt, 4, 4);
  const ir_op *forward = find_repeat(b.s, false);
  const ir_region *body = forward->region[0];
  // The ring that is the stack: slots swapped, all layers in one slot.
  sched_place *arg = &b.s->place[body->args.at[1]->id], *y = &b.s->place[body->yield.at[0]->id];
  assert_true(arg->layer_stride > 0);
  assert_int_equal(y->layer_add, 1);
  assert_non_null(without(&b, arg, *y));
  assert_non_null(without(&b, y, *arg));
  sched_place wrong = *y;
  wrong.layer_mod = 2;
  assert_non_null(without(&b, y, wrong));
  // A saved stack with a stride that lets layers overlap.
  for (int j = (int)ir_attr_int(forward, "carried", 0); j < forward->nout; j++) {
    const ir_value *v = body->yield.at[j];
    if (!v->def) continue;
    wrong = b.s->place[v->id];
    wrong.layer_stride -= 64;
    assert_non_null(without(&b, &b.s->place[v->id], wrong));
  }
  arena_free(&b.a);
}

// A gradient a layer closer to the activations than its frame says lies over what its own layer
// still reads, unless that was read for the last time before. (It is moved with all that reads it,
// so that nothing else is wrong.)
static void test_frames_need_their_distance(void **state) {
  (void)state;
  for (int deep = 0; deep < 2; deep++) {  // A above G; A below G
    built b;
    build(&b, "examples/tiny.dsm", deep ? "layers=6,hidden=64,seq=8,batch=4" : gpt, 4, 4);
    const ir_op *loop = find_repeat(b.s, true), *forward = find_repeat(b.s, false);
    int frames = 0, noticed = 0;
    for (int j = (int)ir_attr_int(loop, "carried", 0); j < loop->nout; j++) {
      sched_place *slice = &b.s->place[loop->region[0]->yield.at[j]->id],
                  *stack = &b.s->place[loop->out[j]->id];
      const sched_item *it = NULL, *activations = NULL;
      for (int i = 0; i < b.s->items.n; i++) {
        const sched_item *x = &b.s->items.at[i];
        if (x->entry || !x->glue || x->first < forward->mark) continue;
        if (x->at && x->first == loop->mark && b.s->states_bytes + x->base == stack->base) it = x;
      }
      for (int i = 0; it && i < b.s->items.n; i++) {
        const sched_item *x = &b.s->items.at[i];
        if (!x->entry && x->glue == it->glue && x->last == loop->mark) activations = x;
      }
      if (!activations) continue;
      int64_t layer = activations->bytes / ir_attr_int(loop, "count", 1);
      assert_true(it->at >= layer);
      slice->base -= layer, stack->base -= layer;
      noticed += sched_replay(b.s) != NULL;
      slice->base += layer, stack->base += layer;
      assert_null(sched_replay(b.s));
      frames++;
    }
    assert_true(frames > 1 && noticed > 0);
    arena_free(&b.a);
  }
}

// Forward from the last layer to the first: gradients lie below. The layout is as high, but for the
// ring that is a stack, which is then no part of a frame.
static void test_mirrored(void **state) {
  (void)state;
  const char *const sets[] = {gpt, "layers=6,hidden=64,seq=8,batch=4", "layers=2,seq=8,batch=4",
                              "layers=1,seq=8,batch=4"};
  for (int i = 0; i < 4; i++)
    for (int64_t micro = 1; micro <= 4; micro *= 4) {
      built b, c;
      build_one(&b, "examples/tiny.dsm", sets[i], 4, micro, false, NULL);
      build_one(&c, "examples/tiny.dsm", sets[i], 4, micro, true, NULL);
      assert_null(sched_replay(c.s));
      int above = 0, below = 0;
      for (int k = 0; k < b.s->items.n; k++)
        above += b.s->items.at[k].entry == 0 && b.s->items.at[k].glue > 0;
      for (int k = 0; k < c.s->items.n; k++)
        below += c.s->items.at[k].entry == 0 && c.s->items.at[k].at < 0;
      assert_true((above > 0) == (i < 3) && (below > 0) == (i < 3));
      int64_t x = b.s->entries.at[0].transient_bytes, y = c.s->entries.at[0].transient_bytes;
      assert_true(y >= x - x / 20 && y <= x + x / 5);
      arena_free(&b.a);
      arena_free(&c.a);
    }
}

// The caches lie where train_step has its transients, and prefill and decode agree on them.
static void test_caches(void **state) {
  (void)state;
  built b;
  build(&b, "examples/tiny.dsm", gpt, 4, 4);
  int caches = 0;
  for (int i = 0; i < b.s->m->states.n; i++) {
    const sched_place *p = &b.s->state_place[i];
    bool cache = b.s->m->states.at[i]->cls == STATE_CACHE;
    caches += cache;
    assert_int_equal(p->base >= b.s->states_bytes, cache);
    assert_true(p->base + p->bytes <= b.s->states_bytes + (cache ? b.s->cache_bytes : 0));
  }
  assert_int_equal(caches, 2);
  for (int i = 0; i < b.s->entries.n; i++) {
    ir_entry_kind kind = b.s->entries.at[i].func->kind;
    if (kind == ENTRY_PREFILL || kind == ENTRY_DECODE)
      assert_true(b.s->entries.at[i].transient_bytes >= b.s->cache_bytes);
  }
  // A transient of decode moved into a cache is noticed: decode must find it whole, and leave it
  // so.
  const sched_entry *decode = &b.s->entries.at[b.s->entries.n - 1];
  assert_int_equal(decode->func->kind, ENTRY_DECODE);
  const sched_instr *in = &b.s->tasks.at[decode->runs.at[0].task].instrs.at[0];
  sched_place *p = &b.s->place[in->op->out[0]->id], wrong = *p;
  wrong.base = b.s->states_bytes;
  assert_non_null(without(&b, p, wrong));
  arena_free(&b.a);
}

// How many results of train_step lie where a state, or an operand of theirs, lies.
static void count_shared(const built *b, int *in_states, int *over) {
  *in_states = *over = 0;
  const sched_entry *e = &b->s->entries.at[0];
  for (int ri = 0; ri < e->runs.n; ri++) {
    if (e->runs.at[ri].kind == SCHED_LOOP) continue;
    const sched_task *t = &b->s->tasks.at[e->runs.at[ri].task];
    for (int i = 0; i < t->instrs.n; i++) {
      const ir_op *op = t->instrs.at[i].op;
      for (int k = 0; k < op->nout; k++) {
        const sched_place *p = sched_place_of(b->s, op->out[k]);
        *in_states += p && p->base < b->s->states_bytes;
        for (int n = 0; n < op->nin && p && ir_updated(op) < 0; n++) {
          const sched_place *q = sched_place_of(b->s, op->in[n]);
          bool state = q && q->base < b->s->states_bytes;
          *over += q && !state && q->base == p->base && q->layer_add == p->layer_add;
        }
      }
    }
  }
}

// Every choice of the pass can be left out, alone and with the others, of programs that run either
// way; the replay at the end of the pass proves each. What it shared is then apart.
static void test_choices(void **state) {
  (void)state;
  const char *const names[] = {NULL,     "frames",  "chains",
                               "caches", "updates", "frames,chains,caches,updates"};
  for (int i = 0; i < 6; i++) {
    bool all = i == 5;
    for (int64_t micro = 1; micro <= 4; micro *= 4) {
      built m, b;
      build_one(&m, "examples/tiny.dsm", gpt, 4, micro, true, names[i]);
      arena_free(&m.a);
      build_one(&b, "examples/tiny.dsm", gpt, 4, micro, false, names[i]);
      int glued = 0, in_states, over;
      for (int k = 0; k < b.s->items.n; k++) glued += b.s->items.at[k].glue > 0;
      count_shared(&b, &in_states, &over);
      assert_true((glued > 0) == !(i == 1 || all));
      assert_true((over > 0) == !(i == 2 || all));
      assert_true((b.s->cache_bytes > 0) == !(i == 3 || all));
      assert_true((in_states > 0) == !(i == 4 || all));
      arena_free(&b.a);
    }
  }
}

static void test_replay_meets_scratch(void **state) {
  (void)state;
  built b;
  build(&b, "examples/tiny.dsm", gpt, 4, 4);
  int met = 0;
  for (int t = 0; t < b.s->tasks.n; t++)
    for (int i = 0; i < b.s->tasks.at[t].instrs.n; i++) {
      sched_instr *in = &b.s->tasks.at[t].instrs.at[i];
      if (!in->nscratch) continue;
      int64_t right = in->scratch_base[0];
      in->scratch_base[0] = b.s->place[ir_view_of(in->op->in[0]).root->id].base;
      assert_non_null(sched_replay(b.s));
      in->scratch_base[0] = right;
      met++;
    }
  assert_true(met > 0);
  arena_free(&b.a);
}

// A result may lie over an operand only where a kernel reads before it writes.
static void test_replay_meets_overwriting(void **state) {
  (void)state;
  built b;
  build(&b, "examples/tiny.dsm", gpt, 4, 4);
  int refused = 0;
  for (int t = 0; t < b.s->tasks.n; t++)
    for (int i = 0; i < b.s->tasks.at[t].instrs.n; i++) {
      const ir_op *op = b.s->tasks.at[t].instrs.at[i].op;
      if (op->code != IR_einsum) continue;
      const sched_place *x = sched_place_of(b.s, op->in[0]);
      sched_place *y = &b.s->place[op->out[0]->id], wrong = *x;
      wrong.bytes = y->bytes;
      const char *said = without(&b, y, wrong);
      assert_non_null(said);
      refused += strstr(said, "own operand") != NULL;
    }
  assert_true(refused > 0);
  arena_free(&b.a);
}

// ---- streams ------------------------------------------------------------------------------------

static sched_instr *first_of(const built *b, sched_code code) {
  for (int t = 0; t < b->s->tasks.n; t++)
    for (int i = 0; i < b->s->tasks.at[t].instrs.n; i++)
      if (b->s->tasks.at[t].instrs.at[i].code == code) return &b->s->tasks.at[t].instrs.at[i];
  fail_msg("no such instruction");
  return NULL;
}

// Every event and every move of a schedule for a device is needed: without any one of them, or with
// it on another stream, the replay says what is not ordered, or not there.
static void test_streams(void **state) {
  (void)state;
  for (int64_t micro = 1; micro <= 4; micro *= 4) {
    built b;
    build_device(&b, micro);
    assert_null(sched_replay(b.s));
    assert_int_equal(b.s->events, 4);
    int dropped = 0, moves = 0;
    for (int t = 0; t < b.s->tasks.n; t++) {
      sched_task *task = &b.s->tasks.at[t];
      for (int i = 0; i < task->instrs.n; i++) {
        sched_instr right = task->instrs.at[i], *in = &task->instrs.at[i];
        if (right.code == SCHED_OP) continue;
        // An event that is recorded again, of nothing, stands for no instruction at all.
        *in = (sched_instr){.code = SCHED_RECORD, .stream = right.stream, .event = b.s->events - 1};
        if (right.event == b.s->events - 1) in->event = 0;
        if (right.code == SCHED_WAIT) in->event = right.event, in->stream = STREAM_COMMUNICATION;
        const char *said = sched_replay(b.s);
        assert_non_null(said);
        if (right.code == SCHED_WAIT || right.code == SCHED_RECORD) {
          if (!strstr(said, "no event orders that")) fail_msg("%s", said);
          dropped++;
        } else {
          moves++;
        }
        *in = right;
        if (right.code == SCHED_FETCH || right.code == SCHED_EVICT) {
          in->stream = STREAM_COMMUNICATION;
          said = sched_replay(b.s);
          assert_non_null(said);
          if (!strstr(said, "no event orders that")) fail_msg("%s", said);
          *in = right;
        }
        assert_null(sched_replay(b.s));
      }
    }
    // Two pairs for what comes in and one for outputs, of four entries; loss and norm go apart.
    assert_int_equal(dropped, 4 * 6 + 2);
    // Inputs and the call of four entries; loss and norm, loss, and twice the logits.
    assert_int_equal(moves, (3 + 2) + (3 + 1) + (2 + 1) + (2 + 1));
    arena_free(&b.a);
  }
}

// What the messages say: of each kind one.
static void test_streams_say(void **state) {
  (void)state;
  built b;
  build_device(&b, 2);
  sched_instr *in = first_of(&b, SCHED_WAIT), right = *in;
  in->stream = STREAM_COMMUNICATION;
  const char *said = sched_replay(b.s);
  assert_non_null(strstr(said, "train_step, task train_step.fetch.0 writes bytes "));
  assert_non_null(strstr(said,
                         "of the device on stream copies: no event orders that with what "
                         "stream compute does to them"));
  *in = right;
  in = first_of(&b, SCHED_EVICT);
  right = *in;
  in->moved = NULL;
  said = sched_replay(b.s);
  assert_non_null(said);
  assert_non_null(strstr(said, "it holds nothing yet"));  // the loss never came to the host
  *in = right;
  in = first_of(&b, SCHED_FETCH);
  right = *in;
  in->code = SCHED_EVICT;
  said = sched_replay(b.s);
  assert_non_null(strstr(said, "reads what it moves, made as %the call"));
  *in = right;
  assert_null(sched_replay(b.s));
  arena_free(&b.a);
}

// One of two ranks with shares of the batch, `zero` shared.
static void build_rank(built *b, int64_t micro, int zero, const char *skip) {
  arena_init(&b->a);
  diags d;
  diags_init(&d, &b->a);
  sema_program *p = sema_open(&b->a, &d, "examples/tiny.dsm");
  static const char sets[] = "layers=4,hidden=32,heads=2,vocab=64,seq=16,batch=4,drop=0";
  setting_list list =
      parse_settings(&b->a, &d, source_from_text(&b->a, "--set", sets, strlen(sets)));
  ir_module *m = sema_lower(p, sema_job(p, p->asked, list), SEMA_TRAIN);
  assert_non_null(m);
  static const ir_mesh mesh = {.naxes = 1, .axis = {{.name = "data", .size = 2}}};
  pass_options o = pass_defaults();
  o.batch = 4;
  o.micro_batch = micro;
  o.mesh = &mesh;
  o.zero = zero;
  o.zero_axes = zero ? 1 : 0;
  o.stage = IR_SCHEDULE;
  o.select = cg_select;
  o.select_ctx = cg_context_new(&b->a, m);
  assert_null(skip_add(&o.skip, skip));
  const char *why = pass_run(m, &o);
  if (why) fail_msg("%s", why);
  b->s = m->schedule;
}

// Exchanges beside kernels: in bodies, waited for in the same layer, in the last micro-batch only.
typedef struct beside {
  int all, body, within, last, ops, most;
} beside;

static beside count_beside(const sched *s) {
  beside n = {0};
  for (int t = 0; t < s->tasks.n; t++)
    for (int i = 0; i < s->tasks.at[t].instrs.n; i++) {
      const sched_instr *in = &s->tasks.at[t].instrs.at[i];
      if (!sched_beside(in)) continue;
      n.all++;
      n.body += s->tasks.at[t].loop != NULL;
      n.within += in->within;
      n.last += in->last;
      n.ops += sched_ops(in);
      if (sched_ops(in) > n.most) n.most = sched_ops(in);
    }
  return n;
}

// Without a wait the replay complains, whichever stream waits.
static void drop_waits(const sched *s) {
  int dropped = 0;
  for (int t = 0; t < s->tasks.n; t++) {
    sched_task *task = &((sched *)(uintptr_t)s)->tasks.at[t];
    for (int i = 0; i < task->instrs.n; i++) {
      sched_instr right = task->instrs.at[i], *in = &task->instrs.at[i];
      if (right.code != SCHED_WAIT) continue;
      in->stream = STREAM_COPIES;
      const char *said = sched_replay(s);
      if (said) assert_non_null(strstr(said, "no event orders that"));
      // One that has been waited for already, by a wait for a later one, is not missed.
      dropped += said != NULL;
      *in = right;
    }
  }
  assert_true(dropped >= 4);
  assert_null(sched_replay(s));
}

static void test_beside(void **state) {
  (void)state;
  for (int zero = 0; zero <= 3; zero++)
    for (int64_t micro = 1; micro <= 2; micro++) {
      built b, plain;
      build_rank(&b, micro, zero, NULL);
      beside n = count_beside(b.s);
      assert_true(n.all > 0 && (zero == 2 || n.body > 0));
      assert_int_equal(n.last > 0, micro == 1 && zero < 2);
      assert_int_equal(n.most > 1, zero == 0);   // buckets
      if (zero == 3) assert_true(n.within > 4);  // the weights of a layer
      drop_waits(b.s);
      build_rank(&plain, micro, zero, "overlap");
      assert_int_equal(count_beside(plain.s).all, 0);
      assert_int_equal(plain.s->events, 0);
      arena_free(&plain.a);
      build_rank(&plain, micro, zero, "buckets");
      assert_int_equal(count_beside(plain.s).most, 1);
      assert_true(count_beside(plain.s).ops >= n.ops);
      arena_free(&plain.a);
      arena_free(&b.a);
    }
}

// The clocks themselves: chains over a third stream, reads beside reads, bytes of one span.
static void test_races(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  races *r = races_new(&a, 3, 2);
  races_step(r, 0);
  assert_int_equal(races_access(r, 0, 0, 0, 100, true), -1);
  races_step(r, 1);
  assert_int_equal(races_access(r, 1, 1, 0, 100, true), -1);  // another home
  assert_int_equal(races_access(r, 1, 0, 100, 101, true), -1);
  assert_int_equal(races_access(r, 1, 0, 99, 100, false), 0);  // read behind a write
  races_record(r, 0, 0);
  races_wait(r, 2, 0);
  races_step(r, 2);
  assert_int_equal(races_access(r, 2, 0, 40, 60, false), -1);
  races_record(r, 2, 1);
  races_wait(r, 1, 1);  // it knows of stream 0 through stream 2
  races_step(r, 1);
  assert_int_equal(races_access(r, 1, 0, 0, 99, false), -1);
  races_step(r, 0);
  assert_int_equal(races_access(r, 0, 0, 0, 10, false), -1);  // reads need no order
  assert_int_equal(races_access(r, 0, 0, 59, 70, true), 1);   // write behind reads of 1 and 2
  races_record(r, 1, 0);
  races_wait(r, 0, 0);
  races_step(r, 0);
  assert_int_equal(races_access(r, 0, 0, 0, 200, true), -1);
  races_step(r, 1);
  assert_int_equal(races_access(r, 1, 0, 199, 300, true), 0);  // write behind a write
  races_wait(r, 1, 1);                                         // of earlier: orders nothing new
  assert_int_equal(races_access(r, 1, 0, 0, 1, false), 0);
  arena_free(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_pack_plain),
      cmocka_unit_test(test_pack_glue),
      cmocka_unit_test(test_pack_many),
      cmocka_unit_test(test_replay_accepts),
      cmocka_unit_test(test_replay_meets_moves),
      cmocka_unit_test(test_replay_meets_one_byte),
      cmocka_unit_test(test_replay_meets_slots),
      cmocka_unit_test(test_frames_need_their_distance),
      cmocka_unit_test(test_mirrored),
      cmocka_unit_test(test_caches),
      cmocka_unit_test(test_choices),
      cmocka_unit_test(test_replay_meets_scratch),
      cmocka_unit_test(test_replay_meets_overwriting),
      cmocka_unit_test(test_streams),
      cmocka_unit_test(test_streams_say),
      cmocka_unit_test(test_beside),
      cmocka_unit_test(test_races),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
