#include "runtime/cuda.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/dynlib.h"
#include "runtime/base/str.h"

// Numbers of the driver's interface.
enum {
  OK = 0,
  NO_DEVICE = 100,
  COMPUTE_MAJOR = 75,  // attributes of a device
  COMPUTE_MINOR = 76,
  DYNAMIC_SHARED = 8,  // attribute of a function
  NON_BLOCKING = 1,    // a stream that does not wait for the default one
  NO_TIMING = 2,       // of an event
  ERROR_LOG = 5,       // options of loading a module
  ERROR_LOG_BYTES = 6,
  PLAIN_SHARED = 48 << 10  // dynamic shared memory that needs no attribute
};
// `extra` of a launch: the argument as one block of bytes, and how many.
#define ARGUMENT ((void *)1)
#define ARGUMENT_BYTES ((void *)2)

typedef struct driver {
#define SYMBOL(name, exported, parameters) int(*name) parameters;
#include "runtime/cuda.def"
} driver;

typedef struct span {
  uintptr_t lo, hi;
} span;

struct cuda {
  const prog *prog;
  arena texts;
  driver api;
  void *context;
  int device;
  bool retained;
  char name[160];
  uint64_t arena;
  unsigned char *mirror;
  void **modules, **functions;  // of the chosen target; functions by number
  uint32_t nmodules;
  void *streams[PROG_STREAMS];  // NULL: the program does not use it
  void **events;
  span *pinned;
  int npinned;
  uint64_t *argument;  // of the running launch
  status *failed;      // the first failure
};

// ---- the driver ---------------------------------------------------------------------------------

static status *open_driver(cuda *g) {
  static const char *const names[] = {"libcuda.so.1", NULL};
  dynlib l;
  const char *file = getenv("DSM_CUDA_DRIVER");
  if (!dynlib_find(&g->texts, "DSM_CUDA_DRIVER", names, &l)) {
    if (file && *file)
      return status_error(
          "this executable needs an NVIDIA GPU: the driver that DSM_CUDA_DRIVER names cannot be "
          "opened: %s",
          l.why);
    return status_error(
        "this executable needs an NVIDIA GPU: libcuda.so.1 is not installed (it comes with "
        "NVIDIA's "
        "driver); `dsmc build --target cpu` makes one for this host");
  }
#define SYMBOL(name, exported, parameters)        \
  if (!dynlib_symbol(&l, exported, &g->api.name)) \
    return status_error(                          \
        "this executable needs a newer NVIDIA driver: %s has no function " exported, l.path);
#include "runtime/cuda.def"
  return NULL;
}

static const char *reason(const cuda *g, int code) {
  const char *text = NULL;
  if (g->api.cuGetErrorString(code, &text) != OK || !text) text = "an unknown error";
  return text;
}

static status *failure(const cuda *g, int code, const char *what) {
  return status_error("%s: %s failed: %s (%d)", *g->name ? g->name : "the NVIDIA GPU", what,
                      reason(g, code), code);
}

// Calls the driver and returns from the caller when that fails.
#define TRY(name, ...)                                \
  do {                                                \
    int code_ = g->api.name(__VA_ARGS__);             \
    if (code_ != OK) return failure(g, code_, #name); \
  } while (0)

// The same where a failure is kept for cuda_finish.
#define KEEP(name, ...)                                                  \
  do {                                                                   \
    int code_ = g->api.name(__VA_ARGS__);                                \
    if (code_ != OK && !g->failed) g->failed = failure(g, code_, #name); \
  } while (0)

static status *open_device(cuda *g, int *major, int *minor) {
  int code = g->api.cuInit(0), count = 0;
  if (code == OK) code = g->api.cuDeviceGetCount(&count);
  if (code == OK && count == 0) code = NO_DEVICE;
  if (code != OK)
    return status_error("this executable needs an NVIDIA GPU: the driver says: %s (%d)",
                        reason(g, code), code);
  char name[128] = "";
  TRY(cuDeviceGet, &g->device, 0);
  TRY(cuDeviceGetName, name, (int)sizeof name - 1, g->device);
  TRY(cuDeviceGetAttribute, major, COMPUTE_MAJOR, g->device);
  TRY(cuDeviceGetAttribute, minor, COMPUTE_MINOR, g->device);
  snprintf(g->name, sizeof g->name, "%s (sm_%d%d)", name, *major, *minor);
  TRY(cuDevicePrimaryCtxRetain, &g->context, g->device);
  g->retained = true;
  TRY(cuCtxSetCurrent, g->context);
  return NULL;
}

// ---- modules ------------------------------------------------------------------------------------

const char *cuda_choose(const prog *p, int major, int minor) {
  int device = 10 * major + minor, best = -1;
  const char *chosen = NULL;
  for (uint32_t i = 0; i < p->nmodules; i++) {
    const prog_module *m = &p->modules[i];
    const char *target = prog_text(p, m->target);
    int number, score;
    bool exact;
    if (!prog_target(target, &number, &exact) || number > device) continue;
    if (exact && number != device) continue;
    if (m->kind == PROG_CUBIN && number / 10 != major) continue;
    score = 2 * number + (exact ? 1 : 0) + (m->kind == PROG_CUBIN ? 100000 : 0);
    if (score > best) best = score, chosen = target;
  }
  return chosen;
}

static status *no_target(const cuda *g) {
  const prog *p = g->prog;
  char list[512] = "";
  size_t n = 0;
  for (uint32_t i = 0; i < p->nmodules && n < sizeof list; i++) {
    const char *target = prog_text(p, p->modules[i].target);
    bool first = true;
    for (uint32_t k = 0; k < i; k++) first &= !str_eq(prog_text(p, p->modules[k].target), target);
    if (first) n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", target);
  }
  return status_error(
      "this executable has nothing for %s: it holds %s; build it with `--target` for this GPU",
      g->name, *list ? list : "no module");
}

static status *load_module(cuda *g, const prog_module *m, const unsigned char *code) {
  char log[4096] = "";
  int option[] = {ERROR_LOG, ERROR_LOG_BYTES};
  void *value[] = {log, (void *)(uintptr_t)(sizeof log - 1)};
  void **module = &g->modules[g->nmodules];
  int failed = g->api.cuModuleLoadDataEx(module, code + m->offset, 2, option, value);
  if (failed != OK) {
    status *s = failure(g, failed, "cuModuleLoadDataEx");
    return *log ? status_join(s, status_error("%s", log)) : s;
  }
  g->nmodules++;
  for (uint32_t i = m->first_function; i < m->first_function + m->functions; i++) {
    const prog_function *f = &g->prog->functions[i];
    const char *symbol = prog_text(g->prog, f->symbol);
    int missing = g->api.cuModuleGetFunction(&g->functions[i], *module, symbol);
    if (missing != OK)
      return status_context(failure(g, missing, "cuModuleGetFunction"), "%s", symbol);
    if (f->shared_bytes <= PLAIN_SHARED) continue;
    int refused = g->api.cuFuncSetAttribute(g->functions[i], DYNAMIC_SHARED, (int)f->shared_bytes);
    if (refused != OK)
      return status_context(failure(g, refused, "cuFuncSetAttribute"),
                            "%s wants %u bytes of shared memory", symbol, f->shared_bytes);
  }
  return NULL;
}

static status *load_modules(cuda *g, const unsigned char *code, int major, int minor) {
  const prog *p = g->prog;
  if (p->nfunctions == 0) return NULL;
  const char *target = cuda_choose(p, major, minor);
  if (!target) return no_target(g);
  for (uint32_t i = 0; i < p->nmodules; i++)
    if (str_eq(prog_text(p, p->modules[i].target), target))
      STATUS_TRY(load_module(g, &p->modules[i], code), "loading the kernels for %s", target);
  return NULL;
}

// ---- memory, streams, events --------------------------------------------------------------------

static status *get_memory(cuda *g) {
  uint64_t need = g->prog->header->arena_bytes;
  size_t have = 0, total = 0;
  TRY(cuMemGetInfo, &have, &total);
  if (need > have)
    return status_exit(3, "the program needs %.2f GiB of memory, %s has %.2f GiB free of %.2f GiB",
                       (double)need / 0x1p30, g->name, (double)have / 0x1p30,
                       (double)total / 0x1p30);
  int code = g->api.cuMemAlloc(&g->arena, need ? need : 1);
  if (code != OK) {
    status *s = failure(g, code, "cuMemAlloc");
    s->exit_code = 3;  // what is free may be in pieces
    return s;
  }
  return cuda_zero(g, 0, (int64_t)need);
}

static int by_address(const void *a, const void *b) {
  const span *x = a, *y = b;
  return x->lo < y->lo ? -1 : x->lo > y->lo;
}

// Pins the pages of the mirror that moves touch. Where the driver will not, copies are slower.
static status *pin(cuda *g) {
  const prog *p = g->prog;
  const uintptr_t page = 4096;
  int n = 0, merged = 0;
  span *all = calloc(p->noperands + 1u, sizeof *all);
  if (!all) return status_error("out of memory");
  for (uint32_t i = 0; i < p->noperands; i++) {
    const prog_operand *o = &p->operands[i];
    if (o->home != PROG_HOST_HOME || !o->bytes || o->base < 0) continue;
    uintptr_t lo = (uintptr_t)g->mirror + (uintptr_t)o->base;
    all[n++] = (span){lo / page * page, (lo + (uintptr_t)o->bytes + page - 1) / page * page};
  }
  qsort(all, (size_t)n, sizeof *all, by_address);
  for (int i = 0; i < n; i++) {
    if (merged && all[i].lo <= all[merged - 1].hi) {
      if (all[i].hi > all[merged - 1].hi) all[merged - 1].hi = all[i].hi;
    } else {
      all[merged++] = all[i];
    }
  }
  g->pinned = all;
  for (int i = 0; i < merged; i++)
    if (g->api.cuMemHostRegister((void *)all[i].lo, all[i].hi - all[i].lo, 0) == OK)
      all[g->npinned++] = all[i];
  return NULL;
}

static status *make_queues(cuda *g) {
  const prog *p = g->prog;
  bool used[PROG_STREAMS] = {true};
  for (uint32_t i = 0; i < p->ninstrs; i++) used[p->instrs[i].stream] = true;
  for (int i = 0; i < PROG_STREAMS; i++)
    if (used[i]) TRY(cuStreamCreate, &g->streams[i], NON_BLOCKING);
  for (uint32_t i = 0; i < p->header->events; i++) TRY(cuEventCreate, &g->events[i], NO_TIMING);
  return NULL;
}

static status *open_all(cuda *g, const unsigned char *code) {
  const prog *p = g->prog;
  int major = 0, minor = 0;
  STATUS_DO(open_driver(g));
  g->modules = calloc(p->nmodules + 1u, sizeof *g->modules);
  g->functions = calloc(p->nfunctions + 1u, sizeof *g->functions);
  g->events = calloc(p->header->events + 1u, sizeof *g->events);
  int64_t argument = 0;
  for (uint32_t i = 0; i < p->nkernels; i++)
    if (prog_argument_bytes(&p->kernels[i]) > argument)
      argument = prog_argument_bytes(&p->kernels[i]);
  g->argument = calloc(1, (size_t)argument + 8);
  if (!g->modules || !g->functions || !g->events || !g->argument)
    return status_error("out of memory");
  STATUS_DO(open_device(g, &major, &minor));
  STATUS_DO(load_modules(g, code, major, minor));
  STATUS_DO(get_memory(g));
  STATUS_DO(pin(g));
  return make_queues(g);
}

status *cuda_open(const prog *p, const unsigned char *code, unsigned char *mirror, cuda **out) {
  *out = NULL;
  cuda *g = calloc(1, sizeof *g);
  if (!g) return status_error("out of memory");
  g->prog = p;
  arena_init(&g->texts);
  g->mirror = mirror;
  status *s = open_all(g, code);
  if (s)
    cuda_close(g);
  else
    *out = g;
  return s;
}

void cuda_close(cuda *g) {
  if (!g) return;
  // After a failure on the device these fail too, and there is nothing to do about it.
  for (int i = 0; i < PROG_STREAMS; i++)
    if (g->streams[i]) g->api.cuStreamSynchronize(g->streams[i]);
  for (uint32_t i = 0; g->events && i < g->prog->header->events; i++)
    if (g->events[i]) g->api.cuEventDestroy(g->events[i]);
  for (int i = 0; i < PROG_STREAMS; i++)
    if (g->streams[i]) g->api.cuStreamDestroy(g->streams[i]);
  for (int i = 0; i < g->npinned; i++) g->api.cuMemHostUnregister((void *)g->pinned[i].lo);
  if (g->arena) g->api.cuMemFree(g->arena);
  for (uint32_t i = 0; i < g->nmodules; i++) g->api.cuModuleUnload(g->modules[i]);
  if (g->retained) g->api.cuDevicePrimaryCtxRelease(g->device);
  arena_free(&g->texts);
  free(g->modules);
  free(g->functions);
  free(g->events);
  free(g->pinned);
  free(g->argument);
  status_free(g->failed);
  free(g);
}

const char *cuda_name(const cuda *g) { return g->name; }

unsigned char *cuda_at(const cuda *g, int64_t offset) {
  return (unsigned char *)(uintptr_t)(g->arena + (uint64_t)offset);
}

// ---- instructions -------------------------------------------------------------------------------

static uint64_t address(const unsigned char *at) { return (uint64_t)(uintptr_t)at; }

static void launch(cuda *g, const prog_instr *in, unsigned char *const *buf, const dsm_call *call,
                   int64_t sample) {
  const prog *p = g->prog;
  const prog_kernel *k = &p->kernels[in->kernel];
  const prog_function *f = &p->functions[k->function];
  if (k->cells == 0) return;
  uint64_t *a = g->argument;
  for (uint32_t i = 0; i < k->nbufs; i++) *a++ = address(buf[i]);
  *a++ = g->arena + p->header->step_offset;
  *a++ = (uint64_t)call->layer;
  *a++ = (uint64_t)call->micro;
  *a++ = (uint64_t)sample;
  *a = 0;
  for (uint32_t i = 0; i < k->numbers; i++) *a++ = (uint64_t)p->numbers[k->first_number + i];
  size_t bytes = (size_t)prog_argument_bytes(k);
  void *extra[] = {ARGUMENT, g->argument, ARGUMENT_BYTES, &bytes, NULL};
  KEEP(cuLaunchKernel, g->functions[k->function], (unsigned)k->cells, 1, 1, f->threads, 1, 1,
       f->shared_bytes, g->streams[in->stream], NULL, extra);
}

void cuda_instr(cuda *g, const prog_instr *in, unsigned char *const *buf, const dsm_call *call,
                int64_t sample) {
  const prog_operand *o = &g->prog->operands[in->first_operand];
  void *stream = g->streams[in->stream];
  size_t bytes = in->operands ? (size_t)o[0].bytes : 0;
  if (g->failed || (in->operands && in->op != RTOP_launch && bytes == 0)) return;
  switch (in->op) {
    case RTOP_launch: launch(g, in, buf, call, sample); break;
    case RTOP_zero: KEEP(cuMemsetD8Async, address(buf[0]), 0, bytes, stream); break;
    case RTOP_copy:
      if (buf[0] < buf[1] + bytes && buf[1] < buf[0] + bytes) {
        g->failed = status_error("the program copies between bytes that overlap: a bug in dsmc");
        break;
      }
      KEEP(cuMemcpyDtoDAsync, address(buf[0]), address(buf[1]), bytes, stream);
      break;
    case RTOP_fetch: KEEP(cuMemcpyHtoDAsync, address(buf[0]), buf[1], bytes, stream); break;
    case RTOP_evict: KEEP(cuMemcpyDtoHAsync, buf[0], address(buf[1]), bytes, stream); break;
    case RTOP_record: KEEP(cuEventRecord, g->events[in->event], stream); break;
    case RTOP_wait: KEEP(cuStreamWaitEvent, stream, g->events[in->event], 0); break;
  }
}

status *cuda_finish(cuda *g) {
  for (int i = 0; i < PROG_STREAMS && !g->failed; i++)
    if (g->streams[i]) KEEP(cuStreamSynchronize, g->streams[i]);
  return g->failed ? status_exit(g->failed->exit_code, "%s", g->failed->message) : NULL;
}

// Copies into the device and memsets return before they are done, and streams do not wait for them:
// they are on the default stream.
status *cuda_push(cuda *g, int64_t offset, int64_t bytes) {
  STATUS_DO(cuda_finish(g));
  if (bytes > 0) TRY(cuMemcpyHtoD, g->arena + (uint64_t)offset, g->mirror + offset, (size_t)bytes);
  TRY(cuCtxSynchronize, );
  return NULL;
}

status *cuda_pull(cuda *g, int64_t offset, int64_t bytes) {
  STATUS_DO(cuda_finish(g));
  if (bytes > 0) TRY(cuMemcpyDtoH, g->mirror + offset, g->arena + (uint64_t)offset, (size_t)bytes);
  return NULL;
}

status *cuda_zero(cuda *g, int64_t offset, int64_t bytes) {
  STATUS_DO(cuda_finish(g));
  if (bytes > 0) TRY(cuMemsetD8, g->arena + (uint64_t)offset, 0, (size_t)bytes);
  TRY(cuCtxSynchronize, );
  return NULL;
}
