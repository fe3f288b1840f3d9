#include "runtime/base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/str.h"
#include "runtime/base/vec.h"

static int sys_open(void *ctx, const char *path, int flags, unsigned mode) {
  (void)ctx;
  return open(path, flags, mode);
}
static ssize_t sys_write(void *ctx, int fd, const void *bytes, size_t n) {
  (void)ctx;
  return write(fd, bytes, n);
}
static int sys_fsync(void *ctx, int fd) {
  (void)ctx;
  return fsync(fd);
}
static int sys_close(void *ctx, int fd) {
  (void)ctx;
  return close(fd);
}
static int sys_rename(void *ctx, const char *from, const char *to) {
  (void)ctx;
  return rename(from, to);
}
static int sys_unlink(void *ctx, const char *path) {
  (void)ctx;
  return unlink(path);
}
static int sys_mkdir(void *ctx, const char *path, unsigned mode) {
  (void)ctx;
  return mkdir(path, mode);
}
static int sys_rmdir(void *ctx, const char *path) {
  (void)ctx;
  return rmdir(path);
}

const file_io *file_io_system(void) {
  static const file_io io = {NULL,       sys_open,   sys_write, sys_fsync, sys_close,
                             sys_rename, sys_unlink, sys_mkdir, sys_rmdir};
  return &io;
}

status *file_create(const file_io *io, const char *path, file_out *out) {
  out->io = io;
  out->path = path;
  do out->fd = io->open(io->ctx, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  while (out->fd < 0 && errno == EINTR);
  return out->fd < 0 ? status_errno("cannot create %s", path) : NULL;
}

status *file_write(file_out *f, const void *bytes, size_t n) {
  const char *p = bytes;
  size_t done = 0;
  while (done < n) {
    ssize_t k = f->io->write(f->io->ctx, f->fd, p + done, n - done);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0) return status_errno("cannot write %s (%zu bytes to go)", f->path, n - done);
    if (k == 0) return status_error("cannot write %s: the system took 0 bytes", f->path);
    done += (size_t)k;
  }
  return NULL;
}

static status *sync_fd(const file_io *io, int fd, const char *path) {
  int r;
  do r = io->fsync(io->ctx, fd);
  while (r < 0 && errno == EINTR);
  return r < 0 ? status_errno("cannot flush %s to disk", path) : NULL;
}

status *file_sync(file_out *f) { return sync_fd(f->io, f->fd, f->path); }

status *file_close(file_out *f) {
  if (f->fd < 0) return NULL;
  int fd = f->fd;
  f->fd = -1;
  // On Linux the descriptor is gone even when close is interrupted.
  if (f->io->close(f->io->ctx, fd) < 0 && errno != EINTR)
    return status_errno("cannot close %s", f->path);
  return NULL;
}

status *file_sync_dir(const file_io *io, const char *dir) {
  int fd;
  do fd = io->open(io->ctx, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  while (fd < 0 && errno == EINTR);
  if (fd < 0) return status_errno("cannot open directory %s", dir);
  status *s = sync_fd(io, fd, dir);
  io->close(io->ctx, fd);
  return s;
}

status *file_make_dirs(const file_io *io, const char *dir) {
  char path[4096];
  size_t n = strlen(dir);
  if (n == 0) return status_error("the name of a directory is empty");
  if (n >= sizeof path) return status_error("the name of directory %.60s... is too long", dir);
  for (size_t i = 1; i <= n; i++) {
    if (i < n && dir[i] != '/') continue;
    memcpy(path, dir, i);
    path[i] = 0;
    if (io->mkdir(io->ctx, path, 0777) < 0 && errno != EEXIST)
      return status_errno("cannot make directory %s", path);
  }
  if (file_kind(dir) != FILE_DIR) return status_error("%s is not a directory", dir);
  return NULL;
}

status *file_remove_dir(const file_io *io, const char *dir) {
  DIR *d = opendir(dir);
  if (!d) return errno == ENOENT ? NULL : status_errno("cannot open directory %s", dir);
  status *s = NULL;
  for (struct dirent *e; (e = readdir(d));) {
    if (str_eq(e->d_name, ".") || str_eq(e->d_name, "..")) continue;
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", dir, e->d_name) >= (int)sizeof path) continue;
    if (io->unlink(io->ctx, path) < 0 && errno != ENOENT)
      s = status_join(s, status_errno("cannot remove %s", path));
  }
  closedir(d);
  if (!s && io->rmdir(io->ctx, dir) < 0 && errno != ENOENT)
    s = status_errno("cannot remove directory %s", dir);
  return s;
}

status *file_map_open(const char *path, file_map *out) {
  out->bytes = (const unsigned char *)"";
  out->n = 0;
  int fd;
  do fd = open(path, O_RDONLY | O_CLOEXEC);
  while (fd < 0 && errno == EINTR);
  if (fd < 0) return status_errno("cannot open %s", path);
  struct stat st;
  if (fstat(fd, &st) < 0) {
    status *s = status_errno("cannot read the size of %s", path);
    close(fd);
    return s;
  }
  if (!S_ISREG(st.st_mode)) {
    close(fd);
    return status_error("%s is %s, not a file", path,
                        S_ISDIR(st.st_mode) ? "a directory" : "a device or pipe");
  }
  if (st.st_size > 0) {
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
      status *s = status_errno("cannot map %s", path);
      close(fd);
      return s;
    }
    out->bytes = p;
    out->n = (size_t)st.st_size;
  }
  close(fd);
  return NULL;
}

void file_map_close(file_map *m) {
  if (m->n) munmap((void *)(uintptr_t)m->bytes, m->n);
  m->bytes = (const unsigned char *)"";
  m->n = 0;
}

file_type file_kind(const char *path) {
  struct stat st;
  if (stat(path, &st) < 0) return FILE_NONE;
  return S_ISREG(st.st_mode) ? FILE_REGULAR : S_ISDIR(st.st_mode) ? FILE_DIR : FILE_OTHER;
}

static int by_bytes(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

status *file_list(arena *a, const char *dir, file_names *out) {
  VEC(const char *) names = {0};
  *out = (file_names){0};
  DIR *d = opendir(dir);
  if (!d) return status_errno("cannot open directory %s", dir);
  for (struct dirent *e; (e = readdir(d));)
    if (!str_eq(e->d_name, ".") && !str_eq(e->d_name, ".."))
      vec_push(a, &names, arena_strdup(a, e->d_name));
  closedir(d);
  if (names.n) qsort(names.at, (size_t)names.n, sizeof *names.at, by_bytes);
  out->at = names.at;
  out->n = names.n;
  return NULL;
}

status *file_glob(arena *a, const char *pattern, file_names *out) {
  glob_t g;
  *out = (file_names){0};
  int r = glob(pattern, GLOB_NOSORT | GLOB_TILDE, NULL, &g);
  if (r == GLOB_NOMATCH) return NULL;
  if (r) return status_error("cannot look for files %s", pattern);
  out->n = (int)g.gl_pathc;
  out->at = arena_new(a, const char *, out->n);
  for (int i = 0; i < out->n; i++) out->at[i] = arena_strdup(a, g.gl_pathv[i]);
  globfree(&g);
  if (out->n) qsort(out->at, (size_t)out->n, sizeof *out->at, by_bytes);
  return NULL;
}
