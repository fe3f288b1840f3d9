// From a `.dsm` file and the command line's options to as much of an executable as asked for.

#include "frontend/verb_common.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "frontend/verb_gpu.h"
#include "frontend/verb_planfile.h"
#include "frontend/verb_ranks.h"
#include "frontend/verb_stages.h"
#include "passes/plan/plan.h"
#include "runtime/base/clock.h"

extern const unsigned char dsm_runtime_begin[], dsm_runtime_end[];

// CPU features an executable says it needs, so that another machine can refuse in words. Those
// that the generated code may use; LLVM's other features are tunings.
static const char *const cpu_features[] = {"avx",      "avx2",     "fma",        "bmi",
                                           "bmi2",     "f16c",     "avx512f",    "avx512dq",
                                           "avx512bw", "avx512vl", "avx512vnni", "avx512bf16"};

const char *compile_bytes_text(arena *a, double bytes) {
  const char *suffix[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int u = 0;
  while (bytes >= 1024 && u < 4) bytes /= 1024, u++;
  return arena_printf(a, u && bytes < 100 ? "%.1f %s" : "%.0f %s", bytes, suffix[u]);
}

const char *compile_recompute_text(arena *a, const compiled *k, bool exact) {
  const recompute_result *r = &k->recomputed;
  double more = 0;
  for (int i = 0; k->schedule && i < k->schedule->entries.n; i++) {
    const sched_entry *e = &k->schedule->entries.at[i];
    if (e->func->kind == ENTRY_TRAIN) more = e->recompute_flops / e->flops;
  }
  const char *saved =
      exact ? arena_printf(a, "%lld of %lld bytes", (long long)r->after, (long long)r->before)
            : arena_printf(a, "%s of %s", compile_bytes_text(a, (double)r->after),
                           compile_bytes_text(a, (double)r->before));
  return arena_printf(
      a,
      "recompute: %s saved for backward, %d of %d stacks dropped, %d ops run again, "
      "%.1f %% more FLOPs%s",
      saved, r->dropped, r->stacks, r->ops, 100 * more,
      r->exact ? "" : "; not proved to be the least work");
}

static setting_list parse_sets(cli *c) {
  setting_list all = {0};
  for (int i = 0; i < c->options[OPT_SET].n; i++) {
    const char *text = c->options[OPT_SET].at[i];
    setting_list some = parse_settings(c->arena, &c->diags,
                                       source_from_text(c->arena, "--set", text, strlen(text)));
    for (int k = 0; k < some.n; k++) vec_push(c->arena, &all, some.at[k]);
  }
  return all;
}

// The largest micro-batch to try first, then its next smaller divisor of `batch`.
static int64_t next_divisor(int64_t batch, int64_t below) {
  for (int64_t d = below - 1; d > 1; d--)
    if (batch % d == 0) return d;
  return 1;
}

static double host_memory(void) {
  return (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
}

typedef struct timing {
  cli *c;
  double total;
} timing;

static void report_pass(void *ctx, const char *pass, double seconds, ir_module *m) {
  timing *t = ctx;
  (void)m;
  t->total += seconds;
  fprintf(stderr, "%-16s %8.2f ms\n", pass, seconds * 1e3);
}

static void report_stage(cli *c, const char *what, double since) {
  if (cli_has(c, OPT_TIME)) fprintf(stderr, "%-16s %8.2f ms\n", what, (clock_s() - since) * 1e3);
}

uint64_t compile_source_digest(const cli *c, const sema_program *p) {
  XXH3_state_t *s = XXH3_createState();
  if (!s) return 0;
  XXH3_64bits_reset(s);
  for (int i = 0; i < p->files.n; i++) {
    const source *src = p->files.at[i]->source;
    XXH3_64bits_update(s, src->text, (size_t)src->length);
  }
  for (int i = 0; i < c->options[OPT_SET].n; i++)
    XXH3_64bits_update(s, c->options[OPT_SET].at[i], strlen(c->options[OPT_SET].at[i]) + 1);
  if (p->asked) XXH3_64bits_update(s, p->asked, strlen(p->asked));
  uint64_t h = XXH3_64bits_digest(s);
  XXH3_freeState(s);
  return h;
}

// That, and all else that an executable is made from.
static uint64_t digest_of(const cli *c, const compiled *k, const plan_given *pin) {
  uint64_t of_source = compile_source_digest(c, k->program);
  XXH3_state_t *s = XXH3_createState();
  if (!s) return 0;
  XXH3_64bits_reset(s);
  XXH3_64bits_update(s, &of_source, sizeof of_source);
  const char *skip = cli_get(c, OPT_SKIP);
  if (skip) XXH3_64bits_update(s, skip, strlen(skip));
  XXH3_64bits_update(s, &k->micro_batch, sizeof k->micro_batch);
  XXH3_64bits_update(s, &k->targets, sizeof k->targets);
  XXH3_64bits_update(s, pin->recompute_text, strlen(pin->recompute_text));
  XXH3_64bits_update(s, &pin->stream, sizeof pin->stream);
  XXH3_64bits_update(s, &pin->matmul, sizeof pin->matmul);
  arena text;
  arena_init(&text);
  const char *plan = k->plan ? plan_choice_text(&text, &k->plan->choice) : "";
  XXH3_64bits_update(s, plan, strlen(plan));
  arena_free(&text);
  XXH3_64bits_update(s, DSMC_VERSION, strlen(DSMC_VERSION));
  uint64_t h = XXH3_64bits_digest(s);
  XXH3_freeState(s);
  return h;
}

static void set_optimizer(pass_options *o, const job *j) {
  o->optimizer = j->optimizer.kind == OPTIMIZER_SGD ? OPT_SGD : OPT_ADAMW;
  o->momentum = j->optimizer.momentum != 0;
  o->nesterov = j->optimizer.nesterov;
}

// Lowers and runs passes once for one micro-batch.
static bool lower_and_optimise(cli *c, compiled *k, const plan_given *pin, int64_t micro,
                               compile_stage stage) {
  double t = clock_s();
  k->module = sema_lower(k->program, k->job, ranks_entries(k));
  if (!k->module) return false;
  report_stage(c, "lower", t);
  k->generates = ir_func_find(k->module, "decode") != NULL;
  k->micro_batch = micro;
  k->parameters = sema_parameters(k->module);
  if (stage == COMPILE_GRAPH) return true;
  k->cg = cg_context_new(c->arena, k->module);
  cg_use_library(k->cg, pin->matmul);
  cg_use_machine(k->cg, k->targets ? CG_CUDA : CG_HOST);
  pass_options o = pass_defaults();
  set_optimizer(&o, k->job);
  o.batch = k->job->batch;
  o.mesh = k->mesh;
  o.micro_batch = micro;
  o.device = cg_machine_of(k->cg) != CG_HOST;
  o.stream = pin->stream;
  ranks_options(k, &o);
  o.recompute = pin->recompute;
  o.recompute_bytes = pin->recompute_bytes;
  o.recomputed = &k->recomputed;
  o.stage = stage < COMPILE_SCHEDULE ? IR_LOCAL : IR_SCHEDULE;
  o.select = cg_select;
  o.select_ctx = k->cg;
  o.by_library = cg_by_library;
  o.after = cli_get(c, OPT_AFTER);
  o.only = cli_get(c, OPT_PASS);
  skip_add(&o.skip, cli_get(c, OPT_SKIP));
  timing timer = {.c = c};
  if (cli_has(c, OPT_TIME)) o.report = report_pass, o.report_ctx = &timer;
  const char *why = stages_wanted(k) ? stages_compile(k, &o, pin->matmul) : pass_run(k->module, &o);
  k->schedule = k->module->schedule;
  if (why && pin->recompute == RECOMPUTE_BYTES && k->recomputed.after > pin->recompute_bytes)
    return true;  // choose_micro_batch looks at it too
  if (why && k->quiet) return false;
  if (why) {
    fprintf(stderr, "error: %s\n", why);
    k->exit_code = k->schedule ? EXIT_INPUT : EXIT_UNFIT;
    return false;
  }
  return true;
}

// The features of `image.features` ("+avx2,+fma,-sse4a") that matter, for the runtime's check.
static const char *cpu_needs(arena *a, const cg_image *image) {
  sb s = {.arena = a};
  sb_puts(&s, "x86-64");
  for (size_t i = 0; i < sizeof cpu_features / sizeof *cpu_features; i++) {
    const char *want = arena_printf(a, "+%s", cpu_features[i]);
    size_t n = strlen(want);
    for (const char *p = image->features ? image->features : ""; (p = strstr(p, want)) != NULL;
         p += n)
      if (p[n] == ',' || p[n] == 0) {
        sb_printf(&s, " %s", cpu_features[i]);
        break;
      }
  }
  return sb_str(&s);
}

static void make_program(cli *c, compiled *k) {
  const job *j = k->job;
  arena *a = c->arena;
  program_info info = {.compiler = "dsmc " DSMC_VERSION,
                       .model = j->model_name,
                       .cpu = cpu_needs(a, &k->image),
                       .source_digest = k->digest,
                       .parameters = k->parameters};
  info.plan =
      k->plan
          ? arena_printf(a, "%s; micro_batch %lld, recompute %s",
                         plan_choice_text(a, &k->plan->choice), (long long)k->micro_batch,
                         k->recompute ? k->recompute : "none")
          : arena_printf(a, "this-host:1 data=1 pipeline=1 tensor=1 micro_batch=%lld recompute=%s",
                         (long long)k->micro_batch, k->recompute ? k->recompute : "none");
  const char *library = cg_library_name(k->cg);
  if (library) info.plan = arena_printf(a, "%s matmul=%s", info.plan, library);
  if (k->targets) info.plan = arena_printf(a, "%s target=%s", info.plan, gpu_names(a, k->targets));
  if (k->recomputed.done)
    info.plan = arena_printf(a, "%s\n%s\n%s", info.plan, compile_recompute_text(a, k, true),
                             k->recomputed.list);
  program_setting *s = arena_new(a, program_setting, j->settings.n + 1);
  for (int i = 0; i < j->settings.n; i++)
    s[i] = (program_setting){j->settings.at[i].name, j->settings.at[i].value};
  info.settings = s;
  info.nsettings = j->settings.n;
  char buf[32];
  const struct {
    const char *name;
    double v;
  } values[] = {{"lr", j->optimizer.lr},
                {"beta1", j->optimizer.beta1},
                {"beta2", j->optimizer.beta2},
                {"eps", j->optimizer.eps},
                {"weight_decay", j->optimizer.weight_decay},
                {"momentum", j->optimizer.momentum},
                {"clip", j->clip}};
  enum { N = sizeof values / sizeof *values };
  program_setting *args = arena_new(a, program_setting, N);
  for (int i = 0; i < N; i++)
    args[i] = (program_setting){values[i].name, arena_strdup(a, str_double(buf, values[i].v))};
  info.args = args;
  info.nargs = N;
  k->bytes = program_write(k->cg, k->schedule, &k->image, &info);
}

// Bytes that an arena may take: 80 % of this host's memory, or what the smallest GPU has for it.
static double capacity_of(const compiled *k) {
  return k->targets ? gpu_capacity(k->targets) : 0.8 * host_memory();
}

// Without a planner yet: the largest micro-batch whose arena fits, and whose saved values fit into
// what is pinned. k->fits is false when not even a micro-batch of 1 does; then the program is that
// of 1, as far as it was made.
static bool choose_micro_batch(cli *c, compiled *k, const plan_given *pin, compile_stage stage) {
  for (int64_t micro = pin->pins.micro_batch ? pin->pins.micro_batch : k->job->batch;;
       micro = next_divisor(k->job->batch, micro)) {
    if (!lower_and_optimise(c, k, pin, micro, stage)) return false;
    bool placed = k->schedule && k->schedule->place;
    bool saves = pin->recompute != RECOMPUTE_BYTES || k->recomputed.after <= pin->recompute_bytes;
    k->fits = saves && (pin->pins.micro_batch || !placed ||
                        (double)k->schedule->arena_bytes <= capacity_of(k));
    if (k->fits || pin->pins.micro_batch || micro == 1) return true;
  }
}

// What is saved between forward and backward takes more than is pinned, whatever is made again.
static void report_saves_too_much(cli *c, compiled *k, const plan_given *pin) {
  int64_t least = k->recomputed.least;
  diag *e = diag_error(&c->diags, span_none(), DIAG_DOES_NOT_FIT,
                       "recompute=%s: at micro_batch = %lld at least %s are saved for backward",
                       pin->recompute_text, (long long)k->micro_batch,
                       compile_bytes_text(c->arena, (double)least));
  diag_note(e, "%lld bytes are what recompute=full saves%s", (long long)least,
            k->micro_batch > 1 ? "; a smaller micro_batch saves less" : "");
  k->exit_code = EXIT_UNFIT;
}

static void report_unfit(cli *c, compiled *k) {
  arena *a = c->arena;
  const char *where = k->targets ? gpu_names(a, k->targets) : "this-host";
  double memory = k->targets ? capacity_of(k) : host_memory();
  diag *e = diag_error(
      &c->diags, span_none(), DIAG_DOES_NOT_FIT,
      "%s does not fit on %s: %s at micro_batch = 1, %s of memory", k->job->model_name, where,
      compile_bytes_text(a, (double)k->schedule->arena_bytes), compile_bytes_text(a, memory));
  diag_note(e,
            "states alone take %s; a smaller model, or `--set seq=` and `--set layers=`, would fit",
            compile_bytes_text(a, (double)k->schedule->states_bytes));
  k->exit_code = EXIT_UNFIT;
}

// OpenBLAS works in the memory of the host.
static bool library_suits(cli *c, compiled *k, const plan_given *pin) {
  if (!k->targets || pin->matmul == CG_BUILTIN) return true;
  fprintf(stderr,
          "dsmc: --target %s: matmul=openblas is a library for CPUs and cannot be met there\n",
          cli_get(c, OPT_TARGET));
  k->exit_code = EXIT_UNFIT;
  return false;
}

// The names of --skip are those of what may be left out.
static bool skips_are_known(cli *c, compiled *k) {
  skip_set s = 0;
  const char *wrong = skip_add(&s, cli_get(c, OPT_SKIP));
  if (!wrong) return true;
  const char *names[SKIP_ROWS], *one = arena_strndup(c->arena, wrong, strcspn(wrong, ","));
  const char *near = str_nearest(one, names, skip_names(names));
  k->exit_code = cli_usage("--skip takes optional passes and choices, not `%s`%s%s%s", one,
                           near ? "; did you mean `" : "; `dsmc help skip` lists them",
                           near ? near : "", near ? "`?" : "");
  return false;
}

bool compile_open(cli *c, const char *path, compiled *k) {
  *k = (compiled){0};
  double t = clock_s();
  setting_list sets = parse_sets(c);
  k->program = sema_open(c->arena, &c->diags, path);
  if (!k->program || diags_errors(&c->diags)) return false;
  k->job = sema_job(k->program, k->program->asked, sets);
  if (!k->job || diags_errors(&c->diags)) return false;
  report_stage(c, "parse", t);
  return true;
}

static void set_batch(job *j, int64_t batch) {
  j->batch = batch;
  for (int i = 0; i < j->dims.n; i++)
    if (str_eq(j->dims.at[i].name, "batch")) j->dims.at[i].extent = batch;
}

bool compile_steps(compiled *k, const recompute_mode *mode, int n, ir_module **out) {
  // A step of one sample has no loop over micro-batches, which is what the planner reads by; that
  // of two has, and its micro-batches are the same.
  int64_t batch = k->job->batch;
  if (batch == 1) set_batch(k->job, 2);
  ir_module *m = sema_lower(k->program, k->job, SEMA_TRAIN);
  pass_options o = pass_defaults();
  set_optimizer(&o, k->job);
  o.batch = k->job->batch;
  set_batch(k->job, batch);
  if (!m) return false;
  arena bodies;  // what passes leave behind goes: each mode has a copy of what is left
  arena_init(&bodies);
  bodies.oom = m->arena->oom;
  bodies.oom_ctx = m->arena->oom_ctx;
  m->bodies = &bodies;
  o.micro_batch = 1;
  o.recomputed = &k->recomputed;
  o.stage = IR_LOCAL;
  // Of 512 unlike layers each look takes as long as a pass: only what the planner reads is
  // verified. Which pass breaks a module `dsmc ir` and `dsmc build` tell.
  o.verify = VERIFY_NEVER;
  o.after = "sink";  // what stands behind it is done for each mode
  const char *why = pass_run(m, &o);
  if (!why) why = pass_dead(m, &o);
  o.only = o.after = "recompute";
  o.verify = VERIFY_LAST;
  for (int i = 0; i < n && !why; i++) {
    out[i] = ir_clone_module(m);
    o.recompute = mode[i];
    why = pass_run(out[i], &o);
    if (!why) why = pass_dead(out[i], &o);
  }
  arena_free(&bodies);
  if (!why) return true;
  fprintf(stderr, "error: %s\n", why);
  k->exit_code = EXIT_UNFIT;
  return false;
}

bool compile(cli *c, const char *path, compile_stage stage, compiled *k) {
  compiled asked = {0};
  bool good = skips_are_known(c, &asked) && gpu_parse_target(c, &asked.targets);
  *k = asked;
  if (!good || !compile_open(c, path, k)) return false;
  k->targets = asked.targets;
  plan_given pin;
  bool unfit = false;
  if (!plan_given_read(c, k->program, &pin)) return false;
  if (ranks_wanted(c, &pin)) {
    if (!ranks_plan(c, k, &pin)) return false;
  } else if (!plan_given_one_device(c, k->program, &pin, &unfit)) {
    if (unfit) k->exit_code = EXIT_UNFIT;
    return false;
  }
  if (!library_suits(c, k, &pin)) return false;

  int64_t batch = k->job->batch;
  int64_t micro = pin.pins.micro_batch;
  if (micro && (micro > batch || batch % micro)) {
    const plan_said *said = plan_given_said(&pin, "micro_batch");
    diag *e = diag_error(&c->diags, said->pinned ? span_none() : said->at, DIAG_INDIVISIBLE,
                         "micro_batch = %lld does not divide batch = %lld", (long long)micro,
                         (long long)batch);
    diag_note(e, "pin a divisor of the batch, or leave the pin out");
    k->exit_code = EXIT_UNFIT;
    return false;
  }
  if (!choose_micro_batch(c, k, &pin, stage)) return false;
  if (pin.recompute == RECOMPUTE_BYTES && k->recomputed.after > pin.recompute_bytes) {
    report_saves_too_much(c, k, &pin);
    return false;
  }
  k->recompute = k->recomputed.done ? pin.recompute_text : "none";
  k->digest = digest_of(c, k, &pin);
  return stage < COMPILE_EXECUTABLE || compile_code(c, k);
}

const sched *compile_layout(cli *c, compiled *k, const plan_given *given, const char *arch,
                            int64_t micro_batch, recompute_mode recompute) {
  int gpu = arch ? gpu_find(arch) : -1;
  if (!arch || (gpu < 0 && !str_eq(arch, "cpu"))) return NULL;
  if (given->recompute == RECOMPUTE_BYTES || (gpu >= 0 && given->matmul != CG_BUILTIN)) return NULL;
  compiled other = {.program = k->program, .job = k->job};
  if (gpu >= 0) other.targets = (gpu_set)1 << gpu;
  plan_given pin = *given;
  pin.recompute = recompute;
  if (!lower_and_optimise(c, &other, &pin, micro_batch, COMPILE_SCHEDULE)) return NULL;
  return other.schedule;
}

bool compile_layout_ranks(cli *c, compiled *k, const plan_given *given, const cl_cluster *cluster,
                          const plan_candidate *x, const sched **out) {
  compiled other = {.program = k->program, .job = k->job, .quiet = true};
  plan_given pin = *given;
  if (given->recompute == RECOMPUTE_BYTES) return false;
  if (!ranks_take(c->arena, &other, cluster, x, &pin)) return false;
  if (!lower_and_optimise(c, &other, &pin, x->choice.micro_batch, COMPILE_SCHEDULE)) return false;
  if (x->nstages != (other.nstages ? other.nstages : 1)) return false;
  for (int i = 0; i < x->nstages; i++) {
    out[i] = other.nstages ? other.stage[i].schedule : other.schedule;
    if (!out[i] || !out[i]->place) return false;
  }
  return true;
}

bool compile_measure(cli *c, const char *name, const char *text, compiled *k) {
  *k = (compiled){0};
  k->program = sema_open_text(c->arena, &c->diags, name, text, strlen(text));
  if (!k->program || diags_errors(&c->diags)) return false;
  k->job = sema_job(k->program, NULL, (setting_list){0});
  const plan_given free = plan_given_none();
  return k->job && choose_micro_batch(c, k, &free, COMPILE_SCHEDULE);
}

const char *compile_cache_folder(cli *c) {
  const char *dir = cli_get(c, OPT_CACHE);
  if (dir) return str_eq(dir, "none") ? NULL : dir;
  const char *base = getenv("XDG_CACHE_HOME");
  if (base && base[0]) return arena_printf(c->arena, "%s/dsmc", base);
  const char *home = getenv("HOME");
  return arena_printf(c->arena, "%s/.cache/dsmc", home && home[0] ? home : "/tmp");
}

static void host_code(cli *c, compiled *k) {
  const char *folder = compile_cache_folder(c);
  cg_target target = {.threads = (int)cli_number(c, OPT_JOBS, 0)};
  if (folder) target.cache = arena_printf(c->arena, "%s/kernels", folder);
  const char *why = cg_compile(k->cg, &target, &k->image);
  if (why) IR_BUG("codegen: %s", why);
}

static void stage_code(cli *c, compiled *k) {
  host_code(c, k);
  make_program(c, k);
}

bool compile_code(cli *c, compiled *k) {
  if (!k->fits) {
    report_unfit(c, k);
    return false;
  }
  double t = clock_s();
  if (k->nstages) {
    stages_code(c, k, stage_code);
    report_stage(c, "stages", t);
    return true;
  }
  if (!k->targets)
    host_code(c, k);
  else if (!gpu_code(c, k))
    return false;
  report_stage(c, k->targets ? "nvrtc" : "llvm", t);
  if (cli_has(c, OPT_TIME) && k->image.cached)
    fprintf(stderr, "kernel cache     %d hits, %d misses\n", k->image.hits, k->image.misses);
  else if (cli_has(c, OPT_TIME))
    fprintf(stderr, "kernel cache     %s\n", compile_cache_folder(c) ? "cannot be used" : "off");
  t = clock_s();
  make_program(c, k);
  report_stage(c, "program", t);
  return true;
}

int compile_finish(cli *c, const compiled *k) {
  int rc = cli_finish(c);
  return k->exit_code ? k->exit_code : rc;
}

bool compile_write(cli *c, compiled *k, const char *path) {
  int n = k->nstages ? k->nstages : 1;
  const cg_image **image = arena_new(c->arena, const cg_image *, n);
  const program_bytes **program = arena_new(c->arena, const program_bytes *, n);
  for (int s = 0; s < n; s++) {
    image[s] = k->nstages ? &k->stage[s].image : &k->image;
    program[s] = k->nstages ? &k->stage[s].bytes : &k->bytes;
  }
  const char *why = exe_write(c->arena, path, dsm_runtime_begin,
                              (size_t)(dsm_runtime_end - dsm_runtime_begin), image, program, n);
  if (!why) return true;
  fprintf(stderr, "dsmc: error: %s\n", why);
  k->exit_code = EXIT_INPUT;
  return false;
}
