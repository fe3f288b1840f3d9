#include "runtime/comm_mpi.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// In plugin.S, which CMake writes: nothing lies between them where MPI was not found.
extern const unsigned char dsm_mpi_plugin_begin[], dsm_mpi_plugin_end[];

static bool number_of(const char *variable, int *out) {
  const char *text = getenv(variable);
  char *end;
  if (!text || !*text) return false;
  long v = strtol(text, &end, 10);
  if (*end || v < 0 || v > 1 << 24) return false;
  *out = (int)v;
  return true;
}

bool mpi_started(int *rank, int *ranks) {
  return (number_of("OMPI_COMM_WORLD_SIZE", ranks) && number_of("OMPI_COMM_WORLD_RANK", rank)) ||
         (number_of("PMI_SIZE", ranks) && number_of("PMI_RANK", rank));
}

bool mpi_built(void) { return dsm_mpi_plugin_end - dsm_mpi_plugin_begin > 0; }

static status *load(void **handle) {
  size_t n = (size_t)(dsm_mpi_plugin_end - dsm_mpi_plugin_begin);
  int fd = memfd_create("dsm-mpi", MFD_CLOEXEC);
  if (fd < 0) return status_errno("cannot make a file in memory for the MPI plugin");
  for (size_t done = 0; done < n;) {
    ssize_t k = write(fd, dsm_mpi_plugin_begin + done, n - done);
    if (k <= 0) {
      status *s = status_errno("cannot write the MPI plugin");
      close(fd);
      return s;
    }
    done += (size_t)k;
  }
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  // Open MPI opens parts of its own that look for its symbols among the global ones.
  *handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  close(fd);
  if (*handle) return NULL;
  const char *why = dlerror();
  return status_error(
      "this executable runs on several ranks and needs Open MPI, which cannot be opened: %s\n"
      "  install it (Debian and Ubuntu: apt install openmpi-bin), on every machine of the run",
      why ? why : "no reason is given");
}

status *mpi_open(int lanes, comm_engine *out) {
  if (!mpi_built())
    return status_error(
        "this executable runs on several ranks, and the dsmc that made it was built without MPI: "
        "install libopenmpi-dev, build dsmc again, and the executable");
  void *handle;
  STATUS_DO(load(&handle));
  comm_plugin *plugin;
  void *at = dlsym(handle, "dsm_comm_plugin");
  if (!at) return status_error("the MPI plugin is damaged");
  memcpy(&plugin, &at, sizeof plugin);
  const char *what = plugin(COMM_ENGINE_VERSION, lanes, out);
  return what ? status_error("MPI: %s", what) : NULL;
}
