// RMS norm over all heads and rotation of q or k, and its gradient: a row is read from memory once
// (and once more from the inner caches), and written once.
#pragma once

#include <cmath>

#include "tiles.h"

namespace genhoi::cpu {
namespace {

constexpr int64_t kGroupRows = 128;    // rows that a thread takes
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
    return load_float16(reinterpret_cast<const uint16_t*>(x));
  }
}

template <DType kType>
inline void store_values(Vec values, int64_t n, char* to) {
  if (n < kVector) {
    store_row(reinterpret_cast<const float*>(&values), kType, n, to);
  } else if constexpr (kType == DType::kFloat32) {
    store(reinterpret_cast<float*>(to), values);
  } else if constexpr (kType == DType::kBFloat16) {
    store_bfloat16(reinterpret_cast<uint16_t*>(to), values);
  } else {
    store_float16(reinterpret_cast<uint16_t*>(to), values);
  }
}

// body(d, n): vectors [d, d + n) of a head, n = kVector except for the last.
template <class Body>
inline void for_vectors(int64_t dim, const Body& body) {
  int64_t d = 0;
  for (; d + kVector <= dim; d += kVector) body(d, int64_t{kVector});
  if (d < dim) body(d, dim - d);
}

inline const char* chars(const float* x) { return reinterpret_cast<const char*>(x); }
inline Vec load_floats(const float* x, int64_t n) {
  return load_values<DType::kFloat32>(chars(x), n);
}
inline void store_floats(Vec values, int64_t n, float* to) {
  store_values<DType::kFloat32>(values, n, reinterpret_cast<char*>(to));
}

// Rows [first, first + count) of sample b.
struct RowGroup {
  int64_t b, first, count;
};

class RowGroups {
 public:
  explicit RowGroups(const NormRope& call)
      : rows_(call.rows),
        per_sample_(div_up(call.rows, kGroupRows)),
        size_(call.batch * per_sample_) {}
  int64_t size() const { return size_; }
  RowGroup operator[](int64_t i) const {
    const int64_t first = i % per_sample_ * kGroupRows;
    return {i / per_sample_, first, min_of(kGroupRows, rows_ - first)};
  }

 private:
  int64_t rows_, per_sample_, size_;
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

// What the pairs of a row's head are turned by: (cos, cos) and (-sin, sin) of every pair. They stay
// from row to row along the axes where the place stays.
class Turns {
 public:
  // sign -1: turned back.
  Turns(const Rotation& rope, float sign) : rope_(rope), signs_(turning_signs(sign)) {}

  void move_to(int64_t token, int64_t head) {
    int64_t d = 0;
    for (int a = 0; a < 3; a++) {
      const int64_t floats = 2 * rope_.pairs[a], place = place_of(rope_, token, head, a);
      if (place != place_[a]) spread(rope_.axis[a] + place * floats, floats, d);
      place_[a] = place;
      d += floats;
    }
  }
  // The row's other heads, where the angles depend on the head.
  const Turns& of_head(int64_t token, int64_t head) {
    if (rope_.frame_is_head) move_to(token, head);
    return *this;
  }
  Vec turn(Vec pairs, int64_t d) const {
    return pairs * load(cos_ + d) + shuffle_pairs<Pairs::kSwap>(pairs) * load(sin_ + d);
  }

 private:
  // The last vector may overlap the one before.
  void spread(const float* angles, int64_t floats, int64_t first) {
    const int64_t n = min_of(floats, kVector), last = floats - n;
    for (int64_t i = 0; i < floats; i += kVector) {
      const int64_t d = min_of(i, last);
      const Vec some = load_floats(angles + d, n);
      store_floats(shuffle_pairs<Pairs::kFirst>(some), n, cos_ + first + d);
      store_floats(shuffle_pairs<Pairs::kSecond>(some) * signs_, n, sin_ + first + d);
    }
  }

  const Rotation& rope_;
  const Vec signs_;
  int64_t place_[3] = {-1, -1, -1};                          // in the angle tables
  alignas(64) float cos_[kMaxDim] = {}, sin_[kMaxDim] = {};  // zeros behind the last pair
};

// The functions of one head take what they need by value: its results are written through pointers
// to bytes, behind which a compiler must read again all that it only has a reference to.

template <DType kType>
inline Vec squares_of_head(const char* x, int64_t dim) {
  Vec squares{};
  for_vectors(dim, [&](int64_t d, int64_t n) {
    const Vec value = load_values<kType>(x + d * size_of(kType), n);
    squares += value * value;
  });
  return squares;
}

// y = R(x r weight), or y = R(x).
template <DType kType, bool kNorm>
inline void write_head(const char* x, const float* weight, float r, const Turns& turns, int64_t dim,
                       char* y) {
  for_vectors(dim, [&](int64_t d, int64_t n) {
    Vec value = load_values<kType>(x + d * size_of(kType), n);
    if constexpr (kNorm) value *= splat(r) * load_floats(weight + d, n);
    store_values<kType>(turns.turn(value, d), n, y + d * size_of(kType));
  });
}

// Adds to the sums of x^2 and of g weight x, with g the gradient turned back.
template <DType kType>
inline void sums_of_head(const char* x, const char* grad, const float* weight, const Turns& turns,
                         int64_t dim, Vec& squares, Vec& along) {
  Vec squares_here{}, along_here{};  // head by head, so that no float32 sum has many terms
  for_vectors(dim, [&](int64_t d, int64_t n) {
    const Vec value = load_values<kType>(x + d * size_of(kType), n);
    const Vec g = turns.turn(load_values<kType>(grad + d * size_of(kType), n), d);
    squares_here += value * value;
    along_here += g * load_floats(weight + d, n) * value;
  });
  squares += squares_here;
  along += along_here;
}

// dweight += g x r;  dx = r (g weight - x shrink)
template <DType kType>
inline void write_head_gradient(const char* x, const char* grad, const float* weight,
                                const Turns& turns, float r, float shrink, int64_t dim,
                                float* dweight, char* dx) {
  for_vectors(dim, [&](int64_t d, int64_t n) {
    const Vec value = load_values<kType>(x + d * size_of(kType), n);
    const Vec g = turns.turn(load_values<kType>(grad + d * size_of(kType), n), d);
    store_floats(load_floats(dweight + d, n) + g * value * splat(r), n, dweight + d);
    const Vec along = g * load_floats(weight + d, n) - value * splat(shrink);
    store_values<kType>(along * splat(r), n, dx + d * size_of(kType));
  });
}

inline float mean(Vec sums, double one_nth) { return static_cast<float>(sum(sums) * one_nth); }

inline float reciprocal_rms(Vec squares, double one_nth, float eps) {
  return 1.f / std::sqrt(mean(squares, one_nth) + eps);
}

// The rows of a thread; r = 1 / rms(x).
template <DType kType, bool kNorm>
class NormRopeRows {
 public:
  explicit NormRopeRows(const NormRope& call)
      : call_(call),
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
      const float* weight = kNorm ? call_.weight + h * call_.dim : nullptr;
      write_head<kType, kNorm>(row_at(call_.x, kType, b, row, h), weight, r_[slot],
                               turns_[slot].of_head(row, h), call_.dim,
                               row_at(call_.y, kType, b, row, h));
    }
  }

 private:
  const NormRope& call_;
  const double one_nth_;
  Turns turns_[2];
  Vec squares_[2];
  float r_[2] = {1.f, 1.f};
};

template <DType kType, bool kNorm>
void norm_rope_forward_of(const NormRope& call, const Pool& pool) {
  const RowGroups groups(call);
  parallel(pool, groups.size(), [&](Queue& queue) {
    NormRopeRows<kType, kNorm> rows(call);
    for (int64_t item; (item = queue.next()) < queue.items;) for_rows(groups[item], rows);
  });
}

// The gradient, with g the gradient turned back and r = 1 / rms(x):
//   dweight += g x r;  dx = r (g weight - x shrink), shrink = r^2 mean(g weight x)
template <DType kType>
class NormRopeGradientRows {
 public:
  explicit NormRopeGradientRows(const NormRopeBackward& call)
      : call_(call),
        one_nth_(1. / static_cast<double>(call.in.heads * call.in.dim)),
        turns_{{call.in.rope, -1.f}, {call.in.rope, -1.f}} {}

  // Where dweight is added up: [heads * dim].
  void add_to(float* dweight) { dweight_ = dweight; }

  void sum(int64_t b, int64_t row, int64_t slot) {
    const NormRope& in = call_.in;
    turns_[slot].move_to(row, 0);
    squares_[slot] = along_[slot] = Vec{};
    for (int64_t h = 0; h < in.heads; h++) {
      sums_of_head<kType>(row_at(in.x, kType, b, row, h), row_at(in.y, kType, b, row, h),
                          in.weight + h * in.dim, turns_[slot].of_head(row, h), in.dim,
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
                                 in.weight + h * in.dim, turns_[slot].of_head(row, h), r_[slot],
                                 shrink_[slot], in.dim, dweight_ + h * in.dim,
                                 row_at(call_.dx, kType, b, row, h));
    }
  }

 private:
  const NormRopeBackward& call_;
  const double one_nth_;
  Turns turns_[2];
  Vec squares_[2], along_[2];
  float r_[2], shrink_[2];
  float* dweight_ = nullptr;
};

// Column sums of the partitions, in double.
inline void add_up(const float* partials, int64_t n, float* to) {
  constexpr int64_t kColumns = kVector / 2;
  const int64_t whole = n / kColumns * kColumns;
  for (int64_t d = 0; d < whole; d += kColumns) {
    DoubleVec total{};
    for (int64_t c = 0; c < kWeightChunks; c++) total += load_doubles(partials + c * n + d);
    for (int64_t i = 0; i < kColumns; i++) to[d + i] = static_cast<float>(total[i]);
  }
  for (int64_t d = whole; d < n; d++) {
    double total = 0.;
    for (int64_t c = 0; c < kWeightChunks; c++) total += partials[c * n + d];
    to[d] = static_cast<float>(total);
  }
}

template <DType kType>
void norm_rope_backward_of(const NormRopeBackward& call, const Pool& pool) {
  const int64_t n = call.in.heads * call.in.dim;
  const RowGroups groups(call.in);
  Buffer<float> partials(kWeightChunks * n);
  std::memset(partials, 0, kWeightChunks * n * sizeof(float));
  parallel(pool, kWeightChunks, [&](Queue& queue) {
    NormRopeGradientRows<kType> rows(call);
    for (int64_t item; (item = queue.next()) < queue.items;) {
      rows.add_to(partials + item * n);
      const int64_t end = groups.size() * (item + 1) / kWeightChunks;
      for (int64_t g = groups.size() * item / kWeightChunks; g < end; g++) {
        for_rows(groups[g], rows);
      }
    }
  });
  add_up(partials, n, call.dweight);
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
