// Attention forward on Hopper's tensor cores (wgmma and TMA, sm_90a): docs/op.md, "Forward".
//
// A block takes a tile of queries of one head. Its first warpgroup is the producer, which only
// copies; the others are consumers, with 64 queries each. From top to bottom, a consumer attends to
// the video's keys, then to those of the references which a row of the tile sees, and finishes its
// rows.
#pragma once

#include "epilogue.cuh"
#include "producer.cuh"

namespace genhoi::cuda::sm90 {

// Grid: tiles of rows, heads, samples. scale_log2: the scale times log2 e, for exp2.
template <class Element, int DIM>
__global__ void __launch_bounds__(FwdTraits<DIM>::kThreads, 1)
    attention_fwd(const __grid_constant__ FwdMaps maps, const __grid_constant__ GenhoiForward call,
                  float scale_log2) {
  using Traits = FwdTraits<DIM>;
  extern __shared__ __align__(1024) unsigned char bytes[];
  const uint32_t memory = smem_address(bytes);
  const int start = blockIdx.x * Traits::kQueries, h = blockIdx.y, b = blockIdx.z;
  Barriers{memory + Traits::kBarriers}.init(Traits::kConsumers);
  // By a shuffle, so that the compiler knows it to be the same in a warp: addresses and descriptors
  // are in uniform registers then.
  const int group = __shfl_sync(~0u, threadIdx.x / kGroupThreads, 0);
  if (group == 0) {
    shrink_registers<Traits::kProducerRegisters>();
    if (threadIdx.x == 0) run_producer<DIM>(call.in, maps, memory, start, h, b);
  } else {
    grow_registers<Traits::kConsumerRegisters>();
    const FwdConsumer<Element, DIM> consumer(call.in, scale_log2, memory, group - 1);
    float acc_o[DIM / 2] = {};
    RowState rows;
    mbarrier_wait(consumer.barriers.loaded(), 0);
    int block = consumer.attend_to_video(acc_o, rows);
    block = consumer.attend_to_references(acc_o, rows, block, b, start);
    run_epilogue(acc_o, rows, consumer, call, maps, bytes, block, start);
  }
}

}  // namespace genhoi::cuda::sm90
