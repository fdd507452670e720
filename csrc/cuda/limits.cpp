// The limits, read from the kernels' traits.
#include "limits.h"

#include "norm_rope_traits.h"
#include "sm80/traits.h"

namespace genhoi::cuda {

namespace {

template <template <int> class Traits>
std::map<int, uint32_t> by_head_dim() {
  return {{64, Traits<64>::kSharedBytes},
          {96, Traits<96>::kSharedBytes},
          {128, Traits<128>::kSharedBytes}};
}

}  // namespace

std::map<std::string, std::map<int, uint32_t>> shared_bytes() {
  return {{"attention_fwd", by_head_dim<sm80::FwdTraits>()},
          {"bwd_dq", by_head_dim<sm80::BwdDqTraits>()},
          {"bwd_dkdv", by_head_dim<sm80::BwdDkdvTraits>()},
          {"flow_gate_bwd", by_head_dim<sm80::FlowGateBwdTraits>()}};
}

int max_norm_rope_values() { return norm_rope::kMaxTokenValues; }

}  // namespace genhoi::cuda
