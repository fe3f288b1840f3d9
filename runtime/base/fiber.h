// A second stack of one thread: a function that stops in its middle and later goes on.
//
// For work that waits often and briefly beside other work of the same thread: it leaves where it
// would wait, and is entered again when the thread has a moment. A switch is a system call
// (ucontext keeps the signal mask) and no visit of the scheduler, and nothing runs at the same
// time.
//
//   static void work(void *ctx) { while (!there(ctx)) fiber_leave(f); use(ctx); }
//
//   fiber *f = fiber_new(work, ctx, 1 << 20);
//   while (!fiber_done(f)) {
//     fiber_enter(f);  // until it leaves, or ends
//     something_else();
//   }
//   fiber_free(f);
#ifndef DSM_BASE_FIBER_H
#define DSM_BASE_FIBER_H

#include <stdbool.h>
#include <stddef.h>

typedef struct fiber fiber;
typedef void fiber_fn(void *ctx);

// A stack of this many bytes, of which the system gives those that are touched, with a page below
// it that nothing may touch. NULL when memory is out.
fiber *fiber_new(fiber_fn *fn, void *ctx, size_t stack_bytes);
// Where it left is forgotten, and so is what it held there.
void fiber_free(fiber *f);
// From outside, until fn returns.
void fiber_enter(fiber *f);
// From inside: fiber_enter returns.
void fiber_leave(fiber *f);
// fn has returned.
bool fiber_done(const fiber *f);

#endif
