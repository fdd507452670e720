// Small matrix products on cache tiles: C[rows, columns] (+)= A[rows, depth] B[depth, columns],
// sums in float32. A is row-major; B is packed in panels of kPanel columns, [panel][depth][kPanel],
// or for bfloat16, whose neighbours along the depth are multiplied in pairs, [panel][depth /
// 2][kPanel][2]. Every element is summed over depth in order, whatever its place in the tile: a
// row's result does not depend on which other rows share its tile.
#pragma once

#include "simd.h"

// Which unit multiplies bfloat16 (GENHOI_BFLOAT16 of the including file; not defined: none).
#define GENHOI_BFLOAT16_PAIRS 1  // vdpbf16ps
#define GENHOI_BFLOAT16_TILES 2  // AMX
#if defined(GENHOI_BFLOAT16)
#include GENHOI_BFLOAT16_UNIT
#endif

namespace genhoi::cpu {
namespace {

// Sizes of a register tile for operands of type T: its rows, and the depth it takes in one go, to
// which operands are padded with zeros. `kPair` values along the depth lie side by side in B.
// kApart: products are taken by a unit beside the vector units, which can do other work meanwhile.
template <class T>
struct Product {
  static constexpr int kRows = kTileRows, kDepth = 1, kPair = 1;
  static constexpr bool kApart = false;
  struct Unit {};  // what a thread must hold while it multiplies
};
#if GENHOI_BFLOAT16 == GENHOI_BFLOAT16_PAIRS
template <>
struct Product<BFloat16> {
  static constexpr int kRows = kTileRows, kDepth = 2, kPair = 2;
  static constexpr bool kApart = false;
  struct Unit {};
};
#elif GENHOI_BFLOAT16 == GENHOI_BFLOAT16_TILES
template <>
struct Product<BFloat16> {
  static constexpr int kRows = 32, kDepth = 32, kPair = 2;
  static constexpr bool kApart = true;
  using Unit = TileUnit;
};
#endif

// What a product that is kApart calls after each of its steps, product_steps() times in all: slices
// of other work, spread evenly over the steps of one product or more.
template <class Slice>
class Beside {
 public:
  Beside(int64_t slices, int64_t steps, const Slice& slice)
      : slices_(slices), steps_(steps), slice_(slice) {}
  void operator()() {
    for (due_ += slices_; due_ >= steps_; due_ -= steps_) slice_(done_++);
  }
  // What is left, if there were fewer steps.
  void finish() {
    while (done_ < slices_) slice_(done_++);
  }

 private:
  const int64_t slices_, steps_;
  int64_t due_ = 0, done_ = 0;
  const Slice& slice_;
};

struct NothingBeside {
  void operator()() const {}
};

template <bool kAccumulate>
inline void store_sums(const Vec (&sums)[kTileRows][2], float* c, int64_t c_stride) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; i++) {
    float* to = c + i * c_stride;
    store(to, kAccumulate ? load(to) + sums[i][0] : sums[i][0]);
    store(to + kVector, kAccumulate ? load(to + kVector) + sums[i][1] : sums[i][1]);
  }
}

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
  store_sums<kAccumulate>(sums, c, c_stride);
}

#if GENHOI_BFLOAT16 == GENHOI_BFLOAT16_PAIRS
template <bool kAccumulate>
inline void register_tile(const BFloat16* a, int64_t a_stride, const BFloat16* b, int64_t depth,
                          float* c, int64_t c_stride) {
  Vec sums[kTileRows][2] = {};
  for (int64_t t = 0; t < depth; t += 2) {
    const PairVec b0 = load_pairs(b + t * kPanel), b1 = load_pairs(b + t * kPanel + 2 * kVector);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; i++) {
      const PairVec x = splat_pair(a + i * a_stride + t);
      sums[i][0] = add_pair_products(sums[i][0], x, b0);
      sums[i][1] = add_pair_products(sums[i][1], x, b1);
    }
  }
  store_sums<kAccumulate>(sums, c, c_stride);
}
#elif GENHOI_BFLOAT16 == GENHOI_BFLOAT16_TILES
// 32 x 32 results in tiles 0 to 3, 16 x 16 each; 4 and 5 hold rows of A, 6 and 7 columns of B. Four
// products take the tile unit 64 cycles, in which `beside` runs in the vector units.
template <bool kAccumulate, class Work>
inline void register_tile(const BFloat16* a, int64_t a_stride, const BFloat16* b, int64_t depth,
                          float* c, int64_t c_stride, Work& beside) {
  static_assert(kPanel == 32);
  const int64_t c_bytes = c_stride * 4, a_bytes = a_stride * 2, b_bytes = kPanel * 4;
  float* lower = c + 16 * c_stride;
  if (kAccumulate) {
    TILE_LOAD(0, c, c_bytes);
    TILE_LOAD(1, c + 16, c_bytes);
    TILE_LOAD(2, lower, c_bytes);
    TILE_LOAD(3, lower + 16, c_bytes);
  } else {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
  }
  for (int64_t t = 0; t < depth; t += 32) {
    TILE_LOAD(4, a + t, a_bytes);
    TILE_LOAD(6, b + t * kPanel, b_bytes);
    TILE_MULTIPLY(0, 4, 6);
    TILE_LOAD(5, a + 16 * a_stride + t, a_bytes);
    TILE_MULTIPLY(2, 5, 6);
    TILE_LOAD(7, b + t * kPanel + 32, b_bytes);
    TILE_MULTIPLY(1, 4, 7);
    TILE_MULTIPLY(3, 5, 7);
    beside();
  }
  TILE_STORE(0, c, c_bytes);
  TILE_STORE(1, c + 16, c_bytes);
  TILE_STORE(2, lower, c_bytes);
  TILE_STORE(3, lower + 16, c_bytes);
}
#endif

// Rows are rounded up to the register tile's: A and C must have room for that many, and A and B for
// a depth rounded up to Product<T>::kDepth.
template <bool kAccumulate, class T, class Work>
inline void gemm(int64_t rows, int64_t panels, int64_t depth, const T* a, int64_t a_stride,
                 const T* b, int64_t panel_stride, float* c, int64_t c_stride, Work& beside) {
  const int64_t padded = round_up(depth, Product<T>::kDepth);
  for (int64_t p = 0; p < panels; p++) {
    for (int64_t i = 0; i < rows; i += Product<T>::kRows) {
      const T *a_tile = a + i * a_stride, *b_panel = b + p * panel_stride;
      float* c_tile = c + i * c_stride + p * kPanel;
      if constexpr (Product<T>::kApart) {
        register_tile<kAccumulate>(a_tile, a_stride, b_panel, padded, c_tile, c_stride, beside);
      } else {
        register_tile<kAccumulate>(a_tile, a_stride, b_panel, padded, c_tile, c_stride);
      }
    }
  }
}

template <bool kAccumulate, class T>
inline void gemm(int64_t rows, int64_t panels, int64_t depth, const T* a, int64_t a_stride,
                 const T* b, int64_t panel_stride, float* c, int64_t c_stride) {
  NothingBeside nothing;
  gemm<kAccumulate>(rows, panels, depth, a, a_stride, b, panel_stride, c, c_stride, nothing);
}

template <class T>
inline int64_t product_steps(int64_t rows, int64_t panels, int64_t depth) {
  return div_up(rows, Product<T>::kRows) * panels * div_up(depth, Product<T>::kDepth);
}

inline void convert(float x, float* to) { *to = x; }
inline void convert(float x, BFloat16* to) { to->bits = to_bfloat16(x); }

// A row of A: n floats as T.
template <class T>
inline void pack_row(const float* x, int64_t n, T* to) {
  const int64_t whole = n / kVector * kVector;
  for (int64_t i = 0; i < whole; i += kVector) store(to + i, load(x + i));
  for (int64_t i = whole; i < n; i++) convert(x[i], to + i);
}

// Rows of A: X [rows, dim] at `stride`, zeros below it up to the register tile's rows.
template <class T>
inline void pack_left(const float* x, int64_t rows, int64_t dim, int64_t stride, T* to) {
  for (int64_t i = 0; i < rows; i++) pack_row(x + i * stride, dim, to + i * dim);
  std::memset(static_cast<void*>(to + rows * dim), 0,
              (round_up(rows, Product<T>::kRows) - rows) * dim * sizeof(T));
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

// Panels of X: X [depth, columns] becomes [columns / kPanel][capacity][kPanel] (pairs for
// bfloat16), columns padded with zeros and depth up to Product<T>::kDepth.
template <class T>
inline void pack_right(const float* x, int64_t depth, int64_t columns, int64_t stride,
                       int64_t capacity, T* to) {
  constexpr int kPair = Product<T>::kPair;
  const int64_t panel_stride = capacity * kPanel;
  for (int64_t t = 0; t < depth; t += kPair) {
    const float* next = kPair == 2 && t + 1 < depth ? x + (t + 1) * stride : nullptr;
    pack_depth(x + t * stride, next, columns, t, panel_stride, to);
  }
  const int64_t packed = round_up(depth, kPair);
  for (int64_t p = 0; p * kPanel < columns; p++) {
    std::memset(static_cast<void*>(to + p * panel_stride + packed * kPanel), 0,
                (round_up(depth, Product<T>::kDepth) - packed) * kPanel * sizeof(T));
  }
}

// Panels of X^T: X [columns, depth] becomes [columns / kPanel][depth][kPanel] (pairs for bfloat16),
// columns padded with zeros; depth is a multiple of Product<T>::kDepth and at most kMaxDim.
template <class T>
inline void pack_right_transposed(const float* x, int64_t columns, int64_t depth, int64_t stride,
                                  T* to) {
  constexpr int kPair = Product<T>::kPair;
  static_assert(kPair * sizeof(T) == sizeof(float), "what moves together is as wide as a float");
  alignas(64) T row[kMaxDim];
  for (int64_t p = 0; p * kPanel < columns; p++) {
    const int64_t valid = min_of(kPanel, columns - p * kPanel);
    T* panel = to + p * depth * kPanel;
    if (valid < kPanel) std::memset(static_cast<void*>(panel), 0, depth * kPanel * sizeof(T));
    for (int64_t j = 0; j < valid; j++) {
      pack_row(x + (p * kPanel + j) * stride, depth, row);
      for (int64_t t = 0; t < depth; t += kPair) {
        std::memcpy(static_cast<void*>(panel + t * kPanel + j * kPair), row + t, sizeof(float));
      }
    }
  }
}

}  // namespace
}  // namespace genhoi::cpu
