// How tokens lie in registers and shared memory: plain constants, which host code reads as well.
#pragma once

namespace genhoi::cuda {

constexpr int kWarpRows = 32;  // of a tile, in a warp's accumulators
constexpr int kChunk = 8;      // 16-bit values in 16 bytes, the most that a thread copies at a time

// Keys of a block of dK and dV, none of which has keys of two references.
constexpr int kDkdvKeys = 128;

// Bytes of a token's row in a tile.
template <int DIM>
constexpr int kRowBytes = DIM * 2;

}  // namespace genhoi::cuda
