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
// Fragments as in gradient_of_keys.cuh. TF32 products take 8 numbers of the inner dimension, of
// which lane l gives numbers l % 4 and l % 4 + 4: which are called so is free, if both operands
// agree. Here they are columns 2 (l % 4) and the next, as lanes hold them anyway.
#pragma once

#include "backward.cuh"
#include "launch.h"
#include "ptx.cuh"
#include "tile.cuh"

namespace genhoi::cuda::backward::gate {

constexpr int kGateThreads = 256;
constexpr int kGateRows = 128;
constexpr int kPitch = kGateRows + 4;  // of transposed rows: four further on lie in other banks

template <int DIM>
struct GateCut {
  static constexpr int kHidden = DIM / 2;
  // Where things start in shared memory. x^T is stored over O, when that is in registers.
  static constexpr uint32_t kTileBytes = kGateRows * Tile<DIM>::kRowBytes;
  static constexpr uint32_t kX = kHidden * Tile<DIM>::kRowBytes;  // after W1
  static constexpr uint32_t kDout = kX + DIM * kPitch * sizeof(float);
  static constexpr uint32_t kDu = kDout + kTileBytes;
  static constexpr uint32_t kVectors = kDu + kHidden * kPitch * sizeof(float);
  static constexpr uint32_t kSums = kVectors + 3 * DIM * sizeof(float);
  static constexpr uint32_t kShared = kSums + kGateThreads / 32 * (DIM + 1) * sizeof(float);
  static_assert(kTileBytes <= kDout - kX && kX % 256 == 0 && kDout % 256 == 0);
  // The sum of du x^T: a warp has 16 hidden units and a part of the columns.
  static constexpr int kParts = kGateThreads / 32 / (kHidden / 16);
  static constexpr int kChunks = DIM / 8 / kParts;
};

// Weights in shared memory, zeros from head_dim on, and each warp's sums of du and dlogit GELU(u).
template <int DIM>
struct GateVectors {
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
template <class Half, int DIM>
__device__ __forceinline__ void load_gate(unsigned char* memory, const GenhoiGate& gate, int dim) {
  const auto* fc1 = static_cast<const typename Half::Value*>(gate.fc1_weight);
  for (int at = threadIdx.x; at < GateCut<DIM>::kHidden * DIM / kChunk; at += kGateThreads) {
    const int row = at / (DIM / kChunk), chunk = at % (DIM / kChunk);
    const bool there = row < dim / 2 && chunk * kChunk < dim;
    copy_async(Tile<DIM>::address(shared_address(memory), row, chunk),
               there ? fc1 + row * dim + chunk * kChunk : fc1, there);
  }
  copies_commit();
  auto& to = *reinterpret_cast<GateVectors<DIM>*>(memory + GateCut<DIM>::kVectors);
  for (int at = threadIdx.x; at < DIM; at += kGateThreads) {
    to.norm_weight[at] = at < dim ? gate.norm_weight[at] : 0.0f;
    to.norm_bias[at] = at < dim ? gate.norm_bias[at] : 0.0f;
    if (at >= DIM / 2) continue;
    to.fc1_bias[at] = at < dim / 2 ? gate.fc1_bias[at] : 0.0f;
    to.fc2_weight[at] = at < dim / 2 ? gate.fc2_weight[at] : 0.0f;
  }
  float* sums = reinterpret_cast<float*>(memory + GateCut<DIM>::kSums);
  for (int at = threadIdx.x; at < kGateThreads / 32 * (DIM + 1); at += kGateThreads)
    sums[at] = 0.0f;
}

// Loads a tile of O and of dout. The warp's rows of O stay in registers: columns 16 step and so on,
// as left operands of 16-bit products.
template <class Half, int DIM>
__device__ __forceinline__ void load_rows(uint32_t (&o)[DIM / 16][4], uint32_t memory,
                                          const GenhoiGateBackward& call, int b, int h, int start) {
  using Value = typename Half::Value;
  const GenhoiTokens &from = call.out, &grad = call.dout;
  const TileCopy<DIM, kGateRows, kGateThreads> copy(threadIdx.x);
  const int rows = call.in.rows - start, dim = call.in.head_dim;
  __syncthreads();  // x^T of the last tile is used
  copy.template copy<true>(memory + GateCut<DIM>::kX,
                           head_of<Value>(from, b, h) + start * from.token, from.token, dim, rows);
  copy.template copy<true>(memory + GateCut<DIM>::kDout,
                           head_of<Value>(grad, b, h) + start * grad.token, grad.token, dim, rows);
  copies_commit();
  copies_wait<0>();
  __syncthreads();
  const auto lane = LaneTile<DIM>::left(memory + GateCut<DIM>::kX, threadIdx.x / 32 * 16);
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) load_matrices(o[step], lane.columns(step));
  __syncthreads();  // their place is x^T's now
}

// Of each row mean, 1 / std, and dout . O.
template <class Half, int DIM>
__device__ __forceinline__ void row_statistics(GateRows& rows, float (&dot)[2],
                                               const uint32_t (&o)[DIM / 16][4],
                                               const LaneTile<DIM>& dout, int dim) {
  const float inverse = reciprocal_fast(dim);
  float sum[2] = {}, product[2] = {};
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    uint32_t grad[4];
    load_matrices(grad, dout.columns(step));
#pragma unroll
    for (int at = 0; at < 4; at++) {
      const float2 x = Half::unpack(o[step][at]), y = Half::unpack(grad[at]);
      sum[at % 2] += x.x + x.y;
      product[at % 2] = fmaf(x.x, y.x, fmaf(x.y, y.y, product[at % 2]));
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float squares = 0.0f;
    rows.mean[r] = row_sum(sum[r]) * inverse;
    dot[r] = row_sum(product[r]);
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
      const float2 x = Half::unpack(o[n / 2][n % 2 * 2 + r]);
      const float first = x.x - rows.mean[r], second = x.y - rows.mean[r];
      if (n * 8 < dim) squares += fmaf(first, first, second * second);
    }
    rows.rstd[r] = rsqrtf(fmaf(row_sum(squares), inverse, 1e-5f));
  }
}

// Two columns of a row as they are before LN's affine.
template <class Half>
__device__ __forceinline__ float2 normalised(uint32_t pair, const GateRows& rows, int r) {
  const float2 x = Half::unpack(pair);
  return {(x.x - rows.mean[r]) * rows.rstd[r], (x.y - rows.mean[r]) * rows.rstd[r]};
}

// u = n W1^T, without b1.
template <class Half, int DIM>
__device__ __forceinline__ void hidden_units(float (&u)[DIM / 16][4],
                                             const uint32_t (&o)[DIM / 16][4], const GateRows& rows,
                                             const LaneTile<DIM>& fc1,
                                             const GateVectors<DIM>& weights) {
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
      const float2 x = normalised<Half>(o[step / 2][step % 2 * 2 + r], rows, r);
      n[r] = round_tf32(fmaf(x.x, scale.x, shift.x));
      n[2 + r] = round_tf32(fmaf(x.y, scale.y, shift.y));
    }
#pragma unroll
    for (int unit = 0; unit < DIM / 32; unit++) {
      uint32_t w[4];
      load_matrices(w, fc1.columns(step / 2) + unit * 16 * Tile<DIM>::kRowBytes);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float2 pair = Half::unpack(w[2 * half + step % 2]);
        multiply_tf32(u[2 * unit + half], n, __float_as_uint(pair.x), __float_as_uint(pair.y));
      }
    }
  }
}

// Phi(u), and exp(-u^2 / 2). The fit of csrc/cpu/flow_gate.h: 2 Phi(-|u|) exp(u^2 / 2) as a
// polynomial in 1 / (1 + c |u|), off by 5e-8 of its value at most.
__device__ __forceinline__ float2 normal_cdf(float u) {
  const float t = reciprocal_fast(fmaf(fabsf(u), 0.325f * 0.70710678118654752f, 1.0f));
  float p = fmaf(t, -0.158139527f, 0.587833285f);
  p = fmaf(p, t, -0.568460763f);
  p = fmaf(p, t, 0.614742160f);
  p = fmaf(p, t, -0.0728278011f);
  p = fmaf(p, t, 0.241426930f);
  p = fmaf(p, t, 0.170809418f);
  p = fmaf(p, t, 0.184675500f);
  p = fmaf(p, t, -5.92748511e-5f);
  const float density = exp2_fast(u * u * -0.72134752044448170f);
  const float tail = 0.5f * p * density;
  return {u < 0.0f ? tail : 1.0f - tail, density};
}

// The gate and the gradient of its logit, from u and (of a gate of tokens) dout . O.
template <int DIM>
__device__ __forceinline__ void gate_of_rows(GateRows& rows, const float (&u)[DIM / 16][4],
                                             const float (&dot)[2], const GateVectors<DIM>& weights,
                                             const GenhoiGateBackward& call, int head,
                                             int rows_left) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const bool there = threadIdx.x / 32 * 16 + r * 8 + threadIdx.x % 32 / 4 < rows_left;
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
      logit = row_sum(logit) + call.in.gate.fc2_bias[0];
      const float gate = reciprocal_fast(1.0f + exp2_fast(-1.4426950408889634f * logit));
      rows.gate[r] = gate;
      dlogit = dot[r] * gate * (1.0f - gate);
    }
    rows.dlogit[r] = there ? dlogit : 0.0f;
  }
}

// u becomes du, and goes to shared memory transposed. Adds this tile's rows to the warp's sums.
template <int DIM>
__device__ __forceinline__ void hidden_gradient(float (&u)[DIM / 16][4], const GateRows& rows,
                                                const GateVectors<DIM>& weights,
                                                GateSums<DIM>& sums, float* transposed) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int at = 0; at < DIM / 8; at++) {
    const int unit = at / 2 * 8 + lane % 4 * 2 + at % 2;
    const float bias = weights.fc1_bias[unit], weight = weights.fc2_weight[unit];
    float of_bias = 0.0f, of_weight = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float& x = u[at / 2][2 * r + at % 2];
      x += bias;
      const float2 cdf = normal_cdf(x);
      of_weight = fmaf(rows.dlogit[r] * x, cdf.x, of_weight);
      x = rows.dlogit[r] * weight * fmaf(x * 0.39894228040143268f, cdf.y, cdf.x);
      of_bias += x;
      transposed[unit * kPitch + row + r * 8] = __uint_as_float(round_tf32(x));
    }
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      of_bias += __shfl_xor_sync(~0u, of_bias, step);
      of_weight += __shfl_xor_sync(~0u, of_weight, step);
    }
    if (lane < 4) {
      sums.fc1_bias[unit] += of_bias;
      sums.fc2_weight[unit] += of_weight;
    }
  }
  float of_logit = rows.dlogit[0] + rows.dlogit[1];
#pragma unroll
  for (int step = 4; step < 32; step *= 2) of_logit += __shfl_xor_sync(~0u, of_logit, step);
  if (lane == 0) sums.fc2_bias += of_logit;
}

// dn = du W1, times LN's weight.
template <class Half, int DIM>
__device__ __forceinline__ void input_gradient(float (&dx)[DIM / 8][4],
                                               const float (&du)[DIM / 16][4],
                                               const LaneTile<DIM>& fc1,
                                               const GateVectors<DIM>& weights) {
#pragma unroll
  for (int at = 0; at < DIM / 2; at++) dx[at / 4][at % 4] = 0.0f;
#pragma unroll
  for (int unit = 0; unit < DIM / 32; unit++) {
    uint32_t left[2][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float (&x)[4] = du[2 * unit + half];
      left[half][0] = round_tf32(x[0]);
      left[half][1] = round_tf32(x[2]);
      left[half][2] = round_tf32(x[1]);
      left[half][3] = round_tf32(x[3]);
    }
#pragma unroll
    for (int n = 0; n < DIM / 16; n++) {
      uint32_t w[4];
      load_matrices_transposed(w, fc1.columns(n) + unit * 16 * Tile<DIM>::kRowBytes);
#pragma unroll
      for (int at = 0; at < 4; at++) {
        const float2 pair = Half::unpack(w[at]);
        multiply_tf32(dx[2 * n + at / 2], left[at % 2], __float_as_uint(pair.x),
                      __float_as_uint(pair.y));
      }
    }
  }
#pragma unroll
  for (int at = 0; at < DIM / 2; at++) {
    const int column = at / 4 * 8 + threadIdx.x % 4 * 2 + at % 2;
    dx[at / 4][at % 4] *= weights.norm_weight[column];
  }
}

// x^T to shared memory, rounded.
template <class Half, int DIM>
__device__ __forceinline__ void transpose_rows(float* transposed, const uint32_t (&o)[DIM / 16][4],
                                               const GateRows& rows) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float2 x = normalised<Half>(o[n / 2][n % 2 * 2 + r], rows, r);
      float* to = transposed + (n * 8 + lane % 4 * 2) * kPitch + row + r * 8;
      to[0] = __uint_as_float(round_tf32(x.x));
      to[kPitch] = __uint_as_float(round_tf32(x.y));
    }
  }
}

// Columns 8 n + 2 (l % 4) and the next of O, from memory: to keep them from load_rows on would take
// registers that there are not.
template <class Value>
__device__ __forceinline__ uint32_t load_pair(const Value* row, int n, bool there) {
  return there ? *reinterpret_cast<const uint32_t*>(row + n * 8 + threadIdx.x % 4 * 2) : 0;
}

// dO = g dout + LN's gradient of dx, and delta.
template <class Half, int DIM>
__device__ __forceinline__ void store_rows(const float (&dx)[DIM / 8][4], const LaneTile<DIM>& dout,
                                           const GateRows& rows, const GenhoiGateBackward& call,
                                           int b, int h, int start) {
  using Value = typename Half::Value;
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
      const float2 x = normalised<Half>(pair, rows, r);
      mean += dx[n][2 * r] + dx[n][2 * r + 1];
      along = fmaf(dx[n][2 * r], x.x, fmaf(dx[n][2 * r + 1], x.y, along));
    }
    mean = row_sum(mean) * inverse;
    along = row_sum(along) * inverse;
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
      uint32_t grad[4];
      load_matrices(grad, dout.columns(step));
#pragma unroll
      for (int n = 2 * step; n < 2 * step + 2; n++) {
        const bool there = row < in.rows && n * 8 < in.head_dim;
        const uint32_t pair = load_pair(o, n, there);
        const float2 x = normalised<Half>(pair, rows, r), y = Half::unpack(pair);
        const float2 upstream = Half::unpack(grad[n % 2 * 2 + r]);
        const float first =
            fmaf(dx[n][2 * r] - mean - x.x * along, rows.rstd[r], rows.gate[r] * upstream.x);
        const float second =
            fmaf(dx[n][2 * r + 1] - mean - x.y * along, rows.rstd[r], rows.gate[r] * upstream.y);
        delta = fmaf(first, y.x, fmaf(second, y.y, delta));
        if (there) *reinterpret_cast<uint32_t*>(to + n * 8) = Half::pack(first, second);
      }
    }
    delta = row_sum(delta);
    if (row < in.rows && threadIdx.x % 4 == 0) {
      const int64_t at = (static_cast<int64_t>(b) * in.heads + h) * in.rows + row;
      call.delta[at] = call.dlse == nullptr ? delta : delta - call.dlse[at];
    }
  }
}

// sum += du x^T, over the rows of all warps: 16 at a time, of which a lane reads four neighbours.
template <int DIM>
__device__ __forceinline__ void add_outer(float (&sum)[GateCut<DIM>::kChunks][4], const float* du,
                                          const float* x) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int unit = warp / GateCut<DIM>::kParts * 16 + lane / 4;
  const int column = warp % GateCut<DIM>::kParts * GateCut<DIM>::kChunks * 8 + lane / 4;
  if (unit >= GateCut<DIM>::kHidden) return;  // a warp for which nothing is left
#pragma unroll 2
  for (int row = lane % 4 * 4; row < kGateRows; row += 16) {
    const uint4 top = *reinterpret_cast<const uint4*>(du + unit * kPitch + row);
    const uint4 low = *reinterpret_cast<const uint4*>(du + (unit + 8) * kPitch + row);
    const uint32_t left[2][4] = {{top.x, low.x, top.y, low.y}, {top.z, low.z, top.w, low.w}};
#pragma unroll
    for (int n = 0; n < GateCut<DIM>::kChunks; n++) {
      const uint4 right = *reinterpret_cast<const uint4*>(x + (column + n * 8) * kPitch + row);
      multiply_tf32(sum[n], left[0], right.x, right.y);
      multiply_tf32(sum[n], left[1], right.z, right.w);
    }
  }
}

// The block's sums.
template <int DIM>
__device__ __forceinline__ void store_sums(const float (&sum)[GateCut<DIM>::kChunks][4],
                                           const GateSums<DIM>* of_warps,
                                           const GenhoiGateBackward& call) {
  const int dim = call.in.head_dim, hidden = dim / 2, lane = threadIdx.x % 32;
  const int64_t part = blockIdx.x;
  const int warp = threadIdx.x / 32, parts = GateCut<DIM>::kParts;
#pragma unroll
  for (int at = 0; at < 4 * GateCut<DIM>::kChunks; at++) {
    const int unit = warp / parts * 16 + at % 4 / 2 * 8 + lane / 4;
    const int column = (warp % parts * GateCut<DIM>::kChunks + at / 4) * 8 + lane % 4 * 2 + at % 2;
    if (unit < hidden && column < dim) {
      call.du_x[(part * hidden + unit) * dim + column] = sum[at / 4][at % 4];
    }
  }
  __syncthreads();
  const int unit = threadIdx.x;
  float of_bias = 0.0f, of_weight = 0.0f, of_logit = 0.0f;
  if (unit < hidden) {
    for (int i = 0; i < kGateThreads / 32; i++) {
      of_bias += of_warps[i].fc1_bias[unit];
      of_weight += of_warps[i].fc2_weight[unit];
      of_logit += of_warps[i].fc2_bias;
    }
    call.dfc1_bias[part * hidden + unit] = of_bias;
    call.dfc2_weight[part * hidden + unit] = of_weight;
    if (unit == 0) call.dfc2_bias[part] = of_logit;
  }
}

// Grid: parts of all tiles.
template <class Half, int DIM>
__global__ void __launch_bounds__(kGateThreads, 1)
    gate_backward(const __grid_constant__ GenhoiGateBackward call) {
  using Cut = GateCut<DIM>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const GenhoiAttention& in = call.in;
  load_gate<Half, DIM>(memory, in.gate, in.head_dim);
  const uint32_t fc1 = shared_address(memory);
  const auto& weights = *reinterpret_cast<const GateVectors<DIM>*>(memory + Cut::kVectors);
  const auto dout = LaneTile<DIM>::left(fc1 + Cut::kDout, threadIdx.x / 32 * 16);
  auto* sums = reinterpret_cast<GateSums<DIM>*>(memory + Cut::kSums);
  auto* x_transposed = reinterpret_cast<float*>(memory + Cut::kX);
  auto* du_transposed = reinterpret_cast<float*>(memory + Cut::kDu);
  float outer[Cut::kChunks][4] = {};

  // 32 bits: there is no memory for the rows of 2^31 tiles.
  const int of_head = (in.rows - 1) / kGateRows + 1, tiles = of_head * in.batch * in.heads;
  const int each = (tiles - 1) / static_cast<int>(gridDim.x) + 1, first = blockIdx.x * each;
  for (int tile = first; tile < min(first + each, tiles); tile++) {
    // Load.
    const int head = tile / of_head, start = tile % of_head * kGateRows;
    const int b = head / in.heads, h = head % in.heads;
    uint32_t o[DIM / 16][4];
    load_rows<Half, DIM>(o, fc1, call, b, h, start);

    // The logit, once more.
    GateRows rows;
    float dot[2], u[DIM / 16][4], dx[DIM / 8][4];
    row_statistics<Half, DIM>(rows, dot, o, dout, in.head_dim);
    hidden_units<Half, DIM>(u, o, rows, LaneTile<DIM>::right(fc1), weights);
    transpose_rows<Half, DIM>(x_transposed, o, rows);
    gate_of_rows<DIM>(rows, u, dot, weights, call, head, in.rows - start);

    // Its gradient.
    hidden_gradient<DIM>(u, rows, weights, sums[threadIdx.x / 32], du_transposed);
    input_gradient<Half, DIM>(dx, u, LaneTile<DIM>::left(fc1), weights);
    store_rows<Half, DIM>(dx, dout, rows, call, b, h, start);
    __syncthreads();
    add_outer<DIM>(outer, du_transposed, x_transposed);
  }
  copies_wait<0>();
  __syncthreads();
  store_sums<DIM>(outer, sums, call);
}

template <int DIM>
GenhoiPlan plan_gate_backward(const GenhoiGateBackward& call) {
  const GenhoiAttention& in = call.in;
  const int64_t of_head = (static_cast<int64_t>(in.rows) + kGateRows - 1) / kGateRows;
  const int64_t tiles = of_head * in.batch * in.heads;
  if (tiles == 0) return {};
  const auto parts = static_cast<uint32_t>(tiles < GENHOI_GATE_PARTS ? tiles : GENHOI_GATE_PARTS);
  return {{parts, 1, 1}, kGateThreads, GateCut<DIM>::kShared};
}

template <class Half, int DIM>
cudaError_t launch_gate_backward(const GenhoiGateBackward& call, cudaStream_t stream) {
  const GenhoiPlan plan = plan_gate_backward<DIM>(call);
  if (plan.block == 0) return cudaSuccess;
  const cudaError_t refused =
      cudaFuncSetAttribute(gate_backward<Half, DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(plan.shared));
  if (refused != cudaSuccess) return refused;
  gate_backward<Half, DIM><<<plan.grid[0], plan.block, plan.shared, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace genhoi::cuda::backward::gate
