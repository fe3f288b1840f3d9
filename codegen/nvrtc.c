#include "codegen/nvrtc.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"

enum { SUCCESS = 0, ERROR_COMPILATION = 6 };  // nvrtcResult of <nvrtc.h>

// Nothing is contracted: `fma` is explicit in kernel IR. ptxas reports what it used. The last two,
// and `fast` below, are left out before 12.9: without NVRTC's own cache, where the driver is
// installed, there is always a report; and without texture types a program takes 0.04 in place of
// 0.05 s.
static const char *const options[] = {"--fmad=false", "--std=c++17", "--ptxas-options=-v",
                                      "--no-cache", "--minimal"};
enum { OPTIONS = sizeof options / sizeof *options, OLD_OPTIONS = OPTIONS - 2 };

// What is tried, in this order, until ptxas keeps nothing in local memory. By itself it holds
// registers back to have two blocks on a multiprocessor, and then spills a few; asked for more
// effort it mostly finds them; else the block gets all the registers it can use.
static const char *const tries[] = {NULL, "--ptxas-options=--register-usage-level=10",
                                    "--define-macro=D_ALONE"};
enum { TRIES = sizeof tries / sizeof *tries };

// For PTX, which the driver compiles once more: takes 0.6 of the time, and what ptxas makes of it
// for an sm_86 needs no more registers and is a tenth longer.
static const char fast[] = "--Ofast-compile=min";

const char *nvrtc_options(const nvrtc *n, arena *a) {
  sb s = {.arena = a};
  for (int i = 0; i < n->options; i++) sb_printf(&s, "%s%s", i ? " " : "", options[i]);
  if (n->options == OPTIONS) sb_printf(&s, " | %s", fast);
  for (int i = 1; i < TRIES; i++) sb_printf(&s, " | %s", tries[i]);
  return sb_str(&s);
}

const char *nvrtc_open(arena *a, nvrtc *out) {
  static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", NULL};
  *out = (nvrtc){0};
  if (!dynlib_find(a, "DSM_NVRTC", names, &out->library)) {
    const char *file = getenv("DSM_NVRTC");
    if (file && *file)
      return arena_printf(a, "NVRTC cannot be opened: %s (DSM_NVRTC)", out->library.why);
    return "NVRTC, which compiles for GPUs, is not here: scripts/nvrtc.sh fetches it (58 MB, no "
           "GPU "
           "or driver needed), or install CUDA's, or name its libnvrtc.so in DSM_NVRTC";
  }
#define NVRTC(name, result, parameters)                 \
  if (!dynlib_symbol(&out->library, #name, &out->name)) \
    return arena_printf(a, "%s has no function %s: it is no NVRTC", out->library.path, #name);
#include "codegen/nvrtc.def"
  int major = 0, minor = 0;
  if (out->nvrtcVersion(&major, &minor) != SUCCESS)
    return arena_printf(a, "%s does not say its version", out->library.path);
  out->version = arena_printf(a, "%d.%d", major, minor);
  out->options = major > 12 || (major == 12 && minor >= 9) ? OPTIONS : OLD_OPTIONS;
  return NULL;
}

// The number in front of `what` in a line of ptxas's report, or 0.
static int number_before(const char *line, const char *end, const char *what) {
  size_t n = strlen(what);
  for (const char *p = line; p + n <= end; p++) {
    if (memcmp(p, what, n) != 0) continue;
    const char *digits = p;
    while (digits > line && digits[-1] >= '0' && digits[-1] <= '9') digits--;
    return digits < p ? atoi(digits) : 0;
  }
  return 0;
}

bool nvrtc_read_usage(const char *log, const char *symbol, nvrtc_usage *out) {
  static const char begin[] = "entry function '";
  bool inside = !symbol;
  *out = (nvrtc_usage){0};
  for (const char *line = log; *line;) {
    const char *end = line + strcspn(line, "\n");
    const char *name = strstr(line, begin);
    if (symbol && name && name < end) {
      name += sizeof begin - 1;
      size_t n = strlen(symbol);
      inside = strncmp(name, symbol, n) == 0 && name[n] == '\'';
    }
    if (!inside) {
      line = *end ? end + 1 : end;
      continue;
    }
    int registers = number_before(line, end, " registers");
    if (registers > out->registers) out->registers = registers;
    out->shared += number_before(line, end, " bytes smem");
    out->stack += number_before(line, end, " bytes stack frame");
    out->spill_stores += number_before(line, end, " bytes spill stores");
    out->spill_loads += number_before(line, end, " bytes spill loads");
    line = *end ? end + 1 : end;
  }
  return out->registers > 0;
}

static const char *log_of(const nvrtc *n, arena *a, void *program) {
  size_t bytes = 0;
  if (n->nvrtcGetProgramLogSize(program, &bytes) != SUCCESS || bytes == 0) return "";
  char *log = arena_alloc(a, bytes + 1);
  return n->nvrtcGetProgramLog(program, log) == SUCCESS ? log : "";
}

static bool take_code(const nvrtc *n, arena *a, void *program, bool ptx, nvrtc_output *out) {
  int rc = ptx ? n->nvrtcGetPTXSize(program, &out->n) : n->nvrtcGetCUBINSize(program, &out->n);
  if (rc != SUCCESS || out->n == 0) return false;
  out->bytes = arena_alloc(a, out->n);
  char *at = (char *)out->bytes;
  return (ptx ? n->nvrtcGetPTX(program, at) : n->nvrtcGetCUBIN(program, at)) == SUCCESS;
}

static void compile_once(const nvrtc *n, arena *a, const char *name, const char *text,
                         const char *architecture, const char *more, nvrtc_output *out) {
  *out = (nvrtc_output){.outcome = NVRTC_UNABLE, .log = ""};
  bool ptx = str_starts(architecture, "compute_");
  const char *option[OPTIONS + 2];
  int options_given = n->options;
  memcpy(option, options, sizeof options);
  option[options_given++] = arena_printf(a, "--gpu-architecture=%s", architecture);
  if (more) option[options_given++] = more;
  void *program = NULL;
  int rc = n->nvrtcCreateProgram(&program, text, name, 0, NULL, NULL);
  if (rc == SUCCESS) {
    rc = n->nvrtcCompileProgram(program, options_given, option);
    out->log = log_of(n, a, program);
  }
  if (rc == SUCCESS && take_code(n, a, program, ptx, out) &&
      (ptx || nvrtc_read_usage(out->log, NULL, &out->usage)))
    out->outcome = NVRTC_DONE;
  else if (rc == ERROR_COMPILATION)
    out->outcome = NVRTC_REJECTED;
  else if (!*out->log)
    out->log = arena_strdup(a, rc == SUCCESS ? "it gave no code" : n->nvrtcGetErrorString(rc));
  if (program) n->nvrtcDestroyProgram(&program);
}

void nvrtc_compile(const nvrtc *n, arena *a, const char *name, const char *text,
                   const char *architecture, nvrtc_output *out) {
  bool ptx = str_starts(architecture, "compute_");
  compile_once(n, a, name, text, architecture, ptx && n->options == OPTIONS ? fast : tries[0], out);
  for (int i = 1; i < TRIES && out->outcome == NVRTC_DONE && out->usage.stack; i++) {
    nvrtc_output other;
    compile_once(n, a, name, text, architecture, tries[i], &other);
    // An option that this NVRTC does not know brings nothing.
    if (other.outcome == NVRTC_DONE && other.usage.stack < out->usage.stack) *out = other;
  }
}
