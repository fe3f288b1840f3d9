#include "runtime/base/str.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/vec.h"

void *vec_grow(arena *a, void *at, int n, int *cap, size_t size) {
  int want = *cap ? *cap * 2 : 8;
  void *p = arena_alloc_raw(a, (size_t)want * size);
  if (n) memcpy(p, at, (size_t)n * size);
  *cap = want;
  return p;
}

char *str_name(char *out, uint64_t n) {
  char digit[STR_NAME];
  int k = 0;
  do digit[k++] = "0123456789abcdef"[n & 15];
  while (n >>= 4);
  while (k) *out++ = digit[--k];
  *out++ = ' ';
  *out = 0;
  return out;
}

void sb_putn(sb *s, const char *text, size_t n) {
  if (s->cap - s->n < (int)n + 1) {
    int cap = s->cap ? s->cap : 64;
    while (cap - s->n < (int)n + 1) cap *= 2;
    char *p = arena_alloc(s->arena, (size_t)cap);
    if (s->n) memcpy(p, s->at, (size_t)s->n);
    s->at = p;
    s->cap = cap;
  }
  if (n) memcpy(s->at + s->n, text, n);
  s->n += (int)n;
}

void sb_put(sb *s, char c) { sb_putn(s, &c, 1); }

void sb_puts(sb *s, const char *text) { sb_putn(s, text, strlen(text)); }

void sb_vprintf(sb *s, const char *fmt, va_list ap) {
  char small[256];
  va_list again;
  va_copy(again, ap);
  int n = vsnprintf(small, sizeof small, fmt, ap);
  if (n >= 0 && n < (int)sizeof small)
    sb_putn(s, small, (size_t)n);
  else if (n >= 0)
    sb_putn(s, arena_vprintf(s->arena, fmt, again), (size_t)n);
  va_end(again);
}

void sb_printf(sb *s, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  sb_vprintf(s, fmt, ap);
  va_end(ap);
}

const char *sb_str(sb *s) {
  if (!s->at) return "";
  s->at[s->n] = 0;
  return s->at;
}

bool str_eq(const char *a, const char *b) { return a == b || (a && b && strcmp(a, b) == 0); }

bool str_starts(const char *s, const char *prefix) {
  return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_ends(const char *s, const char *suffix) {
  size_t n = strlen(s), m = strlen(suffix);
  return n >= m && strcmp(s + n - m, suffix) == 0;
}

static int min2(int a, int b) { return a < b ? a : b; }

int str_distance(const char *a, const char *b) {
  enum { MAX = 64 };
  int n = (int)strnlen(a, MAX), m = (int)strnlen(b, MAX);
  int row[3][MAX + 1];  // the last three rows of the dynamic-programming table
  for (int j = 0; j <= m; j++) row[0][j] = j;
  for (int i = 1; i <= n; i++) {
    int *now = row[i % 3], *up = row[(i + 2) % 3], *up2 = row[(i + 1) % 3];
    now[0] = i;
    for (int j = 1; j <= m; j++) {
      int cost = a[i - 1] != b[j - 1];
      now[j] = min2(min2(up[j] + 1, now[j - 1] + 1), up[j - 1] + cost);
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        now[j] = min2(now[j], up2[j - 2] + 1);
    }
  }
  return row[n % 3][m];
}

const char *str_nearest(const char *word, const char *const *names, int n) {
  const char *best = NULL;
  int limit = (int)strlen(word) / 3 + 1, best_d = limit + 1;
  for (int i = 0; i < n; i++) {
    int d = str_distance(word, names[i]);
    if (d < best_d) best = names[i], best_d = d;
  }
  return best;
}

char *str_double(char *buf, double x) {
  if (x == floor(x) && fabs(x) < 1e15) {  // whole numbers are written out: 100, not 1e+02
    snprintf(buf, 32, "%.0f", x);
    return buf;
  }
  for (int p = 1; p <= 17; p++) {
    snprintf(buf, 32, "%.*g", p, x);
    if (isnan(x) || strtod(buf, NULL) == x) break;
  }
  return buf;
}

char *str_float(char *buf, float x) {
  if (x == floorf(x) && fabsf(x) < 1e7f) return str_double(buf, (double)x);
  for (int p = 1; p <= 9; p++) {
    snprintf(buf, 32, "%.*g", p, (double)x);
    if (isnan(x) || strtof(buf, NULL) == x) break;
  }
  return buf;
}
