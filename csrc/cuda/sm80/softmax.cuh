// The online softmax of a warp's rows: scores become probabilities, tile by tile of keys.
#pragma once

#include "../common/fragments.cuh"
#include "../common/ptx.cuh"
#include "traits.h"

namespace genhoi::cuda::sm80 {

// Logits, then probabilities, of a warp's rows and one tile of keys.
template <int DIM>
using Scores = float[2][FwdTraits<DIM>::kKeys / 8][4];

// What a warp keeps of its rows: the highest logit so far (in units of log2 e), the sum of exp2 of
// all logits less that over this lane's columns, and the sum of values, not yet normalised.
template <int DIM>
struct RowState {
  float row_max[2][2], row_sum[2][2];
  float acc_o[2][DIM / 8][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        row_max[i][r] = -INFINITY;
        row_sum[i][r] = 0.0f;
      }
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
        for (int c = 0; c < 4; c++) acc_o[i][n][c] = 0.0f;
      }
    }
  }
};

// Turns scores into probabilities, relative to the highest logit so far; `rescale` is what earlier
// ones are to be multiplied by. scale_log2: the scale times log2 e, for exp2. CHECK: only `keys` of
// the columns exist, there is a bias, and rows may see none of the keys.
template <bool CHECK, int DIM>
__device__ __forceinline__ void apply_softmax(Scores<DIM>& scores, float (&rescale)[2][2],
                                              RowState<DIM>& rows, float scale_log2, int keys,
                                              float bias, uint32_t seen_rows) {
  constexpr int kKeys = FwdTraits<DIM>::kKeys;
  if (CHECK) {
    const int first = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++) {
#pragma unroll
      for (int c = 0; c < 4; c++) {
        if (n * 8 + first + c % 2 >= keys) scores[0][n][c] = scores[1][n][c] = -INFINITY;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float tile_max = scores[i][0][2 * r];
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) {
        tile_max = fmaxf(tile_max, fmaxf(scores[i][n][2 * r], scores[i][n][2 * r + 1]));
      }
      tile_max = quad_max(tile_max) * scale_log2;
      if (CHECK) tile_max += bias;
      const float previous_max = rows.row_max[i][r];
      const float row_max = fmaxf(previous_max, tile_max);
      // Where every logit so far is -inf (a bias of that, or no key): exp2(-inf - 0) is 0.
      const float shift = CHECK && row_max == -INFINITY ? 0.0f : row_max;
      const float offset = CHECK ? bias - shift : -shift;
      rescale[i][r] = exp2_fast(previous_max - shift);
      float tile_sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) {
#pragma unroll
        for (int c = 2 * r; c < 2 * r + 2; c++) {
          scores[i][n][c] = exp2_fast(fmaf(scores[i][n][c], scale_log2, offset));
          tile_sum += scores[i][n][c];
        }
      }
      if (!CHECK || seen_rows >> (2 * i + r) & 1) {
        rows.row_max[i][r] = row_max;
        rows.row_sum[i][r] = fmaf(rows.row_sum[i][r], rescale[i][r], tile_sum);
      }
    }
  }
}

}  // namespace genhoi::cuda::sm80
