// Gradient of RMS norm and rotation. With g the incoming gradient rotated back and r = 1 / rms(x):
//   dweight += g x r;  dx = r (g weight - x projection), projection = r^2 mean(g weight x)
#pragma once

#include "cpu/norm_rope/rows.h"
#include "cpu/norm_rope/weight.h"

namespace genhoi::cpu {
namespace {

constexpr int64_t kWeightChunks = 64;  // partitions of the rows for the weight's gradient

// As in forward.h, the functions of one head take what they need by value.

// Adds to the sums of x^2 and of g weight x.
template <DType kType>
inline void sums_of_head(const char* x, const char* grad, HeadValues<const float> weight,
                         const RotationAt& rotation, int64_t dim, Vec& squares, Vec& products) {
  Complex head_squares, head_products;  // head by head, so that no float32 sum has many terms
  for_pairs(dim, [&](int64_t p, int64_t n) {
    const int64_t at = 2 * p * size_of(kType);
    const Complex value = load_complex<kType>(x + at, n);
    const Complex g = rotation.rotate(load_complex<kType>(grad + at, n), p);
    head_squares.re += value.re * value.re;
    head_squares.im += value.im * value.im;
    head_products.re += g.re * load(weight.re + p) * value.re;
    head_products.im += g.im * load(weight.im + p) * value.im;
  });
  squares += head_squares.re + head_squares.im;
  products += head_products.re + head_products.im;
}

// What a row's gradient is made of beside x and g.
struct RowFactors {
  float r, projection;
};

template <DType kType>
inline void write_head_gradient(const char* x, const char* grad, HeadValues<const float> weight,
                                const RotationAt& rotation, RowFactors row, int64_t dim,
                                HeadValues<float> dweight, char* dx) {
  for_pairs(dim, [&](int64_t p, int64_t n) {
    const int64_t at = 2 * p * size_of(kType);
    const Complex value = load_complex<kType>(x + at, n);
    const Complex g = rotation.rotate(load_complex<kType>(grad + at, n), p);
    store(dweight.re + p, load(dweight.re + p) + g.re * value.re * splat(row.r));
    store(dweight.im + p, load(dweight.im + p) + g.im * value.im * splat(row.r));
    const Vec re = g.re * load(weight.re + p) - value.re * splat(row.projection);
    const Vec im = g.im * load(weight.im + p) - value.im * splat(row.projection);
    store_complex<kType>({re * splat(row.r), im * splat(row.r)}, n, dx + at);
  });
}

// The rows of a thread.
template <DType kType>
class NormRopeGradientRows {
 public:
  NormRopeGradientRows(const NormRopeBackward& call, const ComplexWeight& weight)
      : call_(call),
        weight_(weight),
        inverse_n_(1. / static_cast<double>(call.in.heads * call.in.dim)),
        rotations_{{&call.in.rope, -1.f}, {&call.in.rope, -1.f}} {}

  // Where dweight is added up, in the weight's layout.
  void add_to(float* dweight) { dweight_ = dweight; }

  void sum(int64_t b, int64_t row, int64_t slot) {
    const NormRope& in = call_.in;
    rotations_[slot].move_to(row, 0);
    squares_[slot] = products_[slot] = Vec{};
    for (int64_t h = 0; h < in.heads; h++) {
      sums_of_head<kType>(row_at(in.x, kType, b, row, h), row_at(in.y, kType, b, row, h),
                          weight_.head(h), rotations_[slot].move_to_head(row, h), in.dim,
                          squares_[slot], products_[slot]);
    }
  }

  void finish(int64_t slot) {
    const float r = reciprocal_rms(squares_[slot], inverse_n_, call_.in.eps);
    factors_[slot] = {.r = r, .projection = mean(products_[slot], inverse_n_) * r * r};
  }

  void write(int64_t b, int64_t row, int64_t slot) {
    const NormRope& in = call_.in;
    for (int64_t h = 0; h < in.heads; h++) {
      const HeadValues<float> dweight = {.re = dweight_ + weight_.layout.re(h),
                                         .im = dweight_ + weight_.layout.im(h)};
      write_head_gradient<kType>(row_at(in.x, kType, b, row, h), row_at(in.y, kType, b, row, h),
                                 weight_.head(h), rotations_[slot].move_to_head(row, h),
                                 factors_[slot], in.dim, dweight,
                                 row_at(call_.dx, kType, b, row, h));
    }
  }

 private:
  const NormRopeBackward& call_;
  const ComplexWeight& weight_;
  const double inverse_n_;
  RotationAt rotations_[2];
  Vec squares_[2], products_[2];
  RowFactors factors_[2];
  float* dweight_ = nullptr;
};

template <DType kType>
void norm_rope_backward_of(const NormRopeBackward& call, const Pool& pool) {
  const RowGroups groups(call.in);
  const ComplexWeight weight(call.in);
  const int64_t size = weight.layout.size();
  Buffer<float> partials(kWeightChunks * size);
  std::memset(partials, 0, kWeightChunks * size * sizeof(float));
  parallel(pool, kWeightChunks, [&](Queue& queue) {
    NormRopeGradientRows<kType> rows(call, weight);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      rows.add_to(partials + item * size);
      const int64_t end = groups.size() * (item + 1) / kWeightChunks;
      for (int64_t g = groups.size() * item / kWeightChunks; g < end; g++) {
        for_rows(groups[g], rows);
      }
    }
  });
  reduce_partials(partials, kWeightChunks, call.in, call.dweight);
}

void norm_rope_backward(const NormRopeBackward& call, const Pool& pool) {
  switch (call.in.dtype) {
    case DType::kFloat32:
      return norm_rope_backward_of<DType::kFloat32>(call, pool);
    case DType::kBFloat16:
      return norm_rope_backward_of<DType::kBFloat16>(call, pool);
    case DType::kFloat16:
      return norm_rope_backward_of<DType::kFloat16>(call, pool);
  }
}

}  // namespace
}  // namespace genhoi::cpu
