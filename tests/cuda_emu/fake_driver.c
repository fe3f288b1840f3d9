// The functions of the fake driver (fake.h says what it is for).
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/str.h"
#include "tests/cuda_emu/fake.h"

#define EXPORT __attribute__((visibility("default")))

enum { EVENTS = 1 << 12, EVENT_HOST = EVENTS, EVENT_STREAM, PAGE = 4096 };
enum { STREAM_HANDLE = 0x51000, EVENT_HANDLE = 0xe0000 };  // addresses of nothing

// A driver is one for a process, and its functions are told nothing but handles.
static fake the;

// ---- telling ------------------------------------------------------------------------------------

int fake_wrong(fake *f, const char *fmt, ...) {
  char text[2000];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  enum { SHOWN = 20 };  // one mistake may lead to many
  if (f->mistakes++ < SHOWN) fprintf(stderr, "fake CUDA driver: %s\n", text);
  if (f->log) fprintf(f->log, "wrong: %s\n", text);
  return FAKE_WRONG;
}

static void note(const char *fmt, ...) {
  if (!the.log) return;
  va_list args;
  va_start(args, fmt);
  vfprintf(the.log, fmt, args);
  va_end(args);
  fputc('\n', the.log);
  fflush(the.log);
}

// Whether the fault of this name is due now: at its N-th occasion.
static bool fault(const char *name) {
  size_t n = strlen(name);
  if (!the.fault || strncmp(the.fault, name, n) != 0) return false;
  if (the.fault[n] != ':') return the.fault[n] == 0;
  return ++the.fault_seen == strtol(the.fault + n + 1, NULL, 10);
}

__attribute__((destructor)) static void at_exit(void) {
  if (the.retained) fake_wrong(&the, "the context was never released");
  if (!the.mistakes) return;
  fflush(NULL);
  _exit(99);
}

// ---- opening ------------------------------------------------------------------------------------

static const char *setting(const char *name) {
  const char *v = getenv(name);
  return v && *v ? v : NULL;
}

static void forget(fake *f) {
  for (int i = 0; i < f->blocks.n; i++) {
    munmap((void *)(uintptr_t)f->blocks.at[i].at, f->blocks.at[i].bytes + PAGE);
    free(f->blocks.at[i].store);
    free(f->blocks.at[i].written);
  }
  for (int i = 0; i < FAKE_STREAMS; i++) free(f->streams[i].at);
  fake_walk_close(f->walk);
  if (f->log) fclose(f->log);
  arena_free(&f->arena);
  *f = (fake){.mistakes = f->mistakes};
}

static int open_kernels(fake *f, const char *path) {
  f->kernels = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  void *launch = f->kernels ? dlsym(f->kernels, "emu_launch") : NULL;
  memcpy(&f->launch, &launch, sizeof launch);
  if (launch) return FAKE_OK;
  return fake_wrong(f, "no kernels in DSM_FAKE_CUDA_KERNELS: %s", dlerror());
}

EXPORT int cuInit(unsigned flags) {
  fake *f = &the;
  if (f->open) forget(f);
  (void)flags;
  arena_init(&f->arena);
  f->open = true;
  f->memory = (size_t)16 << 30;
  f->major = 9;
  const char *device = setting("DSM_FAKE_CUDA_DEVICE"), *v;
  if (device && str_eq(device, "none")) return FAKE_NO_DEVICE;
  if (device && sscanf(device, "%d.%d", &f->major, &f->minor) != 2)
    return fake_wrong(f, "DSM_FAKE_CUDA_DEVICE=%s", device);
  if ((v = setting("DSM_FAKE_CUDA_MEMORY"))) f->memory = strtoull(v, NULL, 10);
  if ((v = setting("DSM_FAKE_CUDA_SEED"))) f->seed = f->kernel_seed = strtoull(v, NULL, 10);
  if ((v = setting("DSM_FAKE_CUDA_LOG"))) f->log = fopen(v, "we");
  f->races_off = (v = setting("DSM_FAKE_CUDA_RACES")) && str_eq(v, "off");
  f->fault = setting("DSM_FAKE_CUDA_FAULT");
  f->races = races_new(&f->arena, FAKE_DEFAULT + 1, EVENT_STREAM);
  races_step(f->races, FAKE_HOST);
  char error[600];
  if ((v = setting("DSM_FAKE_CUDA_PROGRAM")) && !(f->walk = fake_walk_open(v, error, sizeof error)))
    return fake_wrong(f, "DSM_FAKE_CUDA_PROGRAM: %s", error);
  if ((v = setting("DSM_FAKE_CUDA_KERNELS"))) return open_kernels(f, v);
  return FAKE_OK;
}

EXPORT int cuGetErrorString(int code, const char **text) {
  switch (code) {
    case FAKE_OK: *text = "no error"; break;
    case FAKE_INVALID: *text = "invalid argument"; break;
    case FAKE_MEMORY: *text = "out of memory"; break;
    case FAKE_NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
    case FAKE_NO_BINARY: *text = "no kernel image is available for execution on the device"; break;
    case FAKE_NOT_FOUND: *text = "named symbol not found"; break;
    case FAKE_WRONG: *text = "the fake driver found a mistake"; break;
    default: *text = NULL; return FAKE_INVALID;
  }
  return FAKE_OK;
}

EXPORT int cuDeviceGetCount(int *count) {
  *count = 1;
  return the.open ? FAKE_OK : fake_wrong(&the, "cuDeviceGetCount before cuInit");
}

EXPORT int cuDeviceGet(int *device, int number) {
  *device = number;
  return number == 0 ? FAKE_OK : FAKE_INVALID;
}

EXPORT int cuDeviceGetName(char *name, int n, int device) {
  snprintf(name, (size_t)n, "Fake GPU");
  return device == 0 ? FAKE_OK : FAKE_INVALID;
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (device != 0 || (attribute != 75 && attribute != 76))
    return fake_wrong(&the, "cuDeviceGetAttribute: %d is not known here", attribute);
  *value = attribute == 75 ? the.major : the.minor;
  return FAKE_OK;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = &the;
  the.retained = device == 0;
  return device == 0 ? FAKE_OK : FAKE_INVALID;
}

EXPORT int cuCtxSetCurrent(void *context) { return context == &the ? FAKE_OK : FAKE_INVALID; }

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
  fake *f = &the;
  int code = f->retained && device == 0 ? FAKE_OK : fake_wrong(f, "released without a context");
  f->retained = false;
  for (int i = 0; i < f->blocks.n; i++)
    if (!f->blocks.at[i].freed)
      code = fake_wrong(f, "%zu bytes of the device were never freed", f->blocks.at[i].bytes);
  for (int i = 0; i < f->nstreams; i++)
    if (f->streams[i].live) code = fake_wrong(f, "stream %d was never destroyed", i);
  for (int i = 0; i < f->events.n; i++)
    if (f->events.at[i].live) code = fake_wrong(f, "event %d was never destroyed", i);
  for (int i = 0; i < f->modules.n; i++)
    if (f->modules.at[i]->live) code = fake_wrong(f, "module %d was never unloaded", i);
  if (f->pins.n) code = fake_wrong(f, "%d ranges of the host stay pinned", f->pins.n);
  int end = fake_walk_end(f);
  note("released after %lld launches", (long long)f->launches);
  return end == FAKE_OK ? code : end;
}

// ---- modules ------------------------------------------------------------------------------------

EXPORT int cuModuleLoadDataEx(void **module, const void *binary, unsigned n, int *option,
                              void **value) {
  fake *f = &the;
  (void)n, (void)option, (void)value;
  if (!f->retained || !binary) return fake_wrong(f, "a module without context or image");
  fake_module *m = arena_new(&f->arena, fake_module, 1);
  m->live = true;
  vec_push(&f->arena, &f->modules, m);
  *module = m;
  note("load module %d: %.10s", f->modules.n - 1, (const char *)binary);
  return FAKE_OK;
}

static fake_module *module_of(void *handle) {
  for (int i = 0; i < the.modules.n; i++)
    if (the.modules.at[i] == handle && the.modules.at[i]->live) return the.modules.at[i];
  fake_wrong(&the, "no such module");
  return NULL;
}

EXPORT int cuModuleUnload(void *handle) {
  fake_module *m = module_of(handle);
  if (!m) return FAKE_WRONG;
  m->live = false;
  return FAKE_OK;
}

EXPORT int cuModuleGetFunction(void **function, void *module, const char *name) {
  fake *f = &the;
  if (!module_of(module)) return FAKE_WRONG;
  fake_function *fn = arena_new(&f->arena, fake_function, 1);
  fn->name = arena_strdup(&f->arena, name);
  fn->shared_limit = 48 << 10;
  if (f->kernels && !(fn->kernel = dlsym(f->kernels, name))) {
    fake_wrong(f, "DSM_FAKE_CUDA_KERNELS has no kernel %s", name);
    return FAKE_NOT_FOUND;
  }
  vec_push(&f->arena, &f->functions, fn);
  *function = fn;
  return FAKE_OK;
}

static fake_function *function_of(void *handle) {
  for (int i = 0; i < the.functions.n; i++)
    if (the.functions.at[i] == handle) return the.functions.at[i];
  fake_wrong(&the, "no such function");
  return NULL;
}

EXPORT int cuFuncSetAttribute(void *handle, int attribute, int value) {
  fake_function *fn = function_of(handle);
  if (!fn) return FAKE_WRONG;
  if (attribute != 8 || value < 0 || value > 227 << 10)
    return fake_wrong(&the, "%s: attribute %d = %d", fn->name, attribute, value);
  fn->shared_limit = value;
  return FAKE_OK;
}

// ---- memory -------------------------------------------------------------------------------------

EXPORT int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  *total = the.memory;
  *free_bytes = the.memory - the.used;
  return FAKE_OK;
}

EXPORT int cuMemAlloc_v2(uint64_t *at, size_t bytes) {
  fake *f = &the;
  if (!f->retained || bytes == 0) return fake_wrong(f, "an allocation of %zu bytes", bytes);
  if (bytes > f->memory - f->used) return FAKE_MEMORY;
  void *hole =
      mmap(NULL, bytes + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  unsigned char *store = malloc(bytes), *written = calloc(1, bytes);
  if (hole == MAP_FAILED || !store || !written) return FAKE_MEMORY;
  memset(store, 0xcb, bytes);
  *at = (uint64_t)(uintptr_t)hole;
  vec_push(&f->arena, &f->blocks, (fake_block){*at, bytes, store, written, false});
  f->used += bytes;
  note("alloc %zu bytes", bytes);
  return FAKE_OK;
}

EXPORT int cuMemFree_v2(uint64_t at) {
  fake *f = &the;
  if (fault("no-free")) return FAKE_OK;
  for (int i = 0; i < f->blocks.n; i++) {
    fake_block *b = &f->blocks.at[i];
    if (b->at != at) continue;
    if (b->freed) return fake_wrong(f, "%zu bytes of the device are freed again", b->bytes);
    b->freed = true;
    f->used -= b->bytes;
    free(b->store);
    free(b->written);
    b->store = b->written = NULL;
    note("free %zu bytes", b->bytes);
    return FAKE_OK;
  }
  return fake_wrong(f, "cuMemFree of an address that is no allocation");
}

unsigned char *fake_store(fake *f, uint64_t at, int64_t bytes, const char *what) {
  for (int i = 0; i < f->blocks.n; i++) {
    const fake_block *b = &f->blocks.at[i];
    if (at < b->at || at >= b->at + b->bytes + PAGE) continue;
    uint64_t from = at - b->at;
    if (b->freed) {
      fake_wrong(f, "%s: bytes of the device that were freed", what);
      return NULL;
    }
    if (bytes < 0 || from > b->bytes || (uint64_t)bytes > b->bytes - from) {
      fake_wrong(f, "%s: bytes %llu..%llu of an allocation of %zu", what, (unsigned long long)from,
                 (unsigned long long)(from + (uint64_t)bytes) - 1, b->bytes);
      return NULL;
    }
    return b->store + from;
  }
  fake_wrong(f, "%s: no memory of the device", what);
  return NULL;
}

unsigned char *fake_marks(fake *f, uint64_t at) {
  for (int i = 0; i < f->blocks.n; i++) {
    const fake_block *b = &f->blocks.at[i];
    if (!b->freed && at >= b->at && at < b->at + b->bytes) return b->written + (at - b->at);
  }
  return NULL;
}

EXPORT int cuMemHostRegister_v2(void *at, size_t bytes, unsigned flags) {
  if (flags || (uintptr_t)at % PAGE || bytes % PAGE)
    return fake_wrong(&the, "pins a range that is not of pages");
  vec_push(&the.arena, &the.pins, (fake_pin){at, bytes});
  return FAKE_OK;
}

EXPORT int cuMemHostUnregister(void *at) {
  for (int i = 0; i < the.pins.n; i++)
    if (the.pins.at[i].at == at) {
      the.pins.at[i] = the.pins.at[--the.pins.n];
      return FAKE_OK;
    }
  return fake_wrong(&the, "unpins a range that is not pinned");
}

static bool is_pinned(const void *at, size_t bytes) {
  const unsigned char *p = at;
  for (int i = 0; i < the.pins.n; i++)
    if (p >= the.pins.at[i].at && p + bytes <= the.pins.at[i].at + the.pins.at[i].bytes)
      return true;
  return false;
}

// ---- races --------------------------------------------------------------------------------------

static const char *stream_name(int stream) {
  static const char *const name[] = {"stream 0", "stream 1", "stream 2", "the host",
                                     "the default stream"};
  return name[stream];
}

static int access_bytes(int stream, int home, uint64_t at, size_t bytes, bool write,
                        const char *what) {
  if (the.races_off) return FAKE_OK;
  int other = races_access(the.races, stream, home, (int64_t)at, (int64_t)(at + bytes), write);
  if (other < 0) return FAKE_OK;
  return fake_wrong(&the, "race: %s of %s %s bytes that %s touches, and nothing orders them", what,
                    stream_name(stream), write ? "writes" : "reads", stream_name(other));
}

// What is enqueued now comes behind all that the host has waited for.
static void enter(int stream) {
  races_record(the.races, FAKE_HOST, EVENT_HOST);
  races_wait(the.races, stream, EVENT_HOST);
  races_step(the.races, stream);
}

// The host knows all that this stream was given.
static void joined(int stream) {
  races_record(the.races, stream, EVENT_STREAM);
  races_wait(the.races, FAKE_HOST, EVENT_STREAM);
}

// What is on the default stream. Only copies to the host are done when the driver returns.
static int on_default(uint64_t device, size_t bytes, bool write, const char *what) {
  enter(FAKE_DEFAULT);
  int code = access_bytes(FAKE_DEFAULT, 0, device, bytes, write, what);
  if (!write) joined(FAKE_DEFAULT);
  return code;
}

EXPORT int cuCtxSynchronize(void) {
  int code = FAKE_OK;
  if (fault("no-sync")) return code;
  for (int i = 0; i < the.nstreams; i++)
    if (the.streams[i].live) {
      code |= fake_drain(&the, i);
      joined(i);
    }
  joined(FAKE_DEFAULT);
  return code ? FAKE_WRONG : FAKE_OK;
}

EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
  unsigned char *at = fake_store(&the, to, (int64_t)bytes, "cuMemcpyHtoD");
  if (!at) return FAKE_WRONG;
  note("push %zu bytes", bytes);
  memcpy(at, from, bytes);
  if (bytes) memset(fake_marks(&the, to), 1, bytes);
  return on_default(to, bytes, true, "cuMemcpyHtoD");
}

EXPORT int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
  unsigned char *at = fake_store(&the, from, (int64_t)bytes, "cuMemcpyDtoH");
  if (!at) return FAKE_WRONG;
  note("pull %zu bytes", bytes);
  memcpy(to, at, bytes);
  return on_default(from, bytes, false, "cuMemcpyDtoH");
}

EXPORT int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) {
  unsigned char *at = fake_store(&the, to, (int64_t)bytes, "cuMemsetD8");
  if (!at) return FAKE_WRONG;
  note("set %zu bytes", bytes);
  memset(at, value, bytes);
  return on_default(to, bytes, true, "cuMemsetD8");
}

// ---- streams and events -------------------------------------------------------------------------

EXPORT int cuStreamCreate(void **stream, unsigned flags) {
  if (flags != 1) return fake_wrong(&the, "a stream that waits for the default one");
  if (the.nstreams == FAKE_STREAMS) return fake_wrong(&the, "more streams than are known here");
  the.streams[the.nstreams].live = true;
  *stream = (void *)(uintptr_t)(STREAM_HANDLE + 16 * the.nstreams++);
  return FAKE_OK;
}

// The stream's number, or -1 after telling that there is none.
static int stream_of(void *handle) {
  uintptr_t n = ((uintptr_t)handle - STREAM_HANDLE) / 16;
  if ((uintptr_t)handle >= STREAM_HANDLE && n < (uintptr_t)the.nstreams && the.streams[n].live)
    return (int)n;
  fake_wrong(&the, "no such stream");
  return -1;
}

EXPORT int cuStreamDestroy_v2(void *handle) {
  int s = stream_of(handle);
  if (s < 0) return FAKE_WRONG;
  the.streams[s].live = false;
  if (the.streams[s].next < the.streams[s].n)
    return fake_wrong(&the, "stream %d is destroyed with work left", s);
  return FAKE_OK;
}

EXPORT int cuStreamSynchronize(void *handle) {
  int s = stream_of(handle);
  if (s < 0) return FAKE_WRONG;
  note("wait for stream %d", s);
  int code = fake_drain(&the, s);
  joined(s);
  return code;
}

EXPORT int cuEventCreate(void **event, unsigned flags) {
  (void)flags;
  if (the.events.n == EVENTS) return FAKE_MEMORY;
  vec_push(&the.arena, &the.events, (fake_event){.live = true});
  *event = (void *)(uintptr_t)(EVENT_HANDLE + 16 * (the.events.n - 1));
  return FAKE_OK;
}

static int event_of(void *handle) {
  uintptr_t n = ((uintptr_t)handle - EVENT_HANDLE) / 16;
  if ((uintptr_t)handle >= EVENT_HANDLE && n < (uintptr_t)the.events.n && the.events.at[n].live)
    return (int)n;
  fake_wrong(&the, "no such event");
  return -1;
}

EXPORT int cuEventDestroy_v2(void *handle) {
  int e = event_of(handle);
  if (e < 0) return FAKE_WRONG;
  the.events.at[e].live = false;
  return FAKE_OK;
}

// ---- work ---------------------------------------------------------------------------------------

static fake_work *new_work(fake_kind kind, void *stream) {
  int s = stream_of(stream);
  if (s < 0) return NULL;
  fake_work *w = calloc(1, sizeof *w);
  if (!w) abort();
  w->kind = kind;
  w->stream = s;
  return w;
}

static void drop(fake_work *w) {
  free(w->args);
  free(w->copied);
  free(w);
}

static int check_work(fake_work *w) {
  enter(w->stream);
  int code = FAKE_OK;
  bool device_to = w->kind == FAKE_SET || w->kind == FAKE_COPY || w->kind == FAKE_IN;
  bool device_from = w->kind == FAKE_COPY || w->kind == FAKE_OUT;
  if (device_to && !fake_store(&the, w->to, (int64_t)w->bytes, "to")) return FAKE_WRONG;
  if (device_from && !fake_store(&the, w->from, (int64_t)w->bytes, "from")) return FAKE_WRONG;
  if (device_from) code |= access_bytes(w->stream, 0, w->from, w->bytes, false, "a copy");
  if (device_to) code |= access_bytes(w->stream, 0, w->to, w->bytes, true, "a copy");
  if (w->kind == FAKE_IN) code |= access_bytes(w->stream, 1, w->from, w->bytes, false, "a copy");
  if (w->kind == FAKE_OUT) code |= access_bytes(w->stream, 1, w->to, w->bytes, true, "a copy");
  // What it reads before what it writes: a kernel may do both with the same bytes.
  for (int pass = 0; pass < 2; pass++)
    for (int i = 0; i < w->nranges; i++) {
      const fake_range *r = &w->range[i];
      if (pass == 0 && !fake_store(&the, r->at, r->bytes, w->function->name)) return FAKE_WRONG;
      if (r->use & (pass ? EMU_WRITE : EMU_READ))
        code |= access_bytes(w->stream, 0, r->at, (size_t)r->bytes, pass > 0, w->function->name);
    }
  return code ? FAKE_WRONG : FAKE_OK;
}

// Checks and enqueues; the work belongs to the queue then.
static int give(fake_work *w) {
  if (!w) return FAKE_WRONG;
  int code = fake_walk_step(&the, w);
  if (code == FAKE_OK) code = check_work(w);
  if (code != FAKE_OK) {
    drop(w);
    return code;
  }
  fake_push(&the, w);
  return FAKE_OK;
}

static int move(fake_kind kind, uint64_t to, uint64_t from, size_t bytes, unsigned char value,
                void *stream) {
  static const char *const name[] = {"", "set", "copy", "fetch", "evict"};
  fake_work *w = new_work(kind, stream);
  if (!w) return FAKE_WRONG;
  uint64_t host = kind == FAKE_IN ? from : to;
  bool moves = kind == FAKE_IN || kind == FAKE_OUT;
  bool pinned = !moves || is_pinned((void *)(uintptr_t)host, bytes);
  note("%s %zu bytes on stream %d, to %#llx from %#llx%s", name[kind], bytes, w->stream,
       (unsigned long long)to, (unsigned long long)from, pinned ? "" : ", not pinned");
  w->to = to;
  w->from = from;
  w->bytes = bytes;
  w->value = value;
  if (kind == FAKE_IN && !pinned) {
    w->copied = malloc(bytes);
    if (!w->copied) abort();
    memcpy(w->copied, (void *)(uintptr_t)from, bytes);
  }
  return give(w);
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  return move(FAKE_IN, to, (uint64_t)(uintptr_t)from, bytes, 0, stream);
}

EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  return move(FAKE_OUT, (uint64_t)(uintptr_t)to, from, bytes, 0, stream);
}

EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  return move(FAKE_COPY, to, from, bytes, 0, stream);
}

EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
  return move(FAKE_SET, to, 0, bytes, value, stream);
}

EXPORT int cuEventRecord(void *event, void *stream) {
  int e = event_of(event);
  fake_work *w = e < 0 ? NULL : new_work(FAKE_RECORD, stream);
  if (!w) return FAKE_WRONG;
  note("record event %d on stream %d", e, w->stream);
  w->event = e;
  w->ticket = the.events.at[e].recorded = ++the.tickets;
  int s = w->stream, code = give(w);
  races_record(the.races, s, e);
  return code;
}

EXPORT int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
  int e = event_of(event);
  if (flags || e < 0 || fault("no-wait")) return flags || e < 0 ? FAKE_WRONG : FAKE_OK;
  fake_work *w = new_work(FAKE_WAIT, stream);
  if (!w) return FAKE_WRONG;
  note("stream %d waits for event %d", w->stream, e);
  w->event = e;
  w->ticket = the.events.at[e].recorded;
  bool lost = fault("lost-wait");
  if (lost) w->ticket = 0;
  int s = w->stream, code = give(w);
  if (!lost) races_wait(the.races, s, e);
  return code;
}

// Of a launch, the block of bytes that is its argument.
static int read_argument(fake_work *w, void **extra) {
  const void *at = NULL;
  size_t bytes = 0;
  for (int i = 0; extra && extra[i]; i += 2) {
    if ((uintptr_t)extra[i] == 1) at = extra[i + 1];
    if ((uintptr_t)extra[i] == 2) memcpy(&bytes, extra[i + 1], sizeof bytes);
  }
  if (!at || bytes < 8 || bytes % 8 || bytes > 4096)
    return fake_wrong(&the, "%s: a launch without its argument", w->function->name);
  w->args = malloc(bytes);
  if (!w->args) abort();
  memcpy(w->args, at, bytes);
  w->bytes = bytes;
  return FAKE_OK;
}

// Without a schedule, all that is known of a launch is how many buffers its kernel has.
static int find_ranges(fake_work *w) {
  const emu_kernel *k = w->function->kernel;
  if (the.walk || !k) return FAKE_OK;
  if (w->bytes != k->args_bytes)
    return fake_wrong(&the, "%s: %zu bytes of arguments, expected %llu", w->function->name,
                      w->bytes, (unsigned long long)k->args_bytes);
  const uint64_t *args = (const uint64_t *)(const void *)w->args;
  for (int i = 0; i < k->buffers; i++) {
    int64_t left = 0;
    for (int b = 0; b < the.blocks.n; b++)
      if (args[i] >= the.blocks.at[b].at && args[i] < the.blocks.at[b].at + the.blocks.at[b].bytes)
        left = (int64_t)(the.blocks.at[b].at + the.blocks.at[b].bytes - args[i]);
    w->range[w->nranges++] = (fake_range){args[i], left, EMU_READ | EMU_WRITE};
  }
  return FAKE_OK;
}

static void make_faults(fake_work *w) {
  uint64_t *args = (uint64_t *)(void *)w->args;
  if (fault("address")) args[0] += 64;
  if (fault("argument")) args[w->bytes / 8 - 1]++;
  if (fault("stream")) w->stream = (w->stream + 1) % the.nstreams;
  if (fault("early-free"))
    for (int i = 0; i < the.blocks.n; i++) cuMemFree_v2(the.blocks.at[i].at);
}

static void note_launch(const fake_work *w) {
  if (!the.log) return;
  fprintf(the.log, "launch %s, %u blocks of %u threads, %u bytes, on stream %d, with",
          w->function->name, w->grid, w->block, w->shared, w->stream);
  for (size_t i = 0; i < w->bytes / 8; i++)
    fprintf(the.log, " %#llx", (unsigned long long)((const uint64_t *)(const void *)w->args)[i]);
  note("%s", "");
}

EXPORT int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                          void *stream, void **parameters, void **extra) {
  fake_function *fn = function_of(function);
  if (!fn) return FAKE_WRONG;
  if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || !grid_x || grid_x > INT32_MAX ||
      !block_x || block_x > 1024 || parameters)
    return fake_wrong(&the, "%s: a launch of %u x %u x %u blocks of %u x %u x %u threads", fn->name,
                      grid_x, grid_y, grid_z, block_x, block_y, block_z);
  if (shared > (unsigned)fn->shared_limit)
    return fake_wrong(&the, "%s: %u bytes of shared memory, %d are allowed", fn->name, shared,
                      fn->shared_limit);
  fake_work *w = new_work(FAKE_LAUNCH, stream);
  if (!w) return FAKE_WRONG;
  w->function = fn;
  w->grid = grid_x;
  w->block = block_x;
  w->shared = shared;
  if (read_argument(w, extra) != FAKE_OK) {
    drop(w);
    return FAKE_WRONG;
  }
  make_faults(w);
  int times = fault("twice") ? 2 : 1;
  the.launches++;
  note_launch(w);
  if (find_ranges(w) != FAKE_OK) {
    drop(w);
    return FAKE_WRONG;
  }
  int code = give(w);
  if (code == FAKE_OK && times > 1)
    return cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared,
                          stream, parameters, extra);
  return code;
}
