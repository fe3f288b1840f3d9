// The runner: blocks one after another, the threads of a block as fibers, whose turn it is, and
// what they wait for.
//
// A fiber goes on until it must wait: at a barrier, or for the other lanes of its warp. Those that
// may go on stand in a ring. In order (or in reverse), the first of the ring is next, and who is
// woken is put behind the others in that order; in a seeded order any of the ring may be next.
#include "tests/cuda_emu/emu_run.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define PLAIN __attribute__((no_sanitize_address))
#else
#define PLAIN
#endif

enum { STACK = 256 << 10, GUARD = 4096 };

emu_run emu_it;
struct emu_here emu_now;

// ---- fibers -------------------------------------------------------------------------------------

// Keeps the registers that a call keeps on this stack, its top in *from, and takes up those of
// `to`.
void emu_switch(void **from, void *to);
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".hidden emu_switch\n"
    ".globl emu_switch\n"
    ".type emu_switch, @function\n"
    "emu_switch:\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n"
    ".size emu_switch, . - emu_switch\n");

static unsigned char *stack_of(int thread) { return emu_it.stacks + (size_t)thread * STACK; }

// ASan is told of every change of stacks. `dies`: nobody comes back to this one.
PLAIN static void change(void **from, void *to, const void *bottom, size_t bytes, bool dies) {
#ifdef WITH_ASAN
  void *fake = NULL;
  __sanitizer_start_switch_fiber(dies ? NULL : &fake, bottom, bytes);
  emu_switch(from, to);
  __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#else
  (void)bottom, (void)bytes, (void)dies;
  emu_switch(from, to);
#endif
}

static void to_thread(void **from, int thread, bool dies) {
  emu_now.thread = thread;
  change(from, emu_it.thread[thread].sp, stack_of(thread), STACK, dies);
}

static void to_caller(int thread) {
  change(&emu_it.thread[thread].sp, emu_it.caller_sp, emu_it.caller_bottom, emu_it.caller_bytes,
         true);
}

static void thread_ended(void);

PLAIN static void begin(void) {
#ifdef WITH_ASAN
  const void *bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(NULL, &bottom, &bytes);
  if (!emu_it.caller_bottom) emu_it.caller_bottom = bottom, emu_it.caller_bytes = bytes;
#endif
  emu_it.launch->kernel->body(emu_it.args);
  thread_ended();
  __builtin_unreachable();
}

// A stack from which emu_switch returns into `begin`.
static void *fresh_stack(int thread) {
  unsigned char *top = stack_of(thread) + STACK;
#ifdef WITH_ASAN
  __asan_unpoison_memory_region(top - 4096, 4096);  // what ended on it did not tidy up
#endif
  uintptr_t *sp = (uintptr_t *)(void *)top;
  *--sp = 0;  // `begin` has no caller; its frame is aligned as behind a call
  *--sp = (uintptr_t)begin;
  for (int i = 0; i < 6; i++) *--sp = 0;
  return sp;
}

static const char *make_stacks(void) {
  if (emu_it.stacks) return NULL;
  size_t bytes = (size_t)STACK * EMU_MAX_THREADS;
  void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (at == MAP_FAILED) return "no memory for stacks";
  for (size_t i = 0; i < EMU_MAX_THREADS; i++)
    if (mprotect((unsigned char *)at + i * STACK, GUARD, PROT_NONE)) return "no guards for stacks";
  emu_it.stacks = at;
  return NULL;
}

// Unloading the object gives back what launches have kept.
__attribute__((destructor)) static void unload(void) {
  emu_run *e = &emu_it;
  if (e->stacks) munmap(e->stacks, (size_t)STACK * EMU_MAX_THREADS);
  for (int i = 0; i < EMU_MAX_THREADS; i++) free(e->thread[i].flight);
  free(e->shared);
  free(e->shared_shadow);
}

// ---- errors -------------------------------------------------------------------------------------

void emu_fail(int thread, int line, const char *format, ...) {
  emu_run *e = &emu_it;
  e->failed = true;
  bool prelude = line >= EMU_PRELUDE;
  int n = snprintf(e->error, e->error_room,
                   "%s: block %lld, thread %d, line %d%s: ", e->launch->kernel->name, emu_now.block,
                   thread, prelude ? line - EMU_PRELUDE : line, prelude ? " of the prelude" : "");
  va_list args;
  va_start(args, format);
  if (n >= 0 && (size_t)n < e->error_room)
    vsnprintf(e->error + n, e->error_room - (size_t)n, format, args);
  va_end(args);
  to_caller(emu_now.thread);
  __builtin_unreachable();
}

static const char *const wait_name[] = {
    "nothing",  "barrier",  "warp barrier", "shuffle", "vote",
    "ldmatrix", "ldmatrix", "mma",          "mma"};  // ORDER emu_wait

// Nobody can go on: who waits for whom?
_Noreturn static void stuck(void) {
  const emu_run *e = &emu_it;
  int n = e->launch->threads, waiting = 0;
  while (e->thread[waiting].ended) waiting++;
  const emu_thread *t = &e->thread[waiting];
  bool barrier = t->waits == EMU_BARRIER;
  int first = barrier ? 0 : waiting / EMU_LANES * EMU_LANES, missing = first;
  while (missing < n && !e->thread[missing].ended && e->thread[missing].waits == t->waits)
    missing++;
  const char *what = wait_name[t->waits];
  if (missing == n || (!barrier && missing == first + EMU_LANES))
    emu_fail(waiting, t->line, "%s: the block has %d threads, no whole last warp", what, n);
  const emu_thread *m = &e->thread[missing];
  if (m->ended) emu_fail(waiting, t->line, "%s: thread %d has ended", what, missing);
  emu_fail(waiting, t->line, "%s: thread %d waits elsewhere, at the %s of line %d", what, missing,
           wait_name[m->waits], m->line);
}

// ---- turns --------------------------------------------------------------------------------------

static uint32_t roll(uint32_t below) {  // xorshift64*
  uint64_t x = emu_it.dice;
  x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
  emu_it.dice = x;
  return (uint32_t)(((x * 0x2545F4914F6CDD1Dull) >> 32) * below >> 32);
}

static void push(int thread) {
  emu_run *e = &emu_it;
  e->ready[(e->first_ready + e->nready++) % EMU_MAX_THREADS] = thread;
}

// Threads lo .. hi-1 may go on.
static void wake(int lo, int hi) {
  emu_run *e = &emu_it;
  for (int i = lo; i < hi; i++) e->thread[i].waits = EMU_RUNS;
  if (e->launch->order == EMU_REVERSE)
    for (int i = hi - 1; i >= lo; i--) push(i);
  else
    for (int i = lo; i < hi; i++) push(i);
}

static int next_thread(void) {
  emu_run *e = &emu_it;
  if (e->nready == 0) stuck();
  int *first = &e->ready[e->first_ready];
  if (e->launch->order == EMU_SEEDED) {
    int k = (e->first_ready + (int)roll((uint32_t)e->nready)) % EMU_MAX_THREADS;
    int other = e->ready[k];
    e->ready[k] = *first;
    *first = other;
  }
  int thread = *first;
  e->first_ready = (e->first_ready + 1) % EMU_MAX_THREADS;
  e->nready--;
  return thread;
}

static void give_way(void) {
  int me = emu_now.thread, next = next_thread();
  if (next != me) to_thread(&emu_it.thread[me].sp, next, false);
}

static void thread_ended(void) {
  emu_run *e = &emu_it;
  int me = emu_now.thread;
  e->thread[me].ended = true;
  if (++e->nended == e->launch->threads) to_caller(me);
  to_thread(&e->thread[me].sp, next_thread(), true);
}

// ---- waiting ------------------------------------------------------------------------------------

static void forget_order(void) {
  emu_run *e = &emu_it;
  e->interval = ++e->clock;
  for (int w = 0; w * EMU_LANES < e->launch->threads; w++) e->warp[w].clock = e->clock;
}

void emu_barrier(int line) {
  emu_run *e = &emu_it;
  int me = emu_now.thread;
  if (e->at_barrier == 0) e->barrier_line = line, e->barrier_first = me;
  if (line != e->barrier_line)
    emu_fail(me, line, "barrier: thread %d waits at another, of line %d", e->barrier_first,
             e->barrier_line);
  e->thread[me].waits = EMU_BARRIER;
  e->thread[me].line = line;
  if (++e->at_barrier == e->launch->threads) {
    e->at_barrier = 0;
    forget_order();
    wake(0, e->launch->threads);
  }
  give_way();
}

static emu_warp *warp_of(int thread) { return &emu_it.warp[thread / EMU_LANES]; }
static emu_lane *lane_of(int thread) { return &warp_of(thread)->lane[thread % EMU_LANES]; }

static void with_warp(int kind, int line) {
  int me = emu_now.thread, first = me / EMU_LANES * EMU_LANES;
  emu_warp *w = warp_of(me);
  if (w->arrived == 0) w->kind = kind, w->line = line, w->first = me;
  if (kind != w->kind || line != w->line)
    emu_fail(me, line, "%s: thread %d of the same warp waits elsewhere, at the %s of line %d",
             wait_name[kind], w->first, wait_name[w->kind], w->line);
  emu_it.thread[me].waits = kind;
  emu_it.thread[me].line = line;
  if (++w->arrived == EMU_LANES) {
    w->arrived = 0;
    emu_together(w, first);
    wake(first, first + EMU_LANES);
  }
  give_way();
}

// What kernels call (emu.h).
void emu_warp_barrier(int line);
uint64_t emu_shuffle(uint64_t v, int mask, int bytes, int line);
int emu_any(int v, int line);
void emu_matrices(uint32_t *r, int at, int turned, int line);
void emu_mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1, int half, int line);

void emu_warp_barrier(int line) { with_warp(EMU_WARP_BARRIER, line); }

uint64_t emu_shuffle(uint64_t v, int mask, int bytes, int line) {
  emu_lane *l = lane_of(emu_now.thread);
  if (mask < 0 || mask >= EMU_LANES)
    emu_fail(emu_now.thread, line, "shuffle of %d bytes with mask %d", bytes, mask);
  l->value = v;
  l->mask = mask;
  with_warp(EMU_SHUFFLE, line);
  return l->result;
}

int emu_any(int v, int line) {
  emu_lane *l = lane_of(emu_now.thread);
  l->value = v != 0;
  with_warp(EMU_ANY, line);
  return (int)l->result;
}

void emu_matrices(uint32_t *r, int at, int turned, int line) {
  emu_lane *l = lane_of(emu_now.thread);
  l->at = at;
  with_warp(turned ? EMU_MATRICES_TURNED : EMU_MATRICES, line);
  memcpy(r, l->r, sizeof l->r);
}

void emu_mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1, int half, int line) {
  emu_lane *l = lane_of(emu_now.thread);
  memcpy(l->a, a, sizeof l->a);
  l->b[0] = b0;
  l->b[1] = b1;
  l->c = c;
  with_warp(half ? EMU_MMA_F16 : EMU_MMA_BF16, line);
}

// ---- a launch -----------------------------------------------------------------------------------

static void run_block(int64_t block) {
  emu_run *e = &emu_it;
  int n = e->launch->threads;
  emu_now.block = block;
  e->nended = e->at_barrier = e->first_ready = e->nready = 0;
  forget_order();
  e->block_clock = e->clock;
  for (int w = 0; w * EMU_LANES < n; w++) e->warp[w].arrived = 0;
  for (int i = 0; i < n; i++) {
    emu_thread *t = &e->thread[i];
    t->sp = fresh_stack(i);
    t->ended = false;
    t->flights = 0;
    t->group = 0;
  }
  wake(0, n);
  to_thread(&e->caller_sp, next_thread(), false);
}

static void order_blocks(void) {
  emu_run *e = &emu_it;
  int64_t n = e->launch->blocks;
  for (int64_t i = 0; i < n; i++) {
    e->block_order[i] = e->launch->order == EMU_REVERSE ? n - 1 - i : i;
    if (e->launch->order != EMU_SEEDED) continue;
    int64_t k = (int64_t)roll((uint32_t)(i + 1));
    e->block_order[i] = e->block_order[k];
    e->block_order[k] = i;
  }
}

// NULL or what is wrong with what the launch was told.
static const char *wrong_with(const emu_launch_info *l, char *text, size_t n) {
  const emu_kernel *k = l->kernel;
  if (!k) return "no kernel";
  if (l->threads != k->threads || l->threads < 1 || l->threads > EMU_MAX_THREADS) {
    snprintf(text, n, "%d threads, the kernel is for %d", l->threads, k->threads);
    return text;
  }
  if (l->blocks < 0 || l->blocks > INT32_MAX) return "a wrong number of blocks";
  if (l->shared_bytes < 0 || l->shared_bytes > EMU_MAX_SHARED)
    return "more shared memory than a block can have";
  if (l->nbuffers != k->buffers || l->nbuffers > EMU_MAX_BUFFERS) {
    snprintf(text, n, "%d buffers, the kernel has %d", l->nbuffers, k->buffers);
    return text;
  }
  void *const *word = l->args;
  for (int i = 0; i < l->nbuffers; i++) {
    if (word[i] == l->buffer[i].at && l->buffer[i].bytes >= 0) continue;
    snprintf(text, n, "the address of buffer %d is %p, should be %p", i, word[i], l->buffer[i].at);
    return text;
  }
  return NULL;
}

static const char *prepare(const emu_launch_info *l, char *text, size_t n) {
  emu_run *e = &emu_it;
  const char *why = wrong_with(l, text, n);
  if (why) return why;
  e->launch = l;
  e->failed = false;
  e->caller_bottom = NULL;
  e->npieces = 0;
  e->dice = (l->seed + 1) * 0x9E3779B97F4A7C15ull | 1;
  e->args = malloc(l->kernel->args_bytes);
  e->block_order = malloc(sizeof *e->block_order * (size_t)(l->blocks + 1));
  if (!e->args || !e->block_order) return "no memory";
  memcpy(e->args, l->args, l->kernel->args_bytes);
  order_blocks();
  if ((why = make_stacks())) return why;
  if ((why = emu_memory_open())) return why;
  if (e->clock > UINT32_MAX / 2) {  // clocks of launches long ago must not come round again
    e->clock = 0;
    memset(e->shared_shadow, 0, sizeof *e->shared_shadow * EMU_MAX_SHARED);
  }
  return NULL;
}

__attribute__((visibility("default"))) int emu_launch(const emu_launch_info *l, char *error,
                                                      size_t n) {
  emu_run *e = &emu_it;
  char text[160];
  e->args = e->block_order = NULL;
  e->error = error;
  e->error_room = n;
  if (n) *error = 0;
  const char *why = prepare(l, text, sizeof text);
  if (why) {
    snprintf(error, n, "%s: launch: %s", l->kernel ? l->kernel->name : "?", why);
    e->failed = true;
  }
  for (int64_t i = 0; i < l->blocks && !e->failed; i++) run_block(e->block_order[i]);
#ifdef WITH_ASAN
  if (e->failed && e->stacks)  // frames that were left without returning
    __asan_unpoison_memory_region(e->stacks, (size_t)STACK * (size_t)l->threads);
#endif
  emu_memory_close();
  free(e->args);
  free(e->block_order);
  e->args = e->block_order = NULL;
  return e->failed;
}
