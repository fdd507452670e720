// From accumulator fragments to memory, by way of a tile in shared memory, so that global memory is
// written 16 bytes at a time.
#pragma once

#include "../launch.h"
#include "fragments.cuh"
#include "smem_tile.cuh"

namespace genhoi::cuda {

// Writes fragments of a warp's rows to its rows of a tile: pairs of columns 8 n + 2 (l % 4).
template <int DIM>
struct FragmentWriter {
  OperandTile<DIM> first;

  __device__ __forceinline__ explicit FragmentWriter(uint32_t tile, int use)
      : first(OperandTile<DIM>(tile + threadIdx.x % 4 * 4, row_in_tile(0, 0), 0).fresh(use)) {}

  __device__ __forceinline__ void put(int i, int r, int n, uint32_t pair) const {
    store_smem(first.chunk_address(n) + (i * 16 + r * 8) * SmemTile<DIM>::kRowBytes, pair);
  }
};

// Stores a warp's rows of the forward pass to out [B, N, H, D]. They pass through the warp's own
// rows of `tile`.
template <class Element, int DIM>
__device__ __forceinline__ void store_output(void* out, const float (&o)[2][DIM / 8][4],
                                             unsigned char* tile, const GenhoiAttention& in, int b,
                                             int h, int start) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * kWarpRows;
  const FragmentWriter<DIM> writer(smem_address(tile), 0);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
    for (int at = 0; at < 4; at++) {
      const int i = at / 2, r = at % 2;
      writer.put(i, r, n, Element::pack(o[i][n][2 * r], o[i][n][2 * r + 1]));
    }
  }
  __syncwarp();
  auto* to = static_cast<typename Element::Value*>(out);
  for (int at = lane; at < kWarpRows * (DIM / kChunk); at += 32) {
    const int row = first + at / (DIM / kChunk), chunk = at % (DIM / kChunk);
    if (start + row >= in.rows || chunk * kChunk >= in.head_dim) continue;
    const int64_t token = static_cast<int64_t>(b) * in.rows + start + row;
    *reinterpret_cast<uint4*>(to + (token * in.heads + h) * in.head_dim + chunk * kChunk) =
        *reinterpret_cast<const uint4*>(tile + SmemTile<DIM>::address(0, row, chunk));
  }
}

// The first of `tokens` rows of one head, in a contiguous gradient [samples, tokens, heads,
// head_dim].
template <class Value>
__device__ __forceinline__ Value* gradient_of_head(void* data, const GenhoiAttention& in, int b,
                                                   int h, int tokens) {
  const int64_t token = static_cast<int64_t>(b) * tokens * in.heads + h;
  return static_cast<Value*>(data) + token * in.head_dim;
}

// Stores a warp's 32 rows of a gradient from `first` on, times `scale`, or of these the columns
// from 8 `chunk` on. They pass through `tile`. to: the tile's first row in a contiguous gradient,
// of which `rows` exist.
template <class Element, int DIM, int CHUNKS>
__device__ __forceinline__ void store_gradient(typename Element::Value* to,
                                               const GenhoiAttention& in, int first, int chunk,
                                               int rows, unsigned char* tile,
                                               const float (&x)[2][CHUNKS][4], float scale) {
  const int lane = threadIdx.x % 32;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int row = first + i * 16 + r * 8 + lane / 4;
        const uint32_t pair = Element::pack(x[i][n][2 * r] * scale, x[i][n][2 * r + 1] * scale);
        const uint32_t to_pair = SmemTile<DIM>::address(0, row, chunk + n) + lane % 4 * 4;
        *reinterpret_cast<uint32_t*>(tile + to_pair) = pair;
      }
    }
  }
  __syncwarp();
  for (int at = lane; at < 32 * CHUNKS; at += 32) {
    const int row = first + at / CHUNKS, column = chunk + at % CHUNKS;
    if (row >= rows || column * kChunk >= in.head_dim) continue;
    const int64_t token = static_cast<int64_t>(row) * in.heads * in.head_dim;
    *reinterpret_cast<uint4*>(to + token + column * kChunk) =
        *reinterpret_cast<const uint4*>(tile + SmemTile<DIM>::address(0, row, column));
  }
}

}  // namespace genhoi::cuda
