// The innermost product: C[kRows, kPanel] (+)= A[kRows, depth] B[depth, kPanel] for operands of
// either type, with all of C in registers. gemm.h has the operands' layouts.
#pragma once

#include "cpu/gemm/traits.h"

namespace genhoi::cpu {
namespace {

// Rows of A, from one row to the next `stride` elements.
template <class Element>
struct OperandA {
  const Element* data;
  int64_t stride;
};

// Panels of B, from one panel to the next `panel_stride` elements.
template <class Element>
struct OperandB {
  const Element* data;
  int64_t panel_stride;
};

// C, in float32.
struct Accumulator {
  float* data;
  int64_t stride;
};

template <bool kAccumulate>
inline void store_sums(const Vec (&sums)[kTileRows][2], Accumulator c) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; i++) {
    float* to = c.data + i * c.stride;
    store(to, kAccumulate ? load(to) + sums[i][0] : sums[i][0]);
    store(to + kVector, kAccumulate ? load(to + kVector) + sums[i][1] : sums[i][1]);
  }
}

template <bool kAccumulate>
inline void register_tile(OperandA<float> a, const float* b, int64_t depth, Accumulator c) {
  Vec sums[kTileRows][2] = {};
  for (int64_t t = 0; t < depth; t++) {
    const Vec b0 = load(b + t * kPanel), b1 = load(b + t * kPanel + kVector);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; i++) {
      const Vec x = splat(a.data[i * a.stride + t]);
      sums[i][0] += x * b0;
      sums[i][1] += x * b1;
    }
  }
  store_sums<kAccumulate>(sums, c);
}

#if GENHOI_BFLOAT16 == GENHOI_BFLOAT16_PAIRS
template <bool kAccumulate>
inline void register_tile(OperandA<BFloat16> a, const BFloat16* b, int64_t depth, Accumulator c) {
  Vec sums[kTileRows][2] = {};
  for (int64_t t = 0; t < depth; t += 2) {
    const PairVec b0 = load_pairs(b + t * kPanel), b1 = load_pairs(b + t * kPanel + 2 * kVector);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; i++) {
      const PairVec x = splat_pair(a.data + i * a.stride + t);
      sums[i][0] = add_pair_products(sums[i][0], x, b0);
      sums[i][1] = add_pair_products(sums[i][1], x, b1);
    }
  }
  store_sums<kAccumulate>(sums, c);
}
#elif GENHOI_BFLOAT16 == GENHOI_BFLOAT16_TILES
// 32 x 32 results in tiles 0 to 3, 16 x 16 each; 4 and 5 hold rows of A, 6 and 7 columns of B. Four
// products take the tile unit 64 cycles, in which `overlap` runs in the vector units.
template <bool kAccumulate, class Work>
inline void register_tile(OperandA<BFloat16> a, const BFloat16* b, int64_t depth, Accumulator c,
                          Work& overlap) {
  static_assert(kPanel == 32);
  const int64_t c_bytes = c.stride * 4, a_bytes = a.stride * 2, b_bytes = kPanel * 4;
  float *upper = c.data, *lower = c.data + 16 * c.stride;
  if (kAccumulate) {
    TILE_LOAD(0, upper, c_bytes);
    TILE_LOAD(1, upper + 16, c_bytes);
    TILE_LOAD(2, lower, c_bytes);
    TILE_LOAD(3, lower + 16, c_bytes);
  } else {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
  }
  for (int64_t t = 0; t < depth; t += 32) {
    TILE_LOAD(4, a.data + t, a_bytes);
    TILE_LOAD(6, b + t * kPanel, b_bytes);
    TILE_MULTIPLY(0, 4, 6);
    TILE_LOAD(5, a.data + 16 * a.stride + t, a_bytes);
    TILE_MULTIPLY(2, 5, 6);
    TILE_LOAD(7, b + t * kPanel + 32, b_bytes);
    TILE_MULTIPLY(1, 4, 7);
    TILE_MULTIPLY(3, 5, 7);
    overlap();
  }
  TILE_STORE(0, upper, c_bytes);
  TILE_STORE(1, upper + 16, c_bytes);
  TILE_STORE(2, lower, c_bytes);
  TILE_STORE(3, lower + 16, c_bytes);
}
#endif

}  // namespace
}  // namespace genhoi::cpu
