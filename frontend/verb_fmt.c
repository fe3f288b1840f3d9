// dsmc fmt FILE..., dsmc fmt -i FILE...: canonical layout, to the output or into the files.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frontend/cli.h"
#include "frontend/fmt.h"
#include "runtime/base/str.h"

// Replaces a file as a whole: a full disk or a signal leaves the old one. NULL or what went wrong.
static const char *replace_file(arena *a, const char *path, const char *text) {
  char *temp = arena_printf(a, "%s.XXXXXX", path);
  int fd = mkstemp(temp);
  if (fd < 0) return strerror(errno);
  FILE *f = fdopen(fd, "wb");
  struct stat st;
  bool good = f && fputs(text, f) >= 0;
  if (good && stat(path, &st) == 0) good = fchmod(fd, st.st_mode & 07777) == 0;
  good = f && fclose(f) == 0 && good;
  if (good) good = rename(temp, path) == 0;
  int why = errno;
  if (!good) unlink(temp);
  return good ? NULL : strerror(why);
}

// A formatter that changed the meaning of a text would be worse than none: look once more.
static void check_same_tree(cli *c, const source *src, const char *text) {
  diags quiet;
  diags_init(&quiet, c->arena);
  sb before = {.arena = c->arena}, after = {.arena = c->arena};
  ast_dump(&before, parse_file(c->arena, &quiet, src));
  ast_dump(&after,
           parse_file(c->arena, &quiet, source_from_text(c->arena, src->path, text, strlen(text))));
  if (str_eq(sb_str(&before), sb_str(&after))) return;
  fprintf(stderr, "dsmc: fmt would change the meaning of %s; please report this text\n", src->path);
  abort();
}

int verb_fmt(cli *c) {
  for (int i = 0; i < c->files.n; i++) {
    const char *why, *path = c->files.at[i];
    source *src = source_read(c->arena, path, &why);
    if (!src) {
      diag *e = diag_error(&c->diags, span_none(), DIAG_CANNOT_READ, "cannot read %s", path);
      diag_note(e, "%s", why);
      continue;
    }
    const char *text = fmt_text(c->arena, &c->diags, src);
    if (!text) continue;
    check_same_tree(c, src, text);
    if (!cli_has(c, OPT_INPLACE)) {
      fputs(text, stdout);
    } else if (strcmp(text, src->text) != 0) {
      why = replace_file(c->arena, path, text);
      if (why) {
        diag *e = diag_error(&c->diags, span_none(), DIAG_CANNOT_WRITE, "cannot write %s", path);
        diag_note(e, "%s", why);
      }
    }
  }
  return cli_finish(c);
}
