// Attention backward on tensor cores (sm_80 and later), and which kernel is launched how.
//
// No atomics: each result belongs to one block, which adds to it in a fixed order. P and dS are
// computed twice for that, seven products instead of five.
#pragma once

#include <cuda_runtime.h>

#include "delta.cuh"
#include "gradient_of_keys.cuh"
#include "gradient_of_queries.cuh"

namespace genhoi::cuda::backward {

inline uint32_t parts_of(int64_t count, int size) {
  return static_cast<uint32_t>((count + size - 1) / size);
}

// All zeros where there is nothing to do. `kernel`: any but GENHOI_GRADIENT_OF_BIAS.
template <int DIM>
GenhoiPlan plan_backward(const GenhoiBackward& call, int kernel) {
  using Cut = KeysCut<DIM>;
  const GenhoiAttention& in = call.in;
  GenhoiPlan plan{{0, static_cast<uint32_t>(in.heads), static_cast<uint32_t>(in.batch)}, 0, 0};
  if (kernel == GENHOI_DELTA) {
    plan.grid[0] = parts_of(in.rows, kDeltaRows);
    plan.block = kDeltaThreads;
  } else if (kernel == GENHOI_GRADIENT_OF_QUERIES) {
    plan.grid[0] = parts_of(in.rows, kQueryRows);
    plan.block = kQueryThreads;
    plan.shared = query_shared_bytes<DIM>();
  } else {
    plan.block = Cut::kThreads;
    plan.shared = Cut::kShared;
    plan.grid[0] = parts_of(in.keys, Cut::kKeys);
    if (kernel == GENHOI_GRADIENT_OF_REFERENCES) {
      plan.grid[0] = in.ref_tokens == 0 ? 0 : GENHOI_BIAS_PARTS(in.ref_tokens, in.references);
      plan.grid[2] = static_cast<uint32_t>(call.ref_batch);
    }
  }
  return plan.grid[0] == 0 || plan.grid[1] == 0 || plan.grid[2] == 0 ? GenhoiPlan{} : plan;
}

template <class Half, int DIM>
cudaError_t launch_backward(const GenhoiBackward& call, int kernel, cudaStream_t stream) {
  using Kernel = void (*)(GenhoiBackward);
  const Kernel kernels[] = {attention_delta<Half, DIM>, gradient_of_queries<Half, DIM>,
                            gradient_of_keys<Half, DIM, false>, gradient_of_keys<Half, DIM, true>};
  const GenhoiPlan plan = plan_backward<DIM>(call, kernel);
  if (plan.block == 0) return cudaSuccess;
  if (plan.shared > 48 * 1024) {  // more than a block gets without asking
    const cudaError_t refused = cudaFuncSetAttribute(
        kernels[kernel], cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared);
    if (refused != cudaSuccess) return refused;
  }
  const dim3 grid(plan.grid[0], plan.grid[1], plan.grid[2]);
  kernels[kernel]<<<grid, plan.block, plan.shared, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace genhoi::cuda::backward
