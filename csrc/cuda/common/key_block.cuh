// Blocks of keys, one a block of threads, for dK and dV.
#pragma once

#include "../launch.h"
#include "layout.h"

namespace genhoi::cuda {

// Keys of one head, all of the video or of one reference.
struct KeyBlock {
  int first, count;
  int segment;  // of the references
};

__device__ __forceinline__ KeyBlock video_block(const GenhoiAttention& in, int index) {
  KeyBlock block;
  block.first = index * kDkdvKeys;
  block.count = min(in.keys - block.first, kDkdvKeys);
  block.segment = 0;
  return block;
}

// How many blocks the references' keys take at most.
__host__ __device__ inline int max_reference_blocks(const GenhoiAttention& in) {
  return in.ref_tokens / kDkdvKeys + in.references;
}

// Block number `index` of the references' keys; a count of 0 if there are fewer.
__device__ __forceinline__ KeyBlock reference_block(const GenhoiAttention& in, int index) {
  for (int segment = 0; segment < in.references; segment++) {
    const int first = in.segments[segment], count = in.segments[segment + 1] - first;
    const int blocks = (count + kDkdvKeys - 1) / kDkdvKeys;
    if (index < blocks) {
      const int skipped = index * kDkdvKeys;
      return {first + skipped, min(count - skipped, kDkdvKeys), segment};
    }
    index -= blocks;
  }
  return {0, 0, 0};
}

}  // namespace genhoi::cuda
