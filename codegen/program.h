// From SCHEDULE to the program and the executable file. The only writer of runtime/program.h.
//
//   cg_context *cg = cg_context_new(a, m);
//   o.stage = IR_SCHEDULE, o.select = cg_select, o.select_ctx = cg;
//   const char *why = pass_run(m, &o);               // passes/pass.h
//   cg_compile(...)                                  // codegen/emit.h: the code image
//   program_bytes b = program_write(cg, m->schedule, image, &info);
//   why = exe_write(a, "gpt2", runtime, nruntime, &image_at, &bytes_at, 1);
#ifndef DSM_CODEGEN_PROGRAM_H
#define DSM_CODEGEN_PROGRAM_H

#include "codegen/build.h"
#include "codegen/emit.h"
#include "ir/schedule.h"

// Builds the launches of every instruction; fills instr->launches (cg_launches *) and scratch
// sizes. `cg` is the cg_context, which keeps `skip`: it is pass_options.select.
const char *cg_select(void *cg, sched *s, skip_set skip);

typedef struct program_setting {
  const char *name, *value;
} program_setting;

typedef struct program_info {
  const char *compiler, *model, *cpu, *plan;
  uint64_t source_digest;
  int64_t parameters;  // of the whole model
  const program_setting *settings;
  int nsettings;
  // Values of the argument block's scalars by name, as the job sets them; 0 for others.
  const program_setting *args;
  int nargs;
} program_info;

typedef struct program_bytes {
  unsigned char *at;
  size_t n;
} program_bytes;

program_bytes program_write(cg_context *cg, const sched *s, const cg_image *image,
                            const program_info *info);

// Writes the executable to a temporary name beside `path`, then renames it. NULL or why not. It
// holds `n` programs with their code: one, or one for each stage of a pipeline, in their order.
const char *exe_write(arena *a, const char *path, const unsigned char *runtime, size_t nruntime,
                      const cg_image *const *image, const program_bytes *const *program, int n);

#endif
