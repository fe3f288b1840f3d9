// One bit of a file, turned over: what a disk or a copy may do to a checkpoint.
#ifndef FLIP_H
#define FLIP_H

#include <fcntl.h>
#include <unistd.h>

static inline void flip(const char *path, off_t at, int bit) {
  int fd = open(path, O_RDWR);
  unsigned char c;
  assert_int_equal(pread(fd, &c, 1, at), 1);
  c ^= (unsigned char)(1 << bit);
  assert_int_equal(pwrite(fd, &c, 1, at), 1);
  close(fd);
}

#endif
