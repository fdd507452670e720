// Hopper: warp-specialised matmul C[M,N] = A[M,K] * B[K,N]; TMA producer warp, mbarrier ring, wgmma
// consumer, TMA store.
#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>

#include "shared_address.cuh"

__device__ __forceinline__ void mb_init(uint64_t* b, int n) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(n));
}
__device__ __forceinline__ void mb_expect(uint64_t* b, int n) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
               "r"(n)
               : "memory");
}
__device__ __forceinline__ void mb_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
__device__ __forceinline__ void mb_wait(uint64_t* b, int ph) {
  asm volatile(
      "{\n.reg .pred P1;\nLAB_WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\n@P1 "
      "bra DONE;\nbra LAB_WAIT;\nDONE:\n}" ::"r"(shared_address(b)),
      "r"(ph)
      : "memory");
}
__device__ __forceinline__ void tma2(void* d, const CUtensorMap* m, int x, int y, uint64_t* b) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%2,%3}], [%4];" ::"r"(shared_address(d)),
      "l"(m), "r"(x), "r"(y), "r"(shared_address(b))
      : "memory");
}
__device__ __forceinline__ uint64_t desc(const void* p, int lbo, int sbo) {
  return (uint64_t)((shared_address(p) & 0x3FFFF) >> 4) | ((uint64_t)(lbo >> 4) << 16) |
         ((uint64_t)(sbo >> 4) << 32) | ((uint64_t)1 << 62);
}
#define R4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
template <int TB>
__device__ __forceinline__ void wg64(float* d, uint64_t a, uint64_t b, int sc) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, "
      "0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%"
      "25,%26,%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, 0, %35;\n}"
      : R4(0), R4(4), R4(8), R4(12), R4(16), R4(20), R4(24), R4(28)
      : "l"(a), "l"(b), "r"(sc), "n"(TB));
}
#define ST 2
struct Smem {
  __nv_bfloat16 A[ST][64 * 64];
  __nv_bfloat16 B[ST][64 * 64];
  __nv_bfloat16 C[64 * 64];
  uint64_t full[ST], empty[ST];
};
// MODE 1: consumer never waits for the full barrier; 2: no wgmma wait before releasing the buffer;
// 3: producer ignores the empty barrier
template <int MODE>
__device__ __forceinline__ void mm(const CUtensorMap& ma, const CUtensorMap& mb,
                                   const CUtensorMap& mc, int K) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Smem& s = *reinterpret_cast<Smem*>(raw);
  int w = threadIdx.x / 128;
  int m0 = blockIdx.y * 64, n0 = blockIdx.x * 64, nk = K / 64;
  if (threadIdx.x == 0) {
    for (int i = 0; i < ST; i++) {
      mb_init(&s.full[i], 1);
      mb_init(&s.empty[i], 128);
    }
    asm volatile("fence.mbarrier_init.release.cluster;");
    asm volatile("fence.proxy.async;");
  }
  __syncthreads();
  if (w == 1) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 128)
      for (int t = 0; t < nk; t++) {
        int b = t % ST;
        if (t >= ST && MODE != 3) mb_wait(&s.empty[b], (t / ST - 1) & 1);
        mb_expect(&s.full[b], 2 * 64 * 64 * 2);
        tma2(s.A[b], &ma, t * 64, m0, &s.full[b]);
        tma2(s.B[b], &mb, n0, t * 64, &s.full[b]);
      }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    float d[32];
    for (int t = 0; t < nk; t++) {
      int b = t % ST;
      if (MODE != 1) mb_wait(&s.full[b], (t / ST) & 1);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int k = 0; k < 4; k++)
        wg64<1>(d, desc(s.A[b] + k * 16, 16, 1024), desc(s.B[b] + k * 16 * 64, 8192, 1024),
                (t | k) != 0);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      if (MODE != 2 || t == nk - 1) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      mb_arrive(&s.empty[b]);
    }
    int lane = threadIdx.x & 31, wi = threadIdx.x / 32;
    // 128B-swizzled staging tile for the TMA store
    for (int j = 0; j < 8; j++)
      for (int h = 0; h < 2; h++) {
        int r = wi * 16 + (lane >> 2) + 8 * h;
        int by = r * 128 + ((j ^ (r & 7)) << 4) + (lane & 3) * 4;
        *reinterpret_cast<__nv_bfloat162*>(reinterpret_cast<uint8_t*>(s.C) + by) =
            __floats2bfloat162_rn(d[j * 4 + 2 * h], d[j * 4 + 2 * h + 1]);
      }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, 128;" ::: "memory");
    if (threadIdx.x == 0) {
      asm volatile(
          "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1,%2}], [%3];" ::"l"(
              &mc),
          "r"(n0), "r"(m0), "r"(shared_address(s.C))
          : "memory");
      asm volatile("cp.async.bulk.commit_group;");
      asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
  }
}
#define HOPPER_KERNEL(nm, M)                                                           \
  extern "C" __global__ void __launch_bounds__(256)                                    \
      nm(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, \
         const __grid_constant__ CUtensorMap c, int K) {                               \
    mm<M>(a, b, c, K);                                                                 \
  }
HOPPER_KERNEL(hmm, 0);
HOPPER_KERNEL(hmm_nofull, 1);
HOPPER_KERNEL(hmm_nowgwait, 2);
HOPPER_KERNEL(hmm_noempty, 3);
extern "C" __global__ void stm(uint32_t* o) {
  __shared__ __align__(16) uint32_t s[128];
  uint32_t r[4];
  for (int i = 0; i < 4; i++)
    r[i] = threadIdx.x * 2 + i * 1000 + ((threadIdx.x * 2 + 1 + i * 1000) << 16);
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                   shared_address(s) + threadIdx.x * 16),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]));
  __syncwarp();
  for (int i = 0; i < 4; i++) o[i * 32 + threadIdx.x] = s[i * 32 + threadIdx.x];
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                   shared_address(s) + threadIdx.x * 16),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]));
  uint32_t q[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(q[0]), "=r"(q[1]), "=r"(q[2]), "=r"(q[3])
               : "r"(shared_address(s) + threadIdx.x * 16));
  for (int i = 0; i < 4; i++) o[128 + i * 32 + threadIdx.x] = q[i] == r[i];
}
extern "C" __global__ void bulk_k(const float* x, float* y, int n) {
  __shared__ __align__(128) float s[512];
  __shared__ uint64_t b;
  size_t o = (size_t)blockIdx.x * 512;
  if (threadIdx.x == 0) {
    mb_init(&b, 1);
    asm volatile("fence.proxy.async;");
    mb_expect(&b, 2048);
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(s)),
        "l"(x + o), "r"(2048), "r"(shared_address(&b))
        : "memory");
  }
  __syncthreads();
  mb_wait(&b, 0);
  for (int i = threadIdx.x; i < 512; i += blockDim.x) s[i] = s[i] * 2 + 1;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(y + o),
                 "r"(shared_address(s)), "r"(2048)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
  }
}
