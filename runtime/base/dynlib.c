#include "runtime/base/dynlib.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/str.h"

// "$NAME/..." is left out when the variable is not set.
static const char *const folders[] = {"",  // where the loader looks
                                      "$XDG_DATA_HOME/dsmc/lib",
                                      "$HOME/.local/share/dsmc/lib",
                                      "$CUDA_HOME/lib64",
                                      "$CUDA_PATH/lib64",
                                      "/usr/local/cuda/lib64",
                                      "/usr/lib/x86_64-linux-gnu",
                                      "/usr/lib/wsl/lib"};

static const char *expand(arena *a, const char *folder) {
  if (*folder != '$') return folder;
  const char *slash = strchr(folder, '/');
  const char *value = getenv(arena_strndup(a, folder + 1, (size_t)(slash - folder - 1)));
  return value && *value ? arena_printf(a, "%s%s", value, slash) : NULL;
}

static bool try_one(arena *a, const char *path, sb *tried, dynlib *out) {
  sb_printf(tried, "%s%s", tried->n ? " " : "", path);
  out->handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
  if (out->handle) {
    out->path = arena_strdup(a, path);
    return true;
  }
  // Of a file that is there the reason is worth knowing; of the others one is enough.
  const char *why = dlerror();
  if (why && (!out->why || (strchr(path, '/') && access(path, F_OK) == 0)))
    out->why = arena_strdup(a, why);
  return false;
}

bool dynlib_find(arena *a, const char *variable, const char *const *names, dynlib *out) {
  *out = (dynlib){0};
  sb tried = {.arena = a};
  const char *file = variable ? getenv(variable) : NULL;
  if (file && *file) {
    if (try_one(a, file, &tried, out)) return true;
  } else {
    for (size_t d = 0; d < sizeof folders / sizeof *folders; d++) {
      const char *folder = expand(a, folders[d]);
      for (int i = 0; folder && names[i]; i++) {
        const char *path = *folder ? arena_printf(a, "%s/%s", folder, names[i]) : names[i];
        if (try_one(a, path, &tried, out)) return true;
      }
    }
  }
  out->tried = arena_strdup(a, sb_str(&tried));
  return false;
}

bool dynlib_symbol(const dynlib *l, const char *name, void *function) {
  // Function pointers come out of dlsym as object pointers; POSIX makes this copy well defined.
  void *at = dlsym(l->handle, name);
  memcpy(function, &at, sizeof at);
  return at != NULL;
}
