// Tile sizes, threads and shared memory of the sm_80 kernels, each stated once: plain constants,
// which host code reads as well.
#pragma once

#include <cstdint>

#include "../common/layout.h"

namespace genhoi::cuda::sm80 {

// Forward: a block has a tile of queries, tiles of keys pass by.
template <int DIM>
struct FwdTraits {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlocksPerSm = 2;
  static constexpr int kQueries = kWarps * kWarpRows;
  static constexpr int kKeys = 64;
  // Shared memory: Q, K, V.
  static constexpr uint32_t kQueryBytes = kQueries * kRowBytes<DIM>;
  static constexpr uint32_t kKeyBytes = kKeys * kRowBytes<DIM>;
  static constexpr uint32_t kSharedBytes = kQueryBytes + 2 * kKeyBytes;
};

// delta where there is no flow gate: a block has a tile of rows.
struct BwdPreprocessTraits {
  static constexpr int kThreads = 128;
  static constexpr int kRows = 32;
  static constexpr uint32_t kSharedBytes = 0;
};

// dQ: a block has a tile of queries, tiles of keys pass by.
template <int DIM>
struct BwdDqTraits {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlocksPerSm = 2;
  static constexpr int kQueries = kWarps * kWarpRows;
  static constexpr int kKeys = 32;
  // Shared memory: Q, dO, V, K.
  static constexpr uint32_t kQueryBytes = kQueries * kRowBytes<DIM>;
  static constexpr uint32_t kKeyBytes = kKeys * kRowBytes<DIM>;
  static constexpr uint32_t kSharedBytes = 2 * kQueryBytes + 2 * kKeyBytes;
};

// dK and dV: a block has kDkdvKeys keys, tiles of queries pass by.
template <int DIM>
struct BwdDkdvTraits {
  static constexpr int kKeys = kDkdvKeys;
  static constexpr int kQueries = 64;
  static constexpr int kWarpsPerKeys = DIM == 64 ? 1 : 2;  // warps that share kWarpRows keys
  static constexpr int kThreads = kKeys * kWarpsPerKeys;
  static constexpr int kBlocksPerSm = 2 / kWarpsPerKeys;
  static constexpr int kChunks = DIM / kChunk / kWarpsPerKeys;  // of dK and dV that a warp has
  static constexpr uint32_t kKeyBytes = kKeys * kRowBytes<DIM>;
  static constexpr uint32_t kQueryBytes = kQueries * kRowBytes<DIM>;
  // Shared memory: K, V, two stages of (Q, dO, lse, delta), and what pairs of warps exchange.
  static constexpr uint32_t kStatistics = 2 * kQueryBytes;
  static constexpr uint32_t kStageBytes = kStatistics + 2 * kQueries * sizeof(float);
  static constexpr uint32_t kExchange = 2 * kKeyBytes + 2 * kStageBytes;
  static constexpr uint32_t kSharedBytes = kExchange + (kWarpsPerKeys == 1 ? 0 : kThreads * 128);
  static_assert(kStageBytes % 256 == 0);
};

// The bias's gradient: a block has a reference.
struct BwdDbiasTraits {
  static constexpr int kThreads = 128;
  static constexpr uint32_t kSharedBytes = 0;  // beside what it declares
};

// Backward through the flow gate: a block has some tiles of rows, one after another.
template <int DIM>
struct FlowGateBwdTraits {
  static constexpr int kMaxBlocks = 256;
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kRows = 128;
  static constexpr int kPitch = kRows + 4;  // of transposed rows: four further on, other banks
  static constexpr int kHidden = DIM / 2;
  // Where things start in shared memory. x^T is stored over O, when that is in registers.
  static constexpr uint32_t kTileBytes = kRows * kRowBytes<DIM>;
  static constexpr uint32_t kX = kHidden * kRowBytes<DIM>;  // after W1
  static constexpr uint32_t kDout = kX + DIM * kPitch * sizeof(float);
  static constexpr uint32_t kDu = kDout + kTileBytes;
  static constexpr uint32_t kVectors = kDu + kHidden * kPitch * sizeof(float);
  static constexpr uint32_t kSums = kVectors + 3 * DIM * sizeof(float);
  static constexpr uint32_t kSharedBytes = kSums + kWarps * (DIM + 1) * sizeof(float);
  static_assert(kTileBytes <= kDout - kX && kX % 256 == 0 && kDout % 256 == 0);
  // The sum of du x^T: a warp has 16 hidden units and a part of the columns.
  static constexpr int kColumnParts = kWarps / (kHidden / 16);
  static constexpr int kChunks = DIM / 8 / kColumnParts;
};

}  // namespace genhoi::cuda::sm80
