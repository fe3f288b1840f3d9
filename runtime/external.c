#include "runtime/external.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The functions we use, as <cblas.h> declares them: SYMBOL(name, result, parameters). Debian's and
// most other builds count in int; those with 64-bit numbers (libopenblas64) are another library.
#define SYMBOLS                                                                                \
  SYMBOL(cblas_sgemm, void,                                                                    \
         (int order, int turn_a, int turn_b, int m, int n, int k, float alpha, const float *a, \
          int lda, const float *b, int ldb, float beta, float *c, int ldc))                    \
  SYMBOL(openblas_set_num_threads, void, (int threads))

enum { ROW_MAJOR = 101, AS_STORED = 111, TURNED = 112 };  // of <cblas.h>

struct external {
#define SYMBOL(name, result, parameters) result(*name) parameters;
  SYMBOLS
#undef SYMBOL
};

// What the library reads when it is loaded. Without these its threads would spin behind each
// product while the kernels that follow want their cores: those of the pthread build for 2^26
// cycles, those of the OpenMP build (libgomp) for 300,000 rounds. What the user has set stays.
static void prepare(int threads) {
  char n[16];
  snprintf(n, sizeof n, "%d", threads);
  setenv("OPENBLAS_NUM_THREADS", n, 0);        // no more are made than will be used
  setenv("OPENBLAS_THREAD_TIMEOUT", "14", 0);  // 2^14 cycles, about 5 us
  setenv("OMP_WAIT_POLICY", "passive", 0);
}

static bool needed(const prog *p) {
  for (uint32_t i = 0; i < p->ninstrs; i++)
    if (p->instrs[i].op == RTOP_gemm) return true;
  return false;
}

status *external_open(const prog *p, int threads, external **out) {
  *out = NULL;
  if (!needed(p)) return NULL;
  prepare(threads);
  const char *file = getenv("DSM_OPENBLAS");
  if (!file || !*file) file = "libopenblas.so.0";
  void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (!library)
    return status_error(
        "this program multiplies matrices with OpenBLAS (matmul=openblas), which is not here: %s; "
        "install it (Debian: apt install libopenblas0-pthread), name its file in DSM_OPENBLAS, or "
        "build again with `--pin matmul=builtin`",
        dlerror());
  external *x = calloc(1, sizeof *x);
  if (!x) return status_error("out of memory");
  const char *missing = NULL;
  // Function pointers come out of dlsym as object pointers; POSIX makes this copy well defined.
#define SYMBOL(name, result, parameters)  \
  {                                       \
    void *at = dlsym(library, #name);     \
    memcpy(&x->name, &at, sizeof at);     \
    if (!at && !missing) missing = #name; \
  }
  SYMBOLS
#undef SYMBOL
  if (missing) {
    free(x);
    return status_error("%s has no function %s: it is no OpenBLAS with CBLAS", file, missing);
  }
  x->openblas_set_num_threads(threads);
  *out = x;
  return NULL;
}

void external_close(external *x) { free(x); }

void external_gemm(const external *x, const prog_gemm *g, unsigned char *const *buf, bool set) {
  int64_t at[PROG_GEMM_AXES] = {0};
  const int turn[] = {g->turned & 1 ? TURNED : AS_STORED, g->turned & 2 ? TURNED : AS_STORED};
  for (;;) {
    float *t[3];
    for (int i = 0; i < 3; i++) {
      int64_t from = g->offset[i];
      for (uint32_t a = 0; a < g->axes; a++) from += at[a] * g->stride[i][a];
      t[i] = (float *)(void *)buf[i] + from;
    }
    x->cblas_sgemm(ROW_MAJOR, turn[0], turn[1], (int)g->m, (int)g->n, (int)g->k, 1, t[0],
                   (int)g->ld[0], t[1], (int)g->ld[1], set ? 0 : 1, t[2], (int)g->ld[2]);
    uint32_t a = g->axes;
    while (a > 0 && ++at[a - 1] == g->size[a - 1]) at[--a] = 0;
    if (a == 0) return;
  }
}
