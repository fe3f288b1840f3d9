// The machine of codegen/prelude.cuh on a CPU: the functions of its first section, each checked by
// the runner (emu_api.h says what is checked). Comes before the prelude (-include emu.h), so the
// prelude's types are only declared here; it includes no other header, that kernels compile
// quickly.
//
// Lines: __builtin_LINE() as a default argument is the line of the call. The runner tells by it
// whether threads came to the same place, and says it in messages. The compiler may copy code, so
// addresses of code would not do.
#ifndef DSM_EMU_H
#define DSM_EMU_H

template <class T, int N>
struct d_vec;
template <int BUFFERS, int NUMBERS>
struct d_args;
struct d_bf16;
struct d_f16;

// ---- what the runner gives (emu_run.h) ----------------------------------------------------------

extern "C" {
struct emu_kernel {  // as in emu_api.h
  const char *name;
  int threads, buffers, numbers;
  unsigned long long args_bytes;
  void (*body)(const void *args);
};

// The thread that runs now.
struct emu_here {
  int thread;
  long long block;
};
extern emu_here emu_now;

// The memory behind an access of `bytes` bytes, after the checks; does not return if one fails.
const void *emu_global_read(const void *p, int bytes, int line);
void *emu_global_write(void *p, int bytes, int line);
const void *emu_shared_read(int at, int bytes, int line);
void *emu_shared_write(int at, int bytes, int line);
void emu_copy16(int at, const void *p, int line);
void emu_copies_end();
void emu_copies_wait(int groups);

void emu_barrier(int line);
void emu_warp_barrier(int line);
// The value of lane (this lane xor mask).
unsigned long long emu_shuffle(unsigned long long v, int mask, int bytes, int line);
int emu_any(int v, int line);
void emu_matrices(unsigned *r, int at, int turned, int line);
void emu_mma(float *c, const unsigned *a, unsigned b0, unsigned b1, int half, int line);
// f16: to nearest, even, and back.
unsigned short emu_half_bits(float v);
float emu_half_real(unsigned short v);
}

// ---- the first section of the prelude -----------------------------------------------------------

#define D_FN static inline __attribute__((always_inline))
#define D_KERNEL(name, threads, buffers, numbers)                                                  \
  static void name##_body(const d_args<buffers, numbers> &a);                                      \
  static void name##_run(const void *args) {                                                       \
    name##_body(*static_cast<const d_args<buffers, numbers> *>(args));                             \
  }                                                                                                \
  extern "C" {                                                                                     \
  extern const emu_kernel name __attribute__((visibility("default")));                             \
  const emu_kernel name = {#name,     threads, buffers, numbers, sizeof(d_args<buffers, numbers>), \
                           name##_run};                                                            \
  }                                                                                                \
  static void name##_body(const d_args<buffers, numbers> &a)
#define D_TABLE const
#define D_UNROLL
#define D_NO_UNROLL

D_FN int d_tid() { return emu_now.thread; }
D_FN long long d_block() { return emu_now.block; }
D_FN void d_barrier(int line = __builtin_LINE()) { emu_barrier(line); }
D_FN void d_warp_barrier(int line = __builtin_LINE()) { emu_warp_barrier(line); }

D_FN unsigned d_bits(float v) {
  unsigned r;
  __builtin_memcpy(&r, &v, sizeof r);
  return r;
}
D_FN float d_real(unsigned v) {
  float r;
  __builtin_memcpy(&r, &v, sizeof r);
  return r;
}
D_FN unsigned long long d_bits(double v) {
  unsigned long long r;
  __builtin_memcpy(&r, &v, sizeof r);
  return r;
}
D_FN double d_real(unsigned long long v) {
  double r;
  __builtin_memcpy(&r, &v, sizeof r);
  return r;
}

D_FN float d_shuffle_xor(float v, int mask, int line = __builtin_LINE()) {
  return d_real((unsigned)emu_shuffle(d_bits(v), mask, 4, line));
}
D_FN int d_shuffle_xor(int v, int mask, int line = __builtin_LINE()) {
  return (int)(unsigned)emu_shuffle((unsigned)v, mask, 4, line);
}
D_FN long long d_shuffle_xor(long long v, int mask, int line = __builtin_LINE()) {
  return (long long)emu_shuffle((unsigned long long)v, mask, 8, line);
}
D_FN bool d_any(bool v, int line = __builtin_LINE()) { return emu_any(v, line) != 0; }

D_FN float d_fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
D_FN double d_fma(double x, double y, double z) { return __builtin_fma(x, y, z); }
D_FN float d_sqrt(float v) { return __builtin_sqrtf(v); }
D_FN __attribute__((no_sanitize("float-divide-by-zero"))) float d_div(float x, float y) {
  return x / y;
}
D_FN __attribute__((no_sanitize("float-divide-by-zero"))) double d_div(double x, double y) {
  return x / y;
}
D_FN float d_floor(float v) { return __builtin_floorf(v); }

D_FN unsigned short d_half_bits(float v) { return emu_half_bits(v); }
D_FN float d_half_real(unsigned short v) { return emu_half_real(v); }

template <int N, class T>
D_FN d_vec<T, N> d_load(const T *p, int line = __builtin_LINE()) {
  static_assert(sizeof(T) * N <= 16 && (sizeof(T) * N & (sizeof(T) * N - 1)) == 0, "one access");
  d_vec<T, N> v;
  __builtin_memcpy(&v, emu_global_read(p, sizeof v, line), sizeof v);
  return v;
}
template <class T, int N>
D_FN void d_store(T *p, d_vec<T, N> v, int line = __builtin_LINE()) {
  static_assert(sizeof(T) * N <= 16 && (sizeof(T) * N & (sizeof(T) * N - 1)) == 0, "one access");
  __builtin_memcpy(emu_global_write(p, sizeof v, line), &v, sizeof v);
}
template <class T, int N>
D_FN d_vec<T, N> d_shared_load(int at, int line = __builtin_LINE()) {
  static_assert(sizeof(T) * N <= 16 && (sizeof(T) * N & (sizeof(T) * N - 1)) == 0, "one access");
  d_vec<T, N> v;
  __builtin_memcpy(&v, emu_shared_read(at, sizeof v, line), sizeof v);
  return v;
}
template <class T, int N>
D_FN void d_shared_store(int at, d_vec<T, N> v, int line = __builtin_LINE()) {
  static_assert(sizeof(T) * N <= 16 && (sizeof(T) * N & (sizeof(T) * N - 1)) == 0, "one access");
  __builtin_memcpy(emu_shared_write(at, sizeof v, line), &v, sizeof v);
}

D_FN void d_copy16(int at, const void *p, int line = __builtin_LINE()) { emu_copy16(at, p, line); }
D_FN void d_copies_end() { emu_copies_end(); }
template <int GROUPS>
D_FN void d_copies_wait() {
  emu_copies_wait(GROUPS);
}

D_FN void d_matrices(unsigned (&r)[4], int at, int line = __builtin_LINE()) {
  emu_matrices(r, at, 0, line);
}
D_FN void d_matrices_turned(unsigned (&r)[4], int at, int line = __builtin_LINE()) {
  emu_matrices(r, at, 1, line);
}

template <class T>
struct emu_half;
template <>
struct emu_half<d_bf16> {
  enum { is = 0 };
};
template <>
struct emu_half<d_f16> {
  enum { is = 1 };
};
template <class T>
D_FN void d_mma(float *c, const unsigned (&a)[4], unsigned b0, unsigned b1, T,
                int line = __builtin_LINE()) {
  emu_mma(c, a, b0, b1, emu_half<T>::is, line);
}

#endif
