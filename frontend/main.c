// dsmc: from the command line to a verb.
//
// All memory of a run is one arena. When memory runs out the arena's handler comes back here, so
// that every verb may allocate without checking and the user still gets one line and exit code 1.
// Tests make the n-th request for memory fail with DSMC_TEST_FAIL_AT=n, and dsmc itself with
// DSMC_TEST_CRASH.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "frontend/cli.h"
#include "frontend/crash.h"

static void out_of_memory(void *ctx) { longjmp(*(jmp_buf *)ctx, 1); }

// A function of its own so that nothing that longjmp could clobber lives in its frame.
static int guarded(arena *a, jmp_buf *back, int argc, char **argv) {
  if (setjmp(*back)) {
    fputs("dsmc: error: out of memory\n", stderr);
    return EXIT_INPUT;
  }
  cli c;
  int rc = cli_parse(&c, a, argc, argv);
  if (rc < 0 && getenv("DSMC_TEST_CRASH")) abort();
  return rc < 0 ? cli_run(&c) : rc;
}

// Scratch arenas come and go by the megabyte: what they give back is kept for the next one, else
// the system clears the same pages again and again (a seventh of a search over unlike layers).
static void keep_pages(void) {
#ifdef __GLIBC__
  enum { KEPT = 256 << 20, MAPPED = 32 << 20 };
  mallopt(M_TRIM_THRESHOLD, KEPT);
  mallopt(M_MMAP_THRESHOLD, MAPPED);
#endif
}

int main(int argc, char **argv) {
  crash_install();
  keep_pages();
  jmp_buf back;
  arena a;
  arena_init(&a);
  a.oom = out_of_memory;
  a.oom_ctx = &back;
  const char *fail_at = getenv("DSMC_TEST_FAIL_AT");
  if (fail_at) {
    a.min_chunk = 64;  // so that nearly every allocation is a request
    a.fail_at = strtoull(fail_at, NULL, 10);
  }
  int rc = guarded(&a, &back, argc, argv);
  arena_free(&a);
  // A result that could not be written is no result.
  if (fflush(stdout) != 0 && rc == EXIT_GOOD) {
    perror("dsmc: error: cannot write");
    rc = EXIT_INPUT;
  }
  return rc;
}
