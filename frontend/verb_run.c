// dsmc run FILE [-- ARGUMENTS]: builds into the cache, then becomes the executable, or the mpirun
// that starts it on several ranks.
//
// The executable's name in the cache is a digest of the texts, the settings and the compiler, so an
// unchanged job starts at once.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "frontend/verb_common.h"
#include "ir/place.h"
#include "runtime/base/file.h"
#include "runtime/base/str.h"

enum { MPIRUN_WORDS = 16 };

// mpirun and its options: quiet, since the executable says itself what went wrong, and as many
// ranks as the plan has, whatever the cores, which they share among themselves.
static int mpirun_words(arena *a, const char **argv, int64_t ranks) {
  int n = 0;
  argv[n++] = "mpirun";
  if (geteuid() == 0) argv[n++] = "--allow-run-as-root";
  argv[n++] = "-q";
  argv[n++] = "--oversubscribe";
  argv[n++] = "--bind-to";
  argv[n++] = "none";
  argv[n++] = "-n";
  argv[n++] = arena_printf(a, "%lld", (long long)ranks);
  return n;
}

static int cannot_start(const char *what, int why, int64_t ranks) {
  fprintf(stderr, "dsmc: cannot start %s: %s\n", what, strerror(why));
  if (ranks > 1 && why == ENOENT)
    fprintf(stderr, "  its ranks run on Open MPI (Debian and Ubuntu: apt install openmpi-bin)\n");
  return EXIT_INPUT;
}

// A run that was asked to stop saves and ends. mpirun would kill its ranks a second after it was
// asked, so it is not: it is passed SIGUSR1, which it passes on. Asked twice, it is told.
static int attend(pid_t child, const sigset_t *watched) {
  int ended = 0;
  for (bool asked = false;;) {
    int signal_number;
    if (sigwait(watched, &signal_number)) continue;
    if (signal_number != SIGCHLD) {
      kill(child, asked ? SIGTERM : SIGUSR1);
      asked = true;
    } else if (waitpid(child, &ended, WNOHANG) == child) {
      return WIFEXITED(ended) ? WEXITSTATUS(ended) : 128 + WTERMSIG(ended);
    }
  }
}

// A process group of its own keeps the terminal's Ctrl-C from mpirun.
static int run_ranks(char *const *argv, int64_t ranks) {
  sigset_t watched, before;
  int problem[2], why = 0;
  sigemptyset(&watched);
  for (size_t i = 0; i < 4; i++) sigaddset(&watched, (int[]){SIGTERM, SIGINT, SIGHUP, SIGCHLD}[i]);
  if (pipe2(problem, O_CLOEXEC)) return cannot_start(argv[0], errno, ranks);
  sigprocmask(SIG_BLOCK, &watched, &before);
  pid_t child = fork();
  if (child < 0) return cannot_start(argv[0], errno, ranks);
  if (child == 0) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int nothing = open("/dev/null", O_RDONLY);
    if (nothing >= 0) dup2(nothing, STDIN_FILENO);
    sigprocmask(SIG_SETMASK, &before, NULL);
    execvp(argv[0], argv);
    why = errno;
    ssize_t n = write(problem[1], &why, sizeof why);
    _exit(n < 0 ? EXIT_INPUT : EXIT_INPUT);
  }
  close(problem[1]);
  bool failed = read(problem[0], &why, sizeof why) == (ssize_t)sizeof why;
  close(problem[0]);
  int code = attend(child, &watched);
  return failed ? cannot_start(argv[0], why, ranks) : code;
}

int verb_run(cli *c) {
  compiled k;
  const char *dir = compile_cache_folder(c);
  if (!dir)
    return cli_usage(
        "`dsmc run` keeps the executable in the cache: name a folder, or use `dsmc build`");
  status *s = file_make_dirs(file_io_system(), dir);
  if (s) {
    fprintf(stderr, "dsmc: no cache folder: %s\n", s->message);
    status_free(s);
    return EXIT_INPUT;
  }
  if (!compile(c, c->files.at[0], COMPILE_SCHEDULE, &k)) return compile_finish(c, &k);
  const char *exe =
      arena_printf(c->arena, "%s/%s-%016llx", dir, k.job->model_name, (unsigned long long)k.digest);
  if (access(exe, X_OK) != 0 && !(compile_code(c, &k) && compile_write(c, &k, exe)))
    return compile_finish(c, &k);
  int rc = compile_finish(c, &k);
  if (rc != EXIT_GOOD) return rc;

  const char *verb = c->rest.n && c->rest.at[0][0] != '-' ? c->rest.at[0] : "train";
  int64_t ranks = k.mesh ? mesh_devices(k.mesh) : 1;
  if (str_eq(verb, "info") || str_eq(verb, "schedule")) ranks = 1;  // about the file alone
  const char **argv = arena_new(c->arena, const char *, c->rest.n + 3 + MPIRUN_WORDS);
  int n = ranks > 1 ? mpirun_words(c->arena, argv, ranks) : 0;
  if (n && !cli_has(c, OPT_QUIET)) {
    fprintf(stderr, "dsmc: %lld ranks:", (long long)ranks);
    for (int i = 0; i < n; i++) fprintf(stderr, " %s", argv[i]);
    fprintf(stderr, " %s %s ...\n", exe, verb);
  }
  argv[n++] = exe;
  if (c->rest.n == 0 || c->rest.at[0] != verb) argv[n++] = verb;
  for (int i = 0; i < c->rest.n; i++) argv[n++] = c->rest.at[i];
  fflush(NULL);
  char *const *words = (char *const *)(uintptr_t)argv;
  if (ranks > 1) return run_ranks(words, ranks);
  execv(exe, words);
  return cannot_start(exe, errno, ranks);
}
