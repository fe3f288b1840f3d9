#include "runtime/base/fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

// AddressSanitizer has to be told of every switch.
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifdef SANITIZED
#include <sanitizer/common_interface_defs.h>
#define SWITCH_BEGINS(saved, bottom, size) __sanitizer_start_switch_fiber(saved, bottom, size)
#define SWITCH_ENDS(saved, bottom, size) __sanitizer_finish_switch_fiber(saved, bottom, size)
#else
#define SWITCH_BEGINS(saved, bottom, size) ((void)(saved), (void)(bottom), (void)(size))
#define SWITCH_ENDS(saved, bottom, size) ((void)(saved), (void)(bottom), (void)(size))
#endif

struct fiber {
  fiber_fn *fn;
  void *ctx;
  ucontext_t outside, inside;
  unsigned char *map, *stack;
  size_t map_bytes, stack_bytes;
  bool done;
  // For the sanitizer: the stack that entered.
  void *outside_saved, *inside_saved;
  const void *outside_bottom;
  size_t outside_size;
};

// makecontext passes on whole numbers only.
static void begin(unsigned high, unsigned low) {
  fiber *f = (fiber *)((uintptr_t)high << 16 << 16 | low);
  SWITCH_ENDS(NULL, &f->outside_bottom, &f->outside_size);
  f->fn(f->ctx);
  f->done = true;
  SWITCH_BEGINS(NULL, f->outside_bottom, f->outside_size);
  // `outside` follows, by uc_link.
}

static bool prepare(fiber *f) {
  uintptr_t at = (uintptr_t)f;
  if (getcontext(&f->inside)) return false;
  f->inside.uc_stack.ss_sp = f->stack;
  f->inside.uc_stack.ss_size = f->stack_bytes;
  f->inside.uc_link = &f->outside;
  makecontext(&f->inside, (void (*)(void))begin, 2, (unsigned)(at >> 16 >> 16), (unsigned)at);
  return true;
}

fiber *fiber_new(fiber_fn *fn, void *ctx, size_t stack_bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  size_t rounded = (stack_bytes + page - 1) / page * page;
  fiber *f = calloc(1, sizeof *f);
  if (!f) return NULL;
  *f = (fiber){.fn = fn, .ctx = ctx, .map_bytes = rounded + page, .stack_bytes = rounded};
  f->map = mmap(NULL, f->map_bytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (f->map == MAP_FAILED) {
    free(f);
    return NULL;
  }
  f->stack = f->map + page;
  if (mprotect(f->map, page, PROT_NONE) == 0 && prepare(f)) return f;
  fiber_free(f);
  return NULL;
}

void fiber_free(fiber *f) {
  if (!f) return;
  munmap(f->map, f->map_bytes);
  free(f);
}

void fiber_enter(fiber *f) {
  SWITCH_BEGINS(&f->outside_saved, f->stack, f->stack_bytes);
  swapcontext(&f->outside, &f->inside);
  SWITCH_ENDS(f->outside_saved, NULL, NULL);
}

void fiber_leave(fiber *f) {
  SWITCH_BEGINS(&f->inside_saved, f->outside_bottom, f->outside_size);
  swapcontext(&f->inside, &f->outside);
  SWITCH_ENDS(f->inside_saved, &f->outside_bottom, &f->outside_size);
}

bool fiber_done(const fiber *f) { return f->done; }
