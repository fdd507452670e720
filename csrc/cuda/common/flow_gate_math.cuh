// The scalar functions of the flow gate, for its forward and its backward pass.
#pragma once

#include "../../normal_cdf.h"
#include "ptx.cuh"

namespace genhoi::cuda {

constexpr float kGateNormEps = 1e-5f;  // of LN

__device__ __forceinline__ float sigmoid(float x) {
  return reciprocal_fast(1.0f + exp2_fast(-kLog2e * x));
}

// x Phi(x) as PyTorch computes it, with erf. The backward pass needs the slope of GELU beside its
// value, and gets both from normal_cdf with a single exponential.
__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

// Phi(u) as .x, exp(-u^2 / 2) as .y.
__device__ __forceinline__ float2 normal_cdf(float u) {
  constexpr NormalCdfFit fit;
  const float t = reciprocal_fast(fmaf(fabsf(u), fit.slope, 1.0f));
  float p = fmaf(t, fit.terms[0], fit.terms[1]);
  p = fmaf(p, t, fit.terms[2]);
  p = fmaf(p, t, fit.terms[3]);
  p = fmaf(p, t, fit.terms[4]);
  p = fmaf(p, t, fit.terms[5]);
  p = fmaf(p, t, fit.terms[6]);
  p = fmaf(p, t, fit.terms[7]);
  p = fmaf(p, t, fit.terms[8]);
  const float density = exp2_fast(u * u * kMinusHalfLog2e);
  const float tail = 0.5f * p * density;
  return {u < 0.0f ? tail : 1.0f - tail, density};
}

}  // namespace genhoi::cuda
