// Online softmax of a tile of query rows.
#pragma once

#include "cpu/attention/logits.h"
#include "cpu/row_math.h"
#include "cpu/runtime.h"

namespace genhoi::cpu {
namespace {

// A tile of query rows, and their softmax so far: acc_o is the sum of exp2(logit - row_max) * v;
// the kVector lanes of a row's row_sum add up to the sum of exp2(logit - row_max).
template <class Element>
struct QueryTile {
  Buffer<Element> q;
  Buffer<float> acc_o, row_max, row_sum;
  QueryTile(int64_t dim, int64_t dim_padded)
      : q(kBlock * dim), acc_o(kBlock * dim_padded), row_max(kBlock), row_sum(kBlock * kVector) {}
};

// Products of a tile with a block of keys, the probabilities they become, and what the tile's acc_o
// is to be multiplied by.
template <class Element>
struct ScoreTile {
  Buffer<float> products, rescale;
  Buffer<Element> p;
  ScoreTile() : products(kBlock * kBlock), rescale(kBlock), p(kBlock * kBlock) {}
};

// Probabilities may outgrow 1 by this many powers of two before a row is rescaled. In float32 not
// at all: rounding the argument of exp2 would show.
template <class Element>
constexpr float kHeadroom = sizeof(Element) == 2 ? 8.f : 0.f;

// Takes a row's products with `count` keys: p = exp2(slope * product + bias - row_max), zeros up to
// the padding of products over keys. Returns what the row's acc_o is to be multiplied by.
template <class Element>
inline float softmax_row(float* products, Element* p, int64_t count, float slope, float bias,
                         float& row_max, float* row_sum) {
  const int64_t padded = round_up(count, kVector);
  // With a negative slope the highest logit is that of the lowest product.
  const float lowest = slope < 0.f ? __builtin_inff() : -__builtin_inff();
  for (int64_t j = count; j < padded; j++) products[j] = lowest;
  Vec block_max = load(products) * splat(slope);
  for (int64_t j = kVector; j < padded; j += kVector) {
    const Vec x = load(products + j) * splat(slope);
    block_max = x > block_max ? x : block_max;
  }
  float rescale = 1.f;
  if (any(block_max + splat(bias) > splat(row_max + kHeadroom<Element>))) {
    const float new_max = max(block_max) + bias;
    rescale = exp2(row_max - new_max);
    row_max = new_max;
    scale_row(row_sum, kVector, rescale);
  }
  // A row whose logits are all -inf so far must not turn into -inf - -inf.
  const Vec shift = splat(bias - (row_max == -__builtin_inff() ? 0.f : row_max));
  Vec sums = load(row_sum);
  for (int64_t j = 0; j < padded; j += kVector) {
    const Vec x = exp2<ProbabilityExp2<Element>>(load(products + j) * splat(slope) + shift);
    sums += x;
    store(p + j, x);
  }
  store(row_sum, sums);
  const int64_t depth = round_up(count, GemmTraits<Element>::kDepth);
  if (depth > padded) {
    std::memset(static_cast<void*>(p + padded), 0, (depth - padded) * sizeof(Element));
  }
  return rescale;
}

}  // namespace
}  // namespace genhoi::cpu
