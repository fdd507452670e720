// The launches of the sm_80 kernels. Those of one element type and head dim are defined in
// launch_fwd.cuh and launch_bwd.cuh, which each file of instantiations/ compiles once.
#pragma once

#include "../common/plan.h"

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

}  // namespace genhoi::cuda::sm80
