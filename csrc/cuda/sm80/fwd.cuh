// Attention forward on tensor cores (sm_80 and later): docs/op.md, "Forward".
//
// A block of four warps takes a tile of rows of one head. From top to bottom: load the queries, the
// main loop over the video's keys, that over the references which one of its rows sees, and the
// epilogue. Two blocks share an SM: one multiplies while the other is at its softmax.
#pragma once

#include "epilogue.cuh"
#include "mainloop.cuh"

namespace genhoi::cuda::sm80 {

// Grid: tiles of rows, heads, samples. scale_log2: the scale times log2 e, for exp2.
template <class Element, int DIM>
__global__ void __launch_bounds__(FwdTraits<DIM>::kThreads, FwdTraits<DIM>::kBlocksPerSm)
    attention_fwd(const __grid_constant__ GenhoiForward call, float scale_log2) {
  using Traits = FwdTraits<DIM>;
  using Value = typename Element::Value;
  extern __shared__ __align__(1024) unsigned char memory[];
  const GenhoiAttention& in = call.in;
  const int start = blockIdx.x * Traits::kQueries, h = blockIdx.y, b = blockIdx.z;
  const int64_t head = static_cast<int64_t>(b) * in.heads + h;
  const uint32_t q_tile = smem_address(memory);
  const uint32_t k_tile = q_tile + Traits::kQueryBytes;

  // Load the queries.
  const TileCopy<DIM, Traits::kQueries, Traits::kThreads> copy(threadIdx.x);
  const Value* first = head_of<Value>(in.q, b, h) + start * in.q.token;
  copy.template copy<true>(q_tile, first, in.q.token, in.head_dim, in.rows - start);
  cp_async_commit();
  const auto q = OperandTile<DIM>::a(q_tile, threadIdx.x / 32 * kWarpRows);

  // The video's keys, then the references'.
  RowState<DIM> rows;
  rows.clear();
  auto video = video_keys<Value>(in, b, h, 0);
  video.count = in.keys / Traits::kKeys * Traits::kKeys;  // whole tiles
  if (video.count > 0) {
    run_mainloop<Element, DIM, false>(rows, q, k_tile, in.head_dim, scale_log2, video);
  }
  loop_over_references<Element, DIM>(rows, q, k_tile, scale_log2, in, b, h, start);

  run_epilogue<Element, DIM>(rows, call, memory, b, h, head, start);
}

}  // namespace genhoi::cuda::sm80
