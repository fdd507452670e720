// dK and dV: docs/op.md, "Backward". A block has 128 keys, all queries pass by.
//
//     P = exp(S - L);  dP = dO V^T;  dS = P (dP - delta);  dV = P^T dO;  dK = scale dS^T Q
//
// 128 keys, and tiles of 64 rows of queries that pass by. A warp takes 32 keys, whose dK and dV are
// in registers: at head dims above 64 they fit two warps' only, half of the columns each. Such a
// pair shares the scores as well: each computes those of 32 rows and hands them over, rounded.
//
// Fragments of 16 x 8 numbers: lane l holds rows l / 4 and l / 4 + 8 and columns 2 (l % 4) and the
// next, as [0], [1] and [2], [3].
#pragma once

#include "backward.cuh"

namespace genhoi::cuda::backward {

template <int DIM>
struct KeysCut {
  static constexpr int kShare = DIM == 64 ? 1 : 2;  // warps to 32 keys
  static constexpr int kKeys = GENHOI_BACKWARD_KEYS;
  static constexpr int kThreads = kKeys * kShare;
  static constexpr int kBlocks = 2 / kShare;  // on an SM
  static constexpr int kRows = 64;
  static constexpr int kChunks = DIM / kChunk / kShare;  // of dK and dV that a warp has
  static constexpr uint32_t kKeysBytes = kKeys * Tile<DIM>::kRowBytes;
  static constexpr uint32_t kRowsBytes = kRows * Tile<DIM>::kRowBytes;
  // Shared memory: K, V, two stages of (q, dO, lse, delta), and what pairs hand over.
  static constexpr uint32_t kStatistics = 2 * kRowsBytes;
  static constexpr uint32_t kStage = kStatistics + 2 * kRows * sizeof(float);
  static constexpr uint32_t kHanded = 2 * kKeysBytes + 2 * kStage;
  static constexpr uint32_t kShared = kHanded + (kShare == 1 ? 0 : kThreads * 128);
  static_assert(kStage % 256 == 0);
};

// The first of this warp's keys in the block, and which of a pair it is.
template <int DIM>
__device__ __forceinline__ int first_key() {
  return threadIdx.x / 32 / KeysCut<DIM>::kShare * 32;
}
template <int DIM>
__device__ __forceinline__ int share_of_warp() {
  return threadIdx.x / 32 % KeysCut<DIM>::kShare;
}

// Keys of one head that a block is for.
struct KeyBlock {
  int first, count;
  int segment;  // of the references
};

// Block number `block` of the references' keys; a count of 0 if there are fewer.
__device__ __forceinline__ KeyBlock reference_block(const GenhoiAttention& in, int block) {
  for (int segment = 0; segment < in.references; segment++) {
    const int first = in.segments[segment], count = in.segments[segment + 1] - first;
    const int blocks = (count + GENHOI_BACKWARD_KEYS - 1) / GENHOI_BACKWARD_KEYS;
    if (block < blocks) {
      const int skipped = block * GENHOI_BACKWARD_KEYS;
      return {first + skipped, min(count - skipped, GENHOI_BACKWARD_KEYS), segment};
    }
    block -= blocks;
  }
  return {0, 0, 0};
}

// Goes through the tiles of rows of a few samples, leaving out those that don't see the segment.
template <bool REFERENCE>
struct RowTiles {
  static constexpr int kRows = 64;
  int sample, end, segment;
  int tile = 0;

  __device__ __forceinline__ bool there() const { return sample < end; }

  // To the next tile from this one on that has a row to look at. All lanes of a warp together.
  __device__ __forceinline__ void settle(const GenhoiAttention& in) {
    const int tiles = in.rows / kRows + (in.rows % kRows != 0);
    while (sample < end) {
      if (!REFERENCE || in.bits == nullptr) {
        if (tile < tiles) return;
      } else {
        for (const int lane = threadIdx.x % 32; tile < tiles; tile += 32) {
          const int32_t* flags = in.tile_bits + sample * in.tile_bits_batch + tile;
          const bool sees = tile + lane < tiles && (flags[lane] >> segment & 1);
          const uint32_t found = __ballot_sync(~0u, sees);
          if (found != 0) {
            tile += __ffs(found) - 1;
            return;
          }
        }
      }
      sample++;
      tile = 0;
    }
  }
};

// Copies a tile of rows, zeros where `sees` (bit p: this thread's row of pass p) is not set.
template <int DIM, class Value>
__device__ __forceinline__ void copy_seen(uint32_t tile, const Value* from, int64_t stride, int dim,
                                          uint32_t sees) {
  using Cut = KeysCut<DIM>;
  using Copy = TileCopy<DIM, Cut::kRows, Cut::kThreads>;
  const Copy copy(threadIdx.x);
  const uint32_t mine = copy.row * static_cast<uint32_t>(stride) + copy.column;
#pragma unroll
  for (int pass = 0; pass < Copy::kPasses; pass++) {
#pragma unroll
    for (int c = 0; c < Copy::kChunks; c++) {
      const int further = c * Copy::kThreadsOfRow;
      const bool there = (sees >> pass & 1) && copy.column + further * kChunk < dim;
      copy_async(
          tile + copy.offset + pass * Copy::kRowsAtOnce * Tile<DIM>::kRowBytes + further * 16,
          from + pass * Copy::kRowsAtOnce * stride + mine + further * kChunk, there);
    }
  }
}

// Rows of one tile to a stage: q, dO, lse, delta. Rows that there are not become zeros, and so do
// those that don't see the segment: whatever they hold, it must not reach the keys. Their lse is
// inf, which makes P zero.
template <class Half, int DIM, bool REFERENCE>
__device__ __forceinline__ void load_rows(unsigned char* memory, uint32_t stage,
                                          const GenhoiBackward& call,
                                          const RowTiles<REFERENCE>& tiles, int h) {
  using Value = typename Half::Value;
  using Cut = KeysCut<DIM>;
  using Copy = TileCopy<DIM, Cut::kRows, Cut::kThreads>;
  const GenhoiAttention& in = call.in;
  const int b = tiles.sample, start = tiles.tile * Cut::kRows, rows = in.rows - start;
  const Value* q = head_of<Value>(in.q, b, h) + start * in.q.token;
  const Value* dout = head_of<Value>(call.dout, b, h) + start * call.dout.token;
  const int64_t head = (static_cast<int64_t>(b) * in.heads + h) * in.rows + start;
  const int at = threadIdx.x % Cut::kRows;
  const float* from = (threadIdx.x < Cut::kRows ? call.lse : call.delta) + head + at;
  const uint32_t to = shared_address(memory) + stage;
  const Copy copy(threadIdx.x);
  if (!REFERENCE) {
    copy.template copy<true>(to, q, in.q.token, in.head_dim, rows);
    copy.template copy<true>(to + Cut::kRowsBytes, dout, call.dout.token, in.head_dim, rows);
    if (threadIdx.x < 2 * Cut::kRows) {
      copy_word_async(to + Cut::kStatistics + threadIdx.x * sizeof(float), from, at < rows);
    }
    return;
  }
  const int32_t* bits = in.bits == nullptr ? nullptr : in.bits + b * in.bits_batch + start;
  const auto sees = [&](int row) {
    return row < rows && (bits == nullptr || (bits[row] >> tiles.segment & 1));
  };
  uint32_t passes = 0;
#pragma unroll
  for (int p = 0; p < Copy::kPasses; p++) passes |= sees(copy.row + p * Copy::kRowsAtOnce) << p;
  copy_seen<DIM>(to, q, in.q.token, in.head_dim, passes);
  copy_seen<DIM>(to + Cut::kRowsBytes, dout, call.dout.token, in.head_dim, passes);
  if (threadIdx.x < 2 * Cut::kRows) {
    auto* statistics = reinterpret_cast<float*>(memory + stage + Cut::kStatistics);
    const float unseen = threadIdx.x < Cut::kRows ? INFINITY : 0.0f;
    statistics[threadIdx.x] = sees(at) ? *from : unseen;
  }
}

// What a warp sums over all rows of queries: of its 32 keys dK and dV, and dS for the bias.
template <int DIM>
struct KeyRows {
  float dk[2][KeysCut<DIM>::kChunks][4], dv[2][KeysCut<DIM>::kChunks][4];
  float ds[2][2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int at = 0; at < 4 * KeysCut<DIM>::kChunks; at++) {
        dk[i][at / 4][at % 4] = dv[i][at / 4][at % 4] = 0.0f;
      }
      ds[i][0] = ds[i][1] = 0.0f;
    }
  }
};

// Numbers of 32 keys (two fragments) and 32 rows (four).
using KeyScores = float[2][4][4];
// P and dS of the same, rounded: left operands, 16 rows each.
struct KeyWeights {
  uint32_t p[2][2][4], ds[2][2][4];
};

// S^T = K Q^T and dP^T = V dO^T.
template <class Half, int DIM>
__device__ __forceinline__ void multiply_keys(KeyScores& s, KeyScores& dp, const LaneTile<DIM>& k,
                                              const LaneTile<DIM>& q) {
  using Cut = KeysCut<DIM>;
#pragma unroll
  for (int at = 0; at < 32; at++) {
    s[at / 16][at % 16 / 4][at % 4] = dp[at / 16][at % 16 / 4][at % 4] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    uint32_t keys[2][4], values[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t from = k.columns(step) + i * 16 * Tile<DIM>::kRowBytes;
      load_matrices(keys[i], from);
      load_matrices(values[i], from + Cut::kKeysBytes);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
      uint32_t rows[4], douts[4];
      const uint32_t from = q.columns(step) + n * 16 * Tile<DIM>::kRowBytes;
      load_matrices(rows, from);
      load_matrices(douts, from + Cut::kRowsBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Half::multiply(s[i][2 * n], keys[i], rows[0], rows[1]);
        Half::multiply(s[i][2 * n + 1], keys[i], rows[2], rows[3]);
        Half::multiply(dp[i][2 * n], values[i], douts[0], douts[1]);
        Half::multiply(dp[i][2 * n + 1], values[i], douts[2], douts[3]);
      }
    }
  }
}

// P and dS of S and dP. statistics: lse of these rows, and delta 64 numbers further on. bias is in
// units of log2 e.
template <class Half, bool REFERENCE, int DIM>
__device__ __forceinline__ void weigh_rows(KeyWeights& weights, KeyRows<DIM>& keys,
                                           const KeyScores& s, const KeyScores& dp,
                                           const float* statistics, float factor, float bias) {
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const auto* mine = reinterpret_cast<const float2*>(statistics + n * 8) + threadIdx.x % 4;
    const float2 lse = mine[0], delta = mine[KeysCut<DIM>::kRows / 2];
    const float minus[2] = {fmaf(lse.x, -kLog2e, bias), fmaf(lse.y, -kLog2e, bias)};
    const float deltas[2] = {delta.x, delta.y};
#pragma unroll
    for (int at = 0; at < 4; at++) {
      const int i = at / 2, r = at % 2;
      float p[2], ds[2];
#pragma unroll
      for (int c = 0; c < 2; c++) {
        p[c] = exp2_fast(fmaf(s[i][n][2 * r + c], factor, minus[c]));
        ds[c] = p[c] * (dp[i][n][2 * r + c] - deltas[c]);
        if (REFERENCE) {
          if (minus[c] == -INFINITY) p[c] = ds[c] = 0.0f;
          keys.ds[i][r] += ds[c];
        }
      }
      weights.p[i][n / 2][n % 2 * 2 + r] = Half::pack(p[0], p[1]);
      weights.ds[i][n / 2][n % 2 * 2 + r] = Half::pack(ds[0], ds[1]);
    }
  }
}

// dV += P^T dO and dK += dS^T Q, this warp's columns. q: the 32 rows, transposed.
template <class Half, int DIM>
__device__ __forceinline__ void add_rows(KeyRows<DIM>& keys, const KeyWeights& weights,
                                         const LaneTile<DIM>& q) {
  using Cut = KeysCut<DIM>;
  const int first = share_of_warp<DIM>() * (Cut::kChunks / 2);
#pragma unroll
  for (int step = 0; step < 2; step++) {
#pragma unroll
    for (int n = 0; n < Cut::kChunks / 2; n++) {
      uint32_t rows[4], douts[4];
      const uint32_t from = q.columns(first + n) + step * 16 * Tile<DIM>::kRowBytes;
      load_matrices_transposed(douts, from + Cut::kRowsBytes);
      load_matrices_transposed(rows, from);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Half::multiply(keys.dv[i][2 * n], weights.p[i][step], douts[0], douts[1]);
        Half::multiply(keys.dv[i][2 * n + 1], weights.p[i][step], douts[2], douts[3]);
        Half::multiply(keys.dk[i][2 * n], weights.ds[i][step], rows[0], rows[1]);
        Half::multiply(keys.dk[i][2 * n + 1], weights.ds[i][step], rows[2], rows[3]);
      }
    }
  }
}

// What this warp hands over, and takes from the other of its pair: registers as they are, 16 bytes
// of each lane beside those of the next.
template <int DIM>
__device__ __forceinline__ uint4* handed(unsigned char* memory, int warp) {
  return reinterpret_cast<uint4*>(memory + KeysCut<DIM>::kHanded) + warp * 256 + threadIdx.x % 32;
}
template <int DIM>
__device__ __forceinline__ void hand_over(unsigned char* memory, const KeyWeights& weights) {
  uint4* to = handed<DIM>(memory, threadIdx.x / 32);
#pragma unroll
  for (int at = 0; at < 4; at++) {
    const uint32_t (&p)[4] = weights.p[at / 2][at % 2];
    const uint32_t (&ds)[4] = weights.ds[at / 2][at % 2];
    to[at * 64] = {p[0], p[1], p[2], p[3]};
    to[at * 64 + 32] = {ds[0], ds[1], ds[2], ds[3]};
  }
}
template <int DIM>
__device__ __forceinline__ void take_over(unsigned char* memory, KeyWeights& weights) {
  const uint4* from = handed<DIM>(memory, threadIdx.x / 32 ^ 1);
#pragma unroll
  for (int at = 0; at < 4; at++) {
    const uint4 p = from[at * 64], ds = from[at * 64 + 32];
    const uint32_t ps[4] = {p.x, p.y, p.z, p.w}, dss[4] = {ds.x, ds.y, ds.z, ds.w};
#pragma unroll
    for (int c = 0; c < 4; c++) {
      weights.p[at / 2][at % 2][c] = ps[c];
      weights.ds[at / 2][at % 2][c] = dss[c];
    }
  }
}

// One stage's rows. A pair's warp adds those that it has scored first, then the other's.
template <class Half, int DIM, bool REFERENCE>
__device__ __forceinline__ void add_stage(KeyRows<DIM>& keys, unsigned char* memory, uint32_t stage,
                                          float factor, float bias) {
  using Cut = KeysCut<DIM>;
  constexpr uint32_t kHalf = 32 * Tile<DIM>::kRowBytes;
  const auto k = LaneTile<DIM>::left(shared_address(memory), first_key<DIM>());
  const auto* statistics = reinterpret_cast<const float*>(memory + stage + Cut::kStatistics);
  const uint32_t rows = shared_address(memory) + stage;
  const int share = share_of_warp<DIM>();
  KeyWeights weights;
#pragma unroll 1
  for (int half = share; half < share + 2 / Cut::kShare; half++) {
    KeyScores s, dp;
    multiply_keys<Half, DIM>(s, dp, k, LaneTile<DIM>::right(rows + half * kHalf));
    weigh_rows<Half, REFERENCE>(weights, keys, s, dp, statistics + half * 32, factor, bias);
    if (Cut::kShare == 2) hand_over<DIM>(memory, weights);
    add_rows<Half, DIM>(keys, weights, LaneTile<DIM>::left(rows + half * kHalf));
  }
  if (Cut::kShare == 2) {
    pair_sync(1 + threadIdx.x / 64);
    take_over<DIM>(memory, weights);
    add_rows<Half, DIM>(keys, weights, LaneTile<DIM>::left(rows + (1 - share) * kHalf));
  }
}

// The block's share of the bias's gradient: the sum of dS, in a fixed order.
template <int DIM>
__device__ __forceinline__ void store_bias_part(float* to, const KeyRows<DIM>& keys, int count,
                                                float* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum = 0.0f;
#pragma unroll
  for (int at = 0; at < 4; at++) {
    const int key = first_key<DIM>() + at / 2 * 16 + at % 2 * 8 + lane / 4;
    if (key < count) sum += keys.ds[at / 2][at % 2];
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane == 0) scratch[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < KeysCut<DIM>::kThreads / 32; i++) sum += scratch[i];
  *to = sum;
}

// Loads the block's keys and values.
template <class Half, int DIM>
__device__ __forceinline__ void load_keys(uint32_t memory, const GenhoiTokens& k,
                                          const GenhoiTokens& v, int dim, int b, int h,
                                          const KeyBlock& block) {
  using Value = typename Half::Value;
  using Cut = KeysCut<DIM>;
  const TileCopy<DIM, Cut::kKeys, Cut::kThreads> copy(threadIdx.x);
  copy.template copy<true>(memory, head_of<Value>(k, b, h) + block.first * k.token, k.token, dim,
                           block.count);
  copy.template copy<true>(memory + Cut::kKeysBytes,
                           head_of<Value>(v, b, h) + block.first * v.token, v.token, dim,
                           block.count);
}

// dK, dV, and the share of the bias's gradient.
template <class Half, int DIM, bool REFERENCE>
__device__ __forceinline__ void store_gradients(const KeyRows<DIM>& keys,
                                                const GenhoiBackward& call, unsigned char* memory,
                                                const KeyBlock& block, int b, int h) {
  using Value = typename Half::Value;
  using Cut = KeysCut<DIM>;
  const GenhoiAttention& in = call.in;
  const int tokens = REFERENCE ? in.ref_tokens : in.keys;
  const int64_t skipped = static_cast<int64_t>(block.first) * in.heads * in.head_dim;
  Value* dk = result_of<Value>(REFERENCE ? call.dk_ref : call.dk, in, b, h, tokens) + skipped;
  Value* dv = result_of<Value>(REFERENCE ? call.dv_ref : call.dv, in, b, h, tokens) + skipped;
  const int chunk = share_of_warp<DIM>() * Cut::kChunks;
  store_rows<Half, DIM>(dk, in, first_key<DIM>(), chunk, block.count, memory, keys.dk, in.scale);
  store_rows<Half, DIM>(dv, in, first_key<DIM>(), chunk, block.count, memory + Cut::kKeysBytes,
                        keys.dv, 1.0f);
  if (REFERENCE && call.dref_bias != nullptr) {
    float* parts = call.bias_parts + (static_cast<int64_t>(b) * in.heads + h) * gridDim.x;
    store_bias_part<DIM>(parts + blockIdx.x, keys, block.count,
                         reinterpret_cast<float*>(memory + 2 * Cut::kKeysBytes));
  }
}

// Grid: blocks of keys, heads, samples; of the video's keys or the references', which several
// samples may share.
template <class Half, int DIM, bool REFERENCE>
__global__ void __launch_bounds__(KeysCut<DIM>::kThreads, KeysCut<DIM>::kBlocks)
    gradient_of_keys(const __grid_constant__ GenhoiBackward call) {
  using Cut = KeysCut<DIM>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const GenhoiAttention& in = call.in;
  const int h = blockIdx.y, b = blockIdx.z, first = blockIdx.x * Cut::kKeys;
  const KeyBlock block = REFERENCE ? reference_block(in, blockIdx.x)
                                   : KeyBlock{first, min(in.keys - first, Cut::kKeys), 0};
  if (block.count == 0) return;
  load_keys<Half, DIM>(shared_address(memory), REFERENCE ? in.k_ref : in.k,
                       REFERENCE ? in.v_ref : in.v, in.head_dim, b, h, block);

  // Rows of queries pass: while a stage is used the next tile is on its way to the other.
  const float bias = REFERENCE ? bias_to_log2(in, block.segment) : 0.0f;
  const bool shared = REFERENCE && call.ref_batch == 1;
  RowTiles<REFERENCE> tiles{shared ? 0 : b, shared ? in.batch : b + 1, block.segment};
  if (bias == -INFINITY) tiles.sample = tiles.end;  // P = 0
  uint32_t stage = 2 * Cut::kKeysBytes, other = stage + Cut::kStage;
  KeyRows<DIM> keys;
  keys.clear();
  tiles.settle(in);
  bool loaded = tiles.there();
  if (loaded) load_rows<Half, DIM>(memory, stage, call, tiles, h);
  copies_commit();
  while (loaded) {
    copies_wait<0>();
    __syncthreads();  // the stage is there, and the other used
    tiles.tile++;
    tiles.settle(in);
    loaded = tiles.there();
    if (loaded) load_rows<Half, DIM>(memory, other, call, tiles, h);
    copies_commit();
    add_stage<Half, DIM, REFERENCE>(keys, memory, stage, scale_to_log2(in), bias);
    const uint32_t used = stage;
    stage = other;
    other = used;
  }

  copies_wait<0>();
  __syncthreads();
  store_gradients<Half, DIM, REFERENCE>(keys, call, memory, block, b, h);
}

}  // namespace genhoi::cuda::backward
