// From texts of CUDA kernels to something that runs here (emu_api.h).
//
//   if (emu_missing()) return puts(emu_missing()), 77;  // the test is skipped
//   sb text = {.arena = a};
//   sb_printf(&text, "#line %d\n%s", EMU_PRELUDE + 1, cuda_prelude());
//   sb_printf(&text, "#line 1 \"%s\"\n%s", c.symbol, c.source);
//   const char *one = sb_str(&text);
//   emu_code code;
//   const char *why = emu_compile(a, dir, &one, 1, "dir/kernels.so");
//   if (!why) why = emu_open(a, "dir/kernels.so", &code);
//   emu_launch_info l = {.kernel = emu_find(&code, c.symbol), ...};
//   char error[EMU_ERROR];
//   if (code.launch(&l, error, sizeof error)) puts(error);
//
// The object has ASan and UBSan inside when this program has them.
#ifndef DSM_TESTS_CUDA_EMU_EMULATE_H
#define DSM_TESTS_CUDA_EMU_EMULATE_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/arena.h"
#include "tests/cuda_emu/emu_api.h"

enum { EMU_ERROR = 512 };  // room for an error

typedef struct emu_code {
  void *so;
  int (*launch)(const emu_launch_info *l, char *error, size_t n);
} emu_code;

// NULL, or a line that says why kernels cannot be compiled here.
const char *emu_missing(void);

// Compiles each text, all that the compiler shall see, by itself (two at a time) and links them
// into the shared object `so`. Symbols must differ. Files in between are made in `dir`, which must
// exist. NULL or what the compiler said.
const char *emu_compile(arena *a, const char *dir, const char *const *text, int n, const char *so);

// NULL or what is wrong. `out` is closed by emu_close.
const char *emu_open(arena *a, const char *so, emu_code *out);
void emu_close(emu_code *c);
// NULL: the object has no such kernel.
const emu_kernel *emu_find(const emu_code *c, const char *symbol);

// Orders that tests run a launch in; what the first gives the others must give.
typedef struct emu_turn {
  const char *name;
  emu_order order;
  uint64_t seed;
} emu_turn;
enum { EMU_TURNS = 5 };
const emu_turn *emu_turn_at(int i);

// A folder of its own below the temporary ones; emu_remove_folder also removes its files.
const char *emu_make_folder(arena *a);
void emu_remove_folder(arena *a, const char *dir);

#endif
