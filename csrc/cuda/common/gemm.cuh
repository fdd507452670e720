// The product of a warp's rows and a tile of keys, both in shared memory.
#pragma once

#include "element.cuh"
#include "smem_tile.cuh"

namespace genhoi::cuda {

// product = A B^T. a_tile: 32 rows; b_tile: 8 N rows.
template <class Element, int DIM, int N>
__device__ __forceinline__ void multiply_tiles(float (&product)[2][N][4],
                                               const OperandTile<DIM>& a_tile,
                                               const OperandTile<DIM>& b_tile) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
      for (int c = 0; c < 4; c++) product[i][n][c] = 0.0f;
    }
  }
#pragma unroll
  for (int step = 0; step < DIM / 16; step++) {
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      ldmatrix_x4(a[i], a_tile.columns(step) + i * 16 * SmemTile<DIM>::kRowBytes);
    }
#pragma unroll
    for (int n = 0; n < N / 2; n++) {
      uint32_t b[4];
      ldmatrix_x4(b, b_tile.columns(step) + n * 16 * SmemTile<DIM>::kRowBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Element::mma(product[i][2 * n], a[i], b[0], b[1]);
        Element::mma(product[i][2 * n + 1], a[i], b[2], b[3]);
      }
    }
  }
}

}  // namespace genhoi::cuda
