// The launches of the sm_90a kernels. Those of one element type and head dim are defined in
// launch_fwd.cuh and launch_bwd.cuh, which each file of instantiations/ compiles once.
#pragma once

#include "../common/plan.h"

namespace genhoi::cuda::sm90 {

template <class Element, int DIM>
cudaError_t launch_fwd(const GenhoiForward& call, cudaStream_t stream);

// dQ, or dK and dV of the video or of the references.
template <class Element, int DIM>
cudaError_t launch_bwd(const GenhoiBackward& call, GenhoiBackwardKernel kernel,
                       cudaStream_t stream);

}  // namespace genhoi::cuda::sm90
