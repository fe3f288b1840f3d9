// What memory gives when it is only read: the ceiling of decoding, which reads every weight once a
// token. Each thread, on a processor of its own, sums its part of a buffer far larger than the
// caches, as 1, 2, 4 or 8 streams side by side. Rounds over all of these are repeated for the given
// seconds, because neighbours on the same machine take bandwidth for seconds at a time.
//
//   gcc -O3 -march=native -pthread bench/read.c -o read && ./read 1 2
//   49.8 1            the best, in GB/s, and its streams a thread; here 1 second, 2 threads
//   ./read 0.06 2 -   measures once for each line that comes in
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define BYTES ((size_t)256 << 20)
#define HUGE ((size_t)2 << 20)
#define LINE 16  // floats
enum { MOST = 64 };

typedef float line __attribute__((vector_size(4 * LINE)));

typedef struct reader {
  int cpu, threads;
  const float *from;
  double seconds;
  pthread_barrier_t *together;
  bool *stop;
  double best;
  int streams;
  volatile float sink;  // so that the sums are wanted
} reader;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// `streams` is a constant where this is inlined.
static inline __attribute__((always_inline)) float sum(const float *x, size_t n, int streams) {
  line acc[8] = {{0}};
  size_t each = n / (size_t)streams;
  for (size_t i = 0; i < each; i += 4 * LINE)
    for (int s = 0; s < streams; s++)
      for (size_t u = 0; u < 4 * LINE; u += LINE)
        acc[s] += *(const line *)(const void *)(x + (size_t)s * each + i + u);
  for (int s = 1; s < streams; s++) acc[0] += acc[s];
  return acc[0][0];
}

static float read_part(const float *x, size_t n, int streams) {
  switch (streams) {
    case 1: return sum(x, n, 1);
    case 2: return sum(x, n, 2);
    case 4: return sum(x, n, 4);
    default: return sum(x, n, 8);
  }
}

static void *work(void *p) {
  reader *r = p;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET((size_t)r->cpu, &one);
  sched_setaffinity(0, sizeof one, &one);
  size_t n = BYTES / 4 / (size_t)r->threads / (32 * LINE) * (32 * LINE);
  double end = now() + r->seconds;
  for (;;) {
    for (int streams = 1; streams <= 8; streams *= 2) {
      pthread_barrier_wait(r->together);
      double t = now();
      r->sink = read_part(r->from + n * (size_t)r->cpu, n, streams);
      pthread_barrier_wait(r->together);
      double gbs = (double)n * 4 * r->threads / (now() - t) * 1e-9;
      if (gbs > r->best) r->best = gbs, r->streams = streams;
    }
    // All stop after the same round: the first thread says when.
    if (r->cpu == 0) *r->stop = now() > end;
    pthread_barrier_wait(r->together);
    if (*r->stop) return NULL;
  }
}

static void measure(const float *x, int threads, double seconds) {
  pthread_barrier_t together;
  pthread_barrier_init(&together, NULL, (unsigned)threads);
  bool stop = false;
  reader r[MOST];
  pthread_t thread[MOST];
  for (int i = 0; i < threads; i++) {
    r[i] = (reader){.cpu = i,
                    .threads = threads,
                    .from = x,
                    .seconds = seconds,
                    .together = &together,
                    .stop = &stop};
    if (pthread_create(&thread[i], NULL, work, &r[i])) exit(1);
  }
  for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL);
  printf("%.1f %d\n", r[0].best, r[0].streams);
  fflush(stdout);
}

int main(int argc, char **argv) {
  double seconds = argc > 1 ? atof(argv[1]) : 1;
  int threads = argc > 2 ? atoi(argv[2]) : 2;
  if (threads < 1 || threads > MOST) return 1;
  char *map = mmap(NULL, BYTES + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return 1;
  float *x = (float *)(void *)(((uintptr_t)map + HUGE - 1) / HUGE * HUGE);
  madvise(x, BYTES, MADV_HUGEPAGE);
  for (size_t i = 0; i < BYTES / 4; i++) x[i] = (float)(i & 7);
  bool serve = argc > 3;
  do {
    if (serve && getchar() == EOF) return 0;
    measure(x, threads, seconds);
  } while (serve);
  return 0;
}
