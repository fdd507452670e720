// 2^x, and the factors between logarithms.
#pragma once

#include "cpu/vec.h"

namespace genhoi::cpu {
namespace {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// Polynomials for 2^f, |f| <= 1/2, highest power first: Taylor's to degree 7 (5e-9, for float32),
// and one of degree 4 with the least relative error (4e-6, for results that are rounded to 8 bits).
struct Exact {
  static constexpr int kTerms = 8;
  static constexpr float kCoefficients[kTerms] = {
      1.52527338e-5f, 1.54035304e-4f, 1.33335581e-3f, 9.61812911e-3f,
      5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.f};
};
struct Coarse {
  static constexpr int kTerms = 5;
  static constexpr float kCoefficients[kTerms] = {9.57010128e-03f, 5.59178591e-02f, 2.40247443e-01f,
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
  Vec p = splat(Polynomial::kCoefficients[0]);
#pragma GCC unroll 8
  for (int i = 1; i < Polynomial::kTerms; i++) p = p * f + splat(Polynomial::kCoefficients[i]);
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

inline float exp2(float x) { return exp2(splat(x))[0]; }

}  // namespace
}  // namespace genhoi::cpu
