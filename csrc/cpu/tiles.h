// What the forward and the backward pass share: loading and packing cache tiles of a head, the
// cutting of references into blocks, and which rows of a tile see which reference.
#pragma once

#include "gemm.h"

namespace genhoi::cpu {
namespace {

// Loads rows [first, first + count) (or those listed in `which`), rotated.
inline void load_tile(const Rows& x, DType dtype, int64_t dim, int64_t b, int64_t h, int64_t first,
                      int64_t count, const int32_t* which, const Rotation* rope, float* to) {
  // Rows of a head lie apart, which the hardware does not foresee.
  constexpr int64_t kAhead = 8;
  alignas(64) float angles[kMaxDim];
  for (int64_t i = 0; i < count; i++) {
    const int64_t row = which ? which[i] : first + i;
    if (i + kAhead < count) {
      const int64_t next = which ? which[i + kAhead] : row + kAhead;
      prefetch(row_at(x, dtype, b, next, h), dim * size_of(dtype));
    }
    load_row(row_at(x, dtype, b, row, h), dtype, dim, to + i * dim);
    if (rope) {
      load_angles(*rope, row, h, angles);
      rotate(to + i * dim, angles, dim, 1.f);
    }
  }
}

// Where the factor scale * log2 e goes that turns a product of query and key into a logit in units
// of log2 e: in float32 into the queries; for bfloat16 behind the product, so that queries are
// rounded as they are. Both passes do the same, so that their rounding errors agree.
template <class T>
struct LogitFactor {
  float in_queries, behind;
  explicit LogitFactor(float scale) {
    const float factor = static_cast<float>(scale * kLog2e);
    in_queries = sizeof(T) == 2 ? 1.f : factor;
    behind = sizeof(T) == 2 ? factor : 1.f;
  }
};

inline void multiply(float* x, int64_t n, float factor) {
  if (factor == 1.f) return;
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

// Rows up to the next multiple of kTileRows, which the register tiles also read.
inline void zero_padding(float* x, int64_t rows, int64_t dim) {
  std::memset(x + rows * dim, 0, (round_up(rows, kTileRows) - rows) * dim * sizeof(float));
}

#if defined(GENHOI_BFLOAT16)
// Whether a call's products are taken in bfloat16; else its values become float32.
inline bool multiplies_bfloat16(const Attention& in) {
  return in.dtype == DType::kBFloat16 && in.dim % Product<BFloat16>::kDepth == 0;
}
#endif

// Keys of one source cut into blocks of at most kBlock that do not cross a segment.
struct KeyBlock {
  int64_t segment, first, count;
};

class KeyBlocks {
 public:
  KeyBlocks(const int64_t* lengths, int64_t segments) : blocks_(count_of(lengths, segments)) {
    int64_t start = 0;
    for (int64_t r = 0; r < segments; r++) {
      for (int64_t at = 0; at < lengths[r]; at += kBlock) {
        blocks_[size_++] = {r, start + at, min_of(kBlock, lengths[r] - at)};
      }
      start += lengths[r];
    }
  }
  int64_t size() const { return size_; }
  const KeyBlock& operator[](int64_t i) const { return blocks_[i]; }

 private:
  static int64_t count_of(const int64_t* lengths, int64_t segments) {
    int64_t n = 0;
    for (int64_t r = 0; r < segments; r++) n += div_up(lengths[r], kBlock);
    return n;
  }
  Buffer<KeyBlock> blocks_;
  int64_t size_ = 0;
};

// A tile of query rows as its row numbers within [0, count): those that see a segment.
inline int64_t rows_that_see(const Attention& in, int64_t b, int64_t first, int64_t count,
                             int64_t segment, int32_t* which) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; i++) {
    const bool seen =
        !in.bits || (static_cast<uint32_t>(in.bits[b * in.bits_batch + first + i]) >> segment & 1);
    if (seen) which[n++] = static_cast<int32_t>(i);
  }
  return n;
}

// Bits of the segments that any row of a sample sees, of all samples if they share the references.
inline uint32_t segments_seen(const Attention& in, int64_t ref_sample) {
  if (!in.bits) return ~0u;
  const bool shared = in.ref_batch == 1;
  uint32_t seen = 0;
  for (int64_t b = shared ? 0 : ref_sample; b < (shared ? in.batch : ref_sample + 1); b++) {
    const int32_t* bits = in.bits + b * in.bits_batch;
    for (int64_t i = 0; i < in.rows; i++) seen |= static_cast<uint32_t>(bits[i]);
  }
  return seen;
}

// Heads worked on together: enough for every thread to be busy, no more, so that packed keys and
// values take the memory of a few heads only.
inline int64_t heads_at_once(const Attention& in, const Pool& pool) {
  const int64_t tiles = max_of(1, in.batch * div_up(in.rows, kBlock));
  return max_of(1, min_of(in.heads, div_up(8 * pool.threads, tiles)));
}

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

inline Rows contiguous(void* data, int64_t rows, int64_t heads, int64_t dim) {
  return {data, rows * heads * dim, heads * dim, dim};
}

}  // namespace
}  // namespace genhoi::cpu
