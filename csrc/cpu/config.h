// Sizes of vectors and tiles, which each instruction set's source chooses. This header and those
// that include it are compiled once per instruction set, by kernels_<isa>.cpp with flags of its
// own. In all of them everything is in an anonymous namespace (and the standard library's inline
// functions are avoided), so that the linker cannot keep the AVX-512 copy of a function and hand it
// to a CPU without AVX-512.
#pragma once

#ifndef GENHOI_VECTOR_FLOATS
#error "define GENHOI_VECTOR_FLOATS (floats in a vector) and GENHOI_TILE_ROWS before including"
#endif

// Which unit multiplies bfloat16: GENHOI_BFLOAT16 of the including source (not defined: none), in
// the header that its GENHOI_BFLOAT16_UNIT names.
#define GENHOI_BFLOAT16_PAIRS 1  // vdpbf16ps
#define GENHOI_BFLOAT16_TILES 2  // AMX

namespace genhoi::cpu {
namespace {

constexpr int kVector = GENHOI_VECTOR_FLOATS;
constexpr int kPanel = 2 * kVector;          // columns of a register tile
constexpr int kTileRows = GENHOI_TILE_ROWS;  // rows of a register tile
constexpr int kBlock = 96;                   // rows or columns of a cache tile
constexpr int kMaxDim = 256;                 // of a head
static_assert(kBlock % kPanel == 0 && kBlock % kTileRows == 0);

}  // namespace
}  // namespace genhoi::cpu
