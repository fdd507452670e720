// dQ: docs/op.md, "Backward". A block has a tile of queries, all keys pass by.
//
//     P = exp(S - L);  dP = dO V^T;  dS = P (dP - delta);  dQ = scale dS K
//
// Four warps of 32 rows; 32 keys at a time. With 32 rows a warp multiplies what it has read from
// shared memory twice. Two blocks fit an SM's registers and, on sm_80, its shared memory.
#pragma once

#include "../common/gemm.cuh"
#include "../common/key_range.cuh"
#include "../common/store.cuh"
#include "traits.h"

namespace genhoi::cuda::sm80 {

// What a warp keeps of its rows; lse in units of log2 e.
template <int DIM>
struct DqRowState {
  float lse[2][2], delta[2][2];
  float acc_dq[2][DIM / 8][4];
};

// S, dP of a warp's rows and one tile of keys.
template <int DIM>
using DqScores = float[2][BwdDqTraits<DIM>::kKeys / 8][4];
// dS of the same, rounded: A operands.
template <int DIM>
using DqOperand = uint32_t[2][BwdDqTraits<DIM>::kKeys / 16][4];

// dS = P (dP - delta), rounded, as the A operand of the next product. CHECK: only `keys` of the
// columns exist.
template <class Element, bool CHECK, int DIM>
__device__ __forceinline__ void compute_ds(DqOperand<DIM>& ds, const DqScores<DIM>& s,
                                           const DqScores<DIM>& dp, const DqRowState<DIM>& rows,
                                           float scale_log2, int keys, float bias) {
  constexpr int kKeys = BwdDqTraits<DIM>::kKeys;
  const int first = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float offset = CHECK ? bias - rows.lse[i][r] : -rows.lse[i][r];
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) {
        float x[2];
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const float p = exp2_fast(fmaf(s[i][n][2 * r + c], scale_log2, offset));
          x[c] = p * (dp[i][n][2 * r + c] - rows.delta[i][r]);
          if (CHECK && n * 8 + first + c >= keys) x[c] = 0.0f;
        }
        ds[i][n / 2][n % 2 * 2 + r] = Element::pack(x[0], x[1]);
      }
    }
  }
}

// acc_dq += dS K. CHECK: rows that don't see the keys keep their bits, be the keys NaN or Inf.
template <class Element, bool CHECK, int DIM>
__device__ __forceinline__ void accumulate_dq(DqRowState<DIM>& rows, const DqOperand<DIM>& ds,
                                              const OperandTile<DIM>& k, uint32_t seen_rows) {
  constexpr int kKeys = BwdDqTraits<DIM>::kKeys;
#pragma unroll
  for (int n = 0; n < DIM / 16; n++) {
    float sum[2][2][4];
#pragma unroll
    for (int at = 0; at < 16; at++) {
      sum[at / 8][at % 8 / 4][at % 4] = rows.acc_dq[at / 8][2 * n + at % 8 / 4][at % 4];
    }
#pragma unroll
    for (int step = 0; step < kKeys / 16; step++) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, k.columns(n) + step * 16 * SmemTile<DIM>::kRowBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Element::mma(sum[i][0], ds[i][step], b[0], b[1]);
        Element::mma(sum[i][1], ds[i][step], b[2], b[3]);
      }
    }
#pragma unroll
    for (int at = 0; at < 16; at++) {
      if (!CHECK || seen_rows >> (2 * (at / 8) + at % 4 / 2) & 1) {
        rows.acc_dq[at / 8][2 * n + at % 8 / 4][at % 4] = sum[at / 8][at % 8 / 4][at % 4];
      }
    }
  }
}

// Goes through all of a range's keys, kKeys at a time. While dP is computed the keys come, after it
// the next values: when a range begins the values' tile is free. CHECK: the last keys need not fill
// a tile, rows may not see them, and there is a bias; else `count` is a multiple of kKeys.
template <class Element, int DIM, bool CHECK>
__device__ __forceinline__ void run_dq_mainloop(DqRowState<DIM>& rows, const OperandTile<DIM>& q,
                                                const OperandTile<DIM>& dout, uint32_t v_tile,
                                                const GenhoiAttention& in,
                                                KeyRange<typename Element::Value> range) {
  using Traits = BwdDqTraits<DIM>;
  constexpr int kKeys = Traits::kKeys;
  const uint32_t k_tile = v_tile + Traits::kKeyBytes;
  const TileCopy<DIM, kKeys, Traits::kThreads> copy(threadIdx.x);
  const auto v = OperandTile<DIM>::b(v_tile), k = OperandTile<DIM>::b(k_tile);
  const auto k_transposed = OperandTile<DIM>::a(k_tile);
  copy.template copy<CHECK>(v_tile, range.v, range.v_stride, in.head_dim, range.count);
  cp_async_commit();
  for (int remaining = range.count; remaining > 0; remaining -= kKeys) {
    cp_async_wait<0>();
    __syncthreads();  // the values are there, and the last keys used
    copy.template copy<CHECK>(k_tile, range.k, range.k_stride, in.head_dim, remaining);
    cp_async_commit();
    DqScores<DIM> dp, s;
    multiply_tiles<Element, DIM>(dp, dout, v);

    cp_async_wait<0>();
    __syncthreads();  // the keys are there, and these values used
    range.advance(kKeys);
    if (remaining > kKeys) {
      copy.template copy<CHECK>(v_tile, range.v, range.v_stride, in.head_dim, remaining - kKeys);
      cp_async_commit();
    }
    multiply_tiles<Element, DIM>(s, q, k);
    DqOperand<DIM> ds;
    compute_ds<Element, CHECK>(ds, s, dp, rows, scale_to_log2(in), remaining, range.bias);
    accumulate_dq<Element, CHECK>(rows, ds, k_transposed, range.seen_rows);
  }
}

// Bits of the references that some row of the tile sees.
__device__ __forceinline__ uint32_t references_to_see(const GenhoiAttention& in, int b, int start) {
  if (in.ref_tokens == 0) return 0;
  if (in.bits == nullptr) return ~0u;
  return load_tile_bits(in, b, start);
}

// The reference loop: each reference that some row of the tile sees. Its first turn, kVideoTail, is
// for the video's keys that whole tiles leave over: they need the same checks, and in a loop with
// the references they need no third copy of the main loop's code.
template <class Element, int DIM>
__device__ __forceinline__ void loop_over_dq_references(DqRowState<DIM>& rows,
                                                        const OperandTile<DIM>& q,
                                                        const OperandTile<DIM>& dout,
                                                        uint32_t v_tile, const GenhoiAttention& in,
                                                        int b, int h, int start) {
  using Value = typename Element::Value;
  constexpr int kVideoTail = -1, kFirstReference = 0;
  const uint32_t flags = references_to_see(in, b, start);
  for (int segment = kVideoTail; segment < (flags == 0 ? 0 : in.references); segment++) {
    auto range = video_keys<Value>(in, b, h, 0);
    range.count = in.keys % BwdDqTraits<DIM>::kKeys;
    int first = in.keys - range.count;
    if (segment >= kFirstReference) {
      const float bias = bias_to_log2(in, segment);
      if ((flags >> segment & 1) == 0 || bias == -INFINITY) continue;
      first = in.segments[segment];
      range = reference_keys<Value>(in, b, h, start, segment, first, bias);
    }
    if (range.count == 0) continue;
    range.advance(first);
    run_dq_mainloop<Element, DIM, true>(rows, q, dout, v_tile, in, range);
  }
}

// Loads lse and delta of a warp's rows, and clears their sums.
template <int DIM>
__device__ __forceinline__ void init_rows(DqRowState<DIM>& rows, const GenhoiBackward& call, int b,
                                          int h, int start) {
  const int64_t head = (static_cast<int64_t>(b) * call.in.heads + h) * call.in.rows;
#pragma unroll
  for (int at = 0; at < 4; at++) {
    const int row = start + row_in_tile(at / 2, at % 2);
    const bool in_bounds = row < call.in.rows;
    rows.lse[at / 2][at % 2] = in_bounds ? call.lse[head + row] * kLog2e : 0.0f;
    rows.delta[at / 2][at % 2] = in_bounds ? call.delta[head + row] : 0.0f;
  }
#pragma unroll
  for (int at = 0; at < DIM; at++) rows.acc_dq[at * 2 / DIM][at % (DIM / 2) / 4][at % 4] = 0.0f;
}

// Computes dQ. Grid: tiles of queries, heads, samples.
template <class Element, int DIM>
__global__ void __launch_bounds__(BwdDqTraits<DIM>::kThreads, BwdDqTraits<DIM>::kBlocksPerSm)
    bwd_dq(const __grid_constant__ GenhoiBackward call) {
  using Traits = BwdDqTraits<DIM>;
  using Value = typename Element::Value;
  extern __shared__ __align__(1024) unsigned char memory[];
  const GenhoiAttention& in = call.in;
  const int start = blockIdx.x * Traits::kQueries, h = blockIdx.y, b = blockIdx.z;
  const uint32_t q_tile = smem_address(memory);
  const uint32_t dout_tile = q_tile + Traits::kQueryBytes;
  const uint32_t v_tile = dout_tile + Traits::kQueryBytes;

  // Load the tile's rows.
  const TileCopy<DIM, Traits::kQueries, Traits::kThreads> copy(threadIdx.x);
  copy.template copy<true>(q_tile, head_of<Value>(in.q, b, h) + start * in.q.token, in.q.token,
                           in.head_dim, in.rows - start);
  copy.template copy<true>(dout_tile, head_of<Value>(call.dout, b, h) + start * call.dout.token,
                           call.dout.token, in.head_dim, in.rows - start);
  cp_async_commit();
  const int first_row = threadIdx.x / 32 * kWarpRows;  // of the warp
  const auto q = OperandTile<DIM>::a(q_tile, first_row);
  const auto dout = OperandTile<DIM>::a(dout_tile, first_row);
  DqRowState<DIM> rows;
  init_rows(rows, call, b, h, start);

  // The video's keys, then the references'.
  auto video = video_keys<Value>(in, b, h, 0);
  video.count = in.keys / Traits::kKeys * Traits::kKeys;  // whole tiles
  if (video.count > 0) run_dq_mainloop<Element, DIM, false>(rows, q, dout, v_tile, in, video);
  loop_over_dq_references<Element, DIM>(rows, q, dout, v_tile, in, b, h, start);

  cp_async_wait<0>();  // a tile without any key has not waited for its rows
  __syncthreads();
  const int64_t skipped = static_cast<int64_t>(start) * in.heads * in.head_dim;
  store_gradient<Element, DIM>(gradient_of_head<Value>(call.dq, in, b, h, in.rows) + skipped, in,
                               first_row, 0, in.rows - start, memory, rows.acc_dq, in.scale);
}

}  // namespace genhoi::cuda::sm80
