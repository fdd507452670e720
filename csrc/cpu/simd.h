// Vectors, conversions and exp2, written once for every instruction set with the compiler's vector
// extension. Included only by kernels_*.cpp, each compiled with its own flags: everything is in an
// anonymous namespace (and the standard library's inline functions are avoided), so that the linker
// cannot keep the AVX-512 copy of a function and hand it to a CPU without AVX-512.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__x86_64__)
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
constexpr int kMaxDim = 256;                 // of a head
static_assert(kBlock % kPanel == 0 && kBlock % kTileRows == 0);

typedef float Vec __attribute__((vector_size(4 * kVector)));
typedef int32_t IntVec __attribute__((vector_size(4 * kVector)));
typedef uint32_t UIntVec __attribute__((vector_size(4 * kVector)));
typedef uint16_t ShortVec __attribute__((vector_size(2 * kVector)));
typedef float HalfVec __attribute__((vector_size(2 * kVector)));
typedef double DoubleVec __attribute__((vector_size(4 * kVector)));

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
// In place i what is in place from[i] of a and b, one behind the other; `from` is a constant to the
// compiler. Clang has no __builtin_shuffle, and makes a shuffle of the loop.
inline Vec permute(Vec a, Vec b, IntVec from) {
#if defined(__clang__)
  Vec y{};
  for (int i = 0; i < kVector; i++) y[i] = from[i] < kVector ? a[from[i]] : b[from[i] - kVector];
  return y;
#else
  return __builtin_shuffle(a, b, from);
#endif
}
// Halves are added to halves.
template <int kWidth = kVector / 2>
inline float sum(Vec v) {
  IntVec from;
  for (int i = 0; i < kVector; i++) from[i] = i ^ kWidth;
  v += permute(v, v, from);
  if constexpr (kWidth > 1) {
    return sum<kWidth / 2>(v);
  } else {
    return v[0];
  }
}
// Of 2 * kVector values those in even and in odd places, and back.
inline void deinterleave(Vec a, Vec b, Vec& even, Vec& odd) {
  IntVec from;
  for (int i = 0; i < kVector; i++) from[i] = 2 * i;
  even = permute(a, b, from);
  odd = permute(a, b, from + 1);
}
inline void interleave(Vec even, Vec odd, Vec& a, Vec& b) {
  IntVec from;
  for (int i = 0; i < kVector; i++) from[i] = i / 2 + i % 2 * kVector;
  a = permute(even, odd, from);
  b = permute(even, odd, from + kVector / 2);
}
inline float max(Vec v) {
  float m = v[0];
  for (int i = 1; i < kVector; i++) m = v[i] > m ? v[i] : m;
  return m;
}
// Whether any lane of a comparison's result holds.
inline bool any(IntVec mask) {
#if defined(__AVX512F__) && GENHOI_VECTOR_FLOATS == 16
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
  uint64_t words[kVector / 2], found = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (const uint64_t word : words) found |= word;
  return found != 0;
#endif
}

// Half a vector of floats, widened to a vector of doubles.
inline DoubleVec load_doubles(const float* p) {
  HalfVec v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, DoubleVec);
}
inline double sum(DoubleVec v) {
  double s = 0.;
  for (int i = 0; i < kVector / 2; i++) s += v[i];
  return s;
}

// Sums over a row, of x and of x y, in double.
inline double total(const float* x, int64_t n) {
  const int64_t whole = n / (kVector / 2) * (kVector / 2);
  DoubleVec sums{};
  for (int64_t i = 0; i < whole; i += kVector / 2) sums += load_doubles(x + i);
  double result = sum(sums);
  for (int64_t i = whole; i < n; i++) result += x[i];
  return result;
}
inline double dot(const float* x, const float* y, int64_t n) {
  const int64_t whole = n / (kVector / 2) * (kVector / 2);
  DoubleVec sums{};
  for (int64_t i = 0; i < whole; i += kVector / 2) {
    sums += load_doubles(x + i) * load_doubles(y + i);
  }
  double result = sum(sums);
  for (int64_t i = whole; i < n; i++) result += static_cast<double>(x[i]) * y[i];
  return result;
}

// Polynomials for 2^f, |f| <= 1/2, highest power first: Taylor's to degree 7 (5e-9, for float32),
// and one of degree 4 with the least relative error (4e-6, for results that are rounded to 8 bits).
struct Exact {
  static constexpr int kTerms = 8;
  static constexpr float kTerm[kTerms] = {
      1.52527338e-5f, 1.54035304e-4f, 1.33335581e-3f, 9.61812911e-3f,
      5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.f};
};
struct Coarse {
  static constexpr int kTerms = 5;
  static constexpr float kTerm[kTerms] = {9.57010128e-03f, 5.59178591e-02f, 2.40247443e-01f,
                                          6.93121791e-01f, 9.99999285e-01f};
};

// 2^x: the nearest integer goes to the exponent, the rest through the polynomial. Below 2^-126: 0
// (or, with AVX-512, the subnormal number); NaN stays NaN.
template <class Polynomial = Exact>
inline Vec exp2(Vec x) {
#if defined(__AVX512DQ__) && GENHOI_VECTOR_FLOATS == 16
  const Vec f = (Vec)_mm512_maskz_reduce_ps(0xffff, (__m512)x, 8);
#else
  const Vec magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
#endif
  Vec p = splat(Polynomial::kTerm[0]);
#pragma GCC unroll 8
  for (int i = 1; i < Polynomial::kTerms; i++) p = p * f + splat(Polynomial::kTerm[i]);
#if defined(__AVX512DQ__) && GENHOI_VECTOR_FLOATS == 16
  return (Vec)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)(x - f));
#else
  const IntVec bits = (IntVec)p + ((IntVec)shifted << 23);
  Vec result = (Vec)bits;
  result = x < splat(-126.f) ? splat(0.f) : result;
  result = x >= splat(128.f) ? splat(__builtin_inff()) : result;
  return x == x ? result : x;
#endif
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

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// What products read: float, or bfloat16 where the instruction set multiplies pairs of those.
struct BFloat16 {
  uint16_t bits;
};

// The bits of a vector rounded to bfloat16, in the low halves; to nearest even, NaN stays NaN.
inline IntVec bfloat16_bits(Vec x) {
  const UIntVec bits = (UIntVec)x;
  const UIntVec rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return x == x ? (IntVec)rounded : IntVec{} + 0x7fc0;
}

inline void store_bfloat16(uint16_t* to, Vec x) {
#if defined(__AVX512BF16__) && GENHOI_VECTOR_FLOATS == 16
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  const ShortVec low = __builtin_convertvector((UIntVec)bfloat16_bits(x), ShortVec);
  std::memcpy(to, &low, sizeof low);
#endif
}

// Two vectors rounded to bfloat16 (by the instruction as in store_bfloat16): neighbours (low,
// high).
inline IntVec bfloat16_pairs(Vec low, Vec high) {
#if defined(__AVX512BF16__) && GENHOI_VECTOR_FLOATS == 16
  typedef uint16_t WideShortVec __attribute__((vector_size(64)));
  WideShortVec from;
  for (int i = 0; i < 2 * kVector; i++) from[i] = static_cast<uint16_t>(i % 2 * kVector + i / 2);
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (IntVec)_mm512_permutexvar_epi16((__m512i)from, both);
#else
  return bfloat16_bits(low) | bfloat16_bits(high) << 16;
#endif
}
inline void store(BFloat16* to, Vec x) { store_bfloat16(&to->bits, x); }

inline Vec load_bfloat16(const uint16_t* from) {
#if defined(__AVX512F__) && GENHOI_VECTOR_FLOATS == 16
  // What compilers make of the lines below takes three instructions more.
  const __m256i low = _mm256_loadu_si256((const __m256i*)from);
  return (Vec)((UIntVec)_mm512_maskz_cvtepu16_epi32(0xffff, low) << 16);
#else
  ShortVec low;
  std::memcpy(&low, from, sizeof low);
  return (Vec)(__builtin_convertvector(low, UIntVec) << 16);
#endif
}

// A vector of half precision, to and from float; rounded to nearest even.
inline Vec load_float16(const uint16_t* from) {
#if defined(__AVX512F__) && GENHOI_VECTOR_FLOATS == 16
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__) && GENHOI_VECTOR_FLOATS == 8
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  Vec x{};
  for (int i = 0; i < kVector; i++) x[i] = from_float16(from[i]);
  return x;
#endif
}
inline void store_float16(uint16_t* to, Vec x) {
#if defined(__AVX512F__) && GENHOI_VECTOR_FLOATS == 16
  const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256((__m256i*)to, halves);
#elif defined(__F16C__) && GENHOI_VECTOR_FLOATS == 8
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kVector; i++) to[i] = to_float16(x[i]);
#endif
}

inline void prefetch(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

inline void load_row(const void* from, DType dtype, int64_t n, float* to) {
  const uint16_t* half = static_cast<const uint16_t*>(from);
  int64_t i = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, n * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (; i + kVector <= n; i += kVector) store(to + i, load_bfloat16(half + i));
    for (; i < n; i++) to[i] = from_bfloat16(half[i]);
  } else {
    for (; i + kVector <= n; i += kVector) store(to + i, load_float16(half + i));
    for (; i < n; i++) to[i] = from_float16(half[i]);
  }
}

inline void store_row(const float* from, DType dtype, int64_t n, void* to) {
  uint16_t* half = static_cast<uint16_t*>(to);
  int64_t i = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, n * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (; i + kVector <= n; i += kVector) store_bfloat16(half + i, load(from + i));
    for (; i < n; i++) half[i] = to_bfloat16(from[i]);
  } else {
    for (; i + kVector <= n; i += kVector) store_float16(half + i, load(from + i));
    for (; i < n; i++) half[i] = to_float16(from[i]);
  }
}

inline char* row_at(const Rows& x, DType dtype, int64_t b, int64_t i, int64_t h) {
  return static_cast<char*>(x.data) + (b * x.batch + i * x.row + h * x.head) * size_of(dtype);
}

// A short row: the last vector may overlap the one before.
inline void copy_floats(const float* from, int64_t n, float* to) {
  if (n < kVector) {
    std::memcpy(to, from, n * sizeof(float));
    return;
  }
  for (int64_t i = 0; i + kVector <= n; i += kVector) store(to + i, load(from + i));
  store(to + n - kVector, load(from + n - kVector));
}

// A token's row in the angle table of an axis.
inline int64_t place_of(const Rotation& rope, int64_t token, int64_t head, int axis) {
  return axis == 0 && rope.frame_is_head ? head : rope.index[3 * token + axis];
}

// The (cos, sin) of every pair of a token's row, one axis after the other: to[0 .. dim).
inline void load_angles(const Rotation& rope, int64_t token, int64_t head, float* to) {
  for (int a = 0; a < 3; a++) {
    const int64_t floats = 2 * rope.pairs[a];
    copy_floats(rope.axis[a] + place_of(rope, token, head, a) * floats, floats, to);
    to += floats;
  }
}

// Neighbours within each pair (x0, x1): (x1, x0); (x0, x0); (x1, x1).
enum class Pairs { kSwap, kFirst, kSecond };
template <Pairs kHow>
inline Vec shuffle_pairs(Vec x) {
  IntVec from;
  for (int i = 0; i < kVector; i++) {
    from[i] = kHow == Pairs::kSwap ? i ^ 1 : kHow == Pairs::kFirst ? i & ~1 : i | 1;
  }
  return permute(x, x, from);
}

// What `turn` multiplies the second product by: -1, 1, -1, ... or for the inverse rotation 1, -1,
// ...
inline Vec turning_signs(float sign) {
  Vec signs;
  for (int i = 0; i < kVector; i++) signs[i] = i % 2 ? sign : -sign;
  return signs;
}

// Pairs (re, im) turned by angles (cos, sin): (re cos - im sin, im cos + re sin).
inline Vec turn(Vec pairs, Vec angles, Vec signs) {
  const Vec swapped = shuffle_pairs<Pairs::kSwap>(pairs) * shuffle_pairs<Pairs::kSecond>(angles);
  return pairs * shuffle_pairs<Pairs::kFirst>(angles) + swapped * signs;
}

// Rotates the pairs of x[0 .. dim) in place by `angles`; sign -1 is the inverse.
inline void rotate(float* x, const float* angles, int64_t dim, float sign) {
  const Vec signs = turning_signs(sign);
  int64_t i = 0;
  for (; i + kVector <= dim; i += kVector) store(x + i, turn(load(x + i), load(angles + i), signs));
  for (; i < dim; i += 2) {
    const float re = x[i], im = x[i + 1], c = angles[i], s = sign * angles[i + 1];
    x[i] = re * c - im * s;
    x[i + 1] = im * c + re * s;
  }
}

// Owned, aligned to cache lines, not initialised.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    // A large one begins and ends with a huge page, so that none of it is handed out 4 KB at a
    // time.
    constexpr int64_t kHuge = int64_t{1} << 21;
    const int64_t wanted = max_of(size, 1) * static_cast<int64_t>(sizeof(T));
    const int64_t alignment = wanted < kHuge / 2 ? 64 : kHuge, bytes = round_up(wanted, alignment);
    void* p = nullptr;
    if (posix_memalign(&p, alignment, bytes) != 0) throw std::bad_alloc();
    prefer_huge_pages(p, bytes);
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
