// The launch of the forward kernel.
#pragma once

#include "../common/element.cuh"
#include "fwd.cuh"
#include "launch.cuh"
#include "plan.cuh"

namespace genhoi::cuda::sm80 {

template <class Element, int DIM>
cudaError_t launch_fwd(const GenhoiForward& call, cudaStream_t stream) {
  const GenhoiPlan plan = plan_fwd<DIM>(call);
  return launch_planned(attention_fwd<Element, DIM>, plan, stream, call, call.in.scale * kLog2e);
}

}  // namespace genhoi::cuda::sm80

// Instantiates the launch, and with it the kernel.
#define GENHOI_INSTANTIATE_FWD(Element, DIM)                                       \
  template cudaError_t genhoi::cuda::sm80::launch_fwd<genhoi::cuda::Element, DIM>( \
      const GenhoiForward&, cudaStream_t)
