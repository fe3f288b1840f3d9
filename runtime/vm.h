// The schedule VM: one allocation, then steps.
//
// A program says what executes it: this host, by its threads, or a GPU (cuda.h). Drivers see the
// same either way: memory at vm_at, which holds states, arguments, inputs and outputs. On the host
// that is the arena. With a GPU it is the host's mirror of the arena: the order of an entry fetches
// arguments and inputs from there and evicts outputs to it, while states move only when a driver
// says so (vm_push_states, vm_pull_states).
//
// The arena is made once, zeroed; a call of an entry walks its runs, tasks and instructions and
// launches kernels over the pool. Nothing is allocated, checked or decided inside a call: prog_open
// has proved every address.
//
//   vm *m;
//   STATUS_DO(vm_open(&img->prog, img->code, pool, &m));
//   vm_touch(m);                                      // all pages present before the first step
//   STATUS_DO(vm_push_states(m));                     // made or loaded before
//   STATUS_DO(vm_call(m, entry, &(vm_step){.sample0 = 0, .step = 0, .seed = 1}));
//   float loss = vm_scalar(m, prog_output(p, entry, "loss"));
#ifndef DSM_VM_H
#define DSM_VM_H

#include "runtime/base/status.h"
#include "runtime/comm.h"
#include "runtime/pool.h"
#include "runtime/prog.h"

typedef struct vm vm;

// What a call is told; becomes the dsm_call of every kernel.
typedef struct vm_step {
  int64_t sample0;  // global number of the call's first sample
  int64_t step;     // optimizer steps done before this call
  int64_t past;     // positions already decoded
  uint64_t seed;
} vm_step;

// Reserves the arena, and opens the library that products of the program need, if any do
// (external.h), or the GPU (cuda.h). `code` is the mapped code image. Exit code 3 when the machine
// clearly has less memory than the program needs.
status *vm_open(const prog *p, const unsigned char *code, pool *threads, vm **out) STATUS_MUST_USE;
void vm_close(vm *m);
// Makes it the part of rank comm_rank(c): kernels are told its coordinates, exchanges go through
// `c`, which must outlive the vm. Before the first call of a program with exchanges; NULL: one
// rank. `beside`: on the host what goes on beside kernels has a thread of its own, else it is done
// between them (stream.h).
status *vm_join(vm *m, comm *c, bool beside) STATUS_MUST_USE;

// Touches every page of the arena, and of the stack that kernels use on each thread, so that the
// kernel has to find the memory now and not later. With a GPU there is nothing to do: its arena is
// there since vm_open, and of the mirror most is never used.
void vm_touch(vm *m);

// Makes every copy (PROG_COPY) the rounding of its weight, to nearest, ties to even, bit for bit
// what the program's kernels make of it. To be called when weights got values other than from an
// entry: init_states, ck_resume and ck_load_weights do. A copy that is cut among ranks in another
// way than its weight (a whole one, say, of a weight of which each rank updates a part) is left
// alone, for its elements are elsewhere: who gives weights values gives such copies theirs from the
// same source, by vm_round_copy.
void vm_make_copies(vm *m);
// n elements of a weight (f32) to those of its copy; neither side needs alignment.
void vm_round_copy(const prog_state *copy, const unsigned char *from, unsigned char *to, int64_t n);

unsigned char *vm_at(const vm *m, int64_t offset);
// The GPU's name; NULL: this host executes the program.
const char *vm_device(const vm *m);

// States (caches are none) from vm_at to where calls find them, and back. Nothing on the host.
status *vm_push_states(vm *m) STATUS_MUST_USE;
status *vm_pull_states(vm *m) STATUS_MUST_USE;
// Zeros bytes at vm_at and where calls find them.
status *vm_zero(vm *m, int64_t offset, int64_t bytes) STATUS_MUST_USE;

// Executes an entry, and waits until it is done. On one rank a program for the host cannot fail; a
// GPU can, and then stays failed; exchanges can, and the states are worth nothing then.
status *vm_call(vm *m, const prog_entry *e, const vm_step *s);
// Executes its runs from .. to-1, counted from its first one; neither may lie inside a loop. So a
// driver can look at what the first part computed before it lets the second one change the states.
status *vm_call_part(vm *m, const prog_entry *e, const vm_step *s, uint32_t from, uint32_t to);

// The first element of a float or integer output.
double vm_scalar(const vm *m, const prog_io *io);
// Writes an argument when the program has it; returns whether.
bool vm_set_arg(vm *m, const char *name, double value);

// ---- without computing --------------------------------------------------------------------------

// From now on kernels and products take `seconds` (by instruction of the program; must stay) and
// compute nothing, while exchanges go on as ever: what a step of another machine would take. Values
// are what the arena held. NULL: computes again. For the host.
void vm_replay(vm *m, const double *seconds);

// ---- watching ---------------------------------------------------------------------------------
//
// One observer may look on while a call runs: it is told of every task and instruction, on the
// thread that called, before and after. It must not change the arena. Nobody looking costs a
// comparison an instruction. With a GPU, instructions that are looked at run one after another, and
// addresses are those of the mirror.

typedef enum vm_moment {
  VM_CALL_BEGIN,
  VM_TASK_BEGIN,
  VM_INSTR_BEGIN,
  VM_INSTR_END,
  VM_TASK_END,
  VM_CALL_END
} vm_moment;

typedef struct vm_where {
  const prog_run *run;        // NULL at the begin and end of a call
  bool loop;                  // the run is inside a loop over micro-batches
  uint32_t task, instr;       // numbers in the program; instr only of an instruction
  const dsm_call *call;       // layer, micro-batch, first sample
  unsigned char *const *buf;  // addresses of the instruction's operands, at vm_at
} vm_where;

typedef struct vm_observer {
  void (*see)(void *ctx, vm_moment when, const vm_where *at);
  void *ctx;
} vm_observer;

// NULL: nobody. The observer must live until it is replaced.
void vm_observe(vm *m, const vm_observer *o);
// The same for one who reads what an instruction has written, when it has ended: with a GPU that is
// brought to the mirror then.
void vm_observe_writes(vm *m, const vm_observer *o);

// Bytes a new process could get now: MemAvailable, or less when a cgroup says so; 0 when unknown.
uint64_t vm_available_bytes(void);

#endif
