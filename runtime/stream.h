// The host's second queue: what an order gives it goes on while kernels run.
//
// A program for the host may put instructions on the stream PROG_COMMUNICATION. They are carried
// out one after the other, in the order they were given; events order them with the kernels as on a
// GPU (RTOP_record, RTOP_wait). What is given must stay valid until the stream has done it:
// addresses lie in the arena, instructions in the program, the call is copied.
//
// Who carries them out is a choice of speed. A thread of its own goes on wherever a core is free
// for a moment. With a single core it could only interrupt kernels, and to switch to it and back
// costs more than that brings: there the giving thread does the work, on a second stack
// (base/fiber.h). It looks between two kernels, posts messages, adds up what has come, and leaves
// where it would wait, or where ranks that are ahead may do what is left of an exchange.
//
//   STATUS_DO(stream_open(p, comm, code, cores > 1, &s));  // NULL: no such instruction
//   stream_give(s, in, buf, &call);             // returns at once, unless 256 are waiting
//   stream_look(s);                             // between kernels
//   stream_wait(s, event);                      // until `event`, recorded last, has come
//   STATUS_DO(stream_finish(s));                // all is done; the first failure since
//   stream_close(s);
//
// One thread gives, looks and waits. Waiting sleeps.
#ifndef DSM_STREAM_H
#define DSM_STREAM_H

#include "runtime/comm.h"

typedef struct stream stream;

// `thread`: it has one.
status *stream_open(const prog *p, comm *c, const unsigned char *code, bool thread,
                    stream **out) STATUS_MUST_USE;
// Does first what is left of what was given.
void stream_close(stream *s);
// An exchange, launch, zero, copy or record. (A wait for an event of the giving thread has come
// when it could be given.)
void stream_give(stream *s, const prog_instr *in, unsigned char *const *buf, const dsm_call *call);
// Without a thread: goes on with what was given as far as messages have come.
void stream_look(stream *s);
void stream_wait(stream *s, uint32_t event);
// A failed stream does nothing more until its failure was fetched here.
status *stream_finish(stream *s) STATUS_MUST_USE;

#endif
