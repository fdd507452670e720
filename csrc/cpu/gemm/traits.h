// What a product of cache tiles demands of its operands, by their type: float, or BFloat16 on an
// instruction set that multiplies it.
#pragma once

#include "cpu/convert.h"

#if defined(GENHOI_BFLOAT16)
#include GENHOI_BFLOAT16_UNIT
#endif

namespace genhoi::cpu {
namespace {

// kRows: rows of a register tile. kDepth: the depth it takes in one go; operands are padded to it
// with zeros. kPair: values along the depth that lie side by side in B. kSeparateUnit: products are
// taken by a unit beside the vector units, which can do other work meanwhile. Unit: what a thread
// must hold while it multiplies.
template <class Element>
struct GemmTraits {
  static constexpr int kRows = kTileRows, kDepth = 1, kPair = 1;
  static constexpr bool kSeparateUnit = false;
  struct Unit {};
};
#if GENHOI_BFLOAT16 == GENHOI_BFLOAT16_PAIRS
template <>
struct GemmTraits<BFloat16> {
  static constexpr int kRows = kTileRows, kDepth = 2, kPair = 2;
  static constexpr bool kSeparateUnit = false;
  struct Unit {};
};
#elif GENHOI_BFLOAT16 == GENHOI_BFLOAT16_TILES
template <>
struct GemmTraits<BFloat16> {
  static constexpr int kRows = 32, kDepth = 32, kPair = 2;
  static constexpr bool kSeparateUnit = true;
  using Unit = TileUnit;
};
#endif

}  // namespace
}  // namespace genhoi::cpu
