// Rows of a warp in the accumulator fragments of mma, and reductions over the lanes of a row.
//
// A warp has kWarpRows = 32 rows, as two fragments i of 16. In a fragment lane l holds rows l / 4
// and l / 4 + 8 (r = 0, 1) and of every 8 columns two, from 2 (l % 4) on.
#pragma once

#include "layout.h"

namespace genhoi::cuda {

// Row r of fragment i, counted from the tile's first.
__device__ __forceinline__ int row_in_tile(int i, int r) {
  return threadIdx.x / 32 * kWarpRows + i * 16 + r * 8 + threadIdx.x % 32 / 4;
}

// Reductions over the four lanes that hold a row.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

}  // namespace genhoi::cuda
