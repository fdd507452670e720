// Which references a tile of queries sees, and in which order their keys pass by: the same for the
// producer and the consumers.
#pragma once

#include "../common/key_range.cuh"
#include "fragments.cuh"

namespace genhoi::cuda::sm90 {

// Whether some row of a tile of 64 GROUPS rows sees reference `segment`.
template <int GROUPS>
__device__ __forceinline__ bool tile_sees(const GenhoiAttention& in, int b, int start,
                                          int segment) {
  static_assert(kGroupRows == kFlagRows);
  if (in.bits == nullptr) return true;
  const int32_t* flags = in.tile_bits + b * in.tile_bits_batch + start / kFlagRows;
  int32_t seen = 0;
#pragma unroll
  for (int group = 0; group < GROUPS; group++) {
    if (start + group * kGroupRows < in.rows) seen |= flags[group];
  }
  return seen >> segment & 1;
}

// Bit r: whether the thread's row r sees reference `segment`; `first` is the warpgroup's first row.
__device__ __forceinline__ uint32_t rows_of_group_that_see(const GenhoiAttention& in, int b,
                                                           int first, int segment) {
  if (in.bits == nullptr) return 3;
  uint32_t seen = 0;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = first + row_in_group(r);
    const int bits = row < in.rows ? in.bits[b * in.bits_batch + row] : 0;
    seen |= (bits >> segment & 1) << r;
  }
  return seen;
}

// Calls function(segment, first, count) for all blocks of at most KEYS keys of the references that
// the tile sees. count: keys from `first` to the reference's end.
template <int KEYS, int GROUPS, class Function>
__device__ __forceinline__ void for_reference_blocks(const GenhoiAttention& in, int b, int start,
                                                     Function function) {
  if (in.ref_tokens == 0) return;
#pragma unroll 1
  for (int segment = 0; segment < in.references; segment++) {
    if (!tile_sees<GROUPS>(in, b, start, segment)) continue;
    const int end = in.segments[segment + 1];
#pragma unroll 1
    for (int first = in.segments[segment]; first < end; first += KEYS) {
      function(segment, first, end - first);
    }
  }
}

// The sample of a tensor map: one where all samples share the tokens.
__device__ __forceinline__ int sample_of(const GenhoiTokens& x, int b) {
  return x.batch == 0 ? 0 : b;
}

}  // namespace genhoi::cuda::sm90
