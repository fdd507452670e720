// Tile sizes, threads, registers and shared memory of the sm_90a kernels, each stated once: plain
// constants, which host code reads as well.
#pragma once

#include <cstdint>

#include "../common/layout.h"

namespace genhoi::cuda::sm90 {

constexpr int kGroupThreads = 128;  // of a warpgroup, four warps
constexpr int kGroupRows = 64;      // of a product, in a warpgroup's accumulators
constexpr int kStages = 2;          // places of a ring

// Columns of a slab (swizzled_tile.cuh), and the bytes of its rows: as long as TMA and wgmma
// swizzle.
template <int DIM>
constexpr int kSlabColumns = DIM % 64 == 0 ? 64 : 32;
template <int DIM>
constexpr uint32_t kSlabRowBytes = kSlabColumns<DIM> * 2;

constexpr uint32_t kMaxSharedBytes = 232448;  // of a block

// Threads and registers of a block: a producer warpgroup, which only copies, and `CONSUMERS`
// others, which multiply. All 65,536 registers of a multiprocessor, few of them for the producer.
template <int CONSUMERS>
struct WarpgroupTraits {
  static_assert(CONSUMERS == 2 || CONSUMERS == 3);
  static constexpr int kConsumers = CONSUMERS;
  static constexpr int kThreads = (CONSUMERS + 1) * kGroupThreads;
  static constexpr int kProducerRegisters = CONSUMERS == 2 ? 24 : 32;
  static constexpr int kConsumerRegisters = CONSUMERS == 2 ? 240 : 160;
};

// Two rings of kStages places, of which each place has two barriers; and one barrier more, of what
// is loaded once.
constexpr uint32_t kBarrierBytes = (1 + 2 * kStages * 2) * 8;

// Forward: a block has a tile of queries, tiles of keys pass by. With D = 64, where exp2 takes as
// long as the products, three consumers; measured on an H200 against two (docs/gpu.md).
template <int DIM>
struct FwdTraits : WarpgroupTraits<DIM == 64 ? 3 : 2> {
  static constexpr int kQueries = FwdTraits::kConsumers * kGroupRows;
  static constexpr int kKeys = DIM == 64 ? 128 : DIM == 96 ? 192 : 176;
  static constexpr bool kLazyRescale = DIM == 128;
  static constexpr uint32_t kQueryBytes = kQueries * DIM * 2, kKeyBytes = kKeys * DIM * 2;
  static constexpr uint32_t kQuerySlab = kQueries * kSlabRowBytes<DIM>;
  static constexpr uint32_t kKeySlab = kKeys * kSlabRowBytes<DIM>;
  // The flow gate's W1, in a place of the keys' ring.
  static constexpr int kHidden = DIM / 2;
  static constexpr uint32_t kGateBytes = kHidden * DIM * 2;
  static constexpr uint32_t kGateSlab = kHidden * kSlabRowBytes<DIM>;
  // Where things start in shared memory: queries, the rings of keys and values, barriers, and what
  // the warps' sums of gate logits take.
  static constexpr uint32_t kKeyRing = kQueryBytes;
  static constexpr uint32_t kValueRing = kKeyRing + kStages * kKeyBytes;
  static constexpr uint32_t kBarriers = kValueRing + kStages * kKeyBytes;
  static constexpr uint32_t kGateSums = kBarriers + kBarrierBytes;
  static constexpr uint32_t kSharedBytes = kGateSums + FwdTraits::kConsumers * 4 * sizeof(float);
  static_assert(kKeys % 16 == 0 && kKeySlab % 1024 == 0 && kGateSlab % 512 == 0);
  static_assert(kGateBytes <= kKeyBytes && kSharedBytes <= kMaxSharedBytes);
};

// Backward: a block keeps rows of two tensors, tiles of PASSING rows of two others pass by.
template <int DIM, int PASSING>
struct BwdTraits : WarpgroupTraits<2> {
  static constexpr int kKept = kConsumers * kGroupRows;
  static constexpr uint32_t kKeptBytes = kKept * DIM * 2, kPassingBytes = PASSING * DIM * 2;
  static constexpr uint32_t kKeptSlab = kKept * kSlabRowBytes<DIM>;
  static constexpr uint32_t kPassingSlab = PASSING * kSlabRowBytes<DIM>;
  // Where things start in shared memory: what is kept, the two rings, lse and delta of the rows in
  // them where these are queries, barriers, and what the warps' sums of dS take.
  static constexpr uint32_t kRings = 2 * kKeptBytes;
  static constexpr uint32_t kStatistics = kRings + 2 * kStages * kPassingBytes;
  static constexpr uint32_t kBarriers = kStatistics + 2 * kStages * PASSING * sizeof(float);
  static constexpr uint32_t kBiasSums = kBarriers + kBarrierBytes;
  static constexpr uint32_t kSharedBytes = kBiasSums + kConsumers * 4 * sizeof(float);
  static_assert(PASSING % 16 == 0 && kPassingSlab % 1024 == 0 && kSharedBytes <= kMaxSharedBytes);
};

// dQ: a block has a tile of queries, tiles of keys pass by.
template <int DIM>
constexpr int kDqKeys = DIM == 64 ? 128 : 112;
template <int DIM>
struct BwdDqTraits : BwdTraits<DIM, kDqKeys<DIM>> {
  static constexpr int kQueries = BwdDqTraits::kKept, kKeys = kDqKeys<DIM>;
};

// dK and dV: a block has kDkdvKeys keys, tiles of queries pass by. Those that pass by a reference
// are the 64 rows that share an entry of tile_bits.
template <int DIM, bool REFERENCE>
constexpr int kDkdvQueries = REFERENCE || DIM == 128 ? 64
                             : DIM == 96             ? 80
                                                     : 96;
template <int DIM, bool REFERENCE>
struct BwdDkdvTraits : BwdTraits<DIM, kDkdvQueries<DIM, REFERENCE>> {
  static constexpr int kQueries = kDkdvQueries<DIM, REFERENCE>, kKeys = kDkdvKeys;
  static_assert(BwdDkdvTraits::kKept == kKeys);
};

// The sweep: dK and dV as above, and dQ in memory, to which blocks add in turn. Head dim 128.
struct BwdSweepTraits : BwdTraits<128, 64> {
  static constexpr int kDim = 128, kQueries = 64, kKeys = kDkdvKeys;
  // Behind what all backward kernels have: two places of dS, one of dQ for each consumer, which has
  // half of its columns; the barriers "filled" and "free" of the latter; and the block's ticket.
  static constexpr uint32_t kDsBytes = kKept * kQueries * 2;
  static constexpr uint32_t kDqBytes = kQueries * kDim / 2 * sizeof(float);
  static constexpr uint32_t kDs = (kBiasSums + 1023) / 1024 * 1024;
  static constexpr uint32_t kDq = kDs + 2 * kDsBytes;
  static constexpr uint32_t kDqBarriers = kDq + kConsumers * kDqBytes;
  static constexpr uint32_t kTicket = kDqBarriers + kConsumers * 2 * 8;
  static constexpr uint32_t kSharedBytes = kTicket + sizeof(int32_t);
  static_assert(kKept == kKeys && kSharedBytes <= kMaxSharedBytes);
};

}  // namespace genhoi::cuda::sm90
