// Vectors, conversions and exp2, written once for every instruction set with the compiler's vector
// extension. Included only by kernels_*.cpp, each compiled with its own flags: everything is in an
// anonymous namespace (and the standard library's inline functions are avoided), so that the linker
// cannot keep the AVX-512 copy of a function and hand it to a CPU without AVX-512.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernels.h"

#ifndef GENHOI_VECTOR_FLOATS
#error "define GENHOI_VECTOR_FLOATS (floats in a vector) and GENHOI_TILE_ROWS before including"
#endif

namespace genhoi::cpu {
namespace {

constexpr int kVector = GENHOI_VECTOR_FLOATS;
constexpr int kPanel = 2 * kVector;          // columns of a register tile
constexpr int kTileRows = GENHOI_TILE_ROWS;  // rows of a register tile
constexpr int kBlock = 96;                   // rows or columns of a cache tile
static_assert(kBlock % kPanel == 0 && kBlock % kTileRows == 0);

typedef float Vec __attribute__((vector_size(4 * kVector)));
typedef int32_t IntVec __attribute__((vector_size(4 * kVector)));

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec splat(float x) { return x - Vec{}; }
inline float sum(Vec v) {
  float s = 0.f;
  for (int i = 0; i < kVector; i++) s += v[i];
  return s;
}
inline float max(Vec v) {
  float m = v[0];
  for (int i = 1; i < kVector; i++) m = v[i] > m ? v[i] : m;
  return m;
}

// 2^x to 1 ulp or so: round to the nearest integer by adding 1.5 * 2^23, Taylor to degree 7 on what
// is left (|f| <= 1/2: 5e-9), exponent added as an integer. Below 2^-126: 0; NaN stays NaN.
inline Vec exp2(Vec x) {
  const Vec magic = splat(12582912.f);
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  Vec p = splat(1.52527338e-5f);
  p = p * f + splat(1.54035304e-4f);
  p = p * f + splat(1.33335581e-3f);
  p = p * f + splat(9.61812911e-3f);
  p = p * f + splat(5.55041087e-2f);
  p = p * f + splat(2.40226507e-1f);
  p = p * f + splat(6.93147181e-1f);
  p = p * f + splat(1.f);
  const IntVec bits = (IntVec)p + ((IntVec)shifted << 23);
  Vec result = (Vec)bits;
  result = x < splat(-126.f) ? splat(0.f) : result;
  result = x >= splat(128.f) ? splat(__builtin_inff()) : result;
  return x == x ? result : x;
}
// A shift of logits in two parts, so that adding it loses nothing of a double's precision that a
// float result could show: an LSE of 20 in one float would put 1e-6 into every probability.
struct Shift {
  float high, low;
  Shift(double x) : high(static_cast<float>(x)), low(static_cast<float>(x - high)) {
    // Inf - Inf: an infinite shift is all in `high`.
    if (low != low && high == high) low = 0.f;
  }
};

inline float exp2(float x) { return exp2(splat(x))[0]; }

inline float from_bfloat16(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
// Round to nearest even; NaN stays NaN.
inline uint16_t to_bfloat16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(f == f ? rounded : 0x7fc0);
}

#if defined(__F16C__)
inline float from_float16(uint16_t h) { return _cvtsh_ss(h); }
inline uint16_t to_float16(float f) { return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT); }
#else
// Half precision in plain integers: shift the exponent by multiplying, let the FPU round.
inline float from_float16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  uint32_t bits = rest << 13;
  float f;
  std::memcpy(&f, &bits, 4);
  f *= 0x1p112f;
  std::memcpy(&bits, &f, 4);
  if (rest >= 0x7c00) bits |= 0x7f800000;  // Inf and NaN
  bits |= sign;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint16_t to_float16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds past 65504
  if (bits < 0x38800000) {  // subnormal half: units of 2^-24, rounded to even by the addition
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000));
  }
  const uint32_t rounded = bits + 0xfff + (bits >> 13 & 1) - (112u << 23);
  return static_cast<uint16_t>(sign | rounded >> 13);
}
#endif

inline int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

inline void load_row(const void* from, DType dtype, int64_t n, float* to) {
  const uint16_t* half = static_cast<const uint16_t*>(from);
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, n * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < n; i++) to[i] = from_bfloat16(half[i]);
  } else {
    for (int64_t i = 0; i < n; i++) to[i] = from_float16(half[i]);
  }
}

inline void store_row(const float* from, DType dtype, int64_t n, void* to) {
  uint16_t* half = static_cast<uint16_t*>(to);
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, n * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < n; i++) half[i] = to_bfloat16(from[i]);
  } else {
    for (int64_t i = 0; i < n; i++) half[i] = to_float16(from[i]);
  }
}

inline char* row_at(const Rows& x, DType dtype, int64_t b, int64_t i, int64_t h) {
  return static_cast<char*>(x.data) + (b * x.batch + i * x.row + h * x.head) * size_of(dtype);
}

// Rotates the interleaved pairs of x[0 .. dim) in place; sign -1 is the inverse rotation.
inline void rotate(float* x, const Rotation& rope, int64_t token, int64_t head, float sign) {
  for (int a = 0; a < 3; a++) {
    const int64_t pairs = rope.pairs[a];
    const int64_t at = a == 0 && rope.frame_is_head ? head : rope.index[3 * token + a];
    const float* table = rope.axis[a] + at * pairs * 2;
    for (int64_t i = 0; i < pairs; i++) {
      const float re = x[2 * i], im = x[2 * i + 1];
      const float c = table[2 * i], s = sign * table[2 * i + 1];
      x[2 * i] = re * c - im * s;
      x[2 * i + 1] = re * s + im * c;
    }
    x += 2 * pairs;
  }
}

// Owned, 64-byte aligned, not initialised.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    const int64_t bytes = round_up(max_of(size, 1) * static_cast<int64_t>(sizeof(T)), 64);
    void* p = nullptr;
    if (posix_memalign(&p, 64, bytes) != 0) throw std::bad_alloc();
    data_ = static_cast<T*>(p);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  operator T*() const { return data_; }

 private:
  T* data_;
};

// Hands out items one by one, so that uneven items share the threads evenly.
struct Queue {
  int64_t items;
  int64_t taken = 0;
  int64_t next() { return __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED); }
};

// worker(queue) runs once on each thread: it makes its scratch, then loops
// `for (int64_t i; (i = queue.next()) < queue.items;)`.
template <class Worker>
void parallel(const Pool& pool, int64_t items, const Worker& worker) {
  struct Context {
    Queue queue;
    const Worker* worker;
  } context{{items}, &worker};
  if (items == 0) return;
  pool.run(
      min_of(pool.threads, items),
      [](int64_t begin, int64_t end, void* p) {
        if (begin < end) (*static_cast<Context*>(p)->worker)(static_cast<Context*>(p)->queue);
      },
      &context);
}

}  // namespace
}  // namespace genhoi::cpu
