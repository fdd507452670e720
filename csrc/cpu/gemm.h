// Small matrix products on cache tiles: C[rows, columns] (+)= A[rows, depth] B[depth, columns].
// A is row-major; B is packed in panels of kPanel columns, [panel][depth][kPanel].
#pragma once

#include "simd.h"

namespace genhoi::cpu {
namespace {

// Every element is summed over depth in order, whatever its place in the tile: a row's result does
// not depend on which other rows share its tile.
template <bool kAccumulate>
inline void register_tile(const float* a, int64_t a_stride, const float* b, int64_t depth, float* c,
                          int64_t c_stride) {
  Vec sums[kTileRows][2] = {};
  for (int64_t t = 0; t < depth; t++) {
    const Vec b0 = load(b + t * kPanel), b1 = load(b + t * kPanel + kVector);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; i++) {
      const Vec x = splat(a[i * a_stride + t]);
      sums[i][0] += x * b0;
      sums[i][1] += x * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; i++) {
    float* to = c + i * c_stride;
    store(to, kAccumulate ? load(to) + sums[i][0] : sums[i][0]);
    store(to + kVector, kAccumulate ? load(to + kVector) + sums[i][1] : sums[i][1]);
  }
}

// rows are rounded up to kTileRows: A and C must have room for that many.
template <bool kAccumulate>
inline void gemm(int64_t rows, int64_t panels, int64_t depth, const float* a, int64_t a_stride,
                 const float* b, int64_t panel_stride, float* c, int64_t c_stride) {
  for (int64_t p = 0; p < panels; p++) {
    for (int64_t i = 0; i < rows; i += kTileRows) {
      register_tile<kAccumulate>(a + i * a_stride, a_stride, b + p * panel_stride, depth,
                                 c + i * c_stride + p * kPanel, c_stride);
    }
  }
}

// Panels of X^T: X [rows, dim] becomes [rows / kPanel][dim][kPanel], rows padded with zeros.
inline void pack_transposed(const float* x, int64_t rows, int64_t dim, int64_t stride, float* to) {
  for (int64_t p = 0; p < div_up(rows, kPanel); p++) {
    const int64_t valid = min_of(kPanel, rows - p * kPanel);
    const float* from = x + p * kPanel * stride;
    float* panel = to + p * dim * kPanel;
    for (int64_t d = 0; d < dim; d++) {
      for (int64_t j = 0; j < valid; j++) panel[d * kPanel + j] = from[j * stride + d];
      for (int64_t j = valid; j < kPanel; j++) panel[d * kPanel + j] = 0.f;
    }
  }
}

// Panels of X: X [rows, dim] becomes [dim / kPanel][capacity][kPanel], dim padded with zeros.
inline void pack_rows(const float* x, int64_t rows, int64_t dim, int64_t stride, int64_t capacity,
                      float* to) {
  for (int64_t p = 0; p < div_up(dim, kPanel); p++) {
    const int64_t valid = min_of(kPanel, dim - p * kPanel);
    for (int64_t i = 0; i < rows; i++) {
      float* panel = to + (p * capacity + i) * kPanel;
      std::memcpy(panel, x + i * stride + p * kPanel, valid * sizeof(float));
      for (int64_t j = valid; j < kPanel; j++) panel[j] = 0.f;
    }
  }
}

}  // namespace
}  // namespace genhoi::cpu
