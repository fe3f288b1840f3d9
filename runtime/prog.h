// A checked program: typed views of the blob that program.h describes.
//
// prog_open reads every number of the blob once and refuses what could go wrong later: tables out
// of bounds, strings without end, operands that leave the arena for some layer or micro-batch of
// some run, kernels outside the code. After it succeeds nobody needs to check again: the VM steps
// blindly. Nothing is copied; the blob must outlive the prog.
//
//   prog p;
//   STATUS_DO(prog_open(blob, n, code_bytes, &p));
//   const prog_entry *e = prog_entry_of(&p, PROG_TRAIN);
#ifndef DSM_PROG_H
#define DSM_PROG_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/status.h"
#include "runtime/program.h"

typedef struct prog {
  const prog_header *header;
  const char *strings;
  const prog_state *states;
  const prog_arg *args;
  const prog_io *ios;
  const prog_kernel *kernels;
  const prog_gemm *gemms;
  const prog_operand *operands;
  const prog_instr *instrs;
  const prog_task *tasks;
  const prog_run *runs;
  const prog_entry *entries;
  const prog_setting *settings;
  const prog_function *functions;
  const int64_t *numbers;
  const prog_module *modules;
  const prog_axis *axes;
  const prog_exchange *exchanges;
  uint32_t nstrings, nstates, nargs, nios, nkernels, ngemms, noperands, ninstrs, ntasks, nruns,
      nentries, nsettings, nfunctions, nnumbers, nmodules, naxes, nexchanges;
  uint32_t max_operands;  // of any instruction
  uint64_t identity;  // the same on all ranks of a run: the checksum of the program, or of those
                      // of all stages
} prog;

// `blob` must be 8-aligned. `code_bytes` is the size of the code image that comes with it.
status *prog_open(const void *blob, size_t n, uint64_t code_bytes, prog *out) STATUS_MUST_USE;

// What prog_open cannot know without the code image: that texts in it end. For programs of a
// device.
status *prog_check_code(const prog *p, const unsigned char *code) STATUS_MUST_USE;

// The checksum the header should hold for this blob (n >= sizeof(prog_header)).
uint64_t prog_checksum(const void *blob, size_t n);

const char *prog_text(const prog *p, prog_str s);
// What an instruction launches or has a library do; NULL for those that only move bytes.
const prog_kernel *prog_kernel_of(const prog *p, const prog_instr *in);
// The first entry of a kind, or NULL.
const prog_entry *prog_entry_of(const prog *p, uint32_t kind);
// By name, or NULL.
const prog_arg *prog_arg_find(const prog *p, const char *name);
const prog_io *prog_input(const prog *p, const prog_entry *e, const char *name);
const prog_io *prog_output(const prog *p, const prog_entry *e, const char *name);
const char *prog_setting_text(const prog *p, const char *full_name);

// Whether a run of the entry (by its number there; a loop stands for its whole body) may write
// bytes low .. high-1 of the arena. May say yes too often: it looks at the hull of what a run's
// layers and micro-batches touch.
bool prog_run_writes(const prog *p, const prog_entry *e, uint32_t run, int64_t low, int64_t high);

// Whether it may write a state: one that persists.
bool prog_run_writes_states(const prog *p, const prog_entry *e, uint32_t run);

// Bytes of the struct that a launch of a device's kernel passes (prog_function says what is in it).
int64_t prog_argument_bytes(const prog_kernel *k);
// The architecture that a module's target names: "sm_90a" and "compute_90a" are 90, exact. False:
// it names none.
bool prog_target(const char *target, int *number, bool *exact);

int64_t prog_io_elements(const prog_io *io);
int64_t prog_state_elements(const prog_state *s);  // of one slice
int64_t prog_state_slices(const prog_state *s);    // 1 when not stacked
// Dimensions of the whole slice, of which a rank may have a part.
const int64_t *prog_state_dims(const prog_state *s, uint32_t *rank);
// The weight that a PROG_COPY or PROG_OPTIMIZER belongs to, or NULL.
const prog_state *prog_weight_of(const prog *p, const prog_state *s);
int64_t prog_parameters(const prog *p);  // elements of all weights, whole
int64_t prog_class_bytes(const prog *p, uint32_t cls);
// Stages of its pipeline (the axis `pipeline`), each of which has a program of its own; 1 without.
// And the stage that `rank` is of.
int64_t prog_stages(const prog *p);
int64_t prog_stage(const prog *p, int rank);
// Size of the vocabulary: setting "*.vocab" when there is one, else the last dimension of an
// output `logits`; 0 when the program has neither.
int64_t prog_vocab(const prog *p);
// Names for listings: of opcodes, of streams ("compute", "copies"), of machines ("host", "cuda").
const char *prog_opcode_name(uint32_t op);
const char *prog_stream_name(uint32_t stream);
const char *prog_machine_name(uint32_t machine);

enum {
#define RTOP(name, operands, doc) RTOP_##name,
#include "runtime/rtops.def"
  RTOP_COUNT
};

#endif
