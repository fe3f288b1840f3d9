// How fast this machine's processors add just now. Neighbours of a virtual machine may share the
// units of a core without taking it away: nothing in the guest tells, but all that it does takes up
// to twice as long. A thread on each processor times short runs of additions, all at the same time.
//
//   gcc -O2 -pthread bench/rate.c -o rate && ./rate 0.1     prints ns a run, of the slowest
//                                                           processor: the mean, and the best run
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 256, TURNS = 20000 };

typedef struct worker {
  int cpu;
  double seconds, mean, best;
} worker;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *work(void *p) {
  worker *w = p;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET((size_t)w->cpu, &one);
  pthread_setaffinity_np(pthread_self(), sizeof one, &one);
  uint64_t a = 1, b = 2, c = 3, d = 4;
  double begin = now(), end = begin;
  int runs = 0;
  w->best = 1e9;
  while (end - begin < w->seconds) {
    double start = end;
    for (int i = 0; i < TURNS; i++) {
      a += 3, b += 5, c += 7, d += 9;
      __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
    }
    end = now();
    runs++;
    if (1e9 * (end - start) < w->best) w->best = 1e9 * (end - start);
  }
  w->mean = 1e9 * (end - begin) / runs;
  return NULL;
}

int main(int argc, char **argv) {
  worker w[MOST];
  pthread_t thread[MOST];
  cpu_set_t allowed;
  int n = 0;
  sched_getaffinity(0, sizeof allowed, &allowed);
  for (int cpu = 0; cpu < MOST; cpu++)
    if (CPU_ISSET((size_t)cpu, &allowed))
      w[n++] = (worker){cpu, argc > 1 ? atof(argv[1]) : 0.1, 0, 0};
  for (int i = 0; i < n; i++)
    if (pthread_create(&thread[i], NULL, work, &w[i])) return 1;
  worker slowest = {0};
  for (int i = 0; i < n; i++) {
    pthread_join(thread[i], NULL);
    if (w[i].mean > slowest.mean) slowest = w[i];
  }
  printf("%.0f %.0f\n", slowest.mean, slowest.best);
  return 0;
}
