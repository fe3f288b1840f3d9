// Opening an executable: code image and program behind the runtime's own bytes.
//
//   image img;
//   STATUS_DO(image_open("/proc/self/exe", argv[0], rank, &img));
//   use(&img.prog, img.code);
//   image_close(&img);
#ifndef DSM_LOAD_H
#define DSM_LOAD_H

#include "runtime/base/status.h"
#include "runtime/prog.h"

typedef struct image {
  prog prog;
  const unsigned char *code;  // mapped read + execute; kernel k is at code + code_offset
  uint64_t code_bytes;
  void *code_map, *prog_map;  // what image_close unmaps; NULL for images made by tests
  size_t code_map_bytes, prog_map_bytes;
} image;

// Maps and checks everything: trailer, checksums, program, CPU features. Messages call the file
// `name`. Of an executable with a program for each stage of a pipeline it is the one of `rank`.
status *image_open(const char *path, const char *name, int rank, image *out) STATUS_MUST_USE;
void image_close(image *img);

// Checks a list of CPU features ("x86-64 avx2 fma avx512f") against `have`, the words of a
// /proc/cpuinfo flags line and of an architecture `arch` ("x86-64"). Names are those of LLVM.
status *image_check_cpu(const char *need, const char *arch, const char *have) STATUS_MUST_USE;
// The same for this machine.
status *image_check_this_cpu(const char *need) STATUS_MUST_USE;

#endif
