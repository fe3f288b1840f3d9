// What share of each processor this machine really gives: a hypervisor may take a core away for
// milliseconds at a time, and nothing in the guest tells. A thread on each processor reads the
// cycle counter without pause; a step of it much longer than the loop means that the thread stood
// still.
//
//   gcc -O2 -pthread bench/share.c -o share && ./share 0.5      prints the smallest share
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { MOST = 256, GAP_CYCLES = 20000 };

typedef struct watcher {
  int cpu;
  double seconds, share;
} watcher;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *watch(void *p) {
  watcher *w = p;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET((size_t)w->cpu, &one);
  if (sched_setaffinity(0, sizeof one, &one)) return NULL;  // not ours: its share stays 1
  double end = now() + w->seconds;
  uint64_t first = __rdtsc(), last = first, gone = 0;
  while (now() < end)
    for (int i = 0; i < 1024; i++) {
      uint64_t t = __rdtsc();
      if (t - last > GAP_CYCLES) gone += t - last;
      last = t;
    }
  w->share = 1 - (double)gone / (double)(last - first);
  return NULL;
}

int main(int argc, char **argv) {
  static watcher w[MOST];
  static pthread_t thread[MOST];
  int n = (int)sysconf(_SC_NPROCESSORS_ONLN);
  if (n > MOST) n = MOST;
  for (int i = 0; i < n; i++) {
    w[i] = (watcher){i, argc > 1 ? atof(argv[1]) : 0.5, 1};
    if (pthread_create(&thread[i], NULL, watch, &w[i])) return 1;
  }
  double least = 1;
  for (int i = 0; i < n; i++) {
    pthread_join(thread[i], NULL);
    if (w[i].share < least) least = w[i].share;
  }
  printf("%.3f\n", least);
  return 0;
}
