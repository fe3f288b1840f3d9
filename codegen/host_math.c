// Functions of single elements, on vectors of f32 (or scalars: the same code, the same bits).
//
// exp, log, tanh, erf, sin, cos and pow are our own: a library's would tie results to its version,
// and the code image is linked with none. Each becomes one internal function per vector width
// ("dsm.exp.16"). Methods: exp is 2^n * p(r) with |r| <= ln(2)/2; log splits off the exponent and
// uses a polynomial on [sqrt(1/2), sqrt(2)]; tanh is made of exp(2x) - 1, erf has a polynomial near
// 0 and an exponential beyond; sin and cos reduce by multiples of pi/2 in four parts; pow goes
// through f64. Errors against the exact value (tests/unit/test_kernel.c measures them): exp, log
// <= 1.5 ulp, erf <= 2 ulp, tanh <= 3 ulp, sin, cos <= 1.5e-7 absolute for |x| <= 1e4, pow <= 1
// ulp.
#include <stdio.h>
#include <string.h>

#include "codegen/host.h"

LLVMValueRef h_intrinsic(host *h, const char *name, LLVMTypeRef *types, int ntypes,
                         LLVMValueRef *args, int nargs) {
  unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
  IR_CHECK(id != 0);
  LLVMValueRef fn = LLVMGetIntrinsicDeclaration(h->module, id, types, (size_t)ntypes);
  LLVMTypeRef ft = LLVMIntrinsicGetType(h->context, id, types, (size_t)ntypes);
  return LLVMBuildCall2(h->b, ft, fn, args, (unsigned)nargs, "");
}

// ---- a small language for formulas -------------------------------------------------------------
// Values of one width; `F` are f32 vectors, `I` i32 vectors, `T` truth vectors, `D` f64 vectors.

typedef struct math {
  host *h;
  int lanes;
} math;
typedef LLVMValueRef V;

static V fc(math m, double c) { return h_number(m.h, K_F32, m.lanes, c); }
static V ic(math m, int64_t c) { return h_number(m.h, K_I32, m.lanes, (double)c); }
static V fadd(math m, V a, V b) { return LLVMBuildFAdd(m.h->b, a, b, ""); }
static V fsub(math m, V a, V b) { return LLVMBuildFSub(m.h->b, a, b, ""); }
static V fmul(math m, V a, V b) { return LLVMBuildFMul(m.h->b, a, b, ""); }
static V fdiv(math m, V a, V b) { return LLVMBuildFDiv(m.h->b, a, b, ""); }
static V fneg(math m, V a) { return LLVMBuildFNeg(m.h->b, a, ""); }
static V iadd(math m, V a, V b) { return LLVMBuildAdd(m.h->b, a, b, ""); }
static V isub(math m, V a, V b) { return LLVMBuildSub(m.h->b, a, b, ""); }
static V iand(math m, V a, V b) { return LLVMBuildAnd(m.h->b, a, b, ""); }
static V ior(math m, V a, V b) { return LLVMBuildOr(m.h->b, a, b, ""); }
static V ixor(math m, V a, V b) { return LLVMBuildXor(m.h->b, a, b, ""); }
static V ishl(math m, V a, int n) { return LLVMBuildShl(m.h->b, a, ic(m, n), ""); }
static V ishr(math m, V a, int n) { return LLVMBuildAShr(m.h->b, a, ic(m, n), ""); }
static V fcmp(math m, LLVMRealPredicate p, V a, V b) { return LLVMBuildFCmp(m.h->b, p, a, b, ""); }
static V sel(math m, V c, V a, V b) { return LLVMBuildSelect(m.h->b, c, a, b, ""); }
static V to_i(math m, V a) { return LLVMBuildBitCast(m.h->b, a, h_type(m.h, K_I32, m.lanes), ""); }
static V to_f(math m, V a) { return LLVMBuildBitCast(m.h->b, a, h_type(m.h, K_F32, m.lanes), ""); }
static V sitof(math m, V a) { return LLVMBuildSIToFP(m.h->b, a, h_type(m.h, K_F32, m.lanes), ""); }
static V fma_(math m, V a, V b, V c) { return h_fma(m.h, a, b, c); }

static V unary(math m, const char *name, V a) {
  LLVMTypeRef t = LLVMTypeOf(a);
  return h_intrinsic(m.h, name, &t, 1, &a, 1);
}
static V fabs_(math m, V a) { return unary(m, "llvm.fabs", a); }
static V copysign_(math m, V a, V sign) {
  LLVMTypeRef t = LLVMTypeOf(a);
  V args[] = {a, sign};
  return h_intrinsic(m.h, "llvm.copysign", &t, 1, args, 2);
}

// c[0]*x^(n-1) + ... + c[n-1] by Horner, one fma a step.
static V poly(math m, V x, const double *c, int n) {
  V y = fc(m, c[0]);
  for (int i = 1; i < n; i++) y = fma_(m, y, x, fc(m, c[i]));
  return y;
}

// 1.5 * 2^23: adding it rounds to a whole number whose low bits are then readable as an integer.
#define ROUND 12582912.0

static V emit_exp(math m, V x) {
  // Beyond these ends the result is 0 and infinity; the compares let NaN through.
  V y = sel(m, fcmp(m, LLVMRealOLT, x, fc(m, -105.0)), fc(m, -105.0), x);
  y = sel(m, fcmp(m, LLVMRealOGT, y, fc(m, 89.5)), fc(m, 89.5), y);
  V t = fma_(m, y, fc(m, 1.4426950408889634), fc(m, ROUND));
  V n = fsub(m, t, fc(m, ROUND));
  V r = fma_(m, n, fc(m, -0.693359375), y);
  r = fma_(m, n, fc(m, 2.12194440054690583e-4), r);
  static const double c[] = {1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
                             4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1};
  V p = poly(m, r, c, 6);
  p = fma_(m, p, fmul(m, r, r), r);
  p = fadd(m, p, fc(m, 1.0));
  if (m.h->wide && m.lanes == K_LANES) {
    // One instruction, which rounds once: the bits of the two factors below.
    LLVMTypeRef i16 = LLVMInt16TypeInContext(m.h->context),
                i32 = LLVMInt32TypeInContext(m.h->context);
    V args[] = {p, n, p, LLVMConstInt(i16, 0xffff, 0), LLVMConstInt(i32, 4, 0)};
    return h_intrinsic(m.h, "llvm.x86.avx512.mask.scalef.ps.512", NULL, 0, args, 5);
  }
  // 2^n in two factors, so that denormal results and the last power before infinity come out right.
  V i = isub(m, to_i(m, t), to_i(m, fc(m, ROUND))), half = ishr(m, i, 1);
  V a = to_f(m, ishl(m, iadd(m, half, ic(m, 127)), 23));
  V b = to_f(m, ishl(m, iadd(m, isub(m, i, half), ic(m, 127)), 23));
  return fmul(m, fmul(m, p, a), b);
}

static V call_math(math m, const char *name, V x);

static V emit_log(math m, V x) {
  V tiny = fcmp(m, LLVMRealOLT, x, fc(m, 0x1p-126));
  V y = sel(m, tiny, fmul(m, x, fc(m, 0x1p23)), x);
  V u = to_i(m, y);
  // The exponent of y / sqrt(1/2): what is left lies in [sqrt(1/2), sqrt(2)).
  V e = ishr(m, isub(m, u, ic(m, 0x3f3504f3)), 23);
  V f = fsub(m, to_f(m, isub(m, u, ishl(m, e, 23))), fc(m, 1.0));
  V n = fadd(m, sitof(m, e), sel(m, tiny, fc(m, -23.0), fc(m, 0.0)));
  static const double c[] = {7.0376836292e-2,  -1.1514610310e-1, 1.1676998740e-1,
                             -1.2420140846e-1, 1.4249322787e-1,  -1.6668057665e-1,
                             2.0000714765e-1,  -2.4999993993e-1, 3.3333331174e-1};
  V z = fmul(m, f, f);
  V p = fmul(m, fmul(m, poly(m, f, c, 9), f), z);
  p = fma_(m, n, fc(m, -2.12194440e-4), p);
  p = fma_(m, z, fc(m, -0.5), p);
  V r = fma_(m, n, fc(m, 0.693359375), fadd(m, f, p));
  r = sel(m, fcmp(m, LLVMRealOEQ, x, fc(m, __builtin_inf())), x, r);
  r = sel(m, fcmp(m, LLVMRealOEQ, x, fc(m, 0.0)), fc(m, -__builtin_inf()), r);
  return sel(m, fcmp(m, LLVMRealULT, x, fc(m, 0.0)), fc(m, __builtin_nan("")), r);
}

// e / (e + 2) for e = exp(2|x|) - 1 = 2^n (exp(2r) - 1) + (2^n - 1), where n = 0 near 0 and nothing
// cancels. From 9.02 on the result rounds to 1; the compare lets NaN through.
static V emit_tanh(math m, V x) {
  V a = fabs_(m, x);
  a = sel(m, fcmp(m, LLVMRealOGT, a, fc(m, 9.02)), fc(m, 9.02), a);
  V t = fma_(m, a, fc(m, 2.8853900817779268), fc(m, ROUND));
  V n = fsub(m, t, fc(m, ROUND));
  V r = fma_(m, n, fc(m, -0.3466796875), a);  // ln(2)/2 in two parts
  r = fma_(m, n, fc(m, 1.06097220272e-4), r);
  // (exp(2r) - 1 - 2r) / r^2 on |r| <= ln(2)/4, fitted by least relative error: 0.23 * 2^-24
  static const double c[] = {8.8847903074e-2, 2.6773482613e-1, 6.6667529703e-1, 1.3333233752,
                             1.9999999249};
  V p = fma_(m, poly(m, r, c, 5), fmul(m, r, r), fadd(m, r, r));
  V s = to_f(m, iadd(m, ishl(m, to_i(m, t), 23), to_i(m, fc(m, 1.0))));
  V e = fma_(m, p, s, fsub(m, s, fc(m, 1.0)));
  return copysign_(m, fdiv(m, e, fadd(m, e, fc(m, 2.0))), x);
}

static V emit_erf(math m, V x) {
  V a = fabs_(m, x), s = fmul(m, x, x);
  static const double near[] = {-5.96761703e-4, 4.99119423e-3,  -2.67681349e-2,
                                1.12819925e-1,  -3.76125336e-1, 1.28379166e-1};
  V small = fma_(m, poly(m, s, near, 6), x, x);
  // 1 - exp(polynomial of |x|); from 4 on it is 1.
  V t = sel(m, fcmp(m, LLVMRealOGT, a, fc(m, 4.0)), fc(m, 4.0), a);
  V q = fmul(m, t, t);
  V r = fma_(m, fc(m, -1.72853470e-5), t, fc(m, 3.83197126e-4));
  V u = fma_(m, fc(m, -3.88396438e-3), t, fc(m, 2.42546219e-2));
  r = fma_(m, r, q, u);
  r = fma_(m, r, t, fc(m, -1.06777877e-1));
  r = fma_(m, r, t, fc(m, -6.34846687e-1));
  r = fma_(m, r, t, fc(m, -1.28717512e-1));
  r = fma_(m, r, t, fneg(m, t));
  V large = copysign_(m, fsub(m, fc(m, 1.0), call_math(m, "exp", r)), x);
  V y = sel(m, fcmp(m, LLVMRealOGT, a, fc(m, 0.927734375)), large, small);
  return sel(m, fcmp(m, LLVMRealUNO, x, x), x, y);
}

// quarter 0: sin, 1: cos.
static V circle(math m, V x, int quarter) {
  V t = fma_(m, x, fc(m, 0.63661977236758134), fc(m, ROUND));
  V n = fsub(m, t, fc(m, ROUND));
  V r = fma_(m, n, fc(m, -1.5703125), x);
  r = fma_(m, n, fc(m, -4.837512969970703125e-4), r);
  r = fma_(m, n, fc(m, -7.54953362047672271729e-8), r);
  r = fma_(m, n, fc(m, -2.5632829192545e-12), r);
  V z = fmul(m, r, r);
  static const double sc[] = {-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1};
  static const double cc[] = {2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2};
  V sine = fma_(m, fmul(m, poly(m, z, sc, 3), z), r, r);
  V cosine = fma_(m, poly(m, z, cc, 3), fmul(m, z, z), fma_(m, z, fc(m, -0.5), fc(m, 1.0)));
  V q = iadd(m, isub(m, to_i(m, t), to_i(m, fc(m, ROUND))), ic(m, quarter));
  V odd = LLVMBuildICmp(m.h->b, LLVMIntNE, iand(m, q, ic(m, 1)), ic(m, 0), "");
  V y = sel(m, odd, cosine, sine);
  return to_f(m, ixor(m, to_i(m, y), ishl(m, iand(m, q, ic(m, 2)), 30)));
}

static V emit_sin(math m, V x) { return circle(m, x, 0); }
static V emit_cos(math m, V x) { return circle(m, x, 1); }

// ---- pow, in f64 -------------------------------------------------------------------------------

static LLVMTypeRef f64_type(math m) {
  LLVMTypeRef d = LLVMDoubleTypeInContext(m.h->context);
  return m.lanes == 1 ? d : LLVMVectorType(d, (unsigned)m.lanes);
}
static V dc(math m, double c) {
  return h_splat(m.h, LLVMConstReal(LLVMDoubleTypeInContext(m.h->context), c), m.lanes);
}
static V lc(math m, int64_t c) { return h_splat(m.h, h_i64(m.h, c), m.lanes); }
static V dpoly(math m, V x, const double *c, int n) {
  V y = dc(m, c[0]);
  for (int i = 1; i < n; i++) y = fma_(m, y, x, dc(m, c[i]));
  return y;
}

static V emit_pow(math m, V a, V b) {
  LLVMBuilderRef lb = m.h->b;
  LLVMTypeRef i64 = h_type(m.h, K_I64, m.lanes);
  V ax = fabs_(m, a);
  // log |a| in f64 (a denormal f32 is a normal f64): exponent and atanh series.
  V u = LLVMBuildBitCast(lb, LLVMBuildFPExt(lb, ax, f64_type(m), ""), i64, "");
  V e = LLVMBuildAShr(lb, LLVMBuildSub(lb, u, lc(m, 0x3fe6a09e667f3bcd), ""), lc(m, 52), "");
  V f = LLVMBuildBitCast(lb, LLVMBuildSub(lb, u, LLVMBuildShl(lb, e, lc(m, 52), ""), ""),
                         f64_type(m), "");
  V s = fdiv(m, fsub(m, f, dc(m, 1)), fadd(m, f, dc(m, 1))), z = fmul(m, s, s);
  static const double lcoef[] = {2.0 / 15, 2.0 / 13, 2.0 / 11, 2.0 / 9,
                                 2.0 / 7,  2.0 / 5,  2.0 / 3,  2.0};
  V n32 = LLVMBuildTrunc(lb, e, h_type(m.h, K_I32, m.lanes), "");
  V en = LLVMBuildSIToFP(lb, n32, f64_type(m), "");
  V lg = fma_(m, en, dc(m, 0.693147180559945309), fmul(m, dpoly(m, z, lcoef, 8), s));
  lg = sel(m, fcmp(m, LLVMRealOEQ, ax, fc(m, __builtin_inf())), dc(m, 1e5), lg);
  lg = sel(m, fcmp(m, LLVMRealOEQ, ax, fc(m, 0.0)), dc(m, -1e5), lg);
  // exp of the product; the clamp keeps 0 and infinity, and compares let NaN through.
  V y = fmul(m, lg, LLVMBuildFPExt(lb, b, f64_type(m), ""));
  y = sel(m, fcmp(m, LLVMRealOLT, y, dc(m, -110)), dc(m, -110), y);
  y = sel(m, fcmp(m, LLVMRealOGT, y, dc(m, 100)), dc(m, 100), y);
  V t = fma_(m, y, dc(m, 1.4426950408889634), dc(m, 0x1.8p52));
  V n = fsub(m, t, dc(m, 0x1.8p52));
  V r = fma_(m, n, dc(m, -0.693147180559945309), y);
  static const double ecoef[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                 1.0 / 5040,     1.0 / 720,     1.0 / 120,    1.0 / 24,
                                 1.0 / 6,        0.5,           1.0,          1.0};
  V p = dpoly(m, r, ecoef, 12);
  V i = LLVMBuildSub(lb, LLVMBuildBitCast(lb, t, i64, ""),
                     LLVMBuildBitCast(lb, dc(m, 0x1.8p52), i64, ""), "");
  V scale = LLVMBuildBitCast(
      lb, LLVMBuildShl(lb, LLVMBuildAdd(lb, i, lc(m, 1023), ""), lc(m, 52), ""), f64_type(m), "");
  V w = LLVMBuildFPTrunc(lb, fmul(m, p, scale), h_type(m.h, K_F32, m.lanes), "");
  // A negative base: whole exponents keep or drop the sign, others have no value.
  V whole = fcmp(m, LLVMRealOEQ, unary(m, "llvm.floor", b), b);
  V halved = fmul(m, b, fc(m, 0.5));
  V odd = LLVMBuildAnd(lb, whole, fcmp(m, LLVMRealONE, unary(m, "llvm.floor", halved), halved), "");
  V neg = LLVMBuildICmp(lb, LLVMIntSLT, to_i(m, a), ic(m, 0), "");
  w = sel(m, LLVMBuildAnd(lb, neg, odd, ""), fneg(m, w), w);
  V below = fcmp(m, LLVMRealOLT, a, fc(m, 0.0));
  w = sel(m, LLVMBuildAnd(lb, below, LLVMBuildNot(lb, whole, ""), ""), fc(m, __builtin_nan("")), w);
  w = sel(m, fcmp(m, LLVMRealUNO, a, b), fadd(m, a, b), w);
  V one =
      LLVMBuildOr(lb, fcmp(m, LLVMRealOEQ, b, fc(m, 0.0)), fcmp(m, LLVMRealOEQ, a, fc(m, 1.0)), "");
  return sel(m, one, fc(m, 1.0), w);
}

// ---- helpers in the module ---------------------------------------------------------------------

typedef struct math_row {
  const char *name;
  V (*emit)(math m, V x);
} math_row;

static const math_row math_table[] = {
    {"exp", emit_exp}, {"log", emit_log}, {"tanh", emit_tanh},
    {"erf", emit_erf}, {"sin", emit_sin}, {"cos", emit_cos},
};

// Makes (once) and calls dsm.<name>.<lanes>.
static V call_helper(math m, const char *name, V *args, int nargs) {
  host *h = m.h;
  char symbol[32];
  LLVMTypeRef f = h_type(h, K_F32, m.lanes), type = NULL, params[] = {f, f};
  snprintf(symbol, sizeof symbol, "dsm.%s.%d", name, m.lanes);
  V fn = h_helper(h, symbol, &type);
  if (!fn) {
    type = LLVMFunctionType(f, params, (unsigned)nargs, 0);
    fn = h_new_helper(h, symbol, type);
    LLVMBasicBlockRef here = LLVMGetInsertBlock(h->b);
    LLVMPositionBuilderAtEnd(h->b, LLVMAppendBasicBlockInContext(h->context, fn, ""));
    V r = NULL;
    if (nargs == 2) r = emit_pow(m, LLVMGetParam(fn, 0), LLVMGetParam(fn, 1));
    for (size_t i = 0; !r && i < sizeof math_table / sizeof *math_table; i++)
      if (str_eq(math_table[i].name, name)) r = math_table[i].emit(m, LLVMGetParam(fn, 0));
    LLVMBuildRet(h->b, r);
    LLVMPositionBuilderAtEnd(h->b, here);
  }
  return LLVMBuildCall2(h->b, type, fn, args, (unsigned)nargs, "");
}

static V call_math(math m, const char *name, V x) { return call_helper(m, name, &x, 1); }

V h_fma(host *h, V a, V b, V c) {
  LLVMTypeRef t = LLVMTypeOf(a);
  V args[] = {a, b, c};
  return h_intrinsic(h, "llvm.fma", &t, 1, args, 3);
}

// ---- casts -------------------------------------------------------------------------------------

V h_cast(host *h, V v, k_type from, k_type to, int lanes) {
  LLVMTypeRef t = h_type(h, to, lanes);
  if (from == to) return v;
  switch (to) {
    case K_F32:
      return from == K_BOOL ? LLVMBuildUIToFP(h->b, v, t, "") : LLVMBuildSIToFP(h->b, v, t, "");
    case K_BOOL:
      if (from == K_F32)
        return LLVMBuildFCmp(h->b, LLVMRealUNE, v, h_number(h, K_F32, lanes, 0), "");
      return LLVMBuildICmp(h->b, LLVMIntNE, v, LLVMConstNull(LLVMTypeOf(v)), "");
    default:
      if (from == K_F32) {
        LLVMTypeRef types[] = {t, LLVMTypeOf(v)};
        return h_intrinsic(h, "llvm.fptosi.sat", types, 2, &v, 1);
      }
      if (from == K_BOOL) return LLVMBuildZExt(h->b, v, t, "");
      return to == K_I64 ? LLVMBuildSExt(h->b, v, t, "") : LLVMBuildTrunc(h->b, v, t, "");
  }
}

// ---- random draws: the arithmetic of runtime/base/random.c -------------------------------------

typedef struct ints {
  host *h;
  k_type t;
  int lanes;
} ints;
// h_number goes through double, which does not hold 64 bits.
static V whole(ints w, uint64_t v) {
  return h_splat(w.h, LLVMConstInt(h_type(w.h, w.t, 1), v, 0), w.lanes);
}
static V xor_shift(ints w, V z, uint64_t n) {
  return LLVMBuildXor(w.h->b, z, LLVMBuildLShr(w.h->b, z, whole(w, n), ""), "");
}
static V times(ints w, V z, uint64_t by) { return LLVMBuildMul(w.h->b, z, whole(w, by), ""); }

static V splitmix64(ints w, V z) {
  z = LLVMBuildAdd(w.h->b, z, whole(w, 0x9E3779B97F4A7C15u), "");
  z = times(w, xor_shift(w, z, 30), 0xBF58476D1CE4E5B9u);
  z = times(w, xor_shift(w, z, 27), 0x94D049BB133111EBu);
  return xor_shift(w, z, 31);
}

static V mix32(ints w, V z) {
  z = times(w, xor_shift(w, z, 16), 0x7FEB352Du);
  z = times(w, xor_shift(w, z, 15), 0x846CA68Bu);
  return xor_shift(w, z, 16);
}

V h_key(host *h, int64_t op_key, int lanes, V sample) {
  ints w = {h, K_I64, lanes};
  V part[] = {h_splat(h, h->call[K_SEED], lanes), h_splat(h, h->call[K_STEP], lanes),
              whole(w, (uint64_t)op_key), h_splat(h, h->call[K_LAYER], lanes), sample};
  V z = whole(w, 0);
  for (int i = 0; i < 5; i++) z = splitmix64(w, LLVMBuildXor(h->b, z, part[i], ""));
  return z;
}

V h_draw(host *h, uint32_t below, k_type index_type, int lanes, V key, V index) {
  ints w = {h, K_I32, lanes}, w64 = {h, K_I64, lanes};
  LLVMTypeRef i32 = h_type(h, K_I32, lanes);
  V k0 = LLVMBuildTrunc(h->b, key, i32, "");
  V k1 = LLVMBuildTrunc(h->b, LLVMBuildLShr(h->b, key, whole(w64, 32), ""), i32, "");
  V x = index_type == K_I64 ? LLVMBuildTrunc(h->b, index, i32, "") : index;
  V z = LLVMBuildAdd(h->b, mix32(w, LLVMBuildXor(h->b, x, k0, "")), k1, "");
  if (index_type == K_I64) {
    V y = LLVMBuildTrunc(h->b, LLVMBuildLShr(h->b, index, whole(w64, 32), ""), i32, "");
    z = LLVMBuildAdd(h->b, z, times(w, y, 0x9E3779B9u), "");
  }
  return LLVMBuildICmp(h->b, LLVMIntUGE, mix32(w, z), whole(w, below), "");
}

// ---- scalar rows of the op table ---------------------------------------------------------------

// Rounded down; division by 0 gives 0 and by -1 negates, because the processor traps on both.
static V int_floordiv(host *h, V a, V b) {
  LLVMTypeRef t = LLVMTypeOf(a);
  V zero = LLVMConstNull(t), ones = LLVMConstAllOnes(t);
  int64_t c = LLVMIsConstant(b) && LLVMIsAConstantInt(b) ? LLVMConstIntGetSExtValue(b) : 0;
  V safe = b, by0 = NULL, by1 = NULL;
  if (c < 1) {
    by0 = LLVMBuildICmp(h->b, LLVMIntEQ, b, zero, "");
    by1 = LLVMBuildICmp(h->b, LLVMIntEQ, b, ones, "");
    V one = LLVMBuildSub(h->b, zero, ones, "");
    safe = LLVMBuildSelect(h->b, LLVMBuildOr(h->b, by0, by1, ""), one, b, "");
  }
  V q = LLVMBuildSDiv(h->b, a, safe, "");
  V rest = LLVMBuildSub(h->b, a, LLVMBuildMul(h->b, q, safe, ""), "");
  V differ = LLVMBuildICmp(h->b, LLVMIntSLT, LLVMBuildXor(h->b, rest, safe, ""), zero, "");
  V inexact = LLVMBuildICmp(h->b, LLVMIntNE, rest, zero, "");
  V down = LLVMBuildAnd(h->b, differ, inexact, "");
  q = LLVMBuildSelect(h->b, down, LLVMBuildAdd(h->b, q, ones, ""), q, "");
  if (by1) q = LLVMBuildSelect(h->b, by1, LLVMBuildSub(h->b, zero, a, ""), q, "");
  if (by0) q = LLVMBuildSelect(h->b, by0, zero, q, "");
  return q;
}

static V compare(host *h, LLVMRealPredicate f, LLVMIntPredicate i, bool real, V a, V b) {
  return real ? LLVMBuildFCmp(h->b, f, a, b, "") : LLVMBuildICmp(h->b, i, a, b, "");
}

static V real_scalar(host *h, ir_opcode op, math m, V a, V b) {
  switch (op) {
    case IR_add: return fadd(m, a, b);
    case IR_sub: return fsub(m, a, b);
    case IR_mul: return fmul(m, a, b);
    case IR_div: return fdiv(m, a, b);
    case IR_floordiv: return unary(m, "llvm.floor", fdiv(m, a, b));
    case IR_mod: return fma_(m, fneg(m, b), unary(m, "llvm.floor", fdiv(m, a, b)), a);
    case IR_pow: {
      V args[] = {a, b};
      return call_helper(m, "pow", args, 2);
    }
    case IR_neg: return fneg(m, a);
    case IR_abs: return fabs_(m, a);
    case IR_floor: return unary(m, "llvm.floor", a);
    case IR_sqrt: return unary(m, "llvm.sqrt", a);
    case IR_rsqrt: return fdiv(m, fc(m, 1.0), unary(m, "llvm.sqrt", a));
    case IR_exp:
    case IR_log:
    case IR_tanh:
    case IR_erf:
    case IR_sin:
    case IR_cos: return call_math(m, ir_info(op)->name, a);
    default: IR_BUG("no lowering of %s", ir_info(op)->name);
  }
  (void)h;
}

static V int_scalar(host *h, ir_opcode op, math m, V a, V b) {
  V zero = LLVMConstNull(LLVMTypeOf(a));
  switch (op) {
    case IR_add: return iadd(m, a, b);
    case IR_sub: return isub(m, a, b);
    case IR_mul: return LLVMBuildMul(h->b, a, b, "");
    case IR_floordiv: return int_floordiv(h, a, b);
    case IR_mod: return isub(m, a, LLVMBuildMul(h->b, b, int_floordiv(h, a, b), ""));
    case IR_neg: return isub(m, zero, a);
    case IR_abs:
      return LLVMBuildSelect(h->b, LLVMBuildICmp(h->b, LLVMIntSLT, a, zero, ""), isub(m, zero, a),
                             a, "");
    default: IR_BUG("no lowering of %s on integers", ir_info(op)->name);
  }
}

V h_scalar(host *h, ir_opcode op, k_type operand, int lanes, V a, V b, V c) {
  math m = {h, lanes};
  bool real = operand == K_F32;
  switch (op) {
    case IR_lt: return compare(h, LLVMRealOLT, LLVMIntSLT, real, a, b);
    case IR_le: return compare(h, LLVMRealOLE, LLVMIntSLE, real, a, b);
    case IR_gt: return compare(h, LLVMRealOGT, LLVMIntSGT, real, a, b);
    case IR_ge: return compare(h, LLVMRealOGE, LLVMIntSGE, real, a, b);
    case IR_eq: return compare(h, LLVMRealOEQ, LLVMIntEQ, real, a, b);
    case IR_ne: return compare(h, LLVMRealUNE, LLVMIntNE, real, a, b);
    case IR_and: return iand(m, a, b);
    case IR_or: return ior(m, a, b);
    case IR_not: return LLVMBuildNot(h->b, a, "");
    case IR_where: return sel(m, a, b, c);
    case IR_max: return sel(m, compare(h, LLVMRealOGT, LLVMIntSGT, real, a, b), a, b);
    case IR_min: return sel(m, compare(h, LLVMRealOLT, LLVMIntSLT, real, a, b), a, b);
    default: return real ? real_scalar(h, op, m, a, b) : int_scalar(h, op, m, a, b);
  }
}
