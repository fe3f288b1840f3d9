// A CUDA driver without a GPU: what the runtime asks of it is recorded, checked and carried out.
//
// The shared object `libdsm_fake_cuda.so` exports the driver's functions that runtime/cuda.def
// names. An executable uses it when DSM_CUDA_DRIVER names its file. What it does is set by the
// environment:
//
//   DSM_FAKE_CUDA_DEVICE   compute capability, "9.0" when not set; "none": no device
//   DSM_FAKE_CUDA_MEMORY   bytes the device has; 16 GiB when not set
//   DSM_FAKE_CUDA_PROGRAM  the executable whose schedule the calls must follow
//   DSM_FAKE_CUDA_KERNELS  a shared object with its kernels (emu_api.h); without it launches are
//                          recorded and checked, not executed
//   DSM_FAKE_CUDA_SEED     in which order streams go on, as far as events leave it open, and blocks
//                          and threads of kernels; 0: those in the order of their numbers
//   DSM_FAKE_CUDA_LOG      a file for a line a call
//   DSM_FAKE_CUDA_RACES    "off": races are not told of, to see what they do
//   DSM_FAKE_CUDA_FAULT    a mistake to make, as if the runtime had made it, to see it caught:
//     no-wait:N            the N-th wait is not made
//     lost-wait:N          it is made and has no effect, as if the schedule had it not
//     address:N            the N-th launch has another address
//     argument:N           or another number at its end
//     stream:N             or is on another stream
//     twice:N              or is made twice
//     early-free:N         memory is freed in front of it
//     no-sync:N            the N-th wait for the whole device is not made
//     no-free              memory is not freed at all
//
// Work is carried out late: a stream is a queue, and nothing of it happens before the host waits
// for something; then streams take turns in seeded order, as far as events allow. So a missing
// event is a wrong result for some seed; and a race (passes/races.h) for all, whatever the order
// was.
//
// Kernels may read what was copied to the device or computed there. What only cuMemsetD8 made, as
// the runtime does with the whole arena when it opens, counts as never written: an order that needs
// those zeros would need them again in its next call. (Operands that are both read and written are
// not looked at so: sums over micro-batches are, and begin with nothing.)
//
// Device memory has addresses that nothing is mapped at: a host that looks through one is stopped
// by SIGSEGV.
//
// A mistake is printed and makes the call fail with code 999; the process then ends with exit code
// 99, whatever it thought of that itself.
#ifndef DSM_TESTS_CUDA_EMU_FAKE_H
#define DSM_TESTS_CUDA_EMU_FAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "passes/races.h"
#include "runtime/base/vec.h"
#include "runtime/load.h"
#include "tests/cuda_emu/emu_api.h"

enum {
  FAKE_OK = 0,
  FAKE_INVALID = 1,
  FAKE_MEMORY = 2,
  FAKE_NO_DEVICE = 100,
  FAKE_NO_BINARY = 209,
  FAKE_NOT_FOUND = 500,
  FAKE_WRONG = 999
};
// For races, the host and the default stream are streams too.
enum { FAKE_STREAMS = 3, FAKE_HOST = 3, FAKE_DEFAULT, FAKE_MAX_RANGES = EMU_MAX_BUFFERS };

typedef struct fake_block {  // of device memory; freed ones stay, to tell of their use
  uint64_t at;
  size_t bytes;
  unsigned char *store;
  unsigned char *written;  // a byte for each: whether a copy or a kernel made it
  bool freed;
} fake_block;

typedef struct fake_module {
  bool live;
} fake_module;

typedef struct fake_function {
  char *name;
  int shared_limit;
  const emu_kernel *kernel;  // NULL: recorded only
} fake_function;

typedef enum fake_kind {
  FAKE_LAUNCH,
  FAKE_SET,
  FAKE_COPY,
  FAKE_IN,
  FAKE_OUT,
  FAKE_RECORD,
  FAKE_WAIT
} fake_kind;

typedef struct fake_range {
  uint64_t at;  // of the device
  int64_t bytes;
  unsigned use;  // EMU_READ, EMU_WRITE
} fake_range;

// A thing that a stream has to do.
typedef struct fake_work {
  fake_kind kind;
  int stream;
  uint64_t to, from;  // of the device, or of the host
  size_t bytes;
  unsigned char value;
  unsigned char *copied;  // FAKE_IN from memory that is not pinned: the driver takes it at once
  int event;
  int64_t ticket;  // FAKE_RECORD: its number; FAKE_WAIT: the record it waits for, 0: none
  fake_function *function;
  unsigned grid, block, shared;
  unsigned char *args;
  fake_range range[FAKE_MAX_RANGES];
  int nranges;
} fake_work;

typedef struct fake_queue {
  fake_work **at;
  int n, cap, next;
  bool live;
} fake_queue;

typedef struct fake_event {
  bool live;
  int64_t recorded, done;  // tickets
} fake_event;

typedef struct fake_pin {
  unsigned char *at;
  size_t bytes;
} fake_pin;

typedef struct fake {
  bool open, retained;
  int major, minor;
  size_t memory, used;
  uint64_t seed, kernel_seed;
  FILE *log;
  const char *fault;
  int64_t fault_at, fault_seen;
  arena arena;
  VEC(fake_block) blocks;
  VEC(fake_module *) modules;
  VEC(fake_function *) functions;
  fake_queue streams[FAKE_STREAMS];
  int nstreams;
  VEC(fake_event) events;
  VEC(fake_pin) pins;
  int64_t tickets, launches, executed;
  races *races;
  bool races_off;
  void *kernels;
  int (*launch)(const emu_launch_info *, char *, size_t);
  struct fake_walk *walk;  // NULL: no schedule to follow
  int mistakes;
} fake;

// ---- fake_driver.c ----
// Tells of a mistake; returns FAKE_WRONG.
int fake_wrong(fake *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// The host's address of bytes of the device, or NULL after telling that they are not there. `what`
// names the access.
unsigned char *fake_store(fake *f, uint64_t at, int64_t bytes, const char *what);
// The marks of the same bytes (fake_block.written); the address must be one of the device.
unsigned char *fake_marks(fake *f, uint64_t at);

// ---- fake_queue.c ----
void fake_push(fake *f, fake_work *w);
// Carries out what is queued until this stream has nothing left.
int fake_drain(fake *f, int stream);

// ---- fake_check.c ----
// Opens the executable; NULL and a message when it cannot be read.
struct fake_walk *fake_walk_open(const char *path, char *error, size_t n);
void fake_walk_close(struct fake_walk *w);
// The call must be what the schedule has next; fills in the ranges that a launch may touch.
// `stream` and `event` are numbers in the order of creation.
int fake_walk_step(fake *f, fake_work *w);
// Nothing may be left in the middle of an entry.
int fake_walk_end(fake *f);

#endif
