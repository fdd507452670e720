// Small matrix products on cache tiles: C[rows, columns] (+)= A[rows, depth] B[depth, columns],
// sums in float32. A is row-major; B is packed in panels of kPanel columns, [panel][depth][kPanel],
// or for bfloat16, whose neighbours along the depth are multiplied in pairs, [panel][depth /
// 2][kPanel][2]. Every element is summed over depth in order, whatever its place in the tile: a
// row's result does not depend on which other rows share its tile.
#pragma once

#include "cpu/gemm/overlap.h"
#include "cpu/gemm/register_tile.h"

namespace genhoi::cpu {
namespace {

struct GemmShape {
  int64_t rows, panels, depth;  // panels of columns
};

// How often a product of this shape calls `overlap`.
template <class Element>
inline int64_t gemm_steps(const GemmShape& shape) {
  return div_up(shape.rows, GemmTraits<Element>::kRows) * shape.panels *
         div_up(shape.depth, GemmTraits<Element>::kDepth);
}

// Rows are rounded up to the register tile's: A and C must have room for that many, and A and B for
// a depth rounded up to GemmTraits<Element>::kDepth.
template <bool kAccumulate, class Element, class Work>
inline void gemm(const GemmShape& shape, OperandA<Element> a, OperandB<Element> b, Accumulator c,
                 Work& overlap) {
  using Traits = GemmTraits<Element>;
  const int64_t padded_depth = round_up(shape.depth, Traits::kDepth);
  for (int64_t p = 0; p < shape.panels; p++) {
    const Element* b_panel = b.data + p * b.panel_stride;
    for (int64_t i = 0; i < shape.rows; i += Traits::kRows) {
      const OperandA<Element> a_tile = {a.data + i * a.stride, a.stride};
      const Accumulator c_tile = {c.data + i * c.stride + p * kPanel, c.stride};
      if constexpr (Traits::kSeparateUnit) {
        register_tile<kAccumulate>(a_tile, b_panel, padded_depth, c_tile, overlap);
      } else {
        register_tile<kAccumulate>(a_tile, b_panel, padded_depth, c_tile);
      }
    }
  }
}

template <bool kAccumulate, class Element>
inline void gemm(const GemmShape& shape, OperandA<Element> a, OperandB<Element> b, Accumulator c) {
  NoOverlap nothing;
  gemm<kAccumulate, Element>(shape, a, b, c, nothing);
}

}  // namespace
}  // namespace genhoi::cpu
