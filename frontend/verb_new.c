// dsmc new [EXAMPLE] [FILE]: a first file to start from; without arguments the list of examples.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "frontend/verb_common.h"
#include "runtime/base/str.h"

#define EXAMPLE(name) extern const char dsm_example_##name[];
#include "frontend/examples.def"

static const struct {
  const char *name, *text, *what, *needs;
} examples[] = {
#define EXAMPLE_ROW(name, what, needs) {#name, dsm_example_##name, what, needs},
#include "frontend/examples.def"
};
enum { N = sizeof examples / sizeof *examples };

static double parameters_of(const ir_module *m) {
  double n = 0;
  for (int i = 0; i < m->states.n; i++)
    if (m->states.at[i]->cls == STATE_WEIGHT) n += (double)ir_elements(&m->states.at[i]->type);
  return n;
}

static const char *count_text(arena *a, double n) {
  return n >= 1e9 ? arena_printf(a, "%.1f B", n / 1e9) : arena_printf(a, "%.3g M", n / 1e6);
}

static int list_examples(cli *c) {
  printf(
      "examples (dsmc new EXAMPLE [FILE] writes one); memory is that of the whole job here:\n\n");
  for (int i = 0; i < N; i++) {
    compiled k;
    printf("  %-6s %s\n", examples[i].name, examples[i].what);
    if (!compile_measure(c, examples[i].name, examples[i].text, &k)) return compile_finish(c, &k);
    printf("         %s parameters, %s; %s\n", count_text(c->arena, parameters_of(k.module)),
           compile_bytes_text(c->arena, (double)k.schedule->arena_bytes),
           k.fits ? examples[i].needs : "more than this host has: shrink it with --set");
  }
  printf("\nthen: dsmc run FILE\n");
  return EXIT_GOOD;
}

int verb_new(cli *c) {
  if (c->files.n == 0) return list_examples(c);
  const char *name = c->files.at[0];
  int i = 0;
  while (i < N && !str_eq(examples[i].name, name)) i++;
  if (i == N) {
    const char *names[N];
    for (int k = 0; k < N; k++) names[k] = examples[k].name;
    const char *near = str_nearest(name, names, N);
    return cli_usage("new: no example `%s`%s%s%s; `dsmc new` lists them", name,
                     near ? "; did you mean `" : "", near ? near : "", near ? "`?" : "");
  }
  const char *path = c->files.n > 1 ? c->files.at[1] : arena_printf(c->arena, "%s.dsm", name);
  // Never overwrite somebody's work.
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  FILE *f = fd >= 0 ? fdopen(fd, "w") : NULL;
  if (!f) {
    fprintf(stderr, "dsmc: cannot write %s: %s\n", path, strerror(errno));
    return EXIT_INPUT;
  }
  bool good = fputs(examples[i].text, f) >= 0;
  good = fclose(f) == 0 && good;
  if (!good) {
    fprintf(stderr, "dsmc: cannot write %s: %s\n", path, strerror(errno));
    unlink(path);
    return EXIT_INPUT;
  }
  if (!cli_has(c, OPT_QUIET)) printf("%s written; next: dsmc run %s\n", path, path);
  return EXIT_GOOD;
}
