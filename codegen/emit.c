// Kernels to machine code: LLVM modules, one quick pass pipeline, objects, one image.
//
// Kernels are dealt to a number of modules that depends on their number alone, and modules are
// compiled by as many threads as there are processors, each with an LLVM context and an arena of
// its own. The image is the modules' images in order, so it does not depend on the threads.
#include "codegen/emit.h"

#include <llvm-c/Analysis.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "codegen/host.h"

// Vectors and unrolling are ours: LLVM's vectorisers would only cost time. Everything that cleans
// up after our allocas, hoists addresses and inlines the helpers of host_math.c stays.
static const char pipeline[] =
    "always-inline,function(sroa,early-cse<memssa>,simplifycfg),cgscc(inline),"
    "function(sroa,early-cse<memssa>,simplifycfg,instcombine<no-verify-fixpoint>,"
    "loop-mssa(loop-simplifycfg,licm,loop-rotate,licm),simplifycfg,instcombine<no-verify-fixpoint>,"
    "loop(indvars,loop-deletion),gvn<no-pre>,dse,adce,simplifycfg,"
    "instcombine<no-verify-fixpoint>),globaldce,constmerge";

static const char *take_message(arena *a, char *message, const char *otherwise) {
  const char *text = message && *message ? arena_strdup(a, message) : otherwise;
  if (message) LLVMDisposeMessage(message);
  return text;
}

static const char *run_passes(arena *a, LLVMModuleRef m, LLVMTargetMachineRef tm) {
  LLVMPassBuilderOptionsRef options = LLVMCreatePassBuilderOptions();
  LLVMErrorRef error = LLVMRunPasses(m, pipeline, tm, options);
  LLVMDisposePassBuilderOptions(options);
  if (!error) return NULL;
  char *message = LLVMGetErrorMessage(error);
  const char *text = arena_strdup(a, message);
  LLVMDisposeErrorMessage(message);
  return text;
}

static bool has_feature(const char *features, const char *name) {
  size_t n = strlen(name);
  for (const char *p = features; (p = strstr(p, name)); p += n)
    if (p[n] == ',' || p[n] == 0) return true;
  return false;
}

// Does this CPU have 512-bit vectors? Features say so for this machine; a named CPU is asked.
static bool has_wide(const char *cpu, const char *features) {
  if (has_feature(features, "-avx512f")) return false;
  if (has_feature(features, "+avx512f")) return true;
  static const char *const wide[] = {"x86-64-v4",      "znver4",         "znver5",
                                     "skylake-avx512", "icelake-server", "sapphirerapids",
                                     "cooperlake"};
  for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
    if (str_eq(cpu, wide[i])) return true;
  return false;
}

// And vdpbf16ps on them?
static bool has_bf16(const char *cpu, const char *features) {
  if (has_feature(features, "-avx512bf16")) return false;
  if (has_feature(features, "+avx512bf16")) return true;
  static const char *const with[] = {"znver4", "znver5", "cooperlake", "sapphirerapids"};
  for (size_t i = 0; i < sizeof with / sizeof *with; i++)
    if (str_eq(cpu, with[i])) return true;
  return false;
}

static const char *symbol_of(arena *a, const k_kernel *k, int i) {
  char *s = arena_printf(a, "%s.%d", k->name, i);
  for (char *p = s; *p; p++)
    if (*p <= ' ' || *p == '"') *p = '_';
  return s;
}

// One module: some of the kernels.
typedef struct module_job {
  arena arena;
  jmp_buf oom;
  k_kernel **kernel;
  int *number, n;  // numbers of the kernels among all
  int64_t weight;  // statements, to deal kernels evenly
  const char *cpu, *features;
  bool want_ir;
  cg_image image;
  const char *why;
} module_job;

static const char *compile_module(host *h, LLVMTargetMachineRef tm, module_job *j) {
  cg_image *out = &j->image;
  const char **symbol = arena_new(h->arena, const char *, j->n + 1);
  for (int i = 0; i < j->n; i++) {
    symbol[i] = symbol_of(h->arena, j->kernel[i], j->number[i]);
    host_kernel(h, j->kernel[i], symbol[i]);
    if (h->stack > out->stack) out->stack = h->stack;
  }
  char *message = NULL;
  if (LLVMVerifyModule(h->module, LLVMReturnStatusAction, &message))
    return take_message(h->arena, message, "module does not verify");
  LLVMDisposeMessage(message);
  const char *why = run_passes(h->arena, h->module, tm);
  if (why) return why;
  if (j->want_ir) out->ir = take_message(h->arena, LLVMPrintModuleToString(h->module), "");
  LLVMMemoryBufferRef object = NULL;
  message = NULL;
  if (LLVMTargetMachineEmitToMemoryBuffer(tm, h->module, LLVMObjectFile, &message, &object))
    return take_message(h->arena, message, "no code for this target");
  why = image_layout(h->arena, (const unsigned char *)LLVMGetBufferStart(object),
                     LLVMGetBufferSize(object), symbol, j->n, out);
  LLVMDisposeMemoryBuffer(object);
  return why;
}

static const char *run_job(module_job *j) {
  static const char triple[] = "x86_64-unknown-linux-gnu";
  arena *a = &j->arena;
  LLVMTargetRef t;
  char *message = NULL;
  if (LLVMGetTargetFromTriple(triple, &t, &message))
    return take_message(a, message, "LLVM has no x86-64 target");
  LLVMTargetMachineRef tm = LLVMCreateTargetMachine(
      t, triple, j->cpu, j->features, LLVMCodeGenLevelDefault, LLVMRelocPIC, LLVMCodeModelSmall);
  if (!tm) return "LLVM made no target machine";
  LLVMContextRef context = LLVMContextCreate();
  host h = {.arena = a, .context = context, .cpu = j->cpu, .features = j->features};
  h.functions.arena = a;
  h.wide = has_wide(j->cpu, j->features);
  h.bf16 = h.wide && has_bf16(j->cpu, j->features);
  h.module = LLVMModuleCreateWithNameInContext("kernels", context);
  h.b = LLVMCreateBuilderInContext(context);
  LLVMSetTarget(h.module, triple);
  LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(tm);
  LLVMSetModuleDataLayout(h.module, layout);
  LLVMDisposeTargetData(layout);
  const char *why = compile_module(&h, tm, j);
  LLVMDisposeBuilder(h.b);
  LLVMDisposeModule(h.module);
  LLVMContextDispose(context);
  LLVMDisposeTargetMachine(tm);
  return why;
}

// A thread's arena must not jump into the caller's handler: the job fails instead (and what LLVM
// holds is lost, as the process is about to end).
static void job_oom(void *ctx) { longjmp(((module_job *)ctx)->oom, 1); }

typedef struct crew {
  module_job *job;
  int n;
  atomic_int next;
} crew;

static void *work(void *ctx) {
  crew *c = ctx;
  for (int i; (i = atomic_fetch_add(&c->next, 1)) < c->n;) {
    module_job *j = &c->job[i];
    if (setjmp(j->oom)) {
      j->why = "out of memory";
    } else {
      j->why = run_job(j);
    }
  }
  return NULL;
}

// Deals kernels to the module that has the fewest statements so far.
static module_job *deal(arena *a, k_kernel *const *kernel, int n, int modules, const cg_image *out,
                        bool want_ir) {
  module_job *job = arena_new(a, module_job, modules);
  for (int i = 0; i < modules; i++) {
    job[i].kernel = arena_new(a, k_kernel *, n);
    job[i].number = arena_new(a, int, n);
    job[i].cpu = out->cpu;
    job[i].features = out->features;
    job[i].want_ir = want_ir;
    arena_init(&job[i].arena);
    job[i].arena.oom = job_oom;
    job[i].arena.oom_ctx = &job[i];
  }
  for (int i = 0; i < n; i++) {
    module_job *to = &job[0];
    for (int m = 1; m < modules; m++)
      if (job[m].weight < to->weight) to = &job[m];
    to->kernel[to->n] = kernel[i];
    to->number[to->n++] = i;
    to->weight += kernel[i]->next_seq;
  }
  return job;
}

// One image behind the other; code starts at whole cache lines.
static void join_images(arena *a, const module_job *job, int modules, int n, cg_image *out) {
  int64_t bytes = 0, at = 0;
  for (int m = 0; m < modules; m++) bytes += (job[m].image.n + 63) / 64 * 64;
  out->bytes = arena_alloc(a, (size_t)bytes);
  out->offset = arena_new(a, int64_t, n);
  out->n = bytes;
  sb ir = {.arena = a};
  for (int m = 0; m < modules; m++) {
    const cg_image *i = &job[m].image;
    memcpy(out->bytes + at, i->bytes, (size_t)i->n);
    for (int k = 0; k < job[m].n; k++) out->offset[job[m].number[k]] = at + i->offset[k];
    if (i->stack > out->stack) out->stack = i->stack;
    if (i->ir) sb_puts(&ir, i->ir);
    at += (i->n + 63) / 64 * 64;
  }
  if (job[0].want_ir) out->ir = sb_str(&ir);
}

const char *cg_compile_kernels(arena *a, k_kernel *const *kernel, int n, const cg_target *target,
                               cg_image *out) {
  *out = (cg_image){0};
  LLVMInitializeX86TargetInfo();
  LLVMInitializeX86Target();
  LLVMInitializeX86TargetMC();
  LLVMInitializeX86AsmPrinter();
  char *host_cpu = LLVMGetHostCPUName(), *host_features = LLVMGetHostCPUFeatures();
  bool named = target && target->cpu;
  out->cpu = named ? target->cpu : arena_strdup(a, host_cpu);
  out->features = target && target->features ? target->features
                  : named                    ? ""
                                             : arena_strdup(a, host_features);
  LLVMDisposeMessage(host_cpu);
  LLVMDisposeMessage(host_features);
  if (n == 0) return NULL;

  enum { MAX_THREADS = 8 };
  int modules = n < 24 ? 1 : 4;  // each repeats the helpers it uses: not too many
  crew c = {.job = deal(a, kernel, n, modules, out, target && target->want_ir), .n = modules};
  long cpus = sysconf(_SC_NPROCESSORS_ONLN);
  int threads = cpus < 1 ? 1 : cpus > MAX_THREADS ? MAX_THREADS : (int)cpus, started = 0;
  pthread_t thread[MAX_THREADS];
  while (started + 1 < threads && started + 1 < modules &&
         pthread_create(&thread[started], NULL, work, &c) == 0)
    started++;
  work(&c);
  for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
  const char *why = NULL;
  for (int m = 0; m < modules && !why; m++)
    if (c.job[m].why) why = arena_strdup(a, c.job[m].why);
  if (!why) join_images(a, c.job, modules, n, out);
  for (int m = 0; m < modules; m++) arena_free(&c.job[m].arena);
  return why;
}

const char *cg_compile(cg_context *cg, const cg_target *target, cg_image *out) {
  k_kernel *const *kernel;
  int n = cg_kernels(cg, &kernel);
  return cg_compile_kernels(cg_arena(cg), kernel, n, target, out);
}

void cg_print_kernels(cg_context *cg, sb *out) {
  k_kernel *const *kernel;
  int n = cg_kernels(cg, &kernel);
  for (int i = 0; i < n; i++) {
    if (i) sb_put(out, '\n');
    k_print(out, kernel[i]);
  }
}
