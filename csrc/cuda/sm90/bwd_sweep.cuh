// dQ, dK and dV of the video's keys in one sweep, with five products: a block has 128 keys, as in
// bwd_dkdv.cuh, and also computes what its keys give to the dQ of each tile of queries, which it
// adds to a sum in memory, in turn with the other blocks (ordered_sum.cuh). bwd_dq.cuh finishes dQ.
//
//     dQ = scale dS K
//
// dS^T of both consumers goes to shared memory, where it is the left operand of dQ, transposed.
// Each consumer has half of dQ's columns.
#pragma once

#include "bwd_dkdv.cuh"
#include "dq_sums.cuh"
#include "ordered_sum.cuh"

namespace genhoi::cuda::sm90 {

// What a block of threads works at.
struct SweepWork : DkdvWork<BwdSweepTraits::kDim, false> {
  using Traits = BwdSweepTraits;

  __device__ __forceinline__ int tile_count() const { return tiles(0).count(call.in); }
  __device__ __forceinline__ uint32_t ds(uint32_t tile) const {
    return memory.start + Traits::kDs + tile % 2 * Traits::kDsBytes;
  }
  // Where a consumer leaves its half of a tile's dQ; and the barriers of that place.
  __device__ __forceinline__ uint32_t dq(int consumer) const {
    return memory.start + Traits::kDq + consumer * Traits::kDqBytes;
  }
  __device__ __forceinline__ uint32_t dq_filled(int consumer) const {
    return memory.start + Traits::kDqBarriers + consumer * 16;
  }
  __device__ __forceinline__ uint32_t dq_free(int consumer) const {
    return dq_filled(consumer) + 8;
  }
};

__device__ __forceinline__ volatile int32_t* ticket_of(unsigned char* bytes) {
  return reinterpret_cast<int32_t*>(bytes + BwdSweepTraits::kTicket);
}
// What belongs to the block's ticket, in the order of the grid. bytes: the block's shared memory.
__device__ __forceinline__ SweepWork find_work(const GenhoiBackward& call, unsigned char* bytes) {
  // By a shuffle, so that the compiler knows it to be the same in a warp.
  const int ticket = __shfl_sync(~0u, *ticket_of(bytes), 0);
  const int number = ticket % gridDim.x, head = ticket / gridDim.x;
  const int h = head % gridDim.y, b = head / gridDim.y;
  return {{call, {smem_address(bytes)}, number, h, b}};
}

// Adds a consumer's half of the tiles' dQ to the sums in memory, or stores it there for the first
// block of keys. By one thread.
__device__ __forceinline__ void add_dq(const SweepWork& work, int consumer) {
  const DqSums sums(work.call, work.b, work.h);
  const int tiles = work.tile_count();
#pragma unroll 1
  for (int tile = 0; tile < tiles; tile++) {
    float* to = sums.half_tile(tile, consumer);
    int32_t* counter = sums.counter(tile, consumer);
    await_turn_at(counter, work.number);
    mbarrier_wait(work.dq_filled(consumer), tile & 1);
    if (work.number == 0) {
      bulk_store(to, work.dq(consumer), BwdSweepTraits::kDqBytes);
    } else {
      bulk_add(to, work.dq(consumer), BwdSweepTraits::kDqBytes);
    }
    tma_store_commit();
    tma_store_wait_read();
    mbarrier_arrive(work.dq_free(consumer));
    tma_store_wait();
    pass_turn_at(counter, work.number);
  }
}

template <class Element>
struct SweepConsumer : DkdvConsumer<Element, BwdSweepTraits::kDim, false> {
  static constexpr int kDim = BwdSweepTraits::kDim, kQueries = BwdSweepTraits::kQueries;
  using Base = DkdvConsumer<Element, kDim, false>;
  using Base::barriers, Base::group, Base::memory;
  using typename Base::Gradient, typename Base::Operand, typename Base::Scores;
  using DqHalf = float[kDim / 4];  // of a tile: all queries, half of the columns

  const SweepWork& work;
  uint32_t existing[2];  // of a thread's keys: all bits, or none

  __device__ __forceinline__ SweepConsumer(const SweepWork& work, int group)
      : Base(work.memory, group), work(work) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      existing[r] = group * kGroupRows + row_in_group(r) < work.block().count ? ~0u : 0u;
    }
  }

  // Leaves dS^T in shared memory. The P of keys that don't exist may be inf, and would reach dQ.
  __device__ __forceinline__ void store_ds(Operand& ds, uint32_t tile) const {
    const int lane = threadIdx.x % 32;
    const uint32_t row = group * kGroupRows + threadIdx.x % kGroupThreads / 32 * 16 + lane % 16;
#pragma unroll
    for (int i = 0; i < kQueries / 4; i++) ds[i] &= existing[i % 2];
#pragma unroll
    for (int n = 0; n < kQueries / 16; n++) {
      const uint32_t to = work.ds(tile) + SwizzledTile<kQueries>::chunk(row, n * 2 + lane / 16);
      stmatrix_x4(to, ds[4 * n], ds[4 * n + 1], ds[4 * n + 2], ds[4 * n + 3]);
    }
    async_proxy_fence();
  }

  // P^T, dS^T and dv += P^T dO, where S^T is computed and dP^T under way; nothing is under way
  // after. dS is in shared memory then, that of the other consumer too. Its place was read two
  // tiles ago, before the last barrier of both.
  __device__ __forceinline__ void compute_ds(Operand& ds, Scores& s, Scores& dp, Gradient& dv,
                                             float scale_log2, uint32_t tile) const {
    Operand p;
    float sum_ds[2];  // for a reference's bias alone
    this->compute_p_and_ds(p, s, dp, dv, sum_ds, scale_log2, 0.0f, tile);
    pack<Element>(ds, s);
    store_ds(ds, tile);
    this->finish_dv(dv, p, tile);
    this->await_both();
  }

  // Issues dk += dS^T Q, and dq = dS K of this consumer's columns.
  __device__ __forceinline__ void issue_dk_and_dq(Gradient& dk, DqHalf& dq, const Operand& ds,
                                                  uint32_t tile) const {
    wgmma_fence(dk);
    this->template issue_gradient<false>(dk, ds, kFirstRing, tile);
    const MatrixDescriptor<kQueries> a(work.ds(tile));
    const MatrixDescriptor<kDim> keys(memory.kept(kFirstRing) + group * Base::Traits::kKeptSlab);
    static_assert(SwizzledTile<kDim>::kSlabs == 2);  // one for each consumer
#pragma unroll
    for (int step = 0; step < Base::Traits::kKept / 16; step++) {
      const uint64_t left = a.at(step * 16 * kSlabRowBytes<kQueries>);
      const uint64_t right = keys.at(step * 16 * kSlabRowBytes<kDim>);
      if (step == 0) {
        Wgmma<Element, kDim / 2>::template ss<true, true, true>(dq, left, right);
      } else {
        Wgmma<Element, kDim / 2>::template ss<false, true, true>(dq, left, right);
      }
    }
    wgmma_commit();
  }

  // Leaves dQ for add_dq, as registers hold it: no two lanes are in each other's way.
  __device__ __forceinline__ void hand_over_dq(const DqHalf& dq, uint32_t tile) const {
    mbarrier_wait(work.dq_free(group), (tile & 1) ^ 1);
    const uint32_t to = work.dq(group) + threadIdx.x % kGroupThreads * 16;
#pragma unroll
    for (int i = 0; i < kDim / 16; i++) store_smem(to + i * kGroupThreads * 16, dq + 4 * i);
    async_proxy_fence();
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(work.dq_filled(group));
  }

  // All tiles of queries; as run_mainloop of bwd_common.cuh, without turns: the consumers wait for
  // each other's dS anyway. dP and dQ have the same registers: dP of a tile is issued when dQ of
  // the last one has left. When the loop turns, no product is under way: ptxas would serialise
  // them.
  __device__ __forceinline__ void sweep(Gradient& dk, Gradient& dv, float scale_log2) const {
    const uint32_t tiles = work.tile_count();
    Scores s, dp;
    Operand ds;
    barriers.wait(kFirstRing, 0);
    wgmma_fence(dk);
    this->issue_product(s, kFirstRing, 0);
    barriers.wait(kSecondRing, 0);
    this->issue_product(dp, kSecondRing, 0);
    wgmma_wait<1>(s);
    compute_ds(ds, s, dp, dv, scale_log2, 0);
#pragma unroll 1
    for (uint32_t tile = 1; tile < tiles; tile++) {
      DqHalf dq;
      barriers.wait(kFirstRing, tile);
      issue_dk_and_dq(dk, dq, ds, tile - 1);
      this->issue_product(s, kFirstRing, tile);
      wgmma_wait<1>(dq);
      keep(ds);
      barriers.release(kFirstRing, tile - 1);
      hand_over_dq(dq, tile - 1);
      barriers.wait(kSecondRing, tile);
      this->issue_product(dp, kSecondRing, tile);
      wgmma_wait<1>(s);
      compute_ds(ds, s, dp, dv, scale_log2, tile);
    }
    DqHalf dq;
    issue_dk_and_dq(dk, dq, ds, tiles - 1);
    wgmma_wait<0>(dq);
    wgmma_wait<0>(dk);
    keep(ds);
    hand_over_dq(dq, tiles - 1);
    this->await_both();  // all of dQ has read the keys, whose place is stored over
  }
};

// Grid: blocks of keys, heads, samples, but a block of threads takes its place from its ticket.
// scale_log2: the scale times log2 e, for exp2.
template <class Element>
__global__ void __launch_bounds__(BwdSweepTraits::kThreads, 1)
    bwd_sweep(const __grid_constant__ BwdMaps maps, const __grid_constant__ GenhoiBackward call,
              float scale_log2) {
  using Traits = BwdSweepTraits;
  extern __shared__ __align__(1024) unsigned char bytes[];
  if (threadIdx.x == 0) *ticket_of(bytes) = take_ticket(call.dq_counters);
  __syncthreads();
  const SweepWork work = find_work(call, bytes);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int consumer = 0; consumer < Traits::kConsumers; consumer++) {
      mbarrier_init(work.dq_filled(consumer), 4);
      mbarrier_init(work.dq_free(consumer), 1);
    }
  }
  work.memory.barriers().init(Traits::kConsumers, kDkdvFillers);
  // By a shuffle, so that the compiler knows it to be the same in a warp.
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), group = warp / 4;
  if (group == 0) {
    shrink_registers<Traits::kProducerRegisters>();
    run_dkdv_producer<Traits::kDim, false>(work, maps, warp);
    if (warp >= 2 && threadIdx.x % 32 == 0) add_dq(work, warp - 2);
  } else {
    grow_registers<Traits::kConsumerRegisters>();
    const SweepConsumer<Element> consumer(work, group - 1);
    float dk[Traits::kDim / 2] = {}, dv[Traits::kDim / 2] = {};
    mbarrier_wait(consumer.barriers.loaded(), 0);
    consumer.sweep(dk, dv, scale_log2);
    // Anew: what it says would be kept in registers that are not there.
    const DkdvWork<Traits::kDim, false> found = find_work(call, bytes);
    store_dkdv(found, consumer, dk, dv);
  }
}

}  // namespace genhoi::cuda::sm90
