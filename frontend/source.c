// Source texts: reading, line tables, spans. Everything lives in the arena of the compilation.
#include "frontend/source.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { STRIDE = 64 };

// Characters that start in n bytes.
static int count(const char *s, int n) {
  int characters = 0;
  for (int i = 0; i < n; i++) characters += ((unsigned char)s[i] & 0xC0) != 0x80;
  return characters;
}

source *source_from_text(arena *a, const char *path, const char *text, size_t length) {
  source *s = arena_new(a, source, 1);
  s->path = arena_strdup(a, path);
  s->text = arena_strndup(a, text, length);
  s->length = (int)length;
  int lines = 1;
  for (size_t i = 0; i < length; i++) lines += text[i] == '\n';
  s->line_starts = arena_new(a, int, lines);
  s->lines = 1;
  for (size_t i = 0; i < length; i++)
    if (text[i] == '\n') s->line_starts[s->lines++] = (int)i + 1;
  s->characters = arena_new(a, int, length / STRIDE + 1);
  for (size_t i = 0; i < length / STRIDE; i++)
    s->characters[i + 1] = s->characters[i] + count(s->text + i * STRIDE, STRIDE);
  return s;
}

// Characters in front of a byte.
static int characters_before(const source *s, int offset) {
  int block = offset / STRIDE;
  return s->characters[block] + count(s->text + block * STRIDE, offset - block * STRIDE);
}

source *source_read(arena *a, const char *path, const char **why) {
  struct stat st;
  FILE *f = fopen(path, "rb");
  *why = NULL;
  if (!f || fstat(fileno(f), &st) != 0) {
    *why = strerror(errno);
  } else if (S_ISDIR(st.st_mode)) {
    *why = "it is a folder";
  }
  source *s = NULL;
  if (!*why) {
    // Read by growing: sizes of pipes and /proc files are not known beforehand.
    size_t cap = st.st_size > 0 && st.st_size < SOURCE_MAX_BYTES ? (size_t)st.st_size + 1 : 4096;
    size_t n = 0;
    char *text = arena_alloc(a, cap);
    for (;;) {
      n += fread(text + n, 1, cap - n, f);
      if (n < cap || n > SOURCE_MAX_BYTES) break;
      char *more = arena_alloc(a, cap * 2);
      memcpy(more, text, n);
      text = more;
      cap *= 2;
    }
    if (ferror(f))
      *why = strerror(errno);
    else if (n > SOURCE_MAX_BYTES)
      *why = "it is larger than 16 MiB";
    else
      s = source_from_text(a, path, text, n);
  }
  if (f) fclose(f);
  return s;
}

int source_line_of(const source *src, int offset) {
  int lo = 0, hi = src->lines - 1;
  while (lo < hi) {
    int mid = (lo + hi + 1) / 2;
    if (src->line_starts[mid] <= offset)
      lo = mid;
    else
      hi = mid - 1;
  }
  return lo + 1;
}

span source_span(const source *src, int start, int end) {
  if (start > src->length) start = src->length;
  if (end > src->length) end = src->length;
  if (end < start) end = start;
  int line = source_line_of(src, start);
  int before = characters_before(src, src->line_starts[line - 1]);
  int column = characters_before(src, start) - before + 1;
  return (span){.file = src, .start = start, .end = end, .line = line, .column = column};
}

span span_none(void) { return (span){0}; }

span span_join(span a, span b) {
  if (!a.file) return b;
  if (!b.file || a.file != b.file) return a;
  span first = a.start <= b.start ? a : b;
  first.end = a.end >= b.end ? a.end : b.end;
  return first;
}

const char *span_text(arena *a, span s) {
  if (!s.file) return "";
  return arena_strndup(a, s.file->text + s.start, (size_t)(s.end - s.start));
}

const char *source_line(const source *src, int line, int *n) {
  int from = src->line_starts[line - 1];
  int to = line < src->lines ? src->line_starts[line] - 1 : src->length;
  if (to > from && src->text[to - 1] == '\r') to--;
  *n = to - from;
  return src->text + from;
}
