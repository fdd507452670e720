// The mask gate: which references a row of queries sees, and which those of a tile do.
#pragma once

#include "../launch.h"
#include "fragments.cuh"

namespace genhoi::cuda {

constexpr int kFlagRows = 64;  // rows that share an entry of tile_bits

// Bit 2 i + r: whether row r of this thread's fragment i sees reference `segment`.
__device__ __forceinline__ uint32_t rows_that_see(const GenhoiAttention& in, int b, int start,
                                                  int segment) {
  if (in.bits == nullptr) return 15;
  uint32_t seen = 0;
#pragma unroll
  for (int at = 0; at < 4; at++) {
    const int row = start + row_in_tile(at / 2, at % 2);
    const int bits = row < in.rows ? in.bits[b * in.bits_batch + row] : 0;
    seen |= (bits >> segment & 1) << at;
  }
  return seen;
}

// Bits of the references that some row of a tile of 2 kFlagRows rows sees.
__device__ __forceinline__ int32_t load_tile_bits(const GenhoiAttention& in, int b, int start) {
  const int32_t* bits = in.tile_bits + b * in.tile_bits_batch + start / kFlagRows;
  return bits[0] | (start + kFlagRows < in.rows ? bits[1] : 0);
}

}  // namespace genhoi::cuda
