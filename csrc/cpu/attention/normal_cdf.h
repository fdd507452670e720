// The normal distribution function Phi on vectors, and GELU by it.
#pragma once

#include "cpu/exp2.h"

namespace genhoi::cpu {
namespace {

// GELU(u) = u Phi(u) and its slope Phi(u) + u phi(u), together: both need exp(-u^2 / 2).
struct Gelu {
  Vec value, slope;
  explicit Gelu(Vec u) {
    // Phi(-|u|) exp(u^2 / 2) * 2 as a polynomial in 1 / (1 + c |u|), highest power first: the least
    // relative error of its degree for |u| < 14 (5e-8).
    constexpr int kTerms = 9;
    constexpr float kCoefficients[kTerms] = {-0.158139527f, 0.587833285f,   -0.568460763f,
                                             0.614742160f,  -0.0728278011f, 0.241426930f,
                                             0.170809418f,  0.184675500f,   -5.92748511e-5f};
    const Vec magnitude = u < Vec{} ? -u : u;
    const Vec t = splat(1.f) / (splat(1.f) + magnitude * splat(0.325f * 0.70710678f));
    Vec p = splat(kCoefficients[0]);
#pragma GCC unroll 9
    for (int i = 1; i < kTerms; i++) p = p * t + splat(kCoefficients[i]);
    const Vec density = exp2(u * u * splat(static_cast<float>(-0.5 * kLog2e)));
    const Vec tail = splat(0.5f) * p * density;
    const Vec phi = u < Vec{} ? tail : splat(1.f) - tail;
    value = u * phi;
    slope = phi + u * density * splat(0.39894228f);
  }
};

}  // namespace
}  // namespace genhoi::cpu
