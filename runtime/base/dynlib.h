// Libraries that are never linked: looked for when something needs them, with dlopen.
//
//   static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", NULL};
//   dynlib l;
//   if (!dynlib_find(a, "DSM_NVRTC", names, &l)) say("no NVRTC; tried %s", l.tried);
//   int (*version)(int *, int *);
//   if (!dynlib_symbol(&l, "nvrtcVersion", &version)) say("%s has no nvrtcVersion", l.path);
//
// When the environment variable is set it names the file, and nothing else is tried. Otherwise the
// loader is asked for each name, then each name is tried in the folders where CUDA's libraries lie
// without being on the loader's path, $XDG_DATA_HOME/dsmc/lib (~/.local/share/dsmc/lib) first:
// scripts/nvrtc.sh puts what it fetches there.
#ifndef DSM_BASE_DYNLIB_H
#define DSM_BASE_DYNLIB_H

#include <stdbool.h>

#include "runtime/base/arena.h"

typedef struct dynlib {
  void *handle;       // of dlopen; stays open: some libraries do not survive being closed
  const char *path;   // as it was opened: a name when the loader found it
  const char *tried;  // when nothing was found: names and paths, by spaces
  const char *why;    // and what the loader said of the last of them that exists, or of the first
} dynlib;

// `variable` (or NULL) is the environment variable, `names` ends with NULL.
bool dynlib_find(arena *a, const char *variable, const char *const *names, dynlib *out);
// Sets the function pointer at `function`; false when the library has no such symbol.
bool dynlib_symbol(const dynlib *l, const char *name, void *function);

#endif
