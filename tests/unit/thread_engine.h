// An engine of ranks that are threads of one process.
//
// A message is copied when both sides have asked for it, not before, so a sender whose peer does
// not receive waits, as it does with MPI for large messages; and what is touched too early shows.
//
//   thread_hub *h = hub_new(4);
//   comm_engine e = hub_engine(h, rank);   // in each thread
//   ...                                           // comm_open_engine, comm_close
//   hub_free(h);
#ifndef THREAD_ENGINE_H
#define THREAD_ENGINE_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/comm_engine.h"

enum { HUB_REQUESTS = 4096, HUB_RANKS = 16, HUB_LANES = 256 };

typedef struct hub_request {
  bool used, sends;
  int rank, peer, tag, lane;
  unsigned char *at;
  size_t n;
  unsigned long order;
} hub_request;

typedef struct thread_hub {
  pthread_mutex_t lock;
  hub_request request[HUB_REQUESTS];
  int top;  // all used ones lie below
  int open[HUB_RANKS][HUB_LANES];
  int ranks;
  unsigned long next;
  const char *failed;
  int aborted;  // exit code + 1
  bool direct;  // its engines' choice, false at first

} thread_hub;

typedef struct hub_end {
  thread_hub *hub;
  int rank;
} hub_end;

static bool hub_meets(const hub_request *s, const hub_request *r) {
  return s->used && r->used && s->sends && !r->sends && s->peer == r->rank && s->tag == r->tag &&
         (r->peer == COMM_ANY || r->peer == s->rank);
}

// Finds the oldest partner of a new request and copies.
static void hub_match(thread_hub *h, hub_request *a) {
  hub_request *best = NULL;
  for (int i = 0; i < h->top; i++) {
    hub_request *b = &h->request[i];
    if (!hub_meets(a->sends ? a : b, a->sends ? b : a)) continue;
    if (!best || b->order < best->order) best = b;
  }
  if (!best) return;
  hub_request *s = a->sends ? a : best, *r = a->sends ? best : a;
  if (s->n != r->n) {
    h->failed = "a message has another length than was expected";
    return;
  }
  memcpy(r->at, s->at, s->n);
  h->open[s->rank][s->lane]--;
  h->open[r->rank][r->lane]--;
  s->used = r->used = false;
}

static const char *hub_post(hub_end *e, bool sends, int lane, int peer, int tag, void *at,
                            size_t n) {
  thread_hub *h = e->hub;
  pthread_mutex_lock(&h->lock);
  int i = 0;
  // After a failure memory of messages may be gone.
  if (h->failed) {
    pthread_mutex_unlock(&h->lock);
    return h->failed;
  }
  while (i < h->top && h->request[i].used) i++;
  if (i == HUB_REQUESTS || lane >= HUB_LANES) {
    h->failed = "too many messages";
  } else {
    if (i == h->top) h->top++;
    h->request[i] = (hub_request){true, sends, e->rank, peer, tag, lane, at, n, h->next++};
    h->open[e->rank][lane]++;
    hub_match(h, &h->request[i]);
  }
  const char *failed = h->failed;
  pthread_mutex_unlock(&h->lock);
  return failed;
}

static const char *hub_send(void *ctx, int lane, int to, int tag, const void *at, size_t n) {
  return hub_post(ctx, true, lane, to, tag, (void *)(uintptr_t)at, n);
}

static const char *hub_receive(void *ctx, int lane, int from, int tag, void *at, size_t n) {
  return hub_post(ctx, false, lane, from, tag, at, n);
}

static const char *hub_test(void *ctx, int lane, bool *done) {
  hub_end *e = ctx;
  pthread_mutex_lock(&e->hub->lock);
  *done = e->hub->open[e->rank][lane] == 0;
  const char *failed = e->hub->failed;
  pthread_mutex_unlock(&e->hub->lock);
  return failed;
}

static void hub_abort(void *ctx, int exit_code) {
  hub_end *e = ctx;
  pthread_mutex_lock(&e->hub->lock);
  if (!e->hub->aborted) e->hub->aborted = exit_code + 1;
  e->hub->failed = "aborted";
  pthread_mutex_unlock(&e->hub->lock);
}

// Requests that nobody met are forgotten with the rank.
static void hub_close(void *ctx) {
  hub_end *e = ctx;
  thread_hub *h = e->hub;
  pthread_mutex_lock(&h->lock);
  for (int i = 0; i < h->top; i++)
    if (h->request[i].rank == e->rank) h->request[i].used = false;
  pthread_mutex_unlock(&h->lock);
  free(e);
}

__attribute__((unused)) static thread_hub *hub_new(int ranks) {
  thread_hub *h = calloc(1, sizeof *h);
  if (!h) abort();
  pthread_mutex_init(&h->lock, NULL);
  h->ranks = ranks;
  return h;
}

__attribute__((unused)) static void hub_free(thread_hub *h) {
  pthread_mutex_destroy(&h->lock);
  free(h);
}

__attribute__((unused)) static comm_engine hub_engine(thread_hub *h, int rank) {
  hub_end *e = malloc(sizeof *e);
  if (!e) abort();
  *e = (hub_end){h, rank};
  return (comm_engine){e,           rank,     h->ranks,  h->direct, hub_send,
                       hub_receive, hub_test, hub_abort, hub_abort, hub_close};
}

#endif
