#include "tests/oracle/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "codegen/emit.h"
#include "codegen/program.h"
#include "ir/schedule.h"
#include "runtime/dtype.h"
#include "tests/oracle/emulated.h"

// ---- texts --------------------------------------------------------------------------------------

static const char *printed(arena *a, diags *d) {
  char *text = NULL;
  size_t n = 0;
  FILE *f = open_memstream(&text, &n);
  diags_print(d, f);
  fclose(f);
  const char *kept = arena_strndup(a, text, n);
  free(text);
  return kept;
}

static h_text lower(arena *a, diags *d, sema_program *p, const char *name, const char *sets,
                    unsigned entries) {
  h_text t = {0};
  setting_list list = {0};
  if (sets && *sets) list = parse_settings(a, d, source_from_text(a, "--set", sets, strlen(sets)));
  if (p && !diags_errors(d)) t.job = sema_job(p, name ? name : p->asked, list);
  if (t.job && !diags_errors(d)) t.m = sema_lower(p, t.job, entries);
  if (diags_errors(d)) t.m = NULL;
  if (!t.m) t.error = printed(a, d);
  return t;
}

h_text h_lower(arena *a, const char *text, const char *name, const char *sets, unsigned entries) {
  diags d;
  diags_init(&d, a);
  sema_program *p = sema_open_text(a, &d, "case.dsm", text, strlen(text));
  return lower(a, &d, p, name, sets, entries);
}

h_text h_lower_file(arena *a, const char *file_and_name, const char *sets, unsigned entries) {
  diags d;
  diags_init(&d, a);
  sema_program *p = sema_open(a, &d, file_and_name);
  return lower(a, &d, p, NULL, sets, entries);
}

const char *h_passes_without(arena *a, const char *one) {
  const pass_info *list;
  int n = pass_list(&list);
  sb s = {.arena = a};
  for (int i = 0; i < n; i++)
    if (!str_eq(list[i].name, one)) sb_printf(&s, "%s%s", s.n ? "," : "", list[i].name);
  return sb_str(&s);
}

// ---- programs -----------------------------------------------------------------------------------

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const char *told(arena *a, status *s) {
  const char *text = arena_strdup(a, s->message);
  status_free(s);
  return text;
}

static const char *start(arena *a, h_program *p, const cg_image *image, const program_bytes *b) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  p->code_bytes = ((size_t)image->n + page) / page * page;
  p->code = mmap(NULL, p->code_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p->code == MAP_FAILED) {
    p->code = NULL;
    return "no memory for the code";
  }
  if (image->n) memcpy(p->code, image->bytes, (size_t)image->n);
  if (mprotect(p->code, p->code_bytes, PROT_READ | PROT_EXEC)) return "code cannot be executed";
  status *s = prog_open(b->at, b->n, (uint64_t)image->n, &p->p);
  if (s) return told(a, s);
  p->threads = pool_new(1);
  s = vm_open(&p->p, p->code, p->threads, &p->vm);
  return s ? told(a, s) : NULL;
}

static const char *compile(arena *a, ir_module *m, int64_t batch, skip_set skip, const h_device *d,
                           h_program **out) {
  double t = now();
  *out = NULL;
  cg_context *cg = cg_context_new(a, m);
  if (d) cg_use_machine(cg, CG_CUDA);
  pass_options o = pass_defaults();
  o.batch = batch;
  o.stage = IR_SCHEDULE;
  o.only = "order,select,layout";
  o.skip = skip;
  o.select = cg_select;
  o.select_ctx = cg;
  const char *why = pass_run(m, &o);
  if (why) return arena_printf(a, "schedule: %s", why);
  h_program *p = arena_new(a, h_program, 1);
  cg_image image;
  why = d ? h_emulate(a, d, cg, &image, &p->emulated) : cg_compile(cg, NULL, &image);
  if (why) return d ? why : arena_printf(a, "cg_compile: %s", why);
  if (d && !p->emulated) return NULL;
  program_info info = {.compiler = "test", .model = m->name, .cpu = "", .plan = ""};
  program_bytes b = program_write(cg, m->schedule, &image, &info);
  why = start(a, p, &image, &b);
  if (why) {
    h_close(p);
    return why;
  }
  if (p->emulated) h_emulated_start(p->emulated, &p->p, p->vm);
  p->compile_s = now() - t;
  *out = p;
  return NULL;
}

const char *h_compile(arena *a, ir_module *m, int64_t batch, h_program **out) {
  return compile(a, m, batch, 0, NULL, out);
}

const char *h_compile_without(arena *a, ir_module *m, int64_t batch, skip_set skip,
                              h_program **out) {
  return compile(a, m, batch, skip, NULL, out);
}

const char *h_compile_for(arena *a, ir_module *m, int64_t batch, skip_set skip, const h_device *d,
                          h_program **out) {
  return compile(a, m, batch, skip, d, out);
}

const char *h_call(arena *a, h_program *p, const prog_entry *e, const vm_step *s) {
  if (p->emulated) return h_emulated_call(a, p->emulated, e, s);
  vm_call(p->vm, e, s);
  return NULL;
}

void h_close(h_program *p) {
  if (!p) return;
  if (p->emulated) h_emulated_close(p->emulated);
  if (p->vm) vm_close(p->vm);
  if (p->threads) pool_free(p->threads);
  if (p->code) munmap(p->code, p->code_bytes);
}

static void store(unsigned char *at, uint32_t dtype, double v) {
  switch (dtype) {
    case PROG_I32: *(int32_t *)(void *)at = (int32_t)v; break;
    case PROG_I64: *(int64_t *)(void *)at = (int64_t)v; break;
    case PROG_I16: *(int16_t *)(void *)at = (int16_t)v; break;
    case PROG_U16: *(uint16_t *)(void *)at = (uint16_t)v; break;
    case PROG_I8: *(int8_t *)(void *)at = (int8_t)v; break;
    case PROG_BOOL: *at = v != 0; break;
    default: dtype_convert(at, dtype, &v, PROG_F64, 1);
  }
}

static double fetch(const unsigned char *at, uint32_t dtype) {
  double v = 0;
  switch (dtype) {
    case PROG_I32: return *(const int32_t *)(const void *)at;
    case PROG_I64: return (double)*(const int64_t *)(const void *)at;
    case PROG_I16: return *(const int16_t *)(const void *)at;
    case PROG_U16: return *(const uint16_t *)(const void *)at;
    case PROG_I8: return *(const int8_t *)at;
    case PROG_BOOL: return *at;
    default: dtype_convert(&v, PROG_F64, at, dtype, 1); return v;
  }
}

static void store_all(unsigned char *at, uint32_t dtype, const double *data, int64_t n) {
  for (int64_t i = 0; i < n; i++) store(at + i * dtype_of(dtype)->bytes, dtype, data[i]);
}

static void fetch_all(const unsigned char *at, uint32_t dtype, double *data, int64_t n) {
  for (int64_t i = 0; i < n; i++) data[i] = fetch(at + i * dtype_of(dtype)->bytes, dtype);
}

const char *h_give(h_program *p, const prog_entry *e, const char *name, const double *data,
                   int64_t n) {
  const prog_io *io = prog_input(&p->p, e, name);
  if (!io) return "the entry has no such input";
  int64_t pieces = io->sampled ? e->batch / e->micro_batch : 1, each = prog_io_elements(io);
  if (pieces * each != n) return "an input of another size";
  for (int64_t k = 0; k < pieces; k++)
    store_all(vm_at(p->vm, io->offset + k * io->micro_stride), io->dtype, data + k * each, each);
  return NULL;
}

static const prog_state *state_of(h_program *p, const char *name, int64_t n) {
  for (uint32_t i = 0; i < p->p.nstates; i++) {
    const prog_state *s = &p->p.states[i];
    if (str_eq(prog_text(&p->p, s->name), name) &&
        prog_state_slices(s) * prog_state_elements(s) == n)
      return s;
  }
  return NULL;
}

const char *h_set_state(h_program *p, const char *name, const double *data, int64_t n) {
  const prog_state *s = state_of(p, name, n);
  if (!s) return "the program has no such state of this size";
  int64_t each = prog_state_elements(s);
  for (int64_t k = 0; k < prog_state_slices(s); k++)
    store_all(vm_at(p->vm, s->offset + k * s->layer_stride), s->dtype, data + k * each, each);
  vm_make_copies(p->vm);
  return NULL;
}

const char *h_get_state(h_program *p, const char *name, double *data, int64_t n) {
  const prog_state *s = state_of(p, name, n);
  if (!s) return "the program has no such state of this size";
  int64_t each = prog_state_elements(s);
  for (int64_t k = 0; k < prog_state_slices(s); k++)
    fetch_all(vm_at(p->vm, s->offset + k * s->layer_stride), s->dtype, data + k * each, each);
  return NULL;
}

const char *h_output(h_program *p, const prog_entry *e, const char *name, double *data, int64_t n) {
  const prog_io *io = prog_output(&p->p, e, name);
  if (!io) return "the entry has no such output";
  if (prog_io_elements(io) != n) return "an output of another size";
  fetch_all(vm_at(p->vm, io->offset), io->dtype, data, n);
  return NULL;
}

// ---- data ---------------------------------------------------------------------------------------

double *h_numbers(arena *a, const st_tensor *t, int64_t *n) {
  *n = 1;
  for (uint32_t d = 0; d < t->rank; d++) *n *= t->dims[d];
  double *x = arena_new(a, double, *n + 1);
  fetch_all(t->data, t->dtype, x, *n);
  return x;
}

void h_round_f32(double *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = (double)(float)x[i];
}

double h_max_abs(const double *x, int64_t n) {
  double m = 0;
  for (int64_t i = 0; i < n; i++)
    if (fabs(x[i]) > m) m = fabs(x[i]);
  return m;
}

// ---- comparing ----------------------------------------------------------------------------------

const char *h_compare(arena *a, const char *what, const double *got, const double *want, int64_t n,
                      double tolerance, double scale) {
  double worst = -1;
  int64_t at = 0;
  for (int64_t i = 0; i < n; i++) {
    double d = fabs(got[i] - want[i]);
    if (isnan(d)) d = INFINITY;
    if (d > worst) worst = d, at = i;
  }
  if (worst <= tolerance * scale) return NULL;
  return arena_printf(
      a, "%s: element %lld of %lld is %.9g, should be %.9g: off by %.2e of %.3g, allowed %.0e",
      what, (long long)at, (long long)n, got[at], want[at], scale > 0 ? worst / scale : worst,
      scale, tolerance);
}

// ---- cases in processes of their own ------------------------------------------------------------

const char *h_inline(arena *a, h_case_fn *body, void *ctx) {
  arena own;
  arena_init(&own);
  const char *why = body(&own, ctx);
  if (why) why = arena_strdup(a, why);
  arena_free(&own);
  return why;
}

static _Noreturn void child(h_case_fn *body, void *ctx, int to, int seconds) {
  alarm((unsigned)seconds);
  dup2(to, 2);  // what an abort says is part of the reason
  arena own;
  arena_init(&own);
  const char *why = body(&own, ctx);
  if (why && write(to, why, strlen(why)) < 0) _exit(2);
  _exit(why ? 1 : 0);
}

const char *h_isolated(arena *a, h_case_fn *body, void *ctx, int seconds) {
  int ends[2];
  fflush(stdout);
  if (pipe(ends)) return "no pipe";
  pid_t pid = fork();
  if (pid < 0) return "no process";
  if (pid == 0) {
    close(ends[0]);
    child(body, ctx, ends[1], seconds);
  }
  close(ends[1]);
  sb text = {.arena = a};
  char part[4096];
  for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) sb_putn(&text, part, (size_t)n);
  close(ends[0]);
  int code = 0;
  waitpid(pid, &code, 0);
  if (WIFSIGNALED(code))
    return arena_printf(a, "%s%sended by signal %d (%s)", sb_str(&text), text.n ? "\n" : "",
                        WTERMSIG(code), strsignal(WTERMSIG(code)));
  return WEXITSTATUS(code) ? sb_str(&text) : NULL;
}
