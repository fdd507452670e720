// Heads that are worked on together, and where a call's values of one sample and head lie.
#pragma once

#include "cpu/call.h"
#include "cpu/config.h"
#include "cpu/runtime.h"

namespace genhoi::cpu {
namespace {

// Heads [first, first + count) of all samples. What is kept of them has one entry for each sample
// and head, numbered `bh` = b * count + h - first.
struct HeadGroup {
  int64_t first, count;
  int64_t sample(int64_t bh) const { return bh / count; }
  int64_t head(int64_t bh) const { return first + bh % count; }
};

// Enough heads for every thread to be busy, no more, so that packed keys and values take the memory
// of a few heads only.
inline int64_t heads_at_once(const Attention& in, const Pool& pool) {
  const int64_t tiles = max_of(1, in.batch * div_up(in.rows, kBlock));
  return max_of(1, min_of(in.heads, div_up(8 * pool.threads, tiles)));
}

}  // namespace
}  // namespace genhoi::cpu
