// delta = dO . O - dL of each row, where there is no flow gate: docs/op.md, "Backward".
#pragma once

#include "../common/element.cuh"
#include "../common/key_range.cuh"
#include "traits.h"

namespace genhoi::cuda::sm80 {

// Computes delta. Grid: tiles of rows, heads, samples. A row takes DIM / 8 lanes of 8 or 16.
template <class Element, int DIM>
__global__ void __launch_bounds__(BwdPreprocessTraits::kThreads)
    bwd_preprocess(const __grid_constant__ GenhoiBackward call) {
  using Traits = BwdPreprocessTraits;
  using Value = typename Element::Value;
  constexpr int kLanesPerRow = DIM == 64 ? 8 : 16;
  const GenhoiAttention& in = call.in;
  const int h = blockIdx.y, b = blockIdx.z, column = threadIdx.x % kLanesPerRow * kChunk;
  const auto* out = head_of<Value>(call.out, b, h) + column;
  const auto* dout = head_of<Value>(call.dout, b, h) + column;
  const int64_t head = (static_cast<int64_t>(b) * in.heads + h) * in.rows;
#pragma unroll
  for (int pass = 0; pass < Traits::kRows * kLanesPerRow / Traits::kThreads; pass++) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * Traits::kRows +
                        threadIdx.x / kLanesPerRow + pass * (Traits::kThreads / kLanesPerRow);
    float sum = 0.0f;
    if (row < in.rows && column < in.head_dim) {
      const uint4 o = *reinterpret_cast<const uint4*>(out + row * call.out.token);
      const uint4 d = *reinterpret_cast<const uint4*>(dout + row * call.dout.token);
      const uint32_t pairs[2][4] = {{o.x, o.y, o.z, o.w}, {d.x, d.y, d.z, d.w}};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float2 x = Element::unpack(pairs[0][i]), y = Element::unpack(pairs[1][i]);
        sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
      }
    }
#pragma unroll
    for (int step = 1; step < kLanesPerRow; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (row < in.rows && threadIdx.x % kLanesPerRow == 0) {
      call.delta[head + row] = call.dlse == nullptr ? sum : sum - call.dlse[head + row];
    }
  }
}

}  // namespace genhoi::cuda::sm80
