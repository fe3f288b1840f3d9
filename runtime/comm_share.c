// Memory that ranks of one machine share (comm_share).
//
// A rank's arena is a file in memory. Whoever runs on the same machine, under the same numbers of
// processes, opens it by way of /proc and maps it. Whether that works is agreed upon by all: a rank
// that cannot makes all of them send messages, so that two never wait for each other in different
// ways.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/comm_impl.h"

// Where a rank is, and its memory.
typedef struct place {
  char machine[40], processes[40];  // since which start of which machine; whose process numbers
  int64_t pid, fd, bytes;
  int64_t board;  // of these, at their end
} place;

static void first_line(const char *path, char *out, size_t cap) {
  FILE *f = fopen(path, "re");
  if (!f || !fgets(out, (int)cap, f)) *out = 0;
  if (f) fclose(f);
}

static place where(int fd, size_t bytes, size_t board) {
  place p = {.pid = getpid(), .fd = fd, .bytes = (int64_t)bytes, .board = (int64_t)board};
  first_line("/proc/sys/kernel/random/boot_id", p.machine, sizeof p.machine);
  ssize_t n = readlink("/proc/self/ns/pid", p.processes, sizeof p.processes - 1);
  p.processes[n > 0 ? n : 0] = 0;
  if (!*p.processes) *p.machine = 0;
  return p;
}

static bool together(const place *a, const place *b) {
  return a->fd >= 0 && b->fd >= 0 && *a->machine && strcmp(a->machine, b->machine) == 0 &&
         strcmp(a->processes, b->processes) == 0;
}

// NULL: it cannot be had.
static unsigned char *map_of(const place *p) {
  char path[64];
  struct stat st;
  snprintf(path, sizeof path, "/proc/%lld/fd/%lld", (long long)p->pid, (long long)p->fd);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return NULL;
  void *at = MAP_FAILED;
  if (fstat(fd, &st) == 0 && st.st_size == p->bytes)
    at = mmap(NULL, (size_t)p->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  return at == MAP_FAILED ? NULL : at;
}

// How many numbers a rank's note has.
static size_t note_size(const prog *p) {
  uint32_t values = 1;
  for (uint32_t i = 0; i < p->nexchanges; i++)
    if (p->exchanges[i].values > values) values = p->exchanges[i].values;
  return 2 * (size_t)values;
}

size_t comm_shared_bytes(const prog *p) {
  size_t bytes = sizeof(comm_board) + note_size(p) * sizeof(int64_t);
  return (bytes + 63) / 64 * 64;
}

void comm_unshare(comm *c) {
  for (int r = 0; c->memory && r < c->engine.ranks; r++)
    if (c->memory[r].at && r != c->engine.rank) munmap(c->memory[r].at, c->memory[r].bytes);
  free(c->memory);
  c->memory = NULL;
}

static status *map_others(comm *c, unsigned char *at, const place *all, bool *good) {
  const place *mine = &all[c->engine.rank];
  c->memory = calloc((size_t)c->engine.ranks, sizeof *c->memory);
  if (!c->memory) return status_error("out of memory");
  *good = together(mine, mine);
  for (int r = 0; r < c->engine.ranks && *good; r++) {
    if (!together(mine, &all[r])) continue;
    comm_memory *m = &c->memory[r];
    m->bytes = (size_t)all[r].bytes;
    m->at = r == c->engine.rank ? at : map_of(&all[r]);
    *good = m->at != NULL;
    if (*good) m->board = (comm_board *)(void *)(m->at + m->bytes - all[r].board);
  }
  return NULL;
}

status *comm_share(comm *c, int fd, unsigned char *at, size_t bytes) {
  if (!c || !c->engine.direct) return NULL;
  int n = c->engine.ranks;
  bool good = false;
  place mine = where(fd, bytes, comm_shared_bytes(c->prog)), *all = calloc((size_t)n, sizeof *all);
  status *s = all ? NULL : status_error("out of memory");
  if (!s) s = comm_collect(c, &mine, sizeof mine, all, 0);
  if (!s) s = comm_broadcast(c, all, (size_t)n * sizeof *all, 0);
  if (!s) s = map_others(c, at, all, &good);
  free(all);
  int64_t lacks = !good;
  if (!s) s = comm_max(c, &lacks);  // also: all have mapped, so that files may be closed
  if (s || lacks) comm_unshare(c);
  return s;
}

bool comm_reaches(const comm *c, uint32_t axes) {
  if (!c->memory) return false;
  int64_t n = comm_group_size(c->prog, axes);
  for (int64_t i = 0; i < n; i++)
    if (!c->memory[comm_at(c->prog, c->engine.rank, axes, i)].at) return false;
  return true;
}
