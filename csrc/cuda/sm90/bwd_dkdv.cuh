// dK and dV on Hopper's tensor cores (wgmma and TMA, sm_90a). A block has 128 keys, of the video or
// of one reference; all queries pass by, but for a reference only tiles with a row that sees it.
#pragma once

#include "../common/key_block.cuh"
#include "../common/query_tiles.cuh"
#include "bwd_common.cuh"

namespace genhoi::cuda::sm90 {

// Who waits until a place of a ring is filled, waits for the copying thread and for all lanes of
// the warp that brings lse or delta.
constexpr int kDkdvFillers = 1 + 32;

// What a block of threads works at.
template <int DIM, bool REFERENCE>
struct DkdvWork {
  static constexpr int kQueries = kDkdvQueries<DIM, REFERENCE>;
  using Tiles = QueryTiles<REFERENCE, kQueries>;

  const GenhoiBackward& call;
  BwdMemory<DIM, kQueries> memory;
  int number, h, b;  // number: of the block of keys

  // Found anew by whoever asks: kept over the main loop, it would take registers that are not
  // there.
  __device__ __forceinline__ KeyBlock block() const {
    return REFERENCE ? reference_block(call.in, number) : video_block(call.in, number);
  }
  __device__ __forceinline__ Tiles tiles(int segment) const { return Tiles(call, b, segment); }
};

// Loads keys and values, then Q and dO of the tiles. By the first warp; its first lane copies.
template <int DIM, bool REFERENCE>
__device__ __forceinline__ void load_queries(const DkdvWork<DIM, REFERENCE>& work,
                                             const BwdMaps& maps) {
  const GenhoiAttention& in = work.call.in;
  const GenhoiTokens& k = REFERENCE ? in.k_ref : in.k;
  const GenhoiTokens& v = REFERENCE ? in.v_ref : in.v;
  const bool copies = threadIdx.x == 0;
  const KeyBlock block = work.block();
  if (copies) {
    work.memory.load_kept(REFERENCE ? &maps.k_ref : &maps.k, REFERENCE ? &maps.v_ref : &maps.v,
                          block.first, work.h, sample_of(k, work.b), sample_of(v, work.b));
  }
  auto tiles = work.tiles(block.segment);
  tiles.skip_unseen(in);
#pragma unroll 1
  for (uint32_t tile = 0; tiles.has_tile(); tile++) {
    if (copies) {
      const int first = tiles.tile * work.kQueries, b = tiles.sample;
      work.memory.load_passing(kFirstRing, tile, &maps.q, first, work.h, sample_of(in.q, b));
      work.memory.load_passing(kSecondRing, tile, &maps.dout, first, work.h,
                               sample_of(work.call.dout, b));
    }
    __syncwarp();
    tiles.tile++;
    tiles.skip_unseen(in);
  }
}

// Brings a tile's lse to the first ring, or delta to the second: they start anywhere, which TMA
// does not take. Both are 0 where the video has no row, as are Q and dO: nothing reaches the keys.
// A row that does not see the reference, or does not exist, has an lse of inf.
template <int DIM, bool REFERENCE>
__device__ __forceinline__ void load_statistics(
    const DkdvWork<DIM, REFERENCE>& work, int ring, uint32_t tile,
    const typename DkdvWork<DIM, REFERENCE>::Tiles& tiles) {
  const GenhoiAttention& in = work.call.in;
  const auto barriers = work.memory.barriers();
  const uint32_t to = work.memory.statistics(ring, tile);
  const uint32_t filled = barriers.filled(ring, place_of(tile));
  const int64_t head = (static_cast<int64_t>(tiles.sample) * in.heads + work.h) * in.rows;
  const float* from = (ring == kFirstRing ? work.call.lse : work.call.delta) + head;
  barriers.wait_free(ring, tile);
  for (int at = threadIdx.x % 32; at < work.kQueries; at += 32) {
    const int row = tiles.tile * work.kQueries + at;
    if (REFERENCE) {
      const float unseen = ring == kFirstRing ? INFINITY : 0.0f;
      store_smem(to + at * sizeof(float),
                 __float_as_uint(tiles.sees(in, row) ? from[row] : unseen));
    } else {
      cp_async_4(to + at * sizeof(float), from + row, row < in.rows);
    }
  }
  if (REFERENCE) {
    mbarrier_arrive(filled);
  } else {
    mbarrier_arrive_after_copies(filled);
  }
}

// Loads all tiles' lse and delta. By the second warp.
template <int DIM, bool REFERENCE>
__device__ __forceinline__ void load_all_statistics(const DkdvWork<DIM, REFERENCE>& work) {
  auto tiles = work.tiles(work.block().segment);
  tiles.skip_unseen(work.call.in);
#pragma unroll 1
  for (uint32_t tile = 0; tiles.has_tile(); tile++) {
#pragma unroll 1
    for (int ring = 0; ring < 2; ring++) {
      load_statistics(work, ring, tile, tiles);
    }
    tiles.tile++;
    tiles.skip_unseen(work.call.in);
  }
}

// The producer's side, by all of its warps.
template <int DIM, bool REFERENCE>
__device__ __forceinline__ void run_dkdv_producer(const DkdvWork<DIM, REFERENCE>& work,
                                                  const BwdMaps& maps, int warp) {
  if (warp == 0) load_queries(work, maps);
  if (warp == 1) load_all_statistics(work);
}

template <class Element, int DIM, bool REFERENCE>
struct DkdvConsumer : BwdConsumer<Element, DIM, kDkdvQueries<DIM, REFERENCE>> {
  static constexpr int kQueries = kDkdvQueries<DIM, REFERENCE>;
  using Base = BwdConsumer<Element, DIM, kQueries>;
  using Base::Base, Base::barriers, Base::group, Base::memory;
  using typename Base::Gradient, typename Base::Operand, typename Base::Scores;

  // Calls function(n, x) for each 8 of a tile's queries, whose columns of lse or delta x are this
  // thread's.
  template <class Function>
  __device__ __forceinline__ void for_statistics(int ring, uint32_t tile, Function function) const {
    const uint32_t from = memory.statistics(ring, tile) + threadIdx.x % 4 * 8;
#pragma unroll
    for (int n = 0; n < kQueries / 8; n++) {
      float x[2];
      load_smem(x, from + n * 32);
      function(n, x);
    }
  }

  // P^T, rounded, then dS^T in the place of S^T, which is computed, while dP^T is under way.
  // Between them issues dv += P^T dO, which is under way at the end. sum_ds: of a thread's two
  // keys, for the bias.
  __device__ __forceinline__ void compute_p_and_ds(Operand& p, Scores& s, Scores& dp, Gradient& dv,
                                                   float (&sum_ds)[2], float scale_log2, float bias,
                                                   uint32_t tile) const {
    for_statistics(kFirstRing, tile, [&](int n, const float (&lse)[2]) {
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const float x = lse[c % 2];
        const float offset = REFERENCE ? fmaf(x, -kLog2e, bias) : -kLog2e * x;
        s[4 * n + c] = exp2_fast(fmaf(s[4 * n + c], scale_log2, offset));
      }
    });
    pack<Element>(p, s);
    wgmma_fence(dv);
    this->template issue_gradient<false>(dv, p, kSecondRing, tile);
    wgmma_commit();
    wgmma_wait<1>(dp);
    for_statistics(kSecondRing, tile, [&](int n, const float (&delta)[2]) {
#pragma unroll
      for (int c = 0; c < 4; c++) {
        s[4 * n + c] *= dp[4 * n + c] - delta[c % 2];
        if (REFERENCE) sum_ds[c / 2] += s[4 * n + c];
      }
    });
  }

  // Awaits what compute_p_and_ds has issued: before the next tile's S and dP need registers, and
  // P's are free then.
  __device__ __forceinline__ void finish_dv(Gradient& dv, const Operand& p, uint32_t tile) const {
    wgmma_wait<0>(dv);
    keep(p);
    barriers.release(kSecondRing, tile);
  }

  // Q and dO of rows that do not see the reference become zeros, by both consumers: whatever they
  // hold, it must not reach the keys.
  __device__ __forceinline__ void clear_unseen(uint32_t tile) const {
    using Tile = SwizzledTile<DIM>;
    barriers.wait(kSecondRing, tile);
    const auto* lse = reinterpret_cast<const float*>(
        __cvta_shared_to_generic(memory.statistics(kFirstRing, tile)));
    const int lane = threadIdx.x % 32;
    if (!__any_sync(~0u, lse[lane] == INFINITY || lse[32 + lane] == INFINITY)) return;
    constexpr int kRowChunks = Tile::kRowBytes / 16;
    for (int at = this->thread(); at < kQueries * kRowChunks; at += 2 * kGroupThreads) {
      if (lse[at / kRowChunks] != INFINITY) continue;
#pragma unroll
      for (int slab = 0; slab < 2 * Tile::kSlabs; slab++) {
        const uint32_t to = memory.passing(slab / Tile::kSlabs, tile);
        store_zeros(to + slab % Tile::kSlabs * Base::Traits::kPassingSlab + at * 16);
      }
    }
    async_proxy_fence();
    this->await_both();
  }
};

// Stores the block's part of the bias's gradient: the sum of dS over its keys, in a fixed order.
// keys: this consumer's. sums: of each warp, in shared memory.
template <class Consumer>
__device__ __forceinline__ void store_bias_part(float* to, const Consumer& consumer,
                                                const float (&sum_ds)[2], int keys, float* sums) {
  float sum = 0.0f;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (row_in_group(r) < keys) sum += sum_ds[r];
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) sums[consumer.thread() / 32] = sum;
  consumer.await_both();
  if (consumer.thread() != 0) return;
  for (int warp = 1; warp < 2 * kGroupThreads / 32; warp++) sum += sums[warp];
  *to = sum;
}

// Stores the gradients of a consumer's 64 keys, some of which may not exist. Returns how many do,
// or less than 1.
template <class Consumer, int DIM, bool REFERENCE>
__device__ __forceinline__ int store_dkdv(const DkdvWork<DIM, REFERENCE>& work,
                                          const Consumer& consumer,
                                          const typename Consumer::Gradient& dk,
                                          const typename Consumer::Gradient& dv) {
  const GenhoiBackward& call = work.call;
  const GenhoiAttention& in = call.in;
  const KeyBlock block = work.block();
  const int tokens = REFERENCE ? in.ref_tokens : in.keys;
  const int skipped = consumer.group * kGroupRows, keys = block.count - skipped;
  const int64_t first = static_cast<int64_t>(block.first + skipped) * in.heads * in.head_dim;
  const auto start = [&](void* data) {
    return gradient_of_head<typename Consumer::Value>(data, in, work.b, work.h, tokens) + first;
  };
  consumer.store_gradient(start(REFERENCE ? call.dk_ref : call.dk), kFirstRing, dk, in.scale, in,
                          keys);
  consumer.store_gradient(start(REFERENCE ? call.dv_ref : call.dv), kSecondRing, dv, 1.0f, in,
                          keys);
  return keys;
}

// The consumer's side: computes and stores the gradients of its keys.
template <class Element, int DIM, bool REFERENCE>
__device__ __forceinline__ void run_dkdv_consumer(const DkdvWork<DIM, REFERENCE>& work, int group,
                                                  float scale_log2, unsigned char* bytes) {
  using Consumer = DkdvConsumer<Element, DIM, REFERENCE>;
  using Scores = typename Consumer::Scores;
  const GenhoiBackward& call = work.call;
  const GenhoiAttention& in = call.in;
  const Consumer consumer(work.memory, group);
  const int segment = work.block().segment;
  const auto tiles = work.tiles(segment);
  const float bias = REFERENCE ? bias_to_log2(in, segment) : 0.0f;
  float dk[DIM / 2] = {}, dv[DIM / 2] = {}, sum_ds[2] = {};
  mbarrier_wait(consumer.barriers.loaded(), 0);
  consumer.run_mainloop(
      dk, tiles.count(in),
      [&](uint32_t tile) {
        if (REFERENCE) consumer.clear_unseen(tile);
      },
      [](Scores&) {},
      [&](typename Consumer::Operand& ds, Scores& s, Scores& dp, uint32_t tile) {
        typename Consumer::Operand p;
        consumer.compute_p_and_ds(p, s, dp, dv, sum_ds, scale_log2, bias, tile);
        consumer.finish_dv(dv, p, tile);
        pack<Element>(ds, s);
      });
  const int keys = store_dkdv(work, consumer, dk, dv);
  if (REFERENCE && call.dref_bias != nullptr) {
    const int64_t head = static_cast<int64_t>(work.b) * in.heads + work.h;
    float* sums = reinterpret_cast<float*>(bytes + Consumer::Traits::kBiasSums);
    store_bias_part(call.bias_parts + head * gridDim.x + work.number, consumer, sum_ds, keys, sums);
  }
}

// Computes dK and dV. Grid: blocks of keys, heads, samples; of the video's keys or the references',
// which several samples may share. scale_log2: the scale times log2 e, for exp2.
template <class Element, int DIM, bool REFERENCE>
__global__ void __launch_bounds__(BwdDkdvTraits<DIM, REFERENCE>::kThreads, 1)
    bwd_dkdv(const __grid_constant__ BwdMaps maps, const __grid_constant__ GenhoiBackward call,
             float scale_log2) {
  using Traits = BwdDkdvTraits<DIM, REFERENCE>;
  extern __shared__ __align__(1024) unsigned char bytes[];
  const DkdvWork<DIM, REFERENCE> work{call,
                                      {smem_address(bytes)},
                                      static_cast<int>(blockIdx.x),
                                      static_cast<int>(blockIdx.y),
                                      static_cast<int>(blockIdx.z)};
  if (work.block().count == 0) return;
  work.memory.barriers().init(Traits::kConsumers, kDkdvFillers);
  // By a shuffle, so that the compiler knows it to be the same in a warp.
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), group = warp / 4;
  if (group == 0) {
    shrink_registers<Traits::kProducerRegisters>();
    run_dkdv_producer(work, maps, warp);
  } else {
    grow_registers<Traits::kConsumerRegisters>();
    run_dkdv_consumer<Element>(work, group - 1, scale_log2, bytes);
  }
}

}  // namespace genhoi::cuda::sm90
