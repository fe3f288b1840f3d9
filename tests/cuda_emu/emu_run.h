// Inside the emulation: what emu.c (fibers, turns, collectives) and emu_memory.c (checks of
// accesses) share. emu_api.h is what others see, emu.h what kernels see.
//
// Time is a clock that moves on at every barrier. A block begins at `block_clock`; its last barrier
// was at `interval`; each warp has a clock of its own, never behind `interval`, that d_warp_barrier
// moves on. Two accesses of one block are unordered when both are later than `interval` and their
// threads are of different warps, or when they are of one warp at the same clock of that warp.
#ifndef DSM_TESTS_CUDA_EMU_RUN_H
#define DSM_TESTS_CUDA_EMU_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/cuda_emu/emu_api.h"

enum { EMU_LANES = 32, EMU_MAX_WARPS = EMU_MAX_THREADS / EMU_LANES };

// Of a byte: who wrote it last and when, who has read it since. Clock 0: nobody.
typedef struct emu_shadow {
  uint32_t written, read;
  uint16_t writer;  // thread; EMU_FLIGHT: a copy is under way to it
  uint16_t reader;  // thread, EMU_LANES_OF + warp or EMU_WARPS; EMU_EARLIER: also other blocks
} emu_shadow;
enum { EMU_FLIGHT = 0x8000, EMU_EARLIER = 0x8000, EMU_LANES_OF = 0x4000, EMU_WARPS = 0x7fff };

// Buffers that overlap share a piece of memory and its shadow.
typedef struct emu_piece {
  unsigned char *at, *end;
  emu_shadow *shadow;
} emu_piece;

typedef struct emu_view {  // a buffer
  uint64_t first;          // the address the kernel sees
  unsigned char *at, *written;
  emu_shadow *shadow;
  int64_t bytes;
  unsigned use;
} emu_view;

typedef struct emu_flight {  // 16 bytes on their way
  int at;
  uint32_t group;
} emu_flight;

typedef struct emu_thread {
  void *sp;
  uint32_t group;  // copies issued now are of this one
  emu_flight *flight;
  int flights, flight_room;
  int waits, line;  // an emu_wait and where
  bool ended;
} emu_thread;

typedef enum emu_wait {
  EMU_RUNS,
  EMU_BARRIER,
  EMU_WARP_BARRIER,
  EMU_SHUFFLE,
  EMU_ANY,
  EMU_MATRICES,
  EMU_MATRICES_TURNED,
  EMU_MMA_BF16,
  EMU_MMA_F16
} emu_wait;

// What a lane brings to what its warp does together, and what it takes away.
typedef struct emu_lane {
  uint64_t value, result;
  int mask;
  int at;
  uint32_t a[4], b[2];
  float *c;
  uint32_t r[4];
} emu_lane;

typedef struct emu_warp {
  int kind, line, arrived;
  int first;  // who came first
  uint32_t clock;
  emu_lane lane[EMU_LANES];
} emu_warp;

typedef struct emu_run {
  const emu_launch_info *launch;
  void *args;  // as the kernel sees them
  // memory
  emu_view view[EMU_MAX_BUFFERS];
  emu_piece piece[EMU_MAX_BUFFERS];
  int npieces;
  unsigned char *shared;  // these two are kept from launch to launch
  emu_shadow *shared_shadow;
  // time
  uint32_t clock, interval, block_clock;
  int64_t *block_order;
  // threads
  emu_thread thread[EMU_MAX_THREADS];
  emu_warp warp[EMU_MAX_WARPS];
  int ready[EMU_MAX_THREADS], first_ready, nready;  // a ring: who may go on
  int nended, at_barrier, barrier_line, barrier_first;
  uint64_t dice;
  unsigned char *stacks;
  void *caller_sp;
  const void *caller_bottom;  // ASan's
  size_t caller_bytes;
  // the first error
  bool failed;
  char *error;
  size_t error_room;
} emu_run;

extern emu_run emu_it;  // the launch of this process

struct emu_here {  // emu.h
  int thread;
  long long block;
};
extern struct emu_here emu_now;

// Ends the launch with an error of `thread`.
_Noreturn void emu_fail(int thread, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// ---- emu_memory.c -------------------------------------------------------------------------------

enum { EMU_MAX_SHARED = 227 << 10 };

// Views of the launch's buffers. NULL or what is wrong with them.
const char *emu_memory_open(void);
void emu_memory_close(void);
// 16 bytes that `thread` reads for its warp.
const unsigned char *emu_row(int thread, int at, int line);

// What kernels call (emu.h).
const void *emu_global_read(const void *p, int bytes, int line);
void *emu_global_write(void *p, int bytes, int line);
const void *emu_shared_read(int at, int bytes, int line);
void *emu_shared_write(int at, int bytes, int line);
void emu_copy16(int at, const void *p, int line);
void emu_copies_end(void);
void emu_copies_wait(int groups);

// ---- emu_warp.c: what a warp does together ------------------------------------------------------

// All lanes have come: computes what each takes away.
void emu_together(emu_warp *w, int first_thread);

uint16_t emu_half_bits(float v);
float emu_half_real(uint16_t v);

#endif
