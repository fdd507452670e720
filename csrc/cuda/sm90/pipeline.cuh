// Rings of places in shared memory: the producer fills a place by TMA, the consumers use it and
// free it again.
#pragma once

#include "barrier.cuh"
#include "swizzled_tile.cuh"
#include "tma.cuh"

namespace genhoi::cuda::sm90 {

// A block of threads has two rings: of keys and values, or of whatever passes by in their stead.
constexpr int kFirstRing = 0, kSecondRing = 1;

// The place of a ring that its block number `block` takes, and the parity of that place's phase.
__device__ __forceinline__ uint32_t place_of(uint32_t block) { return block % kStages; }
__device__ __forceinline__ uint32_t parity_of(uint32_t block) { return block / kStages & 1; }

// The barriers, from `start` on in shared memory: of what is loaded once; then of each ring, its
// places' "filled" and its places' "free".
struct Barriers {
  uint32_t start;

  __device__ __forceinline__ uint32_t loaded() const { return start; }
  __device__ __forceinline__ uint32_t filled(int ring, uint32_t place) const {
    return start + 8 + (ring * 2 * kStages + place) * 8;
  }
  __device__ __forceinline__ uint32_t free(int ring, uint32_t place) const {
    return filled(ring, place) + kStages * 8;
  }

  // By all threads of the block. fillers: arrivals that fill a place, beside the bytes.
  __device__ __forceinline__ void init(int consumers, int fillers = 1) const {
    if (threadIdx.x == 0) {
      mbarrier_init(loaded(), 1);
#pragma unroll
      for (int place = 0; place < kStages; place++) {
#pragma unroll
        for (int ring = 0; ring < 2; ring++) {
          mbarrier_init(filled(ring, place), fillers);
          mbarrier_init(free(ring, place), consumers * 4);
        }
      }
      mbarrier_init_fence();
      async_proxy_fence();
    }
    __syncthreads();
  }

  // The consumers' side: a block is there; and used, by this warp.
  __device__ __forceinline__ void wait(int ring, uint32_t block) const {
    mbarrier_wait(filled(ring, place_of(block)), parity_of(block));
  }
  __device__ __forceinline__ void release(int ring, uint32_t block) const {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(free(ring, place_of(block)));
  }
  // The producer's side: the place of a block is free.
  __device__ __forceinline__ void wait_free(int ring, uint32_t block) const {
    mbarrier_wait(free(ring, place_of(block)), parity_of(block) ^ 1);
  }
};

// Loads all columns of a tile, slab by slab, by one thread. The barrier is told of the bytes
// before.
template <int DIM>
__device__ __forceinline__ void load_tile(uint32_t to, uint32_t slab_bytes, const CUtensorMap* map,
                                          uint32_t barrier, int token, int head, int sample) {
#pragma unroll
  for (int slab = 0; slab < SwizzledTile<DIM>::kSlabs; slab++) {
    tma_load(to + slab * slab_bytes, map, barrier, slab * SwizzledTile<DIM>::kColumns, token, head,
             sample);
  }
}

// Stores a warpgroup's rows of a tile, by one thread; complete after tma_store_wait.
template <int DIM>
__device__ __forceinline__ void store_tile(const CUtensorMap* map, uint32_t from,
                                           uint32_t slab_bytes, int token, int head, int sample) {
#pragma unroll
  for (int slab = 0; slab < SwizzledTile<DIM>::kSlabs; slab++) {
    tma_store(map, from + slab * slab_bytes, slab * SwizzledTile<DIM>::kColumns, token, head,
              sample);
  }
  tma_store_commit();
}

}  // namespace genhoi::cuda::sm90
