// The forward epilogue: a tile's rows are normalised, gated and stored.
#pragma once

#include "../common/store.cuh"
#include "flow_gate.cuh"
#include "softmax.cuh"

namespace genhoi::cuda::sm80 {

// O = acc_o / row_sum, in place, and lse. A row without any key: O = 0, lse = -inf.
template <int DIM>
__device__ __forceinline__ void normalise_rows(RowState<DIM>& rows, const GenhoiForward& call,
                                               int64_t head, int start) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float sum = quad_sum(rows.row_sum[i][r]);
      const float inverse = sum == 0.0f ? 0.0f : reciprocal_fast(sum);
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) {
        rows.acc_o[i][n][2 * r] *= inverse;
        rows.acc_o[i][n][2 * r + 1] *= inverse;
      }
      const int row = start + row_in_tile(i, r);
      if (threadIdx.x % 4 == 0 && row < call.in.rows) {
        call.lse[head * call.in.rows + row] = (rows.row_max[i][r] + log2_fast(sum)) * kLn2;
      }
    }
  }
}

// memory: the block's shared memory, all of whose tiles are used; it is used again.
template <class Element, int DIM>
__device__ __forceinline__ void run_epilogue(RowState<DIM>& rows, const GenhoiForward& call,
                                             unsigned char* memory, int b, int h, int64_t head,
                                             int start) {
  const GenhoiAttention& in = call.in;
  normalise_rows(rows, call, head, start);
  cp_async_wait<0>();  // a tile without any key has not waited for its queries
  __syncthreads();
  if (call.ungated != nullptr) {
    store_output<Element, DIM>(call.ungated, rows.acc_o, memory, in, b, h, start);
  }
  if (in.gate_mode != GENHOI_GATE_NONE) {
    apply_flow_gate<Element, DIM>(rows.acc_o, call, memory, head, start);
  }
  store_output<Element, DIM>(call.out, rows.acc_o, memory, in, b, h, start);
}

}  // namespace genhoi::cuda::sm80
