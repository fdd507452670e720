// Sums in global memory to which the blocks of threads of a grid add one after another, so that a
// sum has the same bits in every run.
//
// A sum has a counter: of how many blocks have added. Block n adds when it is n, and then counts.
// Blocks wait for those before them only; so that these have started, a block's number is a ticket
// that it takes when it starts.
#pragma once

#include <stdint.h>

#include "tma.cuh"

namespace genhoi::cuda::sm90 {

__device__ __forceinline__ int take_ticket(int32_t* tickets) { return atomicAdd(tickets, 1); }

// Waits until so many blocks have added.
__device__ __forceinline__ void await_turn_at(const int32_t* counter, int turn) {
  int32_t added;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(added) : "l"(counter) : "memory");
  } while (added < turn);
  // What follows is added by the copy engine.
  asm volatile("fence.proxy.async.global;\n" ::: "memory");
}
// Counts this thread's additions, which are complete: tma_store_wait.
__device__ __forceinline__ void pass_turn_at(int32_t* counter, int turn) {
  asm volatile("fence.proxy.async.global;\n" ::: "memory");
  asm volatile("st.release.gpu.global.s32 [%0], %1;\n" ::"l"(counter), "r"(turn + 1) : "memory");
}

// Stores numbers from shared memory, or adds them to those that are there.
__device__ __forceinline__ void bulk_store(float* to, uint32_t from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void bulk_add(float* to, uint32_t from, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n" ::"l"(to),
      "r"(from), "r"(bytes)
      : "memory");
}

}  // namespace genhoi::cuda::sm90
