// The backward pass's mainloop: a block of keys on its way through tiles of query rows. P and dS
// are made anew; dK and dV are summed here, and each tile's dQ is added to.
#pragma once

#include "cpu/attention/bwd_rows.h"
#include "cpu/attention/key_blocks.h"
#include "cpu/gemm/gemm.h"

namespace genhoi::cpu {
namespace {

// A tile of query rows meets the block of keys.
template <class Element>
struct SweepStep {
  const QueryRows<Element>* rows;  // null: no step
  int64_t at, columns;             // the tile, and how many rows it has
  int32_t turn;                    // the block's, at the tile's dQ
};

// Scores are transposed, [keys, rows], so that what differs from row to row lies along a vector.
template <class Element>
class KeyBlockSweep {
 public:
  explicit KeyBlockSweep(const Attention& in)
      : in_(in),
        dim_padded_(round_up(in.dim, kPanel)),
        logit_scale_(in.scale),
        loaded_(kBlock * in.dim),
        transposed_(in.dim * kBlock),
        k_(kBlock * in.dim),
        v_(kBlock * in.dim),
        k_transposed_(round_up(in.dim, GemmTraits<Element>::kRows) * kBlock),
        dk_(kBlock * dim_padded_),
        dv_(kBlock * dim_padded_),
        p_(kBlock * kBlock),
        ds_(kBlock * kBlock),
        ds_b_(kBlock * kBlock) {}

  // Loads a block of keys and values.
  void start(const TileRows& keys, const Rows& k, const Rows& v, const Rotation* rope) {
    keys_ = keys;
    ds_sum_ = 0.;
    const int64_t dim = in_.dim, count = keys.count;
    const Matrix loaded = {.data = loaded_, .rows = count, .columns = dim, .stride = dim};
    load_tile(in_, v, keys, nullptr, loaded_);
    pack_a(loaded, v_.get());
    load_tile(in_, k, keys, rope, loaded_);
    pack_a(loaded, k_.get());
    for (int64_t d = 0; d < dim; d++) {
      for (int64_t j = 0; j < kBlock; j++) {
        transposed_[d * kBlock + j] = j < count ? loaded_[j * dim + d] : 0.f;
      }
    }
    pack_a({.data = transposed_, .rows = dim, .columns = kBlock, .stride = kBlock},
           k_transposed_.get());
    std::memset(dk_, 0, kBlock * dim_padded_ * sizeof(float));
    std::memset(dv_, 0, kBlock * dim_padded_ * sizeof(float));
  }

  // Takes a tile of query rows: adds to dK and dV, and to the tile's dQ when it is the block's
  // turn. Where products have a unit of their own, a tile's P and dS are made beside the products
  // of the next one, and what they add to is complete after finish().
  void take(const SweepStep<Element>& step) {
    if constexpr (GemmTraits<Element>::kSeparateUnit) {
      advance(&step);
    } else {
      NoOverlap nothing;
      gemm_s_dp(step, products_[0], nothing);
      for (int64_t i = 0; i < slices(); i++) make_p_ds(step, products_[0], i);
      add_gradients(step);
    }
  }

  // Stores dK and dV. Returns the sum of dS over the tiles taken since start().
  double finish(const Rotation* rope, const Rows& dk, const Rows& dv) {
    if (current_.rows) advance(nullptr);
    // Of a factor that q carries, dK keeps the scale.
    const float scale = logit_scale_.on_queries == 1.f ? in_.scale : static_cast<float>(kLn2);
    store_grad_tile(in_, dk_, dim_padded_, keys_, rope, scale, dk);
    store_grad_tile(in_, dv_, dim_padded_, keys_, nullptr, 1.f, dv);
    return ds_sum_;
  }

 private:
  // S = K Q^T and dP = V dO^T.
  struct Products {
    Buffer<float> s, dp;
    Products() : s(kBlock * kBlock), dp(kBlock * kBlock) {}
  };

  GemmShape scores_shape(const SweepStep<Element>& step) const {
    return {.rows = keys_.count, .panels = div_up(step.columns, kPanel), .depth = in_.dim};
  }

  void advance(const SweepStep<Element>* next) {
    Products &coming = products_[taken_ % 2], &current = products_[(taken_ + 1) % 2];
    const int64_t steps = next ? 2 * gemm_steps<Element>(scores_shape(*next)) : 0;
    const auto slice = [&](int64_t i) { make_p_ds(current_, current, i); };
    Overlap overlap(current_.rows ? slices() : 0, steps, slice);
    if (next) gemm_s_dp(*next, coming, overlap);
    overlap.finish();
    if (current_.rows) add_gradients(current_);
    current_ = next ? *next : SweepStep<Element>{};
    taken_++;
  }

  template <class Work>
  void gemm_s_dp(const SweepStep<Element>& step, Products& to, Work& overlap) {
    const QueryRows<Element>& rows = *step.rows;
    const int64_t dim = in_.dim, at = step.at * kBlock * dim;
    gemm<false, Element>(scores_shape(step), {.data = k_, .stride = dim},
                         {.data = rows.q_transposed + at, .panel_stride = dim * kPanel},
                         {.data = to.s, .stride = kBlock}, overlap);
    gemm<false, Element>(scores_shape(step), {.data = v_, .stride = dim},
                         {.data = rows.grad_o_transposed + at, .panel_stride = dim * kPanel},
                         {.data = to.dp, .stride = kBlock}, overlap);
  }

  // Slices of make_p_ds() in a tile.
  int64_t slices() const {
    using Traits = GemmTraits<Element>;
    return round_up(keys_.count, Traits::kDepth) / Traits::kPair;
  }

  // P = exp2(slope * product + bias - lse) and dS = P * (dP - delta) of kPair keys, as operands A,
  // and dS also as an operand B.
  void make_p_ds(const SweepStep<Element>& step, const Products& products, int64_t slice) {
    constexpr int kPair = GemmTraits<Element>::kPair;
    const QueryRows<Element>& rows = *step.rows;
    const float* shift_high = rows.shift_high + step.at * kBlock;
    const float* shift_low = rows.shift_low + step.at * kBlock;
    const float* delta = rows.delta + step.at * kBlock;
    const Vec slope = splat(logit_scale_.on_products);
    const int64_t i = slice * kPair;
    Vec ds_sum = tile_ds_sum_;
    for (int64_t j = 0; j < round_up(step.columns, kPanel); j += kVector) {
      Vec ds[kPair];
      for (int s = 0; s < kPair; s++) {
        const int64_t to = (i + s) * kBlock + j;
        if (i + s < keys_.count) {
          const Vec logit = load(products.s + to) * slope + load(shift_high + j);
          const Vec p = exp2<ProbabilityExp2<Element>>(logit + load(shift_low + j));
          ds[s] = p * (load(products.dp + to) - load(delta + j));
          store(p_ + to, p);
          store(ds_ + to, ds[s]);
          ds_sum += ds[s];
        } else {
          ds[s] = Vec{};
        }
      }
      store_b(ds, ds_b_ + j / kPanel * kBlock * kPanel + i * kPanel + j % kPanel * kPair);
    }
    tile_ds_sum_ = ds_sum;
  }

  static void store_b(const Vec (&x)[1], float* to) { store(to, x[0]); }
  static void store_b(const Vec (&x)[2], BFloat16* to) {
    const IntVec pairs = bfloat16_pairs(x[0], x[1]);
    std::memcpy(static_cast<void*>(to), &pairs, sizeof pairs);
  }

  // dV += P dO, dK += dS Q, dQ^T += K^T dS.
  void add_gradients(const SweepStep<Element>& step) {
    const QueryRows<Element>& rows = *step.rows;
    const int64_t at = step.at * kBlock * dim_padded_;
    const GemmShape shape = {
        .rows = keys_.count, .panels = dim_padded_ / kPanel, .depth = step.columns};
    gemm<true, Element>(shape, {.data = p_, .stride = kBlock},
                        {.data = rows.grad_o + at, .panel_stride = kBlock * kPanel},
                        {.data = dv_, .stride = dim_padded_});
    gemm<true, Element>(shape, {.data = ds_, .stride = kBlock},
                        {.data = rows.q + at, .panel_stride = kBlock * kPanel},
                        {.data = dk_, .stride = dim_padded_});
    rows.dq.wait_for_turn(step.at, step.turn);
    gemm<true, Element>(
        {.rows = in_.dim, .panels = div_up(step.columns, kPanel), .depth = keys_.count},
        {.data = k_transposed_, .stride = kBlock}, {.data = ds_b_, .panel_stride = kBlock * kPanel},
        {.data = rows.dq.tile(step.at), .stride = kBlock});
    rows.dq.end_turn(step.at, step.turn);
    ds_sum_ += sum(tile_ds_sum_);
    tile_ds_sum_ = Vec{};
  }

  const Attention& in_;
  int64_t dim_padded_;
  LogitScale<Element> logit_scale_;
  TileRows keys_{};
  Buffer<float> loaded_, transposed_;
  Buffer<Element> k_, v_, k_transposed_;  // operands A
  Buffer<float> dk_, dv_;
  Products products_[2];
  Buffer<Element> p_, ds_, ds_b_;
  SweepStep<Element> current_{};  // whose products are complete
  int64_t taken_ = 0;
  Vec tile_ds_sum_{};
  double ds_sum_ = 0.;
};

}  // namespace
}  // namespace genhoi::cpu
