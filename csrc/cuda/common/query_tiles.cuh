// The tiles of queries that pass by a block of keys.
#pragma once

#include "key_range.cuh"

namespace genhoi::cuda {

// Goes through the tiles of ROWS rows of some samples. REFERENCE: leaves out the tiles none of
// whose rows sees the segment.
template <bool REFERENCE, int ROWS = kFlagRows>
struct QueryTiles {
  static_assert(!REFERENCE || ROWS == kFlagRows);
  int sample, end_sample, segment;
  int tile = 0;

  // Of the samples that share the keys which block `b` of the grid's samples has. Behind a bias of
  // -inf P = 0: there is no tile.
  __device__ __forceinline__ QueryTiles(const GenhoiBackward& call, int b, int segment)
      : segment(segment) {
    const bool shared = REFERENCE && call.ref_batch == 1;
    sample = shared ? 0 : b;
    end_sample = shared ? call.in.batch : b + 1;
    if (REFERENCE && bias_to_log2(call.in, segment) == -INFINITY) sample = end_sample;
  }

  __device__ __forceinline__ bool has_tile() const { return sample < end_sample; }

  // Goes to the next tile from this one on that has a row to look at. All lanes of a warp together.
  __device__ __forceinline__ void skip_unseen(const GenhoiAttention& in) {
    const int tiles = tiles_of_sample(in);
    while (sample < end_sample) {
      if (!REFERENCE || in.bits == nullptr) {
        if (tile < tiles) return;
      } else {
        for (; tile < tiles; tile += 32) {
          const uint32_t seeing_lanes = tiles_that_see(in, sample, tile);
          if (seeing_lanes != 0) {
            tile += __ffs(seeing_lanes) - 1;
            return;
          }
        }
      }
      sample++;
      tile = 0;
    }
  }

  // Whether a row of this tile's sample exists and sees the segment.
  __device__ __forceinline__ bool sees(const GenhoiAttention& in, int row) const {
    if (row >= in.rows) return false;
    return !REFERENCE || in.bits == nullptr ||
           (in.bits[sample * in.bits_batch + row] >> segment & 1);
  }

  // How many tiles there are, for who has not gone to any yet. All lanes of a warp together.
  __device__ __forceinline__ int count(const GenhoiAttention& in) const {
    const int tiles = tiles_of_sample(in);
    if (!REFERENCE || in.bits == nullptr) return (end_sample - sample) * tiles;
    int count = 0;
    for (int s = sample; s < end_sample; s++) {
      for (int first = 0; first < tiles; first += 32) {
        count += __popc(tiles_that_see(in, s, first));
      }
    }
    return count;
  }

 private:
  __device__ __forceinline__ static int tiles_of_sample(const GenhoiAttention& in) {
    return in.rows / ROWS + (in.rows % ROWS != 0);
  }
  // Bit l: whether a row of tile `first` + l of the sample sees the segment.
  __device__ __forceinline__ uint32_t tiles_that_see(const GenhoiAttention& in, int s,
                                                     int first) const {
    const int at = first + threadIdx.x % 32;
    const int32_t* bits = in.tile_bits + s * in.tile_bits_batch;
    return __ballot_sync(~0u, at < tiles_of_sample(in) && (bits[at] >> segment & 1));
  }
};

}  // namespace genhoi::cuda
