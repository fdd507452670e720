// The online softmax of a warpgroup's rows: scores become probabilities, tile by tile of keys.
#pragma once

#include "../common/ptx.cuh"
#include "fragments.cuh"

namespace genhoi::cuda::sm90 {

// Of a thread's two rows: the highest logit so far (or one at most kSlack lower: see
// apply_lazy_softmax), in units of log2 e, and the sum of exp2 of all
// logits less that over this lane's columns.
struct RowState {
  float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {};
};

struct Nothing {
  __device__ __forceinline__ void operator()(float) const {}
};

// The highest score of row r in this lane. In two chains: a warp has nothing else to do while it
// waits for one.
template <int COUNT>
__device__ __forceinline__ float max_of_row(const float (&scores)[COUNT], int r) {
  float even = scores[2 * r], odd = scores[2 * r + 1];
#pragma unroll
  for (int i = 4; i < COUNT; i += 4) {
    even = fmaxf(even, scores[i + 2 * r]);
    odd = fmaxf(odd, scores[i + 2 * r + 1]);
  }
  return fmaxf(even, odd);
}

// Turns scores into probabilities, relative to the highest logit so far; `rescale` is what earlier
// ones are to be multiplied by. scale_log2: the scale times log2 e, for exp2. CHECK: there is a
// bias, rows may have no key so far, and only rows of which `seen_rows` has a bit change their
// state. halfway(x) is called when half of the work is done, of which x is a result.
template <bool CHECK, int COUNT, class Halfway = Nothing>
__device__ __forceinline__ void apply_softmax(float (&scores)[COUNT], float (&rescale)[2],
                                              RowState& rows, float scale_log2, float bias = 0.0f,
                                              uint32_t seen_rows = 3, Halfway halfway = {}) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float tile_max = quad_max(max_of_row(scores, r)) * scale_log2;
    if (CHECK) tile_max += bias;
    const float previous_max = rows.row_max[r];
    const float row_max = fmaxf(previous_max, tile_max);
    // Where every logit so far is -inf (a bias of that, or no key): exp2(-inf - 0) is 0.
    const float shift = CHECK && row_max == -INFINITY ? 0.0f : row_max;
    const float offset = CHECK ? bias - shift : -shift;
    rescale[r] = exp2_fast(previous_max - shift);
    float sum = CHECK ? 0.0f : rows.row_sum[r] * rescale[r];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      if (row_of(i) != r) continue;
      scores[i] = exp2_fast(fmaf(scores[i], scale_log2, offset));
      sum += scores[i];
    }
    if (!CHECK || seen_rows >> r & 1) {
      rows.row_max[r] = row_max;
      rows.row_sum[r] = CHECK ? fmaf(rows.row_sum[r], rescale[r], sum) : sum;
    }
    if (r == 0) halfway(sum);
  }
}

// Likewise, but raises the highest logit only of a row that exceeds it by more than kSlack: exp2 is
// 2^kSlack at most, which costs no precision, and there is seldom anything to rescale; returns
// whether there is, in this warp. So no maximum is needed, only whether any value is too large. A
// row's bits depend on no other row.
constexpr float kSlack = 8.0f;
template <int COUNT, class Halfway>
__device__ __forceinline__ bool apply_lazy_softmax(float (&scores)[COUNT], float (&rescale)[2],
                                                   RowState& rows, float scale_log2,
                                                   Halfway halfway) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    scores[i] = fmaf(scores[i], scale_log2, -rows.row_max[row_of(i)]);
  }
  // As integers, of which an instruction compares three; in the right order above 0.
  int top[4] = {};
#pragma unroll
  for (int i = 0; i < COUNT; i += 2) {
    int& x = top[i / 2 % 4];
    x = max(max(x, __float_as_int(scores[i])), __float_as_int(scores[i + 1]));
  }
  const int highest = max(max(top[0], top[1]), max(top[2], top[3]));
  const bool raised = __any_sync(~0u, highest > __float_as_int(kSlack));
  if (__builtin_expect(raised, 0)) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float above = quad_max(max_of_row(scores, r));
      const float raise = above > kSlack ? above : 0.0f;
      rescale[r] = exp2_fast(-raise);
      rows.row_max[r] += raise;
      rows.row_sum[r] *= rescale[r];
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        if (row_of(i) == r) scores[i] -= raise;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    scores[i] = exp2_fast(scores[i]);
    rows.row_sum[row_of(i)] += scores[i];
    if (i == COUNT / 2) halfway(rows.row_sum[row_of(i)]);
  }
  return raised;
}

}  // namespace genhoi::cuda::sm90
