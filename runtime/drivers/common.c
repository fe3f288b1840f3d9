#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "runtime/base/clock.h"
#include "runtime/base/str.h"
#include "runtime/check.h"
#include "runtime/checkpoint.h"
#include "runtime/drivers/driver.h"
#include "runtime/init.h"

double rt_now(void) { return 1e-9 * (double)clock_ns(); }

const char *rt_count(double n, char buf[32]) {
  static const char *const unit[] = {"", " k", " M", " G", " T", " P"};
  int u = 0;
  while (n >= 999.5 && u < 5) n /= 1000, u++;
  snprintf(buf, 32, u && n < 99.95 ? "%.1f%s" : "%.0f%s", n, unit[u]);
  return buf;
}

const char *rt_bytes(double n, char buf[32]) {
  static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int u = 0;
  while (n >= 1023.95 && u < 4) n /= 1024, u++;
  snprintf(buf, 32, u ? "%.1f %s" : "%.0f %s", n, unit[u]);
  return buf;
}

const char *rt_seconds(double s, char buf[32]) {
  int64_t t = (int64_t)(s + 0.5);
  if (s < 10)
    snprintf(buf, 32, "%.1f s", s);
  else if (t < 120)
    snprintf(buf, 32, "%" PRId64 " s", t);
  else if (t < 7200)
    snprintf(buf, 32, "%" PRId64 " min %02" PRId64 " s", t / 60, t % 60);
  else
    snprintf(buf, 32, "%" PRId64 " h %02" PRId64 " min", t / 3600, t / 60 % 60);
  return buf;
}

uint64_t rt_memory(const char *key) {
  FILE *f = fopen("/proc/self/status", "re");
  if (!f) return 0;
  char line[256];
  unsigned long long kib = 0;
  while (fgets(line, sizeof line, f))
    if (str_starts(line, key)) {
      sscanf(line + strlen(key), "%llu", &kib);
      break;
    }
  fclose(f);
  return (uint64_t)kib * 1024;
}

uint64_t rt_page_faults(void) {
  struct rusage u;
  if (getrusage(RUSAGE_SELF, &u)) return 0;
  return (uint64_t)u.ru_minflt + (uint64_t)u.ru_majflt;
}

const char *rt_signal_name(int number) {
  return number == SIGTERM ? "SIGTERM" : number == SIGINT ? "SIGINT" : "a signal";
}

// ---- starting ---------------------------------------------------------------------------------

static status *thread_count(const rt *r, int *out) {
  const char *env = getenv("DSM_THREADS");
  double v = 0;
  *out = 0;
  if (r->opt.has_threads)
    v = (double)r->opt.threads;
  else if (!env || !*env)
    return NULL;
  else if (!settings_parse_number(env, &v))
    return status_error("DSM_THREADS=%s is not a number", env);
  if (v < 1 || v > 4096 || v != floor(v))
    return status_exit(r->opt.has_threads ? 2 : 1, "the number of threads must be 1 to 4096");
  *out = (int)v;
  return NULL;
}

static status *job_arguments(rt *r) {
  for (uint32_t i = 0; i < r->prog->nargs; i++) {
    const prog_arg *arg = &r->prog->args[i];
    const char *name = prog_text(r->prog, arg->name);
    double v;
    const char *full =
        str_eq(name, "clip") ? "train.clip" : arena_printf(r->arena, "train.optimizer.%s", name);
    // "none" is a value of the clip: 0.
    double otherwise = settings_text(&r->set, full) ? 0 : arg->value;
    STATUS_DO(settings_number(&r->set, full, otherwise, &v));
    vm_set_arg(r->vm, name, v);
  }
  return NULL;
}

// Ranks on one machine share its cores, unless mpirun has given each its own.
static int fair_share(const rt *r) {
  const char *local = getenv("OMPI_COMM_WORLD_LOCAL_SIZE"), *bound;
  double n = 0;
  if (!r->comm || !local || !settings_parse_number(local, &n) || n < 2) return 0;
  bound = getenv("OMPI_MCA_orte_bound_at_launch");
  int cpus = pool_cpus(), share = (int)(cpus / n);
  if (bound && str_eq(bound, "1")) return cpus;
  return share > 1 ? share : 1;
}

// "out.json" is "out.3.json" for rank 3, "out" is "out.3".
static const char *path_of_rank(arena *a, const char *path, int rank) {
  const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
  const char *dot = strrchr(name, '.');
  if (!dot || dot == name) dot = path + strlen(path);
  return arena_printf(a, "%.*s.%d%s", (int)(dot - path), path, rank, dot);
}

// Joins the ranks; all but rank 0 fall silent.
static status *join_ranks(rt *r) {
  double timeout = r->opt.has_timeout ? r->opt.timeout : 300;
  if (!(timeout >= 0.5) || timeout > 1e6)
    return status_exit(2, "--timeout takes 0.5 to 1000000 seconds");
  r->comm = r->env->comm;
  if (!r->comm) STATUS_DO(comm_open(r->prog, &r->comm));
  STATUS_DO(comm_watch(r->comm, timeout, r->opt.verbose, r->env->err, r->env->stop));
  if (r->comm && r->opt.trace)
    r->opt.trace = path_of_rank(r->arena, r->opt.trace, comm_rank(r->comm));
  if (comm_rank(r->comm) == 0) return NULL;
  r->nowhere = fopen("/dev/null", "we");
  if (!r->nowhere) return status_errno("cannot open /dev/null");
  r->rank_env = *r->env;
  r->rank_env.out = r->rank_env.err = r->nowhere;
  r->env = &r->rank_env;
  r->opt.log = NULL;
  return NULL;
}

status *rt_stopped(rt *r, int *number) {
  int64_t signal = *r->env->stop;
  STATUS_DO(comm_max(r->comm, &signal));
  *number = (int)signal;
  return NULL;
}

int64_t rt_batch(const rt *r, const prog_entry *e) {
  return e->batch * comm_group_size(r->prog, e->batch_axes);
}

int64_t rt_first_sample(const rt *r, const prog_entry *e) {
  return e->batch * comm_place(r->prog, comm_rank(r->comm), e->batch_axes);
}

status *rt_start(rt *r) {
  int threads;
  STATUS_DO(join_ranks(r));
  STATUS_DO(thread_count(r, &threads));
  if (threads == 0) threads = fair_share(r);
  r->threads = pool_new(threads);
  if (!r->threads) return status_error("out of memory");
  STATUS_DO(vm_open(r->prog, r->img->code, r->threads, &r->vm));
  // On its only core (mpirun gives each of two ranks one) a thread would only interrupt kernels;
  // those of a replay take none.
  STATUS_DO(vm_join(r->vm, r->comm, r->opt.replay || pool_cpus() > 1));
  STATUS_DO(rt_start_profile(r));
  STATUS_DO(rt_start_replay(r));
  return job_arguments(r);
}

status *rt_open_data(rt *r, const prog_entry *e, const char *path, bool shuffle, data **out) {
  data_spec spec = {.path = path ? path : settings_text(&r->set, "train.data"),
                    .read = settings_text(&r->set, "train.read"),
                    .seed = r->seed,
                    .shuffle = shuffle};
  *out = NULL;
  if (!spec.path || str_eq(spec.path, "none") || str_eq(spec.path, ""))
    return status_error("the job names no data: give --data FILE");
  return data_open(r->arena, r->prog, e, &spec, out);
}

status *rt_of_all(rt *r, status *s) {
  if (s) r->together = true;
  return s;
}

status *rt_first_weights(rt *r) {
  // A load that succeeds has set every weight.
  if (r->opt.load) {
    checkpoint c = {r->prog, r->vm, r->env->io, r->opt.quiet ? NULL : r->env->err, r->comm};
    STATUS_DO(rt_of_all(r, ck_load_weights(&c, r->opt.load)));
  } else {
    init_states(r->vm, r->prog, r->threads, r->seed, comm_rank(r->comm));
  }
  return vm_push_states(r->vm);
}

// A batch whose loss is not finite, done again to find the first such value.
static status *bad_batch(rt *r, data *d, const prog_entry *e, int64_t sample0, double loss) {
  char word[32];
  sb text = {.arena = r->arena};
  sb_printf(&text, "the evaluation loss is %s", check_word(loss, word));
  STATUS_DO(vm_pull_states(r->vm));
  check_state bad = check_states(r->prog, r->vm);
  if (bad.state) {
    sb_puts(&text, "\n  ");
    check_print_state(&text, r->prog, &bad);
  }
  check_values values;
  int64_t predicted = 0;
  STATUS_DO(check_clear(r->prog, r->vm));
  STATUS_DO(data_fill(d, vm_at(r->vm, 0), sample0, &predicted));
  vm_step s = {.sample0 = sample0, .seed = r->seed};
  STATUS_DO(check_again(&values, r->prog, r->vm, e, &s, e->runs));
  check_print(&text, &values, e);
  return status_exit(5, "%s", sb_str(&text));
}

status *rt_evaluate(rt *r, data *d, double *loss, int64_t *batches) {
  const prog_entry *e = prog_entry_of(r->prog, PROG_EVAL);
  const prog_io *out = e ? prog_output(r->prog, e, "loss") : NULL;
  if (!out)
    return status_error("this program cannot evaluate: it has no entry with an output loss");
  int64_t batch = rt_batch(r, e), mine = rt_first_sample(r, e);
  int64_t alike = comm_ranks(r->comm) / comm_group_size(r->prog, e->batch_axes);
  *batches = data_samples(d) / batch;
  if (*batches == 0)
    return status_error("the evaluation data has %" PRId64 " samples, one batch needs %" PRId64,
                        data_samples(d), batch);
  double sum = 0, weight = 0;
  for (int64_t i = 0; i < *batches; i++) {
    int64_t predicted = 0, first = i * batch + mine;
    int stop;
    rt_begin_step(r, i + 1);
    STATUS_DO(data_fill(d, vm_at(r->vm, 0), first, &predicted));
    STATUS_DO(vm_call(r->vm, e, &(vm_step){.sample0 = first, .seed = r->seed}));
    rt_end_step(r);
    // A batch's loss is a mean over its predicted positions, on all ranks; `alike` of them have the
    // same samples.
    STATUS_DO(comm_sum(r->comm, &predicted));
    double w = prog_input(r->prog, e, "targets") ? (double)(predicted / alike) : 1,
           one = vm_scalar(r->vm, out);
    if (!isfinite(one)) return bad_batch(r, d, e, first, one);
    sum += w * one;
    weight += w;
    STATUS_DO(rt_stopped(r, &stop));
    r->together = stop != 0;
    if (stop)
      return status_exit(128 + stop, "stopped by %s while evaluating", rt_signal_name(stop));
  }
  *loss = weight > 0 ? sum / weight : 0;
  return NULL;
}
