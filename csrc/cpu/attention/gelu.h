// GELU and its slope on vectors.
#pragma once

#include "cpu/exp2.h"
#include "normal_cdf.h"

namespace genhoi::cpu {
namespace {

// GELU(u) = u Phi(u) and its slope Phi(u) + u phi(u), together: both need exp(-u^2 / 2).
struct Gelu {
  Vec value, slope;
  explicit Gelu(Vec u) {
    constexpr NormalCdfFit kFit;
    const Vec magnitude = u < Vec{} ? -u : u;
    const Vec t = splat(1.f) / (splat(1.f) + magnitude * splat(kFit.slope));
    Vec p = splat(kFit.terms[0]);
#pragma GCC unroll 9
    for (int i = 1; i < NormalCdfFit::kTerms; i++) p = p * t + splat(kFit.terms[i]);
    const Vec density = exp2(u * u * splat(kMinusHalfLog2e));
    const Vec tail = splat(0.5f) * p * density;
    const Vec cdf = u < Vec{} ? tail : splat(1.f) - tail;
    value = u * cdf;
    slope = cdf + u * density * splat(kInverseSqrt2Pi);
  }
};

}  // namespace
}  // namespace genhoi::cpu
