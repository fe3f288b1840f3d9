// Ranks that are threads of this process, each with a program, an arena and a disk of its own: what
// they hold is a function of the tensor's name and the element's number in the whole, so that
// anybody can say what any rank should have.
//
//   crew *w = crew_new(&meshes[2]);
//   crew_paint(w, 10);                  // every state has the numbers of step 10
//   crew_run(w, save_one, NULL);        // save_one(seat, NULL) on each rank's thread
//   crew_check(w, 10);                  // fails the test when an element is not right
//   crew_free(w);
#ifndef RANK_FIXTURE_H
#define RANK_FIXTURE_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/rng.h"
#include "runtime/checkpoint.h"
#include "runtime/init.h"
#include "runtime/parts.h"
#include "tests/unit/mesh_fixture.h"
#include "tests/unit/thread_engine.h"

// ---- meshes -------------------------------------------------------------------------------------

// How a mesh shares the model.
typedef struct layout {
  const char *name;
  int64_t data, stages, tensor;
  bool zero;     // optimizer states are cut over `data`
  bool masters;  // weights too, while their copies are whole
  bool odd;      // the program has one more weight
  bool small;    // and no large one
} layout;

static const layout layouts[] = {
    {.name = "one", .data = 1, .stages = 1, .tensor = 1},
    {.name = "data 3", .data = 3, .stages = 1, .tensor = 1},
    {.name = "zero 2", .data = 2, .stages = 1, .tensor = 1, .zero = true},
    {.name = "zero 4, masters", .data = 4, .stages = 1, .tensor = 1, .zero = true, .masters = true},
    {.name = "tensor 2", .data = 1, .stages = 1, .tensor = 2},
    {.name = "data 4 tensor 2", .data = 4, .stages = 1, .tensor = 2, .zero = true, .masters = true},
    {.name = "stages 3", .data = 1, .stages = 3, .tensor = 1},
    {.name = "data 2 stages 3", .data = 2, .stages = 3, .tensor = 1, .zero = true},
};
enum { LAYOUTS = sizeof layouts / sizeof *layouts, BIG = 700, BIG_COLUMNS = 1000, LAYERS = 4 };
enum { ON_DATA = 1, ON_STAGES = 2, ON_TENSOR = 4 };  // bits of the axes

// Adds a weight with its copy and optimizer states. `dim`: what `tensor` cuts, or -1.
static void add_weight(mesh *m, const layout *l, const char *name, uint32_t dtype, uint32_t rank,
                       const int64_t *dims, int dim, int64_t layers, int64_t first, uint32_t init) {
  char other[64];
  const char *const suffix[] = {"", ".bf16", ".m", ".v"};
  const uint32_t cls[] = {PROG_WEIGHT, PROG_COPY, PROG_OPTIMIZER, PROG_OPTIMIZER};
  for (int i = 0; i < 4; i++) {
    if (i == 1 && dtype != PROG_F32) continue;
    snprintf(other, sizeof other, "%s%s", name, suffix[i]);
    uint32_t type = i == 1 ? PROG_BF16 : i > 1 ? PROG_F32 : dtype;
    prog_state *s = mesh_state(m, other, i ? name : "", cls[i], type, rank, dims);
    s->layers = layers;
    s->first = first;
    if (i == 0) s->init = init, s->init_a = 0.5;
    if (dim >= 0 && l->tensor > 1) mesh_cut(m, s, ON_TENSOR, dim);
    bool flat = l->zero && (i > 1 || (i == 0 && l->masters && dtype == PROG_F32));
    if (flat && l->data > 1) mesh_cut(m, s, ON_DATA, -1);
  }
}

// The program of a stage: embedding (tied: the last stage has it too), layers, a large head.
static void model(mesh *m, const layout *l, int stage) {
  mesh_init(m, 3, (int64_t[]){l->data, l->stages, l->tensor});
  bool first = stage == 0, last = stage == l->stages - 1;
  int64_t begin = LAYERS * stage / l->stages, n = LAYERS * (stage + 1) / l->stages - begin;
  if (first || last)
    add_weight(m, l, "wte.weight", PROG_F32, 2, (int64_t[]){51, 24}, 0, 0, 0, PROG_NORMAL);
  add_weight(m, l, "h.#.mlp", PROG_F32, 2, (int64_t[]){20, 48}, 1, n, begin, PROG_UNIFORM);
  add_weight(m, l, "h.#.qkv", PROG_BF16, 3, (int64_t[]){3, 8, 10}, 1, n, begin, PROG_NORMAL);
  add_weight(m, l, "h.#.bias", PROG_F32, 1, (int64_t[]){7}, -1, n, begin, PROG_CONST);
  if (last)
    add_weight(m, l, "head", PROG_F32, 2, (int64_t[]){l->small ? 3 : BIG, BIG_COLUMNS}, 1, 0, 0,
               PROG_NORMAL);
  if (last && l->odd) add_weight(m, l, "odd", PROG_F32, 1, (int64_t[]){3}, -1, 0, 0, PROG_ZEROS);
  mesh_lay(m);
}

// ---- a disk that fails --------------------------------------------------------------------------

typedef enum fault { FAULT_NONE, FAULT_ONCE, FAULT_FULL, FAULT_CRASH } fault;

// All ranks have one disk; `rank` meets the fault, -1: everybody.
typedef struct disk {
  pthread_mutex_t lock;
  fault kind;
  int rank;
  int64_t countdown;  // calls that still work
  bool hit;
} disk;

typedef struct disk_end {
  disk *disk;
  int rank;
} disk_end;

static bool disk_fails(void *ctx, bool grows) {
  const disk_end *e = ctx;
  disk *d = e->disk;
  pthread_mutex_lock(&d->lock);
  bool mine = d->kind != FAULT_NONE && (d->rank < 0 || d->rank == e->rank);
  bool due = mine && d->countdown-- <= 0;
  bool now = due && (d->kind != FAULT_ONCE || !d->hit) && (d->kind != FAULT_FULL || grows);
  if (now) d->hit = true;
  int why = d->kind == FAULT_FULL ? ENOSPC : EIO;
  pthread_mutex_unlock(&d->lock);
  if (now) errno = why;
  return now;
}

static int disk_open(void *ctx, const char *path, int flags, unsigned mode) {
  return disk_fails(ctx, flags & O_CREAT) ? -1 : open(path, flags, mode);
}
static ssize_t disk_write(void *ctx, int fd, const void *bytes, size_t n) {
  return disk_fails(ctx, true) ? -1 : write(fd, bytes, n);
}
// (A flush that works is left out: the tests make tens of thousands.)
static int disk_fsync(void *ctx, int fd) {
  (void)fd;
  return disk_fails(ctx, true) ? -1 : 0;
}
static int disk_close(void *ctx, int fd) {
  int r = close(fd);
  return disk_fails(ctx, false) ? -1 : r;
}
static int disk_rename(void *ctx, const char *from, const char *to) {
  return disk_fails(ctx, false) ? -1 : rename(from, to);
}
static int disk_unlink(void *ctx, const char *path) {
  return disk_fails(ctx, false) ? -1 : unlink(path);
}
static int disk_mkdir(void *ctx, const char *path, unsigned mode) {
  return disk_fails(ctx, true) ? -1 : mkdir(path, mode);
}
static int disk_rmdir(void *ctx, const char *path) {
  return disk_fails(ctx, false) ? -1 : rmdir(path);
}

// ---- ranks --------------------------------------------------------------------------------------

enum { MAX_SEATS = 8 };

struct crew;
typedef struct seat {
  struct crew *crew;
  int rank;
  mesh mesh;
  pool *threads;
  vm *vm;
  comm *comm;
  disk_end end;
  file_io io;
  checkpoint c;
  pthread_t thread;
  // What a call of crew_run left.
  status *(*call)(struct seat *s, void *arg);
  void *arg;
  status *result;
  ck_state state;
  bool found;
} seat;

typedef struct crew {
  const layout *layout;
  int n;
  thread_hub *hub;
  disk disk;
  FILE *notes;
  char *text;
  size_t ntext;
  seat seats[MAX_SEATS];
} crew;

static void must(status *s) {
  if (!s) return;
  fprintf(stderr, "%s\n", s->message);
  abort();
}

static crew *crew_new(const layout *l) {
  crew *w = calloc(1, sizeof *w);
  if (!w) abort();
  w->layout = l;
  w->n = (int)(l->data * l->stages * l->tensor);
  w->hub = hub_new(w->n);
  w->notes = open_memstream(&w->text, &w->ntext);
  pthread_mutex_init(&w->disk.lock, NULL);
  for (int r = 0; r < w->n; r++) {
    seat *s = &w->seats[r];
    *s = (seat){.crew = w, .rank = r, .threads = pool_new(1), .end = {&w->disk, r}};
    model(&s->mesh, l, (int)(r / l->tensor % l->stages));
    must(vm_open(&s->mesh.prog, NULL, s->threads, &s->vm));
    if (w->n > 1) {
      comm_engine e = hub_engine(w->hub, r);
      must(comm_open_engine(&s->mesh.prog, &e, &s->comm));
    }
    s->io = (file_io){&s->end,     disk_open,   disk_write, disk_fsync, disk_close,
                      disk_rename, disk_unlink, disk_mkdir, disk_rmdir};
    s->c = (checkpoint){&s->mesh.prog, s->vm, &s->io, w->notes, s->comm};
  }
  return w;
}

static void *seat_thread(void *arg) {
  seat *s = arg;
  s->result = s->call(s, s->arg);
  return NULL;
}

// Runs a call on every rank's thread. All succeed, or all fail with the same message, which the
// caller frees.
static status *crew_run(crew *w, status *(*call)(seat *s, void *arg), void *arg) {
  for (int r = 0; r < w->n; r++) {
    seat *s = &w->seats[r];
    s->call = call;
    s->arg = arg;
    if (pthread_create(&s->thread, NULL, seat_thread, s)) abort();
  }
  for (int r = 0; r < w->n; r++) pthread_join(w->seats[r].thread, NULL);
  status *first = w->seats[0].result;
  for (int r = 1; r < w->n; r++) {
    status *other = w->seats[r].result;
    if (!first != !other || (first && strcmp(first->message, other->message) != 0))
      fail_msg("rank 0: %s\nrank %d: %s", first ? first->message : "good", r,
               other ? other->message : "good");
    if (first) assert_int_equal(first->exit_code, other->exit_code);
    status_free(other);
  }
  return first;
}

static status *close_one(seat *s, void *arg) {
  (void)arg;
  comm_close(s->comm);
  return NULL;
}

static void crew_free(crew *w) {
  status_free(crew_run(w, close_one, NULL));
  for (int r = 0; r < w->n; r++) {
    vm_close(w->seats[r].vm);
    pool_free(w->seats[r].threads);
  }
  hub_free(w->hub);
  fclose(w->notes);
  free(w->text);
  free(w);
}

// ---- what they hold -----------------------------------------------------------------------------

static uint64_t value_key(const char *name, int64_t step) {
  return rng_key((uint64_t)step, base_hash(name, strlen(name), 1));
}

// Element i of a tensor at a step, as it lies in memory; a float that bf16 must round.
static void value_of(uint64_t key, int64_t i, uint32_t dtype, void *out) {
  float x = (float)((int64_t)(rng_bits(key, (uint64_t)i) >> 42) - (1 << 21)) * 0x1p-12f;
  dtype_convert(out, dtype, &x, PROG_F32, 1);
}

typedef void visit_fn(void *ctx, const seat *s, const prog_state *st, const char *name,
                      const part *t, unsigned char *at);

// All slices of all ranks; copies under the names of their weights.
static void crew_visit(crew *w, visit_fn *visit, void *ctx) {
  char name[256];
  for (int r = 0; r < w->n; r++) {
    seat *s = &w->seats[r];
    const prog *p = &s->mesh.prog;
    for (uint32_t i = 0; i < p->nstates; i++) {
      const prog_state *st = &p->states[i];
      const prog_state *named = st->cls == PROG_COPY ? prog_weight_of(p, st) : st;
      part t = part_of(p, r, st);
      for (int64_t k = 0; k < prog_state_slices(st); k++)
        visit(ctx, s, st, init_state_name(p, named, k, name, sizeof name), &t,
              vm_at(s->vm, st->offset + k * st->layer_stride));
    }
  }
}

static void paint_one(void *ctx, const seat *s, const prog_state *st, const char *name,
                      const part *t, unsigned char *at) {
  const int64_t *step = ctx;
  int unit = dtype_of(st->dtype)->bytes;
  uint64_t key = value_key(name, *step);
  (void)s;
  // Padding is painted too: nobody may take it for elements.
  memset(at, 0x55, (size_t)(t->held * unit));
  for (int64_t i = 0; *step >= 0 && i < part_elements(t); i++)
    value_of(key, part_global(t, i), st->dtype, at + i * unit);
}

// Gives all elements their values at a step; step -1: rubbish.
static void crew_paint(crew *w, int64_t step) { crew_visit(w, paint_one, &step); }

static void check_one(void *ctx, const seat *s, const prog_state *st, const char *name,
                      const part *t, unsigned char *at) {
  const int64_t *step = ctx;
  int unit = dtype_of(st->dtype)->bytes;
  int64_t n = part_elements(t);
  uint64_t key = value_key(name, *step);
  unsigned char want[8] = {0};
  for (int64_t i = 0; i < t->held; i++) {
    if (i < n)
      value_of(key, part_global(t, i), st->dtype, want);
    else
      memset(want, 0, sizeof want);
    if (memcmp(want, at + i * unit, (size_t)unit) != 0)
      fail_msg("%s rank %d: %s (class %u), element %lld of %lld (%lld) is not that of step %lld",
               s->crew->layout->name, s->rank, name, st->cls, (long long)i, (long long)t->held,
               (long long)part_global(t, i), (long long)*step);
  }
}

// Fails unless all ranks have the values of a step, copies their roundings, and zeros for padding.
static void crew_check(crew *w, int64_t step) { crew_visit(w, check_one, &step); }

#endif
