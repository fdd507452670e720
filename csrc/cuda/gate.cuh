// The flow gate after the attention: logit = w2 . GELU(W1 LN(o) + b1) + b2 of each row, W1's
// product on the tensor cores. Rows and lanes as in keys.cuh.
#pragma once

#include "keys.cuh"
#include "launch.h"

namespace genhoi::cuda {

constexpr float kGateNormEps = 1e-5f;

// x Phi(x)
__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

__device__ __forceinline__ float sigmoid(float x) {
  return reciprocal_fast(1.0f + exp2_fast(-1.4426950408889634f * x));
}

// Of each row 1 / std and -mean / std. LN as o scale + shift, not as (o - mean) scale: the compiler
// would keep every difference from the variance, in registers that are not there.
template <int DIM>
__device__ __forceinline__ void statistics(float (&scale)[2][2], float (&shift)[2][2],
                                           const float (&o)[2][DIM / 8][4], int dim) {
  const float inverse = reciprocal_fast(dim);
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = 0.0f, squares = 0.0f;
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) sum += o[i][n][2 * r] + o[i][n][2 * r + 1];
      const float mean = row_sum(sum) * inverse;
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) {
        const float a = o[i][n][2 * r] - mean, b = o[i][n][2 * r + 1] - mean;
        if (n * 8 < dim) squares += a * a + b * b;
      }
      scale[i][r] = rsqrtf(row_sum(squares) * inverse + kGateNormEps);
      shift[i][r] = -mean * scale[i][r];
    }
  }
}

// LN's weights and biases next to each other at `norm`, zeros from `dim` on.
template <int DIM>
__device__ __forceinline__ void stage_norm(uint32_t norm, const GenhoiGate& gate, int dim) {
  const int at = threadIdx.x;
  if (at >= DIM) return;
  store_shared(norm + at * 8, at < dim ? gate.norm_weight[at] : 0.0f,
               at < dim ? gate.norm_bias[at] : 0.0f);
}

// LN(o) into the warp's own rows of `rows_tile`. In shared memory, as are LN's weights, because
// beside o there are no registers left for them.
template <class Half, int DIM>
__device__ __forceinline__ void normalise(uint32_t rows_tile, uint32_t norm,
                                          const float (&o)[2][DIM / 8][4], int dim) {
  float scale[2][2], shift[2][2];
  statistics<DIM>(scale, shift, o, dim);
  const RowWriter<DIM> writer(rows_tile, 1);
#pragma unroll
  for (int n = 0; n < DIM / 8; n++) {
    float w[4];  // of two columns: weight and bias in turn
    load_shared(w, norm + (n * 8 + 2 * (threadIdx.x % 4)) * 8);
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const int i = c / 2, r = c % 2;
      writer.put(i, r, n,
                 Half::pack(fmaf(fmaf(o[i][n][2 * r], scale[i][r], shift[i][r]), w[0], w[1]),
                            fmaf(fmaf(o[i][n][2 * r + 1], scale[i][r], shift[i][r]), w[2], w[3])));
    }
  }
}

// Logits of a warp's rows, in all four lanes of a row. rows_tile: shared memory for LN(o), each
// warp's rows its own; tile: for W1, DIM / 2 rows, and after kKeys rows for LN's weights.
template <class Half, int DIM>
__device__ __forceinline__ void gate_logits(float (&logits)[2][2], const float (&o)[2][DIM / 8][4],
                                            const GenhoiGate& gate, uint32_t rows_tile,
                                            uint32_t tile, int dim) {
  const int lane = threadIdx.x % 32, hidden = dim / 2;
  __syncthreads();  // the last keys and values are used
  const auto* fc1 = static_cast<const typename Half::Value*>(gate.fc1_weight);
  const TileCopy<DIM, kKeys, kThreads> copy(threadIdx.x);
  copy.template copy<true>(tile, fc1, dim, dim, hidden);
  copies_commit();
  const uint32_t norm = tile + kKeys * Tile<DIM>::kRowBytes;
  stage_norm<DIM>(norm, gate, dim);
  __syncthreads();
  normalise<Half, DIM>(rows_tile, norm, o, dim);
  copies_wait<0>();
  __syncthreads();
  const auto x = LaneTile<DIM>::left(rows_tile, threadIdx.x / 32 * kWarpRows);
  const auto weights = LaneTile<DIM>::right(tile);
  logits[0][0] = logits[0][1] = logits[1][0] = logits[1][1] = 0.0f;
#pragma unroll 1
  for (int n = 0; n < DIM / 32; n++) {
    float u[2][2][4] = {};
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      uint32_t w[4];
      load_matrices(w, weights.columns(step) + n * 16 * Tile<DIM>::kRowBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32_t a[4];
        load_matrices(a, x.columns(step) + i * 16 * Tile<DIM>::kRowBytes);
        Half::multiply(u[i][0], a, w[0], w[1]);
        Half::multiply(u[i][1], a, w[2], w[3]);
      }
    }
#pragma unroll
    for (int c = 0; c < 8; c++) {
      const int unit = n * 16 + c / 4 * 8 + 2 * (lane % 4) + c % 2;
      const float bias = unit < hidden ? gate.fc1_bias[unit] : 0.0f;
      const float weight = unit < hidden ? gate.fc2_weight[unit] : 0.0f;
      logits[0][c % 4 / 2] += gelu(u[0][c / 4][c % 4] + bias) * weight;
      logits[1][c % 4 / 2] += gelu(u[1][c / 4][c % 4] + bias) * weight;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int r = 0; r < 2; r++) logits[i][r] = row_sum(logits[i][r]) + gate.fc2_bias[0];
  }
}

}  // namespace genhoi::cuda
