// The forward epilogue: a warpgroup's rows are normalised, gated and stored.
#pragma once

#include "flow_gate.cuh"
#include "fwd_maps.h"

namespace genhoi::cuda::sm90 {

// o = acc_o / row_sum, in place, and lse. A row without any key: o = 0, lse = -inf.
template <int DIM>
__device__ __forceinline__ void normalise_rows(float (&acc_o)[DIM / 2], const RowState& rows,
                                               const GenhoiForward& call, int64_t head, int first) {
  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float sum = quad_sum(rows.row_sum[r]);
    inverse[r] = sum == 0.0f ? 0.0f : reciprocal_fast(sum);
    const int row = first + row_in_group(r);
    if (threadIdx.x % 4 == 0 && row < call.in.rows) {
      call.lse[head * call.in.rows + row] = (rows.row_max[r] + log2_fast(sum)) * kLn2;
    }
  }
  scale_rows(acc_o, inverse);
}

// Stores a warpgroup's rows by way of their queries' place, which nobody reads any more.
template <class Element, int DIM>
__device__ __forceinline__ void store_output(const CUtensorMap* map,
                                             const FwdConsumer<Element, DIM>& consumer,
                                             const float (&o)[DIM / 2], int first, int h, int b) {
  using Traits = FwdTraits<DIM>;
  store_rows<Element, DIM>(consumer.q, Traits::kQuerySlab, o, 1.0f);
  async_proxy_fence();
  named_barrier_sync(group_barrier<Traits::kConsumers>(consumer.group), kGroupThreads);
  if (threadIdx.x % kGroupThreads == 0) {
    store_tile<DIM>(map, consumer.q, Traits::kQuerySlab, first, h, b);
  }
}

// block: how many blocks of keys have passed by. memory: the block's shared memory.
template <class Element, int DIM>
__device__ __forceinline__ void run_epilogue(float (&acc_o)[DIM / 2], const RowState& rows,
                                             const FwdConsumer<Element, DIM>& consumer,
                                             const GenhoiForward& call, const FwdMaps& maps,
                                             unsigned char* memory, int block, int start) {
  using Traits = FwdTraits<DIM>;
  const int h = blockIdx.y, b = blockIdx.z;
  const int first = start + consumer.group * kGroupRows;
  const int64_t head = static_cast<int64_t>(b) * call.in.heads + h;
  const bool issues_stores = threadIdx.x % kGroupThreads == 0;
  normalise_rows<DIM>(acc_o, rows, call, head, first);
  if (call.ungated != nullptr) store_output(&maps.ungated, consumer, acc_o, first, h, b);
  if (call.in.gate_mode != GENHOI_GATE_NONE) {
    apply_flow_gate(acc_o, consumer, call, memory, block, head, start);
  }
  if (call.ungated != nullptr) {  // the place can be written again
    if (issues_stores) tma_store_wait_read();
    named_barrier_sync(group_barrier<Traits::kConsumers>(consumer.group), kGroupThreads);
  }
  store_output(&maps.out, consumer, acc_o, first, h, b);
  if (issues_stores) tma_store_wait();
}

}  // namespace genhoi::cuda::sm90
