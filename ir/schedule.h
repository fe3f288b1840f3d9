// SCHEDULE: the third form of a program. Tasks, orders, and where every value lives.
//
// A *task* is a straight line of instructions for one body and one phase: a stretch of ops at the
// top of a function, or the body of a repeat, which is executed once per layer. An *order* is a
// run-length list of (task, layers, micro-batches). One device so far: an entry has one order, in
// which the host gives each instruction to the stream it names. Codegen turns tasks into launches
// and writes the program (runtime/program.h); it decides nothing that changes bytes, order or bits.
//
//   entry train_step                              ; text (dsmc ir --form schedule)
//     run forward.0                               ; embedding
//     run forward.h       layers 0..3
//     run forward.1                               ; final norm, logits, loss
//     run backward.0
//     run backward.h      layers 3..0
//     ...
//   task forward.h      (per layer)
//     matmul  %c_attn : f32[...] at 131072  <- %ln_1 at 98304, %h.#.attn.c_attn.weight at 4096 +
//     layer*196608
//
// Streams and homes. A device executes what it is given in *streams*: queues that go on side by
// side, each in order. Inputs, outputs and the arguments of a call have home host; instructions
// `fetch` and `evict` move them, on a stream of their own, and `record` and `wait` order streams:
//
//   task train_step.fetch.0
//     record event 0                      ; on compute: all that earlier calls were given
//     wait   event 0                      ; on copies: they may still read what is overwritten now
//     fetch  the call and its arguments
//     fetch  %tokens
//     record event 1                      ; on copies
//     wait   event 1                      ; on compute
//
// On the host everything is at home already: its schedules have no moves, and a second stream only
// for what ranks exchange, which is begun when its operand is made and waited for where its result
// is read (pass `overlap`):
//
//     einsum     %dw <- ...
//     record     event 0                  ; on compute
//     wait       event 0                  ; on communication
//     all_reduce %dw_1, %db_1 <- %dw, %db ; on communication: a bucket of two
//     record     event 1                  ; on communication
//     ...
//     wait       event 1                  ; on compute
//     adamw      ... <- %dw_1
//
// Made by pass `order`, moved between homes by `homes`, put on streams by `overlap`, given kernels
// by `select` (which asks codegen), placed by `layout`.
#ifndef DSM_IR_SCHEDULE_H
#define DSM_IR_SCHEDULE_H

#include "ir/ir.h"

// Where a value is during an interval of its life. Instructions compute on what is at HOME_DEVICE
// (the host's own arena, in a program for the host); a move between homes is an instruction like
// any other. The host has a mirror of a device's arena: a value has one place, whatever its home.
typedef enum sched_home { HOME_DEVICE, HOME_HOST, HOME_DISK, HOME_ABSENT } sched_home;
// Bytes of what a call is told (prog_step of runtime/program.h).
enum { SCHED_CALL_BYTES = 32 };
// Which queue executes an instruction.
typedef enum sched_stream {
  STREAM_COMPUTE,
  STREAM_COPIES,         // between homes
  STREAM_COMMUNICATION,  // between ranks
  STREAM_COUNT
} sched_stream;  // ORDER STREAM (runtime/program.h)

// Address of a value's root: arena + base + slot(layer)*layer_stride + place(micro)*micro_stride
// with slot(layer) = layer_mod ? (layer + layer_add) mod layer_mod : layer + layer_add and
// place(micro) = micro_mod ? micro mod micro_mod : micro. Bytes.
typedef struct sched_place {
  bool known;
  int64_t base, layer_stride, layer_add, layer_mod, micro_stride, micro_mod, bytes;
} sched_place;

// What an instruction is: an op, or what a device needs besides.
typedef enum sched_code {
  SCHED_OP,
  SCHED_FETCH,   // `moved` from the host to the device
  SCHED_EVICT,   // from the device to the host
  SCHED_RECORD,  // `event` is the end of what the stream was given so far
  SCHED_WAIT     // the stream goes on when `event`, as recorded last, has come
} sched_code;

// An instruction of a task. `scratch` are buffers that codegen asks for; they live during this op
// only.
typedef struct sched_instr {
  sched_code code;
  sched_stream stream;
  int event;              // of SCHED_RECORD, SCHED_WAIT
  const ir_value *moved;  // a root; NULL: the call and its arguments
  int64_t micros;         // of a move: all of them are moved
  ir_op *op;              // of SCHED_OP, else NULL
  int nmore;              // of an exchange: further ones that are done with it, a bucket
  ir_op **more;
  bool last;     // in the last micro-batch only
  bool within;   // of an exchange on STREAM_COMMUNICATION in a body: waited for in the same layer,
  int until;     // before instruction `until` of the task; else before this position of the entry
  int position;  // in the entry's order; all ops of a repeat body share one
  int nscratch;
  int64_t *scratch_bytes, *scratch_base;
  void *launches;       // owned by codegen
  const char *library;  // that does it in place of kernels of ours: "openblas"; NULL: none
} sched_instr;

typedef struct sched_task {
  // phase: forward, backward, weights (their gradients, where backward is cut in two:
  // passes/cut.h), update, fetch, evict.
  const char *name, *phase;
  ir_op *loop;  // the repeat whose body this is, or NULL
  int segment;
  VEC(sched_instr) instrs;
  int64_t transient_base, transient_bytes;  // of a body: values that die within one execution
} sched_task;

typedef enum sched_run_kind { SCHED_RUN, SCHED_LOOP } sched_run_kind;

// SCHED_RUN: `task` for `layers` layers from `first` in direction `dir` (layers 1, first 0 outside
// repeats), of micro-batch `micro + micro_add`. SCHED_LOOP: the next `task` runs, for `micro` from
// micro_first on, `micros` of them.
typedef struct sched_run {
  sched_run_kind kind;
  int task;
  int64_t first, layers, dir;
  int64_t number_first, number_step;
  int64_t micros, micro_first, micro_add;
} sched_run;

typedef struct sched_entry {
  ir_func *func;
  VEC(sched_run) runs;
  int positions;
  int64_t batch, micro_batch;
  // Of a stage of a pipeline: the most micro-batches that have begun and are not over. One: they
  // come one after the other.
  int64_t in_flight;
  int64_t transient_bytes;  // beyond states_bytes, the caches it uses included
  int64_t live_bytes;       // of them, the most alive at one position: no packing takes less
  double flops;             // model FLOPs of one call
  double recompute_flops;   // of ops that run again (ir_op.recompute), beyond these
} sched_entry;

// A storage object of an entry as the packer sees it; kept for reports. Items with the same `glue`
// above 0 are parts of one whole: item i lies at (a base they share) + `at`, and parts may overlap
// each other, because whoever glued them knows that their bytes are not used at the same time.
typedef struct sched_item {
  int entry;
  const char *name;
  int64_t bytes, base;
  int first, last;        // positions, inclusive
  int64_t slots, slot;    // above 1: a place for each micro-batch on its way, so far apart
  const ir_value *value;  // at the top of the entry's function, that lies in it; NULL: scratch, or
                          // what dies within one execution of a body
  int glue;               // 0: an item by itself
  int64_t at;             // may be negative
} sched_item;

typedef struct sched {
  ir_module *m;
  bool device;  // for a device other than the host
  int events;   // that the order of an entry uses, at most
  VEC(sched_task) tasks;
  VEC(sched_entry) entries;
  VEC(const char *) args;  // names of the argument block's scalars
  VEC(sched_item) items;
  sched_place *place;        // by value id; of roots
  sched_place *state_place;  // by number in m->states
  sched_place *arg_place;    // by number in args
  int nplaces;
  // Of a device: the call and the arguments behind it.
  int64_t call_base, call_bytes;
  // The arena: persistent states and the argument block, states_bytes; then what entries overlay.
  // An entry that uses caches (STATE_CACHE) has them first, at places all such entries agree on,
  // and its transients behind; the others have transients there: a cache does not survive them.
  int64_t states_bytes, cache_bytes, arena_bytes;
} sched;

// The most micro-batches that have begun turn `first` and have not ended turn `last`
// (passes/cut.h).
int64_t sched_on_their_way(const sched *s, const sched_entry *e, int first, int last);
// The ops of an instruction: sched_ops of them, 0 when it is none.
static inline int sched_ops(const sched_instr *in) { return in->op ? 1 + in->nmore : 0; }
static inline ir_op *sched_op(const sched_instr *in, int k) { return k ? in->more[k - 1] : in->op; }
// True for an exchange that goes on beside kernels.
static inline bool sched_beside(const sched_instr *in) {
  return in->op && in->stream == STREAM_COMMUNICATION;
}
// True for the first run of its task in the entry's order; a pipeline has several. False for a
// loop.
bool sched_first_run(const sched_entry *e, int run);
// Executes the places (passes/replay.c): NULL, or a message naming the value whose bytes were
// written over before they were read, and by what; or that no chain of events orders two streams
// which touch the same bytes.
const char *sched_replay(const sched *s);
const char *sched_print(const sched *s, arena *a);
// The bytes that a fetch or an eviction moves; they have the same place in both homes.
void sched_moved(const sched *s, const sched_instr *in, int64_t *base, int64_t *bytes);
// The place of the root of `v`.
const sched_place *sched_place_of(const sched *s, const ir_value *v);

// Offsets for `n` items with inclusive lifetimes; returns the height, the highest byte used. Items
// are placed in some order, each (with all it is glued to) at the lowest offset free during its
// life; a few orders are tried. `at` of glued items and `align`, a power of two, must agree:
// offsets are multiples of `align` wherever `at` is. Deterministic; time grows with n^2.
//
//   sched_item it[] = {{.bytes = 4, .first = 0, .last = 1, .glue = 1, .at = 0},
//                      {.bytes = 4, .first = 1, .last = 2, .glue = 1, .at = 2},
//                      {.bytes = 2, .first = 0, .last = 0}};
//   sched_pack(scratch, it, 3, 1);   // 6: the two parts at 0 and 2, the third item at 4
int64_t sched_pack(arena *scratch, sched_item *item, int n, int64_t align);
// The most bytes alive at one position, parts that overlap counted once: no packing is lower.
int64_t sched_load(arena *scratch, const sched_item *item, int n);

#endif
