// Tiles of tokens in shared memory: ROWS rows of DIM 16-bit values, in chunks of 16 bytes.
//
// Chunks change places within a row, by an exclusive or with the row's number, so that the eight
// rows that ldmatrix reads at once, and those that eight threads write, lie in different banks.
#pragma once

#include "ptx.cuh"

namespace genhoi::cuda {

constexpr int kChunk = 8;  // values

template <int DIM>
struct Tile {
  static_assert(DIM == 64 || DIM == 96 || DIM == 128);
  static constexpr int kRowBytes = DIM * 2;
  // Rows of 192 bytes start at bank 0 or 16 in turn: two rows differ by that already.
  static __device__ __forceinline__ int swizzle(int row) {
    return DIM == 96 ? (row >> 1) & 3 : row & 7;
  }
  static __device__ __forceinline__ uint32_t address(uint32_t tile, int row, int chunk) {
    return tile + row * kRowBytes + ((chunk ^ swizzle(row)) * 16);
  }
};

// One lane's addresses for ldmatrix: rows from lane % 16, 16 values (two chunks) at a time, the
// first for lanes below 16. Rows 16 further on are 16 * kRowBytes bytes further on.
template <int DIM>
struct LaneTile {
  uint32_t row_start;
  uint32_t swizzled;  // bytes

  __device__ __forceinline__ LaneTile(uint32_t tile, int row, int half)
      : row_start(tile + row * Tile<DIM>::kRowBytes),
        swizzled((half ^ Tile<DIM>::swizzle(row)) * 16) {}

  // Columns 16 step .. 16 step + 16.
  __device__ __forceinline__ uint32_t columns(int step) const {
    if (DIM == 96) return row_start + (swizzled ^ ((step & 1) * 32)) + (step >> 1) * 64;
    return row_start + (swizzled ^ (step * 32));
  }
};

// Copies tiles of ROWS rows from global memory, THREADS threads together. Columns from `dim` on,
// and rows from `rows` on, become zeros.
template <int DIM, int ROWS, int THREADS>
struct TileCopy {
  static constexpr int kThreadsOfRow = DIM == 96 ? 4 : 8;
  static constexpr int kRowsAtOnce = THREADS / kThreadsOfRow;
  static constexpr int kPasses = ROWS / kRowsAtOnce;
  static constexpr int kChunks = DIM / kChunk / kThreadsOfRow;
  static_assert(kPasses * kRowsAtOnce == ROWS && kRowsAtOnce % 8 == 0);

  int row, chunk;

  __device__ __forceinline__ explicit TileCopy(int thread)
      : row(thread / kThreadsOfRow), chunk(thread % kThreadsOfRow) {}

  // from: the tile's first row. All rows are there.
  template <class Value>
  __device__ __forceinline__ void whole(uint32_t tile, const Value* from, int64_t stride,
                                        int dim) const {
    const Value* mine = from + row * stride + chunk * kChunk;
#pragma unroll
    for (int pass = 0; pass < kPasses; pass++) {
#pragma unroll
      for (int c = 0; c < kChunks; c++) {
        const int at = chunk + c * kThreadsOfRow;
        const uint32_t to = Tile<DIM>::address(tile, row, at) +
                            pass * kRowsAtOnce * Tile<DIM>::kRowBytes;
        copy_async(to, mine + c * kThreadsOfRow * kChunk, at * kChunk < dim);
      }
      mine += kRowsAtOnce * stride;
    }
  }

  template <class Value>
  __device__ __forceinline__ void part(uint32_t tile, const Value* from, int64_t stride, int dim,
                                       int rows) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; pass++) {
#pragma unroll
      for (int c = 0; c < kChunks; c++) {
        const int at = chunk + c * kThreadsOfRow, r = row + pass * kRowsAtOnce;
        const bool there = r < rows && at * kChunk < dim;
        const Value* source = there ? from + r * stride + at * kChunk : from;
        copy_async(Tile<DIM>::address(tile, r, at), source, there);
      }
    }
  }
};

}  // namespace genhoi::cuda
