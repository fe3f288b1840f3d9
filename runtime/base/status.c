#include "runtime/base/status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Handed out when there is no memory for a real one; status_free knows it.
static status no_memory = {1, "out of memory"};

static char *vformat(const char *fmt, va_list ap) {
  va_list again;
  va_copy(again, ap);
  int n = vsnprintf(NULL, 0, fmt, again);
  va_end(again);
  char *p = n < 0 ? NULL : malloc((size_t)n + 1);
  if (p) vsnprintf(p, (size_t)n + 1, fmt, ap);
  return p;
}

static status *make(int exit_code, char *message) {
  status *s = message ? malloc(sizeof *s) : NULL;
  if (!s) {
    free(message);
    return &no_memory;
  }
  s->exit_code = exit_code;
  s->message = message;
  return s;
}

static char *join3(const char *a, const char *b, const char *c) {
  size_t n = strlen(a) + strlen(b) + strlen(c) + 1;
  char *p = malloc(n);
  if (p) snprintf(p, n, "%s%s%s", a, b, c);
  return p;
}

status *status_error(const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  char *m = vformat(fmt, ap);
  va_end(ap);
  return make(1, m);
}

status *status_exit(int exit_code, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  char *m = vformat(fmt, ap);
  va_end(ap);
  return make(exit_code, m);
}

status *status_errno(const char *fmt, ...) {
  int saved = errno;
  va_list ap;
  va_start(ap, fmt);
  char *m = vformat(fmt, ap);
  va_end(ap);
  if (!m) return &no_memory;
  char *full = join3(m, ": ", strerror(saved));
  free(m);
  return make(1, full);
}

status *status_context(status *s, const char *fmt, ...) {
  if (!s || s == &no_memory) return s;
  va_list ap;
  va_start(ap, fmt);
  char *m = vformat(fmt, ap);
  va_end(ap);
  char *full = m ? join3(m, ": ", s->message) : NULL;
  free(m);
  if (full) {
    free(s->message);
    s->message = full;
  }
  return s;
}

status *status_join(status *first, status *second) {
  if (!first) return second;
  if (!second) return first;
  char *full = join3(first->message, "; then ", second->message);
  if (full && first != &no_memory) {
    free(first->message);
    first->message = full;
  } else {
    free(full);
  }
  status_free(second);
  return first;
}

void status_free(status *s) {
  if (!s || s == &no_memory) return;
  free(s->message);
  free(s);
}
