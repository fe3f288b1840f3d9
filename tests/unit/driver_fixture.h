// The drivers of an executable, run on a hand-made program (toy_program.h) in a folder of the test.
//
//   expect(w, 0, "train --data @/corpus.txt --steps 4");  // `@` is the folder; 0 the exit code
//   has(w->err, "saved");                                 // what it said
#ifndef DRIVER_FIXTURE_H
#define DRIVER_FIXTURE_H

#include <signal.h>
#include <unistd.h>

#include "runtime/drivers/driver.h"
#include "tests/unit/toy_refuse.h"

typedef struct world {
  char dir[64];
  toy *toy;
  image img;
  char *out, *err;
  size_t nout, nerr;
} world;

static volatile sig_atomic_t stop_flag;
static int64_t stop_at;

static inline void stop_hook(const dsm_call *call) {
  if (stop_at && call->step + 1 == stop_at) stop_flag = SIGTERM;
}

static inline const char *path(world *w, const char *name) {
  static char buf[8][160];
  static int k;
  k = (k + 1) % 8;
  snprintf(buf[k], sizeof buf[k], "%s/%s", w->dir, name);
  return buf[k];
}

static inline void write_file(const char *name, const void *bytes, size_t n) {
  FILE *f = fopen(name, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(bytes, 1, n, f), n);
  fclose(f);
}

static inline char *read_file(const char *name) {
  FILE *f = fopen(name, "rb");
  assert_non_null(f);
  char *text = calloc(1, 1 << 20);
  size_t n = fread(text, 1, (1 << 20) - 1, f);
  assert_true(n < (1 << 20) - 1);
  fclose(f);
  return text;
}

static inline int setup(void **state) {
  world *w = calloc(1, sizeof *w);
  snprintf(w->dir, sizeof w->dir, "/tmp/dsm_program_XXXXXX");
  assert_non_null(mkdtemp(w->dir));
  w->toy = toy_new("next_token");
  status *s = toy_image(w->toy, &w->img);
  if (s) fail_msg("%s", s->message);
  char text[2000];
  for (size_t i = 0; i < sizeof text; i++) text[i] = "the cat sat on the mat. "[i % 24];
  write_file(path(w, "corpus.txt"), text, sizeof text);
  stop_at = 0;
  stop_flag = 0;
  toy_hook = stop_hook;
  toy_spoil = NULL;
  *state = w;
  return 0;
}

static inline int teardown(void **state) {
  world *w = *state;
  char cmd[128];
  snprintf(cmd, sizeof cmd, "rm -rf %s", w->dir);
  if (system(cmd)) return 1;
  free(w->out);
  free(w->err);
  toy_free(w->toy);
  free(w);
  return 0;
}

// Runs "EXE ARGS"; words are separated by spaces, `@` stands for the test's directory.
static inline int run(world *w, const char *line) {
  char buf[2048];
  char *argv[64] = {(char *)(uintptr_t)"toy"};
  int argc = 1;
  size_t n = 0;
  for (const char *p = line; *p; p++) {
    if (*p == '@')
      n += (size_t)snprintf(buf + n, sizeof buf - n, "%s", w->dir);
    else
      buf[n++] = *p;
  }
  buf[n] = 0;
  for (char *word = strtok(buf, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
  free(w->out);
  free(w->err);
  w->out = w->err = NULL;
  FILE *out = open_memstream(&w->out, &w->nout), *err = open_memstream(&w->err, &w->nerr);
  rt_env env = {out, err, file_io_system(), &stop_flag};
  int code = rt_run(&w->img, argc, argv, &env);
  fclose(out);
  fclose(err);
  return code;
}

static inline void expect(world *w, int code, const char *line) {
  int got = run(w, line);
  if (got != code) fail_msg("`%s` gave %d, expected %d\n%s%s", line, got, code, w->out, w->err);
}

// The losses of a log, as text.
static inline char *losses(const char *file) {
  char *text = read_file(file), *to = text;
  for (char *p = text; (p = strstr(p, "\"loss\": "));) {
    p += 8;
    while (*p != ',') *to++ = *p++;
    *to++ = ' ';
  }
  *to = 0;
  return text;
}

#endif
