// The producer of the forward kernel: one thread, which loads everything that passes by.
#pragma once

#include "fwd_maps.h"
#include "pipeline.cuh"
#include "references.cuh"

namespace genhoi::cuda::sm90 {

// Fills the rings: keys of a block come before the values of the block before, as they are used.
template <int DIM>
struct FwdProducer {
  using Traits = FwdTraits<DIM>;
  uint32_t memory;
  int head;
  Barriers barriers;
  int blocks = 0;                  // of so many the keys are on their way, of one less the values
  const CUtensorMap* v = nullptr;  // of the last block whose keys are on their way
  int v_token = 0, v_sample = 0;

  __device__ __forceinline__ FwdProducer(uint32_t memory, int head)
      : memory(memory), head(head), barriers{memory + Traits::kBarriers} {}

  __device__ __forceinline__ uint32_t begin(int ring, int block, int bytes) const {
    barriers.wait_free(ring, block);
    const uint32_t filled = barriers.filled(ring, place_of(block));
    mbarrier_arrive_expect(filled, bytes);
    return filled;
  }
  __device__ __forceinline__ uint32_t place(int ring, int block) const {
    return memory + (ring == kFirstRing ? Traits::kKeyRing : Traits::kValueRing) +
           place_of(block) * Traits::kKeyBytes;
  }
  __device__ __forceinline__ void load(int ring, int block, const CUtensorMap* map, int token,
                                       int sample) const {
    const uint32_t filled = begin(ring, block, Traits::kKeyBytes);
    load_tile<DIM>(place(ring, block), Traits::kKeySlab, map, filled, token, head, sample);
  }
  __device__ __forceinline__ void load_last_values() const {
    if (blocks > 0) load(kSecondRing, blocks - 1, v, v_token, v_sample);
  }
  // Keys and values may have samples of their own: all samples may share one of them.
  __device__ __forceinline__ void next(const CUtensorMap* k, int k_sample,
                                       const CUtensorMap* next_v, int next_v_sample, int token) {
    load(kFirstRing, blocks, k, token, k_sample);
    load_last_values();
    v = next_v;
    v_token = token;
    v_sample = next_v_sample;
    blocks++;
  }
};

// Loads queries, then keys and values of the video, its last block first, then of the references
// that the tile sees, then the flow gate's W1.
template <int DIM>
__device__ __forceinline__ void run_producer(const GenhoiAttention& in, const FwdMaps& maps,
                                             uint32_t memory, int start, int h, int b) {
  using Traits = FwdTraits<DIM>;
  constexpr int kKeys = Traits::kKeys;
  FwdProducer<DIM> producer(memory, h);
  tma_prefetch(&maps.q);
  tma_prefetch(&maps.k);
  tma_prefetch(&maps.v);
  const uint32_t loaded = producer.barriers.loaded();
  mbarrier_arrive_expect(loaded, Traits::kQueryBytes);
  load_tile<DIM>(memory, Traits::kQuerySlab, &maps.q, loaded, start, h, sample_of(in.q, b));
  const int blocks = (in.keys + kKeys - 1) / kKeys;
#pragma unroll 1
  for (int j = 0; j < blocks; j++) {
    const int block = j == 0 ? blocks - 1 : j - 1;
    producer.next(&maps.k, sample_of(in.k, b), &maps.v, sample_of(in.v, b), block * kKeys);
  }
  for_reference_blocks<kKeys, Traits::kConsumers>(in, b, start, [&](int, int first, int) {
    producer.next(&maps.k_ref, sample_of(in.k_ref, b), &maps.v_ref, sample_of(in.v_ref, b), first);
  });
  producer.load_last_values();
  if (in.gate_mode != GENHOI_GATE_NONE) {
    const uint32_t filled = producer.begin(kFirstRing, producer.blocks, Traits::kGateBytes);
    load_tile<DIM>(producer.place(kFirstRing, producer.blocks), Traits::kGateSlab, &maps.fc1_weight,
                   filled, 0, 0, 0);
  }
}

}  // namespace genhoi::cuda::sm90
