// --profile and --trace: begins and ends the steps of a profile, prints its tables, writes its
// trace.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"
#include "runtime/drivers/driver.h"
#include "runtime/peak.h"

#define TRACE_STEPS 3
#define TRACE_MAX_EVENTS ((int64_t)200000)  // some 50 MB of text; viewers get slow beyond
#define ROWS 20                             // of a table, without -v

status *rt_start_profile(rt *r) {
  const options *o = &r->opt;
  if (o->has_trace_steps && !o->trace)
    return status_exit(2, "--trace-steps needs --trace OUT.json");
  if (o->has_trace_steps && o->trace_steps < 1)
    return status_exit(2, "--trace-steps must be at least 1");
  if (!o->profile && !o->trace) return NULL;
  r->profile = profile_new(r->prog);
  if (!r->profile) return status_error("out of memory");
  if (!o->trace) return NULL;
  int64_t steps = o->has_trace_steps ? o->trace_steps : TRACE_STEPS;
  const prog_entry *e = prog_entry_of(r->prog, PROG_TRAIN);
  int64_t each = e ? trace_events_of(r->prog, e) : 0, events;
  if (__builtin_mul_overflow(each, steps, &events) || events > TRACE_MAX_EVENTS)
    events = TRACE_MAX_EVENTS;
  if (!profile_trace(r->profile, steps, events)) return status_error("out of memory");
  return file_create(r->env->io, o->trace, &r->trace_out);
}

void rt_begin_step(rt *r, int64_t step) {
  if (!r->profile) return;
  profile_begin(r->profile, step);
  vm_observe(r->vm, &r->profile->observer);
}

void rt_end_step(rt *r) {
  if (!r->profile) return;
  vm_observe(r->vm, NULL);
  profile_end(r->profile);
}

status *rt_write_trace(rt *r) {
  if (r->trace_out.fd < 0) return NULL;
  const trace *t = r->profile->trace;
  status *s = trace_write(t, comm_rank(r->comm), &r->trace_out);
  s = status_join(s, file_close(&r->trace_out));
  if (s || r->opt.quiet) return s;
  fprintf(r->env->out, "trace: %" PRId64 " events in %s, for ui.perfetto.dev\n", trace_count(t),
          r->opt.trace);
  if (trace_lost(t))
    fprintf(r->env->err,
            "note: %" PRId64
            " more events did not fit into the trace: fewer "
            "--trace-steps\n",
            trace_lost(t));
  return NULL;
}

// ---- tables -------------------------------------------------------------------------------------

typedef struct row {
  const char *name, *phase;
  int64_t ns, count;
  double flops, bytes;
} row;

// What the numbers are compared with.
typedef struct ceilings {
  double ns;            // of all steps: the whole of the shares
  double flops, bytes;  // per second; 0: unknown
} ceilings;

static int slowest_first(const void *a, const void *b) {
  int64_t x = ((const row *)a)->ns, y = ((const row *)b)->ns;
  return x < y ? 1 : x > y ? -1 : 0;
}

static void print_numbers(FILE *out, const ceilings *c, const row *r) {
  double ns = r->ns > 0 ? (double)r->ns : 1;
  fprintf(out, "  %9.4f %5.1f %% %9" PRId64 " %9.2f %9.2f", 1e-9 * (double)r->ns,
          c->ns > 0 ? 100 * (double)r->ns / c->ns : 0, r->count, r->flops / ns, r->bytes / ns);
}

// The share of the ceiling that is nearer. Returns whether it is more than memory can give.
static bool print_ceiling(FILE *out, const ceilings *c, const row *r) {
  double s = r->ns > 0 ? 1e-9 * (double)r->ns : 1;
  if (c->flops <= 0 && c->bytes <= 0) {
    fprintf(out, "  %15s", "unknown");
    return false;
  }
  double compute = c->flops > 0 ? r->flops / s / c->flops : 0;
  double memory = c->bytes > 0 ? r->bytes / s / c->bytes : 0;
  bool nearer = compute > memory;
  double share = nearer ? compute : memory;
  fprintf(out, "  %4.0f %% %-7s%s", 100 * share, nearer ? "compute" : "memory",
          share > 1 && !nearer ? "*" : " ");
  return share > 1 && !nearer;
}

static int shown_rows(const rt *r, const row *rows, int n) {
  int used = 0;
  while (used < n && rows[used].count > 0) used++;
  return r->opt.verbose || used < ROWS ? used : ROWS;
}

static void print_rest(FILE *out, const ceilings *c, const row *rows, int shown, int n) {
  int64_t ns = 0;
  int more = 0;
  for (int i = shown; i < n; i++) {
    ns += rows[i].ns;
    more += rows[i].count > 0;
  }
  if (more)
    fprintf(out, "  %9.4f %5.1f %%  and %d more; -v lists all\n", 1e-9 * (double)ns,
            c->ns > 0 ? 100 * (double)ns / c->ns : 0, more);
}

static void print_tasks(const rt *r, const profile_times *t, const ceilings *c) {
  const prog *p = r->prog;
  FILE *out = r->env->out;
  int n = (int)p->ntasks;
  row *rows = arena_new(r->arena, row, n + 1);
  for (int i = 0; i < n; i++) {
    const prog_task *k = &p->tasks[i];
    double count = (double)t->task[i].count;
    rows[i] = (row){.name = prog_text(p, k->name),
                    .phase = prog_text(p, k->phase),
                    .ns = t->task[i].ns,
                    .count = t->task[i].count,
                    .flops = count * k->flops,
                    .bytes = count * k->bytes};
  }
  qsort(rows, (size_t)n, sizeof *rows, slowest_first);
  fprintf(out, "  %9s %7s %9s %9s %9s  %-14s  task\n", "seconds", "share", "runs", "GFLOP/s",
          "GB/s", "phase");
  int shown = shown_rows(r, rows, n);
  for (int i = 0; i < shown; i++) {
    print_numbers(out, c, &rows[i]);
    fprintf(out, "  %-14s  %s\n", rows[i].phase, rows[i].name);
  }
  print_rest(out, c, rows, shown, n);
}

// What has no kernel, by opcode.
static const char *other_name(uint32_t op) {
  switch (op) {
    case RTOP_zero: return "(fill with zeros)";
    case RTOP_copy: return "(copy)";
    case RTOP_fetch: return "(fetch to the device)";
    case RTOP_evict: return "(evict to the host)";
    case RTOP_exchange: return "(exchange among ranks)";
    default: return "(events)";
  }
}

// Kernels of one name (the same work on other shapes) share a row.
static int kernel_rows(const rt *r, const profile_times *t, row *rows) {
  const prog *p = r->prog;
  map by_name = {.arena = r->arena};
  for (uint32_t i = 0; i < p->nkernels + (uint32_t)RTOP_COUNT; i++) {
    const profile_time *one = &t->kernel[i];
    const prog_kernel *kernel = i < p->nkernels ? &p->kernels[i] : NULL;
    const char *name = kernel ? prog_text(p, kernel->name) : other_name(i - p->nkernels);
    int k = map_find(&by_name, name);
    if (k < 0) {
      k = by_name.n;
      map_set(&by_name, name, NULL);
      rows[k].name = name;
    }
    double count = (double)one->count;
    rows[k].ns += one->ns;
    rows[k].count += one->count;
    rows[k].flops += kernel ? count * kernel->flops : 0;
    rows[k].bytes += kernel ? count * kernel->bytes : one->bytes;
  }
  return by_name.n;
}

static void print_kernels(const rt *r, const profile_times *t, const ceilings *c) {
  FILE *out = r->env->out;
  row *rows = arena_new(r->arena, row, r->prog->nkernels + (uint32_t)RTOP_COUNT);
  int n = kernel_rows(r, t, rows);
  qsort(rows, (size_t)n, sizeof *rows, slowest_first);
  fprintf(out, "  %9s %7s %9s %9s %9s  %-15s  kernel\n", "seconds", "share", "calls", "GFLOP/s",
          "GB/s", "of the ceiling");
  int shown = shown_rows(r, rows, n);
  bool cached = false;
  for (int i = 0; i < shown; i++) {
    print_numbers(out, c, &rows[i]);
    cached |= print_ceiling(out, c, &rows[i]);
    fprintf(out, "  %s\n", rows[i].name);
  }
  print_rest(out, c, rows, shown, n);
  if (cached) fprintf(out, "  * more than memory gives: operands were still in caches\n");
}

// What recompute costs: kernels of backward tasks that forward ran before.
static void print_again(FILE *out, const profile_times *t, const ceilings *c) {
  if (t->again_ns)
    fprintf(out, "  %9.4f %5.1f %%  of these kernels run again in backward: recompute\n",
            1e-9 * (double)t->again_ns, c->ns > 0 ? 100 * (double)t->again_ns / c->ns : 0);
}

static void print_outside(FILE *out, const profile_times *t, const ceilings *c) {
  int64_t outside = t->ns - t->instr_ns, between = t->call_ns - t->instr_ns;
  int64_t driver = t->ns - t->call_ns - t->fill_ns;
  fprintf(out,
          "  %9.4f %5.1f %%  outside kernels: inputs %.4f, between instructions %.4f, "
          "driver %.4f s\n",
          1e-9 * (double)outside, c->ns > 0 ? 100 * (double)outside / c->ns : 0,
          1e-9 * (double)t->fill_ns, 1e-9 * (double)between, 1e-9 * (double)driver);
}

void rt_print_profile(rt *r, const char *what, bool warm) {
  if (!r->profile) return;
  FILE *out = r->env->out;
  bool left_out;
  const profile_times *t = profile_result(r->profile, warm, &left_out);
  if (t->steps == 0) return;
  // Last of all: the arrays of the memory probe must not count as memory of the run.
  const char *device = vm_device(r->vm);
  ceilings c = {.ns = (double)t->ns};
  if (!device) c.flops = peak_flops(r->threads), c.bytes = peak_bandwidth(r->threads);
  fprintf(out, "PROFILE %.3f ms a %s, mean of %" PRId64, 1e-6 * (double)t->ns / (double)t->steps,
          what, t->steps);
  if (left_out)
    fprintf(out, "; the first one, %.3f ms, is left out", 1e-6 * (double)r->profile->first.ns);
  if (device)
    fprintf(out, "\non %s, one instruction after another: streams do not overlap here\n\n", device);
  else
    fprintf(out,
            "\nceiling: %.0f GFLOP/s of f32 multiply-adds, %.1f GB/s of memory, measured now with "
            "%d thread%s\n\n",
            1e-9 * c.flops, 1e-9 * c.bytes, pool_threads(r->threads),
            pool_threads(r->threads) > 1 ? "s" : "");
  print_tasks(r, t, &c);
  fputc('\n', out);
  print_kernels(r, t, &c);
  print_again(out, t, &c);
  print_outside(out, t, &c);
}
