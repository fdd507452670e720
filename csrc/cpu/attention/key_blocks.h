// The keys of one source, the video's or the references', in blocks.
#pragma once

#include "cpu/config.h"
#include "cpu/runtime.h"

namespace genhoi::cpu {
namespace {

struct KeyBlock {
  int64_t segment, first, count;
};

// Blocks of at most kBlock keys that do not cross a segment.
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

  // The first block behind `first` that is of another segment.
  int64_t end_of_segment(int64_t first) const {
    int64_t end = first + 1;
    while (end < size_ && blocks_[end].segment == blocks_[first].segment) end++;
    return end;
  }

 private:
  static int64_t count_of(const int64_t* lengths, int64_t segments) {
    int64_t n = 0;
    for (int64_t r = 0; r < segments; r++) n += div_up(lengths[r], kBlock);
    return n;
  }
  Buffer<KeyBlock> blocks_;
  int64_t size_ = 0;
};

}  // namespace
}  // namespace genhoi::cpu
