// The program: what the compiler emits and the runtime steps through. The only header that compiler
// and runtime share besides runtime/base/.
//
// An executable is one file:
//
//   [ runtime ELF, as built | padding to 4096 | code image | program | trailer (last 64 bytes) ]
//
// with code image and program once for each stage of a pipeline (prog_part).
//
// For the host the code image holds all kernels, already relocated against itself and position
// independent: the runtime maps it read + execute and calls kernels by offset. For a device it
// holds the modules that its driver loads (prog_module). The program is the blob described here: a
// header, tables of fixed-size records, a pool of strings. All integers are little-endian; offsets
// count from the start of the blob; every table is 8-aligned. A reader must check all of it
// (prog_open does): a flipped bit is an error message, never a crash.
//
// How a step runs: an *entry* is a list of *runs*; a run executes one *task* for a range of layers;
// a task is a straight line of *instructions*; an instruction launches a *kernel* on *operands*, or
// has a library do it where the kernel is a matrix product (`gemm`). An operand's address depends
// on the layer and micro-batch the task is executed for:
//
//   arena + base + slot(layer) * layer_stride + place(micro) * micro_stride,
//   slot(layer) = layer_mod ? (layer + layer_add) mod layer_mod : layer + layer_add
//   place(micro) = micro_mod ? micro mod micro_mod : micro
//
// so a task is written once, whatever the depth and the number of micro-batches.
//
// A stage of a *pipeline* goes forward with later micro-batches before it goes backward with
// earlier ones. What a micro-batch needs again in backward then has as many places as are on their
// way at once (micro_mod), and the runs of a loop each have a micro-batch of their own (micro_add):
//
//   loop micro 0..0   forward                      stage 2 of 4, 8 micro-batches, 1F1B
//   loop micro 0..6   forward micro+1, backward    two on their way: micro_mod 2
//   loop micro 7..7   backward
//
// A program for a device has *streams*: queues of the device that each execute what they are given
// in order, while the streams go on side by side. Kernels are on one, moves between host and device
// on another; *events* order them (RTOP_record, RTOP_wait). The host has a mirror of the arena: a
// value has the same offset in both homes, so a move names one place twice. Drivers write inputs
// and arguments to the mirror and read outputs there; the order fetches and evicts them.
// A program for the host has one stream, no events and no moves.
//
// A program for several *ranks* has a mesh (prog_axis): ranks are numbered row-major over its axes,
// and differ in their coordinates alone. What they exchange is a record (prog_exchange) that an
// instruction `exchange` names. Everything said of bytes and shapes here is of one rank.
//
// The arena is one allocation of `arena_bytes`: states first (states_bytes, the arguments
// included), then one region that the entries overlay. Caches lie in that region: `prefill` fills
// them, `decode` reads and extends them, and any other entry may write over them, so a driver that
// has called another one starts again with `prefill`.
#ifndef DSM_PROGRAM_H
#define DSM_PROGRAM_H

#include <stdint.h>

#define PROG_MAGIC "DSMPROG\n"
#define PROG_VERSION 6u
#define PROG_TRAILER_MAGIC "DSMEXE1\n"
#define PROG_MAX_RANK 8
#define PROG_MAX_AXES 8
#define PROG_MAX_CUTS 4
#define PROG_MAX_STACK ((uint64_t)4 << 20)

// What a kernel is told besides its buffers. `layer` is the number of the layer in the whole model,
// `sample0` the global number of the micro-batch's first sample (keys of random draws), `past` the
// number of positions already decoded, `coord` this rank's coordinates, ORDER prog_header.axes.
typedef struct dsm_call {
  int64_t layer, micro, sample0, step, past;
  uint64_t seed;
  int64_t coord[PROG_MAX_AXES];
} dsm_call;

// A kernel of the host computes cells lo .. hi-1 of its grid; cells are independent of each other.
// `buf[k]` is the address of operand k.
typedef void dsm_kernel(unsigned char *const *buf, const dsm_call *call, int64_t lo, int64_t hi);

typedef uint32_t prog_str;  // offset into the string pool; strings are NUL-terminated

enum {
  PROG_F32,
  PROG_F64,
  PROG_BF16,
  PROG_F16,
  PROG_F8E4M3,
  PROG_F8E5M2,
  PROG_I32,
  PROG_I64,
  PROG_I16,
  PROG_I8,
  PROG_U16,
  PROG_BOOL,
  PROG_DTYPES
};  // ORDER DTYPE (ir/dtypes.def)
enum { PROG_WEIGHT, PROG_OPTIMIZER, PROG_COPY, PROG_CACHE };            // ORDER STATE (ir/ir.h)
enum { PROG_ZEROS, PROG_ONES, PROG_NORMAL, PROG_UNIFORM, PROG_CONST };  // ORDER INIT (ir/ir.h)
enum { PROG_TRAIN, PROG_EVAL, PROG_PREFILL, PROG_DECODE };              // ORDER ENTRY (ir/ir.h)

// An axis of the mesh: neighbours on it are `stride` ranks apart, so a rank's coordinate is
// rank / stride % size. A set of axes, by bits, names *groups*: the ranks that differ in no other
// coordinate, in the order of their ranks.
typedef struct prog_axis {
  prog_str name;
  uint32_t pad;
  int64_t size, stride;
} prog_axis;

// How the ranks of a group share an array of elements: it is `outer` times (as many parts as the
// group has ranks) times `block` elements, and rank r has part r of each. `whole` is how many
// elements there are: fewer than parts hold when the last ones are padded (then outer is 1).
//
//   element i of a rank is element (i / block * parts + r) * block + i % block of the array,
//   padding when that is `whole` or more
typedef struct prog_cut {
  uint32_t axes, pad;
  int64_t block, whole;
} prog_cut;

// A state. `name` holds one '#' where the layer number stands when `layers` > 0; slice k is number
// first + k*step and lies at offset + k*layer_stride. `dims` leave the layer out.
// `dims` are those of what a rank has. Without cuts all ranks have the same, else `global` (rank
// `global_rank`) are those of the whole: the slice, row-major, is cut by cut[0], what that leaves
// by cut[1], and so on. Ranks that differ only on other axes have the same bytes. A PROG_COPY is
// the weight `of`, rounded to bf16: entries keep it so when they change the weight, and
// vm_make_copies makes it so when the weight came from elsewhere. Kernels may round what is smaller
// than `init_a` to zero, so that does too.
typedef struct prog_state {
  prog_str name, of;
  uint32_t cls, dtype, rank, init;
  int64_t dims[PROG_MAX_RANK];
  int64_t layers, first, step;          // layers 0: not stacked
  int64_t offset, layer_stride, bytes;  // bytes of one slice (or of the whole when not stacked)
  double init_a;
  uint32_t global_rank, ncuts;
  int64_t global[PROG_MAX_RANK];
  prog_cut cut[PROG_MAX_CUTS];
} prog_state;

// A named f32 scalar that drivers write before a call: lr, beta1, clip, ...
typedef struct prog_arg {
  prog_str name;
  uint32_t pad;
  int64_t offset;
  double value;  // the job's
} prog_arg;

// An input or output of an entry. For inputs of a step with n micro-batches the arena holds n
// pieces, `micro_stride` apart, each with dims[0] = samples of one micro-batch when `sampled`.
typedef struct prog_io {
  prog_str name;
  uint32_t dtype, rank, sampled;
  int64_t dims[PROG_MAX_RANK];
  int64_t offset, bytes, micro_stride;
} prog_io;

// A matrix product that a library does: for each place in the batch, in f32,
//
//   C[m, n] = (start) + sum over k of A[m, k] * B[k, n]
//
// Rows of C lie ld[2] elements apart, its columns side by side. So do those of A and B, or, where
// `turned` has the operand's bit, those of their transposes: A is then stored as [k, m]. All counts
// are elements of f32; matrix number (i, j, ...) of the batch begins at
// offset + i * stride[0] + j * stride[1] + ... from the operand's address.
enum { PROG_GEMM_AXES = 4 };
enum { PROG_OPENBLAS, PROG_LIBRARIES };  // ORDER cg_library (codegen/build.h)
enum {
  PROG_GEMM_SET,  // sums start at 0
  PROG_GEMM_SUM,  // at what C holds, except in micro-batch 0, where they start at 0
  PROG_GEMM_ADD,  // at operand 3, which has the bytes of C and may lie there too
  PROG_GEMM_STARTS
};
typedef struct prog_gemm {
  uint32_t library, turned, start, axes;  // axes: of the batch
  int64_t m, n, k;
  int64_t ld[3], offset[3];  // A, B, C
  int64_t size[PROG_GEMM_AXES], stride[3][PROG_GEMM_AXES];
} prog_gemm;

// An exchange among the ranks of each group over `axes`. All of them are one thing: each rank has a
// piece for each other one (and itself), and puts together what it gets, or adds it up. A piece is
// a box of size[0] * size[1] * size[2] runs of `run` elements side by side. The one for rank r of
// the group begins at element r * in_step of what is sent, its runs lie in_stride apart; the one
// from r goes to r * out_step with out_stride.
//
//   all_gather      in_step 0, out_step > 0: all get the same
//
//   reduce_scatter  in_step > 0, out_step 0: pieces are added, in the order of ranks
//
//   all_to_all      in_step > 0, out_step > 0
//
//   part            as all_to_all, but only what a rank has for itself: nothing is sent
//
//   all_reduce      the whole, `run` elements: pieces of ceil(run / ranks) are reduced and gathered
//
//   permute         `run` elements to the rank `step` further on each of `axes`, and from the rank
//                   as far behind
//
//   send, receive   `run` elements, to and from the rank `step` further on the one axis of `axes`
//
// Where elements are shared as they come, in pieces of `run` of which the last ones may be shorter
// or empty, `whole` is how many there are; else 0. Behind the elements of a piece that is written
// (reduce_scatter, part) are zeros then, which count nowhere.
// An instruction's operands: what is written, what is read (send: only this; receive: only the
// former), and `scratch` bytes for what is on its way. A *bucket* is an all_reduce of several
// values at once: written and read of the first, of the second, ...; `run` counts the elements of
// all.
enum {
  PROG_ALL_GATHER,
  PROG_REDUCE_SCATTER,
  PROG_ALL_REDUCE,
  PROG_ALL_TO_ALL,
  PROG_PERMUTE,
  PROG_PART,
  PROG_SEND,
  PROG_RECEIVE,
  PROG_EXCHANGES
};  // ORDER EXCHANGE (ir/place.h)
enum { PROG_SUM, PROG_MAX, PROG_REDUCTIONS };
typedef struct prog_exchange {
  prog_str name;  // of what is moved
  uint32_t kind, axes, dtype, reduce;
  uint32_t values;         // of an all_reduce: above 1, a bucket of so many
  uint32_t first_operand;  // of the instruction it belongs to
  uint32_t of;             // what it is a hop of, as the ledger counts it; its own kind, if nothing
  uint32_t mirror;         // 1: a piece is two runs, place p's of n are numbers p and 2n - 1 - p
  uint32_t pad;
  int64_t size[3], in_stride[3], out_stride[3], run, in_step, out_step;
  int64_t whole, step, scratch;
} prog_exchange;

// `gemm` 0: code of ours. Else record gemm - 1 of the products, its operands A, B, C (and where the
// sums start); `cells` is the number of its matrices. Code of ours lies at code_offset in a program
// for the host; in one for a device it is record `function` of the functions, which is given
// `numbers` of the numbers from first_number on.
typedef struct prog_kernel {
  prog_str name;
  uint32_t nbufs;
  uint32_t gemm, function;
  uint32_t first_number, numbers;
  int64_t code_offset;  // into the code image
  int64_t cells;
  double flops, bytes;  // of the whole grid, for profiles
} prog_kernel;

// A function of a device's modules: a launch has one block of `threads` threads for each cell of
// the kernel, and passes one struct of 8-byte members: the addresses of the kernel's buffers, that
// of the call (prog_step) in the device's memory, layer, micro-batch, the micro-batch's first
// sample counted from the call's, then the kernel's numbers (d_args of codegen/prelude.cuh).
typedef struct prog_function {
  prog_str symbol;
  uint32_t threads, shared_bytes;   // dynamic shared memory of a block
  uint32_t registers, spill_bytes;  // of a thread, as the compiler reports for the first target
} prog_function;

// What a call of an entry is told, at `step_offset` of the arena. The host writes it to the mirror,
// the call's order fetches it with the arguments.
typedef struct prog_step {
  int64_t sample0, step, past;
  uint64_t seed;
} prog_step;

// What the driver loads, a part of the code image: binaries of one architecture ("sm_90a") or PTX
// for any newer one ("compute_80"), NUL-terminated. For each target the modules hold all functions,
// module by module: functions first_function .. + functions - 1.
enum { PROG_CUBIN, PROG_PTX };
typedef struct prog_module {
  prog_str target;
  uint32_t kind, first_function, functions;
  int64_t offset, bytes;
} prog_module;

typedef struct prog_operand {
  int64_t base, layer_stride, layer_add, layer_mod, micro_stride, micro_mod;
  int64_t bytes;    // extent of what may be touched from the address on
  uint32_t writes;  // bit 0: read, bit 1: written
  uint32_t home;
} prog_operand;

// Where an operand's bytes are: in the arena where kernels run, or in the host's mirror of it.
enum { PROG_DEVICE_HOME, PROG_HOST_HOME, PROG_HOMES };  // ORDER HOME (ir/schedule.h)
// Which queue executes an instruction. All of a host's are on the first.
enum { PROG_COMPUTE, PROG_COPIES, PROG_COMMUNICATION, PROG_STREAMS };  // ORDER STREAM

// Flags of an instruction: it runs again in backward what forward ran before (pass recompute).
enum {
  PROG_RECOMPUTE = 1,
  PROG_LAST = 2,  // inside a loop over micro-batches: in the last one only
};

// Opcodes: runtime/rtops.def. `kernel` of an exchange is its record.
typedef struct prog_instr {
  uint32_t op, kernel, first_operand, operands;
  prog_str note;  // the value it computes and its `.dsm` line, for `schedule`
  uint32_t flags, stream;
  uint32_t event;  // of record and wait: below prog_header.events
} prog_instr;

typedef struct prog_task {
  prog_str name, phase;  // phase: of sched_task (ir/schedule.h)
  uint32_t first_instr, instrs;
  double flops, bytes;  // of one execution
} prog_task;

// kind PROG_RUN: executes `task` for layers first, first+dir, ... (count of them).
// kind PROG_LOOP: executes the next `task` (a count here) runs once per micro-batch.
enum { PROG_RUN, PROG_LOOP };
typedef struct prog_run {
  uint32_t kind, task;
  int64_t layer_first, layer_count, layer_dir;
  int64_t number_first, number_step;  // layer l is number_first + l*number_step in the whole model
  int64_t micro_first, micro_count;   // PROG_LOOP; a run outside a loop has micro 0
  int64_t micro_add;  // PROG_RUN in a loop: it is that of micro-batch `micro + micro_add`
} prog_run;

typedef struct prog_entry {
  prog_str name;
  uint32_t kind;
  uint32_t first_run, runs, first_input, inputs, first_output, outputs;
  int64_t batch, micro_batch;  // samples per call, per micro-batch, of a rank
  // A call of all ranks takes `batch` samples for each rank of a group over `batch_axes`, each rank
  // those of its place in the group.
  uint32_t batch_axes, pad;
  int64_t tokens;           // positions per sample along the decoding or sequence axis
  int64_t transient_bytes;  // of the overlaid region, the caches included where they are used
  double flops;             // model FLOPs of one call (no recompute), for MFU
} prog_entry;

// A resolved setting of the job by its full name ("train.steps", "gpt2.layers") as text.
typedef struct prog_setting {
  prog_str name, value;
} prog_setting;

typedef struct prog_table {
  uint64_t offset;
  uint32_t count, record_bytes;
} prog_table;

// What executes the kernels. PROG_CUDA: one NVIDIA GPU, through its driver.
enum { PROG_HOST, PROG_CUDA, PROG_MACHINES };

typedef struct prog_header {
  char magic[8];
  uint32_t version, header_bytes;
  uint64_t total_bytes;
  uint64_t checksum;  // XXH3-64 of everything after this field
  uint64_t arena_bytes, states_bytes, code_bytes;
  uint64_t stack_bytes;    // most that a kernel's tiles take of its thread's stack
  uint64_t source_digest;  // XXH3-64 of the .dsm text(s) and settings
  prog_str compiler, model, cpu,
      plan;  // version; model name; CPU features the code needs; plan text
  uint32_t machine;
  prog_str targets;  // of a device: "sm_80 sm_90a"
  uint32_t events;   // how many the order of an entry uses, at most
  uint32_t pad;
  uint64_t parameters;   // of the whole model; 0: of one rank's, those of its weights
  uint64_t step_offset;  // of a device: where a call's prog_step lies, among the arguments
  prog_table strings, states, args, ios, kernels, gemms, operands, instrs, tasks, runs, entries,
      settings, functions, numbers, modules;  // numbers: int64_t
  prog_table axes, exchanges;                 // no axes: one rank
} prog_header;

// A program and its code, by their places in the file.
typedef struct prog_part {
  uint64_t code_offset, code_bytes, code_checksum;  // code_offset is a multiple of 4096
  uint64_t program_offset, program_bytes;
} prog_part;

// The last 64 bytes of an executable. One program is all there is where `parts` is 0. Else there is
// one for each stage of a pipeline, `parts` records from parts_offset on, of which `first` is the
// first; a rank's is that of its coordinate on the axis `pipeline`, and axes are the same in all.
typedef struct prog_trailer {
  char magic[8];
  prog_part first;
  uint64_t parts_offset, parts;
} prog_trailer;

#endif
