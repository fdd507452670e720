// RMS norm over all heads and rotation of q or k: y = R(x r weight), r = 1 / rms(x). A row is read
// from memory once (and once more from the inner caches), and written once.
#pragma once

#include "cpu/norm_rope/rows.h"
#include "cpu/norm_rope/weight.h"

namespace genhoi::cpu {
namespace {

// The functions of one head take what they need by value: its results are written through pointers
// to bytes, behind which a compiler must read again all that it only has a reference to.

template <DType kType>
inline Vec squares_of_head(const char* x, int64_t dim) {
  Complex squares;
  for_pairs(dim, [&](int64_t p, int64_t n) {
    const Complex value = load_complex<kType>(x + 2 * p * size_of(kType), n);
    squares.re += value.re * value.re;
    squares.im += value.im * value.im;
  });
  return squares.re + squares.im;
}

// y = R(x r weight), or y = R(x).
template <DType kType, bool kNorm>
inline void write_head(const char* x, HeadValues<const float> weight, float r,
                       const RotationAt& rotation, int64_t dim, char* y) {
  for_pairs(dim, [&](int64_t p, int64_t n) {
    const int64_t at = 2 * p * size_of(kType);
    Complex value = load_complex<kType>(x + at, n);
    if constexpr (kNorm) {
      value.re *= load(weight.re + p) * splat(r);
      value.im *= load(weight.im + p) * splat(r);
    }
    store_complex<kType>(rotation.rotate(value, p), n, y + at);
  });
}

// The rows of a thread.
template <DType kType, bool kNorm>
class NormRopeRows {
 public:
  NormRopeRows(const NormRope& call, const ComplexWeight& weight)
      : call_(call),
        weight_(weight),
        inverse_n_(1. / static_cast<double>(call.heads * call.dim)),
        rotations_{{&call.rope, call.inverse ? -1.f : 1.f},
                   {&call.rope, call.inverse ? -1.f : 1.f}} {}

  void sum(int64_t b, int64_t row, int64_t slot) {
    rotations_[slot].move_to(row, 0);
    if constexpr (kNorm) {
      squares_[slot] = Vec{};
      for (int64_t h = 0; h < call_.heads; h++) {
        squares_[slot] += squares_of_head<kType>(row_at(call_.x, kType, b, row, h), call_.dim);
      }
    }
  }

  void finish(int64_t slot) {
    if constexpr (kNorm) r_[slot] = reciprocal_rms(squares_[slot], inverse_n_, call_.eps);
  }

  void write(int64_t b, int64_t row, int64_t slot) {
    for (int64_t h = 0; h < call_.heads; h++) {
      write_head<kType, kNorm>(row_at(call_.x, kType, b, row, h), weight_.head(h), r_[slot],
                               rotations_[slot].move_to_head(row, h), call_.dim,
                               row_at(call_.y, kType, b, row, h));
    }
  }

 private:
  const NormRope& call_;
  const ComplexWeight& weight_;
  const double inverse_n_;
  RotationAt rotations_[2];
  Vec squares_[2];
  float r_[2] = {1.f, 1.f};
};

template <DType kType, bool kNorm>
void norm_rope_forward_of(const NormRope& call, const Pool& pool) {
  const RowGroups groups(call);
  const ComplexWeight weight(call);
  parallel(pool, groups.size(), [&](Queue& queue) {
    NormRopeRows<kType, kNorm> rows(call, weight);
    for (int64_t item; (item = queue.next()) < queue.items;) for_rows(groups[item], rows);
  });
}

template <DType kType>
void norm_rope_forward_of(const NormRope& call, const Pool& pool) {
  call.weight ? norm_rope_forward_of<kType, true>(call, pool)
              : norm_rope_forward_of<kType, false>(call, pool);
}

void norm_rope_forward(const NormRope& call, const Pool& pool) {
  switch (call.dtype) {
    case DType::kFloat32:
      return norm_rope_forward_of<DType::kFloat32>(call, pool);
    case DType::kBFloat16:
      return norm_rope_forward_of<DType::kBFloat16>(call, pool);
    case DType::kFloat16:
      return norm_rope_forward_of<DType::kFloat16>(call, pool);
  }
}

}  // namespace
}  // namespace genhoi::cpu
