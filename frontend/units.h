// Numbers with units: `80GiB`, `25Gbit/s`, `4Ki`, `1e-5`.
//
//   number n;
//   const char *why = unit_parse("80GiB", 5, &n, &problem);   // n.whole == 80 << 30, UNIT_BYTES
//
// The value is exact where int64 can hold it, and otherwise the double nearest to the exact
// decimal value; a unit never costs a rounding (`25us` is the same double as `0.000025`).
#ifndef DSM_FRONTEND_UNITS_H
#define DSM_FRONTEND_UNITS_H

#include "frontend/ast.h"

typedef enum unit_problem {
  UNIT_OK,
  UNIT_UNKNOWN,        // the letters are no unit
  UNIT_BITS_OR_BYTES,  // `Gb`
  UNIT_TOO_LARGE,      // does not fit int64 (whole numbers as written) or double
} unit_problem;

// Parses digits, fraction, exponent and unit: exactly `length` bytes that the lexer has matched.
// On a problem *hint, when not NULL, is set to what to write instead (or NULL).
unit_problem unit_parse(arena *a, const char *text, int length, number *out, const char **hint);

// "80 GiB", "2.04 TB/s", "25 us", "312 TFLOPS", "4096": how reports print a value of this unit.
const char *unit_format(arena *a, double value, unit u);

#endif
