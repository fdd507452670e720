// Ampere-style flash-attention forward: cp.async double buffer, xor-swizzled tiles, ldmatrix,
// mma.sync, online softmax.
#include <cuda_bf16.h>
#include <stdint.h>

#include "shared_address.cuh"

#include <math_constants.h>
__device__ __forceinline__ void cp16(uint32_t d, const void* s, bool p) {
  int sz = p ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(d), "l"(s), "r"(sz));
}
__device__ __forceinline__ void ldsm4(uint32_t* r, uint32_t p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(p));
}
__device__ __forceinline__ void ldsm4t(uint32_t* r, uint32_t p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(p));
}
__device__ __forceinline__ void mma(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t pack(float a, float b) {
  __nv_bfloat162 t = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<uint32_t*>(&t);
}
template <int D>
__device__ __forceinline__ int sw(int r, int ch) {
  return r * D + ((ch ^ (r & 7)) << 3);
}
// mode: 0 correct; 1 no cp.async wait; 2 no barrier before reading; 3 no barrier before
// overwriting; 4 K index out of bounds
template <int D, bool CAUSAL, int MODE>
__device__ __forceinline__ void fa(const __nv_bfloat16* Q, const __nv_bfloat16* K,
                                   const __nv_bfloat16* V, __nv_bfloat16* O, float* LSE, int N,
                                   float scale) {
  constexpr int BM = 64, BN = 64;
  extern __shared__ __align__(1024) __nv_bfloat16 sm[];
  __nv_bfloat16 *sQ = sm, *sK = sm + BM * D, *sV = sK + 2 * BN * D;
  int tid = threadIdx.x, lane = tid & 31, w = tid >> 5;
  int m0 = blockIdx.x * BM;
  size_t base = (size_t)blockIdx.y * N * D;
  Q += base;
  K += base;
  V += base;
  O += base;
  auto load = [&](__nv_bfloat16* s, const __nv_bfloat16* g, int r0) {
#pragma unroll
    for (int c = tid; c < 64 * D / 8; c += 128) {
      int r = c / (D / 8), ch = c % (D / 8);
      bool p = r0 + r < N;
      if (MODE == 4) p = true;
      cp16(shared_address(s + sw<D>(r, ch)), g + (size_t)(p ? r0 + r : 0) * D + ch * 8, p);
    }
  };
  auto commit = [] { asm volatile("cp.async.commit_group;\n"); };
  load(sQ, Q, m0);
  load(sK, K, 0);
  load(sV, V, 0);
  commit();
  float acc[D / 8][4] = {};
  float mx[2] = {-CUDART_INF_F, -CUDART_INF_F}, l[2] = {0.f, 0.f};
  int hi = CAUSAL ? min(N, m0 + BM) : N;
  int nt = (hi + BN - 1) / BN;
  for (int t = 0; t < nt; t++) {
    int b = t & 1;
    if (t + 1 < nt) {
      load(sK + (b ^ 1) * BN * D, K, (t + 1) * BN);
      load(sV + (b ^ 1) * BN * D, V, (t + 1) * BN);
      commit();
      if (MODE != 1) asm volatile("cp.async.wait_group 1;\n");
    } else if (MODE != 1)
      asm volatile("cp.async.wait_group 0;\n");
    if (MODE != 2) __syncthreads();
    const __nv_bfloat16 *k = sK + b * BN * D, *v = sV + b * BN * D;
    float s[BN / 8][4] = {};
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
      uint32_t a[4];
      ldsm4(a, shared_address(sQ + sw<D>(w * 16 + (lane & 15), kk * 2 + (lane >> 4))));
#pragma unroll
      for (int j = 0; j < BN / 16; j++) {
        uint32_t bb[4];
        ldsm4(bb, shared_address(k + sw<D>(j * 16 + (lane & 7) + ((lane >> 4) << 3),
                                           kk * 2 + ((lane >> 3) & 1))));
        mma(s[2 * j], a, bb[0], bb[1]);
        mma(s[2 * j + 1], a, bb[2], bb[3]);
      }
    }
    float sc = scale * 1.4426950408889634f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int row = m0 + w * 16 + (lane >> 2) + 8 * h;
      float m = mx[h];
#pragma unroll
      for (int j = 0; j < BN / 8; j++)
        for (int c = 0; c < 2; c++) {
          int col = t * BN + j * 8 + (lane & 3) * 2 + c;
          float& x = s[j][2 * h + c];
          x *= sc;
          if (col >= N || (CAUSAL && col > row)) x = -CUDART_INF_F;
          m = fmaxf(m, x);
        }
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
      float mu = m == -CUDART_INF_F ? 0.f : m;
      float al = exp2f(mx[h] - mu);
      float sum = 0.f;
      mx[h] = m;
#pragma unroll
      for (int j = 0; j < BN / 8; j++)
        for (int c = 0; c < 2; c++) {
          float& x = s[j][2 * h + c];
          x = exp2f(x - mu);
          sum += x;
        }
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      l[h] = l[h] * al + sum;
#pragma unroll
      for (int j = 0; j < D / 8; j++) {
        acc[j][2 * h] *= al;
        acc[j][2 * h + 1] *= al;
      }
    }
#pragma unroll
    for (int kk = 0; kk < BN / 16; kk++) {
      uint32_t a[4] = {pack(s[2 * kk][0], s[2 * kk][1]), pack(s[2 * kk][2], s[2 * kk][3]),
                       pack(s[2 * kk + 1][0], s[2 * kk + 1][1]),
                       pack(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
      for (int j = 0; j < D / 16; j++) {
        uint32_t bb[4];
        ldsm4t(bb, shared_address(v + sw<D>(kk * 16 + (lane & 15), j * 2 + (lane >> 4))));
        mma(acc[2 * j], a, bb[0], bb[1]);
        mma(acc[2 * j + 1], a, bb[2], bb[3]);
      }
    }
    if (MODE != 3) __syncthreads();
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int row = m0 + w * 16 + (lane >> 2) + 8 * h;
    if (row < N) {
      float inv = 1.f / l[h];
      for (int j = 0; j < D / 8; j++)
        *reinterpret_cast<__nv_bfloat162*>(O + (size_t)row * D + j * 8 + (lane & 3) * 2) =
            __floats2bfloat162_rn(acc[j][2 * h] * inv, acc[j][2 * h + 1] * inv);
      if ((lane & 3) == 0)
        LSE[(size_t)blockIdx.y * N + row] = mx[h] * 0.6931471805599453f + logf(l[h]);
    }
  }
}
#define FLASH_KERNEL(nm, D, C, M)                                                                  \
  extern "C" __global__ void __launch_bounds__(128)                                                \
      nm(const __nv_bfloat16* Q, const __nv_bfloat16* K, const __nv_bfloat16* V, __nv_bfloat16* O, \
         float* LSE, int N, float scale) {                                                         \
    fa<D, C, M>(Q, K, V, O, LSE, N, scale);                                                        \
  }
FLASH_KERNEL(fa64, 64, false, 0);
FLASH_KERNEL(fa64c, 64, true, 0);
FLASH_KERNEL(fa128c, 128, true, 0);
FLASH_KERNEL(fa_nowait, 64, false, 1);
FLASH_KERNEL(fa_nosync_raw, 64, false, 2);
FLASH_KERNEL(fa_nosync_war, 64, false, 3);
FLASH_KERNEL(fa_oob, 64, false, 4);
