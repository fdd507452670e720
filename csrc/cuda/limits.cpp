// The limits, read from the kernels' traits.
#include "limits.h"

#include "norm_rope_traits.h"
#include "sm80/traits.h"
#include "sm90/traits.h"

namespace genhoi::cuda {

namespace {

template <class Traits>
KernelSize sm80_size(const char* kernel, int head_dim) {
  return {"sm80",        kernel,           head_dim,         Traits::kQueries,
          Traits::kKeys, Traits::kThreads, Traits::kThreads, Traits::kSharedBytes};
}

template <class Traits>
KernelSize sm90_size(const char* kernel, int head_dim) {
  constexpr int kLoopThreads = Traits::kConsumers * sm90::kGroupThreads;
  return {"sm90",        kernel,           head_dim,     Traits::kQueries,
          Traits::kKeys, Traits::kThreads, kLoopThreads, Traits::kSharedBytes};
}

template <int DIM>
void add_sizes(std::vector<KernelSize>& sizes) {
  using Gate = sm80::FlowGateBwdTraits<DIM>;
  sizes.push_back(sm80_size<sm80::FwdTraits<DIM>>("attention_fwd", DIM));
  sizes.push_back(sm80_size<sm80::BwdDqTraits<DIM>>("bwd_dq", DIM));
  sizes.push_back(sm80_size<sm80::BwdDkdvTraits<DIM>>("bwd_dkdv", DIM));
  sizes.push_back(sm80_size<sm80::BwdDkdvTraits<DIM>>("bwd_dkdv, references", DIM));
  sizes.push_back({"sm80", "flow_gate_bwd", DIM, Gate::kRows, 0, Gate::kThreads, Gate::kThreads,
                   Gate::kSharedBytes});
  sizes.push_back(sm90_size<sm90::FwdTraits<DIM>>("attention_fwd", DIM));
  sizes.push_back(sm90_size<sm90::BwdDqTraits<DIM>>("bwd_dq", DIM));
  sizes.push_back(sm90_size<sm90::BwdDkdvTraits<DIM, false>>("bwd_dkdv", DIM));
  sizes.push_back(sm90_size<sm90::BwdDkdvTraits<DIM, true>>("bwd_dkdv, references", DIM));
}

}  // namespace

std::vector<KernelSize> kernel_sizes() {
  constexpr int kSwept = sm90::BwdSweepTraits::kDim;
  std::vector<KernelSize> sizes;
  add_sizes<64>(sizes);
  add_sizes<96>(sizes);
  add_sizes<128>(sizes);
  sizes.push_back(sm90_size<sm90::BwdDqTraits<kSwept>>("bwd_dq, swept", kSwept));
  sizes.push_back(sm90_size<sm90::BwdSweepTraits>("bwd_sweep", kSwept));
  return sizes;
}

int max_norm_rope_values() { return norm_rope::kMaxTokenValues; }

}  // namespace genhoi::cuda
