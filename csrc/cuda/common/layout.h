// How tokens lie in registers and shared memory: plain constants, which host code reads as well.
#pragma once

namespace genhoi::cuda {

constexpr int kWarpRows = 32;  // of a tile, in a warp's accumulators
constexpr int kChunk = 8;      // 16-bit values in 16 bytes, the most that a thread copies at a time

// Bytes of a token's row in a tile.
template <int DIM>
constexpr int kRowBytes = DIM * 2;

}  // namespace genhoi::cuda
