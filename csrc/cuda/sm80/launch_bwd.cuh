// The launches of the backward kernels.
//
// No atomics: each result belongs to one block, which adds to it in a fixed order. P and dS are
// computed twice for that, seven products instead of five.
#pragma once

#include "../common/element.cuh"
#include "bwd_dkdv.cuh"
#include "bwd_dq.cuh"
#include "bwd_preprocess.cuh"
#include "flow_gate_bwd.cuh"
#include "launch.cuh"
#include "plan.cuh"

namespace genhoi::cuda::sm80 {

template <class Element, int DIM>
cudaError_t launch_bwd(const GenhoiBackward& call, GenhoiBackwardKernel kernel,
                       cudaStream_t stream) {
  const GenhoiPlan plan = plan_bwd<DIM>(call, kernel);
  switch (kernel) {
    case GENHOI_BWD_PREPROCESS:
      return launch_planned(bwd_preprocess<Element, DIM>, plan, stream, call);
    case GENHOI_BWD_DQ:
      return launch_planned(bwd_dq<Element, DIM>, plan, stream, call);
    case GENHOI_BWD_DKDV:
      return launch_planned(bwd_dkdv<Element, DIM, false>, plan, stream, call);
    case GENHOI_BWD_REF_DKDV:
      return launch_planned(bwd_dkdv<Element, DIM, true>, plan, stream, call);
    default:
      return launch_bwd_dbias(call, plan, stream);
  }
}

template <class Element, int DIM>
cudaError_t launch_flow_gate_bwd(const GenhoiFlowGateBackward& call, cudaStream_t stream) {
  return launch_planned(flow_gate_bwd<Element, DIM>, plan_flow_gate_bwd<DIM>(call), stream, call);
}

}  // namespace genhoi::cuda::sm80

// Instantiates the launches, and with them the kernels.
#define GENHOI_INSTANTIATE_BWD(Element, DIM)                                                 \
  template cudaError_t genhoi::cuda::sm80::launch_bwd<genhoi::cuda::Element, DIM>(           \
      const GenhoiBackward&, GenhoiBackwardKernel, cudaStream_t);                            \
  template cudaError_t genhoi::cuda::sm80::launch_flow_gate_bwd<genhoi::cuda::Element, DIM>( \
      const GenhoiFlowGateBackward&, cudaStream_t)
