// A string builder in an arena, and the few string helpers the rooms share.
//
//   sb s = {.arena = a};
//   sb_printf(&s, "%s[%d]", name, i);
//   puts(sb_str(&s));
#ifndef DSM_BASE_STR_H
#define DSM_BASE_STR_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/arena.h"

typedef struct sb {
  arena *arena;
  char *at;  // not NUL-terminated until sb_str
  int n, cap;
} sb;

void sb_put(sb *s, char c);
void sb_puts(sb *s, const char *text);
void sb_putn(sb *s, const char *text, size_t n);
void sb_printf(sb *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sb_vprintf(sb *s, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));

// The text so far, NUL-terminated; "" when empty. Valid until the next put.
const char *sb_str(sb *s);

bool str_eq(const char *a, const char *b);  // NULL equals only NULL
bool str_starts(const char *s, const char *prefix);
bool str_ends(const char *s, const char *suffix);

// Damerau-Levenshtein distance (insert, delete, replace, swap neighbours), for "did you mean".
int str_distance(const char *a, const char *b);

// The nearest of `n` names to `word`, or NULL when none is close (more than a third differs).
const char *str_nearest(const char *word, const char *const *names, int n);

// The shortest decimal text that reads back as exactly `x`: "0.1", "1e-05", "12". Always has no
// locale and no trailing zeros. `buf` takes at least 32 bytes; returns buf.
char *str_double(char *buf, double x);
// The same for a float value: shortest text that reads back as the same float.
char *str_float(char *buf, float x);

// Writes `n` in hexadecimal, a blank and a NUL; returns where the NUL is. For names that maps are
// asked by, which are made of numbers and asked for so often that printf would be felt.
// STR_NAME: bytes that each number takes at most, the NUL not counted.
enum { STR_NAME = 17 };
char *str_name(char *out, uint64_t n);

#endif
