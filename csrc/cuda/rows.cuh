// Rows of a warp, as forward and backward kernels hold them, and where they lie in memory.
//
// A warp has kWarpRows = 32 query rows, as two fragments i of 16. In a fragment lane l holds rows
// l / 4 and l / 4 + 8 (halves r = 0, 1) and of every 8 columns two, from 2 (l % 4) on.
#pragma once

#include "launch.h"
#include "ptx.cuh"

namespace genhoi::cuda {

constexpr float kLn2 = 0.6931471805599453f, kLog2e = 1.4426950408889634f;
constexpr int kWarpRows = 32;

// Keys and values of one head, one after another in memory.
template <class Value>
struct KeyRange {
  const Value *k, *v;
  int64_t k_stride, v_stride;
  int count;
  float bias;     // added to the logits, in units of log2 e
  uint32_t seen;  // bit 2 i + r: whether that row sees them
};

// Row of fragment i, half r, counted from the tile's first.
__device__ __forceinline__ int row_in_tile(int i, int r) {
  return threadIdx.x / 32 * kWarpRows + i * 16 + r * 8 + threadIdx.x % 32 / 4;
}

// Over the four lanes that hold a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// First row of one sample's head.
template <class Value>
__device__ __forceinline__ const Value* head_of(const GenhoiTokens& x, int b, int h) {
  return static_cast<const Value*>(x.data) + b * x.batch + h * x.head;
}

__device__ __forceinline__ float bias_to_log2(const GenhoiAttention& in, int segment) {
  return in.ref_bias == nullptr ? 0.0f : in.ref_bias[segment] * kLog2e;
}

// Bit 2 i + r: whether that row sees reference `segment`.
__device__ __forceinline__ uint32_t rows_that_see(const GenhoiAttention& in, int b, int start,
                                                  int segment) {
  if (in.bits == nullptr) return 15;
  uint32_t seen = 0;
#pragma unroll
  for (int at = 0; at < 4; at++) {
    const int row = start + row_in_tile(at / 2, at % 2);
    const int bits = row < in.rows ? in.bits[b * in.bits_batch + row] : 0;
    seen |= (bits >> segment & 1) << at;
  }
  return seen;
}

}  // namespace genhoi::cuda
