// Ranks of a run, and what they say to each other: one interface, whichever engine moves the bytes.
//
// A run has `comm_ranks` processes, each with a number. An *engine* (Open MPI through a plugin, or
// threads of one process in tests) sends bytes between them; above it stand the exchanges of a
// program (prog_exchange) and small control messages of drivers: settings to agree on, counters,
// where a checkpoint is. Nothing here allocates while exchanges run: they use the scratch that the
// schedule planned.
//
//   comm *c = NULL;
//   STATUS_DO(comm_open(&img->prog, &c));        // NULL stays NULL: one rank, no engine
//   if (comm_rank(c) == 0) puts("said once");
//   STATUS_DO(comm_broadcast(c, &n, sizeof n, 0));
//   comm_close(c);
#ifndef DSM_COMM_H
#define DSM_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/prog.h"

typedef struct comm comm;

// All take NULL, which is a run of one rank.
int comm_rank(const comm *c);
int comm_ranks(const comm *c);

// Control messages: collective over all ranks, each calls with the same n. They block.
status *comm_barrier(comm *c) STATUS_MUST_USE;
// The n bytes at `at` of rank `from` become those of all.
status *comm_broadcast(comm *c, void *at, size_t n, int from) STATUS_MUST_USE;
// n bytes of every rank, in the order of ranks, to `all` (ranks * n bytes; NULL elsewhere) of rank
// `to`.
status *comm_collect(comm *c, const void *mine, size_t n, void *all, int to) STATUS_MUST_USE;

// The coordinate of `rank` on an axis of the program's mesh.
int64_t comm_coordinate(const prog *p, int rank, uint32_t axis);
// Its place in its group over a set of axes (by bits), and how many the group has.
int64_t comm_place(const prog *p, int rank, uint32_t axes);
int64_t comm_group_size(const prog *p, uint32_t axes);

#endif
