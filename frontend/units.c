// Units. One table of unit names; everything else is powers.
#include "frontend/units.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct unit_row {
  const char *name;
  unit unit;
  int times, over;  // value in the base unit = number * times / over
  bool prefixes;    // may stand behind k, Mi, ...
} unit_row;

static const unit_row rows[] = {
    {"B", UNIT_BYTES, 1, 1, true},
    {"bit", UNIT_BYTES, 1, 8, true},
    {"B/s", UNIT_BYTES_PER_S, 1, 1, true},
    {"bit/s", UNIT_BYTES_PER_S, 1, 8, true},
    {"B/h", UNIT_BYTES_PER_S, 1, 3600, true},
    {"FLOPS", UNIT_FLOPS, 1, 1, true},
    {"FLOP/s", UNIT_FLOPS, 1, 1, true},
    {"OPS", UNIT_FLOPS, 1, 1, true},
    {"s", UNIT_SECONDS, 1, 1, true},
    {"min", UNIT_SECONDS, 60, 1, false},
    {"h", UNIT_SECONDS, 3600, 1, false},
    {"W", UNIT_WATTS, 1, 1, true},
    {"USD/h", UNIT_USD_PER_H, 1, 1, false},
    {"", UNIT_COUNT, 1, 1, true},
};

typedef struct prefix {
  const char *name;
  int ten, two;  // the power of ten and of two
} prefix;

// Longer names first, so that `Mi` is not read as `M`.
static const prefix prefixes[] = {
    {"Ki", 0, 10}, {"Mi", 0, 20}, {"Gi", 0, 30}, {"Ti", 0, 40}, {"Pi", 0, 50},
    {"n", -9, 0},  {"u", -6, 0},  {"m", -3, 0},  {"k", 3, 0},   {"M", 6, 0},
    {"G", 9, 0},   {"T", 12, 0},  {"P", 15, 0},  {"E", 18, 0},  {"", 0, 0},
};

static bool find_unit(const char *word, const unit_row **row, const prefix **pre) {
  // Whole names win over prefix + name: `min` is minutes, not milli-"in".
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    for (size_t k = 0; k < sizeof prefixes / sizeof *prefixes; k++) {
      size_t n = strlen(prefixes[k].name);
      if (n && !rows[i].prefixes) continue;
      if (strncmp(word, prefixes[k].name, n) != 0 || strcmp(word + n, rows[i].name) != 0) continue;
      *row = &rows[i];
      *pre = &prefixes[k];
      return true;
    }
  return false;
}

// What the writer of an unknown unit may have meant; NULL when there is no good guess.
static const char *guess(arena *a, const char *digits, const char *word) {
  static const struct {
    const char *wrong, *right;
  } habits[] = {
      {"K", "k"},           {"KB", "kB"},         {"KiB", "KiB"},       {"kib", "KiB"},
      {"mb", "MB"},         {"gb", "GB"},         {"tb", "TB"},         {"gib", "GiB"},
      {"mib", "MiB"},       {"GBps", "GB/s"},     {"GBs", "GB/s"},      {"MBps", "MB/s"},
      {"Gbps", "Gbit/s"},   {"Mbps", "Mbit/s"},   {"gbps", "Gbit/s"},   {"TFLOP", "TFLOPS"},
      {"TFlops", "TFLOPS"}, {"tflops", "TFLOPS"}, {"Tflops", "TFLOPS"}, {"GFLOP", "GFLOPS"},
      {"gflops", "GFLOPS"}, {"sec", "s"},         {"hours", "h"},       {"hr", "h"},
      {"msec", "ms"},       {"usec", "us"},       {"w", "W"},           {"Watt", "W"},
      {"USD", "USD/h"},     {"b", "B"},           {"Bi", "G"},          {"ki", "Ki"},
      {"g", "G"},           {"t", "T"},           {"gi", "Gi"},         {"mi", "Mi"},
      {"bytes", "B"},       {"byte", "B"},        {"bits", "bit"},      {"S", "s"},
      {"H", "h"},           {"KW", "kW"},
  };
  for (size_t i = 0; i < sizeof habits / sizeof *habits; i++)
    if (strcmp(word, habits[i].wrong) == 0) return arena_printf(a, "%s%s", digits, habits[i].right);
  return NULL;
}

// `Gb`, `Mb/s`, `b`, `Gib/s`: a prefix, `b`, and perhaps a time.
static bool bit_or_byte(const char *word, const char **pre, const char **rest) {
  for (size_t k = 0; k < sizeof prefixes / sizeof *prefixes; k++) {
    size_t n = strlen(prefixes[k].name);
    if (n == 0 || strncmp(word, prefixes[k].name, n) != 0 || word[n] != 'b') continue;
    const char *tail = word + n + 1;
    if (*tail && strcmp(tail, "/s") != 0 && strcmp(tail, "/h") != 0) continue;
    *pre = prefixes[k].name;
    *rest = tail;
    return true;
  }
  return false;
}

// mantissa * 10^ten * 2^two * times / over as int64, when that is exact.
static bool exact(const char *digits, int ten, int two, int times, int over, int64_t *out) {
  __int128 m = 0, limit = (__int128)INT64_MAX;
  bool fraction = false;
  for (const char *p = digits; *p && *p != 'e' && *p != 'E'; p++) {
    if (*p == '.') {
      fraction = true;
      continue;
    }
    if (m > limit * 1000) return false;
    m = m * 10 + (*p - '0');
    if (fraction) ten--;
  }
  if (m == 0) {
    *out = 0;
    return true;
  }
  while (ten < 0 && m % 10 == 0) m /= 10, ten++;
  m *= times;
  for (; two > 0; two--) {
    if (m > limit * 1000000) return false;
    m *= 2;
  }
  for (; ten > 0; ten--) {
    if (m > limit * 1000000) return false;
    m *= 10;
  }
  for (; ten < 0; ten++) {
    if (m % 10 != 0) return false;
    m /= 10;
  }
  if (m % over != 0) return false;
  m /= over;
  if (m > limit) return false;
  *out = (int64_t)m;
  return true;
}

unit_problem unit_parse(arena *a, const char *text, int length, number *out, const char **hint) {
  const char *none = NULL;
  if (!hint) hint = &none;
  *hint = NULL;
  *out = (number){0};

  int n = 0;
  while (n < length && (text[n] >= '0' && text[n] <= '9')) n++;
  if (n + 1 < length && text[n] == '.' && text[n + 1] >= '0' && text[n + 1] <= '9') {
    out->real = true;
    for (n++; n < length && text[n] >= '0' && text[n] <= '9';) n++;
  }
  int exponent = 0;
  if (n < length && (text[n] == 'e' || text[n] == 'E')) {
    int k = n + 1;
    if (k < length && (text[k] == '+' || text[k] == '-')) k++;
    if (k < length && text[k] >= '0' && text[k] <= '9') {
      out->real = true;
      long e = strtol(arena_strndup(a, text + n + 1, (size_t)(length - n - 1)), NULL, 10);
      exponent = e > 100000 ? 100000 : e < -100000 ? -100000 : (int)e;
      n = k;
      while (n < length && text[n] >= '0' && text[n] <= '9') n++;
    }
  }
  const char *digits = arena_strndup(a, text, (size_t)n);
  const char *word = arena_strndup(a, text + n, (size_t)(length - n));

  const unit_row *row;
  const prefix *pre;
  if (n == length) {
    static const unit_row plain = {"", UNIT_NONE, 1, 1, false};
    static const prefix no_prefix = {"", 0, 0};
    row = &plain;
    pre = &no_prefix;
  } else if (!find_unit(word, &row, &pre)) {
    const char *big, *rest;
    if (bit_or_byte(word, &big, &rest)) {
      *hint = arena_printf(a, "write `%s%sbit%s` for bits or `%s%sB%s` for bytes", digits, big,
                           rest, digits, big, rest);
      return UNIT_BITS_OR_BYTES;
    }
    *hint = guess(a, digits, word);
    return UNIT_UNKNOWN;
  }

  out->unit = row->unit;
  out->integral = exact(digits, exponent + pre->ten, pre->two, row->times, row->over, &out->whole);
  if (out->integral) {
    out->value = (double)out->whole;
    return UNIT_OK;
  }
  // Not a whole number: let strtod round the decimal once, then scale by exact factors.
  const char *mark = strpbrk(digits, "eE");
  int mantissa = mark ? (int)(mark - digits) : n;
  double x = strtod(arena_printf(a, "%.*se%d", mantissa, digits, exponent + pre->ten), NULL);
  out->value = ldexp(x, pre->two) * row->times / row->over;
  if (isinf(out->value) || (!out->real && n == length)) return UNIT_TOO_LARGE;
  return UNIT_OK;
}

// ---------------------------------------------------------------------------------------------
// Printing
// ---------------------------------------------------------------------------------------------

static const char *scaled(arena *a, double v, double base, const char *const *names, int n,
                          const char *suffix) {
  int k = 0;
  while (k + 1 < n && fabs(v) >= base) v /= base, k++;
  int decimals = k == 0 && v == floor(v) ? 0 : fabs(v) < 9.995 ? 2 : fabs(v) < 99.95 ? 1 : 0;
  return arena_printf(a, "%.*f %s%s", decimals, v, names[k], suffix);
}

const char *unit_format(arena *a, double value, unit u) {
  static const char *const two[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi"};
  static const char *const ten[] = {"", "k", "M", "G", "T", "P", "E"};
  char buf[32];
  switch (u) {
    case UNIT_BYTES: return scaled(a, value, 1024, two, 6, "B");
    case UNIT_BYTES_PER_S: return scaled(a, value, 1000, ten, 7, "B/s");
    case UNIT_FLOPS: return scaled(a, value, 1000, ten, 7, "FLOPS");
    case UNIT_WATTS: return scaled(a, value, 1000, ten, 4, "W");
    case UNIT_SECONDS:
      if (value == 0) return "0 s";
      if (fabs(value) < 1e-6) return arena_printf(a, "%.3g ns", value * 1e9);
      if (fabs(value) < 1e-3) return arena_printf(a, "%.3g us", value * 1e6);
      if (fabs(value) < 1) return arena_printf(a, "%.3g ms", value * 1e3);
      if (fabs(value) < 7200) return arena_printf(a, "%.4g s", value);
      return arena_printf(a, "%.4g h", value / 3600);
    case UNIT_USD_PER_H: return arena_printf(a, "%s USD/h", str_double(buf, value));
    case UNIT_NONE:
    case UNIT_COUNT: break;
  }
  return arena_strdup(a, str_double(buf, value));
}
