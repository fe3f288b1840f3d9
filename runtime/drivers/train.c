// train: fill, call, log, save; again.
//
// A step is a pure function of (states, step number, sample number, seed): that is all a checkpoint
// has to carry for a resumed run to give the same bits, and why a step whose loss or gradient norm
// is not finite can be done again, watched, before anything was updated (check.h).
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"
#include "runtime/check.h"
#include "runtime/checkpoint.h"
#include "runtime/drivers/driver.h"
#include "runtime/drivers/log.h"
#include "runtime/drivers/progress.h"
#include "runtime/dtype.h"
#include "runtime/ledger.h"
#include "runtime/peak.h"

#define MAX_SCALARS 16

typedef struct training {
  rt *r;
  const prog_entry *entry;
  const prog_io *loss;
  const prog_io *norm;                 // NULL: the program has none
  const prog_io *scalar[MAX_SCALARS];  // other outputs of one element; grad_norm first
  int nscalars;
  uint32_t split;  // runs of the entry that come before the states change
  int64_t steps, save_every, eval_every;
  int64_t first;  // steps done before this run
  double lr, beta1, beta2, peak;
  const char *save_dir;
  int keep;
  data *data, *eval_data;
  checkpoint ck;
  ck_state state;
  int64_t saved_step;  // -1: none
  int saves;
  train_log log;
  ledger *sent;     // until this step; NULL: one rank, or no log
  uint64_t faults;  // of this process until the last line of the log
  int stop;         // the signal that asked a rank to stop, 0: none
  progress bar;
} training;

// ---- preparing --------------------------------------------------------------------------------

static status *find_outputs(training *t) {
  const prog *p = t->r->prog;
  t->entry = prog_entry_of(p, PROG_TRAIN);
  if (!t->entry) return status_error("this executable was built without training");
  t->loss = prog_output(p, t->entry, "loss");
  if (!t->loss) return status_error("entry train_step has no output loss");
  const prog_io *norm = prog_output(p, t->entry, "grad_norm"), *watched[] = {t->loss, norm};
  t->norm = norm;
  t->split = check_split(p, t->entry, watched, norm ? 2 : 1);
  if (norm) t->scalar[t->nscalars++] = norm;
  for (uint32_t i = 0; i < t->entry->outputs && t->nscalars < MAX_SCALARS; i++) {
    const prog_io *io = &p->ios[t->entry->first_output + i];
    if (io != t->loss && io != norm && prog_io_elements(io) == 1) t->scalar[t->nscalars++] = io;
  }
  return NULL;
}

static status *number_or_arg(const rt *r, const char *name, double *out) {
  const prog_arg *arg = prog_arg_find(r->prog, name);
  char full[64];
  snprintf(full, sizeof full, "train.optimizer.%s", name);
  return settings_number(&r->set, full, arg ? arg->value : 0, out);
}

static status *read_settings(training *t) {
  rt *r = t->r;
  const options *o = &r->opt;
  int64_t save_every, eval_every, keep;
  STATUS_DO(settings_whole(&r->set, "train.steps", 100, &t->steps));
  if (o->has_steps) t->steps = o->steps;
  STATUS_DO(settings_whole(&r->set, "train.save_every", 0, &save_every));
  STATUS_DO(settings_whole(&r->set, "train.eval_every", 0, &eval_every));
  STATUS_DO(settings_whole(&r->set, "train.keep", 2, &keep));
  t->save_every = o->has_save_every ? o->save_every : save_every;
  t->eval_every = o->has_eval_every ? o->eval_every : eval_every;
  if (o->has_keep) keep = o->keep;
  if (keep < 1 || keep > 1000000) return status_exit(2, "--keep must be at least 1");
  t->keep = (int)keep;
  t->save_dir = o->save ? o->save : o->resume;
  if (o->has_save_every && !t->save_dir) return status_exit(2, "--save-every needs --save DIR");
  if (o->has_eval_every && !o->eval) return status_exit(2, "--eval-every needs --eval FILE");
  if (o->load && o->resume)
    return status_exit(
        2, "--load and --resume exclude each other: resume takes optimizer and step too");
  STATUS_DO(number_or_arg(r, "lr", &t->lr));
  STATUS_DO(number_or_arg(r, "beta1", &t->beta1));
  STATUS_DO(number_or_arg(r, "beta2", &t->beta2));
  STATUS_DO(settings_number(&r->set, "cluster.flops", 0, &t->peak));
  if (o->has_peak) t->peak = o->peak * 1e9;
  return NULL;
}

static status *take_up(training *t) {
  rt *r = t->r;
  const options *o = &r->opt;
  bool found = false;
  t->state = (ck_state){.seed = r->seed};
  if (o->resume) {
    STATUS_DO(rt_of_all(r, ck_resume(&t->ck, o->resume, &t->state, &found)));
    if (!found && !o->quiet)
      fprintf(r->env->err, "note: no checkpoint in %s yet: starting from the beginning\n",
              o->resume);
  }
  if (found) {
    if (o->has_seed && (uint64_t)o->seed != t->state.seed)
      return status_error("the checkpoint in %s was made with seed %" PRIu64 ", not %" PRId64
                          ": leave --seed out, or start anew with --load",
                          o->resume, t->state.seed, o->seed);
    STATUS_DO(vm_push_states(r->vm));
    r->seed = t->state.seed;
    t->saved_step = o->save && !str_eq(o->save, o->resume) ? -1 : t->state.step;
  } else {
    if (t->save_dir && ck_newest_step(t->save_dir) >= 0)
      return status_error("%s already holds checkpoints (step %" PRId64
                          "): go on with --resume %s, or save to another directory",
                          t->save_dir, ck_newest_step(t->save_dir), t->save_dir);
    STATUS_DO(rt_first_weights(r));
  }
  t->first = t->state.step;
  return NULL;
}

static status *prepare(training *t) {
  rt *r = t->r;
  const options *o = &r->opt;
  STATUS_DO(find_outputs(t));
  STATUS_DO(read_settings(t));
  STATUS_DO(rt_start(r));
  t->ck = (checkpoint){r->prog, r->vm, r->env->io, o->quiet ? NULL : r->env->err, r->comm};
  t->saved_step = -1;
  // Data first: a misspelt file name is told before the weights are made.
  bool shuffle;
  STATUS_DO(settings_bool(&r->set, "train.shuffle", true, &shuffle));
  STATUS_DO(rt_open_data(r, t->entry, o->data, shuffle, &t->data));
  const prog_entry *eval = prog_entry_of(r->prog, PROG_EVAL);
  if (o->eval && !eval) return status_error("this executable was built without evaluation");
  if (o->eval) {
    STATUS_DO(rt_open_data(r, eval, o->eval, false, &t->eval_data));
    if (data_samples(t->eval_data) < rt_batch(r, eval))
      return status_error("%s has %" PRId64 " samples, one batch of evaluation needs %" PRId64,
                          o->eval, data_samples(t->eval_data), rt_batch(r, eval));
  }
  vm_touch(r->vm);
  STATUS_DO(take_up(t));
  data_seed(t->data, r->seed);
  if (t->eval_data) data_seed(t->eval_data, r->seed);
  if (t->save_dir) STATUS_DO(file_make_dirs(r->env->io, t->save_dir));
  if (o->has_log && r->comm) {  // `log` itself is rank 0's alone
    t->sent = ledger_new(r->prog);
    if (!t->sent) return status_error("out of memory");
  }
  return log_open(&t->log, o->log, t->first);
}

static void print_head(const training *t) {
  const rt *r = t->r;
  const prog_header *h = r->prog->header;
  char a[32], b[32], c[32], d[32], threads[64];
  const char *device = vm_device(r->vm);
  int n = pool_threads(r->threads);
  if (r->comm)
    snprintf(threads, sizeof threads, "%d ranks, %d thread%s each", comm_ranks(r->comm), n,
             n > 1 ? "s" : "");
  else
    snprintf(threads, sizeof threads, "%d thread%s", n, n > 1 ? "s" : "");
  fprintf(r->env->out, "%s: %s parameters; %s planned%s (states %s, work %s); %s; %s\n",
          prog_text(r->prog, h->model), rt_count((double)prog_parameters(r->prog), a),
          rt_bytes((double)h->arena_bytes, b), r->comm ? " on each" : "",
          rt_bytes((double)h->states_bytes, c),
          rt_bytes((double)(h->arena_bytes - h->states_bytes), d), device ? device : threads,
          data_summary(t->data));
  if (t->peak > 0)
    fprintf(r->env->out, "MFU is a share of %.0f GFLOP/s, what %s here%s\n", t->peak * 1e-9,
            device ? "this GPU reaches" : "these threads reach",
            r->opt.has_peak ? " (--peak)" : ", measured now");
  if (t->first)
    fprintf(r->env->out, "resumed at step %" PRId64 " of %" PRId64 "\n", t->first, t->steps);
}

// ---- stepping -----------------------------------------------------------------------------------

static void write_arguments(training *t, double lr) {
  vm *m = t->r->vm;
  double n = (double)(t->state.step + 1);
  vm_set_arg(m, "lr", lr);
  vm_set_arg(m, "t", n);
  vm_set_arg(m, "bias1", 1 - pow(t->beta1, n));
  vm_set_arg(m, "bias2", 1 - pow(t->beta2, n));
}

static status *save(training *t) {
  rt *r = t->r;
  if (!t->save_dir || t->saved_step == t->state.step) return NULL;
  STATUS_DO(vm_pull_states(r->vm));
  // An update can overflow though loss and gradients are finite; resuming from that is no use.
  check_state bad = check_states(r->prog, r->vm);
  if (bad.state) {
    sb text = {.arena = r->arena};
    check_print_state(&text, r->prog, &bad);
    if (r->comm) sb_printf(&text, " on rank %d", comm_rank(r->comm));
    return status_exit(5, "%s after step %" PRId64 ": not saved", sb_str(&text), t->state.step);
  }
  const map *m = &r->set.values;
  const char **pairs = arena_new(r->arena, const char *, 2 * m->n);
  for (int i = 0; i < m->n; i++) {
    pairs[2 * i] = m->keys[i];
    pairs[2 * i + 1] = m->values[i];
  }
  char path[4096];
  STATUS_DO(rt_of_all(r, ck_save(&t->ck, t->save_dir, t->keep, &t->state, pairs, m->n, path)));
  t->saved_step = t->state.step;
  t->saves++;
  if (r->opt.verbose) {
    progress_break(&t->bar);
    fprintf(r->env->err, "saved %s\n", path);
  }
  return NULL;
}

static status *evaluate(training *t) {
  double loss;
  int64_t batches;
  profile *kept = t->r->profile;
  t->r->profile = NULL;  // it is about steps
  status *s = rt_evaluate(t->r, t->eval_data, &loss, &batches);
  t->r->profile = kept;
  if (s && s->exit_code > 128) {  // interrupted: the loop saves and stops
    t->stop = s->exit_code - 128;
    t->r->together = false;
    status_free(s);
    return NULL;
  }
  if (s) return s;
  progress_break(&t->bar);
  fprintf(t->r->env->out, "step %" PRId64 "  eval loss %.4f over %" PRId64 " samples\n",
          t->state.step, loss, batches * rt_batch(t->r, prog_entry_of(t->r->prog, PROG_EVAL)));
  return NULL;
}

// ---- a step that went wrong ---------------------------------------------------------------------

static bool same_number(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

// Which value was the first: one of the states, or one that an instruction makes when the step is
// done again.
static status *find_origin(training *t, sb *text, const vm_step *s, double loss, double norm) {
  rt *r = t->r;
  bool held = t->split < t->entry->runs;
  check_state bad = check_states(r->prog, r->vm);
  if (bad.state) {
    sb_puts(text, "\n  ");
    check_print_state(text, r->prog, &bad);
    if (held && s->step > t->first)
      sb_printf(text, ": the update of step %" PRId64 " or one before made it", s->step);
    else if (held)
      sb_puts(text, " in what this run started from");
  }
  if (!held) {
    sb_printf(text,
              "\n  step %" PRId64
              " is in the weights already: this program updates before it "
              "knows its loss",
              s->step + 1);
    return NULL;
  }
  check_values values;
  int64_t predicted = 0;
  STATUS_DO(check_clear(r->prog, r->vm));
  STATUS_DO(data_fill(t->data, vm_at(r->vm, 0), s->sample0, &predicted));
  STATUS_DO(check_again(&values, r->prog, r->vm, t->entry, s, t->split));
  check_print(text, &values, t->entry);
  if (!same_number(loss, vm_scalar(r->vm, t->loss)) ||
      (t->norm && !same_number(norm, vm_scalar(r->vm, t->norm))))
    sb_puts(text,
            "\n  done again, the same step gave other numbers: faulty hardware, or a bug in dsmc");
  return NULL;
}

static status *bad_step(training *t, const vm_step *s, double lr, double loss, double norm) {
  rt *r = t->r;
  char a[32], b[32];
  sb text = {.arena = r->arena};
  progress_break(&t->bar);
  STATUS_DO(vm_pull_states(r->vm));
  bool by_loss = !isfinite(loss);
  sb_printf(&text, "%s is %s at step %" PRId64 " (lr %g", by_loss ? "loss" : "the gradient norm",
            check_word(by_loss ? loss : norm, a), s->step + 1, lr);
  if (by_loss && t->norm) sb_printf(&text, ", gradient norm %s", check_word(norm, b));
  if (!by_loss) sb_printf(&text, ", loss %s", check_word(loss, b));
  sb_puts(&text, ")");
  status *also = find_origin(t, &text, s, loss, norm);
  // The states are those of the step before, which is worth keeping when this run made it.
  int64_t spoilt = check_states(r->prog, r->vm).state != NULL;
  STATUS_DO(comm_max(r->comm, &spoilt));
  bool good = t->split < t->entry->runs && !spoilt;
  if (good) sb_puts(&text, "\n  the step changed no weight");
  if (good && t->save_dir && t->state.step > t->first) also = status_join(also, save(t));
  if (t->saved_step >= 0)
    sb_printf(&text, "\n  the last checkpoint is step %" PRId64 " in %s", t->saved_step,
              t->save_dir);
  else
    sb_puts(&text, "\n  nothing was saved");
  r->together = !also;
  return status_join(status_exit(5, "%s", sb_str(&text)), also);
}

// Whether any rank met a bad number, and whether one was asked to stop: then all do so after this
// step. One message for both.
static status *agree(training *t, bool *bad) {
  int64_t both = (int64_t)*bad << 32 | *t->r->env->stop;
  if (!t->r->comm) return NULL;
  STATUS_DO(comm_max(t->r->comm, &both));
  *bad = both >> 32;
  t->stop = (int)both;
  return NULL;
}

// What all ranks sent since t->sent, as text of the log; rank 0 has it. NULL without a log.
static status *sent_since(training *t, char **out) {
  rt *r = t->r;
  const ledger *before = t->sent;
  *out = NULL;
  if (!before) return NULL;
  ledger *mine = ledger_new(r->prog), *sum = ledger_new(r->prog);
  size_t n = ledger_bytes(before), ranks = (size_t)comm_ranks(r->comm);
  unsigned char *all = comm_rank(r->comm) == 0 ? malloc(n * ranks) : NULL;
  status *s = NULL;
  if (!mine || !sum || (comm_rank(r->comm) == 0 && !all)) s = status_error("out of memory");
  if (!s) {
    ledger_sent(r->prog, r->comm, mine);
    ledger_add(mine, before, -1);
    s = comm_collect(r->comm, mine, n, all, 0);
  }
  for (size_t k = 0; all && !s && k < ranks; k++) {
    memcpy(mine, all + k * n, n);
    ledger_add(sum, mine, 1);
  }
  if (all && !s) {
    json_t *o = ledger_json(r->prog, sum);
    *out = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
  }
  free(mine);
  free(sum);
  free(all);
  return s;
}

static status *one_step(training *t) {
  rt *r = t->r;
  const prog_entry *e = t->entry;
  double start = rt_now();
  int64_t predicted = 0;
  double lr = settings_lr(&r->set.schedule, t->lr, t->state.step, t->steps);
  int64_t first = t->state.samples + rt_first_sample(r, e);
  vm_step s = {.sample0 = first, .step = t->state.step, .seed = r->seed};
  if (t->sent) ledger_sent(r->prog, r->comm, t->sent);
  rt_begin_step(r, s.step + 1);
  STATUS_TRY(data_fill(t->data, vm_at(r->vm, 0), first, &predicted), "step %" PRId64,
             t->state.step + 1);
  write_arguments(t, lr);
  STATUS_DO(vm_call_part(r->vm, e, &s, 0, t->split));
  double loss = vm_scalar(r->vm, t->loss), norm = t->norm ? vm_scalar(r->vm, t->norm) : NAN;
  bool bad = !isfinite(loss) || (t->norm && !isfinite(norm));
  STATUS_DO(agree(t, &bad));
  if (!bad) STATUS_DO(vm_call_part(r->vm, e, &s, t->split, e->runs));
  log_scalar more[MAX_SCALARS];
  for (int i = 0; i < t->nscalars; i++) {
    more[i].name = prog_text(r->prog, t->scalar[i]->name);
    more[i].value = vm_scalar(r->vm, t->scalar[i]);
  }
  double seconds = rt_now() - start;
  char *sent;
  STATUS_DO(sent_since(t, &sent));
  log_line line = {.step = t->state.step + 1,
                   .tokens = rt_batch(r, e) * (e->tokens > 0 ? e->tokens : 1),
                   .loss = loss,
                   .lr = lr,
                   .step_s = seconds,
                   .more = more,
                   .nmore = t->nscalars,
                   .sent = sent};
  line.tokens_per_s = (double)line.tokens / seconds;
  if (t->log.path) {
    uint64_t faults = rt_page_faults();
    line.page_faults = faults - t->faults;
    line.peak_bytes = rt_memory("VmHWM:");
    t->faults = faults;
  }
  log_step(&t->log, &line);
  free(sent);
  if (bad) {
    rt_end_step(r);
    return bad_step(t, &s, lr, loss, norm);
  }
  t->state.step++;
  t->state.samples += rt_batch(r, e);
  progress_show(&t->bar, &(progress_step){.step = t->state.step,
                                          .loss = loss,
                                          .grad_norm = norm,
                                          .lr = lr,
                                          .tokens_per_s = line.tokens_per_s,
                                          .flops_per_s = e->flops * comm_ranks(r->comm) / seconds,
                                          .peak = t->peak});
  rt_end_step(r);
  return NULL;
}

// Stopped from outside: save if there is a place to.
static status *stopped(training *t) {
  int number = t->stop;
  progress_break(&t->bar);
  if (!t->save_dir) t->r->together = true;
  if (!t->save_dir)
    return status_exit(128 + number,
                       "stopped by %s after step %" PRId64 "; nothing was saved (no --save DIR)",
                       rt_signal_name(number), t->state.step);
  STATUS_DO(save(t));
  t->r->together = true;
  return status_exit(75,
                     "stopped by %s after step %" PRId64 " of %" PRId64
                     "; saved in %s, go on with --resume %s",
                     rt_signal_name(number), t->state.step, t->steps, t->save_dir, t->save_dir);
}

static status *loop(training *t) {
  while (t->state.step < t->steps) {
    STATUS_DO(one_step(t));
    bool last = t->state.step == t->steps;
    if (!t->r->comm) t->stop = *t->r->env->stop;
    if (t->stop && !last) return stopped(t);
    if (t->save_every && t->state.step % t->save_every == 0) STATUS_DO(save(t));
    if (t->eval_data && (last || (t->eval_every && t->state.step % t->eval_every == 0)))
      STATUS_DO(evaluate(t));
    if (!t->r->comm) t->stop = *t->r->env->stop;
    if (t->stop && !last) return stopped(t);
  }
  return save(t);
}

static void print_end(training *t, double seconds) {
  rt *r = t->r;
  FILE *out = r->env->out;
  char a[32], b[32], c[32];
  int64_t n = t->state.step - t->first;
  fprintf(out, "loss %.4f -> %.4f over %" PRId64 " step%s in %s\n", t->bar.first_loss,
          t->bar.last_loss, n, n > 1 ? "s" : "", rt_seconds(seconds, a));
  progress_plot(&t->bar);
  fprintf(out, "memory: %s planned; process peak %s, of it now %s outside files\n",
          rt_bytes((double)r->prog->header->arena_bytes, a),
          rt_bytes((double)rt_memory("VmHWM:"), b), rt_bytes((double)rt_memory("RssAnon:"), c));
  if (!t->save_dir) return;
  fprintf(out, "%d checkpoint%s written to %s", t->saves, t->saves == 1 ? "" : "s", t->save_dir);
  const prog_entry *prefill = prog_entry_of(r->prog, PROG_PREFILL);
  if (prefill && prog_entry_of(r->prog, PROG_DECODE))
    fprintf(out, "; next: %s generate --load %s --%s TEXT", r->opt.exe, t->save_dir,
            prog_input(r->prog, prefill, "source") ? "source" : "prompt");
  fputc('\n', out);
}

// What all ranks reach at the same time.
static status *measure_peak(training *t) {
  int64_t flops = (int64_t)peak_flops(t->r->threads);
  STATUS_DO(comm_sum(t->r->comm, &flops));
  t->peak = (double)flops;
  return NULL;
}

static status *run(training *t) {
  rt *r = t->r;
  STATUS_DO(prepare(t));
  if (t->peak <= 0 && !r->opt.quiet && !vm_device(r->vm)) STATUS_DO(measure_peak(t));
  if (!r->opt.quiet) print_head(t);
  if (t->first >= t->steps) {
    if (!r->opt.quiet)
      fprintf(r->env->out,
              "nothing to do: %" PRId64 " steps are done, --steps asks for %" PRId64 "\n", t->first,
              t->steps);
    return NULL;
  }
  double start = rt_now();
  t->faults = rt_page_faults();
  progress_begin(&t->bar, r->opt.quiet ? NULL : r->env->out, t->first, t->steps);
  status *s = loop(t);
  progress_break(&t->bar);
  if (!s && !r->opt.quiet) print_end(t, rt_now() - start);
  if (!s || t->stop) rt_print_profile(r, "step", true);
  return status_join(s, rt_write_trace(r));
}

status *drive_train(rt *r) {
  training t = {.r = r, .log = {.fd = -1}};
  signal(SIGPIPE, SIG_IGN);  // a closed pipe behind stdout must not end training unsaved
  status *s = run(&t);
  data_close(t.data);
  data_close(t.eval_data);
  free(t.sent);
  return status_join(s, log_close(&t.log));
}
