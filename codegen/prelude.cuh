// What every generated CUDA kernel begins with (codegen/cuda.h). It includes nothing.
//
// Two sections. The first is the machine: threads, memory, warps, tensor cores. With DSM_EMULATED
// defined it comes from tests/cuda_emu/emu.h instead, which runs the same kernels on a CPU and checks
// every access. The second, and all kernels, are the same text in both.
//
// Shared memory is one array of bytes; `at` are byte offsets in it. Vectors of N elements are aligned
// to their size, at most 16 bytes. Barriers, shuffles, votes, ldmatrix and mma are for all threads of
// the block (warp) together.
typedef signed char d_i8;
typedef unsigned char d_u8;
typedef short d_i16;
typedef unsigned short d_u16;
typedef unsigned int d_u32;
typedef long long d_i64;
typedef unsigned long long d_u64;

// Storage types that C++ has no name for. Arithmetic is never done on them.
struct d_bf16 {
  d_u16 bits;
};
struct d_f16 {
  d_u16 bits;
};
struct d_f8e4m3 {
  d_u8 bits;
};
struct d_f8e5m2 {
  d_u8 bits;
};

template <class T, int N>
struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) d_vec {
  T x[N];
};

// What a call of an entry is told, in device memory: a captured graph stays valid when it changes.
struct d_step {
  d_i64 sample0, step, past;
  d_u64 seed;
};

// The argument of a kernel: addresses of its buffers, the call, and the numbers that tell it from
// other launches of the same function (strides, extents; cuda_kernel.number in codegen/cuda.h). A
// kernel's field `sample0` is step->sample0 + sample.
template <int BUFFERS, int NUMBERS>
struct d_args {
  void *buffer[BUFFERS];
  const d_step *step;
  d_i64 layer, micro, sample;
  d_i64 number[NUMBERS > 0 ? NUMBERS : 1];
};

#ifndef DSM_EMULATED

#define D_FN __device__ __forceinline__
// D_ALONE: a block may have as many registers as it uses, though none fits beside it.
#ifdef D_ALONE
#define D_BOUNDS(threads) __launch_bounds__(threads, 1)
#else
#define D_BOUNDS(threads) __launch_bounds__(threads)
#endif
#define D_KERNEL(name, threads, buffers, numbers)     \
  extern "C" __global__ void D_BOUNDS(threads) name(  \
      const __grid_constant__ d_args<buffers, numbers> a)
#define D_TABLE __device__ const
#define D_UNROLL _Pragma("unroll")
#define D_NO_UNROLL _Pragma("unroll 1")

extern __shared__ __align__(128) unsigned char d_shared[];

D_FN int d_tid() { return (int)threadIdx.x; }
D_FN d_i64 d_block() { return (d_i64)blockIdx.x; }
// All threads of the block; what they wrote before it, to shared or global memory, is seen after it.
D_FN void d_barrier() { __syncthreads(); }
D_FN void d_warp_barrier() { __syncwarp(); }
D_FN float d_shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
D_FN int d_shuffle_xor(int v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
D_FN d_i64 d_shuffle_xor(d_i64 v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
D_FN bool d_any(bool v) { return __any_sync(0xffffffffu, v); }

D_FN d_u32 d_bits(float v) { return __float_as_uint(v); }
D_FN float d_real(d_u32 v) { return __uint_as_float(v); }
D_FN d_u64 d_bits(double v) { return (d_u64)__double_as_longlong(v); }
D_FN double d_real(d_u64 v) { return __longlong_as_double((d_i64)v); }
D_FN float d_fma(float x, float y, float z) { return __fmaf_rn(x, y, z); }
D_FN double d_fma(double x, double y, double z) { return __fma_rn(x, y, z); }
D_FN float d_sqrt(float v) { return __fsqrt_rn(v); }
D_FN float d_div(float x, float y) { return __fdiv_rn(x, y); }
D_FN double d_div(double x, double y) { return __ddiv_rn(x, y); }
D_FN float d_floor(float v) { return floorf(v); }
// Rounded to nearest, even, as the machine converts.
D_FN d_u16 d_half_bits(float v) {
  d_u16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
  return r;
}
D_FN float d_half_real(d_u16 v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
  return r;
}

template <int BYTES>
struct d_word;
template <>
struct d_word<1> {
  typedef d_u8 type;
};
template <>
struct d_word<2> {
  typedef d_u16 type;
};
template <>
struct d_word<4> {
  typedef d_u32 type;
};
template <>
struct d_word<8> {
  typedef uint2 type;
};
template <>
struct d_word<16> {
  typedef uint4 type;
};

// N elements at p in one access.
template <int N, class T>
D_FN d_vec<T, N> d_load(const T *p) {
  typedef typename d_word<sizeof(T) * N>::type word;
  union {
    word w;
    d_vec<T, N> v;
  } u;
  u.w = *reinterpret_cast<const word *>(p);
  return u.v;
}
template <class T, int N>
D_FN void d_store(T *p, d_vec<T, N> v) {
  typedef typename d_word<sizeof(T) * N>::type word;
  union {
    word w;
    d_vec<T, N> v;
  } u;
  u.v = v;
  *reinterpret_cast<word *>(p) = u.w;
}
// The same in shared memory.
template <class T, int N>
D_FN d_vec<T, N> d_shared_load(int at) {
  return d_load<N>(reinterpret_cast<const T *>(d_shared + at));
}
template <class T, int N>
D_FN void d_shared_store(int at, d_vec<T, N> v) {
  d_store(reinterpret_cast<T *>(d_shared + at), v);
}

// Copies 16 bytes from global to shared memory without waiting; d_copies_end closes a group of
// copies, d_copies_wait<n> waits until at most the n last groups are under way. Then a barrier.
D_FN void d_copy16(int at, const void *p) {
  d_u32 to = (d_u32)__cvta_generic_to_shared(d_shared + at);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(p) : "memory");
}
D_FN void d_copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS>
D_FN void d_copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane 8*j + i gives the address of row i of matrix j (16
// bytes, aligned). Lane l gets elements 2*(l % 4) and +1 of row l / 4 of matrix j in r[j]; turned:
// those of rows 2*(l % 4) and +1 in column l / 4.
D_FN void d_matrices(d_u32 (&r)[4], int at) {
  d_u32 from = (d_u32)__cvta_generic_to_shared(d_shared + at);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
D_FN void d_matrices_turned(d_u32 (&r)[4], int at) {
  d_u32 from = (d_u32)__cvta_generic_to_shared(d_shared + at);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
// c[16, 8] += a[16, 16] b[16, 8], a row by row and b column by column, in the fragments of
// mma.sync.m16n8k16: with g = lane / 4 and t = lane % 4,
//   a[0] = (g, 2t..), a[1] = (g+8, 2t..), a[2] = (g, 2t+8..), a[3] = (g+8, 2t+8..)
//   b[0] = (2t.., g), b[1] = (2t+8.., g);  c[0..1] = (g, 2t..), c[2..3] = (g+8, 2t..)
D_FN void d_mma(float *c, const d_u32 (&a)[4], d_u32 b0, d_u32 b1, d_bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
D_FN void d_mma(float *c, const d_u32 (&a)[4], d_u32 b0, d_u32 b1, d_f16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif  // DSM_EMULATED

// ---- ends of rows -------------------------------------------------------------------------------
// Whether N elements at p, of which `left` exist, can move in one access.
template <int N, class T>
D_FN bool d_whole(const T *p, d_i64 left) {
  return left >= N && (d_u64)p % (N * sizeof(T)) == 0;
}
// Of N elements at p the first `left` exist: at most N move, in one access where all do and the
// address is a multiple. What does not exist is read as zeros.
template <int N, class T>
D_FN d_vec<T, N> d_load_left(const T *p, d_i64 left) {
  d_vec<T, N> v = {};
  if (d_whole<N>(p, left)) {
    v = d_load<N>(p);
  } else {
    D_UNROLL for (int e = 0; e < N; e++) {
      if (e < left) v.x[e] = d_load<1>(p + e).x[0];
    }
  }
  return v;
}
template <class T, int N>
D_FN void d_store_left(T *p, d_i64 left, d_vec<T, N> v) {
  if (d_whole<N>(p, left)) {
    d_store(p, v);
  } else {
    D_UNROLL for (int e = 0; e < N; e++) {
      if (e < left) d_store(p + e, d_vec<T, 1>{{v.x[e]}});
    }
  }
}

// ---- storage types ------------------------------------------------------------------------------

D_FN float d_widen(float v) { return v; }
D_FN float d_widen(double v) { return (float)v; }
D_FN float d_widen(d_bf16 v) { return d_real((d_u32)v.bits << 16); }
D_FN float d_widen(d_f16 v) { return d_half_real(v.bits); }
D_FN int d_widen(int v) { return v; }
D_FN d_i64 d_widen(d_i64 v) { return v; }
D_FN int d_widen(d_i16 v) { return v; }
D_FN int d_widen(d_i8 v) { return v; }
D_FN int d_widen(d_u16 v) { return v; }
D_FN bool d_widen(bool v) { return v; }

// To storage type T, rounding to nearest, even.
template <class T>
D_FN T d_narrow(float v);
template <class T>
D_FN T d_narrow(int v) {
  return (T)v;
}
template <class T>
D_FN T d_narrow(d_i64 v) {
  return (T)v;
}
template <class T>
D_FN T d_narrow(bool v) {
  return (T)v;
}
template <>
D_FN float d_narrow<float>(float v) {
  return v;
}
template <>
D_FN double d_narrow<double>(float v) {
  return (double)v;
}
template <>
D_FN d_bf16 d_narrow<d_bf16>(float v) {
  d_u32 u = d_bits(v), r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  d_bf16 x = {(d_u16)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : r)};
  return x;
}
template <>
D_FN d_f16 d_narrow<d_f16>(float v) {
  d_f16 x = {d_half_bits(v)};
  return x;
}

// 8-bit floats with MAN bits of mantissa and exponent bias BIAS. INF: the bits of infinity, 0: none
// (then 0x7f is the only NaN).
template <int MAN, int BIAS, int INF>
D_FN float d_from_f8(d_u32 v) {
  d_u32 sign = (v & 0x80u) << 24, a = v & 0x7fu;
  d_u32 u = (a << (23 - MAN)) + ((127u - BIAS) << 23);
  if (a < 1u << MAN) {  // denormal: a * 2^(1 - BIAS - MAN)
    u = d_bits((float)(int)a * d_real((127u + 1u - BIAS - MAN) << 23));
  } else if (INF && a >= (d_u32)INF) {
    u = ((a & ((1u << MAN) - 1u)) << (23 - MAN)) | 0x7f800000u;
  } else if (!INF && a == 0x7fu) {
    u = 0x7fc00000u;
  }
  return d_real(u | sign);
}
template <int MAN, int BIAS, int OVER, int NAN_>
D_FN d_u8 d_to_f8(float v) {
  d_u32 u = d_bits(v), sign = (u >> 24) & 0x80u, a = u & 0x7fffffffu, r;
  const d_u32 least = (d_u32)(127 + 1 - BIAS) << 23;  // the smallest normal number
  if (a > 0x7f800000u) return (d_u8)(sign | (d_u32)NAN_);
  if (a < least) {
    // Adding a number whose last bit is worth the smallest denormal rounds to a multiple of it.
    float step = d_real((d_u32)(127 + 1 - BIAS - MAN + 23) << 23);
    r = d_bits(d_real(a) + step) - d_bits(step);
  } else {
    d_u32 odd = (a >> (23 - MAN)) & 1u;
    r = (a + ((1u << (22 - MAN)) - 1u) + odd) >> (23 - MAN);
    r -= (d_u32)(127 - BIAS) << MAN;
    if (r > (d_u32)OVER) r = (d_u32)OVER;
  }
  return (d_u8)(sign | r);
}
D_FN float d_widen(d_f8e4m3 v) { return d_from_f8<3, 7, 0>(v.bits); }
D_FN float d_widen(d_f8e5m2 v) { return d_from_f8<2, 15, 0x7c>(v.bits); }
template <>
D_FN d_f8e4m3 d_narrow<d_f8e4m3>(float v) {
  d_f8e4m3 x = {d_to_f8<3, 7, 0x7f, 0x7f>(v)};
  return x;
}
template <>
D_FN d_f8e5m2 d_narrow<d_f8e5m2>(float v) {
  d_f8e5m2 x = {d_to_f8<2, 15, 0x7c, 0x7e>(v)};
  return x;
}

// What v is after being stored as T and loaded again.
template <class T>
D_FN float d_round(float v) {
  return d_widen(d_narrow<T>(v));
}

// ---- conversions --------------------------------------------------------------------------------
// From a real number: truncated; NaN gives 0, what is out of range the nearest.

D_FN int d_to_i32(float v) {
  if (!(v == v)) return 0;
  if (v >= 2147483648.0f) return 2147483647;
  if (v <= -2147483648.0f) return -2147483647 - 1;
  return (int)v;
}
D_FN d_i64 d_to_i64(float v) {
  if (!(v == v)) return 0;
  if (v >= 9223372036854775808.0f) return 9223372036854775807ll;
  if (v <= -9223372036854775808.0f) return -9223372036854775807ll - 1;
  return (d_i64)v;
}

// ---- whole numbers ------------------------------------------------------------------------------

// Rounded down; division by 0 gives 0. What is out of range wraps round, as on the host.
template <class T>
D_FN T d_floordiv(T x, T y) {
  if (y == 0) return 0;
  if (y == -1) return (T)(0 - (d_u64)x);
  T q = x / y, rest = x - q * y;
  return rest != 0 && ((rest ^ y) < 0) ? q - 1 : q;
}
template <class T>
D_FN T d_mod(T x, T y) {
  return (T)((d_u64)x - (d_u64)y * (d_u64)d_floordiv(x, y));
}

// ---- rows of the op table that are no operators -------------------------------------------------
// d_NAME for each row of ir/ops.def, on all types that it takes; those of f32 alone are below.

template <class T>
D_FN T d_where(bool c, T x, T y) {
  return c ? x : y;
}
template <class T>
D_FN T d_max(T x, T y) {
  return x > y ? x : y;
}
template <class T>
D_FN T d_min(T x, T y) {
  return x < y ? x : y;
}
template <class T>
D_FN T d_neg(T x) {
  return -x;
}
template <class T>
D_FN T d_not(T x) {
  return ~x;
}
template <>
D_FN bool d_not<bool>(bool x) {
  return !x;
}
D_FN float d_floordiv(float x, float y) { return d_floor(d_div(x, y)); }
D_FN float d_mod(float x, float y) { return d_fma(-y, d_floordiv(x, y), x); }
D_FN int d_abs(int v) { return v < 0 ? -v : v; }
D_FN d_i64 d_abs(d_i64 v) { return v < 0 ? -v : v; }

// ---- functions of f32 ---------------------------------------------------------------------------
// The formulas of codegen/host_math.c step by step, so that both lowerings give the same bits.

D_FN float d_abs(float v) { return d_real(d_bits(v) & 0x7fffffffu); }
D_FN float d_copysign(float v, float sign) {
  return d_real((d_bits(v) & 0x7fffffffu) | (d_bits(sign) & 0x80000000u));
}
D_FN float d_rsqrt(float v) { return d_div(1.0f, d_sqrt(v)); }

#define D_ROUND 12582912.0f  // 1.5 * 2^23: adding it rounds to a whole number

D_FN float d_exp(float x) {
  float y = x < -105.0f ? -105.0f : x;
  y = y > 89.5f ? 89.5f : y;
  float t = d_fma(y, 1.4426950408889634f, D_ROUND), n = t - D_ROUND;
  float r = d_fma(n, -0.693359375f, y);
  r = d_fma(n, 2.12194440054690583e-4f, r);
  float p = 1.9875691500e-4f;
  p = d_fma(p, r, 1.3981999507e-3f);
  p = d_fma(p, r, 8.3334519073e-3f);
  p = d_fma(p, r, 4.1665795894e-2f);
  p = d_fma(p, r, 1.6666665459e-1f);
  p = d_fma(p, r, 5.0000001201e-1f);
  p = d_fma(p, r * r, r) + 1.0f;
  // 2^n in two factors, so that denormal results and the last power before infinity come out right.
  int i = (int)(d_bits(t) - d_bits(D_ROUND)), half = i >> 1;
  return p * d_real((d_u32)(half + 127) << 23) * d_real((d_u32)(i - half + 127) << 23);
}

D_FN float d_log(float x) {
  bool tiny = x < 1.17549435e-38f;
  d_u32 u = d_bits(tiny ? x * 8388608.0f : x);
  int e = (int)(u - 0x3f3504f3u) >> 23;
  float f = d_real(u - ((d_u32)e << 23)) - 1.0f, n = (float)e + (tiny ? -23.0f : 0.0f);
  float z = f * f, p = 7.0376836292e-2f;
  p = d_fma(p, f, -1.1514610310e-1f);
  p = d_fma(p, f, 1.1676998740e-1f);
  p = d_fma(p, f, -1.2420140846e-1f);
  p = d_fma(p, f, 1.4249322787e-1f);
  p = d_fma(p, f, -1.6668057665e-1f);
  p = d_fma(p, f, 2.0000714765e-1f);
  p = d_fma(p, f, -2.4999993993e-1f);
  p = d_fma(p, f, 3.3333331174e-1f);
  p = p * f * z;
  p = d_fma(n, -2.12194440e-4f, p);
  p = d_fma(z, -0.5f, p);
  float r = d_fma(n, 0.693359375f, f + p);
  if (d_bits(x) == 0x7f800000u) r = x;
  if (x == 0.0f) r = d_real(0xff800000u);
  return x >= 0.0f ? r : d_real(0x7fc00000u);
}

D_FN float d_tanh(float x) {
  float v = d_abs(x);
  v = v > 9.02f ? 9.02f : v;
  float t = d_fma(v, 2.8853900817779268f, D_ROUND), n = t - D_ROUND;
  float r = d_fma(n, -0.3466796875f, v);
  r = d_fma(n, 1.06097220272e-4f, r);
  float p = 8.8847903074e-2f;
  p = d_fma(p, r, 2.6773482613e-1f);
  p = d_fma(p, r, 6.6667529703e-1f);
  p = d_fma(p, r, 1.3333233752f);
  p = d_fma(p, r, 1.9999999249f);
  p = d_fma(p, r * r, r + r);
  float s = d_real((d_bits(t) << 23) + 0x3f800000u);
  float e = d_fma(p, s, s - 1.0f);
  return d_copysign(d_div(e, e + 2.0f), x);
}

D_FN float d_erf(float x) {
  float v = d_abs(x), s = x * x, p = -5.96761703e-4f;
  p = d_fma(p, s, 4.99119423e-3f);
  p = d_fma(p, s, -2.67681349e-2f);
  p = d_fma(p, s, 1.12819925e-1f);
  p = d_fma(p, s, -3.76125336e-1f);
  p = d_fma(p, s, 1.28379166e-1f);
  float small = d_fma(p, x, x);
  float t = v > 4.0f ? 4.0f : v, q = t * t;
  float r = d_fma(-1.72853470e-5f, t, 3.83197126e-4f), u = d_fma(-3.88396438e-3f, t, 2.42546219e-2f);
  r = d_fma(r, q, u);
  r = d_fma(r, t, -1.06777877e-1f);
  r = d_fma(r, t, -6.34846687e-1f);
  r = d_fma(r, t, -1.28717512e-1f);
  r = d_fma(r, t, -t);
  float y = v > 0.927734375f ? d_copysign(1.0f - d_exp(r), x) : small;
  return x == x ? y : x;
}

// quarter 0: sin, 1: cos
D_FN float d_circle(float x, int quarter) {
  float t = d_fma(x, 0.63661977236758134f, D_ROUND), n = t - D_ROUND;
  float r = d_fma(n, -1.5703125f, x);
  r = d_fma(n, -4.837512969970703125e-4f, r);
  r = d_fma(n, -7.54953362047672271729e-8f, r);
  r = d_fma(n, -2.5632829192545e-12f, r);
  float z = r * r, s = -1.9515295891e-4f, c = 2.443315711809948e-5f;
  s = d_fma(s, z, 8.3321608736e-3f);
  s = d_fma(s, z, -1.6666654611e-1f);
  c = d_fma(c, z, -1.388731625493765e-3f);
  c = d_fma(c, z, 4.166664568298827e-2f);
  float sine = d_fma(s * z, r, r), cosine = d_fma(c, z * z, d_fma(z, -0.5f, 1.0f));
  d_u32 q = d_bits(t) - d_bits(D_ROUND) + (d_u32)quarter;
  return d_real(d_bits(q & 1u ? cosine : sine) ^ ((q & 2u) << 30));
}
D_FN float d_sin(float x) { return d_circle(x, 0); }
D_FN float d_cos(float x) { return d_circle(x, 1); }

D_FN float d_pow(float x, float y) {
  float ax = d_abs(x);
  d_u64 u = d_bits((double)ax);
  d_i64 e = (d_i64)(u - 0x3fe6a09e667f3bcdull) >> 52;
  double f = d_real(u - ((d_u64)e << 52)), s = d_div(f - 1.0, f + 1.0), z = s * s;
  double p = 2.0 / 15;
  p = d_fma(p, z, 2.0 / 13);
  p = d_fma(p, z, 2.0 / 11);
  p = d_fma(p, z, 2.0 / 9);
  p = d_fma(p, z, 2.0 / 7);
  p = d_fma(p, z, 2.0 / 5);
  p = d_fma(p, z, 2.0 / 3);
  p = d_fma(p, z, 2.0);
  double lg = d_fma((double)(int)e, 0.693147180559945309, p * s);
  if (d_bits(ax) == 0x7f800000u) lg = 1e5;
  if (ax == 0.0f) lg = -1e5;
  double v = lg * (double)y;
  v = v < -110.0 ? -110.0 : v;
  v = v > 100.0 ? 100.0 : v;
  double t = d_fma(v, 1.4426950408889634, 6755399441055744.0), n = t - 6755399441055744.0;
  double r = d_fma(n, -0.693147180559945309, v);
  double q = 1.0 / 39916800;
  q = d_fma(q, r, 1.0 / 3628800);
  q = d_fma(q, r, 1.0 / 362880);
  q = d_fma(q, r, 1.0 / 40320);
  q = d_fma(q, r, 1.0 / 5040);
  q = d_fma(q, r, 1.0 / 720);
  q = d_fma(q, r, 1.0 / 120);
  q = d_fma(q, r, 1.0 / 24);
  q = d_fma(q, r, 1.0 / 6);
  q = d_fma(q, r, 0.5);
  q = d_fma(q, r, 1.0);
  q = d_fma(q, r, 1.0);
  d_i64 i = (d_i64)(d_bits(t) - d_bits(6755399441055744.0));
  float w = (float)(q * d_real((d_u64)(i + 1023) << 52));
  bool whole = d_floor(y) == y, odd = whole && d_floor(y * 0.5f) != y * 0.5f;
  if ((int)d_bits(x) < 0 && odd) w = -w;
  if (x < 0.0f && !whole) w = d_real(0x7fc00000u);
  if (!(x == x) || !(y == y)) w = x + y;
  return y == 0.0f || x == 1.0f ? 1.0f : w;
}

// ---- random draws (runtime/base/random.h) -------------------------------------------------------

D_FN d_u64 d_splitmix(d_u64 z) {
  z += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}
D_FN d_u32 d_mix(d_u32 z) {
  z = (z ^ (z >> 16)) * 0x7FEB352Du;
  z = (z ^ (z >> 15)) * 0x846CA68Bu;
  return z ^ (z >> 16);
}
D_FN d_i64 d_key(const d_step *now, d_i64 op, d_i64 layer, d_i64 sample) {
  d_u64 z = d_splitmix(now->seed);
  z = d_splitmix(z ^ (d_u64)now->step);
  z = d_splitmix(z ^ (d_u64)op);
  z = d_splitmix(z ^ (d_u64)layer);
  return (d_i64)d_splitmix(z ^ (d_u64)sample);
}
D_FN bool d_draw(d_u32 below, d_i64 key, int index) {
  d_u32 z = d_mix((d_u32)index ^ (d_u32)key) + (d_u32)((d_u64)key >> 32);
  return d_mix(z) >= below;
}
D_FN bool d_draw(d_u32 below, d_i64 key, d_i64 index) {
  d_u32 z = d_mix((d_u32)index ^ (d_u32)key) + (d_u32)((d_u64)key >> 32);
  z += (d_u32)((d_u64)index >> 32) * 0x9E3779B9u;
  return d_mix(z) >= below;
}
