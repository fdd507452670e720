// dQ on Hopper's tensor cores (wgmma and TMA, sm_90a). A block has a tile of queries, all keys pass
// by: those of the video, then those of the references which a row of the tile sees.
#pragma once

#include "bwd_common.cuh"
#include "dq_sums.cuh"

namespace genhoi::cuda::sm90 {

// Of a thread's two rows; lse negated and in units of log2 e.
struct DqRows {
  float minus_lse[2], delta[2];

  // first: the warpgroup's first row.
  __device__ __forceinline__ DqRows(const GenhoiBackward& call, int64_t head, int first) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = first + row_in_group(r);
      const bool in_bounds = row < call.in.rows;
      minus_lse[r] = in_bounds ? call.lse[head * call.in.rows + row] * -kLog2e : 0.0f;
      delta[r] = in_bounds ? call.delta[head * call.in.rows + row] : 0.0f;
    }
  }
};

// Calls function(segment, first, count) for all blocks of keys, as for_reference_blocks does, but
// those behind a bias of -inf: P = 0.
template <int DIM, class Function>
__device__ __forceinline__ void for_dq_reference_blocks(const GenhoiAttention& in, int b, int start,
                                                        Function function) {
  using Traits = BwdDqTraits<DIM>;
  for_reference_blocks<Traits::kKeys, Traits::kConsumers>(
      in, b, start, [&](int segment, int first, int count) {
        if (bias_to_log2(in, segment) != -INFINITY) function(segment, first, count);
      });
}

// Loads what is kept, then keys and values of the video, its last block first, then those of the
// references. By one thread. SWEPT: nothing of the video.
template <int DIM, bool SWEPT>
__device__ __forceinline__ void run_dq_producer(const GenhoiBackward& call, const BwdMaps& maps,
                                                uint32_t start_of_memory, int start, int h, int b) {
  constexpr int kKeys = BwdDqTraits<DIM>::kKeys;
  const GenhoiAttention& in = call.in;
  const BwdMemory<DIM, kKeys> memory{start_of_memory};
  memory.load_kept(&maps.q, &maps.dout, start, h, sample_of(in.q, b), sample_of(call.dout, b));
  const int blocks = SWEPT ? 0 : (in.keys + kKeys - 1) / kKeys;
  uint32_t tile = 0;
#pragma unroll 1
  for (int block = 0; block < blocks; block++) {
    const int first = (block == 0 ? blocks - 1 : block - 1) * kKeys;
    memory.load_passing(kFirstRing, tile, &maps.k, first, h, sample_of(in.k, b));
    memory.load_passing(kSecondRing, tile, &maps.v, first, h, sample_of(in.v, b));
    tile++;
  }
  for_dq_reference_blocks<DIM>(in, b, start, [&](int, int first, int) {
    memory.load_passing(kFirstRing, tile, &maps.k_ref, first, h, sample_of(in.k_ref, b));
    memory.load_passing(kSecondRing, tile, &maps.v_ref, first, h, sample_of(in.v_ref, b));
    tile++;
  });
}

template <class Element, int DIM>
struct DqConsumer : BwdConsumer<Element, DIM, BwdDqTraits<DIM>::kKeys> {
  static constexpr int kKeys = BwdDqTraits<DIM>::kKeys;
  using Base = BwdConsumer<Element, DIM, kKeys>;
  using Base::Base, Base::barriers, Base::group, Base::memory;
  using typename Base::Gradient, typename Base::Operand, typename Base::Scores;

  // dS = P (dP - delta), rounded, where S is computed and dP under way. offset: minus lse, and the
  // bias.
  __device__ __forceinline__ void compute_ds(Operand& ds, Scores& s, Scores& dp,
                                             const float (&offset)[2], const float (&delta)[2],
                                             float scale_log2, uint32_t tile) const {
#pragma unroll
    for (int i = 0; i < kKeys / 2; i++) {
      s[i] = exp2_fast(fmaf(s[i], scale_log2, offset[row_of(i)]));
    }
    wgmma_wait<0>(dp);
    barriers.release(kSecondRing, tile);
#pragma unroll
    for (int i = 0; i < kKeys / 2; i++) s[i] *= dp[i] - delta[row_of(i)];
    pack<Element>(ds, s);
  }

  // Adds what the video's keys give; returns their tiles. Of these only the first one, the video's
  // last, need not be whole.
  __device__ __forceinline__ uint32_t add_video(Gradient& dq, const DqRows& rows,
                                                const GenhoiAttention& in, float scale_log2) const {
    const uint32_t tiles = (in.keys + kKeys - 1) / kKeys;
    this->run_mainloop(
        dq, tiles, [](uint32_t) {},
        [&](Scores& s) { mask_columns(s, in.keys - static_cast<int>(tiles - 1) * kKeys); },
        [&](Operand& ds, Scores& s, Scores& dp, uint32_t tile) {
          compute_ds(ds, s, dp, rows.minus_lse, rows.delta, scale_log2, tile);
        });
    return tiles;
  }

  // A block's keys and values from `keys` on become zeros. Another reference's may be there, and 0
  // times a NaN is not 0; what is behind the last token, TMA has made zeros.
  __device__ __forceinline__ void clear_keys(uint32_t tile, int keys) const {
#pragma unroll
    for (int ring = 0; ring < 2; ring++) {
      clear_rows<DIM, kKeys>(memory.passing(ring, tile), keys, this->thread(), 2 * kGroupThreads);
    }
    async_proxy_fence();
    this->await_both();
  }

  // Adds what the references' keys give, behind `tile` tiles of the video. dS K goes into a sum of
  // its own: rows that don't see the reference keep their bits, come NaN or Inf.
  __device__ __forceinline__ void add_references(Gradient& dq, const DqRows& rows,
                                                 const GenhoiAttention& in, float scale_log2,
                                                 uint32_t tile, int b, int start) const {
    for_dq_reference_blocks<DIM>(in, b, start, [&](int segment, int first, int count) {
      const int first_row = start + group * kGroupRows;
      const uint32_t seen = rows_of_group_that_see(in, b, first_row, segment);
      const float bias = bias_to_log2(in, segment);
      const float offset[2] = {bias + rows.minus_lse[0], bias + rows.minus_lse[1]};
      Scores s, dp;
      Operand ds;
      Gradient sum;
      barriers.wait(kFirstRing, tile);
      barriers.wait(kSecondRing, tile);
      if (count < kKeys && first + count < in.ref_tokens) clear_keys(tile, count);
      wgmma_fence(dq);
      this->issue_product(s, kFirstRing, tile);
      this->issue_product(dp, kSecondRing, tile);
      wgmma_wait<1>(s);
      mask_columns(s, count);
      compute_ds(ds, s, dp, offset, rows.delta, scale_log2, tile);
      wgmma_fence(dq);
      this->template issue_gradient<true>(sum, ds, kFirstRing, tile);
      wgmma_commit();
      wgmma_wait<0>(sum);
      keep(ds);
      barriers.release(kFirstRing, tile);
#pragma unroll
      for (int i = 0; i < DIM / 2; i++) {
        if (seen >> row_of(i) & 1) dq[i] += sum[i];
      }
      tile++;
    });
  }
};

// Computes dQ. Grid: tiles of queries, heads, samples. scale_log2: the scale times log2 e, for
// exp2. SWEPT: what the video's keys give has been added up already (dq_sums.cuh).
template <class Element, int DIM, bool SWEPT>
__global__ void __launch_bounds__(BwdDqTraits<DIM>::kThreads, 1)
    bwd_dq(const __grid_constant__ BwdMaps maps, const __grid_constant__ GenhoiBackward call,
           float scale_log2) {
  using Traits = BwdDqTraits<DIM>;
  extern __shared__ __align__(1024) unsigned char bytes[];
  const uint32_t start_of_memory = smem_address(bytes);
  const GenhoiAttention& in = call.in;
  const int start = blockIdx.x * Traits::kQueries, h = blockIdx.y, b = blockIdx.z;
  Barriers{start_of_memory + Traits::kBarriers}.init(Traits::kConsumers);
  // By a shuffle, so that the compiler knows it to be the same in a warp.
  const int group = __shfl_sync(~0u, threadIdx.x / kGroupThreads, 0);
  if (group == 0) {
    shrink_registers<Traits::kProducerRegisters>();
    if (threadIdx.x == 0) run_dq_producer<DIM, SWEPT>(call, maps, start_of_memory, start, h, b);
  } else {
    grow_registers<Traits::kConsumerRegisters>();
    const DqConsumer<Element, DIM> consumer({start_of_memory}, group - 1);
    const int first = start + consumer.group * kGroupRows;
    const DqRows rows(call, static_cast<int64_t>(b) * in.heads + h, first);
    float dq[DIM / 2] = {};
    mbarrier_wait(consumer.barriers.loaded(), 0);
    uint32_t tiles = 0;
    if constexpr (SWEPT) {
      if (first < in.rows) DqSums(call, b, h).load(dq, first / kGroupRows);
    } else {
      tiles = consumer.add_video(dq, rows, in, scale_log2);
    }
    consumer.add_references(dq, rows, in, scale_log2, tiles, b, start);
    auto* to = gradient_of_head<typename Element::Value>(call.dq, in, b, h, in.rows);
    consumer.store_gradient(to + static_cast<int64_t>(first) * in.heads * in.head_dim, kFirstRing,
                            dq, in.scale, in, in.rows - first);
  }
}

}  // namespace genhoi::cuda::sm90
