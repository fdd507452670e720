// The rotation of video and reference tokens, once: neighbouring values of a row are complex
// numbers, and each is multiplied by cos + i sin of the angle at its token's position. Vectors hold
// real parts and imaginary parts apart.
#pragma once

#include "cpu/convert.h"
#include "cpu/integers.h"

namespace genhoi::cpu {
namespace {

// kVector pairs of neighbouring values.
struct Complex {
  Vec re{}, im{};
};

inline const char* as_bytes(const float* x) { return reinterpret_cast<const char*>(x); }
inline char* as_bytes(float* x) { return reinterpret_cast<char*>(x); }

// Loads n <= kVector pairs from x; zeros behind them.
template <DType kType>
inline Complex load_complex(const char* x, int64_t n) {
  alignas(64) char padded[8 * kVector];
  if (n < kVector) {
    std::memset(padded, 0, sizeof padded);
    std::memcpy(padded, x, 2 * n * size_of(kType));
    x = padded;
  }
  Complex pairs;
  if constexpr (kType == DType::kBFloat16) {
    UIntVec bits;
    std::memcpy(&bits, x, sizeof bits);
    pairs.re = (Vec)(bits << 16);
    pairs.im = (Vec)(bits & 0xffff0000u);
  } else if constexpr (kType == DType::kFloat16) {
    const uint16_t* bits = reinterpret_cast<const uint16_t*>(x);
    deinterleave(load_float16(bits), load_float16(bits + kVector), pairs.re, pairs.im);
  } else {
    const float* floats = reinterpret_cast<const float*>(x);
    deinterleave(load(floats), load(floats + kVector), pairs.re, pairs.im);
  }
  return pairs;
}

template <DType kType>
inline void store_complex(Complex pairs, int64_t n, char* to) {
  alignas(64) char padded[8 * kVector];
  char* out = n < kVector ? padded : to;
  if constexpr (kType == DType::kBFloat16) {
    const IntVec bits = bfloat16_pairs(pairs.re, pairs.im);
    std::memcpy(out, &bits, sizeof bits);
  } else {
    Vec a, b;
    interleave(pairs.re, pairs.im, a, b);
    if constexpr (kType == DType::kFloat16) {
      store_float16(reinterpret_cast<uint16_t*>(out), a);
      store_float16(reinterpret_cast<uint16_t*>(out) + kVector, b);
    } else {
      store(reinterpret_cast<float*>(out), a);
      store(reinterpret_cast<float*>(out) + kVector, b);
    }
  }
  if (n < kVector) std::memcpy(to, padded, 2 * n * size_of(kType));
}

// body(p, n) for pairs [p, p + n) of a head, n = kVector except for the last.
template <class Body>
inline void for_pairs(int64_t dim, const Body& body) {
  const int64_t pairs = dim / 2;
  int64_t p = 0;
  for (; p + kVector <= pairs; p += kVector) body(p, int64_t{kVector});
  if (p < pairs) body(p, pairs - p);
}

// The rotation at one token and head. Cosines and sines stay from token to token along the axes
// where the position stays.
class RotationAt {
 public:
  // sign -1: the inverse rotation. `rope` may be null as long as nothing is rotated.
  RotationAt(const Rotation* rope, float sign) : rope_(rope), sign_(sign) {}

  const RotationAt& move_to(int64_t token, int64_t head) {
    int64_t first_pair = 0;
    for (int a = 0; a < 3; a++) {
      const int64_t pairs = rope_->pairs[a], position = position_of(token, head, a);
      if (position != position_[a]) {
        read(rope_->axis[a] + position * 2 * pairs, pairs, first_pair);
        position_[a] = position;
      }
      first_pair += pairs;
    }
    return *this;
  }

  // The token's other heads, where its angles depend on the head.
  const RotationAt& move_to_head(int64_t token, int64_t head) {
    return rope_->index[3 * token] < 0 ? move_to(token, head) : *this;
  }

  // Rotates pairs p to p + kVector of the row.
  Complex rotate(Complex x, int64_t p) const {
    const Vec c = load(cos_ + p), s = load(sin_ + p);
    return {x.re * c - x.im * s, x.im * c + x.re * s};
  }

  // Rotates a row of float32 in place.
  void rotate_row(float* x, int64_t dim) const {
    const int64_t pairs = dim / 2;
    if (pairs < kVector) {
      store_complex<kFloat32>(rotate(load_complex<kFloat32>(as_bytes(x), pairs), 0), pairs,
                              as_bytes(x));
      return;
    }
    // The last vector may overlap the one before: it is loaded before that is stored.
    const int64_t last = pairs - kVector;
    const Complex last_pairs = load_complex<kFloat32>(as_bytes(x + 2 * last), kVector);
    for (int64_t p = 0; p < last; p += kVector) {
      const Complex some = load_complex<kFloat32>(as_bytes(x + 2 * p), kVector);
      store_complex<kFloat32>(rotate(some, p), kVector, as_bytes(x + 2 * p));
    }
    store_complex<kFloat32>(rotate(last_pairs, last), kVector, as_bytes(x + 2 * last));
  }

 private:
  static constexpr DType kFloat32 = DType::kFloat32;

  // A token's position along an axis.
  int64_t position_of(int64_t token, int64_t head, int axis) const {
    const int64_t position = rope_->index[3 * token + axis];
    return position < 0 ? ~position + head : position;
  }

  // The last vector may overlap the one before.
  void read(const float* angles, int64_t pairs, int64_t first_pair) {
    if (pairs < kVector) {
      for (int64_t p = 0; p < pairs; p++) {
        cos_[first_pair + p] = angles[2 * p];
        sin_[first_pair + p] = angles[2 * p + 1] * sign_;
      }
      return;
    }
    for (int64_t i = 0; i < pairs; i += kVector) {
      const int64_t p = min_of(i, pairs - kVector);
      const Complex some = load_complex<kFloat32>(as_bytes(angles + 2 * p), kVector);
      store(cos_ + first_pair + p, some.re);
      store(sin_ + first_pair + p, some.im * splat(sign_));
    }
  }

  const Rotation* rope_;
  const float sign_;
  int64_t position_[3] = {-1, -1, -1};
  alignas(64) float cos_[kMaxDim / 2] = {}, sin_[kMaxDim / 2] = {};  // zeros behind the last pair
};

}  // namespace
}  // namespace genhoi::cpu
