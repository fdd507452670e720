// The tiles of queries that pass by a block of keys.
#pragma once

#include "../common/mask_gate.cuh"

namespace genhoi::cuda::sm80 {

// Goes through the tiles of kFlagRows rows of some samples. REFERENCE: leaves out the tiles none of
// whose rows sees the segment.
template <bool REFERENCE>
struct QueryTiles {
  int sample, end_sample, segment;
  int tile = 0;

  __device__ __forceinline__ bool has_tile() const { return sample < end_sample; }

  // Goes to the next tile from this one on that has a row to look at. All lanes of a warp together.
  __device__ __forceinline__ void skip_unseen(const GenhoiAttention& in) {
    const int tiles = in.rows / kFlagRows + (in.rows % kFlagRows != 0);
    while (sample < end_sample) {
      if (!REFERENCE || in.bits == nullptr) {
        if (tile < tiles) return;
      } else {
        for (const int lane = threadIdx.x % 32; tile < tiles; tile += 32) {
          const int32_t* bits = in.tile_bits + sample * in.tile_bits_batch + tile;
          const bool sees = tile + lane < tiles && (bits[lane] >> segment & 1);
          const uint32_t seeing_lanes = __ballot_sync(~0u, sees);
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
};

}  // namespace genhoi::cuda::sm80
