#include "tests/cuda_emu/emulate.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/str.h"

// CMakeLists.txt: the compiler, this folder and the runner's objects, separated by ':'.
#ifndef EMU_COMPILER
#define EMU_COMPILER ""
#endif
#ifndef EMU_FOLDER
#define EMU_FOLDER "tests/cuda_emu"
#endif
#ifndef EMU_OBJECTS
#define EMU_OBJECTS ""
#endif

// gcc's runtime would not be the one that clang's code calls.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_SANITIZERS 1
#endif
#endif

static const char *const flags[] = {
    EMU_COMPILER,
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-Wno-everything",
    "-DDSM_EMULATED",
#ifdef WITH_SANITIZERS
    "-gline-tables-only",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-sanitize=vptr,function",
    // Fibers would each have a second stack.
    "-fsanitize-address-use-after-return=never",
#endif
    "-include",
    EMU_FOLDER "/emu.h",
};
enum { FLAGS = sizeof flags / sizeof *flags, MAX_ARGS = 4096 };

const char *emu_missing(void) {
  if (!*EMU_COMPILER) return "skipped: no clang++-19, which compiles kernels for the emulation";
  return NULL;
}

typedef struct command {
  const char *arg[MAX_ARGS];
  int n;
} command;

static void add(command *c, const char *arg) {
  if (c->n + 1 < MAX_ARGS) c->arg[c->n++] = arg;
}

static pid_t start(const command *c, const char *log) {
  pid_t pid = fork();
  if (pid) return pid;
  int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd >= 0) dup2(fd, 1), dup2(fd, 2);
  execv(c->arg[0], (char *const *)(const void *)c->arg);
  dprintf(2, "%s: %s\n", c->arg[0], strerror(errno));
  _exit(127);
}

static const char *log_of(arena *a, const char *dir, int i) {
  return arena_printf(a, "%s/%d.log", dir, i);
}

// NULL when it ended well, else the beginning of what it said.
static const char *finish(arena *a, pid_t pid, const char *log) {
  int code = 0;
  if (pid < 0 || waitpid(pid, &code, 0) < 0) return "the compiler did not start";
  if (WIFEXITED(code) && WEXITSTATUS(code) == 0) return NULL;
  char said[2048] = "";
  FILE *f = fopen(log, "r");
  size_t n = f ? fread(said, 1, sizeof said - 1, f) : 0;
  if (f) fclose(f);
  said[n] = 0;
  return arena_printf(a, "the compiler failed:\n%s", said);
}

static bool put_text(const char *path, const char *text) {
  FILE *f = fopen(path, "w");
  if (!f) return false;
  bool ok = fputs(text, f) >= 0;
  return fclose(f) == 0 && ok;
}

static pid_t compile_one(arena *a, const char *dir, int i, const char *text) {
  const char *source = arena_printf(a, "%s/%d.cc", dir, i);
  if (!put_text(source, text)) return -1;
  command *c = arena_new(a, command, 1);
  for (int k = 0; k < FLAGS; k++) add(c, flags[k]);
  add(c, "-c");
  add(c, source);
  add(c, "-o");
  add(c, arena_printf(a, "%s/%d.o", dir, i));
  return start(c, log_of(a, dir, i));
}

static const char *link_all(arena *a, const char *dir, int n, const char *so) {
  command *c = arena_new(a, command, 1);
  add(c, EMU_COMPILER);
  add(c, "-shared");
  add(c, "-nostdlib++");
#ifdef WITH_SANITIZERS
  add(c, "-fsanitize=address,undefined");
#endif
  for (int i = 0; i < n; i++) add(c, arena_printf(a, "%s/%d.o", dir, i));
  char *objects = arena_strdup(a, EMU_OBJECTS);
  for (char *rest = NULL, *o = strtok_r(objects, ":", &rest); o; o = strtok_r(NULL, ":", &rest))
    add(c, o);
  add(c, "-lm");
  add(c, "-o");
  add(c, so);
  return finish(a, start(c, log_of(a, dir, n)), log_of(a, dir, n));
}

const char *emu_compile(arena *a, const char *dir, const char *const *text, int n, const char *so) {
  enum { AT_ONCE = 2 };
  if (n > MAX_ARGS / 2) return "too many texts";
  const char *why = NULL;
  pid_t pid[AT_ONCE];
  for (int i = 0; i < n + AT_ONCE; i++) {
    int done = i - AT_ONCE;
    const char *failed =
        done >= 0 && done < n ? finish(a, pid[done % AT_ONCE], log_of(a, dir, done)) : NULL;
    if (!why) why = failed;
    if (i < n) pid[i % AT_ONCE] = compile_one(a, dir, i, text[i]);
  }
  return why ? why : link_all(a, dir, n, so);
}

const char *emu_open(arena *a, const char *so, emu_code *out) {
  *out = (emu_code){.so = dlopen(so, RTLD_NOW | RTLD_LOCAL)};
  if (!out->so) return arena_printf(a, "%s", dlerror());
  void *launch = dlsym(out->so, "emu_launch");
  memcpy(&out->launch, &launch, sizeof launch);
  return launch ? NULL : "the object has no runner";
}

void emu_close(emu_code *c) {
  if (c->so) dlclose(c->so);
  *c = (emu_code){0};
}

const emu_kernel *emu_find(const emu_code *c, const char *symbol) { return dlsym(c->so, symbol); }

const emu_turn *emu_turn_at(int i) {
  static const emu_turn turns[EMU_TURNS] = {{"forward", EMU_FORWARD, 0},
                                            {"reverse", EMU_REVERSE, 0},
                                            {"seed 1", EMU_SEEDED, 1},
                                            {"seed 2", EMU_SEEDED, 2},
                                            {"seed 3", EMU_SEEDED, 3}};
  return &turns[i];
}

const char *emu_make_folder(arena *a) {
  const char *tmp = getenv("TMPDIR");
  char *dir = arena_printf(a, "%s/dsm_emu.XXXXXX", tmp && *tmp ? tmp : "/tmp");
  return mkdtemp(dir);
}

void emu_remove_folder(arena *a, const char *dir) {
  DIR *d = opendir(dir);
  if (!d) return;
  for (struct dirent *e; (e = readdir(d));)
    if (e->d_name[0] != '.') unlink(arena_printf(a, "%s/%s", dir, e->d_name));
  closedir(d);
  rmdir(dir);
}
