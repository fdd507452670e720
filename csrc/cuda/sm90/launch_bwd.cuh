// The launches of the backward kernels.
#pragma once

#include "../common/element.cuh"
#include "bwd_dkdv.cuh"
#include "bwd_dq.cuh"
#include "bwd_sweep.cuh"
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
  of.add(maps.k_ref, in.k_ref, in.ref_tokens, keys, call.ref_batch);
  of.add(maps.v_ref, in.v_ref, in.ref_tokens, keys, call.ref_batch);
  return of.error;
}

// Sets the sweep's counters to 0: no block of keys has added anything.
inline cudaError_t clear_dq_counters(const GenhoiBackward& call, cudaStream_t stream) {
  const size_t bytes = sweep_counters(call.in) * sizeof(int32_t);
  return cudaMemsetAsync(call.dq_counters, 0, bytes, stream);
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
      if constexpr (DIM == BwdSweepTraits::kDim) {
        if (call.dq_sums != nullptr) {
          return launch(bwd_dq<Element, DIM, true>, BwdDqTraits<DIM>::kQueries, kDqKeys<DIM>);
        }
      }
      return launch(bwd_dq<Element, DIM, false>, BwdDqTraits<DIM>::kQueries, kDqKeys<DIM>);
    case GENHOI_BWD_SWEEP:
      if constexpr (DIM == BwdSweepTraits::kDim) {
        const cudaError_t error = clear_dq_counters(call, stream);
        if (error != cudaSuccess) return error;
        return launch(bwd_sweep<Element>, BwdSweepTraits::kQueries, kDkdvKeys);
      }
      return cudaErrorInvalidValue;
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
