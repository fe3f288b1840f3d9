// What moves bytes between ranks: a small table of functions that never wait.
//
// comm.c stands on it and does the waiting, so an engine needs no idea of timeouts, of threads or
// of sums. There are two: Open MPI through a plugin (mpi/plugin.c), and threads of one process
// (tests/unit/thread_engine.h). A *lane* is a set of messages that are waited for together; lanes
// go on side by side. Messages between two ranks with one tag arrive in the order they were sent.
//
//   e.receive(e.ctx, lane, 1, tag, in, n);
//   e.send(e.ctx, lane, 1, tag, out, n);
//   for (bool done = false; !done;) e.test(e.ctx, lane, &done);
//
// Functions return NULL, or what went wrong: a text that lives as long as the engine. One thread at
// a time calls them; comm.c has a lock for that. Plugins are compiled apart, so nothing here refers
// to anything outside this header.
#ifndef DSM_COMM_ENGINE_H
#define DSM_COMM_ENGINE_H

#include <stdbool.h>
#include <stddef.h>

#define COMM_ENGINE_VERSION 2

enum { COMM_ANY = -1 };  // receive: from whichever rank

typedef struct comm_engine {
  void *ctx;
  int rank, ranks;
  bool direct;  // ranks that can touch each other's memory may, instead of sending
  // Begin to send or receive n > 0 bytes, which stay untouched until their lane is done. A message
  // of another length than was expected is an error.
  const char *(*send)(void *ctx, int lane, int to, int tag, const void *at, size_t n);
  const char *(*receive)(void *ctx, int lane, int from, int tag, void *at, size_t n);
  // Moves things on; *done: all that the lane was given is over, and forgotten.
  const char *(*test)(void *ctx, int lane, bool *done);
  // Ends all ranks, or this one alone, where the engine can; else messages fail from now on.
  void (*abort)(void *ctx, int exit_code);
  void (*leave)(void *ctx, int exit_code);
  void (*close)(void *ctx);
} comm_engine;

// What a plugin exports as "dsm_comm_plugin": fills the table, with lanes 0 .. lanes-1.
typedef const char *comm_plugin(int version, int lanes, comm_engine *out);

#endif
