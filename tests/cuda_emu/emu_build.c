// emu_build TEXT SO: what `dsmc ir --form cuda` printed, compiled for the emulation (emulate.h).
// Exit code 77 where that is not possible.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"
#include "tests/cuda_emu/emulate.h"

static const char *read_text(arena *a, const char *path) {
  FILE *f = fopen(path, "rb");
  if (!f) return NULL;
  sb text = {.arena = a};
  int c;
  while ((c = getc(f)) != EOF) sb_put(&text, (char)c);
  fclose(f);
  return sb_str(&text);
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: emu_build TEXT SO\n");
    return 2;
  }
  if (emu_missing()) {
    fprintf(stderr, "%s\n", emu_missing());
    return 77;
  }
  arena a;
  arena_init(&a);
  const char *text = read_text(&a, argv[1]), *dir = emu_make_folder(&a);
  const char *why = "cannot read the text, or make a folder";
  if (text && dir) why = emu_compile(&a, dir, &text, 1, argv[2]);
  if (why) fprintf(stderr, "%s\n", why);
  if (dir) emu_remove_folder(&a, dir);
  arena_free(&a);
  return why != NULL;
}
