// The tensor memory accelerator: copies of boxes of tokens between global and shared memory. A box
// is so many tokens of one head, of one sample, and some of the head's columns (tensor_map.h).
#pragma once

#include <cuda.h>
#include <stdint.h>

namespace genhoi::cuda::sm90 {

__device__ __forceinline__ void tma_prefetch(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}
// Loads a box; `barrier` counts its bytes. What is outside the tensor becomes zeros, and is counted
// all the same.
__device__ __forceinline__ void tma_load(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                         int column, int token, int head, int sample) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];\n" ::"r"(to),
      "l"(map), "r"(column), "r"(token), "r"(head), "r"(sample), "r"(barrier)
      : "memory");
}
// Stores a box; what is outside the tensor is not written.
__device__ __forceinline__ void tma_store(const CUtensorMap* map, uint32_t from, int column,
                                          int token, int head, int sample) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], "
      "[%5];\n" ::"l"(map),
      "r"(column), "r"(token), "r"(head), "r"(sample), "r"(from)
      : "memory");
}
__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}
// Waits until this thread's stores have read shared memory; and until they are done.
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory");
}
__device__ __forceinline__ void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group 0;\n" ::: "memory");
}

// What this thread wrote to shared memory is seen by TMA and wgmma after the next barrier.
__device__ __forceinline__ void async_proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

}  // namespace genhoi::cuda::sm90
