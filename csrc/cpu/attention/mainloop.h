// The forward pass's mainloop: S = Q K^T, softmax, O += P V, for one tile of query rows and one
// block of keys after the other.
#pragma once

#include "cpu/attention/packed_kv.h"
#include "cpu/attention/softmax.h"
#include "cpu/gemm/gemm.h"

namespace genhoi::cpu {
namespace {

// A tile of query rows meets one block of keys.
template <class Element>
struct MainloopStep {
  QueryTile<Element>* tile;
  int64_t rows;
  const PackedKV<Element>* kv;
  int64_t kv_bh, block;  // which block of `kv`
  float bias;            // of the block's segment, in units of log2 e
  int64_t keys() const { return kv->blocks[block].count; }
};

// Takes steps, one after the other. Where products have a unit of their own, the softmax of a step
// runs beside the next step's Q K^T and the last one's P V; what comes out is the same.
template <class Element>
class Mainloop {
 public:
  const LogitScale<Element> logit_scale;
  explicit Mainloop(float scale) : logit_scale(scale) {}

  void take(const MainloopStep<Element>& step) {
    if constexpr (GemmTraits<Element>::kSeparateUnit) {
      advance(&step);
    } else {
      NoOverlap nothing;
      ScoreTile<Element>& scores = stages_[0].scores;
      gemm_qk(step, scores, nothing);
      for (int64_t i = 0; i < step.rows; i++) softmax(step, scores, i);
      rescale_o(step, scores);
      gemm_pv(step, scores, nothing);
    }
  }

  // Ends the steps that were taken; until then their tiles are not complete.
  void finish() {
    while (pv_done_ < qk_done_) advance(nullptr);
  }

 private:
  static GemmShape qk_shape(const MainloopStep<Element>& step) {
    return {.rows = step.rows, .panels = div_up(step.keys(), kPanel), .depth = step.kv->dim};
  }
  static GemmShape pv_shape(const MainloopStep<Element>& step) {
    return {.rows = step.rows, .panels = step.kv->dim_padded / kPanel, .depth = step.keys()};
  }

  template <class Work>
  void gemm_qk(const MainloopStep<Element>& step, ScoreTile<Element>& scores, Work& overlap) {
    const PackedKV<Element>& kv = *step.kv;
    gemm<false, Element>(
        qk_shape(step), {.data = step.tile->q, .stride = kv.dim},
        {.data = kv.key_block(step.kv_bh, step.block), .panel_stride = kv.dim * kPanel},
        {.data = scores.products, .stride = kBlock}, overlap);
  }

  void softmax(const MainloopStep<Element>& step, ScoreTile<Element>& scores, int64_t row) {
    scores.rescale[row] =
        softmax_row<Element>(scores.products + row * kBlock, scores.p + row * kBlock, step.keys(),
                             logit_scale.on_products, step.bias, step.tile->row_max[row],
                             step.tile->row_sum + row * kVector);
  }

  static void rescale_o(const MainloopStep<Element>& step, const ScoreTile<Element>& scores) {
    const int64_t dim = step.kv->dim_padded;
    for (int64_t i = 0; i < step.rows; i++) {
      scale_row(step.tile->acc_o + i * dim, dim, scores.rescale[i]);
    }
  }

  template <class Work>
  void gemm_pv(const MainloopStep<Element>& step, const ScoreTile<Element>& scores, Work& overlap) {
    const PackedKV<Element>& kv = *step.kv;
    gemm<true, Element>(
        pv_shape(step), {.data = scores.p, .stride = kBlock},
        {.data = kv.value_block(step.kv_bh, step.block), .panel_stride = kBlock * kPanel},
        {.data = step.tile->acc_o, .stride = kv.dim_padded}, overlap);
  }

  // One step's softmax, beside the next one's Q K^T and the last one's P V. All three may be of one
  // tile: its acc_o is rescaled when the last step's part is in.
  void advance(const MainloopStep<Element>* new_step) {
    Stage* next = new_step ? &stage(qk_done_) : nullptr;
    Stage* current = softmax_done_ < qk_done_ ? &stage(softmax_done_) : nullptr;
    Stage* last = pv_done_ < softmax_done_ ? &stage(pv_done_) : nullptr;
    if (next) next->step = *new_step;
    const int64_t rows = current ? current->step.rows : 0;
    const int64_t steps = (next ? gemm_steps<Element>(qk_shape(next->step)) : 0) +
                          (last ? gemm_steps<Element>(pv_shape(last->step)) : 0);
    const auto softmax_slice = [&](int64_t row) { softmax(current->step, current->scores, row); };
    Overlap overlap(rows, steps, softmax_slice);
    if (next) gemm_qk(next->step, next->scores, overlap);
    if (last) gemm_pv(last->step, last->scores, overlap);
    overlap.finish();
    if (current) rescale_o(current->step, current->scores);
    qk_done_ += next != nullptr;
    softmax_done_ += current != nullptr;
    pv_done_ += last != nullptr;
  }

  struct Stage {
    MainloopStep<Element> step;
    ScoreTile<Element> scores;
  };
  Stage& stage(int64_t step) { return stages_[step % 3]; }

  Stage stages_[3];
  int64_t qk_done_ = 0, softmax_done_ = 0, pv_done_ = 0;  // steps that have come so far
};

}  // namespace
}  // namespace genhoi::cpu
