// How products of queries and keys become logits and probabilities. Both passes do the same, so
// that their rounding errors agree. Logits are kept in units of log2 e.
#pragma once

#include <type_traits>

#include "cpu/exp2.h"
#include "cpu/gemm/traits.h"

namespace genhoi::cpu {
namespace {

// Where the factor scale * log2 e goes that turns a product into a logit: in float32 into the
// queries; for bfloat16 behind the product, so that queries are rounded as they are.
template <class Element>
struct LogitScale {
  float on_queries, on_products;
  explicit LogitScale(float scale) {
    const float factor = static_cast<float>(scale * kLog2e);
    on_queries = sizeof(Element) == 2 ? 1.f : factor;
    on_products = sizeof(Element) == 2 ? factor : 1.f;
  }
};

// exp2 as exactly as probabilities are kept.
template <class Element>
using ProbabilityExp2 = std::conditional_t<sizeof(Element) == 2, Coarse, Exact>;

#if defined(GENHOI_BFLOAT16)
// Whether a call's products are taken in bfloat16; else its values become float32.
inline bool multiplies_bfloat16(const Attention& in) {
  return in.dtype == DType::kBFloat16 && in.dim % GemmTraits<BFloat16>::kDepth == 0;
}
#endif

}  // namespace
}  // namespace genhoi::cpu
