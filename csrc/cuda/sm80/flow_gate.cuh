// The flow gate in the forward epilogue: logit = w2 . GELU(W1 LN(o) + b1) + b2 of each row, W1's
// product on the tensor cores. Rows and lanes as in fragments.cuh.
#pragma once

#include "../common/element.cuh"
#include "../common/flow_gate_math.cuh"
#include "../common/store.cuh"
#include "traits.h"

namespace genhoi::cuda::sm80 {

// Computes of each row 1 / std and -mean / std. LN as o scale + shift, not as (o - mean) scale: the
// compiler would keep every difference from the variance, in registers that are not there.
template <int DIM>
__device__ __forceinline__ void compute_norm_statistics(float (&scale)[2][2], float (&shift)[2][2],
                                                        const float (&o)[2][DIM / 8][4], int dim) {
  const float inverse = reciprocal_fast(dim);
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = 0.0f, squares = 0.0f;
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) sum += o[i][n][2 * r] + o[i][n][2 * r + 1];
      const float mean = quad_sum(sum) * inverse;
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) {
        const float a = o[i][n][2 * r] - mean, b = o[i][n][2 * r + 1] - mean;
        if (n * 8 < dim) squares += a * a + b * b;
      }
      scale[i][r] = rsqrtf(quad_sum(squares) * inverse + kGateNormEps);
      shift[i][r] = -mean * scale[i][r];
    }
  }
}

// Stores LN's weights and biases next to each other at `norm`, zeros from `dim` on.
template <int DIM>
__device__ __forceinline__ void stage_norm_weights(uint32_t norm, const GenhoiGate& gate, int dim) {
  const int column = threadIdx.x;
  if (column >= DIM) return;
  store_smem(norm + column * 8, column < dim ? gate.norm_weight[column] : 0.0f,
             column < dim ? gate.norm_bias[column] : 0.0f);
}

// Stores LN(o) to the warp's own rows of `rows_tile`. In shared memory, as are LN's weights,
// because beside o there are no registers left for them.
template <class Element, int DIM>
__device__ __forceinline__ void apply_layer_norm(uint32_t rows_tile, uint32_t norm,
                                                 const float (&o)[2][DIM / 8][4], int dim) {
  float scale[2][2], shift[2][2];
  compute_norm_statistics<DIM>(scale, shift, o, dim);
  const FragmentWriter<DIM> writer(rows_tile, 1);
#pragma unroll
  for (int n = 0; n < DIM / 8; n++) {
    float w[4];  // of two columns: weight and bias in turn
    load_smem(w, norm + (n * 8 + 2 * (threadIdx.x % 4)) * 8);
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const int i = c / 2, r = c % 2;
      const float first = fmaf(fmaf(o[i][n][2 * r], scale[i][r], shift[i][r]), w[0], w[1]);
      const float second = fmaf(fmaf(o[i][n][2 * r + 1], scale[i][r], shift[i][r]), w[2], w[3]);
      writer.put(i, r, n, Element::pack(first, second));
    }
  }
}

// Computes the logits of a warp's rows, in all four lanes of a row. rows_tile: shared memory for
// LN(o), each warp's rows its own; tile: for W1, DIM / 2 rows, and after kKeys rows for LN's
// weights.
template <class Element, int DIM>
__device__ __forceinline__ void compute_gate_logits(float (&logits)[2][2],
                                                    const float (&o)[2][DIM / 8][4],
                                                    const GenhoiGate& gate, uint32_t rows_tile,
                                                    uint32_t tile, int dim) {
  using Traits = FwdTraits<DIM>;
  const int lane = threadIdx.x % 32, hidden = dim / 2;
  __syncthreads();  // the last keys and values are used
  const auto* fc1 = static_cast<const typename Element::Value*>(gate.fc1_weight);
  const TileCopy<DIM, Traits::kKeys, Traits::kThreads> copy(threadIdx.x);
  copy.template copy<true>(tile, fc1, dim, dim, hidden);
  cp_async_commit();
  const uint32_t norm = tile + Traits::kKeyBytes;
  stage_norm_weights<DIM>(norm, gate, dim);
  __syncthreads();
  apply_layer_norm<Element, DIM>(rows_tile, norm, o, dim);
  cp_async_wait<0>();
  __syncthreads();
  const auto x = OperandTile<DIM>::a(rows_tile, threadIdx.x / 32 * kWarpRows);
  const auto weights = OperandTile<DIM>::b(tile);
  logits[0][0] = logits[0][1] = logits[1][0] = logits[1][1] = 0.0f;
#pragma unroll 1
  for (int n = 0; n < DIM / 32; n++) {
    float u[2][2][4] = {};
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      uint32_t w[4];
      ldmatrix_x4(w, weights.columns(step) + n * 16 * SmemTile<DIM>::kRowBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32_t a[4];
        ldmatrix_x4(a, x.columns(step) + i * 16 * SmemTile<DIM>::kRowBytes);
        Element::mma(u[i][0], a, w[0], w[1]);
        Element::mma(u[i][1], a, w[2], w[3]);
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
    for (int r = 0; r < 2; r++) logits[i][r] = quad_sum(logits[i][r]) + gate.fc2_bias[0];
  }
}

// Stores the sum of the tile's gate logits, in a fixed order.
__device__ __forceinline__ void store_gate_sum(float* to, const float (&logits)[2][2], int start,
                                               int rows, float* scratch) {
  float sum = 0.0f;
#pragma unroll
  for (int at = 0; at < 4; at++) {
    if (start + row_in_tile(at / 2, at % 2) < rows) sum += logits[at / 2][at % 2];
  }
#pragma unroll
  for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  __syncthreads();  // W1 is used
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) *to = scratch[0] + scratch[1] + scratch[2] + scratch[3];
}

// Gates a tile's rows where each has its own gate, or stores the sum of its logits. memory: the
// block's shared memory.
template <class Element, int DIM>
__device__ __forceinline__ void apply_flow_gate(float (&o)[2][DIM / 8][4],
                                                const GenhoiForward& call, unsigned char* memory,
                                                int64_t head, int start) {
  using Traits = FwdTraits<DIM>;
  const GenhoiAttention& in = call.in;
  const uint32_t q_tile = smem_address(memory), k_tile = q_tile + Traits::kQueryBytes;
  float logits[2][2];
  compute_gate_logits<Element, DIM>(logits, o, in.gate, q_tile, k_tile, in.head_dim);
  if (in.gate_mode == GENHOI_GATE_SUM) {
    store_gate_sum(call.gate_sums + head * gridDim.x + blockIdx.x, logits, start, in.rows,
                   reinterpret_cast<float*>(memory + Traits::kQueryBytes));
  } else {
#pragma unroll
    for (int c = 0; c < DIM; c++) {
      o[c / (DIM / 2)][c % (DIM / 2) / 4][c % 4] *= sigmoid(logits[c / (DIM / 2)][c % 4 / 2]);
    }
  }
}

}  // namespace genhoi::cuda::sm80
