#include "runtime/vm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/str.h"
#include "runtime/cuda.h"
#include "runtime/dtype.h"
#include "runtime/external.h"
#include "runtime/parts.h"
#include "runtime/stream.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define BLOCK ((int64_t)256 << 10)  // bytes of one cell of zero and copy
// A kernel below both is done within two or three microseconds: about what it takes to share it
// with another thread and to wait for that one. Decoding has a hundred of them a token.
#define ALONE_BYTES (64 << 10)
#define ALONE_FLOPS 1e5

struct vm {
  const prog *prog;
  const unsigned char *code;
  pool *threads;
  external *library;  // NULL: the program needs none
  cuda *gpu;          // NULL: the host executes the program
  comm *comm;         // NULL: one rank
  stream *second;     // does what the host's order puts on its second queue; NULL: nothing
  int64_t coord[PROG_MAX_AXES];
  status *failed;        // the first exchange of the running call that failed
  unsigned char *arena;  // of the host; the mirror of a GPU's
  void *map;
  size_t map_bytes;
  int file;                     // that `map` is of, for ranks of this machine; -1: none
  unsigned char **buf;          // operands of the running instruction, in `arena`
  unsigned char **home;         // the same where they are at home
  const double *replay;         // seconds of each instruction instead of computing; NULL: computes
  int64_t busy;                 // replay: until when kernels take the time
  bool shows;                   // to the observer what was written
  const vm_observer *observer;  // NULL: nobody looks on
};

static uint64_t read_number(const char *path, const char *key) {
  FILE *f = fopen(path, "re");
  if (!f) return 0;
  char line[256];
  unsigned long long v = 0;
  while (fgets(line, sizeof line, f)) {
    if (!str_starts(line, key)) continue;
    if (sscanf(line + strlen(key), "%llu", &v) == 1) break;
  }
  fclose(f);
  return v;
}

uint64_t vm_available_bytes(void) {
  uint64_t free_bytes = read_number("/proc/meminfo", "MemAvailable:") * 1024;
  // A container's limit, whichever cgroup version shows it here; "max" reads as 0.
  const char *const limits[] = {"/sys/fs/cgroup/memory.max",
                                "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
  const char *const used[] = {"/sys/fs/cgroup/memory.current",
                              "/sys/fs/cgroup/memory/memory.usage_in_bytes"};
  const char *const stat[] = {"/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"};
  // Counted as used: what is given back, but for what is part of it and is not.
  const char *const cache[] = {"file ", "total_cache "};
  const char *const kept[] = {"shmem ", "total_shmem "};
  for (int i = 0; i < 2; i++) {
    uint64_t limit = read_number(limits[i], ""), now = read_number(used[i], "");
    if (limit == 0) continue;
    uint64_t files = read_number(stat[i], cache[i]), memory = read_number(stat[i], kept[i]);
    files = files > memory ? files - memory : 0;
    now = now > files ? now - files : 0;
    uint64_t rest = limit > now ? limit - now : 1;
    if (free_bytes == 0 || rest < free_bytes) free_bytes = rest;
  }
  return free_bytes;
}

// Bytes of the mirror that drivers touch: states and what goes in and out.
static uint64_t mirror_bytes(const prog *p) {
  uint64_t n = p->header->states_bytes;
  for (uint32_t i = 0; i < p->nios; i++) n += (uint64_t)p->ios[i].bytes;
  return n < p->header->arena_bytes ? n : p->header->arena_bytes;
}

// Memory that other ranks can map too, when there are others; *file -1: it is this process's alone.
static void *get_memory(size_t bytes, int flags, bool shared, int *file) {
  void *at = MAP_FAILED;
  *file = shared ? memfd_create("dsm-arena", MFD_CLOEXEC) : -1;
  if (*file >= 0 && ftruncate(*file, (off_t)bytes) == 0)
    at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *file, 0);
  if (at != MAP_FAILED) return at;
  if (*file >= 0) close(*file);
  *file = -1;
  at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return at == MAP_FAILED ? NULL : at;
}

status *vm_open(const prog *p, const unsigned char *code, pool *threads, vm **out) {
  *out = NULL;
  bool host = p->header->machine == PROG_HOST;
  uint64_t whole = p->header->arena_bytes, need = host ? whole : mirror_bytes(p);
  uint64_t have = vm_available_bytes();
  if (have && need > have)
    return status_exit(3, "the program needs %.2f GiB of memory, this machine has %.2f GiB free",
                       (double)need / 0x1p30, (double)have / 0x1p30);
  vm *m = calloc(1, sizeof *m);
  if (!m) return status_error("out of memory");
  m->file = -1;
  m->prog = p;
  m->code = code;
  m->threads = threads;
  status *missing = external_open(p, pool_threads(threads), &m->library);
  if (missing) {
    vm_close(m);
    return missing;
  }
  m->buf = calloc(p->max_operands + 1u, sizeof *m->buf);
  m->home = calloc(p->max_operands + 1u, sizeof *m->home);
  // One page more than needed lets the arena start on a huge page.
  m->map_bytes = ((size_t)whole + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE + HUGE_PAGE;
  if (host && comm_program_ranks(p) > 1) m->map_bytes += comm_shared_bytes(p);
  // Of a mirror only a part is ever touched, so it need not be there in full.
  m->map = get_memory(m->map_bytes, host ? 0 : MAP_NORESERVE, host && comm_program_ranks(p) > 1,
                      &m->file);
  if (!m->buf || !m->home || !m->map) {
    status *s = status_errno("cannot get %.2f GiB of memory", (double)need / 0x1p30);
    vm_close(m);
    return s;
  }
  uintptr_t at = ((uintptr_t)m->map + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  m->arena = (unsigned char *)at;
  if (host) madvise(m->arena, (size_t)whole, MADV_HUGEPAGE);  // a wish; small pages work too
  status *lacks = host ? NULL : cuda_open(p, code, m->arena, &m->gpu);
  if (lacks)
    vm_close(m);
  else
    *out = m;
  return lacks;
}

status *vm_join(vm *m, comm *c, bool beside) {
  m->comm = c;
  for (uint32_t i = 0; i < m->prog->naxes; i++)
    m->coord[i] = comm_coordinate(m->prog, comm_rank(c), i);
  if (m->gpu) return NULL;
  STATUS_DO(comm_share(c, m->file, m->map, m->map_bytes));
  if (m->file >= 0) close(m->file);
  m->file = -1;
  return stream_open(m->prog, c, m->code, beside, &m->second);
}

void vm_close(vm *m) {
  if (!m) return;
  stream_close(m->second);
  status_free(m->failed);
  cuda_close(m->gpu);
  if (m->map) munmap(m->map, m->map_bytes);
  if (m->file >= 0) close(m->file);
  free(m->buf);
  free(m->home);
  external_close(m->library);
  free(m);
}

static void touch_blocks(void *ctx, int64_t lo, int64_t hi) {
  const vm *m = ctx;
  int64_t end = (int64_t)m->prog->header->arena_bytes;
  for (int64_t at = lo * BLOCK; at < hi * BLOCK && at < end; at += 4096) {
    // Writes back what is there: the arena may already hold states.
    volatile unsigned char *byte = m->arena + at;
    *byte = *byte;
  }
}

// A page of this thread's stack, and those that lie deeper.
static void touch_stack(int64_t bytes) {
  volatile unsigned char page[4096];
  page[0] = 0;
  if (bytes > 0) touch_stack(bytes - (int64_t)sizeof page);
  page[1] = page[0];
}

static void touch_stacks(void *ctx, int64_t lo, int64_t hi) {
  enum { FRAMES = 64 << 10 };  // what calls kernels, and what they spill
  const vm *m = ctx;
  (void)lo, (void)hi;
  touch_stack((int64_t)m->prog->header->stack_bytes + FRAMES);
}

void vm_touch(vm *m) {
  if (m->gpu) return;
  int64_t n = (int64_t)m->prog->header->arena_bytes;
  pool_run(m->threads, (n + BLOCK - 1) / BLOCK, touch_blocks, m);
  // Which thread runs which cell is up to the moment: each may need all of a kernel's stack.
  pool_each(m->threads, touch_stacks, m);
}

// ---- copies of weights --------------------------------------------------------------------------

typedef struct rounding {
  const prog_state *copy;
  const unsigned char *from;
  unsigned char *to;
  int64_t n;
} rounding;

void vm_round_copy(const prog_state *copy, const unsigned char *from, unsigned char *to,
                   int64_t n) {
  float smallest = (float)copy->init_a;
  uint32_t least;  // bits of the smallest magnitude that is not taken for zero
  memcpy(&least, &smallest, sizeof least);
  for (int64_t i = 0; i < n; i++) {
    uint32_t u;
    memcpy(&u, from + 4 * i, sizeof u);
    uint32_t sign = u & 0x80000000u, size = u ^ sign;
    uint16_t x = dtype_bf16_bits(size < least ? sign : u);
    memcpy(to + 2 * i, &x, sizeof x);
  }
}

static void round_blocks(void *ctx, int64_t lo, int64_t hi) {
  const rounding *r = ctx;
  int64_t from = lo * (BLOCK / 4), end = hi * (BLOCK / 4) < r->n ? hi * (BLOCK / 4) : r->n;
  vm_round_copy(r->copy, r->from + 4 * from, r->to + 2 * from, end - from);
}

void vm_make_copies(vm *m) {
  const prog *p = m->prog;
  for (uint32_t i = 0; i < p->nstates; i++) {
    const prog_state *s = &p->states[i];
    if (s->cls != PROG_COPY) continue;
    const prog_state *w = prog_weight_of(p, s);
    if (!part_cut_alike(p, s, w)) continue;
    rounding r = {.copy = s, .n = prog_state_elements(s)};
    for (int64_t k = 0; k < prog_state_slices(s); k++) {
      r.from = m->arena + w->offset + (w->layers ? k * w->layer_stride : 0);
      r.to = m->arena + s->offset + (s->layers ? k * s->layer_stride : 0);
      pool_run(m->threads, (r.n + BLOCK / 4 - 1) / (BLOCK / 4), round_blocks, &r);
    }
  }
}

unsigned char *vm_at(const vm *m, int64_t offset) { return m->arena + offset; }

const char *vm_device(const vm *m) { return m->gpu ? cuda_name(m->gpu) : NULL; }

// ---- states of a GPU ----------------------------------------------------------------------------

typedef status *move_range(cuda *g, int64_t offset, int64_t bytes);

static status *move_states(vm *m, move_range *move) {
  const prog *p = m->prog;
  for (uint32_t i = 0; m->gpu && i < p->nstates; i++) {
    const prog_state *s = &p->states[i];
    if (s->cls == PROG_CACHE) continue;
    bool dense = s->layers == 0 || s->layer_stride == s->bytes;
    int64_t slices = prog_state_slices(s), pieces = dense ? 1 : slices;
    int64_t bytes = s->bytes * (dense ? slices : 1);
    for (int64_t k = 0; k < pieces; k++)
      STATUS_TRY(move(m->gpu, s->offset + k * s->layer_stride, bytes), "state %s",
                 prog_text(p, s->name));
  }
  return NULL;
}

status *vm_push_states(vm *m) { return move_states(m, cuda_push); }
status *vm_pull_states(vm *m) { return move_states(m, cuda_pull); }

status *vm_zero(vm *m, int64_t offset, int64_t bytes) {
  if (!m->gpu) {
    memset(m->arena + offset, 0, (size_t)bytes);
    return NULL;
  }
  // Pages of the mirror that nobody touched stay so.
  for (uint32_t i = 0; i < m->prog->nios; i++) {
    const prog_io *io = &m->prog->ios[i];
    bool inside = io->offset >= offset && io->offset + io->bytes <= offset + bytes;
    if (inside) memset(m->arena + io->offset, 0, (size_t)io->bytes);
  }
  return cuda_zero(m->gpu, offset, bytes);
}

// ---- stepping ---------------------------------------------------------------------------------

typedef struct launch {
  dsm_kernel *kernel;
  unsigned char *const *buf;
  const dsm_call *call;
} launch;

static void run_cells(void *ctx, int64_t lo, int64_t hi) {
  const launch *l = ctx;
  l->kernel(l->buf, l->call, lo, hi);
}

typedef struct move {
  unsigned char *to;
  const unsigned char *from;  // NULL: zeros
  int64_t bytes;
} move;

static void run_move(void *ctx, int64_t lo, int64_t hi) {
  const move *m = ctx;
  int64_t at = lo * BLOCK, end = hi * BLOCK < m->bytes ? hi * BLOCK : m->bytes;
  if (m->from)
    memcpy(m->to + at, m->from + at, (size_t)(end - at));
  else
    memset(m->to + at, 0, (size_t)(end - at));
}

static void move_bytes(vm *m, move v) {
  bool overlap = v.from && v.to < v.from + v.bytes && v.from < v.to + v.bytes;
  if (overlap)
    memmove(v.to, v.from, (size_t)v.bytes);
  else
    pool_run(m->threads, (v.bytes + BLOCK - 1) / BLOCK, run_move, &v);
}

static void tell(const vm *m, vm_moment when, const vm_where *at) {
  if (m->observer) m->observer->see(m->observer->ctx, when, at);
}

static void find_operands(vm *m, const prog_instr *in, const dsm_call *call, int64_t layer) {
  const prog_operand *o = &m->prog->operands[in->first_operand];
  for (uint32_t k = 0; k < in->operands; k++, o++) {
    int64_t slot = layer + o->layer_add;
    if (o->layer_mod) slot %= o->layer_mod;
    int64_t place = o->micro_mod ? call->micro % o->micro_mod : call->micro;
    int64_t at = o->base + slot * o->layer_stride + place * o->micro_stride;
    m->buf[k] = m->arena + at;
    if (m->gpu) m->home[k] = o->home == PROG_HOST_HOME ? m->buf[k] : cuda_at(m->gpu, at);
  }
}

// What the observer sees of an instruction of a GPU is finished, and on the host. A failure stays
// with the device until the end of the call.
static void show_instr(vm *m, const prog_instr *in) {
  const prog_operand *o = &m->prog->operands[in->first_operand];
  status *failed = cuda_finish(m->gpu);
  for (uint32_t k = 0; k < in->operands && m->shows && !failed; k++)
    if ((o[k].writes & 2) && o[k].home == PROG_DEVICE_HOME)
      failed = cuda_pull(m->gpu, m->buf[k] - m->arena, o[k].bytes);
  status_free(failed);
}

static void run_gemm(vm *m, const prog_instr *in, const dsm_call *call) {
  const prog_gemm *g = &m->prog->gemms[m->prog->kernels[in->kernel].gemm - 1];
  bool set = g->start == PROG_GEMM_SET || (g->start == PROG_GEMM_SUM && call->micro == 0);
  if (g->start == PROG_GEMM_ADD && m->buf[3] != m->buf[2])
    move_bytes(m, (move){m->buf[2], m->buf[3], m->prog->operands[in->first_operand + 2].bytes});
  external_gemm(m->library, g, m->buf, set);
}

// The other queue has done all it was given.
static void catch_up(vm *m) {
  if (m->second && !m->failed) m->failed = stream_finish(m->second);
}

// An exchange among the kernels comes behind those of the other queue, as it would on all ranks.
static void run_exchange(vm *m, const prog_instr *in, const dsm_call *call) {
  catch_up(m);
  if (!m->failed)
    m->failed = comm_exchange(m->comm, &m->prog->exchanges[in->kernel], m->buf, call, NULL);
}

// Instructions of the other queue, and the order between the two. What an observer looks at is done
// when it looks.
static void run_beside(vm *m, const prog_instr *in, const dsm_call *call) {
  if (in->op == RTOP_wait) return;  // for what this thread has done already
  stream_give(m->second, in, m->buf, call);
  if (m->observer) catch_up(m);
}

void vm_replay(vm *m, const double *seconds) { m->replay = seconds; }

static void sleep_until(int64_t at) {
  struct timespec t = {.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR);
}

// Kernels add to the time that others wait at the next exchange: a sleep for each would be too long
// by what it takes to wake up.
static bool replays(vm *m, const prog_instr *in) {
  if (!m->replay || in->stream == PROG_COMMUNICATION) return false;
  if (in->op == RTOP_exchange) sleep_until(m->busy);
  if (in->op == RTOP_exchange || in->op == RTOP_wait || in->op == RTOP_record) return false;
  int64_t now = clock_ns();
  if (m->busy < now - 1000000) m->busy = now;  // it was somewhere else: in an exchange
  m->busy += (int64_t)(1e9 * m->replay[in - m->prog->instrs]);
  return true;
}

static void run_instr(vm *m, const prog_instr *in, const dsm_call *call) {
  if (replays(m, in)) return;
  if (in->stream == PROG_COMMUNICATION) {
    run_beside(m, in, call);
    return;
  }
  const prog_operand *o = &m->prog->operands[in->first_operand];
  switch (in->op) {
    case RTOP_launch: {
      const prog_kernel *k = &m->prog->kernels[in->kernel];
      const unsigned char *entry = m->code + k->code_offset;
      launch l = {.buf = m->buf, .call = call};
      memcpy(&l.kernel, &entry, sizeof entry);
      if (k->bytes < ALONE_BYTES && k->flops < ALONE_FLOPS)
        run_cells(&l, 0, k->cells);
      else
        pool_run(m->threads, k->cells, run_cells, &l);
      break;
    }
    case RTOP_gemm: run_gemm(m, in, call); break;
    case RTOP_zero: move_bytes(m, (move){m->buf[0], NULL, o[0].bytes}); break;
    case RTOP_copy: move_bytes(m, (move){m->buf[0], m->buf[1], o[0].bytes}); break;
    case RTOP_exchange: run_exchange(m, in, call); break;
    case RTOP_wait:
      if (m->second) stream_wait(m->second, in->event);
      break;
    case RTOP_record: break;  // all that came before has been done
  }
}

// `last`: outside loops over micro-batches, and in the last one.
static void run_one(vm *m, const prog_run *r, bool loop, bool last, dsm_call *call,
                    int64_t sample) {
  const prog_task *t = &m->prog->tasks[r->task];
  vm_where at = {.run = r, .loop = loop, .task = r->task, .call = call, .buf = m->buf};
  for (int64_t i = 0, layer = r->layer_first; i < r->layer_count; i++, layer += r->layer_dir) {
    call->layer = r->number_first + layer * r->number_step;
    tell(m, VM_TASK_BEGIN, &at);
    for (uint32_t k = 0; k < t->instrs; k++) {
      at.instr = t->first_instr + k;
      const prog_instr *in = &m->prog->instrs[at.instr];
      if ((in->flags & PROG_LAST) && !last) continue;
      find_operands(m, in, call, layer);
      tell(m, VM_INSTR_BEGIN, &at);
      if (m->gpu)
        cuda_instr(m->gpu, in, m->home, call, sample);
      else if (!m->failed)
        run_instr(m, in, call);
      if (m->second) stream_look(m->second);
      if (m->gpu && m->observer) show_instr(m, in);
      tell(m, VM_INSTR_END, &at);
    }
    tell(m, VM_TASK_END, &at);
  }
}

status *vm_call_part(vm *m, const prog_entry *e, const vm_step *s, uint32_t from, uint32_t to) {
  dsm_call call = {.sample0 = s->sample0, .step = s->step, .past = s->past, .seed = s->seed};
  const prog_run *r = &m->prog->runs[e->first_run + from], *end = r + (to - from);
  memcpy(call.coord, m->coord, sizeof call.coord);
  if (m->prog->nexchanges && !m->comm)
    return status_error("the program has exchanges among ranks, and there is one");
  vm_where whole = {.call = &call};
  tell(m, VM_CALL_BEGIN, &whole);
  if (m->gpu) {
    prog_step step = {s->sample0, s->step, s->past, s->seed};
    memcpy(m->arena + m->prog->header->step_offset, &step, sizeof step);
  }
  while (r < end) {
    if (r->kind == PROG_RUN) {
      run_one(m, r++, false, true, &call, 0);
      continue;
    }
    for (int64_t k = r->micro_first; k < r->micro_first + r->micro_count; k++) {
      for (uint32_t i = 1; i <= r->task; i++) {
        call.micro = k + r[i].micro_add;
        call.sample0 = s->sample0 + call.micro * e->micro_batch;
        bool last = call.micro + 1 == e->batch / e->micro_batch;
        run_one(m, r + i, true, last, &call, call.micro * e->micro_batch);
      }
    }
    call.micro = 0;
    call.sample0 = s->sample0;
    r += r->task + 1;
  }
  if (m->replay) sleep_until(m->busy);
  catch_up(m);
  if (m->comm && !m->failed) m->failed = comm_drain(m->comm);
  status *failed = m->gpu ? cuda_finish(m->gpu) : m->failed;
  m->failed = NULL;
  tell(m, VM_CALL_END, &whole);
  return failed;
}

status *vm_call(vm *m, const prog_entry *e, const vm_step *s) {
  return vm_call_part(m, e, s, 0, e->runs);
}

void vm_observe(vm *m, const vm_observer *o) {
  m->observer = o;
  m->shows = false;
}

void vm_observe_writes(vm *m, const vm_observer *o) {
  m->observer = o;
  m->shows = true;
}

double vm_scalar(const vm *m, const prog_io *io) {
  double d = 0;
  int64_t i = 0;
  const unsigned char *at = m->arena + io->offset;
  if (dtype_convertible(PROG_F64, io->dtype)) {
    dtype_convert(&d, PROG_F64, at, io->dtype, 1);
    return d;
  }
  if (dtype_convertible(PROG_I64, io->dtype)) dtype_convert(&i, PROG_I64, at, io->dtype, 1);
  return (double)i;
}

bool vm_set_arg(vm *m, const char *name, double value) {
  const prog_arg *a = prog_arg_find(m->prog, name);
  if (!a) return false;
  float f = (float)value;
  memcpy(m->arena + a->offset, &f, sizeof f);
  return true;
}
