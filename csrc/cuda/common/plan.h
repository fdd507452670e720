// How a kernel is launched, from its traits. A plan is all zeros where there is nothing to do.
#pragma once

#include <cuda_runtime.h>

#include "../launch.h"

namespace genhoi::cuda {

inline int64_t divide_up(int64_t count, int size) { return (count + size - 1) / size; }

// The plan of a kernel with these traits.
template <class Traits>
GenhoiPlan make_plan(int64_t blocks, int heads, int samples) {
  GenhoiPlan plan{};
  if (blocks == 0 || heads == 0 || samples == 0) return plan;
  plan.grid[0] = static_cast<uint32_t>(blocks);
  plan.grid[1] = static_cast<uint32_t>(heads);
  plan.grid[2] = static_cast<uint32_t>(samples);
  plan.block = Traits::kThreads;
  plan.shared = Traits::kSharedBytes;
  return plan;
}

// Launches a kernel as its plan says; the arguments are the kernel's.
template <class... Arguments>
cudaError_t launch_planned(void (*kernel)(Arguments...), const GenhoiPlan& plan,
                           cudaStream_t stream, const Arguments&... arguments) {
  if (plan.block == 0) return cudaSuccess;
  if (plan.shared > 48 * 1024) {  // more than a block gets without asking
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared));
    if (error != cudaSuccess) return error;
  }
  const dim3 grid(plan.grid[0], plan.grid[1], plan.grid[2]);
  kernel<<<grid, plan.block, plan.shared, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace genhoi::cuda
