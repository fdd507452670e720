// What the backward kernels have in common: docs/op.md, "Backward".
//
//     P = exp(S - L);  dP = dO V^T;  dS = P (dP - delta);  dV = P^T dO
//     dQ = scale dS K;  dK = scale dS^T Q
//
// A block keeps rows of two tensors, 64 for each consumer, and tiles of two others pass by: queries
// (Q, dO) are kept and keys (K, V) pass by, or the other way round. S and dP are [rows kept, rows
// that pass by], transposed for dK and dV, so that P and dS are left operands in registers. Nothing
// is added up in memory: each result belongs to one block, and S and dP are computed twice.
//
// In its turn a consumer issues the products that take dS of the last tile, and those that make S
// and dP of the next. While it computes with them, the other one's products are under way.
#pragma once

#include "../common/ptx.cuh"
#include "../common/store.cuh"
#include "fragments.cuh"
#include "pipeline.cuh"
#include "products.cuh"
#include "references.cuh"

namespace genhoi::cuda::sm90 {

// Boxes: a tile of queries of q and dout, of keys of the others.
struct BwdMaps {
  CUtensorMap q, dout, k, v, k_ref, v_ref;
};

// Named barriers; barrier 0 is that of __syncthreads. Of each consumer its turn, and of both.
__device__ __forceinline__ int bwd_turn_barrier(int consumer) { return 1 + consumer; }
constexpr int kBwdConsumersBarrier = 3;

// Where the tiles of a block are in shared memory. Of what is kept and of what passes by, the first
// ring's tensor is a factor of S, the second ring's one of dP.
template <int DIM, int PASSING>
struct BwdMemory {
  using Traits = BwdTraits<DIM, PASSING>;
  uint32_t start;

  __device__ __forceinline__ Barriers barriers() const { return {start + Traits::kBarriers}; }
  __device__ __forceinline__ uint32_t kept(int ring) const {
    return start + ring * Traits::kKeptBytes;
  }
  __device__ __forceinline__ uint32_t passing(int ring, uint32_t tile) const {
    return start + Traits::kRings + (ring * kStages + place_of(tile)) * Traits::kPassingBytes;
  }
  // lse (the first ring's) or delta of queries that pass by.
  __device__ __forceinline__ uint32_t statistics(int ring, uint32_t tile) const {
    return start + Traits::kStatistics +
           (ring * kStages + place_of(tile)) * PASSING * static_cast<uint32_t>(sizeof(float));
  }

  // The producer's side, by one thread. Loads what is kept.
  __device__ __forceinline__ void load_kept(const CUtensorMap* first, const CUtensorMap* second,
                                            int token, int head, int first_sample,
                                            int second_sample) const {
    const uint32_t loaded = barriers().loaded();
    mbarrier_arrive_expect(loaded, 2 * Traits::kKeptBytes);
    load_tile<DIM>(kept(kFirstRing), Traits::kKeptSlab, first, loaded, token, head, first_sample);
    load_tile<DIM>(kept(kSecondRing), Traits::kKeptSlab, second, loaded, token, head,
                   second_sample);
  }
  // Loads a tile, when its place is free.
  __device__ __forceinline__ void load_passing(int ring, uint32_t tile, const CUtensorMap* map,
                                               int token, int head, int sample) const {
    const uint32_t filled = barriers().filled(ring, place_of(tile));
    barriers().wait_free(ring, tile);
    mbarrier_arrive_expect(filled, Traits::kPassingBytes);
    load_tile<DIM>(passing(ring, tile), Traits::kPassingSlab, map, filled, token, head, sample);
  }
};

// One of the two consumers.
template <class Element, int DIM, int PASSING>
struct BwdConsumer {
  using Traits = BwdTraits<DIM, PASSING>;
  using Value = typename Element::Value;
  using Scores = float[PASSING / 2];      // S or dP
  using Operand = uint32_t[PASSING / 4];  // P or dS, rounded
  using Gradient = float[DIM / 2];

  BwdMemory<DIM, PASSING> memory;
  int group;  // the same in all lanes, as the compiler knows
  Barriers barriers;

  __device__ __forceinline__ BwdConsumer(BwdMemory<DIM, PASSING> memory, int group)
      : memory(memory), group(group), barriers(memory.barriers()) {}

  // The rows that this consumer keeps.
  __device__ __forceinline__ uint32_t kept(int ring) const {
    return memory.kept(ring) + group * kGroupRows * kSlabRowBytes<DIM>;
  }
  // Of the threads of both consumers.
  __device__ __forceinline__ int thread() const {
    return group * kGroupThreads + threadIdx.x % kGroupThreads;
  }
  __device__ __forceinline__ void await_both() const {
    named_barrier_sync(kBwdConsumersBarrier, 2 * kGroupThreads);
  }
  // Turns pass to and fro. The last consumer passes the first turn, and the first one takes a turn
  // at the end, so that every turn that is passed is taken.
  __device__ __forceinline__ void await_turn() const {
    named_barrier_sync(bwd_turn_barrier(group), 2 * kGroupThreads);
  }
  __device__ __forceinline__ void pass_turn() const {
    named_barrier_arrive(bwd_turn_barrier(1 - group), 2 * kGroupThreads);
  }

  // Issues scores = the rows kept times a tile's, transposed: S (the first ring) or dP.
  __device__ __forceinline__ void issue_product(Scores& scores, int ring, uint32_t tile) const {
    issue_scores<Element, DIM, PASSING>(scores, kept(ring), Traits::kKeptSlab,
                                        memory.passing(ring, tile), Traits::kPassingSlab);
  }
  // Issues gradient += operand times a tile, or with ZERO gradient = that; to be committed.
  template <bool ZERO>
  __device__ __forceinline__ void issue_gradient(Gradient& gradient, const Operand& operand,
                                                 int ring, uint32_t tile) const {
    issue_sums<ZERO, Element, DIM, PASSING>(gradient, operand, memory.passing(ring, tile),
                                            Traits::kPassingSlab);
  }

  // gradient += dS times the last tile.
  __device__ __forceinline__ void finish_gradient(Gradient& gradient, const Operand& ds,
                                                  uint32_t tile) const {
    wgmma_fence(gradient);
    issue_gradient<false>(gradient, ds, kFirstRing, tile);
    wgmma_commit();
    wgmma_wait<0>(gradient);
    keep(ds);
    barriers.release(kFirstRing, tile);
  }

  // Lets tiles 0 to `tiles` pass by: gradient += dS times each of the first ring. For each calls
  // prepare(tile), when the first ring's is there; and compute_ds(ds, s, dp, tile), when S is
  // computed and dP under way, with nothing issued behind it. compute_ds awaits dP, leaves nothing
  // under way, and releases the tile of the second ring. mask_first(s) is for S of tile 0.
  template <class Prepare, class MaskFirst, class ComputeDs>
  __device__ __forceinline__ void run_mainloop(Gradient& gradient, uint32_t tiles, Prepare prepare,
                                               MaskFirst mask_first, ComputeDs compute_ds) const {
    if (tiles == 0) return;
    Scores s, dp;
    Operand ds;
    barriers.wait(kFirstRing, 0);
    prepare(0);
    wgmma_fence(gradient);
    issue_product(s, kFirstRing, 0);
    barriers.wait(kSecondRing, 0);
    issue_product(dp, kSecondRing, 0);
    wgmma_wait<1>(s);
    mask_first(s);
    compute_ds(ds, s, dp, 0);
    if (group == 1) pass_turn();
#pragma unroll 1
    for (uint32_t tile = 1; tile < tiles; tile++) {
      barriers.wait(kFirstRing, tile);
      prepare(tile);
      await_turn();
      wgmma_fence(gradient);
      issue_gradient<false>(gradient, ds, kFirstRing, tile - 1);
      issue_product(s, kFirstRing, tile);
      barriers.wait(kSecondRing, tile);
      issue_product(dp, kSecondRing, tile);
      pass_turn();
      wgmma_wait<1>(s);
      keep(ds);
      barriers.release(kFirstRing, tile - 1);
      compute_ds(ds, s, dp, tile);
    }
    if (group == 0) await_turn();
    finish_gradient(gradient, ds, tiles - 1);
  }

  // Stores a gradient times `scale`, by way of this consumer's rows of `ring`, which are not read
  // any more. to: the first of its rows in a contiguous gradient, of which `count` exist.
  __device__ __forceinline__ void store_gradient(Value* to, int ring, const Gradient& gradient,
                                                 float scale, const GenhoiAttention& in,
                                                 int count) const {
    using Tile = SwizzledTile<DIM>;
    constexpr int kRowChunks = DIM / kChunk, kSlabChunks = Tile::kColumns / kChunk;
    store_rows<Element, DIM>(kept(ring), Traits::kKeptSlab, gradient, scale);
    __syncwarp();
    const int first = threadIdx.x % kGroupThreads / 32 * 16;  // of the warp
    for (int at = threadIdx.x % 32; at < 16 * kRowChunks; at += 32) {
      const int row = first + at / kRowChunks, chunk = at % kRowChunks;
      if (row >= count || chunk * kChunk >= in.head_dim) continue;
      float pairs[4];
      load_smem(pairs, kept(ring) + chunk / kSlabChunks * Traits::kKeptSlab +
                           Tile::chunk(row, chunk % kSlabChunks));
      const int64_t token = static_cast<int64_t>(row) * in.heads * in.head_dim;
      *reinterpret_cast<float4*>(to + token + chunk * kChunk) = {pairs[0], pairs[1], pairs[2],
                                                                 pairs[3]};
    }
  }
};

}  // namespace genhoi::cuda::sm90
