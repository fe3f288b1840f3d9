// Manifests of checkpoints: whatever the text, resuming answers with a status. The manifest's own
// checksum is put right, so that the checks behind it are reached; the input patches a real
// manifest (pairs of position, value), or replaces it when it starts with a brace.

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/checkpoint.h"
#include "tests/unit/toy_program.h"

static const char seal_key[] = "\"manifest_xxh3\": \"";

typedef struct saved {
  toy *t;
  image img;
  checkpoint c;
  char dir[64], step[128], path[160];
  char *text;
  size_t n;
} saved;

static void must(status *s) {
  if (!s) return;
  fprintf(stderr, "%s\n", s->message);
  abort();
}

// One save to patch, in a folder of its own that goes with the process.
static void remove_save(void);
static saved *the_save(void) {
  static saved s;
  if (s.t) return &s;
  s.t = toy_new("next_token");
  must(toy_image(s.t, &s.img));
  s.c = (checkpoint){.prog = &s.img.prog, .io = file_io_system()};
  must(vm_open(&s.img.prog, s.img.code, pool_new(1), &s.c.vm));
  snprintf(s.dir, sizeof s.dir, "/tmp/dsmc-fuzz-XXXXXX");
  if (!mkdtemp(s.dir)) abort();
  char path[4096];
  must(ck_save(&s.c, s.dir, 1, &(ck_state){.step = 4, .samples = 16, .seed = 1}, NULL, 0, path));
  snprintf(s.step, sizeof s.step, "%.127s", path);
  snprintf(s.path, sizeof s.path, "%s/manifest.json", s.step);
  FILE *f = fopen(s.path, "r");
  s.text = calloc(1, 65536);
  if (!f || !s.text) abort();
  s.n = fread(s.text, 1, 65535, f);
  fclose(f);
  atexit(remove_save);
  return &s;
}

static void remove_save(void) {
  status_free(file_remove_dir(file_io_system(), the_save()->step));
  status_free(file_remove_dir(file_io_system(), the_save()->dir));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
  saved *s = the_save();
  bool whole = n > 0 && bytes[0] == '{';
  size_t size = whole ? n : s->n;
  char *text = malloc(size + 1);
  if (!text) return 0;
  memcpy(text, whole ? (const char *)bytes : s->text, size);
  text[size] = 0;
  if (!whole)
    for (size_t i = 0; i + 3 <= n; i += 3)
      text[(bytes[i] + 256u * bytes[i + 1]) % size] = (char)bytes[i + 2];
  char *seal = strstr(text, seal_key);
  if (seal && strlen(seal) >= strlen(seal_key) + 16) {
    char digits[20];
    memset(seal + strlen(seal_key), '0', 16);
    snprintf(digits, sizeof digits, "%016llx", (unsigned long long)XXH3_64bits(text, size));
    memcpy(seal + strlen(seal_key), digits, 16);
  }
  int fd = open(s->path, O_WRONLY | O_TRUNC | O_CLOEXEC);
  if (fd < 0 || write(fd, text, size) != (ssize_t)size) abort();
  close(fd);
  free(text);
  ck_state out;
  bool found;
  status *bad = ck_resume(&s->c, s->dir, &out, &found);
  if (!bad && found && (out.step < 0 || out.samples < 0)) abort();
  if (!bad) bad = ck_load_weights(&s->c, s->dir);
  status_free(bad);
  return 0;
}
