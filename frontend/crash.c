// Inside a handler nearly nothing may be called, and the heap may be broken: everything here is
// system calls on buffers of the alternate stack. The command line is read back from the kernel, so
// that the handler needs no state at all.
#include "frontend/crash.h"

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, ARGUMENT_BYTES = 65536, STACK_BYTES = 256 * 1024 };

static void put(int fd, const char *text) {
  size_t n = strlen(text);
  while (n > 0) {
    ssize_t k = write(fd, text, n);
    if (k <= 0) return;
    text += k;
    n -= (size_t)k;
  }
}

// Appends to a path; a path that does not fit is cut, and opening it then fails.
static void append(char *path, const char *text) {
  size_t n = strlen(path), m = strlen(text);
  if (m > PATH_BYTES - 1 - n) m = PATH_BYTES - 1 - n;
  memcpy(path + n, text, m);
  path[n + m] = 0;
}

static void append_number(char *path, long v) {
  char digits[24];
  int i = sizeof digits - 1;
  digits[i] = 0;
  do digits[--i] = (char)('0' + v % 10);
  while ((v /= 10) > 0);
  append(path, digits + i);
}

static bool copy(const char *from, const char *folder) {
  struct stat st;
  int in = open(from, O_RDONLY);
  if (in < 0) return false;
  if (fstat(in, &st) != 0 || !S_ISREG(st.st_mode)) {
    close(in);
    return true;
  }
  char to[PATH_BYTES] = "", buffer[4096];
  const char *base = strrchr(from, '/');
  append(to, folder);
  append(to, "/");
  append(to, base ? base + 1 : from);
  int out = open(to, O_WRONLY | O_CREAT | O_EXCL, 0644);
  ssize_t k;
  while (out >= 0 && (k = read(in, buffer, sizeof buffer)) > 0)
    if (write(out, buffer, (size_t)k) != k) break;
  if (out >= 0) close(out);
  close(in);
  return true;
}

static void crashed(int signal_number) {
  char folder[PATH_BYTES] = "dsmc-crash-", file[PATH_BYTES] = "", number[24] = "";
  char arguments[ARGUMENT_BYTES];
  append_number(folder, getpid());
  append_number(number, signal_number);
  bool made = mkdir(folder, 0755) == 0;
  int kernel = open("/proc/self/cmdline", O_RDONLY);
  ssize_t n = kernel >= 0 ? read(kernel, arguments, sizeof arguments - 1) : 0;
  if (n < 0) n = 0;
  arguments[n] = 0;
  append(file, folder);
  append(file, "/cmd");
  int cmd = made ? open(file, O_WRONLY | O_CREAT | O_EXCL, 0644) : -1;
  for (ssize_t i = 0; i < n; i += (ssize_t)strlen(arguments + i) + 1) {
    char *argument = arguments + i;
    if (cmd >= 0) {
      put(cmd, i ? " '" : "'");
      put(cmd, argument);
      put(cmd, "'");
    }
    if (!made || i == 0 || copy(argument, folder)) continue;
    char *colon = strrchr(argument, ':');  // FILE:NAME
    if (colon) {
      *colon = 0;
      copy(argument, folder);
      *colon = ':';
    }
  }
  if (cmd >= 0) {
    put(cmd, "\n");
    close(cmd);
  }
  put(2, "dsmc: internal error (signal ");
  put(2, number);
  if (made) {
    put(2, "); please report the folder ");
    put(2, folder);
    put(2, "\n");
  } else {
    put(2, "); no folder for a report could be made here\n");
  }
  _exit(4);
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#endif

void crash_install(void) {
#if !defined(SANITIZED)
  // Deep recursion ends in SIGSEGV with no stack left: the handler runs on its own.
  stack_t stack = {.ss_sp = malloc(STACK_BYTES), .ss_size = STACK_BYTES};
  if (!stack.ss_sp || sigaltstack(&stack, NULL) != 0) return;
  struct sigaction action = {.sa_handler = crashed, .sa_flags = SA_ONSTACK};
  const int signals[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL};
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
    sigaction(signals[i], &action, NULL);
#else
  (void)crashed;
#endif
}
