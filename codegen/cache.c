// How entries look, and what they are trusted for: codegen/cache.h.
//
// A file is an entry_head and the content, compressed. The checksum covers everything behind it,
// the key says whose it is: a file copied over another's name is found out too. Nothing is flushed
// to the disk: what a power cut leaves of an entry does not match its checksum.
#include "codegen/cache.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/file.h"
#include "runtime/base/str.h"
#include "runtime/base/vec.h"

#define ENTRY_MAGIC "dsmkern2"
#define NAME_DIGITS 32                  // of the key, in hex
#define FRESH_SECONDS 3600              // an entry used again is marked as used at most this often
#define ABANDONED_SECONDS 600           // a temporary file this old has no writer any more
#define LEVEL 3                         // of compression: what zstd does by itself
#define MOST_BYTES ((uint64_t)1 << 30)  // that an entry is believed to hold

typedef struct entry_head {
  char magic[8];
  uint64_t checksum;  // XXH3-64 of what follows
  cache_key key;
  uint64_t bytes;  // of the content
} entry_head;

struct kernel_cache {
  const char *folder;
};

// ---- which compiler this is ---------------------------------------------------------------------

typedef struct ids {
  const void *const *address;
  int n, found;
  sb text;
} ids;

static bool holds(const struct dl_phdr_info *o, const void *address) {
  uintptr_t at = (uintptr_t)address;
  for (int i = 0; i < o->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &o->dlpi_phdr[i];
    uintptr_t from = o->dlpi_addr + p->p_vaddr;
    if (p->p_type == PT_LOAD && at >= from && at - from < p->p_memsz) return true;
  }
  return false;
}

// Adds the build id among the notes of one segment.
static bool take_id(ids *x, const unsigned char *at, size_t n, size_t align) {
  while (n >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) h;
    memcpy(&h, at, sizeof h);
    size_t name = ((size_t)h.n_namesz + align - 1) / align * align;
    size_t desc = ((size_t)h.n_descsz + align - 1) / align * align;
    if (name > n - sizeof h || desc > n - sizeof h - name) return false;
    const unsigned char *text = at + sizeof h;
    if (h.n_type == NT_GNU_BUILD_ID && h.n_namesz == 4 && memcmp(text, "GNU", 4) == 0) {
      for (size_t i = 0; i < h.n_descsz; i++) sb_printf(&x->text, "%02x", text[name + i]);
      sb_put(&x->text, '\n');
      return true;
    }
    at += sizeof h + name + desc;
    n -= sizeof h + name + desc;
  }
  return false;
}

static int see_object(struct dl_phdr_info *o, size_t size, void *ctx) {
  ids *x = ctx;
  (void)size;
  int holding = 0;
  for (int i = 0; i < x->n; i++) holding += holds(o, x->address[i]);
  for (int i = 0; holding && i < o->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &o->dlpi_phdr[i];
    if (p->p_type != PT_NOTE) continue;
    const unsigned char *at = (const unsigned char *)(o->dlpi_addr + p->p_vaddr);
    if (!take_id(x, at, p->p_memsz, p->p_align == 8 ? 8 : 4)) continue;
    x->found += holding;
    return 0;
  }
  return 0;
}

const char *cache_build_ids(arena *a, const void *const *address, int n) {
  ids x = {.address = address, .n = n, .text.arena = a};
  dl_iterate_phdr(see_object, &x);
  return x.found == n ? sb_str(&x.text) : NULL;
}

// ---- the folder ---------------------------------------------------------------------------------

// Makes the folder for its owner alone. Someone else's code must not get into it.
static bool folder_is_safe(arena *a, const char *folder) {
  const char *slash = strrchr(folder, '/');
  if (slash && slash > folder) {
    const char *parent = arena_strndup(a, folder, (size_t)(slash - folder));
    status_free(file_make_dirs(file_io_system(), parent));
  }
  mkdir(folder, 0700);
  struct stat st;
  return stat(folder, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid() &&
         !(st.st_mode & (S_IWGRP | S_IWOTH));
}

kernel_cache *cache_open(arena *a, const char *folder) {
  if (!folder_is_safe(a, folder)) return NULL;
  kernel_cache *c = arena_new(a, kernel_cache, 1);
  c->folder = arena_strdup(a, folder);
  return c;
}

cache_key cache_key_of(const char *const *text, int n) {
  XXH3_state_t s;
  XXH3_128bits_reset(&s);
  XXH3_128bits_update(&s, ENTRY_MAGIC, sizeof ENTRY_MAGIC);
  for (int i = 0; i < n; i++) XXH3_128bits_update(&s, text[i], strlen(text[i]) + 1);
  XXH128_hash_t h = XXH3_128bits_digest(&s);
  return (cache_key){h.high64, h.low64};
}

static const char *path_of(const kernel_cache *c, arena *a, cache_key key) {
  return arena_printf(a, "%s/%016llx%016llx", c->folder, (unsigned long long)key.high,
                      (unsigned long long)key.low);
}

// ---- entries ------------------------------------------------------------------------------------

static uint64_t checksum_of(const entry_head *h, const void *packed, size_t n) {
  size_t skip = offsetof(entry_head, key);
  uint64_t head = XXH3_64bits((const unsigned char *)h + skip, sizeof *h - skip);
  return XXH3_64bits_withSeed(packed, n, head);
}

static bool unpack(arena *a, cache_key key, const file_map *m, cache_bytes *out) {
  entry_head h;
  if (m->n < sizeof h) return false;
  memcpy(&h, m->bytes, sizeof h);
  const unsigned char *packed = m->bytes + sizeof h;
  size_t n = m->n - sizeof h;
  if (memcmp(h.magic, ENTRY_MAGIC, sizeof h.magic) != 0 || h.key.high != key.high ||
      h.key.low != key.low || h.bytes > MOST_BYTES || h.checksum != checksum_of(&h, packed, n))
    return false;
  out->n = (size_t)h.bytes;
  out->at = arena_alloc(a, out->n);
  return ZSTD_decompress(out->at, out->n, packed, n) == out->n;
}

bool cache_get(const kernel_cache *c, arena *a, cache_key key, cache_bytes *out) {
  const char *path = path_of(c, a, key);
  file_map m;
  status *s = file_map_open(path, &m);
  if (s) {
    status_free(s);
    return false;
  }
  bool good = unpack(a, key, &m, out);
  file_map_close(&m);
  struct stat st;
  if (good && stat(path, &st) == 0 && time(NULL) - st.st_mtime > FRESH_SECONDS)
    utimensat(AT_FDCWD, path, NULL, 0);  // cache_trim drops what was used longest ago
  return good;
}

void cache_put(const kernel_cache *c, arena *a, cache_key key, cache_bytes bytes) {
  entry_head h = {.key = key, .bytes = bytes.n};
  memcpy(h.magic, ENTRY_MAGIC, sizeof h.magic);
  size_t room = ZSTD_compressBound(bytes.n);
  unsigned char *packed = arena_alloc(a, room);
  size_t n = ZSTD_compress(packed, room, bytes.at, bytes.n, LEVEL);
  if (ZSTD_isError(n)) return;
  h.checksum = checksum_of(&h, packed, n);
  const char *path = path_of(c, a, key);
  // Threads of one program may put the same key, too.
  const char *tmp =
      arena_printf(a, "%s.%ld.%lx", path, (long)getpid(), (unsigned long)(uintptr_t)&h);
  file_out f;
  status *s = file_create(file_io_system(), tmp, &f);
  if (!s) {
    s = file_write(&f, &h, sizeof h);
    if (!s) s = file_write(&f, packed, n);
    s = status_join(s, file_close(&f));
    if (s || rename(tmp, path) != 0) unlink(tmp);
  }
  status_free(s);  // the next build compiles it again
}

typedef struct used_file {
  const char *path;
  int64_t bytes;
  time_t when;
} used_file;

static int oldest_first(const void *a, const void *b) {
  const used_file *x = a, *y = b;
  if (x->when != y->when) return x->when < y->when ? -1 : 1;
  return strcmp(x->path, y->path);
}

void cache_trim(const kernel_cache *c, arena *a, int64_t bytes) {
  file_names names = {0};
  status_free(file_list(a, c->folder, &names));
  VEC(used_file) files = {0};
  int64_t total = 0;
  time_t now = time(NULL);
  for (int i = 0; i < names.n; i++) {
    size_t digits = strspn(names.at[i], "0123456789abcdef");
    if (digits != NAME_DIGITS) continue;  // not ours
    used_file f = {.path = arena_printf(a, "%s/%s", c->folder, names.at[i])};
    struct stat st;
    if (stat(f.path, &st) != 0 || !S_ISREG(st.st_mode)) continue;
    if (names.at[i][digits]) {
      if (now - st.st_mtime > ABANDONED_SECONDS) unlink(f.path);
      continue;
    }
    f.bytes = (int64_t)st.st_blocks * 512;  // what it takes on the disk
    f.when = st.st_mtime;
    total += f.bytes;
    vec_push(a, &files, f);
  }
  if (total <= bytes) return;
  qsort(files.at, (size_t)files.n, sizeof *files.at, oldest_first);
  for (int i = 0; i < files.n && total > bytes; i++)
    if (unlink(files.at[i].path) == 0) total -= files.at[i].bytes;
}
