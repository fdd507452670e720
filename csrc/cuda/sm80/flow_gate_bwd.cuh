// Backward through the flow gate: docs/op.md, "Backward". dO, the gradient of the attention before
// the gate, delta = dO . O - dL, and sums that give the gradients of the gate's weights.
//
// A block takes a few tiles of 128 rows of one head, one after another, a warp 16 rows of each. The
// products are in TF32: gradients can be smaller than float16 holds. With n = LN(o) and x the row
// before LN's affine:
//
//     u = n W1^T + b1;  du = dlogit w2 GELU'(u)
//     dn = du W1;  dO = g dout + LN's gradient of dn
//     sums: dlogit, dlogit GELU(u), du and du x^T
//
// Fragments as in bwd_dkdv.cuh. TF32 products take 8 numbers of the inner dimension, of which lane
// l gives numbers l % 4 and l % 4 + 4: which are called so is free, if both operands agree. Here
// they are columns 2 (l % 4) and the next, as lanes hold them anyway.
#pragma once

#include "../common/element.cuh"
#include "../common/flow_gate_math.cuh"
#include "../common/key_range.cuh"
#include "../common/smem_tile.cuh"
#include "traits.h"

namespace genhoi::cuda::sm80 {

// Weights in shared memory, zeros from head_dim on, and each warp's sums of du and dlogit GELU(u).
template <int DIM>
struct GateWeights {
  float norm_weight[DIM], norm_bias[DIM], fc1_bias[DIM / 2], fc2_weight[DIM / 2];
};
template <int DIM>
struct GateSums {
  float fc1_bias[DIM / 2], fc2_weight[DIM / 2], fc2_bias;
};

// What a lane keeps of its rows l / 4 and l / 4 + 8.
struct GateRows {
  float mean[2], rstd[2], gate[2], dlogit[2];
};

// Loads what all tiles need.
template <class Element, int DIM>
__device__ __forceinline__ void load_weights(unsigned char* memory, const GenhoiGate& gate,
                                             int dim) {
  using Traits = FlowGateBwdTraits<DIM>;
  const auto* fc1 = static_cast<const typename Element::Value*>(gate.fc1_weight);
  for (int at = threadIdx.x; at < Traits::kHidden * DIM / kChunk; at += Traits::kThreads) {
    const int row = at / (DIM / kChunk), chunk = at % (DIM / kChunk);
    const bool in_bounds = row < dim / 2 && chunk * kChunk < dim;
    cp_async_16(SmemTile<DIM>::address(smem_address(memory), row, chunk),
                in_bounds ? fc1 + row * dim + chunk * kChunk : fc1, in_bounds);
  }
  cp_async_commit();
  auto& to = *reinterpret_cast<GateWeights<DIM>*>(memory + Traits::kVectors);
  for (int at = threadIdx.x; at < DIM; at += Traits::kThreads) {
    to.norm_weight[at] = at < dim ? gate.norm_weight[at] : 0.0f;
    to.norm_bias[at] = at < dim ? gate.norm_bias[at] : 0.0f;
    if (at >= DIM / 2) continue;
    to.fc1_bias[at] = at < dim / 2 ? gate.fc1_bias[at] : 0.0f;
    to.fc2_weight[at] = at < dim / 2 ? gate.fc2_weight[at] : 0.0f;
  }
  float* sums = reinterpret_cast<float*>(memory + Traits::kSums);
  for (int at = threadIdx.x; at < Traits::kWarps * (DIM + 1); at += Traits::kThreads)
    sums[at] = 0.0f;
}

// Loads a tile of O and of dout. The warp's rows of O stay in registers: columns 16 step and so on,
// as A operands of 16-bit products.
template <class Element, int DIM>
__device__ __forceinline__ void load_tile(uint32_t (&o)[DIM / 16][4], uint32_t memory,
                                          const GenhoiFlowGateBackward& call, int b, int h,
                                          int start) {
  using Traits = FlowGateBwdTraits<DIM>;
  using Value = typename Element::Value;
  const GenhoiTokens &from = call.out, &grad = call.dout;
  const TileCopy<DIM, Traits::kRows, Traits::kThreads> copy(threadIdx.x);
  const int rows = call.in.rows - start, dim = call.in.head_dim;
  __syncthreads();  // x^T of the last tile is used
  copy.template copy<true>(memory + Traits::kX, head_of<Value>(from, b, h) + start * from.token,
                           from.token, dim, rows);
  copy.template copy<true>(memory + Traits::kDout, head_of<Value>(grad, b, h) + start * grad.token,
                           grad.token, dim, rows);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  const auto lane = OperandTile<DIM>::a(memory + Traits::kX, threadIdx.x / 32 * 16);
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) ldmatrix_x4(o[step], lane.columns(step));
  __syncthreads();  // their place is x^T's now
}

// Computes of each row mean, 1 / std, and dout . O.
template <class Element, int DIM>
__device__ __forceinline__ void compute_row_statistics(GateRows& rows, float (&dot)[2],
                                                       const uint32_t (&o)[DIM / 16][4],
                                                       const OperandTile<DIM>& dout, int dim) {
  const float inverse = reciprocal_fast(dim);
  float sum[2] = {}, product[2] = {};
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    uint32_t grad[4];
    ldmatrix_x4(grad, dout.columns(step));
#pragma unroll
    for (int at = 0; at < 4; at++) {
      const float2 x = Element::unpack(o[step][at]), y = Element::unpack(grad[at]);
      sum[at % 2] += x.x + x.y;
      product[at % 2] = fmaf(x.x, y.x, fmaf(x.y, y.y, product[at % 2]));
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float squares = 0.0f;
    rows.mean[r] = quad_sum(sum[r]) * inverse;
    dot[r] = quad_sum(product[r]);
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
      const float2 x = Element::unpack(o[n / 2][n % 2 * 2 + r]);
      const float first = x.x - rows.mean[r], second = x.y - rows.mean[r];
      if (n * 8 < dim) squares += fmaf(first, first, second * second);
    }
    rows.rstd[r] = rsqrtf(fmaf(quad_sum(squares), inverse, kGateNormEps));
  }
}

// Normalises two columns of a row, without LN's affine.
template <class Element>
__device__ __forceinline__ float2 normalise_pair(uint32_t pair, const GateRows& rows, int r) {
  const float2 x = Element::unpack(pair);
  return {(x.x - rows.mean[r]) * rows.rstd[r], (x.y - rows.mean[r]) * rows.rstd[r]};
}

// Computes u = n W1^T, without b1.
template <class Element, int DIM>
__device__ __forceinline__ void compute_hidden(float (&u)[DIM / 16][4],
                                               const uint32_t (&o)[DIM / 16][4],
                                               const GateRows& rows, const OperandTile<DIM>& fc1,
                                               const GateWeights<DIM>& weights) {
#pragma unroll
  for (int at = 0; at < DIM / 4; at++) u[at / 4][at % 4] = 0.0f;
#pragma unroll
  for (int step = 0; step < DIM / 8; step++) {
    const int column = step * 8 + threadIdx.x % 4 * 2;
    const float2 scale = *reinterpret_cast<const float2*>(weights.norm_weight + column);
    const float2 shift = *reinterpret_cast<const float2*>(weights.norm_bias + column);
    uint32_t n[4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float2 x = normalise_pair<Element>(o[step / 2][step % 2 * 2 + r], rows, r);
      n[r] = round_tf32(fmaf(x.x, scale.x, shift.x));
      n[2 + r] = round_tf32(fmaf(x.y, scale.y, shift.y));
    }
#pragma unroll
    for (int unit = 0; unit < DIM / 32; unit++) {
      uint32_t w[4];
      ldmatrix_x4(w, fc1.columns(step / 2) + unit * 16 * SmemTile<DIM>::kRowBytes);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float2 pair = Element::unpack(w[2 * half + step % 2]);
        mma_tf32(u[2 * unit + half], n, __float_as_uint(pair.x), __float_as_uint(pair.y));
      }
    }
  }
}

// Computes the gate and the gradient of its logit from u and (of a gate of tokens) dout . O.
template <int DIM>
__device__ __forceinline__ void compute_gate(GateRows& rows, const float (&u)[DIM / 16][4],
                                             const float (&dot)[2], const GateWeights<DIM>& weights,
                                             const GenhoiFlowGateBackward& call, int head,
                                             int rows_left) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const bool in_bounds = threadIdx.x / 32 * 16 + r * 8 + threadIdx.x % 32 / 4 < rows_left;
    rows.gate[r] = 1.0f;
    float dlogit = 0.0f;
    if (call.in.gate_mode == GENHOI_GATE_SUM) {
      dlogit = call.dgate_sum[head];
    } else {
      float logit = 0.0f;
#pragma unroll
      for (int at = 0; at < DIM / 8; at++) {
        const int unit = at / 2 * 8 + threadIdx.x % 4 * 2 + at % 2;
        const float x = u[at / 2][2 * r + at % 2] + weights.fc1_bias[unit];
        logit = fmaf(x * normal_cdf(x).x, weights.fc2_weight[unit], logit);
      }
      logit = quad_sum(logit) + call.in.gate.fc2_bias[0];
      const float gate = sigmoid(logit);
      rows.gate[r] = gate;
      dlogit = dot[r] * gate * (1.0f - gate);
    }
    rows.dlogit[r] = in_bounds ? dlogit : 0.0f;
  }
}

// u becomes du, and goes to shared memory transposed. Adds this tile's rows to the warp's sums.
template <int DIM>
__device__ __forceinline__ void compute_hidden_gradient(float (&u)[DIM / 16][4],
                                                        const GateRows& rows,
                                                        const GateWeights<DIM>& weights,
                                                        GateSums<DIM>& sums, float* transposed) {
  using Traits = FlowGateBwdTraits<DIM>;
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int at = 0; at < DIM / 8; at++) {
    const int unit = at / 2 * 8 + lane % 4 * 2 + at % 2;
    const float bias = weights.fc1_bias[unit], weight = weights.fc2_weight[unit];
    float bias_gradient = 0.0f, weight_gradient = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float& x = u[at / 2][2 * r + at % 2];
      x += bias;
      const float2 cdf = normal_cdf(x);
      weight_gradient = fmaf(rows.dlogit[r] * x, cdf.x, weight_gradient);
      x = rows.dlogit[r] * weight * fmaf(x * kInverseSqrt2Pi, cdf.y, cdf.x);
      bias_gradient += x;
      transposed[unit * Traits::kPitch + row + r * 8] = __uint_as_float(round_tf32(x));
    }
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      bias_gradient += __shfl_xor_sync(~0u, bias_gradient, step);
      weight_gradient += __shfl_xor_sync(~0u, weight_gradient, step);
    }
    if (lane < 4) {
      sums.fc1_bias[unit] += bias_gradient;
      sums.fc2_weight[unit] += weight_gradient;
    }
  }
  float logit_gradient = rows.dlogit[0] + rows.dlogit[1];
#pragma unroll
  for (int step = 4; step < 32; step *= 2)
    logit_gradient += __shfl_xor_sync(~0u, logit_gradient, step);
  if (lane == 0) sums.fc2_bias += logit_gradient;
}

// Computes dn = du W1, times LN's weight.
template <class Element, int DIM>
__device__ __forceinline__ void compute_norm_gradient(float (&dx)[DIM / 8][4],
                                                      const float (&du)[DIM / 16][4],
                                                      const OperandTile<DIM>& fc1,
                                                      const GateWeights<DIM>& weights) {
#pragma unroll
  for (int at = 0; at < DIM / 2; at++) dx[at / 4][at % 4] = 0.0f;
#pragma unroll
  for (int unit = 0; unit < DIM / 32; unit++) {
    uint32_t a[2][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float (&x)[4] = du[2 * unit + half];
      a[half][0] = round_tf32(x[0]);
      a[half][1] = round_tf32(x[2]);
      a[half][2] = round_tf32(x[1]);
      a[half][3] = round_tf32(x[3]);
    }
#pragma unroll
    for (int n = 0; n < DIM / 16; n++) {
      uint32_t w[4];
      ldmatrix_x4_trans(w, fc1.columns(n) + unit * 16 * SmemTile<DIM>::kRowBytes);
#pragma unroll
      for (int at = 0; at < 4; at++) {
        const float2 pair = Element::unpack(w[at]);
        mma_tf32(dx[2 * n + at / 2], a[at % 2], __float_as_uint(pair.x), __float_as_uint(pair.y));
      }
    }
  }
#pragma unroll
  for (int at = 0; at < DIM / 2; at++) {
    const int column = at / 4 * 8 + threadIdx.x % 4 * 2 + at % 2;
    dx[at / 4][at % 4] *= weights.norm_weight[column];
  }
}

// Stores x^T to shared memory, rounded.
template <class Element, int DIM>
__device__ __forceinline__ void store_transposed_rows(float* transposed,
                                                      const uint32_t (&o)[DIM / 16][4],
                                                      const GateRows& rows) {
  using Traits = FlowGateBwdTraits<DIM>;
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float2 x = normalise_pair<Element>(o[n / 2][n % 2 * 2 + r], rows, r);
      float* to = transposed + (n * 8 + lane % 4 * 2) * Traits::kPitch + row + r * 8;
      to[0] = __uint_as_float(round_tf32(x.x));
      to[Traits::kPitch] = __uint_as_float(round_tf32(x.y));
    }
  }
}

// Loads columns 8 n + 2 (l % 4) and the next of O from memory: to keep them from load_tile on would
// take registers that there are not.
template <class Value>
__device__ __forceinline__ uint32_t load_pair(const Value* row, int n, bool in_bounds) {
  return in_bounds ? *reinterpret_cast<const uint32_t*>(row + n * 8 + threadIdx.x % 4 * 2) : 0;
}

// Stores dO = g dout + LN's gradient of dx, and delta.
template <class Element, int DIM>
__device__ __forceinline__ void store_gradient_and_delta(const float (&dx)[DIM / 8][4],
                                                         const OperandTile<DIM>& dout,
                                                         const GateRows& rows,
                                                         const GenhoiFlowGateBackward& call, int b,
                                                         int h, int start) {
  using Value = typename Element::Value;
  const GenhoiAttention& in = call.in;
  const float inverse = reciprocal_fast(in.head_dim);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = start + threadIdx.x / 32 * 16 + r * 8 + threadIdx.x % 32 / 4;
    const Value* o = head_of<Value>(call.out, b, h) + row * call.out.token;
    const int64_t token = (static_cast<int64_t>(b) * in.rows + row) * in.heads + h;
    Value* to = static_cast<Value*>(call.grad) + token * in.head_dim + threadIdx.x % 4 * 2;
    float mean = 0.0f, along = 0.0f, delta = 0.0f;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
      const uint32_t pair = load_pair(o, n, row < in.rows && n * 8 < in.head_dim);
      const float2 x = normalise_pair<Element>(pair, rows, r);
      mean += dx[n][2 * r] + dx[n][2 * r + 1];
      along = fmaf(dx[n][2 * r], x.x, fmaf(dx[n][2 * r + 1], x.y, along));
    }
    mean = quad_sum(mean) * inverse;
    along = quad_sum(along) * inverse;
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      uint32_t grad[4];
      ldmatrix_x4(grad, dout.columns(step));
#pragma unroll
      for (int n = 2 * step; n < 2 * step + 2; n++) {
        const bool in_bounds = row < in.rows && n * 8 < in.head_dim;
        const uint32_t pair = load_pair(o, n, in_bounds);
        const float2 x = normalise_pair<Element>(pair, rows, r), y = Element::unpack(pair);
        const float2 upstream = Element::unpack(grad[n % 2 * 2 + r]);
        const float first =
            fmaf(dx[n][2 * r] - mean - x.x * along, rows.rstd[r], rows.gate[r] * upstream.x);
        const float second =
            fmaf(dx[n][2 * r + 1] - mean - x.y * along, rows.rstd[r], rows.gate[r] * upstream.y);
        delta = fmaf(first, y.x, fmaf(second, y.y, delta));
        if (in_bounds) *reinterpret_cast<uint32_t*>(to + n * 8) = Element::pack(first, second);
      }
    }
    delta = quad_sum(delta);
    if (row < in.rows && threadIdx.x % 4 == 0) {
      const int64_t at = (static_cast<int64_t>(b) * in.heads + h) * in.rows + row;
      call.delta[at] = call.dlse == nullptr ? delta : delta - call.dlse[at];
    }
  }
}

// Adds du x^T to sum, over the rows of all warps: 16 at a time, of which a lane reads four
// neighbours.
template <int DIM>
__device__ __forceinline__ void accumulate_outer_product(
    float (&sum)[FlowGateBwdTraits<DIM>::kChunks][4], const float* du, const float* x) {
  using Traits = FlowGateBwdTraits<DIM>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int unit = warp / Traits::kColumnParts * 16 + lane / 4;
  const int column = warp % Traits::kColumnParts * Traits::kChunks * 8 + lane / 4;
  if (unit >= Traits::kHidden) return;  // a warp for which nothing is left
#pragma unroll 2
  for (int row = lane % 4 * 4; row < Traits::kRows; row += 16) {
    const uint4 top = *reinterpret_cast<const uint4*>(du + unit * Traits::kPitch + row);
    const uint4 low = *reinterpret_cast<const uint4*>(du + (unit + 8) * Traits::kPitch + row);
    const uint32_t a[2][4] = {{top.x, low.x, top.y, low.y}, {top.z, low.z, top.w, low.w}};
#pragma unroll
    for (int n = 0; n < Traits::kChunks; n++) {
      const uint4 b = *reinterpret_cast<const uint4*>(x + (column + n * 8) * Traits::kPitch + row);
      mma_tf32(sum[n], a[0], b.x, b.y);
      mma_tf32(sum[n], a[1], b.z, b.w);
    }
  }
}

// Stores the block's sums.
template <int DIM>
__device__ __forceinline__ void store_sums(const float (&sum)[FlowGateBwdTraits<DIM>::kChunks][4],
                                           const GateSums<DIM>* warp_sums,
                                           const GenhoiFlowGateBackward& call) {
  using Traits = FlowGateBwdTraits<DIM>;
  const int dim = call.in.head_dim, hidden = dim / 2, lane = threadIdx.x % 32;
  const int64_t part = blockIdx.x;
  const int warp = threadIdx.x / 32, parts = Traits::kColumnParts;
#pragma unroll
  for (int at = 0; at < 4 * Traits::kChunks; at++) {
    const int unit = warp / parts * 16 + at % 4 / 2 * 8 + lane / 4;
    const int column = (warp % parts * Traits::kChunks + at / 4) * 8 + lane % 4 * 2 + at % 2;
    if (unit < hidden && column < dim) {
      call.du_x[(part * hidden + unit) * dim + column] = sum[at / 4][at % 4];
    }
  }
  __syncthreads();
  const int unit = threadIdx.x;
  float bias_gradient = 0.0f, weight_gradient = 0.0f, logit_gradient = 0.0f;
  if (unit < hidden) {
    for (int i = 0; i < Traits::kWarps; i++) {
      bias_gradient += warp_sums[i].fc1_bias[unit];
      weight_gradient += warp_sums[i].fc2_weight[unit];
      logit_gradient += warp_sums[i].fc2_bias;
    }
    call.dfc1_bias[part * hidden + unit] = bias_gradient;
    call.dfc2_weight[part * hidden + unit] = weight_gradient;
    if (unit == 0) call.dfc2_bias[part] = logit_gradient;
  }
}

// Computes dO, delta and the sums. Grid: parts of all tiles.
template <class Element, int DIM>
__global__ void __launch_bounds__(FlowGateBwdTraits<DIM>::kThreads, 1)
    flow_gate_bwd(const __grid_constant__ GenhoiFlowGateBackward call) {
  using Traits = FlowGateBwdTraits<DIM>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const GenhoiAttention& in = call.in;
  load_weights<Element, DIM>(memory, in.gate, in.head_dim);
  const uint32_t fc1 = smem_address(memory);
  const auto& weights = *reinterpret_cast<const GateWeights<DIM>*>(memory + Traits::kVectors);
  const auto dout = OperandTile<DIM>::a(fc1 + Traits::kDout, threadIdx.x / 32 * 16);
  auto* sums = reinterpret_cast<GateSums<DIM>*>(memory + Traits::kSums);
  auto* x_transposed = reinterpret_cast<float*>(memory + Traits::kX);
  auto* du_transposed = reinterpret_cast<float*>(memory + Traits::kDu);
  float outer[Traits::kChunks][4] = {};

  // 32 bits: there is no memory for the rows of 2^31 tiles.
  const int tiles_per_head = (in.rows - 1) / Traits::kRows + 1,
            tiles = tiles_per_head * in.batch * in.heads;
  const int tiles_per_block = (tiles - 1) / static_cast<int>(gridDim.x) + 1,
            first = blockIdx.x * tiles_per_block;
  for (int tile = first; tile < min(first + tiles_per_block, tiles); tile++) {
    // Load.
    const int head = tile / tiles_per_head, start = tile % tiles_per_head * Traits::kRows;
    const int b = head / in.heads, h = head % in.heads;
    uint32_t o[DIM / 16][4];
    load_tile<Element, DIM>(o, fc1, call, b, h, start);

    // The logit, once more.
    GateRows rows;
    float dot[2], u[DIM / 16][4], dx[DIM / 8][4];
    compute_row_statistics<Element, DIM>(rows, dot, o, dout, in.head_dim);
    compute_hidden<Element, DIM>(u, o, rows, OperandTile<DIM>::b(fc1), weights);
    store_transposed_rows<Element, DIM>(x_transposed, o, rows);
    compute_gate<DIM>(rows, u, dot, weights, call, head, in.rows - start);

    // Its gradient.
    compute_hidden_gradient<DIM>(u, rows, weights, sums[threadIdx.x / 32], du_transposed);
    compute_norm_gradient<Element, DIM>(dx, u, OperandTile<DIM>::a(fc1), weights);
    store_gradient_and_delta<Element, DIM>(dx, dout, rows, call, b, h, start);
    __syncthreads();
    accumulate_outer_product<DIM>(outer, du_transposed, x_transposed);
  }
  cp_async_wait<0>();
  __syncthreads();
  store_sums<DIM>(outer, sums, call);
}

}  // namespace genhoi::cuda::sm80
