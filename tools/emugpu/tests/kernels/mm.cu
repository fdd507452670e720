#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#include <stdint.h>

#include "shared_address.cuh"

using namespace nvcuda;
// wmma: C[M,N]=A[M,K]*B[K,N], fp16->f32, one warp per 16x16 tile
extern "C" __global__ void wmma_mm(const __half* A, const __half* B, float* C, int M, int N,
                                   int K) {
  int w = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  int tn = N / 16;
  int tm = w / tn;
  int tc = w % tn;
  if (tm * 16 >= M) return;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> a;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::row_major> b;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> c;
  wmma::fill_fragment(c, 0.f);
  for (int k = 0; k < K; k += 16) {
    wmma::load_matrix_sync(a, A + tm * 16 * K + k, K);
    wmma::load_matrix_sync(b, B + k * N + tc * 16, N);
    wmma::mma_sync(c, a, b, c);
  }
  wmma::store_matrix_sync(C + tm * 16 * N + tc * 16, c, N, wmma::mem_row_major);
}
__device__ __forceinline__ void cp16(uint32_t d, const void* s, bool p) {
  int sz = p ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(d), "l"(s), "r"(sz));
}
__device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;\n"); }
template <int n>
__device__ __forceinline__ void cp_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(n));
}
__device__ __forceinline__ void ldsm4(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d,
                                      uint32_t p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(p));
}
__device__ __forceinline__ void ldsm4t(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d,
                                       uint32_t p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(p));
}
template <class T>
__device__ __forceinline__ void mma16816(float* d, const uint32_t* a, uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma16816<__nv_bfloat16>(float* d, const uint32_t* a, uint32_t b0,
                                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma16816<__half>(float* d, const uint32_t* a, uint32_t b0,
                                                 uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// tiled 64x64x32 matmul, 4 warps each 32x32, double buffered cp.async, xor swizzle. A[M,K] row,
// B[K,N] row.
template <class T, bool WAIT, bool SYNC>
__device__ __forceinline__ void tile_mm(const T* A, const T* B, float* C, int M, int N, int K) {
  __shared__ __align__(128) T sA[2][64 * 32];
  __shared__ __align__(128) T sB[2][32 * 64];
  int tid = threadIdx.x, lane = tid & 31, w = tid >> 5;
  int m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
  int wm = (w >> 1) * 32, wn = (w & 1) * 32;
  float acc[2][4][4] = {};
  auto load = [&](int buf, int k0) {
    for (int c = tid; c < 256; c += 128) {
      int r = c >> 2, ch = c & 3;
      int sw = ch ^ ((r >> 1) & 3);
      bool p = (m0 + r < M) && (k0 + ch * 8 < K);
      cp16(shared_address(&sA[buf][r * 32 + sw * 8]),
           p ? &A[(size_t)(m0 + r) * K + k0 + ch * 8] : A, p);
    }
    for (int c = tid; c < 256; c += 128) {
      int r = c >> 3, ch = c & 7;
      int sw = ch ^ (r & 7);
      bool p = (k0 + r < K) && (n0 + ch * 8 < N);
      cp16(shared_address(&sB[buf][r * 64 + sw * 8]),
           p ? &B[(size_t)(k0 + r) * N + n0 + ch * 8] : B, p);
    }
    cp_commit();
  };
  int nk = (K + 31) / 32;
  load(0, 0);
  for (int t = 0; t < nk; t++) {
    if (t + 1 < nk) load((t + 1) & 1, (t + 1) * 32);
    if (WAIT) {
      if (t + 1 < nk)
        cp_wait<1>();
      else
        cp_wait<0>();
    }
    if (SYNC) __syncthreads();
    int buf = t & 1;
#pragma unroll
    for (int kk = 0; kk < 32; kk += 16) {
      uint32_t a[2][4], b[4][2];
      for (int i = 0; i < 2; i++) {
        int r = wm + i * 16 + (lane & 15);
        int ch = (kk >> 3) + (lane >> 4);
        ldsm4(a[i][0], a[i][1], a[i][2], a[i][3],
              shared_address(&sA[buf][r * 32 + ((ch ^ ((r >> 1) & 3)) * 8)]));
      }
      for (int j = 0; j < 4; j += 2) {
        int r = kk + (lane & 15);
        int ch = ((wn + j * 8) >> 3) + (lane >> 4);
        ldsm4t(b[j][0], b[j][1], b[j + 1][0], b[j + 1][1],
               shared_address(&sB[buf][r * 64 + ((ch ^ (r & 7)) * 8)]));
      }
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) mma16816<T>(acc[i][j], a[i], b[j][0], b[j][1]);
    }
    if (SYNC) __syncthreads();
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++) {
      int r = m0 + wm + i * 16 + (lane >> 2), c = n0 + wn + j * 8 + (lane & 3) * 2;
      if (r < M && c < N) {
        C[(size_t)r * N + c] = acc[i][j][0];
        C[(size_t)r * N + c + 1] = acc[i][j][1];
      }
      if (r + 8 < M && c < N) {
        C[(size_t)(r + 8) * N + c] = acc[i][j][2];
        C[(size_t)(r + 8) * N + c + 1] = acc[i][j][3];
      }
    }
}
extern "C" __global__ void mm_bf16(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C, int M,
                                   int N, int K) {
  tile_mm<__nv_bfloat16, true, true>(A, B, C, M, N, K);
}
extern "C" __global__ void mm_f16(const __half* A, const __half* B, float* C, int M, int N, int K) {
  tile_mm<__half, true, true>(A, B, C, M, N, K);
}
extern "C" __global__ void mm_nowait(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C,
                                     int M, int N, int K) {
  tile_mm<__nv_bfloat16, false, true>(A, B, C, M, N, K);
}
extern "C" __global__ void mm_nosync(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C,
                                     int M, int N, int K) {
  tile_mm<__nv_bfloat16, true, false>(A, B, C, M, N, K);
}
// wmma tf32 and int8
extern "C" __global__ void wmma_tf32(const float* A, const float* B, float* C, int M, int N,
                                     int K) {
  int w = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  int tn = N / 16;
  int tm = w / tn;
  int tc = w % tn;
  if (tm * 16 >= M) return;
  wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> a;
  wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> b;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> c;
  wmma::fill_fragment(c, 0.f);
  for (int k = 0; k < K; k += 8) {
    wmma::load_matrix_sync(a, A + tm * 16 * K + k, K);
    wmma::load_matrix_sync(b, B + k * N + tc * 16, N);
    for (int t = 0; t < a.num_elements; t++) a.x[t] = wmma::__float_to_tf32(a.x[t]);
    for (int t = 0; t < b.num_elements; t++) b.x[t] = wmma::__float_to_tf32(b.x[t]);
    wmma::mma_sync(c, a, b, c);
  }
  wmma::store_matrix_sync(C + tm * 16 * N + tc * 16, c, N, wmma::mem_row_major);
}
