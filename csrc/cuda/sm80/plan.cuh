// How each sm_80 kernel is launched, as its traits and the call's shape have it.
#pragma once

#include "../common/key_block.cuh"
#include "../common/plan.h"
#include "traits.h"

namespace genhoi::cuda::sm80 {

template <int DIM>
GenhoiPlan plan_fwd(const GenhoiForward& call) {
  using Traits = FwdTraits<DIM>;
  const GenhoiAttention& in = call.in;
  return make_plan<Traits>(divide_up(in.rows, Traits::kQueries), in.heads, in.batch);
}

template <int DIM>
GenhoiPlan plan_bwd(const GenhoiBackward& call, GenhoiBackwardKernel kernel) {
  using Preprocess = BwdPreprocessTraits;
  using Dq = BwdDqTraits<DIM>;
  using Dkdv = BwdDkdvTraits<DIM>;
  using Dbias = BwdDbiasTraits;
  const GenhoiAttention& in = call.in;
  const int reference_blocks = in.ref_tokens == 0 ? 0 : max_reference_blocks(in);
  const bool needs_dbias = call.dref_bias != nullptr && in.ref_tokens > 0;
  switch (kernel) {
    case GENHOI_BWD_PREPROCESS:
      return make_plan<Preprocess>(divide_up(in.rows, Preprocess::kRows), in.heads, in.batch);
    case GENHOI_BWD_DQ:
      return make_plan<Dq>(divide_up(in.rows, Dq::kQueries), in.heads, in.batch);
    case GENHOI_BWD_DKDV:
      return make_plan<Dkdv>(divide_up(in.keys, Dkdv::kKeys), in.heads, in.batch);
    case GENHOI_BWD_REF_DKDV:
      return make_plan<Dkdv>(reference_blocks, in.heads, call.ref_batch);
    case GENHOI_BWD_DBIAS:
      return make_plan<Dbias>(needs_dbias ? in.references : 0, 1, 1);
    case GENHOI_BWD_SWEEP:  // which the sm_90a kernels alone have
      break;
  }
  return {};
}

template <int DIM>
GenhoiPlan plan_flow_gate_bwd(const GenhoiFlowGateBackward& call) {
  using Traits = FlowGateBwdTraits<DIM>;
  const GenhoiAttention& in = call.in;
  const int64_t tiles = divide_up(in.rows, Traits::kRows) * in.batch * in.heads;
  return make_plan<Traits>(tiles < Traits::kMaxBlocks ? tiles : Traits::kMaxBlocks, 1, 1);
}

}  // namespace genhoi::cuda::sm80
