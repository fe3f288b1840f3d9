// dsmc doctor: what this machine has, what is missing, and what each missing thing costs.
//
// Nothing here is needed to compile: libraries are looked for in the same way as an executable
// looks for them when it runs, with dlopen, and the names and folders tried are printed.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codegen/nvrtc.h"
#include "frontend/cli.h"
#include "frontend/clusters.h"
#include "runtime/base/dynlib.h"
#include "runtime/base/str.h"

// One line of the answer.
typedef struct finding {
  const char *what;
  bool found;
  const char *detail;  // version or place
  const char *cost;    // of its absence
  const char *tried;
} finding;

typedef VEC(finding) finding_list;

// A library: the names it goes by, and a function that says its version.
typedef struct probe {
  const char *what, *variable;  // the environment variable that names its file, or NULL
  const char *names[5];         // ends with NULL
  const char *version_symbol;
  enum { NO_VERSION, INT_OUT, SIZE_RETURNED, TEXT_OUT, TEXT_RETURNED } version_kind;
  const char *cost;
} probe;

static const probe probes[] = {
    {"MPI",
     NULL,
     {"libmpi.so.40", "libmpi.so.12", "libmpi.so"},
     "MPI_Get_library_version",
     TEXT_OUT,
     "plans with several ranks can be made and built, but not run here"},
    {"CUDA driver",
     "DSM_CUDA_DRIVER",
     {"libcuda.so.1"},
     "cuDriverGetVersion",
     INT_OUT,
     "executables for GPUs can be built, but not run here"},
    {"cuBLASLt",
     NULL,
     {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"},
     "cublasLtGetVersion",
     SIZE_RETURNED,
     "matrix products on GPUs use dsmc's own kernels"},
    {"NCCL",
     NULL,
     {"libnccl.so.2", "libnccl.so"},
     "ncclGetVersion",
     INT_OUT,
     "plans over several GPUs cannot run here"},
    {"OpenBLAS",
     "DSM_OPENBLAS",
     {"libopenblas.so.0"},
     "openblas_get_config",
     TEXT_RETURNED,
     "nothing needs it but programs built with --pin matmul=openblas"},
};

static const char *version_of(arena *a, const dynlib *l, const probe *p) {
  int (*one)(int *);
  size_t (*returned)(void);
  int (*text)(char *, int *);
  char *(*words)(void);
  int x = 0;
  char buf[8192] = "";
  switch (p->version_kind) {
    case INT_OUT:
      if (dynlib_symbol(l, p->version_symbol, &one) && one(&x) == 0) {
        if (strcmp(p->what, "NCCL") == 0)
          return arena_printf(a, "%d.%d.%d", x / 10000, x / 100 % 100, x % 100);
        return arena_printf(a, "%d.%d", x / 1000, x / 10 % 100);
      }
      break;
    case SIZE_RETURNED:
      if (dynlib_symbol(l, p->version_symbol, &returned)) {
        size_t v = returned();
        return arena_printf(a, "%zu.%zu", v / 10000, v / 100 % 100);
      }
      break;
    case TEXT_OUT:
      if (dynlib_symbol(l, p->version_symbol, &text) && text(buf, &x) == 0) {
        buf[strcspn(buf, ",\n")] = 0;
        return arena_strdup(a, buf);
      }
      break;
    case TEXT_RETURNED:
      if (dynlib_symbol(l, p->version_symbol, &words)) return arena_strdup(a, words());
      break;
    case NO_VERSION: break;
  }
  return "of unknown version";
}

static finding look_for(arena *a, const probe *p) {
  dynlib l;
  if (!dynlib_find(a, p->variable, p->names, &l))
    return (finding){p->what, false, "", p->cost, l.tried};
  const char *version = version_of(a, &l, p);
  return (finding){p->what, true, arena_printf(a, "%s (%s)", version, l.path), p->cost, ""};
}

// As `dsmc build` looks for it.
static finding look_for_nvrtc(arena *a) {
  nvrtc n;
  const char *why = nvrtc_open(a, &n);
  if (!why)
    return (finding){"NVRTC", true, arena_printf(a, "%s (%s)", n.version, n.library.path), "", ""};
  return (finding){"NVRTC", false, "", why, n.library.tried ? n.library.tried : n.library.path};
}

static const char *in_path(arena *a, const char *program) {
  const char *path = getenv("PATH");
  while (path && *path) {
    size_t n = strcspn(path, ":");
    const char *full = arena_printf(a, "%.*s/%s", (int)n, path, program);
    if (access(full, X_OK) == 0) return full;
    path += n + (path[n] == ':');
  }
  return NULL;
}

static const char *cpu_features(arena *a) {
  sb s = {.arena = a};
#if defined(__x86_64__)
  __builtin_cpu_init();
#define FEATURE(NAME) \
  sb_printf(&s, "%s%s %s", s.n ? ", " : "", NAME, __builtin_cpu_supports(NAME) ? "yes" : "no")
  FEATURE("avx2");
  FEATURE("fma");
  FEATURE("avx512f");
  FEATURE("avx512bf16");
#undef FEATURE
#else
  sb_puts(&s, "not an x86-64 CPU: code is generated for it, but its features are not listed");
#endif
  return arena_strdup(a, sb_str(&s));
}

static finding_list look(arena *a) {
  finding_list all = {0};
  double page = (double)sysconf(_SC_PAGESIZE), gib = 1024.0 * 1024 * 1024;
  double memory = (double)host_memory() / gib;
  double available = (double)sysconf(_SC_AVPHYS_PAGES) * page / gib;
  vec_push(a, &all, (finding){"cores", true, arena_printf(a, "%d", host_cores()), "", ""});
  vec_push(
      a, &all,
      (finding){"memory", true, arena_printf(a, "%.1f GiB, %.1f free", memory, available), "", ""});
  vec_push(a, &all, (finding){"CPU", true, cpu_features(a), "", ""});

  // libLLVM is linked, so its symbols are in the program; asking by name spares its headers here.
  const dynlib program = {.handle = RTLD_DEFAULT};
  void (*llvm)(unsigned *, unsigned *, unsigned *);
  unsigned major = 0, minor = 0, patch = 0;
  bool has_llvm = dynlib_symbol(&program, "LLVMGetVersion", &llvm);
  if (has_llvm) llvm(&major, &minor, &patch);
  vec_push(a, &all,
           (finding){"LLVM", has_llvm, arena_printf(a, "%u.%u.%u, linked", major, minor, patch),
                     "no code can be generated for CPUs", "the program itself"});
  vec_push(a, &all, (finding){"C compiler", true, "not needed", "", ""});

  const char *mpirun = in_path(a, "mpirun");
  vec_push(a, &all,
           (finding){"mpirun", mpirun != NULL, mpirun ? mpirun : "",
                     "`dsmc run` cannot start several ranks", "PATH"});
  vec_push(a, &all, look_for_nvrtc(a));
  for (size_t i = 0; i < sizeof probes / sizeof *probes; i++)
    vec_push(a, &all, look_for(a, &probes[i]));
  return all;
}

static void print_json(arena *a, const finding_list *all) {
  sb s = {.arena = a};
  sb_printf(&s, "{\"dsmc\":\"%s\",\"findings\":[", DSMC_VERSION);
  for (int i = 0; i < all->n; i++) {
    const finding *f = &all->at[i];
    sb_puts(&s, i ? ",{\"what\":" : "{\"what\":");
    diag_json_string(&s, f->what);
    sb_printf(&s, ",\"found\":%s,\"detail\":", f->found ? "true" : "false");
    diag_json_string(&s, f->detail);
    sb_puts(&s, ",\"cost\":");
    diag_json_string(&s, f->found ? "" : f->cost);
    sb_puts(&s, "}");
  }
  sb_puts(&s, "]}");
  puts(sb_str(&s));
}

int verb_doctor(cli *c) {
  finding_list all = look(c->arena);
  if (cli_has(c, OPT_JSON)) {
    print_json(c->arena, &all);
    return EXIT_GOOD;
  }
  printf("dsmc %s\n", DSMC_VERSION);
  int missing = 0;
  for (int i = 0; i < all.n; i++) {
    const finding *f = &all.at[i];
    if (f->found) {
      printf("  %-12s %s\n", f->what, f->detail);
      continue;
    }
    missing++;
    printf("  %-12s missing: %s\n", f->what, f->cost);
    if (!cli_has(c, OPT_VERBOSE)) continue;
    printf("  %-12s tried", "");
    int column = 20;
    for (const char *p = f->tried; *p;) {
      int n = (int)strcspn(p, " ");
      if (column + 1 + n > 100) column = printf("\n%19s", "");
      column += printf(" %.*s", n, p);
      p += n + (p[n] == ' ');
    }
    printf("\n");
  }
  if (missing && !cli_has(c, OPT_VERBOSE)) printf("`dsmc doctor -v` lists the places tried.\n");
  return EXIT_GOOD;
}
