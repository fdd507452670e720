// The gradient of the references' bias: the sum of what the blocks of bwd_dkdv have stored.
#include "../common/key_block.cuh"
#include "launch.cuh"
#include "traits.h"

namespace genhoi::cuda::sm80 {
namespace {

// Adds the blocks' parts up, in a fixed order. Grid: references.
__global__ void __launch_bounds__(BwdDbiasTraits::kThreads)
    bwd_dbias(const __grid_constant__ GenhoiBackward call) {
  constexpr int kThreads = BwdDbiasTraits::kThreads;
  __shared__ float sums[kThreads];
  const GenhoiAttention& in = call.in;
  const int parts = max_reference_blocks(in);
  const int64_t heads = static_cast<int64_t>(call.ref_batch) * in.heads;
  float sum = 0.0f;
  for (int part = 0; part < parts; part++) {
    const KeyBlock block = reference_block(in, part);
    if (block.count == 0 || block.segment != static_cast<int>(blockIdx.x)) continue;
    for (int64_t head = threadIdx.x; head < heads; head += kThreads) {
      sum += call.bias_parts[head * parts + part];
    }
  }
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) call.dref_bias[blockIdx.x] = sums[0];
}

}  // namespace

cudaError_t launch_bwd_dbias(const GenhoiBackward& call, const GenhoiPlan& plan,
                             cudaStream_t stream) {
  return launch_planned(bwd_dbias, plan, stream, call);
}

}  // namespace genhoi::cuda::sm80
