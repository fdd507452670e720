// Attention of one tile of queries to a range of keys: load, multiply, softmax, multiply.
//
// With 32 rows (rows.cuh) a warp multiplies each key it has read from shared memory twice: with 16,
// reading them would take as long as multiplying.
#pragma once

#include "ptx.cuh"
#include "rows.cuh"
#include "tile.cuh"

namespace genhoi::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kQueries = kWarps * kWarpRows;
constexpr int kKeys = 64;

// Softmax so far of a warp's rows: highest logit (in units of log2 e), sum of exp2 of the rest over
// this lane's columns, and the sum of values.
template <int DIM>
struct RowState {
  float highest[2][2], total[2][2];
  float sum[2][DIM / 8][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        highest[i][r] = -INFINITY;
        total[i][r] = 0.0f;
      }
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
        for (int c = 0; c < 4; c++) sum[i][n][c] = 0.0f;
      }
    }
  }
};

// Writes fragments of a warp's rows to its rows of a tile: pairs of columns 8 n + 2 (l % 4).
template <int DIM>
struct RowWriter {
  LaneTile<DIM> first;

  __device__ __forceinline__ explicit RowWriter(uint32_t tile, int use)
      : first(LaneTile<DIM>(tile + threadIdx.x % 4 * 4, row_in_tile(0, 0), 0).fresh(use)) {}

  __device__ __forceinline__ void put(int i, int r, int n, uint32_t pair) const {
    store_shared(first.further(n) + (i * 16 + r * 8) * Tile<DIM>::kRowBytes, pair);
  }
};

// scores = Q K^T of 32 x 64.
template <class Half, int DIM>
__device__ __forceinline__ void multiply_keys(float (&scores)[2][kKeys / 8][4],
                                              const LaneTile<DIM>& q, const LaneTile<DIM>& k) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++) {
#pragma unroll
      for (int c = 0; c < 4; c++) scores[i][n][c] = 0.0f;
    }
  }
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    uint32_t queries[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      load_matrices(queries[i], q.columns(step) + i * 16 * Tile<DIM>::kRowBytes);
    }
#pragma unroll
    for (int n = 0; n < kKeys / 16; n++) {
      uint32_t keys[4];
      load_matrices(keys, k.columns(step) + n * 16 * Tile<DIM>::kRowBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Half::multiply(scores[i][2 * n], queries[i], keys[0], keys[1]);
        Half::multiply(scores[i][2 * n + 1], queries[i], keys[2], keys[3]);
      }
    }
  }
}

// Scores become probabilities, relative to the highest logit so far; `rescale` is what earlier ones
// are to be multiplied by. CHECK: only `keys` of the columns exist, and rows may see none of them.
template <bool CHECK, int DIM>
__device__ __forceinline__ void softmax(float (&scores)[2][kKeys / 8][4], float (&rescale)[2][2],
                                        RowState<DIM>& rows, float factor, int keys, float bias,
                                        uint32_t seen) {
  if (CHECK) {
    const int first = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++) {
#pragma unroll
      for (int c = 0; c < 4; c++) {
        if (n * 8 + first + c % 2 >= keys) scores[0][n][c] = scores[1][n][c] = -INFINITY;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float top = scores[i][0][2 * r];
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) {
        top = fmaxf(top, fmaxf(scores[i][n][2 * r], scores[i][n][2 * r + 1]));
      }
      top = row_max(top) * factor;
      if (CHECK) top += bias;
      const float before = rows.highest[i][r];
      const float highest = fmaxf(before, top);
      // Where every logit so far is -inf (a bias of that, or no key): exp2(-inf - 0) is 0.
      const float shift = CHECK && highest == -INFINITY ? 0.0f : highest;
      const float minus = CHECK ? bias - shift : -shift;
      rescale[i][r] = exp2_fast(before - shift);
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) {
#pragma unroll
        for (int c = 2 * r; c < 2 * r + 2; c++) {
          scores[i][n][c] = exp2_fast(fmaf(scores[i][n][c], factor, minus));
          total += scores[i][n][c];
        }
      }
      if (!CHECK || seen >> (2 * i + r) & 1) {
        rows.highest[i][r] = highest;
        rows.total[i][r] = fmaf(rows.total[i][r], rescale[i][r], total);
      }
    }
  }
}

// sum = sum * rescale + P V. CHECK: rows that don't see the keys keep their bits, come NaN or Inf.
template <class Half, bool CHECK, int DIM>
__device__ __forceinline__ void multiply_values(RowState<DIM>& rows,
                                                const float (&scores)[2][kKeys / 8][4],
                                                const float (&rescale)[2][2],
                                                const LaneTile<DIM>& v, uint32_t seen) {
  uint32_t p[2][kKeys / 16][4];
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++) {
      p[i][n / 2][n % 2 * 2] = Half::pack(scores[i][n][0], scores[i][n][1]);
      p[i][n / 2][n % 2 * 2 + 1] = Half::pack(scores[i][n][2], scores[i][n][3]);
    }
  }
#pragma unroll
  for (int n = 0; n < DIM / 16; n++) {
    float before[2][2][4];
#pragma unroll
    for (int c = 0; c < 16; c++) {
      float& sum = rows.sum[c / 8][2 * n + c / 4 % 2][c % 4];
      before[c / 8][c / 4 % 2][c % 4] = sum;
      sum *= rescale[c / 8][c % 4 / 2];
    }
#pragma unroll
    for (int step = 0; step < kKeys / 16; step++) {
      uint32_t values[4];
      load_matrices_transposed(values, v.columns(n) + step * 16 * Tile<DIM>::kRowBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Half::multiply(rows.sum[i][2 * n], p[i][step], values[0], values[1]);
        Half::multiply(rows.sum[i][2 * n + 1], p[i][step], values[2], values[3]);
      }
    }
#pragma unroll
    for (int c = 0; c < 16; c++) {
      if (CHECK && (seen >> (c / 8 * 2 + c % 4 / 2) & 1) == 0) {
        rows.sum[c / 8][2 * n + c / 4 % 2][c % 4] = before[c / 8][c / 4 % 2][c % 4];
      }
    }
  }
}

// All of a range's keys, kKeys at a time. While scores are computed the values come, while the
// softmax is, the next keys. CHECK: the last block need not be whole, rows may not see the keys,
// and there is a bias; else `count` is a multiple of kKeys.
template <class Half, int DIM, bool CHECK>
__device__ __forceinline__ void attend(RowState<DIM>& rows, const LaneTile<DIM>& q, uint32_t k_tile,
                                       int dim, float factor,
                                       KeyRange<typename Half::Value> range) {
  constexpr uint32_t kTileBytes = kKeys * Tile<DIM>::kRowBytes;
  using Copy = TileCopy<DIM, kKeys, kThreads>;
  const Copy copy(threadIdx.x);
  const auto k = LaneTile<DIM>::right(k_tile);
  const auto v = LaneTile<DIM>::left(k_tile + kTileBytes);
  __syncthreads();  // whoever used the buffers before has done so
  copy.template copy<CHECK>(k_tile, range.k, range.k_stride, dim, range.count);
  copies_commit();
  for (int left = range.count; left > 0; left -= kKeys) {
    copies_wait<0>();
    __syncthreads();  // the keys are there, and the last values used
    copy.template copy<CHECK>(k_tile + kTileBytes, range.v, range.v_stride, dim, left);
    copies_commit();
    float scores[2][kKeys / 8][4], rescale[2][2];
    multiply_keys<Half, DIM>(scores, q, k);
    copies_wait<0>();
    __syncthreads();  // the values are there, and these keys used
    range.k += kKeys * range.k_stride;
    range.v += kKeys * range.v_stride;
    // After the last block, zeros: a branch here costs the loop fifty register moves.
    const int next_dim = left > kKeys ? dim : 0;
    copy.template copy<CHECK>(k_tile, range.k, range.k_stride, next_dim, left - kKeys);
    copies_commit();
    softmax<CHECK>(scores, rescale, rows, factor, left, range.bias, range.seen);
    multiply_values<Half, CHECK>(rows, scores, rescale, v, range.seen);
  }
}

}  // namespace genhoi::cuda
