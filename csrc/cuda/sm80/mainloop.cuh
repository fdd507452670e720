// The forward main loop: a tile of queries and a range of keys, tile by tile; load, multiply,
// softmax, multiply.
//
// With 32 rows (fragments.cuh) a warp multiplies each key it has read from shared memory twice:
// with 16, reading them would take as long as multiplying.
#pragma once

#include "../common/gemm.cuh"
#include "../common/key_range.cuh"
#include "softmax.cuh"

namespace genhoi::cuda::sm80 {

// acc_o = acc_o rescale + P V. CHECK: rows that don't see the keys keep their bits, come NaN or
// Inf.
template <class Element, bool CHECK, int DIM>
__device__ __forceinline__ void accumulate_output(RowState<DIM>& rows, const Scores<DIM>& scores,
                                                  const float (&rescale)[2][2],
                                                  const OperandTile<DIM>& v, uint32_t seen_rows) {
  constexpr int kKeys = FwdTraits<DIM>::kKeys;
  uint32_t p[2][kKeys / 16][4];
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++) {
      p[i][n / 2][n % 2 * 2] = Element::pack(scores[i][n][0], scores[i][n][1]);
      p[i][n / 2][n % 2 * 2 + 1] = Element::pack(scores[i][n][2], scores[i][n][3]);
    }
  }
#pragma unroll
  for (int n = 0; n < DIM / 16; n++) {
    float previous[2][2][4];
#pragma unroll
    for (int c = 0; c < 16; c++) {
      float& acc = rows.acc_o[c / 8][2 * n + c / 4 % 2][c % 4];
      previous[c / 8][c / 4 % 2][c % 4] = acc;
      acc *= rescale[c / 8][c % 4 / 2];
    }
#pragma unroll
    for (int step = 0; step < kKeys / 16; step++) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, v.columns(n) + step * 16 * SmemTile<DIM>::kRowBytes);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Element::mma(rows.acc_o[i][2 * n], p[i][step], b[0], b[1]);
        Element::mma(rows.acc_o[i][2 * n + 1], p[i][step], b[2], b[3]);
      }
    }
#pragma unroll
    for (int c = 0; c < 16; c++) {
      if (CHECK && (seen_rows >> (c / 8 * 2 + c % 4 / 2) & 1) == 0) {
        rows.acc_o[c / 8][2 * n + c / 4 % 2][c % 4] = previous[c / 8][c / 4 % 2][c % 4];
      }
    }
  }
}

// Goes through all of a range's keys, kKeys at a time. While scores are computed the values come,
// while the softmax is, the next keys. CHECK: the last tile need not be whole, rows may not see the
// keys, and there is a bias; else `count` is a multiple of kKeys.
template <class Element, int DIM, bool CHECK>
__device__ __forceinline__ void run_mainloop(RowState<DIM>& rows, const OperandTile<DIM>& q,
                                             uint32_t k_tile, int dim, float scale_log2,
                                             KeyRange<typename Element::Value> range) {
  using Traits = FwdTraits<DIM>;
  constexpr int kKeys = Traits::kKeys;
  const TileCopy<DIM, kKeys, Traits::kThreads> copy(threadIdx.x);
  const auto k = OperandTile<DIM>::b(k_tile);
  const auto v = OperandTile<DIM>::a(k_tile + Traits::kKeyBytes);
  __syncthreads();  // whoever used the buffers before has done so
  copy.template copy<CHECK>(k_tile, range.k, range.k_stride, dim, range.count);
  cp_async_commit();
  for (int remaining = range.count; remaining > 0; remaining -= kKeys) {
    cp_async_wait<0>();
    __syncthreads();  // the keys are there, and the last values used
    copy.template copy<CHECK>(k_tile + Traits::kKeyBytes, range.v, range.v_stride, dim, remaining);
    cp_async_commit();
    Scores<DIM> scores;
    float rescale[2][2];
    multiply_tiles<Element, DIM>(scores, q, k);
    cp_async_wait<0>();
    __syncthreads();  // the values are there, and these keys used
    range.advance(kKeys);
    // After the last tile, zeros: a branch here costs the loop fifty register moves.
    const int next_dim = remaining > kKeys ? dim : 0;
    copy.template copy<CHECK>(k_tile, range.k, range.k_stride, next_dim, remaining - kKeys);
    cp_async_commit();
    apply_softmax<CHECK>(scores, rescale, rows, scale_log2, remaining, range.bias, range.seen_rows);
    accumulate_output<Element, CHECK>(rows, scores, rescale, v, range.seen_rows);
  }
}

// Whether some row of the tile sees reference `segment`.
__device__ __forceinline__ bool tile_sees(const GenhoiAttention& in, int b, int start,
                                          int segment) {
  if (in.bits == nullptr) return true;
  asm("" : "+r"(start) : "r"(segment));  // else the address is kept from before the loop
  return load_tile_bits(in, b, start) >> segment & 1;
}

// The reference loop: each reference that some row of the tile sees. Its first turn, kVideoTail, is
// for the video's keys that whole tiles leave over: they need the same checks, and in a loop with
// the references they need no third copy of the main loop's code.
template <class Element, int DIM>
__device__ __forceinline__ void loop_over_references(RowState<DIM>& rows, const OperandTile<DIM>& q,
                                                     uint32_t k_tile, float scale_log2,
                                                     const GenhoiAttention& in, int b, int h,
                                                     int start) {
  using Value = typename Element::Value;
  constexpr int kVideoTail = -1, kFirstReference = 0, kKeys = FwdTraits<DIM>::kKeys;
  for (int segment = kVideoTail; segment < (in.ref_tokens > 0 ? in.references : 0); segment++) {
    KeyRange<Value> range{};
    int first = in.keys / kKeys * kKeys;
    if (segment < kFirstReference) {
      range = video_keys<Value>(in, b, h, first);
    } else {
      if (!tile_sees(in, b, start, segment)) continue;
      first = in.segments[segment];
      const float bias = bias_to_log2(in, segment);
      range = reference_keys<Value>(in, b, h, start, segment, first, bias);
    }
    if (range.count == 0) continue;
    range.advance(first);
    run_mainloop<Element, DIM, true>(rows, q, k_tile, in.head_dim, scale_log2, range);
  }
}

}  // namespace genhoi::cuda::sm80
