// The hand-made program of tests/unit/toy_program.h as something to run:
//
//   toy_exe write RUNTIME OUT     an executable for a GPU: the runtime's bytes, modules, program
//   toy_exe run ARGUMENTS...      the same program for the host, with the command line of
//   executables
#include <stdio.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/drivers/driver.h"
#include "tests/unit/toy_program.h"

static void put(FILE *f, const void *at, size_t n) {
  if (n && fwrite(at, 1, n, f) != n) exit(1);
}

static void pad(FILE *f) {
  while (ftell(f) % 4096) fputc(0, f);
}

static int write_exe(const char *runtime, const char *out) {
  toy *t = toy_build("next_token", TOY_DEVICE);
  FILE *from = fopen(runtime, "rb"), *f = fopen(out, "wb");
  if (!from || !f) return 1;
  char block[4096];
  for (size_t n; (n = fread(block, 1, sizeof block, from)) > 0;) put(f, block, n);
  fclose(from);
  pad(f);
  prog_trailer tr = {.first = {.code_offset = (uint64_t)ftell(f),
                               .code_bytes = t->code_bytes,
                               .code_checksum = XXH3_64bits(t->code, t->code_bytes),
                               .program_bytes = t->n}};
  memcpy(tr.magic, PROG_TRAILER_MAGIC, sizeof tr.magic);
  put(f, t->code, t->code_bytes);
  pad(f);
  tr.first.program_offset = (uint64_t)ftell(f);
  put(f, t->blob, t->n);
  put(f, &tr, sizeof tr);
  toy_free(t);
  return fclose(f) ? 1 : 0;
}

static int run(int argc, char **argv) {
  static const volatile sig_atomic_t stop;
  toy *t = toy_build("next_token", TOY_PLAIN);
  image img;
  status *s = toy_image(t, &img);
  if (s) return rt_report(s, stderr);
  rt_env env = {stdout, stderr, file_io_system(), &stop};
  int code = rt_run(&img, argc, argv, &env);
  toy_free(t);
  return code;
}

int main(int argc, char **argv) {
  if (argc == 4 && strcmp(argv[1], "write") == 0) return write_exe(argv[2], argv[3]);
  if (argc >= 2 && strcmp(argv[1], "run") == 0) return run(argc - 1, argv + 1);
  fprintf(stderr, "usage: toy_exe write RUNTIME OUT | run ARGUMENTS...\n");
  return 2;
}
