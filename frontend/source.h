// Source texts and the spans that point into them.
//
//   source *src = source_read(a, "gpt2.dsm", &why);      // NULL: `why` says what went wrong
//   span s = source_span(src, 10, 14);                    // bytes [10, 14)
//   printf("%s:%d:%d %s\n", s.file->path, s.line, s.column, span_text(a, s));
//
// Lines and columns count from 1. A column counts characters (code points), not bytes, so it is
// what an editor shows; offsets count bytes. A span may cover several lines: `line` and `column`
// are those of its first character.
#ifndef DSM_FRONTEND_SOURCE_H
#define DSM_FRONTEND_SOURCE_H

#include <stdbool.h>

#include "runtime/base/arena.h"

typedef struct source {
  const char *path;  // as the user wrote it; "--set" or "-" for texts that are no file
  const char *text;  // NUL-terminated, but may contain NULs (they are diagnosed by the lexer)
  int length;
  int *line_starts;  // byte offset of each line; line_starts[0] is 0
  int lines;         // at least 1
  int *characters;   // in front of every 64th byte: a column costs no walk of a long line
} source;

typedef struct span {
  const source *file;  // NULL: no place in a text (`span_none`)
  int start, end;      // bytes, half open
  int line, column;
} span;

// Texts above this many bytes are refused: offsets are ints and nobody writes such a model.
#define SOURCE_MAX_BYTES (16 << 20)

// Makes a source from a text in memory (copied).
source *source_from_text(arena *a, const char *path, const char *text, size_t length);

// Reads a file. Returns NULL and sets *why ("No such file or directory") when it cannot.
source *source_read(arena *a, const char *path, const char **why);

// The span of bytes [start, end), with line and column looked up.
span source_span(const source *src, int start, int end);
// The smallest span that covers both; either may be `span_none`.
span span_join(span a, span b);
// No place: for diagnostics about the command line or the whole program.
span span_none(void);
// The text that a span covers.
const char *span_text(arena *a, span s);
// Line `line` (from 1) without its end; sets *n to its length in bytes.
const char *source_line(const source *src, int line, int *n);
// The line that byte `offset` is on.
int source_line_of(const source *src, int offset);

#endif
