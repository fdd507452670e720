// What the backward kernels share: writing gradients.
#pragma once

#include "launch.h"
#include "rows.cuh"
#include "tile.cuh"

namespace genhoi::cuda::backward {

// The first of `tokens` rows of one head, in a contiguous [samples, tokens, heads, head_dim].
template <class Value>
__device__ __forceinline__ Value* result_of(void* data, const GenhoiAttention& in, int b, int h,
                                            int tokens) {
  const int64_t token = static_cast<int64_t>(b) * tokens * in.heads + h;
  return static_cast<Value*>(data) + token * in.head_dim;
}

__device__ __forceinline__ float scale_to_log2(const GenhoiAttention& in) {
  return in.scale * kLog2e;
}

// Writes a warp's 32 rows from `first` on, times `scale`, or of these the columns from 8 `chunk`
// on. They pass through a tile in shared memory, so that 16 bytes are written at a time. to: the
// tile's first row in a contiguous result, of which `rows` are there.
template <class Half, int DIM, int CHUNKS>
__device__ __forceinline__ void store_rows(typename Half::Value* to, const GenhoiAttention& in,
                                           int first, int chunk, int rows, unsigned char* tile,
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
        *reinterpret_cast<uint32_t*>(tile + Tile<DIM>::address(0, row, chunk + n) + lane % 4 * 4) =
            Half::pack(x[i][n][2 * r] * scale, x[i][n][2 * r + 1] * scale);
      }
    }
  }
  __syncwarp();
  for (int at = lane; at < 32 * CHUNKS; at += 32) {
    const int row = first + at / CHUNKS, column = chunk + at % CHUNKS;
    if (row >= rows || column * kChunk >= in.head_dim) continue;
    const int64_t token = static_cast<int64_t>(row) * in.heads * in.head_dim;
    *reinterpret_cast<uint4*>(to + token + column * kChunk) =
        *reinterpret_cast<const uint4*>(tile + Tile<DIM>::address(0, row, column));
  }
}

}  // namespace genhoi::cuda::backward
