// How entries look, and what they are trusted for: codegen/cache.h.
//
// A file is an entry_head and the image. The checksum covers everything behind it, the key says
// whose code it is: a file copied over another's name is found out too. Nothing is flushed to the
// disk: what a power cut leaves of an entry does not match its checksum.
#include "codegen/cache.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <llvm-c/Core.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/file.h"

#define ENTRY_MAGIC "dsmkern1"
#define NAME_DIGITS 32         // of the key, in hex
#define FRESH_SECONDS 3600     // an entry used again is marked as used at most this often
#define ABANDONED_SECONDS 600  // a temporary file this old has no writer any more

typedef struct entry_head {
  char magic[8];
  uint64_t checksum;  // XXH3-64 of what follows
  cache_key key;
  int64_t code_bytes, offset, stack;  // as in cg_image
} entry_head;

struct kernel_cache {
  const char *folder;
  XXH128_hash_t base;  // of compiler, LLVM and CPU
};

// ---- which compiler this is ---------------------------------------------------------------------

typedef struct ids {
  XXH3_state_t *hash;
  uintptr_t mine, llvm;  // addresses inside the two objects
  int found;
} ids;

static bool holds(const struct dl_phdr_info *o, uintptr_t address) {
  for (int i = 0; i < o->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &o->dlpi_phdr[i];
    uintptr_t from = o->dlpi_addr + p->p_vaddr;
    if (p->p_type == PT_LOAD && address >= from && address - from < p->p_memsz) return true;
  }
  return false;
}

// Hashes the build id among the notes of one segment; the linker makes it from the whole contents.
static bool take_id(ids *x, const unsigned char *at, size_t n, size_t align) {
  while (n >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) h;
    memcpy(&h, at, sizeof h);
    size_t name = ((size_t)h.n_namesz + align - 1) / align * align;
    size_t desc = ((size_t)h.n_descsz + align - 1) / align * align;
    if (name > n - sizeof h || desc > n - sizeof h - name) return false;
    const unsigned char *text = at + sizeof h;
    if (h.n_type == NT_GNU_BUILD_ID && h.n_namesz == 4 && memcmp(text, "GNU", 4) == 0) {
      XXH3_128bits_update(x->hash, text + name, h.n_descsz);
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
  bool mine = holds(o, x->mine), llvm = holds(o, x->llvm);
  if (!mine && !llvm) return 0;
  for (int i = 0; i < o->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &o->dlpi_phdr[i];
    if (p->p_type != PT_NOTE) continue;
    const unsigned char *at = (const unsigned char *)(o->dlpi_addr + p->p_vaddr);
    if (!take_id(x, at, p->p_memsz, p->p_align == 8 ? 8 : 4)) continue;
    x->found += mine + llvm;
    return 0;
  }
  return 0;
}

static void add_text(XXH3_state_t *s, const char *text) {
  XXH3_128bits_update(s, text, strlen(text) + 1);
}

// The part of all keys that does not depend on the kernel. False when a compiler cannot be told
// from another one.
static bool hash_base(XXH3_state_t *s, const char *cpu, const char *features, XXH128_hash_t *out) {
  XXH3_128bits_reset(s);
  add_text(s, ENTRY_MAGIC);
  unsigned version[3];
  LLVMGetVersion(&version[0], &version[1], &version[2]);
  XXH3_128bits_update(s, version, sizeof version);
  add_text(s, cpu);
  add_text(s, features);
  ids x = {.hash = s};
  void (*mine)(const kernel_cache *, arena *, int64_t) = cache_trim;
  LLVMContextRef (*llvm)(void) = LLVMContextCreate;
  memcpy(&x.mine, &mine, sizeof x.mine);
  memcpy(&x.llvm, &llvm, sizeof x.llvm);
  dl_iterate_phdr(see_object, &x);
  *out = XXH3_128bits_digest(s);
  return x.found == 2;
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

kernel_cache *cache_open(arena *a, const char *folder, const char *cpu, const char *features) {
  kernel_cache *c = arena_new(a, kernel_cache, 1);
  c->folder = arena_strdup(a, folder);
  if (!folder_is_safe(a, folder)) return NULL;
  XXH3_state_t *s = XXH3_createState();
  bool good = s && hash_base(s, cpu, features, &c->base);
  XXH3_freeState(s);
  return good ? c : NULL;
}

cache_key cache_key_of(const kernel_cache *c, arena *a, const k_kernel *k) {
  sb text = {.arena = a};
  sb_printf(&text, "%016llx%016llx\n", (unsigned long long)c->base.high64,
            (unsigned long long)c->base.low64);
  k_print(&text, k);
  const char *all = sb_str(&text);
  XXH128_hash_t h = XXH3_128bits(all, strlen(all));
  return (cache_key){h.high64, h.low64};
}

static const char *path_of(const kernel_cache *c, arena *a, cache_key key) {
  return arena_printf(a, "%s/%016llx%016llx", c->folder, (unsigned long long)key.high,
                      (unsigned long long)key.low);
}

// ---- entries ------------------------------------------------------------------------------------

static uint64_t checksum_of(const entry_head *h, const void *code) {
  size_t skip = offsetof(entry_head, key);
  uint64_t head = XXH3_64bits((const unsigned char *)h + skip, sizeof *h - skip);
  return XXH3_64bits_withSeed(code, (size_t)h->code_bytes, head);
}

bool cache_get(const kernel_cache *c, arena *a, cache_key key, cg_image *out) {
  const char *path = path_of(c, a, key);
  file_map m;
  status *s = file_map_open(path, &m);
  if (s) {
    status_free(s);
    return false;
  }
  entry_head h;
  bool good = m.n >= sizeof h;
  if (good) {
    memcpy(&h, m.bytes, sizeof h);
    good = memcmp(h.magic, ENTRY_MAGIC, sizeof h.magic) == 0 && h.key.high == key.high &&
           h.key.low == key.low && h.code_bytes > 0 && (uint64_t)h.code_bytes == m.n - sizeof h &&
           h.offset >= 0 && h.offset < h.code_bytes &&
           h.checksum == checksum_of(&h, m.bytes + sizeof h);
  }
  if (good) {
    out->n = h.code_bytes;
    out->bytes = arena_alloc(a, (size_t)h.code_bytes);
    memcpy(out->bytes, m.bytes + sizeof h, (size_t)h.code_bytes);
    out->offset = arena_new(a, int64_t, 1);
    out->offset[0] = h.offset;
    out->stack = h.stack;
  }
  file_map_close(&m);
  struct stat st;
  if (good && stat(path, &st) == 0 && time(NULL) - st.st_mtime > FRESH_SECONDS)
    utimensat(AT_FDCWD, path, NULL, 0);  // cache_trim drops what was used longest ago
  return good;
}

void cache_put(const kernel_cache *c, arena *a, cache_key key, const cg_image *image) {
  entry_head h = {
      .key = key, .code_bytes = image->n, .offset = image->offset[0], .stack = image->stack};
  memcpy(h.magic, ENTRY_MAGIC, sizeof h.magic);
  h.checksum = checksum_of(&h, image->bytes);
  const char *path = path_of(c, a, key), *tmp = arena_printf(a, "%s.%ld", path, (long)getpid());
  file_out f;
  status *s = file_create(file_io_system(), tmp, &f);
  if (!s) {
    s = file_write(&f, &h, sizeof h);
    if (!s) s = file_write(&f, image->bytes, (size_t)image->n);
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
