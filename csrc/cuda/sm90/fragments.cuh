// Rows and columns of a warpgroup's accumulators, as wgmma.cuh says, and what is done to all of
// them.
#pragma once

#include <math.h>

#include "../common/fragments.cuh"
#include "swizzled_tile.cuh"
#include "wgmma.cuh"

namespace genhoi::cuda::sm90 {

// Which of its two rows a thread's accumulator `i` is of.
__device__ __forceinline__ constexpr int row_of(int i) { return i / 2 % 2; }

// The thread's row r, counted from the warpgroup's first.
__device__ __forceinline__ int row_in_group(int r) {
  return threadIdx.x % kGroupThreads / 32 * 16 + r * 8 + threadIdx.x % 32 / 4;
}

// The columns from `columns` on do not exist: -inf.
template <int COUNT>
__device__ __forceinline__ void mask_columns(float (&acc)[COUNT], int columns) {
  const int first = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    if (i / 4 * 8 + first + i % 2 >= columns) acc[i] = -INFINITY;
  }
}

template <int COUNT>
__device__ __forceinline__ void scale_rows(float (&acc)[COUNT], const float (&by)[2]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) acc[i] *= by[row_of(i)];
}

// Rounds to 16 bits, two columns in a register: a left operand of wgmma.
template <class Element, int COUNT>
__device__ __forceinline__ void pack(uint32_t (&packed)[COUNT / 2], const float (&acc)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT / 2; i++) packed[i] = Element::pack(acc[2 * i], acc[2 * i + 1]);
}

// Keeps the compiler from overwriting an operand while a product reads it, which it cannot know of.
template <int COUNT>
__device__ __forceinline__ void keep(const uint32_t (&operand)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : : "r"(operand[i]));
}

// Stores a warpgroup's 64 x DIM accumulators times `scale` to its rows of a tile: `rows` is the
// address of the first.
template <class Element, int DIM>
__device__ __forceinline__ void store_rows(uint32_t rows, uint32_t slab_bytes,
                                           const float (&acc)[DIM / 2], float scale) {
  using Tile = SwizzledTile<DIM>;
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x % kGroupThreads / 32 * 16 + lane % 16;
#pragma unroll
  for (int n = 0; n < DIM / 16; n++) {  // 16 columns: two chunks of 16 bytes
    constexpr int kSteps = Tile::kColumns / 16;
    const uint32_t to =
        rows + n / kSteps * slab_bytes + Tile::chunk(row, n % kSteps * 2 + lane / 16);
    const float* x = acc + n * 8;
    stmatrix_x4(
        to, Element::pack(x[0] * scale, x[1] * scale), Element::pack(x[2] * scale, x[3] * scale),
        Element::pack(x[4] * scale, x[5] * scale), Element::pack(x[6] * scale, x[7] * scale));
  }
}

}  // namespace genhoi::cuda::sm90
