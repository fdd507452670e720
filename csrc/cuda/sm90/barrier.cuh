// How the warpgroups of a block wait for each other and for copies: mbarriers, named barriers; and
// how they share out its registers.
#pragma once

#include <stdint.h>

namespace genhoi::cuda::sm90 {

// mbarriers are named by their addresses in shared memory. A wait is for the end of the phase of
// that parity; of a new barrier, the phase before the first one has parity 1 and has ended.
__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals));
}
// Makes the barriers that this thread has initialised known to the copy engine.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
// Arrives, and lets the phase wait for so many bytes of tensor copies as well.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// This lane arrives once its cp.async so far have come.
__device__ __forceinline__ void mbarrier_arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// The first lane of a warp arrives, but not before x is computed. ptxas sees no dependence between
// a softmax and a later wait for products, and would wait first; it does not move a wait in front
// of an earlier arrival, nor an arrival in front of its predicate. No arithmetic gives this NaN.
__device__ __forceinline__ void mbarrier_arrive_after(uint32_t barrier, float x) {
  asm volatile(
      "{\n"
      ".reg .pred first, both;\n"
      "setp.eq.u32 first, %1, 0;\n"
      "setp.ne.and.b32 both, %2, 0x7f812345, first;\n"
      "@both mbarrier.arrive.shared::cta.b64 _, [%0];\n"
      "}\n" ::"r"(barrier),
      "r"(threadIdx.x % 32), "r"(__float_as_int(x))
      : "memory");
}

// Named barriers, 1 to 15, of so many threads. sync waits for all of them, arrive for none.
__device__ __forceinline__ void named_barrier_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

// Registers of each thread of the warpgroup from here on.
template <int REGISTERS>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}

}  // namespace genhoi::cuda::sm90
