// Kernels to machine code: LLVM modules, one quick pass pipeline, objects, one image.
//
// Each kernel is a module of its own with the helpers it uses, so that its code depends on nothing
// but its text, and can come from the cache (codegen/cache.h). Helpers of several kernels are
// small: together they are a hundredth of an image. Kernels are compiled by several threads, each
// kernel with an LLVM context and an arena of its own; the image is the kernels' images in order,
// so it depends neither on the threads nor on the cache.
#include "codegen/emit.h"

#include <llvm-c/Analysis.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <string.h>

#include "codegen/crew.h"
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

// And vdpbf16ps and vcvtneps2bf16 on them?
static bool has_bf16(const char *cpu, const char *features) {
  if (!has_wide(cpu, features) || has_feature(features, "-avx512bf16")) return false;
  if (has_feature(features, "+avx512bf16")) return true;
  static const char *const with[] = {"znver4", "znver5", "cooperlake", "sapphirerapids"};
  for (size_t i = 0; i < sizeof with / sizeof *with; i++)
    if (str_eq(cpu, with[i])) return true;
  return false;
}

// The function's name, never that of a libc function, which LLVM would take it for.
static const char *symbol_of(arena *a, const k_kernel *k) {
  char *s = arena_printf(a, "kernel.%s", k->name);
  for (char *p = s; *p; p++)
    if (*p <= ' ' || *p == '"') *p = '_';
  return s;
}

// One kernel.
typedef struct kernel_job {
  const k_kernel *kernel;
  const cg_target *target;
  const kernel_cache *cache;  // or NULL
  const char *identity;       // for its keys
  const char *cpu, *features;
  cg_image image;
  bool hit;
} kernel_job;

static const char *compile_module(host *h, LLVMTargetMachineRef tm, kernel_job *j) {
  cg_image *out = &j->image;
  const char *symbol = symbol_of(h->arena, j->kernel);
  host_kernel(h, j->kernel, symbol);
  out->stack = h->stack;
  char *message = NULL;
  if (LLVMVerifyModule(h->module, LLVMReturnStatusAction, &message))
    return take_message(h->arena, message, "module does not verify");
  LLVMDisposeMessage(message);
  const char *why = run_passes(h->arena, h->module, tm);
  if (why) return why;
  if (j->target->want_ir) out->ir = take_message(h->arena, LLVMPrintModuleToString(h->module), "");
  LLVMMemoryBufferRef object = NULL;
  message = NULL;
  if (LLVMTargetMachineEmitToMemoryBuffer(tm, h->module, LLVMObjectFile, &message, &object))
    return take_message(h->arena, message, "no code for this target");
  why = image_layout(h->arena, (const unsigned char *)LLVMGetBufferStart(object),
                     LLVMGetBufferSize(object), &symbol, 1, out);
  LLVMDisposeMemoryBuffer(object);
  return why;
}

static const char *compile_kernel(arena *a, kernel_job *j) {
  static const char triple[] = "x86_64-unknown-linux-gnu";
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
  h.bf16 = has_bf16(j->cpu, j->features);
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

// ---- the cache ----------------------------------------------------------------------------------

const char *cg_cache_identity(arena *a, const char *cpu, const char *features) {
  unsigned v[3];
  LLVMGetVersion(&v[0], &v[1], &v[2]);
  const char *(*mine)(arena *, const char *, const char *) = cg_cache_identity;
  LLVMContextRef (*llvm)(void) = LLVMContextCreate;
  const void *address[2];
  memcpy(&address[0], &mine, sizeof mine);
  memcpy(&address[1], &llvm, sizeof llvm);
  const char *ids = cache_build_ids(a, address, 2);
  // Lines, so that where a field ends makes a difference.
  return ids ? arena_printf(a, "host\n%u.%u.%u\n%s%s\n%s", v[0], v[1], v[2], ids, cpu, features)
             : NULL;
}

cache_key cg_cache_key(arena *a, const char *identity, const k_kernel *k) {
  sb text = {.arena = a};
  k_print(&text, k);
  const char *const depends[] = {identity, sb_str(&text)};
  return cache_key_of(depends, 2);
}

// What an entry holds in front of the code.
typedef struct entry {
  int64_t offset, stack;  // as in cg_image
} entry;

static bool from_cache(arena *a, const kernel_job *j, cache_key key, cg_image *out) {
  cache_bytes b;
  entry e;
  if (!cache_get(j->cache, a, key, &b) || b.n <= sizeof e) return false;
  memcpy(&e, b.at, sizeof e);
  out->n = (int64_t)(b.n - sizeof e);
  if (e.offset < 0 || e.offset >= out->n) return false;
  out->bytes = b.at + sizeof e;
  out->offset = arena_new(a, int64_t, 1);
  out->offset[0] = e.offset;
  out->stack = e.stack;
  return true;
}

static void to_cache(arena *a, const kernel_job *j, cache_key key) {
  const cg_image *x = &j->image;
  entry e = {x->offset[0], x->stack};
  cache_bytes b = {.n = sizeof e + (size_t)x->n};
  b.at = arena_alloc(a, b.n);
  memcpy(b.at, &e, sizeof e);
  memcpy(b.at + sizeof e, x->bytes, (size_t)x->n);
  cache_put(j->cache, a, key, b);
}

static const char *run_job(void *ctx, int i, arena *own) {
  kernel_job *j = (kernel_job *)ctx + i;
  if (!j->cache) return compile_kernel(own, j);
  cache_key key = cg_cache_key(own, j->identity, j->kernel);
  j->hit = from_cache(own, j, key, &j->image);
  if (j->hit) return NULL;
  const char *why = compile_kernel(own, j);
  if (!why) to_cache(own, j, key);
  return why;
}

// ---- all kernels --------------------------------------------------------------------------------

// One image behind the other; each starts at a whole cache line.
static void join_images(arena *a, const kernel_job *job, int n, cg_image *out) {
  int64_t at = 0;
  for (int i = 0; i < n; i++) out->n += (job[i].image.n + 63) / 64 * 64;
  out->bytes = arena_alloc(a, (size_t)out->n);
  out->offset = arena_new(a, int64_t, n);
  sb ir = {.arena = a};
  for (int i = 0; i < n; i++) {
    const cg_image *x = &job[i].image;
    memcpy(out->bytes + at, x->bytes, (size_t)x->n);
    out->offset[i] = at + x->offset[0];
    if (x->stack > out->stack) out->stack = x->stack;
    if (x->ir) sb_puts(&ir, x->ir);
    at += (x->n + 63) / 64 * 64;
  }
  if (job[0].image.ir) out->ir = sb_str(&ir);
}

const char *cg_compile_kernels(arena *a, k_kernel *const *kernel, int n, const cg_target *target,
                               cg_image *out) {
  static const cg_target this_machine = {0};
  if (!target) target = &this_machine;
  *out = (cg_image){0};
  LLVMInitializeX86TargetInfo();
  LLVMInitializeX86Target();
  LLVMInitializeX86TargetMC();
  LLVMInitializeX86AsmPrinter();
  char *host_cpu = LLVMGetHostCPUName(), *host_features = LLVMGetHostCPUFeatures();
  out->cpu = target->cpu ? target->cpu : arena_strdup(a, host_cpu);
  out->features = target->features ? target->features
                  : target->cpu    ? ""
                                   : arena_strdup(a, host_features);
  LLVMDisposeMessage(host_cpu);
  LLVMDisposeMessage(host_features);
  out->flushes = has_bf16(out->cpu, out->features);
  if (n == 0) return NULL;

  const char *identity = NULL;
  const kernel_cache *cache = NULL;
  if (target->cache && !target->want_ir) {
    identity = cg_cache_identity(a, out->cpu, out->features);
    if (identity) cache = cache_open(a, target->cache);
  }
  kernel_job *job = arena_new(a, kernel_job, n);
  int64_t *size = arena_new(a, int64_t, n);
  for (int i = 0; i < n; i++) {
    job[i] = (kernel_job){.kernel = kernel[i],
                          .target = target,
                          .cache = cache,
                          .identity = identity,
                          .cpu = out->cpu,
                          .features = out->features};
    size[i] = kernel[i]->next_seq;
  }
  crew_job *crew = arena_new(a, crew_job, n);
  crew_run(crew, crew_order(a, size, n), n, target->threads, run_job, job);
  const char *why = NULL;
  for (int i = 0; i < n; i++) {
    if (crew[i].why && !why) why = arena_strdup(a, crew[i].why);
    out->hits += job[i].hit;
  }
  out->misses = n - out->hits;
  if (!why) join_images(a, job, n, out);
  for (int i = 0; i < n; i++) arena_free(&crew[i].arena);
  if (cache && out->misses) cache_trim(cache, a, CACHE_BYTES);
  out->cached = cache != NULL;
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
