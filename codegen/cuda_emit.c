#include "codegen/cuda_emit.h"

#include <string.h>

#include "codegen/crew.h"

const char *cuda_made_for(arena *a, const k_kernel *k) {
  const ir_op *op = k ? k->op : NULL;
  if (!op) return k ? k->name : "a test";
  sb s = {.arena = a};
  sb_puts(&s, ir_info(op->code)->name);
  if (op->nout && op->out[0]->name) sb_printf(&s, " %s", op->out[0]->name);
  if (op->span.line && op->span.file) {
    const char *slash = strrchr(op->span.file, '/');
    sb_printf(&s, ", line %d of %s", op->span.line, slash ? slash + 1 : op->span.file);
  }
  return sb_str(&s);
}

void cuda_lower_all(arena *a, k_kernel *const *kernel, int n, cuda_unit *out) {
  *out = (cuda_unit){.nkernels = n,
                     .kernel = arena_new(a, cuda_kernel, n),
                     .function_of = arena_new(a, int, n),
                     .why = arena_new(a, const char *, n),
                     .function = arena_new(a, cuda_function, n)};
  // Of equal functions with different names (a copy is a copy, whether it joins or appends) the
  // first one is taken.
  map by_text = {.arena = a}, by_symbol = {.arena = a};
  for (int i = 0; i < n; i++) {
    cuda_kernel *c = &out->kernel[i];
    out->why[i] = cuda_lower(a, kernel[i], c);
    out->function_of[i] = -1;
    if (out->why[i]) {
      out->refused++;
      continue;
    }
    int known = map_find(&by_text, c->text);
    if (known >= 0) {
      const cuda_function *f = &out->function[known];
      IR_CHECK(f->threads == c->threads && f->shared_bytes == c->shared_bytes);
      c->symbol = f->symbol;
      c->source = f->source;
      out->function_of[i] = known;
      continue;
    }
    if (map_find(&by_symbol, c->symbol) >= 0) IR_BUG("two functions called %s", c->symbol);
    map_set(&by_text, c->text, NULL);
    map_set(&by_symbol, c->symbol, NULL);
    out->function_of[i] = out->nfunctions;
    out->function[out->nfunctions++] = (cuda_function){.symbol = c->symbol,
                                                       .source = c->source,
                                                       .threads = c->threads,
                                                       .shared_bytes = c->shared_bytes,
                                                       .kernel = kernel[i]};
  }
}

void cuda_print(const cuda_unit *u, sb *out) {
  sb_puts(out, cuda_prelude());
  for (int i = 0; i < u->nfunctions; i++) {
    sb_put(out, '\n');
    sb_puts(out, u->function[i].source);
  }
}

// ---- functions for one architecture -------------------------------------------------------------

// What NVRTC takes for a program as such is a third of what it takes for a small function. So
// functions share one, until it is so many or so many bytes of text.
enum { MOST_FUNCTIONS = 8, MOST_TEXT = 12000 };

typedef struct function_job {
  const struct everything *all;
  const cuda_function *function;  // the first of
  int functions;                  // so many
  const char *architecture;
  nvrtc_usage usage[MOST_FUNCTIONS];
  cache_bytes code;
  bool hit, ours;
} function_job;

// What the jobs share.
typedef struct everything {
  const nvrtc *nvrtc;
  const kernel_cache *cache;  // or NULL
  const char *identity;       // of NVRTC and its options, for keys
  function_job *job;
} everything;

// Lines are counted by function, so that messages say what they are about.
static const char *program_of(arena *a, const function_job *j) {
  sb s = {.arena = a};
  sb_printf(&s, "#line 1 \"prelude.cuh\"\n%s\n", cuda_prelude());
  for (int i = 0; i < j->functions; i++)
    sb_printf(&s, "#line 1 \"%s\"\n%s", j->function[i].symbol, j->function[i].source);
  return sb_str(&s);
}

// An entry of the cache: what ptxas reported of each function, then the code.
static size_t report_bytes(const function_job *j) {
  return (size_t)j->functions * sizeof j->usage[0];
}

static bool from_cache(arena *a, function_job *j, cache_key key) {
  cache_bytes b;
  size_t n = report_bytes(j);
  if (!cache_get(j->all->cache, a, key, &b) || b.n <= n) return false;
  memcpy(j->usage, b.at, n);
  j->code = (cache_bytes){b.at + n, b.n - n};
  return true;
}

static void to_cache(arena *a, const function_job *j, cache_key key) {
  size_t n = report_bytes(j);
  cache_bytes b = {.n = n + j->code.n};
  b.at = arena_alloc(a, b.n);
  memcpy(b.at, j->usage, n);
  memcpy(b.at + n, j->code.at, j->code.n);
  cache_put(j->all->cache, a, key, b);
}

// Which of a program's functions an error is in: the log's lines say.
static const cuda_function *guilty(const function_job *j, const char *log) {
  for (int i = 0; i < j->functions; i++) {
    const char *symbol = j->function[i].symbol;
    size_t n = strlen(symbol);
    for (const char *p = log; (p = strstr(p, symbol)); p += n)
      if ((p == log || p[-1] == '\n') && p[n] == '(') return &j->function[i];
  }
  return j->function;
}

static const char *compile_functions(arena *a, function_job *j, const char *text) {
  nvrtc_output o;
  nvrtc_compile(j->all->nvrtc, a, j->function->symbol, text, j->architecture, &o);
  j->ours = o.outcome == NVRTC_REJECTED;
  if (o.outcome == NVRTC_UNABLE)
    return arena_printf(a, "NVRTC %s (%s) cannot compile for %s: %.*s", j->all->nvrtc->version,
                        j->all->nvrtc->library.path, j->architecture, (int)strcspn(o.log, "\n"),
                        o.log);
  const cuda_function *f = guilty(j, o.log);
  if (o.outcome != NVRTC_DONE)
    return arena_printf(a, "NVRTC %s, %s: function %s, made for %s:\n%s", j->all->nvrtc->version,
                        j->architecture, f->symbol, cuda_made_for(a, f->kernel), o.log);
  for (int i = 0; i < j->functions; i++)
    nvrtc_read_usage(o.log, j->function[i].symbol, &j->usage[i]);
  j->code = (cache_bytes){o.bytes, o.n};
  return NULL;
}

static const char *run_job(void *ctx, int i, arena *own) {
  const everything *all = ctx;
  function_job *j = &all->job[i];
  const char *text = program_of(own, j);
  if (!all->cache) return compile_functions(own, j, text);
  const char *const depends[] = {all->identity, j->architecture, text};
  cache_key key = cache_key_of(depends, 3);
  j->hit = from_cache(own, j, key);
  if (j->hit) return NULL;
  const char *why = compile_functions(own, j, text);
  if (!why) to_cache(own, j, key);
  return why;
}

// ---- all functions ------------------------------------------------------------------------------

// Of NVRTC: its version and, since bugs are mended without a new version, its build id.
static const char *identity_of(arena *a, const nvrtc *n) {
  const void *address;
  memcpy(&address, &n->nvrtcVersion, sizeof address);
  const char *ids = cache_build_ids(a, &address, 1);
  return ids ? arena_printf(a, "nvrtc\n%s\n%s%s", n->version, ids, nvrtc_options(n, a)) : NULL;
}

static int functions_from(const cuda_unit *u, int f) {
  int n = 0;
  size_t text = 0;
  while (f + n < u->nfunctions && n < MOST_FUNCTIONS) {
    text += strlen(u->function[f + n].source);
    if (n && text > MOST_TEXT) break;
    n++;
  }
  return n;
}

// The jobs: for each target and then for PTX, all functions.
static int make_jobs(arena *a, const everything *all, const cuda_unit *u, const cuda_options *o,
                     function_job **out) {
  const gpu_target *t;
  int nt = gpu_targets(&t), n = 0;
  function_job *job = arena_new(a, function_job, u->nfunctions * (nt + 1));
  for (int i = 0; i <= nt; i++) {
    if (!(i == nt ? o->ptx : o->targets >> i & 1)) continue;
    for (int f = 0; f < u->nfunctions; f += job[n++].functions)
      job[n] = (function_job){.all = all,
                              .function = &u->function[f],
                              .functions = functions_from(u, f),
                              .architecture = i == nt ? GPU_PTX : t[i].name};
  }
  *out = job;
  return n;
}

// What no compiler refuses and no device launches.
static const char *limits(arena *a, const function_job *j, const gpu_target *t) {
  for (int i = 0; i < j->functions; i++) {
    const cuda_function *f = &j->function[i];
    int shared = f->shared_bytes + j->usage[i].shared;
    if (shared > t->shared)
      return arena_printf(a, "function %s, made for %s: %d bytes of shared memory, %s has %d",
                          f->symbol, cuda_made_for(a, f->kernel), shared, t->name, t->shared);
  }
  return NULL;
}

// Jobs first .. first + n - 1, by several threads.
static void run_jobs(arena *a, everything *all, crew_job *crew, int first, int n, int threads) {
  int64_t *size = arena_new(a, int64_t, n);
  for (int i = 0; i < n; i++)
    for (int k = 0; k < all->job[first + i].functions; k++)
      size[i] += (int64_t)strlen(all->job[first + i].function[k].source);
  int *order = crew_order(a, size, n);
  for (int i = 0; i < n; i++) order[i] += first;
  crew_run(crew, order, n, threads, run_job, all);
}

static void join_modules(arena *a, cuda_unit *u, const function_job *job, int n, cg_image *out) {
  u->nmodules = n;
  u->module = arena_new(a, cuda_module, n);
  for (int i = 0; i < n; i++) {
    const function_job *j = &job[i];
    u->module[i] = (cuda_module){.target = j->architecture,
                                 .ptx = str_eq(j->architecture, GPU_PTX),
                                 .function = (int)(j->function - u->function),
                                 .functions = j->functions,
                                 .offset = out->n,
                                 .bytes = (int64_t)j->code.n};
    out->n += (u->module[i].bytes + 63) / 64 * 64;
    int row = gpu_find(j->architecture);
    for (int k = 0; row >= 0 && k < j->functions; k++)
      u->function[u->module[i].function + k].usage[row] = j->usage[k];
  }
  out->bytes = arena_alloc(a, (size_t)out->n);
  for (int i = 0; i < n; i++)
    memcpy(out->bytes + u->module[i].offset, job[i].code.at, job[i].code.n);
}

bool cuda_compile(arena *a, cuda_unit *u, const cuda_options *o, cg_image *out,
                  cuda_failure *failure) {
  *out = (cg_image){.cuda = u};
  *failure = (cuda_failure){0};
  nvrtc n;
  failure->text = nvrtc_open(a, &n);
  if (failure->text) return false;
  everything all = {.nvrtc = &n};
  if (o->cache) {
    all.identity = identity_of(a, &n);
    if (all.identity) all.cache = cache_open(a, o->cache);
  }
  int jobs = make_jobs(a, &all, u, o, &all.job);
  crew_job *crew = arena_new(a, crew_job, jobs);
  int cubins = 0;
  while (cubins < jobs && !str_eq(all.job[cubins].architecture, GPU_PTX)) cubins++;
  run_jobs(a, &all, crew, 0, cubins, o->threads);
  run_jobs(a, &all, crew, cubins, jobs - cubins, o->threads);  // not beside cubins: nvrtc.h
  const gpu_target *t;
  gpu_targets(&t);
  for (int i = 0; i < jobs; i++) {
    const function_job *j = &all.job[i];
    int row = gpu_find(j->architecture);
    const char *why = crew[i].why;
    bool over = !why && row >= 0 && (why = limits(a, j, &t[row])) != NULL;
    if (why && !failure->text)
      *failure = (cuda_failure){.ours = j->ours || over, .text = arena_strdup(a, why)};
    out->hits += j->hit;
  }
  out->misses = jobs - out->hits;
  if (!failure->text) join_modules(a, u, all.job, jobs, out);
  for (int i = 0; i < jobs; i++) arena_free(&crew[i].arena);
  if (all.cache && out->misses) cache_trim(all.cache, a, CACHE_BYTES);
  out->cached = all.cache != NULL;
  return !failure->text;
}
