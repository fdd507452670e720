// The fit of the normal distribution function Phi that the CPU's and the GPU's GELU share.
#pragma once

namespace genhoi {

// 2 Phi(-|u|) exp(u^2 / 2) as a polynomial in t = 1 / (1 + slope |u|): of all polynomials of this
// degree the one with the least relative error for |u| < 14, which is 5e-8. A function makes its
// own constexpr object of it, because device code cannot read arrays of the host's.
struct NormalCdfFit {
  static constexpr int kTerms = 9;
  float slope = 0.325f * 0.70710678118654752f;
  float terms[kTerms] = {
      -0.158139527f, 0.587833285f, -0.568460763f, 0.614742160f,   -0.0728278011f,
      0.241426930f,  0.170809418f, 0.184675500f,  -5.92748511e-5f};  // of t^8, t^7, ...
};

constexpr float kInverseSqrt2Pi = 0.39894228040143268f;   // phi(u) = kInverseSqrt2Pi exp(-u^2 / 2)
constexpr float kMinusHalfLog2e = -0.72134752044448170f;  // exp(-u^2 / 2) = 2^(kMinusHalfLog2e u^2)

}  // namespace genhoi
