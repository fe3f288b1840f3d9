#include "runtime/drivers/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/str.h"

// The end of the last line to keep.
static off_t keep_until(const char *path, int64_t from_step) {
  FILE *f = fopen(path, "re");
  if (!f) return 0;
  char *line = NULL;
  size_t cap = 0;
  off_t end = 0;
  ssize_t n;
  while ((n = getline(&line, &cap, f)) > 0) {
    const char *at = strstr(line, "\"step\":");
    if (line[n - 1] != '\n' || !at || strtoll(at + 7, NULL, 10) > from_step) break;
    end += n;
  }
  free(line);
  fclose(f);
  return end;
}

status *log_open(train_log *l, const char *path, int64_t from_step) {
  *l = (train_log){.path = path, .fd = -1};
  if (!path) return NULL;
  off_t end = from_step > 0 ? keep_until(path, from_step) : 0;
  l->fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (l->fd < 0) return status_errno("cannot open the log %s", path);
  // Devices and pipes cannot be cut, and need not be.
  if (ftruncate(l->fd, end) < 0 && errno != EINVAL) {
    status *s = status_errno("cannot cut the log %s", path);
    close(l->fd);
    return s;
  }
  lseek(l->fd, end, SEEK_SET);
  return NULL;
}

static int number(char *buf, int at, int cap, const char *name, double v, bool f32) {
  char text[32];
  if (!isfinite(v))
    snprintf(text, sizeof text, "null");
  else if (f32)
    str_float(text, (float)v);
  else
    str_double(text, v);
  int n = snprintf(buf + at, (size_t)(cap - at), ", \"%s\": %s", name, text);
  return at + n < cap ? at + n : at;
}

void log_step(train_log *l, const log_line *line) {
  if (l->fd < 0 || l->failed) return;
  char buf[4096];
  int cap = (int)sizeof buf - 2;
  int n = snprintf(buf, (size_t)cap, "{\"step\": %" PRId64, line->step);
  n = number(buf, n, cap, "loss", line->loss, true);
  for (int i = 0; i < line->nmore; i++)
    n = number(buf, n, cap, line->more[i].name, line->more[i].value, true);
  n = number(buf, n, cap, "lr", line->lr, false);
  n += snprintf(buf + n, (size_t)(cap - n), ", \"tokens\": %" PRId64, line->tokens);
  n = number(buf, n, cap, "step_s", line->step_s, false);
  n = number(buf, n, cap, "tokens_per_s", line->tokens_per_s, false);
  n += snprintf(buf + n, (size_t)(cap - n),
                ", \"peak_bytes\": %" PRIu64 ", \"page_faults\": %" PRIu64, line->peak_bytes,
                line->page_faults);
  if (line->sent && n + (int)strlen(line->sent) + 12 < cap)
    n += snprintf(buf + n, (size_t)(cap - n), ", \"sent\": %s", line->sent);
  buf[n++] = '}';
  buf[n++] = '\n';
  for (int done = 0; done < n;) {
    ssize_t k = write(l->fd, buf + done, (size_t)(n - done));
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) {
      l->failed = status_errno("the log %s ends before step %" PRId64, l->path, line->step);
      fprintf(stderr, "warning: %s; training goes on\n", l->failed->message);
      return;
    }
    done += (int)k;
  }
}

status *log_close(train_log *l) {
  if (l->fd >= 0 && close(l->fd) < 0 && !l->failed && errno != EINTR)
    l->failed = status_errno("cannot close the log %s", l->path);
  l->fd = -1;
  status *s = l->failed;
  l->failed = NULL;
  return s;
}
