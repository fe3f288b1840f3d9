#include <inttypes.h>
#include <locale.h>
#include <string.h>
#include <time.h>

#include "runtime/base/str.h"
#include "runtime/comm_mpi.h"
#include "runtime/drivers/driver.h"

int rt_report(status *s, FILE *err) {
  if (!s) return 0;
  int code = s->exit_code, rank = 0, ranks = 1;
  // Before ranks know each other all make the same mistake, and rank 0 says it: mpirun ends the
  // others then. One that is still there has another mistake.
  bool told = *s->message == 0;
  if (!told && mpi_started(&rank, &ranks) && rank > 0)
    told = nanosleep(&(struct timespec){.tv_sec = 3}, NULL) != 0;  // by mpirun's signal
  if (told) {
    status_free(s);
    return code;
  }
  fprintf(err, "%s%s\n", code == 75 ? "" : "error: ", s->message);
  status_free(s);
  return code;
}

static status *choose_seed(rt *r) {
  int64_t seed;
  STATUS_DO(settings_whole(&r->set, "train.seed", 1, &seed));
  r->seed = (uint64_t)(r->opt.has_seed ? r->opt.seed : seed);
  return NULL;
}

// --rank: another stage of a pipeline has another program, which `other` is opened for.
static status *choose_rank(rt *r, image *other) {
  if (!r->opt.has_rank) return NULL;
  int64_t ranks = comm_program_ranks(r->prog);
  if (r->opt.rank >= ranks)
    return status_exit(2, "--rank %" PRId64 ": the program is for %" PRId64 " rank%s, from 0 on",
                       r->opt.rank, ranks, ranks == 1 ? "" : "s");
  if (prog_stages(r->prog) == 1) return NULL;
  STATUS_DO(image_open("/proc/self/exe", r->opt.exe, (int)r->opt.rank, other));
  r->img = other;
  r->prog = &other->prog;
  return NULL;
}

static status *run_verb(rt *r, image *other) {
  STATUS_DO(choose_rank(r, other));
  STATUS_DO(settings_open(r->arena, r->prog, &r->set));
  if (r->opt.set) STATUS_DO(settings_set(&r->set, r->opt.set));
  STATUS_DO(choose_seed(r));
  switch (r->opt.verb) {
    case VERB_TRAIN: return drive_train(r);
    case VERB_EVAL: return drive_eval(r);
    case VERB_GENERATE: return drive_generate(r);
    case VERB_INFO: return drive_info(r);
    case VERB_SCHEDULE: return drive_schedule(r);
    case VERB_NONE: break;
  }
  return NULL;
}

// The end of a command on all its ranks: together, with one word; or of one whose error the others
// do not know of.
static int rt_end(rt *r, status *s, FILE *err) {
  if (!r->comm) return rt_report(s, err);
  int code = s ? s->exit_code : 0;
  if (s && !r->together) {
    comm_fail(r->comm, s);
    status_free(s);
    s = NULL;
  } else if (s && comm_rank(r->comm) > 0) {
    status_free(s);
    s = NULL;
  } else if (s) {
    fprintf(err, "%s%s\n", code == 75 ? "" : "error: ", s->message);
  }
  status_free(s);
  comm_close(r->comm);
  return code;
}

int rt_run(const image *img, int argc, char **argv, const rt_env *env) {
  arena a;
  image other = {0};
  arena_init(&a);
  rt r = {.env = env, .arena = &a, .img = img, .prog = &img->prog, .trace_out = {.fd = -1}};
  status *s = args_parse(&a, argc, argv, &r.opt);
  if (!s && r.opt.help) {
    args_help(env->out, r.opt.exe, r.opt.verb);
  } else if (!s && r.opt.version) {
    fprintf(env->out, "%s, source %016llx, made by %s\n", prog_text(r.prog, r.prog->header->model),
            (unsigned long long)r.prog->header->source_digest,
            prog_text(r.prog, r.prog->header->compiler));
  } else if (!s) {
    s = run_verb(&r, &other);
  }
  profile_free(r.profile);
  vm_close(r.vm);
  pool_free(r.threads);
  // A full disk or a closed pipe behind stdout must not look like success.
  if (!s && (fflush(env->out) != 0 || ferror(env->out)))
    s = status_errno("cannot write the output");
  int code = rt_end(&r, s, env->err);
  image_close(&other);
  if (r.nowhere) fclose(r.nowhere);
  arena_free(&a);
  return code;
}
