// Executes the places of a schedule: the proof of a layout.
//
// Every entry is run over its order, all layers, on *bytes* instead of numbers; two micro-batches
// are enough, but of a stage of a pipeline, where several are on their way, all are run. A write
// stamps its byte range with a fresh *version*; a read checks that its range still holds, byte for
// byte, the version that the program's meaning says: that of the value in SSA form. Nothing here
// knows of items, lifetimes or frames, so a mistake there cannot hide here: an operand's address is
// computed as the runtime will, what it must hold as the interpreter would.
//
//   add %b@0 <- %a@0      reads 0..63: must hold the version of %a; stamps 0..63 with that of %b
//   mul %c@0 <- %a@0      reads 0..63: holds %b, not %a: "..., but those bytes hold %b"
//
// What a value holds is a list of *pieces*, each a range of one version. Most have one; a stacked
// result has one a layer; the slice of a state for one layer is a range of the state's version.
//   - A body's arguments hold what the initial value, or the last iteration's yield, held.
//   - An op that updates an operand in place makes a new version over the same bytes.
//   - `set` on the state's own bytes moves nothing; elsewhere it copies versions.
//   - At the end, outputs and all states are read: those not set must hold what they held.
//   - Of a device, inputs and arguments begin on the host, and outputs are read there at the end: a
//     move between homes copies versions. What streams do to the same bytes must be ordered by
//     events (races.h). Of earlier calls, which may have been of other entries, nothing is known
//     but that every stream may still read and write every byte of the device.
// An instruction reads and writes at once, in any order: what it writes may overlap what it reads
// only as ir_may_overwrite allows, and its results and scratch may not overlap each other.

#include <stdlib.h>
#include <string.h>

#include "ir/rule.h"
#include "ir/schedule.h"
#include "ir/view.h"
#include "passes/races.h"

typedef struct author {
  const char *name;  // of what wrote it
  int id;            // of the value; -1: scratch, a state, an argument or an input
  int64_t layer;     // -1: outside repeats
} author;

// Bytes lo .. hi-1 hold bytes lo - origin .. of a version.
typedef struct stamp {
  int64_t lo, hi, origin;
  int version;
} stamp;

typedef struct piece {
  int version;
  int64_t offset;
} piece;

typedef struct content {
  int64_t n, bytes;  // pieces, and how long each is; n 0: nothing was written yet
  piece one;         // n 1
  piece *many;
} content;

typedef struct replay {
  const sched *s;
  const sched_entry *e;
  arena *arena;
  VEC(stamp) memory[RACES_HOMES];  // sorted, disjoint
  sched_home home;                 // the one that is looked at
  races *races;                    // NULL: one stream, or nothing is executed now
  sched_stream stream;
  int call;             // version of the call and what lies behind it up to the arguments
  VEC(author) authors;  // of versions, by number
  content *held;        // by value id
  content *state_held;  // by number of the state
  bool *state_used;
  const sched_task *task;  // what is being executed
  const ir_op *op;
  int64_t layer, micro, last_micro;
  // Of a stage of a pipeline: values that a micro-batch has for itself, and by micro-batch what
  // they hold while another one is looked at.
  VEC(int) own;
  content **aside;
  const char *error;
} replay;

// ---- bytes --------------------------------------------------------------------------------------

static const char *name_of(replay *r, int version) {
  const author *v = &r->authors.at[version];
  const char *name = v->name && *v->name ? v->name : NULL;
  if (!name) name = arena_printf(r->s->m->arena, "%d", v->id);
  if (v->layer < 0) return arena_printf(r->s->m->arena, "%%%s", name);
  return arena_printf(r->s->m->arena, "%%%s of layer %lld", name, (long long)v->layer);
}

static const char *where(replay *r) {
  sb s = {.arena = r->s->m->arena};
  sb_puts(&s, r->e->func->name);
  if (r->task) sb_printf(&s, ", task %s", r->task->name);
  if (r->layer >= 0) sb_printf(&s, ", layer %lld", (long long)r->layer);
  if (r->micro) sb_printf(&s, ", micro-batch %lld", (long long)r->micro);
  if (r->op) sb_printf(&s, ": `%s`", ir_info(r->op->code)->name);
  return sb_str(&s);
}

static void fail(replay *r, const char *text) {
  if (!r->error) r->error = arena_printf(r->s->m->arena, "%s %s", where(r), text);
}

// The first stamp that ends behind `at`.
static int find(const replay *r, int64_t at) {
  int lo = 0, hi = r->memory[r->home].n;
  while (lo < hi) {
    int mid = (lo + hi) / 2;
    if (r->memory[r->home].at[mid].hi > at)
      hi = mid;
    else
      lo = mid + 1;
  }
  return lo;
}

static void order(replay *r, int64_t lo, int64_t hi, bool write) {
  static const char *const name[] = {"compute", "copies", "communication"};  // ORDER STREAM
  int other = r->races ? races_access(r->races, (int)r->stream, (int)r->home, lo, hi, write) : -1;
  if (other >= 0)
    fail(r, arena_printf(r->s->m->arena,
                         "%s bytes %lld..%lld of the %s on stream %s: no event orders that with "
                         "what stream %s does to them",
                         write ? "writes" : "reads", (long long)lo, (long long)hi - 1,
                         r->home == HOME_HOST ? "host" : "device", name[r->stream], name[other]));
}

// Bytes [lo, lo + bytes) now hold the piece; what they held is gone.
static void put(replay *r, int64_t lo, int64_t bytes, piece p) {
  int64_t hi = lo + bytes;
  if (bytes <= 0) return;
  if (lo < 0 || hi > r->s->arena_bytes) {
    fail(r, arena_printf(r->s->m->arena, "writes bytes %lld..%lld, outside the arena",
                         (long long)lo, (long long)hi - 1));
    return;
  }
  order(r, lo, hi, true);
  stamp left = {0}, right = {0};
  int first = find(r, lo), last = first, n = r->memory[r->home].n;
  while (last < n && r->memory[r->home].at[last].lo < hi) {
    const stamp *old = &r->memory[r->home].at[last++];
    if (old->lo < lo) left = *old, left.hi = lo;
    if (old->hi > hi) right = *old, right.lo = hi;
  }
  stamp fresh[3];
  int nfresh = 0;
  if (left.hi > left.lo) fresh[nfresh++] = left;
  fresh[nfresh++] = (stamp){lo, hi, lo - p.offset, p.version};
  if (right.hi > right.lo) fresh[nfresh++] = right;
  int more = nfresh - (last - first), rest = n - last;
  for (int i = 0; i < more; i++) vec_push(r->arena, &r->memory[r->home], (stamp){0});
  if (more < 0) r->memory[r->home].n += more;
  stamp *at = r->memory[r->home].at;
  memmove(&at[first + nfresh], &at[last], (size_t)rest * sizeof(stamp));
  memcpy(&at[first], fresh, (size_t)nfresh * sizeof(stamp));
}

static void check_piece(replay *r, const char *what, int64_t lo, int64_t bytes, piece p) {
  int64_t at = lo;
  order(r, lo, lo + bytes, false);
  for (int i = find(r, lo); at < lo + bytes; i++) {
    const stamp *s = i < r->memory[r->home].n ? &r->memory[r->home].at[i] : NULL;
    const char *holds = NULL;
    if (!s || s->lo > at)
      holds = "nothing yet";
    else if (s->version != p.version)
      holds = name_of(r, s->version);
    else if (s->origin != lo - p.offset)
      holds = arena_printf(r->s->m->arena, "another part of it");
    if (holds) {
      fail(r, arena_printf(r->s->m->arena, "reads %s, made as %s, at byte %lld: it holds %s", what,
                           name_of(r, p.version), (long long)at, holds));
      return;
    }
    at = s->hi;
  }
}

// ---- values -------------------------------------------------------------------------------------

static int new_version(replay *r, const char *name, int id, int64_t layer) {
  vec_push(r->arena, &r->authors, (author){name, id, layer});
  return r->authors.n - 1;
}

static content whole(int version, int64_t bytes) {
  return (content){.n = 1, .bytes = bytes, .one = {version, 0}};
}

static const piece *piece_of(const content *c, int64_t i) {
  return c->many ? &c->many[i] : &c->one;
}

static content slice_of(const content *c, int64_t layer, int64_t count, int64_t bytes) {
  content s = {.n = 1, .bytes = bytes};
  if (c->n == count && c->bytes == bytes) {
    s.one = *piece_of(c, layer);
  } else {
    IR_CHECK(c->n == 1);
    s.one = (piece){c->one.version, c->one.offset + layer * bytes};
  }
  return s;
}

static int64_t address(const replay *r, const sched_place *p, int64_t micro) {
  int64_t slot = (r->layer < 0 ? 0 : r->layer) + p->layer_add;
  if (p->layer_mod) slot %= p->layer_mod;
  if (p->micro_mod) micro %= p->micro_mod;
  return p->base + slot * p->layer_stride + micro * p->micro_stride;
}

static const char *value_name(const ir_value *v, arena *a) {
  return v->name ? arena_printf(a, "%%%s", v->name) : arena_printf(a, "%%%d", v->id);
}

static void check_content(replay *r, const char *what, int64_t at, const content *c) {
  if (!c->n) {
    fail(r, arena_printf(r->s->m->arena, "reads %s, which nothing made", what));
    return;
  }
  for (int64_t i = 0; i < c->n && !r->error; i++)
    check_piece(r, what, at + i * c->bytes, c->bytes, *piece_of(c, i));
}

// What `root` holds for this micro-batch: an input has a piece for each, at places of their own.
static content held(const replay *r, const ir_value *root) {
  content c = r->held[root->id];
  if (!root->def || root->def->code != IR_input || !c.n) return c;
  return (content){.n = 1, .bytes = c.bytes, .one = c.many[c.n > 1 ? r->micro : 0]};
}

static void read_value(replay *r, const ir_value *root) {
  const sched_place *p = &r->s->place[root->id];
  const char *what = value_name(root, r->arena);
  if (!p->known) {
    fail(r, arena_printf(r->s->m->arena, "reads %s, which has no place", what));
    return;
  }
  content c = held(r, root);
  check_content(r, what, address(r, p, r->micro), &c);
}

// ---- instructions -------------------------------------------------------------------------------

typedef struct range {
  int64_t lo, hi;
  const char *name;
} range;

static bool overlap(const range *a, const range *b) { return a->lo < b->hi && b->lo < a->hi; }

static range range_of(const replay *r, const ir_value *root) {
  int64_t at = address(r, &r->s->place[root->id], r->micro);
  return (range){at, at + ir_bytes(&root->type), root->name};
}

// Operands in storage: not constants, not the number of the layer.
static bool stored(const ir_value *root) {
  if (root->def) return root->def->code != IR_const;
  return root->pos > 0;
}

static void check_overlap(replay *r, const range *a, const char *what, const range *b) {
  if (overlap(a, b))
    fail(r, arena_printf(r->s->m->arena, "writes %%%s at %lld..%lld, over its own %s %%%s",
                         a->name ? a->name : "", (long long)a->lo, (long long)a->hi - 1, what,
                         b->name ? b->name : ""));
}

// What is written, result `out` of `by` (NULL: scratch), against what `op` reads.
static void check_operands(replay *r, const range *w, const ir_op *by, int out, const ir_op *op) {
  for (int k = 0; k < op->nin; k++) {
    const ir_value *root = ir_view_of(op->in[k]).root;
    if (!stored(root)) continue;
    range read = range_of(r, root);
    bool same = read.lo == w->lo && read.hi == w->hi;
    if (by == op && same && (k == ir_updated(op) || ir_may_overwrite(op, out, k))) continue;
    check_overlap(r, w, "operand", &read);
  }
}

static void check_written(replay *r, const sched_instr *in) {
  int n = 0, most = in->nscratch;
  for (int m = 0; m < sched_ops(in); m++) most += sched_op(in, m)->nout;
  range *w = arena_new(r->arena, range, most + 1);
  for (int j = 0; j < in->nscratch; j++)
    w[n++] = (range){in->scratch_base[j], in->scratch_base[j] + in->scratch_bytes[j], "scratch"};
  for (int m = 0; m < sched_ops(in); m++)
    for (int j = 0; j < sched_op(in, m)->nout; j++) w[n++] = range_of(r, sched_op(in, m)->out[j]);
  for (int j = 0; j < n; j++)
    for (int i = 0; i < j; i++) check_overlap(r, &w[j], "result", &w[i]);
  for (int m = 0; m < sched_ops(in); m++) {
    const ir_op *op = sched_op(in, m);
    for (int j = 0; j < in->nscratch; j++) check_operands(r, &w[j], NULL, 0, op);
    for (int by = 0, at = in->nscratch; by < sched_ops(in); by++)
      for (int j = 0; j < sched_op(in, by)->nout; j++)
        check_operands(r, &w[at++], sched_op(in, by), j, op);
  }
}

static void run_set(replay *r) {
  const ir_value *v = ir_view_of(r->op->in[0]).root;
  const char *name = ir_attr_str(r->op, "name", "");
  for (int i = 0; i < r->s->m->states.n; i++) {
    if (!str_eq(r->s->m->states.at[i]->name, name)) continue;
    const sched_place *to = &r->s->state_place[i];
    r->state_held[i] = r->held[v->id];
    const content *c = &r->state_held[i];
    if (address(r, to, 0) == address(r, &r->s->place[v->id], r->micro)) return;
    for (int64_t k = 0; k < c->n; k++) put(r, to->base + k * c->bytes, c->bytes, *piece_of(c, k));
    return;
  }
  IR_BUG("set: no state %s", name);
}

// Copies versions from one home to the other: of an input all micro-batches, of an output the
// value.
static void run_move(replay *r, const sched_instr *in) {
  sched_home from = in->code == SCHED_FETCH ? HOME_HOST : HOME_DEVICE;
  sched_home to = in->code == SCHED_FETCH ? HOME_DEVICE : HOME_HOST;
  content c = in->moved ? r->held[in->moved->id] : whole(r->call, r->s->call_bytes);
  int64_t base, bytes, stride = in->moved ? r->s->place[in->moved->id].micro_stride : 0;
  sched_moved(r->s, in, &base, &bytes);
  if (!c.n) fail(r, "moves a value that nothing made");
  for (int64_t k = 0; k < c.n && !r->error; k++) {
    int64_t at = base + k * (stride ? stride : c.bytes);
    if (at + c.bytes > base + bytes) fail(r, "moves only a part of a value");
    r->home = from;
    check_piece(r, "what it moves", at, c.bytes, *piece_of(&c, k));
    r->home = to;
    if (!r->error) put(r, at, c.bytes, *piece_of(&c, k));
  }
  r->home = HOME_DEVICE;
}

static void read_operands(replay *r, const ir_op *op) {
  r->op = op;
  for (int k = 0; k < op->nin && !r->error; k++) {
    const ir_value *root = ir_view_of(op->in[k]).root;
    if (stored(root)) read_value(r, root);
  }
  // The first micro-batch sets the sum, the others add to it.
  if (ir_accumulates(op) && r->micro) read_value(r, op->out[0]);
}

static void write_results(replay *r, const ir_op *op) {
  r->op = op;
  for (int j = 0; j < op->nout; j++) {
    const ir_value *v = op->out[j];
    int64_t bytes = ir_bytes(&v->type), at = address(r, &r->s->place[v->id], r->micro);
    int updated = ir_updated(op);
    if (updated >= 0 && at != range_of(r, ir_view_of(op->in[updated]).root).lo)
      fail(r, "updates an operand in place, but its result lies elsewhere");
    r->held[v->id] = whole(new_version(r, v->name, v->id, r->layer), bytes);
    put(r, at, bytes, r->held[v->id].one);
  }
}

// What is done in the last micro-batch only: a sum that will be reduced in place goes on.
static void left_out(replay *r, const ir_op *op) {
  int k = ir_updated(op);
  if (k >= 0) r->held[op->out[0]->id] = r->held[ir_view_of(op->in[k]).root->id];
}

static void run_instr(replay *r, const sched_instr *in) {
  r->op = NULL;
  r->stream = in->stream;
  if (r->races) races_step(r->races, (int)in->stream);
  switch (in->code) {
    case SCHED_RECORD:
    case SCHED_WAIT:
      if (r->races)
        (in->code == SCHED_WAIT ? races_wait : races_record)(r->races, (int)in->stream, in->event);
      return;
    case SCHED_FETCH:
    case SCHED_EVICT: run_move(r, in); return;
    case SCHED_OP: break;
  }
  // A launch is told where the call lies.
  if (r->s->device)
    check_piece(r, "the call", r->s->call_base, SCHED_CALL_BYTES, (piece){r->call, 0});
  if (in->last && r->micro != r->last_micro) {
    for (int n = 0; n < sched_ops(in); n++) left_out(r, sched_op(in, n));
    return;
  }
  for (int n = 0; n < sched_ops(in) && !r->error; n++) read_operands(r, sched_op(in, n));
  if (r->error) return;
  if (in->op->code == IR_set) {
    run_set(r);
    return;
  }
  check_written(r, in);
  for (int k = 0; k < in->nscratch; k++)
    put(r, in->scratch_base[k], in->scratch_bytes[k],
        (piece){new_version(r, "scratch", -1, r->layer), 0});
  for (int n = 0; n < sched_ops(in); n++) write_results(r, sched_op(in, n));
}

static void run_repeat(replay *r, const sched_run *run) {
  const ir_op *op = r->task->loop;
  const ir_region *body = op->region[0];
  int carried = (int)ir_attr_int(op, "carried", 0), stacked = (int)ir_attr_int(op, "stacked", 0);
  int64_t count = ir_attr_int(op, "count", 1);
  content *now = arena_new(r->arena, content, carried + 1);
  for (int k = 0; k < carried; k++) now[k] = r->held[ir_view_of(op->in[k]).root->id];
  content *stack = arena_new(r->arena, content, op->nout + 1);
  for (int j = carried; j < op->nout; j++)
    stack[j] = (content){.n = count,
                         .bytes = ir_bytes(&body->yield.at[j]->type),
                         .many = arena_new(r->arena, piece, count)};
  r->layer = run->first;
  for (int64_t i = 0; i < run->layers && !r->error; i++, r->layer += run->dir) {
    for (int k = 0; k < op->nin; k++) {
      const ir_value *arg = body->args.at[1 + k];
      content outer = held(r, ir_view_of(op->in[k]).root);
      if (k < carried)
        r->held[arg->id] = now[k];
      else if (k < carried + stacked)
        r->held[arg->id] = slice_of(&outer, r->layer, count, ir_bytes(&arg->type));
      else
        r->held[arg->id] = outer;
    }
    // This layer's sum over micro-batches goes on from where the last one left it.
    for (int j = carried; j < op->nout && r->micro; j++) {
      const ir_value *y = ir_storage_of(body->yield.at[j]);
      if (y->def && ir_accumulates(y->def))
        r->held[y->id] = slice_of(&r->held[op->out[j]->id], r->layer, count, ir_bytes(&y->type));
    }
    for (int k = 0; k < r->task->instrs.n && !r->error; k++) run_instr(r, &r->task->instrs.at[k]);
    for (int k = 0; k < carried; k++) now[k] = r->held[body->yield.at[k]->id];
    for (int j = carried; j < op->nout; j++)
      stack[j].many[r->layer] = *piece_of(&r->held[body->yield.at[j]->id], 0);
  }
  if (r->error) return;
  r->layer = -1;
  for (int k = 0; k < op->nout; k++) r->held[op->out[k]->id] = k < carried ? now[k] : stack[k];
}

static void run_task(replay *r, const sched_run *run) {
  r->task = &r->s->tasks.at[run->task];
  if (r->task->loop) {
    run_repeat(r, run);
  } else {
    for (int i = 0; i < r->task->instrs.n && !r->error; i++) run_instr(r, &r->task->instrs.at[i]);
  }
  if (r->error) return;
  r->op = NULL;
  r->task = NULL;
}

// ---- entries ------------------------------------------------------------------------------------

// What lies in the arena before a call: the states the entry may rely on, arguments, inputs.
static void begin(replay *r) {
  const sched *s = r->s;
  const ir_region *body = r->e->func->body;
  int64_t micros = r->e->batch / r->e->micro_batch;
  r->call = new_version(r, "the call", -1, -1);
  map number = {.arena = r->arena};  // of each state by its name, + 1
  for (int i = 0; i < s->m->states.n; i++)
    map_set(&number, s->m->states.at[i]->name, (void *)(intptr_t)(i + 1));
  for (int i = 0; i < body->ops.n; i++) {
    const ir_op *op = body->ops.at[i];
    if (op->code != IR_state && op->code != IR_set) continue;
    intptr_t k = (intptr_t)map_get(&number, ir_attr_str(op, "name", ""));
    if (k) r->state_used[k - 1] = true;
  }
  for (int i = 0; i < s->m->states.n; i++) {
    const ir_state *st = s->m->states.at[i];
    if (st->cls != STATE_CACHE) r->state_used[i] = true;  // it persists
    if (!r->state_used[i]) continue;
    r->state_held[i] = whole(new_version(r, st->name, -1, -1), ir_bytes(&st->type));
    put(r, s->state_place[i].base, s->state_place[i].bytes, r->state_held[i].one);
  }
  for (int i = 0; i < body->ops.n && !r->error; i++) {
    const ir_op *op = body->ops.at[i];
    const ir_value *v = op->nout ? op->out[0] : NULL;
    if (op->code == IR_state) {
      intptr_t k = (intptr_t)map_get(&number, ir_attr_str(op, "name", ""));
      if (k) r->held[v->id] = r->state_held[k - 1];
    } else if (op->code == IR_arg) {
      int64_t at = address(r, &s->place[v->id], 0), bytes = ir_bytes(&v->type);
      piece p = {new_version(r, v->name, v->id, -1), 0};
      if (s->device) p = (piece){r->call, at - s->call_base};  // they move with the call
      r->held[v->id] = (content){.n = 1, .bytes = bytes, .one = p};
      if (!s->device) put(r, at, bytes, p);
    } else if (op->code == IR_input) {
      const sched_place *p = &s->place[v->id];
      int64_t n = p->micro_stride ? micros : 1;
      content c = {.n = n, .bytes = ir_bytes(&v->type), .many = arena_new(r->arena, piece, n)};
      if (s->device) r->home = HOME_HOST;
      for (int64_t k = 0; k < n; k++) {
        c.many[k] = (piece){new_version(r, v->name, v->id, -1), 0};
        put(r, address(r, p, k), c.bytes, c.many[k]);
      }
      r->held[v->id] = c;
      r->home = HOME_DEVICE;
    }
  }
  if (!s->device) {  // every call begins when all streams are done
    if (s->events) r->races = races_new(r->arena, STREAM_COUNT, s->events);
    return;
  }
  r->home = HOME_HOST;
  put(r, s->call_base, s->call_bytes, (piece){r->call, 0});
  r->home = HOME_DEVICE;
  r->races = races_new(r->arena, STREAM_COUNT, s->events);
  bool used[STREAM_COUNT] = {false};
  for (int t = 0; t < s->tasks.n; t++)
    for (int k = 0; k < s->tasks.at[t].instrs.n; k++)
      used[s->tasks.at[t].instrs.at[k].stream] = true;
  for (int k = 0; k < STREAM_COUNT; k++) {
    if (!used[k]) continue;
    races_step(r->races, k);
    races_access(r->races, k, HOME_DEVICE, 0, s->arena_bytes, true);
    races_access(r->races, k, HOME_DEVICE, 0, s->arena_bytes, false);
  }
}

// What must lie there after it: outputs, states, the inputs of all micro-batches.
static void end(replay *r) {
  const sched *s = r->s;
  r->races = NULL;  // the host has waited for all streams
  const ir_region *body = r->e->func->body;
  for (int i = 0; i < body->ops.n && !r->error; i++) {
    const ir_op *op = r->op = body->ops.at[i];
    if (op->code == IR_output) {
      if (s->device) r->home = HOME_HOST;
      read_value(r, ir_view_of(op->in[0]).root);
      r->home = HOME_DEVICE;
    }
    if (op->code != IR_input) continue;
    const content *c = &r->held[op->out[0]->id];
    for (int64_t k = 0; k < c->n && !r->error; k++)
      check_piece(r, "an input", address(r, &s->place[op->out[0]->id], k), c->bytes, c->many[k]);
  }
  r->op = NULL;
  for (int i = 0; i < s->m->states.n && !r->error; i++)
    if (r->state_used[i])
      check_content(r, s->m->states.at[i]->name, s->state_place[i].base, &r->state_held[i]);
}

// ---- several micro-batches on their way ---------------------------------------------------------

// What the loop makes at the top, but for sums over it.
static void find_own(replay *r) {
  const ir_region *body = r->e->func->body;
  int64_t micros = r->e->batch / r->e->micro_batch;
  if (r->e->in_flight < 2) return;
  for (int i = 0; i < body->ops.n; i++) {
    const ir_op *op = body->ops.at[i];
    if (!(op->segment & 1)) continue;
    for (int k = 0; k < op->nout; k++) {
      ir_value *v = op->code == IR_repeat ? op->region[0]->yield.at[k] : op->out[k];
      const ir_op *by = v->def, *sum = ir_storage_of(v)->def;
      bool given = op->code == IR_input || op->code == IR_state || op->code == IR_arg;
      bool shared = (sum && ir_accumulates(sum)) || (by && ir_attr_int(by, "last", 0));
      if (!given && !shared) vec_push(r->arena, &r->own, op->out[k]->id);
    }
  }
  r->aside = arena_new(r->arena, content *, micros);
  for (int64_t m = 0; m < micros; m++) r->aside[m] = arena_new(r->arena, content, r->own.n + 1);
}

static void look_at(replay *r, int64_t micro) {
  for (int i = 0; i < r->own.n && micro != r->micro; i++) {
    content *now = &r->held[r->own.at[i]];
    r->aside[r->micro][i] = *now;
    *now = r->aside[micro][i];
  }
  r->micro = micro;
}

static const char *replay_entry(const sched *s, const sched_entry *e, arena *scratch) {
  replay r = {.s = s, .e = e, .arena = scratch, .layer = -1};
  r.held = arena_new(scratch, content, s->m->next_value);
  r.state_held = arena_new(scratch, content, s->m->states.n + 1);
  r.state_used = arena_new(scratch, bool, s->m->states.n + 1);
  begin(&r);
  find_own(&r);
  for (int i = 0; i < e->runs.n && !r.error; i++) {
    const sched_run *run = &e->runs.at[i];
    if (run->kind == SCHED_RUN) {
      run_task(&r, run);
      continue;
    }
    // Two are enough where they come one after the other: the rest is like the second.
    int64_t most = r.own.n || run->micros < 2 ? run->micros : 2;
    r.last_micro = r.own.n ? e->batch / e->micro_batch - 1 : most - 1;
    for (int64_t m = 0; m < most && !r.error; m++)
      for (int k = 1; k <= run->task && !r.error; k++) {
        look_at(&r, run->micro_first + m + run[k].micro_add);
        run_task(&r, run + k);
      }
    if (!r.error) look_at(&r, 0);
    i += run->task;
  }
  if (!r.error) end(&r);
  return r.error;
}

const char *sched_replay(const sched *s) {
  const char *error = NULL;
  for (int i = 0; i < s->entries.n && !error; i++) {
    arena scratch;
    arena_init(&scratch);
    scratch.oom = s->m->arena->oom;
    scratch.oom_ctx = s->m->arena->oom_ctx;
    error = replay_entry(s, &s->entries.at[i], &scratch);
    arena_free(&scratch);
  }
  return error;
}
