// Tiles of tokens in shared memory, as TMA writes them and wgmma reads them.
#pragma once

#include <stdint.h>

#include "traits.h"

namespace genhoi::cuda::sm90 {

// A tile of DIM columns lies as slabs of kSlabColumns columns, one after another, each with all
// rows. In a slab, chunks of 16 bytes change places by an exclusive or with the row's number, so
// that no two of a column's chunks are in the same banks. Slabs start at multiples of 1024 bytes.
template <int DIM>
struct SwizzledTile {
  static constexpr int kColumns = kSlabColumns<DIM>;
  static constexpr int kSlabs = DIM / kColumns;
  static constexpr uint32_t kRowBytes = kSlabRowBytes<DIM>;

  // Where a chunk of a row is in its slab.
  static __device__ __forceinline__ uint32_t chunk(uint32_t row, uint32_t chunk) {
    return row * kRowBytes + (chunk ^ (kColumns == 64 ? row % 8 : row / 2 % 4)) * 16;
  }
  // Where columns 16 step to 16 step + 16 start, with slabs of so many bytes.
  static __device__ __forceinline__ constexpr uint32_t columns(int step, uint32_t slab_bytes) {
    return step / (kColumns / 16) * slab_bytes + step % (kColumns / 16) * 32;
  }
};

// The matrix descriptor by which wgmma finds a tile (PTX ISA, "Matrix descriptor"). Only its lower
// word says where; `at` adds bytes to that, in one addition where a descriptor made anew of an
// address takes three instructions.
template <int DIM>
struct MatrixDescriptor {
  uint32_t low;
  // slab_bytes: for operands whose columns are not the inner dimension of the product.
  __device__ __forceinline__ explicit MatrixDescriptor(uint32_t address, uint32_t slab_bytes = 16)
      : low(address >> 4 | slab_bytes >> 4 << 16) {}
  __device__ __forceinline__ uint64_t at(uint32_t bytes) const {
    constexpr uint32_t swizzle = SwizzledTile<DIM>::kColumns == 64 ? 1 : 2;  // of 128 or 64 bytes
    constexpr uint32_t high = 8 * SwizzledTile<DIM>::kRowBytes >> 4 | swizzle << 30;
    return static_cast<uint64_t>(high) << 32 | (low + (bytes >> 4));
  }
};

__device__ __forceinline__ void store_zeros(uint32_t to) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};\n" ::"r"(to), "r"(0) : "memory");
}

// Rows of a tile become zeros from `first` up to ROWS, by so many threads, of which this is number
// `thread`.
template <int DIM, int ROWS>
__device__ __forceinline__ void clear_rows(uint32_t tile, int first, int thread, int threads) {
  using Tile = SwizzledTile<DIM>;
  constexpr int kRowChunks = Tile::kRowBytes / 16;
  for (int at = first * kRowChunks + thread; at < ROWS * kRowChunks; at += threads) {
#pragma unroll
    for (int slab = 0; slab < Tile::kSlabs; slab++) {
      store_zeros(tile + slab * ROWS * Tile::kRowBytes + at * 16);
    }
  }
}

// Stores four 8 x 8 matrices of 16-bit values from the registers of a product: lane l gives the
// address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4(uint32_t to, uint32_t a, uint32_t b, uint32_t c,
                                            uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(to),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

}  // namespace genhoi::cuda::sm90
