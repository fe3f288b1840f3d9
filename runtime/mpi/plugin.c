// Open MPI behind comm_engine.h. The only file that includes mpi.h.
//
// It is a shared object of its own, whose bytes travel in the runtime (comm_mpi.c): an executable
// needs libmpi only when its program has several ranks and it is started. All messages go through a
// communicator of ours, so nothing else in the process can meet them.
//
// DSM_LINK_DELAY="intra=SECONDS[/BYTES_PER_S],inter=SECONDS[/BYTES_PER_S]:NODE_RANKS", the same on
// all ranks of one machine, makes links slow, to see what a cluster would do: ranks i and j are in
// one node when i / NODE_RANKS == j / NODE_RANKS. A message to another rank then has a head with
// the time from which on its receiver may see it: when the link is through with it and with those
// that this rank gave it before (bytes / rate), and the seconds later.
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/comm_engine.h"

// MPI counts bytes in an int.
#define LARGEST ((size_t)1 << 30)

// A message with its head, where links are slow.
typedef struct late {
  unsigned char *bytes;  // NULL: links are as they are
  unsigned char *to;     // of a receive: where the message belongs
  bool here;             // received, and not due yet
} late;

typedef struct lane {
  MPI_Request *request;
  int *bytes;  // that a receive waits for; -1: a send
  late *late;
  int n, cap;
} lane;

typedef struct delay {
  double seconds, rate;  // rate 0: any number of bytes at once
} delay;

typedef struct engine {
  MPI_Comm world;
  lane *lanes;
  int nlanes;
  int node_ranks;    // 0: links are as they are
  delay link[2];     // within a node, between nodes
  int64_t *free_at;  // by peer: when the link to it is through with what it was given
  int rank;
  char text[MPI_MAX_ERROR_STRING + 128];
} engine;

static const char *failure(engine *e, int code, const char *what) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int n = 0;
  MPI_Error_string(code, text, &n);
  snprintf(e->text, sizeof e->text, "%s failed: %.*s", what, n, text);
  return e->text;
}

// Room for one more request.
static bool grow(lane *l) {
  if (l->n < l->cap) return true;
  int cap = l->cap ? 2 * l->cap : 16;
  MPI_Request *request = realloc(l->request, (size_t)cap * sizeof *request);
  if (request) l->request = request;
  int *bytes = realloc(l->bytes, (size_t)cap * sizeof *bytes);
  if (bytes) l->bytes = bytes;
  late *late_ones = realloc(l->late, (size_t)cap * sizeof *late_ones);
  if (late_ones) l->late = late_ones;
  if (!request || !bytes || !late_ones) return false;
  l->cap = cap;
  return true;
}

// ---- slow links ---------------------------------------------------------------------------------

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool read_delay(const char *text, const char *name, delay *out) {
  const char *at = strstr(text, name);
  char *end;
  if (!at) return true;
  out->seconds = strtod(at + strlen(name), &end);
  if (*end == '/') out->rate = strtod(end + 1, &end);
  return out->seconds >= 0 && out->rate >= 0 && (*end == ',' || *end == ':');
}

static const char *read_delays(engine *e, int ranks) {
  const char *text = getenv("DSM_LINK_DELAY"), *colon = text ? strrchr(text, ':') : NULL;
  if (!text || !*text) return NULL;
  e->node_ranks = colon ? atoi(colon + 1) : 0;
  if (e->node_ranks < 1 || !read_delay(text, "intra=", &e->link[0]) ||
      !read_delay(text, "inter=", &e->link[1]))
    return "DSM_LINK_DELAY is written intra=SECONDS/RATE,inter=SECONDS/RATE:NODE_RANKS";
  e->free_at = calloc((size_t)ranks, sizeof *e->free_at);
  return e->free_at ? NULL : "out of memory";
}

// When `to` may see n bytes that are sent now.
static int64_t due_at(engine *e, int to, int n) {
  const delay *d = &e->link[to / e->node_ranks != e->rank / e->node_ranks];
  int64_t begin = now_ns();
  if (e->free_at[to] > begin) begin = e->free_at[to];
  e->free_at[to] = begin + (int64_t)(d->rate > 0 ? 1e9 * n / d->rate : 0);
  return e->free_at[to] + (int64_t)(1e9 * d->seconds);
}

enum { HEAD = sizeof(int64_t) };

// The bytes to post instead; NULL: memory is out.
static unsigned char *with_head(engine *e, bool sends, int peer, unsigned char *at, int n,
                                late *out) {
  *out = (late){.bytes = malloc((size_t)n + HEAD), .to = at};
  if (out->bytes && sends) {
    int64_t due = due_at(e, peer, n);
    memcpy(out->bytes, &due, HEAD);
    memcpy(out->bytes + HEAD, at, (size_t)n);
  }
  return out->bytes;
}

// Whether a received message may be seen now; then it is put where it belongs.
static bool seen(late *l, int bytes) {
  int64_t due;
  if (!l->bytes) return true;
  memcpy(&due, l->bytes, HEAD);
  l->here = now_ns() < due;
  if (!l->here) memcpy(l->to, l->bytes + HEAD, (size_t)bytes - HEAD);
  return !l->here;
}

// ---- messages -----------------------------------------------------------------------------------

static const char *post(engine *e, bool sends, int number, int peer, int tag, unsigned char *at,
                        size_t n) {
  lane *l = &e->lanes[number];
  if (peer == COMM_ANY) peer = MPI_ANY_SOURCE;
  for (size_t done = 0; done < n;) {
    int part = (int)(n - done < LARGEST ? n - done : LARGEST);
    if (!grow(l)) return "out of memory";
    MPI_Request *r = &l->request[l->n];
    unsigned char *bytes = at + done;
    l->late[l->n] = (late){0};
    if (e->node_ranks && !(bytes = with_head(e, sends, peer, bytes, part, &l->late[l->n])))
      return "out of memory";
    done += (size_t)part;
    if (e->node_ranks) part += HEAD;
    int code = sends ? MPI_Isend(bytes, part, MPI_BYTE, peer, tag, e->world, r)
                     : MPI_Irecv(bytes, part, MPI_BYTE, peer, tag, e->world, r);
    if (code != MPI_SUCCESS) return failure(e, code, sends ? "MPI_Isend" : "MPI_Irecv");
    l->bytes[l->n++] = sends ? -1 : part;
  }
  return NULL;
}

static const char *engine_send(void *ctx, int number, int to, int tag, const void *at, size_t n) {
  return post(ctx, true, number, to, tag, (unsigned char *)(uintptr_t)at, n);
}

static const char *engine_receive(void *ctx, int number, int from, int tag, void *at, size_t n) {
  return post(ctx, false, number, from, tag, at, n);
}

// Requests that are over leave the lane.
static const char *engine_test(void *ctx, int number, bool *done) {
  engine *e = ctx;
  lane *l = &e->lanes[number];
  int kept = 0;
  const char *failed = NULL;
  for (int i = 0; i < l->n; i++) {
    int over = l->late[i].here, count = 0;
    MPI_Status status;
    int code = failed || over ? MPI_SUCCESS : MPI_Test(&l->request[i], &over, &status);
    if (code != MPI_SUCCESS) failed = failure(e, code, "MPI_Test");
    if (over && l->bytes[i] >= 0 && !l->late[i].here) {
      MPI_Get_count(&status, MPI_BYTE, &count);
      if (count != l->bytes[i]) failed = "a message has another length than was expected";
    }
    if (over && !failed && l->bytes[i] >= 0) over = seen(&l->late[i], l->bytes[i]);
    if (over) {
      free(l->late[i].bytes);
      continue;
    }
    l->late[kept] = l->late[i];
    l->request[kept] = l->request[i];
    l->bytes[kept++] = l->bytes[i];
  }
  l->n = kept;
  *done = kept == 0;
  return failed;
}

static void engine_abort(void *ctx, int exit_code) {
  engine *e = ctx;
  MPI_Abort(e->world, exit_code);
}

static void engine_leave(void *ctx, int exit_code) {
  (void)ctx;
  _exit(exit_code);  // not through MPI_Finalize, which waits for the others
}

static void engine_close(void *ctx) {
  engine *e = ctx;
  for (int i = 0; i < e->nlanes; i++) {
    lane *l = &e->lanes[i];
    for (int k = 0; k < l->n; k++) {
      if (l->late[k].here) continue;
      if (l->bytes[k] >= 0) MPI_Cancel(&l->request[k]);
      MPI_Request_free(&l->request[k]);
    }
    free(l->request);
    free(l->bytes);
    free(l->late);  // messages on their way still have their bytes
  }
  free(e->free_at);
  MPI_Comm_free(&e->world);
  MPI_Finalize();
  free(e->lanes);
  free(e);
}

comm_plugin dsm_comm_plugin;

const char *dsm_comm_plugin(int version, int lanes, comm_engine *out) {
  if (version != COMM_ENGINE_VERSION) return "the plugin is of another version";
  int level = 0;
  if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level) != MPI_SUCCESS)
    return "MPI_Init_thread failed";
  if (level < MPI_THREAD_SERIALIZED) return "this MPI cannot be used from several threads";
  engine *e = calloc(1, sizeof *e);
  if (e) e->lanes = calloc((size_t)lanes, sizeof *e->lanes);
  if (!e || !e->lanes) {
    free(e);
    return "out of memory";
  }
  e->nlanes = lanes;
  if (MPI_Comm_dup(MPI_COMM_WORLD, &e->world) != MPI_SUCCESS) return "MPI_Comm_dup failed";
  MPI_Comm_set_errhandler(e->world, MPI_ERRORS_RETURN);
  *out = (comm_engine){.ctx = e,
                       .send = engine_send,
                       .receive = engine_receive,
                       .test = engine_test,
                       .abort = engine_abort,
                       .leave = engine_leave,
                       .close = engine_close};
  MPI_Comm_rank(e->world, &out->rank);
  MPI_Comm_size(e->world, &out->ranks);
  e->rank = out->rank;
  const char *messages = getenv("DSM_MESSAGES"), *bad = read_delays(e, out->ranks);
  out->direct = !e->node_ranks && !(messages && strcmp(messages, "1") == 0);
  return bad;
}
