#include "runtime/dtype.h"

#include <string.h>

static const dtype_info table[PROG_DTYPES] = {
    // ORDER DTYPE (runtime/program.h)
    {"f32", "F32", 4, 'F'}, {"f64", "F64", 8, 'F'},        {"bf16", "BF16", 2, 'F'},
    {"f16", "F16", 2, 'F'}, {"f8e4m3", "F8_E4M3", 1, 'F'}, {"f8e5m2", "F8_E5M2", 1, 'F'},
    {"i32", "I32", 4, 'I'}, {"i64", "I64", 8, 'I'},        {"i16", "I16", 2, 'I'},
    {"i8", "I8", 1, 'I'},   {"u16", "U16", 2, 'I'},        {"bool", "BOOL", 1, 'B'},
};

const dtype_info *dtype_of(uint32_t dtype) { return &table[dtype]; }

int dtype_find_st(const char *st) {
  for (int i = 0; i < PROG_DTYPES; i++)
    if (strcmp(table[i].st, st) == 0) return i;
  return -1;
}

static uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

static float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

float dtype_from_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, frac = h & 0x3ff;
  if (exp == 31) return float_of(sign | 0x7f800000u | (frac << 13));
  if (exp == 0) {  // subnormal: frac * 2^-24, exact in f32
    float x = (float)frac * 0x1p-24f;
    return sign ? -x : x;
  }
  return float_of(sign | ((exp + 112) << 23) | (frac << 13));
}

uint16_t dtype_to_f16(float x) {
  uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, mag = u & 0x7fffffffu;
  if (mag > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
  if (mag >= 0x47800000u) return (uint16_t)(sign | 0x7c00);  // 65536 and above
  if (mag < 0x38800000u) {                                   // below 2^-14: subnormal
    // Adding 0.5 puts the last place of the sum at 2^-24, so the hardware rounds for us.
    float r = float_of(mag) + 0.5f;
    return (uint16_t)(sign | (bits_of(r) - 0x3f000000u));
  }
  uint32_t r = mag + 0xfffu + ((mag >> 13) & 1);
  return (uint16_t)(sign | ((r - 0x38000000u) >> 13));  // carries into infinity by itself
}

static bool is_float16_to_64(uint32_t t) {
  return t == PROG_F32 || t == PROG_F64 || t == PROG_BF16 || t == PROG_F16;
}

bool dtype_convertible(uint32_t to, uint32_t from) {
  if (to == from) return true;
  if (is_float16_to_64(to) && is_float16_to_64(from)) return true;
  return table[to].kind == 'I' && table[from].kind == 'I';
}

static double read_float(const unsigned char *p, uint32_t t) {
  if (t == PROG_F64) {
    double d;
    memcpy(&d, p, sizeof d);
    return d;
  }
  if (t == PROG_F32) {
    float f;
    memcpy(&f, p, sizeof f);
    return (double)f;
  }
  uint16_t h;
  memcpy(&h, p, sizeof h);
  return (double)(t == PROG_BF16 ? dtype_from_bf16(h) : dtype_from_f16(h));
}

static void write_float(unsigned char *p, uint32_t t, double d) {
  if (t == PROG_F64) {
    memcpy(p, &d, sizeof d);
    return;
  }
  float f = (float)d;
  if (t == PROG_F32) {
    memcpy(p, &f, sizeof f);
    return;
  }
  uint16_t h = t == PROG_BF16 ? dtype_to_bf16(f) : dtype_to_f16(f);
  memcpy(p, &h, sizeof h);
}

static int64_t read_int(const unsigned char *p, uint32_t t) {
  int64_t i64;
  int32_t i32;
  int16_t i16;
  uint16_t u16;
  switch (t) {
    case PROG_I64: memcpy(&i64, p, sizeof i64); return i64;
    case PROG_I32: memcpy(&i32, p, sizeof i32); return i32;
    case PROG_I16: memcpy(&i16, p, sizeof i16); return i16;
    case PROG_U16: memcpy(&u16, p, sizeof u16); return u16;
    default: return (int8_t)*p;
  }
}

static bool write_int(unsigned char *p, uint32_t t, int64_t v) {
  int32_t i32 = (int32_t)v;
  int16_t i16 = (int16_t)v;
  uint16_t u16 = (uint16_t)v;
  int8_t i8 = (int8_t)v;
  switch (t) {
    case PROG_I64: memcpy(p, &v, sizeof v); return true;
    case PROG_I32: memcpy(p, &i32, sizeof i32); return i32 == v;
    case PROG_I16: memcpy(p, &i16, sizeof i16); return i16 == v;
    case PROG_U16: memcpy(p, &u16, sizeof u16); return u16 == v;
    default: memcpy(p, &i8, sizeof i8); return i8 == v;
  }
}

int64_t dtype_convert(void *dst, uint32_t to, const void *src, uint32_t from, int64_t n) {
  unsigned char *d = dst;
  const unsigned char *s = src;
  if (to == from) {
    if (n) memcpy(d, s, (size_t)n * (size_t)table[to].bytes);
    return n;
  }
  int db = table[to].bytes, sb = table[from].bytes;
  if (is_float16_to_64(to)) {
    for (int64_t i = 0; i < n; i++) write_float(d + i * db, to, read_float(s + i * sb, from));
    return n;
  }
  for (int64_t i = 0; i < n; i++)
    if (!write_int(d + i * db, to, read_int(s + i * sb, from))) return i;
  return n;
}
