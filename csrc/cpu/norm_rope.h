// RMS norm over all heads and rotation of q or k, in one pass over memory; and its gradient.
#pragma once

#include <cmath>

#include "tiles.h"

namespace genhoi::cpu {
namespace {

constexpr int64_t kWeightChunks = 64;  // partitions of the rows for the weight's gradient

inline float reciprocal_rms(const float* x, int64_t n, float eps) {
  return 1.f / std::sqrt(static_cast<float>(dot(x, x, n) / n) + eps);
}

inline void load_heads(const Rows& x, const NormRope& call, int64_t b, int64_t i, float* to) {
  for (int64_t h = 0; h < call.heads; h++) {
    load_row(row_at(x, call.dtype, b, i, h), call.dtype, call.dim, to + h * call.dim);
  }
}

// x[0 .. dim) times factor and weight, rotated, in place.
inline void scale_and_rotate(float* x, const float* weight, float factor, const float* angles,
                             int64_t dim) {
  const Vec signs = turning_signs(1.f);
  const int64_t whole = dim / kVector * kVector;
  for (int64_t i = 0; i < whole; i += kVector) {
    const Vec normed = load(x + i) * splat(factor) * load(weight + i);
    store(x + i, turn(normed, load(angles + i), signs));
  }
  for (int64_t i = whole; i < dim; i++) x[i] *= factor * weight[i];
  rotate(x + whole, angles + whole, dim - whole, 1.f);
}

void norm_rope_forward(const NormRope& call, const Pool& pool) {
  const int64_t n = call.heads * call.dim, rows = call.batch * call.rows;
  const float sign = call.inverse ? -1.f : 1.f;
  const int64_t chunk = 16;
  parallel(pool, div_up(rows, chunk), [&](Queue& queue) {
    Buffer<float> x(n), angles(call.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      for (int64_t r = item * chunk; r < min_of(rows, (item + 1) * chunk); r++) {
        const int64_t b = r / call.rows, i = r % call.rows;
        load_heads(call.x, call, b, i, x);
        const float rstd = call.weight ? reciprocal_rms(x, n, call.eps) : 1.f;
        for (int64_t h = 0; h < call.heads; h++) {
          if (h == 0 || call.rope.frame_is_head) load_angles(call.rope, i, h, angles);
          float* head = x + h * call.dim;
          if (call.weight) {
            scale_and_rotate(head, call.weight + h * call.dim, rstd, angles, call.dim);
          } else {
            rotate(head, angles, call.dim, sign);
          }
          store_row(head, call.dtype, call.dim, row_at(call.y, call.dtype, b, i, h));
        }
      }
    }
  });
}

// With g the gradient rotated back and r = 1/rms(x):
//   dweight = sum over rows of g * x * r
//   dx = r * (g * weight - x * r^2 * mean(g * weight * x))
void norm_rope_backward(const NormRopeBackward& call, const Pool& pool) {
  const NormRope& in = call.in;
  const int64_t n = in.heads * in.dim, rows = in.batch * in.rows;
  Buffer<float> partials(kWeightChunks * n);
  std::memset(partials, 0, kWeightChunks * n * sizeof(float));
  parallel(pool, kWeightChunks, [&](Queue& queue) {
    Buffer<float> x(n), g(n), angles(in.dim);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      float* dweight = partials + item * n;
      for (int64_t r = rows * item / kWeightChunks; r < rows * (item + 1) / kWeightChunks; r++) {
        const int64_t b = r / in.rows, i = r % in.rows;
        load_heads(in.x, in, b, i, x);
        load_heads(in.y, in, b, i, g);
        const float rstd = reciprocal_rms(x, n, in.eps);
        for (int64_t h = 0; h < in.heads; h++) {
          if (h == 0 || in.rope.frame_is_head) load_angles(in.rope, i, h, angles);
          rotate(g + h * in.dim, angles, in.dim, -1.f);
        }
        for (int64_t d = 0; d < n; d++) {
          dweight[d] += g[d] * x[d] * rstd;
          g[d] *= in.weight[d];
        }
        const float shrink = static_cast<float>(dot(g, x, n) / n) * rstd * rstd;
        for (int64_t d = 0; d < n; d++) g[d] = rstd * (g[d] - x[d] * shrink);
        for (int64_t h = 0; h < in.heads; h++) {
          store_row(g + h * in.dim, in.dtype, in.dim, row_at(call.dx, in.dtype, b, i, h));
        }
      }
    }
  });
  for (int64_t d = 0; d < n; d++) {
    double total = 0.;
    for (int64_t c = 0; c < kWeightChunks; c++) total += partials[c * n + d];
    call.dweight[d] = static_cast<float>(total);
  }
}

}  // namespace
}  // namespace genhoi::cpu
