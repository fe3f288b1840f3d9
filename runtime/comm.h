// Ranks of a run, and what they say to each other: one interface, whichever engine moves the bytes.
//
// A run has `comm_ranks` processes, each with a number. An *engine* (Open MPI through a plugin, or
// threads of one process in tests) sends bytes between them; above it stand the exchanges of a
// program (prog_exchange) and small control messages of drivers: settings to agree on, counters,
// where a checkpoint is. Nothing here allocates while exchanges run: they use the scratch that the
// schedule planned, and sends the buffers that comm_open made.
//
//   comm *c = NULL;
//   STATUS_DO(comm_open(&img->prog, &c));        // NULL stays NULL: one rank, no engine
//   if (comm_rank(c) == 0) puts("said once");
//   STATUS_DO(comm_broadcast(c, &n, sizeof n, 0));
//   comm_close(c);
//
// Two threads may be here at once: one with control messages, one with exchanges. All ranks make
// the same control calls in the same order; ranks of a group the same exchanges over it.
//
// A rank that waits gives its core away: it yields, then sleeps; or it does something else
// (comm_idle). Exchanges of a program without an
// order of their own (sums) are done in the order of ranks, so bits depend on the mesh alone.
#ifndef DSM_COMM_H
#define DSM_COMM_H

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "runtime/base/status.h"
#include "runtime/comm_engine.h"
#include "runtime/exchange.h"
#include "runtime/prog.h"

typedef struct comm comm;

// ---- opening ------------------------------------------------------------------------------------

// Joins the ranks of this run. *out NULL: the program is for one rank, and no engine was looked
// for. Fails when the number of processes is not what the program was built for, when MPI is
// missing, or when a rank was started from another executable (*out is there then); all of them
// before anything else is done. Such an error says itself once: the status of the ranks that are
// not to speak has no text.
status *comm_open(const prog *p, comm **out) STATUS_MUST_USE;
// The same on an engine that is there; takes it over, also when it fails. `e` has COMM_LANES lanes
// and one more for each record that is a send: comm_lanes.
status *comm_open_engine(const prog *p, const comm_engine *e, comm **out) STATUS_MUST_USE;
int comm_lanes(const prog *p);
// Waits for all ranks to come here too. NULL is allowed.
void comm_close(comm *c);
// Ends all ranks with this exit code, after an error; does not wait for them.
void comm_abort(comm *c, int exit_code);

// All take NULL, which is a run of one rank.
int comm_rank(const comm *c);
int comm_ranks(const comm *c);

// ---- control messages ---------------------------------------------------------------------------

// Collective over all ranks, each calls with the same n. They block.
status *comm_barrier(comm *c) STATUS_MUST_USE;
// The n bytes at `at` of rank `from` become those of all.
status *comm_broadcast(comm *c, void *at, size_t n, int from) STATUS_MUST_USE;
// n bytes of every rank, in the order of ranks, to `all` (ranks * n bytes; NULL elsewhere) of rank
// `to`.
status *comm_collect(comm *c, const void *mine, size_t n, void *all, int to) STATUS_MUST_USE;
// *value becomes the greatest, or the sum, of all ranks' values.
status *comm_max(comm *c, int64_t *value) STATUS_MUST_USE;
status *comm_sum(comm *c, int64_t *value) STATUS_MUST_USE;

// ---- groups -------------------------------------------------------------------------------------

// How many ranks the program is for: the product of its axes.
int64_t comm_program_ranks(const prog *p);
// The coordinate of `rank` on an axis of the program's mesh.
int64_t comm_coordinate(const prog *p, int rank, uint32_t axis);
// Its place in its group over a set of axes (by bits), and how many the group has.
int64_t comm_place(const prog *p, int rank, uint32_t axes);
int64_t comm_group_size(const prog *p, uint32_t axes);
// The rank at a place of the group of `rank`.
int comm_at(const prog *p, int rank, uint32_t axes, int64_t place);

// ---- memory of other ranks ----------------------------------------------------------------------

// Says where the operands of this rank's exchanges lie: the `bytes` at `at` are all of the file
// `fd` (memfd_create), mapped shared; fd -1: this rank has no such file. Collective; no exchange
// may run. Ranks of one machine then touch each other's operands, instead of sending messages, and
// the results are the same to the bit; where that cannot be (several machines, containers that do
// not see each other, DSM_MESSAGES=1) nothing changes. Any operand lies in there from now on, until
// the comm is closed. When it returns fd may be closed. NULL is allowed.
status *comm_share(comm *c, int fd, unsigned char *at, size_t bytes) STATUS_MUST_USE;
// Of those bytes, how many at the end are for what ranks count together: 0 at first, and nobody
// else's. A multiple of 64.
size_t comm_shared_bytes(const prog *p);

// ---- exchanges ----------------------------------------------------------------------------------

// What an exchange waits for: that the messages of a lane are there, or, with a `count`, that ranks
// have counted up to `least` in memory they share.
typedef struct comm_await {
  int lane;
  const _Atomic uint64_t *count;
  uint64_t least;
} comm_await;

// What an exchange does when that is not there yet: `rest` is told what, and since when, by
// clock_ns, and may return at any time; a failure that it returns ends the exchange. `give_way` is
// called when others had better go on with the exchange: it returns when there is no more time.
typedef struct comm_idle {
  status *(*rest)(void *ctx, const comm_await *what, int64_t since);
  void (*give_way)(void *ctx);
  void *ctx;
} comm_idle;

// Does what a record says; `buf` holds the operands that exchange.h lists. `call` says for whom
// (the flight recorder tells of it); NULL: nobody. `idle` NULL: comm_rest. Returns when `out` is
// there and `in` may be written again.
status *comm_exchange(comm *c, const prog_exchange *x, unsigned char *const *buf,
                      const dsm_call *call, const comm_idle *idle) STATUS_MUST_USE;
// Gives the core away for a moment: yields, or sleeps when it has waited for long.
void comm_rest(int64_t since);
// Moves messages on. *done: what the lane waits for is there.
status *comm_test(comm *c, int lane, bool *done) STATUS_MUST_USE;
// The same, for either.
status *comm_look(comm *c, const comm_await *what, bool *there) STATUS_MUST_USE;
// Waits until all sends have left. At the end of a call of an entry.
status *comm_drain(comm *c) STATUS_MUST_USE;

// What this rank handed to the engine for record `index` so far, counted once for each peer; and
// how often the record ran.
int64_t comm_sent_bytes(const comm *c, uint32_t index);
int64_t comm_times(const comm *c, uint32_t index);
// Of all records.
int64_t comm_sent(const comm *c);

// ---- watching -----------------------------------------------------------------------------------

// Starts a thread that looks after the run until comm_close; all ranks do, after comm_open. Each
// sends a sign of life to the next rank; one whose sign has been missing for 0.8 * timeout_s is
// named on `err`, and all ranks end with exit code 70. So they do when an exchange takes longer
// than timeout_s: then every rank says where it is, and one line names the rank that is not where
// the others are; with `told` every rank also prints its last exchanges, a line each, oldest first.
// Once *stop says that this rank was asked to stop (mpirun asks all when one has
// died), no more than 4 s are waited for a sign of life.
status *comm_watch(comm *c, double timeout_s, bool told, FILE *err,
                   const volatile sig_atomic_t *stop) STATUS_MUST_USE;

// A rank that cannot go on while others may wait for it: its error appears once on the terminal,
// with its rank when it is not that of all, and all ranks end with its exit code. Returns only when
// the engine cannot end this process. An error without text waits to be ended by the one that has
// it.
void comm_fail(comm *c, const status *s);

#endif
