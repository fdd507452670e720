// The launches of the sm_80 kernels. Those of one element type and head dim are defined in
// launch_fwd.cuh and launch_bwd.cuh, which each file of instantiations/ compiles once.
#pragma once

#include <cuda_runtime.h>

#include "../launch.h"

namespace genhoi::cuda::sm80 {

template <class Element, int DIM>
cudaError_t launch_fwd(const GenhoiForward& call, cudaStream_t stream);

template <class Element, int DIM>
cudaError_t launch_bwd(const GenhoiBackward& call, GenhoiBackwardKernel kernel,
                       cudaStream_t stream);

template <class Element, int DIM>
cudaError_t launch_flow_gate_bwd(const GenhoiFlowGateBackward& call, cudaStream_t stream);

cudaError_t launch_bwd_dbias(const GenhoiBackward& call, const GenhoiPlan& plan,
                             cudaStream_t stream);

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

}  // namespace genhoi::cuda::sm80
