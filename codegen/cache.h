// The kernel cache: machine code of kernels compiled before, one file a kernel.
//
// A kernel's code depends on its text (k_print: equal texts mean equal kernels), on the compiler
// (the build id of the program that holds the lowering, and LLVM's) and on the CPU with its
// features. The hash of all of them names the file, so nothing in the folder is ever out of date
// and several compilers may share it.
//
//   kernel_cache *c = cache_open(a, "/home/me/.cache/dsmc/kernels", cpu, features);
//   if (c) {                                            // NULL: do without
//     cache_key key = cache_key_of(c, a, kernel);
//     if (!cache_get(c, a, key, &image)) {
//       ...                                             // compile the kernel to `image`
//       cache_put(c, a, key, &image);
//     }
//     cache_trim(c, a, CACHE_BYTES);                    // when some were compiled
//   }
//
// A cache never makes a build fail and never changes its bytes: an entry that is cut, damaged or of
// another kernel is not used, and written again; a folder that cannot be made, read or written is a
// cache without entries. Entries appear whole (written under another name, then renamed), so any
// number of compilers and threads may use a folder at once. Because entries are run as code, a
// folder that belongs to, or may be written by, somebody else is not used.
#ifndef DSM_CODEGEN_CACHE_H
#define DSM_CODEGEN_CACHE_H

#include "codegen/emit.h"

#define CACHE_BYTES ((int64_t)256 << 20)

typedef struct kernel_cache kernel_cache;

// 128 bits of XXH3.
typedef struct cache_key {
  uint64_t high, low;
} cache_key;

// Opens (and makes) the folder for code of this CPU. NULL when the folder is unsafe or cannot be
// had, or when the program has no build id.
kernel_cache *cache_open(arena *a, const char *folder, const char *cpu, const char *features);
cache_key cache_key_of(const kernel_cache *c, arena *a, const k_kernel *k);
// The image of one kernel (out: bytes, n, offset[0], stack), or false.
bool cache_get(const kernel_cache *c, arena *a, cache_key key, cg_image *out);
void cache_put(const kernel_cache *c, arena *a, cache_key key, const cg_image *image);
// Removes the entries used longest ago until the folder holds at most `bytes`, and what writers
// that were killed left behind.
void cache_trim(const kernel_cache *c, arena *a, int64_t bytes);

#endif
