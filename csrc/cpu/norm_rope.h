// RMS norm over all heads and rotation of q or k, and its gradient: a row is read from memory once
// (and once more from the inner caches), and written once.
#pragma once

#include <cmath>

#include "tiles.h"

namespace genhoi::cpu {
namespace {

constexpr int64_t kWeightChunks = 64;  // partitions of the rows for the weight's gradient

// n <= kVector values from x, zeros behind them.
template <DType kType>
inline Vec load_values(const char* x, int64_t n) {
  alignas(64) char padded[4 * kVector] = {};
  if (n < kVector) {
    std::memcpy(padded, x, max_of(n, 0) * size_of(kType));
    x = padded;
  }
  if constexpr (kType == DType::kFloat32) {
    return load(reinterpret_cast<const float*>(x));
  } else if constexpr (kType == DType::kBFloat16) {
    return load_bfloat16(reinterpret_cast<const uint16_t*>(x));
  } else {
    Vec values;
    load_row(x, kType, kVector, reinterpret_cast<float*>(&values));
    return values;
  }
}

template <DType kType>
inline void store_values(Vec values, int64_t n, char* to) {
  if (n == kVector && kType == DType::kFloat32) {
    store(reinterpret_cast<float*>(to), values);
  } else if (n == kVector && kType == DType::kBFloat16) {
    store_bfloat16(reinterpret_cast<uint16_t*>(to), values);
  } else {
    store_row(reinterpret_cast<const float*>(&values), kType, min_of(n, kVector), to);
  }
}

// body(d, n): vectors [d, d + n) of a head, n = kVector except for the last.
template <class Body>
inline void for_vectors(int64_t dim, const Body& body) {
  int64_t d = 0;
  for (; d + kVector <= dim; d += kVector) body(d, int64_t{kVector});
  if (d < dim) body(d, dim - d);
}

inline float reciprocal_rms(Vec squares, int64_t n, float eps) {
  return 1.f / std::sqrt(static_cast<float>(static_cast<double>(sum(squares)) / n) + eps);
}

inline const char* chars(const float* x) { return reinterpret_cast<const char*>(x); }

// One row: y = R(x r weight), r = 1 / rms(x). Squares are added up head by head, so that no float32
// sum has many terms. `angles` has room for kMaxDim + kVector.
template <DType kType>
inline void norm_rope_row(const NormRope& call, int64_t b, int64_t i, Vec signs, float* angles) {
  float r = 1.f;
  if (call.weight) {
    Vec squares{};
    for (int64_t h = 0; h < call.heads; h++) {
      const char* x = row_at(call.x, kType, b, i, h);
      Vec of_head{};
      for_vectors(call.dim, [&](int64_t d, int64_t n) {
        const Vec value = load_values<kType>(x + d * size_of(kType), n);
        of_head += value * value;
      });
      squares += of_head;
    }
    r = reciprocal_rms(squares, call.heads * call.dim, call.eps);
  }
  for (int64_t h = 0; h < call.heads; h++) {
    if (h == 0 || call.rope.frame_is_head) load_angles(call.rope, i, h, angles);
    const char* x = row_at(call.x, kType, b, i, h);
    const float* weight = call.weight ? call.weight + h * call.dim : nullptr;
    char* y = row_at(call.y, kType, b, i, h);
    for_vectors(call.dim, [&](int64_t d, int64_t n) {
      Vec value = load_values<kType>(x + d * size_of(kType), n);
      if (weight) value = value * splat(r) * load_values<DType::kFloat32>(chars(weight + d), n);
      store_values<kType>(turn(value, load(angles + d), signs), n, y + d * size_of(kType));
    });
  }
}

template <DType kType>
void norm_rope_forward_of(const NormRope& call, const Pool& pool) {
  const int64_t rows = call.batch * call.rows, chunk = 16;
  const Vec signs = turning_signs(call.inverse ? -1.f : 1.f);
  parallel(pool, div_up(rows, chunk), [&](Queue& queue) {
    alignas(64) float angles[kMaxDim + kVector] = {};
    for (int64_t item; (item = queue.next()) < queue.items;) {
      for (int64_t r = item * chunk; r < min_of(rows, (item + 1) * chunk); r++) {
        norm_rope_row<kType>(call, r / call.rows, r % call.rows, signs, angles);
      }
    }
  });
}

// One row of the gradient, with g the gradient rotated back and r = 1 / rms(x):
//   dweight += g x r;  dx = r (g weight - x r^2 mean(g weight x))
template <DType kType>
inline void norm_rope_backward_row(const NormRopeBackward& call, int64_t b, int64_t i, Vec signs,
                                   float* angles, float* dweight) {
  const NormRope& in = call.in;
  const int64_t size = size_of(kType);
  // body(h, d, n, x, g) for all vectors [d, d + n) of all heads h; after_head() behind each head.
  const auto each = [&](const auto& body, const auto& after_head) {
    for (int64_t h = 0; h < in.heads; h++) {
      if (h == 0 || in.rope.frame_is_head) load_angles(in.rope, i, h, angles);
      const char *x = row_at(in.x, kType, b, i, h), *grad = row_at(in.y, kType, b, i, h);
      for_vectors(in.dim, [&](int64_t d, int64_t n) {
        const Vec g = turn(load_values<kType>(grad + d * size, n), load(angles + d), signs);
        body(h, d, n, load_values<kType>(x + d * size, n), g);
      });
      after_head();
    }
  };
  const auto weight_at = [&](int64_t h, int64_t d, int64_t n) {
    return load_values<DType::kFloat32>(chars(in.weight + h * in.dim + d), n);
  };
  Vec squares{}, along{}, squares_of_head{}, along_of_head{};
  each(
      [&](int64_t h, int64_t d, int64_t n, Vec x, Vec g) {
        squares_of_head += x * x;
        along_of_head += g * weight_at(h, d, n) * x;
      },
      [&] {
        squares += squares_of_head;
        along += along_of_head;
        squares_of_head = along_of_head = Vec{};
      });
  const int64_t n_row = in.heads * in.dim;
  const float r = reciprocal_rms(squares, n_row, in.eps);
  const float shrink = static_cast<float>(static_cast<double>(sum(along)) / n_row) * r * r;
  each(
      [&](int64_t h, int64_t d, int64_t n, Vec x, Vec g) {
        float* to = dweight + h * in.dim + d;
        const Vec sums = load_values<DType::kFloat32>(chars(to), n) + g * x * splat(r);
        store_values<DType::kFloat32>(sums, n, reinterpret_cast<char*>(to));
        const Vec dx = splat(r) * (g * weight_at(h, d, n) - x * splat(shrink));
        store_values<kType>(dx, n, row_at(call.dx, kType, b, i, h) + d * size);
      },
      [] {});
}

template <DType kType>
void norm_rope_backward_of(const NormRopeBackward& call, const Pool& pool) {
  const NormRope& in = call.in;
  const int64_t n = in.heads * in.dim, rows = in.batch * in.rows;
  const Vec signs = turning_signs(-1.f);
  Buffer<float> partials(kWeightChunks * n);
  std::memset(partials, 0, kWeightChunks * n * sizeof(float));
  parallel(pool, kWeightChunks, [&](Queue& queue) {
    alignas(64) float angles[kMaxDim + kVector] = {};
    for (int64_t item; (item = queue.next()) < queue.items;) {
      for (int64_t r = rows * item / kWeightChunks; r < rows * (item + 1) / kWeightChunks; r++) {
        norm_rope_backward_row<kType>(call, r / in.rows, r % in.rows, signs, angles,
                                      partials + item * n);
      }
    }
  });
  for (int64_t d = 0; d < n; d++) {
    double total = 0.;
    for (int64_t c = 0; c < kWeightChunks; c++) total += partials[c * n + d];
    call.dweight[d] = static_cast<float>(total);
  }
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
