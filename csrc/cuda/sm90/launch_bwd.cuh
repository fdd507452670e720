// The launches of the backward kernels.
#pragma once

#include "../common/element.cuh"
#include "bwd_dkdv.cuh"
#include "bwd_dq.cuh"
#include "launch.cuh"
#include "plan.cuh"
#include "tensor_map.h"

namespace genhoi::cuda::sm90 {

template <int DIM>
cudaError_t make_bwd_maps(BwdMaps& maps, const GenhoiBackward& call, int queries, int keys) {
  const GenhoiAttention& in = call.in;
  TensorMaps<DIM> of{in};
  of.add(maps.q, in.q, in.rows, queries);
  of.add(maps.dout, call.dout, in.rows, queries);
  of.add(maps.k, in.k, in.keys, keys);
  of.add(maps.v, in.v, in.keys, keys);
  of.add(maps.k_ref, in.k_ref, in.ref_tokens, keys);
  of.add(maps.v_ref, in.v_ref, in.ref_tokens, keys);
  return of.error;
}

template <class Element, int DIM>
cudaError_t launch_bwd(const GenhoiBackward& call, GenhoiBackwardKernel kernel,
                       cudaStream_t stream) {
  const GenhoiPlan plan = plan_bwd<DIM>(call, kernel);
  if (plan.block == 0) return cudaSuccess;
  const auto launch = [&](auto* function, int queries, int keys) {
    BwdMaps maps{};
    const cudaError_t error = make_bwd_maps<DIM>(maps, call, queries, keys);
    if (error != cudaSuccess) return error;
    return launch_planned(function, plan, stream, maps, call, call.in.scale * kLog2e);
  };
  switch (kernel) {
    case GENHOI_BWD_DQ:
      return launch(bwd_dq<Element, DIM>, BwdDqTraits<DIM>::kQueries, BwdDqTraits<DIM>::kKeys);
    case GENHOI_BWD_DKDV:
      return launch(bwd_dkdv<Element, DIM, false>, kDkdvQueries<DIM, false>, kDkdvKeys);
    case GENHOI_BWD_REF_DKDV:
      return launch(bwd_dkdv<Element, DIM, true>, kDkdvQueries<DIM, true>, kDkdvKeys);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace genhoi::cuda::sm90

// Instantiates the launch, and with it the kernels.
#define GENHOI_INSTANTIATE_BWD(Element, DIM)                                       \
  template cudaError_t genhoi::cuda::sm90::launch_bwd<genhoi::cuda::Element, DIM>( \
      const GenhoiBackward&, GenhoiBackwardKernel, cudaStream_t)
