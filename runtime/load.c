#include "runtime/load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/str.h"

_Static_assert(sizeof(prog_trailer) == 64, "the trailer is the last 64 bytes");

// ---- CPU features -----------------------------------------------------------------------------

#if defined(__x86_64__)
#define THIS_ARCH "x86-64"
#elif defined(__aarch64__)
#define THIS_ARCH "aarch64"
#else
#define THIS_ARCH "unknown"
#endif

// LLVM's names whose /proc/cpuinfo name differs by more than dots, dashes and underscores.
static const char *const aliases[][2] = {
    {"sse3", "pni"},      {"bmi", "bmi1"},
    {"lzcnt", "abm"},     {"pclmul", "pclmulqdq"},
    {"sahf", "lahf_lm"},  {"rdrnd", "rdrand"},
    {"x87", "fpu"},       {"crc32", "sse4_2"},
    {"64bit", "lm"},      {"prfchw", "3dnowprefetch"},
    {"sha", "sha_ni"},    {"neon", "asimd"},
    {"fullfp16", "fphp"}, {"dotprod", "asimddp"},
    {"lse", "atomics"},   {"wbnoinvd", "wbnoinvd"},
};

static bool same_feature(const char *a, size_t n, const char *b, size_t m) {
  size_t i = 0, j = 0;
  for (;;) {
    while (i < n && strchr("._-", a[i])) i++;
    while (j < m && strchr("._-", b[j])) j++;
    if (i == n || j == m) return i == n && j == m;
    if (a[i++] != b[j++]) return false;
  }
}

static bool has_feature(const char *have, const char *word, size_t n) {
  for (size_t k = 0; k < sizeof aliases / sizeof *aliases; k++)
    if (strlen(aliases[k][0]) == n && memcmp(aliases[k][0], word, n) == 0) {
      word = aliases[k][1];
      n = strlen(word);
      break;
    }
  while (*have) {
    have += strspn(have, " \t\n");
    size_t m = strcspn(have, " \t\n");
    if (m && same_feature(word, n, have, m)) return true;
    have += m;
  }
  return false;
}

status *image_check_cpu(const char *need, const char *arch, const char *have) {
  char missing[1024] = "";
  size_t used = 0;
  for (bool first = true; *need; first = false) {
    need += strspn(need, " ,");
    size_t n = strcspn(need, " ,");
    if (n == 0) break;
    if (first) {
      if (strlen(arch) != n || memcmp(arch, need, n) != 0)
        return status_error("this executable is for %.*s, this machine is %s", (int)n, need, arch);
    } else if (*need != '-' && used + n + 2 < sizeof missing) {
      const char *word = need + (*need == '+');
      size_t m = n - (size_t)(word - need);
      if (!has_feature(have, word, m))
        used += (size_t)snprintf(missing + used, sizeof missing - used, " %.*s", (int)m, word);
    }
    need += n;
  }
  if (!used) return NULL;
  return status_error("this CPU lacks%s: rebuild on this machine or for it", missing);
}

status *image_check_this_cpu(const char *need) {
  FILE *f = fopen("/proc/cpuinfo", "re");
  if (!f) return status_errno("cannot open /proc/cpuinfo");
  char *line = NULL;
  size_t cap = 0;
  const char *have = "";
  while (getline(&line, &cap, f) > 0)
    if (str_starts(line, "flags") || str_starts(line, "Features")) {
      const char *colon = strchr(line, ':');
      have = colon ? colon + 1 : "";
      break;
    }
  status *s = image_check_cpu(need, THIS_ARCH, have);
  free(line);
  fclose(f);
  return s;
}

// ---- mapping ----------------------------------------------------------------------------------

enum { MAX_PARTS = 4096 };

static status *check_part(const char *path, uint64_t end, const prog_part *t) {
  if (t->code_offset % 4096 || t->code_offset > end || t->code_bytes > end - t->code_offset ||
      t->program_offset % 8 || t->program_offset > end ||
      t->program_bytes > end - t->program_offset || t->program_bytes == 0)
    return status_error("%s is damaged: its trailer points outside the file", path);
  return NULL;
}

static status *read_at(int fd, const char *path, uint64_t offset, void *to, size_t n) {
  ssize_t got;
  do got = pread(fd, to, n, (off_t)offset);
  while (got < 0 && errno == EINTR);
  if (got != (ssize_t)n) return status_errno("cannot read the end of %s", path);
  return NULL;
}

static status *read_trailer(int fd, const char *path, uint64_t *size, prog_trailer *t) {
  struct stat st;
  if (fstat(fd, &st) < 0) return status_errno("cannot read the size of %s", path);
  *size = (uint64_t)st.st_size;
  if (*size < sizeof *t) return status_error("%s is not a dsm executable", path);
  STATUS_DO(read_at(fd, path, *size - sizeof *t, t, sizeof *t));
  if (memcmp(t->magic, PROG_TRAILER_MAGIC, sizeof t->magic) != 0)
    return status_error(
        "%s carries no program: it is the bare runtime, or was cut off while being copied", path);
  uint64_t end = *size - sizeof *t, all = t->parts * sizeof(prog_part);
  bool several = t->parts != 0;
  if (several && (t->parts < 2 || t->parts > MAX_PARTS || t->parts_offset > end ||
                  all > end - t->parts_offset))
    return status_error("%s is damaged: its trailer points outside the file", path);
  return check_part(path, end, &t->first);
}

static status *map_part(int fd, const char *path, const prog_part *t, image *img) {
  if (t->code_bytes) {
    img->code_map =
        mmap(NULL, t->code_bytes, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, (off_t)t->code_offset);
    if (img->code_map == MAP_FAILED) {
      img->code_map = NULL;
      return status_errno("cannot map the code of %s", path);
    }
    img->code_map_bytes = t->code_bytes;
    img->code = img->code_map;
    img->code_bytes = t->code_bytes;
  }
  if (XXH3_64bits(img->code, t->code_bytes) != t->code_checksum)
    return status_error("%s is damaged: the checksum of its code is wrong", path);
  uint64_t start = t->program_offset & ~(uint64_t)4095, skip = t->program_offset - start;
  img->prog_map_bytes = t->program_bytes + skip;
  img->prog_map = mmap(NULL, img->prog_map_bytes, PROT_READ, MAP_PRIVATE, fd, (off_t)start);
  if (img->prog_map == MAP_FAILED) {
    img->prog_map = NULL;
    return status_errno("cannot map the program of %s", path);
  }
  const unsigned char *blob = (const unsigned char *)img->prog_map + skip;
  STATUS_TRY(prog_open(blob, t->program_bytes, t->code_bytes, &img->prog), "%s", path);
  STATUS_TRY(prog_check_code(&img->prog, img->code), "%s", path);
  return NULL;
}

// Ranks compare one number, and each has the program of its own stage: it is that of all programs.
static status *open_stage(int fd, const char *name, const prog_trailer *t, uint64_t end, int rank,
                          image *img) {
  uint64_t stage = (uint64_t)prog_stage(&img->prog, rank);
  prog_part *part = calloc(t->parts, sizeof *part);
  if (!part) return status_error("out of memory");
  status *s = read_at(fd, name, t->parts_offset, part, t->parts * sizeof *part);
  if (!s && stage >= t->parts) s = status_error("%s has no program of stage %d", name, (int)stage);
  if (!s) s = check_part(name, end, &part[stage]);
  if (!s && stage) {
    image_close(img);
    img->code = (const unsigned char *)"";
    s = map_part(fd, name, &part[stage], img);
  }
  if (!s) img->prog.identity = XXH3_64bits(part, t->parts * sizeof *part);
  for (uint64_t i = 0; i < t->parts && !s; i++) {
    prog_header h;
    s = check_part(name, end, &part[i]);
    if (!s) s = read_at(fd, name, part[i].program_offset, &h, sizeof h);
    if (!s) img->prog.identity = img->prog.identity * 31 + h.checksum;
  }
  free(part);
  return s;
}

status *image_open(const char *path, const char *name, int rank, image *img) {
  memset(img, 0, sizeof *img);
  img->code = (const unsigned char *)"";
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return status_errno("cannot open %s", name);
  prog_trailer t;
  uint64_t size = 0;
  status *s = read_trailer(fd, name, &size, &t);
  if (!s) s = map_part(fd, name, &t.first, img);
  if (!s && t.parts) s = open_stage(fd, name, &t, size - sizeof t, rank, img);
  if (!s) s = image_check_this_cpu(prog_text(&img->prog, img->prog.header->cpu));
  close(fd);
  if (s) image_close(img);
  return s;
}

void image_close(image *img) {
  if (img->code_map) munmap(img->code_map, img->code_map_bytes);
  if (img->prog_map) munmap(img->prog_map, img->prog_map_bytes);
  memset(img, 0, sizeof *img);
}
