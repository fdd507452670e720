// How each sm_90a kernel is launched, as its traits and the call's shape have it.
#pragma once

#include "../common/key_block.cuh"
#include "../common/plan.h"
#include "traits.h"

namespace genhoi::cuda::sm90 {

template <int DIM>
GenhoiPlan plan_fwd(const GenhoiForward& call) {
  using Traits = FwdTraits<DIM>;
  const GenhoiAttention& in = call.in;
  return make_plan<Traits>(divide_up(in.rows, Traits::kQueries), in.heads, in.batch);
}

// Tiles of queries in all heads, each of which has sums of dQ; and the sums' counters.
inline int64_t sweep_tiles(const GenhoiAttention& in) {
  return divide_up(in.rows, BwdSweepTraits::kQueries) * in.heads * in.batch;
}
inline int64_t sweep_counters(const GenhoiAttention& in) {
  return 1 + sweep_tiles(in) * BwdSweepTraits::kConsumers;  // 1 of tickets
}

// What the sweep takes. It saves a seventh of the time of the two kernels of dQ and of dK and dV;
// but its blocks have to start one after another, which takes as long as one to two waves of them.
inline GenhoiScratch sweep_scratch(const GenhoiAttention& in, int multiprocessors) {
  constexpr int kLeastWaves = 12;  // measured on an H200: docs/gpu.md
  if (in.keys == 0 || sweep_tiles(in) == 0) return {0, 0, 0};
  const int64_t blocks = divide_up(in.keys, kDkdvKeys) * in.heads * in.batch;
  return {sweep_tiles(in) * BwdSweepTraits::kQueries * BwdSweepTraits::kDim, sweep_counters(in),
          blocks >= int64_t{kLeastWaves} * multiprocessors};
}

// Of the kernels of backward that exist for sm_90a: those of dQ, dK and dV.
template <int DIM>
GenhoiPlan plan_bwd(const GenhoiBackward& call, GenhoiBackwardKernel kernel) {
  using Dq = BwdDqTraits<DIM>;
  const GenhoiAttention& in = call.in;
  const int reference_blocks = in.ref_tokens == 0 ? 0 : max_reference_blocks(in);
  switch (kernel) {
    case GENHOI_BWD_DQ:
      return make_plan<Dq>(divide_up(in.rows, Dq::kQueries), in.heads, in.batch);
    case GENHOI_BWD_DKDV:
      return make_plan<BwdDkdvTraits<DIM, false>>(divide_up(in.keys, kDkdvKeys), in.heads,
                                                  in.batch);
    case GENHOI_BWD_SWEEP:
      return make_plan<BwdSweepTraits>(divide_up(in.keys, kDkdvKeys), in.heads, in.batch);
    case GENHOI_BWD_REF_DKDV:
      return make_plan<BwdDkdvTraits<DIM, true>>(reference_blocks, in.heads, call.ref_batch);
    default:
      return {};
  }
}

}  // namespace genhoi::cuda::sm90
