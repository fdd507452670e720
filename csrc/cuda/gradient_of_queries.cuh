// dQ: docs/op.md, "Backward". A block has a tile of queries, all keys pass by.
//
//     P = exp(S - L);  dP = dO V^T;  dS = P (dP - delta);  dQ = scale dS K
//
// Four warps of 32 rows; 32 keys at a time. With 32 rows a warp multiplies what it has read from
// shared memory twice. Two blocks fit an SM's registers and, on sm_80, its shared memory.
#pragma once

#include "backward.cuh"

namespace genhoi::cuda::backward {

constexpr int kQueryThreads = 128;
constexpr int kQueryRows = 128;
constexpr int kQueryKeys = 32;

template <int DIM>
constexpr uint32_t query_shared_bytes() {
  return 2 * (kQueryRows + kQueryKeys) * Tile<DIM>::kRowBytes;
}

// A warp's rows; lse in units of log2 e.
template <int DIM>
struct QueryRows {
  float lse[2][2], delta[2][2];
  float dq[2][DIM / 8][4];
};

using Scores = float[2][kQueryKeys / 8][4];

// Left (32 rows) times right (32 keys) transposed.
template <class Half, int DIM>
__device__ __forceinline__ void multiply_tiles(Scores& product, const LaneTile<DIM>& left,
                                               const LaneTile<DIM>& right) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int n = 0; n < kQueryKeys / 8; n++) {
#pragma unroll
      for (int c = 0; c < 4; c++) product[i][n][c] = 0.0f;
    }
  }
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    uint32_t rows[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      load_matrices(rows[i], left.columns(step) + i * 16 * Tile<DIM>::kRowBytes);
    }
#pragma unroll
    for (int n = 0; n < kQueryKeys / 16; n++) {
      uint32_t keys[4];
      load_matrices(keys, right.columns(step) + n * 16 * Tile<DIM>::kRowBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Half::multiply(product[i][2 * n], rows[i], keys[0], keys[1]);
        Half::multiply(product[i][2 * n + 1], rows[i], keys[2], keys[3]);
      }
    }
  }
}

// dS = P (dP - delta), rounded, as the left operand of the next product. CHECK: only `keys` of the
// columns exist.
template <class Half, bool CHECK, int DIM>
__device__ __forceinline__ void gradient_of_scores(uint32_t (&ds)[2][kQueryKeys / 16][4],
                                                   const Scores& s, const Scores& dp,
                                                   const QueryRows<DIM>& rows, float factor,
                                                   int keys, float bias) {
  const int first = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float minus = CHECK ? bias - rows.lse[i][r] : -rows.lse[i][r];
#pragma unroll
      for (int n = 0; n < kQueryKeys / 8; n++) {
        float x[2];
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const float p = exp2_fast(fmaf(s[i][n][2 * r + c], factor, minus));
          x[c] = p * (dp[i][n][2 * r + c] - rows.delta[i][r]);
          if (CHECK && n * 8 + first + c >= keys) x[c] = 0.0f;
        }
        ds[i][n / 2][n % 2 * 2 + r] = Half::pack(x[0], x[1]);
      }
    }
  }
}

// dq += dS K. CHECK: rows that don't see the keys keep their bits, be the keys NaN or Inf.
template <class Half, bool CHECK, int DIM>
__device__ __forceinline__ void add_keys(QueryRows<DIM>& rows,
                                         const uint32_t (&ds)[2][kQueryKeys / 16][4],
                                         const LaneTile<DIM>& k, uint32_t seen) {
#pragma unroll
  for (int n = 0; n < DIM / 16; n++) {
    float sum[2][2][4];
#pragma unroll
    for (int at = 0; at < 16; at++) {
      sum[at / 8][at % 8 / 4][at % 4] = rows.dq[at / 8][2 * n + at % 8 / 4][at % 4];
    }
#pragma unroll
    for (int step = 0; step < kQueryKeys / 16; step++) {
      uint32_t keys[4];
      load_matrices_transposed(keys, k.columns(n) + step * 16 * Tile<DIM>::kRowBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Half::multiply(sum[i][0], ds[i][step], keys[0], keys[1]);
        Half::multiply(sum[i][1], ds[i][step], keys[2], keys[3]);
      }
    }
#pragma unroll
    for (int at = 0; at < 16; at++) {
      if (!CHECK || seen >> (2 * (at / 8) + at % 4 / 2) & 1) {
        rows.dq[at / 8][2 * n + at % 8 / 4][at % 4] = sum[at / 8][at % 8 / 4][at % 4];
      }
    }
  }
}

// All of a range's keys. While dP is computed the keys come, after it the next values: when a range
// begins the values' tile is free. CHECK: the last keys need not fill a tile, rows may not see
// them, and there is a bias; else `count` is a multiple of kQueryKeys.
template <class Half, int DIM, bool CHECK>
__device__ __forceinline__ void add_range(QueryRows<DIM>& rows, const LaneTile<DIM>& q,
                                          const LaneTile<DIM>& dout, uint32_t v_tile,
                                          const GenhoiAttention& in,
                                          KeyRange<typename Half::Value> range) {
  const uint32_t k_tile = v_tile + kQueryKeys * Tile<DIM>::kRowBytes;
  const TileCopy<DIM, kQueryKeys, kQueryThreads> copy(threadIdx.x);
  const auto v = LaneTile<DIM>::right(v_tile), k = LaneTile<DIM>::right(k_tile);
  const auto k_transposed = LaneTile<DIM>::left(k_tile);
  copy.template copy<CHECK>(v_tile, range.v, range.v_stride, in.head_dim, range.count);
  copies_commit();
  for (int left = range.count; left > 0; left -= kQueryKeys) {
    copies_wait<0>();
    __syncthreads();  // the values are there, and the last keys used
    copy.template copy<CHECK>(k_tile, range.k, range.k_stride, in.head_dim, left);
    copies_commit();
    Scores dp, s;
    multiply_tiles<Half, DIM>(dp, dout, v);

    copies_wait<0>();
    __syncthreads();  // the keys are there, and these values used
    range.k += kQueryKeys * range.k_stride;
    range.v += kQueryKeys * range.v_stride;
    if (left > kQueryKeys) {
      copy.template copy<CHECK>(v_tile, range.v, range.v_stride, in.head_dim, left - kQueryKeys);
      copies_commit();
    }
    multiply_tiles<Half, DIM>(s, q, k);
    uint32_t ds[2][kQueryKeys / 16][4];
    gradient_of_scores<Half, CHECK>(ds, s, dp, rows, scale_to_log2(in), left, range.bias);
    add_keys<Half, CHECK>(rows, ds, k_transposed, range.seen);
  }
}

// Which references some row of the tile sees.
__device__ __forceinline__ uint32_t flags_of_tile(const GenhoiAttention& in, int b, int start) {
  if (in.ref_tokens == 0) return 0;
  if (in.bits == nullptr) return ~0u;
  const int32_t* flags = in.tile_bits + b * in.tile_bits_batch + start / 64;
  return flags[0] | (start + 64 < in.rows ? flags[1] : 0);
}

// What whole tiles of video keys leave over, and the references.
template <class Half, int DIM>
__device__ __forceinline__ void add_rest(QueryRows<DIM>& rows, const LaneTile<DIM>& q,
                                         const LaneTile<DIM>& dout, uint32_t v_tile,
                                         const GenhoiAttention& in, int b, int h, int start) {
  using Value = typename Half::Value;
  const uint32_t flags = flags_of_tile(in, b, start);
  for (int segment = -1; segment < (flags == 0 ? 0 : in.references); segment++) {
    KeyRange<Value> range{head_of<Value>(in.k, b, h),
                          head_of<Value>(in.v, b, h),
                          in.k.token,
                          in.v.token,
                          in.keys % kQueryKeys,
                          0.0f,
                          15};
    int first = in.keys - range.count;
    if (segment >= 0) {
      const float bias = bias_to_log2(in, segment);
      if ((flags >> segment & 1) == 0 || bias == -INFINITY) continue;
      first = in.segments[segment];
      range = {head_of<Value>(in.k_ref, b, h),
               head_of<Value>(in.v_ref, b, h),
               in.k_ref.token,
               in.v_ref.token,
               in.segments[segment + 1] - first,
               bias,
               rows_that_see(in, b, start, segment)};
    }
    if (range.count == 0) continue;
    range.k += first * range.k_stride;
    range.v += first * range.v_stride;
    add_range<Half, DIM, true>(rows, q, dout, v_tile, in, range);
  }
}

template <int DIM>
__device__ __forceinline__ void begin_rows(QueryRows<DIM>& rows, const GenhoiBackward& call, int b,
                                           int h, int start) {
  const int64_t head = (static_cast<int64_t>(b) * call.in.heads + h) * call.in.rows;
#pragma unroll
  for (int at = 0; at < 4; at++) {
    const int row = start + row_in_tile(at / 2, at % 2);
    const bool there = row < call.in.rows;
    rows.lse[at / 2][at % 2] = there ? call.lse[head + row] * kLog2e : 0.0f;
    rows.delta[at / 2][at % 2] = there ? call.delta[head + row] : 0.0f;
  }
#pragma unroll
  for (int at = 0; at < DIM; at++) rows.dq[at * 2 / DIM][at % (DIM / 2) / 4][at % 4] = 0.0f;
}

// Grid: tiles of queries, heads, samples.
template <class Half, int DIM>
__global__ void __launch_bounds__(kQueryThreads, 2)
    gradient_of_queries(const __grid_constant__ GenhoiBackward call) {
  using Value = typename Half::Value;
  extern __shared__ __align__(1024) unsigned char memory[];
  const GenhoiAttention& in = call.in;
  const int start = blockIdx.x * kQueryRows, h = blockIdx.y, b = blockIdx.z;
  const uint32_t q_tile = shared_address(memory);
  const uint32_t dout_tile = q_tile + kQueryRows * Tile<DIM>::kRowBytes;
  const uint32_t v_tile = dout_tile + kQueryRows * Tile<DIM>::kRowBytes;

  // Load the tile's rows.
  const TileCopy<DIM, kQueryRows, kQueryThreads> copy(threadIdx.x);
  copy.template copy<true>(q_tile, head_of<Value>(in.q, b, h) + start * in.q.token, in.q.token,
                           in.head_dim, in.rows - start);
  copy.template copy<true>(dout_tile, head_of<Value>(call.dout, b, h) + start * call.dout.token,
                           call.dout.token, in.head_dim, in.rows - start);
  copies_commit();
  const auto q = LaneTile<DIM>::left(q_tile, threadIdx.x / 32 * 32);
  const auto dout = LaneTile<DIM>::left(dout_tile, threadIdx.x / 32 * 32);
  QueryRows<DIM> rows;
  begin_rows(rows, call, b, h, start);

  // The video's keys, then the references'.
  const KeyRange<Value> video{head_of<Value>(in.k, b, h),
                              head_of<Value>(in.v, b, h),
                              in.k.token,
                              in.v.token,
                              in.keys / kQueryKeys * kQueryKeys,
                              0.0f,
                              15};
  if (video.count > 0) add_range<Half, DIM, false>(rows, q, dout, v_tile, in, video);
  add_rest<Half, DIM>(rows, q, dout, v_tile, in, b, h, start);

  copies_wait<0>();  // a tile without any key has not waited for its rows
  __syncthreads();
  const int64_t skipped = static_cast<int64_t>(start) * in.heads * in.head_dim;
  store_rows<Half, DIM>(result_of<Value>(call.dq, in, b, h, in.rows) + skipped, in,
                        threadIdx.x / 32 * 32, 0, in.rows - start, memory, rows.dq, in.scale);
}

}  // namespace genhoi::cuda::backward
