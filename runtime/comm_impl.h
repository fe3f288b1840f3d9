// What the files behind comm.h share.
#ifndef DSM_COMM_IMPL_H
#define DSM_COMM_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "runtime/comm.h"

// Lanes of the engine. Sends of the program's records follow.
enum {
  COMM_CONTROL,
  COMM_IN,   // of the running exchange: what is received,
  COMM_OUT,  // and what is sent
  COMM_BEAT,
  COMM_ALARM,
  COMM_LISTEN,
  COMM_LANES
};

// Tags: what a message is for (2 bits), the set of axes (8 bits), then a count, so that messages of
// different exchanges are never taken for each other.
enum { TAG_CONTROL, TAG_EXCHANGE, TAG_SEND, TAG_WATCH };
static inline int comm_tag(int what, uint32_t axes, uint32_t count) {
  return what | (int)((axes & 0xff) << 2) | (int)((count & 0xffff) << 10);
}

typedef struct comm_count {
  int64_t bytes, times;
} comm_count;

// The buffer of a record that sends.
typedef struct comm_buffer {
  unsigned char *at;  // NULL: the record does not send
  int lane;
  bool busy;
} comm_buffer;

enum { COMM_FLIGHTS = 64 };
// An exchange as the flight recorder keeps it. Times are of clock_ns; finished 0: not yet.
typedef struct flight {
  uint32_t record;
  int64_t step, layer, micro, started, finished;
} flight;

typedef struct watch watch;

// What ranks of a group count together, in the memory of its first one, each on a line of its own:
// who came to an exchange, how many of its units were begun, and how many are done. They only rise.
typedef struct comm_counts {
  _Alignas(64) _Atomic uint64_t came;
  _Alignas(64) _Atomic uint64_t begun;
  _Alignas(64) _Atomic uint64_t done;
} comm_counts;

// At the end of what a rank shares.
typedef struct comm_board {
  comm_counts counts[1u << PROG_MAX_AXES];  // by set of axes
  int64_t note[];  // where the operands lie of the exchange that this rank has come to
} comm_board;

// What this rank can touch of another one's memory, or of its own.
typedef struct comm_memory {
  unsigned char *at;  // NULL: nothing
  size_t bytes;
  comm_board *board;
} comm_memory;

struct comm {
  const prog *prog;
  comm_engine engine;
  pthread_mutex_t lock;                     // around calls of the engine
  uint32_t controls;                        // messages so far
  uint32_t exchanges[1u << PROG_MAX_AXES];  // so far, by set of axes
  comm_count *count;                        // by record
  comm_buffer *buffers;                     // by record
  unsigned char *buffer_bytes;
  const unsigned char **from;  // room for a place of each rank,
  unsigned char **to;          // and for another
  comm_memory *memory;         // by rank; NULL: it is not shared
  // By set of axes, what this rank's group has counted when all that this rank knows of is done.
  struct {
    uint64_t came, units;
  } counted[1u << PROG_MAX_AXES];
  int busy;  // buffers whose message may still be on its way
  pthread_mutex_t flight_lock;
  flight flights[COMM_FLIGHTS];
  int64_t nflights;  // so far
  watch *watch;      // NULL: nobody watches
};

// The flight recorder: around each exchange.
void comm_take_off(comm *c, uint32_t record, const dsm_call *call);
void comm_land(comm *c);
// From now on ranks may end: all have come to the end of what they have to say.
void comm_begin_end(comm *c);
// Ends the watch before the engine is closed; what it listens with goes behind that.
void comm_unwatch(comm *c);
void comm_free_watch(comm *c);

// Whether all ranks of this one's group over a set of axes share their memory.
bool comm_reaches(const comm *c, uint32_t axes);
// Ends that.
void comm_unshare(comm *c);
// Says where operand k of this rank's exchange lies; and asks, for a rank that has come to it.
static inline void comm_tell(const comm *c, uint32_t k, const unsigned char *at) {
  const comm_memory *m = &c->memory[c->engine.rank];
  m->board->note[k] = at - m->at;
}
static inline unsigned char *comm_there(const comm *c, int rank, uint32_t k) {
  return c->memory[rank].at + c->memory[rank].board->note[k];
}

status *comm_post_send(comm *c, int lane, int to, int tag, const void *at,
                       int64_t n) STATUS_MUST_USE;
status *comm_post_receive(comm *c, int lane, int from, int tag, void *at,
                          int64_t n) STATUS_MUST_USE;
// Looks until it is there, `idle` (NULL: comm_rest) in between.
status *comm_wait_for(comm *c, const comm_await *what, const comm_idle *idle) STATUS_MUST_USE;
status *comm_wait(comm *c, int lane, const comm_idle *idle) STATUS_MUST_USE;
// Moves sends of records on.
status *comm_push_sends(comm *c) STATUS_MUST_USE;

#endif
