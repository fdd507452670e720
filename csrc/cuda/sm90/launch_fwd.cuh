// The launch of the forward kernel.
#pragma once

#include "../common/element.cuh"
#include "fwd.cuh"
#include "launch.cuh"
#include "plan.cuh"
#include "tensor_map.h"

namespace genhoi::cuda::sm90 {

template <int DIM>
cudaError_t make_fwd_maps(FwdMaps& maps, const GenhoiForward& call) {
  using Traits = FwdTraits<DIM>;
  const GenhoiAttention& in = call.in;
  TensorMaps<DIM> of{in};
  of.add(maps.q, in.q, in.rows, Traits::kQueries);
  of.add(maps.k, in.k, in.keys, Traits::kKeys);
  of.add(maps.v, in.v, in.keys, Traits::kKeys);
  of.add(maps.k_ref, in.k_ref, in.ref_tokens, Traits::kKeys);
  of.add(maps.v_ref, in.v_ref, in.ref_tokens, Traits::kKeys);
  of.add_result(maps.out, call.out, in.rows, kGroupRows, in.batch);
  of.add_result(maps.ungated, call.ungated, in.rows, kGroupRows, in.batch);
  if (of.error == cudaSuccess && in.gate_mode != GENHOI_GATE_NONE) {
    const int hidden = in.head_dim / 2;
    const int64_t size = static_cast<int64_t>(hidden) * in.head_dim;
    const GenhoiTokens weight{const_cast<void*>(in.gate.fc1_weight), 0, in.head_dim, size};
    const TokenTensor tensor{weight, hidden, 1, in.head_dim, 1};
    of.error = make_tensor_map<DIM>(maps.fc1_weight, tensor, in.dtype, Traits::kHidden);
  }
  return of.error;
}

template <class Element, int DIM>
cudaError_t launch_fwd(const GenhoiForward& call, cudaStream_t stream) {
  const GenhoiPlan plan = plan_fwd<DIM>(call);
  if (plan.block == 0) return cudaSuccess;
  FwdMaps maps{};
  const cudaError_t error = make_fwd_maps<DIM>(maps, call);
  if (error != cudaSuccess) return error;
  return launch_planned(attention_fwd<Element, DIM>, plan, stream, maps, call,
                        call.in.scale * kLog2e);
}

}  // namespace genhoi::cuda::sm90

// Instantiates the launch, and with it the kernel.
#define GENHOI_INSTANTIATE_FWD(Element, DIM)                                       \
  template cudaError_t genhoi::cuda::sm90::launch_fwd<genhoi::cuda::Element, DIM>( \
      const GenhoiForward&, cudaStream_t)
