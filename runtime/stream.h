// The host's second queue: a thread that does what an order gives it while kernels run.
//
// A program for the host may put instructions on the stream PROG_COMMUNICATION. They are carried
// out one after the other, in the order they were given; events order them with the kernels as on a
// GPU (RTOP_record, RTOP_wait). What is given must stay valid until the stream has done it:
// addresses lie in the arena, instructions in the program, the call is copied.
//
//   STATUS_DO(stream_open(p, comm, code, &s));  // NULL when the program has no such instruction
//   stream_give(s, in, buf, &call);             // returns at once, unless 256 are waiting
//   stream_wait(s, event);                      // until `event`, recorded last, has come
//   STATUS_DO(stream_finish(s));                // all is done; the first failure since
//   stream_close(s);
//
// One thread gives. Waiting sleeps.
#ifndef DSM_STREAM_H
#define DSM_STREAM_H

#include "runtime/comm.h"

typedef struct stream stream;

status *stream_open(const prog *p, comm *c, const unsigned char *code,
                    stream **out) STATUS_MUST_USE;
void stream_close(stream *s);
// An exchange, launch, zero, copy or record. (A wait for an event of the giving thread has come
// when it could be given.)
void stream_give(stream *s, const prog_instr *in, unsigned char *const *buf, const dsm_call *call);
void stream_wait(stream *s, uint32_t event);
// A failed stream does nothing more until its failure was fetched here.
status *stream_finish(stream *s) STATUS_MUST_USE;

#endif
