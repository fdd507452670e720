// Tiles of tokens in shared memory: ROWS rows of DIM 16-bit values, in chunks of 16 bytes.
//
// Chunks change places within a row, by an exclusive or with the row's number, so that the eight
// rows that ldmatrix reads at once, and those that eight threads write, lie in different banks.
#pragma once

#include "layout.h"
#include "ptx.cuh"

namespace genhoi::cuda {

template <int DIM>
struct SmemTile {
  static_assert(DIM == 64 || DIM == 96 || DIM == 128);
  static constexpr int kRowBytes = cuda::kRowBytes<DIM>;
  // Rows of 192 bytes start at bank 0 or 16 in turn: two rows differ by that already.
  static __device__ __forceinline__ int swizzle(int row) {
    return DIM == 96 ? (row >> 1) & 3 : row & 7;
  }
  static __device__ __forceinline__ uint32_t address(uint32_t tile, int row, int chunk) {
    return tile + row * kRowBytes + ((chunk ^ swizzle(row)) * 16);
  }
};

// One lane's addresses of an mma operand for ldmatrix: its row, and one of two chunks; 16 values at
// a time. Rows 16 further on are 16 * kRowBytes bytes further on. Tiles start at multiples of 256
// bytes.
template <int DIM>
struct OperandTile {
  uint32_t start;

  __device__ __forceinline__ OperandTile(uint32_t tile, int row, int chunk)
      : start(SmemTile<DIM>::address(tile, row, chunk)) {}

  // The A operand, rows from `first_row` on; or, transposed, a B operand of rows as its inner
  // dimension. Matrices: rows 0-7 and 8-15 of the first chunk, then of the second.
  static __device__ __forceinline__ OperandTile a(uint32_t tile, int first_row = 0) {
    const int lane = threadIdx.x % 32;
    return OperandTile(tile, first_row + lane % 16, lane / 16);
  }

  // The B operand, rows as its columns. Matrices: both chunks of rows 0-7, then of 8-15, so that a
  // product's two registers are neighbours.
  static __device__ __forceinline__ OperandTile b(uint32_t tile) {
    const int lane = threadIdx.x % 32;
    return OperandTile(tile, lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }

  // A copy that for all the compiler knows is another one for each `use`: else it computes
  // addresses of all columns before a loop, or keeps them from one use to the next, in registers
  // that are not there.
  __device__ __forceinline__ OperandTile fresh(int use) const {
    OperandTile copy = *this;
    asm("" : "+r"(copy.start) : "r"(use));
    return copy;
  }

  // Columns 16 step .. 16 step + 16: chunks 2 step further, before they change places. They change
  // within 128 bytes (64 of 192), which rows start at multiples of: an exclusive or finds them.
  __device__ __forceinline__ uint32_t columns(int step) const { return chunk_address(2 * step); }

  __device__ __forceinline__ uint32_t chunk_address(int chunk) const {
    if (DIM != 96) return start ^ (chunk * 16);
    return (start ^ (chunk % 4 * 16)) + chunk / 4 * 64;
  }
};

// Copies tiles of ROWS rows from global memory, THREADS threads together. Columns from `dim` on,
// and rows from `rows` on, become zeros.
template <int DIM, int ROWS, int THREADS>
struct TileCopy {
  static constexpr int kThreadsPerRow = DIM == 96 ? 4 : 8;
  static constexpr int kRowsPerPass = THREADS / kThreadsPerRow;
  static constexpr int kPasses = ROWS / kRowsPerPass;
  static constexpr int kChunks = DIM / kChunk / kThreadsPerRow;
  static_assert(kPasses * kRowsPerPass == ROWS && kRowsPerPass % 8 == 0);

  int row, column;  // this thread's first
  uint32_t offset;  // in the tile

  __device__ __forceinline__ explicit TileCopy(int thread)
      : row(thread / kThreadsPerRow),
        column(thread % kThreadsPerRow * kChunk),
        offset(SmemTile<DIM>::address(0, row, thread % kThreadsPerRow)) {}

  // from: the first row, of which only `rows` exist if CHECK. It is the same for all threads, and
  // what a thread adds to it has 32 bits: one register where a pointer would take two.
  template <bool CHECK, class Value>
  __device__ __forceinline__ void copy(uint32_t tile, const Value* from, int64_t stride, int dim,
                                       int rows) const {
    uint32_t index = row * static_cast<uint32_t>(stride) + column;
    // Else 64-bit sums with parts of `from` are kept from before a loop; for smaller head dims,
    // which have the registers, that is as well.
    if (DIM == 128) asm("" : "+r"(index) : "r"(rows));
    const Value* source = from + index;
#pragma unroll
    for (int pass = 0; pass < kPasses; pass++) {
#pragma unroll
      for (int c = 0; c < kChunks; c++) {
        const int chunk = c * kThreadsPerRow;  // whole groups of those that change places
        const bool in_bounds =
            column + chunk * kChunk < dim && (!CHECK || row + pass * kRowsPerPass < rows);
        cp_async_16(tile + offset + pass * kRowsPerPass * SmemTile<DIM>::kRowBytes + chunk * 16,
                    source + chunk * kChunk, in_bounds);
      }
      source += kRowsPerPass * stride;
    }
  }
};

}  // namespace genhoi::cuda
