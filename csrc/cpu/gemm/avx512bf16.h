// AVX512-BF16: vectors of pairs of bfloat16, multiplied and added two at a time.
#pragma once

#include <immintrin.h>

#include "cpu/convert.h"

namespace genhoi::cpu {
namespace {

using PairVec = __m512bh;
static_assert(kVector == 16);

inline PairVec load_pairs(const BFloat16* from) { return (PairVec)_mm512_loadu_si512(from); }

inline PairVec splat_pair(const BFloat16* from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return (PairVec)_mm512_set1_epi32(pair);
}

// sums + x0 y0 + x1 y1 of every pair.
inline Vec add_pair_products(Vec sums, PairVec x, PairVec y) {
  return (Vec)_mm512_dpbf16_ps((__m512)sums, x, y);
}

}  // namespace
}  // namespace genhoi::cpu
