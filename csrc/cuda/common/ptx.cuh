// The few PTX instructions that CUDA C++ has no function for.
#pragma once

#include <stdint.h>

namespace genhoi::cuda {

__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void store_smem(uint32_t to, uint32_t value) {
  asm volatile("st.volatile.shared.b32 [%0], %1;\n" ::"r"(to), "r"(value) : "memory");
}

__device__ __forceinline__ void store_smem(uint32_t to, float first, float second) {
  asm volatile("st.volatile.shared.v2.f32 [%0], {%1, %2};\n" ::"r"(to), "f"(first), "f"(second)
               : "memory");
}
// Four numbers.
__device__ __forceinline__ void store_smem(uint32_t to, const float* x) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "f"(x[0]), "f"(x[1]),
               "f"(x[2]), "f"(x[3])
               : "memory");
}
__device__ __forceinline__ void load_smem(float (&x)[2], uint32_t from) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];\n"
               : "=f"(x[0]), "=f"(x[1])
               : "r"(from)
               : "memory");
}
__device__ __forceinline__ void load_smem(float (&x)[4], uint32_t from) {
  asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(from)
               : "memory");
}

// Copies 16 bytes from global to shared memory in the background; zeros if not `in_bounds`.
__device__ __forceinline__ void cp_async_16(uint32_t to, const void* from, bool in_bounds) {
  const int bytes = in_bounds ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
               "r"(bytes)
               : "memory");
}
// Copies 4 bytes likewise.
__device__ __forceinline__ void cp_async_4(uint32_t to, const void* from, bool in_bounds) {
  const int bytes = in_bounds ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits until at most `PENDING` of this thread's groups are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

// Waits for the other warp of a pair; each pair of a block has a number from 1 on.
__device__ __forceinline__ void sync_pair(int pair) {
  asm volatile("bar.sync %0, 64;\n" ::"r"(pair) : "memory");
}

// Loads four 8 x 8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix
// l / 8, and gets two values of row l / 4 of each (of column l / 4, transposed).
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

// Rounds to TF32, 10 bits after the binary point, for mma_tf32.
__device__ __forceinline__ uint32_t round_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(y) : "f"(x));
  return y;
}

// Computes c += a b on the tensor cores. a: 16 x 8, rows l / 4 and l / 4 + 8 of lane l, columns
// l % 4 (both rows) and l % 4 + 4; b: 8 x 8, these as rows, column l / 4.
__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

constexpr float kLn2 = 0.6931471805599453f, kLog2e = 1.4426950408889634f;

// 2^x; subnormal results are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x and log2 x, off by a unit or two in the last place: without the branches of exact ones,
// around which every live register would be kept.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace genhoi::cuda
