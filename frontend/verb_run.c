// dsmc run FILE [-- ARGUMENTS]: builds into the cache, then becomes the executable.
//
// The executable's name in the cache is a digest of the texts, the settings and the compiler, so an
// unchanged job starts at once.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frontend/verb_common.h"

static const char *cache_folder(cli *c) {
  const char *dir = cli_get(c, OPT_CACHE);
  if (dir) return dir;
  const char *base = getenv("XDG_CACHE_HOME");
  if (base && base[0]) return arena_printf(c->arena, "%s/dsmc", base);
  const char *home = getenv("HOME");
  return arena_printf(c->arena, "%s/.cache/dsmc", home && home[0] ? home : "/tmp");
}

static bool make_folders(char *path) {
  for (char *p = path + 1; *p; p++) {
    if (*p != '/') continue;
    *p = 0;
    bool good = mkdir(path, 0777) == 0 || errno == EEXIST;
    *p = '/';
    if (!good) return false;
  }
  return mkdir(path, 0777) == 0 || errno == EEXIST;
}

int verb_run(cli *c) {
  compiled k;
  const char *dir = cache_folder(c);
  if (!make_folders(arena_strdup(c->arena, dir))) {
    fprintf(stderr, "dsmc: cannot make the cache folder %s: %s\n", dir, strerror(errno));
    return EXIT_INPUT;
  }
  if (!compile(c, c->files.at[0], COMPILE_SCHEDULE, &k)) return compile_finish(c, &k);
  const char *exe =
      arena_printf(c->arena, "%s/%s-%016llx", dir, k.job->model_name, (unsigned long long)k.digest);
  if (access(exe, X_OK) != 0 && !(compile_code(c, &k) && compile_write(c, &k, exe)))
    return compile_finish(c, &k);
  int rc = compile_finish(c, &k);
  if (rc != EXIT_GOOD) return rc;

  const char **argv = arena_new(c->arena, const char *, c->rest.n + 3);
  int n = 0;
  argv[n++] = exe;
  if (c->rest.n == 0 || c->rest.at[0][0] == '-') argv[n++] = "train";
  for (int i = 0; i < c->rest.n; i++) argv[n++] = c->rest.at[i];
  fflush(NULL);
  execv(exe, (char *const *)(uintptr_t)argv);
  fprintf(stderr, "dsmc: cannot start %s: %s\n", exe, strerror(errno));
  return EXIT_INPUT;
}
