// Vectors of floats, written once for every instruction set with the compiler's vector extension:
// loading and storing them, moving their lanes, and reducing them to one value.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/config.h"

namespace genhoi::cpu {
namespace {

// kVector lanes each.
typedef float Vec __attribute__((vector_size(4 * kVector)));
typedef int32_t IntVec __attribute__((vector_size(4 * kVector)));
typedef uint32_t UIntVec __attribute__((vector_size(4 * kVector)));
typedef uint16_t ShortVec __attribute__((vector_size(2 * kVector)));
// kVector / 2 lanes each.
typedef float NarrowVec __attribute__((vector_size(2 * kVector)));
typedef double DoubleVec __attribute__((vector_size(4 * kVector)));

inline Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }
inline Vec splat(float x) { return x - Vec{}; }

// kVector / 2 floats, widened to doubles.
inline DoubleVec load_doubles(const float* from) {
  NarrowVec v;
  std::memcpy(&v, from, sizeof v);
  return __builtin_convertvector(v, DoubleVec);
}

// Lane i of the result is lane source[i] of a and b, one behind the other; `source` is a constant
// to the compiler. Clang has no __builtin_shuffle, and makes a shuffle of the loop.
inline Vec permute(Vec a, Vec b, IntVec source) {
#if defined(__clang__)
  Vec y{};
  for (int i = 0; i < kVector; i++) {
    y[i] = source[i] < kVector ? a[source[i]] : b[source[i] - kVector];
  }
  return y;
#else
  return __builtin_shuffle(a, b, source);
#endif
}

// Splits 2 * kVector values into those at even and those at odd places; interleave() is its
// inverse.
inline void deinterleave(Vec a, Vec b, Vec& even, Vec& odd) {
  IntVec source;
  for (int i = 0; i < kVector; i++) source[i] = 2 * i;
  even = permute(a, b, source);
  odd = permute(a, b, source + 1);
}
inline void interleave(Vec even, Vec odd, Vec& a, Vec& b) {
  IntVec source;
  for (int i = 0; i < kVector; i++) source[i] = i / 2 + i % 2 * kVector;
  a = permute(even, odd, source);
  b = permute(even, odd, source + kVector / 2);
}

// The sum of all lanes; lanes kWidth apart are added to each other first.
template <int kWidth = kVector / 2>
inline float sum(Vec v) {
  IntVec source;
  for (int i = 0; i < kVector; i++) source[i] = i ^ kWidth;
  v += permute(v, v, source);
  if constexpr (kWidth > 1) {
    return sum<kWidth / 2>(v);
  } else {
    return v[0];
  }
}

inline double sum(DoubleVec v) {
  double s = 0.;
  for (int i = 0; i < kVector / 2; i++) s += v[i];
  return s;
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
  uint64_t lanes[kVector / 2], set_bits = 0;
  std::memcpy(lanes, &mask, sizeof mask);
  for (const uint64_t two_lanes : lanes) set_bits |= two_lanes;
  return set_bits != 0;
#endif
}

}  // namespace
}  // namespace genhoi::cpu
