// Packs float32 matrices as operands A and B of gemm().
#pragma once

#include "cpu/gemm/traits.h"
#include "cpu/integers.h"

namespace genhoi::cpu {
namespace {

struct Matrix {
  const float* data;
  int64_t rows, columns, stride;
  const float* row(int64_t i) const { return data + i * stride; }
};

inline void convert(float x, float* to) { *to = x; }
inline void convert(float x, BFloat16* to) { to->bits = to_bfloat16(x); }

// Converts n floats.
template <class Element>
inline void pack_row(const float* x, int64_t n, Element* to) {
  const int64_t whole = n / kVector * kVector;
  for (int64_t i = 0; i < whole; i += kVector) store(to + i, load(x + i));
  for (int64_t i = whole; i < n; i++) convert(x[i], to + i);
}

// Rows of A = X [rows, depth], zeros below it up to the register tile's rows.
template <class Element>
inline void pack_a(const Matrix& x, Element* to) {
  for (int64_t i = 0; i < x.rows; i++) pack_row(x.row(i), x.columns, to + i * x.columns);
  const int64_t padding = round_up(x.rows, GemmTraits<Element>::kRows) - x.rows;
  std::memset(static_cast<void*>(to + x.rows * x.columns), 0,
              padding * x.columns * sizeof(Element));
}

// One row of B's panels: two rows of X (the second may be null, zeros) at depth t and t + 1.
inline void pack_depth(const float* x, const float*, int64_t columns, int64_t t,
                       int64_t panel_stride, float* to) {
  for (int64_t p = 0; p * kPanel < columns; p++) {
    float* panel = to + p * panel_stride + t * kPanel;
    const int64_t valid = min_of(kPanel, columns - p * kPanel);
    std::memcpy(panel, x + p * kPanel, valid * sizeof(float));
    for (int64_t j = valid; j < kPanel; j++) panel[j] = 0.f;
  }
}
inline void pack_depth(const float* x, const float* next, int64_t columns, int64_t t,
                       int64_t panel_stride, BFloat16* to) {
  for (int64_t p = 0; p * kPanel < columns; p++) {
    BFloat16* panel = to + p * panel_stride + t * kPanel;
    const float *x0 = x + p * kPanel, *x1 = next ? next + p * kPanel : nullptr;
    const int64_t valid = min_of(kPanel, columns - p * kPanel);
    int64_t j = 0;
    for (; j + kVector <= valid; j += kVector) {
      IntVec pairs = bfloat16_bits(load(x0 + j));
      if (x1) pairs |= bfloat16_bits(load(x1 + j)) << 16;
      std::memcpy(static_cast<void*>(panel + 2 * j), &pairs, sizeof pairs);
    }
    for (; j < kPanel; j++) {
      convert(j < valid ? x0[j] : 0.f, panel + 2 * j);
      convert(j < valid && x1 ? x1[j] : 0.f, panel + 2 * j + 1);
    }
  }
}

// Panels of B = X [depth, columns]: [columns / kPanel][capacity][kPanel] (pairs for bfloat16),
// columns padded with zeros and depth up to GemmTraits<Element>::kDepth.
template <class Element>
inline void pack_b(const Matrix& x, int64_t capacity, Element* to) {
  constexpr int kPair = GemmTraits<Element>::kPair;
  const int64_t depth = x.rows, panel_stride = capacity * kPanel;
  for (int64_t t = 0; t < depth; t += kPair) {
    const float* next = kPair == 2 && t + 1 < depth ? x.row(t + 1) : nullptr;
    pack_depth(x.row(t), next, x.columns, t, panel_stride, to);
  }
  const int64_t packed = round_up(depth, kPair);
  const int64_t padding = round_up(depth, GemmTraits<Element>::kDepth) - packed;
  for (int64_t p = 0; p * kPanel < x.columns; p++) {
    std::memset(static_cast<void*>(to + p * panel_stride + packed * kPanel), 0,
                padding * kPanel * sizeof(Element));
  }
}

// Panels of B = X^T, X [columns, depth]: [columns / kPanel][depth][kPanel] (pairs for bfloat16),
// columns padded with zeros; depth is a multiple of GemmTraits<Element>::kDepth and at most
// kMaxDim.
template <class Element>
inline void pack_b_transposed(const Matrix& x, Element* to) {
  constexpr int kPair = GemmTraits<Element>::kPair;
  static_assert(kPair * sizeof(Element) == sizeof(float), "what moves together is a float wide");
  const int64_t columns = x.rows, depth = x.columns;
  alignas(64) Element row[kMaxDim];
  for (int64_t p = 0; p * kPanel < columns; p++) {
    const int64_t valid = min_of(kPanel, columns - p * kPanel);
    Element* panel = to + p * depth * kPanel;
    if (valid < kPanel) std::memset(static_cast<void*>(panel), 0, depth * kPanel * sizeof(Element));
    for (int64_t j = 0; j < valid; j++) {
      pack_row(x.row(p * kPanel + j), depth, row);
      for (int64_t t = 0; t < depth; t += kPair) {
        std::memcpy(static_cast<void*>(panel + t * kPanel + j * kPair), row + t, sizeof(float));
      }
    }
  }
}

}  // namespace
}  // namespace genhoi::cpu
