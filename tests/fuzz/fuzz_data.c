// Data: any `read` text over any token file, and the texts of settings. Byte 0 chooses the inputs;
// then a line with `read`; the rest is the file.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/data.h"
#include "runtime/settings.h"

enum { B = 4, MB = 2, S = 12, MAX = 4096 };
static const char names[] =
    "\0tokens\0targets\0length\0segments\0source\0vocab\0"
    "256";
static const prog_str name_at[] = {1, 8, 16, 23, 32};

static void add_input(prog_io *io, prog_entry *e, int which, int64_t width) {
  int64_t row = width ? width : 1;
  io[e->inputs] = (prog_io){.name = name_at[which],
                            .dtype = PROG_I32,
                            .rank = width ? 2 : 1,
                            .sampled = 1,
                            .dims = {MB, width},
                            .offset = (int64_t)e->inputs * 1024,
                            .bytes = 4 * MB * row,
                            .micro_stride = 4 * MB * row};
  e->inputs++;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
  const uint8_t *line_end = n > 1 ? memchr(bytes + 1, '\n', n - 1) : NULL;
  if (!line_end) return 0;
  prog_io io[6];
  prog_entry e = {.batch = B, .micro_batch = MB};
  prog_setting set = {39, 45};
  prog p = {
      .strings = names, .ios = io, .entries = &e, .settings = &set, .nentries = 1, .nsettings = 1};
  add_input(io, &e, 0, S);
  add_input(io, &e, 1, S);
  if (bytes[0] & 1) add_input(io, &e, 2, 0);
  if (bytes[0] & 2) add_input(io, &e, 3, S);
  if (bytes[0] & 4) add_input(io, &e, 4, 20);

  arena a;
  arena_init(&a);
  const char *read = arena_strndup(&a, (const char *)bytes + 1, (size_t)(line_end - bytes - 1));
  call_text c;
  status_free(settings_call(&a, read, &c));
  settings st;
  if (!settings_open(&a, &p, &st)) status_free(settings_set(&st, read));

  const uint8_t *text = line_end + 1;
  size_t ntext = (size_t)(bytes + n - text);
  char path[64];
  int fd = memfd_create(bytes[0] & 8 ? "x.bin" : "x", 0);
  if (fd < 0 || write(fd, text, ntext) != (ssize_t)ntext) abort();
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  data_spec spec = {path, read, bytes[0], bytes[0] & 16};
  data *d;
  status *s = data_open(&a, &p, &e, &spec, &d);
  static int32_t memory[MAX];
  int64_t predicted = 0;
  for (int64_t k = 0; !s && k < 3; k++)
    s = data_fill(d, (unsigned char *)memory, k * 5, &predicted);
  status_free(s);
  data_close(d);
  close(fd);
  arena_free(&a);
  return 0;
}
