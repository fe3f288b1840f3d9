// Time that only goes forward.
#ifndef DSM_BASE_CLOCK_H
#define DSM_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

// CLOCK_MONOTONIC in nanoseconds.
static inline int64_t clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static inline double clock_s(void) { return 1e-9 * (double)clock_ns(); }  // in seconds

#endif
