// The kernel cache: code of kernels compiled before, one file a kernel.
//
// An entry is named by the hash of all that its bytes depend on: the kernel's text, the compiler
// (cache_build_ids) and what it is told. So nothing in the folder is ever out of date, and several
// compilers, and several kinds of code, may share it.
//
//   kernel_cache *c = cache_open(a, "/home/me/.cache/dsmc/kernels");
//   if (c) {                                            // NULL: do without
//     const char *const depends[] = {build_ids, options, text};
//     cache_key key = cache_key_of(depends, 3);
//     cache_bytes b;
//     if (!cache_get(c, a, key, &b)) {
//       ...                                             // compile the kernel to b
//       cache_put(c, a, key, b);
//     }
//     cache_trim(c, a, CACHE_BYTES);                    // when some were compiled
//   }
//
// A cache never makes a build fail and never changes its bytes: an entry that is cut, damaged or of
// another kernel is not used, and written again; a folder that cannot be made, read or written is a
// cache without entries. Entries are compressed and appear whole (written under another name, then
// renamed), so any number of compilers and threads may use a folder at once. Because entries are
// run as code, a folder that belongs to, or may be written by, somebody else is not used.
#ifndef DSM_CODEGEN_CACHE_H
#define DSM_CODEGEN_CACHE_H

#include <stdbool.h>

#include "runtime/base/arena.h"

#define CACHE_BYTES ((int64_t)256 << 20)

typedef struct kernel_cache kernel_cache;

// 128 bits of XXH3.
typedef struct cache_key {
  uint64_t high, low;
} cache_key;

typedef struct cache_bytes {
  unsigned char *at;
  size_t n;
} cache_bytes;

// Opens (and makes) the folder. NULL when it is unsafe or cannot be had.
kernel_cache *cache_open(arena *a, const char *folder);
// Of texts; where one ends and the next begins makes a difference.
cache_key cache_key_of(const char *const *text, int n);
// The content of an entry, or false.
bool cache_get(const kernel_cache *c, arena *a, cache_key key, cache_bytes *out);
void cache_put(const kernel_cache *c, arena *a, cache_key key, cache_bytes bytes);
// Removes the entries used longest ago until the folder holds at most `bytes`, and what writers
// that were killed left behind.
void cache_trim(const kernel_cache *c, arena *a, int64_t bytes);

// The build ids, which the linker makes from the whole contents, of the program and libraries that
// hold these addresses, as a text. NULL when one of them has none and so cannot be told from
// another version of itself.
const char *cache_build_ids(arena *a, const void *const *address, int n);

#endif
