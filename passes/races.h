// Do events order what streams do to the same bytes?
//
// A stream is a queue; two streams are ordered only by events. Each stream has a clock, which
// counts its instructions, and knows how far the others had come at the last event it waited for: a
// vector of clocks. Each byte remembers when each stream read and wrote it last. An access is
// ordered when the stream knows of every access that it must come behind: a read of all writes, a
// write of all reads and writes.
//
//   races *r = races_new(a, STREAM_COUNT, events);
//   races_step(r, STREAM_COMPUTE);
//   races_access(r, STREAM_COMPUTE, HOME_DEVICE, 0, 64, true);              // -1
//   races_record(r, STREAM_COMPUTE, 0);
//   races_step(r, STREAM_COPIES);
//   races_access(r, STREAM_COPIES, HOME_DEVICE, 0, 4, false);               // STREAM_COMPUTE
//   races_wait(r, STREAM_COPIES, 0);
//   races_access(r, STREAM_COPIES, HOME_DEVICE, 0, 4, false);               // -1
#ifndef DSM_PASSES_RACES_H
#define DSM_PASSES_RACES_H

#include <stdbool.h>

#include "runtime/base/arena.h"

typedef struct races races;

enum { RACES_HOMES = 2 };

races *races_new(arena *a, int streams, int events);
// The stream's next instruction begins: its accesses are later than those before.
void races_step(races *r, int stream);
// Bytes lo .. hi-1 of a home are read or written. The stream of an earlier access that no chain of
// events puts before this one; -1: all are.
int races_access(races *r, int stream, int home, int64_t lo, int64_t hi, bool write);
void races_record(races *r, int stream, int event);
// Waiting for an event that was never recorded orders nothing.
void races_wait(races *r, int stream, int event);

#endif
