// Open MPI behind comm_engine.h. The only file that includes mpi.h.
//
// It is a shared object of its own, whose bytes travel in the runtime (comm_mpi.c): an executable
// needs libmpi only when its program has several ranks and it is started. All messages go through a
// communicator of ours, so nothing else in the process can meet them.
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/comm_engine.h"

// MPI counts bytes in an int.
#define LARGEST ((size_t)1 << 30)

typedef struct lane {
  MPI_Request *request;
  int *bytes;  // that a receive waits for; -1: a send
  int n, cap;
} lane;

typedef struct engine {
  MPI_Comm world;
  lane *lanes;
  int nlanes;
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
  if (!request || !bytes) return false;
  l->cap = cap;
  return true;
}

static const char *post(engine *e, bool sends, int number, int peer, int tag, unsigned char *at,
                        size_t n) {
  lane *l = &e->lanes[number];
  if (peer == COMM_ANY) peer = MPI_ANY_SOURCE;
  for (size_t done = 0; done < n;) {
    int part = (int)(n - done < LARGEST ? n - done : LARGEST);
    if (!grow(l)) return "out of memory";
    MPI_Request *r = &l->request[l->n];
    int code = sends ? MPI_Isend(at + done, part, MPI_BYTE, peer, tag, e->world, r)
                     : MPI_Irecv(at + done, part, MPI_BYTE, peer, tag, e->world, r);
    if (code != MPI_SUCCESS) return failure(e, code, sends ? "MPI_Isend" : "MPI_Irecv");
    l->bytes[l->n++] = sends ? -1 : part;
    done += (size_t)part;
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
    int over = 0, count = 0;
    MPI_Status status;
    int code = failed ? MPI_SUCCESS : MPI_Test(&l->request[i], &over, &status);
    if (code != MPI_SUCCESS) failed = failure(e, code, "MPI_Test");
    if (over && l->bytes[i] >= 0) {
      MPI_Get_count(&status, MPI_BYTE, &count);
      if (count != l->bytes[i]) failed = "a message has another length than was expected";
    }
    if (over) continue;
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
      if (l->bytes[k] >= 0) MPI_Cancel(&l->request[k]);
      MPI_Request_free(&l->request[k]);
    }
    free(l->request);
    free(l->bytes);
  }
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
  return NULL;
}
