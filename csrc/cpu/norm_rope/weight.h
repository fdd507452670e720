// The norm's weight, its gradient, and the factor of a row.
#pragma once

#include <cmath>

#include "cpu/rope.h"
#include "cpu/runtime.h"

namespace genhoi::cpu {
namespace {

// Where float values of [heads, dim] lie as complex numbers: all real parts, then all imaginary
// parts, with room for whole vectors behind every head.
struct ComplexLayout {
  int64_t heads, stride;
  explicit ComplexLayout(const NormRope& call)
      : heads(call.heads), stride(round_up(call.dim / 2, kVector)) {}
  int64_t size() const { return 2 * heads * stride; }
  int64_t re(int64_t h) const { return h * stride; }
  int64_t im(int64_t h) const { return (heads + h) * stride; }
};

// One head of values in that layout.
template <class Float>
struct HeadValues {
  Float *re, *im;
};

// The weight in that layout; zeros behind each head, and everywhere without a weight.
class ComplexWeight {
 public:
  explicit ComplexWeight(const NormRope& call) : layout(call), values_(layout.size()) {
    std::memset(values_, 0, layout.size() * sizeof(float));
    for (int64_t h = 0; call.weight && h < call.heads; h++) {
      const float* from = call.weight + h * call.dim;
      for (int64_t p = 0; p < call.dim / 2; p++) {
        values_[layout.re(h) + p] = from[2 * p];
        values_[layout.im(h) + p] = from[2 * p + 1];
      }
    }
  }
  const ComplexLayout layout;
  HeadValues<const float> head(int64_t h) const {
    return {.re = values_ + layout.re(h), .im = values_ + layout.im(h)};
  }

 private:
  Buffer<float> values_;
};

// Sums `count` partial sums in that layout, in double, to [heads * dim] floats.
inline void reduce_partials(const float* partials, int64_t count, const NormRope& call, float* to) {
  const ComplexLayout layout(call);
  Buffer<double> sums(layout.size());
  for (int64_t i = 0; i < layout.size(); i++) sums[i] = 0.;
  for (int64_t c = 0; c < count; c++) {
    const float* partial = partials + c * layout.size();
    for (int64_t i = 0; i < layout.size(); i++) sums[i] += partial[i];
  }
  for (int64_t h = 0; h < call.heads; h++) {
    for (int64_t p = 0; p < call.dim / 2; p++) {
      to[h * call.dim + 2 * p] = static_cast<float>(sums[layout.re(h) + p]);
      to[h * call.dim + 2 * p + 1] = static_cast<float>(sums[layout.im(h) + p]);
    }
  }
}

// inverse_n: 1 / (heads * dim).
inline float mean(Vec sums, double inverse_n) { return static_cast<float>(sum(sums) * inverse_n); }

inline float reciprocal_rms(Vec squares, double inverse_n, float eps) {
  return 1.f / std::sqrt(mean(squares, inverse_n) + eps);
}

}  // namespace
}  // namespace genhoi::cpu
