// dsmc run FILE [-- ARGUMENTS]: builds into the cache, then becomes the executable.
//
// The executable's name in the cache is a digest of the texts, the settings and the compiler, so an
// unchanged job starts at once.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "frontend/verb_common.h"
#include "runtime/base/file.h"

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
