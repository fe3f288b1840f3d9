#include "tests/oracle/emulated.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "codegen/cuda.h"
#include "runtime/base/clock.h"
#include "runtime/dtype.h"

// ---- functions ----------------------------------------------------------------------------------

const char *h_device_open(arena *a, h_device *d) {
  *d = (h_device){.dir = emu_make_folder(a)};
  return d->dir ? NULL : "no folder for kernels";
}

void h_device_close(arena *a, h_device *d) {
  emu_close(&d->code);
  if (d->dir) emu_remove_folder(a, d->dir);
}

const char *h_device_add(arena *a, const h_device *d, const char *symbol, const char *text) {
  const char *path = arena_printf(a, "%s/%s.cu", d->dir, symbol);
  if (access(path, F_OK) == 0) return NULL;
  const char *tmp = arena_printf(a, "%s/%ld.tmp", d->dir, (long)getpid());
  FILE *f = fopen(tmp, "w");
  if (!f) return "cannot write a function";
  bool ok = fputs(text, f) >= 0;
  ok = fclose(f) == 0 && ok;
  return ok && rename(tmp, path) == 0 ? NULL : "cannot write a function";
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int h_device_functions(arena *a, const h_device *d, const char *const **symbol) {
  VEC(const char *) names = {0};
  DIR *dir = opendir(d->dir);
  for (struct dirent *e; dir && (e = readdir(dir));)
    if (str_ends(e->d_name, ".cu"))
      vec_push(a, &names, arena_strndup(a, e->d_name, strlen(e->d_name) - strlen(".cu")));
  if (dir) closedir(dir);
  if (names.n) qsort(names.at, (size_t)names.n, sizeof *names.at, by_name);
  *symbol = names.at;
  return names.n;
}

char *h_device_text(arena *a, const h_device *d, const char *symbol) {
  FILE *f = fopen(arena_printf(a, "%s/%s.cu", d->dir, symbol), "r");
  if (!f) return NULL;
  fseek(f, 0, SEEK_END);
  size_t n = (size_t)ftell(f);
  rewind(f);
  char *text = arena_alloc(a, n + 1);
  if (fread(text, 1, n, f) != n) text = NULL;
  fclose(f);
  return text;
}

typedef struct function {
  const char *symbol, *text;
  size_t n;
} function;

static int longest_first(const void *a, const void *b) {
  const function *x = a, *y = b;
  if (x->n != y->n) return x->n < y->n ? 1 : -1;
  return strcmp(x->symbol, y->symbol);
}

// Texts of equal length, so that compilers side by side end together.
const char *h_device_compile(arena *a, h_device *d) {
  enum { MAX_TEXTS = 512, TEXT_BYTES = 100 << 10 };
  int64_t start = clock_ns();
  const char *const *symbol, *why = NULL;
  int all = h_device_functions(a, d, &symbol), n = 1;
  function *f = arena_new(a, function, all + 1);
  size_t bytes = 0;
  for (int i = 0; i < all; i++) {
    f[i] = (function){symbol[i], h_device_text(a, d, symbol[i]), 0};
    if (!f[i].text) return "a function is gone";
    bytes += f[i].n = strlen(f[i].text);
  }
  qsort(f, (size_t)all, sizeof *f, longest_first);
  n += (int)(bytes / TEXT_BYTES);
  n = n > MAX_TEXTS ? MAX_TEXTS : n % 2 ? n + 1 : n;
  sb *part = arena_new(a, sb, n);
  for (int i = 0; i < n; i++) {
    part[i].arena = a;
    sb_printf(&part[i], "#line %d\n%s", EMU_PRELUDE + 1, cuda_prelude());
  }
  for (int i = 0; i < all; i++)
    sb_printf(&part[i % n], "#line 1 \"%s\"\n%s\n", f[i].symbol, f[i].text);
  const char **text = arena_new(a, const char *, n);
  for (int i = 0; i < n; i++) text[i] = sb_str(&part[i]);
  const char *so = arena_printf(a, "%s/kernels.so", d->dir);
  why = emu_compile(a, d->dir, text, n, so);
  if (!why) why = emu_open(a, so, &d->code);
  d->compiled = true;
  d->functions = all;
  d->compile_s = (double)(clock_ns() - start) * 1e-9;
  return why;
}

// ---- a program ----------------------------------------------------------------------------------

typedef struct one_kernel {
  h_emulated *of;
  const k_kernel *kernel;
  cuda_kernel c;
  const emu_kernel *k;
  int64_t host;  // where its host code lies
} one_kernel;

// What is known of a byte of the arena.
enum {
  WRITTEN = 1,   // may be read; the emulation sets it
  TOUCHED = 2,   // by the op that runs now
  POISONED = 4,  // filled before that op
};

struct h_emulated {
  const h_device *device;
  const prog *p;
  vm *vm;
  vm_observer observer;
  int64_t arena_bytes;
  unsigned char *written, *known;  // a byte for each of the arena: WRITTEN; the other two
  const prog_instr *now;
  const emu_turn *turn;
  prog_step step;
  char *error;          // room for EMU_ERROR; "": none
  unsigned char *host;  // code for h_device.beside_host, or NULL
  size_t host_bytes;
};

static void call_cells(unsigned char *const *buf, const dsm_call *call, int64_t lo, int64_t hi,
                       const one_kernel *k);

// The code of a kernel of the program: call_cells with one argument more.
//   movabs $k, %r8;  movabs $call_cells, %rax;  jmp *%rax
enum { CALL_BYTES = 32 };

static void put_call(unsigned char *code, const one_kernel *k) {
  static const unsigned char text[] = {0x49, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0,  //
                                       0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0};
  void (*to)(unsigned char *const *, const dsm_call *, int64_t, int64_t, const one_kernel *) =
      call_cells;
  memcpy(code, text, sizeof text);
  memcpy(code + 2, &k, sizeof k);
  memcpy(code + 12, &to, sizeof to);
}

static const char *make_host(h_emulated *e, cg_context *cg, one_kernel *list, int n) {
  cg_image image;
  const char *why = cg_compile(cg, NULL, &image);
  if (why) return why;
  e->host_bytes = (size_t)image.n;
  e->host = mmap(NULL, e->host_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (e->host == MAP_FAILED) return e->host = NULL, "no memory for host code";
  memcpy(e->host, image.bytes, e->host_bytes);
  for (int i = 0; i < n; i++) list[i].host = image.offset[i];
  return mprotect(e->host, e->host_bytes, PROT_READ | PROT_EXEC) ? "no host code" : NULL;
}

const char *h_emulate(arena *a, const h_device *d, cg_context *cg, cg_image *image,
                      h_emulated **out) {
  *out = NULL;
  k_kernel *const *kernel;
  int n = cg_kernels(cg, &kernel);
  h_emulated *e = arena_new(a, h_emulated, 1);
  e->device = d;
  e->error = arena_alloc(a, EMU_ERROR);
  one_kernel *list = arena_new(a, one_kernel, n + 1);
  *image = (cg_image){.n = (int64_t)n * CALL_BYTES,
                      .bytes = arena_alloc(a, (size_t)n * CALL_BYTES + 1),
                      .offset = arena_new(a, int64_t, n + 1),
                      .cpu = "",
                      .features = ""};
  for (int i = 0; i < n; i++) {
    list[i].of = e;
    list[i].kernel = kernel[i];
    const char *why = cuda_lower(a, kernel[i], &list[i].c);
    if (why) return arena_printf(a, H_NOT_LOWERED "%s: %s", kernel[i]->name, why);
    if (!d->compiled) {
      if ((why = h_device_add(a, d, list[i].c.symbol, list[i].c.source))) return why;
      continue;
    }
    bool victim = d->victim && str_eq(d->victim, list[i].c.symbol);
    list[i].k = emu_find(&d->code, victim ? d->instead : list[i].c.symbol);
    if (!list[i].k) return arena_printf(a, "function %s was not compiled", list[i].c.symbol);
    image->offset[i] = (int64_t)i * CALL_BYTES;
    put_call(image->bytes + image->offset[i], &list[i]);
  }
  const char *why = d->compiled && d->beside_host && n ? make_host(e, cg, list, n) : NULL;
  *out = d->compiled && !why ? e : NULL;
  return why;
}

// ---- what was written ---------------------------------------------------------------------------

static void fail(h_emulated *e, const char *what, int64_t from, int64_t to) {
  if (*e->error) return;
  snprintf(e->error, EMU_ERROR, "%s: bytes %lld..%lld of the arena %s",
           e->now ? prog_text(e->p, e->now->note) : "?", (long long)from, (long long)to, what);
}

// A launch may do small ops besides, which its note names behind semicolons: what counts is the
// first.
static bool same_op(const h_emulated *e, const prog_instr *a, const prog_instr *b) {
  const char *x = prog_text(e->p, a->note), *y = prog_text(e->p, b->note);
  size_t n = strcspn(x, ";");
  return strcspn(y, ";") == n && memcmp(x, y, n) == 0;
}

// Is instruction i the first (last) of its op in the task?
static bool begins_op(const h_emulated *e, const prog_task *t, uint32_t i) {
  return i == t->first_instr || !same_op(e, &e->p->instrs[i - 1], &e->p->instrs[i]);
}

static bool ends_op(const h_emulated *e, const prog_task *t, uint32_t i) {
  return i + 1 == t->first_instr + t->instrs || !same_op(e, &e->p->instrs[i], &e->p->instrs[i + 1]);
}

static void mark(h_emulated *e, const prog_operand *o, const unsigned char *at, unsigned bits) {
  unsigned char *k = e->known + (at - vm_at(e->vm, 0));
  for (int64_t i = 0; i < o->bytes; i++) k[i] = (unsigned char)(k[i] | bits);
}

static void fill(h_emulated *e, int64_t byte, unsigned known, unsigned char written) {
  e->known[byte] = (unsigned char)known;
  e->written[byte] = written;
  *vm_at(e->vm, byte) = 0xff;
}

// Fills what the instruction writes, unless it or an instruction of the same op before it has to do
// with those bytes. What it reads and writes may hold nothing yet, as a sum does in micro-batch 0:
// then it may be read, but what is there is no number. An `append` writes a part of a cache.
static void poison(h_emulated *e, const prog_instr *in, unsigned char *const *buf) {
  const prog_operand *o = &e->p->operands[in->first_operand];
  for (uint32_t i = 0; i < in->operands; i++)
    if (o[i].writes & EMU_READ) mark(e, &o[i], buf[i], TOUCHED);
  bool part = str_starts(prog_text(e->p, in->note), "append");
  for (uint32_t i = 0; i < in->operands; i++) {
    int64_t first = buf[i] - vm_at(e->vm, 0), end = first + o[i].bytes;
    if (o[i].writes == (EMU_READ | EMU_WRITE)) {
      for (int64_t k = first; k < end; k++)
        if (!e->written[k]) fill(e, k, TOUCHED, WRITTEN);
    } else if (o[i].writes == EMU_WRITE && !part) {
      for (int64_t k = first; k < end; k++)
        if (!(e->known[k] & TOUCHED)) fill(e, k, TOUCHED | POISONED, 0);
    }
  }
}

static void all_written(h_emulated *e) {
  for (int64_t k = 0; k < e->arena_bytes; k++) {
    if (!(e->known[k] & POISONED) || e->written[k]) continue;
    int64_t end = k;
    while (end < e->arena_bytes && e->known[end] & POISONED && !e->written[end]) end++;
    fail(e, "were never written", k, end - 1);
    return;
  }
}

static void see(void *ctx, vm_moment when, const vm_where *at) {
  h_emulated *e = ctx;
  if (when != VM_INSTR_BEGIN && when != VM_INSTR_END) return;
  const prog_task *t = &e->p->tasks[at->task];
  const prog_instr *in = e->now = &e->p->instrs[at->instr];
  const prog_operand *o = &e->p->operands[in->first_operand];
  if (when == VM_INSTR_BEGIN) {
    if (begins_op(e, t, at->instr)) memset(e->known, 0, (size_t)e->arena_bytes);
    if (in->op == RTOP_launch) poison(e, in, at->buf);
    return;
  }
  if (in->op == RTOP_zero || in->op == RTOP_copy) {  // what the runtime does itself
    int64_t to = at->buf[0] - vm_at(e->vm, 0);
    if (in->op == RTOP_zero)
      memset(e->written + to, WRITTEN, (size_t)o[0].bytes);
    else
      memmove(e->written + to, e->written + (at->buf[1] - vm_at(e->vm, 0)), (size_t)o[0].bytes);
  }
  if (ends_op(e, t, at->instr)) all_written(e);
}

static unsigned char *copied(const unsigned char *at, int64_t n) {
  unsigned char *c = malloc((size_t)n + 1);
  if (c) memcpy(c, at, (size_t)n);
  return c;
}

// ---- beside the host ----------------------------------------------------------------------------

static double number_at(const unsigned char *at, uint32_t dtype, int64_t i) {
  double v = 0;
  at += i * dtype_of(dtype)->bytes;
  if (dtype_convertible(PROG_F64, dtype)) {
    dtype_convert(&v, PROG_F64, at, dtype, 1);
  } else {
    int64_t whole = 0;
    memcpy(&whole, at, (size_t)dtype_of(dtype)->bytes);
    v = (double)whole;
  }
  return v;
}

// Operand i as the emulation and as the host wrote it.
static void compare_operand(h_emulated *e, const one_kernel *k, int i, const unsigned char *got,
                            const unsigned char *want, int64_t bytes,
                            const unsigned char *written) {
  uint32_t dtype = (uint32_t)k->kernel->buffer[i].dtype;
  int64_t each = dtype_of(dtype)->bytes, n = bytes / each;
  double largest = 0, share = dtype == PROG_F32 || dtype == PROG_F64 ? 1e-4 : 2e-2;
  for (int64_t j = 0; j < n; j++) {
    double v = written[j * each] ? fabs(number_at(want, dtype, j)) : 0;
    if (v > largest && isfinite(v)) largest = v;
  }
  for (int64_t j = 0; j < n; j++) {
    double x = number_at(got, dtype, j), y = number_at(want, dtype, j);
    if (!written[j * each] || x == y || (isnan(x) && isnan(y))) continue;
    if (fabs(x - y) <= share * largest) continue;
    snprintf(e->error, EMU_ERROR,
             "%s (%s): element %lld of operand %d (%s) is %.9g, the host's is %.9g",
             prog_text(e->p, e->now->note), k->c.symbol, (long long)j, i, k->kernel->buffer[i].name,
             x, y);
    return;
  }
}

// `copy` is the arena as it was before the launch.
static void run_beside(h_emulated *e, const one_kernel *k, unsigned char *const *buf,
                       const dsm_call *call, unsigned char *copy) {
  unsigned char *to[EMU_MAX_BUFFERS], *arena0 = vm_at(e->vm, 0);
  const prog_operand *o = &e->p->operands[e->now->first_operand];
  int n = (int)e->now->operands;
  for (int i = 0; i < n; i++) to[i] = copy + (buf[i] - arena0);
  const unsigned char *at = e->host + k->host;
  dsm_kernel *run;
  memcpy(&run, &at, sizeof at);
  run(to, call, 0, k->c.blocks);
  for (int i = 0; i < n && !*e->error; i++)
    if (o[i].writes & EMU_WRITE)
      compare_operand(e, k, i, buf[i], to[i], o[i].bytes, e->written + (buf[i] - arena0));
}

// ---- launches -----------------------------------------------------------------------------------

// The pool hands out a grid in parts; the first of them does all.
static void call_cells(unsigned char *const *buf, const dsm_call *call, int64_t lo, int64_t hi,
                       const one_kernel *k) {
  h_emulated *e = k->of;
  (void)hi;
  if (lo > 0 || *e->error) return;
  enum { WORDS = EMU_MAX_BUFFERS + 4 };
  int n = (int)e->now->operands;
  emu_buffer buffer[EMU_MAX_BUFFERS];
  int64_t *args = calloc((size_t)(WORDS + k->c.nnumbers + 1), sizeof *args);
  if (!args || n > EMU_MAX_BUFFERS) {
    free(args);
    return fail(e, "have too many operands", 0, 0);
  }
  const prog_operand *o = &e->p->operands[e->now->first_operand];
  for (int i = 0; i < n; i++) {
    args[i] = (int64_t)(intptr_t)buf[i];
    buffer[i] = (emu_buffer){.at = buf[i],
                             .bytes = o[i].bytes,
                             .use = o[i].writes,
                             .written = e->written + (buf[i] - vm_at(e->vm, 0))};
  }
  args[n] = (int64_t)(intptr_t)&e->step;
  args[n + 1] = call->layer;
  args[n + 2] = call->micro;
  args[n + 3] = call->sample0 - e->step.sample0;
  for (int i = 0; i < k->c.nnumbers; i++) args[n + 4 + i] = k->c.number[i];
  emu_launch_info l = {.kernel = k->k,
                       .blocks = k->c.blocks,
                       .threads = k->c.threads,
                       .shared_bytes = k->c.shared_bytes,
                       .args = args,
                       .buffer = buffer,
                       .nbuffers = n,
                       .order = e->turn->order,
                       .seed = e->turn->seed};
  unsigned char *copy = e->host ? copied(vm_at(e->vm, 0), e->arena_bytes) : NULL;
  e->device->code.launch(&l, e->error, EMU_ERROR);
  if (copy && !*e->error) run_beside(e, k, buf, call, copy);
  free(copy);
  free(args);
}

// ---- calls --------------------------------------------------------------------------------------

void h_emulated_start(h_emulated *e, const prog *p, vm *m) {
  e->p = p;
  e->vm = m;
  e->arena_bytes = (int64_t)p->header->arena_bytes;
  e->written = calloc((size_t)e->arena_bytes + 1, 1);
  e->known = calloc((size_t)e->arena_bytes + 1, 1);
  e->observer = (vm_observer){see, e};
  vm_observe(m, &e->observer);
}

void h_emulated_close(h_emulated *e) {
  if (e->host) munmap(e->host, e->host_bytes);
  free(e->written);
  free(e->known);
}

// States, inputs and, in a call of decode, what prefill has left.
static void given(h_emulated *e, const prog_entry *en) {
  const prog_header *h = e->p->header;
  if (en->kind != PROG_DECODE)
    memset(e->written + h->states_bytes, 0, (size_t)(e->arena_bytes - (int64_t)h->states_bytes));
  memset(e->written, WRITTEN, h->states_bytes);
  for (uint32_t i = 0; i < en->inputs; i++) {
    const prog_io *io = &e->p->ios[en->first_input + i];
    int64_t pieces = io->sampled ? en->batch / en->micro_batch : 1;
    for (int64_t k = 0; k < pieces; k++)
      memset(e->written + io->offset + k * io->micro_stride, WRITTEN, (size_t)io->bytes);
  }
}

const char *h_emulated_call(arena *a, h_emulated *e, const prog_entry *en, const vm_step *s) {
  unsigned char *at = vm_at(e->vm, 0), *after = NULL;
  given(e, en);
  unsigned char *before = copied(at, e->arena_bytes), *known = copied(e->written, e->arena_bytes);
  e->step = (prog_step){.sample0 = s->sample0, .step = s->step, .past = s->past, .seed = s->seed};
  const char *why = before && known ? NULL : "out of memory";
  for (int i = 0; i < EMU_TURNS && !why; i++) {
    memcpy(at, before, (size_t)e->arena_bytes);
    memcpy(e->written, known, (size_t)e->arena_bytes);
    e->turn = emu_turn_at(i);
    *e->error = 0;
    vm_call(e->vm, en, s);
    if (*e->error) {
      why = arena_printf(a, "%s: %s", emu_turn_at(i)->name, e->error);
    } else if (!after) {
      after = copied(at, e->arena_bytes);
      if (!after) why = "out of memory";
    } else if (memcmp(at, after, (size_t)e->arena_bytes)) {
      int64_t k = 0;
      while (at[k] == after[k]) k++;
      why = arena_printf(a, "%s: other bits than forward at byte %lld of the arena",
                         emu_turn_at(i)->name, (long long)k);
    }
  }
  free(before);
  free(known);
  free(after);
  return why;
}
