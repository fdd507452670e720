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

// One lane's addresses for ldmatrix: its row, and one of two chunks; 16 values at a time. Rows 16
// further on are 16 * kRowBytes bytes further on. Tiles start at multiples of 256 bytes.
template <int DIM>
struct LaneTile {
  uint32_t start;

  __device__ __forceinline__ LaneTile(uint32_t tile, int row, int chunk)
      : start(Tile<DIM>::address(tile, row, chunk)) {}

  // For the left operand, rows from `first` on; or, transposed, a right one of rows as its inner
  // dimension. Matrices: rows 0-7 and 8-15 of the first chunk, then of the second.
  static __device__ __forceinline__ LaneTile left(uint32_t tile, int first = 0) {
    const int lane = threadIdx.x % 32;
    return LaneTile(tile, first + lane % 16, lane / 16);
  }

  // For the right operand, rows as its columns. Matrices: both chunks of rows 0-7, then of 8-15, so
  // that a product's two registers are neighbours.
  static __device__ __forceinline__ LaneTile right(uint32_t tile) {
    const int lane = threadIdx.x % 32;
    return LaneTile(tile, lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }

  // The same, but for all the compiler knows another for each `use`: else it computes addresses of
  // all columns before a loop, or keeps them from one use to the next, in registers that are not
  // there.
  __device__ __forceinline__ LaneTile fresh(int use) const {
    LaneTile copy = *this;
    asm("" : "+r"(copy.start) : "r"(use));
    return copy;
  }

  // Columns 16 step .. 16 step + 16: chunks 2 step further, before they change places. They change
  // within 128 bytes (64 of 192), which rows start at multiples of: an exclusive or finds them.
  __device__ __forceinline__ uint32_t columns(int step) const { return further(2 * step); }

  __device__ __forceinline__ uint32_t further(int chunks) const {
    if (DIM != 96) return start ^ (chunks * 16);
    return (start ^ (chunks % 4 * 16)) + chunks / 4 * 64;
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

  int row, column;  // this thread's first
  uint32_t offset;  // in the tile

  __device__ __forceinline__ explicit TileCopy(int thread)
      : row(thread / kThreadsOfRow),
        column(thread % kThreadsOfRow * kChunk),
        offset(Tile<DIM>::address(0, row, thread % kThreadsOfRow)) {}

  // from: the first row, of which only `rows` are there if CHECK. It is the same for all threads,
  // and what a thread adds to it has 32 bits: one register where a pointer would take two.
  template <bool CHECK, class Value>
  __device__ __forceinline__ void copy(uint32_t tile, const Value* from, int64_t stride, int dim,
                                       int rows) const {
    uint32_t index = row * static_cast<uint32_t>(stride) + column;
    // Else 64-bit sums with parts of `from` are kept from before a loop; for smaller head dims,
    // which have the registers, that is as well.
    if (DIM == 128) asm("" : "+r"(index) : "r"(rows));
    const Value* mine = from + index;
#pragma unroll
    for (int pass = 0; pass < kPasses; pass++) {
#pragma unroll
      for (int c = 0; c < kChunks; c++) {
        const int further = c * kThreadsOfRow;  // chunks; whole groups of those that change places
        const bool there =
            column + further * kChunk < dim && (!CHECK || row + pass * kRowsAtOnce < rows);
        copy_async(tile + offset + pass * kRowsAtOnce * Tile<DIM>::kRowBytes + further * 16,
                   mine + further * kChunk, there);
      }
      mine += kRowsAtOnce * stride;
    }
  }
};

}  // namespace genhoi::cuda
