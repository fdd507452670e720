// The forward main loops of a consumer warpgroup: 64 queries, and all keys, block by block.
//
// Two things overlap with a warpgroup's softmax, as in FlashAttention-3: the products of the other
// warpgroups, which take turns to issue them; and its own P V of the block before, which it issues
// behind Q K^T of this block.
#pragma once

#include "pipeline.cuh"
#include "products.cuh"
#include "references.cuh"
#include "softmax.cuh"

namespace genhoi::cuda::sm90 {

// Named barriers; barrier 0 is that of __syncthreads. Of each consumer: its turn, and its own.
__device__ __forceinline__ int turn_barrier(int consumer) { return 1 + consumer; }
template <int CONSUMERS>
__device__ __forceinline__ int group_barrier(int consumer) {
  return 1 + CONSUMERS + consumer;
}
template <int CONSUMERS>
constexpr int kConsumersBarrier = 1 + 2 * CONSUMERS;  // of all consumers

template <class Element, int DIM>
struct FwdConsumer {
  using Traits = FwdTraits<DIM>;
  static constexpr int kKeys = Traits::kKeys, kConsumers = Traits::kConsumers;
  using Scores = float[kKeys / 2];
  using Probabilities = uint32_t[kKeys / 4];
  using Output = float[DIM / 2];

  const GenhoiAttention& in;
  float scale_log2;
  uint32_t memory;
  int group;  // of the consumers, the same in all lanes, as the compiler knows
  Barriers barriers;
  uint32_t q;  // the group's first row

  __device__ __forceinline__ FwdConsumer(const GenhoiAttention& in, float scale_log2,
                                         uint32_t memory, int group)
      : in(in),
        scale_log2(scale_log2),
        memory(memory),
        group(group),
        barriers{memory + Traits::kBarriers},
        q(memory + group * kGroupRows * kSlabRowBytes<DIM>) {}

  __device__ __forceinline__ uint32_t keys_at(int block) const {
    return memory + Traits::kKeyRing + place_of(block) * Traits::kKeyBytes;
  }
  __device__ __forceinline__ uint32_t values_at(int block) const {
    return memory + Traits::kValueRing + place_of(block) * Traits::kKeyBytes;
  }

  // Turns pass from each consumer to the next. The last one passes the first turn, and the first
  // one takes a turn at the end, so that every turn that is passed is taken.
  __device__ __forceinline__ void await_turn() const {
    named_barrier_sync(turn_barrier(group), 2 * kGroupThreads);
  }
  __device__ __forceinline__ void pass_turn() const {
    const int next = group + 1 == kConsumers ? 0 : group + 1;
    named_barrier_arrive(turn_barrier(next), 2 * kGroupThreads);
  }

  // Issues scores = Q K^T.
  __device__ __forceinline__ void issue_qk(Scores& scores, int block) const {
    issue_scores<Element, DIM, kKeys>(scores, q, Traits::kQuerySlab, keys_at(block),
                                      Traits::kKeySlab);
  }
  // Issues acc_o += P V, or with ZERO acc_o = P V.
  template <bool ZERO>
  __device__ __forceinline__ void issue_pv(Output& acc_o, const Probabilities& p, int block) const {
    issue_sums<ZERO, Element, DIM, kKeys>(acc_o, p, values_at(block), Traits::kKeySlab);
    wgmma_commit();
  }

  // acc_o += P V of the last block.
  __device__ __forceinline__ void finish_pv(Output& acc_o, const Probabilities& p,
                                            int block) const {
    barriers.wait(kSecondRing, block);
    wgmma_fence(acc_o);
    issue_pv<false>(acc_o, p, block);
    wgmma_wait<0>(acc_o);
    keep(p);
    barriers.release(kSecondRing, block);
  }

  // The first block: its probabilities, to which nothing has to be added yet. It is the video's
  // last one, the only one that need not be whole, so that the loop needs no check.
  __device__ __forceinline__ void first_block(Probabilities& p, RowState& rows, Output& acc_o,
                                              int keys) const {
    Scores scores;
    float rescale[2];
    barriers.wait(kFirstRing, 0);
    wgmma_fence(acc_o);
    issue_qk(scores, 0);
    wgmma_wait<0>(scores);
    barriers.release(kFirstRing, 0);
    mask_columns(scores, keys);
    apply_softmax<false>(scores, rescale, rows, scale_log2);
    pack<Element>(p, scores);
  }

  // Attends to the video's keys; returns their blocks.
  __device__ __forceinline__ int attend_to_video(Output& acc_o, RowState& rows) const {
    const int blocks = (in.keys + kKeys - 1) / kKeys;
    if (group == kConsumers - 1) pass_turn();
    if (blocks > 0) {
      Probabilities p;
      first_block(p, rows, acc_o, in.keys - (blocks - 1) * kKeys);
#pragma unroll 1
      for (int block = 1; block < blocks; block++) {
        Scores scores;
        float rescale[2];
        barriers.wait(kFirstRing, block);
        await_turn();
        wgmma_fence(acc_o);
        issue_qk(scores, block);
        barriers.wait(kSecondRing, block - 1);
        issue_pv<false>(acc_o, p, block - 1);
        pass_turn();
        wgmma_wait<1>(scores);
        // The keys are used by now; but released here, the wait for P V comes after half of the
        // softmax: see mbarrier_arrive_after.
        const auto halfway = [&](float x) {
          mbarrier_arrive_after(barriers.free(kFirstRing, place_of(block)), x);
        };
        bool raised = true;
        if constexpr (Traits::kLazyRescale) {
          raised = apply_lazy_softmax(scores, rescale, rows, scale_log2, halfway);
        } else {
          apply_softmax<false>(scores, rescale, rows, scale_log2, 0.0f, 3, halfway);
        }
        wgmma_wait<0>(acc_o);
        keep(p);
        barriers.release(kSecondRing, block - 1);
        pack<Element>(p, scores);
        if (__builtin_expect(raised, !Traits::kLazyRescale)) scale_rows(acc_o, rescale);
      }
      finish_pv(acc_o, p, blocks - 1);
    }
    if (group == 0) await_turn();
    return blocks;
  }

  // Values from `keys` on become zeros, by all consumers. Another reference's may be there, and 0
  // times a NaN is not 0; what is behind the last token, TMA has made zeros.
  __device__ __forceinline__ void clear_values(int block, int keys) const {
    const int thread = group * kGroupThreads + threadIdx.x % kGroupThreads;
    clear_rows<DIM, kKeys>(values_at(block), keys, thread, kConsumers * kGroupThreads);
    async_proxy_fence();
    named_barrier_sync(kConsumersBarrier<kConsumers>, kConsumers * kGroupThreads);
  }

  // Attends to the references that some row of the tile sees, behind `block` blocks of the video;
  // returns all blocks. P V goes into a sum of its own: rows that don't see the reference keep
  // their bits, come NaN or Inf.
  __device__ __forceinline__ int attend_to_references(Output& acc_o, RowState& rows, int block,
                                                      int b, int start) const {
    const auto attend = [&](int segment, int first, int count) {
      const int first_row = start + group * kGroupRows;
      const uint32_t seen = rows_of_group_that_see(in, b, first_row, segment);
      Scores scores;
      Probabilities p;
      Output sum;
      float rescale[2];
      barriers.wait(kFirstRing, block);
      wgmma_fence(acc_o);
      issue_qk(scores, block);
      wgmma_wait<0>(scores);
      barriers.release(kFirstRing, block);
      mask_columns(scores, count);
      apply_softmax<true>(scores, rescale, rows, scale_log2, bias_to_log2(in, segment), seen);
      pack<Element>(p, scores);
      barriers.wait(kSecondRing, block);
      if (count < kKeys && first + count < in.ref_tokens) clear_values(block, count);
      wgmma_fence(acc_o);
      issue_pv<true>(sum, p, block);
      wgmma_wait<0>(sum);
      keep(p);
      barriers.release(kSecondRing, block);
#pragma unroll
      for (int i = 0; i < DIM / 2; i++) {
        if (seen >> row_of(i) & 1) acc_o[i] = fmaf(acc_o[i], rescale[row_of(i)], sum[i]);
      }
      block++;
    };
    for_reference_blocks<kKeys, kConsumers>(in, b, start, attend);
    return block;
  }
};

}  // namespace genhoi::cuda::sm90
