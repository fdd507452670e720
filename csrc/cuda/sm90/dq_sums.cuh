// The sums in memory by which bwd_sweep.cuh hands dQ to bwd_dq.cuh, in float32 and not scaled: of
// each tile of 64 queries two halves of the columns, each as the registers of a warpgroup hold it.
#pragma once

#include "fragments.cuh"

namespace genhoi::cuda::sm90 {

// Of one head.
struct DqSums {
  static constexpr int kHalf = BwdSweepTraits::kDqBytes / sizeof(float);
  float* sums;
  int32_t* counters;  // behind the tickets' counter, which is the first

  __device__ __forceinline__ DqSums(const GenhoiBackward& call, int b, int h) {
    const int64_t tiles = (call.in.rows + kGroupRows - 1) / kGroupRows;
    const int64_t first = (static_cast<int64_t>(b) * call.in.heads + h) * tiles;
    sums = call.dq_sums + first * 2 * kHalf;
    counters = call.dq_counters + 1 + first * 2;
  }
  __device__ __forceinline__ int32_t* counter(int tile, int half) const {
    return counters + static_cast<int64_t>(tile) * 2 + half;
  }
  __device__ __forceinline__ float* half_tile(int tile, int half) const {
    return sums + (static_cast<int64_t>(tile) * 2 + half) * kHalf;
  }

  // A thread's part of a half: 4 values, kGroupThreads * 4 values further on the next, and so on.
  static __device__ __forceinline__ int of_thread() { return threadIdx.x % kGroupThreads * 4; }

  // Loads a tile's sums into the accumulators of a warpgroup.
  __device__ __forceinline__ void load(float (&dq)[BwdSweepTraits::kDim / 2], int tile) const {
    constexpr int kParts = BwdSweepTraits::kDim / 16;
#pragma unroll
    for (int part = 0; part < 2 * kParts; part++) {
      const float* from = half_tile(tile, part / kParts) + of_thread();
      const float4 x = *reinterpret_cast<const float4*>(from + part % kParts * kGroupThreads * 4);
      dq[4 * part] = x.x;
      dq[4 * part + 1] = x.y;
      dq[4 * part + 2] = x.z;
      dq[4 * part + 3] = x.w;
    }
  }
};

}  // namespace genhoi::cuda::sm90
