// Files: everything the runtime writes goes through a small table of calls, so that tests can make
// the n-th one fail; reading is mmap.
//
//   file_map m;
//   STATUS_DO(file_map_open(path, &m));
//   use(m.bytes, m.n);
//   file_map_close(&m);
#ifndef DSM_BASE_FILE_H
#define DSM_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "runtime/base/arena.h"
#include "runtime/base/status.h"

// The system calls that change the disk, with their usual results (-1 and errno on failure).
typedef struct file_io {
  void *ctx;
  int (*open)(void *ctx, const char *path, int flags, unsigned mode);
  ssize_t (*write)(void *ctx, int fd, const void *bytes, size_t n);
  int (*fsync)(void *ctx, int fd);
  int (*close)(void *ctx, int fd);
  int (*rename)(void *ctx, const char *from, const char *to);
  int (*unlink)(void *ctx, const char *path);
  int (*mkdir)(void *ctx, const char *path, unsigned mode);
  int (*rmdir)(void *ctx, const char *path);
} file_io;

// The real ones.
const file_io *file_io_system(void);

// A file being written. Every step returns a status that names `path`; after a failure only
// file_close is useful.
typedef struct file_out {
  const file_io *io;
  const char *path;
  int fd;
} file_out;

status *file_create(const file_io *io, const char *path, file_out *out) STATUS_MUST_USE;
// Writes all of it: short writes go on, EINTR is tried again.
status *file_write(file_out *f, const void *bytes, size_t n) STATUS_MUST_USE;
// fsync.
status *file_sync(file_out *f) STATUS_MUST_USE;
// Closes; may be called twice.
status *file_close(file_out *f) STATUS_MUST_USE;
// Makes the names in a directory durable.
status *file_sync_dir(const file_io *io, const char *dir) STATUS_MUST_USE;
// Makes a directory and those above it; existing ones are fine.
status *file_make_dirs(const file_io *io, const char *dir) STATUS_MUST_USE;
// Removes a directory with all the files in it (one level: the runtime makes no deeper ones).
status *file_remove_dir(const file_io *io, const char *dir) STATUS_MUST_USE;

typedef struct file_map {
  const unsigned char *bytes;  // never NULL, not even for an empty file
  size_t n;
} file_map;

// Maps a regular file for reading.
status *file_map_open(const char *path, file_map *out) STATUS_MUST_USE;
void file_map_close(file_map *m);

typedef enum file_type { FILE_NONE, FILE_REGULAR, FILE_DIR, FILE_OTHER } file_type;
file_type file_kind(const char *path);

typedef struct file_names {
  const char **at;
  int n;
} file_names;

// The names in a directory without "." and "..", sorted by bytes.
status *file_list(arena *a, const char *dir, file_names *out) STATUS_MUST_USE;
// The paths that match a shell pattern, sorted by bytes; none is not an error.
status *file_glob(arena *a, const char *pattern, file_names *out) STATUS_MUST_USE;

#endif
