// Running generated CUDA kernels on a CPU, every access checked.
//
// The text of the kernels (codegen/prelude.cuh, then functions made by codegen/cuda.h) is compiled
// as C++ with emu.h in front, and linked with the runner (emu.c: fibers and turns, emu_memory.c:
// checks, emu_warp.c: what a warp does together) into one shared object:
//
//   clang++-19 -std=c++17 -O1 -DDSM_EMULATED -include tests/cuda_emu/emu.h -ffp-contract=off
//              -shared -fPIC kernels.cc emu.o emu_memory.o emu_warp.o -o kernels.so
//
// (tests/cuda_emu/emulate.h does that.) Each such object stands alone:
//
//   void *so = dlopen("kernels.so", RTLD_NOW | RTLD_LOCAL);
//   int (*launch)(const emu_launch_info *, char *, size_t) = dlsym(so, "emu_launch");
//   emu_launch_info l = {.kernel = dlsym(so, symbol), .blocks = 3, .threads = 256,
//                        .shared_bytes = 8192, .args = blob, .buffer = buffer, .nbuffers = 2};
//   char error[512];
//   if (launch(&l, error, sizeof error)) puts(error);
//
// One launch at a time in a process; it runs on the thread that calls. Blocks run one after
// another, the threads of a block as fibers that change places at barriers and at what a warp does
// together.
//
// What is checked, beside what ASan and UBSan check when the object is built with them:
//   global memory   inside the buffer it was reached through, for an allowed use, aligned to the
//                   width; no byte read that nobody wrote (emu_buffer.written)
//   shared memory   inside shared_bytes, aligned; no byte read that the block did not write, none
//                   touched while a copy (d_copy16) is under way to it
//   races           two threads of a block touch a byte, one writing, with no barrier between them
//                   (d_warp_barrier is one for the lanes of a warp; shuffles, votes, ldmatrix and
//                   mma order no memory, as CUDA has it); two blocks touch a byte, one writing
//   threads         all of a block come to the same barrier, all 32 of a warp to the same shuffle,
//                   vote, ldmatrix or mma; the same: of that line of the text
//
// A kernel sees addresses that mean something to the emulation alone: one that reads global memory
// by other means than the prelude's functions ends by SIGSEGV. (`step` is a real address.)
#ifndef DSM_TESTS_CUDA_EMU_API_H
#define DSM_TESTS_CUDA_EMU_API_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#else
#include <stddef.h>
#endif

enum { EMU_MAX_BUFFERS = 64, EMU_MAX_THREADS = 1024 };

// Lines of messages are those the compiler counts. With `#line EMU_PRELUDE` before the prelude and
// `#line 1` before each function they say which of the two is meant.
enum { EMU_PRELUDE = 1000000 };

// What D_KERNEL defines under a kernel's symbol.
typedef struct emu_kernel {
  const char *name;
  int threads, buffers, numbers;  // as declared
  uint64_t args_bytes;            // of its d_args
  void (*body)(const void *args);
} emu_kernel;

enum { EMU_READ = 1, EMU_WRITE = 2 };  // bits of prog_operand.writes

// What the kernel may touch through the address in word i of its arguments. Buffers may overlap (a
// kernel that works in place).
typedef struct emu_buffer {
  void *at;       // must be what the arguments say
  int64_t bytes;  // from there on
  unsigned use;   // EMU_READ, EMU_WRITE
  // One byte for each of the buffer: 0 until a kernel writes it, reading such a one is an error.
  // The launch sets it to 1 for what it writes, so afterwards zeros show what nobody wrote. NULL:
  // all of it may be read.
  unsigned char *written;
} emu_buffer;

// In which order blocks, and the threads of a block between barriers, take their turns.
typedef enum emu_order { EMU_FORWARD, EMU_REVERSE, EMU_SEEDED } emu_order;

typedef struct emu_launch_info {
  const emu_kernel *kernel;
  int64_t blocks;
  int threads, shared_bytes;
  const void *args;  // a d_args: addresses of the buffers, step, layer, micro, sample, numbers
  const emu_buffer *buffer;
  int nbuffers;
  emu_order order;
  uint64_t seed;  // of EMU_SEEDED
} emu_launch_info;

// 0: done, no error. 1: the first error is in `error` (at most n bytes with the NUL): kernel,
// block, thread, line of the text and what; what the launch wrote until then stays written.
int emu_launch(const emu_launch_info *l, char *error, size_t n);

#ifdef __cplusplus
}
#endif
#endif
