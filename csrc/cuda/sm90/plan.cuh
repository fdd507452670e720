// How each sm_90a kernel is launched, as its traits and the call's shape have it.
#pragma once

#include "../common/plan.h"
#include "traits.h"

namespace genhoi::cuda::sm90 {

template <int DIM>
GenhoiPlan plan_fwd(const GenhoiForward& call) {
  using Traits = FwdTraits<DIM>;
  const GenhoiAttention& in = call.in;
  return make_plan<Traits>(divide_up(in.rows, Traits::kQueries), in.heads, in.batch);
}

}  // namespace genhoi::cuda::sm90
