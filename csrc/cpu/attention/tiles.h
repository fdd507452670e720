// Tiles of rows of one head: loaded from tensors and stored to them, rotated on the way; subsets of
// a tile's rows.
#pragma once

#include "cpu/rope.h"
#include "cpu/row_math.h"

namespace genhoi::cpu {
namespace {

// Rows of head h of sample b: `count` from `first` on, or those that `which` lists.
struct TileRows {
  int64_t b, h, first, count;
  const int32_t* which = nullptr;
  int64_t operator[](int64_t i) const { return which ? which[i] : first + i; }
};

inline void prefetch(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

// Loads rows of x as float32, [count, dim], rotated unless `rope` is null.
inline void load_tile(const Attention& in, const Rows& x, const TileRows& rows,
                      const Rotation* rope, float* to) {
  // Rows of a head lie apart, which the hardware does not foresee.
  constexpr int64_t kAhead = 8;
  RotationAt rotation(rope, 1.f);
  for (int64_t i = 0; i < rows.count; i++) {
    if (i + kAhead < rows.count) {
      prefetch(row_at(x, in.dtype, rows.b, rows[i + kAhead], rows.h), in.dim * size_of(in.dtype));
    }
    float* row = to + i * in.dim;
    load_row(row_at(x, in.dtype, rows.b, rows[i], rows.h), in.dtype, in.dim, row);
    if (rope) rotation.move_to(rows[i], rows.h).rotate_row(row, in.dim);
  }
}

// Stores a tile of gradients of q, k or v: times `factor`, and rotated back unless `rope` is null.
inline void store_grad_tile(const Attention& in, float* grad, int64_t stride, const TileRows& rows,
                            const Rotation* rope, float factor, const Rows& to) {
  RotationAt rotation(rope, -1.f);
  for (int64_t i = 0; i < rows.count; i++) {
    float* row = grad + i * stride;
    scale_row(row, in.dim, factor);
    if (rope) rotation.move_to(rows[i], rows.h).rotate_row(row, in.dim);
    store_row(row, in.dtype, in.dim, row_at(to, in.dtype, rows.b, rows[i], rows.h));
  }
}

// Rows of x at `stride` that `which` lists.
template <class T>
inline void gather_rows(const T* x, int64_t stride, const int32_t* which, int64_t count, T* to) {
  for (int64_t i = 0; i < count; i++) {
    std::memcpy(static_cast<void*>(to + i * stride), x + which[i] * stride, stride * sizeof(T));
  }
}

inline void scatter_rows(const float* x, int64_t stride, const int32_t* which, int64_t count,
                         float* to) {
  for (int64_t i = 0; i < count; i++) {
    std::memcpy(to + which[i] * stride, x + i * stride, stride * sizeof(float));
  }
}

}  // namespace
}  // namespace genhoi::cpu
