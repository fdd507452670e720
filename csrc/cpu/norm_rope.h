// RMS norm over all heads and rotation of q or k, and its gradient: a row is read from memory once
// (and once more from the inner caches), and written once.
#pragma once

#include <cmath>

#include "tiles.h"

namespace genhoi::cpu {
namespace {

constexpr int64_t kMostGroupRows = 128, kFewestGroupRows = 8;  // that a thread takes
constexpr int64_t kWeightChunks = 64;  // partitions of the rows for the weight's gradient

// The pairs that are turned, as complex numbers.
struct Complex {
  Vec re{}, im{};
};

inline const char* chars(const float* x) { return reinterpret_cast<const char*>(x); }

// n <= kVector pairs from x, zeros behind them.
template <DType kType>
inline Complex load_pairs(const char* x, int64_t n) {
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
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(x);
    deinterleave(load_float16(halves), load_float16(halves + kVector), pairs.re, pairs.im);
  } else {
    const float* floats = reinterpret_cast<const float*>(x);
    deinterleave(load(floats), load(floats + kVector), pairs.re, pairs.im);
  }
  return pairs;
}

template <DType kType>
inline void store_pairs(Complex pairs, int64_t n, char* to) {
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

// Where float values of [heads, dim] lie as pairs: all real parts, then all imaginary parts, with
// room for whole vectors behind every head.
struct PairLayout {
  int64_t heads, stride;
  explicit PairLayout(const NormRope& call)
      : heads(call.heads), stride(round_up(call.dim / 2, kVector)) {}
  int64_t size() const { return 2 * heads * stride; }
  int64_t re(int64_t h) const { return h * stride; }
  int64_t im(int64_t h) const { return (heads + h) * stride; }
};

// body(p, n): pairs [p, p + n) of a head, n = kVector except for the last.
template <class Body>
inline void for_pairs(int64_t dim, const Body& body) {
  const int64_t pairs = dim / 2;
  int64_t p = 0;
  for (; p + kVector <= pairs; p += kVector) body(p, int64_t{kVector});
  if (p < pairs) body(p, pairs - p);
}

// Rows [first, first + count) of sample b.
struct RowGroup {
  int64_t b, first, count;
};

// The same groups whatever the number of threads: the weight's gradient is summed by them.
class RowGroups {
 public:
  explicit RowGroups(const NormRope& call)
      : rows_(call.rows),
        group_rows_(rows_of_group(call.batch * call.rows)),
        per_sample_(div_up(call.rows, group_rows_)),
        size_(call.batch * per_sample_) {}
  int64_t size() const { return size_; }
  RowGroup operator[](int64_t i) const {
    const int64_t first = i % per_sample_ * group_rows_;
    return {i / per_sample_, first, min_of(group_rows_, rows_ - first)};
  }

 private:
  // Few rows are shared by the threads, too.
  static int64_t rows_of_group(int64_t rows) {
    return max_of(kFewestGroupRows, min_of(kMostGroupRows, div_up(rows, 16)));
  }
  int64_t rows_, group_rows_, per_sample_, size_;
};

// A row's sums, sum(b, row, slot), are taken before the row before it is written, and made into
// factors, finish(slot), behind that: neither the sums nor the root and the division are waited
// for.
template <class Worker>
inline void for_rows(const RowGroup& group, Worker& worker) {
  const int64_t end = group.first + group.count;
  worker.sum(group.b, group.first, group.first % 2);
  worker.finish(group.first % 2);
  for (int64_t row = group.first; row < end; row++) {
    const int64_t next = row + 1;
    if (next < end) worker.sum(group.b, next, next % 2);
    worker.write(group.b, row, row % 2);
    if (next < end) worker.finish(next % 2);
  }
}

// What the pairs of a row's head are turned by. Cosines and sines stay from row to row along the
// axes where the place stays.
class Turns {
 public:
  // sign -1: turned back.
  Turns(const Rotation& rope, float sign) : rope_(rope), sign_(sign) {}

  void move_to(int64_t token, int64_t head) {
    int64_t p = 0;
    for (int a = 0; a < 3; a++) {
      const int64_t pairs = rope_.pairs[a], place = place_of(rope_, token, head, a);
      if (place != place_[a]) read(rope_.axis[a] + place * 2 * pairs, pairs, p);
      place_[a] = place;
      p += pairs;
    }
  }
  // The row's other heads, where the angles depend on the head.
  const Turns& of_head(int64_t token, int64_t head) {
    if (rope_.frame_is_head) move_to(token, head);
    return *this;
  }
  Complex turn(Complex x, int64_t p) const {
    const Vec c = load(cos_ + p), s = load(sin_ + p);
    return {x.re * c - x.im * s, x.im * c + x.re * s};
  }

 private:
  // The last vector may overlap the one before.
  void read(const float* angles, int64_t pairs, int64_t first) {
    if (pairs < kVector) {
      for (int64_t p = 0; p < pairs; p++) {
        cos_[first + p] = angles[2 * p];
        sin_[first + p] = angles[2 * p + 1] * sign_;
      }
      return;
    }
    for (int64_t i = 0; i < pairs; i += kVector) {
      const int64_t p = min_of(i, pairs - kVector);
      const Complex some = load_pairs<DType::kFloat32>(chars(angles + 2 * p), kVector);
      store(cos_ + first + p, some.re);
      store(sin_ + first + p, some.im * splat(sign_));
    }
  }

  const Rotation& rope_;
  const float sign_;
  int64_t place_[3] = {-1, -1, -1};                                  // in the angle tables
  alignas(64) float cos_[kMaxDim / 2] = {}, sin_[kMaxDim / 2] = {};  // zeros behind the last pair
};

// The functions of one head take what they need by value: its results are written through pointers
// to bytes, behind which a compiler must read again all that it only has a reference to.

template <DType kType>
inline Vec squares_of_head(const char* x, int64_t dim) {
  Complex squares;
  for_pairs(dim, [&](int64_t p, int64_t n) {
    const Complex value = load_pairs<kType>(x + 2 * p * size_of(kType), n);
    squares.re += value.re * value.re;
    squares.im += value.im * value.im;
  });
  return squares.re + squares.im;
}

// y = R(x r weight), or y = R(x).
template <DType kType, bool kNorm>
inline void write_head(const char* x, const float* weight_re, const float* weight_im, float r,
                       const Turns& turns, int64_t dim, char* y) {
  for_pairs(dim, [&](int64_t p, int64_t n) {
    const int64_t at = 2 * p * size_of(kType);
    Complex value = load_pairs<kType>(x + at, n);
    if constexpr (kNorm) {
      value.re *= load(weight_re + p) * splat(r);
      value.im *= load(weight_im + p) * splat(r);
    }
    store_pairs<kType>(turns.turn(value, p), n, y + at);
  });
}

// Adds to the sums of x^2 and of g weight x, with g the gradient turned back.
template <DType kType>
inline void sums_of_head(const char* x, const char* grad, const float* weight_re,
                         const float* weight_im, const Turns& turns, int64_t dim, Vec& squares,
                         Vec& along) {
  Complex squares_here, along_here;  // head by head, so that no float32 sum has many terms
  for_pairs(dim, [&](int64_t p, int64_t n) {
    const int64_t at = 2 * p * size_of(kType);
    const Complex value = load_pairs<kType>(x + at, n);
    const Complex g = turns.turn(load_pairs<kType>(grad + at, n), p);
    squares_here.re += value.re * value.re;
    squares_here.im += value.im * value.im;
    along_here.re += g.re * load(weight_re + p) * value.re;
    along_here.im += g.im * load(weight_im + p) * value.im;
  });
  squares += squares_here.re + squares_here.im;
  along += along_here.re + along_here.im;
}

// dweight += g x r;  dx = r (g weight - x shrink)
template <DType kType>
inline void write_head_gradient(const char* x, const char* grad, const float* weight_re,
                                const float* weight_im, const Turns& turns, float r, float shrink,
                                int64_t dim, float* dweight_re, float* dweight_im, char* dx) {
  for_pairs(dim, [&](int64_t p, int64_t n) {
    const int64_t at = 2 * p * size_of(kType);
    const Complex value = load_pairs<kType>(x + at, n);
    const Complex g = turns.turn(load_pairs<kType>(grad + at, n), p);
    store(dweight_re + p, load(dweight_re + p) + g.re * value.re * splat(r));
    store(dweight_im + p, load(dweight_im + p) + g.im * value.im * splat(r));
    const Vec re = g.re * load(weight_re + p) - value.re * splat(shrink);
    const Vec im = g.im * load(weight_im + p) - value.im * splat(shrink);
    store_pairs<kType>({re * splat(r), im * splat(r)}, n, dx + at);
  });
}

inline float mean(Vec sums, double one_nth) { return static_cast<float>(sum(sums) * one_nth); }

inline float reciprocal_rms(Vec squares, double one_nth, float eps) {
  return 1.f / std::sqrt(mean(squares, one_nth) + eps);
}

// The weight as pairs; zeros where there is no value, or no weight.
class PairWeight {
 public:
  explicit PairWeight(const NormRope& call) : layout(call), values_(layout.size()) {
    std::memset(values_, 0, layout.size() * sizeof(float));
    for (int64_t h = 0; call.weight && h < call.heads; h++) {
      const float* from = call.weight + h * call.dim;
      for (int64_t p = 0; p < call.dim / 2; p++) {
        values_[layout.re(h) + p] = from[2 * p];
        values_[layout.im(h) + p] = from[2 * p + 1];
      }
    }
  }
  const PairLayout layout;
  const float* re(int64_t h) const { return values_ + layout.re(h); }
  const float* im(int64_t h) const { return values_ + layout.im(h); }

 private:
  Buffer<float> values_;
};

// The rows of a thread; r = 1 / rms(x).
template <DType kType, bool kNorm>
class NormRopeRows {
 public:
  NormRopeRows(const NormRope& call, const PairWeight& weight)
      : call_(call),
        weight_(weight),
        one_nth_(1. / static_cast<double>(call.heads * call.dim)),
        turns_{{call.rope, call.inverse ? -1.f : 1.f}, {call.rope, call.inverse ? -1.f : 1.f}} {}

  void sum(int64_t b, int64_t row, int64_t slot) {
    turns_[slot].move_to(row, 0);
    if constexpr (kNorm) {
      squares_[slot] = Vec{};
      for (int64_t h = 0; h < call_.heads; h++) {
        squares_[slot] += squares_of_head<kType>(row_at(call_.x, kType, b, row, h), call_.dim);
      }
    }
  }

  void finish(int64_t slot) {
    if constexpr (kNorm) r_[slot] = reciprocal_rms(squares_[slot], one_nth_, call_.eps);
  }

  void write(int64_t b, int64_t row, int64_t slot) {
    for (int64_t h = 0; h < call_.heads; h++) {
      write_head<kType, kNorm>(row_at(call_.x, kType, b, row, h), weight_.re(h), weight_.im(h),
                               r_[slot], turns_[slot].of_head(row, h), call_.dim,
                               row_at(call_.y, kType, b, row, h));
    }
  }

 private:
  const NormRope& call_;
  const PairWeight& weight_;
  const double one_nth_;
  Turns turns_[2];
  Vec squares_[2];
  float r_[2] = {1.f, 1.f};
};

template <DType kType, bool kNorm>
void norm_rope_forward_of(const NormRope& call, const Pool& pool) {
  const RowGroups groups(call);
  const PairWeight weight(call);
  parallel(pool, groups.size(), [&](Queue& queue) {
    NormRopeRows<kType, kNorm> rows(call, weight);
    for (int64_t item; (item = queue.next()) < queue.items;) for_rows(groups[item], rows);
  });
}

// The gradient, with g the gradient turned back and r = 1 / rms(x):
//   dweight += g x r;  dx = r (g weight - x shrink), shrink = r^2 mean(g weight x)
template <DType kType>
class NormRopeGradientRows {
 public:
  NormRopeGradientRows(const NormRopeBackward& call, const PairWeight& weight)
      : call_(call),
        weight_(weight),
        one_nth_(1. / static_cast<double>(call.in.heads * call.in.dim)),
        turns_{{call.in.rope, -1.f}, {call.in.rope, -1.f}} {}

  // Where dweight is added up, as pairs.
  void add_to(float* dweight) { dweight_ = dweight; }

  void sum(int64_t b, int64_t row, int64_t slot) {
    const NormRope& in = call_.in;
    turns_[slot].move_to(row, 0);
    squares_[slot] = along_[slot] = Vec{};
    for (int64_t h = 0; h < in.heads; h++) {
      sums_of_head<kType>(row_at(in.x, kType, b, row, h), row_at(in.y, kType, b, row, h),
                          weight_.re(h), weight_.im(h), turns_[slot].of_head(row, h), in.dim,
                          squares_[slot], along_[slot]);
    }
  }

  void finish(int64_t slot) {
    const float r = reciprocal_rms(squares_[slot], one_nth_, call_.in.eps);
    r_[slot] = r;
    shrink_[slot] = mean(along_[slot], one_nth_) * r * r;
  }

  void write(int64_t b, int64_t row, int64_t slot) {
    const NormRope& in = call_.in;
    for (int64_t h = 0; h < in.heads; h++) {
      write_head_gradient<kType>(row_at(in.x, kType, b, row, h), row_at(in.y, kType, b, row, h),
                                 weight_.re(h), weight_.im(h), turns_[slot].of_head(row, h),
                                 r_[slot], shrink_[slot], in.dim, dweight_ + weight_.layout.re(h),
                                 dweight_ + weight_.layout.im(h),
                                 row_at(call_.dx, kType, b, row, h));
    }
  }

 private:
  const NormRopeBackward& call_;
  const PairWeight& weight_;
  const double one_nth_;
  Turns turns_[2];
  Vec squares_[2], along_[2];
  float r_[2], shrink_[2];
  float* dweight_ = nullptr;
};

// Sums of the partitions, in double, to [heads * dim] floats.
inline void add_up(const float* partials, const NormRope& call, float* to) {
  const PairLayout layout(call);
  Buffer<double> totals(layout.size());
  for (int64_t i = 0; i < layout.size(); i++) totals[i] = 0.;
  for (int64_t c = 0; c < kWeightChunks; c++) {
    const float* part = partials + c * layout.size();
    for (int64_t i = 0; i < layout.size(); i++) totals[i] += part[i];
  }
  for (int64_t h = 0; h < call.heads; h++) {
    for (int64_t p = 0; p < call.dim / 2; p++) {
      to[h * call.dim + 2 * p] = static_cast<float>(totals[layout.re(h) + p]);
      to[h * call.dim + 2 * p + 1] = static_cast<float>(totals[layout.im(h) + p]);
    }
  }
}

template <DType kType>
void norm_rope_backward_of(const NormRopeBackward& call, const Pool& pool) {
  const RowGroups groups(call.in);
  const PairWeight weight(call.in);
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
  add_up(partials, call.in, call.dweight);
}

template <DType kType>
void norm_rope_forward_of(const NormRope& call, const Pool& pool) {
  call.weight ? norm_rope_forward_of<kType, true>(call, pool)
              : norm_rope_forward_of<kType, false>(call, pool);
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
