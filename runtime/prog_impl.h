// What the files that check a program share (prog.c, prog_device.c, prog_ranks.c).
#ifndef DSM_PROG_IMPL_H
#define DSM_PROG_IMPL_H

#include "runtime/prog.h"

#define PROG_MAX_BYTES ((int64_t)1 << 46)
#define PROG_MAX_OPERANDS 256u
#define BAD(...) return status_error("the program is damaged: " __VA_ARGS__)

// Machine, streams, events and homes; functions, their numbers and the modules that hold them.
// Everything that differs between programs for the host and for a device is checked here.
status *prog_check_machine(const prog *p, uint64_t code_bytes) STATUS_MUST_USE;
// The mesh, cuts of states, exchanges and their operands; after prog_check_machine, before entries
// are checked.
status *prog_check_ranks(const prog *p) STATUS_MUST_USE;

#endif
