// dK and dV: docs/op.md, "Backward". A block has 128 keys, all queries pass by.
//
//     P = exp(S - L);  dP = dO V^T;  dS = P (dP - delta);  dV = P^T dO;  dK = scale dS^T Q
//
// 128 keys, and tiles of 64 rows of queries that pass by. A warp takes 32 keys, whose dK and dV are
// in registers: at head dims above 64 they fit two warps' only, half of the columns each. Such a
// pair shares the scores as well: each computes those of 32 rows and sends them over, rounded.
//
// Fragments of 16 x 8 numbers: lane l holds rows l / 4 and l / 4 + 8 and columns 2 (l % 4) and the
// next, as [0], [1] and [2], [3].
#pragma once

#include "../common/element.cuh"
#include "../common/key_block.cuh"
#include "../common/query_tiles.cuh"
#include "../common/smem_tile.cuh"
#include "../common/store.cuh"
#include "traits.h"

namespace genhoi::cuda::sm80 {

// The first of this warp's keys in the block, and which warp of its pair it is.
template <int DIM>
__device__ __forceinline__ int first_key() {
  return threadIdx.x / 32 / BwdDkdvTraits<DIM>::kWarpsPerKeys * 32;
}
template <int DIM>
__device__ __forceinline__ int index_in_pair() {
  return threadIdx.x / 32 % BwdDkdvTraits<DIM>::kWarpsPerKeys;
}

// Copies a tile of rows, with zeros where `seen` (bit p: this thread's row of pass p) is not set.
template <int DIM, class Value>
__device__ __forceinline__ void copy_seen_rows(uint32_t tile, const Value* from, int64_t stride,
                                               int dim, uint32_t seen) {
  using Traits = BwdDkdvTraits<DIM>;
  using Copy = TileCopy<DIM, Traits::kQueries, Traits::kThreads>;
  const Copy copy(threadIdx.x);
  const uint32_t index = copy.row * static_cast<uint32_t>(stride) + copy.column;
#pragma unroll
  for (int pass = 0; pass < Copy::kPasses; pass++) {
#pragma unroll
    for (int c = 0; c < Copy::kChunks; c++) {
      const int chunk = c * Copy::kThreadsPerRow;
      const bool in_bounds = (seen >> pass & 1) && copy.column + chunk * kChunk < dim;
      cp_async_16(
          tile + copy.offset + pass * Copy::kRowsPerPass * SmemTile<DIM>::kRowBytes + chunk * 16,
          from + pass * Copy::kRowsPerPass * stride + index + chunk * kChunk, in_bounds);
    }
  }
}

// Loads the rows of one tile to a stage: q, dO, lse, delta. Rows that don't exist become zeros, and
// so do those that don't see the segment: whatever they hold, it must not reach the keys. Their lse
// is inf, which makes P zero.
template <class Element, int DIM, bool REFERENCE>
__device__ __forceinline__ void load_queries(unsigned char* memory, uint32_t stage,
                                             const GenhoiBackward& call,
                                             const QueryTiles<REFERENCE>& tiles, int h) {
  using Value = typename Element::Value;
  using Traits = BwdDkdvTraits<DIM>;
  using Copy = TileCopy<DIM, Traits::kQueries, Traits::kThreads>;
  const GenhoiAttention& in = call.in;
  const int b = tiles.sample, start = tiles.tile * Traits::kQueries, rows = in.rows - start;
  const Value* q = head_of<Value>(in.q, b, h) + start * in.q.token;
  const Value* dout = head_of<Value>(call.dout, b, h) + start * call.dout.token;
  const int64_t head = (static_cast<int64_t>(b) * in.heads + h) * in.rows + start;
  const int at = threadIdx.x % Traits::kQueries;
  const float* from = (threadIdx.x < Traits::kQueries ? call.lse : call.delta) + head + at;
  const uint32_t to = smem_address(memory) + stage;
  const Copy copy(threadIdx.x);
  if (!REFERENCE) {
    copy.template copy<true>(to, q, in.q.token, in.head_dim, rows);
    copy.template copy<true>(to + Traits::kQueryBytes, dout, call.dout.token, in.head_dim, rows);
    if (threadIdx.x < 2 * Traits::kQueries) {
      cp_async_4(to + Traits::kStatistics + threadIdx.x * sizeof(float), from, at < rows);
    }
    return;
  }
  const auto sees = [&](int row) { return tiles.sees(in, start + row); };
  static_assert(Traits::kQueries == kFlagRows);
  uint32_t seen = 0;
#pragma unroll
  for (int p = 0; p < Copy::kPasses; p++) seen |= sees(copy.row + p * Copy::kRowsPerPass) << p;
  copy_seen_rows<DIM>(to, q, in.q.token, in.head_dim, seen);
  copy_seen_rows<DIM>(to + Traits::kQueryBytes, dout, call.dout.token, in.head_dim, seen);
  if (threadIdx.x < 2 * Traits::kQueries) {
    auto* statistics = reinterpret_cast<float*>(memory + stage + Traits::kStatistics);
    const float unseen = threadIdx.x < Traits::kQueries ? INFINITY : 0.0f;
    statistics[threadIdx.x] = sees(at) ? *from : unseen;
  }
}

// What a warp sums over all queries: dK and dV of its 32 keys, and dS for the bias.
template <int DIM>
struct DkdvState {
  float acc_dk[2][BwdDkdvTraits<DIM>::kChunks][4], acc_dv[2][BwdDkdvTraits<DIM>::kChunks][4];
  float sum_ds[2][2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int at = 0; at < 4 * BwdDkdvTraits<DIM>::kChunks; at++) {
        acc_dk[i][at / 4][at % 4] = acc_dv[i][at / 4][at % 4] = 0.0f;
      }
      sum_ds[i][0] = sum_ds[i][1] = 0.0f;
    }
  }
};

// S^T or dP^T of 32 keys (two fragments) and 32 rows (four).
using DkdvScores = float[2][4][4];
// P^T and dS^T of the same, rounded: A operands, 16 rows each.
struct DkdvOperands {
  uint32_t p[2][2][4], ds[2][2][4];
};

// S^T = K Q^T and dP^T = V dO^T.
template <class Element, int DIM>
__device__ __forceinline__ void compute_scores(DkdvScores& s, DkdvScores& dp,
                                               const OperandTile<DIM>& k,
                                               const OperandTile<DIM>& q) {
  using Traits = BwdDkdvTraits<DIM>;
#pragma unroll
  for (int at = 0; at < 32; at++) {
    s[at / 16][at % 16 / 4][at % 4] = dp[at / 16][at % 16 / 4][at % 4] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    uint32_t keys[2][4], values[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t from = k.columns(step) + i * 16 * SmemTile<DIM>::kRowBytes;
      ldmatrix_x4(keys[i], from);
      ldmatrix_x4(values[i], from + Traits::kKeyBytes);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
      uint32_t rows[4], douts[4];
      const uint32_t from = q.columns(step) + n * 16 * SmemTile<DIM>::kRowBytes;
      ldmatrix_x4(rows, from);
      ldmatrix_x4(douts, from + Traits::kQueryBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Element::mma(s[i][2 * n], keys[i], rows[0], rows[1]);
        Element::mma(s[i][2 * n + 1], keys[i], rows[2], rows[3]);
        Element::mma(dp[i][2 * n], values[i], douts[0], douts[1]);
        Element::mma(dp[i][2 * n + 1], values[i], douts[2], douts[3]);
      }
    }
  }
}

// Computes P and dS from S and dP. statistics: lse of these rows, and delta 64 numbers further on.
// bias is in units of log2 e.
template <class Element, bool REFERENCE, int DIM>
__device__ __forceinline__ void compute_p_and_ds(DkdvOperands& operands, DkdvState<DIM>& keys,
                                                 const DkdvScores& s, const DkdvScores& dp,
                                                 const float* statistics, float scale_log2,
                                                 float bias) {
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const auto* pair = reinterpret_cast<const float2*>(statistics + n * 8) + threadIdx.x % 4;
    const float2 lse = pair[0], delta = pair[BwdDkdvTraits<DIM>::kQueries / 2];
    const float offset[2] = {fmaf(lse.x, -kLog2e, bias), fmaf(lse.y, -kLog2e, bias)};
    const float deltas[2] = {delta.x, delta.y};
#pragma unroll
    for (int at = 0; at < 4; at++) {
      const int i = at / 2, r = at % 2;
      float p[2], ds[2];
#pragma unroll
      for (int c = 0; c < 2; c++) {
        p[c] = exp2_fast(fmaf(s[i][n][2 * r + c], scale_log2, offset[c]));
        ds[c] = p[c] * (dp[i][n][2 * r + c] - deltas[c]);
        if (REFERENCE) {
          if (offset[c] == -INFINITY) p[c] = ds[c] = 0.0f;
          keys.sum_ds[i][r] += ds[c];
        }
      }
      operands.p[i][n / 2][n % 2 * 2 + r] = Element::pack(p[0], p[1]);
      operands.ds[i][n / 2][n % 2 * 2 + r] = Element::pack(ds[0], ds[1]);
    }
  }
}

// dV += P^T dO and dK += dS^T Q, this warp's columns. q: the 32 rows, transposed.
template <class Element, int DIM>
__device__ __forceinline__ void accumulate_dkdv(DkdvState<DIM>& keys, const DkdvOperands& operands,
                                                const OperandTile<DIM>& q) {
  using Traits = BwdDkdvTraits<DIM>;
  const int first = index_in_pair<DIM>() * (Traits::kChunks / 2);
#pragma unroll
  for (int step = 0; step < 2; step++) {
#pragma unroll
    for (int n = 0; n < Traits::kChunks / 2; n++) {
      uint32_t rows[4], douts[4];
      const uint32_t from = q.columns(first + n) + step * 16 * SmemTile<DIM>::kRowBytes;
      ldmatrix_x4_trans(douts, from + Traits::kQueryBytes);
      ldmatrix_x4_trans(rows, from);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Element::mma(keys.acc_dv[i][2 * n], operands.p[i][step], douts[0], douts[1]);
        Element::mma(keys.acc_dv[i][2 * n + 1], operands.p[i][step], douts[2], douts[3]);
        Element::mma(keys.acc_dk[i][2 * n], operands.ds[i][step], rows[0], rows[1]);
        Element::mma(keys.acc_dk[i][2 * n + 1], operands.ds[i][step], rows[2], rows[3]);
      }
    }
  }
}

// What a warp sends to the other of its pair and receives from it: registers as they are, 16 bytes
// of each lane beside those of the next.
template <int DIM>
__device__ __forceinline__ uint4* exchange_slot(unsigned char* memory, int warp) {
  return reinterpret_cast<uint4*>(memory + BwdDkdvTraits<DIM>::kExchange) + warp * 256 +
         threadIdx.x % 32;
}
template <int DIM>
__device__ __forceinline__ void send_to_partner(unsigned char* memory,
                                                const DkdvOperands& operands) {
  uint4* to = exchange_slot<DIM>(memory, threadIdx.x / 32);
#pragma unroll
  for (int at = 0; at < 4; at++) {
    const uint32_t (&p)[4] = operands.p[at / 2][at % 2];
    const uint32_t (&ds)[4] = operands.ds[at / 2][at % 2];
    to[at * 64] = {p[0], p[1], p[2], p[3]};
    to[at * 64 + 32] = {ds[0], ds[1], ds[2], ds[3]};
  }
}
template <int DIM>
__device__ __forceinline__ void receive_from_partner(unsigned char* memory,
                                                     DkdvOperands& operands) {
  const uint4* from = exchange_slot<DIM>(memory, threadIdx.x / 32 ^ 1);
#pragma unroll
  for (int at = 0; at < 4; at++) {
    const uint4 p = from[at * 64], ds = from[at * 64 + 32];
    const uint32_t ps[4] = {p.x, p.y, p.z, p.w}, dss[4] = {ds.x, ds.y, ds.z, ds.w};
#pragma unroll
    for (int c = 0; c < 4; c++) {
      operands.p[at / 2][at % 2][c] = ps[c];
      operands.ds[at / 2][at % 2][c] = dss[c];
    }
  }
}

// Adds one stage's rows. A pair's warp adds those that it has scored first, then the other's.
template <class Element, int DIM, bool REFERENCE>
__device__ __forceinline__ void process_stage(DkdvState<DIM>& keys, unsigned char* memory,
                                              uint32_t stage, float scale_log2, float bias) {
  using Traits = BwdDkdvTraits<DIM>;
  constexpr uint32_t kHalf = 32 * SmemTile<DIM>::kRowBytes;
  const auto k = OperandTile<DIM>::a(smem_address(memory), first_key<DIM>());
  const auto* statistics = reinterpret_cast<const float*>(memory + stage + Traits::kStatistics);
  const uint32_t rows = smem_address(memory) + stage;
  const int index = index_in_pair<DIM>();
  DkdvOperands operands;
#pragma unroll 1
  for (int half = index; half < index + 2 / Traits::kWarpsPerKeys; half++) {
    DkdvScores s, dp;
    compute_scores<Element, DIM>(s, dp, k, OperandTile<DIM>::b(rows + half * kHalf));
    compute_p_and_ds<Element, REFERENCE>(operands, keys, s, dp, statistics + half * 32, scale_log2,
                                         bias);
    if (Traits::kWarpsPerKeys == 2) send_to_partner<DIM>(memory, operands);
    accumulate_dkdv<Element, DIM>(keys, operands, OperandTile<DIM>::a(rows + half * kHalf));
  }
  if (Traits::kWarpsPerKeys == 2) {
    sync_pair(1 + threadIdx.x / 64);
    receive_from_partner<DIM>(memory, operands);
    accumulate_dkdv<Element, DIM>(keys, operands, OperandTile<DIM>::a(rows + (1 - index) * kHalf));
  }
}

// Stores the block's part of the bias's gradient: the sum of dS, in a fixed order.
template <int DIM>
__device__ __forceinline__ void store_bias_part(float* to, const DkdvState<DIM>& keys, int count,
                                                float* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum = 0.0f;
#pragma unroll
  for (int at = 0; at < 4; at++) {
    const int key = first_key<DIM>() + at / 2 * 16 + at % 2 * 8 + lane / 4;
    if (key < count) sum += keys.sum_ds[at / 2][at % 2];
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane == 0) scratch[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < BwdDkdvTraits<DIM>::kThreads / 32; i++) sum += scratch[i];
  *to = sum;
}

// Loads the block's keys and values.
template <class Element, int DIM>
__device__ __forceinline__ void load_keys(uint32_t memory, const GenhoiTokens& k,
                                          const GenhoiTokens& v, int dim, int b, int h,
                                          const KeyBlock& block) {
  using Value = typename Element::Value;
  using Traits = BwdDkdvTraits<DIM>;
  const TileCopy<DIM, Traits::kKeys, Traits::kThreads> copy(threadIdx.x);
  copy.template copy<true>(memory, head_of<Value>(k, b, h) + block.first * k.token, k.token, dim,
                           block.count);
  copy.template copy<true>(memory + Traits::kKeyBytes,
                           head_of<Value>(v, b, h) + block.first * v.token, v.token, dim,
                           block.count);
}

// Stores dK, dV, and the part of the bias's gradient.
template <class Element, int DIM, bool REFERENCE>
__device__ __forceinline__ void store_gradients(const DkdvState<DIM>& keys,
                                                const GenhoiBackward& call, unsigned char* memory,
                                                const KeyBlock& block, int b, int h) {
  using Value = typename Element::Value;
  using Traits = BwdDkdvTraits<DIM>;
  const GenhoiAttention& in = call.in;
  const int tokens = REFERENCE ? in.ref_tokens : in.keys;
  const int64_t skipped = static_cast<int64_t>(block.first) * in.heads * in.head_dim;
  Value* dk =
      gradient_of_head<Value>(REFERENCE ? call.dk_ref : call.dk, in, b, h, tokens) + skipped;
  Value* dv =
      gradient_of_head<Value>(REFERENCE ? call.dv_ref : call.dv, in, b, h, tokens) + skipped;
  const int chunk = index_in_pair<DIM>() * Traits::kChunks;
  store_gradient<Element, DIM>(dk, in, first_key<DIM>(), chunk, block.count, memory, keys.acc_dk,
                               in.scale);
  store_gradient<Element, DIM>(dv, in, first_key<DIM>(), chunk, block.count,
                               memory + Traits::kKeyBytes, keys.acc_dv, 1.0f);
  if (REFERENCE && call.dref_bias != nullptr) {
    float* parts = call.bias_parts + (static_cast<int64_t>(b) * in.heads + h) * gridDim.x;
    store_bias_part<DIM>(parts + blockIdx.x, keys, block.count,
                         reinterpret_cast<float*>(memory + 2 * Traits::kKeyBytes));
  }
}

// Computes dK and dV. Grid: blocks of keys, heads, samples; of the video's keys or the references',
// which several samples may share.
template <class Element, int DIM, bool REFERENCE>
__global__ void __launch_bounds__(BwdDkdvTraits<DIM>::kThreads, BwdDkdvTraits<DIM>::kBlocksPerSm)
    bwd_dkdv(const __grid_constant__ GenhoiBackward call) {
  using Traits = BwdDkdvTraits<DIM>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const GenhoiAttention& in = call.in;
  const int h = blockIdx.y, b = blockIdx.z;
  const KeyBlock block = REFERENCE ? reference_block(in, blockIdx.x) : video_block(in, blockIdx.x);
  if (block.count == 0) return;
  load_keys<Element, DIM>(smem_address(memory), REFERENCE ? in.k_ref : in.k,
                          REFERENCE ? in.v_ref : in.v, in.head_dim, b, h, block);

  // Rows of queries pass: while a stage is used the next tile is on its way to the other.
  const float bias = REFERENCE ? bias_to_log2(in, block.segment) : 0.0f;
  QueryTiles<REFERENCE> tiles(call, b, block.segment);
  uint32_t stage = 2 * Traits::kKeyBytes, other = stage + Traits::kStageBytes;
  DkdvState<DIM> keys;
  keys.clear();
  tiles.skip_unseen(in);
  bool loaded = tiles.has_tile();
  if (loaded) load_queries<Element, DIM>(memory, stage, call, tiles, h);
  cp_async_commit();
  while (loaded) {
    cp_async_wait<0>();
    __syncthreads();  // the stage is there, and the other used
    tiles.tile++;
    tiles.skip_unseen(in);
    loaded = tiles.has_tile();
    if (loaded) load_queries<Element, DIM>(memory, other, call, tiles, h);
    cp_async_commit();
    process_stage<Element, DIM, REFERENCE>(keys, memory, stage, scale_to_log2(in), bias);
    const uint32_t used = stage;
    stage = other;
    other = used;
  }

  cp_async_wait<0>();
  __syncthreads();
  store_gradients<Element, DIM, REFERENCE>(keys, call, memory, block, b, h);
}

}  // namespace genhoi::cuda::sm80
