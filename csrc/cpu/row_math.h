// Loops over one row of floats: sums in double, and a product with a scalar.
#pragma once

#include "cpu/vec.h"

namespace genhoi::cpu {
namespace {

inline double sum_row(const float* x, int64_t n) {
  const int64_t whole = n / (kVector / 2) * (kVector / 2);
  DoubleVec sums{};
  for (int64_t i = 0; i < whole; i += kVector / 2) sums += load_doubles(x + i);
  double result = sum(sums);
  for (int64_t i = whole; i < n; i++) result += x[i];
  return result;
}

inline double dot(const float* x, const float* y, int64_t n) {
  const int64_t whole = n / (kVector / 2) * (kVector / 2);
  DoubleVec sums{};
  for (int64_t i = 0; i < whole; i += kVector / 2) {
    sums += load_doubles(x + i) * load_doubles(y + i);
  }
  double result = sum(sums);
  for (int64_t i = whole; i < n; i++) result += static_cast<double>(x[i]) * y[i];
  return result;
}

inline void scale_row(float* x, int64_t n, float factor) {
  if (factor == 1.f) return;
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

}  // namespace
}  // namespace genhoi::cpu
