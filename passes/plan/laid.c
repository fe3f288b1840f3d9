#include "passes/plan/laid.h"

#include <stdlib.h>
#include <string.h>

#include "ir/view.h"
#include "passes/layout.h"

// ---- what a value is ----------------------------------------------------------------------------

typedef enum use { USE_OTHER, USE_SAVED, USE_GRADIENT } use;

// Phases, in the order of a step; of values: those they are made in and read in.
static const char *const phases[] = {"forward", "backward", "weights", "update"};
enum { FORWARD = 1, BACKWARD = 2, WEIGHTS = 4, UPDATE = 8, PHASES = 4 };

typedef struct uses {
  unsigned made, read;
} uses;

static unsigned bit_of(const char *phase) {
  for (int i = 0; i < PHASES; i++)
    if (str_eq(phase, phases[i])) return 1u << i;
  return 0;
}

static void mark_op(uses *mark, const ir_op *op, const char *phase) {
  for (int i = 0; i < op->nin; i++) mark[ir_storage_of(op->in[i])->id].read |= bit_of(phase);
  for (int i = 0; i < op->nout; i++) mark[op->out[i]->id].made |= bit_of(phase);
}

// By value id, of values at the top of the entry's function.
static uses *marks_of(arena *a, const sched *s, const sched_entry *e) {
  uses *mark = arena_new(a, uses, s->m->next_value);
  for (int r = 0; r < e->runs.n; r++) {
    if (!sched_first_run(e, r)) continue;
    const sched_task *t = &s->tasks.at[e->runs.at[r].task];
    if (t->loop) mark_op(mark, t->loop, t->phase);
    for (int i = 0; i < t->instrs.n && !t->loop; i++)
      if (t->instrs.at[i].op) mark_op(mark, t->instrs.at[i].op, t->phase);
  }
  return mark;
}

// What one phase makes and the next ones read is saved, but for gradients of weights: also sums
// over micro-batches that ranks reduce where they are made.
static use use_of(const uses *mark, const sched_item *it) {
  const uses u = it->value ? mark[it->value->id] : (uses){0};
  bool sum = it->value && it->value->def && lives_sums(it->value->def, it->value->pos);
  if (u.made & (BACKWARD | WEIGHTS) && (u.read & UPDATE || sum)) return USE_GRADIENT;
  bool saved = (u.made & FORWARD && u.read & (BACKWARD | WEIGHTS)) ||
               (u.made & BACKWARD && u.read & WEIGHTS);
  return saved ? USE_SAVED : USE_OTHER;
}

// ---- the fullest moment -------------------------------------------------------------------------

typedef struct bytes {
  int64_t from, to;
} bytes;

static int by_address(const void *pa, const void *pb) {
  const bytes *a = pa, *b = pb;
  return (a->from > b->from) - (a->from < b->from);
}

// Bytes that items of this use and above take at a position, shared ones once.
static int64_t in_use(const sched *s, const use *is, int entry, int position, use least,
                      bytes *room) {
  int n = 0;
  for (int i = 0; i < s->items.n; i++) {
    const sched_item *it = &s->items.at[i];
    if (it->entry == entry && it->first <= position && position <= it->last && is[i] >= least)
      room[n++] = (bytes){it->base, it->base + it->bytes};
  }
  qsort(room, (size_t)n, sizeof *room, by_address);
  int64_t sum = 0, end = 0;
  for (int i = 0; i < n; i++) {
    int64_t from = room[i].from > end ? room[i].from : end;
    if (room[i].to > from) sum += room[i].to - from, end = room[i].to;
  }
  return sum;
}

static const char *task_at(const sched *s, const sched_entry *e, int position) {
  for (int r = 0; r < e->runs.n; r++) {
    if (!sched_first_run(e, r)) continue;
    const sched_task *t = &s->tasks.at[e->runs.at[r].task];
    for (int i = 0; i < t->instrs.n; i++)
      if (t->instrs.at[i].position == position) return t->name;
  }
  return "";
}

static void read_states(const sched *s, laid *out) {
  const ir_module *m = s->m;
  arena scratch;
  arena_init(&scratch);
  map copied = {.arena = &scratch};  // weights of which products read a rounded copy
  for (int i = 0; i < m->states.n; i++)
    if (m->states.at[i]->cls == STATE_COPY) map_set(&copied, m->states.at[i]->of, out);
  for (int i = 0; i < m->states.n; i++) {
    const ir_state *w = m->states.at[i];
    int64_t n = ir_bytes(&w->type);
    bool behind = w->cls == STATE_WEIGHT && map_get(&copied, w->name);
    if (w->cls == STATE_COPY || (w->cls == STATE_WEIGHT && !behind))
      out->memory[PLAN_M_PARAMETERS] += n;
    else if (w->cls != STATE_CACHE)
      out->memory[PLAN_M_OPTIMIZER] += n;
  }
  arena_free(&scratch);
}

void laid_read(arena *a, const sched *s, laid *out) {
  *out = (laid){.peak = s->arena_bytes, .peak_at = ""};
  read_states(s, out);
  int largest = 0, train = -1;
  for (int i = 0; i < s->entries.n; i++) {
    if (s->entries.at[i].transient_bytes > s->entries.at[largest].transient_bytes) largest = i;
    if (s->entries.at[i].func->kind == ENTRY_TRAIN) train = i;
  }
  IR_CHECK(train >= 0);
  arena scratch;
  arena_init(&scratch);
  const sched_entry *e = &s->entries.at[train];
  const uses *mark = marks_of(&scratch, s, e);
  use *is = arena_new(&scratch, use, s->items.n + 1);
  bytes *room = arena_new(&scratch, bytes, s->items.n + 1);
  for (int i = 0; i < s->items.n; i++)
    is[i] = s->items.at[i].entry == train ? use_of(mark, &s->items.at[i]) : USE_OTHER;
  int at = 0;
  int64_t most = -1;
  for (int p = 0; p < e->positions; p++) {
    int64_t all = in_use(s, is, train, p, USE_OTHER, room);
    if (all > most) most = all, at = p;
  }
  int64_t gradients = in_use(s, is, train, at, USE_GRADIENT, room);
  out->memory[PLAN_M_GRADIENTS] = gradients;
  out->memory[PLAN_M_ACTIVATIONS] = in_use(s, is, train, at, USE_SAVED, room) - gradients;
  out->memory[PLAN_M_WORKSPACE] = out->peak;
  for (int i = 0; i < PLAN_M_WORKSPACE; i++) out->memory[PLAN_M_WORKSPACE] -= out->memory[i];
  out->peak_at =
      arena_strdup(a, largest == train ? task_at(s, e, at) : s->entries.at[largest].func->name);
  arena_free(&scratch);
}

// ---- layouts of a search ------------------------------------------------------------------------

bool laid_of(laid_maker *m, const cl_cluster *c, const plan_choice *choice, laid *out) {
  if (!m || !m->make || c->devices != 1 || choice->also) return false;
  for (int i = 0; i < PLAN_CLASSES; i++)
    if (choice->home[i] != PLAN_DEVICE) return false;
  char name[64];
  snprintf(name, sizeof name, "%d %lld", (int)choice->recompute, (long long)choice->micro_batch);
  void *known = map_get(&m->made, name);
  if (!known) {
    laid *l = arena_new(m->a, laid, 1);
    known = m->make(m->ctx, cl_device_at(c, 0), choice, l) ? (void *)l : (void *)m;
    map_set(&m->made, arena_strdup(m->a, name), known);
  }
  if (known == m) return false;
  *out = *(laid *)known;
  return true;
}

// Layouts of the stages of a plan for ranks; NULL: not known.
static const laid *laid_stages(laid_maker *m, const cl_cluster *c, const plan_candidate *x) {
  if (!m || !m->make_ranks || c->devices == 1 || x->choice.also) return NULL;
  for (int i = 0; i < PLAN_CLASSES; i++)
    if (x->choice.home[i] != PLAN_DEVICE) return NULL;
  const char *name = plan_choice_flags(m->a, &x->choice);
  for (int i = 0; i < PLAN_AXES; i++)
    name = arena_printf(m->a, "%s %d", name, (int)x->choice.order[i]);
  void *known = map_get(&m->made, name);
  if (!known) {
    laid *l = arena_new(m->a, laid, x->nstages);
    known = m->make_ranks(m->ctx, c, x, l) ? (void *)l : (void *)m;
    map_set(&m->made, name, known);
  }
  return known == m ? NULL : known;
}

void laid_set_ranks(arena *a, laid_maker *m, const cl_cluster *c, plan_candidate *x) {
  const laid *l = laid_stages(m, c, x);
  if (!l) return;
  x->laid = true;
  for (int i = 0; i < x->nstages; i++) {
    plan_stage *q = &x->stage[i];
    memcpy(q->memory, l[i].memory, sizeof q->memory);
    q->peak = l[i].peak;
    q->peak_at = arena_strdup(a, l[i].peak_at);
    if (q->peak - q->capacity > x->over) x->over = q->peak - q->capacity;
    if (i && q->peak <= x->peak) continue;
    x->peak = q->peak;
    x->capacity = q->capacity;
    x->peak_at = q->peak_at;
    memcpy(x->memory, q->memory, sizeof x->memory);
  }
}

void laid_set(arena *a, laid_maker *m, const cl_cluster *c, plan_candidate *x) {
  laid l;
  // Arenas of ranks are seldom a tenth above the load.
  if (c->devices > 1 && x->peak > x->capacity - x->capacity / 4) laid_set_ranks(a, m, c, x);
  if (!laid_of(m, c, &x->choice, &l)) return;
  plan_stage *stage = &x->stage[0];
  memcpy(x->memory, l.memory, sizeof x->memory);
  memcpy(stage->memory, l.memory, sizeof stage->memory);
  x->laid = true;
  x->peak = stage->peak = l.peak;
  x->peak_at = stage->peak_at = arena_strdup(a, l.peak_at);
  if (l.peak - x->capacity > x->over) x->over = l.peak - x->capacity;
}
