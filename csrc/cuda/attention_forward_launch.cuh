// One instantiation of the forward kernel a file, so that they are compiled side by side.
#pragma once

#include <cuda_runtime.h>

#include "attention_forward.cuh"

namespace genhoi::cuda {

template <class Half, int DIM>
cudaError_t launch_forward(const GenhoiForward& call, const GenhoiPlan& plan, cudaStream_t stream) {
  const auto kernel = attention_forward<Half, DIM>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared));
  if (error != cudaSuccess) return error;
  const dim3 grid(plan.grid[0], plan.grid[1], plan.grid[2]);
  kernel<<<grid, plan.block, plan.shared, stream>>>(call, call.in.scale * kLog2e);
  return cudaGetLastError();
}

}  // namespace genhoi::cuda
